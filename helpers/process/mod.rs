//! Processes: identities that survive the reuse of pids, waiting for events, process trees, and
//! programs that outlive the helper that starts them.
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

mod capture;
mod clock;
mod environment;
mod identity;
mod start;
#[cfg(test)]
mod test_support;
mod tree;
mod watch;

pub use nix::sys::signal::Signal;

pub use capture::{CaptureError, capture};
pub use clock::{LocalTime, local_seconds, local_time};
pub use environment::{ANSWERS, ATTEMPT, PATIENCE, TASK_DIR, calling_host, is_host_variable};
pub use environment::{HELPERS, find_program, find_program_in, launcher, worker_helper};
pub use identity::{Identity, Life, boot_id, machine};
pub use os::{adopt_descendants, open_without_symlinks, reap_adopted, time_since_boot};
pub use start::{detach, lead_own_group, reset_child_signal, signal_group, spawn_recorded};
pub use tree::{ProcessTree, callers};
pub use watch::{Watch, Woken};

use watch::SignalPipe;
