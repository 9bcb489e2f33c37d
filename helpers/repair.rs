//! Repairs after crashes. `brief` and `status` repair before they print, `watch` after it has drawn the
//! tasks.
//!
//! Invariant: a second call finds nothing to repair.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use indexmap::IndexMap;

use crate::dirs;
use crate::domain::{TaskId, Worktree};
use crate::files;
use crate::git::{self, by_hand};
use crate::place;
use crate::process::TASK_DIR;
use crate::project::{Broken, Project, TaskList};
use crate::task::{State, Task, View};
use crate::text::{count, shell_word, sort};
use crate::worker::supervise;

/// Where git keeps the branches of tasks.
const BRANCHES: &str = "refs/heads/dispatch/";

/// A project's tasks after repairs, and the repairs.
#[derive(Debug, Default)]
pub struct Repaired {
    /// The states of the readable tasks, most urgent first, then by name.
    pub views: Vec<View>,
    /// The entries that should be tasks and cannot be read.
    pub broken: Vec<Broken>,
    /// The repairs that were made.
    pub repairs: Repairs,
}

/// Repairs, displayed in one line.
#[derive(Debug, Default)]
pub struct Repairs {
    /// Each kind of repair with its tasks, in the order of the first.
    tasks: IndexMap<String, Vec<TaskId>>,
    /// How many temporary files were removed.
    temporary: usize,
}

impl Repairs {
    /// Adds the repair of a task: `adopted`, `restarted`, `supervised again`, or `marked` with a state.
    pub fn add(&mut self, task: &TaskId, repair: &str) {
        self.tasks.entry(repair.into()).or_default().push(task.clone());
    }

    /// Returns true if nothing was repaired.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.temporary == 0
    }
}

impl fmt::Display for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (repair, tasks) in &self.tasks {
            parts.push(match tasks.as_slice() {
                [first, second] => format!("{first} and {second} {repair}"),
                [first, others @ ..] if !others.is_empty() => {
                    format!("{first} and {} more {repair}", others.len())
                }
                only => format!("{} {repair}", only[0]),
            });
        }
        if self.temporary > 0 {
            parts.push(format!("{} removed", count(self.temporary, "temporary file")));
        }
        write!(f, "{}", parts.join("; "))
    }
}

/// Reads a project's tasks and repairs what crashes left: records unseen ends, restarts lost supervisors,
/// resumes tasks with a late answer, removes temporary files of dead writers. Inside a worker it only
/// reads.
pub fn repair(project: &Project, list: TaskList) -> Repaired {
    let mut repaired = Repaired { broken: list.broken, ..Repaired::default() };
    for task in &list.tasks {
        match task.view() {
            Ok(view) => repaired.views.push(view),
            Err(error) => repaired.broken.push(Broken::from_task(task, error)),
        }
    }
    if std::env::var_os(TASK_DIR).is_none() {
        place::pursue_abandoned();
        let Repaired { views, repairs, .. } = &mut repaired;
        let may_start = project.stands();
        // Ignore failures; the next repair tries again.
        for view in views.iter_mut() {
            if supervise::record_unknown_end(view).unwrap_or(false) {
                refresh(view);
                repairs.add(view.task.id(), &format!("marked {}", view.state));
            }
            if may_start && supervise::resume_if_answered(view) {
                repairs.add(view.task.id(), "restarted");
                refresh(view);
            }
            let _ = view.task.settle(view);
            // A killed helper may have recorded an answer that the worker still waits for.
            let _ = view.task.publish_answers();
        }
        let abandoned = if may_start { &views[..] } else { &[] };
        for restarted in supervise::restart_abandoned(project, abandoned) {
            let view = views.iter_mut().find(|view| *view.task.id() == restarted);
            let Some(view) = view else { continue };
            let ran = view.state.is_running();
            repairs.add(&restarted, if ran { "supervised again" } else { "restarted" });
            refresh(view);
        }
        repairs.temporary = remove_leftovers(project, views);
    }
    sort(&mut repaired.views, |one, other| one.state.cmp(&other.state));
    repaired
}

/// Rereads a task, if it is still readable.
fn refresh(view: &mut View) {
    if let Ok(now) = view.task.view() {
        *view = now;
    }
}

/// Removes temporary files of dead writers and returns how many. Leaves done tasks alone; leftovers there
/// are harmless.
fn remove_leftovers(project: &Project, views: &[View]) -> usize {
    let own = dirs::dispatch_home().into_iter().chain(project.helper_directories());
    let of_tasks = views.iter().filter(|view| view.state != State::Done).flat_map(|view| {
        let attempt = view.attempt.iter().map(|attempt| attempt.directory().to_path_buf());
        view.task.helper_directories().chain(attempt)
    });
    own.chain(of_tasks).map(|directory| files::remove_leftovers(&directory)).sum()
}

/// A worktree that dispatch made in a repository, with its branch, or such a branch alone.
#[derive(Debug)]
pub struct Artifact {
    /// The name, usually the task's.
    name: String,
    /// The directory of the worktree; `None` for a branch alone.
    worktree: Option<PathBuf>,
}

impl Artifact {
    fn branch(&self) -> String {
        format!("dispatch/{}", self.name)
    }

