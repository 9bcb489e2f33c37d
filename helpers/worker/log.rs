//! The log of a worker: heard as it grows, and kept short.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::files;
use crate::task::Attempt;
use crate::tools::events::Listener;

/// How large the log may become, and how much of it is kept as the old one.
const LONGEST: u64 = 8 << 20;

/// How much is still heard of a log that grows faster than it can be heard.
const TAIL: u64 = 64 << 10;

/// A log that grows by so much from one look to the next is cut in haste, and so much of it kept.
const FAST: u64 = 2 << 20;
const FAST_TAIL: u64 = 1 << 20;

/// How much is read at once.
const CHUNK: usize = 32 << 10;

/// A worker's log from where one start of it began.
pub(super) struct Log {
    file: File,
    path: PathBuf,
    old: PathBuf,
    heard: u64,
}

impl Log {
    /// The log of that attempt, for the next start of its worker.
    pub(super) fn open(attempt: &Attempt) -> Result<Self> {
        let file = files::open_append(&attempt.log_path())?;
        let heard = file.metadata().context("cannot look at the log")?.len();
        Ok(Self { file, path: attempt.log_path(), old: attempt.old_log_path(), heard })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the worker writes to. It appends, so that the log can be cut under its hands.
    pub(super) fn writer(&self) -> Result<File> {
        self.file.try_clone().context("cannot share the log")
    }

    /// Lets the listener hear what is new, and says how much that was. The file is held, so that a
    /// worker that deletes it is heard all the same.
    pub(super) fn follow(&mut self, listener: &mut Listener) -> Result<u64> {
        let end = self.length()?;
        if end == self.heard {
            return Ok(0);
        }
        // Somebody else has emptied it.
        if end < self.heard {
            self.heard = 0;
        }
        let new = end - self.heard;
        if end > LONGEST {
            // Cut first and heard then, since hearing takes longer; and who writes so much between
            // two looks is not waited for.
            let kept = if new > FAST { FAST_TAIL } else { LONGEST };
            let begin = end - kept;
            let old = self.cut(begin, kept + FAST_TAIL);
            let from = self.heard.saturating_sub(begin);
            self.heard = 0;
            if let Some((old, length)) = old {
                self.hear(&old, from, length, listener)?;
            }
        } else {
            self.hear(&self.file, self.heard, end, listener)?;
            self.heard = end;
        }
        Ok(new)
    }

    /// Moves what the log holds from there on, but not more than so much, to the old one. What is
    /// written just then, or faster than it is read, or what there is no space for, is lost: nobody
    /// holds the worker up.
    fn cut(&self, begin: u64, most: u64) -> Option<(File, u64)> {
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
        // Whatever it was, a log without end would be worse.
        let _ = self.file.set_len(0);
        copied
    }

    /// Lets the listener hear a part of a file. If the log has grown long meanwhile, only the end of
    /// that part counts.
    fn hear(&self, file: &File, from: u64, end: u64, listener: &mut Listener) -> Result<()> {
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
