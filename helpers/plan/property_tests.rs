//! Random plans, notes and edits: a helper makes exactly the requested change, and counts what a
//! person counts.
//!
//! `PLAN_CASES=1000000 cargo test --release --lib plan::property` runs for longer, and
//! `PLAN_SEED=N` begins with case N, whose number a failure prints.

use super::*;

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A line of anything that matters to the grammar.
    fn line(&mut self) -> String {
        let count = self.below(6);
        (0..count)
            .map(|_| if self.below(9) == 0 { self.character() } else { self.one(PARTS).into() })
            .collect()
    }

    fn character(&mut self) -> String {
        let limit = self.one(&[0x80, 0x800, 0x3000, 0x20000]);
        char::from_u32(self.below(limit) as u32)
            .filter(|c| *c != '\n' && *c != '\r')
            .map_or("\u{fffd}".into(), String::from)
    }

    fn text(&mut self) -> String {
        let count = 1 + self.below(6);
        (0..count).map(|_| self.line() + self.one(&["\n", "\n", "\r\n", "\r", "\n\n"])).collect()
    }

    /// A plan with an item, and maybe with lines in doubt.
    fn plan(&mut self) -> String {
        loop {
            let count = 1 + self.below(8);
            let mut text = self
                .one(&["", "", "\u{feff}", "# Title\n", "Title\n===\n", "---\na: []\n---\n"])
                .to_string();
            for _ in 0..count {
                if self.below(3) > 0 {
                    text += self.one(STEPS);
                }
                text += &(self.line() + "\n");
            }
            let end = self.one(&["\n", "\n", "\r\n", "\r"]);
            let text = text.replace('\n', end);
            let text =
                if self.below(4) == 0 { text.trim_end_matches(['\r', '\n']).into() } else { text };
            let plan = Plan::parse(&text);
            if !plan.items.is_empty() {
                return text;
            }
        }
    }
}

const PARTS: &[&str] = &[
    "- ",
    "* ",
    "+ ",
    "1. ",
    "2) ",
    "[ ]",
    "[x]",
    "[",
    "]",
    "[~]",
    "[1]",
    "[]",
    "(",
    "# ",
    "## ",
    "> ",
    "```",
    "````",
    "~~~",
    "`",
    "<!--",
    "-->",
    "<!-",
    "->",
    "Context",
    "**",
    ":",
    "===",
    "---",
    "|",
    "\\",
    "  ",
    "    ",
    "\t",
    " ",
    "\u{a0}",
    "\u{200b}",
    "\u{feff}",
    "a",
    "b c",
    "Don't",
    "“x”",
    "é",
    "写",
    "🦀",
    "\u{1b}[1m",
    "\u{7}",
    "\0",
    "\u{85}",
    "\u{2028}",
    "Note from dispatcher:",
    "> **Note from dispatcher:** ",
    "…",
    "--",
    "EOF",
];

const STEPS: &[&str] = &[
    "- [ ] ",
    "* [x] ",
    "+ [?] ",
    "1. [!] ",
    "2) [ ] ",
    "-[ ]",
    "- [~] ",
    "- [] ",
    "  - [ ] ",
    "\t- [X] ",
    "    1. [✓] ",
];

