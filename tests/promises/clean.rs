//! `clean` removes finished tasks whose work is also elsewhere, and says what it keeps and why.

use std::fs;
use std::path::{Path, PathBuf};

use snapbox::str;

use crate::support::process::kill_and_wait;
use crate::support::text::{names, tree};
use crate::support::{Host, PLAN, Sandbox};
use crate::worktrees::{commits, dispatch, ready, until_over, worktree_of};

fn project() -> Sandbox {
    // Appending gives a second task of the same name something to commit.
    let commits = commits().replace("echo work >", "echo work >>");
    ready(&[("commits", &commits), ("fails", "exit 7")])
}

/// Dispatches a task that commits, and waits until it is done.
fn do_task(sandbox: &Sandbox, id: &str) -> PathBuf {
    dispatch(sandbox, id, "commits");
    sandbox.wait_for_state(id, "done");
    until_over(sandbox, id);
    worktree_of(sandbox, id).0
}

fn merged(sandbox: &Sandbox, id: &str) -> PathBuf {
    let path = do_task(sandbox, id);
    sandbox.ok("dispatch-reconcile", &["merge", id]);
    path
}

fn fail_task(sandbox: &Sandbox, id: &str) -> PathBuf {
    dispatch(sandbox, id, "fails");
    sandbox.wait_for_state(id, "failed: exit code 7");
    until_over(sandbox, id);
    worktree_of(sandbox, id).0
}

/// Returns true if a task's directory, worktree and branch still exist.
fn left(sandbox: &Sandbox, id: &str, worktree: &Path) -> (bool, bool, bool) {
    let branch = sandbox.git(&["branch", "--list", &format!("dispatch/{id}")]);
    (sandbox.task(id, "").exists(), worktree.exists(), !branch.is_empty())
}

