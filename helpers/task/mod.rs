//! A task: its directory, its record and its attempts.
//!
//! Invariant: the task's files are the only state. Changes of the plan and the record happen under the
//! task's lock, and each file is replaced as a whole.

mod attempt;
mod claim;
pub mod output;
mod record;
pub mod state;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::domain::TaskId;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::{self, Lock};
use crate::ipc::Ipc;
use crate::plan::Plan;
use crate::process::{Identity, Life};
use crate::text::lossy;
use claim::Claim;

pub use attempt::{Attempt, ExitRecord, SessionRecord, StopReason};
pub use record::{Dependency, FORMAT, Record, Wait};
pub use state::{Label, Reason, State, View};

/// How long a helper waits for a task's lock, which others hold for milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(30);

/// A task, by its directory. The directory need not exist.
#[derive(Clone, Debug)]
pub struct Task {
    directory: PathBuf,
    id: TaskId,
}

impl Task {
    pub(crate) fn new(directory: PathBuf, id: TaskId) -> Self {
        Self { directory, id }
    }

    /// The task in the directory that a worker's command names.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is no plan, or a symlink leads to the directory.
    pub fn at(directory: &Path) -> Result<Self> {
        // A trailing slash would hide a symlink.
        let directory = directory.components().as_path();
        let id = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let task = Self { directory: directory.into(), id: id.parse()? };
        // The task's directory, `tasks` and `.dispatch`.
        directory.ancestors().take(3).try_for_each(files::refuse_symlink)?;
        if !task.plan_path().is_file() {
            return Err(Refusal::new(Exit::Data, "that is not a task's directory")
                .place(format!("{} does not exist", task.plan_path().display()))
                .next("give the directory that the prompt names with --task-dir")
                .into());
        }
        Ok(task)
    }

    /// The task's name, which is also the name of its directory.
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// The task's directory, absolute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `plan.md`: the checklist, the context and the notes.
    pub fn plan_path(&self) -> PathBuf {
        self.directory.join("plan.md")
    }

    /// `prompt.md`: the prompt of the first attempt.
    pub fn prompt_path(&self) -> PathBuf {
        self.directory.join("prompt.md")
    }

    /// `output.md`: the worker's report.
    pub fn report_path(&self) -> PathBuf {
        self.directory.join("output.md")
    }

    /// `context.md`: what a worker that stops writes for the next one.
    pub fn context_path(&self) -> PathBuf {
        self.directory.join("context.md")
    }

    /// The run lock, which the supervisor holds until it exits.
    pub fn run_lock_path(&self) -> PathBuf {
        self.directory.join("run.lock")
    }

    /// The ledger of delivered news.
    pub fn news_path(&self) -> PathBuf {
        self.directory.join("news")
    }

    /// The questions, answers and the finish marker.
    pub fn ipc(&self) -> Ipc {
        Ipc::new(self.directory.join("ipc"))
    }

    /// The directory of messages that the worker sends without waiting (`tell`).
    pub fn tells_dir(&self) -> PathBuf {
        self.directory.join("tells")
    }

    /// The file with what the task waits for.
    pub fn wait_path(&self) -> PathBuf {
        self.directory.join("wait")
    }

    /// Records what the task waits for; `None` removes the wait.
    pub fn set_wait(&self, wait: Option<&Wait>) -> Result<()> {
        let path = self.wait_path();
        match wait {
            Some(wait) => files::publish(&path, serde_json::to_string(wait)?.as_bytes()),
            None => files::remove(&path),
        }
    }

    /// The recorded wait; `None` if the task waits for nothing.
    ///
    /// # Errors
    /// [`Exit::Data`] if the file is broken.
    pub fn wait(&self) -> Result<Option<Wait>> {
        let path = self.wait_path();
        let Some(text) = files::read_foreign(&path)?.map(lossy) else { return Ok(None) };
        let next = "remove it; dispatch then finds out again what the task waits for";
        serde_json::from_str(&text).map(Some).map_err(|error| broken(&path, &error, next).into())
    }

