//! An attempt of a task: starts the worker, watches it until it ends, and terminates whatever is
//! left of it.

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::config::Config;
use crate::domain::{Access, Backend, FailureKind, PromptVia, Route, Usage, Worktree};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::selects_for_git;
use crate::ids::{now, random_uuid};
use crate::plan::Plan;
use crate::process::{
    self, ANSWERS, ATTEMPT, Identity, Life, PATIENCE, TASK_DIR, Watch, Woken, is_host_variable,
    worker_helper,
};
use crate::task::{Attempt, ExitRecord, Record, SessionRecord, StopReason, Task};
use crate::tools::detect::forget_login;
use crate::tools::events::{Listener, Observed};
use crate::tools::{Invocation, Job, Session, invocation, listener};
use crate::worker::prompt;
use crate::worker::running::{RunningProgram, SAFETY_SCAN};
use crate::worker::sandbox::{self, Runs};
use crate::worker::supervise::{STARTED, Supervisor};
use crate::worker::{fetch, is_stopped, mark, termination_grace, tree, with_worktree};

/// How many bytes at the end of each log are parsed for a worker whose end nobody saw.
const UNSEEN_LOG_BYTES: u64 = 16 << 20;

/// How many times a sandbox is started that fails before its program runs.
const SANDBOX_STARTS: u32 = 3;

/// Runs the task's next attempt until it ends. The caller records the returned end.
pub(super) fn run(supervisor: &mut Supervisor) -> Result<(Attempt, ExitRecord)> {
    let Supervisor { task, watch, starter } = supervisor;
    let task = &*task;
    let record = task.record()?.context("the task has no record")?;
    process::adopt_descendants()?;
    let session = task.last_session(&record)?;
    let attempt = prepare(task, &record, session.is_some(), None)?;
    fault::point("supervisor", "prepared");
    // Processes of a worker that outlived its supervisor, and what it kept running.
    let last = task.attempt(attempt.number - 1);
    if last.number > 0 && (record.keep || last.exit()?.is_none_or(|exit| exit.is_unseen())) {
        tree(None, &record, &last)?.terminate(termination_grace(), || ())?;
    }
    // A check or a limit may let a task continue; only a person grants it another budget.
    let stop_reason = over_budget(task, &record, &attempt, &Usage::default(), Duration::ZERO)?;
    if stop_reason.is_some() {
        starter.report(STARTED)?;
        return Ok((attempt, ExitRecord { stop_reason, at: now(), ..ExitRecord::default() }));
    }
    let begin = Instant::now();
    let may_start = record.worktree.as_ref().map_or(Ok(()), |worktree| {
        worktree.check_creatable()?;
        // Hooks may take long, and the starter waits.
        starter.report(STARTED)
    });
    let launched =
        may_start.and_then(|()| launch(task, &record, &attempt, session.as_ref(), watch));
    let mut started = match launched {
        Ok(started) => started,
        Err(error) => {
            let not_started = Some(format!("{error:#}"));
            let exit = ExitRecord { not_started, at: now(), ..ExitRecord::default() };
            task.set_exit(&attempt, &exit)?;
            let _ = sandbox::release_places(task);
            return Err(error);
        }
    };
    fault::point("supervisor", "started");
    starter.report(STARTED)?;
    let (mut status, mut stop_reason) = started.wait_for_end(task, watch)?;
    // A file or socket that the sandbox covers may vanish before it is mounted; a new look helps.
    for _ in 1..SANDBOX_STARTS {
        if started.sandbox_failure(record.holder, status).is_none() || is_stopped(task) {
            break;
        }
        let Ok(again) = launch(task, &record, &attempt, session.as_ref(), watch) else { break };
        started = again;
        (status, stop_reason) = started.wait_for_end(task, watch)?;
    }
    if let Some(again) = record_without_refused(task, &record, &started.listener, status)? {
        if session.is_some() {
            // A new session has not read the first prompt.
            task.set_prompt(&attempt, &prompt::restart(task, &again)?)?;
        }
        // If the second start fails, the first end counts.
        if let Ok(second) = launch(task, &again, &attempt, None, watch) {
            started = second;
            (status, stop_reason) = started.wait_for_end(task, watch)?;
        }
    }
    fault::point("supervisor", "reaped");
    fetch_work(task, &record);
    let observed = started.listener.observed().clone();
    let sandbox_failure = started.sandbox_failure(record.holder, status);
    // Unreadable usage must not leave the end unrecorded.
    let usage = usage(task, &attempt, &observed).unwrap_or_default();
    let (code, signal) = process::code_or_signal(record.holder, status);
    let _ = sandbox::release_places(task);
    let failure = observed.confirmed_failure(code != Some(0)).or(sandbox_failure);
    if failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Auth) {
        forget_login(&record.backend);
    }
    let exit = ExitRecord {
        code,
        signal,
        stop_reason,
        failure,
        denied: observed.denied,
        usage,
        at: now(),
        milliseconds: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..ExitRecord::default()
    };
    Ok((attempt, exit))
}

