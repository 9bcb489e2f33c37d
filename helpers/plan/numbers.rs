//! Numbers the items as the copy of the plan does that the worker was given, finds those that the
//! plan lost since then, and finds an item by its number or its words.

use std::collections::{HashMap, VecDeque};

use super::lines::plain;
use super::{Item, Plan, shown};
use crate::error::{Exit, Refusal};
use crate::text::{quoted, sanitize, sort};

/// How many items a refusal names.
const CANDIDATES: usize = 5;

/// The longest item, in bytes, that may be another one with a remark.
const LONGEST_REMARK: usize = 4096;

/// An item of the copy that the worker was given, which is not in the plan any more.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LostItem {
    /// The number in that copy.
    pub number: usize,
    /// The text of the step.
    pub text: String,
}

impl Plan {
    /// The plan with the item numbers of the copy that the worker was given.
    #[must_use]
    pub fn numbered_as(mut self, copy: &Self) -> Self {
        self.number(copy.items.iter().map(|item| item.text.clone()).collect());
        self
    }

    pub(super) fn number(&mut self, start: Vec<String>) {
        // Most plans have the items that they had, which are numbered as they were read.
        if self.start.is_none() && self.items.iter().map(|item| &item.text).eq(&start) {
            self.start = Some(start);
            return;
        }
        let mut open: HashMap<String, VecDeque<usize>> = HashMap::new();
        for (at, text) in start.iter().enumerate() {
            open.entry(plain(text)).or_default().push_back(at);
        }
        let mut take = |text: &str| open.get_mut(text).and_then(VecDeque::pop_front);
        let keys: Vec<String> = self.items.iter().map(|item| plain(&item.text)).collect();
        // Unchanged lines come first, so that none of them is taken for one with a remark.
        let mut of: Vec<Option<usize>> = keys.iter().map(|key| take(key)).collect();
        for ((item, of), key) in self.items.iter_mut().zip(&mut of).zip(&keys) {
            if of.is_some() {
                continue;
            }
            let found = remarks(key).find_map(|(old, rest)| take(old).map(|at| (at, rest)));
            if let Some((at, remark)) = found {
                item.added = remark.trim_start_matches([' ', '-', ':']).into();
                *of = Some(at);
            }
        }
        // A step that stands in a line in doubt is not lost.
        for doubt in &self.doubts {
            take(&doubt.step);
        }
        let (mut last, mut inserted) = (0, 0);
        for (item, of) in self.items.iter_mut().zip(of) {
            (last, inserted) = of.map_or((last, inserted + 1), |at| (at + 1, 0));
            item.number = match inserted {
                0 => last.to_string(),
                _ => format!("{last}.{inserted}"),
            };
        }
        let mut lost: Vec<usize> = open.into_values().flatten().collect();
        sort(&mut lost, Ord::cmp);
        let item = |at: usize| LostItem { number: at + 1, text: start[at].clone() };
        self.lost = lost.into_iter().map(item).collect();
        self.start = Some(start);
    }

    /// The items that the worker was given and that are not there any more, in their order.
    pub fn lost(&self) -> &[LostItem] {
        &self.lost
    }

    /// The lost items in words: `item 2: Write the report`. Texts that are not in the `person`'s plan are
    /// in quotation marks.
    pub fn lost_words(&self, person: Option<&Self>) -> String {
        let is_own =
            |text: &str| person.is_none_or(|it| it.items.iter().any(|item| item.text == text));
        let text = |text: &str| if is_own(text) { shown(text) } else { quoted(&shown(text)) };
        let item = |it: &LostItem| format!("item {}: {}", it.number, text(&it.text));
        let words: Vec<_> = self.lost.iter().take(CANDIDATES).map(item).collect();
        match self.lost.len() - words.len() {
            0 => words.join("; "),
            more => format!("{} and {more} more", words.join("; ")),
        }
    }

    /// The options of `dispatch-spawn --resume` that drop the lost items for good.
    pub fn skip_lost(&self) -> String {
        let texts = self.items.iter().map(|item| &item.text);
        let texts: Vec<String> =
            texts.chain(self.lost.iter().map(|lost| &lost.text)).map(|text| key(text)).collect();
        let name = |lost: &LostItem| {
            let text = shown(&lost.text);
            let is_own = texts.iter().filter(|other| **other == key(&text)).count() == 1;
            match is_own && !is_number(text.trim()) && !text.starts_with('-') && !text.contains('→')
            {
                true => format!(" --skip '{}'", text.replace('\'', r"'\''")),
                false => format!(" --skip {}", lost.number),
            }
        };
        self.lost.iter().take(CANDIDATES).map(name).collect()
    }

