//! Merging a task's branch into the branch of a person's checkout, completely or not at all.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::domain::{EXECUTED, TaskId, Worktree};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::command::{
    Git, STATUS, changes, count, error_line, git, path, records, remedy, retry, succeeded,
    unfinished,
};
use crate::git::repository::Temporary;
use crate::git::{by_hand, commit_id, first_paths, is_in_worktree, short_id};
use crate::text::{collect, sanitize};

/// Lists only the changes that a merge could overwrite.
const TRACKED: &str = "--untracked-files=no --ignore-submodules=dirty";

/// A merge that would work, before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergePlan {
    /// The number of commits that the person's branch does not have.
    pub commits: usize,
    /// The branch of the person's checkout.
    pub into: String,
    /// The files that something executes or obeys by itself, and that the merge would change.
    pub executed: Vec<String>,
    /// The top of the person's checkout.
    top: PathBuf,
    /// The commit that is checked out there.
    before: String,
    /// The commit to merge.
    tip: String,
}

impl Worktree {
    /// Prepares a merge of the task's commit `tip` into the checked-out branch of the first of `places` that
    /// lies in a checkout of the person. With `onto`, only the task's own commits are taken.
    ///
    /// # Errors
    /// [`Exit::Data`] if the commit brings others than the task's; [`Exit::Failed`] for conflicts.
    pub fn plan_merge(
        &self,
        task: &TaskId,
        places: &[&Path],
        tip: &str,
        onto: bool,
    ) -> Result<MergePlan> {
        let top = self.persons_checkout(places)?;
        refuse_unfinished(&top)?;
        let (into, before) = branch_and_commit(&top)?;
        if into == self.branch {
            return Refusal::new(Exit::Data, format!("{into} is what is checked out"))
                .place(top.display().to_string())
                .refuse(format!("git -C {} switch BRANCH, and try again", top.display()));
        }
        if !self.snapshot {
            refuse_changes(&top, &into)?;
        }
        let tip = match onto || self.snapshot {
            true => self.replay(&before, tip, &into)?,
            false => tip.to_owned(),
        };
        let commits = count(&top, &[&tip, "--not", &before])?;
        let mut plan = MergePlan { commits, into, executed: Vec::new(), top, before, tip };
        if plan.commits > 0 {
            self.refuse_foreign(&plan, task)?;
            let merged = self.merged_tree(&plan.before, &plan.tip, &plan.into)?;
            plan.executed = self.executed(&plan, &merged)?;
        }
        Ok(plan)
    }

    /// The commits that a merge of `tip` would bring and that are not the task's: after the person
    /// amended or rebased the base, where the task began on another branch, or where its worker took
    /// another branch of the person.
    fn foreign_commits(&self, before: &str, tip: &str) -> Result<Vec<String>> {
        let list = |words: &str, ends: &[&str]| -> Result<BTreeSet<String>> {
            let list = self.git("rev-list").words(words).args(ends);
            let listed = list.text("cannot compare the branches")?;
            Ok(collect(listed.lines().map(str::to_owned)))
        };
        let trunk = self.trunk();
        let brought = list("", &[tip, "--not", before])?;
        let own = ["--not", before, "--exclude=dispatch/*", "--branches", "--remotes", "--tags"];
        let own = list("", &[&[tip], &own[..]].concat())?;
        // Other branches have the task's commits too, if the person merged it there.
        let since = list("--ancestry-path", &[&format!("{trunk}..{tip}")])?;
        let before_it = list("", &[trunk, "--not", before])?;
        let elsewhere: Vec<_> = since.difference(&own).collect();
        let taken = match elsewhere.is_empty() || !self.has_own_repository() {
            true => BTreeSet::new(),
            false => {
                let made = self.foreign().commits_made(tip, &elsewhere)?;
                let new = list("", &[tip, "--not", &self.base])?;
                collect(new.difference(&made).cloned())
            }
        };
        let is_foreign = |commit: &String| {
            let is_own = own.contains(commit) || since.contains(commit) && !taken.contains(commit);
            before_it.contains(commit) || !is_own
        };
        Ok(brought.into_iter().filter(is_foreign).collect())
    }

    fn refuse_foreign(&self, plan: &MergePlan, task: &TaskId) -> Result<()> {
        let foreign = self.foreign_commits(&plan.before, &plan.tip)?;
        let Some(first) = foreign.first() else { return Ok(()) };
        let subject = self.git("log -1 --format=%s").arg(first).said()?;
        let first = format!("{} {subject}", short_id(first));
        let more = match foreign.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let branch = &self.branch;
        let what = format!("{branch} has commits that are neither the task's nor in {}", plan.into);
        Refusal::new(Exit::Data, what)
            .place(format!("{}{more}", sanitize(&first)))
            .refuse(format!("dispatch-reconcile merge {task} --onto takes only the task's commits"))
    }

