//! The queue in which a supervisor waits before it starts a worker: the tasks named by `--after`,
//! the reset of a rate limit, and a slot below `max_workers`.

use std::fs::{DirEntry, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use signal_hook::consts::SIGHUP;

use crate::config::Config;
use crate::dirs;
use crate::domain::{Failure, FailureKind, Route};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::{self, Lock};
use crate::ids::unix_seconds;
use crate::process::{Watch, Woken};
use crate::project::stands;
use crate::task::{Dependency, ExitRecord, Record, State, Task, Wait};
use crate::text::sort;
use crate::worker::check_start;
use crate::worker::running::Starter;

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

/// How often a waiting supervisor looks without an event while everything is watched.
const SAFETY_SCAN: Duration = Duration::from_secs(10);

/// How often it looks if something cannot be watched.
const BLIND_SCAN: Duration = Duration::from_secs(1);

/// How often it reads the wall clock: a pause does not count the time that the machine sleeps.
const CLOCK_SCAN: Duration = Duration::from_secs(60);

/// The right to run a worker, until it is dropped.
pub(super) struct Slot {
    /// How many times in a row the task was parked so far.
    pub(super) parks: u32,
    _ticket: Option<Ticket>,
}

impl Slot {
    /// The slot of a worker that runs already.
    pub(super) fn of_running(task: &Task) -> Self {
        let is_limited = Config::load().is_ok_and(|config| config.max_workers.is_some());
        // The worker runs, whether it can be counted or not.
        let ticket = is_limited.then(|| Ticket::take(task, true).ok()).flatten();
        Self { parks: 0, _ticket: ticket }
    }
}

/// A reason to wait, and the time until the next look.
struct Pause(Wait, Duration);

/// Waits until the task's next attempt may start; `None` if it must not start any more.
pub(super) fn wait_for_slot(
    task: &Task,
    watch: &mut Watch,
    starter: &mut Starter,
) -> Result<Option<Slot>> {
    let mut parks = 0;
    let mut queue = None;
    fall_back(task)?;
    loop {
        watch.add_directory(task.state_dir());
        let record = task.record()?.context("the task has no record")?;
        // A person may have given the task to an agent meanwhile, which needs no supervisor.
        if record.stop || record.route == Route::Agent {
            return Ok(None);
        }
        // Once the task is in the queue, predecessors and limits no longer matter.
        let mut pause = match queue {
            _ if !stands(task.state_dir(), task.side().directory()) => Some(displaced()),
            Some(_) => None,
            None => match parked(task, &mut parks)? {
                None => after(task, &record, watch)?,
                pause => pause,
            },
        };
        if pause.is_none() {
            let queue = match &mut queue {
                Some(queue) => queue,
                None => queue.insert(QueuePlace::join(task)?),
            };
            pause = queue.pause(watch)?;
        }
        let Some(Pause(wait, limit)) = pause else { break };
        // `--resume` of a parked task rewrites its wait; do not overwrite that.
        let parked = matches!(wait, Wait::Parked { .. });
        if !parked && task.wait()?.as_ref() != Some(&wait) {
            task.set_wait(Some(&wait))?;
        }
        starter.report_waiting()?;
        if let Woken::Signal(signal) = watch.wait_for_event(limit)?
            && signal != SIGHUP
        {
            return Ok(None);
        }
    }
    Ok(Some(Slot { parks, _ticket: queue.and_then(|queue| queue.ticket) }))
}

/// The wait of a task whose project was moved, replaced or cleaned up: a person has to say where it is.
fn displaced() -> Pause {
    let obstacle = "is not as it was at the dispatch".into();
    Pause(Wait::Held { task: "its project".into(), obstacle }, BLIND_SCAN)
}

/// The wait for a rate limit's reset, or for the fallback of a worker whose limit or overload lasts, if
/// the attempt ended so.
pub(super) fn park(task: &Task, exit: &ExitRecord, times: u32) -> Result<Option<Wait>> {
    let Some(Failure { kind, said, resets }) = exit.failure.clone() else { return Ok(None) };
    let is_limit = kind == FailureKind::Quota;
    let is_overload = kind == FailureKind::Crash && said.to_lowercase().contains("overloaded");
    // A worker that corrects its work after a check has all items ticked.
    let has_finished = task.side().ipc().finished_at().is_some();
    let is_over = has_finished && task.plan().is_ok_and(|plan| plan.complete());
    let record = task.record()?.filter(|record| !record.stop && !is_over);
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

fn parked(task: &Task, parks: &mut u32) -> Result<Option<Pause>> {
    let Some(wait) = task.wait()? else { return Ok(None) };
    let Wait::Parked { until, times, .. } = wait else { return Ok(None) };
    *parks = times;
    let left = Duration::from_secs(until.saturating_sub(unix_seconds()));
    Ok((!left.is_zero()).then(|| Pause(wait, left.min(CLOCK_SCAN))))
}

/// The tasks that must be done before a task at a place begins, as its wait.
pub(crate) fn predecessors(task: &Task, watch: &mut Watch) -> Result<Option<Wait>> {
    let record = task.record()?.context("the task has no record")?;
    Ok(after(task, &record, watch)?.map(|Pause(wait, _)| wait))
}

/// The predecessors that are not done yet, or the first that cannot finish by itself. They count only
/// until the task's first attempt.
fn after(task: &Task, record: &Record, watch: &mut Watch) -> Result<Option<Pause>> {
    if task.last_attempt().is_some() {
        return Ok(None);
    }
    let (mut open, mut held, mut all_watched) = (Vec::new(), None, true);
    for before in &record.after {
        let name = || before.task.clone();
        match predecessor(task, before, watch, &mut all_watched)? {
            Predecessor::Done => {}
            Predecessor::Open => open.push(name()),
            Predecessor::Held(obstacle) => {
                held = held.or(Some(Wait::Held { task: name(), obstacle }));
            }
        }
    }
    let wait = held.or((!open.is_empty()).then_some(Wait::After(open)));
    let limit = if all_watched { SAFETY_SCAN } else { BLIND_SCAN };
    Ok(wait.map(|wait| Pause(wait, limit)))
}

/// The effect of a predecessor on the tasks after it.
enum Predecessor {
    Done,
    /// The predecessor continues by itself.
    Open,
    /// The predecessor is stuck, for this reason.
    Held(String),
}

fn predecessor(
    task: &Task,
    before: &Dependency,
    watch: &mut Watch,
    all_watched: &mut bool,
) -> Result<Predecessor> {
    let other = task.sibling(before.task.parse()?);
    let attempt = other.last_attempt().map(|attempt| attempt.directory().to_path_buf());
    let places = [other.side().ipc().directory().to_path_buf(), other.attempts_dir()];
    for place in places.iter().chain(&attempt) {
        // A place that does not exist yet will appear in one of the task's own directories.
        watch.add_directory(place);
    }
    for own in [other.state_dir(), other.side().directory()] {
        *all_watched &= watch.add_directory(own) && watch.sees_files();
    }
    if !other.was_dispatched() || other.is_deleted() {
        return Ok(Predecessor::Held("is gone".into()));
    }
    let view = match other.view() {
        Ok(view) => view,
        Err(error) => {
            let error = error.to_string();
            return Ok(Predecessor::Held(error.lines().next().unwrap_or("is broken").into()));
        }
    };
    for process in &view.processes {
        *all_watched &= watch.add_process(process);
    }
    if view.record.nonce != before.nonce {
        return Ok(Predecessor::Held("is another task of that name now".into()));
    }
    // A worker that called `finish` may still be making its last commit.
    let over =
        view.record.route == Route::Agent || view.exit.is_some() || view.processes.is_empty();
    Ok(match view.state {
        State::Done if over => Predecessor::Done,
        _ if view.is_between_attempts() && view.unread_answer => Predecessor::Open,
        state if state.has_failed() => Predecessor::Held("failed".into()),
        State::Stopped => Predecessor::Held("was stopped".into()),
        State::Blocked => Predecessor::Held("is blocked".into()),
        State::Incomplete => Predecessor::Held("ended with items left".into()),
        _ => Predecessor::Open,
    })
}

/// The place of a task among all workers of this user, in any project.
struct QueuePlace {
    /// `None` without a limit; workers that started before there was one do not count.
    ticket: Option<Ticket>,
    /// `max_workers`, as the config said when it could be read last.
    limit: Option<usize>,
}

impl QueuePlace {
    fn join(task: &Task) -> Result<Self> {
        let limit = Config::load().ok().and_then(|config| config.max_workers);
        let ticket = limit.map(|_| Ticket::take(task, false)).transpose()?;
        Ok(Self { ticket, limit })
    }

    fn pause(&mut self, watch: &mut Watch) -> Result<Option<Pause>> {
        let Some(ticket) = &self.ticket else { return Ok(None) };
        let config = dirs::config_path()?;
        let mut all_watched = watch.add_directory(&directory()?) && watch.sees_files();
        all_watched &= config.parent().is_some_and(|directory| watch.add_directory(directory));
        let scan = if all_watched { SAFETY_SCAN } else { BLIND_SCAN };
        // A config without names is one that an editor has truncated and is about to write.
        let config = Config::load().ok().filter(|config| config.names().next().is_some());
        if let Some(config) = &config {
            self.limit = config.max_workers;
        }
        let Some(limit) = self.limit else { return Ok(None) };
        // Without a config no worker can start, so wait until it can be read again.
        let waits = config.is_none() || !ticket.has_slot(limit)?;
        Ok(waits.then_some(Pause(Wait::Queued { limit }, scan)))
    }
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
    fn take(task: &Task, is_running: bool) -> Result<Self> {
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
        let failed = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(failed)?;
        file.lock().with_context(failed)?;
        writeln!(file, "{}", task.side().directory().display()).with_context(failed)?;
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
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", directory.display()))?,
    };
    let number = |entry: std::io::Result<DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    let mut numbers: Vec<i64> = entries.filter_map(number).collect();
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

/// The refusal to start a task that waits in the queue, with its place.
pub(super) fn refusal(task: &Task, limit: usize) -> Result<Refusal> {
    let directory = directory()?;
    let own = format!("{}\n", task.side().directory().display());
    let is_own = |number: &i64| {
        let text = files::read(&directory.join(number.to_string()));
        text.is_ok_and(|text| text.as_ref() == Some(&own))
    };
    let numbers = numbers(&directory)?;
    let before = numbers.iter().position(is_own).unwrap_or_default();
    let live = live(&directory, &numbers[..before], usize::MAX)?;
    let place = match live.saturating_sub(limit) {
        0 => "it is next".into(),
        1 => "one task is before it".into(),
        waiting => format!("{waiting} tasks are before it"),
    };
    let config = dirs::config_path()?;
    Ok(Refusal::new(Exit::TryAgain, format!("'{}' is queued and starts by itself", task.id()))
        .place(format!("{place}; max_workers is {limit} in {}", config.display()))
        .next("wait, or stop a running one: dispatch-reconcile stop TASK"))
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
