//! Waiting for news. Each watch belongs to a task, and what fired says which task is reread. A look
//! every second finds what the events missed.
//!
//! Invariant: an event only causes a read; the files decide what is news.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::domain::TaskId;
use crate::fault;
use crate::ipc::{Looks, second_look};
use crate::news::ledger::{self, Delivery};
use crate::news::{self, Event, host_report_time_left, is_reported_by_host};
use crate::process::{Identity, Life, Source, Watch, Woken, calling_host, is_remote};
use crate::project::{Broken, Project, TaskList};
use crate::task::{Reason, State, Task, View};
use crate::worker::supervise;

/// How often a waiter looks whether its watches are still those of the tasks. Without events, the look
/// rereads all tasks.
const LOOK: Duration = Duration::from_secs(1);

/// One in so many looks rereads a task, in rotation: a file may change without an event, for example by
/// a program that keeps it open.
const LOOKS_FOR_A_READ: usize = 5;

/// How long a batch of news may grow before it is delivered.
const LONGEST_BATCH: Duration = Duration::from_secs(3);

/// The tasks of a project, each reread when something of it changed.
pub struct LiveTasks {
    project: Project,
    watch: Watch,
    /// The tasks to read; all if empty.
    only: Vec<TaskId>,
    /// If set, only tasks that this host owns are read.
    host: Option<Identity>,
    tasks: BTreeMap<TaskId, LiveTask>,
    /// The entries in the place of a task that are none.
    broken: Vec<Broken>,
    /// The tasks to read next.
    due: BTreeSet<TaskId>,
    /// Whether the list of tasks is to be read next.
    is_list_due: bool,
    /// Whether events may be missing, so that every look rereads all tasks.
    polls: bool,
    looks: usize,
    last_look: Instant,
}

/// A task as it was last read.
struct LiveTask {
    /// `None` if the task belongs to another host.
    view: Option<Result<View, Broken>>,
    /// When the task is reread without an event.
    again: Option<Instant>,
    /// Whether events are ignored until then: a read that fails may itself cause some.
    is_deferred: bool,
}

/// The changes that a refresh found.
#[derive(Default)]
pub struct Changes {
    /// The tasks that were read.
    pub read: Vec<TaskId>,
    /// The last states of tasks that no longer exist.
    pub removed: Vec<View>,
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
    pub fn get(&self, id: &TaskId) -> Option<&Result<View, Broken>> {
        self.tasks.get(id)?.view.as_ref()
    }

    fn view_mut(&mut self, id: &TaskId) -> Option<&mut View> {
        self.tasks.get_mut(id)?.view.as_mut()?.as_mut().ok()
    }

    /// The entries in the place of a task that are none.
    pub fn broken(&self) -> &[Broken] {
        &self.broken
    }

    /// Makes the next refresh read everything.
    fn forget(&mut self) {
        self.is_list_due = true;
        self.due.extend(self.tasks.keys().cloned());
    }

    /// Rereads a task at the next look, whatever event comes before.
    fn defer(&mut self, id: &TaskId) {
        if let Some(task) = self.tasks.get_mut(id) {
            (task.again, task.is_deferred) = (Some(Instant::now() + LOOK), true);
        }
    }

