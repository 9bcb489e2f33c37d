//! The worker CLIs that dispatch finds by itself: one row for each, with what was checked and when.
//!
//! CLIs change under us. Whatever depends on one of them, how it is asked and how its answer is
//! read, stands in its row of [`CLIS`] or in a function that the row names; `detect.rs` runs them.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// A worker CLI: what it is called and how it is asked.
pub(super) struct Cli {
    /// The name of its backend.
    pub(super) backend: &'static str,
    /// What its programs are called, the best first.
    pub(super) programs: &'static [&'static str],
    /// Whether it is this CLI that said `text` when the program was asked for its `--version`, and
    /// not another one with a program of the same name.
    pub(super) is_own: fn(program: &str, text: &str) -> bool,
    /// Its npm package, which says the version too: at once, where the CLI takes a second to start.
    pub(super) package: Option<&'static str>,
    /// How it is asked whether it is logged in.
    pub(super) login: Login,
    /// A variable that holds a key and counts as logged in, whatever the CLI says.
    pub(super) key: Option<&'static str>,
    /// Its models.
    pub(super) models: Models,
    /// Flags that it had.
    removed: &'static [Removed],
    /// When all this was last compared with the CLI itself, and with which version of it.
    checked: &'static str,
}

/// How a CLI says whether it is logged in.
pub(super) enum Login {
    /// It does not, or not without the network.
    Unknown,
    /// In a JSON object, under a key.
    Json(&'static [&'static str], &'static str),
    /// By exit 0 if it is, by these words if it is not; anything else is another failure.
    Code(&'static [&'static str], &'static str),
}

impl Login {
    /// What to ask; `None` if there is no question.
    pub(super) fn question(&self) -> Option<&'static [&'static str]> {
        match self {
            Self::Unknown => None,
            Self::Json(args, _) | Self::Code(args, _) => Some(args),
        }
    }

    /// What the answer means; `None` if it is not understood.
    pub(super) fn read(&self, code: Option<i32>, out: &str, err: &str) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Json(_, key) => {
                serde_json::from_str::<serde_json::Value>(out).ok()?.get(key)?.as_bool()
            }
            Self::Code(..) if code == Some(0) => Some(true),
            Self::Code(_, words) => (out.contains(words) || err.contains(words)).then_some(false),
        }
    }
}

/// Where a CLI's models are known from.
pub(super) enum Models {
    /// Ask, and read the answer; `None` if it is not understood.
    Asked(&'static [&'static str], fn(&str) -> Option<Vec<Listed>>),
    /// Names that outlive its versions.
    Stable(&'static [&'static str]),
    /// It has no list; these worked when the row was checked.
    Curated(&'static [&'static str]),
    /// It takes no model, for this reason.
    None(&'static str),
}

/// A flag that is an error since a version.
struct Removed {
    flag: &'static str,
    since: &'static str,
    replacement: &'static str,
}

/// The CLIs. To add one: one row.
pub(super) static CLIS: [Cli; 9] = [
    Cli {
        backend: "claude",
        programs: &["claude"],
        is_own: any,
        package: Some("@anthropic-ai/claude-code"),
        login: Login::Json(&["auth", "status"], "loggedIn"),
        key: None,
        models: Models::Stable(&["opus", "sonnet", "haiku", "fable"]),
        removed: &[],
        checked: "2026-11-21, ran 2.1.329",
    },
    Cli {
        backend: "codex",
        programs: &["codex"],
        is_own: any,
        package: Some("@openai/codex"),
        login: Login::Code(&["login", "status"], "Not logged in"),
        // `codex exec` takes it, and `login status` does not know of it.
        key: Some("CODEX_API_KEY"),
        // 0.120 cannot do this yet, 0.140 can.
        models: Models::Asked(&["debug", "models"], codex_models),
        // 0.146.0 takes it, 0.147.0 ends with 2.
        removed: &[Removed {
            flag: "--full-auto",
            since: "0.147",
            replacement: "-s workspace-write",
        }],
        checked: "2026-11-21, ran 0.169.0, 0.147.0, 0.146.0, 0.140.0, 0.120.0",
    },
    Cli {
        backend: "cursor",
        programs: &["cursor-agent", "agent"],
        // Grok's installer has an `agent` too, with versions such as 0.3.
        is_own: |program, text| program != "agent" || text.lines().any(is_dated),
        package: None,
        login: Login::Json(&["status", "--format", "json"], "isAuthenticated"),
        key: Some("CURSOR_API_KEY"),
        models: Models::Asked(&["models"], cursor_models),
        removed: &[],
        checked: "2026-11-21, from its documentation and recorded outputs; not run",
    },
    Cli {
        backend: "gemini",
        programs: &["gemini"],
        is_own: any,
        package: Some("@google/gemini-cli"),
        login: Login::Unknown,
        key: Some("GEMINI_API_KEY"),
        models: Models::Curated(&[
            "gemini-3.1-pro-preview",
            "gemini-3-flash-preview",
            "gemini-2.5-pro",
            "gemini-2.5-flash",
            "gemini-2.5-flash-lite",
        ]),
        removed: &[],
        checked: "2026-11-21, ran 0.61.0; models from its sources, no account",
    },
    Cli {
        backend: "opencode",
        programs: &["opencode"],
        is_own: any,
        package: Some("opencode-ai"),
        // It works without a login, by the free models of its own provider.
        login: Login::Unknown,
        key: None,
        models: Models::Asked(&["models"], opencode_models),
        removed: &[],
        checked: "2026-11-21, ran 1.18.33",
    },
    Cli {
        backend: "copilot",
        programs: &["copilot"],
        // That of AWS has a program of the same name, which says "copilot version: v1.34.0".
        is_own: |_, text| !text.trim_start().starts_with("copilot version"),
        package: Some("@github/copilot"),
        login: Login::Unknown,
        key: None,
        models: Models::Asked(&["help", "config"], copilot_models),
        removed: &[],
        checked: "2026-11-21, ran 1.0.102",
    },
    Cli {
        backend: "qwen",
        programs: &["qwen"],
        is_own: any,
        package: Some("@qwen-code/qwen-code"),
        login: Login::Unknown,
        key: None,
        models: Models::Curated(&["coder-model", "qwen3.6-plus", "qwen3.5-plus"]),
        removed: &[],
        checked: "2026-11-21, ran 0.15.10; models from its sources, no account",
    },
    Cli {
        backend: "droid",
        programs: &["droid"],
        is_own: any,
        package: Some("droid"),
        login: Login::Unknown,
        key: Some("FACTORY_API_KEY"),
        models: Models::Asked(&["exec", "--help"], droid_models),
        removed: &[],
        checked: "2026-11-21, ran 0.215.0",
    },
    Cli {
        backend: "amp",
        programs: &["amp"],
        // There is a text editor of that name, with versions such as 0.7.0.
        is_own: |_, text| version_in(text).is_some_and(|version| version.starts_with("0.0.")),
        package: Some("@ampcode/cli"),
        login: Login::Unknown,
        key: None,
        // As names of models, "low" and "high" would be found in any sentence.
        models: Models::None(
            "amp has modes and no models: put -m low, medium, high or ultra in its command",
        ),
        removed: &[],
        checked: "2026-11-21, ran 0.0.1790142911; modes from its help",
    },
];

