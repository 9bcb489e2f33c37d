//! `dispatch-config detect`, `models` and `setup`: the CLIs on this machine and the first config.

use std::io::IsTerminal;

use anyhow::Result;
use serde_json::json;

use crate::cli::config::consent;
use crate::cli::{ask, done, say};
use crate::config::setup::{Offer, gaps, holds_claude, models as models_of, offers, text};
use crate::config::{Config, choose, edit};
use crate::domain::Route;
use crate::error::{Exit, Refusal};
use crate::host::refuse_undecided;
use crate::tools::detect::InstalledCli;
use crate::tools::models::{Listed, Listing, Source};

/// The question about Claude's workers.
const PROCESSES: &str = "Run Claude's workers as processes in a sandbox (recommended)? They ask for no \
                         permission and outlive the session; agents of the session do neither.";

/// How many models of a CLI are named as examples.
const NOTABLE: usize = 4;

/// Lists the worker CLIs on this machine.
pub(super) fn detect(json: bool) -> Result<Exit> {
    let config = Config::load().ok();
    let extra = config.as_ref().map(choose::backends).unwrap_or_default();
    let found = crate::tools::detect::detect(&extra);
    if json {
        return done(serde_json::to_string(&found)?);
    }
    if found.is_empty() {
        return Err(nothing_found().into());
    }
    found.iter().for_each(|found| say(described(found)));
    Ok(Exit::Ok)
}

/// A line about a CLI.
fn described(found: &InstalledCli) -> String {
    let version = found.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let login = match found.logged_in {
        Some(true) => ", logged in",
        Some(false) => ", not logged in",
        None => "",
    };
    let problem = found.problem.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{}{version}{login}{problem} ({})", found.backend, found.program.display())
}

/// Lists the models of the CLIs on this machine.
pub(super) fn models(refresh: bool, json: bool) -> Result<Exit> {
    let (found, results) = choose::machine_results(Config::load().ok().as_ref(), refresh)?;
    if json {
        let listing = |result| match result {
            Ok(listing) => json!(listing),
            Err((backend, why)) => json!({ "backend": backend, "models": [], "problem": why }),
        };
        return done(json!(results.into_iter().map(listing).collect::<Vec<_>>()).to_string());
    }
    if found.is_empty() {
        return Err(nothing_found().into());
    }
    for result in results {
        match result {
            Ok(listing) => print_listing(&listing),
            Err((backend, why)) => say(format!("{backend}: {why}")),
        }
    }
    Ok(Exit::Ok)
}

fn print_listing(listing: &Listing) {
    let origin = match (listing.source, &listing.asked) {
        (Source::Stable, _) => "stable names".into(),
        (Source::Curated, _) => "no list from the CLI; known models".into(),
        (Source::Asked, Some(asked)) => format!("from the CLI, {asked}"),
        (Source::Asked, None) => "from the CLI".into(),
    };
    say(format!("{} ({origin})", listing.backend));
    for Listed { id, name } in &listing.models {
        let name = name.as_ref().map(|name| format!(" - {name}")).unwrap_or_default();
        say(format!("  {id}{name}"));
    }
}

/// The CLIs on this machine, those of them that work, and their models.
fn machine() -> Result<(Vec<InstalledCli>, Vec<InstalledCli>, Vec<Listing>)> {
    let (all, listings) = choose::machine(None)?;
    if all.is_empty() {
        return Err(nothing_found().into());
    }
    // A CLI that hangs or fails is listed but not used.
    let found = all.iter().filter(|found| found.usable()).cloned().collect();
    Ok((all, found, listings))
}

/// Prints what a host has to know before it asks the person for the first config.
pub(super) fn show_machine() -> Result<Exit> {
    let (all, found, listings) = machine()?;
    let gaps = gaps(&found).into_iter().map(|(name, why)| json!({ "backend": name, "why": why }));
    // The number of a CLI's models with some examples, for the host to tell the person.
    let models = listings.iter().map(|Listing { backend, models, .. }| {
        let notable: Vec<_> = models.iter().take(NOTABLE).map(|model| &model.id).collect();
        json!({ "backend": backend, "count": models.len(), "notable": notable })
    });
    let machine = json!({
        "found": all,
        "models": models.collect::<Vec<_>>(),
        "defaults": offers(&found, &listings),
        "full_only": gaps.collect::<Vec<_>>(),
        "ask_route": holds_claude(&found),
    });
    done(machine.to_string())
}

