//! `dispatch-reconcile watch`: all tasks on a terminal, live, with keys for the person. `status --follow`:
//! a line for each task that changes.
//!
//! A thread reads the keys and another waits for the tasks' files and processes. Both send updates
//! to the thread that draws.

mod dashboard;
mod screen;

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write, stdout};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ColorChoice;
use crossterm::event::{self, Event as Input, KeyEventKind};
use crossterm::terminal::{self, Clear, ClearType};
use crossterm::{cursor, execute, queue, style::Print};

use crate::cli::reconcile::status::{self, StatusArgs, broken_line};
use crate::cli::reconcile::table::{TaskRow, one_line};
use crate::cli::{complain, say};
use crate::error::Exit;
use crate::fault;
use crate::ops::{answer, stop};
use crate::project::Project;
use crate::repair::repair;
use crate::task::State;
use crate::text::{sanitize, sort};
use crate::wait::LiveTasks;
use dashboard::{Answer, Dashboard, Wish};

/// How often the ages are drawn again, which have no unit below a minute.
const AGES: Duration = Duration::from_secs(60);

/// How often a log is read again while it is shown.
const LOG: Duration = Duration::from_millis(250);

/// A message to the thread that draws.
enum Update {
    /// The tasks as they are now, and a line for each that cannot be read.
    Tasks(Vec<TaskRow>, Vec<String>),
    /// A key, a pasted text, or a new size of the terminal.
    Input(Input),
    /// A wish was carried out, with this result.
    Done(Wish, Result<String>),
    /// The end: a signal came, or a thread failed.
    End(Result<()>),
}

/// Draws the tasks after every update, until the person leaves or a signal comes.
pub(super) fn watch(project: &Project, color: ColorChoice) -> Result<Exit> {
    let can_move = std::env::var("TERM").is_ok_and(|term| term != "dumb");
    if !can_move || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        let why =
            "watch needs a terminal; this is the status now (dispatch-monitor waits for news)";
        complain(format!("dispatch-reconcile: {why}"));
        return status::status(project, &StatusArgs { color, ..StatusArgs::default() });
    }
    status::has_colors(color);
    // Before the terminal is changed, so that no signal ends the program without restoring it.
    let tasks = LiveTasks::new(project.clone(), Vec::new(), None)?;
    let mut screen = Screen::enter()?;
    let (sender, updates) = channel();
    let of_tasks = project.clone();
    spawn(&sender, move |sender| send_tasks(&of_tasks, tasks, sender));
    spawn(&sender, send_input);
    let name = project.root.file_name().unwrap_or_else(|| project.root.as_os_str());
    let mut dashboard = Dashboard::new(one_line(&name.to_string_lossy()));
    let mut wishes = Vec::new();
    let result = show(&mut screen, &mut dashboard, &sender, &updates, &mut wishes);
    drop(screen);
    // A stop that began is carried out, and its result goes to the ordinary screen.
    wishes.into_iter().for_each(|wish| drop(wish.join()));
    for update in updates.try_iter() {
        if let Update::Done(_, result) = update {
            say(result?);
        }
    }
    result.map(|()| Exit::Ok)
}

/// Draws and handles updates until the end. Wishes are carried out in threads, because a worker may
/// take seconds to stop.
fn show(
    screen: &mut Screen,
    dashboard: &mut Dashboard,
    sender: &Sender<Update>,
    updates: &Receiver<Update>,
    wishes: &mut Vec<JoinHandle<()>>,
) -> Result<()> {
    let mut pause = AGES;
    loop {
        let first = updates.recv_timeout(pause).ok();
        for update in first.into_iter().chain(updates.try_iter()) {
            match update {
                Update::Tasks(rows, broken) => dashboard.set_tasks(rows, broken),
                Update::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                    if let Some(wish) = dashboard.key(key) {
                        dashboard.begin(&wish);
                        wishes.push(spawn(sender, move |sender| {
                            let result = fulfil(&wish);
                            sender.send(Update::Done(wish, result)).or(Ok(()))
                        }));
                    }
                }
                Update::Input(Input::Paste(text)) => dashboard.paste(&text),
                Update::Input(_) => {}
                Update::Done(wish, result) => dashboard.end(&wish, result),
                Update::End(result) => return result,
            }
        }
        if dashboard.over {
            return Ok(());
        }
        pause = if dashboard.read_log() { LOG } else { AGES };
        screen.draw(dashboard)?;
        assert!(!fault::fails("watch"), "a test makes watch fail");
    }
}

/// Runs a thread that sends updates. If it fails, everything ends.
fn spawn(
    sender: &Sender<Update>,
    body: impl FnOnce(&Sender<Update>) -> Result<()> + Send + 'static,
) -> JoinHandle<()> {
    let sender = sender.clone();
    thread::spawn(move || {
        if let Err(error) = body(&sender) {
            let _ = sender.send(Update::End(Err(error)));
        }
    })
}

