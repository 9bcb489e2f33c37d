//! One run of a worker: the directory `worker/<n>`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::domain::{Failure, Usage};
use crate::files;
use crate::plan::Plan;
use crate::process::Identity;
use crate::task::broken;
use crate::text::lossy;

/// How many bytes of a log's end are shown at most.
const LOG_END: u64 = 64 << 10;

/// The `ended` of a worker that reported its result and did not exit; its plan decides the state.
pub const LAST_WORD: &str = "it did not exit after its last word";

/// The `ended` of a worker whose log has a result and whose end nobody saw.
pub const UNSEEN: &str = "it had said its last word, and nobody saw it end";

/// How an attempt ended, as its supervisor saw it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The exit code, if the worker exited by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why the program could not be started, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_started: Option<String>,
    /// Why the supervisor ended the worker, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// The failure that the CLI reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What the worker was not allowed to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<String>,
    /// Tokens and money, as far as the CLI reported them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The wall clock at the end, to show.
    pub at: String,
    /// How long the worker ran, in milliseconds of the monotonic clock.
    pub milliseconds: u64,
}

impl ExitRecord {
    /// Whether nobody saw the end, because the supervisor died first.
    pub fn is_unknown(&self) -> bool {
        let ended = self.ended.as_ref().is_some_and(|why| why != UNSEEN);
        !ended && self.code.is_none() && self.signal.is_none() && self.not_started.is_none()
    }

    /// Whether the CLI had reported its result, so that the plan decides the state.
    pub fn had_result(&self) -> bool {
        self.ended.as_ref().is_some_and(|why| why == LAST_WORD || why == UNSEEN)
    }
}

/// A CLI's session, which a later attempt can continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The backend that knows the session.
    pub backend: String,
    /// The CLI's id of the session.
    pub id: String,
}

impl SessionRecord {
    /// Whether the id is a word as all CLIs use: never an option, never more than one argument.
    fn has_plain_id(&self) -> bool {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        self.id.len() <= 128 && !self.id.starts_with('-') && self.id.bytes().all(plain)
    }
}

/// One run of a worker: the directory `worker/<n>`.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The number; attempts count from 1.
    pub number: u32,
    pub(super) directory: PathBuf,
}

impl Attempt {
    /// The attempt's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The prompt, which the worker reads on standard input.
    pub fn stdin_path(&self) -> PathBuf {
        self.directory.join("stdin")
    }

    /// The worker's standard output and error.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("output.log")
    }

    /// The earlier part of a log that was trimmed.
    pub fn old_log_path(&self) -> PathBuf {
        self.directory.join("output.log.1")
    }

    /// The end of the log in whole lines; that of the old log if the log was just trimmed.
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

    /// The time from the worker's start to the last write to its log.
    pub fn life_sign(&self) -> Option<Duration> {
        let changed = |path: PathBuf| std::fs::symlink_metadata(path)?.modified();
        let begin = changed(self.directory.join("identity")).ok()?;
        changed(self.log_path()).ok()?.duration_since(begin).ok()
    }

    /// The copy of the plan as the attempt began.
    pub fn plan_path(&self) -> PathBuf {
        self.directory.join("plan.md")
    }

    /// The plan as the attempt began, if the copy was written.
    pub fn plan(&self) -> Result<Option<Plan>> {
        Ok(files::read_foreign(&self.plan_path())?.map(lossy).map(|text| Plan::parse(&text)))
    }

    /// The number of the last note that the worker was told of.
    pub(super) fn told_path(&self) -> PathBuf {
        self.directory.join("told")
    }

    /// Records which process is the worker.
    pub fn set_identity(&self, identity: &Identity) -> Result<()> {
        let text = serde_yaml::to_string(identity)?;
        files::publish(&self.directory.join("identity"), text.as_bytes())
    }

    /// The worker's process; `None` before it is started.
    pub fn identity(&self) -> Result<Option<Identity>> {
        let next = "remove it if no worker of the task runs any more";
        read_yaml(&self.directory.join("identity"), next)
    }

    /// Records the CLI's session.
    pub fn set_session(&self, session: &SessionRecord) -> Result<()> {
        let text = serde_yaml::to_string(session)?;
        files::publish(&self.directory.join("session"), text.as_bytes())
    }

    /// The CLI's session, if it is known.
    ///
    /// # Errors
    /// [`crate::exit::Exit::Data`] if the file is broken, or its id could be read as an option: a
    /// worker can write the file, and the id becomes an argument of the next attempt's CLI.
    pub fn session(&self) -> Result<Option<SessionRecord>> {
        let (path, next) =
            (self.directory.join("session"), "remove it; the next worker begins a new session");
        let session: Option<SessionRecord> = read_yaml(&path, next)?;
        match session {
            Some(session) if !session.has_plain_id() => {
                Err(broken(&path, &"the session id has a wrong form", next).into())
            }
            session => Ok(session),
        }
    }

    /// Records since when the worker is silent; `None` if it is not.
    pub fn set_silent(&self, since: Option<&str>) -> Result<()> {
        let path = self.directory.join("silent");
        match since {
            Some(since) => files::publish(&path, since.as_bytes()),
            None => files::remove(&path),
        }
    }

    /// Since when the worker is silent, if for longer than the config allows.
    pub fn silent(&self) -> Result<Option<String>> {
        Ok(files::read_foreign(&self.directory.join("silent"))?.map(lossy))
    }

    /// Records the usage that the host reported for its agent.
    pub fn set_usage(&self, usage: &Usage) -> Result<()> {
        match self.agents_usage()?.as_ref() == Some(usage) {
            true => Ok(()),
            false => files::publish(
                &self.directory.join("usage"),
                serde_yaml::to_string(usage)?.as_bytes(),
            ),
        }
    }

    fn agents_usage(&self) -> Result<Option<Usage>> {
        read_yaml(
            &self.directory.join("usage"),
            "remove it; what was used before is not known then",
        )
    }

    /// The usage, as far as the CLI or the host reported it.
    pub fn usage(&self) -> Result<Option<Usage>> {
        let of_cli = self.exit()?.and_then(|exit| exit.usage);
        of_cli.map_or_else(|| self.agents_usage(), |usage| Ok(Some(usage)))
    }

    /// Records the end.
    pub fn set_exit(&self, exit: &ExitRecord) -> Result<()> {
        let text = serde_yaml::to_string(exit)?;
        files::publish(&self.directory.join("exit"), text.as_bytes())
    }

    /// The recorded end; `None` while the worker runs, or if nobody saw the end.
    pub fn exit(&self) -> Result<Option<ExitRecord>> {
        let next = "remove it; how that worker ended counts as unknown then";
        read_yaml(&self.directory.join("exit"), next)
    }
}

fn read_yaml<T: serde::de::DeserializeOwned>(path: &Path, next: &str) -> Result<Option<T>> {
    let Some(text) = files::read_foreign(path)? else { return Ok(None) };
    let text = files::decode(text, path)?;
    serde_yaml::from_str(&text).map(Some).map_err(|error| broken(path, &error, next).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_begins_with_a_line() {
        let home = tempfile::tempdir().expect("a directory");
        let attempt = Attempt { number: 1, directory: home.path().into() };
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
}
