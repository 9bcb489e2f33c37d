//! A worker's output as text for people. Most CLIs write one line of JSON for each event.
//!
//! Invariant: a line of an unknown form is shown as it is, without escape sequences.

use serde_json::Value;

use crate::task::Attempt;
use crate::text::strip_escapes;

/// The keys that hold text in the events of the known CLIs, the best first.
const TEXT_KEYS: [&str; 8] =
    ["text", "result", "content", "command", "message", "finalText", "aggregated_output", "output"];

/// The keys whose values are not text for people.
const SKIPPED_KEYS: [&str; 3] = ["usage", "tool_use_result", "tools"];

/// The last `count` lines with text in an attempt's log, oldest first, repeated lines once.
pub fn last_lines(attempt: &Attempt, count: usize) -> Vec<String> {
    let log = attempt.log_end();
    let mut lines: Vec<String> = log.lines().rev().filter_map(readable).take(count).collect();
    lines.reverse();
    lines.dedup();
    lines
}

/// The line of an attempt's log that says what went wrong: the first of its last block, whose further
/// lines are indented, or follow one that announces them.
pub fn error_line(attempt: &Attempt) -> Option<String> {
    error_line_of(&attempt.log_end())
}

fn error_line_of(log: &str) -> Option<String> {
    let is_heading = |line: &str| {
        let line = strip_escapes(line);
        !line.starts_with(char::is_whitespace) && !line.trim_end().ends_with(':')
    };
    let mut lines = log.lines().rev().filter(|line| readable(line).is_some());
    let last = lines.clone().next()?;
    readable(lines.find(|line| is_heading(line)).unwrap_or(last))
}

/// The text of an output line; `None` if it has none.
pub fn readable(line: &str) -> Option<String> {
    let line = strip_escapes(line);
    let text = match serde_json::from_slice::<Value>(line.as_bytes()) {
        Ok(event @ Value::Object(_)) => first_text(&event)?,
        _ => line,
    };
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The first text in an event or its parts; `None` if there is none.
fn first_text(event: &Value) -> Option<String> {
    match event {
        Value::Object(fields) => {
            let named = TEXT_KEYS.iter().filter_map(|name| fields.get(*name));
            let text = named.clone().find_map(|it| it.as_str().filter(|it| !it.trim().is_empty()));
            let inside = || {
                let others =
                    fields.iter().filter(|(name, _)| !SKIPPED_KEYS.contains(&name.as_str()));
                named.chain(others.map(|(_, it)| it)).find_map(|it| match it {
                    Value::Object(_) | Value::Array(_) => first_text(it),
                    _ => None,
                })
            };
            // An error may have only a name.
            let error = || fields.get("error")?.as_str().map(str::to_owned);
            text.map(str::to_owned).or_else(inside).or_else(error)
        }
        Value::Array(all) => all.iter().find_map(first_text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_named_by_its_first_line() {
        let rows = [
            ("a\nprog: no such task\n  in x\n  next: look\n", "prog: no such task"),
            ("Traceback (most recent call last):\n  File \"a\"\nValueError: b\n", "ValueError: b"),
            ("Error: a\n\nCaused by:\n    0: b\n    1: c\n", "Error: a"),
            ("Error: boom\n    at f (a.js:1)\n    at g (a.js:2)\n\n", "Error: boom"),
            ("  only this\n", "only this"),
            ("one\ntwo\n", "two"),
        ];
        for (log, line) in rows {
            assert_eq!(error_line_of(log).as_deref(), Some(line), "{log}");
        }
        assert_eq!(error_line_of("\n"), None);
    }

    #[test]
    fn output_line_is_shown_as_its_text() {
        let rows = [
            ("Plain text", Some("Plain text")),
            ("\u{1b}[31mred\u{1b}[0m", Some("red")),
            ("  ", None),
            (r#"{"type":"thread.started","thread_id":"t1"}"#, None),
            (r#"{"type":"turn.completed","usage":{"input_tokens":1}}"#, None),
            (
                r#"{"type":"item.completed","item":{"id":"i","type":"agent_message","text":"Hello"}}"#,
                Some("Hello"),
            ),
            (
                r#"{"type":"item.completed","item":{"command":"ls -l","aggregated_output":"a"}}"#,
                Some("ls -l"),
            ),
            (
                r#"{"type":"assistant","message":{"content":[{"type":"text","text":"I read."}]}}"#,
                Some("I read."),
            ),
            (
                r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Bash","input":{"command":"cargo test"}}]}}"#,
                Some("cargo test"),
            ),
            (r#"{"type":"result","subtype":"success","result":"All done."}"#, Some("All done.")),
            (r#"API Error: 400 {"type":"error"}"#, Some(r#"API Error: 400 {"type":"error"}"#)),
        ];
        for (line, text) in rows {
            assert_eq!(readable(line).as_deref(), text, "{line}");
        }
    }
}
