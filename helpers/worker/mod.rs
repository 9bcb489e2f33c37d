//! Workers: their prompts, the queue they wait in, and the supervisor that runs their attempts.
//!
//! Invariant: one supervisor a task, which holds the task's run lock for as long as it lives.

pub mod agent;
mod gate;
pub mod prompt;
pub(crate) mod queue;
pub mod review;
pub mod run;
mod running;
pub mod sandbox;
pub mod slurm;
pub mod supervise;

use std::time::Duration;

use anyhow::Result;

use crate::domain::{Backend, Route, Worktree};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::first_paths;
use crate::process::{ATTEMPT, Identity, ProcessTree, Watch};
use crate::task::{Attempt, Record, Task};
use crate::tools::{self, Invocation, Reports, Session};

/// Placeholder for the session id in a command line that is only checked or printed.
const SESSION: &str = "00000000-0000-4000-8000-000000000000";

/// How long processes may take to end after SIGTERM, before SIGKILL.
pub fn termination_grace() -> Duration {
    fault::limit("DISPATCH_GRACE_MS", Duration::from_secs(5))
}

/// The value of the [`ATTEMPT`] variable in the processes of this attempt.
pub fn mark(record: &Record, attempt: &Attempt) -> String {
    format!("{}/{}", record.nonce, attempt.number)
}

/// Returns true if the person stopped the task.
fn is_stopped(task: &Task) -> bool {
    task.record().is_ok_and(|record| record.is_some_and(|record| record.stop))
}

/// Returns true if the worker said that it has finished, and ticked all items.
fn has_finished(task: &Task) -> bool {
    let said = task.side().ipc().finished_at().is_some();
    said && task.plan().is_ok_and(|plan| plan.complete())
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

/// The processes that a finished worker left running, for a task that keeps them.
pub fn kept(task: &Task, record: &Record) -> Result<Vec<(Identity, String)>> {
    match task.last_attempt().filter(|_| record.keep) {
        Some(attempt) if attempt.exit()?.is_some() => tree(None, record, &attempt)?.running(),
        _ => Ok(Vec::new()),
    }
}

/// Ends what a worker left running. Returns how many processes that were, for a line; 0 for none.
///
/// # Errors
/// [`Exit::TryAgain`] if a process is left.
pub fn end_kept(task: &Task, record: &Record) -> Result<usize> {
    let count = kept(task, record)?.len();
    let Some(attempt) = task.last_attempt().filter(|_| count > 0) else { return Ok(0) };
    let left = tree(None, record, &attempt)?.terminate(termination_grace(), || ())?;
    if !left.is_empty() {
        let id = task.id();
        return Refusal::new(Exit::TryAgain, format!("processes of '{id}' are still running"))
            .place(format!("{} of {count}", left.len()))
            .refuse(format!("try again: dispatch-reconcile stop {id}"));
    }
    sandbox::release_places(task)?;
    Ok(count)
}

/// The record after its worktree was made, and set up, if necessary. Falls back to the worktree's root if
/// the working directory is missing.
fn with_worktree(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    watch: &mut Watch,
) -> Result<Record> {
    let mut record = record.clone();
    if let Some(worktree) = &record.worktree {
        let set_up = |hook| gate::set_up(task, &record, worktree, (attempt, hook), watch);
        let sent = files::read(&task.sparse_path())?;
        for remark in worktree.ensure(sent.as_deref(), set_up)? {
            task.side().tell(&remark)?;
        }
        if !record.directory.is_dir() {
            record.directory = worktree.path.clone();
        }
    }
    Ok(record)
}

/// Fetches the commits of a worktree, and tells once of each other branch that they conflict with.
fn fetch(task: &Task, worktree: &Worktree) -> Result<()> {
    worktree.fetch()?;
    let known = files::read(&task.collisions_path())?.unwrap_or_default();
    let mut lines = String::new();
    for (branch, paths) in worktree.collisions()? {
        let line = format!("{branch}: {}", first_paths(&paths));
        if !known.lines().any(|known| known.starts_with(&format!("{branch}: "))) {
            // The worker's side may refuse; the end of the attempt is recorded all the same.
            let _ = task.side().tell(&format!("its commits conflict with those of {line}"));
        }
        lines.push_str(&format!("{line}\n"));
    }
    if lines != known {
        files::publish(&task.collisions_path(), lines.as_bytes())?;
    }
    Ok(())
}

/// The command of a worker process, whose record gets what holds it; `None` for an agent, and at a place,
/// which checks that itself.
///
/// # Errors
/// Any obstacle to the start that can be known in advance.
pub fn check_start(
    task: &Task,
    record: &mut Record,
    settings: &Backend,
) -> Result<Option<Invocation>> {
    record.holder = None;
    if record.route == Route::Agent || record.place.is_some() {
        return Ok(None);
    }
    refuse_unmeasured(record, settings)?;
    let backend = &record.backend;
    let in_worktree = record.worktree.is_some();
    record.holder = tools::holder(backend, settings, record.access, in_worktree).map_err(|why| {
        let (access, first) = (record.access, tools::remedy(&why));
        let what = format!("{backend}'s workers cannot be held to '{access}' access");
        let next = format!(
            "{first}if the user lets them do anything: dispatch-config set-access {backend} full"
        );
        Refusal::new(Exit::Unavailable, what).place(why).next(next)
    })?;
    sandbox::refuse_unholdable(task, record, settings)?;
    if !record.checks.is_empty()
        && let Err(why) = sandbox::holder_of_commands(record)
    {
        let (access, first) = (record.access, tools::remedy(&why));
        let what = format!("--check: nothing holds a command to '{access}' access here");
        return Refusal::new(Exit::Unavailable, what)
            .place(why)
            .refuse(format!("{first}leave --check out, or add --access full"));
    }
    run::call(task, record, settings, Session::New(SESSION)).map(Some)
}

/// Refuses a budget that nothing could measure.
pub fn refuse_unmeasured(record: &Record, settings: &Backend) -> Result<(), Refusal> {
    let (backend, budget) = (&record.backend, record.budget);
    let reports = tools::reports(backend, settings);
    let part = if budget.usd.is_some() && reports < Reports::Money {
        "money"
    } else if budget.tokens.is_some() && reports < Reports::Tokens {
        "tokens"
    } else {
        return Ok(());
    };
    Refusal::new(Exit::Unavailable, format!("a budget of {budget} cannot be kept"))
        .place(format!("{backend} does not report the {part} that it uses"))
        .refuse("limit the time, which always works: --budget 90m")
}
