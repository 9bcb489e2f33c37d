//! What a crash left is mended by whoever looks first, and said in one line; nothing else changes.

use std::fs;

use snapbox::str;

use crate::support::made::dead;
use crate::support::process::{kill_and_wait, runs};
use crate::support::text::{names, tree};
use crate::support::{Host, PLAN, Ran, Sandbox, wait_until};

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox
}

#[track_caller]
fn status(sandbox: &Sandbox) -> Ran {
    sandbox.run("dispatch-reconcile", &[])
}

/// A second look mends nothing, changes nothing, and says nothing of it.
#[track_caller]
fn nothing_is_left_to_mend(sandbox: &Sandbox) {
    let before = tree(&[sandbox.home(), sandbox.temporary()]);
    let said = status(sandbox).ok();
    assert!(!said.contains("repaired"), "{said}");
    assert_eq!(tree(&[sandbox.home(), sandbox.temporary()]), before);
}

#[test]
fn all_that_was_mended_is_said_in_one_line_and_once() {
    let sandbox = project();
    for id in ["one", "two", "three"] {
        sandbox.queued(id, "idle");
    }
    sandbox.worked_at("gone", "idle", &dead());
    sandbox.worked_at("blocked", "idle", &dead());
    sandbox.write("blocked", "plan.md", PLAN.replace("[ ] First", "[?] First — which?"));
    sandbox.write("gone", "ipc/.001.question.x.dispatch.tmp", "Wh");
    status(&sandbox).shows(str![[r#"
exit 0
repaired: blocked marked blocked; gone marked lost; one and 2 more restarted; 1 temporary file removed
blocked blocked 0/2 AGE idle — item 1: which? → dispatch-spawn blocked --resume
gone lost 0/2 AGE idle — the worker is gone and nobody saw it end → dispatch-spawn gone --resume
one running 0/2 1h idle — item 1: First
three running 0/2 1h idle — item 1: First
two running 0/2 1h idle — item 1: First
"#]]);
    nothing_is_left_to_mend(&sandbox);
    assert!(runs(sandbox.worker_of("one", 1)));
}

/// A worker that lives needs no mending, although its supervisor is dead.
#[test]
fn a_live_worker_stays_what_it_is() {
    let sandbox = project();
    sandbox.dispatch("x", "idle");
    kill_and_wait(sandbox.supervisor_of("x"));
    status(&sandbox).shows(str![[r#"
exit 0
x running 0/2 AGE idle — item 1: First
"#]]);
    nothing_is_left_to_mend(&sandbox);
    assert!(runs(sandbox.worker_of("x", 1)));
    kill_and_wait(sandbox.worker_of("x", 1));
    status(&sandbox).shows(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker is gone and nobody saw it end → dispatch-spawn x --resume
"#]]);
    nothing_is_left_to_mend(&sandbox);
}

#[test]
fn the_first_brief_of_a_new_session_says_what_it_took_over() {
    let sandbox = project();
    let old = Host::new(&sandbox);
    for id in ["x", "y"] {
        sandbox.plan(id, PLAN);
        old.calls(sandbox.call("dispatch-spawn", &[id])).run().ok();
    }
    sandbox.worked_at("gone", "idle", &dead());
    old.die();
    let new = Host::new(&sandbox);
    let brief = || new.calls(sandbox.call("dispatch-config", &["brief"])).run();
    brief().shows(str![[r#"
exit 0
default: idle; models: idle
#ID gone lost (0/2, AGE): "the worker is gone and nobody saw it end" → tell the user and ask; BIN/try again: dispatch-spawn gone --resume
repaired: gone marked lost; gone and 2 more adopted
x running 0/2 AGE idle — item 1: First
y running 0/2 AGE idle — item 1: First
"#]]);
    assert!(!brief().ok().contains("repaired"));
}

/// What a CLI has said to its end is known, also when nobody lived to hear it.
#[test]
fn the_log_tells_how_a_worker_ended_that_nobody_saw() {
    let sandbox = project();
    let result = r#"{"type":"result","subtype":"success","is_error":false,"result":"Done.","model_usage_since_last_result":{"opus":{"inputTokens":1000,"outputTokens":200,"costUSD":0.25}}}"#;
    let refused = r#"{"type":"result","subtype":"success","is_error":true,"result":"Not logged in · Please run /login"}"#;
    for (id, log) in [("complete", result), ("left", result), ("refused", refused)] {
        sandbox.worked_at(id, "claude", &dead());
        sandbox.write(id, "worker/1/output.log", format!("{log}\n"));
    }
    sandbox.tick_all("complete");
    // It was at work, so that a failure that it might have recovered from says nothing.
    sandbox.worked_at("cut", "claude", &dead());
    let retry = r#"{"type":"system","subtype":"api_retry","error":"rate_limit"}"#;
    sandbox.write("cut", "worker/1/output.log", format!("{retry}\n{{\"type\":\"assis"));
    status(&sandbox).shows(str![[r#"
exit 0
repaired: complete marked done; cut marked lost; left marked incomplete; refused marked failed
refused failed 0/2 AGE claude — not logged in: Not logged in… → dispatch-spawn refused --resume
cut lost 0/2 AGE claude — the worker is gone and nobody saw it end → dispatch-spawn cut --resume
left incomplete 0/2 AGE claude $0.25 → dispatch-spawn left --resume
complete done 2/2 AGE claude $0.25 — finish marker missing
"#]]);
    nothing_is_left_to_mend(&sandbox);
}

/// A rate limit that nobody was there to wait for is waited for from now on.
#[test]
fn a_worker_that_met_its_limit_unseen_is_parked() {
    let sandbox = project();
    sandbox.worked_at("x", "claude", &dead());
    let limit = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":RESETS}}
{"type":"assistant","error":"rate_limit","message":{"content":[{"type":"text","text":"You've hit your session limit"}]}}
{"type":"result","subtype":"success","is_error":true,"result":"You've hit your session limit"}"#;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let resets = now.expect("after 1970").as_secs() + 3600;
    let log = limit.replace("RESETS", &resets.to_string());
    sandbox.write("x", "worker/1/output.log", format!("{log}\n"));
    status(&sandbox).shows(str![[r#"
exit 0
repaired: x marked parked; x restarted
x parked 0/2 AGE claude — rate limit, until TIME: You've hit your session limit
"#]]);
    nothing_is_left_to_mend(&sandbox);
    assert!(runs(sandbox.supervisor_of("x")), "it waits");
}

#[test]
fn only_a_dead_writers_temporary_file_goes() {
    let sandbox = project();
    sandbox.dispatch("x", "idle");
    let crash = sandbox.worker("x", &["tell", "Careful."]).crash_at("001:written");
    crash.run().crashed();
    let left = names(&sandbox.task("x", "tells"));
    assert_eq!(left.len(), 1, "{left:?}");
    // A writer holds a lock on its temporary file.
    let alive = "ipc/.002.question.y.dispatch.tmp";
    sandbox.write("x", alive, "Wh");
    let writer = fs::File::open(sandbox.task("x", alive)).expect("there");
    writer.lock().expect("locked");
    let said = status(&sandbox).ok();
    assert!(said.starts_with("repaired: 1 temporary file removed\n"), "{said}");
    assert!(sandbox.task("x", alive).exists());
    nothing_is_left_to_mend(&sandbox);
}

/// A worker that looks at the tasks mends nothing: it may see other processes than the host.
#[test]
fn a_worker_mends_nothing() {
    let sandbox = project();
    sandbox.queued("x", "idle");
    sandbox.worked_at("y", "idle", &dead());
    let task = sandbox.task("y", "").components().as_path().to_path_buf();
    let before = tree(&[sandbox.home()]);
    let status = sandbox.call("dispatch-reconcile", &[]).env("DISPATCH_TASK_DIR", task);
    status.run().shows(str![[r#"
exit 0
y lost 0/2 1h idle — the worker is gone and nobody saw it end → dispatch-spawn y --resume
x queued 0/2 1h idle
"#]]);
    assert_eq!(tree(&[sandbox.home()]), before);
}

/// What a program reads has no line about repairs in it, and every task.
#[test]
fn json_stays_json() {
    let sandbox = project();
    sandbox.worked_at("gone", "idle", &dead());
    sandbox.write("torn", "task.yaml", "format: 1\nnonce: [\n");
    let said = sandbox.ok("dispatch-reconcile", &["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let state = |at: usize| (json[at]["task"].as_str(), json[at]["state"].as_str());
    assert_eq!(state(0), (Some("gone"), Some("failed")));
    assert_eq!(state(1), (Some("torn"), Some("broken")));
    assert!(json[1]["because"].as_str().is_some_and(|why| why.contains("torn/task.yaml")));
}

/// Several that look at once mend each thing once.
#[test]
fn of_many_that_look_at_once_each_thing_is_mended_once() {
    let sandbox = project();
    for id in ["one", "two"] {
        sandbox.queued(id, "idle");
    }
    let looks: Vec<_> = (0..4).map(|_| sandbox.call("dispatch-reconcile", &[]).start()).collect();
    let said: Vec<String> = looks.into_iter().map(|look| look.end().ok()).collect();
    let restarted = said.iter().filter(|said| said.contains("restarted")).count();
    assert_eq!(restarted, 1, "{said:?}");
    for id in ["one", "two"] {
        wait_until("its worker runs", || {
            sandbox.task(id, "worker/1/identity").exists().then_some(())
        });
        assert_eq!(names(&sandbox.task(id, "worker")), ["1"]);
    }
}

/// Whoever deletes `.dispatch/` has the work still, and is told where.
#[test]
fn work_whose_task_is_gone_is_pointed_at() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    for id in ["x", "y"] {
        sandbox.plan(id, PLAN);
        sandbox.ok("dispatch-spawn", &[id, "--worktree"]);
    }
    assert!(!status(&sandbox).ok().contains("orphaned"));
    let worker = sandbox.worker_of("x", 1);
    let supervisor = sandbox.supervisor_of("x");
    kill_and_wait(worker);
    wait_until("the supervisor is gone", || (!runs(supervisor)).then_some(()));
    fs::remove_dir_all(sandbox.task("x", "")).expect("removed");
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned, of no task here: worktree HOME/.dispatch/worktrees/project-HASH/x — git merge dispatch/x brings it back, git worktree remove HOME/.dispatch/worktrees/project-HASH/x removes it and what git ignores in it
"#]]);
    nothing_is_left_to_mend(&sandbox);
    // Its commits are on no branch.
    let path = fs::read_dir(sandbox.home().join(".dispatch/worktrees")).expect("there");
    let path = path.flatten().map(|it| it.path().join("x")).find(|it| it.join(".git").exists());
    let path = path.expect("there");
    let inside = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
    inside(&["checkout", "-q", "--detach"]);
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned, of no task here: worktree HOME/.dispatch/worktrees/project-HASH/x — git -C HOME/.dispatch/worktrees/project-HASH/x switch -c NAME keeps its commits; and 1 more: dispatch-reconcile clean --dry-run
"#]]);
    inside(&["checkout", "-q", "dispatch/x"]);
    // As it is told.
    sandbox.git(&["worktree", "remove", &path.display().to_string()]);
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned, of no task here: branch dispatch/x — git merge dispatch/x brings it back, git branch -d dispatch/x removes it
"#]]);
    sandbox.git(&["branch", "-d", "dispatch/x"]);
    assert!(!status(&sandbox).ok().contains("orphaned"));
    // Several are still one line.
    for id in ["a", "b", "c"] {
        sandbox.git(&["branch", &format!("dispatch/{id}")]);
    }
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned, of no task here: branch dispatch/a — git merge dispatch/a brings it back, git branch -d dispatch/a removes it; and 2 more: dispatch-reconcile clean --dry-run
"#]]);
    // Which names all of them, also such as are packed, and not that of a task that begins.
    sandbox.git(&["pack-refs", "--all"]);
    sandbox.git(&["branch", "dispatch/begins"]);
    sandbox.plan("begins", PLAN);
    sandbox.run("dispatch-reconcile", &["clean", "--dry-run"]).shows(str![[r#"
exit 0
orphaned, of no task here: branch dispatch/a — git merge dispatch/a brings it back, git branch -d dispatch/a removes it
orphaned, of no task here: branch dispatch/b — git merge dispatch/b brings it back, git branch -d dispatch/b removes it
orphaned, of no task here: branch dispatch/c — git merge dispatch/c brings it back, git branch -d dispatch/c removes it
"#]]);
}
