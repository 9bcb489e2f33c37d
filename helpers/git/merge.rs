//! Merging a task's branch into the branch of a person's checkout, completely or not at all.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result};

use crate::domain::Worktree;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::git::command::{git, path, records, retry};
use crate::git::{STATUS, changes, commit_id, first_paths};

/// Lists only the changes that a merge could overwrite.
const TRACKED: &str = "--untracked-files=no --ignore-submodules=dirty";

/// The result of a merge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The number of commits that the person's branch did not have.
    pub commits: usize,
    /// The branch of the person's checkout.
    pub into: String,
    /// Whether no merge commit was needed.
    pub fast_forward: bool,
}

impl Worktree {
    /// Merges the task's branch into the checked-out branch of the first of `places` that lies in a
    /// checkout of the person. The caller has to look for uncommitted changes in the worktree.
    pub fn merge(&self, places: &[&Path]) -> Result<Merged> {
        let _lock = self.lock()?;
        let tip = self.tip()?.ok_or_else(|| {
            Refusal::new(Exit::Data, format!("the branch {} is gone", self.branch))
                .place(format!("it is not in {}", self.repository.display()))
                .next(format!("git branch {} COMMIT, if you know its last commit", self.branch))
        })?;
        let top = self.persons_checkout(places)?;
        let (into, before) = branch_and_commit(&top)?;
        if into == self.branch {
            return Err(Refusal::new(Exit::Data, format!("{into} is what is checked out"))
                .place(top.display().to_string())
                .next(format!("git -C {} switch BRANCH, and try again", top.display()))
                .into());
        }
        refuse_unsafe_checkout(&top, &into)?;
        let commits = count(&top, &[&tip, "--not", &before])?;
        if commits == 0 {
            return Ok(Merged { commits, into, fast_forward: true });
        }
        let what = format!("{} cannot be merged into {into}", self.branch);
        let refuse = |conflicts: &[String]| {
            Refusal::new(Exit::Failed, format!("{what}: conflicts, and nothing was changed"))
                .place(first_paths(conflicts))
                .next(format!(
                    "git -C {} merge {into}, and resolve them there",
                    self.path.display()
                ))
        };
        if let Some(conflicts) = conflicts(&top, &before, &tip)? {
            return Err(refuse(&conflicts).into());
        }
        let message = format!("Merge branch '{}'", self.branch);
        let mut unmerged = Vec::new();
        let merged = retry(|| {
            let merge = git(&top, "merge --quiet --commit --no-squash --no-autostash -m");
            let merged = merge.args([&message, &self.reference()]).run()?;
            if !merged.status.success() {
                unmerged = paths(&git(&top, "ls-files -z -u").run()?);
                undo(&top, &before, &tip)?;
            }
            Ok(merged)
        })?;
        fault::point("merge", "merged");
        if !unmerged.is_empty() {
            return Err(refuse(&unmerged).into());
        }
        if !merged.status.success() {
            return Err(Refusal::new(Exit::Failed, format!("{what}; nothing was changed"))
                .place(why(&merged))
                .next("fix that and try again")
                .into());
        }
        let fast_forward = commit_id(&top, "HEAD")?.as_ref() == Some(&tip);
        Ok(Merged { commits, into, fast_forward })
    }

    /// The top of the first checkout of this repository that is no task's worktree.
    fn persons_checkout(&self, places: &[&Path]) -> Result<PathBuf> {
        let asked = |place: &Path, what: &str| -> Result<Option<PathBuf>> {
            let asked = git(place, "rev-parse --path-format=absolute").arg(what).run()?;
            Ok(path(&asked.stdout).canonicalize().ok().filter(|_| asked.status.success()))
        };
        for place in places {
            if asked(place, "--git-common-dir")?.as_ref() == Some(&self.repository)
                && let Some(top) = asked(place, "--show-toplevel")?
                && top.parent() != self.path.parent()
            {
                return Ok(top);
            }
        }
        let (branch, repository) = (&self.branch, self.repository.display());
        let what = format!("there is nowhere to merge {branch} into");
        Err(Refusal::new(Exit::Data, what)
            .place(format!("not inside a checkout of {repository}"))
            .next("try again in a checkout of yours, made by: git worktree add")
            .into())
    }
}

/// The branch that is checked out in a checkout, and its commit.
fn branch_and_commit(top: &Path) -> Result<(String, String)> {
    let head = git(top, "symbolic-ref --quiet HEAD").said()?;
    let Some(branch) = head.strip_prefix("refs/heads/") else {
        return Err(Refusal::new(Exit::Data, "there is no branch to merge into")
            .place(format!("HEAD of {} is detached", top.display()))
            .next(format!("git -C {} switch BRANCH, and try again", top.display()))
            .into());
    };
    let before = commit_id(top, "HEAD")?.ok_or_else(|| {
        Refusal::new(Exit::Data, format!("the branch {branch} has no commit to merge into"))
            .place(top.display().to_string())
            .next("make its first commit, and try again")
    })?;
    Ok((branch.into(), before))
}

