//! GitHub Copilot CLI as a worker: `copilot` with its prompt piped.

use crate::tools::cli::prelude::*;

/// The programs that its sandbox uses on Linux. On macOS the sandbox is `sandbox-exec`, which every
/// system has.
const SANDBOX: [&str; 6] = ["bwrap", "slirp4netns", "iptables", "ip6tables", "unshare", "nsenter"];

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "copilot",
    title: "Copilot CLI",
    reports: Reports::Nothing,
    checked: "1.0.102 on 2026-11-21",
    programs: &["copilot"],
    // AWS has a program of the same name, which prints "copilot version: v1.34.0".
    is_own_version: |_, text| !text.trim_start().starts_with("copilot version"),
    package: Some("@github/copilot"),
    login: "copilot login",
    models: Models::Asked(&["help", "config"], listed_models),
    argv,
    event_flags: "--output-format json",
    directory_flag: Some("--add-dir"),
    // With `=`, an unknown session is an error and not a new one.
    session: ["--session-id {id}", "--resume={id}"],
    own_sandbox: |access| (access == Access::Write).then_some(&SANDBOX),
    places: &[Place {
        variable: "COPILOT_HOME",
        usual: ".copilot",
        own: "",
        login: &[],
        settings: &["config.json", "settings.json", "mcp-config.json"],
    }],
    other_logins: &[("", ".config/gh"), ("", "Library/Keychains")],
    event,
    failures: &[
        (Kind::Auth, r"^Error: No authentication information found"),
        (Kind::Quota, r"^402 |You have no quota"),
        (Kind::Model, r"^Model '.*' not found|^(Error: )?Model .* is not available"),
        (Kind::Session, r"^Error: No session, task, or name matched"),
        (Kind::Sandbox, r"Cannot start sandboxed command: "),
        (Kind::Network, r"Last error: Failed native model (HTTP|WebSocket) request"),
    ],
    ..WorkerCli::BASE
};

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = job.argv([
        "copilot",
        // Copilot denies whatever it would ask about, a path outside of its directories included.
        // Commands that only read, such as `ls`, run without asking.
        "--add-dir {bin} --allow-tool shell({path})",
        "--sandbox --allow-all-paths --allow-tool shell --allow-tool write",
        "--allow-all",
    ]);
    if job.access == Access::Write {
        // The sandbox holds only the writable directories and those of PATH.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = ["PATH=".as_ref(), job.bin().as_os_str(), ":".as_ref(), &path];
        argv.splice(..0, ["env".into(), path.join(OsStr::new(""))]);
    }
    argv.extend(os_args(&["--no-ask-user", "--output-format", "json"]));
    argv
}

fn event(event: &Value, observed: &mut Observed) {
    let data = &event["data"];
    match text(&event["type"]) {
        "assistant.message" => observed.recovered(),
        "tool.execution_start" => {
            observed.tool_call_started(&data["toolCallId"], &data["toolName"], &data["arguments"]);
        }
        "tool.execution_complete" => {
            observed.tool_call_ended(&data["toolCallId"], data["error"]["code"] == "denied");
            let message = first_text(&[&data["error"]["message"], &data["result"]["content"]]);
            if message.starts_with("<error: ") {
                observed.known_failure(&CLI, message);
            }
        }
        "session.error" => {
            let message = text(&data["message"]);
            match text(&data["errorType"]) {
                "authentication" => observed.fail(Kind::Auth, message),
                "rate_limit" | "quota" => observed.fail(Kind::Quota, message),
                _ => observed.reported_failure(&CLI, message),
            }
        }
        // Copilot counts requests and no tokens, so that no usage is known.
        "result" => {
            observed.said_last_word = true;
            observed.set_session(&event["sessionId"]);
        }
        _ => {}
    }
}

/// Reads the help on the setting `model`: one `- "id"` a line.
fn listed_models(text: &str) -> Option<Vec<Listed>> {
    listed(text, Some("`model`"), r#"^- "(?<id>.*)"$"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copilot_of_aws_is_another_program() {
        assert!((CLI.is_own_version)("copilot", "GitHub Copilot CLI 1.0.102.\n"));
        assert!(!(CLI.is_own_version)("copilot", "copilot version: v1.34.0\n"));
    }

    #[test]
    fn copilot_lists_its_models_in_the_help_on_a_setting() {
        let text = "  `logLevel`: level\n    - \"none\"\n\n  `model`: AI model to use.\n    \
            - \"claude-opus-5.5\"\n    - \"gpt-6-sol\"\n\n  `mouse`: whether\n    - \"on\"\n";
        let expected = [("claude-opus-5.5", None), ("gpt-6-sol", None)];
        assert_eq!(listed_models(text), Some(expected.map(Listed::from).to_vec()));
        assert_eq!(listed_models("nothing"), None);
    }
}
