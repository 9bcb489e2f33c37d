//! Processes: identities that survive the reuse of pids, waiting for events, process trees, and
//! programs that outlive the helper that starts them; and the local calendar of the system.
//!
//! `linux.rs` and `macos.rs` provide the same functions and an `EventQueue`; the other files use
//! only those.

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("dispatch runs on Linux and macOS");

mod environment;
mod identity;
#[cfg(target_os = "linux")]
mod landlock;
mod sandbox;
mod start;
mod tree;
mod watch;

pub use nix::sys::signal::Signal;

pub use environment::{ANSWERS, ATTEMPT, PATIENCE, TASK_DIR, calling_host, is_host_variable};
pub use environment::{
    HELPERS, calling_shell, find_program, find_program_in, is_interactive, launcher, worker_helper,
};
pub use identity::{Identity, Life, boot_id, machine};
pub use os::{adopt_descendants, open_without_symlinks, reap_adopted, time_since_boot};
pub use os::{is_open_for_writing, is_remote};
pub use sandbox::{Holder, Rule, Sandbox, code_or_signal, probe};
pub use start::{CaptureError, capture, capture_with, detach, lead_own_group, reset_child_signal};
pub use start::{signal_group, spawn_recorded};
pub use tree::{ProcessTree, callers};
pub use watch::{Source, Watch, Woken};

use watch::SignalPipe;

/// A moment of the local calendar, in which rate limits are stated.
pub type LocalTime = nix::libc::tm;

/// The local time of a moment in seconds since 1970.
pub fn local_time(seconds: u64) -> Option<LocalTime> {
    let seconds = seconds.try_into().ok()?;
    // SAFETY: `tm` is numbers and a pointer that may be null.
    let mut local: LocalTime = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of these types.
    let done = unsafe { nix::libc::localtime_r(&raw const seconds, &raw mut local) };
    (!done.is_null()).then_some(local)
}

/// The seconds since 1970 of a local time. Days beyond the end of a month count into the next.
pub fn local_seconds(mut local: LocalTime) -> Option<u64> {
    local.tm_isdst = -1;
    // SAFETY: the pointer is to a live value of this type.
    let seconds = unsafe { nix::libc::mktime(&raw mut local) };
    u64::try_from(seconds).ok()
}

/// Shared parts of this module's tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_support {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::{Identity, Source, Watch, Woken};

    /// Longer than anything here takes on a busy machine.
    pub(super) const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) fn wait_until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "the condition never came true");
            std::thread::yield_now();
        }
    }

    pub(super) fn next_event(watch: &mut Watch) -> Woken {
        watch.wait_for_event(PATIENCE).unwrap()
    }

    #[track_caller]
    pub(super) fn assert_changed(watch: &mut Watch, source: Source) {
        assert_eq!(next_event(watch), Woken::Changed([source].into()));
    }

    pub(super) fn assert_no_event(watch: &mut Watch) {
        assert_eq!(watch.wait_for_event(Duration::ZERO).unwrap(), Woken::Timeout);
    }

    /// A child that runs until the test ends it, at the latest with the test.
    pub(super) struct Running(pub(super) Child);

    impl Running {
        pub(super) fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        pub(super) fn identity(&self) -> Identity {
            Identity::of_pid(self.0.id()).unwrap().unwrap()
        }

        pub(super) fn end(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.end();
        }
    }
}
