//! `dispatch-reconcile show`: everything about one task.

use anyhow::Result;

use crate::cli::reconcile::status::as_json;
use crate::cli::say;
use crate::exit::Exit;
use crate::files;
use crate::ipc::IpcText;
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{Remedy, changed_tests, events};
use crate::process::calling_host;
use crate::task::{Answer, ExitRecord, State, Task, View, output};
use crate::text::{one_line, quoted, sanitize, short_duration};
use crate::worker::sandbox;

/// How many lines of the worker's output are shown.
const LAST_LINES: usize = 3;

/// Acknowledges a task's news for the host that is shown the task, so that it is not woken for them.
fn acknowledge_shown(view: &View) -> Result<()> {
    let Some(host) = calling_host().filter(|host| view.record.owner.as_ref() == Some(host)) else {
        return Ok(());
    };
    let told = ledger::read(&view.task)?;
    for event in events(view)? {
        if told.get(&event.id) != Some(&Delivery::Acknowledged) {
            let mut ledger = Ledger::open(&view.task)?;
            ledger.deliver(&event, Some(&host))?;
            ledger.acknowledge(&event.id)?;
        }
    }
    Ok(())
}

fn whole(text: String) -> Option<IpcText> {
    Some(IpcText { text, is_whole: true })
}

pub(super) fn show(task: &Task, json: bool) -> Result<Exit> {
    let view = task.view()?;
    if json {
        say(serde_json::to_string(&as_json(&view))?);
        return Ok(Exit::Ok);
    }
    // The worker's files may hold any bytes.
    let say = |line: String| say(sanitize(&line));
    let (record, state, because) = (&view.record, view.state, view.because());
    let because = if because.is_empty() { String::new() } else { format!(" ({because})") };
    let person = view.person_plan();
    say(format!("{} — {}", task.id(), person.title().unwrap_or("no title")));
    say(format!("{state}{because}, {}, {}", record.name, short_duration(view.age())));
    if let Some(remedy) = Remedy::for_task(&view) {
        say(format!("next: {}", remedy.command(task)));
    }
    sandbox::description(record).into_iter().for_each(say);
    let (usage, time) = task.spent(record, u32::MAX)?;
    for (part, _) in record.budget.parts(&usage, time) {
        say(format!("budget: {part} used by ended workers"));
    }
    if let Some(worktree) = &record.worktree {
        let contents = worktree.look();
        if let Ok(Some(contents)) = &contents {
            files::publish(&task.shown_path(), contents.tip.as_bytes())?;
        }
        let standing = match contents {
            Ok(Some(contents)) => contents.to_string(),
            Ok(None) => "deleted".into(),
            Err(error) => format!("{error:#}").lines().next().unwrap_or_default().into(),
        };
        say(format!("worktree: {worktree}: {standing}"));
    }
    let collisions = files::read(&task.collisions_path())?.unwrap_or_default();
    collisions.lines().for_each(|line| say(format!("conflicts with {line}")));
    let words = person.words();
    for item in view.plan.items() {
        let (text, notes) = words.attributed(item);
        say(format!("{}. {} {text}", item.number, item.marker));
        notes.iter().for_each(|note| say(format!("      {note}")));
    }
    for doubt in view.plan.doubts() {
        say(format!("{doubt}: {}", quoted(&doubt.text)));
    }
    if !view.plan.lost().is_empty() {
        let (id, skip) = (task.id(), view.plan.skip_lost());
        say(format!(
            "lost: {}; --resume puts back what is lost, or dispatch-spawn {id} --resume{skip}",
            view.plan.lost_words(Some(&person))
        ));
    }
    let (ipc, answers) = (task.side().ipc(), task.answers()?);
    for question in ipc.questions().unwrap_or_default() {
        let name = &question.name;
        let recorded = answers.iter().find(|(other, _)| other == name).map(|(_, it)| it.clone());
        let (asked, answer) = match &recorded {
            Some(Answer { question, .. }) => (whole(question.clone()), None),
            None => (ipc.question(name).ok().flatten(), ipc.answer(name).ok().flatten()),
        };
        for (what, found) in [("question", asked), ("answer", answer)] {
            let Some(found) = found else { continue };
            say(format!("{what} {name}{}: {}", found.remark(), quoted(&found.text)));
        }
        // An answer that is not recorded may be the worker's own words.
        recorded.iter().for_each(|it| say(format!("answer {name}: {}", one_line(&it.answer))));
    }
    for (_, note) in task.notes()? {
        say(format!("note: {}", one_line(&note)));
    }
    for (_, message) in task.side().tells().unwrap_or_default() {
        say(format!("said: {}", quoted(&message)));
    }
    if let Some(summary) = view.summary.as_deref().filter(|summary| !summary.is_empty()) {
        say(format!("summary: {}", quoted(summary)));
    }
    let at_work = view.attempt.as_ref().filter(|_| view.is_alive() && view.state != State::Done);
    for attempt in task.attempts()? {
        let number = attempt.number;
        let exit = attempt.exit()?;
        let used = attempt.usage()?.map_or_else(String::new, |usage| format!(", {usage}"));
        let end = match exit {
            Some(ExitRecord { stop_reason: Some(reason), at, .. }) => {
                format!("ended at {at}: {reason}")
            }
            Some(exit) => match (exit.code, exit.signal, exit.not_started) {
                (Some(code), ..) => format!("exit code {code} at {}", exit.at),
                (_, Some(signal), _) => format!("signal {signal} at {}", exit.at),
                (.., Some(why)) => format!("not started: {why}"),
                _ => format!("exit status unknown, end noticed at {}", exit.at),
            },
            None if at_work.is_some_and(|it| it.number == number) => "running".into(),
            None => "no exit recorded".into(),
        };
        let log = attempt.log_path();
        let log = if log.is_file() { format!(", log {}", log.display()) } else { String::new() };
        say(format!("attempt {number}: {end}{used}{log}"));
        let Some(gate) = attempt.gate()? else { continue };
        let tests = changed_tests(&gate);
        let late = if gate.notes.is_empty() { "" } else { "; continued with a note" };
        let commit = gate.commit.map_or_else(String::new, |commit| format!(" of {commit}"));
        match (gate.failed, gate.checking) {
            (Some(check), _) => say(format!(
                "check{commit}: {}: {}, log {}",
                check.command,
                check.end,
                attempt.directory().join("check-*/log").display()
            )),
            (None, Some(command)) => say(format!("check{commit} runs: {command}")),
            (None, None) => say(format!("checks{commit}: passed{tests}{late}")),
        }
    }
    if let Some(usage) =
        view.usage().filter(|_| view.attempt.as_ref().is_some_and(|it| it.number > 1))
    {
        say(format!("in total {usage}"));
    }
    for line in view.attempt.iter().flat_map(|attempt| output::last_lines(attempt, LAST_LINES)) {
        say(format!("output: {}", quoted(&line)));
    }
    let report = task.side().report_path();
    if report.is_file() {
        say(format!("report: {}", report.display()));
    }
    acknowledge_shown(&view)?;
    Ok(Exit::Ok)
}
