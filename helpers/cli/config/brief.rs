//! `dispatch-config brief`: what a dispatcher needs to know, in a few lines.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;

use crate::cli::reconcile::{broken_line, status_line};
use crate::cli::{fit, say};
use crate::config::Config;
use crate::config::check::Problem;
use crate::error::Exit;
use crate::fault;
use crate::files::{self, Lock};
use crate::news::ledger::{self, Delivery, Ledger};
use crate::news::{Event, command, events};
use crate::process::{Identity, calling_host};
use crate::project::{Broken, Project};
use crate::repair::{Repaired, foreign_line, repair};
use crate::task::{State, View};
use crate::text::shorten;
use crate::tools::missing_program;

/// The most bytes that the brief prints before its last line; every typed `/dispatch` pays for them.
const BRIEF: usize = 1400 - LAST;

/// The most bytes of the line about repairs.
const REPAIRED: usize = 120;

/// How many problems of the config are listed.
const PROBLEMS: usize = 3;

/// The bytes of the last line, which counts the lines that were left out.
const LAST: usize = 56;

/// The age of a task at which the model's turn that dispatched it must have ended, with a hook.
const TURN: Duration = Duration::from_secs(60);

/// Prints what the skill shows the host's model at every `/dispatch`. A problem that the model can
/// solve is printed and is no failure.
pub(super) fn brief(project: &Project) -> Result<Exit> {
    let mut lines = Vec::new();
    match Config::load() {
        Ok(config) => {
            lines.push(names(&config));
            lines.extend(problems(&config));
            lines.extend(missing(&config));
            lines.extend(old_format(&config));
        }
        Err(error) => lines.push(format!("config: {error:#}")),
    }
    lines.extend(project.notice());
    let list = project.task_list();
    lines.extend(foreign_line(project, &list));
    let own = lines.len();
    let head: usize = lines.iter().map(|line| line.len() + 1).sum();
    let host = calling_host();
    let Repaired { views, mut broken, mut repairs } = repair(project, list);
    // Tasks without news come last, so that they never displace news.
    let (mut told, mut quiet) = (Vec::new(), Vec::new());
    for view in &views {
        let told_before = ledger::read(&view.task);
        let (deliveries, events) = match told_before.and_then(|it| Ok((it, events(view)?))) {
            Ok(both) => both,
            Err(error) => {
                broken.push(Broken::from_task(&view.task, error));
                continue;
            }
        };
        // A question needs its answer, even if the host that heard it is gone or forgot it.
        let open = |event: &Event| {
            event.is_question() || deliveries.get(&event.id) != Some(&Delivery::Acknowledged)
        };
        let open: Vec<Event> = events.into_iter().filter(open).collect();
        if open.is_empty() && matches!(view.state, State::Done | State::Stopped) {
            continue;
        }
        // A task that cannot be changed stays the other host's.
        let adopted =
            host.as_ref().is_some_and(|host| project.adopt_task(&view.task, host).unwrap_or(false));
        if adopted {
            repairs.add(view.task.id(), "adopted");
        }
        let mine = adopted || view.record.owner == host || host.is_none();
        if open.is_empty() || !mine {
            let whose = if mine { "" } else { " (another session's)" };
            quiet.push(format!("{}{whose}", status_line(view)));
            continue;
        }
        for event in open {
            let said = deliveries.get(&event.id) >= Some(&Delivery::Delivered);
            let before = if said { " (said before)" } else { "" };
            let full = format!("{}{before} {} → {}", event.id, event.line, event.next);
            if head + full.len() <= BRIEF {
                lines.push(full);
                told.push((view, event));
            } else {
                // Too long for any brief, so it counts as told only after `show` printed it.
                let all = format!("all of it: dispatch-reconcile show {}", view.task.id());
                let some = shorten(&event.line, 140);
                lines.push(format!("{}{before} {some} ({all}) → {}", event.id, event.next));
            }
        }
    }
    if !repairs.is_empty() {
        lines.push(shorten(&format!("repaired: {repairs}"), REPAIRED));
    }
    lines.extend(broken.iter().map(broken_line));
    lines.extend(quiet);
    if let Some(line) = monitor_advice(project, host.as_ref(), &views) {
        // News come first, because a worker may be waiting for an answer.
        lines.insert(own + usize::from(!told.is_empty()), line);
    }
    let (mut text, more) = fit(lines.into_iter(), "\n", BRIEF);
    told.retain(|(_, event)| text.contains(&event.id));
    if let Some(host) = &host {
        for (view, event) in &told {
            let ledger = Ledger::open(&view.task);
            let new = ledger.and_then(|mut it| it.deliver(event, Delivery::Delivered, Some(host)));
            let before = format!("{} (said before)", event.id);
            // A monitor may have delivered it meanwhile. After an error, it is only printed again.
            if !new.unwrap_or(true) && !text.contains(&before) {
                text = text.replace(&event.id, &before);
            }
        }
    }
    say(&text);
    if let Some(host) = &host {
        // Printed in full counts as acknowledged.
        for (view, event) in told {
            let _ = ledger::acknowledge(&view.task, vec![event], host);
        }
    }
    if more > 0 {
        say(format!("… and {more} more: dispatch-reconcile status"));
    }
    Ok(Exit::Ok)
}

