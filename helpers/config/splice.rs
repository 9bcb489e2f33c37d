//! Where an edit changes the text of a config, and how new entries are written.

use std::ops::Range;

use serde_yaml::{Mapping, Value};

use crate::config::edit::Edit;
use crate::config::read::is_null;
use crate::config::spans::{self, Node};
use crate::text::line_and_column;

/// A piece of the old text and what replaces it.
pub(super) type Splice = (Range<usize>, String);

impl Document<'_> {
    /// The pieces to replace; `None` where the config has no place for the change.
    pub(super) fn splices(&self, edit: &Edit) -> Option<Vec<Splice>> {
        let Some(asked) = &edit.asked else { return self.remove(&edit.path[0], &edit.path[1]) };
        let (mut node, mut missing) = (self.root.as_ref(), edit.path.as_slice());
        while let Some((_, value)) = node.and_then(|node| node.get(missing.first()?)) {
            (node, missing) = (Some(value), &missing[1..]);
        }
        let Some((key, below)) = missing.split_first() else {
            return Some(vec![self.set(node?, asked.as_str()?)]);
        };
        let depth = edit.path.len() - missing.len();
        self.insert(node, depth, key, &nested(below, asked.clone()))
    }

    /// Replaces a value by another scalar, in the quotes of the old one.
    fn set(&self, value: &Node, new: &str) -> Splice {
        let new = scalar(new, quote_of(&self.text[value.body..value.end]));
        (value.body..value.end, format!("{}{new}", self.space(value.body)))
    }

    /// The blank that a value at this place needs before it.
    fn space(&self, at: usize) -> &'static str {
        if self.text[..at].ends_with(':') { " " } else { "" }
    }

    /// Adds a key to the config (`depth` 0), to a section (1) or to an entry (2).
    fn insert(
        &self,
        map: Option<&Node>,
        depth: usize,
        key: &str,
        value: &Value,
    ) -> Option<Vec<Splice>> {
        let flow = pair(key, value, None);
        let block = |indent: &str| {
            let line = format!("{}{indent}", self.newline);
            format!("{indent}{}", pair(key, value, Some(&line)))
        };
        let Some(map) = map else {
            return Some(vec![self.lines_at(self.text.len(), &block(""))]);
        };
        let old = &self.text[map.body..map.end];
        let is_flow = old.starts_with('{');
        let outer = self.root.as_ref().and_then(|root| root.entries().first());
        let outer = outer.map_or("", |(key, _)| self.indent(key.start));
        if let [(first, _), ..] = map.entries() {
            if is_flow && depth == 0 {
                return None;
            }
            if key == "default" && depth == 0 {
                return Some(vec![self.insert_above(first, &flow)]);
            }
            let kin = self.neighbour(key, value);
            let (near, last) = &map.entries()[kin.unwrap_or(map.entries().len() - 1)];
            let end = last.end.max(near.end);
            if is_flow {
                return Some(vec![(end..end, format!(", {flow}"))]);
            }
            let indent = self.indent(near.start);
            let comments = indent.len() + usize::from(kin.is_some());
            let at = self.past_comments(self.next_line(end), comments);
            // A blank line would become part of a `|+` scalar.
            let is_section = depth == 0 && !self.text[..end].ends_with('\n');
            let gap = if is_section { self.gap() } else { "" };
            return Some(vec![self.lines_at(at, &format!("{gap}{}", block(indent)))]);
        }
        if depth == 0 || !is_flow && !is_null(old) {
            return None;
        }
        // An empty section gets lines of its own.
        if depth == 1 {
            let from = self.text[..map.body].trim_end_matches([' ', '\t']).len();
            let at = self.past_comments(self.next_line(map.end), outer.len() + 1);
            let lines = self.lines_at(at, &block(&format!("{outer}  ")));
            let empty = (!old.is_empty()).then(|| (from..map.end, String::new()));
            return Some([lines].into_iter().chain(empty).collect());
        }
        Some(vec![match is_flow {
            true => (map.body + 1..map.body + 1, format!(" {flow} ")),
            false => (map.body..map.end, format!("{}{{ {flow} }}", self.space(map.body))),
        }])
    }

    /// Inserts a pair before the first one of the config and the comment that stands directly over it.
    fn insert_above(&self, first: &Node, pair: &str) -> Splice {
        let mut at = self.line_start(first.start);
        while at > 0 && self.text[self.line_start(at - 1)..at].trim_start().starts_with('#') {
            at = self.line_start(at - 1);
        }
        let line = format!("{}{pair}{}{}", self.indent(first.start), self.newline, self.gap());
        (at..at, line)
    }

    /// The entry that a new model is put behind: the last of its backend, preferably of its family.
    fn neighbour(&self, id: &str, model: &Value) -> Option<usize> {
        let backend = model.get("backend")?;
        let family = |id: &str| id.split(|c: char| !c.is_alphabetic()).next().map(str::to_owned);
        let models = self.value.get("models")?.as_mapping()?.iter().enumerate();
        let kin = models.filter(|(_, (_, model))| model.get("backend") == Some(backend));
        let is_near = |key: &Value| key.as_str().and_then(family) == family(id);
        kin.max_by_key(|(at, (key, _))| (is_near(key), *at)).map(|(at, _)| at)
    }

    fn remove(&self, section: &str, name: &str) -> Option<Vec<Splice>> {
        let (_, map) = self.root.as_ref()?.get(section)?;
        let entries = map.entries();
        let at = entries.iter().position(|(key, _)| key.text() == Some(name))?;
        let (key, value) = &entries[at];
        let (start, end) = (key.start, value.end.max(key.end));
        let is_flow = self.text[map.body..].starts_with('{');
        let piece = if !is_flow {
            self.line_start(start)..self.next_line(end)
        } else if let Some((next, _)) = entries.get(at + 1) {
            start..next.start
        } else {
            at.checked_sub(1).map_or(map.body + 1, |before| entries[before].1.end)..end
        };
        // A comment in a flow map of several lines would move to a neighbour.
        if is_flow && self.text[piece.clone()].contains('\n') {
            return None;
        }
        Some(vec![(piece, String::new())])
    }

    /// The end of the comment lines that follow and are indented as deep, blank lines between them
    /// included.
    fn past_comments(&self, from: usize, depth: usize) -> usize {
        let (mut at, mut end) = (from, from);
        while at < self.text.len() {
            let next = self.next_line(at);
            let line = &self.text[at..next];
            if line.trim_start().starts_with('#') && self.indent(at).len() >= depth {
                end = next;
            } else if !line.trim().is_empty() {
                break;
            }
            at = next;
        }
        end
    }

    /// Inserts lines at the start of a line, or at the end of a text without a last line break.
    fn lines_at(&self, at: usize, lines: &str) -> Splice {
        let newline = self.newline;
        match at == 0 || self.text[..at].ends_with('\n') {
            true => (at..at, format!("{lines}{newline}")),
            false => (at..at, format!("{newline}{lines}")),
        }
    }

    /// The key at a path and its value.
    pub(super) fn get(&self, path: &[String]) -> Option<&(Node, Node)> {
        let (first, below) = path.split_first()?;
        let first = self.root.as_ref()?.get(first)?;
        below.iter().try_fold(first, |(_, map), name| map.get(name))
    }

    pub(super) fn line(&self, at: usize) -> usize {
        line_and_column(self.text, at).0
    }

    pub(super) fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// The end of a line, before its line break.
    pub(super) fn line_end(&self, at: usize) -> usize {
        let line = self.text[at..].split('\n').next().unwrap_or_default();
        at + line.strip_suffix('\r').unwrap_or(line).len()
    }

    pub(super) fn next_line(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    /// The blanks that a line starts with.
    fn indent(&self, at: usize) -> &str {
        let line = &self.text[self.line_start(at)..];
        &line[..line.len() - line.trim_start_matches(' ').len()]
    }

    /// The text between sections: a blank line where the config has any.
    fn gap(&self) -> &'static str {
        let blank = self.text.contains("\n\n") || self.text.contains("\n\r\n");
        if blank { self.newline } else { "" }
    }
}

