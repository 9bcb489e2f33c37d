//! A cloned repository or an archive may bring tasks along. The helpers run only tasks that they
//! dispatched for this user, and take nothing in a project's directory for the person's words.

use std::fs;

use snapbox::str;

use crate::support::process::{all_of, kill_and_wait};
use crate::support::text::tree;
use crate::support::{Host, PLAN, Sandbox, binary, wait_until};

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

/// Plants a task directory with every name that a task has, as if from another machine.
fn plant(sandbox: &Sandbox) {
    sandbox.plan("x", PLAN);
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
    fs::write(sandbox.task("x", "ipc/001.answer"), "This.\n").expect("written");
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
/// dispatched: each row of the table, and then `adopt`.
mod moved {
    use std::fs;
    use std::path::{Path, PathBuf};

    use snapbox::str;

    use crate::support::process::all_of;
    use crate::support::terminal::Terminal;
    use crate::support::{PLAN, Ran, Sandbox, binary, wait_until};

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

    fn renamed(sandbox: &Sandbox) -> PathBuf {
        let other = sandbox.home().join("other");
        fs::rename(sandbox.project(), &other).expect("renamed");
        fs::create_dir(sandbox.project()).expect("for the calls of the test");
        other
    }

    #[test]
    fn moved_project_starts_nothing_until_a_person_adopts_it() {
        let sandbox = project();
        let broken = sandbox.state_directory().join("broken/record.yaml");
        let other = renamed(&sandbox);
        status(&sandbox, &other).shows(str![[r#"
exit 0
project: it was moved from PROJECT/.git; no task starts by itself → dispatch-reconcile adopt
ended incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn ended --resume
later queued 0/2 1h idle
"#]]);
        let call = |helper: &str, args: &[&str]| sandbox.call(helper, args).within(&other);
        call("dispatch-spawn", &["ended", "--resume"]).run().shows(str![[r#"
exit 65
! dispatch-spawn: this project was moved after its tasks were dispatched
!   from PROJECT/.git
!   next: to take its tasks over, run: dispatch-reconcile adopt
"#]]);
        call("dispatch-reconcile", &["adopt"]).run().shows(str![[r#"
exit 64
! dispatch-reconcile: only a person may do this
!   there is no terminal
!   next: call it in a terminal of your own
ended (incomplete, ends, full)
later (queued, idle, write): it will start
"#]]);
        // A task that has lost its record is no candidate, and stays where it is.
        fs::create_dir_all(broken.with_file_name("attempts/1")).expect("made");
        assert!(adopt(&sandbox, &other).contains("Take over 2 task(s) into"));
        assert!(broken.with_file_name("attempts/1").is_dir());
        assert_eq!(all_of(&sandbox.home()), [0; 0], "adopt starts nothing");
        call("dispatch-spawn", &["ended", "--resume"]).run().ok();
        let shown = call("dispatch-reconcile", &["show", "ended", "--json"]).run().ok();
        assert!(shown.contains(&format!("{}/.dispatch/tasks/ended", other.display())), "{shown}");
    }

    /// A CLI can open a pseudo-terminal with `script`, so a terminal alone proves no person.
    #[test]
    fn known_cli_that_opens_a_terminal_cannot_adopt() {
        let sandbox = project();
        let other = renamed(&sandbox);
        let adopt = format!("{} adopt", binary("dispatch-reconcile").display());
        let cli = sandbox.script("claude", &format!("{adopt}; echo ended\n"));
        let cli = sandbox.program("sh").args(&["-c", &format!("{cli}; :")]).within(&other);
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

    #[test]
    fn copy_of_a_project_has_no_tasks_until_a_person_adopts_them() {
        let sandbox = project();
        let copy = sandbox.home().join("copy");
        sandbox.program("cp").arg("-r").arg(sandbox.project()).arg(&copy).run().ok();
        status(&sandbox, &copy).shows(str![[r#"
exit 0
project: it is a copy of PROJECT/.git; no task starts by itself → dispatch-reconcile adopt
"#]]);
        adopt(&sandbox, &copy);
        let call = |args: &[&str]| sandbox.call("dispatch-reconcile", args).within(&copy);
        assert!(call(&[]).run().ok().contains("ended incomplete"));
        // The original project keeps its tasks.
        assert!(sandbox.ok("dispatch-reconcile", &[]).contains("ended incomplete"));
        assert_eq!(sandbox.state("later"), "running");
    }

    #[test]
    fn another_clone_at_the_same_path_starts_nothing() {
        let sandbox = project();
        let bare = sandbox.top().join("bare");
        sandbox.program("git").args(&["clone", "-q", "--bare", "."]).arg(&bare).run();
        let keep = sandbox.top().join("keep");
        fs::rename(sandbox.project(), &keep).expect("renamed");
        let clone = sandbox.program("git").within(sandbox.top()).args(&["clone", "-q"]);
        clone.arg(&bare).arg(sandbox.project()).run();
        status(&sandbox, &sandbox.project()).shows(str![[r#"
exit 0
project: another directory is in its place; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]]);
        adopt(&sandbox, &sandbox.project());
        sandbox.dispatch("new", "idle");
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

    #[test]
    fn project_without_its_dispatch_directory_starts_nothing_by_itself() {
        let sandbox = project();
        fs::remove_dir_all(sandbox.project().join(".dispatch")).expect("removed");
        status(&sandbox, &sandbox.project()).shows(str![[r#"
exit 0
project: its .dispatch was deleted; no task starts by itself → dispatch-reconcile adopt
later queued 0/2 1h idle
"#]]);
        // A dispatch by the person is enough.
        sandbox.ok("dispatch-spawn", &["later", "--resume"]);
        sandbox.wait_for_state("later", "running");
    }

    #[test]
    fn project_is_another_one_for_another_home() {
        let sandbox = project();
        let home = sandbox.top().join("elsewhere");
        fs::create_dir(&home).expect("made");
        let call = sandbox.call("dispatch-reconcile", &[]).env("HOME", &home);
        call.run().shows(str![[r#"
exit 0
no tasks in PROJECT
"#]]);
    }
}
