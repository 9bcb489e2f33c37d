//! Commands of the config: shell text that the person wrote. Whatever dispatch adds reaches the shell
//! as arguments and never becomes part of that text.

use std::ffi::OsString;
use std::sync::LazyLock;

use regex::bytes::Regex;

use crate::tools::os_args;

/// The arguments that run `command` with `extra` arguments after it. The shell replaces itself by a
/// single program, so that the watched process is the worker itself.
pub(super) fn argv(command: &str, extra: Vec<OsString>) -> Vec<OsString> {
    let exec = if is_one_program(command) { "exec " } else { "" };
    let mut argv = os_args(&["sh", "-c", &format!("{exec}{} \"$@\"", command.trim()), "sh"]);
    argv.extend(extra);
    argv
}

/// True if the command certainly is one program with arguments, without an assignment before it.
fn is_one_program(command: &str) -> bool {
    let first = command.split_whitespace().next().unwrap_or_default();
    let assigns = first.contains('=') && !first.starts_with(['\'', '"', '/']);
    let several = command.trim().contains([';', '|', '&', '\n']);
    program(command).is_some() && !assigns && !several
}

/// True if the command is one program that does not choose the form of its output itself.
pub(super) fn prints_for_people(command: &str) -> bool {
    let forms = ["--output-format", "--output", "-o", "--format", "--json"];
    is_one_program(command) && !has(command, &forms)
}

/// True if one of the command's words is one of these options, with a value attached or not.
pub(super) fn has(command: &str, options: &[&str]) -> bool {
    let is_one = |word: &str| options.contains(&word.split('=').next().unwrap_or_default());
    command.split_whitespace().any(is_one)
}

/// True if the command chooses a model itself.
pub(super) fn names_a_model(command: &str) -> bool {
    has(command, &["--model", "-m"])
}

/// True if the command chooses a session itself.
pub(super) fn names_a_session(command: &str) -> bool {
    has(command, &["--session-id", "--resume", "--continue", "-r", "resume", "fork"])
}

/// Skips `env`, its options and assignments, then matches one quoted or plain word. Bytes compile five times
/// as fast as characters, and every start of a worker compiles it.
static PROGRAM: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r#"(?x-u)
        ^[\x20\t\n]* (?: env [\x20\t\n]+ (?: (?: -u [\x20\t\n]+ [^\x20\t\n]+ | -[^\x20\t\n]+ ) [\x20\t\n]+ )* )?
        (?: [A-Za-z_][A-Za-z0-9_]* = [^\x20\t\n'"$`]* [\x20\t\n]+ )*
        (?: '(?<single>[^']+)' | "(?<double>[^"$`\\]+)" | (?<plain>[A-Za-z0-9_./+@-]+) )
        (?: [\x20\t\n] | $ )"#;
    Regex::new(pattern).expect("a valid expression")
});

/// The program that a command starts; `None` if only a shell can tell.
pub fn program(command: &str) -> Option<String> {
    let found = PROGRAM.captures(command.as_bytes())?;
    let word = ["single", "double", "plain"].iter().find_map(|name| found.name(name))?.as_bytes();
    let word = std::str::from_utf8(word).ok()?;
    let builtins = ["cd", "exec", "if", "for", "while", "export", "set", ".", "eval", "env"];
    (!builtins.contains(&word)).then(|| word.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_of_a_command_is_its_first_word_past_env_and_assignments() {
        let rows = [
            ("codex exec -C \"$(pwd)\"", Some("codex")),
            ("env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE\n claude -p\n", Some("claude")),
            ("FOO=1 BAR=2 agent -p", Some("agent")),
            ("'/a b/dispatch-worker' demo", Some("/a b/dispatch-worker")),
            ("\"$HOME/bin/x\" y", None),
            ("$TOOL run", None),
            ("cd x && run", None),
            ("\"/a b/x\" y", Some("/a b/x")),
            ("X=\"a b\" run", None),
            ("'a'b c", None),
            ("'a", None),
            ("'a b'", Some("a b")),
            ("", None),
        ];
        for (command, program) in rows {
            assert_eq!(super::program(command).as_deref(), program, "{command}");
        }
    }

    #[test]
    fn shell_replaces_itself_by_a_single_program_only() {
        for one in ["codex exec -C \"$(pwd)\"", "env -u A claude -p\n", "'/a b/c' demo"] {
            assert!(is_one_program(one), "{one}");
        }
        for more in
            ["A=1 agent -p", "cd x && run", "a | b", "a; b", "a\nb", "$TOOL x", "exec a", ""]
        {
            assert!(!is_one_program(more), "{more}");
        }
    }

    #[test]
    fn command_keeps_its_own_model() {
        assert!(names_a_model("agent -p --model gpt-5"));
        assert!(names_a_model("agent --model=gpt-5"));
        assert!(names_a_model("codex exec -m gpt-5"));
        assert!(!names_a_model("codex exec --models"));
    }

    #[test]
    fn command_keeps_its_own_form_of_output() {
        assert!(prints_for_people("codex exec --full-auto -C \"$(pwd)\""));
        for own in ["claude -p --output-format=text", "codex exec --json", "agent -p | tee log", ""]
        {
            assert!(!prints_for_people(own), "{own}");
        }
    }

    #[test]
    fn command_keeps_its_own_session() {
        assert!(names_a_session("claude -p --resume=abc"));
        assert!(names_a_session("claude -p --session-id abc"));
        assert!(names_a_session("codex exec resume --last"));
        assert!(!names_a_session("codex exec -C \"$(pwd)\""));
        assert!(!names_a_session("env -u CLAUDECODE claude -p --dangerously-skip-permissions"));
    }
}
