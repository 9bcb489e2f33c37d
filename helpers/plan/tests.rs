//! Every form of a checklist line and how it counts.

use super::*;

pub(super) const PLAN: &str = "# Fix it\n\n- [x] Read\n  in 2 files\n- [?] Choose\n  Which one?\n- [!] Test — cargo is missing\n- [ ] Write\n\n## Context\nMind it.\n";

/// The counted items, with their markers.
fn counted(text: &str) -> Vec<String> {
    let items = Plan::parse(text).items;
    items.iter().map(|item| format!("{} {}", item.marker, item.text)).collect()
}

/// The lines in doubt, with their reasons.
fn doubted(text: &str) -> Vec<(usize, String)> {
    Plan::parse(text).doubts.iter().map(|doubt| (doubt.line, doubt.why.reason())).collect()
}

fn refused(text: &str) -> String {
    Plan::parse_new(text, Path::new("plan.md")).expect_err("refused").to_string()
}

#[test]
fn each_form_of_a_step_is_counted() {
    let rows = [
        // List markers and the blanks around them.
        ("- [ ] a", "[ ] a"),
        ("* [ ] a", "[ ] a"),
        ("+ [ ] a", "[ ] a"),
        ("1. [ ] a", "[ ] a"),
        ("2) [ ] a", "[ ] a"),
        ("123. [x] a", "[x] a"),
        ("-[ ] a", "[ ] a"),
        ("1.[ ] a", "[ ] a"),
        ("-  [ ]   a", "[ ] a"),
        ("+\t[X]\ta", "[x] a"),
        ("    - [ ] a", "[ ] a"),
        ("\t\t1. [x] a", "[x] a"),
        // Marks.
        ("- [x] a", "[x] a"),
        ("- [X] a", "[x] a"),
        ("- [ x ] a", "[x] a"),
        ("- [✓] a", "[x] a"),
        ("- [✔\u{fe0f}] a", "[x] a"),
        ("- [?] a", "[?] a"),
        ("- [!] a", "[!] a"),
        ("- [~] a", "[ ] a"),
        ("- [-] a", "[ ] a"),
        ("- [/] a", "[ ] a"),
        ("- [>] a", "[ ] a"),
        ("- [??] a", "[ ] a"),
        ("- [✗] a", "[ ] a"),
        ("- [🚧] a", "[ ] a"),
        ("- [] a", "[ ] a"),
        ("- [  ] a", "[ ] a"),
        ("- [\t] a", "[ ] a"),
        // No blank behind the brackets.
        ("- [ ]a", "[ ] a"),
        ("- [x]a", "[x] a"),
        ("- [ ]: a", "[ ] : a"),
        ("- [ ]", "[ ] "),
        // No-break spaces, a BOM, characters without width.
        ("-\u{a0}[ ] a", "[ ] a"),
        ("- [\u{a0}] a", "[ ] a"),
        ("- [ ]\u{a0}a", "[ ] a"),
        ("- [x\u{202f}] a", "[x] a"),
        ("\u{a0}\u{a0}- [ ] a", "[ ] a"),
        ("\u{feff}- [ ] a", "[ ] a"),
        ("\u{200b}- [\u{200b} ] a", "[ ] a"),
        // Any text may follow the box.
        ("- [ ] Change `- [ ]` to `- [x]`", "[ ] Change `- [ ]` to `- [x]`"),
        ("- [ ] **bold** [1] (see [it](x))", "[ ] **bold** [1] (see [it](x))"),
        ("- [ ] T001 [P] [US1] Model", "[ ] T001 [P] [US1] Model"),
        ("- [ ] 写测试", "[ ] 写测试"),
        ("- [ ] a <!-- remark -->", "[ ] a <!-- remark -->"),
    ];
    for (line, item) in rows {
        for end in ["", "\n", "\r\n", "\r"] {
            let text = format!("{line}{end}");
            assert_eq!(counted(&text), [item], "{text:?}");
            assert_eq!(doubted(&text), [], "{text:?}");
        }
    }
}

