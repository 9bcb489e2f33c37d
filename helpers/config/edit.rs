//! Changes of the config that keep every byte they do not have to touch.
//!
//! A person writes this file too, so it is never written anew from its values. An edit is a few
//! [`Splice`]s, and before a new text is returned it is proved: its values, its bytes and its
//! comments. What cannot be proved is refused, with the lines to paste.

use std::ops::Range;

use serde_yaml::Value;

use crate::config::spans::{self, Node, NodeKind};
use crate::error::Refusal;
use crate::exit::Exit;

/// One change of the config.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Makes a model or alias the default.
    SetDefault(String),
    /// Adds a model beside those of its backend.
    AddModel {
        /// The model's id.
        id: String,
        /// The backend that runs it.
        backend: String,
    },
    /// Gives a model another backend.
    SetModelBackend {
        /// The model's id.
        id: String,
        /// The backend that is to run it.
        backend: String,
    },
    /// Removes a model.
    RemoveModel(String),
    /// Adds a backend.
    AddBackend {
        /// Its name.
        name: String,
        /// The shell command, where the backend is not a known CLI.
        command: Option<String>,
    },
    /// Says what a backend's workers may do.
    SetAccess {
        /// The backend's name.
        backend: String,
        /// The access, as the config spells it.
        access: String,
    },
    /// Adds an alias.
    AddAlias {
        /// Its name.
        name: String,
        /// The model's id.
        model: String,
        /// The words that open every prompt.
        prompt: Option<String>,
    },
    /// Removes an alias.
    RemoveAlias(String),
}

/// The text with the change made, every other byte as it was. What is already as asked is returned
/// unchanged.
///
/// # Errors
/// [`Exit::Data`] if the name is taken or not there, if the config is of the old format or no
/// YAML, or if the change cannot be proved; the last with the snippet to paste and where.
pub fn apply(text: &str, edit: &Edit) -> Result<String, Refusal> {
    // libyaml counts a BOM as a column, which breaks the indentation of the first key.
    let (bom, text) = text.split_at(if text.starts_with('\u{feff}') { 3 } else { 0 });
    let wrong = |why: String| {
        Refusal::new(Exit::Data, "the config is wrong, it is not changed")
            .place(why)
            .next("mend it, then call again; 'dispatch-config check' shows all that is wrong")
    };
    let before = read(text).map_err(wrong)?;
    let change = Change::of(edit);
    if let Some(refusal) = change.refusal(&before) {
        return Err(refusal);
    }
    if change.asked.is_some() && at(&before.value, &change.path) == change.asked.as_ref() {
        return Ok(format!("{bom}{text}"));
    }
    let splices = before.splices(edit).ok_or_else(|| change.by_hand(&before, "it is no map"))?;
    let after = spliced(text, &splices).ok_or_else(|| change.by_hand(&before, "edits overlap"))?;
    prove(&before, &splices, &after, &change).map_err(|why| change.by_hand(&before, &why))?;
    Ok(format!("{bom}{after}"))
}

/// What an edit is to change in the values of the config.
struct Change<'a> {
    /// Where: a section, a name in it, a key of that.
    path: Vec<&'a str>,
    /// What is to stand there; `None` if nothing.
    asked: Option<Value>,
    /// Whether it must be there before; `None` if either will do.
    there: Option<bool>,
    /// The same for a person: what is done, and the lines to write.
    what: String,
    snippet: String,
}

