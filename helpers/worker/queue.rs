//! The queue in which a supervisor waits before it starts a worker: the tasks named by `--after`,
//! the reset of a rate limit, and a slot below `max_workers`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::dirs;
use crate::domain::{Failure, FailureKind, Route};
use crate::fault;
use crate::files::{self, Lock};
use crate::ids::unix_seconds;
use crate::process::Watch;
use crate::project::stands;
use crate::task::{Dependency, ExitRecord, Record, State, Task, Wait};
use crate::text::sort;
use crate::worker::running::{SAFETY_SCAN, asks_to_end};
use crate::worker::supervise::{Supervisor, WAITS};
use crate::worker::{check_start, has_finished};

/// How long a task is parked the first time if the CLI does not say when its limit resets. The time
/// doubles with each further park in a row.
const FIRST_PARK: Duration = Duration::from_secs(60);

/// How many times in a row a task is parked without a stated reset time.
const MOST_PARKS: u32 = 8;

/// How many seconds after its stated reset a limit counts as over.
const SLACK: u64 = 2;

/// The latest stated reset that is believed, in seconds from now: a month.
const LONGEST_PARK: u64 = 31 * 24 * 3600;

/// Default of `wait_for_limit`, in minutes.
const WAIT_FOR_LIMIT: u64 = 60;

/// The right to run a worker, until it is dropped.
pub(super) struct Slot {
    /// How many times in a row the task was parked so far.
    pub(super) parks: u32,
    _ticket: Option<Ticket>,
}

impl Slot {
    /// The slot of a worker that runs already.
    pub(super) fn of_running() -> Self {
        let is_limited = Config::load().is_ok_and(|config| config.max_workers.is_some());
        // The worker runs, whether it can be counted or not.
        let ticket = is_limited.then(|| Ticket::take(true).ok()).flatten();
        Self { parks: 0, _ticket: ticket }
    }
}

/// Waits until the task's next attempt may start; `None` if it must not start any more.
pub(super) fn wait_for_slot(supervisor: &mut Supervisor) -> Result<Option<Slot>> {
    let Supervisor { task, watch, starter } = supervisor;
    let (mut parks, mut queue) = (0, None);
    fall_back(task)?;
    loop {
        watch.add_directory(task.state_dir());
        let record = task.record()?.context("the task has no record")?;
        // A person may have given the task to an agent meanwhile, which needs no supervisor.
        if record.stop || record.route == Route::Agent {
            return Ok(None);
        }
        let mut wait = None;
        if !stands(task.state_dir(), task.side().directory()) {
            // The project was moved, replaced or cleaned up: a person has to say where it is.
            let obstacle = "is not as it was at the dispatch".into();
            wait = Some(Wait::Held { task: "its project".into(), obstacle });
        } else if queue.is_none() {
            // Once the task is in the queue, predecessors and limits no longer matter.
            wait = match parked(task, &mut parks)? {
                None => predecessors(task, &record, watch)?,
                wait => wait,
            };
        }
        if wait.is_none() {
            wait = queued(&mut queue, watch)?;
        }
        let Some(wait) = wait else { break };
        // `--resume` of a parked task rewrites its wait; do not overwrite that.
        let parked = matches!(wait, Wait::Parked { .. });
        if !parked && task.wait()?.as_ref() != Some(&wait) {
            task.set_wait(Some(&wait))?;
        }
        starter.report(WAITS)?;
        let pause = match wait {
            Wait::Parked { until, .. } => {
                Duration::from_secs(until.saturating_sub(unix_seconds()).clamp(1, 10))
            }
            _ => SAFETY_SCAN,
        };
        if asks_to_end(&watch.wait_for_event(pause)?) {
            return Ok(None);
        }
    }
    Ok(Some(Slot { parks, _ticket: queue.map(|(ticket, _)| ticket) }))
}