/// A model as its CLI names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// What the CLI takes as its model.
    pub id: String,
    /// What people call it.
    pub name: Option<String>,
}

/// What a list of models rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The CLI was asked.
    Asked,
    /// The CLI's own names that outlive its versions.
    Stable,
    /// A choice made when dispatch was written: there may be more, and some may be gone.
    Curated,
}

/// The models of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The backend's name.
    pub backend: String,
    /// Its models, in the CLI's order.
    pub models: Vec<Listed>,
    /// What the list rests on.
    pub source: Source,
    /// When the CLI was asked (RFC 3339, wall clock, to show).
    pub asked: Option<String>,
}

/// The row whose programs have that name, whatever directory it is in.
pub(super) fn of_program(program: &Path) -> Option<&'static Cli> {
    let name = program.file_name()?.to_str()?;
    CLIS.iter().find(|cli| cli.programs.contains(&name))
}

/// The flags that a backend's CLI no longer takes, each with what to write instead. A version that
/// is not known is taken for the newest.
pub fn removed_flags(backend: &str, version: Option<&str>) -> Vec<(&'static str, &'static str)> {
    let removed = CLIS.iter().filter(|cli| cli.backend == backend).flat_map(|cli| cli.removed);
    removed
        .filter(|removed| version.is_none_or(|is| numbers(is) >= numbers(removed.since)))
        .map(|removed| (removed.flag, removed.replacement))
        .collect()
}

/// When a backend's row was last compared with the CLI itself, and how.
pub fn checked(backend: &str) -> Option<&'static str> {
    CLIS.iter().find(|cli| cli.backend == backend).map(|cli| cli.checked)
}

fn numbers(version: &str) -> Vec<u64> {
    let release = version.split(['-', '+']).next().unwrap_or_default();
    release.split('.').map_while(|number| number.parse().ok()).collect()
}

fn any(_: &str, _: &str) -> bool {
    true
}

/// Whether it is a version of Cursor's, `2026.01.28-fd13201`.
fn is_dated(line: &str) -> bool {
    let year = line.strip_prefix("20").and_then(|rest| rest.split_once('.'));
    year.is_some_and(|(year, _)| year.len() == 2 && year.bytes().all(|b| b.is_ascii_digit()))
}

/// The version in what a CLI says when asked for it: the first word that begins like one.
pub(super) fn version_in(text: &str) -> Option<String> {
    let words = text.split_whitespace().map(|word| word.trim_end_matches(['.', ',']));
    let digit = |word: &str| word.starts_with(|first: char| first.is_ascii_digit());
    words
        .map(|word| word.strip_prefix('v').unwrap_or(word))
        .find(|word| digit(word) && word.contains('.'))
        .map(str::to_owned)
}

