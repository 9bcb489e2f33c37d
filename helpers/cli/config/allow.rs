//! `dispatch-config allow`: permission rules for the helpers in Claude Code's settings.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::consent;
use crate::cli::say;
use crate::config::permissions;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;

/// Changes the person's Claude Code settings, after showing the rules and asking.
pub(super) fn allow(bins: &[PathBuf], remove: bool, yes: bool) -> Result<Exit> {
    let mut rules = Vec::new();
    for bin in bins {
        rules.extend(permissions::rules(&std::path::absolute(bin).context("no such directory")?));
    }
    let mut named = std::collections::HashSet::new();
    rules.retain(|rule| named.insert(rule.clone()));
    let path = permissions::settings_path();
    let path = path.canonicalize().unwrap_or(path);
    let text = files::read(&path)?;
    let new = if remove {
        permissions::remove(text.as_deref(), &rules)?
    } else {
        permissions::add(text.as_deref(), &rules)?
    };
    let Some(new) = new else {
        say(format!("nothing to change in {}", path.display()));
        return Ok(Exit::Ok);
    };
    let verb = if remove { "taken out of" } else { "added to" };
    say(format!("These permission rules will be {verb} {}:", path.display()));
    rules.iter().for_each(|rule| say(format!("  {rule}")));
    if !yes && !consent("Go on?")? {
        say("Nothing was changed.");
        return Ok(Exit::Ok);
    }
    let directory = path.parent().context("the settings have no directory")?;
    files::make_private_directory(directory)?;
    // The directory is the lock, because a file beside the person's settings would stay there.
    let locked = std::fs::File::open(directory).and_then(|it| it.lock().map(|()| it));
    let _lock = locked.with_context(|| format!("cannot lock {}", directory.display()))?;
    if files::read(&path)? != text {
        return Err(Refusal::new(Exit::TryAgain, "the settings have changed meanwhile")
            .place(path.display().to_string())
            .next("call again")
            .into());
    }
    files::publish(&path, new.as_bytes())?;
    say("Done.");
    Ok(Exit::Ok)
}
