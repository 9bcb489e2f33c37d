//! `dispatch-reconcile watch`: all tasks on a terminal, live, for a person.
//!
//! One thread reads the keys, one waits for the tasks' files and processes, and whatever takes long
//! gets one of its own; all send what they see to the one that draws. Nothing is drawn on a timer,
//! except when an age that is shown has another text.

mod model;
mod screen;
mod tasks;
mod text;

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use crossterm::event::{
    self, DisableBracketedPaste, EnableBracketedPaste, Event as Input, KeyEventKind,
};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
    EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{cursor, execute, queue, terminal};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::reconcile::{status, stop};
use crate::cli::{monitor, say};
use crate::domain::TaskId;
use crate::exit::Exit;
use crate::fault;
use crate::process::{Watch, Woken};
use crate::project::Project;
use crate::repair::repair;
use crate::task::{Task, output};
use crate::wait::SAFETY_SCAN;
use model::{Model, Wish};
use tasks::{Row, Tasks};

/// How long a log that is written to without a pause is left alone between two looks.
const LOG_PAUSE: Duration = Duration::from_millis(50);

/// What the thread that draws is told.
enum Event {
    /// The tasks as they are now, and what is wrong with those that cannot be read.
    Tasks(Vec<Row>, Vec<String>),
    /// A key, a text that was pasted, or another size of the terminal.
    Input(Input),
    /// The end of a task's log.
    Log(TaskId, String),
    /// What became of a wish.
    Done(Wish, Result<String>),
    /// The person wants it or the terminal is gone, or something is wrong.
    End(Result<()>),
}

pub(super) fn watch(project: &Project, json: bool) -> Result<Exit> {
    let can_move = std::env::var("TERM").is_ok_and(|term| term != "dumb");
    if json || !can_move || !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        let why = "watch needs a terminal to draw on; this is the status now (dispatch-monitor waits for news)";
        let _ = writeln!(std::io::stderr(), "dispatch-reconcile: {why}");
        return status::status(project, false, json);
    }
    // Before the terminal is changed: from here on no signal ends this without putting it back.
    let signals = Watch::new(&[SIGINT, SIGTERM, SIGHUP])?;
    let mut screen = Screen::enter()?;
    let (sender, events) = channel();
    spawn(&sender, {
        let (sender, project) = (sender.clone(), project.clone());
        move || look(project, signals, &sender)
    });
    spawn(&sender, {
        let sender = sender.clone();
        move || read_keys(&sender)
    });
    spawn(&sender, {
        let sender = sender.clone();
        move || wait_for_hangup(&sender)
    });
    let mut begun = Vec::new();
    let result = show(project, &mut screen, &sender, &events, &mut begun);
    drop(screen);
    // What the person wished for is brought to its end, and said on the ordinary screen.
    begun.into_iter().for_each(|thread| drop(thread.join()));
    for event in events.try_iter() {
        if let Event::Done(_, result) = event {
            say(result?);
        }
    }
    result.map(|()| Exit::Ok)
}

/// Draws and does what it is told until that is to end.
fn show(
    project: &Project,
    screen: &mut Screen,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
    begun: &mut Vec<JoinHandle<()>>,
) -> Result<()> {
    let name = project.root().file_name().unwrap_or_else(|| project.root().as_os_str());
    let mut model = Model::new(text::one_line(&name.to_string_lossy()));
    let mut log: Option<Arc<TaskId>> = None;
    loop {
        screen.draw(&model)?;
        assert!(!fault::fails("watch"), "as a test wants it");
        let first = match events.recv_timeout(model.until_older(SystemTime::now())) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for event in first.into_iter().chain(events.try_iter()) {
            match event {
                Event::Tasks(rows, broken) => model.set_tasks(rows, broken),
                Event::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                    if let Some(wish) = model.key(key) {
                        model.begin(&wish);
                        let sender = sender.clone();
                        begun.push(thread::spawn(move || {
                            let result = fulfil(&wish);
                            let _ = sender.send(Event::Done(wish, result));
                        }));
                    }
                }
                Event::Input(Input::Paste(text)) => model.paste(&text),
                Event::Input(_) => {}
                Event::Log(id, text) => model.set_log(&id, &text),
                Event::Done(wish, result) => model.end(wish, result),
                Event::End(result) => return result,
            }
        }
        if model.over {
            return Ok(());
        }
        let wanted = model.log_of();
        if wanted.as_ref().map(Task::id) != log.as_deref() {
            log = wanted.map(|task| {
                let id = Arc::new(task.id().clone());
                let (shown, sender_of_log) = (Arc::downgrade(&id), sender.clone());
                spawn(sender, move || follow_log(&task, &shown, &sender_of_log));
                id
            });
        }
    }
}

/// Runs something beside the rest, which ends with it if it fails.
fn spawn(sender: &Sender<Event>, body: impl FnOnce() -> Result<()> + Send + 'static) {
    let sender = sender.clone();
    thread::spawn(move || {
        if let Err(error) = body() {
            let _ = sender.send(Event::End(Err(error)));
        }
    });
}