/// Refuses a checkout with work in it that a merge could overwrite.
fn refuse_unsafe_checkout(top: &Path, branch: &str) -> Result<()> {
    let git_dir = git(top, "rev-parse --absolute-git-dir").bytes("cannot find the repository")?;
    if let Some(what) = unfinished(path(&git_dir)) {
        return Err(Refusal::new(Exit::Data, format!("{branch} is in the middle of a {what}"))
            .place(top.display().to_string())
            .next(format!("finish it, or end it with git {what} --abort; then try again"))
            .into());
    }
    let changed = changes(git(top, STATUS).words(TRACKED))?;
    if changed.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(Exit::Data, format!("{branch} has uncommitted changes"))
        .place(format!("{} in {}", first_paths(&changed), top.display()))
        .next("commit or stash them, and try again")
        .into())
}

/// The unfinished operation in a checkout, by git's own directory of that checkout.
pub(super) fn unfinished(git_dir: &Path) -> Option<&'static str> {
    let marks = [
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
        ("MERGE_HEAD", "merge"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
        ("REVERT_HEAD", "revert"),
        ("BISECT_LOG", "bisect"),
    ];
    marks.into_iter().find(|(name, _)| git_dir.join(name).exists()).map(|(_, what)| what)
}

/// The number of commits that `git rev-list` lists.
pub(super) fn count(directory: &Path, revisions: &[&str]) -> Result<usize> {
    let counted = git(directory, "rev-list --count").args(revisions);
    let counted = counted.text("cannot compare the branches")?;
    counted.parse().with_context(|| format!("git counted {counted:?} commits"))
}

/// The files in which a merge would conflict, found without touching any file. `None` if there are
/// none, or for a git before 2.38, where only the merge itself tells.
fn conflicts(top: &Path, before: &str, tip: &str) -> Result<Option<Vec<String>>> {
    let tree = git(top, "merge-tree --write-tree --name-only --no-messages -z");
    let tried = tree.args([before, tip]).run()?;
    let names = (tried.status.code() == Some(1)).then(|| records(&tried.stdout).skip(1).collect());
    Ok(names)
}

/// The distinct paths in the output of `git ls-files -u -z`.
fn paths(listed: &Output) -> Vec<String> {
    let path = |entry: String| entry.split_once('\t').map(|(_, path)| path.to_owned());
    let mut paths: Vec<String> = records(&listed.stdout).filter_map(path).collect();
    paths.dedup();
    paths
}

/// Resets a checkout to its state before a failed merge. The checkout had no changes then.
fn undo(top: &Path, before: &str, tip: &str) -> Result<()> {
    if commit_id(top, "HEAD")?.as_deref() != Some(before) {
        return Ok(());
    }
    // A failed fast-forward leaves the index of `tip` and no MERGE_HEAD. Any other index was staged
    // by a person at this moment.
    let tree = |commit: &str| git(top, "rev-parse").arg(format!("{commit}^{{tree}}")).said();
    let index = git(top, "write-tree").said()?;
    if commit_id(top, "MERGE_HEAD")?.as_deref() != Some(tip)
        && (index != tree(tip)? || index == tree(before)?)
    {
        return Ok(());
    }
    // Ignore the exit status: a hook may reject the write of HEAD although HEAD does not change.
    let undone = retry(|| git(top, "reset --merge --quiet HEAD").run())?;
    git(top, "merge --quit").run()?;
    if !changes(git(top, STATUS).words(TRACKED))?.is_empty() {
        let what = format!("cannot undo the merge in {}", top.display());
        return Err(Refusal::new(Exit::Failed, what)
            .place(why(&undone))
            .next(format!("git -C {} reset --merge", top.display()))
            .into());
    }
    Ok(())
}

/// Why a merge failed: the files in its way, else git's error, with the last line of a hook.
fn why(merged: &Output) -> String {
    let said = String::from_utf8_lossy(&merged.stderr);
    let files: Vec<String> =
        said.lines().filter_map(|line| line.strip_prefix('\t')).map(str::to_owned).collect();
    let of_git = |line: &&str| line.starts_with("error: ") || line.starts_with("fatal: ");
    let nothing = |line: &&str| line.starts_with("Not committing merge") || line.trim().is_empty();
    let other = said.lines().rfind(|line| !nothing(line) && !of_git(line));
    match (said.lines().find(of_git), other) {
        (Some(line), _) if !files.is_empty() => format!("{line} {}", first_paths(&files)),
        (Some(line), Some(hook)) if line.ends_with("by hook") => format!("{hook} ({line})"),
        (Some(line), _) | (None, Some(line)) => line.into(),
        (None, None) => merged.status.to_string(),
    }
}
