//! Crash points: named steps at which a test makes a helper die as if by `kill -9`; and limits that
//! a test makes shorter, or things of the system that it makes fail.
//!
//! Only test builds (with debug assertions) read the variables; a release helper does not hold the
//! name of the first, which `tests/run.sh` checks.

use std::time::Duration;

/// How long something takes: as usual, or as many milliseconds as a test says.
#[inline]
pub fn limit(name: &str, usual: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Some(limit) = std::env::var(name).ok().and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(limit);
    }
    let _ = name;
    usual
}

/// Whether a test wants something of the system to fail, for example `inotify`.
#[inline]
pub fn fails(what: &str) -> bool {
    #[cfg(debug_assertions)]
    if std::env::var("DISPATCH_FAIL").is_ok_and(|fails| fails == what) {
        return true;
    }
    let _ = what;
    false
}

/// Dies here if `DISPATCH_CRASH_AT` is `what:step`, for example `plan.md:written`.
#[inline]
pub fn point(what: &str, step: &str) {
    #[cfg(debug_assertions)]
    if let Ok(at) = std::env::var("DISPATCH_CRASH_AT")
        && at.split_once(':') == Some((what, step))
    {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
    #[cfg(not(debug_assertions))]
    let _ = (what, step);
}
