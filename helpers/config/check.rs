//! All problems of a config: those of its values, the names that lead nowhere, and the programs
//! that are not installed.

use std::ops::Range;
use std::path::Path;

use crate::config::spans::{Node, tree};
use crate::config::{AliasEntry, Config};
use crate::domain::Backend;
use crate::error::{Exit, Refusal};
use crate::text::{line_and_column, sort};
use crate::tools::{by_name, missing_program, obsolete_flags, program_of};

/// All problems of a config's text, from top to bottom.
///
/// # Errors
/// The syntax error of a text that is not YAML.
pub fn problems(text: &str, path: &Path) -> Result<Vec<Problem>, Refusal> {
    let config = Config::parse(text, path)?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let root = tree(text).flatten();
    let mut check = Check { text, root, config: &config, problems: config.problems.clone() };
    check.names();
    for (name, backend) in config.backends.iter() {
        check.command("backends", name, backend);
    }
    for (name, command) in config.agents.iter() {
        let backend = Backend { command: Some(command.clone()), ..Backend::default() };
        check.command("agents", name, &backend);
    }
    let place = |problem: &Problem| (problem.line, problem.column);
    sort(&mut check.problems, |one, other| place(one).cmp(&place(other)));
    Ok(check.problems)
}

struct Check<'a> {
    text: &'a str,
    root: Option<Node>,
    config: &'a Config,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Where the value at a path is, or the last key of the path that exists.
    fn place(&self, path: &[&str]) -> Range<usize> {
        let mut node = self.root.as_ref();
        let mut place = 0..0;
        for name in path {
            let Some((key, value)) = node.and_then(|node| node.get(name)) else { break };
            let shown = if Some(name) == path.last() { value } else { key };
            place = shown.body..shown.end;
            node = Some(value);
        }
        place
    }

    /// Adds a problem at the text `within` the value at a path.
    fn add(&mut self, path: &[&str], within: &str, what: String, remedy: String) {
        let place = self.place(path);
        let at = place.start + self.text[place].find(within).unwrap_or_default();
        self.problems.push(Problem::new(Severity::Error, (self.text, at), "", what, remedy));
    }

    /// Adds a problem if the name at a path is none of `names`.
    fn name(&mut self, path: &[&str], name: &str, names: &[&str], [what, otherwise]: [String; 2]) {
        if !names.contains(&name) {
            let near = closest(name, names.iter().copied()).first().copied();
            let remedy = near.map_or(otherwise, |near| format!("did you mean '{near}'?"));
            self.add(path, "", what, remedy);
        }
    }

    /// Each name that stands for another part of the config must lead there.
    fn names(&mut self) {
        let config = self.config;
        let names: Vec<&str> = config.names().collect();
        if let Some(name) = &config.default {
            let what = format!("the default '{name}' does not exist");
            self.name(&["default"], name, &names, [what, "name one of the models".into()]);
        }
        let targets: Vec<&str> = config.targets().collect();
        for (alias, AliasEntry { model, .. }) in &config.aliases {
            let what = format!("alias '{alias}' stands for '{model}', which does not exist");
            let otherwise = format!("dispatch-config add-model {model}");
            self.name(&["aliases", alias, "model"], model, &targets, [what, otherwise]);
        }
        for (name, fallback) in &config.fallbacks {
            let what = format!("the fallback '{fallback}' of '{name}' does not exist");
            let section = if config.aliases.contains_key(name) { "aliases" } else { "models" };
            let otherwise = "name a model or an alias".into();
            self.name(&[section, name, "fallback"], fallback, &names, [what, otherwise]);
        }
        let backends = config.backends.keys().map(String::as_str);
        let backends: Vec<&str> = backends.chain(config.disabled("backends")).collect();
        for (id, name) in config.models.iter().filter(|(_, name)| by_name(name).is_none()) {
            let what = format!("model '{id}' is on '{name}', which does not exist");
            let otherwise = format!("dispatch-config add-backend {name} --command '...'");
            self.name(&["models", id, "backend"], name, &backends, [what, otherwise]);
        }
    }

    /// The command of a backend must exist and take its flags.
    fn command(&mut self, section: &str, name: &str, backend: &Backend) {
        let path = [section, name, "command"];
        if backend.command.is_none() && by_name(name).is_none() {
            let remedy = "add 'command:' with the shell command that starts it".into();
            return self.add(&path, "", format!("backend '{name}' has no command"), remedy);
        }
        if let Some(program) = missing_program(name, backend) {
            let remedy = format!("install {program}, or remove the backend");
            self.add(&path, "", format!("'{program}' of '{name}' is not installed"), remedy);
        }
        let program = backend.command.as_deref().and_then(program_of).unwrap_or_default();
        let cli = Path::new(&program).file_name().unwrap_or_default().display().to_string();
        for (flag, replacement) in obsolete_flags(backend) {
            let what = format!("{cli} no longer takes {flag}");
            self.add(&path, flag, what, format!("write {replacement} in its place"));
        }
    }
}

