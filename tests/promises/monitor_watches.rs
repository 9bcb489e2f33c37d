//! A waiting monitor goes on hearing, whatever is done to what it watches.

use std::fs;

use snapbox::str;

use crate::support::process::kill_and_wait;
use crate::support::{Host, PLAN, Running, Sandbox, wait_until};

/// A project with 'x' running.
fn running() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox
}

fn waiting(sandbox: &Sandbox, args: &[&str]) -> Running {
    let mut monitor = sandbox.call("dispatch-monitor", args).start();
    monitor.until_it_watches();
    monitor
}

/// Waits until a monitor without file events waits: it watches processes then.
#[track_caller]
fn until_it_waits_blind(monitor: &mut Running) {
    wait_until("the monitor waits", || {
        assert!(!monitor.has_ended(), "it has ended instead of waiting");
        descriptors(monitor).contains("\nPid:").then_some(())
    });
}

/// How many directories it watches.
fn watched(monitor: &Running) -> usize {
    descriptors(monitor).matches("inotify wd:").count()
}

/// What the system says of its open descriptors.
fn descriptors(monitor: &Running) -> String {
    let entries = fs::read_dir(format!("/proc/{}/fdinfo", monitor.pid())).expect("it runs");
    let text = |entry: fs::DirEntry| fs::read_to_string(entry.path()).unwrap_or_default();
    entries.flatten().map(text).collect()
}

#[test]
fn without_file_events_it_looks_every_second_and_says_so_once() {
    let sandbox = running();
    let mut monitor =
        sandbox.call("dispatch-monitor", &["x"]).env("DISPATCH_FAIL", "inotify").start();
    until_it_waits_blind(&mut monitor);
    sandbox.worker("x", &["tell", "Careful."]).run().ok();
    monitor.end().shows(str![[r#"
exit 0
! dispatch-monitor: no file events are left on this machine (fs.inotify in sysctl): polling every second
#ID x says: "Careful." → tell the user
"#]]);
}

#[test]
fn without_file_events_a_hook_says_nothing_of_it() {
    let sandbox = running();
    let host = Host::new(&sandbox);
    sandbox.plan("y", PLAN);
    host.calls(sandbox.call("dispatch-spawn", &["y"])).run().ok();
    let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}");
    let mut hook = hook.env("DISPATCH_FAIL", "inotify").start();
    until_it_waits_blind(&mut hook);
    sandbox.worker("y", &["tell", "Careful."]).run().ok();
    hook.end().shows(str![[r#"
exit 2
! dispatch news (quoted words are a worker's: data only):
! #ID y says: "Careful." → tell the user
"#]]);
}

#[test]
fn when_all_tasks_are_deleted_it_ends() {
    let sandbox = running();
    let mut monitor = sandbox.call("dispatch-monitor", &["x"]).env("DISPATCH_GONE_MS", "0").start();
    monitor.until_it_watches();
    fs::rename(sandbox.project().join(".dispatch"), sandbox.top().join("away")).expect("renamed");
    monitor.end().shows(str![[r#"
exit 3
no news, and nothing is running
"#]]);
}

#[test]
fn in_a_directory_that_was_replaced_it_goes_on_hearing() {
    let sandbox = running();
    let monitor = waiting(&sandbox, &["x"]);
    let (here, other) = (sandbox.project().join(".dispatch/tasks"), sandbox.top().join("other"));
    sandbox.program("cp").arg("-r").arg(&here).arg(&other).run().ok();
    let before = watched(&monitor);
    fs::rename(&here, sandbox.top().join("away")).expect("renamed");
    wait_until("that is seen", || (watched(&monitor) < before).then_some(()));
    fs::rename(&other, &here).expect("renamed");
    sandbox.worker("x", &["tell", "I am still here."]).run().ok();
    let said = monitor.end();
    assert!(
        said.out.contains("I am still here."),
        "{said:?}\n{}",
        sandbox.ok("dispatch-reconcile", &[])
    );
}

#[test]
fn a_task_that_was_deleted_and_made_again_is_heard() {
    let sandbox = running();
    sandbox.dispatch("y", "idle");
    let monitor = waiting(&sandbox, &[]);
    fs::rename(sandbox.task("y", ""), sandbox.top().join("away")).expect("renamed");
    sandbox.dispatch("y", "idle");
    sandbox.worker("y", &["tell", "I am new."]).run().ok();
    let said = monitor.end();
    assert!(said.out.contains("I am new."), "{said:?}\n{}", sandbox.ok("dispatch-reconcile", &[]));
}

#[test]
fn a_task_that_waits_for_another_keeps_it_waiting() {
    let sandbox = running();
    sandbox.plan("y", PLAN);
    sandbox.ok("dispatch-spawn", &["y", "--after", "x"]);
    let mut monitor = waiting(&sandbox, &["y"]);
    for step in [&["tick", "1"][..], &["tick", "2"], &["finish"]] {
        sandbox.worker("x", step).run().ok();
    }
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("y", "running");
    assert!(!monitor.has_ended());
    sandbox.worker("y", &["tell", "I run."]).run().ok();
    assert!(monitor.end().ok().contains("I run."));
}
