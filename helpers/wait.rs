//! Waiting for news: file and process events make a waiter look at once, a look every second finds
//! what they missed, and only the look decides.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

use crate::domain::TaskId;
use crate::fault;
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{self, Event, told_by_host_program};
use crate::process::{Identity, Life, Watch, Woken, calling_host};
use crate::project::Project;
use crate::task::{State, Task, View};
use crate::worker::supervise;

/// How often a waiter looks without being woken.
pub const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// Of how many tasks one such look is at everything, in turn; of the others it is at the questions.
/// A look at a place takes microseconds, and each has half a dozen.
const SAFETY_SCAN_TASKS: usize = 2;

/// How often a waiter reads everything again, whatever the time stamps say.
const WHOLE_SCAN: Duration = Duration::from_secs(600);

/// How long news may go on coming before what came is told.
const LONGEST_STORM: Duration = Duration::from_secs(3);

/// How long a second change may get the same time stamp as the first: longer than a tick of the
/// kernel's clock.
const TICK: Duration = Duration::from_millis(50);

/// The same for a file system that keeps seconds only, or even ones (FAT).
const COARSE_TICK: Duration = Duration::from_secs(3);

/// What a waiter looks at.
pub struct Waiter {
    project: Project,
    /// Only these tasks; all if there is none.
    only: Vec<TaskId>,
    /// Only tasks that this host owns, and not what its program tells by itself.
    host: Option<Identity>,
    /// The host that hears what is said, if one does.
    listener: Option<Identity>,
    seen: BTreeMap<TaskId, WatchedTask>,
    /// Of the directory of all tasks, which changes when a task comes or goes.
    all: Mark,
    /// When a task went away that could have brought news.
    gone: Option<Instant>,
    /// How many tasks the safety scans have looked at.
    scanned: usize,
    /// Whether something cannot be watched, so that every look is at everything.
    blind: bool,
}

struct WatchedTask {
    mark: Mark,
    /// `None` if the task is none of ours.
    view: Option<View>,
}

/// Which tasks are looked at, to read again those that changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// All that there are now.
    All,
    /// Those that somebody worked at, or was about to: whether they ask or have finished, and
    /// everything else of the next few.
    Open,
}

/// How a wait ended.
pub enum Outcome {
    /// There is news; it is marked as delivered.
    News(Vec<Event>),
    /// The time is over; so many tasks still run.
    Timeout(usize),
    /// No task that is looked at can bring news any more.
    Nothing,
    /// This signal came.
    Signal(i32),
    /// The host is dead.
    HostDied,
}

impl Waiter {
    /// A waiter for those tasks, or for all of them.
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

