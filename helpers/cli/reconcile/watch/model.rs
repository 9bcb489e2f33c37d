//! What is on the screen, and what each key does to it.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::cli::reconcile::watch::tasks::Row;
use crate::cli::reconcile::watch::text::{one_line, plain};
use crate::domain::TaskId;
use crate::task::{Label, Task};

/// How far the keys for a page go.
const PAGE: usize = 10;

/// What the person is at.
#[derive(Clone, Debug)]
pub(super) enum Mode {
    /// Looks at the tasks.
    Tasks,
    /// Writes the answer to that question.
    Answer { task: Task, question: String, text: String },
    /// Is asked whether to stop that task.
    Stop(Task),
    /// Looks at the log of that task.
    Log {
        task: Task,
        /// Its end; `None` before it was read.
        text: Option<String>,
        /// How many lines above the end.
        up: usize,
    },
}

/// What the person wants done.
#[derive(Debug)]
pub(super) enum Wish {
    Answer { task: Task, question: String, text: String },
    Stop(Task),
}

/// All that is shown.
pub(super) struct Model {
    /// The project's name.
    pub(super) project: String,
    /// The tasks, most urgent first; `None` before they were read.
    pub(super) rows: Option<Vec<Row>>,
    /// What is wrong with the tasks that cannot be read.
    pub(super) broken: Vec<String>,
    pub(super) mode: Mode,
    /// What became of the last wish.
    pub(super) message: String,
    /// Whether the person wants to see no more.
    pub(super) over: bool,
    selected: Option<TaskId>,
    /// Answers that were not taken while the person was at something else, and why.
    refused: Vec<(Mode, String)>,
}

impl Model {
    pub(super) fn new(project: String) -> Self {
        Self {
            project,
            rows: None,
            broken: Vec::new(),
            mode: Mode::Tasks,
            message: String::new(),
            over: false,
            selected: None,
            refused: Vec::new(),
        }
    }

    pub(super) fn rows(&self) -> &[Row] {
        self.rows.as_deref().unwrap_or_default()
    }

    pub(super) fn set_tasks(&mut self, rows: Vec<Row>, broken: Vec<String>) {
        let at = self.selected();
        (self.rows, self.broken) = (Some(rows), broken);
        // The place of a task that is gone.
        if !self.rows().iter().any(|row| Some(row.task.id()) == self.selected.as_ref()) {
            self.select(at);
        }
    }

    pub(super) fn set_log(&mut self, id: &TaskId, new: &str) {
        if let Mode::Log { task, text, .. } = &mut self.mode
            && task.id() == id
        {
            // Of a line that was written over, as progress is, the last text.
            let last = |line: &'_ str| plain(line.rsplit('\r').next().unwrap_or_default());
            *text = Some(new.lines().map(last).collect::<Vec<_>>().join("\n"));
        }
    }

    /// The index of the selected task.
    pub(super) fn selected(&self) -> usize {
        let is_it = |row: &Row| Some(row.task.id()) == self.selected.as_ref();
        self.rows().iter().position(is_it).unwrap_or_default()
    }

    fn select(&mut self, at: usize) {
        let row = self.rows().get(at).or(self.rows().last());
        self.selected = row.map(|row| row.task.id().clone());
    }

    /// The task whose log is shown.
    pub(super) fn log_of(&self) -> Option<Task> {
        match &self.mode {
            Mode::Log { task, .. } => Some(task.clone()),
            _ => None,
        }
    }

    /// How long until the age of a task has another text.
    pub(super) fn until_older(&self, now: SystemTime) -> Duration {
        let soonest = self.rows().iter().filter_map(|row| row.age.until_older(now)).min();
        soonest.unwrap_or(Duration::from_secs(3600))
    }

    /// Says that a wish is being done.
    pub(super) fn begin(&mut self, wish: &Wish) {
        self.message = match wish {
            Wish::Answer { task, question, .. } => format!("answering {}/{question} …", task.id()),
            Wish::Stop(task) => format!("stopping {} …", task.id()),
        };
    }

    /// Says what became of a wish. An answer that was not taken comes back, to be sent elsewhere.
    pub(super) fn end(&mut self, wish: Wish, result: Result<String>) {
        match (result, wish) {
            (Ok(line), _) => self.message = one_line(&line),
            (Err(error), wish) => {
                let lines: Vec<String> = format!("{error:#}").lines().map(one_line).collect();
                self.message = lines.join("; ");
                if let Wish::Answer { task, question, text } = wish {
                    let answer = Mode::Answer { task, question, text };
                    self.refused.push((answer, self.message.clone()));
                    self.give_back();
                }
            }
        }
    }

