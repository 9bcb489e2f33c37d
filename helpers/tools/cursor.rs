//! Cursor as a worker: `cursor-agent -p`. No registry has it, so it was never run: the facts are
//! from its documentation and from outputs that others recorded.

use crate::tools::cli::prelude::*;

pub(super) static CLI: WorkerCli = WorkerCli {
    name: "cursor",
    title: "Cursor",
    checked: "documentation of 2026-11-21",
    programs: &["cursor-agent", "agent"],
    // Grok's installer also installs an `agent`, with versions such as 0.3.
    is_own_version: |program, text| program != "agent" || text.lines().any(is_dated),
    login_status: Some((&["status", "--format", "json"], |answer| {
        answer.json_flag("isAuthenticated")
    })),
    key: Some("CURSOR_API_KEY"),
    login: "cursor-agent login",
    models: Models::Asked(&["models"], listed_models),
    argv: |job| {
        let first = "cursor-agent -p --trust --output-format stream-json";
        job.argv([first, "--mode ask", "--sandbox enabled", "--force"])
    },
    session: ["", "--resume {id}"],
    unenforceable: [
        Some("where it may only read, it runs no command: it could not report"),
        Some("its sandbox holds only as far as its own settings say"),
    ],
    places: &[Place {
        variable: "CURSOR_CONFIG_DIR",
        usual: ".cursor",
        own: "",
        login: &[],
        settings: &["cli-config.json"],
    }],
    other_logins: &[("", ".config/cursor"), ("", "Library/Keychains")],
    obeys: &[".cursor"],
    event,
    // Cursor prints these on standard error, and not as events.
    failures: &[
        (Kind::Auth, r"^(Error: )?Authentication required\. Please run"),
        (Kind::Auth, r"^[^A-Za-z]*((Error|Warning): )?The provided API key is invalid"),
        (Kind::Quota, r"^(Error: |ActionRequiredError: )*You've hit your usage limit"),
        (Kind::Quota, r"^[A-Za-z]*Error: \[resource_exhausted\]"),
        (Kind::Model, r"^(Error: )?Cannot use this model: "),
        (Kind::Untrusted, r"^[^A-Za-z]*Workspace Trust Required"),
        (Kind::Sandbox, r"^(Error: )?Sandbox mode is enabled but not available"),
        (Kind::Network, r"^[A-Za-z]*Error: \[(unavailable|deadline_exceeded)\]"),
    ],
    ..WorkerCli::BASE
};

fn event(event: &Value, observed: &mut Observed) {
    observed.set_session(&event["session_id"]);
    match text(&event["type"]) {
        "assistant" => observed.recovered(),
        "tool_call" if event["subtype"] == "completed" => {
            for (tool, call) in event["tool_call"].as_object().into_iter().flatten() {
                let rejected = &call["result"]["rejected"];
                if rejected.is_object() {
                    observed.tool_denied(tool.trim_end_matches("ToolCall"), rejected);
                }
            }
        }
        // Cursor may never exit after this event.
        "result" => {
            observed.turn_ended();
            if event["is_error"] == true {
                observed.reported_failure(&CLI, text(&event["result"]));
            }
            if event["usage"].is_object() {
                let input = ["inputTokens", "cacheReadTokens", "cacheWriteTokens"];
                observed.add_usage(&event["usage"], &input, &["outputTokens"], None);
            }
        }
        _ => {}
    }
}

/// True if a line is a version of Cursor's, such as `2026.01.28-fd13201`.
fn is_dated(line: &str) -> bool {
    let year = line.strip_prefix("20").and_then(|rest| rest.split_once('.'));
    year.is_some_and(|(year, _)| year.len() == 2 && year.bytes().all(|b| b.is_ascii_digit()))
}

/// Reads `id - name` lines, with marks after the name, between a heading and a tip.
fn listed_models(text: &str) -> Option<Vec<Listed>> {
    let mark = r" *\((?:current|default)(?:, *(?:current|default))*\)";
    // Only a mark distinguishes an entry without a name from other text.
    let entry = format!(r"^(?<id>[^ \t]+)(?: +- +(?<name>.+?)(?:{mark})*|(?:{mark})+)$");
    listed(text, None, &entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::sanitize;

    #[test]
    fn agent_is_cursors_only_with_a_dated_version() {
        let rows = [
            ("agent", "2026.01.28-fd13201\n", true),
            ("agent", "0.3\n", false),
            ("agent", "0.2026.1\n", false),
            ("agent", "20260128\n", false),
            ("cursor-agent", "1.0.0\n", true),
        ];
        for (program, text, own) in rows {
            assert_eq!((CLI.is_own_version)(program, text), own, "{program}: {text}");
        }
    }

    #[test]
    fn cursors_list_is_read_with_colours_and_every_mark() {
        let recorded = "Available models\n\nauto - Auto (current, default)\n\
            gpt-5.3-codex-low - Codex 5.3 Low\nclaude-opus-5-thinking-high - Opus 5 1M Thinking\n\n\
            Tip: use --model <id> (or /model <id> in interactive mode) to switch.\n";
        let expected = [
            ("auto", Some("Auto")),
            ("gpt-5.3-codex-low", Some("Codex 5.3 Low")),
            ("claude-opus-5-thinking-high", Some("Opus 5 1M Thinking")),
        ];
        let expected = expected.map(Listed::from).to_vec();
        let coloured = recorded
            .replace("auto", "\x1b[1mauto\x1b[0m")
            .replace("Auto", "\u{200b}Auto\u{feff}")
            .replace("Available", "\x1b[2K\x1b[1G\x1b]0;title\x07Available");
        for text in [recorded.to_owned(), coloured, recorded.replace('\n', "\r\n")] {
            assert_eq!(listed_models(&sanitize(&text)), Some(expected.clone()), "{text}");
        }
        let rows = [
            ("a - A (current)", Some(("a", Some("A")))),
            ("  a - A (default)  ", Some(("a", Some("A")))),
            ("a - A (default,current)", Some(("a", Some("A")))),
            ("a - A (current) (default)", Some(("a", Some("A")))),
            ("a - A (Preview) (current)", Some(("a", Some("A (Preview)")))),
            ("a - A (NO ZDR)", Some(("a", Some("A (NO ZDR)")))),
            ("a - A - fast - 1M", Some(("a", Some("A - fast - 1M")))),
            ("a (current)", Some(("a", None))),
            ("Tip: use a - or b", None),
            ("No models available for this account.", None),
            ("Loading models…\n", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let expected: Vec<_> = expected.map(Listed::from).into_iter().collect();
            assert_eq!(listed_models(text), Some(expected), "{text}");
        }
    }
}
