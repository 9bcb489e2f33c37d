//! The person's `notify:` command, which is told of questions, ends and limits.
//!
//! Invariant: an event is recorded before the command is told of it, so it is told once at most. No task
//! waits for the command, and no process of it outlives its time.

use std::io::{Seek, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::config::Config;
use crate::dirs;
use crate::fault;
use crate::files::{self, Lock};
use crate::ids::{random_hex, unix_seconds};
use crate::news::events;
use crate::news::ledger::Ledger;
use crate::process::{self, ATTEMPT, Identity, ProcessTree};
use crate::task::Task;
use crate::text::one_line;

/// How long the command may take for one event.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a process of the command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

/// How many bytes the command may print, which nobody reads, before it is ended.
const MOST_OUTPUT: usize = 1 << 20;

/// How often the command is called within [`PERIOD`] seconds, for all tasks together.
const MOST: usize = 20;
const PERIOD: u64 = 10 * 60;

/// Starts a process that tells the person's command of a task's new events, if there is a command. If
/// that fails, the news waits for the host as always.
pub fn announce(task: &Task) {
    if Config::load().is_ok_and(|config| config.notify.is_some()) {
        let _ = task.helper("--notify").and_then(|mut helper| {
            helper.stdout(Stdio::null());
            process::detach(&mut helper)
        });
    }
}

/// Runs as the process that tells the person's command of new events of the task with this state
/// directory.
pub fn run(state_dir: &Path) -> Result<()> {
    let (task, config) = (Task::at_state(state_dir)?, Config::load()?);
    let Some(command) = config.notify else { return Ok(()) };
    let view = task.view()?;
    process::adopt_descendants()?;
    for event in events(&view)? {
        let kind = match event.key.split('/').next() {
            Some("question") => "ask",
            Some("parked" | "end") if view.is_at_limit() => "limit",
            Some("end") => "end",
            _ => continue,
        };
        if !Ledger::open(&task)?.notify(&event)? {
            continue;
        }
        let Some(is_last) = may_call()? else { continue };
        let more = if is_last { " (further news is left out for 10 min)" } else { "" };
        let title = view.person_plan().title().map(one_line);
        let message = json!({
            "event": kind,
            "task": task.id().as_str(),
            "title": title,
            "project": task.root(),
            "state": view.state,
            "text": format!("{}{more}", event.line),
            "id": event.id,
        });
        // A command that fails must not keep the next event from being told.
        let _ = call(&command, &message.to_string());
    }
    Ok(())
}

/// Counts a call of the command. `None` if there were too many; else whether it is the last for a while.
fn may_call() -> Result<Option<bool>> {
    let path = dirs::dispatch_home()?.join("notified");
    let _lock = Lock::take(&path.with_extension("lock"), LIMIT)?;
    let now = unix_seconds();
    let times = files::read(&path)?.unwrap_or_default();
    let is_recent = |time: &u64| (now.saturating_sub(PERIOD)..=now).contains(time);
    let mut times: Vec<u64> = times.lines().filter_map(|time| time.parse().ok()).collect();
    times.retain(is_recent);
    if times.len() >= MOST {
        return Ok(None);
    }
    times.push(now);
    let text: String = times.iter().map(|time| format!("{time}\n")).collect();
    files::publish(&path, text.as_bytes())?;
    Ok(Some(times.len() == MOST))
}

/// Calls the command with this input, and ends whatever is left of it after its time.
fn call(command: &str, input: &str) -> Result<()> {
    let deadline = Instant::now() + fault::limit("DISPATCH_NOTIFY_MS", LIMIT);
    let mark = random_hex()?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env(ATTEMPT, &mark);
    shell.current_dir(dirs::home_directory().unwrap_or_default());
    // A pipe may be too small for it, and the command need not read.
    let mut file = tempfile::tempfile()?;
    writeln!(file, "{input}")?;
    file.rewind()?;
    let _ = process::capture(&mut shell, file.into(), deadline, MOST_OUTPUT);
    let own = Identity::own().map(Some)?;
    let mut tree = ProcessTree::new(own, None, format!("{ATTEMPT}={mark}"));
    tree.terminate(GRACE, || process::reap_adopted(0))?;
    Ok(())
}
