//! The supervisor: a small process, re-parented to init, that waits for a task's turn, runs its
//! attempts one after the other and records how each ended, whatever becomes of the host.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::attempt::{self, ATTEMPT};
use super::heard::Kind;
use super::turn;
use crate::config;
use crate::crash;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::Lock;
use crate::process::{self, Watch};
use crate::project::TASK_DIR;
use crate::task::{ExitRecord, Task, Wait};

/// How long a task is parked for the first time if the CLI does not say when its limit ends. Each
/// further time in a row it is twice as long.
const FIRST_PARK: Duration = Duration::from_secs(60);

/// How many times in a row a task is parked for a limit whose end nobody knows.
const MOST_PARKS: u32 = 8;

/// What a supervisor says when its worker runs; else it says its exit code and the error.
const STARTED: &str = "started";

/// What it says when the worker has to wait.
const WAITS: &str = "waits";

/// What became of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// The worker runs.
    Running,
    /// It will run by itself, later.
    Waiting(Wait),
}

/// Starts a supervisor for the task's next attempt, and returns when the worker runs or waits.
///
/// # Errors
/// What the supervisor said if it could not start the worker.
pub fn start(task: &Task) -> Result<Started> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.arg("--supervise").arg(task.directory()).current_dir("/");
    // The supervisor has no working directory that a relative path could mean.
    command.env("DISPATCH_CONFIG", std::path::absolute(config::path()?)?);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    // A supervisor that a worker started is none of that worker's processes, and says so.
    let nonce = task.record()?.map(|record| record.nonce).unwrap_or_default();
    command.env(ATTEMPT, format!("{nonce}/0")).env_remove(TASK_DIR);
    process::detach(&mut command)?;
    drop(command);
    let mut said = Vec::new();
    for line in BufReader::new(reader).lines() {
        said.push(line.context("cannot hear the supervisor")?);
    }
    match said.as_slice() {
        [only] if only == STARTED => Ok(Started::Running),
        [only] if only == WAITS => Ok(task.wait()?.map_or(Started::Running, Started::Waiting)),
        [] => {
            let what = format!("the supervisor of '{}' ended without a word", task.id());
            let again = format!("dispatch-spawn {} --resume tries again", task.id());
            Err(Refusal::new(Exit::Failed, what).next(again).into())
        }
        [code, lines @ ..] => {
            let exit = Exit::of_code(code.parse().unwrap_or_default());
            Err(Refusal::new(exit, lines.join("\n")).into())
        }
    }
}

/// The supervisor's whole life. Its standard output goes to whoever started it, until the worker
/// runs or waits.
pub fn run(directory: &Path) -> Result<()> {
    let task = Task::at(directory)?;
    let _run_lock = Lock::take(&task.run_lock_path(), Duration::from_secs(2))?;
    crash::point("supervisor", "locked");
    let mut watch = Watch::new(&[SIGTERM, SIGINT, SIGHUP])?;
    let mut starter = Starter::default();
    // Only attempts in a row count; a person's `--resume` begins anew.
    let mut parked = 0;
    while let Some(_turn) = turn::wait(&task, &mut watch, &mut starter)? {
        let (attempt, exit) = attempt::run(&task, &mut watch, &mut starter)?;
        parked += 1;
        let wait = park(&task, &exit, parked)?;
        // First, so that the end is never seen without it.
        task.set_wait(wait.as_ref())?;
        attempt::record_end(&attempt, &exit, &mut watch)?;
        if wait.is_none() {
            break;
        }
    }
    Ok(())
}

/// Whether the task goes on by itself when a limit has ended, and when.
fn park(task: &Task, exit: &ExitRecord, times: u32) -> Result<Option<Wait>> {
    let Some(failure) = exit.failure.as_ref().filter(|failure| failure.kind == Kind::Quota) else {
        return Ok(None);
    };
    let stopped = task.record()?.is_none_or(|record| record.stop);
    let guessed = failure.resets.is_none();
    if stopped || task.plan()?.complete() || (guessed && times > MOST_PARKS) {
        return Ok(None);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let guess = now + FIRST_PARK.as_secs() * 2_u64.pow((times - 1).min(MOST_PARKS));
    Ok(Some(Wait::Parked {
        until: failure.resets.unwrap_or(guess),
        stated: !guessed,
        times,
        said: failure.said.clone(),
    }))
}

/// Whoever started this supervisor, and waits to hear what became of it.
#[derive(Default)]
pub(super) struct Starter {
    told: bool,
}

impl Starter {
    /// Says that the worker runs, and closes the pipe.
    pub(super) fn hears_started(&mut self) -> Result<()> {
        self.hears(STARTED)
    }

    /// Says that the worker waits, and closes the pipe.
    pub(super) fn hears_waits(&mut self) -> Result<()> {
        self.hears(WAITS)
    }

    fn hears(&mut self, word: &str) -> Result<()> {
        if std::mem::replace(&mut self.told, true) {
            return Ok(());
        }
        let mut starter = std::io::stdout().as_fd().try_clone_to_owned().map(File::from)?;
        let null =
            File::options().write(true).open("/dev/null").context("cannot open /dev/null")?;
        nix::unistd::dup2_stdout(null).context("cannot close the pipe")?;
        // The starter may be gone by now; the worker runs all the same.
        let _ = writeln!(starter, "{word}");
        Ok(())
    }
}
