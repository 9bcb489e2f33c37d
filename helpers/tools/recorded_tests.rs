//! What real CLIs said, and what is heard in it. `tests/recorded/<cli>.log` holds sections: a title
//! `== what happened, exit N`, the lines of the CLI as they came (those that say nothing are left
//! out, ids and paths are shortened), and `-> ` with what is heard. `SNAPSHOTS=overwrite` renews the
//! last: review what it wrote.

use std::fmt::Write as _;
use std::path::Path;

use crate::tools::events::{Heard, Listener};
use crate::tools::{KNOWN, named};

/// What was heard, in one line.
fn short(heard: &Heard, output: &str) -> String {
    let Heard { session, over, denied, usage, failure, .. } = heard;
    let mut line = format!("session {}", session.as_deref().unwrap_or("unknown"));
    if *over {
        line.push_str(", over");
    }
    if let Some(usage) = usage {
        let cost = usage.cost_usd.map(|cost| format!(" for ${cost:.4}")).unwrap_or_default();
        let _ = write!(line, ", used {}+{}{cost}", usage.input_tokens, usage.output_tokens);
    }
    if !denied.is_empty() {
        let _ = write!(line, ", denied {denied:?}");
    }
    if let Some(failure) = failure {
        // What a time of the day means depends on the day.
        let resets = match failure.resets {
            Some(at) if output.contains(&at.to_string()) => format!(" until {at}"),
            Some(_) => " until then".into(),
            None => String::new(),
        };
        let _ = write!(line, ", {:?}{resets}: {:?}", failure.kind, failure.said);
    }
    line
}

/// The recorded outputs again, with what is heard in them now.
fn heard_now(cli: &str, recorded: &str) -> String {
    let mut now = String::new();
    let mut listener = Listener::new(named(cli));
    for line in recorded.lines() {
        if line.starts_with("-> ") {
            listener.end();
            let _ = writeln!(now, "-> {}", short(listener.heard(), recorded));
            continue;
        }
        if line.starts_with("== ") {
            listener = Listener::new(named(cli));
        } else {
            listener.hear(format!("{line}\n").as_bytes());
        }
        let _ = writeln!(now, "{line}");
    }
    now
}

#[test]
fn what_every_cli_said_is_understood() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    for cli in KNOWN {
        let path = directory.join(cli.name).with_extension("log");
        let recorded = std::fs::read_to_string(&path).expect("what it really said");
        let titles = recorded.lines().filter(|line| line.starts_with("== ")).count();
        let heard = recorded.lines().filter(|line| line.starts_with("-> ")).count();
        assert!(titles > 0 && titles == heard, "{}: a `-> ` for each `== `", path.display());
        let expected = snapbox::Data::read_from(&path, None).raw();
        snapbox::Assert::new()
            .action_env(snapbox::assert::DEFAULT_ACTION_ENV)
            .eq(heard_now(cli.name, &recorded), expected);
    }
}
