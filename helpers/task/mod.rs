//! A task: the person's side in the home directory, the worker's side in the project, and the attempts.
//!
//! Invariant: what decides anything is read from the person's side, which no sandboxed worker can
//! write. Records change under the task's lock, and each file is replaced as a whole.

mod attempt;
pub mod output;
mod record;
pub mod state;
mod view;
mod worker_side;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::domain::{Route, TaskId};
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::plan::Plan;
use attempt::read_json;
use view::WorkersWords;
use worker_side::append_missing;

pub use attempt::{Attempt, ExitRecord, FailedCheck, Gate, Remote, SessionRecord, StopReason};
pub use record::{Answer, Dependency, FORMAT, HostIndex, Job, Record, Wait, own_helper};
pub use state::{Reason, State};
pub use view::View;
pub use worker_side::WorkerSide;

/// How long a helper waits for a task's lock, which others hold for milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// A task, by its two directories, which need not exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    id: TaskId,
    state_dir: PathBuf,
    side: WorkerSide,
    /// `true` if the helper was not called in the task's project, so that commands need `-C`.
    is_elsewhere: bool,
}

impl Task {
    pub(crate) fn new(id: TaskId, state_dir: PathBuf, directory: PathBuf) -> Self {
        Self { id, state_dir, side: WorkerSide::new(directory), is_elsewhere: false }
    }

    /// The dispatched task with this person's side.
    ///
    /// # Errors
    /// There is no readable record.
    pub fn at_state(state_dir: &Path) -> Result<Self> {
        let name = state_dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let task = Self::new(name.parse()?, state_dir.into(), PathBuf::new());
        let record = task.record()?.context("the task has no record")?;
        Ok(Self { side: WorkerSide::new(record.task_directory), ..task })
    }

    /// Another task of the same project.
    pub fn sibling(&self, id: TaskId) -> Self {
        let directory = self.side.directory().with_file_name(id.as_str());
        Self::new(id.clone(), self.state_dir.with_file_name(id.as_str()), directory)
    }

    /// The task's name, which is also the name of its directories.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// The person's side, absolute.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The worker's side.
    pub fn side(&self) -> &WorkerSide {
        &self.side
    }

    /// The plan as the person dispatched it.
    pub fn dispatched_plan_path(&self) -> PathBuf {
        self.state_dir.join("plan.md")
    }

    /// The run lock, which the supervisor holds until it exits.
    pub fn run_lock_path(&self) -> PathBuf {
        self.state_dir.join("run.lock")
    }

    /// The file with the branches with which the task's branch conflicts, one a line with its files.
    pub fn collisions_path(&self) -> PathBuf {
        self.state_dir.join("collisions")
    }

    /// The file with the commit that `show` showed last.
    pub fn shown_path(&self) -> PathBuf {
        self.state_dir.join("shown")
    }

    /// The ledger of delivered news.
    pub fn news_path(&self) -> PathBuf {
        self.state_dir.join("news")
    }

    /// The file with what the task waits for.
    pub fn wait_path(&self) -> PathBuf {
        self.state_dir.join("wait")
    }

    /// Records what the task waits for; `None` removes the wait.
    pub fn set_wait(&self, wait: Option<&Wait>) -> Result<()> {
        let path = self.wait_path();
        match wait {
            Some(wait) => {
                files::publish(&path, serde_json::to_string(wait)?.as_bytes())?;
                self.call_owner();
                Ok(())
            }
            None => files::remove(&path),
        }
    }

    /// The recorded wait; `None` if the task waits for nothing.
    ///
    /// # Errors
    /// [`Exit::Data`] if the file is broken.
    pub fn wait(&self) -> Result<Option<Wait>> {
        let next = "remove it; dispatch then finds out again what the task waits for";
        let mut wait = read_json(&self.wait_path(), next)?;
        if let Some(Wait::Job { said, .. }) = &mut wait
            && let Some(job) = self.job()?
        {
            *said = job.said;
        }
        Ok(wait)
    }

