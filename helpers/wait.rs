//! Waiting for news: events of files and processes make a waiter look at once, and a safety scan every
//! second finds what they missed.
//!
//! Invariant: an event only causes a look; the files decide.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::domain::TaskId;
use crate::fault;
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{self, Event, is_reported_by_host};
use crate::process::{Identity, Life, Watch, Woken, calling_host};
use crate::project::Project;
use crate::task::{State, Task, View};
use crate::worker::supervise;

/// How often a waiter looks without an event.
pub const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// How many tasks each safety scan checks fully, in rotation. Of the others it checks only `ipc/`.
const SAFETY_SCAN_TASKS: usize = 2;

/// How often a waiter rereads everything, whatever the time stamps say.
const WHOLE_SCAN: Duration = Duration::from_secs(600);

/// How long news may keep arriving before it is delivered.
const LONGEST_STORM: Duration = Duration::from_secs(3);

/// How long two changes may share a time stamp: longer than a tick of the kernel's clock.
const TICK: Duration = Duration::from_millis(50);

/// The same on file systems with time stamps of one or two seconds (FAT).
const COARSE_TICK: Duration = Duration::from_secs(3);

/// Waits for news of a project's tasks.
pub struct Waiter {
    project: Project,
    /// Only these tasks; all if empty.
    only: Vec<TaskId>,
    /// Only tasks that this host owns, without the events that the host program reports itself.
    host: Option<Identity>,
    /// The host that reads this process's output, if a host does.
    listener: Option<Identity>,
    seen: BTreeMap<TaskId, WatchedTask>,
    /// The time stamp of the directory of all tasks.
    all: Mark,
    /// When a task disappeared that could have brought news.
    gone: Option<Instant>,
    /// How many tasks the safety scans have checked, for the rotation.
    scanned: usize,
    /// Whether something cannot be watched, so that every look rereads everything.
    blind: bool,
}

struct WatchedTask {
    mark: Mark,
    /// `None` if the task belongs to another host.
    view: Option<View>,
}

/// Which tasks a look checks for changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All tasks.
    All,
    /// Tasks with a running or waiting worker: their `ipc/`, and everything of the next few.
    Open,
}

