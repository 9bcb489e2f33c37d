//! The permission rules that let the host and its agents call the helpers without being asked, and
//! their place in the user's Claude settings.
//!
//! That file belongs to the user, so an edit is one piece of text put in at one place: every byte
//! that was there stays. Where the piece goes and how it is laid out depends only on the old text,
//! and differently laid out texts tell apart what was there before: a list that was there empty is
//! filled on its line, a list that was not there gets a line for each rule. So [`remove`] finds the
//! old text again, and knows that it did by adding the rules to it once more.

use std::iter;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jsonc_parser::ast::{Array, Object, ObjectProp, Value as Node};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Value, json};

use crate::HELPERS;
use crate::error::Refusal;
use crate::exit::Exit;

/// Let a model call the skill, under the name that it has as a plugin too, for a request without
/// the slash.
const SKILLS: [&str; 2] = ["Skill(dispatch)", "Skill(dispatch:dispatch)"];

/// White space of JSON.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// The rules for the helpers whose launchers are in `bin`, an absolute path, and for the skill.
/// A path with spaces stands in quotes, as the command that it is compared with does.
pub fn rules(bin: &Path) -> Vec<String> {
    let bin = bin.to_string_lossy();
    let quote = if bin.contains(' ') { "\"" } else { "" };
    let rule = |helper| format!("Bash({quote}{bin}/{helper}{quote} *)");
    HELPERS.into_iter().map(rule).chain(SKILLS.map(Into::into)).collect()
}

/// The user's Claude settings file, which need not exist.
pub fn settings_path() -> PathBuf {
    let directory = match std::env::var_os("CLAUDE_CONFIG_DIR").filter(|value| !value.is_empty()) {
        Some(directory) => directory.into(),
        None => std::env::home_dir().unwrap_or_default().join(".claude"),
    };
    directory.join("settings.json")
}

/// The settings `text` (`None`: no such file) with those of the `rules` that it does not allow yet;
/// `None` if it allows all of them.
///
/// # Errors
/// [`Exit::Data`] with the place in the text and what to paste, if the text is not plain JSON of
/// the known shape, or the edit cannot be proven to do this and nothing else.
pub fn add(text: Option<&str>, rules: &[String]) -> Result<Option<String>> {
    let before = text.unwrap_or_default();
    Ok(added(before, rules).map_err(|wrong| wrong.refusal(before, &snippet(rules)))?)
}

/// The settings `text` without exactly these `rules`; `None` if it has none of them. What [`add`]
/// put in goes to the byte, with the lists that it made, unless somebody changed it since. (A file
/// that was missing or empty comes back as `{}`.)
///
/// # Errors
/// As for [`add`].
pub fn remove(text: Option<&str>, rules: &[String]) -> Result<Option<String>> {
    let before = text.unwrap_or_default();
    let by_hand = format!("take out of permissions.allow by hand: {}", list(rules));
    Ok(removed(before, rules).map_err(|wrong| wrong.refusal(before, &by_hand))?)
}

/// Those of the `rules` that the settings `text` does not allow yet.
pub fn missing(text: Option<&str>, rules: &[String]) -> Vec<String> {
    match Settings::parse(text.unwrap_or_default()) {
        Ok(settings) => settings.missing(rules),
        Err(_) => rules.to_vec(),
    }
}

/// The rules in the settings `text` that name a helper or the skill, whoever put them in.
pub fn for_dispatch(text: Option<&str>) -> Vec<String> {
    let Ok(settings) = Settings::parse(text.unwrap_or_default()) else { return Vec::new() };
    let named = |rule: &str| HELPERS.iter().any(|helper| rule.contains(&format!("/{helper}")));
    let ours = settings.allowed().filter(|rule| named(rule) || SKILLS.contains(rule));
    ours.map(String::from).collect()
}

/// Why a text is left as it is: in words, and the byte that shows it.
struct Wrong {
    why: String,
    at: usize,
}

impl Wrong {
    fn new(at: usize, why: impl Into<String>) -> Self {
        Self { why: why.into(), at }
    }

