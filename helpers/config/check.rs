//! All that is wrong in a config, at once, each with its place and the remedy.

use std::path::Path;

use Kinds::{Section, Text, Words};

use crate::config::Config;
use crate::config::diagnostic::{closest, marked};
use crate::config::spans::{Node, NodeKind, duplicates, tree};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::tools::{is_known, missing_program, obsolete_flags, program_of};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: the line and column, counted from 1, and the line's text.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    text: String,
    what: String,
    remedy: String,
}

impl Problem {
    /// It as the error of a command: what, where with a caret, and the remedy.
    pub fn refusal(&self, path: &Path) -> Refusal {
        Refusal::new(Exit::Data, format!("the config is wrong: {}", self.what)).place(marked(
            path,
            (self.line, self.column),
            &self.text,
            &self.remedy,
        ))
    }
}

/// What a key's value must be.
enum Kinds {
    Text,
    Words(&'static [&'static str]),
    Section(&'static [(&'static str, Kinds)]),
}

/// The keys of a config.
static KEYS: [(&str, Kinds); 10] = [
    ("default", Text),
    (
        "backends",
        Section(&[
            ("command", Text),
            ("route", Words(&["agent", "cli"])),
            ("prompt", Words(&["stdin", "arg", "file"])),
            ("access", Words(&["read", "write", "full"])),
        ]),
    ),
    ("models", Section(&[("backend", Text)])),
    ("aliases", Section(&[("model", Text), ("prompt", Text)])),
    ("agents", Section(&[("command", Text)])),
    ("patience", Text),
    ("silent_after", Text),
    ("stop_silent", Words(&["true", "false"])),
    ("max_workers", Text),
    ("confirm_default", Words(&["true", "false"])),
];

/// All that is wrong in the text of a config, from top to bottom.
///
/// # Errors
/// The parser's own word, if the text is no YAML or the parser knows better.
pub fn problems(text: &str, path: &Path) -> Result<Vec<Problem>, Refusal> {
    let mut check = Check { text, problems: Vec::new() };
    check.bytes();
    let body = text.strip_prefix('\u{feff}').unwrap_or(text);
    if let Ok(Some(root)) = tree(body) {
        check.text = body;
        check.twice(&root);
        check.root(&root);
        check.names(&root);
    }
    if check.problems.is_empty() {
        Config::parse(text, path)?;
    }
    check.problems.sort_by_key(|problem| (problem.line, problem.column));
    Ok(check.problems)
}

struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn add(&mut self, at: usize, what: String, remedy: String) {
        let start = self.text[..at].rfind('\n').map_or(0, |end| end + 1);
        self.problems.push(Problem {
            line: self.text[..at].matches('\n').count() + 1,
            column: self.text[start..at].chars().count() + 1,
            text: self.text[start..].lines().next().unwrap_or_default().into(),
            what,
            remedy,
        });
    }

    /// What is wrong whatever it means.
    fn bytes(&mut self) {
        if self.text.starts_with('\u{feff}') {
            self.add(0, "a byte order mark".into(), "save the file as UTF-8 without it".into());
        }
        let mut at = 0;
        for line in self.text.split_inclusive('\n') {
            let indent = &line[..line.len() - line.trim_start().len()];
            if let Some(tab) = indent.find('\t').filter(|_| !line.trim().is_empty()) {
                let remedy = "YAML is indented by spaces: replace it by two".into();
                self.add(at + tab, "a tab in the indentation".into(), remedy);
            }
            at += line.len();
        }
    }

    fn twice(&mut self, root: &Node) {
        for key in duplicates(root) {
            let what = format!("'{}' stands here twice", key.text().unwrap_or_default());
            self.add(key.body, what, "take one of them out; only the last would count".into());
        }
    }

    fn root(&mut self, root: &Node) {
        if !matches!(root.kind, NodeKind::Map(_)) {
            let remedy = "see references/config-example.yaml";
            return self.add(root.body, "a config is a map of keys".into(), remedy.into());
        }
        self.keys(root, &KEYS, "");
    }

    /// The keys of a map whose keys are known.
    fn keys(&mut self, map: &Node, known: &'static [(&'static str, Kinds)], of: &str) {
        for (key, value) in map.entries() {
            let name = key.text().unwrap_or_default();
            let Some((_, kinds)) = known.iter().find(|(known, _)| *known == name) else {
                let names = || known.iter().map(|(name, _)| *name);
                let remedy = match closest(name, names()).first() {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("known here: {}", names().collect::<Vec<_>>().join(", ")),
                };
                self.add(key.body, format!("unknown key '{name}'{of}"), remedy);
                continue;
            };
            self.value(name, value, kinds);
        }
    }

    fn value(&mut self, name: &str, value: &Node, kinds: &'static Kinds) {
        match (kinds, &value.kind) {
            // Where an anchor leads is checked where it stands.
            (_, NodeKind::Alias) => {}
            (Text, NodeKind::Scalar(_)) => {}
            (Words(words), NodeKind::Scalar(text)) => {
                if !words.contains(&text.as_str()) {
                    let remedy = format!("one of {}", words.join(", "));
                    self.add(value.body, format!("'{name}' cannot be '{text}'"), remedy);
                }
            }
            (Section(known), NodeKind::Map(entries)) => {
                for (key, entry) in entries {
                    let of = format!(" in {name}.{}", key.text().unwrap_or_default());
                    match &entry.kind {
                        NodeKind::Map(_) => self.keys(entry, known, &of),
                        NodeKind::Alias => {}
                        _ => {
                            let example = known[0].0;
                            let remedy = format!("write {{ {example}: ... }}");
                            self.add(entry.body, format!("a wrong value{of}"), remedy);
                        }
                    }
                }
            }
            (Section(_), NodeKind::Scalar(text)) if matches!(text.as_str(), "" | "~" | "null") => {}
            (Section(_), _) => {
                self.add(
                    value.body,
                    format!("'{name}' is a map of names"),
                    "indent them below it".into(),
                );
            }
            (Text | Words(_), _) => {
                self.add(
                    value.body,
                    format!("'{name}' is one word or text"),
                    "write it on one line".into(),
                );
            }
        }
    }

    /// What the names mean: each must lead somewhere.
    fn names(&mut self, root: &Node) {
        let section =
            |name: &str| root.get(name).map(|(_, value)| value.entries()).unwrap_or_default();
        let has = |sections: &[&str], name: &str| {
            sections.iter().any(|s| section(s).iter().any(|(key, _)| key.is(name)))
        };
        let near = |sections: &[&str], name: &str, or: String| {
            let names = sections.iter().flat_map(|s| section(s)).filter_map(|(key, _)| key.text());
            let near = closest(name, names).first().map(|near| format!("did you mean '{near}'?"));
            near.unwrap_or(or)
        };
        if let Some((name, at)) = root.get("default").and_then(|(_, v)| Some((v.text()?, v.body)))
            && !has(&["models", "aliases", "agents"], name)
        {
            let remedy =
                near(&["aliases", "models", "agents"], name, "name one of the models".into());
            self.add(at, format!("the default '{name}' is not there"), remedy);
        }
        for (key, alias) in section("aliases") {
            let Some((_, value)) = alias.get("model") else { continue };
            let Some(model) = value.text().filter(|model| !has(&["models", "agents"], model))
            else {
                continue;
            };
            let remedy =
                near(&["models", "agents"], model, format!("dispatch-config add-model {model}"));
            let alias = key.text().unwrap_or_default();
            self.add(
                value.body,
                format!("alias '{alias}' means '{model}', which is not there"),
                remedy,
            );
        }
        for (key, model) in section("models") {
            let id = key.text().unwrap_or_default();
            let Some((_, value)) = model.get("backend") else {
                if matches!(model.kind, NodeKind::Map(_)) {
                    self.add(
                        key.body,
                        format!("model '{id}' has no backend"),
                        "add 'backend: NAME'".into(),
                    );
                }
                continue;
            };
            let Some(backend) = value.text() else { continue };
            if !has(&["backends"], backend) && !is_known(backend) {
                let or = format!("dispatch-config add-backend {backend} --command '...'");
                let remedy = near(&["backends"], backend, or);
                self.add(
                    value.body,
                    format!("model '{id}' is on '{backend}', which is not there"),
                    remedy,
                );
            }
        }
        for (key, backend) in section("backends").iter().chain(section("agents")) {
            self.command(key, backend);
        }
    }

    /// Whether a backend can be started.
    fn command(&mut self, key: &Node, backend: &Node) {
        let name = key.text().unwrap_or_default();
        let command = backend.get("command").and_then(|(_, value)| Some((value.text()?, value)));
        let settings = crate::domain::Backend {
            command: command.map(|(command, _)| command.to_owned()),
            ..crate::domain::Backend::default()
        };
        let at = command.map_or(key.body, |(_, value)| value.body);
        if command.is_none() && !is_known(name) {
            let remedy = "add 'command:' with the shell command that starts it";
            return self.add(at, format!("backend '{name}' has no command"), remedy.into());
        }
        if let Some(program) = missing_program(name, &settings) {
            let remedy = format!("install {program}, or remove the backend");
            self.add(at, format!("'{program}' of '{name}' is not installed"), remedy);
        }
        let Some((command, value)) = command else { return };
        let program = program_of(command).unwrap_or_default();
        let cli =
            Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for (flag, replacement) in obsolete_flags(&settings) {
            let at = self.text[value.body..value.end].find(flag).map_or(at, |at| value.body + at);
            let remedy = format!("write {replacement} in its place");
            self.add(at, format!("{cli} does not take {flag} any more"), remedy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: &str = "\u{feff}defualt: opus
default: opsu
backends:
  claude: { comand: x }
  codex: { command: codex exec --full-auto, route: far }
  mine: {}
models:
  opus: { backend: claude }
  opus: { backend: claude }
  gpt: { backend: codexx }
  gone: { backend: [1] }
  bare: {}
  flat: codex
aliases:
  quick: { model: mistral-large }
patience: [1]
";

    #[test]
    fn everything_is_said_at_once_from_top_to_bottom() {
        let said: Vec<String> = problems(WRONG, Path::new("config.yaml"))
            .expect("YAML")
            .iter()
            .filter(|problem| !problem.what.contains("is not installed"))
            .map(|problem| {
                format!("{}:{} {} | {}", problem.line, problem.column, problem.what, problem.remedy)
            })
            .collect();
        assert_eq!(
            said,
            [
                "1:1 a byte order mark | save the file as UTF-8 without it",
                "1:1 unknown key 'defualt' | did you mean 'default'?",
                "2:10 the default 'opsu' is not there | did you mean 'opus'?",
                "4:13 unknown key 'comand' in backends.claude | did you mean 'command'?",
                "5:32 codex does not take --full-auto any more | write -s workspace-write in its place",
                "5:52 'route' cannot be 'far' | one of agent, cli",
                "6:3 backend 'mine' has no command | add 'command:' with the shell command that starts it",
                "9:3 'opus' stands here twice | take one of them out; only the last would count",
                "10:19 model 'gpt' is on 'codexx', which is not there | did you mean 'codex'?",
                "11:20 'backend' is one word or text | write it on one line",
                "12:3 model 'bare' has no backend | add 'backend: NAME'",
                "13:9 a wrong value in models.flat | write { backend: ... }",
                "15:19 alias 'quick' means 'mistral-large', which is not there | dispatch-config add-model mistral-large",
                "16:11 'patience' is one word or text | write it on one line",
            ]
        );
    }

    #[test]
    fn what_reads_well_has_no_problems() {
        for good in
            ["", "# nothing\n", "models:\n  opus: { backend: claude }\ndefault: opus\nbackends:\n"]
        {
            assert_eq!(problems(good, Path::new("config.yaml")).expect("YAML"), []);
        }
    }
}
