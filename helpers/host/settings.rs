//! The permission rules that let the host and its agents call the helpers without being asked, but
//! for what gives a worker more than the person has agreed to; and their place in the user's Claude
//! settings.
//!
//! That file belongs to the user, so an edit is one piece of text put in at one place: every byte
//! that was there stays. Where the piece goes and how it is laid out depends only on the old text,
//! and differently laid out texts tell apart what was there before: a list that was there empty is
//! filled on its line, a list that was not there gets a line for each rule. So [`remove`] finds the
//! old text again, and knows that it did by adding the rules to it once more. The two lists are two
//! such edits, one after the other.

use std::fmt;
use std::iter;
use std::path::{Path, PathBuf};

use anyhow::Result;
use jsonc_parser::ast::{Array, Object, ObjectProp, Value as Node};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Value, json};

use crate::error::Refusal;
use crate::exit::Exit;
use crate::process::HELPERS;

/// Let a model call the skill, under the name that it has as a plugin too, for a request without
/// the slash.
const SKILLS: [&str; 2] = ["Skill(dispatch)", "Skill(dispatch:dispatch)"];

/// What a host asks the person for, although it may call the helper: another program, another level
/// of access, another directory, a worker's worker (which may do more than it), and rules like these.
/// Each as a part of the command's words.
const ASKED: [(&str, &str); 8] = [
    ("dispatch-config", " add-backend"),
    ("dispatch-config", " set-access"),
    ("dispatch-config", " setup*--full"),
    ("dispatch-config", " allow"),
    ("dispatch-spawn", " --access*full"),
    ("dispatch-spawn", " --access*write"),
    ("dispatch-spawn", " -C"),
    ("dispatch-spawn", " --nested"),
];

/// White space of JSON.
const SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// A list of the settings' `permissions`. What stands in both of them is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum List {
    /// Runs unasked.
    Allow,
    /// Is asked.
    Ask,
}

impl List {
    const BOTH: [Self; 2] = [Self::Allow, Self::Ask];

    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
        }
    }
}

/// A permission rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The list that it stands in.
    pub list: List,
    /// The rule itself.
    pub text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.list.name(), self.text)
    }
}

/// The rules for the helpers whose launchers are in `bin`, an absolute path, and for the skill.
/// To allow a path with spaces it stands in quotes, as the command that it is compared with does. To
/// ask it does not: then Claude Code compares what the words are without any quotes in them.
pub fn rules(bin: &Path) -> Vec<Rule> {
    let bin = bin.to_string_lossy();
    let quote = if bin.contains(' ') { "\"" } else { "" };
    let allow = HELPERS.into_iter().map(|helper| format!("Bash({quote}{bin}/{helper}{quote} *)"));
    let allow = allow.chain(SKILLS.map(Into::into));
    let ask = ASKED.into_iter().map(|(helper, words)| format!("Bash({bin}/{helper}*{words}*)"));
    // Claude Code looks through xargs at the helper, but does not see what words xargs adds.
    let ask = ask.chain([format!("Bash(xargs *{bin}/dispatch-*)")]);
    let allow = allow.map(|text| Rule { list: List::Allow, text });
    allow.chain(ask.map(|text| Rule { list: List::Ask, text })).collect()
}

/// Whether this argument of the helper is a word for which the person is asked.
pub fn is_asked(helper: &str, argument: &str) -> bool {
    let words = ASKED.iter().filter(|(name, _)| *name == helper);
    let mut words =
        words.flat_map(|(_, words)| words.split([' ', '*'])).filter(|it| !it.is_empty());
    words.any(|word| argument == word || word.starts_with('-') && argument.starts_with(word))
}

/// The user's Claude settings file, which need not exist.
pub fn settings_path() -> PathBuf {
    let directory = match std::env::var_os("CLAUDE_CONFIG_DIR").filter(|value| !value.is_empty()) {
        Some(directory) => directory.into(),
        None => std::env::home_dir().unwrap_or_default().join(".claude"),
    };
    directory.join("settings.json")
}

/// The settings `text` (`None`: no such file) with those of the `rules` that it does not hold yet;
/// `None` if it holds all of them.
///
/// # Errors
/// [`Exit::Data`] with the place in the text and what to paste, if the text is not plain JSON of
/// the known shape, or the edit cannot be proven to do this and nothing else.
pub fn add(text: Option<&str>, rules: &[Rule]) -> Result<Option<String>> {
    edit(text, rules, added, List::BOTH, || format!("put in by hand: {}", snippet(rules)))
}

