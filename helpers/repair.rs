//! What a crash left is mended by whoever looks first: `brief` and `status` do this before they show
//! anything, `watch` when it has drawn the tasks. It changes nothing else, and a second call finds
//! nothing to mend.

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

/// Tasks as they are when what a crash left is mended.
#[derive(Debug, Default)]
pub struct Repaired {
    /// Those that can be read.
    pub views: Vec<View>,
    /// The others.
    pub broken: Vec<Broken>,
    /// What was mended.
    pub mended: Mended,
}

/// What was mended, to say it in one line; empty if nothing was.
#[derive(Debug, Default)]
pub struct Mended {
    /// What became of tasks, in the order in which it happened.
    tasks: Vec<(String, Vec<TaskId>)>,
    /// How many temporary files went.
    temporary: usize,
}

impl Mended {
    /// Notes that a task was adopted, restarted, or marked as what it is.
    pub fn note(&mut self, task: &TaskId, what: &str) {
        match self.tasks.iter_mut().find(|(other, _)| other == what) {
            Some((_, tasks)) => tasks.push(task.clone()),
            None => self.tasks.push((what.into(), vec![task.clone()])),
        }
    }

    /// Whether there was nothing to mend.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.temporary == 0
    }
}

impl fmt::Display for Mended {
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

/// Reads what was found in a project and mends what a crash left of them: an end that nobody saw is
/// recorded, what waits without a supervisor or has an answer that no worker took is started again,
/// and temporary files whose writer is dead go. A worker mends nothing.
pub fn repair(project: &Project, found: TaskList) -> Repaired {
    let mut repaired = Repaired { broken: found.broken, ..Repaired::default() };
    for task in &found.tasks {
        match task.view() {
            Ok(view) => repaired.views.push(view),
            Err(error) => repaired.broken.push(Broken::of(task, error)),
        }
    }
    if std::env::var_os(TASK_DIR).is_none() {
        let Repaired { views, mended, .. } = &mut repaired;
        for view in views.iter_mut() {
            mend_end(view, mended);
        }
        for started in supervise::restart_abandoned(project, views) {
            mended.note(&started, "restarted");
            refresh(views.iter_mut().find(|view| *view.task.id() == started));
        }
        mended.temporary = remove_leftovers(project, views);
    }
    repaired
}

/// Records an end that nobody saw, and lets a task go on whose answer came after it.
fn mend_end(view: &mut View, mended: &mut Mended) {
    // What cannot be recorded now is seen again the next time.
    if supervise::record_unknown_end(view).unwrap_or(false) {
        refresh(Some(view));
        mended.note(view.task.id(), &format!("marked {}", view.label()));
    }
    if supervise::resume_if_answered(view) {
        mended.note(view.task.id(), "restarted");
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

/// Removes temporary files whose writer is dead from every directory that changed since the last
/// time: else a thousand tasks would be read through at every look.
fn remove_leftovers(project: &Project, views: &[View]) -> usize {
    let stamp = project.swept_path();
    let now = SystemTime::now();
    let since = std::fs::symlink_metadata(&stamp).and_then(|it| it.modified()).ok();
    let changed = |directory: &PathBuf| {
        let modified = std::fs::symlink_metadata(directory).and_then(|it| it.modified());
        modified.is_ok_and(|modified| since.is_none_or(|since| modified >= since))
    };
    let own = dirs::dispatch_home().into_iter().chain(project.directories());
    // What is left in one that is done disturbs nobody.
    let of_tasks = views.iter().filter(|view| view.state != State::Done).flat_map(directories);
    let (mut removed, mut left) = (0, 0);
    for directory in own.chain(of_tasks).filter(changed) {
        let (gone, stays) = files::remove_leftovers(&directory);
        removed += gone;
        left += stays;
    }
    // What is left is looked at again. Where nothing can be noted, everything is.
    if left == 0 && project.tasks_dir().is_dir() {
        let _ = files::touch(&stamp, now - CLOCK_SLACK);
    }
    removed
}

/// What dispatch made in the repository and no task of the project knows, in one line: somebody
/// deleted the tasks and not the work. Nothing here is mended, because only a person knows whether it
/// is still wanted.
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

/// Those of them that no task of the project knows.
pub fn without_task(project: &Project, mut made: Vec<Artifact>) -> Vec<Artifact> {
    // Of one that cannot be read nobody knows which is its worktree.
    let TaskList { tasks, broken } = project.found();
    let records = tasks.iter().map(Task::record).collect::<Result<Vec<_>, _>>();
    let Some(records) = records.ok().filter(|_| broken.is_empty()) else { return Vec::new() };
    made.retain(|it| !records.iter().flatten().any(|record| is_known(it, record)));
    // That of a task which is just being dispatched.
    let plan = |it: &Artifact| project.tasks_dir().join(it.name()).join("plan.md");
    let begins =
        |it: &Artifact| plan(it).exists() && !plan(it).with_file_name("task.yaml").exists();
    made.retain(|it| !begins(it));
    // A worktree's own branch is not told of a second time.
    let worktrees: Vec<_> = made.iter().filter_map(Artifact::checked_out).collect();
    made.retain(|it| !matches!(it, Artifact::Branch(branch) if worktrees.contains(branch)));
    made
}

fn is_known(made: &Artifact, record: &Record) -> bool {
    record.worktree.iter().any(|own| made.belongs_to(own))
}

/// The directories of a task that helpers write to.
fn directories(view: &View) -> impl Iterator<Item = PathBuf> {
    let task = &view.task;
    let attempt = view.attempt.iter().map(|attempt| attempt.directory().to_path_buf());
    task.directories().into_iter().chain(attempt)
}
