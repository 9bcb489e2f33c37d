//! Reads single lines of a plan by the grammar in the module comment of [`super`].

use std::ops::Range;

use super::Marker;

/// How many characters a mark of punctuation has at most; longer ones are drawings.
const LONGEST_MARK: usize = 3;

/// The level of a line in bold, which some write as a heading.
const BOLD: usize = 7;

/// Why a checklist line is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Letters or digits stand in its brackets.
    Word,
    /// The box is not right after a list marker.
    Box,
    /// Markdown reads the brackets as a link.
    Link,
    /// The line is below the heading Context of that line.
    Context(usize),
    /// The code fence or comment that begins in that line may hide it.
    Hidden(usize),
}

impl Why {
    /// The reason in a person's words.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Word => "what stands in its brackets is not a mark".into(),
            Self::Box => "its box does not stand right behind '- '".into(),
            Self::Link => "its brackets read as a link".into(),
            Self::Context(line) => format!("it stands below the heading Context of line {line}"),
            Self::Hidden(line) => {
                format!("the code fence or comment that begins in line {line} may hide it")
            }
        }
    }
}

/// A line that a person may take for a step.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) marker: Marker,
    /// Where the mark stands, between its brackets.
    pub(super) mark: Range<usize>,
    pub(super) text: &'a str,
    /// Why it is none by its own form.
    pub(super) why: Option<Why>,
}

/// White space of any width, and characters that take no room.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// The lines with their ends, which are `\n`, `\r\n` or `\r`.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for piece in text.split_inclusive(['\n', '\r']) {
        match lines.last_mut() {
            Some(last) if piece == "\n" && last.ends_with('\r') => last.push('\n'),
            _ => lines.push(piece.into()),
        }
    }
    lines
}

/// The text with single blanks and plain quotes, dashes and dots, so that an editor's replacements
/// make no difference.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{ad}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}' => {}
            c if c.is_whitespace() && (plain.is_empty() || plain.ends_with(' ')) => {}
            c if c.is_whitespace() => plain.push(' '),
            '‘' | '’' | '‚' | '‛' => plain.push('\''),
            '“' | '”' | '„' | '‟' => plain.push('"'),
            '…' => plain.push_str("..."),
            '-' | '–' | '—' if plain.ends_with('-') => {}
            '–' | '—' => plain.push('-'),
            c => plain.push(c),
        }
    }
    plain.truncate(plain.trim_end().len());
    plain
}

/// The line without the white space around it, and the column at which it begins. Tabs stop at
/// every fourth.
pub(super) fn trimmed(line: &str) -> (usize, &str) {
    trimmed_from(0, line)
}

fn trimmed_from(column: usize, line: &str) -> (usize, &str) {
    let text = line.trim_start_matches(is_blank);
    let column = line[..line.len() - text.len()].chars().fold(column, |column, c| match c {
        '\t' => column + 4 - column % 4,
        '\u{feff}' => column,
        _ => column + 1,
    });
    (column, text.trim_end_matches(is_blank))
}

/// The length of the list marker at the beginning, without the blank that has to follow.
fn list_marker(text: &str) -> Option<usize> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    match (digits, text.as_bytes().get(digits)?) {
        (0, b'-' | b'*' | b'+') => Some(1),
        (1..=9, b'.' | b')') => Some(digits + 1),
        _ => None,
    }
}

/// Returns true if the line begins as a point of a list or as a heading; `a)` counts as a point.
fn is_point(text: &str) -> bool {
    let mut chars = text.chars();
    let lettered = chars.next().is_some_and(char::is_alphabetic);
    text.starts_with('#')
        || list_marker(text).is_some()
        || (lettered && matches!(chars.next(), Some('.' | ')' | '、')))
}

/// The text after the list marker in `column`, with its own column, and the column at which the
/// list item's content begins.
fn behind_marker(column: usize, text: &str) -> Option<(usize, usize, &str)> {
    let length = list_marker(text).filter(|length| text[*length..].starts_with(is_blank))?;
    let (marked, (column, rest)) =
        (column + length, trimmed_from(column + length, &text[length..]));
    Some((if column > marked + 4 { marked + 1 } else { column }, column, rest))
}

