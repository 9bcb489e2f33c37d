//! The host's hook protocol: what Claude Code tells a hook, and what that says about news and agents.

use std::cell::LazyCell;
use std::path::PathBuf;

use anyhow::Result;
use serde::Deserialize;

use crate::domain::Route;
use crate::ids::now;
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{Event, event_ids_in, events, shown_in_transcript};
use crate::process::Identity;
use crate::project::Project;
use crate::task::{ExitRecord, SessionRecord, State, StopReason, Task};
use crate::worker::agent::{self, description, notifies_since};

/// The JSON that Claude Code gives a hook on standard input.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct HookInput {
    /// The session's directory.
    pub cwd: Option<PathBuf>,
    transcript_path: Option<PathBuf>,
    prompt: Option<String>,
    background_tasks: Option<Vec<BackgroundTask>>,
}

/// An agent or a command that the host runs in the background.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BackgroundTask {
    id: String,
    status: String,
    description: String,
}

impl HookInput {
    /// Takes over what the host says: acknowledges the news of its own tasks that its transcript shows,
    /// and records the usage and the ends of its agents. An unreadable task must not hide news of the
    /// others.
    pub fn take_over(&self, project: &Project, host: &Identity) {
        // Most inputs concern no task, and reading a thousand takes a while.
        let tasks = LazyCell::new(|| {
            let index = project.index(host).read();
            let mut tasks = project.tasks();
            tasks.retain(|task| index.get(task.state_dir()) != Some(&true));
            tasks.extend(project.tasks_elsewhere(&index));
            tasks
        });
        let transcript = self.transcript_path.as_ref();
        let mut shown = transcript.and_then(|it| shown_in_transcript(it).ok()).unwrap_or_default();
        shown.extend(self.prompt.clone());
        let ids: Vec<&str> = shown.iter().flat_map(|text| event_ids_in(text)).collect();
        if !ids.is_empty() || shown.iter().any(|text| text.contains("<task-notification>")) {
            tasks.iter().for_each(|it| drop(acknowledge_task(it, host, &shown, &ids)));
        }
        if let Some(running) = &self.background_tasks {
            tasks.iter().for_each(|it| drop(note_ended_agent(it, host, running)));
        }
    }
}

/// Records the end of an agent that the host no longer lists and that has not finished, and the id of
/// one that it lists.
fn note_ended_agent(task: &Task, host: &Identity, running: &[BackgroundTask]) -> Result<()> {
    if task.record()?.is_none_or(|record| record.route != Route::Agent) {
        return Ok(());
    }
    let view = task.view()?;
    let over = matches!(view.state, State::Done | State::Incomplete | State::Stopped);
    let open = view.exit.is_none() && !over;
    let milliseconds = u64::try_from(view.age().as_millis()).unwrap_or(u64::MAX);
    let Some(attempt) = view.attempt.filter(|_| open) else { return Ok(()) };
    // Another host may run the agent; only that host lists it.
    if attempt.identity()?.as_ref() != Some(host) {
        return Ok(());
    }
    let (name, known) = (description(&view.record), attempt.session()?);
    let is_it = |agent: &&BackgroundTask| {
        let same = known.as_ref().is_some_and(|session| session.id == agent.id);
        let over = matches!(agent.status.as_str(), "completed" | "failed" | "killed");
        (same || agent.description == name) && !over
    };
    match running.iter().find(is_it) {
        Some(agent) => {
            let session =
                SessionRecord { backend: view.record.backend, id: agent.id.clone(), home: None };
            if known.as_ref() != Some(&session) {
                attempt.set_session(&session)?;
            }
            Ok(())
        }
        None => {
            let stop_reason = Some(StopReason::AgentGone);
            let exit = ExitRecord { stop_reason, at: now(), milliseconds, ..ExitRecord::default() };
            task.set_exit(&attempt, &exit)
        }
    }
}

fn acknowledge_task(task: &Task, host: &Identity, shown: &[String], ids: &[&str]) -> Result<()> {
    if task.record()?.is_none_or(|record| record.owner.as_ref() != Some(host)) {
        return Ok(());
    }
    let (told, view) = (ledger::read(task)?, task.view()?);
    if let Some(attempt) = view.attempt.as_ref().filter(|_| view.record.route == Route::Agent) {
        let usage = shown.iter().rev().find_map(|text| agent::usage_in(text, &view.record));
        // The transcript still shows the usage of earlier attempts.
        let before = task.attempts()?.into_iter().filter(|it| it.number < attempt.number);
        let before: Vec<_> = before.filter_map(|it| it.usage().ok()?).collect();
        let own = usage.filter(|usage| !before.contains(usage));
        own.map_or(Ok(()), |usage| attempt.set_usage(&usage))?;
    }
    // A text may quote the id of an event to come, so only a delivered one is acknowledged.
    let seen = |(id, delivery): &(&String, &Delivery)| {
        **delivery == Delivery::Delivered && ids.contains(&id.as_str())
    };
    for (id, _) in told.iter().filter(seen) {
        Ledger::open(task)?.acknowledge(id)?;
    }
    // The host program itself tells the model of an agent's end.
    let is_done_agent = view.record.route == Route::Agent && view.state == State::Done;
    match task.side().ipc().finished_at().filter(|_| is_done_agent) {
        Some(finished) if shown.iter().any(|it| notifies_since(it, &view.record, finished)) => {
            let end = events(&view)?.into_iter().filter(Event::is_end).collect();
            ledger::acknowledge(task, end, host)
        }
        _ => Ok(()),
    }
}