    /// The item of that number, or the only one whose text is or holds `name`.
    ///
    /// # Errors
    /// [`Exit::Data`] if there is none, or more than one.
    pub fn item(&self, name: &str) -> Result<&Item, Refusal> {
        self.index(name).map(|index| &self.items[index])
    }

    pub(super) fn index(&self, name: &str) -> Result<usize, Refusal> {
        if let Some(index) = self.items.iter().position(|item| item.number == name.trim()) {
            return Ok(index);
        }
        if is_number(name.trim()) {
            return Err(self.no_such_number(name.trim()));
        }
        let wanted = key(name);
        let keys: Vec<String> = self.items.iter().map(|item| key(&item.text)).collect();
        let mut found: Vec<usize> = (0..keys.len()).filter(|at| keys[*at] == wanted).collect();
        if found.is_empty() {
            found = (0..keys.len()).filter(|at| keys[*at].contains(&wanted)).collect();
        }
        let name = shown(name);
        match found[..] {
            [index] => Ok(index),
            [] => Refusal::new(Exit::Data, format!("the plan has no item '{name}'"))
                .refuse("name an item by its number or by its own words"),
            _ => {
                let shown = |item: &Item| format!("{}: {}", item.number, shown(&item.text));
                let some = found.iter().take(CANDIDATES).map(|at| shown(&self.items[*at]));
                let some: Vec<_> = some.collect();
                Refusal::new(Exit::Data, format!("'{name}' may be {} items", found.len()))
                    .place(some.join("; "))
                    .refuse("name the item by its number")
            }
        }
    }

    fn no_such_number(&self, number: &str) -> Refusal {
        let count = self.start.as_ref().map_or(self.items.len(), Vec::len);
        let at = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
        let Some(text) = at.and_then(|at| self.start.as_ref()?.get(at)) else {
            return Refusal::new(Exit::Data, format!("the plan has no item {number}"))
                .place(format!("it has {count}, counted from 1"));
        };
        let text = plain(text);
        if let Some(doubt) = self.doubts.iter().find(|doubt| doubt.step == text) {
            return Refusal::new(Exit::Data, doubt.to_string())
                .place(shown(&doubt.text))
                .next(format!("{}; then call again", doubt.remedy()));
        }
        Refusal::new(Exit::Data, format!("item {number} is not in the plan any more"))
            .place(format!("it was: {}", shown(&text)))
            .next("put its line back, or name the item that you mean by its own words")
    }
}