/// The settings `text` without exactly these `rules`; `None` if it has none of them. What [`add`]
/// put in goes to the byte, with the lists that it made, unless somebody changed it since. (A file
/// that was missing or empty comes back as `{}`.)
///
/// # Errors
/// As for [`add`].
pub fn remove(text: Option<&str>, rules: &[Rule]) -> Result<Option<String>> {
    // What was put in last goes first.
    let [first, last] = List::BOTH;
    edit(text, rules, removed, [last, first], || format!("take out by hand: {}", snippet(rules)))
}

/// Edits one list, then the other.
fn edit(
    text: Option<&str>,
    rules: &[Rule],
    one: impl Fn(&str, List, &[String]) -> Result<Option<String>, Wrong>,
    lists: [List; 2],
    next: impl Fn() -> String,
) -> Result<Option<String>> {
    let before = text.unwrap_or_default();
    let mut after = before.to_owned();
    for list in lists {
        match one(&after, list, &of(rules, list)) {
            Ok(Some(edited)) => after = edited,
            Ok(None) => {}
            Err(wrong) => return Err(wrong.refusal(&after, &next()).into()),
        }
    }
    Ok((after != before).then_some(after))
}

/// Those of the rules that stand in this list.
fn of(rules: &[Rule], list: List) -> Vec<String> {
    rules.iter().filter(|rule| rule.list == list).map(|rule| rule.text.clone()).collect()
}

/// Those of the `rules` that the settings `text` does not hold yet.
pub fn missing(text: Option<&str>, rules: &[Rule]) -> Vec<Rule> {
    let settings = Settings::parse(text.unwrap_or_default());
    let there = |rule: &Rule| {
        settings.as_ref().is_ok_and(|it| it.rules(rule.list).any(|text| text == rule.text))
    };
    rules.iter().filter(|rule| !there(rule)).cloned().collect()
}

