//! Exit codes, and errors as a person reads them: what went wrong, where, and what to do next.
//!
//! Anything may fail with an [`anyhow::Error`]; a [`Refusal`] in its chain decides the exit code
//! and the lines that are printed.

use std::fmt;

/// How a helper ends. The codes are a public interface that scripts, hooks and the host's model read;
/// those from 64 up are of `sysexits.h`. README.md has the same table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The helper did what it was asked, or printed news.
    Ok = 0,
    /// The helper failed for a reason without a code of its own.
    Failed = 1,
    /// News is on standard error and the model is to be woken; `dispatch-monitor --hook` only.
    Wake = 2,
    /// The time limit passed without news.
    NothingNew = 3,
    /// The command line is wrong.
    Usage = 64,
    /// A file that a person or a model wrote (config, plan) is wrong, or lacks the named thing.
    Data = 65,
    /// A helper, a worker CLI or a toolchain is missing.
    Unavailable = 69,
    /// Something cannot be created, for example because the task id is taken.
    CannotCreate = 73,
    /// No answer yet, or another process holds a lock: the same call may succeed later.
    TryAgain = 75,
}

impl Exit {
    /// The exit with this code; [`Exit::Failed`] for a code that no helper uses.
    pub fn from_code(code: u8) -> Self {
        use Exit::*;
        let all = [Ok, Failed, Wake, NothingNew, Usage, Data, Unavailable, CannotCreate, TryAgain];
        all.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Failed)
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure with an exit code and a remedy. Prints as at most three lines.
#[derive(Clone, Debug)]
pub struct Refusal {
    exit: Exit,
    what: String,
    place: Option<String>,
    next: Option<String>,
}

impl Refusal {
    /// A failure described by one line without a full stop.
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), place: None, next: None }
    }

    /// Adds where the failure is: a path, an excerpt that marks the fault, or the cause.
    #[must_use]
    pub fn place(mut self, place: impl Into<String>) -> Self {
        self.place = Some(place.into());
        self
    }

    /// Adds what to do next: a command where there is one.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Fails with this refusal and what to do next.
    pub fn refuse<T, E: From<Self>>(self, next: impl Into<String>) -> Result<T, E> {
        Err(self.next(next).into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(place) = &self.place {
            write!(f, "\n  {place}")?;
        }
        if let Some(next) = &self.next {
            write!(f, "\n  next: {next}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The exit code of an error: that of the [`Refusal`] in its chain, else [`Exit::Failed`].
pub fn exit_code(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<Refusal>().map_or(Exit::Failed, |refusal| refusal.exit)
}
