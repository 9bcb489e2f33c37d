//! Claude Code as a worker: `claude -p` (checked with 2.1.329 on 2026-11-21).

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::process::find_program;
use crate::tools::cli::{Cli, named_session, no_namespaces};
use crate::tools::events::Heard;
use crate::tools::{Job, words};

pub(super) static CLI: Cli = Cli {
    name: "claude",
    programs: &["claude"],
    argv,
    writable,
    model_flag: "--model",
    model_name: own_name,
    session: named_session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[
        (FailureKind::Auth, r"^(Not logged in|Invalid API key) \u{b7} "),
        (FailureKind::Auth, r"^Failed to authenticate\. |^API Error: 40[13] "),
        (
            FailureKind::Quota,
            r"^You've hit your .*limit|^You're out of (extra usage|usage credits)",
        ),
        (
            FailureKind::Quota,
            r"^Credit balance is too low|^API Error: (Request rejected \(429\)|429)",
        ),
        (FailureKind::Model, r"^There's an issue with the selected model"),
        (FailureKind::Session, r"^No conversation found with session ID"),
        (FailureKind::Sandbox, r"^(Error: s|S)andbox required but unavailable"),
        // As root it does everything only where IS_SANDBOX=1 says that this is a sandbox.
        (FailureKind::Sandbox, r"^--dangerously-skip-permissions cannot be used with root"),
        (FailureKind::Network, r"^API Error: (Connection|No internet|Unable to connect)"),
        (FailureKind::Network, r"^Can't reach the API server"),
        (FailureKind::Crash, r"^API Error: (5[0-9][0-9]|Repeated)"),
    ],
    login: "claude auth login",
};

/// The sandbox that every command runs in; without one that works it does not begin. The rule that
/// allows any command is there because even a sandboxed one with a variable in it is else denied.
const SANDBOX: &str = r#"{"sandbox":{"enabled":true,"failIfUnavailable":true,"autoAllowBashIfSandboxed":true,"allowUnsandboxedCommands":false}}"#;

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["claude", "-p", "--output-format", "stream-json", "--verbose"]);
    argv.push("--permission-mode".into());
    match job.access {
        // Denies without asking whatever no rule allows.
        Access::Read => {
            let helper = super::shell_word(&job.helper.display().to_string());
            argv.extend(words(&["dontAsk", "--allowedTools", "Read", "Glob", "Grep"]));
            argv.push(format!("Bash({helper} *)").into());
            argv.push(format!("Edit(/{}/**)", job.task.display()).into());
        }
        // Any command without asking, and each in the sandbox.
        Access::Write => {
            argv.extend(words(&["acceptEdits", "--allowedTools", "Bash", "--settings", SANDBOX]));
        }
        Access::Full => argv.push("bypassPermissions".into()),
    }
    argv
}

/// Why its sandbox would not start here.
fn gap(access: Access) -> Option<String> {
    if access != Access::Write || cfg!(target_os = "macos") {
        return None;
    }
    let needs = [("bwrap", "bubblewrap (bwrap)"), ("socat", "socat")];
    let missing = needs.into_iter().filter(|(program, _)| find_program(program.as_ref()).is_none());
    let missing: Vec<_> = missing.map(|(_, name)| name).collect();
    match missing.as_slice() {
        [] => no_namespaces(),
        [one] => Some(format!("its sandbox needs {one}, which is not installed")),
        all => Some(format!("its sandbox needs {}, which are not installed", all.join(" and "))),
    }
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--add-dir".into(), directory.into()]
}

fn event(event: &Value, heard: &mut Heard) {
    let text = |pointer| event.pointer(pointer).and_then(Value::as_str);
    match text("/type") {
        Some("system") => match text("/subtype") {
            Some("init") => heard.session = text("/session_id").map(Into::into),
            // It tries again for minutes, also with a key that is not taken.
            Some("api_retry") => {
                heard.fail(kind(event), &format!("API Error: {}", text("/error").unwrap_or("?")));
            }
            Some("background_tasks_changed") => {
                heard.goes_on = event["tasks"].as_array().is_some_and(|tasks| !tasks.is_empty());
            }
            _ => {}
        },
        Some("rate_limit_event") if text("/rate_limit_info/status") == Some("rejected") => {
            heard.resets = event.pointer("/rate_limit_info/resetsAt").and_then(Value::as_u64);
        }
        Some("user") => tool_result(&event["message"]["content"][0], heard),
        Some("assistant") => {
            heard.over = false;
            heard.recovered();
            if let Some(error) = text("/error") {
                heard.fail(kind(event), text("/message/content/0/text").unwrap_or(error));
            }
        }
        Some("result") => result(event, heard),
        _ => {}
    }
}

/// A sandbox that cannot start fails every command; Claude itself ends as if all were well.
fn tool_result(result: &Value, heard: &mut Heard) {
    let text = result["content"].as_str().unwrap_or_default();
    if result["type"] == "tool_result" && result["is_error"] != true {
        heard.failure = None;
    } else if let Some(said) =
        text.strip_prefix("Exit code 1\n").filter(|it| it.starts_with("bwrap: "))
    {
        heard.fail(FailureKind::Sandbox, said);
    }
}

/// The end of a turn.
fn result(event: &Value, heard: &mut Heard) {
    heard.over = !heard.goes_on;
    if event["is_error"] != true {
        heard.recovered();
    } else if heard.failure.is_none() {
        let said = [&event["result"], &event["errors"][0], &event["subtype"]];
        let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
        heard.reported_failure(&CLI, said);
    }
    for denial in event["permission_denials"].as_array().into_iter().flatten() {
        heard.denied(denial["tool_name"].as_str().unwrap_or_default(), &denial["tool_input"]);
    }
    // `total_cost_usd` and `modelUsage` go on where a resumed session stopped.
    for used in
        event["model_usage_since_last_result"].as_object().into_iter().flat_map(|it| it.values())
    {
        let count = |name: &str| used[name].as_u64().unwrap_or_default();
        let cached = count("cacheReadInputTokens") + count("cacheCreationInputTokens");
        let cost = used["costUSD"].as_f64();
        heard.used(count("inputTokens") + cached, count("outputTokens"), cost);
    }
}

/// The kind of an error by the CLI's own name for it.
fn kind(event: &Value) -> FailureKind {
    match event["error"].as_str() {
        Some(
            "authentication_failed"
            | "oauth_org_not_allowed"
            | "account_on_hold"
            | "verification_required"
            | "cloud_credential_error",
        ) => FailureKind::Auth,
        Some("rate_limit" | "billing_error") => FailureKind::Quota,
        Some("model_not_found") => FailureKind::Model,
        _ if event["api_error"] == "connection_failed" => FailureKind::Network,
        _ => FailureKind::Crash,
    }
}

/// A full id goes as it is; what other CLIs call, say, `opus-4.6` is the tier's stable name here.
fn own_name(model: &str) -> &str {
    if model.starts_with("claude-") { model } else { tier(model).unwrap_or(model) }
}

/// The stable name of a Claude model's family, which the Agent tool knows models by.
pub(crate) fn tier(model: &str) -> Option<&'static str> {
    let tiers = ["opus", "sonnet", "haiku", "fable"];
    tiers.into_iter().find(|tier| model.to_ascii_lowercase().contains(tier))
}
