//! A task with predecessors starts when they are done, and says what it waits for.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::clis::CLAUDE;
use crate::support::process::{kill_and_wait, runs, signal};
use crate::support::text::same;
use crate::support::{Host, PLAN, Sandbox, wait_until};
use crate::worktrees::{until_over, worktree_of};

/// A worker that waits for the test's permission, ticks all items and finishes, and then waits for
/// permission to exit.
pub(crate) const WORKS: &str = r#"id=${DISPATCH_TASK_DIR##*/}
echo "start $id" >>"$HOME/project/log"
until test -e "$HOME/project/work-$id"; do sleep 0.02; done
sed -i 's/\[ \]/[x]/' "$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done"
until test -e "$HOME/project/end-$id"; do sleep 0.02; done
echo "end $id" >>"$HOME/project/log""#;

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", WORKS), ("fails", "exit 7")]);
    sandbox
}

impl Sandbox {
    /// Dispatches a task after its predecessors and returns the output.
    #[track_caller]
    pub(crate) fn dispatch_after(&self, id: &str, predecessors: &[&str]) -> String {
        self.plan(id, PLAN);
        let mut args = vec![id, "--model", "works"];
        predecessors.iter().for_each(|before| args.extend(["--after", before]));
        self.ok("dispatch-spawn", &args)
    }

    /// Lets a worker do its work, but not end.
    pub(crate) fn let_work(&self, id: &str) {
        fs::write(self.project().join(format!("work-{id}")), "").expect("written");
    }

    /// Lets a worker do its work and end.
    pub(crate) fn let_end(&self, id: &str) {
        self.let_work(id);
        fs::write(self.project().join(format!("end-{id}")), "").expect("written");
    }

    /// The lines that the workers logged.
    pub(crate) fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.project().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Waits until the workers have logged exactly these lines.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, lines: &[&str]) {
        wait_until(&format!("the workers noted {lines:?}"), || {
            let log = self.log();
            assert!(log.len() <= lines.len(), "{log:?} is more than {lines:?}");
            (log == lines).then_some(())
        });
    }

    /// Makes a task look dispatched a while ago.
    pub(crate) fn age(&self, id: &str) {
        let file = fs::File::options().write(true).open(self.task(id, "record.yaml"));
        let then = SystemTime::now() - Duration::from_secs(60);
        file.expect("a record").set_modified(then).expect("set");
    }

    /// Kills the supervisors of these tasks as a machine that went down a while ago.
    pub(crate) fn kill_supervisors(&self, ids: &[&str]) {
        // Kill the last first: the death of the first may start the next.
        for id in ids.iter().rev() {
            kill_and_wait(self.supervisor_of(id));
            let lock = self.read(id, "run.lock");
            let boot = lock.split("\"boot\":\"").nth(1).and_then(|rest| rest.split('"').next());
            let other = lock.replace(boot.expect("a boot id"), "another-boot");
            fs::write(self.task(id, "run.lock"), other).expect("written");
            self.age(id);
        }
    }
}

#[test]
fn task_starts_when_its_predecessor_is_done() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    same(
        &sandbox.dispatch_after("b", &["a"]),
        str![[r#"
b (Title, 2 items) waits after a; it starts by itself. Tell the user and stop; news wakes you.

"#]],
    );
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
a running 0/2 AGE works — item 1: First
b queued 0/2 AGE works — after a
"#]]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start b"]);
    sandbox.let_end("b");
    sandbox.wait_for_state("b", "done");
}

#[test]
fn successor_waits_until_a_finished_worker_exits() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch("z", "works");
    sandbox.dispatch_after("b", &["a", "z"]);
    assert_eq!(sandbox.state("b"), "queued: after a, z");
    sandbox.let_work("a");
    sandbox.wait_for_state("a", "done");
    // Waiting for `a` alone shows that `b` has looked at both.
    sandbox.let_end("z");
    sandbox.wait_for_state("b", "queued: after a");
    assert!(runs(sandbox.worker_of("a", 1)));
    sandbox.let_end("a");
    wait_until("'b' has started", || {
        (sandbox.log().get(3..) == Some(&["end a".into(), "start b".into()])).then_some(())
    });
}

#[test]
fn successor_starts_after_a_finished_worker_was_killed() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    let (supervisor, worker) = (sandbox.supervisor_of("a"), sandbox.worker_of("a", 1));
    sandbox.let_work("a");
    sandbox.wait_for_state("a", "done");
    kill_and_wait(supervisor);
    kill_and_wait(worker);
    sandbox.wait_for_state("b", "running");
}

