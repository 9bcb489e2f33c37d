//! Draws the dashboard as lines for a terminal of any size.

use crossterm::style::Stylize;

use crate::cli::reconcile::table::{Columns, Line, coloured, cost, unstyled, width, wrap};
use crate::cli::reconcile::watch::dashboard::{Dashboard, Mode};
use crate::domain::Usage;

/// How many lines of a question are shown while nobody answers it.
const QUESTION: usize = 4;

/// How many lines of a message are shown.
const MESSAGE: usize = 3;

/// Draws the dashboard as lines, with the column and row of the cursor where something is typed. In a
/// small window, what the person needs most stays.
pub(super) fn frame(
    dashboard: &Dashboard,
    width: usize,
    height: usize,
) -> (Vec<Line>, Option<(usize, usize)>) {
    let foot = if height > 2 { foot(dashboard, width) } else { Vec::new() };
    let room = height.saturating_sub(foot.len());
    let (mut lines, mut cursor) = (Vec::new(), None);
    if let Mode::Log { .. } = dashboard.mode {
        lines = log(dashboard, width, room);
    } else {
        let typed = match &dashboard.mode {
            Mode::Answer(answer) => editor(&answer.text, width, room),
            _ => Vec::new(),
        };
        let above = room.saturating_sub(typed.len());
        let most = if typed.is_empty() { room / 2 } else { above.saturating_sub(HEAD) };
        lines.extend(head(dashboard, width));
        lines.extend(questions(dashboard, width, most));
        if let Some(last) = typed.last() {
            let column = last.width().min(width.saturating_sub(1));
            lines.truncate(above);
            lines.extend(typed);
            cursor = Some((column, lines.len().saturating_sub(1)));
        }
        if lines.len() > HEAD {
            lines.push(Line::default());
        }
        lines.extend(tasks(dashboard, width, room.saturating_sub(lines.len())));
    }
    lines.resize_with(room, Line::default);
    lines.extend(foot);
    lines.truncate(height);
    (lines.into_iter().map(|line| line.cut(width)).collect(), cursor)
}

/// How many lines the heading takes.
const HEAD: usize = 2;

/// The project's name, the number of tasks in each state, and their total cost.
fn head(dashboard: &Dashboard, most: usize) -> Vec<Line> {
    let rows = &dashboard.rows;
    let total = rows.iter().filter_map(|row| row.usage.clone()).reduce(Usage::with);
    let total = cost(total.as_ref());
    let mut line = Line::new(dashboard.project.clone().bold());
    // The rows are sorted by state.
    for (at, group) in rows.chunk_by(|a, b| a.state == b.state).enumerate() {
        let gap = if at == 0 { "  " } else { " · " };
        let state = format!("{} {}", group.len(), group[0].state);
        if line.width() + width(gap) + width(&state) + width(&total) + 4 > most {
            line = line.with(" …".to_owned().dim());
            break;
        }
        line = line.with(gap.to_owned().dim()).with(coloured(state, group[0].state));
    }
    if let Some(gap @ 2..) = most.checked_sub(line.width() + width(&total)) {
        line = line.with(unstyled(" ".repeat(gap) + &total));
    }
    vec![line, Line::default()]
}

/// The open questions in `most` lines. While the person answers one, only that one, whole.
fn questions(dashboard: &Dashboard, width: usize, most: usize) -> Vec<Line> {
    let answered = match &dashboard.mode {
        Mode::Answer(answer) => Some((answer.task.id(), &answer.question)),
        _ => None,
    };
    let all = dashboard.rows.iter();
    let all = all.flat_map(|row| row.questions.iter().map(move |it| (row.task.id(), it)));
    let asked = all.filter(|(id, (number, _))| answered.is_none_or(|it| it == (*id, number)));
    let block = |(id, (number, text)): (_, &(String, String))| {
        let heading = Line::new(format!("? {id} asks").dark_yellow().bold());
        let mut block = vec![heading.with(format!(" {number}").dim())];
        let mut text = wrap(text, width.saturating_sub(4));
        text.retain(|line| answered.is_some() || !line.trim().is_empty());
        let fits = answered.map_or(QUESTION, |_| most.saturating_sub(1).max(1));
        for (at, line) in (1..=fits).zip(&text) {
            let more = if at == fits && text.len() > fits { " …" } else { "" };
            block.push(Line::new(unstyled(format!("  {}{more}", line.trim_end()))));
        }
        block
    };
    let mut blocks = asked.map(block).peekable();
    let mut lines = blocks.next().unwrap_or_default();
    // Keep a line for the number of omitted questions.
    while let Some(block) = blocks.next_if(|block| lines.len() + block.len() < most) {
        lines.extend(block);
    }
    match blocks.count() {
        0 => lines.truncate(most.max(1)),
        left_out => {
            lines.truncate(most.saturating_sub(1));
            lines.push(Line::new(format!("  … and {left_out} more").dark_yellow()));
        }
    }
    lines
}