    /// The commit that has the task's own commits after `before` (as `git rebase --onto` makes it).
    fn replay(&self, before: &str, tip: &str, into: &str) -> Result<String> {
        let range = [tip, "--not", self.trunk(), before];
        let merges = count(&self.repository, &[&["--merges"], &range[..]].concat())?;
        if merges > 0 {
            let what = format!("{} has merge commits, which cannot be taken over", self.branch);
            return Refusal::new(Exit::Data, what)
                .place(format!("{merges} since {}", self.trunk()))
                .refuse(format!("git rebase --onto {into} {} {}", self.trunk(), self.branch));
        }
        let list = self.git("rev-list --reverse --topo-order").args(range);
        let list = list.text("cannot list the task's commits")?;
        let foreign = self.foreign_commits(before, tip)?;
        let mut end = before.to_owned();
        for commit in list.lines().filter(|commit| !foreign.iter().any(|it| it == commit)) {
            let parent = format!("--merge-base={commit}^");
            let tried = self.merge_tree().arg(parent).args([end.as_str(), commit]).run()?;
            let tree = self.tree_of(tried, into)?;
            if tree == self.git("rev-parse").arg(format!("{end}^{{tree}}")).said()? {
                continue;
            }
            let about = self.git("log -1 --date=raw --format=%an%x00%ae%x00%ad%x00%B").arg(commit);
            let about = about.text("cannot read a commit")?;
            let parts: Vec<_> = about.splitn(4, '\0').collect();
            let [name, email, date, message] = parts[..] else { bail!("git printed no commit") };
            let made = self.git("commit-tree").args([&tree, "-p", &end, "-m", message]);
            let made = made.env("GIT_AUTHOR_NAME", name).env("GIT_AUTHOR_EMAIL", email);
            end = made.env("GIT_AUTHOR_DATE", date).text("cannot take over a commit")?;
        }
        Ok(end)
    }

    /// The tree that a merge would give; that of `tip` for a git before 2.38, which only tells by
    /// merging.
    fn merged_tree(&self, before: &str, tip: &str, into: &str) -> Result<String> {
        let tried = self.merge_tree().args([before, tip]).run()?;
        match tried.status.code() {
            Some(0 | 1) => self.tree_of(tried, into),
            _ => Ok(tip.into()),
        }
    }

    /// The command that tries a merge, and prints the tree, or one and the files in conflict.
    pub(super) fn merge_tree(&self) -> Git {
        self.git("merge-tree --write-tree --name-only --no-messages -z")
    }

    /// The tree in the output of [`Self::merge_tree`]; conflicts are an error.
    fn tree_of(&self, tried: Output, into: &str) -> Result<String> {
        let mut printed = records(&tried.stdout);
        match tried.status.code() {
            Some(0) => printed.next().context("git printed no tree"),
            Some(1) => Err(self.conflict(into, &printed.skip(1).collect::<Vec<_>>()).into()),
            _ => Refusal::new(Exit::Unavailable, "this git cannot take over commits")
                .place(error_line(&tried))
                .refuse("install git 2.40 or newer"),
        }
    }

    fn conflict(&self, into: &str, conflicts: &[String]) -> Refusal {
        let what = format!("{} cannot be merged into {into}", self.branch);
        Refusal::new(Exit::Failed, format!("{what}: conflicts, and nothing was changed"))
            .place(first_paths(conflicts))
            .next(format!("{} and resolve them, or let a new task do it", by_hand(&self.branch)))
    }

    /// The size of the difference between two commits, a line for each file, as git shows it.
    pub fn diff_stat(&self, from: &str, to: &str) -> Result<String> {
        self.git("diff-tree -r --stat --no-renames").args([from, to]).said()
    }

    /// The files of [`EXECUTED`], and hooks, that the merge would change.
    fn executed(&self, plan: &MergePlan, merged: &str) -> Result<Vec<String>> {
        let mut changed = self.changed(&plan.before, merged)?;
        let (_, hooks) = hooks_in(&plan.top)?;
        changed.retain(|path| {
            let mut parts = path.split('/').map(str::to_lowercase);
            let is_executed = parts.any(|part| EXECUTED.contains(&part.as_str()));
            let path = plan.top.join(path);
            // A hook is also replaced by a link in the place of a directory above it.
            is_executed || hooks.iter().any(|it| path.starts_with(it) || it.starts_with(&path))
        });
        Ok(changed)
    }

