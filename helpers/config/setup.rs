//! The first config, from the CLIs and models on this machine; and the edits that upgrade a config of
//! the original's first format.

use indexmap::IndexMap;
use serde::Serialize;

use crate::config::Config;
use crate::config::edit::{Edit, Field, map};
use crate::config::splice::pair;
use crate::domain::{Access, Backend, Route};
use crate::text::shell_word;
use crate::tools::detect::InstalledCli;
use crate::tools::holder;
use crate::tools::models::{Listing, preferred_backend, provider};

/// A model that could be the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// The model's id.
    pub name: String,
    /// Why it is offered.
    pub why: String,
}

/// The models of the installed CLIs, each with the backend that will run it, grouped by provider in
/// the order in which the providers first appear.
pub fn models(
    found: &[InstalledCli],
    listings: &[Listing],
) -> IndexMap<&'static str, IndexMap<String, String>> {
    let present: Vec<&str> = found.iter().map(|found| found.backend.as_str()).collect();
    let mut groups: IndexMap<_, IndexMap<_, _>> = IndexMap::new();
    for listing in listings {
        // Cursor's name for its own choice is a word of many sentences.
        for model in listing.models.iter().filter(|model| model.id != "auto") {
            let backend = preferred_backend(&model.id, &present, listings);
            let backend = backend.unwrap_or_else(|| listing.backend.clone());
            let group = groups.entry(provider(&model.id)).or_default();
            group.entry(model.id.clone()).or_insert(backend);
        }
    }
    groups
}

/// Up to four sensible defaults, the recommended one first: Claude's best and its fast model, then
/// the first of each other provider. Models of a CLI that is not logged in come last.
pub fn offers(found: &[InstalledCli], listings: &[Listing]) -> Vec<Offer> {
    let groups = models(found, listings);
    let claude = [("opus", "Claude, for hard tasks"), ("sonnet", "Claude, fast and capable")];
    let claude = claude
        .into_iter()
        .filter_map(|(id, why)| Some((groups.get("Claude")?.get_key_value(id)?, why.to_owned())));
    let others = groups.iter().filter(|(provider, _)| **provider != "Claude");
    let others = others.filter_map(|(provider, models)| {
        Some((models.first()?, format!("{provider}, first in its list")))
    });
    let mut picks: Vec<((&String, &String), String)> = claude.chain(others).collect();
    if picks.is_empty() {
        let first = groups.values().find_map(IndexMap::first);
        picks.extend(first.map(|pick| (pick, "the first in the list".into())));
    }
    let logged_out = |backend: &str| {
        found.iter().any(|found| found.backend == backend && found.logged_in == Some(false))
    };
    let offer = |((name, backend), why): ((&String, &String), String)| {
        let why = if logged_out(backend) { format!("{why}; not logged in") } else { why };
        Offer { name: name.clone(), why }
    };
    let (later, first): (Vec<_>, Vec<_>) =
        picks.into_iter().partition(|((_, backend), _)| logged_out(backend));
    first.into_iter().chain(later).take(4).map(offer).collect()
}

/// The CLIs that cannot restrict their workers to the access of a task, with the reason.
pub fn gaps(found: &[InstalledCli]) -> Vec<(&str, String)> {
    let gap = |backend: &str| holder(backend, &Backend::default(), Access::Write, true).err();
    let backends = found.iter().map(|found| found.backend.as_str());
    backends.filter_map(|backend| Some((backend, gap(backend)?))).collect()
}

/// Returns true if Claude Code is installed, and its workers can be held as processes.
pub fn holds_claude(found: &[InstalledCli]) -> bool {
    let is_held = || holder("claude", &Backend::default(), Access::Write, false).is_ok();
    found.iter().any(|found| found.backend == "claude") && is_held()
}

/// The text of the first config. Workers of the backends in `full` get full access, and those of Claude
/// this route.
pub fn text(
    default: &str,
    found: &[InstalledCli],
    listings: &[Listing],
    full: &[String],
    route: Option<Route>,
) -> String {
    let mut text = format!(
        "# The workers of dispatch. Edit it as you like; 'dispatch-config check' finds mistakes.\n\n{}\n\nbackends:\n",
        pair("default", &default.into(), None)
    );
    let entry = |name: &str, fields: &[Field]| format!("  {}\n", pair(name, &map(fields), None));
    for found in found {
        let mut fields = backend(found, full.contains(&found.backend));
        if found.backend == "claude" && route == Some(Route::Cli) {
            fields.push(("route", "cli".into()));
        }
        text += &entry(&found.backend, &fields);
    }
    text.push_str("\nmodels:\n");
    for (provider, models) in models(found, listings) {
        text += &format!("  # {provider}\n");
        for (id, backend) in models {
            text += &entry(&id, &[("backend", backend)]);
        }
    }
    text
}

