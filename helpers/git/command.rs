//! How git is run, and understood.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::error::Refusal;
use crate::exit::Exit;
use crate::process;

/// The first git with `rev-parse --path-format` and all of `worktree` that is used here.
const OLDEST_GIT: (u32, u32) = (2, 31);

/// How long it tries again while another program holds one of git's locks.
const GIT_LOCK_LIMIT: Duration = Duration::from_secs(30);

/// What ties a git process to a repository other than the one that it stands in: what
/// `git rev-parse --local-env-vars` lists, without the person's own configuration.
pub(crate) const OF_ANOTHER_REPOSITORY: [&str; 13] = [
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

pub(super) fn check_version() -> Result<()> {
    let said = text(&stdout(run(Command::new("git").arg("version"))?, "git does not work")?);
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

/// Git in that directory.
pub(super) fn git(directory: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(directory);
    git
}

/// Git on that repository, wherever its checkouts are.
pub(super) fn on(repository: &Path) -> Command {
    let mut git = Command::new("git");
    git.arg([OsStr::new("--git-dir="), repository.as_os_str()].join(OsStr::new("")));
    git.current_dir(repository);
    git
}

/// Runs a git that asks nobody, and returns how it ended and all that it said.
pub(super) fn run(git: &mut Command) -> Result<Output> {
    for name in OF_ANOTHER_REPOSITORY {
        git.env_remove(name);
    }
    // Some of its messages are understood here.
    git.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
    process::reset_child_signal()?;
    match git.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(no_git("git is not installed", "'git' is not in PATH").into())
        }
        output => output.context("cannot run git"),
    }
}

/// What git printed, if it did what it was asked; else `what` could not be done, in git's words.
pub(super) fn stdout(output: Output, what: &str) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Refusal::new(Exit::CannotCreate, what).place(last_line(&output)).into())
}

/// Git's error, which is the first line that says it is one, or else the last that it said.
pub(super) fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().find(|line| line.starts_with("fatal: ") || line.starts_with("error: "));
    error.or(lines().next_back()).map_or_else(|| output.status.to_string(), str::to_owned)
}

/// Whether git failed because another program holds one of its locks for a moment.
fn held(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    // Where a branch's name is in the way for good, it says so in the same words.
    let moment = said.contains("cannot lock ref") && !said.contains("cannot create");
    moment || said.contains(".lock': File exists") || said.contains("could not lock config file")
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

/// Tries a call of git again for as long as another program holds one of git's locks.
pub(super) fn patiently(mut call: impl FnMut() -> Result<Output>) -> Result<Output> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let called = call()?;
        if called.status.success() || !held(&called) || begin.elapsed() > GIT_LOCK_LIMIT {
            return Ok(called);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}
