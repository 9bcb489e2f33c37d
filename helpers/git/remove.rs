//! Removing a worktree and its branch, only if all work in them is also elsewhere.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::domain::Worktree;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::command::{count, git_on, retry, succeeded, trim, unfinished};
use crate::git::repository::{Foreign, References, walk};
use crate::git::{first_paths, reference, references, short_id, worktrees_directory};
use crate::process::Identity;
use crate::text::{collect, lossy, sanitize};

/// Directories that tools make again: an ignored one with such a name, or with a `CACHEDIR.TAG`, may
/// be removed.
const CACHES: &str = "
.gradle .mypy_cache .next .parcel-cache .pytest_cache .ruff_cache .tox .turbo
.venv __pycache__ node_modules venv
";

/// The contents of a worktree, as far as a person needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The number of the task's commits.
    pub commits: usize,
    /// The commit to merge.
    pub tip: String,
    /// The files that are not committed.
    pub changed: Vec<String>,
    /// The branch that is checked out, if that is not the task's; `None` in it for no branch.
    pub other: Option<Option<String>>,
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tip = short_id(&self.tip);
        match self.commits {
            0 => write!(f, "no commits")?,
            1 => write!(f, "1 commit, {tip}")?,
            commits => write!(f, "{commits} commits, the last is {tip}")?,
        }
        match &self.other {
            Some(Some(branch)) => write!(f, ", on the worker's own branch {}", sanitize(branch))?,
            Some(None) => write!(f, ", on no branch")?,
            None => {}
        }
        match self.changed.is_empty() {
            true => Ok(()),
            false => write!(f, ", not committed: {}", first_paths(&self.changed)),
        }
    }
}

impl Worktree {
    /// The uncommitted files in the worktree.
    ///
    /// # Errors
    /// The worktree is no longer a repository of its own, or a submodule has commits that the person's clone
    /// lacks.
    pub fn changes(&self) -> Result<Vec<String>> {
        if self.is_deleted() {
            return Ok(Vec::new());
        }
        if !self.has_own_repository() {
            let what = format!("{} is no longer the worktree", self.path.display());
            return Refusal::new(Exit::Data, what)
                .refuse("restore its .git, or move it away and try again");
        }
        let foreign = self.foreign();
        let mut changed = self.changes_of(&foreign)?;
        for (path, submodule) in self.submodules(&foreign)? {
            let Some(submodule) = submodule else {
                changed.push(path);
                continue;
            };
            let references = submodule.all_references()?.into_iter().map(|(_, id)| id);
            for id in submodule.head()?.commit.into_iter().chain(references) {
                let is_saved = git_on(&submodule.persons, "cat-file -e").arg(&id).ok()?;
                let worktree = self.path.display();
                ensure!(is_saved, "the submodule {path} in {worktree} has own commits");
            }
            changed.extend(submodule.changes()?.iter().map(|name| format!("{path}/{name}")));
        }
        Ok(changed)
    }

    /// The uncommitted files, but for what is in submodules.
    fn changes_of(&self, foreign: &Foreign) -> Result<Vec<String>> {
        let mut changed = foreign.changes()?;
        if !changed.is_empty() && self.is_committed(foreign)? {
            changed.clear();
        }
        Ok(changed)
    }

    /// Returns true if the task's branch has exactly the files of the worktree, because
    /// [`Worktree::commit_rest`] committed them there.
    fn is_committed(&self, foreign: &Foreign) -> Result<bool> {
        let Some(branch) = self.references()?.branch else { return Ok(false) };
        let scratch = foreign.scratch(&branch)?;
        let read = scratch.git("read-tree").arg(&branch).run()?;
        // A commit has none of the files of a nested repository.
        let is_whole = read.status.success() && scratch.submodules()?.is_empty();
        Ok(is_whole && scratch.changes()?.is_empty())
    }

