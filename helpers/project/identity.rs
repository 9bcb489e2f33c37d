//! Which directory a project is: `project.yaml` on the person's side, and a random token in the
//! project's `.dispatch`.
//!
//! Invariant: work starts by itself only in the directory where it was dispatched, and only while the
//! token stands there. A copy, a moved directory or another one at the same path starts nothing until a
//! person adopts its tasks.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::git;
use crate::ids::random_hex;
use crate::process::{Identity, Life};
use crate::project::{Project, state_dir};
use crate::task::{HostIndex, Record, Task, View};
use crate::text::lossy;

/// The directory in which the tasks of a state directory were dispatched: `project.yaml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProjectRecord {
    /// The canonical path of git's common directory, or of the project itself outside git.
    pub(super) path: PathBuf,
    /// The user who owns that directory.
    owner: u32,
    /// The number of the directory's file system, which a restart of the machine may change.
    device: u64,
    /// The directory's number in its file system.
    inode: u64,
    /// The text of `.dispatch/token`.
    pub(super) token: String,
}

/// The relation of a project's directory to the tasks in its state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No task was dispatched here.
    New,
    /// The directory is the one in which the tasks were dispatched.
    Same,
    /// The directory is the same one, and its `.dispatch` was deleted.
    WithoutToken,
    /// Another directory stands at the path.
    Replaced,
    /// The tasks were dispatched at this path, where their project is no more.
    Moved(PathBuf),
    /// No task was dispatched here, and `.dispatch` is a copy of that of the project at this path.
    Copied(PathBuf),
}

impl ProjectRecord {
    /// The record of the directory as it is now.
    pub(super) fn of(path: &Path, token: String) -> Result<Self> {
        let meta =
            fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let (owner, device, inode) = (meta.uid(), meta.dev(), meta.ino());
        Ok(Self { path: path.into(), owner, device, inode, token })
    }

    /// The record in a state directory; `None` before the first dispatch.
    pub(super) fn load(state_dir: &Path) -> Result<Option<Self>> {
        let path = record_path(state_dir);
        let Some(text) = files::read(&path)? else { return Ok(None) };
        files::from_yaml(&text).map(Some).map_err(|error| {
            Refusal::new(Exit::Data, format!("{} is broken", path.display()))
                .place(error.to_string())
                .next("move it away, then run dispatch-reconcile adopt in the project")
                .into()
        })
    }

    pub(super) fn save(&self, state_dir: &Path) -> Result<()> {
        files::publish(&record_path(state_dir), serde_yaml::to_string(self)?.as_bytes())
    }

    /// Returns true if the directory is still at its recorded place.
    pub(super) fn is_in_place(&self) -> bool {
        fs::metadata(&self.path)
            .is_ok_and(|meta| meta.uid() == self.owner && meta.ino() == self.inode)
    }

    /// The standing of the directory at the recorded path, with this token in its `.dispatch`.
    pub(super) fn standing(&self, token: Option<&str>) -> Standing {
        match token {
            _ if !self.is_in_place() => Standing::Replaced,
            None => Standing::WithoutToken,
            Some(token) if token == self.token => Standing::Same,
            Some(_) => Standing::Replaced,
        }
    }
}

/// The place of the project of a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// The project, or something in its place, is there.
    There,
    /// Nothing is at this path, whose file system is mounted.
    Gone(PathBuf),
    /// Nothing is at this path, and its file system is not mounted there.
    NotMounted(PathBuf),
    /// No project was recorded.
    Unrecorded,
}

/// The place of the project of a state directory, as the file system tells it now.
///
/// # Errors
/// A broken record.
pub fn whereabouts(state_dir: &Path) -> Result<Whereabouts> {
    let Some(record) = ProjectRecord::load(state_dir)? else { return Ok(Whereabouts::Unrecorded) };
    // A project without its `.git` is still a project, which a person can adopt.
    let root = match record.path.parent() {
        Some(parent) if record.path.ends_with(".git") => parent.to_path_buf(),
        _ => record.path,
    };
    match fs::symlink_metadata(&root) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        // A directory that this user may not enter is no proof.
        _ => return Ok(Whereabouts::There),
    }
    // Above an empty mount point lies another file system.
    let above = root.ancestors().find_map(|above| fs::metadata(above).ok());
    Ok(match above.is_some_and(|above| above.dev() == record.device) {
        true => Whereabouts::Gone(root),
        false => Whereabouts::NotMounted(root),
    })
}

