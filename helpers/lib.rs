//! The helpers of the dispatch skill.
//!
//! A host's model calls five helpers; one small program is all of them ([`cli::main`]). What they
//! share is here, one module for each word of the domain: a [`project`] holds tasks, a [`task`] has a
//! [`plan`], talks over [`ipc`], is done by a [`worker`] whose [`process`] is watched, and becomes
//! [`news`] for the host.

pub mod cli;
pub mod config;
pub mod crash;
pub mod error;
pub mod exit;
pub mod files;
pub mod ipc;
pub mod news;
pub mod plan;
pub mod process;
pub mod project;
pub mod repair;
pub mod task;
pub mod words;
pub mod worker;
pub mod worktree;

/// The names of the helpers.
pub const HELPERS: [&str; 5] = [
    "dispatch-config",
    "dispatch-spawn",
    "dispatch-monitor",
    "dispatch-reconcile",
    "dispatch-worker",
];
