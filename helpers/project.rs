//! Projects: the directory or repository that tasks belong to, and the list of its tasks.
//!
//! Invariant: an entry that should be a task is listed, as a task or as broken, and never skipped.
//! Longer than 500 lines because finding a project and listing its tasks read the same files.

mod ends;
mod identity;

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result};

use crate::dirs;
use crate::domain::TaskId;
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::ids::{long_hash, random_hex};
use crate::process::TASK_DIR;
use crate::task::{State, Task};
use crate::text::sort;
use identity::{ProjectRecord, common_directory, main_worktree};

pub use ends::{End, Ends};
pub use identity::{Standing, Whereabouts, stands, whereabouts};

/// How long a dispatch waits for another one that claims the directory.
const CLAIM_LIMIT: Duration = Duration::from_secs(10);

/// The tasks of a project.
#[derive(Debug, Default)]
pub struct TaskList {
    /// The dispatched tasks, sorted by name.
    pub tasks: Vec<Task>,
    /// The tasks that the index answers for, each with its entry.
    pub ended: Vec<(TaskId, End)>,
    /// The entries that should be tasks and cannot be read, sorted by name.
    pub broken: Vec<Broken>,
}

/// An entry that should be a task and cannot be read.
#[derive(Debug)]
pub struct Broken {
    /// The name of the entry's directory.
    pub name: String,
    /// The directory of its person's side.
    pub directory: PathBuf,
    /// The error that reading the entry gave.
    pub error: Error,
}

impl Broken {
    /// The entry for a task that cannot be read.
    pub fn from_task(task: &Task, error: Error) -> Self {
        let (name, directory) = (task.id().to_string(), task.state_dir().to_path_buf());
        Self { name, directory, error }
    }
}

/// A directory whose `.dispatch/` holds the workers' side of tasks, and the directory with the person's.
#[derive(Clone, Debug)]
pub struct Project {
    /// The project's directory, absolute.
    pub root: PathBuf,
    /// The path that tells the project from others: git's common directory, or the root.
    identity: PathBuf,
    /// The directory with the person's side of the tasks.
    pub state_dir: PathBuf,
    /// The relation of the directory to the tasks.
    pub standing: Standing,
    /// `true` if the helper was called in another project.
    pub is_elsewhere: bool,
}

impl Project {
    /// The project that `start` belongs to: in a worker the one of its task, else the main worktree of
    /// the git repository, else the nearest ancestor below the home directory with `.dispatch/tasks`,
    /// else `start` itself.
    ///
    /// # Errors
    /// [`Exit::Data`] if `.dispatch` or its `tasks` is a symlink, or the path is not UTF-8.
    pub fn find(start: &Path) -> Result<Self> {
        if let Some(task) = std::env::var_os(TASK_DIR) {
            let task = Path::new(&task);
            let root = task.ancestors().nth(3).context("the task directory has no project")?;
            return Self::at(root.into());
        }
        let start = std::path::absolute(start)
            .with_context(|| format!("no such directory: {}", start.display()))?;
        let home = dirs::home_directory().and_then(|home| home.canonicalize().ok());
        // A home directory that is a repository (of dotfiles) is no project of what lies below it.
        let root = main_worktree(&start)
            .filter(|root| home.as_ref() != Some(root))
            .or_else(|| nearest_with_tasks(&start, home.as_deref()))
            .unwrap_or(start);
        Self::at(root)
    }

