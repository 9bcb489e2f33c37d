//! The state of a task and its reason.
//!
//! Invariant: the state is never stored. [`derive`] computes it from the task's files and processes, and
//! each row of its table has a test.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::Failure;
use crate::task::{ExitRecord, FailedCheck, StopReason, Wait};
use State::*;

/// The state of a task, in one word. The order is by urgency for a person, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A running worker waits for an answer.
    Asking,
    /// The worker stopped because it needs an answer.
    Blocked,
    /// The worker stopped because of an error.
    Failed,
    /// The worker stopped because it was not allowed to do something.
    Denied,
    /// The worker is running and has been silent for longer than the config allows.
    Silent,
    /// The worker is at a place that does not answer.
    Unreachable,
    /// The worker disappeared without an exit status.
    Lost,
    /// The worker ended by itself and left items unticked.
    Incomplete,
    /// A task that must be done first cannot finish by itself.
    Held,
    /// The task waits for the reset of a rate limit.
    Parked,
    /// A worker is running.
    Running,
    /// The task waits for a free slot, or for tasks that must be done first.
    Queued,
    /// The person stopped the task.
    Stopped,
    /// Every item is ticked, and the worker said that it is finished or ended without an error.
    Done,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

impl State {
    /// Returns true if the task has no worker and waits for one to start.
    pub fn is_waiting(self) -> bool {
        matches!(self, Self::Queued | Self::Held | Self::Parked)
    }

    /// Returns true if a worker is running.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Silent | Self::Asking | Self::Unreachable)
    }

    /// Returns true if the worker stopped because of an error.
    pub fn has_failed(self) -> bool {
        matches!(self, Self::Failed | Self::Denied | Self::Lost)
    }

    /// Returns true if the worker ended before the task was done, so that the task can be resumed.
    pub fn has_work_left(self) -> bool {
        self.has_failed() || matches!(self, Self::Blocked | Self::Incomplete)
    }

    /// Returns true if the worker ended in a way that its host has to hear of: all ends but a stop.
    pub fn has_ended(self) -> bool {
        self.has_work_left() || self == Self::Done
    }

    /// The state of a task that waits for this.
    fn of_wait(wait: &Wait) -> Self {
        match wait {
            Wait::Held { .. } => Self::Held,
            Wait::Parked { .. } => Self::Parked,
            Wait::After(_) | Wait::Place(..) | Wait::Queued { .. } | Wait::Job { .. } => {
                Self::Queued
            }
        }
    }
}

/// The reason for a state, where the state alone does not tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The state alone tells it.
    None,
    /// The worker marked the item with this number as failed or blocked.
    Item(String),
    /// The program could not be started, with the error.
    NotStarted(String),
    /// The worker exited with this code.
    ExitCode(i32),
    /// The signal with this number ended the worker.
    Signal(i32),
    /// The attempt ended for a reason that code and signal do not explain.
    Ended(StopReason),
    /// The worker disappeared without an exit status.
    Lost,
    /// The CLI reported this failure.
    Cli(Failure),
    /// This check of the person runs, or is about to.
    Checking(String),
    /// A check of the person failed.
    Check(FailedCheck),
    /// The CLI denied these tool calls.
    Denied(Vec<String>),
    /// The place of the worker does not answer since this time (RFC 3339).
    Unreachable(String),
    /// The worker has been silent since this time (RFC 3339), for longer than the config allows.
    Silent(String),
    /// The task waits for this and has no worker.
    Waits(Wait),
    /// The worker exited cleanly with all items ticked, without the finish marker.
    MarkerMissing,
    /// The worker set the finish marker and left items unticked.
    MarkerTooEarly,
    /// The plan lost these items, as text, since the attempt began.
    ItemsLost(String),
    /// A line of the plan may be an item and is not counted, as text.
    LineInDoubt(String),
    /// A file on the worker's side cannot be read, with the error.
    Unreadable(String),
}

/// The facts that the table reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// There was an attempt.
    pub(super) attempted: bool,
    /// The last attempt's worker or its supervisor is running.
    pub(super) alive: bool,
    /// The worker is the host's agent.
    pub(super) agent: bool,
    /// The person stopped the task.
    pub(super) stop: bool,
    /// The finish marker exists.
    pub(super) finished: bool,
    /// All items are ticked and the plan has no flaw.
    pub(super) complete: bool,
    /// A question has no answer.
    pub(super) question: bool,
    /// The number of the first item that is marked as blocked.
    pub(super) blocked: Option<String>,
    /// The number of the first item that is marked as failed.
    pub(super) failed: Option<String>,
    /// The last attempt's end.
    pub(super) exit: Option<ExitRecord>,
    /// The recorded wait.
    pub(super) wait: Option<Wait>,
    /// The time since which the place does not answer at which something of the task may run.
    pub(super) unreachable: Option<String>,
    /// The time since which the worker has been silent.
    pub(super) silent: Option<String>,
    /// The flaw that keeps the plan from being complete.
    pub(super) flaw: Option<Reason>,
    /// The check that is due or failed, if the person wants checks.
    pub(super) check: Option<Reason>,
}

