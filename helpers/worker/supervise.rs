//! The supervisor: a small process, re-parented to init, that waits for a task's turn, runs its
//! attempts one after the other and records how each ended, whatever becomes of the host.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::config::Config;
use crate::dirs;
use crate::domain::{FailureKind, Route, TaskId};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files::Lock;
use crate::git;
use crate::ids::{now, unix_seconds};
use crate::process::{self, ATTEMPT, Life, TASK_DIR, Watch, worker_helper};
use crate::project::Project;
use crate::task::{Attempt, ExitRecord, Reason, Record, State, Task, View, Wait};
use crate::worker::{queue, run};

/// How long a task is parked for the first time if the CLI does not say when its limit ends. Each
/// further time in a row it is twice as long.
const FIRST_PARK: Duration = Duration::from_secs(60);

/// How many times in a row a task is parked for a limit whose end nobody knows.
const MOST_PARKS: u32 = 8;

/// How many seconds after its stated end a limit is taken to be over.
const SLACK: u64 = 2;

/// The longest limit that is believed, in seconds: a month.
const LONGEST_PARK: u64 = 31 * 24 * 3600;

/// How old a task is at least before it counts as one whose supervisor never came.
const SETTLED: Duration = Duration::from_secs(3);

/// How long a supervisor may take to go on when its task need not wait any more.
const GO_ON_LIMIT: Duration = Duration::from_secs(10);

/// How long a supervisor may take to end after its last look at the task.
const RUN_LOCK_LIMIT: Duration = Duration::from_secs(2);

/// What a supervisor says when its worker runs; else it says its exit code and the error.
const STARTED: &str = "started";

/// What it says when the worker has to wait.
const WAITS: &str = "waits";

/// The option of a supervisor that is to run nothing unless an answer waits for a worker.
const IF_ANSWERED: &str = "--if-answered";

/// What became of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartOutcome {
    /// The worker runs.
    Running,
    /// It will run by itself, later.
    Waiting(Wait),
}

/// Starts a supervisor for the task's next attempt, and returns when the worker runs or waits.
///
/// # Errors
/// What the supervisor said if it could not start the worker.
pub fn start(task: &Task) -> Result<StartOutcome> {
    start_if(task, None)
}

/// The same because an answer came after the worker's end. Whoever else has seen it may be faster.
pub fn start_answered(task: &Task) -> Result<StartOutcome> {
    start_if(task, Some(IF_ANSWERED))
}

fn start_if(task: &Task, condition: Option<&str>) -> Result<StartOutcome> {
    let program = worker_helper()?.with_file_name("dispatch-spawn");
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.arg("--supervise").arg(task.directory()).args(condition).current_dir("/");
    // The supervisor has no working directory that a relative path could mean.
    command.env("DISPATCH_CONFIG", std::path::absolute(dirs::config_path()?)?);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    // A supervisor that a worker started is none of that worker's processes, and says so.
    let nonce = task.record()?.map(|record| record.nonce).unwrap_or_default();
    command.env(ATTEMPT, format!("{nonce}/0")).env_remove(TASK_DIR);
    process::detach(&mut command)?;
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(reader).lines() {
        said.push(line.context("cannot hear the supervisor")?);
    }
    match said.as_slice() {
        [only] if only == STARTED => Ok(StartOutcome::Running),
        [only] if only == WAITS => {
            Ok(task.wait()?.map_or(StartOutcome::Running, StartOutcome::Waiting))
        }
        [] => {
            let what = format!("the supervisor of '{}' ended without a word", task.id());
            let again = format!("dispatch-spawn {} --resume tries again", task.id());
            Err(Refusal::new(Exit::Failed, what).next(again).into())
        }
        [code, lines @ ..] => {
            let exit = Exit::from_code(code.parse().unwrap_or_default());
            Err(Refusal::new(exit, lines.join("\n")).into())
        }
    }
}