    /// The project with this root. A symlinked `.dispatch` is refused, because a cloned repository may
    /// contain one.
    fn at(root: PathBuf) -> Result<Self> {
        let identity = common_directory(&root).unwrap_or_else(|| root.clone());
        let mut identity = identity.canonicalize().unwrap_or(identity);
        let mut state_dir = state_dir(&root, &identity)?;
        let mut record = ProjectRecord::load(&state_dir)?;
        // `git init` in a project, or the end of its `.git`, must not hide its tasks.
        let other = if identity == root { root.join(".git") } else { root.clone() };
        if record.is_none() {
            let other_dir = self::state_dir(&root, &other)?;
            record = ProjectRecord::load(&other_dir)?;
            if record.is_some() {
                state_dir = other_dir;
                identity = root.clone();
            }
        }
        let token = identity::token(&root);
        let is_known = |record: &ProjectRecord| token.as_ref() == Some(&record.token);
        let origin = || token.as_ref().and_then(|token| identity::with_token(token));
        let standing = match record {
            Some(record) => match record.standing(token.as_deref()) {
                Standing::Replaced if record.path != identity && is_known(&record) => {
                    Standing::Moved(record.path)
                }
                standing => standing,
            },
            None => match origin() {
                None => Standing::New,
                Some((_, record)) if record.is_in_place() => Standing::Copied(record.path),
                // The tasks of a moved project can be seen and stopped.
                Some((dir, record)) => {
                    state_dir = dir;
                    Standing::Moved(record.path)
                }
            },
        };
        let project = Self { root, identity, state_dir, standing, is_elsewhere: false };
        files::refuse_symlink(&project.root.join(".dispatch"))?;
        files::refuse_symlink(&project.tasks_dir())?;
        Ok(project)
    }

    /// The project for a helper that was called in the project of `here`, if that is another one.
    pub fn seen_from(self, here: &Path) -> Self {
        let is_here = Self::find(here).is_ok_and(|here| here.state_dir == self.state_dir);
        Self { is_elsewhere: !is_here, ..self }
    }

    /// The parent directory of all tasks.
    pub fn tasks_dir(&self) -> PathBuf {
        self.root.join(".dispatch/tasks")
    }

    /// The directory with the reports of removed tasks.
    pub fn reports_dir(&self) -> PathBuf {
        self.root.join(".dispatch/reports")
    }

    /// Returns true if work may start by itself.
    pub fn stands(&self) -> bool {
        self.standing == Standing::Same
    }

    /// Refuses a directory that is not the one in which its tasks were dispatched.
    ///
    /// # Errors
    /// [`Exit::Data`] if the directory was moved or replaced.
    pub fn refuse_moved(&self) -> Result<(), Refusal> {
        let (what, place) = match &self.standing {
            Standing::Moved(from) => (
                "this project was moved after its tasks were dispatched",
                format!("from {}", from.display()),
            ),
            Standing::Replaced => (
                "another directory is in the place of the project",
                format!(
                    "{} is not the one in which its tasks were dispatched",
                    self.root.display()
                ),
            ),
            _ => return Ok(()),
        };
        Refusal::new(Exit::Data, what)
            .place(place)
            .refuse("to take its tasks over, run: dispatch-reconcile adopt")
    }

    /// The project to dispatch a new task in. Where another directory is in the place of the one that
    /// earlier tasks were dispatched in, their state is set aside once none of them runs.
    ///
    /// # Errors
    /// [`Exit::Data`] if the project was moved, or a task of the earlier directory is running.
    pub fn for_dispatch(self) -> Result<Self> {
        if self.standing != Standing::Replaced {
            self.refuse_moved()?;
            return Ok(self);
        }
        let runs = |task: &Task| {
            task.is_supervised().unwrap_or(true)
                || task.view().map_or(true, |view| !view.processes.is_empty())
        };
        if self.tasks().iter().any(runs) {
            self.refuse_moved()?;
        }
        let name = self.state_dir.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.state_dir.with_file_name(format!("{name}.replaced-{}", random_hex()?));
        std::fs::rename(&self.state_dir, &aside)
            .with_context(|| format!("cannot set {} aside", self.state_dir.display()))?;
        Self::at(self.root)
    }

