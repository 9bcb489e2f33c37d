//! Answer: the person's answer reaches the worker that asked, or the next one if that has ended.

use anyhow::Result;

use crate::domain::Route;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::ipc::IpcText;
use crate::news::ledger::{self, Ledger};
use crate::news::{command_for, events, question_key};
use crate::project::Project;
use crate::task::{Answer, State, Task};
use crate::text::quoted;
use crate::worker::agent;
use crate::worker::supervise::{self, Only};

/// The question that `TASK[/NNN]` names; without a number, the newest open one.
///
/// # Errors
/// [`Exit::Data`] if there is no such task or question.
pub fn find_question(project: &Project, target: &str) -> Result<(Task, String)> {
    let id = target.split('/').next().unwrap_or_default();
    let number = target.split_once('/').map(|(_, number)| number);
    let task = project.existing_task(&id.parse()?)?;
    let questions = task.side().ipc().questions()?;
    let open: Vec<_> = task.view()?.questions.into_iter().map(|(open, _)| open.name).collect();
    let question = match number {
        Some(number) => questions.iter().find(|question| question.name == number),
        None => questions.iter().rev().find(|question| open.contains(&question.name)),
    };
    if let Some(question) = question {
        return Ok((task, question.name.clone()));
    }
    let missing = number.map_or("open question".into(), |number| format!("question {number}"));
    let names: Vec<_> = questions.iter().map(|question| question.name.as_str()).collect();
    let place = match names.is_empty() {
        true => "it never asked".into(),
        false => format!("it asked {}", names.join(", ")),
    };
    let next = format!("dispatch-reconcile show {id}");
    Refusal::new(Exit::Data, format!("'{id}' has no {missing}")).place(place).refuse(next)
}

/// Records and publishes an answer, and resumes the task if its worker has ended. Returns a line about
/// what follows.
///
/// # Errors
/// [`Exit::Data`] if the question cannot be answered; the text of the error says why.
pub fn answer(task: &Task, question: &str, text: &str) -> Result<String> {
    let (id, spawn) = (task.id(), command_for(task, "dispatch-spawn")?);
    // Read the state first: an orphaned `ask` of a dead worker may take the answer.
    let over = task.view()?.state.has_work_left();
    if let Err(refusal) = post(task, question, text, over) {
        // An earlier call may have been killed between the answer and its effect.
        task.publish_answers()?;
        supervise::resume_if_answered(&task.view()?);
        return Err(refusal);
    }
    fault::point("answer", "posted");
    let view = task.view()?;
    let follows = match (view.record.route, view.state) {
        (Route::Cli, _) if view.has_late_answer() => {
            match supervise::start(task, Some(Only::Answered)) {
                Ok(None) => ", its worker had ended and was resumed".into(),
                Ok(Some(wait)) => format!(", its worker had ended; the task waits {wait}"),
                // The answer is stored, so this is no failure of the command.
                Err(error) => format!(
                    ", but its worker had ended and could not start: {error:#}\n  next: correct that, then run {spawn} {id} --resume"
                ),
            }
        }
        (Route::Agent, _) if over || view.has_late_answer() => {
            format!("; its agent has ended: {}", agent::resume(task, &view.record)?)
        }
        (_, State::Stopped) => format!("; it was stopped: {spawn} {id} --resume continues it"),
        (_, State::Done) => ", but it is done".into(),
        _ => ", its worker continues".into(),
    };
    Ok(format!("{id}/{question} answered{follows}"))
}

/// Records an answer, and publishes the worker's copy. `over` is whether the worker has ended.
///
/// # Errors
/// [`Exit::Data`] if there is no such question, it has an answer, it is not the question that was
/// shown, or the answer is empty.
fn post(task: &Task, question: &str, text: &str, over: bool) -> Result<()> {
    let (id, ipc) = (task.id(), task.side().ipc());
    let show = format!("dispatch-reconcile show {id}");
    if text.trim().is_empty() {
        return Refusal::new(Exit::Data, "the answer is empty")
            .refuse("give the text, or - and the text on standard input");
    }
    // The lock excludes a resume, which passes answers on.
    let _lock = task.lock()?;
    let Some(IpcText { text: asked, is_whole }) = ipc.question(question)? else {
        return Refusal::new(Exit::Data, format!("there is no question {question}"))
            .place(format!("in {}", ipc.directory().display()))
            .refuse(show);
    };
    let has_answer = || {
        Refusal::new(Exit::Data, format!("question {question} has an answer already"))
            .place(format!("{show} prints it"))
            .next("to tell the worker more, use: dispatch-reconcile note")
    };
    let recorded = task.answers()?.into_iter().find(|(name, _)| name == question);
    if let Some((_, recorded)) = recorded {
        // A killed call that is repeated may still have to publish the copy.
        if recorded.answer == text && !ipc.has_answer(question) {
            return ipc.publish_answer(question, text);
        }
        return Err(has_answer().into());
    }
    if ipc.has_answer(question) && !over {
        return Err(has_answer().into());
    }
    if ipc.was_received(question) {
        let what = format!("nobody waits for an answer to {id}/{question} any more");
        return Refusal::new(Exit::Data, what)
            .refuse(format!("tell the worker with dispatch-reconcile note {id} -"));
    }
    let obstacle = match ledger::was_told(task, question, &asked)? {
        Some(false) => Some("has changed since it was told"),
        None if !is_whole => Some("is being written"),
        _ => None,
    };
    if let Some(obstacle) = obstacle {
        let what = format!("question {question} of '{id}' {obstacle}");
        // This call shows the text, so the next one may answer it.
        let key = question_key(question, &asked);
        let event = events(&task.view()?)?.into_iter().find(|event| event.key == key);
        event.map_or(Ok(()), |event| Ledger::open(task)?.show(&event))?;
        return Refusal::new(Exit::Data, what)
            .place(format!("it is now: {}", quoted(&asked)))
            .refuse(format!("{show}, then answer what it asks"));
    }
    let answer = Answer { question: asked, answer: text.into() };
    if !task.record_answer(question, &answer)? {
        return Err(has_answer().into());
    }
    fault::point("answer", "recorded");
    ipc.publish_answer(question, text)
}
