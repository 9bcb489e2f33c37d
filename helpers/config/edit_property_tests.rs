//! Random edits of configs as people write them.
//!
//! In the corpus a comment with the word `own` stands in the lines of an entry and may go with it;
//! every other comment must outlive every edit.

use serde_yaml::Mapping;

use super::tests::{alias, backend, default, model, remove, set};
use super::*;

/// Configs as people write them. The test gives some of them CRLF, a BOM or no final newline.
const CORPUS: &[&str] = &[
    include_str!("../../references/config-example.yaml"),
    // The seeds' examples, new and old.
    "backends:\n  claude:\n    command: >\n      env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE\n      claude -p --dangerously-skip-permissions\n  cursor:\n    command: >\n      agent -p --force --workspace \"$(pwd)\"\n  codex:\n    command: >\n      codex exec --full-auto -C \"$(pwd)\"\n\nmodels:\n  opus:            { backend: claude }\n  sonnet:          { backend: claude }\n  gpt-5.3-codex:  { backend: codex }\n  gemini-3.1-pro:  { backend: cursor }\n\naliases:\n  security-reviewer:\n    model: opus\n    prompt: >\n      You are a security-focused reviewer. Prioritize OWASP Top 10.\n",
    "default: opus # Default model when none specified\nbackends:\n  claude:\n    command: >\n      env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE\n      claude -p --dangerously-skip-permissions\n  cursor:\n    command: >\n      agent -p --force --workspace \"$(pwd)\"\nmodels:\n  # Claude\n  opus: { backend: claude }\n  sonnet: { backend: claude }\n  # GPT / OpenAI\n  gpt-5.3-codex: { backend: cursor }\n  # ... all detected models\n",
    "default: cursor # Agent to use when none specified\nagents:\n  cursor:\n    command: >\n      agent -p --force --workspace \"$(pwd)\"\n  # my own\n  claude:\n    command: >\n      env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE\n      claude -p --dangerously-skip-permissions\n",
    "agents: { harvey: { command: harvey -p } } # old\ndefault: harvey\nmodels: # both formats\n  opus: { backend: claude }\n",
    // Comments everywhere.
    "# top\n\n# over default\ndefault: opus # on default\n# under default\n\n# over backends\nbackends: # on backends\n  # first in backends\n  claude: {} # own on claude\n  # between\n  codex: # own on codex\n    # own in codex\n    command: codex exec # own on command\n    # own? no, behind: it stays\n  # last in backends\n# over models, no blank line\nmodels: # on models\n# at column 0 in models\n  # Claude\n  opus: { backend: claude } # own\n    # deep\n  sonnet: { backend: claude } # own\n # odd\n  # OpenAI\n  gpt-5.3-codex: # own\n    # own\n    backend: codex # own\n  # last in models\n\n  # after a blank line\n\n# over aliases\naliases: # on aliases\n  quick: # own\n    model: sonnet # own\n    prompt: Be quick. # own\n# end\n",
    "#c1\n#c2 # c2b\ndefault: opus\t# tab\there\nbackends:\n  codex:\t{}\t#\town tab\nmodels:\n  opus: {backend: claude}\t# own\t# own twice\n  'sonnet': {backend: 'claude'}   #own\n",
    // Block scalars of all kinds, and what looks like a comment in them.
    "aliases:\n  lit:\n    model: opus\n    prompt: |\n      # not a comment\n      models:\n        fake: { backend: no }\n\n      end\n\n\n  # between\n  keep:\n    model: opus\n    prompt: |+\n      kept\n\n\n  strip: # own\n    prompt: >-  # own\n      folded # not a comment\n      text\n    model: sonnet\n  indent:\n    model: opus\n    prompt: |2\n        two more\n      text\n# over models\nmodels:\n  opus:\n    backend: >-\n      claude\n  sonnet: { backend: claude }\ndefault: >\n  opus\n",
    "aliases:\n  multi:\n    model: opus\n    prompt: plain text\n      over lines\n\n      and a blank one\n  single:\n    prompt: 'quoted # not a comment\n\n      over lines, it''s'\n    model: sonnet\n  double:\n    model: \"opus\"\n    prompt: \"a \\\n      b\\n # no\"\nmodels:\n  opus: { backend: \"claude\",\n          }\n",
    // Null and missing sections.
    "",
    "# nothing but a comment\n",
    "models:\n",
    "default:\nbackends: ~\nmodels: {} # none\naliases: null # nil\n",
    "default: ~ # none\nmodels:\n  # Claude\n  # opus: { backend: claude }\n\n  # OpenAI\n\n# Names\naliases: # none\n",
    "default: opus\n\n\n\nbackends:\n\n  claude: {}\n\n\nmodels:\n\n  opus: { backend: claude }\n\n  o3:\n\n    backend: codex\n\n\n",
    "patience: 60\n",
    "aliases:\n  r:\n    model: opus\n    prompt: >\n      Look twice.\n# behind a block\n",
    "models:\n  opus: { backend: claude }\naliases:\n  r:\n    model: opus\n    prompt: |\n      Look.\n      Twice.\n",
    "models:\n  opus:\n  sonnet: ~\n  haiku: {}\naliases:\n  a: { model: opus }\n",
    // Quoted keys, numbers, unicode, odd indentation, document markers.
    "\"default\": 'opus'\n'models':\n  \"opus\": { \"backend\": \"claude\" }\n  'gpt 5': { 'backend': 'codex' }\n  \"a: b\": { backend: \"#x\" }\n  \"yes\": {backend: codex}\n\"aliases\": {}\n",
    "models:\n  1.5: { backend: x }\n  2: { backend: x }\n  qwen2.5:7b: { backend: ollama }\n  ollama/llama: { backend: ollama }\n  yes: { backend: x }\ndefault: 1.5\n",
    "# Größe 大きさ\ndefault: тест # комментарий\nmodels:\n  日本語: { backend: クロード } # own 最高\n  тест: { backend: клод }\n  crab🦀: { backend: клод }\naliases:\n  速い:\n    model: 日本語\n    prompt: >\n      用opus审查 # 不是\n",
    "---\ndefault: opus\nmodels:\n        opus:\n         backend: claude\n        sonnet:\n            backend: claude\nbackends:\n claude:\n   command: claude -p\n...\n# behind the end\n",
    "%YAML 1.1\n---\n  default: opus\n  # indented root\n  models:\n    opus: { backend: claude } # own\n  # end\n",
    "aliases:\n  a: { model: opus }\nmodels:\n  opus: { backend: claude }\nbackends:\n  claude: { command: claude -p, prompt: stdin, access: read }\n  codex:\n    command: codex exec\n    route: cli\npatience: 45 # minutes\ndefault: a",
];

