//! A run of a worker and its records: the directory `attempts/<n>`; and what is known of the far end of a
//! task at a place.
//!
//! Invariant: every file is replaced as a whole, so a reader sees an old or a new one and no half.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::{Access, Failure, Usage};
use crate::files::{self, Lock};
use crate::plan::Plan;
use crate::process::Identity;
use crate::task::{Job, Task, WorkersWords, broken};
/// The most bytes that are read from the end of a log.
const LOG_END: u64 = 64 << 10;

/// An end that an exit code or a signal does not explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopReason {
    /// The worker reported its final result and did not exit, so the supervisor ended it.
    LastWord,
    /// The worker had reported its final result; its supervisor died before it saw the exit.
    LastWordUnseen,
    /// The worker was silent for longer than the config allows, so the supervisor ended it.
    Silent {
        /// The limit that passed.
        minutes: u64,
    },
    /// The task's budget is used up, so the supervisor ended the worker or did not start it.
    Budget {
        /// The part that is used up, as `0.20 of 5usd`.
        used: String,
    },
    /// The host no longer lists its agent, which has not finished.
    AgentGone,
    /// The scheduler announced that the time of the job is over, so the supervisor ended the worker.
    JobTime,
    /// The job ended under its supervisor.
    Job {
        /// The job and the scheduler's word about it, as `Slurm job 12 ended (TIMEOUT)`.
        said: String,
    },
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LastWord => f.write_str("the worker did not exit after its final result"),
            Self::LastWordUnseen => {
                f.write_str("the worker reported its final result; nobody saw it exit")
            }
            Self::Silent { minutes } => write!(f, "silent for {minutes} min"),
            Self::Budget { used } => write!(f, "budget: {used} used"),
            Self::AgentGone => {
                f.write_str("the agent ended without finishing, or was never started")
            }
            Self::JobTime => f.write_str("the time of its job was over; see 'start' of its place"),
            Self::Job { said } => f.write_str(said),
        }
    }
}

/// How an attempt ended, as its supervisor or host saw it: the file `exit`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The worker's exit code, if it exited by itself.
    pub code: Option<i32>,
    /// The number of the signal that ended the worker.
    pub signal: Option<i32>,
    /// The error, if the program could not be started.
    pub not_started: Option<String>,
    /// The reason for an end that code and signal do not explain.
    pub stop_reason: Option<StopReason>,
    /// The failure that the CLI reported.
    pub failure: Option<Failure>,
    /// The tool calls that the CLI denied to the worker.
    #[serde(default)]
    pub denied: Vec<String>,
    /// The tokens and money that the attempt used, if the CLI reported them.
    pub usage: Option<Usage>,
    /// The wall clock at the end (RFC 3339), only to be shown.
    pub at: String,
    /// How long the worker ran, in milliseconds of the monotonic clock.
    pub milliseconds: u64,
}

impl ExitRecord {
    /// Returns true if nobody saw the end, because the supervisor died first.
    pub fn is_unseen(&self) -> bool {
        matches!(self.stop_reason, None | Some(StopReason::LastWordUnseen))
            && self.code.is_none()
            && self.signal.is_none()
            && self.not_started.is_none()
    }

    /// Returns true if the CLI had reported its final result, so that the plan decides the state.
    pub fn had_result(&self) -> bool {
        matches!(self.stop_reason, Some(StopReason::LastWord | StopReason::LastWordUnseen))
    }
}

/// The checks after an attempt, as far as they are: the file `gate`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gate {
    /// The commit of the task's branch that was checked.
    pub commit: Option<String>,
    /// The check that is running; `None` at the end.
    pub checking: Option<String>,
    /// The first check that failed.
    pub failed: Option<FailedCheck>,
    /// The end of the review, as `reviewed by NAME`, if one was asked for.
    pub review: Option<String>,
    /// The notes that came too late for the worker to read, by number.
    pub notes: Vec<String>,
    /// The files of tests that the checked commits change, in short and not cleaned.
    pub tests: String,
    /// `true` if the worker is told of the failed check or of the notes, and continues.
    pub continues: bool,
    /// How many attempts in a row ended with a failed check.
    pub failures: u32,
    /// The commit that the branch had after the checks, if it is another one.
    pub moved: Option<String>,
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCheck {
    /// The command of the person.
    pub command: String,
    /// The end of the command, as `exit code 1`.
    pub end: String,
    /// The last lines of its output.
    #[serde(default)]
    pub output: String,
    /// True for a review, whose output are its findings.
    #[serde(default)]
    pub is_review: bool,
}

