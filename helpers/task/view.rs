//! A task as it was at one moment: both sides are read, and the state is derived from them.
//!
//! Invariant: an unreadable file on the worker's side never hides the task's end or its processes.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::domain::{Route, Usage};
use crate::files::{self, Lock, modified_within, parse_number};
use crate::ipc::{IpcText, Question};
use crate::plan::{Item, Marker, Plan};
use crate::process::{Identity, Life};
use crate::task::state::{Facts, derive};
use crate::task::{
    Attempt, ExitRecord, FailedCheck, Gate, Reason, Record, Remote, State, StopReason, Task,
    numbered, output,
};
use crate::text::{one_line, quoted};

/// How long a plan may be half written while its worker is alive.
const PLAN_EDIT_TIME: Duration = Duration::from_secs(1);

/// The statements of the worker's side: marks, questions and a summary, as quotations. They are frozen
/// on the person's side when an attempt ends, and nothing that is written later changes them.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct WorkersWords {
    plan: String,
    questions: Vec<(Question, IpcText)>,
    summary: Option<String>,
    /// Why the worker's side cannot be read; the plan is the dispatched one then.
    trouble: Option<String>,
}

impl WorkersWords {
    /// The words as they are now. Whatever the worker did to its files, its end and its process stay
    /// visible.
    pub(super) fn now(task: &Task, is_running: bool) -> Result<Self> {
        Self::read(task, is_running).or_else(|error| Self::unreadable(task, &error))
    }

    /// The dispatched plan, in place of words that cannot be read.
    pub(super) fn unreadable(task: &Task, error: &anyhow::Error) -> Result<Self> {
        let plan = task.dispatched_plan()?.to_string();
        // Paths are relative to the worker's side.
        let side = format!("{}/", task.side().directory().display());
        let trouble = format!("{error:#}").replace(&side, "");
        let trouble = trouble.lines().next().map(str::to_owned);
        Ok(Self { plan, trouble, ..Self::default() })
    }

    /// Returns true if the worker finished and every item is ticked.
    pub(super) fn is_done(&self, attempt: &Attempt) -> bool {
        let start = attempt.plan().ok().flatten();
        self.summary.is_some() && numbered(&self.plan, start.as_ref()).complete()
    }

    /// The words after which nobody writes any more: each question is whole.
    pub(super) fn into_last(mut self) -> Self {
        self.questions.retain(|(_, text)| !text.is_empty());
        self.questions.iter_mut().for_each(|(_, text)| text.is_whole = true);
        self
    }

    fn read(task: &Task, is_running: bool) -> Result<Self> {
        let (side, mut questions) = (task.side(), Vec::new());
        side.refuse_symlinks()?;
        let ipc = side.ipc();
        let answers = task.answers()?;
        for question in ipc.questions()?.into_iter().filter(|question| !question.received) {
            // A running worker also takes an answer that was written by hand.
            let answered = is_running && ipc.has_answer(&question.name)
                || answers.iter().any(|(name, _)| *name == question.name);
            let text = if answered { None } else { ipc.question(&question.name)? };
            questions.extend(text.map(|text| (question, text)));
        }
        let plan = match files::read_lossy(&side.plan_path())? {
            Some(plan) => plan,
            // Nobody has had the plan yet who could have lost it.
            None if task.last_attempt().is_none() => task.dispatched_plan()?.to_string(),
            None => String::new(),
        };
        Ok(Self { plan, questions, summary: ipc.finished()?, trouble: None })
    }
}

