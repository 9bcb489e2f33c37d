//! The helpers of the dispatch skill.
//!
//! A host's model calls five small programs; each is a thin `main` over [`cli`]. What they share is
//! here, one module for each word of the domain: a [`project`] holds tasks, a [`task`] has a
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
pub mod task;
pub mod worker;
pub mod worktree;
