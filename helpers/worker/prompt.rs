//! The prompts of workers: the same text for every CLI, with absolute paths.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::domain::Worktree;
use crate::files;
use crate::task::{Record, Task};
use crate::text::{lossy, shell_word};

/// The prompt of a task's first attempt. `helper` is the `dispatch-worker` that the worker can
/// reach; `role` is the prompt of the alias that the person named.
pub fn first(
    task: &Task,
    record: &Record,
    role: Option<&str>,
    helper: &Path,
    plan: &str,
) -> String {
    let role = role.map(|role| format!("{}\n\n", role.trim())).unwrap_or_default();
    let own = record.worktree.as_ref().map(|worktree| of_worktree(worktree, record));
    format!(
        include_str!("prompt/first.txt"),
        role = role,
        id = task.id(),
        work = record.directory.display(),
        own = own.unwrap_or_default(),
        call = call(task, helper),
        directory = task.directory().display(),
        plan_path = task.plan_path().display(),
        report = task.report_path().display(),
        plan = plan.trim_end(),
    )
}

/// The command by which a worker reaches its task.
fn call(task: &Task, helper: &Path) -> String {
    let words = [helper, task.directory()].map(|path| shell_word(&path.display().to_string()));
    words.join(" --task-dir ")
}

/// What a worker has to know of its worktree.
fn of_worktree(worktree: &Worktree, record: &Record) -> String {
    let commit = if record.commits() { "commit your work there before you finish; " } else { "" };
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
pub fn restart(task: &Task, first: &str) -> Result<String> {
    let mut text = format!(include_str!("prompt/restart.txt"), first = first.trim_end());
    if let Some(context) = files::read_foreign(&task.context_path())?.map(lossy) {
        let _ = write!(text, "\nWhat it left for you:\n\n{}\n", context.trim_end());
    }
    Ok(text + &answers(task, "It")?)
}

/// The prompt of a later attempt that continues an earlier attempt's session.
pub fn resume(task: &Task, helper: &Path) -> Result<String> {
    let (id, plan) = (task.id(), task.plan_path());
    let plan = plan.display();
    let text =
        format!(include_str!("prompt/resume.txt"), id = id, plan = plan, call = call(task, helper));
    Ok(text + &answers(task, "You")?)
}

/// The questions so far, with their answers.
fn answers(task: &Task, who: &str) -> Result<String> {
    let mut text = String::new();
    let ipc = task.ipc();
    for question in ipc.questions()? {
        let Some(asked) = ipc.question(&question.name)? else { continue };
        let answer = match ipc.answer(&question.name)? {
            Some(answer) => format!("The person answered: {}", answer.trim_end()),
            None => "No answer came.".into(),
        };
        let (name, asked) = (&question.name, asked.trim_end());
        let _ = writeln!(text, "\n{who} asked ({name}): {asked}\n{answer}");
    }
    Ok(text)
}
