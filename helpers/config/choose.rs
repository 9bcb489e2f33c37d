//! Chooses the worker that a person named, also a model that only a CLI on this machine knows.
//!
//! A sentence names a worker by the original's rules: the last name of the config that is a whole word;
//! else a word that looks like a model's id; else a provider.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;

use crate::config::edit::Edit;
use crate::config::{Choice, Config, edit};
use crate::domain::Backend;
use crate::error::{Exit, Refusal};
use crate::text::sort;
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
    let rank = |(id, backend): &(&String, &String)| {
        (**backend == failed.backend, provider(id) != family, config.default.as_ref() != Some(id))
    };
    sort(&mut rest, |one, other| rank(one).cmp(&rank(other)));
    let mut providers = BTreeSet::new();
    rest.retain(|(id, _)| providers.insert(provider(id)));
    Ok(rest.into_iter().take(3).map(|(id, backend)| (id.clone(), backend.clone())).collect())
}

/// The worker that a sentence names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mention {
    /// A name of the config.
    Name(String),
    /// A provider, and its newest model in the config.
    Provider(String, String),
    /// A word that looks like a model's id and is not in the config.
    Unknown(String),
    /// No worker.
    Nothing,
}

/// Words that people say for a provider.
const PROVIDERS: [&str; 9] =
    ["claude", "anthropic", "openai", "gpt", "codex", "gemini", "grok", "qwen", "kimi"];

/// Returns true for a name that stands for a provider and never for a model.
pub(super) fn is_provider(name: &str) -> bool {
    PROVIDERS.contains(&name)
}

/// Models that are named by one word without a version.
const BARE: [&str; 8] = ["opus", "sonnet", "haiku", "fable", "o1", "o3", "o4-mini", "composer"];

impl Config {
    /// The worker that a sentence names.
    pub fn mention(&self, sentence: &str) -> Mention {
        let sentence = sentence.to_ascii_lowercase();
        let mut found: Vec<(usize, usize, &str)> = Vec::new();
        for name in self.names() {
            let lower = name.to_ascii_lowercase();
            found.extend(whole_words(&sentence, &lower).map(|(start, end)| (start, end, name)));
        }
        // A name inside a longer one was not meant.
        let inside = |&(start, end, _): &(usize, usize, &str)| {
            found.iter().any(|&(s, e, _)| s <= start && end <= e && e - s > end - start)
        };
        if let Some((_, _, name)) = found.iter().filter(|found| !inside(found)).max_by_key(|f| f.0)
        {
            return Mention::Name((*name).into());
        }
        if let Some(id) = looks_like_a_model(&sentence) {
            return Mention::Unknown(id);
        }
        let last = |word: &'static str| Some((whole_words(&sentence, word).last()?, word));
        match PROVIDERS.into_iter().filter_map(last).max_by_key(|((at, _), _)| *at) {
            None => Mention::Nothing,
            Some((_, word)) => match self.newest_of(word) {
                Some(model) => Mention::Provider(word.into(), model.into()),
                None => Mention::Unknown(word.into()),
            },
        }
    }

    /// The newest model of a provider: a name without a version (`opus`), else the highest version;
    /// among equals the default, then the first in the file.
    fn newest_of(&self, said: &str) -> Option<&str> {
        let name = match said {
            "anthropic" => "Claude",
            "openai" => "OpenAI",
            said => provider(said),
        };
        let ids = self.models.keys().map(String::as_str);
        let of_provider: Vec<&str> = ids.filter(|id| provider(id) == name).collect();
        // Prefer models that contain the word: "codex" does not stand for every model of OpenAI.
        let called = |id: &&str| id.to_ascii_lowercase().contains(said);
        let own: Vec<&str> = of_provider.iter().copied().filter(called).collect();
        let models = if own.is_empty() { of_provider } else { own };
        let rank = |id: &str| {
            let version = version(id);
            (version.is_empty(), version, self.default.as_deref() == Some(id))
        };
        // Reversed, because `max_by_key` returns the last of equal ones.
        models.into_iter().rev().max_by_key(|id| rank(id))
    }
}

/// The version in an id: `[5, 3]` for `gpt-5.3-codex`.
fn version(id: &str) -> Vec<u32> {
    let numbers = id.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    // Skip dates and sizes.
    numbers.filter(|part| part.len() < 4).filter_map(|part| part.parse().ok()).collect()
}

