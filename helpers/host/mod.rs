//! The host program: its hook protocol, and the permission rules for the helpers in its settings. Claude
//! Code runs the helpers without prompting, except for what gives a worker more than the person agreed to.

pub mod hook;
pub mod settings;

use std::fmt;
use std::path::Path;

use crate::error::{Exit, Refusal};
use crate::fault;
use crate::process::{self, HELPERS, TASK_DIR, launcher};
use crate::text::{shell_commands, shell_word};
use crate::tools;
use crate::tools::claude::{read_rule, settings_path};

/// The rules that let a model call the skill, also under its name as a plugin.
const SKILLS: [&str; 2] = ["Skill(dispatch)", "Skill(dispatch:dispatch)"];

/// The title of the host that asks, and what a worker is called.
const CLAUDE: &str = tools::claude::CLI.title;
const WORKER: &str = "a worker";

/// The helper that edits the config and the rules.
const CONFIG: &str = "dispatch-config";

/// The commands that Claude Code asks about: another program, access, directory or rules, a lasting
/// prompt, and a worker's own workers, which may do more than it. As a helper and a pattern of its
/// arguments.
const ASKED: [(&str, &str); 14] = [
    (CONFIG, " add-backend"),
    (CONFIG, " add-place"),
    (CONFIG, " set-access"),
    (CONFIG, " setup*--full"),
    (CONFIG, " allow"),
    (CONFIG, " set-model"),
    (CONFIG, " add-model*--backend"),
    (CONFIG, " add-alias*--prompt"),
    ("dispatch-spawn", " --access*full"),
    ("dispatch-spawn", " --access*write"),
    ("dispatch-spawn", " -C"),
    ("dispatch-spawn", " --nested"),
    ("dispatch-spawn", " --may-dispatch"),
    ("dispatch-reconcile", " adopt*="),
];

/// The options of Claude Code under which it does not read the user's settings.
const WITHOUT_SETTINGS: [&str; 4] = ["--setting-sources", "--restricted", "--bare", "--safe-mode"];

/// The lists in the `permissions` of the settings, in the order in which rules are added: commands that
/// run without prompting, and commands that Claude Code asks about. A rule in both is asked about.
pub const LISTS: [&str; 2] = ["allow", "ask"];

/// A permission rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The list that holds it, one of [`LISTS`].
    pub list: &'static str,
    /// The text of the rule.
    pub text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.list, self.text)
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
    let allow = allow.map(|text| Rule { list: "allow", text });
    allow.chain(ask.map(|text| Rule { list: "ask", text })).collect()
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

/// Who decided that a helper was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// A person at a terminal, or a script: neither a worker nor a CLI that dispatch knows.
    Person,
    /// A person whom Claude Code has asked about this call.
    Asked,
    /// The model of this CLI, or a worker.
    Model(&'static str),
}

/// Says who decided this call. A process that leaves its ancestors and clears its environment counts as
/// a script of the person: the host's prompt for the command that does so is the wall there.
pub fn decider() -> Decider {
    // A test may itself be called by a CLI.
    if fault::fails("callers") {
        return Decider::Person;
    }
    let is_set = |name| std::env::var_os(name).is_some();
    let callers = process::callers();
    let marked = is_set("CLAUDECODE").then_some(CLAUDE);
    match callers.iter().find_map(|call| tools::called_by(call)).or(marked) {
        _ if is_set(TASK_DIR) => Decider::Model(WORKER),
        None => Decider::Person,
        Some(_) if has_asked(&callers) => Decider::Asked,
        Some(cli) => Decider::Model(cli),
    }
}

/// Refuses a call that gives a worker more than the person agreed to, unless a person decided it.
///
/// # Errors
/// [`Exit::Usage`] with what the person has to type, or how Claude Code is made to ask.
pub fn refuse_undecided(what: &str) -> Result<(), Refusal> {
    let Decider::Model(caller) = decider() else { return Ok(()) };
    let words: Vec<_> = std::env::args().skip(1).collect();
    let path = |helper: &str| launcher(helper).map_or(helper.into(), |it| it.display().to_string());
    let call = [path(&called_as())].into_iter().chain(words.iter().cloned());
    let call = call.map(|word| shell_word(&word)).collect::<Vec<_>>().join(" ");
    let is_ruled = || asked_rules().iter().any(|rule| asked_launcher(rule, &words).is_some());
    let (why, next) = if caller == WORKER {
        ("", "leave this to the session that dispatched the task".into())
    } else if caller == CLAUDE && is_ruled() {
        (", but not as a plain command, so it did not ask the user", format!("call it so: {call}"))
    } else {
        let lasting = format!("{} allow, after which Claude Code asks", shell_word(&path(CONFIG)));
        // A text on standard input would be missing.
        let can_ask = caller == CLAUDE && !has_other_settings();
        let is_whole = !can_ask || words.iter().all(|word| word != "-");
        let ways = [(is_whole, call), (can_ask, lasting)];
        let ways: Vec<_> = ways.into_iter().filter(|way| way.0).map(|way| way.1).collect();
        let next = format!("let the user type in a terminal: {}", ways.join("; or "));
        (" without asking the user", next)
    };
    Refusal::new(Exit::Usage, format!("only a person may decide this: {what}"))
        .place(format!("{caller} called this{why}"))
        .refuse(next)
}

/// Returns true if the settings here may be others than the host's: a project's settings can set this
/// variable.
fn has_other_settings() -> bool {
    std::env::var_os("CLAUDE_CONFIG_DIR").is_some()
}

/// The name by which this program was called.
pub fn called_as() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    Path::new(&called).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The ask rules for the helpers in the user's settings.
fn asked_rules() -> Vec<Rule> {
    let text = std::fs::read_to_string(settings_path()).ok();
    let mut rules = settings::for_dispatch(text.as_deref());
    rules.retain(|rule| rule.list == "ask");
    rules
}