/// Watches over a worker whose supervisor died, until it ends. Nobody sees its exit status.
pub(super) fn watch_over(
    supervisor: &mut Supervisor,
    attempt: Attempt,
) -> Result<(Attempt, ExitRecord)> {
    let Supervisor { task, watch, starter } = supervisor;
    let record = task.record()?.context("the task has no record")?;
    starter.report(STARTED)?;
    let mut worker = RunningProgram::adopt(&record, &attempt, listener_of(&record))?;
    let (_, stop_reason) = worker.wait_for_end(task, watch)?;
    let exit = unseen_end(task, &record, &attempt);
    let stop_reason = stop_reason.or(exit.stop_reason);
    Ok((attempt, ExitRecord { stop_reason, ..exit }))
}

/// The listener to the output of the record's CLI, by the present config.
fn listener_of(record: &Record) -> Listener {
    let config = Config::load().unwrap_or_default();
    let choice = config.resolve(Some(&record.name));
    let settings = choice.map(|choice| choice.settings).unwrap_or_default();
    listener(&record.backend, &settings)
}

/// Fetches what the worker committed, and tells the host if that fails: the end counts all the same.
fn fetch_work(task: &Task, record: &Record) {
    if let Some(Err(error)) = record.worktree.as_ref().map(|it| fetch(task, it)) {
        let _ = task.side().tell(&format!("{error:#}"));
    }
}

/// Fetches the work of an attempt whose end nobody saw, and reconstructs the end from its log. A CLI
/// that reported its final result counts as finished, whatever ended the process after that.
pub(super) fn unseen_end(task: &Task, record: &Record, attempt: &Attempt) -> ExitRecord {
    fetch_work(task, record);
    let _ = sandbox::release_places(task);
    let mut listener = listener_of(record);
    for log in [attempt.old_log_path(), attempt.log_path()] {
        listener.hear(&files::tail(&log, UNSEEN_LOG_BYTES).unwrap_or_default());
    }
    listener.end();
    let observed = listener.observed().clone();
    let has_result = observed.said_last_word;
    ExitRecord {
        // Unreadable usage must not leave the end unrecorded.
        usage: usage(task, attempt, &observed).unwrap_or_default(),
        at: now(),
        milliseconds: attempt.logged_time().map_or(0, |time| time.as_millis() as u64),
        stop_reason: has_result.then_some(StopReason::LastWordUnseen),
        failure: observed.confirmed_failure(false).filter(|_| has_result),
        denied: if has_result { observed.denied } else { Vec::new() },
        ..ExitRecord::default()
    }
}