    /// Commits what the worker left uncommitted, after `tip` on the task's branch in the person's
    /// repository. Returns the commit.
    pub fn commit_rest(&self, tip: &str, message: &str) -> Result<String> {
        let _lock = self.lock()?;
        let cannot = "cannot commit what is in the worktree";
        let foreign = self.foreign();
        let scratch = foreign.scratch_with_index()?;
        let check_submodules = || match scratch.submodules()?.first() {
            None => anyhow::Ok(()),
            Some(name) => {
                let what = format!("the submodule {} is in the way", sanitize(name));
                Refusal::new(Exit::Data, what)
                    .refuse("dispatch the plan again, and let the worker commit")
            }
        };
        check_submodules()?;
        // Files that are staged are in no commit.
        foreign.copy_objects(&scratch)?;
        scratch.git("add --all -- .").bytes(cannot)?;
        // Now with the nested repositories, of which a commit has no files.
        check_submodules()?;
        let tree = scratch.git("write-tree").text(cannot)?;
        let commit = scratch.git("commit-tree -p").args([tip, "-m", message, &tree]);
        let commit = commit.text(cannot)?;
        foreign.take_large_files(&scratch.directory.0)?;
        foreign.fetch_from(&scratch, &commit, &format!("refs/heads/tip:{}", self.reference()))?;
        Ok(commit)
    }