    fn refusal(&self, text: &str, next: &str) -> Refusal {
        let end = (0..=self.at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        let before = &text[..end];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Refusal::new(Exit::Data, format!("{} is left as it is", settings_path().display()))
            .place(format!("line {line}, column {column}: {}", self.why))
            .next(next)
    }
}

fn snippet(rules: &[String]) -> String {
    format!(r#"put in by hand: "permissions": {{"allow": [{}]}}"#, list(rules))
}

/// The rules as elements of a JSON array on one line.
fn list(rules: &[String]) -> String {
    let rules: Vec<_> = rules.iter().map(quoted).collect();
    rules.join(", ")
}

fn quoted(rule: &String) -> String {
    json!(rule).to_string()
}

fn added(before: &str, rules: &[String]) -> Result<Option<String>, Wrong> {
    let empty = before.trim_matches(SPACE).is_empty();
    let base = if empty { "{}\n" } else { before };
    let settings = Settings::parse(base)?;
    let missing = settings.missing(rules);
    if missing.is_empty() {
        return Ok(None);
    }
    let (at, piece) = settings.piece(&missing);
    let after = format!("{}{piece}{}", &base[..at], &base[at..]);

    let mut asked = values(base)?;
    let allow = &mut asked["permissions"]["allow"];
    match allow.as_array_mut() {
        Some(allow) => allow.extend(missing.into_iter().map(Value::String)),
        None => *allow = json!(missing),
    }
    if values(&after)? != asked || !is_one_piece_more(base, &after) {
        return Err(Wrong::new(at, "the rules cannot be put in here without a change elsewhere"));
    }
    Ok(Some(after))
}

fn removed(before: &str, rules: &[String]) -> Result<Option<String>, Wrong> {
    if before.trim_matches(SPACE).is_empty() {
        return Ok(None);
    }
    let settings = Settings::parse(before)?;
    let present: Vec<String> = settings
        .allowed()
        .filter(|rule| rules.iter().any(|ours| ours == rule))
        .map(String::from)
        .collect();
    if present.is_empty() {
        return Ok(None);
    }
    for piece in settings.pieces(present.len()) {
        let after = without(before, piece);
        if matches!(added(&after, &present), Ok(Some(again)) if again == before) {
            return Ok(Some(after));
        }
    }

    // Somebody changed the text since: take out the strings alone.
    let mut after = before.to_owned();
    for rule in &present {
        let Some(piece) = Settings::parse(&after)?.element(rule) else { continue };
        let shorter = without(&after, piece);
        if !is_one_piece_more(&shorter, &after) {
            return Err(Wrong::new(piece.start, "this rule cannot be taken out alone"));
        }
        after = shorter;
    }
    let mut asked = values(before)?;
    if let Some(allow) = asked["permissions"]["allow"].as_array_mut() {
        allow.retain(|rule| !rules.iter().any(|ours| rule == ours));
    }
    if values(&after)? != asked {
        return Err(Wrong::new(0, "the rules cannot be taken out without a change elsewhere"));
    }
    Ok(Some(after))
}

/// The text's meaning as other programs read it, by a second parser that knows nothing of edits.
fn values(text: &str) -> Result<Value, Wrong> {
    serde_json::from_str(text).map_err(|error| {
        let line = text.split_inclusive('\n').take(error.line().saturating_sub(1));
        let at = line.map(str::len).sum::<usize>() + error.column().saturating_sub(1);
        Wrong::new(at, error.to_string())
    })
}

/// Whether cutting one piece out of `long` gives `short`.
fn is_one_piece_more(short: &str, long: &str) -> bool {
    let (short, long) = (short.as_bytes(), long.as_bytes());
    let same = iter::zip(short, long).take_while(|(a, b)| a == b).count();
    long.len() >= short.len() && long.ends_with(&short[same..])
}

fn without(text: &str, piece: Range) -> String {
    format!("{}{}", &text[..piece.start], &text[piece.end..])
}

/// The parts of a settings text that an edit has to know, with their places.
struct Settings<'a> {
    text: &'a str,
    root: Object<'a>,
}

impl<'a> Settings<'a> {
    /// Accepts plain JSON whose `permissions.allow`, if there, is a list in an object.
    fn parse(text: &'a str) -> Result<Self, Wrong> {
        let parsed = parse_to_ast(text, &CollectOptions::default(), &plain_json())
            .map_err(|error| Wrong::new(error.range().start, error.kind().to_string()))?;
        let root = match parsed.value {
            Some(Node::Object(root)) => root,
            other => return Err(Wrong::new(other.map_or(0, |it| it.start()), "not an object {…}")),
        };
        let settings = Self { text, root };
        if let Some(node) = last(&settings.root, "permissions") {
            let Node::Object(permissions) = node else {
                return Err(Wrong::new(node.start(), "\"permissions\" is not an object {…}"));
            };
            if let Some(node) = last(permissions, "allow").filter(|node| node.as_array().is_none())
            {
                return Err(Wrong::new(node.start(), "\"allow\" is not a list […]"));
            }
        }
        Ok(settings)
    }

