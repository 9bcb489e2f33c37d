//! One test for each row of the table of states.

use super::*;

/// The facts of a worker that exited with 0 and left items unticked.
fn ended() -> Facts {
    let exit = ExitRecord { code: Some(0), ..ExitRecord::default() };
    Facts { attempted: true, exit: Some(exit), ..Facts::default() }
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
    Some(Wait::Parked { until: 0, stated: true, times: 1, said: "limit".into() })
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

fn waits() -> Reason {
    Reason::Waits(parked().expect("a wait"))
}

#[test]
fn every_row_of_the_table_decides_state_and_reason() {
    use Reason as R;
    use State as S;
    let rows = [
        (Facts::default(), S::Waiting, R::None),
        (Facts { finished: true, complete: true, ..alive() }, S::Done, R::None),
        (Facts { finished: true, complete: true, ..ended() }, S::Done, R::None),
        (Facts { stop: true, ..ended() }, S::Stopped, R::None),
        (Facts { stop: true, ..alive() }, S::Running, R::None),
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
        (Facts { silent: Some("noon".into()), ..alive() }, S::Running, R::Silent("noon".into())),
        (Facts { exit: None, ..ended() }, S::Failed, R::Lost),
        (Facts { exit: exit(|_| ()), complete: true, ..ended() }, S::Failed, R::Lost),
        (
            Facts { exit: exit(|e| e.stop_reason = Some(StopReason::LastWordUnseen)), ..ended() },
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
        (Facts { flaw: lost(), finished: true, ..ended() }, S::Incomplete, lost().expect("a flaw")),
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
        (Facts { wait: parked(), ..ended() }, S::Waiting, waits()),
        (Facts { wait: parked(), failed: Some("1".into()), ..ended() }, S::Waiting, waits()),
        // The last attempt's end is not recorded, and the task waits for the next attempt.
        (Facts { wait: parked(), exit: None, ..ended() }, S::Waiting, waits()),
        (Facts { wait: parked(), ..Facts::default() }, S::Waiting, waits()),
        (Facts { wait: parked(), stop: true, ..Facts::default() }, S::Stopped, R::None),
        (Facts { wait: parked(), stop: true, ..ended() }, S::Stopped, R::None),
        (Facts { wait: parked(), finished: true, complete: true, ..ended() }, S::Done, R::None),
    ];
    for (facts, state, reason) in rows {
        assert_eq!(derive(&facts), (state, reason), "{facts:?}");
    }
}
