//! Files that are whole or not there, locks that say who holds them, and errors that name a path.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Error, Result};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::ids::short_hash;
use crate::process::{Identity, Life};

/// How large a file of a task may be that is read whole, in bytes.
const LARGEST: u64 = 64 << 20;

/// How old a temporary file is at least whose writer is taken for dead without being known: it
/// belongs to another pid namespace, as a sandbox has one.
const LONGEST_WRITE: Duration = Duration::from_secs(600);

/// The text of a file that only the person writes: the config, the host's settings, git's own
/// files. Symlinks are followed. `None` if there is no such file.
///
/// # Errors
/// [`Exit::Data`] with line and byte if the text is not UTF-8.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => decode(bytes, path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(format!("cannot read {}", path.display())),
    }
}

/// The bytes of a file that a worker, or a cloned repository, may have put there; `None` if there
/// is no such file. Text that is only shown goes through [`crate::text::lossy`], text that is parsed
/// or written back through [`decode`].
///
/// # Errors
/// [`Exit::Data`] for a symlink, for anything that is not a regular file, and for more than
/// 64 MiB.
pub fn read_foreign(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some((file, length)) = open_foreign(path)? else { return Ok(None) };
    if length > LARGEST {
        return Err(Refusal::new(Exit::Data, format!("{} is too large", path.display()))
            .place(format!(
                "it has {} MiB, and no file of a task needs {}",
                length >> 20,
                LARGEST >> 20
            ))
            .next("move it away, or make it shorter")
            .into());
    }
    // Through `take`, which does not ask once more how long the file is.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
    let read = file.take(u64::MAX).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Some(bytes))
}

/// Opens a file as [`read_foreign`] does. Returns its length in bytes too.
fn open_foreign(path: &Path) -> Result<Option<(File, u64)>> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            refuse_symlink(path)?;
            return Err(error).context(format!("cannot read {}", path.display()));
        }
    };
    let meta = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    if !meta.is_file() {
        return Err(Refusal::new(Exit::Data, format!("{} is not a file", path.display()))
            .next("move away what is in its place")
            .into());
    }
    Ok(Some((file, meta.len())))
}

/// The names in a directory of a task, and whether each is a symlink; none where there is no such
/// directory.
pub fn entries(path: &Path) -> Result<Vec<(OsString, bool)>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match Dir::open(path, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            refuse_symlink(path)?;
            let what = format!("{} is not a directory", path.display());
            return Err(Refusal::new(Exit::Data, what)
                .next("move away what is in its place")
                .into());
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

/// Refuses a symlink where there is to be a file or directory of dispatch's own.
pub fn refuse_symlink(path: &Path) -> Result<(), Refusal> {
    match fs::read_link(path) {
        Ok(target) => Err(Refusal::new(Exit::Data, format!("{} is a symlink", path.display()))
            .place(format!("to {}; dispatch follows none in its own directories", target.display()))
            .next("remove it, or put what it leads to in its place")),
        Err(_) => Ok(()),
    }
}

/// Text that has to be UTF-8.
///
/// # Errors
/// [`Exit::Data`] with the line and the byte offset of the first byte that is not.
pub fn decode(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
        Refusal::new(Exit::Data, format!("{} is not UTF-8 text", path.display()))
            .place(format!("line {line}, byte {good} of the file"))
            .next("save it again as UTF-8")
            .into()
    })
}

/// Whether a file was written so short a time ago.
pub fn written_within(path: &Path, time: Duration) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|it| it.modified());
    let age = modified.ok().and_then(|modified| modified.elapsed().ok());
    age.is_some_and(|age| age < time)
}

/// The number that a name is. Nothing of dispatch counts so far that a greater one could be its own.
pub fn number(name: &str) -> Option<u32> {
    let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok())?.filter(|number| *number < 1_000_000)
}

/// The number that follows the last one in that directory.
///
/// # Errors
/// [`Exit::Data`] if that would not be seen again, because somebody has used up all of them.
pub fn number_after(last: u32, directory: &Path) -> Result<u32, Refusal> {
    number(&(last + 1).to_string()).ok_or_else(|| {
        Refusal::new(Exit::Data, "there is no number left")
            .place(format!("in {}", directory.display()))
            .next("move the highest one away")
    })
}

