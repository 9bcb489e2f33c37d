//! Removing a worktree and its branch, only if all work in them is also elsewhere.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

use crate::domain::Worktree;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::git::command::{git, git_dir, git_on, retry, succeeded};
use crate::git::merge::{count, unfinished};
use crate::git::{
    STATUS, branches, changes, commit_id, first_paths, named_git_dir, worktrees_directory,
};
use crate::text::shell_word;

impl Worktree {
    /// The uncommitted files in the worktree.
    pub fn changes(&self) -> Result<Vec<String>> {
        if self.is_deleted() {
            return Ok(Vec::new());
        }
        // Without an own `.git`, git would answer for the repository around the directory.
        if self.git_dir().is_none() {
            let what = format!("{} is no longer the worktree", self.path.display());
            return Err(Refusal::new(Exit::Data, what)
                .next("restore its .git, or move it away and try again")
                .into());
        }
        // The person's configuration may hide some of these.
        let all = "--untracked-files=normal --ignore-submodules=none";
        changes(git(&self.path, STATUS).words(all))
    }

    /// The unfinished merge, rebase or similar operation in the worktree.
    pub fn unfinished(&self) -> Result<Option<&'static str>> {
        Ok(self.git_dir().as_deref().and_then(unfinished))
    }

    /// The commits and the uncommitted files in the worktree, as one line for a person.
    pub fn summary(&self) -> Result<String> {
        if self.is_deleted() {
            return Ok("deleted".into());
        }
        let commits = count(&self.repository, &[&format!("{}..{}", self.base, self.branch)])?;
        let commits = if commits == 1 { "1 commit".into() } else { format!("{commits} commits") };
        let changed = self.changes()?;
        Ok(match changed.is_empty() {
            true => commits,
            false => format!("{commits}, not committed: {}", first_paths(&changed)),
        })
    }

    /// The branch that is checked out in the worktree, also if it was deleted; `None` if HEAD is detached.
    pub fn checked_out(&self) -> Result<Option<String>> {
        if self.is_deleted() {
            return Ok(Some(self.branch.clone()));
        }
        let head = git(&self.path, "symbolic-ref --quiet HEAD").said()?;
        Ok(head.strip_prefix("refs/heads/").map(str::to_owned))
    }

    /// Checks that no work would be lost with the worktree; the error says why it has to be kept.
    pub fn check_removable(&self) -> Result<()> {
        ensure!(self.repository.is_dir(), "its repository {} is gone", self.repository.display());
        let path = self.path.display();
        let entry = match (self.is_deleted(), self.git_dir()) {
            (true, _) => self.deleted_git_dir()?,
            (false, None) => bail!("{path} is no longer its worktree"),
            (false, entry) => entry,
        };
        if let Some(entry) = &entry {
            let locked = entry.join("locked").exists();
            ensure!(!locked, "its worktree is locked: git worktree unlock {path}");
            if let Some(what) = unfinished(entry) {
                bail!("an unfinished {what} is in {path}");
            }
            self.check_files(entry)?;
            self.check_submodules(entry)?;
        }
        self.check_commits(entry.as_deref())
    }

    /// Checks that all files of the checkout are in a commit.
    fn check_files(&self, entry: &Path) -> Result<()> {
        let path = self.path.display();
        if self.is_deleted() {
            let same = git_on(entry, "diff-index --cached --quiet HEAD").ok()?;
            ensure!(same, "{path} was deleted with staged changes, which git still has");
            return Ok(());
        }
        let mut changed = self.changes()?;
        let cannot_list = "cannot list the files of the worktree";
        let listed = git(&self.path, "ls-files -v --stage -z").records(cannot_list)?;
        let overlooked = listed.iter().filter_map(|line| {
            let (about, name) = line.split_once('\t')?;
            let path = self.path.join(name);
            // Git ignores changes of assume-unchanged (lower case) and skip-worktree (S) files. A
            // nested repository (160000) has work of which this one knows only a commit id.
            let overlooked = about.starts_with(|tag: char| tag.is_ascii_lowercase())
                || about.starts_with('S') && path.exists()
                || about.contains(" 160000 ") && path.join(".git").is_dir();
            overlooked.then(|| name.to_owned())
        });
        changed.extend(overlooked);
        ensure!(changed.is_empty(), "not committed in {path}: {}", first_paths(&changed));
        // A worker may have written its report here instead of in the task directory.
        let ignored = git(&self.path, "ls-files --others --ignored --exclude-standard -z");
        let ignored = ignored.words("-- :(glob)**/.dispatch/**").records(cannot_list)?;
        match ignored.first() {
            Some(first) => bail!("{first} is in {path}"),
            None => Ok(()),
        }
    }

    /// Checks that no submodule has a commit that exists only in this worktree.
    fn check_submodules(&self, entry: &Path) -> Result<()> {
        let modules = entry.join("modules");
        let found = WalkDir::new(&modules).into_iter().filter_map(Result::ok);
        let is_repository = |it: &walkdir::DirEntry| {
            it.path().join("HEAD").is_file() && it.path().join("objects").is_dir()
        };
        for module in found.filter(is_repository) {
            let name = module.path().strip_prefix(&modules).unwrap_or(module.path());
            let clone = self.repository.join("modules").join(name);
            let tips = git_on(module.path(), "rev-list HEAD --all --not --remotes")
                .text("cannot look into a submodule")?;
            for tip in tips.lines() {
                let saved = clone.is_dir() && git_on(&clone, "cat-file -e").arg(tip).ok()?;
                let (name, path) = (name.display(), self.path.display());
                ensure!(saved, "the submodule {name} in {path} has own commits");
            }
        }
        Ok(())
    }

    /// Checks that the branch, and the commit that is checked out instead, are not needed.
    fn check_commits(&self, entry: Option<&Path>) -> Result<()> {
        let branch = self.tip()?;
        if let Some(other) = self.checked_out_elsewhere()? {
            bail!("{} is checked out in {other}", self.branch);
        }
        let stashes = self.git("stash list --format=%gs").said()?.to_lowercase();
        let on_branch = format!("on {}: ", self.branch).to_lowercase();
        let has_stash = stashes.lines().any(|line| line.contains(&on_branch));
        ensure!(!has_stash, "a stash was made on {}: git stash list", self.branch);
        let head = entry.map(|entry| commit_id(entry, "HEAD")).transpose()?.flatten();
        let detached = head.filter(|head| Some(head) != branch.as_ref());
        let path = self.path.display().to_string();
        for (tip, place) in branch.iter().zip([&self.branch]).chain(detached.iter().zip([&path])) {
            let commits = self.commits_only_on(tip)?;
            if commits > 0 && !(*tip == self.base && self.is_in_reflog(tip)?) {
                let s = if commits == 1 { " is" } else { "s are" };
                bail!(
                    "not merged: {commits} commit{s} only in {place}; merge brings back what is on its branch"
                );
            }
        }
        Ok(())
    }

    /// The number of commits of `tip` that no other branch reaches. The pushed copy of this branch does
    /// not count, because another person may delete it.
    fn commits_only_on(&self, tip: &str) -> Result<usize> {
        let own = format!("--exclude={}", self.branch);
        let pushed = format!("--exclude=*/{}", self.branch);
        let others = [tip, "--not", &own, "--branches", &pushed, "--remotes"];
        count(&self.repository, &others)
    }

    /// Whether the person's own checkout was once at that commit. The commit is then no worker's, and
    /// the person took it off its branch.
    fn is_in_reflog(&self, tip: &str) -> Result<bool> {
        let reflog = self.git("reflog show --format=%H HEAD").said()?;
        Ok(reflog.lines().any(|line| line == tip))
    }

    /// Another checkout of the branch, which would be left without it.
    pub(super) fn checked_out_elsewhere(&self) -> Result<Option<String>> {
        let listed = self.git("worktree list --porcelain").text("cannot list the worktrees")?;
        let line = format!("branch {}", self.reference());
        let of_it = listed.split("\n\n").filter(|entry| entry.lines().any(|it| it == line));
        let mut paths = of_it.filter_map(|entry| entry.lines().next()?.strip_prefix("worktree "));
        Ok(paths.find(|path| Path::new(path) != self.path).map(str::to_owned))
    }

    /// Removes the worktree and the branch; the error may be that of [`Worktree::check_removable`].
    /// Completes a removal that was killed.
    pub fn remove(&self) -> Result<()> {
        if !self.repository.is_dir() {
            return self.check_removable();
        }
        let _lock = self.lock()?;
        self.undo_interrupted_removal()?;
        // Read the tip before the checks, so that we delete exactly the commit we checked.
        let tip = self.tip()?;
        self.check_removable()?;
        let aside = self.path_while_removed();
        if let Some(entry) = self.git_dir() {
            // Rename in one step: a half removed directory would look like one with changes.
            rename(&self.path, &aside)?;
            fault::point("clean", "moved");
            // Look again for files that were written meanwhile.
            let tree = git(&aside, "--work-tree=.").arg(git_dir(&entry)).words(STATUS);
            let late = changes(tree.words("--untracked-files=normal --ignore-submodules=all"));
            if !late.as_ref().is_ok_and(Vec::is_empty) {
                rename(&aside, &self.path)?;
                bail!("not committed in {}: {}", self.path.display(), first_paths(&late?));
            }
        }
        if self.deleted_git_dir()?.is_some() {
            let forget = || self.git("worktree remove").arg(&self.path).run();
            succeeded(retry(forget)?, "cannot remove the worktree")?;
            fault::point("clean", "forgotten");
        }
        files::remove_directory(&aside)?;
        fault::point("clean", "removed");
        if let Some(tip) = tip {
            let delete = || self.git("update-ref -d").args([&self.reference(), &tip]).run();
            succeeded(retry(delete)?, &format!("cannot delete the branch {}", self.branch))?;
            // A later branch of that name must not inherit the settings; usually there are none.
            let section = format!("branch.{}", self.branch);
            self.git("config --remove-section").arg(section).run()?;
        }
        fault::point("clean", "branch");
        Ok(())
    }

    /// The directory's name during the removal.
    fn path_while_removed(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.removed"))
    }

    /// Moves the directory back if its removal was killed and git still knows the worktree.
    pub(super) fn undo_interrupted_removal(&self) -> Result<()> {
        let aside = self.path_while_removed();
        let known = self.git_dir_at(&aside).is_some() && self.deleted_git_dir()?.is_some();
        if known && self.is_deleted() {
            rename(&aside, &self.path)?;
        }
        Ok(())
    }

    /// Git's own directory for a worktree whose checkout was deleted.
    fn deleted_git_dir(&self) -> Result<Option<PathBuf>> {
        let entries = match std::fs::read_dir(self.repository.join("worktrees")) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            entries => entries.context("cannot list the worktrees of the repository")?,
        };
        let parent = self.path.parent().and_then(|parent| parent.canonicalize().ok());
        let is_own = |entry: &PathBuf| {
            let text = files::read(&entry.join("gitdir")).ok().flatten().unwrap_or_default();
            let checkout = entry.join(text.trim());
            let checkout = checkout.parent().filter(|it| it.file_name() == self.path.file_name());
            let above = checkout.and_then(Path::parent).and_then(|it| it.canonicalize().ok());
            parent.is_some() && above == parent
        };
        Ok(entries.flatten().map(|entry| entry.path()).find(is_own))
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to)
        .with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// A worktree or branch that dispatch made in a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Artifact {
    /// The worktree in this directory.
    Worktree(PathBuf),
    /// The branch of this name.
    Branch(String),
}

