//! `~/.dispatch/config.yaml`: which workers there are and how each is started.

pub mod check;
pub mod choose;
mod diagnostic;
pub mod edit;
mod pick;
mod resolve;
pub mod setup;
mod spans;
pub mod store;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::domain::Backend;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;

pub use pick::Mention;
pub use resolve::Choice;

/// A model, and the backend that runs it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// The backend's name.
    pub backend: String,
}

/// A short name for a model, with words that open every prompt to it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// The model's id.
    pub model: String,
    /// The role that the worker is given.
    pub prompt: Option<String>,
}

/// An entry of the original's first format: a name for a whole command.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The shell command.
    pub command: String,
}

/// The config as it was read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The model or alias for a task that names none.
    pub default: Option<String>,
    /// The worker CLIs.
    pub backends: Entries<Backend>,
    /// The models.
    pub models: Entries<Model>,
    /// The aliases.
    pub aliases: Entries<Alias>,
    /// The entries of the old format.
    pub agents: Entries<Agent>,
    /// Whether the host asks before it uses the default; it does unless this is false.
    pub confirm_default: Option<bool>,
    /// How many minutes a worker waits for an answer; 30 unless said.
    pub patience: Option<u64>,
    /// After how many minutes without a sign of life a worker is called silent; 20 unless said,
    /// never if 0.
    pub silent_after: Option<u64>,
    /// Whether a silent worker is stopped; it is not unless this is true.
    pub stop_silent: Option<bool>,
    /// How many workers of the cli route may run at once, of all projects; no limit unless said.
    #[serde(deserialize_with = "at_least_one")]
    pub max_workers: Option<usize>,
    #[serde(skip)]
    path: PathBuf,
}

fn at_least_one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    match Option::deserialize(deserializer)? {
        Some(0) => {
            let what =
                "with 'max_workers: 0' nothing could run; without the line there is no limit";
            Err(serde::de::Error::custom(what))
        }
        limit => Ok(limit),
    }
}

/// The word about a config that is not there.
pub fn missing(path: &Path) -> Refusal {
    Refusal::new(Exit::Data, "there is no config yet")
        .place(format!("{} does not exist", path.display()))
        .next("follow references/first-run-setup.md, or call dispatch-config setup")
}

impl Config {
    /// Reads the config.
    ///
    /// # Errors
    /// [`Exit::Data`] if it is missing or wrong, with the place and what to do.
    pub fn load() -> Result<Self> {
        let path = crate::dirs::config_path()?;
        match files::read(&path)? {
            Some(text) => Ok(Self::parse(&text, &path)?),
            None => Err(missing(&path).into()),
        }
    }

    /// Reads a config from its text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Refusal> {
        // The parser counts the mark as a column.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut config: Option<Self> =
            serde_yaml::from_str(text).map_err(|error| diagnostic::refusal(text, path, &error))?;
        let mut config = config.take().unwrap_or_default();
        config.path = path.into();
        Ok(config)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every name that a person may use for a worker: aliases, models, agents.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let aliases = self.aliases.iter().map(|(name, _)| name);
        aliases
            .chain(self.models.iter().map(|(name, _)| name))
            .chain(self.agents.iter().map(|(name, _)| name))
    }
}

/// A YAML map in the order of its file. Null is an empty map; a key that stands twice is an error.
#[derive(Clone, Debug)]
pub struct Entries<T>(Vec<(String, T)>);

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Entries<T> {
    /// The entry of that name.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All entries, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for EntriesVisitor<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of names")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Entries::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Entries::default();
                while let Some(name) = map.next_key::<String>()? {
                    if entries.get(&name).is_some() {
                        let twice = format!("'{name}' stands here twice");
                        return Err(serde::de::Error::custom(twice));
                    }
                    entries.0.push((name, map.next_value()?));
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_any(EntriesVisitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("config.yaml")).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn an_empty_config_and_null_sections_are_fine() {
        assert!(parse("").expect("empty").default.is_none());
        assert!(parse("# nothing\n").expect("a comment").default.is_none());
        let config = parse("default: opus\nmodels:\nbackends: ~\n").expect("nulls");
        assert!(config.models.is_empty());
    }

    #[test]
    fn a_wrong_config_names_line_column_and_remedy() {
        let rows = [
            (
                "default: opus\nbackends:\n  claude: { comand: x }\n",
                "line 3, column 13:   claude: { comand: x }\n                                              ^ here: did you mean 'command'?",
            ),
            ("models:\n\topus: {}\n", "not by tabs"),
            (
                "defualt: opus\n",
                "the config is wrong: unknown field `defualt`\n  config.yaml, line 1, column 1: defualt: opus\n  ",
            ),
            (
                "models:\n  opus: { backend: claude }\n  opus: { backend: codex }\n",
                "stands here twice",
            ),
            ("models:\n  opus: { backend: [1] }\n", "invalid type"),
            ("default: [opus\n", "config.yaml, line 1, column 10"),
        ];
        for (text, expected) in rows {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }
}
