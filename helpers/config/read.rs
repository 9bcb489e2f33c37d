//! The values of a config, read from its tree. A wrong value disables the part of the config that
//! it belongs to and nothing else; a key that dispatch does not know has no effect.

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;

use indexmap::IndexMap;
use serde::de::DeserializeOwned;

use crate::config::check::{Problem, Severity, closest};
use crate::config::spans::{Node, NodeKind};
use crate::config::{AliasEntry, Config, Entries, PlaceEntry};
use crate::domain::{BUDGETS, Backend, Budget};
use crate::text::shell_commands;
use crate::tools::models::provider;

/// The keys of a config.
const KEYS: &str = "default backends models aliases agents patience silent_after stop_silent \
                    max_workers wait_for_limit confirm_default check_limit worktree budget notify places";

/// The options of sbatch by which a task would not be one job of one cluster.
const NOT_ONE_JOB: [&str; 8] =
    ["--array", "--clusters", "--requeue", "--wait", "--wrap", "-M", "-W", "-a"];

/// The letters of sbatch's options without a value, which may stand together before another letter.
const PLAIN_LETTERS: &str = "HOQVhksuv";

/// Returns true for a word after `sbatch` that changes what a task is: one of those options, which may be
/// abbreviated, have a value attached or stand together, or a script in place of the worker's.
fn changes_job(word: &str) -> bool {
    let Some(letters) = word.strip_prefix('-') else { return true };
    let name = word.split('=').next().unwrap_or_default();
    let letters = letters.trim_start_matches(|it| PLAIN_LETTERS.contains(it));
    NOT_ONE_JOB.iter().any(|it| match it.strip_prefix("--") {
        Some(_) => name.len() > 3 && it.starts_with(name) || name.starts_with(it),
        None => letters.starts_with(&it[1..]),
    })
}

/// The config that `root` holds, with its problems.
pub(super) fn read(text: &str, root: &Node) -> Config {
    let mut reader = Reader {
        text,
        root,
        part: String::new(),
        fallbacks: Entries::default(),
        problems: Vec::new(),
    };
    let fields = reader.fields(root, KEYS, "see references/config-example.yaml");
    let (set_up, set_up_of_projects) = reader.set_ups(&fields);
    let mut config = Config {
        set_up,
        set_up_of_projects,
        default: reader.text(&fields, "default"),
        backends: reader.section(&fields, "backends", Reader::backend),
        models: reader.section(&fields, "models", Reader::model),
        aliases: reader.section(&fields, "aliases", Reader::alias),
        agents: reader.section(&fields, "agents", Reader::agent),
        places: reader.section(&fields, "places", Reader::place),
        confirm_default: reader.value(&fields, "confirm_default"),
        patience: reader.value(&fields, "patience"),
        silent_after: reader.value(&fields, "silent_after"),
        stop_silent: reader.value(&fields, "stop_silent"),
        max_workers: reader.value(&fields, "max_workers").map(NonZeroUsize::get),
        wait_for_limit: reader.value(&fields, "wait_for_limit"),
        check_limit: reader.value(&fields, "check_limit").map(NonZeroU64::get),
        budget: reader.budget(&fields),
        notify: reader.text(&fields, "notify"),
        ..Config::default()
    };
    config.fallbacks = reader.fallbacks;
    config.problems = reader.problems;
    config
}

/// Returns true for an unquoted scalar that stands for no value.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// The known keys of a map with their values.
type Fields<'a> = IndexMap<&'a str, &'a Node>;

/// A name in a map, its node, and its value.
type Entry<'a> = (&'a str, &'a Node, &'a Node);

