//! Reads a worker CLI's output: its session, its last word, denied tool calls, usage, and failures.
//!
//! Only the CLI's own words count: its events, and lines that are one of its known errors. A worker
//! may write about a rate limit that it is not under.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use regex::{Regex, RegexSet};
use serde_json::Value;

use crate::domain::{Failure, FailureKind, Usage};
use crate::ids::unix_seconds;
use crate::process::{local_seconds, local_time};
use crate::text::strip_escapes;
use crate::tools::cli::WorkerCli;

/// The longest line that is read, in bytes; longer ones are skipped.
const LONGEST_LINE: usize = 1 << 20;

/// The longest error that is kept, in characters.
const LONGEST_ERROR: usize = 300;

/// The longest denial that is kept, in characters.
const LONGEST_DENIAL: usize = 80;

/// The facts that one attempt's output told so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The CLI's own id of the session.
    pub session: Option<String>,
    /// True if the CLI finished its last turn, so that it should exit by itself.
    pub said_last_word: bool,
    /// True if something that the CLI started in the background will begin another turn.
    pub continues: bool,
    /// The tool calls that were denied, in short.
    pub denied: Vec<String>,
    /// The usage.
    pub usage: Option<Usage>,
    /// True if `usage` covers the whole session, with the attempts that this one resumed.
    pub usage_of_session: bool,
    /// The last failure that the CLI did not recover from.
    pub failure: Option<Failure>,
    /// True if that was said in a line for people, among which a command may have printed it.
    pub failure_in_text: bool,
    /// When a rate limit resets, in seconds since 1970, from an event before the failure.
    pub limit_resets_at: Option<u64>,
    /// The tool calls that have not ended, by the CLI's ids, in short.
    calls: BTreeMap<String, String>,
}

impl Observed {
    /// Keeps the session's id, if the value is one.
    pub(super) fn set_session(&mut self, id: &Value) {
        self.session = id.as_str().map(Into::into).or(self.session.take());
    }

    /// Keeps a failure, if the message is one of the CLI's errors.
    pub(super) fn known_failure(&mut self, cli: &WorkerCli, message: &str) {
        if let Some(kind) = kind_of(cli, message) {
            self.fail(kind, message);
        }
    }

    /// Keeps a failure that the CLI reports as one, of kind `Crash` unless its errors tell more.
    pub(super) fn reported_failure(&mut self, cli: &WorkerCli, message: &str) {
        self.fail(kind_of(cli, message).unwrap_or(FailureKind::Crash), message);
    }

    /// Keeps a failure of that kind, with the message's first line.
    pub(super) fn fail(&mut self, kind: FailureKind, message: &str) {
        let line = message.trim().lines().next().unwrap_or_default();
        let said: String = line.chars().take(LONGEST_ERROR).collect();
        let stated = || stated_reset(&said, unix_seconds());
        let is_limit = kind == FailureKind::Quota;
        let resets = is_limit.then(|| self.limit_resets_at.or_else(stated)).flatten();
        self.failure = Some(Failure { kind, said, resets });
        self.failure_in_text = false;
    }

    /// The last failure, if the worker's end agrees with it: what is read in a line counts only for a
    /// worker that failed.
    pub fn confirmed_failure(&self, has_failed: bool) -> Option<Failure> {
        self.failure.clone().filter(|_| has_failed || !self.failure_in_text)
    }

    /// Drops the failure, since the model spoke again. A broken sandbox stays a failure: the model
    /// keeps talking without it, and every command fails.
    pub(super) fn recovered(&mut self) {
        self.failure.take_if(|failure| failure.kind != FailureKind::Sandbox);
    }

    /// Keeps that a tool call was denied.
    pub(super) fn tool_denied(&mut self, tool: &str, input: &Value) {
        self.deny(in_short(tool, input));
    }

