//! `dispatch-spawn`: starts or resumes a task's worker and returns at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use crate::cli::{directory, done, project, refuse_elsewhere, run, say, text};
use crate::domain::{PromptVia, TaskId};
use crate::error::{Exit, Refusal};
use crate::files;
use crate::host::refuse_undecided;
use crate::news::notify;
use crate::ops::dispatch::{self, Prepared};
use crate::ops::resume;
use crate::ops::{Request, Start};
use crate::place::{self, link};
use crate::process::{TASK_DIR, is_host_variable};
use crate::project::Project;
use crate::task::{Task, Wait};
use crate::text::{sanitize, shell_word};
use crate::worker::supervise::{self, Only};
use crate::worker::{agent, sandbox};

/// Start or resume a task's worker and return at once
///
/// The worker gets the plan, a checklist in Markdown, and runs in the background; the output says
/// what to do next. Without `--plan`, the plan is the file `.dispatch/tasks/TASK/plan.md`. `--resume`
/// keeps the items that are done.
///
/// Exit codes: 0 started or queued, 1 failed, 64 wrong arguments, 65 the config, the plan or the task
/// does not allow it, 69 a CLI or a helper is missing, 73 the id is taken, 75 a worker is running
///
/// Example: dispatch-spawn fix-login-bug --model opus --plan plan.md
#[derive(Debug, Parser)]
#[command(name = "dispatch-spawn", version = super::VERSION, arg_required_else_help = true)]
pub struct Args {
    /// The id of the task: lower-case words joined by '-'
    #[arg(value_name = "TASK", required_unless_present_any = ["supervise", "notify", "mirror", "serve", "carry", "sources"])]
    task: Option<TaskId>,
    /// Read the plan from FILE or standard input [default: the task's plan.md]
    #[arg(long, value_name = "FILE|-")]
    plan: Option<String>,
    #[command(flatten)]
    request: Request,
    /// Resume a task's remaining items (`--model` picks another worker); start a waiting task now
    #[arg(long, conflicts_with_all = ["plan", "worktree", "after", "check", "review", "agent", "may_dispatch", "keep", "dry_run"])]
    resume: bool,
    /// Print the command that would run, and start nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the command as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Allow this call from inside a worker with --may-dispatch
    #[arg(long)]
    nested: bool,
    /// Work in this directory [default: the current one]
    #[arg(short = 'C', value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Run as the supervisor of the task with this state directory
    #[arg(long, value_name = "STATE", hide = true)]
    supervise: Option<PathBuf>,
    /// The token of the job that this supervisor is
    #[arg(long, value_name = "TOKEN", hide = true)]
    job: Option<String>,
    /// Tell the person's command of new events of the task with this state directory
    #[arg(long, value_name = "STATE", hide = true)]
    notify: Option<PathBuf>,
    /// Run as the mirror of this place
    #[arg(long, value_name = "PLACE", hide = true)]
    mirror: Option<String>,
    /// Run as the far end of a connection, with repositories below this directory
    #[arg(long, value_name = "DIR", hide = true)]
    serve: Option<PathBuf>,
    /// Carry a service of git to a place
    #[arg(long, value_name = "SERVICE", hide = true)]
    carry: Option<String>,
    /// Print the name of the sources
    #[arg(long, hide = true)]
    sources: bool,
    /// Do nothing unless this is still so
    #[arg(long, hide = true, value_enum)]
    only_if: Option<Only>,
}

/// Runs `dispatch-spawn`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        if let Some(directory) = &args.notify {
            return notify::run(directory).map(|()| Exit::Ok);
        }
        if args.sources {
            return done(link::version());
        }
        if let Some(places) = &args.serve {
            let refused = refuse_undecided("the work of a place").err();
            let refused = refused.map(|error| error.to_string());
            return place::serve::run(places, refused).map(|()| Exit::Ok);
        }
        if let Some(service) = &args.carry {
            return link::carry_git(service).map(|()| Exit::Ok);
        }
        if let Some(name) = &args.mirror {
            return place::mirror::run(name).map(|()| Exit::Ok);
        }
        if let Some(directory) = &args.supervise {
            let task = Task::at_state(directory);
            let at = task.and_then(|task| Ok((task.record()?.and_then(|it| it.place), task)));
            let ran = match at {
                Ok((Some(place), task)) => place::attend(&task, &place, args.only_if).map(say),
                _ => supervise::run(directory, args.only_if, args.job.as_deref()),
            };
            // The starter reads standard output; standard error leads nowhere.
            return Ok(match ran {
                Ok(()) => Exit::Ok,
                Err(error) => {
                    let exit = crate::error::exit_code(&error);
                    say(format!("{}\n{error:#}", exit as u8));
                    exit
                }
            });
        }
        let outer = dispatch::calling_task()?;
        if outer.is_some() && !args.nested {
            return Refusal::new(Exit::Usage, "a worker cannot start workers")
                .refuse("do the work yourself, or add --nested if the task asks for workers");
        }
        let id = args.task.clone().context("no task")?;
        let here = directory(args.directory.as_deref())?;
        let project = project(args.directory.as_deref())?;
        if args.resume {
            project.refuse_moved()?;
            let task = project.existing_task(&id)?;
            refuse_elsewhere(&project, &task)?;
            resume(&args.request, &project, &task)
        } else {
            if project.is_elsewhere && !args.dry_run {
                refuse_undecided("a task in another project")?;
            }
            if args.request.may_dispatch && outer.is_none() && !args.dry_run {
                refuse_undecided("a worker that dispatches tasks")?;
            }
            // A dry run sets nothing aside.
            let project = if args.dry_run { project } else { project.for_dispatch()? };
            start(args, &project, id, here)
        }
    })
}

