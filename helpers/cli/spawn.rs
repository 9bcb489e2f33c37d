//! `dispatch-spawn`: starts or resumes a task's worker and returns at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::json;

use crate::cli::{directory, run, say, text};
use crate::config::choose::{self, How};
use crate::config::{Choice, Config};
use crate::domain::{Access, PromptVia, Route, TaskId};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::git;
use crate::ids::{now, random_hex};
use crate::plan::{Marker, Plan};
use crate::process::{Life, TASK_DIR, calling_host, is_host_variable, worker_helper};
use crate::project::Project;
use crate::task::{self, Dependency, Record, State, Task, Wait};
use crate::tools::{self, Invocation, Session, gap, is_known};
use crate::worker::supervise::{self, StartOutcome};
use crate::worker::{agent, prompt, run};

/// Placeholder for the session id in a dry run.
const SESSION: &str = "00000000-0000-4000-8000-000000000000";

/// Start or resume a task's worker and return at once
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-spawn",
    version = super::VERSION,
    after_help = "Example:\n  dispatch-spawn fix-login-bug --model opus\nThe plan is .dispatch/tasks/fix-login-bug/plan.md."
)]
pub struct Args {
    /// The task's id: lower-case words joined by '-'
    #[arg(value_name = "TASK", required_unless_present = "supervise")]
    task: Option<String>,
    /// Model or alias from the config [default: the config's default]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Give the worker its own git worktree and branch
    #[arg(long)]
    worktree: bool,
    /// What the worker may do [default: the backend's access, else write]
    #[arg(long, value_enum)]
    access: Option<Access>,
    /// Read the plan from FILE or standard input [default: the task's plan.md]
    #[arg(long, value_name = "FILE|-")]
    plan: Option<String>,
    /// Start when TASK is done (repeatable)
    #[arg(long, value_name = "TASK")]
    after: Vec<String>,
    /// Resume a task's remaining items (`--model` picks another worker); starts a waiting task now
    #[arg(long, conflicts_with_all = ["plan", "worktree", "after", "dry_run"])]
    resume: bool,
    /// Tick this item, named by number or words, because the person does not want it (repeatable)
    #[arg(long, value_name = "ITEM", requires = "resume")]
    skip: Vec<String>,
    /// Print what would run, and start nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
    /// Allow this call from inside a worker
    #[arg(long)]
    nested: bool,
    /// Work in this directory
    #[arg(short = 'C', value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Run as the supervisor of the task with this state directory
    #[arg(long, value_name = "STATE", hide = true)]
    supervise: Option<PathBuf>,
    /// Start the worker only if an answer waits for it
    #[arg(long, hide = true)]
    if_answered: bool,
}

/// Runs `dispatch-spawn`.
pub fn main() -> ExitCode {
    run(|args: Args| {
        if let Some(directory) = &args.supervise {
            // The starter reads standard output; standard error leads nowhere.
            return Ok(match supervise::run(directory, args.if_answered) {
                Ok(()) => Exit::Ok,
                Err(error) => {
                    let exit = crate::error::exit_code(&error);
                    say(format!("{}\n{error:#}", exit as u8));
                    exit
                }
            });
        }
        if std::env::var_os(TASK_DIR).is_some() && !args.nested {
            return Err(Refusal::new(Exit::Usage, "a worker cannot start workers")
                .next("do the work yourself, or add --nested if the task asks for workers")
                .into());
        }
        let id: TaskId = args.task.as_deref().unwrap_or_default().parse()?;
        let here = directory(args.directory.as_deref())?;
        let project = Project::find(&here)?;
        if args.resume {
            project.refuse_moved()?;
            resume(&args, &project, &project.existing_task(&id)?)
        } else {
            // A dry run sets nothing aside.
            let project = if args.dry_run { project } else { project.for_dispatch()? };
            start(&args, &project, id, here)
        }
    })
}

