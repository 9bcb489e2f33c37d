//! Projects: the directory or repository that tasks belong to, and the list of its tasks.
//!
//! Invariant: an entry that should be a task is listed, as a task or as broken, and never skipped.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result};

use crate::domain::TaskId;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;
use crate::process::{Identity, TASK_DIR};
use crate::task::Task;

/// The tasks of a project.
#[derive(Debug, Default)]
pub struct TaskList {
    /// The dispatched tasks, sorted by name.
    pub tasks: Vec<Task>,
    /// The entries that should be tasks and cannot be read, sorted by name.
    pub broken: Vec<Broken>,
}

/// An entry that should be a task and cannot be read.
#[derive(Debug)]
pub struct Broken {
    /// The name of the entry's directory.
    pub name: String,
    /// The entry's directory.
    pub directory: PathBuf,
    /// The error that reading the entry gave.
    pub error: Error,
}

impl Broken {
    /// The entry for a task that cannot be read.
    pub fn from_task(task: &Task, error: Error) -> Self {
        let (name, directory) = (task.id().to_string(), task.directory().to_path_buf());
        Self { name, directory, error }
    }
}

/// A directory whose `.dispatch/` holds tasks.
#[derive(Clone, Debug)]
pub struct Project {
    root: PathBuf,
}

impl Project {
    /// The project that `start` belongs to: in a worker the one of its task, else the main worktree of
    /// the git repository, else the nearest ancestor below the home directory with `.dispatch/tasks`,
    /// else `start` itself.
    ///
    /// # Errors
    /// [`Exit::Data`] if `.dispatch` or its `tasks` is a symlink.
    pub fn find(start: &Path) -> Result<Self> {
        if let Some(task) = std::env::var_os(TASK_DIR) {
            let task = Path::new(&task);
            let root = task.ancestors().nth(3).context("the task directory has no project")?;
            return Self::at(root.into());
        }
        let start = std::path::absolute(start)
            .with_context(|| format!("no such directory: {}", start.display()))?;
        let home = std::env::home_dir();
        let holds_tasks = |directory: &&Path| directory.join(".dispatch/tasks").is_dir();
        let below_home = |directory: &&Path| home.as_deref() != Some(*directory);
        // A home directory that is a repository (of dotfiles) is no project of what lies below it.
        let root = main_worktree(&start)
            .filter(|root| home.as_ref() != Some(root))
            .or_else(|| {
                let nearest = start.ancestors().take_while(below_home).find(holds_tasks);
                nearest.map(Path::to_path_buf)
            })
            .unwrap_or(start);
        Self::at(root)
    }

    /// The project with this root. A symlinked `.dispatch` is refused, because a cloned repository may
    /// contain one.
    fn at(root: PathBuf) -> Result<Self> {
        let project = Self { root };
        files::refuse_symlink(&project.root.join(".dispatch"))?;
        files::refuse_symlink(&project.tasks_dir())?;
        Ok(project)
    }

    /// The project's directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The parent directory of all tasks.
    pub fn tasks_dir(&self) -> PathBuf {
        self.root.join(".dispatch/tasks")
    }

    /// The directory with the reports of removed tasks.
    pub fn reports_dir(&self) -> PathBuf {
        self.root.join(".dispatch/reports")
    }

    /// The directory with the locks of the hosts that wait for news.
    pub fn hosts_dir(&self) -> PathBuf {
        self.root.join(".dispatch/hosts")
    }

    /// The lock file of a host's waiting hook. Until a hook of the host runs here, no file exists.
    pub fn hook_lock_path(&self, host: &Identity) -> PathBuf {
        self.hosts_dir().join(format!("{host}.lock"))
    }

    /// The lock file of the monitor that a host without a hook runs. All unknown hosts share one file.
    pub fn monitor_lock_path(&self, host: Option<&Identity>) -> PathBuf {
        let host = host.map_or_else(|| "unknown".into(), Identity::to_string);
        self.hosts_dir().join(format!("{host}.monitor.lock"))
    }

    /// The lock file for restarting lost supervisors.
    pub fn repair_lock_path(&self) -> PathBuf {
        self.root.join(".dispatch/repair.lock")
    }

    /// The file whose modification time is the time of the last sweep of temporary files.
    pub fn sweep_time_path(&self) -> PathBuf {
        self.root.join(".dispatch/swept")
    }

    /// The directories outside of tasks in which helpers write files.
    pub fn helper_directories(&self) -> Vec<PathBuf> {
        let git = common_directory(&self.root).map(|common| common.join("info"));
        let own = [self.root.join(".dispatch"), self.tasks_dir(), self.reports_dir()];
        own.into_iter().chain(git).collect()
    }

    /// Git's common directory, canonical; `None` outside git and for the home directory.
    pub fn repository(&self) -> Option<PathBuf> {
        let is_home = std::env::home_dir().is_some_and(|home| home == self.root);
        common_directory(&self.root).filter(|_| !is_home)?.canonicalize().ok()
    }

    /// The task with this name, which need not exist.
    pub fn task(&self, id: &TaskId) -> Task {
        Task::new(self.tasks_dir().join(id.as_str()), id.clone())
    }

    /// The readable tasks of the project, sorted by name.
    pub fn tasks(&self) -> Vec<Task> {
        self.task_list().tasks
    }