#[test]
fn lookalikes_of_steps_are_refused_with_their_line() {
    let (word, no_list, link) = (Why::Word.reason(), Why::Box.reason(), Why::Link.reason());
    let rows = [
        ("- [1] Smith 2020", &word),
        ("- [A] option", &word),
        ("- [done] a", &word),
        ("- [in progress] a", &word),
        ("- [WIP] a", &word),
        ("* [х] a Russian letter", &word),
        ("[1] Smith 2020", &word),
        ("[A] option", &word),
        ("[ ] a", &no_list),
        ("[x] a", &no_list),
        ("[] a", &no_list),
        ("### [ ] Task 1", &no_list),
        ("> - [ ] a", &no_list),
        ("> [x] a", &no_list),
        ("| [ ] | a |", &no_list),
        ("• [ ] a", &no_list),
        ("– [ ] a", &no_list),
        ("1.1 [ ] a", &no_list),
        ("- 1.1. [x] a", &no_list),
        ("1、[ ] a", &no_list),
        ("- - [ ] a", &no_list),
        ("- **[ ] a**", &no_list),
        ("- ~~[ ] a~~", &no_list),
        ("--> - [ ] a", &no_list),
        ("- Task 1: [ ] a", &no_list),
        ("## Task 1 [ ]", &no_list),
        ("- a [ ]", &no_list),
        ("a) [ ] a", &no_list),
        ("- [ ](a)", &link),
        ("- [x](a)", &link),
        ("- [ ][a]", &link),
    ];
    for (line, reason) in rows {
        let text = format!("- [ ] First\n\n{line}\n");
        assert_eq!(counted(&text), ["[ ] First"], "{line}");
        assert_eq!(doubted(&text), [(3, reason.clone())], "{line}");
        let refusal = refused(&text);
        let first = format!("line 3 of the plan is in doubt: {reason}\n  plan.md: {line}\n");
        assert!(refusal.starts_with(&first), "{refusal}");
        assert_eq!(refusal.lines().count(), 3, "{refusal}");
        assert!(!Plan::parse(&text.replace("[ ] First", "[x] First")).complete());
    }
}

#[test]
fn other_brackets_are_text() {
    let rows = [
        "- [link](url)",
        "- [link][1]",
        "- [1]: url",
        "[1]: url",
        "[x](url)",
        "[Some text] here",
        "- ![ ](image.png)",
        "- `[ ]` is an open box",
        "- '[?]' means blocked, \"[!]\" failed",
        "- \\[ ] escaped",
        "\\- [ ] escaped",
        "- a list[0], a[], b[x]",
        "- it says [x] somewhere",
        "- […] cut",
        "> [!NOTE]",
        "> […] quoted",
        "[^1]: a footnote",
        "- [@name] asks",
        "- [1, 2] is a pair",
        "- [==========] full",
        "| a | b |",
        "#[test]",
        "let a = [ ];",
        "if [ -f x ]; then",
        "<!-- - [ ] a -->",
        "- [ no end",
        "[[bin]]",
        "[\"a\"]",
        "[]",
    ];
    for line in rows {
        let text = format!("- [ ] First\n\n{line}\n");
        if line == "[]" {
            continue;
        }
        assert_eq!((counted(&text), doubted(&text)), (vec!["[ ] First".into()], vec![]), "{line}");
    }
}

#[test]
fn only_a_heading_that_reads_context_ends_the_plan() {
    let contexts = [
        "## Context",
        "# context",
        "###### CONTEXT:",
        "## **Context**",
        "## Context ##",
        "## 3. Context",
        "##\u{a0}Context",
        "  ## Context",
        "**Context**",
        "**Context:**",
        "**Context**:",
        "Context\n=======",
        "Context\n---",
    ];
    for heading in contexts {
        let text = format!("# T\n\n- [x] a\n\n{heading}\n\nWords.\n\n## More\n\n- [ ] b\n");
        assert_eq!(counted(&text), ["[x] a"], "{heading}");
        let line = text.lines().count();
        assert_eq!(doubted(&text), [(line, Why::Context(5).reason())], "{heading}");
        assert!(!Plan::parse(&text).complete());
    }
    let others = [
        "## Notes",
        "## Contexts",
        "## Context and more",
        "## Kontext",
        "## Контекст",
        "## 背景",
        "## Context\u{301}e",
        "Context",
        "Context:",
        "#Context",
        "    ## Context",
        "- Context",
        "> ## Context",
        "```\n## Context\n```",
        "<!--\n## Context\n-->",
        "---",
        "***",
        "```bash ignore``` runs",
        "```all``` of it",
    ];
    for heading in others {
        let text = format!("# T\n\n- [ ] a\n\n{heading}\n\nWords.\n\n- [ ] b\n");
        assert_eq!(counted(&text), ["[ ] a", "[ ] b"], "{heading}");
        assert_eq!(doubted(&text), [], "{heading}");
    }
}

#[test]
fn hidden_text_in_fences_and_comments_is_no_step() {
    let hiding = [
        "```\n- [ ] no\n```",
        "```md\n- [ ] no\n```",
        "~~~\n- [ ] no\n~~~",
        "~~~ `a`\n- [ ] no\n~~~",
        "````md\n```\n- [ ] no\n```\n- [ ] no\n````",
        "~~~~\n```\n- [ ] no\n~~~\n- [ ] no\n~~~~",
        "```\n- [ ] no\n`````",
        "```\n- [ ] no\n``` \t",
        "Words.\n\n   ```\n- [ ] no\n   ```",
        "  ```\n  - [ ] no\n  ```",
        "1. b\n   ```\n   - [ ] no\n   ```",
        "- ```\n  - [ ] no\n  ```",
        "<!-- - [ ] no -->",
        "<!--\n- [ ] no\n-->",
        "<!-- a\n- [ ] no\n\n- [ ] no -->",
        "<!--\n```\n- [ ] no\n-->",
        "```\n<!--\n- [ ] no\n```",
        "```\n## Context\n```",
    ];
    for block in hiding {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("- [ ] a\n\n{block}\n- [ ] b\n").replace('\n', end);
            assert_eq!(counted(&text), ["[ ] a", "[ ] b"], "{text:?}");
            assert_eq!(doubted(&text), [], "{text:?}");
        }
    }
}

