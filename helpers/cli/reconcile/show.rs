//! `dispatch-reconcile show`: everything about one task.

use std::path::Path;

use anyhow::Result;

use crate::cli::reconcile::status::as_json;
use crate::cli::{done, fit, say};
use crate::domain::Worktree;
use crate::error::Exit;
use crate::files;
use crate::git::Contents;
use crate::ipc::{IpcText, Question};
use crate::news::ledger;
use crate::news::{changed_tests, events, remedy};
use crate::place;
use crate::process::calling_host;
use crate::task::{Attempt, ExitRecord, Record, State, Task, View, output};
use crate::text::{lossy, one_line, quoted, sanitize, short_duration, shorten};
use crate::worker::{self, sandbox};

/// The most bytes of the items, the questions, the notes and the attempts each.
const PART: usize = 3000;

/// How many of the newest questions, and of the newest attempts, are shown.
const QUESTIONS: usize = 10;
const ATTEMPTS: usize = 10;

/// How many of the worker's newest messages are shown.
const TELLS: usize = 5;

/// How many of the newest questions, and of the newest messages, are in the Markdown.
const MARKDOWN_MOST: usize = 100;

/// How many lines of the worker's output are shown.
const LAST_LINES: usize = 3;

/// The most bytes of a quotation in Markdown, and of the whole text, or of a report in JSON.
const LONGEST_BLOCK: usize = 64 << 10;
const LONGEST_TEXT: usize = 256 << 10;

/// Prints the lines that fit into a part's bytes, and counts the others, which are in a file or directory.
fn say_part(lines: impl Iterator<Item = String>, what: &str, place: &Path) {
    let (text, more) = fit(lines, "\n", PART);
    if !text.is_empty() {
        say(text);
    }
    say_more(more, what, place);
}

fn say_more(more: usize, what: &str, place: &Path) {
    if more > 0 {
        say(format!("… and {more} more {what}: {}", place.display()));
    }
}

/// The forms of `show`.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Form {
    /// Print JSON; a report that is JSON is in it as `report`
    #[arg(long)]
    json: bool,
    /// Print one text in Markdown, with the report and the size of the changes
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// The beginning of a report, if there is a readable one: a little more than is shown.
fn report(task: &Task) -> Option<String> {
    let most = LONGEST_TEXT as u64 + 1;
    files::read_start(&task.side().report_path(), most).ok().flatten().map(lossy)
}

/// How an attempt ended, and what it used.
fn end_of(attempt: &Attempt, is_running: bool) -> Result<String> {
    let end = match attempt.exit()? {
        Some(ExitRecord { stop_reason: Some(reason), at, .. }) => {
            format!("ended at {at}: {reason}")
        }
        Some(exit) => match (exit.code, exit.signal, exit.not_started) {
            (Some(code), ..) => format!("exit code {code} at {}", exit.at),
            (_, Some(signal), _) => format!("signal {signal} at {}", exit.at),
            (.., Some(why)) => format!("not started: {why}"),
            _ => format!("exit status unknown, end noticed at {}", exit.at),
        },
        None if is_running => "running".into(),
        None => "no exit recorded".into(),
    };
    let used = attempt.usage()?.map_or_else(String::new, |usage| format!(", {usage}"));
    Ok(format!("attempt {}: {end}{used}", attempt.number))
}

/// The result of the checks after an attempt, if they began.
fn checks_of(attempt: &Attempt) -> Result<Option<String>> {
    let Some(gate) = attempt.gate()? else { return Ok(None) };
    let tests = changed_tests(&gate);
    let late = if gate.notes.is_empty() { "" } else { "; continued with a note" };
    let commit = gate.commit.map_or_else(String::new, |commit| format!(" of {commit}"));
    Ok(Some(match (gate.failed, gate.checking) {
        (Some(check), _) => {
            let found = if check.is_review { &*format!(": {}", quoted(&check.output)) } else { "" };
            format!("check{commit}: {}: {}{found}", check.command, check.end)
        }
        (None, Some(command)) => format!("check{commit} runs: {command}"),
        (None, None) => {
            let review = gate.review.map_or_else(String::new, |review| format!("; {review}"));
            format!("checks{commit}: passed{review}{tests}{late}")
        }
    }))
}

/// A text of somebody as a quotation in Markdown.
fn block(text: &str) -> String {
    let text = shorten(sanitize(text).trim_end(), LONGEST_BLOCK);
    text.lines().map(|line| format!("{}\n", format!("> {line}").trim_end())).collect::<String>()
        + "\n"
}