    /// A line for a person about tasks that do not start by themselves; `None` if there are none.
    pub fn notice(&self) -> Option<String> {
        let what = match &self.standing {
            Standing::New | Standing::Same => return None,
            Standing::WithoutToken => "its .dispatch was deleted".into(),
            Standing::Replaced => "another directory is in its place".into(),
            Standing::Moved(from) if from.starts_with(&self.root) => "its .git was deleted".into(),
            Standing::Moved(from) => format!("it was moved from {}", from.display()),
            Standing::Copied(from) => format!("it is a copy of {}", from.display()),
        };
        let copied = matches!(self.standing, Standing::Copied(_));
        let has_tasks = copied || !self.tasks().is_empty();
        has_tasks.then(|| {
            format!("project: {what}; no task starts by itself → dispatch-reconcile adopt")
        })
    }

    /// The tasks in other projects that an index names and of which its host has not heard everything.
    pub fn tasks_elsewhere(&self, index: &BTreeMap<PathBuf, bool>) -> Vec<Task> {
        let mut projects: BTreeMap<PathBuf, bool> = BTreeMap::new();
        let mut tasks = Vec::new();
        for (state_dir, _) in index.iter().filter(|(_, is_heard)| !**is_heard) {
            let own = state_dir.parent().filter(|it| *it != self.state_dir);
            let (Some(project), Ok(task)) = (own, Task::at_state(state_dir)) else { continue };
            // The project may be gone, or be another one by now.
            let is_there = || Self::of_task(&task).is_some();
            if *projects.entry(project.into()).or_insert_with(is_there) && !task.is_deleted() {
                tasks.push(task.elsewhere());
            }
        }
        tasks
    }

    /// The project of a task, if it is still where the task's record says.
    pub fn of_task(task: &Task) -> Option<Self> {
        let project = Self::at(task.root()?.into()).ok()?;
        Some(project).filter(|it| Some(&*it.state_dir) == task.state_dir().parent())
    }

    /// The directories outside of tasks in which helpers write files.
    pub fn helper_directories(&self) -> Vec<PathBuf> {
        let git = common_directory(&self.root).map(|common| common.join("info"));
        let top = self.root.join(".dispatch");
        let own = [top, self.tasks_dir(), self.reports_dir(), self.state_dir.clone()];
        own.into_iter().chain(git).collect()
    }

    /// Git's common directory, canonical; `None` outside git and for the home directory.
    pub fn repository(&self) -> Option<PathBuf> {
        let home = dirs::home_directory().and_then(|home| home.canonicalize().ok());
        let is_home = home.is_some_and(|home| home == self.root);
        repository_at(&self.root).filter(|_| !is_home)
    }

    /// The task with this name, which need not exist.
    pub fn task(&self, id: &TaskId) -> Task {
        let name = id.as_str();
        let task = Task::new(id.clone(), self.state_dir.join(name), self.tasks_dir().join(name));
        if self.is_elsewhere { task.elsewhere() } else { task }
    }

    /// The readable tasks of the project, sorted by name.
    pub fn tasks(&self) -> Vec<Task> {
        self.task_list().tasks
    }

    /// The dispatched tasks of the project, and what hides them. A task that ended and whose directory
    /// in the project was deleted is over.
    pub fn task_list(&self) -> TaskList {
        self.list(&Ends::default())
    }

