//! From what a person said to the worker that is meant, with what the CLIs know beyond the config.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use crate::config::edit::Edit;
use crate::config::pick::is_provider;
use crate::config::{Choice, Config, Mention, store};
use crate::tools::detect::{InstalledCli, detect};
use crate::tools::models::{Listing, models, preferred_backend, provider};
use crate::tools::program_of;

/// How a choice came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// A name of the config was said.
    Named,
    /// A provider was said; it is its newest model in the config.
    Provider,
    /// A model was said that a CLI has; it is in the config now.
    Added,
    /// Nothing was said; it is the default.
    Default,
}

/// A choice, and what should be said about it.
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    /// The worker.
    #[serde(flatten)]
    pub choice: Choice,
    /// How it came about.
    pub how: How,
    /// Whether the person should be asked before it is used.
    pub confirm: bool,
    /// What the person should hear about it.
    pub note: Option<String>,
}

/// What is on this machine: the CLIs and their models.
pub fn machine(
    config: Option<&Config>,
    refresh: bool,
) -> Result<(Vec<InstalledCli>, Vec<Listing>)> {
    let (found, answers) = asked(config, refresh)?;
    Ok((found, answers.into_iter().filter_map(Result::ok).collect()))
}

/// A CLI's models; else its backend, and why it has none.
pub type Answer = Result<Listing, (String, String)>;

/// The same with the CLIs that have no list of models.
pub fn asked(config: Option<&Config>, refresh: bool) -> Result<(Vec<InstalledCli>, Vec<Answer>)> {
    let found = detect(&config.map(backends).unwrap_or_default());
    let answers =
        models(&found, &crate::dirs::config_path()?.with_file_name("models.json"), refresh);
    Ok((found, answers))
}

/// The backends of a config with the programs that their commands start.
pub fn backends(config: &Config) -> Vec<(String, String)> {
    let program = |(name, backend): (&str, &crate::domain::Backend)| {
        Some((name.to_owned(), program_of(backend.command.as_deref()?)?))
    };
    config.backends.iter().filter_map(program).collect()
}

/// The worker that a name means: one of the config, a provider's word, or a model of a CLI that is
/// here, which is then added to the config. Without a name, the default.
pub fn by_name(config: &Config, name: Option<&str>) -> Result<Chosen> {
    let Some(name) = name else { return default(config) };
    let refusal = match config.resolve(Some(name)) {
        Ok(choice) => return Ok(known(choice)),
        Err(refusal) => refusal,
    };
    match config.mention(name) {
        Mention::Provider(word, model) => by_provider(config, &word, &model),
        // A sentence is no name; an alias that is broken stays so.
        Mention::Name(other) if other.eq_ignore_ascii_case(name) && other != name => {
            by_name(config, Some(&other))
        }
        Mention::Name(_) => Err(refusal.into()),
        Mention::Unknown(_) | Mention::Nothing => Ok(discovered(config, name)?.ok_or(refusal)?),
    }
}

/// The worker that a sentence means.
pub fn by_request(config: &Config, sentence: &str) -> Result<Chosen> {
    match config.mention(sentence) {
        Mention::Name(name) => Ok(known(config.resolve(Some(&name))?)),
        Mention::Provider(word, model) => by_provider(config, &word, &model),
        Mention::Unknown(id) => by_name(config, Some(&id)),
        Mention::Nothing => default(config),
    }
}

/// A choice by a name of the config.
pub fn known(choice: Choice) -> Chosen {
    Chosen { choice, how: How::Named, confirm: false, note: None }
}

fn default(config: &Config) -> Result<Chosen> {
    let choice = config.resolve(None)?;
    let confirm = config.confirm_default.unwrap_or(true);
    let note = confirm.then(|| format!("no model was named; {} is the default: ask", choice.name));
    Ok(Chosen { choice, how: How::Default, confirm, note })
}

fn by_provider(config: &Config, word: &str, model: &str) -> Result<Chosen> {
    let choice = config.resolve(Some(model))?;
    let note = Some(format!("'{word}' means {model} here, its newest in the config"));
    Ok(Chosen { choice, how: How::Provider, confirm: false, note })
}

/// The backend that a model belongs to on this machine, and whether a CLI lists the model.
pub fn runs(config: &Config, id: &str) -> Result<(Option<String>, bool)> {
    let (found, listings) = machine(Some(config), false)?;
    let usable = found.iter().filter(|found| found.usable());
    let present: Vec<&str> = usable.map(|found| found.backend.as_str()).collect();
    let listed = listings.iter().any(|list| list.models.iter().any(|model| model.id == id));
    Ok((preferred_backend(id, &present, &listings), listed))
}

/// Looks for a model in what the CLIs have, and adds it to the config.
fn discovered(config: &Config, id: &str) -> Result<Option<Chosen>> {
    if config.models.is_empty() && !config.agents.is_empty() || is_provider(id) {
        return Ok(None);
    }
    let (backend, listed) = runs(config, id)?;
    // What is neither listed nor of a family that a CLI resolves by itself is a typo.
    let of_a_family = matches!(provider(id), "Claude" | "OpenAI") && !id.contains(['/', ' ']);
    let Some(backend) = backend.filter(|_| listed || of_a_family) else { return Ok(None) };
    let mut edits = Vec::new();
    if config.backends.get(&backend).is_none() {
        edits.push(Edit::AddBackend { name: backend.clone(), command: None });
    }
    edits.push(Edit::AddModel { id: id.into(), backend: backend.clone() });
    store::change(&edits)?;
    let choice = Config::load()?.resolve(Some(id))?;
    let note = Some(format!("{id} was not in the config and is added to it, on {backend}"));
    Ok(Some(Chosen { choice, how: How::Added, confirm: false, note }))
}

/// What to use instead of a worker that cannot work now, the best first: other models of the
/// config whose CLI is here and not logged out, those of another CLI and of the same family first,
/// one of each provider. As model and backend.
pub fn instead_of(config: &Config, name: &str) -> Result<Vec<(String, String)>> {
    let failed = config.resolve(Some(name))?;
    let (found, _) = machine(Some(config), false)?;
    let works = |backend: &str| {
        found.iter().any(|f| f.backend == backend && f.usable() && f.logged_in != Some(false))
    };
    let family = provider(failed.model.as_deref().unwrap_or_default());
    let mut rest = Vec::new();
    for (at, (id, model)) in config.models.iter().enumerate() {
        if failed.model.as_deref() != Some(id) && works(&model.backend) {
            let same_cli = model.backend == failed.backend;
            let default = config.default.as_deref() == Some(id);
            let rank = (same_cli, provider(id) != family, !default, at);
            rest.push((rank, id.to_owned(), model.backend.clone()));
        }
    }
    rest.sort_unstable();
    let mut providers = BTreeSet::new();
    rest.retain(|(_, id, _)| providers.insert(provider(id)));
    rest.truncate(3);
    Ok(rest.into_iter().map(|(_, id, backend)| (id, backend)).collect())
}
