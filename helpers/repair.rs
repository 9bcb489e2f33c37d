//! Repairs after crashes. `brief` and `status` repair before they show anything, `watch` after it has
//! drawn the tasks.
//!
//! Invariant: a second call finds nothing to repair.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::dirs;
use crate::domain::TaskId;
use crate::files;
use crate::git::{self, Artifact};
use crate::process::TASK_DIR;
use crate::project::{Broken, Project, TaskList};
use crate::task::{Record, State, Task, View};
use crate::worker::supervise;

/// How far a file system's clock may lag behind ours.
const CLOCK_SLACK: Duration = Duration::from_secs(2);

/// Tasks after repairs.
#[derive(Debug, Default)]
pub struct Repaired {
    /// The readable tasks.
    pub views: Vec<View>,
    /// The unreadable entries.
    pub broken: Vec<Broken>,
    /// The repairs.
    pub repairs: Repairs,
}

/// The repairs, for one line of output.
#[derive(Debug, Default)]
pub struct Repairs {
    /// Each repair with its tasks, in order.
    tasks: Vec<(String, Vec<TaskId>)>,
    /// How many temporary files were removed.
    temporary: usize,
}

impl Repairs {
    /// Notes what was done to a task: adopted, restarted, or marked with a label.
    pub fn note(&mut self, task: &TaskId, what: &str) {
        match self.tasks.iter_mut().find(|(other, _)| other == what) {
            Some((_, tasks)) => tasks.push(task.clone()),
            None => self.tasks.push((what.into(), vec![task.clone()])),
        }
    }

    /// Whether there was nothing to repair.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.temporary == 0
    }
}

impl fmt::Display for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (what, tasks) in &self.tasks {
            parts.push(match tasks.as_slice() {
                [first, second] => format!("{first} and {second} {what}"),
                [first, others @ ..] if !others.is_empty() => {
                    format!("{first} and {} more {what}", others.len())
                }
                only => format!("{} {what}", only[0]),
            });
        }
        match self.temporary {
            0 => {}
            1 => parts.push("1 temporary file removed".into()),
            count => parts.push(format!("{count} temporary files removed")),
        }
        write!(f, "{}", parts.join("; "))
    }
}

/// Reads a project's tasks and repairs what crashes left: records ends that nobody saw, restarts lost
/// supervisors, resumes tasks with an unread answer, removes temporary files of dead writers. Inside
/// a worker it only reads.
pub fn repair(project: &Project, found: TaskList) -> Repaired {
    let mut repaired = Repaired { broken: found.broken, ..Repaired::default() };
    for task in &found.tasks {
        match task.view() {
            Ok(view) => repaired.views.push(view),
            Err(error) => repaired.broken.push(Broken::from_task(task, error)),
        }
    }
    if std::env::var_os(TASK_DIR).is_none() {
        let Repaired { views, repairs, .. } = &mut repaired;
        for view in views.iter_mut() {
            repair_end(view, repairs);
        }
        for started in supervise::restart_abandoned(project, views) {
            repairs.note(&started, "restarted");
            refresh(views.iter_mut().find(|view| *view.task.id() == started));
        }
        repairs.temporary = remove_leftovers(project, views);
    }
    repaired
}

/// Records an unseen end, and resumes a task whose answer came after it.
fn repair_end(view: &mut View, repairs: &mut Repairs) {
    // A failure to record comes back at the next look.
    if supervise::record_unknown_end(view).unwrap_or(false) {
        refresh(Some(view));
        repairs.note(view.task.id(), &format!("marked {}", view.label()));
    }
    if supervise::resume_if_answered(view) {
        repairs.note(view.task.id(), "restarted");
        refresh(Some(view));
    }
}

fn refresh(view: Option<&mut View>) {
    if let Some(view) = view
        && let Ok(now) = view.task.view()
    {
        *view = now;
    }
}

/// Removes temporary files of dead writers from directories that changed since the last sweep, so that
/// a thousand tasks are not searched at every look.
fn remove_leftovers(project: &Project, views: &[View]) -> usize {
    let stamp = project.sweep_time_path();
    let now = SystemTime::now();
    let since = std::fs::symlink_metadata(&stamp).and_then(|it| it.modified()).ok();
    let changed = |directory: &PathBuf| {
        let modified = std::fs::symlink_metadata(directory).and_then(|it| it.modified());
        modified.is_ok_and(|modified| since.is_none_or(|since| modified >= since))
    };
    let own = dirs::dispatch_home().into_iter().chain(project.helper_directories());
    // Leftovers in finished tasks disturb nobody.
    let of_tasks = views.iter().filter(|view| view.state != State::Done).flat_map(directories);
    let (mut removed, mut left) = (0, 0);
    for directory in own.chain(of_tasks).filter(changed) {
        let (gone, stays) = files::remove_leftovers(&directory);
        removed += gone;
        left += stays;
    }
    // Sweep again while files are left, or if the stamp cannot be written.
    if left == 0 && project.tasks_dir().is_dir() {
        let _ = files::touch(&stamp, now - CLOCK_SLACK);
    }
    removed
}

/// A line about worktrees and branches of deleted tasks. They are only named, because only a person
/// knows whether the work is still wanted.
pub fn orphans(project: &Project, views: &[View]) -> Option<String> {
    let mut made = git::artifacts(&project.repository()?);
    made.retain(|it| !views.iter().any(|view| is_known(it, &view.record)));
    if made.is_empty() {
        return None;
    }
    let orphans = without_task(project, made);
    let more = match orphans.len() {
        0 | 1 => String::new(),
        count => format!("; and {} more: dispatch-reconcile clean --dry-run", count - 1),
    };
    orphans.first().map(|first| format!("orphaned, of no task here: {}{more}", first.remedy()))
}

/// The artifacts that belong to no task of the project.
pub fn without_task(project: &Project, mut made: Vec<Artifact>) -> Vec<Artifact> {
    // Unreadable tasks may own any worktree, so report none.
    let TaskList { tasks, broken } = project.task_list();
    let records = tasks.iter().map(Task::record).collect::<Result<Vec<_>, _>>();
    let Some(records) = records.ok().filter(|_| broken.is_empty()) else { return Vec::new() };
    made.retain(|it| !records.iter().flatten().any(|record| is_known(it, record)));
    // Skip the worktree of a task that is being dispatched.
    let plan = |it: &Artifact| project.tasks_dir().join(it.name()).join("plan.md");
    let begins =
        |it: &Artifact| plan(it).exists() && !plan(it).with_file_name("task.yaml").exists();
    made.retain(|it| !begins(it));
    // Report a worktree's branch with the worktree only.
    let worktrees: Vec<_> = made.iter().filter_map(Artifact::checked_out).collect();
    made.retain(|it| !matches!(it, Artifact::Branch(branch) if worktrees.contains(branch)));
    made
}

fn is_known(made: &Artifact, record: &Record) -> bool {
    record.worktree.iter().any(|own| made.belongs_to(own))
}

/// The directories of a task that helpers write into.
fn directories(view: &View) -> impl Iterator<Item = PathBuf> {
    let task = &view.task;
    let attempt = view.attempt.iter().map(|attempt| attempt.directory().to_path_buf());
    task.helper_directories().into_iter().chain(attempt)
}
