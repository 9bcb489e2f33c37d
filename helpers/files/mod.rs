//! Whole files, locks that name their holder, and errors that name a path.
//!
//! Two readers differ by who can write the file: [`read`] is for the person's files,
//! [`read_foreign`] for files in a worker's reach.

mod lock;
mod publish;
mod read;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::Refusal;
use crate::exit::Exit;

pub use lock::Lock;
pub use publish::{publish, publish_new, publish_numbered, read_numbered, remove_leftovers};
pub use read::{decode, read, read_foreign, tail};

/// The names in a directory in a worker's reach, each with whether it is a symlink; none if there is
/// no such directory.
///
/// # Errors
/// [`Exit::Data`] for anything in its place that is not a directory.
pub fn entries(path: &Path) -> Result<Vec<(OsString, bool)>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match Dir::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            refuse_symlink(path)?;
            return Err(wrong_kind(path, "directory").into());
        }
        Err(error) => return Err(error).context(format!("cannot read {}", path.display())),
    };
    let mut entries = Vec::new();
    for entry in directory.into_iter().flatten() {
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            entries.push((name.to_owned(), entry.file_type() == Some(Type::Symlink)));
        }
    }
    Ok(entries)
}

/// Refuses a symlink in the place of a file or directory of dispatch.
pub fn refuse_symlink(path: &Path) -> Result<(), Refusal> {
    match fs::read_link(path) {
        Ok(target) => Err(Refusal::new(Exit::Data, format!("{} is a symlink", path.display()))
            .place(format!("to {}; dispatch follows none in its own directories", target.display()))
            .next("remove it, or put what it leads to in its place")),
        Err(_) => Ok(()),
    }
}

fn wrong_kind(path: &Path, expected: &str) -> Refusal {
    Refusal::new(Exit::Data, format!("{} is not a {expected}", path.display()))
        .next("move away what is in its place")
}

/// Whether a file changed less than `age` ago.
pub fn modified_within(path: &Path, age: Duration) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|it| it.modified());
    let elapsed = modified.ok().and_then(|modified| modified.elapsed().ok());
    elapsed.is_some_and(|elapsed| elapsed < age)
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
    removed(fs::remove_file(path), path)
}

/// Removes a directory and its contents, if it exists.
pub fn remove_directory(path: &Path) -> Result<()> {
    removed(fs::remove_dir_all(path), path)
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

/// Creates a private directory for a task's files, unless a symlink is in its place.
pub fn create_task_directory(path: &Path) -> Result<()> {
    refuse_symlink(path)?;
    create_private_directory(path)
}

/// Sets the modification time of a file, which is created if it does not exist.
pub fn touch(path: &Path, time: SystemTime) -> Result<()> {
    open_append(path)?.set_modified(time).with_context(|| cannot_write(path))
}

/// Opens a file to append to it, unless a symlink is in its place.
pub fn open_append(path: &Path) -> Result<File> {
    private(OpenOptions::new().append(true)).open(path).with_context(|| cannot_write(path))
}

/// Makes the options read too, create a private file, and follow no symlink.
fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.read(true).create(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW)
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}