impl<'a> Change<'a> {
    fn of(edit: &'a Edit) -> Self {
        let (what, section, name, there) = match edit {
            Edit::SetDefault(name) => ("set the default", "default", name, None),
            Edit::AddModel { id, .. } => ("add the model", "models", id, Some(false)),
            Edit::SetModelBackend { id, .. } => ("change the model", "models", id, Some(true)),
            Edit::RemoveModel(id) => ("remove the model", "models", id, Some(true)),
            Edit::AddBackend { name, .. } => ("add the backend", "backends", name, Some(false)),
            Edit::SetAccess { backend, .. } => {
                ("set the access of", "backends", backend, Some(true))
            }
            Edit::AddAlias { name, .. } => ("add the alias", "aliases", name, Some(false)),
            Edit::RemoveAlias(name) => ("remove the alias", "aliases", name, Some(true)),
        };
        let fields = edit.fields();
        let map = fields.iter().map(|(key, text)| ((*key).into(), (*text).into()));
        let (path, asked) = match edit {
            Edit::SetDefault(_) => (vec![section], Some(name.as_str().into())),
            Edit::RemoveModel(_) | Edit::RemoveAlias(_) => (vec![section, name], None),
            Edit::SetModelBackend { backend, .. } => {
                (vec![section, name, "backend"], Some(backend.as_str().into()))
            }
            Edit::SetAccess { access, .. } => {
                (vec![section, name, "access"], Some(access.as_str().into()))
            }
            _ => (vec![section, name], Some(Value::Mapping(map.collect()))),
        };
        let snippet = match edit {
            Edit::SetDefault(_) => format!("default: {}", scalar(name, PLAIN)),
            _ => format!("{section}:\n  {}", entry(name, &fields, "\n  ", PLAIN)),
        };
        let what = format!("{what} '{}'", name.escape_debug());
        Self { path, asked, there, what, snippet }
    }

    /// Why the change is not to be made at all.
    fn refusal(&self, before: &Document) -> Option<Refusal> {
        let cannot = Refusal::new(Exit::Data, format!("cannot {}", self.what));
        let (section, name) = (self.path[0], self.path.get(1)?);
        let has = |section| before.find(section).is_some();
        if has("agents") && !has("models") && !has("backends") {
            return Some(
                cannot
                    .place("the config is of the old format ('agents:'), which has no models")
                    .next("call 'dispatch-config migrate', which upgrades it, then call again"),
            );
        }
        match (self.there, before.entry(section, name)) {
            (Some(true), None) => Some(
                cannot
                    .place(format!("the config has no such entry below '{section}:'"))
                    .next("'dispatch-config show' lists what is there"),
            ),
            (Some(false), Some((key, _)))
                if at(&before.value, &self.path) != self.asked.as_ref() =>
            {
                let line = before.line(key.start);
                Some(
                    cannot
                        .place(format!(
                            "it is there already, and different: line {line} of the config"
                        ))
                        .next("remove that entry first, or take another name"),
                )
            }
            _ => None,
        }
    }

    /// The refusal of a change that cannot be made without a doubt.
    fn by_hand(&self, before: &Document, why: &str) -> Refusal {
        let entry = self.path.get(1).and_then(|name| before.entry(self.path[0], name));
        let place = match entry.or_else(|| before.find(self.path[0])) {
            Some((key, _)) => format!("line {} of the config", before.line(key.start)),
            None => "the end of the config".into(),
        };
        let next = match (self.asked.is_none(), entry) {
            (true, _) => format!("remove it by hand: {place}"),
            (false, Some(_)) => {
                format!("change it by hand, {place}, so that it says:\n{}", self.snippet)
            }
            (false, None) => format!("paste it by hand, at {place}:\n{}", self.snippet),
        };
        Refusal::new(Exit::Data, format!("cannot {} without touching more", self.what))
            .place(why)
            .next(next)
    }
}

impl Edit {
    /// The keys of a new entry.
    fn fields(&self) -> Vec<(&str, &str)> {
        match self {
            Self::AddModel { backend, .. } | Self::SetModelBackend { backend, .. } => {
                vec![("backend", backend)]
            }
            Self::AddBackend { command: Some(command), .. } => vec![("command", command)],
            Self::SetAccess { access, .. } => vec![("access", access)],
            Self::AddAlias { model, prompt: Some(prompt), .. } => {
                vec![("model", model), ("prompt", prompt)]
            }
            Self::AddAlias { model, .. } => vec![("model", model)],
            _ => vec![],
        }
    }
}

