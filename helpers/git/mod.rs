//! Worktrees: a task's own repository and checkout outside the project's directory, so that deleting
//! `.dispatch/` loses no work. Nothing here removes work that exists nowhere else.
//!
//! Invariant: once a worker has been in a worktree, no git runs in its repository. Its commits are
//! fetched from a copy of its objects (`repository`).

mod command;
mod far;
mod include;
mod merge;
mod remove;
mod repository;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::dirs;
use crate::domain::{TaskId, Worktree};
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::ids::short_hash;
use crate::text::sanitize;

use command::{Git, Settings, error_line, git, git_on, path, retry, succeeded, too_old, trim};

pub(crate) use command::selects_for_git;
pub use command::{commit_id, is_tracked};
pub use far::{FAR, Far, author, make_receiver, set_head};
use include::{commit_changes, count_changes, left_behind, stays_below};
pub use merge::{MergePlan, configured_hooks};
pub use remove::{Contents, forget_removed};
pub use repository::object_id;
use repository::{REFERENCES_LIMIT, alternates, make_repository, walk, write};

/// How long a task waits while others create their worktrees of the same repository.
const LOCK_LIMIT: Duration = Duration::from_secs(120);

/// Names that git must not show in a worktree: dispatch's own directory, and the mount points that
/// Claude Code's sandbox leaves in the top level.
const EXCLUDED: &str = "\
/.dispatch/
/.bash_profile
/.bashrc
/.gitconfig
/.profile
/.ripgreprc
/.zprofile
/.zshrc
";

/// A worktree that does not exist yet.
#[derive(Debug)]
pub struct PlannedWorktree {
    /// The worktree's names, branch and base.
    pub worktree: Worktree,
    /// The worker's directory: the host's own directory, as far below the top.
    pub directory: PathBuf,
    remarks: Vec<String>,
    /// Counts the changes that stay in the checkout.
    uncommitted: Option<JoinHandle<Result<usize>>>,
}

impl PlannedWorktree {
    /// Remarks for the host, one line each. Waits until git has counted the uncommitted changes.
    pub fn remarks(self) -> Vec<String> {
        let uncommitted = self.uncommitted.map_or(Ok(0), joined);
        self.remarks.into_iter().chain(left_behind(uncommitted)).collect()
    }
}

/// The commit of a checkout, for `git rev-parse`.
const HEAD: &str = "HEAD^{commit}";

/// Chooses free names and the base, HEAD of the directory `here`, for the worktree of a task that is
/// dispatched from there; `with_changes`, a snapshot of what is uncommitted there. The worker starts
/// `below` that directory. Changes nothing but git's objects.
pub fn plan_worktree(
    task: &TaskId,
    here: &Path,
    below: &Path,
    with_changes: bool,
) -> Result<PlannedWorktree> {
    ensure!(stays_below(below), "not below the top");
    if is_in_worktree(here) {
        return Refusal::new(Exit::Usage, "a worktree cannot begin in another task's worktree")
            .place(here.display().to_string())
            .refuse("dispatch from a checkout of yours");
    }
    let ask = || {
        let ask = git(here, "rev-parse --path-format=absolute");
        ask.words("--is-inside-work-tree --show-prefix --git-common-dir").arg(HEAD).run()
    };
    let begin = here.to_path_buf();
    let taken = thread::spawn(move || listed(git(&begin, ""), TAKEN));
    let asked = ask()?;
    if error_line(&asked).contains("not a git repository") {
        return Refusal::new(Exit::CannotCreate, "there is no repository for a worktree")
            .place(format!("{} is not in one", here.display()))
            .refuse("dispatch without --worktree, or make one: git init, git add, git commit");
    }
    // Without a commit, git repeats the words.
    let is_unborn = trim(&asked.stdout).ends_with(HEAD);
    let answer = match is_unborn {
        true => asked.stdout,
        false => succeeded(asked, "cannot look at the repository")?,
    };
    if answer.starts_with(b"--path-format") {
        return Err(too_old()?.into());
    }
    let lines: Vec<&Path> = answer.split(|&byte| byte == b'\n').map(path).collect();
    let [inside, prefix, repository, head, _] = lines[..] else { bail!("git said too little") };
    let (inside, mut base) = (inside == Path::new("true"), head.display().to_string());
    let repository = repository
        .canonicalize()
        .with_context(|| format!("cannot find {}", repository.display()))?;
    if is_unborn {
        let what = "the repository has no commit to begin a worktree at";
        return Refusal::new(Exit::CannotCreate, what)
            .place(format!("HEAD of {} names a branch without commits", repository.display()))
            .refuse("commit first, or dispatch without --worktree");
    }
    let top = here.ancestors().nth(prefix.components().count()).filter(|_| inside);

    let prefix = prefix.join(below);
    let begin = here.to_path_buf();
    let mut uncommitted = inside.then(|| thread::spawn(move || count_changes(&begin)));
    let (path, branch) = free_names(task, &repository, &joined(taken)?)?;
    let mut remarks = Vec::new();
    let mut directory: PathBuf = path.components().chain(prefix.components()).collect();
    let object = [OsStr::new(&base), ":".as_ref(), prefix.components().as_path().as_ref()];
    let object = object.join(OsStr::new(""));
    if prefix != Path::new("") && git(here, "cat-file -t").arg(object).said()? != "tree" {
        remarks.push(format!("{} is not in HEAD: the worker starts at the top", prefix.display()));
        directory = path.clone();
    }
    let mut snapshot = false;
    if with_changes {
        match uncommitted.take().map_or(Ok(0), joined) {
            Ok(0) => {}
            Ok(_) => {
                base = commit_changes(here, &path, &base)?;
                snapshot = true;
            }
            failed => remarks.extend(left_behind(failed)),
        }
    }
    let checkout = top.map(Path::to_path_buf);
    let worktree = Worktree { path, branch, base, repository, checkout, snapshot, trunk: None };
    Ok(PlannedWorktree { worktree, directory, remarks, uncommitted })
}