/// Layouts that few people write, in which an edit may be refused: flow maps over several lines, anchors,
/// tags, document marks, JSON.
const ODD: &[&str] = &[
    "default: opus\nmodels: { opus: { backend: claude }, sonnet: { backend: claude },\n          o3: { backend: codex } } # end of models\naliases: { quick: { model: sonnet } }\nbackends: { }\n",
    "{default: opus, backends: {claude: {}, codex: {}}, models: {opus: {backend: claude}, o3: {backend: codex}}, aliases: {}}\n",
    "{\"default\": \"opus\", \"backends\": {\"claude\": {}}, \"models\": {\"opus\": {\"backend\": \"claude\"}, \"gpt-5\": {\"backend\": \"codex\"}}, \"aliases\": {\"r\": {\"model\": \"opus\", \"prompt\": \"a, b: {c}\"}}}",
    "{\n  \"default\": \"opus\",\n  \"backends\": {\n    \"claude\": {},\n    \"codex\": { \"command\": \"codex exec\" }\n  },\n  \"models\": {\n    \"opus\": { \"backend\": \"claude\" },\n    \"gpt-5\": {\n      \"backend\": \"codex\"\n    }\n  },\n  \"aliases\": {}\n}\n",
    "models: {\n  opus: { backend: claude },   # own, the best\n  # between\n  sonnet: { backend: claude }, # own\n  o3: {\n    backend: codex, # own\n  },\n  # last\n}\nbackends: {\n  # nothing yet\n}\ndefault: opus\naliases:\n  a: { model: opus, prompt: \"say \\\"hi\\\" # not a comment\" } # own\n",
    "models: {\n  opus: { backend: claude }   # own\n  , sonnet: { backend: claude } # own\n  # last\n}\naliases: {\nquick: { model: opus },\nslow: { model: sonnet }\n}\n",
    "default: |- # on default\n  opus\n\n# mid\nmodels:\n  opus: { backend: claude }\naliases:\n  last:\n    model: opus\n    prompt: |+\n      kept to the end\n\n",
    "default: &d opus # on default\nmodels:\n  opus: &claude { backend: claude } # own\n  sonnet: *claude # own\n  haiku: *claude\n  gpt-5: &codex\n    backend: codex # own\n  gpt-6: *codex\naliases:\n  best: { model: *d }\n  r: { model: &m sonnet, prompt: &p Look. }\n  s: { model: *m, prompt: *p }\n",
    "backends:\n  claude: &base\n    command: claude -p\n  codex: *base\n  cursor:\n    <<: *base\n    command: agent -p\nmodels:\n  opus: { backend: &b claude }\n  sonnet: { backend: *b }\n  haiku:\n    <<: { backend: *b }\n",
    "---\n# marked\n...\n",
    "default: !!str opus\nmodels: !!map\n  opus: !!map { backend: !!str claude }\n  sonnet: { backend: claude }\naliases: &all\n  a: { model: opus }\n",
];