/// Sends the tasks whenever they have changed.
fn send_tasks(project: &Project, tasks: LiveTasks, sender: &Sender<Update>) -> Result<()> {
    let mut repaired = false;
    tell_of_changes(tasks, &mut |rows, broken| {
        let is_shown = sender.send(Update::Tasks(rows, broken)).is_ok();
        // Repair after the first look: it may start supervisors, which takes a while.
        if !std::mem::replace(&mut repaired, true) {
            repair(project, project.task_list());
        }
        is_shown
    })?;
    sender.send(Update::End(Ok(()))).or(Ok(()))
}

/// Sends what the person types.
fn send_input(sender: &Sender<Update>) -> Result<()> {
    loop {
        let input = event::read().context("cannot read the keys")?;
        if sender.send(Update::Input(input)).is_err() {
            return Ok(());
        }
    }
}

fn fulfil(wish: &Wish) -> Result<String> {
    match wish {
        Wish::Answer(Answer { task, question, text }) => answer::answer(task, question, text),
        Wish::Stop(task) => stop::stop(task),
    }
}

/// The terminal while it shows the tasks. Dropping it restores the terminal, and so does a panic.
struct Screen;

impl Screen {
    fn enter() -> Result<Self> {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            Self::leave();
            previous(panic);
            // No thread works without the others.
            std::process::exit(i32::from(Exit::Failed as u8));
        }));
        let screen = Self;
        terminal::enable_raw_mode().context("cannot set the terminal up")?;
        execute!(
            std::io::stdout(),
            terminal::EnterAlternateScreen,
            terminal::DisableLineWrap,
            event::EnableBracketedPaste,
            cursor::Hide
        )
        .context("cannot write to the terminal")?;
        Ok(screen)
    }

    fn leave() {
        let _ = execute!(
            std::io::stdout(),
            terminal::EndSynchronizedUpdate,
            event::DisableBracketedPaste,
            terminal::EnableLineWrap,
            terminal::LeaveAlternateScreen,
            cursor::Show
        );
        let _ = terminal::disable_raw_mode();
    }

    fn draw(&mut self, dashboard: &Dashboard) -> Result<()> {
        let (columns, rows) = terminal::size().context("cannot ask for the terminal's size")?;
        let (lines, cursor) = screen::frame(dashboard, columns.into(), rows.into());
        let mut out = Vec::new();
        queue!(out, terminal::BeginSynchronizedUpdate, cursor::Hide)?;
        for (row, line) in (0..).zip(&lines) {
            queue!(out, cursor::MoveTo(0, row), Clear(ClearType::CurrentLine), Print(line))?;
        }
        if let Some((column, row)) = cursor {
            queue!(out, cursor::MoveTo(column as u16, row as u16), cursor::Show)?;
        }
        queue!(out, terminal::EndSynchronizedUpdate)?;
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&out).and_then(|()| stdout.flush()).context("cannot write to the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::leave();
    }
}

/// Tells of the tasks at once, and again whenever they have changed, until a signal comes or nobody
/// listens any more.
pub(super) fn tell_of_changes(
    mut tasks: LiveTasks,
    tell: &mut dyn FnMut(Vec<TaskRow>, Vec<String>) -> bool,
) -> Result<()> {
    let mut rows: BTreeMap<PathBuf, Result<TaskRow, String>> = BTreeMap::new();
    let (mut broken, mut told) = (Vec::new(), false);
    loop {
        let read = tasks.refresh();
        let lines = tasks.broken().iter().map(|it| one_line(&broken_line(it))).collect();
        let mut changed = std::mem::replace(&mut broken, lines) != broken;
        for id in read {
            let Some(read) = tasks.get(&id) else { continue };
            let row = read.as_ref().map(TaskRow::new).map_err(|it| one_line(&broken_line(it)));
            changed |= rows.insert(id, row.clone()) != Some(row);
        }
        let before = rows.len();
        rows.retain(|id, _| tasks.get(id).is_some());
        changed |= rows.len() < before;
        if changed || !told {
            let mut readable: Vec<TaskRow> = rows.values().flatten().cloned().collect();
            sort(&mut readable, |one, other| one.state.cmp(&other.state));
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

/// Prints the tasks that are not done, and then each task that changes, until a signal comes.
pub(super) fn follow(project: &Project) -> Result<Exit> {
    let tasks = LiveTasks::new(project.clone(), Vec::new(), None)?;
    repair(project, project.task_list());
    let mut printed: Option<Vec<String>> = None;
    tell_of_changes(tasks, &mut |rows, broken| {
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
