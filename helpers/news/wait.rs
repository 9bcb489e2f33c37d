//! Waiting for news: file and process events make a waiter look at once, a look every second finds
//! what they missed, and only the look decides.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::ledger::{self, Ledger, Standing};
use super::{Event, told_by_host_program};
use crate::process::{Identity, Life, Watch, Woken};
use crate::project::{Project, TaskId};
use crate::task::{State, Task, View};

/// How often a waiter looks without being woken.
const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// What a waiter looks at.
pub struct Waiter {
    project: Project,
    /// Only these tasks; all if there is none.
    only: Vec<TaskId>,
    /// Only tasks that this host owns, and not what its program tells by itself.
    host: Option<Identity>,
    seen: BTreeMap<TaskId, Seen>,
    /// Changes when a task comes or goes.
    all: Stamp,
}

struct Seen {
    mark: Vec<Stamp>,
    view: View,
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
        Self { project, only, host, seen: BTreeMap::new(), all: None }
    }

    /// Reads all tasks once.
    pub fn read(&mut self) {
        self.refresh(true);
    }

    /// How many tasks may still bring news.
    pub fn active(&self) -> usize {
        let active = |seen: &&Seen| matches!(seen.view.state, State::Running | State::Asking);
        self.seen.values().filter(active).count()
    }

    /// Waits for news, for at most `limit`.
    pub fn wait(&mut self, watch: &mut Watch, limit: Option<Duration>) -> Result<Outcome> {
        let begin = Instant::now();
        let mut whole = true;
        loop {
            if self.refresh(whole) {
                let mut news = self.news()?;
                if news.is_empty() {
                    // What happened between the look and the new watches is seen by a second look.
                    self.attach(watch);
                    self.refresh(true);
                    news = self.news()?;
                }
                if !news.is_empty() {
                    return Ok(Outcome::News(news));
                }
            }
            if self.host.as_ref().is_some_and(|host| host.life() == Life::Dead) {
                return Ok(Outcome::HostDied);
            }
            if self.active() == 0 {
                return Ok(Outcome::Nothing);
            }
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                return Ok(Outcome::Timeout(self.active()));
            }
            match watch.wait(left.map_or(SAFETY_SCAN, |left| left.min(SAFETY_SCAN)))? {
                Woken::Signal(signal) => return Ok(Outcome::Signal(signal)),
                Woken::Changed => whole = true,
                Woken::Timeout => whole = !watch.events(),
            }
        }
    }

    /// Reads the tasks again: all of them, or those whose files have new time stamps. Says whether
    /// any was read. A task that cannot be read is left to `dispatch-reconcile`, which says why.
    fn refresh(&mut self, whole: bool) -> bool {
        let all = stamp(self.project.tasks_dir());
        let whole = whole || all != self.all;
        self.all = all;
        let tasks: Vec<Task> = if whole {
            let wanted = |task: &Task| self.only.is_empty() || self.only.contains(task.id());
            self.project.tasks().into_iter().filter(wanted).collect()
        } else {
            self.seen.values().map(|seen| seen.view.task.clone()).collect()
        };
        if whole {
            self.seen.retain(|id, _| tasks.iter().any(|task| task.id() == id));
        }
        let mut changed = false;
        for task in tasks {
            let mut mark: Vec<Stamp> = directories(&task).iter().map(stamp).collect();
            mark.push(stamp(task.plan_path()));
            if !whole && self.seen.get(task.id()).is_some_and(|seen| seen.mark == mark) {
                continue;
            }
            let Ok(view) = task.view() else { continue };
            if self.host.is_some() && view.record.owner != self.host {
                self.seen.remove(task.id());
                continue;
            }
            changed = true;
            self.seen.insert(task.id().clone(), Seen { mark, view });
        }
        changed
    }

    fn news(&self) -> Result<Vec<Event>> {
        let mut news = Vec::new();
        for Seen { view, .. } in self.seen.values() {
            let mut events = super::events(view)?;
            if self.host.is_some() {
                events.retain(|event| !told_by_host_program(view, event));
            }
            // Opening the ledger to write wakes everybody who watches the task.
            let told = ledger::read(&view.task)?;
            events.retain(|event| !told.contains_key(&event.id));
            if events.is_empty() {
                continue;
            }
            let mut ledger = Ledger::open(&view.task)?;
            for event in events {
                if ledger.standing(&event) == Standing::New {
                    ledger.deliver(&event, self.host.as_ref())?;
                    news.push(event);
                }
            }
        }
        Ok(news)
    }

    fn attach(&self, watch: &mut Watch) {
        watch.directory(&self.project.tasks_dir());
        if let Some(host) = &self.host {
            watch.process(host);
        }
        for seen in self.seen.values() {
            for place in directories(&seen.view.task) {
                watch.directory(&place);
            }
            for process in &seen.view.processes {
                watch.process(process);
            }
        }
    }
}

/// The directories whose entries decide a task's state.
fn directories(task: &Task) -> Vec<PathBuf> {
    let mut places = vec![
        task.directory().to_path_buf(),
        task.ipc().directory().to_path_buf(),
        task.tells_dir(),
        task.directory().join("worker"),
    ];
    places.extend(task.last_attempt().map(|attempt| attempt.directory().to_path_buf()));
    places
}

/// What changes when a directory's entries or a file's content do.
type Stamp = Option<(u64, i64, i64, u64)>;

fn stamp(path: impl AsRef<Path>) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}
