//! Waiting for news of tasks.
//!
//! Invariant: an event only causes a read; the files decide what is news.

mod live;

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::domain::{Route, TaskId};
use crate::fault;
use crate::ipc::Looks;
use crate::news::ledger::{self, Delivery};
use crate::news::{self, Event, host_report_time_left};
use crate::process::{Identity, Life, calling_host, is_interactive};
use crate::project::Project;
use crate::task::{State, View};

use live::LOOK;
pub use live::LiveTasks;

/// How long a batch of news may grow before it is delivered.
const LONGEST_BATCH: Duration = Duration::from_secs(3);

/// How long further messages of a worker wait for other news after one has woken the host.
const TELL_RATE: Duration = Duration::from_secs(60);

/// A process's wait for news of tasks.
pub struct Waiter {
    tasks: LiveTasks,
    /// `true` if this waits also while a task can only be continued by a person.
    stays: bool,
    /// The host that reads this process's output.
    listener: Option<Identity>,
    /// The questions that are being written.
    growing: Looks,
    /// `true` if an end was held back at the last read, because another attempt may follow.
    holds_back: bool,
}

/// The end of a wait.
pub enum WaitOutcome {
    /// News came and is already recorded as delivered.
    News(Vec<Event>),
    /// The time limit passed while this many tasks were running.
    Timeout(usize),
    /// No task can bring news any more.
    NothingActive,
    /// The host's process died, or this process got a signal.
    Interrupted,
}

impl Waiter {
    /// A waiter for the tasks in `only`, or for all if it is empty. With a host, only for tasks that it
    /// owns, without what it reports itself, and as its hook in all projects. From now on, SIGINT, SIGTERM
    /// and SIGHUP only end a wait.
    ///
    /// # Errors
    /// The system has no event queue.
    pub fn new(
        project: Project,
        only: Vec<TaskId>,
        host: Option<Identity>,
        is_hook: bool,
    ) -> Result<Self> {
        let (mut tasks, listener) = (LiveTasks::new(project, only, host)?, calling_host());
        tasks.is_hook = is_hook;
        Ok(Self {
            stays: is_hook && is_interactive(),
            tasks,
            listener,
            growing: Looks::default(),
            holds_back: false,
        })
    }

    /// How many tasks may bring news, as they are now.
    pub fn count_active(&mut self) -> usize {
        self.tasks.forget();
        self.tasks.refresh();
        self.active()
    }

