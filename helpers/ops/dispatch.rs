//! Dispatch: a plan becomes a task with a worker.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::config::choose::{self, Chosen, How};
use crate::config::{Choice, Config};
use crate::dirs;
use crate::domain::{Access, Route, TaskId};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::{self, PlannedWorktree};
use crate::host::refuse_undecided;
use crate::ids::{now, random_hex};
use crate::ops::{self, Request, Start};
use crate::place;
use crate::plan::Plan;
use crate::process::{TASK_DIR, calling_host};
use crate::project::Project;
use crate::task::{self, Dependency, Record, State, Task, View};
use crate::text::{count, sanitize};
use crate::tools::{self, Invocation};
use crate::worker::{self, prompt, review};

/// A dispatch that passed every check and has changed nothing in the project.
#[derive(Debug)]
pub struct Prepared {
    /// The task.
    pub task: Task,
    /// The record that the task gets.
    pub record: Record,
    /// The prompt of its first attempt.
    pub prompt: String,
    /// The worker's command line; `None` for an agent.
    pub call: Option<Invocation>,
    /// The worktree that the worker gets.
    pub worktree: Option<PlannedWorktree>,
    /// The title of the plan and the number of its items.
    pub summary: String,
    plan: String,
    /// `true` if `plan` came with the request, so that it replaces the task's plan.md.
    replaces_plan: bool,
    choice: Choice,
    /// Remarks for the host, one line each.
    remarks: Vec<String>,
}