/// How a wait ended.
pub enum Outcome {
    /// News, already marked as delivered.
    News(Vec<Event>),
    /// The time limit passed while this many tasks were running.
    Timeout(usize),
    /// No task can bring news any more.
    Nothing,
    /// A signal arrived.
    Signal(i32),
    /// The host is dead.
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
            seen: BTreeMap::new(),
            all: Mark::default(),
            gone: None,
            scanned: 0,
            blind: false,
        }
    }

    /// Reads all tasks once.
    pub fn read(&mut self) {
        self.refresh(Look::All);
    }

    /// How many tasks may still bring news.
    pub fn active(&self) -> usize {
        self.seen.values().filter(|seen| seen.is_active()).count()
    }

    /// Waits for news for at most `limit`. Calls `warn_polling` if it has to look every second.
    pub fn wait_for_news(
        &mut self,
        watch: &mut Watch,
        limit: Option<Duration>,
        warn_polling: impl Fn(),
    ) -> Result<Outcome> {
        let begin = Instant::now();
        self.blind = !watch.sees_files();
        if self.blind {
            warn_polling();
        }
        let host_is_watched = self.host.as_ref().is_some_and(|host| watch.add_process(host));
        let mut whole = begin;
        let mut look = Look::All;
        loop {
            if whole.elapsed() >= WHOLE_SCAN {
                whole = Instant::now();
                look = Look::All;
                self.seen.values_mut().for_each(|seen| seen.mark.settled = false);
            }
            // Check before delivering: nobody reads what is printed for a dead host.
            let may_be_dead = look == Look::All || !host_is_watched;
            if may_be_dead && self.host.as_ref().is_some_and(|host| host.life() == Life::Dead) {
                return Ok(Outcome::HostDied);
            }
            if look == Look::All {
                watch_undispatched(&self.project.tasks_dir(), watch);
            }
            let changed = self.refresh(look);
            let mut news = self.news(&changed)?;
            if news.is_empty() && !changed.is_empty() {
                // A second look catches changes between the first look and the new watches.
                if !self.attach(watch, &changed) && !std::mem::replace(&mut self.blind, true) {
                    warn_polling();
                }
                let changed = self.refresh(Look::All);
                news = self.news(&changed)?;
            }
            if !news.is_empty() {
                return Ok(Outcome::News(news));
            }
            // A program that replaces a directory removes it first.
            let comes_back = self.gone.is_some_and(|since| since.elapsed() < gone_limit());
            if self.active() == 0 && !comes_back {
                return Ok(Outcome::Nothing);
            }
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                return Ok(Outcome::Timeout(self.active()));
            }
            look = match watch
                .wait_for_event(left.map_or(SAFETY_SCAN, |left| left.min(SAFETY_SCAN)))?
            {
                Woken::Signal(signal) => return Ok(Outcome::Signal(signal)),
                Woken::Timeout if !self.blind => Look::Open,
                Woken::Changed | Woken::Timeout => Look::All,
            }
        }
    }

    /// Collects further news until none has come for `pause`.
    pub fn gather(&mut self, watch: &mut Watch, pause: Duration) -> Result<Vec<Event>> {
        let (begin, mut last, mut all) = (Instant::now(), Instant::now(), Vec::new());
        while begin.elapsed() < LONGEST_STORM {
            let left = pause.saturating_sub(last.elapsed());
            if left.is_zero() {
                break;
            }
            match watch.wait_for_event(left)? {
                Woken::Signal(_) => break,
                Woken::Changed | Woken::Timeout => {}
            }
            let changed = self.refresh(Look::All);
            let news = self.news(&changed)?;
            if !news.is_empty() {
                last = Instant::now();
            }
            all.extend(news);
        }
        Ok(all)
    }

    /// Events that were delivered and not acknowledged, beside `news`. They wake nobody and are
    /// repeated with the next news.
    pub fn unacknowledged(&self, news: &[Event]) -> Vec<Event> {
        let mut repeated = Vec::new();
        for view in self.seen.values().filter_map(|seen| seen.view.as_ref()) {
            let Ok(mut told) = ledger::read(&view.task) else { continue };
            let is_news = |id: &String| news.iter().any(|event| event.id == *id);
            told.retain(|id, standing| *standing == Delivery::Delivered && !is_news(id));
            if !told.is_empty() {
                let events = news::events(view).unwrap_or_default().into_iter();
                repeated.extend(events.filter(|event| told.contains_key(&event.id)));
            }
        }
        repeated
    }

    /// Rereads tasks that changed and returns them. Unreadable tasks are left to `dispatch-reconcile`,
    /// which shows why.
    fn refresh(&mut self, look: Look) -> Vec<TaskId> {
        let look = if self.all.is_current() { look } else { Look::All };
        let tasks = match look {
            Look::All => {
                self.all = Mark::of(vec![self.project.tasks_dir()]);
                let mut tasks = self.project.tasks();
                tasks.retain(|task| self.only.is_empty() || self.only.contains(task.id()));
                self.seen.retain(|id, seen| {
                    let there = tasks.iter().any(|task| task.id() == id);
                    if !there && seen.is_active() {
                        self.gone = Some(Instant::now());
                    }
                    there
                });
                let current = |seen: &WatchedTask| seen.mark.is_current() && seen.is_alive();
                tasks.retain(|task| !self.seen.get(task.id()).is_some_and(current));
                tasks
            }
            Look::Open => {
                let open: Vec<_> = self.seen.values().filter(|seen| seen.is_open()).collect();
                let first = self.scanned % open.len().max(1);
                self.scanned = self.scanned.wrapping_add(SAFETY_SCAN_TASKS);
                let in_turn =
                    |at: usize| (at + open.len() - first) % open.len() < SAFETY_SCAN_TASKS;
                let changed = open.iter().enumerate().filter(|(at, seen)| match in_turn(*at) {
                    true => !seen.mark.is_current(),
                    false => !seen.mark.is_current_at(IPC),
                });
                changed.filter_map(|(_, seen)| Some(seen.view.as_ref()?.task.clone())).collect()
            }
        };
        let mut read = Vec::new();
        for task in tasks {
            let mut mark = Mark::of(places(&task));
            let Ok(mut view) = task.view() else { continue };
            // Record an unseen end before it is news: the log may tell how it ended.
            if supervise::record_unknown_end(&view).unwrap_or(false)
                && let Ok(now) = task.view()
            {
                view = now;
            }
            let ours = self.host.is_none() || view.record.owner == self.host;
            if !ours {
                // Only a change of the record could make the task ours.
                mark.stamps.truncate(1);
            }
            self.seen.insert(task.id().clone(), WatchedTask { mark, view: ours.then_some(view) });
            read.push(task.id().clone());
        }
        read
    }

    /// The views of the tasks in `ids` that are ours.
    fn views(&self, ids: &[TaskId]) -> impl Iterator<Item = &View> {
        ids.iter().filter_map(|id| self.seen.get(id)?.view.as_ref())
    }

    /// The news of the tasks that were just read. An unreadable task must not hide news of the others.
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

    fn news_of(&self, view: &View) -> Result<Vec<Event>> {
        let mut events = news::events(view)?;
        // Until its supervisor exits, an attempt that ended may be followed by the next one.
        let may_go_on =
            view.resumes_soon() || view.is_between_attempts() && view.state != State::Done;
        events.retain(|event| !(event.is_end() && may_go_on));
        if self.host.is_some() {
            events.retain(|event| !is_reported_by_host(view, event));
        }
        if events.is_empty() {
            return Ok(events);
        }
        // Read first: opening the ledger for writing wakes everyone who watches the task.
        let anothers = self.belongs_to_other_host(view);
        let told = if anothers { Delivery::Shown } else { Delivery::Delivered };
        let standings = ledger::read(&view.task)?;
        events.retain(|event| standings.get(&event.id).is_none_or(|it| *it < told));
        if events.is_empty() {
            return Ok(events);
        }
        let mut ledger = Ledger::open(&view.task)?;
        let mut news = Vec::new();
        for event in events {
            if ledger.delivery(&event) < told {
                let noted = match anothers {
                    true => ledger.show(&event),
                    false => ledger.deliver(&event, self.host.as_ref()),
                };
                match noted {
                    Ok(()) => news.push(event),
                    Err(error) if news.is_empty() => return Err(error),
                    // Events that are already marked as delivered must be returned.
                    Err(_) => break,
                }
            }
        }
        Ok(news)
    }

    /// Whether the task belongs to a living host that does not read this output.
    fn belongs_to_other_host(&self, view: &View) -> bool {
        let owner =
            view.record.owner.as_ref().filter(|owner| Some(*owner) != self.listener.as_ref());
        owner.is_some_and(|owner| owner.life() != Life::Dead)
    }

    /// Watches these tasks; `false` if an existing directory cannot be watched.
    fn attach(&self, watch: &mut Watch, ids: &[TaskId]) -> bool {
        let mut all = true;
        let mut directory = |watch: &mut Watch, place: &Path| {
            all &= watch.add_directory(place) || !place.is_dir();
        };
        directory(watch, &self.project.tasks_dir());
        if let Some(host) = &self.host {
            watch.add_process(host);
        }
        for view in self.views(ids) {
            for place in directories(&view.task) {
                directory(watch, &place);
            }
            for process in &view.processes {
                watch.add_process(process);
            }
        }
        all
    }
}

