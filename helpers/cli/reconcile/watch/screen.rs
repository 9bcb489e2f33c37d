//! How it looks: lines for a terminal of any size.
//!
//! Colour only says something: yellow waits for the person, red is trouble, green is done, and what
//! matters less is dim. Nothing is said by colour alone; the library leaves it out where NO_COLOR is
//! set.

use std::fmt;
use std::time::SystemTime;

use crossterm::style::{StyledContent, Stylize};

use crate::cli::reconcile::watch::model::{Mode, Model};
use crate::cli::reconcile::watch::tasks::Row;
use crate::cli::reconcile::watch::text::{self, cut, width, wrap};
use crate::domain::Usage;
use crate::task::Label;

/// From this width on, a task takes one line.
const WIDE: usize = 110;

/// From this height on there is room for a heading and for space between the parts.
const TALL: usize = 10;

/// How many lines of a question are shown while nobody answers it.
const QUESTION: usize = 4;

/// How many lines of a message are shown.
const MESSAGE: usize = 3;

/// The longest id, model and bar that are shown whole.
const LONGEST_ID: usize = 28;
const SHORT_ID: usize = 12;
const LONGEST_MODEL: usize = 16;
const BAR: usize = 10;

/// A part of a line.
type Span = StyledContent<String>;

fn plain(text: impl Into<String>) -> Span {
    text.into().stylize()
}

/// One line of the screen. Shows as the text with what makes a terminal style it.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<Span>);

impl Line {
    fn with(mut self, span: Span) -> Self {
        self.0.push(span);
        self
    }

    fn of(span: Span) -> Self {
        Self::default().with(span)
    }

    fn width(&self) -> usize {
        self.0.iter().map(|span| width(span.content())).sum()
    }

    /// With as much of the last parts left out as does not fit.
    fn cut(self, most: usize) -> Self {
        let mut left = most;
        let fit = |span: Span| {
            let text = cut(span.content(), left);
            left -= width(&text);
            StyledContent::new(*span.style(), text)
        };
        Self(self.0.into_iter().map(fit).collect())
    }

    /// With something at the right end, if there is room for it.
    fn with_right(self, span: Span, most: usize) -> Self {
        let taken = self.width() + width(span.content());
        match most.checked_sub(taken) {
            Some(gap @ 2..) => self.with(plain(" ".repeat(gap))).with(span),
            _ => self,
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|span| span.fmt(f))
    }
}

/// A whole screen.
pub(super) struct Frame {
    pub(super) lines: Vec<Line>,
    /// Column and row of the cursor, where something is typed.
    pub(super) cursor: Option<(usize, usize)>,
}

/// What the screen shows. Where there is little room, what is most needed stays.
pub(super) fn frame(model: &Model, width: usize, height: usize, now: SystemTime) -> Frame {
    let tall = height >= TALL;
    let foot = if height > 2 { foot(model, width, tall) } else { Vec::new() };
    let room = height.saturating_sub(foot.len());
    let mut cursor = None;
    let mut lines = match &model.mode {
        Mode::Log { .. } => log(model, width, room),
        Mode::Answer { text, .. } => {
            let typed = editor(text, width, room);
            let above = room.saturating_sub(typed.len());
            let mut lines = head(model, width, tall);
            lines.extend(questions(model, width, above.saturating_sub(lines.len())));
            lines.truncate(above);
            let column = typed.last().map_or(0, Line::width).min(width.saturating_sub(1));
            lines.extend(typed);
            cursor = Some((column, lines.len().saturating_sub(1)));
            lines.push(Line::default());
            lines.extend(tasks(model, width, room.saturating_sub(lines.len()), now));
            lines
        }
        Mode::Tasks | Mode::Stop(_) => {
            let mut lines = head(model, width, tall);
            let asked = questions(model, width, room / 2);
            let gap = tall && !asked.is_empty();
            lines.extend(asked);
            lines.extend(gap.then(Line::default));
            lines.extend(tasks(model, width, room.saturating_sub(lines.len()), now));
            lines
        }
    };
    lines.resize_with(room, Line::default);
    lines.extend(foot);
    lines.truncate(height);
    Frame { lines: lines.into_iter().map(|line| line.cut(width)).collect(), cursor }
}

/// The project, how many tasks are in which state, and what they all used.
fn head(model: &Model, width: usize, tall: bool) -> Vec<Line> {
    if !tall {
        return Vec::new();
    }
    let rows = model.rows();
    let total = rows.iter().filter_map(|row| row.usage.clone()).reduce(Usage::with);
    let total = cost(total.as_ref());
    let mut line = Line::of(model.project.clone().bold());
    // They are sorted by state.
    for (at, group) in rows.chunk_by(|a, b| a.label == b.label).enumerate() {
        let gap = if at == 0 { "  " } else { " · " };
        let state = coloured(format!("{} {}", group.len(), group[0].label), group[0].label);
        let taken = line.width() + text::width(gap) + text::width(state.content());
        if taken + text::width(&total) + 4 > width {
            line = line.with(" …".to_owned().dim());
            break;
        }
        line = line.with(gap.to_owned().dim()).with(state);
    }
    vec![line.with_right(plain(total), width), Line::default()]
}