fn record_path(state_dir: &Path) -> PathBuf {
    state_dir.join("project.yaml")
}

fn token_path(root: &Path) -> PathBuf {
    root.join(".dispatch/token")
}

/// The token in a project's `.dispatch`. A worker or a cloned repository may have written it: it can
/// only keep work from starting.
pub(super) fn token(root: &Path) -> Option<String> {
    let bytes = files::read_foreign(&token_path(root)).ok()??;
    Some(lossy(bytes).trim().chars().take(64).collect()).filter(|token: &String| !token.is_empty())
}

/// Publishes a project's token; a new one without `token`. Returns it.
pub(super) fn set_token(root: &Path, token: Option<String>) -> Result<String> {
    let token = token.map_or_else(random_hex, Ok)?;
    files::create_private_directory(&root.join(".dispatch"))?;
    files::publish(&token_path(root), format!("{token}\n").as_bytes())?;
    Ok(token)
}

/// The state directory of another project with this token, and its record.
pub(super) fn with_token(token: &str) -> Option<(PathBuf, ProjectRecord)> {
    let entries = fs::read_dir(dirs::state_root().ok()?).ok()?.flatten();
    entries.map(|entry| entry.path()).find_map(|state_dir| {
        let record = ProjectRecord::load(&state_dir).ok()??;
        (record.token == token).then_some((state_dir, record))
    })
}

/// Returns true if the project of a task's state directory is still in place, so that work may
/// start by itself.
pub fn stands(state_dir: &Path, task_directory: &Path) -> bool {
    let standing = || {
        let token = token(task_directory.ancestors().nth(3)?);
        Some(ProjectRecord::load(state_dir.parent()?).ok()??.standing(token.as_deref()))
    };
    standing() == Some(Standing::Same)
}

/// The main worktree of the repository around `start`; `None` outside git and for a bare one.
/// Reads git's files, because a helper's start must not cost a git process.
pub(super) fn main_worktree(start: &Path) -> Option<PathBuf> {
    // A worker writes its worktree, so nothing there says which repository it is of.
    if let Some(common) = git::repository_of_worktree(start) {
        let is_inside = common.file_name() == Some(OsStr::new(".git"));
        return if is_inside { common.parent().map(Path::to_path_buf) } else { Some(common) };
    }
    let top = start.ancestors().find(|directory| {
        let dot_git = directory.join(".git");
        // Ignore an empty .git, as git does: some sandboxes leave one behind.
        dot_git.is_file() || dot_git.join("HEAD").symlink_metadata().is_ok()
    })?;
    let common = common_directory(top)?;
    if !top.join(".git").is_file() {
        return Some(top.into());
    }
    if common.file_name() == Some(OsStr::new(".git")) {
        return common.parent().map(Path::to_path_buf);
    }
    // Several checkouts of a bare repository, or of a submodule, are one project.
    match (core_setting(&common, "bare").as_deref(), core_setting(&common, "worktree")) {
        (Some("true"), _) => Some(common),
        (_, Some(checkout)) => common.join(checkout).canonicalize().ok(),
        _ => Some(top.into()),
    }
}

/// A setting of the section `core` in a repository's config.
fn core_setting(common: &Path, name: &str) -> Option<String> {
    let text = files::read(&common.join("config")).ok()??;
    let mut section = String::new();
    text.lines().map(str::trim).fold(None, |found, line| {
        if line.starts_with('[') {
            section = line.to_lowercase();
        }
        let setting = line.split_once('=').filter(|_| section == "[core]");
        let value = setting.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        value.map(|(_, value)| value.trim().trim_matches('"').to_owned()).or(found)
    })
}

