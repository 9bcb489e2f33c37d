//! The worker's side of a task: the directory `.dispatch/tasks/<id>` in the project, which holds the
//! worker's words and copies of the person's.
//!
//! Invariant: anything here may be forged, so it decides nothing: not what is executed, with which
//! access, or which process is signalled. `dispatch-worker` uses this side alone, because a sandbox
//! may hide the other one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::domain::TaskId;
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::ipc::Ipc;
use crate::plan::Plan;
use crate::process::Identity;
use crate::task::{LOCK_LIMIT, numbered};
use crate::text::lossy;

/// A task's directory in the project, which need not exist.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSide {
    directory: PathBuf,
}

/// How many bytes of a message are read.
const LONGEST_TELL: u64 = 64 << 10;

impl WorkerSide {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The side in the directory that a worker's command names.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is no plan, or a symlink leads to the directory.
    pub fn at(directory: &Path) -> Result<Self> {
        // A trailing slash would hide a symlink.
        let directory = directory.components().as_path();
        let side = Self { directory: directory.into() };
        side.name().parse::<TaskId>()?;
        side.refuse_symlinks()?;
        let is_task = directory.parent().is_some_and(|above| above.ends_with(".dispatch/tasks"));
        if !is_task || !side.plan_path().is_file() {
            return Refusal::new(Exit::Data, "that is not a task's directory")
                .place(match is_task {
                    true => format!("{} does not exist", side.plan_path().display()),
                    false => format!("{} is not in .dispatch/tasks", directory.display()),
                })
                .refuse("give the directory that the prompt names with --task-dir");
        }
        Ok(side)
    }

