//! `merge` merges a task's branch completely, or changes nothing and says why.
//!
//! Longer than 500 lines because each reason to refuse is a test here.

use std::fs;
use std::path::Path;

use snapbox::str;

use crate::support::terminal::Terminal;
use crate::support::text::{names, tree};
use crate::support::{Sandbox, wait_until};
use crate::worktrees::{
    commit, commits, dispatch, path_with, ready, real_git, until_over, worktree_of, write_program,
};

/// A project in which task 'x' has committed the file work-x and is done.
fn done() -> Sandbox {
    let sandbox = ready(&[("commits", &commits()), ("fails", "exit 7")]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    sandbox
}

/// Commits a change of a file in the project.
fn commit_file(sandbox: &Sandbox, name: &str) {
    fs::write(sandbox.project().join(name), "The person's.\n").expect("written");
    sandbox.git(&["add", name]);
    sandbox.git(&["commit", "-q", "-m", "Meanwhile"]);
}

/// Installs a git hook.
fn hook(sandbox: &Sandbox, name: &str, script: &str) {
    write_program(sandbox, &sandbox.project().join(".git/hooks").join(name), script);
}

/// All that a merge could change.
fn all_of(sandbox: &Sandbox) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut files = tree(&[sandbox.project()]);
    let ours = |path: &Path| {
        let text = path.to_string_lossy();
        !text.contains("/.git/") && !text.contains("/.dispatch/")
    };
    files.retain(|path, _| ours(path));
    let status = sandbox.git(&["status", "--porcelain=v2", "--branch"]);
    let git = sandbox.project().join(".git");
    (files, status, git.join("MERGE_HEAD").exists(), sandbox.git(&["for-each-ref"]))
}

