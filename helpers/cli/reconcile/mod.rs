//! `dispatch-reconcile`: the true state of all tasks, and what a person does with them.

mod clean;
mod merge;
mod show;
mod status;
mod table;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ColorChoice, Parser, Subcommand};

use crate::cli::{agree, directory, done, project, refuse_elsewhere, run, say, some_text};
use crate::domain::TaskId;
use crate::error::{Exit, Refusal};
use crate::host::{Decider, decider, refuse_undecided};
use crate::ops::stop;
use crate::project::{Project, Standing};
use crate::task::{State, Task};
use status::StatusArgs;

pub(super) use status::{broken_line, status_line};
pub(super) use table::wrap;

/// Show and manage tasks
///
/// A task belongs to the project it was dispatched in: the repository or the directory with
/// `.dispatch/tasks`. Without a command, the status is shown.
///
/// Exit codes: 0 done, 1 failed, 64 wrong arguments, 65 no such task or a broken file, 75 not now
/// (a worker is running)
///
/// Example: dispatch-reconcile show fix-login-bug
#[derive(Debug, Parser)]
#[command(name = "dispatch-reconcile", version = super::VERSION)]
pub struct Args {
    #[command(subcommand)]
    command: Option<ReconcileCommand>,
    #[command(flatten)]
    status: StatusArgs,
    /// Work in this directory [default: the current one]
    #[arg(short = 'C', global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ReconcileCommand {
    /// Show all tasks, most urgent first (the default)
    ///
    /// Crashes are repaired first: unseen ends are recorded, tasks without a supervisor
    /// restart, and temporary files of dead writers are removed. A terminal gets a table, a pipe one
    /// line for each task. The command that helps a task on stands after `→`. Tasks that were done
    /// over a day ago are only counted.
    ///
    /// Exit codes: 0 shown, 64 wrong arguments, 65 `.dispatch` is a symlink
    ///
    /// Example: dispatch-reconcile status --all
    Status(StatusArgs),
    /// Show one task: plan, questions, notes, attempts, cost, commits and logs
    ///
    /// Text in quotation marks is the worker's. Look for secrets in a text from `--markdown` before you
    /// pass it on. A session of Claude Code that is shown its own task is
    /// not woken for that news again.
    ///
    /// Exit codes: 0 shown, 64 wrong arguments, 65 no such task or a broken file
    ///
    /// Example: dispatch-reconcile show fix-login-bug
    Show {
        /// The task's id
        task: TaskId,
        #[command(flatten)]
        form: show::Form,
    },
    /// Print the number of tasks in each state, for Claude Code's status line
    ///
    /// Claude Code sends a status line JSON with the directory on standard input. Nothing is printed
    /// if no task is open; nothing is repaired, and nothing fails.
    ///
    /// Exit code: 0
    ///
    /// Example: echo '{"cwd":"/home/me/shop"}' | dispatch-reconcile statusline
    Statusline,
    /// Show all tasks live on this terminal, with keys to answer, stop and read logs
    ///
    /// The last line shows the keys; q leaves. Without a terminal, the status is printed once.
    ///
    /// Exit codes: 0 left, 1 failed, 64 wrong arguments, 65 `.dispatch` is a symlink
    ///
    /// Example: dispatch-reconcile watch
    Watch {
        /// Colour the screen: `auto` does so unless NO_COLOR is set
        #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
        color: ColorChoice,
    },
    /// Stop a task's worker
    ///
    /// The worker gets 10 seconds to end by itself. Its changes stay, and `dispatch-spawn TASK
    /// --resume` continues the task. For an agent of Claude Code, the TaskStop call that the session
    /// has to make is printed.
    ///
    /// Exit codes: 0 stopped, or had ended already, 1 cannot stop it, 64 wrong arguments, 65 no such task, 75 a process is still running
    ///
    /// Example: dispatch-reconcile stop fix-login-bug
    Stop {
        /// The task's id
        task: TaskId,
    },
    /// Merge a task's branch into the branch that is checked out here
    ///
    /// The worker must have ended and committed its work. A merge with conflicts lists them and
    /// changes nothing.
    ///
    /// Exit codes: 0 merged, 1 failed and changed nothing, 64 wrong arguments, 65 not possible, with the reason, 75 the worker is running
    ///
    /// Example: dispatch-reconcile merge fix-login-bug
    Merge {
        /// The task's id
        task: TaskId,
        #[command(flatten)]
        args: merge::MergeArgs,
    },
    /// Remove finished tasks, and their worktrees if no work would be lost
    ///
    /// Without a name, all tasks that are done are removed. A failed, stopped or blocked task is only
    /// removed by name. Work that exists nowhere else is kept, and so is the report (in
    /// `.dispatch/reports`). With `--stale`, what dispatch knows of projects that no longer exist moves to
    /// `~/.dispatch/trash`, from where `mv` puts it back for 30 days; older trash is removed.
    ///
    /// Exit codes: 0 done, 1 a named task was kept, 64 wrong arguments, or no person at a terminal for `--stale`, 65 no such task
    ///
    /// Example: dispatch-reconcile clean --older-than 7d --dry-run
    Clean(clean::CleanArgs),
    /// Take over the tasks of a project that was moved, copied, replaced or restored
    ///
    /// The tasks are listed with their access, and a person is asked at the terminal. A host whose ask
    /// rule shows the person the tasks with their access (`install.sh --allow`) may name them instead.
    /// Nothing is started, except what waits for its turn. Of a copy, only tasks that do not run are
    /// taken.
    ///
    /// Exit codes: 0 done, or nothing to do, 64 no person agrees, 65 other tasks were named, 75 a task of a moved project is running
    ///
    /// Example: dispatch-reconcile adopt
    Adopt {
        /// The tasks that may be taken over, each with its access; all of them
        #[arg(value_name = "TASK=ACCESS")]
        tasks: Vec<String>,
    },
    /// Send a note to a task's worker, at the end of its plan
    ///
    /// A running worker sees the note at its next call of a helper; a later worker sees it in its
    /// prompt.
    ///
    /// Exit codes: 0 noted, 64 wrong arguments, 65 no such task, or it is done
    ///
    /// Example: dispatch-reconcile note fix-login-bug 'Keep the old API.'
    Note {
        /// The task's id
        task: TaskId,
        /// The note; - reads it from standard input
        #[arg(allow_hyphen_values = true, value_name = "TEXT|-")]
        text: String,
    },
}

