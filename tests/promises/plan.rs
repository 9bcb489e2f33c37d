//! The plan as people, models and their editors write it, from the dispatch to the end: every item
//! that a person sees is done, or an open one is named, and the printed remedies work.

use std::fs;

use snapbox::str;

use crate::support::text::same;
use crate::support::{Ran, Sandbox, binary};

/// A project in which 'x' runs with `plan`.
#[track_caller]
fn running(plan: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("quits", "exit 0")]);
    sandbox.plan("x", plan);
    sandbox.ok("dispatch-spawn", &["x"]);
    sandbox
}

fn edit(sandbox: &Sandbox, text: &str) {
    fs::write(sandbox.task("x", "plan.md"), text).expect("written");
}

#[track_caller]
fn work(sandbox: &Sandbox, args: &[&str]) -> String {
    sandbox.worker("x", args).run().ok()
}

/// Runs a command as it was printed.
fn as_printed(sandbox: &Sandbox, command: &str) -> Ran {
    let helpers = binary("dispatch-spawn").parent().expect("a directory").display().to_string();
    let path = format!("{helpers}:{}", std::env::var("PATH").unwrap_or_default());
    sandbox.program("sh").args(&["-c", command]).env("PATH", path).run()
}

const FORMS: &str = "\u{feff}# Forms\r
\r
1. [ ] Ordered\r
2) [~] Begun\r
-[ ]Glued\r
* []\u{a0}Empty\r
  + [\u{a0}] Nested\r
\r
Notes\r
-----\r
\r
```sh\r
- [ ] an example\r
```\r
\r
- [ ] Below a heading and an example\r
\r
## Context\r
Mind it.\r
";

