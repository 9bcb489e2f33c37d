//! The supervisor: a small process, re-parented to init, that waits in the queue, runs the attempts of
//! a task one after the other and records how each ended. It survives the host.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::config::Config;
use crate::dirs;
use crate::domain::{Route, TaskId};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::Lock;
use crate::git;
use crate::ids::{now, unix_seconds};
use crate::news::notify;
use crate::process::{self, Life, TASK_DIR, Watch};
use crate::project::Project;
use crate::task::{Attempt, ExitRecord, Reason, State, StopReason, Task, View, Wait};
use crate::text::sort;
use crate::worker::slurm::{self, OwnJob};
use crate::worker::{self, gate, queue, run};

/// How old a task must be before a missing supervisor counts as lost.
const SETTLED: Duration = Duration::from_secs(3);

/// How long a waiting supervisor may take to start the worker once nothing is in the way.
const CONTINUE_LIMIT: Duration = Duration::from_secs(10);

/// How long a finishing supervisor may hold the run lock.
const RUN_LOCK_LIMIT: Duration = Duration::from_secs(2);

/// How long a job waits for the supervisor that submitted it.
const JOB_LOCK_LIMIT: Duration = Duration::from_secs(60);

/// Line from the supervisor to its starter: the worker is running. On failure the first line is the
/// exit code and the error follows.
pub(crate) const STARTED: &str = "started";

/// Line from the supervisor to its starter: the worker has to wait.
pub(crate) const WAITS: &str = "waits";

/// A condition under which a supervisor that has the run lock does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Only {
    /// An answer waits for a worker.
    Answered,
    /// The task waits, or its worker lives, or its checks are due.
    Open,
}

/// Starts a supervisor for the task's next attempt, or for a reason that another helper may have met
/// already; returns when the worker is running (`None`), or what the task waits for.
///
/// # Errors
/// The supervisor's own error if it could not start the worker.
pub fn start(task: &Task, only_if: Option<Only>) -> Result<Option<Wait>> {
    if let Some(start) = slurm::command(task)? {
        return slurm::submit(task, &start, only_if, "");
    }
    // An earlier job, of a place that had a 'start', says nothing of this supervisor.
    task.forget_job()?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = task.helper("--supervise")?;
    let condition = only_if.and_then(|only_if| only_if.to_possible_value());
    command.args(condition.iter().flat_map(|it| ["--only-if", it.get_name()])).stdout(writer);
    process::detach(&mut command)?;
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(reader).lines() {
        said.push(line.context("cannot hear the supervisor")?);
    }
    match said.as_slice() {
        [only] if only == STARTED => Ok(None),
        [only] if only == WAITS => task.wait(),
        [] => {
            let what = format!("the supervisor of '{}' ended without a message", task.id());
            let again = format!("try again: dispatch-spawn {} --resume", task.id());
            Refusal::new(Exit::Failed, what).refuse(again)
        }
        [code, lines @ ..] => {
            let exit = Exit::from_code(code.parse().unwrap_or_default());
            Err(Refusal::new(exit, lines.join("\n")).into())
        }
    }
}

/// The process that started this supervisor and reads its standard output.
#[derive(Default)]
pub(super) struct Starter {
    was_told: bool,
}

impl Starter {
    /// Reports that the worker is running or waiting, unless it was told before, and closes the pipe.
    pub(super) fn report(&mut self, word: &str) -> Result<()> {
        if std::mem::replace(&mut self.was_told, true) {
            return Ok(());
        }
        let mut starter = std::io::stdout().as_fd().try_clone_to_owned().map(File::from)?;
        let null =
            File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
        nix::unistd::dup2_stdout(null).context("cannot close the pipe")?;
        // The starter may be gone; the worker runs anyway.
        let _ = writeln!(starter, "{word}");
        Ok(())
    }
}

/// A supervisor, while it holds its task's run lock.
pub(super) struct Supervisor {
    pub(super) task: Task,
    pub(super) watch: Watch,
    pub(super) starter: Starter,
}

