//! The index of frozen ends: what lists show of tasks that ended a while ago, so that they need not read them.
//!
//! Invariant: an entry counts only while the directories that it was made from are unchanged. The index
//! can be deleted at any time; lists are then slower, and the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::fstatat;
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Route, TaskId, Worktree};
use crate::files;
use crate::process::TASK_DIR;
use crate::project::Project;
use crate::task::{State, Task, View};

/// How old a change must be: the time stamps of two changes at the same moment may be equal.
const SETTLED: Duration = Duration::from_secs(2);

/// A task that ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct End {
    /// The state at the end.
    pub state: State,
    /// The line of `status`; empty for a task that was done long ago.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub line: String,
    /// The task's worktree, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worktree: Option<Worktree>,
    /// The number of the last attempt; `None` without one, and for a task that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    stamps: Vec<i64>,
}

/// The index of one project, in the file `.ends` of its state directory.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Ends {
    /// The program and the config that the lines were made with.
    made_with: String,
    pub(super) ends: BTreeMap<String, End>,
    #[serde(skip)]
    file: PathBuf,
    /// The directory of the file, open: the paths of many tasks below it are long.
    #[serde(skip)]
    tasks: Option<File>,
    #[serde(skip)]
    is_changed: bool,
}

impl Ends {
    /// The index of a project; empty where none is kept: in a worker, and for a project that is elsewhere
    /// or was moved or copied.
    pub fn load(project: &Project) -> Self {
        if project.is_elsewhere || !project.stands() || std::env::var_os(TASK_DIR).is_some() {
            return Self::default();
        }
        let program = std::env::current_exe().unwrap_or_default();
        let config = dirs::config_path().unwrap_or_default();
        let stamps = [&program, &config].map(|it| stamp(AT_FDCWD, it));
        let made_with = format!("{} {stamps:?}", program.display());
        let file = project.state_dir.join(".ends");
        let read = || serde_json::from_slice(&files::read_foreign(&file).ok()??).ok();
        let ends: Option<Self> = read();
        let known = ends.filter(|ends| ends.made_with == made_with).unwrap_or_default();
        Self { made_with, tasks: File::open(&project.state_dir).ok(), file, ..known }
    }

    /// The task's entry, if it still holds.
    pub fn get(&self, task: &Task) -> Option<&End> {
        let end = self.ends.get(task.id().as_str())?;
        (self.stamps(task.id(), end.attempt)? == end.stamps).then_some(end)
    }

    /// Makes an entry of a task that ended, if it stays so until a person or another attempt changes it.
    /// `before`: a time before it was read. `line`: makes its line in `status`.
    pub fn add(&mut self, view: &View, before: SystemTime, line: impl FnOnce() -> String) {
        let state = view.state;
        let is_over = state.has_work_left() || state == State::Stopped;
        let is_frozen = view.record.route == Route::Cli && view.exit.is_some();
        if is_over && is_frozen && !view.unread_answer && !view.is_between_attempts() {
            let worktree = view.record.worktree.clone();
            let attempt = view.attempt.as_ref().map(|it| it.number);
            let end = End { state, line: line(), worktree, attempt, stamps: Vec::new() };
            self.insert(&view.task, before, end);
        }
    }

    /// Makes an entry of a task that is marked as done.
    pub fn add_done(&mut self, task: &Task, before: SystemTime) {
        let record = self.tasks.as_ref().and_then(|_| task.record().ok()?);
        let Some(worktree) = record.map(|record| record.worktree) else { return };
        let (state, line, stamps) = (State::Done, String::new(), Vec::new());
        self.insert(task, before, End { state, line, worktree, attempt: None, stamps });
    }

    fn insert(&mut self, task: &Task, before: SystemTime, end: End) {
        let Some(stamps) = self.stamps(task.id(), end.attempt) else { return };
        let settled = before.checked_sub(SETTLED).map_or(0, nanoseconds);
        if stamps.iter().all(|stamp| *stamp < settled) {
            self.ends.insert(task.id().to_string(), End { stamps, ..end });
            self.is_changed = true;
        }
    }

    /// The stamps of the directories whose files decide the state of a task that ended. A further attempt
    /// of a task that is done begins with a change of the first.
    fn stamps(&self, id: &TaskId, attempt: Option<u32>) -> Option<Vec<i64>> {
        let tasks = self.tasks.as_ref()?;
        let below = |rest: &str| stamp(tasks, Path::new(&format!("{id}{rest}")));
        let mut stamps = vec![below("")];
        if let Some(number) = attempt {
            let attempt = format!("/attempts/{number}");
            stamps.extend(["/attempts", &attempt, "/answers"].map(below));
        }
        Some(stamps)
    }

    /// Saves the index, if there are new entries. Ignores a failure: the next call makes them again.
    pub fn save(mut self) {
        if !self.is_changed {
            return;
        }
        let tasks = self.file.with_file_name("");
        self.ends.retain(|name, _| tasks.join(name).exists());
        if let Ok(text) = serde_json::to_vec(&self) {
            let _ = files::publish_copy(&self.file, &text);
        }
    }
}

/// The time of the last change of a file or directory, in nanoseconds; 0 if there is none.
#[allow(clippy::useless_conversion, reason = "the fields are smaller on some systems")]
fn stamp(directory: impl AsFd, path: &Path) -> i64 {
    let Ok(meta) = fstatat(directory, path, AtFlags::AT_SYMLINK_NOFOLLOW) else { return 0 };
    let seconds = i64::from(meta.st_mtime).saturating_mul(1_000_000_000);
    seconds.saturating_add(meta.st_mtime_nsec.into())
}

fn nanoseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().try_into().unwrap_or(i64::MAX)
}
