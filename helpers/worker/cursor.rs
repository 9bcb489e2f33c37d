//! Cursor as a worker: `cursor-agent -p`. From its documentation of 2026-11; no registry has it.

use std::ffi::OsString;

use serde_json::Value;

use super::cli::{Cli, no_directories, no_gap, same_name};
use super::heard::Heard;
use super::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "cursor",
    programs: &["cursor-agent", "agent"],
    argv,
    writable: no_directories,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap: no_gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[],
    login: "cursor",
};

fn argv(_: &Job) -> Vec<OsString> {
    words(&["cursor-agent", "-p", "--force", "--trust", "--output-format", "stream-json"])
}

fn session(_: Session) -> Vec<OsString> {
    Vec::new()
}

fn event(_: &Value, _: &mut Heard) {}