impl WatchedTask {
    fn is_active(&self) -> bool {
        let active = |view: &View| match view.state {
            State::Running | State::Asking => true,
            // The supervisor will start the worker.
            State::Waiting => !view.processes.is_empty(),
            _ => view.is_between_attempts(),
        };
        self.view.as_ref().is_some_and(active)
    }

    /// Whether the state may change by itself.
    fn is_open(&self) -> bool {
        let open = |view: &View| !view.processes.is_empty() || view.state == State::Waiting;
        self.view.as_ref().is_some_and(open)
    }

    /// Whether all processes that were running at the last read are certainly alive.
    fn is_alive(&self) -> bool {
        let processes = self.view.iter().flat_map(|view| &view.processes);
        processes.map(Identity::life).all(|life| life == Life::Alive)
    }
}

/// How long a task that disappeared may take to come back.
fn gone_limit() -> Duration {
    fault::limit("DISPATCH_GONE_MS", Duration::from_secs(5))
}

/// Watches directories that hold only a plan: the record that makes them tasks changes no other
/// watched directory.
pub fn watch_undispatched(tasks: &Path, watch: &mut Watch) {
    watch.add_directory(tasks);
    let Ok(entries) = fs::read_dir(tasks) else { return };
    for entry in entries.flatten() {
        let directory = entry.path();
        if !directory.join("task.yaml").is_file() {
            watch.add_directory(&directory);
        }
    }
}

