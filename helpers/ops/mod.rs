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

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;

use crate::config::choose::{Chosen, How, replacements};
use crate::config::{Choice, Config};
use crate::domain::{Access, BUDGETS, Budget, Route, TaskId};
use crate::error::{Exit, Refusal};
use crate::process::calling_host;
use crate::task::{Record, Task, Wait};
use crate::tools::detect::logged_out;
use crate::worker::agent;
use crate::worker::supervise;

/// The options of a person who dispatches or resumes a task. The texts are the help of `dispatch-spawn`.
#[derive(Clone, Debug, clap::Args)]
pub struct Request {
    /// A model or an alias of the config [default: the config's default]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Give the worker a git worktree and a branch of its own
    #[arg(long)]
    pub worktree: bool,
    /// Begin the worktree with the uncommitted changes of this checkout
    #[arg(long)]
    pub with_changes: bool,
    /// Run the worker at this place of the config, in a worktree there
    #[arg(long = "on", value_name = "PLACE", conflicts_with_all = ["agent", "keep", "may_dispatch"])]
    pub place: Option<String>,
    /// Access of the worker [default: the backend's access, else write]
    #[arg(long, value_enum)]
    pub access: Option<Access>,
    /// Start when TASK is done (repeatable)
    #[arg(long, value_name = "TASK")]
    pub after: Vec<TaskId>,
    /// Count the task as done only if COMMAND succeeds in its directory (repeatable)
    #[arg(long, value_name = "COMMAND", value_parser = NonEmptyStringValueParser::new())]
    pub check: Vec<String>,
    /// Ask before the task uses more than LIMIT, as 5usd,2Mtok,90m [default: the config's]
    #[arg(long, value_name = "LIMIT", value_parser = budget)]
    pub budget: Option<Budget>,
    /// Count the task as done only if NAME, a model that reads the work, has no findings
    #[arg(long, value_name = "NAME")]
    pub review: Option<String>,
    /// Work on the branch of the task after --after, instead of one of its own
    #[arg(long, requires = "after")]
    pub continue_branch: bool,
    /// Use an agent of this session for Claude, whatever the config's route is
    #[arg(long, conflicts_with = "may_dispatch")]
    pub agent: bool,
    /// Tick this unwanted item, named by its number or words (repeatable)
    #[arg(long, value_name = "ITEM", requires = "resume")]
    pub skip: Vec<String>,
    /// Keep what the finished worker leaves running, until `stop` or `clean TASK`
    #[arg(long, conflicts_with = "check")]
    pub keep: bool,
    /// Let the worker dispatch tasks of its own (only at full access)
    #[arg(long)]
    pub may_dispatch: bool,
    /// Start in this directory below the top of the worktree
    #[arg(long, value_name = "DIR", hide = true)]
    pub below: Option<PathBuf>,
}

fn budget(text: &str) -> Result<Budget, Refusal> {
    text.parse().map_err(|error: String| Refusal::new(Exit::Usage, error).next(BUDGETS))
}

/// The start of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// A supervisor runs the worker, or waits for this.
    Process(Option<Wait>),
    /// The host has to make the call that this line holds.
    Agent(String),
}

/// Starts the worker of a task's next attempt.
fn launch(task: &Task, record: &Record) -> Result<Start> {
    match record.route {
        Route::Cli => supervise::start(task, None).map(Start::Process),
        Route::Agent => agent::start(task, record).map(Start::Agent),
    }
}

/// Refuses a CLI that says that it is not logged in, once.
fn refuse_logged_out(config: &Config, record: &Record, chosen: &Chosen) -> Result<()> {
    let asked = || logged_out(&record.backend, &chosen.choice.settings);
    let asked = (record.route == Route::Cli).then(asked).flatten();
    let Some((call, login)) = asked else { return Ok(()) };
    let other = replacements(config, &record.name)?.into_iter().next();
    let other = other.map_or_else(String::new, |(id, _)| format!(", or take {id}"));
    let added = match (&record.model, chosen.how) {
        (Some(id), How::Added) => format!("; {id} was added to the config and stays there"),
        _ => String::new(),
    };
    let what = format!("{} is not logged in", record.backend);
    Refusal::new(Exit::Unavailable, what)
        .place(format!("{call} says so{added}"))
        .refuse(format!("{login}{other}; if it needs no login, call again"))
}

/// The options that only a worker with a supervisor can have.
const NEEDS: [&str; 5] =
    ["--check or --review", "--budget", "--worktree", "--after", "--keep or --may-dispatch"];

/// Returns true for Claude inside Claude Code, which has its own agents.
fn has_agents(backend: &str) -> bool {
    calling_host().is_some() && backend == "claude"
}

/// The route of a task: `agent` if the person `asked_for_agent`, else by the config, else `agent` where
/// the host has agents and the task needs no process.
fn route(choice: &Choice, record: &Record, asked_for_agent: bool) -> Result<Route> {
    let backend = &choice.backend;
    let needs = [
        record.first_check().is_some(),
        !record.budget.is_none(),
        record.worktree.is_some(),
        !record.after.is_empty(),
        record.may_dispatch || record.keep,
    ];
    let need = NEEDS.iter().zip(needs).find(|(_, is_needed)| *is_needed);
    let configured = choice.settings.route;
    if let Some((option, _)) = need
        && (asked_for_agent || configured == Some(Route::Agent))
    {
        let agent = match asked_for_agent {
            true => "leave out --agent".into(),
            false => format!("take 'route: agent' out of backend '{backend}'"),
        };
        return Refusal::new(Exit::Usage, format!("an agent of the host cannot have {option}"))
            .place("that needs a supervisor, and an agent has none")
            .refuse(format!("dispatch without it, or {agent}"));
    }
    if asked_for_agent && !has_agents(backend) {
        return Refusal::new(Exit::Usage, "the host has no agent for this task")
            .place(format!("{} is no model of a Claude Code that calls this", choice.name))
            .refuse("leave out --agent");
    }
    let usual = if has_agents(backend) && need.is_none() { Route::Agent } else { Route::Cli };
    Ok(if asked_for_agent { Route::Agent } else { configured.unwrap_or(usual) })
}
