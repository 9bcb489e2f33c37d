//! Locks that name their holder.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::read::{open_foreign, read_foreign};
use super::{cannot_write, from_json, open_private, refuse_symlinks};
use crate::error::{Exit, Refusal};
use crate::process::{HELPERS, Identity, Life, machine};

/// How long [`Lock::is_held`] of other processes may keep a lock from being taken.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// An exclusive lock on a file. Only its holder may remove the file. The lock is free again when it is dropped or
/// its holder dies; the file's text names the last holder.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock, waiting for at most `limit`.
    ///
    /// # Errors
    /// [`Exit::TryAgain`] with the holder if the lock is held for longer.
    pub fn take(path: &Path, limit: Duration) -> Result<Self> {
        let start = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(path)? {
                return Ok(lock);
            }
            if start.elapsed() >= limit {
                return Refusal::new(Exit::TryAgain, format!("{} is held", path.display()))
                    .place(format!("by {}", holder(path)))
                    .refuse("try again when it has ended");
            }
            // Waiters look less and less often, so that a hundred of them do not slow the holder.
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

    /// Takes the lock for a short check if it is free now. The file still names the earlier holder.
    pub fn try_take_unsigned(path: &Path) -> Result<Option<Self>> {
        let begin = Instant::now();
        loop {
            let file = match open_private(path, OFlag::empty()) {
                Ok(file) => file,
                Err(error) => {
                    refuse_symlinks(path)?;
                    return Err(error).context(format!("cannot open the lock {}", path.display()));
                }
            };
            match file.try_lock() {
                // The last holder removed the file, so another process may lock a new one.
                Ok(()) if file.metadata().is_ok_and(|it| it.nlink() == 0) => continue,
                Ok(()) => return Ok(Some(Self { file })),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(format!("cannot lock {}", path.display()));
                }
            }
            // Who only looks shares the lock, and has it for a moment.
            if file.try_lock_shared().is_err() || begin.elapsed() > LOOK_LIMIT {
                return Ok(None);
            }
            drop(file);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns true if a process holds the lock. A lock that the file system cannot judge counts as
    /// held.
    pub fn is_held(path: &Path) -> Result<bool> {
        let Some((file, _)) = open_foreign(path)? else { return Ok(false) };
        Ok(file.try_lock_shared().is_err())
    }

    /// The process that signed the lock last; it still holds the lock if it is alive.
    pub fn last_holder(path: &Path) -> Result<Option<Identity>> {
        Ok(read_foreign(path)?.and_then(|text| from_json(&text).ok()))
    }

    fn sign(&self) -> io::Result<()> {
        let text = Identity::own().ok().and_then(|process| {
            let helper = std::env::args_os().next().unwrap_or_default();
            let helper = Path::new(&helper).file_name().unwrap_or_default().to_string_lossy();
            serde_json::to_string(&Signature { process, helper: helper.into() }).ok()
        });
        self.file.set_len(0)?;
        (&self.file).write_all(text.unwrap_or_default().as_bytes())
    }
}

/// The text of a lock's file.
#[derive(Serialize, Deserialize)]
struct Signature {
    #[serde(flatten)]
    process: Identity,
    /// The name under which the program was called.
    #[serde(default)]
    helper: String,
}

/// The holder of a lock in an error. People know helpers by name; a pid says nothing to them.
fn holder(path: &Path) -> String {
    let text = read_foreign(path).ok().flatten().unwrap_or_default();
    let signature: Option<Signature> = from_json(&text).ok();
    // A holder that only checks does not sign.
    let signature = signature.filter(|it| it.process.life() != Life::Dead);
    let named = signature.filter(|it| HELPERS.contains(&it.helper.as_str()));
    named.map_or("another helper".into(), |it| match it.process.machine == machine() {
        true => it.helper,
        false => format!("{} on {}", it.helper, it.process.machine),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_lock_names_its_helper_and_no_pid() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        let refusal = || {
            let error = Lock::take(&path, Duration::ZERO).expect_err("held");
            assert_eq!(crate::error::exit_code(&error), Exit::TryAgain);
            error.to_string()
        };
        let held = Lock::take(&path, Duration::ZERO).expect("free");
        assert!(Lock::is_held(&path).expect("readable"));
        let own = Identity::own().expect("visible");
        assert_eq!(Lock::last_holder(&path).expect("readable"), Some(own.clone()));
        // The program of this test is no helper.
        assert!(refusal().contains("\n  by another helper\n"));
        let sign = |process: Identity| {
            let text =
                serde_json::to_string(&Signature { process, helper: "dispatch-spawn".into() });
            std::fs::write(&path, text.expect("JSON")).expect("written");
        };
        sign(own.clone());
        assert!(refusal().contains("\n  by dispatch-spawn\n"));
        sign(Identity { machine: "far-1".into(), boot: "other".into(), ..own.clone() });
        assert!(refusal().contains("\n  by dispatch-spawn on far-1\n"));
        sign(Identity { start: own.start + 1, ..own });
        assert!(refusal().contains("\n  by another helper\n"));
        drop(held);
        assert!(!Lock::is_held(&path).expect("readable"));
    }

    #[test]
    fn lock_whose_file_is_removed_by_its_holder_has_one_holder() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        let held = std::sync::atomic::AtomicBool::new(false);
        let hold = || {
            for _ in 0..2000 {
                let Some(lock) = Lock::try_take(&path).expect("works") else { continue };
                assert!(!held.swap(true, std::sync::atomic::Ordering::SeqCst));
                held.store(false, std::sync::atomic::Ordering::SeqCst);
                std::fs::remove_file(&path).expect("removed");
                drop(lock);
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(hold))));
    }

    #[test]
    fn looking_at_a_lock_does_not_take_it() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        drop(Lock::take(&path, Duration::ZERO).expect("free"));
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let _ = Lock::is_held(&path).expect("readable");
                    std::thread::yield_now();
                }
            });
            let taken =
                (0..300).filter(|_| Lock::try_take(&path).expect("works").is_some()).count();
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(taken, 300);
        });
    }

    #[test]
    fn short_check_leaves_the_earlier_holders_name() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("lock");
        drop(Lock::take(&path, Duration::ZERO).expect("free"));
        let check = Lock::try_take_unsigned(&path).expect("works").expect("free");
        let holder = Lock::last_holder(&path).expect("readable").expect("signed");
        assert_eq!(holder.pid, std::process::id());
        drop(check);
    }
}