/// The open questions; while one is answered, all of that and no other.
fn questions(model: &Model, width: usize, most: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut left_out = 0;
    for row in model.rows() {
        for (name, text) in &row.questions {
            let answered = match &model.mode {
                Mode::Answer { task, question, .. }
                    if (task.id(), question) != (row.task.id(), name) =>
                {
                    continue;
                }
                mode => matches!(mode, Mode::Answer { .. }),
            };
            let heading = format!("? {} asks", row.task.id());
            let mut block =
                vec![Line::of(heading.dark_yellow().bold()).with(format!(" {name}").dim())];
            let mut text = wrap(text, width.saturating_sub(4));
            text.retain(|line| answered || !line.trim().is_empty());
            let fits = if answered { most.saturating_sub(1).max(1) } else { QUESTION };
            for (at, line) in (1..=fits).zip(&text) {
                let more = if at == fits && text.len() > fits { " …" } else { "" };
                block.push(Line::of(plain(format!("  {}{more}", line.trim_end()))));
            }
            // One line is kept for the number of those that are left out.
            if lines.is_empty() || left_out == 0 && lines.len() + block.len() < most {
                lines.extend(block);
            } else {
                left_out += 1;
            }
        }
    }
    lines.truncate(most.max(1));
    if left_out > 0 {
        lines.truncate(most.saturating_sub(1));
        lines.push(Line::of(format!("  … and {left_out} more").dark_yellow()));
    }
    lines
}

/// What was typed, with its end visible.
fn editor(text: &str, width: usize, most: usize) -> Vec<Line> {
    let lines = wrap(text, width.saturating_sub(5));
    let hidden = lines.len().saturating_sub(most.saturating_sub(2).clamp(1, 5));
    let line = |(at, line): (usize, String)| {
        let mark = if at == 0 { "  › " } else { "    " };
        Line::of(mark.to_owned().dark_yellow().bold()).with(plain(line))
    };
    lines.into_iter().enumerate().skip(hidden).map(line).collect()
}

/// The tasks that fit, the selected one among them.
fn tasks(model: &Model, width: usize, most: usize, now: SystemTime) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for broken in model.broken.iter().take(most / 3) {
        lines.push(Line::of(format!("! {broken}").dark_red()));
    }
    let rows = model.rows();
    if rows.is_empty() {
        let text = match (&model.rows, model.broken.is_empty()) {
            (None, _) => "reading the tasks …",
            (Some(_), true) => {
                "No tasks yet. They show up here by themselves when /dispatch starts some."
            }
            (Some(_), false) => "",
        };
        lines.extend(wrap(text, width).into_iter().map(|line| Line::of(line.dim())));
        return lines;
    }
    let columns = Columns::new(rows, width, now);
    let height = if columns.wide || most < 4 { 1 } else { 2 };
    let mut fit = most.saturating_sub(lines.len()) / height;
    if fit < rows.len() {
        // One line says how many there are.
        fit = most.saturating_sub(lines.len() + 1) / height;
    }
    let fit = fit.max(1);
    let selected = model.selected();
    let first = selected / fit * fit;
    for (at, row) in rows.iter().enumerate().skip(first).take(fit) {
        let line = columns.line(row, at == selected, now);
        let detail = detail(row);
        if columns.wide {
            lines.push(line.with(plain("  ")).with(detail));
        } else {
            lines.push(line);
            lines.extend((height == 2).then(|| Line::of(plain("    ")).with(detail)));
        }
    }
    if fit < rows.len() {
        let last = rows.len().min(first + fit);
        lines.push(Line::of(format!("  {}–{last} of {}", first + 1, rows.len()).dim()));
    }
    lines
}

/// What a task is at, or why it is in its state.
fn detail(row: &Row) -> Span {
    let text = row.detail.clone();
    if row.label <= Label::Running { text.stylize() } else { text.dim() }
}

fn coloured(text: String, label: Label) -> Span {
    match label {
        Label::Asking | Label::Blocked => text.dark_yellow(),
        Label::Failed | Label::Denied | Label::Silent | Label::Lost | Label::Incomplete => {
            text.dark_red()
        }
        Label::Running => text.stylize(),
        Label::Held | Label::Parked | Label::Queued | Label::Stopped => text.dim(),
        Label::Done => text.dark_green(),
    }
}

