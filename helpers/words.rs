//! Text of anybody's, without what a reader cannot see.

/// Without the sequences that colour a terminal, name its window and make links.
pub fn without_sequences(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => match rest.next() {
                // A control sequence ends with a letter or one of @[\]^_`{|}~ (ECMA-48).
                Some('[') => {
                    let end = rest.as_str().trim_start_matches(|c| (' '..='?').contains(&c));
                    let after = end.strip_prefix(|c| ('@'..='~').contains(&c));
                    rest = after.unwrap_or(end).chars();
                }
                // A title or the address of a link ends with a bell or with ESC \. One that was cut
                // off is shown, and not what follows it lost.
                Some(']') => {
                    let begin = rest.as_str();
                    let end = begin.find(['\u{7}', '\u{1b}', '\n']).map(|at| &begin[at..]);
                    if let Some(end) = end.filter(|end| !end.starts_with('\n')) {
                        let after = end.strip_prefix('\u{7}').or(end.strip_prefix("\u{1b}\\"));
                        rest = after.unwrap_or(end).chars();
                    }
                }
                // The name of a character set, or the like.
                Some('(' | ')' | '*' | '+' | '#' | '%') => drop(rest.next()),
                _ => {}
            },
            c => plain.push(c),
        }
    }
    plain
}

/// Without those, and without control characters and such as take no room or turn the direction of
/// what follows. Line ends and tabs stay.
pub fn plain(text: &str) -> String {
    let hidden = |c: char| {
        matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    let kept = |c: &char| matches!(c, '\n' | '\t') || !(c.is_control() || hidden(*c));
    without_sequences(text).chars().filter(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_gone() {
        let line = "\u{1b}]0;t\u{7}\u{1b}[1;31mYou \u{1b}]8;;u\u{1b}\\hit\u{1b}[0m it";
        assert_eq!(without_sequences(line), "You hit it");
        assert_eq!(without_sequences("\u{1b}]0;cut off\nHit \u{1b}]8;"), "0;cut off\nHit 8;");
        assert_eq!(without_sequences("\u{1b}]0;t\u{1b}[1mHit\u{1b}[0"), "Hit");
        assert_eq!(without_sequences("\u{1b}[1;\nYou\u{1b}[äit"), "\nYouäit");
        assert_eq!(without_sequences("\u{1b}(B\u{1b}[mHit\u{1b}#8"), "Hit");
        assert_eq!(plain("a\u{7}\u{9b}b\r\tc\u{202e}d\u{200b}e\nf"), "ab\tcde\nf");
    }
}
