//! The data that the layers above share: what a task is called, how and where it runs, and how an
//! attempt ended. Nothing here reads or writes files.
//!
//! The order: [`EXECUTED`]; [`TaskId`]; [`Route`], [`Access`], [`Backend`] and [`Worktree`], which are
//! decided at the dispatch; [`Failure`] and [`Usage`], which a worker CLI reports.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Exit, Refusal};
use crate::text::short_duration;

/// The name of this machine as a place.
pub const HERE: &str = "here";

/// Names of files and directories, in lower case, that a host, git, an editor or CI executes or obeys
/// without being asked. A difference in one of them needs a person.
pub const EXECUTED: [&str; 43] = [
    ".agents",
    ".buildkite",
    ".circleci",
    ".claude",
    ".claude-plugin",
    ".codex",
    ".cursor",
    ".cursorrules",
    ".devcontainer",
    ".devcontainer.json",
    ".dispatch",
    ".envrc",
    ".factory",
    ".gemini",
    ".gitattributes",
    ".githooks",
    ".github",
    ".gitlab-ci.yml",
    ".gitmodules",
    ".husky",
    ".idea",
    ".lefthook.yml",
    ".lfsconfig",
    ".mcp.json",
    ".mise.toml",
    ".opencode",
    ".pre-commit-config.yaml",
    ".qwen",
    ".travis.yml",
    ".vscode",
    ".windsurfrules",
    ".worktreeinclude",
    "agents.md",
    "agents.override.md",
    "azure-pipelines.yml",
    "claude.local.md",
    "claude.md",
    "gemini.md",
    "jenkinsfile",
    "lefthook.yml",
    "mise.toml",
    "opencode.json",
    "qwen.md",
];

/// A task's name: lower-case words and numbers joined by single hyphens, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(String);

impl TaskId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if text.len() <= 40 && text.split('-').all(word) {
            return Ok(Self(text.into()));
        }
        Refusal::new(Exit::Usage, format!("{text:?} cannot be a task id"))
            .place("an id is lower-case words joined by '-', at most 40 characters")
            .refuse(format!("use an id like '{}'", suggest_id(text)))
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A valid task id that resembles `text`; `task-1` where only parts of its words would be left.
fn suggest_id(text: &str) -> String {
    const NEUTRAL: &str = "task-1";
    if text.chars().any(|c| c.is_alphabetic() && !c.is_ascii()) {
        return NEUTRAL.into();
    }
    let lower = text.to_ascii_lowercase();
    let words: Vec<_> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut id = words.join("-");
    id.truncate(40);
    let id = id.trim_end_matches('-');
    if id.is_empty() { NEUTRAL.into() } else { id.into() }
}

/// How a worker is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// By the host's own Agent tool.
    Agent,
    /// As a detached process.
    Cli,
}

/// The access of a worker, the least first. Each CLI has its own flags for the levels.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read only.
    Read,
    /// Change the project and run its commands.
    Write,
    /// Anything, without prompting.
    Full,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// A worker CLI as the config describes it. What the config leaves out, the CLI's own file in
/// `tools/` or the host decides.
#[derive(Clone, Debug, Default)]
pub struct Backend {
    /// The shell command that starts the CLI; a known CLI needs none.
    pub command: Option<String>,
    /// How its workers are started.
    pub route: Option<Route>,
    /// How the CLI gets its prompt.
    pub prompt: Option<PromptVia>,
    /// The access of its workers, unless the task has its own.
    pub access: Option<Access>,
    /// The budget of its tasks, unless a task has its own.
    pub budget: Option<Budget>,
}

impl Backend {
    /// The access of its workers where the task has none. A command of the person's decides by its own
    /// flags, as it always did, unless the config names a level.
    pub fn usual_access(&self) -> Access {
        let of_command = if self.command.is_some() { Access::Full } else { Access::Write };
        self.access.unwrap_or(of_command)
    }
}

/// How a worker CLI gets its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptVia {
    /// On standard input.
    Stdin,
    /// As the last argument.
    Arg,
    /// As a file, which the last argument tells it to read.
    File,
}

impl fmt::Display for PromptVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

