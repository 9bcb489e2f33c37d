//! `dispatch-reconcile status --follow`: a line for every change, as a screen reader reads it.

use std::io::{Write, stdout};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::reconcile::tasks::WatchedTasks;
use crate::exit::Exit;
use crate::process::{Watch, Woken};
use crate::project::Project;
use crate::repair::repair;
use crate::task::Label;
use crate::wait::SAFETY_SCAN;

/// Prints the tasks that are not done, and then each task that changes, until a signal comes.
pub(super) fn follow(project: &Project) -> Result<Exit> {
    let mut watch = Watch::new(&[SIGINT, SIGTERM, SIGHUP])?;
    repair(project, project.found());
    let mut tasks = WatchedTasks::new(project.clone());
    let mut printed: Option<Vec<String>> = None;
    let mut event = true;
    loop {
        if tasks.refresh(&mut watch, event) || printed.is_none() {
            let (rows, broken) = tasks.rows();
            let is_new = |line: &String| !printed.iter().flatten().any(|it| it == line);
            let open = rows.iter().filter(|row| printed.is_some() || row.label != Label::Done);
            let lines = broken.iter().cloned().chain(open.map(|row| row.line()));
            for line in lines.filter(is_new) {
                // A reader that has left is no error.
                if writeln!(stdout(), "{line}").is_err() {
                    return Ok(Exit::Ok);
                }
            }
            printed = Some(rows.iter().map(|row| row.line()).chain(broken).collect());
        }
        event = match watch.wait_for_event(SAFETY_SCAN)? {
            Woken::Signal(_) => return Ok(Exit::Ok),
            Woken::Changed => true,
            Woken::Timeout => false,
        };
    }
}