    /// Waits until something changed, or it is time for a look, for at most `limit`. Returns the number
    /// of a signal that came.
    ///
    /// # Errors
    /// A failed wait for events.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let again = self.tasks.values().filter_map(|task| task.again).min();
        let until = (self.last_look + LOOK).min(again.unwrap_or(self.last_look + LOOK));
        let left = until.saturating_duration_since(Instant::now());
        match self.watch.wait_for_event(left.min(limit))? {
            Woken::Signal(signal) => return Ok(Some(signal)),
            Woken::Changed(sources) => sources.into_iter().for_each(|source| self.mark(source)),
            Woken::Timeout => {}
        }
        Ok(None)
    }

    /// Makes the task due that the source belongs to.
    fn mark(&mut self, source: Source) {
        match source {
            Source::Any => self.forget(),
            Source::Path(path) => match self.task_at(&path) {
                Some((_, task)) if task.is_deferred => {}
                Some((id, _)) => self.due.extend([id]),
                None => self.is_list_due = true,
            },
            Source::Process(process) => {
                let of_task = |view: &&View| view.processes.contains(&process);
                let ids: Vec<_> =
                    self.views().filter(of_task).map(|view| view.task.id().clone()).collect();
                self.due.extend(ids);
            }
        }
    }

    /// The task with this directory on one of its sides.
    fn task_at(&self, directory: &Path) -> Option<(TaskId, &LiveTask)> {
        let tasks_dir = self.project.tasks_dir();
        let mut tops = [self.project.state_dir(), &tasks_dir].into_iter();
        let below = tops.find_map(|top| directory.strip_prefix(top).ok())?;
        let id: TaskId = below.iter().next()?.to_str()?.parse().ok()?;
        self.tasks.get(&id).map(|task| (id, task))
    }

    /// Reads the tasks that are due, and records ends that nobody saw.
    pub fn refresh(&mut self) -> Changes {
        self.mark_by_time();
        let mut changes = Changes::default();
        let gone = |id: &TaskId| {
            let task = self.project.task(id);
            !task.was_dispatched() || task.is_deleted()
        };
        if self.is_list_due || self.due.iter().any(gone) {
            self.read_list(&mut changes);
        }
        for id in std::mem::take(&mut self.due) {
            if self.tasks.contains_key(&id) {
                let task = self.read(&self.project.task(&id));
                self.tasks.insert(id.clone(), task);
                changes.read.push(id);
            }
        }
        changes
    }

    /// Makes those tasks due that are reread without an event.
    fn mark_by_time(&mut self) {
        let now = Instant::now();
        let again = |task: &LiveTask| task.again.is_some_and(|again| again <= now);
        let again = self.tasks.iter().filter(|(_, task)| again(task)).map(|(id, _)| id.clone());
        self.due.extend(again.collect::<Vec<_>>());
        if now < self.last_look + LOOK {
            return;
        }
        (self.last_look, self.looks) = (now, self.looks.wrapping_add(1));
        if self.polls {
            return self.forget();
        }
        self.is_list_due |= !self.watch.has_directory(self.project.state_dir());
        let open = self.views().filter(|view| may_change(view)).map(|view| view.task.clone());
        let open: Vec<Task> = open.collect();
        let turn = self.looks / LOOKS_FOR_A_READ % open.len().max(1);
        for (number, task) in open.iter().enumerate() {
            let is_next = number == turn && self.looks.is_multiple_of(LOOKS_FOR_A_READ);
            let mut both = [task.state_dir(), task.side().directory()].into_iter();
            if is_next || !both.all(|directory| self.watch.has_directory(directory)) {
                self.due.insert(task.id().clone());
            }
        }
    }

    /// Reads which tasks there are. New ones are due.
    fn read_list(&mut self, changes: &mut Changes) {
        self.is_list_due = false;
        let state_dir = self.project.state_dir().to_path_buf();
        self.polls |= [&state_dir, &self.project.tasks_dir()].into_iter().any(|it| is_remote(it));
        self.watch.add_directory(&state_dir);
        // The record of a task that is not dispatched yet will change no other directory that is watched.
        for entry in fs::read_dir(&state_dir).into_iter().flatten().flatten() {
            if !entry.path().join("record.yaml").is_file() {
                self.watch.add_directory(&entry.path());
            }
        }
        let TaskList { mut tasks, broken } = self.project.task_list();
        tasks.retain(|task| self.only.is_empty() || self.only.contains(task.id()));
        self.broken = broken;
        let mut earlier = std::mem::take(&mut self.tasks);
        for task in tasks {
            let known = earlier.remove(task.id()).unwrap_or_else(|| {
                self.due.insert(task.id().clone());
                LiveTask { view: None, again: None, is_deferred: false }
            });
            self.tasks.insert(task.id().clone(), known);
        }
        let removed = earlier.into_values().filter_map(|task| task.view?.ok());
        changes.removed.extend(removed);
    }

    /// Reads a task. An end that nobody saw is recorded before it becomes news, because the log may
    /// explain it.
    fn read(&mut self, task: &Task) -> LiveTask {
        // Watch before reading, so that no change falls in between.
        self.watch(task.state_dir());
        let is_foreign = self.host.is_some()
            && matches!(task.record(), Ok(Some(record)) if record.owner != self.host);
        if !is_foreign {
            directories(task).for_each(|directory| self.watch(&directory));
        }
        let read = || task.view().map_err(|error| Broken::from_task(task, error));
        let mut view = read();
        let recorded = view.as_ref().map_or(Ok(false), supervise::record_unknown_end);
        if matches!(recorded, Ok(true)) {
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
        LiveTask { view: Some(view).filter(|_| !is_foreign), again, is_deferred }
    }

    fn watch(&mut self, directory: &Path) {
        self.polls |= !self.watch.add_directory(directory) && directory.is_dir();
    }
}

