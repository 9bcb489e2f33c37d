//! Slurm: a supervisor that is a job. The command of its place submits it, and it submits the next job
//! itself when Slurm announces that its time is over.
//!
//! Invariant: only the job that the file `job` names works on its task, and only Slurm's word says
//! whether it does: its processes and locks are another machine's.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::flag::register;

use crate::config::Config;
use crate::domain::HERE;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::{self, Lock};
use crate::ids::random_hex;
use crate::process::{TASK_DIR, Watch, capture};
use crate::task::{ExitRecord, FailedCheck, Gate, Job, StopReason, Task, Wait};
use crate::text::{lossy, sanitize, shell_word, shorten};
use crate::worker::supervise::{self, Only};
use crate::worker::{has_finished, is_stopped};

/// The options of every job, which those of the person follow: a later one counts.
const OPTIONS: [&str; 5] = [
    "--parsable",
    "--no-requeue",
    "--export=NONE",
    "--open-mode=append",
    // Only the supervisor gets the signal, two minutes before the end.
    "--signal=B:USR1@120",
];

/// The states of a job that has ended (squeue(1)).
const OVER: [&str; 10] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
];

/// How long a command of Slurm may take, and how much it may print.
const CALL_LIMIT: Duration = Duration::from_secs(20);
const MOST_OUTPUT: usize = 4 << 20;

/// How often Slurm is asked about jobs of which nothing else is new.
const LOOK: Duration = Duration::from_secs(10);

/// How long a stopped job may take to end: Slurm kills it half a minute after the first signal.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// The least time that a worker must have had for its task to get another job.
const LEAST_TIME: Duration = Duration::from_secs(60);

/// How long a call waits for another one that submits.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// The command that submits supervisors on this machine, for a task that came from another one.
pub fn command(task: &Task) -> Result<Option<Vec<String>>> {
    let path = task.config_path();
    let Some(text) = files::read(&path)? else { return Ok(None) };
    Ok(Config::parse(&text, &path)?.places.get(HERE).and_then(|it| it.start.clone()))
}

