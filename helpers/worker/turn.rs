//! What a supervisor waits for before it starts a worker: the tasks before it, the end of a rate
//! limit, and its turn where only so many workers may run at once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use signal_hook::consts::SIGHUP;

use super::supervise::Starter;
use crate::process::{Watch, Woken};
use crate::task::{Task, Wait};

/// The right to run a worker, until it is dropped.
pub(super) struct Turn;

/// Waits until the task's next attempt may begin; `None` if it is stopped meanwhile.
pub(super) fn wait(task: &Task, watch: &mut Watch, starter: &mut Starter) -> Result<Option<Turn>> {
    loop {
        watch.directory(task.directory());
        if task.record()?.context("the task has no record")?.stop {
            return Ok(None);
        }
        let Some(wait) = waits_for(task)? else {
            task.set_wait(None)?;
            return Ok(Some(Turn));
        };
        if task.wait()?.as_ref() != Some(&wait) {
            task.set_wait(Some(&wait))?;
        }
        starter.hears_waits()?;
        if let Woken::Signal(signal) = watch.wait(Duration::from_secs(1))?
            && signal != SIGHUP
        {
            return Ok(None);
        }
    }
}

/// What the task waits for now.
fn waits_for(task: &Task) -> Result<Option<Wait>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let parked = |wait: &Wait| matches!(wait, Wait::Parked { until, .. } if *until > now);
    Ok(task.wait()?.filter(parked))
}
