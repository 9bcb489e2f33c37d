//! The repository of a worktree: what it gets at first, and how it is read once a worker has written
//! it. Nothing in it is obeyed then: its files are read as data, its objects are copied, and git runs
//! only in a scratch repository of dispatch's own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use crate::domain::Worktree;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::command::{
    Git, STATUS, Settings, changes, error_line, git, git_on, records, retry, succeeded,
};
use crate::git::include::stays_below;
use crate::git::{EXCLUDED, beside, reference};
use crate::ids::file_hash;
use crate::text::collect;

/// How many bytes of objects are taken from a worktree.
const OBJECTS_LIMIT: u64 = 8 << 30;

/// How many references of a worktree are looked at.
pub(super) const REFERENCES_LIMIT: usize = 200_000;

/// The command that fetches one reference, checks every object and changes nothing else.
pub(super) const FETCH: &str = "
-c fetch.fsckObjects=true -c fetch.writeCommitGraph=false -c transfer.bundleURI=false
-c core.hooksPath=/dev/null -c gc.auto=0 -c protocol.file.allow=always
fetch --quiet --no-tags --no-prune --no-recurse-submodules --no-write-fetch-head
--no-auto-maintenance --no-show-forced-updates --refmap=
";

/// The state of a worktree's HEAD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The branch; `None` if HEAD is detached.
    pub branch: Option<String>,
    /// The commit; `None` if the branch has none yet.
    pub commit: Option<String>,
}

/// The references that the person's repository has for a worktree.
#[derive(Default)]
pub(super) struct References {
    /// The commit of the task's branch.
    pub(super) branch: Option<String>,
    /// The person's checkout of that branch.
    pub(super) checkout: Option<String>,
    /// The commit that was fetched last.
    pub(super) tip: Option<String>,
}

impl Worktree {
    /// The worktree's HEAD, read from git's files.
    ///
    /// # Errors
    /// [`Exit::Data`] if these are not as git writes them.
    pub fn head(&self) -> Result<Head> {
        self.foreign().head()
    }

    /// The URLs of the remotes of the person's repository.
    pub fn remotes(&self) -> Result<Vec<String>> {
        let urls = self.git("config --get-regexp ^remote[.].*[.]url$").said()?;
        Ok(urls.lines().filter_map(|it| Some(it.split_once(' ')?.1.to_owned())).collect())
    }

    /// The files that differ between two commits or trees.
    pub fn changed(&self, from: &str, to: &str) -> Result<Vec<String>> {
        let list = self.git("diff-tree -r -z --name-only --no-renames").args([from, to]);
        list.records("cannot compare the branches")
    }

    /// The difference between the task's base and a commit, as git shows it.
    pub fn difference(&self, commit: &str) -> Result<String> {
        let show = self.git("diff --no-ext-diff --no-textconv --no-color").arg(&self.base);
        show.arg(commit).text("cannot compare the commits")
    }

    pub(super) fn foreign(&self) -> Foreign {
        Foreign {
            tree: self.path.clone(),
            git_dir: self.git_dir(),
            persons: self.repository.clone(),
            scratch: self.hidden(&format!("scratch-{}", std::process::id())),
        }
    }

    pub(super) fn references(&self) -> Result<References> {
        let (branch, tip) = (self.reference(), reference("tip", &self.path));
        let listed =
            self.git("for-each-ref").arg("--format=%(refname) %(objectname) %(worktreepath)");
        let listed = listed.args([&branch, &tip]).text("cannot list the branches")?;
        let mut found = References::default();
        for line in listed.lines() {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().unwrap_or_default();
            let (name, commit, checkout) = (word(), word().to_owned(), word());
            if name == tip {
                found.tip = Some(commit);
            } else if name == branch {
                found.branch = Some(commit);
                found.checkout = Some(checkout.to_owned()).filter(|path| !path.is_empty());
            }
        }
        Ok(found)
    }

    /// Fetches what is checked out in the worktree, and moves the task's branch there unless the
    /// person moved it. Returns the commit to merge, the branch's or else that of the worktree; `None`
    /// if worktree and branch are gone.
    ///
    /// # Errors
    /// [`Exit::Data`] if an object is missing or damaged, or the branch has commits of both sides.
    pub fn fetch(&self) -> Result<Option<String>> {
        let _lock = self.lock()?;
        self.fetch_locked()
    }

    pub(super) fn fetch_locked(&self) -> Result<Option<String>> {
        let References { branch, tip, .. } = self.references()?;
        let has_own = self.has_own_repository();
        let own = if has_own { self.head()?.commit } else { tip };
        let Some(own) = own.or(branch) else { return Ok(None) };
        self.take(&own, |own, reference| match has_own {
            true => self.foreign().fetch(own, reference),
            false => Ok(()),
        })
    }