/// Runs a command of Slurm, from beside the `start` command.
fn call(start: &[String], name: &str, arguments: &[&str], input: Stdio) -> Result<String> {
    let mut command = Command::new(Path::new(&start[0]).with_file_name(name));
    command.args(arguments);
    // The variables of a job must not become options of the next.
    let is_of_job = |it: &str| it.starts_with("SLURM_") && it != "SLURM_CONF";
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_job(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    match capture(&mut command, input, Instant::now() + CALL_LIMIT, MOST_OUTPUT) {
        Ok(ended) if ended.status.success() => Ok(lossy(ended.stdout)),
        Ok(ended) => bail!("{}", last_line(&ended.stderr).unwrap_or(format!("{name} failed"))),
        Err(error) => bail!("cannot call {name}: {error}"),
    }
}

/// The last line of what a command printed, of at most 300 bytes.
pub(crate) fn last_line(bytes: &[u8]) -> Option<String> {
    let text = sanitize(&String::from_utf8_lossy(bytes));
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(shorten(line, 300))
}

/// Looks whether jobs can be submitted here: a line, and whether all is well.
pub fn look_here(start: &[String]) -> (bool, String) {
    let missing = ["sbatch", "squeue", "scancel"].into_iter().find(|name| {
        let path = Path::new(&start[0]).with_file_name(name);
        crate::process::find_program(path.as_os_str()).is_none()
    });
    if let Some(name) = missing {
        let next =
            "load Slurm's module for every shell there, or write the path of sbatch in 'start'";
        return (false, format!("{name} is not installed: {next}"));
    }
    match call(start, "squeue", &["--noheader", "--user", &own_user()], Stdio::null()) {
        Ok(_) => (true, format!("jobs are submitted by {}", start.join(" "))),
        Err(error) => (false, format!("Slurm does not answer: {error}")),
    }
}

fn own_user() -> String {
    nix::unistd::getuid().to_string()
}

/// The script of the job, which gets nothing of this environment but what the supervisor needs.
fn script(task: &Task, token: &str) -> Result<String> {
    let helper = task.helper("--supervise")?;
    let is_needed = |name: &str| {
        ["HOME", "PATH"].contains(&name) || name.starts_with("DISPATCH_") && name != TASK_DIR
    };
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let own = std::env::vars_os().filter_map(text).filter(|(name, _)| is_needed(name));
    let set = helper.get_envs().filter_map(|(name, value)| text((name.into(), value?.into())));
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in own.chain(set) {
        script += &format!("export {name}={}\n", shell_word(&value));
    }
    let words = [helper.get_program()].into_iter().chain(helper.get_args());
    let words: Vec<_> = words.map(|it| shell_word(&it.to_string_lossy())).collect();
    Ok(script + &format!("cd / && exec {} --job {token}\n", words.join(" ")))
}

fn job_name(task: &Task, job: &Job) -> String {
    format!("dispatch-{}-{}", task.id(), &job.token[..8])
}

/// Submits a supervisor, unless the reason to do so is over. `own`: the token of the job that this
/// process is in, which is about to end; else empty.
///
/// # Errors
/// Slurm refuses the job, which is recorded with a task that waits; [`Exit::TryAgain`] if the last job
/// has not ended.
pub(super) fn submit(
    task: &Task,
    start: &[String],
    only_if: Option<Only>,
    own: &str,
) -> Result<Option<Wait>> {
    let _lock = Lock::take(&lock_path(task), LOCK_LIMIT)?;
    if only_if.is_none() {
        look(&[task])?;
    }
    let (last, wait) = (task.job()?, task.wait()?);
    let runs = last.as_ref().is_some_and(|it| !it.is_over && it.token != own);
    if runs && only_if.is_none() {
        let job = last.map(|it| it.said).unwrap_or_default();
        return Refusal::new(Exit::TryAgain, format!("'{}' is still {job}", task.id()))
            .refuse("try again when that has ended");
    }
    if runs || only_if.is_some_and(|it| !supervise::is_due(task, it).unwrap_or(true)) {
        return task.wait();
    }
    if let Some(job) = last.as_ref().filter(|job| only_if == Some(Only::Open) && !job.id.is_empty())
    {
        // A job that never began is not submitted again, nor one that somebody ended.
        let why = match &wait {
            Some(Wait::Job { after, .. }) if *after == job.token => None,
            Some(Wait::Job { .. }) => {
                let log = files::tail(&task.state_dir().join("job.log"), 4096).unwrap_or_default();
                let line = last_line(&log).map(|it| format!(": {it}"));
                Some(format!("{}{}", job.said, line.unwrap_or_default()))
            }
            _ => Some(job.said.clone()).filter(|it| it.ends_with("(CANCELLED)")),
        };
        if let Some(why) = why {
            fail(task, &Error::msg(why))?;
            return task.wait();
        }
    }
    if task.record()?.is_none_or(|record| record.stop) {
        bail!("it was stopped before it started");
    }
    let mut job = Job { token: random_hex()?, said: "a Slurm job".into(), ..Job::default() };
    task.set_job(&job, false)?;
    fault::point("job", "named");
    if wait.is_none() && !task.view()?.is_checking() {
        let (after, said) = (String::new(), job.said.clone());
        task.set_wait(Some(&Wait::Job { after, said }))?;
    }
    match send(task, start, &job) {
        Ok(id) => {
            fault::point("job", "submitted");
            (job.said, job.id) = (format!("Slurm job {id}"), id);
            // Where the lock does not hold, another call has named a later job, which counts.
            if task.job()?.is_some_and(|it| it.token == job.token) {
                task.set_job(&job, false)?;
            }
        }
        // The next look at the task submits it from the machine that may.
        Err(_) if !own.is_empty() => task.set_job(&last.unwrap_or_default(), false)?,
        Err(error) => {
            task.set_job(&Job { is_over: true, ..job }, false)?;
            fail(task, &error)?;
            return Err(error);
        }
    }
    task.wait()
}

/// Submits the job and returns its id.
fn send(task: &Task, start: &[String], job: &Job) -> Result<String> {
    let (script_path, log) = (task.state_dir().join("job.sh"), task.state_dir().join("job.log"));
    files::publish(&script_path, script(task, &job.token)?.as_bytes())?;
    // sbatch replaces `%` and a letter.
    let log = format!("--output={}", log.to_string_lossy().replace('%', "%%"));
    let name = format!("--job-name={}", job_name(task, job));
    let own = OPTIONS.into_iter().chain([&*log, &*name]);
    let arguments: Vec<&str> = own.chain(start[1..].iter().map(String::as_str)).collect();
    let said = call(start, "sbatch", &arguments, File::open(&script_path)?.into())?;
    let id = said.trim().to_owned();
    let is_number = !id.is_empty() && id.bytes().all(|it| it.is_ascii_digit());
    is_number.then_some(id).with_context(|| format!("sbatch said no number: {}", said.trim()))
}

/// Records that nothing of the task runs any more, for this reason.
fn fail(task: &Task, error: &Error) -> Result<()> {
    let view = task.view()?;
    let command = view.record.first_check().filter(|_| view.is_checking());
    if let (Some(command), Some(attempt)) = (command, view.attempt) {
        let end = format!("{error:#}");
        let failed = FailedCheck { command, end, output: String::new(), is_review: false };
        return attempt.set_gate(&Gate { failed: Some(failed), ..Gate::default() });
    }
    supervise::record_not_started(task, error);
    Ok(())
}

fn lock_path(task: &Task) -> std::path::PathBuf {
    task.state_dir().join("job.lock")
}

/// The looks of a process that follows tasks.
#[derive(Default)]
pub struct Looks {
    last: Option<Instant>,
    jobs: Vec<String>,
}

impl Looks {
    /// Asks Slurm about the jobs of tasks, once for all, if a job is new or it is time.
    pub fn look(&mut self, tasks: &[&Task]) {
        let job = |task: &&Task| task.job().ok().flatten().filter(|it| !it.is_over);
        let ids = |task: &&Task| job(task).map(|it| it.token + &it.id);
        let jobs: Vec<String> = tasks.iter().filter_map(ids).collect();
        let limit = fault::limit("DISPATCH_JOB_LOOK_MS", LOOK);
        if jobs != self.jobs || self.last.is_none_or(|it| it.elapsed() >= limit) {
            // Without an answer, the last word counts.
            let _ = look(tasks);
            (self.last, self.jobs) = (Some(Instant::now()), jobs);
        }
    }
}

/// Asks Slurm about the jobs of tasks and records its word.
fn look(tasks: &[&Task]) -> Result<()> {
    let mut jobs = Vec::new();
    for task in tasks {
        if let Some(job) = task.job()?.filter(|it| !it.is_over)
            && let Some(start) = command(task)?
        {
            jobs.push((task, job, start));
        }
    }
    let Some((_, _, start)) = jobs.first() else { return Ok(()) };
    let user = own_user();
    let format = ["--noheader", "--states=all", "--format=%i|%T|%r|%j", "--user", &user];
    let said = call(start, "squeue", &format, Stdio::null())?;
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.splitn(4, '|').collect()).collect();
    for (task, mut job, start) in jobs {
        if job.id.is_empty() {
            // A submission that is under way ends by itself; of a dead one, the job may be there.
            let Some(_lock) = Lock::try_take_unsigned(&lock_path(task))? else { continue };
            let name = job_name(task, &job);
            match lines.iter().find(|it| it.last() == Some(&&*name)) {
                _ if task.job()?.as_ref() != Some(&job) => continue,
                Some(line) => {
                    job.id = line[0].into();
                    task.set_job(&job, false)?;
                }
                None => {
                    task.set_job(&Job { is_over: true, ..job }, true)?;
                    continue;
                }
            }
        }
        let id = &job.id;
        let (is_over, said) = match lines.iter().find(|it| it.len() == 4 && it[0] == *id) {
            Some(line) => match (line[1], line[2]) {
                (state, _) if OVER.contains(&state) => (true, format!("ended ({state})")),
                ("PENDING", reason) if reason != "None" => (false, format!("({reason})")),
                (state, _) => (false, format!("({})", state.to_lowercase())),
            },
            // Slurm forgets a job minutes after its end, and may keep an account of it.
            None => {
                let account =
                    ["--noheader", "--allocations", "--parsable2", "--format=State", "--jobs", id];
                let said = call(&start, "sacct", &account, Stdio::null()).unwrap_or_default();
                let state = said.split_whitespace().next().filter(|it| OVER.contains(it));
                (true, format!("ended ({})", state.unwrap_or("nobody knows how")))
            }
        };
        let said = format!("Slurm job {id} {}", sanitize(&said));
        let seen = Job { is_over, said, ..job.clone() };
        if seen != job {
            task.set_job(&seen, true)?;
        }
    }
    Ok(())
}

