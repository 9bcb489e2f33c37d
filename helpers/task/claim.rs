//! Claims: copies of what the person decided about a task, in `~/.dispatch/claims`, where no worker at
//! `read` or `write` can change them.
//!
//! Invariant: a record counts only with its claim, and the claim's values replace the record's. Without
//! that, a worker could give itself more access, and a cloned project could bring a task that runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Access, Route, Worktree};
use crate::files;
use crate::task::{Record, Task};

/// The decisions in a task's record.
#[derive(Serialize, Deserialize)]
pub(super) struct Claim {
    /// The task's directory, which tells it from a task of the same name in another project.
    task: PathBuf,
    name: String,
    model: Option<String>,
    backend: String,
    route: Route,
    access: Access,
    directory: PathBuf,
    worktree: Option<Worktree>,
}

impl Claim {
    /// The claim of the task's record; `None` if this user did not dispatch the task.
    ///
    /// # Errors
    /// An unreadable or broken claim.
    pub(super) fn load(task: &Task, nonce: &str) -> Result<Option<Self>> {
        let Some(path) = claim_path(nonce)? else { return Ok(None) };
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let claim: Self = serde_json::from_str(&text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let real = |path: &Path| path.canonicalize().ok();
        let is_same = |claim: &Self| {
            claim.task == task.directory()
                || real(&claim.task).is_some_and(|path| Some(path) == real(task.directory()))
        };
        Ok(Some(claim).filter(is_same))
    }

    /// Saves the record's decisions, in place of those that were saved before.
    pub(super) fn save(task: &Task, record: &Record) -> Result<()> {
        let record = record.clone();
        let path = claim_path(&record.nonce)?.context("a nonce is hexadecimal")?;
        let claim = Self {
            task: task.directory().into(),
            name: record.name,
            model: record.model,
            backend: record.backend,
            route: record.route,
            access: record.access,
            directory: record.directory,
            worktree: record.worktree,
        };
        path.parent().map_or(Ok(()), files::create_private_directory)?;
        files::publish(&path, serde_json::to_string(&claim)?.as_bytes())
    }

    /// Removes the claim of the record with that nonce.
    pub(super) fn remove(nonce: &str) -> Result<()> {
        claim_path(nonce)?.map_or(Ok(()), |path| files::remove(&path))
    }

    /// The record with the claim's decisions in place of its own.
    pub(super) fn apply_to(self, record: Record) -> Record {
        Record {
            name: self.name,
            model: self.model,
            backend: self.backend,
            route: self.route,
            access: self.access,
            directory: self.directory,
            worktree: self.worktree,
            ..record
        }
    }
}

/// The claim's file; `None` for a nonce that dispatch did not make. The nonce comes from a file that a
/// worker can write, so it must not lead out of the directory of claims.
fn claim_path(nonce: &str) -> Result<Option<PathBuf>> {
    let harmless = !nonce.is_empty()
        && nonce.len() <= 64
        && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    Ok(if harmless { Some(dirs::dispatch_home()?.join("claims").join(nonce)) } else { None })
}