    /// The tasks as in [`Self::task_list`], without those that ended and have a valid entry in an index.
    pub fn list(&self, ends: &Ends) -> TaskList {
        let mut list = TaskList::default();
        // With the `.`, a directory fails too that may be listed but not entered.
        let entries = match std::fs::read_dir(self.state_dir.join(".")) {
            Ok(entries) => Some(entries),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                let place = self.state_dir.display();
                list.broken.push(Broken {
                    name: "state".into(),
                    directory: self.state_dir.clone(),
                    error: Error::new(error).context(format!("cannot read {place}")),
                });
                None
            }
        };
        let present = match ends.ends.is_empty() {
            true => Vec::new(),
            false => files::entries(&self.tasks_dir()).unwrap_or_default(),
        };
        let present: HashSet<&OsStr> = present.iter().map(OsString::as_os_str).collect();
        let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut ids: Vec<TaskId> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        sort(&mut ids, Ord::cmp);
        for id in ids {
            let task = self.task(&id);
            if let Some(end) = ends.get(&task) {
                // The directory of a task that is done counts without a look into it.
                let is_done = end.state == State::Done && present.contains(OsStr::new(id.as_str()));
                if is_done || task.side().has_files() {
                    list.ended.push((id, end.clone()));
                }
            } else if !task.was_dispatched() {
                let lost = task.refuse_lost_record().err();
                list.broken.extend(lost.map(|error| Broken::from_task(&task, error.into())));
            } else if !task.is_deleted() {
                list.tasks.push(task);
            }
        }
        list
    }

    /// The directories with a task's files that no dispatch of this user made, sorted; none in a copy, whose
    /// tasks are the original's. `list`: the tasks that are there.
    pub fn foreign(&self, list: &TaskList) -> Vec<TaskId> {
        if matches!(self.standing, Standing::Copied(_)) {
            return Vec::new();
        }
        let ended = list.ended.iter().map(|(id, _)| id.as_str());
        let known = list.tasks.iter().map(|task| task.id().as_str()).chain(ended);
        let known: HashSet<&str> =
            known.chain(list.broken.iter().map(|broken| broken.name.as_str())).collect();
        let names = files::entries(&self.tasks_dir()).unwrap_or_default();
        let names = names.iter().filter_map(|name| name.to_str());
        let ids = names.filter(|name| !known.contains(name)).flat_map(TaskId::from_str);
        // A dispatch that is at work makes the state's directory first.
        let is_foreign = |task: Task| !task.state_dir().exists() && task.side().has_files();
        let mut ids: Vec<_> = ids.filter(|id| is_foreign(self.task(id))).collect();
        sort(&mut ids, Ord::cmp);
        ids
    }

    /// The task with this name.
    ///
    /// # Errors
    /// [`Exit::Data`] with the names of existing tasks, if there is no such task.
    pub fn existing_task(&self, id: &TaskId) -> Result<Task> {
        let task = self.task(id);
        task.refuse_lost_record()?;
        if task.was_dispatched() && !task.is_deleted() {
            return Ok(task);
        }
        let TaskList { tasks, broken, .. } = self.task_list();
        if let Some(broken) = broken.into_iter().next() {
            return Err(broken.error);
        }
        let names: Vec<_> = tasks.iter().take(8).map(|task| task.id().as_str()).collect();
        let more = tasks.len() - names.len();
        let place = match (names.len(), more) {
            (0, _) => "none yet".into(),
            (_, 0) => names.join(", "),
            _ => format!("{} and {more} more", names.join(", ")),
        };
        if task.side().has_files() {
            let place = task.side().directory().display();
            return Refusal::new(Exit::Data, format!("'{id}' is no task of yours"))
                .place(format!("{place}: it came with the project, or was copied"))
                .refuse("move that directory away, or dispatch under another id");
        }
        Refusal::new(Exit::Data, format!("there is no task '{id}'"))
            .place(format!("tasks in {}: {place}", self.root.display()))
            .refuse("dispatch-reconcile shows all tasks")
    }

    /// Records that the tasks belong to this directory.
    fn claim_directory(&self) -> Result<()> {
        // Several first dispatches at once must agree on one token.
        let _lock = Lock::take(&self.state_dir.join(".project.lock"), CLAIM_LIMIT)?;
        let record = ProjectRecord::load(&self.state_dir)?;
        let given = identity::token(&self.root);
        if record.as_ref().is_some_and(|it| it.standing(given.as_deref()) == Standing::Same) {
            return Ok(());
        }
        // The token comes first: a record without it would look like a project that was cleaned up.
        let token = identity::set_token(&self.root, record.map(|record| record.token))?;
        ProjectRecord::of(&self.identity, token)?.save(&self.state_dir)
    }

    /// Creates `.dispatch/`, readable for this user only, and excludes it from git, so that neither
    /// `git add` nor a worker's `git clean` touches it.
    pub fn prepare(&self) -> Result<()> {
        files::create_private_directory(&self.state_dir)?;
        files::create_private_directory(&self.tasks_dir())?;
        // A person or the host's editor may have created the directories, readable for everybody.
        let tops = [self.root.join(".dispatch"), dirs::dispatch_home()?];
        for top in tops.into_iter().filter(|top| top.is_dir()) {
            std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o700))
                .with_context(|| format!("cannot make {} private", top.display()))?;
        }
        if !self.stands() {
            self.claim_directory()?;
        }
        change_excluded(&self.root, |text| {
            let excludes =
                |line: &str| matches!(line.trim(), ".dispatch/" | ".dispatch" | "/.dispatch/");
            (!text.lines().any(excludes)).then(|| with_line(text, ".dispatch/"))
        })
    }
}

