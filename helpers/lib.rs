//! The helpers of the dispatch skill.
//!
//! A host's model calls five helpers; one small program is all of them ([`cli::main`]). What they
//! share is here, one module for each word of the domain: a [`project`] holds tasks, a [`task`] has a
//! [`plan`], talks over [`ipc`], is done by a [`worker`] whose [`process`] is watched, and becomes
//! [`news`] for the host.

pub mod cli;
pub mod config;
pub mod dirs;
pub mod domain;
pub mod error;
pub mod fault;
pub mod files;
pub mod git;
pub mod host;
pub mod ids;
pub mod ipc;
pub mod news;
pub mod ops;
pub mod place;
pub mod plan;
pub mod process;
pub mod project;
pub mod repair;
pub mod task;
pub mod text;
pub mod tools;
pub mod wait;
pub mod worker;

pub use process::HELPERS;
