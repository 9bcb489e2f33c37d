//! A sandbox for each test: a home, a project, workers that are shell scripts, and the real
//! helpers. No settings of the machine get in, and no process in it survives the test.

pub(crate) mod clis;
pub(crate) mod copy;
#[path = "../../helpers/mod.rs"]
pub(crate) mod helpers;
pub(crate) mod made;
pub(crate) mod process;
pub(crate) mod terminal;
pub(crate) mod text;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub(crate) use helpers::path as binary;
use text::Redactions;

/// A deadline that no step exceeds, also on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// A plan of two items, for tests that do not care about its text.
pub(crate) const PLAN: &str = "# Title\n\n- [ ] First\n- [ ] Second\n\n## Context\nJust do it.\n";

/// Waits until the condition holds and returns its value. No other helper of these tests pauses.
#[track_caller]
pub(crate) fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "this never came true: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// The path of a file of this repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A temporary home with a project.
pub(crate) struct Sandbox {
    top: PathBuf,
    /// The `PATH` of the helpers and programs.
    path: OsString,
    // Removed after `drop` has ended all processes that could still write into it.
    _directory: tempfile::TempDir,
}

impl Sandbox {
    /// A sandbox whose project is no repository.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let top = directory.path().canonicalize().expect("its real path");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sandbox = Self { top, path, _directory: directory };
        for path in [sandbox.project(), sandbox.scripts(), sandbox.temporary()] {
            fs::create_dir_all(path).expect("a directory");
        }
        sandbox
    }

    /// A sandbox whose project is a repository with one commit.
    pub(crate) fn with_git() -> Self {
        let sandbox = Self::new();
        let settings = "[user]\n\tname = Tester\n\temail = tester@example.com\n";
        fs::write(sandbox.home().join(".gitconfig"), settings).expect("written");
        fs::write(sandbox.project().join("README"), "A project.\n").expect("written");
        sandbox.git(&["init", "-q", "-b", "main"]);
        sandbox.git(&["add", "."]);
        sandbox.git(&["commit", "-q", "-m", "Begin"]);
        sandbox
    }

    /// Hides bubblewrap from the helpers.
    #[cfg(target_os = "linux")]
    pub(crate) fn hide_bubblewrap(&mut self) {
        let programs = self.top.join("programs");
        helpers::link_all_but_bubblewrap(&self.path, &programs);
        self.path = programs.into();
    }

    /// Runs git in the project and returns its output.
    #[track_caller]
    pub(crate) fn git(&self, args: &[&str]) -> String {
        let ran = self.program("git").args(args).run();
        assert_eq!(ran.code, Some(0), "git {args:?}: {}", ran.err);
        ran.out
    }

    pub(crate) fn top(&self) -> &Path {
        &self.top
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.top.join("home")
    }

    pub(crate) fn project(&self) -> PathBuf {
        self.home().join("project")
    }

    /// The directory that TMPDIR names.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.top.join("tmp")
    }

    fn scripts(&self) -> PathBuf {
        self.top.join("scripts")
    }

    /// A path of a task: on the person's side for what decides, on the worker's side otherwise.
    pub(crate) fn task(&self, id: &str, path: &str) -> PathBuf {
        let persons =
            ["record.yaml", "attempts", "run.lock", "wait", "notes", "answers", "news", "done"];
        let first = path.split('/').next().unwrap_or_default();
        match persons.contains(&first) {
            true => self.state_directory().join(id).join(path),
            false => self.project().join(".dispatch/tasks").join(id).join(path),
        }
    }

    /// The person's side of all tasks of the project.
    pub(crate) fn state_directory(&self) -> PathBuf {
        let (git, root) = (self.project().join(".git"), self.project());
        let identity = if git.is_dir() { git } else { root };
        let hash = dispatch::ids::long_hash(identity.as_os_str().as_encoded_bytes());
        self.home().join(format!(".dispatch/state/project-{hash}"))
    }

    /// The directory with the locks and the indexes of hosts.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.state_directory().with_file_name(".hosts")
    }

    /// The text of a file of a task.
    #[track_caller]
    pub(crate) fn read(&self, id: &str, path: &str) -> String {
        let path = self.task(id, path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Writes the config.
    pub(crate) fn config(&self, text: &str) {
        let path = self.home().join(".dispatch/config.yaml");
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// Writes a shell script and returns the command that runs it. A shell reads the script: a file
    /// that another thread's fork still holds open for writing cannot be executed.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        let path = self.scripts().join(name);
        fs::write(&path, text).expect("written");
        format!("sh {}", path.display())
    }

    /// Writes a config with one command for each worker: a name for model and backend, and its
    /// script. The worker `idle` always exists; it runs and does nothing.
    pub(crate) fn workers(&self, workers: &[(&str, &str)]) {
        let idle = [("idle", "exec sleep 1000")];
        let mut backends = String::from("default: idle\nbackends:\n");
        let mut models = String::from("models:\n");
        for (name, script) in idle.iter().chain(workers) {
            let command = self.script(name, &format!("{script}\n"));
            backends.push_str(&format!("  {name}: {{ command: {command} }}\n"));
            models.push_str(&format!("  {name}: {{ backend: {name} }}\n"));
        }
        self.config(&format!("{backends}{models}"));
    }

    /// Writes a plan with the modes that the host's tool uses.
    pub(crate) fn plan(&self, id: &str, text: &str) {
        fs::create_dir_all(self.task(id, "")).expect("made");
        fs::write(self.task(id, "plan.md"), text).expect("written");
    }

    /// A call of a helper in the project.
    pub(crate) fn call(&self, helper: &str, args: &[&str]) -> Call {
        self.program(binary(helper)).args(args)
    }

    /// A call of any program in the project.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Call {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.home()).current_dir(self.project());
        command.env("PATH", &self.path);
        command.env("TMPDIR", self.temporary()).env("GIT_CONFIG_NOSYSTEM", "1");
        // A CLI may run the tests; here, the person calls, and messages wake at once.
        command.env("DISPATCH_FAIL", "callers").env("DISPATCH_TELL_MS", "0");
        Call { command, input: Vec::new(), redactions: self.redactions() }
    }

    /// A command in a shell that a script named `claude` starts, as Claude Code does.
    pub(crate) fn by_claude(&self, options: &str, command: &str) -> Call {
        let eval = command.replace('\'', r"'\''");
        let cli = self.script("claude", "bash -c \"eval '$COMMAND' && :\"; exit $?");
        let call = self.program("sh").args(&["-c", &format!("{cli} {options}; exit $?")]);
        call.env("COMMAND", eval).env("DISPATCH_FAIL", "")
    }

    /// Calls a helper in the project and waits for its end.
    #[track_caller]
    pub(crate) fn run(&self, helper: &str, args: &[&str]) -> Ran {
        self.call(helper, args).run()
    }

    /// Calls a helper in the project, checks that it succeeds without complaints, and returns its
    /// output.
    #[track_caller]
    pub(crate) fn ok(&self, helper: &str, args: &[&str]) -> String {
        self.run(helper, args).ok()
    }

    /// Lets the host's agents read their prompts without prompting, as `allow` does.
    pub(crate) fn let_agents_read(&self) {
        let settings = r#"{"permissions": {"allow": ["Read(~/.dispatch/state/**)"]}}"#;
        fs::create_dir_all(self.home().join(".claude")).expect("made");
        fs::write(self.home().join(".claude/settings.json"), settings).expect("written");
    }

    /// Dispatches a task of two steps.
    #[track_caller]
    pub(crate) fn dispatch(&self, id: &str, model: &str) {
        self.plan(id, PLAN);
        self.ok("dispatch-spawn", &[id, "--model", model]);
    }

    /// A call of `dispatch-worker` for a task.
    pub(crate) fn worker(&self, id: &str, args: &[&str]) -> Call {
        self.call("dispatch-worker", &[]).arg("--task-dir").arg(self.task(id, "")).args(args)
    }

    /// The state of a task and its reason.
    #[track_caller]
    pub(crate) fn state(&self, id: &str) -> String {
        let text = self.ok("dispatch-reconcile", &["show", id, "--json"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let word = |key: &str| json[key].as_str().expect("a text").to_string();
        match word("because") {
            because if because.is_empty() => word("state"),
            because => self.redactions().apply(&format!("{}: {because}", word("state"))),
        }
    }

    /// Waits until a task is in `state`.
    #[track_caller]
    pub(crate) fn wait_for_state(&self, id: &str, state: &str) {
        let mut last = String::new();
        let begin = Instant::now();
        wait_until(&format!("'{id}' is {state}"), || {
            last = self.state(id);
            assert!(begin.elapsed() < DEADLINE / 2, "'{id}' is '{last}', and not '{state}'");
            (last == state).then_some(())
        });
    }

    /// The pid of a task's supervisor.
    #[track_caller]
    pub(crate) fn supervisor_of(&self, id: &str) -> u32 {
        let lock: serde_json::Value =
            serde_json::from_str(&self.read(id, "run.lock")).expect("an identity");
        lock["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
    }

    /// The pid of an attempt's worker.
    #[track_caller]
    pub(crate) fn worker_of(&self, id: &str, attempt: u32) -> u32 {
        let identity = self.read(id, &format!("attempts/{attempt}/identity"));
        let pid = identity.lines().find_map(|line| line.strip_prefix("pid: "));
        pid.and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    pub(crate) fn redactions(&self) -> Redactions {
        Redactions::new(&[
            (self.state_directory(), "STATE"),
            (self.project(), "PROJECT"),
            (self.home(), "HOME"),
            (self.temporary(), "TMP"),
            (self.top.clone(), "TOP"),
            (binary("dispatch-config").parent().expect("a directory").into(), "BIN"),
        ])
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        process::end_all_of(&self.home());
    }
}

/// A program call that has not started yet.
pub(crate) struct Call {
    command: Command,
    input: Vec<u8>,
    redactions: Redactions,
}

impl Call {
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    pub(crate) fn within(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets the standard input, which is empty by default.
    pub(crate) fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = text.into();
        self
    }

    /// Changes the command itself.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Makes the helper die at a crash point as if by `kill -9`.
    pub(crate) fn crash_at(self, point: &str) -> Self {
        self.env("DISPATCH_CRASH_AT", point)
    }

    /// The command itself, for tests that start it in another way.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    #[track_caller]
    pub(crate) fn start(mut self) -> Running {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A program that does not read its input closes it early.
        let _ = stdin.write_all(&self.input);
        drop(stdin);
        let out = collect(child.stdout.take().expect("a pipe"));
        let err = collect(child.stderr.take().expect("a pipe"));
        Running { child, out, err, redactions: self.redactions }
    }

    #[track_caller]
    pub(crate) fn run(self) -> Ran {
        self.start().end()
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A called program that may still run. The end of the test ends it.
pub(crate) struct Running {
    child: Child,
    out: Receiver<Vec<u8>>,
    err: Receiver<Vec<u8>>,
    redactions: Redactions,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits until the program has an inotify watch: its signal handlers are installed and its
    /// first look is over.
    #[track_caller]
    pub(crate) fn until_it_watches(&mut self) {
        wait_until("the helper watches", || {
            assert!(!self.has_ended(), "the program has ended instead of waiting");
            process::watches_files(self.pid()).then_some(())
        });
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        process::signal(self.pid(), signal);
    }

    /// Waits for the end of the program and of its output.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        let status =
            wait_until("the program ends", || self.child.try_wait().expect("a child is there"));
        let text = |stream: &Receiver<Vec<u8>>| {
            let bytes = stream.recv_timeout(DEADLINE).expect("no process keeps the output open");
            String::from_utf8(bytes).expect("UTF-8")
        };
        let (out, err) = (text(&self.out), text(&self.err));
        let redactions = self.redactions.clone();
        Ran { code: status.code(), signal: status.signal(), out, err, redactions }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The exit code, signal and output of an ended program.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    redactions: Redactions,
}

impl Ran {
    /// The standard output of a program that succeeded without complaints.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{}", self.out);
        self.out
    }

    /// Checks that the program died at its crash point without output.
    #[track_caller]
    pub(crate) fn crashed(&self) {
        assert_eq!((self.signal, self.out.as_str()), (Some(9), ""), "{}", self.err);
    }

    /// Compares exit code, standard error (marked with `!`) and standard output with a snapshot,
    /// without the parts that differ from run to run.
    #[track_caller]
    pub(crate) fn shows(&self, expected: impl snapbox::IntoData) {
        let mut all = match (self.code, self.signal) {
            (Some(code), _) => format!("exit {code}\n"),
            (_, signal) => format!("signal {}\n", signal.unwrap_or_default()),
        };
        self.err.lines().for_each(|line| all.push_str(&format!("! {line}\n")));
        all.push_str(&self.out);
        text::same(self.redactions.apply(&all).trim_end_matches('\n'), expected);
    }
}

/// A process that plays the host.
pub(crate) struct Host(Running);

impl Host {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        Self(sandbox.program("sleep").args(&["1000"]).start())
    }

    /// The call as the host or its hook makes it.
    pub(crate) fn calls(&self, call: Call) -> Call {
        call.env("CLAUDE_PID", self.0.pid().to_string()).env("CLAUDECODE", "1")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) fn die(self) {
        drop(self);
    }
}