/// Runs as the supervisor of the task with this person's side until the task needs none. Standard output
/// is a pipe to the starter, which reads it until the worker is running or waiting. `job`: the token of
/// the job that this process is.
pub fn run(state_dir: &Path, only_if: Option<Only>, job: Option<&str>) -> Result<()> {
    // A worker can write a record elsewhere.
    let real = state_dir.canonicalize().context("there is no such task")?;
    if real.ancestors().nth(2) != dirs::state_root()?.canonicalize().ok().as_deref() {
        return Refusal::new(Exit::Usage, "that is not a task's directory of state")
            .place(state_dir.display().to_string())
            .refuse("resume a task by its name: dispatch-spawn TASK --resume");
    }
    let task = Task::at_state(state_dir)?;
    let mut starter = Starter::default();
    let job = match job.map(|token| OwnJob::claim(&task, token)).transpose()? {
        Some(None) => return Ok(()),
        job => job.flatten(),
    };
    let limit = if job.is_some() { JOB_LOCK_LIMIT } else { RUN_LOCK_LIMIT };
    let Some(_run_lock) = take_run_lock(&task, only_if, limit)? else {
        return starter.report(if task.wait()?.is_some() { WAITS } else { STARTED });
    };
    fault::point("supervisor", "locked");
    let watch = Watch::new(&[SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let (mut living, mut own) = (living(&task)?, Supervisor { task: task.clone(), watch, starter });
    loop {
        // A supervisor that died may have left the checks to this one.
        if living.is_none() && gate::is_due(&task)? {
            if let Some(attempt) = task.last_attempt() {
                record_unknown(&task, &attempt)?;
            }
            let _slot = queue::Slot::of_running();
            if !gate::run(&mut own)? {
                break settle(&task);
            }
        }
        let (slot, ended) = match living.take() {
            Some(attempt) => {
                let slot = queue::Slot::of_running();
                (slot, run::watch_over(&mut own, attempt))
            }
            None => {
                let Some(slot) = queue::wait_for_slot(&mut own)? else { break };
                (slot, start_at_predecessors_end(&task).and_then(|()| run::run(&mut own)))
            }
        };
        let (attempt, mut exit) = ended.inspect_err(|error| record_not_started(&task, error))?;
        if job.as_ref().is_some_and(|it| it.was_ended(&task, &exit)) {
            break;
        }
        let wait = queue::park(&task, &exit, slot.parks.saturating_add(1)).unwrap_or_default();
        let wait = wait.or_else(|| job.as_ref()?.next(&task, &mut exit));
        // Write the wait before the exit record, so no reader sees an end without it; if that fails,
        // treat the attempt as final.
        let wait = wait.filter(|wait| task.set_wait(Some(wait)).is_ok());
        run::record_end(&task, &attempt, &exit, &mut own.watch)?;
        fault::point("supervisor", "ended");
        if job.as_ref().is_some_and(OwnJob::is_announced) {
            break settle(&task);
        }
        if gate::run(&mut own)? {
            continue;
        }
        settle(&task);
        // From here on, `--answer` sees the recorded end and starts the next supervisor itself.
        if wait.is_none() && !task.view()?.has_late_answer() {
            break;
        }
    }
    job.map_or(Ok(()), |job| job.submit_next(&task))
}

/// Marks a task that is done, and tells the person of an end or a limit. If the mark fails, the next
/// repair makes it.
fn settle(task: &Task) {
    let _ = task.view().and_then(|view| task.settle(&view));
    notify::announce(task);
}

/// The last attempt, if its worker lives and only its supervisor died.
fn living(task: &Task) -> Result<Option<Attempt>> {
    let (Some(attempt), Some(record)) = (task.last_attempt(), task.record()?) else {
        return Ok(None);
    };
    let is_open = matches!(attempt.exit(), Ok(None));
    let lives = is_open && worker::tree(None, &record, &attempt)?.has_own_leader();
    Ok(lives.then_some(attempt))
}

/// Takes the run lock, which a finishing supervisor may still hold for a moment; `None` if the reason to
/// take it is over, for example because another supervisor has passed an answer on.
fn take_run_lock(task: &Task, only_if: Option<Only>, limit: Duration) -> Result<Option<Lock>> {
    let path = task.run_lock_path();
    let begin = Instant::now();
    loop {
        let lock = Lock::try_take(&path)?;
        if let Some(attempt) = task.last_attempt().filter(|_| only_if.is_some() && lock.is_some()) {
            // Record the old end first: with this lock held, the task would look alive.
            let worker = attempt.identity()?;
            if worker.is_none_or(|worker| worker.life() == Life::Dead) {
                record_unknown(task, &attempt)?;
            }
        }
        let may_judge = lock.is_some() || only_if == Some(Only::Answered);
        if let Some(only_if) = only_if.filter(|_| may_judge)
            && !is_due(task, only_if)?
        {
            return Ok(None);
        }
        if lock.is_some() {
            return Ok(lock);
        }
        if begin.elapsed() > limit {
            return Lock::take(&path, Duration::ZERO).map(Some);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns true if a supervisor is still needed for this reason.
pub(super) fn is_due(task: &Task, only_if: Only) -> Result<bool> {
    let view = task.view()?;
    Ok(match only_if {
        Only::Answered => view.has_late_answer(),
        Only::Open => view.state.is_waiting() || view.is_checking() || living(task)?.is_some(),
    })
}

/// Before the first attempt, lets the task's worktree begin where its first predecessor's ended.
pub fn start_at_predecessors_end(task: &Task) -> Result<()> {
    let record = task.record()?.context("the task has no record")?;
    let before = record.after.iter().find(|before| before.branch.is_some());
    let (Some(mut worktree), Some(before)) = (record.worktree, before) else { return Ok(()) };
    if task.last_attempt().is_some() {
        return Ok(());
    }
    let branch = before.branch.as_deref().unwrap_or_default();
    let predecessor = task.sibling(before.task.parse()?).record().ok().flatten();
    let predecessor = predecessor.filter(|it| it.nonce == before.nonce).and_then(|it| it.worktree);
    let end = match &predecessor {
        Some(predecessor) => predecessor.fetch()?,
        None => git::commit_id(&worktree.repository, &format!("refs/heads/{branch}"))?,
    };
    let Some(end) = end else {
        // The branch was merged and deleted, for example, while this task waited.
        let base = worktree.base;
        let line = format!("the branch {branch} is gone: this begins at {base}");
        return task.side().tell(&line).map(drop);
    };
    let trunk = predecessor.map_or(worktree.base.clone(), |it| it.trunk().to_owned());
    worktree.begin_at(&end, &trunk)?;
    task.change_record(|record| record.worktree = Some(worktree))
}

/// Records that a waiting task cannot start, because its starter may be gone and nobody would see the
/// error. Errors of a running attempt are in its exit record.
pub(super) fn record_not_started(task: &Task, error: &anyhow::Error) {
    if task.wait().is_ok_and(|wait| wait.is_some()) {
        let not_started = Some(format!("{error:#}"));
        let exit = ExitRecord { not_started, at: now(), ..ExitRecord::default() };
        // If even this cannot be written, the task stays waiting.
        let _ = task.create_attempt().and_then(|attempt| task.set_exit(&attempt, &exit));
    }
    notify::announce(task);
}

/// Starts a waiting task now because a person said so: drops its predecessors and its rate limit. The
/// place in the queue stays. `before`: the last attempt that had ended when the task was seen waiting; a
/// worker may have started since.
pub fn take_over(task: &Task, before: u32) -> Result<Option<Wait>> {
    unpark(task)?;
    task.change_record(|record| record.after.clear())?;
    let mut watch = Watch::new(&[])?;
    let begin = Instant::now();
    loop {
        watch.add_directory(task.state_dir());
        // Look at the lock before the state: a lock that was free then belongs to no supervisor.
        let held = task.is_supervised()?;
        let view = task.view()?;
        match (view.state, view.reason) {
            (State::Queued, Reason::Waits(wait @ Wait::Queued { .. })) if held => {
                return Ok(Some(wait));
            }
            (state, _) if state.is_waiting() && !held => return start(task, None),
            (State::Failed, Reason::NotStarted(why)) => {
                return Err(Refusal::new(Exit::Failed, why).into());
            }
            // Somebody stopped it meanwhile.
            (State::Stopped, _) => return Ok(None),
            _ => {}
        }
        // The worker may end at the same limit before anybody saw it running.
        let new = view.attempt.filter(|attempt| attempt.number > before);
        if new.is_some_and(|it| view.exit.is_some() || matches!(it.identity(), Ok(Some(_)))) {
            return Ok(None);
        }
        if begin.elapsed() > CONTINUE_LIMIT {
            let what = format!("the supervisor of '{}' does not react", task.id());
            let next = format!("look again: dispatch-reconcile show {}", task.id());
            return Refusal::new(Exit::TryAgain, what).refuse(next);
        }
        watch.wait_for_event(Duration::from_millis(50))?;
    }
}

/// Ends a task's wait for a rate limit, if it is parked, and resets the count of parks.
pub fn unpark(task: &Task) -> Result<()> {
    let Some(Wait::Parked { stated, said, .. }) = task.wait()? else { return Ok(()) };
    // Keep the wait: without one, the last attempt's end would be the task's end.
    let until = unix_seconds();
    task.set_wait(Some(&Wait::Parked { until, stated, times: 0, said, fallback: None }))
}

/// Records the end of an attempt whose supervisor died first. Returns whether it recorded one. Until
/// then, only the absence of its processes shows the end, and pids are reused.
pub fn record_unknown_end(view: &View) -> Result<bool> {
    // The place itself says how a task there ended.
    let may_not = view.record.place.is_some() || std::env::var_os(TASK_DIR).is_some();
    let over = view.state == State::Lost
        // An agent that is done leaves no exit record.
        || view.record.route == Route::Cli && !view.state.is_waiting();
    let unseen = view.exit.is_none() && view.processes.is_empty() && over;
    let Some(attempt) = view.attempt.as_ref().filter(|_| unseen && !may_not) else {
        return Ok(false);
    };
    // Look first, because opening the lock for writing wakes all who watch the task.
    if view.task.is_supervised()? {
        return Ok(false);
    }
    // The lock of an ended job may never be free here.
    let is_job = view.task.job()?.is_some();
    let run_lock = Lock::try_take_unsigned(&view.task.run_lock_path());
    let run_lock = run_lock.or_else(|error| if is_job { Ok(None) } else { Err(error) })?;
    if run_lock.is_none() && !is_job {
        return Ok(false);
    }
    // The attempt of an agent has no process before its host is recorded, and no supervisor.
    let now = view.task.view()?;
    let begun = now.attempt.as_ref().map(|attempt| attempt.number) != Some(attempt.number);
    // The lock is held here, so it says nothing of a process whose life is unknown.
    let runs = now.processes.iter().any(|process| process.life() == Life::Alive);
    if view.is_being_started() || now.is_being_started() || begun || runs {
        return Ok(false);
    }
    let is_recorded = record_unknown(&view.task, attempt)?;
    if is_recorded {
        notify::announce(&view.task);
    }
    Ok(is_recorded)
}

fn record_unknown(task: &Task, attempt: &Attempt) -> Result<bool> {
    if attempt.exit()?.is_some() {
        return Ok(false);
    }
    let Some(record) = task.record()? else { return Ok(false) };
    let mut exit = run::unseen_end(task, &record, attempt);
    if let Some(job) = task.job()?.filter(|it| it.is_over) {
        exit.stop_reason.get_or_insert(StopReason::Job { said: job.said });
    }
    if task.wait()?.is_none()
        && let Some(wait) = queue::park(task, &exit, 1)?
    {
        task.set_wait(Some(&wait))?;
    }
    task.set_exit(attempt, &exit).map(|()| true)
}

/// Resumes a task whose answer came after its worker's end, in case the helper that posted it was
/// killed. Returns whether a supervisor was started.
pub fn resume_if_answered(view: &View) -> bool {
    let of_a_worker = std::env::var_os(TASK_DIR).is_some();
    let late = view.has_late_answer() && view.record.route == Route::Cli && !of_a_worker;
    // An error is recorded with the task, or comes back at the next look.
    late && start(&view.task, Some(Only::Answered)).is_ok()
}

/// Starts a supervisor for each task that lost its own, while it waited or its worker runs (a crash, a
/// restart), in the order of dispatch. Returns the tasks whose supervisor was started.
pub fn restart_abandoned(project: &Project, views: &[View]) -> Vec<TaskId> {
    let views: Vec<_> = views.iter().filter(|view| is_abandoned(view)).collect();
    // Without a config no worker can start; the tasks stay waiting until there is one.
    let of_a_worker = std::env::var_os(TASK_DIR).is_some();
    if views.is_empty() || of_a_worker || Config::load().is_err() {
        return Vec::new();
    }
    // A single helper at a time: the loser of a race for a run lock would wait for it.
    let lock = project.state_dir.join(".repair.lock");
    let Ok(Some(_lock)) = Lock::try_take(&lock) else { return Vec::new() };
    let modified = |path| std::fs::metadata(path).and_then(|it| it.modified()).ok();
    let dispatched =
        |view: &View| (view.record.created.clone(), modified(view.task.dispatched_plan_path()));
    let mut tasks: Vec<_> = views.iter().map(|view| (dispatched(view), &view.task)).collect();
    sort(&mut tasks, |(one, _), (other, _)| one.cmp(other));
    let still = |task: &Task| task.view().is_ok_and(|view| is_abandoned(&view));
    // An error is recorded with the task, or comes back at the next look.
    let starts = |task: &&Task| still(task) && start(task, Some(Only::Open)).is_ok();
    tasks.into_iter().map(|(_, task)| task).filter(starts).map(|it| it.id().clone()).collect()
}

/// Returns true for a task that lost its supervisor while it waited, or while its worker runs. The mirror
/// of a place holds the run locks of the tasks there.
pub fn is_abandoned(view: &View) -> bool {
    let (task, waits) = (&view.task, view.state.is_waiting());
    let is_open = view.is_open() || view.is_checking();
    let may_be = view.record.route == Route::Cli && (waits || is_open || view.is_alive());
    // The lock is looked at before the process, whose marks take far longer.
    if !may_be || task.is_supervised().unwrap_or(true) {
        return false;
    }
    match waits {
        // A record this young belongs to a spawn that is about to start the supervisor.
        true => !task.was_recorded_within(SETTLED),
        false => is_open || matches!(living(task), Ok(Some(_))),
    }
}
