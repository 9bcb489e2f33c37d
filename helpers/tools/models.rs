//! The models of the worker CLIs: their lists, which are cached for a day, and which CLI should run a
//! model.

use std::path::Path;
use std::time::{Duration, SystemTime};

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::ids::now;
use crate::tools::claude::TIERS;
use crate::tools::cli::{Models, WorkerCli};
use crate::tools::detect::{Asker, InstalledCli, in_parallel};
use crate::{fault, files};

/// How long a CLI may take to list its models, on a busy machine too.
const LISTING: Duration = Duration::from_secs(20);

/// How old a cached list may be.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A model as its CLI names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// The id that the CLI takes.
    pub id: String,
    /// The name that people use.
    pub name: Option<String>,
}

impl From<(&str, Option<&str>)> for Listed {
    fn from((id, name): (&str, Option<&str>)) -> Self {
        Self { id: id.into(), name: name.map(str::to_owned) }
    }
}

/// The source of a list of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The CLI was asked.
    Asked,
    /// Names that outlive the CLI's versions.
    Stable,
    /// A choice made when dispatch was written: there may be more, and some may be gone.
    Curated,
}

/// The models of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The backend's name.
    pub backend: String,
    /// The models in the CLI's order.
    pub models: Vec<Listed>,
    /// The source of the list.
    pub source: Source,
    /// When the CLI was asked (RFC 3339, wall clock, to show).
    pub asked: Option<String>,
}

/// A list of models, and the CLI that it belongs to, as the cache keeps them.
#[derive(Clone, Serialize, Deserialize)]
struct Cached {
    cli: InstalledCli,
    listing: Listing,
}

impl Cached {
    fn is_of(&self, cli: &InstalledCli) -> bool {
        self.cli.backend == cli.backend && self.cli.program == cli.program
    }

    /// True if the list may be used instead of asking again.
    fn is_fresh(&self, cli: &InstalledCli) -> bool {
        let same = self.cli.version == cli.version && self.cli.logged_in == cli.logged_in;
        let asked = self.listing.asked.as_deref().map(humantime::parse_rfc3339);
        // A time in the future means that the clock was set, so the age is unknown.
        let age = asked.and_then(Result::ok).map(|at| SystemTime::now().duration_since(at));
        same && matches!(age, Some(Ok(age)) if age < DAY)
    }
}

/// The models of the installed CLIs, or the backend and why it has none. The CLIs are asked in
/// parallel with a time limit, unless the cache file has a list of today, of the same version and
/// login. A CLI that does not answer now keeps its old list, with the old date. `refresh` ignores
/// the cache. A CLI that dispatch does not know is left out.
pub fn models(
    installed: &[InstalledCli],
    cache: &Path,
    refresh: bool,
) -> Vec<Result<Listing, (String, String)>> {
    let text = files::read(cache).ok().flatten().unwrap_or_default();
    let old: Vec<Cached> = files::from_json(text.as_bytes()).unwrap_or_default();
    let asker = Asker::new(fault::limit("DISPATCH_LIST_MS", LISTING), Duration::ZERO);
    // Detection asks exactly the CLIs that dispatch knows, so they have a version or a problem.
    let known = installed.iter().filter(|cli| cli.version.is_some() || cli.problem.is_some());
    let jobs: Vec<_> =
        known.filter_map(|found| Some((super::by_program(&found.program)?, found))).collect();
    let answers = in_parallel(&jobs, |&(cli, found)| {
        let cached = old.iter().find(|list| list.is_of(found));
        list(cli, found, cached.filter(|_| !refresh), asker)
            .map_err(|why| (found.backend.clone(), why))
    });
    let new = || answers.iter().flatten().filter(|new| new.listing.source == Source::Asked);
    let others = old.iter().filter(|old| !new().any(|new| old.is_of(&new.cli)));
    let lists: Vec<&Cached> = others.chain(new()).collect();
    if let Ok(new_text) = serde_json::to_string(&lists)
        && new_text != text
        && !lists.is_empty()
    {
        // Without a cache the CLIs are asked again the next time, so ignore errors.
        let _ = cache.parent().map(files::create_private_directory);
        let _ = files::publish(cache, new_text.as_bytes());
    }
    answers.into_iter().map(|answer| answer.map(|cached| cached.listing)).collect()
}