#[test]
fn clean_removes_merged_tasks_and_keeps_their_reports() {
    let sandbox = project();
    let x = merged(&sandbox, "x");
    fs::write(sandbox.task("x", "output.md"), "All fine.\n").expect("written");
    let y = do_task(&sandbox, "y");
    let z = fail_task(&sandbox, "z");
    sandbox.dispatch("w", "idle");
    let before = tree(&[sandbox.home()]);
    let dry = sandbox.run("dispatch-reconcile", &["clean", "--dry-run"]);
    dry.shows(str![[r#"
exit 0
would remove x with its worktree and branch dispatch/x; report: PROJECT/.dispatch/reports/x.md
kept y: not merged: 1 commit is only in dispatch/y; merge brings the branch in
kept z: failed; name it to remove it
"#]]);
    assert_eq!(tree(&[sandbox.home()]), before);
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x; report: PROJECT/.dispatch/reports/x.md
kept y: not merged: 1 commit is only in dispatch/y; merge brings the branch in
kept z: failed; name it to remove it
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (false, false, false));
    assert_eq!(left(&sandbox, "y", &y), (true, true, true));
    assert_eq!(left(&sandbox, "z", &z), (true, true, true));
    let report = fs::read_to_string(sandbox.project().join(".dispatch/reports/x.md"));
    assert_eq!(report.expect("kept"), "All fine.\n");
    // A failed task is removed by name, a running one never.
    sandbox.run("dispatch-reconcile", &["clean", "z", "w"]).shows(str![[r#"
exit 1
removed z with its worktree and branch dispatch/z
kept w: its worker is running
"#]]);
    assert_eq!(left(&sandbox, "z", &z), (false, false, false));
    // A later task of the same name does not replace the report of the first.
    merged(&sandbox, "x");
    fs::write(sandbox.task("x", "output.md"), "Better.\n").expect("written");
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x; report: PROJECT/.dispatch/reports/x-2.md
"#]]);
    assert_eq!(names(&sandbox.project().join(".dispatch/reports")), ["x-2.md", "x.md"]);
}

#[test]
fn clean_keeps_work_that_exists_nowhere_else() {
    let sandbox = project();
    let x = merged(&sandbox, "x");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&x).run().ok();
    let kept = || {
        let ran = sandbox.run("dispatch-reconcile", &["clean", "x"]);
        assert_eq!(left(&sandbox, "x", &x), (true, true, true), "{ran:?}");
        ran
    };
    fs::write(x.join("new"), "New.\n").expect("written");
    kept().shows(str![[r#"
exit 1
kept x: not committed in HOME/.dispatch/worktrees/project-HASH/x: new
"#]]);
    git(&["stash", "-q", "-u"]);
    kept().shows(str![[r#"
exit 1
kept x: a stash was made in HOME/.dispatch/worktrees/project-HASH/x
"#]]);
    git(&["stash", "drop", "-q"]);
    git(&["update-index", "--assume-unchanged", "README"]);
    fs::write(x.join("README"), "Overlooked.\n").expect("written");
    kept().shows(str![[r#"
exit 1
kept x: not committed in HOME/.dispatch/worktrees/project-HASH/x: README
"#]]);
    git(&["update-index", "--no-assume-unchanged", "README"]);
    git(&["checkout", "-q", "README"]);
    let report = x.join(".dispatch/tasks/x/output.md");
    fs::create_dir_all(report.parent().expect("a directory")).expect("made");
    fs::write(&report, "Misplaced.\n").expect("written");
    kept().shows(str![[r#"
exit 1
kept x: git ignores files in HOME/.dispatch/worktrees/project-HASH/x that are nowhere else: .dispatch/
"#]]);
    fs::remove_file(&report).expect("removed");
    git(&["checkout", "-q", "--detach"]);
    fs::write(x.join("detached"), "Detached.\n").expect("written");
    git(&["add", "detached"]);
    git(&["commit", "-q", "-m", "Detached"]);
    kept().shows(str![[r#"
exit 1
kept x: not merged: 1 commit is only in dispatch/x; merge brings the branch in
"#]]);
    git(&["checkout", "-q", "dispatch/x"]);
    fs::write(x.join(".git/BISECT_LOG"), "").expect("written");
    kept().shows(str![[r#"
exit 1
kept x: an unfinished bisect is in HOME/.dispatch/worktrees/project-HASH/x
"#]]);
    fs::remove_file(x.join(".git/BISECT_LOG")).expect("removed");
    git(&["branch", "aside"]);
    git(&["checkout", "-q", "aside"]);
    git(&["commit", "-q", "--allow-empty", "-m", "Aside"]);
    git(&["checkout", "-q", "dispatch/x"]);
    kept().shows(str![[r#"
exit 1
kept x: the worker's aside in HOME/.dispatch/worktrees/project-HASH/x has commits of its own
"#]]);
    git(&["branch", "-q", "-D", "aside"]);
    sandbox.git(&["checkout", "-q", "dispatch/x"]);
    kept().shows(str![[r#"
exit 1
kept x: dispatch/x is checked out in PROJECT
"#]]);
    sandbox.git(&["checkout", "-q", "main"]);
    // A pushed copy of the branch itself does not count as merged.
    sandbox.git(&["reset", "-q", "--hard", "HEAD~"]);
    sandbox.git(&["update-ref", "refs/remotes/origin/dispatch/x", "dispatch/x"]);
    kept().shows(str![[r#"
exit 1
kept x: not merged: 1 commit is only in dispatch/x; merge brings the branch in
"#]]);
    sandbox.git(&["update-ref", "refs/remotes/origin/main", "dispatch/x"]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (false, false, false));
}

#[test]
fn clean_keeps_commits_in_a_submodule() {
    let sandbox = project();
    let git = |directory: PathBuf, args: &[&str]| {
        let call = sandbox.program("git").args(&["-c", "protocol.file.allow=always"]).args(args);
        assert_eq!(call.within(directory).run().code, Some(0), "{args:?}");
    };
    sandbox.git(&["init", "-q", "-b", "main", "../lib"]);
    git(sandbox.home().join("lib"), &["commit", "-q", "--allow-empty", "-m", "Begin"]);
    git(sandbox.project(), &["submodule", "--quiet", "add", "../lib", "lib"]);
    git(sandbox.project(), &["commit", "-q", "-m", "Lib"]);
    let x = fail_task(&sandbox, "x");
    git(x.join("lib"), &["checkout", "-q", "-b", "own"]);
    git(x.join("lib"), &["commit", "-q", "--allow-empty", "-m", "Own"]);
    git(x.join("lib"), &["checkout", "-q", "main"]);
    let clean = || sandbox.run("dispatch-reconcile", &["clean", "x"]);
    clean().shows(str![[r#"
exit 1
kept x: the submodule lib in HOME/.dispatch/worktrees/project-HASH/x has own commits
"#]]);
    git(x.join("lib"), &["branch", "-q", "-D", "own"]);
    clean().shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (false, false, false));
}

#[test]
fn clean_keeps_nested_repository_in_a_worktree() {
    let sandbox = project();
    let x = fail_task(&sandbox, "x");
    for (directory, args) in [
        (&x, ["init", "-q", "-b", "main", "own"]),
        (&x.join("own"), ["commit", "-q", "--allow-empty", "-m", "Own"]),
        (&x, ["-c", "advice.addEmbeddedRepo=false", "add", "-v", "own"]),
        (&x, ["commit", "-q", "--no-status", "-m", "Add it"]),
    ] {
        let ran = sandbox.program("git").args(&args).within(directory).run();
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    }
    sandbox.git(&["merge", "-q", "dispatch/x"]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: not committed in HOME/.dispatch/worktrees/project-HASH/x: own
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (true, true, true));
}

/// A commit of the parent has only the id of a nested repository's commit, none of its files.
#[test]
fn uncommitted_nested_repository_is_neither_merged_nor_removed() {
    let sandbox = project();
    let x = fail_task(&sandbox, "x");
    let nested = x.join("nested");
    for (directory, args) in [
        (&x, &["init", "-q", "-b", "main", "nested"][..]),
        (&nested, &["commit", "-q", "--allow-empty", "-m", "Own"]),
    ] {
        sandbox.program("git").args(args).within(directory).run().ok();
    }
    fs::write(x.join("new"), "New.\n").expect("written");
    sandbox.run("dispatch-reconcile", &["merge", "x", "--uncommitted"]).shows(str![[r#"
exit 65
! dispatch-reconcile: the submodule nested is in the way
!   next: dispatch the plan again, and let the worker commit
"#]]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: not committed in HOME/.dispatch/worktrees/project-HASH/x: nested/, new
"#]]);
    // Also when the person's branch has that id.
    let id = sandbox.program("git").args(&["rev-parse", "HEAD"]).within(&nested).run().ok();
    fs::remove_file(x.join("new")).expect("removed");
    sandbox.git(&["update-index", "--add", "--cacheinfo", "160000", id.trim(), "nested"]);
    let tree = sandbox.git(&["write-tree"]);
    let commit = sandbox.git(&["commit-tree", tree.trim(), "-p", "dispatch/x", "-m", "Link"]);
    sandbox.git(&["update-ref", "refs/heads/dispatch/x", commit.trim()]);
    sandbox.git(&["reset", "-q", "--hard", commit.trim()]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: not committed in HOME/.dispatch/worktrees/project-HASH/x: nested/
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (true, true, true));
}

#[test]
fn clean_keeps_awaited_task_and_last_branch_of_a_commit() {
    let sandbox = project();
    let hook = fail_task(&sandbox, "a");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&hook).run().ok();
    git(&["commit", "-q", "--allow-empty", "-m", "Of a"]);
    let after = sandbox.call("dispatch-spawn", &["b", "--after", "a", "--plan", "-"]);
    after.args(&["--model", "fails"]).input(PLAN).run().ok();
    sandbox.run("dispatch-reconcile", &["clean", "a"]).shows(str![[r#"
exit 1
kept a: 'b' starts when it is done
"#]]);
    sandbox.ok("dispatch-spawn", &["b", "--resume"]);
    sandbox.wait_for_state("b", "failed: exit code 7");
    until_over(&sandbox, "b");
    let (path, ..) = worktree_of(&sandbox, "b");
    sandbox.program("git").args(&["merge", "-q", "dispatch/a"]).within(&path).run().ok();
    // The commit of 'a' stays on one of the branches.
    sandbox.run("dispatch-reconcile", &["clean", "a", "b"]).shows(str![[r#"
exit 1
kept a: not merged: 1 commit is only in dispatch/a; merge brings the branch in
removed b with its worktree and branch dispatch/b
"#]]);
}

#[test]
fn clean_keeps_recent_tasks_and_those_with_unread_news() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    sandbox.plan("x", PLAN);
    host.calls(sandbox.call("dispatch-spawn", &["x", "--model", "commits"])).run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
kept x: its session has not been told yet that it ended
"#]]);
    host.die();
    sandbox.run("dispatch-reconcile", &["clean", "--older-than", "1h"]).shows(str![[r#"
exit 0
nothing to clean
"#]]);
    let exit = sandbox.read("x", "attempts/1/exit");
    let at = exit.lines().find(|line| line.starts_with("at: ")).expect("a time");
    let old = exit.replace(at, "at: 2020-01-01T00:00:00Z");
    fs::write(sandbox.task("x", "attempts/1/exit"), old).expect("written");
    sandbox.run("dispatch-reconcile", &["clean", "--older-than", "1h"]).shows(str![[r#"
exit 0
removed x
"#]]);
    assert_eq!(names(&sandbox.project().join(".dispatch/tasks")), [""; 0]);
}

#[test]
fn clean_lists_orphaned_work_and_keeps_it() {
    let sandbox = project();
    let x = do_task(&sandbox, "x");
    fs::remove_dir_all(sandbox.project().join(".dispatch")).expect("removed");
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
orphaned: worktree HOME/.dispatch/worktrees/project-HASH/x — read git diff HEAD...dispatch/x, then git merge dispatch/x brings its commits back, rm -r HOME/.dispatch/worktrees/project-HASH/x removes it and what is only there
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (false, true, true));
    // If that fails, the line says why.
    fs::write(x.join(".git/HEAD"), "neither\n").expect("written");
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
orphaned: worktree HOME/.dispatch/worktrees/project-HASH/x — the worktree's HEAD cannot be read; HOME/.dispatch/worktrees/project-HASH/x/.git/HEAD; next: look at it there; a worker may have changed it, rm -r HOME/.dispatch/worktrees/project-HASH/x removes it and what is only there
"#]]);
}

#[test]
fn clean_keeps_unreadable_task_and_lists_no_orphans() {
    let sandbox = project();
    do_task(&sandbox, "x");
    fs::write(sandbox.task("x", "record.yaml"), "format: 1\n").expect("written");
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
kept x: task 'x' has a broken record; STATE/x/record.yaml: missing field `nonce`; next: restore the file, or dispatch the plan again under another id
"#]]);
}

#[test]
fn clean_removes_blocked_task_only_by_name() {
    let sandbox = project();
    sandbox.dispatch("x", "idle");
    sandbox.worker("x", &["block", "1", "Which one?"]).run().ok();
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked: item 1: \"Which one?\"");
    until_over(&sandbox, "x");
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
kept x: blocked; name it to remove it
"#]]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 0
removed x
"#]]);
}

#[test]
fn killed_removal_is_completed_by_the_next_clean() {
    let sandbox = project();
    let points = ["moved", "forgotten", "removed", "branch", "report", "task"];
    for point in points {
        let x = merged(&sandbox, "x");
        fs::write(sandbox.task("x", "output.md"), "All fine.\n").expect("written");
        let clean = || sandbox.call("dispatch-reconcile", &["clean"]);
        clean().crash_at(&format!("clean:{point}")).run().crashed();
        let again = clean().run().ok();
        let done = if point == "task" { "nothing to clean\n" } else { "removed x " };
        assert!(again.starts_with(done), "{point}: {again}");
        assert_eq!(left(&sandbox, "x", &x), (false, false, false), "{point}");
        assert_eq!(names(&sandbox.project().join(".dispatch/tasks")), [""; 0], "{point}");
        assert_eq!(names(&sandbox.project().join(".dispatch/reports")), ["x.md"], "{point}");
        assert!(names(x.parent().expect("a directory")).is_empty(), "{point}");
    }
}

#[test]
fn task_resumes_after_a_killed_removal() {
    let sandbox = project();
    let x = fail_task(&sandbox, "x");
    let clean = sandbox.call("dispatch-reconcile", &["clean", "x"]);
    clean.crash_at("clean:moved").run().crashed();
    assert!(!x.exists());
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "failed: exit code 7");
    assert_eq!(names(&x), [".git", "README"]);
    assert_eq!(names(x.parent().expect("a directory")), ["x"]);
}

/// Git ignores these, so neither status nor a commit shows them.
#[test]
fn clean_keeps_ignored_files_that_are_nowhere_else() {
    let sandbox = project();
    let ignored = "out/\n.env\nnode_modules/\ntarget/\n*.pyc\n";
    fs::write(sandbox.project().join(".gitignore"), ignored).expect("written");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Ignore"]);
    let x = merged(&sandbox, "x");
    let write = |path: PathBuf| {
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, "Text.\n").expect("written");
    };
    // Caches, and a file that the person's checkout has too.
    for name in ["node_modules/a/b.js", "target/CACHEDIR.TAG", "target/debug/x", "a.pyc", ".env"] {
        write(x.join(name));
    }
    write(x.join("out/report.html"));
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: git ignores files in HOME/.dispatch/worktrees/project-HASH/x that are nowhere else: .env, out/
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (true, true, true));
    fs::remove_dir_all(x.join("out")).expect("removed");
    write(sandbox.project().join(".env"));
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x
"#]]);
}

#[test]
fn clean_finds_squashed_branch_in_head() {
    let sandbox = project();
    let x = do_task(&sandbox, "x");
    sandbox.git(&["merge", "-q", "--squash", "dispatch/x"]);
    sandbox.git(&["commit", "-q", "-m", "Squashed"]);
    fs::write(sandbox.project().join("later"), "Later.\n").expect("written");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Later"]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 0
removed x with its worktree and branch dispatch/x
"#]]);
    assert_eq!(left(&sandbox, "x", &x), (false, false, false));
}
