//! From a name that a person uses to the worker that is meant.

use anyhow::Result;
use serde::Serialize;

use crate::config::Config;
use crate::config::diagnostic::closest;
use crate::domain::{Access, Backend, Route};
use crate::error::Refusal;
use crate::exit::Exit;

/// A worker that was chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// The name that chose it: a model's id, an alias, or an agent of the old format.
    pub name: String,
    /// The model's id; an agent of the old format has none.
    pub model: Option<String>,
    /// The backend's name.
    pub backend: String,
    /// Words that open the prompt.
    pub prompt: Option<String>,
    /// What the config says about the backend.
    #[serde(skip)]
    pub settings: Backend,
}

impl Config {
    /// The worker that `name` means; without a name, the default.
    ///
    /// # Errors
    /// [`Exit::Data`] if the name is not in the config, with the nearest ones.
    pub fn resolve(&self, name: Option<&str>) -> Result<Choice, Refusal> {
        let Some(name) = name.or(self.default.as_deref()) else {
            return Err(Refusal::new(
                Exit::Data,
                "no model is named and the config has no default",
            )
            .place(self.path().display().to_string())
            .next(format!("name one: {}", self.some_names())));
        };
        if let Some(alias) = self.aliases.get(name) {
            let choice = self.of_model(&alias.model).map_err(|_| {
                let what = format!("the alias '{name}' means '{}'", alias.model);
                self.unknown(&alias.model, what)
            })?;
            return Ok(Choice { name: name.into(), prompt: alias.prompt.clone(), ..choice });
        }
        self.of_model(name)
    }

    fn of_model(&self, name: &str) -> Result<Choice, Refusal> {
        if let Some(model) = self.models.get(name) {
            return Ok(Choice {
                name: name.into(),
                model: Some(name.into()),
                backend: model.backend.clone(),
                prompt: None,
                settings: self.backends.get(&model.backend).cloned().unwrap_or_default(),
            });
        }
        let agent =
            self.agents.get(name).ok_or_else(|| self.unknown(name, "no such model".into()))?;
        // The original ran an agent's command as it stands, always as a process of its own.
        let settings = Backend {
            command: Some(agent.command.clone()),
            route: Some(Route::Cli),
            access: Some(Access::Full),
            ..Backend::default()
        };
        Ok(Choice { name: name.into(), model: None, backend: name.into(), prompt: None, settings })
    }

    fn unknown(&self, name: &str, why: String) -> Refusal {
        let near = closest(name, self.names());
        let next = match near.as_slice() {
            [] => format!("name one that is there: {}", self.some_names()),
            near => format!("did you mean {}", near.join(", ")),
        };
        Refusal::new(Exit::Data, format!("model '{name}' is not in the config"))
            .place(format!("{}: {why}", self.path().display()))
            .next(next + "; dispatch-config models lists what your subscriptions have")
    }

    fn some_names(&self) -> String {
        let names: Vec<_> = self.names().collect();
        let more = if names.len() > 8 { ", …" } else { "" };
        if names.is_empty() {
            return "it has no models".into();
        }
        names.into_iter().take(8).collect::<Vec<_>>().join(", ") + more
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
    fn a_model_an_alias_an_agent_and_the_default() {
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
    fn an_unknown_name_is_answered_with_the_nearest() {
        assert!(resolve(Some("oups")).expect_err("unknown").contains("did you mean opus;"));
        assert!(resolve(Some("broken")).expect_err("unknown").contains("'broken' means 'opos'"));
    }
}