/// The index of `ipc/` in [`directories`].
const IPC: usize = 1;

/// The directories whose entries decide a task's state; the task's own is first.
pub fn directories(task: &Task) -> Vec<PathBuf> {
    let mut places = vec![
        task.directory().to_path_buf(),
        task.ipc().directory().to_path_buf(),
        task.tells_dir(),
        task.directory().join("worker"),
    ];
    places.extend(task.last_attempt().map(|attempt| attempt.directory().to_path_buf()));
    places
}

/// The paths whose time stamps show that a task changed: its directories and its plan.
pub fn places(task: &Task) -> Vec<PathBuf> {
    let mut places = directories(task);
    places.push(task.plan_path());
    places
}

/// The time stamps of some paths just before they were read.
#[derive(Default)]
pub struct Mark {
    stamps: Vec<(PathBuf, Stamp)>,
    /// Whether every later change will show, because all time stamps are old enough.
    settled: bool,
}

impl Mark {
    /// The mark of these paths as they are now.
    pub fn of(places: Vec<PathBuf>) -> Self {
        // A missing path cannot appear without a change of the first, which contains the others.
        let known = |place: PathBuf| stamp(&place).map(|stamp| (place, stamp));
        let stamps: Vec<_> = places.into_iter().filter_map(known).collect();
        let settled = !stamps.is_empty() && stamps.iter().all(|(_, stamp)| stamp.is_settled());
        Self { stamps, settled }
    }

    /// Whether nothing has changed since.
    pub fn is_current(&self) -> bool {
        self.settled && self.stamps.iter().all(is_same)
    }

    /// Whether the path with that index has not changed since.
    fn is_current_at(&self, place: usize) -> bool {
        self.settled && self.stamps.get(place).is_none_or(is_same)
    }
}

fn is_same((place, then): &(PathBuf, Stamp)) -> bool {
    stamp(place).as_ref() == Some(then)
}

/// The metadata that changes with a directory's entries or a file's content.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: SystemTime,
    size: u64,
}

impl Stamp {
    fn is_settled(&self) -> bool {
        let since_epoch = self.modified.duration_since(SystemTime::UNIX_EPOCH);
        let coarse = since_epoch.is_ok_and(|time| time.subsec_nanos() == 0);
        let tick = if coarse { COARSE_TICK } else { TICK };
        self.modified.elapsed().is_ok_and(|age| age > tick)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp { inode: meta.ino(), modified: meta.modified().ok()?, size: meta.len() })
}
