//! Resume: a later attempt works on a task's remaining items, with the same worker or another one.

use std::time::Duration;

use anyhow::Result;

use crate::config::{Config, choose};
use crate::domain::{Access, HERE, Route, Worktree};
use crate::error::{Exit, Refusal};
use crate::files::Lock;
use crate::git::short_id;
use crate::host::refuse_undecided;
use crate::ids::{now, random_hex};
use crate::ops::{self, Request, Start};
use crate::place::{self, Demand, refuse_unfit};
use crate::plan::{Marker, Plan};
use crate::process::calling_host;
use crate::project::Project;
use crate::task::{ExitRecord, Record, Remote, State, Task, View};
use crate::worker::{self, supervise};

/// How long a supervisor that has recorded the end of its worker may take to exit.
const EXIT: Duration = Duration::from_secs(10);

/// Resumes a task. Adds remarks for the host, one line each, also if it fails later. Returns the name of the
/// worker and its start; `None` if the person skipped all remaining items, so that the task is done.
///
/// # Errors
/// [`Exit::TryAgain`] if its worker is running; [`Exit::Data`] if nothing is left to do.
pub fn resume(
    project: &Project,
    task: &Task,
    request: &Request,
    remarks: &mut Vec<String>,
) -> Result<Option<(String, Start)>> {
    let (view, id) = (task.view()?, task.id());
    let now = view.record.place.as_deref().unwrap_or(HERE);
    if let Some(to) = request.place.as_ref().filter(|to| *to != now) {
        refuse_done(&view)?;
        plan_without(task, &request.skip)?;
        remarks.extend(move_to(task, &view, to)?);
        let request = Request { place: None, ..request.clone() };
        return resume(project, task, &request, remarks);
    }
    if let Some(name) = &view.record.place {
        return resume_there(project, task, &view, name, request, remarks);
    }
    let waits = view.state.is_waiting();
    // An attempt without an end is the one that begins now.
    let ended = view.exit.as_ref().and(view.attempt.as_ref());
    let before = ended.map_or(0, |attempt| attempt.number);
    // A supervisor that has recorded its worker's end is about to exit.
    let is_busy = view.is_alive() || view.is_checking() && !view.processes.is_empty();
    if view.record.route == Route::Cli && is_busy && !waits {
        return Refusal::new(Exit::TryAgain, format!("the worker of '{id}' is still running"))
            .place(format!("dispatch-reconcile show {id} says what it does"))
            .refuse("answer or note what it should know, or wait until it ends");
    }
    refuse_done(&view)?;
    let left = plan_without(task, &request.skip)?;
    let nothing_left = !request.skip.is_empty() && left.complete();
    if nothing_left && waits {
        return Refusal::new(Exit::Data, format!("nothing would be left of '{id}'"))
            .place("the task waits and would start anyway")
            .refuse(format!("stop it: dispatch-reconcile stop {id}"));
    }
    let mut record = view.record;
    record.budget = request.budget.unwrap_or(record.budget);
    // Only a process is held to a budget.
    let becomes_process = request.budget.is_some() && record.route == Route::Agent;
    if request.model.is_some() || request.access.is_some() || becomes_process {
        record = change_worker(task, record, request, remarks)?;
    }
    let (usage, time) = task.spent(&record, u32::MAX)?;
    let is_used_up = record.budget.parts(&usage, time).iter().any(|(_, is_used_up)| *is_used_up);
    if request.budget.is_some() {
        let settings = Config::load()?.resolve(Some(&record.name))?.settings;
        worker::refuse_unmeasured(&record, &settings)?;
    }
    // The person grants as much again.
    if request.budget.is_some() || is_used_up {
        record.budget_from = task.last_attempt().map_or(0, |it| it.number + 1);
        task.change_record(|now| {
            (now.budget, now.budget_from) = (record.budget, record.budget_from);
        })?;
    }
    if !request.skip.is_empty() {
        task.repair_plan(|plan| skip(plan, &request.skip))?;
    }
    if nothing_left {
        let items = request.skip.join(", ");
        task.side().ipc().finish(&format!("The user skipped all remaining items: {items}."))?;
        if let Some(attempt) = task.last_attempt() {
            task.freeze(&attempt)?;
        }
        if record.first_check().is_none() {
            return Ok(None);
        }
    }
    // The person says so: work may start here.
    project.prepare()?;
    calling_host().map_or(Ok(false), |host| project.adopt_task(task, &host))?;
    if record.stop {
        record.stop = false;
        supervise::unpark(task)?;
        task.change_record(|record| record.stop = false)?;
    }
    let start = match waits && record.route == Route::Cli {
        true => Start::Process(supervise::take_over(task, before)?),
        false => ops::launch(task, &record)?,
    };
    Ok(Some((record.name, start)))
}