/// The models of a CLI: the cached list if it is fresh or the CLI fails now, else a new one.
fn list(
    cli: &WorkerCli,
    found: &InstalledCli,
    cached: Option<&Cached>,
    asker: Asker,
) -> Result<Cached, String> {
    let known = |ids: &[&str]| ids.iter().map(|id| Listed::from((*id, None))).collect();
    let (models, source, asked) = match (&cli.models, cached) {
        _ if found.version.is_none() => return Err(found.problem.clone().unwrap_or_default()),
        (Models::Known(source, ids), _) => (known(ids), *source, None),
        (Models::Asked(..), Some(cached)) if cached.is_fresh(found) => return Ok(cached.clone()),
        (Models::Asked(args, read), cached) => {
            match (ask(&found.program, args, *read, asker), cached) {
                (Err(_), Some(cached)) => return Ok(cached.clone()),
                (models, _) => (models?, Source::Asked, Some(now())),
            }
        }
    };
    let listing = Listing { backend: found.backend.clone(), models, source, asked };
    Ok(Cached { cli: found.clone(), listing })
}

fn ask(
    program: &Path,
    args: &[&str],
    read: fn(&str) -> Option<Vec<Listed>>,
    asker: Asker,
) -> Result<Vec<Listed>, String> {
    let answer = asker.ask(program, args)?;
    let (call, line) = (&answer.call, answer.first_line());
    match read(&answer.out) {
        _ if answer.code != Some(0) => Err(answer.failure()),
        None => Err(format!("the answer of {call} is not understood: {line}")),
        Some(models) if models.is_empty() => Err(format!("{call} lists no model: {line}")),
        Some(models) => Ok(models),
    }
}

/// The models in what a CLI printed: the lines that match `entry`, whose groups are `id` and perhaps
/// `name`. Below a heading these are the lines up to another one; `None` without that heading.
pub(super) fn listed(text: &str, heading: Option<&str>, entry: &str) -> Option<Vec<Listed>> {
    let entry = Regex::new(entry).expect("a valid expression");
    let model = |line: &str| {
        let found = entry.captures(line.trim())?;
        Some(Listed::from((&found["id"], found.name("name").map(|name| name.as_str()))))
    };
    let mut lines = text.lines();
    let Some(heading) = heading else { return Some(lines.filter_map(model).collect()) };
    lines.find(|line| line.trim_start().starts_with(heading))?;
    Some(lines.map_while(model).collect())
}

/// The providers, each with the words that show in a model's id that it is theirs.
const PROVIDERS: [(&str, &[&str]); 15] = [
    ("Claude", &["claude", "opus", "sonnet", "haiku", "fable"]),
    ("OpenAI", &["gpt", "chatgpt", "codex", "o1", "o3", "o4"]),
    ("Gemini", &["gemini", "gemma"]),
    ("Grok", &["grok"]),
    ("Qwen", &["qwen", "coder-model"]),
    ("Kimi", &["kimi"]),
    ("DeepSeek", &["deepseek"]),
    ("GLM", &["glm"]),
    ("MiniMax", &["minimax"]),
    ("Mistral", &["mistral", "devstral", "codestral", "magistral"]),
    ("Llama", &["llama"]),
    ("Nemotron", &["nemotron"]),
    ("MiMo", &["mimo"]),
    ("MAI", &["mai"]),
    ("Cursor", &["composer", "auto"]),
];

/// The provider of a model by the words of its id; "Other" if they do not tell.
pub fn provider(id: &str) -> &'static str {
    let known = PROVIDERS.iter().find(|(_, words)| words.iter().any(|word| has_word(id, word)));
    known.map_or("Other", |(name, _)| name)
}

/// The backend of those `present` that should run a model: `claude` and `codex` run their makers' own
/// models. Others go to a CLI that lists them, and rather to one that was asked than to a curated
/// list. A model that no CLI lists goes to `cursor`, which has models of all makers.
pub fn preferred_backend(id: &str, present: &[&str], listings: &[Listing]) -> Option<String> {
    const OWN: [(&str, &[&str]); 2] =
        [("claude", &TIERS), ("codex", &["gpt", "codex", "o1", "o3", "o4-mini"])];
    let is_here = |backend: &str| present.contains(&backend);
    let has_any = |words: &[&str]| words.iter().any(|word| has_word(id, word));
    // Only opencode understands a model's name with a slash.
    let has_slash = id.contains('/');
    let own = OWN.iter().find(|(_, words)| !has_slash && has_any(words)).map(|(name, _)| *name);
    let lists = |listing: &&Listing| {
        is_here(&listing.backend) && listing.models.iter().any(|model| model.id == id)
    };
    let listed = listings.iter().filter(lists).min_by_key(|l| l.source == Source::Curated);
    let last = if has_slash { ["opencode", "cursor"] } else { ["cursor", "cursor"] };
    own.filter(|backend| is_here(backend))
        .or(listed.map(|listing| listing.backend.as_str()))
        .or_else(|| last.into_iter().find(|backend| is_here(backend)))
        .map(str::to_owned)
}