/// The wait for a rate limit's reset, or for the fallback of a worker whose limit or overload lasts, if
/// the attempt ended so.
pub(super) fn park(task: &Task, exit: &ExitRecord, times: u32) -> Result<Option<Wait>> {
    let Some(Failure { kind, said, resets }) = exit.failure.clone() else { return Ok(None) };
    let is_limit = kind == FailureKind::Quota;
    let is_overload = kind == FailureKind::Crash && said.to_lowercase().contains("overloaded");
    // A worker that corrects its work after a check has all items ticked.
    let record = task.record()?.filter(|record| !record.stop && !has_finished(task));
    let Some(record) = record.filter(|_| is_limit || is_overload) else { return Ok(None) };
    let now = unix_seconds();
    // Ignore a reset in the past (it did not help) or in the far future (a parse error).
    let believed = |until: &u64| (now + 1..now + LONGEST_PARK).contains(until);
    let stated = resets.map(|resets| resets.saturating_add(SLACK)).filter(believed);
    let config = Config::load().unwrap_or_default();
    let longest = config.wait_for_limit.unwrap_or(WAIT_FOR_LIMIT).saturating_mul(60);
    let is_short = stated.is_some_and(|until| until - now <= longest);
    let fallback = config.resolve(Some(&record.name)).ok().and_then(|choice| choice.fallback);
    let is_new = |name: &String| *name != record.name && !record.limited.contains(name);
    let fallback = fallback.filter(|name| !is_short && times <= MOST_PARKS && is_new(name));
    if fallback.is_none() && (is_overload || stated.is_none() && times > MOST_PARKS) {
        return Ok(None);
    }
    let until = stated.unwrap_or(now + back_off(times).as_secs());
    Ok(Some(Wait::Parked { until, stated: stated.is_some(), times, said, fallback }))
}

/// How long to park the given time in a row.
fn back_off(times: u32) -> Duration {
    fault::limit("DISPATCH_PARK_MS", FIRST_PARK) * 2_u32.pow(times.clamp(1, MOST_PARKS) - 1)
}

/// Gives a task whose worker is at its limit to the fallback, and tells the host so.
fn fall_back(task: &Task) -> Result<()> {
    let wait = task.wait()?;
    let Some(Wait::Parked { until, stated, times, said, fallback: Some(name) }) = wait.clone()
    else {
        return Ok(());
    };
    let record = task.record()?.context("the task has no record")?;
    let before = record.name.clone();
    // A supervisor that died may have recorded the fallback.
    let new = (before != name).then(|| replaced(task, record, &name)).transpose();
    // A person may have resumed the task meanwhile.
    if task.wait()? != wait {
        return Ok(());
    }
    // The worker's side may refuse the message; the task continues all the same.
    let tell = |text: String| drop(task.side().tell(&text));
    let (until, fallback) = match new {
        Ok(new) => {
            if let Some(new) = new {
                tell(format!("{before} is at its limit ({said}): {name} continues"));
                task.change_record(|record| record.set_worker(new))?;
            }
            (unix_seconds(), Some(name))
        }
        Err(error) => {
            let why = error.to_string();
            let why = why.lines().next().unwrap_or_default();
            tell(format!("{before} is at its limit, and {name} cannot continue: {why}"));
            (until, None)
        }
    };
    task.set_wait(Some(&Wait::Parked { until, stated, times, said, fallback }))
}

/// The record for another worker, which gets no more access than the one before.
fn replaced(task: &Task, record: Record, name: &str) -> Result<Record> {
    let choice = Config::load()?.resolve(Some(name))?;
    let mut limited = record.limited.clone();
    limited.push(record.name.clone());
    let mut new = Record {
        name: choice.name,
        model: choice.model,
        backend: choice.backend,
        role: choice.prompt.or(record.role.clone()),
        access: record.access.min(choice.settings.usual_access()),
        limited,
        ..record
    };
    check_start(task, &mut new, &choice.settings)?;
    Ok(new)
}

/// The wait for the reset of a rate limit.
fn parked(task: &Task, parks: &mut u32) -> Result<Option<Wait>> {
    let wait = task.wait()?;
    let Some(Wait::Parked { until, times, .. }) = wait else { return Ok(None) };
    *parks = times;
    Ok(wait.filter(|_| until > unix_seconds()))
}

/// The predecessors that are not done yet, or the first that cannot finish by itself. They count only
/// until the task's first attempt.
pub(crate) fn predecessors(
    task: &Task,
    record: &Record,
    watch: &mut Watch,
) -> Result<Option<Wait>> {
    if task.last_attempt().is_some() {
        return Ok(None);
    }
    let (mut open, mut held) = (Vec::new(), None);
    for before in &record.after {
        match predecessor(task, before, watch)? {
            Some(Wait::After(mut names)) => open.append(&mut names),
            wait => held = held.or(wait),
        }
    }
    Ok(held.or((!open.is_empty()).then_some(Wait::After(open))))
}

