//! GitHub Copilot CLI as a worker: `copilot` with its prompt piped (checked with 1.0.102 on
//! 2026-11-21).

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::process::find_program;
use crate::tools::cli::{Cli, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

/// What its sandbox is made of on Linux; on macOS it is one program that every system has.
const SANDBOX: [&str; 6] = ["bwrap", "slirp4netns", "iptables", "ip6tables", "unshare", "nsenter"];

pub(super) static CLI: Cli = Cli {
    name: "copilot",
    programs: &["copilot"],
    argv,
    writable,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap,
    event,
    line: |line, heard| heard.known_failure(&CLI, line),
    failures: &[
        (FailureKind::Auth, r"^Error: No authentication information found"),
        (FailureKind::Quota, r"^402 |You have no quota"),
        (FailureKind::Model, r"^Model '.*' not found|^(Error: )?Model .* is not available"),
        (FailureKind::Session, r"^Error: No session, task, or name matched"),
        (FailureKind::Sandbox, r"Cannot start sandboxed command: "),
        (FailureKind::Network, r"Last error: Failed native model (HTTP|WebSocket) request"),
    ],
    login: "copilot login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let ends = ["--no-ask-user", "--output-format", "json"];
    let beside = job.helper.parent().unwrap_or(job.helper);
    let mut argv = words(&["copilot"]);
    match job.access {
        // It denies whatever it would ask about. Commands that only read, such as `ls`, run, and a
        // path outside of its directories counts as something to ask about, the helper's too.
        Access::Read => {
            argv.extend(writable(beside));
            argv.push("--allow-tool".into());
            argv.push(format!("shell({})", job.helper.display()).into());
        }
        // In its sandbox there are only the directories that it may write in and those of PATH.
        Access::Write => {
            argv.insert(0, "env".into());
            let mut path = OsString::from("PATH=");
            path.push(beside);
            path.push(":");
            path.push(std::env::var_os("PATH").unwrap_or_default());
            argv.insert(1, path);
            argv.extend(words(&["--sandbox", "--allow-all-paths"]));
            argv.extend(words(&["--allow-tool", "shell", "--allow-tool", "write"]));
        }
        Access::Full => argv.push("--allow-all".into()),
    }
    argv.extend(words(&ends));
    argv
}

fn gap(access: Access) -> Option<String> {
    let has = |program: &str| find_program(OsStr::new(program)).is_some();
    if access != Access::Write || has("sandbox-exec") {
        return None;
    }
    let missing: Vec<_> = SANDBOX.into_iter().filter(|program| !has(program)).collect();
    (!missing.is_empty())
        .then(|| format!("its sandbox needs {}: not in PATH", missing.join(" and ")))
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--add-dir".into(), directory.into()]
}

fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(id) => words(&["--session-id", id]),
        // Here a session that is not known is an error, and not a new one.
        Session::Resume(id) => vec![format!("--resume={id}").into()],
    }
}

fn event(event: &Value, heard: &mut Heard) {
    let data = &event["data"];
    match event["type"].as_str() {
        Some("assistant.message") => heard.recovered(),
        Some("tool.execution_start") => {
            heard.began(&data["toolCallId"], &data["toolName"], &data["arguments"]);
        }
        Some("tool.execution_complete") => {
            heard.ended(&data["toolCallId"], data["error"]["code"] == "denied");
            let said = [&data["error"]["message"], &data["result"]["content"]];
            let said = said.into_iter().find_map(Value::as_str).unwrap_or_default();
            if said.starts_with("<error: ") {
                heard.known_failure(&CLI, said);
            }
        }
        Some("session.error") => {
            let said = data["message"].as_str().unwrap_or_default();
            match data["errorType"].as_str() {
                Some("authentication") => heard.fail(FailureKind::Auth, said),
                Some("rate_limit" | "quota") => heard.fail(FailureKind::Quota, said),
                _ => heard.reported_failure(&CLI, said),
            }
        }
        // It counts requests and no tokens.
        Some("result") => {
            heard.over = true;
            heard.session = event["sessionId"].as_str().map(Into::into);
        }
        _ => {}
    }
}
