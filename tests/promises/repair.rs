//! The first look after a crash repairs what it left, and reports that in one line.

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

/// A second look repairs, changes and reports nothing.
#[track_caller]
fn assert_nothing_left_to_repair(sandbox: &Sandbox) {
    let before = tree(&[sandbox.home(), sandbox.temporary()]);
    let said = status(sandbox).ok();
    assert!(!said.contains("repaired"), "{said}");
    assert_eq!(tree(&[sandbox.home(), sandbox.temporary()]), before);
}

#[test]
fn repairs_are_reported_in_one_line_once() {
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
blocked blocked 0/2 AGE idle — item 1: "which?" → dispatch-spawn blocked --resume
gone lost 0/2 AGE idle — the worker disappeared → dispatch-spawn gone --resume
one running 0/2 1h idle — item 1: First
three running 0/2 1h idle — item 1: First
two running 0/2 1h idle — item 1: First
"#]]);
    assert_nothing_left_to_repair(&sandbox);
    assert!(runs(sandbox.worker_of("one", 1)));
}

#[test]
fn first_brief_reports_adopted_tasks() {
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
#ID gone lost (0/2, AGE): the worker disappeared → tell the user and ask; BIN/dispatch-spawn gone --resume tries again
repaired: gone marked lost; gone and 2 more adopted
x running 0/2 AGE idle — item 1: First
y running 0/2 AGE idle — item 1: First
"#]]);
    assert!(!brief().ok().contains("repaired"));
}

