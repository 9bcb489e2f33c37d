//! The ignored files of a checkout that its worktrees get.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::domain::Worktree;
use crate::files;
use crate::git::command::git;
use crate::git::first_paths;

/// The file in a checkout with patterns of ignored files that its worktrees get (Claude Code's own).
const INCLUDE: &str = ".worktreeinclude";

/// How many files, and how many bytes of them, a worktree gets by [`INCLUDE`].
const INCLUDED_FILES: usize = 1000;
const INCLUDED_BYTES: u64 = 64 << 20;

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
}