/// Runs the property for each case, and names the case that fails.
fn cases(property: impl Fn(&mut Random)) {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("PLAN_SEED").unwrap_or(0);
    for case in first..first + number("PLAN_CASES").unwrap_or(1000) {
        let run = std::panic::AssertUnwindSafe(|| property(&mut Random(case << 20)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("it was case {case}: PLAN_SEED={case} PLAN_CASES=1");
            std::panic::resume_unwind(panic);
        }
    }
}

fn doubts(plan: &Plan) -> Vec<&str> {
    plan.doubts.iter().map(|doubt| doubt.text.as_str()).collect()
}

fn facts(plan: &Plan) -> Vec<(String, Marker, String)> {
    let items = plan.items.iter();
    items.map(|item| (item.number.clone(), item.marker, item.text.clone())).collect()
}

#[test]
fn note_at_an_item_changes_its_line_and_adds_lines_below() {
    cases(|random| {
        let text = random.plan();
        let mut note = random.text();
        let marker = random.one(&[Marker::Done, Marker::Blocked, Marker::Failed, Marker::Open]);
        let before = Plan::parse(&text);
        let at = random.below(before.items.len());
        let mut plan = before.clone();
        let name = (at + 1).to_string();
        if plan.mark(&name, marker, &note).is_err() {
            // A list in the note would move the end of an odd fence; the refusal names the remedy.
            assert_eq!(plan.to_string(), text, "{note:?}");
            note = "plain words".into();
            plan.mark(&name, marker, &note).expect(&text);
        }
        let mut wanted = facts(&before);
        wanted[at].1 = marker;
        assert_eq!(facts(&plan), wanted, "{text:?} {note:?}");
        assert_eq!(
            (doubts(&plan), &plan.title),
            (doubts(&before), &before.title),
            "{text:?} {note:?}"
        );
        // All other lines are there, in their order.
        let written = plan.to_string();
        let (old, mut new) = (lines::split(&text), lines::split(&written));
        let item = before.items[at].line;
        let last = item + before.items[at].notes.len();
        let added: Vec<_> = new.drain(last + 1..last + 1 + plan.lines.len() - old.len()).collect();
        assert!(added.iter().all(|line| lines::trimmed(line).0 >= 2), "{text:?} {note:?}");
        for (number, (old, new)) in old.iter().zip(&new).enumerate().filter(|(at, _)| *at != item) {
            assert_eq!(
                old.trim_end_matches(['\r', '\n']),
                new.trim_end_matches(['\r', '\n']),
                "{number}"
            );
        }
        plan.mark(&name, marker, &note).expect("again");
        assert_eq!(plan.to_string(), written, "again changes nothing");
        assert_eq!(Plan::parse(&written).to_string(), written);
    });
}

#[test]
fn note_from_the_dispatcher_is_counted_once_and_is_no_step() {
    cases(|random| {
        let before = Plan::parse(&random.plan());
        let mut plan = before.clone();
        let notes: Vec<String> = (0..1 + random.below(3)).map(|_| random.text()).collect();
        for note in &notes {
            let count = plan.count_notes(note);
            plan.append_note(note).expect(note);
            assert_eq!(plan.count_notes(note), count + 1, "{note:?}\n{plan}");
        }
        assert_eq!(facts(&plan), facts(&before), "{notes:?}");
        assert_eq!((doubts(&plan), &plan.title), (doubts(&before), &before.title), "{notes:?}");
        let text = plan.to_string();
        assert!(text.starts_with(before.to_string().trim_end_matches(['\r', '\n'])), "{text:?}");
        let edited = Plan::parse(&blanks(random, &text));
        for note in &notes {
            assert_eq!(edited.count_notes(note), plan.count_notes(note), "{note:?}\n{edited}");
        }
    });
}

/// The text after an editor's changes to line ends, quotes and blanks.
fn blanks(random: &mut Random, text: &str) -> String {
    let end = random.one(&["\n", "\r\n", "\r"]);
    let curly = random.below(2) == 0;
    let mut lines = Vec::new();
    for line in lines::split(text) {
        let line = line.trim_end_matches(['\r', '\n']);
        let line = if random.below(2) == 0 { line.trim_end() } else { line };
        lines.push(if curly { line.replace('\'', "’").replace('"', "”") } else { line.into() });
    }
    lines.join(end) + random.one(&["", "\n", " \n\n"])
}

#[test]
fn any_text_after_a_box_is_one_item_and_any_plan_is_kept() {
    cases(|random| {
        let words = random.line();
        let plan = Plan::parse(&format!("# {words}\n\n- [ ] {words}\n"));
        let shown = words.trim_matches(lines::is_blank);
        if plan.context.is_none() && !words.contains("<!--") {
            assert_eq!(plan.items.iter().map(|item| &*item.text).collect::<Vec<_>>(), [shown]);
            assert_eq!(
                plan.doubts.len(),
                usize::from(lines::find(&format!("# {words}")).is_some())
            );
        }
        let text = random.text();
        let plan = Plan::parse(&text);
        assert_eq!(plan.to_string(), text);
        // In plans without fences and comments, each open box at the start of a point is counted or
        // in doubt.
        let hides = ["```", "~~~", "<!--"].iter().any(|it| text.contains(it));
        for (number, line) in (1..).zip(&plan.lines).filter(|_| !hides) {
            let is_step =
                ["- [ ] ", "* [ ] ", "1. [ ] "].iter().any(|it| line.trim().starts_with(it));
            let counted = plan.items.iter().any(|item| item.line + 1 == number);
            let doubted = plan.doubts.iter().any(|doubt| doubt.line == number);
            assert!(!is_step || counted || doubted, "{line:?} in {text:?}");
            assert!(!(counted && doubted), "{line:?} in {text:?}");
        }
        let _ = Plan::parse_new(&text, Path::new("plan.md"));
    });
}

const WORDS: [&str; 10] = [
    "Read the code",
    "Don't break it",
    "Write tests",
    "Write tests for \"b\"",
    "写测试",
    "a — b",
    "Ship...",
    "T001 [P] Model",
    "`[ ]` boxes",
    "42",
];

const MARKS: [(&str, bool); 11] = [
    (" ", false),
    ("x", true),
    ("X", true),
    ("✓", true),
    ("~", false),
    ("-", false),
    ("/", false),
    ("", false),
    ("  ", false),
    ("?", false),
    ("\u{a0}", false),
];

/// A step as a foreign editor writes it, and `true` if it is ticked.
fn step(random: &mut Random, words: &str) -> (String, bool) {
    let (mark, done) = random.one(&MARKS);
    let list = random.one(&["- ", "* ", "+ ", "1. ", "7) ", "-", "-\u{a0}", "  - ", "\t* "]);
    let words = match random.below(4) {
        0 => words.replace('\'', "’").replace('"', "“").replace("...", "…"),
        1 => words.replace(' ', "\u{a0}"),
        2 => words.replace(' ', "  "),
        _ => words.into(),
    };
    let remark = random.one(&["", "", "", " ", " — by hand", ": see below", " (done)"]);
    (format!("{list}[{mark}] {words}{remark}"), done)
}

/// An item of the copy that is in the edited plan, or an inserted one.
struct Edited {
    of: Option<usize>,
    line: String,
    done: bool,
}

#[test]
fn foreign_edit_between_two_ticks_changes_no_other_item() {
    cases(|random| {
        let count = 1 + random.below(WORDS.len());
        let copy: String = WORDS[..count].iter().map(|words| format!("- [ ] {words}\n")).collect();
        let copy = Plan::parse(&format!("# Title\n\n{copy}\n## Context\nWords.\n"));
        let mut edited: Vec<Edited> = Vec::new();
        for (of, words) in WORDS[..count].iter().enumerate() {
            // Some are deleted, some moved.
            if random.below(6) > 0 {
                let (line, done) = step(random, words);
                let at = if random.below(4) == 0 {
                    random.below(edited.len() + 1)
                } else {
                    edited.len()
                };
                edited.insert(at, Edited { of: Some(of), line, done });
            }
        }
        for number in 0..random.below(3) {
            let (line, done) = step(random, &format!("Inserted {number}"));
            edited.insert(random.below(edited.len() + 1), Edited { of: None, line, done });
        }
        let mut text = String::from("# Title\n\n");
        for item in &edited {
            text += &item.line;
            text += random.one(&["\n", "\n", "\n\n", "\n  a note\n", "\n\n## Part\n\n", "\n---\n"]);
        }
        let text = blanks(random, &(text + "\n## Context\nWords.\n"));
        let plan = Plan::parse(&text).numbered_as(&copy);

        let own = |of: Option<usize>| of.map(|of| (of + 1).to_string());
        assert_eq!(plan.doubts, [], "{text}");
        assert_eq!(plan.items.len(), edited.len(), "{text}");
        assert_eq!(plan.done(), edited.iter().filter(|item| item.done).count(), "{text}");
        for (item, edited) in plan.items.iter().zip(&edited) {
            assert_eq!(
                Some(&item.number).filter(|it| !it.contains('.')),
                own(edited.of).as_ref(),
                "{text}"
            );
        }
        let there = |of: usize| edited.iter().any(|item| item.of == Some(of));
        let gone: Vec<usize> = (0..count).filter(|of| !there(*of)).collect();
        assert_eq!(
            plan.lost.iter().map(|lost| lost.number - 1).collect::<Vec<_>>(),
            gone,
            "{text}"
        );

        // A tick by number, or by a text that names an item.
        let of = random.below(count);
        let name = if random.below(2) == 0 { (of + 1).to_string() } else { WORDS[of].to_string() };
        let mut ticked = plan.clone();
        match (ticked.mark(&name, Marker::Done, "ticked"), there(of)) {
            (Ok(()), true) => {
                let marks = |plan: &Plan| {
                    facts(plan)
                        .into_iter()
                        .filter(|(it, ..)| own(Some(of)).as_ref() != Some(it))
                        .collect::<Vec<_>>()
                };
                assert_eq!(marks(&ticked), marks(&plan), "{text}");
                assert_eq!(ticked.item(&(of + 1).to_string()).expect("there").marker, Marker::Done);
            }
            // The text may be that of several items with remarks, or in a remark of another.
            (Err(_), there) => {
                assert!(!there || name == WORDS[of], "{name} in {text}");
                assert_eq!(ticked.to_string(), text);
            }
            (Ok(()), false) => {
                // Another item has the text.
                assert!(
                    name == WORDS[of]
                        && facts(&ticked).iter().any(|(.., it)| plain(it).contains(&plain(&name))),
                    "{text}"
                );
            }
        }

        // The printed remedies work: plain --resume restores lost items, and --skip names each of
        // them.
        let options = plan.skip_lost();
        let mut mended = plan.clone();
        mended.restore().expect(&text);
        assert_eq!(mended.lost, []);
        assert_eq!(mended.items.len(), plan.items.len() + gone.len());
        for option in options.split(" --skip ").skip(1) {
            let name = option.trim_matches('\'').replace(r"'\''", "'");
            let item = mended.item(&name).expect(option).clone();
            assert!(
                gone.iter().any(|of| (of + 1).to_string() == item.number),
                "{option} in {mended}"
            );
            mended.mark(&name, Marker::Done, "skipped").expect(option);
        }
    });
}
