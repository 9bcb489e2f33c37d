//! `dispatch-worker`: the worker's commands. They run inside a CLI's sandbox, so they judge no process
//! by its pid and write only into the task's directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::{run, say, some_text, text};
use crate::config::Config;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::ipc::{Ipc, IpcText, Looks, Question, second_look};
use crate::plan::Marker;
use crate::process::{
    ANSWERS, PATIENCE, TASK_DIR, Watch, Woken, boot_id, launcher, time_since_boot,
};
use crate::task::{Answer, WorkerSide};
use crate::text::{lossy, sanitize, shell_word};
use crate::worker::demo;

/// How long one call waits for an answer: just under the 600 s that hosts allow a command.
const WAIT: Duration = Duration::from_secs(570);

/// Default of `patience`: how long a worker waits for an answer in total.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Report a worker's progress and questions to the person who gave the task
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-worker",
    version = super::VERSION,
    after_help = "Example:\n  dispatch-worker --task-dir DIR tick 2 --note 'three files'\nA text given as - is read from standard input."
)]
pub struct Args {
    /// The task's directory
    #[arg(long, env = TASK_DIR, value_name = "DIR")]
    task_dir: PathBuf,
    #[command(subcommand)]
    command: WorkerCommand,
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    /// Ask the person and wait for the answer
    Ask {
        /// The question
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Keep waiting for an answer
    Wait {
        /// The question's number, for example 001
        number: String,
    },
    /// Tell the person something without waiting
    Tell {
        /// The message
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as done
    Tick {
        /// The item's number in the plan that the worker was given, or its words
        item: String,
        /// A short note about the item
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
        /// The item's number in the plan that the worker was given, or its words
        item: String,
        /// The question that needs an answer
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as failed
    Fail {
        /// The item's number in the plan that the worker was given, or its words
        item: String,
        /// The error
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Report that everything is done
    Finish {
        /// What was done or found, in two or three sentences (at most 300 characters)
        #[arg(default_value = "", hide_default_value = true, allow_hyphen_values = true)]
        summary: String,
    },
    /// Act as a demo worker that walks any plan
    Demo {
        /// The prompt, which the demo ignores
        #[arg(hide = true)]
        prompt: Option<String>,
    },
}

/// Runs `dispatch-worker`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        let directory = real_directory(&args.task_dir)?;
        refuse_other_task(&directory)?;
        act(&WorkerSide::at(&directory)?, args.command)
    })
}

/// The task's directory with the real path of its project.
fn real_directory(given: &Path) -> Result<PathBuf> {
    let given = std::path::absolute(given).context("no task directory")?;
    let project = given.ancestors().nth(3).and_then(|project| project.canonicalize().ok());
    let below = given.components().rev().take(3).collect::<Vec<_>>().into_iter().rev();
    Ok(project.map_or(given.clone(), |project| project.join(below.collect::<PathBuf>())))
}

/// Refuses to speak for another task than the one that this process works on.
fn refuse_other_task(directory: &Path) -> Result<(), Refusal> {
    let own = std::env::var_os(TASK_DIR).map(PathBuf::from);
    match own.filter(|own| own.components().ne(directory.components())) {
        None => Ok(()),
        Some(own) => Err(Refusal::new(Exit::Usage, "a worker speaks only for its own task")
            .place(format!("{} belongs to another task", directory.display()))
            .next(format!("use --task-dir {}", shell_word(&own.display().to_string())))),
    }
}

fn act(side: &WorkerSide, command: WorkerCommand) -> Result<Exit> {
    match command {
        WorkerCommand::Ask { text } => {
            let number = side.ipc().ask(&some_text(&text, "the question")?)?;
            fault::point("ask", "published");
            print_answer(side, &number)
        }
        WorkerCommand::Wait { number } => {
            if !side.ipc().has_question(&number) {
                return Err(Refusal::new(Exit::Data, format!("there is no question {number}"))
                    .next("ask first; the number is in the name of the question's file in ipc/")
                    .into());
            }
            print_answer(side, &number)
        }
        WorkerCommand::Tell { text } => {
            side.tell(&some_text(&text, "the message")?)?;
            say("Sent. Continue.");
            Ok(Exit::Ok)
        }
        WorkerCommand::Tick { item, note } => {
            let plan = side.edit_plan(|plan| plan.mark(&item, Marker::Done, &note))?;
            let done = format!("{}/{} done.", plan.done(), plan.items().len());
            say(match (plan.current(), plan.doubts().first()) {
                (Some(next), _) => format!("{done} Next is item {}: {}", next.number, next.text),
                (None, Some(doubt)) => format!("{done} But {doubt}; {}.", doubt.remedy()),
                (None, None) => format!("{done} Now finish."),
            });
            print_new_notes(side)?;
            Ok(Exit::Ok)
        }
        WorkerCommand::Report { text } => {
            files::publish(&side.report_path(), some_text(&text, "the report")?.as_bytes())?;
            say(format!("The report is in {}.", side.report_path().display()));
            Ok(Exit::Ok)
        }
        WorkerCommand::Block { item, text } => {
            let text = some_text(&text, "the question")?;
            let questions = side.ipc().questions()?;
            let unread = |it: &&Question| !it.received && side.ipc().has_answer(&it.name);
            if let Some(it) = questions.iter().find(unread) {
                let what = format!("the answer to question {} is there", it.name);
                let next = format!("read it with wait {}, then continue", it.name);
                return Err(Refusal::new(Exit::Data, what).next(next).into());
            }
            let number = set(side, &item, Marker::Blocked, &text)?;
            let context = side.context_path();
            let how = if context.is_file() {
                "Stop now.".into()
            } else {
                format!("Write what you know to {}, then stop.", context.display())
            };
            say(format!("Item {number} is blocked. {how}"));
            Ok(Exit::Ok)
        }
        WorkerCommand::Fail { item, text } => {
            let text = some_text(&text, "the error")?;
            let number = set(side, &item, Marker::Failed, &text)?;
            say(format!("Item {number} is marked as failed. Stop now."));
            Ok(Exit::Ok)
        }
        WorkerCommand::Finish { summary } => finish(side, &text(&summary)?),
        WorkerCommand::Demo { .. } => {
            demo::run(side, |question| {
                let number = side.ipc().ask(question)?;
                loop {
                    if let Some(answer) = wait_for_answer(side, &number, WAIT)? {
                        side.ipc().receive(&number)?;
                        return Ok(answer);
                    }
                }
            })?;
            Ok(Exit::Ok)
        }
    }
}

/// Marks an item and returns its number.
fn set(side: &WorkerSide, item: &str, marker: Marker, text: &str) -> Result<String> {
    let plan = side.edit_plan(|plan| plan.mark(item, marker, text))?;
    Ok(plan.item(item)?.number.clone())
}

/// Publishes the finish marker.
///
/// # Errors
/// [`Exit::Data`] if an item is not ticked or lost, or a line of the plan is in doubt.
fn finish(side: &WorkerSide, summary: &str) -> Result<Exit> {
    // The edit proves that no item was lost.
    let plan = side.edit_plan(|_| Ok(()))?;
    if let Some(item) = plan.current() {
        let number = &item.number;
        return Err(Refusal::new(
            Exit::Data,
            format!("item {number} is {}, not ticked", item.marker),
        )
        .place(item.text.clone())
        .next(format!("do it and tick {number}; or block {number} or fail {number}, and stop"))
        .into());
    }
    if let Some(doubt) = plan.doubts().first() {
        return Err(Refusal::new(Exit::Data, doubt.to_string())
            .place(sanitize(&doubt.text))
            .next(format!("{}; then finish again", doubt.remedy()))
            .into());
    }
    let summary: String = summary.trim().chars().take(300).collect();
    side.ipc().finish(&summary)?;
    say(match side.end_id()? {
        // The host program shows an agent's last message; the id in it acknowledges the end.
        Some(id) => format!(
            "Finished. End with this one message and nothing else: {} done {id}: {summary}",
            side.name(),
        ),
        None => "Finished. Stop now.".into(),
    });
    Ok(Exit::Ok)
}

/// Waits for an answer as long as a host allows one command, and prints it.
fn print_answer(side: &WorkerSide, number: &str) -> Result<Exit> {
    let waited = waited(side, number)?;
    let patience = patience();
    let limit = limit_for_tests().unwrap_or(WAIT).min(patience.saturating_sub(waited));
    if let Some(answer) = wait_for_answer(side, number, limit)? {
        say(answer.trim_end());
        fault::point("ask", "answered");
        side.ipc().receive(number)?;
        print_new_notes(side)?;
        return Ok(Exit::Ok);
    }
    if waited + limit >= patience {
        return Err(Refusal::new(Exit::NothingNew, "no answer came in time")
            .place(format!("write what you found to {}", side.context_path().display()))
            .next("block the item with the question, and stop")
            .into());
    }
    let again = format!(
        "{} --task-dir {} wait {number}",
        shell_word(&launcher("dispatch-worker")?.display().to_string()),
        shell_word(&side.directory().display().to_string()),
    );
    Err(Refusal::new(Exit::TryAgain, "no answer yet").next(format!("call again: {again}")).into())
}

/// Prints the person's notes that the worker was not told yet.
fn print_new_notes(side: &WorkerSide) -> Result<()> {
    for note in side.take_untold_notes()? {
        say(format!("\nA new note from the person, which is in your plan too:\n{}", note.trim()));
    }
    Ok(())
}

/// A shorter wait for tests.
fn limit_for_tests() -> Option<Duration> {
    #[cfg(debug_assertions)]
    if let Some(limit) = std::env::var("DISPATCH_WAIT_MS").ok().and_then(|ms| ms.parse().ok()) {
        return Some(Duration::from_millis(limit));
    }
    None
}

fn patience() -> Duration {
    let given = std::env::var(PATIENCE).ok().and_then(|minutes| minutes.parse().ok());
    let minutes = given.or_else(|| Config::load().ok().and_then(|config| config.patience));
    minutes.map_or(DEFAULT_PATIENCE, |minutes| Duration::from_secs(minutes.saturating_mul(60)))
}

fn wait_for_answer(side: &WorkerSide, number: &str, limit: Duration) -> Result<Option<String>> {
    let (ipc, mut looks) = (side.ipc(), Looks::default());
    let mut watch = Watch::new(&[SIGINT, SIGTERM])?;
    let begin = Instant::now();
    loop {
        watch.add_directory(ipc.directory());
        let found = answer(&ipc, number)?;
        if let Some(found) = found.filter(|it| looks.takes(ipc.answer_path(number), it)) {
            return Ok(Some(found.text));
        }
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        if let Woken::Signal(_) = watch.wait_for_event(left.min(second_look()))? {
            return Ok(None);
        }
    }
}

/// The answer to a question. A worker at `full` access takes only the person's record: at that level,
/// others may write its copy.
fn answer(ipc: &Ipc, number: &str) -> Result<Option<IpcText>> {
    let Some(answers) = std::env::var_os(ANSWERS) else { return ipc.answer(number) };
    let recorded = files::read(&Path::new(&answers).join(number))?;
    let answer = |text: String| {
        serde_json::from_str(&text).map(|it: Answer| IpcText { text: it.answer, is_whole: true })
    };
    recorded.map(answer).transpose().context("cannot read the answer")
}

/// Records when the wait for an answer began, so that the patience counts across calls. The clock
/// includes the time that the machine sleeps.
fn record_wait_start(side: &WorkerSide, number: &str) -> Result<()> {
    let begin = format!("{} {}", boot_id(), time_since_boot().as_secs());
    files::publish(&side.directory().join(format!("ipc/.{number}.asked")), begin.as_bytes())
}

fn waited(side: &WorkerSide, number: &str) -> Result<Duration> {
    let path = side.directory().join(format!("ipc/.{number}.asked"));
    let text = files::read_foreign(&path)?.map(lossy).unwrap_or_default();
    let begin = text.split_once(' ').filter(|(boot, _)| *boot == boot_id());
    match begin.and_then(|(_, seconds)| seconds.parse().ok()) {
        Some(seconds) => Ok(time_since_boot().saturating_sub(Duration::from_secs(seconds))),
        // The first wait, or the machine restarted: the time counts from now.
        None => record_wait_start(side, number).map(|()| Duration::ZERO),
    }
}
