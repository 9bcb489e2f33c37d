//! `dispatch-reconcile status`: a line a task.

use anyhow::Result;
use serde_json::json;

use crate::cli::say;
use crate::exit::Exit;
use crate::news::{quoted, short_duration};
use crate::project::Project;
use crate::task::{State, View};
use crate::worker::supervise;

pub(super) fn status(project: &Project, json: bool) -> Result<Exit> {
    supervise::mend(project);
    let (mut views, mut broken) = (Vec::new(), Vec::new());
    for task in project.tasks() {
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
                broken.push(shorten(&format!("{} broken — {what}", task.id()), 100));
            }
        }
    }
    views.sort_by_key(|view| view.state);
    if json {
        say(serde_json::to_string(&views.iter().map(as_json).collect::<Vec<_>>())?);
        return Ok(Exit::Ok);
    }
    if views.is_empty() && broken.is_empty() {
        say(format!("no tasks in {}", project.root().display()));
    }
    broken.iter().for_each(say);
    for view in &views {
        say(status_line(view));
    }
    Ok(Exit::Ok)
}

/// One task in one line of at most 100 bytes.
pub(in crate::cli) fn status_line(view: &View) -> String {
    let (done, all) = (view.plan.done(), view.plan.items().len());
    let mut line = format!(
        "{} {} {done}/{all} {} {}",
        view.task.id(),
        view.state,
        short_duration(view.age()),
        view.record.name
    );
    let detail = match view.state {
        State::Asking => view
            .questions
            .first()
            .map(|(question, text)| format!("{}: {}", question.name, quoted(text))),
        State::Running => {
            view.current().map(|(number, item)| format!("item {number}: {}", item.text))
        }
        _ => Some(view.because()),
    };
    if let Some(detail) = detail.filter(|detail| !detail.is_empty()) {
        line.push_str(&format!(" — {}", detail.replace('\n', " ")));
    }
    shorten(&line, 100)
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
