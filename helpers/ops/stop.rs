//! Stop: the person ends a task's worker.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::domain::Route;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::Lock;
use crate::place;
use crate::process::{Identity, Life, Signal, Watch};
use crate::task::{Attempt, SessionRecord, State, Task, View};
use crate::text::short_duration;
use crate::worker::agent::description;
use crate::worker::{self, slurm};

/// How long a worker may take to end after the first signal.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ends a task's worker, through its supervisor if that is alive, because it records the end.
/// Returns a line about the result.
///
/// # Errors
/// [`Exit::TryAgain`] if a process is left.
pub fn stop(task: &Task) -> Result<String> {
    let id = task.id();
    let view = task.view()?;
    let record = &view.record;
    if let Some(name) = record.place.as_ref().filter(|_| !view.state.has_ended()) {
        return place::stop(task, name);
    }
    let is_open = view.state.is_waiting() || view.is_checking();
    if view.exit.is_some() && view.processes.is_empty() && !is_open {
        let kept = worker::end_kept(task, record)?;
        if kept > 0 {
            return Ok(format!("{id} is {}; {kept} processes that it left have ended", view.state));
        }
        return Ok(format!("{id} has ended already: {}", view.state));
    }
    if record.route == Route::Agent {
        return stop_agent(&view);
    }
    if task.job()?.is_some_and(|it| !it.is_over) {
        task.change_record(|record| record.stop = true)?;
        slurm::stop(task)?;
        return Ok(format!("{id} {}", task.view()?.state));
    }
    let supervisor = Lock::last_holder(&task.run_lock_path())?;
    // Where the process cannot be seen, the lock tells whether it lives.
    if let Some(far) = supervisor.as_ref().filter(|it| it.life() == Life::Unknown)
        && task.is_supervised().unwrap_or(true)
    {
        return Refusal::new(Exit::TryAgain, format!("the worker of '{id}' is out of reach"))
            .place(format!("it runs in another container, or on another machine ({})", far.machine))
            .refuse(format!("call there: dispatch-reconcile stop {id}"));
    }
    let alive = || supervisor.as_ref().filter(|it| it.life() == Life::Alive);
    // Judge the supervisor before the record tells it to stop: one that only waits ends at once.
    let mut how = match alive() {
        Some(_) => "",
        None => "; its supervisor was dead, and no process is left",
    };
    // On a full disk this fails; it is tried again when the worker has ended.
    let asked = task.change_record(|record| record.stop = true);
    let begin = Instant::now();
    let end = |supervisor: &Identity, signal, limit| -> Result<()> {
        let mut watch = Watch::new(&[])?;
        watch.add_process(supervisor);
        supervisor.signal(signal)?;
        while alive().is_some() && begin.elapsed() < limit {
            watch.wait_for_event(Duration::from_millis(100))?;
        }
        Ok(())
    };
    if let Some(supervisor) = alive() {
        end(supervisor, Signal::SIGTERM, fault::limit("DISPATCH_STOP_MS", STOP_LIMIT))?;
    }
    // The supervisor ends the whole tree; make sure that nothing is left.
    if let Some(attempt) = task.last_attempt() {
        let left = worker::tree(alive().cloned(), record, &attempt)?
            .terminate(worker::termination_grace(), || ())?;
        if !left.is_empty() {
            let (count, age) = (left.len(), short_duration(begin.elapsed()));
            return Refusal::new(Exit::TryAgain, format!("'{id}' is still running"))
                .place(format!("processes left {age} after the first signal: {count}"))
                .refuse(format!("try again: dispatch-reconcile stop {id}"));
        }
    }
    if let Some(supervisor) = alive() {
        how = "; its supervisor did not react, and no process is left";
        end(supervisor, Signal::SIGKILL, 2 * STOP_LIMIT)?;
    }
    asked.or_else(|_| task.change_record(|record| record.stop = true))?;
    Ok(format!("{id} {}{how}", task.view()?.state))
}

/// Records the decision about an agent, which only its host can end.
fn stop_agent(view: &View) -> Result<String> {
    let (task, id) = (&view.task, view.task.id());
    if view.state.has_ended() || view.state == State::Stopped {
        return Ok(format!("{id} has ended already: {}", view.state));
    }
    task.change_record(|record| record.stop = true)?;
    let session = view.attempt.as_ref().map(Attempt::session).transpose()?.flatten();
    Ok(match session {
        _ if !view.is_alive() => format!("{id} stopped"),
        Some(SessionRecord { id: agent, .. }) => format!(
            "{id} stopped. Make this TaskStop call now (ToolSearch finds it): {}",
            json!({ "task_id": agent })
        ),
        None => format!(
            "{id} stopped. Its agent \"{}\" runs until its host ends it: the list of agents there",
            description(&view.record)
        ),
    })
}
