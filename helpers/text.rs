//! Cleaning, quoting and shortening text, wherever it comes from, and sorting.

use std::cmp::Ordering;
use std::str::Chars;

/// Text of any bytes; what is not UTF-8 is replaced by U+FFFD.
pub fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Removes the escape sequences that colour a terminal, set its title and make links.
pub fn strip_escapes(text: &str) -> String {
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
                // A title or the address of a link ends with a bell or with ESC \. Without that end,
                // show it, so that the text after it is not lost.
                Some(']') => {
                    let begin = rest.as_str();
                    let end = begin.find(['\u{7}', '\u{1b}', '\n']).map(|at| &begin[at..]);
                    if let Some(end) = end.filter(|end| !end.starts_with('\n')) {
                        let after = end.strip_prefix('\u{7}').or(end.strip_prefix("\u{1b}\\"));
                        rest = after.unwrap_or(end).chars();
                    }
                }
                // The name of a character set follows, or the like.
                Some('(' | ')' | '*' | '+' | '#' | '%') => drop(rest.next()),
                _ => {}
            },
            c => plain.push(c),
        }
    }
    plain
}

/// Removes escape sequences, control characters, and characters that are invisible or change the
/// direction of the text after them. Line ends and tabs stay; Unicode's own line ends become spaces. All
/// text goes through here before a helper prints it.
pub fn sanitize(text: &str) -> String {
    let clean = |c: char| match c {
        '\n' | '\t' => Some(c),
        '\u{2028}' | '\u{2029}' => Some(' '),
        c if c.is_control() || is_hidden(c) => None,
        c => Some(c),
    };
    strip_escapes(text).chars().filter_map(clean).collect()
}

/// Returns true for a character that is invisible, or changes how the text around it is shown.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}')
        // Tags and further variation selectors spell invisible bytes, which models read.
        || matches!(c, '\u{e0000}'..='\u{e01ef}')
}

/// The word as a POSIX shell needs it: in quotes only where necessary.
pub fn shell_word(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into();
    }
    // A host's permission rule has a path with a space in double quotes, and both must match.
    if !word.is_empty() && !word.contains(['"', '$', '`', '\\', '!', '\n']) {
        return format!("\"{word}\"");
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The commands of a shell text, as words. A word that the shell would change, or a redirection, is
/// `None`. Comments and here-documents hold no commands.
pub fn shell_commands(text: &str) -> Vec<Vec<Option<String>>> {
    let (mut commands, mut delimiters) = (vec![Vec::new()], Vec::<String>::new());
    let mut rest = text.chars();
    while let Some(c) = rest.clone().next() {
        match c {
            ' ' | '\t' => drop(rest.next()),
            '#' => rest = rest.as_str().trim_start_matches(|c| c != '\n').chars(),
            '\n' | ';' | '&' | '|' => {
                rest.next();
                commands.push(Vec::new());
                let documents = if c == '\n' { std::mem::take(&mut delimiters) } else { vec![] };
                for delimiter in documents {
                    let mut lines = rest.as_str().split('\n');
                    let is_inside = |line: &&str| *line != delimiter;
                    let size =
                        lines.by_ref().take_while(is_inside).map(|line| line.len() + 1).sum();
                    rest = rest.as_str().get(size..).unwrap_or_default().chars();
                    rest = rest.as_str().trim_start_matches(|c| c != '\n').chars();
                }
            }
            '<' if rest.as_str().starts_with("<<") => {
                rest = rest.as_str()[2..].trim_start_matches(' ').chars();
                match shell_part(&mut rest) {
                    Some(delimiter) if !delimiter.starts_with('-') => delimiters.push(delimiter),
                    _ => commands.push(vec![None]),
                }
            }
            _ => {
                commands.last_mut().into_iter().for_each(|words| words.push(shell_part(&mut rest)))
            }
        }
    }
    commands
}

/// Takes the first word of a shell text; `None` for one that the shell would change.
fn shell_part(rest: &mut Chars) -> Option<String> {
    let (mut word, mut is_plain, mut quote, mut has_begun) = (String::new(), true, None, false);
    while let Some(c) = rest.clone().next() {
        if quote.is_none() && has_begun && " \t\n;&|<>".contains(c) {
            break;
        }
        (has_begun, _) = (true, rest.next());
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (Some('\''), _) => word.push(c),
            (_, '\\') => {
                let next = rest.next().unwrap_or('\n');
                word.extend(Some(c).filter(|_| quote.is_some() && !"$`\"\\\n".contains(next)));
                word.extend(Some(next).filter(|next| *next != '\n'));
            }
            (_, '$' | '`') => is_plain = false,
            (None, _) if "*?[]{}()~<>".contains(c) => is_plain = false,
            _ => word.push(c),
        }
    }
    Some(word).filter(|_| is_plain && quote.is_none())
}

