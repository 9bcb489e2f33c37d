//! What a worker CLI says on its output: which session it works in, that it has said its last word,
//! what it was denied, what it cost, and why it failed.
//!
//! Only the CLI's own words count: its events, and lines that are one of its known errors. A worker
//! may well write about a rate limit that it is not under.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use regex::RegexSet;
use serde_json::Value;

use crate::domain::{Failure, FailureKind, Usage};
use crate::text::strip_escapes;
use crate::tools::cli::Cli;
use crate::tools::rate_limit;

/// The longest line that is looked at, in bytes; of a longer one nothing is.
const LONGEST_LINE: usize = 1 << 20;

/// The longest error that is kept, in characters.
const LONGEST_ERROR: usize = 300;

/// The longest denial that is kept, in characters.
const LONGEST_DENIAL: usize = 80;

/// All that was heard of one attempt so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// The CLI's own name for the session.
    pub session: Option<String>,
    /// Whether it said its last word. It should exit by itself then.
    pub over: bool,
    /// Whether something that it started will give it the word once more.
    pub goes_on: bool,
    /// What it was not allowed to do.
    pub denied: Vec<String>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Whether that counts the whole session, with the attempts that it was resumed from.
    pub usage_of_session: bool,
    /// The last failure that it did not recover from.
    pub failure: Option<Failure>,
    /// When a limit ends of which no failure was heard yet.
    pub resets: Option<u64>,
    /// The tool calls that have not ended, by the CLI's ids, in short words.
    calls: BTreeMap<String, String>,
}

impl Heard {
    /// Keeps a failure whose kind the CLI's table knows.
    pub(super) fn known_failure(&mut self, cli: &Cli, said: &str) {
        if let Some(kind) = kind_of(cli, said) {
            self.fail(kind, said);
        }
    }

    /// Keeps a failure that the CLI reports as one, whether the table knows its kind or not.
    pub(super) fn reported_failure(&mut self, cli: &Cli, said: &str) {
        self.fail(kind_of(cli, said).unwrap_or(FailureKind::Crash), said);
    }

    /// Keeps a failure of that kind.
    pub(super) fn fail(&mut self, kind: FailureKind, said: &str) {
        let said = said.trim().lines().next().unwrap_or_default();
        let said: String = said.chars().take(LONGEST_ERROR).collect();
        let resets = self.resets.filter(|_| kind == FailureKind::Quota).or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            rate_limit::stated(&said, now.as_secs()).filter(|_| kind == FailureKind::Quota)
        });
        self.failure = Some(Failure { kind, said, resets });
    }

    /// Takes back a failure, for the model speaks. That goes on without a sandbox that works, in
    /// which nothing else does.
    pub(super) fn recovered(&mut self) {
        self.failure.take_if(|failure| failure.kind != FailureKind::Sandbox);
    }

    /// Keeps that it was not allowed to use a tool so, in short words.
    pub(super) fn denied(&mut self, tool: &str, input: &Value) {
        self.keep_denied(in_short(tool, input));
    }

    /// Keeps what a tool call is, for a CLI that does not say it again when the call has ended.
    pub(super) fn began(&mut self, call: &Value, tool: &Value, input: &Value) {
        let tool = tool.as_str().unwrap_or_default();
        self.calls.insert(call.as_str().unwrap_or_default().into(), in_short(tool, input));
    }

    /// Takes in that a tool call has ended, perhaps because it was denied.
    pub(super) fn ended(&mut self, call: &Value, denied: bool) {
        let call = self.calls.remove(call.as_str().unwrap_or_default());
        if let Some(call) = call.filter(|_| denied) {
            self.keep_denied(call);
        }
    }

    fn keep_denied(&mut self, denial: String) {
        if !self.denied.contains(&denial) {
            self.denied.push(denial);
        }
    }

    /// Adds what one more turn used.
    pub(super) fn used(&mut self, input_tokens: u64, output_tokens: u64, cost_usd: Option<f64>) {
        let turn = Usage { input_tokens, output_tokens, cost_usd, ..Usage::default() };
        self.usage.get_or_insert_default().add(&turn);
    }

    /// Keeps what the session used from its beginning on.
    pub(super) fn session_used(&mut self, input_tokens: u64, output_tokens: u64) {
        self.usage = Some(Usage { input_tokens, output_tokens, ..Usage::default() });
        self.usage_of_session = true;
    }
}

/// A tool call in short words.
fn in_short(tool: &str, input: &Value) -> String {
    let names = ["command", "file_path", "filePath", "path", "url", "pattern", "description"];
    let what = names.iter().find_map(|name| input[name].as_str()).unwrap_or_default();
    let what = what.lines().next().unwrap_or_default();
    let what: String = what.chars().take(LONGEST_DENIAL).collect();
    if what.is_empty() { tool.to_owned() } else { format!("{tool}: {what}") }
}

/// The kind of an error by the CLI's table.
fn kind_of(cli: &Cli, said: &str) -> Option<FailureKind> {
    /// Each CLI's expressions, compiled once: every line of a log may be looked at.
    static TABLES: Mutex<BTreeMap<&str, RegexSet>> = Mutex::new(BTreeMap::new());
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let table = tables.entry(cli.name).or_insert_with(|| {
        RegexSet::new(cli.failures.iter().map(|(_, pattern)| pattern)).expect("valid expressions")
    });
    table.matches(said).iter().next().map(|first| cli.failures[first].0)
}

/// Listens to a worker's output as it comes.
pub struct Listener {
    cli: Option<&'static Cli>,
    line: Vec<u8>,
    heard: Heard,
}

impl Listener {
    pub(super) fn new(cli: Option<&'static Cli>) -> Self {
        Self { cli, line: Vec::new(), heard: Heard::default() }
    }

    /// What was heard so far.
    pub fn heard(&self) -> &Heard {
        &self.heard
    }

    /// Takes more output in, cut anywhere.
    pub fn hear(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() < LONGEST_LINE {
                self.line.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    /// Takes in that no more output comes.
    pub fn end(&mut self) {
        self.end_line();
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let Some(cli) = self.cli.filter(|_| line.len() < LONGEST_LINE) else { return };
        let line = strip_escapes(&String::from_utf8_lossy(&line)).replace('\u{2019}', "'");
        let line = line.trim();
        if line.starts_with('{')
            && let Ok(event) = serde_json::from_str::<Value>(line)
        {
            (cli.event)(&event, &mut self.heard);
        } else if !line.is_empty() {
            (cli.line)(line, &mut self.heard);
        }
    }
}
