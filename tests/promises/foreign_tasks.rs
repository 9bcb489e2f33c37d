//! A cloned repository or an archive may bring tasks along. The helpers run only tasks that they
//! dispatched for this user, and take nothing in a project's directory for the person's words.
//!
//! Longer than 500 lines because it has the table of moves, with what each makes the helpers say.

use std::fs;
use std::os::unix::ffi::OsStrExt;

use snapbox::str;

use crate::support::process::{all_of, end_all_of, kill_and_wait};
use crate::support::text::tree;
use crate::support::{Host, PLAN, Sandbox, binary, wait_until};

/// Makes every call that a host or its hook makes.
fn make_every_call(sandbox: &Sandbox) {
    let host = Host::new(sandbox);
    let calls: [(&str, &[&str]); 12] = [
        ("dispatch-config", &["brief"]),
        ("dispatch-reconcile", &["show", "x"]),
        ("dispatch-reconcile", &["statusline"]),
        ("dispatch-reconcile", &["clean"]),
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
    sandbox.run("dispatch-reconcile", &["adopt"]).shows(str![[r#"
exit 0
nothing to adopt in PROJECT
"#]]);
}

/// Plants a whole `.dispatch` with every name that a task has, as if from another machine.
fn plant(sandbox: &Sandbox) {
    sandbox.plan("x", PLAN);
    for name in ["token", "reports/x.md", "hosts/1.lock", "state/project.yaml", "config.yaml"] {
        let path = sandbox.project().join(".dispatch").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, "default: planted").expect("written");
    }
    let names = [
        "prompt.md",
        "context.md",
        "output.md",
        "tells/001",
        "ipc/001.question",
        "ipc/001.answer",
        "ipc/001.note",
        "ipc/.plan",
        "ipc/.told",
        "ipc/.done",
        "record.yaml",
        "task.yaml",
        "run.lock",
        "wait",
        "news",
        "notes/001",
        "answers/001",
        "attempts/1/prompt.md",
        "attempts/1/session",
    ];
    for name in names {
        let path = sandbox.project().join(".dispatch/tasks/x").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, "planted").expect("written");
    }
}

#[test]
fn planted_task_is_never_run_and_never_adopted() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    plant(&sandbox);
    let before = tree(&[sandbox.project()]);
    make_every_call(&sandbox);
    assert_eq!(tree(&[sandbox.project()]), before);
    assert_eq!(all_of(&sandbox.home()), [0; 0]);
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
no tasks in PROJECT
no task: .dispatch/tasks/x came along, was copied or is left over
"#]]);
    let brief = sandbox.ok("dispatch-config", &["brief"]);
    assert!(brief.contains("\nno task: .dispatch/tasks/x came along, was copied"), "{brief}");
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: 'x' is no task of yours
!   PROJECT/.dispatch/tasks/x: it came with the project, or was copied
!   next: move that directory away, or dispatch under another id
"#]]);
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: 'x' is no task of yours
!   PROJECT/.dispatch/tasks/x: it came with the project, or was copied
!   next: move that directory away, or dispatch under another id
"#]]);
    sandbox.run("dispatch-spawn", &["x"]).shows(str![[r#"
exit 73
! dispatch-spawn: 'x' has files of another task
!   PROJECT/.dispatch/tasks/x: it came with the project, or was copied
!   next: use 'x-2', or move that directory away
"#]]);
    assert_eq!(tree(&[sandbox.project()]), before);
    sandbox.dispatch("x-2", "idle");
    sandbox.wait_for_state("x-2", "running");
}

#[test]
fn every_single_planted_file_refuses_a_dispatch() {
    for name in ["prompt.md", "context.md", "tells/001", "notes/001", "ipc/001.answer", "lock"] {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.plan("x", PLAN);
        let path = sandbox.project().join(".dispatch/tasks/x").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, "planted").expect("written");
        assert_eq!(sandbox.run("dispatch-spawn", &["x"]).code, Some(73), "{name}");
    }
    // A host may have made these before the dispatch.
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    fs::create_dir_all(sandbox.task("x", "ipc")).expect("made");
    sandbox.ok("dispatch-spawn", &["x"]);
}

#[test]
fn answer_written_by_hand_does_not_restart_an_ended_worker() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ask.code, Some(75));
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked");
    sandbox.write("x", "ipc/001.answer", "This.\n");
    sandbox.ok("dispatch-reconcile", &[]);
    assert_eq!(sandbox.state("x"), "blocked");
    // The person's own answer restarts the worker.
    sandbox.ok("dispatch-monitor", &["--answer", "x", "That."]);
    sandbox.wait_for_state("x", "running");
    assert!(sandbox.read("x", "attempts/2/prompt.md").contains("The person answered: That.\n"));
}

#[test]
fn task_whose_directory_was_deleted_frees_its_id() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", "exit 0")]);
    sandbox.dispatch("x", "ends");
    sandbox.wait_for_state("x", "incomplete");
    sandbox.dispatch("y", "idle");
    wait_until("the supervisor of x has exited", || {
        fs::remove_dir_all(sandbox.project().join(".dispatch")).ok();
        let status = sandbox.ok("dispatch-reconcile", &[]);
        (!status.contains("x ")).then_some(())
    });
    // The running task stays listed and can be stopped.
    assert!(sandbox.ok("dispatch-reconcile", &[]).contains("\ny running"));
    assert!(sandbox.ok("dispatch-reconcile", &["stop", "y"]).starts_with("y stopped"));
    sandbox.dispatch("x", "idle");
    sandbox.wait_for_state("x", "running");
    assert!(!sandbox.task("x", "attempts/2").exists(), "the task is new");
}