    /// The tasks of the project, and the entries that should be tasks and cannot be read.
    pub fn task_list(&self) -> TaskList {
        let mut list = TaskList::default();
        let directory = self.tasks_dir();
        let cannot_read = |name: &str, directory: &Path, error: std::io::Error| Broken {
            name: name.into(),
            directory: directory.into(),
            error: Error::new(error).context(format!("cannot read {}", directory.display())),
        };
        // With the `.`, a directory fails too that may be listed but not entered.
        let entries = std::fs::read_dir(directory.join(".")).map_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                list.broken.push(cannot_read(".dispatch/tasks", &directory, error));
            }
        });
        for entry in entries.into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let name = entry.file_name();
            let path = directory.join(&name);
            match name.to_str().map(TaskId::from_str) {
                Some(Ok(id)) if kind.is_dir() || kind.is_symlink() => {
                    let task = Task::new(path, id);
                    if kind.is_dir() && task.was_dispatched() {
                        list.tasks.push(task);
                    } else if let Err(error) = task.refuse_lost_record() {
                        list.broken.push(Broken::from_task(&task, error.into()));
                    } else if let Err(error) = task.directory().join(".").try_exists() {
                        let name = task.id().as_str();
                        list.broken.push(cannot_read(name, task.directory(), error));
                    }
                }
                // A task's directory was renamed to something that is no task name.
                _ if kind.is_dir() && path.join("task.yaml").exists() => {
                    list.broken.push(Broken {
                        name: name.to_string_lossy().into_owned(),
                        directory: path,
                        error: Refusal::new(Exit::Data, "no task can have that name")
                            .next("rename the directory back to the task's name")
                            .into(),
                    });
                }
                _ => {}
            }
        }
        list.tasks.sort_by(|a, b| a.id().cmp(b.id()));
        list.broken.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// The task with this name.
    ///
    /// # Errors
    /// [`Exit::Data`] with the names of existing tasks, if there is no such task.
    pub fn existing_task(&self, id: &TaskId) -> Result<Task> {
        let task = self.task(id);
        task.refuse_lost_record()?;
        if task.was_dispatched() {
            return Ok(task);
        }
        let TaskList { tasks, broken } = self.task_list();
        let explains = |it: &Broken| it.name == id.as_str() || it.directory == self.tasks_dir();
        if let Some(broken) = broken.into_iter().find(explains) {
            return Err(broken.error);
        }
        let names: Vec<_> = tasks.iter().take(8).map(|task| task.id().as_str()).collect();
        let more = tasks.len() - names.len();
        let place = match (names.len(), more) {
            (0, _) => "none yet".into(),
            (_, 0) => names.join(", "),
            _ => format!("{} and {more} more", names.join(", ")),
        };
        Err(Refusal::new(Exit::Data, format!("there is no task '{id}'"))
            .place(format!("tasks in {}: {place}", self.root.display()))
            .next("dispatch-reconcile shows all tasks")
            .into())
    }

    /// Creates `.dispatch/`, readable for this user only, and excludes it from git, so that neither
    /// `git add` nor a worker's `git clean` touches it.
    pub fn prepare(&self) -> Result<()> {
        files::create_private_directory(&self.tasks_dir())?;
        // The host's editor may have created the directory, readable for everybody.
        let top = self.root.join(".dispatch");
        std::fs::set_permissions(&top, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot make {} private", top.display()))?;
        let Some(common) = common_directory(&self.root) else { return Ok(()) };
        let path = common.join("info/exclude");
        let text = files::read(&path)?.unwrap_or_default();
        if text
            .lines()
            .any(|line| matches!(line.trim(), ".dispatch/" | ".dispatch" | "/.dispatch/"))
        {
            return Ok(());
        }
        files::create_private_directory(&common.join("info"))?;
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        files::publish(&path, format!("{text}{gap}.dispatch/\n").as_bytes())
    }
}

/// The main worktree of the repository around `start`; `None` outside git and for a bare one.
/// Reads git's files, because a helper's start must not cost a git process.
fn main_worktree(start: &Path) -> Option<PathBuf> {
    let top = start.ancestors().find(|directory| {
        let dot_git = directory.join(".git");
        // Ignore an empty .git, as git does: some sandboxes leave one behind.
        dot_git.is_file() || dot_git.join("HEAD").symlink_metadata().is_ok()
    })?;
    let common = common_directory(top)?;
    if top.join(".git").is_file() && common.file_name() == Some(OsStr::new(".git")) {
        return common.parent().map(Path::to_path_buf);
    }
    Some(top.into())
}

/// Git's common directory of the worktree at `top` (gitrepository-layout(5)).
fn common_directory(top: &Path) -> Option<PathBuf> {
    let dot_git = top.join(".git");
    if dot_git.is_dir() {
        return Some(dot_git).filter(|it| it.join("HEAD").symlink_metadata().is_ok());
    }
    let text = files::read(&dot_git).ok()??;
    let git_dir = top.join(text.strip_prefix("gitdir:")?.trim());
    let common = match files::read(&git_dir.join("commondir")).ok()? {
        Some(relative) => git_dir.join(relative.trim()),
        None => git_dir,
    };
    common.canonicalize().ok()
}