/// Checks the request for a task with this id in the canonical `directory`, with a plan and its source
/// (`None`: the task's plan.md). With `discover`, a model that only a CLI on this machine knows is added to the
/// config.
///
/// # Errors
/// Any obstacle that can be known in advance.
pub fn prepare(
    project: &Project,
    id: TaskId,
    directory: PathBuf,
    plan: Option<(String, PathBuf)>,
    request: Request,
    discover: bool,
) -> Result<Prepared> {
    if request.with_changes && !request.worktree && request.place.is_none() {
        return Refusal::new(Exit::Usage, "--with-changes is for a worktree")
            .refuse("add --worktree or --on, or leave it out");
    }
    let task = project.task(&id);
    refuse_taken(&task)?;
    let replaces_plan = plan.is_some();
    let (plan, source) = match plan {
        Some(given) => given,
        None => plan_of(&task, &directory)?,
    };
    let parsed = Plan::parse_new(&plan, &source)?;
    let items = count(parsed.items().len(), "item");
    let summary = parsed.title().map_or(items.clone(), |title| format!("{title}, {items}"));
    let asks = !replaces_plan && project.repository().is_some();
    let asked = source.clone();
    let is_tracked = asks.then(|| thread::spawn(move || git::is_tracked(&asked)));
    let after = predecessors(project, &id, &request.after)?;
    let config = Config::load()?;
    let choose = |name: Option<&str>| match discover {
        true => choose::by_name(&Config::load()?, name),
        false => Ok(choose::known(config.resolve(name)?)),
    };
    let chosen = choose(request.model.as_deref())?;
    let choice = &chosen.choice;
    let (usual, outer) = (choice.settings.usual_access(), calling_task()?);
    let access = request.access.unwrap_or(usual);
    if discover && outer.is_none() && access > usual {
        refuse_undecided(&format!("{access} access, where {} has {usual}", choice.backend))?;
    }
    let checks: Vec<_> = request.check.into_iter().chain(choice.check.clone()).collect();
    let budget = request.budget.map_or_else(|| config.budget_of(&choice.settings), Ok)?;
    // A task after one with a worktree starts from that task's branch.
    if let Some(name) = &request.place {
        place::refuse_here(name)?;
        config.place(name)?;
        if project.repository().is_none() {
            return Err(place::refuse_without_git(name).into());
        }
    }
    // At a place, the code is in a worktree.
    let worktree = request.worktree
        || request.place.is_some()
        || after.iter().any(|before| before.branch.is_some());
    let below = request.below.unwrap_or_default();
    let planned =
        worktree.then(|| git::plan_worktree(&id, &directory, &below, request.with_changes));
    let mut worktree = planned.transpose()?;
    if is_tracked.is_some_and(|asked| asked.join().unwrap_or(true)) {
        return Refusal::new(Exit::Data, format!("git tracks the plan of '{id}'"))
            .place(format!("{} came with the repository", source.display()))
            .refuse(format!("read it, then dispatch it with --plan {}", source.display()));
    }
    if request.continue_branch {
        let branch = after.iter().find_map(|before| before.branch.clone()).ok_or_else(|| {
            Refusal::new(Exit::Usage, "there is no branch to continue")
                .next("name a task with a worktree after --after")
        })?;
        worktree.iter_mut().for_each(|own| own.worktree.branch.clone_from(&branch));
    }
    let mut record = Record {
        format: task::FORMAT,
        nonce: random_hex()?,
        name: choice.name.clone(),
        model: choice.model.clone(),
        backend: choice.backend.clone(),
        route: Route::Cli,
        access,
        holder: None,
        place: request.place,
        directory: worktree.as_ref().map_or(directory, |own| own.directory.clone()),
        task_directory: task.side().directory().into(),
        role: choice.prompt.clone(),
        worktree: worktree.as_ref().map(|own| own.worktree.clone()),
        after,
        checks,
        limited: Vec::new(),
        review: request.review,
        budget,
        budget_from: 0,
        owner: outer.map_or_else(calling_host, |outer| outer.owner),
        created: now(),
        stop: false,
        may_dispatch: request.may_dispatch,
        keep: request.keep,
        is_elsewhere: project.is_elsewhere,
    };
    record.route = ops::route(choice, &record, request.agent)?;
    if record.may_dispatch && record.access != Access::Full {
        return Refusal::new(Exit::Usage, "only a process at full access can dispatch tasks")
            .place(format!("'{id}' would work at {}", record.access))
            .refuse("leave out --may-dispatch, or add --access full");
    }
    if record.keep && record.first_check().is_some() {
        return Refusal::new(Exit::Usage, "nothing can be kept running for this task")
            .place("a check or a review begins when everything of the worker has ended")
            .refuse("leave out --keep, or dispatch it without checks and a review");
    }
    let is_here = record.place.is_none();
    let call = worker::check_start(&task, &mut record, &choice.settings)?;
    if discover && is_here {
        ops::refuse_logged_out(&config, &record, &chosen)?;
    }
    let reviewer = record.review.as_deref().map(|name| choose(Some(name))).transpose()?;
    if let Some(chosen) = &reviewer {
        record.review = Some(chosen.choice.name.clone());
        if is_here {
            let reviewer = review::reviewer(&task, &record, &chosen.choice)?;
            if discover {
                ops::refuse_logged_out(&config, &reviewer, chosen)?;
            }
        }
    }
    if let (Some(name), true) = (&record.place, discover) {
        place::refuse_unfit(name, &Config::load()?, &record)?;
    }
    let prompt = prompt::first(&task, &record, &plan)?;
    // The host already knows about the default; report any other choice.
    let Chosen { choice, how, note, .. } = chosen;
    let note = note.filter(|_| how != How::Default);
    let remarks = note.into_iter().chain(reviewer.and_then(|it| it.note)).collect();
    Ok(Prepared {
        task,
        record,
        prompt,
        call,
        worktree,
        summary,
        plan,
        replaces_plan,
        choice,
        remarks,
    })
}

/// The record of the task whose worker called this helper; `None` if none did.
///
/// # Errors
/// [`Exit::Usage`] unless the person let that worker dispatch tasks.
pub fn calling_task() -> Result<Option<Record>> {
    let Some(directory) = std::env::var_os(TASK_DIR) else { return Ok(None) };
    let name = Path::new(&directory).file_name().unwrap_or_default().to_string_lossy();
    // A worker that broke its own files may start nothing either.
    let outer =
        || -> Result<_> { Project::find(Path::new("/"))?.existing_task(&name.parse()?)?.record() };
    let outer = outer().ok().flatten();
    match outer.filter(|outer| outer.may_dispatch && outer.access == Access::Full) {
        Some(outer) => Ok(Some(outer)),
        None => Refusal::new(Exit::Usage, "this worker may not start workers")
            .place(format!("'{}' was dispatched without --may-dispatch", sanitize(&name)))
            .refuse("do the work yourself"),
    }
}

