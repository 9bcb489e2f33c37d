//! One attempt of a task: its worker is started, watched to its end, and nothing of it is left.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::SIGHUP;

use super::heard::{Kind, Listener};
use super::supervise::Starter;
use super::{Invocation, Job, Session, invocation, listener};
use crate::config::{Config, PromptVia, Route};
use crate::crash;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;
use crate::process::{self, Identity, Life, Watch, Woken};
use crate::project::TASK_DIR;
use crate::task::{Attempt, ExitRecord, Record, SessionRecord, Task, now, prompt, random_hex};

/// Marks every process of an attempt, so that one that escaped its group can be told.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// Runs the task's next attempt to its end, which is not recorded yet.
pub(super) fn run(
    task: &Task,
    watch: &mut Watch,
    starter: &mut Starter,
) -> Result<(Attempt, ExitRecord)> {
    let record = task.record()?.context("the task has no record")?;
    let attempt = prepare(task, &record)?;
    crash::point("supervisor", "prepared");
    let begin = Instant::now();
    let session = task.last_session(&record.backend, attempt.number)?;
    let mut started = match launch(task, &record, &attempt, session.as_ref()) {
        Ok(started) => started,
        Err(error) => {
            let not_started = Some(format!("{error:#}"));
            attempt.set_exit(&ExitRecord { not_started, at: now(), ..ExitRecord::default() })?;
            return Err(error);
        }
    };
    crash::point("supervisor", "started");
    starter.hears_started()?;
    let mut status = wait(&mut started, &attempt, watch)?;
    if let Some(again) = without_what_was_refused(task, &record, &started.listener, status)? {
        // If it cannot be started again, the first end stands.
        if let Ok(second) = launch(task, &again, &attempt, None) {
            started = second;
            status = wait(&mut started, &attempt, watch)?;
        }
    }
    crash::point("supervisor", "reaped");
    let heard = started.listener.heard().clone();
    let exit = ExitRecord {
        code: status.code(),
        signal: status.signal(),
        failure: heard.failure,
        denied: heard.denied,
        usage: heard.usage,
        at: now(),
        milliseconds: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..ExitRecord::default()
    };
    Ok((attempt, exit))
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
pub fn call(task: &Task, record: &Record, helper: &Path, session: Session) -> Result<Invocation> {
    let choice = Config::load()?.resolve(Some(&record.name))?;
    let mut writable = vec![task.directory().to_path_buf()];
    writable.extend(record.worktree.iter().flat_map(|worktree| worktree.git_directories()));
    let job = Job {
        model: record.model.as_deref(),
        access: record.access,
        directory: &record.directory,
        task: task.directory(),
        writable: &writable,
        session,
        helper,
    };
    invocation(&record.backend, &choice.settings, &job)
}

/// The task without the model or the session that the CLI did not take, if that is why it ended
/// before it began. The original never named a model to Claude Code, because some accounts have
/// access to a few only; and a session that a CLI has forgotten is begun anew.
fn without_what_was_refused(
    task: &Task,
    record: &Record,
    listener: &Listener,
    status: ExitStatus,
) -> Result<Option<Record>> {
    let begun = task.plan()?.done() > task.plan_at_start()?.map_or(0, |plan| plan.done());
    let Some(failure) = listener.heard().failure.as_ref().filter(|_| !begun && !status.success())
    else {
        return Ok(None);
    };
    match (failure.kind, &record.model) {
        (Kind::Session, _) => Ok(Some(record.clone())),
        (Kind::Model, Some(model)) if record.backend == "claude" => {
            let backend = &record.backend;
            task.tell(&format!("{backend} refused the model {model}: it works with its own"))?;
            Ok(Some(Record { model: None, ..record.clone() }))
        }
        _ => Ok(None),
    }
}

/// A worker that was started.
struct Started {
    child: Child,
    listener: Listener,
    /// How much of the log was heard.
    heard: u64,
}

fn launch(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    session: Option<&SessionRecord>,
) -> Result<Started> {
    let fresh = uuid(&random_hex()?, &random_hex()?);
    let resumed = session.map(|session| Session::Resume(&session.id));
    let helper = super::own_helper()?;
    let call = call(task, record, &helper, resumed.unwrap_or(Session::New(&fresh)))?;
    let settings = Config::load()?.resolve(Some(&record.name))?.settings;
    let prompt_path = attempt.stdin_path();
    let text = files::read(&prompt_path)?.unwrap_or_default();
    let argv = call.with_prompt(&text, &prompt_path);
    let log = files::open_append(&attempt.log_path())?;
    let heard = log.metadata().context("cannot look at the log")?.len();
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
    command.env(ATTEMPT, mark(record, attempt));
    process::own_group(&mut command);
    let child = process::spawn_known(&mut command, |identity| attempt.set_identity(identity))?;
    Ok(Started { child, listener: listener(&record.backend, &settings), heard })
}

/// What marks the processes of that attempt.
pub fn mark(record: &Record, attempt: &Attempt) -> String {
    format!("{}/{}", record.nonce, attempt.number)
}

/// A UUID (version 4) of 32 random hexadecimal digits.
fn uuid(high: &str, low: &str) -> String {
    format!("{}-{}-4{}-8{}-{}", &high[..8], &high[8..12], &high[13..], &low[1..4], &low[4..])
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

fn wait(started: &mut Started, attempt: &Attempt, watch: &mut Watch) -> Result<ExitStatus> {
    if let Some(identity) = Identity::of(started.child.id())? {
        watch.process(&identity);
    }
    loop {
        if let Some(status) = started.child.try_wait().context("cannot wait for the worker")? {
            let log = std::fs::read(attempt.log_path()).context("cannot read the log")?;
            let from = usize::try_from(started.heard).unwrap_or(usize::MAX);
            started.listener.hear(log.get(from..).unwrap_or_default());
            started.listener.end();
            return Ok(status);
        }
        if let Woken::Signal(signal) = watch.wait(Duration::from_secs(1))?
            && signal != SIGHUP
        {
            process::signal_group(started.child.id(), nix::sys::signal::Signal::SIGTERM)?;
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
