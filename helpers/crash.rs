//! Crash points: named steps at which a test makes a helper die as if by `kill -9`.
//!
//! Only test builds (with debug assertions) read the variable; a release helper does not hold its
//! name, which `tests/run.sh` checks.

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
