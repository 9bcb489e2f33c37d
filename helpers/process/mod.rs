//! Processes: identities that survive the reuse of pids, waiting for events, process trees, and
//! programs that outlive the helper that starts them; the variables of their environment; and the local
//! calendar of the system.
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

mod identity;
#[cfg(target_os = "linux")]
mod landlock;
mod sandbox;
mod start;
mod tree;
mod watch;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
pub use nix::sys::signal::Signal;

pub use identity::{Identity, Life, boot_id, machine};
pub use os::{adopt_descendants, open_without_symlinks, reap_adopted, time_since_boot};
pub use os::{is_open_for_writing, is_remote};
pub use sandbox::{Holder, Rule, Sandbox, code_or_signal, probe};
pub use start::spawn_recorded;
pub use start::{capture, detach, lead_own_group, reset_child_signal, signal_group};
pub use tree::{ProcessTree, callers};
pub use watch::{Source, Watch, Woken};

use watch::SignalPipe;

/// Names a worker's task directory in the worker's environment, and so marks a worker's processes.
pub const TASK_DIR: &str = "DISPATCH_TASK_DIR";

/// Marks every process of an attempt with its number, so that one that left its process group is
/// found. A supervisor has the number 0.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// How many minutes a worker waits for an answer in total, for a worker that cannot read the config.
pub const PATIENCE: &str = "DISPATCH_PATIENCE";

/// The directory of the recorded answers, for a worker at `full` access, which takes no others.
pub const ANSWERS: &str = "DISPATCH_ANSWERS";

/// The host process that called this helper; `None` if a worker or a person called it.
pub fn calling_host() -> Option<Identity> {
    if std::env::var_os(TASK_DIR).is_some() {
        return None;
    }
    let pid = std::env::var("CLAUDE_PID").ok()?.parse().ok()?;
    Identity::of_pid(pid).ok().flatten()
}

/// Returns true if a person talks to the calling host. `claude -p` ends with its turn, but waits for its
/// hooks, so that one which stays would keep it for ever.
pub fn is_interactive() -> bool {
    std::env::var_os("CLAUDE_CODE_ENTRYPOINT").is_some_and(|entry| entry == "cli")
}

/// The shell whose script called this helper; `None` if another program did.
pub fn calling_shell() -> Option<Identity> {
    let pid = std::os::unix::process::parent_id();
    let program = os::command_line(pid).into_iter().next()?;
    let name = Path::new(&program).file_name()?.to_str()?.trim_start_matches('-');
    let is_shell = ["sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"].contains(&name);
    Identity::of_pid(pid).ok().flatten().filter(|_| is_shell)
}

/// Returns true if a variable ties a process to the host that started it. A variable that a person
/// sets for Claude Code, such as how to log in, does not.
pub fn is_host_variable(name: &str) -> bool {
    let of_the_person = ["USE_", "SKIP_", "OAUTH_", "CLIENT_", "API_KEY_", "MAX_"];
    match name.strip_prefix("CLAUDE_CODE_") {
        Some(rest) => !of_the_person.iter().any(|start| rest.starts_with(start)),
        None => matches!(
            name,
            "CLAUDECODE"
                | "CLAUDE_PID"
                | "CLAUDE_PROJECT_DIR"
                | "CLAUDE_PLUGIN_ROOT"
                | "CLAUDE_PLUGIN_DATA"
                | "CLAUDE_EFFORT"
                | "CLAUDE_ENV_FILE"
                | "DISPATCH_BIN"
        ),
    }
}

/// The names of the five helpers.
pub const HELPERS: [&str; 5] = [
    "dispatch-config",
    "dispatch-spawn",
    "dispatch-monitor",
    "dispatch-reconcile",
    "dispatch-worker",
];

/// The path of a program, as a shell would find it.
pub fn find_program(program: &OsStr) -> Option<PathBuf> {
    find_program_in(program, &std::env::var_os("PATH").unwrap_or_default())
}

/// The path of a program, as a shell with this `PATH` would find it.
pub fn find_program_in(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    // An empty entry means the working directory, but an empty PATH means no directory.
    let directories = std::env::split_paths(path).filter(|_| !path.is_empty());
    directories.map(|directory| directory.join(program)).find(runs)
}

/// The `dispatch-worker` beside this program, which an update of the skill does not change.
pub fn worker_helper() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(own.with_file_name("dispatch-worker"))
}

/// The launcher of the skill that this program was called through, else the program beside it. The
/// permission rules in a person's settings name the launcher.
pub fn launcher(name: &str) -> Result<PathBuf> {
    match std::env::var_os("DISPATCH_BIN") {
        Some(bin) => Ok(Path::new(&bin).join(name)),
        None => Ok(worker_helper()?.with_file_name(name)),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_keeps_the_persons_settings_and_not_the_hosts() {
        for gone in ["CLAUDECODE", "CLAUDE_PID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_ENTRYPOINT"]
        {
            assert!(is_host_variable(gone), "{gone}");
        }
        for kept in ["PATH", "ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CONFIG_DIR"] {
            assert!(!is_host_variable(kept), "{kept}");
        }
    }
}
