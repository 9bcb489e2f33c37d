//! `dispatch-worker`: the worker's end. It works inside a CLI's sandbox, so it judges nothing by
//! pid and writes nowhere but into the task's directory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::{run, say, some_text, text};
use crate::config::Config;
use crate::domain::Route;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::news;
use crate::plan::Marker;
use crate::process::{TASK_DIR, Watch, Woken, boot_id, launcher, time_since_boot};
use crate::task::Task;
use crate::text::{lossy, shell_word};
use crate::worker::demo;

/// How long one call waits for an answer: just under the 600 s that a host gives a command.
const WAIT: Duration = Duration::from_secs(570);

/// How long a worker waits for an answer in all, unless the config says otherwise.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// A worker's link to the person who gave it its task.
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-worker",
    version,
    after_help = "Example:\n  dispatch-worker --task-dir DIR tick 2 --note 'three files'\nA text that is - is read from standard input."
)]
pub struct Args {
    /// The task's directory
    #[arg(long, env = TASK_DIR, value_name = "DIR")]
    task_dir: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Ask the person and wait for the answer
    Ask {
        /// The question
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Wait on for the answer to a question
    Wait {
        /// Its number, like 001
        number: String,
    },
    /// Say something to the person and go on
    Tell {
        /// What to say
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as done
    Tick {
        /// Which, counted from 1
        item: usize,
        /// A few words about it
        #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
        note: String,
    },
    /// Publish the report
    Report {
        /// The report
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as blocked on an answer that did not come
    Block {
        /// Which, counted from 1
        item: usize,
        /// What has to be known
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as failed
    Fail {
        /// Which, counted from 1
        item: usize,
        /// The error
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Say that everything is done
    Finish {
        /// What was done or found, in two or three sentences
        #[arg(default_value = "", hide_default_value = true, allow_hyphen_values = true)]
        summary: String,
    },
    /// Be a worker that walks any plan, to try dispatch out
    Demo {
        /// The prompt, which it does not need
        #[arg(hide = true)]
        prompt: Option<String>,
    },
}

/// Runs `dispatch-worker`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        let directory = std::path::absolute(&args.task_dir).context("no task directory")?;
        act(&Task::at(&directory)?, args.action)
    })
}

fn act(task: &Task, action: Action) -> Result<Exit> {
    match action {
        Action::Ask { text } => {
            let number = task.ipc().ask(&some_text(&text, "the question")?)?;
            fault::point("ask", "published");
            wait(task, &number)
        }
        Action::Wait { number } => {
            if task.ipc().question(&number)?.is_none() {
                return Err(Refusal::new(Exit::Data, format!("there is no question {number}"))
                    .next("ask it; its number is that of its file in ipc/")
                    .into());
            }
            wait(task, &number)
        }
        Action::Tell { text } => {
            task.tell(&some_text(&text, "the message")?)?;
            say("Said. Go on.");
            Ok(Exit::Ok)
        }
        Action::Tick { item, note } => {
            let plan = task.edit_plan(|plan| plan.mark(item, Marker::Done, &note))?;
            say(match plan.current() {
                Some((number, next)) => {
                    format!(
                        "{}/{} done. Next is item {number}: {}",
                        plan.done(),
                        plan.items().len(),
                        next.text
                    )
                }
                None => format!("{0}/{0} done. Now finish.", plan.items().len()),
            });
            say_new_notes(task)?;
            Ok(Exit::Ok)
        }
        Action::Report { text } => {
            files::publish(&task.report_path(), some_text(&text, "the report")?.as_bytes())?;
            say(format!("The report is in {}.", task.report_path().display()));
            Ok(Exit::Ok)
        }
        Action::Block { item, text } => {
            let text = some_text(&text, "the question")?;
            let questions = task.ipc().questions()?;
            if let Some(it) = questions.iter().find(|it| it.answered && !it.received) {
                let what = format!("the answer to question {} has come", it.name);
                let next = format!("call again with wait {}, and go on with it", it.name);
                return Err(Refusal::new(Exit::Data, what).next(next).into());
            }
            task.edit_plan(|plan| plan.mark(item, Marker::Blocked, &text))?;
            let context = task.context_path();
            let how = if context.is_file() {
                "Stop now.".into()
            } else {
                format!("Write what you know to {}, then stop.", context.display())
            };
            say(format!("Item {item} is blocked. {how}"));
            Ok(Exit::Ok)
        }
        Action::Fail { item, text } => {
            let text = some_text(&text, "the error")?;
            task.edit_plan(|plan| plan.mark(item, Marker::Failed, &text))?;
            say(format!("Item {item} is marked as failed. Stop now."));
            Ok(Exit::Ok)
        }
        Action::Finish { summary } => finish(task, &text(&summary)?),
        Action::Demo { .. } => {
            demo::run(task, |question| {
                let number = task.ipc().ask(question)?;
                loop {
                    if let Some(answer) = wait_for_answer(task, &number, WAIT)? {
                        task.ipc().receive(&number)?;
                        return Ok(answer);
                    }
                }
            })?;
            Ok(Exit::Ok)
        }
    }
}

/// Says that the task is finished.
///
/// # Errors
/// [`Exit::Data`] if items are not ticked: finished means all of them.
fn finish(task: &Task, summary: &str) -> Result<Exit> {
    // One that has lost items is not finished.
    let plan = task.edit_plan(|_| Ok(()))?;
    if let Some((number, item)) = plan.current() {
        return Err(Refusal::new(
            Exit::Data,
            format!("item {number} is {}, not ticked", item.marker),
        )
        .place(item.text.clone())
        .next(format!("do it and tick {number}; or block {number} or fail {number}, and stop"))
        .into());
    }
    let summary: String = summary.trim().chars().take(300).collect();
    task.ipc().finish(&summary)?;
    let agent = task.view().ok().filter(|view| view.record.route == Route::Agent);
    say(match agent {
        // The id in its last message, which the host program shows, tells that the host has heard.
        Some(view) => format!(
            "Finished. End with this one message and nothing else: {} done {}: {summary}",
            task.id(),
            news::finish_id(&view)
        ),
        None => "Finished. Stop now.".into(),
    });
    Ok(Exit::Ok)
}

/// Waits for an answer for as long as a host lets one command run, and prints it.
fn wait(task: &Task, number: &str) -> Result<Exit> {
    let waited = waited(task, number)?;
    let patience = patience();
    let limit = limit_for_tests().unwrap_or(WAIT).min(patience.saturating_sub(waited));
    if let Some(answer) = wait_for_answer(task, number, limit)? {
        say(answer.trim_end());
        fault::point("ask", "answered");
        task.ipc().receive(number)?;
        say_new_notes(task)?;
        return Ok(Exit::Ok);
    }
    if waited + limit >= patience {
        return Err(Refusal::new(Exit::NothingNew, "no answer came in time")
            .place(format!("write what you found to {}", task.context_path().display()))
            .next("block the item with the question, and stop")
            .into());
    }
    let again = format!(
        "{} --task-dir {} wait {number}",
        shell_word(&launcher("dispatch-worker")?.display().to_string()),
        shell_word(&task.directory().display().to_string()),
    );
    Err(Refusal::new(Exit::TryAgain, "no answer yet").next(format!("call again: {again}")).into())
}

/// Says what the person has noted for the worker since it was last told.
fn say_new_notes(task: &Task) -> Result<()> {
    for note in task.untold_notes()? {
        say(format!("\nA new note from the person, which is in your plan too:\n{}", note.trim()));
    }
    Ok(())
}

/// A shorter wait, for tests of what comes after it.
fn limit_for_tests() -> Option<Duration> {
    #[cfg(debug_assertions)]
    if let Some(limit) = std::env::var("DISPATCH_WAIT_MS").ok().and_then(|ms| ms.parse().ok()) {
        return Some(Duration::from_millis(limit));
    }
    None
}

fn patience() -> Duration {
    let minutes = Config::load().ok().and_then(|config| config.patience);
    minutes.map_or(PATIENCE, |minutes| Duration::from_secs(minutes * 60))
}

fn wait_for_answer(task: &Task, number: &str, limit: Duration) -> Result<Option<String>> {
    let ipc = task.ipc();
    let mut watch = Watch::new(&[SIGINT, SIGTERM])?;
    let begin = Instant::now();
    loop {
        watch.add_directory(ipc.directory());
        // A worker's plain `echo > NNN.answer` is seen empty for a moment.
        if let Some(answer) = ipc.answer(number)?.filter(|answer| !answer.trim().is_empty()) {
            return Ok(Some(answer));
        }
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        if let Woken::Signal(_) = watch.wait_for_event(left.min(Duration::from_secs(1)))? {
            return Ok(None);
        }
    }
}

/// When the waiting for an answer began, on the clock that goes on while the machine sleeps, so
/// that the patience counts across calls.
fn begin_waiting(task: &Task, number: &str) -> Result<()> {
    let begin = format!("{} {}", boot_id(), time_since_boot().as_secs());
    files::publish(&task.directory().join(format!("ipc/.{number}.asked")), begin.as_bytes())
}

fn waited(task: &Task, number: &str) -> Result<Duration> {
    let path = task.directory().join(format!("ipc/.{number}.asked"));
    let text = files::read_foreign(&path)?.map(lossy).unwrap_or_default();
    let begin = text.split_once(' ').filter(|(boot, _)| *boot == boot_id());
    match begin.and_then(|(_, seconds)| seconds.parse().ok()) {
        Some(seconds) => Ok(time_since_boot().saturating_sub(Duration::from_secs(seconds))),
        // Just asked, or before a restart: it counts from now.
        None => begin_waiting(task, number).map(|()| Duration::ZERO),
    }
}