/// Creates the next attempt: writes its prompt and moves the last attempt's finish marker away.
/// `continues` says whether it continues an earlier attempt's session.
///
/// # Errors
/// [`Exit::TryAgain`] if the last attempt's worker is still running.
pub fn prepare(
    task: &Task,
    record: &Record,
    continues: bool,
    host: Option<&Identity>,
) -> Result<Attempt> {
    let last = task.last_attempt();
    if let Some(last) = &last {
        let alive = last.identity()?.is_some_and(|worker| worker.life() != Life::Dead);
        if last.exit()?.is_none() && alive && record.route == Route::Cli {
            let what = format!("the worker of '{}' is still running", task.id());
            return Refusal::new(Exit::TryAgain, what)
                .place(format!("in {}", last.directory().display()))
                .refuse(format!("dispatch-reconcile show {}", task.id()));
        }
        if let Some(summary) = task.side().ipc().finished()? {
            files::publish(&last.directory().join("summary"), summary.as_bytes())?;
            task.side().ipc().unfinish()?;
        }
        task.repair_plan(Plan::reopen)?;
    }
    // The lock excludes an answer between the prompt and the marks that it was told.
    let _lock = task.lock()?;
    let prompt = prompt::next(task, record, continues)?;
    let attempt = task.create_attempt()?;
    host.map_or(Ok(()), |host| attempt.set_identity(host))?;
    if last.is_some() {
        // The prompt holds the answers so far, so mark their questions as received.
        let ipc = task.side().ipc();
        for question in ipc.questions()?.iter().filter(|question| !question.received) {
            ipc.receive(&question.name)?;
        }
    }
    task.set_prompt(&attempt, &prompt)?;
    Ok(attempt)
}

/// Why a worker has to stop, if its task's budget is used up with what this attempt used so far.
pub(super) fn over_budget(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    usage: &Usage,
    time: Duration,
) -> Result<Option<StopReason>> {
    if record.budget.is_none() {
        return Ok(None);
    }
    let (before, earlier) = task.spent(record, attempt.number)?;
    let parts = record.budget.parts(&before.with(usage.clone()), earlier.saturating_add(time));
    let part = parts.into_iter().find(|(_, is_used_up)| *is_used_up);
    Ok(part.map(|(used, _)| StopReason::Budget { used }))
}

/// The usage of this attempt alone: some CLIs report the total of the whole session.
pub(super) fn usage(task: &Task, attempt: &Attempt, observed: &Observed) -> Result<Option<Usage>> {
    let Some(mut usage) = observed.usage.clone() else { return Ok(None) };
    let earlier = if observed.usage_of_session { task.attempts()? } else { Vec::new() };
    for before in earlier.into_iter().filter(|it| it.number < attempt.number) {
        let session = before.session()?.map(|session| session.id);
        if let Some(ExitRecord { usage: Some(before), .. }) = before.exit()?
            && session == observed.session
        {
            usage = usage.since(&before);
        }
    }
    Ok(Some(usage))
}

/// The command line of the task's worker.
pub fn call(
    task: &Task,
    record: &Record,
    settings: &Backend,
    session: Session,
) -> Result<Invocation> {
    let mut writable = vec![task.side().directory().to_path_buf()];
    if record.commits() {
        // Codex would hold the worker off the `.git` of its directory.
        writable.extend(record.worktree.iter().map(Worktree::git_dir));
    }
    let spent = task.spent(record, u32::MAX)?.0.cost_usd.unwrap_or_default();
    let kept = sandbox::kept(task, record)?;
    let job = Job {
        model: record.model.as_deref(),
        access: record.access,
        directory: &record.directory,
        task: task.side().directory(),
        writable: &writable,
        kept: &kept,
        holder: record.holder,
        usd: record.budget.usd.map(|usd| usd - spent),
        session,
        helper: &worker_helper()?,
    };
    invocation(&record.backend, settings, &job)
}

/// The record for a second start without the model or session that the CLI refused; `None` if the
/// worker did not end for that reason. The original never named a model to Claude Code, because
/// some accounts have access to only a few.
fn record_without_refused(
    task: &Task,
    record: &Record,
    listener: &Listener,
    status: ExitStatus,
) -> Result<Option<Record>> {
    // A plan that the worker made unreadable must not hide its end.
    let done = task.plan().map_or(0, |plan| plan.done());
    let begun = done > task.plan_at_start()?.map_or(0, |plan| plan.done());
    let failure = listener.observed().failure.as_ref().map(|failure| failure.kind);
    Ok(match (failure.filter(|_| !begun && !status.success()), &record.model) {
        (Some(FailureKind::Session), _) => Some(record.clone()),
        (Some(FailureKind::Model), Some(model)) if record.backend == "claude" => {
            let line = format!("claude refused the model {model}: it works with its own");
            task.side().tell(&line)?;
            Some(Record { model: None, ..record.clone() })
        }
        _ => None,
    })
}

