//! The CLIs that dispatch knows: what is the same for all of them. Each has a file of its own.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

/// A CLI that dispatch knows. It reads the prompt on standard input.
pub(super) struct Cli {
    /// The backend's name.
    pub(super) name: &'static str,
    /// What its programs are called.
    pub(super) programs: &'static [&'static str],
    /// The command line for a backend without a command of its own: without model, session and
    /// further directories, which are put behind a command of the config too.
    pub(super) argv: fn(&Job) -> Vec<OsString>,
    /// What lets it write in that directory, which is not below its own.
    pub(super) writable: fn(&Path) -> Vec<OsString>,
    /// The flag before a model's name.
    pub(super) model_flag: &'static str,
    /// What it calls a model of the config.
    pub(super) model_name: fn(&str) -> &str,
    /// What begins that session, or continues it; it stands behind everything else.
    pub(super) session: fn(Session) -> Vec<OsString>,
    /// Why it cannot be held to that access on this machine, if so.
    pub(super) gap: fn(Access) -> Option<String>,
    /// Takes in an event: a JSON object that was a line of its own.
    pub(super) event: fn(&Value, &mut Heard),
    /// Takes in any other line, without colours.
    pub(super) line: fn(&str, &mut Heard),
    /// Its errors: the first expression that fits tells the kind.
    pub(super) failures: &'static [(FailureKind, &'static str)],
    /// What a person types to log in.
    pub(super) login: &'static str,
}

impl Cli {
    /// What is put behind the command line: further directories, the model, and the session.
    pub(super) fn end(&self, command: &str, job: &Job) -> Vec<OsString> {
        let mut end = Vec::new();
        for directory in job.writable.iter().filter(|it| !it.starts_with(job.directory)) {
            end.extend((self.writable)(directory));
        }
        if let Some(model) = job.model.filter(|_| !super::command::names_a_model(command)) {
            end.extend(words(&[self.model_flag, (self.model_name)(model)]));
        }
        if !super::command::names_a_session(command) {
            end.extend((self.session)(job.session));
        }
        end
    }
}

pub(super) fn same_name(model: &str) -> &str {
    model
}

/// The flags of the CLIs that let us name a new session.
pub(super) fn named_session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(id) => words(&["--session-id", id]),
        Session::Resume(id) => words(&["--resume", id]),
    }
}

pub(super) fn no_directories(_: &Path) -> Vec<OsString> {
    Vec::new()
}

/// Why a sandbox made of Linux's namespaces cannot start here, if so. A sandbox that cannot start
/// fails only when the worker is at work, and few CLIs call that an error.
pub(super) fn no_namespaces() -> Option<String> {
    if cfg!(target_os = "macos") {
        return None;
    }
    // A system may let bwrap alone make namespaces; a CLI that brings its own asks for this too.
    let tries = [
        "bwrap --unshare-user --unshare-pid --unshare-net --ro-bind / / true",
        "unshare --user --map-root-user true",
    ];
    let output = tries.iter().find_map(|command| {
        let mut words = command.split(' ');
        Command::new(words.next()?).args(words).output().ok()
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no user namespaces");
    (!output.status.success()).then(|| format!("its sandbox cannot start: {said}"))
}
