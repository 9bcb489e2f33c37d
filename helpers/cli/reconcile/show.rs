//! `dispatch-reconcile show`: all about one task.

use anyhow::Result;

use super::status::as_json;
use crate::cli::say;
use crate::exit::Exit;
use crate::news::ledger::{self, Ledger, Standing};
use crate::news::{events, quoted, short_duration};
use crate::task::{ExitRecord, State, Task, View, calling_host};

/// A host that is shown all about a task has its news: nobody needs to wake it for that.
fn acknowledge_shown(view: &View) -> Result<()> {
    let Some(host) = calling_host().filter(|host| view.record.owner.as_ref() == Some(host)) else {
        return Ok(());
    };
    let told = ledger::read(&view.task)?;
    for event in events(view)? {
        if told.get(&event.id) != Some(&Standing::Acknowledged) {
            let mut ledger = Ledger::open(&view.task)?;
            ledger.deliver(&event, Some(&host))?;
            ledger.acknowledge(&event.id)?;
        }
    }
    Ok(())
}

pub(super) fn show(task: &Task, json: bool) -> Result<Exit> {
    let view = task.view()?;
    if json {
        say(serde_json::to_string(&as_json(&view))?);
        return Ok(Exit::Ok);
    }
    let record = &view.record;
    let because = view.because();
    let because = if because.is_empty() { because } else { format!(" ({because})") };
    say(format!("{} — {}", task.id(), view.plan.title().unwrap_or("no title")));
    say(format!("{}{because}, {}, {}", view.state, record.name, short_duration(view.age())));
    record.worktree.iter().for_each(|worktree| say(format!("worktree: {worktree}")));
    for (number, item) in (1..).zip(view.plan.items()) {
        say(format!("{number}. {} {}", item.marker, item.text));
        item.notes.iter().for_each(|note| say(format!("      {note}")));
    }
    let ipc = task.ipc();
    for question in ipc.questions()? {
        let asked = ipc.question(&question.name)?.unwrap_or_default();
        say(format!("question {}: {}", question.name, quoted(&asked)));
        if let Some(answer) = ipc.answer(&question.name)? {
            say(format!("answer {}: {}", question.name, quoted(&answer)));
        }
    }
    for (_, note) in task.notes()? {
        say(format!("note: {}", quoted(&note)));
    }
    for (_, message) in task.tells()? {
        say(format!("said: {}", quoted(&message)));
    }
    if let Some(summary) = view.summary.as_deref().filter(|summary| !summary.is_empty()) {
        say(format!("summary: {}", quoted(summary)));
    }
    for number in 1..=view.attempt.as_ref().map_or(0, |attempt| attempt.number) {
        let attempt = task.attempt(number);
        let end = match attempt.exit()? {
            Some(ExitRecord { ended: Some(why), at, .. }) => format!("ended at {at}: {why}"),
            Some(exit) => match (exit.code, exit.signal, exit.not_started) {
                (Some(code), ..) => format!("exit code {code} at {}", exit.at),
                (_, Some(signal), _) => format!("signal {signal} at {}", exit.at),
                (.., Some(why)) => format!("not started: {why}"),
                _ => format!("exit status unknown, its end was seen at {}", exit.at),
            },
            None if matches!(view.state, State::Running | State::Asking) => "runs".into(),
            None => "no exit recorded".into(),
        };
        let log = attempt.log_path();
        let log = if log.is_file() { format!(", log {}", log.display()) } else { String::new() };
        say(format!("attempt {number}: {end}{log}"));
    }
    let report = task.report_path();
    if report.is_file() {
        say(format!("report: {}", report.display()));
    }
    acknowledge_shown(&view)?;
    Ok(Exit::Ok)
}