/// A `.dispatch/tasks` in a shared parent must not capture the projects below it.
#[test]
fn shared_parent_outside_the_home_captures_no_project() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    let shared = sandbox.top().join("shared");
    fs::create_dir_all(shared.join("work")).expect("made");
    fs::create_dir_all(shared.join(".dispatch/tasks/x")).expect("made");
    let call = |args: &[&str]| sandbox.call("dispatch-reconcile", args).within(shared.join("work"));
    let status = call(&[]).run().ok();
    assert!(status.ends_with("/shared/work\n"), "{status}");
    // Subdirectories of a directory where this user dispatched a task belong to it.
    let spawn = sandbox.call("dispatch-spawn", &["y", "--plan", "-"]).input(PLAN).within(&shared);
    spawn.run().ok();
    assert!(call(&[]).run().ok().starts_with("y running"));
}

#[test]
fn end_of_an_attempt_is_not_changed_by_later_writes() {
    let sandbox = Sandbox::new();
    let worker = binary("dispatch-worker").display().to_string();
    let finishes = format!("w={worker}; $w tick 1; $w tick 2; $w finish 'All is well.'");
    sandbox.workers(&[("ends", "exit 0"), ("finishes", &finishes)]);
    sandbox.dispatch("left", "ends");
    sandbox.wait_for_state("left", "incomplete");
    // Another worker at full access could write this.
    sandbox.write("left", "plan.md", PLAN.replace("[ ]", "[x]"));
    sandbox.write("left", "ipc/.done", "Forged.");
    sandbox.write("left", "ipc/001.question", "Forged?");
    assert_eq!(sandbox.state("left"), "incomplete");

    sandbox.dispatch("over", "finishes");
    sandbox.wait_for_state("over", "done");
    wait_until("the end is recorded", || {
        sandbox.task("over", "attempts/1/exit").exists().then_some(())
    });
    sandbox.write("over", "plan.md", PLAN);
    fs::remove_file(sandbox.task("over", "ipc/.done")).expect("removed");
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
left incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn left --resume
over done 2/2 AGE finishes — "All is well."
"#]]);
}

