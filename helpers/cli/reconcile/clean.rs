//! `dispatch-reconcile clean`: removes finished tasks, and nothing that is nowhere else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::cli::reconcile::merge::{at_rest, at_work, refuse_worker};
use crate::cli::say;
use crate::domain::{TaskId, Worktree};
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::git;
use crate::news::events;
use crate::news::ledger::{self, Delivery};
use crate::process::{Life, calling_host};
use crate::project::Project;
use crate::repair::without_task;
use crate::task::{State, Task, View};
use crate::text::short_duration;

/// What is to be removed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The tasks, also such as failed or were stopped; all that are done if none is named
    #[arg(value_name = "TASK")]
    tasks: Vec<String>,
    /// Only those that ended so long ago
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

/// What becomes of a task.
enum Fate {
    /// It goes, and this with it.
    Removed(String),
    /// It stays, for that reason.
    Kept(String),
    /// It was not meant.
    Passed,
}

/// Removes the tasks that are meant, and says of each what became of it.
pub(super) fn clean(project: &Project, args: &Args) -> Result<Exit> {
    refuse_worker()?;
    let named = args.tasks.iter().map(|id| project.existing_task(&id.parse::<TaskId>()?));
    let named = named.collect::<Result<Vec<_>>>()?;
    let all = project.tasks();
    if !args.dry_run {
        remove_leftovers(project)?;
    }
    let awaited = awaited(&all);
    let (mut said, mut exit) = (false, Exit::Ok);
    for task in if named.is_empty() { &all } else { &named } {
        let id = task.id();
        let fate = fate(project, task, args, &awaited)
            .unwrap_or_else(|error| Fate::Kept(format!("{error:#}").replace("\n  ", "; ")));
        match fate {
            Fate::Removed(what) if args.dry_run => say(format!("would remove {id}{what}")),
            Fate::Removed(what) => say(format!("removed {id}{what}")),
            Fate::Kept(why) => {
                say(format!("kept {id}: {why}"));
                if !named.is_empty() {
                    exit = Exit::Failed;
                }
            }
            Fate::Passed => continue,
        }
        said = true;
    }
    if named.is_empty()
        && let Some(repository) = project.repository()
    {
        for orphan in without_task(project, git::all_artifacts(&repository)?) {
            say(format!("orphaned, of no task here: {}", orphan.remedy()));
            said = true;
        }
    }
    if !said {
        say("nothing to clean");
    }
    Ok(exit)
}

/// What is to become of a task, once it has.
fn fate(
    project: &Project,
    task: &Task,
    args: &Args,
    awaited: &BTreeMap<String, TaskId>,
) -> Result<Fate> {
    let view = task.view()?;
    let named = !args.tasks.is_empty();
    if let Some(why) = not_finished(&view, named)? {
        return Ok(why);
    }
    let age = SystemTime::now().duration_since(ended(&view)).unwrap_or_default();
    if args.older_than.is_some_and(|least| age < least) {
        let why = Fate::Kept(format!("it ended {} ago", short_duration(age)));
        return Ok(if named { why } else { Fate::Passed });
    }
    if let Some(other) = awaited.get(&view.record.nonce) {
        return Ok(Fate::Kept(format!("'{other}' begins when it is done")));
    }
    if !named && is_untold(&view)? {
        return Ok(Fate::Kept("its session was not told of its end yet".into()));
    }
    if args.dry_run {
        let needed =
            view.record.worktree.as_ref().map(Worktree::reason_to_keep).transpose()?.flatten();
        return Ok(match needed {
            Some(why) => Fate::Kept(why),
            None => Fate::Removed(what_goes(&view, report_to_keep(project, task)?.map(|it| it.0))),
        });
    }
    let (held, _run_lock) = at_rest(task)?;
    // It may have gone on, or be another by now.
    if held.record.nonce != view.record.nonce {
        return Ok(Fate::Passed);
    }
    if held.state != view.state {
        return Ok(Fate::Kept(format!("it is {} now", held.state)));
    }
    if let Some(worktree) = &held.record.worktree
        && let Some(why) = worktree.remove()?
    {
        return Ok(Fate::Kept(why));
    }
    let report = keep_report(project, task)?;
    fault::point("clean", "report");
    // In one step, because a part of a task would be a task without its past.
    let aside = task.directory().with_file_name(format!(".{}.removed", task.id()));
    {
        let _lock = task.lock()?;
        files::remove_directory(&aside)?;
        std::fs::rename(task.directory(), &aside)
            .with_context(|| format!("cannot remove {}", task.directory().display()))?;
    }
    fault::point("clean", "task");
    files::remove_directory(&aside)?;
    task.disown(&held.record.nonce)?;
    Ok(Fate::Removed(what_goes(&held, report)))
}

