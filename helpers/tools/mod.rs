//! The worker CLIs that dispatch knows: how each is found, called, held to an access and heard.

#[cfg(test)]
mod argv_tests;
pub(crate) mod claude;
mod cli;
mod clis;
mod codex;
mod command;
mod copilot;
mod cursor;
pub mod detect;
mod droid;
pub mod events;
mod gemini;
mod opencode;
mod qwen;
mod rate_limit;
#[cfg(test)]
mod recorded_tests;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::domain::{Access, Backend, PromptVia};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::process::find_program;
use crate::text::shell_word;
use crate::tools::detect::removed_flags;
use cli::Cli;
use events::Listener;

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
    /// All directories that it must be able to write in beside its own.
    pub writable: &'a [PathBuf],
    /// The conversation that it begins or continues.
    pub session: Session<'a>,
    /// The `dispatch-worker` that it calls.
    pub helper: &'a Path,
}

/// A CLI's conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session<'a> {
    /// A new one; a CLI that lets us choose calls it by this UUID.
    New(&'a str),
    /// The one that it calls so.
    Resume(&'a str),
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

    /// The command as a person would type it; `file` holds the prompt.
    pub fn shell_line(&self, prompt: &str, file: &Path) -> String {
        let quoted = |word: &OsString| shell_word(&word.to_string_lossy());
        let argv = self.with_prompt(prompt, file);
        let mut line: Vec<_> = self.argv.iter().map(quoted).collect();
        let file = shell_word(&file.display().to_string());
        match self.prompt {
            PromptVia::Stdin => line.push(format!("< {file}")),
            PromptVia::Arg if prompt.len() <= LONGEST_ARGUMENT => {
                line.push(format!("\"$(cat {file})\""));
            }
            PromptVia::Arg | PromptVia::File => {
                line.extend(argv.last().map(quoted));
            }
        }
        line.join(" ")
    }
}

/// The CLIs that dispatch knows. To add one: a file like theirs, and its name here.
static KNOWN: [&Cli; 8] = [
    &claude::CLI,
    &codex::CLI,
    &cursor::CLI,
    &gemini::CLI,
    &opencode::CLI,
    &copilot::CLI,
    &qwen::CLI,
    &droid::CLI,
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
        let cli = named(name).ok_or_else(|| {
            let known: Vec<_> = KNOWN.iter().map(|cli| cli.name).collect();
            Refusal::new(Exit::Data, format!("backend '{name}' has no command"))
                .place(format!("without one only these are known: {}", known.join(", ")))
                .next(format!(
                    "add backends.{name}.command to {}",
                    crate::dirs::config_path()
                        .map_or_else(|_| "the config".into(), |path| path.display().to_string())
                ))
        })?;
        installed(name, OsStr::new(cli.programs[0]))?;
        let mut argv = (cli.argv)(job);
        argv.extend(cli.end("", job));
        return Ok(Invocation { argv, prompt: PromptVia::Stdin });
    };
    let program = command::program(command);
    if let Some(program) = &program {
        installed(name, OsStr::new(program))?;
    }
    let known = program.as_deref().and_then(of_program);
    let command = &known.map_or(command.to_owned(), |cli| current(cli.name, command));
    let extra = known.map_or_else(Vec::new, |cli| cli.end(command, job));
    let usual = if known.is_some() { PromptVia::Stdin } else { PromptVia::Arg };
    Ok(Invocation { argv: command::argv(command, extra), prompt: settings.prompt.unwrap_or(usual) })
}

/// The CLI that a backend calls, if it is one that dispatch knows.
fn known_cli(name: &str, settings: &Backend) -> Option<&'static Cli> {
    match settings.command.as_deref() {
        None => named(name),
        Some(command) => of_program(&command::program(command)?),
    }
}

fn named(name: &str) -> Option<&'static Cli> {
    KNOWN.into_iter().find(|cli| cli.name == name)
}

fn of_program(program: &str) -> Option<&'static Cli> {
    let file_name = Path::new(program).file_name()?.to_str()?;
    KNOWN.into_iter().find(|cli| cli.programs.contains(&file_name))
}

/// Who understands what a backend's worker says.
pub fn listener(name: &str, settings: &Backend) -> Listener {
    Listener::new(known_cli(name, settings))
}

/// Why the workers of a backend cannot be held to that access on this machine, if so. A command of
/// the config is the person's own choice; of a CLI that is not installed something else is said.
pub fn gap(name: &str, settings: &Backend, access: Access) -> Option<String> {
    let cli = named(name).filter(|_| settings.command.is_none())?;
    find_program(cli.programs[0].as_ref())?;
    (cli.gap)(access)
}

/// What a person types to log the CLI of a backend in, if dispatch knows it.
pub fn login(name: &str, settings: &Backend) -> Option<&'static str> {
    known_cli(name, settings).map(|cli| cli.login)
}

/// The flags in a backend's command that its CLI no longer takes, each with what is used in its
/// place.
pub fn obsolete_flags(settings: &Backend) -> Vec<(&'static str, &'static str)> {
    let Some(command) = settings.command.as_deref() else { return Vec::new() };
    let Some(cli) = command::program(command).and_then(|it| of_program(&it)) else {
        return Vec::new();
    };
    let mut removed = removed_flags(cli.name, None);
    removed.retain(|(flag, _)| command.split_whitespace().any(|word| word == *flag));
    removed
}

/// A command without the flags that its CLI no longer takes: configs that were written for older
/// versions live on.
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
        None => named(name)?.programs[0].to_owned(),
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

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_no_argument_can_hold_goes_by_file() {
        let call = Invocation { argv: words(&["x"]), prompt: PromptVia::Arg };
        let file = Path::new("/p/prompt.md");
        assert_eq!(call.with_prompt("short", file), words(&["x", "short"]));
        let long = "y".repeat(LONGEST_ARGUMENT + 1);
        assert_eq!(call.with_prompt(&long, file), words(&["x", "Read and follow /p/prompt.md"]));
    }
}
