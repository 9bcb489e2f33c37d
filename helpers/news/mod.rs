//! News: the events of a task that its host must hear of, and the remedy for each.
//!
//! Invariant: events are derived from the task's files, so no crash loses one. The [`ledger`] only
//! records which events were delivered and which of those the host has seen.

pub mod ledger;
pub mod notify;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::config::{Choice, Config};
use crate::domain::{Failure, FailureKind, Route};
use crate::fault;
use crate::files;
use crate::ids::short_hash;
use crate::ipc::IpcText;
use crate::plan::Marker;
use crate::process::launcher;
use crate::task::{Gate, Reason, State, Task, View, Wait};
use crate::text::{quoted, shell_word, short_duration};
use crate::tools;

/// How long a host program may take to report its agent's end.
const HOST_REPORT_LIMIT: Duration = Duration::from_secs(60);

/// How many messages of a worker are news at one time. Older ones are counted.
pub const MOST_TELLS: usize = 20;

/// A piece of news about a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `#` and eight hexadecimal digits, a hash of the task's nonce and the key.
    pub id: String,
    /// The event's name within its task: `question/001/HASH`, `tell/002`, `end/1/done`.
    pub key: String,
    /// The text, in one line and without the id.
    pub line: String,
    /// The instruction to the host.
    pub next: String,
}

impl Event {
    fn new(view: &View, key: String, line: String, next: String) -> Self {
        Self { id: short_id(&view.record.nonce, &key), key, line, next }
    }

    /// Returns true if the event is a question without an answer.
    pub fn is_question(&self) -> bool {
        self.key.starts_with("question/")
    }

    /// Returns true if the event is a message that waits for nothing.
    pub fn is_tell(&self) -> bool {
        self.key.starts_with("tell/")
    }

    /// Returns true if the event is the end of an attempt.
    pub fn is_end(&self) -> bool {
        self.key.starts_with("end/")
    }
}

/// All events of a task: the worker's messages, open questions, lack of progress, then the end.
///
/// # Errors
/// Messages that cannot be read, or helpers that are not installed.
pub fn events(view: &View) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    let (id, name) = (view.task.id(), view.name());
    let (older, tells) = view.task.side().tells(MOST_TELLS)?;
    for (index, (number, text)) in tells.into_iter().enumerate() {
        let before = match older {
            1.. if index == 0 => {
                format!(" (after {older} more, in {})", view.task.side().tells_dir().display())
            }
            _ => String::new(),
        };
        let line = format!("{name} says{before}: {}", quoted(&text));
        events.push(Event::new(view, format!("tell/{number}"), line, "tell the user".into()));
    }
    // Nobody waits for answers after a stop or a finish.
    let over = matches!(view.state, State::Stopped | State::Done);
    // Only a process that waits may take a question that is being written.
    let questions = view.questions.iter().filter(|(_, found)| found.is_whole && !over);
    for (question, IpcText { text, .. }) in questions {
        let line = format!("{name} asks ({}): {}", question.name, quoted(text));
        let next = format!(
            "ask the user, then run: {} --answer {id}/{} - <<'END_TEXT' (the answer, then END_TEXT)",
            command_for(&view.task, "dispatch-monitor")?,
            question.name,
        );
        events.push(Event::new(view, question_key(&question.name, text), line, next));
    }
    events.extend(no_progress_event(view)?);
    if view.state.has_ended() {
        events.push(end_event(view)?);
    }
    Ok(events)
}

/// The key of the event of a question. It holds the text: a question that changed after it was told
/// is another one.
pub fn question_key(number: &str, text: &str) -> String {
    format!("question/{number}/{}", short_hash(text.trim_end().as_bytes()))
}