impl Prepared {
    /// Creates the task and starts its worker. Returns remarks for the host, one line each, and the start
    /// of the worker, whose error leaves a task that can be resumed.
    ///
    /// # Errors
    /// The name was taken meanwhile; a file or the worktree cannot be created.
    pub fn start(self, project: &Project) -> Result<(Vec<String>, Result<Start>)> {
        project.prepare()?;
        let Self { task, record, .. } = &self;
        {
            // The directory of an earlier task was deleted in the project.
            if task.was_dispatched() && task.is_deleted() {
                task.remove(task.state_dir())?;
            }
            let _lock = task.lock()?;
            refuse_taken(task)?;
            if let Some(worktree) = &record.worktree {
                let is_own =
                    record.after.iter().all(|it| it.branch.as_ref() != Some(&worktree.branch));
                worktree.reserve(is_own)?;
            }
            let _plan_lock = task.side().lock()?;
            files::create_task_directory(task.side().ipc().directory())?;
            if self.replaces_plan || !task.side().plan_path().is_file() {
                files::publish(&task.side().plan_path(), self.plan.as_bytes())?;
            }
            files::publish_copy(&task.side().prompt_path(), self.prompt.as_bytes())?;
            fault::point("spawn", "prepared");
            ensure!(task.claim(record, &self.plan)?, "the task id was taken meanwhile");
        }
        fault::point("spawn", "claimed");
        let start = ops::launch(task, record);
        let mut remarks = self.remarks;
        if self.call.is_some() {
            remarks.extend(obsolete_flags(&self.choice));
        }
        remarks.extend(self.worktree.into_iter().flat_map(PlannedWorktree::remarks));
        Ok((remarks, start))
    }
}

/// Says, once for each backend, that obsolete flags in its command are replaced.
fn obsolete_flags(choice: &Choice) -> Vec<String> {
    let backend = &choice.backend;
    let flags = tools::obsolete_flags(&choice.settings);
    let said = || {
        let config = dirs::config_path()?;
        files::publish_new(&config.with_file_name(format!(".old-flags-of-{backend}")), b"")
    };
    // If this cannot be noted, stay silent rather than repeat it forever.
    if flags.is_empty() || !said().unwrap_or(false) {
        return Vec::new();
    }
    let line = |(flag, replacement)| {
        format!("{backend} no longer accepts {flag}; using {replacement} instead")
    };
    flags.into_iter().map(line).collect()
}

/// The tasks to wait for, as they are now.
fn predecessors(project: &Project, id: &TaskId, names: &[TaskId]) -> Result<Vec<Dependency>> {
    let mut predecessors = Vec::new();
    for other in names {
        if other == id {
            let what = format!("'{id}' cannot wait for itself");
            return Refusal::new(Exit::Usage, what).refuse("name another task after --after");
        }
        let record = project.existing_task(other)?.record()?.context("the task has no record")?;
        let branch = record.worktree.map(|worktree| worktree.branch);
        let before = Dependency { task: other.to_string(), nonce: record.nonce, branch };
        if !predecessors.contains(&before) {
            predecessors.push(before);
        }
    }
    Ok(predecessors)
}

/// The text of the task's plan.md and its path.
fn plan_of(task: &Task, here: &Path) -> Result<(String, PathBuf)> {
    let path = task.side().plan_path();
    if let Some(text) = task.side().plan_text()? {
        return Ok((text, path));
    }
    // A model in a subdirectory may have written the plan there instead of the project's root.
    let beside = here.join(".dispatch/tasks").join(task.id().as_str()).join("plan.md");
    let found = files::read_foreign(&beside)?;
    let found = found.map(|bytes| files::decode(bytes, &beside)).transpose()?;
    found.map(|text| (text, beside)).ok_or_else(|| {
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
        return Refusal::new(Exit::CannotCreate, format!("'{id}' has files of another task"))
            .place(format!(
                "{}: it came with the project, or was copied",
                side.directory().display()
            ))
            .refuse(format!("use '{free}', or move that directory away"));
    }
    let view = task.view().ok();
    let state = view.as_ref().map_or("there".into(), |view| view.state.to_string());
    let is_resumable = view.is_some_and(|View { state, .. }| {
        state.has_work_left() || state.is_waiting() || state == State::Stopped
    });
    let resume = match is_resumable {
        true => format!(", or dispatch-spawn {id} --resume for what is left of it"),
        false => String::new(),
    };
    Refusal::new(Exit::CannotCreate, format!("the task id '{id}' is taken"))
        .place(format!("{} is {state}", side.directory().display()))
        .refuse(format!("use '{free}'{resume}"))
}