/// A CLI's session, which a later attempt can continue: the file `session`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The backend whose CLI made the session.
    pub backend: String,
    /// The CLI's id of the session.
    pub id: String,
    /// The access level of the private directory that holds it; `None` for the person's own.
    pub home: Option<Access>,
}

impl SessionRecord {
    /// Returns true if the id is a single plain word, as all CLIs use: never an option or several
    /// arguments.
    fn has_plain_id(&self) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        self.id.len() <= 128 && !self.id.starts_with('-') && self.id.bytes().all(plain)
    }
}

/// A task's attempt, by its number.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    pub(super) directory: PathBuf,
}

impl Attempt {
    /// The attempt's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The prompt that the worker is started with.
    pub fn prompt_path(&self) -> PathBuf {
        self.directory.join("prompt.md")
    }

    /// The log: the worker's standard output and error.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// The file with the earlier part of a log that was trimmed.
    pub fn old_log_path(&self) -> PathBuf {
        self.directory.join("log.old")
    }

    /// The log's last whole lines, at most 64 KiB; those of the old log if the log was just trimmed.
    pub fn log_end(&self) -> String {
        let old = self.old_log_path();
        let end = |path: &Path, cut: bool| {
            let mut end = files::tail(path, LOG_END + 1).unwrap_or_default();
            if cut || end.len() as u64 > LOG_END {
                let line_end = end.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
                end.drain(..line_end.map_or(end.len(), |at| at + 1));
            }
            end
        };
        // A trimmed log may begin within a line.
        let mut bytes = end(&self.log_path(), old.exists());
        if bytes.iter().all(u8::is_ascii_whitespace) {
            bytes = end(&old, false);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The time from the worker's start to the last write to its log, if both are known.
    pub fn logged_time(&self) -> Option<Duration> {
        files::modified_at(&self.log_path())?.duration_since(self.started_at()?).ok()
    }

    /// The wall clock at the worker's start, if it started.
    pub fn started_at(&self) -> Option<SystemTime> {
        files::modified_at(&self.directory.join("identity"))
    }

    /// The file with a copy of the plan as it was when the attempt began.
    pub fn plan_path(&self) -> PathBuf {
        self.directory.join("plan.md")
    }

    /// The plan as it was when the attempt began, if a copy was written.
    pub fn plan(&self) -> Result<Option<Plan>> {
        Ok(files::read_lossy(&self.plan_path())?.map(|text| Plan::parse(&text)))
    }

    /// Publishes a value as the file of that name, without its empty fields.
    fn set(&self, name: &str, value: &impl Serialize) -> Result<()> {
        // As a JSON value first: YAML would write a reason as a tag.
        let mut value = serde_json::to_value(value)?;
        let is_empty = |it: &Value| it.is_null() || it.as_array().is_some_and(Vec::is_empty);
        value.as_object_mut().into_iter().for_each(|all| all.retain(|_, it| !is_empty(it)));
        files::publish(&self.directory.join(name), serde_yaml::to_string(&value)?.as_bytes())
    }

    /// Records which process is the worker.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        self.set("identity", identity)
    }

    /// The worker's process; `None` before its start.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let next = "remove it if no worker of this task is running";
        read_yaml(&self.directory.join("identity"), next)
    }

    /// Records the CLI's session.
    pub fn set_session(&self, session: &SessionRecord) -> Result<()> {
        self.set("session", session)
    }

    /// The CLI's session, if it is known.
    ///
    /// # Errors
    /// [`crate::error::Exit::Data`] if the file is broken, or its id could be read as an option: the
    /// CLI said the id, and it becomes an argument of the next attempt's CLI.
    pub fn session(&self) -> Result<Option<SessionRecord>> {
        let (path, next) =
            (self.directory.join("session"), "remove it; the next attempt begins a new session");
        let session: Option<SessionRecord> = read_yaml(&path, next)?;
        match session {
            Some(session) if !session.has_plain_id() => {
                Err(broken(&path, &"the session id has a wrong form", next).into())
            }
            session => Ok(session),
        }
    }