#[test]
fn task_after_a_finished_one_starts_at_once() {
    let sandbox = project();
    sandbox.let_end("a");
    sandbox.dispatch("a", "works");
    sandbox.wait_for_state("a", "done");
    wait_until("the end is recorded", || {
        sandbox.task("a", "attempts/1/exit").exists().then_some(())
    });
    same(
        &sandbox.dispatch_after("b", &["a", "a"]),
        str![[r#"
b (Title, 2 items) started with works. Tell the user and stop; news wakes you.

"#]],
    );
}

#[test]
fn chain_of_three_runs_in_order() {
    let sandbox = project();
    for id in ["a", "b", "c"] {
        sandbox.let_end(id);
    }
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    sandbox.dispatch_after("c", &["b"]);
    sandbox.wait_for_state("c", "done");
    sandbox.wait_for_log(&["start a", "end a", "start b", "end b", "start c", "end c"]);
}

#[test]
fn failed_task_holds_its_successor_until_resumed_and_done() {
    let sandbox = project();
    sandbox.dispatch("a", "fails");
    sandbox.wait_for_state("a", "failed: exit code 7");
    same(
        &sandbox.dispatch_after("b", &["a"]),
        str![[r#"
b (Title, 2 items) is held: a failed; it starts by itself when that is done. Tell the user and stop; news wakes you.

"#]],
    );
    sandbox.run("dispatch-reconcile", &["show", "b"]).shows(str![[r#"
exit 0
b — Title
held (a failed), works, AGE
next: dispatch-spawn b --resume
full: nothing holds it
1. [ ] First
2. [ ] Second
"#]]);
    sandbox.script("fails", WORKS);
    sandbox.ok("dispatch-spawn", &["a", "--resume"]);
    sandbox.wait_for_state("b", "queued: after a");
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start b"]);
}

#[test]
fn task_that_needs_a_person_holds_its_successor() {
    let sandbox = project();
    let held = |why: &str| sandbox.wait_for_state("b", &format!("held: a {why}"));
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);

    sandbox.ok("dispatch-reconcile", &["stop", "a"]);
    held("was stopped");
    sandbox.ok("dispatch-spawn", &["a", "--resume"]);
    sandbox.wait_for_state("b", "queued: after a");

    sandbox.worker("a", &["block", "1", "Which one?"]).run().ok();
    signal(sandbox.worker_of("a", 2), Signal::SIGKILL);
    held("is blocked");

    sandbox.script("works", "exit 0\n");
    sandbox.ok("dispatch-spawn", &["a", "--resume"]);
    held("ended with items left");

    let directory = sandbox.task("a", "");
    fs::rename(&directory, sandbox.project().join("away")).expect("moved");
    held("is gone");

    sandbox.dispatch("a", "works");
    held("is another task of that name now");

    fs::write(sandbox.task("a", "record.yaml"), "format: 1\n").expect("written");
    held("task 'a' has a broken record");
}

#[test]
fn successor_of_an_agent_starts_when_the_agent_finishes() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", WORKS)]);
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    let agent = "backends:\n  claude: { route: agent }\n";
    let config = config.replace("backends:\n", agent);
    sandbox.config(&config.replace("models:\n", "models:\n  opus: { backend: claude }\n"));
    let host = Host::new(&sandbox);
    sandbox.plan("a", PLAN);
    host.calls(sandbox.call("dispatch-spawn", &["a", "--model", "opus"])).run().ok();
    sandbox.dispatch_after("b", &["a"]);
    assert_eq!(sandbox.state("b"), "queued: after a");
    for step in [&["tick", "1"][..], &["tick", "2"], &["finish"]] {
        sandbox.worker("a", step).run().ok();
    }
    sandbox.wait_for_state("b", "running");

    sandbox.plan("c", PLAN);
    let spawn = &["c", "--model", "opus", "--after", "b"];
    host.calls(sandbox.call("dispatch-spawn", spawn)).run().shows(str![[r#"
exit 64
! dispatch-spawn: an agent of the host cannot have --after
!   that needs a supervisor, and an agent has none
!   next: dispatch without it, or take 'route: agent' out of backend 'claude'
"#]]);
}

#[test]
fn impossible_predecessor_is_refused() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.plan("b", PLAN);
    sandbox.run("dispatch-spawn", &["b", "--after", "c"]).shows(str![[r#"
exit 65
! dispatch-spawn: there is no task 'c'
!   tasks in PROJECT: a
!   next: dispatch-reconcile shows all tasks
"#]]);
    sandbox.run("dispatch-spawn", &["b", "--after", "b"]).shows(str![[r#"
exit 64
! dispatch-spawn: 'b' cannot wait for itself
!   next: name another task after --after
"#]]);
    sandbox.run("dispatch-spawn", &["a", "--resume", "--after", "b"]).shows(str![[r#"
exit 64
! dispatch-spawn: the argument '--resume' cannot be used with '--after <TASK>'
!   next: see dispatch-spawn --help
"#]]);
    assert!(!sandbox.task("b", "record.yaml").exists());
}

#[test]
fn resume_starts_a_queued_task_at_once() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    let supervisor = sandbox.supervisor_of("b");
    sandbox.run("dispatch-spawn", &["b", "--resume"]).shows(str![[r#"
exit 0
b started with works. Tell the user and stop; news wakes you.
"#]]);
    sandbox.wait_for_log(&["start a", "start b"]);
    assert_eq!(sandbox.supervisor_of("b"), supervisor);
    sandbox.run("dispatch-spawn", &["b", "--resume"]).shows(str![[r#"
exit 75
! dispatch-spawn: the worker of 'b' is still running
!   dispatch-reconcile show b says what it does
!   next: answer or note what it should know, or wait until it ends
"#]]);
    // A task that was resumed once no longer waits for its predecessors.
    sandbox.ok("dispatch-reconcile", &["stop", "b"]);
    sandbox.ok("dispatch-spawn", &["b", "--resume"]);
    assert_eq!(sandbox.state("b"), "running");
}

#[test]
fn resume_reports_why_a_queued_task_cannot_start() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    sandbox.config("models: { works: { backend: works } }\nbackends: { works: { command: [] } }\n");
    sandbox.run("dispatch-spawn", &["b", "--resume"]).shows(str![[r#"
exit 1
! dispatch-spawn: the config is wrong: 'command' must be a single value
!   HOME/.dispatch/config.yaml, line 2, column 31: backends: { works: { command: [] } }
!        ^ write it on one line
"#]]);
}

#[test]
fn resumed_task_waits_again_for_its_predecessor() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    let supervisor = sandbox.supervisor_of("b");
    sandbox.run("dispatch-reconcile", &["stop", "b"]).shows(str![[r#"
exit 0
b stopped
"#]]);
    assert!(!runs(supervisor));
    sandbox.run("dispatch-spawn", &["b", "--resume"]).shows(str![[r#"
exit 0
b waits after a; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start b"]);
}

#[test]
fn queued_tasks_survive_the_death_of_all_supervisors() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    sandbox.dispatch_after("c", &["b"]);
    sandbox.kill_supervisors(&["b", "c"]);
    sandbox.let_end("a");
    sandbox.wait_for_state("a", "done");
    // A worker's own call starts nothing.
    let status = || sandbox.call("dispatch-reconcile", &["status"]);
    status().env("DISPATCH_TASK_DIR", sandbox.task("a", "")).run().ok();
    assert_eq!(sandbox.log(), ["start a", "end a"]);
    status().run().ok();
    sandbox.wait_for_state("b", "running");
    sandbox.let_end("b");
    sandbox.wait_for_state("c", "running");
}

#[test]
fn concurrent_looks_start_each_abandoned_task_once() {
    let sandbox = project();
    sandbox.dispatch("a", "works");
    let ids = ["b", "c", "d"];
    ids.iter().for_each(|id| drop(sandbox.dispatch_after(id, &["a"])));
    sandbox.kill_supervisors(&ids);
    sandbox.let_end("a");
    sandbox.wait_for_state("a", "done");
    let call = |n| match n % 2 {
        0 => sandbox.call("dispatch-reconcile", &["status"]).start(),
        _ => sandbox.call("dispatch-config", &["brief"]).start(),
    };
    let calls: Vec<_> = (0..6).map(call).collect();
    calls.into_iter().for_each(|call| drop(call.end().ok()));
    for id in ids {
        sandbox.wait_for_state(id, "running");
    }
    let started = |id: &&str| sandbox.log().contains(&format!("start {id}"));
    wait_until("each task has started", || ids.iter().all(started).then_some(()));
    assert_eq!(sandbox.log().len(), 5);
}

#[test]
fn task_whose_supervisor_never_started_is_restarted() {
    for point in ["spawn:claimed", "supervisor:locked"] {
        let sandbox = project();
        sandbox.plan("b", PLAN);
        sandbox.call("dispatch-spawn", &["b", "--model", "works"]).crash_at(point).run();
        assert_eq!(sandbox.state("b"), "queued", "{point}");
        // The supervisor of a new task may still be starting.
        sandbox.ok("dispatch-config", &["brief"]);
        assert_eq!(sandbox.state("b"), "queued", "{point}");
        sandbox.age("b");
        sandbox.ok("dispatch-config", &["brief"]);
        assert_eq!(sandbox.state("b"), "running", "{point}");
    }
}

#[test]
fn supervisor_killed_before_recording_its_wait_is_replaced() {
    for point in ["wait:written", "wait:published"] {
        let sandbox = project();
        sandbox.dispatch("a", "works");
        sandbox.plan("b", PLAN);
        let spawn = sandbox.call("dispatch-spawn", &["b", "--model", "works", "--after", "a"]);
        assert_eq!(spawn.crash_at(point).run().code, Some(1), "{point}");
        sandbox.age("b");
        sandbox.ok("dispatch-reconcile", &["status"]);
        assert!(runs(sandbox.supervisor_of("b")), "{point}");
        assert_eq!(sandbox.state("b"), "queued: after a", "{point}");
    }
}

/// The host would have to start an agent.
#[test]
fn task_with_a_predecessor_is_no_agent() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    sandbox
        .config("default: opus\nbackends: { claude: {} }\nmodels: { opus: { backend: claude } }\n");
    let host = Host::new(&sandbox);
    let spawn = |args: &[&str]| host.calls(sandbox.on_machine("dispatch-spawn", args)).run().ok();
    ["a", "b"].iter().for_each(|id| sandbox.plan(id, PLAN));
    assert!(spawn(&["a"]).contains("make this Agent call now"));
    assert!(spawn(&["b", "--after", "a"]).contains(" waits after a; it starts by itself"));
}

/// A worker that commits a file named after its task.
const COMMITS: &str = r#"id=${DISPATCH_TASK_DIR##*/}
until test -e "$HOME/project/work-$id"; do sleep 0.02; done
echo "$id" >"$id"
git add "$id"
git commit -q -m "Do $id"
sed -i 's/\[ \]/[x]/' "$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done""#;

#[test]
fn worktree_begins_at_the_end_of_the_predecessors_branch() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("works", COMMITS)]);
    for id in ["a", "b"] {
        sandbox.plan(id, PLAN);
        sandbox.ok("dispatch-spawn", &[id, "--model", "works", "--worktree"]);
    }
    sandbox.dispatch_after("c", &["a", "b"]);
    sandbox.git(&["commit", "-q", "--allow-empty", "-m", "Meanwhile"]);
    let base = |id: &str| {
        let record = sandbox.read(id, "record.yaml");
        let base = record.lines().find_map(|line| line.trim().strip_prefix("base: "));
        base.map(str::to_owned)
    };
    sandbox.let_work("a");
    sandbox.let_work("b");
    sandbox.wait_for_state("c", "running");
    let end = sandbox.git(&["rev-parse", "dispatch/a"]);
    assert_eq!(base("c").as_deref(), Some(end.trim()));
    sandbox.let_work("c");
    sandbox.wait_for_state("c", "done");
    until_over(&sandbox, "c");
    assert_eq!(sandbox.git(&["log", "--format=%s", "dispatch/c"]), "Do c\nDo a\nBegin\n");
    let prompt = sandbox.read("c", "prompt.md");
    let words =
        "\nIt begins where dispatch/a ended. Before your first item, merge into it: dispatch/b.\n";
    assert!(prompt.contains(words), "{prompt}");
}

#[test]
fn missing_branch_of_a_predecessor_is_reported() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("works", COMMITS)]);
    sandbox.plan("a", PLAN);
    sandbox.ok("dispatch-spawn", &["a", "--model", "works", "--worktree"]);
    sandbox.dispatch_after("b", &["a"]);
    sandbox.kill_supervisors(&["b"]);
    sandbox.let_work("a");
    sandbox.wait_for_state("a", "done");
    until_over(&sandbox, "a");
    fs::remove_dir_all(worktree_of(&sandbox, "a").0).expect("removed");
    for reference in ["refs/heads/dispatch/a", "refs/dispatch/tip/a"] {
        sandbox.git(&["update-ref", "-d", reference]);
    }
    sandbox.ok("dispatch-reconcile", &["status"]);
    sandbox.wait_for_state("b", "running");
    let told = sandbox.read("b", "tells/001");
    assert!(told.starts_with("the branch dispatch/a is gone: this begins at "), "{told}");
}
