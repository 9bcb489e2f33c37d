//! The supervisor: a small process, re-parented to init, that runs one attempt of a task and
//! records how it ended, whatever becomes of the host.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{Invocation, Job, invocation};
use crate::config::{self, Config, PromptVia, Route};
use crate::crash;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::{self, Lock};
use crate::process::{self, Identity, Life, Watch, Woken};
use crate::project::TASK_DIR;
use crate::task::{Attempt, ExitRecord, Record, Task, now, prompt};

/// Marks every process of an attempt, so that one that escaped its group can be told.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// What a supervisor says when its worker runs; else it says its exit code and the error.
const STARTED: &str = "started";

/// Starts a supervisor for the task's next attempt, and returns when the worker runs.
///
/// # Errors
/// What the supervisor said if it could not start the worker.
pub fn start(task: &Task) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.arg("--supervise").arg(task.directory()).current_dir("/");
    // The supervisor has no working directory that a relative path could mean.
    command.env("DISPATCH_CONFIG", std::path::absolute(config::path()?)?);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    process::detach(&mut command)?;
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(reader).lines() {
        said.push(line.context("cannot hear the supervisor")?);
    }
    match said.as_slice() {
        [only] if only == STARTED => Ok(()),
        [] => {
            let what = format!("the supervisor of '{}' ended without a word", task.id());
            let again = format!("dispatch-spawn {} --resume tries again", task.id());
            Err(Refusal::new(Exit::Failed, what).next(again).into())
        }
        [code, lines @ ..] => {
            let exit = Exit::of_code(code.parse().unwrap_or_default());
            Err(Refusal::new(exit, lines.join("\n")).into())
        }
    }
}