    /// A command that the supervisor runs beside this attempt's worker: its identity and its log.
    pub fn errand(&self, name: &str) -> Self {
        Self { number: self.number, directory: self.directory.join(name) }
    }

    /// Records how far the checks are.
    pub fn set_gate(&self, gate: &Gate) -> Result<()> {
        self.set("gate", gate)
    }

    /// The checks after the attempt; `None` before.
    pub fn gate(&self) -> Result<Option<Gate>> {
        read_yaml(&self.directory.join("gate"), "remove it; the checks then run again")
    }

    /// Records since when (RFC 3339) the worker has been silent; `None` if it is not.
    pub fn set_silent_since(&self, since: Option<&str>) -> Result<()> {
        let path = self.directory.join("silent");
        match since {
            Some(since) => files::publish(&path, since.as_bytes()),
            None => files::remove(&path),
        }
    }

    /// The time since which the worker has been silent, if that is longer than the config allows.
    pub fn silent_since(&self) -> Result<Option<String>> {
        files::read_lossy(&self.directory.join("silent"))
    }

    /// Records the usage that the host reported for its agent.
    pub fn set_usage(&self, usage: &Usage) -> Result<()> {
        if self.host_usage()?.as_ref() == Some(usage) { Ok(()) } else { self.set("usage", usage) }
    }

    fn host_usage(&self) -> Result<Option<Usage>> {
        read_yaml(&self.directory.join("usage"), "remove it; the usage so far is then unknown")
    }

    /// The usage that the CLI reported, else the one that the host reported.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let of_cli = self.exit()?.and_then(|exit| exit.usage);
        of_cli.map_or_else(|| self.host_usage(), |usage| Ok(Some(usage)))
    }

    /// Records how the attempt ended.
    pub(super) fn set_exit(&self, exit: &ExitRecord) -> Result<()> {
        self.set("exit", exit)
    }

    /// Freezes the statements of the worker's side; `false` if they are too large to be read again.
    pub(super) fn set_words(&self, words: &WorkersWords) -> Result<bool> {
        let text = serde_json::to_string(words)?;
        if text.len() as u64 > files::LARGEST {
            return Ok(false);
        }
        files::publish(&self.words_path(), text.as_bytes()).map(|()| true)
    }

    /// The statements of the worker's side at the end; `None` before.
    pub(super) fn words(&self) -> Result<Option<WorkersWords>> {
        read_json(&self.words_path(), "remove it; the files of the worker's side then count")
    }

    pub(super) fn remove_words(&self) -> Result<()> {
        files::remove(&self.words_path())
    }

    fn words_path(&self) -> PathBuf {
        self.directory.join("words")
    }

    /// The recorded end; `None` while the worker runs, and while an unseen end is not recorded yet.
    pub fn exit(&self) -> Result<Option<ExitRecord>> {
        let next = "remove it; the worker's end then counts as unknown";
        read_yaml(&self.directory.join("exit"), next)
    }
}

/// The far end of a task at a place, as its mirror saw it last: the file `remote`. The place's own word
/// never gets in here, but for whether something of the task runs there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// True from before the task is sent until the place has said that nothing of it runs.
    pub open: bool,
    /// When the place was heard last (RFC 3339).
    pub seen: String,
    /// Since when the place does not answer (RFC 3339).
    pub unreachable: Option<String>,
    /// True once the task was sent there.
    #[serde(default)]
    pub sent: bool,
    /// How many attempts the task had when it was sent; the place counts its own from 1.
    #[serde(default)]
    pub before: u32,
    /// The nonce that names the task there, if it was moved there: another one for each move.
    pub nonce: Option<String>,
    /// How often the task was stopped before it had started there.
    #[serde(default)]
    pub stops: u32,
    /// Why the place could not start the task.
    pub error: Option<String>,
}

impl Task {
    /// The far end of a task at a place; `None` before its mirror has looked at it.
    pub fn remote(&self) -> Result<Option<Remote>> {
        read_json(&self.state_dir.join("remote"), "remove it; the place is then asked again")
    }

