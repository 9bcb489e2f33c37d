//! The exit codes of the five helpers: a public interface that scripts, hooks and the host's model
//! read.
//!
//! The numbers from 64 up are those of `sysexits.h`; README.md has the same table.

/// How a helper ends.
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
