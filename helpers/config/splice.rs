//! Where an edit changes the text of a config, and how new entries are written.

use std::ops::Range;

use serde_yaml::{Mapping, Value};

use crate::config::edit::Edit;
use crate::config::read::is_null;
use crate::config::spans::{self, Node, NodeKind};
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
            return Some(self.set(node?, asked.as_str()?));
        };
        let depth = edit.path.len() - missing.len();
        self.insert(node, depth, key, &nested(below, asked.clone()))
    }

    /// Replaces a value by another scalar, in the quotes of the old one.
    fn set(&self, value: &Node, new: &str) -> Vec<Splice> {
        let mut splices = self.rescued(value.start..value.end);
        let start = if splices.is_empty() { value.body } else { value.start };
        let mut end = value.end;
        let old = &self.text[value.body..value.end];
        if old.starts_with(['|', '>']) {
            // A comment in the line of the `>` stays.
            let line_end = self.line_end(value.body);
            splices.push((line_end..value.end.max(line_end), String::new()));
            end = value.body + old.find(char::is_whitespace).unwrap_or(old.len());
        }
        let new = scalar(new, quote_of(old));
        splices.push((start..end, format!("{}{new}", self.space(start))));
        splices
    }

    /// The blank that a value at this place needs before it.
    fn space(&self, at: usize) -> &'static str {
        if self.text[..at].ends_with(':') { " " } else { "" }
    }

    /// Moves the anchors of a piece that is about to go to the first alias that needs each.
    fn rescued(&self, piece: Range<usize>) -> Vec<Splice> {
        let nodes: Vec<&Node> = self.root.iter().flat_map(Node::all).collect();
        let gone = nodes.iter().filter(|node| piece.start <= node.start && node.end <= piece.end);
        let moved = |node: &&Node| {
            let name = node.anchor.as_ref()?;
            let mut behind = nodes.iter().filter(|other| other.start >= piece.end);
            let user = behind
                .find(|other| matches!(&other.kind, NodeKind::Alias(used) if used == name))?;
            Some((user.start..user.end, self.text[node.start..node.end].to_owned()))
        };
        gone.filter_map(moved).collect()
    }

    /// Adds a key to the config (`depth` 0), to a section (1) or to an entry (2).
    fn insert(
        &self,
        map: Option<&Node>,
        depth: usize,
        key: &str,
        value: &Value,
    ) -> Option<Vec<Splice>> {
        let quote = self.quote();
        let flow = pair(key, value, None, quote);
        let block = |indent: &str| {
            let line = format!("{}{indent}", self.newline);
            format!("{indent}{}", pair(key, value, Some(&line), quote))
        };
        let Some(map) = map else {
            let end = self.text.find("\n...").map_or(self.text.len(), |at| at + 1);
            return Some(self.lines_at(end, &block("")));
        };
        let old = &self.text[map.body..map.end];
        let is_flow = old.starts_with('{');
        let outer = self.root.as_ref().and_then(|root| root.entries().first());
        let outer = outer.map_or("", |(key, _)| self.indent(key.start));
        if let [(first, _), ..] = map.entries() {
            if key == "default" && depth == 0 {
                return Some(self.insert_above(first, is_flow, &flow));
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
            return Some(self.lines_at(at, &format!("{gap}{}", block(indent))));
        }
        let is_alias = depth == 2 && old.starts_with('*');
        if !is_flow && !is_alias && (depth == 0 || !is_null(old)) {
            return None;
        }
        // An empty section gets lines of its own, unless it is in a flow map or holds a comment.
        if depth == 1 && !self.root_is_flow() && !old.contains('#') {
            let from = self.text[..map.body].trim_end_matches([' ', '\t']).len();
            let at = self.past_comments(self.next_line(map.end), outer.len() + 1);
            let mut splices = self.lines_at(at, &block(&format!("{outer}  ")));
            splices.extend((!old.is_empty()).then(|| (from..map.end, String::new())));
            return Some(splices);
        }
        Some(vec![match is_flow {
            true if old.ends_with(" }") => (map.body + 1..map.body + 1, format!(" {flow}")),
            true => (map.body + 1..map.body + 1, format!(" {flow} ")),
            false => (map.body..map.end, format!("{}{{ {flow} }}", self.space(map.body))),
        }])
    }

    /// Inserts a pair before the first one of the config and the comment that stands directly over it.
    fn insert_above(&self, first: &Node, is_flow: bool, pair: &str) -> Vec<Splice> {
        if is_flow {
            return vec![(first.start..first.start, format!("{pair}, "))];
        }
        let mut at = self.line_start(first.start);
        while at > 0 && self.text[self.line_start(at - 1)..at].trim_start().starts_with('#') {
            at = self.line_start(at - 1);
        }
        let line = format!("{}{pair}{}{}", self.indent(first.start), self.newline, self.gap());
        vec![(at..at, line)]
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
        let mut splices = self.rescued(start..end);
        let mut cut = |range| splices.push((range, String::new()));
        if !self.text[map.body..].starts_with('{') {
            cut(self.line_start(start)..self.next_line(end));
            return Some(splices);
        }
        // Remove the comma behind the entry too, or else the one before it.
        let blank = |range: Range<usize>| self.text[range].trim().is_empty();
        let before = at.checked_sub(1).and_then(|at| self.comma(entries[at].1.end));
        let mut piece = start..end;
        match (self.comma(end), before) {
            (Some(comma), _) if blank(end..comma) => piece.end = comma + 1,
            (None, Some(comma)) if blank(comma + 1..start) => piece.start = comma,
            (Some(comma), _) | (None, Some(comma)) => cut(comma..comma + 1),
            (None, None) => {}
        }
        // Remove whole lines if the entry has them to itself, else the blanks behind it.
        let line = self.line_start(piece.start);
        let rest = &self.text[piece.end..self.line_end(piece.end)];
        let ends_line = rest.trim().is_empty() || rest.trim_start().starts_with('#');
        if ends_line && blank(line..piece.start) {
            piece = line..self.next_line(piece.end);
        } else if !ends_line && piece.start == start {
            piece.end += rest.len() - rest.trim_start().len();
        }
        cut(piece);
        Some(splices)
    }

    /// The next byte that is neither blank nor in a comment, if it is a comma.
    fn comma(&self, mut at: usize) -> Option<usize> {
        loop {
            at += self.text[at..].find(|c: char| !c.is_whitespace())?;
            if !self.text[at..].starts_with('#') {
                return self.text[at..].starts_with(',').then_some(at);
            }
            at = self.line_end(at);
        }
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
    fn lines_at(&self, at: usize, lines: &str) -> Vec<Splice> {
        let newline = self.newline;
        if at == 0 || self.text[..at].ends_with('\n') {
            return vec![(at..at, format!("{lines}{newline}"))];
        }
        // A block scalar there would gain a line break at its end, so `|` becomes `|-`.
        let nodes = self.root.iter().flat_map(Node::all);
        let (last, end) = nodes.last().map_or((0, 0), |last| (last.body, last.end));
        let header = self.text[last..].split_whitespace().next().unwrap_or_default();
        let strip = header.starts_with(['|', '>'])
            && !header.contains(['+', '-'])
            && !self.text[end..].contains('\n');
        let strip = strip.then(|| (last + 1..last + 1, "-".into()));
        strip.into_iter().chain([(at..at, format!("{newline}{lines}"))]).collect()
    }

    /// The text between sections: a blank line where the config has any.
    fn gap(&self) -> &'static str {
        let blank = self.text.contains("\n\n") || self.text.contains("\n\r\n");
        if blank { self.newline } else { "" }
    }

    fn root_is_flow(&self) -> bool {
        self.root.as_ref().is_some_and(|root| self.text[root.body..].starts_with('{'))
    }

    /// The quotes of the first key of a flow map: the config may be JSON.
    fn quote(&self) -> Quote {
        let first = self.root.as_ref().and_then(|root| root.entries().first());
        let first = first.filter(|_| self.root_is_flow());
        first.map_or(PLAIN, |(key, _)| quote_of(&self.text[key.start..]))
    }
}

/// How a scalar is quoted: `'`, `"` or not at all.
type Quote = char;
pub(super) const PLAIN: Quote = ' ';

fn quote_of(scalar: &str) -> Quote {
    scalar.chars().next().filter(|c| matches!(c, '\'' | '"')).unwrap_or(PLAIN)
}

/// A key with its value. A map is written as lines that begin with `line`, a line break and an
/// indentation; or in flow style if it is empty or a model, or without `line`.
pub(super) fn pair(key: &str, value: &Value, line: Option<&str>, quote: Quote) -> String {
    let key = scalar(key, quote);
    let Some(map) = value.as_mapping() else {
        return format!("{key}: {}", scalar(value.as_str().unwrap_or_default(), quote));
    };
    let is_flow = map.is_empty() || map.get("backend").is_some_and(Value::is_string);
    let line = line.filter(|_| !is_flow).map(|line| format!("{line}  "));
    let pairs = map.iter().filter_map(|(key, value)| Some((key.as_str()?, value)));
    let pairs = pairs.map(|(key, value)| pair(key, value, line.as_deref(), quote));
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
pub(super) fn scalar(text: &str, quote: Quote) -> String {
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

impl Document<'_> {
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
}
