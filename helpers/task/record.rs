//! What was decided about a task, and what it waits for: `task.yaml` and `wait`.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::domain::{Access, Route, Worktree};
use crate::process::Identity;

/// The format number that this version writes.
pub const FORMAT: u32 = 1;

/// What was decided when the task was dispatched: `task.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The format number of the file.
    pub format: u32,
    /// Random; distinguishes the task from an earlier one of the same name.
    pub nonce: String,
    /// The name that the person used: a model or an alias.
    pub name: String,
    /// The model's id, if one is passed to the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The backend's name in the config.
    pub backend: String,
    /// How the worker is started.
    pub route: Route,
    /// What the worker may do.
    pub access: Access,
    /// Where the worker works.
    pub directory: PathBuf,
    /// The task's own worktree, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<Worktree>,
    /// The tasks that must be done first (`--after`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Before>,
    /// The host process that gets the news.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Identity>,
    /// The wall clock at the dispatch, to show.
    pub created: String,
    /// Whether the person asked to stop it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

impl Record {
    /// Whether the worker commits: the task has a worktree, and access to write there.
    pub fn commits(&self) -> bool {
        self.worktree.is_some() && self.access != Access::Read
    }
}

/// A task that must be done before another one starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The task's name.
    pub task: String,
    /// The task's nonce, so that a later task of the same name does not count.
    pub nonce: String,
    /// The branch of the task's worktree, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// What a task without a worker waits for: the file `wait`, written by the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// These tasks must be done first.
    After(Vec<String>),
    /// A task before it cannot finish by itself.
    Held {
        /// The name of that task.
        task: String,
        /// The obstacle, in a person's words.
        why: String,
    },
    /// A slot below `max_workers`.
    Turn {
        /// `max_workers`.
        limit: usize,
    },
    /// The reset of a rate limit.
    Parked {
        /// The reset, in seconds since 1970.
        until: u64,
        /// Whether the CLI stated the reset; otherwise it is a guess.
        stated: bool,
        /// How many times in a row the task was parked.
        times: u32,
        /// The CLI's message.
        said: String,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(tasks) => write!(f, "after {}", tasks.join(", ")),
            Self::Held { task, why } => write!(f, "held: {task} {why}"),
            Self::Turn { limit: 1 } => write!(f, "in the queue: max_workers is 1"),
            Self::Turn { limit } => write!(f, "in the queue: max_workers is {limit}"),
            Self::Parked { until, stated, said, .. } => {
                let until = UNIX_EPOCH + Duration::from_secs(*until);
                let until = humantime::format_rfc3339_seconds(until);
                let how = if *stated { "until" } else { "tries again at" };
                write!(f, "rate limit, {how} {until}: {said}")
            }
        }
    }
}

/// The key that every format of the record has.
#[derive(Deserialize)]
pub(super) struct Format {
    pub(super) format: u32,
}