    /// Records the far end of the task; `None` forgets it, for a task that begins elsewhere.
    pub fn set_remote(&self, remote: Option<&Remote>) -> Result<()> {
        let path = self.state_dir.join("remote");
        let publish = |it| files::publish(&path, serde_json::to_string(it)?.as_bytes());
        remote.map_or_else(|| files::remove(&path), publish)
    }

    /// The last job of the task, with the scheduler's last word about it.
    pub fn job(&self) -> Result<Option<Job>> {
        let path = self.state_dir.join("job");
        let next = "remove it once no job of this task is in the queue";
        let Some(job) = read_yaml::<Job>(&path, next)? else { return Ok(None) };
        let seen = read_yaml::<Job>(&path.with_extension("state"), next)?;
        // A late look at an earlier job says nothing of this one.
        Ok(seen.filter(|it| (&it.token, &it.id) == (&job.token, &job.id)).or(Some(job)))
    }

    /// Records the job, or the scheduler's word about it if it `is_word`: others submit meanwhile.
    pub fn set_job(&self, job: &Job, is_word: bool) -> Result<()> {
        let name = if is_word { "job.state" } else { "job" };
        files::publish(&self.state_dir.join(name), serde_yaml::to_string(job)?.as_bytes())
    }

    /// Forgets the last job.
    pub fn forget_job(&self) -> Result<()> {
        files::remove(&self.state_dir.join("job"))
    }

    /// Returns true if a supervisor may be running. The scheduler decides that of a job: neither the
    /// processes nor the locks of another machine can be judged.
    pub fn is_supervised(&self) -> Result<bool> {
        match self.job()? {
            Some(job) => Ok(!job.is_over),
            None => Lock::is_held(&self.run_lock_path()),
        }
    }
}

/// The value in a file of JSON; `next` says what to do about a broken one.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path, next: &str) -> Result<Option<T>> {
    let Some(text) = files::read_foreign(path)? else { return Ok(None) };
    files::from_json(&text).map(Some).map_err(|error| broken(path, &error, next).into())
}

fn read_yaml<T: DeserializeOwned>(path: &Path, next: &str) -> Result<Option<T>> {
    let Some(text) = files::read_foreign(path)? else { return Ok(None) };
    let text = files::decode(text, path)?;
    files::from_yaml(&text).map(Some).map_err(|error| broken(path, &error, next).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_end_begins_with_whole_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let attempt = Attempt { number: 1, directory: directory.path().into() };
        let write = |path: PathBuf, text: &str| std::fs::write(path, text).expect("written");
        assert_eq!(attempt.log_end(), "");
        write(attempt.log_path(), "one\ntwo\n");
        assert_eq!(attempt.log_end(), "one\ntwo\n");
        let long = "{\"text\":\"long\"}\n".repeat(1 << 13);
        write(attempt.log_path(), &long);
        let end = attempt.log_end();
        assert!(end.starts_with('{') && end.len() > (60 << 10) && long.ends_with(&end), "{end}");
        // The log was trimmed within a line.
        write(attempt.old_log_path(), "old\none\ntw");
        write(attempt.log_path(), "o\nthree\n");
        assert_eq!(attempt.log_end(), "three\n");
        write(attempt.log_path(), "o");
        assert_eq!(attempt.log_end(), "old\none\ntw");
    }

    #[test]
    fn exit_record_keeps_its_stop_reason() {
        let directory = tempfile::tempdir().expect("a directory");
        let attempt = Attempt { number: 1, directory: directory.path().into() };
        let job = StopReason::Job { said: "TIMEOUT".into() };
        let budget = StopReason::Budget { used: "0.20 of 5usd".into() };
        let silent = StopReason::Silent { minutes: 20 };
        for reason in [StopReason::LastWord, StopReason::AgentGone, silent, budget, job] {
            // Texts that YAML would read as numbers, booleans or nothing, if they were not quoted.
            for at in ["20", "1e3", "0x1f", ".inf", "012", "yes", "null", "~", "", " ", "a: b"] {
                let (at, stop_reason) = (at.into(), Some(reason.clone()));
                let exit = ExitRecord { at, stop_reason, ..ExitRecord::default() };
                attempt.set_exit(&exit).expect("written");
                assert_eq!(attempt.exit().expect("read"), Some(exit));
            }
        }
    }
}
