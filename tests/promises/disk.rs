//! Which files dispatch writes, where, and who may read them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use snapbox::str;

use crate::support::process::runs;
use crate::support::text::{listing, names, same};
use crate::support::{Host, PLAN, Sandbox, wait_until};

/// Dispatches 'x' with every file that a task can have, and waits for its end.
fn finished(sandbox: &Sandbox) {
    sandbox.workers(&[]);
    let host = Host::new(sandbox);
    let spawn = host.calls(sandbox.call("dispatch-spawn", &["x", "--plan", "-"]));
    spawn.input(PLAN).run().ok();
    sandbox.ok("dispatch-reconcile", &["note", "x", "Mind the gap."]);
    let ask = sandbox.worker("x", &["ask", "Which?"]).start();
    let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}");
    assert_eq!(hook.run().code, Some(2));
    host.calls(sandbox.call("dispatch-monitor", &["--answer", "x", "This."])).run().ok();
    ask.end().ok();
    for step in [
        &["tell", "Careful."][..],
        &["tick", "1"],
        &["tick", "2"],
        &["report", "All is well."],
        &["finish", "Done."],
    ] {
        sandbox.worker("x", step).run().ok();
    }
    crate::support::process::kill_and_wait(sandbox.worker_of("x", 1));
    wait_until("the supervisor to end", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    host.calls(sandbox.call("dispatch-config", &["brief"])).run().ok();
}

