//! `dispatch-reconcile adopt`: takes over the tasks of a project that was moved, copied or replaced.

use anyhow::Result;

use crate::cli::{agree, say};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::project::{Project, Standing};

/// Shows what would be taken over, asks the person, and takes it over. Starts nothing.
pub(super) fn adopt(project: &Project) -> Result<Exit> {
    let candidates = match project.standing() {
        Standing::New | Standing::Same => Vec::new(),
        _ => project.candidates()?,
    };
    if candidates.is_empty() {
        say(format!("nothing to adopt in {}", project.root().display()));
        return Ok(Exit::Ok);
    }
    for candidate in &candidates {
        let (view, id) = (&candidate.view, candidate.view.task.id());
        let what = format!("{id} ({}, {}, {})", view.state, view.record.name, view.record.access);
        match candidate.obstacle {
            None if view.state.is_waiting() => say(format!("{what}: it will start")),
            None => say(what),
            Some(why) => say(format!("{what}: stays, {why}")),
        }
    }
    let stuck = candidates.iter().find(|it| it.obstacle.is_some());
    if let (Some(stuck), Standing::Moved(_)) = (stuck, project.standing()) {
        let id = stuck.view.task.id();
        return Err(Refusal::new(Exit::TryAgain, format!("'{id}' is running"))
            .place("its supervisor works at the project's old place")
            .next(format!("wait for its end, or stop it: dispatch-reconcile stop {id}"))
            .into());
    }
    let count = candidates.iter().filter(|it| it.obstacle.is_none()).count();
    if !agree(&format!("Take over {count} task(s) into {}?", project.root().display()))? {
        say("Nothing was changed.");
        return Ok(Exit::Ok);
    }
    project.adopt(&candidates)?;
    say("Done.");
    Ok(Exit::Ok)
}
