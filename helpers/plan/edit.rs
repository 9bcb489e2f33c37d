//! Changes a plan, each proved to have changed what was asked for and nothing else.

use std::collections::HashMap;

use crate::error::{Exit, Refusal};
use crate::text::{sort, strip_escapes};

use super::lines::{self, is_blank, plain};
use super::{Item, Marker, Plan};

/// The start of a note from the dispatcher, after the `>` of a quotation.
const NOTE: &str = "**Note from dispatcher:**";

impl Plan {
    /// Sets an item's marker and adds a note in the original's form: below it, indented by two
    /// spaces, or as far as the item's text. The item is named by its number or its words. A marker
    /// that is set and a note that is there are left as they are, so that a repeated call changes
    /// nothing.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is no such item, or it cannot be changed alone. Nothing is changed
    /// then.
    pub fn mark(&mut self, name: &str, marker: Marker, note: &str) -> Result<(), Refusal> {
        let index = self.index(name)?;
        let item = &self.items[index];
        let mut lines = self.lines.clone();
        if item.marker != marker {
            set_mark(&mut lines[item.line], marker);
        }
        let (note, old) = (note_lines(note), &item.notes);
        let is_same = |old: &[String]| note.iter().zip(old).all(|(a, b)| plain(a) == plain(b));
        if !note.is_empty() && !old.windows(note.len()).any(is_same) {
            let text = &self.lines[item.line];
            let indent = " ".repeat(lines::note_column(text));
            let below = item.line + 1 + old.len();
            let end = end_of(text);
            end_line(&mut lines[below - 1], end);
            let new = note.iter().map(|line| format!("{indent}{line}{end}"));
            lines.splice(below..below, new);
        }
        let wanted = |at, item: &Item| if at == index { marker } else { item.marker };
        self.put(&lines, Some(index), wanted)
    }

    /// Opens blocked and failed items again, for another attempt. Their notes stay.
    ///
    /// # Errors
    /// [`Exit::Data`] if that would change anything else.
    pub fn reopen(&mut self) -> Result<(), Refusal> {
        let wanted = |_, item: &Item| match item.marker {
            Marker::Blocked | Marker::Failed => Marker::Open,
            marker => marker,
        };
        let mut lines = self.lines.clone();
        for item in self.items.iter().filter(|item| wanted(0, item) != item.marker) {
            set_mark(&mut lines[item.line], Marker::Open);
        }
        self.put(&lines, None, wanted)
    }

    /// Puts the items back that the worker was given and that are lost, open, each behind the one
    /// that was before it.
    ///
    /// # Errors
    /// [`Exit::Data`] if that would change another item.
    pub fn restore(&mut self) -> Result<(), Refusal> {
        if self.lost.is_empty() {
            return Ok(());
        }
        let below = |item: &Item| item.line + 1 + item.notes.len();
        let place: HashMap<&str, usize> =
            self.items.iter().map(|item| (item.number.as_str(), below(item))).collect();
        let mut at = self.items.first().map_or(self.top, |item| item.line);
        let mut lost = self.lost.iter().peekable();
        let mut back = Vec::new();
        for number in 1..=self.start.as_ref().map_or(0, Vec::len) {
            match lost.next_if(|lost| lost.number == number) {
                Some(lost) => back.push((at, lost)),
                None => at = place.get(&*number.to_string()).copied().unwrap_or(at),
            }
        }
        sort(&mut back, |(one, _), (other, _)| one.cmp(other));
        let end = end_of(self.lines.first().map_or("", |line| line));
        let mut lines = self.lines.clone();
        for (at, lost) in back.into_iter().rev() {
            lines[..at].last_mut().into_iter().for_each(|above| end_line(above, end));
            lines.insert(at, format!("- [ ] {}{end}", lost.text));
        }
        let mut new = self.read(&lines);
        let all = new.items.clone();
        new.items
            .retain(|item| self.lost.iter().all(|lost| lost.number.to_string() != item.number));
        if !new.lost.is_empty()
            || new.items.len() + self.lost.len() != all.len()
            || !self.differs_only(&new, None, |_, item| item.marker)
        {
            return Refusal::new(Exit::Data, "the lost items cannot be put back")
                .place(self.lost_words(None))
                .refuse("put their lines back by hand, above the other items");
        }
        new.items = all;
        *self = new;
        Ok(())
    }

