//! `dispatch-reconcile status`: a line a task.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::cli::say;
use crate::domain::{TaskId, Usage};
use crate::exit::Exit;
use crate::news::Remedy;
use crate::project::{Broken, Project};
use crate::repair::{Repaired, orphans, repair};
use crate::task::{Reason, State, View};
use crate::text::{quoted, sanitize, short_duration, shorten};

/// How long a task that is done is shown without `--all`, since its marker was made.
const RECENT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many bytes a line has at most.
const LINE: usize = 100;

/// How many bytes the line about what was mended has at most.
const MENDED: usize = 200;

/// How many bytes of a line are kept for what a command is about.
const DETAIL: usize = 30;

/// Shows a line a task, and in the end how many are not shown and what all of them cost.
pub(super) fn status(project: &Project, all: bool, json: bool) -> Result<Exit> {
    let mut found = project.found();
    let there = found.tasks.len();
    found.tasks.retain(|task| all || task.done_for().is_none_or(|time| time <= RECENT));
    let hidden = there - found.tasks.len();
    let Repaired { mut views, broken, mended } = repair(project, found);
    views.sort_by_key(View::label);
    if json {
        let broken = broken.iter().map(broken_as_json);
        say(serde_json::to_string(&views.iter().map(as_json).chain(broken).collect::<Vec<_>>())?);
        return Ok(Exit::Ok);
    }
    if !mended.is_empty() {
        say(shorten(&format!("mended: {mended}"), MENDED));
    }
    if views.is_empty() && broken.is_empty() && hidden == 0 {
        say(format!("no tasks in {}", project.root().display()));
    }
    broken.iter().for_each(|it| say(broken_line(it)));
    for view in &views {
        say(status_line(view));
    }
    if hidden > 0 {
        say(format!("{hidden} more, done over a day ago: dispatch-reconcile status --all"));
    }
    orphans(project, &views).iter().for_each(say);
    let used = views.iter().filter_map(View::usage).reduce(Usage::with);
    if let Some(used) = used.filter(|_| all) {
        say(format!("in total {used}"));
    }
    Ok(Exit::Ok)
}

/// What cannot be read, in one line of at most 100 bytes, with paths as they are in its directory.
pub(in crate::cli) fn broken_line(broken: &Broken) -> String {
    let name = &broken.name;
    let (own, all) = (&broken.directory, broken.directory.parent());
    let why = format!("{:#}", broken.error).replace(&format!("{}/", own.display()), "");
    let why = all.map_or(why.clone(), |all| why.replace(&format!("{}/", all.display()), ""));
    let why = why.lines().next().unwrap_or_default();
    let mends = match name.parse::<TaskId>() {
        Ok(id) if id.as_str().len() < 20 => format!(" → dispatch-reconcile show {id}"),
        Ok(_) => " → dispatch-reconcile show ID".into(),
        Err(_) => String::new(),
    };
    let room = LINE.saturating_sub(mends.len());
    shorten(&format!("{} broken — {why}", quoted_name(name)), room) + &mends
}

/// A name that anybody may have given, so that it is one word of one line.
fn quoted_name(name: &str) -> String {
    let plain = name.parse::<TaskId>().is_ok();
    if plain { name.into() } else { shorten(&format!("{name:?}"), 40) }
}

/// What a program may want to know of what cannot be read.
fn broken_as_json(broken: &Broken) -> serde_json::Value {
    json!({
        "task": broken.name,
        "state": "broken",
        "label": "broken",
        "because": format!("{:#}", broken.error),
        "directory": broken.directory,
    })
}

/// One task in one line of at most 100 bytes: its state first, then what mends it, then what there
/// is room for.
pub(in crate::cli) fn status_line(view: &View) -> String {
    let id = view.task.id().as_str();
    let (done, all) = (view.plan.done(), view.plan.items().len());
    let age = short_duration(view.age());
    let mut line = format!("{id} {} {done}/{all} {age}", view.label());
    let detail = sanitize(&detail(view)).replace(['\n', '\t'], " ").replace('→', ">");
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
    shorten(&line, LINE.saturating_sub(mends.len())) + &mends
}

/// What a task is at, or why it is not.
fn detail(view: &View) -> String {
    let asks = view.reason == Reason::None && !view.questions.is_empty();
    match view.state {
        State::Asking | State::Blocked if asks => {
            view.questions.first().map_or_else(String::new, |(question, text)| {
                format!("{}: {}", question.name, quoted(text))
            })
        }
        State::Running if view.reason == Reason::None => view
            .current()
            .map_or_else(String::new, |(number, item)| format!("item {number}: {}", item.text)),
        State::Done if view.reason == Reason::None => view
            .summary
            .as_deref()
            .filter(|summary| !summary.is_empty())
            .map_or_else(String::new, quoted),
        _ => view.why(),
    }
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
        "access": view.record.access,
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
