//! Resolves a name that a person uses to the worker that it stands for.

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;
use crate::config::check::closest;
use crate::domain::{Access, Backend, Route};
use crate::error::{Exit, Refusal};

/// A worker that was chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// The name that chose it: of a model, an alias, or an agent of the old format.
    pub name: String,
    /// The model's id; an agent of the old format has none.
    pub model: Option<String>,
    /// The backend's name.
    pub backend: String,
    /// The text that opens the prompt.
    pub prompt: Option<String>,
    /// The alias's own check, a command that must succeed before a task is done.
    #[serde(skip)]
    pub check: Option<String>,
    /// The model or alias that continues a task at this one's limit.
    #[serde(skip)]
    pub fallback: Option<String>,
    /// The backend as the config describes it.
    #[serde(skip)]
    pub settings: Backend,
}

impl Config {
    /// The worker that `name` stands for; without a name, the default.
    ///
    /// # Errors
    /// [`Exit::Data`] if the config does not have the name, with the nearest ones, or if that part
    /// of the config holds an error, with its line.
    pub fn resolve(&self, name: Option<&str>) -> Result<Choice, Refusal> {
        let Some(name) = name.or(self.default.as_deref()) else {
            self.refuse_disabled(&["default".into()])?;
            let what = "no model is named and the config has no default";
            return Refusal::new(Exit::Data, what)
                .place(self.path().display().to_string())
                .refuse(self.listed_names());
        };
        if let Some(alias) = self.aliases.get(name) {
            let why = format!("the alias '{name}' stands for '{}'", alias.model);
            let choice = self.resolve_model(&alias.model, &why)?;
            let (prompt, check) = (alias.prompt.clone(), alias.check.clone());
            let fallback = self.fallbacks.get(name).cloned().or(choice.fallback);
            return Ok(Choice { name: name.into(), prompt, check, fallback, ..choice });
        }
        self.refuse_disabled(&[format!("aliases.{name}")])?;
        self.resolve_model(name, "no such model")
    }

    fn resolve_model(&self, name: &str, why: &str) -> Result<Choice, Refusal> {
        if let Some(backend) = self.models.get(name) {
            let part = format!("backends.{backend}");
            self.refuse_disabled(&[part, "backends".into(), String::new()])?;
            return Ok(Choice {
                name: name.into(),
                model: Some(name.into()),
                backend: backend.clone(),
                prompt: None,
                check: None,
                fallback: self.fallbacks.get(name).cloned(),
                settings: self.backends.get(backend).cloned().unwrap_or_default(),
            });
        }
        let Some(command) = self.agents.get(name) else {
            let own = ["models", "agents"].map(|section| format!("{section}.{name}"));
            let sections = ["models", "agents", "aliases", ""].map(String::from);
            self.refuse_disabled(&[&own[..], &sections].concat())?;
            return Err(self.unknown(name, why));
        };
        // The original ran an agent's command as it stands, always as a process of its own.
        let settings = Backend {
            command: Some(command.clone()),
            route: Some(Route::Cli),
            access: Some(Access::Full),
            ..Backend::default()
        };
        let (name, backend) = (name.into(), name.into());
        Ok(Choice {
            name,
            model: None,
            backend,
            prompt: None,
            check: None,
            fallback: None,
            settings,
        })
    }

    /// Refuses if an error disables one of these parts of the config.
    pub(super) fn refuse_disabled(&self, parts: &[String]) -> Result<(), Refusal> {
        let error = parts.iter().find_map(|part| self.errors().find(|it| it.part == *part));
        error.map_or(Ok(()), |error| Err(error.refusal(self.path())))
    }

    fn unknown(&self, name: &str, why: &str) -> Refusal {
        let near = closest(name, self.names());
        let next = match near.as_slice() {
            [] => self.listed_names(),
            near => format!("did you mean {}", near.join(", ")),
        };
        Refusal::new(Exit::Data, format!("model '{name}' is not in the config"))
            .place(format!("{}: {why}", self.path().display()))
            .next(next + "; dispatch-config models lists what your subscriptions have")
    }

    /// The advice to use one of the first names.
    fn listed_names(&self) -> String {
        let names: Vec<_> = self.names().take(9).collect();
        match names.as_slice() {
            [] => "add a model: dispatch-config add-model ID".into(),
            [shown @ .., _] if names.len() == 9 => format!("use one of {}, …", shown.join(", ")),
            all => format!("use one of {}", all.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const CONFIG: &str = "
default: reviewer
backends:
  codex: { command: codex exec }
models:
  opus: { backend: claude }
  gpt-5.3-codex: { backend: codex }
aliases:
  reviewer: { model: opus, prompt: Look twice. }
  broken: { model: opos }
agents:
  harvey: { command: harvey -p }
";

    fn resolve(name: Option<&str>) -> Result<Choice, String> {
        let config = Config::parse(CONFIG, Path::new("config.yaml")).expect("a good config");
        config.resolve(name).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn resolves_models_aliases_agents_and_the_default() {
        let rows = [
            (Some("opus"), Some("opus"), "claude", None),
            (Some("gpt-5.3-codex"), Some("gpt-5.3-codex"), "codex", None),
            (Some("reviewer"), Some("opus"), "claude", Some("Look twice.")),
            (Some("harvey"), None, "harvey", None),
            (None, Some("opus"), "claude", Some("Look twice.")),
        ];
        for (name, model, backend, prompt) in rows {
            let choice = resolve(name).expect("known");
            assert_eq!(choice.model.as_deref(), model, "{name:?}");
            assert_eq!(choice.backend, backend, "{name:?}");
            assert_eq!(choice.prompt.as_deref(), prompt, "{name:?}");
        }
    }

    #[test]
    fn unknown_name_suggests_the_nearest() {
        assert!(resolve(Some("oups")).expect_err("unknown").contains("did you mean opus;"));
        assert!(
            resolve(Some("broken")).expect_err("unknown").contains("'broken' stands for 'opos'")
        );
    }
}
