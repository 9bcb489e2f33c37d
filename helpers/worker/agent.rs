//! The agent route: the host program runs the worker, and dispatch prints the tool call that the host's
//! model has to make.

use anyhow::{Context, Result};
use serde_json::json;

use crate::domain::{TaskId, Usage};
use crate::files;
use crate::news::command;
use crate::process::{Identity, calling_host};
use crate::task::{Attempt, Record, Task};
use crate::text::lossy;
use crate::tools::claude;
use crate::worker::run;

/// The description of a task's agent, by which the host program names it.
pub fn description(task: &TaskId) -> String {
    format!("dispatch {task}")
}

/// The usage of a task's agent, from the last notification of its end that the host's model was shown.
pub fn usage_in(shown: &str, task: &TaskId) -> Option<Usage> {
    let name = description(task);
    shown.split("<task-notification>").skip(1).filter_map(|text| usage_of(text, &name)).last()
}

fn usage_of(notification: &str, name: &str) -> Option<Usage> {
    let (_, summary) = notification.split_once("<summary>")?;
    // In a transcript, the summary is part of a JSON string.
    let of_it = summary.split("</summary>").next()?.split(['"', '\\']).any(|part| part == name);
    let (_, count) = notification.rsplit_once("<subagent_tokens>").filter(|_| of_it)?;
    let tokens = count.split('<').next()?.parse().ok()?;
    Some(Usage { tokens, ..Usage::default() })
}

/// The Agent call that starts the worker with this prompt, as JSON in one line.
pub fn call(task: &Task, record: &Record, prompt: &str) -> Result<String> {
    let mut call = json!({
        "description": description(task.id()),
        "subagent_type": "general-purpose",
        "run_in_background": true,
        "prompt": prompt,
    });
    if let Some(tier) = record.model.as_deref().and_then(claude::tier) {
        call["model"] = tier.into();
    }
    serde_json::to_string(&call).context("cannot write the call")
}

/// The prompt of an attempt as the host passes it on: in short where its agents may read the file
/// without prompting, else whole.
fn prompt_for_host(attempt: &Attempt) -> Result<String> {
    let path = attempt.prompt_path();
    if claude::may_read_state()? {
        return Ok(format!("Read {} and do what it says, to its end.", path.display()));
    }
    files::read_foreign(&path)?.map(lossy).context("the attempt has no prompt")
}

/// Creates the next attempt and returns the line with the call that starts its agent.
pub fn start(task: &Task, record: &Record) -> Result<String> {
    let attempt = run::prepare(task, record, false)?;
    if let Some(host) = calling_host() {
        assign_host(task, &attempt, &host)?;
    }
    let call = call(task, record, &prompt_for_host(&attempt)?)?;
    Ok(format!("make this Agent call now: {call}"))
}

/// Records the host process as the agent's identity and the task's owner: an agent ends with its host.
fn assign_host(task: &Task, attempt: &Attempt, host: &Identity) -> Result<()> {
    attempt.set_identity(host)?;
    if task.record()?.is_some_and(|record| record.owner.as_ref() == Some(host)) {
        return Ok(());
    }
    task.change_record(|record| record.owner = Some(host.clone()))
}

/// Creates the next attempt of a task whose agent ended. Returns the call that continues the same agent
/// if the host still knows it, else the call that starts another one.
pub fn resume(task: &Task, record: &Record) -> Result<String> {
    let Some(host) = calling_host() else {
        let (spawn, id) = (command("dispatch-spawn")?, task.id());
        return Ok(format!("in its session, {spawn} {id} --resume continues it"));
    };
    let last = task.last_attempt().context("the task was never begun")?;
    let known = last.identity()?.as_ref() == Some(&host);
    let Some(session) = last.session()?.filter(|_| known) else { return start(task, record) };
    let attempt = run::prepare(task, record, true)?;
    assign_host(task, &attempt, &host)?;
    attempt.set_session(&session)?;
    let call = json!({ "to": session.id, "message": prompt_for_host(&attempt)? });
    Ok(format!("make this SendMessage call now (ToolSearch finds it): {call}"))
}
