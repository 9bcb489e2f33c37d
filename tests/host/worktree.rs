//! Workers of both CLIs, each in a worktree of its own, held by the CLI's own sandbox and rules.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use super::helpers;
use crate::support::{
    claude::environment,
    codex,
    model::{Model, Reply},
    process::wait_until,
    request::Request,
    skill,
    story::{DEADLINE, file, run, task},
};

const CONFIG: &str = "
backends: { claude: { route: cli }, codex: {} }
models: { opus: { backend: claude }, gpt-5.5: { backend: codex } }
";

/// What a model does that is told to commit.
fn commits(request: &Request) -> Reply {
    match request.turns() {
        0 => Reply::shell(request, "touch work && git add work"),
        1 => Reply::shell(request, "git commit -q -m Work"),
        2 => run(request, "tick 1"),
        3 => run(request, "finish Committed."),
        _ => Reply::say("That is all."),
    }
}

/// Dispatches a task to that model and waits for its end.
fn commits_in_its_worktree(name: &str) {
    let home = skill::ready(CONFIG);
    let model = Model::start(commits);
    codex::configure(home.path(), &model);
    let settings = "[user]\n\tname = Tester\n\temail = tester@example.com\n";
    fs::write(home.path().join(".gitconfig"), settings).expect("git's settings");
    let call = |program: &Path, args: &[&str], input: &str| {
        let mut command = Command::new(program);
        command.args(args).current_dir(home.project()).env_clear();
        command.envs(environment(home.path(), &model)).env("GIT_CONFIG_NOSYSTEM", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    call(Path::new("git"), &["init", "-q", "-b", "main"], "");
    call(Path::new("git"), &["commit", "-q", "--allow-empty", "-m", "Begin"], "");
    let spawn = helpers::path("dispatch-spawn");
    let args = ["x", "--model", name, "--worktree", "--plan", "-"];
    call(spawn, &args, "# Title\n- [ ] Commit something\n");
    let exit = task(&home, "x").join("worker/1/exit");
    wait_until(DEADLINE, "the worker ends", || exit.exists().then_some(()));
    let log = call(Path::new("git"), &["log", "--format=%s", "dispatch/x"], "");
    let said = file(task(&home, "x").join("worker/1/output.log"));
    assert_eq!(log, "Work\nBegin\n", "{said}");
    assert_eq!(file(task(&home, "x").join("ipc/.done")), "Committed.\n");
    assert_eq!(call(Path::new("git"), &["log", "--format=%s"], ""), "Begin\n");
    assert_eq!(call(Path::new("git"), &["status", "--porcelain"], ""), "");
}

#[test]
fn codex_commits_in_its_worktree() {
    commits_in_its_worktree("gpt-5.5");
}

#[test]
fn claude_commits_in_its_worktree() {
    commits_in_its_worktree("opus");
}
