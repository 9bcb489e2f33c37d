//! Claude Code as a worker: `claude -p`.

use std::path::PathBuf;

use anyhow::Result;

use crate::dirs;
use crate::files;
use crate::tools::cli::prelude::*;

/// The stable names of the Claude models' families.
pub(super) const TIERS: [&str; 4] = ["opus", "sonnet", "haiku", "fable"];

/// Runs every command in the sandbox, and refuses to start without one. The tool list also allows
/// Bash by name, because a sandboxed command with a variable in it is denied otherwise, and the tools
/// that read, which may read what commands may.
const WRITE: &str = r#"acceptEdits --allowedTools Bash Read Glob Grep --settings {"sandbox":{"enabled":true,"failIfUnavailable":true,"autoAllowBashIfSandboxed":true,"allowUnsandboxedCommands":false}}"#;

pub(crate) static CLI: WorkerCli = WorkerCli {
    name: "claude",
    title: "Claude Code",
    checked: "2.1.332 on 2026-11-27",
    programs: &["claude"],
    package: Some("@anthropic-ai/claude-code"),
    login_status: Some((&["auth", "status"], |answer| answer.json_flag("loggedIn"))),
    login: "claude auth login",
    models: Models::Known(Source::Stable, &TIERS),
    argv: |job| {
        job.argv([
            "claude -p --output-format stream-json --verbose --permission-mode",
            // `dontAsk` denies everything that no rule allows.
            "dontAsk --allowedTools Read Glob Grep Bash({helper}␣*) Edit(/{task}/**)",
            WRITE,
            "bypassPermissions",
        ])
    },
    event_flags: "--output-format stream-json --verbose",
    reports: Reports::Money,
    money_flag: Some("--max-budget-usd"),
    directory_flag: Some("--add-dir"),
    // A full id is passed on; another CLI's `opus-4.6` is called by its tier here.
    model_name: |model| {
        if model.starts_with("claude-") { model } else { tier(model).unwrap_or(model) }
    },
    own_sandbox: |access| (access == Access::Write).then_some(&["bwrap", "socat"]),
    nests: true,
    places: &[Place {
        variable: "CLAUDE_CONFIG_DIR",
        usual: ".claude",
        own: "",
        login: &[".credentials.json"],
        settings: &["settings.json", "CLAUDE.md", "agents", "skills", "commands"],
    }],
    other_logins: &[
        ("", "Library/Keychains"),
        ("CLAUDE_CODE_USE_BEDROCK", ".aws"),
        ("CLAUDE_CODE_USE_VERTEX", ".config/gcloud"),
    ],
    obeys: &[".claude"],
    obeyed_files: &[".mcp.json"],
    // As root, it does anything only where the first says that the machine is a sandbox.
    variables: &[("IS_SANDBOX", "1"), ("DISABLE_AUTOUPDATER", "1")],
    event,
    failures: &[
        (Kind::Auth, r"^(Not logged in|Invalid API key) \u{b7} "),
        (Kind::Auth, r"^Failed to authenticate\. |^API Error: 40[13] "),
        (Kind::Quota, r"^You've hit your .*limit|^You're out of (extra usage|usage credits)"),
        (Kind::Quota, r"^Credit balance is too low|^API Error: (Request rejected \(429\)|429)"),
        (Kind::Model, r"^There's an issue with the selected model"),
        (Kind::Session, r"^No conversation found with session ID"),
        (Kind::Sandbox, r"^(Error: s|S)andbox required but unavailable"),
        // As root, full access works only where IS_SANDBOX=1 says that the machine is a sandbox.
        (Kind::Sandbox, r"^--dangerously-skip-permissions cannot be used with root"),
        (Kind::Network, r"^API Error: (Connection|No internet|Unable to connect)"),
        (Kind::Network, r"^Can't reach the API server"),
        (Kind::Crash, r"^API Error: (5[0-9][0-9]|Repeated)"),
    ],
    ..WorkerCli::BASE
};

