//! The operations behind the commands. Each takes values and returns what happened; the command lines
//! parse the arguments, call one operation and print.
//!
//! Invariant: everything that can be refused is refused before anything changes.

pub mod answer;
pub mod ask;
pub mod dispatch;
pub mod resume;
pub mod stale;
pub mod stop;

use anyhow::Result;

use crate::config::choose::{Chosen, How, replacements};
use crate::config::{Choice, Config};
use crate::domain::Route;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::process::{calling_host, worker_helper};
use crate::task::{Record, Task};
use crate::tools::detect::logged_out;
use crate::tools::{self, Invocation, Session, holder, is_known};
use crate::worker::supervise::{self, StartOutcome};
use crate::worker::{agent, run, sandbox};

/// Placeholder for the session id in a command line that is only checked or printed.
const SESSION: &str = "00000000-0000-4000-8000-000000000000";

/// The start of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A supervisor runs the worker, or waits to.
    Process(StartOutcome),
    /// The host has to make the call that this line holds.
    Agent(String),
}

/// Starts the worker of a task's next attempt.
fn launch(task: &Task, record: &Record) -> Result<Start> {
    match record.route {
        Route::Cli => supervise::start(task).map(Start::Process),
        Route::Agent => agent::start(task, record).map(Start::Agent),
    }
}

/// The command of a worker process, whose record gets what holds it; `None` for an agent.
///
/// # Errors
/// Any obstacle to the start that can be known in advance.
fn check_start(task: &Task, record: &mut Record, choice: &Choice) -> Result<Option<Invocation>> {
    record.holder = None;
    if record.route == Route::Agent {
        return Ok(None);
    }
    let backend = &record.backend;
    record.holder = holder(backend, &choice.settings, record.access).map_err(|why| {
        let (access, first) = (record.access, why.remedy());
        let what = format!("{backend}'s workers cannot be held to '{access}' access");
        let next = format!(
            "{first}if the user lets them do anything: dispatch-config set-access {backend} full"
        );
        Refusal::new(Exit::Unavailable, what).place(why.to_string()).next(next)
    })?;
    sandbox::refuse_unholdable(task, record, &choice.settings)?;
    if let Err(why) = sandbox::holder_of_checks(record) {
        let (access, first) = (record.access, tools::remedy(&why));
        return Err(Refusal::new(
            Exit::Unavailable,
            format!("--check: nothing holds a command to '{access}' access here: {why} ({first}leave --check out, or add --access full)"),
        )
        .into());
    }
    let session = Session::New(SESSION);
    run::call(task, record, &choice.settings, &worker_helper()?, session).map(Some)
}

/// Refuses a CLI that says that it is not logged in, once.
fn refuse_logged_out(config: &Config, record: &Record, chosen: &Chosen) -> Result<()> {
    let asked = || logged_out(&record.backend, &chosen.choice.settings);
    let asked = (record.route == Route::Cli).then(asked).transpose()?.flatten();
    let Some((call, login)) = asked else { return Ok(()) };
    let other = replacements(config, &record.name)?.into_iter().next();
    let other = other.map_or_else(String::new, |(id, _)| format!(", or take {id}"));
    let added = match (&record.model, chosen.how) {
        (Some(id), How::Added) => format!("; {id} was added to the config and stays there"),
        _ => String::new(),
    };
    let what = format!("{} is not logged in", record.backend);
    Err(Refusal::new(Exit::Unavailable, what)
        .place(format!("{call} says so{added}"))
        .next(format!("{login}{other}; if it needs no login, call again"))
        .into())
}

/// The route: by the config, else `agent` for Claude inside Claude Code, which has its own agents.
fn route(choice: &Choice, worktree: bool, after: bool, checks: bool) -> Result<Route> {
    let backend = &choice.backend;
    let needs_process = worktree || after || checks;
    if needs_process && choice.settings.route == Some(Route::Agent) {
        let (what, place, option) = if checks {
            (
                "the work of an agent of the host cannot be checked",
                "only a supervisor runs checks, and an agent has none",
                "--check",
            )
        } else if worktree {
            (
                "an agent of the host cannot work in our worktree",
                "the Agent tool's own begins at origin/HEAD and hides the task's directory",
                "--worktree",
            )
        } else {
            (
                "an agent of the host cannot wait for other tasks",
                "only the host starts one, and it does not wait",
                "--after",
            )
        };
        let next =
            format!("dispatch without {option}, or take 'route: agent' out of backend '{backend}'");
        return Err(Refusal::new(Exit::Usage, what).place(place).next(next).into());
    }
    let inside_claude = calling_host().is_some() && backend == "claude" && is_known("claude");
    let usual = if inside_claude && !needs_process { Route::Agent } else { Route::Cli };
    Ok(choice.settings.route.unwrap_or(usual))
}
