//! The plan survives several writers at the same moment.

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
            let tick =
                sandbox.worker("x", &["tick", &n.to_string(), "--note", &format!("did {n:02}")]);
            let note = sandbox.call("dispatch-reconcile", &["note", "x", &format!("Hint {n:02}.")]);
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

const PLAN: &str = "# Title\n\n- [ ] First\n- [ ] Second\n- [ ] Third\n\n## Context\nMind it.\n";

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
!   next: restore it from PROJECT/.dispatch/tasks/x/worker/1/plan.md; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'Second' --skip 'Third'
"#]]);
    sandbox.run("dispatch-reconcile", &["note", "x", "Mind the gap."]).shows(str![[r#"
exit 65
! dispatch-reconcile: the plan lost item 2: Second; item 3: Third
!   PROJECT/.dispatch/tasks/x/plan.md
!   next: restore it from PROJECT/.dispatch/tasks/x/worker/1/plan.md; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'Second' --skip 'Third'
"#]]);
    assert_eq!(sandbox.read("x", "plan.md"), torn);
    assert_eq!(sandbox.read("x", "worker/1/plan.md"), PLAN, "the plan at the start of the attempt");
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
