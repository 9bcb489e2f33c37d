//! The table of tasks that `status` prints on a terminal and `watch` keeps up to date.
//!
//! Colours only repeat what the text says: yellow waits for the person, red is trouble, green is
//! done, and dim matters less.

use std::time::{Duration, SystemTime};

use crossterm::style::Stylize;

use crate::cli::reconcile::line::{Line, Span, cut, one_line, printable, unstyled, width};
use crate::domain::{Route, Usage};
use crate::ipc::{IpcText, Question};
use crate::news::Remedy;
use crate::task::{State, Task, View};
use crate::text::short_duration;

/// The least width of a terminal, in columns, in which the detail stands in the task's own line.
const WIDE: usize = 110;

/// The indices of the columns.
const ID: usize = 0;
const STATE: usize = 1;
const BAR: usize = 2;
const AGE: usize = 4;
const MODEL: usize = 5;
const COST: usize = 6;

/// The row of a task in the table. All text is printable.
#[derive(Clone, Debug)]
pub(super) struct TaskRow {
    pub(super) task: Task,
    pub(super) state: State,
    /// How many items are done, and how many there are.
    pub(super) items: (usize, usize),
    pub(super) model: String,
    pub(super) created: SystemTime,
    /// How long the last attempt ran; `None` while there is no end.
    pub(super) ran: Option<Duration>,
    pub(super) usage: Option<Usage>,
    /// The current item, or the reason for the state.
    pub(super) detail: String,
    /// The numbers and texts of the questions that wait for an answer.
    pub(super) questions: Vec<(String, String)>,
    /// The command that helps the task on, if it needs one.
    pub(super) next: Option<String>,
    /// `true` if the worker writes a log.
    pub(super) logs: bool,
}

impl TaskRow {
    pub(super) fn new(view: &View) -> Self {
        let question = |(question, found): &(Question, IpcText)| {
            let whole = found.is_whole;
            whole.then(|| (question.name.clone(), printable(found.text.trim())))
        };
        Self {
            task: view.task.clone(),
            state: view.state,
            items: (view.plan.done(), view.plan.items().len()),
            model: one_line(&view.record.name),
            created: SystemTime::now().checked_sub(view.age()).unwrap_or(SystemTime::UNIX_EPOCH),
            ran: view.exit.as_ref().map(|_| view.age()),
            usage: view.usage(),
            detail: one_line(&view.detail()),
            // A stopped or finished worker waits for no answer.
            questions: match view.state {
                State::Done | State::Stopped => Vec::new(),
                _ => view.questions.iter().filter_map(question).collect(),
            },
            next: Remedy::for_task(view).map(|remedy| remedy.command(view.task.id().as_str())),
            logs: view.record.route == Route::Cli,
        }
    }

    /// The oldest open question, or else the detail. No arrow in it looks like a command.
    pub(super) fn question_or_detail(&self) -> String {
        let text = match self.questions.first() {
            Some((number, text)) => format!("{number}: {}", one_line(text)),
            None => self.detail.clone(),
        };
        text.replace('→', ">")
    }

    fn count(&self) -> String {
        format!("{}/{}", self.items.0, self.items.1)
    }

    /// The task's age, or how long its last attempt ran. A growing age has no seconds.
    fn age(&self, now: SystemTime) -> String {
        match (self.ran, now.duration_since(self.created).unwrap_or_default()) {
            (Some(ran), _) => short_duration(ran),
            (None, age) if age.as_secs() < 60 => "<1m".into(),
            (None, age) => short_duration(age),
        }
    }

    fn cells(&self, now: SystemTime) -> [String; 7] {
        [
            self.task.id().to_string(),
            self.state.to_string(),
            "─".repeat(10),
            self.count(),
            self.age(now),
            self.model.clone(),
            cost(self.usage.as_ref()),
        ]
    }

    /// The row as a single line without ages, which changes with every change that matters.
    pub(super) fn line(&self) -> String {
        let detail = Some(self.question_or_detail()).filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(" — {detail}")).unwrap_or_default();
        let next = self.next.as_ref().map(|next| format!(" → {next}")).unwrap_or_default();
        format!("{} {} {}{detail}{next}", self.task.id(), self.state, self.count())
    }
}