/// The typed text, with its end visible.
fn editor(text: &str, width: usize, most: usize) -> Vec<Line> {
    let lines = wrap(text, width.saturating_sub(5));
    let hidden = lines.len().saturating_sub(most.saturating_sub(2).clamp(1, 5));
    let line = |(at, line): (usize, String)| {
        let mark = if at == 0 { "  › " } else { "    " };
        Line::new(mark.to_owned().dark_yellow().bold()).with(unstyled(line))
    };
    lines.into_iter().enumerate().skip(hidden).map(line).collect()
}

/// The page of tasks that holds the selected one.
fn tasks(dashboard: &Dashboard, width: usize, most: usize) -> Vec<Line> {
    let broken = dashboard.broken.iter().take(most / 3);
    let mut lines: Vec<_> =
        broken.map(|broken| Line::new(format!("! {broken}").dark_red())).collect();
    let rows = &dashboard.rows;
    if rows.is_empty() {
        let text = "No tasks yet. A task appears here as soon as /dispatch starts it.";
        let text = wrap(text, width).into_iter().map(|line| Line::new(line.dim()));
        lines.extend(text.filter(|_| dashboard.broken.is_empty()));
        return lines;
    }
    let columns = Columns::new(rows, width.saturating_sub(2));
    let height = if columns.wide || most < 4 { 1 } else { 2 };
    let mut fit = most.saturating_sub(lines.len()) / height;
    if fit < rows.len() {
        // Keep a line for the number of tasks.
        fit = most.saturating_sub(lines.len() + 1) / height;
    }
    let fit = fit.max(1);
    let selected = dashboard.selected();
    let first = selected / fit * fit;
    for (at, row) in rows.iter().enumerate().skip(first).take(fit) {
        let row = columns.lines(row, row.detail.clone(), Some(at == selected));
        lines.extend(row.into_iter().take(height));
    }
    if fit < rows.len() {
        let last = rows.len().min(first + fit);
        lines.push(Line::new(format!("  {}–{last} of {}", first + 1, rows.len()).dim()));
    }
    lines
}

/// The end of a log, with its last line at the bottom.
fn log(dashboard: &Dashboard, width: usize, room: usize) -> Vec<Line> {
    let Mode::Log { task, text, up } = &dashboard.mode else { return Vec::new() };
    let mut heading = Line::new(format!("{} ", task.id()).bold());
    if let Some(row) = dashboard.rows.iter().find(|row| row.task.id() == task.id()) {
        heading = heading.with(coloured(row.state.to_string(), row.state));
    }
    let mut lines = vec![heading.with("  the end of its log".to_owned().dim()), Line::default()];
    let text = text.trim_end();
    if text.is_empty() {
        lines.push(Line::new("nothing written yet".to_owned().dim()));
        return lines;
    }
    let shown = room.saturating_sub(lines.len());
    let text = wrap(text, width);
    let end = text.len() - (*up).min(text.len().saturating_sub(shown));
    let begin = end.saturating_sub(shown);
    lines.extend(text[begin..end].iter().map(|line| Line::new(unstyled(line))));
    lines
}

