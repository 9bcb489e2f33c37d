//! The state of a task, derived from its files and processes by one table.

use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::domain::{Failure, Route, Usage};
use crate::files::{Lock, modified_within, parse_number};
use crate::ipc::Question;
use crate::plan::{Item, Marker, Plan};
use crate::process::{Identity, Life};
use crate::task::{Attempt, ExitRecord, Record, StopReason, Task, Wait, output};

/// The state of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A running worker waits for an answer.
    Asking,
    /// The worker stopped because it needs an answer.
    Blocked,
    /// The worker stopped because of an error.
    Failed,
    /// The worker ended by itself and left items unticked.
    Incomplete,
    /// The person stopped it.
    Stopped,
    /// A worker is running.
    Running,
    /// No worker was started yet.
    Waiting,
    /// Every item is ticked and the worker said that it is finished.
    Done,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Asking => "asking",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Done => "done",
        })
    }
}

impl State {
    /// Whether the worker's part is over, so that the state is news.
    pub fn ended(self) -> bool {
        matches!(self, Self::Blocked | Self::Failed | Self::Incomplete | Self::Done)
    }
}

/// The reason for a state, where the state does not say it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Nothing to add.
    None,
    /// The worker marked that item.
    Item(String),
    /// The program could not be started.
    NotStarted(String),
    /// The worker exited with that code.
    ExitCode(i32),
    /// That signal ended the worker.
    Signal(i32),
    /// The attempt ended for a reason that code and signal do not explain.
    Ended(StopReason),
    /// The worker disappeared, and nobody saw how it ended.
    Lost,
    /// The CLI reported this failure.
    Cli(Failure),
    /// The worker was not allowed to do these things.
    Denied(Vec<String>),
    /// The worker has been silent since then, for longer than the config allows.
    Silent(String),
    /// The task waits, and has no worker yet.
    Waits(Wait),
    /// The worker exited cleanly with all items ticked, without the finish marker.
    MarkerMissing,
    /// The worker said that it finished and left items unticked.
    MarkerTooEarly,
    /// The plan lost these items since the attempt began.
    ItemsLost(String),
    /// A line of the plan may be an item that is not counted.
    LineInDoubt(String),
}

/// A task's state and its reason in one word. Ordered by urgency for a person, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// A running worker waits for an answer.
    Asking,
    /// The worker stopped because it needs an answer.
    Blocked,
    /// The worker stopped because of an error.
    Failed,
    /// The worker stopped because it was not allowed to do something.
    Denied,
    /// The worker runs and has shown no sign of life for long.
    Silent,
    /// The worker is gone and nobody saw it end.
    Lost,
    /// The worker ended by itself and left items unticked.
    Incomplete,
    /// A task before it cannot finish by itself.
    Held,
    /// The task waits for the reset of a rate limit.
    Parked,
    /// A worker is running.
    Running,
    /// The task waits in the queue, or for the tasks before it.
    Queued,
    /// The person stopped it.
    Stopped,
    /// The task is done.
    Done,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Asking => "asking",
            Self::Blocked => "blocked",
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Silent => "silent",
            Self::Lost => "lost",
            Self::Incomplete => "incomplete",
            Self::Held => "held",
            Self::Parked => "parked",
            Self::Running => "running",
            Self::Queued => "queued",
            Self::Stopped => "stopped",
            Self::Done => "done",
        })
    }
}

/// The facts that the table reads.
#[derive(Clone, Debug, Default)]
struct Facts {
    attempted: bool,
    alive: bool,
    agent: bool,
    stop: bool,
    finished: bool,
    complete: bool,
    question: bool,
    blocked: Option<String>,
    failed: Option<String>,
    exit: Option<ExitRecord>,
    wait: Option<Wait>,
    silent: Option<String>,
    /// What is wrong with the plan, so that it cannot be complete.
    flaw: Option<Reason>,
}

/// How long a plan may be half written while its worker is alive.
const EDIT: Duration = Duration::from_secs(1);