/// The table, with the row for a task that is open at a place which does not answer.
pub(super) fn derive(facts: &Facts) -> (State, Reason) {
    match (derive_checked(facts), &facts.unreachable) {
        ((state, _), Some(since)) if state.is_running() || state.is_waiting() => {
            (Unreachable, Reason::Unreachable(since.clone()))
        }
        (derived, _) => derived,
    }
}

/// The rows for a task whose checks did not pass yet.
fn derive_checked(facts: &Facts) -> (State, Reason) {
    let (state, reason) = derive_unchecked(facts);
    let Some(check) = facts.check.as_ref().filter(|_| state == Done) else {
        return (state, reason);
    };
    match (facts, check) {
        (Facts { alive: true, .. }, _) => {
            derive_unchecked(&Facts { finished: false, ..facts.clone() })
        }
        (Facts { stop: true, .. }, _) => (Stopped, Reason::None),
        // The worker is about to continue after a failed check.
        (Facts { wait: Some(wait), .. }, _) => (State::of_wait(wait), Reason::Waits(wait.clone())),
        (_, Reason::Check(_)) => (Failed, check.clone()),
        _ => (Running, check.clone()),
    }
}

/// The rows of the worker and its plan. The first that matches decides.
fn derive_unchecked(facts: &Facts) -> (State, Reason) {
    // An agent's process is its host's, so only its files show that it stopped.
    let agent_stopped = facts.agent && facts.alive && !facts.question;
    match facts {
        Facts { attempted: true, finished: true, complete: true, .. } => (Done, Reason::None),
        // An agent's host may take a while to end it.
        Facts { stop: true, alive, agent, .. } if !alive || *agent => (Stopped, Reason::None),
        Facts { alive: false, wait: Some(wait), .. } => {
            (State::of_wait(wait), Reason::Waits(wait.clone()))
        }
        Facts { attempted: false, .. } => (Queued, Reason::None),
        Facts { alive: true, question: true, .. } => (Asking, Reason::None),
        Facts { failed: Some(item), .. } if agent_stopped => (Failed, Reason::Item(item.clone())),
        Facts { blocked: Some(item), .. } if agent_stopped => (Blocked, Reason::Item(item.clone())),
        Facts { finished: true, flaw, .. } if agent_stopped => {
            (Incomplete, flaw.clone().unwrap_or(Reason::MarkerTooEarly))
        }
        Facts { alive: true, silent: Some(since), .. } => (Silent, Reason::Silent(since.clone())),
        Facts {
            alive: true,
            flaw: Some(flaw @ (Reason::ItemsLost(_) | Reason::Unreadable(_))),
            ..
        } => (Running, flaw.clone()),
        Facts { alive: true, .. } => (Running, Reason::None),
        Facts { exit: Some(ExitRecord { not_started: Some(error), .. }), .. } => {
            (Failed, Reason::NotStarted(error.clone()))
        }
        Facts { failed: Some(item), .. } => (Failed, Reason::Item(item.clone())),
        Facts { blocked: Some(item), .. } => (Blocked, Reason::Item(item.clone())),
        Facts { question: true, .. } => (Blocked, Reason::None),
        Facts { exit: None, .. } => (Lost, Reason::Lost),
        Facts { exit: Some(exit), complete, finished, flaw, .. } => {
            match (derive_end(exit, *complete, *finished), flaw) {
                ((Incomplete, _), Some(flaw)) => (Incomplete, flaw.clone()),
                (end, _) => end,
            }
        }
    }
}

