//! Every form of a checklist line and what it counts as, and edits that change what they name.

use super::*;

const PLAN: &str = "# Fix it\n\n- [x] Read\n  in 2 files\n- [?] Choose\n  Which one?\n- [!] Test — cargo is missing\n- [ ] Write\n\n## Context\nMind it.\n";

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
    assert_eq!(plan.items()[1].explanation(), "Which one?");
    assert_eq!(plan.items()[2].explanation(), "Test — cargo is missing");
    let plan = plan.numbered_as(&Plan::parse("- [ ] Read\n- [ ] Choose\n- [ ] Test\n"));
    assert_eq!(plan.items()[2].explanation(), "cargo is missing");
    assert_eq!(plan.current().map(|item| &*item.number), Some("2"));
    assert_eq!(plan.items()[3].number, "3.1");
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

#[test]
fn marking_changes_only_its_own_line_and_adds_the_note_below() {
    let mut plan = Plan::parse(PLAN);
    plan.mark("4", Marker::Done, "three lines").expect("marked");
    let expected = PLAN.replace("- [ ] Write\n", "- [x] Write\n  three lines\n");
    assert_eq!(plan.to_string(), expected);
    plan.mark("4", Marker::Done, "three  lines").expect("marked again");
    assert_eq!(plan.to_string(), expected);
}

#[test]
fn tick_keeps_the_form_of_its_line() {
    let rows = [
        ("-[ ]a", "-[x]a"),
        ("- [] a", "- [x] a"),
        ("1. [  ] a", "1. [x] a"),
        ("-\u{a0}[\u{a0}]\u{a0}a", "-\u{a0}[x]\u{a0}a"),
        ("- [~] a", "- [x] a"),
        ("- [✓] a", "- [✓] a"),
        ("* [X] a", "* [X] a"),
        ("\u{feff}+ [/] a", "\u{feff}+ [x] a"),
    ];
    for (before, after) in rows {
        let mut plan = Plan::parse(before);
        plan.mark("1", Marker::Done, "").expect("marked");
        assert_eq!(plan.to_string(), after);
    }
}

#[test]
fn other_line_ends_and_a_missing_last_one_stay() {
    let mut plan = Plan::parse("* [ ] a\r\n* [ ] b");
    plan.mark("1", Marker::Failed, "no").expect("marked");
    plan.mark("2", Marker::Done, "").expect("marked");
    assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b");
    plan.mark("2", Marker::Done, "ok").expect("marked");
    assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b\n  ok\n");
    plan.mark("2", Marker::Done, "more").expect("marked");
    assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b\n  ok\n  more\n");
}

#[test]
fn notes_cannot_become_structure() {
    let rows = [
        ("- [ ] b", "- \\[ ] b"),
        ("1) [x] b", "1) \\[x] b"),
        ("[1] Smith", "\\[1] Smith"),
        ("### [ ] b", "\\### \\[ ] b"),
        ("```", "\\```"),
        ("~~~sh", "\\~~~sh"),
        ("- ```", "\\- ```"),
        ("# b", "\\# b"),
        ("## Context", "\\## Context"),
        ("**Context:**", "\\**Context:**"),
        ("===", "\\==="),
        ("> b", "\\> b"),
        ("- # b", "\\- # b"),
        ("#12 is fixed", "#12 is fixed"),
        ("- b", "- b"),
        ("**b**", "**b**"),
        ("---", "\\---"),
        ("a <!-- b", "a <\\!-- b"),
        ("-->", "--\\>"),
        ("a\u{1b}[1mb\u{7}", "ab"),
        ("a `[ ]` **b** [c](d)", "a `[ ]` **b** [c](d)"),
        ("```a``` b", "```a``` b"),
    ];
    for (note, written) in rows {
        let mut plan = Plan::parse("- [ ] a\n---\n- [ ] z\n\n## Context\n");
        plan.mark("1", Marker::Done, note).expect(note);
        let expected = format!("- [x] a\n  {written}\n---\n- [ ] z\n\n## Context\n");
        assert_eq!(plan.to_string(), expected);
        assert_eq!((plan.done(), plan.items().len()), (1, 2));
    }
}

/// Found by a long run: a note that is indented less than the item's text ends a fence in it.
#[test]
fn note_does_not_end_a_comment_in_its_own_item() {
    let mut plan = Plan::parse("10. [ ] a\n    <!-- b\n- [ ] c\n");
    plan.mark("1", Marker::Done, "note").expect("marked");
    assert_eq!(plan.to_string(), "10. [x] a\n    <!-- b\n    note\n- [ ] c\n");
}