    /// Moves the task's branch to the commit `own`, which `fetch` brings under a reference.
    pub(super) fn take(
        &self,
        own: &str,
        fetch: impl Fn(&str, &str) -> Result<()>,
    ) -> Result<Option<String>> {
        let own = own.to_owned();
        let References { branch, checkout, tip } = self.references()?;
        let tip_reference = reference("tip", &self.path);
        let set = |reference: &str, old: &str| -> Result<()> {
            let to = || self.git("update-ref").args([reference, &own, old]).run();
            succeeded(retry(to)?, &format!("cannot move the branch {}", self.branch)).map(drop)
        };
        if tip.is_none() && branch.is_none() {
            // The branch first: a tip without one means that the person deleted it.
            fetch(&own, &self.reference())?;
            fault::point("fetch", "branch");
            set(&tip_reference, "")?;
            return Ok(Some(own));
        }
        if tip.as_ref() != Some(&own) {
            fetch(&own, &tip_reference)?;
        }
        let Some(branch) = branch else { return Ok(Some(own)) };
        let is_persons = Some(&branch) != tip.as_ref();
        if branch == own || is_persons && self.is_ancestor(&own, &branch)? {
            return Ok(Some(branch));
        }
        if is_persons && !self.is_ancestor(&branch, &own)? {
            let what = format!("{} and its worktree have different commits", self.branch);
            return Refusal::new(Exit::Data, what)
                .place(format!("the worktree is at {own}"))
                .refuse(format!("git branch -m {} NAME keeps yours; then try again", self.branch));
        }
        // The files of a checkout would not follow.
        if checkout.is_none() {
            set(&self.reference(), &branch)?;
        }
        Ok(Some(own))
    }

    /// The other tasks' branches with which this one conflicts, each with the files. Branches that the
    /// person's HEAD has are not compared; a git before 2.38 finds none.
    pub fn collisions(&self) -> Result<Vec<(String, Vec<String>)>> {
        let References { tip: Some(own), .. } = self.references()? else { return Ok(Vec::new()) };
        let listed = self.git("for-each-ref --no-merged=HEAD refs/dispatch/tip");
        let listed = listed.arg("--format=%(objectname) %(refname:lstrip=3)");
        let listed = listed.text("cannot list the branches")?;
        let mut found = Vec::new();
        for (tip, name) in listed.lines().filter_map(|line| line.split_once(' ')) {
            let tried = self.merge_tree().args([own.as_str(), tip]).run()?;
            if tip != own && tried.status.code() == Some(1) {
                found.push((name.to_owned(), records(&tried.stdout).skip(1).collect()));
            }
        }
        Ok(found)
    }

    pub(super) fn is_ancestor(&self, old: &str, new: &str) -> Result<bool> {
        self.git("merge-base --is-ancestor").args([old, new]).ok()
    }
}

/// A checkout and a repository that a worker writes: a worktree, or a submodule in it.
#[derive(Clone)]
pub(super) struct Foreign {
    pub(super) tree: PathBuf,
    pub(super) git_dir: PathBuf,
    /// The person's repository that it was made of.
    pub(super) persons: PathBuf,
    /// Where its scratch repository is made.
    pub(super) scratch: PathBuf,
}

impl Foreign {
    fn text(&self, name: &str) -> Result<Option<String>> {
        files::read_lossy(&self.git_dir.join(name))
    }

    /// The repository's HEAD.
    pub(super) fn head(&self) -> Result<Head> {
        let place = self.git_dir.join("HEAD");
        let text = self.text("HEAD")?.unwrap_or_default();
        let text = text.trim_end();
        let bad = || {
            Refusal::new(Exit::Data, "the worktree's HEAD cannot be read")
                .place(place.display().to_string())
                .next("look at it there; a worker may have changed it")
        };
        let Some(name) = text.strip_prefix("ref: ") else {
            let commit = object_id(text).ok_or_else(bad)?;
            return Ok(Head { branch: None, commit: Some(commit) });
        };
        let branch = name.strip_prefix("refs/heads/").filter(|it| stays_below(Path::new(it)));
        let branch = branch.filter(|it| !it.contains(char::is_control)).ok_or_else(bad)?;
        let commit = match self.text(name)? {
            Some(text) => Some(object_id(text.trim_end()).ok_or_else(bad)?),
            None => self.packed()?.into_iter().find(|(it, _)| it == name).map(|(_, id)| id),
        };
        Ok(Head { branch: Some(branch.into()), commit })
    }

    /// The packed references.
    fn packed(&self) -> Result<Vec<(String, String)>> {
        let text = self.text("packed-refs")?.unwrap_or_default();
        let entry = |line: &str| {
            let (id, name) = line.split_once(' ')?;
            Some((name.to_owned(), object_id(id)?))
        };
        let is_too_long = text.lines().nth(REFERENCES_LIMIT).is_some();
        ensure!(!is_too_long, "{} has too many branches", self.tree.display());
        Ok(text.lines().filter_map(entry).collect())
    }

