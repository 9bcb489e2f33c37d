//! The decisions of a task's record, kept where its worker cannot write at `read` and `write`: in
//! `~/.dispatch/claims`. Without them any worker could write itself a record with more access, and
//! any project that is cloned could bring a task that is carried out.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Access, Route, Worktree};
use crate::files;
use crate::task::{Record, Task};

/// What a record says of its worker.
#[derive(Serialize, Deserialize)]
pub(super) struct Claim {
    /// The task's directory: one of the same name in another project is another task.
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
    /// The one that belongs to the record of that task; `None` if the user has dispatched no such
    /// task.
    pub(super) fn of(task: &Task, nonce: &str) -> Result<Option<Self>> {
        let Some(path) = path(nonce)? else { return Ok(None) };
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let claim: Self = serde_json::from_str(&text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let is_it = |claim: &Self| {
            claim.task == task.directory()
                || claim
                    .task
                    .canonicalize()
                    .is_ok_and(|its| task.directory().canonicalize().is_ok_and(|own| own == its))
        };
        Ok(Some(claim).filter(is_it))
    }

    /// Keeps what the record says from now on.
    pub(super) fn keep(task: &Task, record: &Record) -> Result<()> {
        let record = record.clone();
        let path = path(&record.nonce)?.context("a nonce is hexadecimal")?;
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

    /// Forgets a task that is removed.
    pub(super) fn forget(nonce: &str) -> Result<()> {
        path(nonce)?.map_or(Ok(()), |path| files::remove(&path))
    }

    /// The record with these decisions, whatever it says itself.
    pub(super) fn decides(self, record: Record) -> Record {
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

/// Where it is. A nonce is read from the project, so that it must not lead anywhere else.
fn path(nonce: &str) -> Result<Option<PathBuf>> {
    let harmless = !nonce.is_empty()
        && nonce.len() <= 64
        && nonce.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    Ok(if harmless { Some(dirs::dispatch_home()?.join("claims").join(nonce)) } else { None })
}