    /// Keeps the `permission_denials` of a result event.
    pub(super) fn tools_denied(&mut self, denials: &Value) {
        for denial in denials.as_array().into_iter().flatten() {
            self.tool_denied(text(&denial["tool_name"]), &denial["tool_input"]);
        }
    }

    /// Keeps a tool call, for a CLI that does not repeat it when the call ends.
    pub(super) fn tool_call_started(&mut self, id: &Value, tool: &Value, input: &Value) {
        self.calls.insert(text(id).into(), in_short(text(tool), input));
    }

    /// Forgets a tool call that ended, or keeps it as denied.
    pub(super) fn tool_call_ended(&mut self, id: &Value, denied: bool) {
        if let Some(call) = self.calls.remove(text(id)).filter(|_| denied) {
            self.deny(call);
        }
    }

    fn deny(&mut self, call: String) {
        if !self.denied.contains(&call) {
            self.denied.push(call);
        }
    }

    /// Keeps that the CLI said its last word, after which no earlier failure counts.
    pub(super) fn turn_ended(&mut self) {
        self.said_last_word = true;
        self.failure = None;
    }

    /// Adds the usage of one more turn: an object of numbers, and the names of those that count.
    pub(super) fn add_usage(
        &mut self,
        used: &Value,
        input: &[&str],
        output: &[&str],
        cost_usd: Option<f64>,
    ) {
        let (input_tokens, output_tokens) = (sum(used, input), sum(used, output));
        let turn = Usage { input_tokens, output_tokens, cost_usd, ..Usage::default() };
        self.usage = Some(self.usage.take().unwrap_or_default().with(turn));
    }
}

/// The text of a JSON value; empty if the value is none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The first of the values that is a text; empty if none is.
pub(super) fn first_text<'a>(values: &[&'a Value]) -> &'a str {
    values.iter().find_map(|value| value.as_str()).unwrap_or_default()
}

/// The sum of an object's numbers under these names; missing ones count as 0.
pub(super) fn sum(object: &Value, names: &[&str]) -> u64 {
    names.iter().filter_map(|name| object[name].as_u64()).sum()
}

/// A tool call in short: the tool, and the first line of its most telling argument.
fn in_short(tool: &str, input: &Value) -> String {
    let names = ["command", "file_path", "filePath", "path", "url", "pattern", "description"];
    let what = names.iter().find_map(|name| input[name].as_str()).unwrap_or_default();
    let what = what.lines().next().unwrap_or_default();
    let what: String = what.chars().take(LONGEST_DENIAL).collect();
    if what.is_empty() { tool.to_owned() } else { format!("{tool}: {what}") }
}

/// The kind of an error message by the CLI's expressions.
fn kind_of(cli: &WorkerCli, message: &str) -> Option<FailureKind> {
    /// Each CLI's expressions, compiled once: every line of a log may be compared with them.
    static TABLES: Mutex<BTreeMap<&str, RegexSet>> = Mutex::new(BTreeMap::new());
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let table = tables.entry(cli.name).or_insert_with(|| {
        RegexSet::new(cli.failures.iter().map(|(_, pattern)| pattern)).expect("valid expressions")
    });
    table.matches(message).iter().next().map(|first| cli.failures[first].0)
}

/// Reads a worker's output while it comes.
pub struct Listener {
    cli: Option<&'static WorkerCli>,
    line: Vec<u8>,
    observed: Observed,
}

impl Listener {
    pub(super) fn new(cli: Option<&'static WorkerCli>) -> Self {
        Self { cli, line: Vec::new(), observed: Observed::default() }
    }

