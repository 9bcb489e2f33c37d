//! The agent route: the host program runs the worker, and dispatch prints the tool call that the host's
//! model has to make.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::json;

use crate::domain::Usage;
use crate::files;
use crate::news::command_for;
use crate::process::calling_host;
use crate::task::{Attempt, Record, Task};
use crate::tools::claude;
use crate::worker::run;

/// The description of a task's agent, by which the host program names it. The project tells apart tasks
/// of one name that a host has in several.
pub fn description(record: &Record) -> String {
    let name = |above| {
        let directory = record.task_directory.ancestors().nth(above).and_then(Path::file_name);
        directory.unwrap_or_default().to_string_lossy().into_owned()
    };
    let project = if record.is_elsewhere { format!(" in {}", name(3)) } else { String::new() };
    format!("dispatch {}{project}", name(0))
}

/// The host program's notifications of the ends of a task's agents in a text.
fn notifications<'a>(shown: &'a str, record: &Record) -> impl Iterator<Item = &'a str> {
    let name = description(record);
    shown.split("<task-notification>").skip(1).filter(move |notification| {
        let summary = notification.split_once("<summary>").map_or("", |(_, summary)| summary);
        let summary = summary.split("</summary>").next().unwrap_or_default();
        // In a transcript, the summary is part of a JSON string.
        summary.split(['"', '\\']).any(|part| part == name)
    })
}

/// Returns true if a line of the host's transcript, or its prompt of this moment, notifies the model of
/// an end of the task's agent at or after a time.
pub fn notifies_since(shown: &str, record: &Record, since: SystemTime) -> bool {
    let line: Option<serde_json::Value> = serde_json::from_slice(shown.as_bytes()).ok();
    let time = line.as_ref().and_then(|line| line["timestamp"].as_str());
    let time = time.and_then(|time| humantime::parse_rfc3339(time).ok());
    time.is_none_or(|time| time >= since) && notifications(shown, record).next().is_some()
}

/// The usage of a task's agent, from the last notification of its end that the host's model was shown.
pub fn usage_in(shown: &str, record: &Record) -> Option<Usage> {
    notifications(shown, record).filter_map(usage_of).last()
}

fn usage_of(notification: &str) -> Option<Usage> {
    let (_, count) = notification.rsplit_once("<subagent_tokens>")?;
    let tokens = count.split('<').next()?.parse().ok()?;
    Some(Usage { tokens, ..Usage::default() })
}

/// The Agent call that starts the worker with this prompt, as JSON in one line.
pub fn call(record: &Record, prompt: &str) -> Result<String> {
    let mut call = json!({
        "description": description(record),
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
    files::read_lossy(&path)?.context("the attempt has no prompt")
}

/// Creates the next attempt and returns the line with the call that starts its agent.
pub fn start(task: &Task, record: &Record) -> Result<String> {
    let host = calling_host();
    let attempt = run::prepare(task, record, false, host.as_ref())?;
    host.map_or(Ok(false), |host| task.adopt(&host, |owner| *owner != host))?;
    let call = call(record, &prompt_for_host(&attempt)?)?;
    Ok(format!("make this Agent call now: {call}"))
}

/// Creates the next attempt of a task whose agent ended. Returns the call that continues the same agent
/// if the host still knows it, else the call that starts another one.
pub fn resume(task: &Task, record: &Record) -> Result<String> {
    let Some(host) = calling_host() else {
        let (spawn, id) = (command_for(task, "dispatch-spawn")?, task.id());
        return Ok(format!("in its session, {spawn} {id} --resume continues it"));
    };
    let last = task.last_attempt().context("the task was never begun")?;
    let known = last.identity()?.as_ref() == Some(&host);
    let Some(session) = last.session()?.filter(|_| known) else { return start(task, record) };
    let attempt = run::prepare(task, record, true, Some(&host))?;
    task.adopt(&host, |owner| *owner != host)?;
    attempt.set_session(&session)?;
    let call = json!({ "to": session.id, "message": prompt_for_host(&attempt)? });
    Ok(format!("make this SendMessage call now (ToolSearch finds it): {call}"))
}