/// Why it is not for removal; `None` if it is.
fn not_finished(view: &View, named: bool) -> Result<Option<Fate>> {
    let at_work = at_work(view)?;
    let why = match view.state {
        State::Done => at_work,
        State::Stopped | State::Failed | State::Incomplete | State::Blocked => match at_work {
            None if !named => Some(format!("{}; name it to remove it", view.label())),
            Some(_) if !named => return Ok(Some(Fate::Passed)),
            at_work => at_work,
        },
        _ if !named => return Ok(Some(Fate::Passed)),
        state => at_work.or(Some(format!("it is {state}"))),
    };
    Ok(why.map(Fate::Kept))
}

/// When its last worker ended, as far as that is known.
fn ended(view: &View) -> SystemTime {
    let parsed = |time: &str| humantime::parse_rfc3339(time).ok();
    let marker = view.task.ipc().directory().join(".done");
    let marker = || std::fs::metadata(marker).and_then(|it| it.modified()).ok();
    let exit = view.exit.as_ref().and_then(|exit| parsed(&exit.at));
    exit.or_else(marker).or_else(|| parsed(&view.record.created)).unwrap_or_else(SystemTime::now)
}

/// The tasks for which another waits, by their nonces.
fn awaited(all: &[Task]) -> BTreeMap<String, TaskId> {
    let mut awaited = BTreeMap::new();
    for task in all.iter().filter(|task| task.last_attempt().is_none()) {
        let view = task.view().ok().filter(|view| view.state == State::Waiting);
        for before in view.into_iter().flat_map(|view| view.record.after) {
            awaited.insert(before.nonce, task.id().clone());
        }
    }
    awaited
}

/// Whether a session lives that is to be told of its end, and is another than the one that calls.
fn is_untold(view: &View) -> Result<bool> {
    let owner = view.record.owner.as_ref().filter(|owner| owner.life() != Life::Dead);
    if owner.is_none() || owner == calling_host().as_ref() {
        return Ok(false);
    }
    let told = ledger::read(&view.task)?;
    let is_new = |id: &str| told.get(id).copied().unwrap_or_default() == Delivery::New;
    Ok(events(view)?.iter().any(|event| is_new(&event.id)))
}

/// Where a task's report is kept, and its bytes. One that was kept by a call that was killed is in
/// its place already.
fn report_to_keep(project: &Project, task: &Task) -> Result<Option<(PathBuf, Vec<u8>)>> {
    let path = task.report_path();
    let Some(bytes) = files::read_foreign(&path)? else { return Ok(None) };
    let directory = project.reports_dir();
    for n in 1.. {
        let name =
            if n == 1 { format!("{}.md", task.id()) } else { format!("{}-{n}.md", task.id()) };
        let kept = directory.join(name);
        if kept.symlink_metadata().is_err() || files::read_foreign(&kept)?.as_ref() == Some(&bytes)
        {
            return Ok(Some((kept, bytes)));
        }
    }
    Ok(None)
}

/// Keeps a task's report where it outlives the task.
fn keep_report(project: &Project, task: &Task) -> Result<Option<PathBuf>> {
    loop {
        let Some((path, bytes)) = report_to_keep(project, task)? else { return Ok(None) };
        if path.exists() {
            return Ok(Some(path));
        }
        files::create_task_directory(&project.reports_dir())?;
        // Else another of that name was faster.
        if files::publish_new(&path, &bytes)? {
            return Ok(Some(path));
        }
    }
}

/// What goes with a task, and what stays of it.
fn what_goes(view: &View, report: Option<PathBuf>) -> String {
    let worktree = view.record.worktree.as_ref();
    let worktree = worktree.map(|it| format!(" with its worktree and branch {}", it.branch));
    let report = report.map(|path| format!("; report: {}", path.display()));
    worktree.unwrap_or_default() + &report.unwrap_or_default()
}

/// Removes what is left of tasks whose removal was killed.
fn remove_leftovers(project: &Project) -> Result<()> {
    let entries = std::fs::read_dir(project.tasks_dir()).into_iter().flatten().flatten();
    let is_removed = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b".") && name.ends_with(b".removed")
    };
    for entry in entries.filter(|entry| is_removed(&entry.file_name())) {
        files::remove_directory(&entry.path())?;
    }
    Ok(())
}
