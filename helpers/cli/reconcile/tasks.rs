//! The tasks of a project for `watch` and `status --follow`, each reread when it has changed.

use std::collections::BTreeMap;
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::cli::reconcile::status::broken_line;
use crate::cli::reconcile::table::{TaskRow, one_line};
use crate::domain::Usage;
use crate::exit::Exit;
use crate::project::Project;
use crate::repair::repair;
use crate::task::State;
use crate::text::sanitize;
use crate::wait::LiveTasks;

/// A task's row, or the line that says why the task cannot be read.
type Row = Result<TaskRow, String>;

/// Tells of the tasks at once, and again whenever they have changed, until a signal comes or nobody
/// listens any more.
pub(super) fn tell_of_changes(
    mut tasks: LiveTasks,
    mut tell: impl FnMut(Vec<TaskRow>, Vec<String>) -> bool,
) -> Result<()> {
    let mut rows: BTreeMap<PathBuf, Row> = BTreeMap::new();
    let (mut broken, mut told) = (Vec::new(), false);
    loop {
        let changes = tasks.refresh();
        let lines = tasks.broken().iter().map(|it| one_line(&broken_line(it))).collect();
        let mut changed = std::mem::replace(&mut broken, lines) != broken;
        for id in changes.read {
            let Some(read) = tasks.get(&id) else { continue };
            let row = read.as_ref().map(TaskRow::new).map_err(|it| one_line(&broken_line(it)));
            changed |= rows.get(&id).map(look) != Some(look(&row));
            rows.insert(id, row);
        }
        let before = rows.len();
        rows.retain(|id, _| tasks.get(id).is_some());
        changed |= rows.len() < before;
        if changed || !told {
            let mut readable: Vec<TaskRow> = rows.values().flatten().cloned().collect();
            readable.sort_by_key(|row| row.state);
            let unreadable = rows.values().filter_map(|row| row.as_ref().err());
            told = tell(readable, broken.iter().chain(unreadable).cloned().collect());
            if !told {
                return Ok(());
            }
        }
        if tasks.wait(Duration::MAX)? {
            return Ok(());
        }
    }
}

/// The parts of a row that are compared: everything but ages.
fn look(row: &Row) -> Result<(String, Option<&Usage>), &String> {
    row.as_ref().map(|row| (row.line(), row.usage.as_ref()))
}

/// Prints the tasks that are not done, and then each task that changes, until a signal comes.
pub(super) fn follow(project: &Project) -> Result<Exit> {
    let tasks = LiveTasks::new(project.clone(), Vec::new(), None)?;
    repair(project, project.task_list());
    let mut printed: Option<Vec<String>> = None;
    tell_of_changes(tasks, |rows, broken| {
        let is_new = |line: &String| !printed.iter().flatten().any(|it| it == line);
        let open = rows.iter().filter(|row| printed.is_some() || row.state != State::Done);
        let lines = broken.iter().cloned().chain(open.map(TaskRow::line));
        // A reader that has left is no error.
        let is_read =
            lines.filter(is_new).all(|line| writeln!(stdout(), "{}", sanitize(&line)).is_ok());
        printed = Some(rows.iter().map(TaskRow::line).chain(broken).collect());
        is_read
    })?;
    Ok(Exit::Ok)
}