#[test]
fn finished_task_leaves_only_private_files() {
    let sandbox = Sandbox::with_git();
    finished(&sandbox);
    let hosts = sandbox.hosts();
    // Each host process has a lock and an index, named by its identity.
    assert_eq!(names(&hosts).len(), 2);
    same(
        &listing(&sandbox.project().join(".dispatch")),
        str![[r#"
700 tasks/
700 tasks/x/
700 tasks/x/ipc/
600 tasks/x/ipc/.001.asked
600 tasks/x/ipc/.done
600 tasks/x/ipc/.plan
600 tasks/x/ipc/.told
600 tasks/x/ipc/001.answer
600 tasks/x/ipc/001.done
600 tasks/x/ipc/001.note
600 tasks/x/ipc/001.question
600 tasks/x/lock
600 tasks/x/output.md
600 tasks/x/plan.md
600 tasks/x/prompt.md
700 tasks/x/tells/
600 tasks/x/tells/001
600 token

"#]],
    );
}

#[test]
fn dispatch_writes_only_to_the_project_and_its_home() {
    let sandbox = Sandbox::with_git();
    finished(&sandbox);
    assert_eq!(names(&sandbox.temporary()), [""; 0]);
    assert_eq!(names(&sandbox.home()), [".dispatch", ".gitconfig", "project"]);
    assert_eq!(names(&sandbox.home().join(".dispatch")), ["config.yaml", "state"]);
    assert_eq!(names(&sandbox.project()), [".dispatch", ".git", "README"]);
    assert_eq!(sandbox.git(&["status", "--porcelain"]), "", "git must not see .dispatch");
}

#[test]
fn plan_of_finished_task_keeps_its_form() {
    let sandbox = Sandbox::new();
    finished(&sandbox);
    same(
        &sandbox.read("x", "plan.md"),
        str![[r#"
# Title

- [x] First
- [x] Second

## Context
Just do it.

> **Note from dispatcher:** Mind the gap.

"#]],
    );
}

#[test]
fn ledger_has_one_line_for_each_event_and_step() {
    let sandbox = Sandbox::new();
    finished(&sandbox);
    let news = sandbox.redactions().apply(&sandbox.read("x", "news"));
    let host = regex::Regex::new("[0-9]+@[0-9]+").expect("a regex");
    same(
        &host.replace_all(&news, "HOST"),
        str![[r#"
TIME delivered #ID question/001/155251c1 HOST
TIME delivered #ID tell/001 HOST
TIME delivered #ID end/1/done HOST
TIME acknowledged #ID
TIME acknowledged #ID

"#]],
    );
}

/// The host writes the plan with its own tool, which makes readable directories.
#[test]
fn directory_made_by_the_host_becomes_private() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let mode = fs::metadata(sandbox.project().join(".dispatch")).expect("there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o700);
}

fn excluded(git: &Path) -> String {
    fs::read_to_string(git.join("info/exclude")).expect("the exclude file")
}

#[test]
fn git_excludes_dispatch_exactly_once() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    let exclude = sandbox.project().join(".git/info/exclude");
    fs::write(&exclude, "*.log").expect("written");
    sandbox.dispatch("x", "idle");
    sandbox.dispatch("y", "idle");
    assert_eq!(excluded(&sandbox.project().join(".git")), "*.log\n.dispatch/\n");
    for known in [".dispatch", "/.dispatch/", "  .dispatch/  "] {
        fs::write(&exclude, format!("# mine\n{known}\n")).expect("written");
        let id = format!("z{}", known.trim().len());
        sandbox.dispatch(&id, "idle");
        assert_eq!(excluded(&sandbox.project().join(".git")), format!("# mine\n{known}\n"));
    }
    fs::remove_dir_all(sandbox.project().join(".git/info")).expect("removed");
    sandbox.dispatch("w", "idle");
    assert_eq!(excluded(&sandbox.project().join(".git")), ".dispatch/\n");
}

#[test]
fn linked_worktree_shares_the_project_of_its_main_checkout() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("where", "pwd >here")]);
    sandbox.git(&["worktree", "add", "-q", "../linked"]);
    let linked = sandbox.home().join("linked");
    let spawn = sandbox.call("dispatch-spawn", &["x", "--model", "where", "--plan", "-"]);
    spawn.within(&linked).input(PLAN).run().ok();
    sandbox.wait_for_state("x", "incomplete");
    assert!(excluded(&sandbox.project().join(".git")).ends_with("\n.dispatch/\n"));
    assert_eq!(names(&linked), [".git", "README", "here"]);
    let here = fs::read_to_string(linked.join("here")).expect("written");
    assert_eq!(Path::new(here.trim()), linked);
}

/// The working directory of a worker that is dispatched from a directory.
#[track_caller]
fn works_in(sandbox: &Sandbox, id: &str, directory: &Path) -> PathBuf {
    let spawn = sandbox.call("dispatch-spawn", &[id, "--model", "where", "--plan", "-"]);
    spawn.within(directory).input(PLAN).run().ok();
    sandbox.wait_for_state(id, "incomplete");
    sandbox.read(id, "attempts/1/log").trim().into()
}

#[test]
fn worker_dispatched_from_subdirectory_works_there() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("where", "pwd -P")]);
    let below = sandbox.project().join("src/deep");
    fs::create_dir_all(&below).expect("made");
    assert_eq!(works_in(&sandbox, "x", &below), below);
    assert_eq!(names(&below), [""; 0]);
    let spawn = sandbox.call("dispatch-spawn", &["y", "--model", "where", "--plan", "-"]);
    spawn.arg("-C").arg(&below).input(PLAN).run().ok();
    sandbox.wait_for_state("y", "incomplete");
    assert_eq!(Path::new(sandbox.read("y", "attempts/1/log").trim()), below);
}

#[test]
fn project_outside_git_is_the_nearest_directory_with_tasks() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("where", "pwd -P")]);
    let below = sandbox.project().join("notes");
    fs::create_dir_all(&below).expect("made");
    assert_eq!(works_in(&sandbox, "x", &sandbox.project()), sandbox.project());
    assert_eq!(works_in(&sandbox, "y", &below), below);
    assert_eq!(names(&below), [""; 0]);
    assert_eq!(names(&sandbox.project()), [".dispatch", "notes"]);
}

