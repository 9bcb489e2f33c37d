//! Codex as a worker: `codex exec`.

use std::path::PathBuf;

use crate::text::sort;
use crate::tools::cli::prelude::*;
use crate::tools::detect::Answer;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "codex",
    title: "Codex",
    checked: "0.171.0 on 2026-11-27",
    programs: &["codex"],
    package: Some("@openai/codex"),
    login_status: Some((&["login", "status"], is_logged_in)),
    // `codex exec` takes the key, and `login status` does not know it.
    key: Some("CODEX_API_KEY"),
    login: "codex login",
    // 0.140.0 has this command, 0.120.0 does not.
    models: Models::Asked(&["debug", "models"], listed_models),
    // 0.146.0 takes it, 0.147.0 exits with 2.
    removed_flags: &[("--full-auto", "-s workspace-write")],
    argv,
    event_flags: "--json",
    directory_flag: Some("--add-dir"),
    // `-` reads the prompt from standard input.
    session: ["-", "resume {id} -"],
    own_sandbox: |access| (access != Access::Full).then_some(&[]),
    nests: true,
    places: &[Place {
        variable: "CODEX_HOME",
        usual: ".codex",
        own: "",
        login: &["auth.json"],
        settings: &["config.toml", "AGENTS.md", "skills", "prompts"],
    }],
    obeys: &[".codex", ".agents"],
    event,
    line: Some(line),
    failures: &[
        (Kind::Auth, r"unexpected status 40[13] |^Missing environment variable|^Not logged in"),
        (Kind::Auth, r"access token could not be refreshed"),
        (Kind::Quota, r"last status: 429|^You've hit your usage limit|^Quota exceeded"),
        (Kind::Model, r"The model .* does not exist|is not supported when using Codex with"),
        (Kind::Session, r"no rollout found for thread id"),
        (Kind::Untrusted, r"^Not inside a trusted directory"),
        (Kind::Sandbox, r"^(bwrap|sandbox-exec): "),
        (Kind::Network, r"waiting for network|stream disconnected before completion"),
    ],
    ..WorkerCli::BASE
};

fn argv(job: &Job) -> Vec<OsString> {
    let first = "codex exec --json --skip-git-repo-check";
    let levels = ["workspace-write", "workspace-write", "danger-full-access"];
    let mut argv = if job.holder.is_some() || job.access == Access::Full {
        let [read, write, full] = levels.map(|level| format!("-s {level}"));
        job.argv([first, &read, &write, &full])
    } else {
        let mut argv = job.argv([first, "", "", ""]);
        for setting in [r#"default_permissions="dispatch""#, &permissions(job)] {
            argv.extend(os_args(&["-c", setting]));
        }
        argv
    };
    // A worker that may only read works in its task's directory, where it ticks its plan.
    let workspace = if job.access == Access::Read { job.task } else { job.directory };
    argv.extend(["-C".into(), workspace.into()]);
    argv
}

/// The profile of a worker that Codex itself holds (since 0.138; an older one lets it write nothing): it
/// writes in its directory and in the private one that TMPDIR names, and nothing that others obey. The
/// command line outweighs a `sandbox_mode` in the person's settings.
fn permissions(job: &Job) -> String {
    let rule =
        |path: &PathBuf, level| format!("{}=\"{level}\"", Value::from(path.to_string_lossy()));
    let kept = job.kept.iter().map(|path| rule(path, "read"));
    let rules: Vec<_> = kept.chain(job.writable.iter().map(|path| rule(path, "write"))).collect();
    let rules = rules.join(",");
    format!(
        r#"permissions.dispatch={{extends=":workspace",filesystem={{":slash_tmp"="read",{rules}}}}}"#
    )
}

fn is_logged_in(answer: &Answer) -> Option<bool> {
    let says_no = (answer.out.clone() + &answer.err).contains("Not logged in");
    if answer.code == Some(0) { Some(true) } else { says_no.then_some(false) }
}

fn event(event: &Value, observed: &mut Observed) {
    match text(&event["type"]) {
        "thread.started" => observed.set_session(&event["thread_id"]),
        "item.completed" => completed_item(&event["item"], observed),
        "error" => observed.reported_failure(&CLI, text(&event["message"])),
        "turn.failed" => {
            observed.said_last_word = true;
            observed.reported_failure(&CLI, text(&event["error"]["message"]));
        }
        "turn.completed" => {
            observed.said_last_word = true;
            observed.usage = None;
            observed.usage_of_session = true;
            observed.add_usage(&event["usage"], &["input_tokens"], &["output_tokens"], None);
        }
        _ => {}
    }
}

fn completed_item(item: &Value, observed: &mut Observed) {
    match text(&item["type"]) {
        "command_execution" if item["exit_code"] == 0 => observed.failure = None,
        "command_execution" => {
            let first = text(&item["aggregated_output"]).lines().next().unwrap_or_default();
            if is_sandbox_error(first) {
                observed.fail(Kind::Sandbox, first);
            }
        }
        "agent_message" => observed.recovered(),
        _ => {}
    }
}

/// Reads a line of the output for people, where one word marks Codex's own errors among the prompt
/// and the output of commands.
fn line(line: &str, observed: &mut Observed) {
    let error = line.strip_prefix("ERROR: ").or_else(|| line.strip_prefix("Error: "));
    if let Some(id) = line.strip_prefix("session id: ") {
        observed.session.get_or_insert_with(|| id.into());
    } else if let Some(error) = error {
        observed.known_failure(&CLI, error);
    } else if is_sandbox_error(line) || line.starts_with("Not inside a trusted directory") {
        observed.known_failure(&CLI, line);
    }
}

/// True if the sandbox says that it cannot start. Codex itself then exits with success.
fn is_sandbox_error(line: &str) -> bool {
    line.starts_with("bwrap: ") || line.starts_with("sandbox-exec: ")
}

/// Reads `codex debug models`, best first as in Codex's own picker.
fn listed_models(text: &str) -> Option<Vec<Listed>> {
    let answer: Value = serde_json::from_slice(text.as_bytes()).ok()?;
    let models = answer["models"].as_array()?.iter();
    let mut listed: Vec<_> = models.filter(|model| model["visibility"] == "list").collect();
    let priority = |model: &Value| model["priority"].as_i64().unwrap_or(i64::MAX);
    sort(&mut listed, |one, other| priority(one).cmp(&priority(other)));
    let entry =
        |model: &&Value| Some((model["slug"].as_str()?, model["display_name"].as_str()).into());
    listed.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codex_lists_its_visible_models_by_priority() {
        let text = r#"{"models":[
            {"slug":"gpt-6-astra","display_name":"GPT-6-Astra","visibility":"list","priority":2,"base_instructions":"…"},
            {"slug":"gpt-6.1-sol","display_name":"GPT-6.1-Sol","visibility":"list","priority":1},
            {"slug":"codex-auto-review","display_name":"Codex Auto Review","visibility":"hide","priority":43},
            {"slug":"gpt-5.5","visibility":"list"}]}"#;
        let expected = [
            ("gpt-6.1-sol", Some("GPT-6.1-Sol")),
            ("gpt-6-astra", Some("GPT-6-Astra")),
            ("gpt-5.5", None),
        ];
        assert_eq!(listed_models(text), Some(expected.map(Listed::from).to_vec()));
        assert_eq!(listed_models("error"), None);
    }
}
