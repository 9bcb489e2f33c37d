//! The plan: a checklist, then `## Context`, then notes. It is the single source of truth for
//! progress, read and edited line by line so that every byte that is not asked for stays.
//!
//! # The grammar
//!
//! ```text
//! step   = blanks list blanks "[" blanks mark blanks "]" text
//! list   = "-" | "*" | "+" | digits "." | digits ")"
//! mark   = nothing | "x" | "X" | "✓" | "✔" | "✅"      done, but nothing is open
//!        | "?" | "!"                                  blocked, failed
//!        | up to three other characters, no letters or digits      open
//! blanks = any white space, also no-break spaces, characters without width, a BOM; or nothing
//! ```
//!
//! Lines end with `\n`, `\r\n` or `\r`. Indentation nests steps and hides none. A step's notes are
//! the lines right below it that are indented by two columns or more.
//!
//! A line is in doubt ([`Doubt`]) if a person may take it for a step and it is not counted:
//!
//! - its brackets hold letters or digits, behind a list marker or at the beginning of the line;
//! - its box stands behind something else than one list marker (`### [ ]`, `> - [ ]`, `[ ]`), or an
//!   empty box within a list item or heading (`- Task 1: [ ]`);
//! - its brackets are followed by `(` or `[`, so that they read as a link;
//! - it stands below a heading that reads "Context" (any level, bold, with a colon). No other
//!   heading ends the plan, and nothing begins it again;
//! - a code fence or HTML comment hides it by CommonMark and not by a plain toggle, or the other way
//!   round; one that is never ended is such a case.
//!
//! A plan with a line in doubt is neither dispatched nor done. Brackets behind a backtick, a
//! backslash or a quotation mark are text, as is everything inside a fence or comment that ends.

mod edit;
mod lines;
mod numbers;

#[cfg(test)]
mod property_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

use crate::error::{Exit, Refusal};
use crate::text::{quoted, sanitize, shorten};
use lines::{Why, plain};
pub use numbers::LostItem;

/// The longest quotation of a line of the plan in a refusal, in bytes.
const QUOTE: usize = 80;

/// An item's state, written between its brackets. The four markers are the original's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Marker {
    /// `[ ]`: not started, or in progress if it is the first such item.
    Open,
    /// `[x]`: done.
    Done,
    /// `[?]`: blocked on an answer; the explanation is the item's note.
    Blocked,
    /// `[!]`: failed; the error is the item's note.
    Failed,
}

impl Marker {
    fn as_char(self) -> char {
        match self {
            Self::Open => ' ',
            Self::Done => 'x',
            Self::Blocked => '?',
            Self::Failed => '!',
        }
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.as_char())
    }
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Item {
    /// The number in the copy that the worker was given, counted from 1; `2.1` for the first line
    /// that was inserted behind item 2 since then.
    pub number: String,
    /// The state.
    pub marker: Marker,
    /// The text of the step, with whatever a worker wrote on the same line.
    pub text: String,
    /// The lines right below that are indented by two columns or more.
    pub notes: Vec<String>,
    /// The text that was added to the item's own line since the worker was given it.
    #[serde(skip)]
    added: String,
    #[serde(skip)]
    line: usize,
}

/// A line that a person may take for a step and that is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The number of the line, counted from 1.
    pub line: usize,
    /// The whole line.
    pub text: String,
    why: Why,
    /// The text of the step if the line were one.
    step: String,
}

impl Doubt {
    /// The change that makes the line a step, or plainly none.
    pub fn remedy(&self) -> &'static str {
        match self.why {
            Why::Word | Why::Box => {
                "write a step as '- [ ] …'; what is not a step has its brackets in backticks"
            }
            Why::Link => {
                "put a blank behind the brackets of a step; a link's name has other letters"
            }
            Why::Context(_) => {
                "move a step above that heading; what is not a step has its brackets in backticks"
            }
            Why::Hidden(_) => {
                "end it where the example ends; a fence around fences needs more backticks than they"
            }
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the plan is in doubt: {}", self.line, self.why.reason())
    }
}

/// A plan as it was read.
#[derive(Clone, Debug)]
pub struct Plan {
    lines: Vec<String>,
    items: Vec<Item>,
    doubts: Vec<Doubt>,
    title: Option<String>,
    /// The line below the title, counted from 0.
    top: usize,
    context: Option<usize>,
    /// The items' texts in the copy that the worker was given, if that is known.
    start: Option<Vec<String>>,
    lost: Vec<LostItem>,
}

impl Plan {
    /// Reads a plan by the grammar of this module.
    pub fn parse(text: &str) -> Self {
        let lines = lines::split(text);
        let (strict, toggled) = (lines::hidden(&lines, true), lines::hidden(&lines, false));
        let front_matter = front_matter(&lines);
        let (mut items, mut doubts): (Vec<Item>, Vec<Doubt>) = (Vec::new(), Vec::new());
        let (mut title, mut top, mut context, mut notes_open) = (None, 0, None, false);
        for (at, line) in lines.iter().enumerate() {
            let (column, trimmed) = lines::trimmed(line);
            let hiders = (strict[at], toggled[at]);
            let seen = hiders == (None, None);
            if seen && at >= front_matter {
                let below = lines.get(at + 1).and_then(|line| lines::underline(line));
                let underlined = below.filter(|_| lines::is_plain(line));
                let heading = lines::heading(line).or(underlined.map(|level| (level, trimmed)));
                let is_title = |level| level == 1 || (level == 2 && underlined.is_some());
                if let Some((level, text)) = heading.filter(|(_, text)| !text.is_empty()) {
                    context = context.or(lines::is_context(text).then_some(at));
                    if title.is_none() && is_title(level) {
                        title = Some(text.to_string());
                        top = at + 1 + usize::from(underlined.is_some());
                    }
                }
            }
            let found = lines::find(line).filter(|_| hiders.0.is_none() || hiders.1.is_none());
            let hidden = hiders.0.or(hiders.1).map(|by| Why::Hidden(by + 1));
            let below = context.map(|heading| Why::Context(heading + 1));
            let why = found.as_ref().and_then(|found| hidden.or(found.why).or(below));
            if let (Some(found), Some(why)) = (&found, why) {
                let step = plain(found.text);
                doubts.push(Doubt { line: at + 1, text: trimmed.into(), why, step });
            }
            match found.filter(|_| why.is_none()) {
                Some(found) => {
                    let (marker, text) = (found.marker, found.text.into());
                    let number = (items.len() + 1).to_string();
                    let (notes, added) = (Vec::new(), String::new());
                    items.push(Item { number, marker, text, notes, added, line: at });
                    notes_open = true;
                }
                None => {
                    notes_open &= column >= 2 && !trimmed.is_empty();
                    if let Some(item) = items.last_mut().filter(|_| notes_open) {
                        item.notes.push(trimmed.into());
                    }
                }
            }
        }
        Self { lines, items, doubts, title, top, context, start: None, lost: Vec::new() }
    }