#[test]
fn ambiguous_fences_and_comments_are_reported() {
    // The text, and the line in doubt with that of the fence or comment.
    let rows: &[(&str, &[(usize, usize)])] = &[
        // Never ended.
        ("```\n- [ ] a\n", &[(2, 1)]),
        ("~~~\n- [ ] a\n```\n", &[(2, 1)]),
        ("````\n- [ ] a\n```\n", &[(2, 1)]),
        ("<!-- x\n- [ ] a\n", &[(2, 1)]),
        ("- [ ] a <!-- x\n- [ ] b\n", &[]),
        // An info string behind the end.
        ("```\n- [ ] a\n```bash\n- [ ] b\n```\n", &[(4, 1)]),
        ("```markdown\n```bash\nls\n```\n- [ ] a\n```\n- [ ] b\n", &[(5, 4), (7, 6)]),
        // The end of a list item may end its fence.
        ("- a\n  ```\n  b\n- [ ] c\n", &[]),
        ("- a\n  ```\n  b\n- [ ] c\n  ```\n- [ ] d\n", &[(4, 2)]),
        ("1. a\n   ```\n   b\n```\n2. [ ] c\n", &[(5, 4)]),
        // Indented like code.
        ("```\n    ```\n- [ ] a\n```\n- [ ] b\n", &[(3, 1)]),
        ("    ```\n- [ ] a\n    ```\n- [ ] b\n", &[(2, 1)]),
        // A comment within a line.
        ("- [ ] a <!--\n- [ ] b\n-->\n", &[(2, 1)]),
        ("Words <!--\n- [ ] a\n-->\n", &[(2, 1)]),
        ("<!--\n--> - [ ] a\n", &[(2, 1)]),
    ];
    for (text, expected) in rows {
        let expected: Vec<_> =
            expected.iter().map(|(line, by)| (*line, Why::Hidden(*by).reason())).collect();
        assert_eq!(doubted(text), expected, "{text}");
    }
}

#[test]
fn all_markers_and_both_forms_of_notes_are_read() {
    let plan = Plan::parse(PLAN);
    assert_eq!(
        counted(PLAN),
        ["[x] Read", "[?] Choose", "[!] Test — cargo is missing", "[ ] Write"]
    );
    let plan = plan.numbered_as(&Plan::parse("- [ ] Read\n- [ ] Choose\n- [ ] Test\n"));
    assert_eq!(plan.current().map(|item| &*item.number), Some("2"));
    assert_eq!(plan.items()[3].number, "3.1");
}

#[test]
fn quotation_marks_hold_what_a_worker_wrote() {
    let person = Plan::parse("- [ ] Read\n  in 2 files\n- [ ] Test\n- [ ] Test: a\n- [ ] Send\n");
    let text = "- [x] Read\n  in 2 files\n  it took long\n- [!] Test — no cargo\n- [!] Test: a\n- [?] \n- [ ] Send it\n";
    let plan = Plan::parse(text).numbered_as(&person);
    let shown = |item: &Item| {
        let (text, notes) = person.attributed(item);
        [vec![text], notes, vec![person.explanation(item)]].concat().join(" | ")
    };
    assert_eq!(
        plan.items.iter().map(shown).collect::<Vec<_>>(),
        [
            "Read | in 2 files | \"it took long\" | \"it took long\"",
            "Test \"— no cargo\" | \"no cargo\"",
            "Test: a | Test: a",
            " | ",
            "\"Send it\" | \"Send it\"",
        ]
    );
}

#[test]
fn title_is_the_first_visible_heading() {
    let rows = [
        ("# Fix it\n", Some("Fix it")),
        ("\u{feff}# Fix it #\r\n", Some("Fix it")),
        ("Words.\n\n# Fix it\n# No\n", Some("Fix it")),
        ("Fix it\n======\n", Some("Fix it")),
        ("Fix it\n------\n", Some("Fix it")),
        ("```sh\n# a comment\n```\n# Fix it\n", Some("Fix it")),
        ("<!--\n# no\n-->\n# Fix it\n", Some("Fix it")),
        ("---\n# a comment\nlabels: []\n---\n# Fix it\n", Some("Fix it")),
        ("---\nlabels: []\n---\n", None),
        ("- [ ] a\n---\n", None),
        ("- [ ] a\n  note\n===\n", None),
        ("## Steps\n- [ ] a\n", None),
        ("", None),
    ];
    for (text, title) in rows {
        assert_eq!(Plan::parse(text).title(), title, "{text:?}");
    }
}

/// Short plans in the forms that public tools write, written for this test, in `forms.txt`: below each
/// stand the items that it counts, or how its refusal begins.
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