    /// The directories in which helpers write files, without those of the attempts.
    pub fn helper_directories(&self) -> [PathBuf; 4] {
        let ipc = self.ipc().directory().to_path_buf();
        [self.directory.clone(), ipc, self.notes_dir(), self.tells_dir()]
    }

    fn notes_dir(&self) -> PathBuf {
        self.directory.join("notes")
    }

    fn record_path(&self) -> PathBuf {
        self.directory.join("task.yaml")
    }

    /// Whether the task was dispatched: its record exists.
    pub fn was_dispatched(&self) -> bool {
        self.record_path().is_file()
    }

    /// The time since the task was done, by its finish marker and plan alone; `None` if it is not done.
    pub fn time_since_done(&self) -> Option<Duration> {
        let since = self.ipc().finished_at()?;
        let done = self.plan().ok()?.complete();
        since.elapsed().ok().filter(|_| done)
    }

    /// Whether the record was written less than `time` ago.
    pub fn was_recorded_within(&self, time: Duration) -> bool {
        files::modified_within(&self.record_path(), time)
    }

    /// The record; `None` before the task is dispatched.
    ///
    /// # Errors
    /// [`Exit::Data`] if the record is broken, newer than this version, or not this user's.
    pub fn record(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let Some(text) = files::read_foreign(&path)? else { return Ok(None) };
        let text = files::decode(text, &path)?;
        let broken = |error: serde_yaml::Error| {
            Refusal::new(Exit::Data, format!("task '{}' has a broken record", self.id))
                .place(format!("{}: {error}", path.display()))
                .next("restore the file, or dispatch the plan again under another id")
        };
        let record: Result<Record, _> = serde_yaml::from_str(&text);
        // A newer format may have different keys.
        let format = match &record {
            Ok(record) => record.format,
            Err(_) => serde_yaml::from_str::<record::Format>(&text).map_err(broken)?.format,
        };
        if format > FORMAT {
            return Err(Refusal::new(Exit::Data, "this task was created by a newer version")
                .place(format!("{}: format {format}", path.display()))
                .next("install this version's helpers again: sh install.sh")
                .into());
        }
        let record = record.map_err(broken)?;
        match Claim::load(self, &record.nonce)? {
            Some(claim) => Ok(Some(claim.apply_to(record))),
            None => Err(Refusal::new(Exit::Data, format!("task '{}' is not yours", self.id))
                .place(format!(
                    "{}: it came with a cloned project, or the project was moved",
                    path.display()
                ))
                .next("inspect its directory and remove it; dispatch will not run it")
                .into()),
        }
    }

    /// Writes the record of a new task; `false` if the name is taken.
    pub fn claim(&self, record: &Record) -> Result<bool> {
        Claim::save(self, record)?;
        let new =
            files::publish_new(&self.record_path(), serde_yaml::to_string(record)?.as_bytes())?;
        if !new {
            Claim::remove(&record.nonce)?;
        }
        Ok(new)
    }

    /// Removes the claim of a task that is about to be removed.
    pub fn remove_claim(&self, nonce: &str) -> Result<()> {
        Claim::remove(nonce)
    }

    /// Changes the record under the task's lock.
    pub fn change_record(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let _lock = self.lock()?;
        let mut record = self.record()?.context("the task has no record")?;
        change(&mut record);
        Claim::save(self, &record)?;
        files::publish(&self.record_path(), serde_yaml::to_string(&record)?.as_bytes())
    }

    /// Makes a host the owner, so that it gets the news, unless the present owner may be alive. Returns
    /// whether the owner changed.
    pub fn adopt(&self, host: &Identity) -> Result<bool> {
        let orphaned =
            |record: &Record| record.owner.as_ref().is_none_or(|owner| owner.life() == Life::Dead);
        if !self.record()?.as_ref().is_some_and(orphaned) {
            return Ok(false);
        }
        let mut adopted = false;
        self.change_record(|record| {
            // Another host may have adopted the task meanwhile.
            if orphaned(record) {
                record.owner = Some(host.clone());
                adopted = true;
            }
        })?;
        Ok(adopted)
    }

