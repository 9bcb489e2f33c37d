//! Waiting for news. Events of files and processes make a waiter scan the tasks at once, and a safety
//! scan every second finds what the events missed.
//!
//! Invariant: an event only causes a scan; the files decide what is news.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::domain::TaskId;
use crate::fault;
use crate::ipc::Question;
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{self, Event, awaits_host_report, is_reported_by_host};
use crate::process::{Identity, Life, Watch, Woken, calling_host};
use crate::project::Project;
use crate::task::{State, Task, View};
use crate::worker::supervise;

/// How often a waiter scans without an event.
pub const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// How many tasks each safety scan checks fully, in rotation; of the others it checks `ipc/` only.
const SAFETY_SCAN_TASKS: usize = 2;

/// How often a waiter rereads all tasks, whatever the time stamps say.
const FULL_SCAN: Duration = Duration::from_secs(600);

/// How long a batch of news may grow before it is delivered.
const LONGEST_BATCH: Duration = Duration::from_secs(3);

/// How long two changes may share a time stamp: longer than a tick of the kernel's clock.
const TICK: Duration = Duration::from_millis(50);

/// [`TICK`] on file systems with time stamps of one or two seconds (FAT).
const COARSE_TICK: Duration = Duration::from_secs(3);

/// A process's wait for news of a project's tasks.
pub struct Waiter {
    project: Project,
    /// The tasks to wait for; all if empty.
    only: Vec<TaskId>,
    /// If set, the wait is only for tasks that this host owns, without what the host reports itself.
    host: Option<Identity>,
    /// The host that reads this process's output.
    listener: Option<Identity>,
    /// The tasks as they were last read.
    watched: BTreeMap<TaskId, WatchedTask>,
    /// The state of the directory of all tasks at the last scan of all tasks.
    all_tasks: Snapshot,
    /// When the last task disappeared that could have brought news.
    disappeared: Option<Instant>,
    /// How many tasks the safety scans have checked fully, for the rotation.
    scanned: usize,
    /// Whether some directory cannot be watched, so that every scan checks all tasks.
    polls: bool,
}

/// A task as it was last read.
struct WatchedTask {
    /// Taken just before the read.
    snapshot: Snapshot,
    /// The task's state; `None` if the task belongs to another host.
    view: Option<View>,
}