/// Configs too long to write down.
fn long() -> [String; 2] {
    let mut many = "# many\ndefault: m-1\nmodels:\n".to_owned();
    for (group, start) in (0..180).step_by(30).enumerate() {
        many += &format!("  # Group {group}\n");
        for id in start..start + 30 {
            many += &format!("  m-{id}: {{ backend: b{group} }}\n");
        }
    }
    let wide = format!(
        "default: opus # {0}\nbackends:\n  x:\n    command: run {0} # own\nmodels: {{ opus: {{ backend: \"{0}\" }} }}\n",
        "long ".repeat(1_000).trim_end()
    );
    [many, wide]
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// A name that is there, but one of `new` is a usual one or one that YAML would misread.
    fn name(&mut self, value: &Value, section: &str, new: usize) -> String {
        const NAMES: &[&str] = &[
            "gpt-6",
            "opus-5",
            "sonnet",
            "codex",
            "claude",
            "a.b/c_d",
            "1.5",
            "yes",
            "null",
            "~",
            "a: b",
            "#x",
            "a #b",
            "it's",
            "say \"hi\"",
            "日本語",
            "-lead",
            "- dash",
            "{x}",
            "a,b",
            "*star",
            "&and",
            "!bang",
            "%p",
            "@at",
            "`tick`",
            "| pipe",
            "> fold",
            " lead",
            "trail ",
            "tab\there",
            "new\nline",
            "back\\slash",
            "? q",
            "0x1F",
            "1e5",
            "qwen2.5:7b",
            "end:",
            "\u{feff}bom",
            "\u{85}nel",
            "crab🦀",
            "12:30",
            "2001-01-01",
            "<<",
            "=",
            "",
            "null ",
            "a\u{2028}b",
            "\u{7f}",
            "[x",
            "'",
            "\"",
            "...",
            "---",
        ];
        let there: Vec<&str> = match value.get(section).and_then(Value::as_mapping) {
            Some(map) => map.keys().filter_map(Value::as_str).collect(),
            None => vec![],
        };
        if !there.is_empty() && self.below(new) > 0 {
            return self.of(&there).into();
        }
        let usual = self.below(2) == 0;
        self.of(if usual { &NAMES[..6] } else { NAMES }).into()
    }

    fn edit(&mut self, value: &Value) -> Edit {
        const TEXTS: &[&str] = &[
            "Look twice.",
            "env -u X run -p \"$(pwd)\"",
            "Two\nlines",
            "Ends\nso:\n\n  - a # b\n",
            " leads\nx",
            "a\n\n\n",
            "",
            "\n",
            "a: b # c",
            "it's \"both\"\\",
            "速く",
            "tab\tin\nit",
            "x\r\ny",
            "a\u{2028}b\nc",
            "- x\n-\ty\n",
            "x \n y \n",
        ];
        let text = (self.below(3) > 0).then(|| self.of(TEXTS).to_owned());
        // To remove what is not there is refused, to add what is there too: both now and then.
        let (rare, half) = (12, 2);
        match self.below(9) {
            0 => default(&self.name(value, "models", half)),
            1 | 2 => model(&self.new_name(value, "models"), &self.name(value, "backends", half)),
            3 => set(&self.name(value, "models", rare), &self.name(value, "backends", half)),
            4 => remove(&self.name(value, "models", rare)),
            5 => backend(&self.new_name(value, "backends"), text.as_deref()),
            6 => {
                let model = self.name(value, "models", half);
                alias(&self.new_name(value, "aliases"), &model, text.as_deref())
            }
            7 => Edit::remove("aliases", &self.name(value, "aliases", rare)),
            _ => {
                let name = self.name(value, "backends", rare);
                Edit::set("backends", &name, "access", self.of(&["read", "write", "full"]))
            }
        }
    }

    fn new_name(&mut self, value: &Value, section: &str) -> String {
        let new = if self.below(12) == 0 { 12 } else { 1 };
        self.name(value, section, new)
    }
}