/// The user's Claude settings file, which may not exist.
pub(crate) fn settings_path() -> PathBuf {
    CLI.places[0].directory().join("settings.json")
}

/// The permission rule that lets agents read their prompts without prompting.
pub(crate) fn read_rule() -> Result<String> {
    let root = dirs::state_root()?;
    let home = dirs::home_directory().unwrap_or_default();
    Ok(match root.strip_prefix(&home) {
        Ok(below) => format!("Read(~/{}/**)", below.display()),
        Err(_) => format!("Read(/{}/**)", root.display()),
    })
}

/// Returns true if the user's settings have that rule. A false yes costs one prompt of the host.
pub(crate) fn may_read_state() -> Result<bool> {
    let settings = files::read(&settings_path()).ok().flatten().unwrap_or_default();
    Ok(settings.contains(&format!("{:?}", read_rule()?)))
}

fn event(event: &Value, observed: &mut Observed) {
    match text(&event["type"]) {
        "system" => match text(&event["subtype"]) {
            "init" => observed.set_session(&event["session_id"]),
            // Claude retries for minutes, even with a key that is not accepted.
            "api_retry" => {
                let error = event["error"].as_str().unwrap_or("?");
                observed.fail(kind(event), &format!("API Error: {error}"));
            }
            "background_tasks_changed" => {
                let tasks = event["tasks"].as_array();
                observed.continues = tasks.is_some_and(|tasks| !tasks.is_empty());
            }
            _ => {}
        },
        "rate_limit_event" if event["rate_limit_info"]["status"] == "rejected" => {
            observed.limit_resets_at = event["rate_limit_info"]["resetsAt"].as_u64();
        }
        "user" => tool_result(&event["message"]["content"][0], observed),
        "assistant" => {
            observed.said_last_word = false;
            observed.recovered();
            if event["error"].is_string() {
                let message = &event["message"]["content"][0]["text"];
                observed.fail(kind(event), first_text(&[message, &event["error"]]));
            }
        }
        "result" => result(event, observed),
        _ => {}
    }
}

/// Reads the result of a tool call. A sandbox that cannot start fails every command, and Claude
/// itself exits with success.
fn tool_result(result: &Value, observed: &mut Observed) {
    if result["type"] == "tool_result" && result["is_error"] != true {
        observed.failure = None;
    } else if let Some(printed) = text(&result["content"]).strip_prefix("Exit code 1\n")
        && printed.starts_with("bwrap: ")
    {
        observed.fail(Kind::Sandbox, printed);
    }
}

/// Reads the end of a turn.
fn result(event: &Value, observed: &mut Observed) {
    observed.said_last_word = !observed.continues;
    // At the end of its budget, the usage says why.
    if event["is_error"] != true || event["subtype"] == "error_max_budget_usd" {
        observed.recovered();
    } else if observed.failure.is_none() {
        let messages = [&event["result"], &event["errors"][0], &event["subtype"]];
        observed.reported_failure(&CLI, first_text(&messages));
    }
    observed.tools_denied(&event["permission_denials"]);
    // `total_cost_usd` and `modelUsage` would count what a resumed session used before.
    for (_, used) in event["model_usage_since_last_result"].as_object().into_iter().flatten() {
        let input = ["inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens"];
        observed.add_usage(used, &input, &["outputTokens"], used["costUSD"].as_f64());
    }
}

/// The kind of an error by the CLI's own name for it.
fn kind(event: &Value) -> Kind {
    match text(&event["error"]) {
        "authentication_failed"
        | "oauth_org_not_allowed"
        | "account_on_hold"
        | "verification_required"
        | "cloud_credential_error" => Kind::Auth,
        "rate_limit" | "billing_error" => Kind::Quota,
        "model_not_found" => Kind::Model,
        _ if event["api_error"] == "connection_failed" => Kind::Network,
        _ => Kind::Crash,
    }
}

/// The stable name of a Claude model's family, as the Agent tool takes it.
pub(crate) fn tier(model: &str) -> Option<&'static str> {
    TIERS.into_iter().find(|tier| model.to_ascii_lowercase().contains(tier))
}