/// Some sandboxes, Codex's for one, leave an empty `.git` behind.
#[test]
fn empty_git_directory_is_no_repository() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("where", "pwd -P")]);
    works_in(&sandbox, "x", &sandbox.project());
    let below = sandbox.project().join("notes");
    fs::create_dir_all(below.join(".git")).expect("made");
    works_in(&sandbox, "y", &below);
    assert_eq!(names(&below.join(".git")), [""; 0]);
}

/// The directory of the config is never a project.
#[test]
fn home_directory_is_no_project_for_directories_below() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    fs::create_dir_all(sandbox.home().join(".dispatch/tasks")).expect("made");
    sandbox.dispatch("x", "idle");
    assert_eq!(names(&sandbox.home().join(".dispatch/tasks")), [""; 0]);
    assert!(sandbox.task("x", "record.yaml").is_file());
}

#[test]
fn worker_finds_its_task_from_any_directory() {
    let sandbox = Sandbox::new();
    let helper = crate::support::binary("dispatch-worker").display().to_string();
    sandbox.workers(&[(
        "walks",
        &format!("cd / && {helper} tick 1 && {helper} tick 2 && {helper} finish Fine."),
    )]);
    sandbox.dispatch("x", "walks");
    sandbox.wait_for_state("x", "done");
    assert_eq!(sandbox.read("x", "ipc/.done"), "Fine.\n");
}

/// A worker ends on a full disk of half a megabyte. Runs `$1` before the disk is full, and `$2` after
/// the worker's end.
const FULL: &str = r#"
set -e
state=$HOME/.dispatch/state
mkdir "$state" && mount -t tmpfs -o size=512k none "$state"
mkdir -p .dispatch/tasks/x && printf -- '- [ ] One\n' >.dispatch/tasks/x/plan.md
"$BIN/dispatch-spawn" x --model ends
worker=$(echo "$state"/*/x/attempts/1)
pid=$(sed -n 's/^pid: //p' $worker/identity)
eval "$1"
! head -c 1000000 /dev/zero >"$state/fill" 2>/dev/null
touch go
while kill -0 "$pid" 2>/dev/null; do :; done
eval "$2"
until [ -e $worker/exit ]; do :; done
"$BIN/dispatch-reconcile" show x | head -n 2
"#;

/// The output of [`FULL`]; `None` if this system does not let a test mount.
fn on_a_full_disk(before: &str, after: &str) -> Option<String> {
    let sandbox = Sandbox::new();
    let mounts = sandbox.program("unshare").args(&["-rm", "true"]).run();
    if mounts.code != Some(0) {
        assert!(std::env::var_os("CI").is_none(), "{}", mounts.err);
        eprintln!("SKIPPED: no mount namespace: {}", mounts.err);
        return None;
    }
    sandbox.workers(&[("ends", "until [ -e go ]; do sleep 0.1; done; exit 7")]);
    let bin = crate::support::binary("dispatch-spawn").parent().expect("a directory");
    let script = sandbox.program("unshare").args(&["-rm", "sh", "-c", FULL, "sh", before, after]);
    let said = script.env("BIN", bin).run().ok();
    Some(sandbox.redactions().apply(&said))
}

#[test]
fn exit_is_recorded_on_a_full_disk() {
    let Some(said) = on_a_full_disk("", "") else { return };
    same(
        &said,
        str![[r#"
x (1 item) started with ends. Tell the user and stop; news wakes you.
x — no title
failed (exit code 7), ends, AGE

"#]],
    );
}

#[test]
fn exit_is_recorded_once_a_full_disk_has_space() {
    let still = "[ ! -e $worker/exit ] && \"$BIN/dispatch-reconcile\"; rm $state/fill";
    let Some(said) = on_a_full_disk("rm $worker/prompt.md", still) else { return };
    same(
        &said,
        str![[r#"
x (1 item) started with ends. Tell the user and stop; news wakes you.
x running 0/1 AGE ends — item 1: One
x — no title
failed (exit code 7), ends, AGE

"#]],
    );
}