    /// Appends a note from the dispatcher at the end, in the original's form.
    ///
    /// # Errors
    /// [`Exit::Data`] if that would change anything else.
    pub fn append_note(&mut self, note: &str) -> Result<(), Refusal> {
        let mut lines = self.lines.clone();
        let end = lines.first().map_or("\n", |line| end_of(line)).to_string();
        if let Some(last) = lines.last_mut() {
            end_line(last, &end);
        }
        let body = quotation(note).join(&format!("{end}> "));
        lines.extend([end.clone(), format!("> {NOTE} {body}{end}")]);
        self.put(&lines, None, |_, item| item.marker)
    }

    /// How often a note from the dispatcher stands in the plan, whatever an editor did to its
    /// blanks, line ends and quotes.
    pub fn count_notes(&self, note: &str) -> usize {
        let wanted = plain(&quotation(note).join(" "));
        let quoted = self.lines.iter().map(|line| {
            let (column, text) = lines::trimmed(line);
            text.strip_prefix('>').filter(|_| column < 2).map(|it| lines::trimmed(it).1)
        });
        let quoted: Vec<Option<&str>> = quoted.collect();
        let is_first = |line: &Option<&str>| line.is_some_and(|it| it.starts_with(NOTE));
        let quotations = quoted.split(Option::is_none);
        let notes = quotations.flat_map(|lines| lines.chunk_by(|_, next| !is_first(next)));
        let notes = notes.filter(|lines| is_first(&lines[0])).map(|lines| {
            let lines: Vec<&str> = lines.iter().copied().flatten().collect();
            plain(&lines.join(" ")[NOTE.len()..])
        });
        notes.filter(|note| *note == wanted).count()
    }

    fn read(&self, lines: &[String]) -> Self {
        let mut new = Self::parse(&lines.concat());
        if let Some(start) = &self.start {
            new.number(start.clone());
        }
        new
    }

    /// Takes the changed lines over if they change the markers that are wanted and add notes to the
    /// item `noted`, and nothing else.
    pub(super) fn put(
        &mut self,
        lines: &[String],
        noted: Option<usize>,
        wanted: impl Fn(usize, &Item) -> Marker,
    ) -> Result<(), Refusal> {
        let new = self.read(lines);
        if !self.differs_only(&new, noted, wanted) {
            return Refusal::new(Exit::Data, "the change would reach more than that item")
                .place("a code fence or comment of the plan would end elsewhere")
                .refuse("say it in one line of plain words");
        }
        *self = new;
        Ok(())
    }

    /// Returns true if the other plan differs only in the expected markers and in notes that were
    /// added to the item `noted`.
    fn differs_only(
        &self,
        new: &Self,
        noted: Option<usize>,
        wanted: impl Fn(usize, &Item) -> Marker,
    ) -> bool {
        let same = |(at, (old, new)): (usize, (&Item, &Item))| {
            // An inserted item is counted again where another one is put back before it.
            (old.number == new.number || old.number.contains('.'))
                && old.text == new.text
                && new.marker == wanted(at, old)
                && new.notes.starts_with(&old.notes)
                && (noted == Some(at) || new.notes.len() == old.notes.len())
        };
        let doubts = |plan: &Self| plan.doubts.iter().map(|it| it.text.clone()).collect::<Vec<_>>();
        self.items.len() == new.items.len()
            && self.items.iter().zip(&new.items).enumerate().all(same)
            && doubts(self) == doubts(new)
            && self.title == new.title
            && self.context.is_some() == new.context.is_some()
    }
}

fn set_mark(line: &mut String, marker: Marker) {
    if let Some(mark) = lines::find(line).map(|found| found.mark) {
        line.replace_range(mark, &marker.as_char().to_string());
    }
}

/// The end of a line, which that of a last line without one would be.
fn end_of(line: &str) -> &'static str {
    ["\r\n", "\r"].into_iter().find(|end| line.ends_with(end)).unwrap_or("\n")
}

fn end_line(line: &mut String, end: &str) {
    if !line.ends_with(['\r', '\n']) {
        line.push_str(end);
    }
}

/// The lines of an item's note, so that none of them is a step, a heading, a fence or a comment.
fn note_lines(note: &str) -> Vec<String> {
    let lines = harmless(note).into_iter().filter(|line| !line.is_empty());
    let escape = |line: String| if lines::is_structure(&line) { format!("\\{line}") } else { line };
    lines.map(escape).collect()
}

