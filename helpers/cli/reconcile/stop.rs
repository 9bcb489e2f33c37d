//! `dispatch-reconcile stop`: ends a task's worker.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::domain::Route;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files::Lock;
use crate::process::{Life, Signal, Watch};
use crate::task::{State, Task};
use crate::text::short_duration;
use crate::worker::run;

/// How long a worker may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ends a task's worker through its supervisor, which records the end; without one, here. Returns
/// what became of it.
pub(super) fn stop(task: &Task) -> Result<String> {
    let id = task.id();
    let view = task.view()?;
    if view.record.route == Route::Agent {
        return Err(Refusal::new(Exit::Failed, format!("'{id}' is an agent of the host"))
            .next("stop it there: the host's TaskStop tool, or its list of agents")
            .into());
    }
    if view.exit.is_some() && view.processes.is_empty() && view.state != State::Waiting {
        return Ok(format!("{id} has ended already: {}", view.label()));
    }
    let supervisor = Lock::last_holder(&task.run_lock_path())?;
    let alive = || supervisor.as_ref().filter(|it| it.life() != Life::Dead);
    // Before it is asked, because one that only waits ends as soon as it sees that.
    let mut how = match alive() {
        Some(_) => "",
        None => "; its supervisor was dead, and nothing of it is left",
    };
    // Where there is no space for it now, the worker is ended first, which may have used it up.
    let asked = task.change_record(|record| record.stop = true);
    let begin = Instant::now();
    if let Some(supervisor) = alive() {
        let mut watch = Watch::new(&[])?;
        watch.add_process(supervisor);
        supervisor.signal(Signal::SIGTERM)?;
        let limit = fault::limit("DISPATCH_STOP_MS", STOP_LIMIT);
        while alive().is_some() && begin.elapsed() < limit {
            watch.wait_for_event(Duration::from_millis(100))?;
        }
    }
    // Of a supervisor that saw to it nothing is left; this makes sure.
    if let Some(attempt) = task.last_attempt() {
        let record = &view.record;
        let left = run::tree(alive().cloned(), record, &attempt)?
            .terminate(run::termination_grace(), || ())?;
        if !left.is_empty() {
            let left: Vec<_> = left.iter().map(|process| process.pid.to_string()).collect();
            return Err(Refusal::new(Exit::TryAgain, format!("'{id}' does not end"))
                .place(format!(
                    "asked to {} ago; left: {}",
                    short_duration(begin.elapsed()),
                    left.join(", ")
                ))
                .next(format!("look again: dispatch-reconcile show {id}"))
                .into());
        }
    }
    if let Some(supervisor) = alive() {
        how = "; its supervisor did not react, and nothing of it is left";
        supervisor.signal(Signal::SIGKILL)?;
        let mut watch = Watch::new(&[])?;
        watch.add_process(supervisor);
        while alive().is_some() && begin.elapsed() < 2 * STOP_LIMIT {
            watch.wait_for_event(Duration::from_millis(100))?;
        }
    }
    asked.or_else(|_| task.change_record(|record| record.stop = true))?;
    Ok(format!("{id} {}{how}", task.view()?.label()))
}
