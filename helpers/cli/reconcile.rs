//! `dispatch-reconcile`: what is true of all tasks now.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::json;

use super::{clean, merge, project, run, say, some_text};
use crate::config::Route;
use crate::crash;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::Lock;
use crate::news::ledger::{self, Ledger, Standing};
use crate::news::{events, quoted, short_duration};
use crate::process::{Life, Signal, Watch};
use crate::project::{Project, TaskId};
use crate::task::{ExitRecord, State, Task, View, calling_host};
use crate::worker::{attempt, supervise};

/// How long a worker may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Shows what is true of all tasks now.
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-reconcile",
    version,
    after_help = "Examples:\n  dispatch-reconcile\n  dispatch-reconcile show fix-login-bug"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Work in this directory
    #[arg(short = 'C', global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// One line a task, most urgent first (the default)
    Status,
    /// All about one task
    Show {
        /// The task's id
        task: String,
    },
    /// End a task's worker
    Stop {
        /// The task's id
        task: String,
    },
    /// Bring a task's branch back into the one that is checked out here
    Merge {
        /// The task's id
        task: String,
    },
    /// Remove finished tasks, with worktrees of which nothing would be lost
    Clean(clean::Args),
    /// Tell a running worker something: a note at the end of its plan
    Note {
        /// The task's id
        task: String,
        /// What to tell it; - is standard input
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
}

/// Runs `dispatch-reconcile`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        let project = project(args.directory.as_deref())?;
        let task = |id: &str| -> Result<Task> { project.existing_task(&id.parse::<TaskId>()?) };
        match args.action.as_ref().unwrap_or(&Action::Status) {
            Action::Status => status(&project, args.json),
            Action::Show { task: id } => show(&task(id)?, args.json),
            Action::Stop { task: id } => stop(&task(id)?),
            Action::Merge { task: id } => {
                merge::merge(&project, &super::directory(args.directory.as_deref())?, &task(id)?)
            }
            Action::Clean(clean) => clean::clean(&project, clean),
            Action::Note { task: id, text } => {
                task(id)?.add_note(&some_text(text, "the note")?)?;
                say(format!("noted in the plan of {id}"));
                Ok(Exit::Ok)
            }
        }
    })
}

/// Ends a task's worker through its supervisor, which records the end; without one, here.
fn stop(task: &Task) -> Result<Exit> {
    let id = task.id();
    let view = task.view()?;
    if view.record.route == Route::Agent {
        return Err(Refusal::new(Exit::Failed, format!("'{id}' is an agent of the host"))
            .next("stop it there: the host's TaskStop tool, or its list of agents")
            .into());
    }
    if view.exit.is_some() && view.processes.is_empty() && view.state != State::Waiting {
        say(format!("{id} has ended already: {}", view.state));
        return Ok(Exit::Ok);
    }
    let supervisor = Lock::holder(&task.run_lock_path())?;
    let alive = || supervisor.as_ref().filter(|it| it.life() != Life::Dead);
    // Before it is asked, because one that only waits ends as soon as it sees that.
    let mut how = match alive() {
        Some(_) => "",
        None => "; its supervisor was dead, and nothing of it is left",
    };
    // Where there is no space for it now, the worker is ended first, which may have used it up.
    let asked = task.change_record(|record| record.stop = true);
    let begin = Instant::now();
    if let Some(supervisor) = alive() {
        let mut watch = Watch::new(&[])?;
        watch.process(supervisor);
        supervisor.signal(Signal::SIGTERM)?;
        let limit = crash::limit("DISPATCH_STOP_MS", STOP_LIMIT);
        while alive().is_some() && begin.elapsed() < limit {
            watch.wait(Duration::from_millis(100))?;
        }
    }
    // Of a supervisor that saw to it nothing is left; this makes sure.
    if let Some(attempt) = task.last_attempt() {
        let record = &view.record;
        let left =
            attempt::tree(alive().cloned(), record, &attempt)?.end(attempt::grace(), || ())?;
        if !left.is_empty() {
            let left: Vec<_> = left.iter().map(|process| process.pid.to_string()).collect();
            return Err(Refusal::new(Exit::TryAgain, format!("'{id}' does not end"))
                .place(format!(
                    "asked to {} ago; left: {}",
                    short_duration(begin.elapsed()),
                    left.join(", ")
                ))
                .next(format!("look again: dispatch-reconcile show {id}"))
                .into());
        }
    }
    if let Some(supervisor) = alive() {
        how = "; its supervisor did not react, and nothing of it is left";
        supervisor.signal(Signal::SIGKILL)?;
        let mut watch = Watch::new(&[])?;
        watch.process(supervisor);
        while alive().is_some() && begin.elapsed() < 2 * STOP_LIMIT {
            watch.wait(Duration::from_millis(100))?;
        }
    }
    asked.or_else(|_| task.change_record(|record| record.stop = true))?;
    say(format!("{id} {}{how}", task.view()?.state));
    Ok(Exit::Ok)
}