    /// All references with their objects. Those that lead to another one are left out.
    pub(super) fn all_references(&self) -> Result<Vec<(String, String)>> {
        let mut all = self.packed()?;
        let found = walk(&self.git_dir.join("refs")).into_iter().filter_map(Result::ok);
        for (count, entry) in found.enumerate() {
            ensure!(count < REFERENCES_LIMIT, "{} has too many branches", self.tree.display());
            if entry.file_type().is_file() {
                let name = entry.path().strip_prefix(&self.git_dir)?.display().to_string();
                let text = self.text(&name)?.unwrap_or_default();
                all.extend(object_id(text.trim_end()).map(|id| (name, id)));
            }
        }
        Ok(all)
    }

    /// A repository of dispatch's own with the person's objects and this HEAD, without references.
    pub(super) fn scratch(&self, head: &str) -> Result<Scratch> {
        let directory = Temporary::new(self.scratch.clone())?;
        let scratch = Scratch { directory, tree: self.tree.clone() };
        let config = Settings::of_repository(&self.persons)?.of_scratch();
        make_repository(&scratch.directory.0, &self.persons, head, &config)?;
        Ok(scratch)
    }

    /// A scratch repository with the index of the checkout, for commands on its files.
    pub(super) fn scratch_with_index(&self) -> Result<Scratch> {
        let head = self.head()?.commit.context("the worktree's branch has no commit")?;
        let scratch = self.scratch(&head)?;
        let index = scratch.directory.0.join("index");
        let own = self.git_dir.join("index");
        files::copy_foreign(&own, &index, OBJECTS_LIMIT)?;
        // Git compares the content of files that changed in the index's own moment (racy-git(7)).
        if let Ok(written) = own.symlink_metadata().and_then(|it| it.modified()) {
            files::touch(&index, written)?;
        }
        Ok(scratch)
    }

    /// The uncommitted files, but for what is in submodules.
    pub(super) fn changes(&self) -> Result<Vec<String>> {
        self.scratch_with_index()?.changes()
    }

    /// Fetches a commit into the person's repository, under that reference.
    fn fetch(&self, commit: &str, reference: &str) -> Result<()> {
        let scratch = self.scratch(commit)?;
        self.copy_objects(&scratch)?;
        // First, because a commit that was fetched is not fetched again.
        self.take_large_files(&self.git_dir)?;
        self.fetch_from(&scratch, commit, &format!("+refs/heads/tip:{reference}"))
    }

    /// Fetches a commit from a scratch repository. Git checks every object and that none is missing.
    pub(super) fn fetch_from(&self, scratch: &Scratch, commit: &str, refspec: &str) -> Result<()> {
        let tip = scratch.directory.0.join("refs/heads/tip");
        std::fs::write(&tip, format!("{commit}\n")).context("cannot write a reference")?;
        let fetch = || git_on(&self.persons, FETCH).arg(&scratch.directory.0).arg(refspec).run();
        let fetched = retry(fetch)?;
        if !fetched.status.success() {
            let what = format!("cannot fetch {commit} of the worktree");
            return Refusal::new(Exit::Data, what).place(error_line(&fetched)).refuse(format!(
                "look at {}: its worker may have damaged it",
                self.tree.display()
            ));
        }
        Ok(())
    }

    /// Copies the loose and packed objects, and nothing that leads to objects elsewhere.
    pub(super) fn copy_objects(&self, scratch: &Scratch) -> Result<()> {
        let (from, to) = (self.git_dir.join("objects"), scratch.directory.0.join("objects"));
        let is_hex = |name: &str| name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut left = OBJECTS_LIMIT;
        for directory in files::entries(&from)? {
            let Some(directory) = directory.to_str() else { continue };
            let is_loose = directory.len() == 2 && is_hex(directory);
            if !is_loose && directory != "pack" {
                continue;
            }
            files::create_private_directory(&to.join(directory))?;
            for name in files::entries(&from.join(directory))? {
                let Some(name) = name.to_str() else { continue };
                let pack = name.strip_prefix("pack-").and_then(|rest| rest.split_once('.'));
                let is_object = match pack {
                    Some((id, end)) => is_hex(id) && ["pack", "idx", "promisor"].contains(&end),
                    None => is_loose && is_hex(name),
                };
                if is_object {
                    let path = Path::new(directory).join(name);
                    left -= files::copy_foreign(&from.join(&path), &to.join(&path), left)?;
                }
            }
        }
        Ok(())
    }

