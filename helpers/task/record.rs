//! What was decided about a task, and what it waits for: `task.yaml` and `wait`.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::domain::{Access, Route, Worktree};
use crate::process::Identity;

/// The format of task.yaml that this version writes.
pub const FORMAT: u32 = 1;

/// What was decided when the task was dispatched: `task.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The format of this file.
    pub format: u32,
    /// Random; tells this task from an earlier one of the same name.
    pub nonce: String,
    /// The name that the person used: a model or an alias.
    pub name: String,
    /// The model's id, if the backend is told one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The backend in the config.
    pub backend: String,
    /// How the worker is started.
    pub route: Route,
    /// What the worker may do.
    pub access: Access,
    /// Where the worker works.
    pub directory: PathBuf,
    /// The worktree that it works in, if it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<Worktree>,
    /// The tasks that have to be done before it begins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Before>,
    /// The host process that is told the news.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Identity>,
    /// When it was dispatched, to show.
    pub created: String,
    /// Whether the person asked to stop it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

impl Record {
    /// Whether its worker commits: it has a worktree of its own, and may write there.
    pub fn commits(&self) -> bool {
        self.worktree.is_some() && self.access != Access::Read
    }
}

/// A task that has to be done before another begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its name.
    pub task: String,
    /// Its nonce, so that a later task of the same name does not count.
    pub nonce: String,
    /// The branch that it works on, if it has a worktree of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// What a task without a worker waits for, as its supervisor sees it: the file `wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// The end of these tasks.
    After(Vec<String>),
    /// A task before it that cannot end done by itself.
    Held {
        /// Its name.
        task: String,
        /// What is in the way, in a person's words.
        why: String,
    },
    /// Its turn.
    Turn {
        /// How many workers run at once.
        limit: usize,
    },
    /// The end of a rate limit.
    Parked {
        /// In seconds since 1970.
        until: u64,
        /// Whether the CLI said when; else it is a guess.
        stated: bool,
        /// How many times in a row it was parked.
        times: u32,
        /// What the CLI said.
        said: String,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(tasks) => write!(f, "after {}", tasks.join(", ")),
            Self::Held { task, why } => write!(f, "held: {task} {why}"),
            Self::Turn { limit: 1 } => write!(f, "for its turn: one worker runs at once"),
            Self::Turn { limit } => write!(f, "for its turn: {limit} workers run at once"),
            Self::Parked { until, stated, said, .. } => {
                let until = UNIX_EPOCH + Duration::from_secs(*until);
                let until = humantime::format_rfc3339_seconds(until);
                let how = if *stated { "until" } else { "tries again at" };
                write!(f, "rate limit, {how} {until}: {said}")
            }
        }
    }
}

/// The one key that every format of task.yaml has.
#[derive(Deserialize)]
pub(super) struct Format {
    pub(super) format: u32,
}
