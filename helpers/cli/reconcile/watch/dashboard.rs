//! The state of the screen, and how each key changes it.

use anyhow::Result;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::cli::reconcile::table::{TaskRow, one_line, printable};
use crate::domain::TaskId;
use crate::task::{State, Task, output};

/// How many lines or tasks the keys for a page move.
const PAGE: usize = 10;

/// An answer to a question of a task.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) task: Task,
    pub(super) question: String,
    pub(super) text: String,
}

/// The current activity of the person.
#[derive(Clone, Debug, Default)]
pub(super) enum Mode {
    /// Looks at the tasks.
    #[default]
    Tasks,
    /// Writes an answer.
    Answer(Answer),
    /// Is asked whether to stop the task.
    Stop(Task),
    /// Reads the log of a task.
    Log {
        task: Task,
        /// The end of the log.
        text: String,
        /// How many lines above the end.
        up: usize,
    },
}

/// An action that the person requested.
#[derive(Debug)]
pub(super) enum Wish {
    Answer(Answer),
    Stop(Task),
}

/// Everything that is shown.
#[derive(Default)]
pub(super) struct Dashboard {
    /// The project's name.
    pub(super) project: String,
    /// The tasks, most urgent first.
    pub(super) rows: Vec<TaskRow>,
    /// A line for each unreadable task.
    pub(super) broken: Vec<String>,
    pub(super) mode: Mode,
    /// The result of the last wish.
    pub(super) message: String,
    /// `true` if the person wants to leave.
    pub(super) over: bool,
    selected: Option<TaskId>,
}

impl Dashboard {
    pub(super) fn new(project: String) -> Self {
        Self { project, ..Self::default() }
    }

    pub(super) fn set_tasks(&mut self, rows: Vec<TaskRow>, broken: Vec<String>) {
        let at = self.selected();
        (self.rows, self.broken) = (rows, broken);
        // If the selected task is gone, its place stays selected.
        if !self.rows.iter().any(|row| Some(row.task.id()) == self.selected.as_ref()) {
            self.select(at);
        }
    }

    /// Reads the log that is shown; `false` if none is.
    pub(super) fn read_log(&mut self) -> bool {
        let Mode::Log { task, text, .. } = &mut self.mode else { return false };
        let log = task.last_attempt().map(|attempt| attempt.log_end()).unwrap_or_default();
        let words: Vec<String> = log.lines().filter_map(output::readable).collect();
        // A progress line overwrites itself; only its last text is shown.
        let last = |line: &str| printable(line.rsplit('\r').next().unwrap_or_default());
        *text = words.iter().flat_map(|it| it.lines()).map(last).collect::<Vec<_>>().join("\n");
        true
    }

    /// The index of the selected task.
    pub(super) fn selected(&self) -> usize {
        let is_selected = |row: &TaskRow| Some(row.task.id()) == self.selected.as_ref();
        self.rows.iter().position(is_selected).unwrap_or_default()
    }

    fn select(&mut self, at: usize) {
        let row = self.rows.get(at).or(self.rows.last());
        self.selected = row.map(|row| row.task.id().clone());
    }

    /// Shows that a wish is being carried out.
    pub(super) fn begin(&mut self, wish: &Wish) {
        self.message = match wish {
            Wish::Answer(it) => format!("answering {}/{} …", it.task.id(), it.question),
            Wish::Stop(task) => format!("stopping {} …", task.id()),
        };
    }

    /// Shows the result of a wish. A refused answer stays open, so that its text is not lost.
    pub(super) fn end(&mut self, wish: &Wish, result: Result<String>) {
        if let (Wish::Answer(sent), Mode::Answer(open), Ok(_)) = (wish, &self.mode, &result)
            && (sent.task.id(), &sent.question) == (open.task.id(), &open.question)
        {
            self.mode = Mode::Tasks;
        }
        let error = |error| format!("{error:#}").replace('\n', ";");
        self.message = one_line(&result.unwrap_or_else(error));
    }

