//! The promises of the helpers, kept by driving the real binaries. No AI CLI is needed.
//!
//! Golden outputs compare whole texts; `SNAPSHOTS=overwrite cargo test` rewrites them, so read each
//! change.

mod agent;
mod allow;
mod ask;
mod bad_input;
mod behaviours;
mod brief;
mod broken_states;
mod chaos;
mod checks;
mod clean;
mod config_edits;
mod config_errors;
mod config_original;
mod config_resolve;
mod config_setup;
mod crash;
mod disk;
mod foreign_tasks;
mod help;
mod histories;
mod hook;
mod hostile;
mod install;
mod late_answers;
mod launchers;
mod layers;
mod limits;
mod merge;
mod monitor;
mod parked;
#[cfg(target_os = "linux")]
mod places;
mod plan;
mod prompt;
mod repair;
mod resume;
#[cfg(target_os = "linux")]
mod sandbox;
mod sequence;
mod simulation;
mod skill;
mod status;
mod supervision;
mod support;
mod watch;
mod worktrees;
