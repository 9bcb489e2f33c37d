//! Gemini CLI as a worker: `gemini` with its prompt piped.

use crate::tools::cli::prelude::*;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "gemini",
    title: "Gemini CLI",
    checked: "0.61.0 on 2026-11-21",
    programs: &["gemini"],
    package: Some("@google/gemini-cli"),
    key: Some("GEMINI_API_KEY"),
    login: "gemini",
    // From its sources, tried without an account.
    models: Models::Known(
        Source::Curated,
        &[
            "gemini-3.1-pro-preview",
            "gemini-3-flash-preview",
            "gemini-2.5-pro",
            "gemini-2.5-flash",
            "gemini-2.5-flash-lite",
        ],
    ),
    argv: |job| {
        let mut argv = job.argv([
            // Without the flag, Gemini refuses a directory that no person opened before, and prints
            // no event.
            "gemini --skip-trust --output-format stream-json --approval-mode",
            // Gemini denies whatever it would ask about, commands that redirect among it.
            "default --allowed-tools run_shell_command({helper})",
            "auto_edit --allowed-tools run_shell_command",
            "yolo",
        ]);
        // Gemini's own tools do not read what git ignores, such as reports of tasks.
        if job.access == Access::Read && job.holder.is_some() {
            argv.extend(os_args(&["--allowed-tools", "run_shell_command(cat)"]));
        }
        argv
    },
    directory_flag: Some("--include-directories"),
    model_flag: "-m",
    unenforceable: [None, Some(ONLY_EDITS)],
    places: &[Place {
        variable: "GEMINI_CLI_HOME",
        usual: "",
        own: ".gemini",
        login: &[".gemini/oauth_creds.json"],
        settings: &[
            ".gemini/google_accounts.json",
            ".gemini/settings.json",
            ".gemini/.env",
            ".gemini/GEMINI.md",
        ],
    }],
    other_logins: &[
        ("GOOGLE_GENAI_USE_VERTEXAI", ".config/gcloud"),
        ("GOOGLE_GENAI_USE_GCA", ".config/gcloud"),
    ],
    obeys: &[".gemini"],
    event,
    // Events hold the first form of an error, standard error the second, also between retries.
    failures: &[
        (
            Kind::Auth,
            r"^(\[API Error: |Error when talking to Gemini API ).*API key (not valid|exp)",
        ),
        (Kind::Auth, r"^(\[API Error: |Error when talking to Gemini API ).*UNAUTHENTICATED"),
        (Kind::Auth, r"^Please set an Auth method|^Invalid auth method selected"),
        (Kind::Quota, r"^\[API Error: .*([Qq]uota|exhausted|EXHAUSTED|429)"),
        (Kind::Quota, r"^Error when talking to Gemini API .*QuotaError: "),
        (Kind::Quota, r"^Attempt [0-9]+ failed with status 429\."),
        (Kind::Model, r"^\[API Error: .* is not found for API version"),
        (Kind::Model, r"^Error when talking to Gemini API .* ModelNotFoundError: "),
        (Kind::Session, r"^Error resuming session: "),
        (Kind::Untrusted, r"^Gemini CLI is not running in a trusted directory"),
        (Kind::Network, r"^\[API Error: .*(fetch failed|ECONN|ENOTFOUND|ETIMEDOUT|other side)"),
        (Kind::Network, r"^Attempt [0-9]+ failed\. .*(fetch failed|ECONN|ENOTFOUND|ETIMEDOUT)"),
        (Kind::Crash, r"^Attempt [0-9]+ failed with status 5"),
    ],
    ..WorkerCli::BASE
};

fn event(event: &Value, observed: &mut Observed) {
    match text(&event["type"]) {
        "init" => observed.set_session(&event["session_id"]),
        "message" if event["role"] == "assistant" => observed.recovered(),
        "tool_use" => {
            let (tool, input) = (&event["tool_name"], &event["parameters"]);
            observed.tool_call_started(&event["tool_id"], tool, input);
        }
        "tool_result" => {
            let message = text(&event["error"]["message"]);
            let denied = event["error"]["type"] == "policy_violation"
                || message.contains("requires user confirmation, which is not supported")
                || message.starts_with("Path not in workspace: ");
            observed.tool_call_ended(&event["tool_id"], denied);
        }
        "result" => {
            observed.turn_ended();
            if event["status"] == "error" {
                observed.reported_failure(&CLI, text(&event["error"]["message"]));
            }
            observed.add_usage(&event["stats"], &["input_tokens"], &["output_tokens"], None);
        }
        _ => {}
    }
}