/// The value that an edit is to lead to; `None` if it must be refused.
fn expected(before: &Value, edit: &Edit) -> Option<Value> {
    let mut root = before.as_mapping().cloned().unwrap_or_default();
    let path: Vec<&str> = edit.path.iter().map(String::as_str).collect();
    if let ["default"] = path[..] {
        root.insert("default".into(), edit.asked.clone()?);
        return Some(root.into());
    }
    let (section, name) = (path[0], path[1]);
    let mut map = match root.get(section) {
        None | Some(Value::Null) => Mapping::new(),
        Some(value) => value.as_mapping()?.clone(),
    };
    match (&edit.asked, path.get(2)) {
        (None, _) => {
            map.shift_remove(name)?;
        }
        (Some(text), Some(key)) => {
            let old = map.get_mut(name)?;
            let mut entry = old.as_mapping().cloned().unwrap_or_default();
            entry.insert((*key).into(), text.clone());
            *old = entry.into();
        }
        (Some(entry), None) => match map.get(name) {
            None => _ = map.insert(name.into(), entry.clone()),
            Some(Value::Null) if *entry == Value::Mapping(Mapping::new()) => {}
            Some(there) if there == entry => {}
            Some(_) => return None,
        },
    }
    root.insert(section.into(), map.into());
    Some(root.into())
}

/// A config's value. A number is a name too: the loader takes its digits.
fn parse(text: &str) -> Value {
    let mut root: Value =
        serde_yaml::from_str(text.trim_start_matches('\u{feff}')).expect("a config");
    for section in root.as_mapping_mut().into_iter().flat_map(Mapping::values_mut) {
        let Value::Mapping(map) = section else { continue };
        let by_text = |(key, value): (Value, Value)| match key {
            Value::Number(number) => (number.to_string().into(), value),
            key => (key, value),
        };
        *map = std::mem::take(map).into_iter().map(by_text).collect();
    }
    root
}

/// The value without empty sections, which may be null, `{}` or missing.
fn tidy(value: &Value) -> Value {
    let map = value.as_mapping().cloned().unwrap_or_default();
    let empty =
        |value: &Value| value.is_null() || value.as_mapping().is_some_and(Mapping::is_empty);
    map.into_iter().filter(|(_, value)| !empty(value)).collect::<Mapping>().into()
}

/// The keys of the config and of its sections, in their order, that are in the other one too.
fn shared_keys(value: &Value, other: &Value) -> Vec<Value> {
    let mut keys = Vec::new();
    for (section, entries) in value.as_mapping().into_iter().flatten() {
        let Some(twin) = other.get(section) else { continue };
        keys.push(section.clone());
        let names = entries.as_mapping().into_iter().flatten().map(|(name, _)| name);
        keys.extend(names.filter(|name| twin.get(name).is_some()).cloned());
    }
    keys
}

fn is_subsequence(short: &str, long: &str) -> bool {
    let mut long = long.bytes();
    short.bytes().all(|byte| long.any(|other| other == byte))
}

/// Each `#` and what follows it in its line, as far as it is no text of the values, that the new
/// text has too rarely.
fn lost<'a>(before: &'a str, after: &str) -> Vec<&'a str> {
    let values = format!("{:?}", parse(before));
    let count = |text: &str, piece: &str| text.matches(piece).count();
    let pieces = before.lines().flat_map(|line| {
        line.match_indices('#').map(|(at, _)| {
            let end = line[at + 1..].find('#').map_or(line.len(), |end| at + 1 + end);
            line[at..end].trim_end()
        })
    });
    pieces
        .filter(|piece| count(after, piece) < count(before, piece))
        .filter(|piece| {
            let text = piece.split(['"', '\'', '\\', ':']).next().unwrap_or_default();
            !values.contains(text)
        })
        .collect()
}