/// The tasks that a scan checks for changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scan {
    /// All tasks.
    All,
    /// Tasks with a worker or in a wait: their `ipc/`, and all paths of the next few.
    Open,
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
    /// A waiter for the tasks in `only`, or for all if it is empty.
    pub fn new(project: Project, only: Vec<TaskId>, host: Option<Identity>) -> Self {
        Self {
            project,
            only,
            host,
            listener: calling_host(),
            watched: BTreeMap::new(),
            all_tasks: Snapshot::default(),
            disappeared: None,
            scanned: 0,
            polls: false,
        }
    }

    /// Reads all tasks once, without a wait.
    pub fn read(&mut self) {
        self.refresh(Scan::All);
    }

    /// How many tasks may still bring news.
    pub fn active(&self) -> usize {
        self.watched.values().filter(|watched| watched.is_active()).count()
    }

    /// Waits for news for at most `limit`. Calls `warn_polling` if it has to check all tasks every second.
    ///
    /// # Errors
    /// A failed wait for events; unreadable news of a task, if only certain tasks are waited for.
    pub fn wait_for_news(
        &mut self,
        watch: &mut Watch,
        limit: Option<Duration>,
        warn_polling: impl Fn(),
    ) -> Result<WaitOutcome> {
        let begin = Instant::now();
        self.polls = !watch.sees_files();
        if self.polls {
            warn_polling();
        }
        let host_is_watched = self.host.as_ref().is_some_and(|host| watch.add_process(host));
        let mut full_scan = begin;
        let mut scan = Scan::All;
        loop {
            if full_scan.elapsed() >= FULL_SCAN {
                full_scan = Instant::now();
                scan = Scan::All;
                self.watched
                    .values_mut()
                    .for_each(|watched| watched.snapshot.is_conclusive = false);
            }
            // Check before delivering, because nobody reads what is printed for a dead host.
            let may_be_dead = scan == Scan::All || !host_is_watched;
            if may_be_dead && self.host.as_ref().is_some_and(|host| host.life() == Life::Dead) {
                return Ok(WaitOutcome::HostDied);
            }
            if scan == Scan::All {
                watch_undispatched(self.project.state_dir(), watch);
            }
            let changed = self.refresh(scan);
            let mut news = self.news(&changed)?;
            if news.is_empty() && !changed.is_empty() {
                // The second scan finds changes between the first one and the new watches.
                if !self.add_watches(watch, &changed) && !std::mem::replace(&mut self.polls, true) {
                    warn_polling();
                }
                let changed = self.refresh(Scan::All);
                news = self.news(&changed)?;
            }
            if !news.is_empty() {
                return Ok(WaitOutcome::News(news));
            }
            // A program that replaces a task's directory removes the old one first.
            let may_return = self.disappeared.is_some_and(|since| since.elapsed() < return_limit());
            if self.active() == 0 && !may_return {
                return Ok(WaitOutcome::NothingActive);
            }
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                return Ok(WaitOutcome::Timeout(self.active()));
            }
            scan = match watch
                .wait_for_event(left.map_or(SAFETY_SCAN, |left| left.min(SAFETY_SCAN)))?
            {
                Woken::Signal(signal) => return Ok(WaitOutcome::Signal(signal)),
                Woken::Timeout if !self.polls => Scan::Open,
                Woken::Changed | Woken::Timeout => Scan::All,
            }
        }
    }

    /// Collects further news until none has come for `pause`.
    ///
    /// # Errors
    /// The errors of [`Self::wait_for_news`].
    pub fn collect_more(&mut self, watch: &mut Watch, pause: Duration) -> Result<Vec<Event>> {
        let (begin, mut last, mut all) = (Instant::now(), Instant::now(), Vec::new());
        while begin.elapsed() < LONGEST_BATCH {
            let left = pause.saturating_sub(last.elapsed());
            if left.is_zero() {
                break;
            }
            match watch.wait_for_event(left)? {
                Woken::Signal(_) => break,
                Woken::Changed | Woken::Timeout => {}
            }
            let changed = self.refresh(Scan::All);
            let news = self.news(&changed)?;
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
        for view in self.watched.values().filter_map(|watched| watched.view.as_ref()) {
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

    /// Rereads the tasks that changed and returns their names. Skips unreadable tasks, whose errors
    /// `dispatch-reconcile` shows.
    fn refresh(&mut self, scan: Scan) -> Vec<TaskId> {
        let scan = if self.all_tasks.is_current() { scan } else { Scan::All };
        let tasks = match scan {
            Scan::All => {
                self.all_tasks = Snapshot::take(vec![self.project.state_dir().to_path_buf()]);
                let mut tasks = self.project.tasks();
                tasks.retain(|task| self.only.is_empty() || self.only.contains(task.id()));
                self.watched.retain(|id, watched| {
                    let exists = tasks.iter().any(|task| task.id() == id);
                    if !exists && watched.is_active() {
                        self.disappeared = Some(Instant::now());
                    }
                    exists
                });
                let current =
                    |watched: &WatchedTask| watched.snapshot.is_current() && watched.is_alive();
                tasks.retain(|task| !self.watched.get(task.id()).is_some_and(current));
                tasks
            }
            Scan::Open => {
                let open: Vec<_> =
                    self.watched.values().filter(|watched| watched.is_open()).collect();
                let first = self.scanned % open.len().max(1);
                self.scanned = self.scanned.wrapping_add(SAFETY_SCAN_TASKS);
                let is_next =
                    |at: usize| (at + open.len() - first) % open.len() < SAFETY_SCAN_TASKS;
                let changed = open.iter().enumerate().filter(|(at, watched)| match is_next(*at) {
                    true => !watched.snapshot.is_current(),
                    false => !watched.snapshot.is_current_at(IPC),
                });
                changed
                    .filter_map(|(_, watched)| Some(watched.view.as_ref()?.task.clone()))
                    .collect()
            }
        };
        let mut read = Vec::new();
        for task in tasks {
            let mut snapshot = Snapshot::take(state_paths(&task));
            let Ok(mut view) = task.view() else { continue };
            // Record an unseen end before it becomes news, because the log may explain it.
            if supervise::record_unknown_end(&view).unwrap_or(false)
                && let Ok(now) = task.view()
            {
                view = now;
            }
            // The host program's own report of an end may be dropped, and then it is news.
            snapshot.is_conclusive &= !awaits_host_report(&view);
            let ours = self.host.is_none() || view.record.owner == self.host;
            if !ours {
                // Only the record, in the task's own directory, can make the task ours.
                snapshot.stamps.truncate(1);
            }
            self.watched
                .insert(task.id().clone(), WatchedTask { snapshot, view: ours.then_some(view) });
            read.push(task.id().clone());
        }
        read
    }

    /// The last read states of those tasks in `ids` that are ours.
    fn views(&self, ids: &[TaskId]) -> impl Iterator<Item = &View> {
        ids.iter().filter_map(|id| self.watched.get(id)?.view.as_ref())
    }

    /// The news of the tasks in `ids`. An unreadable task must not hide news of the others, unless the wait
    /// is for that task.
    fn news(&self, ids: &[TaskId]) -> Result<Vec<Event>> {
        let mut news = Vec::new();
        for view in self.views(ids) {
            match self.news_of(view) {
                Ok(events) => news.extend(events),
                Err(_) if self.only.is_empty() => {}
                Err(error) => return Err(error),
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
        if self.host.is_some() {
            events.retain(|event| !is_reported_by_host(view, event));
        }
        if events.is_empty() {
            return Ok(events);
        }
        // Read first, because opening the ledger for writing wakes all who watch the task.
        let for_other_host = self.belongs_to_other_host(view);
        let target = if for_other_host { Delivery::Shown } else { Delivery::Delivered };
        let deliveries = ledger::read(&view.task)?;
        events.retain(|event| deliveries.get(&event.id).is_none_or(|it| *it < target));
        if events.is_empty() {
            return Ok(events);
        }
        let mut ledger = Ledger::open(&view.task)?;
        let mut news = Vec::new();
        for event in events {
            if ledger.delivery(&event) < target {
                let recorded = match for_other_host {
                    true => ledger.show(&event),
                    false => ledger.deliver(&event, self.host.as_ref()),
                };
                match recorded {
                    Ok(()) => news.push(event),
                    Err(error) if news.is_empty() => return Err(error),
                    // Events already recorded as delivered must be returned, despite the error.
                    Err(_) => break,
                }
            }
        }
        Ok(news)
    }

    /// Whether the task belongs to a running host that does not read this output.
    fn belongs_to_other_host(&self, view: &View) -> bool {
        let owner =
            view.record.owner.as_ref().filter(|owner| Some(*owner) != self.listener.as_ref());
        owner.is_some_and(|owner| owner.life() != Life::Dead)
    }

    /// Watches the tasks in `ids`; `false` if an existing directory cannot be watched.
    fn add_watches(&self, watch: &mut Watch, ids: &[TaskId]) -> bool {
        let mut all = true;
        let mut directory = |watch: &mut Watch, path: &Path| {
            all &= watch.add_directory(path) || !path.is_dir();
        };
        directory(watch, self.project.state_dir());
        if let Some(host) = &self.host {
            watch.add_process(host);
        }
        for view in self.views(ids) {
            for path in state_directories(&view.task) {
                directory(watch, &path);
            }
            for process in &view.processes {
                watch.add_process(process);
            }
        }
        all
    }
}

impl WatchedTask {
    /// Whether the task may bring news: a worker is running or about to start.
    fn is_active(&self) -> bool {
        let active = |view: &View| match view.state {
            state if state.is_running() => true,
            // The supervisor will start the worker.
            state if state.is_waiting() => !view.processes.is_empty(),
            _ => view.is_between_attempts(),
        };
        self.view.as_ref().is_some_and(active)
    }

    /// Whether the state may change by itself.
    fn is_open(&self) -> bool {
        let open = |view: &View| !view.processes.is_empty() || view.state.is_waiting();
        self.view.as_ref().is_some_and(open)
    }

    /// Whether all processes that were running at the last read are known to be alive.
    fn is_alive(&self) -> bool {
        let processes = self.view.iter().flat_map(|view| &view.processes);
        processes.map(Identity::life).all(|life| life == Life::Alive)
    }
}

/// How long a directory that is replaced may be missing.
fn return_limit() -> Duration {
    fault::limit("DISPATCH_GONE_MS", Duration::from_secs(5))
}

/// Watches the directories of tasks that are not dispatched yet, because their record will change no
/// other directory that is watched.
pub fn watch_undispatched(state_dir: &Path, watch: &mut Watch) {
    watch.add_directory(state_dir);
    let Ok(entries) = fs::read_dir(state_dir) else { return };
    for entry in entries.flatten() {
        let directory = entry.path();
        if !directory.join("record.yaml").is_file() {
            watch.add_directory(&directory);
        }
    }
}

/// The index of `ipc/` in [`state_directories`].
const IPC: usize = 1;

/// The directories whose entries decide a task's state; the person's side is first.
pub fn state_directories(task: &Task) -> Vec<PathBuf> {
    let mut paths = vec![
        task.state_dir().to_path_buf(),
        task.side().ipc().directory().to_path_buf(),
        task.side().directory().to_path_buf(),
        task.side().tells_dir(),
        task.attempts_dir(),
    ];
    paths.extend(task.last_attempt().map(|attempt| attempt.directory().to_path_buf()));
    paths
}

/// The paths whose time stamps show that a task changed: [`state_directories`], the plan, and the
/// questions that may still be written.
pub fn state_paths(task: &Task) -> Vec<PathBuf> {
    let mut paths = state_directories(task);
    paths.push(task.side().plan_path());
    let ipc = task.side().ipc();
    let questions = ipc.questions().unwrap_or_default().into_iter().filter(Question::is_open);
    paths.extend(questions.map(|question| ipc.question_path(&question.name)));
    paths
}

/// The metadata of some paths, taken just before they are read.
#[derive(Default)]
pub struct Snapshot {
    stamps: Vec<(PathBuf, FileStamp)>,
    /// Whether all time stamps are so old that every later change gives a different one.
    is_conclusive: bool,
}

impl Snapshot {
    /// The snapshot of these paths as they are now; missing ones are left out.
    pub fn take(paths: Vec<PathBuf>) -> Self {
        // A missing path appears only with a change of the first, which contains the others.
        let with_stamp = |path: PathBuf| stamp(&path).map(|stamp| (path, stamp));
        let stamps: Vec<_> = paths.into_iter().filter_map(with_stamp).collect();
        let is_conclusive = !stamps.is_empty() && stamps.iter().all(|(_, stamp)| stamp.is_old());
        Self { stamps, is_conclusive }
    }

    /// Whether no path has changed since; `false` if that cannot be known.
    pub fn is_current(&self) -> bool {
        self.is_conclusive && self.stamps.iter().all(is_same)
    }

    /// Whether the path with this index has not changed since.
    fn is_current_at(&self, index: usize) -> bool {
        self.is_conclusive && self.stamps.get(index).is_none_or(is_same)
    }
}

fn is_same((path, then): &(PathBuf, FileStamp)) -> bool {
    stamp(path).as_ref() == Some(then)
}

/// The metadata that change with a directory's entries or a file's content.
#[derive(PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    modified: SystemTime,
    size: u64,
}

impl FileStamp {
    /// Whether the time stamp is older than a tick, so that the next change gives a different one.
    fn is_old(&self) -> bool {
        let since_epoch = self.modified.duration_since(SystemTime::UNIX_EPOCH);
        let coarse = since_epoch.is_ok_and(|time| time.subsec_nanos() == 0);
        let tick = if coarse { COARSE_TICK } else { TICK };
        self.modified.elapsed().is_ok_and(|age| age > tick)
    }
}

fn stamp(path: &Path) -> Option<FileStamp> {
    let meta = fs::metadata(path).ok()?;
    Some(FileStamp { inode: meta.ino(), modified: meta.modified().ok()?, size: meta.len() })
}
