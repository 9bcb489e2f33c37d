//! The tree of a config's values, each with its place in the text.
//!
//! libyaml gives the places. It is the parser inside serde_yaml, so both read the same YAML.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;

use libyaml_rs as sys;

/// A value and its byte offsets in the text.
pub(super) struct Node {
    /// The first byte, which may belong to an anchor or tag.
    pub(super) start: usize,
    /// The first byte behind anchor and tag.
    pub(super) body: usize,
    /// The end; the line breaks that end a block scalar are left out.
    pub(super) end: usize,
    /// The name in `&name`.
    pub(super) anchor: Option<String>,
    pub(super) kind: NodeKind,
}

pub(super) enum NodeKind {
    Scalar(String),
    /// The name in `*name`.
    Alias(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

impl Node {
    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        if let NodeKind::Scalar(text) = &self.kind { Some(text) } else { None }
    }

    /// The keys and values of a map.
    pub(super) fn entries(&self) -> &[(Self, Self)] {
        if let NodeKind::Map(entries) = &self.kind { entries } else { &[] }
    }

    pub(super) fn get(&self, name: &str) -> Option<&(Self, Self)> {
        self.entries().iter().find(|(key, _)| key.text() == Some(name))
    }

    /// This node and all below it, in the order of the text.
    pub(super) fn all(&self) -> Vec<&Self> {
        let below: Vec<&Self> = match &self.kind {
            NodeKind::List(items) => items.iter().collect(),
            _ => self.entries().iter().flat_map(|(key, value)| [key, value]).collect(),
        };
        [self].into_iter().chain(below.into_iter().flat_map(Self::all)).collect()
    }
}

/// The tree of a document (`None` inside: the document is empty); `None` if the text is not one
/// YAML document.
pub(super) fn tree(text: &str) -> Option<Option<Node>> {
    let mut events = events(text)?.into_iter();
    Some(node(text, &mut events).ok().filter(|root| root.start < root.end))
}

/// The first key that stands in its map a second time. serde_yaml takes `1` and `'1'` for two keys.
pub(super) fn duplicate(root: &Node) -> Option<(&Node, &str)> {
    root.all().into_iter().find_map(|map| {
        let mut seen = BTreeSet::new();
        let mut keys = map.entries().iter().filter_map(|(key, _)| Some((key, key.text()?)));
        keys.find(|(_, name)| !seen.insert(*name))
    })
}

/// The next node of the events, or the end of the collection that ends there.
fn node(text: &str, events: &mut impl Iterator<Item = YamlEvent>) -> Result<Node, usize> {
    let Some(YamlEvent { kind, start, mut end, scalar }) = events.next() else {
        return Err(text.len());
    };
    let (mut body, mut anchor) = (start, None);
    while body < end && text[body..].starts_with(['&', '!']) {
        let length = text[body..end].find(char::is_whitespace).unwrap_or(end - body);
        let name = text[body..body + length].strip_prefix('&');
        anchor = name.map(str::to_owned).or(anchor);
        body += length;
        body += text[body..end].len() - text[body..end].trim_start().len();
    }
    let kind = match kind {
        sys::YAML_SCALAR_EVENT => {
            let whole = &text[body..end];
            if whole.starts_with(['|', '>']) {
                // A `+` keeps the blank lines behind the text, but not the last line break.
                let keeps = whole.split(['\n', '#']).next().is_some_and(|head| head.contains('+'));
                let kept = whole.trim_end_matches(' ');
                let kept = kept.strip_suffix('\n').unwrap_or(kept);
                let kept = kept.strip_suffix('\r').unwrap_or(kept);
                end = body + if keeps { kept.len() } else { whole.trim_end().len() };
            }
            NodeKind::Scalar(scalar)
        }
        sys::YAML_ALIAS_EVENT => NodeKind::Alias(text[start + 1..end].into()),
        sys::YAML_SEQUENCE_START_EVENT | sys::YAML_MAPPING_START_EVENT => {
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
            if kind == sys::YAML_SEQUENCE_START_EVENT {
                NodeKind::List(items)
            } else {
                let mut items = items.into_iter();
                let pairs = std::iter::from_fn(|| Some((items.next()?, items.next()?)));
                NodeKind::Map(pairs.collect())
            }
        }
        _ => return Err(end),
    };
    Ok(Node { start, body, end, anchor, kind })
}

/// An event of libyaml.
struct YamlEvent {
    kind: sys::yaml_event_type_t,
    start: usize,
    end: usize,
    /// The text of a scalar.
    scalar: String,
}

/// The events within a document; `None` if the text is not one YAML document.
fn events(text: &str) -> Option<Vec<YamlEvent>> {
    let (mut events, mut documents) = (Vec::new(), 0);
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
            let kind = filled.type_;
            let (start, end) = (filled.start_mark.index as usize, filled.end_mark.index as usize);
            let mut scalar = String::new();
            if kind == sys::YAML_SCALAR_EVENT {
                let found = &filled.data.scalar;
                let bytes = std::slice::from_raw_parts(found.value, found.length as usize);
                scalar = String::from_utf8_lossy(bytes).into_owned();
            }
            sys::yaml_event_delete(filled);
            match kind {
                sys::YAML_STREAM_END_EVENT => break documents < 2,
                sys::YAML_DOCUMENT_START_EVENT => documents += 1,
                sys::YAML_STREAM_START_EVENT | sys::YAML_DOCUMENT_END_EVENT => {}
                _ => events.push(YamlEvent { kind, start, end, scalar }),
            }
        };
        sys::yaml_parser_delete(parser);
        read.then_some(events)
    }
}
