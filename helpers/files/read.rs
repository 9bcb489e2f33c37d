//! Reading files: the person's, and those that a worker can write.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{open, refuse_symlinks, wrong_kind};
use crate::error::{Exit, Refusal};
use crate::process;
use crate::text::lossy;

/// The largest file in a worker's reach that is read whole, in bytes.
pub const LARGEST: u64 = 64 << 20;

/// The text of a file that only the person writes: the config, the host's settings, git's own
/// files. Symlinks are followed. `None` if there is no such file.
///
/// # Errors
/// [`Exit::Data`] with line and byte if the text is not UTF-8.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => decode(bytes, path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(cannot_read(path)),
    }
}

/// The bytes of a file that a worker, or a cloned repository, may have put there; `None` if there
/// is no such file. Text that is parsed or written back goes through [`decode`], other text through
/// [`read_lossy`].
///
/// # Errors
/// [`Exit::Data`] for a symlink, for anything that is not a regular file, and for more than 64 MiB.
pub fn read_foreign(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some((file, length)) = open_foreign(path)? else { return Ok(None) };
    read_open(&file, length, LARGEST, path).map(Some)
}

/// The text of such a file, to be shown or searched; `None` if there is no such file.
///
/// # Errors
/// The errors of [`read_foreign`].
pub fn read_lossy(path: &Path) -> Result<Option<String>> {
    Ok(read_foreign(path)?.map(lossy))
}

/// The first bytes of such a file, at most `most`; `None` if there is no such file.
///
/// # Errors
/// The errors of [`read_foreign`], but none for a long file.
pub fn read_start(path: &Path, most: u64) -> Result<Option<Vec<u8>>> {
    let Some((file, length)) = open_foreign(path)? else { return Ok(None) };
    read_open(&file, length.min(most), most, path).map(Some)
}

/// The first bytes of such a file, and whether a process has the file open to write; `None` for the
/// second if the system cannot tell.
///
/// # Errors
/// The errors of [`read_start`].
pub fn read_growing(path: &Path, most: u64) -> Result<Option<(Vec<u8>, Option<bool>)>> {
    let Some((file, length)) = open_foreign(path)? else { return Ok(None) };
    // Ask before reading: until the file is closed, new writers wait.
    let is_open = process::is_open_for_writing(&file);
    let length = if most < LARGEST { length.min(most) } else { length };
    Ok(Some((read_open(&file, length, most, path)?, is_open)))
}

fn read_open(file: &File, length: u64, most: u64, path: &Path) -> Result<Vec<u8>> {
    if length > LARGEST {
        return Err(too_large(path, LARGEST).into());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
    // The limit also holds for a file that grows meanwhile.
    file.take(most).read_to_end(&mut bytes).with_context(|| cannot_read(path))?;
    Ok(bytes)
}

/// The last bytes, at most `most`, of a log that a worker writes; empty if there is no such file.
pub fn tail(path: &Path, most: u64) -> Result<Vec<u8>> {
    let mut end = Vec::new();
    let Some((mut file, length)) = open_foreign(path)? else { return Ok(end) };
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    file.take(most).read_to_end(&mut end)?;
    Ok(end)
}

/// Copies a file as [`read_foreign`] reads one, into a private file; does nothing if there is no such
/// file. Returns how many bytes it has.
///
/// # Errors
/// [`Exit::Data`] for a symlink, for anything that is not a regular file, and for more than `most`
/// bytes.
pub fn copy_foreign(from: &Path, to: &Path, most: u64) -> Result<u64> {
    let Some((file, _)) = open_foreign(from)? else { return Ok(0) };
    let mut copy = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let copied = std::io::copy(&mut file.take(most.saturating_add(1)), &mut copy)
        .with_context(|| format!("cannot copy {}", from.display()))?;
    if copied > most {
        return Err(too_large(from, most).into());
    }
    Ok(copied)
}

/// Opens a file as [`read_foreign`] does: a symlink leads nowhere, and a pipe holds nobody up.
/// Returns its length in bytes too.
pub(super) fn open_foreign(path: &Path) -> Result<Option<(File, u64)>> {
    let file = match open(path, OFlag::O_NONBLOCK, Mode::empty()) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            refuse_symlinks(path)?;
            return Err(error).context(cannot_read(path));
        }
    };
    let meta = file.metadata().with_context(|| cannot_read(path))?;
    match meta.is_file() {
        true => Ok(Some((file, meta.len()))),
        false => Err(wrong_kind(path, "file").into()),
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

fn too_large(path: &Path, most: u64) -> Refusal {
    Refusal::new(Exit::Data, format!("{} is too large", path.display()))
        .place(format!("no more than {} MiB are read", most >> 20))
        .next("move it away, or make it shorter")
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_file_beyond_the_limit_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("plan.md");
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
        let error = read_foreign(&path).expect_err("too large");
        assert_eq!(crate::error::exit_code(&error), Exit::Data);
        assert!(error.to_string().contains("no more than 64 MiB are read"), "{error}");
    }

    #[test]
    fn foreign_symlink_pipe_and_directory_are_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = |name: &str| home.path().join(name);
        fs::write(path("secret"), "text").expect("written");
        std::os::unix::fs::symlink(path("secret"), path("link")).expect("made");
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRUSR).expect("made");
        fs::create_dir(path("directory")).expect("made");
        for name in ["link", "pipe", "directory"] {
            let error = read_foreign(&path(name)).expect_err("refused");
            assert_eq!(crate::error::exit_code(&error), Exit::Data, "{name}: {error}");
        }
        assert_eq!(read_foreign(&path("missing")).expect("fine"), None);
        assert_eq!(read(&path("link")).expect("followed").as_deref(), Some("text"));
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