/// Git's common directory of the worktree at `top` (gitrepository-layout(5)).
pub(super) fn common_directory(top: &Path) -> Option<PathBuf> {
    let dot_git = top.join(".git");
    if dot_git.is_dir() {
        return Some(dot_git).filter(|it| it.join("HEAD").symlink_metadata().is_ok());
    }
    // A pipe in its place would hold the reader up.
    let text = files::read(Some(&dot_git).filter(|it| it.is_file())?).ok()??;
    let git_dir = top.join(text.strip_prefix("gitdir:")?.trim());
    if !points_back(&git_dir, &dot_git) {
        return None;
    }
    let common = match files::read(&git_dir.join("commondir")).ok()? {
        Some(relative) => git_dir.join(relative.trim()),
        None => git_dir,
    };
    common.canonicalize().ok()
}

/// Returns true if the repository that a `.git` file names knows its checkout: an archive may name
/// any repository as its own. A linked worktree has an entry that leads back
/// (gitrepository-layout(5)); the directory of a submodule or of `--separate-git-dir` is nobody's
/// `.git`.
fn points_back(git_dir: &Path, dot_git: &Path) -> bool {
    match files::read(&git_dir.join("gitdir")) {
        Ok(Some(back)) => {
            let back = git_dir.join(back.trim()).canonicalize();
            back.is_ok_and(|back| dot_git.canonicalize().is_ok_and(|own| own == back))
        }
        _ => git_dir.file_name() != Some(OsStr::new(".git")),
    }
}

/// How long the files of a host are kept of which nobody can tell whether it is running.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A task that can be adopted, or the reason why not.
pub struct Candidate {
    /// The task as it is where it was dispatched.
    pub view: View,
    /// Why the task stays where it is; `None` if it can be adopted.
    pub obstacle: Option<&'static str>,
}

impl Project {
    /// The directory with the locks and the indexes of hosts, for all projects.
    fn hosts_dir(&self) -> PathBuf {
        self.state_dir.with_file_name(".hosts")
    }

    /// The tasks of a host in all projects.
    pub fn index(&self, host: &Identity) -> HostIndex {
        HostIndex::new(&self.hosts_dir(), host)
    }

    /// The lock file of a host's waiting hook. Until a hook of the host runs, no file exists.
    pub fn hook_lock_path(&self, host: &Identity) -> PathBuf {
        self.hosts_dir().join(format!("{}.lock", host.name()))
    }

    /// The lock file of the monitor that a host without a hook runs here. All unknown hosts share one.
    pub fn monitor_lock_path(&self, host: Option<&Identity>) -> PathBuf {
        let host = host.map_or_else(|| "unknown".into(), Identity::name);
        let project = self.state_dir.file_name().unwrap_or_default().display();
        self.hosts_dir().join(format!("{host}.{project}.monitor.lock"))
    }

    /// Creates the directory of the hosts, without the locks and indexes of those that have ended.
    pub fn prepare_hosts(&self) -> Result<()> {
        files::create_private_directory(&self.hosts_dir())?;
        let own = Identity::own()?;
        for name in files::entries(&self.hosts_dir())? {
            let path = self.hosts_dir().join(&name);
            let host = name.to_str().and_then(|name| name.split('.').next());
            let is_old = match host.and_then(|host| own.life_of(host)) {
                Some(Life::Dead) => true,
                // Nobody can tell, for example after a restart of the machine.
                Some(Life::Unknown) => !files::modified_within(&path, FORGOTTEN),
                _ => false,
            };
            // After an error, the next helper tries again.
            let _ = match is_old {
                true if path.is_dir() => files::remove_directory(&path),
                true if Lock::is_held(&path).is_ok_and(|held| !held) => files::remove(&path),
                _ => Ok(()),
            };
        }
        Ok(())
    }

