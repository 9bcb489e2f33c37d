//! Cursor as a worker: `cursor-agent -p`. From its documentation of 2026-11 and what others
//! recorded of it; no registry has it, so it was not run.

use std::ffi::OsString;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::tools::cli::{Cli, no_directories, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "cursor",
    programs: &["cursor-agent", "agent"],
    argv,
    writable: no_directories,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    // It says them on standard error, and not in events.
    failures: &[
        (FailureKind::Auth, r"^(Error: )?Authentication required\. Please run"),
        (FailureKind::Auth, r"^[^A-Za-z]*((Error|Warning): )?The provided API key is invalid"),
        (FailureKind::Quota, r"^(Error: |ActionRequiredError: )*You've hit your usage limit"),
        (FailureKind::Quota, r"^[A-Za-z]*Error: \[resource_exhausted\]"),
        (FailureKind::Model, r"^(Error: )?Cannot use this model: "),
        (FailureKind::Untrusted, r"^[^A-Za-z]*Workspace Trust Required"),
        (FailureKind::Sandbox, r"^(Error: )?Sandbox mode is enabled but not available"),
        (FailureKind::Network, r"^[A-Za-z]*Error: \[(unavailable|deadline_exceeded)\]"),
    ],
    login: "cursor-agent login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["cursor-agent", "-p", "--trust", "--output-format", "stream-json"]);
    argv.extend(words(match job.access {
        Access::Read => &["--mode", "ask"],
        Access::Write => &["--sandbox", "enabled"],
        Access::Full => &["--force"],
    }));
    argv
}

fn gap(access: Access) -> Option<String> {
    let why = match access {
        Access::Read => "where it may only read, it runs no command: it could not report",
        Access::Write => "its sandbox holds only as far as its own settings say",
        Access::Full => return None,
    };
    Some(why.into())
}

fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(_) => Vec::new(),
        Session::Resume(id) => words(&["--resume", id]),
    }
}

fn event(event: &Value, heard: &mut Heard) {
    if let Some(id) = event["session_id"].as_str() {
        heard.session = Some(id.into());
    }
    match event["type"].as_str() {
        Some("assistant") => heard.recovered(),
        Some("tool_call") if event["subtype"] == "completed" => {
            for (tool, call) in event["tool_call"].as_object().into_iter().flatten() {
                let rejected = &call["result"]["rejected"];
                if rejected.is_object() {
                    heard.denied(tool.trim_end_matches("ToolCall"), rejected);
                }
            }
        }
        // It may never exit after this.
        Some("result") => {
            heard.over = true;
            if event["is_error"] == true {
                heard.reported_failure(&CLI, event["result"].as_str().unwrap_or_default());
            } else {
                heard.failure = None;
            }
            let count = |name: &str| event["usage"][name].as_u64().unwrap_or_default();
            if event["usage"].is_object() {
                let cached = count("cacheReadTokens") + count("cacheWriteTokens");
                heard.used(count("inputTokens") + cached, count("outputTokens"), None);
            }
        }
        _ => {}
    }
}
