//! `dispatch-reconcile clean`: removes finished tasks, but no work that exists nowhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail, ensure};

use crate::cli::reconcile::merge::{at_rest, at_work, refuse_worker};
use crate::cli::{agree, done, say};
use crate::dirs;
use crate::domain::{TaskId, Worktree};
use crate::error::Exit;
use crate::fault;
use crate::files;
use crate::git;
use crate::news::events;
use crate::news::ledger;
use crate::ops::stale::{self, Stale, StateDir};
use crate::process::{Life, calling_host};
use crate::project::{Project, TaskList};
use crate::repair::{all_artifacts, orphans};
use crate::task::{State, Task, View};
use crate::text::short_duration;
use crate::worker::{self, sandbox};

#[derive(Debug, clap::Args)]
pub(super) struct CleanArgs {
    /// The tasks to remove, also failed or stopped ones [default: all that are done]
    #[arg(value_name = "TASK")]
    tasks: Vec<TaskId>,
    /// Only tasks that ended at least this long ago, like 7d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Move the state of projects that no longer exist to the trash, in a terminal
    #[arg(long, conflicts_with_all = ["tasks", "older_than"])]
    pub(super) stale: bool,
}

/// Removes the tasks that were asked for, and prints what happened to each.
pub(super) fn clean(project: &Project, args: &CleanArgs) -> Result<Exit> {
    refuse_worker()?;
    let named = args.tasks.iter().map(|id| project.existing_task(id));
    let named = named.collect::<Result<Vec<_>>>()?;
    let all = project.tasks();
    if !args.dry_run {
        remove_leftovers(project)?;
    }
    let awaited = awaited(&all);
    let (mut printed, mut exit) = (false, Exit::Ok);
    for task in if named.is_empty() { &all } else { &named } {
        let id = task.id();
        match clean_task(project, task, args, &awaited) {
            Ok(None) => continue,
            Ok(Some(what)) if args.dry_run => say(format!("would remove {id}{what}")),
            Ok(Some(what)) => say(format!("removed {id}{what}")),
            Err(why) => {
                say(format!("kept {id}: {why:#}").replace("\n  ", "; "));
                if !named.is_empty() {
                    exit = Exit::Failed;
                }
            }
        }
        printed = true;
    }
    if named.is_empty()
        && let Some(repository) = project.repository()
    {
        for orphan in orphans(project, all_artifacts(&repository)?) {
            let repository = Some(&*repository).filter(|_| !args.dry_run);
            say(format!("orphaned: {}", orphan.remedy(repository)));
            printed = true;
        }
        let TaskList { tasks, broken, .. } = project.task_list();
        let records = tasks.iter().map(|task| task.record().ok().flatten());
        // A task without a record is broken, or has just reserved the names of its worktree.
        if let Some(records) = records.collect::<Option<Vec<_>>>().filter(|_| broken.is_empty())
            && !args.dry_run
        {
            let owned: Vec<_> = records.into_iter().filter_map(|it| it.worktree).collect();
            // A home directory may have moved since, and the names stay.
            let is_owned =
                |path: &Path| owned.iter().any(|it| it.path.file_name() == path.file_name());
            git::forget_removed(&repository, is_owned)?;
        }
    }
    if !printed {
        say("nothing to clean");
    }
    Ok(exit)
}

/// Shows the state of projects that no longer exist and old trash, asks the person, and removes both.
pub(super) fn clean_stale(args: &CleanArgs) -> Result<Exit> {
    let stale = Stale::find()?;
    let line = |what: &str, it: &StateDir| {
        let (name, why) = (it.path.display(), &it.why);
        say(format!("{what} {name} ({} tasks): {why}", it.tasks));
    };
    stale.kept.iter().for_each(|it| line("kept", it));
    stale.found.iter().for_each(|it| line("stale", it));
    for path in &stale.expired {
        say(format!("over {} in the trash: {}", short_duration(stale::KEPT), path.display()));
    }
    let count = (stale.found.len(), stale.expired.len());
    if count == (0, 0) {
        return done("nothing to clean");
    }
    let question = format!("Move {} to the trash, and remove {} of its entries?", count.0, count.1);
    if args.dry_run || !agree(&question, "")? {
        return done("Nothing was changed.");
    }
    if let Some(place) = stale.clean()? {
        let (root, days) = (dirs::state_root()?, short_duration(stale::KEPT));
        say(format!("In the trash for {days}. To put one back, once its project is there again:"));
        say(format!("  mv {}/NAME {}/", place.display(), root.display()));
    }
    done("Done.")
}

