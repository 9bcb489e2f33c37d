//! Where in a config's text each of its values stands.
//!
//! The places come from libyaml, the parser below serde_yaml, so that both read the same.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use libyaml_rs as sys;

/// A value with its place.
pub(super) struct Node {
    /// Where it starts, with its anchor and tag.
    pub(super) start: usize,
    /// Where it starts without those.
    pub(super) body: usize,
    /// Behind its last byte; the line breaks that end a block scalar are not its own.
    pub(super) end: usize,
    pub(super) kind: NodeKind,
}

pub(super) enum NodeKind {
    Scalar(String),
    Alias,
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    pub(super) fn is(&self, name: &str) -> bool {
        self.text() == Some(name)
    }

    /// Its text, if it is a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        if let NodeKind::Scalar(text) = &self.kind { Some(text) } else { None }
    }

    /// Its keys and values; none if it is no map.
    pub(super) fn entries(&self) -> &[(Self, Self)] {
        if let NodeKind::Map(entries) = &self.kind { entries } else { &[] }
    }

    pub(super) fn get(&self, name: &str) -> Option<&(Self, Self)> {
        self.entries().iter().find(|(key, _)| key.is(name))
    }

    /// It and all below it, in the order of the text.
    pub(super) fn all(&self) -> Vec<&Self> {
        let below: Vec<&Self> = match &self.kind {
            NodeKind::List(items) => items.iter().flat_map(Self::all).collect(),
            _ => {
                let nodes = self.entries().iter().flat_map(|(key, value)| [key, value]);
                nodes.flat_map(Self::all).collect()
            }
        };
        [vec![self], below].concat()
    }
}

/// The tree of a text's first document; `None` in it if that is empty.
pub(super) fn tree(text: &str) -> Result<Option<Node>, String> {
    let mut events = events(text).ok_or("it is no YAML")?.into_iter();
    Ok(node(text, &mut events).ok().filter(|root| root.start < root.end))
}

/// The keys that stand in their map already. serde_yaml takes `1` and `'1'` for two.
pub(super) fn duplicates(root: &Node) -> Vec<&Node> {
    let mut twice = Vec::new();
    for map in root.all() {
        let mut seen = BTreeSet::new();
        let keys = map.entries().iter().map(|(key, _)| key);
        twice.extend(keys.filter(|key| key.text().is_some_and(|name| !seen.insert(name))));
    }
    twice
}

/// The next node of the events, or the end of the collection that ends there.
fn node(text: &str, events: &mut impl Iterator<Item = Event>) -> Result<Node, usize> {
    let Some(Event { start, mut end, kind }) = events.next() else { return Err(text.len()) };
    let mut body = start;
    while body < end && text[body..].starts_with(['&', '!']) {
        body += text[body..end].find(char::is_whitespace).unwrap_or(end - body);
        body += text[body..end].len() - text[body..end].trim_start().len();
    }
    let kind = match kind {
        EventKind::Scalar(value) => {
            let whole = &text[body..end];
            if whole.starts_with(['|', '>']) {
                // What `+` keeps belongs to it, but for the last line break.
                let keeps = whole.split(['\n', '#']).next().is_some_and(|head| head.contains('+'));
                let kept = whole.trim_end_matches(' ');
                let kept = kept.strip_suffix('\n').unwrap_or(kept);
                let kept = kept.strip_suffix('\r').unwrap_or(kept);
                end = body + if keeps { kept.len() } else { whole.trim_end().len() };
            }
            NodeKind::Scalar(value)
        }
        EventKind::Alias => NodeKind::Alias,
        EventKind::List | EventKind::Map => {
            let mut items = Vec::new();
            let closed = loop {
                match node(text, events) {
                    Ok(item) => items.push(item),
                    Err(closed) => break closed,
                }
            };
            // libyaml ends a block collection only where the next token starts.
            let last = items.iter().map(|item| item.end).max().unwrap_or(end);
            end = if text[body..].starts_with(['{', '[']) { closed } else { last };
            if matches!(kind, EventKind::List) {
                NodeKind::List(items)
            } else {
                let mut items = items.into_iter();
                let pairs = std::iter::from_fn(|| Some((items.next()?, items.next()?)));
                NodeKind::Map(pairs.collect())
            }
        }
        EventKind::End => return Err(end),
    };
    Ok(Node { start, body, end, kind })
}

/// An event of libyaml.
struct Event {
    start: usize,
    end: usize,
    kind: EventKind,
}

enum EventKind {
    Scalar(String),
    Alias,
    List,
    Map,
    End,
}

/// The events of a text's first document; `None` if it is no YAML.
fn events(text: &str) -> Option<Vec<Event>> {
    let mut events = Vec::new();
    let mut parser = Box::new(MaybeUninit::<sys::yaml_parser_t>::uninit());
    let parser = parser.as_mut_ptr();
    // SAFETY: the parser stays in its box until it is deleted, and the text outlives it. An event
    // is read only after it was filled, and of its union only the member that its type names.
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
            let kind = match filled.type_ {
                sys::YAML_SCALAR_EVENT => {
                    let scalar = &filled.data.scalar;
                    let bytes = std::slice::from_raw_parts(scalar.value, scalar.length as usize);
                    Some(EventKind::Scalar(String::from_utf8_lossy(bytes).into_owned()))
                }
                sys::YAML_ALIAS_EVENT => Some(EventKind::Alias),
                sys::YAML_SEQUENCE_START_EVENT => Some(EventKind::List),
                sys::YAML_MAPPING_START_EVENT => Some(EventKind::Map),
                sys::YAML_SEQUENCE_END_EVENT | sys::YAML_MAPPING_END_EVENT => Some(EventKind::End),
                _ => None,
            };
            let (start, end) = (filled.start_mark.index as usize, filled.end_mark.index as usize);
            events.extend(kind.map(|kind| Event { start, end, kind }));
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