/// Checks everything, then creates the task, then starts its worker.
fn start(args: &Args, project: &Project, id: TaskId, here: PathBuf) -> Result<Exit> {
    let task = project.task(&id);
    refuse_taken(&task)?;
    let (plan, source) = read_plan(args.plan.as_deref(), &task, &here)?;
    Plan::parse_new(&plan, &source)?;
    let after = predecessors(project, &id, &args.after)?;
    let config = Config::load()?;
    // A dry run adds nothing to the config.
    let chosen = match args.dry_run {
        true => choose::known(config.resolve(args.model.as_deref())?),
        false => choose::by_name(&config, args.model.as_deref())?,
    };
    let choice = chosen.choice;
    // A task after one with a worktree starts from that task's branch.
    let worktree = args.worktree || after.iter().any(|before| before.branch.is_some());
    let route = route(&choice, worktree, !after.is_empty())?;
    let own = worktree.then(|| git::plan_worktree(&id, &here)).transpose()?;
    let record = Record {
        format: task::FORMAT,
        nonce: random_hex()?,
        name: choice.name.clone(),
        model: choice.model.clone(),
        backend: choice.backend.clone(),
        route,
        access: access(args, &choice)?.unwrap_or(Access::Write),
        directory: own.as_ref().map_or(here, |own| own.directory.clone()),
        task_directory: task.side().directory().into(),
        role: choice.prompt.clone(),
        worktree: own.as_ref().map(|own| own.worktree.clone()),
        after,
        owner: calling_host(),
        created: now(),
        stop: false,
    };
    let call = check_start(&task, &record, &choice)?;
    let prompt = prompt::first(&task, &record, &plan)?;
    if args.dry_run {
        if !args.json {
            own.iter().for_each(|own| say(own.worktree.command()));
        }
        return dry_run(args.json, &task, &record, call.as_ref(), &prompt);
    }

    project.prepare()?;
    let mut remarks = own.map_or_else(Vec::new, |own| own.remarks);
    {
        free_state(&task)?;
        let _lock = task.lock()?;
        refuse_taken(&task)?;
        if let Some(worktree) = &record.worktree {
            remarks.extend(worktree.create()?);
        }
        let _plan_lock = task.side().lock()?;
        files::create_task_directory(task.side().ipc().directory())?;
        if args.plan.is_some() || !task.side().plan_path().is_file() {
            files::publish(&task.side().plan_path(), plan.as_bytes())?;
        }
        files::publish(&task.side().prompt_path(), prompt.as_bytes())?;
        fault::point("spawn", "prepared");
        if !task.claim(&record, &plan)? {
            return refuse_taken(&task).map(|()| Exit::CannotCreate);
        }
    }
    fault::point("spawn", "claimed");
    // The host already knows about the default; report any other choice.
    if chosen.how != How::Default {
        chosen.note.iter().for_each(say);
    }
    if call.is_some() {
        name_obsolete_flags(&config, &choice);
    }
    remarks.iter().for_each(say);
    launch(&task, &record)
}

/// Reports, once for each backend, that obsolete flags in its command are replaced.
fn name_obsolete_flags(config: &Config, choice: &Choice) {
    let flags = tools::obsolete_flags(&choice.settings);
    let said = config.path().with_file_name(format!(".old-flags-of-{}", choice.backend));
    // If this cannot be noted, stay silent rather than repeat it forever.
    if !flags.is_empty() && files::publish_new(&said, b"").unwrap_or(false) {
        for (flag, replacement) in flags {
            let backend = &choice.backend;
            say(format!("{backend} no longer accepts {flag}; using {replacement} instead"));
        }
    }
}

/// The command of a worker process; `None` for an agent.
///
/// # Errors
/// Any obstacle to the start that can be known in advance.
fn check_start(task: &Task, record: &Record, choice: &Choice) -> Result<Option<Invocation>> {
    if record.route == Route::Agent {
        return Ok(None);
    }
    let backend = &record.backend;
    if let Some(why) = gap(backend, &choice.settings, record.access) {
        let access = record.access;
        return Err(Refusal::new(
            Exit::Unavailable,
            format!("{backend}'s workers cannot be held to '{access}' access"),
        )
        .place(why)
        .next(format!(
            "if the user lets them do anything: dispatch-config set-access {backend} full"
        ))
        .into());
    }
    run::call(task, record, &worker_helper()?, Session::New(SESSION)).map(Some)
}

/// The requested access, else the backend's access in the config.
fn access(args: &Args, choice: &Choice) -> Result<Option<Access>, Refusal> {
    if args.access.is_some() && choice.settings.command.is_some() {
        let backend = &choice.backend;
        return Err(Refusal::new(
            Exit::Data,
            format!("{backend} has a `command:`, so its flags decide access"),
        )
        .place(format!("backends.{backend}.command of the config"))
        .next("omit --access, or change the flags there"));
    }
    Ok(args.access.or(choice.settings.access))
}

