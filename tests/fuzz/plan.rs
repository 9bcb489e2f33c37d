//! Coverage-guided search for texts that break a plan, a config, or the cleaning of text.
//!
//! An input has parts between bytes 0x1E: the plan as it was dispatched, the plan after somebody
//! edited it, a note, and the name of an item.

#![no_main]

use std::path::Path;

use dispatch::config::{check, edit};
use dispatch::plan::{Item, Marker, Plan};
use dispatch::text::{LONGEST_SUMMARY, quoted, sanitize, shorten, whole_sentences};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

const SEPARATOR: char = '\u{1e}';

/// Pieces that matter to the grammar of plans or configs, put into inputs at random.
const PIECES: &[&str] = &[
    "\u{1e}",
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    "\n- [ ] ",
    "\n* [x] ",
    "\n1. [?] ",
    "\n2) [!] ",
    "[~]",
    "[]",
    "[1]",
    "-[ ]",
    "  ",
    "    ",
    "\t",
    "\u{a0}",
    "\u{feff}",
    "\u{200b}",
    "\u{2028}",
    "\n```\n",
    "\n````md\n",
    "\n~~~\n",
    "```",
    "<!--",
    "-->",
    "\n# ",
    "\n## Context\n",
    "\n**Context:**\n",
    "\n===\n",
    "\n---\n",
    "> ",
    "`",
    "\\",
    "“",
    "…",
    " — ",
    ": ",
    "(",
    "a",
    "b c",
    "写",
    "🦀",
    "\u{1b}[1m",
    "\0",
    "> **Note from dispatcher:** ",
    "<<: *a",
    "&a ",
    "*a",
    "models:\n",
    "  opus: ",
    "{ backend: claude }",
    "backends:\n",
    "default: ",
    "aliases:\n",
    "prompt: |\n",
];

/// Whole plans and a config, from which the search starts.
const FORMS: &str = include_str!("../../helpers/plan/forms.txt");
const CONFIG: &str = include_str!("../../references/config-example.yaml");

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let pick = seed as usize / 8;
    let (at, piece) = match seed % 8 {
        0 if size < 8 => (0, start(pick)),
        0..=2 => (pick / 64 % (size + 1), PIECES[pick % PIECES.len()].to_owned()),
        _ => return fuzzer_mutate(data, size, max_size),
    };
    if size + piece.len() <= max_size {
        data.copy_within(at..size, at + piece.len());
        data[at..at + piece.len()].copy_from_slice(piece.as_bytes());
        return size + piece.len();
    }
    fuzzer_mutate(data, size, max_size)
});

/// The example config, or a plan with the same plan as its edit.
fn start(pick: usize) -> String {
    let plans: Vec<&str> =
        FORMS.split("%% ").filter_map(|part| part.split_once('\n')).map(|(_, it)| it).collect();
    let plan = plans[pick % plans.len()];
    if pick % 16 == 0 {
        CONFIG.into()
    } else {
        format!("{plan}{SEPARATOR}{plan}{SEPARATOR}a note{SEPARATOR}1")
    }
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let parts: Vec<&str> = text.split(SEPARATOR).collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let (dispatched, edited, note, name) = (part(0), part(1), part(2), part(3));
    config(&text, name);
    words(&text);
    counted(dispatched);
    let copy = Plan::parse(dispatched);
    edits(&copy, note, name);
    let plan = Plan::parse(edited).numbered_as(&copy);
    assert_eq!(plan.to_string(), edited);
    numbers(&copy, &plan);
    remedies(&plan);
    edits(&plan, note, name);
});

/// A plan is read whole, and no line that a person takes for an open step is passed over.
fn counted(text: &str) {
    let plan = Plan::parse(text);
    assert_eq!(plan.to_string(), text);
    if let Ok(new) = Plan::parse_new(text, Path::new("plan.md")) {
        assert!(!new.items().is_empty() && new.doubts().is_empty());
    }
    let hides = ["```", "~~~", "<!--"].iter().any(|it| text.contains(it));
    let is_open =
        |line: &&str| ["- [ ] ", "* [ ] ", "1. [ ] "].iter().any(|it| line.trim().starts_with(it));
    let open = text.split(['\n', '\r']).filter(is_open).count();
    let current = plan.items().iter().filter(|item| item.marker != Marker::Done).count();
    assert!(hides || open <= current + plan.doubts().len());
    assert!(!plan.complete() || hides || open == 0);
}

/// The facts of a plan apart from its items' marks and notes.
fn rest(plan: &Plan) -> (Vec<(String, String)>, Vec<String>, Option<String>, usize) {
    let item = |item: &Item| (item.number.clone(), item.text.clone());
    let doubts = plan.doubts().iter().map(|doubt| doubt.text.clone()).collect();
    (
        plan.items().iter().map(item).collect(),
        doubts,
        plan.title().map(Into::into),
        plan.lost().len(),
    )
}

fn marks(plan: &Plan) -> Vec<Marker> {
    plan.items().iter().map(|item| item.marker).collect()
}

fn lines(plan: &Plan) -> Vec<String> {
    let text = plan.to_string().replace("\r\n", "\n");
    text.split(['\n', '\r']).map(Into::into).collect()
}