    /// Merges as planned. Returns whether no merge commit was needed.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] if the person's branch moved meanwhile; [`Exit::Failed`] if git or a hook
    /// refuses. Nothing is changed then.
    pub fn merge(&self, plan: &MergePlan, task: &TaskId) -> Result<bool> {
        let MergePlan { top, before, tip, into, .. } = plan;
        let _lock = self.lock()?;
        let is_unchanged = || -> Result<bool> {
            let now = branch_and_commit(top)?;
            Ok((&now.0, &now.1) == (into, before))
        };
        if !is_unchanged()? {
            let what = format!("{into} changed meanwhile");
            return Refusal::new(Exit::TryAgain, what).refuse("try again");
        }
        refuse_unfinished(top)?;
        if !self.snapshot {
            refuse_changes(top, into)?;
        }
        let what = format!("{} cannot be merged into {into}", self.branch);
        let message = format!("Merge branch '{}'", self.branch);
        let hooks = self.hooks_before(top)?;
        let mut unmerged = Vec::new();
        let merged = retry(|| {
            let mut merge = git(top, "-c submodule.recurse=false");
            if let Some((_, hooks)) = &hooks {
                merge = merge.arg("-c").arg(format!("core.hooksPath={}", hooks.display()));
            }
            let merge = merge.words("merge --quiet --commit --no-squash --no-autostash");
            // A replayed commit follows HEAD; a true merge would touch the changes in the checkout.
            let merge = merge.words(if self.snapshot { "--ff-only -m" } else { "-m" });
            let merged = merge.args([&message, tip]).run()?;
            if !merged.status.success() {
                unmerged = paths(&git(top, "ls-files -z -u").run()?);
                // A fast-forward of a checkout with changes refuses before it touches a file.
                if !self.snapshot {
                    undo(top, before, tip)?;
                }
            }
            Ok(merged)
        })?;
        fault::point("merge", "merged");
        if !unmerged.is_empty() {
            return Err(self.conflict(into, &unmerged).into());
        }
        if !merged.status.success() {
            let now = if is_unchanged()? { "nothing was changed" } else { "look at git status" };
            return Refusal::new(Exit::Failed, format!("{what}; {now}"))
                .place(why(&merged))
                .refuse(merge_remedy(&merged, task));
        }
        Ok(commit_id(top, "HEAD")?.as_ref() == Some(tip))
    }

    /// A copy of hooks that are files of the checkout, with the place of git's in it: the merge must not run
    /// those that it brings.
    fn hooks_before(&self, top: &Path) -> Result<Option<(Temporary, PathBuf)>> {
        let (hooks, inside) = hooks_in(top)?;
        if inside.is_empty() {
            return Ok(None);
        }
        let (copied, below) = copied(&hooks);
        let copy = Temporary::new(self.hidden(&format!("hooks-{}", std::process::id())))?;
        // Hooks that do not exist before the merge are not run by it.
        let hooks = copy.0.join(below);
        files::create_private_directory(&hooks)?;
        for entry in WalkDir::new(copied).follow_links(true).into_iter().filter_map(Result::ok) {
            let to = copy.0.join(entry.path().strip_prefix(copied)?);
            match entry.file_type().is_dir() {
                true => files::create_private_directory(&to)?,
                false => drop(std::fs::copy(entry.path(), &to).context("cannot copy a hook")?),
            }
        }
        Ok(Some((copy, hooks)))
    }

    /// The top of the first checkout of this repository that is no task's worktree.
    fn persons_checkout(&self, places: &[&Path]) -> Result<PathBuf> {
        for place in places.iter().filter(|place| !is_in_worktree(place)) {
            let ask = |what: &str| git(place, "rev-parse --path-format=absolute").arg(what).run();
            let common = ask("--git-common-dir")?;
            if error_line(&common).contains("dubious ownership") {
                succeeded(common, "git does not look into the repository")?;
                continue;
            }
            if path(&common.stdout).canonicalize().ok().as_ref() != Some(&self.repository) {
                continue;
            }
            let top = ask("--show-toplevel")?;
            if let (true, Ok(top)) = (top.status.success(), path(&top.stdout).canonicalize()) {
                return Ok(top);
            }
            if self.repository.ends_with(".git") && !place.starts_with(&self.repository) {
                let what = "the config of git says that this checkout is none";
                return Refusal::new(Exit::Data, what)
                    .place(format!("core.bare is true in {}", place.display()))
                    .refuse(format!("git -C {} config core.bare false", place.display()));
            }
        }
        let (branch, repository) = (&self.branch, self.repository.display());
        let what = format!("there is nowhere to merge {branch} into");
        Refusal::new(Exit::Data, what)
            .place(format!("not inside a checkout of {repository}"))
            .refuse("try again in a checkout of yours, made by: git worktree add")
    }
}

