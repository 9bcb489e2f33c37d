//! Workers: what each is told, the queue it waits in, and the supervisor that runs its attempts.

pub mod agent;
pub mod demo;
mod log;
pub mod prompt;
mod queue;
pub mod run;
pub mod supervise;