/// Found by a long run: a quotation ends the paragraph on which the fence's list item depends.
#[test]
fn note_does_not_end_the_list_item_of_a_fence() {
    for note in ["> b", "# b", "- # b", "---", "```"] {
        let mut plan = Plan::parse("- [ ] a\nlazy\n\n  ~~~\n- [ ] c\n");
        plan.mark("1", Marker::Done, note).expect(note);
        assert_eq!((plan.done(), plan.items().len(), plan.doubts().len()), (1, 2, 0));
    }
}

#[test]
fn nested_step_keeps_its_note_below_it() {
    let mut plan = Plan::parse("- [ ] a\n  - [ ] b\n    old\n  - [ ] c\n");
    plan.mark("b", Marker::Done, "new").expect("marked");
    plan.mark("a", Marker::Done, "all").expect("marked");
    let expected = "- [x] a\n  all\n  - [x] b\n    old\n    new\n  - [ ] c\n";
    assert_eq!(plan.to_string(), expected);
}

#[test]
fn change_that_would_reach_further_is_refused() {
    let mut plan = Plan::parse("- [ ] a\n- [ ] b\n");
    let reaching = [
        "- [x] a\n- [x] b\n",
        "- [x] a\n",
        "- [x] a\n- [ ] b\n- [ ] c\n",
        "- [x] a\n- [ ] b!\n",
        "- [x] a\n- [ ] b\n  note\n",
        "- [x] a\n```\n- [ ] b\n",
        "# T\n- [x] a\n- [ ] b\n",
        "- [x] a\n- [ ] b\n## Context\n",
    ];
    for text in reaching {
        let wanted = |at, item: &Item| if at == 0 { Marker::Done } else { item.marker };
        plan.put(&lines::split(text), Some(0), wanted).expect_err(text);
        assert_eq!(plan.to_string(), "- [ ] a\n- [ ] b\n");
    }
}

#[test]
fn item_numbers_are_those_of_the_copy() {
    let copy = Plan::parse("- [ ] a\n- [ ] b\n- [ ] c\n- [ ] b\n");
    let rows = [
        ("- [ ] a\n- [ ] b\n- [ ] c\n- [ ] b\n", "1 2 3 4", ""),
        ("- [~] a\n* [x] b\n3. [ ] c\n- [?] b\n", "1 2 3 4", ""),
        ("- [ ] a\n- [ ] b\n- [ ] n\n- [ ] m\n- [ ] c\n- [ ] b\n", "1 2 2.1 2.2 3 4", ""),
        ("- [ ] n\n- [ ] c\n- [ ] a\n- [ ] m\n- [ ] b\n- [ ] b\n", "0.1 3 1 1.1 2 4", ""),
        ("- [ ] a\n- [ ] c\n- [ ] b\n", "1 3 2", "4"),
        ("- [ ] a (by hand)\n- [ ] b: no\n- [ ] c – why\n- [ ] b\n", "1 4 3 2", ""),
        ("- [ ] a b\n- [ ] b\n- [ ] c\n- [ ] b\n", "0.1 2 3 4", "1"),
        ("- [ ] a\n- [done] b\n- [ ] c\n- [ ] b\n", "1 3 2", ""),
        ("", "", "1 2 3 4"),
    ];
    for (text, numbers, lost) in rows {
        let plan = Plan::parse(text).numbered_as(&copy);
        let found: Vec<_> = plan.items().iter().map(|item| item.number.as_str()).collect();
        assert_eq!(found.join(" "), numbers, "{text}");
        let found: Vec<_> = plan.lost().iter().map(|item| item.number.to_string()).collect();
        assert_eq!(found.join(" "), lost, "{text}");
    }
}

#[test]
fn quotes_and_blanks_of_an_editor_do_not_change_a_text() {
    let copy = Plan::parse("- [ ] Don't \"stop\" -- go...\n");
    let plan = Plan::parse("- [ ]  Don’t\u{a0}“stop” — go…  \n").numbered_as(&copy);
    assert_eq!((plan.items()[0].number.as_str(), plan.lost().len()), ("1", 0));
}