/// The directory and the branch for a task: the task's name, with a number if an earlier task left
/// something of that name, because a task inherits nothing.
fn free_names(task: &TaskId, repository: &Path, taken: &[String]) -> Result<(PathBuf, String)> {
    let directory = worktrees_directory(repository)?;
    // A branch is a file, so `dispatch` and `dispatch/x` cannot both exist.
    let separator = if taken.iter().any(|it| it == "refs/heads/dispatch") { '-' } else { '/' };
    let free = |(path, branch): &(PathBuf, String)| {
        let own = [format!("refs/heads/{branch}"), reference("base", path)];
        let is_taken = |other: &String| {
            let rest = |own: &String| other.strip_prefix(own.as_str()).map(str::to_owned);
            own.iter().filter_map(rest).any(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        path.symlink_metadata().is_err() && !taken.iter().any(is_taken)
    };
    (1..)
        .map(|n: u32| if n == 1 { task.to_string() } else { format!("{task}-{n}") })
        .map(|name| (directory.join(&name), format!("dispatch{separator}{name}")))
        .find(free)
        .context("there is no free name")
}

/// The references that the names of a new worktree must avoid.
const TAKEN: &str =
    "refs/heads/dispatch refs/heads/dispatch-* refs/heads/dispatch-*/** refs/dispatch";

/// The full names of the references that match one of the patterns.
pub fn references(repository: &Path, patterns: &str) -> Result<Vec<String>> {
    listed(git_on(repository, ""), patterns)
}

fn listed(git: Git, patterns: &str) -> Result<Vec<String>> {
    let list = git.words("for-each-ref --format=%(refname)").words(patterns);
    Ok(list.text("cannot list the branches")?.lines().map(str::to_owned).collect())
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("a thread that ran git has panicked")))
}

/// The reference of dispatch for the worktree at `path`, which branches do not show: `base` keeps the
/// commit at which it began, `tip` the commit that was fetched last.
fn reference(kind: &str, path: &Path) -> String {
    format!("refs/dispatch/{kind}/{}", path.file_name().unwrap_or_default().to_string_lossy())
}

/// The directory of all worktrees that dispatch makes.
fn worktrees_root() -> Result<PathBuf> {
    let home = dirs::home_directory().filter(|home| home.is_absolute()).ok_or_else(|| {
        Refusal::new(Exit::CannotCreate, "there is no home directory for a worktree")
            .next("set HOME, or dispatch without --worktree")
    })?;
    // Git and the sandboxes of workers compare real paths.
    let home = home.canonicalize().with_context(|| format!("cannot find {}", home.display()))?;
    let own = home.join(".dispatch");
    Ok(own.canonicalize().unwrap_or(own).join("worktrees"))
}

/// Returns true if a directory lies in a task's worktree, where no git may be run outside a sandbox.
pub fn is_in_worktree(directory: &Path) -> bool {
    worktrees_root().is_ok_and(|root| directory.starts_with(root))
}

/// The person's repository of the worktree that a directory lies in.
pub fn repository_of_worktree(directory: &Path) -> Option<PathBuf> {
    let root = worktrees_root().ok()?;
    let first = directory.strip_prefix(&root).ok()?.components().next()?;
    let text = files::read(&repository_file(&root.join(first))).ok()??;
    Some(PathBuf::from(text.strip_suffix('\n')?))
}

/// The file that names the repository of the worktrees in a directory.
fn repository_file(directory: &Path) -> PathBuf {
    beside(directory, "repository")
}

