//! The gate between a worker's end and `done`: the checks that the person asked for, and how a command
//! of the person is run for a task.
//!
//! Invariant: such a command runs when nothing of the worker is left, is held like it, and leaves no
//! process behind. A supervisor that died meanwhile is replaced, and the checks run again.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::SIGHUP;

use crate::config::Config;
use crate::domain::{Access, Backend, Worktree};
use crate::fault;
use crate::files;
use crate::git::first_paths;
use crate::process::{self, Holder, Identity, Watch, Woken};
use crate::project::stands;
use crate::task::{Attempt, FailedCheck, Gate, Record, Task, View};
use crate::text::{one_line, quoted, short_duration, shorten, strip_escapes};
use crate::tools;
use crate::worker::review::{self, Verdict};
use crate::worker::running::Log;
use crate::worker::running::Starter;
use crate::worker::running::{PAUSE, SAFETY_SCAN};
use crate::worker::sandbox::Runs;
use crate::worker::{run, sandbox, termination_grace, tree, with_worktree};

/// How many times the worker continues after a failed check.
const ROUNDS: u32 = 2;

/// Default of `check_limit`.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// How long the set-up of a worktree may take.
const SETUP_LIMIT: Duration = Duration::from_secs(60 * 60);

/// How many lines of the output, and bytes, are passed on.
const LAST_LINES: usize = 100;
const LAST_BYTES: usize = 16 << 10;
const LINE_BYTES: usize = 1 << 10;

/// Returns true if the last attempt waits for its checks.
pub(super) fn is_due(task: &Task) -> Result<bool> {
    let view = task.view()?;
    Ok(view.is_checking() && !continues(&view))
}

fn continues(view: &View) -> bool {
    view.gate.as_ref().is_some_and(|gate| gate.continues)
}

/// Runs the checks that are due. Returns true if the worker has to continue: one failed, or a note came
/// too late.
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
    let earlier: Vec<Gate> = (1..attempt.number).rev().filter_map(before).collect();
    let failures = earlier.first().filter(|it| it.continues).map_or(0, |it| it.failures);
    let mut gate = Gate { failures, ..Gate::default() };
    let minutes = Config::load().unwrap_or_default().check_limit;
    let limit = minutes.map_or(LIMIT, |it| Duration::from_secs(it.saturating_mul(60)));
    let limit = fault::limit("DISPATCH_CHECK_MS", limit);
    for (number, check) in (1..).zip(&view.record.checks) {
        gate.checking = Some(check.clone());
        // Another supervisor may have died with a part of the checks passed: they all run again.
        attempt.set_gate(&gate)?;
        fault::point("supervisor", "checks");
        let own = attempt.errand(&format!("check-{number}"));
        let mut run = || -> Result<_> {
            let record = &with_worktree(task, &view.record, &attempt, watch)?;
            if gate.commit.is_none() {
                gate.commit = tip(record);
            }
            let holder = sandbox::holder_of_commands(record).map_err(anyhow::Error::msg)?;
            let errand = Errand { task, record, holder, own: own.clone(), limit };
            errand.run_shell(watch, Runs::Check, &record.directory, check)
        };
        let (end, may_continue) = match run() {
            Ok(None) => return Ok(false),
            Ok(Some(None)) => continue,
            Ok(Some(Some(end))) => (end, true),
            Err(error) => (one_line(&format!("could not run: {error:#}")), false),
        };
        let (command, output) = (check.clone(), last_lines(&own.log_end()));
        gate.failed = Some(FailedCheck { command, end, output, is_review: false });
        gate.failures += 1;
        gate.continues = may_continue && gate.failures <= ROUNDS;
        break;
    }
    if let Some(name) = view.record.review.as_ref().filter(|_| gate.failed.is_none()) {
        let reviewed = format!("review by {name}");
        gate.checking = Some(reviewed.clone());
        attempt.set_gate(&gate)?;
        fault::point("supervisor", "review");
        let mut review = || {
            let record = &with_worktree(task, &view.record, &attempt, watch)?;
            if gate.commit.is_none() {
                gate.commit = tip(record);
            }
            review::run(task, record, &attempt, name, gate.commit.as_deref(), watch)
        };
        match review().unwrap_or_else(|error| Some(Verdict::None(format!("{error:#}")))) {
            None => return Ok(false),
            Some(Verdict::Pass) => gate.review = Some(format!("reviewed by {name}")),
            Some(Verdict::None(why)) => {
                gate.review = Some(format!("not reviewed: {name}: {}", one_line(&why)));
            }
            Some(Verdict::Findings(output)) => {
                let (command, end) = (reviewed, "findings".into());
                gate.failed = Some(FailedCheck { command, end, output, is_review: true });
                gate.failures += 1;
                gate.continues = gate.failures <= ROUNDS;
            }
        }
    }
    gate.checking = None;
    let tip = tip(&view.record);
    if let (Some(worktree), Some(tip)) = (&view.record.worktree, &tip) {
        let mut tests = worktree.changed(&worktree.base, tip).unwrap_or_default();
        tests.retain(|path| is_of_tests(path));
        gate.tests = first_paths(&tests);
    }
    gate.moved = tip.filter(|tip| Some(tip) != gate.commit.as_ref());
    // The lock excludes a note that would be taken for a task that is done.
    let _lock = task.lock()?;
    if gate.failed.is_none() {
        gate.notes = unread_notes(task, &earlier)?;
        gate.continues = !gate.notes.is_empty();
    }
    attempt.set_gate(&gate)?;
    fault::point("supervisor", "checked");
    Ok(gate.continues)
}

