//! Commands from the config. They are shell text that the person wrote; whatever dispatch adds
//! reaches the shell as arguments and is never part of that text.

use std::ffi::OsString;

use super::words;

/// Runs `command` with more arguments behind it.
pub(super) fn argv(command: &str, extra: Vec<OsString>) -> Vec<OsString> {
    let mut argv = words(&["sh", "-c", &format!("{} \"$@\"", command.trim_end()), "sh"]);
    argv.extend(extra);
    argv
}

/// Whether the command says itself which model to use.
pub(super) fn names_a_model(command: &str) -> bool {
    let is_model = |word: &str| matches!(word, "--model" | "-m") || word.starts_with("--model=");
    command.split_whitespace().any(is_model)
}

/// The program that a command starts, past `env` and assignments; `None` if only a shell can tell.
pub(super) fn program(command: &str) -> Option<String> {
    let command = command.trim_start();
    if let Some(quote) = command.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let (quoted, rest) = command[1..].split_once(quote)?;
        let whole = rest.is_empty() || rest.starts_with([' ', '\t', '\n']);
        return Some(quoted).filter(|quoted| whole && !quoted.contains('$')).map(str::to_string);
    }
    let mut words = command.split_whitespace().peekable();
    if words.peek() == Some(&"env") {
        words.next();
        while let Some(option) = words.next_if(|word| word.starts_with('-')) {
            if matches!(option, "-u" | "--unset") {
                words.next();
            }
        }
    }
    let is_assignment =
        |word: &&str| word.split_once('=').is_some_and(|(name, _)| !name.contains('/'));
    while words.next_if(is_assignment).is_some() {}
    let word = words.next()?;
    let plain = |c: char| c.is_alphanumeric() || "-_./+@".contains(c);
    let builtin =
        matches!(word, "cd" | "exec" | "if" | "for" | "while" | "export" | "set" | "." | "eval");
    (word.chars().all(plain) && !builtin).then(|| word.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_command() {
        let rows = [
            ("codex exec -C \"$(pwd)\"", Some("codex")),
            ("env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE\n claude -p\n", Some("claude")),
            ("FOO=1 BAR=2 agent -p", Some("agent")),
            ("'/a b/dispatch-worker' demo", Some("/a b/dispatch-worker")),
            ("\"$HOME/bin/x\" y", None),
            ("$TOOL run", None),
            ("cd x && run", None),
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
    fn a_command_keeps_its_own_model() {
        assert!(names_a_model("agent -p --model gpt-5"));
        assert!(names_a_model("agent --model=gpt-5"));
        assert!(names_a_model("codex exec -m gpt-5"));
        assert!(!names_a_model("codex exec --models"));
    }
}
