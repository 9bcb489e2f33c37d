//! Qwen Code as a worker: `qwen` with its prompt piped.

use crate::tools::cli::prelude::*;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "qwen",
    title: "Qwen Code",
    checked: "0.24.4 on 2026-11-27",
    programs: &["qwen"],
    package: Some("@qwen-code/qwen-code"),
    login: "qwen",
    // From its sources, tried without an account.
    models: Models::Known(Source::Curated, &["coder-model", "qwen3.6-plus", "qwen3.5-plus"]),
    argv: |job| {
        job.argv([
            // The words follow the prompt. Without some, commands run in a terminal, which Landlock closes.
            "qwen -p Begin. --output-format stream-json --approval-mode",
            // Qwen denies whatever it would ask about; commands that only read, such as `ls`, run.
            "default --allowed-tools run_shell_command({helper})",
            "auto-edit --allowed-tools run_shell_command",
            "yolo",
        ])
    },
    directory_flag: Some("--include-directories"),
    model_flag: "-m",
    unenforceable: [None, Some("it holds neither its edits nor its commands to the project")],
    places: &[Place {
        variable: "QWEN_HOME",
        usual: ".qwen",
        own: "",
        login: &["oauth_creds.json"],
        settings: &["settings.json", ".env", "QWEN.md"],
    }],
    obeys: &[".qwen"],
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
    let first = text(&message["content"][0]["text"]);
    if sum(used, &["input_tokens", "output_tokens"]) == 0 && first.starts_with("[API Error: ") {
        observed.reported_failure(&CLI, first);
    } else {
        observed.failure = None;
        observed.add_usage(used, &["input_tokens"], &["output_tokens"], None);
    }
}
