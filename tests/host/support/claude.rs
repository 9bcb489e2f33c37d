//! The real Claude Code against the scripted endpoint: headless with a stream of messages, and
//! interactive in a terminal.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    model::{Model, Part},
    process::{cli, end_tree, path, wait_until},
};

/// A placeholder for the API key.
const KEY: &str = "dummy-key";

/// The options of a Claude Code.
#[derive(Clone, Default)]
pub(crate) struct Options {
    /// The permission mode; the CLI's own default when empty.
    pub(crate) mode: String,
    /// `true` asks for permissions on the stream, for `wait_ask` and `answer`; `false` denies them.
    pub(crate) asks: bool,
    /// More arguments.
    pub(crate) more: Vec<String>,
}

impl Options {
    /// Options with a permission mode.
    pub(crate) fn mode(mode: &str) -> Self {
        Self { mode: mode.into(), ..Self::default() }
    }

    /// Adds arguments.
    pub(crate) fn with(self, more: &[&str]) -> Self {
        Self { more: more.iter().map(|&argument| argument.into()).collect(), ..self }
    }
}

/// The environment of a Claude Code, without this process's.
pub(crate) fn environment(home: &Path, model: &Model) -> Vec<(String, String)> {
    // Keep its sockets and temporary files in the home too.
    let temp = home.join(".tmp");
    fs::create_dir_all(&temp).expect("the temporary directory");
    [
        ("HOME", home.to_str().expect("a home in UTF-8")),
        ("PATH", &path()),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
        ("SHELL", "/bin/bash"),
        ("TMPDIR", temp.to_str().expect("a home in UTF-8")),
        ("CLAUDE_CODE_TMPDIR", temp.to_str().expect("a home in UTF-8")),
        ("ANTHROPIC_BASE_URL", &model.url()),
        ("ANTHROPIC_API_KEY", KEY),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
        ("DISABLE_TELEMETRY", "1"),
        ("DISABLE_ERROR_REPORTING", "1"),
        ("DISABLE_AUTOUPDATER", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn arguments(options: &Options) -> Vec<&str> {
    let mode =
        if options.mode.is_empty() { vec![] } else { vec!["--permission-mode", &options.mode] };
    mode.into_iter().chain(options.more.iter().map(String::as_str)).collect()
}

/// The events read from a Claude Code so far.
#[derive(Default)]
struct Heard {
    events: Vec<Value>,
    /// The index at which the next wait starts.
    next: usize,
    errors: String,
    ended: bool,
}

#[derive(Default)]
struct Ears {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Ears {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        // A panicking test leaves the events intact.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A headless Claude Code that takes messages until its stdin is closed.
pub(crate) struct Claude {
    child: Child,
    stdin: Option<ChildStdin>,
    ears: Arc<Ears>,
}

impl Claude {
    /// Starts `claude -p` with messages in and events out.
    pub(crate) fn stream(home: &Path, cwd: &Path, model: &Model, options: &Options) -> Self {
        let mut command = Command::new(cli("claude"));
        command
            .args(["-p", "--verbose"])
            .args(["--input-format", "stream-json", "--output-format", "stream-json"])
            .args(arguments(options));
        if options.asks {
            command.args(["--permission-prompt-tool", "stdio"]);
        }
        let mut child = command
            .current_dir(cwd)
            .env_clear()
            .envs(environment(home, model))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("claude starts");
        let ears = Arc::new(Ears::default());
        let stdout = BufReader::new(child.stdout.take().expect("a piped stdout"));
        let of_events = Arc::clone(&ears);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "line": line }));
                of_events.lock().events.push(event);
                of_events.changed.notify_all();
            }
            of_events.lock().ended = true;
            of_events.changed.notify_all();
        });
        let mut stderr = child.stderr.take().expect("a piped stderr");
        let of_errors = Arc::clone(&ears);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stderr.read(&mut buffer) {
                of_errors.lock().errors.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        let stdin = child.stdin.take();
        Self { child, stdin, ears }
    }

    /// The process id of Claude Code itself.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Sends a message of the user.
    pub(crate) fn say(&mut self, text: &str) {
        self.send(&json!({ "type": "user", "message": { "role": "user", "content": text } }));
    }

    fn send(&mut self, message: &Value) {
        let stdin = self.stdin.as_mut().expect("stdin is open until `end`");
        writeln!(stdin, "{message}").and_then(|()| stdin.flush()).expect("claude reads");
    }

    /// Waits for an event that is `wanted`, after the one that the last wait returned.
    #[track_caller]
    pub(crate) fn wait_event(&self, deadline: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + deadline;
        let mut heard = self.ears.lock();
        loop {
            let found = heard.events[heard.next..].iter().position(&wanted);
            if let Some(found) = found {
                heard.next += found + 1;
                return heard.events[heard.next - 1].clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || heard.ended {
                let events: Vec<String> = heard
                    .events
                    .iter()
                    .map(|event| format!("{:.600}", event.to_string()))
                    .collect();
                let errors = heard.errors.clone();
                drop(heard);
                panic!("not heard within {deadline:?}; heard:\n{}\n{errors}", events.join("\n"));
            }
            let waited = self.ears.changed.wait_timeout(heard, left);
            heard = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Answers a question for a permission.
    pub(crate) fn answer(&mut self, ask: &Value, allow: bool) {
        let response = if allow {
            json!({ "behavior": "allow", "updatedInput": ask["request"]["input"] })
        } else {
            json!({ "behavior": "deny", "message": "The user said no." })
        };
        self.send(&json!({
            "type": "control_response",
            "response": {
                "subtype": "success", "request_id": ask["request_id"], "response": response,
            },
        }));
    }

    /// Sends a signal to Claude Code alone.
    pub(crate) fn kill(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("claude is there");
    }

    /// Waits for the end of Claude Code, which the caller has caused.
    #[track_caller]
    pub(crate) fn wait_end(&mut self, deadline: Duration) -> ExitStatus {
        let child = &mut self.child;
        wait_until(deadline, "the end of claude", || child.try_wait().expect("our child"))
    }

    /// Closes stdin and waits for the end.
    #[track_caller]
    pub(crate) fn end(&mut self, deadline: Duration) -> ExitStatus {
        self.stdin = None;
        self.wait_end(deadline)
    }
}

impl Drop for Claude {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            end_tree(self.pid());
            let _ = self.child.wait();
        }
    }
}

/// The interactive Claude Code in a terminal of its own.
pub(crate) struct Terminal {
    sockets: PathBuf,
}

/// The name of the terminal server's socket.
const SOCKET: &str = "dispatch";

impl Terminal {
    /// Starts `claude` in a tmux server of its own.
    pub(crate) fn start(home: &Path, cwd: &Path, model: &Model, options: &Options) -> Self {
        let known = json!({
            "hasCompletedOnboarding": true,
            "theme": "dark",
            "customApiKeyResponses": { "approved": [KEY], "rejected": [] },
            "projects": { cwd.to_str().expect("a path in UTF-8"): { "hasTrustDialogAccepted": true } },
        });
        let state = home.join(".claude.json");
        if !state.exists() {
            fs::write(&state, known.to_string()).expect("Claude Code's user data");
        }
        let sockets = home.join(".tmux");
        fs::create_dir_all(&sockets).expect("the socket's directory");
        let terminal = Self { sockets };
        let variables: Vec<String> = environment(home, model)
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let started = terminal
            .tmux()
            .args(["-f", "/dev/null", "new-session", "-d", "-x", "160", "-y", "50", "-c"])
            .arg(cwd)
            .args(["--", "env", "-i"])
            .args(variables)
            .arg(cli("claude"))
            .args(arguments(options))
            .output()
            .expect("tmux");
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        terminal
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command
            .args(["-u", "-L", SOCKET])
            .env_remove("TMUX")
            .env("TMUX_TMPDIR", &self.sockets)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Option<String> {
        let output = self.tmux().args(arguments).output().expect("tmux");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The pid of Claude Code, while the terminal exists.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.run(&["display-message", "-p", "#{pane_pid}"])?.trim().parse().ok()
    }

    /// Types text as a person does, without Enter.
    pub(crate) fn text(&self, text: &str) {
        self.run(&["send-keys", "-l", "--", text]).expect("the terminal is there");
    }

    /// Presses a key, by its name in tmux: Enter, Escape, Down, C-c …
    pub(crate) fn key(&self, key: &str) {
        self.run(&["send-keys", key]).expect("the terminal is there");
    }

    /// Types a line, and Enter once it is on the screen.
    #[track_caller]
    pub(crate) fn line(&self, text: &str) {
        self.text(text);
        self.wait_screen(Duration::from_secs(10), |screen| screen.contains(text));
        self.key("Enter");
    }

    /// The text of the screen; empty when the terminal is gone.
    pub(crate) fn screen(&self) -> String {
        self.run(&["capture-pane", "-p", "-J"]).unwrap_or_default()
    }

    /// Waits until the screen is as `wanted` and returns it.
    #[track_caller]
    pub(crate) fn wait_screen(
        &self,
        deadline: Duration,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> String {
        let mut last = String::new();
        let end = Instant::now() + deadline;
        wait_until(deadline + Duration::from_secs(1), "the screen", || {
            last = self.screen();
            let found = wanted(&last).then(|| last.clone());
            assert!(found.is_some() || Instant::now() < end, "the screen stays so:\n{last}");
            found
        })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            end_tree(pid);
        }
        self.run(&["kill-server"]);
    }
}

/// A message of the Messages API, whole and as stream events.
pub(crate) fn message(
    model: &str,
    parts: &[Part],
    id: &dyn Fn(&str) -> String,
) -> (Value, Vec<Value>) {
    let usage = json!({ "input_tokens": 10, "output_tokens": 10 });
    let mut message = json!({
        "id": id("msg"), "type": "message", "role": "assistant", "model": model,
        "content": [], "stop_reason": null, "stop_sequence": null, "usage": usage,
    });
    let mut events = vec![json!({ "type": "message_start", "message": message })];
    let mut content = Vec::new();
    let mut reason = "end_turn";
    for (index, part) in parts.iter().enumerate() {
        let (open, delta, whole) = match part {
            Part::Say(text) => (
                json!({ "type": "text", "text": "" }),
                json!({ "type": "text_delta", "text": text }),
                json!({ "type": "text", "text": text }),
            ),
            Part::Call { name, input } => {
                reason = "tool_use";
                let call = id("toolu");
                (
                    json!({ "type": "tool_use", "id": call, "name": name, "input": {} }),
                    json!({ "type": "input_json_delta", "partial_json": input.to_string() }),
                    json!({ "type": "tool_use", "id": call, "name": name, "input": input }),
                )
            }
        };
        events
            .push(json!({ "type": "content_block_start", "index": index, "content_block": open }));
        events.push(json!({ "type": "content_block_delta", "index": index, "delta": delta }));
        events.push(json!({ "type": "content_block_stop", "index": index }));
        content.push(whole);
    }
    events.push(json!({
        "type": "message_delta", "usage": usage,
        "delta": { "stop_reason": reason, "stop_sequence": null },
    }));
    events.push(json!({ "type": "message_stop" }));
    message["content"] = content.into();
    message["stop_reason"] = reason.into();
    (message, events)
}
