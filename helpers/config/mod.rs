//! `~/.dispatch/config.yaml`: the workers and how each is started.

pub mod check;
pub mod choose;
pub mod edit;
mod read;
pub mod setup;
mod spans;
mod splice;

use std::path::{Path, PathBuf};

use anyhow::Result;
use indexmap::IndexMap;
use serde::Serialize;

use crate::dirs;
use crate::domain::{Access, Backend, Budget, Route, Worktree};
use crate::error::{Exit, Refusal};
use crate::files;
use check::{Problem, Severity, closest};

/// A short name for a model.
#[derive(Clone, Debug)]
pub struct AliasEntry {
    /// The model's id.
    pub model: String,
    /// The text that opens every prompt.
    pub prompt: Option<String>,
    /// A command that must succeed before a task is done.
    pub check: Option<String>,
}

/// A machine or container that workers run at.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PlaceEntry {
    /// The command that runs there what its further arguments name, on this standard input and output.
    pub reach: Vec<String>,
    /// The command there that submits a supervisor as a job (default: none, supervisors are started).
    pub start: Option<Vec<String>>,
    /// The directory there for the repositories with the code (default: `~/.dispatch/places`).
    pub directory: Option<String>,
    /// How many workers may run there at once (default: no limit).
    pub max_workers: Option<usize>,
    /// True if a task's commits are fetched while it is open, and not only at its end.
    pub fetch_commits: bool,
}

/// The config without the parts that hold errors.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The model or alias for a task that names none.
    pub default: Option<String>,
    /// The worker CLIs.
    pub backends: Entries<Backend>,
    /// The models, each with the name of the backend that runs it.
    pub models: Entries<String>,
    /// The aliases.
    pub aliases: Entries<AliasEntry>,
    /// The places where workers may run.
    pub places: Entries<PlaceEntry>,
    /// The shell commands of the original's first format.
    pub agents: Entries<String>,
    /// The models and aliases that continue the tasks of others at their limit, by the others' names.
    pub fallbacks: Entries<String>,
    /// How many minutes until its stated reset a limit is waited for, rather than taking the fallback
    /// (default: 60).
    pub wait_for_limit: Option<u64>,
    /// Makes the host ask before it uses the default model (default: true).
    pub confirm_default: Option<bool>,
    /// How many minutes a worker waits for an answer (default: 30).
    pub patience: Option<u64>,
    /// How many minutes a worker may show no activity before it counts as silent (default: 20;
    /// 0: never).
    pub silent_after: Option<u64>,
    /// Stops silent workers (default: false).
    pub stop_silent: Option<bool>,
    /// How many workers of the cli route may run at once, over all projects (default: no limit).
    pub max_workers: Option<usize>,
    /// How many minutes a check may take (default: 10).
    pub check_limit: Option<u64>,
    /// The budget of a task, where neither the task nor its backend has one.
    pub budget: Option<Budget>,
    /// The command that is told of questions, ends and limits.
    pub notify: Option<String>,
    /// The command that sets up a new worktree.
    pub set_up: Option<String>,
    /// Other such commands for projects, by path or remote URL.
    pub set_up_of_projects: Entries<String>,
    /// The unknown keys and the wrong values, in the order of the sections.
    pub problems: Vec<Problem>,
    /// The file that the config was read from.
    pub path: PathBuf,
}

/// A section: its entries by name, in the order of the file.
pub type Entries<T> = IndexMap<String, T>;

/// A worker that was chosen.
#[derive(Clone, Debug, Default, Serialize)]
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

/// The refusal where there is no config.
pub fn missing(path: &Path) -> Refusal {
    Refusal::new(Exit::Data, "there is no config yet")
        .place(format!("{} does not exist", path.display()))
        .next("follow references/first-run-setup.md, or call dispatch-config setup")
}

impl Config {
    /// Reads the config.
    ///
    /// # Errors
    /// [`Exit::Data`] if the config is missing or not YAML. A wrong value is no error: see
    /// [`Self::problems`].
    pub fn load() -> Result<Self> {
        let path = dirs::config_path()?;
        match files::read(&path)? {
            Some(text) => Ok(Self::parse(&text, &path)?),
            None => Err(missing(&path).into()),
        }
    }