/// The notes of which the worker was not told before its end. By its own files, so each note counts
/// once at most: a worker that forges them continues no more often than a person writes to it.
fn unread_notes(task: &Task, earlier: &[Gate]) -> Result<Vec<String>> {
    let told = task.side().last_told().unwrap_or_default();
    let mut names: Vec<_> = task.notes()?.into_iter().map(|(name, _)| name).collect();
    names.retain(|name| {
        name.parse().is_ok_and(|number: u32| number > told)
            && !earlier.iter().any(|gate| gate.notes.contains(name))
    });
    Ok(names)
}

/// Returns true if a path looks like a part of tests, by a word in it: `tests/a.rs`, `a_test.go`,
/// `a.spec.ts`, `ATest.java`.
fn is_of_tests(path: &str) -> bool {
    const WORDS: [&str; 7] =
        ["test", "tests", "spec", "specs", "testdata", "conftest", "snapshots"];
    let mut words = path.split(|c: char| !c.is_ascii_alphanumeric());
    words.any(|word| {
        let in_camel_case = ["Test", "Tests", "Spec"].iter().any(|end| word.ends_with(end));
        in_camel_case || WORDS.contains(&word.to_ascii_lowercase().as_str())
    })
}

/// The commit of the task's branch, with what was committed in its worktree.
fn tip(record: &Record) -> Option<String> {
    record.worktree.as_ref()?.fetch().ok().flatten()
}

/// Sets a new worktree up: runs the person's `post-checkout` hook, which may fail, and their set-up
/// command. Returns remarks for the host.
///
/// # Errors
/// The set-up failed, as `set-up: COMMAND: exit code 1: its last line`.
pub(super) fn set_up(
    task: &Task,
    record: &Record,
    worktree: &Worktree,
    (attempt, hook): (&Attempt, Option<String>),
    watch: &mut Watch,
) -> Result<Vec<String>> {
    // A worker at `read` needs its dependencies too.
    let access = if record.access == Access::Full { Access::Full } else { Access::Write };
    let record = &Record { access, ..record.clone() };
    let config = Config::load()?;
    let command = config.set_up_of(worktree)?;
    let holder = match sandbox::holder_of_commands(record) {
        Ok(holder) => holder,
        // Nothing but the person's own files decides what runs then.
        Err(_) if worktree.begins_at_persons() => None,
        Err(why) => {
            let why = format!("not run without a sandbox on what a worker wrote: {why}");
            if let Some(command) = command {
                bail!("set-up: {}: {why}", one_line(command));
            }
            let remark = hook.map(|_| format!("post-checkout hook {why}"));
            return Ok(remark.into_iter().collect());
        }
    };
    let limit = fault::limit("DISPATCH_SETUP_MS", SETUP_LIMIT);
    let mut run = |name: &str, command: &str| -> Result<Option<String>> {
        let errand = Errand { task, record, holder, own: attempt.errand(name), limit };
        let end = errand.run_shell(watch, Runs::SetUp, &worktree.path, command)?;
        let end = end.context("it was stopped")?;
        let last = last_lines(&errand.own.log_end());
        let last = last.lines().rfind(|line| !line.trim().is_empty());
        Ok(end.map(|end| last.map_or(end.clone(), |last| format!("{end}: {}", quoted(last)))))
    };
    let mut remarks = Vec::new();
    if let Some(end) = hook.and_then(|hook| run("hook", &hook).transpose()) {
        remarks.push(format!("post-checkout hook failed in the worktree: {}", end?));
    }
    if let Some(command) = command {
        let run = run("setup", command);
        let end = run.unwrap_or_else(|error| Some(one_line(&format!("{error:#}"))));
        if let Some(end) = end {
            bail!("set-up: {}: {end}", one_line(command));
        }
    }
    Ok(remarks)
}