/// The places of `word` as a whole word: not next to ASCII letters or digits, nor joined to them by a
/// hyphen, a dot or a slash. Other scripts do not count as parts of a word.
fn whole_words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let joint = |c: char| matches!(c, '-' | '.' | '/');
    let places = text.match_indices(word).map(move |(start, _)| (start, start + word.len()));
    places.filter(move |&(start, end)| {
        let (before, after) = (&text[..start], &text[end..]);
        let before = before.strip_suffix(joint).unwrap_or(before);
        let after = after.strip_prefix(joint).unwrap_or(after);
        !(word.is_empty() || before.ends_with(part) || after.starts_with(part))
    })
}

/// The last word of a sentence that looks like a model's id.
fn looks_like_a_model(sentence: &str) -> Option<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
    let mut words =
        sentence.split(|c| !word(c)).map(|word| word.trim_matches(['-', '.', '_', '/']));
    let model = |word: &&str| {
        let versioned = word.bytes().any(|b| b.is_ascii_digit()) && provider(word) != "Other";
        let ends = [".rs", ".py", ".md", ".ts", ".js", ".json"];
        let of_a_file = ends.iter().any(|end| word.ends_with(end));
        BARE.contains(word) || (versioned && !of_a_file && !word.contains('/'))
    };
    words.rfind(model).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use super::Mention::{Name, Nothing, Provider, Unknown};
    use super::*;

    const CONFIG: &str = "
default: sonnet
models:
  opus: { backend: claude }
  sonnet: { backend: claude }
  o3: { backend: codex }
  gpt-5.2: { backend: codex }
  gpt-5.3-codex: { backend: codex }
  gpt-5.3-codex-spark: { backend: codex }
  gemini-2.5-flash: { backend: cursor }
  gemini-3.1-pro: { backend: cursor }
aliases:
  quick: { model: sonnet }
  security reviewer: { model: opus }
  reviewer: { model: opus }
agents:
  harvey: { command: harvey -p }
";

    #[test]
    fn sentence_names_a_worker() {
        let name = |name: &str| Name(name.into());
        let provider = |word: &str, model: &str| Provider(word.into(), model.into());
        let unknown = |id: &str| Unknown(id.into());
        let rows = [
            // A name of the config, as a whole word.
            ("use opus to review this", name("opus")),
            ("Use OPUS.", name("opus")),
            ("(opus)", name("opus")),
            ("用opus审查", name("opus")),
            ("have harvey review it", name("harvey")),
            ("do it quickly", Nothing),
            ("do it quick", name("quick")),
            ("fix foo3 and o30", Nothing),
            ("let o3 think", name("o3")),
            ("fix src/opus/mod.rs", Nothing),
            ("the opus-like style", Nothing),
            // The longest name at a place.
            ("gpt-5.3-codex-spark for this", name("gpt-5.3-codex-spark")),
            ("gpt-5.3-codex, please", name("gpt-5.3-codex")),
            ("as a security reviewer", name("security reviewer")),
            // The last of several.
            ("have opus review and sonnet test", name("sonnet")),
            ("sonnet, no: opus", name("opus")),
            // A name beats a provider's word and what looks like a model.
            ("use opus on the gemini client", name("opus")),
            ("use opus to move us from gpt-4.1", name("opus")),
            // A provider's word means its newest model.
            ("use gemini to refactor", provider("gemini", "gemini-3.1-pro")),
            ("let claude do it", provider("claude", "sonnet")),
            ("codex should fix it", provider("codex", "gpt-5.3-codex")),
            ("let openai do it", provider("openai", "gpt-5.3-codex")),
            ("ask grok", unknown("grok")),
            // An id that is not in the config.
            ("use opus-4.7 here", unknown("opus-4.7")),
            ("with gpt-5.9-codex.", unknown("gpt-5.9-codex")),
            ("try haiku", unknown("haiku")),
            ("edit gpt-5.py", Nothing),
            ("edit docs/gpt-5-notes/all", Nothing),
            // No worker.
            ("fix the login bug", Nothing),
            ("", Nothing),
        ];
        let config = Config::parse(CONFIG, Path::new("config.yaml")).expect("a good config");
        for (sentence, mention) in rows {
            assert_eq!(config.mention(sentence), mention, "{sentence}");
        }
    }

    #[test]
    fn long_sentence_and_many_names_take_milliseconds() {
        let models: String =
            (0..200).map(|n| format!("  model-{n}.5-x: {{ backend: b }}\n")).collect();
        let config = Config::parse(&format!("models:\n{models}"), Path::new("c")).expect("good");
        let request = "consider the many words of a request ".repeat(286) + "with model-77.5-x";
        let begin = Instant::now();
        assert_eq!(config.mention(&request), Name("model-77.5-x".into()));
        // About 1 ms in a release build; the limit leaves room for a debug build on a busy machine.
        assert!(begin.elapsed().as_millis() < 250, "{:?}", begin.elapsed());
    }
}
