//! Where a config is wrong, shown with the line and a caret.

use std::path::Path;

use crate::error::Refusal;
use crate::exit::Exit;

/// The refusal of a config that does not parse: the message, the line, and a caret below it.
pub(super) fn refusal(text: &str, path: &Path, error: &serde_yaml::Error) -> Refusal {
    let message = error.to_string();
    // The parser ends its message with the place, which has a line of its own here.
    let what = message.split(" at line ").next().unwrap_or(&message);
    let (what, expected) = what.split_once(", expected ").unwrap_or((what, ""));
    let refusal = Refusal::new(Exit::Data, format!("the config is wrong: {what}"));
    let Some(place) = error.location() else {
        return refusal.place(path.display().to_string());
    };
    let unknown = what.split_once("unknown field `").map(|(_, name)| name.trim_end_matches('`'));
    let twice =
        what.split_once("' stands here twice").and_then(|(name, _)| name.split('\'').nth(1));
    let second = |name| key_from(text, place.line(), name).map(|(first, _)| (first + 1, name));
    let (line, column) = twice
        .and_then(second)
        .or(unknown.map(|name| (place.line(), name)))
        .and_then(|(from, name)| key_from(text, from, name))
        .unwrap_or((place.line(), place.column()));
    // A parser that missed something to the end names the line after the last.
    let last = text.trim_end().lines().count();
    let ends_at = text.lines().nth(last.saturating_sub(1)).map_or(0, |line| line.chars().count());
    let (line, column) = if line > last { (last, ends_at + 1) } else { (line, column) };
    let shown = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim_end();
    let known = expected.split('`').skip(1).step_by(2);
    let meant = unknown.and_then(|name| closest(name, known).into_iter().next());
    let hint = match meant {
        Some(name) => format!("here: did you mean '{name}'?"),
        None if shown.starts_with('\t') => "here: YAML is indented by spaces, not by tabs".into(),
        None if expected.is_empty() => "here".into(),
        None => format!("here: expected {expected}"),
    };
    refusal.place(marked(path, (line, column), shown, &hint))
}

/// A line with its place before it and a caret with a hint below it; line and column from 1.
pub(super) fn marked(
    path: &Path,
    (line, column): (usize, usize),
    shown: &str,
    hint: &str,
) -> String {
    let before = format!("{}, line {line}, column {column}: ", path.display());
    let indent = before.chars().count() + column.saturating_sub(1).min(shown.len());
    format!("{before}{shown}\n  {:indent$}^ {hint}", "")
}

/// Where a key stands, from that line on: line and column, counted from 1.
fn key_from(text: &str, line: usize, key: &str) -> Option<(usize, usize)> {
    let starts = |line: &str| {
        line.match_indices(key).map(|(at, _)| at).find(|&at| {
            let before = line[..at].trim_end_matches(['"', '\'']).trim_end();
            before.is_empty() || before.ends_with(['{', ',', '-'])
        })
    };
    (1..)
        .zip(text.lines())
        .skip(line.saturating_sub(1))
        .find_map(|(number, line)| starts(line).map(|at| (number, line[..at].chars().count() + 1)))
}

/// The names that `wrong` may have been meant as, nearest first: at most three.
pub(super) fn closest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wrong = wrong.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .map(|name| {
            let name_lower = name.to_lowercase();
            let inside = name_lower.contains(&wrong) || wrong.contains(&name_lower);
            (if inside { 1 } else { distance(&wrong, &name_lower) }, name)
        })
        .filter(|(score, name)| *score <= name.len().max(3) / 2)
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// How many letters must be put in, taken out, replaced or swapped with the next.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_the_name_that_was_meant() {
        let names = ["opus", "sonnet", "haiku", "gpt-5.3-codex", "gpt-5.3-codex-spark"];
        assert_eq!(closest("oups", names.into_iter()), ["opus"]);
        assert_eq!(closest("codex", names.into_iter()), ["gpt-5.3-codex", "gpt-5.3-codex-spark"]);
        assert!(closest("mistral-large", names.into_iter()).is_empty());
    }
}