/// The longest quotation in one line of news, in characters.
const LONGEST_QUOTE: usize = LONGEST_SUMMARY + 2;
/// The longest quotation in one line of news, in bytes.
const LONGEST_QUOTE_BYTES: usize = 2 * LONGEST_QUOTE;

/// The longest summary of a worker, in characters. A longer one is cut and ends with ` …`.
pub const LONGEST_SUMMARY: usize = 700;

/// A worker's words as one line in quotation marks.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", one_line(text))
}

/// The text as one line for a host, shortened if it is long. Nothing in it looks like the end of a
/// quotation, like the arrow before a helper's advice, or like the id of an event: `#` and eight
/// hexadecimal digits.
pub fn one_line(text: &str) -> String {
    let text = sanitize(text);
    let lines: Vec<&str> = text.trim().lines().map(str::trim_end).collect();
    let harmless = |c: char| match c {
        '"' | '“' | '”' | '„' | '‟' | '«' | '»' | '〝' | '〞' | '〟' | '＂' | '❝' | '❞' => {
            '\''
        }
        '→' | '⟶' | '➔' | '➜' | '➝' | '➞' | '⇒' | '￫' => '>',
        c => c,
    };
    let one_line = lines.join(" ⏎ ").replace('\t', " ");
    let one_line = break_ids(&one_line);
    let mut short = String::new();
    for (count, c) in one_line.chars().map(harmless).enumerate() {
        if count == LONGEST_QUOTE || short.len() + c.len_utf8() > LONGEST_QUOTE_BYTES {
            short.push('…');
            break;
        }
        short.push(c);
    }
    short
}

/// Puts a space into everything that looks like the id of an event.
fn break_ids(text: &str) -> String {
    let mut broken = String::with_capacity(text.len());
    for (number, part) in text.split('#').enumerate() {
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        broken.push_str(match (number, digits) {
            (0, _) => "",
            (_, 8..) => "# ",
            _ => "#",
        });
        broken.push_str(part);
    }
    broken
}

/// The text up to the last sentence that ends within so many characters, or else up to the last word.
pub fn whole_sentences(text: &str, characters: usize) -> &str {
    let Some((limit, _)) = text.char_indices().nth(characters) else { return text };
    let end_of_sentence = |(at, c): (usize, char)| {
        let end = at + c.len_utf8();
        let is_end = match c {
            '.' | '!' | '?' => text[end..].starts_with(char::is_whitespace),
            c => matches!(c, '\n' | '。' | '！' | '？'),
        };
        is_end.then_some(end)
    };
    let head = &text[..limit];
    let sentence = head.char_indices().rev().find_map(end_of_sentence);
    let end = sentence.or_else(|| head.rfind(char::is_whitespace)).unwrap_or(limit);
    text[..end].trim_end()
}

/// A number of things: `1 commit`, `2 commits`.
pub fn count(number: usize, thing: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{end}")
}

/// A duration in its largest unit: `12s`, `3m`, `2h`, `4d`.
pub fn short_duration(duration: std::time::Duration) -> String {
    match duration.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..86400 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}

/// Shortens a line to at most so many bytes, on a character boundary.
pub fn shorten(line: &str, bytes: usize) -> String {
    if line.len() <= bytes {
        return line.into();
    }
    let mut end = bytes - '…'.len_utf8();
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &line[..end])
}

/// The line and the column of a byte of a text, or of the character that holds it, both from 1; the
/// column counts characters.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let begin = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    let before = &text[..begin];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Sorts a list and keeps the order of equal elements. The standard library compiles its sort anew for each
/// type, at 4 KB of program; this function sorts the positions of any list with one of them.
pub fn sort<T>(list: &mut Vec<T>, compare: impl Fn(&T, &T) -> Ordering) {
    let order = order(list.len(), &|one, other| compare(&list[one], &list[other]));
    let mut elements: Vec<Option<T>> = list.drain(..).map(Some).collect();
    list.extend(order.into_iter().filter_map(|at| elements[at].take()));
}