/// The most characters of a line that are shown.
const SHOWN: usize = 120;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something in the config has no effect.
    Warning,
    /// A part of the config cannot be used.
    Error,
}

/// A problem with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The part of the config that an error disables, as `models.opus` or `patience`.
    pub(super) part: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The text of the line.
    shown: String,
    what: String,
    remedy: String,
}

impl Problem {
    /// A problem at a byte of `text`.
    pub(super) fn new(
        severity: Severity,
        (text, at): (&str, usize),
        part: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (line, column) = line_and_column(text, at);
        Self {
            severity,
            part: part.into(),
            line,
            column,
            shown: text.lines().nth(line - 1).unwrap_or_default().into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// The first syntax error of a text that is not one YAML document.
    pub(super) fn syntax(text: &str) -> Self {
        let error = serde_yaml::from_str::<serde::de::IgnoredAny>(text).err();
        let message = error.as_ref().map_or("it is not YAML".into(), ToString::to_string);
        let place = error.and_then(|error| error.location());
        // The parser gives the line behind the last one for what is missing at the end.
        let at = place.map_or(0, |place| place.index()).min(text.trim_end().len());
        // Only the message ends with the place.
        let what = message.split(" at line ").next().unwrap_or(&message);
        let mut problem = Self::new(Severity::Error, (text, at), "", what, "here");
        if problem.shown.starts_with('\t') {
            problem.remedy = "here: YAML is indented by spaces, not by tabs".into();
        }
        problem
    }

    /// This problem as the error of a command: what, the line with its place, a caret below it.
    pub fn refusal(&self, path: &Path) -> Refusal {
        let kind = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "the config is wrong",
        };
        let before = format!("{}, line {}, column {}: ", path.display(), self.line, self.column);
        // A config may be one long line of JSON, of which the part around the problem is shown.
        let skip = (self.column - 1).saturating_sub(SHOWN / 2);
        let skip = if self.shown.chars().count() > SHOWN { skip } else { 0 };
        let shown: String = self.shown.trim_end().chars().skip(skip).take(SHOWN).collect();
        let indent = before.chars().count() + (self.column - 1 - skip).min(shown.chars().count());
        let place = format!("{before}{shown}\n  {:indent$}^ {}", "", self.remedy);
        Refusal::new(Exit::Data, format!("{kind}: {}", self.what)).place(place)
    }

    /// This problem in one line.
    pub fn line(&self) -> String {
        let disabled = match self.severity {
            Severity::Error if !self.part.is_empty() => format!(", so {} is disabled", self.part),
            _ => String::new(),
        };
        format!("config line {}: {}{disabled} ({})", self.line, self.what, self.remedy)
    }
}

/// The names that `wrong` may have been meant as: at most three, nearest first.
pub(super) fn closest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wrong = wrong.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .map(|name| {
            let lower = name.to_lowercase();
            let inside = lower.contains(&wrong) || wrong.contains(&lower);
            (if inside { 1 } else { strsim::osa_distance(&wrong, &lower) }, name)
        })
        .filter(|(score, name)| *score <= name.len().max(3) / 2)
        .collect();
    sort(&mut scored, Ord::cmp);
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: &str = "\u{feff}defualt: opus
default: opsu
backends:
  claude: { comand: x }
  codex: { command: codex exec --full-auto, route: far }
  cursor: { command: codex exec --full-auto }
  mine: {}
models:
  opus: { backend: claude }
  opus: { backend: claude }
  sonnet: {}
  gpt: { backend: cursorr }
  gone: { backend: [1] }
  bare: {}
  flat: codex
aliases:
  quick: { model: mistral-large }
patience: [1]
max_workers: 0
";

