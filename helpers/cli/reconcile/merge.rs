//! `dispatch-reconcile merge`: merges a task's branch into the person's.

use std::path::Path;

use anyhow::Result;

use crate::cli::{agree, done, say};
use crate::domain::Route;
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::git::{by_hand, first_paths, short_id};
use crate::process::TASK_DIR;
use crate::project::Project;
use crate::task::{Gate, State, Task, View};
use crate::text::{count, sanitize, shell_word};
use crate::worker::supervise;

#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// Take only the task's commits, after those that are checked out here
    #[arg(long)]
    onto: bool,
    /// Merge nothing; print the commands that push the branch and open a draft pull request
    #[arg(long, conflicts_with = "onto")]
    pr: bool,
    /// Commit what the worker left uncommitted, and merge that too
    #[arg(long)]
    uncommitted: bool,
}

/// Merges a task's branch into the branch that is checked out `here`, or else in the project.
pub(super) fn merge(project: &Project, here: &Path, task: &Task, args: &MergeArgs) -> Result<Exit> {
    refuse_worker()?;
    let id = task.id();
    let (view, _run_lock) = at_rest(task)?;
    let Some(worktree) = &view.record.worktree else {
        return Refusal::new(Exit::Data, format!("'{id}' has no branch of its own to merge"))
            .place(format!("it worked in {}", view.record.directory.display()))
            .refuse("nothing to do: its changes are in that directory");
    };
    let path = worktree.path.display();
    if let Some(what) = worktree.unfinished() {
        return Refusal::new(Exit::Data, format!("a {what} is not finished in the worktree"))
            .place(path.to_string())
            .refuse(match view.state {
                State::Done => format!("{}: what was committed", by_hand(&worktree.branch)),
                _ => format!("dispatch-spawn {id} --resume"),
            });
    }
    let mut tip = worktree.fetch()?.ok_or_else(|| {
        let branch = &worktree.branch;
        Refusal::new(Exit::Data, format!("the branch {branch} is gone"))
            .place(format!("it is not in {}", worktree.repository.display()))
            .next(format!("git branch {branch} COMMIT, if you know its last commit"))
    })?;
    let changed = worktree.changes()?;
    if !changed.is_empty() && args.uncommitted {
        tip = worktree.commit_rest(&tip, &format!("What the worker of {id} left uncommitted"))?;
    } else if !changed.is_empty() {
        let what = format!("the worktree of '{id}' has changes that are not committed");
        return Refusal::new(Exit::Data, what)
            .place(format!("{} in {path}", first_paths(&changed)))
            .refuse(format!(
                "dispatch-reconcile merge {id} --uncommitted commits and merges them"
            ));
    }
    let plan = worktree.plan_merge(id, &[here, &project.root], &tip, args.onto)?;
    let (branch, into) = (&worktree.branch, &plan.into);
    if !plan.executed.is_empty() {
        let files = first_paths(&plan.executed);
        say(format!("{branch} changes files that run or are obeyed by themselves: {files}"));
        let question =
            if args.pr { "Push them?".into() } else { format!("Merge them into {into}?") };
        if !agree(&question, "")? {
            return done("Nothing was changed.");
        }
    }
    if args.pr {
        let person = view.person_plan();
        let title = person.title().unwrap_or(id.as_str());
        let body = view.summary.as_deref().unwrap_or_default();
        say(format!("git push origin {tip}:refs/heads/{branch}"));
        return done(format!(
            "gh pr create --draft --head {} --title {} --body {}",
            shell_word(branch),
            shell_word(&sanitize(title)),
            shell_word(&sanitize(body)),
        ));
    }
    let seen = files::read(&task.shown_path())?.filter(|seen| *seen != tip);
    let shown = |seen: String| format!(" (it was at {} when it was shown)", short_id(&seen));
    let moved = seen.map(shown).unwrap_or_default();
    let checked = match &view.gate {
        _ if view.record.first_check().is_none() => String::new(),
        Some(Gate { failed: Some(check), .. }) => format!(" (a check failed: {})", check.end),
        Some(Gate { commit: Some(commit), checking: None, .. }) if *commit == tip => String::new(),
        Some(Gate { commit: Some(commit), checking: None, .. }) => {
            format!(" (the checks were of {})", short_id(commit))
        }
        _ => " (not checked)".into(),
    };
    let tip = short_id(&tip);
    let what = if plan.commits == 0 {
        format!("nothing to merge, {into} has all its commits")
    } else {
        let how = if worktree.merge(&plan, id)? { "fast-forward" } else { "merge commit" };
        format!("{} into {into} ({how})", count(plan.commits, "commit"))
    };
    done(format!(
        "{branch} at {tip}{moved}{checked}: {what}; dispatch-reconcile clean {id} removes the task"
    ))
}

/// Refuses a worker: merging and cleaning change what other tasks and the person work on.
pub(super) fn refuse_worker() -> Result<(), Refusal> {
    match std::env::var_os(TASK_DIR) {
        Some(_) => Refusal::new(Exit::Usage, "a worker may not merge or clean")
            .refuse("leave this to the session that dispatched the task"),
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
        Route::Cli => view.is_alive() || view.task.is_supervised()?,
    };
    Ok(match view.state {
        state if state.is_waiting() => Some(format!("it is waiting: {}", view.because())),
        _ if view.is_checking() => Some("its checks are not over".into()),
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