/// Removes a task, and returns what went and stayed with it; `None` if it was not asked for. The
/// error says why the task is kept.
fn clean_task(
    project: &Project,
    task: &Task,
    args: &CleanArgs,
    awaited: &BTreeMap<String, TaskId>,
) -> Result<Option<String>> {
    let view = task.view()?;
    if !is_removable(&view, args, awaited)? {
        return Ok(None);
    }
    if args.dry_run {
        view.record.worktree.as_ref().map_or(Ok(()), Worktree::check_removable)?;
        return Ok(Some(removed(&view, keep_report(project, task, true)?)));
    }
    let (held, _run_lock) = at_rest(task)?;
    // The task may have resumed meanwhile, or be another one of the same name.
    if held.record.nonce != view.record.nonce {
        return Ok(None);
    }
    ensure!(held.state == view.state, "it is {} now", held.state);
    worker::end_kept(task, &held.record)?;
    held.record.worktree.as_ref().map_or(Ok(()), Worktree::remove)?;
    let report = keep_report(project, task, false)?;
    fault::point("clean", "report");
    // Without files in the project an ended task is over, so a crash in between loses nothing.
    task.remove(task.side().directory())?;
    fault::point("clean", "task");
    sandbox::remove_homes(task, &held.record)?;
    task.remove(task.state_dir())?;
    Ok(Some(removed(&held, report)))
}

/// Returns true if the task was asked for; the error says why it is kept all the same. A worktree with work
/// in it is judged later.
fn is_removable(view: &View, args: &CleanArgs, awaited: &BTreeMap<String, TaskId>) -> Result<bool> {
    let named = !args.tasks.is_empty();
    let ended = view.state.has_ended() || view.state == State::Stopped;
    let at_work = at_work(view)?;
    if !named && (!ended || at_work.is_some() && view.state != State::Done) {
        return Ok(false);
    }
    if let Some(why) = at_work {
        bail!("{why}");
    }
    ensure!(ended, "it is {}", view.state);
    ensure!(named || view.state == State::Done, "{}; name it to remove it", view.state);
    let age = SystemTime::now().duration_since(view.ended_at()).unwrap_or_default();
    if args.older_than.is_some_and(|least| age < least) {
        ensure!(!named, "it ended {} ago", short_duration(age));
        return Ok(false);
    }
    if let Some(other) = awaited.get(&view.record.nonce) {
        bail!("'{other}' starts when it is done");
    }
    let kept = if named { 0 } else { worker::kept(&view.task, &view.record)?.len() };
    ensure!(kept == 0, "{kept} processes that it left are running; name it to end them");
    ensure!(named || !is_untold(view)?, "its session has not been told yet that it ended");
    Ok(true)
}

/// The tasks that start after another one, by the nonce of that other one.
fn awaited(all: &[Task]) -> BTreeMap<String, TaskId> {
    let mut awaited = BTreeMap::new();
    for task in all.iter().filter(|task| task.last_attempt().is_none()) {
        let view = task.view().ok().filter(|view| view.state.is_waiting());
        for before in view.into_iter().flat_map(|view| view.record.after) {
            awaited.insert(before.nonce, task.id().clone());
        }
    }
    awaited
}

/// Returns true if another living session still has to be told that the task ended.
fn is_untold(view: &View) -> Result<bool> {
    let owner = view.record.owner.as_ref().filter(|owner| owner.life() != Life::Dead);
    if owner.is_none() || owner == calling_host().as_ref() {
        return Ok(false);
    }
    let told = ledger::read(&view.task)?;
    Ok(events(view)?.iter().any(|event| !told.contains_key(&event.id)))
}

/// Copies a task's report to where it outlives the task, and returns its path.
fn keep_report(project: &Project, task: &Task, dry_run: bool) -> Result<Option<PathBuf>> {
    let Some(bytes) = files::read_foreign(&task.side().report_path())? else { return Ok(None) };
    let id = task.id();
    if !dry_run {
        files::create_task_directory(&project.reports_dir())?;
    }
    for n in 1.. {
        let name = if n == 1 { format!("{id}.md") } else { format!("{id}-{n}.md") };
        let kept = project.reports_dir().join(name);
        let is_kept = match files::read_foreign(&kept)? {
            // A call that was killed may have copied it already.
            Some(other) => other == bytes,
            None => dry_run || files::publish_new(&kept, &bytes)?,
        };
        if is_kept {
            return Ok(Some(kept));
        }
    }
    Ok(None)
}

fn removed(view: &View, report: Option<PathBuf>) -> String {
    let worktree = view.record.worktree.as_ref();
    let worktree = worktree.map(|it| format!(" with its worktree and branch {}", it.branch));
    let report = report.map(|path| format!("; report: {}", path.display()));
    worktree.unwrap_or_default() + &report.unwrap_or_default()
}

/// Removes what is left of tasks whose removal was killed.
fn remove_leftovers(project: &Project) -> Result<()> {
    let parents = [project.tasks_dir(), project.state_dir.clone()];
    for entry in parents.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if name.starts_with(b".") && (name.ends_with(b".removed") || name.ends_with(b".adopted")) {
            files::remove_directory(&entry.path())?;
        }
    }
    Ok(())
}
