//! The log of a worker: parsed as it grows, and trimmed to a limit.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files;
use crate::task::Attempt;
use crate::text::lossy;
use crate::tools::events::Listener;

/// How many bytes the log may reach before it is trimmed; as many are kept as the old log.
const LONGEST: u64 = 8 << 20;

/// How many bytes at the end are parsed of a log that grows faster than it can be parsed.
const TAIL: u64 = 64 << 10;

/// A log that grows by more than this between two reads is trimmed at once, to `FAST_TAIL` bytes.
const FAST: u64 = 2 << 20;
const FAST_TAIL: u64 = 1 << 20;

/// How many bytes are read at once.
const CHUNK: usize = 32 << 10;

/// A worker's log, from the position where this start of the worker began.
pub(super) struct Log {
    file: File,
    path: PathBuf,
    old: PathBuf,
    /// The length of the file at this start.
    begin: u64,
    /// How many bytes of the file were parsed.
    parsed: u64,
}

impl Log {
    /// Opens the log of an attempt for the next start of its worker.
    pub(super) fn open(attempt: &Attempt) -> Result<Self> {
        let file = files::open_append(&attempt.log_path())?;
        let begin = file.metadata().context("cannot look at the log")?.len();
        let (path, old) = (attempt.log_path(), attempt.old_log_path());
        Ok(Self { file, path, old, begin, parsed: begin })
    }

    /// Opens the log of a worker that runs already, from its first line.
    pub(super) fn reopen(attempt: &Attempt) -> Result<Self> {
        Ok(Self { begin: 0, parsed: 0, ..Self::open(attempt)? })
    }

    /// The path of the log.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that the worker writes to. It appends, so that the log can be trimmed meanwhile.
    pub(super) fn writer(&self) -> Result<File> {
        self.file.try_clone().context("cannot share the log")
    }

    /// The first part of what this start printed, unless the log was trimmed since.
    pub(super) fn printed(&self) -> Option<String> {
        let mut buffer = vec![0; CHUNK];
        let is_whole = self.length().ok()? >= self.begin && self.parsed >= self.begin;
        let count = self.file.read_at(&mut buffer, self.begin).ok().filter(|_| is_whole)?;
        buffer.truncate(count);
        Some(lossy(buffer))
    }

    /// Passes new output to the listener and returns its size in bytes. The file stays open, so that a
    /// worker cannot hide output by deleting it.
    pub(super) fn follow(&mut self, listener: &mut Listener) -> Result<u64> {
        let end = self.length()?;
        if end == self.parsed {
            return Ok(0);
        }
        // Somebody else truncated the log.
        if end < self.parsed {
            self.parsed = 0;
        }
        let new = end - self.parsed;
        if end > LONGEST {
            // Trim before parsing, because parsing takes longer.
            let kept = if new > FAST { FAST_TAIL } else { LONGEST };
            let begin = end - kept;
            let old = self.trim(begin, kept + FAST_TAIL);
            let from = self.parsed.saturating_sub(begin);
            self.parsed = 0;
            if let Some((old, length)) = old {
                self.parse(&old, from, length, listener)?;
            }
        } else {
            self.parse(&self.file, self.parsed, end, listener)?;
            self.parsed = end;
        }
        Ok(new)
    }

    /// Moves up to `most` bytes of the log from `begin` on to the old log, and empties the log. Output
    /// that arrives meanwhile is lost; the worker is never held up.
    fn trim(&self, begin: u64, most: u64) -> Option<(File, u64)> {
        let copy = || -> std::io::Result<(File, u64)> {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let mut old = options.custom_flags(nix::libc::O_NOFOLLOW).open(&self.old)?;
            let (mut at, mut buffer) = (begin, vec![0; CHUNK]);
            while at - begin < most {
                let count = self.file.read_at(&mut buffer, at)?;
                if count == 0 {
                    break;
                }
                old.write_all(&buffer[..count])?;
                at += count as u64;
            }
            Ok((old, at - begin))
        };
        let copied = copy().ok();
        // Empty the log even if the copy failed: an endless log would be worse.
        let _ = self.file.set_len(0);
        copied
    }

    /// Passes a part of a file to the listener; only its end if the log has grown long meanwhile.
    fn parse(&self, file: &File, from: u64, end: u64, listener: &mut Listener) -> Result<()> {
        let mut at = from;
        let mut buffer = vec![0; CHUNK];
        while at < end {
            if end - at > TAIL && self.length()? > 2 * LONGEST {
                listener.end();
                at = end - TAIL;
            }
            let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let count = file.read_at(&mut buffer[..most], at).context("cannot read the log")?;
            if count == 0 {
                break;
            }
            listener.hear(&buffer[..count]);
            at += count as u64;
        }
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().context("cannot look at the log")?.len())
    }
}