/// The check that is due or failed; `None` if all passed, or there are none.
fn check(record: &Record, gate: Option<&Gate>) -> Option<Reason> {
    let first = record.first_check()?;
    match gate {
        None => Some(Reason::Checking(first)),
        Some(Gate { failed: Some(check), continues: false, .. }) => {
            Some(Reason::Check(check.clone()))
        }
        Some(Gate { failed: Some(check), .. }) => Some(Reason::Checking(check.command.clone())),
        Some(Gate { continues: true, .. }) => Some(Reason::Checking(first)),
        Some(gate) => gate.checking.clone().map(Reason::Checking),
    }
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
    /// The checks after the last attempt, if the person wants some and they began.
    pub gate: Option<Gate>,
    /// The questions without an answer, oldest first, with their text.
    pub questions: Vec<(Question, IpcText)>,
    /// True if an answer is recorded that no worker has read.
    pub unread_answer: bool,
    /// The text of the finish marker, if the marker exists.
    pub summary: Option<String>,
    /// The far end of a task at a place.
    pub remote: Option<Remote>,
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
        let is_cli = record.route == Route::Cli;
        let worker = attempt.as_ref().map(Attempt::identity).transpose()?.flatten();
        let supervisor = if is_cli { Lock::last_holder(&task.run_lock_path())? } else { None };
        // The life of a process in another namespace is unknown; then the run lock decides, or the scheduler.
        let is_running = |process: &Identity| match process.life() {
            Life::Alive => true,
            Life::Dead => false,
            Life::Unknown => task.is_supervised().unwrap_or(true),
        };
        let processes: Vec<_> = worker.into_iter().chain(supervisor).filter(is_running).collect();
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
        // At a place, nothing is judged by the processes here.
        let remote = record.place.as_ref().map(|_| task.remote()).transpose()?.flatten();
        let open = remote.as_ref().filter(|it| it.open);
        let lives = if record.place.is_some() { open.is_some() } else { !processes.is_empty() };
        let running = unfinished.filter(|_| lives);
        let seen = |it: &Remote| processes.is_empty().then(|| it.seen.clone());
        let unreachable = open.and_then(|it| it.unreachable.clone().or_else(|| seen(it)));
        let answers = task.answers()?;
        let unread_answer = answers.iter().any(|(name, _)| !task.is_told(name));
        let frozen = match &attempt {
            Some(attempt) if exit.is_some() && is_cli || task.time_since_done().is_some() => {
                attempt.words().or_else(|error| WorkersWords::unreadable(task, &error).map(Some))?
            }
            _ => None,
        };
        let words = frozen.map_or_else(|| WorkersWords::now(task, running.is_some()), Ok)?;
        let WorkersWords { plan, mut questions, summary, trouble } = words;
        // The person may have answered since the words were frozen.
        questions.retain(|(question, _)| answers.iter().all(|(name, _)| *name != question.name));
        let start = attempt.as_ref().map(Attempt::plan).transpose()?.flatten();
        let plan = numbered(&plan, start.as_ref());
        // A running worker's editor may be writing the plan right now.
        let whole = running.is_none() || !modified_within(&task.side().plan_path(), PLAN_EDIT_TIME);
        let lost = !plan.lost().is_empty() && whole;
        let flaw = match plan.doubts().first() {
            _ if trouble.is_some() => trouble.map(Reason::Unreadable),
            _ if lost => {
                Some(Reason::ItemsLost(plan.lost_words(task.dispatched_plan().ok().as_ref())))
            }
            doubt => doubt.map(|doubt| Reason::LineInDoubt(doubt.to_string())),
        };
        let checked = attempt.as_ref().filter(|_| record.first_check().is_some());
        let gate = checked.map(Attempt::gate).transpose()?.flatten();
        let error = remote.as_ref().and_then(|it| it.error.clone());
        let not_started = error.filter(|_| attempt.is_none() && open.is_none());
        let refused =
            not_started.map(|it| ExitRecord { not_started: Some(it), ..ExitRecord::default() });
        let facts = Facts {
            check: check(&record, gate.as_ref()),
            attempted: attempt.is_some() || refused.is_some(),
            alive: running.is_some(),
            agent: record.route == Route::Agent,
            stop: record.stop,
            finished: summary.is_some(),
            complete: plan.complete(),
            flaw,
            question: !questions.is_empty(),
            blocked: plan.first(Marker::Blocked).map(|item| item.number.clone()),
            failed: plan.first(Marker::Failed).map(|item| item.number.clone()),
            exit: exit.clone().or(refused),
            wait,
            unreachable,
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
            gate,
            questions,
            unread_answer,
            summary,
            remote,
            state,
            reason,
            processes,
        })
    }

    /// The questions without an answer whose text is whole, oldest first.
    pub fn whole_questions(&self) -> impl DoubleEndedIterator<Item = &Question> {
        let whole = self.questions.iter().filter(|(_, text)| text.is_whole);
        whole.map(|(question, _)| question)
    }

    /// The plan as the person dispatched it. All other words of the plan are a worker's, so an unreadable
    /// one counts as empty.
    pub fn person_plan(&self) -> Plan {
        self.task.dispatched_plan().unwrap_or_else(|_| Plan::parse(""))
    }

    /// An item for a line to the host: `item 2: Write the report`.
    pub fn item_words(&self, item: &Item) -> String {
        format!("item {}: {}", item.number, self.person_plan().attributed(item).0)
    }

    /// Returns true if the worker is alive. For an agent this only means that its host is alive.
    pub fn is_alive(&self) -> bool {
        let lives =
            if self.record.place.is_some() { self.is_open() } else { !self.processes.is_empty() };
        self.attempt.is_some() && self.exit.is_none() && lives
    }

    /// The task's name for the host, with the place whose word the rest of the line is.
    pub fn name(&self) -> String {
        let place = self.record.place.as_ref().map(|it| format!(" on {it}")).unwrap_or_default();
        format!("{}{place}", self.task.name())
    }

    /// Returns true if something of the task may run at its place.
    pub fn is_open(&self) -> bool {
        self.remote.as_ref().is_some_and(|it| it.open)
    }

    /// Returns true if the worker ended and its supervisor is about to exit or to start the next
    /// attempt.
    pub fn is_between_attempts(&self) -> bool {
        let ended = self.record.route == Route::Cli && self.exit.is_some();
        ended && self.task.is_supervised().unwrap_or(false)
    }

    /// Returns true if the worker finished and the person's checks have not all run.
    pub fn is_checking(&self) -> bool {
        matches!(self.reason, Reason::Checking(_))
    }

    /// Returns true if a rate limit or its budget keeps the task from going on.
    pub fn is_at_limit(&self) -> bool {
        let budget = |reason: &StopReason| matches!(reason, StopReason::Budget { .. });
        self.state == State::Parked || matches!(&self.reason, Reason::Ended(it) if budget(it))
    }

    /// Returns true if a helper is creating the attempt of an agent, which has no host yet.
    pub fn is_being_started(&self) -> bool {
        let agent = self.record.route == Route::Agent && self.state == State::Lost;
        agent && Lock::is_held(&self.task.lock_path()).unwrap_or(false)
    }

    /// Returns true if an answer came after the worker's end, so that the task can resume with it.
    pub fn has_late_answer(&self) -> bool {
        self.state.has_work_left() && self.unread_answer
    }

    /// Returns true if a late answer came so recently that its sender is about to resume the task.
    pub fn resumes_soon(&self) -> bool {
        /// How long a helper may take to resume the task after it recorded an answer.
        const RESUME_LIMIT: Duration = Duration::from_secs(10);
        self.has_late_answer() && modified_within(&self.task.answers_dir(), RESUME_LIMIT)
    }

    /// The sum of the usage of all attempts that reported one.
    pub fn usage(&self) -> Option<Usage> {
        let last = self.attempt.as_ref()?.number;
        let earlier = (1..last).map(|number| self.task.attempt(number));
        let earlier = earlier.filter_map(|attempt| attempt.usage().ok()?);
        let of_last = self.exit.as_ref().and_then(|exit| exit.usage.clone());
        let of_last = of_last.or_else(|| self.attempt.as_ref()?.usage().ok()?);
        earlier.chain(of_last).reduce(Usage::with)
    }

    /// The time of the last worker's end as far as the files tell, else that of the dispatch.
    pub fn ended_at(&self) -> SystemTime {
        let parsed = |time: &str| humantime::parse_rfc3339(time).ok();
        let exit = self.exit.as_ref().and_then(|exit| parsed(&exit.at));
        let finished = || self.task.side().ipc().finished_at();
        let ended = exit.or_else(finished).or_else(|| parsed(&self.record.created));
        ended.unwrap_or_else(SystemTime::now)
    }

    /// The run time of the last attempt if it ended, else the time since the dispatch.
    pub fn age(&self) -> Duration {
        if let Some(exit) = &self.exit {
            return Duration::from_millis(exit.milliseconds);
        }
        let created = humantime::parse_rfc3339(&self.record.created).unwrap_or(SystemTime::now());
        SystemTime::now().duration_since(created).unwrap_or_default()
    }

    /// The text to show beside the state, with a worker's words in quotation marks; may be empty. The
    /// reason comes first, else the summary or the item that the worker is at.
    pub fn detail(&self) -> String {
        let because = self.because();
        if !because.is_empty() {
            return because;
        }
        let item = || self.plan.current().map(|item| self.item_words(item));
        let summary = || self.summary.as_deref().filter(|summary| !summary.is_empty());
        match self.state {
            State::Done => summary().map_or_else(String::new, quoted),
            State::Asking if self.whole_questions().next().is_none() => {
                let growing = self.questions.first();
                growing.map_or_else(String::new, |(question, text)| {
                    format!("{}{}", question.name, text.remark())
                })
            }
            State::Incomplete => {
                item().map_or_else(String::new, |item| format!("ended before {item}"))
            }
            state if state.is_running() || state == State::Stopped => item().unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// The reason for the state, without a repetition of the state and with a worker's words in
    /// quotation marks; may be empty.
    pub fn because(&self) -> String {
        let text = self.reason_text();
        text.strip_prefix(&format!("{}: ", self.state)).map(Into::into).unwrap_or(text)
    }

    fn reason_text(&self) -> String {
        match &self.reason {
            Reason::None if self.record.stop && self.is_open() => {
                "stop is not confirmed yet".into()
            }
            Reason::None => String::new(),
            Reason::Item(number) => {
                let why = self.plan.item(number).map(|item| self.person_plan().explanation(item));
                format!("item {number}: {}", why.unwrap_or_default())
            }
            Reason::NotStarted(error) if error.starts_with("set-up: ") => error.clone(),
            Reason::NotStarted(error) => format!("could not start: {}", one_line(error)),
            Reason::ExitCode(code) => format!("exit code {code}{}", self.error_line()),
            Reason::Signal(signal) => format!("ended by signal {signal}{}", self.error_line()),
            Reason::Ended(reason) => reason.to_string(),
            Reason::Lost if self.record.route == Route::Agent => {
                "its agent ended with the session that started it".into()
            }
            Reason::Lost => "the worker disappeared".into(),
            Reason::Cli(failure) => format!("{}: {}", failure.kind, quoted(&failure.said)),
            Reason::Checking(command) => format!("checking: {}", one_line(command)),
            Reason::Check(FailedCheck { command, end, is_review, .. }) => {
                let check = if *is_review { "" } else { "check: " };
                format!("{check}{}: {end}", one_line(command))
            }
            Reason::Denied(calls) => quoted(&calls.join(", ")),
            Reason::Unreachable(since) => {
                let place = self.record.place.as_deref().unwrap_or_default();
                let stop = if self.record.stop { ", where it is not stopped yet" } else { "" };
                format!("{place}{stop}, since {since}")
            }
            Reason::Silent(since) => format!("no sign of life since {since}"),
            Reason::Waits(wait) => wait.to_string(),
            Reason::MarkerMissing => "finish marker missing".into(),
            Reason::MarkerTooEarly => "finish marker set with items unticked".into(),
            Reason::ItemsLost(items) => format!("the plan lost {items}"),
            Reason::LineInDoubt(doubt) => doubt.clone(),
            Reason::Unreadable(error) => one_line(error),
        }
    }

    /// The error in the worker's output, quoted after a colon; empty without output.
    fn error_line(&self) -> String {
        let line = self.attempt.as_ref().and_then(output::error_line);
        line.map_or_else(String::new, |line| format!(": {}", quoted(&line)))
    }
}