/// The event of a task that makes no progress because it is silent, parked or held.
fn no_progress_event(view: &View) -> Result<Option<Event>> {
    let (id, name) = (view.task.id(), view.name());
    let items = format!("{}/{}", view.plan.done(), view.plan.items().len());
    let attempt = view.attempt.as_ref().map_or(0, |attempt| attempt.number);
    let explanation = view.because();
    let spawn = command_for(&view.task, "dispatch-spawn")?;
    let (key, line, next) = match &view.reason {
        Reason::Silent(since) => (
            format!("silent/{attempt}/{since}"),
            format!("{name} silent ({items}): {explanation}"),
            format!(
                "tell the user; {} stop {id} ends it",
                command_for(&view.task, "dispatch-reconcile")?
            ),
        ),
        // While the next attempt is being created, the wait of the last one still exists.
        Reason::Waits(Wait::Parked { fallback: None, .. }) if view.exit.is_some() => (
            format!("parked/{attempt}"),
            format!("{name} parked ({items}): {explanation}"),
            "tell the user; the task resumes when the limit resets".into(),
        ),
        Reason::Waits(Wait::Held { task, obstacle }) => (
            format!("held/{task}/{obstacle}"),
            format!("{name} {explanation}"),
            format!("tell the user and ask; {spawn} {id} --resume starts it anyway"),
        ),
        _ => return Ok(None),
    };
    Ok(Some(Event::new(view, key, line, next)))
}

/// A helper's launcher as a shell word, as the host calls it.
///
/// # Errors
/// The helpers are not installed.
pub fn command(helper: &str) -> Result<String> {
    Ok(shell_word(&launcher(helper)?.display().to_string()))
}

/// A helper's launcher as the host calls it for a task.
///
/// # Errors
/// The helpers are not installed.
pub fn command_for(task: &Task, helper: &str) -> Result<String> {
    Ok(command(helper)? + &task.option())
}

/// The remark that the worker changed tests, on which a check may rest; may be empty.
pub fn changed_tests(gate: &Gate) -> String {
    match gate.tests.as_str() {
        "" => String::new(),
        tests => format!("; {} changed", quoted(tests)),
    }
}

/// The event of an attempt's end.
fn end_event(view: &View) -> Result<Event> {
    let items = format!("{}/{}", view.plan.done(), view.plan.items().len());
    let line = if view.state == State::Done {
        done_line(view, &items)
    } else {
        let is_blocked = view.state == State::Blocked;
        let age = match is_blocked && !view.is_at_limit() {
            true => String::new(),
            false => format!(", {}", short_duration(view.age())),
        };
        let because = Some(view.because()).filter(|it| !it.is_empty());
        let because = because.map_or_else(String::new, |because| format!(": {because}"));
        let has_next = is_blocked && view.is_at_limit() || view.state == State::Incomplete;
        // The first open item.
        let left = view.plan.first(Marker::Open).filter(|_| has_next);
        let left = left.map(|item| format!("; next is {}", view.item_words(item)));
        let left = left.unwrap_or_default();
        format!("{} {} ({items}{age}){because}{left}", view.name(), view.state)
    };
    let attempt = view.attempt.as_ref().map_or(0, |attempt| attempt.number);
    Ok(Event::new(view, format!("end/{attempt}/{}", view.state), line, instruction(view)?))
}

/// The line about a task that is done.
fn done_line(view: &View, items: &str) -> String {
    let checked = view.gate.as_ref().map_or(String::new(), |gate| {
        let checks = match gate.moved {
            _ if view.record.checks.is_empty() => "",
            Some(_) => ", checked before its last commit",
            None => ", checked",
        };
        let review = gate.review.as_ref().map(|it| format!(", {it}")).unwrap_or_default();
        format!("{checks}{review}{}", changed_tests(gate))
    });
    let branch = view.record.worktree.as_ref().map(|own| format!(" on branch {}", own.branch));
    let summary = view.summary.as_deref().filter(|it| !it.is_empty());
    let summary = summary.map(|it| format!(": {}", quoted(it)));
    let report = Some(view.task.side().report_path()).filter(|path| path.is_file());
    let report = report.map(|it| format!(" Report: {}", it.display()));
    let rest: String = [branch, summary, report].into_iter().flatten().collect();
    format!("{} done ({items}, {}{checked}){rest}", view.name(), short_duration(view.age()))
}