/// Everything about a task for somebody who has nothing else, with what was said in quotations.
fn markdown(view: &View) -> Result<String> {
    let (task, record, because) = (&view.task, &view.record, view.because());
    let title = view.person_plan().title().map(one_line).unwrap_or_default();
    let mut text = format!(
        "# {}: {title}\n\n**Look for secrets before you pass this on:** the plan, the questions, the \
         report and the names of files are here as they were written.\n\n",
        task.id()
    );
    let mut facts = vec![
        format!("{}{}{because}", view.state, if because.is_empty() { "" } else { ": " }),
        format!("worker: {} ({}, {})", record.name, record.backend, record.access),
        format!("dispatched: {}", record.created),
    ];
    facts.extend(record.worktree.iter().map(|own| format!("branch: {}", own.branch)));
    facts.extend(view.usage().map(|usage| format!("used: {usage}")));
    facts.extend(record.demands().map(|it| format!("asked: {it}")));
    for attempt in task.attempts()? {
        let is_last = view.attempt.as_ref().is_some_and(|last| last.number == attempt.number);
        facts.push(end_of(&attempt, is_last && view.is_alive())?);
        facts.extend(checks_of(&attempt)?);
    }
    text.extend(facts.iter().map(|fact| format!("- {}\n", sanitize(fact).replace('\n', " "))));
    let said = |text: &str| if text.is_empty() { String::new() } else { block(text) };
    text += &format!("\n{}## Plan\n\n", said(view.summary.as_deref().unwrap_or_default()));
    text += &block(&view.plan.to_string());
    for Said { what, number, found, .. } in exchanges(task, MARKDOWN_MOST)?.1 {
        text += &format!("## {what} {number}\n\n{}", block(&found.text));
    }
    for (number, message) in task.side().tells(MARKDOWN_MOST).unwrap_or_default().1 {
        text += &format!("## Message {number}\n\n{}", block(&message));
    }
    let stat = |own: &Worktree| own.diff_stat(&own.base, &contents(record, own).ok()??.tip).ok();
    if let Some(stat) = record.worktree.as_ref().and_then(stat).filter(|it| !it.is_empty()) {
        let stat = shorten(&sanitize(&stat), LONGEST_BLOCK);
        // An indented block shows all as it is.
        let lines: String = stat.lines().map(|line| format!("    {line}\n")).collect();
        text += &format!("## Changes\n\n{lines}\n");
    }
    text.extend(report(task).map(|it| format!("## Report\n\n{}", block(&it))));
    Ok(shorten(text.trim_end(), LONGEST_TEXT))
}

/// The contents of a task's worktree, here or at its place.
fn contents(record: &Record, worktree: &Worktree) -> Result<Option<Contents>> {
    if record.place.is_some() { worktree.look_far() } else { worktree.look() }
}

/// A question or an answer.
struct Said {
    what: &'static str,
    number: String,
    found: IpcText,
    /// `false` for an answer that is not recorded: it may be the worker's own words.
    is_persons: bool,
}

/// The newest questions of a task with their answers, and how many older ones there are.
fn exchanges(task: &Task, most: usize) -> Result<(usize, Vec<Said>)> {
    let (ipc, answers, mut exchanges) = (task.side().ipc(), task.answers()?, Vec::new());
    let questions = ipc.questions().unwrap_or_default();
    let older = questions.len().saturating_sub(most);
    for Question { name, .. } in questions.into_iter().skip(older) {
        let recorded = answers.iter().find(|(other, _)| *other == name);
        let whole = |text: &String| Some(IpcText { text: text.clone(), is_whole: true });
        let (asked, answer) = match recorded {
            Some((_, it)) => (whole(&it.question), whole(&it.answer)),
            None => (ipc.question(&name).ok().flatten(), ipc.shown_answer(&name).ok().flatten()),
        };
        for (what, found, is_persons) in
            [("Question", asked, false), ("Answer", answer, recorded.is_some())]
        {
            let number = name.clone();
            exchanges.extend(found.map(|found| Said { what, number, found, is_persons }));
        }
    }
    Ok((older, exchanges))
}

