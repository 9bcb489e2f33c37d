//! Styled lines for a terminal: text without control characters, measured in columns.

use std::fmt;
use std::io::Write;

use crossterm::style::{StyledContent, Stylize};
use unicode_width::UnicodeWidthChar;

use crate::text::sanitize;

/// A piece of text in one style.
pub(super) type Span = StyledContent<String>;

pub(super) fn unstyled(text: impl Into<String>) -> Span {
    text.into().stylize()
}

/// A line of styled text. Displays as the text with the escape sequences of its styles.
#[derive(Debug, Default)]
pub(super) struct Line(Vec<Span>);

impl Line {
    pub(super) fn new(span: Span) -> Self {
        Self(vec![span])
    }

    pub(super) fn with(mut self, span: Span) -> Self {
        self.0.push(span);
        self
    }

    /// The text without its styles.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|span| span.content().as_str()).collect()
    }

    pub(super) fn width(&self) -> usize {
        width(&self.text())
    }

    /// Prints the line with its styles; the text has none of its own.
    pub(super) fn print(&self) {
        let clean = |span: &Span| StyledContent::new(*span.style(), sanitize(span.content()));
        let line = Self(self.0.iter().map(clean).collect());
        // A reader that has gone away is no error.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    /// The line cut to `most` columns.
    pub(super) fn cut(self, most: usize) -> Self {
        let mut left = most;
        let fit = |span: Span| {
            let text = cut(span.content(), left);
            left -= width(&text);
            StyledContent::new(*span.style(), text)
        };
        Self(self.0.into_iter().map(fit).collect())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|span| span.fmt(f))
    }
}

/// The text without tabs and whatever a terminal would obey or hide. Line ends stay.
pub(super) fn printable(text: &str) -> String {
    sanitize(text).replace('\t', " ")
}

/// The printable text with its lines joined by `⏎`.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    printable(&lines.join(" ⏎ "))
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// The text cut to `most` columns, with `…` for the rest.
pub(super) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.into();
    }
    let mut left = most;
    // Keep a column for the `…`.
    let fits = |c: &char| {
        left = left.saturating_sub(columns(*c));
        left > 0
    };
    let cut: String = text.chars().take_while(fits).collect();
    if most > 0 { cut + "…" } else { cut }
}

/// The text in lines of at most `most` columns, broken between words where possible.
pub(in crate::cli) fn wrap(text: &str, most: usize) -> Vec<String> {
    let most = most.max(2);
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut taken) = (String::new(), 0);
        for c in paragraph.chars() {
            if c == ' ' && taken == most {
                lines.push(std::mem::take(&mut line));
                taken = 0;
                continue;
            }
            while taken + columns(c) > most {
                // The last word moves to the next line, unless it fills this one.
                let word = line.rfind(' ').map_or_else(String::new, |at| line.split_off(at + 1));
                taken = width(&word);
                lines.push(std::mem::replace(&mut line, word));
            }
            taken += columns(c);
            line.push(c);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_has_no_control_characters() {
        assert_eq!(printable("a\u{1b}[31mb\u{7}\u{9b}c\r\td\u{202e}e\nf"), "abc de\nf");
        assert_eq!(one_line("\n a\n\n b \u{0}\n"), "a ⏎ b ");
    }

    #[test]
    fn wide_characters_count_as_two_columns() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".into(), String::new()));
    }

    #[test]
    fn lines_break_between_words_where_possible() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one twothree", 8), ["one ", "twothree"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("日本語", 5), ["日本", "語"]);
        assert_eq!(wrap(" abc日", 4), [" ", "abc", "日"]);
        assert_eq!(wrap("a\n\nb", 5), ["a", "", "b"]);
        assert_eq!(wrap("日本", 0), ["日", "本"]);
    }
}
