//! Where an edit changes the text of a config, and how new entries are written.

use std::ops::Range;

use serde_yaml::Value;

use crate::config::edit::{Edit, Field};
use crate::config::read::is_null;
use crate::config::spans::{self, Node, NodeKind};

/// A piece of the old text and what replaces it.
pub(super) type Splice = (Range<usize>, String);

impl Document<'_> {
    /// The pieces to replace; `None` where the config has no place for the change.
    pub(super) fn splices(&self, edit: &Edit) -> Option<Vec<Splice>> {
        match edit {
            Edit::SetDefault(name) => match self.find("default") {
                Some((_, value)) => Some(self.set(value, name)),
                None => self.add_default(name),
            },
            Edit::Add { section, name, fields } => self.add(section, name, fields),
            Edit::Set { section, name, field } => self.set_key(section, name, field),
            Edit::Remove { section, name } => self.remove(section, name),
        }
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
        let space = if self.text[..start].ends_with(':') { " " } else { "" };
        splices.push((start..end, format!("{space}{}", scalar(new, quote_of(old)))));
        splices
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

    /// Gives an entry's key another value.
    fn set_key(&self, section: &str, name: &str, field: &Field) -> Option<Vec<Splice>> {
        let (key, new) = field;
        let (_, value) = self.entry(section, name)?;
        if let Some((_, old)) = value.get(key) {
            return Some(self.set(old, new));
        }
        if let Some(last) = value.entries().len().checked_sub(1) {
            let pair = format!("{key}: {}", scalar(new, PLAIN));
            return Some(self.insert(value, last, &pair, true));
        }
        // An entry that is empty, `{}` or an alias gets a map of its own.
        let old = &self.text[value.body..value.end];
        if !is_null(old) && !old.starts_with(['{', '*']) {
            return None;
        }
        let space = if self.text[..value.body].ends_with(':') { " " } else { "" };
        let map = flow_map(std::slice::from_ref(field), self.quote());
        Some(vec![(value.body..value.end, format!("{space}{map}"))])
    }

    fn add_default(&self, name: &str) -> Option<Vec<Splice>> {
        let written =
            format!("{}: {}", scalar("default", self.quote()), scalar(name, self.quote()));
        let Some((first, _)) = self.root.as_ref().and_then(|root| root.entries().first()) else {
            return self.add_section(&written);
        };
        if self.root_is_flow() {
            return Some(vec![(first.start..first.start, format!("{written}, "))]);
        }
        // Above the first key and the comment that stands directly over it.
        let mut at = self.line_start(first.start);
        while at > 0 && self.text[self.line_start(at - 1)..at].trim_start().starts_with('#') {
            at = self.line_start(at - 1);
        }
        let line = format!("{}{written}{}{}", self.indent(first.start), self.newline, self.gap());
        Some(vec![(at..at, line)])
    }

    /// Adds an entry to a section.
    fn add(&self, section: &str, name: &str, fields: &[Field]) -> Option<Vec<Splice>> {
        let quote = self.quote();
        let flow = format!("{}: {}", scalar(name, quote), flow_map(fields, quote));
        let outer = self.root.as_ref().and_then(|root| root.entries().first());
        let outer = outer.map_or("", |(key, _)| self.indent(key.start));
        let line = format!("{}{outer}  ", self.newline);
        let Some((_, map)) = self.find(section) else {
            let key = scalar(section, quote);
            return self.add_section(&match self.root_is_flow() {
                true => format!("{key}: {{ {flow} }}"),
                false => format!("{key}:{line}{}", entry(name, fields, &line, quote)),
            });
        };
        let old = &self.text[map.body..map.end];
        if let Some(last) = map.entries().len().checked_sub(1) {
            let kin = self.neighbour(name, fields);
            let near = kin.unwrap_or(last);
            if old.starts_with('{') {
                return Some(self.insert(map, near, &flow, false));
            }
            let line = format!("{}{}", self.newline, self.indent(map.entries()[near].0.start));
            return Some(self.insert(map, near, &entry(name, fields, &line, quote), kin.is_none()));
        }
        if !is_null(old) && !old.starts_with('{') {
            return None;
        }
        // `{}` stays flow within flow, or where it holds a comment.
        if self.root_is_flow() || old.contains('#') {
            return Some(vec![(map.body + 1..map.body + 1, format!(" {flow} "))]);
        }
        let from = self.text[..map.body].trim_end_matches([' ', '\t']).len();
        let at = self.past_comments(self.next_line(map.end), outer.len() + 1);
        let mut splices =
            self.lines_at(at, &format!("{outer}  {}", entry(name, fields, &line, quote)));
        if !old.is_empty() {
            splices.push((from..map.end, String::new()));
        }
        Some(splices)
    }

    /// Adds a section at the end.
    fn add_section(&self, written: &str) -> Option<Vec<Splice>> {
        let Some(root) = &self.root else {
            let end = self.text.find("\n...").map_or(self.text.len(), |at| at + 1);
            return Some(self.lines_at(end, written));
        };
        let NodeKind::Map(entries) = &root.kind else { return None };
        let Some((key, last)) = entries.last() else {
            return Some(vec![(root.body + 1..root.body + 1, format!(" {written} "))]);
        };
        if self.root_is_flow() {
            return Some(self.insert(root, entries.len() - 1, written, true));
        }
        // A blank line would become part of a `|+` scalar.
        let indent = self.indent(key.start);
        let at = self.past_comments(self.next_line(last.end), indent.len());
        let gap = if self.text[..last.end].ends_with('\n') { "" } else { self.gap() };
        Some(self.lines_at(at, &format!("{gap}{indent}{written}")))
    }

    /// The entry that a new model is put behind: the last of its backend, preferably of its family.
    fn neighbour(&self, id: &str, fields: &[Field]) -> Option<usize> {
        let (_, backend) = fields.iter().find(|(key, _)| *key == "backend")?;
        let family = |id: &str| id.split(|c: char| !c.is_alphabetic()).next().map(str::to_owned);
        let kin =
            self.value.get("models")?.as_mapping()?.iter().enumerate().filter(|(_, (_, model))| {
                model.get("backend").and_then(Value::as_str) == Some(backend)
            });
        let best = |(at, (key, _)): &(usize, (&Value, _))| {
            (key.as_str().and_then(family) == family(id), *at)
        };
        kin.max_by_key(best).map(|(at, _)| at)
    }

    /// Inserts a written entry behind another, or at the end of the section behind that one.
    fn insert(&self, map: &Node, after: usize, entry: &str, at_end: bool) -> Vec<Splice> {
        let (key, value) = &map.entries()[after];
        if self.text[map.body..].starts_with('{') {
            let end = value.end.max(key.end);
            return vec![(end..end, format!(", {entry}"))];
        }
        let indent = self.indent(key.start);
        let depth = indent.len() + usize::from(!at_end);
        let at = self.past_comments(self.next_line(value.end), depth);
        self.lines_at(at, &format!("{indent}{entry}"))
    }

    fn remove(&self, section: &str, name: &str) -> Option<Vec<Splice>> {
        let (_, map) = self.find(section)?;
        let entries = map.entries();
        let at = entries.iter().position(|(key, _)| key.is(name))?;
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

/// An entry as its first line; `line` is the line break and indentation of the further ones.
pub(super) fn entry(name: &str, fields: &[Field], line: &str, quote: Quote) -> String {
    let key = scalar(name, quote);
    if fields.is_empty() || fields[0].0 == "backend" {
        return format!("{key}: {}", flow_map(fields, quote));
    }
    let fields = fields.iter().map(|(key, text)| format!("{line}  {key}: {}", scalar(text, quote)));
    format!("{key}:{}", fields.collect::<String>())
}

pub(super) fn flow_map(fields: &[Field], quote: Quote) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(key, text)| format!("{}: {}", scalar(key, quote), scalar(text, quote)))
        .collect();
    if pairs.is_empty() { "{}".into() } else { format!("{{ {} }}", pairs.join(", ")) }
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
    if let Some(key) = root.as_ref().and_then(spans::duplicate) {
        let line = text[..key.start].matches('\n').count() + 1;
        let name = key.text().unwrap_or_default();
        return Err(format!("'{name}' stands there twice, again in line {line}"));
    }
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    let newline = if first.ends_with("\r\n") { "\r\n" } else { "\n" };
    Ok(Document { text, newline, value: normal(value), root })
}

impl Document<'_> {
    /// A key of the config and its value.
    pub(super) fn find(&self, section: &str) -> Option<&(Node, Node)> {
        self.root.as_ref()?.get(section)
    }

    /// A name in a section and its value.
    pub(super) fn entry(&self, section: &str, name: &str) -> Option<&(Node, Node)> {
        self.find(section)?.1.get(name)
    }

    pub(super) fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
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
