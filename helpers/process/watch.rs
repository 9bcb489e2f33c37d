//! Waiting for files, processes and signals in one system call.
//!
//! Events are hints. A caller adds its watches, reads, waits for at most a second, and reads again what
//! an event may have missed (network file system, no inotify left).

use std::collections::{HashSet, VecDeque};
use std::io::{self, PipeReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

use crate::process::{Identity, Life, os};

/// The event that ended [`Watch::wait_for_event`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Woken {
    /// These watched things may have changed, so the caller has to read them again.
    Changed(HashSet<Source>),
    /// This signal came. Further signals, and a change, are returned by the next waits.
    Signal(i32),
    /// The time limit passed without an event.
    Timeout,
}

/// A watched thing that may have changed.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// The directory or file that was added with this path.
    Path(PathBuf),
    /// This process ended.
    Process(Identity),
    /// Any of the watched things: the system had to drop events.
    Any,
}

/// A set of files, processes and signals to wait for.
pub struct Watch {
    pub(super) queue: os::EventQueue,
    pipes: Vec<SignalPipe>,
    /// Every process that was ever added, so that a death wakes once and not at every scan.
    known: HashSet<Identity>,
    signals: VecDeque<i32>,
    changed: HashSet<Source>,
}

impl Watch {
    /// A watch for these signals. They no longer end this process, even after the watch is dropped.
    pub fn new(signals: &[i32]) -> Result<Self> {
        let pipes: Vec<_> =
            signals.iter().map(|&signal| SignalPipe::new(signal)).collect::<Result<_>>()?;
        let queue = os::EventQueue::new(&pipes).context("cannot make an event queue")?;
        let (known, signals, changed) = (HashSet::new(), VecDeque::new(), HashSet::new());
        Ok(Self { queue, pipes, known, signals, changed })
    }

    /// Returns true if changes of files wake at all; if not, only the caller's scans see them.
    pub fn sees_files(&self) -> bool {
        self.queue.events()
    }

    /// Watches the entries of a directory; `false` if that is not possible now. Callers add it again
    /// at every read, which is cheap and finds a directory that was replaced.
    pub fn add_directory(&mut self, path: &Path) -> bool {
        self.queue.directory(path).is_some()
    }

    /// Adds a directory like [`Self::add_directory`]. Returns whether the one that is there now was watched
    /// before: there is no event if a directory further up was replaced.
    pub fn has_directory(&mut self, path: &Path) -> bool {
        self.queue.directory(path) == Some(true)
    }

    /// Watches a file for writes; `false` if that is not possible.
    pub fn add_file(&mut self, path: &Path) -> bool {
        self.queue.writes(path).is_some()
    }

    /// Watches for the death of a process; `false` if that is not possible. A process that is dead
    /// already ends the next wait at once.
    pub fn add_process(&mut self, identity: &Identity) -> bool {
        if self.known.contains(identity) {
            return true;
        }
        match self.queue.process(identity) {
            Life::Unknown => return false,
            Life::Dead => drop(self.changed.insert(Source::Process(identity.clone()))),
            Life::Alive => {}
        }
        self.known.insert(identity.clone())
    }

    /// Waits for the next event, for at most `limit` (not counting time asleep).
    pub fn wait_for_event(&mut self, limit: Duration) -> Result<Woken> {
        let start = Instant::now();
        loop {
            let is_pending = !self.changed.is_empty() || !self.signals.is_empty();
            let limit = if is_pending { Duration::ZERO } else { limit };
            let left = limit.saturating_sub(start.elapsed());
            // The system limits the time of one call, so a longer wait is many calls of an hour.
            let changed = self.queue.wait(left.min(Duration::from_secs(3600)));
            self.changed.extend(changed.context("cannot wait for events")?);
            for pipe in &self.pipes {
                pipe.drain(&mut self.signals);
            }
            if let Some(signal) = self.signals.pop_front() {
                return Ok(Woken::Signal(signal));
            }
            if !self.changed.is_empty() {
                return Ok(Woken::Changed(std::mem::take(&mut self.changed)));
            }
            if start.elapsed() >= limit {
                return Ok(Woken::Timeout);
            }
        }
    }
}

/// A pipe that gets one byte whenever its signal comes.
pub(super) struct SignalPipe {
    signal: i32,
    pub(super) reader: PipeReader,
    id: SigId,
}