#[test]
fn item_is_named_by_number_or_text() {
    let copy = Plan::parse("- [ ] Write the report\n- [ ] Write the tests\n- [ ] 42\n- [ ] Old\n");
    let text = "- [ ] Write the report\n- [ ] New\n- [ ] Write the tests\n- [ ] 42\n";
    let plan = Plan::parse(text).numbered_as(&copy);
    let rows = [
        ("1", "Write the report"),
        ("2", "Write the tests"),
        ("1.1", "New"),
        ("3", "42"),
        ("Write the report", "Write the report"),
        ("write  the REPORT", "Write the report"),
        ("tests", "Write the tests"),
    ];
    for (name, text) in rows {
        assert_eq!(plan.item(name).expect(name).text, text);
    }
    let refusals = [
        (
            "write",
            "'write' may be 2 items\n  1: Write the report; 2: Write the tests\n  next: name the item by its number",
        ),
        (
            "4",
            "item 4 is not in the plan any more\n  it was: Old\n  next: put its line back, or name the item that you mean by its own words",
        ),
        ("5", "the plan has no item 5\n  it has 4, counted from 1"),
        ("0", "the plan has no item 0\n  it has 4, counted from 1"),
        (
            "nothing",
            "the plan has no item 'nothing'\n  next: name an item by its number or by its own words",
        ),
    ];
    for (name, refusal) in refusals {
        assert_eq!(plan.item(name).expect_err(name).to_string(), refusal);
    }
    let doubtful = Plan::parse("- [done] Old\n").numbered_as(&copy);
    let refusal = doubtful.item("4").expect_err("in doubt").to_string();
    assert!(refusal.starts_with("line 1 of the plan is in doubt: "), "{refusal}");
}

#[test]
fn lost_items_are_put_back_where_they_were() {
    let copy = Plan::parse("# T\n\n- [ ] a\n  - [x] b\n- [ ] c\n\n## Context\nWords.\n");
    let rows = [
        ("# T\n\n- [x] a\n  note\n- [ ] c\n", "# T\n\n- [x] a\n  note\n- [ ] b\n- [ ] c\n"),
        ("# T\n\n- [ ] c", "# T\n\n- [ ] a\n- [ ] b\n- [ ] c"),
        ("# T\n\n- [x] a", "# T\n\n- [x] a\n- [ ] b\n- [ ] c\n"),
        ("# T\r\n", "# T\r\n- [ ] a\r\n- [ ] b\r\n- [ ] c\r\n"),
        ("", "- [ ] a\n- [ ] b\n- [ ] c\n"),
        ("words", "- [ ] a\n- [ ] b\n- [ ] c\nwords"),
        ("- [ ] a\n- [ ] new\n- [ ] c\n", "- [ ] a\n- [ ] b\n- [ ] new\n- [ ] c\n"),
    ];
    for (text, expected) in rows {
        let mut plan = Plan::parse(text).numbered_as(&copy);
        plan.restore().expect("restored");
        assert_eq!(plan.to_string(), expected);
        assert_eq!(plan.lost(), []);
    }
}

#[test]
fn skip_options_for_lost_items_are_quoted_for_a_shell() {
    let copy = Plan::parse("- [ ] It's `so`\n- [ ] twice\n- [ ] twice\n- [ ] 42\n");
    let plan = Plan::parse("").numbered_as(&copy);
    assert_eq!(plan.skip_lost(), r" --skip 'It'\''s `so`' --skip 2 --skip 3 --skip 4");
}

#[test]
fn note_is_found_after_any_editors_changes() {
    let mut plan = Plan::parse("- [ ] a");
    plan.append_note("Don't use \"npx\".\n\n- [ ] Really...").expect("appended");
    let expected =
        "- [ ] a\n\n> **Note from dispatcher:** Don't use \"npx\".\n> \n> - \\[ ] Really...\n";
    assert_eq!(plan.to_string(), expected);
    assert_eq!(plan.items().len(), 1);
    let edits = [
        expected.replace('\n', "\r\n"),
        expected.replace('\n', "\r"),
        expected.replace("> \n", ">\n"),
        expected.trim_end().to_string(),
        expected.replace("Don't", "Don’t").replace("\"npx\"", "“npx”").replace("...", "…"),
        expected.replace("\n> \n> ", " "),
        expected.replace("> ", ">\u{a0}"),
    ];
    for text in edits {
        let plan = Plan::parse(&text);
        assert_eq!(plan.count_notes("Don't use \"npx\".\n\n- [ ] Really..."), 1, "{text:?}");
        assert_eq!(plan.count_notes("Don't use \"npx\"."), 0);
    }
}

#[test]
fn note_that_begins_another_note_is_separate() {
    let mut plan = Plan::parse("- [ ] a\n");
    let notes = ["Stop it", "Stop", "x\n**Note from dispatcher:** Stop", "Stop\nit"];
    for note in notes {
        plan.append_note(note).expect("appended");
    }
    assert_eq!(notes.map(|note| plan.count_notes(note)), [2, 1, 1, 2]);
    // A worker's note at an item is not the dispatcher's.
    plan.mark("1", Marker::Done, "> **Note from dispatcher:** Stop").expect("marked");
    assert_eq!(plan.count_notes("Stop"), 1);
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