    /// The facts that the output told so far.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Reads more output, which may be cut anywhere.
    pub fn hear(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() < LONGEST_LINE {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.end();
            }
        }
    }

    /// Reads the last line, which has no end.
    pub fn end(&mut self) {
        let line = std::mem::take(&mut self.line);
        let Some(cli) = self.cli.filter(|_| line.len() < LONGEST_LINE) else { return };
        let line = strip_escapes(&String::from_utf8_lossy(&line)).replace('\u{2019}', "'");
        let line = line.trim();
        let event =
            line.starts_with('{').then(|| serde_json::from_slice::<Value>(line.as_bytes()).ok());
        let observed = &mut self.observed;
        let Some(event) = event.flatten() else {
            let before = observed.failure.take();
            match cli.line {
                Some(read_line) => read_line(line, observed),
                None => observed.known_failure(cli, line),
            }
            match observed.failure.is_some() {
                true => observed.failure_in_text = true,
                false => observed.failure = before,
            }
            return;
        };
        (cli.event)(&event, observed);
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

static TIME: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?x)
        (?: resets | try\x20again\x20at ) \x20
        (?: (?<month>[A-Z][a-z][a-z]) \x20 (?<day>[0-9]{1,2}) (?:st|nd|rd|th)? ,? \x20
            (?: (?<year>[0-9]{4}) ,? \x20 )? (?: at \x20 )? )?
        (?<hour>[0-9]{1,2}) (?: : (?<minute>[0-9]{2}) )? \x20? (?<half>[AaPp]) [Mm]";
    Regex::new(pattern).expect("a valid expression")
});

/// When a rate limit resets, by a CLI's message: the end of the minute that the message states, in seconds since 1970.
fn stated_reset(message: &str, now: u64) -> Option<u64> {
    let found = TIME.captures(message)?;
    let number = |name: &str| found.name(name).and_then(|text| text.as_str().parse::<i32>().ok());
    let mut local = local_time(now)?;
    let afternoon = found["half"].eq_ignore_ascii_case("p");
    local.tm_hour = number("hour")? % 12 + if afternoon { 12 } else { 0 };
    local.tm_min = number("minute").unwrap_or(0);
    local.tm_sec = 60;
    let month = found.name("month").map(|name| MONTHS.iter().position(|it| *it == name.as_str()));
    if let Some(month) = month {
        local.tm_mon = i32::try_from(month?).ok()?;
        local.tm_mday = number("day")?;
    }
    if let Some(year) = number("year") {
        local.tm_year = year - 1900;
    }
    // A reset less than an hour ago just happened; an earlier one means the next day or year.
    let past = local_seconds(local)? + 3600 < now;
    match (month, number("year")) {
        (None, _) if past => local.tm_mday += 1,
        (Some(_), None) if past => local.tm_year += 1,
        _ => {}
    }
    local_seconds(local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stated_reset_is_the_next_such_local_time() {
        let mut noon = local_time(1_795_267_493).expect("a moment in November 2026");
        (noon.tm_mday, noon.tm_hour, noon.tm_min, noon.tm_sec) = (21, 12, 0, 30);
        let now = local_seconds(noon).expect("noon");
        let rows = [
            ("You've hit your limit \u{b7} resets 2:13pm (UTC)", Some((126, 10, 21, 14, 14))),
            ("resets 12am", Some((126, 10, 22, 0, 1))),
            ("resets 11:59am", Some((126, 10, 21, 12, 0))),
            ("resets Nov 24, 7:35pm (America/New_York)", Some((126, 10, 24, 19, 36))),
            ("resets Jan 2 at 7am", Some((127, 0, 2, 7, 1))),
            ("or try again at 2:00 PM.", Some((126, 10, 21, 14, 1))),
            ("try again at Nov 25th, 2026 12:35 AM.", Some((126, 10, 25, 0, 36))),
            ("try again later", None),
            ("resets Foo 24, 7pm", None),
        ];
        for (said, expected) in rows {
            let end = stated_reset(said, now).map(|end| local_time(end).expect("a moment"));
            let end = end.map(|it| (it.tm_year, it.tm_mon, it.tm_mday, it.tm_hour, it.tm_min));
            assert_eq!(end, expected, "{said}");
        }
    }
}
