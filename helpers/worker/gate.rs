//! The gate between a worker's end and `done`: the checks that the person asked for, and how a command
//! of the person is run for a task.
//!
//! Invariant: such a command runs when nothing of the worker is left, is held like it, and leaves no
//! process behind. A supervisor that died meanwhile is replaced, and the checks run again.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::SIGHUP;

use crate::config::Config;
use crate::domain::Backend;
use crate::fault;
use crate::files;
use crate::process::{self, Identity, Watch, Woken};
use crate::project::stands;
use crate::task::{Attempt, FailedCheck, Gate, Record, Task, View};
use crate::text::{short_duration, strip_escapes};
use crate::tools;
use crate::worker::log::Log;
use crate::worker::running::{PAUSE, SAFETY_SCAN};
use crate::worker::supervise::Starter;
use crate::worker::{run, sandbox, termination_grace, tree, with_worktree};

/// How many times the worker continues after a failed check.
const ROUNDS: u32 = 2;

/// Default of `check_limit`.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// How many lines of the output, and bytes, are passed on.
const LAST_LINES: usize = 100;
const LAST_BYTES: usize = 16 << 10;

/// Returns true if the last attempt waits for its checks.
pub(super) fn is_due(task: &Task) -> Result<bool> {
    let view = task.view()?;
    Ok(view.is_checking() && !continues(&view))
}

fn continues(view: &View) -> bool {
    view.gate.as_ref().is_some_and(|gate| gate.continues)
}

/// Runs the checks that are due. Returns true if the worker has to continue because one failed.
pub(super) fn run(task: &Task, watch: &mut Watch, starter: &mut Starter) -> Result<bool> {
    let view = task.view()?;
    if !view.is_checking() || continues(&view) {
        return Ok(view.is_checking());
    }
    if !stands(task.state_dir(), task.side().directory()) {
        bail!("the project is not as it was at the dispatch");
    }
    starter.report_started()?;
    let attempt = view.attempt.context("a task without an attempt")?;
    let before = |number| task.attempt(number).gate().ok().flatten();
    let earlier = (1..attempt.number).rev().find_map(before);
    let failures = earlier.filter(|gate| gate.continues).map_or(0, |gate| gate.failures);
    let mut gate = Gate { failures, ..Gate::default() };
    for (number, check) in (1..).zip(&view.record.checks) {
        gate.checking = Some(check.clone());
        // Another supervisor may have died with a part of the checks passed: they all run again.
        attempt.set_gate(&gate)?;
        fault::point("supervisor", "checks");
        let own = attempt.errand(&format!("check-{number}"));
        let mut run = || -> Result<_> {
            let record = with_worktree(task, &view.record)?;
            if gate.commit.is_none() {
                gate.commit = tip(&record);
            }
            run_command(task, &record, &own, &record.directory, check, watch)
        };
        let (end, may_continue) = match run() {
            Ok(None) => return Ok(false),
            Ok(Some(None)) => continue,
            Ok(Some(Some(end))) => (end, true),
            Err(error) => (format!("could not run: {error:#}").replace('\n', ": "), false),
        };
        let (command, output) = (check.clone(), last_lines(&own));
        gate.failed = Some(FailedCheck { command, end, output });
        gate.failures += 1;
        gate.continues = may_continue && gate.failures <= ROUNDS;
        break;
    }
    gate.checking = None;
    gate.moved = tip(&view.record).filter(|tip| Some(tip) != gate.commit.as_ref());
    attempt.set_gate(&gate)?;
    fault::point("supervisor", "checked");
    Ok(gate.continues)
}

/// The commit of the task's branch, with what was committed in its worktree.
fn tip(record: &Record) -> Option<String> {
    record.worktree.as_ref()?.fetch().ok().flatten()
}

/// How a command ended, as `exit code 1`; `None` if it succeeded.
type Failed = Option<String>;

/// Runs a command in a directory until nothing of it is left. `None` if a signal to this process ended
/// it.
///
/// # Errors
/// The command cannot be run.
pub(super) fn run_command(
    task: &Task,
    record: &Record,
    own: &Attempt,
    directory: &Path,
    command: &str,
    watch: &mut Watch,
) -> Result<Option<Failed>> {
    let ended = run_held(task, record, own, directory, command, watch);
    let _ = sandbox::release_places(task);
    ended
}