/// Has Slurm end the job of a task that is stopped, and waits until it says that nothing of it runs.
///
/// # Errors
/// [`Exit::TryAgain`] if the job does not end.
pub fn stop(task: &Task) -> Result<()> {
    // A submission that is under way has to name its job first.
    drop(Lock::take(&lock_path(task), LOCK_LIMIT)?);
    let Some(start) = command(task)? else { bail!("the task has no 'start' any more") };
    let (begin, mut watch, mut asked) = (Instant::now(), Watch::new(&[])?, None);
    loop {
        look(&[task])?;
        let Some(job) = task.job()?.filter(|it| !it.is_over) else { break };
        if !job.id.is_empty() && !matches!(asked, Some(Ok(_))) {
            asked = Some(call(&start, "scancel", &[&job.id], Stdio::null()));
        }
        if begin.elapsed() > STOP_LIMIT {
            let why = asked.and_then(Result::err).map_or(job.said, |error| error.to_string());
            return Refusal::new(Exit::TryAgain, format!("'{}' has not ended", task.id()))
                .place(why)
                .refuse(format!("try again: dispatch-reconcile stop {}", task.id()));
        }
        watch.wait_for_event(fault::limit("DISPATCH_JOB_LOOK_MS", Duration::from_secs(1)))?;
    }
    if matches!(task.wait()?, Some(Wait::Job { .. })) {
        task.set_wait(None)?;
    }
    supervise::record_unknown_end(&task.view()?).map(drop)
}