    /// Makes a host the owner of a task whose present owner is dead, or unknown and not waiting for news.
    /// Returns whether the owner changed.
    pub fn adopt_task(&self, task: &Task, host: &Identity) -> Result<bool> {
        task.adopt(host, |owner| match owner.life() {
            Life::Alive => false,
            Life::Dead => true,
            // The pid namespace of a container that was built again, for example.
            Life::Unknown => !self.is_waiting(owner),
        })
    }

    /// Returns true if a hook or a monitor of the host waits for news.
    fn is_waiting(&self, host: &Identity) -> bool {
        let locks = [self.hook_lock_path(host), self.monitor_lock_path(Some(host))];
        locks.iter().any(|lock| Lock::is_held(lock).unwrap_or(true))
    }

    /// The tasks that this directory could take over.
    ///
    /// # Errors
    /// A task that cannot be read.
    pub fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for task in self.origin()?.tasks() {
            let view = task.view()?;
            let copied = matches!(self.standing, Standing::Copied(_));
            let elsewhere = copied || matches!(self.standing, Standing::Moved(_));
            let is_running = elsewhere && !view.processes.is_empty();
            let has_worktree = copied && view.record.worktree.is_some();
            let obstacle = is_running.then_some("its worker is running");
            let worktree = has_worktree.then_some("its worktree belongs to the original");
            candidates.push(Candidate { view, obstacle: obstacle.or(worktree) });
        }
        Ok(candidates)
    }

    /// The project where the tasks were dispatched, seen from here.
    fn origin(&self) -> Result<Self> {
        let Standing::Copied(_) = self.standing else { return Ok(self.clone()) };
        let token = token(&self.root).context("the token is gone")?;
        let (state_dir, _) = with_token(&token).context("the original is gone")?;
        Ok(Self { state_dir, ..self.clone() })
    }

    /// Takes over these tasks. Starts nothing.
    ///
    /// # Errors
    /// A file that cannot be changed. A second call continues where this one stopped.
    pub fn adopt(&self, candidates: &[Candidate]) -> Result<()> {
        let comes = matches!(self.standing, Standing::Copied(_) | Standing::Moved(_));
        let own = match comes {
            true => state_dir(&self.root, &self.identity)?,
            false => self.state_dir.clone(),
        };
        files::create_private_directory(&own)?;
        if comes {
            for candidate in candidates.iter().filter(|it| it.obstacle.is_none()) {
                self.take(&candidate.view, &own)?;
            }
        }
        if let Standing::Moved(_) = self.standing {
            // A task that cannot be read stays there: nothing of it is lost.
            files::remove(&record_path(&self.state_dir))?;
        }
        Self { state_dir: own, ..self.clone() }.claim_directory()
    }

    /// Brings one task into the state directory of this project.
    fn take(&self, view: &View, own: &Path) -> Result<()> {
        let (from, id) = (view.task.state_dir(), view.task.id().as_str());
        let aside = own.join(format!(".{id}.adopted"));
        files::remove_directory(&aside)?;
        let copied = matches!(self.standing, Standing::Copied(_));
        if copied {
            files::copy_directory(from, &aside)?;
        }
        let (from, to) = (if copied { &aside } else { from }, own.join(id));
        std::fs::rename(from, &to).with_context(|| format!("cannot move {}", from.display()))?;
        let task = Task::new(view.task.id().clone(), to, self.tasks_dir().join(id));
        task.change_record(|record| self.relocate(record))?;
        task.call_owner();
        Ok(())
    }

    /// Puts the paths of this project into the record of a task that was dispatched elsewhere.
    fn relocate(&self, record: &mut Record) {
        let Some(from) = record.task_directory.ancestors().nth(3).map(Path::to_path_buf) else {
            return;
        };
        let moved = |path: &mut PathBuf| {
            if let Ok(rest) = path.strip_prefix(&from) {
                *path = self.root.join(rest);
            }
        };
        moved(&mut record.directory);
        moved(&mut record.task_directory);
        if let Some(worktree) = &mut record.worktree {
            moved(&mut worktree.repository);
            worktree.checkout.iter_mut().for_each(moved);
        }
    }
}