/// The column at which the notes of the item in that line begin, two or more behind its own.
pub(super) fn note_column(line: &str) -> usize {
    let (column, text) = trimmed(line);
    behind_marker(column, text).map_or(0, |(content, ..)| content).max(column + 2)
}

/// The step that a person may see in the line; `None` if there is none.
pub(super) fn find(line: &str) -> Option<Found<'_>> {
    let open = line.find('[')?;
    let close = open + line[open..].find(']')?;
    let (before, inside, after) = (&line[..open], &line[open + 1..close], &line[close + 1..]);
    // Code, an escape, a tag or a quotation shows brackets and means none.
    if before.contains(['`', '\\', '<', '"', '\'', '“', '‘']) {
        return None;
    }
    let mark = inside.trim_matches(|c| is_blank(c) || c == '\u{fe0f}');
    let marker = match mark {
        "x" | "X" | "✓" | "✔" | "✅" => Marker::Done,
        "?" => Marker::Blocked,
        "!" => Marker::Failed,
        _ => Marker::Open,
    };
    let is_word = |c: char| c.is_alphanumeric();
    let word = !matches!(mark, "x" | "X") && mark.contains(is_word);
    if word && !mark.chars().all(|c| is_word(c) || is_blank(c) || matches!(c, '-' | '_')) {
        return None;
    }
    let length = mark.chars().count();
    if !word && (length > LONGEST_MARK || mark.contains('…') || mark == "...") {
        return None;
    }
    let before = before.trim_matches(is_blank);
    let listed = list_marker(before) == Some(before.len());
    let bare = !before.contains(char::is_alphabetic);
    let linked = after.starts_with(['(', '[']) || (word && after.starts_with(':'));
    let why = match (word, linked) {
        (true, false) if listed || (before.is_empty() && length <= 2) => Some(Why::Word),
        (false, true) if listed => Some(Why::Link),
        (false, false) if listed => None,
        (false, false) if bare => Some(Why::Box),
        // A box that is not empty hides no work there.
        (false, false) if mark.is_empty() && !inside.is_empty() && is_point(before) => {
            Some(Why::Box)
        }
        _ => return None,
    };
    let text = after.trim_matches(is_blank);
    Some(Found { marker, mark: open + 1..close, text, why })
}

/// The text of a heading that one line makes, and its level; a line in bold is one of level [`BOLD`].
pub(super) fn heading(line: &str) -> Option<(usize, &str)> {
    let (column, text) = trimmed(line);
    let level = text.bytes().take_while(|byte| *byte == b'#').count();
    let rest = &text[level..];
    if column < 4 && (1..=6).contains(&level) && (rest.is_empty() || rest.starts_with(is_blank)) {
        return Some((level, rest.trim_matches(|c| is_blank(c) || c == '#')));
    }
    let bold = text.trim_end_matches([':', '：']).strip_prefix("**")?.strip_suffix("**")?;
    (column < 4).then_some((BOLD, bold))
}

/// The level of the heading that a line makes of the text above it.
pub(super) fn underline(line: &str) -> Option<usize> {
    let (column, text) = trimmed(line);
    let only = |c| !text.is_empty() && text.trim_matches(c).is_empty() && column < 4;
    if only('=') { Some(1) } else { only('-').then_some(2) }
}

/// Returns true if a line below this one may make it a heading: it is plain text outside a list.
pub(super) fn is_plain(line: &str) -> bool {
    let (column, text) = trimmed(line);
    let other = list_marker(text).is_some() || text.starts_with(['#', '>', '<', '|', '`', '~']);
    column < 2 && !text.is_empty() && !other
}

/// Returns true if a heading with that text begins the plan's context.
pub(super) fn is_context(heading: &str) -> bool {
    heading.trim_matches(|c: char| !c.is_alphabetic()).eq_ignore_ascii_case("context")
}