impl Artifact {
    /// Whether this is that worktree or its branch.
    pub fn belongs_to(&self, worktree: &Worktree) -> bool {
        match self {
            Self::Worktree(path) => worktree.path == *path,
            Self::Branch(branch) => worktree.branch == *branch,
        }
    }

    /// One line with the command that keeps its commits and the command that removes it.
    pub fn remedy(&self) -> String {
        let path = match self {
            Self::Worktree(path) => path.display().to_string(),
            Self::Branch(branch) => {
                return format!(
                    "branch {branch} — git merge {branch} brings it back, git branch -d {branch} removes it"
                );
            }
        };
        let directory = shell_word(&path);
        match (self.checked_out(), self.head()) {
            // Git also removes ignored files without a warning, and a report may be one.
            (Some(branch), _) => format!(
                "worktree {path} — git merge {branch} brings it back, git worktree remove {directory} removes it and what git ignores in it"
            ),
            // Git would remove commits that are on no branch.
            (None, Some(_)) => {
                format!("worktree {path} — git -C {directory} switch -c NAME keeps its commits")
            }
            (None, None) => format!("worktree {path} — git does not know it; look into it"),
        }
    }

    /// The branch that is checked out in a worktree, read from git's files.
    pub fn checked_out(&self) -> Option<String> {
        self.head()?.strip_prefix("ref: refs/heads/").map(str::to_owned)
    }