/// How wide the columns are. One that is 0 wide is left out.
struct Columns {
    id: usize,
    state: usize,
    bar: usize,
    count: usize,
    age: usize,
    model: usize,
    cost: usize,
    /// Whether what a task is at stands in the same line.
    wide: bool,
}

impl Columns {
    fn new(rows: &[Row], total: usize, now: SystemTime) -> Self {
        let widest = |text: &dyn Fn(&Row) -> String| {
            rows.iter().map(|row| width(&text(row))).max().unwrap_or_default()
        };
        let mut columns = Self {
            id: widest(&|row| row.task.id().to_string()).min(LONGEST_ID),
            state: widest(&|row| row.label.to_string()),
            bar: BAR,
            count: widest(&count),
            age: widest(&|row| row.age.shown(now)),
            model: widest(&|row| row.model.clone()).min(LONGEST_MODEL),
            cost: widest(&|row| cost(row.usage.as_ref())),
            wide: total >= WIDE,
        };
        if columns.wide {
            return columns;
        }
        // What says least goes first.
        let narrower: [fn(&mut Self); 6] = [
            |it| it.id = it.id.min(SHORT_ID),
            |it| it.bar = BAR / 2,
            |it| it.cost = 0,
            |it| it.model = 0,
            |it| it.bar = 0,
            |it| it.age = 0,
        ];
        for make_narrower in narrower {
            if columns.width() > total {
                make_narrower(&mut columns);
            }
        }
        columns
    }

    fn width(&self) -> usize {
        let columns = [self.id, self.state, self.bar, self.count, self.age, self.model, self.cost];
        columns.into_iter().filter(|column| *column > 0).map(|column| column + 2).sum()
    }

    fn line(&self, row: &Row, selected: bool, now: SystemTime) -> Line {
        let left = |text: &str, columns: usize| {
            let text = cut(text, columns);
            let gap = columns - width(&text);
            format!("{text}{}", " ".repeat(gap))
        };
        let right = |text: &str, columns: usize| {
            let text = cut(text, columns);
            format!("{}{text}", " ".repeat(columns - width(&text)))
        };
        let id = left(row.task.id().as_str(), self.id);
        let mut line = match selected {
            true => Line::of("› ".to_owned().bold()).with(id.bold()),
            false => Line::of(plain("  ")).with(plain(id)),
        };
        let done = filled(row.done, row.all, self.bar);
        let columns = [
            vec![coloured(left(&row.label.to_string(), self.state), row.label)],
            vec![coloured("━".repeat(done), row.label), "─".repeat(self.bar - done).dim()],
            vec![plain(right(&count(row), self.count))],
            vec![right(&row.age.shown(now), self.age).dim()],
            vec![plain(left(&row.model, self.model))],
            vec![plain(right(&cost(row.usage.as_ref()), self.cost))],
        ];
        for column in columns {
            if column.iter().any(|span| !span.content().is_empty()) {
                line.0.push(plain("  "));
                line.0.extend(column);
            }
        }
        line
    }
}

/// How much of a bar is done: nothing and all of it only if that is so.
fn filled(done: usize, all: usize, bar: usize) -> usize {
    match (done, all) {
        (0, _) | (_, 0) => 0,
        (done, all) if done >= all => bar,
        (done, all) => (bar * done / all).clamp(bar.min(1), bar.saturating_sub(1)),
    }
}

fn count(row: &Row) -> String {
    format!("{}/{}", row.done, row.all)
}

/// Money, or tokens where the CLI does not say what they cost.
fn cost(usage: Option<&Usage>) -> String {
    match usage {
        None => String::new(),
        Some(Usage { cost_usd: Some(dollars), .. }) => format!("${dollars:.2}"),
        Some(usage) => match usage.input_tokens + usage.output_tokens + usage.tokens {
            tokens @ 0..1000 => format!("{tokens} tok"),
            tokens @ 1000..1_000_000 => format!("{}k tok", tokens / 1000),
            tokens => format!("{:.1}M tok", tokens as f64 / 1e6),
        },
    }
}

/// The end of a log, the last line at the bottom.
fn log(model: &Model, width: usize, room: usize) -> Vec<Line> {
    let Mode::Log { task, text, up } = &model.mode else { return Vec::new() };
    let state = model.rows().iter().find(|row| row.task.id() == task.id());
    let mut heading = Line::of(format!("{} ", task.id()).bold());
    if let Some(row) = state {
        heading = heading.with(coloured(row.label.to_string(), row.label));
    }
    let heading = heading.with("  the end of its log".to_owned().dim());
    let mut lines = vec![heading, Line::default()];
    let Some(text) = text else { return lines };
    let text = text.trim_end();
    if text.is_empty() {
        lines.push(Line::of("nothing written yet".to_owned().dim()));
        return lines;
    }
    let shown = room.saturating_sub(lines.len());
    let text = wrap(text, width);
    let end = text.len() - (*up).min(text.len().saturating_sub(shown));
    let begin = end.saturating_sub(shown);
    lines.extend(text[begin..end].iter().map(|line| Line::of(plain(line))));
    lines
}

