//! Gemini CLI as a worker: `gemini` with its prompt piped (checked with 0.61.0 on 2026-11-21).

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::text::shell_word;
use crate::tools::cli::{Cli, named_session, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, words};

pub(super) static CLI: Cli = Cli {
    name: "gemini",
    programs: &["gemini"],
    argv,
    writable,
    model_flag: "-m",
    model_name: same_name,
    session: named_session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    // An event has the first form of an error, standard error the second, also while it retries.
    failures: &[
        (
            FailureKind::Auth,
            r"^(\[API Error: |Error when talking to Gemini API ).*API key (not valid|exp)",
        ),
        (FailureKind::Auth, r"^(\[API Error: |Error when talking to Gemini API ).*UNAUTHENTICATED"),
        (FailureKind::Auth, r"^Please set an Auth method|^Invalid auth method selected"),
        (FailureKind::Quota, r"^\[API Error: .*([Qq]uota|exhausted|EXHAUSTED|429)"),
        (FailureKind::Quota, r"^Error when talking to Gemini API .*QuotaError: "),
        (FailureKind::Quota, r"^Attempt [0-9]+ failed with status 429\."),
        (FailureKind::Model, r"^\[API Error: .* is not found for API version"),
        (FailureKind::Model, r"^Error when talking to Gemini API .* ModelNotFoundError: "),
        (FailureKind::Session, r"^Error resuming session: "),
        (FailureKind::Untrusted, r"^Gemini CLI is not running in a trusted directory"),
        (
            FailureKind::Network,
            r"^\[API Error: .*(fetch failed|ECONN|ENOTFOUND|ETIMEDOUT|other side)",
        ),
        (
            FailureKind::Network,
            r"^Attempt [0-9]+ failed\. .*(fetch failed|ECONN|ENOTFOUND|ETIMEDOUT)",
        ),
        (FailureKind::Crash, r"^Attempt [0-9]+ failed with status 5"),
    ],
    login: "gemini",
};

fn argv(job: &Job) -> Vec<OsString> {
    // Else it neither works in a directory that no person opened before, nor says so in an event.
    let mut argv = words(&["gemini", "--skip-trust", "--output-format", "stream-json"]);
    match job.access {
        // It denies whatever it would ask about, commands that redirect among it.
        Access::Read => {
            argv.extend(words(&["--approval-mode", "default", "--allowed-tools"]));
            let helper = shell_word(&job.helper.display().to_string());
            argv.push(format!("run_shell_command({helper})").into());
        }
        Access::Write => argv.extend(words(&[
            "--approval-mode",
            "auto_edit",
            "--allowed-tools",
            "run_shell_command",
        ])),
        Access::Full => argv.extend(words(&["--approval-mode", "yolo"])),
    }
    argv
}

fn gap(access: Access) -> Option<String> {
    (access == Access::Write).then(|| {
        "it holds its own edits to the project, but not the commands that it runs".to_owned()
    })
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--include-directories".into(), directory.into()]
}

fn event(event: &Value, heard: &mut Heard) {
    match event["type"].as_str() {
        Some("init") => heard.session = event["session_id"].as_str().map(Into::into),
        Some("message") if event["role"] == "assistant" => heard.recovered(),
        Some("tool_use") => {
            heard.began(&event["tool_id"], &event["tool_name"], &event["parameters"]);
        }
        Some("tool_result") => {
            let said = event["error"]["message"].as_str().unwrap_or_default();
            let denied = event["error"]["type"] == "policy_violation"
                || said.contains("requires user confirmation, which is not supported")
                || said.starts_with("Path not in workspace: ");
            heard.ended(&event["tool_id"], denied);
        }
        Some("result") => {
            heard.over = true;
            heard.failure = None;
            if event["status"] == "error" {
                let said = event["error"]["message"].as_str().unwrap_or_default();
                heard.reported_failure(&CLI, said);
            }
            let count = |name: &str| event["stats"][name].as_u64().unwrap_or_default();
            heard.used(count("input_tokens"), count("output_tokens"), None);
        }
        _ => {}
    }
}
