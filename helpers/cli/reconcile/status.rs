//! `dispatch-reconcile status`: a line for each task, or a table on a terminal; and `statusline`, the
//! number of tasks in each state.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::ColorChoice;
use serde_json::json;

use crate::cli::reconcile::table::{Columns, TaskRow};
use crate::cli::reconcile::watch::follow;
use crate::cli::{fit, say};
use crate::domain::{TaskId, Usage};
use crate::error::Exit;
use crate::news::remedy;
use crate::project::{Broken, Ends, Project, TaskList};
use crate::repair::{Repaired, foreign_line, orphans_line, repair};
use crate::task::{Reason, State, Task, View};
use crate::text::{quoted, sanitize, short_duration, shorten, sort};

/// How long a finished task is shown without `--all`.
const RECENT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many bytes a line has at most, unless its command alone is longer.
const LINE: usize = 100;

/// How many bytes the lines have at most together, without `--all` and off a terminal.
const STATUS: usize = 4000;

/// How many bytes the line about repairs has at most.
const REPAIRS: usize = 200;

/// How many bytes of the detail stay when the model's name and the cost are left out for it.
const DETAIL: usize = 30;

/// The width of a table, in columns, where the terminal's is unknown.
const TABLE: usize = 80;

#[derive(Debug, Default, PartialEq, clap::Args)]
pub(super) struct StatusArgs {
    /// Also show tasks that were done over a day ago, and the total cost
    #[arg(long)]
    pub(super) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Keep running and print a line for each task that changes (for a screen reader)
    #[arg(long, conflicts_with_all = ["json", "all"])]
    pub(super) follow: bool,
    /// Colour the table: `auto` does so on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, conflicts_with_all = ["json", "follow"])]
    pub(super) color: ColorChoice,
}

/// Returns true if the output is coloured, and configures the terminal library accordingly.
pub(super) fn has_colors(choice: ColorChoice) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let has_colors = match choice {
        ColorChoice::Auto => !dumb && !is_set("NO_COLOR"),
        choice => choice == ColorChoice::Always,
    };
    crossterm::style::force_color_output(has_colors);
    has_colors
}

/// Repairs what a crash left, and shows the tasks, most urgent first.
pub(super) fn status(project: &Project, args: &StatusArgs) -> Result<Exit> {
    if args.follow {
        return follow(project);
    }
    let is_terminal = std::io::stdout().is_terminal();
    let has_table = is_terminal || args.color == ColorChoice::Always;
    // The index has lines only.
    let indexed = !args.all && !args.json && !has_table;
    let mut ends = if indexed { Ends::load(project) } else { Ends::default() };
    let before = SystemTime::now();
    let mut found = project.list(&ends);
    let foreign = foreign_line(project, &found);
    let ended = std::mem::take(&mut found.ended);
    let is_shown = |task: &Task| args.all || task.time_since_done().is_none_or(|it| it <= RECENT);
    let (shown, old): (Vec<_>, Vec<_>) = found.tasks.into_iter().partition(is_shown);
    found.tasks = shown;
    let Repaired { mut views, broken, repairs } = repair(project, found);
    let count = views.len();
    // The repair settled those that nobody had looked at.
    views.retain(|view| is_shown(&view.task));
    let old_ends = ended.iter().filter(|(_, end)| end.state == State::Done).count();
    let hidden = old.len() + old_ends + count - views.len();
    if args.json {
        let broken = broken.iter().map(broken_as_json);
        say(serde_json::to_string(&views.iter().map(as_json).chain(broken).collect::<Vec<_>>())?);
        return Ok(Exit::Ok);
    }
    if !repairs.is_empty() {
        say(shorten(&format!("repaired: {repairs}"), REPAIRS));
    }
    let notice = project.notice();
    notice.iter().for_each(say);
    let is_empty = views.is_empty() && ended.is_empty() && broken.is_empty() && hidden == 0;
    if is_empty && notice.is_none() {
        say(format!("no tasks in {}", project.root.display()));
    }
    let broken = broken.iter().map(broken_line);
    if has_table {
        broken.for_each(say);
        let size = is_terminal.then(crossterm::terminal::size).and_then(Result::ok);
        let width = size.map(|(columns, _)| columns.into()).filter(|it| *it > 0);
        print_table(&views, width.unwrap_or(TABLE), args.color);
    } else {
        let mut lines: Vec<(State, &TaskId, String)> = Vec::new();
        for view in &views {
            let line = status_line(view);
            ends.add(view, before, || line.clone());
            lines.push((view.state, view.task.id(), line));
        }
        let shown = ended.iter().filter(|(_, end)| end.state != State::Done);
        lines.extend(shown.map(|(id, end)| (end.state, id, end.line.clone())));
        sort(&mut lines, Ord::cmp);
        let most = if args.all { usize::MAX } else { STATUS };
        let lines = broken.chain(lines.into_iter().map(|(_, _, line)| line));
        let (text, more) = fit(lines, "\n", most);
        Some(text).filter(|text| !text.is_empty()).iter().for_each(say);
        if more > 0 {
            say(format!("… and {more} more, less urgent: dispatch-reconcile status --all"));
        }
    }
    if hidden > 0 {
        say(format!("{hidden} more, done over a day ago: dispatch-reconcile status --all"));
    }
    foreign.iter().for_each(say);
    let worktrees = views.iter().filter_map(|view| view.record.worktree.as_ref());
    let worktrees = worktrees.chain(ended.iter().filter_map(|(_, end)| end.worktree.as_ref()));
    orphans_line(project, worktrees).iter().for_each(say);
    let used = views.iter().filter_map(View::usage).reduce(Usage::with);
    if let Some(used) = used.filter(|_| args.all) {
        say(format!("in total {used}"));
    }
    old.iter().for_each(|task| ends.add_done(task, before));
    ends.save();
    Ok(Exit::Ok)
}

