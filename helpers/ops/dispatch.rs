//! Dispatch: a plan becomes a task with a worker.

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};

use crate::config::choose::{self, Chosen, How};
use crate::config::{Choice, Config};
use crate::domain::{Access, TaskId};
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
    plan: String,
    /// `true` if `plan` came with the request, so that it replaces the task's plan.md.
    replaces_plan: bool,
    chosen: Chosen,
    /// A remark about the reviewer.
    note: Option<String>,
    config: Config,
}

/// A task with a worker, or one that waits for it.
#[derive(Debug)]
pub struct Dispatched {
    /// The start of the worker; its error leaves a task that can be resumed.
    pub start: Result<Start>,
    /// The title of the plan and the number of its items.
    pub summary: String,
    /// Remarks for the host, one line each.
    pub remarks: Vec<String>,
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
    Plan::parse_new(&plan, &source)?;
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
        if request.keep || request.may_dispatch {
            return Refusal::new(Exit::Usage, "a task at a place keeps and dispatches nothing")
                .place(format!("'{id}' would work on {name}"))
                .refuse("leave out --keep and --may-dispatch, or --on");
        }
    }
    // At a place, the code is in a worktree.
    let worktree = request.worktree
        || request.place.is_some()
        || after.iter().any(|before| before.branch.is_some());
    let needs = [
        !checks.is_empty() || request.review.is_some(),
        !budget.is_none(),
        worktree,
        !after.is_empty(),
        request.may_dispatch || request.keep,
    ];
    let route = ops::route(choice, request.agent, needs)?;
    let planned = worktree.then(|| {
        git::plan_worktree(
            &id,
            &directory,
            &request.below.unwrap_or_default(),
            request.with_changes,
        )
    });
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
        route,
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
        owner: match outer {
            Some(outer) => outer.owner,
            None => calling_host(),
        },
        created: now(),
        stop: false,
        may_dispatch: request.may_dispatch,
        keep: request.keep,
        is_elsewhere: project.is_elsewhere(),
    };
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
    let call = match is_here {
        true => worker::check_start(&task, &mut record, &choice.settings)?,
        false => None,
    };
    if discover && is_here {
        ops::refuse_logged_out(&config, &record, &chosen)?;
    }
    let mut note = None;
    if let (Some(name), false) = (&record.review, is_here) {
        record.review = Some(choose(Some(name))?.choice.name);
    } else if let Some(name) = record.review.take() {
        let chosen = choose(Some(&name))?;
        let reviewer = review::reviewer(&task, &record, &chosen.choice)?;
        if discover {
            ops::refuse_logged_out(&config, &reviewer, &chosen)?;
        }
        (record.review, note) = (Some(reviewer.name), chosen.note);
    }
    if let (Some(name), true) = (&record.place, discover) {
        place::refuse_unfit(name, &Config::load()?, &record)?;
    }
    let prompt = prompt::first(&task, &record, &plan)?;
    Ok(Prepared { task, record, prompt, call, worktree, plan, replaces_plan, chosen, note, config })
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
    /// Creates the task and starts its worker.
    ///
    /// # Errors
    /// The name was taken meanwhile; a file or the worktree cannot be created; the worker cannot start.
    pub fn start(mut self, project: &Project) -> Result<Dispatched> {
        project.prepare()?;
        let Self { task, record, .. } = &self;
        {
            free_state(task)?;
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
            if !task.claim(record, &self.plan)? {
                refuse_taken(task)?;
            }
        }
        fault::point("spawn", "claimed");
        // The host already knows about the default; report any other choice.
        let note = self.chosen.note.clone().filter(|_| self.chosen.how != How::Default);
        let flags = self
            .call
            .as_ref()
            .map_or_else(Vec::new, |_| obsolete_flags(&self.config, &self.chosen.choice));
        let start = ops::launch(task, record);
        let worktree = self.worktree.take().map_or_else(Vec::new, PlannedWorktree::remarks);
        let remarks =
            note.into_iter().chain(self.note.clone()).chain(flags).chain(worktree).collect();
        Ok(Dispatched { start, summary: self.summary(), remarks })
    }

    fn summary(&self) -> String {
        let plan = Plan::parse(&self.plan);
        let items = count(plan.items().len(), "item");
        plan.title().map_or(items.clone(), |title| format!("{title}, {items}"))
    }
}

/// Says, once for each backend, that obsolete flags in its command are replaced.
fn obsolete_flags(config: &Config, choice: &Choice) -> Vec<String> {
    let backend = &choice.backend;
    let flags = tools::obsolete_flags(&choice.settings);
    let said = config.path().with_file_name(format!(".old-flags-of-{backend}"));
    // If this cannot be noted, stay silent rather than repeat it forever.
    if flags.is_empty() || !files::publish_new(&said, b"").unwrap_or(false) {
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
    let is_resumable = |view: &View| {
        view.state.has_work_left() || view.state.is_waiting() || view.state == State::Stopped
    };
    let resume = match view.is_some_and(|view| is_resumable(&view)) {
        true => format!(", or dispatch-spawn {id} --resume for what is left of it"),
        false => String::new(),
    };
    Refusal::new(Exit::CannotCreate, format!("the task id '{id}' is taken"))
        .place(format!("{} is {state}", side.directory().display()))
        .refuse(format!("use '{free}'{resume}"))
}

/// Removes the person's side of an earlier task whose directory in the project was deleted.
fn free_state(task: &Task) -> Result<()> {
    if !task.was_dispatched() || !task.is_deleted() {
        return Ok(());
    }
    task.remove(task.state_dir())
}