/// The supervisor's whole life. Its standard output goes to whoever started it, until the worker
/// runs or waits.
pub fn run(directory: &Path, if_answered: bool) -> Result<()> {
    let task = Task::at(directory)?;
    let mut starter = Starter::default();
    let Some(_run_lock) = take_run_lock(&task, if_answered)? else {
        return if task.wait()?.is_some() {
            starter.hears_waits()
        } else {
            starter.hears_started()
        };
    };
    fault::point("supervisor", "locked");
    let mut watch = Watch::new(&[SIGTERM, SIGINT, SIGHUP])?;
    while let Some(turn) = queue::wait(&task, &mut watch, &mut starter)? {
        let ended = begin_where_others_ended(&task)
            .and_then(|()| run::run(&task, &mut watch, &mut starter));
        let (attempt, exit) = ended.inspect_err(|error| not_begun(&task, error))?;
        let wait = park(&task, &exit, turn.parks + 1).unwrap_or_default();
        // First, so that the end is never seen without it. Where it cannot be noted, it is the end.
        let wait = wait.filter(|wait| task.set_wait(Some(wait)).is_ok());
        run::record_end(&attempt, &exit, &mut watch)?;
        fault::point("supervisor", "ended");
        // Whoever answers from now on sees the end, and starts the next supervisor.
        if wait.is_none() && !task.view()?.was_answered_late() {
            break;
        }
    }
    Ok(())
}

