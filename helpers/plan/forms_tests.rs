//! Short plans in the forms that public tools write, written for this test, in `forms.txt`: below
//! each stand the items that it counts, or how its refusal begins.

use super::*;

#[test]
fn plans_in_the_forms_of_public_tools_are_counted_as_a_person_counts() {
    let mut parts = include_str!("forms.txt").split("%% ").skip(1);
    let mut plans = 0;
    while let (Some(plan), Some(expected)) = (parts.next(), parts.next()) {
        let (name, text) = plan.split_once('\n').expect("a name");
        let (verdict, expected) = expected.split_once('\n').expect("a verdict");
        for text in [text.to_string(), text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
            let read = match Plan::parse_new(&text, Path::new("plan.md")) {
                Ok(plan) => {
                    let line = |item: &Item| format!("{} {}\n", item.marker, item.text);
                    ("counts", plan.items.iter().map(line).collect())
                }
                Err(refusal) => {
                    let refusal = refusal.to_string();
                    ("refuses", format!("{}\n", refusal.lines().next().expect("a line")))
                }
            };
            assert_eq!(read, (verdict, expected.to_string()), "{name}\n{text}");
        }
        plans += 1;
    }
    assert!(plans >= 60, "{plans}");
}