/// Returns true if Claude Code has asked the person about this call. An ask rule of the user's settings
/// is asked about in every permission mode, whatever other settings or hooks allow; a call from a script
/// is not, so the shell that Claude Code started has to spell it out. `callers`: the command lines above
/// this process, the nearest first.
fn has_asked(callers: &[Vec<String>]) -> bool {
    let [shell, host, above @ ..] = callers else { return false };
    let ignores = |word: &String| WITHOUT_SETTINGS.iter().any(|option| word.starts_with(option));
    let is_supervisor = |words: &Vec<String>| words[..].contains(&"--supervise".into());
    let other = has_other_settings();
    let is_claude = tools::called_by(host) == Some(CLAUDE);
    if !is_claude || other || host.iter().any(ignores) || above.iter().any(is_supervisor) {
        return false;
    }
    let Some(text) = shell.get(2).filter(|_| shell[1] == "-c") else { return false };
    let words: Vec<_> = std::env::args().skip(1).collect();
    let own = format!("/{}", called_as());
    let rules = asked_rules();
    let mut launchers = rules.iter().filter_map(|rule| asked_launcher(rule, &words));
    launchers.any(|launcher| launcher.ends_with(&own) && spells_out(text, launcher, &words))
}

/// The launcher for which a rule makes Claude Code ask about a call with those words.
fn asked_launcher<'a>(rule: &'a Rule, words: &[String]) -> Option<&'a str> {
    let pattern = rule.text.strip_prefix("Bash(")?.strip_suffix("*)")?;
    let (path, known) = pattern.split_once('*')?;
    let of_helper = |(helper, pattern): &&(&str, &str)| {
        *pattern == known && path.ends_with(&format!("/{helper}"))
    };
    ASKED.iter().find(of_helper)?;
    let call = format!(" {}", words.join(" "));
    let mut rest = call.as_str();
    let takes = |part| rest.split_once(part).map(|(_, after)| rest = after).is_some();
    known.split('*').all(takes).then_some(path)
}

/// Returns true if the text of Claude Code's shell has a command with exactly these words, and nothing that
/// the two could read differently.
fn spells_out(text: &str, launcher: &str, words: &[String]) -> bool {
    let call = [launcher].into_iter().chain(words.iter().map(String::as_str));
    let call: Vec<_> = call.map(|word| Some(word.to_owned())).collect();
    shell_commands(text).into_iter().any(|command| match command.as_slice() {
        [Some(eval), Some(text), ..] if eval == "eval" => {
            let commands = shell_commands(text);
            commands.contains(&call) && commands.iter().flatten().all(Option::is_some)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_each_launcher_by_its_exact_path() {
        let read = read_rule().expect("a home");
        let all = rules(Path::new("/s/bin"), &read);
        let count = |list| all.iter().filter(|rule| rule.list == list).count();
        assert_eq!((count("allow"), count("ask")), (8, 15));
        let text = |n: usize| all[n].text.as_str();
        assert_eq!((text(1), text(5)), ("Bash(/s/bin/dispatch-spawn *)", "Skill(dispatch)"));
        assert!(all.iter().all(|rule| names_dispatch(&rule.text)), "{all:?}");
        let spaced = rules(Path::new("/my skills/bin"), &read);
        assert_eq!(spaced[1].text, r#"Bash("/my skills/bin/dispatch-spawn" *)"#);
        assert_eq!(spaced[8].text, "Bash(/my skills/bin/dispatch-config* add-backend*)");
        assert_eq!(spaced[22].text, "Bash(xargs */my skills/bin/dispatch-*)");
    }

    #[test]
    fn ask_rule_covers_only_the_call_that_is_spelled_out() {
        let path = "/s/dispatch-reconcile";
        let bare = format!("{path} adopt x=full");
        for (command, covers) in [
            (format!("\"{path}\" adopt x=full && pwd"), true),
            (format!("{bare}; next"), true),
            (format!("{bare} - <<END\nHello\nEND"), false),
            (format!("{bare} <<\"END\"\nHello\nEND"), true),
            (format!("true # {bare}"), false),
            (format!("echo \"; {bare}\""), false),
            (format!("cat <<E\n{bare}\nE"), false),
            (format!("{bare} more"), false),
            (format!("{bare}; echo $x"), false),
            (format!("echo $\"a\" && {bare}"), false),
            (format!("{path} adopt $x"), false),
            ("/t/dispatch-reconcile adopt x=full".into(), false),
        ] {
            let words = ["adopt".into(), "x=full".into()];
            let text = format!("source it && eval '{command}' < /dev/null && pwd");
            assert_eq!(spells_out(&text, path, &words), covers, "{command}");
            assert!(!spells_out(&command, path, &words), "{command}");
        }
    }

    #[test]
    fn ask_rule_is_known_by_its_launcher_and_words() {
        let rule = |text: &str| Rule { list: "ask", text: text.into() };
        let setup = "Bash(/s/dispatch-config* setup*--full*)";
        for (text, words, covers) in [
            (setup, "setup --default opus --full=codex", true),
            (setup, "-C . setup --full codex", true),
            (setup, "--full setup", false),
            (setup, "setup --yes", false),
            ("Bash(/s/dispatch-spawn* setup*--full*)", "setup --full codex", false),
            ("Bash(/s/dispatch-config* set*)", "setup --full codex", false),
            ("Bash(xargs */s/dispatch-*)", "setup --full codex", false),
        ] {
            let words: Vec<_> = words.split(' ').map(String::from).collect();
            assert_eq!(asked_launcher(&rule(text), &words).is_some(), covers, "{text} {words:?}");
        }
    }
}
