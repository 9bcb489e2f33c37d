//! Edits of the permission rules in Claude Code's settings, a file that belongs to the user.
//!
//! An edit of a list inserts one piece of text at one place, so every byte that was there stays. The
//! place and the layout depend only on the old text. Old texts that differ are laid out differently:
//! an empty list is filled on its line, a new list gets one line for each rule. [`remove`] relies on
//! this: it finds the old text again and proves it by adding the rules once more.

use anyhow::Result;
use indexmap::IndexSet;
use jsonc_parser::ast::{Array, Object, ObjectProp, Value as Node};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Value, json};

use crate::error::{Exit, Refusal};
use crate::host::{LISTS, Rule, names_dispatch};
use crate::text::line_and_column;
use crate::tools::claude::settings_path;

/// The white space of JSON.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The settings `text` (`None`: no such file) with all of the `rules`; `None` if it has them already.
///
/// # Errors
/// [`Exit::Data`] with the place in the text and what to paste, if the text is not plain JSON of
/// the known shape, or if it cannot be proved that nothing else changes.
pub fn add(text: Option<&str>, rules: &[Rule]) -> Result<Option<String>> {
    edit(text, rules, added, LISTS, "add")
}

/// The settings `text` without the `rules`; `None` if it has none of them. Rules that [`add`]
/// inserted go to the byte, with the lists it made, unless the text was changed since. (A file that
/// was missing or empty becomes `{}`.)
///
/// # Errors
/// As for [`add`].
pub fn remove(text: Option<&str>, rules: &[Rule]) -> Result<Option<String>> {
    // In the reverse order of adding.
    let [first, last] = LISTS;
    edit(text, rules, removed, [last, first], "remove")
}

/// Edits one list, then the other.
fn edit(
    text: Option<&str>,
    rules: &[Rule],
    edit_list: impl Fn(&str, &str, &[String]) -> Result<Option<String>, Obstacle>,
    lists: [&str; 2],
    verb: &str,
) -> Result<Option<String>> {
    let (mark, before) = split_mark(text);
    let mut after = before.to_owned();
    for list in lists {
        let edited = edit_list(&after, list, &texts(rules, list)).map_err(|(at, why)| {
            let (line, column) = line_and_column(&after, at);
            Refusal::new(Exit::Data, format!("{} was not changed", settings_path().display()))
                .place(format!("line {line}, column {column}: {why}"))
                .next(format!("{verb} by hand: {}", snippet(rules)))
        })?;
        after = edited.unwrap_or(after);
    }
    Ok((after != before).then(|| format!("{mark}{after}")))
}

/// The byte order mark of a file, which JSON parsers reject, and the text behind it.
fn split_mark(text: Option<&str>) -> (&str, &str) {
    let text = text.unwrap_or_default();
    text.split_at(if text.starts_with('\u{feff}') { 3 } else { 0 })
}

/// The texts of the rules in a list, each once.
fn texts(rules: &[Rule], list: &str) -> Vec<String> {
    let texts = rules.iter().filter(|rule| rule.list == list).map(|rule| rule.text.clone());
    Vec::from_iter(texts.collect::<IndexSet<_>>())
}

/// The `rules` that the settings `text` does not have, each once.
pub fn missing(text: Option<&str>, rules: &[Rule]) -> Vec<Rule> {
    let there = there(text);
    let missing = rules.iter().filter(|rule| !there.contains(rule)).cloned();
    Vec::from_iter(missing.collect::<IndexSet<_>>())
}

/// The rules in the settings `text` that name a helper or the skill, whoever added them.
pub fn for_dispatch(text: Option<&str>) -> Vec<Rule> {
    there(text).into_iter().filter(|rule| names_dispatch(&rule.text)).collect()
}

/// All rules of the settings `text`; none if it cannot be read.
fn there(text: Option<&str>) -> Vec<Rule> {
    let Ok(settings) = Settings::parse(split_mark(text).1) else { return Vec::new() };
    let of = |list| settings.rules(list).map(move |text| Rule { list, text: text.into() });
    LISTS.into_iter().flat_map(of).collect()
}

/// Why a text cannot be edited, with the byte that shows it.
type Obstacle = (usize, String);