#[test]
fn words_that_cannot_be_read_hide_no_end() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", "exit 0")]);
    sandbox.dispatch("x", "ends");
    sandbox.wait_for_state("x", "incomplete");
    sandbox.write("x", "attempts/1/words", "no JSON");
    let status = sandbox.ok("dispatch-reconcile", &["status"]);
    assert!(status.starts_with("x incomplete 0/2"), "{status}");

    // A plan whose every byte takes two as JSON is larger than what is read again.
    let plan = format!("{PLAN}{}\n", "\"".repeat(40 << 20));
    let big = sandbox.top().join("big");
    fs::write(&big, plan).expect("written");
    sandbox.workers(&[("grows", &format!("cp {} \"$DISPATCH_TASK_DIR/plan.md\"", big.display()))]);
    sandbox.dispatch("y", "grows");
    wait_until("the end is recorded", || {
        sandbox.task("y", "attempts/1/exit").exists().then_some(())
    });
    assert_eq!(
        sandbox.state("y"),
        "incomplete: the plan and the questions are too large to be kept"
    );
}

#[test]
fn plan_that_came_with_the_repository_needs_the_persons_word() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    sandbox.git(&["add", "--force", ".dispatch/tasks/x/plan.md"]);
    sandbox.run("dispatch-spawn", &["x", "--model", "idle"]).shows(str![[r#"
exit 65
! dispatch-spawn: git tracks the plan of 'x'
!   PROJECT/.dispatch/tasks/x/plan.md came with the repository
!   next: read it, then dispatch it with --plan PROJECT/.dispatch/tasks/x/plan.md
"#]]);
    let plan = sandbox.task("x", "plan.md").display().to_string();
    sandbox.run("dispatch-spawn", &["x", "--model", "idle", "--plan", &plan]).shows(str![[r#"
exit 0
x (Title, 2 items) started with idle. Tell the user and stop; news wakes you.
"#]]);
}

#[test]
fn git_file_of_an_archive_claims_no_other_repository() {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let archive = sandbox.home().join("archive");
    fs::create_dir(&archive).expect("made");
    fs::write(archive.join(".git"), format!("gitdir: {}/.git\n", sandbox.project().display()))
        .expect("written");
    let status = |directory: &std::path::Path| {
        sandbox.call("dispatch-reconcile", &[]).within(directory).run().ok()
    };
    assert!(status(&archive).starts_with("no tasks in "));
    // A linked worktree of the person belongs to the project.
    let linked = sandbox.home().join("linked");
    sandbox.git(&["worktree", "add", "-q", linked.to_str().expect("UTF-8")]);
    assert!(status(&linked).starts_with("x running"));
}

#[test]
fn home_behind_a_symlink_with_dotfiles_holds_no_tasks() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.program("git").args(&["init", "-q"]).within(sandbox.home()).run().ok();
    let link = sandbox.top().join("link");
    std::os::unix::fs::symlink(sandbox.home(), &link).expect("linked");
    sandbox.plan("x", PLAN);
    let spawn = sandbox.call("dispatch-spawn", &["x"]).env("HOME", &link);
    spawn.within(link.join("project")).run().ok();
    // The end of the sandbox looks for processes of its home by the other name.
    end_all_of(&link);
    assert!(!sandbox.home().join(".dispatch/tasks").exists());
}

#[test]
fn state_can_lie_on_another_volume() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    let volume = sandbox.top().join("volume");
    let call =
        |helper: &str, args: &[&str]| sandbox.call(helper, args).env("DISPATCH_STATE", &volume);
    call("dispatch-spawn", &["x"]).run().ok();
    assert!(call("dispatch-reconcile", &[]).run().ok().starts_with("x running"));
    assert!(!sandbox.home().join(".dispatch/state").exists());
    assert_eq!(call("dispatch-reconcile", &["stop", "x"]).run().ok(), "x stopped\n");
}

#[test]
fn path_that_is_not_utf8_is_refused_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    let project = sandbox.home().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&project).expect("made");
    let spawn = sandbox.call("dispatch-spawn", &["x", "--plan", "-"]).input(PLAN).within(&project);
    let ran = spawn.run();
    assert_eq!(ran.code, Some(65), "{ran:?}");
    assert!(ran.err.contains("next: rename the directory"), "{ran:?}");
    assert_eq!(fs::read_dir(&project).expect("there").count(), 0);
}

#[test]
fn relative_home_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    sandbox.call("dispatch-spawn", &["x"]).env("HOME", "home").run().shows(str![[r#"
exit 65
! dispatch-spawn: HOME is not an absolute path
!   it is "home"
!   next: set HOME to the absolute path of your home directory
"#]]);
}

/// The behaviour of the helpers where a project's directory is not the one in which its tasks were
/// dispatched: the table of moves, and then `adopt`.
mod moved {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use snapbox::data::Inline;
    use snapbox::str;

    use crate::support::made::own;
    use crate::support::process::all_of;
    use crate::support::terminal::Terminal;
    use crate::support::text::tree;
    use crate::support::{PLAN, Ran, Sandbox, binary, wait_until};
    use dispatch::process::Identity;

    /// A project with a task that ended, and one that waits for its supervisor.
    fn project() -> Sandbox {
        let sandbox = Sandbox::with_git();
        sandbox.workers(&[("ends", "exit 0")]);
        sandbox.queued("later", "idle");
        sandbox.plan("ended", PLAN);
        sandbox.ok("dispatch-spawn", &["ended", "--model", "ends"]);
        sandbox.wait_for_state("ended", "incomplete");
        wait_until("no process runs", || all_of(&sandbox.home()).is_empty().then_some(()));
        sandbox
    }

    #[track_caller]
    fn status(sandbox: &Sandbox, directory: &Path) -> Ran {
        let ran = sandbox.call("dispatch-reconcile", &[]).within(directory).run();
        assert_eq!(all_of(&sandbox.home()), [0; 0], "no worker was started: {}", ran.out);
        ran
    }

    /// Confirms `adopt` at a terminal and returns the screen's text.
    fn adopt(sandbox: &Sandbox, directory: &Path) -> String {
        let call = sandbox.call("dispatch-reconcile", &["adopt"]).within(directory);
        let mut terminal = Terminal::run(call.env("DISPATCH_FAIL", "callers"));
        let mut shown = terminal.read_until("? [y/N] ");
        terminal.write("y\n");
        shown.push_str(&terminal.read_until("Done.\r\n"));
        assert!(terminal.status().success(), "{shown}");
        shown
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("made");
        let call = std::process::Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status();
        assert!(call.expect("cp").success(), "{}", from.display());
    }

    fn renamed(sandbox: &Sandbox) -> PathBuf {
        let other = sandbox.home().join("other");
        fs::rename(sandbox.project(), &other).expect("renamed");
        fs::create_dir(sandbox.project()).expect("for the calls of the test");
        other
    }

    /// Removes the project for good; the next directory at its path has another inode.
    fn remove(sandbox: &Sandbox) {
        fs::rename(sandbox.project(), sandbox.top().join("removed")).expect("removed");
    }

    /// A change of a project's directory.
    struct Row {
        name: &'static str,
        /// Does it, and returns the directory from which the person looks.
        change: fn(&Sandbox) -> PathBuf,
        /// The output of `status` then.
        status: Inline,
        /// The output of `adopt` without a person.
        adopt: Inline,
        /// The output of `status` after a person adopted the tasks.
        adopted: Inline,
    }

    #[test]
    fn table_of_moves() {
        let rows = [
            Row {
                name: "renamed",
                change: renamed,
                status: str![[r#"
exit 0
project: it was moved from PROJECT/.git; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "moved to another file system",
                change: |sandbox| {
                    let other = sandbox.home().join("other");
                    copy(&sandbox.project(), &other);
                    remove(sandbox);
                    fs::create_dir(sandbox.project()).expect("for the calls of the test");
                    other
                },
                status: str![[r#"
exit 0
project: it was moved from PROJECT/.git; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "copied",
                change: |sandbox| {
                    copy(&sandbox.project(), &sandbox.home().join("copy"));
                    sandbox.home().join("copy")
                },
                status: str![[r#"
exit 0
project: it is a copy of PROJECT/.git; no task starts by itself → dispatch-reconcile adopt
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "cloned again at the same path",
                change: |sandbox| {
                    let bare = sandbox.top().join("bare");
                    sandbox
                        .program("git")
                        .args(&["clone", "-q", "--bare", "."])
                        .arg(&bare)
                        .run()
                        .ok();
                    remove(sandbox);
                    let clone = sandbox.program("git").within(sandbox.top()).args(&["clone", "-q"]);
                    clone.arg(&bare).arg(sandbox.project()).run().ok();
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt later=write
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "a new repository under the old name",
                change: |sandbox| {
                    remove(sandbox);
                    fs::create_dir(sandbox.project()).expect("made");
                    sandbox.git(&["init", "-q"]);
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt later=write
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "a new directory under the old name",
                change: |sandbox| {
                    remove(sandbox);
                    fs::create_dir(sandbox.project()).expect("made");
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt later=write
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "its .git was deleted",
                change: |sandbox| {
                    fs::remove_dir_all(sandbox.project().join(".git")).expect("removed");
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: its .git was deleted; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "git clean -fdx",
                change: |sandbox| {
                    sandbox.git(&["clean", "-qfdx"]);
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: its .dispatch was deleted; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt later=write
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "git stash -a",
                change: |sandbox| {
                    sandbox.git(&["stash", "-qa"]);
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: its .dispatch was deleted; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt later=write
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "a restored backup",
                change: |sandbox| {
                    copy(&sandbox.project(), &sandbox.top().join("backup"));
                    remove(sandbox);
                    copy(&sandbox.top().join("backup"), &sandbox.project());
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "another machine's files: project and home came over",
                change: |sandbox| {
                    let record = sandbox.state_directory().join("project.yaml");
                    let text = fs::read_to_string(&record).expect("there");
                    let inode = fs::metadata(sandbox.project().join(".git")).expect("there").ino();
                    let other = text.replace(&format!("inode: {inode}"), "inode: 1");
                    fs::write(record, other).expect("written");
                    sandbox.project()
                },
                status: str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]],
                adopt: str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own, or let Claude Code ask (install.sh --allow): dispatch-reconcile adopt ended=full later=write
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]],
                adopted: str![[r#"
exit 0
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later running 0/2 1h idle — item 1: First
"#]],
            },
            Row {
                name: "another machine's files: only the project came over",
                change: |sandbox| {
                    let state = sandbox.home().join(".dispatch/state");
                    fs::rename(state, sandbox.top().join("elsewhere")).expect("moved");
                    sandbox.project()
                },
                status: str![[r#"
exit 0
no tasks in PROJECT
no task: .dispatch/tasks/ended and 1 more came along, was copied or is left over
"#]],
                adopt: str![[r#"
exit 0
nothing to adopt in PROJECT
"#]],
                adopted: str![[r#"
exit 0
no tasks in PROJECT
no task: .dispatch/tasks/ended and 1 more came along, was copied or is left over
"#]],
            },
        ];
        for row in rows {
            eprintln!("row: {}", row.name);
            let sandbox = project();
            let directory = (row.change)(&sandbox);
            status(&sandbox, &directory).shows(row.status);
            let call = || sandbox.call("dispatch-reconcile", &["adopt"]).within(&directory);
            let listed = call().run();
            let asks = listed.code == Some(64);
            listed.shows(row.adopt);
            if asks {
                adopt(&sandbox, &directory);
                assert_eq!(all_of(&sandbox.home()), [0; 0], "{}: adopt starts nothing", row.name);
            }
            // The waiting task starts by itself now.
            let look = || sandbox.call("dispatch-reconcile", &[]).within(&directory).run();
            wait_until("the waiting task starts", || {
                (!asks || look().out.contains("later running")).then_some(())
            });
            look().shows(row.adopted);
        }
    }

    /// A worker's process that this machine cannot see is judged by the run lock, which its supervisor
    /// holds in every container and on every machine.
    #[test]
    fn table_of_processes_elsewhere() {
        let other = || "other".to_owned();
        let container = || Identity { machine: "far-2".into(), namespace: Some(other()), ..own() };
        let machine = || Identity { machine: "far-1".into(), boot: other(), ..own() };
        let restarted = Identity { boot: other(), ..own() };
        for (name, worker, is_held, status, stopped) in [
            (
                "a live worker in another container",
                container(),
                true,
                str![[r#"
exit 0
x running 0/2 1h idle — item 1: First
"#]],
                str![[r#"
exit 75
! dispatch-reconcile: the worker of 'x' is out of reach
!   it runs in another container, or on another machine (far-2)
!   next: call there: dispatch-reconcile stop x
"#]],
            ),
            (
                "a container that was built again",
                container(),
                false,
                str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
"#]],
                str![[r#"
exit 0
x has ended already: lost
"#]],
            ),
            (
                "a live worker on another machine",
                machine(),
                true,
                str![[r#"
exit 0
x running 0/2 1h idle — item 1: First
"#]],
                str![[r#"
exit 75
! dispatch-reconcile: the worker of 'x' is out of reach
!   it runs in another container, or on another machine (far-1)
!   next: call there: dispatch-reconcile stop x
"#]],
            ),
            (
                "a home that came from another machine",
                machine(),
                false,
                str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
"#]],
                str![[r#"
exit 0
x has ended already: lost
"#]],
            ),
            (
                "a machine that was started again",
                restarted,
                false,
                str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
"#]],
                str![[r#"
exit 0
x has ended already: lost
"#]],
            ),
        ] {
            eprintln!("row: {name}");
            let sandbox = Sandbox::new();
            sandbox.workers(&[]);
            sandbox.worked_at("x", "idle", &worker);
            sandbox.write("x", "run.lock", serde_json::to_string(&worker).expect("JSON"));
            let lock = fs::File::open(sandbox.task("x", "run.lock")).expect("there");
            if is_held {
                lock.lock().expect("free");
            }
            sandbox.run("dispatch-reconcile", &[]).shows(status);
            sandbox.run("dispatch-reconcile", &["stop", "x"]).shows(stopped);
        }
    }

    #[test]
    fn waiting_task_whose_supervisor_died_elsewhere_can_be_stopped() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.queued("x", "idle");
        const STOPPED: &str = "x stopped; its supervisor was dead, and no process is left\n";
        let supervisor = Identity { namespace: Some("other".into()), ..own() };
        sandbox.write("x", "run.lock", serde_json::to_string(&supervisor).expect("JSON"));
        assert_eq!(sandbox.ok("dispatch-reconcile", &["stop", "x"]), STOPPED);
    }

    /// A worker can call `git init`, or delete everything that names its project.
    #[test]
    fn git_init_and_its_end_hide_no_running_task() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        sandbox.git(&["init", "-q"]);
        assert_eq!(sandbox.state("x"), "running");
        sandbox.dispatch("y", "idle");
        fs::remove_dir_all(sandbox.project().join(".git")).expect("removed");
        assert_eq!(sandbox.state("y"), "running");

        let sandbox = Sandbox::with_git();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        fs::remove_file(sandbox.project().join(".git/HEAD")).expect("removed");
        assert_eq!(sandbox.state("x"), "running");
        for name in [".git", ".dispatch"] {
            fs::remove_dir_all(sandbox.project().join(name)).expect("removed");
            assert!(sandbox.ok("dispatch-reconcile", &[]).contains("x running"), "{name}");
        }
        assert_eq!(sandbox.ok("dispatch-reconcile", &["stop", "x"]), "x stopped\n");
    }

    #[test]
    fn project_is_another_one_for_another_home() {
        let sandbox = project();
        let home = sandbox.top().join("elsewhere");
        fs::create_dir(&home).expect("made");
        let call = |args: &[&str]| sandbox.call("dispatch-reconcile", args).env("HOME", &home);
        for (args, said) in [(&[][..], "no tasks in"), (&["adopt"], "nothing to adopt in")] {
            let ran = call(args).run().ok();
            assert!(ran.starts_with(&format!("{said} {}\n", sandbox.project().display())), "{ran}");
        }
    }

    #[test]
    fn moved_project_starts_nothing_until_a_person_adopts_it() {
        let sandbox = project();
        let broken = sandbox.state_directory().join("broken/attempts/1");
        let other = renamed(&sandbox);
        let call = |helper: &str, args: &[&str]| sandbox.call(helper, args).within(&other);
        call("dispatch-spawn", &["ended", "--resume"]).run().shows(str![[r#"
exit 65
! dispatch-spawn: this project was moved after its tasks were dispatched
!   from PROJECT/.git
!   next: to take its tasks over, run: dispatch-reconcile adopt
"#]]);
        // A task that has lost its record is no candidate, and stays where it is.
        fs::create_dir_all(&broken).expect("made");
        assert!(adopt(&sandbox, &other).contains("Take over 2 task(s) into"));
        assert!(broken.is_dir());
        call("dispatch-spawn", &["ended", "--resume"]).run().ok();
        let shown = call("dispatch-reconcile", &["show", "ended", "--json"]).run().ok();
        assert!(shown.contains(&format!("{}/.dispatch/tasks/ended", other.display())), "{shown}");
    }

    #[test]
    fn original_of_an_adopted_copy_keeps_its_tasks() {
        let sandbox = project();
        sandbox.plan("tree", PLAN);
        sandbox.ok("dispatch-spawn", &["tree", "--model", "ends", "--worktree"]);
        sandbox.wait_for_state("tree", "incomplete");
        let all = || {
            let worktrees = tree(&[sandbox.home().join(".dispatch/worktrees")]);
            (worktrees, sandbox.git(&["branch", "--list", "dispatch/*"]))
        };
        let before = all();
        let other = sandbox.home().join("copy");
        copy(&sandbox.project(), &other);
        let clean = || sandbox.call("dispatch-reconcile", &["clean", "tree"]).within(&other).run();
        clean();
        assert!(
            adopt(&sandbox, &other).contains("tree (incomplete, ends, full): stays, its worktree")
        );
        clean();
        assert_eq!(all(), before, "the worktree of the original");
        assert!(sandbox.ok("dispatch-reconcile", &[]).contains("ended incomplete"));
        assert_eq!(sandbox.state("later"), "running");
    }

    /// The prompt of the host's ask rule shows the person each task with its access.
    #[test]
    fn ask_rule_of_the_host_is_a_person_for_the_call_that_it_shows() {
        let sandbox = project();
        let other = renamed(&sandbox);
        let adopt = format!("\"{}\" adopt", binary("dispatch-reconcile").display());
        let call = |options: &str, command: &str| {
            sandbox.by_claude(options, &command.replace("ADOPT", &adopt)).within(&other)
        };
        let named = "ADOPT ended=full later=write";
        let refused = call("", named).run();
        assert_eq!(refused.code, Some(64), "no rule is in place: {refused:?}");
        let bin = binary("dispatch-config").parent().expect("a directory").display().to_string();
        sandbox.ok("dispatch-config", &["allow", "--yes", "--bin", &bin]);
        fs::write(
            other.join("script"),
            named.replace("ADOPT", &format!("{bin}/dispatch-reconcile adopt")),
        )
        .expect("written");
        for (options, command, code) in [
            ("", "ADOPT", 64),
            ("", "sh script", 64),
            ("--setting-sources project", named, 64),
            ("", "ADOPT ended=read later=write", 65),
            ("", "ADOPT ended=full", 65),
        ] {
            let ran = call(options, command).run();
            assert_eq!(ran.code, Some(code), "{options} {command}: {ran:?}");
            assert!(status(&sandbox, &other).out.starts_with("project: it was moved"));
        }
        let other_settings =
            call("", named).env("CLAUDE_CONFIG_DIR", sandbox.home().join(".claude"));
        assert_eq!(other_settings.run().code, Some(64));
        call("", named).run().shows(str![[r#"
exit 0
ended (incomplete, ends, full)
later (queued, idle, write): it will start
Done.
"#]]);
        let after = sandbox.call("dispatch-reconcile", &["statusline"]).within(&other).run().ok();
        assert!(!after.contains("adopt"), "{after}");
    }

    /// A CLI can open a pseudo-terminal with `script`, so a terminal alone proves no person.
    #[test]
    fn known_cli_that_opens_a_terminal_cannot_adopt() {
        let sandbox = project();
        let other = renamed(&sandbox);
        let adopt = format!("{} adopt", binary("dispatch-reconcile").display());
        let cli = sandbox.script("claude", &format!("{adopt}; echo ended\n"));
        let cli = sandbox.program("sh").args(&["-c", &format!("{cli}; :")]).within(&other);
        let cli = cli.env("DISPATCH_FAIL", "");
        let mut terminal = Terminal::run(cli);
        let shown = terminal.read_until("ended\r\n");
        assert!(shown.contains("only a person may do this\n  Claude Code called this"), "{shown}");
    }

    #[test]
    fn running_task_of_a_moved_project_can_be_stopped() {
        let sandbox = Sandbox::with_git();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        let other = renamed(&sandbox);
        let call = |helper: &str, args: &[&str]| sandbox.call(helper, args).within(&other);
        call("dispatch-reconcile", &["adopt"]).run().shows(str![[r#"
exit 75
! dispatch-reconcile: 'x' is running
!   its supervisor works at the project's old place
!   next: wait for its end, or stop it: dispatch-reconcile stop x
x (running, idle, full): stays, its worker is running
"#]]);
        assert_eq!(call("dispatch-reconcile", &["stop", "x"]).run().ok(), "x stopped\n");
        wait_until("no process runs", || all_of(&sandbox.home()).is_empty().then_some(()));
        adopt(&sandbox, &other);
        call("dispatch-spawn", &["x", "--resume"]).run().ok();
    }

    /// A demo, a CI checkout or a scratch directory is made again and again at the same path.
    #[test]
    fn directory_that_was_made_again_dispatches_once_nothing_runs() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.dispatch("x", "idle");
        fs::remove_dir_all(sandbox.project()).expect("removed");
        // The new directory must not reuse the inode of the old one.
        fs::create_dir(sandbox.home().join("between")).expect("made");
        fs::create_dir(sandbox.project()).expect("made");
        sandbox.plan("y", PLAN);
        sandbox.run("dispatch-spawn", &["y"]).shows(str![[r#"
exit 65
! dispatch-spawn: another directory is in the place of the project
!   PROJECT is not the one in which its tasks were dispatched
!   next: to take its tasks over, run: dispatch-reconcile adopt
"#]]);
        sandbox.ok("dispatch-reconcile", &["stop", "x"]);
        wait_until("no process runs", || all_of(&sandbox.home()).is_empty().then_some(()));
        sandbox.ok("dispatch-spawn", &["y"]);
        assert!(sandbox.ok("dispatch-reconcile", &[]).starts_with("y running"));
    }
}
