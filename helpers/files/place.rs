//! Files in a worker's reach, opened without following a symlink in any part of their path: a worker
//! may replace its directories at any moment.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::process::open_without_symlinks;

/// A worker may replace the files in a project's `.dispatch` and in its worktree; returns true for
/// those.
fn is_in_workers_reach(path: &Path) -> bool {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
    let inside = ["tasks", "reports", "token", "worktrees"];
    parts.windows(2).any(|pair| pair[0] == ".dispatch" && inside.iter().any(|it| pair[1] == *it))
}

/// Opens a file. In a worker's reach no part of the path may be a symlink, elsewhere its last part.
pub(super) fn open(path: &Path, flags: OFlag, mode: Mode) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = match is_in_workers_reach(path) {
        true => open_without_symlinks(path, flags, mode),
        false => nix::fcntl::open(path, flags, mode),
    };
    Ok(opened?.into())
}

/// The directory of a file, held open so that nobody can put another one in its place.
pub(super) struct Place {
    directory: PathBuf,
    _held: Option<File>,
}

impl Place {
    /// The place of the file with this path.
    ///
    /// # Errors
    /// A missing directory or a symlink, if the path is in a worker's reach.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let directory = path.parent().filter(|it| *it != Path::new("")).unwrap_or(Path::new("."));
        if !is_in_workers_reach(path) {
            return Ok(Self { directory: directory.into(), _held: None });
        }
        let held = open(directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        // Only Linux can name a file below a descriptor; elsewhere a race is left.
        let below = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let directory = if below.exists() { below } else { directory.into() };
        Ok(Self { directory, _held: Some(held) })
    }

    /// The directory, by a path that leads nowhere else while the place is held.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file with the name of `path` in the directory.
    pub(super) fn file(&self, path: &Path) -> PathBuf {
        self.directory.join(path.file_name().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projects_own_files_and_worktrees_are_in_a_workers_reach() {
        let rows = [
            ("/p/.dispatch/tasks/x/plan.md", true),
            ("/p/.dispatch/reports/x.md", true),
            ("/p/.dispatch/token", true),
            ("/a/.dispatch/b/.dispatch/tasks/x", true),
            ("/h/.dispatch/worktrees/p/x/.git/HEAD", true),
            ("/h/.dispatch/state/p/x/record.yaml", false),
            ("/h/.dispatch/config.yaml", false),
        ];
        for (path, expected) in rows {
            assert_eq!(is_in_workers_reach(Path::new(path)), expected, "{path}");
        }
    }
}
