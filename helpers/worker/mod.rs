//! Workers: their prompts, the queue they wait in, and the supervisor that runs their attempts.
//!
//! Invariant: one supervisor a task, which holds the task's run lock for as long as it lives.

pub mod agent;
pub mod demo;
mod log;
pub mod prompt;
mod queue;
pub mod run;
pub mod sandbox;
mod silence;
pub mod supervise;
