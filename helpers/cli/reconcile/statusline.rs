//! `dispatch-reconcile statusline`: the number of tasks in each state, for the host's status line.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use anyhow::Result;

use crate::cli::say;
use crate::exit::Exit;
use crate::project::{Project, TaskList};
use crate::task::{State, Task};

/// How many bytes of the host's JSON are read at most.
const MOST: u64 = 1 << 20;

/// Prints the number of tasks in each state; nothing if no task is open. The host calls this all the
/// time and shows whatever is printed, so it repairs nothing and never fails.
pub(super) fn statusline(here: Option<PathBuf>) -> Exit {
    if let Ok(Some(line)) = line(here) {
        say(line);
    }
    Exit::Ok
}

fn line(here: Option<PathBuf>) -> Result<Option<String>> {
    let directory = match here.or_else(host_directory) {
        Some(directory) => directory,
        None => std::env::current_dir()?,
    };
    let TaskList { tasks, broken } = Project::find(&directory)?.task_list();
    let mut broken = broken.len();
    let open = tasks.iter().filter(|task| task.time_since_done().is_none());
    let mut counts: BTreeMap<State, usize> = BTreeMap::new();
    for view in open.map(Task::view) {
        match view.map(|view| view.state) {
            Ok(State::Stopped | State::Done) => {}
            Ok(state) => *counts.entry(state).or_default() += 1,
            Err(_) => broken += 1,
        }
    }
    let broken = (broken > 0).then(|| format!("{broken} broken"));
    let counts = counts.into_iter().map(|(state, count)| format!("{count} {state}"));
    let counts: Vec<String> = broken.into_iter().chain(counts).collect();
    Ok((!counts.is_empty()).then(|| format!("dispatch: {}", counts.join(", "))))
}

/// The directory in the JSON that the host gives a status line on standard input.
fn host_directory() -> Option<PathBuf> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return None;
    }
    let mut text = String::new();
    stdin.take(MOST).read_to_string(&mut text).ok()?;
    let input: serde_json::Value = serde_json::from_str(&text).ok()?;
    let places = ["/workspace/current_dir", "/cwd", "/workspace/project_dir"];
    let directory = places.iter().find_map(|place| input.pointer(place)?.as_str())?;
    Some(directory.into())
}