fn refuse_done(view: &View) -> Result<()> {
    if view.state != State::Done {
        return Ok(());
    }
    Refusal::new(Exit::Data, format!("'{}' is already done", view.task.id()))
        .refuse("dispatch a new task for further work")
}

/// Resumes a task at its place: the place does so itself.
fn resume_there(
    project: &Project,
    task: &Task,
    view: &View,
    name: &str,
    request: &Request,
    remarks: &mut Vec<String>,
) -> Result<Option<(String, Start)>> {
    let id = task.id();
    if view.is_open() && view.state != State::Parked {
        let gone = match view.state {
            State::Unreachable => {
                format!("; if {name} is gone for good: dispatch-spawn {id} --resume --on {HERE}")
            }
            _ => String::new(),
        };
        return Refusal::new(Exit::TryAgain, format!("'{id}' is still running on {name}"))
            .place(format!("it is {} {}", view.state, view.because()).trim_end().to_owned())
            .refuse(format!("wait until it ends{gone}"));
    }
    refuse_done(view)?;
    let mut record = view.record.clone();
    if request.model.is_some() || request.access.is_some() {
        record = change_worker(task, record, request, remarks)?;
    }
    record.budget = request.budget.unwrap_or(record.budget);
    let was_sent = view.remote.as_ref().is_some_and(|it| it.sent);
    if was_sent {
        let mut arguments = Vec::new();
        if request.model.is_some() || request.access.is_some() {
            let access = record.access.to_string();
            arguments.extend(["--model".into(), record.name.clone(), "--access".into(), access]);
        }
        let budget = request.budget.map(|it| ["--budget".into(), it.to_string()]);
        arguments.extend(budget.into_iter().flatten());
        arguments.extend(request.skip.iter().flat_map(|it| ["--skip".into(), it.clone()]));
        Demand::record(task, arguments)?;
    } else {
        if !request.skip.is_empty() {
            task.repair_plan(|plan| skip(plan, &request.skip))?;
        }
        let remote = view.remote.clone().unwrap_or_default();
        task.set_remote(Some(&Remote { error: None, ..remote }))?;
    }
    project.prepare()?;
    calling_host().map_or(Ok(false), |host| project.adopt_task(task, &host))?;
    let is_waiting = view.state.is_waiting();
    task.change_record(|now| {
        (now.stop, now.budget) = (false, record.budget);
        if is_waiting {
            now.after.clear();
        }
    })?;
    // The move that abandoned the task there was not finished.
    place::keep(task, &record, name)?;
    let start = ops::launch(task, &record)?;
    Ok(Some((record.name, start)))
}