/// Shows a task in one of the forms.
pub(super) fn show(task: &Task, form: Form) -> Result<Exit> {
    let view = task.view()?;
    if form.json {
        let mut json = as_json(&view);
        let report = report(task).filter(|it| it.len() <= LONGEST_TEXT);
        json["report"] =
            report.and_then(|it| serde_json::from_slice(it.as_bytes()).ok()).unwrap_or_default();
        return done(serde_json::to_string(&json)?);
    }
    if form.markdown {
        return done(markdown(&view)?);
    }
    let (record, state, because) = (&view.record, view.state, view.because());
    let because = if because.is_empty() { String::new() } else { format!(" ({because})") };
    let person = view.person_plan();
    say(format!("{} — {}", task.id(), person.title().unwrap_or("no title")));
    say(format!("{state}{because}, {}, {}", record.name, short_duration(view.age())));
    remedy(&view).iter().for_each(|remedy| say(format!("next: {remedy}")));
    sandbox::description(record).into_iter().for_each(say);
    record.demands().iter().for_each(|it| say(format!("asked: {it}")));
    let (usage, time) = task.spent(record, u32::MAX)?;
    for (part, _) in record.budget.parts(&usage, time) {
        say(format!("budget: {part} used by ended workers"));
    }
    if let Some(place) = &record.place {
        let remote = view.remote.clone().unwrap_or_default();
        let seen = if remote.seen.is_empty() { "not yet".into() } else { remote.seen };
        say(format!("on {place}, heard of at {seen}"));
        if view.state.is_running() && view.state != State::Unreachable {
            let _ = place::look(task, record);
        }
    }
    for (place, since) in place::left_at(record)? {
        let next = format!("to try now: dispatch-config places {place}");
        say(format!("still to be stopped on {place}, since {since}; {next}"));
    }
    if let Some(worktree) = &record.worktree {
        let contents = contents(record, worktree);
        if let Ok(Some(contents)) = &contents {
            files::publish(&task.shown_path(), contents.tip.as_bytes())?;
        }
        let standing = match contents {
            Ok(Some(contents)) => contents.to_string(),
            Ok(None) if record.place.is_some() => "no commits yet".into(),
            Ok(None) => "deleted".into(),
            Err(error) => format!("{error:#}").lines().next().unwrap_or_default().into(),
        };
        say(format!("worktree: {worktree}: {standing}"));
    }
    let collisions = files::read(&task.collisions_path())?.unwrap_or_default();
    collisions.lines().for_each(|line| say(format!("conflicts with {line}")));
    let items = view.plan.items().iter().map(|item| {
        let (text, notes) = person.attributed(item);
        let notes = notes.iter().map(|note| format!("\n      {note}")).collect::<String>();
        format!("{}. {} {text}{notes}", item.number, item.marker)
    });
    let doubts = view.plan.doubts().iter();
    let doubts = doubts.map(|doubt| format!("{doubt}: {}", quoted(&doubt.text)));
    say_part(items.chain(doubts), "items", &task.side().plan_path());
    if !view.plan.lost().is_empty() {
        let (id, skip) = (task.id(), view.plan.skip_lost());
        say(format!(
            "lost: {}; --resume puts back what is lost, or dispatch-spawn {id} --resume{skip}",
            view.plan.lost_words(Some(&person))
        ));
    }
    let (older, exchanges) = exchanges(task, QUESTIONS)?;
    let exchanges = exchanges.into_iter().map(|Said { what, number, found, is_persons }| {
        let text = if is_persons { one_line(&found.text) } else { quoted(&found.text) };
        format!("{} {number}{}: {text}", what.to_lowercase(), found.remark())
    });
    let ipc = task.side().ipc();
    say_more(older, "questions", ipc.directory());
    say_part(exchanges, "lines", ipc.directory());
    let notes = task.notes()?.into_iter().map(|(_, note)| format!("note: {}", one_line(&note)));
    say_part(notes, "notes", &task.side().plan_path());
    let (older, tells) = task.side().tells(TELLS).unwrap_or_default();
    say_more(older, "messages", &task.side().tells_dir());
    tells.iter().for_each(|(_, message)| say(format!("said: {}", quoted(message))));
    if let Some(summary) = view.summary.as_deref().filter(|summary| !summary.is_empty()) {
        say(format!("summary: {}", quoted(summary)));
    }
    let at_work = view.attempt.as_ref().filter(|_| view.is_alive() && view.state != State::Done);
    let attempts = task.attempts()?;
    let older = attempts.len().saturating_sub(ATTEMPTS);
    say_more(older, "attempts", &task.attempts_dir());
    for attempt in attempts.into_iter().skip(older) {
        let end = end_of(&attempt, at_work.is_some_and(|it| it.number == attempt.number))?;
        let log = attempt.log_path();
        let log = if log.is_file() { format!(", log {}", log.display()) } else { String::new() };
        say(format!("{end}{log}"));
        let review = attempt.errand("review").log_path();
        let log = match attempt.gate()?.and_then(|gate| gate.failed) {
            Some(check) if !check.is_review => Some(attempt.directory().join("check-*/log")),
            _ => Some(review).filter(|log| log.is_file()),
        };
        let log = log.map_or_else(String::new, |log| format!(", log {}", log.display()));
        checks_of(&attempt)?.iter().for_each(|checks| say(format!("{checks}{log}")));
    }
    if let Some(usage) =
        view.usage().filter(|_| view.attempt.as_ref().is_some_and(|it| it.number > 1))
    {
        say(format!("in total {usage}"));
    }
    for line in view.attempt.iter().flat_map(|attempt| output::last_lines(attempt, LAST_LINES)) {
        say(format!("output: {}", quoted(&line)));
    }
    let kept = worker::kept(task, record)?;
    if let Some((_, command)) = kept.last() {
        let (count, id) = (kept.len(), task.id());
        let command = quoted(command);
        say(format!(
            "left running: {count} processes ({command}); dispatch-reconcile stop {id} ends them"
        ));
    }
    let report = task.side().report_path();
    if report.is_file() {
        say(format!("report: {}", report.display()));
    }
    // The host that is shown its task is not woken for these news.
    if let Some(host) = calling_host().filter(|host| record.owner.as_ref() == Some(host)) {
        ledger::acknowledge(task, events(&view)?, &host)?;
    }
    Ok(Exit::Ok)
}
