//! Worktrees: a task's own checkout outside the project's directory, so that deleting `.dispatch/`
//! loses no work. Nothing here removes work that exists nowhere else.

mod command;
mod merge;
mod remove;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::domain::{TaskId, Worktree};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::{self, Lock};
use crate::ids::short_hash;
use crate::text::{sanitize, shell_word};
use command::{Git, error_line, git, git_on, path, require_version, retry, succeeded, trim};

pub(crate) use command::REPOSITORY_VARIABLES;
pub use merge::Merged;
pub use remove::{Artifact, all_artifacts, artifacts};

/// How long a task waits while others create their worktrees of the same repository.
const LOCK_LIMIT: Duration = Duration::from_secs(120);

/// A worktree that does not exist yet.
#[derive(Clone, Debug)]
pub struct PlannedWorktree {
    /// Its names, branch and base.
    pub worktree: Worktree,
    /// The worker's directory: the host's own directory, as far below the top.
    pub directory: PathBuf,
    /// Remarks for the host, one line each.
    pub remarks: Vec<String>,
}

/// Chooses free names and the base, HEAD of the directory `here`, for the worktree of a task that is
/// dispatched from there. Changes nothing.
pub fn plan_worktree(task: &TaskId, here: &Path) -> Result<PlannedWorktree> {
    require_version()?;
    let ask = git(here, "rev-parse --path-format=absolute");
    let asked = ask.words("--is-inside-work-tree --show-prefix --git-common-dir").run()?;
    if error_line(&asked).contains("not a git repository") {
        return Err(Refusal::new(Exit::CannotCreate, "there is no repository for a worktree")
            .place(format!("{} is not in one", here.display()))
            .next("dispatch without --worktree, or make one: git init, git add, git commit")
            .into());
    }
    let answer = succeeded(asked, "cannot look at the repository")?;
    let mut lines = answer.splitn(3, |&byte| byte == b'\n').map(path);
    let mut line = || lines.next().context("git did not say where the repository is");
    let (inside, prefix, repository) = (line()? == Path::new("true"), line()?, line()?);
    let repository = repository
        .canonicalize()
        .with_context(|| format!("cannot find {}", repository.display()))?;
    let base = commit_id(here, "HEAD")?.ok_or_else(|| {
        Refusal::new(Exit::CannotCreate, "the repository has no commit to begin a worktree at")
            .place(format!("HEAD of {} names a branch without commits", repository.display()))
            .next("commit first, or dispatch without --worktree")
    })?;

    let (path, branch) = free_names(task, &repository)?;
    let mut remarks = Vec::new();
    let mut directory: PathBuf = path.components().chain(prefix.components()).collect();
    let object = [OsStr::new(&base), ":".as_ref(), prefix.components().as_path().as_ref()];
    let object = git(here, "cat-file -t").arg(object.join(OsStr::new("")));
    if prefix != Path::new("") && object.said()? != "tree" {
        remarks.push(format!("{} is not in HEAD: the worker starts at the top", prefix.display()));
        directory = path.clone();
    }
    if inside {
        let outside = "--untracked-files=normal -- :(top) :(top,exclude).dispatch";
        remarks.extend(match changes(git(here, STATUS).words(outside)).map(|it| it.len()) {
            Ok(0) => None,
            Ok(1) => Some("1 uncommitted change is not in the worktree".into()),
            Ok(count) => Some(format!("{count} uncommitted changes are not in the worktree")),
            Err(error) => Some(format!("{error:#}").replace("\n ", ":")),
        });
    }
    let worktree = Worktree { path, branch, base, repository };
    Ok(PlannedWorktree { worktree, directory, remarks })
}

/// Whether git tracks a file, which then came with the repository.
pub fn is_tracked(file: &Path) -> bool {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return false };
    let listed = git(directory, "ls-files --error-unmatch --").arg(name).run();
    listed.is_ok_and(|listed| listed.status.success())
}

/// The full id of the commit that `revision` names in a directory or repository; `None` if there is
/// none.
pub fn commit_id(directory: &Path, revision: &str) -> Result<Option<String>> {
    let revision = format!("{revision}^{{commit}}");
    let asked = git(directory, "rev-parse --verify --quiet").arg(revision).run()?;
    Ok(asked.status.success().then(|| trim(&asked.stdout)))
}

