//! The plan: a checklist, then `## Context`, then notes. It is the single source of truth for
//! progress, read and edited line by line so that every byte that is not asked for stays.

use std::fmt;
use std::path::Path;

use crate::error::Refusal;
use crate::exit::Exit;

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
    fn from_char(mark: &str) -> Self {
        match mark {
            "x" | "X" => Self::Done,
            "?" => Self::Blocked,
            "!" => Self::Failed,
            _ => Self::Open,
        }
    }

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

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Item {
    /// Its state.
    pub marker: Marker,
    /// What is to be done, with whatever a worker wrote on the same line.
    pub text: String,
    /// The lines below it that are indented by two spaces or more.
    pub notes: Vec<String>,
    #[serde(skip)]
    line: usize,
}

impl Item {
    /// The explanation that belongs to the marker: the lines below it, else what was added to the
    /// item's own line since `before`, else the line itself.
    pub fn explanation(&self, before: Option<&str>) -> String {
        if !self.notes.is_empty() {
            return self.notes.join("\n");
        }
        let added = before.and_then(|before| self.text.strip_prefix(before)).map(str::trim);
        let added = added.map(|text| text.trim_start_matches([' ', '-', '–', '—', ':']));
        added.filter(|text| !text.is_empty()).unwrap_or(&self.text).to_string()
    }
}

/// A plan as it was read.
#[derive(Clone, Debug)]
pub struct Plan {
    lines: Vec<String>,
    items: Vec<Item>,
    context: Option<usize>,
}

/// The marker and the text of a line like `- [ ] Read the code`.
fn item(line: &str) -> Option<(Marker, &str)> {
    let bullet = line.trim_start().strip_prefix(['-', '*', '+'])?;
    let inner = bullet.strip_prefix([' ', '\t'])?.trim_start().strip_prefix('[')?;
    let (mark, text) = inner.split_once(']')?;
    let known = matches!(mark, " " | "x" | "X" | "?" | "!");
    let apart = text.is_empty() || text.starts_with([' ', '\t']);
    (known && apart).then(|| (Marker::from_char(mark), text.trim()))
}

impl Plan {
    /// Reads a plan. Items stand before `## Context` and outside code fences.
    pub fn parse(text: &str) -> Self {
        let lines: Vec<String> = text.split_inclusive('\n').map(str::to_string).collect();
        let mut items: Vec<Item> = Vec::new();
        let mut context = None;
        let mut fenced = false;
        let mut notes_open = false;
        for (number, line) in lines.iter().enumerate() {
            let line = line.trim_end();
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            if !fenced && line.eq_ignore_ascii_case("## context") {
                context = Some(number);
                break;
            }
            match item(line).filter(|_| !fenced) {
                Some((marker, text)) => {
                    items.push(Item { marker, text: text.into(), notes: Vec::new(), line: number });
                    notes_open = true;
                }
                None => {
                    let indented = line.starts_with("  ") || line.starts_with('\t');
                    notes_open &= indented;
                    if let Some(item) = items.last_mut().filter(|_| notes_open) {
                        item.notes.push(line.trim().into());
                    }
                }
            }
        }
        Self { lines, items, context }
    }

    /// Reads a plan that is about to be dispatched.
    ///
    /// # Errors
    /// [`Exit::Data`] if it has no item, or one without words.
    pub fn parse_new(text: &str, path: &Path) -> Result<Self, Refusal> {
        let plan = Self::parse(text);
        if let Some(before) = text.find('\0').map(|at| &text[..at]) {
            let line = before.matches('\n').count() + 1;
            return Err(Refusal::new(Exit::Data, "the plan holds a zero byte")
                .place(format!("{}, line {line}", path.display()))
                .next("take it out and call again; no program can be given one"));
        }
        if plan.items.is_empty() {
            return Err(Refusal::new(Exit::Data, "the plan has no items")
                .place(format!("{}: no line like '- [ ] A concrete step'", path.display()))
                .next("write the steps as checklist items and call again"));
        }
        if let Some(item) = plan.items.iter().find(|item| item.text.is_empty()) {
            return Err(Refusal::new(Exit::Data, "the plan has an item without words")
                .place(format!("{}, line {}", path.display(), item.line + 1))
                .next("say what is to be done and call again"));
        }
        Ok(plan)
    }