    /// Returns true if this is that worktree or, for a branch alone, that worktree's branch.
    fn belongs_to(&self, worktree: &Worktree) -> bool {
        match &self.worktree {
            Some(path) => worktree.path == *path,
            None => worktree.branch == self.branch(),
        }
    }

    /// A line with the command that keeps its commits and the command that removes it. With a
    /// repository, the commits of a worktree are fetched into it.
    pub fn remedy(&self, repository: Option<&Path>) -> String {
        let branch = self.branch();
        let back = by_hand(&branch);
        let Some(path) = &self.worktree else {
            return format!(
                "branch {branch} — {back} brings it back, git branch -d {branch} removes it"
            );
        };
        let fetch = |repository: &Path| {
            let (path, repository) = (path.clone(), repository.into());
            Worktree { path, branch, repository, ..Worktree::default() }.fetch()
        };
        let keep = match repository.map(fetch) {
            Some(Ok(_)) => format!("{back} brings its commits back"),
            Some(Err(error)) => format!("{error:#}").replace("\n  ", "; "),
            None => "dispatch-reconcile clean brings its commits to a branch".into(),
        };
        let (path, directory) = (path.display(), shell_word(&path.display().to_string()));
        format!("worktree {path} — {keep}, rm -r {directory} removes it and what is only there")
    }
}

/// The worktrees and branches that dispatch made in a repository, read without starting git. Packed
/// branches are missing, except for the `listed` ones.
fn artifacts(repository: &Path, listed: Vec<String>) -> Vec<Artifact> {
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect::<Vec<_>>()
    };
    let directory = git::worktrees_directory(repository).unwrap_or_default();
    let (mut worktrees, branches) = (names(&directory), names(&repository.join(BRANCHES)));
    sort(&mut worktrees, Ord::cmp);
    let mut branches: Vec<_> = branches.into_iter().chain(listed).collect();
    sort(&mut branches, Ord::cmp);
    branches.dedup();
    let worktrees = worktrees.into_iter().map(|name| {
        let worktree = Some(directory.join(&name));
        Artifact { name, worktree }
    });
    worktrees.chain(branches.into_iter().map(|name| Artifact { name, worktree: None })).collect()
}

/// All worktrees and branches that dispatch made in a repository, packed branches included.
pub fn all_artifacts(repository: &Path) -> Result<Vec<Artifact>> {
    let listed = git::references(repository, BRANCHES)?.into_iter();
    let listed = listed.filter_map(|name| Some(name.strip_prefix(BRANCHES)?.to_owned())).collect();
    Ok(artifacts(repository, listed))
}

/// A line about worktrees and branches of deleted tasks; `None` if there are none. Nothing is removed,
/// because only a person knows whether the work is still wanted.
/// `worktrees`: those of tasks that are there, as far as the caller knows them.
pub fn orphans_line<'a>(
    project: &Project,
    worktrees: impl Iterator<Item = &'a Worktree>,
) -> Option<String> {
    let worktrees: Vec<_> = worktrees.collect();
    let mut artifacts = artifacts(&project.repository()?, Vec::new());
    artifacts.retain(|it| !worktrees.iter().any(|own| it.belongs_to(own)));
    if artifacts.is_empty() {
        return None;
    }
    let orphans = orphans(project, artifacts);
    let more = match orphans.len() {
        0 | 1 => String::new(),
        count => format!("; and {} more: dispatch-reconcile clean --dry-run", count - 1),
    };
    orphans.first().map(|first| format!("orphaned: {}{more}", first.remedy(None)))
}

/// A line about directories with a task's files that no dispatch of this user made; `None` if there are
/// none. `list`: the tasks that are there.
pub fn foreign_line(project: &Project, list: &TaskList) -> Option<String> {
    let foreign = project.foreign(list);
    let more = match foreign.len() {
        0 | 1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let line = |first: &TaskId| {
        format!("no task: .dispatch/tasks/{first}{more} came along, was copied or is left over")
    };
    foreign.first().map(line)
}

/// The artifacts that belong to no task of the project.
pub fn orphans(project: &Project, mut artifacts: Vec<Artifact>) -> Vec<Artifact> {
    // Unreadable tasks may own any worktree, so report none.
    let TaskList { tasks, broken, .. } = project.task_list();
    let records = tasks.iter().map(Task::record).collect::<Result<Vec<_>, _>>();
    let Some(records) = records.ok().filter(|_| broken.is_empty()) else { return Vec::new() };
    artifacts.retain(|it| {
        let owned = records.iter().flatten().filter_map(|record| record.worktree.as_ref());
        let is_owned = owned.into_iter().any(|own| it.belongs_to(own));
        // Skip the worktree of a task that is being dispatched.
        let task = it.name.parse().map(|id| project.task(&id));
        !is_owned && !task.is_ok_and(|it| it.state_dir().exists() && !it.was_dispatched())
    });
    // The line about a worktree names its branch.
    let with_worktree = |it: &Artifact| it.worktree.is_some().then(|| it.name.clone());
    let named: Vec<String> = artifacts.iter().filter_map(with_worktree).collect();
    artifacts.retain(|it| it.worktree.is_some() || !named.contains(&it.name));
    artifacts
}