/// The log holds what a CLI said at its end, also if no supervisor was there to read it.
#[test]
fn log_tells_how_unseen_worker_ended() {
    let sandbox = project();
    let result = r#"{"type":"result","subtype":"success","is_error":false,"result":"Done.","model_usage_since_last_result":{"opus":{"inputTokens":1000,"outputTokens":200,"costUSD":0.25}}}"#;
    let refused = r#"{"type":"result","subtype":"success","is_error":true,"result":"Not logged in · Please run /login"}"#;
    for (id, log) in [("complete", result), ("left", result), ("refused", refused)] {
        sandbox.worked_at(id, "claude", &dead());
        sandbox.write(id, "attempts/1/log", format!("{log}\n"));
    }
    sandbox.tick_all("complete");
    // The worker was still running, so a failure that it may have recovered from proves nothing.
    sandbox.worked_at("cut", "claude", &dead());
    let retry = r#"{"type":"system","subtype":"api_retry","error":"rate_limit"}"#;
    sandbox.write("cut", "attempts/1/log", format!("{retry}\n{{\"type\":\"assis"));
    status(&sandbox).shows(str![[r#"
exit 0
repaired: complete marked done; cut marked lost; left marked incomplete; refused marked failed
refused failed 0/2 AGE claude — not logged in: "Not logged i… → dispatch-spawn refused --resume
cut lost 0/2 AGE claude — the worker disappeared → dispatch-spawn cut --resume
left incomplete 0/2 AGE claude $0.25 — ended before item 1: First → dispatch-spawn left --resume
complete done 2/2 AGE claude $0.25 — finish marker missing
"#]]);
    assert_nothing_left_to_repair(&sandbox);
}

/// A repair starts the wait for a rate limit that no supervisor saw.
#[test]
fn unseen_rate_limit_parks_task() {
    let sandbox = project();
    sandbox.worked_at("x", "claude", &dead());
    let limit = r#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":RESETS}}
{"type":"assistant","error":"rate_limit","message":{"content":[{"type":"text","text":"You've hit your session limit"}]}}
{"type":"result","subtype":"success","is_error":true,"result":"You've hit your session limit"}"#;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let resets = now.expect("after 1970").as_secs() + 3600;
    let log = limit.replace("RESETS", &resets.to_string());
    sandbox.write("x", "attempts/1/log", format!("{log}\n"));
    status(&sandbox).shows(str![[r#"
exit 0
repaired: x marked parked; x restarted
x parked 0/2 AGE claude — rate limit, until TIME: "You've hit your session limit"
"#]]);
    assert_nothing_left_to_repair(&sandbox);
    assert!(runs(sandbox.supervisor_of("x")), "the task waits");
}

#[test]
fn only_temporary_files_of_dead_writers_are_removed() {
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
    assert_nothing_left_to_repair(&sandbox);
}

/// A worker may see other processes than the host, so its look must not repair.
#[test]
fn worker_repairs_nothing() {
    let sandbox = project();
    sandbox.queued("x", "idle");
    sandbox.worked_at("y", "idle", &dead());
    let task = sandbox.task("y", "").components().as_path().to_path_buf();
    let before = tree(&[sandbox.home()]);
    let status = sandbox.call("dispatch-reconcile", &[]).env("DISPATCH_TASK_DIR", task);
    status.run().shows(str![[r#"
exit 0
y lost 0/2 1h idle — the worker disappeared → dispatch-spawn y --resume
x queued 0/2 1h idle
"#]]);
    assert_eq!(tree(&[sandbox.home()]), before);
}

/// The JSON has every task, and no line about repairs.
#[test]
fn repairs_keep_json_output_valid() {
    let sandbox = project();
    sandbox.worked_at("gone", "idle", &dead());
    sandbox.write("torn", "record.yaml", "format: 1\nnonce: [\n");
    let said = sandbox.ok("dispatch-reconcile", &["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let state = |at: usize| (json[at]["task"].as_str(), json[at]["state"].as_str());
    assert_eq!(state(0), (Some("gone"), Some("lost")));
    assert_eq!(state(1), (Some("torn"), Some("broken")));
    assert!(json[1]["because"].as_str().is_some_and(|why| why.contains("torn/record.yaml")));
}

#[test]
fn concurrent_looks_repair_each_task_once() {
    let sandbox = project();
    for id in ["one", "two"] {
        sandbox.queued(id, "idle");
    }
    let looks: Vec<_> = (0..4).map(|_| sandbox.call("dispatch-reconcile", &[]).start()).collect();
    let said: Vec<String> = looks.into_iter().map(|look| look.end().ok()).collect();
    let restarted = said.iter().filter(|said| said.contains("restarted")).count();
    assert_eq!(restarted, 1, "{said:?}");
    for id in ["one", "two"] {
        wait_until("the worker runs", || {
            sandbox.task(id, "attempts/1/identity").exists().then_some(())
        });
        assert_eq!(names(&sandbox.task(id, "attempts")), ["1"]);
    }
}

/// A person who deleted `.dispatch/` still has the work, and is told where.
#[test]
fn orphaned_work_is_listed() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    for id in ["x", "y"] {
        sandbox.plan(id, PLAN);
        sandbox.ok("dispatch-spawn", &[id, "--worktree"]);
    }
    for id in ["x", "y"] {
        let identity = sandbox.task(id, "attempts/1/identity");
        wait_until("its worker runs", || identity.exists().then_some(()));
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
orphaned: worktree HOME/.dispatch/worktrees/project-HASH/x — dispatch-reconcile clean brings its commits to a branch, rm -r HOME/.dispatch/worktrees/project-HASH/x removes it and what is only there
"#]]);
    assert_nothing_left_to_repair(&sandbox);
    // The printed commands work.
    let path = fs::read_dir(sandbox.home().join(".dispatch/worktrees")).expect("there");
    let path = path.flatten().map(|it| it.path().join("x")).find(|it| it.join(".git").exists());
    let path = path.expect("there");
    let inside = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
    inside(&["checkout", "-q", "--detach"]);
    inside(&["commit", "-q", "--allow-empty", "-m", "Detached"]);
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
orphaned: worktree HOME/.dispatch/worktrees/project-HASH/x — read git diff HEAD...dispatch/x, then git merge dispatch/x brings its commits back, rm -r HOME/.dispatch/worktrees/project-HASH/x removes it and what is only there
"#]]);
    assert_eq!(sandbox.git(&["log", "-1", "--format=%s", "dispatch/x"]), "Detached\n");
    sandbox.git(&["merge", "-q", "dispatch/x"]);
    fs::remove_dir_all(&path).expect("removed");
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned: branch dispatch/x — read git diff HEAD...dispatch/x, then git merge dispatch/x brings it back, git branch -d dispatch/x removes it
"#]]);
    sandbox.git(&["branch", "-d", "dispatch/x"]);
    assert!(!status(&sandbox).ok().contains("orphaned"));
    // With the worktree and its branch, the references that kept its commits become useless.
    let kept = || sandbox.git(&["for-each-ref", "--format=%(refname)", "refs/dispatch"]);
    assert_eq!(kept(), "refs/dispatch/base/x\nrefs/dispatch/base/y\nrefs/dispatch/tip/x\n");
    sandbox.ok("dispatch-reconcile", &["clean"]);
    assert_eq!(kept(), "refs/dispatch/base/y\n");
    // Several orphans still take one line.
    for id in ["a", "b", "c"] {
        sandbox.git(&["branch", &format!("dispatch/{id}")]);
    }
    status(&sandbox).shows(str![[r#"
exit 0
y running 0/2 AGE idle — item 1: First
orphaned: branch dispatch/a — read git diff HEAD...dispatch/a, then git merge dispatch/a brings it back, git branch -d dispatch/a removes it; and 2 more: dispatch-reconcile clean --dry-run
"#]]);
    // `clean` lists all of them, also packed ones, but not the branch of a task that is starting.
    sandbox.git(&["pack-refs", "--all"]);
    sandbox.git(&["branch", "dispatch/begins"]);
    std::fs::create_dir_all(sandbox.state_directory().join("begins")).expect("made");
    sandbox.run("dispatch-reconcile", &["clean", "--dry-run"]).shows(str![[r#"
exit 0
orphaned: branch dispatch/a — read git diff HEAD...dispatch/a, then git merge dispatch/a brings it back, git branch -d dispatch/a removes it
orphaned: branch dispatch/b — read git diff HEAD...dispatch/b, then git merge dispatch/b brings it back, git branch -d dispatch/b removes it
orphaned: branch dispatch/c — read git diff HEAD...dispatch/c, then git merge dispatch/c brings it back, git branch -d dispatch/c removes it
"#]]);
}

/// State that nothing needs any more: `clean --stale`, and the files of hosts and killed writers.
mod stale {
    use std::fs;
    use std::path::PathBuf;

    use snapbox::str;

    use crate::support::process::all_of;
    use crate::support::terminal::Terminal;
    use crate::support::text::names;
    use crate::support::{Call, Host, Sandbox, wait_until};

    /// A home whose only project was deleted, with a task that ended.
    fn without_its_project() -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.workers(&[("ends", "exit 0")]);
        sandbox.dispatch("x", "ends");
        sandbox.wait_for_state("x", "incomplete");
        wait_until("no process runs", || all_of(&sandbox.home()).is_empty().then_some(()));
        fs::remove_dir_all(sandbox.project()).expect("removed");
        sandbox
    }

    fn clean(sandbox: &Sandbox, args: &[&str]) -> Call {
        let call = sandbox.call("dispatch-reconcile", &["clean", "--stale"]).args(args);
        call.within(sandbox.home())
    }

    /// Confirms `clean --stale` at a terminal and returns the screen's text.
    fn confirm(sandbox: &Sandbox) -> String {
        let mut terminal = Terminal::run(clean(sandbox, &[]).env("DISPATCH_FAIL", "callers"));
        let mut shown = terminal.read_until("? [y/N] ");
        terminal.write("y\n");
        shown.push_str(&terminal.read_until("Done.\r\n"));
        assert!(terminal.status().success(), "{shown}");
        shown
    }

    #[test]
    fn missing_projects_state_goes_to_the_trash_and_comes_back() {
        let sandbox = without_its_project();
        let before = clean(&sandbox, &["--dry-run"]).run();
        before.shows(str![[r#"
exit 0
stale STATE (1 tasks): PROJECT is gone
Nothing was changed.
"#]]);
        clean(&sandbox, &[]).run().shows(str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own
stale STATE (1 tasks): PROJECT is gone
"#]]);
        let shown = confirm(&sandbox);
        assert!(!sandbox.state_directory().exists());
        // The printed command puts the state back.
        let back = shown.lines().find_map(|line| line.strip_prefix("  mv ")).expect("a command");
        let name = sandbox.state_directory().file_name().expect("a name").to_owned();
        let back = back.trim().replace("NAME", name.to_str().expect("UTF-8"));
        let back = format!("mv {back}");
        sandbox.program("sh").args(&["-c", &back]).within(sandbox.home()).run().ok();
        assert!(sandbox.task("x", "record.yaml").is_file(), "{back}");
        // A project that is there again keeps its state.
        fs::create_dir(sandbox.project()).expect("made");
        assert_eq!(clean(&sandbox, &[]).run().ok(), "nothing to clean\n");
    }

    #[test]
    fn state_of_an_unmounted_disk_or_a_running_task_stays() {
        let sandbox = without_its_project();
        let record = sandbox.state_directory().join("project.yaml");
        let text = fs::read_to_string(&record).expect("readable");
        let elsewhere = text.lines().map(|line| match line.starts_with("device: ") {
            true => "device: 1\n".into(),
            false => format!("{line}\n"),
        });
        fs::write(&record, elsewhere.collect::<String>()).expect("written");
        clean(&sandbox, &[]).run().shows(str![[r#"
exit 0
kept STATE (1 tasks): PROJECT is missing, and its disk may only be unmounted
nothing to clean
"#]]);

        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        fs::remove_dir_all(sandbox.project()).expect("removed");
        clean(&sandbox, &[]).run().shows(str![[r#"
exit 0
kept STATE (1 tasks): a worker of its task 'x' is running
nothing to clean
"#]]);
    }

    #[test]
    fn replaced_state_and_only_old_trash_are_removed() {
        let sandbox = without_its_project();
        fs::create_dir(sandbox.project()).expect("made");
        let replaced = PathBuf::from(format!(
            "{}.replaced-0123456789abcdef",
            sandbox.state_directory().display()
        ));
        fs::rename(sandbox.state_directory(), &replaced).expect("renamed");
        let trash = sandbox.home().join(".dispatch/trash");
        for name in ["2020-01-01T00-00-00Z", "9000-01-01T00-00-00Z", "notes"] {
            fs::create_dir_all(trash.join(name)).expect("made");
        }
        // No other command empties the trash.
        sandbox.ok("dispatch-reconcile", &["clean"]);
        sandbox.ok("dispatch-config", &["brief"]);
        assert_eq!(names(&trash).len(), 3);
        let shown = confirm(&sandbox);
        assert!(shown.contains(": its directory was replaced"), "{shown}");
        assert!(!replaced.exists());
        let left = names(&trash);
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(!left.contains(&"2020-01-01T00-00-00Z".to_owned()), "{left:?}");
    }

    #[test]
    fn state_does_not_grow_with_hosts_and_killed_writers() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        for _ in 0..5 {
            let host = Host::new(&sandbox);
            let monitor = sandbox.call("dispatch-monitor", &["--timeout", "1ms"]);
            assert_eq!(host.calls(monitor).run().code, Some(3));
            host.die();
        }
        let own = Host::new(&sandbox);
        own.calls(sandbox.call("dispatch-monitor", &["--timeout", "1ms"])).run();
        assert_eq!(names(&sandbox.hosts()).len(), 1);

        let mut left = Vec::new();
        for place in ["", "x", "x/notes", "x/answers", "x/attempts", "x/attempts/1"] {
            let place = sandbox.state_directory().join(place);
            fs::create_dir_all(&place).expect("made");
            left.push(place.join(".001.k1ll3d.dispatch.tmp"));
            fs::write(left.last().expect("a path"), "half").expect("written");
        }
        sandbox.ok("dispatch-reconcile", &[]);
        let swept = |path: &PathBuf| assert!(!path.exists(), "{}", path.display());
        left.iter().for_each(swept);
    }
}
