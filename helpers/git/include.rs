//! Files that a worktree gets besides a commit of the person (uncommitted and ignored ones of the checkout,
//! and submodules), and code that travels to a place and back, over git's `ext` transport.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::process::Output;

use anyhow::{Context, Result};

use crate::domain::Worktree;
use crate::error::{Exit, Refusal};
use crate::files;
use crate::git::command::{count, error_line, git, git_on, path, succeeded, trim};
use crate::git::repository::object_id;
use crate::git::{Contents, first_paths};
use crate::text::sanitize;

/// The file in a checkout with patterns of ignored files that its worktrees get (Claude Code's own).
const INCLUDE: &str = ".worktreeinclude";

/// How many files, and how many bytes of them, a worktree gets by [`INCLUDE`].
const INCLUDED_FILES: usize = 1000;
const INCLUDED_BYTES: u64 = 64 << 20;

/// Commits what is in a checkout, without touching its index or its branch.
pub(super) fn commit_changes(here: &Path, worktree: &Path, head: &str) -> Result<String> {
    let what = "cannot take the uncommitted changes along";
    let own = git(here, "rev-parse --path-format=absolute --git-path index").bytes(what)?;
    let directory = worktree.parent().context("a worktree without a parent")?;
    files::create_private_directory(directory)?;
    let index = worktree.with_file_name(format!(".index-{}", std::process::id()));
    let with_index = |words: &str| git(here, words).env("GIT_INDEX_FILE", &index);
    let commit = || {
        // The copy knows which files are unchanged, so git need not read them.
        std::fs::copy(path(&own), &index).context(what)?;
        with_index("add --all -- :(top) :(top,exclude).dispatch").bytes(what)?;
        let tree = with_index("write-tree").text(what)?;
        let commit = git(here, "commit-tree -p").args([head, "-m", "Uncommitted changes", &tree]);
        commit.text(what)
    };
    let made = commit();
    files::remove(&index)?;
    made
}

impl Worktree {
    /// Copies the ignored files of the person's checkout that its `.worktreeinclude` names.
    pub(super) fn include_files(&self) -> Result<Option<String>> {
        let Some(checkout) = self.checkout.as_ref().filter(|it| it.join(INCLUDE).is_file()) else {
            return Ok(None);
        };
        let listed = |patterns: &str| -> Result<BTreeSet<String>> {
            let list = git(checkout, "ls-files --others --ignored -z").arg(patterns);
            Ok(list.records("cannot list the files to include")?.into_iter().collect())
        };
        let named = listed(&format!("--exclude-from={INCLUDE}"))?;
        if named.is_empty() {
            return Ok(None);
        }
        let ignored = listed("--exclude-standard")?;
        let (mut copied, mut left, mut size) = (Vec::new(), Vec::new(), 0);
        for name in named.intersection(&ignored) {
            let from = checkout.join(name);
            let length = from
                .symlink_metadata()
                .map_or(0, |it| if it.is_file() { it.len() } else { u64::MAX });
            size = length.saturating_add(size);
            if copied.len() >= INCLUDED_FILES || size > INCLUDED_BYTES {
                size -= length.min(size);
                left.push(name.clone());
                continue;
            }
            let to = self.path.join(name);
            files::create_task_directory(to.parent().unwrap_or(&self.path))?;
            files::publish(&to, &files::read_foreign(&from)?.unwrap_or_default())?;
            copied.push(name.clone());
        }
        let copied = (!copied.is_empty()).then(|| format!("copied {}", first_paths(&copied)));
        let left = (!left.is_empty()).then(|| format!("too large: {}", first_paths(&left)));
        let words: Vec<_> = copied.into_iter().chain(left).collect();
        Ok((!words.is_empty()).then(|| format!("{INCLUDE}: {}", words.join("; "))))
    }

