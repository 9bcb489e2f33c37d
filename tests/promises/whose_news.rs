//! News is for the host that dispatched the task: nobody else's look takes it away.

use std::fs;

use crate::support::{Call, Host, PLAN, Sandbox};

/// A host that has dispatched 'x', which has said something.
fn with_news() -> (Sandbox, Host) {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    let host = Host::new(&sandbox);
    host.calls(sandbox.call("dispatch-spawn", &["x"])).run().ok();
    sandbox.worker("x", &["tell", "Careful."]).run().ok();
    (sandbox, host)
}

/// The host is told it as new, and has not been told before.
#[track_caller]
fn is_new_to(sandbox: &Sandbox, host: &Host) {
    assert!(!sandbox.read("x", "news").contains(" acknowledged "));
    let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
    assert_eq!(hook.code, Some(2));
    assert!(hook.err.contains("x says: \"Careful.\""), "{}", hook.err);
    let again = host.calls(sandbox.call("dispatch-monitor", &["--timeout", "1ms"])).run();
    assert_eq!((again.code, again.out.as_str()), (Some(3), ""));
}

#[track_caller]
fn says_it_once(call: impl Fn() -> Call) {
    assert!(call().run().ok().contains("x says: \"Careful.\""));
    let again = call().args(&["--timeout", "1ms"]).run();
    assert_eq!((again.code, again.out.as_str()), (Some(3), ""));
}

#[test]
fn another_host_that_asks_for_it_takes_nothing_away() {
    let (sandbox, host) = with_news();
    let other = Host::new(&sandbox);
    says_it_once(|| other.calls(sandbox.call("dispatch-monitor", &["x"])));
    is_new_to(&sandbox, &host);
}

#[test]
fn a_person_in_a_terminal_takes_nothing_away() {
    let (sandbox, host) = with_news();
    says_it_once(|| sandbox.call("dispatch-monitor", &["x"]));
    is_new_to(&sandbox, &host);
}

/// Whatever host its environment names.
#[test]
fn no_call_of_a_worker_acknowledges_or_takes_away() {
    let (sandbox, host) = with_news();
    let of_the_worker =
        |call: Call| host.calls(call).env("DISPATCH_TASK_DIR", sandbox.task("x", ""));
    of_the_worker(sandbox.call("dispatch-reconcile", &["show", "x"])).run().ok();
    of_the_worker(sandbox.call("dispatch-reconcile", &["status"])).run().ok();
    of_the_worker(sandbox.call("dispatch-config", &["brief"])).run().ok();
    of_the_worker(sandbox.call("dispatch-monitor", &["x"])).run().ok();
    let hook = of_the_worker(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
    assert_eq!((hook.code, hook.err.as_str()), (Some(0), ""));
    is_new_to(&sandbox, &host);
}

#[test]
fn what_another_hosts_model_has_seen_is_not_acknowledged() {
    let (sandbox, host) = with_news();
    let other = Host::new(&sandbox);
    let seen = other.calls(sandbox.call("dispatch-monitor", &["x"])).run().ok();
    let transcript = sandbox.top().join("transcript.jsonl");
    let line = serde_json::json!({ "type": "user", "content": seen });
    fs::write(&transcript, line.to_string()).expect("written");
    let input = serde_json::json!({ "prompt": seen, "transcript_path": transcript }).to_string();
    let hook = other.calls(sandbox.call("dispatch-monitor", &["--hook"])).input(input).run();
    assert_eq!((hook.code, hook.err.as_str()), (Some(0), ""));
    is_new_to(&sandbox, &host);
}

#[test]
fn a_dead_owners_news_is_taken_by_whoever_asks() {
    let (sandbox, host) = with_news();
    host.die();
    let said = sandbox.ok("dispatch-monitor", &["x"]);
    assert!(said.contains("x says: \"Careful.\""), "{said}");
    let new = Host::new(&sandbox);
    let brief = new.calls(sandbox.call("dispatch-config", &["brief"])).run().ok();
    assert!(brief.contains("(said before) x says: \"Careful.\""), "{brief}");
}