    /// The unfinished merge, rebase or similar operation in the worktree.
    pub fn unfinished(&self) -> Option<&'static str> {
        unfinished(&self.git_dir())
    }

    /// Fetches the commits in the worktree, and returns what is in it; `None` if it was deleted.
    pub fn look(&self) -> Result<Option<Contents>> {
        if self.is_deleted() {
            return Ok(None);
        }
        let tip = self.fetch()?.context("the branch is gone")?;
        let commits = count(&self.repository, &[&tip, "--not", &self.base])?;
        let branch = self.head()?.branch;
        let other = (branch.as_ref() != Some(&self.branch)).then_some(branch);
        Ok(Some(Contents { commits, tip, changed: self.changes()?, other }))
    }

    /// Checks that no work would be lost with the worktree; the error says why it has to be kept.
    pub fn check_removable(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.check_removable_locked()
    }

    fn check_removable_locked(&self) -> Result<()> {
        if self.is_deleted() {
            return self.check_commits();
        }
        if let Some(what) = self.unfinished() {
            bail!("an unfinished {what} is in {}", self.path.display());
        }
        self.fetch_locked()?;
        let foreign = self.foreign();
        self.check_files(&foreign)?;
        self.check_references(&foreign)?;
        self.check_commits()
    }

    /// Checks that all files of the checkout are in a commit, or can be made again.
    fn check_files(&self, foreign: &Foreign) -> Result<()> {
        let path = self.path.display();
        let mut changed = self.changes()?;
        let scratch = foreign.scratch_with_index()?;
        let cannot_list = "cannot list the files of the worktree";
        let listed = scratch.git("ls-files -v --stage -z").records(cannot_list)?;
        let overlooked = listed.iter().filter_map(|line| {
            let (about, name) = line.split_once('\t')?;
            // Git ignores changes of assume-unchanged (lower case) and skip-worktree (S) files.
            let overlooked = about.starts_with(|tag: char| tag.is_ascii_lowercase())
                || about.starts_with('S') && self.path.join(name).symlink_metadata().is_ok();
            overlooked.then(|| name.to_owned())
        });
        changed.extend(overlooked);
        ensure!(changed.is_empty(), "not committed in {path}: {}", first_paths(&changed));
        let ignored = scratch.git("ls-files --others --ignored --exclude-standard -z");
        let ignored = ignored.words("--directory --no-empty-directory");
        let mut ignored = ignored.records(cannot_list)?;
        ignored.retain(|name| !self.has_elsewhere(name));
        ensure!(
            ignored.is_empty(),
            "git ignores files in {path} that are nowhere else: {}",
            first_paths(&ignored)
        );
        Ok(())
    }

    /// Returns true if the person's checkout has the same file, or all files of the same directory
    /// that are not in caches.
    fn has_elsewhere(&self, name: &str) -> bool {
        let top = self.path.join(name);
        let entries = walk(&top).into_iter().filter_entry(|it| !is_cache(it.path()));
        let mut entries =
            entries.filter(|it| it.as_ref().map_or(true, |it| !it.file_type().is_dir()));
        entries.all(|entry| {
            let Ok(own) = entry.map(walkdir::DirEntry::into_path) else { return false };
            let Ok(relative) = own.strip_prefix(&self.path) else { return false };
            let persons = self.checkout.as_ref().map(|checkout| checkout.join(relative));
            let read = |path: &Path| files::read_foreign(path).ok().flatten();
            let text = read(&own);
            text.is_some() && text == persons.and_then(|path| read(&path))
        })
    }

    /// Checks that no other reference of the worktree's repository has commits of its own.
    fn check_references(&self, foreign: &Foreign) -> Result<()> {
        let listed = self.git("for-each-ref --format=%(objectname)");
        let listed = listed.text("cannot list the branches")?;
        let saved: BTreeSet<&str> = collect(listed.lines());
        let references = foreign.all_references()?;
        for (name, id) in references.iter().filter(|(_, id)| !saved.contains(id.as_str())) {
            let what = name.strip_prefix("refs/heads/").unwrap_or(name);
            let path = self.path.display();
            ensure!(name != "refs/stash", "a stash was made in {path}");
            let exists = self.git("cat-file -e").arg(format!("{id}^{{commit}}")).ok()?;
            let is_saved = exists && self.commits_only_on(id)? == 0;
            ensure!(is_saved, "the worker's {} in {path} has commits of its own", sanitize(what));
        }
        Ok(())
    }

    /// Checks that the branch, and the commit that was fetched last, are not needed.
    fn check_commits(&self) -> Result<()> {
        let References { branch, checkout, tip } = self.references()?;
        if let Some(other) = checkout {
            bail!("{} is checked out in {other}", self.branch);
        }
        let stashes = self.git("stash list --format=%gs").said()?.to_lowercase();
        let on_branch = format!("on {}: ", self.branch).to_lowercase();
        let has_stash = stashes.lines().any(|line| line.contains(&on_branch));
        ensure!(!has_stash, "a stash was made on {}: git stash list", self.branch);
        let ends: BTreeSet<String> = collect(branch.into_iter().chain(tip));
        for end in &ends {
            let commits = self.commits_only_on(end)?;
            if commits > 0 && !self.is_taken_over(end)? && !self.is_squashed(end)? {
                let s = if commits == 1 { " is" } else { "s are" };
                bail!(
                    "not merged: {commits} commit{s} only in {}; merge brings the branch in",
                    self.branch
                );
            }
        }
        Ok(())
    }

    /// Returns true if the person's HEAD has each commit of the task in another form, as after a
    /// rebase, and what the task began at was the person's.
    fn is_taken_over(&self, tip: &str) -> Result<bool> {
        let trunk = self.trunk();
        // A snapshot is a copy of what the person had, and still has or threw away. A commit that the person's
        // own checkout was once at is no worker's; the person took it off its branch.
        let reflog = self.git("reflog show --format=%H HEAD").said()?;
        let is_persons = self.snapshot || reflog.lines().any(|line| line == trunk);
        if !is_persons && self.commits_only_on(trunk)? > 0 {
            return Ok(false);
        }
        let range = format!("HEAD...{tip}");
        let others = |more: &[&str]| {
            let own = ["--right-only", &range, "--not", trunk];
            count(&self.repository, &[&own[..], more].concat())
        };
        // Git takes any two empty commits for the same, and the message of one is work too.
        let with_files = others(&["--no-merges", "--full-history", "--", ":/"])?;
        Ok(others(&["--no-merges"])? == with_files && others(&["--cherry-pick"])? == 0)
    }

    /// Returns true if the person's HEAD has all that the commit changed: a merge of it would
    /// change nothing.
    fn is_squashed(&self, tip: &str) -> Result<bool> {
        let tree =
            |revision: &str| self.git("rev-parse").arg(format!("{revision}^{{tree}}")).said();
        // Empty commits have nothing that could be found elsewhere.
        let fork = self.git("merge-base HEAD").arg(tip).said()?;
        if fork.is_empty() || tree(tip)? == tree(&fork)? {
            return Ok(false);
        }
        let tree = tree("HEAD")?;
        let merged = self.git("merge-tree --write-tree HEAD").arg(tip).run()?;
        Ok(merged.status.success() && trim(&merged.stdout) == tree)
    }

    /// The number of commits of `tip` that no other branch reaches. The pushed copy of this branch
    /// does not count, because another person may delete it.
    fn commits_only_on(&self, tip: &str) -> Result<usize> {
        let own = format!("--exclude={}", self.branch);
        let pushed = format!("--exclude=*/{}", self.branch);
        let others = [tip, "--not", &own, "--branches", &pushed, "--remotes"];
        count(&self.repository, &others)
    }

    /// Removes the worktree and the branch; the error may be that of [`Worktree::check_removable`].
    /// Completes a removal that was killed.
    pub fn remove(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.remove_stale_scratch()?;
        self.undo_interrupted_removal()?;
        self.check_removable_locked()?;
        // Exactly the commits that were checked are deleted.
        let References { branch, tip, .. } = self.references()?;
        let aside = match self.is_deleted() {
            true => self.path_while_removed(),
            false => self.move_away()?,
        };
        fault::point("clean", "forgotten");
        files::remove_directory(&aside)?;
        fault::point("clean", "removed");
        let delete = |name: &str, commit: &str| -> Result<()> {
            let delete = || self.git("update-ref -d").args([name, commit]).run();
            succeeded(retry(delete)?, &format!("cannot delete {name}")).map(drop)
        };
        if let Some(branch) = branch {
            delete(&self.reference(), &branch)?;
            // A later branch of that name must not inherit the settings; usually there are none.
            let section = format!("branch.{}", self.branch);
            self.git("config --remove-section").arg(section).run()?;
        }
        fault::point("clean", "branch");
        if let Some(tip) = tip {
            delete(&reference("tip", &self.path), &tip)?;
        }
        self.git("update-ref -d").arg(reference("base", &self.path)).run()?;
        Ok(())
    }

    /// Removes the directories that killed processes left.
    pub(super) fn remove_stale_scratch(&self) -> Result<()> {
        let Some(directory) = self.path.parent() else { return Ok(()) };
        for name in files::entries(directory)? {
            let split = name.to_str().and_then(|name| name.rsplit_once('-'));
            let Some((kind, Ok(pid))) = split.map(|(kind, pid)| (kind, pid.parse())) else {
                continue;
            };
            let is_own = [".scratch", ".hooks", ".changes"].iter().any(|it| kind.ends_with(it));
            if is_own && Identity::of_pid(pid).is_ok_and(|it| it.is_none()) {
                files::remove_directory(&directory.join(&name))?;
            }
        }
        Ok(())
    }

    /// Returns true if nothing would be lost with the directory, once its commits were fetched.
    pub(super) fn is_saved(&self) -> Result<bool> {
        let foreign = self.foreign();
        let is_whole = self.unfinished().is_none() && self.submodules(&foreign)?.is_empty();
        let check = || self.check_files(&foreign).and_then(|()| self.check_references(&foreign));
        Ok(is_whole && check().is_ok())
    }

    /// Moves the directory to where it is removed, and returns that. Rename in one step: a half removed
    /// directory would look like one with changes.
    pub(super) fn move_away(&self) -> Result<PathBuf> {
        let (aside, mark) = (self.path_while_removed(), self.removal());
        // A removal that was killed may have left a part.
        files::remove_directory(&aside)?;
        files::publish(&mark, b"")?;
        rename(&self.path, &aside)?;
        fault::point("clean", "moved");
        // Look again for files that were written meanwhile.
        let moved = Foreign { git_dir: aside.join(".git"), tree: aside.clone(), ..self.foreign() };
        let late = self.changes_of(&moved);
        if !late.as_ref().is_ok_and(Vec::is_empty) {
            rename(&aside, &self.path)?;
            bail!("not committed in {}: {}", self.path.display(), first_paths(&late?));
        }
        files::remove(&mark)?;
        Ok(aside)
    }

    /// The directory's name during the removal.
    fn path_while_removed(&self) -> PathBuf {
        self.hidden("removed")
    }

    /// The file that exists until the removal cannot be undone any more.
    fn removal(&self) -> PathBuf {
        self.hidden("removing")
    }

    /// Moves the directory back if its removal was killed before its files were looked at again.
    pub(super) fn undo_interrupted_removal(&self) -> Result<()> {
        let (aside, mark) = (self.path_while_removed(), self.removal());
        if mark.exists() && aside.exists() && self.is_deleted() {
            rename(&aside, &self.path)?;
        }
        files::remove(&mark)
    }
}