/// A command of the person, or a reviewer, that is run for a task.
pub(super) struct Errand<'a> {
    pub(super) task: &'a Task,
    pub(super) record: &'a Record,
    /// The sandbox around the command, if there is one.
    pub(super) holder: Option<Holder>,
    /// The place of the process and the log.
    pub(super) own: Attempt,
    pub(super) limit: Duration,
}

/// How a command ended, as `exit code 1`; `None` if it succeeded.
type Failed = Option<String>;

impl Errand<'_> {
    /// The command that runs `argv` in the errand's sandbox.
    pub(super) fn command(
        &self,
        runs: Runs<'_>,
        settings: &Backend,
        argv: &[OsString],
    ) -> Result<Command> {
        let Self { task, record, own, .. } = self;
        let mut command = sandbox::command(task, record, runs, settings, self.holder, argv)?;
        run::set_variables(&mut command, task, record, own);
        Ok(command)
    }

    fn run_shell(
        &self,
        watch: &mut Watch,
        runs: Runs<'_>,
        directory: &Path,
        command: &str,
    ) -> Result<Option<Failed>> {
        self.run(watch, || {
            let config = Config::load().unwrap_or_default();
            let choice = config.resolve(Some(&self.record.name)).map(|choice| choice.settings);
            let argv = ["sh", "-c", command].map(OsString::from);
            let mut command = self.command(runs, &choice.unwrap_or_default(), &argv)?;
            command.current_dir(directory).stdin(Stdio::null());
            Ok(command)
        })
    }

    /// Runs the command that `build` makes until nothing of it is left. `None` if a signal to this
    /// process ended it.
    ///
    /// # Errors
    /// The command cannot be run.
    pub(super) fn run(
        &self,
        watch: &mut Watch,
        build: impl FnOnce() -> Result<Command>,
    ) -> Result<Option<Failed>> {
        let ended = self.run_held(watch, build);
        let _ = sandbox::release_places(self.task);
        ended
    }

    fn run_held(
        &self,
        watch: &mut Watch,
        build: impl FnOnce() -> Result<Command>,
    ) -> Result<Option<Failed>> {
        let Self { record, holder, own, limit, .. } = self;
        process::adopt_descendants()?;
        let supervisor = || Identity::own().map(Some);
        if !tree(supervisor()?, record, own)?.terminate(termination_grace(), || ())?.is_empty() {
            bail!("processes of the worker are left");
        }
        files::remove_directory(own.directory())?;
        files::create_task_directory(own.directory())?;
        let mut command = build()?;
        let mut log = Log::open(own)?;
        command.stdout(log.writer()?).stderr(log.writer()?);
        let mut child =
            process::spawn_recorded(&mut command, |identity| own.set_identity(identity))?;
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
            is_late = begin.elapsed() >= *limit;
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
        if let Some(failure) = log.printed().and_then(|printed| sandbox::failure(*holder, &printed))
        {
            bail!("{}", failure.said);
        }
        // Slurm ends the command of a job at the same moment as this process.
        let woken = watch.wait_for_event(Duration::ZERO)?;
        if is_asked || matches!(woken, Woken::Signal(signal) if signal != SIGHUP) {
            return Ok(None);
        }
        Ok(Some(match process::code_or_signal(*holder, status) {
            _ if is_late => Some(format!("no end within {}", short_duration(*limit))),
            (Some(0), _) => None,
            (Some(code), _) => Some(format!("exit code {code}")),
            (_, signal) => Some(format!("signal {}", signal.unwrap_or_default())),
        }))
    }
}

/// The last lines of what a command printed, without escape sequences.
pub(super) fn last_lines(printed: &str) -> String {
    let printed = strip_escapes(printed);
    let mut kept: Vec<String> = Vec::new();
    let mut bytes = 0;
    for line in printed.lines().rev().take(LAST_LINES).map(|line| shorten(line, LINE_BYTES)) {
        bytes += line.len() + 1;
        if bytes > LAST_BYTES {
            break;
        }
        kept.push(line);
    }
    kept.reverse();
    kept.join("\n")
}
