//! `dispatch-config allow`: permission rules for the helpers in Claude Code's settings.
//!
//! `~/.dispatch/allowed.json` remembers the added rules, so that exactly those are removed again and
//! a rule that the person had before stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::{AccessFlags, access};

use crate::cli::config::consent;
use crate::cli::{done, say};
use crate::dirs;
use crate::error::{Exit, Refusal};
use crate::files;
use crate::host::settings;
use crate::host::{LISTS, Rule, refuse_undecided, rules};
use crate::process::launcher;
use crate::tools::claude::{read_rule, settings_path};

/// How the person agrees to a change; without an option, the person is asked.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Consent {
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Only show the rules
    #[arg(long)]
    dry_run: bool,
}

/// The rules that were added and not removed since, by settings file.
type Added = BTreeMap<PathBuf, BTreeSet<String>>;

/// Adds the rules for these paths of the directory of the launchers; without any, for its own path and
/// the skill's in Claude Code's directory.
pub(super) fn allow(bins: &[PathBuf], consent: Consent) -> Result<Exit> {
    refuse_model(consent)?;
    let (path, text) = settings()?;
    let own = launcher("dispatch-config")?.parent().context("no launchers")?.to_path_buf();
    let real = |bin: &Path| bin.canonicalize().or_else(|_| std::path::absolute(bin));
    let is_own = |bin: &Path| matches!((real(bin), real(&own)), (Ok(bin), Ok(own)) if bin == own);
    if let Some(other) = bins.iter().find(|bin| !is_own(bin)) {
        return Refusal::new(Exit::Usage, "--bin is not the directory of these launchers")
            .place(other.display().to_string())
            .refuse("call the launcher that is in that directory, with allow and no --bin");
    }
    // Claude Code keeps the path of a skill that is a link, and compares paths as they are typed.
    let linked = settings_path().with_file_name("skills/dispatch/bin");
    let usual = [Some(own.clone()), Some(linked).filter(|it| *it != own && is_own(it))];
    let bins = if bins.is_empty() { usual.into_iter().flatten().collect() } else { bins.to_vec() };
    let mut wanted = Vec::new();
    for bin in bins {
        let bin = std::path::absolute(bin).context("no such directory")?;
        wanted.extend(rules(&bin, &read_rule()?));
    }
    let missing = settings::missing(text.as_deref(), &wanted);
    let Some(new) = settings::add(text.as_deref(), &wanted)? else {
        return done(format!("nothing to change in {}", path.display()));
    };
    let verbs = ["add", "added to"];
    let Some(_lock) = begin(&path, &text, verbs, &missing, consent)? else { return Ok(Exit::Ok) };
    // Remember first, so that a crash leaves no rule that nobody would remove.
    let before = added()?;
    let mut added = before.clone();
    added.entry(path.clone()).or_default().extend(missing.into_iter().map(|rule| rule.text));
    remember(&added)?;
    if let Err(error) = files::publish(&path, new.as_bytes()) {
        remember(&before)?;
        return Err(error);
    }
    done("Done.")
}

/// Removes the rules that [`allow`] added.
pub(super) fn disallow(consent: Consent) -> Result<Exit> {
    refuse_model(consent)?;
    let (path, text) = settings()?;
    let mut added = added()?;
    let ours = added.remove(&path).unwrap_or_default();
    let (present, others): (Vec<_>, Vec<_>) =
        settings::for_dispatch(text.as_deref()).into_iter().partition(|it| ours.contains(&it.text));
    for rule in others {
        say(format!("{rule} stays, because dispatch did not add it"));
    }
    let rule = |list| ours.iter().map(move |text| Rule { list, text: text.clone() });
    let rules: Vec<Rule> = LISTS.into_iter().flat_map(rule).collect();
    let new = if ours.is_empty() { None } else { settings::remove(text.as_deref(), &rules)? };
    let Some(new) = new else {
        // Forget rules that the person removed: if they come back, they are the person's.
        if !consent.dry_run {
            remember(&added)?;
        }
        return done(format!("{} has no rules that dispatch added", path.display()));
    };
    let verbs = ["remove", "removed from"];
    let Some(_lock) = begin(&path, &text, verbs, &present, consent)? else { return Ok(Exit::Ok) };
    files::publish(&path, new.as_bytes())?;
    remember(&added)?;
    done("Done.")
}

/// Refuses a change of the rules that no person decided.
fn refuse_model(consent: Consent) -> Result<(), Refusal> {
    if consent.dry_run { Ok(()) } else { refuse_undecided("which calls Claude Code asks about") }
}

/// The person's Claude Code settings: the file behind all links, and its text.
fn settings() -> Result<(PathBuf, Option<String>)> {
    let path = settings_path();
    let real = match path.canonicalize() {
        Err(_) if path.is_symlink() => {
            let target = std::fs::read_link(&path).unwrap_or_default();
            return Refusal::new(Exit::Data, "the settings are a link that leads nowhere")
                .place(format!("{} -> {}", path.display(), target.display()))
                .refuse("restore the target or remove the link, then try again");
        }
        real => real.unwrap_or(path),
    };
    let text = files::read(&real)?;
    Ok((real, text))
}

/// Shows the rules, and returns the lock on the settings, which still have that text; `None` if the
/// person does not agree.
///
/// # Errors
/// [`Exit::CannotCreate`] for a read-only file, or one in a read-only directory: another program made
/// it, such as Nix.
fn begin(
    path: &Path,
    text: &Option<String>,
    [verb, done_to]: [&str; 2],
    rules: &[Rule],
    given: Consent,
) -> Result<Option<std::fs::File>> {
    let directory = path.parent().context("the settings have no directory")?;
    let is_closed = directory.exists() && access(directory, AccessFlags::W_OK).is_err();
    if is_closed || path.metadata().is_ok_and(|file| file.permissions().readonly()) {
        let snippet = settings::snippet(rules);
        return Refusal::new(Exit::CannotCreate, format!("{} is read-only", path.display()))
            .place("another program seems to manage it, such as Nix; nothing was changed")
            .refuse(format!("{verb} the rules in that program's source: {snippet}"));
    }
    say(format!("These permission rules will be {done_to} {}:", path.display()));
    rules.iter().for_each(|rule| say(format!("  {rule}")));
    if given.dry_run || !(given.yes || consent("Continue?")?) {
        say("Nothing was changed.");
        return Ok(None);
    }
    files::create_private_directory(directory)?;
    // Lock the directory, because a lock file beside the person's settings would stay there.
    let locked = std::fs::File::open(directory).and_then(|it| it.lock().map(|()| it));
    let lock = locked.with_context(|| format!("cannot lock {}", directory.display()))?;
    if files::read(path)? != *text {
        return Refusal::new(Exit::TryAgain, "the settings were changed meanwhile")
            .place(path.display().to_string())
            .refuse("try again");
    }
    Ok(Some(lock))
}

fn memory() -> Result<PathBuf> {
    Ok(dirs::dispatch_home()?.join("allowed.json"))
}

fn added() -> Result<Added> {
    let path = memory()?;
    let Some(text) = files::read(&path)? else { return Ok(Added::new()) };
    files::from_json(text.as_bytes()).map_err(|error| {
        Refusal::new(Exit::Data, "the list of added rules cannot be read")
            .place(format!("{}: {error}", path.display()))
            .next("remove this file, and remove the rules from Claude Code's settings by hand")
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