/// Sends the tasks whenever they have changed.
fn look(project: Project, mut watch: Watch, sender: &Sender<Event>) -> Result<()> {
    let mut tasks = Tasks::new(project.clone());
    let mut mended = false;
    let mut all = true;
    loop {
        if tasks.refresh(&mut watch, all) || !mended {
            let (rows, broken) = tasks.rows();
            if sender.send(Event::Tasks(rows, broken)).is_err() {
                return Ok(());
            }
        }
        // After the first look, because it may start supervisors, which takes a while.
        if !std::mem::replace(&mut mended, true) {
            repair(&project, project.found());
        }
        all = match watch.wait_for_event(SAFETY_SCAN)? {
            Woken::Signal(_) => return sender.send(Event::End(Ok(()))).or(Ok(())),
            Woken::Changed => true,
            Woken::Timeout => false,
        };
    }
}

/// Sends what is typed.
fn read_keys(sender: &Sender<Event>) -> Result<()> {
    loop {
        let input = event::read().context("cannot read the keys")?;
        if sender.send(Event::Input(input)).is_err() {
            return Ok(());
        }
    }
}

/// Ends it all when the terminal is gone, from which the library would read for ever.
fn wait_for_hangup(sender: &Sender<Event>) -> Result<()> {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
    while let Err(error) = poll(&mut fds, PollTimeout::NONE) {
        if error != Errno::EINTR {
            return Err(error).context("cannot wait for the terminal");
        }
    }
    // Where a terminal cannot be waited for, the signal tells of its end.
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    if fds[0].revents().is_some_and(|events| events.intersects(gone)) {
        let _ = sender.send(Event::End(Ok(())));
    }
    Ok(())
}

/// Sends the end of the log of a task's last attempt, for as long as it is shown.
fn follow_log(task: &Task, shown: &Weak<TaskId>, sender: &Sender<Event>) -> Result<()> {
    let mut watch = Watch::new(&[])?;
    let mut last = None;
    while shown.strong_count() > 0 {
        watch.add_directory(&task.directory().join("worker"));
        let attempt = task.last_attempt();
        if let Some(attempt) = &attempt {
            watch.add_directory(attempt.directory());
            watch.add_file(&attempt.log_path());
        }
        let text = attempt.map(|attempt| in_words(&attempt.log_end()));
        if text != last {
            let event = Event::Log(task.id().clone(), text.clone().unwrap_or_default());
            if sender.send(event).is_err() {
                break;
            }
            last = text;
            thread::sleep(LOG_PAUSE);
        }
        watch.wait_for_event(SAFETY_SCAN)?;
    }
    Ok(())
}

/// A log as a person reads it.
fn in_words(log: &str) -> String {
    log.lines().filter_map(output::in_words).collect::<Vec<_>>().join("\n")
}

fn fulfil(wish: &Wish) -> Result<String> {
    match wish {
        Wish::Answer { task, question, text } => monitor::answer(task, question, text),
        Wish::Stop(task) => stop::stop(task),
    }
}

/// The terminal while it shows the tasks. Put back when dropped, and when anything panics.
struct Screen {
    size: (u16, u16),
    /// What stands in each row now.
    lines: Vec<String>,
}

impl Screen {
    fn enter() -> Result<Self> {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            Self::leave();
            previous(panic);
            // Of several threads, none goes on without the others.
            std::process::exit(i32::from(Exit::Failed as u8));
        }));
        let screen = Self { size: (0, 0), lines: Vec::new() };
        terminal::enable_raw_mode().context("cannot set the terminal up")?;
        execute!(
            std::io::stdout(),
            EnterAlternateScreen,
            DisableLineWrap,
            EnableBracketedPaste,
            cursor::Hide
        )
        .context("cannot write to the terminal")?;
        Ok(screen)
    }

    fn leave() {
        let _ = execute!(
            std::io::stdout(),
            EndSynchronizedUpdate,
            DisableBracketedPaste,
            EnableLineWrap,
            LeaveAlternateScreen,
            cursor::Show
        );
        let _ = terminal::disable_raw_mode();
    }

    /// Writes the rows that have changed.
    fn draw(&mut self, model: &Model) -> Result<()> {
        let size = terminal::size().context("cannot ask for the terminal's size")?;
        let frame = screen::frame(model, size.0.into(), size.1.into(), SystemTime::now());
        let mut lines: Vec<String> = frame.lines.iter().map(ToString::to_string).collect();
        lines.resize(size.1.into(), String::new());
        let mut out = Vec::new();
        queue!(out, BeginSynchronizedUpdate, cursor::Hide)?;
        if self.size != size {
            queue!(out, Clear(ClearType::All))?;
            self.lines = vec![String::new(); lines.len()];
        }
        for (row, (line, old)) in (0..).zip(lines.iter().zip(&self.lines)) {
            if line != old {
                queue!(out, cursor::MoveTo(0, row), Clear(ClearType::CurrentLine))?;
                out.extend_from_slice(line.as_bytes());
            }
        }
        if let Some((column, row)) = frame.cursor {
            queue!(out, cursor::MoveTo(column as u16, row as u16), cursor::Show)?;
        }
        queue!(out, EndSynchronizedUpdate)?;
        (self.size, self.lines) = (size, lines);
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&out).and_then(|()| stdout.flush()).context("cannot write to the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        Self::leave();
    }
}
