//! Droid as a worker: `droid exec` (checked with 0.215.0 on 2026-11-21).

use std::ffi::OsString;

use serde_json::Value;

use super::cli::{Cli, no_directories, no_gap, same_name};
use super::heard::Heard;
use super::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "droid",
    programs: &["droid"],
    argv,
    writable: no_directories,
    model_flag: "-m",
    model_name: same_name,
    session,
    gap: no_gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[],
    login: "droid",
};

fn argv(_: &Job) -> Vec<OsString> {
    words(&["droid", "exec", "--auto", "high"])
}

fn session(_: Session) -> Vec<OsString> {
    Vec::new()
}

fn event(_: &Value, _: &mut Heard) {}