/// Moves a task away from its place, or to one, with its plan as it was mirrored last and the commits
/// that were fetched. What may run at the old place is no longer heard, and is stopped when the place
/// answers: the line says so.
fn move_to(task: &Task, view: &View, to: &str) -> Result<Option<String>> {
    let (id, config) = (task.id(), Config::load()?);
    let mut record = view.record.clone();
    if record.worktree.is_none() || record.route == Route::Agent {
        return Refusal::new(Exit::Usage, format!("'{id}' cannot be moved to '{to}'"))
            .place("only a task with a branch of its own can")
            .refuse("dispatch the rest of its plan as a new task with --on");
    }
    record.place = Some(to).filter(|to| *to != HERE).map(str::to_owned);
    if let Some(name) = &record.place {
        config.place(name)?;
        refuse_unfit(name, &config, &record)?;
    }
    match &view.record.place {
        Some(name) if view.is_open() => {
            refuse_undecided(&format!("to begin '{id}' again although {name} may still run it"))?;
        }
        None if !view.processes.is_empty() => {
            return Refusal::new(Exit::TryAgain, format!("'{id}' is {}", view.state))
                .refuse(format!("stop it first: dispatch-reconcile stop {id}"));
        }
        _ => {}
    }
    let settings = config.resolve(Some(&record.name))?.settings;
    worker::check_start(task, &mut record, &settings)?;
    let mut remark = None;
    // Held until the record names the new place, so that nobody follows or starts the task meanwhile.
    let _run_lock;
    if let Some(name) = &view.record.place {
        let (run_lock, may_run) = place::leave(view, name)?;
        _run_lock = run_lock;
        let latest = record.worktree.as_ref().map(Worktree::latest).transpose()?;
        remark = latest.filter(|_| may_run).map(|commit| {
            format!(
                "{name} may still run {id}, and has to stop it as soon as it answers; the worker {} continues from {}, the last commit that is here",
                record.place.as_deref().map_or(HERE.into(), |it| format!("on {it}")),
                short_id(&commit)
            )
        });
    } else if let Some(worktree) = &record.worktree {
        _run_lock = Lock::take(&task.run_lock_path(), EXIT)?;
        let kept = worktree.set_aside()?;
        remark = kept.map(|it| format!("what is not committed stays here, in {}", it.display()));
    }
    if let Some(attempt) = task.last_attempt().filter(|it| matches!(it.exit(), Ok(None))) {
        task.set_exit(&attempt, &ExitRecord { at: now(), ..ExitRecord::default() })?;
    }
    let before = task.last_attempt().map_or(0, |it| it.number);
    let nonce = Some(random_hex()?);
    let remote = record.place.as_ref().map(|_| Remote { before, nonce, ..Remote::default() });
    task.set_remote(remote.as_ref())?;
    task.set_wait(None)?;
    task.change_record(|old| (old.place, old.holder) = (record.place, record.holder))?;
    Ok(remark)
}

/// The plan with these items skipped, as the person may have edited it since the end.
fn plan_without(task: &Task, items: &[String]) -> Result<Plan> {
    let mut plan = task.plan()?;
    plan.restore()?;
    skip(&mut plan, items)?;
    Ok(plan)
}

fn skip(plan: &mut Plan, items: &[String]) -> Result<(), Refusal> {
    for name in items {
        let item = plan.item(name)?;
        if item.marker == Marker::Done {
            return Refusal::new(Exit::Data, format!("item {} is done already", item.number))
                .refuse("call again without it");
        }
        plan.mark(name, Marker::Done, "skipped: the user does not want it")?;
    }
    Ok(())
}

/// Records another worker, or other access, for the rest of the task.
fn change_worker(
    task: &Task,
    record: Record,
    request: &Request,
    remarks: &mut Vec<String>,
) -> Result<Record> {
    let config = Config::load()?;
    let name = request.model.as_deref().unwrap_or(&record.name);
    let chosen = choose::by_name(&config, Some(name))?;
    let choice = &chosen.choice;
    // Another worker never gets more than is usual for it, nor more than to read if the task had no more.
    let kept = match record.access {
        Access::Read => Access::Read,
        _ => choice.settings.usual_access(),
    };
    let agreed = choice.settings.access.unwrap_or(kept);
    let access = request.access.unwrap_or(agreed);
    let is_same = choice.backend == record.backend;
    if access > agreed && !(is_same && access <= record.access) {
        refuse_undecided(&format!("{access} access, where {} has {agreed}", choice.backend))?;
    }
    let mut new = Record {
        name: choice.name.clone(),
        model: choice.model.clone(),
        backend: choice.backend.clone(),
        access,
        role: choice.prompt.clone(),
        limited: Vec::new(),
        ..record
    };
    new.route = ops::route(choice, &new, false)?;
    match &new.place {
        Some(name) => refuse_unfit(name, &config, &new)?,
        None => {
            worker::check_start(task, &mut new, &choice.settings)?;
            ops::refuse_logged_out(&config, &new, &chosen)?;
        }
    }
    task.change_record(|record| record.set_worker(new.clone()))?;
    remarks.extend(chosen.note);
    Ok(new)
}
