//! Codex as a worker: `codex exec` (checked with 0.169.0 on 2026-11-21).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::domain::{Access, FailureKind};
use crate::tools::cli::{Cli, no_namespaces, same_name};
use crate::tools::events::Heard;
use crate::tools::{Job, Session, words};

pub(super) static CLI: Cli = Cli {
    name: "codex",
    programs: &["codex"],
    argv,
    writable,
    model_flag: "--model",
    model_name: same_name,
    session,
    gap,
    event,
    line,
    failures: &[
        (
            FailureKind::Auth,
            r"unexpected status 40[13] |^Missing environment variable|^Not logged in",
        ),
        (FailureKind::Auth, r"access token could not be refreshed"),
        (FailureKind::Quota, r"last status: 429|^You've hit your usage limit|^Quota exceeded"),
        (FailureKind::Model, r"The model .* does not exist|is not supported when using Codex with"),
        (FailureKind::Session, r"no rollout found for thread id"),
        (FailureKind::Untrusted, r"^Not inside a trusted directory"),
        (FailureKind::Sandbox, r"^(bwrap|sandbox-exec): "),
        (FailureKind::Network, r"waiting for network|stream disconnected before completion"),
    ],
    login: "codex login",
};

fn argv(job: &Job) -> Vec<OsString> {
    let sandbox = if job.access == Access::Full { "danger-full-access" } else { "workspace-write" };
    let mut argv = words(&["codex", "exec", "--json", "--skip-git-repo-check", "-s", sandbox]);
    let workspace = if job.access == Access::Read {
        // What its sandbox allows beside the workspace would be the project.
        if temporary(job.directory) {
            argv.extend(words(&["-c", "sandbox_workspace_write.exclude_slash_tmp=true"]));
            argv.extend(words(&["-c", "sandbox_workspace_write.exclude_tmpdir_env_var=true"]));
        }
        // One that may only read works in its task's directory, to tick its plan.
        job.task
    } else {
        job.directory
    };
    argv.push("-C".into());
    argv.push(workspace.into());
    argv
}

/// Whether that is where every program may write.
fn temporary(directory: &Path) -> bool {
    ["/tmp".into(), std::env::temp_dir()].iter().any(|tmp: &PathBuf| directory.starts_with(tmp))
}

fn gap(access: Access) -> Option<String> {
    if access == Access::Full { None } else { no_namespaces() }
}

fn writable(directory: &Path) -> Vec<OsString> {
    vec!["--add-dir".into(), directory.into()]
}

/// The prompt is on standard input.
fn session(session: Session) -> Vec<OsString> {
    match session {
        Session::New(_) => words(&["-"]),
        Session::Resume(id) => words(&["resume", id, "-"]),
    }
}

fn event(event: &Value, heard: &mut Heard) {
    match event["type"].as_str() {
        Some("thread.started") => heard.session = event["thread_id"].as_str().map(Into::into),
        Some("item.completed") => item(&event["item"], heard),
        Some("error") => failed(&event["message"], heard),
        Some("turn.failed") => {
            heard.over = true;
            failed(&event["error"]["message"], heard);
        }
        Some("turn.completed") => {
            heard.over = true;
            let count = |name: &str| event["usage"][name].as_u64().unwrap_or_default();
            heard.session_used(count("input_tokens"), count("output_tokens"));
        }
        _ => {}
    }
}

fn item(item: &Value, heard: &mut Heard) {
    match item["type"].as_str() {
        Some("command_execution") if item["exit_code"] == 0 => heard.failure = None,
        Some("command_execution") => {
            let output = item["aggregated_output"].as_str().unwrap_or_default();
            if let Some(first) = output.lines().next().filter(|line| of_the_sandbox(line)) {
                heard.fail(FailureKind::Sandbox, first);
            }
        }
        Some("agent_message") => heard.recovered(),
        _ => {}
    }
}

/// Takes in a line of the form for people, where Codex's own errors stand behind one word, among
/// the prompt and all that the commands said.
fn line(line: &str, heard: &mut Heard) {
    let error = line.strip_prefix("ERROR: ").or_else(|| line.strip_prefix("Error: "));
    if let Some(id) = line.strip_prefix("session id: ") {
        heard.session.get_or_insert_with(|| id.into());
    } else if line.starts_with("succeeded in ") {
        heard.failure = None;
    } else if line == "tokens used" {
        heard.over = true;
        heard.recovered();
    } else if let Some(error) = error {
        heard.known_failure(&CLI, error);
    } else if of_the_sandbox(line) || line.starts_with("Not inside a trusted directory") {
        heard.known_failure(&CLI, line);
    }
}

/// Whether the sandbox says that it cannot start. Codex then ends as if all were well.
fn of_the_sandbox(line: &str) -> bool {
    line.starts_with("bwrap: ") || line.starts_with("sandbox-exec: ")
}

fn failed(said: &Value, heard: &mut Heard) {
    heard.reported_failure(&CLI, said.as_str().unwrap_or_default());
}