    /// Reads a config from its text.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Refusal> {
        // libyaml counts a byte order mark as a column.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let root = spans::tree(text).ok_or_else(|| Problem::syntax(text).refusal(path))?;
        let config = root.map(|root| read::read(text, &root)).unwrap_or_default();
        Ok(Self { path: path.into(), ..config })
    }

    /// The problems that disable a part of the config, such as `models.opus`.
    fn errors(&self) -> impl Iterator<Item = &Problem> + Clone {
        self.problems.iter().filter(|it| it.severity == Severity::Error)
    }

    /// The command that sets up a worktree: of the project that the config names by the path of its
    /// checkout or repository or by a remote URL, else of all.
    ///
    /// # Errors
    /// [`Exit::Data`] if that part of the config holds an error.
    pub fn set_up_of(&self, worktree: &Worktree) -> Result<Option<&str>> {
        self.refuse_disabled(&["worktree", "worktree.setup", "worktree.projects", ""])?;
        let own = worktree.repository.parent().filter(|_| worktree.repository.ends_with(".git"));
        let places = [Some(&*worktree.repository), worktree.checkout.as_deref(), own];
        let home = dirs::home_directory().unwrap_or_default();
        let is_place = |name: &str| {
            let path = name.strip_prefix("~/").map_or_else(|| name.into(), |rest| home.join(rest));
            path.canonicalize().is_ok_and(|path| places.contains(&Some(&path)))
        };
        let mut projects = self.set_up_of_projects.iter();
        let remotes = if projects.len() > 0 { worktree.remotes()? } else { Vec::new() };
        let named = projects.find(|(name, _)| remotes.contains(name) || is_place(name));
        Ok(named.map(|(_, command)| command).or(self.set_up.as_ref()).map(String::as_str))
    }

    /// The budget of a backend's tasks that have none of their own.
    ///
    /// # Errors
    /// [`Exit::Data`] if that part of the config holds an error.
    pub fn budget_of(&self, backend: &Backend) -> Result<Budget, Refusal> {
        self.refuse_disabled(&["budget", ""])?;
        Ok(backend.budget.or(self.budget).unwrap_or_default())
    }

    /// The place with this name.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is none, or its entry holds an error.
    pub fn place(&self, name: &str) -> Result<&PlaceEntry, Refusal> {
        self.refuse_disabled(&[&format!("places.{name}"), "places", ""])?;
        self.places.get(name).ok_or_else(|| {
            let names: Vec<&str> = self.places.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            Refusal::new(Exit::Data, format!("there is no place '{name}'"))
                .place(format!("places in {}: {names}", self.path.display()))
                .next(format!("a person adds it: dispatch-config add-place {name} --reach '...'"))
        })
    }

    /// Returns true for the original's first format, which has no models.
    pub fn is_old_format(&self) -> bool {
        !self.agents.is_empty() && self.models.is_empty() && self.backends.is_empty()
    }

    /// The names of the entries of a section that hold an error.
    fn disabled<'a>(&'a self, section: &'static str) -> impl Iterator<Item = &'a str> + Clone {
        self.errors().filter_map(move |it| it.part.strip_prefix(section)?.strip_prefix('.'))
    }

    /// Returns true if the workers of a backend may do anything, and no model uses it yet.
    pub fn is_unused_full(&self, backend: &str) -> bool {
        let is_full = |it: &Backend| it.usual_access() == Access::Full;
        let is_used = || self.models.values().any(|used| used == backend);
        self.backends.get(backend).is_some_and(is_full) && !is_used()
    }

    /// Every name that an alias may stand for: models and agents, disabled ones included.
    fn targets(&self) -> impl Iterator<Item = &str> + Clone {
        let names = self.models.keys().chain(self.agents.keys()).map(String::as_str);
        names.chain(self.disabled("models")).chain(self.disabled("agents"))
    }

    /// Every name that a person may use for a worker: aliases, models and agents, disabled ones
    /// included.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        let names = self.aliases.keys().map(String::as_str);
        names.chain(self.targets()).chain(self.disabled("aliases"))
    }

    /// The worker that `name` stands for; without a name, the default.
    ///
    /// # Errors
    /// [`Exit::Data`] if the config does not have the name, with the nearest ones, or if that part
    /// of the config holds an error, with its line.
    pub fn resolve(&self, name: Option<&str>) -> Result<Choice, Refusal> {
        let Some(name) = name.or(self.default.as_deref()) else {
            self.refuse_disabled(&["default"])?;
            let what = "no model is named and the config has no default";
            return Refusal::new(Exit::Data, what)
                .place(self.path.display().to_string())
                .refuse(self.listed_names());
        };
        if let Some(alias) = self.aliases.get(name) {
            let why = format!("the alias '{name}' stands for '{}'", alias.model);
            let choice = self.resolve_model(&alias.model, &why)?;
            let (prompt, check) = (alias.prompt.clone(), alias.check.clone());
            let fallback = self.fallbacks.get(name).cloned().or(choice.fallback);
            return Ok(Choice { name: name.into(), prompt, check, fallback, ..choice });
        }
        self.refuse_disabled(&[&format!("aliases.{name}")])?;
        self.resolve_model(name, "no such model")
    }

    fn resolve_model(&self, name: &str, why: &str) -> Result<Choice, Refusal> {
        if let Some(backend) = self.models.get(name) {
            self.refuse_disabled(&[&format!("backends.{backend}"), "backends", ""])?;
            return Ok(Choice {
                name: name.into(),
                model: Some(name.into()),
                backend: backend.clone(),
                fallback: self.fallbacks.get(name).cloned(),
                settings: self.backends.get(backend).cloned().unwrap_or_default(),
                ..Choice::default()
            });
        }
        let Some(command) = self.agents.get(name) else {
            let [model, agent] = ["models", "agents"].map(|section| format!("{section}.{name}"));
            self.refuse_disabled(&[&model, &agent, "models", "agents", "aliases", ""])?;
            return Err(self.unknown(name, why));
        };
        // The original ran an agent's command as it stands, always as a process of its own.
        let settings = Backend {
            command: Some(command.clone()),
            route: Some(Route::Cli),
            access: Some(Access::Full),
            ..Backend::default()
        };
        Ok(Choice { name: name.into(), backend: name.into(), settings, ..Choice::default() })
    }

    /// Refuses if an error disables one of these parts of the config.
    fn refuse_disabled(&self, parts: &[&str]) -> Result<(), Refusal> {
        let error = parts.iter().find_map(|part| self.errors().find(|it| it.part == *part));
        error.map_or(Ok(()), |error| Err(error.refusal(&self.path)))
    }

    fn unknown(&self, name: &str, why: &str) -> Refusal {
        let near = closest(name, self.names());
        let next = match near.as_slice() {
            [] => self.listed_names(),
            near => format!("did you mean {}", near.join(", ")),
        };
        Refusal::new(Exit::Data, format!("model '{name}' is not in the config"))
            .place(format!("{}: {why}", self.path.display()))
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
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("config.yaml")).expect("YAML")
    }

    #[test]
    fn empty_config_and_null_sections_are_valid() {
        for text in ["", "# nothing\n", "~", "---\n", "default: ~\nmodels:\nbackends: ~\n"] {
            let config = parse(text);
            assert!(config.default.is_none() && config.models.is_empty(), "{text}");
            assert_eq!(config.problems, [], "{text}");
        }
    }

    #[test]
    fn syntax_error_names_line_column_and_remedy() {
        let rows = [
            ("models:\n\topus: {}\n", "^ here: YAML is indented by spaces, not by tabs"),
            ("default: [opus\n", "config.yaml, line 1, column 15: default: [opus\n"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
        ];
        for (text, expected) in rows {
            let error = Config::parse(text, Path::new("config.yaml")).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}\n{error}");
        }
    }

    #[test]
    fn claude_model_without_a_backend_runs_on_claude() {
        let config = parse("models: { opus: {}, claude-sonnet-4.6: , gpt-5: {} }\n");
        let backend = |id| config.models.get(id).map(String::as_str);
        assert_eq!(backend("opus"), Some("claude"));
        assert_eq!(backend("claude-sonnet-4.6"), Some("claude"));
        assert_eq!(backend("gpt-5"), None);
        let lines: Vec<_> = config.problems.iter().map(Problem::line).collect();
        assert_eq!(
            lines,
            [
                "config line 1: models.gpt-5 has no 'backend', so models.gpt-5 is disabled (add 'backend: ...')"
            ]
        );
    }

    /// Each row is one wrong part of a config and the rest of it, which must stay in use.
    #[test]
    fn wrong_value_disables_its_part_and_nothing_else() {
        const GOOD: &str = "good: { backend: b }";
        let rows = [
            (
                "patience: soon\n",
                "'patience' cannot be 'soon', so patience is disabled (expected a whole number)",
            ),
            ("patience: [1]\n", "'patience' must be a single value"),
            ("max_workers: 0\n", "(expected a whole number above 0)"),
            ("stop_silent: yes\n", "(expected a boolean)"),
            (
                "budget: 5 eur\n",
                "'5 eur' is no budget, so budget is disabled (write 5usd, 2Mtok or 90m, or",
            ),
            (
                "backends: { x: { budgets: 5m } }\n",
                "so backends.x is disabled (did you mean 'budget'?)",
            ),
            ("default: {a: b}\n", "'default' must be a single value, so default is disabled"),
            ("aliases: [a]\n", "aliases must be a map, so aliases is disabled"),
            ("aliases: { x: { model: [] } }\n", "so aliases.x is disabled"),
            ("aliases: { x: y }\n", "aliases.x must be a map, so aliases.x is disabled"),
            ("aliases: { x: {} }\n", "aliases.x has no 'model', so aliases.x is disabled"),
            ("agents: { x: { command: *no } }\n", "there is no anchor 'no', so agents.x is"),
            ("patience: 1\npatience: 2\n", "'patience' stands here twice, so patience is"),
            ("<<: { patience: 1 }\n", "a merge key ('<<') is not supported (write"),
            ("? [a]\n: b\n", "a key that is not a name (write a name)"),
            (
                "backends: { x: { access: reed } }\n",
                "'access' cannot be 'reed', so backends.x is disabled (expected one of `read`, `write`, `full`)",
            ),
            ("backends: { x: { <<: {} } }\n", "'<<') is not supported, so backends.x is disabled"),
            ("backends: { x: {}, x: {} }\n", "'x' stands here twice, so backends.x is disabled"),
            (
                "worktree: { setpu: x }\n",
                "unknown key 'setpu' in worktree, so worktree is disabled (did you mean 'setup'?)",
            ),
            (
                "worktree: { projects: [] }\n",
                "worktree.projects must be a map, so worktree.projects is",
            ),
            ("aliases: { x: { model: good, checked: x } }\n", "so aliases.x is disabled"),
            ("places: { x: {} }\n", "places.x has no 'reach', so places.x is disabled"),
            (
                "places: { x: { reach: 'ssh a; rm b' } }\n",
                "'reach' must be one plain command, so places.x is disabled (write it like: ssh gpu)",
            ),
            ("places: { x: { reach: ssh $HOST } }\n", "'reach' must be one plain command"),
            ("places: { ../x: { reach: ssh a } }\n", "'../x' cannot be the name of a place"),
            ("places: { x: { reach: ssh a, max_workers: 0 } }\n", "so places.x is disabled"),
            ("places: { x: { reach: a, start: qsub } }\n", "only Slurm is supported, so"),
            ("places: { x: { reach: a, start: sbatch; b } }\n", "must be one plain call of sbatch"),
            ("places: { x: { reach: a, start: sbatch -Ha1-3 } }\n", "cannot have -Ha1-3"),
            ("places: { x: { reach: a, start: sbatch --arr 9 } }\n", "cannot have --arr"),
            ("places: { x: { reach: a, start: sbatch a.sh } }\n", "cannot have a.sh"),
            ("patiense: 1\n", "unknown key 'patiense' (did you mean 'patience'?)"),
            ("aliases: { x: { model: good, z: 1 } }\n", "unknown key 'z' in aliases.x (known"),
        ];
        for (wrong, expected) in rows {
            let config = parse(&format!("{wrong}models:\n  {GOOD}\n"));
            let lines: Vec<_> = config.problems.iter().map(Problem::line).collect();
            assert!(lines.len() == 1 && lines[0].contains(expected), "{wrong}{lines:?}");
            assert!(config.models.get("good").is_some(), "{wrong}");
            assert!(config.backends.is_empty() && config.agents.is_empty(), "{wrong}");
            assert!(config.places.is_empty(), "{wrong}");
            assert_eq!((config.patience, config.max_workers), (None, None), "{wrong}");
        }
    }

    #[test]
    fn anchors_are_understood() {
        let config = parse(
            "default: &d opus\nmodels:\n  opus: &m { backend: &b claude }\n  sonnet: *m\n  x: { backend: *b }\naliases:\n  q: { model: *d }\n",
        );
        assert_eq!(config.problems, []);
        assert_eq!(config.models.get("sonnet").map(String::as_str), Some("claude"));
        assert_eq!(config.models.get("x").map(String::as_str), Some("claude"));
        assert_eq!(config.aliases.get("q").map(|it| it.model.as_str()), Some("opus"));
    }

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
