//! A note reaches the worker, once, whatever happens to the plan meanwhile.

use std::fs;

use snapbox::str;

use crate::support::{PLAN, Sandbox};

const NOTE: &str = "\n> **Note from dispatcher:** Mind the gap.\n";

/// A project with 'x' running.
fn running() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox
}

fn note(sandbox: &Sandbox) {
    sandbox.ok("dispatch-reconcile", &["note", "x", "Mind the gap."]);
}

#[test]
fn the_worker_is_told_at_its_next_tick_and_once() {
    let sandbox = running();
    note(&sandbox);
    sandbox.worker("x", &["tick", "1"]).run().shows(str![[r#"
exit 0
1/2 done. Next is item 2: Second

A new note from the person, which is in your plan too:
Mind the gap.
"#]]);
    sandbox.worker("x", &["tick", "2"]).run().shows(str![[r#"
exit 0
2/2 done. Now finish.
"#]]);
}

#[test]
fn the_worker_is_told_with_the_answer_to_its_question() {
    let sandbox = running();
    let ask = sandbox.worker("x", &["ask", "Which?"]).start();
    note(&sandbox);
    let question = sandbox.task("x", "ipc/001.question");
    crate::support::wait_until("it asks", || question.exists().then_some(()));
    sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
    ask.end().shows(str![[r#"
exit 0
This.

A new note from the person, which is in your plan too:
Mind the gap.
"#]]);
    assert!(!sandbox.worker("x", &["tick", "1"]).run().ok().contains("Mind the gap."));
}

#[test]
fn a_note_that_an_editor_overwrote_is_put_back() {
    let sandbox = running();
    note(&sandbox);
    assert_eq!(sandbox.read("x", "plan.md"), format!("{PLAN}{NOTE}"));
    let edited = PLAN.replace("[ ] First", "[x] First");
    fs::write(sandbox.task("x", "plan.md"), &edited).expect("written");
    sandbox.worker("x", &["tick", "2"]).run().ok();
    let edited = edited.replace("[ ] Second", "[x] Second");
    assert_eq!(sandbox.read("x", "plan.md"), format!("{edited}{NOTE}"));
}

#[test]
fn a_note_to_a_torn_plan_is_neither_lost_nor_doubled() {
    for again in [false, true] {
        let sandbox = running();
        let plan = sandbox.task("x", "plan.md");
        fs::write(&plan, &PLAN[..20]).expect("written");
        let ran = sandbox.run("dispatch-reconcile", &["note", "x", "Mind the gap."]);
        assert_eq!(ran.code, Some(65), "{}", ran.out);
        fs::write(&plan, PLAN).expect("written");
        if again {
            note(&sandbox);
        }
        let said = sandbox.worker("x", &["tick", "1"]).run().ok();
        assert_eq!(said.matches("Mind the gap.").count(), 1, "{said}");
        let ticked = PLAN.replace("[ ] First", "[x] First");
        assert_eq!(sandbox.read("x", "plan.md"), format!("{ticked}{NOTE}"));
    }
}

/// The person may mean the same words twice.
#[test]
fn the_same_words_again_are_a_second_note() {
    let sandbox = running();
    note(&sandbox);
    note(&sandbox);
    assert_eq!(sandbox.read("x", "plan.md").matches("Mind the gap.").count(), 2);
    let said = sandbox.worker("x", &["tick", "1"]).run().ok();
    assert_eq!(said.matches("Mind the gap.").count(), 2);
}
