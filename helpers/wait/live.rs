//! The tasks that a waiter watches. Each watch belongs to a task, and what fired says which task is
//! reread. A look every second finds what the events missed.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::domain::TaskId;
use crate::ipc::second_look;
use crate::news::host_report_time_left;
use crate::process::{Identity, Source, Watch, Woken, is_remote};
use crate::project::{Broken, Project, TaskList};
use crate::task::{HostIndex, Reason, Task, View};
use crate::worker::supervise;

/// How often a waiter looks whether its watches are still those of the tasks. Without events, the look
/// rereads all tasks.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// After how many looks one task is reread, in rotation: a file may change without an event, for example by
/// a program that keeps it open.
const LOOKS_FOR_A_READ: usize = 5;

/// The tasks of a project, or of a host in all projects, each reread when something of it changed.
pub struct LiveTasks {
    project: Project,
    watch: Watch,
    /// The tasks to read; all if empty.
    pub(super) only: Vec<TaskId>,
    /// If set, only tasks that this host owns are read.
    pub(super) host: Option<Identity>,
    /// `true` if the host's tasks in other projects are read too.
    pub(super) is_hook: bool,
    /// The host's index, as it was last read.
    index: BTreeMap<PathBuf, bool>,
    /// [`HostIndex::can_continue`], once somebody asked.
    can_continue: OnceCell<bool>,
    /// Each task, by its state directory: two projects may have tasks of one name.
    tasks: BTreeMap<PathBuf, LiveTask>,
    /// The entries that should be tasks and cannot be read.
    broken: Vec<Broken>,
    /// The tasks to read next.
    due: BTreeSet<PathBuf>,
    /// `true` if the list of tasks is to be read next.
    is_list_due: bool,
    /// `true` if events may be missing, so that every look rereads all tasks.
    pub(super) polls: bool,
    looks: usize,
    last_look: Instant,
}

/// A task as it was last read.
struct LiveTask {
    task: Task,
    /// `None` if the task belongs to another host.
    view: Option<Result<View, Broken>>,
    /// When the task is reread without an event.
    again: Option<Instant>,
    /// `true` if events are ignored until then: a read that fails may itself cause some.
    is_deferred: bool,
    /// `true` if this read failed and the one before found that the task may change by itself.
    is_missed: bool,
}

impl LiveTasks {
    /// The tasks in `only`, or all if it is empty, and of these the host's if there is one.
    pub fn new(project: Project, only: Vec<TaskId>, host: Option<Identity>) -> Result<Self> {
        let mut watch = Watch::new(&[SIGINT, SIGTERM, SIGHUP])?;
        host.iter().for_each(|host| {
            watch.add_process(host);
        });
        Ok(Self {
            project,
            polls: !watch.sees_files(),
            watch,
            only,
            host,
            is_hook: false,
            index: BTreeMap::new(),
            can_continue: OnceCell::new(),
            tasks: BTreeMap::new(),
            broken: Vec::new(),
            due: BTreeSet::new(),
            is_list_due: true,
            looks: 0,
            last_look: Instant::now(),
        })
    }