    /// The text of git's HEAD of a worktree.
    fn head(&self) -> Option<String> {
        let Self::Worktree(worktree) = self else { return None };
        let head = named_git_dir(worktree)?.join("HEAD");
        Some(files::read(&head).ok()??.trim().to_owned())
    }

    /// The last part of the name, usually the task's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Worktree(path) => path.file_name().and_then(|it| it.to_str()).unwrap_or_default(),
            Self::Branch(branch) => branch.rsplit('/').next().unwrap_or_default(),
        }
    }
}

/// The worktrees and branches that dispatch made in a repository, read without starting git. Packed
/// branches are missing.
pub fn artifacts(repository: &Path) -> Vec<Artifact> {
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        names.sort();
        names
    };
    let directory = worktrees_directory(repository).unwrap_or_default();
    let worktrees =
        names(&directory).into_iter().map(|name| Artifact::Worktree(directory.join(name)));
    let branches = names(&repository.join("refs/heads/dispatch"));
    let branch = |name: OsString| Some(Artifact::Branch(format!("dispatch/{}", name.to_str()?)));
    worktrees.chain(branches.into_iter().filter_map(branch)).collect()
}

/// All worktrees and branches that dispatch made in a repository, packed branches included.
pub fn all_artifacts(repository: &Path) -> Result<Vec<Artifact>> {
    let mut all = artifacts(repository);
    let listed = branches(repository, "refs/heads/dispatch/")?.into_iter().map(Artifact::Branch);
    let packed: Vec<_> = listed.filter(|branch| !all.contains(branch)).collect();
    all.extend(packed);
    Ok(all)
}