    /// Takes the lock for changes of the plan and the record.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if another process holds the lock for too long.
    pub fn lock(&self) -> Result<Lock> {
        files::create_task_directory(&self.directory)?;
        Lock::take(&self.directory.join("lock"), LOCK_LIMIT)
    }

    /// The plan, with the item numbers of the last attempt's copy; a missing file counts as an empty plan.
    pub fn plan(&self) -> Result<Plan> {
        self.plan_since(self.last_attempt().as_ref())
    }

    /// The plan, with the item numbers of this attempt's copy.
    fn plan_since(&self, attempt: Option<&Attempt>) -> Result<Plan> {
        let text = files::read_foreign(&self.plan_path())?.map(lossy).unwrap_or_default();
        let start = attempt.map(Attempt::plan).transpose()?.flatten();
        Ok(numbered(&text, start.as_ref()))
    }

    /// The plan's text, for an edit that must not lose a byte.
    ///
    /// # Errors
    /// [`Exit::Data`] if the text is not UTF-8.
    pub fn plan_text(&self) -> Result<Option<String>> {
        let path = self.plan_path();
        files::read_foreign(&path)?.map(|bytes| files::decode(bytes, &path)).transpose()
    }

    /// Changes the plan under the lock. A worker's editor ignores the lock, so a plan that lost items
    /// since the last attempt began may be half written and is read again for half a second.
    ///
    /// # Errors
    /// [`Exit::Data`] if items stay lost, and the refusals of `change`.
    pub fn edit_plan(&self, change: impl FnOnce(&mut Plan) -> Result<(), Refusal>) -> Result<Plan> {
        self.change_plan(|plan| {
            let attempt = self.last_attempt().filter(|_| !plan.lost().is_empty());
            let Some(attempt) = attempt else { return change(plan) };
            let (id, skip) = (&self.id, plan.skip_lost());
            Err(Refusal::new(Exit::Data, format!("the plan lost {}", plan.lost_words()))
                .place(self.plan_path().display().to_string())
                .next(format!(
                    "restore it from {}; to drop it, once no worker is running: dispatch-spawn {id} --resume{skip}",
                    attempt.plan_path().display()
                )))
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

    /// Changes the plan under the lock, after it has waited for lost items to come back.
    fn change_plan(&self, change: impl FnOnce(&mut Plan) -> Result<(), Refusal>) -> Result<Plan> {
        let _lock = self.lock()?;
        let start = self.plan_at_start()?;
        let read = || anyhow::Ok(numbered(&self.plan_text()?.unwrap_or_default(), start.as_ref()));
        let mut plan = read()?;
        for _ in 0..50 {
            if plan.lost().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            plan = read()?;
        }
        change(&mut plan)?;
        self.restore_notes(&mut plan)?;
        files::publish(&self.plan_path(), plan.to_string().as_bytes())?;
        Ok(plan)
    }

    /// Appends the notes that the plan lacks: new ones, and those that an editor lost.
    fn restore_notes(&self, plan: &mut Plan) -> Result<()> {
        let notes: Vec<String> = self.notes()?.into_iter().map(|(_, note)| note).collect();
        for (index, note) in notes.iter().enumerate() {
            let expected = notes[..=index].iter().filter(|other| *other == note).count();
            if plan.count_notes(note) < expected {
                plan.append_note(note)?;
            }
        }
        Ok(())
    }

    /// The plan as it was when the last attempt began, if there was one.
    pub fn plan_at_start(&self) -> Result<Option<Plan>> {
        self.last_attempt().map_or(Ok(None), |attempt| attempt.plan())
    }

    /// Saves a note to the worker as a file and appends it to the plan.
    pub fn add_note(&self, text: &str) -> Result<()> {
        let plan = self.plan()?;
        // A saved note that the plan lacks is from a call that was killed; this call repeats it.
        if !self.notes()?.iter().any(|(_, note)| note == text && plan.count_notes(note) == 0) {
            files::publish_numbered(&self.notes_dir(), text)?;
        }
        self.edit_plan(|_| Ok(())).map(drop)
    }

    /// The texts of the notes that the worker was not told yet, oldest first. They count as told from
    /// now on.
    pub fn take_untold_notes(&self) -> Result<Vec<String>> {
        let Some(attempt) = self.last_attempt() else { return Ok(Vec::new()) };
        let told = attempt.told_path();
        let last: u32 =
            files::read_foreign(&told)?.map(lossy).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut notes = self.notes()?;
        notes.retain(|(name, _)| name.parse::<u32>().is_ok_and(|number| number > last));
        if let Some((name, _)) = notes.last() {
            files::publish(&told, name.as_bytes())?;
        }
        Ok(notes.into_iter().map(|(_, note)| note).collect())
    }

    /// The notes to the worker, oldest first, as pairs of file name and text.
    pub fn notes(&self) -> Result<Vec<(String, String)>> {
        files::read_numbered(&self.notes_dir())
    }

    /// Sends a message to the dispatcher without waiting. A text repeated in a row is one message, because
    /// a worker repeats a call that was killed.
    pub fn tell(&self, text: &str) -> Result<()> {
        if self.tells()?.last().is_none_or(|(_, last)| last != text) {
            files::publish_numbered(&self.tells_dir(), text)?;
        }
        Ok(())
    }

    /// The worker's messages, oldest first, as pairs of file name and text.
    pub fn tells(&self) -> Result<Vec<(String, String)>> {
        files::read_numbered(&self.tells_dir())
    }

    /// The attempt with that number, which need not exist.
    pub fn attempt(&self, number: u32) -> Attempt {
        Attempt { number, directory: self.directory.join("worker").join(number.to_string()) }
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
        let directory = self.directory.join("worker");
        let mut numbers = Vec::new();
        for (name, symlink) in files::entries(&directory)? {
            // Skip names like 007, which no attempt's path has.
            let number = name.to_str().and_then(files::parse_number);
            let is_canonical = |number: &u32| *number > 0 && *name == *number.to_string();
            let Some(number) = number.filter(is_canonical) else { continue };
            if symlink {
                files::refuse_symlink(&directory.join(&name))?;
            }
            numbers.push(number);
        }
        numbers.sort_unstable();
        Ok(numbers.into_iter().map(|number| self.attempt(number)).collect())
    }

    /// Refuses a directory that is a symlink, or that has attempts and no record.
    ///
    /// # Errors
    /// [`Exit::Data`] in both cases.
    pub fn refuse_lost_record(&self) -> Result<(), Refusal> {
        files::refuse_symlink(&self.directory)?;
        if self.was_dispatched() || !self.directory.join("worker").exists() {
            return Ok(());
        }
        Err(Refusal::new(Exit::Data, format!("'{}' has lost its task.yaml", self.id))
            .place(format!("{} has attempts and no record", self.directory.display()))
            .next("restore the file, or move the directory away"))
    }

    /// The newest session that this backend can continue, of the attempts before number `before`.
    pub fn last_session(&self, backend: &str, before: u32) -> Result<Option<SessionRecord>> {
        let attempts = self.attempts()?.into_iter().rev().filter(|it| it.number < before);
        let sessions = attempts.map(|attempt| attempt.session()).collect::<Result<Vec<_>>>()?;
        Ok(sessions.into_iter().flatten().find(|session| session.backend == backend))
    }

    /// Creates the next attempt, with a copy of the plan as it is now.
    pub fn create_attempt(&self) -> Result<Attempt> {
        let last = self.attempts()?.last().map_or(0, |attempt| attempt.number);
        let next = files::next_number(last, &self.directory.join("worker"))?;
        let attempt = self.attempt(next);
        files::create_task_directory(attempt.directory())?;
        let plan = self.plan_text()?.unwrap_or_default();
        files::publish(&attempt.plan_path(), plan.as_bytes())?;
        // The wait goes after the attempt exists: without both, the task would look ended.
        self.set_wait(None)?;
        if let Some((name, _)) = self.notes()?.last() {
            files::publish(&attempt.told_path(), name.as_bytes())?;
        }
        Ok(attempt)
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
