//! Text of anybody's on a terminal: nothing that controls it, and as wide as it looks.

use unicode_width::UnicodeWidthChar;

use crate::text;

/// Without what cannot be seen or would control a terminal. Line ends stay.
pub(super) fn plain(text: &str) -> String {
    text::sanitize(text).replace('\t', " ")
}

/// The same in one line.
pub(super) fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    plain(&lines.join(" ⏎ "))
}

/// How many columns a text takes.
pub(super) fn width(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// As much of a text as fits, with `…` for the rest.
pub(super) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.into();
    }
    let mut cut = String::new();
    let mut left = most.saturating_sub(1);
    for c in text.chars() {
        let columns = columns(c);
        if columns > left {
            break;
        }
        left -= columns;
        cut.push(c);
    }
    if most > 0 {
        cut.push('…');
    }
    cut
}

/// The text in lines that fit, broken between words where that is possible.
pub(super) fn wrap(text: &str, most: usize) -> Vec<String> {
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
                // The word that does not fit goes to the next line, unless it fills this one.
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
    fn what_controls_a_terminal_is_left_out() {
        assert_eq!(plain("a\u{1b}[31mb\u{7}\u{9b}c\r\td\u{202e}e\nf"), "abc de\nf");
        assert_eq!(one_line("\n a\n\n b \u{0}\n"), "a ⏎ b ");
    }

    #[test]
    fn wide_characters_count_twice() {
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!((cut("abc", 1), cut("abc", 0)), ("…".into(), String::new()));
    }

    #[test]
    fn lines_break_between_words_or_where_they_must() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one twothree", 8), ["one ", "twothree"]);
        assert_eq!(wrap("abcdefgh ij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("日本語", 5), ["日本", "語"]);
        assert_eq!(wrap(" abc日", 4), [" ", "abc", "日"]);
        assert_eq!(wrap("a\n\nb", 5), ["a", "", "b"]);
        assert_eq!(wrap("日本", 0), ["日", "本"]);
    }
}
