//! A task's record, its wait and its answers: `record.yaml`, with what was decided at the dispatch,
//! `wait`, with what a task without a worker waits for, and `answers/NNN`, with the question as it was
//! shown.
//!
//! Invariant: a record of a newer format is refused, never guessed. Only a recorded answer is passed on
//! as the person's word, or restarts a worker that ended; the file in `ipc/` is a copy for the worker
//! that waits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Access, Budget, Route, Usage, Worktree};
use crate::files;
use crate::ids::utc;
use crate::process::{ATTEMPT, Holder, Identity, TASK_DIR, worker_helper};
use crate::task::{Task, broken};
use crate::text::{one_line, quoted, shell_word};

/// The format number that this version writes.
pub const FORMAT: u32 = 1;

/// The decisions at the dispatch: `record.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The file's format number, at most [`FORMAT`].
    pub format: u32,
    /// A random id, which tells the task from an earlier one of the same name.
    pub nonce: String,
    /// The name that the person used: a model or an alias.
    pub name: String,
    /// The model's id, if one is passed to the backend.
    pub model: Option<String>,
    /// The backend's name in the config.
    pub backend: String,
    /// How the worker is started.
    pub route: Route,
    /// The worker's access.
    pub access: Access,
    /// The sandbox that holds the worker to its access; `None` if its CLI does so itself.
    pub holder: Option<Holder>,
    /// The place of the config that the worker runs at; `None` for this machine.
    pub place: Option<String>,
    /// The worker's working directory.
    pub directory: PathBuf,
    /// The task's directory in the project.
    pub task_directory: PathBuf,
    /// The prompt of the alias that the person named, which begins the worker's prompt.
    pub role: Option<String>,
    /// The task's own worktree, if it has one.
    pub worktree: Option<Worktree>,
    /// The tasks that must be done before this one starts (`--after`).
    #[serde(default)]
    pub after: Vec<Dependency>,
    /// The commands that must succeed before the task is done (`--check`).
    #[serde(default)]
    pub checks: Vec<String>,
    /// The most that the task may use before a person is asked (`--budget`).
    #[serde(default)]
    pub budget: Budget,
    /// The first attempt that counts for the budget: a person granted it again after the others.
    #[serde(default)]
    pub budget_from: u32,
    /// The earlier names of workers that reached a limit and were replaced by their fallback.
    #[serde(default)]
    pub limited: Vec<String>,
    /// The model or alias that must approve the work before the task is done (`--review`).
    pub review: Option<String>,
    /// The host process that gets the news; `None` if no host dispatched the task.
    pub owner: Option<Identity>,
    /// The wall clock at the dispatch (RFC 3339).
    pub created: String,
    /// `true` if the person stopped the task.
    #[serde(default)]
    pub stop: bool,
    /// `true` if the person let the worker dispatch tasks of its own.
    #[serde(default)]
    pub may_dispatch: bool,
    /// `true` if what the worker leaves running stays when it has finished.
    #[serde(default)]
    pub keep: bool,
    /// `true` if the person dispatched the task from another project.
    #[serde(default)]
    pub is_elsewhere: bool,
}

impl Record {
    /// The first check or review after the worker's end; `None` if the person asked for none.
    pub fn first_check(&self) -> Option<String> {
        let review = || self.review.as_ref().map(|name| format!("review by {name}"));
        self.checks.first().cloned().or_else(review)
    }

