//! The state of a task and its reason.
//!
//! Invariant: the state is never stored. [`derive`] computes it from the task's files and processes, and
//! each row of its table has a test.

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
    /// The person stopped the task.
    Stopped,
    /// A worker is running.
    Running,
    /// The task has no worker and waits for one to start.
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
    /// Whether the worker ended in a way that its host has to hear of: all ends but a stop.
    pub fn ended(self) -> bool {
        matches!(self, Self::Blocked | Self::Failed | Self::Incomplete | Self::Done)
    }
}

/// The reason for a state, where the state alone does not tell it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The state alone tells it.
    None,
    /// The worker marked the item with this number as failed or blocked.
    Item(String),
    /// The program could not be started, with the error.
    NotStarted(String),
    /// The worker exited with this code.
    ExitCode(i32),
    /// The signal with this number ended the worker.
    Signal(i32),
    /// The attempt ended for a reason that code and signal do not explain.
    Ended(StopReason),
    /// The worker disappeared without an exit status.
    Lost,
    /// The CLI reported this failure.
    Cli(Failure),
    /// The CLI denied these tool calls.
    Denied(Vec<String>),
    /// The worker has been silent since this time (RFC 3339), for longer than the config allows.
    Silent(String),
    /// The task waits for this and has no worker.
    Waits(Wait),
    /// The worker exited cleanly with all items ticked, without the finish marker.
    MarkerMissing,
    /// The worker set the finish marker and left items unticked.
    MarkerTooEarly,
    /// The plan lost these items, as text, since the attempt began.
    ItemsLost(String),
    /// A line of the plan may be an item and is not counted, as text.
    LineInDoubt(String),
    /// A file on the worker's side cannot be read, with the error.
    Unreadable(String),
}

/// A task's state and reason in one word. The order is by urgency for a person, most urgent first.
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
    /// The worker is running and has been silent for longer than the config allows.
    Silent,
    /// The worker disappeared without an exit status.
    Lost,
    /// The worker ended by itself and left items unticked.
    Incomplete,
    /// A task that must be done first cannot finish by itself.
    Held,
    /// The task waits for the reset of a rate limit.
    Parked,
    /// A worker is running.
    Running,
    /// The task waits for a free slot, or for tasks that must be done first.
    Queued,
    /// The person stopped the task.
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
    /// There was an attempt.
    attempted: bool,
    /// The last attempt's worker or its supervisor is running.
    alive: bool,
    /// The worker is the host's agent.
    agent: bool,
    /// The person stopped the task.
    stop: bool,
    /// The finish marker exists.
    finished: bool,
    /// All items are ticked and the plan has no flaw.
    complete: bool,
    /// A question has no answer.
    question: bool,
    /// The number of the first item that is marked as blocked.
    blocked: Option<String>,
    /// The number of the first item that is marked as failed.
    failed: Option<String>,
    /// The last attempt's end.
    exit: Option<ExitRecord>,
    /// The recorded wait.
    wait: Option<Wait>,
    /// The time since which the worker has been silent.
    silent: Option<String>,
    /// The flaw that keeps the plan from being complete.
    flaw: Option<Reason>,
}

/// How long a plan may be half written while its worker is alive.
const PLAN_EDIT_TIME: Duration = Duration::from_secs(1);

