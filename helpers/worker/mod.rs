//! Workers: how each CLI is called, and the supervisor that runs one.

pub(crate) mod claude;
mod codex;
mod command;
pub mod demo;
mod others;
pub mod supervise;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::config::detect::removed_flags;
use crate::config::{Access, Backend, PromptVia};
use crate::error::Refusal;
use crate::exit::Exit;

/// One argument can hold 131,071 bytes on Linux (MAX_ARG_STRLEN); a longer prompt goes by file.
const LONGEST_ARGUMENT: usize = 128 * 1024 - 1;

/// What a worker is started for.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The model's id, if the backend is told one.
    pub model: Option<&'a str>,
    /// What the worker may do.
    pub access: Access,
    /// Where it works.
    pub directory: &'a Path,
    /// The task's directory, which it writes to whatever its access.
    pub task: &'a Path,
    /// The `dispatch-worker` that it calls.
    pub helper: &'a Path,
}

/// A program to run, and how it gets its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    /// The program and its arguments, without the prompt.
    pub argv: Vec<OsString>,
    /// Where the prompt goes.
    pub prompt: PromptVia,
}

impl Invocation {
    /// The arguments with the prompt in its place: `text` is the prompt, `file` holds it.
    pub fn with_prompt(&self, text: &str, file: &Path) -> Vec<OsString> {
        let mut argv = self.argv.clone();
        match self.prompt {
            PromptVia::Stdin => {}
            PromptVia::Arg if text.len() <= LONGEST_ARGUMENT => argv.push(text.into()),
            PromptVia::Arg | PromptVia::File => {
                argv.push(format!("Read and follow {}", file.display()).into());
            }
        }
        argv
    }

    /// The command as a person would type it.
    pub fn shell_line(&self) -> String {
        let words: Vec<_> =
            self.argv.iter().map(|word| shell_word(&word.to_string_lossy())).collect();
        words.join(" ")
    }
}

/// A CLI that dispatch knows. It reads the prompt on standard input.
struct Cli {
    name: &'static str,
    /// What its programs are called.
    programs: &'static [&'static str],
    /// The command line, for a backend without a command of its own; without the model.
    argv: fn(&Job) -> Vec<OsString>,
    /// The flag before a model's name.
    model_flag: &'static str,
    /// What it calls a model of the config.
    model_name: fn(&str) -> &str,
    /// What stands last.
    tail: &'static [&'static str],
}

impl Cli {
    /// The end of the command line: the model, unless the command has one, and what stands last.
    fn end(&self, command: &str, model: Option<&str>) -> Vec<OsString> {
        let model = model.filter(|_| !command::names_a_model(command));
        let mut end = model
            .map_or_else(Vec::new, |model| words(&[self.model_flag, (self.model_name)(model)]));
        end.extend(words(self.tail));
        end
    }
}

fn same_name(model: &str) -> &str {
    model
}

/// The CLIs that dispatch knows. To add one: a constant like these, and its name here.
static KNOWN: [Cli; 8] = [
    claude::CLI,
    codex::CLI,
    others::CURSOR,
    others::GEMINI,
    others::OPENCODE,
    others::COPILOT,
    others::QWEN,
    others::DROID,
];

/// Whether the backend of that name can be used without a command.
pub fn is_known(backend: &str) -> bool {
    KNOWN.iter().any(|cli| cli.name == backend)
}

/// How the worker of a backend is started.
///
/// # Errors
/// [`Exit::Unavailable`] if its program is not installed; [`Exit::Data`] if the config has neither
/// a command for it nor a name that is known.
pub fn invocation(name: &str, settings: &Backend, job: &Job) -> Result<Invocation> {
    let Some(command) = settings.command.as_deref().map(str::trim_end) else {
        let cli = KNOWN.iter().find(|cli| cli.name == name).ok_or_else(|| {
            let known: Vec<_> = KNOWN.iter().map(|cli| cli.name).collect();
            Refusal::new(Exit::Data, format!("backend '{name}' has no command"))
                .place(format!("without one only these are known: {}", known.join(", ")))
                .next(format!(
                    "add backends.{name}.command to {}",
                    crate::config::path()
                        .map_or_else(|_| "the config".into(), |path| path.display().to_string())
                ))
        })?;
        let mut argv = (cli.argv)(job);
        installed(name, &argv[0])?;
        argv.extend(cli.end("", job.model));
        return Ok(Invocation { argv, prompt: PromptVia::Stdin });
    };
    let program = command::program(command);
    if let Some(program) = &program {
        installed(name, OsStr::new(program))?;
    }
    let file_name = program.as_deref().and_then(|program| Path::new(program).file_name());
    let known =
        KNOWN.iter().find(|cli| cli.programs.iter().any(|p| file_name == Some(OsStr::new(p))));
    let command = &known.map_or(command.to_owned(), |cli| current(cli.name, command));
    let extra = known.map_or_else(Vec::new, |cli| cli.end(command, job.model));
    let usual = if known.is_some() { PromptVia::Stdin } else { PromptVia::Arg };
    Ok(Invocation { argv: command::argv(command, extra), prompt: settings.prompt.unwrap_or(usual) })
}