/// The rules in the settings `text` that name a helper or the skill, whoever put them in.
pub fn for_dispatch(text: Option<&str>) -> Vec<Rule> {
    let Ok(settings) = Settings::parse(text.unwrap_or_default()) else { return Vec::new() };
    let named = |rule: &str| {
        let names = HELPERS.iter().chain(["dispatch-*"].iter());
        names.into_iter().any(|name| rule.contains(&format!("/{name}"))) || SKILLS.contains(&rule)
    };
    let of = |list| {
        let ours = settings.rules(list).filter(|text| named(text));
        ours.map(|text| Rule { list, text: text.into() }).collect::<Vec<_>>()
    };
    List::BOTH.map(of).concat()
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

/// The rules as they stand in the settings.
fn snippet(rules: &[Rule]) -> String {
    let lists = List::BOTH.map(|list| (list.name(), of(rules, list)));
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

fn added(before: &str, list: List, rules: &[String]) -> Result<Option<String>, Wrong> {
    let empty = before.trim_matches(SPACE).is_empty();
    let base = if empty { "{}\n" } else { before };
    let settings = Settings::parse(base)?;
    let missing = settings.missing(list, rules);
    if missing.is_empty() {
        return Ok(None);
    }
    let (at, piece) = settings.piece(list, &missing);
    let after = format!("{}{piece}{}", &base[..at], &base[at..]);

    let mut asked = values(base)?;
    let held = &mut asked["permissions"][list.name()];
    match held.as_array_mut() {
        Some(held) => held.extend(missing.into_iter().map(Value::String)),
        None => *held = json!(missing),
    }
    if values(&after)? != asked || !is_one_piece_more(base, &after) {
        return Err(Wrong::new(at, "the rules cannot be put in here without a change elsewhere"));
    }
    Ok(Some(after))
}

fn removed(before: &str, list: List, rules: &[String]) -> Result<Option<String>, Wrong> {
    if before.trim_matches(SPACE).is_empty() {
        return Ok(None);
    }
    let settings = Settings::parse(before)?;
    let present: Vec<String> = settings
        .rules(list)
        .filter(|rule| rules.iter().any(|ours| ours == rule))
        .map(String::from)
        .collect();
    if present.is_empty() {
        return Ok(None);
    }
    for piece in settings.pieces(list, present.len()) {
        let after = without(before, piece);
        if matches!(added(&after, list, &present), Ok(Some(again)) if again == before) {
            return Ok(Some(after));
        }
    }

    // Somebody changed the text since: take out the strings alone.
    let mut after = before.to_owned();
    for rule in &present {
        let Some(piece) = Settings::parse(&after)?.element(list, rule) else { continue };
        let shorter = without(&after, piece);
        if !is_one_piece_more(&shorter, &after) {
            return Err(Wrong::new(piece.start, "this rule cannot be taken out alone"));
        }
        after = shorter;
    }
    let mut asked = values(before)?;
    if let Some(held) = asked["permissions"][list.name()].as_array_mut() {
        held.retain(|rule| !rules.iter().any(|ours| rule == ours));
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
    /// Accepts plain JSON whose `permissions`, if there, is an object, and its two lists are lists.
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
            for name in List::BOTH.map(List::name) {
                let node = last(permissions, name).filter(|node| node.as_array().is_none());
                if let Some(node) = node {
                    return Err(Wrong::new(node.start(), format!("\"{name}\" is not a list […]")));
                }
            }
        }
        Ok(settings)
    }

    fn permissions(&self) -> Option<&Object<'a>> {
        last(&self.root, "permissions")?.as_object()
    }

    fn list(&self, list: List) -> Option<&Array<'a>> {
        last(self.permissions()?, list.name())?.as_array()
    }

    /// The rules in the list.
    fn rules(&self, list: List) -> impl Iterator<Item = &str> {
        let elements = self.list(list).map(|list| list.elements.as_slice()).unwrap_or_default();
        elements.iter().filter_map(as_rule)
    }

    /// Those of the rules that are not in it, each once.
    fn missing(&self, list: List, rules: &[String]) -> Vec<String> {
        let mut missing: Vec<String> = Vec::new();
        for rule in rules {
            if self.rules(list).all(|held| held != rule) && !missing.contains(rule) {
                missing.push(rule.clone());
            }
        }
        missing
    }

    /// Where the rules go, and the text to put in there.
    fn piece(&self, list: List, rules: &[String]) -> (usize, String) {
        if let Some(held) = self.list(list) {
            let Some(last) = held.elements.last() else {
                return (held.start() + 1, elements(rules));
            };
            let gap = self.gap(last.start());
            return (
                last.end(),
                rules.iter().map(|rule| format!(",{gap}{}", quoted(rule))).collect(),
            );
        }
        let newline = if self.text.contains("\r\n") { "\r\n" } else { "\n" };
        let unit = self.margin(self.root.properties.first()).unwrap_or("  ");
        let property = |margin: &str| {
            let line = |rule| format!("{newline}{margin}{unit}{}", quoted(rule));
            let lines: Vec<_> = rules.iter().map(line).collect();
            format!("\"{}\": [{}{newline}{margin}]", list.name(), lines.join(","))
        };
        if let Some(permissions) = self.permissions() {
            let Some(last) = permissions.properties.last() else {
                return (permissions.start() + 1, property(unit));
            };
            let margin = self.margin(Some(last)).map_or_else(|| unit.repeat(2), str::to_owned);
            return (last.end(), format!(",{newline}{margin}{}", property(&margin)));
        }
        let last = self.root.properties.last();
        let margin = self.margin(last).unwrap_or(unit);
        let inner = format!("{margin}{unit}");
        let permissions = format!(
            "{newline}{margin}\"permissions\": {{{newline}{inner}{}{newline}{margin}}}",
            property(&inner)
        );
        match last {
            Some(last) => (last.end(), format!(",{permissions}")),
            None => (self.root.start() + 1, format!("{permissions}{newline}")),
        }
    }

    /// The pieces that [`Self::piece`] may have put in for the last `count` elements of the list,
    /// the largest first.
    fn pieces(&self, list: List, count: usize) -> Vec<Range> {
        let (Some(permissions), Some(held)) = (self.permissions(), self.list(list)) else {
            return Vec::new();
        };
        let mut pieces = Vec::new();
        let kept = held.elements.len() - count;
        if kept == 0 {
            pieces.extend(tail(&self.root, &self.root.properties, 1));
            pieces.extend(tail(permissions, &permissions.properties, 1));
        }
        pieces.extend(tail(held, &held.elements, count));
        let with_line_end = |piece: Range| {
            let rest = &self.text[piece.end..];
            let line_end = ["\r\n", "\n"].into_iter().find(|it| rest.starts_with(it));
            [line_end.map(|it| Range::new(piece.start, piece.end + it.len())), Some(piece)]
        };
        pieces.into_iter().flat_map(with_line_end).flatten().collect()
    }

    /// What to cut so that the list loses this rule, its comma and its line.
    fn element(&self, list: List, rule: &str) -> Option<Range> {
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

    const ASK: [&str; 2] = ["Bash(/s/bin/dispatch-spawn* -C*)", "Bash(xargs *)"];

    fn in_list(list: List, rules: [&str; 2]) -> Vec<Rule> {
        rules.map(|text| Rule { list, text: text.into() }).into()
    }

    fn two() -> Vec<Rule> {
        in_list(List::Allow, RULES)
    }

    /// Two rules for each list.
    fn four() -> Vec<Rule> {
        [two(), in_list(List::Ask, ASK)].concat()
    }

    /// `text` where the rules stand as `R1` and `R2`, and those that ask as `A1` and `A2`.
    fn with_rules(text: &str) -> String {
        let pairs = iter::zip(["R1", "R2", "A1", "A2"], [RULES, ASK].concat());
        pairs.fold(text.into(), |text, (name, rule)| text.replace(name, rule))
    }

    #[test]
    fn rules_name_each_launcher_by_its_exact_path() {
        let all = rules(Path::new("/s/bin"));
        assert_eq!((of(&all, List::Allow).len(), of(&all, List::Ask).len()), (7, 9));
        assert!(two().iter().all(|rule| all.contains(rule)), "{all:?}");
        let spaced = rules(Path::new("/my skills/bin"));
        assert_eq!(spaced[1].text, r#"Bash("/my skills/bin/dispatch-spawn" *)"#);
        assert_eq!(spaced[7].text, "Bash(/my skills/bin/dispatch-config* add-backend*)");
        assert_eq!(spaced[15].text, "Bash(xargs */my skills/bin/dispatch-*)");
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
    fn each_rule_goes_into_its_list() {
        let made = "\n    \"allow\": [\n      \"R1\",\n      \"R2\"\n    ]";
        let asks = made.replace("allow", "ask").replace('R', "A");
        let table = [
            // Neither list is there, one is, both are.
            ("{\n}", format!("{{\n  \"permissions\": {{{made},{asks}\n  }}\n\n}}")),
            (
                "{\n  \"permissions\": {\n    \"ask\": [\"x\"]\n  }\n}",
                format!("{{\n  \"permissions\": {{\n    \"ask\": [\"x\",\"A1\",\"A2\"],{made}\n  }}\n}}"),
            ),
            (
                "{\n  \"permissions\": {\n    \"allow\": [\"x\"]\n  }\n}",
                format!("{{\n  \"permissions\": {{\n    \"allow\": [\"x\",\"R1\",\"R2\"],{asks}\n  }}\n}}"),
            ),
            (
                "{\"permissions\":{\"ask\":[],\"deny\":[\"x\"],\"allow\":[\n\"y\"]}}",
                "{\"permissions\":{\"ask\":[\"A1\", \"A2\"],\"deny\":[\"x\"],\"allow\":[\n\"y\",\n\"R1\",\n\"R2\"]}}".into(),
            ),
        ];
        for (before, after) in table {
            let after = with_rules(&after);
            let added = add(Some(before), &four()).expect("addable");
            assert_eq!(added.as_deref(), Some(after.as_str()), "{before}");
            assert_eq!(add(Some(&after), &four()).expect("there"), None, "{before}");
            let removed = remove(Some(&after), &four()).expect("removable");
            assert_eq!(removed.as_deref(), Some(before));
        }
    }

    #[test]
    fn a_missing_or_empty_file_becomes_a_pretty_one() {
        for before in [None, Some(""), Some(" \n")] {
            let after = add(before, &four()).expect("addable").expect("something to add");
            let lists = json!({"permissions": {"allow": RULES, "ask": ASK}});
            let pretty = serde_json::to_string_pretty(&lists);
            assert_eq!(after, pretty.expect("valid") + "\n");
            assert_eq!(remove(Some(&after), &four()).expect("removable").as_deref(), Some("{}\n"));
            assert_eq!(remove(before, &four()).expect("nothing to do"), None);
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
            (
                "{\"permissions\":{\"ask\":[\"A2\",\"R1\",\"x\"],\"allow\":[\"R1\",\"A1\"]}}",
                "{\"permissions\":{\"ask\":[\"R1\",\"x\"],\"allow\":[\"A1\"]}}",
            ),
        ];
        for (before, after) in table {
            let removed = remove(Some(&with_rules(before)), &four()).expect("removable");
            assert_eq!(removed, Some(with_rules(after)));
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
            ("{\"permissions\": {\"ask\": {}}}", "line 1, column 25: \"ask\" is not a list"),
            ("{\"a\": \"\\ud800\"}", "line 1, column "),
            ("{\"a\": 1e999}", "line 1, column "),
        ];
        for (text, place) in table {
            let error = add(Some(text), &four()).expect_err(text);
            assert_eq!(crate::error::exit_code(&error), Exit::Data, "{text}");
            let lines = error.to_string();
            assert!(lines.contains(&format!("\n  {place}")), "{text}: {lines}");
            assert!(
                lines.contains(&with_rules(
                    r#""permissions": {"allow": ["R1", "R2"], "ask": ["A1", "A2"]}"#
                )),
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
                let list = ["allow", "ask"][dice.below(2) as usize];
                dice.object(list, |dice| {
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
                add(Some(&before), &four()).unwrap_or_else(|error| panic!("{before:?}: {error}"));
            let after = added.expect("something to add");
            assert_eq!(remove(Some(&after), &four()).expect("removable"), Some(before));
        }
    }
}