/// The last bytes, at most `most`, of a log that a worker writes; empty if there is no such file.
pub fn tail(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut end = Vec::new();
    let Some((mut file, length)) = open_foreign(path)? else { return Ok(end) };
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

/// Publishes a file whole: whoever opens the name finds the old content or the new, never a part,
/// also after a power failure. A symlink at the name is replaced, not followed.
pub fn publish(path: &Path, content: &[u8]) -> Result<()> {
    let temp = written(path, content)?;
    temp.persist(path).map_err(|error| error.error).with_context(|| cannot_write(path))?;
    fault::point(name(path), "published");
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
    fault::point(name(path), "published");
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

/// A temporary file beside `path`, complete and on disk. Its name holds the writer, so that a
/// leftover can be told from a write that is under way.
fn written(path: &Path, content: &[u8]) -> Result<tempfile::NamedTempFile> {
    let directory = path.parent().context("a file without a directory")?;
    let mode = match fs::symlink_metadata(path) {
        Ok(old) if old.is_file() => old.permissions().mode() & 0o777,
        _ => 0o600,
    };
    let mut temp = tempfile::Builder::new()
        .prefix(&format!(".{}.{}.", name(path), *WRITER))
        .suffix(".tmp")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(directory)
        .with_context(|| cannot_write(path))?;
    temp.write_all(content).with_context(|| cannot_write(path))?;
    temp.as_file().sync_data().with_context(|| cannot_write(path))?;
    fault::point(name(path), "written");
    Ok(temp)
}

/// This process in the names of its temporary files: its number and start time, and what tells the
/// boot and the pid namespace in which these mean something.
static WRITER: LazyLock<String> = LazyLock::new(|| match Identity::own() {
    Ok(own) => format!("{}-{}-{}", own.pid, own.start, place(&own)),
    Err(_) => std::process::id().to_string(),
});

fn place(of: &Identity) -> String {
    let namespace = of.namespace.as_deref().unwrap_or_default();
    short_hash(format!("{}/{namespace}", of.boot).as_bytes())
}

/// Removes the temporary files in a directory whose writer is dead. Returns how many it removed, and
/// how many are left.
pub fn remove_leftovers(directory: &Path) -> (usize, usize) {
    let (mut removed, mut left) = (0, 0);
    for (name, _) in entries(directory).unwrap_or_default() {
        let Some(writer) = name.to_str().and_then(writer_of) else { continue };
        let file = directory.join(&name);
        let Ok(meta) = fs::symlink_metadata(&file) else { continue };
        if !meta.is_file() {
            continue;
        }
        let dead = match life(writer) {
            Life::Alive => false,
            Life::Dead => true,
            Life::Unknown => {
                let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
                age.is_some_and(|age| age > LONGEST_WRITE)
            }
        };
        match dead && fs::remove_file(&file).is_ok() {
            true => removed += 1,
            false => left += 1,
        }
    }
    (removed, left)
}

/// Who wrote a file of that name, if [`written`] made it.
fn writer_of(name: &str) -> Option<&str> {
    let mut parts = name.strip_prefix('.')?.rsplit('.');
    let ending = parts.next() == Some("tmp") && parts.next().is_some();
    parts.next().filter(|writer| {
        ending && writer.split('-').next().is_some_and(|pid| pid.parse::<u32>().is_ok())
    })
}

/// Whether such a writer lives.
fn life(writer: &str) -> Life {
    let known = || {
        let mut parts = writer.split('-');
        let (pid, start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let here = Identity::own().ok()?;
        (parts.next() == Some(&place(&here))).then_some(Identity { pid, start, ..here })
    };
    known().map_or(Life::Unknown, |writer| writer.life())
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

/// The same for a task's files, but not where a symlink leads.
pub fn make_own_directory(path: &Path) -> Result<()> {
    refuse_symlink(path)?;
    make_private_directory(path)
}

/// Gives a file that time as that of its last change, and makes it if there is none.
pub fn touch(path: &Path, time: SystemTime) -> Result<()> {
    open_append(path)?.set_modified(time).with_context(|| cannot_write(path))
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
        let Some(lock) = Self::try_take_unsigned(path)? else { return Ok(None) };
        lock.sign().with_context(|| cannot_write(path))?;
        Ok(Some(lock))
    }

    /// The same for a short look: the text goes on naming who held it for its work.
    pub fn try_take_unsigned(path: &Path) -> Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| match refuse_symlink(path) {
                Err(symlink) => symlink.into(),
                Ok(()) => {
                    Error::new(error).context(format!("cannot open the lock {}", path.display()))
                }
            })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
        Ok(Some(Self { file }))
    }

    /// Whether somebody holds the lock, whatever its text says.
    pub fn is_held(path: &Path) -> Result<bool> {
        let Some((file, _)) = open_foreign(path)? else { return Ok(false) };
        Ok(matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
    }

    fn sign(&self) -> io::Result<()> {
        let text = Identity::own().ok().and_then(|own| serde_json::to_string(&own).ok());
        self.file.set_len(0)?;
        (&self.file).write_all(text.unwrap_or_default().as_bytes())
    }

    /// Who signed the lock last; it holds the lock still if it is alive.
    pub fn holder(path: &Path) -> Result<Option<Identity>> {
        Ok(read_foreign(path)?.and_then(|text| serde_json::from_slice(&text).ok()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
    fn what_a_dead_writer_left_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().expect("a directory");
        let make = |name: &str, age: Duration| {
            let file = File::create(home.path().join(name)).expect("made");
            file.set_modified(SystemTime::now() - age).expect("dated");
        };
        let own = Identity::own().expect("known");
        let of =
            |pid: u32, start: u64, place: &str| format!(".plan.md.{pid}-{start}-{place}.x.tmp");
        let here = place(&own);
        let alive = of(own.pid, own.start, &here);
        let kept = ["plan.md", ".note.tmp", ".a.b.c.tmp", "x.1.y.tmp", &alive];
        kept.iter().for_each(|name| make(name, LONGEST_WRITE * 2));
        // Nobody knows yet whether these are dead.
        let young = [".plan.md.12.abc123.tmp", &of(1, 1, "elsewher")];
        young.iter().for_each(|name| make(name, Duration::ZERO));
        // The first number was used again, and the others are of another time or place.
        make(&of(own.pid, own.start + 1, &here), Duration::ZERO);
        make(".plan.md.13.abc123.tmp", LONGEST_WRITE * 2);
        make(&of(own.pid, own.start, "elsewher"), LONGEST_WRITE * 2);

        assert_eq!(remove_leftovers(home.path()), (3, 3));
        let there = fs::read_dir(home.path()).expect("a directory").flatten();
        let there: BTreeSet<_> = there.filter_map(|it| it.file_name().into_string().ok()).collect();
        let expected = kept.into_iter().chain(young).map(str::to_owned).collect();
        assert_eq!(there, expected);
        assert_eq!(remove_leftovers(home.path()), (0, 3));
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
    fn a_file_that_does_not_fit_into_memory_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        let error = read_foreign(&path).expect_err("too large");
        assert_eq!(crate::error::exit_of(&error), Exit::Data);
        assert!(error.to_string().contains("it has 1048576 MiB"), "{error}");
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
