//! The table of tasks that `status` prints on a terminal and `watch` keeps up to date, and its styled lines
//! of text without control characters, measured in columns.
//!
//! Colours only repeat what the text says: yellow waits for the person, red is trouble, green is
//! done, and dim matters less.

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime};

use crossterm::style::{StyledContent, Stylize};
use unicode_width::UnicodeWidthChar;

use crate::domain::{Route, Usage};
use crate::ipc::{IpcText, Question};
use crate::news::remedy;
use crate::task::{State, Task, View};
use crate::text::{sanitize, short_duration};

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
#[derive(Clone, Debug, PartialEq)]
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
            created: humantime::parse_rfc3339(&view.record.created)
                .unwrap_or_else(|_| SystemTime::now()),
            ran: view.exit.as_ref().map(|_| view.age()),
            usage: view.usage(),
            detail: one_line(&view.detail()),
            // A stopped or finished worker waits for no answer.
            questions: match view.state {
                State::Done | State::Stopped => Vec::new(),
                _ => view.questions.iter().filter_map(question).collect(),
            },
            next: remedy(view),
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
    fn age(&self) -> String {
        match (self.ran, self.created.elapsed().unwrap_or_default()) {
            (Some(ran), _) => short_duration(ran),
            (None, age) if age.as_secs() < 60 => "<1m".into(),
            (None, age) => short_duration(age),
        }
    }

    fn cells(&self) -> [String; 7] {
        [
            self.task.id().to_string(),
            self.state.to_string(),
            "─".repeat(10),
            self.count(),
            self.age(),
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
    pub(super) fn new(rows: &[TaskRow], total: usize) -> Self {
        let mut widths = [0; 7];
        for cells in rows.iter().map(TaskRow::cells) {
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

    /// A task in one line, or in two where the terminal is narrow; after a mark if it may be `selected`.
    pub(super) fn lines(&self, row: &TaskRow, detail: String, selected: Option<bool>) -> Vec<Line> {
        let mark =
            |is_selected| if is_selected { "› ".to_owned().bold() } else { unstyled("  ") };
        let mut line = selected.map(mark).map(Line::new).unwrap_or_default();
        let cells = row.cells().into_iter().enumerate();
        for (column, cell) in cells.filter(|(column, _)| self.widths[*column] > 0) {
            let columns = self.widths[column];
            if column > 0 {
                line = line.with(unstyled("  "));
            }
            let cell = cut(&cell, columns);
            let gap = " ".repeat(columns - width(&cell));
            line = match column {
                ID if selected == Some(true) => line.with(format!("{cell}{gap}").bold()),
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
        State::Running => unstyled(text),
        State::Held | State::Parked | State::Queued | State::Stopped => text.dim(),
        State::Done => text.dark_green(),
        _ => text.dark_red(),
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

/// A piece of text in one style.
pub(super) type Span = StyledContent<String>;

pub(super) fn unstyled(text: impl Into<String>) -> Span {
    text.into().stylize()
}

/// A line of styled text. Displays as the text with the escape sequences of its styles.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<Span>);

impl Line {
    pub(super) fn new(span: Span) -> Self {
        Self(vec![span])
    }

    pub(super) fn with(mut self, span: Span) -> Self {
        self.0.push(span);
        self
    }

    /// The text without its styles.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|span| span.content().as_str()).collect()
    }

    pub(super) fn width(&self) -> usize {
        width(&self.text())
    }

    /// Prints the line with its styles; the text has none of its own.
    pub(super) fn print(&self) {
        let clean = |span: &Span| StyledContent::new(*span.style(), sanitize(span.content()));
        let line = Self(self.0.iter().map(clean).collect());
        // A reader that has gone away is no error.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    /// The line cut to `most` columns.
    pub(super) fn cut(self, most: usize) -> Self {
        let mut left = most;
        let fit = |span: Span| {
            let text = cut(span.content(), left);
            left -= width(&text);
            StyledContent::new(*span.style(), text)
        };
        Self(self.0.into_iter().map(fit).collect())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|span| span.fmt(f))
    }
}

/// The text without tabs and whatever a terminal would obey or hide. Line ends stay.
pub(super) fn printable(text: &str) -> String {
    sanitize(text).replace('\t', " ")
}

/// The printable text with its lines joined by `⏎`.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    printable(&lines.join(" ⏎ "))
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// The text cut to `most` columns, with `…` for the rest.
pub(super) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.into();
    }
    let mut left = most;
    // Keep a column for the `…`.
    let fits = |c: &char| {
        left = left.saturating_sub(columns(*c));
        left > 0
    };
    let cut: String = text.chars().take_while(fits).collect();
    if most > 0 { cut + "…" } else { cut }
}

/// The text in lines of at most `most` columns, broken between words where possible.
pub(in crate::cli) fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(2);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut taken) = (String::new(), 0);
        for c in paragraph.chars() {
            if c == ' ' && taken == most {
                lines.push(std::mem::take(&mut line));
                taken = 0;
                continue;
            }
            while taken + columns(c) > most {
                // The last word moves to the next line, unless it fills this one.
                let word = line.rfind(' ').map_or_else(String::new, |at| line.split_off(at + 1));
                taken = width(&word);
                lines.push(std::mem::replace(&mut line, word));
            }
            taken += columns(c);
            line.push(c);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_has_no_control_characters() {
        assert_eq!(printable("a\u{1b}[31mb\u{7}\u{9b}c\r\td\u{202e}e\nf"), "abc de\nf");
        assert_eq!(one_line("\n a\n\n b \u{0}\n"), "a ⏎ b ");
    }

    #[test]
    fn wide_characters_count_as_two_columns() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".into(), String::new()));
    }

    #[test]
    fn lines_break_between_words_where_possible() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one twothree", 8), ["one ", "twothree"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("日本語", 5), ["日本", "語"]);
        assert_eq!(wrap(" abc日", 4), [" ", "abc", "日"]);
        assert_eq!(wrap("a\n\nb", 5), ["a", "", "b"]);
        assert_eq!(wrap("日本", 0), ["日", "本"]);
    }
}