    fn permissions(&self) -> Option<&Object<'a>> {
        last(&self.root, "permissions")?.as_object()
    }

    fn allow(&self) -> Option<&Array<'a>> {
        last(self.permissions()?, "allow")?.as_array()
    }

    /// The rules in the list.
    fn allowed(&self) -> impl Iterator<Item = &str> {
        let elements = self.allow().map(|allow| allow.elements.as_slice()).unwrap_or_default();
        elements.iter().filter_map(as_rule)
    }

    /// Those of the rules that are not in it, each once.
    fn missing(&self, rules: &[String]) -> Vec<String> {
        let mut missing: Vec<String> = Vec::new();
        for rule in rules {
            if self.allowed().all(|allowed| allowed != rule) && !missing.contains(rule) {
                missing.push(rule.clone());
            }
        }
        missing
    }

    /// Where the rules go, and the text to put in there.
    fn piece(&self, rules: &[String]) -> (usize, String) {
        if let Some(allow) = self.allow() {
            let Some(last) = allow.elements.last() else {
                return (allow.start() + 1, list(rules));
            };
            let gap = self.gap(last.start());
            return (
                last.end(),
                rules.iter().map(|rule| format!(",{gap}{}", quoted(rule))).collect(),
            );
        }
        let newline = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let unit = self.margin(self.root.properties.first()).unwrap_or("  ");
        let allow = |margin: &str| {
            let line = |rule| format!("{newline}{margin}{unit}{}", quoted(rule));
            let lines: Vec<_> = rules.iter().map(line).collect();
            format!("\"allow\": [{}{newline}{margin}]", lines.join(","))
        };
        if let Some(permissions) = self.permissions() {
            let Some(last) = permissions.properties.last() else {
                return (permissions.start() + 1, allow(unit));
            };
            let margin = self.margin(Some(last)).map_or_else(|| unit.repeat(2), str::to_owned);
            return (last.end(), format!(",{newline}{margin}{}", allow(&margin)));
        }
        let last = self.root.properties.last();
        let margin = self.margin(last).unwrap_or(unit);
        let inner = format!("{margin}{unit}");
        let property = format!(
            "{newline}{margin}\"permissions\": {{{newline}{inner}{}{newline}{margin}}}",
            allow(&inner)
        );
        match last {
            Some(last) => (last.end(), format!(",{property}")),
            None => (self.root.start() + 1, format!("{property}{newline}")),
        }
    }

    /// The pieces that [`Self::piece`] may have put in for the last `count` elements of the list,
    /// the largest first.
    fn pieces(&self, count: usize) -> Vec<Range> {
        let (Some(permissions), Some(allow)) = (self.permissions(), self.allow()) else {
            return Vec::new();
        };
        let mut pieces = Vec::new();
        let kept = allow.elements.len() - count;
        if kept == 0 {
            pieces.extend(tail(&self.root, &self.root.properties, 1));
            pieces.extend(tail(permissions, &permissions.properties, 1));
        }
        pieces.extend(tail(allow, &allow.elements, count));
        let with_line_end = |piece: Range| {
            let rest = &self.text[piece.end..];
            let line_end = ["\r\n", "\n"].into_iter().find(|it| rest.starts_with(it));
            [line_end.map(|it| Range::new(piece.start, piece.end + it.len())), Some(piece)]
        };
        pieces.into_iter().flat_map(with_line_end).flatten().collect()
    }

    /// What to cut so that the list loses this rule, its comma and its line.
    fn element(&self, rule: &str) -> Option<Range> {
        let allow = self.allow()?;
        let n = allow.elements.iter().position(|element| as_rule(element) == Some(rule))?;
        let (start, end) = match (n, allow.elements.get(1)) {
            (0, None) => (allow.start() + 1, allow.end() - 1),
            (0, Some(next)) => (allow.elements[0].start(), next.start()),
            _ => (allow.elements[n - 1].end(), allow.elements[n].end()),
        };
        Some(Range::new(start, end))
    }

    /// The white space before the byte `at`.
    fn gap(&self, at: usize) -> &'a str {
        let before = &self.text[..at];
        &before[before.trim_end_matches(SPACE).len()..]
    }

    /// The indentation of a property that begins a line.
    fn margin(&self, property: Option<&ObjectProp>) -> Option<&'a str> {
        self.gap(property?.start()).rsplit_once('\n').map(|(_, margin)| margin)
    }
}