/// A task's own checkout, which is a repository of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worktree {
    /// The checkout's directory.
    pub path: PathBuf,
    /// The branch that was made for the task.
    pub branch: String,
    /// The full id of the commit at which the branch began.
    pub base: String,
    /// Git's common directory of the person's repository.
    pub repository: PathBuf,
    /// The person's checkout at the dispatch; `None` for a bare repository.
    pub checkout: Option<PathBuf>,
    /// True if the base is a snapshot of uncommitted changes, which is merged by nobody.
    #[serde(default)]
    pub snapshot: bool,
    /// The commit of the person at which the first task of a sequence began, if that is not this one.
    pub trunk: Option<String>,
}

impl Worktree {
    /// The commit of the person at which the first task of the sequence began.
    pub fn trunk(&self) -> &str {
        self.trunk.as_deref().unwrap_or(&self.base)
    }
}

/// The end of an attempt that failed, in the CLI's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The cause of the failure.
    pub kind: FailureKind,
    /// The line of output that says so.
    pub said: String,
    /// When the rate limit ends, in seconds since 1970, if the CLI said so.
    pub resets: Option<u64>,
}

/// The cause of a worker CLI's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The CLI is not logged in, or its key is refused.
    Auth,
    /// A rate limit or a used-up quota.
    Quota,
    /// The model does not exist, or the account may not use it.
    Model,
    /// The session to resume does not exist.
    Session,
    /// The CLI does not trust the directory.
    Untrusted,
    /// The CLI's sandbox cannot start on this machine, or the CLI refuses to run without one.
    Sandbox,
    /// The provider could not be reached.
    Network,
    /// The provider or the CLI itself failed.
    Crash,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auth => "not logged in",
            Self::Quota => "rate limit",
            Self::Model => "no such model",
            Self::Session => "unknown session",
            Self::Untrusted => "untrusted folder",
            Self::Sandbox => "its sandbox cannot start",
            Self::Network => "no connection",
            Self::Crash => "error",
        })
    }
}

/// The tokens and money that an attempt used, as far as the CLI reports them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that the model read, cached ones included.
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    pub output_tokens: u64,
    /// Tokens of an agent, for which the host reports only the sum.
    #[serde(default)]
    pub tokens: u64,
    /// The cost in US dollars.
    pub cost_usd: Option<f64>,
}

/// The advice on how to write a budget.
pub const BUDGETS: &str = "write 5usd, 2Mtok or 90m, or several with commas";

/// The most that a task may use before a person is asked. A part that is `None` has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Budget {
    /// US dollars.
    pub usd: Option<f64>,
    /// Tokens, read and written.
    pub tokens: Option<u64>,
    /// The run time of workers.
    pub time: Option<Duration>,
}

impl Budget {
    /// Returns true if nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The use of each limited part, as `0.20 of 5usd`, with whether that part is used up.
    pub fn parts(&self, used: &Usage, time: Duration) -> Vec<(String, bool)> {
        let (cost, count) = (used.cost_usd.unwrap_or_default(), used.all_tokens());
        let is_used_up = [
            // A CLI that stops itself may be off by a rounding error.
            self.usd.is_some_and(|most| cost > most - 1e-6),
            self.tokens.is_some_and(|most| count >= most),
            self.time.is_some_and(|most| time >= most),
        ];
        let used = [format!("{cost:.2}"), short(count), short_duration(time)];
        let parts = self.words().into_iter().zip(used).zip(is_used_up);
        parts.filter_map(|((most, used), up)| Some((format!("{used} of {}", most?), up))).collect()
    }