/// How a scalar is quoted: `'`, `"` or not at all.
type Quote = char;
const PLAIN: Quote = ' ';

fn quote_of(scalar: &str) -> Quote {
    scalar.chars().next().filter(|c| matches!(c, '\'' | '"')).unwrap_or(PLAIN)
}

/// A key with its value. A map is written as lines that begin with `line`, a line break and an
/// indentation; or in flow style if it is empty or a model, or without `line`.
pub(super) fn pair(key: &str, value: &Value, line: Option<&str>) -> String {
    let key = scalar(key, PLAIN);
    let Some(map) = value.as_mapping() else {
        return format!("{key}: {}", scalar(value.as_str().unwrap_or_default(), PLAIN));
    };
    let is_flow = map.is_empty() || map.get("backend").is_some_and(Value::is_string);
    let line = line.filter(|_| !is_flow).map(|line| format!("{line}  "));
    let pairs = map.iter().filter_map(|(key, value)| Some((key.as_str()?, value)));
    let pairs = pairs.map(|(key, value)| pair(key, value, line.as_deref()));
    match &line {
        Some(line) => {
            format!("{key}:{}", pairs.map(|pair| line.clone() + &pair).collect::<String>())
        }
        None if map.is_empty() => format!("{key}: {{}}"),
        None => format!("{key}: {{ {} }}", pairs.collect::<Vec<_>>().join(", ")),
    }
}