/// The last `count` members of a list or object with what divides them from the member before.
fn tail(whole: &impl Ranged, members: &[impl Ranged], count: usize) -> Option<Range> {
    let (kept, cut) = members.split_at_checked(members.len().checked_sub(count)?)?;
    let start = kept.last().map_or(whole.start() + 1, Ranged::end);
    Some(Range::new(start, cut.last()?.end()))
}

/// The value of a property; of several with that name, the one that counts.
fn last<'n, 'a>(object: &'n Object<'a>, name: &str) -> Option<&'n Node<'a>> {
    let same_name = |property: &&ObjectProp| property.name.as_str() == name;
    object.properties.iter().rfind(same_name).map(|property| &property.value)
}

fn as_rule<'n>(element: &'n Node) -> Option<&'n str> {
    element.as_string_lit().map(|literal| literal.value.as_ref())
}

fn plain_json() -> ParseOptions {
    ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [&str; 2] = ["Bash(/s/bin/dispatch-spawn *)", "Skill(dispatch)"];

    fn two() -> Vec<String> {
        RULES.map(String::from).into()
    }

    /// `added` where the rules stand as `R1` and `R2`.
    fn with_rules(text: &str) -> String {
        text.replace("R1", RULES[0]).replace("R2", RULES[1])
    }

    #[test]
    fn rules_name_each_launcher_by_its_exact_path() {
        let all = rules(Path::new("/s/bin"));
        assert_eq!(all.len(), 7);
        assert!(RULES.iter().all(|rule| all.iter().any(|it| it == rule)), "{all:?}");
        let spaced = rules(Path::new("/my skills/bin"));
        assert_eq!(spaced[1], r#"Bash("/my skills/bin/dispatch-spawn" *)"#);
    }

    #[test]
    fn adding_keeps_every_byte_and_removing_restores_them() {
        let created =
            "  \"permissions\": {\n    \"allow\": [\n      \"R1\",\n      \"R2\"\n    ]\n  }";
        let table = [
            // Nothing there.
            ("{}", format!("{{\n{created}\n}}")),
            ("{}\n", format!("{{\n{created}\n}}\n")),
            ("{ }", format!("{{\n{created}\n }}")),
            ("{\n}\n", format!("{{\n{created}\n\n}}\n")),
            // No permissions: indented as the file is.
            ("{\n  \"a\": 1\n}\n", format!("{{\n  \"a\": 1,\n{created}\n}}\n")),
            (
                "{\n    \"a\": 1\n}",
                "{\n    \"a\": 1,\n    \"permissions\": {\n        \"allow\": [\n            \"R1\",\n            \"R2\"\n        ]\n    }\n}".into(),
            ),
            (
                "{\n\t\"a\": {}\n}",
                "{\n\t\"a\": {},\n\t\"permissions\": {\n\t\t\"allow\": [\n\t\t\t\"R1\",\n\t\t\t\"R2\"\n\t\t]\n\t}\n}".into(),
            ),
            (
                "{\r\n  \"a\": 1\r\n}\r\n",
                format!("{{\r\n  \"a\": 1,\r\n{}\r\n}}\r\n", created.replace('\n', "\r\n")),
            ),
            ("{\"a\":1}", format!("{{\"a\":1,\n{created}}}")),
            // Permissions without allow.
            (
                "{\n  \"permissions\": {\n    \"deny\": []\n  },\n  \"a\": 1\n}",
                "{\n  \"permissions\": {\n    \"deny\": [],\n    \"allow\": [\n      \"R1\",\n      \"R2\"\n    ]\n  },\n  \"a\": 1\n}".into(),
            ),
            (
                "{\n  \"permissions\": {}\n}",
                "{\n  \"permissions\": {\"allow\": [\n    \"R1\",\n    \"R2\"\n  ]}\n}".into(),
            ),
            (
                "{\"permissions\":{\"deny\":[]}}",
                "{\"permissions\":{\"deny\":[],\n    \"allow\": [\n      \"R1\",\n      \"R2\"\n    ]}}".into(),
            ),
            // An empty list is filled on its line.
            ("{\"permissions\":{\"allow\":[]}}", "{\"permissions\":{\"allow\":[\"R1\", \"R2\"]}}".into()),
            (
                "{\n  \"permissions\": {\n    \"allow\": [\n    ]\n  }\n}",
                "{\n  \"permissions\": {\n    \"allow\": [\"R1\", \"R2\"\n    ]\n  }\n}".into(),
            ),
            // A list with rules goes on as it is.
            (
                "{\"permissions\":{\"allow\":[\"x\",\"y\"],\"deny\":[]}}",
                "{\"permissions\":{\"allow\":[\"x\",\"y\",\"R1\",\"R2\"],\"deny\":[]}}".into(),
            ),
            (
                "{\"permissions\": {\"allow\": [\"ä €\", \"😀\"]}} \t\n\n",
                "{\"permissions\": {\"allow\": [\"ä €\", \"😀\", \"R1\", \"R2\"]}} \t\n\n".into(),
            ),
            (
                "{\r\n\t\"permissions\" : {\"allow\" :[\r\n\t\t\"x\"\r\n\t] }\r\n}",
                "{\r\n\t\"permissions\" : {\"allow\" :[\r\n\t\t\"x\",\r\n\t\t\"R1\",\r\n\t\t\"R2\"\r\n\t] }\r\n}".into(),
            ),
            // Numbers and escapes stay as they are written; of two properties the last one counts.
            (
                "{\"n\":1.50e+1,\"s\":\"\\u00e4\\/\",\"permissions\":1,\"permissions\":{\"allow\":[ \"x\" ]}}",
                "{\"n\":1.50e+1,\"s\":\"\\u00e4\\/\",\"permissions\":1,\"permissions\":{\"allow\":[ \"x\", \"R1\", \"R2\" ]}}".into(),
            ),
        ];
        for (before, after) in table {
            let after = with_rules(&after);
            let added =
                add(Some(before), &two()).unwrap_or_else(|error| panic!("{before}: {error}"));
            assert_eq!(added.as_deref(), Some(after.as_str()), "{before}");
            assert_eq!(add(Some(&after), &two()).expect("allowed"), None, "{before}");
            let removed = remove(Some(&after), &two()).expect("removable");
            assert_eq!(removed.as_deref(), Some(before));
            assert_eq!(remove(Some(before), &two()).expect("nothing to do"), None, "{before}");
        }
    }

    #[test]
    fn a_missing_or_empty_file_becomes_a_pretty_one() {
        for before in [None, Some(""), Some(" \n")] {
            let after = add(before, &two()).expect("addable").expect("something to add");
            let pretty = serde_json::to_string_pretty(&json!({"permissions": {"allow": RULES}}));
            assert_eq!(after, pretty.expect("valid") + "\n");
            assert_eq!(remove(Some(&after), &two()).expect("removable").as_deref(), Some("{}\n"));
            assert_eq!(remove(before, &two()).expect("nothing to do"), None);
        }
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let before = with_rules("{\"permissions\":{\"allow\":[\"R2\"]}}");
        let after = with_rules("{\"permissions\":{\"allow\":[\"R2\",\"R1\"]}}");
        let twice = [two(), two()].concat();
        assert_eq!(add(Some(&before), &twice).expect("addable"), Some(after));
    }

    #[test]
    fn after_other_edits_exactly_the_rules_go() {
        let table = [
            (
                "{\"permissions\":{\"allow\":[\"R1\",\"x\",\"R2\"]}}",
                "{\"permissions\":{\"allow\":[\"x\"]}}",
            ),
            (
                "{\"permissions\": {\"allow\": [\n  \"R1\",\n  \"R2\",\n  \"x\", 1\n]}}",
                "{\"permissions\": {\"allow\": [\n  \"x\", 1\n]}}",
            ),
            (
                "{\"permissions\":{\"allow\":[ \"R2\" , \"R1\",\"R2\" ]}}",
                "{\"permissions\":{\"allow\":[]}}",
            ),
            (
                "{\n \"permissions\": {\n  \"allow\": [\n   \"R1\"\n  ],\n  \"deny\": []\n }\n}",
                "{\n \"permissions\": {\n  \"allow\": [],\n  \"deny\": []\n }\n}",
            ),
        ];
        for (before, after) in table {
            let removed = remove(Some(&with_rules(before)), &two()).expect("removable");
            assert_eq!(removed.as_deref(), Some(after));
        }
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let table = [
            ("{\n  // mine\n  \"a\": 1\n}", "line 2, column 3: "),
            ("{\"a\": 1} /* end */", "line 1, column 10: "),
            ("{\"a\": 1,}", "line 1, column 8: "),
            ("{\"ä\": 'x'}", "line 1, column 7: "),
            ("{\"a\" 1}", "line 1, column "),
            ("{\"a\": 1", "line 1, column "),
            ("{} {}", "line 1, column "),
            ("hello", "line 1, column 1: "),
            ("[1]", "line 1, column 1: not an object"),
            ("\u{feff}{}", "line 1, column 1: "),
            ("{\n\"permissions\": null}", "line 2, column 16: \"permissions\" is not an object"),
            ("{\"permissions\": {\"allow\": \"x\"}}", "line 1, column 27: \"allow\" is not a list"),
            ("{\"a\": \"\\ud800\"}", "line 1, column "),
            ("{\"a\": 1e999}", "line 1, column "),
        ];
        for (text, place) in table {
            let error = add(Some(text), &two()).expect_err(text);
            assert_eq!(crate::error::exit_of(&error), Exit::Data, "{text}");
            let lines = error.to_string();
            assert!(lines.contains(&format!("\n  {place}")), "{text}: {lines}");
            assert!(
                lines.contains(&with_rules(r#""permissions": {"allow": ["R1", "R2"]}"#)),
                "{lines}"
            );
            assert_eq!(lines.lines().count(), 3, "{lines}");
        }
        assert!(remove(Some("{\n// R1\n}"), &two()).is_err());
    }

    /// A small generator (xorshift), so that a failure comes again.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }

        fn space(&mut self) -> String {
            let pieces = [" ", "\n", "\r\n", "\t", "  ", "\n    "];
            (0..self.below(3)).map(|_| pieces[self.below(6) as usize]).collect()
        }

        fn members(
            &mut self,
            most: u64,
            mut member: impl FnMut(&mut Self, u64) -> String,
        ) -> String {
            let mut text = String::new();
            let count = self.below(most + 1);
            for n in 0..count {
                text += &self.space();
                text += &member(self, n);
                text += &self.space();
                text += if n + 1 < count { "," } else { "" };
            }
            if count == 0 { self.space() } else { text }
        }

        /// An object whose properties are values of any kind, one perhaps named `special`.
        fn object(&mut self, special: &str, mut value: impl FnMut(&mut Self) -> String) -> String {
            let chosen = self.below(4);
            let members = self.members(3, |dice, n| {
                let (gap, colon) = (dice.space(), dice.space());
                if n == chosen {
                    return format!("\"{special}\"{gap}:{colon}{}", value(dice));
                }
                let other =
                    ["1.0", "\"ü\\n{\"", "[]", "{\"allow\":[]}", "null"][dice.below(5) as usize];
                format!("\"k{n}\"{gap}:{colon}{other}")
            });
            format!("{{{members}}}")
        }

        fn settings(&mut self) -> String {
            let text = self.object("permissions", |dice| {
                dice.object("allow", |dice| {
                    let list = dice.members(3, |_, n| format!("\"Bash(x{n} \\\"*)\""));
                    format!("[{list}]")
                })
            });
            format!("{}{text}{}", self.space(), self.space())
        }
    }

    #[test]
    fn any_settings_come_back_as_they_were() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..5_000 {
            let before = dice.settings();
            let added =
                add(Some(&before), &two()).unwrap_or_else(|error| panic!("{before:?}: {error}"));
            let after = added.expect("something to add");
            assert_eq!(remove(Some(&after), &two()).expect("removable"), Some(before));
        }
    }
}