#[test]
fn merge_fast_forwards_where_it_can() {
    let sandbox = done();
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into main (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
    assert_eq!(commit(&sandbox, "main"), commit(&sandbox, "dispatch/x"));
    assert_eq!(names(&sandbox.project()), [".dispatch", ".git", "README", "work-x"]);
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT: nothing to merge, main has all its commits; dispatch-reconcile clean x removes the task
"#]]);
}

#[test]
fn merge_commit_keeps_untracked_files() {
    let sandbox = done();
    commit_file(&sandbox, "other");
    fs::write(sandbox.project().join("notes"), "Mine.\n").expect("written");
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into main (merge commit); dispatch-reconcile clean x removes the task
"#]]);
    assert_eq!(sandbox.git(&["log", "-1", "--format=%s"]), "Merge branch 'dispatch/x'\n");
    let files = [".dispatch", ".git", "README", "notes", "other", "work-x"];
    assert_eq!(names(&sandbox.project()), files);
}

#[test]
fn merge_goes_into_the_persons_current_checkout() {
    let sandbox = done();
    sandbox.git(&["worktree", "add", "-q", "-b", "mine", "../linked"]);
    let linked = sandbox.home().join("linked");
    let before = commit(&sandbox, "main");
    let merge = |place: &Path| sandbox.call("dispatch-reconcile", &["merge", "x"]).within(place);
    merge(&linked).run().shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into mine (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
    assert_eq!(commit(&sandbox, "main"), before);
    // A task's worktree is not a checkout of the person.
    merge(&worktree_of(&sandbox, "x").0).run().shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into main (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
}

#[test]
fn conflict_lists_its_files_and_changes_nothing() {
    let sandbox = done();
    commit_file(&sandbox, "work-x");
    let before = all_of(&sandbox);
    let merge = || sandbox.call("dispatch-reconcile", &["merge", "x"]);
    let told = str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main: conflicts, and nothing was changed
!   work-x
!   next: read git diff HEAD...dispatch/x, then git merge dispatch/x and resolve them, or let a new task do it
"#]];
    merge().run().shows(told);
    assert_eq!(all_of(&sandbox), before);
    // An older git finds the conflict only by merging.
    let git = real_git(&sandbox);
    let old = format!("case \"$*\" in *merge-tree*) exit 129 ;; esac; exec {git} \"$@\"");
    let path = path_with(&sandbox, "git", &old);
    merge().env("PATH", path).run().shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main: conflicts, and nothing was changed
!   work-x
!   next: read git diff HEAD...dispatch/x, then git merge dispatch/x and resolve them, or let a new task do it
"#]]);
    assert_eq!(all_of(&sandbox), before);
}

#[test]
fn merge_refuses_to_touch_uncommitted_changes() {
    let sandbox = done();
    let merge = || sandbox.run("dispatch-reconcile", &["merge", "x"]);
    fs::write(sandbox.project().join("README"), "Changed.\n").expect("written");
    let before = all_of(&sandbox);
    merge().shows(str![[r#"
exit 65
! dispatch-reconcile: main has uncommitted changes
!   README in PROJECT
!   next: commit or stash them, and try again
"#]]);
    assert_eq!(all_of(&sandbox), before);
    sandbox.git(&["checkout", "-q", "README"]);
    fs::write(sandbox.project().join("work-x"), "Untracked.\n").expect("written");
    let before = all_of(&sandbox);
    merge().shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main; nothing was changed
!   error: The following untracked working tree files would be overwritten by merge: work-x
!   next: fix that and try again
"#]]);
    assert_eq!(all_of(&sandbox), before);
    fs::remove_file(sandbox.project().join("work-x")).expect("removed");
    fs::write(sandbox.project().join(".git/MERGE_HEAD"), commit(&sandbox, "main"))
        .expect("written");
    merge().shows(str![[r#"
exit 65
! dispatch-reconcile: a merge is not finished in the checkout
!   PROJECT
!   next: finish it, or end it with git merge --abort; then try again
"#]]);
}

#[test]
fn merge_needs_a_branch_on_both_sides() {
    let sandbox = done();
    let merge = |id: &str| sandbox.run("dispatch-reconcile", &["merge", id]);
    sandbox.git(&["checkout", "-q", "--detach"]);
    merge("x").shows(str![[r#"
exit 65
! dispatch-reconcile: there is no branch to merge into
!   HEAD of PROJECT is detached
!   next: git -C PROJECT switch BRANCH, and try again
"#]]);
    sandbox.git(&["checkout", "-q", "main"]);
    let (path, ..) = worktree_of(&sandbox, "x");
    fs::remove_dir_all(&path).expect("removed");
    for reference in ["refs/heads/dispatch/x", "refs/dispatch/tip/x"] {
        sandbox.git(&["update-ref", "-d", reference]);
    }
    merge("x").shows(str![[r#"
exit 65
! dispatch-reconcile: the branch dispatch/x is gone
!   it is not in PROJECT/.git
!   next: git branch dispatch/x COMMIT, if you know its last commit
"#]]);
    sandbox.dispatch("y", "fails");
    sandbox.wait_for_state("y", "failed: exit code 7");
    until_over(&sandbox, "y");
    merge("y").shows(str![[r#"
exit 65
! dispatch-reconcile: 'y' has no branch of its own to merge
!   it worked in PROJECT
!   next: nothing to do: its changes are in that directory
"#]]);
}

/// Workers make branches of their own, and rename theirs.
#[test]
fn merge_brings_what_the_worker_has_checked_out() {
    for how in [
        &["checkout", "-q", "-b", "own"][..],
        &["branch", "-m", "own"],
        &["checkout", "-q", "--detach"],
    ] {
        let sandbox = done();
        let (path, ..) = worktree_of(&sandbox, "x");
        let git = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
        git(how);
        git(&["commit", "-q", "--allow-empty", "-m", "There"]);
        let show = sandbox.ok("dispatch-reconcile", &["show", "x"]);
        let on =
            if how.contains(&"own") { "on the worker's own branch own" } else { "on no branch" };
        assert!(show.contains("2 commits, the last is ") && show.contains(on), "{show}");
        sandbox.ok("dispatch-reconcile", &["merge", "x"]);
        assert_eq!(sandbox.git(&["log", "-2", "--format=%s"]), "There\nWork of x\n");
        sandbox.ok("dispatch-reconcile", &["clean", "x"]);
    }
}

#[test]
fn merge_refuses_uncommitted_changes_in_the_worktree() {
    let sandbox = done();
    let (path, ..) = worktree_of(&sandbox, "x");
    for name in ["a", "b", "c", "d"] {
        fs::write(path.join(name), "Left.\n").expect("written");
    }
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: the worktree of 'x' has changes that are not committed
!   a, b, c and 1 more in HOME/.dispatch/worktrees/project-HASH/x
!   next: dispatch-reconcile merge x --uncommitted commits and merges them
"#]]);
    dispatch(&sandbox, "y", "fails");
    sandbox.wait_for_state("y", "failed: exit code 7");
    until_over(&sandbox, "y");
    fs::write(worktree_of(&sandbox, "y").0.join("README"), "Left.\n").expect("written");
    sandbox.run("dispatch-reconcile", &["merge", "y"]).shows(str![[r#"
exit 65
! dispatch-reconcile: the worktree of 'y' has changes that are not committed
!   README in HOME/.dispatch/worktrees/project-HASH/y
!   next: dispatch-reconcile merge y --uncommitted commits and merges them
"#]]);
    // The printed command works, and then nothing is only in the worktree.
    sandbox.ok("dispatch-reconcile", &["merge", "y", "--uncommitted"]);
    assert_eq!(sandbox.git(&["show", "HEAD:README"]), "Left.\n");
    sandbox.ok("dispatch-reconcile", &["clean", "y"]);
}

/// The worker staged a file, so only the index and the objects of its repository have it.
#[test]
fn merge_takes_what_the_worker_only_staged() {
    let stages = "echo staged >staged; touch -t 202001010000 staged; git add staged; echo secret >.env; exit 7";
    let sandbox = ready(&[("stages", stages)]);
    fs::write(sandbox.project().join(".git/info/exclude"), ".env\n").expect("written");
    dispatch(&sandbox, "x", "stages");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    sandbox.ok("dispatch-reconcile", &["merge", "x", "--uncommitted"]);
    // A file that the person's own exclude file names is not committed, and not lost either.
    assert_eq!(sandbox.git(&["ls-tree", "--name-only", "HEAD"]), "README\nstaged\n");
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: git ignores files in HOME/.dispatch/worktrees/project-HASH/x that are nowhere else: .env
"#]]);
}

#[test]
fn merge_refuses_task_that_has_not_ended() {
    let sandbox = ready(&[]);
    dispatch(&sandbox, "x", "idle");
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 75
! dispatch-reconcile: 'x' has not ended
!   its worker is running
!   next: wait for its end, or stop it: dispatch-reconcile stop x
"#]]);
    let wait = sandbox.call("dispatch-spawn", &["y", "--after", "x", "--plan", "-"]);
    wait.input(crate::support::PLAN).run().ok();
    sandbox.run("dispatch-reconcile", &["merge", "y"]).shows(str![[r#"
exit 75
! dispatch-reconcile: 'y' has not ended
!   it is waiting: after x
!   next: wait for its end, or stop it: dispatch-reconcile stop y
"#]]);
    let inside = sandbox.call("dispatch-reconcile", &["merge", "x"]);
    inside.env("DISPATCH_TASK_DIR", sandbox.task("x", "")).run().shows(str![[r#"
exit 64
! dispatch-reconcile: a worker may not merge or clean
!   next: leave this to the session that dispatched the task
"#]]);
}

#[test]
fn failing_hook_is_quoted_and_merge_undone() {
    let sandbox = done();
    // This hook refuses after a fast-forward has changed the files.
    let refuses = "grep -q refs/heads/main && test \"$1\" = prepared || exit 0
echo 'main is frozen' >&2; exit 1";
    hook(&sandbox, "reference-transaction", refuses);
    let before = all_of(&sandbox);
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main; nothing was changed
!   main is frozen (fatal: ref updates aborted by hook)
!   next: fix that and try again
"#]]);
    assert_eq!(all_of(&sandbox), before);
    hook(&sandbox, "reference-transaction", "exit 0");
    commit_file(&sandbox, "other");
    hook(&sandbox, "pre-merge-commit", "echo 'lint: 3 errors' >&2; exit 1");
    let before = all_of(&sandbox);
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main; nothing was changed
!   lint: 3 errors
!   next: fix that and try again
"#]]);
    assert_eq!(all_of(&sandbox), before);
}

#[test]
fn merge_waits_for_another_programs_git_lock() {
    for how in ["fast-forward", "merge commit"] {
        let sandbox = done();
        if how == "merge commit" {
            commit_file(&sandbox, "other");
        }
        let path = path_with(&sandbox, "git", &format!("exec {} \"$@\"", real_git(&sandbox)));
        let lock = sandbox.project().join(".git/index.lock");
        fs::write(&lock, "").expect("written");
        let merge = sandbox.call("dispatch-reconcile", &["merge", "x"]).env("PATH", path).start();
        wait_until("git to be called again", || {
            let calls = fs::read_to_string(sandbox.top().join("calls")).unwrap_or_default();
            (calls.matches(" merge --quiet ").count() > 1).then_some(())
        });
        fs::remove_file(&lock).expect("removed");
        let said = merge.end().ok();
        assert!(said.contains(&format!("1 commit into main ({how})")), "{said}");
    }
}

/// The person took a secret out of the commit at which the task began.
#[test]
fn merge_refuses_commits_that_are_not_the_tasks() {
    let sandbox = done();
    sandbox.git(&["commit", "-q", "--amend", "-m", "Without the secret"]);
    let merge = |args: &[&str]| sandbox.run("dispatch-reconcile", args);
    let before = all_of(&sandbox);
    merge(&["merge", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: dispatch/x has commits that are neither the task's nor in main
!   COMMIT Begin
!   next: dispatch-reconcile merge x --onto takes only the task's commits
"#]]);
    assert_eq!(all_of(&sandbox), before);
    merge(&["merge", "x", "--onto"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into main (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
    assert_eq!(sandbox.git(&["log", "--format=%s"]), "Work of x\nWithout the secret\n");
    assert_eq!(sandbox.git(&["log", "-1", "--format=%an"]), "Tester\n");
    sandbox.ok("dispatch-reconcile", &["clean", "x"]);
    // The task began on another branch.
    sandbox.git(&["checkout", "-q", "-b", "feature"]);
    commit_file(&sandbox, "feature");
    dispatch(&sandbox, "y", "commits");
    sandbox.wait_for_state("y", "done");
    until_over(&sandbox, "y");
    sandbox.git(&["checkout", "-q", "main"]);
    merge(&["merge", "y"]).shows(str![[r#"
exit 65
! dispatch-reconcile: dispatch/y has commits that are neither the task's nor in main
!   COMMIT Meanwhile
!   next: dispatch-reconcile merge y --onto takes only the task's commits
"#]]);
    merge(&["merge", "y", "--onto"]).shows(str![[r#"
exit 0
dispatch/y at COMMIT: 1 commit into main (fast-forward); dispatch-reconcile clean y removes the task
"#]]);
    let files = [".dispatch", ".git", "README", "work-x", "work-y"];
    assert_eq!(names(&sandbox.project()), files);
    // The worker took over a branch of the person.
    let (path, ..) = worktree_of(&sandbox, "y");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
    git(&["reset", "-q", "--hard", commit(&sandbox, "main").trim()]);
    sandbox.git(&["checkout", "-q", "--orphan", "other"]);
    sandbox.git(&["commit", "-q", "-m", "Not for others"]);
    sandbox.git(&["checkout", "-q", "main"]);
    git(&["reset", "-q", "--hard", commit(&sandbox, "other").trim()]);
    let refused = merge(&["merge", "y"]);
    assert!(refused.err.contains("Not for others"), "{refused:?}");
    // That branch began where the task did.
    git(&["reset", "-q", "--hard", commit(&sandbox, "feature").trim()]);
    sandbox.git(&["checkout", "-q", "-b", "ahead", "feature"]);
    sandbox.git(&["commit", "-q", "--allow-empty", "-m", "Not ready"]);
    sandbox.git(&["checkout", "-q", "feature"]);
    git(&["reset", "-q", "--hard", commit(&sandbox, "ahead").trim()]);
    git(&["commit", "-q", "--allow-empty", "-m", "Own work"]);
    let refused = merge(&["merge", "y"]);
    assert!(refused.err.contains("Not ready"), "{refused:?}");
    // The person merged the task's own commit into another branch, which does not make it theirs.
    git(&["reset", "-q", "--hard", commit(&sandbox, "feature").trim()]);
    git(&["commit", "-q", "--allow-empty", "-m", "Own work"]);
    sandbox.ok("dispatch-reconcile", &["show", "y"]);
    sandbox.git(&["branch", "-q", "-f", "ahead", "dispatch/y"]);
    assert!(merge(&["merge", "y"]).ok().contains("1 commit into feature"));
}

#[test]
fn merge_says_if_the_branch_moved_since_it_was_shown() {
    let sandbox = done();
    sandbox.ok("dispatch-reconcile", &["show", "x"]);
    let (path, ..) = worktree_of(&sandbox, "x");
    let commit = ["commit", "-q", "--allow-empty", "-m", "Late"];
    sandbox.program("git").args(&commit).within(&path).run().ok();
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT (it was at COMMIT when it was shown): 2 commits into main (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
}

/// A file that a host, git, an editor or CI executes by itself is merged by a person only.
#[test]
fn merge_of_files_that_run_by_themselves_needs_a_person() {
    let files =
        [".claude/settings.json", "docs/CLAUDE.md", ".GitHub/workflows/a.yml", "hooks/pre-push"];
    for file in files {
        let sandbox = done();
        fs::create_dir_all(sandbox.project().join("hooks")).expect("made");
        sandbox.git(&["config", "core.hooksPath", "hooks"]);
        let (path, ..) = worktree_of(&sandbox, "x");
        let git = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
        fs::create_dir_all(path.join(file).parent().expect("a directory")).expect("made");
        fs::write(path.join(file), "{}").expect("written");
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "More"]);
        sandbox.ok("dispatch-reconcile", &["show", "x"]);
        let before = all_of(&sandbox);
        let ran = sandbox.run("dispatch-reconcile", &["merge", "x"]);
        assert_eq!(ran.code, Some(64), "{file}: {ran:?}");
        assert!(ran.out.contains(&format!("by themselves: {file}")), "{file}: {ran:?}");
        assert_eq!(all_of(&sandbox), before, "{file}");
    }
}

/// The branch brings another version of a hook that is a file of the repository.
#[test]
fn merge_runs_the_hooks_as_they_were_before_it() {
    let sandbox = ready(&[("commits", &commits())]);
    let hooks = sandbox.project().join("hooks");
    write_program(&sandbox, &hooks.join("post-merge"), "echo old >>\"$HOME/ran\"");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Hooks"]);
    sandbox.git(&["config", "core.hooksPath", "hooks"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
    write_program(&sandbox, &path.join("hooks/post-merge"), "echo new >>\"$HOME/ran\"");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "Another hook"]);
    let merge = sandbox.call("dispatch-reconcile", &["merge", "x"]).env("DISPATCH_FAIL", "callers");
    let mut terminal = Terminal::run(merge);
    let shown = terminal.read_until("[y/N] ");
    assert!(shown.contains("hooks/post-merge"), "{shown}");
    terminal.write("y\n");
    assert!(terminal.status().success());
    assert_eq!(fs::read_to_string(sandbox.home().join("ran")).expect("a hook ran"), "old\n");
}

/// The hooks that git would run are not there before the merge, or are links to files of the checkout.
#[test]
fn merge_runs_no_hook_that_it_brings() {
    let link = |sandbox: &Sandbox, target: &str| {
        let hook = sandbox.project().join(".git/hooks/post-merge");
        fs::create_dir_all(hook.parent().expect("a directory")).expect("made");
        std::os::unix::fs::symlink(target, hook).expect("made");
    };
    let set =
        |sandbox: &Sandbox, path: &str| drop(sandbox.git(&["config", "core.hooksPath", path]));
    /// A name, the file that the worker writes, and what the person's repository is before.
    type Row<'a> = (&'a str, &'a str, &'a dyn Fn(&Sandbox));
    let rows: [Row<'_>; 6] = [
        ("missing directory", "hooks/post-merge", &|sandbox| set(sandbox, "hooks")),
        ("missing directory of husky", "h/post-merge", &|sandbox| set(sandbox, "h/_")),
        ("linked hook", "scripts/pm", &|sandbox| link(sandbox, "../../scripts/pm")),
        ("hook that links nowhere yet", "later/pm", &|sandbox| link(sandbox, "../../later/pm")),
        ("chain of links", "scripts/pm", &|sandbox| {
            std::os::unix::fs::symlink("pm", sandbox.project().join("scripts/link")).expect("made");
            link(sandbox, "../../scripts/link");
        }),
        ("linked directory", "scripts/post-merge", &|sandbox| {
            std::os::unix::fs::symlink("scripts", sandbox.project().join("hooks")).expect("made");
            set(sandbox, "hooks");
        }),
    ];
    for (name, file, prepare) in rows {
        let sandbox = ready(&[("commits", &commits())]);
        write_program(&sandbox, &sandbox.project().join("scripts/pm"), "echo old >>\"$HOME/ran\"");
        sandbox.git(&["add", "."]);
        sandbox.git(&["commit", "-q", "-m", "Scripts"]);
        prepare(&sandbox);
        dispatch(&sandbox, "x", "commits");
        sandbox.wait_for_state("x", "done");
        until_over(&sandbox, "x");
        let (path, ..) = worktree_of(&sandbox, "x");
        write_program(&sandbox, &path.join(file), "echo new >>\"$HOME/ran\"");
        // A hook of husky starts one beside its directory.
        write_program(&sandbox, &path.join("h/_/post-merge"), ". h/post-merge");
        let git = |args: &[&str]| sandbox.program("git").args(args).within(&path).run().ok();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", "Another hook"]);
        let merge =
            sandbox.call("dispatch-reconcile", &["merge", "x"]).env("DISPATCH_FAIL", "callers");
        let mut terminal = Terminal::run(merge);
        let shown = terminal.read_until("[y/N] ");
        assert!(shown.contains(file), "{name}: {shown}");
        terminal.write("y\n");
        assert!(terminal.status().success(), "{name}");
        let ran = fs::read_to_string(sandbox.home().join("ran")).unwrap_or_default();
        assert!(!ran.contains("new"), "{name}: {ran}");
        let is_old = name == "linked hook" || name == "chain of links";
        assert_eq!(ran.contains("old"), is_old, "{name}: {ran}");
    }
}

#[test]
fn pull_request_is_printed_for_the_host_to_run() {
    let sandbox = done();
    let before = all_of(&sandbox);
    sandbox.run("dispatch-reconcile", &["merge", "x", "--pr"]).shows(str![[r#"
exit 0
git push origin COMMIT:refs/heads/dispatch/x
gh pr create --draft --head dispatch/x --title Title --body Fine.
"#]]);
    assert_eq!(all_of(&sandbox), before);
}

#[test]
fn fast_forward_is_possible_after_others_committed() {
    let sandbox = done();
    commit_file(&sandbox, "other");
    sandbox.git(&["config", "merge.ff", "only"]);
    let said = sandbox.ok("dispatch-reconcile", &["merge", "x", "--onto"]);
    assert!(said.contains("1 commit into main (fast-forward)"), "{said}");
}

/// Where git refuses, the remedy is git's own, or one that works.
#[test]
fn refused_merge_names_a_remedy_that_works() {
    let sandbox = done();
    commit_file(&sandbox, "other");
    let merge = || sandbox.run("dispatch-reconcile", &["merge", "x"]);
    let before = all_of(&sandbox);
    sandbox.git(&["config", "merge.ff", "only"]);
    merge().shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main; nothing was changed
!   fatal: Not possible to fast-forward, aborting.
!   next: merge.ff is 'only': dispatch-reconcile merge x --onto makes one possible
"#]]);
    sandbox.git(&["config", "--unset", "merge.ff"]);
    sandbox.git(&["config", "user.useConfigOnly", "true"]);
    fs::write(sandbox.home().join(".gitconfig"), "").expect("written");
    merge().shows(str![[r#"
exit 1
! dispatch-reconcile: dispatch/x cannot be merged into main; nothing was changed
!   fatal: no email was given and auto-detection is disabled
!   next: git config --global user.email "you@example.com"; then try again
"#]]);
    sandbox.git(&["config", "user.name", "Tester"]);
    sandbox.git(&["config", "user.email", "tester@example.com"]);
    sandbox.git(&["config", "core.bare", "true"]);
    merge().shows(str![[r#"
exit 65
! dispatch-reconcile: the config of git says that this checkout is none
!   core.bare is true in PROJECT
!   next: git -C PROJECT config core.bare false
"#]]);
    sandbox.git(&["config", "core.bare", "false"]);
    sandbox.git(&["bisect", "start"]);
    merge().shows(str![[r#"
exit 65
! dispatch-reconcile: a bisect is not finished in the checkout
!   PROJECT
!   next: finish it, or end it with git bisect reset; then try again
"#]]);
    sandbox.git(&["bisect", "reset"]);
    assert_eq!(all_of(&sandbox), before);
    let hook_of = "sleep 1000 &";
    hook(&sandbox, "post-merge", hook_of);
    merge().shows(str![[r#"
exit 0
dispatch/x at COMMIT: 1 commit into main (merge commit); dispatch-reconcile clean x removes the task
"#]]);
}