/// A piece of the old text and what stands in its place.
type Splice = (Range<usize>, String);

/// The text with all pieces replaced; `None` if they overlap.
fn spliced(text: &str, splices: &[Splice]) -> Option<String> {
    let mut sorted: Vec<&Splice> = splices.iter().collect();
    sorted.sort_by_key(|(range, _)| (range.start, range.end));
    let mut out = String::with_capacity(text.len() + 64);
    let mut done = 0;
    for (range, new) in sorted {
        out += text.get(done..range.start)?;
        out += new;
        done = range.end;
    }
    out += text.get(done..)?;
    Some(out)
}

// ---- The proof --------------------------------------------------------------------------------

/// The value at a path.
fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// The value with another one put at a path, or with none there.
fn put(value: &Value, path: &[&str], new: Option<&Value>) -> Value {
    let mut map = value.as_mapping().cloned().unwrap_or_default();
    match (path, new) {
        ([key], None) => _ = map.shift_remove(key),
        ([key], Some(new)) => _ = map.insert((*key).into(), new.clone()),
        ([key, rest @ ..], _) => {
            let inner = put(value.get(key).unwrap_or(&Value::Null), rest, new);
            map.insert((*key).into(), inner);
        }
        ([], _) => {}
    }
    map.into()
}

/// The value as the loader takes it: an empty section is none, and a number a name too.
fn normal(value: Value) -> Value {
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

/// That the new text holds the change and nothing else.
fn prove(
    before: &Document,
    splices: &[Splice],
    after: &str,
    change: &Change,
) -> Result<(), String> {
    let read = read(after).map_err(|error| format!("it would no longer be read: {error}"))?;
    if at(&read.value, &change.path) != change.asked.as_ref() {
        return Err("the new value would not be read as asked".into());
    }
    if read.value != normal(put(&before.value, &change.path, change.asked.as_ref())) {
        return Err("something else in the config would change with it".into());
    }
    let bare = |text: &str| text.matches('\n').count() - text.matches("\r\n").count();
    if before.newline == "\r\n" && bare(after) > bare(before.text) {
        return Err("a line would end unlike the others".into());
    }
    let own = match change.path[..] {
        [section] => before.find(section),
        _ => before.entry(change.path[0], change.path[1]),
    };
    let lines = own.map_or(0..0, |(key, value)| {
        let start = before.line_start(key.start);
        let above = before.text[..start].trim_end().strip_suffix(',').map_or(start, str::len);
        above..before.next_line(value.end)
    });
    let scalars = own.iter().flat_map(|(_, value)| value.all()).filter_map(|node| {
        // The first line of a block scalar may hold a comment.
        let is_block = before.text[node.body..].starts_with(['|', '>']);
        let start = if is_block { before.line_end(node.body) } else { node.body };
        matches!(node.kind, NodeKind::Scalar(_)).then_some(start..node.end)
    });
    let scalars: Vec<Range<usize>> = scalars.collect();
    for (range, _) in splices {
        let piece = before.text[range.clone()].trim();
        let within = |whole: &Range<usize>| whole.start <= range.start && range.end <= whole.end;
        let mark = piece.strip_prefix('{').map_or(piece, str::trim_start);
        let is_alias = piece.starts_with('*') && !piece.contains(char::is_whitespace);
        if !within(&lines) && !is_null(mark) && !matches!(mark, "," | "}") && !is_alias {
            return Err("bytes beside it would change".into());
        }
        // A comment goes only with the entry in whose lines it stands.
        let touched = &before.text[before.line_start(range.start)..range.end];
        let edits_text = range.is_empty() || scalars.iter().any(within);
        if change.asked.is_some() && touched.contains('#') && !edits_text {
            return Err("a comment would be lost".into());
        }
    }
    Ok(())
}

// ---- Where to splice --------------------------------------------------------------------------

impl Document<'_> {
    /// The pieces to replace, or `None` where the config has no place for the change.
    fn splices(&self, edit: &Edit) -> Option<Vec<Splice>> {
        match edit {
            Edit::SetDefault(name) => match self.find("default") {
                Some((_, value)) => Some(self.set(value, name)),
                None => self.add_default(name),
            },
            Edit::SetModelBackend { id, backend } => self.set_key("models", id, "backend", backend),
            Edit::SetAccess { backend, access } => {
                self.set_key("backends", backend, "access", access)
            }
            Edit::RemoveModel(id) => self.remove("models", id),
            Edit::RemoveAlias(name) => self.remove("aliases", name),
            Edit::AddModel { id, .. } => self.add("models", id, edit),
            Edit::AddBackend { name, .. } => self.add("backends", name, edit),
            Edit::AddAlias { name, .. } => self.add("aliases", name, edit),
        }
    }

    /// Puts another scalar in a value's place, in the quotes of the old one.
    fn set(&self, value: &Node, new: &str) -> Vec<Splice> {
        let mut splices = self.rescued(value.start..value.end);
        let start = if splices.is_empty() { value.body } else { value.start };
        let mut end = value.end;
        let old = &self.text[value.body..value.end];
        if old.starts_with(['|', '>']) {
            // The line of the `>` may end with a comment, which stays.
            let line_end = self.line_end(value.body);
            splices.push((line_end..value.end.max(line_end), String::new()));
            end = value.body + old.find(char::is_whitespace).unwrap_or(old.len());
        }
        let space = if self.text[..start].ends_with(':') { " " } else { "" };
        splices.push((start..end, format!("{space}{}", scalar(new, quote_of(old)))));
        splices
    }

    /// Anchors in a piece that is about to go, each carried on by the first alias that needs it.
    fn rescued(&self, piece: Range<usize>) -> Vec<Splice> {
        let nodes: Vec<&Node> = self.root.iter().flat_map(Node::all).collect();
        let anchor = |node: &Node| {
            self.text[node.start..node.body].trim_end().strip_prefix('&').map(str::to_owned)
        };
        let gone = nodes.iter().filter(|node| piece.start <= node.start && node.end <= piece.end);
        let carried_on = |node: &&Node| {
            let name = anchor(node)?;
            let mut behind = nodes.iter().filter(|other| other.start >= piece.end);
            let user = behind.find(|other| {
                matches!(other.kind, NodeKind::Alias)
                    && self.text[other.start + 1..other.end] == *name
            })?;
            Some((user.start..user.end, self.text[node.start..node.end].to_owned()))
        };
        gone.filter_map(carried_on).collect()
    }

    /// Gives an entry's key another value.
    fn set_key(&self, section: &str, name: &str, key: &str, new: &str) -> Option<Vec<Splice>> {
        let (_, value) = self.entry(section, name)?;
        if let Some((_, old)) = value.get(key) {
            return Some(self.set(old, new));
        }
        if let Some(last) = value.entries().len().checked_sub(1) {
            let pair = format!("{key}: {}", scalar(new, PLAIN));
            return Some(self.insert(value, last, &pair, true));
        }
        // Nothing, `{}` or an alias: the entry is given a map of its own.
        let old = &self.text[value.body..value.end];
        if !is_null(old) && !old.starts_with(['{', '*']) {
            return None;
        }
        let space = if self.text[..value.body].ends_with(':') { " " } else { "" };
        let map = flow_map(&[(key, new)], self.quote());
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
    fn add(&self, section: &str, name: &str, edit: &Edit) -> Option<Vec<Splice>> {
        let (fields, quote) = (edit.fields(), self.quote());
        let flow = format!("{}: {}", scalar(name, quote), flow_map(&fields, quote));
        let outer = self.root.as_ref().and_then(|root| root.entries().first());
        let outer = outer.map_or("", |(key, _)| self.indent(key.start));
        let line = format!("{}{outer}  ", self.newline);
        let Some((_, map)) = self.find(section) else {
            let key = scalar(section, quote);
            return self.add_section(&match self.root_is_flow() {
                true => format!("{key}: {{ {flow} }}"),
                false => format!("{key}:{line}{}", entry(name, &fields, &line, quote)),
            });
        };
        let old = &self.text[map.body..map.end];
        if let Some(last) = map.entries().len().checked_sub(1) {
            let kin = self.neighbour(edit);
            let near = kin.unwrap_or(last);
            if old.starts_with('{') {
                return Some(self.insert(map, near, &flow, false));
            }
            let line = format!("{}{}", self.newline, self.indent(map.entries()[near].0.start));
            return Some(self.insert(
                map,
                near,
                &entry(name, &fields, &line, quote),
                kin.is_none(),
            ));
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
            self.lines_at(at, &format!("{outer}  {}", entry(name, &fields, &line, quote)));
        if !old.is_empty() {
            splices.push((from..map.end, String::new()));
        }
        Some(splices)
    }

    /// Adds a section behind the others.
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
        // A blank line would be taken for the text of a `|+` scalar.
        let indent = self.indent(key.start);
        let at = self.past_comments(self.next_line(last.end), indent.len());
        let gap = if self.text[..last.end].ends_with('\n') { "" } else { self.gap() };
        Some(self.lines_at(at, &format!("{gap}{indent}{written}")))
    }

    /// The entry that a new model belongs behind: the last of its backend, best of its family.
    fn neighbour(&self, edit: &Edit) -> Option<usize> {
        let Edit::AddModel { id, backend } = edit else { return None };
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
        // The comma behind it goes too, or else the one before it.
        let blank = |range: Range<usize>| self.text[range].trim().is_empty();
        let before = at.checked_sub(1).and_then(|at| self.comma(entries[at].1.end));
        let mut piece = start..end;
        match (self.comma(end), before) {
            (Some(comma), _) if blank(end..comma) => piece.end = comma + 1,
            (None, Some(comma)) if blank(comma + 1..start) => piece.start = comma,
            (Some(comma), _) | (None, Some(comma)) => cut(comma..comma + 1),
            (None, None) => {}
        }
        // With its lines if it has them for itself, else with the blanks behind it.
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

    /// The comma that is the first byte from there on that is neither blank nor in a comment.
    fn comma(&self, mut at: usize) -> Option<usize> {
        loop {
            at += self.text[at..].find(|c: char| !c.is_whitespace())?;
            if !self.text[at..].starts_with('#') {
                return self.text[at..].starts_with(',').then_some(at);
            }
            at = self.line_end(at);
        }
    }

    /// Past the comment lines that follow, if indented as deep, and the blank ones between.
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

    /// Lines put in at the start of a line, or at the end of a text whose last line has no end.
    fn lines_at(&self, at: usize, lines: &str) -> Vec<Splice> {
        let newline = self.newline;
        if at == 0 || self.text[..at].ends_with('\n') {
            return vec![(at..at, format!("{lines}{newline}"))];
        }
        // A block scalar there must not get a line break at its end: `|` becomes `|-`.
        let nodes = self.root.iter().flat_map(Node::all);
        let last = nodes.last().map_or(0, |last| last.body);
        let header = self.text[last..].split_whitespace().next().unwrap_or_default();
        let strip = header.starts_with(['|', '>']) && !header.contains(['+', '-']);
        let strip = strip.then(|| (last + 1..last + 1, "-".into()));
        strip.into_iter().chain([(at..at, format!("{newline}{lines}"))]).collect()
    }

    /// What stands between sections: a blank line where the config has any.
    fn gap(&self) -> &'static str {
        let blank = self.text.contains("\n\n") || self.text.contains("\n\r\n");
        if blank { self.newline } else { "" }
    }

    fn root_is_flow(&self) -> bool {
        self.root.as_ref().is_some_and(|root| self.text[root.body..].starts_with('{'))
    }

    /// The quotes of a config that may be JSON.
    fn quote(&self) -> Quote {
        let first = self.root.as_ref().and_then(|root| root.entries().first());
        let first = first.filter(|_| self.root_is_flow());
        first.map_or(PLAIN, |(key, _)| quote_of(&self.text[key.start..]))
    }
}

// ---- How it is written ------------------------------------------------------------------------

/// How a scalar is quoted: `'`, `"` or not at all.
type Quote = char;
const PLAIN: Quote = ' ';

fn quote_of(scalar: &str) -> Quote {
    scalar.chars().next().filter(|c| matches!(c, '\'' | '"')).unwrap_or(PLAIN)
}

/// An entry, without the line break and the indentation that its lines start with.
fn entry(name: &str, fields: &[(&str, &str)], line: &str, quote: Quote) -> String {
    let key = scalar(name, quote);
    if fields.is_empty() || fields[0].0 == "backend" {
        return format!("{key}: {}", flow_map(fields, quote));
    }
    let fields = fields.iter().map(|(key, text)| format!("{line}  {key}: {}", scalar(text, quote)));
    format!("{key}:{}", fields.collect::<String>())
}

fn flow_map(fields: &[(&str, &str)], quote: Quote) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(key, text)| format!("{}: {}", scalar(key, quote), scalar(text, quote)))
        .collect();
    if pairs.is_empty() { "{}".into() } else { format!("{{ {} }}", pairs.join(", ")) }
}