    #[test]
    fn all_problems_are_listed_from_top_to_bottom() {
        let lines: Vec<String> = problems(WRONG, Path::new("config.yaml"))
            .expect("YAML")
            .iter()
            .map(|problem| format!("{}: {}", problem.column, problem.line()))
            .filter(|line| !line.contains("is not installed"))
            .collect();
        assert_eq!(
            lines,
            [
                "1: config line 1: unknown key 'defualt' (did you mean 'default'?)",
                "10: config line 2: the default 'opsu' does not exist (did you mean 'opus'?)",
                "13: config line 4: unknown key 'comand' in backends.claude (did you mean 'command'?)",
                "52: config line 5: 'route' cannot be 'far', so backends.codex is disabled (expected `agent` or `cli`)",
                "33: config line 6: codex no longer takes --full-auto (write -s workspace-write in its place)",
                "3: config line 7: backend 'mine' has no command (add 'command:' with the shell command that starts it)",
                "3: config line 10: 'opus' stands here twice, so models.opus is disabled (remove one of them)",
                "19: config line 12: model 'gpt' is on 'cursorr', which does not exist (did you mean 'cursor'?)",
                "20: config line 13: 'backend' must be a single value, so models.gone is disabled (write it on one line)",
                "3: config line 14: models.bare has no 'backend', so models.bare is disabled (add 'backend: ...')",
                "9: config line 15: models.flat must be a map, so models.flat is disabled (write { backend: NAME })",
                "19: config line 17: alias 'quick' stands for 'mistral-large', which does not exist (dispatch-config add-model mistral-large)",
                "11: config line 18: 'patience' must be a single value, so patience is disabled (write it on one line)",
                "14: config line 19: 'max_workers' cannot be '0', so max_workers is disabled (expected a whole number above 0)",
            ]
        );
    }

    #[test]
    fn valid_config_has_no_problems() {
        for good in
            ["", "# nothing\n", "models:\n  opus: { backend: claude }\ndefault: opus\nbackends:\n"]
        {
            assert_eq!(problems(good, Path::new("config.yaml")).expect("YAML"), []);
        }
    }
}

#[cfg(test)]
mod problem_tests {
    use super::*;

    #[test]
    fn long_line_is_shown_around_the_problem() {
        let text = format!("{}here{}", "-".repeat(5_000), "+".repeat(5_000));
        let problem = Problem::new(Severity::Error, (&text, 5_000), "", "wrong", "correct it");
        let shown = problem.refusal(Path::new("c")).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].contains("-here+") && lines[1].len() < 160, "{shown}");
        assert_eq!(lines[1].find("here"), lines[2].find('^'), "{shown}");
    }

    #[test]
    fn typo_finds_the_intended_name() {
        let names = ["opus", "sonnet", "haiku", "gpt-5.3-codex", "gpt-5.3-codex-spark"];
        assert_eq!(closest("oups", names.into_iter()), ["opus"]);
        assert_eq!(closest("codex", names.into_iter()), ["gpt-5.3-codex", "gpt-5.3-codex-spark"]);
        assert!(closest("mistral-large", names.into_iter()).is_empty());
    }
}