/// The last message or the open confirmation, and the keys.
fn foot(dashboard: &Dashboard, width: usize) -> Vec<Line> {
    let keys: &[(&str, &str)] = match &dashboard.mode {
        Mode::Tasks => {
            &[("a", "answer"), ("l", "log"), ("s", "stop"), ("↑↓", "select"), ("q", "quit")]
        }
        Mode::Answer(_) => &[("Enter", "send"), ("Esc", "cancel")],
        Mode::Log { .. } => &[("↑↓", "scroll"), ("Esc", "back")],
        Mode::Stop(_) => &[("y", "stop"), ("any other key", "no")],
    };
    let spread = |gap: &str| {
        keys.iter().fold(Line::default(), |line, (key, what)| {
            line.with(unstyled(*key)).with(format!(" {what}{gap}").dim())
        })
    };
    let keys = Some(spread("   ")).filter(|it| it.width() <= width).unwrap_or(spread(" "));
    let mut lines: Vec<_> = match &dashboard.mode {
        Mode::Stop(task) => vec![
            Line::new(format!("Stop {}? ", task.id()).dark_yellow().bold())
                .with(unstyled("Its worker ends.")),
        ],
        _ => {
            let message = wrap(&dashboard.message, width).into_iter().take(MESSAGE);
            message.map(|line| Line::new(unstyled(line))).collect()
        }
    };
    lines.push(keys);
    lines
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::cli::reconcile::table::TaskRow;
    use crate::cli::reconcile::watch::dashboard::Answer;
    use crate::task::{State, Task};

    fn row(id: &str, state: State) -> TaskRow {
        TaskRow {
            task: Task::new(id.parse().expect("an id"), id.into(), id.into()),
            state,
            items: (1, 3),
            model: "gpt-6-codex".into(),
            created: SystemTime::UNIX_EPOCH,
            ran: Some(Duration::from_secs(90)),
            usage: Some(Usage { input_tokens: 12_345, ..Usage::default() }),
            detail: "item 2: 日本語の文字 and more words than fit anywhere".into(),
            questions: Vec::new(),
            next: None,
            logs: true,
        }
    }

    fn dashboard(rows: Vec<TaskRow>) -> Dashboard {
        let mut dashboard = Dashboard::new("shop".into());
        dashboard.set_tasks(rows, vec!["x broken — why".into()]);
        dashboard
    }

    #[test]
    fn frame_fits_window_of_any_size() {
        let mut asks = row("asks", State::Asking);
        asks.questions =
            vec![("001".into(), "Which 日本語 one?\n".repeat(9)), ("002".into(), "b".into())];
        let mut all = vec![asks.clone()];
        all.extend((0..30).map(|n| row(&format!("task-{n}"), State::Running)));
        let (task, question) = (asks.task, "001".to_owned());
        let modes = [
            Mode::Tasks,
            Mode::Stop(task.clone()),
            Mode::Answer(Answer { task: task.clone(), question, text: "日本 ".repeat(40) }),
            Mode::Log { task, text: "日本 line\n".repeat(50), up: 7 },
        ];
        for (rows, mode) in
            [Vec::new(), all].iter().flat_map(|rows| modes.clone().map(|mode| (rows, mode)))
        {
            let mut dashboard = dashboard(rows.clone());
            dashboard.mode = mode;
            let widths = (0..20).chain((20..130).step_by(7));
            for (columns, lines) in widths.flat_map(|it| (0..24).map(move |lines| (it, lines))) {
                let (frame, cursor) = frame(&dashboard, columns, lines);
                assert_eq!(frame.len(), lines);
                let widest = frame.iter().map(Line::width).max().unwrap_or_default();
                assert!(widest <= columns, "{widest} columns of {columns}");
                let outside = |(column, row)| column >= columns || row >= lines;
                assert!(!cursor.is_some_and(outside) || columns * lines == 0);
            }
        }
    }

    #[test]
    fn selected_task_is_always_visible() {
        let mut dashboard =
            dashboard((0..30).map(|n| row(&format!("t{n}"), State::Running)).collect());
        for n in 0..30 {
            let (frame, _) = frame(&dashboard, 80, 20);
            let screen: Vec<_> = frame.iter().map(Line::text).collect();
            let selected = screen.iter().find(|line| line.starts_with('›'));
            assert!(selected.is_some_and(|it| it.contains(&format!(" t{n} "))), "{screen:#?}");
            dashboard.key(crossterm::event::KeyCode::Down.into());
        }
    }
}