    /// Reads a plan that is about to be dispatched.
    ///
    /// # Errors
    /// [`Exit::Data`] if it has no item, one without words, or a line in doubt.
    pub fn parse_new(text: &str, path: &Path) -> Result<Self, Refusal> {
        let plan = Self::parse(text);
        let path = path.display();
        if let Some(before) = text.find('\0').map(|at| &text[..at]) {
            let line = before.matches('\n').count() + 1;
            return Refusal::new(Exit::Data, "the plan holds a zero byte")
                .place(format!("{path}, line {line}"))
                .refuse("take it out and call again; no program can be given one");
        }
        if let Some(doubt) = plan.doubts.first() {
            return Refusal::new(Exit::Data, doubt.to_string())
                .place(format!("{path}: {}", shown(&doubt.text)))
                .refuse(format!("{}; then call again", doubt.remedy()));
        }
        if plan.items.is_empty() {
            return Refusal::new(Exit::Data, "the plan has no items")
                .place(format!("{path}: no line like '- [ ] A concrete step'"))
                .refuse("write the steps as checklist items and call again");
        }
        if let Some(item) = plan.items.iter().find(|item| item.text.is_empty()) {
            return Refusal::new(Exit::Data, "the plan has an item without words")
                .place(format!("{path}, line {}", item.line + 1))
                .refuse("say what is to be done and call again");
        }
        Ok(plan)
    }

    /// The steps, in their order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The lines that a person may take for steps and that are not counted.
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// The first heading of level 1, or the first that is underlined, without its marks.
    pub fn title(&self) -> Option<&str> {
        self.title.as_deref()
    }

    /// How many items are ticked.
    pub fn done(&self) -> usize {
        self.items.iter().filter(|item| item.marker == Marker::Done).count()
    }

    /// Returns true if every item is ticked, none is lost and no line is in doubt.
    pub fn complete(&self) -> bool {
        let certain = self.lost.is_empty() && self.doubts.is_empty();
        certain && !self.items.is_empty() && self.current().is_none()
    }

    /// The first item that is not ticked.
    pub fn current(&self) -> Option<&Item> {
        self.items.iter().find(|item| item.marker != Marker::Done)
    }

    /// The first item with that marker.
    pub fn first(&self, marker: Marker) -> Option<&Item> {
        self.items.iter().find(|item| item.marker == marker)
    }

    /// The text and the notes of an item of the worker's copy for a line to the host, if this plan is the
    /// person's: quotation marks hold what does not stand here.
    pub fn attributed(&self, item: &Item) -> (String, Vec<String>) {
        let own = self.own(item);
        let text = own.map_or("", |own| &own.text);
        let written = match item.text[text.len()..].trim_start_matches([' ', ':']) {
            "" => String::new(),
            written => quoted(written),
        };
        let text = format!("{} {written}", sanitize(text)).trim().into();
        let is_own = |note| own.is_some_and(|own| own.notes.contains(note));
        let note = |note| if is_own(note) { sanitize(note) } else { quoted(note) };
        (text, item.notes.iter().map(note).collect())
    }

    /// The explanation of the marker of an item of the worker's copy, if this plan is the person's: the
    /// worker's notes, else what was added to the item's own line, else the line itself.
    pub fn explanation(&self, item: &Item) -> String {
        let own = self.own(item);
        let is_new = |note: &&String| own.is_none_or(|own| !own.notes.contains(note));
        let notes: Vec<&str> = item.notes.iter().filter(is_new).map(|note| &**note).collect();
        match (notes.is_empty(), item.added.is_empty()) {
            (false, _) => quoted(&notes.join("\n")),
            (true, false) => quoted(&item.added),
            _ => self.attributed(item).0,
        }
    }

    /// The item with the text of another one, or with the text before its remark.
    fn own(&self, item: &Item) -> Option<&Item> {
        let with = |text: &str| self.items.iter().find(|own| own.text == text);
        let remarks = || numbers::remarks(&item.text).find_map(|(text, _)| with(text));
        with(&item.text).or_else(remarks)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| f.write_str(line))
    }
}

/// Text of the plan in a refusal.
fn shown(text: &str) -> String {
    shorten(&sanitize(text), QUOTE)
}

/// The number of the first line behind a block of YAML at the beginning.
fn front_matter(lines: &[String]) -> usize {
    let is_rule = |line: &String| lines::trimmed(line).1 == "---";
    let end = lines.iter().skip(1).position(is_rule).filter(|_| lines.first().is_some_and(is_rule));
    end.map_or(0, |at| at + 2)
}