/// Codex's list, best first as in its own picker. Each model comes with all its instructions.
fn codex_models(text: &str) -> Option<Vec<Listed>> {
    #[derive(Deserialize)]
    struct Answer {
        models: Vec<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        slug: String,
        display_name: Option<String>,
        visibility: Option<String>,
        priority: Option<i64>,
    }
    let mut answer: Answer = serde_json::from_str(text).ok()?;
    answer.models.sort_by_key(|model| model.priority.unwrap_or(i64::MAX));
    let listed = answer.models.into_iter().filter(|m| m.visibility.as_deref() == Some("list"));
    Some(listed.map(|model| Listed { id: model.slug, name: model.display_name }).collect())
}

/// Cursor's list: `id - name`, with marks behind the name, between a heading and a tip.
fn cursor_models(text: &str) -> Option<Vec<Listed>> {
    let entry = |line: &str| {
        let (line, marked) = unmarked(line.trim());
        let (id, name) = match line.split_once(" - ") {
            Some((id, name)) => (id.trim(), Some(name.trim())),
            // Only a mark tells an entry without a name from other text.
            None => (line, None),
        };
        let is_id = !id.is_empty() && !id.contains(char::is_whitespace);
        (is_id && (marked || name.is_some()))
            .then(|| Listed { id: id.into(), name: name.map(str::to_owned) })
    };
    Some(text.lines().filter_map(entry).collect())
}

/// A line without `(current)`, `(default)` or `(current, default)` at its end, and whether it had it.
fn unmarked(line: &str) -> (&str, bool) {
    let marks = line.strip_suffix(')').and_then(|line| line.rsplit_once('('));
    match marks {
        Some((rest, marks))
            if marks.split(',').all(|mark| matches!(mark.trim(), "current" | "default")) =>
        {
            (unmarked(rest.trim_end()).0, true)
        }
        _ => (line, false),
    }
}

/// opencode's list: one `provider/model` a line.
fn opencode_models(text: &str) -> Option<Vec<Listed>> {
    let is_id = |line: &&str| line.contains('/') && !line.contains(char::is_whitespace);
    let ids = text.lines().map(str::trim).filter(is_id);
    Some(ids.map(|id| Listed { id: id.into(), name: None }).collect())
}

/// Copilot's list, in the help on its setting `model`: one `- "id"` a line.
fn copilot_models(text: &str) -> Option<Vec<Listed>> {
    let mut lines = text.lines().skip_while(|line| !line.trim_start().starts_with("`model`"));
    lines.next()?;
    let id = |line: &str| Some(line.trim().strip_prefix("- \"")?.strip_suffix('"')?.to_owned());
    Some(lines.map_while(id).map(|id| Listed { id, name: None }).collect())
}

/// Droid's list, in the help of `exec`: the id and the name in columns, up to an empty line.
fn droid_models(text: &str) -> Option<Vec<Listed>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("Available Models"));
    lines.next()?;
    let entry = |line: &str| {
        let (id, name) = line.trim().split_once("  ")?;
        let name = name.trim().trim_end_matches("(default)").trim_end();
        Some(Listed { id: id.into(), name: Some(name.into()) })
    };
    let gone = |model: &Listed| model.name.as_ref().is_some_and(|n| n.ends_with("[Deprecated]"));
    Some(lines.map_while(entry).filter(|model| !gone(model)).collect())
}

/// Words of ids, and the provider that they belong to, for the comments of a config.
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

/// The provider that an id belongs to, for grouping under comments; "Other" if its words do not
/// tell.
pub fn provider(id: &str) -> &'static str {
    let known = PROVIDERS.iter().find(|(_, words)| words.iter().any(|word| holds(id, word)));
    known.map_or("Other", |(name, _)| name)
}

/// The backend of those `present` that should run a model: `claude` and `codex` have their own
/// makers' models; others go to the CLI that lists them, one that was asked before a curated set;
/// what nobody lists goes to `cursor`, which has models of all makers.
pub fn preferred_backend(id: &str, present: &[&str], listings: &[Listing]) -> Option<String> {
    let is_here = |backend: &str| present.contains(&backend);
    let holds_any = |words: &[&str]| words.iter().any(|word| holds(id, word));
    // A slash is opencode's way to name models, which the others do not understand.
    let rule = if id.contains('/') {
        None
    } else if holds_any(&["opus", "sonnet", "haiku", "fable"]) {
        Some("claude")
    } else if holds_any(&["gpt", "codex", "o1", "o3", "o4-mini"]) {
        Some("codex")
    } else {
        None
    };
    let lists = |listing: &&Listing| {
        is_here(&listing.backend) && listing.models.iter().any(|model| model.id == id)
    };
    let listed = listings.iter().filter(lists).min_by_key(|l| l.source == Source::Curated);
    let last = if id.contains('/') { ["opencode", "cursor"] } else { ["cursor", "cursor"] };
    rule.filter(|backend| is_here(backend))
        .or(listed.map(|listing| listing.backend.as_str()))
        .or_else(|| last.into_iter().find(|backend| is_here(backend)))
        .map(str::to_owned)
}

/// Whether `word` is a whole word of the id; a number may follow it directly, as in `qwen3`.
fn holds(id: &str, word: &str) -> bool {
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
#[path = "clis_tests.rs"]
mod tests;
