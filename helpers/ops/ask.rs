//! Ask: a worker's question waits for the person's answer, over as many calls as its host's limit for
//! one command asks for. All of it happens on the worker's side, also inside a sandbox.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::Config;
use crate::fault;
use crate::files;
use crate::ipc::{Ipc, IpcText, Looks, second_look};
use crate::process::{ANSWERS, PATIENCE, Watch, Woken, boot_id, time_since_boot};
use crate::task::{Answer, WorkerSide};

/// How long one call waits for an answer: just under the 600 s that hosts allow a command.
pub const WAIT: Duration = Duration::from_secs(570);

/// Default of `patience`: how long a worker waits for an answer in total.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The result of a call that waits for an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer.
    Answer(String),
    /// No answer yet; another call may continue to wait.
    NotYet,
    /// No answer within the patience of the config.
    TooLate,
}

/// Waits for the answer to a question, for as long as one call may.
///
/// # Errors
/// Files that cannot be read or watched.
pub fn wait(side: &WorkerSide, number: &str) -> Result<Reply> {
    let (before, patience) = (waited(side, number)?, patience());
    let limit = fault::limit("DISPATCH_WAIT_MS", WAIT).min(patience.saturating_sub(before));
    if let Some(answer) = wait_for_answer(side, number, limit)? {
        return Ok(Reply::Answer(answer));
    }
    // A signal may have cut the wait short; the record of its begin has whole seconds.
    let is_over = waited(side, number)? + Duration::from_secs(1) > patience;
    Ok(if is_over { Reply::TooLate } else { Reply::NotYet })
}

fn patience() -> Duration {
    let given = std::env::var(PATIENCE).ok().and_then(|minutes| minutes.parse().ok());
    let minutes = given.or_else(|| Config::load().ok().and_then(|config| config.patience));
    minutes.map_or(DEFAULT_PATIENCE, |minutes| Duration::from_secs(minutes.saturating_mul(60)))
}

/// The answer to a question, if it comes within that time and no signal comes first.
pub fn wait_for_answer(side: &WorkerSide, number: &str, limit: Duration) -> Result<Option<String>> {
    let (ipc, mut looks) = (side.ipc(), Looks::default());
    let mut watch = Watch::new(&[SIGINT, SIGTERM])?;
    let begin = Instant::now();
    loop {
        watch.add_directory(ipc.directory());
        let found = answer(&ipc, number)?;
        if let Some(found) = found.filter(|it| looks.takes(ipc.answer_path(number), it)) {
            return Ok(Some(found.text));
        }
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        if let Woken::Signal(_) = watch.wait_for_event(left.min(second_look()))? {
            return Ok(None);
        }
    }
}

/// The answer to a question. A worker at `full` access takes only the person's record: at that level,
/// others may write its copy.
fn answer(ipc: &Ipc, number: &str) -> Result<Option<IpcText>> {
    let Some(answers) = std::env::var_os(ANSWERS) else { return ipc.answer(number) };
    let recorded = files::read(&Path::new(&answers).join(number))?;
    let answer = |text: String| {
        files::from_json(text.as_bytes())
            .map(|it: Answer| IpcText { text: it.answer, is_whole: true })
    };
    recorded.map(answer).transpose().context("cannot read the answer")
}

/// How long a worker has waited for an answer, over all calls. The first one records when it began. The
/// clock includes the time that the machine sleeps.
fn waited(side: &WorkerSide, number: &str) -> Result<Duration> {
    let path = side.directory().join(format!("ipc/.{number}.asked"));
    let (boot, now) = (boot_id(), time_since_boot());
    let text = files::read_lossy(&path)?.unwrap_or_default();
    let begin = text.split_once(' ').filter(|(of_boot, _)| *of_boot == boot);
    if let Some(seconds) = begin.and_then(|(_, seconds)| seconds.parse().ok()) {
        return Ok(now.saturating_sub(Duration::from_secs(seconds)));
    }
    // The first wait, or the machine restarted: the time counts from now.
    files::publish(&path, format!("{boot} {}", now.as_secs()).as_bytes())?;
    Ok(Duration::ZERO)
}
