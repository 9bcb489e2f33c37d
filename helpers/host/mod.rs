//! The host program: its hook protocol, and the permission rules for the helpers in its settings. Claude
//! Code runs the helpers without prompting, except for what gives a worker more than the person agreed to.

pub mod hook;
pub mod settings;

use std::fmt;
use std::path::Path;

use crate::process::HELPERS;
use crate::tools::claude::read_rule;

/// The rules that let a model call the skill, also under its name as a plugin.
const SKILLS: [&str; 2] = ["Skill(dispatch)", "Skill(dispatch:dispatch)"];

/// The commands that Claude Code asks about: another program, access, directory or rules, and a
/// worker's own workers, which may do more than it. As a helper and a pattern of its arguments.
const ASKED: [(&str, &str); 8] = [
    ("dispatch-config", " add-backend"),
    ("dispatch-config", " set-access"),
    ("dispatch-config", " setup*--full"),
    ("dispatch-config", " allow"),
    ("dispatch-spawn", " --access*full"),
    ("dispatch-spawn", " --access*write"),
    ("dispatch-spawn", " -C"),
    ("dispatch-spawn", " --nested"),
];

/// A list in the `permissions` of the settings. A rule in both lists is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleList {
    /// Commands that run without prompting.
    Allow,
    /// Commands that Claude Code asks about.
    Ask,
}

impl RuleList {
    /// Both lists, in the order in which rules are added.
    pub const BOTH: [Self; 2] = [Self::Allow, Self::Ask];

    /// The key in the settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
        }
    }
}

/// A permission rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The list that holds it.
    pub list: RuleList,
    /// The text of the rule.
    pub text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.list.name(), self.text)
    }
}

/// The rules for the skill, for the helpers whose launchers are in `bin`, an absolute path, and for
/// the prompts that agents read (`read`).
///
/// A path with spaces is quoted in the allow rules, as in the command that they are compared with.
/// The ask rules have no quotes, because Claude Code compares them with the unquoted words.
pub fn rules(bin: &Path, read: &str) -> Vec<Rule> {
    let bin = bin.to_string_lossy();
    let quote = if bin.contains(' ') { "\"" } else { "" };
    let allow = HELPERS.into_iter().map(|helper| format!("Bash({quote}{bin}/{helper}{quote} *)"));
    let allow = allow.chain(SKILLS.map(Into::into)).chain([read.into()]);
    let ask = ASKED.into_iter().map(|(helper, words)| format!("Bash({bin}/{helper}*{words}*)"));
    // Claude Code finds a helper behind xargs, but not the arguments that xargs adds.
    let ask = ask.chain([format!("Bash(xargs *{bin}/dispatch-*)")]);
    let allow = allow.map(|text| Rule { list: RuleList::Allow, text });
    allow.chain(ask.map(|text| Rule { list: RuleList::Ask, text })).collect()
}

/// Returns true if a rule's text names a helper or the skill.
pub(super) fn names_dispatch(rule: &str) -> bool {
    let mut names = HELPERS.iter().chain(["dispatch-*"].iter());
    let read = || read_rule().is_ok_and(|read| read == rule);
    names.any(|name| rule.contains(&format!("/{name}"))) || SKILLS.contains(&rule) || read()
}

/// Returns true if Claude Code asks about this argument of a helper.
pub fn is_asked(helper: &str, argument: &str) -> bool {
    let words = ASKED.iter().filter(|(name, _)| *name == helper);
    let mut words =
        words.flat_map(|(_, words)| words.split([' ', '*'])).filter(|it| !it.is_empty());
    words.any(|word| argument == word || word.starts_with('-') && argument.starts_with(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_each_launcher_by_its_exact_path() {
        let read = read_rule().expect("a home");
        let all = rules(Path::new("/s/bin"), &read);
        let count = |list| all.iter().filter(|rule| rule.list == list).count();
        assert_eq!((count(RuleList::Allow), count(RuleList::Ask)), (8, 9));
        let text = |n: usize| all[n].text.as_str();
        assert_eq!((text(1), text(5)), ("Bash(/s/bin/dispatch-spawn *)", "Skill(dispatch)"));
        assert!(all.iter().all(|rule| names_dispatch(&rule.text)), "{all:?}");
        let spaced = rules(Path::new("/my skills/bin"), &read);
        assert_eq!(spaced[1].text, r#"Bash("/my skills/bin/dispatch-spawn" *)"#);
        assert_eq!(spaced[8].text, "Bash(/my skills/bin/dispatch-config* add-backend*)");
        assert_eq!(spaced[16].text, "Bash(xargs */my skills/bin/dispatch-*)");
    }
}
