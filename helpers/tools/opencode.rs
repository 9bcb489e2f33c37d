//! opencode as a worker: `opencode run` (checked with 1.18.33 on 2026-11-21).

use std::ffi::OsString;

use serde_json::{Value, json};

use crate::domain::{Access, FailureKind};
use crate::text::shell_word;
use crate::tools::cli::{Cli, no_directories, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "opencode",
    programs: &["opencode"],
    argv,
    // They stand in its rules.
    writable: no_directories,
    model_flag: "-m",
    model_name: same_name,
    session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[
        (FailureKind::Session, r"^Error: Session not found"),
        (FailureKind::Model, r"^(Error: )?Model not found: "),
        (FailureKind::Network, r"^(Error: )?Cannot connect to API: "),
    ],
    login: "opencode auth login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["opencode", "run", "--format", "json"]);
    // It ends at once where it would ask; with rules that deny, the worker goes on without.
    match job.access {
        Access::Full => argv.push("--auto".into()),
        Access::Read | Access::Write => {
            argv.insert(0, "env".into());
            argv.insert(1, format!("OPENCODE_PERMISSION={}", rules(job)).into());
        }
    }
    argv
}

/// What it may use, behind the rules of the person: the last one that fits counts.
fn rules(job: &Job) -> String {
    let mut directories = vec![("*".to_owned(), "deny")];
    let writable = job.writable.iter().map(|directory| format!("{}/*", directory.display()));
    directories.extend(writable.map(|pattern| (pattern, "allow")));
    let directories = in_order(&directories);
    if job.access == Access::Write {
        return format!(r#"{{"*":"allow","external_directory":{directories}}}"#);
    }
    let helper = shell_word(&job.helper.display().to_string());
    let call = format!("{helper} --task-dir {}", shell_word(&job.task.display().to_string()));
    let mut commands = vec![
        ("*".to_owned(), "deny"),
        (format!("{call} *"), "allow"),
        // It takes a redirection for a part of the command.
        (format!("{call} *>*"), "deny"),
    ];
    for word in ["ask", "tell", "report", "block ?", "block ??", "fail ?", "fail ??"] {
        commands.push((format!("{call} {word} - <<'EOF'\n*"), "allow"));
    }
    let read = r#""read":"allow","grep":"allow","glob":"allow","list":"allow""#;
    let commands = in_order(&commands);
    format!(r#"{{"*":"deny",{read},"bash":{commands},"external_directory":{directories}}}"#)
}

/// A JSON object whose keys stay in this order.
fn in_order(rules: &[(String, &str)]) -> String {
    let rules: Vec<_> =
        rules.iter().map(|(key, value)| format!("{}:{}", json!(key), json!(value))).collect();
    format!("{{{}}}", rules.join(","))
}

fn gap(access: Access) -> Option<String> {
    (access == Access::Write).then(|| {
        "it holds its own edits to the project, but not the commands that it runs".to_owned()
    })
}

fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(_) => Vec::new(),
        Session::Resume(id) => words(&["-s", id]),
    }
}

fn event(event: &Value, heard: &mut Heard) {
    if let Some(id) = event["sessionID"].as_str() {
        heard.session = Some(id.into());
    }
    let part = &event["part"];
    match event["type"].as_str() {
        Some("step_start") => heard.over = false,
        Some("text") => heard.recovered(),
        Some("tool_use") => {
            let state = &part["state"];
            let said = state["error"].as_str().unwrap_or_default();
            if said.starts_with("The user has specified a rule which prevents")
                || said.starts_with("The user rejected permission")
            {
                heard.denied(part["tool"].as_str().unwrap_or_default(), &state["input"]);
            }
        }
        Some("step_finish") => {
            heard.over = part["reason"] != "tool-calls";
            let count = |name: &str| part.pointer(name).and_then(Value::as_u64).unwrap_or_default();
            let cached = count("/tokens/cache/read") + count("/tokens/cache/write");
            let output = count("/tokens/output") + count("/tokens/reasoning");
            heard.used(count("/tokens/input") + cached, output, part["cost"].as_f64());
        }
        Some("error") => error(&event["error"], heard),
        _ => {}
    }
}

fn error(error: &Value, heard: &mut Heard) {
    let data = &error["data"];
    let said = [&data["message"], &error["name"]].into_iter().find_map(Value::as_str);
    let said = said.unwrap_or_default();
    match (error["name"].as_str(), data["statusCode"].as_u64()) {
        (Some("ProviderAuthError"), _) | (_, Some(401 | 403)) => {
            heard.fail(FailureKind::Auth, said)
        }
        (_, Some(402 | 429)) => heard.fail(FailureKind::Quota, said),
        (Some("ProviderModelNotFoundError"), _) | (_, Some(404)) => {
            heard.fail(FailureKind::Model, said)
        }
        _ => heard.reported_failure(&CLI, said),
    }
}
