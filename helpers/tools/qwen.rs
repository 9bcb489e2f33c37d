//! Qwen Code as a worker: `qwen` with its prompt piped (checked with 0.15.10 on 2026-11-21).

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::text::shell_word;
use crate::tools::cli::{Cli, named_session, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, words};

pub(super) static CLI: Cli = Cli {
    name: "qwen",
    programs: &["qwen"],
    argv,
    writable,
    model_flag: "-m",
    model_name: same_name,
    session: named_session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[
        (FailureKind::Auth, r"^\[API Error: 40[13] |^No auth type is selected"),
        (FailureKind::Quota, r"^\[API Error: (429|402) "),
        (FailureKind::Model, r"^\[API Error: 404 "),
        (FailureKind::Session, r"^No saved session found with ID"),
        (FailureKind::Network, r"^\[API Error: Connection error"),
    ],
    login: "qwen auth",
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["qwen", "--output-format", "stream-json", "--approval-mode"]);
    match job.access {
        // It denies whatever it would ask about; commands that only read, such as `ls`, run.
        Access::Read => {
            argv.extend(words(&["default", "--allowed-tools"]));
            let helper = shell_word(&job.helper.display().to_string());
            argv.push(format!("run_shell_command({helper})").into());
        }
        Access::Write => {
            argv.extend(words(&["auto-edit", "--allowed-tools", "run_shell_command"]));
        }
        Access::Full => argv.push("yolo".into()),
    }
    argv
}

fn gap(access: Access) -> Option<String> {
    (access == Access::Write)
        .then(|| "it holds neither its edits nor its commands to the project".to_owned())
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--include-directories".into(), directory.into()]
}

fn event(event: &Value, heard: &mut Heard) {
    match event["type"].as_str() {
        Some("system") if event["subtype"] == "init" => {
            heard.session = event["session_id"].as_str().map(Into::into);
        }
        Some("assistant") => message(&event["message"], heard),
        // It counts what earlier runs of a resumed session used too, and calls an error a success.
        Some("result") => {
            heard.over = true;
            for denial in event["permission_denials"].as_array().into_iter().flatten() {
                let tool = denial["tool_name"].as_str().unwrap_or_default();
                heard.denied(tool, &denial["tool_input"]);
            }
            if event["is_error"] == true && heard.failure.is_none() {
                let said = [&event["error"]["message"], &event["result"], &event["subtype"]];
                let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
                heard.reported_failure(&CLI, said);
            }
        }
        _ => {}
    }
}

/// What the model says, or Qwen in its place: an error has used nothing.
fn message(message: &Value, heard: &mut Heard) {
    let count = |name: &str| message["usage"][name].as_u64().unwrap_or_default();
    let (input, output) = (count("input_tokens"), count("output_tokens"));
    let said = message["content"][0]["text"].as_str().unwrap_or_default();
    if input == 0 && output == 0 && said.starts_with("[API Error: ") {
        heard.reported_failure(&CLI, said);
    } else {
        heard.failure = None;
        heard.used(input, output, None);
    }
}
