//! The words of the domain: data that every layer above shares, without behaviour of its own.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::exit::Exit;

/// A task's name: lower-case words and numbers joined by single hyphens, at most 40 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(String);

impl FromStr for TaskId {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if text.len() <= 40 && text.split('-').all(word) {
            return Ok(Self(text.into()));
        }
        Err(Refusal::new(Exit::Usage, format!("{text:?} cannot be a task id"))
            .place("an id is lower-case words joined by '-', at most 40 characters")
            .next(format!("use an id like '{}'", suggestion(text))))
    }
}

/// The nearest thing to `text` that may be a task id.
fn suggestion(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let words: Vec<_> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let mut id = words.join("-");
    id.truncate(40);
    let id = id.trim_end_matches('-');
    if id.is_empty() { "fix-login-bug".into() } else { id.into() }
}

impl TaskId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a worker is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// By the host's own Agent tool.
    Agent,
    /// As a detached process.
    Cli,
}

/// What a worker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Look only.
    Read,
    /// Change the project and run its commands, by the CLI's own rules.
    Write,
    /// Anything, unasked.
    Full,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Full => "full",
        })
    }
}

/// How a command is given its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptVia {
    /// On standard input.
    Stdin,
    /// As its last argument.
    Arg,
    /// As the last argument, which says only which file to read.
    File,
}

/// A worker CLI.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// The shell command that starts it; a known CLI needs none.
    pub command: Option<String>,
    /// How it is started, where that is not to be decided from the host.
    pub route: Option<Route>,
    /// How it is given the prompt, where that is not known.
    pub prompt: Option<PromptVia>,
    /// What its workers may do unless a task says otherwise.
    pub access: Option<Access>,
}

/// Why a CLI failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It is not logged in, or its key is not taken.
    Auth,
    /// A rate limit or a used-up quota.
    Quota,
    /// It does not know or may not use the model.
    Model,
    /// It does not know the session that it was to continue.
    Session,
    /// It does not trust the directory.
    Untrusted,
    /// Its sandbox cannot start on this machine, or it wants to be in one.
    Sandbox,
    /// It did not reach its provider.
    Network,
    /// Its provider failed, or it did itself.
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

/// A failure in the CLI's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind it is.
    pub kind: FailureKind,
    /// The line that says so.
    pub said: String,
    /// When a limit ends, in seconds since 1970, if the CLI said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets: Option<u64>,
}

/// What an attempt used, as far as the CLI says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that the model read, cached ones included.
    pub input_tokens: u64,
    /// Tokens that it wrote.
    pub output_tokens: u64,
    /// Tokens of which the host does not say whether they were read or written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub tokens: u64,
    /// What that cost in US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Usage {
    /// The two together.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        self.add(&other);
        self
    }

    /// Adds what another attempt used.
    pub fn add(&mut self, other: &Self) {
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        self.tokens += other.tokens;
        if let Some(cost) = other.cost_usd {
            *self.cost_usd.get_or_insert_default() += cost;
        }
    }

    /// What is left of it without what was used before.
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
        let short = |count: u64| match count {
            0..1000 => count.to_string(),
            1000..1_000_000 => format!("{:.1}k", count as f64 / 1e3),
            _ => format!("{:.1}M", count as f64 / 1e6),
        };
        let mut parts = Vec::new();
        if self.input_tokens + self.output_tokens > 0 {
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

/// A task's own checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worktree {
    /// Its directory.
    pub path: PathBuf,
    /// The branch that is checked out there.
    pub branch: String,
    /// The commit that the branch began at.
    pub base: String,
    /// Git's common directory of the repository that it belongs to.
    pub repository: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_words_joined_by_hyphens() {
        for good in ["a", "fix-login-bug", "pr-128", "0", &"a".repeat(40)] {
            assert!(good.parse::<TaskId>().is_ok(), "{good}");
        }
        let bad = ["", "-a", "a-", "a--b", "A", "../x", "a/b", "a b", "ä", ".", &"a".repeat(41)];
        for bad in bad {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_id_is_answered_with_a_good_one() {
        for (bad, good) in [("../x", "x"), ("Fix Login!", "fix-login"), ("/", "fix-login-bug")] {
            assert_eq!(suggestion(bad), good);
            assert!(suggestion(bad).parse::<TaskId>().is_ok());
        }
    }
}