/// The mistake of an edit, if any.
fn fault(before: &str, after: &str, edit: &Edit, expected: &Value) -> Option<&'static str> {
    let (old, new) = (parse(before), parse(after));
    let (old, new, expected) = (tidy(&old), tidy(&new), tidy(expected));
    let removal = edit.asked.is_none();
    let set = edit.path.len() != 2;
    let markers =
        ["{}", "{ }", "{\n}", "{\r\n}", "~", "null"].iter().any(|marker| before.contains(marker));
    if new != expected {
        return Some("value");
    }
    if shared_keys(&old, &new) != shared_keys(&new, &old) {
        return Some("order");
    }
    let lost = lost(before, after);
    if !lost.iter().all(|piece| removal && piece.contains("own")) {
        return Some("comment");
    }
    if before.starts_with('\u{feff}') != after.starts_with('\u{feff}')
        || before.contains("\r\n") && after.replace("\r\n", "").contains('\n')
    {
        return Some("BOM or line breaks");
    }
    // All but the lines that both texts start and end with.
    let lines_changed = || {
        let (old, new): (Vec<&str>, Vec<&str>) =
            (before.lines().collect(), after.lines().collect());
        let same = |(a, b): &(&&str, &&str)| a == b;
        let start = old.iter().zip(&new).take_while(same).count();
        let end = old[start..].iter().rev().zip(new[start..].iter().rev()).take_while(same).count();
        old.len() - start - end
    };
    let bytes_kept = match edit {
        _ if removal => is_subsequence(after, before),
        _ if set => lines_changed() <= 3,
        _ => is_subsequence(before, after) || markers && lines_changed() <= 2,
    };
    (!bytes_kept).then_some("bytes")
}

/// 10,000 valid edits; `EDITS` in the environment says another number.
#[test]
fn random_edits_change_what_they_should_and_nothing_else() {
    let edits = std::env::var("EDITS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    let long = long();
    let usual = CORPUS.iter().chain(ODD).copied();
    let corpus: Vec<&str> = usual.chain(long.iter().map(String::as_str)).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut done, mut valid, mut refused, mut wrong, mut lost_comments) = (0, 0, 0, 0, 0);
    let mut unchanged = 0;
    while valid < edits {
        // The long ones are slow and are chosen less often.
        let at = random.below(corpus.len());
        let is_long = at >= corpus.len() - long.len();
        let at = if is_long { random.below(corpus.len()) } else { at };
        let mut text = corpus[at].to_owned();
        match random.below(8) {
            0 => text = text.replace('\n', "\r\n"),
            1 => text = text.trim_end().to_owned(),
            2 => text.insert(0, '\u{feff}'),
            _ => {}
        }
        for _ in 0..=random.below(6) {
            let value = parse(&text);
            let edit = random.edit(&value);
            done += 1;
            let wanted = expected(&value, &edit);
            let fault = match (apply(&text, &edit), &wanted) {
                (Err(_), None) => None,
                (Err(refusal), Some(_)) => {
                    (valid, refused) = (valid + 1, refused + 1);
                    // A block scalar at the end gains a line break with the next line.
                    let is_odd = ODD.contains(&corpus[at]) || !text.ends_with('\n');
                    let verdict = if is_odd { "REFUSED" } else { "WRONG refused:" };
                    println!("{verdict} {edit:?} in\n{text}\n{refusal}\n");
                    (!is_odd).then_some("refused")
                }
                (Ok(after), None) => {
                    println!("WRONG not refused: {edit:?} in\n{text}\n{after}\n");
                    Some("not refused")
                }
                (Ok(after), Some(wanted)) => {
                    valid += 1;
                    let fault = fault(&text, &after, &edit, wanted);
                    if let Some(fault) = fault {
                        println!("WRONG {fault}: {edit:?} in\n{text}\n{after}\n");
                    }
                    unchanged += usize::from(text == after);
                    text = after;
                    fault
                }
            };
            match fault {
                Some("comment") => lost_comments += 1,
                Some(_) => wrong += 1,
                None => {}
            }
        }
    }
    println!(
        "{done} edits, {valid} valid ({unchanged} of them made already): {wrong} wrong, {lost_comments} lost comments, {refused} refused"
    );
    assert_eq!((wrong, lost_comments), (0, 0));
    assert!(refused * 8 < valid, "{refused} of {valid} refused");
}
