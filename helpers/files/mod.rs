//! Whole files, locks that name their holder, and errors that name a path.
//!
//! Two readers differ by who can write the file: [`read`] is for the person's files,
//! [`read_foreign`] for files in a worker's reach. Those are opened without following a symlink in any
//! part of their path: a worker may replace its directories at any moment.

mod lock;
mod publish;
mod read;

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;

use crate::error::{Exit, Refusal};
use crate::process::open_without_symlinks;

pub use lock::Lock;
pub use publish::{
    in_number_order, numbered_names, publish, publish_copy, publish_first, publish_new,
    publish_numbered, read_numbered, remove_leftovers,
};
pub use read::{
    LARGEST, copy_foreign, decode, read, read_foreign, read_growing, read_lossy, read_start, tail,
};

/// The names in a directory in a worker's reach; none if there is no such directory.
///
/// # Errors
/// [`Exit::Data`] for anything in its place that is not a directory.
pub fn entries(path: &Path) -> Result<Vec<OsString>> {
    let directory = match open(path, OFlag::O_DIRECTORY, Mode::empty()) {
        Ok(directory) => Dir::from_fd(directory.into())?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            refuse_symlinks(path)?;
            return match error.kind() {
                ErrorKind::NotADirectory => Err(wrong_kind(path, "directory").into()),
                _ => Err(error).context(format!("cannot read {}", path.display())),
            };
        }
    };
    let names = directory.into_iter().flatten().map(|entry| entry.file_name().to_bytes().to_vec());
    Ok(names.filter(|name| name != b"." && name != b"..").map(OsString::from_vec).collect())
}

/// Parses JSON by way of a value: each type is compiled for values alone, and not for each format and
/// reader.
pub fn from_json<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    Ok(serde_json::from_value(serde_json::from_slice(text)?)?)
}

/// Parses YAML like [`from_json`]. An enum with contents must be written as a map: a JSON value has no tags.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> Result<T> {
    Ok(serde_json::from_value(serde_yaml::from_str(text)?)?)
}

/// Refuses a symlink in the place of a file or directory of dispatch.
pub fn refuse_symlink(path: &Path) -> Result<(), Refusal> {
    match fs::read_link(path) {
        Ok(target) => Refusal::new(Exit::Data, format!("{} is a symlink", path.display()))
            .place(format!("to {}; dispatch follows none in its own directories", target.display()))
            .refuse("remove it, or put what it leads to in its place"),
        Err(_) => Ok(()),
    }
}

/// Refuses a symlink in any part of a path, the first one by name.
fn refuse_symlinks(path: &Path) -> Result<(), Refusal> {
    let mut parts: Vec<_> = path.ancestors().collect();
    parts.reverse();
    parts.into_iter().try_for_each(refuse_symlink)
}

fn wrong_kind(path: &Path, expected: &str) -> Refusal {
    Refusal::new(Exit::Data, format!("{} is not a {expected}", path.display()))
        .next("move away what is in its place")
}

/// Returns true if a file changed less than `age` ago.
pub fn modified_within(path: &Path, age: Duration) -> bool {
    let elapsed = modified_at(path).and_then(|modified| modified.elapsed().ok());
    elapsed.is_some_and(|elapsed| elapsed < age)
}

/// The modification time of a file, a symlink's own.
pub fn modified_at(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|it| it.modified()).ok()
}

/// Parses a numeric file name; rejects numbers that dispatch could not have reached.
pub fn parse_number(name: &str) -> Option<u32> {
    let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok())?.filter(|number| *number < 1_000_000)
}

/// The number after the last one in a directory.
///
/// # Errors
/// [`Exit::Data`] if [`parse_number`] would reject it.
pub fn next_number(last: u32, directory: &Path) -> Result<u32, Refusal> {
    parse_number(&(last + 1).to_string()).ok_or_else(|| {
        Refusal::new(Exit::Data, "there is no number left")
            .place(format!("in {}", directory.display()))
            .next("move the highest one away")
    })
}

/// Removes a file, if it exists.
pub fn remove(path: &Path) -> Result<()> {
    let remove = || fs::remove_file(Place::of(path)?.file(path));
    removed(remove(), path)
}

/// Removes a directory and its contents, if it exists.
pub fn remove_directory(path: &Path) -> Result<()> {
    removed(fs::remove_dir_all(path), path)
}

/// Copies a directory with all its files and directories.
pub fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.with_context(|| format!("cannot read {}", from.display()))?;
        let copy = to.join(entry.path().strip_prefix(from)?);
        match entry.file_type().is_dir() {
            true => create_private_directory(&copy)?,
            false => drop(fs::copy(entry.path(), &copy).with_context(|| cannot_write(&copy))?),
        }
    }
    Ok(())
}

fn removed(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Creates a directory and its parents, each accessible to the owner only.
pub fn create_private_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Creates a private directory for a task's files and its parents, unless a symlink or a file is in
/// the place of one.
pub fn create_task_directory(path: &Path) -> Result<()> {
    let create = || -> io::Result<()> {
        let place = Place::of(path)?;
        match DirBuilder::new().mode(0o700).create(place.file(path)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                open(path, OFlag::O_DIRECTORY, Mode::empty()).map(drop)
            }
            created => created,
        }
    };
    let created = match (create(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == ErrorKind::NotFound => {
            create_task_directory(parent)?;
            create()
        }
        (created, _) => created,
    };
    created.or_else(|error| {
        refuse_symlinks(path)?;
        Err(error).with_context(|| format!("cannot make the directory {}", path.display()))
    })
}

/// Sets the modification time of a file, which is created if it does not exist.
pub fn touch(path: &Path, time: SystemTime) -> Result<()> {
    open_append(path)?.set_modified(time).with_context(|| cannot_write(path))
}

/// Opens a file to append to it, unless a symlink is in its place.
pub fn open_append(path: &Path) -> Result<File> {
    open_private(path, OFlag::O_APPEND).with_context(|| cannot_write(path))
}

/// Opens a file to read and write, which is created for the owner only.
fn open_private(path: &Path, further: OFlag) -> io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | further;
    open(path, flags, Mode::S_IRUSR | Mode::S_IWUSR)
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// A worker may replace the files in a project's `.dispatch` and in its worktree; returns true for
/// those.
fn is_in_workers_reach(path: &Path) -> bool {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
    let inside = ["tasks", "reports", "token", "worktrees"];
    parts.windows(2).any(|pair| pair[0] == ".dispatch" && inside.iter().any(|it| pair[1] == *it))
}

/// Opens a file. In a worker's reach no part of the path may be a symlink, elsewhere its last part.
fn open(path: &Path, flags: OFlag, mode: Mode) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let opened = match is_in_workers_reach(path) {
        true => open_without_symlinks(path, flags, mode),
        false => nix::fcntl::open(path, flags, mode),
    };
    Ok(opened?.into())
}

/// The directory of a file, held open so that nobody can put another one in its place.
struct Place {
    directory: PathBuf,
    _held: Option<File>,
}

impl Place {
    /// The place of the file with this path.
    ///
    /// # Errors
    /// A missing directory or a symlink, if the path is in a worker's reach.
    fn of(path: &Path) -> io::Result<Self> {
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
    fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file with the name of `path` in the directory.
    fn file(&self, path: &Path) -> PathBuf {
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