fn launch(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    session: Option<&SessionRecord>,
    watch: &mut Watch,
) -> Result<RunningProgram> {
    let record = &with_worktree(task, record, attempt, watch)?;
    if !record.directory.is_dir() {
        return Refusal::new(Exit::Data, "the directory of the task is gone")
            .place(record.directory.display().to_string())
            .refuse("put it back there, or dispatch the plan again as a new task");
    }
    sandbox::refuse_replaced(record)?;
    let config = Config::load()?;
    let settings = config.resolve(Some(&record.name))?.settings;
    let fresh = random_uuid()?;
    let session = session.map_or(Session::New(&fresh), |session| Session::Resume(&session.id));
    let mut command = prompted(task, record, &settings, attempt, session, Runs::Worker)?;
    if let Some(minutes) = config.patience {
        command.env(PATIENCE, minutes.to_string());
    }
    if record.access == Access::Full {
        command.env(ANSWERS, task.answers_dir());
    }
    RunningProgram::spawn(command, record, attempt, listener(&record.backend, &settings))
}

/// The command of a worker or a reviewer, which gets the prompt of its attempt.
pub(super) fn prompted(
    task: &Task,
    record: &Record,
    settings: &Backend,
    attempt: &Attempt,
    session: Session,
    runs: Runs,
) -> Result<Command> {
    let path = attempt.prompt_path();
    let text = files::read_lossy(&path)?.unwrap_or_default();
    let call = call(task, record, settings, session)?;
    let argv = call.with_prompt(&text, &path);
    let mut command =
        sandbox::command(task, record, runs, Some(&path), settings, record.holder, &argv)?;
    set_variables(&mut command, task, record, attempt);
    command.current_dir(&record.directory).stdin(match call.prompt {
        PromptVia::Stdin => input(attempt, &text)?.into(),
        PromptVia::Arg | PromptVia::File => Stdio::null(),
    });
    Ok(command)
}

/// Sets the variables of the processes of an attempt, which lead a group of their own.
pub(super) fn set_variables(
    command: &mut Command,
    task: &Task,
    record: &Record,
    attempt: &Attempt,
) {
    let is_foreign = |name: &str| is_host_variable(name) || selects_for_git(name);
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.env(TASK_DIR, task.side().directory()).env(ATTEMPT, mark(record, attempt));
    process::lead_own_group(command);
}

/// A file with the prompt that has no name, so that a worker which opens its standard input again can
/// change nothing that is read later.
fn input(attempt: &Attempt, prompt: &str) -> Result<File> {
    let mut file = tempfile::tempfile_in(attempt.directory())?;
    file.write_all(prompt.as_bytes()).context("cannot write the prompt")?;
    file.rewind()?;
    Ok(file)
}

/// Records the end of an attempt. On a full disk, deletes the prompt file to make room, then retries
/// until there is space or a signal comes.
pub(super) fn record_end(
    task: &Task,
    attempt: &Attempt,
    exit: &ExitRecord,
    watch: &mut Watch,
) -> Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut exit = exit.clone();
    // Many CLIs report what they used only at their end.
    if exit.failure.is_none()
        && exit.denied.is_empty()
        && !task.plan().is_ok_and(|it| it.complete())
        && let Some(record) = task.record()?
    {
        let (usage, time) = (exit.usage.clone(), Duration::from_millis(exit.milliseconds));
        let over = over_budget(task, &record, attempt, &usage.unwrap_or_default(), time);
        exit.stop_reason = over.ok().flatten().or(exit.stop_reason);
    }
    let exit = &exit;
    let full = |error: &anyhow::Error| {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(StorageFull | QuotaExceeded))
    };
    loop {
        match task.set_exit(attempt, exit) {
            Err(error) if full(&error) => {}
            done => return done,
        }
        if attempt.prompt_path().exists() {
            files::remove(&attempt.prompt_path())?;
            continue;
        }
        if let Woken::Signal(_) = watch.wait_for_event(SAFETY_SCAN)? {
            return task.set_exit(attempt, exit);
        }
    }
}
