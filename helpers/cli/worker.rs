//! `dispatch-worker`: the worker's commands. They run inside a CLI's sandbox, so they judge no process
//! by its pid and write only into the task's directory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::cli::{done, run, say, say_whole, some_text, text};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::ipc::Question;
use crate::ops::ask::{self, Reply, WAIT};
use crate::plan::Marker;
use crate::process::{TASK_DIR, calling_shell, launcher};
use crate::task::WorkerSide;
use crate::text::{LONGEST_SUMMARY, sanitize, shell_word, whole_sentences};

/// Report a worker's progress and questions to the person who gave the task
///
/// A worker calls this, or a person who works through a plan by hand. A text given as - is read from
/// standard input.
///
/// Exit codes: 0 done, 1 failed, 3 no answer came in time, 64 wrong arguments, 65 no such item or
/// question, or not allowed now, 75 no answer yet
///
/// Example: dispatch-worker --task-dir .dispatch/tasks/fix-login-bug tick 2
#[derive(Debug, Parser)]
#[command(name = "dispatch-worker", version = super::VERSION)]
pub struct Args {
    /// The directory of the task
    #[arg(long, env = TASK_DIR, hide_env_values = true, value_name = "DIR")]
    task_dir: PathBuf,
    #[command(subcommand)]
    command: WorkerCommand,
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    /// Ask the person and wait for the answer
    ///
    /// The answer is printed. Without one, the output says how to keep waiting, or that the
    /// patience of the config is over.
    ///
    /// Exit codes: 0 answered, 3 the patience is over, 64 wrong arguments, 75 no answer yet
    ///
    /// Example: dispatch-worker ask 'Which database?'
    Ask {
        /// The question
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Keep waiting for an answer
    ///
    /// The output is that of `ask`.
    ///
    /// Exit codes: 0 answered, 3 the patience is over, 64 wrong arguments, 65 no such question, 75
    /// no answer yet
    ///
    /// Example: dispatch-worker wait 001
    Wait {
        /// The question's number, for example 001
        number: String,
    },
    /// Tell the person something without waiting
    ///
    /// The session that gave the task is woken with the message.
    ///
    /// Exit codes: 0 sent, 64 wrong arguments
    ///
    /// Example: dispatch-worker tell 'The tests need a database.'
    Tell {
        /// The message
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as done
    ///
    /// The next item is printed, and new notes from the person.
    ///
    /// Exit codes: 0 ticked, 64 wrong arguments, 65 no such item, or the plan cannot be edited
    /// safely
    ///
    /// Example: dispatch-worker tick 2 --note 'three files'
    Tick {
        /// The number of the item in the worker's copy of the plan, or its words
        item: String,
        /// A short note about the item [default: none]
        #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
        note: String,
    },
    /// Publish the report
    ///
    /// The report becomes `output.md` in the directory of the task, and replaces an earlier one.
    ///
    /// Exit codes: 0 published, 64 wrong arguments
    ///
    /// Example: dispatch-worker report - <report.md
    Report {
        /// The report
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as blocked on an answer that did not come
    ///
    /// The worker stops after this; an answer resumes the task.
    ///
    /// Exit codes: 0 marked, 64 wrong arguments, 65 no such item, or the answer has come
    ///
    /// Example: dispatch-worker block 2 'Which database?'
    Block {
        /// The number of the item in the worker's copy of the plan, or its words
        item: String,
        /// The question that needs an answer
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Mark an item as failed
    ///
    /// The worker stops after this, and the person is told the error.
    ///
    /// Exit codes: 0 marked, 64 wrong arguments, 65 no such item
    ///
    /// Example: dispatch-worker fail 2 'The build server is down.'
    Fail {
        /// The number of the item in the worker's copy of the plan, or its words
        item: String,
        /// The error
        #[arg(allow_hyphen_values = true)]
        text: String,
    },
    /// Report that everything is done
    ///
    /// Every item must be ticked and every note read. A longer summary is cut after a sentence.
    ///
    /// Exit codes: 0 finished, 64 wrong arguments, 65 something is left to do
    ///
    /// Example: dispatch-worker finish 'Fixed the parser and added two tests.'
    Finish {
        /// The result, in two or three sentences (at most 700 characters)
        #[arg(default_value = "", hide_default_value = true, allow_hyphen_values = true)]
        summary: String,
    },
    /// Act as a demo worker that walks any plan
    ///
    /// This worker asks one question and needs no AI; `install.sh --demo` uses it.
    ///
    /// Exit codes: 0 finished, 1 failed
    ///
    /// Example: dispatch-worker demo
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
        Some(own) => Refusal::new(Exit::Usage, "a worker speaks only for its own task")
            .place(format!("{} belongs to another task", directory.display()))
            .refuse(format!("use --task-dir {}", shell_word(&own.display().to_string()))),
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
                return Refusal::new(Exit::Data, format!("there is no question {number}"))
                    .refuse("ask first; the number is in the name of the question's file in ipc/");
            }
            print_answer(side, &number)
        }
        WorkerCommand::Tell { text } => {
            side.tell(&some_text(&text, "the message")?)?;
            done("Sent. Continue.")
        }
        WorkerCommand::Tick { item, note } => {
            let plan = side.edit_plan(|plan| plan.mark(&item, Marker::Done, &note))?;
            let done = format!("{}/{} done.", plan.done(), plan.items().len());
            say(match (plan.current(), plan.doubts().first()) {
                (Some(next), _) => format!("{done} Next is item {}: {}", next.number, next.text),
                (None, Some(doubt)) => format!("{done} But {doubt}; {}.", doubt.remedy()),
                (None, None) => format!("{done} Now finish."),
            });
            print_new_notes(side, false)?;
            Ok(Exit::Ok)
        }
        WorkerCommand::Report { text } => {
            let text = some_text(&text, "the report")?;
            let path = side.report_path();
            let how = if path.exists() { "replaces the earlier one" } else { "is" };
            files::publish(&path, text.as_bytes())?;
            done(format!("The report {how} in {}.", path.display()))
        }
        WorkerCommand::Block { item, text } => {
            let text = some_text(&text, "the question")?;
            let questions = side.ipc().questions()?;
            let unread = |it: &&Question| !it.received && side.ipc().has_answer(&it.name);
            if let Some(it) = questions.iter().find(unread) {
                let what = format!("the answer to question {} is there", it.name);
                let next = format!("read it with wait {}, then continue", it.name);
                return Refusal::new(Exit::Data, what).refuse(next);
            }
            let number = set(side, &item, Marker::Blocked, &text)?;
            let context = side.context_path();
            let how = if context.is_file() {
                "Stop now.".into()
            } else {
                format!("Write what you know to {}, then stop.", context.display())
            };
            done(format!("Item {number} is blocked. {how}"))
        }
        WorkerCommand::Fail { item, text } => {
            let text = some_text(&text, "the error")?;
            let number = set(side, &item, Marker::Failed, &text)?;
            done(format!("Item {number} is marked as failed. Stop now."))
        }
        WorkerCommand::Finish { summary } => finish(side, &text(&summary)?),
        WorkerCommand::Demo { .. } => {
            walk(side)?;
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
/// [`Exit::Data`] if an item is not ticked or lost, a line of the plan is in doubt, or a note is unread.
fn finish(side: &WorkerSide, summary: &str) -> Result<Exit> {
    // The edit proves that no item was lost.
    let plan = side.edit_plan(|_| Ok(()))?;
    if let Some(item) = plan.current() {
        let number = &item.number;
        let what = format!("item {number} is {}, not ticked", item.marker);
        return Refusal::new(Exit::Data, what).place(item.text.clone()).refuse(format!(
            "do it and tick {number}; or block {number} or fail {number}, and stop"
        ));
    }
    if let Some(doubt) = plan.doubts().first() {
        return Refusal::new(Exit::Data, doubt.to_string())
            .place(sanitize(&doubt.text))
            .refuse(format!("{}; then finish again", doubt.remedy()));
    }
    if print_new_notes(side, true)? {
        return Refusal::new(Exit::Data, "the person sent a note that you had not read")
            .refuse("do what the note says; then finish again");
    }
    let given = summary.trim();
    let mut summary = whole_sentences(given, LONGEST_SUMMARY).to_owned();
    let is_cut = summary.len() < given.len();
    if is_cut {
        summary.push_str(" …");
    }
    side.ipc().finish(&summary)?;
    done(match std::env::var_os(TASK_DIR) {
        Some(_) if is_cut => {
            format!("Finished; the summary was cut at {LONGEST_SUMMARY} characters. Stop now.")
        }
        Some(_) => "Finished. Stop now.".into(),
        // An agent is no process of ours; the host program shows its last message to the model.
        None => format!("Finished. End with this one message: {} done: {summary}", side.name()),
    })
}

/// Waits for an answer as long as a host allows one command, and prints it.
fn print_answer(side: &WorkerSide, number: &str) -> Result<Exit> {
    let refusal = match ask::wait(side, number)? {
        Reply::Answer(answer) => {
            say_whole(answer.trim_end());
            fault::point("ask", "answered");
            side.ipc().receive(number)?;
            print_new_notes(side, false)?;
            return Ok(Exit::Ok);
        }
        Reply::TooLate => Refusal::new(Exit::NothingNew, "no answer came in time")
            .place(format!("write what you found to {}", side.context_path().display()))
            .next("block the item with the question, and stop"),
        Reply::NotYet => {
            let again = format!(
                "{} --task-dir {} wait {number}",
                shell_word(&launcher("dispatch-worker")?.display().to_string()),
                shell_word(&side.directory().display().to_string()),
            );
            Refusal::new(Exit::TryAgain, "no answer yet").next(format!("call again: {again}"))
        }
    };
    Err(refusal.into())
}

/// Prints the person's notes that the worker was not told yet, and returns whether there are any.
fn print_new_notes(side: &WorkerSide, ends: bool) -> Result<bool> {
    let notes = side.take_untold_notes(calling_shell().as_ref(), ends)?;
    for note in &notes {
        say(format!("\nA new note from the person, which is in your plan too:\n{}", note.trim()));
    }
    Ok(!notes.is_empty())
}

/// How long an item takes, so that a person can follow.
const PACE: Duration = Duration::from_millis(900);

/// The demo worker: walks any plan, asks one question, uses the answer and finishes.
fn walk(side: &WorkerSide) -> Result<()> {
    let plan = side.plan(side.start()?.as_ref())?;
    let mut report = format!("# Report: {}\n\n", plan.title().unwrap_or("demo"));
    for (at, item) in plan.items().iter().enumerate() {
        let number = &item.number;
        if item.marker == Marker::Done {
            continue;
        }
        println!("item {number}: {}", sanitize(&item.text));
        std::thread::sleep(PACE);
        let mut note = String::new();
        if at == 1 {
            let question = side.ipc().ask("Who should the report greet?")?;
            let answer = loop {
                if let Some(answer) = ask::wait_for_answer(side, &question, WAIT)? {
                    break answer;
                }
            };
            side.ipc().receive(&question)?;
            note = format!("for {}", answer.trim());
            report.push_str(&format!("Hello, {}!\n\n", answer.trim()));
        }
        report.push_str(&format!("{number}. {}: done\n", item.text));
        if at + 1 == plan.items().len() {
            files::publish(&side.report_path(), report.as_bytes())?;
        }
        side.edit_plan(|plan| plan.mark(number, Marker::Done, &note))?;
    }
    side.ipc().finish("Walked the whole plan, asked one question and used the answer.")
}