    /// Inserts pasted text, which may have many lines.
    pub(super) fn paste(&mut self, pasted: &str) {
        if let Mode::Answer(answer) = &mut self.mode {
            answer.text.push_str(&printable(&pasted.replace("\r\n", "\n").replace('\r', "\n")));
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        self.over |= control && key.code == KeyCode::Char('c');
        self.message.clear();
        match std::mem::take(&mut self.mode) {
            Mode::Tasks => self.key_in_tasks(key.code),
            Mode::Answer(mut answer) => {
                match key.code {
                    KeyCode::Esc => return None,
                    // The editor stays until the answer was taken.
                    KeyCode::Enter if !answer.text.trim().is_empty() => {
                        self.mode = Mode::Answer(answer.clone());
                        return Some(Wish::Answer(answer));
                    }
                    KeyCode::Backspace => drop(answer.text.pop()),
                    // Some terminals send it for the backspace key.
                    KeyCode::Char('h') if control => drop(answer.text.pop()),
                    KeyCode::Char('u') if control => answer.text.clear(),
                    KeyCode::Char(c) if !control => answer.text += &printable(&c.to_string()),
                    _ => {}
                }
                self.mode = Mode::Answer(answer);
            }
            Mode::Stop(task) => {
                return (key.code == KeyCode::Char('y')).then_some(Wish::Stop(task));
            }
            Mode::Log { task, text, up } => {
                let up = match key.code {
                    KeyCode::Esc | KeyCode::Char('q' | 'l') => return None,
                    KeyCode::Up | KeyCode::Char('k') => up + 1,
                    KeyCode::Down | KeyCode::Char('j') => up.saturating_sub(1),
                    KeyCode::PageUp => up + PAGE,
                    KeyCode::PageDown => up.saturating_sub(PAGE),
                    _ => up,
                };
                self.mode = Mode::Log { task, text, up };
            }
        }
        None
    }

    fn key_in_tasks(&mut self, key: KeyCode) {
        let at = self.selected();
        match (key, self.rows.get(at).cloned()) {
            (KeyCode::Char('q'), _) => self.over = true,
            (KeyCode::Up | KeyCode::Char('k'), _) => self.select(at.saturating_sub(1)),
            (KeyCode::Down | KeyCode::Char('j'), _) => self.select(at + 1),
            (KeyCode::PageUp, _) => self.select(at.saturating_sub(PAGE)),
            (KeyCode::PageDown, _) => self.select(at + PAGE),
            (KeyCode::Home, _) => self.select(0),
            (KeyCode::End, _) => self.select(usize::MAX),
            (KeyCode::Char('a'), Some(row)) => self.open_answer(&row),
            (KeyCode::Char('l') | KeyCode::Enter, Some(row)) if row.logs => {
                self.mode = Mode::Log { task: row.task, text: String::new(), up: 0 };
            }
            (KeyCode::Char('l') | KeyCode::Enter, Some(row)) => {
                let id = row.task.id();
                self.message = format!("{id} is an agent of the host, which has its log");
            }
            (KeyCode::Char('s'), Some(row)) => self.mode = Mode::Stop(row.task),
            _ => {}
        }
    }

    /// Opens the oldest question of the selected task, or else the first one on the screen.
    fn open_answer(&mut self, selected: &TaskRow) {
        let id = selected.task.id();
        // A blocked task without a question must not open the question of another task.
        if selected.state == State::Blocked && selected.questions.is_empty() {
            self.message = format!(
                "{id} asks in its plan: answer with dispatch-reconcile note {id} TEXT, then dispatch-spawn {id} --resume"
            );
            return;
        }
        let open = |row: &TaskRow| Some((row.task.clone(), row.questions.first()?.0.clone()));
        match std::iter::once(selected).chain(&self.rows).find_map(open) {
            Some((task, question)) => {
                self.mode = Mode::Answer(Answer { task, question, text: String::new() });
            }
            None => self.message = "no open question".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_answer_stays_in_the_editor() {
        let task = Task::new("x".parse().expect("an id"), "x".into(), "x".into());
        let answer = Answer { task, question: "001".into(), text: "this".into() };
        let mut dashboard = Dashboard::new("shop".into());
        dashboard.mode = Mode::Answer(answer);
        for (result, is_open) in
            [(Err(anyhow::anyhow!("it has\none")), true), (Ok("answered".to_owned()), false)]
        {
            let wish = dashboard.key(KeyCode::Enter.into()).expect("an answer");
            dashboard.end(&wish, result);
            assert_eq!(matches!(&dashboard.mode, Mode::Answer(it) if it.text == "this"), is_open);
            assert_eq!(dashboard.message, if is_open { "it has;one" } else { "answered" });
        }
        assert!(matches!(dashboard.mode, Mode::Tasks));
    }
}