/// Runs `dispatch-reconcile`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        let project = || project(args.directory.as_deref());
        let task = |id| -> Result<Task> { project()?.existing_task(id) };
        // The task that a command acts on.
        let subject = |id| -> Result<Task> {
            let task = task(id)?;
            refuse_elsewhere(&project()?, &task)?;
            Ok(task)
        };
        if args.command.is_some() && args.status != StatusArgs::default() {
            let what = "an option of a command was given before the command";
            return Refusal::new(Exit::Usage, what).refuse("put it after the command");
        }
        match args.command.as_ref().unwrap_or(&ReconcileCommand::Status(args.status)) {
            ReconcileCommand::Status(args) => status::status(&project()?, args),
            ReconcileCommand::Statusline => Ok(status::statusline(args.directory.clone())),
            ReconcileCommand::Show { task: id, form } => show::show(&task(id)?, *form),
            ReconcileCommand::Watch { color } => watch::watch(&project()?, *color),
            ReconcileCommand::Stop { task: id } => done(stop::stop(&subject(id)?)?),
            ReconcileCommand::Merge { task: id, args: how } => {
                let project = project()?;
                project.refuse_moved()?;
                merge::merge(&project, &directory(args.directory.as_deref())?, &subject(id)?, how)
            }
            ReconcileCommand::Clean(args) if args.stale => clean::clean_stale(args),
            ReconcileCommand::Clean(args) => {
                let project = project()?;
                project.refuse_moved()?;
                if project.is_elsewhere && !args.dry_run {
                    refuse_undecided("to clean another project")?;
                }
                clean::clean(&project, args)
            }
            ReconcileCommand::Adopt { tasks } => adopt(&project()?, tasks),
            ReconcileCommand::Note { task: id, text } => {
                let (task, text) = (subject(id)?, some_text(text, "the note")?);
                let is_checked = task.record()?.is_some_and(|it| it.first_check().is_some());
                // The lock excludes the end of the checks, after which nobody reads the note.
                let _lock = is_checked.then(|| task.lock()).transpose()?;
                if task.view()?.state == State::Done {
                    return Refusal::new(Exit::Data, format!("'{id}' is done"))
                        .refuse("dispatch a new task for further work");
                }
                task.add_note(&text)?;
                done(format!("noted in the plan of {id}"))
            }
        }
    })
}

/// Lists the tasks of a project that was moved, copied or replaced, asks the person, and takes the tasks
/// over. Starts nothing. `named`: the tasks that the host has shown to the person.
fn adopt(project: &Project, named: &[String]) -> Result<Exit> {
    let candidates = match &project.standing {
        Standing::New | Standing::Same => Vec::new(),
        _ => project.candidates()?,
    };
    if candidates.is_empty() {
        return done(format!("nothing to adopt in {}", project.root.display()));
    }
    for candidate in &candidates {
        let (view, id) = (&candidate.view, candidate.view.task.id());
        let what = format!("{id} ({}, {}, {})", view.state, view.record.name, view.record.access);
        match candidate.obstacle {
            None if view.state.is_waiting() => say(format!("{what}: it will start")),
            None => say(what),
            Some(why) => say(format!("{what}: stays, {why}")),
        }
    }
    let stuck = candidates.iter().find(|it| it.obstacle.is_some());
    if let (Some(stuck), Standing::Moved(_)) = (stuck, &project.standing) {
        let id = stuck.view.task.id();
        return Refusal::new(Exit::TryAgain, format!("'{id}' is running"))
            .place("its supervisor works at the project's old place")
            .refuse(format!("wait for its end, or stop it: dispatch-reconcile stop {id}"));
    }
    let free = candidates.iter().filter(|it| it.obstacle.is_none());
    let pair = free.map(|it| format!("{}={}", it.view.task.id(), it.view.record.access));
    let taken: Vec<String> = pair.collect();
    let call = format!("dispatch-reconcile adopt {}", taken.join(" "));
    if !named.is_empty() && named != taken {
        return Refusal::new(Exit::Data, "other tasks would be taken over than the named ones")
            .refuse(format!("compare them with the list, then {call}"));
    }
    let question = format!("Take over {} task(s) into {}?", taken.len(), project.root.display());
    let asked = !named.is_empty() && decider() == Decider::Asked;
    if !asked
        && !agree(&question, &format!(", or let Claude Code ask (install.sh --allow): {call}"))?
    {
        return done("Nothing was changed.");
    }
    project.adopt(&candidates)?;
    done("Done.")
}
