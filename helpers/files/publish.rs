//! Publishing files whole, and removing what a killed writer left.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use tempfile::{NamedTempFile, TempPath};

use super::read::open_foreign;
use super::{
    Place, cannot_write, create_task_directory, entries, next_number, parse_number, read_lossy,
    refuse_symlinks,
};
use crate::fault;
use crate::text::sort;

/// The end of the name of every temporary file.
const SUFFIX: &str = ".dispatch.tmp";

/// Publishes a file: a reader finds the old content or the new, never a part, also after a power
/// failure. A symlink with that name is replaced, not followed.
pub fn publish(path: &Path, content: &[u8]) -> Result<()> {
    let place = replace(path, content, true)?;
    sync_directory(&place, path)
}

/// Publishes a file without waiting until its name is on the disk: after a power failure it is whole, old
/// or not there. For a file beside which [`publish`] writes another one next, which puts both names there.
pub fn publish_first(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content, true).map(drop)
}

/// Publishes a copy that its writer can make again, without waiting for the disk: after a power failure it
/// may be empty or old.
pub fn publish_copy(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, content, false).map(drop)
}

fn replace(path: &Path, content: &[u8], sync: bool) -> Result<Place> {
    let place = place_of(path)?;
    let (temp, _lock) = write_temporary(&place, path, content, sync)?;
    temp.persist(place.file(path)).map_err(|it| it.error).with_context(|| cannot_write(path))?;
    fault::point(name(path), "published");
    Ok(place)
}

/// Publishes a file if its name is free; `false` if it is taken.
pub fn publish_new(path: &Path, content: &[u8]) -> Result<bool> {
    let place = place_of(path)?;
    let (temp, _lock) = write_temporary(&place, path, content, true)?;
    match temp.persist_noclobber(place.file(path)) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error).with_context(|| cannot_write(path)),
    }
    fault::point(name(path), "published");
    sync_directory(&place, path)?;
    Ok(true)
}

fn place_of(path: &Path) -> Result<Place> {
    Place::of(path).or_else(|error| {
        refuse_symlinks(path)?;
        Err(error).with_context(|| cannot_write(path))
    })
}

/// A temporary file in the place of `path`, complete, with `sync` on disk, and its lock. It is open for
/// reading only, because a reader takes a file that somebody may write for one that is being written.
fn write_temporary(
    place: &Place,
    path: &Path,
    content: &[u8],
    sync: bool,
) -> Result<(TempPath, File)> {
    let mut temp = create_temporary(place, path).with_context(|| cannot_write(path))?;
    temp.write_all(content).with_context(|| cannot_write(path))?;
    if sync {
        temp.as_file().sync_data().with_context(|| cannot_write(path))?;
    }
    fault::point(name(path), "written");
    let lock = File::open(temp.path()).with_context(|| cannot_write(path))?;
    // Where a file system has no locks, there is none to keep.
    let _ = lock.try_lock_shared();
    Ok((temp.into_temp_path(), lock))
}

/// An empty temporary file, locked for as long as it is open: a lock that is free tells
/// [`remove_leftovers`] that the writer is dead, in whichever pid namespace it was.
fn create_temporary(place: &Place, path: &Path) -> std::io::Result<NamedTempFile> {
    let old = fs::symlink_metadata(place.file(path)).ok().filter(fs::Metadata::is_file);
    let mode = old.as_ref().map_or(0o600, |old| old.permissions().mode() & 0o777);
    let prefix = format!(".{}.", name(path));
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX).permissions(Permissions::from_mode(mode));
    let create = || builder.tempfile_in(place.directory());
    let mut temp = create()?;
    // A cleaner may get the lock first, and remove the file.
    for _ in 0..3 {
        match temp.as_file().try_lock_shared() {
            Ok(()) if temp.as_file().metadata()?.nlink() > 0 => break,
            Err(TryLockError::Error(_)) => break,
            _ => temp = create()?,
        }
    }
    if let Some(old) = old {
        // A file that a group shares stays shared, whatever the umask; the group may not be ours to give.
        let _ = std::os::unix::fs::fchown(temp.as_file(), None, Some(old.gid()));
        temp.as_file().set_permissions(Permissions::from_mode(mode))?;
    }
    Ok(temp)
}