/// The remedy after a merge that git refused.
fn merge_remedy(merged: &Output, task: &TaskId) -> String {
    let only = String::from_utf8_lossy(&merged.stderr).contains("Not possible to fast-forward");
    match remedy(merged) {
        _ if only => {
            format!("merge.ff is 'only': dispatch-reconcile merge {task} --onto makes one possible")
        }
        Some(command) => format!("{command}; then try again"),
        None => "fix that and try again".into(),
    }
}

/// The branch that is checked out in a checkout, and its commit.
fn branch_and_commit(top: &Path) -> Result<(String, String)> {
    let head = git(top, "symbolic-ref --quiet HEAD").said()?;
    let Some(branch) = head.strip_prefix("refs/heads/") else {
        return Refusal::new(Exit::Data, "there is no branch to merge into")
            .place(format!("HEAD of {} is detached", top.display()))
            .refuse(format!("git -C {} switch BRANCH, and try again", top.display()));
    };
    let before = commit_id(top, "HEAD")?.ok_or_else(|| {
        Refusal::new(Exit::Data, format!("the branch {branch} has no commit to merge into"))
            .place(top.display().to_string())
            .next("make its first commit, and try again")
    })?;
    Ok((branch.into(), before))
}

/// Refuses a checkout in the middle of another operation.
fn refuse_unfinished(top: &Path) -> Result<()> {
    let git_dir = git(top, "rev-parse --absolute-git-dir").bytes("cannot find the repository")?;
    let Some(what) = unfinished(path(&git_dir)) else { return Ok(()) };
    let end =
        if what == "bisect" { "git bisect reset".into() } else { format!("git {what} --abort") };
    Refusal::new(Exit::Data, format!("a {what} is not finished in the checkout"))
        .place(top.display().to_string())
        .refuse(format!("finish it, or end it with {end}; then try again"))
}

/// Refuses a checkout with work in it that a merge could overwrite.
fn refuse_changes(top: &Path, branch: &str) -> Result<()> {
    let changed = changes(git(top, STATUS).words(TRACKED))?;
    if changed.is_empty() {
        return Ok(());
    }
    Refusal::new(Exit::Data, format!("{branch} has uncommitted changes"))
        .place(format!("{} in {}", first_paths(&changed), top.display()))
        .refuse("commit or stash them, and try again")
}

/// The directory, which need not exist, that `core.hooksPath` names for a checkout.
pub fn configured_hooks(top: &Path) -> Result<Option<PathBuf>> {
    let configured = git(top, "config --type=path --get core.hooksPath").run()?;
    Ok(configured.status.success().then(|| top.join(path(&configured.stdout))))
}

/// The directory of git's hooks, and the paths in the checkout that lead to hooks or have them.
fn hooks_in(top: &Path) -> Result<(PathBuf, BTreeSet<PathBuf>)> {
    let asked = git(top, "rev-parse --path-format=absolute --git-path hooks");
    let hooks = path(&asked.bytes("cannot find the hooks of git")?).to_path_buf();
    let mut inside = BTreeSet::new();
    let walked = WalkDir::new(copied(&hooks).0).into_iter().filter_map(Result::ok);
    let links = walked.filter(|it| it.path_is_symlink()).map(walkdir::DirEntry::into_path);
    for start in links.chain([copied(&hooks).0.to_path_buf()]) {
        let mut next = Some(start);
        // As many links as the kernel follows.
        for _ in 0..40 {
            let Some(path) = next else { break };
            let path = without_dots(&path);
            next = path.read_link().ok().map(|to| path.parent().unwrap_or(top).join(to));
            inside.extend([real(&path), path]);
        }
    }
    inside.retain(|it| it.starts_with(top) && it != top && !it.starts_with(top.join(".git")));
    Ok((hooks, inside))
}

/// The directory that has all hooks, and the place of git's in it: those of husky in `_` start those
/// beside it.
fn copied(hooks: &Path) -> (&Path, &'static Path) {
    match hooks.parent().filter(|_| hooks.ends_with("_")) {
        Some(parent) => (parent, Path::new("_")),
        None => (hooks, Path::new("")),
    }
}

/// A path without `..`, as text.
fn without_dots(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => drop(path.pop()),
            other => path.push(other),
        }
        path
    })
}

/// A path without links above its last part, which need not exist.
fn real(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.into() };
    parent.canonicalize().unwrap_or_else(|_| real(parent)).join(name)
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
        return Refusal::new(Exit::Failed, what)
            .place(why(&undone))
            .refuse(format!("git -C {} reset --merge", top.display()));
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