/// What was said last or is asked, and the keys.
fn foot(model: &Model, width: usize, tall: bool) -> Vec<Line> {
    let keys: &[(&str, &str)] = match &model.mode {
        Mode::Tasks => {
            &[("a", "answer"), ("l", "log"), ("s", "stop"), ("↑↓", "select"), ("q", "quit")]
        }
        Mode::Answer { .. } => &[("Enter", "send"), ("Esc", "cancel")],
        Mode::Log { .. } => &[("↑↓", "scroll"), ("Esc", "back")],
        Mode::Stop(_) => &[("y", "stop"), ("any other key", "no")],
    };
    let spread = |gap: &str| {
        keys.iter().fold(Line::default(), |line, (key, what)| {
            line.with(plain(*key)).with(format!(" {what}{gap}").dim())
        })
    };
    let keys = Some(spread("   ")).filter(|it| it.width() <= width).unwrap_or(spread(" "));
    let mut lines = match &model.mode {
        Mode::Stop(task) => vec![
            Line::of(format!("Stop {}? ", task.id()).dark_yellow().bold())
                .with(plain("Its worker ends.")),
        ],
        _ if model.message.is_empty() && !tall => Vec::new(),
        _ => {
            let said = wrap(&model.message, width).into_iter().take(MESSAGE);
            said.map(|line| Line::of(plain(line))).collect()
        }
    };
    lines.push(keys);
    lines
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::tasks::Age;
    use super::*;
    use crate::task::Task;

    fn row(id: &str, label: Label) -> Row {
        Row {
            task: Task::new(PathBuf::from(id), id.parse().expect("an id")),
            label,
            done: 1,
            all: 3,
            model: "gpt-6-codex".into(),
            age: Age::Ended(Duration::from_secs(90)),
            usage: Some(Usage { input_tokens: 12_345, ..Usage::default() }),
            detail: "item 2: 日本語の文字 and more words than fit anywhere".into(),
            questions: Vec::new(),
            logs: true,
        }
    }

    fn model(rows: Vec<Row>) -> Model {
        let mut model = Model::new("shop".into());
        model.set_tasks(rows, vec!["x broken — why".into()]);
        model
    }

    /// The screen as text.
    fn text(model: &Model, width: usize, height: usize) -> Vec<String> {
        let frame = frame(model, width, height, SystemTime::now());
        let line = |line: &Line| line.0.iter().map(|span| span.content().as_str()).collect();
        frame.lines.iter().map(line).collect()
    }

    #[test]
    fn in_a_window_of_any_size_nothing_stands_outside() {
        let mut asks = row("asks", Label::Asking);
        asks.questions =
            vec![("001".into(), "Which 日本語 one?\n".repeat(9)), ("002".into(), "b".into())];
        let mut all = vec![asks.clone()];
        all.extend((0..30).map(|n| row(&format!("task-{n}"), Label::Running)));
        let (task, question) = (asks.task, "001".to_owned());
        let modes = [
            Mode::Tasks,
            Mode::Stop(task.clone()),
            Mode::Answer { task: task.clone(), question, text: "日本 ".repeat(40) },
            Mode::Log { task, text: Some("日本 line\n".repeat(50)), up: 7 },
        ];
        for (rows, mode) in
            [Vec::new(), all].iter().flat_map(|rows| modes.clone().map(|mode| (rows, mode)))
        {
            let mut model = model(rows.clone());
            model.mode = mode;
            let widths = (0..20).chain((20..130).step_by(7));
            for (columns, lines) in widths.flat_map(|it| (0..24).map(move |lines| (it, lines))) {
                let frame = frame(&model, columns, lines, SystemTime::now());
                assert_eq!(frame.lines.len(), lines);
                let widest = frame.lines.iter().map(Line::width).max().unwrap_or_default();
                assert!(widest <= columns, "{widest} columns of {columns}");
                let outside = |(column, row)| column >= columns || row >= lines;
                assert!(!frame.cursor.is_some_and(outside) || columns * lines == 0);
            }
        }
    }

    #[test]
    fn the_selected_one_of_many_is_always_seen() {
        let mut model = model((0..30).map(|n| row(&format!("t{n}"), Label::Running)).collect());
        for n in 0..30 {
            let screen = text(&model, 80, 20);
            let selected: Vec<_> = screen.iter().filter(|line| line.starts_with('›')).collect();
            assert!(selected[0].contains(&format!(" t{n} ")), "{screen:#?}");
            model.key(crossterm::event::KeyCode::Down.into());
        }
    }
}