/// Prints what would run.
fn dry_run(
    json: bool,
    task: &Task,
    record: &Record,
    call: Option<&Invocation>,
    prompt: &str,
) -> Result<Exit> {
    let stdin = task.attempt(1).prompt_path();
    say(match call {
        None => agent::call(task, record, prompt)?,
        Some(call) if json => {
            let argv = call.with_prompt(prompt, &stdin);
            let argv: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
            let unset = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
            let unset: Vec<String> = unset.filter(|name| is_host_variable(name)).collect();
            let stdin = (call.prompt == PromptVia::Stdin).then_some(&stdin);
            json!({
                "argv": argv,
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
    Ok(Exit::Ok)
}

/// Resumes the remaining items with the same worker or another one.
fn resume(args: &Args, project: &Project, task: &Task) -> Result<Exit> {
    let view = task.view()?;
    let id = task.id();
    // A supervisor that has recorded its worker's end is about to exit.
    let waits = view.state.is_waiting();
    let running = view.attempt.is_some() && view.exit.is_none() && !waits;
    if view.record.route == Route::Cli
        && running
        && let Some(process) = view.processes.iter().find(|process| process.life() != Life::Dead)
    {
        return Err(Refusal::new(Exit::TryAgain, format!("the worker of '{id}' is still running"))
            .place(format!("pid {process}"))
            .next("answer or note what it should know, or wait until it ends")
            .into());
    }
    supervise::refuse_queued(&view)?;
    if view.state == State::Done {
        return Err(Refusal::new(Exit::Data, format!("'{id}' is already done"))
            .next("dispatch a new task for further work")
            .into());
    }
    // Check everything before changing anything.
    let mut left = view.plan;
    left.restore()?;
    skip(&mut left, &args.skip)?;
    let nothing_left = !args.skip.is_empty() && left.complete();
    if nothing_left && waits {
        return Err(Refusal::new(Exit::Data, format!("nothing would be left of '{id}'"))
            .place("the task waits and would start anyway")
            .next(format!("stop it: dispatch-reconcile stop {id}"))
            .into());
    }
    let mut record = view.record;
    if args.model.is_some() || args.access.is_some() {
        change_worker(args, task, &mut record)?;
    }
    if !args.skip.is_empty() {
        task.repair_plan(|plan| skip(plan, &args.skip))?;
    }
    if nothing_left {
        let items = args.skip.join(", ");
        let what = format!("The user skipped all remaining items: {items}.");
        task.side().ipc().finish(&what)?;
        say(format!("{id} is done: nothing is left. Tell the user and stop."));
        return Ok(Exit::Ok);
    }
    // The person says so: work may start here.
    project.prepare()?;
    if record.stop {
        record.stop = false;
        supervise::unpark(task)?;
        task.change_record(|record| record.stop = false)?;
    }
    if waits && record.route == Route::Cli {
        say(start_line(task, &record, supervise::take_over(task)?));
        return Ok(Exit::Ok);
    }
    launch(task, &record)
}

fn skip(plan: &mut Plan, items: &[String]) -> Result<(), Refusal> {
    for name in items {
        let item = plan.item(name)?;
        if item.marker == Marker::Done {
            return Err(Refusal::new(Exit::Data, format!("item {} is done already", item.number))
                .next("call again without it"));
        }
    }
    let mut items = items.iter();
    items.try_for_each(|name| plan.mark(name, Marker::Done, "skipped: the user does not want it"))
}

/// Records another worker, or other access, for the rest of the task.
fn change_worker(args: &Args, task: &Task, record: &mut Record) -> Result<()> {
    let config = Config::load()?;
    let name = args.model.as_deref().unwrap_or(&record.name);
    let chosen = choose::by_name(&config, Some(name))?;
    chosen.note.iter().for_each(say);
    let choice = chosen.choice;
    let (worktree, after) = (record.worktree.is_some(), !record.after.is_empty());
    let new = Record {
        name: choice.name.clone(),
        model: choice.model.clone(),
        backend: choice.backend.clone(),
        route: route(&choice, worktree, after)?,
        access: access(args, &choice)?.unwrap_or(record.access),
        role: choice.prompt.clone(),
        ..record.clone()
    };
    check_start(task, &new, &choice)?;
    task.change_record(|record| {
        record.name.clone_from(&new.name);
        record.model.clone_from(&new.model);
        record.backend.clone_from(&new.backend);
        record.route = new.route;
        record.role.clone_from(&new.role);
        record.access = new.access;
    })?;
    *record = new;
    Ok(())
}

fn launch(task: &Task, record: &Record) -> Result<Exit> {
    match record.route {
        Route::Cli => say(start_line(task, record, supervise::start(task)?)),
        Route::Agent => {
            say(format!("{}: {}", task.id(), agent::start(task, record)?));
        }
    }
    Ok(Exit::Ok)
}

/// The line about the result of a start.
fn start_line(task: &Task, record: &Record, started: StartOutcome) -> String {
    let id = task.id();
    let what = match started {
        StartOutcome::Running => format!("{id} started with {}", record.name),
        StartOutcome::Waiting(wait @ Wait::Held { .. }) => {
            format!("{id} is {wait}; it starts by itself when that is done")
        }
        StartOutcome::Waiting(wait) => format!("{id} waits {wait}; it starts by itself"),
    };
    format!("{what}. Tell the user and stop; news wakes you.")
}

/// The route: by the config, else `agent` for Claude inside Claude Code, which has its own agents.
fn route(choice: &Choice, worktree: bool, after: bool) -> Result<Route> {
    let backend = &choice.backend;
    if (worktree || after) && choice.settings.route == Some(Route::Agent) {
        let (what, place, option) = if worktree {
            (
                "an agent of the host cannot work in our worktree",
                "the Agent tool's own begins at origin/HEAD and hides the task's directory",
                "--worktree",
            )
        } else {
            (
                "an agent of the host cannot wait for other tasks",
                "only the host starts one, and it does not wait",
                "--after",
            )
        };
        return Err(Refusal::new(Exit::Usage, what)
            .place(place)
            .next(format!(
                "dispatch without {option}, or take 'route: agent' out of backend '{backend}'"
            ))
            .into());
    }
    let inside_claude = calling_host().is_some() && backend == "claude" && is_known("claude");
    let usual = if inside_claude && !worktree && !after { Route::Agent } else { Route::Cli };
    Ok(choice.settings.route.unwrap_or(usual))
}

/// The tasks named by `--after`, as they are now.
fn predecessors(project: &Project, id: &TaskId, names: &[String]) -> Result<Vec<Dependency>> {
    let mut predecessors = Vec::new();
    for name in names {
        let other: TaskId = name.parse()?;
        if other == *id {
            let what = format!("'{id}' cannot wait for itself");
            return Err(Refusal::new(Exit::Usage, what)
                .next("name another task after --after")
                .into());
        }
        let record = project.existing_task(&other)?.record()?.context("the task has no record")?;
        let branch = record.worktree.map(|worktree| worktree.branch);
        let before = Dependency { task: name.clone(), nonce: record.nonce, branch };
        if !predecessors.contains(&before) {
            predecessors.push(before);
        }
    }
    Ok(predecessors)
}

/// The plan's text and its source.
fn read_plan(given: Option<&str>, task: &Task, here: &Path) -> Result<(String, PathBuf)> {
    let path = match given {
        Some("-") => return Ok((text("-")?, "standard input".into())),
        Some(file) => here.join(file),
        None => task.side().plan_path(),
    };
    // A model in a subdirectory may have written the plan there instead of the project's root.
    let beside = here.join(".dispatch/tasks").join(task.id().as_str()).join("plan.md");
    let found = match given {
        Some(_) => files::read(&path)?.map(|text| (text, path.clone())),
        None => match task.side().plan_text()? {
            None => files::read_foreign(&beside)?
                .map(|bytes| files::decode(bytes, &beside).map(|text| (text, beside.clone())))
                .transpose()?,
            found => found.map(|text| (text, path.clone())),
        },
    };
    found.ok_or_else(|| {
        Refusal::new(Exit::Data, format!("there is no plan for '{}'", task.id()))
            .place(format!("{} does not exist", path.display()))
            .next("write it there, or give it with --plan - and a heredoc")
            .into()
    })
}

/// Refuses an id that a task has, and files in its place that no dispatch of this user made.
fn refuse_taken(task: &Task) -> Result<()> {
    let (id, side) = (task.id(), task.side());
    side.refuse_symlinks()?;
    task.refuse_lost_record()?;
    let is_there = task.was_dispatched() && !task.is_deleted();
    // A killed dispatch leaves a state directory without a record.
    if !is_there && (task.state_dir().exists() && !task.was_dispatched() || !side.has_files()) {
        return Ok(());
    }
    let free = (2..)
        .map(|n| format!("{id}-{n}"))
        .find(|other| !side.directory().with_file_name(other).exists());
    let free = free.unwrap_or_default();
    if !is_there {
        return Err(Refusal::new(Exit::CannotCreate, format!("'{id}' has files of another task"))
            .place(format!(
                "{}: it came with the project, or was copied",
                side.directory().display()
            ))
            .next(format!("use '{free}', or move that directory away"))
            .into());
    }
    let state = task.view().map_or_else(|_| "there".into(), |view| view.state.to_string());
    Err(Refusal::new(Exit::CannotCreate, format!("the task id '{id}' is taken"))
        .place(format!("{} is {state}", side.directory().display()))
        .next(format!("use '{free}', or dispatch-spawn {id} --resume for what is left of it"))
        .into())
}

/// Removes the person's side of an earlier task whose directory in the project was deleted.
fn free_state(task: &Task) -> Result<()> {
    if !task.was_dispatched() || !task.is_deleted() {
        return Ok(());
    }
    let aside = task.state_dir().with_file_name(format!(".{}.removed", task.id()));
    files::remove_directory(&aside)?;
    std::fs::rename(task.state_dir(), &aside)
        .with_context(|| format!("cannot remove {}", task.state_dir().display()))?;
    files::remove_directory(&aside)
}