    /// Removes a directory of the task. Renames it first: a crash must not leave a part of its files.
    pub fn remove(&self, directory: &Path) -> Result<()> {
        let aside = directory.with_file_name(format!(".{}.removed", self.id));
        files::remove_directory(&aside)?;
        if directory.exists() {
            std::fs::rename(directory, &aside)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        files::remove_directory(&aside)
    }

    /// The directories in which helpers write files, without those of the attempts.
    pub fn helper_directories(&self) -> impl Iterator<Item = PathBuf> {
        let own =
            [self.state_dir.clone(), self.notes_dir(), self.answers_dir(), self.attempts_dir()];
        own.into_iter().chain(self.side.helper_directories())
    }

    fn notes_dir(&self) -> PathBuf {
        self.state_dir.join("notes")
    }

    /// The parent of the attempts' directories.
    pub fn attempts_dir(&self) -> PathBuf {
        self.state_dir.join("attempts")
    }

    fn record_path(&self) -> PathBuf {
        self.state_dir.join("record.yaml")
    }

    /// Returns true if the task was dispatched: its record exists.
    pub fn was_dispatched(&self) -> bool {
        self.record_path().is_file()
    }

    /// Returns true if somebody deleted the task's directory in the project after the worker's end.
    pub fn is_deleted(&self) -> bool {
        if self.side.has_files() {
            return false;
        }
        let ended = |attempt: Attempt| matches!(attempt.exit(), Ok(Some(_)));
        let stopped = || self.record().is_ok_and(|record| record.is_some_and(|it| it.stop));
        let over = self.last_attempt().is_some_and(ended) || stopped();
        over && !self.is_supervised().unwrap_or(true)
    }

    /// Returns true if the record was written less than `time` ago.
    pub fn was_recorded_within(&self, time: Duration) -> bool {
        files::modified_within(&self.record_path(), time)
    }

    /// The record; `None` before the task is dispatched.
    ///
    /// # Errors
    /// [`Exit::Data`] if the record is broken or newer than this version.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let Some(text) = files::read_foreign(&path)? else { return Ok(None) };
        let text = files::decode(text, &path)?;
        let broken = |error: anyhow::Error| {
            Refusal::new(Exit::Data, format!("task '{}' has a broken record", self.id))
                .place(format!("{}: {error}", path.display()))
                .next("restore the file, or dispatch the plan again under another id")
        };
        let record: Result<Record, _> = files::from_yaml(&text);
        // A newer format may have different keys.
        let format = match &record {
            Ok(record) => record.format,
            Err(_) => files::from_yaml::<record::Format>(&text).map_err(broken)?.format,
        };
        if format > FORMAT {
            return Refusal::new(Exit::Data, "this task was created by a newer version")
                .place(format!("{}: format {format}", path.display()))
                .refuse("install this version's helpers again: sh install.sh");
        }
        Ok(Some(record.map_err(broken)?))
    }

    /// Writes the person's side of a new task; `false` if the name is taken.
    pub fn claim(&self, record: &Record, plan: &str) -> Result<bool> {
        files::publish_first(&self.dispatched_plan_path(), plan.as_bytes())?;
        files::publish_new(&self.record_path(), serde_yaml::to_string(record)?.as_bytes())
    }

    /// Changes the record under the task's lock.
    pub fn change_record(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _lock = self.lock()?;
        let mut record = self.record()?.context("the task has no record")?;
        change(&mut record);
        files::publish(&self.record_path(), serde_yaml::to_string(&record)?.as_bytes())
    }

    /// Takes the lock for changes of the person's side.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if another process holds the lock for too long.
    pub fn lock(&self) -> Result<Lock> {
        files::create_task_directory(&self.state_dir)?;
        Lock::take(&self.lock_path(), LOCK_LIMIT)
    }

    /// The lock for changes of the person's side.
    pub(super) fn lock_path(&self) -> PathBuf {
        self.state_dir.join("lock")
    }

    /// The plan as the person dispatched it, with the notes since.
    pub fn dispatched_plan(&self) -> Result<Plan> {
        let text = files::read_lossy(&self.dispatched_plan_path())?;
        let mut plan = Plan::parse(&text.unwrap_or_default());
        append_missing(&mut plan, &self.notes()?)?;
        Ok(plan)
    }

    /// The plan, with the item numbers of the last attempt's copy; a missing file counts as an empty plan.
    pub fn plan(&self) -> Result<Plan> {
        self.side.plan(self.plan_at_start()?.as_ref())
    }