fn run_held(
    task: &Task,
    record: &Record,
    own: &Attempt,
    directory: &Path,
    command: &str,
    watch: &mut Watch,
) -> Result<Option<Failed>> {
    process::adopt_descendants()?;
    let supervisor = || Identity::own().map(Some);
    if !tree(supervisor()?, record, own)?.terminate(termination_grace(), || ())?.is_empty() {
        bail!("processes of the worker are left");
    }
    files::remove_directory(own.directory())?;
    files::create_task_directory(own.directory())?;
    let config = Config::load().unwrap_or_default();
    let minutes = config.check_limit.map(|it| Duration::from_secs(it.saturating_mul(60)));
    let limit = fault::limit("DISPATCH_CHECK_MS", minutes.unwrap_or(LIMIT));
    let choice = config.resolve(Some(&record.name)).map(|choice| choice.settings);
    let argv = ["sh", "-c", command].map(OsString::from);
    let holder = sandbox::holder_of_checks(record).map_err(anyhow::Error::msg)?;
    let mut command = match holder {
        Some(holder) => {
            let settings = choice.unwrap_or_default();
            sandbox::command(task, record, None, &settings, holder, &argv)?
        }
        None => {
            let mut command = Command::new(&argv[0]);
            command.args(&argv[1..]);
            command
        }
    };
    let mut log = Log::open(own)?;
    command.current_dir(directory);
    command.stdin(Stdio::null()).stdout(log.writer()?).stderr(log.writer()?);
    run::set_variables(&mut command, task, record, own);
    let mut child = process::spawn_recorded(&mut command, |identity| own.set_identity(identity))?;
    own.identity()?.iter().for_each(|identity| {
        watch.add_process(identity);
    });
    watch.add_file(log.path());
    let begin = Instant::now();
    // Only the trimming of the log is wanted.
    let mut listener = tools::listener("", &Backend::default());
    let (mut is_late, mut is_asked) = (false, false);
    while !(is_late || is_asked) {
        let new = log.follow(&mut listener).unwrap_or_default();
        process::reap_adopted(child.id());
        if child.try_wait().context("cannot wait for a command")?.is_some() {
            break;
        }
        is_late = begin.elapsed() >= limit;
        let pause = if new > 0 { PAUSE } else { SAFETY_SCAN };
        let woken = watch.wait_for_event(pause.min(limit.saturating_sub(begin.elapsed())))?;
        is_asked = matches!(woken, Woken::Signal(signal) if signal != SIGHUP);
    }
    let mut tree = tree(supervisor()?, record, own)?;
    let status = loop {
        let left = tree.terminate(termination_grace(), || {
            process::reap_adopted(child.id());
            let _ = log.follow(&mut listener);
        })?;
        // The kernel may hold a killed process for a while.
        if let Some(status) = child.try_wait()?.filter(|_| left.is_empty()) {
            break status;
        }
    };
    let _ = log.follow(&mut listener);
    if let Some(failure) = log.printed().and_then(|printed| sandbox::failure(record, &printed)) {
        bail!("{}", failure.said);
    }
    if is_asked {
        return Ok(None);
    }
    let status = match holder {
        Some(_) => process::code_or_signal(status),
        None => (status.code(), status.signal()),
    };
    Ok(Some(match status {
        _ if is_late => Some(format!("no end within {}", short_duration(limit))),
        (Some(0), _) => None,
        (Some(code), _) => Some(format!("exit code {code}")),
        (_, signal) => Some(format!("signal {}", signal.unwrap_or_default())),
    }))
}

/// The last lines that a command printed, without escape sequences.
fn last_lines(own: &Attempt) -> String {
    let printed = strip_escapes(&own.log_end());
    let mut kept: Vec<&str> = Vec::new();
    let mut bytes = 0;
    for line in printed.lines().rev().take(LAST_LINES) {
        bytes += line.len() + 1;
        if bytes > LAST_BYTES {
            break;
        }
        kept.push(line);
    }
    kept.reverse();
    kept.join("\n")
}
