//! Codex as a worker: `codex exec` (checked with 0.169.0 on 2026-11-21).

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use super::cli::{Cli, no_gap, same_name};
use super::heard::Heard;
use super::{Job, Session, words};
use crate::config::Access;

pub(super) static CLI: Cli = Cli {
    name: "codex",
    programs: &["codex"],
    argv,
    writable,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap: no_gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[],
    login: "codex login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let sandbox = if job.access == Access::Full { "danger-full-access" } else { "workspace-write" };
    // A worker that may only read has its task's directory as the workspace, to tick its plan.
    let workspace = if job.access == Access::Read { job.task } else { job.directory };
    let mut argv = words(&["codex", "exec", "--json", "--skip-git-repo-check", "-s", sandbox]);
    argv.push("-C".into());
    argv.push(workspace.into());
    argv.extend(writable(job.task));
    argv
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--add-dir".into(), directory.into()]
}

/// The prompt is on standard input.
fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(_) => words(&["-"]),
        Session::Resume(id) => words(&["resume", id, "-"]),
    }
}

fn event(_: &Value, _: &mut Heard) {}
