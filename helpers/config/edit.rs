//! Changes of the config that keep every byte they do not have to touch.
//!
//! A person writes this file too, so it is never written anew from its values. An edit is a few
//! [`Splice`]s, placed with the spans of libyaml: the parser below serde_yaml, so that both read
//! the same. Before a new text is returned it is proved: its values, its bytes and its comments.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;

use libyaml_rs as sys;
use serde_yaml::Value;

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
    if !change.asked.is_empty() && under(&before.leaves, &change.path) == change.asked {
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
    /// What is to stand there; nothing if it is to be removed.
    asked: BTreeSet<Leaf>,
    /// Whether it must be there before; `None` if either will do.
    there: Option<bool>,
    /// The same for a person: what is done, and the lines to write.
    what: String,
    snippet: String,
}

impl<'a> Change<'a> {
    fn of(edit: &'a Edit) -> Self {
        let entry = |path: Vec<&'a str>, fields: &[(&str, &str)], there, what: &str| {
            let mut value = serde_yaml::Mapping::new();
            for (key, text) in fields {
                value.insert((*key).into(), (*text).into());
            }
            let mut asked = Vec::new();
            let keys: Vec<String> = path.iter().map(|key| (*key).into()).collect();
            flatten(&Value::Mapping(value), &keys, &mut asked);
            let asked = BTreeSet::from_iter(asked);
            let written = Look::usual().entry("  ", path[1], fields, "\n", false);
            let what = format!("{what} '{}'", path[1].escape_debug());
            Self { snippet: format!("{}:\n  {written}", path[0]), path, asked, there, what }
        };
        let removed = |section: &'a str, name: &'a str, what: &str| Self {
            path: vec![section, name],
            asked: BTreeSet::new(),
            there: Some(true),
            what: format!("remove the {what} '{}'", name.escape_debug()),
            snippet: String::new(),
        };
        match edit {
            Edit::SetDefault(name) => Self {
                path: vec!["default"],
                asked: [(vec!["default".into()], format!("{:?}", Value::from(name.as_str())))]
                    .into(),
                there: None,
                what: format!("make '{}' the default", name.escape_debug()),
                snippet: format!("default: {}", scalar(name, Quote::Plain, false)),
            },
            Edit::AddModel { id, backend } => {
                entry(vec!["models", id], &[("backend", backend)], Some(false), "add the model")
            }
            Edit::SetModelBackend { id, backend } => {
                let fields = [("backend", backend.as_str())];
                let mut change = entry(vec!["models", id], &fields, Some(true), "change the model");
                change.path.push("backend");
                change
            }
            Edit::RemoveModel(id) => removed("models", id, "model"),
            Edit::AddBackend { name, .. } => {
                entry(vec!["backends", name], &edit.fields(), Some(false), "add the backend")
            }
            Edit::AddAlias { name, .. } => {
                entry(vec!["aliases", name], &edit.fields(), Some(false), "add the alias")
            }
            Edit::RemoveAlias(name) => removed("aliases", name, "alias"),
        }
    }

    /// Why the change is not to be made at all.
    fn refusal(&self, before: &Document) -> Option<Refusal> {
        let section = self.path[0];
        let old_format = before.find("agents").is_some()
            && before.find("models").is_none()
            && before.find("backends").is_none();
        if old_format && section != "default" {
            return Some(
                Refusal::new(Exit::Data, format!("cannot {}", self.what))
                    .place("the config is of the old format ('agents:'), which has no models")
                    .next("call 'dispatch-config migrate', which upgrades it, then call again"),
            );
        }
        let name = self.path.get(1)?;
        let entry = before.entry(section, name);
        match (self.there, entry) {
            (Some(true), None) => Some(
                Refusal::new(Exit::Data, format!("cannot {}", self.what))
                    .place(format!("the config has no such entry below '{section}:'"))
                    .next("'dispatch-config show' lists what is there"),
            ),
            (Some(false), Some((key, _))) if under(&before.leaves, &self.path) != self.asked => {
                Some(
                    Refusal::new(Exit::Data, format!("cannot {}", self.what))
                        .place(format!(
                            "it is there already, and different: line {} of the config",
                            before.line(key.start)
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
        let next = match (self.asked.is_empty(), entry) {
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
            Self::AddModel { backend, .. } => vec![("backend", backend)],
            Self::AddBackend { command: Some(command), .. } => vec![("command", command)],
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

/// A value that holds no other, with the keys that lead to it.
type Leaf = (Vec<String>, String);

/// Null and `{}` alike: the loader reads both as an empty section.
const EMPTY: &str = "{}";

fn flatten(value: &Value, path: &[String], leaves: &mut Vec<Leaf>) {
    let mut child = |key: String, value| flatten(value, &[path, &[key]].concat(), leaves);
    match value {
        Value::Mapping(map) if !map.is_empty() => {
            for (key, value) in map {
                // A key that is no string, the number 1.5 say, is a name to the loader.
                let text = || serde_yaml::to_string(key).unwrap_or_default().trim_end().to_owned();
                child(key.as_str().map_or_else(text, str::to_owned), value);
            }
        }
        Value::Sequence(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                child(index.to_string(), value);
            }
        }
        Value::Null | Value::Mapping(_) => leaves.push((path.into(), EMPTY.into())),
        leaf => leaves.push((path.into(), format!("{leaf:?}"))),
    }
}

fn starts_with(path: &[String], start: &[&str]) -> bool {
    path.len() >= start.len() && path.iter().zip(start).all(|(a, b)| a == b)
}

/// The leaves at a path and below it.
fn under(leaves: &[Leaf], path: &[&str]) -> BTreeSet<Leaf> {
    leaves.iter().filter(|(leaf, _)| starts_with(leaf, path)).cloned().collect()
}

/// The leaves elsewhere, in their order; a map on the way to the path may be empty or not.
fn elsewhere<'a>(leaves: &'a [Leaf], path: &[&str]) -> Vec<&'a Leaf> {
    let on_the_way =
        |leaf: &[String]| leaf.len() < path.len() && leaf.iter().zip(path).all(|(a, b)| a == b);
    let here = |(leaf, text): &&Leaf| starts_with(leaf, path) || text == EMPTY && on_the_way(leaf);
    leaves.iter().filter(|leaf| !here(leaf)).collect()
}

/// That the new text holds the change and nothing else.
fn prove(
    before: &Document,
    splices: &[Splice],
    after: &str,
    change: &Change,
) -> Result<(), String> {
    let old = before.text;
    let read = read(after).map_err(|error| format!("it would no longer be read: {error}"))?;
    if under(&read.leaves, &change.path) != change.asked {
        return Err("the new value would not be read as asked".into());
    }
    if elsewhere(&read.leaves, &change.path) != elsewhere(&before.leaves, &change.path) {
        return Err("something else in the config would change with it".into());
    }

    let first = splices.iter().map(|(range, _)| range.start).min().unwrap_or(0);
    let last = splices.iter().map(|(range, _)| range.end).max().unwrap_or(0);
    let same_around = after.starts_with(&old[..first]) && after.ends_with(&old[last..]);
    let own = match change.path.get(1) {
        Some(name) => before.entry(change.path[0], name),
        None => before.find(change.path[0]),
    };
    let own = own.map_or(0..0, |(key, value)| {
        let start = before.line_start(key.start);
        let above = old[..start].trim_end().strip_suffix(',').map_or(start, str::len);
        above..before.next_line(value.end)
    });
    let may_go = |range: &Range<usize>| {
        let piece = old[range.clone()].trim();
        own.start <= range.start && range.end <= own.end
            || is_null(piece)
            || matches!(piece, "," | "+")
            || piece.starts_with('*')
            || piece.strip_prefix('{').is_some_and(|rest| rest.trim_start() == "}")
    };
    if !same_around || !splices.iter().all(|(range, _)| may_go(range)) {
        return Err("bytes beside it would change".into());
    }

    let removal = change.asked.is_empty();
    let gone = |at: usize| removal && splices.iter().any(|(range, _)| range.contains(&at));
    let mut comments = read.comments.iter().map(|range| after[range.clone()].trim_end());
    let all_there = before
        .comments
        .iter()
        .filter(|range| !gone(range.start))
        .all(|range| comments.any(|comment| comment == old[range.clone()].trim_end()));
    if all_there { Ok(()) } else { Err("a comment would be lost".into()) }
}

// ---- Where to splice --------------------------------------------------------------------------

impl Document<'_> {
    /// The pieces to replace, or `None` where the config has no place for the change.
    fn splices(&self, edit: &Edit) -> Option<Vec<Splice>> {
        match edit {
            Edit::SetDefault(name) => match self.find("default") {
                Some((_, value)) => Some(self.set(value, name, self.root_is_flow())),
                None => self.add_default(name),
            },
            Edit::SetModelBackend { id, backend } => self.set_backend(id, backend),
            Edit::RemoveModel(id) => self.remove("models", id),
            Edit::RemoveAlias(name) => self.remove("aliases", name),
            Edit::AddModel { id, .. } => self.add("models", id, edit),
            Edit::AddBackend { name, .. } => self.add("backends", name, edit),
            Edit::AddAlias { name, .. } => self.add("aliases", name, edit),
        }
    }

    fn root_is_flow(&self) -> bool {
        self.root.as_ref().is_some_and(|root| matches!(root.kind, Kind::Map { flow: true, .. }))
    }

    /// Puts another scalar in a value's place, with the quotes that the old one had.
    fn set(&self, value: &Node, new: &str, flow: bool) -> Vec<Splice> {
        let mut splices = self.rescued(value.start..value.end);
        let start = if splices.is_empty() { value.body } else { value.start };
        let mut end = value.end;
        if matches!(value.kind, Kind::Scalar { block: true, .. }) {
            // The line of the `>` may end with a comment, which stays.
            let line_end = self.line_end(value.body);
            splices.push((line_end..value.end.max(line_end), String::new()));
            end = self.header(value).end;
        }
        let quote = value.quote();
        let close = quote == Quote::Plain && self.text[..start].ends_with(':');
        let space = if close { " " } else { "" };
        splices.push((start..end, format!("{space}{}", scalar(new, quote, flow))));
        splices
    }

    /// Anchors in a piece that is about to go, each carried on by the first alias that needs it.
    fn rescued(&self, piece: Range<usize>) -> Vec<Splice> {
        let nodes = self.root.iter().flat_map(Node::all);
        nodes
            .filter(|node| piece.start <= node.start && node.end <= piece.end)
            .filter_map(|node| self.carried_on(node, piece.end))
            .collect()
    }

    /// The first alias of a node's anchor behind that place, replaced by the node.
    fn carried_on(&self, node: &Node, behind: usize) -> Option<Splice> {
        let anchor = node.anchor.as_ref()?;
        let users = self.root.iter().flat_map(Node::all).filter(|other| other.start > node.start);
        let user =
            users.take_while(|other| other.anchor.as_ref() != Some(anchor)).find(|other| {
                other.start >= behind && matches!(&other.kind, Kind::Alias(name) if name == anchor)
            })?;
        Some((user.start..user.end, self.text[node.start..node.end].into()))
    }

    fn set_backend(&self, id: &str, backend: &str) -> Option<Vec<Splice>> {
        let (_, section) = self.find("models")?;
        let (_, value) = self.entry("models", id)?;
        match &value.kind {
            Kind::Map { flow, entries } if !entries.is_empty() => {
                let mut splices = Vec::from_iter(self.carried_on(value, value.end));
                if !splices.is_empty() {
                    let name = self.text[value.start..].find(char::is_whitespace)?;
                    let spaces = self.text[value.start + name..].find(|c| c != ' ')?;
                    splices.push((value.start..value.start + name + spaces, String::new()));
                }
                match entries.iter().find(|(key, _)| key.is("backend")) {
                    Some((_, old)) => splices.extend(self.set(old, backend, *flow)),
                    None => {
                        let (key, value_before) = &entries[entries.len() - 1];
                        let pair =
                            pair("backend", key.quote(), backend, value_before.quote(), *flow);
                        splices.extend(self.insert(value, entries.len() - 1, &pair, false));
                    }
                }
                Some(splices)
            }
            // Nothing, `{}` or an alias: the entry is given a map of its own.
            Kind::Scalar { text, .. } if !is_null(text) => None,
            Kind::Map { .. } | Kind::Alias(_) | Kind::Scalar { .. } => {
                let space = if self.text[..value.body].ends_with(':') { " " } else { "" };
                let map = self.look(section, 0).map(&[("backend", backend)]);
                Some(vec![(value.body..value.end, format!("{space}{map}"))])
            }
            Kind::List(_) => None,
        }
    }

    fn add_default(&self, name: &str) -> Option<Vec<Splice>> {
        let first = match &self.root {
            Some(Node { kind: Kind::Map { entries, .. }, .. }) => entries.first(),
            _ => None,
        };
        let Some((first, _)) = first else { return self.add_section(&["default", name], &[]) };
        let quote = self.fresh_look().key;
        let pair = pair("default", quote, name, quote, self.root_is_flow());
        if self.root_is_flow() {
            return Some(vec![(first.start..first.start, format!("{pair}, "))]);
        }
        // Above the first key and the comment that stands directly over it.
        let mut at = self.line_start(first.start);
        while at > 0 {
            let above = self.line_start(at - 1);
            if !self.text[above..at].trim_start().starts_with('#') {
                break;
            }
            at = above;
        }
        let line = format!("{}{pair}{}{}", self.indent(first.start), self.newline, self.gap());
        Some(vec![(at..at, line)])
    }

    /// What stands between sections: a blank line where the config has any.
    fn gap(&self) -> &'static str {
        let blank = self.text.contains("\n\n") || self.text.contains("\n\r\n");
        if blank { self.newline } else { "" }
    }

    /// The block scalar that is the last value of the config, and its header.
    fn last_block(&self) -> Option<(&Node, Range<usize>)> {
        let last = self.root.as_ref()?.all().pop()?;
        let Kind::Scalar { block: true, .. } = last.kind else { return None };
        Some((last, self.header(last)))
    }

    /// The `|` or `>` of a block scalar, with what is attached to it.
    fn header(&self, scalar: &Node) -> Range<usize> {
        let line = &self.text[scalar.body..self.line_end(scalar.body)];
        scalar.body..scalar.body + line.find(char::is_whitespace).unwrap_or(line.len())
    }

    /// Adds an entry to a section.
    fn add(&self, section: &str, name: &str, edit: &Edit) -> Option<Vec<Splice>> {
        let fields = edit.fields();
        let Some((key, map)) = self.find(section) else {
            return self.add_section(&[section, name], &fields);
        };
        match &map.kind {
            Kind::Map { flow, entries } if !entries.is_empty() => {
                let kin = self.neighbour(edit);
                let after = kin.unwrap_or(entries.len() - 1);
                let indent = self.indent(entries[after].0.start);
                let entry = self.look(map, after).entry(indent, name, &fields, self.newline, *flow);
                return Some(self.insert(map, after, &entry, kin.is_none()));
            }
            // `{}` stays flow within flow, or where it holds a comment.
            Kind::Map { .. }
                if self.root_is_flow()
                    || !self.text[map.body + 1..map.end - 1].trim().is_empty() =>
            {
                let entry = self.fresh_look().entry("", name, &fields, self.newline, true);
                return Some(vec![(map.body + 1..map.body + 1, format!(" {entry} "))]);
            }
            Kind::Scalar { text, .. } if is_null(text) => {}
            Kind::Map { .. } => {}
            Kind::Scalar { .. } | Kind::Alias(_) | Kind::List(_) => return None,
        }
        let look = self.fresh_look();
        if self.root_is_flow() {
            let entry = look.entry("", name, &fields, self.newline, true);
            return Some(vec![(map.body..map.end, format!(" {{ {entry} }}"))]);
        }
        let outer = self.indent(key.start);
        let indent = format!("{outer}{}", " ".repeat(look.step));
        let entry = look.entry(&indent, name, &fields, self.newline, false);
        let mut splices = Vec::new();
        if map.body < map.end {
            let from = self.text[..map.body].trim_end_matches([' ', '\t']).len();
            splices.push((from..map.end, String::new()));
        }
        let at = self.past_comments(self.next_line(map.end), outer.len() + 1);
        splices.extend(self.lines_at(at, &format!("{indent}{entry}")));
        Some(splices)
    }

    /// Adds a section that is not there with its first entry, or `default` with its value.
    fn add_section(&self, path: &[&str; 2], fields: &[(&str, &str)]) -> Option<Vec<Splice>> {
        let [section, name] = *path;
        let flow = self.root_is_flow();
        let look = self.fresh_look();
        let first = match &self.root {
            Some(Node { kind: Kind::Map { entries, .. }, .. }) => entries.first(),
            Some(_) => return None,
            None => None,
        };
        let outer = first.map_or("", |(key, _)| self.indent(key.start));
        let indent = format!("{outer}{}", " ".repeat(look.step));
        let key = scalar(section, look.key, flow);
        let written = if section == "default" {
            pair(section, look.key, name, look.key, flow)
        } else {
            let entry = look.entry(&indent, name, fields, self.newline, flow);
            match flow {
                true => format!("{key}: {{ {entry} }}"),
                false => format!("{key}:{}{indent}{entry}", self.newline),
            }
        };
        match &self.root {
            Some(root @ Node { kind: Kind::Map { flow, entries }, .. }) => match entries.last() {
                None => Some(vec![(root.body + 1..root.body + 1, format!(" {written} "))]),
                Some(_) if *flow => Some(self.insert(root, entries.len() - 1, &written, true)),
                Some((_, last)) => {
                    let at = self.past_comments(self.next_line(last.end), outer.len());
                    // A blank line would be taken for the text of a `|+` scalar.
                    let keeps = self
                        .last_block()
                        .is_some_and(|(_, header)| self.text[header].contains('+'));
                    let gap = if keeps { "" } else { self.gap() };
                    Some(self.lines_at(at, &format!("{gap}{outer}{written}")))
                }
            },
            _ => {
                let end = self.text.find("\n...").map_or(self.text.len(), |at| at + 1);
                Some(self.lines_at(end, &written))
            }
        }
    }

    /// The entry that a new model belongs behind: the last of its backend, best of its family.
    fn neighbour(&self, edit: &Edit) -> Option<usize> {
        let Edit::AddModel { id, backend } = edit else { return None };
        let models = self.value.get("models")?.as_mapping()?;
        let family = |id: &str| id.split(|c: char| !c.is_alphabetic()).next().map(str::to_owned);
        let kin = models.iter().enumerate().filter(|(_, (_, model))| {
            model.get("backend").and_then(Value::as_str) == Some(backend.as_str())
        });
        kin.max_by_key(|(at, (key, _))| (key.as_str().and_then(family) == family(id), *at))
            .map(|(at, _)| at)
    }

    /// Inserts a written entry behind another, or at the end of the section behind that one.
    fn insert(&self, map: &Node, after: usize, entry: &str, at_end: bool) -> Vec<Splice> {
        let Kind::Map { flow, entries } = &map.kind else { return vec![] };
        let (key, value) = &entries[after];
        let indent = self.indent(key.start);
        if !flow {
            let depth = indent.len() + usize::from(!at_end);
            let at = self.past_comments(self.next_line(value.end), depth);
            return self.lines_at(at, &format!("{indent}{entry}"));
        }
        let item = self.item(key, value);
        let newline = self.newline;
        match (item.own_lines, item.comma) {
            (true, Some(comma)) => {
                let at = self.next_line(comma);
                vec![(at..at, format!("{indent}{entry},{newline}"))]
            }
            (true, None) => {
                let at = self.next_line(item.end);
                let line = format!("{indent}{entry}{newline}");
                vec![(item.end..item.end, ",".into()), (at..at, line)]
            }
            (false, None) if item.starts_line => {
                vec![(item.end..item.end, format!(",{newline}{indent}{entry}"))]
            }
            (false, _) => vec![(item.end..item.end, format!(", {entry}"))],
        }
    }

    fn remove(&self, section: &str, name: &str) -> Option<Vec<Splice>> {
        let (_, map) = self.find(section)?;
        let Kind::Map { flow, entries } = &map.kind else { return None };
        let at = entries.iter().position(|(key, _)| key.is(name))?;
        let (key, value) = &entries[at];
        let mut splices = self.rescued(key.start..value.end);
        if !flow {
            let lines = self.line_start(key.start)..self.next_line(value.end);
            splices.push((lines, String::new()));
            return Some(splices);
        }
        let item = self.item(key, value);
        let comma_before = match at {
            0 => None,
            at => self.item(&entries[at - 1].0, &entries[at - 1].1).comma,
        };
        let mut cut = |range| splices.push((range, String::new()));
        // Blanks go with what they follow, but a `#` needs one before it.
        let blanks = |from: usize| {
            let rest = &self.text[from..];
            let spaces = rest.len() - rest.trim_start_matches([' ', '\t']).len();
            if rest[spaces..].starts_with(['#', '\r', '\n']) { 0 } else { spaces }
        };
        match (item.own_lines, item.comma, comma_before) {
            (true, comma, before) => {
                let lines = self.line_start(key.start)..self.next_line(comma.unwrap_or(item.end));
                cut(lines);
                if let (None, Some(before)) = (comma, before) {
                    cut(before..before + 1);
                }
            }
            (false, Some(comma), _) if self.text[item.end..comma].trim().is_empty() => {
                cut(key.start..comma + 1 + blanks(comma + 1));
            }
            (false, Some(comma), _) => {
                cut(key.start..item.end);
                cut(comma..comma + 1);
            }
            (false, None, Some(before)) if self.text[before + 1..key.start].trim().is_empty() => {
                cut(before..item.end);
            }
            (false, None, _) => cut(key.start..item.end + blanks(item.end)),
        }
        Some(splices)
    }

    /// How an entry of a flow map lies in its lines.
    fn item(&self, key: &Node, value: &Node) -> Item {
        let end = value.end.max(key.end);
        let comma = self.next_code(end).filter(|at| self.text[*at..].starts_with(','));
        let starts_line = self.text[self.line_start(key.start)..key.start].trim().is_empty();
        let last = comma.map_or(end, |comma| comma + 1);
        let rest = self.text[last..self.line_end(last)].trim_start();
        let ends_line = rest.is_empty() || rest.starts_with('#');
        Item { end, comma, starts_line, own_lines: starts_line && ends_line }
    }

    /// The first byte from there on that is neither blank nor in a comment.
    fn next_code(&self, mut at: usize) -> Option<usize> {
        loop {
            at += self.text[at..].find(|c: char| !c.is_whitespace())?;
            if !self.text[at..].starts_with('#') {
                return Some(at);
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
            let lines = lines.strip_suffix(newline).unwrap_or(lines);
            return vec![(at..at, format!("{lines}{newline}"))];
        }
        let mut splices = vec![(at..at, format!("{newline}{lines}"))];
        // A block scalar there must not get a line break at its end: `|` becomes `|-`.
        if let Some((last, header)) = self.last_block()
            && !self.text[last.end..].contains('\n')
            && !self.text[header.clone()].contains('-')
        {
            let plus = self.text[header.clone()].find('+').map(|plus| header.start + plus);
            splices.push((plus.map_or(header.end..header.end, |at| at..at + 1), "-".into()));
        }
        splices
    }

    /// How the entries of a map are written: like that one, or like the nearest that shows it.
    fn look(&self, map: &Node, near: usize) -> Look {
        let mut look = self.fresh_look();
        let Kind::Map { entries, .. } = &map.kind else { return look };
        look.key = entries[near].0.quote();
        let nearest_first = entries[..=near].iter().rev().chain(&entries[near + 1..]);
        let shown = nearest_first.into_iter().find_map(|(key, value)| match &value.kind {
            Kind::Map { flow, entries } => Some((key, value, *flow, entries.first()?)),
            _ => None,
        });
        let Some((key, value, flow, (field, text))) = shown else { return look };
        look.flow = Some(flow);
        look.field = field.quote();
        look.value = text.quote();
        if !flow {
            look.step = self.indent(field.start).len().saturating_sub(self.indent(key.start).len());
            return look;
        }
        look.tight = !self.text[value.body + 1..].starts_with(char::is_whitespace);
        let column = |(_, value): &(Node, Node)| {
            self.text[self.line_start(value.start)..value.start].chars().count()
        };
        let first = column(&entries[0]);
        let aligned = entries.len() > 1 && entries.iter().all(|entry| column(entry) == first);
        look.column = aligned.then_some(first);
        look
    }

    /// How a new section is written: quoted like the keys of a flow config, for it may be JSON.
    fn fresh_look(&self) -> Look {
        let mut look = Look::usual();
        let Some(Node { kind: Kind::Map { flow, entries }, .. }) = &self.root else { return look };
        for (key, value) in entries.iter().rev() {
            if *flow {
                (look.key, look.field, look.value) = (key.quote(), key.quote(), key.quote());
            }
            if let Kind::Map { flow: false, entries } = &value.kind
                && let Some((inner, _)) = entries.first()
            {
                let inner = self.indent(inner.start).len();
                look.step = inner.saturating_sub(self.indent(key.start).len());
            }
        }
        look
    }
}

/// How an entry of a flow map lies in its lines.
struct Item {
    end: usize,
    comma: Option<usize>,
    starts_line: bool,
    /// Whether it has its lines for itself, but for a comment at the end.
    own_lines: bool,
}

// ---- How it is written ------------------------------------------------------------------------

/// How a scalar is quoted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Quote {
    #[default]
    Plain,
    Single,
    Double,
}

/// The style of a section's entries.
#[derive(Default)]
struct Look {
    /// Whether their maps are flow maps, if there are any.
    flow: Option<bool>,
    /// Whether those have no blanks inside their braces.
    tight: bool,
    key: Quote,
    field: Quote,
    value: Quote,
    /// By how much a block map is indented.
    step: usize,
    /// The column in which all values stand.
    column: Option<usize>,
}

impl Look {
    fn usual() -> Self {
        Self { step: 2, ..Self::default() }
    }

    /// An entry without the indentation of its first line.
    fn entry(
        &self,
        indent: &str,
        name: &str,
        fields: &[(&str, &str)],
        newline: &str,
        in_flow: bool,
    ) -> String {
        let key = scalar(name, self.key, in_flow);
        let short = fields.iter().all(|(_, text)| !text.contains('\n'));
        let usual = fields.iter().any(|(key, _)| *key == "backend");
        if in_flow || fields.is_empty() || (short && self.flow.unwrap_or(usual)) {
            let used = indent.chars().count() + key.chars().count() + 1;
            let pad = self.column.map_or(1, |column| column.saturating_sub(used).max(1));
            return format!("{key}:{:pad$}{}", "", self.map(fields));
        }
        let deeper = format!("{newline}{indent}{}", " ".repeat(self.step));
        let mut out = format!("{key}:");
        for (field, text) in fields {
            out += &deeper;
            match block(text, &deeper, self.step) {
                Some(block) => out += &format!("{}: {block}", scalar(field, self.field, false)),
                None => out += &pair(field, self.field, text, self.value, false),
            }
        }
        out
    }

    /// A flow map.
    fn map(&self, fields: &[(&str, &str)]) -> String {
        let pairs: Vec<String> = fields
            .iter()
            .map(|(field, text)| pair(field, self.field, text, self.value, true))
            .collect();
        match (pairs.is_empty(), self.tight) {
            (true, _) => "{}".into(),
            (_, true) => format!("{{{}}}", pairs.join(", ")),
            (_, false) => format!("{{ {} }}", pairs.join(", ")),
        }
    }
}

fn pair(key: &str, key_quote: Quote, text: &str, quote: Quote, in_flow: bool) -> String {
    format!("{}: {}", scalar(key, key_quote, in_flow), scalar(text, quote, in_flow))
}

/// A text of several lines as a `|` scalar, where that can hold it.
fn block(text: &str, line_start: &str, step: usize) -> Option<String> {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let blank_edges = body.starts_with(char::is_whitespace) || body.ends_with('\n');
    if !body.contains('\n') || blank_edges || body.chars().any(|c| c != '\n' && is_special(c)) {
        return None;
    }
    let chomp = if body.len() < text.len() { "|" } else { "|-" };
    let newline = line_start.trim_end_matches(' ');
    let mut out = chomp.to_owned();
    for line in body.split('\n') {
        // Blank lines stay empty, so that an editor does not complain.
        out += if line.is_empty() { newline } else { line_start };
        out += &format!("{:1$}", "", if line.is_empty() { 0 } else { step });
        out += line;
    }
    if body.len() < text.len() {
        // The line break is the text's own, so it must be there even at the end of the config.
        out += newline;
    }
    Some(out)
}

/// A text as a YAML scalar on one line, quoted as asked or where it would not be read as a text.
fn scalar(text: &str, quote: Quote, in_flow: bool) -> String {
    let special = text.chars().any(is_special);
    match quote {
        Quote::Plain if is_plain(text, in_flow) => text.into(),
        Quote::Single if !special => format!("'{}'", text.replace('\'', "''")),
        Quote::Plain if !special && text.contains(['"', '\\']) => {
            format!("'{}'", text.replace('\'', "''"))
        }
        _ => {
            let escaped = text.chars().map(|c| match c {
                '"' | '\\' => format!("\\{c}"),
                '\n' => "\\n".into(),
                '\t' => "\\t".into(),
                c if is_special(c) => format!("\\u{:04x}", c as u32),
                c => c.into(),
            });
            format!("\"{}\"", escaped.collect::<String>())
        }
    }
}

/// Whether YAML wants it escaped: control and non-characters, its rarer line breaks, the BOM.
fn is_special(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// Whether every YAML reader takes the text for a string without quotes. Says no too often.
fn is_plain(text: &str, in_flow: bool) -> bool {
    const WORDS: [&str; 10] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan"];
    text.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '/' | '$'))
        && !text.chars().any(is_special)
        && text.trim() == text
        && !text.contains(": ")
        && !text.contains(" #")
        && !text.ends_with(':')
        && !(in_flow && text.contains([':', ',', '[', ']', '{', '}']))
        && !WORDS.contains(&text.to_lowercase().as_str())
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

// ---- The text and its tree --------------------------------------------------------------------

/// A config's text, what it says, and where.
struct Document<'a> {
    text: &'a str,
    newline: &'static str,
    value: Value,
    leaves: Vec<Leaf>,
    root: Option<Node>,
    comments: Vec<Range<usize>>,
}

/// A value with its place.
struct Node {
    /// Where it starts, with its anchor and tag.
    start: usize,
    /// Where it starts without those.
    body: usize,
    /// Behind its last byte; the line breaks that end a block scalar are not its own.
    end: usize,
    anchor: Option<String>,
    kind: Kind,
}

enum Kind {
    Scalar { text: String, quote: Quote, block: bool },
    Alias(String),
    List(Vec<Node>),
    Map { flow: bool, entries: Vec<(Node, Node)> },
}

impl Node {
    fn is(&self, name: &str) -> bool {
        matches!(&self.kind, Kind::Scalar { text, .. } if text == name)
    }

    fn quote(&self) -> Quote {
        match self.kind {
            Kind::Scalar { quote, .. } => quote,
            _ => Quote::Plain,
        }
    }

    /// It and all below it, in the order of the text.
    fn all(&self) -> Vec<&Self> {
        let below: Vec<&Self> = match &self.kind {
            Kind::List(items) => items.iter().flat_map(Self::all).collect(),
            Kind::Map { entries, .. } => {
                entries.iter().flat_map(|(key, value)| [key.all(), value.all()].concat()).collect()
            }
            _ => vec![],
        };
        [vec![self], below].concat()
    }
}

impl Document<'_> {
    /// A key of the config and its value.
    fn find(&self, section: &str) -> Option<&(Node, Node)> {
        let Kind::Map { entries, .. } = &self.root.as_ref()?.kind else { return None };
        entries.iter().find(|(key, _)| key.is(section))
    }

    /// A name in a section and its value.
    fn entry(&self, section: &str, name: &str) -> Option<&(Node, Node)> {
        let Kind::Map { entries, .. } = &self.find(section)?.1.kind else { return None };
        entries.iter().find(|(key, _)| key.is(name))
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

/// Reads a config with both parsers.
fn read(text: &str) -> Result<Document<'_>, String> {
    let value: Value = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
    let events = events(text).ok_or("it is no YAML")?;
    let comments = comments(text, &events);
    let mut events = events.into_iter();
    let root = node(text, &mut events).ok().filter(|root| root.start < root.end);
    let mut leaves = Vec::new();
    flatten(&value, &[], &mut leaves);
    for section in root.iter().flat_map(Node::all) {
        let Kind::Map { entries, .. } = &section.kind else { continue };
        let mut seen = BTreeSet::new();
        for (key, _) in entries {
            if let Kind::Scalar { text: name, .. } = &key.kind
                && !seen.insert(name)
            {
                let line = text[..key.start].matches('\n').count() + 1;
                return Err(format!("'{name}' stands there twice, again in line {line}"));
            }
        }
    }
    let first = text.split_inclusive('\n').next().unwrap_or_default();
    let newline = if first.ends_with("\r\n") { "\r\n" } else { "\n" };
    Ok(Document { text, newline, value, leaves, root, comments })
}

/// Each `#` that starts a comment, up to the end of its line.
fn comments(text: &str, events: &[Event]) -> Vec<Range<usize>> {
    let mut scalars = events.iter().filter_map(|event| match &event.kind {
        // A block scalar's first line holds no text of it, but maybe a comment.
        EventKind::Scalar { block: true, .. } => {
            Some(text[event.start..].find('\n').map_or(event.end, |at| event.start + at)..event.end)
        }
        EventKind::Scalar { .. } => Some(event.start..event.end),
        _ => None,
    });
    let mut scalar = scalars.next();
    let mut comments: Vec<Range<usize>> = Vec::new();
    for (at, _) in text.match_indices('#') {
        while scalar.as_ref().is_some_and(|range| range.end <= at) {
            scalar = scalars.next();
        }
        let in_scalar = scalar.as_ref().is_some_and(|range| range.contains(&at));
        let in_comment = comments.last().is_some_and(|range| range.contains(&at));
        let follows = text[..at].chars().next_back().is_none_or(|c| " \t\r\n{[,".contains(c));
        if !in_scalar && !in_comment && follows {
            comments.push(at..text[at..].find('\n').map_or(text.len(), |length| at + length));
        }
    }
    comments
}

/// The next node of the events, or the end of the collection that ends there.
fn node(text: &str, events: &mut impl Iterator<Item = Event>) -> Result<Node, usize> {
    let Some(Event { start, mut end, anchor, kind }) = events.next() else {
        return Err(text.len());
    };
    let body = past_properties(text, start, end);
    let kind = match kind {
        EventKind::Scalar { text: value, quote, block } => {
            if block {
                let whole = &text[body..end];
                let keeps = whole.split(['\n', '#']).next().is_some_and(|head| head.contains('+'));
                let own = if keeps {
                    let own = whole.trim_end_matches(' ');
                    let own = own.strip_suffix('\n').unwrap_or(own);
                    own.strip_suffix('\r').unwrap_or(own)
                } else {
                    whole.trim_end()
                };
                end = body + own.len();
            }
            Kind::Scalar { text: value, quote, block }
        }
        EventKind::Alias(name) => Kind::Alias(name),
        EventKind::List => {
            let mut items = Vec::new();
            let closed = loop {
                match node(text, events) {
                    Ok(item) => items.push(item),
                    Err(closed) => break closed,
                }
            };
            end = if text[body..].starts_with('[') {
                closed
            } else {
                items.last().map_or(end, |item| item.end)
            };
            Kind::List(items)
        }
        EventKind::Map { flow } => {
            let mut entries: Vec<(Node, Node)> = Vec::new();
            let closed = loop {
                match node(text, events) {
                    Ok(key) => entries.push((key, node(text, events)?)),
                    Err(closed) => break closed,
                }
            };
            // libyaml ends a block map only where the next token starts.
            let last = entries.last().map_or(end, |(key, value)| value.end.max(key.end));
            end = if flow { closed } else { last };
            Kind::Map { flow, entries }
        }
        EventKind::End => return Err(end),
    };
    Ok(Node { start, body, end, anchor, kind })
}

/// Where a node starts behind its anchor and tag.
fn past_properties(text: &str, start: usize, end: usize) -> usize {
    let mut at = start;
    while at < end && text[at..].starts_with(['&', '!']) {
        let length = text[at..end].find(char::is_whitespace).unwrap_or(end - at);
        at += length;
        at += text[at..end].len() - text[at..end].trim_start().len();
    }
    at
}

/// An event of libyaml.
struct Event {
    start: usize,
    end: usize,
    anchor: Option<String>,
    kind: EventKind,
}

enum EventKind {
    Scalar { text: String, quote: Quote, block: bool },
    Alias(String),
    List,
    Map { flow: bool },
    End,
}

/// The events of a text's first document; `None` if it is no YAML.
fn events(text: &str) -> Option<Vec<Event>> {
    let mut events = Vec::new();
    let mut parser = Box::new(MaybeUninit::<sys::yaml_parser_t>::uninit());
    let parser = parser.as_mut_ptr();
    // SAFETY: the parser stays in its box until it is deleted, and the text outlives it. An event
    // is read only after it was filled, and only the member of its union that its type names.
    unsafe {
        if !sys::yaml_parser_initialize(parser).ok {
            return None;
        }
        sys::yaml_parser_set_encoding(parser, sys::YAML_UTF8_ENCODING);
        sys::yaml_parser_set_input_string(parser, text.as_ptr(), text.len() as u64);
        let mut event = MaybeUninit::<sys::yaml_event_t>::uninit();
        let read = loop {
            if !sys::yaml_parser_parse(parser, event.as_mut_ptr()).ok {
                break false;
            }
            let filled = event.assume_init_mut();
            events.extend(converted(filled));
            let kind = filled.type_;
            sys::yaml_event_delete(filled);
            if matches!(kind, sys::YAML_DOCUMENT_END_EVENT | sys::YAML_STREAM_END_EVENT) {
                break true;
            }
        };
        sys::yaml_parser_delete(parser);
        read.then_some(events)
    }
}

/// An event that is part of a document.
///
/// # Safety
/// libyaml must have filled it.
unsafe fn converted(event: &sys::yaml_event_t) -> Option<Event> {
    let name = |anchor: *const u8| {
        // SAFETY: an anchor is null or a string of libyaml's that lives as long as the event.
        (!anchor.is_null())
            .then(|| unsafe { CStr::from_ptr(anchor.cast()) }.to_string_lossy().into_owned())
    };
    // SAFETY: the member of the union is the one that the type names, as libyaml filled it.
    let (anchor, kind) = unsafe {
        match event.type_ {
            sys::YAML_SCALAR_EVENT => {
                let scalar = &event.data.scalar;
                let bytes = std::slice::from_raw_parts(scalar.value, scalar.length as usize);
                let quote = match scalar.style {
                    sys::YAML_SINGLE_QUOTED_SCALAR_STYLE => Quote::Single,
                    sys::YAML_DOUBLE_QUOTED_SCALAR_STYLE => Quote::Double,
                    _ => Quote::Plain,
                };
                let block = matches!(
                    scalar.style,
                    sys::YAML_LITERAL_SCALAR_STYLE | sys::YAML_FOLDED_SCALAR_STYLE
                );
                let text = String::from_utf8_lossy(bytes).into_owned();
                (scalar.anchor, EventKind::Scalar { text, quote, block })
            }
            sys::YAML_ALIAS_EVENT => {
                (std::ptr::null_mut(), EventKind::Alias(name(event.data.alias.anchor)?))
            }
            sys::YAML_SEQUENCE_START_EVENT => (event.data.sequence_start.anchor, EventKind::List),
            sys::YAML_MAPPING_START_EVENT => {
                let map = &event.data.mapping_start;
                let flow = map.style == sys::YAML_FLOW_MAPPING_STYLE;
                (map.anchor, EventKind::Map { flow })
            }
            sys::YAML_SEQUENCE_END_EVENT | sys::YAML_MAPPING_END_EVENT => {
                (std::ptr::null_mut(), EventKind::End)
            }
            _ => return None,
        }
    };
    let (start, end) = (event.start_mark.index as usize, event.end_mark.index as usize);
    Some(Event { start, end, anchor: name(anchor), kind })
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