    /// Changes the plan under the worker's lock.
    ///
    /// # Errors
    /// [`Exit::Data`] if items stay lost, and the refusals of `change`.
    pub fn edit_plan(&self, change: impl FnOnce(&mut Plan) -> Result<(), Refusal>) -> Result<Plan> {
        let start = self.last_attempt().map(|attempt| attempt.plan_path()).unwrap_or_default();
        self.change_plan(|plan| {
            self.side.refuse_lost(plan, &start)?;
            change(plan)
        })
    }

    /// Restores the items that the plan lost, then changes it like [`Self::edit_plan`].
    pub fn repair_plan(
        &self,
        change: impl FnOnce(&mut Plan) -> Result<(), Refusal>,
    ) -> Result<Plan> {
        self.change_plan(|plan| {
            plan.restore()?;
            change(plan)
        })
    }

    fn change_plan(&self, change: impl FnOnce(&mut Plan) -> Result<(), Refusal>) -> Result<Plan> {
        self.side.change_plan(self.plan_at_start()?.as_ref(), &self.notes()?, change)
    }

    /// The plan as it was when the last attempt began, if there was one.
    pub fn plan_at_start(&self) -> Result<Option<Plan>> {
        self.last_attempt().map_or(Ok(None), |attempt| attempt.plan())
    }

    /// Saves a note to the worker, copies it to the worker's side and appends it to the plan.
    pub fn add_note(&self, text: &str) -> Result<()> {
        let plan = self.plan()?;
        // A saved note that the plan lacks is from a call that was killed; this call repeats it.
        if !self.notes()?.iter().any(|(_, note)| note == text && plan.count_notes(note) == 0) {
            files::publish_numbered(&self.notes_dir(), text)?;
        }
        for (name, note) in self.notes()? {
            self.side.set_note(&name, &note)?;
        }
        self.edit_plan(|_| Ok(())).map(drop)
    }

    /// The notes to the worker, oldest first, as pairs of file name and text.
    pub fn notes(&self) -> Result<Vec<(String, String)>> {
        files::read_numbered(&self.notes_dir(), "")
    }

    /// The attempt with that number, which need not exist.
    pub fn attempt(&self, number: u32) -> Attempt {
        Attempt { number, directory: self.attempts_dir().join(number.to_string()) }
    }

    /// The last attempt, if there was one.
    pub fn last_attempt(&self) -> Option<Attempt> {
        self.attempts().ok()?.pop()
    }

    /// All attempts, oldest first.
    ///
    /// # Errors
    /// [`Exit::Data`] if an attempt's directory is a symlink.
    pub fn attempts(&self) -> Result<Vec<Attempt>> {
        let names = files::numbered_names(&self.attempts_dir(), "")?;
        // Skip names like 007, which no attempt's path has.
        let names = names.iter().filter(|name| !name.starts_with('0'));
        let attempt = |name: &String| {
            let attempt = self.attempt(name.parse()?);
            files::refuse_symlink(attempt.directory())?;
            Ok(attempt)
        };
        names.map(attempt).collect()
    }

    /// Refuses attempts without a record.
    ///
    /// # Errors
    /// [`Exit::Data`] if there are some.
    pub fn refuse_lost_record(&self) -> Result<(), Refusal> {
        if self.was_dispatched() || !self.attempts_dir().exists() {
            return Ok(());
        }
        Refusal::new(Exit::Data, format!("'{}' has lost its record.yaml", self.id))
            .place(format!("{} has attempts and no record", self.state_dir.display()))
            .refuse("restore the file, or move the directory away")
    }

    /// The newest session that this backend can continue at the access level of a record.
    pub fn last_session(&self, record: &Record) -> Result<Option<SessionRecord>> {
        let attempts = self.attempts()?.into_iter().rev();
        let sessions = attempts.map(|attempt| attempt.session()).collect::<Result<Vec<_>>>()?;
        let continues = |session: &SessionRecord| {
            session.backend == record.backend && session.home == record.home()
        };
        Ok(sessions.into_iter().flatten().find(continues))
    }

