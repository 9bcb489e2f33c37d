//! Faults that a test injects: crash points, shorter time limits, and failing system facilities.
//!
//! Only builds with debug assertions read the `DISPATCH_*` variables named here. `tests/run.sh`
//! checks that the name of the crash variable is absent from a release program.

use std::time::Duration;

/// The time limit `usual`, or the milliseconds that the variable `name` holds.
#[inline]
pub fn limit(name: &str, usual: Duration) -> Duration {
    #[cfg(debug_assertions)]
    if let Some(limit) = std::env::var(name).ok().and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(limit);
    }
    let _ = name;
    usual
}

/// Returns true if `DISPATCH_FAIL` names this system facility, for example `inotify`.
#[inline]
pub fn fails(facility: &str) -> bool {
    #[cfg(debug_assertions)]
    if std::env::var("DISPATCH_FAIL").is_ok_and(|fails| fails == facility) {
        return true;
    }
    let _ = facility;
    false
}

/// Kills this process if `DISPATCH_CRASH_AT` is `what:step`, for example `plan.md:written`.
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