/// The supervisor's whole life. Its standard output goes to whoever started it, until the worker
/// runs.
pub fn run(directory: &Path) -> Result<()> {
    let task = Task::at(directory)?;
    let _run_lock = Lock::take(&task.run_lock_path(), Duration::from_secs(2))?;
    crash::point("supervisor", "locked");
    let record = task.record()?.context("the task has no record")?;
    let mut watch = Watch::new(&[SIGTERM, SIGINT, SIGHUP])?;
    let attempt = prepare(&task, &record)?;
    crash::point("supervisor", "prepared");
    let begin = Instant::now();
    let started = launch(&task, &record, &attempt);
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let not_started = Some(format!("{error:#}"));
            attempt.set_exit(&ExitRecord { not_started, at: now(), ..ExitRecord::default() })?;
            return Err(error);
        }
    };
    crash::point("supervisor", "started");
    say_started()?;
    let mut status = wait(&mut child, &mut watch)?;
    if let Some(model) = refused_model(&task, &record, &attempt, status)? {
        let plain = Record { model: None, ..record };
        // If it cannot be started again, the first end stands.
        if let Ok(mut again) = launch(&task, &plain, &attempt) {
            let what =
                format!("{} refused the model {model}: it works with its own", plain.backend);
            task.tell(&what)?;
            status = wait(&mut again, &mut watch)?;
        }
    }
    crash::point("supervisor", "reaped");
    attempt.set_exit(&ExitRecord {
        code: status.code(),
        signal: status.signal(),
        not_started: None,
        at: now(),
        milliseconds: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Makes the next attempt: what the worker will read, and no finish marker of an earlier one.
pub fn prepare(task: &Task, record: &Record) -> Result<Attempt> {
    let last = task.last_attempt();
    if let Some(last) = &last {
        let alive = last.identity()?.is_some_and(|worker| worker.life() != Life::Dead);
        if last.exit()?.is_none() && alive && record.route == Route::Cli {
            let what = format!("the worker of '{}' is still running", task.id());
            return Err(Refusal::new(Exit::TryAgain, what).into());
        }
        let marker = task.ipc().directory().join(".done");
        match std::fs::rename(&marker, last.directory().join("done")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(format!("cannot move {}", marker.display()));
            }
            _ => {}
        }
        task.edit_plan(|plan| {
            plan.reopen();
            Ok(())
        })?;
    }
    let attempt = task.new_attempt()?;
    let first = files::read(&task.prompt_path())?.context("the task has no prompt")?;
    let text = if last.is_some() {
        // Nobody waits for these answers any more: this prompt holds those that there are.
        let _lock = task.lock()?;
        for question in task.ipc().questions()?.iter().filter(|question| !question.received) {
            task.ipc().receive(&question.name)?;
        }
        prompt::next(task, &first)?
    } else {
        first
    };
    files::publish(&attempt.stdin_path(), text.as_bytes())?;
    Ok(attempt)
}

/// How the task's worker is called, by the config as it is now.
pub fn call(task: &Task, record: &Record, helper: &Path) -> Result<Invocation> {
    let choice = Config::load()?.resolve(Some(&record.name))?;
    let job = Job {
        model: record.model.as_deref(),
        access: record.access,
        directory: &record.directory,
        task: task.directory(),
        helper,
    };
    invocation(&record.backend, &choice.settings, &job)
}

/// The model that Claude Code did not take, if that is why an attempt ended before it began. The
/// original never named a model to it, because some accounts have access to a few only.
fn refused_model(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    status: ExitStatus,
) -> Result<Option<String>> {
    let begun = task.plan()?.done() > task.plan_at_start()?.map_or(0, |plan| plan.done());
    let Some(model) = record.model.clone().filter(|_| !begun && status.code() == Some(1)) else {
        return Ok(None);
    };
    let log = std::fs::read(attempt.log_path()).context("cannot read the log")?;
    let log = String::from_utf8_lossy(&log).replace('’', "'");
    let refused = log.contains("There's an issue with the selected model");
    Ok(refused.then_some(model))
}

fn launch(task: &Task, record: &Record, attempt: &Attempt) -> Result<Child> {
    let call = call(task, record, &super::own_helper()?)?;
    let prompt_path = attempt.stdin_path();
    let text = files::read(&prompt_path)?.unwrap_or_default();
    let argv = call.with_prompt(&text, &prompt_path);
    let log = files::open_append(&attempt.log_path())?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).current_dir(&record.directory);
    command.stdin(match call.prompt {
        PromptVia::Stdin => File::open(&prompt_path).context("cannot open the prompt")?.into(),
        PromptVia::Arg | PromptVia::File => Stdio::null(),
    });
    command.stderr(log.try_clone().context("cannot share the log")?).stdout(log);
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_the_host(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.env(TASK_DIR, task.directory());
    command.env(ATTEMPT, format!("{}/{}", record.nonce, attempt.number));
    process::own_group(&mut command);
    process::spawn_known(&mut command, |identity| attempt.set_identity(identity))
}

/// Variables that tie a process to the host that started it. What a person sets for Claude Code,
/// such as how to log in, stays.
pub(crate) fn of_the_host(name: &str) -> bool {
    let of_the_person = ["USE_", "SKIP_", "OAUTH_", "CLIENT_", "API_KEY_", "MAX_"];
    match name.strip_prefix("CLAUDE_CODE_") {
        Some(rest) => !of_the_person.iter().any(|start| rest.starts_with(start)),
        None => matches!(
            name,
            "CLAUDECODE"
                | "CLAUDE_PID"
                | "CLAUDE_PROJECT_DIR"
                | "CLAUDE_PLUGIN_ROOT"
                | "CLAUDE_PLUGIN_DATA"
                | "CLAUDE_EFFORT"
                | "CLAUDE_ENV_FILE"
                | "DISPATCH_BIN"
        ),
    }
}

/// Tells whoever started the supervisor that the worker runs, and closes that pipe.
fn say_started() -> Result<()> {
    let mut starter = std::io::stdout().as_fd().try_clone_to_owned().map(File::from)?;
    let null = File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
    nix::unistd::dup2_stdout(null).context("cannot close the pipe")?;
    // The starter may be gone by now; the worker runs all the same.
    let _ = writeln!(starter, "{STARTED}");
    Ok(())
}

fn wait(child: &mut Child, watch: &mut Watch) -> Result<ExitStatus> {
    if let Some(identity) = Identity::of(child.id())? {
        watch.process(&identity);
    }
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the worker")? {
            return Ok(status);
        }
        if let Woken::Signal(signal) = watch.wait(Duration::from_secs(1))?
            && signal != SIGHUP
        {
            process::signal_group(child.id(), nix::sys::signal::Signal::SIGTERM)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_keeps_the_persons_settings_and_not_the_hosts() {
        for gone in ["CLAUDECODE", "CLAUDE_PID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_ENTRYPOINT"]
        {
            assert!(of_the_host(gone), "{gone}");
        }
        for kept in ["PATH", "ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CONFIG_DIR"] {
            assert!(!of_the_host(kept), "{kept}");
        }
    }
}
