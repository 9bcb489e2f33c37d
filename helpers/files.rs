//! Files that are whole or not there, locks that say who holds them, and errors that name a path.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use walkdir::WalkDir;

use crate::crash;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::process::Identity;

/// How old a temporary file is at least whose writer is taken for dead: a pid means nothing to
/// whoever looks from outside the writer's sandbox.
const LONGEST_WRITE: Duration = Duration::from_secs(600);

/// The text of a file, or `None` if there is no such file. Text that is not UTF-8 is refused with
/// the place of its first wrong byte.
pub fn read(path: &Path) -> Result<Option<String>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(format!("cannot read {}", path.display())),
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(Refusal::new(Exit::Data, format!("{} is not UTF-8 text", path.display()))
                .place(format!("line {line}, byte {good} of the file"))
                .next("save it again as UTF-8")
                .into())
        }
    }
}

/// The last bytes of a file.
pub fn read_end(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

/// Publishes a file whole: whoever opens the name finds the old content or the new, never a part,
/// also after a power failure. A symlink at the name is replaced, not followed.
pub fn publish(path: &Path, content: &[u8]) -> Result<()> {
    let temp = written(path, content)?;
    temp.persist(path).map_err(|error| error.error).with_context(|| cannot_write(path))?;
    crash::point(name(path), "published");
    sync_directory(path)
}

/// Publishes a file whole if its name is free; `false` means that somebody else has it.
pub fn publish_new(path: &Path, content: &[u8]) -> Result<bool> {
    let temp = written(path, content)?;
    match temp.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error.error).with_context(|| cannot_write(path)),
    }
    crash::point(name(path), "published");
    sync_directory(path)?;
    Ok(true)
}

/// Removes a file; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it; one that is not there is fine.
pub fn remove_directory(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A temporary file beside `path`, complete and on disk. Its name holds the writer's pid, so that
/// a leftover can be told from a write that is under way.
fn written(path: &Path, content: &[u8]) -> Result<tempfile::NamedTempFile> {
    let directory = path.parent().context("a file without a directory")?;
    let mode = match fs::metadata(path) {
        Ok(old) => old.permissions().mode() & 0o777,
        Err(_) => 0o600,
    };
    let mut temp = tempfile::Builder::new()
        .prefix(&format!(".{}.{}.", name(path), std::process::id()))
        .suffix(".tmp")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(directory)
        .with_context(|| cannot_write(path))?;
    temp.write_all(content).with_context(|| cannot_write(path))?;
    temp.as_file().sync_data().with_context(|| cannot_write(path))?;
    crash::point(name(path), "written");
    Ok(temp)
}

/// Removes the temporary files below a directory whose writer was killed.
pub fn remove_leftovers(top: &Path) {
    let files = WalkDir::new(top).into_iter().flatten().filter(|it| it.file_type().is_file());
    for file in files.filter(|file| file.file_name().to_str().is_some_and(is_temporary)) {
        let modified = file.metadata().ok().and_then(|it| it.modified().ok());
        let age = modified.and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > LONGEST_WRITE) {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// Whether [`written`] made that name.
fn is_temporary(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    let ending = parts.next() == Some("tmp") && parts.next().is_some();
    name.starts_with('.') && ending && parts.next().is_some_and(|pid| pid.parse::<u32>().is_ok())
}

fn sync_directory(path: &Path) -> Result<()> {
    let directory = path.parent().context("a file without a directory")?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or("file")
}

/// Makes a directory and its parents, each readable by the owner only.
pub fn make_private_directory(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the directory {}", path.display()))
}

/// Opens a file to append to; a symlink in its place is refused.
pub fn open_append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .read(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .with_context(|| cannot_write(path))
}

/// An exclusive lock on a file that is never replaced, free again when dropped or when its holder
/// dies. The file's text names the holder's identity while the lock is held.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for it for at most `limit`.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] with the holder's name if it is held for longer.
    pub fn take(path: &Path, limit: Duration) -> Result<Self> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            if start.elapsed() >= limit {
                let holder = Self::holder(path)?
                    .map_or_else(|| "another process".into(), |holder| format!("pid {holder}"));
                return Err(Refusal::new(Exit::TryAgain, format!("{} is held", path.display()))
                    .place(format!("by {holder}"))
                    .next("call again when it has ended")
                    .into());
            }
            // The longer it takes the rarer, so that a hundred who wait leave the holder its turn.
            let pause = start.elapsed() / 20;
            std::thread::sleep(pause.clamp(Duration::from_millis(2), Duration::from_millis(50)));
        }
    }

    /// Takes the lock if it is free now.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
        let lock = Self { file };
        lock.sign().with_context(|| cannot_write(path))?;
        Ok(Some(lock))
    }

    /// Whether somebody holds the lock, whatever its text says.
    pub fn is_held(path: &Path) -> Result<bool> {
        match File::open(path) {
            Ok(file) => Ok(matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).context(format!("cannot open the lock {}", path.display())),
        }
    }

    fn sign(&self) -> io::Result<()> {
        let text = Identity::own().ok().and_then(|own| serde_json::to_string(&own).ok());
        self.file.set_len(0)?;
        (&self.file).write_all(text.unwrap_or_default().as_bytes())
    }

    /// Who signed the lock last; it holds the lock still if it is alive.
    pub fn holder(path: &Path) -> Result<Option<Identity>> {
        let mut text = String::new();
        match File::open(path) {
            Ok(mut file) => file.read_to_string(&mut text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        }
        .with_context(|| format!("cannot read the lock {}", path.display()))?;
        Ok(serde_json::from_str(&text).ok())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_published_file_is_private_and_leaves_no_temporary_file() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        publish(&path, b"one").expect("published");
        publish(&path, b"two").expect("published again");
        assert_eq!(read(&path).expect("readable").as_deref(), Some("two"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).expect("a directory").count(), 1);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().expect("a directory");
        let old = SystemTime::now() - LONGEST_WRITE * 2;
        let files = [".plan.md.12.abc123.tmp", "plan.md", ".note.tmp", ".a.b.c.tmp", "x.1.y.tmp"];
        for name in files {
            let file = File::create(home.path().join(name)).expect("made");
            file.set_modified(old).expect("an old file");
        }
        fs::write(home.path().join(".plan.md.13.abc123.tmp"), "at work").expect("written");
        remove_leftovers(home.path());
        let left: Vec<_> = fs::read_dir(home.path()).expect("there").flatten().collect();
        assert_eq!(left.len(), files.len());
        assert!(!home.path().join(files[0]).exists());
    }

    #[test]
    fn only_the_first_of_two_gets_a_free_name() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("001.question");
        assert!(publish_new(&path, b"first").expect("published"));
        assert!(!publish_new(&path, b"second").expect("refused"));
        assert_eq!(read(&path).expect("readable").as_deref(), Some("first"));
    }

    #[test]
    fn a_held_lock_names_its_holder() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        let _held = Lock::take(&path, Duration::ZERO).expect("free");
        let error = Lock::take(&path, Duration::ZERO).expect_err("held");
        assert_eq!(crate::error::exit_of(&error), Exit::TryAgain);
        assert!(error.to_string().contains(&format!("by pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_with_its_place() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        fs::write(&path, b"# one\n- [ ] \xff\n").expect("written");
        let error = read(&path).expect_err("not text").to_string();
        assert!(error.contains("line 2, byte 12"), "{error}");
    }
}