    /// Returns which of these commits were made here, so that this repository has their objects itself.
    pub(super) fn commits_made(&self, head: &str, commits: &[&String]) -> Result<BTreeSet<String>> {
        let scratch = self.scratch(head)?;
        files::remove(&scratch.directory.0.join("objects/info/alternates"))?;
        self.copy_objects(&scratch)?;
        let list = git_on(&scratch.directory.0, "rev-list --no-walk --ignore-missing");
        let listed = list.args(commits).text("cannot list the worktree's commits")?;
        Ok(collect(listed.lines().map(str::to_owned)))
    }

    /// Copies the objects of Git LFS in the repository `from` whose content has the hash that names them.
    pub(super) fn take_large_files(&self, from: &Path) -> Result<()> {
        if from.join("lfs").symlink_metadata().is_err() {
            return Ok(());
        }
        let storage = Settings::of_repository(&self.persons)?.large_files(&self.persons);
        let mut left = OBJECTS_LIMIT;
        let found = walk(&from.join("lfs/objects")).max_depth(3).into_iter();
        for entry in found.filter_map(Result::ok) {
            let Some(id) = entry.file_name().to_str().and_then(object_id) else { continue };
            let to = storage.join("objects").join(&id[..2]).join(&id[2..4]).join(&id);
            if to.exists() || !entry.file_type().is_file() {
                continue;
            }
            files::create_private_directory(to.parent().unwrap_or(&storage))?;
            let part = beside(&to, "part");
            left -= files::copy_foreign(entry.path(), &part, left)?;
            match file_hash(&part)? == id {
                true => std::fs::rename(&part, &to).context("cannot keep a large file")?,
                false => files::remove(&part)?,
            }
        }
        Ok(())
    }
}

/// A directory that is removed at the end. A later one in its place replaces what is left of it.
pub(super) struct Temporary(pub(super) PathBuf);

impl Temporary {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        files::remove_directory(&path)?;
        files::create_private_directory(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = files::remove_directory(&self.0);
    }
}

/// A repository of dispatch's own.
pub(super) struct Scratch {
    pub(super) directory: Temporary,
    tree: PathBuf,
}

impl Scratch {
    /// A git command on the files of the checkout, which reads nothing of its repository.
    pub(super) fn git(&self, words: &str) -> Git {
        let git = git(&self.tree, "--git-dir").arg(&self.directory.0);
        git.words("--work-tree").arg(&self.tree).words(words)
    }

    /// The uncommitted files, but for what is in submodules: git would run in their repositories.
    pub(super) fn changes(&self) -> Result<Vec<String>> {
        // The person's configuration may hide some of these.
        let all = "--untracked-files=normal --ignore-submodules=dirty";
        changes(self.git(STATUS).words(all))
    }

    /// The submodules and nested repositories in the index that have files.
    pub(super) fn submodules(&self) -> Result<Vec<String>> {
        let listed = self.git("ls-files --stage -z");
        let listed = listed.records("cannot list the files of the worktree")?;
        let name =
            |line: &String| Some(line.strip_prefix("160000 ")?.split_once('\t')?.1.to_owned());
        let mut found: Vec<_> = listed.iter().filter_map(name).collect();
        found.retain(|name| self.tree.join(name).join(".git").symlink_metadata().is_ok());
        Ok(found)
    }
}

/// Walks through a directory that a worker writes; a link in its place leads nowhere.
pub(super) fn walk(directory: &Path) -> WalkDir {
    WalkDir::new(directory).follow_root_links(false)
}

/// Makes a repository that has the objects of the person's, by alternates, and no references.
pub(super) fn make_repository(own: &Path, persons: &Path, head: &str, config: &str) -> Result<()> {
    for part in ["objects/info", "objects/pack", "refs/heads", "info"] {
        files::create_private_directory(&own.join(part))?;
    }
    let excluded = files::read(&persons.join("info/exclude"))?.unwrap_or_default();
    let excluded = format!("{}\n{EXCLUDED}", excluded.trim_end());
    for (name, text) in [
        ("HEAD", format!("{head}\n")),
        ("config", config.to_owned()),
        ("objects/info/alternates", alternates(persons)),
        ("info/exclude", excluded),
    ] {
        write(&own.join(name), &text)?;
    }
    for name in ["info/attributes", "shallow"] {
        if let Some(text) = files::read(&persons.join(name))? {
            write(&own.join(name), &text)?;
        }
    }
    Ok(())
}

/// The file by which a repository has the objects of the person's.
pub(super) fn alternates(persons: &Path) -> String {
    format!("{}\n", persons.join("objects").display())
}

pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// An object's id in full, SHA-1 or SHA-256.
pub fn object_id(text: &str) -> Option<String> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    ([40, 64].contains(&text.len()) && text.bytes().all(is_digit)).then(|| text.to_owned())
}