/// Returns true if `name` is an item's number.
fn is_number(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// The common form of all names of an item. Helpers print texts sanitized, and people copy those.
fn key(text: &str) -> String {
    plain(&sanitize(text)).to_lowercase()
}

/// The ways to read a text as an item's and a remark that a worker added to its line, as in `Test: cargo
/// is missing`; the longest item first.
pub(super) fn remarks(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_remark = |rest: &str| {
        let spaced =
            rest.strip_prefix(' ').is_some_and(|it| !it.starts_with(char::is_alphanumeric));
        spaced || rest.starts_with(": ")
    };
    let short = Some(text).filter(|text| text.len() < LONGEST_REMARK).into_iter();
    let splits = short.flat_map(|text| text.char_indices().rev().map(|(at, _)| text.split_at(at)));
    splits.filter(move |(_, rest)| is_remark(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_numbers_are_those_of_the_copy() {
        let copy = Plan::parse("- [ ] a\n- [ ] b\n- [ ] c\n- [ ] b\n");
        let rows = [
            ("- [ ] a\n- [ ] b\n- [ ] c\n- [ ] b\n", "1 2 3 4", ""),
            ("- [~] a\n* [x] b\n3. [ ] c\n- [?] b\n", "1 2 3 4", ""),
            ("- [ ] a\n- [ ] b\n- [ ] n\n- [ ] m\n- [ ] c\n- [ ] b\n", "1 2 2.1 2.2 3 4", ""),
            ("- [ ] n\n- [ ] c\n- [ ] a\n- [ ] m\n- [ ] b\n- [ ] b\n", "0.1 3 1 1.1 2 4", ""),
            ("- [ ] a\n- [ ] c\n- [ ] b\n", "1 3 2", "4"),
            ("- [ ] a (by hand)\n- [ ] b: no\n- [ ] c – why\n- [ ] b\n", "1 4 3 2", ""),
            ("- [ ] a b\n- [ ] b\n- [ ] c\n- [ ] b\n", "0.1 2 3 4", "1"),
            ("- [ ] a\n- [done] b\n- [ ] c\n- [ ] b\n", "1 3 2", ""),
            ("", "", "1 2 3 4"),
        ];
        for (text, numbers, lost) in rows {
            let plan = Plan::parse(text).numbered_as(&copy);
            let found: Vec<_> = plan.items().iter().map(|item| item.number.as_str()).collect();
            assert_eq!(found.join(" "), numbers, "{text}");
            let found: Vec<_> = plan.lost().iter().map(|item| item.number.to_string()).collect();
            assert_eq!(found.join(" "), lost, "{text}");
        }
    }

    #[test]
    fn quotes_and_blanks_of_an_editor_do_not_change_a_text() {
        let copy = Plan::parse("- [ ] Don't \"stop\" -- go...\n");
        let plan = Plan::parse("- [ ]  Don’t\u{a0}“stop” — go…  \n").numbered_as(&copy);
        assert_eq!((plan.items()[0].number.as_str(), plan.lost().len()), ("1", 0));
    }

    #[test]
    fn item_is_named_by_number_or_text() {
        let copy =
            Plan::parse("- [ ] Write the report\n- [ ] Write the tests\n- [ ] 42\n- [ ] Old\n");
        let text = "- [ ] Write the report\n- [ ] New\n- [ ] Write the tests\n- [ ] 42\n";
        let plan = Plan::parse(text).numbered_as(&copy);
        let rows = [
            ("1", "Write the report"),
            ("2", "Write the tests"),
            ("1.1", "New"),
            ("3", "42"),
            ("Write the report", "Write the report"),
            ("write  the REPORT", "Write the report"),
            ("tests", "Write the tests"),
        ];
        for (name, text) in rows {
            assert_eq!(plan.item(name).expect(name).text, text);
        }
        let refusals = [
            (
                "write",
                "'write' may be 2 items\n  1: Write the report; 2: Write the tests\n  next: name the item by its number",
            ),
            (
                "4",
                "item 4 is not in the plan any more\n  it was: Old\n  next: put its line back, or name the item that you mean by its own words",
            ),
            ("5", "the plan has no item 5\n  it has 4, counted from 1"),
            ("0", "the plan has no item 0\n  it has 4, counted from 1"),
            (
                "nothing",
                "the plan has no item 'nothing'\n  next: name an item by its number or by its own words",
            ),
        ];
        for (name, refusal) in refusals {
            assert_eq!(plan.item(name).expect_err(name).to_string(), refusal);
        }
        let doubtful = Plan::parse("- [done] Old\n").numbered_as(&copy);
        let refusal = doubtful.item("4").expect_err("in doubt").to_string();
        assert!(refusal.starts_with("line 1 of the plan is in doubt: "), "{refusal}");
    }

    #[test]
    fn lost_items_are_put_back_where_they_were() {
        let copy = Plan::parse("# T\n\n- [ ] a\n  - [x] b\n- [ ] c\n\n## Context\nWords.\n");
        let rows = [
            ("# T\n\n- [x] a\n  note\n- [ ] c\n", "# T\n\n- [x] a\n  note\n- [ ] b\n- [ ] c\n"),
            ("# T\n\n- [ ] c", "# T\n\n- [ ] a\n- [ ] b\n- [ ] c"),
            ("# T\n\n- [x] a", "# T\n\n- [x] a\n- [ ] b\n- [ ] c\n"),
            ("# T\r\n", "# T\r\n- [ ] a\r\n- [ ] b\r\n- [ ] c\r\n"),
            ("", "- [ ] a\n- [ ] b\n- [ ] c\n"),
            ("words", "- [ ] a\n- [ ] b\n- [ ] c\nwords"),
            ("- [ ] a\n- [ ] new\n- [ ] c\n", "- [ ] a\n- [ ] b\n- [ ] new\n- [ ] c\n"),
        ];
        for (text, expected) in rows {
            let mut plan = Plan::parse(text).numbered_as(&copy);
            plan.restore().expect("restored");
            assert_eq!(plan.to_string(), expected);
            assert_eq!(plan.lost(), []);
        }
    }

    #[test]
    fn skip_options_for_lost_items_are_quoted_for_a_shell() {
        let copy = Plan::parse("- [ ] It's `so`\n- [ ] twice\n- [ ] twice\n- [ ] 42\n");
        let plan = Plan::parse("").numbered_as(&copy);
        assert_eq!(plan.skip_lost(), r" --skip 'It'\''s `so`' --skip 2 --skip 3 --skip 4");
        // Found by a fuzzer: a text that is printed as that of another item.
        let plan = Plan::parse("- [ ] a\n").numbered_as(&Plan::parse("- [ ] \u{200d}a\n"));
        assert_eq!(plan.skip_lost(), " --skip 1");
        // Found by a fuzzer: nothing that is shown.
        let plan = Plan::parse("").numbered_as(&Plan::parse("- [ ] \0\t\0\n"));
        assert_eq!(plan.skip_lost(), " --skip 1");
        let plan = Plan::parse("- [ ] \u{200d}a\n");
        assert_eq!(plan.item("a").expect("as it is shown").number, "1");
    }
}