/// Prints the table of `watch` in that many columns, each task with the command that helps it on.
/// Commands are whole, so that they can be copied.
fn print_table(views: &[View], width: usize, color: ColorChoice) {
    let has_colors = has_colors(color);
    let rows: Vec<TaskRow> = views.iter().map(TaskRow::new).collect();
    let columns = Columns::new(&rows, width);
    for row in &rows {
        let lines = columns.lines(row, row.question_or_detail(), None);
        for line in lines.into_iter().map(|line| line.cut(width)) {
            match line.text() {
                text if text.trim().is_empty() => {}
                _ if has_colors => line.print(),
                text => say(text.trim_end()),
            }
        }
        row.next.iter().for_each(|next| say(format!("    → {next}")));
    }
}

/// Why a task cannot be read, in one line. Paths are relative to the task's directory.
pub(in crate::cli) fn broken_line(broken: &Broken) -> String {
    let name = &broken.name;
    let (own, all) = (&broken.directory, broken.directory.parent());
    let why = format!("{:#}", broken.error).replace(&format!("{}/", own.display()), "");
    let why = all.map_or(why.clone(), |all| why.replace(&format!("{}/", all.display()), ""));
    let why = why.lines().next().unwrap_or_default();
    let (name, next) = match name.parse::<TaskId>() {
        Ok(id) => (name.clone(), format!(" → dispatch-reconcile show {id}")),
        // Anybody may have given the directory its name.
        Err(_) => (shorten(&format!("{name:?}"), 40), String::new()),
    };
    shorten(&format!("{name} broken — {why}"), LINE.saturating_sub(next.len())) + &next
}

/// The JSON of an unreadable task.
fn broken_as_json(broken: &Broken) -> serde_json::Value {
    json!({
        "task": broken.name,
        "state": "broken",
        "because": format!("{:#}", broken.error),
        "directory": broken.directory,
    })
}

