//! Asks worker CLIs questions such as `--version`, in parallel and with limits. A CLI may hang, print
//! without end or leave processes behind.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{CaptureError, capture, is_host_variable};
use crate::text::{lossy, sanitize};

/// How much a CLI may print, in bytes. Codex's list holds each model's instructions: 745 KB in 0.169.
const MOST: usize = 8 << 20;

/// How much of a failed CLI's output is repeated, in characters.
const LONGEST_LINE: usize = 200;

/// Asks with a time limit.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    /// How long an answer usually takes at most.
    usual: Duration,
    /// When the last answer must be there.
    deadline: Instant,
}

/// The answer of a CLI, without colours and invisible characters.
#[derive(Default)]
pub(super) struct Answer {
    /// The question, as a shell would take it.
    pub(super) call: String,
    /// The exit code; `None` after a signal.
    pub(super) code: Option<i32>,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
    /// A note that the CLI is slow, if it had to be asked again.
    pub(super) slow: Option<String>,
}

impl Asker {
    /// Asks for at most `usual`, and slow CLIs once more in the time that is left of `usual + more`.
    pub(super) fn new(usual: Duration, more: Duration) -> Self {
        Self { usual, deadline: Instant::now() + usual + more }
    }

    /// Runs a CLI with these arguments and returns its answer, or why there is none.
    pub(super) fn ask(&self, program: &Path, args: &[&str]) -> Result<Answer, String> {
        let call = format!("`{} {}`", file_name(program), args.join(" "));
        let start = Instant::now();
        let run = |until| capture(&mut command(program, args), until, MOST);
        let mut captured = run(self.deadline.min(start + self.usual));
        let mut slow = None;
        if matches!(captured, Err(CaptureError::TimedOut)) && Instant::now() < self.deadline {
            captured = run(self.deadline);
            slow = Some(format!("slow: {call} answered only when asked again"));
        }
        let output = captured.map_err(|error| match error {
            CaptureError::TimedOut => {
                let seconds = start.elapsed().as_secs_f32();
                format!("slow: {call} did not answer in {seconds:.1} s")
            }
            CaptureError::TooMuchOutput => format!("{call} prints more than {} MB", MOST >> 20),
            CaptureError::NotStarted(error) => format!("{call} cannot run: {error}"),
        })?;
        let [out, err] = [output.stdout, output.stderr].map(|bytes| sanitize(&lossy(bytes)));
        Ok(Answer { call, code: output.status.code(), out, err, slow })
    }
}

/// A CLI outside of any project, whose settings must not change an answer that all projects share.
fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").env("NO_COLOR", "1");
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| is_host_variable(&name.to_string_lossy()))
    {
        command.env_remove(name);
    }
    command
}

impl Answer {
    /// How the CLI failed, in one line.
    pub(super) fn failure(&self) -> String {
        let end = self.code.map_or("by a signal".into(), |code| format!("with {code}"));
        format!("{} ended {end}: {}", self.call, self.first_line())
    }

    /// A flag of the JSON object that the CLI printed.
    pub(super) fn json_flag(&self, key: &str) -> Option<bool> {
        serde_json::from_str::<serde_json::Value>(&self.out).ok()?[key].as_bool()
    }

    /// The first line of the output, or of the errors if the CLI failed.
    pub(super) fn first_line(&self) -> &str {
        let (first, second) = match self.code {
            Some(0) => (&self.out, &self.err),
            _ => (&self.err, &self.out),
        };
        let mut lines = first.lines().chain(second.lines()).map(str::trim);
        let line = lines.find(|line| !line.is_empty()).unwrap_or("it said nothing");
        line.char_indices().nth(LONGEST_LINE).map_or(line, |(end, _)| &line[..end])
    }
}

/// The name of a program's file.
pub(super) fn file_name(program: &Path) -> &str {
    program.file_name().and_then(OsStr::to_str).unwrap_or("it")
}

/// Does each job in a thread of its own, or in this one where the system gives no thread.
pub(super) fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let start = |job| (job, thread::Builder::new().spawn_scoped(scope, move || work(job)).ok());
        let threads: Vec<_> = jobs.iter().map(start).collect();
        let result = |(job, thread): (&J, Option<thread::ScopedJoinHandle<R>>)| {
            thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| work(job))
        };
        threads.into_iter().map(result).collect()
    })
}
