//! Code that travels to a place and back, over git's `ext` transport.
//!
//! Invariant: what comes back is one reference, which is checked in a scratch repository first.

use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result};

use crate::domain::Worktree;
use crate::error::{Exit, Refusal};
use crate::files;
use crate::git::Contents;
use crate::git::command::{Settings, count, error_line, git, git_on, succeeded};
use crate::git::remove::rename;
use crate::git::repository::{FETCH, References, object_id};
use crate::text::sanitize;

/// The variable by which git hands on where a repository is.
pub const FAR: &str = "DISPATCH_PLACE";

/// The way to a repository at a place: its URL, and the value of [`FAR`].
pub type Far = (String, String);

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
    /// The sparse patterns of the person's checkout for [`Worktree::ensure`] on another machine, below a line
    /// that says whether they are of cone mode.
    pub fn sparse_to_send(&self) -> Result<Option<String>> {
        let mut settings = Settings::of(self)?;
        let patterns = settings.sparse_patterns(self, None)?;
        let cone = settings.get("core.sparsecheckoutcone") == Some("true");
        Ok(patterns.map(|it| format!("{cone}\n{it}")))
    }

    /// The commit at which the task goes on at another place: the last that was fetched, else its base.
    pub fn latest(&self) -> Result<String> {
        let References { branch, tip, .. } = self.references()?;
        Ok(branch.or(tip).unwrap_or_else(|| self.base.clone()))
    }

    /// Takes the worktree away, because its task continues at a place, after its commits were fetched. One with
    /// work that is nowhere else is kept under another name, which is returned.
    pub fn set_aside(&self) -> Result<Option<PathBuf>> {
        let _lock = self.lock()?;
        self.undo_interrupted_removal()?;
        if self.is_deleted() {
            return Ok(None);
        }
        self.fetch_locked()?;
        if self.is_saved()? {
            return files::remove_directory(&self.move_away()?).map(|()| None);
        }
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        // No task has a name with a dot.
        let mut others = (2..).map(|n| self.path.with_file_name(format!("{name}.{n}")));
        let other = others.find(|it| it.symlink_metadata().is_err()).context("no free name")?;
        rename(&self.path, &other)?;
        Ok(Some(other))
    }

    /// The commits of a task at a place that were fetched; `None` before there are any.
    pub fn look_far(&self) -> Result<Option<Contents>> {
        let Some(tip) = self.fetch()? else { return Ok(None) };
        let commits = count(&self.repository, &[&tip, "--not", &self.base])?;
        Ok(Some(Contents { commits, tip, changed: Vec::new(), other: None }))
    }

    /// Sends a commit to a repository at a place.
    pub fn send(&self, (url, place): &Far, commit: &str, name: &str) -> Result<()> {
        let options =
            "-c protocol.ext.allow=always -c core.hooksPath=/dev/null -c push.followTags=false
            push --quiet --no-verify --no-recurse-submodules --no-follow-tags";
        let refspec = format!("+{commit}:refs/dispatch/from/{name}");
        let sent = git_on(&self.repository, options).env(FAR, place).args([url, &refspec]).run()?;
        refuse_lost(&sent)?;
        succeeded(sent, "cannot send the code").map(drop)
    }

    /// Fetches the branch of the task at a place, like [`Worktree::fetch`]: one reference, checked in a
    /// scratch repository first.
    ///
    /// # Errors
    /// [`Exit::Data`] if the place sends damaged objects or none.
    pub fn fetch_far(&self, (url, place): &Far, branch: &str) -> Result<Option<String>> {
        let _lock = self.lock()?;
        let foreign = self.foreign();
        let scratch = foreign.scratch(&self.base)?;
        let refspec = format!("+refs/heads/{branch}:refs/heads/far");
        let fetch = git_on(&scratch.directory.0, "-c protocol.ext.allow=always").words(FETCH);
        let fetched = fetch.env(FAR, place).args([url, &refspec]).run()?;
        refuse_lost(&fetched)?;
        if !fetched.status.success() {
            return Refusal::new(Exit::Data, format!("cannot fetch {}", self.branch))
                .place(error_line(&fetched))
                .refuse("dispatch tries again when the place answers");
        }
        let tip = git_on(&scratch.directory.0, "rev-parse --verify --quiet refs/heads/far");
        let tip = object_id(&tip.text("the branch has no commit")?).context("no commit")?;
        self.take(&tip, |tip, reference| {
            foreign.fetch_from(&scratch, tip, &format!("+refs/heads/tip:{reference}"))
        })
    }
}
