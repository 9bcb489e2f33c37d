//! `dispatch-reconcile`: what is true of all tasks now.

mod clean;
mod merge;
mod show;
mod status;
mod statusline;
mod stop;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cli::{directory, project, run, say, some_text};
use crate::domain::TaskId;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::task::{State, Task};

pub(super) use status::{broken_line, status_line};

/// Shows what is true of all tasks now.
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-reconcile",
    version = super::VERSION,
    after_help = "Examples:\n  dispatch-reconcile\n  dispatch-reconcile show fix-login-bug"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Work in this directory
    #[arg(short = 'C', global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// One line a task, most urgent first (the default)
    Status {
        /// Also the tasks that were done over a day ago, and what all of them cost
        #[arg(long)]
        all: bool,
    },
    /// All about one task
    Show {
        /// The task's id
        task: String,
    },
    /// How many tasks are in which state, for Claude Code's status line, whose JSON is on standard
    /// input
    Statusline,
    /// All tasks live on this terminal, with keys to answer, to read logs and to stop
    Watch,
    /// End a task's worker
    Stop {
        /// The task's id
        task: String,
    },
    /// Bring a task's branch back into the one that is checked out here
    Merge {
        /// The task's id
        task: String,
    },
    /// Remove finished tasks, with worktrees of which nothing would be lost
    Clean(clean::Args),
    /// Tell a running worker something: a note at the end of its plan
    Note {
        /// The task's id
        task: String,
        /// What to tell it; - is standard input
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
}

/// Runs `dispatch-reconcile`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        let project = || project(args.directory.as_deref());
        let task = |id: &str| -> Result<Task> { project()?.existing_task(&id.parse::<TaskId>()?) };
        match args.action.as_ref().unwrap_or(&Action::Status { all: false }) {
            Action::Status { all } => status::status(&project()?, *all, args.json),
            Action::Statusline => Ok(statusline::statusline(args.directory.clone())),
            Action::Show { task: id } => show::show(&task(id)?, args.json),
            Action::Watch => watch::watch(&project()?, args.json),
            Action::Stop { task: id } => {
                say(stop::stop(&task(id)?)?);
                Ok(Exit::Ok)
            }
            Action::Merge { task: id } => {
                merge::merge(&project()?, &directory(args.directory.as_deref())?, &task(id)?)
            }
            Action::Clean(clean) => clean::clean(&project()?, clean),
            Action::Note { task: id, text } => {
                let (task, text) = (task(id)?, some_text(text, "the note")?);
                if task.view()?.state == State::Done {
                    return Err(Refusal::new(Exit::Data, format!("'{id}' is done"))
                        .next("dispatch what is to be done now as a new task")
                        .into());
                }
                task.add_note(&text)?;
                say(format!("noted in the plan of {id}"));
                Ok(Exit::Ok)
            }
        }
    })
}
