//! Files that a worktree gets besides a commit of the person: uncommitted and ignored ones of the checkout, and
//! submodules.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use anyhow::{Context, Result};

use crate::domain::Worktree;
use crate::files;
use crate::git::command::{STATUS, changes, git, path};
use crate::git::first_paths;
use crate::git::repository::Temporary;
use crate::text::collect;

/// The file in a checkout with patterns of ignored files that its worktrees get (Claude Code's own).
const INCLUDE: &str = ".worktreeinclude";

/// How many files, and how many bytes of them, a worktree gets by [`INCLUDE`].
const INCLUDED_FILES: usize = 1000;
const INCLUDED_BYTES: u64 = 64 << 20;

/// The number of uncommitted changes in the checkout of a directory.
pub(super) fn count_changes(here: &Path) -> Result<usize> {
    let outside = "--untracked-files=normal -- :(top) :(top,exclude).dispatch";
    changes(git(here, STATUS).words(outside)).map(|it| it.len())
}

/// The remark about uncommitted changes that no worktree gets.
pub(super) fn left_behind(count: Result<usize>) -> Option<String> {
    let changes = match count {
        Ok(0) => return None,
        Ok(1) => "1 uncommitted change is".into(),
        Ok(count) => format!("{count} uncommitted changes are"),
        Err(error) => return Some(format!("{error:#}").replace("\n ", ":")),
    };
    Some(format!("{changes} not in the worktree (--with-changes takes them)"))
}

/// Commits what is in a checkout, without touching its index or its branch.
pub(super) fn commit_changes(here: &Path, worktree: &Path, head: &str) -> Result<String> {
    let what = "cannot take the uncommitted changes along";
    let own = git(here, "rev-parse --path-format=absolute --git-path index").bytes(what)?;
    let copy = Temporary::new(worktree.with_file_name(format!(".changes-{}", std::process::id())))?;
    let index = copy.0.join("index");
    let with_index = |words: &str| git(here, words).env("GIT_INDEX_FILE", &index);
    // The copy knows which files are unchanged, so git need not read them.
    std::fs::copy(path(&own), &index).context(what)?;
    with_index("add --all -- :(top) :(top,exclude).dispatch").bytes(what)?;
    let tree = with_index("write-tree").text(what)?;
    let commit = git(here, "commit-tree -p").args([head, "-m", "Uncommitted changes", &tree]);
    commit.text(what)
}

impl Worktree {
    /// Copies the ignored files of the person's checkout that its `.worktreeinclude` names.
    pub(super) fn include_files(&self) -> Result<Option<String>> {
        let Some(checkout) = self.checkout.as_ref().filter(|it| it.join(INCLUDE).is_file()) else {
            return Ok(None);
        };
        let listed = |patterns: &str| -> Result<BTreeSet<String>> {
            let list = git(checkout, "ls-files --others --ignored -z").arg(patterns);
            Ok(collect(list.records("cannot list the files to include")?.into_iter()))
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
                .map_or(0, |it| if it.is_file() { it.len() } else { INCLUDED_BYTES + 1 });
            if copied.len() >= INCLUDED_FILES || size + length > INCLUDED_BYTES {
                left.push(name.clone());
                continue;
            }
            size += length;
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
    let list = git(top, r"config -z -f .gitmodules --get-regexp ^submodule\..*\.path$");
    for entry in list.records("cannot list the submodules").unwrap_or_default() {
        let Some((key, path)) = entry.split_once('\n') else { continue };
        let path = Path::new(path);
        // `.gitmodules` may still name a submodule that was removed, or that is something else now.
        if !stays_below(path) || !is_submodule(top, path) {
            continue;
        }
        let name = key.strip_prefix("submodule.").and_then(|name| name.strip_suffix(".path"));
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
pub(super) fn stays_below(path: &Path) -> bool {
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