/// True if `word` is a whole word of the id; a number may follow directly, as in `qwen3`.
fn has_word(id: &str, word: &str) -> bool {
    let id = id.to_ascii_lowercase();
    id.match_indices(word).any(|(at, _)| {
        let before = id[..at].bytes().next_back();
        let after = id[at + word.len()..].bytes().next();
        let ends_in_digit = word.ends_with(|last: char| last.is_ascii_digit());
        !before.is_some_and(|b| b.is_ascii_alphanumeric())
            && !after
                .is_some_and(|b| b.is_ascii_alphabetic() || (ends_in_digit && b.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_is_told_by_the_words_of_a_model_id() {
        let rows = [
            ("Claude", "opus"),
            ("Claude", "claude-opus-5-thinking-high"),
            ("Claude", "openrouter/anthropic/claude-sonnet-5"),
            ("Claude", "sonnet-4.6"),
            ("OpenAI", "gpt-5.3-codex-low"),
            ("OpenAI", "o4-mini"),
            ("OpenAI", "openai/o3"),
            ("OpenAI", "codex-mini-latest"),
            ("Gemini", "gemini-3.1-pro-preview"),
            ("Gemini", "auto-gemini-3"),
            ("Grok", "Grok-4.6"),
            ("Qwen", "qwen3.6-plus"),
            ("Qwen", "coder-model"),
            ("Kimi", "kimi-k2.6"),
            ("DeepSeek", "deepseek-v4-pro"),
            ("GLM", "glm-5.3-flash"),
            ("Cursor", "composer-2"),
            ("Cursor", "auto"),
            ("MiMo", "opencode/mimo-v2.6-flash-free"),
            ("Other", "opencode/big-pickle"),
            ("Other", "foo3"),
            ("Other", "octopus"),
            ("Other", "inkling"),
        ];
        for (expected, id) in rows {
            assert_eq!(provider(id), expected, "{id}");
        }
    }

    #[test]
    fn model_runs_on_its_makers_cli_or_on_one_that_lists_it() {
        let listing = |backend: &str, source, ids: &[&str]| Listing {
            backend: backend.into(),
            models: ids.iter().map(|id| Listed { id: (*id).into(), name: None }).collect(),
            source,
            asked: None,
        };
        let listings = [
            listing("gemini", Source::Curated, &["gemini-2.5-pro", "gemini-3-pro"]),
            listing("copilot", Source::Asked, &["gemini-3-pro", "gpt-6-sol", "claude-opus-5"]),
            listing("opencode", Source::Asked, &["opencode/big-pickle"]),
            listing("cursor", Source::Asked, &["grok-4.6", "opus-5"]),
        ];
        let all = ["claude", "codex", "cursor", "gemini", "opencode", "copilot"].as_slice();
        let rows = [
            // Claude's and OpenAI's models, by the words of the id.
            ("opus", all, Some("claude")),
            ("claude-sonnet-4.5", all, Some("claude")),
            ("haiku-4", all, Some("claude")),
            ("fable", all, Some("claude")),
            ("gpt-5.3-codex", all, Some("codex")),
            ("o3", all, Some("codex")),
            ("o1-pro", all, Some("codex")),
            ("o4-mini", all, Some("codex")),
            // Ids that only look like those.
            ("o4", all, Some("cursor")),
            ("octopus", all, Some("cursor")),
            ("foo3", all, Some("cursor")),
            // Without the maker's CLI: a CLI that lists the model, else Cursor.
            ("opus-5", &["codex", "cursor"], Some("cursor")),
            ("claude-opus-5", &["copilot", "cursor"], Some("copilot")),
            ("gpt-6-sol", &["claude", "copilot"], Some("copilot")),
            ("gpt-6-sol", &["claude", "cursor"], Some("cursor")),
            ("gpt-6-sol", &["claude"], None),
            // Other makers' models: an asked list before a curated one, and only installed CLIs.
            ("grok-4.6", all, Some("cursor")),
            ("gemini-2.5-pro", all, Some("gemini")),
            ("gemini-2.5-pro", &["claude", "cursor"], Some("cursor")),
            ("gemini-3-pro", all, Some("copilot")),
            // A slash means opencode, whatever the words say.
            ("opencode/big-pickle", all, Some("opencode")),
            ("openai/gpt-6-sol", all, Some("opencode")),
            ("openai/gpt-6-sol", &["codex", "cursor"], Some("cursor")),
            ("mistral-large", &["gemini"], None),
        ];
        for (id, present, expected) in rows {
            let backend = preferred_backend(id, present, &listings);
            assert_eq!(backend.as_deref(), expected, "{id} of {present:?}");
        }
    }
}