/// A task in one line: its state, the detail that fits, and the command that helps it on.
pub(in crate::cli) fn status_line(view: &View) -> String {
    let id = view.task.id().as_str();
    let (done, all) = (view.plan.done(), view.plan.items().len());
    let age = short_duration(view.age());
    let mut line = format!("{id} {} {done}/{all} {age}", view.state);
    let detail = sanitize(&detail(view)).replace(['\n', '\t'], " ").replace('→', ">");
    let detail = if detail.is_empty() { detail } else { format!(" — {detail}") };
    let next = remedy(view).map(|remedy| format!(" → {remedy}")).unwrap_or_default();
    // The state and the command are never cut.
    let room = LINE.saturating_sub(next.len()).max(line.len());
    let kept = detail.len().min(DETAIL);
    let cost = view.usage().and_then(|usage| usage.cost_usd).map(|cost| format!("${cost:.2}"));
    for word in [Some(view.record.name.clone()), cost].into_iter().flatten() {
        if line.len() + 1 + word.len() + kept <= room {
            line.push_str(&format!(" {word}"));
        }
    }
    if line.len() + kept <= room {
        line.push_str(&detail);
    }
    shorten(&line, room) + &next
}

/// The open question, the current item, the summary, or the reason for the state.
fn detail(view: &View) -> String {
    match (view.state, view.questions.first()) {
        _ if view.reason != Reason::None => view.detail(),
        (State::Asking | State::Blocked, Some((question, text))) => {
            format!("{}{}: {}", question.name, text.remark(), quoted(&text.text))
        }
        _ => view.detail(),
    }
}

/// Everything that a program may want to know about a task.
pub(super) fn as_json(view: &View) -> serde_json::Value {
    json!({
        "task": view.task.id().as_str(),
        "state": view.state,
        "because": view.because(),
        "done": view.plan.done(),
        "items": view.plan.items(),
        "model": view.record.name,
        "backend": view.record.backend,
        "route": view.record.route,
        "access": view.record.access,
        "place": view.record.place,
        "checks": view.record.checks,
        "review": view.record.review,
        "budget": Some(view.record.budget).filter(|it| !it.is_none()),
        "keep": view.record.keep,
        "seconds": view.age().as_secs(),
        "attempt": view.attempt.as_ref().map(|attempt| attempt.number),
        "questions": view.questions.iter().map(|(question, text)| json!({
            "number": question.name, "text": text.text.trim_end(), "whole": text.is_whole,
        })).collect::<Vec<_>>(),
        "usage": view.usage(),
        "summary": view.summary,
        "directory": view.task.side().directory(),
        "worktree": view.record.worktree,
    })
}

/// How many bytes of the host's JSON are read at most.
const HOST_JSON: u64 = 1 << 20;

/// Prints the number of tasks in each state; nothing if no task is open. The host calls this all the
/// time and shows whatever is printed, so it repairs nothing and never fails.
pub(super) fn statusline(here: Option<PathBuf>) -> Exit {
    if let Ok(Some(line)) = counts(here) {
        say(line);
    }
    Exit::Ok
}

fn counts(here: Option<PathBuf>) -> Result<Option<String>> {
    let directory = match here.or_else(host_directory) {
        Some(directory) => directory,
        None => std::env::current_dir()?,
    };
    let project = Project::find(&directory)?;
    let TaskList { tasks, ended, broken } = project.list(&Ends::load(&project));
    let mut broken = broken.len();
    let open = tasks.iter().filter(|task| task.time_since_done().is_none());
    let mut counts: BTreeMap<State, usize> = BTreeMap::new();
    let open = open.map(|task| task.view().map(|view| view.state));
    for state in open.chain(ended.into_iter().map(|(_, end)| Ok(end.state))) {
        match state {
            Ok(State::Stopped | State::Done) => {}
            Ok(state) => *counts.entry(state).or_default() += 1,
            Err(_) => broken += 1,
        }
    }
    let broken = (broken > 0).then(|| format!("{broken} broken"));
    let counts = counts.into_iter().map(|(state, count)| format!("{count} {state}"));
    let counts: Vec<String> = broken.into_iter().chain(counts).collect();
    Ok((!counts.is_empty()).then(|| format!("dispatch: {}", counts.join(", "))))
}

/// The directory in the JSON that the host gives a status line on standard input.
fn host_directory() -> Option<PathBuf> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return None;
    }
    let mut text = String::new();
    stdin.take(HOST_JSON).read_to_string(&mut text).ok()?;
    let input: serde_json::Value = serde_json::from_slice(text.as_bytes()).ok()?;
    let places = ["/workspace/current_dir", "/cwd", "/workspace/project_dir"];
    let directory = places.iter().find_map(|place| input.pointer(place)?.as_str())?;
    Some(directory.into())
}