/// The table. The first row that fits decides.
fn derive(facts: &Facts) -> (State, Reason) {
    // An agent's process is its host's, so only its files show that it stopped.
    let agent_stopped = facts.agent && facts.alive && !facts.question;
    match facts {
        Facts { attempted: true, finished: true, complete: true, .. } => {
            (State::Done, Reason::None)
        }
        Facts { alive: false, stop: true, .. } => (State::Stopped, Reason::None),
        Facts { alive: false, wait: Some(wait), .. } => {
            (State::Waiting, Reason::Waits(wait.clone()))
        }
        Facts { attempted: false, .. } => (State::Waiting, Reason::None),
        Facts { alive: true, question: true, .. } => (State::Asking, Reason::None),
        Facts { failed: Some(item), .. } if agent_stopped => {
            (State::Failed, Reason::Item(item.clone()))
        }
        Facts { blocked: Some(item), .. } if agent_stopped => {
            (State::Blocked, Reason::Item(item.clone()))
        }
        Facts { finished: true, flaw, .. } if agent_stopped => {
            (State::Incomplete, flaw.clone().unwrap_or(Reason::MarkerTooEarly))
        }
        Facts { alive: true, silent: Some(since), .. } => {
            (State::Running, Reason::Silent(since.clone()))
        }
        Facts { alive: true, flaw: Some(flaw @ Reason::ItemsLost(_)), .. } => {
            (State::Running, flaw.clone())
        }
        Facts { alive: true, .. } => (State::Running, Reason::None),
        Facts { exit: Some(ExitRecord { not_started: Some(why), .. }), .. } => {
            (State::Failed, Reason::NotStarted(why.clone()))
        }
        Facts { failed: Some(item), .. } => (State::Failed, Reason::Item(item.clone())),
        Facts { blocked: Some(item), .. } => (State::Blocked, Reason::Item(item.clone())),
        Facts { question: true, .. } => (State::Blocked, Reason::None),
        Facts { exit: None, .. } => (State::Failed, Reason::Lost),
        Facts { exit: Some(exit), complete, finished, flaw, .. } => {
            match (derive_end(exit, *complete, *finished), flaw) {
                ((State::Incomplete, _), Some(flaw)) => (State::Incomplete, flaw.clone()),
                (end, _) => end,
            }
        }
    }
}

/// The part of the table for a worker that ended, when its plan does not decide.
fn derive_end(exit: &ExitRecord, complete: bool, finished: bool) -> (State, Reason) {
    // A worker that reported its result is judged by its plan, whatever ended the process.
    let had_result = exit.had_result();
    let clean = exit.failure.is_none() && (exit.code == Some(0) || had_result);
    match exit {
        _ if clean && complete => (State::Done, Reason::MarkerMissing),
        exit if exit.is_unseen() && !had_result => (State::Failed, Reason::Lost),
        ExitRecord { failure: Some(failure), .. } => (State::Failed, Reason::Cli(failure.clone())),
        ExitRecord { stop_reason: Some(reason), .. } if !had_result => {
            (State::Failed, Reason::Ended(reason.clone()))
        }
        ExitRecord { denied, .. } if !denied.is_empty() => {
            (State::Failed, Reason::Denied(denied.clone()))
        }
        ExitRecord { signal: Some(signal), stop_reason: None, .. } => {
            (State::Failed, Reason::Signal(*signal))
        }
        ExitRecord { code: Some(code @ 1..), .. } => (State::Failed, Reason::ExitCode(*code)),
        _ if finished => (State::Incomplete, Reason::MarkerTooEarly),
        _ => (State::Incomplete, Reason::None),
    }
}

/// A task as it is now.
#[derive(Clone, Debug)]
pub struct View {
    /// The task.
    pub task: Task,
    /// The task's record.
    pub record: Record,
    /// The plan as it is now.
    pub plan: Plan,
    /// The last attempt, if there was one.
    pub attempt: Option<Attempt>,
    /// The last attempt's end, if it was seen.
    pub exit: Option<ExitRecord>,
    /// The questions without an answer, oldest first, with their text.
    pub questions: Vec<(Question, String)>,
    /// Whether there is an answer that no worker has read.
    pub unread_answer: bool,
    /// The text of the finish marker, if it is there.
    pub summary: Option<String>,
    /// The state.
    pub state: State,
    /// The state's reason.
    pub reason: Reason,
    /// The processes whose death changes the state.
    pub processes: Vec<Identity>,
}