fn status(project: &Project, json: bool) -> Result<Exit> {
    supervise::mend(project);
    let (mut views, mut broken) = (Vec::new(), Vec::new());
    for task in project.tasks() {
        match task.view() {
            Ok(view) => {
                // What cannot be recorded now is seen again the next time.
                let _ = supervise::record_unknown_end(&view);
                supervise::go_on_if_answered(&view);
                views.push(view);
            }
            Err(error) => {
                let error = format!("{error:#}");
                let what = error.lines().next().unwrap_or_default();
                broken.push(shorten(&format!("{} broken — {what}", task.id()), 100));
            }
        }
    }
    views.sort_by_key(|view| view.state);
    if json {
        say(serde_json::to_string(&views.iter().map(as_json).collect::<Vec<_>>())?);
        return Ok(Exit::Ok);
    }
    if views.is_empty() && broken.is_empty() {
        say(format!("no tasks in {}", project.root().display()));
    }
    broken.iter().for_each(say);
    for view in &views {
        say(status_line(view));
    }
    Ok(Exit::Ok)
}

/// One task in one line of at most 100 bytes.
pub(super) fn status_line(view: &View) -> String {
    let (done, all) = (view.plan.done(), view.plan.items().len());
    let mut line = format!(
        "{} {} {done}/{all} {} {}",
        view.task.id(),
        view.state,
        short_duration(view.age()),
        view.record.name
    );
    let detail = match view.state {
        State::Asking => view
            .questions
            .first()
            .map(|(question, text)| format!("{}: {}", question.name, quoted(text))),
        State::Running => {
            view.current().map(|(number, item)| format!("item {number}: {}", item.text))
        }
        _ => Some(view.because()),
    };
    if let Some(detail) = detail.filter(|detail| !detail.is_empty()) {
        line.push_str(&format!(" — {}", detail.replace('\n', " ")));
    }
    shorten(&line, 100)
}

/// Cuts a line to that many bytes.
pub(super) fn shorten(line: &str, bytes: usize) -> String {
    if line.len() <= bytes {
        return line.into();
    }
    let mut end = bytes - '…'.len_utf8();
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &line[..end])
}

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

fn show(task: &Task, json: bool) -> Result<Exit> {
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

fn as_json(view: &View) -> serde_json::Value {
    json!({
        "task": view.task.id().as_str(),
        "state": view.state,
        "because": view.because(),
        "done": view.plan.done(),
        "items": view.plan.items(),
        "model": view.record.name,
        "backend": view.record.backend,
        "route": view.record.route,
        "seconds": view.age().as_secs(),
        "attempt": view.attempt.as_ref().map(|attempt| attempt.number),
        "questions": view.questions.iter().map(|(question, text)| json!({
            "number": question.name, "text": text.trim_end(),
        })).collect::<Vec<_>>(),
        "summary": view.summary,
        "directory": view.task.directory(),
        "worktree": view.record.worktree,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_is_cut_between_characters() {
        assert_eq!(super::shorten("abc", 3), "abc");
        assert_eq!(super::shorten("ääää", 7), "ää…");
    }
}
