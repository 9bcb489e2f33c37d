//! A project's own files may hold tasks, made by whoever made the project: a repository that is
//! cloned, an archive. The helpers carry out only what the user's own helpers dispatched.

use std::fs;

use snapbox::str;

use crate::support::process::{all_of, kill_and_wait};
use crate::support::text::tree;
use crate::support::{Host, Sandbox};

/// A task whose worker ended and whose question is answered since: any helper goes on with it.
fn to_be_gone_on_with() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ask.code, Some(75));
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked");
    fs::write(sandbox.task("x", "ipc/001.answer"), "This.\n").expect("written");
    sandbox
}

/// Every call that a host makes, and a hook of it.
fn calls_everything(sandbox: &Sandbox) {
    let host = Host::new(sandbox);
    let calls: [(&str, &[&str]); 9] = [
        ("dispatch-config", &["brief"]),
        ("dispatch-monitor", &["--hook"]),
        ("dispatch-monitor", &["x", "--timeout", "1s"]),
        ("dispatch-monitor", &["--answer", "x", "This."]),
        ("dispatch-spawn", &["x", "--resume"]),
        ("dispatch-reconcile", &["merge", "x"]),
        ("dispatch-reconcile", &["clean", "x"]),
        ("dispatch-reconcile", &["stop", "x"]),
        ("dispatch-reconcile", &[]),
    ];
    for (helper, arguments) in calls {
        host.calls(sandbox.call(helper, arguments)).input("{}").run();
    }
}

#[test]
fn a_task_without_the_users_key_is_named_and_never_carried_out() {
    let sandbox = to_be_gone_on_with();
    let ours = sandbox.read("x", "task.yaml");
    let key = fs::read_to_string(sandbox.home().join(".dispatch/key")).expect("a key");
    let (record, its) = ours.rsplit_once("key: ").expect("it has the key");
    assert_eq!(its, key);
    for theirs in [record.to_owned(), format!("{record}key: {}\n", "0".repeat(32))] {
        fs::write(sandbox.task("x", "task.yaml"), theirs).expect("written");
        let before = tree(&[sandbox.task("x", "")]);
        calls_everything(&sandbox);
        assert_eq!(tree(&[sandbox.task("x", "")]), before);
        assert_eq!(all_of(&sandbox.home()), [0; 0]);
        sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: task 'x' is not yours
!   PROJECT/.dispatch/tasks/x/task.yaml: it may have come with the project
!   next: nothing of it is carried out; look at it, and remove its directory
"#]]);
        sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
x broken — task 'x' is not yours → dispatch-reconcile show x
"#]]);
        let host = Host::new(&sandbox);
        host.calls(sandbox.call("dispatch-config", &["brief"])).run().shows(str![[r#"
exit 0
default: idle; models: idle
x broken — task 'x' is not yours → dispatch-reconcile show x
"#]]);
    }
    // With the key it is gone on with.
    fs::write(sandbox.task("x", "task.yaml"), ours).expect("written");
    sandbox.ok("dispatch-reconcile", &[]);
    sandbox.wait_for_state("x", "running");
}

#[test]
fn an_empty_key_is_none() {
    let sandbox = to_be_gone_on_with();
    let ours = sandbox.read("x", "task.yaml");
    let (record, _) = ours.rsplit_once("key: ").expect("it has the key");
    fs::write(sandbox.home().join(".dispatch/key"), "\n").expect("written");
    fs::write(sandbox.task("x", "task.yaml"), format!("{record}key: ''\n")).expect("written");
    assert_eq!(sandbox.run("dispatch-reconcile", &["show", "x"]).code, Some(65));
}
