//! Bringing a task's branch back into the branch of a person's checkout, wholly or not at all.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result};

use crate::domain::Worktree;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::git::command::{git, patiently, run, stdout, text};
use crate::git::{STATUS, changes, commit, first_of};

/// What a merge could take away.
const TRACKED: [&str; 2] = ["--untracked-files=no", "--ignore-submodules=dirty"];

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// How many commits the branch had that the other one did not have.
    pub commits: usize,
    /// The branch that they were merged into.
    pub into: String,
    /// Whether it took no merge commit.
    pub fast_forward: bool,
}

impl Worktree {
    /// Merges its branch into the branch of the first of these places that is in a checkout of the
    /// person's. What is in no commit is not looked for in the worktree itself.
    pub fn merge(&self, places: &[&Path]) -> Result<Merged> {
        let _lock = self.lock()?;
        let own = format!("refs/heads/{}", self.branch);
        let tip = commit(&self.repository, &own)?.ok_or_else(|| {
            Refusal::new(Exit::Data, format!("the branch {} is gone", self.branch))
                .place(format!("it is not in {}", self.repository.display()))
                .next(format!("git branch {} COMMIT, if you know its last commit", self.branch))
        })?;
        let top = self.checkout(places)?;
        let (into, before) = branch_and_commit(&top)?;
        if into == self.branch {
            return Err(Refusal::new(Exit::Data, format!("{into} is what is checked out"))
                .place(top.display().to_string())
                .next(format!("git -C {} switch BRANCH, and call again", top.display()))
                .into());
        }
        refuse_unready(&top, &into)?;
        let commits = count(&top, &[&tip, "--not", &before])?;
        if commits == 0 {
            return Ok(Merged { commits, into, fast_forward: true });
        }
        let what = format!("{} cannot be merged into {into}", self.branch);
        let refuse = |conflicts: &[String]| {
            Refusal::new(Exit::Failed, format!("{what}: conflicts, and nothing was changed"))
                .place(first_of(conflicts))
                .next(format!("git -C {} merge {into}, and settle them there", self.path.display()))
        };
        if let Some(conflicts) = conflicts(&top, &before, &tip)? {
            return Err(refuse(&conflicts).into());
        }
        let message = format!("Merge branch '{}'", self.branch);
        let mut unmerged = Vec::new();
        let merged = patiently(|| {
            let mut merge = git(&top);
            merge.args(["merge", "--quiet", "--commit", "--no-squash", "--no-autostash"]);
            let merged = run(merge.args(["-m", &message, &own]))?;
            if !merged.status.success() {
                unmerged = paths(&run(git(&top).args(["ls-files", "-z", "-u"]))?);
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
                .next("see to that, and call again")
                .into());
        }
        let fast_forward = commit(&top, "HEAD")?.as_ref() == Some(&tip);
        Ok(Merged { commits, into, fast_forward })
    }

    /// The top of the first checkout of this repository that is no task's.
    fn checkout(&self, places: &[&Path]) -> Result<PathBuf> {
        let asked = |place: &Path, what: &str| -> Result<Option<PathBuf>> {
            let asked = run(git(place).args(["rev-parse", "--path-format=absolute", what]))?;
            let path = asked.stdout.strip_suffix(b"\n").unwrap_or_default();
            Ok(Path::new(OsStr::from_bytes(path))
                .canonicalize()
                .ok()
                .filter(|_| asked.status.success() && !path.is_empty()))
        };
        for place in places {
            let common = asked(place, "--git-common-dir")?;
            if common.as_ref() != Some(&self.repository) {
                continue;
            }
            let top = asked(place, "--show-toplevel")?;
            if let Some(top) = top.filter(|top| top.parent() != self.path.parent()) {
                return Ok(top);
            }
        }
        Err(Refusal::new(Exit::Data, format!("there is no checkout to merge {} into", self.branch))
            .place(format!("{} has none here", self.repository.display()))
            .next("call again in a checkout of yours, made by: git worktree add")
            .into())
    }
}

/// The branch that is checked out there, and its commit.
fn branch_and_commit(top: &Path) -> Result<(String, String)> {
    let head = text(&run(git(top).args(["symbolic-ref", "--quiet", "HEAD"]))?.stdout);
    let Some(branch) = head.strip_prefix("refs/heads/") else {
        return Err(Refusal::new(Exit::Data, "there is no branch to merge into")
            .place(format!("HEAD of {} is detached", top.display()))
            .next(format!("git -C {} switch BRANCH, and call again", top.display()))
            .into());
    };
    let before = commit(top, "HEAD")?.ok_or_else(|| {
        Refusal::new(Exit::Data, format!("the branch {branch} has no commit to merge into"))
            .place(top.display().to_string())
            .next("make its first commit, and call again")
    })?;
    Ok((branch.into(), before))
}

/// Refuses a checkout in which there is something that a merge could take away.
fn refuse_unready(top: &Path, branch: &str) -> Result<()> {
    let git_dir = run(git(top).args(["rev-parse", "--absolute-git-dir"]))?;
    let git_dir = stdout(git_dir, "cannot find the repository")?;
    let git_dir = Path::new(OsStr::from_bytes(git_dir.strip_suffix(b"\n").unwrap_or(&git_dir)));
    if let Some(what) = unfinished(git_dir) {
        return Err(Refusal::new(Exit::Data, format!("{branch} is in the middle of a {what}"))
            .place(top.display().to_string())
            .next(format!("finish it, or end it with git {what} --abort; then call again"))
            .into());
    }
    let changed = changes(git(top).args(STATUS).args(TRACKED))?;
    if changed.is_empty() {
        return Ok(());
    }
    Err(Refusal::new(Exit::Data, format!("{branch} has changes that are not committed"))
        .place(format!("{} in {}", first_of(&changed), top.display()))
        .next("commit or stash them, and call again")
        .into())
}

/// What somebody began in a checkout and did not finish, by git's own directory for it.
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

/// How many commits `git rev-list` lists.
pub(super) fn count(directory: &Path, revisions: &[&str]) -> Result<usize> {
    let counted = run(git(directory).args(["rev-list", "--count"]).args(revisions))?;
    let counted = text(&stdout(counted, "cannot compare the branches")?);
    counted.parse().with_context(|| format!("git counted {counted:?} commits"))
}

/// The files in which a merge would conflict; nothing is touched to see that. A git before 2.38
/// cannot say, and a merge that is tried tells.
fn conflicts(top: &Path, before: &str, tip: &str) -> Result<Option<Vec<String>>> {
    let mut tree = git(top);
    tree.args(["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z"]);
    let tried = run(tree.args([before, tip]))?;
    if tried.status.code() != Some(1) {
        return Ok(None);
    }
    let names = tried.stdout.split(|&byte| byte == 0).skip(1);
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(Some(names.take_while(|name| !name.is_empty()).collect()))
}

/// The paths that `git ls-files -u -z` names, each once.
fn paths(listed: &Output) -> Vec<String> {
    let entries = listed.stdout.split(|&byte| byte == 0);
    let path = |entry: &[u8]| String::from_utf8_lossy(entry).split_once('\t').map(|it| it.1.into());
    let mut paths: Vec<String> = entries.filter_map(path).collect();
    paths.dedup();
    paths
}

/// Brings a checkout that had no changes back to where it was before a merge that failed.
fn undo(top: &Path, before: &str, tip: &str) -> Result<()> {
    if commit(top, "HEAD")?.as_deref() != Some(before) {
        return Ok(());
    }
    // A fast-forward has changed the files before it finds that it cannot move the branch. What a
    // person staged at this moment is not that.
    let tree = |commit: &str| -> Result<String> {
        Ok(text(&run(git(top).args(["rev-parse", &format!("{commit}^{{tree}}")]))?.stdout))
    };
    let index = text(&run(git(top).arg("write-tree"))?.stdout);
    if commit(top, "MERGE_HEAD")?.as_deref() != Some(tip)
        && (index != tree(tip)? || index == tree(before)?)
    {
        return Ok(());
    }
    // Its own exit status says little: a hook may refuse that it writes HEAD where HEAD is.
    let undone = patiently(|| run(git(top).args(["reset", "--merge", "--quiet", "HEAD"])))?;
    run(git(top).args(["merge", "--quit"]))?;
    if !changes(git(top).args(STATUS).args(TRACKED))?.is_empty() {
        let what = format!("cannot undo the merge in {}", top.display());
        return Err(Refusal::new(Exit::Failed, what)
            .place(why(&undone))
            .next(format!("git -C {} reset --merge", top.display()))
            .into());
    }
    Ok(())
}

/// Why a merge failed: the files in its way, or else the last line of git, and that of a hook.
fn why(merged: &Output) -> String {
    let said = String::from_utf8_lossy(&merged.stderr);
    let files: Vec<String> =
        said.lines().filter_map(|line| line.strip_prefix('\t')).map(str::to_owned).collect();
    let of_git = |line: &&str| line.starts_with("error: ") || line.starts_with("fatal: ");
    let nothing = |line: &&str| line.starts_with("Not committing merge") || line.trim().is_empty();
    let other = said.lines().rfind(|line| !nothing(line) && !of_git(line));
    match (said.lines().find(of_git), other) {
        (Some(line), _) if !files.is_empty() => format!("{line} {}", first_of(&files)),
        (Some(line), Some(hook)) if line.ends_with("by hook") => format!("{hook} ({line})"),
        (Some(line), _) | (None, Some(line)) => line.into(),
        (None, None) => merged.status.to_string(),
    }
}