/// The edits that give a config of the original's first format backends and models. Every agent
/// keeps its name, so a model of the same name is left out.
pub fn migration(old: &Config, found: &[InstalledCli], listings: &[Listing]) -> Vec<Edit> {
    let mut edits = Vec::new();
    if old.default.is_none() {
        edits.extend(old.agents.keys().next().map(|name| Edit::set_default(name)));
    }
    for found in found {
        edits.push(Edit::add("backends", &found.backend, &backend(found, false)));
    }
    let models = models(found, listings).into_values().flatten();
    let free = models.filter(|(id, _)| old.names().all(|name| name != id));
    edits.extend(free.map(|(id, backend)| Edit::add_model(&id, &backend)));
    edits
}

/// The settings of a backend: only the access of a CLI with its usual name.
fn backend(found: &InstalledCli, full: bool) -> Vec<Field> {
    if found.program.file_name().is_none_or(|name| name != "agent") {
        return if full { vec![("access", "full".into())] } else { Vec::new() };
    }
    // Other programs are called `agent` too, so Cursor's is written as the path that was examined.
    let program = shell_word(&found.program.display().to_string());
    vec![("command", format!("{program} -p --force --trust")), ("prompt", "stdin".into())]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::edit::apply;
    use crate::tools::models::{Listed, Source};

    fn found(backend: &str, program: &str, logged_in: bool) -> InstalledCli {
        InstalledCli {
            backend: backend.into(),
            program: program.into(),
            version: Some("1".into()),
            logged_in: Some(logged_in),
            problem: None,
        }
    }

    fn listing(backend: &str, ids: &[&str]) -> Listing {
        let models = ids.iter().map(|id| Listed { id: (*id).into(), name: None }).collect();
        Listing { backend: backend.into(), models, source: Source::Asked, asked: None }
    }

    fn machine() -> (Vec<InstalledCli>, Vec<Listing>) {
        (
            vec![
                found("claude", "/bin/claude", true),
                found("codex", "/bin/codex", false),
                found("cursor", "/home/me/my bin/agent", true),
            ],
            vec![
                listing("claude", &["opus", "sonnet", "haiku"]),
                listing("codex", &["gpt-6"]),
                listing(
                    "cursor",
                    &["auto", "gpt-6", "gpt-6-low", "opus-4.6", "gemini-3.1-pro", "1.5"],
                ),
            ],
        )
    }

    #[test]
    fn first_config_lists_models_by_provider() {
        let (found, listings) = machine();
        let text = text("opus", &found, &listings, &["codex".into()], Some(Route::Cli));
        assert_eq!(
            text,
            r#"# The workers of dispatch. Edit it as you like; 'dispatch-config check' finds mistakes.

default: opus

backends:
  claude: { route: cli }
  codex: { access: full }
  cursor: { command: "\"/home/me/my bin/agent\" -p --force --trust", prompt: stdin }

models:
  # Claude
  opus: { backend: claude }
  sonnet: { backend: claude }
  haiku: { backend: claude }
  opus-4.6: { backend: claude }
  # OpenAI
  gpt-6: { backend: codex }
  gpt-6-low: { backend: codex }
  # Gemini
  gemini-3.1-pro: { backend: cursor }
  # Other
  "1.5": { backend: cursor }
"#
        );
        let config = Config::parse(&text, Path::new("config.yaml")).expect("it reads itself");
        assert_eq!(config.names().count(), 8);
    }

    #[test]
    fn migration_keeps_every_line_name_and_command() {
        let text = "agents: # mine\n  harvey: { command: \"harvey -p 'x'\" }\n  opus:\n    command: >\n      claude -p\n      --model opus\n";
        let old = Config::parse(text, Path::new("config.yaml")).expect("an old config");
        let (found, listings) = machine();
        let edits = migration(&old, &found, &listings);
        let new = edits.iter().try_fold(text.to_owned(), |text, edit| apply(&text, edit));
        let new = new.expect("provable edits");
        assert!(new.ends_with("  \"1.5\": { backend: cursor }\n"), "{new}");
        assert!(text.lines().all(|line| new.lines().any(|new| new == line)), "{new}");
        let new = Config::parse(&new, Path::new("config.yaml")).expect("a new config");
        assert_eq!(new.default.as_deref(), Some("harvey"));
        for (name, command) in old.agents.iter() {
            let choice = new.resolve(Some(name)).expect("still there");
            assert_eq!(choice.settings.command.as_ref(), Some(command));
        }
        assert_eq!(new.resolve(Some("sonnet")).expect("found").backend, "claude");
    }

    #[test]
    fn offers_are_few_and_logged_in_clis_come_first() {
        let (found, listings) = machine();
        let names: Vec<_> = offers(&found, &listings).into_iter().map(|offer| offer.name).collect();
        assert_eq!(names, ["opus", "sonnet", "gemini-3.1-pro", "1.5"]);
        let only_codex = offers(&found[1..2], &listings[1..2]);
        assert_eq!(only_codex[0].why, "OpenAI, first in its list; not logged in");
        assert_eq!(offers(&[], &[]), []);
    }
}
