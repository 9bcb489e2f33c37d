//! At most `max_workers` workers run at once, in the order in which they were dispatched.

use std::fs;

use snapbox::str;

use crate::sequence::WORKS;
use crate::support::process::kill_and_wait;
use crate::support::text::{names, same};
use crate::support::{PLAN, Sandbox, wait_until};

fn limited(limit: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", WORKS)]);
    set_limit(&sandbox, limit);
    sandbox
}

fn set_limit(sandbox: &Sandbox, limit: usize) {
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    let rest = config.lines().filter(|line| !line.starts_with("max_workers"));
    let rest: String = rest.flat_map(|line| [line, "\n"]).collect();
    sandbox.config(&format!("max_workers: {limit}\n{rest}"));
}

fn tickets(sandbox: &Sandbox) -> Vec<String> {
    let mut names = names(&sandbox.home().join(".dispatch/queue"));
    names.retain(|name| name != "lock");
    names
}

#[test]
fn queue_respects_max_workers_and_dispatch_order() {
    let sandbox = limited(2);
    let ids = ["f", "e", "d", "c", "b", "a"];
    ids.iter().for_each(|id| sandbox.dispatch(id, "works"));
    sandbox.wait_for_log(&["start f", "start e"]);
    for id in &ids[2..] {
        assert_eq!(sandbox.state(id), "queued: in the queue: max_workers is 2");
    }
    assert_eq!(tickets(&sandbox), ["1", "2", "3", "4", "5", "6"]);
    let mut log = vec!["start f".to_string(), "start e".into()];
    // The first two end in reverse order.
    for (ends, follows) in [("e", "d"), ("f", "c"), ("d", "b"), ("c", "a"), ("b", ""), ("a", "")] {
        sandbox.let_end(ends);
        log.push(format!("end {ends}"));
        if !follows.is_empty() {
            log.push(format!("start {follows}"));
        }
        sandbox.wait_for_log(&log.iter().map(String::as_str).collect::<Vec<_>>());
    }
    wait_until("the queue is empty", || tickets(&sandbox).is_empty().then_some(()));
}

