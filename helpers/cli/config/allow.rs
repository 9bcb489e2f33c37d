//! `dispatch-config allow`: permission rules for the helpers in Claude Code's settings.
//!
//! What was put in is remembered in `~/.dispatch/allowed.json`, so that exactly that goes again and
//! a rule that the person had before stays.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::config::consent;
use crate::cli::say;
use crate::dirs;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;
use crate::host::settings;

/// How the person agrees.
#[derive(Clone, Copy)]
pub(super) enum Agreed {
    /// Is asked.
    Ask,
    /// Has agreed.
    Yes,
    /// Only wants to see the rules.
    DryRun,
}

/// The rules that were added and not taken out since, by settings file.
type Added = BTreeMap<PathBuf, BTreeSet<String>>;

/// Adds the rules for the launchers in these directories.
pub(super) fn allow(bins: &[PathBuf], agreed: Agreed) -> Result<Exit> {
    let (path, text) = settings()?;
    let mut rules = Vec::new();
    for bin in bins {
        rules.extend(settings::rules(&std::path::absolute(bin).context("no such directory")?));
    }
    let mut named = HashSet::new();
    rules.retain(|rule| named.insert(rule.clone()));
    let missing = settings::missing(text.as_deref(), &rules);
    let Some(new) = settings::add(text.as_deref(), &rules)? else { return nothing(&path) };
    say(format!("These permission rules will be added to {}:", path.display()));
    missing.iter().for_each(|rule| say(format!("  {rule}")));
    let Some(_lock) = begin(&path, &text, agreed)? else { return Ok(Exit::Ok) };
    // Before the settings, so that what is in them is always remembered.
    let mut added = added()?;
    added.entry(path.clone()).or_default().extend(missing.into_iter().map(|rule| rule.text));
    remember(&added)?;
    files::publish(&path, new.as_bytes())?;
    say("Done.");
    Ok(Exit::Ok)
}

/// Takes out what [`allow`] put in.
pub(super) fn disallow(agreed: Agreed) -> Result<Exit> {
    let (path, text) = settings()?;
    let mut added = added()?;
    let ours = added.remove(&path).unwrap_or_default();
    let (rules, others): (Vec<_>, Vec<_>) =
        settings::for_dispatch(text.as_deref()).into_iter().partition(|it| ours.contains(&it.text));
    for rule in others {
        say(format!("{rule} stays, because it was not added by this"));
    }
    let Some(new) = settings::remove(text.as_deref(), &rules)? else {
        // The person took them out by hand, and any that come back are the person's.
        if !matches!(agreed, Agreed::DryRun) {
            remember(&added)?;
        }
        return nothing(&path);
    };
    say(format!("These permission rules will be taken out of {}:", path.display()));
    rules.iter().for_each(|rule| say(format!("  {rule}")));
    let Some(_lock) = begin(&path, &text, agreed)? else { return Ok(Exit::Ok) };
    files::publish(&path, new.as_bytes())?;
    remember(&added)?;
    say("Done.");
    Ok(Exit::Ok)
}

/// The person's Claude Code settings.
fn settings() -> Result<(PathBuf, Option<String>)> {
    let path = settings::settings_path();
    let path = path.canonicalize().unwrap_or(path);
    let text = files::read(&path)?;
    Ok((path, text))
}

fn nothing(path: &Path) -> Result<Exit> {
    say(format!("nothing to change in {}", path.display()));
    Ok(Exit::Ok)
}

/// The lock on the settings, which are still that text; `None` if the person does not want it.
fn begin(path: &Path, text: &Option<String>, agreed: Agreed) -> Result<Option<std::fs::File>> {
    let agrees = match agreed {
        Agreed::Ask => consent("Go on?")?,
        Agreed::Yes => true,
        Agreed::DryRun => false,
    };
    if !agrees {
        say("Nothing was changed.");
        return Ok(None);
    }
    let directory = path.parent().context("the settings have no directory")?;
    files::create_private_directory(directory)?;
    // The directory is the lock, because a file beside the person's settings would stay there.
    let locked = std::fs::File::open(directory).and_then(|it| it.lock().map(|()| it));
    let lock = locked.with_context(|| format!("cannot lock {}", directory.display()))?;
    if files::read(path)? != *text {
        return Err(Refusal::new(Exit::TryAgain, "the settings have changed meanwhile")
            .place(path.display().to_string())
            .next("call again")
            .into());
    }
    Ok(Some(lock))
}

fn memory() -> Result<PathBuf> {
    Ok(dirs::dispatch_home()?.join("allowed.json"))
}

fn added() -> Result<Added> {
    let path = memory()?;
    let Some(text) = files::read(&path)? else { return Ok(Added::new()) };
    serde_json::from_str(&text).map_err(|error| {
        Refusal::new(Exit::Data, "it is not known any more which rules were added")
            .place(format!("{}: {error}", path.display()))
            .next("remove this file, and take the rules out of Claude Code's settings by hand")
            .into()
    })
}

fn remember(added: &Added) -> Result<()> {
    let path = memory()?;
    if added.is_empty() {
        return files::remove(&path);
    }
    files::create_private_directory(&dirs::dispatch_home()?)?;
    files::publish(&path, serde_json::to_string_pretty(added)?.as_bytes())
}