    /// Fills the submodules without a network, from the repository's own clones of them. Leaves them
    /// empty if a worker's commit says where they are.
    pub(super) fn fill_submodules(&self, start: &str) -> Option<String> {
        let list = |commit: &str| {
            let id = self.git("rev-parse --verify --quiet");
            id.arg(format!("{commit}:.gitmodules")).said()
        };
        if list(start).ok() != list(self.trunk()).ok() {
            return Some(
                "a worker changed .gitmodules: submodules are empty in the worktree".into(),
            );
        }
        let mut empty = Vec::new();
        fill_submodules(&self.path, &self.repository.join("modules"), Path::new(""), &mut empty);
        let names = empty.join(", ");
        (!empty.is_empty()).then(|| format!("submodules that are empty in the worktree: {names}"))
    }
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
        // `.gitmodules` may still name a submodule that was removed, or that is something else now.
        if !stays_below(path) || !is_submodule(top, path) {
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

/// Returns true if a path that a repository's own text names stays inside the repository.
fn stays_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Returns true if git has a submodule in that place, and no link leads elsewhere.
fn is_submodule(top: &Path, path: &Path) -> bool {
    let listed = git(top, "--literal-pathspecs ls-files --stage -z --").arg(path).said();
    let real = top.join(path).canonicalize();
    listed.is_ok_and(|it| it.starts_with("160000 ")) && real.ok() == Some(top.join(path))
}

fn fill_submodule(top: &Path, path: &Path, name: &str, clone: &Path) -> Result<()> {
    // Settings of this one command leave the repository's configuration unchanged.
    // An address makes git copy the objects: a link would let the worker write the person's. Version
    // 2 also gives commits that only the clone's remote branches have.
    let clone = clone.to_str().context("a path that is no text")?.replace('%', "%25");
    let url = format!("submodule.{name}.url=file://{clone}");
    let update = "-c protocol.allow=never -c protocol.file.allow=always -c protocol.version=2 -c";
    let update = git(top, update).arg(url);
    let update = update.words("submodule --quiet update --init --").arg(path);
    update.bytes("cannot fill a submodule").map(drop)
}

/// The way to a repository at a place: its URL, and a variable that git hands on.
pub(super) type Far = [(String, String); 2];

/// The person's name and address for commits in a repository; empty where git knows none.
pub fn author(repository: &Path) -> Result<[String; 2]> {
    let ask = |key: &str| git_on(repository, "config --get").arg(key).said();
    Ok([ask("user.name")?, ask("user.email")?])
}

/// Makes a bare repository for code from another machine.
pub fn make_receiver(path: &Path, author: &[String; 2]) -> Result<()> {
    if !path.join("HEAD").is_file() {
        files::create_private_directory(path)?;
        git(path, "init --quiet --bare --template= .").text("cannot make a repository")?;
    }
    for (key, value) in ["user.name", "user.email"].iter().zip(author) {
        if !value.is_empty() {
            git_on(path, "config")
                .args([key, value.as_str()])
                .text("cannot set up a repository")?;
        }
    }
    Ok(())
}

/// Makes HEAD of a bare repository name a commit that came from another machine.
pub fn set_head(path: &Path, commit: &str) -> Result<()> {
    let commit = object_id(commit).context("no commit")?;
    git_on(path, "update-ref --no-deref HEAD").arg(commit).text("the commit has not come").map(drop)
}

/// Refuses the output of a git whose connection was lost, which says nothing about the place.
///
/// # Errors
/// [`Exit::TryAgain`] if the helper that carries git has complained.
fn refuse_lost(output: &Output) -> Result<(), Refusal> {
    let said = String::from_utf8_lossy(&output.stderr);
    match said.lines().find(|line| line.starts_with("dispatch-spawn: ")) {
        Some(line) if !output.status.success() => {
            Err(Refusal::new(Exit::TryAgain, sanitize(line)).next("wait until the place answers"))
        }
        _ => Ok(()),
    }
}

impl Worktree {
    /// The commit at which the task goes on at another place: the last that was fetched, else its base.
    pub fn latest(&self) -> Result<String> {
        let references = self.references()?;
        let branch = references.branch.map(|it| it.commit);
        Ok(branch.or(references.tip).unwrap_or_else(|| self.base.clone()))
    }

    /// The commits of a task at a place that were fetched; `None` before there are any.
    pub fn look_far(&self) -> Result<Option<Contents>> {
        let Some(tip) = self.fetch()? else { return Ok(None) };
        let commits = count(&self.repository, &[&tip, "--not", &self.base])?;
        Ok(Some(Contents { commits, tip, changed: Vec::new(), other: None }))
    }

    /// Sends a commit to a repository at a place.
    pub fn send(&self, far: &Far, commit: &str, name: &str) -> Result<()> {
        let [(_, url), (variable, value)] = far;
        let options =
            "-c protocol.ext.allow=always -c core.hooksPath=/dev/null -c push.followTags=false
            push --quiet --no-verify --no-recurse-submodules --no-follow-tags";
        let refspec = format!("+{commit}:refs/dispatch/from/{name}");
        let sent =
            git_on(&self.repository, options).env(variable, value).args([url, &refspec]).run()?;
        refuse_lost(&sent)?;
        succeeded(sent, "cannot send the code").map(drop)
    }

    /// Fetches the branch of the task at a place, like [`Worktree::fetch`]: one reference, checked in a
    /// scratch repository first.
    ///
    /// # Errors
    /// [`Exit::Data`] if the place sends damaged objects or none.
    pub fn fetch_far(&self, far: &Far, branch: &str) -> Result<Option<String>> {
        let _lock = self.lock()?;
        let [(_, url), (variable, value)] = far;
        let foreign = self.foreign();
        let scratch = foreign.scratch(&self.base)?;
        let options = "-c fetch.fsckObjects=true -c core.hooksPath=/dev/null -c gc.auto=0
            -c protocol.ext.allow=always -c fetch.writeCommitGraph=false -c transfer.bundleURI=false
            fetch --quiet --no-tags --no-recurse-submodules --no-write-fetch-head --no-auto-maintenance
            --refmap=";
        let refspec = format!("+refs/heads/{branch}:refs/heads/far");
        let fetch = git_on(&scratch.directory, options);
        let fetched = fetch.env(variable, value).args([url, &refspec]).run()?;
        refuse_lost(&fetched)?;
        if !fetched.status.success() {
            return Err(Refusal::new(Exit::Data, format!("cannot fetch {}", self.branch))
                .place(error_line(&fetched))
                .next("dispatch tries again when the place answers")
                .into());
        }
        let tip = git_on(&scratch.directory, "rev-parse --verify --quiet refs/heads/far");
        let tip = object_id(&tip.text("the branch has no commit")?).context("no commit")?;
        self.take(&tip, |tip, reference| {
            foreign.fetch_from(&scratch, tip, &format!("+refs/heads/tip:{reference}"))
        })
    }
}
