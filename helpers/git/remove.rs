//! Removing a worktree and its branch when all that is in them is safe elsewhere, and only then.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::domain::Worktree;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::git::command::{git, on, patiently, run, stdout, text};
use crate::git::merge::{count, unfinished};
use crate::git::{STATUS, changes, commit, directory_of, first_of};
use crate::text::shell_word;

impl Worktree {
    /// The files in it that are in no commit.
    pub fn changes(&self) -> Result<Vec<String>> {
        if self.path.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        // Git would answer for the repository around it.
        if self.entry().is_none() {
            let what = format!("{} is not the worktree any more", self.path.display());
            return Err(Refusal::new(Exit::Data, what)
                .next("put its .git back, or move it away and call again")
                .into());
        }
        // Whatever the person's configuration hides.
        let all = ["--untracked-files=normal", "--ignore-submodules=none"];
        changes(git(&self.path).args(STATUS).args(all))
    }

    /// The merge, rebase or the like in it that nobody has finished.
    pub fn unfinished(&self) -> Result<Option<&'static str>> {
        Ok(self.entry().as_deref().and_then(unfinished))
    }

    /// What is in it, for a person: its commits, and the files that are in none.
    pub fn standing(&self) -> Result<String> {
        if self.path.symlink_metadata().is_err() {
            return Ok("deleted".into());
        }
        let commits = count(&self.repository, &[&format!("{}..{}", self.base, self.branch)])?;
        let commits = if commits == 1 { "1 commit".into() } else { format!("{commits} commits") };
        let changed = self.changes()?;
        Ok(match changed.is_empty() {
            true => commits,
            false => format!("{commits}, not committed: {}", first_of(&changed)),
        })
    }

    /// The branch that is checked out in it; `None` if it is there and none is.
    pub fn checked_out(&self) -> Result<Option<String>> {
        if self.path.symlink_metadata().is_err() {
            return Ok(Some(self.branch.clone()));
        }
        let head = run(git(&self.path).args(["symbolic-ref", "--quiet", "HEAD"]))?;
        Ok(text(&head.stdout).strip_prefix("refs/heads/").map(str::to_owned))
    }

    /// Why it has to be kept; `None` if nothing would be lost with it.
    pub fn needed(&self) -> Result<Option<String>> {
        if !self.repository.is_dir() {
            return Ok(Some(format!("its repository {} is gone", self.repository.display())));
        }
        let path = self.path.display();
        let entry = match (self.path.symlink_metadata().is_ok(), self.entry()) {
            (true, None) => return Ok(Some(format!("{path} is not its worktree any more"))),
            (true, entry) => entry,
            (false, _) => self.entry_of_deleted()?,
        };
        if let Some(entry) = &entry {
            if entry.join("locked").exists() {
                return Ok(Some(format!("its worktree is locked: git worktree unlock {path}")));
            }
            if let Some(what) = unfinished(entry) {
                return Ok(Some(format!("an unfinished {what} is in {path}")));
            }
            if let Some(changed) = self.unsaved(entry)? {
                return Ok(Some(changed));
            }
            if let Some(submodule) = self.submodule_with_commits(entry)? {
                return Ok(Some(format!("the submodule {submodule} in {path} has own commits")));
            }
        }
        self.unmerged(entry.as_deref())
    }

    /// What is in its checkout and in no commit.
    fn unsaved(&self, entry: &Path) -> Result<Option<String>> {
        let path = self.path.display();
        if self.path.symlink_metadata().is_err() {
            let staged = run(on(entry).args(["diff-index", "--cached", "--quiet", "HEAD"]))?;
            let why = format!("{path} was deleted with staged changes, which git still has");
            return Ok((!staged.status.success()).then_some(why));
        }
        let mut changed = self.changes()?;
        let listed = run(git(&self.path).args(["ls-files", "-v", "--stage", "-z"]))?;
        let listed = stdout(listed, "cannot list the files of the worktree")?;
        let overlooked = listed.split(|&byte| byte == 0).filter_map(|line| {
            let line = String::from_utf8_lossy(line);
            let (about, name) = line.split_once('\t')?;
            let path = self.path.join(name);
            // Git was told to overlook a change in the first two. The last is a repository of its
            // own, and of what is in that only the name of a commit is in this one.
            let overlooked = about.starts_with(|tag: char| tag.is_ascii_lowercase())
                || about.starts_with('S') && path.exists()
                || about.contains(" 160000 ") && path.join(".git").is_dir();
            overlooked.then(|| name.to_owned())
        });
        changed.extend(overlooked);
        if !changed.is_empty() {
            return Ok(Some(format!("not committed in {path}: {}", first_of(&changed))));
        }
        // A report that its worker wrote there, and not where the task is, is ignored by git.
        let mut ignored = git(&self.path);
        ignored.args(["ls-files", "--others", "--ignored", "--exclude-standard", "-z"]);
        let ignored = run(ignored.args(["--", ":(glob)**/.dispatch/**"]))?;
        let ignored = stdout(ignored, "cannot list the files of the worktree")?;
        let first = ignored.split(|&byte| byte == 0).next().filter(|first| !first.is_empty());
        Ok(first.map(|first| format!("{} is in {path}", String::from_utf8_lossy(first))))
    }

    /// The first submodule with a commit that is nowhere but in this worktree.
    fn submodule_with_commits(&self, entry: &Path) -> Result<Option<String>> {
        let modules = entry.join("modules");
        let found = WalkDir::new(&modules).into_iter().filter_map(Result::ok);
        let is_repository = |it: &walkdir::DirEntry| {
            it.path().join("HEAD").is_file() && it.path().join("objects").is_dir()
        };
        for module in found.filter(is_repository) {
            let name = module.path().strip_prefix(&modules).unwrap_or(module.path());
            let clone = self.repository.join("modules").join(name);
            let mut tips = on(module.path());
            tips.args(["rev-list", "HEAD", "--all", "--not", "--remotes"]);
            let tips = text(&stdout(run(&mut tips)?, "cannot look into a submodule")?);
            for tip in tips.lines() {
                if !clone.is_dir()
                    || !run(on(&clone).args(["cat-file", "-e", tip]))?.status.success()
                {
                    return Ok(Some(name.display().to_string()));
                }
            }
        }
        Ok(None)
    }

    /// Why its branch has to be kept, or what is checked out in its place.
    fn unmerged(&self, entry: Option<&Path>) -> Result<Option<String>> {
        let own = format!("refs/heads/{}", self.branch);
        let branch = commit(&self.repository, &own)?;
        if let Some(other) = self.checked_out_elsewhere(&own)? {
            return Ok(Some(format!("{} is checked out in {other}", self.branch)));
        }
        let stash = run(on(&self.repository).args(["stash", "list", "--format=%gs"]))?;
        let on_branch = format!("on {}: ", self.branch).to_lowercase();
        if text(&stash.stdout).lines().any(|line| line.to_lowercase().contains(&on_branch)) {
            return Ok(Some(format!("a stash was made on {}: git stash list", self.branch)));
        }
        let head = entry.map(|entry| commit(entry, "HEAD")).transpose()?.flatten();
        let detached = head.filter(|head| Some(head) != branch.as_ref());
        let path = self.path.display().to_string();
        for (tip, place) in branch.iter().zip([&self.branch]).chain(detached.iter().zip([&path])) {
            let commits = self.only_here(tip)?;
            if commits > 0 && !(*tip == self.base && self.was_checked_out(tip)?) {
                let s = if commits == 1 { " is" } else { "s are" };
                let why = format!(
                    "not merged: {commits} commit{s} only in {place}; merge brings back what is on its branch"
                );
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// How many commits of `tip` are reachable from no other branch. What was pushed of this one is
    /// another's to keep, and does not count.
    fn only_here(&self, tip: &str) -> Result<usize> {
        let own = format!("--exclude={}", self.branch);
        let pushed = format!("--exclude=*/{}", self.branch);
        let others = [tip, "--not", &own, "--branches", &pushed, "--remotes"];
        count(&self.repository, &others)
    }

    /// Whether the person's own checkout was once at that commit, so that it is no worker's. That it
    /// is on no branch any more was the person's doing.
    fn was_checked_out(&self, tip: &str) -> Result<bool> {
        let reflog = run(on(&self.repository).args(["reflog", "show", "--format=%H", "HEAD"]))?;
        Ok(text(&reflog.stdout).lines().any(|line| line == tip))
    }

    /// Another checkout that has the branch, whose commits would have no branch then.
    pub(super) fn checked_out_elsewhere(&self, branch: &str) -> Result<Option<String>> {
        let listed = run(on(&self.repository).args(["worktree", "list", "--porcelain"]))?;
        let listed = text(&stdout(listed, "cannot list the worktrees")?);
        let line = format!("branch {branch}");
        let of_it = listed.split("\n\n").filter(|entry| entry.lines().any(|it| it == line));
        let mut paths = of_it.filter_map(|entry| entry.lines().next()?.strip_prefix("worktree "));
        Ok(paths.find(|path| Path::new(path) != self.path).map(str::to_owned))
    }

    /// Removes the worktree and the branch, or says why they have to be kept. What was begun by
    /// another who was killed is finished.
    pub fn remove(&self) -> Result<Option<String>> {
        if !self.repository.is_dir() {
            return self.needed();
        }
        let _lock = self.lock()?;
        self.put_back()?;
        let own = format!("refs/heads/{}", self.branch);
        // Before it is looked at, so that the one that goes is the one that was.
        let tip = commit(&self.repository, &own)?;
        if let Some(why) = self.needed()? {
            return Ok(Some(why));
        }
        let aside = self.aside();
        if let Some(entry) = self.entry() {
            // In one step, so that one that is half removed is never taken for one with changes.
            rename(&self.path, &aside)?;
            fault::point("clean", "moved");
            // What somebody wrote meanwhile.
            let mut tree = on(&entry);
            tree.arg("--work-tree").arg(&aside).args(STATUS).current_dir(&aside);
            let late = changes(tree.args(["--untracked-files=normal", "--ignore-submodules=all"]));
            if !late.as_ref().is_ok_and(Vec::is_empty) {
                rename(&aside, &self.path)?;
                let path = self.path.display();
                return Ok(Some(format!("not committed in {path}: {}", first_of(&late?))));
            }
        }
        if self.entry_of_deleted()?.is_some() {
            let forget = || run(on(&self.repository).args(["worktree", "remove"]).arg(&self.path));
            stdout(patiently(forget)?, "cannot remove the worktree")?;
            fault::point("clean", "forgotten");
        }
        files::remove_directory(&aside)?;
        fault::point("clean", "removed");
        if let Some(tip) = tip {
            let delete = || run(on(&self.repository).args(["update-ref", "-d", &own, &tip]));
            stdout(patiently(delete)?, &format!("cannot delete the branch {}", self.branch))?;
            // Else a later branch of that name would inherit it; mostly there is none.
            let section = format!("branch.{}", self.branch);
            run(on(&self.repository).args(["config", "--remove-section", &section]))?;
        }
        fault::point("clean", "branch");
        Ok(None)
    }

    /// Where its directory is while it is removed.
    fn aside(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.removed"))
    }

    /// Undoes what one did who was killed while removing it, for as long as git knows it.
    pub(super) fn put_back(&self) -> Result<()> {
        let aside = self.aside();
        let known = self.entry_of(&aside).is_some() && self.entry_of_deleted()?.is_some();
        if known && self.path.symlink_metadata().is_err() {
            rename(&aside, &self.path)?;
        }
        Ok(())
    }

    /// Git's own directory for it where the worktree itself is not there.
    fn entry_of_deleted(&self) -> Result<Option<PathBuf>> {
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

/// A worktree that dispatch made, or a branch without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// The worktree in that directory.
    Worktree(PathBuf),
    /// The branch of that name.
    Branch(String),
}

impl Made {
    /// Whether it belongs to that worktree.
    pub fn is_of(&self, worktree: &Worktree) -> bool {
        match self {
            Self::Worktree(path) => worktree.path == *path,
            Self::Branch(branch) => worktree.branch == *branch,
        }
    }

    /// What brings its commits back or keeps them, and what removes it; neither loses a commit.
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
            // Git takes away without a word what it ignores, which a report may be.
            (Some(branch), _) => format!(
                "worktree {path} — git merge {branch} brings it back, git worktree remove {directory} removes it and what git ignores in it"
            ),
            // Git would take away commits that are on no branch as well.
            (None, Some(_)) => {
                format!("worktree {path} — git -C {directory} switch -c NAME keeps its commits")
            }
            (None, None) => format!("worktree {path} — git does not know it; look into it"),
        }
    }

    /// The branch that is checked out in a worktree, read without git.
    pub fn checked_out(&self) -> Option<String> {
        self.head()?.strip_prefix("ref: refs/heads/").map(str::to_owned)
    }

    /// What git's HEAD of a worktree says.
    fn head(&self) -> Option<String> {
        let Self::Worktree(worktree) = self else { return None };
        let text = files::read(&worktree.join(".git")).ok()??;
        let entry = worktree.join(text.strip_prefix("gitdir:")?.trim());
        Some(files::read(&entry.join("HEAD")).ok()??.trim().to_owned())
    }

    /// The last part of its name, which is mostly that of its task.
    pub fn name(&self) -> &OsStr {
        match self {
            Self::Worktree(path) => path.file_name().unwrap_or_default(),
            Self::Branch(branch) => branch.rsplit('/').next().unwrap_or_default().as_ref(),
        }
    }
}

/// All that dispatch made in that repository, at a glance: without git, and so without branches that
/// it has packed.
pub fn made(repository: &Path) -> Vec<Made> {
    let names = |directory: &Path| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.retain(|name| !name.as_encoded_bytes().starts_with(b"."));
        names.sort();
        names
    };
    let directory = directory_of(repository).unwrap_or_default();
    let worktrees = names(&directory).into_iter().map(|name| Made::Worktree(directory.join(name)));
    let branches = names(&repository.join("refs/heads/dispatch"));
    let branch = |name: OsString| Some(Made::Branch(format!("dispatch/{}", name.to_str()?)));
    worktrees.chain(branches.into_iter().filter_map(branch)).collect()
}

/// The same with the branches that git has packed.
pub fn all_made(repository: &Path) -> Result<Vec<Made>> {
    let mut all = made(repository);
    let own = ["--format=%(refname)", "refs/heads/dispatch/"];
    let branches = run(on(repository).arg("for-each-ref").args(own))?;
    let branches = text(&stdout(branches, "cannot list the branches")?);
    for branch in branches.lines().filter_map(|name| name.strip_prefix("refs/heads/")) {
        let branch = Made::Branch(branch.into());
        if !all.contains(&branch) {
            all.push(branch);
        }
    }
    Ok(all)
}