    /// Creates the next attempt, with a copy of the plan as it is now. A worker's side without a
    /// readable plan gets the dispatched one again.
    pub fn create_attempt(&self) -> Result<Attempt> {
        let last = self.attempts()?.last().map_or(0, |attempt| attempt.number);
        let next = files::next_number(last, &self.attempts_dir())?;
        let attempt = self.attempt(next);
        files::remove(&self.done_path())?;
        files::create_task_directory(attempt.directory())?;
        let plan = match self.side.plan_text() {
            Ok(Some(plan)) => plan,
            Ok(None) => {
                let plan = self.dispatched_plan()?.to_string();
                files::create_task_directory(self.side.directory())?;
                files::publish(&self.side.plan_path(), plan.as_bytes())?;
                plan
            }
            Err(_) => self.dispatched_plan()?.to_string(),
        };
        files::publish_first(&attempt.plan_path(), plan.as_bytes())?;
        self.side.set_start(&plan)?;
        // The wait goes after the attempt exists: without both, the task would look ended.
        self.set_wait(None)?;
        self.call_owner();
        Ok(attempt)
    }

    /// Records the only prompt that an attempt is started with. It passes on all notes and answers so
    /// far; the worker's side gets a copy to read.
    pub fn set_prompt(&self, attempt: &Attempt, prompt: &str) -> Result<()> {
        files::publish(&attempt.prompt_path(), prompt.as_bytes())?;
        files::publish_copy(&self.side.prompt_path(), prompt.as_bytes())?;
        if let Some((name, _)) = self.notes()?.last() {
            self.side.set_told(name)?;
        }
        self.answers()?.iter().try_for_each(|(name, _)| self.mark_told(name))
    }

    /// Records how an attempt ended. If the worker deleted the task's directory, it gets its prompt back:
    /// without files there, the task would count as cleaned up.
    pub fn set_exit(&self, attempt: &Attempt, exit: &ExitRecord) -> Result<()> {
        if !self.side.has_files() {
            let prompt = files::read_foreign(&attempt.prompt_path())?.unwrap_or_default();
            // The end counts more than the copy.
            let _ = files::create_task_directory(self.side.directory())
                .and_then(|()| files::publish(&self.side.prompt_path(), &prompt));
        }
        // An agent may continue after its host has lost sight of it.
        if !self.record()?.is_some_and(|record| record.route == Route::Cli) {
            return attempt.set_exit(exit);
        }
        // The words come first, so that no reader sees an end without them. On a full disk, the end
        // counts more.
        let frozen = self.freeze(attempt);
        attempt.set_exit(exit).or_else(|error| {
            frozen.map_err(|_| error)?;
            attempt.remove_words()?;
            attempt.set_exit(exit)
        })
    }

    /// Freezes what the worker's side says, as the end of an attempt.
    pub fn freeze(&self, attempt: &Attempt) -> Result<()> {
        if !attempt.set_words(&WorkersWords::now(self, false)?.into_last())? {
            let error = anyhow!("the plan and the questions are too large to be kept");
            attempt.set_words(&WorkersWords::unreadable(self, &error)?)?;
        }
        Ok(())
    }

    /// Marks a task whose worker ended and is done: it stays so, and lists need not read it again.
    pub fn settle(&self, view: &View) -> Result<()> {
        let agent = view.record.route == Route::Agent;
        let over = view.state == State::Done && (agent || view.exit.is_some());
        let Some(attempt) = view.attempt.as_ref().filter(|_| over) else { return Ok(()) };
        if self.time_since_done().is_some() {
            return Ok(());
        }
        if agent {
            // An agent's host may still run it, so what was frozen need not be what was seen.
            self.freeze(attempt)?;
            if attempt.words()?.is_none_or(|words| !words.is_done(attempt)) {
                return attempt.remove_words();
            }
        }
        files::touch(&self.done_path(), view.ended_at())
    }

    /// The time since the task was done, if it was marked as settled.
    pub fn time_since_done(&self) -> Option<Duration> {
        Some(files::modified_at(&self.done_path())?.elapsed().unwrap_or_default())
    }

    fn done_path(&self) -> PathBuf {
        self.state_dir.join("done")
    }

    /// The task as it is now.
    pub fn view(&self) -> Result<View> {
        View::load(self)
    }
}

/// The plan with this text, with the item numbers of `start`.
fn numbered(text: &str, start: Option<&Plan>) -> Plan {
    match start {
        Some(start) => Plan::parse(text).numbered_as(start),
        None => Plan::parse(text),
    }
}

/// The refusal of a file with the wrong content; `next` says what to do about it.
fn broken(path: &Path, error: &dyn fmt::Display, next: &str) -> Refusal {
    let what = format!("{} is broken", path.display());
    Refusal::new(Exit::Data, what).place(error.to_string()).next(next)
}
