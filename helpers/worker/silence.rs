//! How long a worker may be silent: the watchdog for CLIs that never exit.

use std::time::{Duration, Instant, SystemTime};

use crate::config::Config;
use crate::fault;
use crate::ipc::Question;
use crate::task::{Attempt, StopReason, Task};

/// Default of `silent_after`.
const SILENT_AFTER: Duration = Duration::from_secs(20 * 60);

/// The watch over a worker's signs of life: new output, or a change in its task's directory. A
/// worker that waits for an answer is never silent.
pub(super) struct Silence {
    /// `None` if the config turns the check off.
    limit: Option<Duration>,
    stop_when_silent: bool,
    /// The time and size of each file that a worker changes.
    stamps: Vec<Option<(SystemTime, u64)>>,
    last_sign: Instant,
    is_recorded: bool,
}

impl Silence {
    pub(super) fn new() -> Self {
        let config = Config::load().unwrap_or_default();
        let minutes =
            config.silent_after.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        let limit = fault::limit("DISPATCH_SILENT_MS", minutes.unwrap_or(SILENT_AFTER));
        Self {
            limit: Some(limit).filter(|limit| !limit.is_zero()),
            stop_when_silent: config.stop_silent.unwrap_or(false),
            stamps: Vec::new(),
            last_sign: Instant::now(),
            is_recorded: false,
        }
    }

    /// Records whether the worker is silent; returns why it has to be ended, if the config says so.
    pub(super) fn check(
        &mut self,
        task: &Task,
        attempt: &Attempt,
        new: bool,
    ) -> Option<StopReason> {
        let limit = self.limit?;
        let side = task.side();
        let ipc = side.ipc().directory().to_path_buf();
        let own =
            [side.plan_path(), ipc, side.tells_dir(), side.context_path(), side.report_path()];
        let stamps = own.map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        });
        if new || self.stamps != stamps || self.waits_for_answer(limit, task) {
            self.stamps = stamps.into();
            self.last_sign = Instant::now();
            if self.is_recorded && attempt.set_silent_since(None).is_ok() {
                self.is_recorded = false;
            }
        }
        if self.last_sign.elapsed() < limit {
            return None;
        }
        if self.stop_when_silent {
            return Some(StopReason::Silent { minutes: limit.as_secs() / 60 });
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now() - self.last_sign.elapsed());
        self.is_recorded =
            self.is_recorded || attempt.set_silent_since(Some(&since.to_string())).is_ok();
        None
    }

    /// Returns true if the worker waits for an answer. Reads files only after the limit.
    fn waits_for_answer(&self, limit: Duration, task: &Task) -> bool {
        let questions = || task.side().ipc().questions().unwrap_or_default();
        self.last_sign.elapsed() >= limit && questions().iter().any(Question::is_open)
    }
}