/// A code fence or comment that has begun.
struct Block {
    /// The fence's character and length; `None` for a comment.
    fence: Option<(char, usize)>,
    /// The column at which the list item's content begins that holds it; 0 outside lists.
    item: usize,
    line: usize,
}

/// The character, the length and the rest of a line that begins as a code fence.
fn fence(text: &str) -> Option<(char, usize, &str)> {
    let c = text.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let rest = text.trim_start_matches(c);
    let length = text.len() - rest.len();
    // A span of three backticks within a line is no fence.
    (length >= 3 && !(c == '`' && rest.contains('`'))).then_some((c, length, rest))
}

/// Returns true if a line with this start does not continue a paragraph.
fn begins_block(text: &str) -> bool {
    let heads = heading(text).is_some_and(|(level, _)| level < BOLD) || underline(text).is_some();
    let quotes = text.starts_with('>') || text.starts_with("<!--");
    heads || quotes || behind_marker(0, text).is_some() || fence(text).is_some()
}

/// Returns true if a line is more than plain text or a point of a list.
pub(super) fn is_structure(mut line: &str) -> bool {
    let context = heading(line).is_some_and(|(_, text)| is_context(text));
    while let Some((.., rest)) = behind_marker(0, line) {
        line = rest;
    }
    context || begins_block(line)
}

impl Block {
    fn begin(text: &str, column: usize, item: usize, line: usize, strict: bool) -> Option<Self> {
        if strict && column >= item + 4 {
            return None;
        }
        if let Some((c, length, _)) = fence(text) {
            return Some(Self { fence: Some((c, length)), item, line });
        }
        let comment = match text.rfind("<!--") {
            Some(_) if strict => text.starts_with("<!--") && !text[2..].contains("-->"),
            Some(at) => !text[at..].contains("-->") && !text[..at].contains('`'),
            None => false,
        };
        comment.then_some(Self { fence: None, item, line })
    }

    fn ends(&self, text: &str, column: usize, strict: bool) -> bool {
        match (self.fence, fence(text)) {
            (None, _) => text.contains("-->"),
            (Some((c, length)), Some((other, longer, rest))) => {
                let closes = !strict || (rest.is_empty() && column < self.item + 4);
                other == c && longer >= length && closes
            }
            _ => false,
        }
    }
}

/// A reading of code fences and comments: for each hidden line, the line that begins the fence or
/// comment. The strict reading is that of CommonMark. In the loose reading, which people and models
/// have, any line that begins like the fence ends it, and an unclosed fence hides nothing.
pub(super) fn hidden(lines: &[String], strict: bool) -> Vec<Option<usize>> {
    let mut hidden = vec![None; lines.len()];
    let hides = |line: &String| ["```", "~~~", "<!--"].iter().any(|begin| line.contains(begin));
    if !lines.iter().any(hides) {
        return hidden;
    }
    let mut block: Option<Block> = None;
    let mut items: Vec<usize> = Vec::new();
    let mut paragraph = false;
    for (at, line) in lines.iter().enumerate() {
        let (mut column, mut text) = trimmed(line);
        let ended = |block: &Block| strict && !text.is_empty() && column < block.item;
        if let Some(it) = block.take().filter(|block| !ended(block)) {
            // The text after the end of a comment is visible.
            let seen = it.fence.is_none() && text.starts_with("-->");
            hidden[at] = Some(it.line).filter(|_| !seen || strict);
            block = (!it.ends(text, column, strict)).then_some(it);
            continue;
        }
        // Plain text continues the paragraph above it at any indentation.
        let is_plain = |text: &str| !text.is_empty() && !begins_block(text);
        if !(text.is_empty() || paragraph && is_plain(text)) {
            items.retain(|item| *item <= column);
        }
        while let Some((content, behind, rest)) = behind_marker(column, text) {
            (column, text) = (behind, rest);
            items.push(content);
        }
        paragraph = is_plain(text);
        block = Block::begin(text, column, items.last().copied().unwrap_or(0), at, strict);
    }
    if let Some(block) = block.filter(|_| !strict) {
        hidden[block.line..].fill(None);
    }
    hidden
}