/// Every edit by a helper changes the intended line and nothing else.
fn edits(plan: &Plan, note: &str, name: &str) {
    // Names an item by its number, one by its text, and whatever the given name means.
    let pick = note.len() + name.len();
    let item = |at: usize| plan.items().get(at % plan.items().len().max(1));
    let names = [
        item(pick).map(|item| item.number.as_str()),
        item(pick / 2).map(|item| item.text.as_str()),
    ];
    let marker = [Marker::Done, Marker::Blocked, Marker::Failed][pick % 3];
    for name in names.into_iter().flatten().chain([name]) {
        let Ok(found) = plan.item(name) else { continue };
        let at = plan.items().iter().position(|item| item.number == found.number).expect("there");
        let mut new = plan.clone();
        if new.mark(name, marker, note).is_err() {
            assert_eq!(new.to_string(), plan.to_string());
            new.mark(name, marker, "plain words").expect("the remedy of the refusal works");
        }
        let mut expected = marks(plan);
        expected[at] = marker;
        assert_eq!((marks(&new), rest(&new)), (expected, rest(plan)));
        only_one_line(&lines(plan), &lines(&new));
    }
    let mut noted = plan.clone();
    let count = noted.count_notes(note);
    noted.append_note(note).expect("any note can be appended");
    assert_eq!((marks(&noted), rest(&noted)), (marks(plan), rest(plan)));
    assert_eq!(noted.count_notes(note), count + 1);
    assert!(noted.to_string().starts_with(&plan.to_string()));
    let mut open = plan.clone();
    open.reopen().expect("marks can be changed");
    assert_eq!((open.done(), rest(&open)), (plan.done(), rest(plan)));
}

/// At most one line is another, and what is new stands in one place.
fn only_one_line(old: &[String], new: &[String]) {
    let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let behind = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    // The changed line, the notes below it that were there, and the end of the last line.
    let is_blank = |c: char| c.is_whitespace() || sanitize(c.encode_utf8(&mut [0; 4])).is_empty();
    let notes = |line: &String| line.is_empty() || line.starts_with(is_blank);
    let changed = old.get(same + 1..old.len().saturating_sub(behind)).unwrap_or_default();
    assert!(changed.iter().all(notes), "{old:?} {new:?}");
}

/// Each item has a number of its own, and no dispatched one is lost without being named.
fn numbers(copy: &Plan, plan: &Plan) {
    let mut numbers: Vec<&str> = plan.items().iter().map(|item| item.number.as_str()).collect();
    let whole = numbers.iter().filter(|number| !number.contains('.')).count();
    assert!(whole + plan.lost().len() + plan.doubts().len() >= copy.items().len());
    assert!(whole + plan.lost().len() <= copy.items().len());
    // Outside quotation marks stands only what the person wrote.
    for item in plan.items() {
        let (text, _) = copy.attributed(item);
        let own = text.split(" \"").next().unwrap_or_default();
        let is_own = |it: &Item| sanitize(&it.text).trim().starts_with(own);
        assert!(
            text.is_empty() || text.starts_with('"') || copy.items().iter().any(is_own),
            "{text}"
        );
        let _ = copy.explanation(item);
    }
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|two| two[0] != two[1]), "{numbers:?}");
    for number in numbers {
        assert_eq!(plan.item(number).expect("found by its number").number, number);
    }
}

/// Lost items can be put back, or dropped as it is printed.
fn remedies(plan: &Plan) {
    let mut whole = plan.clone();
    if whole.restore().is_err() {
        assert_eq!(whole.to_string(), plan.to_string());
        return;
    }
    assert_eq!(whole.lost(), []);
    assert_eq!(whole.items().len(), plan.items().len() + plan.lost().len());
    // A step that stands in a line in doubt has a number too; its line comes first.
    if !plan.doubts().is_empty() {
        return;
    }
    for (option, lost) in plan.skip_lost().split(" --skip ").skip(1).zip(plan.lost()) {
        let inside = option.strip_prefix('\'').and_then(|it| it.strip_suffix('\''));
        let name = inside.unwrap_or(option).replace(r"'\''", "'");
        assert_eq!(whole.item(&name).expect("as printed").number, lost.number.to_string());
        whole.mark(&name, Marker::Done, "skipped").expect("as printed");
    }
}

/// Cleaned text has nothing in it that acts on a terminal or ends a quotation.
fn words(text: &str) {
    let clean = sanitize(text);
    assert!(!clean.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
    assert_eq!(sanitize(&clean), clean);
    let quotation = quoted(text);
    let inside = &quotation[1..quotation.len() - 1];
    assert!(!inside.contains(['"', '“', '”', '→', '\n', '\u{1b}']) && quotation.len() < 2000);
    assert!(whole_sentences(text, LONGEST_SUMMARY).chars().count() <= LONGEST_SUMMARY);
    assert!(shorten(text, 80).len() <= 80);
}

/// A config is read or refused; an edit that was made is there afterwards, and no part was lost by it.
fn config(text: &str, name: &str) {
    let path = Path::new("config.yaml");
    let Ok(before) = check::problems(text, path) else { return };
    for change in [edit::Edit::SetDefault(name.into()), edit::Edit::add_model(name, "claude")] {
        if let Ok(after) = edit::apply(text, &change) {
            let found = check::problems(&after, path).expect("an edit leaves YAML");
            assert!(found.len() <= before.len() + 2);
            assert_eq!(edit::apply(&after, &change).is_ok_and(|it| it != after), false);
        }
    }
}