    /// The limits of money, tokens and time as people write them.
    fn words(&self) -> [Option<String>; 3] {
        let usd = self.usd.map(|usd| format!("{usd:.6}"));
        let usd = usd.map(|usd| format!("{}usd", usd.trim_end_matches('0').trim_end_matches('.')));
        let tokens = self.tokens.map(|count| match count {
            count if count % 1_000_000 == 0 => format!("{}Mtok", count / 1_000_000),
            count if count % 1000 == 0 => format!("{}ktok", count / 1000),
            count => format!("{count}tok"),
        });
        let time = self.time.map(|time| match time.as_millis() as u64 {
            ms if ms % 60_000 == 0 => format!("{}m", ms / 60_000),
            ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
            ms => format!("{ms}ms"),
        });
        [usd, tokens, time]
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut budget = Self::default();
        for part in text.split(',').map(str::trim) {
            let number = |unit: &str| {
                let number = part.strip_suffix(unit)?.trim().parse::<f64>().ok()?;
                Some(number).filter(|it| it.is_finite() && *it > 0.0)
            };
            let tokens = [("Mtok", 1e6), ("ktok", 1e3), ("tok", 1.0)].into_iter();
            let tokens = tokens.filter_map(|(unit, times)| Some(number(unit)? * times)).next();
            if let Some(usd) = number("usd") {
                budget.usd = Some(usd);
            } else if let Some(count) = tokens.filter(|count| *count >= 1.0) {
                budget.tokens = Some(count as u64);
            } else {
                let time = humantime::parse_duration(part).ok().filter(|time| !time.is_zero());
                let wrong = || format!("'{part}' is no budget");
                budget.time = Some(time.ok_or_else(wrong)?);
            }
        }
        Ok(budget)
    }
}

impl TryFrom<String> for Budget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() { Ok(Self::default()) } else { text.parse() }
    }
}

impl From<Budget> for String {
    fn from(budget: Budget) -> Self {
        budget.to_string()
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// A count of tokens in short.
fn short(count: u64) -> String {
    match count {
        0..1000 => count.to_string(),
        1000..1_000_000 => format!("{:.1}k", count as f64 / 1e3),
        _ => format!("{:.1}M", count as f64 / 1e6),
    }
}

impl Usage {
    /// The sum of this usage and another.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.tokens = self.tokens.saturating_add(other.tokens);
        if let Some(cost) = other.cost_usd {
            *self.cost_usd.get_or_insert_default() += cost;
        }
        self
    }

    /// All tokens, read or written.
    pub fn all_tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens).saturating_add(self.tokens)
    }

    /// This usage without an earlier one that a resumed CLI counts again.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_sub(before.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
            tokens: self.tokens,
            cost_usd: self.cost_usd.map(|cost| cost - before.cost_usd.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.input_tokens > 0 || self.output_tokens > 0 {
            let (input, output) = (short(self.input_tokens), short(self.output_tokens));
            parts.push(format!("{input} tokens in, {output} out"));
        }
        if self.tokens > 0 {
            parts.push(format!("{} tokens of agents", short(self.tokens)));
        }
        parts.extend(self.cost_usd.map(|cost| format!("${cost:.2}")));
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_id_is_words_joined_by_hyphens() {
        for good in ["a", "fix-login-bug", "pr-128", "0", &"a".repeat(40)] {
            assert!(good.parse::<TaskId>().is_ok(), "{good}");
        }
        let bad = ["", "-a", "a-", "a--b", "A", "../x", "a/b", "a b", "ä", ".", &"a".repeat(41)];
        for bad in bad {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn budget_is_read_and_written_in_its_units() {
        let rows = [
            ("5usd", "5usd"),
            ("0.50 usd, 90m", "0.5usd,90m"),
            ("2Mtok", "2Mtok"),
            ("1.5Mtok,2h", "1500ktok,120m"),
            ("12tok, 30s", "12tok,30s"),
        ];
        for (given, written) in rows {
            let budget: Budget = given.parse().expect(given);
            assert_eq!(budget.to_string(), written, "{given}");
            assert_eq!(written.parse(), Ok(budget), "{given}");
        }
        for bad in ["", "5", "usd", "0usd", "-1usd", "infusd", "NaNusd", "0m", "0.1tok", "5 eur"] {
            assert!(bad.parse::<Budget>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_task_id_gets_a_valid_suggestion() {
        let rows = [
            ("../x", "x"),
            ("Fix Login!", "fix-login"),
            ("Don’t break — it", "don-t-break-it"),
            ("/", "task-1"),
            ("修复登录", "task-1"),
            ("修复 login", "task-1"),
            ("Исправить вход", "task-1"),
            ("Résumé des tests", "task-1"),
        ];
        for (bad, good) in rows {
            assert_eq!(suggest_id(bad), good);
            assert!(suggest_id(bad).parse::<TaskId>().is_ok());
        }
    }
}
