//! Droid as a worker: `droid exec` (checked with 0.215.0 on 2026-11-21).

use std::ffi::OsString;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::tools::cli::{Cli, no_directories, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "droid",
    programs: &["droid"],
    argv,
    writable: no_directories,
    model_flag: "-m",
    model_name: same_name,
    session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[
        (FailureKind::Auth, r"^40[13] |^(Error: )?Authentication failed"),
        (FailureKind::Quota, r"^(402|429) "),
        (FailureKind::Model, r"^404 .*[Mm]odel|^Invalid model: "),
        (FailureKind::Network, r"^Connection error"),
    ],
    login: "droid",
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["droid", "exec", "--output-format", "stream-json"]);
    argv.extend(words(match job.access {
        Access::Read => &[],
        Access::Write => &["--auto", "medium"],
        Access::Full => &["--auto", "high"],
    }));
    argv
}

fn gap(access: Access) -> Option<String> {
    (access != Access::Full)
        .then(|| "it lets the model itself say how risky each of its commands is".to_owned())
}

/// `-s` goes on with a session too, but ends with 1 and without a word when it is logged out of
/// Factory and has its own models; a fork of the session has all that was said in it.
fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(_) => Vec::new(),
        Session::Resume(id) => words(&["--fork", id]),
    }
}

fn event(event: &Value, heard: &mut Heard) {
    if let Some(id) = event["session_id"].as_str() {
        heard.session = Some(id.into());
    }
    match event["type"].as_str() {
        Some("message") if event["role"] == "assistant" => heard.recovered(),
        Some("tool_call") => heard.began(&event["id"], &event["toolName"], &event["parameters"]),
        Some("tool_result") => {
            let said = event["error"]["message"].as_str().unwrap_or_default();
            heard.ended(
                &event["id"],
                said.contains(" is not permitted in this") || ended_early(said),
            );
        }
        Some("error") => {
            let said = event["message"].as_str().unwrap_or_default();
            // The CLI's own word at the end only says that there was an error.
            if !ended_early(said) && (event["source"] != "cli" || heard.failure.is_none()) {
                heard.reported_failure(&CLI, said);
            }
        }
        Some("completion") => {
            heard.over = true;
            heard.failure = None;
            let count = |name: &str| event["usage"][name].as_u64().unwrap_or_default();
            let cached = count("cache_read_input_tokens") + count("cache_creation_input_tokens");
            heard.used(count("input_tokens") + cached, count("output_tokens"), None);
        }
        _ => {}
    }
}

/// Whether it ended because it was denied something, and did not fail.
fn ended_early(said: &str) -> bool {
    said.contains("Exec ended early: insufficient permission")
}