/// The advice to run a monitor: a turn after the host dispatched a task, no hook has run, and the host
/// has no monitor.
fn monitor_advice(project: &Project, host: Option<&Identity>, views: &[View]) -> Option<String> {
    let settled = |view: &&View| {
        let open = view.state.is_running() || view.state.is_waiting();
        let ours = view.record.owner.as_ref() == host;
        open && ours && !view.task.was_recorded_within(fault::limit("DISPATCH_TURN_MS", TURN))
    };
    let tasks: Vec<&str> = views.iter().filter(settled).map(|it| it.task.id().as_str()).collect();
    let monitor = Lock::is_held(&project.monitor_lock_path(host)).unwrap_or(true);
    let hook = host.is_some_and(|host| project.hook_lock_path(host).exists());
    // A person at a terminal is not woken by a monitor.
    if tasks.is_empty() || monitor || hook || (host.is_none() && std::io::stdout().is_terminal()) {
        return None;
    }
    let monitor = command("dispatch-monitor").ok()?;
    let tasks = shorten(&tasks.join(", "), 60);
    Some(format!(
        "no hook wakes you here: run {monitor} in the background (Bash, run_in_background, timeout 7200000, description \"dispatch: {tasks}\"), and again each time it ends while tasks run"
    ))
}

/// The problems of the config, each in one line.
fn problems(config: &Config) -> Vec<String> {
    let problems = &config.problems;
    let mut lines: Vec<String> = problems.iter().take(PROBLEMS).map(Problem::line).collect();
    if let Some(more) = problems.len().checked_sub(PROBLEMS + 1) {
        lines.push(format!("… and {} more config problems: dispatch-config check", more + 1));
    }
    lines
}

/// The CLIs of the config that are not installed.
fn missing(config: &Config) -> Option<String> {
    let missing = |(name, backend): (&String, _)| missing_program(name, backend);
    let missing: Vec<String> = config.backends.iter().filter_map(missing).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// The offer to migrate a config of the old format, made once.
fn old_format(config: &Config) -> Option<String> {
    if !config.is_old_format() {
        return None;
    }
    let offered = config.path.with_file_name(".migrate-was-offered");
    // If the marker cannot be written, no offer is better than one in every brief.
    files::publish_new(&offered, b"").unwrap_or(false).then(|| {
        "the config has the old format, which works; tell the user once that /dispatch \"migrate my config\" upgrades it".into()
    })
}

/// The names that a person may use.
fn names(config: &Config) -> String {
    let mut text = format!("default: {}", config.default.as_deref().unwrap_or("none"));
    if config.confirm_default == Some(false) {
        text.push_str(" (no need to ask)");
    }
    let models = list(config.models.keys().chain(config.agents.keys()), 140);
    text += &format!("; models: {}", models.as_deref().unwrap_or("none"));
    text += &list(config.aliases.keys(), 60).map_or("".into(), |it| format!("; aliases: {it}"));
    text += &list(config.places.keys(), 60).map_or("".into(), |it| format!("; places: {it}"));
    text
}

/// As many names as fit, at least one, and the number of the others.
fn list<'a>(names: impl Iterator<Item = &'a String>, bytes: usize) -> Option<String> {
    let (text, more) = fit(names.cloned(), ", ", bytes);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(text + &more).filter(|text| !text.is_empty())
}