/// How wide the columns of a table are. A column of width 0 is left out.
pub(super) struct Columns {
    widths: [usize; 7],
    /// `true` if the detail is in the task's own line.
    pub(super) wide: bool,
}

impl Columns {
    /// The columns for these rows in `total` columns of a terminal.
    pub(super) fn new(rows: &[TaskRow], total: usize, now: SystemTime) -> Self {
        let mut widths = [0; 7];
        for cells in rows.iter().map(|row| row.cells(now)) {
            widths.iter_mut().zip(cells).for_each(|(most, cell)| *most = width(&cell).max(*most));
        }
        widths[ID] = widths[ID].min(28);
        widths[MODEL] = widths[MODEL].min(16);
        // In a narrow terminal, the columns that say least shrink first.
        for (column, most) in [(ID, 12), (BAR, 5), (COST, 0), (MODEL, 0), (BAR, 0), (AGE, 0)] {
            let taken: usize = widths.iter().filter(|it| **it > 0).map(|it| it + 2).sum();
            if taken > total {
                widths[column] = widths[column].min(most);
            }
        }
        Self { widths, wide: total >= WIDE }
    }

    /// A task in one line, or in two where the terminal is narrow, after a mark if there is one.
    pub(super) fn lines(
        &self,
        row: &TaskRow,
        detail: String,
        mark: Option<Span>,
        now: SystemTime,
    ) -> Vec<Line> {
        let selected = mark.as_ref().is_some_and(|mark| !mark.content().trim().is_empty());
        let mut line = mark.map(Line::new).unwrap_or_default();
        for (column, cell) in row.cells(now).into_iter().enumerate() {
            let columns = self.widths[column];
            if columns == 0 {
                continue;
            }
            if column > 0 {
                line = line.with(unstyled("  "));
            }
            let cell = cut(&cell, columns);
            let gap = " ".repeat(columns - width(&cell));
            line = match column {
                ID if selected => line.with(format!("{cell}{gap}").bold()),
                ID | MODEL => line.with(unstyled(cell + &gap)),
                STATE => line.with(coloured(cell + &gap, row.state)),
                BAR => {
                    let done = filled(row.items, columns);
                    let bar = line.with(coloured("━".repeat(done), row.state));
                    bar.with("─".repeat(columns - done).dim())
                }
                AGE => line.with(format!("{gap}{cell}").dim()),
                _ => line.with(unstyled(gap + &cell)),
            };
        }
        let detail = if row.state <= State::Running { unstyled(detail) } else { detail.dim() };
        match self.wide {
            true => vec![line.with(unstyled("  ")).with(detail)],
            false => vec![line, Line::new(unstyled("    ")).with(detail)],
        }
    }
}

/// The text in the colour of a state.
pub(super) fn coloured(text: String, state: State) -> Span {
    match state {
        State::Asking | State::Blocked => text.dark_yellow(),
        State::Failed | State::Denied | State::Silent | State::Lost | State::Incomplete => {
            text.dark_red()
        }
        State::Running => unstyled(text),
        State::Held | State::Parked | State::Queued | State::Stopped => text.dim(),
        State::Done => text.dark_green(),
    }
}

/// How much of a bar is filled. Only no items leave it empty, and only all items fill it.
fn filled((done, all): (usize, usize), bar: usize) -> usize {
    match done {
        0 => 0,
        done if done >= all => bar,
        done => (bar * done / all).clamp(bar.min(1), bar.saturating_sub(1)),
    }
}

/// The cost in dollars, or in tokens where the CLI does not report money.
pub(super) fn cost(usage: Option<&Usage>) -> String {
    match usage {
        None => String::new(),
        Some(Usage { cost_usd: Some(dollars), .. }) => format!("${dollars:.2}"),
        Some(usage) => match [usage.output_tokens, usage.tokens]
            .into_iter()
            .fold(usage.input_tokens, u64::saturating_add)
        {
            tokens @ 0..1000 => format!("{tokens} tok"),
            tokens @ 1000..1_000_000 => format!("{}k tok", tokens / 1000),
            tokens => format!("{:.1}M tok", tokens as f64 / 1e6),
        },
    }
}