/// The directory and the branch for a task: the task's name, with a number if an earlier task left
/// something of that name, because a task inherits nothing.
fn free_names(task: &TaskId, repository: &Path) -> Result<(PathBuf, String)> {
    let directory = worktrees_directory(repository)?;
    let patterns = "refs/heads/dispatch refs/heads/dispatch-* refs/heads/dispatch-*/**";
    let branches = branches(repository, patterns)?;
    // A branch is a file, so `dispatch` and `dispatch/x` cannot both exist.
    let separator = if branches.iter().any(|it| it == "dispatch") { '-' } else { '/' };
    let free = |(path, branch): &(PathBuf, String)| {
        let taken = |other: &String| {
            other.strip_prefix(branch).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        path.symlink_metadata().is_err() && !branches.iter().any(taken)
    };
    (1..)
        .map(|n: u32| if n == 1 { task.to_string() } else { format!("{task}-{n}") })
        .map(|name| (directory.join(&name), format!("dispatch{separator}{name}")))
        .find(free)
        .context("there is no free name")
}

/// The names of the branches that match one of the patterns.
fn branches(repository: &Path, patterns: &str) -> Result<Vec<String>> {
    let list = git_on(repository, "for-each-ref --format=%(refname:lstrip=2)").words(patterns);
    Ok(list.text("cannot list the branches")?.lines().map(str::to_owned).collect())
}

/// The directory of all worktrees that dispatch makes of a repository.
fn worktrees_directory(repository: &Path) -> Result<PathBuf> {
    let home = std::env::home_dir().filter(|home| home.is_absolute()).ok_or_else(|| {
        Refusal::new(Exit::CannotCreate, "there is no home directory for a worktree")
            .next("set HOME, or dispatch without --worktree")
    })?;
    // Git and the sandboxes of workers compare real paths.
    let home = home.canonicalize().with_context(|| format!("cannot find {}", home.display()))?;
    let named = repository.parent().filter(|_| repository.ends_with(".git")).unwrap_or(repository);
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String =
        name.trim_end_matches(".git").chars().map(|c| if plain(c) { c } else { '-' }).collect();
    let hash = short_hash(repository.as_os_str().as_bytes());
    Ok(home.join(".dispatch/worktrees").join(format!("{name}-{hash}")))
}

/// The command that [`changes`] parses, without its scope.
const STATUS: &str = "--no-optional-locks status --porcelain -z --no-renames";

/// The paths of uncommitted changes, in the output of [`STATUS`].
fn changes(status: Git) -> Result<Vec<String>> {
    let entries = status.records("cannot look for uncommitted changes")?.into_iter();
    Ok(entries.filter_map(|entry| entry.get(3..).map(str::to_owned)).collect())
}

/// The first three paths, and the number of the others.
pub fn first_paths(paths: &[String]) -> String {
    let first = paths.iter().take(3).map(|path| sanitize(path)).collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(3) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Makes a worktree and its repository find each other again, after the repository was moved.
pub fn repair_worktree(worktree: &Worktree) -> Result<()> {
    let repair = git_on(&worktree.repository, "worktree repair").arg(&worktree.path);
    repair.text("cannot repair the worktree").map(drop)
}

impl Worktree {
    /// Creates the worktree of a new task. Returns remarks for the host, one line each.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if its names were taken after they were chosen.
    pub fn create(&self) -> Result<Vec<String>> {
        let _lock = self.lock()?;
        if !self.is_deleted() || self.tip()?.is_some() {
            let what = format!("the branch {} was taken meanwhile", self.branch);
            return Err(Refusal::new(Exit::TryAgain, what).next("try again").into());
        }
        self.add()
    }

    /// Creates the worktree if it does not exist. If its directory was deleted, git's own record of it
    /// is used, else its branch. Returns remarks for the host, one line each.
    pub fn ensure(&self) -> Result<Vec<String>> {
        if self.git_dir().is_some_and(|entry| !is_incomplete(&entry)) {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.undo_interrupted_removal()?;
        let deleted = self.is_deleted();
        if let Some(other) = self.checked_out_elsewhere()? {
            let what = format!("the task's branch {} is checked out elsewhere", self.branch);
            return Err(Refusal::new(Exit::CannotCreate, what)
                .place(&other)
                .next(format!("git -C {} switch BRANCH, and try again", shell_word(&other)))
                .into());
        }
        if deleted {
            files::create_private_directory(&self.path)?;
            self.git("worktree repair").arg(&self.path).run()?;
        }
        match self.git_dir() {
            None if !deleted && !is_empty(&self.path) => {
                let what = "something else is in the place of the task's worktree";
                return Err(Refusal::new(Exit::CannotCreate, what)
                    .place(self.path.display().to_string())
                    .next("move it away, and try again")
                    .into());
            }
            // The process that created it was killed, so no worker has been in it.
            Some(entry) if is_incomplete(&entry) => {
                self.git("worktree remove -f -f").arg(&self.path).run()?;
            }
            // Git's record has the staged changes, a rebase, and the commits in submodules.
            Some(_) if deleted => {
                git(&self.path, "checkout-index --all --quiet")
                    .bytes("cannot restore the files of the worktree")?;
                return Ok(self.fill_submodules().into_iter().collect());
            }
            Some(_) => return Ok(Vec::new()),
            None => {}
        }
        self.add()
    }

    /// Moves the branch and the checkout to another commit before a worker has been in it. Uncommitted
    /// changes stay, or make it fail.
    pub fn reset_to(&self, commit: &str) -> Result<()> {
        self.ensure()?;
        let what = format!("cannot begin at {commit} in {}", self.path.display());
        git(&self.path, "reset --keep --quiet").arg(commit).bytes(&what).map(drop)
    }

    /// Only one process at a time adds a worktree: git's own locks would make the others fail.
    fn lock(&self) -> Result<Lock> {
        if !self.repository.is_dir() {
            return Err(Refusal::new(Exit::Data, "the repository of the worktree is gone")
                .place(format!("{} does not exist", self.repository.display()))
                .next("put it back there, or dispatch the plan again as a new task")
                .into());
        }
        let directory = self.path.parent().context("a worktree without a parent")?;
        files::create_private_directory(directory)?;
        let mut name = directory.as_os_str().to_owned();
        name.push(".lock");
        Lock::take(Path::new(&name), LOCK_LIMIT)
    }

    /// The commit at the end of the branch; `None` if the branch does not exist.
    fn tip(&self) -> Result<Option<String>> {
        commit_id(&self.repository, &self.reference())
    }

    fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    /// A git command on the repository.
    fn git(&self, words: &str) -> Git {
        git_on(&self.repository, words)
    }

    fn is_deleted(&self) -> bool {
        self.path.symlink_metadata().is_err()
    }

    fn add(&self) -> Result<Vec<String>> {
        let added = retry(|| self.git("").args(self.add_args(self.tip()?.is_some())).run())?;
        let mut remarks = Vec::new();
        if !added.status.success() {
            // Once the worktree exists, git only runs this hook.
            let said = error_line(&added);
            remarks.push(format!("post-checkout hook failed in the worktree: {said}"));
            if self.git_dir().is_none_or(|entry| is_incomplete(&entry)) {
                succeeded(added, &format!("cannot make the worktree {}", self.path.display()))?;
            }
        }
        remarks.extend(self.fill_submodules());
        Ok(remarks)
    }

    fn add_args(&self, branch_exists: bool) -> Vec<&OsStr> {
        let (path, branch) = (self.path.as_os_str(), self.branch.as_ref());
        let new = ["-b".as_ref(), branch, path, self.base.as_ref()];
        let names = if branch_exists { &[path, branch][..] } else { &new };
        [&["worktree", "add", "--quiet"].map(OsStr::new), names].concat()
    }

    /// The command that creates the worktree, as a person would type it.
    pub fn command(&self) -> String {
        let words = self.add_args(false).into_iter();
        let words: Vec<_> = words.map(|word| shell_word(&word.to_string_lossy())).collect();
        format!("git {}", words.join(" "))
    }

    /// Git's own directory for the worktree, whose name may differ from the worktree's.
    fn git_dir(&self) -> Option<PathBuf> {
        self.git_dir_at(&self.path)
    }

    /// Git's own directory for the worktree, if its checkout is at `checkout`. The `.git` there is
    /// believed only if it names this repository: a worker may have written it.
    fn git_dir_at(&self, checkout: &Path) -> Option<PathBuf> {
        let entry = named_git_dir(checkout)?.canonicalize().ok()?;
        let entries = self.repository.join("worktrees").canonicalize().ok()?;
        (entry.parent() == Some(&entries)).then_some(entry)
    }

    /// The directories outside the worktree that git writes to for a commit in it.
    pub fn git_directories(&self) -> Vec<PathBuf> {
        let name = self.path.file_name().unwrap_or_default();
        let entry = self.git_dir().unwrap_or_else(|| self.repository.join("worktrees").join(name));
        vec![self.repository.clone(), entry]
    }

    /// Fills the submodules without a network, from the repository's own clones of them.
    fn fill_submodules(&self) -> Option<String> {
        let mut empty = Vec::new();
        fill_submodules(&self.path, &self.repository.join("modules"), Path::new(""), &mut empty);
        let names = empty.join(", ");
        (!empty.is_empty()).then(|| format!("submodules that are empty in the worktree: {names}"))
    }
}

impl fmt::Display for Worktree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base.get(..10).unwrap_or(&self.base);
        write!(f, "{} (branch {}, from {base})", self.path.display(), self.branch)
    }
}

/// The directory that the `.git` file of a worktree names.
fn named_git_dir(checkout: &Path) -> Option<PathBuf> {
    let text = files::read(&checkout.join(".git")).ok()??;
    Some(checkout.join(text.strip_prefix("gitdir:")?.trim()))
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether the process that created this worktree was killed: git locks it until it is complete.
fn is_incomplete(entry: &Path) -> bool {
    let reason = files::read(&entry.join("locked")).ok().flatten();
    reason.is_some_and(|reason| reason.trim() == "initializing")
}

/// Fills the submodules of `top` from the clones in `modules`. Adds those that stay empty to `empty`.
fn fill_submodules(top: &Path, modules: &Path, below: &Path, empty: &mut Vec<String>) {
    if !top.join(".gitmodules").is_file() {
        return;
    }
    let mut list = git(top, r"config -z -f .gitmodules --get-regexp ^submodule\..*\.path$");
    let listed = list.run().map(|listed| listed.stdout).unwrap_or_default();
    for entry in listed.split(|&byte| byte == 0) {
        let mut halves = entry.splitn(2, |&byte| byte == b'\n');
        let (Some(key), Some(path)) = (halves.next(), halves.next()) else { continue };
        let path = Path::new(OsStr::from_bytes(path));
        // `.gitmodules` may still name a submodule that was removed.
        if !stays_below(path) || !top.join(path).is_dir() {
            continue;
        }
        let name = trim(key);
        let name = name.strip_prefix("submodule.").and_then(|name| name.strip_suffix(".path"));
        let clone = name.filter(|name| stays_below(Path::new(name))).map(|name| modules.join(name));
        match (name, clone) {
            (Some(name), Some(clone)) if fill_submodule(top, path, name, &clone).is_ok() => {
                fill_submodules(&top.join(path), &clone.join("modules"), &below.join(path), empty);
            }
            _ => empty.push(below.join(path).display().to_string()),
        }
    }
}

/// Whether a path that a repository's own text names stays inside the repository.
fn stays_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn fill_submodule(top: &Path, path: &Path, name: &str, clone: &Path) -> Result<()> {
    // Settings of this one command leave the repository's configuration unchanged.
    let url = [format!("submodule.{name}.url=").as_ref(), clone.as_os_str()].join(OsStr::new(""));
    let update = git(top, "-c protocol.allow=never -c protocol.file.allow=always -c").arg(url);
    let update = update.words("submodule --quiet update --init --").arg(path);
    update.bytes("cannot fill a submodule").map(drop)
}