/// Dispatches a task, or prints what would run.
fn start(args: Args, project: &Project, id: TaskId, here: PathBuf) -> Result<Exit> {
    let plan = args.plan.as_deref().map(|plan| read_plan(plan, &id, &here)).transpose()?;
    let prepared = dispatch::prepare(project, id, here, plan, args.request, !args.dry_run)?;
    if args.dry_run {
        return dry_run(&prepared, args.json);
    }
    let (task, name) = (prepared.task.clone(), prepared.record.name.clone());
    let summary = prepared.summary.clone();
    let (remarks, start) = prepared.start(project)?;
    remarks.iter().for_each(say);
    done(start_line(&task, &name, Some(&summary), start?))
}

/// The plan's text and its source.
fn read_plan(given: &str, id: &TaskId, here: &Path) -> Result<(String, PathBuf)> {
    if given == "-" {
        return Ok((text("-")?, "standard input".into()));
    }
    let path = here.join(given);
    let text = files::read(&path)?.ok_or_else(|| {
        Refusal::new(Exit::Data, format!("there is no plan for '{id}'"))
            .place(format!("{} does not exist", path.display()))
            .next("write it there, or give it with --plan - and a heredoc")
    })?;
    Ok((text, path))
}

/// Prints what would run.
fn dry_run(prepared: &Prepared, json: bool) -> Result<Exit> {
    let Prepared { task, record, prompt, .. } = prepared;
    let stdin = task.attempt(1).prompt_path();
    if !json {
        prepared.worktree.iter().for_each(|own| say(format!("worktree: {}", own.worktree)));
    }
    if let Some(place) = &record.place {
        let words = place::arguments(record);
        let words: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
        say(format!("on {place}: dispatch-spawn {} {}", task.id(), words.join(" ")));
        return Ok(Exit::Ok);
    }
    say(match &prepared.call {
        None => agent::call(record, prompt)?,
        Some(call) if json => {
            let argv = call.with_prompt(prompt, &stdin);
            let argv: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
            let unset = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
            let unset: Vec<String> = unset.filter(|name| is_host_variable(name)).collect();
            let stdin = (call.prompt == PromptVia::Stdin).then_some(&stdin);
            json!({
                "argv": argv,
                "held": sandbox::description(record),
                "stdin": stdin,
                "directory": record.directory,
                "environment": { TASK_DIR: task.side().directory() },
                "unset": unset,
                "prompt": prompt,
            })
            .to_string()
        }
        Some(call) => call.shell_line(prompt, &stdin),
    });
    let remarks = sandbox::description(record).into_iter().chain(record.demands());
    remarks.filter(|_| !json).for_each(|remark| say(format!("# {remark}")));
    Ok(Exit::Ok)
}

/// Resumes the remaining items of a task.
fn resume(request: &Request, project: &Project, task: &Task) -> Result<Exit> {
    let mut remarks = Vec::new();
    let resumed = resume::resume(project, task, request, &mut remarks);
    remarks.iter().for_each(say);
    done(match resumed? {
        None => format!("{} is done: nothing is left. Tell the user and stop.", task.id()),
        Some((name, start)) => start_line(task, &name, None, start),
    })
}

/// The line about the start of a worker, with the title and size of a new plan.
fn start_line(task: &Task, name: &str, summary: Option<&str>, start: Start) -> String {
    let id = task.id();
    let summary = summary.map(|it| format!(" ({})", sanitize(it))).unwrap_or_default();
    let what = match start {
        Start::Agent(call) => {
            return format!("{id}{summary}, which ends with this session: {call}");
        }
        Start::Process(None) => format!("{id}{summary} started with {name}"),
        Start::Process(Some(wait @ Wait::Held { .. })) => {
            format!("{id}{summary} is {wait}; it starts by itself when that is done")
        }
        Start::Process(Some(wait)) => {
            format!("{id}{summary} waits {wait}; it starts by itself")
        }
    };
    format!("{what}. Tell the user and stop; news wakes you.")
}
