//! The promises of the helpers, kept by driving the real binaries. No AI CLI is needed.
//!
//! What a model or a person reads is compared whole; `SNAPSHOTS=overwrite cargo test` writes the
//! texts anew, for the eye to judge.

mod agent;
mod allow;
mod ask;
mod bad_input;
mod brief;
mod crash;
mod disk;
mod files_only;
mod hook;
mod launchers;
mod monitor;
mod plan_lock;
mod prompt;
mod skill;
mod supervision;
mod support;