/// Writes the first config.
pub(super) fn setup(
    default: Option<&str>,
    mut full: Vec<String>,
    route: Option<Route>,
    yes: bool,
) -> Result<Exit> {
    edit::refuse_existing()?;
    if !full.is_empty() {
        refuse_undecided("workers that may do anything")?;
    }
    let (all, found, listings) = machine()?;
    let offers = offers(&found, &listings);
    all.iter().for_each(|found| say(described(found)));
    if found.is_empty() {
        return Refusal::new(Exit::Unavailable, "no worker CLI on this machine works")
            .place("those listed above do not print their version")
            .refuse("repair or install one and try again; dispatch-config detect lists them");
    }
    let names: Vec<&str> = offers.iter().map(|offer| offer.name.as_str()).collect();
    let sensible = format!("sensible: {}", names.join(", "));
    let default = match default {
        Some(default) => default.to_owned(),
        None if std::io::stdin().is_terminal() => ask_default(&offers)?,
        None => {
            return Refusal::new(Exit::Usage, "no default model is named")
                .place(sensible)
                .refuse("add --default MODEL --yes");
        }
    };
    if models_of(&found, &listings).values().all(|models| !models.contains_key(&default)) {
        let what = format!("no CLI on this machine has a model '{default}'");
        return Refusal::new(Exit::Data, what)
            .place(sensible)
            .refuse("dispatch-config models lists all of them");
    }
    full.extend(ask_full_access(&found, &full, yes)?);
    let route = match route {
        None if !yes && holds_claude(&found) && consent(PROCESSES)? => Some(Route::Cli),
        route => route,
    };
    let text = text(&default, &found, &listings, &full, route);
    if !yes && !consent("Write the config?")? {
        return done("Nothing was written.");
    }
    let path = edit::create(&text)?;
    let count = Config::load()?.models.len();
    done(format!("{} written: {count} models, default {default}.", path.display()))
}

/// Asks which of the CLIs that cannot restrict their workers may run them all the same.
fn ask_full_access(found: &[InstalledCli], full: &[String], yes: bool) -> Result<Vec<String>> {
    let mut gaps = gaps(found);
    gaps.retain(|(backend, _)| !full.iter().any(|name| name == backend));
    for (backend, why) in &gaps {
        say(format!("{backend} cannot restrict its workers to the project: {why}"));
    }
    // Claude Code restricts its own agents by its permissions.
    gaps.retain(|(backend, _)| *backend != "claude");
    let names: Vec<String> = gaps.into_iter().map(|(backend, _)| backend.to_owned()).collect();
    // Their tasks are refused until the person agrees.
    let asks = !yes && !names.is_empty();
    let question = format!("Let workers of {} do anything without asking?", names.join(", "));
    Ok(if asks && consent(&question)? { names } else { Vec::new() })
}

fn ask_default(offers: &[Offer]) -> Result<String> {
    for (number, offer) in (1..).zip(offers) {
        let recommended = if number == 1 { " (recommended)" } else { "" };
        say(format!("  {number}. {}{recommended}: {}", offer.name, offer.why));
    }
    let reply = ask("Default model? [1] ")?;
    let number: usize = if reply.is_empty() { 1 } else { reply.parse().unwrap_or(0) };
    let offer = offers.get(number.wrapping_sub(1));
    Ok(offer.map_or(reply, |offer| offer.name.clone()))
}

/// The refusal on a machine without worker CLIs, in the original's words.
fn nothing_found() -> Refusal {
    Refusal::new(Exit::Unavailable, "no worker CLI is installed")
        .place("looked for Claude Code (claude), Codex (codex), Cursor (cursor-agent) and others")
        .next("install one, or write a config like references/config-example.yaml")
}