/// The job that this process is the supervisor of.
pub(super) struct OwnJob {
    token: String,
    announced: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl OwnJob {
    /// The job, if it is the one that is to work on the task.
    pub(super) fn claim(task: &Task, token: &str) -> Result<Option<Self>> {
        let id = std::env::var("SLURM_JOB_ID").context("only Slurm calls this")?;
        // A submission that was given up may have succeeded.
        let own = task.job()?.filter(|it| it.token == token && !it.is_over);
        let Some(mut job) = own else { return Ok(None) };
        if job.id.is_empty() {
            job.id.clone_from(&id);
            task.set_job(&job, false)?;
        }
        let (announced, ended) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        register(SIGUSR1, announced.clone())?;
        register(SIGTERM, ended.clone())?;
        Ok((job.id == id).then(|| Self { token: token.into(), announced, ended }))
    }

    /// Returns true once Slurm has announced that the time of the job is over.
    pub(super) fn is_announced(&self) -> bool {
        self.announced.load(Ordering::SeqCst)
    }

    /// Returns true if somebody but the person ended the job under its worker: how, only Slurm knows.
    pub(super) fn was_ended(&self, task: &Task, exit: &ExitRecord) -> bool {
        let is_ended = self.ended.load(Ordering::SeqCst) && !self.is_announced();
        is_ended && exit.code != Some(0) && !is_stopped(task)
    }

    /// The wait for the next job after a worker that was ended because the job's time is over.
    pub(super) fn next(&self, task: &Task, exit: &mut ExitRecord) -> Option<Wait> {
        let is_over = has_finished(task) || is_stopped(task) || exit.stop_reason.is_some();
        if !self.is_announced() || is_over {
            return None;
        }
        exit.stop_reason = Some(StopReason::JobTime);
        // A job that is too short to work in would be submitted again and again.
        let ran = Duration::from_millis(exit.milliseconds);
        let wait = Wait::Job { after: self.token.clone(), said: String::new() };
        (ran >= fault::limit("DISPATCH_JOB_MS", LEAST_TIME)).then_some(wait)
    }

    /// Submits the next job, for a task that this one leaves open. Where that may not be done from within
    /// a job, the next look from outside does it.
    pub(super) fn submit_next(&self, task: &Task) -> Result<()> {
        let Some(start) = command(task)?.filter(|_| self.is_announced()) else { return Ok(()) };
        submit(task, &start, Some(Only::Open), &self.token).map(drop)
    }
}
