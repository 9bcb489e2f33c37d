//! opencode as a worker: `opencode run`.

use serde_json::json;

use crate::text::shell_word;
use crate::tools::cli::prelude::*;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "opencode",
    title: "opencode",
    reports: Reports::Money,
    checked: "1.18.33 on 2026-11-21",
    programs: &["opencode"],
    package: Some("opencode-ai"),
    // opencode works without a login, by the free models of its own provider.
    login: "opencode auth login",
    models: Models::Asked(&["models"], listed_models),
    // No directory flag: the rules of the command line name further directories.
    argv,
    event_flags: "--format json",
    model_flag: "-m",
    session: ["", "-s {id}"],
    unenforceable: [None, Some(ONLY_EDITS)],
    places: &[
        Place {
            variable: "XDG_DATA_HOME",
            usual: ".local/share",
            own: "opencode",
            login: &[],
            // An entry of the type `wellknown` makes opencode fetch settings, with commands in them.
            settings: &["opencode/auth.json"],
        },
        Place {
            variable: "XDG_CONFIG_HOME",
            usual: ".config",
            own: "opencode",
            login: &[],
            settings: &[
                "git",
                "opencode/config.json",
                "opencode/opencode.json",
                "opencode/opencode.jsonc",
                "opencode/AGENTS.md",
            ],
        },
        Place {
            variable: "XDG_STATE_HOME",
            usual: ".local/state",
            own: "opencode",
            login: &[],
            settings: &[],
        },
    ],
    obeys: &[".opencode"],
    obeyed_files: &["opencode.json", "opencode.jsonc"],
    // opencode writes in the project's settings, and fails where it cannot.
    variables: &[("OPENCODE_DISABLE_PROJECT_CONFIG", "1"), ("OPENCODE_DISABLE_AUTOUPDATE", "1")],
    event,
    failures: &[
        (Kind::Session, r"^Error: Session not found"),
        (Kind::Model, r"^(Error: )?Model not found: "),
        (Kind::Network, r"^(Error: )?Cannot connect to API: "),
    ],
    ..WorkerCli::BASE
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = os_args(&["opencode", "run", "--format", "json"]);
    if job.access == Access::Full {
        argv.push("--auto".into());
    } else {
        // opencode ends where it would ask; where a rule denies, the worker continues without.
        argv.splice(..0, ["env".into(), format!("OPENCODE_PERMISSION={}", rules(job)).into()]);
    }
    argv
}

/// The rules for the job's access, which follow the person's own: the last matching rule counts.
fn rules(job: &Job) -> String {
    let rule = |pattern: &str, action: &str| format!("{}:{}", json!(pattern), json!(action));
    let writable = job.writable.iter().map(|it| rule(&format!("{}/*", it.display()), "allow"));
    let directories: Vec<_> = [rule("*", "deny")].into_iter().chain(writable).collect();
    let directories = directories.join(",");
    if job.access == Access::Write {
        return format!(r#"{{"*":"allow","external_directory":{{{directories}}}}}"#);
    }
    let [helper, task] = [job.helper, job.task].map(|it| shell_word(&it.display().to_string()));
    let call = |rest: &str| format!("{helper} --task-dir {task} {rest}");
    // opencode takes a redirection for a part of the command.
    let first = [rule("*", "deny"), rule(&call("*"), "allow"), rule(&call("*>*"), "deny")];
    let words = ["ask", "tell", "report", "block ?", "block ??", "fail ?", "fail ??"];
    let texts = words.map(|word| rule(&call(&format!("{word} - <<'END_TEXT'\n*")), "allow"));
    let read = r#""read":"allow","grep":"allow","glob":"allow","list":"allow""#;
    let commands = [&first[..], &texts].concat().join(",");
    format!(r#"{{"*":"deny",{read},"bash":{{{commands}}},"external_directory":{{{directories}}}}}"#)
}

fn event(event: &Value, observed: &mut Observed) {
    observed.set_session(&event["sessionID"]);
    let part = &event["part"];
    match text(&event["type"]) {
        "step_start" => observed.said_last_word = false,
        "text" => observed.recovered(),
        "tool_use" => {
            let message = text(&part["state"]["error"]);
            if message.starts_with("The user has specified a rule which prevents")
                || message.starts_with("The user rejected permission")
            {
                observed.tool_denied(text(&part["tool"]), &part["state"]["input"]);
            }
        }
        "step_finish" => {
            observed.said_last_word = part["reason"] != "tool-calls";
            let cost = part["cost"].as_f64();
            observed.add_usage(&part["tokens"], &["input"], &["output", "reasoning"], cost);
            observed.add_usage(&part["tokens"]["cache"], &["read", "write"], &[], None);
        }
        "error" => error(&event["error"], observed),
        _ => {}
    }
}

fn error(error: &Value, observed: &mut Observed) {
    let data = &error["data"];
    let message = first_text(&[&data["message"], &error["name"]]);
    match (text(&error["name"]), data["statusCode"].as_u64()) {
        ("ProviderAuthError", _) | (_, Some(401 | 403)) => observed.fail(Kind::Auth, message),
        (_, Some(402 | 429)) => observed.fail(Kind::Quota, message),
        ("ProviderModelNotFoundError", _) | (_, Some(404)) => observed.fail(Kind::Model, message),
        _ => observed.reported_failure(&CLI, message),
    }
}

/// Reads `provider/model` lines.
fn listed_models(text: &str) -> Option<Vec<Listed>> {
    listed(text, None, r"^(?<id>[^ \t]*/[^ \t]*)$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opencode_lists_its_models_by_provider() {
        let text = "opencode/big-pickle\nopenrouter/anthropic/claude-opus-5\n\nno / list\n";
        let expected =
            [("opencode/big-pickle", None), ("openrouter/anthropic/claude-opus-5", None)];
        assert_eq!(listed_models(text), Some(expected.map(Listed::from).to_vec()));
    }
}
