//! `dispatch-reconcile status`: a line a task.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::cli::say;
use crate::exit::Exit;
use crate::news::{Remedy, quoted, short_duration};
use crate::project::Project;
use crate::task::{Reason, State, View};
use crate::worker::supervise;

/// How long a task that is done is shown without `--all`, since its marker was made.
const RECENT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many bytes a line has at most.
const LINE: usize = 100;

/// How many bytes of a line are kept for what a command is about.
const DETAIL: usize = 30;

/// Shows a line a task, and in the end how many are not shown and what all of them cost.
pub(super) fn status(project: &Project, all: bool, json: bool) -> Result<Exit> {
    supervise::mend(project);
    let (mut views, mut broken, mut hidden) = (Vec::new(), Vec::new(), 0);
    for task in project.tasks() {
        if !all && task.done_for().is_some_and(|time| time > RECENT) {
            hidden += 1;
            continue;
        }
        match task.view() {
            Ok(view) => {
                // What cannot be recorded now is seen again the next time.
                let _ = supervise::record_unknown_end(&view);
                supervise::go_on_if_answered(&view);
                views.push(view);
            }
            Err(error) => {
                let error = format!("{error:#}");
                let what = error.lines().next().unwrap_or_default();
                broken.push(shorten(&format!("{} broken — {what}", task.id()), LINE));
            }
        }
    }
    views.sort_by_key(View::label);
    if json {
        say(serde_json::to_string(&views.iter().map(as_json).collect::<Vec<_>>())?);
        return Ok(Exit::Ok);
    }
    if views.is_empty() && broken.is_empty() && hidden == 0 {
        say(format!("no tasks in {}", project.root().display()));
    }
    broken.iter().for_each(say);
    for view in &views {
        say(status_line(view));
    }
    if hidden > 0 {
        say(format!("{hidden} more, done over a day ago: dispatch-reconcile status --all"));
    }
    let used = views.iter().filter_map(View::usage).reduce(|mut total, usage| {
        total.add(&usage);
        total
    });
    if let Some(used) = used.filter(|_| all) {
        say(format!("in total {used}"));
    }
    Ok(Exit::Ok)
}

/// One task in one line of at most 100 bytes: its state first, then what mends it, then what there
/// is room for.
pub(in crate::cli) fn status_line(view: &View) -> String {
    let id = view.task.id().as_str();
    let (done, all) = (view.plan.done(), view.plan.items().len());
    let age = short_duration(view.age());
    let mut line = format!("{id} {} {done}/{all} {age}", view.label());
    let detail = detail(view).replace('\n', " ").replace('→', ">");
    let detail = if detail.is_empty() { detail } else { format!(" — {detail}") };
    let kept = detail.len().min(DETAIL);
    let mut mends = String::new();
    if let Some(remedy) = Remedy::of(view) {
        mends = format!(" → {}", remedy.command(id));
        if line.len() + kept + mends.len() > LINE {
            mends = format!(" → {}", remedy.command("ID"));
        }
    }
    let cost = view.usage().and_then(|usage| usage.cost_usd).map(|cost| format!("${cost:.2}"));
    for word in [Some(view.record.name.clone()), cost].into_iter().flatten() {
        if line.len() + 1 + word.len() + kept + mends.len() <= LINE {
            line.push_str(&format!(" {word}"));
        }
    }
    let room = LINE.saturating_sub(mends.len());
    if line.len() + kept <= room {
        line = shorten(&(line + &detail), room);
    }
    shorten(&(line + &mends), LINE)
}

/// What a task is at, or why it is not.
fn detail(view: &View) -> String {
    match view.state {
        State::Asking => view.questions.first().map_or_else(String::new, |(question, text)| {
            format!("{}: {}", question.name, quoted(text))
        }),
        State::Running if view.reason == Reason::None => view
            .current()
            .map_or_else(String::new, |(number, item)| format!("item {number}: {}", item.text)),
        State::Done if view.reason == Reason::None => view
            .summary
            .as_deref()
            .filter(|summary| !summary.is_empty())
            .map_or_else(String::new, quoted),
        _ => {
            let because = view.because();
            because.strip_prefix(&format!("{}: ", view.label())).map(Into::into).unwrap_or(because)
        }
    }
}

/// Cuts a line to that many bytes.
pub(in crate::cli) fn shorten(line: &str, bytes: usize) -> String {
    if line.len() <= bytes {
        return line.into();
    }
    let mut end = bytes - '…'.len_utf8();
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &line[..end])
}

/// All that a program may want to know of a task.
pub(super) fn as_json(view: &View) -> serde_json::Value {
    json!({
        "task": view.task.id().as_str(),
        "state": view.state,
        "label": view.label(),
        "because": view.because(),
        "done": view.plan.done(),
        "items": view.plan.items(),
        "model": view.record.name,
        "backend": view.record.backend,
        "route": view.record.route,
        "seconds": view.age().as_secs(),
        "attempt": view.attempt.as_ref().map(|attempt| attempt.number),
        "questions": view.questions.iter().map(|(question, text)| json!({
            "number": question.name, "text": text.trim_end(),
        })).collect::<Vec<_>>(),
        "usage": view.usage(),
        "summary": view.summary,
        "directory": view.task.directory(),
        "worktree": view.record.worktree,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_line_is_cut_between_characters() {
        assert_eq!(super::shorten("abc", 3), "abc");
        assert_eq!(super::shorten("ääää", 7), "ää…");
    }
}