    /// The states of the readable tasks.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        self.tasks.values().filter_map(|task| task.view.as_ref()?.as_ref().ok())
    }

    /// A task as it was last read; `None` if there is none, or another host's.
    pub fn get(&self, state_dir: &Path) -> Option<&Result<View, Broken>> {
        self.tasks.get(state_dir)?.view.as_ref()
    }

    pub(super) fn view_mut(&mut self, state_dir: &Path) -> Option<&mut View> {
        self.tasks.get_mut(state_dir)?.view.as_mut()?.as_mut().ok()
    }

    /// How many tasks could not be read once that may change by themselves.
    pub(super) fn missed(&self) -> usize {
        self.tasks.values().filter(|task| task.is_missed).count()
    }

    /// Returns true if the hook's host has heard of the end of a task that can be continued.
    pub(super) fn can_continue(&self) -> bool {
        self.is_hook && *self.can_continue.get_or_init(|| HostIndex::can_continue(&self.index))
    }

    /// The entries that should be tasks and cannot be read.
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// Makes the next refresh read everything.
    pub(super) fn forget(&mut self) {
        self.is_list_due = true;
        self.due.extend(self.tasks.keys().cloned());
    }

    /// Rereads a task at the next look, whatever event comes before if it `is_deferred`.
    pub(super) fn read_again(&mut self, state_dir: &Path, is_deferred: bool) {
        if let Some(task) = self.tasks.get_mut(state_dir) {
            let sooner = task.again.filter(|_| !is_deferred);
            task.again = sooner.or_else(|| Some(Instant::now() + LOOK));
            task.is_deferred |= is_deferred;
        }
    }

    /// Waits until something changed, or it is time for a look, for at most `limit`. Returns true
    /// if a signal came.
    ///
    /// # Errors
    /// A failed wait for events.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        let again = self.tasks.values().filter_map(|task| task.again);
        let until = again.fold(self.last_look + LOOK, Instant::min);
        let left = until.saturating_duration_since(Instant::now());
        match self.watch.wait_for_event(left.min(limit))? {
            Woken::Signal(_) => return Ok(true),
            Woken::Changed(sources) => sources.into_iter().for_each(|source| self.mark(source)),
            Woken::Timeout => {}
        }
        Ok(false)
    }

    /// Makes the task due that the source belongs to.
    fn mark(&mut self, source: Source) {
        match source {
            Source::Any => self.forget(),
            Source::Path(path) => {
                let is_of = |it: &&LiveTask| {
                    let sides = [it.task.state_dir(), it.task.side().directory()];
                    sides.into_iter().any(|side| path.starts_with(side))
                };
                match self.tasks.values().find(is_of) {
                    Some(task) if task.is_deferred => {}
                    Some(task) => drop(self.due.insert(task.task.state_dir().into())),
                    None => self.is_list_due = true,
                }
            }
            Source::Process(process) => {
                let of_task = |view: &&View| view.processes.contains(&process);
                let due = self.views().filter(of_task).map(|view| view.task.state_dir().into());
                self.due.extend(due.collect::<Vec<_>>());
            }
        }
    }

    /// Reads the tasks that are due, and records ends that nobody saw. Returns the state directories of
    /// the tasks that were read.
    pub fn refresh(&mut self) -> Vec<PathBuf> {
        self.mark_by_time();
        let gone = |state_dir: &PathBuf| {
            let Some(LiveTask { task, .. }) = self.tasks.get(state_dir) else { return false };
            let has_root = task.root().is_some_and(Path::exists);
            !has_root || !task.was_dispatched() || task.is_deleted()
        };
        if self.is_list_due || self.due.iter().any(gone) {
            self.read_list();
        }
        let mut read = Vec::new();
        for state_dir in std::mem::take(&mut self.due) {
            if let Some(before) = self.tasks.get(&state_dir) {
                let may_change = matches!(&before.view, Some(Ok(view)) if may_change(view));
                let mut task = self.read(before.task.clone());
                task.is_missed = may_change && matches!(task.view, Some(Err(_)));
                self.tasks.insert(state_dir.clone(), task);
                read.push(state_dir);
            }
        }
        read
    }

    /// Makes those tasks due that are reread without an event.
    fn mark_by_time(&mut self) {
        let now = Instant::now();
        let again = |task: &LiveTask| task.again.is_some_and(|again| again <= now);
        let again = self.tasks.iter().filter(|(_, task)| again(task)).map(|(it, _)| it.clone());
        self.due.extend(again.collect::<Vec<_>>());
        if now < self.last_look + LOOK {
            return;
        }
        (self.last_look, self.looks) = (now, self.looks.wrapping_add(1));
        if self.polls {
            return self.forget();
        }
        self.is_list_due |= !self.watch.has_directory(&self.project.state_dir);
        let open = self.views().filter(|view| may_change(view)).map(|view| view.task.clone());
        let open: Vec<Task> = open.collect();
        let turn = self.looks / LOOKS_FOR_A_READ % open.len().max(1);
        for (number, task) in open.iter().enumerate() {
            let is_next = number == turn && self.looks.is_multiple_of(LOOKS_FOR_A_READ);
            let mut both = [task.state_dir(), task.side().directory()].into_iter();
            if is_next || !both.all(|directory| self.watch.has_directory(directory)) {
                self.due.insert(task.state_dir().into());
            }
        }
    }

    /// Reads which tasks there are. New ones are due.
    fn read_list(&mut self) {
        self.is_list_due = false;
        let state_dir = self.project.state_dir.clone();
        self.polls |= [&state_dir, &self.project.tasks_dir()].into_iter().any(|it| is_remote(it));
        self.watch.add_directory(&state_dir);
        // The record of a task that is not dispatched yet will change no other directory that is watched.
        for entry in fs::read_dir(&state_dir).into_iter().flatten().flatten() {
            if !entry.path().join("record.yaml").is_file() {
                self.watch.add_directory(&entry.path());
            }
        }
        let TaskList { mut tasks, broken, .. } = self.project.task_list();
        tasks.retain(|task| self.only.is_empty() || self.only.contains(task.id()));
        self.broken = broken;
        // A directory that cannot be read now, as on a network file system, says nothing of its tasks.
        if self.broken.iter().any(|it| it.directory == state_dir) {
            self.is_list_due = true;
            return;
        }
        if let Some(host) = &self.host {
            let index = self.project.index(host);
            self.watch.add_directory(index.directory());
            (self.index, self.can_continue) = (index.read(), OnceCell::new());
            tasks.retain(|task| self.index.get(task.state_dir()) != Some(&true));
            if self.is_hook {
                let elsewhere = self.project.tasks_elsewhere(&self.index);
                self.polls |= elsewhere.iter().any(|task| is_remote(task.side().directory()));
                tasks.extend(elsewhere);
            }
        }
        let mut earlier = std::mem::take(&mut self.tasks);
        for task in tasks {
            let state_dir = task.state_dir().to_path_buf();
            let known = earlier.remove(&state_dir).unwrap_or_else(|| {
                self.due.insert(state_dir.clone());
                LiveTask { task, view: None, again: None, is_deferred: false, is_missed: false }
            });
            self.tasks.insert(state_dir, known);
        }
    }

    /// Reads a task. An end that nobody saw is recorded before it becomes news, because the log may
    /// explain it.
    fn read(&mut self, task: Task) -> LiveTask {
        // Watch before reading, so that no change falls in between.
        self.watch(task.state_dir());
        let is_foreign = self.host.is_some()
            && matches!(task.record(), Ok(Some(record)) if record.owner != self.host);
        if !is_foreign {
            let (ipc, side) = (task.side().ipc(), task.side());
            let attempt = task.last_attempt();
            [ipc.directory(), side.directory(), &side.tells_dir(), &task.attempts_dir()]
                .into_iter()
                .chain(attempt.as_ref().map(|attempt| attempt.directory()))
                .for_each(|directory| self.watch(directory));
        }
        let read = || task.view().map_err(|error| Broken::from_task(&task, error));
        let mut view = read();
        let recorded = view.as_ref().map_or(Ok(false), supervise::record_unknown_end);
        if matches!(recorded, Ok(true)) {
            view = read();
        }
        // A supervisor that was killed is replaced while the worker runs.
        if let Ok(found) = &view
            && supervise::is_abandoned(found)
            && let Some(project) = Project::of_task(&task)
            && project.stands()
            && !supervise::restart_abandoned(&project, std::slice::from_ref(found)).is_empty()
        {
            view = read();
        }
        let is_deferred = view.is_err() || recorded.is_err();
        let mut again = is_deferred.then_some(LOOK);
        if let Ok(view) = &view
            && !is_foreign
        {
            let mut is_blind = false;
            view.processes.iter().for_each(|it| is_blind |= !self.watch.add_process(it));
            let times = [again, is_blind.then_some(LOOK), time_to_read(view)];
            again = times.into_iter().flatten().min();
        }
        let again = again.map(|left| Instant::now() + left);
        let view = Some(view).filter(|_| !is_foreign);
        LiveTask { task, view, again, is_deferred, is_missed: false }
    }

    fn watch(&mut self, directory: &Path) {
        self.polls |= !self.watch.add_directory(directory) && directory.is_dir();
    }
}

/// Returns true if the task's state may change without a person.
fn may_change(view: &View) -> bool {
    !view.processes.is_empty() || view.state.is_waiting()
}

/// The time after which the task has to be read again because its news depend on the clock.
fn time_to_read(view: &View) -> Option<Duration> {
    let is_growing = view.questions.iter().any(|(_, found)| !found.is_whole);
    let is_plan_edited = view.is_alive()
        && !view.plan.lost().is_empty()
        && !matches!(view.reason, Reason::ItemsLost(_));
    let changes_soon = is_plan_edited || view.resumes_soon() || view.is_between_attempts();
    let times =
        [is_growing.then(second_look), changes_soon.then_some(LOOK), host_report_time_left(view)];
    times.into_iter().flatten().min()
}