    /// The person's demands beside the plan, for a line; `None` without any.
    pub fn demands(&self) -> Option<String> {
        let checks = self.checks.iter().map(|it| format!("check {}", one_line(it)));
        let review = self.review.iter().map(|name| format!("review by {name}"));
        let budget = (!self.budget.is_none()).then(|| format!("budget {}", self.budget));
        let keep = self.keep.then(|| "keep what it leaves running".into());
        let all: Vec<_> = checks.chain(review).chain(budget).chain(keep).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Returns true if the worker commits: the task has a worktree, and access to write there.
    pub fn commits(&self) -> bool {
        self.worktree.is_some() && self.access != Access::Read
    }

    /// Gives the task the worker of another record: its model, access and what holds it.
    pub fn set_worker(&mut self, new: Self) {
        let Self { name, model, backend, role, route, access, holder, limited, .. } = new;
        (self.name, self.model, self.backend, self.role) = (name, model, backend, role);
        (self.route, self.access, self.holder, self.limited) = (route, access, holder, limited);
    }

    /// The access level of the private directory that holds the worker's sessions; `None` for the
    /// person's own.
    pub fn home(&self) -> Option<Access> {
        self.holder.map(|_| self.access)
    }
}

/// A task that must be done before another one starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The task's name.
    pub task: String,
    /// The task's nonce: a later task of the same name does not count.
    pub nonce: String,
    /// The branch of the task's worktree, if it has one.
    pub branch: Option<String>,
}

/// The obstacle that a task without a worker waits for: the file `wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Tasks that must be done first, by name.
    After(Vec<String>),
    /// A task that must be done first and cannot finish by itself.
    Held {
        /// The name of that task.
        task: String,
        /// The obstacle, as the rest of a sentence that begins with that task.
        obstacle: String,
    },
    /// The place that the task is to be sent to, and since when it does not answer (RFC 3339).
    Place(String, Option<String>),
    /// A free slot for a worker.
    Queued {
        /// The number of slots: `max_workers`.
        limit: usize,
    },
    /// A job of a scheduler that has not begun, or is to be submitted.
    Job {
        /// The token of the job that ended in an orderly way, so that the next one is due; empty for a job
        /// that was submitted for another reason.
        after: String,
        /// The job as it is now. [`Task::wait`] fills it in.
        said: String,
    },
    /// The reset of a rate limit.
    Parked {
        /// The reset, in seconds since 1970.
        until: u64,
        /// `true` if the CLI stated the reset; otherwise dispatch guessed it.
        stated: bool,
        /// How many times in a row the task was parked.
        times: u32,
        /// The CLI's message about the limit.
        said: String,
        /// The model or alias that continues now, in place of the one at its limit.
        fallback: Option<String>,
    },
}

/// The job of a scheduler that a task's supervisor is or was: the file `job`, and with the scheduler's
/// last word the file `job.state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The random name of the submission. Only the job that knows it may work on the task.
    pub token: String,
    /// The scheduler's id; empty until the submission is confirmed.
    pub id: String,
    /// True once the scheduler has said that nothing of the job runs.
    pub is_over: bool,
    /// The job with the scheduler's word about it, as `Slurm job 12 (Priority)`.
    pub said: String,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(tasks) => write!(f, "after {}", tasks.join(", ")),
            Self::Held { task, obstacle } => write!(f, "held: {task} {obstacle}"),
            Self::Place(name, None) => write!(f, "to be started on {name}"),
            Self::Place(name, Some(since)) => write!(f, "for {name}, unreachable since {since}"),
            Self::Queued { limit } => write!(f, "in the queue: max_workers is {limit}"),
            Self::Job { said, .. } => write!(f, "as {said}"),
            Self::Parked { fallback: Some(name), said, .. } => {
                write!(f, "{}; {name} continues", quoted(said))
            }
            Self::Parked { until, stated, said, .. } => {
                let until = utc(*until);
                let how = if *stated { "until" } else { "tries again at" };
                write!(f, "rate limit, {how} {until}: {}", quoted(said))
            }
        }
    }
}

/// The tasks of a host in all projects: an empty file for each, named by the task and its project's state
/// directory. The index says where to look, and is never believed against the tasks' records.
pub struct HostIndex {
    directory: PathBuf,
}

/// The end of the entry of a task of which the host has heard everything.
const HEARD: &str = "~";

impl HostIndex {
    /// The index of a host, in the directory of all hosts.
    pub fn new(hosts: &Path, host: &Identity) -> Self {
        Self { directory: hosts.join(host.name()) }
    }

