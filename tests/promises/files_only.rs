//! A worker that follows the seeds' file protocol and has never heard of a helper.

use std::fs;

use snapbox::str;

use crate::support::text::{names, same};
use crate::support::{Sandbox, wait_until};

/// The original's protocol in ten lines: markers in the plan, a question by rename, a poll for the
/// answer, a marker that it was read, and one that all is finished.
const WORKER: &str = r#"
cd .dispatch/tasks/survey || exit 1
printf '%s' "$1" >../../../prompt-seen
sed 's/- \[ \] Look/- [x] Look/' plan.md >plan.new && mv plan.new plan.md
echo 'Which database?' >ipc/001.question.tmp && mv ipc/001.question.tmp ipc/001.question
while [ ! -f ipc/001.answer ]; do sleep 0.05; done
answer=$(cat ipc/001.answer) && touch ipc/001.done
echo "We use $answer." >output.md
sed 's/- \[ \] Write/- [x] Write/' plan.md >plan.new && mv plan.new plan.md
touch ipc/.done
"#;

const PLAN: &str = "# Survey\n- [ ] Look around\n- [ ] Write output.md\n";

#[test]
fn a_worker_that_only_knows_the_files_asks_and_finishes() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("seed", WORKER)]);
    sandbox.plan("survey", PLAN);
    sandbox.run("dispatch-spawn", &["survey", "--model", "seed"]).shows(str![[r#"
exit 0
survey started with seed. Tell the user and stop; news wakes you.
"#]]);

    sandbox.run("dispatch-monitor", &["survey"]).shows(str![[r#"
exit 0
#ID survey asks (001): "Which database?" → ask the user, then run: BIN/dispatch-monitor --answer survey/001 - <<'EOF' (the answer, then EOF)
"#]]);
    assert_eq!(sandbox.state("survey"), "asking");
    sandbox.call("dispatch-monitor", &["--answer", "survey", "-"]).input("SQLite\n").run().shows(
        str![[r#"
exit 0
survey/001 answered, its worker continues
"#]],
    );

    sandbox.run("dispatch-monitor", &["survey"]).shows(str![[r#"
exit 0
#ID survey done (2/2, AGE) Report: PROJECT/.dispatch/tasks/survey/output.md → tell the user
"#]]);
    assert_eq!(sandbox.state("survey"), "done");
    assert_eq!(sandbox.read("survey", "output.md"), "We use SQLite.\n");
    assert_eq!(
        names(&sandbox.task("survey", "ipc")),
        [".done", "001.answer", "001.done", "001.question"]
    );
    same(
        &sandbox.read("survey", "plan.md"),
        str![[r#"
# Survey
- [x] Look around
- [x] Write output.md

"#]],
    );
    let prompt = fs::read_to_string(sandbox.project().join("prompt-seen")).expect("a prompt");
    assert_eq!(prompt, sandbox.read("survey", "prompt.md"));
}

#[test]
fn notes_of_a_files_only_worker_are_read_inline_and_on_the_next_line() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[(
        "seed",
        "p=.dispatch/tasks/x/plan.md\nsed 's/\\[ \\] First/[!] First — cargo is missing/' $p >$p.new && mv $p.new $p",
    ), (
        "next",
        "p=.dispatch/tasks/y/plan.md\nsed 's/\\[ \\] First/[?] First\\n  Which of the two?/' $p >$p.new && mv $p.new $p",
    )]);
    sandbox.dispatch("x", "seed");
    sandbox.dispatch("y", "next");
    sandbox.wait_for_state("x", "failed: item 1: cargo is missing");
    sandbox.wait_for_state("y", "blocked: item 1: Which of the two?");
}

#[test]
fn a_touched_marker_with_items_left_is_not_done() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("seed", "touch .dispatch/tasks/x/ipc/.done")]);
    sandbox.dispatch("x", "seed");
    sandbox.wait_for_state("x", "incomplete: finish marker set with items unticked");
    assert!(sandbox.task("x", "ipc/.done").exists());
    wait_until("the end is recorded", || sandbox.task("x", "worker/1/exit").exists().then_some(()));
}
