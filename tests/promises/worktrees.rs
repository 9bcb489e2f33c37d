//! A task with `--worktree` works in its own repository, and no commit of it is lost.
//!
//! Longer than 500 lines because each kind of repository and of attack is a test here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigHandler, Signal, signal};
use snapbox::str;

use crate::support::process::{kill_and_wait, runs};
use crate::support::terminal::Terminal;
use crate::support::text::{Tree, names, same, tree};
use crate::support::{Call, Host, PLAN, Ran, Sandbox, binary, wait_until};

/// A worker that commits a file named after its task and finishes.
pub(crate) fn commits() -> String {
    let helper = binary("dispatch-worker").display();
    format!(
        "set -e
id=${{DISPATCH_TASK_DIR##*/}}
echo work >\"work-$id\"
git add . && git commit -q -m \"Work of $id\"
{helper} tick 1 && {helper} tick 2 && {helper} finish Fine."
    )
}

pub(crate) fn ready(workers: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::with_git();
    sandbox.workers(workers);
    sandbox
}

fn spawn(sandbox: &Sandbox, id: &str, model: &str) -> Call {
    let call = sandbox.call("dispatch-spawn", &[id, "--model", model, "--worktree", "--plan", "-"]);
    call.input(PLAN)
}

#[track_caller]
pub(crate) fn dispatch(sandbox: &Sandbox, id: &str, model: &str) -> Ran {
    let ran = spawn(sandbox, id, model).run();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran
}

/// Waits until a task's supervisor has ended too.
#[track_caller]
pub(crate) fn until_over(sandbox: &Sandbox, id: &str) {
    wait_until("the supervisor ends", || (!runs(sandbox.supervisor_of(id))).then_some(()));
}

/// Writes a shell script with another program: a fork of another test could hold the file open for
/// writing, and then it cannot be executed.
pub(crate) fn write_program(sandbox: &Sandbox, path: &Path, script: &str) {
    let put =
        "mkdir -p \"${1%/*}\" && cat >\"$1.new\" && chmod +x \"$1.new\" && mv \"$1.new\" \"$1\"";
    let put = sandbox.program("sh").args(&["-c", put, "sh"]).arg(path);
    put.input(format!("#!/bin/sh\n{script}\n")).run().ok();
}

/// Returns true if a task's worker runs, so that its worktree is complete.
fn running(sandbox: &Sandbox, id: &str) -> Option<()> {
    sandbox.task(id, "attempts/1/identity").exists().then_some(())
}

/// Path, branch and base of a task's worktree.
#[track_caller]
fn worktree(show: Call) -> (PathBuf, String, String) {
    let json: serde_json::Value = serde_json::from_str(&show.run().ok()).expect("JSON");
    let word = |key: &str| json["worktree"][key].as_str().expect("a worktree").to_owned();
    (word("path").into(), word("branch"), word("base"))
}

#[track_caller]
pub(crate) fn worktree_of(sandbox: &Sandbox, id: &str) -> (PathBuf, String, String) {
    worktree(sandbox.call("dispatch-reconcile", &["show", id, "--json"]))
}

pub(crate) fn commit(sandbox: &Sandbox, revision: &str) -> String {
    sandbox.git(&["rev-parse", "--verify", revision]).trim().to_owned()
}

/// The machine's git.
pub(crate) fn real_git(sandbox: &Sandbox) -> String {
    let found = sandbox.program("sh").args(&["-c", "command -v git"]).run().ok();
    found.trim().to_owned()
}

/// A `PATH` with one more program.
pub(crate) fn path_with(sandbox: &Sandbox, cli: &str, script: &str) -> String {
    let clis = sandbox.top().join("clis");
    fs::create_dir_all(&clis).expect("made");
    sandbox.add_cli(cli, script);
    format!("{}:{}", clis.display(), std::env::var("PATH").expect("a PATH"))
}

#[test]
fn worker_commits_in_its_worktree_and_news_names_the_branch() {
    let sandbox = ready(&[("commits", &commits())]);
    let before = commit(&sandbox, "HEAD");
    dispatch(&sandbox, "x", "commits").shows(str![[r#"
exit 0
x (Title, 2 items) started with commits. Tell the user and stop; news wakes you.
"#]]);
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 0
x — Title
done, commits, AGE
full: nothing holds it
worktree: HOME/.dispatch/worktrees/project-HASH/x (branch dispatch/x, from COMMIT): 1 commit, COMMIT
1. [x] First
2. [x] Second
summary: "Fine."
attempt 1: exit code 0 at TIME, log STATE/x/attempts/1/log
output: "1/2 done. Next is item 2: Second"
output: "2/2 done. Now finish."
output: "Finished. Stop now."
"#]]);
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x done (2/2, AGE) on branch dispatch/x: "Fine." → tell the user; if they want it, BIN/dispatch-reconcile merge x brings it back
"#]]);
    let (path, branch, base) = worktree_of(&sandbox, "x");
    assert_eq!((branch.as_str(), base), ("dispatch/x", before.clone()));
    assert_eq!(names(&path), [".git", "README", "work-x"]);
    assert_eq!(commit(&sandbox, "dispatch/x~"), before);
    // The project is unchanged.
    assert_eq!(commit(&sandbox, "HEAD"), before);
    assert_eq!(sandbox.git(&["status", "--porcelain"]), "");
    assert_eq!(names(&sandbox.project()), [".dispatch", ".git", "README"]);
    for directory in path.ancestors().skip(1).take(2) {
        let mode = fs::metadata(directory).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", directory.display());
    }
    let prompt = sandbox.read("x", "prompt.md");
    let told: Vec<_> = prompt.lines().take(5).collect();
    same(
        &sandbox.redactions().apply(&told.join("\n")),
        str![[r#"
You are the worker of one task, 'x'. Work in HOME/.dispatch/worktrees/project-HASH/x. Your plan is the checklist at the
end of this text, a copy of PROJECT/.dispatch/tasks/x/plan.md. Do its items from top to bottom, each one completely, and tick
each as soon as it is done. Do not start other workers.
Your directory is a git worktree of your own, on branch dispatch/x: commit your work there before you finish
(git add FILE, not -A: a sandbox may show files that are not yours); never
"#]],
    );
}

#[test]
fn dry_run_prints_the_commands_and_creates_nothing() {
    let sandbox = ready(&[]);
    spawn(&sandbox, "x", "idle").args(&["--dry-run"]).run().shows(str![[r#"
exit 0
worktree: HOME/.dispatch/worktrees/project-HASH/x (branch dispatch/x, from COMMIT)
sh -c 'exec sh TOP/scripts/idle "$@"' sh "$(cat STATE/x/attempts/1/prompt.md)"
# full: nothing holds it
"#]]);
    assert_eq!(names(&sandbox.home().join(".dispatch")), ["config.yaml"]);
    assert_eq!(sandbox.git(&["branch", "--list", "dispatch*"]), "");
}

#[test]
fn worktree_inside_claude_code_implies_the_cli_route() {
    let sandbox = ready(&[]);
    let idle = sandbox.script("claude", "exec sleep 1000\n");
    let config = |more: &str| {
        format!(
            "backends: {{ claude: {{ command: {idle}{more} }} }}
models: {{ opus: {{ backend: claude }} }}
"
        )
    };
    let host = Host::new(&sandbox);
    sandbox.config(&config(""));
    host.calls(spawn(&sandbox, "x", "opus")).run().shows(str![[r#"
exit 0
x (Title, 2 items) started with opus. Tell the user and stop; news wakes you.
"#]]);
    sandbox.config(&config(", route: agent"));
    host.calls(spawn(&sandbox, "y", "opus")).run().shows(str![[r#"
exit 64
! dispatch-spawn: an agent of the host cannot have --worktree
!   that needs a supervisor, and an agent has none
!   next: dispatch without it, or take 'route: agent' out of backend 'claude'
"#]]);
    assert!(!sandbox.task("y", "").exists());
}

#[test]
fn worktree_needs_a_repository() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    spawn(&sandbox, "x", "idle").run().shows(str![[r#"
exit 73
! dispatch-spawn: there is no repository for a worktree
!   PROJECT is not in one
!   next: dispatch without --worktree, or make one: git init, git add, git commit
"#]]);
    assert!(!sandbox.task("x", "").exists());
}

#[test]
fn worktree_needs_a_commit() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.git(&["init", "-q", "-b", "main"]);
    spawn(&sandbox, "x", "idle").run().shows(str![[r#"
exit 73
! dispatch-spawn: the repository has no commit to begin a worktree at
!   HEAD of PROJECT/.git names a branch without commits
!   next: commit first, or dispatch without --worktree
"#]]);
    assert!(!sandbox.task("x", "").exists());
}

#[test]
fn worktree_needs_a_recent_git() {
    let sandbox = Sandbox::with_clis(&[]);
    sandbox.workers(&[]);
    let on_machine = || spawn(&sandbox, "x", "idle").env("PATH", sandbox.top().join("clis"));
    on_machine().run().shows(str![[r#"
exit 69
! dispatch-spawn: git is not installed
!   'git' is not in PATH
!   next: install git 2.31 or newer, or dispatch without --worktree
"#]]);
    // An option that it does not know is what it prints.
    let old =
        "case $* in *rev-parse*) echo --path-format=absolute ;; *) echo git version 2.30.9 ;; esac";
    sandbox.add_cli("git", old);
    on_machine().run().shows(str![[r#"
exit 69
! dispatch-spawn: git is too old for worktrees
!   it is git 2.30.9
!   next: install git 2.31 or newer, or dispatch without --worktree
"#]]);
    sandbox.add_cli("git", "echo no libc >&2; exit 1");
    on_machine().run().shows(str![[r#"
exit 73
! dispatch-spawn: cannot look at the repository
!   no libc
"#]]);
    assert!(!sandbox.task("x", "").exists());
}

#[test]
fn host_is_told_of_uncommitted_changes_that_stay_behind() {
    let sandbox = ready(&[]);
    // The plan that the host wrote is not a change of the project.
    sandbox.plan("w", PLAN);
    sandbox.run("dispatch-spawn", &["w", "--worktree"]).shows(str![[r#"
exit 0
w (Title, 2 items) started with idle. Tell the user and stop; news wakes you.
"#]]);
    fs::write(sandbox.project().join("README"), "Changed.\n").expect("written");
    dispatch(&sandbox, "x", "idle").shows(str![[r#"
exit 0
1 uncommitted change is not in the worktree (--with-changes takes them)
x (Title, 2 items) started with idle. Tell the user and stop; news wakes you.
"#]]);
    sandbox.git(&["mv", "-f", "README", "a b"]);
    fs::write(sandbox.project().join("new"), "New.\n").expect("written");
    dispatch(&sandbox, "y", "idle").shows(str![[r#"
exit 0
3 uncommitted changes are not in the worktree (--with-changes takes them)
y (Title, 2 items) started with idle. Tell the user and stop; news wakes you.
"#]]);
    let (path, ..) = worktree_of(&sandbox, "y");
    wait_until("the worktree is there", || running(&sandbox, "y"));
    assert_eq!(names(&path), [".git", "README"]);
    let text = fs::read_to_string(path.join("README")).expect("there");
    assert_eq!(text, "A project.\n");
    fs::write(sandbox.project().join(".git/index"), "?").expect("written");
    dispatch(&sandbox, "z", "idle").shows(str![[r#"
exit 0
cannot look for uncommitted changes: fatal: .git/index: index file smaller than expected
z (Title, 2 items) started with idle. Tell the user and stop; news wakes you.
"#]]);
}

#[test]
fn bare_repository_has_worktrees() {
    let sandbox = ready(&[("commits", &commits())]);
    let bare = sandbox.home().join("the bare one.git");
    sandbox.git(&["clone", "-q", "--bare", ".", &bare.display().to_string()]);
    spawn(&sandbox, "x", "commits").within(&bare).run().shows(str![[r#"
exit 0
x (Title, 2 items) started with commits. Tell the user and stop; news wakes you.
"#]]);
    let show = || sandbox.call("dispatch-reconcile", &["show", "x", "--json"]).within(&bare);
    wait_until("it is done", || show().run().ok().contains("\"state\":\"done\"").then_some(()));
    sandbox.call("dispatch-reconcile", &["show", "x"]).within(&bare).run().ok();
    let (path, branch, base) = worktree(show());
    assert_eq!((branch.as_str(), base), ("dispatch/x", commit(&sandbox, "HEAD")));
    let parent = path.parent().and_then(Path::file_name).expect("a name").to_string_lossy();
    assert!(parent.starts_with("the-bare-one-"), "{parent}");
    let log = sandbox.program("git").args(&["log", "--format=%s", "dispatch/x"]).within(&bare);
    assert_eq!(log.run().ok(), "Work of x\nBegin\n");
}

#[test]
fn shallow_clone_has_worktrees() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["commit", "-q", "--allow-empty", "-m", "Second"]);
    let (shallow, from) = (sandbox.home().join("shallow"), sandbox.project());
    let from = format!("file://{}", from.display());
    sandbox.git(&["clone", "-q", "--depth", "1", &from, &shallow.display().to_string()]);
    spawn(&sandbox, "x", "commits").within(&shallow).run().ok();
    let log =
        || sandbox.program("git").args(&["log", "--format=%s", "dispatch/x"]).within(&shallow);
    wait_until("it commits", || (log().run().out == "Work of x\nSecond\n").then_some(()));
}

#[test]
fn worker_starts_in_the_hosts_subdirectory() {
    let sandbox = ready(&[("where", "pwd -P")]);
    let deep = sandbox.project().join("src/deep one");
    fs::create_dir_all(&deep).expect("made");
    spawn(&sandbox, "x", "where").within(&deep).run().shows(str![[r#"
exit 0
src/deep one/ is not in HEAD: the worker starts at the top
x (Title, 2 items) started with where. Tell the user and stop; news wakes you.
"#]]);
    fs::write(deep.join("a"), "A.\n").expect("written");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Deep"]);
    spawn(&sandbox, "y", "where").within(&deep).run().ok();
    for (id, below) in [("x", ""), ("y", "src/deep one")] {
        sandbox.wait_for_state(id, "incomplete");
        let (path, ..) = worktree_of(&sandbox, id);
        assert_eq!(Path::new(sandbox.read(id, "attempts/1/log").trim()), path.join(below));
    }
}

#[test]
fn worktree_begins_at_the_commit_of_the_hosts_checkout() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["worktree", "add", "-q", "../linked"]);
    let linked = sandbox.home().join("linked");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&linked).run().ok();
    git(&["commit", "-q", "--allow-empty", "-m", "There"]);
    spawn(&sandbox, "x", "commits").within(&linked).run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (.., base) = worktree_of(&sandbox, "x");
    assert_eq!(base, git(&["rev-parse", "HEAD"]).trim());
    assert_ne!(base, commit(&sandbox, "HEAD"));
    assert_eq!(sandbox.git(&["log", "-2", "--format=%s", "dispatch/x"]), "Work of x\nThere\n");
}

/// `deps/lib` is a submodule with one of its own; the other was never cloned here.
#[test]
fn submodules_are_filled_from_local_clones() {
    let sandbox = ready(&[]);
    let git = |directory: &str, args: &[&str]| {
        let call = sandbox.program("git").args(&["-c", "protocol.file.allow=always"]).args(args);
        call.within(sandbox.home().join(directory)).run()
    };
    for name in ["inner", "lib", "other"] {
        sandbox.git(&["init", "-q", "-b", "main", &format!("../{name}")]);
        git(name, &["commit", "-q", "--allow-empty", "-m", "Begin"]);
    }
    fs::write(sandbox.home().join("inner/text"), "Inner.\n").expect("written");
    git("inner", &["add", "."]);
    git("inner", &["commit", "-q", "-m", "Text"]);
    for (directory, args) in [
        ("lib", ["submodule", "add", "../inner", "the inner"]),
        ("lib", ["commit", "-q", "-m", "Inner"]),
        ("project", ["submodule", "add", "../lib", "deps/lib"]),
        ("project", ["submodule", "add", "../other", "other"]),
        ("project", ["commit", "-q", "-m", "Submodules"]),
        ("project", ["submodule", "update", "--init", "--recursive"]),
        ("project", ["submodule", "deinit", "-f", "other"]),
    ] {
        assert_eq!(git(directory, &args).code, Some(0), "{args:?}");
    }
    fs::remove_dir_all(sandbox.project().join(".git/modules/other")).expect("removed");
    // Only a remote branch of the person's clone has the commit.
    for args in [["checkout", "-q", "--detach", "HEAD~"], ["branch", "-q", "-D", "main"]] {
        assert_eq!(git("project/deps/lib", &args).code, Some(0), "{args:?}");
    }
    let settings = fs::read_to_string(sandbox.project().join(".git/config")).expect("there");
    // Move the origins away, so that a fetch would fail.
    for name in ["inner", "lib", "other"] {
        fs::rename(sandbox.home().join(name), sandbox.top().join(name)).expect("moved");
    }
    dispatch(&sandbox, "x", "idle");
    let (path, ..) = worktree_of(&sandbox, "x");
    wait_until("the worktree is there", || running(&sandbox, "x"));
    let told = sandbox.read("x", "tells/001");
    assert_eq!(told, "submodules that are empty in the worktree: other");
    let text = fs::read_to_string(path.join("deps/lib/the inner/text")).expect("there");
    assert_eq!(text, "Inner.\n");
    assert_eq!(names(&path.join("other")), [""; 0]);
    assert_no_links(&path.join(".git/modules"));
    let after = fs::read_to_string(sandbox.project().join(".git/config")).expect("there");
    assert_eq!(after, settings);
}

/// Leaves a commit whose submodule is a symlink into the worker's repository, in which a command waits.
const LINKED_SUBMODULE: &str = "\
exec 2>/dev/null; git init -q -b main s && git -C s commit -q --allow-empty -m One
module() { git config -f .gitmodules submodule.inner.path $1; }
git config -f .gitmodules submodule.inner.url ./s && module s
git add s .gitmodules && git submodule -q absorbgitdirs s
git -C s commit -q --allow-empty -m Two
git config submodule.inner.update \"!touch $HOME/ran\"; git config submodule.inner.active true
ln -s \"$PWD\" linked && module linked && git add linked .gitmodules && git commit -q -m Linked
module s";

#[test]
fn submodule_of_a_worker_leads_into_no_other_repository() {
    let works = commits();
    let ends = works.lines().last().unwrap_or_default();
    let links = format!("{LINKED_SUBMODULE}\n{ends}");
    let sandbox = ready(&[("links", &links), ("fails", "exit 7")]);
    dispatch(&sandbox, "a", "links");
    let after = ["b", "--model", "fails", "--after", "a", "--plan", "-"];
    sandbox.call("dispatch-spawn", &after).input(PLAN).run().ok();
    sandbox.wait_for_state("b", "failed: exit code 7");
    until_over(&sandbox, "b");
    assert_eq!(sandbox.git(&["log", "-1", "--format=%s", "dispatch/b"]), "Linked\n");
    assert!(!sandbox.home().join("ran").exists(), "a worker's command ran");
}

#[test]
fn failing_checkout_hook_is_reported_and_task_starts() {
    let sandbox = ready(&[]);
    let hook = sandbox.project().join(".git/hooks/post-checkout");
    write_program(&sandbox, &hook, "echo 'no node_modules' >&2\nexit 3");
    dispatch(&sandbox, "x", "idle");
    wait_until("the worktree is there", || running(&sandbox, "x"));
    let told = sandbox.read("x", "tells/001");
    assert_eq!(told, "post-checkout hook failed in the worktree: exit code 3: \"no node_modules\"");
    assert_eq!(names(&worktree_of(&sandbox, "x").0), [".git", "README"]);
}

/// A worker that needs the set-up, and ends early at first.
fn needs_set_up() -> String {
    format!("test -e dep || exit 9\ntest -e ~/second || {{ : >~/second; exit 7; }}\n{}", commits())
}

impl Sandbox {
    /// Adds the person's set-up of worktrees to the config.
    fn set_up(&self, text: &str) {
        let config = fs::read_to_string(self.config_path()).expect("a config");
        let config = config.split("worktree:").next().expect("a part");
        self.config(&format!("{config}worktree: {text}\n"));
    }

    /// Waits until a file of the home has this many lines, and returns the last.
    fn last_of(&self, file: &str, count: usize) -> String {
        wait_until(&format!("{file} has {count} lines"), || {
            let text = fs::read_to_string(self.home().join(file)).unwrap_or_default();
            let whole = text.ends_with('\n') && text.lines().count() == count;
            whole.then(|| text.lines().last().expect("a line").to_owned())
        })
    }
}

const SETS_UP: &str = "{ setup: 'echo one >>~/ran; : >dep; echo dep >>.git/info/exclude' }";

#[test]
fn set_up_of_the_config_runs_once_before_the_worker() {
    let sandbox = ready(&[("works", &needs_set_up())]);
    sandbox.set_up(SETS_UP);
    dispatch(&sandbox, "x", "works");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
    assert_eq!(sandbox.last_of("ran", 1), "one");
}

#[test]
fn project_may_have_a_set_up_of_its_own() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["remote", "add", "origin", "/srv/shop.git"]);
    for (count, (name, ran)) in (1..).zip([
        ("~/project", "own"),
        ("~/project/.git", "own"),
        ("/srv/shop.git", "own"),
        ("~/other", "all"),
    ]) {
        sandbox.set_up(&format!(
            "{{ setup: echo all >>~/ran, projects: {{ {name}: echo own >>~/ran }} }}"
        ));
        let id = format!("x{count}");
        dispatch(&sandbox, &id, "commits");
        sandbox.wait_for_state(&id, "done");
        assert_eq!(sandbox.last_of("ran", count), ran, "{name}");
    }
}

#[test]
fn failed_set_up_fails_its_task_which_can_be_resumed() {
    let sandbox = ready(&[("works", &needs_set_up())]);
    sandbox.set_up("{ setup: 'echo begin; echo no network >&2; exit 4' }");
    dispatch(&sandbox, "x", "works");
    until_over(&sandbox, "x");
    let failed = "set-up: echo begin; echo no network >&2; exit 4: exit code 4: \"no network\"";
    assert_eq!(sandbox.state("x"), format!("failed: {failed}"));
    assert_eq!(sandbox.read("x", "attempts/1/setup/log"), "begin\nno network\n");
    assert!(!worktree_of(&sandbox, "x").0.exists());
    fs::write(sandbox.home().join("second"), "").expect("written");
    sandbox.set_up(SETS_UP);
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
    // A misspelled set-up is no set-up that may be left out.
    sandbox.set_up("{ setpu: make }");
    dispatch(&sandbox, "y", "works");
    until_over(&sandbox, "y");
    let state = sandbox.state("y");
    assert!(state.contains("did you mean 'setup'?"), "{state}");
}

/// Where only the CLI itself holds its worker, nothing would hold what the worker's commit makes of the
/// person's commands.
#[test]
fn set_up_never_runs_a_workers_files_unheld() {
    let sandbox = ready(&[]);
    let bin = sandbox.home().join("bin");
    fs::create_dir_all(&bin).expect("made");
    for program in ["sh", "env", "git", "cat", "id", "sleep"] {
        let found = dispatch::process::find_program(program.as_ref()).expect("installed");
        std::os::unix::fs::symlink(found, bin.join(program)).expect("linked");
    }
    write_program(&sandbox, &bin.join("codex"), &commits());
    let hook = sandbox.project().join(".git/hooks/post-checkout");
    write_program(&sandbox, &hook, "echo hook >>~/ran");
    sandbox.config("default: gpt\nmodels: { gpt: { backend: codex } }\n");
    let dispatch = |id: &str, options: &[&str]| {
        let call = spawn(&sandbox, id, "gpt").args(options).env("PATH", &bin);
        let call = call.env("DISPATCH_FAIL", "landlock").run();
        assert_eq!(call.code, Some(0), "{}", call.err);
    };
    dispatch("own", &[]);
    sandbox.wait_for_state("own", "done");
    assert_eq!(sandbox.last_of("ran", 1), "hook");
    dispatch("hook", &["--after", "own"]);
    sandbox.wait_for_state("hook", "done");
    let why = "not run without a sandbox on what a worker wrote: landlock needs Linux 6.2; \
               bubblewrap (bwrap) is not installed";
    assert_eq!(sandbox.read("hook", "tells/001"), format!("post-checkout hook {why}"));
    sandbox.set_up("{ setup: echo set-up >>~/ran }");
    dispatch("set-up", &["--after", "own"]);
    sandbox.wait_for_state("set-up", &format!("failed: set-up: echo set-up >>~/ran: {why}"));
    assert_eq!(sandbox.last_of("ran", 1), "hook");
}

#[test]
fn set_up_that_was_killed_or_stopped_begins_again_in_a_new_worktree() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.set_up("{ setup: 'test ! -e half && : >half; echo $$ >>~/ran; until [ -e ~/go ]; do sleep 0.02; done; rm half' }");
    dispatch(&sandbox, "x", "commits");
    let first = sandbox.last_of("ran", 1).parse().expect("a pid");
    assert_eq!(sandbox.state("x"), "running");
    kill_and_wait(sandbox.supervisor_of("x"));
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    let second = sandbox.last_of("ran", 2).parse().expect("a pid");
    assert!(!runs(first) && runs(second));
    assert_eq!(sandbox.ok("dispatch-reconcile", &["stop", "x"]), "x stopped\n");
    assert!(!runs(second) && !worktree_of(&sandbox, "x").0.exists());
    fs::write(sandbox.home().join("go"), "").expect("written");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
    sandbox.last_of("ran", 3);
}

#[test]
fn branch_named_dispatch_is_no_obstacle() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["branch", "dispatch"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    assert_eq!(worktree_of(&sandbox, "x").1, "dispatch-x");
    assert_eq!(sandbox.git(&["log", "-1", "--format=%s", "dispatch-x"]), "Work of x\n");
}

#[test]
fn reused_task_id_inherits_no_branch() {
    let sandbox = ready(&[("commits", &commits())]);
    for n in 1..=3 {
        dispatch(&sandbox, "x", "commits");
        sandbox.wait_for_state("x", "done");
        until_over(&sandbox, "x");
        let name = if n == 1 { "x".into() } else { format!("x-{n}") };
        let (path, branch, _) = worktree_of(&sandbox, "x");
        assert_eq!(path.file_name(), Some(name.as_ref()));
        assert_eq!(branch, format!("dispatch/{name}"));
        assert_eq!(sandbox.git(&["rev-list", "--count", &branch]), "2\n");
        fs::remove_dir_all(sandbox.project().join(".dispatch")).expect("removed");
    }
    // A branch of that name takes the name, and so does a branch below it.
    sandbox.git(&["branch", "dispatch/y"]);
    sandbox.git(&["branch", "dispatch/z/old"]);
    for id in ["y", "z"] {
        dispatch(&sandbox, id, "idle");
        assert_eq!(worktree_of(&sandbox, id).1, format!("dispatch/{id}-2"));
    }
}

/// A worker that commits, stages another file, and fails.
const STAGES: &str = "echo one >committed && git add . && git commit -q -m One
echo two >staged && git add staged
exit 7";

#[test]
fn deleted_worktree_begins_at_its_last_commit() {
    let sandbox = ready(&[("works", STAGES)]);
    dispatch(&sandbox, "x", "works");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    fs::remove_dir_all(&path).expect("removed");
    sandbox.script("works", "pwd; git branch --show-current; ls; exit 7\n");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "failed: exit code 7: \"committed\"");
    let log = sandbox.read("x", "attempts/2/log");
    same(
        &sandbox.redactions().apply(&log),
        str![[r#"
HOME/.dispatch/worktrees/project-HASH/x
dispatch/x
README
committed

"#]],
    );
}

#[test]
fn half_created_worktree_is_created_again() {
    let sandbox = ready(&[("quits", "exit 0")]);
    dispatch(&sandbox, "x", "quits");
    let (path, ..) = worktree_of(&sandbox, "x");
    sandbox.wait_for_state("x", "incomplete");
    until_over(&sandbox, "x");
    // A killed supervisor leaves its mark, and a part of the files.
    fs::write(path.with_file_name(".x.incomplete"), "").expect("written");
    fs::remove_dir_all(path.join(".git/refs")).expect("removed");
    fs::remove_file(path.join("README")).expect("removed");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "incomplete");
    until_over(&sandbox, "x");
    assert_eq!(names(&path), [".git", "README"]);
    assert_eq!(names(path.parent().expect("a directory")), ["x"]);
}

#[test]
fn resume_leaves_foreign_directory_in_place_of_worktree_alone() {
    let sandbox = ready(&[("quits", "exit 0")]);
    dispatch(&sandbox, "x", "quits");
    sandbox.wait_for_state("x", "incomplete");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    fs::remove_dir_all(path.join(".git")).expect("removed");
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 73
! dispatch-spawn: something else is in the place of the task's worktree
!   HOME/.dispatch/worktrees/project-HASH/x
!   next: move it away, and try again
"#]]);
    assert_eq!(names(&path), ["README"]);
    fs::rename(sandbox.project().join(".git"), sandbox.top().join("git")).expect("moved");
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 65
! dispatch-spawn: this project was moved after its tasks were dispatched
!   from PROJECT/.git
!   next: to take its tasks over, run: dispatch-reconcile adopt
"#]]);
}

#[test]
fn sixteen_parallel_worktrees_lose_no_commit() {
    let sandbox = ready(&[("commits", &commits())]);
    let base = commit(&sandbox, "HEAD");
    let ids: Vec<_> = (1..=16).map(|n| format!("t{n}")).collect();
    let calls: Vec<_> = ids.iter().map(|id| spawn(&sandbox, id, "commits").start()).collect();
    for call in calls {
        call.end().ok();
    }
    for id in &ids {
        sandbox.wait_for_state(id, "done");
        until_over(&sandbox, id);
        let log = sandbox.read(id, "attempts/1/log");
        assert_eq!(
            log,
            "1/2 done. Next is item 2: Second\n2/2 done. Now finish.\nFinished. Stop now.\n"
        );
        assert_eq!(worktree_of(&sandbox, id).2, base);
        assert_eq!(commit(&sandbox, &format!("dispatch/{id}~")), base);
        let files = sandbox.git(&["ls-tree", "--name-only", &format!("dispatch/{id}")]);
        assert_eq!(files, format!("README\nwork-{id}\n"));
    }
    assert_eq!(sandbox.git(&["branch", "--list", "dispatch/*"]).lines().count(), 16);
    sandbox.git(&["fsck", "--strict"]);
}

#[test]
fn commits_outlive_the_task_directory() {
    let sandbox = ready(&[(
        "works",
        "echo one >one && git add . && git commit -q -m One && touch \"$HOME/one\"
until [ -e \"$HOME/go\" ]; do sleep 0.01; done
echo two >two && git add . && git commit -q -m Two && touch \"$HOME/two\"",
    )]);
    dispatch(&sandbox, "x", "works");
    let (path, ..) = worktree_of(&sandbox, "x");
    wait_until("it commits", || sandbox.home().join("one").exists().then_some(()));
    fs::remove_dir_all(sandbox.project().join(".dispatch")).expect("removed");
    fs::write(sandbox.home().join("go"), "").expect("written");
    wait_until("it commits again", || sandbox.home().join("two").exists().then_some(()));
    wait_until("its commits are fetched", || {
        let log = sandbox.program("git").args(&["log", "--format=%s", "dispatch/x"]).run();
        (log.out == "Two\nOne\nBegin\n").then_some(())
    });
    assert_eq!(names(&path), [".git", "README", "one", "two"]);
}

/// A session that was started from a hook has git's variables, for every kind of worker.
#[test]
fn worker_inherits_no_variable_that_selects_for_git() {
    let sandbox = ready(&[("env", "env >\"$HOME/env\""), ("commits", &commits())]);
    let names = [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_QUARANTINE_PATH",
        "GIT_AUTHOR_NAME",
        "GIT_AUTHOR_DATE",
        "GIT_COMMITTER_EMAIL",
        "GIT_CONFIG_PARAMETERS",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_KEY_0",
        "GIT_CONFIG_VALUE_0",
    ];
    sandbox.plan("x", PLAN);
    let spawn = sandbox.call("dispatch-spawn", &["x", "--model", "env"]).env("GIT_SSH", "ssh -4");
    names.iter().fold(spawn, |call, name| call.env(name, "'core.bare=true'")).run().ok();
    sandbox.wait_for_state("x", "incomplete");
    let env = fs::read_to_string(sandbox.home().join("env")).expect("there");
    let mut got: Vec<_> = env.lines().filter(|line| line.starts_with("GIT_")).collect();
    got.sort_unstable();
    assert_eq!(got, ["GIT_CONFIG_NOSYSTEM=1", "GIT_SSH=ssh -4"]);
}

/// The identity holds only in a part of the home directory, and the worktree is in another.
#[test]
fn worktree_has_the_settings_of_the_persons_checkout() {
    let sandbox = ready(&[("commits", &commits())]);
    let settings = "[includeIf \"gitdir:~/project/\"]\n\tpath = work\n[commit]\n\tgpgSign = true\n";
    fs::write(sandbox.home().join(".gitconfig"), settings).expect("written");
    let work = "[user]\n\tname = At work\n\temail = work@example.com\n[core]\n\tautocrlf = input\n";
    fs::write(sandbox.home().join("work"), work).expect("written");
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let author = sandbox.git(&["log", "-1", "--format=%an <%ae>", "dispatch/x"]);
    assert_eq!(author, "At work <work@example.com>\n");
    let (path, ..) = worktree_of(&sandbox, "x");
    let crlf = sandbox.program("git").args(&["config", "core.autocrlf"]).within(&path).run().ok();
    assert_eq!(crlf, "input\n");
}

/// Teams keep their hooks in the repository; the hook that sets a checkout up runs once.
#[test]
fn hooks_of_a_relative_path_run_in_the_worktree() {
    let sandbox = ready(&[("commits", &commits())]);
    let hook = |name: &str, script: &str| {
        write_program(&sandbox, &sandbox.project().join(".githooks").join(name), script);
    };
    hook("post-checkout", "echo \"$3\" >>.env; echo .env >>.git/info/exclude");
    hook("commit-msg", "echo checked >>\"$1\"");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Hooks"]);
    sandbox.git(&["config", "core.hooksPath", ".githooks"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    assert_eq!(fs::read_to_string(path.join(".env")).expect("made"), "1\n");
    let message = sandbox.git(&["log", "-1", "--format=%s", "dispatch/x"]);
    assert_eq!(message, "Work of x checked\n");
}

#[test]
fn worktree_has_the_sparse_patterns_of_the_checkout() {
    let sandbox = ready(&[("commits", &commits())]);
    for name in ["a/one", "b/two"] {
        let path = sandbox.project().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, name).expect("written");
    }
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Files"]);
    sandbox.git(&["sparse-checkout", "set", "a"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    assert_eq!(names(&path), [".git", "README", "a", "work-x"]);
    let files = sandbox.git(&["ls-tree", "-r", "--name-only", "dispatch/x"]);
    assert_eq!(files, "README\na/one\nb/two\nwork-x\n");
    sandbox.ok("dispatch-reconcile", &["merge", "x"]);
    sandbox.ok("dispatch-reconcile", &["clean", "x"]);
}

/// A hook of another repository sets these variables, and so do people with dotfiles in a repository.
#[test]
fn dispatch_ignores_git_variables_of_another_repository() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["init", "-q", "-b", "main", "../other"]);
    let other = sandbox.home().join("other");
    let spawn = spawn(&sandbox, "x", "commits")
        .env("GIT_DIR", other.join(".git"))
        .env("GIT_WORK_TREE", &other)
        .env("GIT_INDEX_FILE", other.join("index"));
    spawn.run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    assert_eq!(sandbox.git(&["log", "--format=%s", "dispatch/x"]), "Work of x\nBegin\n");
    assert_eq!(names(&other), [".git"]);
}

#[test]
fn dispatch_waits_for_another_programs_git_lock() {
    let sandbox = ready(&[]);
    let path = path_with(&sandbox, "git", &format!("exec {} \"$@\"", real_git(&sandbox)));
    let lock = sandbox.project().join(".git/refs/dispatch/base/x.lock");
    fs::create_dir_all(lock.parent().expect("a directory")).expect("made");
    fs::write(&lock, "").expect("written");
    let spawn = spawn(&sandbox, "x", "idle").env("PATH", path).start();
    wait_until("git to be called again", || {
        let calls = fs::read_to_string(sandbox.top().join("calls")).unwrap_or_default();
        (calls.matches(" update-ref ").count() > 1).then_some(())
    });
    fs::remove_file(&lock).expect("removed");
    spawn.end().ok();
    assert_eq!(commit(&sandbox, "refs/dispatch/base/x"), commit(&sandbox, "HEAD"));
}

/// A host in another worktree of a bare repository, which is another project, can take the name.
#[test]
fn dispatch_refuses_branch_that_was_taken_meanwhile() {
    let sandbox = ready(&[]);
    let git = real_git(&sandbox);
    let takes = format!(
        "{git} \"$@\"; code=$?
case \"$*\" in *for-each-ref*) {git} branch dispatch/x ;; esac
exit $code"
    );
    let path = path_with(&sandbox, "git", &takes);
    spawn(&sandbox, "x", "idle").env("PATH", path).run().shows(str![[r#"
exit 75
! dispatch-spawn: the branch dispatch/x was taken meanwhile
!   next: try again
"#]]);
    assert!(!sandbox.task("x", "plan.md").exists());
    spawn(&sandbox, "x", "idle").run().ok();
    assert_eq!(worktree_of(&sandbox, "x").1, "dispatch/x-2");
}

/// Some hosts ignore SIGCHLD, and their children inherit that.
#[test]
fn host_that_ignores_sigchld_gets_worktrees() {
    let sandbox = ready(&[]);
    // SAFETY: ignoring a signal installs no handler.
    let ignore = || Ok(unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map(drop)?);
    let call = spawn(&sandbox, "x", "idle").with(|command| {
        // SAFETY: `signal` is async-signal-safe, and ignoring a signal installs no handler.
        unsafe { command.pre_exec(ignore) };
    });
    call.run().ok();
    assert_eq!(worktree_of(&sandbox, "x").1, "dispatch/x");
}

#[test]
fn sandboxed_cli_may_write_to_no_directory_of_the_persons_repository() {
    let sandbox = Sandbox::with_git();
    sandbox.config("backends: { codex: {} }\nmodels: { gpt: { backend: codex } }\n");
    let path = path_with(&sandbox, "codex", "exec sleep 1000");
    spawn(&sandbox, "x", "gpt").env("PATH", &path).env("DISPATCH_FAIL", "landlock").run().ok();
    spawn(&sandbox, "y", "gpt")
        .args(&["--access", "read"])
        .env("PATH", &path)
        .env("DISPATCH_FAIL", "landlock")
        .run()
        .ok();
    let prompt = sandbox.read("y", "prompt.md");
    assert!(prompt.contains("branch dispatch/y: never\npush"), "{prompt}");
    let calls = wait_until("both are called", || {
        let calls = fs::read_to_string(sandbox.top().join("calls")).ok()?;
        (calls.matches("codex exec").count() == 2).then_some(calls)
    });
    let mut calls: Vec<_> = calls.lines().filter(|line| line.starts_with("codex exec")).collect();
    calls.sort_by_key(|call| !call.contains("worktrees/x"));
    same(
        &sandbox.redactions().apply(&calls.join("\n").replace(" --", "\n  --")),
        str![[r#"
codex exec
  --json
  --skip-git-repo-check -c default_permissions="dispatch" -c permissions.dispatch={extends=":workspace",filesystem={":slash_tmp"="read","PROJECT/.dispatch/tasks/x"="write","HOME/.dispatch/worktrees/project-HASH/x/.git"="write"}} -C HOME/.dispatch/worktrees/project-HASH/x
  --add-dir PROJECT/.dispatch/tasks/x
  --add-dir HOME/.dispatch/worktrees/project-HASH/x/.git
  --model gpt -
codex exec
  --json
  --skip-git-repo-check -c default_permissions="dispatch" -c permissions.dispatch={extends=":workspace",filesystem={":slash_tmp"="read","PROJECT/.dispatch/tasks/y"="write"}} -C PROJECT/.dispatch/tasks/y
  --add-dir PROJECT/.dispatch/tasks/y
  --model gpt -
"#]],
    );
}

/// A worker can write any `.git` file into its worktree.
#[test]
fn forged_git_file_opens_no_directory_to_the_worker() {
    let sandbox = Sandbox::with_git();
    sandbox.config("backends: { codex: {} }\nmodels: { gpt: { backend: codex } }\n");
    let path = path_with(&sandbox, "codex", "exit 7");
    spawn(&sandbox, "x", "gpt").env("PATH", &path).env("DISPATCH_FAIL", "landlock").run().ok();
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    let secret = sandbox.home().join("secret");
    fs::create_dir_all(&secret).expect("made");
    let (path_of_x, ..) = worktree_of(&sandbox, "x");
    let text = format!("gitdir: {}\n", secret.display());
    fs::remove_dir_all(path_of_x.join(".git")).expect("removed");
    fs::write(path_of_x.join(".git"), text).expect("written");
    let ran = sandbox
        .call("dispatch-spawn", &["x", "--resume"])
        .env("PATH", &path)
        .env("DISPATCH_FAIL", "landlock")
        .run();
    assert_eq!(ran.code, Some(73), "{}", ran.err);
    let calls = fs::read_to_string(sandbox.top().join("calls")).expect("called");
    assert!(!calls.contains("secret"), "{calls}");
}

/// Some workers make a branch of their own.
#[test]
fn next_task_begins_with_work_on_a_branch_of_the_workers_own() {
    let own = format!("git checkout -q -b own\n{}", commits());
    let sandbox = ready(&[("commits", &commits()), ("own", &own)]);
    dispatch(&sandbox, "a", "own");
    let after = ["b", "--model", "commits", "--after", "a", "--plan", "-"];
    sandbox.call("dispatch-spawn", &after).input(PLAN).run().ok();
    sandbox.wait_for_state("b", "done");
    until_over(&sandbox, "b");
    let log = sandbox.git(&["log", "--format=%s", "dispatch/b"]);
    assert_eq!(log, "Work of b\nWork of a\nBegin\n");
    // Commits of the task before it are not foreign.
    sandbox.ok("dispatch-reconcile", &["merge", "b"]);
}

/// Settings that only a linked worktree, or only a bare repository, should have.
#[test]
fn odd_settings_of_the_repository_do_not_reach_the_worktree() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["config", "extensions.worktreeConfig", "true"]);
    sandbox.git(&["config", "core.worktree", "/nowhere"]);
    sandbox.git(&["config", "--worktree", "core.worktree", "../"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let files = sandbox.git(&["ls-tree", "--name-only", "dispatch/x"]);
    assert_eq!(files, "README\nwork-x\n");
}

#[test]
fn submodule_as_the_project_has_worktrees() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["init", "-q", "-b", "main", "../top"]);
    let top = sandbox.home().join("top");
    let git = |directory: &Path, args: &[&str]| {
        let call = sandbox.program("git").args(&["-c", "protocol.file.allow=always"]).args(args);
        let ran = call.within(directory).run();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.out
    };
    git(&top, &["submodule", "--quiet", "add", "../project", "sub"]);
    git(&top, &["commit", "-q", "-m", "Sub"]);
    let sub = top.join("sub");
    spawn(&sandbox, "x", "commits").within(&sub).run().ok();
    let show = || sandbox.call("dispatch-reconcile", &["show", "x"]).within(&sub).run().ok();
    wait_until("it commits", || show().contains("\ndone, ").then_some(()));
    sandbox.call("dispatch-reconcile", &["show", "x"]).within(&sub).run().ok();
    let merge = || sandbox.call("dispatch-reconcile", &["merge", "x"]).within(&sub).run();
    wait_until("its supervisor ends", || (merge().code == Some(0)).then_some(()));
    assert_eq!(git(&sub, &["log", "--format=%s", "dispatch/x"]), "Work of x\nBegin\n");
    assert_eq!(names(&sub), [".dispatch", ".git", "README", "work-x"]);
}

/// Every checkout of a bare repository shows the same tasks.
#[test]
fn checkouts_of_a_bare_repository_are_one_project() {
    let sandbox = ready(&[]);
    let bare = sandbox.home().join("shop/.bare");
    sandbox.git(&["clone", "-q", "--bare", ".", &bare.display().to_string()]);
    let checkouts = ["one", "two"].map(|name| bare.with_file_name(name));
    for (checkout, branch) in checkouts.iter().zip(["b1", "b2"]) {
        let add = ["worktree", "add", "-q", "-b", branch, checkout.to_str().expect("UTF-8")];
        sandbox.program("git").args(&add).within(&bare).run().ok();
    }
    spawn(&sandbox, "x", "idle").within(&checkouts[0]).run().ok();
    for place in [&checkouts[0], &checkouts[1], &bare] {
        let status = sandbox.call("dispatch-reconcile", &[]).within(place).run().ok();
        assert!(status.starts_with("x running") && !status.contains("orphaned"), "{status}");
    }
}

#[test]
fn repository_with_reftable_has_worktrees() {
    let sandbox = ready(&[("commits", &commits())]);
    let init = ["init", "-q", "-b", "main", "--ref-format=reftable", "../table"];
    if sandbox.program("git").args(&init).run().code != Some(0) {
        // This git has no reftable.
        return;
    }
    let table = sandbox.home().join("table");
    let git = |args: &[&str]| sandbox.program("git").args(args).within(&table).run().ok();
    git(&["commit", "-q", "--allow-empty", "-m", "Begin"]);
    spawn(&sandbox, "x", "commits").within(&table).run().ok();
    let merge = || sandbox.call("dispatch-reconcile", &["merge", "x"]).within(&table).run();
    wait_until("it can be merged", || (merge().code == Some(0)).then_some(()));
    assert_eq!(git(&["log", "--format=%s"]), "Work of x\nBegin\n");
}

/// Neither a slow hook nor a process that it leaves behind holds up who dispatches.
#[test]
fn spawn_does_not_wait_for_hooks() {
    let sandbox = ready(&[("commits", &commits())]);
    let hook = sandbox.project().join(".git/hooks/post-checkout");
    write_program(&sandbox, &hook, "sleep 1000 & until [ -e \"$HOME/go\" ]; do sleep 0.01; done");
    dispatch(&sandbox, "x", "commits");
    assert_eq!(sandbox.state("x"), "running");
    fs::write(sandbox.home().join("go"), "").expect("written");
    sandbox.wait_for_state("x", "done");
}

#[test]
fn failed_creation_names_its_cause_and_leaves_no_branch() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["config", "filter.lfs.process", "git-lfs-is-missing filter-process"]);
    sandbox.git(&["config", "filter.lfs.required", "true"]);
    let attributes = sandbox.project().join(".gitattributes");
    fs::write(&attributes, "*.bin filter=lfs\n").expect("written");
    fs::write(sandbox.project().join("a.bin"), "A.\n").expect("written");
    let off = ["-c", "filter.lfs.process=", "-c", "filter.lfs.required=false"];
    sandbox.git(&[&off[..], &["add", "."]].concat());
    sandbox.git(&[&off[..], &["commit", "-q", "-m", "Large"]].concat());
    dispatch(&sandbox, "x", "commits");
    until_over(&sandbox, "x");
    let state = sandbox.state("x");
    assert!(state.starts_with("failed: could not start: cannot make the worktree"), "{state}");
    assert!(state.contains("git-lfs-is-missing"), "{state}");
    assert_eq!(sandbox.git(&["branch", "--list", "dispatch/*"]), "");
    let (path, ..) = worktree_of(&sandbox, "x");
    assert!(!path.exists());
    // After the cause is gone, the task resumes.
    sandbox.git(&["config", "filter.lfs.process", ""]);
    sandbox.git(&["config", "filter.lfs.required", "false"]);
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
}

/// A branch that was fetched without its reference of dispatch's own is completed by the next look.
#[test]
fn fetch_that_was_killed_leaves_the_branch() {
    let sandbox = ready(&[("stays", "echo 1 >a; git add a; git commit -qm A; exec sleep 1000")]);
    dispatch(&sandbox, "x", "stays");
    let (path, ..) = worktree_of(&sandbox, "x");
    let log = || sandbox.program("git").args(&["log", "-1", "--format=%s"]).within(&path).run().out;
    wait_until("a commit", || (path.is_dir() && log() == "A\n").then_some(()));
    let killed = sandbox.call("dispatch-reconcile", &["show", "x"]).crash_at("fetch:branch").run();
    assert_eq!(killed.signal, Some(9));
    let tip = || sandbox.git(&["log", "-1", "--format=%s", "dispatch/x"]);
    assert_eq!(tip(), "A\n");
    sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert_eq!(tip(), "A\n");
    // A branch that the person deletes stays deleted.
    sandbox.git(&["branch", "-q", "-D", "dispatch/x"]);
    sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert_eq!(sandbox.git(&["branch", "--list", "dispatch/*"]), "");
}

/// Killed helpers leave files beside the worktrees; those of running ones stay.
#[test]
fn next_worktree_removes_what_killed_helpers_left() {
    let sandbox = ready(&[("commits", &commits())]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    let (path, ..) = worktree_of(&sandbox, "x");
    let running = sandbox.program("sleep").arg("1000").start();
    let pids = [u32::MAX / 4, running.pid()];
    for pid in pids {
        fs::create_dir(path.with_file_name(format!(".x.scratch-{pid}"))).expect("made");
        fs::create_dir(path.with_file_name(format!(".y.hooks-{pid}"))).expect("made");
        fs::create_dir(path.with_file_name(format!(".changes-{pid}"))).expect("made");
    }
    dispatch(&sandbox, "y", "commits");
    sandbox.wait_for_state("y", "done");
    let left = names(path.parent().expect("a directory"));
    let of = |pid: u32| left.iter().filter(|name| name.ends_with(&format!("-{pid}"))).count();
    assert_eq!(pids.map(of), [0, 3], "{left:?}");
}

/// The run lock proves that nobody holds the lock that a killed worker's git left.
#[test]
fn stale_lock_does_not_keep_a_worker_from_committing() {
    let sandbox = ready(&[("fails", "touch .git/index.lock .git/refs/heads/a.lock; exit 7")]);
    dispatch(&sandbox, "x", "fails");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    sandbox.script("fails", &format!("{}\n", commits()));
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
}

#[test]
fn linked_references_lose_no_file_elsewhere() {
    let sandbox = ready(&[("fails", "rm -rf .git/refs; ln -s \"$HOME/other\" .git/refs; exit 7")]);
    let other = sandbox.home().join("other/deep");
    fs::create_dir_all(other.join("directory.lock")).expect("made");
    fs::write(other.join("a.lock"), "The person's.\n").expect("written");
    dispatch(&sandbox, "x", "fails");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    sandbox.script("fails", "touch \"$HOME/again\"; exit 7\n");
    sandbox.run("dispatch-spawn", &["x", "--resume"]);
    wait_until("the worker runs again", || sandbox.home().join("again").exists().then_some(()));
    assert_eq!(names(&other), ["a.lock", "directory.lock"]);
}

#[test]
fn resume_names_the_directory_that_is_gone() {
    let sandbox = ready(&[("fails", "exit 7")]);
    let deep = sandbox.project().join("deep");
    fs::create_dir(&deep).expect("made");
    let spawn = sandbox.call("dispatch-spawn", &["x", "--model", "fails", "--plan", "-"]);
    spawn.within(&deep).input(PLAN).run().ok();
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    fs::remove_dir(&deep).expect("removed");
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 65
! dispatch-spawn: the directory of the task is gone
!   PROJECT/deep
!   next: put it back there, or dispatch the plan again as a new task
"#]]);
}

#[test]
fn included_files_come_along() {
    let sandbox = ready(&[("commits", &commits())]);
    let write = |name: &str, text: &str| {
        let path = sandbox.project().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    };
    write(".gitignore", ".env\nconfig/*.local\nsecret\nlink\n");
    write(".worktreeinclude", ".env\nconfig/*.local\nlink\nuntracked\n");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Include"]);
    for name in [".env", "config/a.local", "secret", "untracked"] {
        write(name, name);
    }
    std::os::unix::fs::symlink("secret", sandbox.project().join("link")).expect("made");
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    let there = [".env", ".git", ".gitignore", ".worktreeinclude", "README", "config", "work-x"];
    assert_eq!(names(&path), there);
    assert_eq!(fs::read_to_string(path.join("config/a.local")).expect("there"), "config/a.local");
    let told = sandbox.read("x", "tells/001");
    assert_eq!(told, ".worktreeinclude: copied .env, config/a.local; too large: link");
    sandbox.ok("dispatch-reconcile", &["merge", "x"]);
    sandbox.ok("dispatch-reconcile", &["clean", "x"]);
}

#[test]
fn worktree_begins_with_the_uncommitted_changes() {
    let sandbox = ready(&[("commits", &commits())]);
    fs::write(sandbox.project().join("README"), "Changed.\n").expect("written");
    fs::write(sandbox.project().join("new"), "New.\n").expect("written");
    fs::write(sandbox.project().join("staged"), "Staged.\n").expect("written");
    sandbox.git(&["add", "staged"]);
    let status = sandbox.git(&["status", "--porcelain"]);
    let index = fs::read(sandbox.project().join(".git/index")).expect("there");
    spawn(&sandbox, "x", "commits").args(&["--with-changes"]).run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    assert_eq!(names(&path), [".git", "README", "new", "staged", "work-x"]);
    assert_eq!(fs::read_to_string(path.join("README")).expect("there"), "Changed.\n");
    assert_eq!(sandbox.git(&["status", "--porcelain"]), status);
    assert_eq!(fs::read(sandbox.project().join(".git/index")).expect("there"), index);
    // Only the worker's commit comes back, and the changes are still not committed.
    sandbox.ok("dispatch-reconcile", &["merge", "x"]);
    assert_eq!(sandbox.git(&["log", "--format=%s"]), "Work of x\nBegin\n");
    assert_eq!(sandbox.git(&["status", "--porcelain"]), status);
    sandbox.ok("dispatch-reconcile", &["clean", "x"]);
}

#[test]
fn tasks_in_sequence_work_on_one_branch() {
    let sandbox = ready(&[("commits", &commits())]);
    dispatch(&sandbox, "a", "commits");
    let after = ["b", "--model", "commits", "--after", "a", "--continue-branch", "--plan", "-"];
    sandbox.call("dispatch-spawn", &after).input(PLAN).run().ok();
    sandbox.wait_for_state("b", "done");
    until_over(&sandbox, "b");
    assert_eq!(worktree_of(&sandbox, "b").1, "dispatch/a");
    assert_eq!(sandbox.git(&["branch", "--list", "dispatch/*"]), "  dispatch/a\n");
    let log = sandbox.git(&["log", "--format=%s", "dispatch/a"]);
    assert_eq!(log, "Work of b\nWork of a\nBegin\n");
    sandbox.run("dispatch-reconcile", &["merge", "a"]).shows(str![[r#"
exit 0
dispatch/a at COMMIT: 2 commits into main (fast-forward); dispatch-reconcile clean a removes the task
"#]]);
    sandbox.run("dispatch-reconcile", &["clean"]).shows(str![[r#"
exit 0
removed a with its worktree and branch dispatch/a
removed b with its worktree and branch dispatch/a
"#]]);
    assert_eq!(sandbox.git(&["for-each-ref", "refs/dispatch", "refs/heads/dispatch"]), "");
}

#[test]
fn colliding_branches_are_told_once() {
    let writes = commits().replace("work-$id", "same").replace("echo work", "echo $id");
    let sandbox = ready(&[("writes", &writes)]);
    for id in ["a", "b"] {
        dispatch(&sandbox, id, "writes");
        sandbox.wait_for_state(id, "done");
        until_over(&sandbox, id);
    }
    assert!(!sandbox.task("a", "tells/001").exists());
    let told = sandbox.read("b", "tells/001");
    assert_eq!(told, "its commits conflict with those of a: same");
    let show = sandbox.ok("dispatch-reconcile", &["show", "b"]);
    assert!(show.contains("\nconflicts with a: same\n"), "{show}");
}

/// Checks that no file has a second name. A link would let the worker write the person's file.
#[track_caller]
fn assert_no_links(directory: &Path) {
    let mut files = 0;
    for entry in walkdir::WalkDir::new(directory) {
        let entry = entry.expect("readable");
        let links = entry.metadata().expect("there").nlink();
        assert!(entry.file_type().is_dir() || links == 1, "{}", entry.path().display());
        files += usize::from(entry.file_type().is_file());
    }
    assert_ne!(files, 0, "{}", directory.display());
}

/// Without Git LFS on the machine, nothing is tested.
#[test]
fn large_files_come_along_both_ways() {
    let works = "cp a.bin \"$HOME/seen\"; echo worker >b.bin; echo \"$HOME\" >>a.bin";
    let sandbox = ready(&[("works", &format!("{works}\n{}", commits()))]);
    if sandbox.program("git").args(&["lfs", "install", "--skip-repo"]).run().code != Some(0) {
        return;
    }
    fs::write(sandbox.project().join(".gitattributes"), "*.bin filter=lfs -text\n")
        .expect("written");
    fs::write(sandbox.project().join("a.bin"), "person\n").expect("written");
    sandbox.git(&["add", "."]);
    sandbox.git(&["commit", "-q", "-m", "Large"]);
    dispatch(&sandbox, "x", "works");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    assert_eq!(fs::read_to_string(sandbox.home().join("seen")).expect("there"), "person\n");
    let blob = sandbox.git(&["show", "dispatch/x:b.bin"]);
    assert!(blob.starts_with("version https://git-lfs"), "{blob}");
    assert_no_links(&sandbox.project().join(".git/lfs/objects"));
    // A file whose content is not what its name says does not come over.
    let (path, ..) = worktree_of(&sandbox, "x");
    let forged = "0".repeat(64);
    let directory = path.join(".git/lfs/objects/00/00");
    fs::create_dir_all(&directory).expect("made");
    fs::write(directory.join(&forged), "forged").expect("written");
    let more = ["commit", "-q", "--allow-empty", "-m", "More"];
    sandbox.program("git").args(&more).within(&path).run().ok();
    sandbox.ok("dispatch-reconcile", &["merge", "x"]);
    assert_eq!(fs::read_to_string(sandbox.project().join("b.bin")).expect("there"), "worker\n");
    assert!(!sandbox.project().join(".git/lfs/objects/00/00").join(&forged).exists());
    // A large file that the worker did not commit comes along too.
    fs::write(path.join("c.bin"), "left\n").expect("written");
    sandbox.ok("dispatch-reconcile", &["merge", "x", "--uncommitted"]);
    assert_eq!(fs::read_to_string(sandbox.project().join("c.bin")).expect("there"), "left\n");
    sandbox.ok("dispatch-reconcile", &["clean", "x"]);
}

/// The worktree reads the objects of a repository that has another path now.
#[test]
fn worktree_of_a_renamed_project_resumes_after_adopt() {
    let sandbox = ready(&[("fails", "exit 7")]);
    dispatch(&sandbox, "x", "fails");
    sandbox.wait_for_state("x", "failed: exit code 7");
    until_over(&sandbox, "x");
    let renamed = sandbox.home().join("renamed");
    fs::rename(sandbox.project(), &renamed).expect("renamed");
    let there = |helper: &str, args: &[&str]| sandbox.call(helper, args).within(&renamed);
    let adopt = there("dispatch-reconcile", &["adopt"]).env("DISPATCH_FAIL", "callers");
    let mut terminal = Terminal::run(adopt);
    terminal.read_until("[y/N] ");
    terminal.write("y\n");
    assert!(terminal.status().success());
    sandbox.script("fails", &format!("{}\n", commits()));
    there("dispatch-spawn", &["x", "--resume"]).run().ok();
    let merge = || there("dispatch-reconcile", &["merge", "x"]).run();
    wait_until("it can be merged", || (merge().code == Some(0)).then_some(()));
    assert!(renamed.join("work-x").exists());
}

/// Attacks that a worker can leave in its worktree, as shell scripts that run there. `$RAN` is a program that
/// leaves a trace, `$PROJECT` the person's checkout.
const ATTACKS: [(&str, &str); 14] = [
    (
        "settings",
        "for key in core.fsmonitor core.editor core.pager core.sshCommand diff.external \
         core.alternateRefsCommand uploadpack.packObjectsHook filter.x.clean filter.x.smudge \
         filter.x.process diff.x.textconv merge.x.driver credential.helper gpg.program \
         alias.status alias.ls-files; do git config $key \"$RAN\"; done
         git config filter.x.required true; git config core.hooksPath \"$PWD/hooks\"
         git config extensions.partialClone origin; git config remote.origin.promisor true
         git config remote.origin.url \"ext::$RAN\"; git config remote.origin.uploadpack \"$RAN\"
         echo '* filter=x diff=x merge=x' >.git/info/attributes",
    ),
    (
        "hooks",
        "mkdir -p .git/hooks; for name in post-checkout pre-commit reference-transaction \
         post-index-change post-merge proc-receive push-to-checkout fsmonitor-watchman; do
         cp \"$RAN\" .git/hooks/$name; done",
    ),
    (
        "attributes",
        "cp \"$RAN\" planted; echo '* filter=person' >.gitattributes; echo more >>README",
    ),
    ("commondir", "git config core.fsmonitor \"$RAN\"; echo \"$PROJECT/.git\" >.git/commondir"),
    (
        "replaced",
        "evil=$(echo evil | git hash-object -w --stdin)
         git replace $(git rev-parse main:README) $evil
         git commit -q --allow-empty -m New
         git replace main $(git commit-tree -m evil $(git write-tree))",
    ),
    (
        "overwritten",
        "id=$(git rev-parse main:README); other=$(echo evil | git hash-object -w --stdin)
         path() { echo .git/objects/$(echo $1 | cut -c1-2)/$(echo $1 | cut -c3-); }
         mkdir -p $(dirname $(path $id)); cp -f $(path $other) $(path $id)
         git commit -q --allow-empty -m New",
    ),
    (
        "other objects",
        "echo \"$OTHER/.git/objects\" >>.git/objects/info/alternates
         git reset -q --soft $(git -C \"$OTHER\" rev-parse HEAD)",
    ),
    (
        "missing object",
        "git commit -q --allow-empty -m Missing; rm -rf .git/objects/[0-9a-f][0-9a-f]",
    ),
    ("linked .git", "mv .git ../git-of-x; ln -s ../git-of-x .git"),
    ("file .git", "rm -rf .git; echo \"gitdir: $PROJECT/.git\" >.git"),
    (
        "linked objects",
        "git commit -q --allow-empty -m Linked; rm -rf .git/objects; ln -s \"$OTHER/.git/objects\" .git/objects",
    ),
    ("linked references", "rm -rf .git/refs; ln -s \"$OTHER/.git/refs\" .git/refs"),
    (
        "pipe",
        "rm -f .git/HEAD; mkfifo .git/HEAD; rm -rf .git/objects/pack; mkfifo .git/objects/pack",
    ),
    ("path", "echo 'ref: refs/heads/../../../../project/.git/HEAD' >.git/HEAD"),
];

/// The files of the person's repository, without what a fetch may add.
fn repository(sandbox: &Sandbox) -> Tree {
    let git = sandbox.project().join(".git");
    let mut files = tree(std::slice::from_ref(&git));
    let added = ["refs/dispatch", "refs/heads/dispatch", "logs/refs/heads/dispatch"];
    let may_change = |path: &PathBuf| added.iter().any(|it| path.starts_with(git.join(it)));
    files.retain(|path, (mode, _)| !may_change(path) && *mode & 0o40000 == 0);
    files
}

/// Nothing that a worker left is executed, and nothing of the person's repository changes.
#[test]
fn planted_repository_is_read_and_never_obeyed() {
    let sandbox = ready(&[("commits", &commits())]);
    sandbox.git(&["config", "filter.person.clean", "./planted"]);
    sandbox.git(&["init", "-q", "-b", "main", "../other"]);
    let other = sandbox.home().join("other");
    let inside = |directory: &Path, args: &[&str]| {
        sandbox.program("git").args(args).within(directory).run().ok()
    };
    inside(&other, &["commit", "-q", "--allow-empty", "-m", "Secret"]);
    let secret = inside(&other, &["rev-parse", "HEAD"]);
    dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let (path, ..) = worktree_of(&sandbox, "x");
    let (ran, trace) = (sandbox.top().join("ran"), sandbox.home().join("trace"));
    write_program(&sandbox, &ran, "echo ran >>\"$HOME/trace\"; cat");
    let kept = sandbox.top().join("kept");
    let copy = |from: &Path, to: &Path| {
        sandbox.program("cp").arg("-a").arg(from).arg(to).run().ok();
    };
    copy(&path, &kept);
    let (base, mut outcomes) = (commit(&sandbox, "HEAD"), Vec::new());
    for (attack, script) in ATTACKS {
        fs::remove_dir_all(&path).expect("removed");
        copy(&kept, &path);
        let before = repository(&sandbox);
        let plant = sandbox.program("sh").args(&["-e", "-c", script]).within(&path);
        let plant = plant.env("RAN", &ran).env("PROJECT", sandbox.project()).env("OTHER", &other);
        plant.run().ok();
        for args in [&["show", "x"][..], &["status"], &["clean", "x"]] {
            let said = sandbox.run("dispatch-reconcile", args);
            let text = format!("{attack}: {args:?}: {}{}", said.out, said.err);
            assert!(matches!(said.code, Some(0 | 1 | 65 | 73)), "{:?} {text}", said.code);
            assert!(!trace.exists(), "something ran: {text}");
            assert!(path.exists(), "{text}");
            let after = repository(&sandbox);
            let changed = before.iter().filter(|(path, file)| after.get(*path) != Some(file));
            let changed: Vec<_> = changed.map(|(path, _)| path).collect();
            assert!(changed.is_empty(), "{text}\nchanged: {changed:?}");
        }
        let merged = sandbox.run("dispatch-reconcile", &["merge", "x"]);
        assert!(!trace.exists(), "{attack}: something ran: {merged:?}");
        let work = fs::read_to_string(sandbox.project().join("work-x"));
        assert_eq!(
            merged.code == Some(0),
            work.is_ok_and(|it| it == "work\n"),
            "{attack}: {merged:?}"
        );
        outcomes.push(format!("{attack}: {}", merged.err.lines().next().unwrap_or("merged")));
        let readme = fs::read_to_string(sandbox.project().join("README"));
        assert_eq!(readme.expect("there"), "A project.\n", "{attack}");
        let fetched = sandbox.program("git").args(&["cat-file", "-e", secret.trim()]).run();
        assert_ne!(fetched.code, Some(0), "{attack}: a commit of another repository was fetched");
        let _ = fs::remove_dir_all(path.with_file_name("git-of-x"));
        sandbox.git(&["reset", "-q", "--hard", &base]);
    }
    let outcomes = sandbox.redactions().apply(&outcomes.join("\n"));
    same(
        &outcomes,
        str![[r#"
settings: merged
hooks: merged
attributes: dispatch-reconcile: the worktree of 'x' has changes that are not committed
commondir: merged
replaced: merged
overwritten: merged
other objects: dispatch-reconcile: cannot fetch COMMIT of the worktree
missing object: dispatch-reconcile: cannot fetch COMMIT of the worktree
linked .git: dispatch-reconcile: HOME/.dispatch/worktrees/project-HASH/x is no longer the worktree
file .git: dispatch-reconcile: HOME/.dispatch/worktrees/project-HASH/x is no longer the worktree
linked objects: dispatch-reconcile: HOME/.dispatch/worktrees/project-HASH/x/.git/objects is a symlink
linked references: dispatch-reconcile: HOME/.dispatch/worktrees/project-HASH/x/.git/refs is a symlink
pipe: dispatch-reconcile: HOME/.dispatch/worktrees/project-HASH/x/.git/HEAD is not a file
path: dispatch-reconcile: the worktree's HEAD cannot be read
"#]],
    );
    sandbox.git(&["fsck", "--strict"]);
}
