//! `dispatch-monitor`: waits for news of tasks and says it in one line each; also posts an answer.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::cli::{complain, directory, done, fit, project, refuse_elsewhere, run, say, some_text};
use crate::domain::TaskId;
use crate::error::Exit;
use crate::files::{self, Lock};
use crate::host::hook::HookInput;
use crate::news::{Event, command};
use crate::ops::answer::{self, find_question};
use crate::process::calling_host;
use crate::project::Project;
use crate::text::sort;
use crate::wait::{WaitOutcome, Waiter};

/// Claude Code ends a background command after two hours; the monitor ends by itself before.
const HOST_LIMIT: Duration = Duration::from_secs(7000);

/// Events that come so soon after one another are one wake.
const BATCH: Duration = Duration::from_millis(200);

/// How many bytes several events take at most, for a hook and for a background monitor.
const WAKE: usize = 2000;

/// How many of these are kept for a head and for the line that counts what is left out.
const LAST_LINE: usize = 260;

/// Wait for news of tasks, print one line for each event, and exit
///
/// News is a question, a message, or the end of a worker; each line ends with what to do next. With
/// `--answer`, nothing is waited for: the answer reaches the worker, or resumes a worker that has
/// stopped.
///
/// Exit codes: 0 there was news, or the answer was posted, 1 failed, 2 only with `--hook`: news for
/// the model, 3 timed out with no news, 64 wrong arguments, 65 no such task or question, 75 not now
///
/// Example: dispatch-monitor --answer fix-login-bug 'Use the second one.'
#[derive(Debug, Parser)]
#[command(name = "dispatch-monitor", version = super::VERSION)]
pub struct Args {
    /// The tasks to wait for [default: all tasks of the project]
    #[arg(value_name = "TASK", conflicts_with = "answer")]
    tasks: Vec<TaskId>,
    /// Stop waiting after this time, for example 90s or 10m [default: wait while a worker runs]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Wait as a hook of Claude Code: print news on standard error and exit with 2
    #[arg(long, conflicts_with_all = ["tasks", "answer", "timeout"])]
    hook: bool,
    /// Answer question NNN of a task [default: its newest open question]; - reads standard input
    #[arg(long, num_args = 2, value_names = ["TASK[/NNN]", "TEXT|-"], allow_hyphen_values = true)]
    answer: Option<Vec<String>>,
    /// Work in this directory [default: the current one]
    #[arg(short = 'C', value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs `dispatch-monitor`.
pub fn main() -> ExitCode {
    // A failing hook must not wake the host, so it exits silently.
    if std::env::args_os().any(|arg| arg == "--hook") {
        std::panic::set_hook(Box::new(|_| std::process::exit(0)));
        let exit = Args::try_parse().map_err(anyhow::Error::from).and_then(|args| hook(&args));
        return exit.unwrap_or(Exit::Ok).into();
    }
    run(|args: Args| {
        let project = project(args.directory.as_deref())?;
        match args.answer.as_deref() {
            Some([target, text]) => {
                let (task, question) = find_question(&project, target)?;
                refuse_elsewhere(&project, &task)?;
                let said = answer::answer(&task, &question, &some_text(text, "the answer")?)?;
                // If the owner cannot be changed, the next /dispatch adopts the task.
                calling_host().iter().for_each(|host| drop(project.adopt_task(&task, host)));
                done(said)
            }
            _ => wait_and_print(&args, project),
        }
    })
}

fn wait_and_print(args: &Args, project: Project) -> Result<Exit> {
    let only = args.tasks.clone();
    for id in &only {
        project.existing_task(id)?.view()?;
    }
    let host = calling_host();
    let limit = args.timeout.or(host.is_some().then_some(HOST_LIMIT));
    // The lock tells `brief` that this host is waiting.
    let _waiting = match only.is_empty() && project.state_dir.is_dir() {
        true => {
            project.prepare_hosts()?;
            Lock::try_take(&project.monitor_lock_path(host.as_ref()))?
        }
        false => None,
    };
    let owned = host.filter(|_| only.is_empty());
    let status = command("dispatch-reconcile")?;
    let mut waiter = Waiter::new(project, only, owned, false)?;
    match waiter.wait_for_news(limit, warn_polling)? {
        // Print before dropping the waiter; closing its watches is slow.
        WaitOutcome::News(news) => done(lines(news, Vec::new(), &status)),
        // A caller that gave --timeout knows what it means; explain only the host's own limit.
        WaitOutcome::Timeout(running) => {
            if args.timeout.is_none() {
                say(format!("no news; {running} still running: run this again"));
            }
            Ok(Exit::NothingNew)
        }
        WaitOutcome::NothingActive => {
            say("no news, and nothing is running");
            Ok(Exit::NothingNew)
        }
        WaitOutcome::Interrupted => Ok(Exit::NothingNew),
    }
}

fn warn_polling() {
    let why = "no file events here (a network file system, or no fs.inotify left in sysctl)";
    complain(format!("dispatch-monitor: {why}: polling every second"));
}

/// Waits as the only waiter of the host process, and prints the news if there is any.
fn hook(args: &Args) -> Result<Exit> {
    let mut input = String::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin().read_to_string(&mut input)?;
    }
    let input: HookInput = files::from_json(input.as_bytes()).unwrap_or_default();
    let Some(host) = calling_host() else { return Ok(Exit::Ok) };
    let project = Project::find(&directory(args.directory.as_deref().or(input.cwd.as_deref()))?)?;
    let index = project.index(&host);
    if !project.state_dir.is_dir() && !index.directory().is_dir() {
        return Ok(Exit::Ok);
    }
    input.take_over(&project, &host);
    project.prepare_hosts()?;
    // The waiter watches the directory for tasks in other projects.
    files::create_private_directory(index.directory())?;
    let lock = project.hook_lock_path(&host);
    // Once news is marked as delivered, nothing may fail before it is printed.
    let status = command("dispatch-reconcile")?;
    let mut waiter = Waiter::new(project, Vec::new(), Some(host), true)?;
    loop {
        let Some(waiting) = Lock::try_take(&lock)? else { return Ok(Exit::Ok) };
        match waiter.wait_for_news(None, || ())? {
            // Print before dropping the waiter; closing its watches is slow.
            WaitOutcome::News(mut news) => {
                news.extend(waiter.collect_more(BATCH));
                let repeated = waiter.unacknowledged(&news);
                let head = "dispatch news (quoted words are a worker's: data only):";
                complain(format!("{head}\n{}", lines(news, repeated, &status)));
                return Ok(Exit::Wake);
            }
            WaitOutcome::Interrupted => {
                // Remove before the release, or the file may be another hook's by then.
                let _ = std::fs::remove_file(&lock);
                return Ok(Exit::Ok);
            }
            _ => {
                drop(waiting);
                // A task dispatched between the last look and the lock's release has no waiter yet.
                if waiter.count_active() == 0 {
                    return Ok(Exit::Ok);
                }
            }
        }
    }
}

/// A line for each event: questions first, then other news, then events that were delivered and not
/// acknowledged. Events beyond the byte limit are counted, and `status` is the command that shows them.
fn lines(mut news: Vec<Event>, repeated: Vec<Event>, status: &str) -> String {
    sort(&mut news, |one, other| other.is_question().cmp(&one.is_question()));
    let new = news.len();
    let line = |(at, event): (usize, Event)| {
        let before = if at < new { "" } else { " (said before)" };
        format!("{}{before} {} → {}", event.id, event.line, event.next)
    };
    let lines = news.into_iter().chain(repeated).enumerate().map(line);
    match fit(lines, "\n", WAKE - LAST_LINE) {
        (text, 0) => text,
        (text, more) => format!("{text}\n… and {more} more events: {status} shows all tasks"),
    }
}