    fn active(&self) -> usize {
        // A read that failed once is repeated at the next look.
        let open = |view: &&View| is_active(view) || self.stays && can_continue(view);
        let active = self.tasks.views().filter(open).count() + self.tasks.missed();
        if active == 0 { usize::from(self.stays && self.tasks.can_continue()) } else { active }
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
                return Ok(WaitOutcome::Interrupted);
            }
            let news = self.read_news()?;
            if self.tasks.polls && !std::mem::replace(&mut warned, true) {
                warn_polling();
            }
            if !news.is_empty() {
                return Ok(WaitOutcome::News(news));
            }
            if self.active() == 0 && !self.holds_back {
                return Ok(WaitOutcome::NothingActive);
            }
            let left = limit.map_or(LOOK, |limit| limit.saturating_sub(begin.elapsed()));
            if left.is_zero() {
                return Ok(WaitOutcome::Timeout(self.active()));
            }
            if self.tasks.wait(left)? {
                return Ok(WaitOutcome::Interrupted);
            }
        }
    }

    /// Collects further news until none has come for `pause`. An error ends the collection, because what
    /// was collected is already recorded as delivered.
    pub fn collect_more(&mut self, pause: Duration) -> Vec<Event> {
        let (begin, mut last, mut all) = (Instant::now(), Instant::now(), Vec::new());
        while begin.elapsed() < LONGEST_BATCH {
            let left = pause.saturating_sub(last.elapsed());
            if left.is_zero() || !matches!(self.tasks.wait(left), Ok(false)) {
                break;
            }
            let Ok(news) = self.read_news() else { break };
            if !news.is_empty() {
                last = Instant::now();
            }
            all.extend(news);
        }
        all
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
        let mut news = Vec::new();
        self.holds_back = false;
        for id in self.tasks.refresh() {
            let Some(view) = self.tasks.view_mut(&id) else { continue };
            let ipc = view.task.side().ipc();
            for (question, found) in &mut view.questions {
                found.is_whole = self.growing.takes(ipc.question_path(&question.name), found);
            }
            let Some(Ok(view)) = self.tasks.get(&id) else { continue };
            match self.news_of(view) {
                Ok((events, holds_back)) => {
                    if events.is_empty() && !holds_back {
                        // After an error, the next hook reads the task once more.
                        let _ = self.tasks.host.as_ref().map_or(Ok(()), |it| set_heard(it, view));
                    }
                    news.extend(events);
                    if holds_back {
                        self.holds_back = true;
                        self.tasks.read_again(&id, false);
                    }
                }
                // Events already recorded as delivered must be returned, despite the error.
                Err(error) if !self.tasks.only.is_empty() && news.is_empty() => return Err(error),
                Err(_) => self.tasks.read_again(&id, true),
            }
        }
        Ok(news)
    }

    /// The news of a task, recorded as delivered, and whether some was held back: its end if another
    /// attempt may follow, and messages alone that come soon after others that woke the host.
    fn news_of(&self, view: &View) -> Result<(Vec<Event>, bool)> {
        let (mut events, may_resume) = (news::events(view)?, may_resume(view));
        // The host program reports the end of its own agent; if that is dropped, it is printed later.
        let host_reports = self.tasks.host.is_some() && host_report_time_left(view).is_some();
        events.retain(|event| !(event.is_end() && (may_resume || host_reports)));
        // The task may belong to a running host that does not read this output.
        let owner = view.record.owner.as_ref().filter(|it| Some(*it) != self.listener.as_ref());
        let is_foreign = owner.is_some_and(|owner| owner.life() != Life::Dead);
        let target = if is_foreign { Delivery::Shown } else { Delivery::Delivered };
        if self.tasks.host.is_some() && events.iter().any(Event::is_tell) {
            let told = ledger::read(&view.task)?;
            let is_new = |it: &&Event| told.get(&it.id).is_none_or(|step| *step < target);
            let rate = fault::limit("DISPATCH_TELL_MS", TELL_RATE);
            let is_soon = ledger::time_since_tell(&view.task)?.is_some_and(|it| it < rate);
            if is_soon && events.iter().filter(is_new).all(Event::is_tell) {
                return Ok((Vec::new(), events.iter().any(|it| is_new(&it)) || may_resume));
            }
        }
        let events = ledger::take_new(&view.task, events, target, self.tasks.host.as_ref())?;
        Ok((events, may_resume))
    }
}

/// Returns true if another attempt may follow the one that ended: until its supervisor exits, for one.
fn may_resume(view: &View) -> bool {
    view.resumes_soon()
        || view.is_being_started()
        || view.is_between_attempts() && view.state != State::Done
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

/// Returns true if a person may continue the ended task from another terminal. An agent's host does that
/// itself.
fn can_continue(view: &View) -> bool {
    view.state.has_work_left() && view.record.route == Route::Cli
}

/// Marks a task in its host's index if it ended and the host has seen all of its news.
fn set_heard(host: &Identity, view: &View) -> Result<()> {
    let has_ended = match view.record.route {
        Route::Cli => view.exit.is_some() && view.state.has_ended(),
        // Another agent may still run.
        Route::Agent => view.state == State::Done,
    };
    if !has_ended {
        return Ok(());
    }
    let told = ledger::read(&view.task)?;
    let is_seen = |event: &Event| told.get(&event.id) == Some(&Delivery::Acknowledged);
    if !news::events(view)?.iter().all(is_seen) {
        return Ok(());
    }
    view.task.settle(view)?;
    view.task.index(host).set_heard(&view.task)
}
