//! The first config: what was found on the machine, as a text that a person can go on with.

use std::fmt::Write as _;

use serde::Serialize;

use crate::config::Config;
use crate::domain::{Access, Backend};
use crate::text::shell_word;
use crate::tools::detect::InstalledCli;
use crate::tools::models::{Listing, preferred_backend, provider};
use crate::tools::{gap, is_known};

/// A model that could be the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// The model's id.
    pub name: String,
    /// Why it is offered.
    pub why: String,
}

/// Every model of the CLIs that were found, with the backend that is to run it, grouped by provider
/// in the order in which the providers first appear.
pub fn models(
    found: &[InstalledCli],
    listings: &[Listing],
) -> Vec<(&'static str, Vec<(String, String)>)> {
    let present: Vec<&str> = found.iter().map(|found| found.backend.as_str()).collect();
    let mut groups: Vec<(&'static str, Vec<(String, String)>)> = Vec::new();
    for listing in listings {
        for model in &listing.models {
            // As a name, Cursor's own choice of a model would be found in many a sentence.
            if model.id == "auto" {
                continue;
            }
            let backend = preferred_backend(&model.id, &present, listings);
            let backend = backend.unwrap_or_else(|| listing.backend.clone());
            let provider = provider(&model.id);
            let at = groups.iter().position(|(name, _)| *name == provider).unwrap_or_else(|| {
                groups.push((provider, Vec::new()));
                groups.len() - 1
            });
            if groups[at].1.iter().all(|(id, _)| *id != model.id) {
                groups[at].1.push((model.id.clone(), backend));
            }
        }
    }
    groups
}

/// Three or four models that make sensible defaults, the recommended one first: the best and the
/// fast one of Claude, then the first of each other provider. A CLI that is not logged in comes last.
pub fn offers(found: &[InstalledCli], listings: &[Listing]) -> Vec<Offer> {
    let groups = models(found, listings);
    let logged_out = |backend: &str| {
        found.iter().any(|found| found.backend == backend && found.logged_in == Some(false))
    };
    let all = || groups.iter().flat_map(|(_, models)| models);
    let mut picks: Vec<(&String, &String, String)> = Vec::new();
    for (name, why) in [("opus", "Claude, for hard tasks"), ("sonnet", "Claude, fast and capable")]
    {
        picks.extend(all().find(|(id, _)| id == name).map(|(id, b)| (id, b, why.into())));
    }
    for (provider, models) in groups.iter().filter(|(provider, _)| *provider != "Claude") {
        picks.extend(
            models.first().map(|(id, b)| (id, b, format!("{provider}, first in its list"))),
        );
    }
    if picks.is_empty() {
        picks.extend(all().next().map(|(id, b)| (id, b, "the first in the list".into())));
    }
    picks.sort_by_key(|(_, backend, _)| logged_out(backend));
    picks.truncate(4);
    let offer = |(name, backend, why): (&String, &String, String)| {
        let why = if logged_out(backend) { format!("{why}; not logged in") } else { why };
        Offer { name: name.clone(), why }
    };
    picks.into_iter().map(offer).collect()
}

/// The CLIs whose workers cannot be held to what a task asks for, with the reason.
pub fn gaps(found: &[InstalledCli]) -> Vec<(&str, String)> {
    let settings = Backend::default();
    let gap = |found: &'_ InstalledCli| gap(&found.backend, &settings, Access::Write);
    found.iter().filter_map(|found| Some((found.backend.as_str(), gap(found)?))).collect()
}

/// The text of the first config. The backends of `full` may do anything.
pub fn text(
    default: &str,
    found: &[InstalledCli],
    listings: &[Listing],
    full: &[String],
) -> String {
    let mut text = format!(
        "# Who can work for dispatch. Yours to edit: 'dispatch-config check' says what is wrong.\n\ndefault: {}\n\nbackends:\n",
        scalar(default)
    );
    for found in found {
        let settings = backend(found, full.contains(&found.backend));
        let _ = writeln!(text, "  {}: {settings}", scalar(&found.backend));
    }
    text.push_str("\nmodels:\n");
    for (provider, models) in models(found, listings) {
        let _ = writeln!(text, "  # {provider}");
        for (id, backend) in models {
            let _ = writeln!(text, "  {}: {{ backend: {} }}", scalar(&id), scalar(&backend));
        }
    }
    text
}

/// The text of a config in the present form that keeps every name and command of one in the old:
/// its agents stay behind the models, and a model that is called like one of them stays out.
pub fn migrated(old: &Config, found: &[InstalledCli], listings: &[Listing]) -> String {
    let mut listings = listings.to_vec();
    for listing in &mut listings {
        listing.models.retain(|model| old.agents.get(&model.id).is_none());
    }
    let default = old.default.as_deref().or(old.agents.iter().map(|(name, _)| name).next());
    let mut text = text(default.unwrap_or_default(), found, &listings, &[]);
    text.push_str("\n# Commands under names of their own, from the config before.\nagents:\n");
    for (name, agent) in old.agents.iter() {
        let command = scalar(agent.command.trim_end());
        let _ = writeln!(text, "  {}: {{ command: {command} }}", scalar(name));
    }
    if !old.aliases.is_empty() {
        text.push_str("\naliases:\n");
    }
    for (name, alias) in old.aliases.iter() {
        let prompt = alias.prompt.as_deref().map(|prompt| format!(", prompt: {}", scalar(prompt)));
        let (name, model) = (scalar(name), scalar(&alias.model));
        let _ = writeln!(text, "  {name}: {{ model: {model}{} }}", prompt.unwrap_or_default());
    }
    if let Some(confirm) = old.confirm_default {
        let _ = writeln!(text, "\nconfirm_default: {confirm}");
    }
    if let Some(patience) = old.patience {
        let _ = writeln!(text, "\npatience: {patience}");
    }
    if let Some(minutes) = old.silent_after {
        let _ = writeln!(text, "\nsilent_after: {minutes}");
    }
    if let Some(stop) = old.stop_silent {
        let _ = writeln!(text, "\nstop_silent: {stop}");
    }
    if let Some(limit) = old.max_workers {
        let _ = writeln!(text, "\nmax_workers: {limit}");
    }
    text
}

/// A backend's settings: none but its access for a CLI that is called by its usual name.
fn backend(found: &InstalledCli, full: bool) -> String {
    let program = found.program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if is_known(&found.backend) && program != "agent" {
        return if full { "{ access: full }" } else { "{}" }.into();
    }
    // Cursor's other name, which other makers use too, is written as the path that was looked at.
    let program = shell_word(&found.program.display().to_string());
    let flags = if found.backend == "cursor" { " -p --force --trust" } else { " -x" };
    format!("{{ command: {}, prompt: stdin }}", scalar(&format!("{program}{flags}")))
}

/// A YAML scalar, quoted where it is not plainly a name.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/ ".contains(c);
    let a_name = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let a_word = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if a_name && text.chars().all(plain) && !a_word.contains(&text.to_ascii_lowercase().as_str()) {
        return text.trim_end().into();
    }
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
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
    fn the_first_config_has_what_was_found_by_provider() {
        let (found, listings) = machine();
        let text = text("opus", &found, &listings, &["codex".into()]);
        assert_eq!(
            text,
            r#"# Who can work for dispatch. Yours to edit: 'dispatch-config check' says what is wrong.

default: opus

backends:
  claude: {}
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
    fn a_migrated_config_keeps_every_name_and_command() {
        let old = "default: harvey\nagents:\n  harvey: { command: \"harvey -p 'x'\" }\n  opus:\n    command: >\n      claude -p\n      --model opus\n";
        let old = Config::parse(old, Path::new("config.yaml")).expect("an old config");
        let (found, listings) = machine();
        let text = migrated(&old, &found, &listings);
        let new = Config::parse(&text, Path::new("config.yaml")).expect("a new config");
        assert_eq!(new.default, old.default);
        for (name, agent) in old.agents.iter() {
            let choice = new.resolve(Some(name)).expect("still there");
            assert_eq!(
                choice.settings.command.as_deref().map(str::trim),
                Some(agent.command.trim())
            );
        }
        assert_eq!(new.resolve(Some("sonnet")).expect("found").backend, "claude");
    }

    #[test]
    fn the_offered_defaults_are_few_and_those_that_work_come_first() {
        let (found, listings) = machine();
        let names: Vec<_> = offers(&found, &listings).into_iter().map(|offer| offer.name).collect();
        assert_eq!(names, ["opus", "sonnet", "gemini-3.1-pro", "1.5"]);
        let only_codex = offers(&found[1..2], &listings[1..2]);
        assert_eq!(only_codex[0].why, "OpenAI, first in its list; not logged in");
        assert_eq!(offers(&[], &[]), []);
    }
}
