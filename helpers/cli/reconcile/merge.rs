//! `dispatch-reconcile merge`: merges a task's branch into the person's.

use std::path::Path;

use anyhow::Result;

use crate::cli::say;
use crate::domain::Route;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::Lock;
use crate::git::first_paths;
use crate::process::TASK_DIR;
use crate::project::Project;
use crate::task::{State, Task, View};
use crate::worker::supervise;

/// Merges a task's branch into the branch that is checked out `here`, or else in the project.
pub(super) fn merge(project: &Project, here: &Path, task: &Task) -> Result<Exit> {
    refuse_worker()?;
    let id = task.id();
    let (view, _run_lock) = at_rest(task)?;
    let Some(worktree) = &view.record.worktree else {
        return Err(Refusal::new(Exit::Data, format!("'{id}' has no branch of its own to merge"))
            .place(format!("it worked in {}", view.record.directory.display()))
            .next("nothing to do: its changes are in that directory")
            .into());
    };
    let path = worktree.path.display();
    if let Some(what) = worktree.unfinished()? {
        return Err(Refusal::new(Exit::Data, format!("a {what} is not finished in the worktree"))
            .place(path.to_string())
            .next(format!("finish it there and commit, or git -C {path} {what} --abort"))
            .into());
    }
    let changed = worktree.changes()?;
    if !changed.is_empty() {
        let what = format!("the worktree of '{id}' has changes that are not committed");
        let next = match view.state {
            State::Done => format!("git -C {path} add --all && git -C {path} commit"),
            _ => format!("dispatch-spawn {id} --resume, or git -C {path} commit"),
        };
        return Err(Refusal::new(Exit::Data, what)
            .place(format!("{} in {path}", first_paths(&changed)))
            .next(next)
            .into());
    }
    let branch = &worktree.branch;
    let checked_out = worktree.checked_out()?;
    if checked_out.as_ref() != Some(branch) {
        let other = checked_out.unwrap_or_else(|| "no branch".into());
        return Err(Refusal::new(Exit::Data, format!("the worktree of '{id}' is not on {branch}"))
            .place(format!("{path} is on {other}"))
            .next(format!("git -C {path} switch {branch}, or merge what is there yourself"))
            .into());
    }
    let merged = worktree.merge(&[here, project.root()])?;
    let into = &merged.into;
    let how = if merged.fast_forward { "fast-forward" } else { "merge commit" };
    let what = match merged.commits {
        0 => format!("nothing to merge, {into} has all its commits"),
        1 => format!("1 commit into {into} ({how})"),
        commits => format!("{commits} commits into {into} ({how})"),
    };
    say(format!("{branch}: {what}; dispatch-reconcile clean {id} removes the task"));
    Ok(Exit::Ok)
}

/// Refuses a worker: merging and cleaning change what other tasks and the person work on.
pub(super) fn refuse_worker() -> Result<(), Refusal> {
    match std::env::var_os(TASK_DIR) {
        Some(_) => Err(Refusal::new(Exit::Usage, "a worker may not merge or clean")
            .next("leave this to the session that dispatched the task")),
        None => Ok(()),
    }
}

/// Takes the run lock of a task without a worker, so that no worker starts meanwhile.
///
/// # Errors
/// [`Exit::TryAgain`] if the task has a worker or is about to start one.
pub(super) fn at_rest(task: &Task) -> Result<(View, Lock)> {
    supervise::record_unknown_end(&task.view()?)?;
    let view = task.view()?;
    if let Some(why) = at_work(&view)? {
        return Err(not_yet(task, why).into());
    }
    let lock = Lock::try_take_unsigned(&task.run_lock_path())?;
    let viewed = view.attempt.as_ref().map(|attempt| attempt.number);
    let last = task.last_attempt().map(|attempt| attempt.number);
    match lock.filter(|_| last == viewed) {
        Some(lock) => Ok((view, lock)),
        None => Err(not_yet(task, "its worker is running".into()).into()),
    }
}

/// Why a task is not at rest: it has a worker, or is about to start one.
pub(super) fn at_work(view: &View) -> Result<Option<String>> {
    let working = match view.record.route {
        // The end of an agent is only known if its host reports it.
        Route::Agent => view.is_alive() && view.state != State::Done,
        Route::Cli => view.is_alive() || Lock::is_held(&view.task.run_lock_path())?,
    };
    Ok(match view.state {
        state if state.is_waiting() => Some(format!("it is waiting: {}", view.because())),
        _ if working => Some("its worker is running".into()),
        _ if view.has_late_answer() => Some("it is about to resume with an answer".into()),
        _ => None,
    })
}

fn not_yet(task: &Task, why: String) -> Refusal {
    let id = task.id();
    Refusal::new(Exit::TryAgain, format!("'{id}' has not ended"))
        .place(why)
        .next(format!("wait for its end, or stop it: dispatch-reconcile stop {id}"))
}
