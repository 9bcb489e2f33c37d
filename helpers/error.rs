//! Errors as a person reads them: what went wrong, where, and what to do next.
//!
//! Anything may fail with an [`anyhow::Error`]; a [`Refusal`] in its chain decides the exit code
//! and the lines that are printed.

use std::fmt;

pub use crate::exit::Exit;

/// A failure with an exit code and a remedy. Prints as at most three lines.
#[derive(Debug)]
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