impl SignalPipe {
    fn new(signal: i32) -> Result<Self> {
        let what = || format!("cannot watch signal {signal}");
        let (reader, writer) = io::pipe().with_context(what)?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).with_context(what)?;
        let id = pipe::register(signal, writer).with_context(what)?;
        Ok(Self { signal, reader, id })
    }

    fn drain(&self, into: &mut VecDeque<i32>) {
        let mut bytes = [0; 64];
        // After an error (empty, interrupted) anything left in the pipe ends the next wait.
        while let Ok(count @ 1..) = (&self.reader).read(&mut bytes) {
            into.extend(std::iter::repeat_n(self.signal, count));
        }
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        unregister(self.id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use nix::sys::signal::{kill, raise};
    use nix::unistd::getpid;

    use super::*;
    use crate::process::Signal;
    use crate::process::test_support::{Running, assert_changed, assert_no_event, next_event};

    #[test]
    fn rename_into_watched_directory_wakes_once() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.sees_files());
        assert!(watch.add_directory(directory.path()) && watch.add_directory(directory.path()));
        assert_no_event(&mut watch);
        outside.persist(directory.path().join("001.question")).unwrap();
        assert_changed(&mut watch, Source::Path(directory.path().into()));
        assert_no_event(&mut watch);
    }

    #[test]
    fn events_name_the_directories_that_changed() {
        let top = tempfile::tempdir().unwrap();
        let paths = ["one", "two", "three"].map(|name| top.path().join(name));
        let mut watch = Watch::new(&[]).unwrap();
        for path in &paths {
            fs::create_dir(path).unwrap();
            assert!(watch.add_directory(path));
        }
        for path in &paths[1..] {
            fs::write(path.join("file"), "").unwrap();
        }
        let changed = paths[1..].iter().cloned().map(Source::Path).collect();
        assert_eq!(next_event(&mut watch), Woken::Changed(changed));
        assert_no_event(&mut watch);
    }

    #[test]
    fn replaced_directory_can_be_watched_again() {
        let top = tempfile::tempdir().unwrap();
        let (path, away) = (top.path().join("ipc"), top.path().join("away"));
        let mut watch = Watch::new(&[]).unwrap();
        assert!(!watch.add_directory(&path), "the directory does not exist yet");
        fs::create_dir(&path).unwrap();
        assert!(watch.add_directory(&path));

        fs::remove_dir(&path).unwrap();
        assert_changed(&mut watch, Source::Path(path.clone()));
        assert!(!watch.add_directory(&path));
        fs::create_dir(&path).unwrap();
        assert!(watch.add_directory(&path));

        fs::rename(&path, &away).unwrap();
        assert_changed(&mut watch, Source::Path(path.clone()));
        fs::create_dir(&path).unwrap();
        assert!(watch.add_directory(&path));
        fs::write(away.join("old"), "").unwrap();
        assert_no_event(&mut watch);
        fs::write(path.join("new"), "").unwrap();
        assert_changed(&mut watch, Source::Path(path.clone()));

        assert!(watch.has_directory(&path));
        let (parent, moved) = (top.path().to_owned(), top.path().with_extension("moved"));
        fs::rename(&parent, &moved).unwrap();
        assert_no_event(&mut watch);
        fs::create_dir_all(&path).unwrap();
        assert!(!watch.has_directory(&path) && watch.has_directory(&path));
        fs::remove_dir_all(moved).unwrap();
    }

    #[test]
    fn death_of_watched_process_wakes_once() {
        let mut child = Running::new();
        let identity = child.identity();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_process(&identity) && watch.add_process(&identity));
        assert_no_event(&mut watch);
        child.end();
        assert_changed(&mut watch, Source::Process(identity.clone()));
        assert!(watch.add_process(&identity));
        assert_no_event(&mut watch);
    }

    #[test]
    fn death_before_the_watch_wakes_once() {
        let mut child = Running::new();
        let identity = child.identity();
        child.end();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_process(&identity) && watch.add_process(&identity));
        assert_changed(&mut watch, Source::Process(identity));
        assert_no_event(&mut watch);
    }

    #[test]
    fn signals_queue_and_come_before_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (Signal::SIGUSR1, Signal::SIGUSR2);
        let mut watch = Watch::new(&[one as i32, two as i32]).unwrap();
        assert!(watch.add_directory(directory.path()));
        fs::write(directory.path().join("file"), "").unwrap();
        for signal in [one, two, one] {
            raise(signal).unwrap();
        }
        for signal in [one, one, two] {
            assert_eq!(next_event(&mut watch), Woken::Signal(signal as i32));
        }
        assert_changed(&mut watch, Source::Path(directory.path().into()));
        assert_no_event(&mut watch);

        let sender = std::thread::spawn(move || kill(getpid(), two).unwrap());
        assert_eq!(next_event(&mut watch), Woken::Signal(two as i32));
        sender.join().unwrap();
    }
}
