//! Chooses the worker that a person named, also a model that only a CLI on this machine knows.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use crate::config::edit::Edit;
use crate::config::pick::is_provider;
use crate::config::{Choice, Config, Mention, edit};
use crate::domain::Backend;
use crate::error::{Exit, Refusal};
use crate::tools::detect::{InstalledCli, detect};
use crate::tools::models::{Listing, models, preferred_backend, provider};
use crate::tools::program_of;

/// Why a worker was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The person used a name of the config.
    Named,
    /// The person named a provider: its newest model of the config.
    Provider,
    /// The person named a model that a CLI has; it was added to the config.
    Added,
    /// The person named nothing: the default.
    Default,
}

/// A choice with the reason.
#[derive(Clone, Debug, Serialize)]
pub struct Chosen {
    /// The worker.
    #[serde(flatten)]
    pub choice: Choice,
    /// Why it was chosen.
    pub how: How,
    /// True if the person must confirm it.
    pub confirm: bool,
    /// A remark for the person.
    pub note: Option<String>,
}

/// The models of a CLI; else its backend and the reason why there is no list.
pub type ListingResult = Result<Listing, (String, String)>;

/// The CLIs on this machine and the models of those that list them.
pub fn machine(config: Option<&Config>) -> Result<(Vec<InstalledCli>, Vec<Listing>)> {
    let (found, results) = machine_results(config, false)?;
    Ok((found, results.into_iter().filter_map(Result::ok).collect()))
}

/// The CLIs on this machine and what each answered when it was asked for its models.
pub fn machine_results(
    config: Option<&Config>,
    refresh: bool,
) -> Result<(Vec<InstalledCli>, Vec<ListingResult>)> {
    let found = detect(&config.map(backends).unwrap_or_default());
    let cache = crate::dirs::config_path()?.with_file_name("models.json");
    let results = models(&found, &cache, refresh);
    Ok((found, results))
}

/// The backends of a config, each with the program that its command starts.
pub fn backends(config: &Config) -> Vec<(String, String)> {
    let program = |(name, backend): (&String, &Backend)| {
        Some((name.clone(), program_of(backend.command.as_deref()?)?))
    };
    config.backends.iter().filter_map(program).collect()
}

/// The worker that a name stands for: a name of the config, a provider, or a model of a CLI on this
/// machine, which is then added to the config. Without a name, the default.
pub fn by_name(config: &Config, name: Option<&str>) -> Result<Chosen> {
    let Some(name) = name else { return default(config) };
    let refusal = match config.resolve(Some(name)) {
        Ok(choice) => return Ok(known(choice)),
        Err(refusal) => refusal,
    };
    match config.mention(name) {
        Mention::Provider(word, model) => by_provider(config, &word, &model),
        // A whole sentence is not a name, and a broken alias is not replaced by a guess.
        Mention::Name(other) if other.eq_ignore_ascii_case(name) && other != name => {
            by_name(config, Some(&other))
        }
        Mention::Name(_) => Err(refusal.into()),
        Mention::Unknown(_) | Mention::Nothing => Ok(discovered(config, name)?.ok_or(refusal)?),
    }
}

/// The worker that a sentence names.
pub fn by_request(config: &Config, sentence: &str) -> Result<Chosen> {
    match config.mention(sentence) {
        Mention::Name(name) => Ok(known(config.resolve(Some(&name))?)),
        Mention::Provider(word, model) => by_provider(config, &word, &model),
        Mention::Unknown(id) => by_name(config, Some(&id)),
        Mention::Nothing => default(config),
    }
}

/// The choice of a name of the config.
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
    let note = Some(format!("'{word}' means {model} here, its newest in the config"));
    Ok(Chosen { how: How::Provider, note, ..known(config.resolve(Some(model))?) })
}

/// The backend that runs a model on this machine, and whether a CLI lists the model.
pub fn runs(config: &Config, id: &str) -> Result<(Option<String>, bool)> {
    let (found, listings) = machine(Some(config))?;
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
    // An id that no CLI lists is a typo, unless the CLI of its family resolves ids by itself.
    let of_a_family = matches!(provider(id), "Claude" | "OpenAI") && !id.contains(['/', ' ']);
    let Some(backend) = backend.filter(|_| listed || of_a_family) else { return Ok(None) };
    if config.is_unused_full(&backend) {
        let what = format!("'{id}' would be the first model of '{backend}', at full access");
        return Refusal::new(Exit::Data, what)
            .refuse(format!("add it first: dispatch-config add-model {id} --backend {backend}"));
    }
    let is_new = !config.backends.contains_key(&backend);
    let missing = is_new.then(|| Edit::add_backend(&backend, None));
    let edits: Vec<Edit> = missing.into_iter().chain([Edit::add_model(id, &backend)]).collect();
    edit::change(&edits)?;
    let note = Some(format!(
        "{id} was not in the config and was added to it, on {backend} (undo: dispatch-config remove-model {id})"
    ));
    let choice = Config::load()?.resolve(Some(id))?;
    Ok(Some(Chosen { how: How::Added, note, ..known(choice) }))
}

/// Up to three replacements for a worker that cannot work now, best first, as model and backend:
/// models of the config whose CLI is installed and logged in, one of each provider. Another CLI and
/// the same family come first.
pub fn replacements(config: &Config, name: &str) -> Result<Vec<(String, String)>> {
    let failed = config.resolve(Some(name))?;
    let (found, _) = machine(Some(config))?;
    let works = |backend: &str| {
        found.iter().any(|f| f.backend == backend && f.usable() && f.logged_in != Some(false))
    };
    let family = provider(failed.model.as_deref().unwrap_or_default());
    let is_other = |id: &String| failed.model.as_ref() != Some(id);
    let models = config.models.iter();
    let mut rest: Vec<_> = models.filter(|(id, backend)| is_other(id) && works(backend)).collect();
    rest.sort_by_key(|(id, backend)| {
        (**backend == failed.backend, provider(id) != family, config.default.as_ref() != Some(id))
    });
    let mut providers = BTreeSet::new();
    rest.retain(|(id, _)| providers.insert(provider(id)));
    Ok(rest.into_iter().take(3).map(|(id, backend)| (id.clone(), backend.clone())).collect())
}