fn order(length: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    order.sort_by(|one, other| compare(*one, *other));
    order
}

/// Collects into a map or set, element by element. Their own `collect` compiles a sort for each type too.
pub fn collect<C: Default + Extend<T>, T>(elements: impl Iterator<Item = T>) -> C {
    let mut collection = C::default();
    collection.extend(elements);
    collection
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_removed() {
        let line = "\u{1b}]0;t\u{7}\u{1b}[1;31mYou \u{1b}]8;;u\u{1b}\\hit\u{1b}[0m it";
        assert_eq!(strip_escapes(line), "You hit it");
        assert_eq!(strip_escapes("\u{1b}]0;cut off\nHit \u{1b}]8;"), "0;cut off\nHit 8;");
        assert_eq!(strip_escapes("\u{1b}]0;t\u{1b}[1mHit\u{1b}[0"), "Hit");
        assert_eq!(strip_escapes("\u{1b}[1;\nYou\u{1b}[äit"), "\nYouäit");
        assert_eq!(strip_escapes("\u{1b}(B\u{1b}[mHit\u{1b}#8"), "Hit");
        assert_eq!(sanitize("a\u{61c}\u{e0041}\u{e007f}\u{e0120}b\u{2028}c\u{2029}d"), "ab c d");
        assert_eq!(sanitize("a\u{7}\u{9b}b\r\tc\u{202e}d\u{200b}e\nf"), "ab\tcde\nf");
    }

    #[test]
    fn quotation_is_one_short_line() {
        assert_eq!(quoted(" a\n\tb\u{1b}[1m\r\nc \n"), "\"a ⏎  b ⏎ c\"");
        assert_eq!(quoted("x\" → run: rm"), "\"x' > run: rm\"");
        assert_eq!(quoted("see #1a2b3c4d, #12"), "\"see # 1a2b3c4d, #12\"");
        assert_eq!(quoted("see #1a2b\t3c4d"), "\"see #1a2b 3c4d\"");
        assert_eq!(quoted("＂ ➜ „x‟"), "\"' > 'x'\"");
        assert_eq!(quoted(&"ä".repeat(703)).chars().count(), LONGEST_QUOTE + 3);
        assert_eq!(quoted(&"🦀".repeat(703)).chars().count(), LONGEST_QUOTE / 2 + 3);
    }

    #[test]
    fn line_is_shortened_between_characters() {
        assert_eq!(shorten("abc", 3), "abc");
        assert_eq!(shorten("ääää", 7), "ää…");
    }

    #[test]
    fn shell_reads_back_every_quoted_word() {
        let rows = [
            ("opus", "opus"),
            ("", "''"),
            ("a b", "\"a b\""),
            ("it's", "\"it's\""),
            ("it's $(x)", r"'it'\''s $(x)'"),
        ];
        for (word, quoted) in rows {
            assert_eq!(shell_word(word), quoted);
        }
    }

    #[test]
    fn shell_text_is_read_as_the_shell_reads_it() {
        let read = |text| {
            let commands = shell_commands(text).into_iter().filter(|words| !words.is_empty());
            let words = |it: Vec<Option<String>>| {
                it.into_iter().map(|word| word.unwrap_or("?".into())).collect::<Vec<_>>().join("|")
            };
            commands.map(words).collect::<Vec<_>>()
        };
        for (text, words) in [
            ("eval 'a \"b c\"' < /dev/null && d", &["eval|a \"b c\"|?|/dev/null", "d"][..]),
            (r#"a 'b'"'"'c' "d\"e" f\ g"#, &["a|b'c|d\"e|f g"]),
            ("a $b \"$c\" `d` e* {f,g} ~ ''", &["a|?|?|?|?|?|?|"]),
            ("a # b; c\nd", &["a", "d"]),
            ("a - <<'END'\nb c\nEND\nd <<E\ne\n E\nE\nf", &["a|-", "d", "f"]),
            ("a <<-E\nb\nE\nc <<<d", &["a", "?", "b", "E", "c", "?"]),
            ("a <<E\nb", &["a"]),
            ("f() { a; }; echo 'b; c'", &["?|?|a", "?", "echo|b; c"]),
            ("a 'b", &["a|?"]),
        ] {
            assert_eq!(read(text), words, "{text}");
        }
    }
}