/// The directories whose entries decide a task's state, but the first: the person's side.
fn directories(task: &Task) -> impl Iterator<Item = PathBuf> {
    let (side, attempt) = (task.side(), task.last_attempt());
    let attempt = attempt.map(|attempt| attempt.directory().to_path_buf());
    [
        side.ipc().directory().to_path_buf(),
        side.directory().to_path_buf(),
        side.tells_dir(),
        task.attempts_dir(),
    ]
    .into_iter()
    .chain(attempt)
}

/// Whether the task's state may change without a person.
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

/// A process's wait for news of a project's tasks.
pub struct Waiter {
    tasks: LiveTasks,
    /// The host that reads this process's output.
    listener: Option<Identity>,
    /// The questions that are being written.
    growing: Looks,
    /// When the last task disappeared that could have brought news.
    disappeared: Option<Instant>,
    /// Whether tasks count as active that a person can continue.
    waits_for_person: bool,
}

/// The end of a wait.
pub enum WaitOutcome {
    /// News came and is already recorded as delivered.
    News(Vec<Event>),
    /// The time limit passed while this many tasks were running.
    Timeout(usize),
    /// No task can bring news any more.
    NothingActive,
    /// This process got the signal with this number.
    Signal(i32),
    /// The host's process died.
    HostDied,
}

impl Waiter {
    /// A waiter for the tasks in `only`, or for all if it is empty. With a host, only for tasks that it
    /// owns, without what it reports itself. From now on, SIGINT, SIGTERM and SIGHUP only end a wait.
    ///
    /// # Errors
    /// The system has no event queue.
    pub fn new(project: Project, only: Vec<TaskId>, host: Option<Identity>) -> Result<Self> {
        let (tasks, listener) = (LiveTasks::new(project, only, host)?, calling_host());
        let growing = Looks::default();
        Ok(Self { tasks, listener, growing, disappeared: None, waits_for_person: false })
    }

    /// Also waits while a task is blocked, failed or incomplete: a person may continue it in another
    /// terminal, and its next end is news too.
    pub fn until_nothing_can_continue(self) -> Self {
        Self { waits_for_person: true, ..self }
    }

    /// How many tasks may bring news, as they are now.
    pub fn count_active(&mut self) -> usize {
        self.tasks.forget();
        self.tasks.refresh();
        self.active()
    }

    fn active(&self) -> usize {
        let can_continue = |view: &View| {
            let ended = matches!(view.state, State::Blocked | State::Failed | State::Incomplete);
            self.waits_for_person && ended
        };
        self.tasks.views().filter(|view| is_active(view) || can_continue(view)).count()
    }

    /// Waits for news for at most `limit`. Calls `warn_polling` if it has to read all tasks every second.
    ///
    /// # Errors
    /// A failed wait for events; unreadable news of a task, if only certain tasks are waited for.
    pub fn wait_for_news(
        &mut self,
        limit: Option<Duration>,
        warn_polling: impl Fn(),
    ) -> Result<WaitOutcome> {
        let (begin, mut warned) = (Instant::now(), false);
        self.tasks.forget();
        loop {
            // Check before delivering, because nobody reads what is printed for a dead host.
            if self.tasks.host.as_ref().is_some_and(|host| host.life() == Life::Dead) {
                return Ok(WaitOutcome::HostDied);
            }
            let news = self.read_news()?;
            if self.tasks.polls && !std::mem::replace(&mut warned, true) {
                warn_polling();
            }
            if !news.is_empty() {
                return Ok(WaitOutcome::News(news));
            }
            // A program that replaces a task's directory removes the old one first.
            let may_return = self.disappeared.is_some_and(|since| since.elapsed() < return_limit());
            if self.active() == 0 && !may_return {
                return Ok(WaitOutcome::NothingActive);
            }
            let left = limit.map_or(LOOK, |limit| limit.saturating_sub(begin.elapsed()));
            if left.is_zero() {
                return Ok(WaitOutcome::Timeout(self.active()));
            }
            if let Some(signal) = self.tasks.wait(left)? {
                return Ok(WaitOutcome::Signal(signal));
            }
        }
    }

