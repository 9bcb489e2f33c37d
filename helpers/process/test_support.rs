//! Shared parts of this module's tests.
#![allow(clippy::unwrap_used)]

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
