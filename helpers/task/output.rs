//! A worker's output as text for people. Most CLIs write one line of JSON for each event.

use serde_json::Value;

use crate::task::Attempt;
use crate::text::strip_escapes;

/// The keys that hold text in the events of the known CLIs.
const WORDS: [&str; 8] =
    ["text", "result", "content", "command", "message", "finalText", "aggregated_output", "output"];

/// The keys whose content is not text for people.
const OTHER: [&str; 3] = ["usage", "tool_use_result", "tools"];

/// The last `count` lines of an attempt's output, oldest first.
pub fn last_lines(attempt: &Attempt, count: usize) -> Vec<String> {
    let log = attempt.log_end();
    let mut lines: Vec<String> = log.lines().rev().filter_map(readable).take(count).collect();
    lines.reverse();
    lines.dedup();
    lines
}

/// The text of an output line; `None` if it has none.
pub fn readable(line: &str) -> Option<String> {
    let line = strip_escapes(line);
    let words = match serde_json::from_str::<Value>(&line) {
        Ok(event @ Value::Object(_)) => text_of(&event)?,
        _ => line,
    };
    Some(words.trim().to_owned()).filter(|words| !words.is_empty())
}

/// The first text in an event.
fn text_of(event: &Value) -> Option<String> {
    match event {
        Value::Object(fields) => {
            let named = WORDS.iter().filter_map(|name| fields.get(*name));
            let text = named.clone().find_map(|it| it.as_str().filter(|it| !it.trim().is_empty()));
            let inside = || {
                let others = fields.iter().filter(|(name, _)| !OTHER.contains(&name.as_str()));
                named.chain(others.map(|(_, it)| it)).find_map(|it| match it {
                    Value::Object(_) | Value::Array(_) => text_of(it),
                    _ => None,
                })
            };
            // An error may have only a name.
            let error = || fields.get("error")?.as_str().map(str::to_owned);
            text.map(str::to_owned).or_else(inside).or_else(error)
        }
        Value::Array(all) => all.iter().find_map(text_of),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_shown_in_its_words() {
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
        for (line, words) in rows {
            assert_eq!(readable(line).as_deref(), words, "{line}");
        }
    }
}