/// A command without the flags that its CLI no longer takes. Configs that were written for older
/// versions live on; `dispatch-config check` names such flags.
fn current(cli: &str, command: &str) -> String {
    let removed = removed_flags(cli, None);
    let word = |word: &str| {
        let replacement = removed.iter().find(|(flag, _)| *flag == word.trim_end());
        replacement.map_or_else(|| word.to_owned(), |(flag, new)| word.replace(flag, new))
    };
    command.split_inclusive([' ', '\t', '\n']).map(word).collect()
}

/// The program that a command of the config starts, if that can be told without a shell.
pub fn program_of(command: &str) -> Option<String> {
    command::program(command)
}

/// The program of a backend, if it is known and not installed.
pub fn missing_program(name: &str, settings: &Backend) -> Option<String> {
    let program = match &settings.command {
        Some(command) => program_of(command)?,
        None => KNOWN.iter().find(|cli| cli.name == name)?.programs[0].to_owned(),
    };
    find_program(OsStr::new(&program)).is_none().then_some(program)
}

fn installed(backend: &str, program: &OsStr) -> Result<PathBuf, Refusal> {
    find_program(program).ok_or_else(|| {
        let program = program.to_string_lossy();
        Refusal::new(Exit::Unavailable, format!("the CLI of backend '{backend}' is not installed"))
            .place(format!("'{program}' is not in PATH"))
            .next(format!("install {program}, or name a model of another backend"))
    })
}

/// Where a program is, as a shell would find it.
pub fn find_program(program: &OsStr) -> Option<PathBuf> {
    find_program_in(program, &std::env::var_os("PATH").unwrap_or_default())
}

/// Where a program is, as a shell with this `PATH` would find it.
pub(crate) fn find_program_in(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    // An empty entry is the working directory, which is not meant where there is no PATH at all.
    let directories = std::env::split_paths(path).filter(|_| !path.is_empty());
    directories.map(|directory| directory.join(program)).find(runs)
}

/// The `dispatch-worker` beside this program, which stays the same while the skill is updated.
pub fn own_helper() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(own.with_file_name("dispatch-worker"))
}

/// A launcher of the skill that this program was called through, else the program beside it. It is
/// what the permission rules in a person's settings name.
pub fn launcher(name: &str) -> Result<PathBuf> {
    match std::env::var_os("DISPATCH_BIN") {
        Some(bin) => Ok(Path::new(&bin).join(name)),
        None => Ok(own_helper()?.with_file_name(name)),
    }
}

/// Quotes a word for a POSIX shell, where it needs it.
pub fn shell_word(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./=:,@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.into();
    }
    // Where a host's permission rule names a path with a space, it is in double quotes.
    if !word.is_empty() && !word.contains(['"', '$', '`', '\\', '!', '\n']) {
        return format!("\"{word}\"");
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_so_that_a_shell_gives_them_back() {
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
    fn a_prompt_that_no_argument_can_hold_goes_by_file() {
        let call = Invocation { argv: words(&["x"]), prompt: PromptVia::Arg };
        let file = Path::new("/p/prompt.md");
        assert_eq!(call.with_prompt("short", file), words(&["x", "short"]));
        let long = "y".repeat(LONGEST_ARGUMENT + 1);
        assert_eq!(call.with_prompt(&long, file), words(&["x", "Read and follow /p/prompt.md"]));
    }
}
