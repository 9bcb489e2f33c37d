//! Workers: their prompts, the queue they wait in, and the supervisor that runs their attempts.
//!
//! Invariant: one supervisor a task, which holds the task's run lock for as long as it lives.

pub mod agent;
mod log;
pub mod prompt;
mod queue;
pub mod run;
pub mod sandbox;
mod silence;
pub mod supervise;

use std::time::Duration;

use anyhow::Result;

use crate::fault;
use crate::process::{ATTEMPT, Identity, ProcessTree};
use crate::task::{Attempt, Record};

/// How long processes may take to end after SIGTERM, before SIGKILL.
pub fn termination_grace() -> Duration {
    fault::limit("DISPATCH_GRACE_MS", Duration::from_secs(5))
}

/// The value of the [`ATTEMPT`] variable in the processes of this attempt.
pub fn mark(record: &Record, attempt: &Attempt) -> String {
    format!("{}/{}", record.nonce, attempt.number)
}

/// All processes of this attempt, of a supervisor that may be dead.
pub fn tree(
    supervisor: Option<Identity>,
    record: &Record,
    attempt: &Attempt,
) -> Result<ProcessTree> {
    let mark = format!("{ATTEMPT}={}", mark(record, attempt));
    Ok(ProcessTree::new(supervisor, attempt.identity()?, mark))
}