/// The action after which a task continues that does not continue by itself.
enum Remedy {
    /// Answer the question with this number.
    Answer(String),
    /// Resume with this option, which begins with a space or is empty.
    Resume(&'static str),
    /// Log in with this command, then resume.
    Login(String),
    /// Change a flag in this backend's `command:`.
    Flag(String),
    /// Stop the task.
    Stop,
}

impl Remedy {
    /// The remedy for a task; `None` if the task needs none.
    fn for_task(view: &View) -> Option<Self> {
        let questions = view.whole_questions();
        let mut questions = questions.map(|question| Self::Answer(question.name.clone()));
        let resume = Some(Self::Resume(""));
        let failure = match &view.reason {
            Reason::Cli(failure) => Some(failure.kind),
            _ => None,
        };
        match (view.state, failure) {
            (State::Asking, _) => questions.next(),
            (State::Blocked, _) if !view.has_late_answer() => questions.next_back().or(resume),
            (State::Silent, _) => Some(Self::Stop),
            (State::Denied, _) | (_, Some(FailureKind::Sandbox)) => {
                match current_choice(view).and_then(|it| it.settings.command) {
                    Some(_) => Some(Self::Flag(view.record.backend.clone())),
                    None => Some(Self::Resume(" --access full")),
                }
            }
            (_, Some(FailureKind::Model)) => Some(Self::Resume(" --model NAME")),
            (_, Some(FailureKind::Auth)) => {
                let choice = current_choice(view);
                let cli = choice.and_then(|it| tools::by_backend(&it.backend, &it.settings));
                cli.map(|cli| Self::Login(cli.login.into())).or(resume)
            }
            (state, _) if state == State::Held || state.has_work_left() => resume,
            _ => None,
        }
    }
}

/// The command line that helps a task on which does not continue by itself; a flag that only the config can
/// change as text. `None` if the task needs nothing.
pub fn remedy(view: &View) -> Option<String> {
    let (id, at) = (view.task.id(), view.task.option());
    Some(match Remedy::for_task(view)? {
        Remedy::Answer(question) => format!("dispatch-monitor{at} --answer {id}/{question} -"),
        Remedy::Resume(option) => format!("dispatch-spawn{at} {id} --resume{option}"),
        Remedy::Login(command) => command,
        Remedy::Flag(backend) => format!("another flag in backends.{backend}.command"),
        Remedy::Stop => format!("dispatch-reconcile{at} stop {id}"),
    })
}

/// The instruction to the host after an end.
fn instruction(view: &View) -> Result<String> {
    let (task, id) = (&view.task, view.task.id());
    let resume = format!("{} {id} --resume", command_for(task, "dispatch-spawn")?);
    let ask = "tell the user and ask;";
    let effect = match view.state {
        State::Denied => "lets it do anything",
        _ => "works without a sandbox",
    };
    let skip = |item: &str| format!(", --resume --skip {item}");
    Ok(match (view.state, Remedy::for_task(view), &view.reason) {
        (State::Done, ..) => match &view.record.worktree {
            Some(_) => format!(
                "tell the user; if they want it, {} merge {id} brings it back",
                command_for(task, "dispatch-reconcile")?
            ),
            None => "tell the user".into(),
        },
        (State::Blocked, ..) if view.is_at_limit() => {
            format!("tell the user and ask whether to continue with as much again; {resume} does")
        }
        (State::Blocked, ..) if view.has_late_answer() => {
            format!("the answer is there: {resume} continues with it")
        }
        (State::Blocked, Some(Remedy::Answer(question)), _) => format!(
            "ask the user; {} --answer {id}/{question} - resumes it",
            command_for(task, "dispatch-monitor")?
        ),
        (State::Blocked, _, reason) => {
            let without = match reason {
                Reason::Item(item) => skip(item) + " without that item",
                _ => String::new(),
            };
            format!("ask the user; with the answer as a note, {resume} continues{without}")
        }
        (State::Incomplete, ..) => {
            let without = match view.plan.skip_lost() {
                lost if lost.is_empty() => lost,
                lost => format!(", --resume{lost} continues without what the plan lost"),
            };
            format!("tell the user what is left and ask; {resume} does the rest{without}")
        }
        (_, Some(Remedy::Login(login)), _) => {
            format!("the user must log in ({login}); then {resume}")
        }
        (_, Some(Remedy::Flag(backend)), _) => {
            format!("{ask} another flag in backends.{backend}.command of the config {effect}")
        }
        (_, Some(Remedy::Resume(option @ " --access full")), _) => {
            format!("{ask} {resume}{option} {effect}")
        }
        (_, Some(Remedy::Resume(option @ " --model NAME")), _) => {
            format!("ask the user which model instead; {resume}{option}")
        }
        (.., Reason::Cli(Failure { kind: FailureKind::Untrusted, .. })) => {
            let directory = view.record.directory.display();
            format!("the user must let it trust {directory}; then {resume}")
        }
        (.., Reason::Cli(Failure { kind: FailureKind::Network, .. })) => {
            format!("{ask} when the network is back, {resume}")
        }
        (.., reason) => {
            let other = match reason {
                Reason::Item(item) => skip(item) + " continues without that item",
                Reason::NotStarted(_) | Reason::Cli(_) => ", --model NAME with another".into(),
                _ => String::new(),
            };
            format!("{ask} {resume} tries again{other}")
        }
    })
}

/// The task's worker by the config as it is now; `None` if the config has no such worker.
fn current_choice(view: &View) -> Option<Choice> {
    Config::load().ok()?.resolve(Some(&view.record.name)).ok()
}

/// How long the host program may still take to report the end of its agent, which is done; `None` if
/// it has nothing to report or its time is over.
pub fn host_report_time_left(view: &View) -> Option<Duration> {
    let agent = view.record.route == Route::Agent && !view.processes.is_empty();
    if !agent || view.state != State::Done {
        return None;
    }
    let age = view.task.side().ipc().finished_at()?.elapsed().ok()?;
    let left = fault::limit("DISPATCH_REPORT_MS", HOST_REPORT_LIMIT).checked_sub(age)?;
    Some(left).filter(|left| !left.is_zero())
}

/// The id of the event with this key, of the task with this nonce.
fn short_id(nonce: &str, key: &str) -> String {
    format!("#{}", short_hash(format!("{nonce}/{key}").as_bytes()))
}

/// The event ids in a text, in their order.
pub fn event_ids_in(text: &str) -> Vec<&str> {
    let is_id = |id: &&str| id.len() == 9 && id[1..].bytes().all(|b| b.is_ascii_hexdigit());
    text.match_indices('#').filter_map(|(at, _)| text.get(at..at + 9)).filter(is_id).collect()
}

/// The lines (JSON) of the host's transcript that its model was shown, from the end of the file.
pub fn shown_in_transcript(path: &Path) -> Result<Vec<String>> {
    /// How many bytes of the transcript's end are read; a wake-up is near the end.
    const TAIL: u64 = 1 << 20;
    let tail = files::tail(path, TAIL)?;
    let tail = String::from_utf8_lossy(&tail);
    // A wake-up during a turn is first queued, and shown as `queued_command` later.
    let shown = |line: &&str| {
        line.contains("\"type\":\"user\"") || line.contains("\"type\":\"queued_command\"")
    };
    Ok(tail.lines().filter(shown).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_id_is_short_and_never_changes() {
        assert_eq!(short_id("00000000deadbeef", "question/001"), "#bb8c8873");
    }

    #[test]
    fn event_ids_are_found_in_any_text() {
        assert_eq!(event_ids_in("a #1a2b3c4d, ##deadbeef #zz #123 é#"), ["#1a2b3c4d", "#deadbeef"]);
    }
}
