//! A cloned repository or an archive may bring tasks along. The helpers run only tasks that the user's
//! own helpers dispatched.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use snapbox::str;

use crate::support::process::{all_of, kill_and_wait};
use crate::support::text::{names, tree};
use crate::support::{Host, Sandbox, wait_until};

/// A task with an answer that came after its worker ended: any helper would resume it.
fn task_with_late_answer() -> Sandbox {
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

/// Makes every call that a host or its hook makes.
fn make_every_call(sandbox: &Sandbox) {
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

/// The file in which the user's helpers keep the decisions about the only task.
fn claim(sandbox: &Sandbox) -> PathBuf {
    let claims = sandbox.home().join(".dispatch/claims");
    let [only] = &names(&claims)[..] else { panic!("one claim in {}", claims.display()) };
    claims.join(only)
}

#[test]
fn foreign_task_is_named_and_never_run() {
    let sandbox = task_with_late_answer();
    let ours = sandbox.read("x", "task.yaml");
    let claim = claim(&sandbox);
    let (nonce, decided) = (claim.file_name().and_then(OsStr::to_str), fs::read(&claim));
    let (nonce, decided) = (nonce.expect("a name"), decided.expect("decided"));
    let of_another = String::from_utf8_lossy(&decided);
    // A claim of the same name in another project.
    let of_another = of_another.replace("/.dispatch/tasks/x\"", "/other/.dispatch/tasks/x\"");
    assert_ne!(of_another.as_bytes(), decided);
    let forged = ["0".repeat(16), format!("../claims/{nonce}"), String::new()];
    let forged = forged.map(|nonce_of_theirs| (ours.replace(nonce, &nonce_of_theirs), None));
    let stolen = (ours.clone(), Some(of_another.into_bytes()));
    for (theirs, claimed) in forged.into_iter().chain([stolen]) {
        fs::write(&claim, claimed.unwrap_or(decided.clone())).expect("written");
        fs::write(sandbox.task("x", "task.yaml"), theirs).expect("written");
        let before = tree(&[sandbox.task("x", "")]);
        make_every_call(&sandbox);
        assert_eq!(tree(&[sandbox.task("x", "")]), before);
        assert_eq!(all_of(&sandbox.home()), [0; 0]);
        sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: task 'x' is not yours
!   PROJECT/.dispatch/tasks/x/task.yaml: it came with a cloned project, or the project was moved
!   next: inspect its directory and remove it; dispatch will not run it
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
    // With the real record and claim, the task resumes.
    fs::write(&claim, decided).expect("written");
    fs::write(sandbox.task("x", "task.yaml"), ours).expect("written");
    sandbox.ok("dispatch-reconcile", &[]);
    sandbox.wait_for_state("x", "running");
}

#[test]
fn worker_that_rewrites_its_record_gains_no_access() {
    let sandbox = task_with_late_answer();
    let more = sandbox.read("x", "task.yaml").replace("access: write", "access: full");
    fs::write(sandbox.task("x", "task.yaml"), more).expect("written");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["access"], "write", "{shown}");
}

#[test]
fn removed_task_takes_its_claim() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", "exit 0")]);
    sandbox.dispatch("x", "ends");
    sandbox.wait_for_state("x", "incomplete");
    let claim = claim(&sandbox);
    wait_until("it can be removed", || {
        let clean = sandbox.run("dispatch-reconcile", &["clean", "x"]);
        (clean.code == Some(0)).then_some(())
    });
    assert!(!claim.exists());
}