/// The rows of the table for a worker that ended without a failed or blocked item.
fn derive_end(exit: &ExitRecord, complete: bool, finished: bool) -> (State, Reason) {
    // Once the CLI has reported its result, the plan decides, whatever ended the process.
    let had_result = exit.had_result();
    let clean = exit.failure.is_none() && (exit.code == Some(0) || had_result);
    match exit {
        _ if clean && complete => (Done, Reason::MarkerMissing),
        ExitRecord { stop_reason: Some(reason @ StopReason::Budget { .. }), .. } => {
            (Blocked, Reason::Ended(reason.clone()))
        }
        exit if exit.is_unseen() && !had_result => (Lost, Reason::Lost),
        ExitRecord { failure: Some(failure), .. } => (Failed, Reason::Cli(failure.clone())),
        ExitRecord { stop_reason: Some(reason), .. } if !had_result => {
            (Failed, Reason::Ended(reason.clone()))
        }
        ExitRecord { denied, .. } if !denied.is_empty() => (Denied, Reason::Denied(denied.clone())),
        ExitRecord { signal: Some(signal), stop_reason: None, .. } => {
            (Failed, Reason::Signal(*signal))
        }
        ExitRecord { code: Some(code @ 1..), .. } => (Failed, Reason::ExitCode(*code)),
        _ if finished => (Incomplete, Reason::MarkerTooEarly),
        _ => (Incomplete, Reason::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The facts of a worker that exited with 0 and left items unticked.
    fn ended() -> Facts {
        let exit = ExitRecord { code: Some(0), ..ExitRecord::default() };
        Facts { attempted: true, exit: Some(exit), ..Facts::default() }
    }

    /// The facts of a worker that finished and exited.
    fn done() -> Facts {
        Facts { finished: true, complete: true, ..ended() }
    }

    /// The facts of a running worker.
    fn alive() -> Facts {
        Facts { attempted: true, alive: true, ..Facts::default() }
    }

    /// The facts of a running agent.
    fn agent() -> Facts {
        Facts { agent: true, ..alive() }
    }

    fn exit(change: impl FnOnce(&mut ExitRecord)) -> Option<ExitRecord> {
        let mut exit = ExitRecord::default();
        change(&mut exit);
        Some(exit)
    }

    fn parked() -> Option<Wait> {
        Some(Wait::Parked {
            until: 0,
            stated: true,
            times: 1,
            said: "limit".into(),
            fallback: None,
        })
    }

    fn lost() -> Option<Reason> {
        Some(Reason::ItemsLost("item 2: Second".into()))
    }

    fn doubt() -> Option<Reason> {
        Some(Reason::LineInDoubt("line 4 of the plan is in doubt".into()))
    }

    fn silent() -> Option<StopReason> {
        Some(StopReason::Silent { minutes: 20 })
    }

    fn budget() -> Option<StopReason> {
        Some(StopReason::Budget { used: "90m of 90m".into() })
    }

    fn checking() -> Option<Reason> {
        Some(Reason::Checking("make test".into()))
    }

    fn check() -> Option<Reason> {
        let (command, end) = ("make test".into(), "exit code 1".into());
        Some(Reason::Check(FailedCheck { command, end, output: String::new(), is_review: false }))
    }

    fn waits() -> Reason {
        Reason::Waits(parked().expect("a wait"))
    }

    #[test]
    fn every_row_of_the_table_decides_state_and_reason() {
        use Reason as R;
        use State as S;
        let rows = [
            (Facts::default(), S::Queued, R::None),
            (Facts { finished: true, complete: true, ..alive() }, S::Done, R::None),
            (Facts { finished: true, complete: true, ..ended() }, S::Done, R::None),
            (Facts { stop: true, ..ended() }, S::Stopped, R::None),
            (Facts { stop: true, ..alive() }, S::Running, R::None),
            (Facts { stop: true, ..agent() }, S::Stopped, R::None),
            (Facts { question: true, ..alive() }, S::Asking, R::None),
            (Facts { question: true, ..agent() }, S::Asking, R::None),
            (Facts { failed: Some("2".into()), ..agent() }, S::Failed, R::Item("2".into())),
            (Facts { failed: Some("2".into()), ..alive() }, S::Running, R::None),
            (Facts { blocked: Some("1".into()), ..agent() }, S::Blocked, R::Item("1".into())),
            (Facts { finished: true, ..agent() }, S::Incomplete, R::MarkerTooEarly),
            (alive(), S::Running, R::None),
            (
                Facts { exit: exit(|e| e.not_started = Some("no".into())), ..ended() },
                S::Failed,
                R::NotStarted("no".into()),
            ),
            (Facts { failed: Some("3".into()), ..ended() }, S::Failed, R::Item("3".into())),
            (Facts { blocked: Some("3".into()), ..ended() }, S::Blocked, R::Item("3".into())),
            (Facts { question: true, ..ended() }, S::Blocked, R::None),
            (Facts { exit: exit(|e| e.signal = Some(9)), ..ended() }, S::Failed, R::Signal(9)),
            (Facts { exit: exit(|e| e.code = Some(7)), ..ended() }, S::Failed, R::ExitCode(7)),
            (
                Facts { exit: exit(|e| e.stop_reason = silent()), ..ended() },
                S::Failed,
                R::Ended(StopReason::Silent { minutes: 20 }),
            ),
            (
                Facts { complete: true, exit: exit(|e| e.stop_reason = silent()), ..ended() },
                S::Failed,
                R::Ended(StopReason::Silent { minutes: 20 }),
            ),
            (
                Facts { exit: exit(|e| e.stop_reason = budget()), ..ended() },
                S::Blocked,
                R::Ended(StopReason::Budget { used: "90m of 90m".into() }),
            ),
            (
                Facts { exit: exit(|e| e.stop_reason = budget()), question: true, ..ended() },
                S::Blocked,
                R::None,
            ),
            (
                Facts { exit: exit(|e| e.stop_reason = Some(StopReason::LastWord)), ..ended() },
                S::Incomplete,
                R::None,
            ),
            (
                Facts {
                    complete: true,
                    exit: exit(|e| e.stop_reason = Some(StopReason::LastWord)),
                    ..ended()
                },
                S::Done,
                R::MarkerMissing,
            ),
            (Facts { silent: Some("noon".into()), ..alive() }, S::Silent, R::Silent("noon".into())),
            (Facts { exit: None, ..ended() }, S::Lost, R::Lost),
            (
                Facts { exit: exit(|e| e.denied = vec!["Bash(rm)".into()]), ..ended() },
                S::Lost,
                R::Lost,
            ),
            (
                Facts {
                    exit: exit(|e| (e.code, e.denied) = (Some(0), vec!["Bash(rm)".into()])),
                    ..ended()
                },
                S::Denied,
                R::Denied(vec!["Bash(rm)".into()]),
            ),
            (Facts { exit: exit(|_| ()), complete: true, ..ended() }, S::Lost, R::Lost),
            (
                Facts {
                    exit: exit(|e| e.stop_reason = Some(StopReason::LastWordUnseen)),
                    ..ended()
                },
                S::Incomplete,
                R::None,
            ),
            (
                Facts {
                    complete: true,
                    exit: exit(|e| e.stop_reason = Some(StopReason::LastWordUnseen)),
                    ..ended()
                },
                S::Done,
                R::MarkerMissing,
            ),
            (Facts { finished: true, ..ended() }, S::Incomplete, R::MarkerTooEarly),
            (Facts { complete: true, ..ended() }, S::Done, R::MarkerMissing),
            (ended(), S::Incomplete, R::None),
            (Facts { flaw: lost(), ..alive() }, S::Running, lost().expect("a flaw")),
            (Facts { flaw: doubt(), ..alive() }, S::Running, R::None),
            (Facts { flaw: lost(), ..ended() }, S::Incomplete, lost().expect("a flaw")),
            (Facts { flaw: doubt(), ..ended() }, S::Incomplete, doubt().expect("a flaw")),
            (
                Facts { flaw: lost(), finished: true, ..ended() },
                S::Incomplete,
                lost().expect("a flaw"),
            ),
            (
                Facts { flaw: doubt(), finished: true, ..agent() },
                S::Incomplete,
                doubt().expect("a flaw"),
            ),
            (
                Facts { flaw: lost(), exit: exit(|e| e.code = Some(7)), ..ended() },
                S::Failed,
                R::ExitCode(7),
            ),
            (Facts { wait: parked(), ..ended() }, S::Parked, waits()),
            (Facts { wait: parked(), failed: Some("1".into()), ..ended() }, S::Parked, waits()),
            // The last attempt's end is not recorded, and the task waits for the next attempt.
            (Facts { wait: parked(), exit: None, ..ended() }, S::Parked, waits()),
            (Facts { wait: parked(), ..Facts::default() }, S::Parked, waits()),
            (Facts { wait: parked(), stop: true, ..Facts::default() }, S::Stopped, R::None),
            (Facts { wait: parked(), stop: true, ..ended() }, S::Stopped, R::None),
            (Facts { wait: parked(), finished: true, complete: true, ..ended() }, S::Done, R::None),
            (Facts { check: checking(), ..done() }, S::Running, checking().expect("a check")),
            (Facts { check: check(), ..done() }, S::Failed, check().expect("a check")),
            (Facts { check: checking(), stop: true, ..done() }, S::Stopped, R::None),
            (Facts { check: checking(), wait: parked(), ..done() }, S::Parked, waits()),
            (Facts { check: checking(), alive: true, exit: None, ..done() }, S::Running, R::None),
            (
                Facts { check: checking(), exit: None, ..done() },
                S::Running,
                checking().expect("a check"),
            ),
            (
                Facts { check: checking(), finished: false, ..done() },
                S::Running,
                checking().expect("a check"),
            ),
            (Facts { check: checking(), ..ended() }, S::Incomplete, R::None),
        ];
        for (facts, state, reason) in rows {
            assert_eq!(derive(&facts), (state, reason), "{facts:?}");
        }
    }
}