/// A path with one more ending.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The directory of all worktrees that dispatch makes of a repository.
pub fn worktrees_directory(repository: &Path) -> Result<PathBuf> {
    let named = repository.parent().filter(|_| repository.ends_with(".git")).unwrap_or(repository);
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String =
        name.trim_end_matches(".git").chars().map(|c| if plain(c) { c } else { '-' }).collect();
    let hash = short_hash(repository.as_os_str().as_bytes());
    Ok(worktrees_root()?.join(format!("{name}-{hash}")))
}

/// The commands by which a person merges a branch that dispatch cannot merge.
pub fn by_hand(branch: &str) -> String {
    format!("read git diff HEAD...{branch}, then git merge {branch}")
}

/// The beginning of a commit's id, as people name it.
pub fn short_id(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

/// The first three paths, and the number of the others.
pub fn first_paths(paths: &[String]) -> String {
    let first = paths.iter().take(3).map(|path| sanitize(path)).collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(3) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

impl Worktree {
    /// Reserves the names of the worktree, its branch only if that `is_own`, and keeps its base from
    /// being collected.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if the names were taken after they were chosen.
    pub fn reserve(&self, is_own: bool) -> Result<()> {
        let reference = reference("base", &self.path);
        // Git does both or neither; `verify` without a commit wants that there is no such branch.
        let verify = if is_own { format!("verify {}\n", self.reference()) } else { String::new() };
        let lines = format!("{verify}create {reference} {}\n", self.base);
        let reserve = || self.git("update-ref --stdin").run_on(&lines);
        if !self.is_deleted() || !retry(reserve)?.status.success() {
            let what = format!("the branch {} was taken meanwhile", self.branch);
            return Refusal::new(Exit::TryAgain, what).refuse("try again");
        }
        let directory = self.path.parent().context("a worktree without a parent")?;
        let (file, text) = (repository_file(directory), format!("{}\n", self.repository.display()));
        if files::read(&file).is_ok_and(|known| known.as_ref() == Some(&text)) {
            return Ok(());
        }
        files::create_private_directory(directory)?;
        files::publish(&file, text.as_bytes())
    }

    /// Moves the base before the first attempt, because the task begins where another one ended.
    pub fn begin_at(&mut self, commit: &str, trunk: &str) -> Result<()> {
        let base = reference("base", &self.path);
        let keep = || self.git("update-ref").args([&base, commit]).run();
        succeeded(retry(keep)?, "cannot keep the base of the worktree")?;
        self.base = commit.into();
        self.trunk = Some(trunk.into());
        Ok(())
    }

    /// Returns true if [`Worktree::ensure`] has nothing to create.
    pub fn exists(&self) -> bool {
        self.has_own_repository() && !self.incomplete().exists()
    }

    /// Checks that nothing prevents the creation of the worktree.
    pub fn check_creatable(&self) -> Result<()> {
        self.check_repository()?;
        let is_own = self.has_own_repository() || self.incomplete().exists();
        let is_empty = || self.path.read_dir().is_ok_and(|mut it| it.next().is_none());
        if is_own || self.is_deleted() || is_empty() {
            return Ok(());
        }
        let what = "something else is in the place of the task's worktree";
        Refusal::new(Exit::CannotCreate, what)
            .place(self.path.display().to_string())
            .refuse("move it away, and try again")
    }

    fn check_repository(&self) -> Result<()> {
        if self.repository.is_dir() {
            return Ok(());
        }
        Refusal::new(Exit::Data, "the repository of the worktree is gone")
            .place(format!("{} does not exist", self.repository.display()))
            .refuse("put it back there, or dispatch the plan again as a new task")
    }

    /// Creates the worktree if it does not exist: at the last commit that was fetched from it, else at
    /// its base, and with the sparse patterns that were `sent` with the task, if it came from another machine.
    /// `set_up` then gets the command line of the person's `post-checkout` hook, if there is
    /// one; without its success there is no worktree. The caller has the task's run lock. Returns
    /// remarks for the host, one line each.
    pub fn ensure(
        &self,
        sent: Option<&str>,
        set_up: impl FnOnce(Option<String>) -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        self.check_creatable()?;
        self.remove_stale_scratch()?;
        self.undo_interrupted_removal()?;
        if self.exists() {
            self.refresh()?;
            return Ok(Vec::new());
        }
        let start = self.latest()?;
        files::create_private_directory(self.path.parent().unwrap_or(&self.path))?;
        files::publish(&self.incomplete(), b"")?;
        // No worker has been in what a killed process left.
        files::remove_directory(&self.path)?;
        let created = self.create(&start, sent).and_then(|(mut remarks, hook)| {
            remarks.extend(set_up(hook)?);
            Ok(remarks)
        });
        if created.is_err() {
            files::remove_directory(&self.path)?;
        }
        let remarks = created?;
        files::remove(&self.incomplete())?;
        Ok(remarks)
    }

    /// The file that exists while the worktree is being created.
    fn incomplete(&self) -> PathBuf {
        self.hidden("incomplete")
    }

    /// A path of dispatch's own beside the worktree, which no worker can write.
    fn hidden(&self, ending: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{ending}"))
    }

    /// Returns remarks, and the command line of the person's `post-checkout` hook, which did not run.
    fn create(&self, start: &str, sent: Option<&str>) -> Result<(Vec<String>, Option<String>)> {
        let what = format!("cannot make the worktree {}", self.path.display());
        let mut settings = Settings::of(self)?;
        let sparse = settings.sparse_patterns(self, sent)?;
        let own = self.git_dir();
        let hooks = settings.hooks(self);
        let head = format!("ref: {}", self.reference());
        make_repository(&own, &self.repository, &head, &settings.of_worktree(&hooks))?;
        let listed = self.git("for-each-ref").arg("--format=%(objectname) %(refname)");
        let listed = listed.words("refs/heads refs/remotes refs/tags").text(&what)?;
        let own_branch = format!(" {}", self.reference());
        let others = listed.lines().filter(|line| !line.ends_with(&own_branch));
        let others: String = others.map(|line| format!("{line}\n")).collect();
        write(&own.join("packed-refs"), &format!("# pack-refs with: sorted\n{others}"))?;
        if let Some(patterns) = sparse {
            write(&own.join("info/sparse-checkout"), &patterns)?;
        }

        // A worker's commit must not run in a filter that names a file of it.
        let is_persons = start == self.base && self.trunk.is_none();
        let mut checkout =
            git(&self.path, "-c submodule.recurse=false -c core.hooksPath=/dev/null -c");
        // Else Git LFS would link the person's files into the worktree, for the worker to write.
        let large_files = settings.large_files(&self.repository);
        checkout = checkout.arg(format!("lfs.storage={}", large_files.display()));
        if !is_persons {
            let off = settings.without_filters();
            checkout = checkout.args(off.iter().flat_map(|off| ["-c", off.as_str()]));
        }
        checkout.args(["checkout", "--quiet", "-B", &self.branch, start, "--"]).bytes(&what)?;
        let top = git(&self.path, "rev-parse --show-toplevel").bytes(&what)?;
        if path(&top) != self.path {
            let place = format!("git takes {} for its top level", path(&top).display());
            return Err(Refusal::new(Exit::CannotCreate, what).place(place).into());
        }
        let mut remarks: Vec<_> = self.fill_submodules(start).into_iter().collect();
        remarks.extend(self.include_files()?);
        Ok((remarks, Settings::checkout_hook(&hooks, start)))
    }

    /// Sets right what a move of the repository or a killed worker left.
    fn refresh(&self) -> Result<()> {
        let own = self.git_dir();
        let path = own.join("objects/info/alternates");
        let alternates = alternates(&self.repository);
        if files::read_foreign(&path)?.is_none_or(|text| text != alternates.as_bytes()) {
            files::publish(&path, alternates.as_bytes())?;
        }
        // The run lock proves that no worker holds these.
        for lock in ["index.lock", "HEAD.lock", "config.lock", "packed-refs.lock"] {
            files::remove(&own.join(lock))?;
        }
        let refs = walk(&own.join("refs")).into_iter().take(REFERENCES_LIMIT);
        for entry in refs.filter_map(Result::ok).filter(|it| it.file_type().is_file()) {
            if entry.path().extension().is_some_and(|end| end == "lock") {
                files::remove(entry.path())?;
            }
        }
        Ok(())
    }

    /// Only one process at a time fetches from the worktrees of a repository, or removes one.
    fn lock(&self) -> Result<Lock> {
        self.check_repository()?;
        let directory = self.path.parent().context("a worktree without a parent")?;
        files::create_private_directory(directory)?;
        Lock::take(&beside(directory, "lock"), LOCK_LIMIT)
    }

    fn reference(&self) -> String {
        format!("refs/heads/{}", self.branch)
    }

    /// A git command on the person's repository.
    fn git(&self, words: &str) -> Git {
        git_on(&self.repository, words)
    }

    fn is_deleted(&self) -> bool {
        self.path.symlink_metadata().is_err()
    }

    /// The worktree's own repository, which its worker writes.
    pub fn git_dir(&self) -> PathBuf {
        self.path.join(".git")
    }

    /// Returns true if the worktree is a repository of its own: its `.git` leads nowhere else.
    fn has_own_repository(&self) -> bool {
        self.git_dir().symlink_metadata().is_ok_and(|it| it.is_dir())
    }
}

impl fmt::Display for Worktree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, base) = (self.path.display(), short_id(&self.base));
        write!(f, "{path} (branch {}, from {base})", self.branch)
    }
}