/// A text as a YAML scalar on one line, quoted as asked or where it would not be read as a text.
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

/// Whether YAML wants it escaped: control and non-characters, its rarer line breaks, the BOM.
fn is_special(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether every YAML reader takes the text for a string without quotes. Says no too often.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan"];
    text.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/' | '$'))
        && !text.contains(is_special)
        && text.trim() == text
        && !text.contains(" #")
        && !text.contains([':', ',', '[', ']', '{', '}'])
        && !WORDS.contains(&text.to_lowercase().as_str())
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

// ---- The text ---------------------------------------------------------------------------------

/// A config's text, what it says, and where.
struct Document<'a> {
    text: &'a str,
    newline: &'static str,
    value: Value,
    root: Option<Node>,
}

/// Reads a config with both parsers.
fn read(text: &str) -> Result<Document<'_>, String> {
    let value: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let root = spans::tree(text)?;
    if let Some(twice) = root.as_ref().and_then(|root| spans::duplicates(root).into_iter().next()) {
        let line = text[..twice.start].matches('\n').count() + 1;
        let name = twice.text().unwrap_or_default();
        return Err(format!("'{name}' stands there twice, again in line {line}"));
    }
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    let newline = if first.ends_with("\r\n") { "\r\n" } else { "\n" };
    Ok(Document { text, newline, value: normal(value), root })
}

impl Document<'_> {
    /// A key of the config and its value.
    fn find(&self, section: &str) -> Option<&(Node, Node)> {
        self.root.as_ref()?.get(section)
    }

    /// A name in a section and its value.
    fn entry(&self, section: &str, name: &str) -> Option<&(Node, Node)> {
        self.find(section)?.1.get(name)
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// The end of a line without its line break.
    fn line_end(&self, at: usize) -> usize {
        let line = self.text[at..].split('\n').next().unwrap_or_default();
        at + line.strip_suffix('\r').unwrap_or(line).len()
    }

    fn next_line(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    /// The blanks that a line starts with.
    fn indent(&self, at: usize) -> &str {
        let line = &self.text[self.line_start(at)..];
        &line[..line.len() - line.trim_start_matches(' ').len()]
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
