//! GitHub Copilot CLI as a worker (checked with 1.0.102 on 2026-11-21).

use std::ffi::OsString;

use serde_json::Value;

use super::cli::{Cli, no_directories, no_gap, same_name};
use super::heard::Heard;
use super::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "copilot",
    programs: &["copilot"],
    argv,
    writable: no_directories,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap: no_gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[],
    login: "copilot",
};

fn argv(_: &Job) -> Vec<OsString> {
    words(&["copilot", "--allow-all-tools", "--no-ask-user"])
}

fn session(_: Session) -> Vec<OsString> {
    Vec::new()
}

fn event(_: &Value, _: &mut Heard) {}
