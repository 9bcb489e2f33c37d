//! Qwen Code as a worker: `qwen` with its prompt piped.

use std::ffi::OsString;

use serde_json::Value;

use crate::domain::{Access, FailureKind as Kind};
use crate::text::shell_word;
use crate::tools::cli::{Models, WorkerCli};
use crate::tools::events::{Observed, first_text, sum, text};
use crate::tools::{Job, os_args};

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "qwen",
    title: "Qwen Code",
    checked: "0.15.10 on 2026-11-21",
    programs: &["qwen"],
    package: Some("@qwen-code/qwen-code"),
    login: "qwen auth",
    // From its sources, tried without an account.
    models: Models::Curated(&["coder-model", "qwen3.6-plus", "qwen3.5-plus"]),
    argv,
    directory_flag: Some("--include-directories"),
    model_flag: "-m",
    unenforceable: |access| {
        (access == Access::Write)
            .then_some("it holds neither its edits nor its commands to the project")
    },
    event,
    failures: &[
        (Kind::Auth, r"^\[API Error: 40[13] |^No auth type is selected"),
        (Kind::Quota, r"^\[API Error: (429|402) "),
        (Kind::Model, r"^\[API Error: 404 "),
        (Kind::Session, r"^No saved session found with ID"),
        (Kind::Network, r"^\[API Error: Connection error"),
    ],
    ..WorkerCli::BASE
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = os_args(&["qwen", "--output-format", "stream-json", "--approval-mode"]);
    match job.access {
        // Qwen denies whatever it would ask about; commands that only read, such as `ls`, run.
        Access::Read => {
            argv.extend(os_args(&["default", "--allowed-tools"]));
            let helper = shell_word(&job.helper.display().to_string());
            argv.push(format!("run_shell_command({helper})").into());
        }
        Access::Write => {
            argv.extend(os_args(&["auto-edit", "--allowed-tools", "run_shell_command"]));
        }
        Access::Full => argv.push("yolo".into()),
    }
    argv
}

fn event(event: &Value, observed: &mut Observed) {
    match text(&event["type"]) {
        "system" if event["subtype"] == "init" => observed.set_session(&event["session_id"]),
        "assistant" => message(&event["message"], observed),
        // The usage counts earlier runs of a resumed session; the subtype calls errors successes.
        "result" => {
            observed.said_last_word = true;
            observed.tools_denied(&event["permission_denials"]);
            if event["is_error"] == true && observed.failure.is_none() {
                let messages = [&event["error"]["message"], &event["result"], &event["subtype"]];
                observed.reported_failure(&CLI, first_text(&messages));
            }
        }
        _ => {}
    }
}

/// Reads a message of the model, or an error that Qwen reports as one, which used no tokens.
fn message(message: &Value, observed: &mut Observed) {
    let used = &message["usage"];
    let (input, output) = (sum(used, &["input_tokens"]), sum(used, &["output_tokens"]));
    let first = text(&message["content"][0]["text"]);
    if input == 0 && output == 0 && first.starts_with("[API Error: ") {
        observed.reported_failure(&CLI, first);
    } else {
        observed.failure = None;
        observed.add_usage(input, output, None);
    }
}