    /// The directory with the entries.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn entry(&self, task: &Task, end: &str) -> PathBuf {
        let project = task.state_dir.parent().and_then(Path::file_name).unwrap_or_default();
        self.directory.join(format!("{}.{}{end}", task.id, project.display()))
    }

    /// Adds a task of which the host may hear.
    fn add(&self, task: &Task) -> Result<()> {
        files::create_private_directory(&self.directory)?;
        files::open_append(&self.entry(task, "")).map(drop)
    }

    /// Marks a task that ended, and all of whose news the host has seen. Nobody needs to read it until
    /// another attempt begins.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn set_heard(&self, task: &Task) -> Result<()> {
        let last = task.last_attempt().map(|it| it.number);
        files::create_private_directory(&self.directory)?;
        files::open_append(&self.entry(task, HEARD))?;
        files::remove(&self.entry(task, ""))?;
        // An attempt that began just now may have added the entry that was removed.
        match task.last_attempt().map(|it| it.number) == last && task.wait()?.is_none() {
            true => Ok(()),
            false => self.add(task),
        }
    }

    /// The state directories of the tasks, each with whether the host has heard everything.
    pub fn read(&self) -> BTreeMap<PathBuf, bool> {
        let mut tasks = BTreeMap::new();
        let root = self.directory.ancestors().nth(2).unwrap_or(&self.directory);
        for name in files::entries(&self.directory).unwrap_or_default() {
            let name = name.to_string_lossy();
            let heard = name.strip_suffix(HEARD);
            if let Some((id, project)) = heard.unwrap_or(&name).split_once('.') {
                *tasks.entry(root.join(project).join(id)).or_insert(true) &= heard.is_some();
            }
        }
        tasks
    }

    /// Returns true if one of these tasks can be continued after the host has heard everything of it.
    pub fn can_continue(tasks: &BTreeMap<PathBuf, bool>) -> bool {
        let is_done = |state_dir: &Path| state_dir.join("done").exists();
        let is_there = |state_dir: &Path| state_dir.join("record.yaml").exists();
        tasks.iter().any(|(it, is_heard)| *is_heard && !is_done(it) && is_there(it))
    }
}

/// The one key that a record of any format has.
#[derive(Deserialize)]
pub(super) struct Format {
    pub(super) format: u32,
}

/// An answer of the person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question as it was shown.
    pub question: String,
    /// The person's words.
    pub answer: String,
}

/// `dispatch-spawn` as a process that works on its own, without input.
pub fn own_helper(flag: &str) -> Result<Command> {
    let mut command = Command::new(worker_helper()?.with_file_name("dispatch-spawn"));
    // The helper works in `/`, so relative paths must be made absolute here.
    command.env("DISPATCH_CONFIG", std::path::absolute(dirs::config_path()?)?);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    // A nested supervisor must not count as one of the outer worker's processes.
    command.env_remove(ATTEMPT).env_remove(TASK_DIR).arg(flag).current_dir("/");
    Ok(command)
}

impl Task {
    /// [`own_helper`] for this task.
    pub fn helper(&self, flag: &str) -> Result<Command> {
        let mut command = own_helper(flag)?;
        let nonce = self.record()?.map(|record| record.nonce).unwrap_or_default();
        command.arg(&self.state_dir).env(ATTEMPT, format!("{nonce}/0"));
        // A task that came from another machine brought the part of the config that it needs.
        if self.config_path().is_file() {
            command.env("DISPATCH_CONFIG", self.config_path());
        }
        Ok(command)
    }

    /// The config of a task that came from another machine.
    pub fn config_path(&self) -> PathBuf {
        self.state_dir.join("config.yaml")
    }

    /// The sparse patterns of the checkout of a task that came from another machine.
    pub fn sparse_path(&self) -> PathBuf {
        self.state_dir.join("sparse")
    }

    /// The use of the task's budget by the attempts before `before`: their usage and run time.
    pub fn spent(&self, record: &Record, before: u32) -> Result<(Usage, Duration)> {
        let (mut usage, mut time) = (Usage::default(), Duration::ZERO);
        let counts = |number: u32| (record.budget_from..before).contains(&number);
        for attempt in self.attempts()?.into_iter().filter(|it| counts(it.number)) {
            usage = usage.with(attempt.usage()?.unwrap_or_default());
            let milliseconds = attempt.exit()?.map_or(0, |exit| exit.milliseconds);
            time = time.saturating_add(Duration::from_millis(milliseconds));
        }
        Ok((usage, time))
    }

