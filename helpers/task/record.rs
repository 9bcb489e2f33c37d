//! A task's record and its wait: `record.yaml`, with what was decided at the dispatch, and `wait`, with
//! what a task without a worker waits for.
//!
//! Invariant: a record of a newer format is refused, never guessed.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::{Access, Route, Worktree};
use crate::ids::utc;
use crate::process::{Holder, Identity};
use crate::text::quoted;

/// The format number that this version writes.
pub const FORMAT: u32 = 1;

/// The decisions at the dispatch: `record.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The file's format number, at most [`FORMAT`].
    pub format: u32,
    /// A random id, which tells the task from an earlier one of the same name.
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
    /// The worker's access.
    pub access: Access,
    /// The sandbox that holds the worker to its access; `None` if its CLI does so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// The worker's working directory.
    pub directory: PathBuf,
    /// The task's directory in the project.
    pub task_directory: PathBuf,
    /// The prompt of the alias that the person named, which begins the worker's prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The task's own worktree, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<Worktree>,
    /// The tasks that must be done before this one starts (`--after`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// The host process that gets the news; `None` if no host dispatched the task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Identity>,
    /// The wall clock at the dispatch (RFC 3339).
    pub created: String,
    /// `true` if the person stopped the task.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
    /// `true` if the person let the worker dispatch tasks of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_dispatch: bool,
}

impl Record {
    /// Returns true if the worker commits: the task has a worktree, and access to write there.
    pub fn commits(&self) -> bool {
        self.worktree.is_some() && self.access != Access::Read
    }

    /// The access level of the private directory that holds the worker's sessions; `None` for the
    /// person's own.
    pub fn home(&self) -> Option<Access> {
        self.holder.map(|_| self.access)
    }
}

/// A task that must be done before another one starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The task's name.
    pub task: String,
    /// The task's nonce: a later task of the same name does not count.
    pub nonce: String,
    /// The branch of the task's worktree, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
}

/// The obstacle that a task without a worker waits for: the file `wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Tasks that must be done first, by name.
    After(Vec<String>),
    /// A task that must be done first and cannot finish by itself.
    Held {
        /// The name of that task.
        task: String,
        /// The obstacle, as the rest of a sentence that begins with that task.
        obstacle: String,
    },
    /// A free slot for a worker.
    Queued {
        /// The number of slots: `max_workers`.
        limit: usize,
    },
    /// The reset of a rate limit.
    Parked {
        /// The reset, in seconds since 1970.
        until: u64,
        /// `true` if the CLI stated the reset; otherwise dispatch guessed it.
        stated: bool,
        /// How many times in a row the task was parked.
        times: u32,
        /// The CLI's message about the limit.
        said: String,
    },
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(tasks) => write!(f, "after {}", tasks.join(", ")),
            Self::Held { task, obstacle } => write!(f, "held: {task} {obstacle}"),
            Self::Queued { limit } => write!(f, "in the queue: max_workers is {limit}"),
            Self::Parked { until, stated, said, .. } => {
                let until = utc(*until);
                let how = if *stated { "until" } else { "tries again at" };
                write!(f, "rate limit, {how} {until}: {}", quoted(said))
            }
        }
    }
}

/// The one key that a record of any format has.
#[derive(Deserialize)]
pub(super) struct Format {
    pub(super) format: u32,
}
