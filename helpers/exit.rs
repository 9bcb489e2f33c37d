//! The exit codes of all five helpers. They are API: scripts, hooks and the host's model read them.
//!
//! The numbers from 64 up are those of `sysexits.h`; README.md lists the same table.

/// How a helper ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It said something, or did what it was asked.
    Ok = 0,
    /// It failed for a reason that no other code names.
    Failed = 1,
    /// Only in `dispatch-monitor --hook`: standard error holds news, wake the model.
    Wake = 2,
    /// The time is over and there is nothing new.
    NothingNew = 3,
    /// The command line is wrong.
    Usage = 64,
    /// A file that a person or model wrote (config, plan) is wrong, or the named thing is not in it.
    Data = 65,
    /// A helper, a worker CLI or a toolchain is not there.
    Unavailable = 69,
    /// Something cannot be created, for example because the task id is taken.
    CannotCreate = 73,
    /// Not now: no answer yet, or held by another process. Calling again is right.
    TryAgain = 75,
}

impl Exit {
    /// The way of ending that a process told by this code; [`Exit::Failed`] if it is none of ours.
    pub fn of_code(code: u8) -> Self {
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