/// Removes the temporary files of dead writers from a directory. Returns how many were removed.
pub fn remove_leftovers(directory: &Path) -> usize {
    let mut removed = 0;
    for name in entries(directory).unwrap_or_default() {
        let bytes = name.as_encoded_bytes();
        if !bytes.starts_with(b".") || !bytes.ends_with(SUFFIX.as_bytes()) {
            continue;
        }
        let path = directory.join(&name);
        let Ok(Some((file, _))) = open_foreign(&path) else { continue };
        removed += usize::from(file.try_lock().is_ok() && super::remove(&path).is_ok());
    }
    removed
}

fn sync_directory(place: &Place, path: &Path) -> Result<()> {
    File::open(place.directory())
        .and_then(|directory| directory.sync_all())
        .with_context(|| cannot_write(path))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or("file")
}

/// Writes a text to the next free number in a directory, with three digits or more.
pub fn publish_numbered(directory: &Path, text: &str) -> Result<()> {
    create_task_directory(directory)?;
    loop {
        let last = numbered_names(directory, "")?.pop().and_then(|name| parse_number(&name));
        let name = format!("{:03}", next_number(last.unwrap_or(0), directory)?);
        if publish_new(&directory.join(&name), text.as_bytes())? {
            return Ok(());
        }
    }
}

/// The files of a directory whose names are numbers before `ending`, in their order, as pairs of number
/// and text.
pub fn read_numbered(directory: &Path, ending: &str) -> Result<Vec<(String, String)>> {
    let with_text = |name: String| {
        let text = read_lossy(&directory.join(format!("{name}{ending}")))?;
        Ok((name, text.unwrap_or_default()))
    };
    numbered_names(directory, ending)?.into_iter().map(with_text).collect()
}

/// The names in a directory that are numbers before `ending`, without it, in their order.
pub fn numbered_names(directory: &Path, ending: &str) -> Result<Vec<String>> {
    let entries = entries(directory)?.into_iter();
    let names = entries.filter_map(|name| Some(name.to_str()?.strip_suffix(ending)?.into()));
    Ok(in_number_order(names.collect()))
}

/// The names that are numbers, in their order.
pub fn in_number_order(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| parse_number(name).is_some());
    sort(&mut names, |one, other| parse_number(one).cmp(&parse_number(other)));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::read;

    #[test]
    fn published_file_is_private_and_leaves_no_temporary_file() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        publish(&path, b"one").expect("published");
        publish(&path, b"two").expect("published again");
        assert_eq!(read(&path).expect("readable").as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn replaced_file_stays_shared_with_its_group() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("exclude");
        fs::write(&path, "old").expect("written");
        // The usual umask would take the group's right to write.
        fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("set");
        publish(&path, b"new").expect("published");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o664);
    }

    #[test]
    fn only_a_dead_writers_temporary_file_is_removed() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        let place = Place::of(&path).expect("there");
        let write = || write_temporary(&place, &path, b"half", true).expect("written");
        let alive = write();
        let dead = write().0.keep().expect("kept");
        for name in ["plan.md", ".note.tmp", "x.dispatch.tmp"] {
            fs::write(home.path().join(name), "").expect("written");
        }
        fs::create_dir(home.path().join(".d.dispatch.tmp")).expect("made");
        assert_eq!(remove_leftovers(home.path()), 1);
        assert!(alive.0.exists() && !dead.exists());
        assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 5);
        assert_eq!(remove_leftovers(home.path()), 0);
    }

    #[test]
    fn only_the_first_publisher_gets_a_free_name() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("001.question");
        assert!(publish_new(&path, b"first").expect("published"));
        assert!(!publish_new(&path, b"second").expect("refused"));
        assert_eq!(read(&path).expect("readable").as_deref(), Some("first"));
    }
}
