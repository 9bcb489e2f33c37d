//! Tables of edits, and random settings that must come back to the byte.

use std::iter;

use super::*;

const RULES: [&str; 2] = ["Bash(/s/bin/dispatch-spawn *)", "Skill(dispatch)"];

const ASK: [&str; 2] = ["Bash(/s/bin/dispatch-spawn* -C*)", "Bash(xargs *)"];

fn in_list(list: &'static str, rules: [&str; 2]) -> Vec<Rule> {
    rules.map(|text| Rule { list, text: text.into() }).into()
}

fn two() -> Vec<Rule> {
    in_list("allow", RULES)
}

/// Two rules for each list.
fn four() -> Vec<Rule> {
    [two(), in_list("ask", ASK)].concat()
}

/// `text` with `R1` and `R2` replaced by the allow rules, `A1` and `A2` by the ask rules.
fn with_rules(text: &str) -> String {
    let pairs = iter::zip(["R1", "R2", "A1", "A2"], [RULES, ASK].concat());
    pairs.fold(text.into(), |text, (name, rule)| text.replace(name, rule))
}

#[test]
fn added_rules_keep_every_byte_and_are_removed_to_the_byte() {
    let created = "  \"permissions\": {\n    \"allow\": [\n      \"R1\",\n      \"R2\"\n    ]\n  }";
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
        // A byte order mark stays.
        ("\u{feff}{\"a\":1}", format!("\u{feff}{{\"a\":1,\n{created}}}")),
        // An empty list is filled on its line.
        ("{\"permissions\":{\"allow\":[]}}", "{\"permissions\":{\"allow\":[\"R1\", \"R2\"]}}".into()),
        (
            "{\n  \"permissions\": {\n    \"allow\": [\n    ]\n  }\n}",
            "{\n  \"permissions\": {\n    \"allow\": [\"R1\", \"R2\"\n    ]\n  }\n}".into(),
        ),
        // A list with rules is continued in its layout.
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
        let added = add(Some(before), &two()).unwrap_or_else(|error| panic!("{before}: {error}"));
        assert_eq!(added.as_deref(), Some(after.as_str()), "{before}");
        assert_eq!(add(Some(&after), &two()).expect("allowed"), None, "{before}");
        let removed = remove(Some(&after), &two()).expect("removable");
        assert_eq!(removed.as_deref(), Some(before));
        assert_eq!(remove(Some(before), &two()).expect("nothing to do"), None, "{before}");
    }
}

#[test]
fn rules_go_into_their_lists() {
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
fn missing_or_empty_file_becomes_pretty_json() {
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
fn only_missing_rules_are_added() {
    let before = with_rules("{\"permissions\":{\"allow\":[\"R2\"]}}");
    let after = with_rules("{\"permissions\":{\"allow\":[\"R2\",\"R1\"]}}");
    let twice = [two(), two()].concat();
    assert_eq!(add(Some(&before), &twice).expect("addable"), Some(after));
}

#[test]
fn only_the_rules_are_removed_after_other_edits() {
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
fn settings_of_unknown_shape_are_not_changed() {
    let table = [
        ("{\n  // mine\n  \"a\": 1\n}", "line 2, column 3: "),
        ("{\"a\": 1} /* end */", "line 1, column 10: "),
        ("{\"a\": 1,}", "line 1, column 9: trailing comma\n"),
        ("{\"ä\": 'x'}", "line 1, column 7: "),
        ("{\"a\" 1}", "line 1, column "),
        ("{\"a\": 1", "line 1, column "),
        ("{} {}", "line 1, column "),
        ("hello", "line 1, column 1: "),
        ("[1]", "line 1, column 1: not an object"),
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

/// A small generator (xorshift), so that failures repeat.
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

    fn members(&mut self, most: u64, mut member: impl FnMut(&mut Self, u64) -> String) -> String {
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
fn random_settings_are_restored_to_the_byte() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let before = dice.settings();
        let added =
            add(Some(&before), &four()).unwrap_or_else(|error| panic!("{before:?}: {error}"));
        let after = added.expect("something to add");
        assert_eq!(remove(Some(&after), &four()).expect("removable"), Some(before));
    }
}