/// The lines of a note from the dispatcher, so that none of them is a step, a comment or the
/// beginning of another note. A quotation keeps headings and fences to itself.
fn quotation(note: &str) -> Vec<String> {
    let escape = |line: String| if line.starts_with(NOTE) { format!("\\{line}") } else { line };
    harmless(note.trim()).into_iter().map(escape).collect()
}

/// The lines of a text without control characters, whose boxes are no steps and whose comments are
/// none: a backslash stands in them.
fn harmless(text: &str) -> Vec<String> {
    let shown = |c: &char| matches!(c, '\n' | '\r' | '\t') || !c.is_control();
    let text: String = strip_escapes(text).chars().filter(shown).collect();
    let text = text.replace("\r\n", "\n").replace("<!--", "<\\!--").replace("-->", "--\\>");
    let lines = text.split(['\n', '\r']).map(|line| {
        let line = line.trim_matches(is_blank);
        match (lines::find(line), line.find('[')) {
            (Some(_), Some(bracket)) => format!("{}\\{}", &line[..bracket], &line[bracket..]),
            _ => line.to_string(),
        }
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::PLAN;
    use super::*;

    #[test]
    fn marking_changes_only_its_own_line_and_adds_the_note_below() {
        let mut plan = Plan::parse(PLAN);
        plan.mark("4", Marker::Done, "three lines").expect("marked");
        let expected = PLAN.replace("- [ ] Write\n", "- [x] Write\n  three lines\n");
        assert_eq!(plan.to_string(), expected);
        plan.mark("4", Marker::Done, "three  lines").expect("marked again");
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn tick_keeps_the_form_of_its_line() {
        let rows = [
            ("-[ ]a", "-[x]a"),
            ("- [] a", "- [x] a"),
            ("1. [  ] a", "1. [x] a"),
            ("-\u{a0}[\u{a0}]\u{a0}a", "-\u{a0}[x]\u{a0}a"),
            ("- [~] a", "- [x] a"),
            ("- [✓] a", "- [✓] a"),
            ("* [X] a", "* [X] a"),
            ("\u{feff}+ [/] a", "\u{feff}+ [x] a"),
        ];
        for (before, after) in rows {
            let mut plan = Plan::parse(before);
            plan.mark("1", Marker::Done, "").expect("marked");
            assert_eq!(plan.to_string(), after);
        }
    }

    #[test]
    fn other_line_ends_and_a_missing_last_one_stay() {
        let mut plan = Plan::parse("* [ ] a\r\n* [ ] b");
        plan.mark("1", Marker::Failed, "no").expect("marked");
        plan.mark("2", Marker::Done, "").expect("marked");
        assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b");
        plan.mark("2", Marker::Done, "ok").expect("marked");
        assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b\n  ok\n");
        plan.mark("2", Marker::Done, "more").expect("marked");
        assert_eq!(plan.to_string(), "* [!] a\r\n  no\r\n* [x] b\n  ok\n  more\n");
    }

    #[test]
    fn notes_cannot_become_structure() {
        let rows = [
            ("- [ ] b", "- \\[ ] b"),
            ("1) [x] b", "1) \\[x] b"),
            ("[1] Smith", "\\[1] Smith"),
            ("### [ ] b", "\\### \\[ ] b"),
            ("```", "\\```"),
            ("~~~sh", "\\~~~sh"),
            ("- ```", "\\- ```"),
            ("# b", "\\# b"),
            ("## Context", "\\## Context"),
            ("**Context:**", "\\**Context:**"),
            ("===", "\\==="),
            ("> b", "\\> b"),
            ("- # b", "\\- # b"),
            ("#12 is fixed", "#12 is fixed"),
            ("- b", "- b"),
            ("**b**", "**b**"),
            ("---", "\\---"),
            ("a <!-- b", "a <\\!-- b"),
            ("-->", "--\\>"),
            ("a\u{1b}[1mb\u{7}", "ab"),
            ("a `[ ]` **b** [c](d)", "a `[ ]` **b** [c](d)"),
            ("```a``` b", "```a``` b"),
        ];
        for (note, written) in rows {
            let mut plan = Plan::parse("- [ ] a\n---\n- [ ] z\n\n## Context\n");
            plan.mark("1", Marker::Done, note).expect(note);
            let expected = format!("- [x] a\n  {written}\n---\n- [ ] z\n\n## Context\n");
            assert_eq!(plan.to_string(), expected);
            assert_eq!((plan.done(), plan.items().len()), (1, 2));
        }
    }

    /// Found by a long run: a note that is indented less than the item's text ends a fence in it.
    #[test]
    fn note_does_not_end_a_comment_in_its_own_item() {
        let mut plan = Plan::parse("10. [ ] a\n    <!-- b\n- [ ] c\n");
        plan.mark("1", Marker::Done, "note").expect("marked");
        assert_eq!(plan.to_string(), "10. [x] a\n    <!-- b\n    note\n- [ ] c\n");
    }

    /// Found by a long run: a quotation ends the paragraph on which the fence's list item depends.
    #[test]
    fn note_does_not_end_the_list_item_of_a_fence() {
        for note in ["> b", "# b", "- # b", "---", "```"] {
            let mut plan = Plan::parse("- [ ] a\nlazy\n\n  ~~~\n- [ ] c\n");
            plan.mark("1", Marker::Done, note).expect(note);
            assert_eq!((plan.done(), plan.items().len(), plan.doubts().len()), (1, 2, 0));
        }
    }

    #[test]
    fn nested_step_keeps_its_note_below_it() {
        let mut plan = Plan::parse("- [ ] a\n  - [ ] b\n    old\n  - [ ] c\n");
        plan.mark("b", Marker::Done, "new").expect("marked");
        plan.mark("a", Marker::Done, "all").expect("marked");
        let expected = "- [x] a\n  all\n  - [x] b\n    old\n    new\n  - [ ] c\n";
        assert_eq!(plan.to_string(), expected);
    }

    #[test]
    fn change_that_would_reach_further_is_refused() {
        let mut plan = Plan::parse("- [ ] a\n- [ ] b\n");
        let reaching = [
            "- [x] a\n- [x] b\n",
            "- [x] a\n",
            "- [x] a\n- [ ] b\n- [ ] c\n",
            "- [x] a\n- [ ] b!\n",
            "- [x] a\n- [ ] b\n  note\n",
            "- [x] a\n```\n- [ ] b\n",
            "# T\n- [x] a\n- [ ] b\n",
            "- [x] a\n- [ ] b\n## Context\n",
        ];
        for text in reaching {
            let wanted = |at, item: &Item| if at == 0 { Marker::Done } else { item.marker };
            plan.put(&lines::split(text), Some(0), wanted).expect_err(text);
            assert_eq!(plan.to_string(), "- [ ] a\n- [ ] b\n");
        }
    }

    #[test]
    fn note_is_found_after_any_editors_changes() {
        let mut plan = Plan::parse("- [ ] a");
        plan.append_note("Don't use \"npx\".\n\n- [ ] Really...").expect("appended");
        let expected =
            "- [ ] a\n\n> **Note from dispatcher:** Don't use \"npx\".\n> \n> - \\[ ] Really...\n";
        assert_eq!(plan.to_string(), expected);
        assert_eq!(plan.items().len(), 1);
        let edits = [
            expected.replace('\n', "\r\n"),
            expected.replace('\n', "\r"),
            expected.replace("> \n", ">\n"),
            expected.trim_end().to_string(),
            expected.replace("Don't", "Don’t").replace("\"npx\"", "“npx”").replace("...", "…"),
            expected.replace("\n> \n> ", " "),
            expected.replace("> ", ">\u{a0}"),
        ];
        for text in edits {
            let plan = Plan::parse(&text);
            assert_eq!(plan.count_notes("Don't use \"npx\".\n\n- [ ] Really..."), 1, "{text:?}");
            assert_eq!(plan.count_notes("Don't use \"npx\"."), 0);
        }
    }

    #[test]
    fn note_that_begins_another_note_is_separate() {
        let mut plan = Plan::parse("- [ ] a\n");
        let notes = ["Stop it", "Stop", "x\n**Note from dispatcher:** Stop", "Stop\nit"];
        for note in notes {
            plan.append_note(note).expect("appended");
        }
        assert_eq!(notes.map(|note| plan.count_notes(note)), [2, 1, 1, 2]);
        // A worker's note at an item is not the dispatcher's.
        plan.mark("1", Marker::Done, "> **Note from dispatcher:** Stop").expect("marked");
        assert_eq!(plan.count_notes("Stop"), 1);
    }
}