/// The text with one more line at its end.
pub fn with_line(text: &str, line: &str) -> String {
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{gap}{line}\n")
}

/// Replaces the text of git's `info/exclude` for the checkout `top`, if there is another one.
///
/// # Errors
/// The file cannot be read or written.
pub fn change_excluded(top: &Path, change: impl FnOnce(&str) -> Option<String>) -> Result<()> {
    let Some(common) = common_directory(top) else { return Ok(()) };
    let info = common.join("info");
    let path = info.join("exclude");
    let text = files::read(&path)?.unwrap_or_default();
    let Some(text) = change(&text) else { return Ok(()) };
    // In a repository that a group shares, git's own directories have the group's rights.
    std::fs::create_dir_all(&info)
        .with_context(|| format!("cannot make the directory {}", info.display()))?;
    files::publish(&path, text.as_bytes())
}

/// Git's common directories of the checkouts and bare repositories that a directory lies in, the
/// innermost first.
pub fn repositories_around(directory: &Path) -> Vec<PathBuf> {
    directory.ancestors().filter_map(repository_at).collect()
}

/// Git's common directory of the checkout, or the bare repository, at `top`, canonical.
fn repository_at(top: &Path) -> Option<PathBuf> {
    let is_bare = || top.join("HEAD").is_file() && top.join("objects").is_dir();
    let bare = || is_bare().then(|| top.to_path_buf());
    common_directory(top).or_else(bare)?.canonicalize().ok()
}

/// The directory with the person's side of the project with that identity: its name for people, and
/// the SHA-256 of its path.
fn state_dir(root: &Path, identity: &Path) -> Result<PathBuf> {
    if identity.to_str().is_none() {
        return Refusal::new(Exit::Data, "the path of the project is not UTF-8")
            .place(identity.display().to_string())
            .refuse("rename the directory");
    }
    let name = root.file_name().and_then(OsStr::to_str).unwrap_or("root");
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = name.chars().map(plain).take(40).collect();
    let hash = long_hash(identity.as_os_str().as_encoded_bytes());
    Ok(dirs::state_root()?.join(format!("{name}-{hash}")))
}

/// The nearest directory around `start` with `.dispatch/tasks`. Outside the home directory, where others
/// may write into a shared parent, it counts only if this user dispatched a task there.
fn nearest_with_tasks(start: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let in_home = home.is_some_and(|home| start.starts_with(home));
    let is_own = |directory: &Path| {
        state_dir(directory, directory).is_ok_and(|state| state.join("project.yaml").is_file())
    };
    let around = start.ancestors().take_while(|directory| home != Some(*directory));
    let mut holders = around.filter(|directory| directory.join(".dispatch/tasks").is_dir());
    holders.find(|directory| in_home || is_own(directory)).map(Path::to_path_buf)
}
