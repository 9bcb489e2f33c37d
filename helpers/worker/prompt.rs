//! The prompts of workers: the same text for every CLI, with absolute paths.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;

use crate::domain::{Route, Worktree};
use crate::files;
use crate::process::{launcher, worker_helper};
use crate::task::{Answer, Record, Task};
use crate::text::{lossy, shell_word};

/// The prompt of the task's next attempt, from the plan, the notes and the answers of this moment.
/// `continues` says whether the attempt continues an earlier attempt's session.
pub fn next(task: &Task, record: &Record, continues: bool) -> Result<String> {
    match (task.last_attempt().is_some(), continues) {
        (false, _) => first(task, record, &task.dispatched_plan()?.to_string()),
        (true, false) => restart(task, record),
        (true, true) => resume(task, record),
    }
}

/// The `dispatch-worker` that the task's worker can reach.
fn helper(record: &Record) -> Result<PathBuf> {
    match record.route {
        Route::Agent => launcher("dispatch-worker"),
        Route::Cli => worker_helper(),
    }
}

/// The command with which the worker speaks for its task.
fn call(task: &Task, record: &Record) -> Result<String> {
    let helper = shell_word(&helper(record)?.display().to_string());
    let directory = shell_word(&task.side().directory().display().to_string());
    Ok(format!("{helper} --task-dir {directory}"))
}

/// The part of the prompt about what a worker process leaves running.
const PROCESSES_END: &str = "
When you stop, every process that you started is ended. Leave none running on purpose; name in your
summary what the person should start.";

/// The prompt of a task's first attempt.
pub fn first(task: &Task, record: &Record, plan: &str) -> Result<String> {
    let role = record.role.as_ref().map(|role| format!("{}\n\n", role.trim()));
    let (side, own) = (task.side(), record.worktree.as_ref());
    Ok(format!(
        include_str!("prompt.txt"),
        role = role.unwrap_or_default(),
        id = task.id(),
        work = record.directory.display(),
        ends = match record.route {
            Route::Cli => PROCESSES_END,
            Route::Agent => "",
        },
        own = own.map(|worktree| of_worktree(worktree, record)).unwrap_or_default(),
        call = call(task, record)?,
        directory = side.directory().display(),
        plan_path = side.plan_path().display(),
        report = side.report_path().display(),
        plan = plan.trim_end(),
    ))
}

/// The part of the prompt about the worker's worktree.
fn of_worktree(worktree: &Worktree, record: &Record) -> String {
    let commit = match record.commits() {
        true => {
            "commit your work there before you finish\n(git add FILE, not -A: a sandbox may show files that are not yours); "
        }
        false => "",
    };
    let branches: Vec<_> = record.after.iter().filter_map(|it| it.branch.as_deref()).collect();
    let begins = match branches.as_slice() {
        [first, others @ ..] if record.commits() && !others.is_empty() => format!(
            "\nIt begins where {first} ended. Before your first item, merge into it: {}.",
            others.join(", ")
        ),
        [first, ..] => format!("\nIt begins where {first} ended."),
        [] => String::new(),
    };
    let branch = &worktree.branch;
    format!(
        "\nYour directory is a git worktree of your own, on branch {branch}: {commit}never\n\
         push, and never touch other branches.{begins}"
    )
}

/// The prompt of a later attempt in a new session: the first prompt and what earlier attempts left.
pub fn restart(task: &Task, record: &Record) -> Result<String> {
    let first = first(task, record, &task.dispatched_plan()?.to_string())?;
    let mut text = first.trim_end().to_owned();
    text.push_str(
        "\n\n# Earlier attempts\n\nAn earlier worker began this task and stopped. Read the plan file again: items that are ticked are done; continue with the first that is not. '[?]' and '[!]' items are open again. Numbers are those of that file now.\n",
    );
    if let Some(context) = files::read_foreign(&task.side().context_path())?.map(lossy) {
        let _ = write!(text, "\nWhat it left for you:\n\n{}\n", context.trim_end());
    }
    Ok(text + &answers(task, "It")?)
}

/// The prompt of a later attempt that continues an earlier attempt's session.
fn resume(task: &Task, record: &Record) -> Result<String> {
    let (id, plan) = (task.id(), task.side().plan_path());
    let (plan, call) = (plan.display(), call(task, record)?);
    let text = format!(
        "You were interrupted in your task '{id}'. Continue it, as you were told at first. Read
{plan} again: items that are ticked are done; continue with the first that is not. '[?]' and '[!]'
items are open again, and there may be notes; numbers are those of that file now. Your link to the person is still: {call} …
"
    );
    Ok(text + &answers(task, "You")?)
}

/// The questions so far, with the person's answers.
fn answers(task: &Task, who: &str) -> Result<String> {
    let mut text = String::new();
    let (ipc, answers) = (task.side().ipc(), task.answers()?);
    for (name, Answer { question, answer }) in &answers {
        let (question, answer) = (question.trim_end(), answer.trim_end());
        let _ = write!(text, "\n{who} asked ({name}): {question}\nThe person answered: {answer}\n");
    }
    for question in ipc.questions()? {
        if answers.iter().any(|(name, _)| *name == question.name) {
            continue;
        }
        let Some(asked) = ipc.question(&question.name)? else { continue };
        let asked = asked.text.trim_end();
        let _ = write!(text, "\n{who} asked ({}): {asked}\nNo answer came.\n", question.name);
    }
    Ok(text)
}
