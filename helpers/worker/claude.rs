//! Claude Code as a worker: `claude -p` (checked with 2.1.329 on 2026-11-21).

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use super::cli::{Cli, no_gap};
use super::heard::{Heard, Kind};
use super::{Job, Session, words};
use crate::config::Access;

pub(super) static CLI: Cli = Cli {
    name: "claude",
    programs: &["claude"],
    argv,
    writable,
    model_flag: "--model",
    model_name: own_name,
    session,
    gap: no_gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[(Kind::Model, "There's an issue with the selected model")],
    login: "claude auth login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["claude", "-p", "--output-format", "stream-json", "--verbose"]);
    argv.push("--permission-mode".into());
    argv.push(match job.access {
        // Denies without asking whatever no rule allows; the one rule is the helper.
        Access::Read => "dontAsk".into(),
        Access::Write => "acceptEdits".into(),
        Access::Full => "bypassPermissions".into(),
    });
    argv.extend(writable(job.task));
    argv.push("--allowedTools".into());
    argv.push(format!("Bash({} *)", super::shell_word(&job.helper.display().to_string())).into());
    if job.access == Access::Read {
        argv.extend(words(&["Read", "Glob", "Grep"]));
    }
    argv
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--add-dir".into(), directory.into()]
}

fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(id) => words(&["--session-id", id]),
        Session::Resume(id) => words(&["--resume", id]),
    }
}

fn event(_: &Value, _: &mut Heard) {}

/// A full id goes as it is; what other CLIs call, say, `opus-4.6` is the tier's stable name here.
fn own_name(model: &str) -> &str {
    if model.starts_with("claude-") { model } else { tier(model).unwrap_or(model) }
}

/// The stable name of a Claude model's family, which the Agent tool knows models by.
pub(crate) fn tier(model: &str) -> Option<&'static str> {
    let tiers = ["opus", "sonnet", "haiku", "fable"];
    tiers.into_iter().find(|tier| model.to_ascii_lowercase().contains(tier))
}