    /// The name of the directory, which is the task's id.
    pub fn name(&self) -> &str {
        self.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The directory, absolute.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Refuses a symlink in place of the directory, `tasks` or `.dispatch`.
    pub fn refuse_symlinks(&self) -> Result<(), Refusal> {
        self.directory.ancestors().take(3).try_for_each(files::refuse_symlink)
    }

    /// `plan.md`: the checklist, the context and the notes.
    pub fn plan_path(&self) -> PathBuf {
        self.directory.join("plan.md")
    }

    /// `prompt.md`: a copy of what the worker was told, for reading only.
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

    /// The questions, answers and the finish marker.
    pub fn ipc(&self) -> Ipc {
        Ipc::new(self.directory.join("ipc"))
    }

    /// The directory of messages that the worker sends without waiting (`tell`).
    pub fn tells_dir(&self) -> PathBuf {
        self.directory.join("tells")
    }

    /// The directories in which helpers write files.
    pub fn helper_directories(&self) -> [PathBuf; 3] {
        [self.directory.clone(), self.ipc().directory().to_path_buf(), self.tells_dir()]
    }

    /// Returns true if the directory holds anything but a plan and an empty `ipc/`: a task's files.
    pub fn has_files(&self) -> bool {
        if self.prompt_path().symlink_metadata().is_ok() {
            return true;
        }
        // An unreadable directory may hold files.
        let Ok(names) = files::entries(&self.directory) else { return true };
        names.iter().any(|name| match name.to_str() {
            Some("plan.md") => false,
            Some("ipc") => files::entries(self.ipc().directory()).map_or(true, |it| !it.is_empty()),
            _ => true,
        })
    }

    /// Takes the lock for changes of the plan.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if another process holds the lock for too long.
    pub fn lock(&self) -> Result<Lock> {
        files::create_task_directory(&self.directory)?;
        Lock::take(&self.directory.join("lock"), LOCK_LIMIT)
    }

    /// The plan, with the item numbers of `start`; a missing file counts as an empty plan.
    pub fn plan(&self, start: Option<&Plan>) -> Result<Plan> {
        let text = files::read_lossy(&self.plan_path())?.unwrap_or_default();
        Ok(numbered(&text, start))
    }

    /// The plan's text, for an edit that must not lose a byte.
    ///
    /// # Errors
    /// [`Exit::Data`] if the text is not UTF-8.
    pub fn plan_text(&self) -> Result<Option<String>> {
        let path = self.plan_path();
        files::read_foreign(&path)?.map(|bytes| files::decode(bytes, &path)).transpose()
    }

    /// The copy of the plan as it was when the attempt began.
    fn start_path(&self) -> PathBuf {
        self.ipc().directory().join(".plan")
    }

    /// The plan as it was when the attempt began, by the worker's copy.
    pub fn start(&self) -> Result<Option<Plan>> {
        Ok(files::read_lossy(&self.start_path())?.map(|text| Plan::parse(&text)))
    }

    /// Publishes the copy of the plan as it is when an attempt begins.
    pub(super) fn set_start(&self, plan: &str) -> Result<()> {
        files::create_task_directory(self.ipc().directory())?;
        files::publish_copy(&self.start_path(), plan.as_bytes())
    }

    /// Changes the plan for the worker, as its own copies number it.
    ///
    /// # Errors
    /// [`Exit::Data`] if the plan has lost items, and the refusals of `change`.
    pub fn edit_plan(&self, change: impl FnOnce(&mut Plan) -> Result<(), Refusal>) -> Result<Plan> {
        self.change_plan(self.start()?.as_ref(), &self.notes()?, |plan| {
            self.refuse_lost(plan, &self.start_path())?;
            change(plan)
        })
    }

    /// Refuses a plan that lost items of the plan in that file.
    pub(super) fn refuse_lost(&self, plan: &Plan, start: &Path) -> Result<(), Refusal> {
        if plan.lost().is_empty() || !start.exists() {
            return Ok(());
        }
        let (id, skip) = (self.name(), plan.skip_lost());
        Refusal::new(Exit::Data, format!("the plan lost {}", plan.lost_words(None)))
            .place(self.plan_path().display().to_string())
            .refuse(format!(
                "restore it from {}; to drop it, once no worker is running: dispatch-spawn {id} --resume{skip}",
                start.display()
            ))
    }

    /// Changes the plan under the lock, and appends the notes that it lacks. A worker's editor ignores
    /// the lock, so a plan that lost items since `start` may be half written and is read again for half
    /// a second.
    pub(super) fn change_plan(
        &self,
        start: Option<&Plan>,
        notes: &[(String, String)],
        change: impl FnOnce(&mut Plan) -> Result<(), Refusal>,
    ) -> Result<Plan> {
        let _lock = self.lock()?;
        let read = || anyhow::Ok(numbered(&self.plan_text()?.unwrap_or_default(), start));
        let mut plan = read()?;
        for _ in 0..50 {
            if plan.lost().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
            plan = read()?;
        }
        change(&mut plan)?;
        append_missing(&mut plan, notes)?;
        files::publish(&self.plan_path(), plan.to_string().as_bytes())?;
        Ok(plan)
    }

    /// Publishes the copy of a note to the worker.
    pub(super) fn set_note(&self, name: &str, text: &str) -> Result<()> {
        let ipc = self.ipc();
        files::create_task_directory(ipc.directory())?;
        files::publish(&ipc.directory().join(format!("{name}.note")), text.as_bytes())
    }

    /// The notes to the worker by its copies, oldest first, as pairs of number and text.
    fn notes(&self) -> Result<Vec<(String, String)>> {
        files::read_numbered(self.ipc().directory(), ".note")
    }

    /// The file that says which notes the worker was told of.
    fn told_path(&self) -> PathBuf {
        self.ipc().directory().join(".told")
    }

    /// Records that the worker was told of all notes up to this one.
    pub(super) fn set_told(&self, name: &str) -> Result<()> {
        files::publish(&self.told_path(), name.as_bytes())
    }

    /// The number of the last note that the worker was told of; 0 if it was told of none.
    pub fn last_told(&self) -> Result<u32> {
        let told = files::read_lossy(&self.told_path())?.unwrap_or_default();
        Ok(told.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    /// The texts of the notes that the worker was not told yet, oldest first. They count as told for
    /// every call but those of the same script, `caller`: a worker reads what the first one printed
    /// only when all have ended. A call that `ends` the work repeats them once.
    pub fn take_untold_notes(&self, caller: Option<&Identity>, ends: bool) -> Result<Vec<String>> {
        let told = files::read_lossy(&self.told_path())?.unwrap_or_default();
        let (end, caller) =
            (ends.to_string(), caller.map_or_else(String::new, Identity::to_string));
        let told: Vec<&str> = told.split(' ').collect();
        let number = |text: Option<&&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0_u32);
        let mut last = number(told.first());
        // The first word is the last note; the others say in which script it was told, and after which.
        if let [_, before, by, ended] = told[..]
            && by == caller
            && !caller.is_empty()
            && !(ends && ended == end)
        {
            last = number(Some(&before));
        }
        let mut notes = self.notes()?;
        notes.retain(|(name, _)| name.parse::<u32>().is_ok_and(|number| number > last));
        if let Some((name, _)) = notes.last() {
            self.set_told(&format!("{name} {last} {caller} {end}"))?;
        }
        Ok(notes.into_iter().map(|(_, note)| note).collect())
    }

    /// Sends a message to the dispatcher without waiting. A text repeated in a row is one message, because
    /// a worker repeats a call that was killed.
    pub fn tell(&self, text: &str) -> Result<()> {
        if self.tells(1)?.1.last().is_none_or(|(_, last)| last != text) {
            files::publish_numbered(&self.tells_dir(), text)?;
        }
        Ok(())
    }

    /// The worker's newest messages, at most `most`, oldest first, as pairs of file name and text; and
    /// how many older ones there are. A long message is cut.
    pub fn tells(&self, most: usize) -> Result<(usize, Vec<(String, String)>)> {
        let directory = self.tells_dir();
        let mut names = files::numbered_names(&directory, "")?;
        let older = names.len().saturating_sub(most);
        let text = |name: String| {
            let text = files::read_start(&directory.join(&name), LONGEST_TELL)?;
            Ok((name, text.map(lossy).unwrap_or_default()))
        };
        Ok((older, names.drain(older..).map(text).collect::<Result<_>>()?))
    }
}

/// Appends the notes that the plan lacks: new ones, and those that an editor lost.
pub(super) fn append_missing(plan: &mut Plan, notes: &[(String, String)]) -> Result<(), Refusal> {
    for (index, (_, note)) in notes.iter().enumerate() {
        let expected = notes[..=index].iter().filter(|(_, other)| other == note).count();
        if plan.count_notes(note) < expected {
            plan.append_note(note)?;
        }
    }
    Ok(())
}