/// The rules as they stand in the settings.
pub fn snippet(rules: &[Rule]) -> String {
    let lists = LISTS.map(|name| (name, texts(rules, name)));
    let lists = lists.iter().filter(|(_, rules)| !rules.is_empty());
    let lists: Vec<_> =
        lists.map(|(name, rules)| format!(r#""{name}": [{}]"#, elements(rules))).collect();
    format!(r#""permissions": {{{}}}"#, lists.join(", "))
}

/// The rules as elements of a JSON array on one line.
fn elements(rules: &[String]) -> String {
    let rules: Vec<_> = rules.iter().map(quoted).collect();
    rules.join(", ")
}

fn quoted(rule: &String) -> String {
    json!(rule).to_string()
}

fn added(before: &str, list: &str, rules: &[String]) -> Result<Option<String>, Obstacle> {
    let empty = before.trim_matches(SPACE).is_empty();
    let base = if empty { "{}\n" } else { before };
    let settings = Settings::parse(base)?;
    let mut missing = rules.to_vec();
    missing.retain(|rule| settings.rules(list).all(|held| held != rule));
    if missing.is_empty() {
        return Ok(None);
    }
    let (at, piece) = settings.piece(list, &missing);
    let after = format!("{}{piece}{}", &base[..at], &base[at..]);
    let mut asked = settings.value;
    let held = &mut asked["permissions"][list];
    match held.as_array_mut() {
        Some(held) => held.extend(missing.into_iter().map(Value::String)),
        None => *held = json!(missing),
    }
    if values(&after)? != asked {
        return Err((at, "the rules cannot be added here without another change".into()));
    }
    Ok(Some(after))
}

fn removed(before: &str, list: &str, rules: &[String]) -> Result<Option<String>, Obstacle> {
    if before.trim_matches(SPACE).is_empty() {
        return Ok(None);
    }
    let settings = Settings::parse(before)?;
    let mut present: Vec<String> = settings.rules(list).map(String::from).collect();
    present.retain(|rule| rules.contains(rule));
    if present.is_empty() {
        return Ok(None);
    }
    for piece in settings.pieces(list, present.len()) {
        let after = without(before, piece);
        if matches!(added(&after, list, &present), Ok(Some(again)) if again == before) {
            return Ok(Some(after));
        }
    }

    // The text was changed since, so remove only the strings.
    let mut after = before.to_owned();
    for rule in &present {
        let Some(piece) = Settings::parse(&after)?.element(list, rule) else { continue };
        after = without(&after, piece);
    }
    let mut asked = settings.value;
    if let Some(held) = asked["permissions"][list].as_array_mut() {
        held.retain(|rule| !rules.iter().any(|ours| rule == ours));
    }
    if values(&after)? != asked {
        return Err((0, "the rules cannot be removed without another change".into()));
    }
    Ok(Some(after))
}

/// The values of the text, by a second parser that is independent of the edits.
fn values(text: &str) -> Result<Value, Obstacle> {
    serde_json::from_slice(text.as_bytes()).map_err(|error| {
        let line = text.split_inclusive('\n').take(error.line().saturating_sub(1));
        let at = line.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
        (at, error.to_string().split(" at line ").next().unwrap_or_default().into())
    })
}

fn without(text: &str, piece: Range) -> String {
    format!("{}{}", &text[..piece.start], &text[piece.end..])
}

/// A parsed settings text.
struct Settings<'a> {
    text: &'a str,
    root: Object<'a>,
    value: Value,
}

impl<'a> Settings<'a> {
    /// Accepts plain JSON in which `permissions` is an object or missing, and its lists are lists.
    fn parse(text: &'a str) -> Result<Self, Obstacle> {
        let value = values(text)?;
        // The parser with places takes more than JSON, which the other one has refused.
        let parsed = parse_to_ast(text, &CollectOptions::default(), &ParseOptions::default())
            .map_err(|error| (error.range().start, error.kind().to_string()))?;
        let root = match parsed.value {
            Some(Node::Object(root)) => root,
            other => return Err((other.map_or(0, |it| it.start()), "not an object {…}".into())),
        };
        let settings = Self { text, root, value };
        let permissions = last(&settings.root, "permissions");
        if let Some(node) = permissions.filter(|node| node.as_object().is_none()) {
            return Err((node.start(), "\"permissions\" is not an object {…}".into()));
        }
        for name in LISTS {
            let list = permissions.and_then(|it| last(it.as_object()?, name));
            if let Some(node) = list.filter(|node| node.as_array().is_none()) {
                return Err((node.start(), format!("\"{name}\" is not a list […]")));
            }
        }
        Ok(settings)
    }

    fn permissions(&self) -> Option<&Object<'a>> {
        last(&self.root, "permissions")?.as_object()
    }

    fn list(&self, list: &str) -> Option<&Array<'a>> {
        last(self.permissions()?, list)?.as_array()
    }

    /// The rules in the list.
    fn rules(&self, list: &str) -> impl Iterator<Item = &str> {
        let held = self.value["permissions"][list].as_array();
        held.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The text that adds the rules to the list, and its place.
    fn piece(&self, list: &str, rules: &[String]) -> (usize, String) {
        if let Some(held) = self.list(list) {
            let Some(last) = held.elements.last() else {
                return (held.start() + 1, elements(rules));
            };
            let gap = self.gap(last.start());
            let rule = |rule| format!(",{gap}{}", quoted(rule));
            return (last.end(), rules.iter().map(rule).collect());
        }
        let newline = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let unit = self.margin(self.root.properties.first()).unwrap_or("  ");
        // A property whose members have lines of their own.
        let property = |margin: &str, name, [open, close]: [char; 2], members: &[String]| {
            let line = format!("{newline}{margin}{unit}");
            let members = members.join(&format!(",{line}"));
            format!("\"{name}\": {open}{line}{members}{newline}{margin}{close}")
        };
        let rules: Vec<String> = rules.iter().map(quoted).collect();
        let made = |margin: &str| property(margin, list, ['[', ']'], &rules);
        if let Some(permissions) = self.permissions() {
            let Some(last) = permissions.properties.last() else {
                return (permissions.start() + 1, made(unit));
            };
            let margin = self.margin(Some(last)).map_or_else(|| unit.repeat(2), str::to_owned);
            return (last.end(), format!(",{newline}{margin}{}", made(&margin)));
        }
        let last = self.root.properties.last();
        let margin = self.margin(last).unwrap_or(unit);
        let made = made(&format!("{margin}{unit}"));
        let made = property(margin, "permissions", ['{', '}'], &[made]);
        match last {
            Some(last) => (last.end(), format!(",{newline}{margin}{made}")),
            None => (self.root.start() + 1, format!("{newline}{margin}{made}{newline}")),
        }
    }

    /// The pieces that [`Self::piece`] may have inserted for the last `count` elements of the list,
    /// largest first.
    fn pieces(&self, list: &str, count: usize) -> Vec<Range> {
        let (Some(permissions), Some(held)) = (self.permissions(), self.list(list)) else {
            return Vec::new();
        };
        let mut pieces = Vec::new();
        if held.elements.len() == count {
            if let Some(made) = tail(&self.root, &self.root.properties, 1) {
                // An empty object gets a line end behind it.
                let rest = &self.text[made.end..];
                let line_end = ["\r\n", "\n"].into_iter().find(|it| rest.starts_with(it));
                pieces.extend(line_end.map(|it| Range::new(made.start, made.end + it.len())));
                pieces.push(made);
            }
            pieces.extend(tail(permissions, &permissions.properties, 1));
        }
        pieces.extend(tail(held, &held.elements, count));
        pieces
    }

    /// The piece with this rule, its comma and its line.
    fn element(&self, list: &str, rule: &str) -> Option<Range> {
        let held = self.list(list)?;
        let n = held.elements.iter().position(|element| as_rule(element) == Some(rule))?;
        let (start, end) = match (n, held.elements.get(1)) {
            (0, None) => (held.start() + 1, held.end() - 1),
            (0, Some(next)) => (held.elements[0].start(), next.start()),
            _ => (held.elements[n - 1].end(), held.elements[n].end()),
        };
        Some(Range::new(start, end))
    }

    /// The white space before the byte `at`.
    fn gap(&self, at: usize) -> &'a str {
        let before = &self.text[..at];
        &before[before.trim_end_matches(SPACE).len()..]
    }

    /// The indentation of a property at the start of a line.
    fn margin(&self, property: Option<&ObjectProp>) -> Option<&'a str> {
        self.gap(property?.start()).rsplit_once('\n').map(|(_, margin)| margin)
    }
}

/// The last `count` members of a list or object, with the separator before them.
fn tail(whole: &impl Ranged, members: &[impl Ranged], count: usize) -> Option<Range> {
    let (kept, cut) = members.split_at_checked(members.len().checked_sub(count)?)?;
    let start = kept.last().map_or(whole.start() + 1, Ranged::end);
    Some(Range::new(start, cut.last()?.end()))
}

/// The value of a property; of several with the same name, the last one counts.
fn last<'n, 'a>(object: &'n Object<'a>, name: &str) -> Option<&'n Node<'a>> {
    let same_name = |property: &&ObjectProp| property.name.as_str() == name;
    object.properties.iter().rfind(same_name).map(|property| &property.value)
}

fn as_rule<'n>(element: &'n Node) -> Option<&'n str> {
    element.as_string_lit().map(|literal| literal.value.as_ref())
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