/// A value below the keys of a path.
pub(super) fn nested(path: &[String], value: Value) -> Value {
    let below = |value, key: &String| Mapping::from_iter([(key.as_str().into(), value)]).into();
    path.iter().rev().fold(value, below)
}

/// A text as a YAML scalar on one line, quoted as asked or where it would not be read as text.
fn scalar(text: &str, quote: Quote) -> String {
    match quote {
        PLAIN if is_plain(text) => text.into(),
        '\'' if !text.contains(is_special) => format!("'{}'", text.replace('\'', "''")),
        _ => {
            let json = serde_json::Value::from(text).to_string();
            let escaped = |c| if is_special(c) { format!("\\u{:04x}", c as u32) } else { c.into() };
            json.chars().map(escaped).collect()
        }
    }
}

/// Returns true where YAML requires an escape: control and non-characters, rarer line breaks, the
/// BOM.
fn is_special(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Returns true if every YAML reader takes the unquoted text for a string; in doubt false.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan"];
    text.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/' | '$'))
        && !text.contains(is_special)
        && text.trim() == text
        && !text.contains(" #")
        && !text.contains([':', ',', '[', ']', '{', '}'])
        && !WORDS.contains(&text.to_lowercase().as_str())
}

/// The value as [`Config`](super::Config) reads it: without empty sections, with numbers as names.
pub(super) fn normal(value: Value) -> Value {
    let Value::Mapping(root) = value else { return value };
    let name = |(key, value): (Value, Value)| match key {
        Value::Number(number) => (number.to_string().into(), value),
        key => (key, value),
    };
    let sections = root.into_iter().filter_map(|(key, section)| match section {
        Value::Null => None,
        Value::Mapping(names) if names.is_empty() => None,
        Value::Mapping(names) => Some((key, Value::Mapping(names.into_iter().map(name).collect()))),
        section => Some((key, section)),
    });
    Value::Mapping(sections.collect())
}

/// A config's text, its values, and their places.
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    pub(super) newline: &'static str,
    pub(super) value: Value,
    root: Option<Node>,
}

/// Reads a config with both parsers.
pub(super) fn read(text: &str) -> Result<Document<'_>, String> {
    let value: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let root = spans::tree(text).ok_or("it is not YAML")?;
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    let newline = if first.ends_with("\r\n") { "\r\n" } else { "\n" };
    let document = Document { text, newline, value: normal(value), root };
    match document.root.as_ref().and_then(spans::duplicate) {
        Some((key, name)) => {
            let line = document.line(key.start);
            Err(format!("'{name}' stands there twice, again in line {line}"))
        }
        None => Ok(document),
    }
}