#[test]
fn task_is_done_when_items_of_every_form_are_ticked() {
    let sandbox = running(FORMS);
    for number in ["1", "2", "3", "4", "5"] {
        work(&sandbox, &["tick", number]);
    }
    sandbox.worker("x", &["finish", "All of it."]).run().shows(str![[r#"
exit 65
! dispatch-worker: item 6 is [ ], not ticked
!   Below a heading and an example
!   next: do it and tick 6; or block 6 or fail 6, and stop
"#]]);
    work(&sandbox, &["tick", "6"]);
    work(&sandbox, &["finish", "All of it."]);
    assert_eq!(sandbox.state("x"), "done");
    let plan = sandbox.read("x", "plan.md");
    same(
        &plan.replace(['\r', '\u{feff}'], ""),
        str![[r#"
# Forms

1. [x] Ordered
2) [x] Begun
-[x]Glued
* [x] Empty
  + [x] Nested

Notes
-----

```sh
- [ ] an example
```

- [x] Below a heading and an example

## Context
Mind it.

"#]],
    );
    assert_eq!(plan.matches("\r\n").count(), FORMS.matches("\r\n").count());
}

/// A line below the plan that is no item, the complaint of `finish`, and the corrected line.
const DOUBTS: [(&str, &str, &str); 7] = [
    (
        "\n- [1] Smith 2020\n",
        "line 5 of the plan is in doubt: what stands in its brackets is not a mark",
        "\n- `[1]` Smith 2020\n",
    ),
    (
        "- [done] More\n",
        "line 4 of the plan is in doubt: what stands in its brackets is not a mark",
        "- [x] More\n",
    ),
    (
        "### [ ] More\n",
        "line 4 of the plan is in doubt: its box does not stand right behind '- '",
        "- [x] More\n",
    ),
    (
        "- [x](more)\n",
        "line 4 of the plan is in doubt: its brackets read as a link",
        "- [x] (more)\n",
    ),
    (
        "\n## Context\n- [ ] More\n",
        "line 6 of the plan is in doubt: it stands below the heading Context of line 5",
        "- [x] More\n\n## Context\n",
    ),
    (
        "```\nexample\n- [ ] More\n",
        "line 6 of the plan is in doubt: the code fence or comment that begins in line 4 may hide it",
        "```\nexample\n```\n- [x] More\n",
    ),
    (
        "```\n```sh\n- [ ] More\n```\n",
        "line 6 of the plan is in doubt: the code fence or comment that begins in line 4 may hide it",
        "````\n```sh\n- [ ] More\n```\n````\n",
    ),
];

#[test]
fn ambiguous_line_is_named_at_the_dispatch_and_at_the_end() {
    const PLAN: &str = "# Title\n\n- [ ] First\n";
    for (line, said, right) in DOUBTS {
        let sandbox = running(PLAN);
        let spawn =
            |plan: String| sandbox.call("dispatch-spawn", &["y", "--plan", "-"]).input(plan);
        let refused = spawn(format!("{PLAN}{line}")).run();
        assert_eq!(refused.code, Some(65), "{refused:?}");
        assert!(refused.err.starts_with(&format!("dispatch-spawn: {said}\n")), "{refused:?}");
        assert_eq!(spawn(format!("{PLAN}{right}").replace("[x] ", "[ ] ")).run().code, Some(0));

        // A worker or a person adds the line later.
        edit(&sandbox, &format!("{PLAN}{line}"));
        let ticked = work(&sandbox, &["tick", "First"]);
        assert!(ticked.starts_with(&format!("1/1 done. But {said};")), "{ticked}");
        let refused = sandbox.worker("x", &["finish"]).run();
        assert_eq!(refused.code, Some(65), "{refused:?}");
        assert!(refused.err.starts_with(&format!("dispatch-worker: {said}\n")), "{refused:?}");
        fs::write(sandbox.task("x", "ipc/.done"), "").expect("written");
        assert_eq!(sandbox.state("x"), "running");
        fs::remove_file(sandbox.task("x", "ipc/.done")).expect("removed");
        edit(&sandbox, &format!("{PLAN}{right}").replace("[ ] First", "[x] First"));
        work(&sandbox, &["finish"]);
        assert_eq!(sandbox.state("x"), "done");
    }
}

#[test]
fn task_with_an_ambiguous_line_is_incomplete() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[(
        "hurries",
        "printf -- '- [x] First\\n- [x] Second\\n- [todo] Third\\n' >.dispatch/tasks/x/plan.md; touch .dispatch/tasks/x/ipc/.done",
    )]);
    sandbox.dispatch("x", "hurries");
    sandbox.wait_for_state(
        "x",
        "incomplete: line 3 of the plan is in doubt: what stands in its brackets is not a mark",
    );
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains("not a mark: \"- [todo] Third\"\n"), "{shown}");
}

#[test]
fn note_text_never_becomes_plan_structure() {
    let text =
        "- [ ] no item\n```\n~~~\n## Context\n**Context:**\n<!-- x\n1. [x] none\n[1] Smith\n===";
    for command in ["tick", "block", "fail"] {
        let sandbox = running("# Title\n\n- [ ] First\n- [ ] Second\n\n## Context\nMind it.\n");
        match command {
            "tick" => work(&sandbox, &["tick", "1", "--note", text]),
            _ => work(&sandbox, &[command, "1", text]),
        };
        sandbox.ok("dispatch-reconcile", &["note", "x", text]);
        let ticked = work(&sandbox, &["tick", "2"]);
        assert!(
            ticked.contains(if command == "tick" { "2/2 done" } else { "1/2 done" }),
            "{ticked}"
        );
        let plan = sandbox.read("x", "plan.md");
        assert_eq!(plan.matches("Note from dispatcher").count(), 1, "{plan}");
        assert!(plan.contains("- [x] Second\n\n## Context\nMind it.\n\n> **Note"), "{plan}");
        work(&sandbox, &["tick", "1"]);
        work(&sandbox, &["finish"]);
    }
}

#[test]
fn note_survives_an_editor_and_is_not_doubled() {
    let sandbox = running("- [ ] First\n- [ ] Second\n- [ ] Third\n");
    for note in ["Don't use \"npx\".\n- [ ] Really...", "Don't use \"npx\"."] {
        sandbox.ok("dispatch-reconcile", &["note", "x", note]);
    }
    let edits: [fn(String) -> String; 3] = [
        |plan| plan.replace('\n', "\r\n"),
        |plan| plan.replace("n't", "n’t").replace("\"npx\"", "“npx”").replace("...", "…"),
        |plan| plan.trim_end().to_string(),
    ];
    for (number, change) in (1..).zip(edits) {
        edit(&sandbox, &change(sandbox.read("x", "plan.md")));
        work(&sandbox, &["tick", &number.to_string()]);
        let plan = sandbox.read("x", "plan.md");
        assert_eq!(plan.matches("Note from dispatcher").count(), 2, "{plan}");
    }
}

#[test]
fn unknown_mark_is_an_open_item() {
    let sandbox = running("- [ ] First\n- [ ] Second\n- [ ] Third\n");
    edit(&sandbox, "- [x] First\n- [~] Second\n- [WIP] Third\n");
    assert_eq!(work(&sandbox, &["tick", "1"]), "1/2 done. Next is item 2: Second\n");
    sandbox.worker("x", &["tick", "3"]).run().shows(str![[r#"
exit 65
! dispatch-worker: line 3 of the plan is in doubt: what stands in its brackets is not a mark
!   - [WIP] Third
!   next: write a step as '- [ ] …'; what is not a step has its brackets in backticks; then call again
"#]]);
    edit(&sandbox, "- [x] First\n- [~] Second\n- [>] Third\n");
    work(&sandbox, &["tick", "3"]);
    assert_eq!(sandbox.read("x", "plan.md"), "- [x] First\n- [~] Second\n- [x] Third\n");
    assert_eq!(work(&sandbox, &["tick", "2"]), "3/3 done. Now finish.\n");
}

#[test]
fn item_numbers_stay_as_the_worker_was_given_them() {
    let sandbox = running("- [ ] Read\n- [ ] Write the report\n- [ ] Send\n");
    edit(
        &sandbox,
        "- [ ] Send\n- [ ] Read\n- [ ] Write the tests\n- [ ] Ask\n- [ ] Write the report\n",
    );
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 0
x — no title
running, idle, AGE
full: nothing holds it
3. [ ] Send
1. [ ] Read
1.1. [ ] "Write the tests"
1.2. [ ] "Ask"
2. [ ] Write the report
attempt 1: running, log STATE/x/attempts/1/log
"#]]);
    work(&sandbox, &["tick", "2"]);
    work(&sandbox, &["tick", "1.1"]);
    work(&sandbox, &["tick", "Send"]);
    work(&sandbox, &["fail", "ask", "Nobody there."]);
    assert_eq!(
        sandbox.read("x", "plan.md"),
        "- [x] Send\n- [ ] Read\n- [x] Write the tests\n- [!] Ask\n  Nobody there.\n- [x] Write the report\n"
    );
    sandbox.worker("x", &["tick", "write"]).run().shows(str![[r#"
exit 65
! dispatch-worker: 'write' may be 2 items
!   1.1: Write the tests; 2: Write the report
!   next: name the item by its number
"#]]);
    sandbox.worker("x", &["tick", "4"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the plan has no item 4
!   it has 3, counted from 1
"#]]);
    sandbox.worker("x", &["tick", "Sleep"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the plan has no item 'Sleep'
!   next: name an item by its number or by its own words
"#]]);
    // The next attempt counts all items from 1.
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    assert_eq!(work(&sandbox, &["tick", "2"]), "4/5 done. Next is item 4: Ask\n");
}

const LOST: &str = "# Title\n\n- [ ] First\n- [ ] Write 'it'\n- [ ] Third\n";

#[test]
fn lost_item_is_named_and_its_line_can_be_put_back() {
    let sandbox = running(LOST);
    edit(&sandbox, &LOST.replace("- [ ] Write 'it'\n", ""));
    sandbox.worker("x", &["tick", "1"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the plan lost item 2: Write 'it'
!   PROJECT/.dispatch/tasks/x/plan.md
!   next: restore it from PROJECT/.dispatch/tasks/x/ipc/.plan; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'Write '\''it'\'''
"#]]);
    edit(&sandbox, &sandbox.read("x", "attempts/1/plan.md"));
    work(&sandbox, &["tick", "1"]);
}

/// A task whose worker has ended after an item was deleted.
fn ended_with_a_lost_item() -> Sandbox {
    let sandbox = Sandbox::new();
    let cuts =
        "p=.dispatch/tasks/x/plan.md; sed '/Write/d; s/\\[ \\]/[x]/' $p >$p.new && mv $p.new $p";
    sandbox.workers(&[("cuts", cuts)]);
    sandbox.plan("x", LOST);
    sandbox.ok("dispatch-spawn", &["x", "--model", "cuts"]);
    sandbox.wait_for_state("x", "incomplete: the plan lost item 2: Write 'it'");
    sandbox
}

#[test]
fn resume_puts_lost_items_back() {
    let sandbox = ended_with_a_lost_item();
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x incomplete (2/2, AGE): the plan lost item 2: Write 'it' → tell the user what is left and ask; BIN/dispatch-spawn x --resume does the rest, --resume --skip 'Write '\''it'\''' continues without what the plan lost
"#]]);
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--model", "idle"]);
    assert_eq!(
        sandbox.read("x", "plan.md"),
        "# Title\n\n- [x] First\n- [ ] Write 'it'\n- [x] Third\n"
    );
    assert_eq!(work(&sandbox, &["tick", "2"]), "3/3 done. Now finish.\n");
}

#[test]
fn resume_with_skip_drops_a_lost_item_as_it_is_printed() {
    let sandbox = ended_with_a_lost_item();
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    let command = shown.lines().find_map(|line| line.strip_prefix("lost: ")?.split(" or ").nth(1));
    let command = command.unwrap_or_else(|| panic!("{shown}"));
    assert_eq!(command, r"dispatch-spawn x --resume --skip 'Write '\''it'\'''");
    assert_eq!(
        as_printed(&sandbox, command).ok(),
        "x is done: nothing is left. Tell the user and stop.\n"
    );
    assert_eq!(sandbox.state("x"), "done");
    assert_eq!(
        sandbox.read("x", "plan.md"),
        "# Title\n\n- [x] First\n- [x] Write 'it'\n  skipped: the user does not want it\n- [x] Third\n"
    );
}

#[test]
fn skip_takes_words_and_refuses_ambiguous_ones() {
    let sandbox = running("- [ ] Write the report\n- [ ] Write the tests\n");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.run("dispatch-spawn", &["x", "--resume", "--skip", "write"]).shows(str![[r#"
exit 65
! dispatch-spawn: 'write' may be 2 items
!   1: Write the report; 2: Write the tests
!   next: name the item by its number
"#]]);
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--skip", "the tests"]);
    same(
        &sandbox.read("x", "plan.md"),
        str![[r#"
- [ ] Write the report
- [x] Write the tests
  skipped: the user does not want it

"#]],
    );
}

/// The plan survives several writers at the same moment.
mod lock {
    use std::fs::{self, File};
    use std::io::Write;

    use snapbox::str;

    use crate::support::Sandbox;
    use crate::support::text::names;

    fn running(plan: &str) -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.plan("x", plan);
        sandbox.ok("dispatch-spawn", &["x"]);
        sandbox
    }

    #[test]
    fn plan_keeps_fifty_ticks_and_fifty_notes_made_at_once() {
        const COUNT: usize = 50;
        let items: String = (1..=COUNT).map(|n| format!("- [ ] Step {n:02}\n")).collect();
        let sandbox = running(&format!("# Title\n\n{items}\n## Context\nMind it.\n"));
        let calls: Vec<_> = (1..=COUNT)
            .flat_map(|n| {
                let tick = sandbox
                    .worker("x", &["tick", &n.to_string(), "--note", &format!("did {n:02}")]);
                let note =
                    sandbox.call("dispatch-reconcile", &["note", "x", &format!("Hint {n:02}.")]);
                [tick.start(), note.start()]
            })
            .collect();
        for call in calls {
            call.end().ok();
        }
        let plan = sandbox.read("x", "plan.md");
        let ticked: String =
            (1..=COUNT).map(|n| format!("- [x] Step {n:02}\n  did {n:02}\n")).collect();
        let start = format!("# Title\n\n{ticked}\n## Context\nMind it.\n");
        let notes = plan.strip_prefix(&start).unwrap_or_else(|| panic!("{plan}"));
        let mut notes: Vec<&str> = notes.lines().filter(|line| !line.is_empty()).collect();
        notes.sort();
        let hints = (1..=COUNT).map(|n| format!("> **Note from dispatcher:** Hint {n:02}."));
        assert_eq!(notes, hints.collect::<Vec<_>>());
        assert_eq!(names(&sandbox.task("x", "notes")).len(), COUNT);
        assert!(!names(&sandbox.task("x", "")).iter().any(|name| name.ends_with(".tmp")));
    }

    const PLAN: &str =
        "# Title\n\n- [ ] First\n- [ ] Second\n- [ ] Third\n\n## Context\nMind it.\n";

    /// An editor truncates the file and writes it again; a helper that runs in between has to wait.
    #[test]
    fn tick_waits_for_an_editor_that_rewrites_the_plan() {
        let sandbox = running(PLAN);
        let path = sandbox.task("x", "plan.md");
        for part in [0, 12, 30] {
            fs::write(&path, PLAN).expect("written");
            let mut editor = File::create(&path).expect("truncated");
            editor.write_all(&PLAN.as_bytes()[..part]).expect("written");
            let tick = sandbox.worker("x", &["tick", "2"]).start();
            let inside = sandbox.task("x", "lock");
            crate::support::wait_until("the helper to hold the lock", || {
                let lock = fs::read_to_string(&inside).ok()?;
                lock.contains(&format!("\"pid\":{},", tick.pid())).then_some(())
            });
            editor.write_all(&PLAN.as_bytes()[part..]).expect("written");
            tick.end().ok();
            assert_eq!(sandbox.read("x", "plan.md"), PLAN.replace("[ ] Second", "[x] Second"));
        }
    }

    #[test]
    fn plan_that_lost_items_is_left_alone() {
        let sandbox = running(PLAN);
        let torn = &PLAN[..30];
        fs::write(sandbox.task("x", "plan.md"), torn).expect("written");
        sandbox.worker("x", &["tick", "1"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the plan lost item 2: Second; item 3: Third
!   PROJECT/.dispatch/tasks/x/plan.md
!   next: restore it from PROJECT/.dispatch/tasks/x/ipc/.plan; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'Second' --skip 'Third'
"#]]);
        sandbox.run("dispatch-reconcile", &["note", "x", "Mind the gap."]).shows(str![[r#"
exit 65
! dispatch-reconcile: the plan lost item 2: Second; item 3: Third
!   PROJECT/.dispatch/tasks/x/plan.md
!   next: restore it from STATE/x/attempts/1/plan.md; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'Second' --skip 'Third'
"#]]);
        assert_eq!(sandbox.read("x", "plan.md"), torn);
        assert_eq!(
            sandbox.read("x", "attempts/1/plan.md"),
            PLAN,
            "the plan at the start of the attempt"
        );
    }

    #[test]
    fn tick_changes_only_its_own_line() {
        let plan = "Words before.\r\n# Title\n\n* [ ] Star\n- [x] Ticked by hand — with a note\n\
                    - [ ] Last  \n  an old note\n\n## Context\n- `[ ]` no item\n\n> **Note from dispatcher:** Old.";
        let sandbox = running(plan);
        sandbox.worker("x", &["tick", "3", "--note", "new"]).run().ok();
        let expected =
            plan.replace("- [ ] Last  \n  an old note\n", "- [x] Last  \n  an old note\n  new\n");
        assert_eq!(sandbox.read("x", "plan.md"), expected);
        sandbox.worker("x", &["tick", "3", "--note", "new"]).run().ok();
        assert_eq!(sandbox.read("x", "plan.md"), expected, "a second tick changes nothing");
    }
}
