//! The tasks of a project for `watch` and `status --follow`, each reread when it has changed.

use std::collections::BTreeMap;
use std::io::{Write, stdout};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::reconcile::line::one_line;
use crate::cli::reconcile::status::broken_line;
use crate::cli::reconcile::table::TaskRow;
use crate::domain::TaskId;
use crate::exit::Exit;
use crate::process::{Identity, Life, Watch, Woken};
use crate::project::{Broken, Project, TaskList};
use crate::repair::repair;
use crate::task::{State, Task};
use crate::wait::{SAFETY_SCAN, Snapshot, state_directories, state_paths, watch_undispatched};

/// All tasks of a project as they were read last.
struct WatchedTasks {
    project: Project,
    cached: BTreeMap<TaskId, CachedRow>,
    /// A line for each entry that is in the place of a task and is none.
    broken: Vec<String>,
    /// `true` if the directory of all tasks was watched at the last look.
    watched: bool,
}

struct CachedRow {
    snapshot: Snapshot,
    processes: Vec<Identity>,
    /// The row, or the line that says why the task cannot be read.
    row: Result<TaskRow, String>,
}

impl CachedRow {
    fn is_current(&self) -> bool {
        self.snapshot.is_current() && self.processes.iter().all(|it| it.life() == Life::Alive)
    }

    /// Returns true if the task may change without a new worker.
    fn is_open(&self) -> bool {
        let waits = |row: &TaskRow| row.state.is_waiting();
        !self.processes.is_empty() || self.row.as_ref().map_or(true, waits)
    }
}

impl WatchedTasks {
    fn new(project: Project) -> Self {
        Self { project, cached: BTreeMap::new(), broken: Vec::new(), watched: false }
    }

    /// Rereads what has changed, and says whether anything had. Without an event, only open tasks
    /// are looked at, as long as events can be had.
    fn refresh(&mut self, watch: &mut Watch, event: bool) -> bool {
        let directory = self.project.state_dir().to_path_buf();
        let watched = std::mem::replace(&mut self.watched, watch.add_directory(&directory));
        if !event && watched && self.watched {
            let stale = |row: &CachedRow| row.is_open() && !row.is_current();
            let stale = self.cached.iter().filter(|(_, row)| stale(row));
            let stale: Vec<Task> = stale.map(|(id, _)| self.project.task(id)).collect();
            stale.iter().for_each(|task| self.read(task, watch));
            return !stale.is_empty();
        }
        watch_undispatched(&directory, watch);
        let TaskList { mut tasks, broken } = self.project.task_list();
        let broken = broken.iter().map(|it| one_line(&broken_line(it))).collect();
        let other = std::mem::replace(&mut self.broken, broken) != self.broken;
        let before = self.cached.len();
        self.cached.retain(|id, _| tasks.binary_search_by(|task| task.id().cmp(id)).is_ok());
        let gone = self.cached.len() < before;
        tasks.retain(|task| !self.cached.get(task.id()).is_some_and(CachedRow::is_current));
        tasks.iter().for_each(|task| self.read(task, watch));
        other || gone || !tasks.is_empty()
    }

    fn read(&mut self, task: &Task, watch: &mut Watch) {
        // Watch before reading, so that no change falls in between.
        for path in state_directories(task) {
            watch.add_directory(&path);
        }
        let snapshot = Snapshot::take(state_paths(task));
        let view = task.view();
        let processes = view.as_ref().map_or_else(|_| Vec::new(), |view| view.processes.clone());
        for process in &processes {
            watch.add_process(process);
        }
        let row = view
            .map(|view| TaskRow::new(&view))
            .map_err(|error| one_line(&broken_line(&Broken::from_task(task, error))));
        self.cached.insert(task.id().clone(), CachedRow { snapshot, processes, row });
    }

    /// The rows, most urgent first, and a line for each task that cannot be read.
    fn rows(&self) -> (Vec<TaskRow>, Vec<String>) {
        let rows = self.cached.values().filter_map(|cached| cached.row.as_ref().ok());
        let mut rows: Vec<TaskRow> = rows.cloned().collect();
        rows.sort_by_key(|row| row.state);
        let broken = self.cached.values().filter_map(|cached| cached.row.as_ref().err());
        (rows, self.broken.iter().chain(broken).cloned().collect())
    }
}

/// Tells of the tasks at once, and again whenever they have changed, until a signal comes or nobody
/// listens any more.
pub(super) fn tell_of_changes(
    project: &Project,
    mut watch: Watch,
    mut tell: impl FnMut(Vec<TaskRow>, Vec<String>) -> bool,
) -> Result<()> {
    let mut tasks = WatchedTasks::new(project.clone());
    let (mut event, mut told) = (true, false);
    loop {
        if tasks.refresh(&mut watch, event) || !told {
            let (rows, broken) = tasks.rows();
            told = tell(rows, broken);
            if !told {
                return Ok(());
            }
        }
        event = match watch.wait_for_event(SAFETY_SCAN)? {
            Woken::Signal(_) => return Ok(()),
            Woken::Changed => true,
            Woken::Timeout => false,
        };
    }
}

/// Prints the tasks that are not done, and then each task that changes, until a signal comes.
pub(super) fn follow(project: &Project) -> Result<Exit> {
    let watch = Watch::new(&[SIGINT, SIGTERM, SIGHUP])?;
    repair(project, project.task_list());
    let mut printed: Option<Vec<String>> = None;
    tell_of_changes(project, watch, |rows, broken| {
        let is_new = |line: &String| !printed.iter().flatten().any(|it| it == line);
        let open = rows.iter().filter(|row| printed.is_some() || row.state != State::Done);
        let lines = broken.iter().cloned().chain(open.map(TaskRow::line));
        // A reader that has left is no error.
        let is_read = lines.filter(is_new).all(|line| writeln!(stdout(), "{line}").is_ok());
        printed = Some(rows.iter().map(TaskRow::line).chain(broken).collect());
        is_read
    })?;
    Ok(Exit::Ok)
}