/// Deletes dispatch's own references of worktrees that a person removed, unless they hold commits that
/// are nowhere else. `is_owned` says which paths are those of tasks.
pub fn forget_removed(repository: &Path, is_owned: impl Fn(&Path) -> bool) -> Result<()> {
    let directory = worktrees_directory(repository)?;
    for name in references(repository, "refs/dispatch/base refs/dispatch/tip")? {
        let path = directory.join(name.rsplit('/').next().unwrap_or_default());
        if path.symlink_metadata().is_ok() || is_owned(&path) {
            continue;
        }
        let saved = [name.as_str(), "--not", "--branches", "--remotes", "--tags", "HEAD"];
        if count(repository, &saved).is_ok_and(|lost| lost == 0) {
            git_on(repository, "update-ref -d").arg(&name).run()?;
        }
    }
    Ok(())
}

/// Returns true if a tool makes an ignored file or directory again.
fn is_cache(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_directory = path.symlink_metadata().is_ok_and(|it| it.is_dir());
    is_directory
        && (CACHES.split_whitespace().any(|it| it == name) || path.join("CACHEDIR.TAG").is_file())
        || name.ends_with(".pyc")
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

impl Worktree {
    /// The submodules and nested repositories that have files in the worktree, by their paths there, each with
    /// the repositories that are compared; `None` if the person has no clone of it.
    fn submodules(&self, top: &Foreign) -> Result<Vec<(String, Option<Foreign>)>> {
        let (mut found, mut open) = (Vec::new(), vec![(String::new(), top.clone())]);
        while let Some((below, outer)) = open.pop() {
            for name in outer.scratch_with_index()?.submodules()? {
                let (tree, path) = (outer.tree.join(&name), format!("{below}{name}"));
                let module = named_module(&tree, &outer.git_dir.join("modules"));
                let foreign = module.map(|module| {
                    let of = |repository: &Path| repository.join("modules").join(&module);
                    let (git_dir, persons) = (of(&outer.git_dir), of(&outer.persons));
                    Foreign { tree, git_dir, persons, scratch: top.scratch.clone() }
                });
                let foreign = foreign.filter(|foreign| foreign.persons.is_dir());
                open.extend(foreign.iter().map(|it| (format!("{path}/"), it.clone())));
                found.push((path, foreign));
            }
        }
        Ok(found)
    }
}

/// The name of the module that a submodule's `.git` file leads to, if it is one of these.
fn named_module(checkout: &Path, modules: &Path) -> Option<PathBuf> {
    let text = lossy(files::read_foreign(&checkout.join(".git")).ok()??);
    let named = checkout.join(text.strip_prefix("gitdir:")?.trim());
    let named = named.canonicalize().ok()?;
    Some(named.strip_prefix(modules).ok()?.to_path_buf())
}
