//! The agent route: the host program runs the worker itself, and dispatch only says which call its
//! model is to make.

use anyhow::{Context, Result};
use serde_json::json;

use crate::domain::{TaskId, Usage};
use crate::files;
use crate::news::command;
use crate::process::{Identity, calling_host, worker_helper};
use crate::task::{Attempt, Record, Task};
use crate::tools::claude;
use crate::worker::{prompt, run};

/// How the agent of a task is called, by which the host program names it.
pub fn name(task: &TaskId) -> String {
    format!("dispatch {task}")
}

/// What the agent of a task used, by the last notification of its end in what the host's model was
/// shown.
pub fn usage_in(shown: &str, task: &TaskId) -> Option<Usage> {
    let name = name(task);
    shown.split("<task-notification>").skip(1).filter_map(|text| of(text, &name)).last()
}

fn of(notification: &str, name: &str) -> Option<Usage> {
    let (_, summary) = notification.split_once("<summary>")?;
    // In a transcript it is part of a string in JSON.
    let of_it = summary.split("</summary>").next()?.split(['"', '\\']).any(|part| part == name);
    let (_, count) = notification.rsplit_once("<subagent_tokens>").filter(|_| of_it)?;
    let tokens = count.split('<').next()?.parse().ok()?;
    Some(Usage { tokens, ..Usage::default() })
}

/// The Agent call that would start the worker, as JSON in one line.
pub fn call(task: &Task, record: &Record) -> Result<String> {
    agent_call(task, record, &task.prompt_path().display().to_string())
}

fn agent_call(task: &Task, record: &Record, prompt: &str) -> Result<String> {
    let mut call = json!({
        "description": name(task.id()),
        "subagent_type": "general-purpose",
        "run_in_background": true,
        "prompt": read_and_do(prompt),
    });
    if let Some(tier) = record.model.as_deref().and_then(claude::tier) {
        call["model"] = tier.into();
    }
    serde_json::to_string(&call).context("cannot write the call")
}

fn read_and_do(prompt: &str) -> String {
    format!("Read {prompt} and do what it says, to its end.")
}

/// Begins the next attempt, and says the call that starts its agent.
pub fn start(task: &Task, record: &Record) -> Result<String> {
    let attempt = run::prepare(task, record)?;
    if let Some(host) = calling_host() {
        belongs_to(task, &attempt, &host)?;
    }
    let prompt = if attempt.number == 1 { task.prompt_path() } else { attempt.stdin_path() };
    let call = agent_call(task, record, &prompt.display().to_string())?;
    Ok(format!("make this Agent call now: {call}"))
}

/// An agent lives and dies with its host process, which is the one to hear of it.
fn belongs_to(task: &Task, attempt: &Attempt, host: &Identity) -> Result<()> {
    attempt.set_identity(host)?;
    if task.record()?.is_some_and(|record| record.owner.as_ref() == Some(host)) {
        return Ok(());
    }
    task.change_record(|record| record.owner = Some(host.clone()))
}

/// Begins the next attempt of a task whose agent has ended, and says the call that lets the same
/// agent go on where the host still knows it, else the one that starts another.
pub fn go_on(task: &Task, record: &Record) -> Result<String> {
    let Some(host) = calling_host() else {
        let (spawn, id) = (command("dispatch-spawn")?, task.id());
        return Ok(format!("in its session, {spawn} {id} --resume goes on"));
    };
    let last = task.last_attempt().context("the task was never begun")?;
    let known = last.identity()?.as_ref() == Some(&host);
    let Some(session) = last.session()?.filter(|_| known) else { return start(task, record) };
    let attempt = run::prepare(task, record)?;
    belongs_to(task, &attempt, &host)?;
    attempt.set_session(&session)?;
    let text = prompt::go_on(task, &worker_helper()?)?;
    files::publish(&attempt.stdin_path(), text.as_bytes())?;
    let message = read_and_do(&attempt.stdin_path().display().to_string());
    let call = json!({ "to": session.id, "message": message });
    Ok(format!("make this SendMessage call now (ToolSearch finds it): {call}"))
}