impl View {
    pub(super) fn load(task: &Task) -> Result<Self> {
        let record = task.record()?.with_context(|| format!("'{}' has no record", task.id()))?;
        let attempt = task.attempts()?.pop();
        let mut processes = Vec::new();
        if let Some(attempt) = &attempt {
            processes.extend(attempt.identity()?);
        }
        if record.route == Route::Cli {
            processes.extend(Lock::last_holder(&task.run_lock_path())?);
        }
        // A process of another namespace or machine cannot be judged, but the run lock can.
        let run_lock = task.run_lock_path();
        let running = |process: &Identity| match process.life() {
            Life::Alive => true,
            Life::Dead => false,
            Life::Unknown => Lock::is_held(&run_lock).unwrap_or(true),
        };
        processes.retain(running);
        // Read the end first: then everything the worker wrote before it is seen.
        let exit = attempt.as_ref().map(Attempt::exit).transpose()?.flatten();
        // A wait is written before the attempt's end and removed after the next attempt is created.
        let wait = task.wait()?;
        let next = attempt.as_ref().map(|attempt| task.attempt(attempt.number + 1));
        // Skip attempt numbers that a directory scan would ignore.
        let next = next.filter(|next| parse_number(&next.number.to_string()).is_some());
        if wait.is_none() && exit.is_some() && next.is_some_and(|next| next.directory().exists()) {
            return Self::load(task);
        }
        let ipc = task.ipc();
        let asked = ipc.questions()?;
        let unread_answer = asked.iter().any(|it| it.answered && !it.received);
        let mut questions = Vec::new();
        for question in asked.into_iter().filter(Question::is_open) {
            // `echo > NNN.question` leaves the file empty for a moment.
            let text = ipc.question(&question.name)?;
            if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                questions.push((question, text));
            }
        }
        let plan = task.plan_since(attempt.as_ref())?;
        let summary = ipc.finished()?;
        // Without an attempt, or during a wait, the supervisor has no worker.
        let unended = attempt.as_ref().filter(|_| exit.is_none() && wait.is_none());
        let at_work = unended.filter(|_| !processes.is_empty());
        // The worker's editor may be writing the plan right now.
        let whole = at_work.is_none() || !modified_within(&task.plan_path(), EDIT);
        let lost = !plan.lost().is_empty() && whole;
        let flaw = match plan.doubts().first() {
            _ if lost => Some(Reason::ItemsLost(plan.lost_words())),
            doubt => doubt.map(|doubt| Reason::LineInDoubt(doubt.to_string())),
        };
        let facts = Facts {
            attempted: attempt.is_some(),
            alive: at_work.is_some(),
            agent: record.route == Route::Agent,
            stop: record.stop,
            finished: summary.is_some(),
            complete: plan.complete(),
            flaw,
            question: !questions.is_empty(),
            blocked: plan.first(Marker::Blocked).map(|item| item.number.clone()),
            failed: plan.first(Marker::Failed).map(|item| item.number.clone()),
            exit: exit.clone(),
            wait,
            silent: at_work.map(Attempt::silent_since).transpose()?.flatten(),
        };
        let (state, reason) = derive(&facts);
        // A task that was removed meanwhile has no state.
        if !task.was_dispatched() {
            bail!("'{}' is gone", task.id());
        }
        let task = task.clone();
        Ok(Self {
            task,
            record,
            plan,
            attempt,
            exit,
            questions,
            unread_answer,
            summary,
            state,
            reason,
            processes,
        })
    }

    /// The worker's explanation beside an item's mark.
    pub fn explanation(&self, number: &str) -> String {
        self.plan.item(number).map_or_else(|_| String::new(), Item::explanation)
    }

    /// Whether the worker is alive. For an agent this only means that its host is alive.
    pub fn is_alive(&self) -> bool {
        self.attempt.is_some() && self.exit.is_none() && !self.processes.is_empty()
    }

    /// Whether the worker ended and its supervisor did not: it is about to exit or to start the next
    /// attempt.
    pub fn is_between_attempts(&self) -> bool {
        let ended = self.record.route == Route::Cli && self.exit.is_some();
        ended && Lock::is_held(&self.task.run_lock_path()).unwrap_or(false)
    }

    /// Whether an answer came after the worker's end, so that the task resumes.
    pub fn was_answered_late(&self) -> bool {
        let ended = matches!(self.state, State::Blocked | State::Failed | State::Incomplete);
        ended && self.unread_answer
    }

    /// Whether such an answer came so recently that its sender is about to resume the task.
    pub fn is_about_to_resume(&self) -> bool {
        const MOMENT: Duration = Duration::from_secs(10);
        let ipc = self.task.ipc();
        let asked = if self.was_answered_late() { ipc.questions() } else { Ok(Vec::new()) };
        let mut unread = asked.unwrap_or_default().into_iter().filter(|it| !it.received);
        unread.any(|it| ipc.was_answered_within(&it.name, MOMENT))
    }

    /// The label: state and reason in one word.
    pub fn label(&self) -> Label {
        match (self.state, &self.reason) {
            (State::Asking, _) => Label::Asking,
            (State::Blocked, _) => Label::Blocked,
            (State::Failed, Reason::Denied(_)) => Label::Denied,
            (State::Failed, Reason::Lost) => Label::Lost,
            (State::Failed, _) => Label::Failed,
            (State::Incomplete, _) => Label::Incomplete,
            (State::Stopped, _) => Label::Stopped,
            (State::Running, Reason::Silent(_)) => Label::Silent,
            (State::Running, _) => Label::Running,
            (State::Waiting, Reason::Waits(Wait::Held { .. })) => Label::Held,
            (State::Waiting, Reason::Waits(Wait::Parked { .. })) => Label::Parked,
            (State::Waiting, _) => Label::Queued,
            (State::Done, _) => Label::Done,
        }
    }

    /// The reason, without the words of the label.
    pub fn why(&self) -> String {
        let because = self.because();
        because.strip_prefix(&format!("{}: ", self.label())).map(Into::into).unwrap_or(because)
    }

    /// The usage of all attempts together, as far as it was reported.
    pub fn usage(&self) -> Option<Usage> {
        let last = self.attempt.as_ref()?.number;
        let read = |attempt: Attempt| attempt.usage().ok()?;
        let of_last = match &self.exit {
            Some(exit) if exit.usage.is_some() => exit.usage.clone(),
            _ if self.record.route == Route::Agent => read(self.attempt.clone()?),
            _ => None,
        };
        let all = if last > 1 { self.task.attempts().ok()? } else { Vec::new() };
        let before = all.into_iter().filter(|attempt| attempt.number < last);
        before.filter_map(read).chain(of_last).reduce(Usage::with)
    }

    /// The current item.
    pub fn current(&self) -> Option<&Item> {
        self.plan.current()
    }

    /// The time since the dispatch, or the run time of the last attempt if it ended.
    pub fn age(&self) -> Duration {
        if let Some(exit) = &self.exit {
            return Duration::from_millis(exit.milliseconds);
        }
        let created = humantime::parse_rfc3339(&self.record.created).unwrap_or(SystemTime::now());
        SystemTime::now().duration_since(created).unwrap_or_default()
    }

    /// The reason in a person's words; may be empty.
    pub fn because(&self) -> String {
        match &self.reason {
            Reason::None => String::new(),
            Reason::Item(number) => format!("item {number}: {}", self.explanation(number)),
            Reason::NotStarted(why) => format!("could not start: {why}"),
            Reason::ExitCode(code) => format!("exit code {code}{}", self.last_words()),
            Reason::Signal(signal) => format!("ended by signal {signal}{}", self.last_words()),
            Reason::Ended(reason) => reason.to_string(),
            Reason::Lost => "lost: the worker is gone and nobody saw it end".into(),
            Reason::Cli(failure) => format!("{}: {}", failure.kind, failure.said),
            Reason::Denied(what) => format!("denied: {}", what.join(", ")),
            Reason::Silent(since) => format!("no sign of life since {since}"),
            Reason::Waits(wait) => wait.to_string(),
            Reason::MarkerMissing => "finish marker missing".into(),
            Reason::MarkerTooEarly => "said finished with items unticked".into(),
            Reason::ItemsLost(items) => format!("its plan lost {items}"),
            Reason::LineInDoubt(doubt) => doubt.clone(),
        }
    }

    /// The last line of the worker's log, as `: …`.
    fn last_words(&self) -> String {
        let last = self.attempt.iter().flat_map(|attempt| output::last_lines(attempt, 1)).next();
        last.map_or_else(String::new, |line| format!(": {line}"))
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