/// The run lock, which the last supervisor may be about to leave; `None` if it was to be taken for
/// an answer that another has passed on.
fn take_run_lock(task: &Task, if_answered: bool) -> Result<Option<Lock>> {
    let path = task.run_lock_path();
    let begin = Instant::now();
    loop {
        let lock = Lock::try_take(&path)?;
        if let Some(attempt) = task.last_attempt().filter(|_| if_answered && lock.is_some()) {
            // With this supervisor its task would look alive.
            let worker = attempt.identity()?;
            if worker.is_none_or(|worker| worker.life() == Life::Dead)
                && let Some(record) = task.record()?
            {
                record_unknown(task, &record, &attempt)?;
            }
        }
        if if_answered && !task.view()?.was_answered_late() {
            return Ok(None);
        }
        if lock.is_some() {
            return Ok(lock);
        }
        if begin.elapsed() > RUN_LOCK_LIMIT {
            return Lock::take(&path, Duration::ZERO).map(Some);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Before a task's first attempt, moves its worktree to the end of the branch of the first task
/// before it that has one.
fn begin_where_others_ended(task: &Task) -> Result<()> {
    let record = task.record()?.context("the task has no record")?;
    let branch = record.after.iter().find_map(|before| before.branch.as_deref());
    let (Some(mut worktree), Some(branch)) = (record.worktree, branch) else { return Ok(()) };
    if task.last_attempt().is_some() {
        return Ok(());
    }
    match git::commit(&worktree.repository, &format!("refs/heads/{branch}"))? {
        Some(end) => {
            worktree.begin_at(&end)?;
            worktree.base = end;
            task.change_record(|record| record.worktree = Some(worktree))
        }
        // Merged, for example, while this one waited for its turn.
        None => {
            let base = worktree.base;
            task.tell(&format!("the branch {branch} is gone: this begins at {base}")).map(drop)
        }
    }
}

/// Records that a task that has waited cannot begin, since whoever started its supervisor may have
/// gone. What went wrong later is recorded with the attempt.
fn not_begun(task: &Task, error: &anyhow::Error) {
    if task.wait().is_ok_and(|wait| wait.is_some()) {
        let not_started = Some(format!("{error:#}"));
        let exit = ExitRecord { not_started, at: now(), ..ExitRecord::default() };
        // Where even that cannot be written, the task goes on waiting.
        let _ = task.new_attempt().and_then(|attempt| attempt.set_exit(&exit));
    }
}

/// Whether the task goes on by itself when a limit has ended, and when.
fn park(task: &Task, exit: &ExitRecord, times: u32) -> Result<Option<Wait>> {
    let Some(failure) = exit.failure.as_ref().filter(|failure| failure.kind == FailureKind::Quota)
    else {
        return Ok(None);
    };
    let stopped = task.record()?.is_none_or(|record| record.stop);
    let now = unix_seconds();
    // A time that has passed did not help, and one that is far away is none.
    let believed = |until: &u64| (now + 1..now + LONGEST_PARK).contains(until);
    let stated = failure.resets.map(|resets| resets.saturating_add(SLACK)).filter(believed);
    if stopped || task.plan()?.complete() || (stated.is_none() && times > MOST_PARKS) {
        return Ok(None);
    }
    Ok(Some(Wait::Parked {
        until: stated.unwrap_or(now + back_off(times).as_secs()),
        stated: stated.is_some(),
        times,
        said: failure.said.clone(),
    }))
}

/// For how long a task is parked that many times in a row, at most for hours.
fn back_off(times: u32) -> Duration {
    fault::limit("DISPATCH_PARK_MS", FIRST_PARK) * 2_u32.pow(times.clamp(1, MOST_PARKS) - 1)
}

/// Refuses to start a task whose turn has not come.
///
/// # Errors
/// [`Exit::TryAgain`], with its place in the queue.
pub fn refuse_queued(view: &View) -> Result<()> {
    match view.reason {
        Reason::Waits(Wait::Turn { limit }) if Lock::is_held(&view.task.run_lock_path())? => {
            Err(queue::not_its_turn(&view.task, limit)?.into())
        }
        _ => Ok(()),
    }
}

/// Lets a task that waits go on now, because a person says so: no other is before it, and its rate
/// limit is over. Only its turn is not taken from others.
pub fn take_over(task: &Task) -> Result<StartOutcome> {
    let held = || Lock::is_held(&task.run_lock_path());
    unpark(task)?;
    task.change_record(|record| record.after.clear())?;
    let mut watch = Watch::new(&[])?;
    let begin = Instant::now();
    loop {
        watch.add_directory(task.directory());
        // In this order: a lock that was free before the task still waited is nobody's.
        let held = held()?;
        let view = task.view()?;
        match (view.state, view.reason) {
            (State::Waiting, Reason::Waits(wait @ Wait::Turn { .. })) if held => {
                return Ok(StartOutcome::Waiting(wait));
            }
            (State::Waiting, _) if !held => return start(task),
            (State::Waiting, _) => {}
            // Its worker is about to be started.
            (State::Running, _)
                if !task.last_attempt().is_some_and(|it| matches!(it.identity(), Ok(Some(_)))) => {}
            (State::Failed, Reason::NotStarted(why)) => {
                return Err(Refusal::new(Exit::Failed, why).into());
            }
            _ => return Ok(StartOutcome::Running),
        }
        if begin.elapsed() > GO_ON_LIMIT {
            let what = format!("the supervisor of '{}' does not go on", task.id());
            let next = format!("look again: dispatch-reconcile show {}", task.id());
            return Err(Refusal::new(Exit::TryAgain, what).next(next).into());
        }
        watch.wait_for_event(Duration::from_millis(50))?;
    }
}

/// Takes a rate limit as over, if the task waits for the end of one. Its further ones count anew.
pub fn unpark(task: &Task) -> Result<()> {
    let Some(Wait::Parked { stated, said, .. }) = task.wait()? else { return Ok(()) };
    // Not removed: without a wait, the end of the last attempt would be that of the task.
    task.set_wait(Some(&Wait::Parked { until: unix_seconds(), stated, times: 0, said }))
}

/// Records that an attempt has ended although nobody saw it, because its supervisor died first; says
/// whether it did. Until then that is only seen from its processes, whose numbers other ones may get.
pub fn record_unknown_end(view: &View) -> Result<bool> {
    let of_a_worker = std::env::var_os(TASK_DIR).is_some();
    let over = view.reason == Reason::Lost
        // An agent that is done ends without a word.
        || view.record.route == Route::Cli && view.state != State::Waiting;
    let unseen = view.exit.is_none() && view.processes.is_empty() && over;
    let Some(attempt) = view.attempt.as_ref().filter(|_| unseen && !of_a_worker) else {
        return Ok(false);
    };
    let run_lock = Lock::try_take_unsigned(&view.task.run_lock_path())?;
    let Some(_run_lock) = run_lock else { return Ok(false) };
    record_unknown(&view.task, &view.record, attempt)
}

fn record_unknown(task: &Task, record: &Record, attempt: &Attempt) -> Result<bool> {
    if attempt.exit()?.is_some() {
        return Ok(false);
    }
    let exit = run::unseen_end(task, record, attempt);
    if task.wait()?.is_none()
        && let Some(wait) = park(task, &exit, 1)?
    {
        task.set_wait(Some(&wait))?;
    }
    attempt.set_exit(&exit).map(|()| true)
}

/// Starts a worker again that has ended without the answer that is there now: whoever posted it was
/// killed before it could. Says whether it goes on.
pub fn go_on_if_answered(view: &View) -> bool {
    let of_a_worker = std::env::var_os(TASK_DIR).is_some();
    let late = view.was_answered_late() && view.record.route == Route::Cli && !of_a_worker;
    // What is in the way is recorded, or is there the next time too.
    late && start_answered(&view.task).is_ok()
}

/// Starts a supervisor for each of these tasks that waits and has none, in the order in which they
/// were dispatched: a crash or the end of the machine took it away, or it never came. Returns which
/// it started.
pub fn restart_abandoned(project: &Project, views: &[View]) -> Vec<TaskId> {
    let mut views: Vec<_> = views.iter().filter(|view| is_abandoned(view)).collect();
    // A worker cannot be called without a config; the tasks go on waiting until it is there.
    if views.is_empty() || Config::load().is_err() {
        return Vec::new();
    }
    // Alone, because whoever loses the race for a run lock waits a while for it.
    let Ok(Some(_lock)) = Lock::try_take(&project.mend_lock_path()) else { return Vec::new() };
    let modified = |path| std::fs::metadata(path).and_then(|it| it.modified()).ok();
    views.sort_by_cached_key(|view| {
        (view.record.created.clone(), modified(view.task.prompt_path()))
    });
    let still = |view: &&View| view.task.view().is_ok_and(|view| is_abandoned(&view));
    // What is in the way is recorded, or is there the next time too.
    let starts = |view: &&View| still(view) && start(&view.task).is_ok();
    views.into_iter().filter(starts).map(|view| view.task.id().clone()).collect()
}

fn is_abandoned(view: &View) -> bool {
    view.state == State::Waiting
        && view.record.route == Route::Cli
        && !Lock::is_held(&view.task.run_lock_path()).unwrap_or(true)
        // Whoever wrote its record just now is about to start one.
        && !view.task.was_recorded_within(SETTLED)
}

/// Whoever started this supervisor, and waits to hear what became of it.
#[derive(Default)]
pub(super) struct Starter {
    told: bool,
}

impl Starter {
    /// Says that the worker runs, and closes the pipe.
    pub(super) fn hears_started(&mut self) -> Result<()> {
        self.hears(STARTED)
    }

    /// Says that the worker waits, and closes the pipe.
    pub(super) fn hears_waits(&mut self) -> Result<()> {
        self.hears(WAITS)
    }

    fn hears(&mut self, word: &str) -> Result<()> {
        if std::mem::replace(&mut self.told, true) {
            return Ok(());
        }
        let mut starter = std::io::stdout().as_fd().try_clone_to_owned().map(File::from)?;
        let null =
            File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
        nix::unistd::dup2_stdout(null).context("cannot close the pipe")?;
        // The starter may be gone by now; the worker runs all the same.
        let _ = writeln!(starter, "{word}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_further_park_in_a_row_is_twice_as_long() {
        let minutes: Vec<u64> = (1..=MOST_PARKS).map(|n| back_off(n).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 64, 128]);
    }
}