    /// The index of a host that may own the task.
    pub fn index(&self, host: &Identity) -> HostIndex {
        let project = self.state_dir.parent().unwrap_or(&self.state_dir);
        HostIndex::new(&project.with_file_name(".hosts"), host)
    }

    /// Makes a host the owner, so that it gets the news, if the present owner is lost. Returns whether the
    /// owner changed.
    pub fn adopt(&self, host: &Identity, is_lost: impl Fn(&Identity) -> bool) -> Result<bool> {
        let orphaned = |record: &Record| record.owner.as_ref().is_none_or(&is_lost);
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
        self.call_owner();
        Ok(adopted)
    }

    /// Adds the task to its owner's index, which the owner's hook watches. If that fails, only `brief`
    /// tells the owner what comes.
    pub fn call_owner(&self) {
        let owner = self.record().ok().flatten().and_then(|record| record.owner);
        let _ = owner.map_or(Ok(()), |owner| self.index(&owner).add(self));
    }

    /// The task for a helper that was called elsewhere.
    pub fn elsewhere(self) -> Self {
        Self { is_elsewhere: true, ..self }
    }

    /// The directory of the task's project.
    pub fn root(&self) -> Option<&Path> {
        self.side.directory().ancestors().nth(3)
    }

    /// The task's name for the host, with the project if that is not the host's.
    pub fn name(&self) -> String {
        let root = self.root().filter(|_| self.is_elsewhere);
        let place = root.map(|root| format!(" in {}", root.display())).unwrap_or_default();
        format!("{}{place}", self.id)
    }

    /// The option that a helper needs to find the task: empty, or begins with a space.
    pub fn option(&self) -> String {
        let root = self.root().filter(|_| self.is_elsewhere);
        let option = |root: &Path| format!(" -C {}", shell_word(&root.display().to_string()));
        root.map(option).unwrap_or_default()
    }

    /// The directory with the recorded answers.
    pub fn answers_dir(&self) -> PathBuf {
        self.state_dir().join("answers")
    }

    /// The marker that the answer stands in a prompt.
    fn told_marker(&self, name: &str) -> PathBuf {
        self.answers_dir().join(format!("{name}.told"))
    }

    /// The recorded answers by the number of the question, oldest first.
    ///
    /// # Errors
    /// [`crate::error::Exit::Data`] if a file is broken.
    pub fn answers(&self) -> Result<Vec<(String, Answer)>> {
        let parse = |(name, text): (String, String)| match files::from_json(text.as_bytes()) {
            Ok(answer) => Ok((name, answer)),
            Err(error) => {
                let path = self.answers_dir().join(name);
                Err(broken(&path, &error, "move it away, and answer again").into())
            }
        };
        files::read_numbered(&self.answers_dir(), "")?.into_iter().map(parse).collect()
    }

    /// Records an answer; `false` if the question has one.
    pub fn record_answer(&self, name: &str, answer: &Answer) -> Result<bool> {
        files::create_private_directory(&self.answers_dir())?;
        let text = serde_json::to_string(answer)?;
        files::publish_new(&self.answers_dir().join(name), text.as_bytes())
    }

    /// Gives the worker its copies of the recorded answers that it lacks: the helper that recorded one
    /// may have been killed.
    pub fn publish_answers(&self) -> Result<()> {
        let ipc = self.side().ipc();
        for (name, answer) in self.answers()? {
            if !ipc.has_answer(&name) && ipc.has_question(&name) {
                ipc.publish_answer(&name, &answer.answer)?;
            }
        }
        Ok(())
    }

    /// Returns true if a recorded answer was read by the worker or passed on in a prompt.
    pub fn is_told(&self, name: &str) -> bool {
        self.told_marker(name).exists() || self.side().ipc().was_received(name)
    }

    /// Records that a prompt passes on an answer.
    pub fn mark_told(&self, name: &str) -> Result<()> {
        files::publish_new(&self.told_marker(name), b"").map(drop)
    }
}