/// The wait for one predecessor, unless it is done.
fn predecessor(task: &Task, before: &Dependency, watch: &mut Watch) -> Result<Option<Wait>> {
    let open = Some(Wait::After(vec![before.task.clone()]));
    let held = |obstacle: &str| {
        Ok(Some(Wait::Held { task: before.task.clone(), obstacle: obstacle.into() }))
    };
    let other = task.sibling(before.task.parse()?);
    let attempt = other.last_attempt().map(|attempt| attempt.directory().to_path_buf());
    let sides = [other.state_dir(), other.side().directory()].map(Path::to_path_buf);
    let places = [other.side().ipc().directory().to_path_buf(), other.attempts_dir()];
    for place in sides.iter().chain(&places).chain(&attempt) {
        watch.add_directory(place);
    }
    if !other.was_dispatched() || other.is_deleted() {
        return held("is gone");
    }
    let view = match other.view() {
        Ok(view) => view,
        Err(error) => return held(error.to_string().lines().next().unwrap_or("is broken")),
    };
    if view.record.nonce != before.nonce {
        return held("is another task of that name now");
    }
    // A worker that called `finish` may still be making its last commit.
    let over =
        view.record.route == Route::Agent || view.exit.is_some() || view.processes.is_empty();
    match view.state {
        State::Done if over => Ok(None),
        _ if view.is_between_attempts() && view.unread_answer => Ok(open),
        state if state.has_failed() => held("failed"),
        State::Stopped => held("was stopped"),
        State::Blocked => held("is blocked"),
        State::Incomplete => held("ended with items left"),
        _ => Ok(open),
    }
}

/// The wait for a slot among all workers of this user, in any project. `queue`: the task's ticket, and
/// `max_workers` as the config said when it could be read last. Without a limit there is no ticket, and
/// workers that started before there was one do not count.
fn queued(queue: &mut Option<(Ticket, usize)>, watch: &mut Watch) -> Result<Option<Wait>> {
    let config = Config::load().ok();
    let (ticket, limit) = match queue {
        Some(queue) => queue,
        None => match config.as_ref().and_then(|config| config.max_workers) {
            Some(limit) => queue.insert((Ticket::take(false)?, limit)),
            None => return Ok(None),
        },
    };
    for directory in [Some(&*directory()?), dirs::config_path()?.parent()].into_iter().flatten() {
        watch.add_directory(directory);
    }
    // A config without names is one that an editor has truncated and is about to write. Without a config
    // no worker can start, so wait until it can be read again.
    if let Some(config) = config.filter(|config| config.names().next().is_some()) {
        let Some(now) = config.max_workers else { return Ok(None) };
        *limit = now;
        if ticket.has_slot(now)? {
            return Ok(None);
        }
    }
    Ok(Some(Wait::Queued { limit: *limit }))
}

/// A number in the queue; lower numbers go first, and a worker that runs already takes one below all.
/// A ticket counts while its file is locked, so nobody waits for a dead holder.
struct Ticket {
    number: i64,
    path: PathBuf,
    _locked: File,
}

impl Ticket {
    /// Takes the last number, or the first for a worker that `is_running`.
    fn take(is_running: bool) -> Result<Self> {
        let directory = directory()?;
        files::create_private_directory(&directory)?;
        // A single ticket at a time, so that no number is lower than one in use.
        let _lock = Lock::take(&directory.join("lock"), Duration::from_secs(10))?;
        let numbers = numbers(&directory)?;
        live(&directory, &numbers, 1)?;
        let number = match is_running {
            false => numbers.last().map_or(1, |last| last + 1),
            true => numbers.first().map_or(1, |first| first - 1),
        };
        let path = directory.join(number.to_string());
        let create = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            file.lock().map(|()| file)
        };
        let file = create().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { number, path, _locked: file })
    }

    /// Returns true if fewer than `limit` live tickets are before this one.
    fn has_slot(&self, limit: usize) -> Result<bool> {
        let directory = directory()?;
        let mut before = numbers(&directory)?;
        before.retain(|number| *number < self.number);
        Ok(live(&directory, &before, limit)? < limit)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Remove the file before its lock is free; if that fails, the next ticket removes it.
        let _ = files::remove(&self.path);
    }
}

/// The queue directory, shared by all projects of this user.
fn directory() -> Result<PathBuf> {
    Ok(dirs::dispatch_home()?.join("queue"))
}

/// The numbers of all tickets, ascending.
fn numbers(directory: &Path) -> Result<Vec<i64>> {
    let entries = files::entries(directory)?.into_iter();
    let mut numbers: Vec<i64> = entries.filter_map(|name| name.to_str()?.parse().ok()).collect();
    sort(&mut numbers, Ord::cmp);
    Ok(numbers)
}

/// Counts the tickets that are held, up to `most`, and removes those whose holder is dead.
fn live(directory: &Path, numbers: &[i64], most: usize) -> Result<usize> {
    let mut live = 0;
    for path in numbers.iter().map(|number| directory.join(number.to_string())) {
        if live == most {
            break;
        }
        if Lock::is_held(&path)? {
            live += 1;
        } else {
            files::remove(&path)?;
        }
    }
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn park_time_doubles_in_a_row() {
        let minutes: Vec<u64> = (1..=MOST_PARKS).map(|n| back_off(n).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 64, 128]);
    }
}