#[test]
fn queued_task_shows_its_position() {
    let sandbox = limited(1);
    sandbox.dispatch("a", "works");
    sandbox.plan("b", PLAN);
    sandbox.run("dispatch-spawn", &["b", "--model", "works"]).shows(str![[r#"
exit 0
b (Title, 2 items) waits in the queue: max_workers is 1; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    sandbox.dispatch("c", "works");
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
a running 0/2 AGE works — item 1: First
b queued 0/2 AGE works — in the queue: max_workers is 1
c queued 0/2 AGE works — in the queue: max_workers is 1
"#]]);
    sandbox.run("dispatch-spawn", &["b", "--resume"]).shows(str![[r#"
exit 75
! dispatch-spawn: 'b' is queued and starts by itself
!   it is next; max_workers is 1 in HOME/.dispatch/config.yaml
!   next: wait, or stop a running one: dispatch-reconcile stop TASK
"#]]);
    sandbox.run("dispatch-spawn", &["c", "--resume"]).shows(str![[r#"
exit 75
! dispatch-spawn: 'c' is queued and starts by itself
!   one task is before it; max_workers is 1 in HOME/.dispatch/config.yaml
!   next: wait, or stop a running one: dispatch-reconcile stop TASK
"#]]);
    same(
        &sandbox.redactions().apply(&ticket(&sandbox, "2")),
        str![[r#"
PROJECT/.dispatch/tasks/b

"#]],
    );
    // A stopped task frees its place.
    sandbox.ok("dispatch-reconcile", &["stop", "b"]);
    assert_eq!(tickets(&sandbox), ["1", "3"]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start c"]);
}

fn ticket(sandbox: &Sandbox, number: &str) -> String {
    let path = sandbox.home().join(".dispatch/queue").join(number);
    fs::read_to_string(path).expect("a ticket")
}

#[test]
fn limit_counts_workers_of_all_projects() {
    let sandbox = limited(1);
    sandbox.dispatch("a", "works");
    let other = sandbox.home().join("other");
    fs::create_dir_all(&other).expect("made");
    let spawn = sandbox.call("dispatch-spawn", &["b", "--model", "works", "--plan", "-"]);
    spawn.within(&other).input(PLAN).run().shows(str![[r#"
exit 0
b (Title, 2 items) waits in the queue: max_workers is 1; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start b"]);
}

#[test]
fn dead_ticket_holder_is_skipped() {
    let sandbox = limited(1);
    for id in ["a", "b", "c", "d"] {
        sandbox.dispatch(id, "works");
    }
    kill_and_wait(sandbox.supervisor_of("c"));
    kill_and_wait(sandbox.supervisor_of("a"));
    kill_and_wait(sandbox.worker_of("a", 1));
    sandbox.wait_for_log(&["start a", "start b"]);
    sandbox.let_end("b");
    sandbox.wait_for_log(&["start a", "start b", "end b", "start d"]);
    wait_until("dead tickets are removed", || (tickets(&sandbox) == ["4"]).then_some(()));
}

#[test]
fn queue_order_survives_the_death_of_all_supervisors() {
    let sandbox = limited(2);
    // The dispatch order differs from the order of names.
    let ids = ["e", "d", "c", "b", "a"];
    ids.iter().for_each(|id| sandbox.dispatch(id, "works"));
    sandbox.wait_for_log(&["start e", "start d"]);
    sandbox.kill_supervisors(&ids);
    kill_and_wait(sandbox.worker_of("e", 1));
    kill_and_wait(sandbox.worker_of("d", 1));
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
repaired: d and e marked lost; c and 2 more restarted
d lost 0/2 AGE works — the worker disappeared → dispatch-spawn d --resume
e lost 0/2 AGE works — the worker disappeared → dispatch-spawn e --resume
b running 0/2 AGE works — item 1: First
c running 0/2 AGE works — item 1: First
a queued 0/2 AGE works — in the queue: max_workers is 2
"#]]);
    sandbox.wait_for_log(&["start e", "start d", "start c", "start b"]);
    assert_eq!(sandbox.state("a"), "queued: in the queue: max_workers is 2");
    // A lost task goes to the end of the queue.
    sandbox.run("dispatch-spawn", &["e", "--resume"]).shows(str![[r#"
exit 0
e waits in the queue: max_workers is 2; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    assert_eq!(sandbox.state("e"), "queued: in the queue: max_workers is 2");
    let mut log = sandbox.log();
    for (ends, follows) in [("c", "a"), ("b", "e")] {
        sandbox.let_end(ends);
        log.extend([format!("end {ends}"), format!("start {follows}")]);
        sandbox.wait_for_log(&log.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn queue_follows_a_raised_limit_and_survives_a_broken_config() {
    let sandbox = limited(1);
    for id in ["a", "b", "c"] {
        sandbox.dispatch(id, "works");
    }
    sandbox.wait_for_log(&["start a"]);
    set_limit(&sandbox, 2);
    sandbox.wait_for_log(&["start a", "start b"]);

    // An editor may empty or half-write the config before it writes it again.
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    sandbox.config("");
    sandbox.let_end("a");
    wait_until("the place of 'a' is free", || (tickets(&sandbox) == ["2", "3"]).then_some(()));
    assert_eq!(sandbox.state("c"), "queued: in the queue: max_workers is 2");
    sandbox.config("max_workers: [\n");
    assert_eq!(sandbox.state("c"), "queued: in the queue: max_workers is 2");
    sandbox.config(&config);
    sandbox.wait_for_log(&["start a", "start b", "end a", "start c"]);
}

#[test]
fn limit_of_zero_is_reported_and_ignored() {
    let sandbox = limited(0);
    sandbox.plan("a", PLAN);
    sandbox.run("dispatch-spawn", &["a", "--model", "works"]).shows(str![[r#"
exit 0
a (Title, 2 items) started with works. Tell the user and stop; news wakes you.
"#]]);
    sandbox.run("dispatch-config", &["check"]).shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: 'max_workers' cannot be '0'
!   HOME/.dispatch/config.yaml, line 1, column 14: max_workers: 0
!        ^ expected a whole number above 0
"#]]);
}

/// The limits of a worker hold under its second supervisor too.
#[test]
fn waiting_monitor_replaces_a_killed_supervisor_with_its_limits() {
    let sandbox = limited(1);
    sandbox.plan("x", PLAN);
    sandbox.ok("dispatch-spawn", &["x", "--model", "idle"]);
    let first = sandbox.supervisor_of("x");
    let monitor = sandbox.call("dispatch-monitor", &["x"]).start();
    kill_and_wait(first);
    // The lock's text is written in two steps.
    let lock = sandbox.task("x", "run.lock");
    let pid = || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&lock).ok()?).ok();
    wait_until("another supervisor", || (pid()?["pid"] != first).then_some(()));
    wait_until("its ticket", || tickets(&sandbox).contains(&"0".to_owned()).then_some(()));
    sandbox.plan("y", PLAN);
    sandbox.ok("dispatch-spawn", &["y", "--model", "idle"]);
    assert_eq!(sandbox.state("y"), "queued: in the queue: max_workers is 1");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.wait_for_state("y", "running");
    monitor.end();
}
