//! The host program: its hook protocol, and the permission rules for the helpers in its settings. Claude
//! Code runs the helpers without prompting, except for what gives a worker more than the person agreed to.

pub mod hook;
pub mod settings;

use std::fmt;
use std::path::Path;

use crate::process::HELPERS;
use crate::tools;
use crate::tools::claude::{read_rule, settings_path};

/// The rules that let a model call the skill, also under its name as a plugin.
const SKILLS: [&str; 2] = ["Skill(dispatch)", "Skill(dispatch:dispatch)"];

/// The commands that Claude Code asks about: another program, access, directory or rules, and a
/// worker's own workers, which may do more than it. As a helper and a pattern of its arguments.
const ASKED: [(&str, &str); 9] = [
    ("dispatch-config", " add-backend"),
    ("dispatch-config", " set-access"),
    ("dispatch-config", " setup*--full"),
    ("dispatch-config", " allow"),
    ("dispatch-spawn", " --access*full"),
    ("dispatch-spawn", " --access*write"),
    ("dispatch-spawn", " -C"),
    ("dispatch-spawn", " --nested"),
    ("dispatch-reconcile", " adopt*="),
];

/// The options of Claude Code under which it does not read the user's settings.
const WITHOUT_SETTINGS: [&str; 4] = ["--setting-sources", "--restricted", "--bare", "--safe-mode"];

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

/// Returns true if Claude Code has asked the person about this call. An ask rule of the user's settings
/// is asked about in every permission mode, whatever other settings or hooks allow; a call from a script
/// is not, so the shell that Claude Code started has to spell it out. `callers`: the command lines above
/// this process, the nearest first.
pub fn has_asked(callers: &[Vec<String>]) -> bool {
    let [shell, host, above @ ..] = callers else { return false };
    let ignores = |word: &String| WITHOUT_SETTINGS.iter().any(|option| word.starts_with(option));
    let is_supervisor = |words: &Vec<String>| words[..].contains(&"--supervise".into());
    // A project's settings can set the variable, which then names other settings than the host's.
    let other = std::env::var_os("CLAUDE_CONFIG_DIR").is_some();
    let known = tools::called_by(host) == Some(tools::claude::CLI.title);
    if !known || other || host.iter().any(ignores) || above.iter().any(is_supervisor) {
        return false;
    }
    let arguments = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let Some(spelled) = shell.get(2).filter(|_| shell[1] == "-c") else { return false };
    let text = std::fs::read_to_string(settings_path()).ok();
    settings::for_dispatch(text.as_deref()).iter().any(|rule| is_about(rule, spelled, &arguments))
}

/// Returns true if the rule makes Claude Code ask about the call with those arguments in a shell's text.
fn is_about(rule: &Rule, spelled: &str, arguments: &str) -> bool {
    let pattern = rule.text.strip_prefix("Bash(").and_then(|it| it.strip_suffix("*)"));
    let Some((path, words)) = pattern.and_then(|it| it.split_once('*')) else { return false };
    let asked = ASKED.iter().filter(|(helper, _)| path.ends_with(&format!("/{helper}")));
    let mut asked = asked.filter(|(_, known)| *known == words);
    let has = |part: &str| format!(" {arguments}").contains(part);
    rule.list == RuleList::Ask
        && asked.any(|(_, words)| words.split('*').all(has))
        && ["", "\""].iter().any(|quote| spelled.contains(&format!("{path}{quote} {arguments}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_each_launcher_by_its_exact_path() {
        let read = read_rule().expect("a home");
        let all = rules(Path::new("/s/bin"), &read);
        let count = |list| all.iter().filter(|rule| rule.list == list).count();
        assert_eq!((count(RuleList::Allow), count(RuleList::Ask)), (8, 10));
        let text = |n: usize| all[n].text.as_str();
        assert_eq!((text(1), text(5)), ("Bash(/s/bin/dispatch-spawn *)", "Skill(dispatch)"));
        assert!(all.iter().all(|rule| names_dispatch(&rule.text)), "{all:?}");
        let spaced = rules(Path::new("/my skills/bin"), &read);
        assert_eq!(spaced[1].text, r#"Bash("/my skills/bin/dispatch-spawn" *)"#);
        assert_eq!(spaced[8].text, "Bash(/my skills/bin/dispatch-config* add-backend*)");
        assert_eq!(spaced[17].text, "Bash(xargs */my skills/bin/dispatch-*)");
    }

    #[test]
    fn ask_rule_covers_only_the_call_that_is_spelled_out() {
        let rule = |list, text: &str| Rule { list, text: text.into() };
        let ask = rule(RuleList::Ask, "Bash(/s/dispatch-reconcile* adopt*=*)");
        let allow = rule(RuleList::Allow, &ask.text);
        let other = rule(RuleList::Ask, "Bash(/s/dispatch-spawn* -C*)");
        let (quoted, bare) =
            ("\"/s/dispatch-reconcile\" adopt x=full", "/s/dispatch-reconcile adopt x=full");
        for (rule, spelled, arguments, covers) in [
            (&ask, format!("eval '{quoted}' && pwd"), "adopt x=full", true),
            (&ask, format!("eval '{bare}'"), "adopt x=full", true),
            (
                &ask,
                "eval '/s/dispatch-reconcile -C . adopt x=full'".into(),
                "-C . adopt x=full",
                true,
            ),
            (&ask, "eval '/t/dispatch-reconcile adopt x=full'".into(), "adopt x=full", false),
            (&ask, "sh script".into(), "adopt x=full", false),
            (&ask, format!("eval '{bare}'"), "adopt y=full", false),
            (&ask, "eval '/s/dispatch-reconcile adopt'".into(), "adopt", false),
            (&allow, format!("eval '{bare}'"), "adopt x=full", false),
            (&other, format!("eval '{bare}'"), "adopt x=full", false),
        ] {
            assert_eq!(is_about(rule, &spelled, arguments), covers, "{rule} {spelled} {arguments}");
        }
    }
}