    /// Lets the person go on with an answer that was not taken, as soon as nothing else is open.
    fn give_back(&mut self) {
        if matches!(self.mode, Mode::Tasks)
            && let Some(refused) = self.refused.pop()
        {
            (self.mode, self.message) = refused;
        }
    }

    /// Takes in text that was pasted, which may have many lines.
    pub(super) fn paste(&mut self, pasted: &str) {
        if let Mode::Answer { text, .. } = &mut self.mode {
            text.push_str(&plain(&pasted.replace("\r\n", "\n").replace('\r', "\n")));
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        let wish = self.key_in_mode(key);
        self.give_back();
        wish
    }

    fn key_in_mode(&mut self, key: KeyEvent) -> Option<Wish> {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && key.code == KeyCode::Char('c') {
            self.over = true;
        }
        self.message.clear();
        match std::mem::replace(&mut self.mode, Mode::Tasks) {
            Mode::Tasks => {
                self.key_in_tasks(key.code);
                None
            }
            Mode::Answer { task, question, mut text } => {
                match key.code {
                    KeyCode::Esc => return None,
                    KeyCode::Enter if !text.trim().is_empty() => {
                        return Some(Wish::Answer { task, question, text });
                    }
                    KeyCode::Backspace => drop(text.pop()),
                    // What the key for it sends on some terminals.
                    KeyCode::Char('h') if control => drop(text.pop()),
                    KeyCode::Char('u') if control => text.clear(),
                    KeyCode::Char(c) if !control => text.push_str(&plain(&c.to_string())),
                    _ => {}
                }
                self.mode = Mode::Answer { task, question, text };
                None
            }
            Mode::Stop(task) => (key.code == KeyCode::Char('y')).then_some(Wish::Stop(task)),
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
                None
            }
        }
    }

    fn key_in_tasks(&mut self, key: KeyCode) {
        let at = self.selected();
        let row = self.rows().get(at).cloned();
        match (key, row) {
            (KeyCode::Char('q'), _) => self.over = true,
            (KeyCode::Up | KeyCode::Char('k'), _) => self.select(at.saturating_sub(1)),
            (KeyCode::Down | KeyCode::Char('j'), _) => self.select(at + 1),
            (KeyCode::PageUp, _) => self.select(at.saturating_sub(PAGE)),
            (KeyCode::PageDown, _) => self.select(at + PAGE),
            (KeyCode::Home, _) => self.select(0),
            (KeyCode::End, _) => self.select(usize::MAX),
            // Not that of another task, when this one wants an answer too.
            (KeyCode::Char('a'), Some(row))
                if row.label == Label::Blocked && row.questions.is_empty() =>
            {
                let id = row.task.id();
                self.message = format!(
                    "{id} asks in its plan: dispatch-reconcile note {id} TEXT answers, dispatch-spawn {id} --resume goes on"
                );
            }
            (KeyCode::Char('a'), Some(row)) => match self.question(&row) {
                Some((task, question)) => {
                    self.mode = Mode::Answer { task, question, text: String::new() };
                }
                None => self.message = "no open question".into(),
            },
            (KeyCode::Char('l') | KeyCode::Enter, Some(row)) if row.logs => {
                self.mode = Mode::Log { task: row.task, text: None, up: 0 };
            }
            (KeyCode::Char('l') | KeyCode::Enter, Some(row)) => {
                self.message =
                    format!("{} is an agent of the host, which has its log", row.task.id());
            }
            (KeyCode::Char('s'), Some(row)) => self.mode = Mode::Stop(row.task),
            _ => {}
        }
    }

    /// The question to answer: the oldest one of that task, else the first on the screen.
    fn question(&self, selected: &Row) -> Option<(Task, String)> {
        let mut rows = std::iter::once(selected).chain(self.rows());
        rows.find_map(|row| Some((row.task.clone(), row.questions.first()?.0.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_taken_comes_back_when_nothing_else_is_open() {
        let task = Task::new("x".into(), "x".parse().expect("an id"));
        let answer = |text: &str| {
            let (task, question) = (task.clone(), "001".to_owned());
            Wish::Answer { task, question, text: text.into() }
        };
        let mut model = Model::new("shop".into());
        model.mode = Mode::Log { task: task.clone(), text: None, up: 0 };
        model.end(answer("one"), Err(anyhow::anyhow!("it has one")));
        model.end(answer("two"), Err(anyhow::anyhow!("it has one")));
        assert!(matches!(model.mode, Mode::Log { .. }));
        for typed in ["two", "one"] {
            model.key(KeyCode::Esc.into());
            let Mode::Answer { text, .. } = &model.mode else { panic!("{:?}", model.mode) };
            assert_eq!((text.as_str(), model.message.as_str()), (typed, "it has one"));
        }
        model.key(KeyCode::Esc.into());
        assert!(matches!(model.mode, Mode::Tasks));
    }
}
