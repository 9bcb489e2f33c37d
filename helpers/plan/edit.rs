//! Changes a plan, each proved to have changed what was asked for and nothing else.

use std::collections::HashMap;

use crate::error::Refusal;
use crate::exit::Exit;
use crate::text::strip_escapes;

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
        back.sort_by_key(|(at, _)| *at);
        let end = end_of(self.lines.first().map_or("", |line| line));
        let mut lines = self.lines.clone();
        let mut own = Vec::new();
        for (inserted, (at, lost)) in back.into_iter().enumerate() {
            own.push(at + inserted);
            lines[..at + inserted].last_mut().into_iter().for_each(|above| end_line(above, end));
            lines.insert(at + inserted, format!("- [ ] {}{end}", lost.text));
        }
        let mut new = self.read(&lines);
        let all = new.items.clone();
        new.items.retain(|item| own.binary_search(&item.line).is_err());
        if !new.lost.is_empty()
            || new.items.len() + own.len() != all.len()
            || !self.differs_only(&new, None, |_, item| item.marker)
        {
            return Err(Refusal::new(Exit::Data, "the lost items cannot be put back")
                .place(self.lost_words())
                .next("put their lines back by hand, above the other items"));
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
            return Err(Refusal::new(Exit::Data, "the change would reach more than that item")
                .place("a code fence or comment of the plan would end elsewhere")
                .next("say it in one line of plain words"));
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
            // An inserted item is counted anew where another one is put back before it.
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
