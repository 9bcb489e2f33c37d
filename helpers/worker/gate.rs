//! The gate between a worker's end and `done`: the checks that the person asked for, and how a command
//! of the person is run for a task.
//!
//! Invariant: such a command runs when nothing of the worker is left, is held like it, and leaves no
//! process behind. A supervisor that died meanwhile is replaced, and the checks run again.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::config::Config;
use crate::domain::{Access, Backend, Worktree};
use crate::fault;
use crate::files;
use crate::git::first_paths;
use crate::process::{self, Holder, Identity, Watch};
use crate::project::stands;
use crate::task::{Attempt, FailedCheck, Gate, Record, Task, View};
use crate::text::{one_line, quoted, short_duration, shorten, strip_escapes};
use crate::tools;
use crate::worker::review;
use crate::worker::running::{PAUSE, RunningProgram, SAFETY_SCAN, asks_to_end};
use crate::worker::sandbox::Runs;
use crate::worker::supervise::{STARTED, Supervisor};
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
pub(super) fn run(supervisor: &mut Supervisor) -> Result<bool> {
    let Supervisor { task, watch, starter } = supervisor;
    let view = task.view()?;
    if !view.is_checking() || continues(&view) {
        return Ok(view.is_checking());
    }
    if !stands(task.state_dir(), task.side().directory()) {
        bail!("the project is not as it was at the dispatch");
    }
    starter.report(STARTED)?;
    let attempt = view.attempt.context("a task without an attempt")?;
    let before = |number| task.attempt(number).gate().ok().flatten();
    let earlier: Vec<Gate> = (1..attempt.number).rev().filter_map(before).collect();
    let failures = earlier.first().filter(|it| it.continues).map_or(0, |it| it.failures);
    let mut gate = Gate { failures, ..Gate::default() };
    let minutes = Config::load().unwrap_or_default().check_limit;
    let limit = minutes.map_or(LIMIT, |it| Duration::from_secs(it.saturating_mul(60)));
    let limit = fault::limit("DISPATCH_CHECK_MS", limit);
    let Record { checks, review, .. } = &view.record;
    let checks = checks.iter().map(|check| (check.clone(), None));
    let review = review.iter().map(|name| (format!("review by {name}"), Some(name)));
    for (number, (command, reviewer)) in (1..).zip(checks.chain(review)) {
        gate.checking = Some(command.clone());
        // Another supervisor may have died with a part of the checks passed: they all run again.
        attempt.set_gate(&gate)?;
        match reviewer {
            None => fault::point("supervisor", "checks"),
            Some(_) => fault::point("supervisor", "review"),
        }
        let own = attempt.errand(&format!("check-{number}"));
        let mut run = || -> Result<_> {
            let record = &with_worktree(task, &view.record, &attempt, watch)?;
            if gate.commit.is_none() {
                gate.commit = tip(record);
            }
            if let Some(name) = reviewer {
                return review::run(task, record, &attempt, name, gate.commit.as_deref(), watch);
            }
            let holder = sandbox::holder_of_commands(record).map_err(anyhow::Error::msg)?;
            let errand = Errand { task, record, holder, own: own.clone(), limit };
            errand.run_shell(watch, Runs::Check, &command)
        };
        let verdict = run().unwrap_or_else(|error| Verdict::None(one_line(&format!("{error:#}"))));
        let (end, output, may_continue) = match (verdict, reviewer) {
            (Verdict::Stopped, _) => return Ok(false),
            (Verdict::Fail { end, output }, _) => (end, output, true),
            (Verdict::None(why), None) => {
                (format!("could not run: {why}"), last_lines(&own.log_end()), false)
            }
            (Verdict::None(why), Some(name)) => {
                gate.review = Some(format!("not reviewed: {name}: {why}"));
                continue;
            }
            (Verdict::Pass, name) => {
                gate.review = name.map(|name| format!("reviewed by {name}"));
                continue;
            }
        };
        gate.failed = Some(FailedCheck { command, end, output, is_review: reviewer.is_some() });
        gate.failures += 1;
        gate.continues = may_continue && gate.failures <= ROUNDS;
        break;
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
    let directory = worktree.path.clone();
    let record = &Record { access, directory, ..record.clone() };
    let config = Config::load()?;
    let command = config.set_up_of(worktree)?;
    let holder = match sandbox::holder_of_commands(record) {
        Ok(holder) => holder,
        // The worktree begins at a commit of the person, whose own files alone decide what runs then.
        Err(_) if worktree.trunk() == worktree.base => None,
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
        Ok(match errand.run_shell(watch, Runs::SetUp, command)? {
            Verdict::Pass => None,
            Verdict::Fail { end, output } => {
                let last = output.lines().rfind(|line| !line.trim().is_empty());
                Some(last.map_or(end.clone(), |last| format!("{end}: {}", quoted(last))))
            }
            Verdict::None(_) | Verdict::Stopped => bail!("it was stopped"),
        })
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

/// The result of a check or a review.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing needs action.
    Pass,
    /// How it failed, as `exit code 1`, and its last output or its findings.
    Fail { end: String, output: String },
    /// There is no verdict, for this reason.
    None(String),
    /// A signal to this process ended it.
    Stopped,
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

impl Drop for Errand<'_> {
    fn drop(&mut self) {
        let _ = sandbox::release_places(self.task);
    }
}

impl Errand<'_> {
    fn run_shell(&self, watch: &mut Watch, runs: Runs, command: &str) -> Result<Verdict> {
        self.run(watch, || {
            let config = Config::load().unwrap_or_default();
            let choice = config.resolve(Some(&self.record.name)).map(|choice| choice.settings);
            let settings = choice.unwrap_or_default();
            let argv = ["sh", "-c", command].map(OsString::from);
            let Self { task, record, holder, own, .. } = self;
            let mut command =
                sandbox::command(task, record, runs, None, &settings, *holder, &argv)?;
            run::set_variables(&mut command, task, record, own);
            command.current_dir(&record.directory).stdin(Stdio::null());
            Ok(command)
        })
    }

    /// Runs the command that `build` makes until nothing of it is left.
    ///
    /// # Errors
    /// The command cannot be run.
    pub(super) fn run(
        &self,
        watch: &mut Watch,
        build: impl FnOnce() -> Result<Command>,
    ) -> Result<Verdict> {
        let Self { record, holder, own, limit, .. } = self;
        process::adopt_descendants()?;
        let mut before = tree(Some(Identity::own()?), record, own)?;
        if !before.terminate(termination_grace(), || ())?.is_empty() {
            bail!("processes of the worker are left");
        }
        files::remove_directory(own.directory())?;
        files::create_task_directory(own.directory())?;
        // Only the trimming of the log is wanted.
        let listener = tools::listener("", &Backend::default());
        let mut program = RunningProgram::spawn(build()?, record, own, listener)?;
        program.watch(watch)?;
        let begin = Instant::now();
        let (mut is_late, mut is_asked) = (false, false);
        while !(is_late || is_asked) {
            let new = program.read_output();
            if program.try_wait()?.is_some() {
                break;
            }
            is_late = begin.elapsed() >= *limit;
            let pause = if new > 0 { PAUSE } else { SAFETY_SCAN };
            let pause = pause.min(limit.saturating_sub(begin.elapsed()));
            is_asked = asks_to_end(&watch.wait_for_event(pause)?);
        }
        let status = loop {
            if let (status, true) = program.terminate()? {
                break status;
            }
        };
        program.read_output();
        if let Some(failure) = program.sandbox_failure(*holder, status) {
            bail!("{}", failure.said);
        }
        // Slurm ends the command of a job at the same moment as this process.
        if is_asked || asks_to_end(&watch.wait_for_event(Duration::ZERO)?) {
            return Ok(Verdict::Stopped);
        }
        let end = match process::code_or_signal(*holder, status) {
            _ if is_late => format!("no end within {}", short_duration(*limit)),
            (Some(0), _) => return Ok(Verdict::Pass),
            (Some(code), _) => format!("exit code {code}"),
            (_, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        Ok(Verdict::Fail { end, output: last_lines(&own.log_end()) })
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