/// The table. The first row that matches decides.
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
        Facts {
            alive: true,
            flaw: Some(flaw @ (Reason::ItemsLost(_) | Reason::Unreadable(_))),
            ..
        } => (State::Running, flaw.clone()),
        Facts { alive: true, .. } => (State::Running, Reason::None),
        Facts { exit: Some(ExitRecord { not_started: Some(error), .. }), .. } => {
            (State::Failed, Reason::NotStarted(error.clone()))
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

/// The rows of the table for a worker that ended without a failed or blocked item.
fn derive_end(exit: &ExitRecord, complete: bool, finished: bool) -> (State, Reason) {
    // Once the CLI has reported its result, the plan decides, whatever ended the process.
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

/// What the worker's side says. It gives marks, questions and a summary, as quotations.
struct WorkersWords {
    plan: Plan,
    questions: Vec<(Question, String)>,
    summary: Option<String>,
}

impl WorkersWords {
    fn read(task: &Task, attempt: Option<&Attempt>, is_running: bool) -> Result<Self> {
        let (side, mut questions) = (task.side(), Vec::new());
        side.refuse_symlinks()?;
        let ipc = side.ipc();
        let answers = task.answers()?;
        for question in ipc.questions()?.into_iter().filter(|question| !question.received) {
            // A running worker also takes an answer that was written by hand.
            let answered = is_running && question.answered
                || answers.iter().any(|(name, _)| *name == question.name);
            // Skip an empty file: `echo > NNN.question` writes the text a moment later.
            let text = if answered { None } else { ipc.question(&question.name)? };
            if let Some(text) = text.filter(|text| !text.trim().is_empty()) {
                questions.push((question, text));
            }
        }
        let start = attempt.map(Attempt::plan).transpose()?.flatten();
        let plan = match attempt {
            // Nobody has had the plan yet who could have lost it.
            None if !side.plan_path().exists() => task.dispatched_plan()?,
            _ => side.plan(start.as_ref())?,
        };
        Ok(Self { plan, questions, summary: ipc.finished()? })
    }
}

/// What is wrong with a file on the worker's side, with its path in there.
fn trouble(task: &Task, error: &anyhow::Error) -> String {
    let text = format!("{error:#}").replace(&format!("{}/", task.side().directory().display()), "");
    text.lines().next().unwrap_or_default().into()
}

/// A task as it was at one moment: everything that its state depends on.
#[derive(Clone, Debug)]
pub struct View {
    /// The task that was read.
    pub task: Task,
    /// The task's record.
    pub record: Record,
    /// The task's plan.
    pub plan: Plan,
    /// The last attempt, if there was one.
    pub attempt: Option<Attempt>,
    /// The last attempt's end, if it is recorded.
    pub exit: Option<ExitRecord>,
    /// The questions without an answer, oldest first, with their text.
    pub questions: Vec<(Question, String)>,
    /// Whether an answer is recorded that no worker has read.
    pub unread_answer: bool,
    /// The text of the finish marker, if the marker exists.
    pub summary: Option<String>,
    /// The state of the task.
    pub state: State,
    /// The reason for the state.
    pub reason: Reason,
    /// The running processes whose death changes the state: the worker and its supervisor.
    pub processes: Vec<Identity>,
}

impl View {
    /// Reads a task and derives its state.
    ///
    /// # Errors
    /// A file that cannot be read, a broken record, or a task without a record.
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
        // The life of a process in another namespace is unknown; then the run lock decides.
        let run_lock = task.run_lock_path();
        let is_running = |process: &Identity| match process.life() {
            Life::Alive => true,
            Life::Dead => false,
            Life::Unknown => Lock::is_held(&run_lock).unwrap_or(true),
        };
        processes.retain(is_running);
        // Read the end first, so that the reads below see all that the worker wrote before it.
        let exit = attempt.as_ref().map(Attempt::exit).transpose()?.flatten();
        // A wait is written before the attempt's end and removed after the next attempt is created.
        let wait = task.wait()?;
        let next = attempt.as_ref().map(|attempt| task.attempt(attempt.number + 1));
        // Skip attempt numbers that a directory scan would ignore.
        let next = next.filter(|next| parse_number(&next.number.to_string()).is_some());
        // Read again if the next attempt began in between.
        if wait.is_none() && exit.is_some() && next.is_some_and(|next| next.directory().exists()) {
            return Self::load(task);
        }
        // During a wait, the running process is a supervisor without a worker.
        let unfinished = attempt.as_ref().filter(|_| exit.is_none() && wait.is_none());
        let running = unfinished.filter(|_| !processes.is_empty());
        let unread_answer = task.has_untold_answer()?;
        let (words, trouble) = match WorkersWords::read(task, attempt.as_ref(), running.is_some()) {
            Ok(words) => (words, None),
            // Whatever the worker did to its files, its end and its process stay visible.
            Err(error) => {
                let plan = task.dispatched_plan()?;
                let words = WorkersWords { plan, questions: Vec::new(), summary: None };
                (words, Some(Reason::Unreadable(trouble(task, &error))))
            }
        };
        let WorkersWords { plan, questions, summary } = words;
        // A running worker's editor may be writing the plan right now.
        let whole = running.is_none() || !modified_within(&task.side().plan_path(), PLAN_EDIT_TIME);
        let lost = !plan.lost().is_empty() && whole;
        let flaw = match plan.doubts().first() {
            _ if trouble.is_some() => trouble,
            _ if lost => Some(Reason::ItemsLost(plan.lost_words())),
            doubt => doubt.map(|doubt| Reason::LineInDoubt(doubt.to_string())),
        };
        let facts = Facts {
            attempted: attempt.is_some(),
            alive: running.is_some(),
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
            silent: running.map(Attempt::silent_since).transpose()?.flatten(),
        };
        let (state, reason) = derive(&facts);
        // The task may have been removed while it was read.
        if !task.was_dispatched() {
            bail!("task '{}' was removed", task.id());
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

    /// The worker's explanation beside the mark of the item with this number; may be empty.
    pub fn item_explanation(&self, number: &str) -> String {
        self.plan.item(number).map_or_else(|_| String::new(), Item::explanation)
    }

    /// Whether the worker is alive. For an agent this only means that its host is alive.
    pub fn is_alive(&self) -> bool {
        self.attempt.is_some() && self.exit.is_none() && !self.processes.is_empty()
    }

    /// Whether the worker ended and its supervisor did not, which is about to exit or to start the next
    /// attempt.
    pub fn is_between_attempts(&self) -> bool {
        let ended = self.record.route == Route::Cli && self.exit.is_some();
        ended && Lock::is_held(&self.task.run_lock_path()).unwrap_or(false)
    }

    /// Whether an answer came after the worker's end, so that the task can resume with it.
    pub fn has_late_answer(&self) -> bool {
        let ended = matches!(self.state, State::Blocked | State::Failed | State::Incomplete);
        ended && self.unread_answer
    }

    /// Whether a late answer came so recently that its sender is about to resume the task.
    pub fn resumes_soon(&self) -> bool {
        /// How long a helper may take to resume the task after it recorded an answer.
        const RESUME_LIMIT: Duration = Duration::from_secs(10);
        self.has_late_answer() && self.task.was_answered_within(RESUME_LIMIT)
    }

    /// The state and reason in one word.
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

    /// The explanation to print beside the label, without a repetition of it; may be empty.
    pub fn label_explanation(&self) -> String {
        let text = self.explanation();
        text.strip_prefix(&format!("{}: ", self.label())).map(Into::into).unwrap_or(text)
    }

    /// The sum of the usage of all attempts that reported one.
    pub fn usage(&self) -> Option<Usage> {
        let last = self.attempt.as_ref()?.number;
        let read = |attempt: Attempt| attempt.usage().ok()?;
        let of_last = match &self.exit {
            Some(exit) if exit.usage.is_some() => exit.usage.clone(),
            _ if self.record.route == Route::Agent => read(self.attempt.clone()?),
            _ => None,
        };
        let all = if last > 1 { self.task.attempts().ok()? } else { Vec::new() };
        let earlier = all.into_iter().filter(|attempt| attempt.number < last);
        earlier.filter_map(read).chain(of_last).reduce(Usage::with)
    }

    /// The item that the worker is at.
    pub fn current_item(&self) -> Option<&Item> {
        self.plan.current()
    }

    /// The run time of the last attempt if it ended, else the time since the dispatch.
    pub fn age(&self) -> Duration {
        if let Some(exit) = &self.exit {
            return Duration::from_millis(exit.milliseconds);
        }
        let created = humantime::parse_rfc3339(&self.record.created).unwrap_or(SystemTime::now());
        SystemTime::now().duration_since(created).unwrap_or_default()
    }

    /// The reason as text for a person; may be empty.
    pub fn explanation(&self) -> String {
        match &self.reason {
            Reason::None => String::new(),
            Reason::Item(number) => format!("item {number}: {}", self.item_explanation(number)),
            Reason::NotStarted(error) => format!("could not start: {error}"),
            Reason::ExitCode(code) => format!("exit code {code}{}", self.last_output_line()),
            Reason::Signal(signal) => {
                format!("ended by signal {signal}{}", self.last_output_line())
            }
            Reason::Ended(reason) => reason.to_string(),
            Reason::Lost => "lost: the worker disappeared".into(),
            Reason::Cli(failure) => format!("{}: {}", failure.kind, failure.said),
            Reason::Denied(calls) => format!("denied: {}", calls.join(", ")),
            Reason::Silent(since) => format!("no sign of life since {since}"),
            Reason::Waits(wait) => wait.to_string(),
            Reason::MarkerMissing => "finish marker missing".into(),
            Reason::MarkerTooEarly => "finish marker set with items unticked".into(),
            Reason::ItemsLost(items) => format!("the plan lost {items}"),
            Reason::LineInDoubt(doubt) => doubt.clone(),
            Reason::Unreadable(error) => error.clone(),
        }
    }

    /// The last line of the worker's output after a colon; empty without output.
    fn last_output_line(&self) -> String {
        let last = self.attempt.iter().flat_map(|attempt| output::last_lines(attempt, 1)).next();
        last.map_or_else(String::new, |line| format!(": {line}"))
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
