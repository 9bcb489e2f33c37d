//! Droid as a worker: `droid exec`.

use crate::tools::cli::prelude::*;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "droid",
    title: "Droid",
    checked: "0.215.0 on 2026-11-21",
    programs: &["droid"],
    package: Some("droid"),
    key: Some("FACTORY_API_KEY"),
    login: "droid",
    models: Models::Asked(&["exec", "--help"], listed_models),
    argv: |job| {
        let first = "droid exec --output-format stream-json";
        job.argv([first, "", "--auto medium", "--auto high"])
    },
    model_flag: "-m",
    // `-s` resumes too, but exits silently with 1 when Droid is logged out and has its own models.
    // A fork holds everything that was said in the session.
    session: ["", "--fork {id}"],
    unenforceable: [Some("it lets the model itself say how risky each of its commands is"); 2],
    places: &[Place {
        variable: "FACTORY_HOME_OVERRIDE",
        usual: "",
        own: ".factory",
        login: &[".factory/auth.v2.file", ".factory/auth.json"],
        settings: &[
            ".factory/auth.v2.key",
            ".factory/settings.json",
            ".factory/config.json",
            ".factory/AGENTS.md",
        ],
    }],
    obeys: &[".factory"],
    event,
    failures: &[
        (Kind::Auth, r"^40[13] |^(Error: )?Authentication failed"),
        (Kind::Quota, r"^(402|429) "),
        (Kind::Model, r"^404 .*[Mm]odel|^Invalid model: "),
        (Kind::Network, r"^Connection error"),
    ],
    ..WorkerCli::BASE
};

fn event(event: &Value, observed: &mut Observed) {
    observed.set_session(&event["session_id"]);
    match text(&event["type"]) {
        "message" if event["role"] == "assistant" => observed.recovered(),
        "tool_call" => {
            observed.tool_call_started(&event["id"], &event["toolName"], &event["parameters"]);
        }
        "tool_result" => {
            let message = text(&event["error"]["message"]);
            let denied = message.contains(" is not permitted in this") || ended_early(message);
            observed.tool_call_ended(&event["id"], denied);
        }
        "error" => {
            let message = text(&event["message"]);
            // The CLI's own last error only says that there was an error.
            if !ended_early(message) && (event["source"] != "cli" || observed.failure.is_none()) {
                observed.reported_failure(&CLI, message);
            }
        }
        "completion" => {
            observed.turn_ended();
            let input = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];
            observed.add_usage(&event["usage"], &input, &["output_tokens"], None);
        }
        _ => {}
    }
}

/// True if the message says that Droid ended because of a denied call, which is no failure.
fn ended_early(message: &str) -> bool {
    message.contains("Exec ended early: insufficient permission")
}

/// Reads the help of `exec`: ids and names in columns, up to an empty line.
fn listed_models(text: &str) -> Option<Vec<Listed>> {
    let entry = r"^(?<id>.+?)  +(?<name>.+?)(?: \(default\))?$";
    let mut models = listed(text, Some("Available Models"), entry)?;
    models.retain(|model| !model.name.iter().any(|name| name.ends_with("[Deprecated]")));
    Some(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn droid_lists_its_models_in_the_help_without_deprecated_ones() {
        let text = "Usage: droid exec\n\nAvailable Models:\n  gpt-5.6-sol                  \
            GPT-5.6 Sol (default)\n  inkling                      Inkling (Droid Core)\n  glm-5    \
            GLM-5 (Droid Core) [Deprecated]\n\nModel details:\n  - Sol  x: supports\n";
        let expected =
            [("gpt-5.6-sol", Some("GPT-5.6 Sol")), ("inkling", Some("Inkling (Droid Core)"))];
        assert_eq!(listed_models(text), Some(expected.map(Listed::from).to_vec()));
        assert_eq!(listed_models("nothing"), None);
    }
}
