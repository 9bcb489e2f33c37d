//! The problems of a config, each with its place and remedy.

use std::path::Path;

use crate::error::Refusal;
use crate::exit::Exit;
use crate::text::line_and_column;

/// The most characters of a line that are shown.
const SHOWN: usize = 120;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Something in the config has no effect.
    Warning,
    /// A part of the config cannot be used.
    Error,
}

/// A problem with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The part of the config that an error disables, as `models.opus` or `patience`.
    pub(super) part: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The text of the line.
    shown: String,
    what: String,
    remedy: String,
}

impl Problem {
    /// A problem at a byte of `text`.
    pub(super) fn new(
        severity: Severity,
        (text, at): (&str, usize),
        part: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (line, column) = line_and_column(text, at);
        Self {
            severity,
            part: part.into(),
            line,
            column,
            shown: text.lines().nth(line - 1).unwrap_or_default().into(),
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// The first syntax error of a text that is not one YAML document.
    pub(super) fn syntax(text: &str) -> Self {
        let error = serde_yaml::from_str::<serde::de::IgnoredAny>(text).err();
        let message = error.as_ref().map_or("it is not YAML".into(), ToString::to_string);
        let place = error.and_then(|error| error.location());
        // The parser gives the line behind the last one for what is missing at the end.
        let at = place.map_or(0, |place| place.index()).min(text.trim_end().len());
        // Only the message ends with the place.
        let what = message.split(" at line ").next().unwrap_or(&message);
        let mut problem = Self::new(Severity::Error, (text, at), "", what, "here");
        if problem.shown.starts_with('\t') {
            problem.remedy = "here: YAML is indented by spaces, not by tabs".into();
        }
        problem
    }

    /// This problem as the error of a command: what, the line with its place, a caret below it.
    pub fn refusal(&self, path: &Path) -> Refusal {
        let kind = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "the config is wrong",
        };
        let before = format!("{}, line {}, column {}: ", path.display(), self.line, self.column);
        // A config may be one long line of JSON, of which the part around the problem is shown.
        let skip = (self.column - 1).saturating_sub(SHOWN / 2);
        let skip = if self.shown.chars().count() > SHOWN { skip } else { 0 };
        let shown: String = self.shown.trim_end().chars().skip(skip).take(SHOWN).collect();
        let indent = before.chars().count() + (self.column - 1 - skip).min(shown.chars().count());
        let place = format!("{before}{shown}\n  {:indent$}^ {}", "", self.remedy);
        Refusal::new(Exit::Data, format!("{kind}: {}", self.what)).place(place)
    }

    /// This problem in one line.
    pub fn line(&self) -> String {
        let disabled = match self.severity {
            Severity::Error if !self.part.is_empty() => format!(", so {} is disabled", self.part),
            _ => String::new(),
        };
        format!("config line {}: {}{disabled} ({})", self.line, self.what, self.remedy)
    }
}

/// The names that `wrong` may have been meant as: at most three, nearest first.
pub(super) fn closest<'a>(wrong: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wrong = wrong.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .map(|name| {
            let lower = name.to_lowercase();
            let inside = lower.contains(&wrong) || wrong.contains(&lower);
            (if inside { 1 } else { strsim::osa_distance(&wrong, &lower) }, name)
        })
        .filter(|(score, name)| *score <= name.len().max(3) / 2)
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_line_is_shown_around_the_problem() {
        let text = format!("{}here{}", "-".repeat(5_000), "+".repeat(5_000));
        let problem = Problem::new(Severity::Error, (&text, 5_000), "", "wrong", "correct it");
        let shown = problem.refusal(Path::new("c")).to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].contains("-here+") && lines[1].len() < 160, "{shown}");
        assert_eq!(lines[1].find("here"), lines[2].find('^'), "{shown}");
    }

    #[test]
    fn typo_finds_the_intended_name() {
        let names = ["opus", "sonnet", "haiku", "gpt-5.3-codex", "gpt-5.3-codex-spark"];
        assert_eq!(closest("oups", names.into_iter()), ["opus"]);
        assert_eq!(closest("codex", names.into_iter()), ["gpt-5.3-codex", "gpt-5.3-codex-spark"]);
        assert!(closest("mistral-large", names.into_iter()).is_empty());
    }
}