    /// The steps, in their order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The first heading, without its marks.
    pub fn title(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix("# ")).map(str::trim)
    }

    /// How many items are ticked.
    pub fn done(&self) -> usize {
        self.items.iter().filter(|item| item.marker == Marker::Done).count()
    }

    /// Whether every item is ticked. A plan that has lost its items is not.
    pub fn complete(&self) -> bool {
        !self.items.is_empty() && self.done() == self.items.len()
    }

    /// The first item that is not ticked, with its number counted from 1.
    pub fn current(&self) -> Option<(usize, &Item)> {
        let open = |(_, item): &(usize, &Item)| item.marker != Marker::Done;
        (1..).zip(&self.items).find(open)
    }

    /// The first item with that marker, with its number counted from 1.
    pub fn first(&self, marker: Marker) -> Option<(usize, &Item)> {
        (1..).zip(&self.items).find(|(_, item)| item.marker == marker)
    }

    /// The plan from `## Context` on, notes included.
    pub fn context(&self) -> Option<String> {
        self.context.map(|line| self.lines[line..].concat())
    }

    /// Sets an item's marker and adds a note in the original's form: on the next line, indented by
    /// two spaces. Items count from 1. A marker that is set already and a note that stands there
    /// already are left as they are, so that a repeated call changes nothing.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is no such item.
    pub fn mark(&mut self, number: usize, marker: Marker, note: &str) -> Result<(), Refusal> {
        let item =
            number.checked_sub(1).and_then(|index| self.items.get(index)).ok_or_else(|| {
                Refusal::new(Exit::Data, format!("the plan has no item {number}"))
                    .place(format!("it has {}, counted from 1", self.items.len()))
            })?;
        let line = &mut self.lines[item.line];
        let open = line.find('[').unwrap_or_default();
        line.replace_range(open..open + 3, &marker.to_string());
        let end = if line.ends_with("\r\n") { "\r\n" } else { "\n" };
        let notes: Vec<String> = note
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !item.notes.iter().any(|old| old == line))
            .map(|line| format!("  {line}{end}"))
            .collect();
        if !notes.is_empty() && !line.ends_with('\n') {
            line.push_str(end);
        }
        let below = item.line + 1 + item.notes.len();
        self.lines.splice(below..below, notes);
        *self = Self::parse(&self.to_string());
        Ok(())
    }

    /// Opens blocked and failed items again, for another attempt. Their notes stay.
    pub fn reopen(&mut self) {
        for item in &mut self.items {
            if matches!(item.marker, Marker::Blocked | Marker::Failed) {
                let line = &mut self.lines[item.line];
                let open = line.find('[').unwrap_or_default();
                line.replace_range(open..open + 3, &Marker::Open.to_string());
                item.marker = Marker::Open;
            }
        }
    }

    /// Appends a note from the dispatcher at the end, in the original's form.
    pub fn append_note(&mut self, note: &str) {
        let mut text = self.to_string();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("\n{}", quoted_note(note)));
        *self = Self::parse(&text);
    }

    /// How often a note from the dispatcher stands in the plan.
    pub fn count_notes(&self, note: &str) -> usize {
        self.to_string().matches(&quoted_note(note)).count()
    }
}

/// A note as it stands in the plan.
fn quoted_note(note: &str) -> String {
    let body = note.trim().lines().collect::<Vec<_>>().join("\n> ");
    format!("> **Note from dispatcher:** {body}\n")
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| f.write_str(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: &str = "# Fix it\n\n- [x] Read\n  in 2 files\n- [?] Choose\n  Which one?\n- [!] Test — cargo is missing\n- [ ] Write\n\n## Context\n- [ ] not an item\n";

    #[test]
    fn the_four_markers_and_both_forms_of_notes_are_read() {
        let plan = Plan::parse(PLAN);
        let seen: Vec<_> =
            plan.items().iter().map(|i| (i.marker.to_string(), i.text.as_str())).collect();
        assert_eq!(
            seen,
            [
                ("[x]".into(), "Read"),
                ("[?]".into(), "Choose"),
                ("[!]".into(), "Test — cargo is missing"),
                ("[ ]".into(), "Write"),
            ]
        );
        assert_eq!(plan.items()[1].explanation(None), "Which one?");
        assert_eq!(plan.items()[2].explanation(Some("Test")), "cargo is missing");
        assert_eq!(plan.title(), Some("Fix it"));
        assert_eq!(plan.current().map(|(number, _)| number), Some(2));
        assert_eq!(plan.context().as_deref(), Some("## Context\n- [ ] not an item\n"));
    }

    #[test]
    fn what_is_an_item_and_what_is_not() {
        let items = ["- [ ] a", "  * [x] a", "+\t[X]\ta", "- [?] a", "- [!] a", "-  [ ]   a"];
        assert!(items.iter().all(|line| item(line).is_some_and(|(_, text)| text == "a")));
        let others = ["-[ ] a", "- [] a", "- [y] a", "- [ ]a", "[ ] a", "- a [x]", "- [link](x)"];
        assert_eq!(others.iter().find(|line| item(line).is_some()), None);
    }

    #[test]
    fn marking_changes_only_its_own_line_and_adds_the_note_below() {
        let mut plan = Plan::parse(PLAN);
        plan.mark(4, Marker::Done, "three lines").expect("marked");
        let expected = PLAN.replace("- [ ] Write\n", "- [x] Write\n  three lines\n");
        assert_eq!(plan.to_string(), expected);
        plan.mark(4, Marker::Done, "three lines").expect("marked again");
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn other_line_ends_and_a_missing_last_one_stay() {
        let mut plan = Plan::parse("* [ ] a\r\n* [ ] b");
        plan.mark(1, Marker::Failed, "no").expect("marked");
        plan.mark(2, Marker::Done, "").expect("marked");
        assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b");
        plan.mark(2, Marker::Done, "ok").expect("marked");
        assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b\n  ok\n");
    }

    #[test]
    fn a_checklist_inside_a_code_fence_is_not_the_plan() {
        let plan = Plan::parse("- [ ] a\n```\n- [ ] b\n## Context\n```\n- [ ] c\n");
        assert_eq!(plan.items().len(), 2);
    }

    #[test]
    fn a_note_goes_to_the_end() {
        let mut plan = Plan::parse("- [ ] a");
        plan.append_note("It is `npx`.\nReally.");
        let expected = "- [ ] a\n\n> **Note from dispatcher:** It is `npx`.\n> Really.\n";
        assert_eq!(plan.to_string(), expected);
    }
}