    /// Waits for news, for at most `limit`, and says it if that takes looking every second.
    pub fn wait(
        &mut self,
        watch: &mut Watch,
        limit: Option<Duration>,
        says_slow: impl Fn(),
    ) -> Result<Outcome> {
        let begin = Instant::now();
        self.blind = !watch.sees_files();
        if self.blind {
            says_slow();
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
            // Before anything is told: what a dead host is told, nobody hears.
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
                // What happened between the look and the new watches is seen by a second look.
                if !self.attach(watch, &changed) && !std::mem::replace(&mut self.blind, true) {
                    says_slow();
                }
                let changed = self.refresh(Look::All);
                news = self.news(&changed)?;
            }
            if !news.is_empty() {
                return Ok(Outcome::News(news));
            }
            // Whoever replaces a directory takes it away first.
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

    /// What else comes, until nothing has come for that long.
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

    /// What was told before and perhaps never heard, beside this news: it is no reason to wake the
    /// host, and is said again when there is one.
    pub fn unheard(&self, news: &[Event]) -> Vec<Event> {
        let mut unheard = Vec::new();
        for view in self.seen.values().filter_map(|seen| seen.view.as_ref()) {
            let Ok(mut told) = ledger::read(&view.task) else { continue };
            let is_news = |id: &String| news.iter().any(|event| event.id == *id);
            told.retain(|id, standing| *standing == Delivery::Delivered && !is_news(id));
            if !told.is_empty() {
                let events = news::events(view).unwrap_or_default().into_iter();
                unheard.extend(events.filter(|event| told.contains_key(&event.id)));
            }
        }
        unheard
    }

    /// Reads again what changed, and says which tasks were read. A task that cannot be read is left
    /// to `dispatch-reconcile`, which says why.
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
            // What its log tells of an end that nobody saw is to be known before the end is told.
            if supervise::record_unknown_end(&view).unwrap_or(false)
                && let Ok(now) = task.view()
            {
                view = now;
            }
            let ours = self.host.is_none() || view.record.owner == self.host;
            if !ours {
                // Only the record could make it ours.
                mark.stamps.truncate(1);
            }
            self.seen.insert(task.id().clone(), WatchedTask { mark, view: ours.then_some(view) });
            read.push(task.id().clone());
        }
        read
    }

    /// The views of our own tasks among these.
    fn views(&self, ids: &[TaskId]) -> impl Iterator<Item = &View> {
        ids.iter().filter_map(|id| self.seen.get(id)?.view.as_ref())
    }

    /// The news of these tasks; the others have none, since they were not read again. A task of which
    /// nothing can be told keeps no other from being heard; `dispatch-reconcile` says why it is so.
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
        // Until its supervisor has ended too, it may go on at once. What is done is done.
        let may_go_on =
            view.is_about_to_go_on() || view.is_between_attempts() && view.state != State::Done;
        events.retain(|event| !(event.is_end() && may_go_on));
        if self.host.is_some() {
            events.retain(|event| !told_by_host_program(view, event));
        }
        if events.is_empty() {
            return Ok(events);
        }
        // Opening the ledger to write wakes everybody who watches the task.
        let anothers = self.is_anothers(view);
        let told = if anothers { Delivery::Shown } else { Delivery::Delivered };
        let standings = ledger::read(&view.task)?;
        events.retain(|event| standings.get(&event.id).is_none_or(|it| *it < told));
        if events.is_empty() {
            return Ok(events);
        }
        let mut ledger = Ledger::open(&view.task)?;
        let mut news = Vec::new();
        for event in events {
            if ledger.standing(&event) < told {
                let noted = match anothers {
                    true => ledger.show(&event),
                    false => ledger.deliver(&event, self.host.as_ref()),
                };
                match noted {
                    Ok(()) => news.push(event),
                    Err(error) if news.is_empty() => return Err(error),
                    // What is noted as told has to be told.
                    Err(_) => break,
                }
            }
        }
        Ok(news)
    }

    /// Whether a living host that does not hear what is said here is the one to be told.
    fn is_anothers(&self, view: &View) -> bool {
        let owner =
            view.record.owner.as_ref().filter(|owner| Some(*owner) != self.listener.as_ref());
        owner.is_some_and(|owner| owner.life() != Life::Dead)
    }

    /// Watches these tasks; `false` if a directory that is there cannot be watched.
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
            // Its supervisor will start it.
            State::Waiting => !view.processes.is_empty(),
            _ => view.is_between_attempts(),
        };
        self.view.as_ref().is_some_and(active)
    }

    /// Whether its state may change without somebody starting a worker.
    fn is_open(&self) -> bool {
        let open = |view: &View| !view.processes.is_empty() || view.state == State::Waiting;
        self.view.as_ref().is_some_and(open)
    }

    /// Whether the processes that ran when the task was read certainly still do.
    fn is_alive(&self) -> bool {
        let processes = self.view.iter().flat_map(|view| &view.processes);
        processes.map(Identity::life).all(|life| life == Life::Alive)
    }
}

/// How long a task that is gone may take to come back.
fn gone_limit() -> Duration {
    fault::limit("DISPATCH_GONE_MS", Duration::from_secs(5))
}

/// Watches the directories in which only a plan stands, because the record that makes it a task
/// changes nothing that is watched otherwise.
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

/// Which of a task's directories is that of its questions and of its finish marker.
const IPC: usize = 1;

/// The directories whose entries decide a task's state, the task's own first.
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

/// What shows by its time stamp that a task changed: its directories and its plan.
pub fn places(task: &Task) -> Vec<PathBuf> {
    let mut places = directories(task);
    places.push(task.plan_path());
    places
}

/// How places looked just before they were read.
#[derive(Default)]
pub struct Mark {
    stamps: Vec<(PathBuf, Stamp)>,
    /// Whether every later change shows: none shares a time stamp with an earlier one.
    settled: bool,
}

impl Mark {
    /// Of these places as they are now.
    pub fn of(places: Vec<PathBuf>) -> Self {
        // What is not there cannot come without a change of the first, which they all are in.
        let known = |place: PathBuf| stamp(&place).map(|stamp| (place, stamp));
        let stamps: Vec<_> = places.into_iter().filter_map(known).collect();
        let settled = !stamps.is_empty() && stamps.iter().all(|(_, stamp)| stamp.is_settled());
        Self { stamps, settled }
    }

    /// Whether nothing changed since.
    pub fn is_current(&self) -> bool {
        self.settled && self.stamps.iter().all(is_same)
    }

    /// The same of one place. Those before it are there.
    fn is_current_at(&self, place: usize) -> bool {
        self.settled && self.stamps.get(place).is_none_or(is_same)
    }
}

fn is_same((place, then): &(PathBuf, Stamp)) -> bool {
    stamp(place).as_ref() == Some(then)
}

/// What changes when a directory's entries or a file's content do.
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
