//! Running git without prompts, and reading its output.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::error::Refusal;
use crate::exit::Exit;
use crate::process;

/// The first version with `rev-parse --path-format` and the `worktree` commands used here.
const OLDEST_GIT: (u32, u32) = (2, 31);

/// How long a call is repeated while another program holds one of git's locks.
const GIT_LOCK_LIMIT: Duration = Duration::from_secs(30);

/// The variables that tie a git process to another repository than that of its directory: those
/// that `git rev-parse --local-env-vars` lists, without the person's own configuration.
pub(crate) const REPOSITORY_VARIABLES: [&str; 13] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

pub(super) fn require_version() -> Result<()> {
    let said = Git(Command::new("git")).words("version").text("git does not work")?;
    let number = said.trim_start_matches("git version ");
    let mut parts = number.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    if version >= OLDEST_GIT {
        return Ok(());
    }
    Err(no_git("git is too old for worktrees", &format!("it is git {number}")).into())
}

fn no_git(what: &str, place: &str) -> Refusal {
    let (major, minor) = OLDEST_GIT;
    Refusal::new(Exit::Unavailable, what)
        .place(place)
        .next(format!("install git {major}.{minor} or newer, or dispatch without --worktree"))
}

/// A git command. It runs without prompts.
pub(super) struct Git(Command);

/// A git command in a directory. `words` are arguments, separated by spaces.
pub(super) fn git(directory: &Path, words: &str) -> Git {
    Git(Command::new("git")).arg("-C").arg(directory).words(words)
}

/// A git command on a repository, which needs no checkout.
pub(super) fn git_on(repository: &Path, words: &str) -> Git {
    git(repository, "").arg(git_dir(repository)).words(words)
}

/// The option that names a repository.
pub(super) fn git_dir(repository: &Path) -> OsString {
    [OsStr::new("--git-dir="), repository.as_os_str()].join(OsStr::new(""))
}

impl Git {
    pub(super) fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    pub(super) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    pub(super) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    /// Runs the command, also repeatedly.
    pub(super) fn run(&mut self) -> Result<Output> {
        for name in REPOSITORY_VARIABLES {
            self.0.env_remove(name);
        }
        // Some messages are parsed here, so they must be in English.
        self.0.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
        process::reset_child_signal()?;
        match self.0.output() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(no_git("git is not installed", "'git' is not in PATH").into())
            }
            output => output.context("cannot run git"),
        }
    }

    /// Whether the command succeeds.
    pub(super) fn ok(mut self) -> Result<bool> {
        Ok(self.run()?.status.success())
    }

    /// What the command prints, also if it fails, without the last line end.
    pub(super) fn said(mut self) -> Result<String> {
        Ok(trim(&self.run()?.stdout))
    }

    /// The output of a command that must succeed; `what` is the error's first line.
    pub(super) fn bytes(mut self, what: &str) -> Result<Vec<u8>> {
        succeeded(self.run()?, what)
    }

    /// The output of a command that must succeed, as text without the last line end.
    pub(super) fn text(self, what: &str) -> Result<String> {
        self.bytes(what).map(|output| trim(&output))
    }

    /// The paths, or lines with one, that a command with `-z` prints.
    pub(super) fn records(self, what: &str) -> Result<Vec<String>> {
        self.bytes(what).map(|output| records(&output).collect())
    }
}

/// The standard output of a git command that ended, if it succeeded.
pub(super) fn succeeded(output: Output, what: &str) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Refusal::new(Exit::CannotCreate, what).place(error_line(&output)).into())
}

/// The first line that git marks as an error, else the last line of its standard error.
pub(super) fn error_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find(|line| line.starts_with("fatal: ") || line.starts_with("error: "));
    error.or(lines().next_back()).map_or_else(|| output.status.to_string(), str::to_owned)
}

/// Whether git failed because another program holds one of its locks.
fn is_lock_conflict(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    // A branch whose name blocks another one gives the same message, with "cannot create".
    let reference = said.contains("cannot lock ref") && !said.contains("cannot create");
    reference || said.contains(".lock': File exists") || said.contains("could not lock config file")
}

/// The parts of an output that end in NUL.
pub(super) fn records(output: &[u8]) -> impl Iterator<Item = String> {
    let records = output.split(|&byte| byte == 0).filter(|record| !record.is_empty());
    records.map(|record| String::from_utf8_lossy(record).into_owned())
}

/// A path that git printed as a line.
pub(super) fn path(line: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(line.strip_suffix(b"\n").unwrap_or(line)))
}

/// Output as text without the last line end.
pub(super) fn trim(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

/// Repeats a git call for as long as another program holds one of git's locks.
pub(super) fn retry(mut call: impl FnMut() -> Result<Output>) -> Result<Output> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let called = call()?;
        if called.status.success() || !is_lock_conflict(&called) || begin.elapsed() > GIT_LOCK_LIMIT
        {
            return Ok(called);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