struct Reader<'a> {
    text: &'a str,
    root: &'a Node,
    /// The part of the config that is being read: nothing, a section, or `section.name`.
    part: String,
    /// The fallbacks of models and aliases so far, by name.
    fallbacks: Entries<String>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn warning(&mut self, node: &Node, what: String, remedy: impl Into<String>) {
        let place = (self.text, node.body);
        self.problems.push(Problem::new(Severity::Warning, place, "", what, remedy));
    }

    /// Adds an error that disables a part of the config.
    fn error(&mut self, part: String, node: &Node, what: String, remedy: impl Into<String>) {
        let place = (self.text, node.body);
        self.problems.push(Problem::new(Severity::Error, place, part, what, remedy));
    }

    fn is_disabled(&self, part: &str) -> bool {
        self.problems.iter().any(|it| it.severity == Severity::Error && it.part == part)
    }

    /// The part that a wrong value of the key `name` disables: the key, or the entry around it.
    fn part_of(&self, name: &str) -> String {
        match self.part.as_str() {
            "" => name.into(),
            section if !section.contains('.') => format!("{section}.{name}"),
            entry => entry.into(),
        }
    }

    fn is_null(&self, node: &Node) -> bool {
        is_null(&self.text[node.body..node.end])
    }

    /// The node that an alias (`*name`) stands for, or the node itself.
    fn target(&mut self, node: &'a Node, part: &str) -> Option<&'a Node> {
        let NodeKind::Alias(name) = &node.kind else { return Some(node) };
        let mut above = self.root.all().into_iter().filter(|other| other.start < node.start);
        let target = above.rfind(|other| other.anchor.as_ref() == Some(name));
        if target.is_none() {
            let what = format!("there is no anchor '{name}'");
            self.error(part.into(), node, what, format!("define &{name} above"));
        }
        target
    }

    /// The entries of a map with their names; no value is an empty map.
    fn entries(&mut self, map: &'a Node, remedy: &str) -> Vec<Entry<'a>> {
        let part = self.part.clone();
        let Some(map) = self.target(map, &part) else { return Vec::new() };
        if !matches!(map.kind, NodeKind::Map(_)) && !self.is_null(map) {
            let what = if part.is_empty() { "the config" } else { &part };
            self.error(part.clone(), map, format!("{what} must be a map"), remedy);
        }
        let mut named: Vec<Entry> = Vec::new();
        for (key, value) in map.entries() {
            let Some(name) = key.text() else {
                self.warning(key, "a key that is not a name".into(), "write a name");
                continue;
            };
            if name == "<<" {
                let what = "a merge key ('<<') is not supported".into();
                self.error(part.clone(), key, what, "write the merged keys out");
            } else if named.iter().any(|(other, ..)| *other == name) {
                let what = format!("'{name}' stands here twice");
                self.error(self.part_of(name), key, what, "remove one of them");
            } else {
                named.push((name, key, value));
            }
        }
        named
    }

    /// The fields of a map whose keys are known.
    fn fields(&mut self, map: &'a Node, known: &str, remedy: &str) -> Fields<'a> {
        let mut fields = Fields::new();
        for (name, key, value) in self.entries(map, remedy) {
            if known.split(' ').any(|known| known == name) {
                fields.insert(name, value);
                continue;
            }
            let near = closest(name, known.split(' ')).first().copied();
            let remedy = match near {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known here: {}", known.replace(' ', ", ")),
            };
            let place = if self.part.is_empty() { "" } else { " in " };
            let what = format!("unknown key '{name}'{place}{}", self.part);
            // A misspelled limit, or check, must not leave the worker with more than the person wrote.
            match near {
                Some("access" | "budget" | "check" | "setup" | "projects") => {
                    self.error(self.part.clone(), key, what, remedy)
                }
                _ => self.warning(key, what, remedy),
            }
        }
        fields.retain(|name, value| !self.is_null(value) && !self.is_disabled(name));
        fields
    }

    /// The entries of a section that hold no error.
    fn section<T>(
        &mut self,
        fields: &Fields<'a>,
        section: &str,
        read: impl Fn(&mut Self, Entry<'a>) -> T,
    ) -> Entries<T> {
        let mut entries = Entries::default();
        let Some(map) = fields.get(section) else { return entries };
        self.part = section.into();
        for entry in self.entries(map, "indent the names below it") {
            self.part = format!("{section}.{}", entry.0);
            let value = read(self, entry);
            if !self.is_disabled(&self.part) {
                entries.insert(entry.0.into(), value);
            }
        }
        self.part.clear();
        entries
    }

    fn backend(&mut self, (_, _, map): Entry<'a>) -> Backend {
        let fields =
            self.fields(map, "command route prompt access budget", "write { command: ... }");
        Backend {
            command: self.text(&fields, "command"),
            route: self.value(&fields, "route"),
            prompt: self.value(&fields, "prompt"),
            access: self.value(&fields, "access"),
            budget: self.budget(&fields),
        }
    }

    fn model(&mut self, (id, key, map): Entry<'a>) -> String {
        let fields = self.fields(map, "backend fallback", "write { backend: NAME }");
        self.fallback(id, &fields);
        // The original's own first run writes Claude's models without a backend.
        let implied = !fields.contains_key("backend") && provider(id) == "Claude";
        if implied { "claude".into() } else { self.needed(&fields, "backend", key) }
    }

    fn fallback(&mut self, name: &str, fields: &Fields<'a>) {
        let fallback = self.text(fields, "fallback");
        self.fallbacks.extend(fallback.map(|fallback| (name.into(), fallback)));
    }

    fn alias(&mut self, (name, key, map): Entry<'a>) -> AliasEntry {
        let fields = self.fields(map, "model prompt check fallback", "write { model: NAME }");
        self.fallback(name, &fields);
        let model = self.needed(&fields, "model", key);
        let [prompt, check] = ["prompt", "check"].map(|name| self.text(&fields, name));
        AliasEntry { model, prompt, check }
    }

    /// The commands that set up worktrees: of all, and of single projects.
    fn set_ups(&mut self, fields: &Fields<'a>) -> (Option<String>, Entries<String>) {
        let Some(map) = fields.get("worktree") else { return Default::default() };
        self.part = "worktree".into();
        let own = self.fields(map, "setup projects", "write { setup: COMMAND }");
        let all = self.text(&own, "setup");
        self.part = "worktree.projects".into();
        let map = own.get("projects");
        let named = map.map_or_else(Vec::new, |map| self.entries(map, "write PATH: COMMAND"));
        let named: Fields = named.into_iter().map(|(name, _, value)| (name, value)).collect();
        let commands = named.keys().map(|name| (name.to_string(), self.text(&named, name)));
        let commands = commands.filter_map(|(name, command)| Some((name, command?))).collect();
        self.part.clear();
        (all, commands)
    }

    /// A place. Its command is run without a shell.
    fn place(&mut self, (name, key, map): Entry<'a>) -> PlaceEntry {
        let known = "reach start directory max_workers fetch_commits";
        let fields = self.fields(map, known, "write { reach: COMMAND }");
        let text = self.needed(&fields, "reach", key);
        let words = |text: &str| match shell_commands(text).as_slice() {
            [words] => words.iter().cloned().collect::<Option<Vec<_>>>().unwrap_or_default(),
            _ => Vec::new(),
        };
        let reach = words(&text);
        let start = self.scalar(&fields, "start").map(|(text, node)| (words(text), node));
        if let Some((words, node)) = &start {
            let program = words.first().map(Path::new).and_then(Path::file_name);
            let bad = words.iter().skip(1).find(|it| changes_job(it));
            let what = match bad {
                Some(bad) if bad.starts_with('-') => {
                    format!("'start' cannot have {bad}: a task is one job")
                }
                Some(bad) => format!("'start' cannot have {bad} as a word of its own"),
                None => "'start' must be one plain call of sbatch: only Slurm is supported".into(),
            };
            if bad.is_some() || program != Some("sbatch".as_ref()) {
                let hint =
                    "write it like: sbatch --time=8:00:00, each value with its option, no script";
                self.error(self.part.clone(), node, what, hint);
            }
        }
        let plain = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if !name.chars().all(plain) || name.starts_with(['.', '-']) {
            let what = format!("'{name}' cannot be the name of a place");
            self.error(self.part.clone(), key, what, "use letters, digits, '-', '_' and '.'");
        } else if !text.is_empty() && reach.is_empty() {
            let what = "'reach' must be one plain command".into();
            self.error(self.part.clone(), key, what, "write it like: ssh gpu");
        }
        PlaceEntry {
            reach,
            start: start.map(|(words, _)| words),
            directory: self.text(&fields, "directory"),
            max_workers: self.value(&fields, "max_workers").map(NonZeroUsize::get),
            fetch_commits: self.value(&fields, "fetch_commits").unwrap_or_default(),
        }
    }

    fn agent(&mut self, (_, key, map): Entry<'a>) -> String {
        let fields = self.fields(map, "command", "write { command: ... }");
        self.needed(&fields, "command", key)
    }

    /// The scalar of a field with its place.
    fn scalar(&mut self, fields: &Fields<'a>, name: &str) -> Option<(&'a str, &'a Node)> {
        let part = self.part_of(name);
        let node = self.target(fields.get(name)?, &part)?;
        if node.text().is_none() {
            let what = format!("'{name}' must be a single value");
            self.error(part, node, what, "write it on one line");
        }
        Some((node.text()?, node))
    }

    fn text(&mut self, fields: &Fields<'a>, name: &str) -> Option<String> {
        self.scalar(fields, name).map(|(text, _)| text.into())
    }

    /// The text of a field that the entry of `key` must have.
    fn needed(&mut self, fields: &Fields<'a>, name: &str, key: &Node) -> String {
        if !fields.contains_key(name) && !self.is_disabled(&self.part) {
            let what = format!("{} has no '{name}'", self.part);
            self.error(self.part.clone(), key, what, format!("add '{name}: ...'"));
        }
        self.text(fields, name).unwrap_or_default()
    }

    fn budget(&mut self, fields: &Fields<'a>) -> Option<Budget> {
        let (text, node) = self.scalar(fields, "budget")?;
        let wrong = |error: String| self.error(self.part_of("budget"), node, error, BUDGETS);
        text.parse().map_err(wrong).ok()
    }

    /// The value of a field that is a number, a truth value or one of some words.
    fn value<T: DeserializeOwned>(&mut self, fields: &Fields<'a>, name: &str) -> Option<T> {
        let (text, node) = self.scalar(fields, name)?;
        let wrong = |error: serde_yaml::Error| {
            let error = error.to_string();
            let expected = error.split_once(", expected ").map_or("another value", |(_, it)| it);
            let expected = expected.split(" at line ").next().unwrap_or_default();
            let expected = match expected {
                "u64" => "a whole number",
                "a nonzero usize" | "a nonzero u64" => "a whole number above 0",
                other => other,
            };
            let what = format!("'{name}' cannot be '{text}'");
            self.error(self.part_of(name), node, what, format!("expected {expected}"));
        };
        serde_yaml::from_str(text).map_err(wrong).ok()
    }
}
