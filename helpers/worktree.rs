//! Worktrees: a checkout of its own for a task, outside the project's directory.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A task's own checkout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worktree {
    /// Its directory.
    pub path: PathBuf,
    /// The branch that is checked out there.
    pub branch: String,
    /// The commit that the branch began at.
    pub base: String,
    /// Git's common directory of the repository that it belongs to.
    pub repository: PathBuf,
}

impl Worktree {
    /// The directories outside it that git writes to when somebody commits in it.
    pub fn git_directories(&self) -> Vec<PathBuf> {
        let name = self.path.file_name().map(Path::new).unwrap_or(Path::new(""));
        vec![self.repository.clone(), self.repository.join("worktrees").join(name)]
    }
}