    /// Collects further news until none has come for `pause`.
    ///
    /// # Errors
    /// The errors of [`Self::wait_for_news`].
    pub fn collect_more(&mut self, pause: Duration) -> Result<Vec<Event>> {
        let (begin, mut last, mut all) = (Instant::now(), Instant::now(), Vec::new());
        while begin.elapsed() < LONGEST_BATCH {
            let left = pause.saturating_sub(last.elapsed());
            if left.is_zero() || self.tasks.wait(left)?.is_some() {
                break;
            }
            let news = self.read_news()?;
            if !news.is_empty() {
                last = Instant::now();
            }
            all.extend(news);
        }
        Ok(all)
    }

    /// The events other than `news` that were delivered and not acknowledged. They wake no host and are
    /// repeated with the next news.
    pub fn unacknowledged(&self, news: &[Event]) -> Vec<Event> {
        let mut repeated = Vec::new();
        for view in self.tasks.views() {
            let Ok(mut delivered) = ledger::read(&view.task) else { continue };
            let is_news = |id: &String| news.iter().any(|event| event.id == *id);
            delivered.retain(|id, delivery| *delivery == Delivery::Delivered && !is_news(id));
            if !delivered.is_empty() {
                let events = news::events(view).unwrap_or_default().into_iter();
                repeated.extend(events.filter(|event| delivered.contains_key(&event.id)));
            }
        }
        repeated
    }

    /// The news of the tasks that changed, recorded as delivered. An unreadable task must not hide news of
    /// the others, unless the wait is for that task.
    fn read_news(&mut self) -> Result<Vec<Event>> {
        let changes = self.tasks.refresh();
        if changes.removed.iter().any(is_active) {
            self.disappeared = Some(Instant::now());
        }
        let mut news = Vec::new();
        for id in changes.read {
            let Some(view) = self.tasks.view_mut(&id) else { continue };
            let ipc = view.task.side().ipc();
            for (question, found) in &mut view.questions {
                found.is_whole = self.growing.takes(ipc.question_path(&question.name), found);
            }
            let Some(Ok(view)) = self.tasks.get(&id) else { continue };
            match self.news_of(view) {
                Ok(events) => news.extend(events),
                // Events already recorded as delivered must be returned, despite the error.
                Err(error) if !self.tasks.only.is_empty() && news.is_empty() => return Err(error),
                Err(_) => self.tasks.defer(&id),
            }
        }
        Ok(news)
    }

    /// The news of a task, recorded as delivered.
    fn news_of(&self, view: &View) -> Result<Vec<Event>> {
        let mut events = news::events(view)?;
        // Until the supervisor exits, another attempt may follow the one that ended.
        let may_resume =
            view.resumes_soon() || view.is_between_attempts() && view.state != State::Done;
        events.retain(|event| !(event.is_end() && may_resume));
        if self.tasks.host.is_some() {
            events.retain(|event| !is_reported_by_host(view, event));
        }
        let target = match self.belongs_to_other_host(view) {
            true => Delivery::Shown,
            false => Delivery::Delivered,
        };
        ledger::take_new(&view.task, events, target, self.tasks.host.as_ref())
    }

    /// Whether the task belongs to a running host that does not read this output.
    fn belongs_to_other_host(&self, view: &View) -> bool {
        let owner =
            view.record.owner.as_ref().filter(|owner| Some(*owner) != self.listener.as_ref());
        owner.is_some_and(|owner| owner.life() != Life::Dead)
    }
}

/// Returns true if the task may bring news: a worker is running or about to start.
fn is_active(view: &View) -> bool {
    match view.state {
        state if state.is_running() => true,
        // The supervisor will start the worker.
        state if state.is_waiting() => !view.processes.is_empty(),
        _ => view.is_between_attempts(),
    }
}

/// How long a directory that is replaced may be missing.
fn return_limit() -> Duration {
    fault::limit("DISPATCH_GONE_MS", Duration::from_secs(5))
}
