//! The worker CLIs that dispatch knows: one file for each, one table ([`KNOWN`]).
//!
//! To add a CLI:
//! 1. Copy the file of the most similar CLI to `NAME.rs`, change every line of it, and name it twice
//!    in this file: `mod NAME;`, and in [`KNOWN`].
//! 2. Put what the CLI prints into `tests/recorded/output.log` below `= NAME`, for each way in which it
//!    can end: a title `== what happened, exit N`, its lines, and `-> `.
//! 3. Add a row to `references/access.md`, and title and version to README's support table.
//! 4. `SNAPSHOTS=overwrite cargo test --lib tools::` writes its command lines and what is heard in
//!    its output; review both. Then `cargo test --lib tools::` names each place that was forgotten.

pub(crate) mod claude;
mod cli;
mod codex;
mod command;
mod copilot;
mod cursor;
pub mod detect;
mod droid;
pub mod events;
mod gemini;
pub mod models;
mod opencode;
mod qwen;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;

use crate::dirs;
use crate::domain::{Access, Backend, PromptVia};
use crate::error::{Exit, Refusal};
use crate::process::{Holder, find_program, probe};
use crate::text::shell_word;
pub use cli::{Place, WorkerCli};
pub use command::program as program_of;
use events::Listener;

/// The CLIs that dispatch knows, the best known first.
pub static KNOWN: &[&WorkerCli] = &[
    &claude::CLI,
    &codex::CLI,
    &cursor::CLI,
    &gemini::CLI,
    &opencode::CLI,
    &copilot::CLI,
    &qwen::CLI,
    &droid::CLI,
];

/// The longest argument on Linux, in bytes (MAX_ARG_STRLEN).
const LONGEST_ARGUMENT: usize = 128 * 1024 - 1;

/// Why Landlock does not hold a worker that writes in a project.
const NEEDS_WORKTREE: &str = "without bubblewrap, access to write needs a worktree";

/// The circumstances in which a worker is started.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The model's id, if the CLI is told one.
    pub model: Option<&'a str>,
    /// The worker's access level.
    pub access: Access,
    /// The directory that it works in.
    pub directory: &'a Path,
    /// The task's directory, which it writes to at any access level.
    pub task: &'a Path,
    /// All directories outside of its own that it must be able to write in.
    pub writable: &'a [PathBuf],
    /// Places in its directory that it must not write, there or not yet, where the CLI holds it.
    pub kept: &'a [PathBuf],
    /// The sandbox that holds it; `None` if the CLI does so itself.
    pub holder: Option<Holder>,
    /// The US dollars that it may use, if they are limited.
    pub usd: Option<f64>,
    /// The session that it begins or resumes.
    pub session: Session<'a>,
    /// The `dispatch-worker` that it calls.
    pub helper: &'a Path,
}

/// A CLI's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session<'a> {
    /// A new session, with this UUID if the CLI lets us choose.
    New(&'a str),
    /// The session with this id of the CLI's.
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
        let prompt = match self.prompt {
            PromptVia::Stdin => None,
            PromptVia::Arg if fits_argument(text) => Some(text.into()),
            PromptVia::Arg | PromptVia::File => {
                Some(format!("Read and follow {}", file.display()).into())
            }
        };
        self.argv.iter().cloned().chain(prompt).collect()
    }

    /// The command as a person would type it; `file` holds the prompt.
    pub fn shell_line(&self, prompt: &str, file: &Path) -> String {
        let path = shell_word(&file.display().to_string());
        let (args, end) = match self.prompt {
            PromptVia::Stdin => (self.argv.clone(), format!(" < {path}")),
            PromptVia::Arg if fits_argument(prompt) => {
                (self.argv.clone(), format!(" \"$(cat {path})\""))
            }
            PromptVia::Arg | PromptVia::File => (self.with_prompt(prompt, file), String::new()),
        };
        let words: Vec<_> = args.iter().map(|word| shell_word(&word.to_string_lossy())).collect();
        words.join(" ") + &end
    }
}

/// Returns true for a text that can be one argument; another prompt goes by file.
fn fits_argument(text: &str) -> bool {
    text.len() <= LONGEST_ARGUMENT && !text.contains('\0')
}

/// The CLI of that name, whose backend can be used without a command.
pub fn by_name(backend: &str) -> Option<&'static WorkerCli> {
    KNOWN.iter().copied().find(|cli| cli.name == backend)
}

/// The CLI whose programs have that file name.
fn by_program(program: &Path) -> Option<&'static WorkerCli> {
    let file_name = program.file_name()?.to_str()?;
    KNOWN.iter().copied().find(|cli| cli.programs.contains(&file_name))
}

/// The known CLI that a process with this command line is, by its program or the script that its
/// interpreter runs.
pub fn called_by(command_line: &[String]) -> Option<&'static str> {
    let programs = command_line.iter().take(2).filter_map(|word| by_program(Path::new(word)));
    programs.map(|cli| cli.title).next()
}

/// The CLI that a command of the config calls, if dispatch knows it.
fn by_command(command: &str) -> Option<&'static WorkerCli> {
    by_program(Path::new(&program_of(command)?))
}

/// The CLI that a backend calls, if dispatch knows it.
pub fn by_backend(name: &str, settings: &Backend) -> Option<&'static WorkerCli> {
    settings.command.as_deref().map_or_else(|| by_name(name), by_command)
}

/// The command line that starts a backend's worker.
///
/// # Errors
/// [`Exit::Unavailable`] if its program is not installed; [`Exit::Data`] if the backend has no
/// command and dispatch does not know it.
pub fn invocation(name: &str, settings: &Backend, job: &Job) -> Result<Invocation> {
    let cli = by_backend(name, settings);
    if let Some(program) = missing_program(name, settings) {
        let what = format!("the CLI of backend '{name}' is not installed");
        return Refusal::new(Exit::Unavailable, what)
            .place(format!("'{program}' is not in PATH"))
            .refuse(format!("install {program}, or name a model of another backend"));
    }
    let (argv, usual) = match (settings.command.as_deref().map(str::trim_end), cli) {
        (None, None) => return Err(no_command(name).into()),
        (None, Some(cli)) => {
            let job = &Job { access: cli.flags(job.access, job.holder), ..job.clone() };
            let argv = (cli.argv)(job).into_iter().chain(cli.last_args("", job)).collect();
            return Ok(Invocation { argv, prompt: PromptVia::Stdin });
        }
        (Some(command), None) => (command::argv(command, Vec::new()), PromptVia::Arg),
        (Some(command), Some(cli)) => {
            let current = with_current_flags(cli, command);
            (command::argv(&current, cli.last_args(command, job)), PromptVia::Stdin)
        }
    };
    Ok(Invocation { argv, prompt: settings.prompt.unwrap_or(usual) })
}

fn no_command(name: &str) -> Refusal {
    let config = dirs::config_path();
    let config = config.map_or_else(|_| "the config".into(), |path| path.display().to_string());
    Refusal::new(Exit::Data, format!("backend '{name}' has no command"))
        .place("dispatch knows no worker CLI of that name")
        .next(format!("add backends.{name}.command to {config}"))
}

/// The program of a backend, if it is known and not installed.
pub fn missing_program(name: &str, settings: &Backend) -> Option<String> {
    program_of_backend(name, settings).filter(|it| find_program(OsStr::new(it)).is_none())
}

/// The program of a backend, if it is known.
fn program_of_backend(name: &str, settings: &Backend) -> Option<String> {
    match &settings.command {
        Some(command) => program_of(command),
        None => Some(by_name(name)?.programs[0].to_owned()),
    }
}

/// The kinds of use that a CLI reports, from the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reports {
    /// Nothing.
    Nothing,
    /// Tokens.
    Tokens,
    /// Tokens and money.
    Money,
}

/// The kinds of use that dispatch hears of from a backend's workers.
pub fn reports(name: &str, settings: &Backend) -> Reports {
    let hears = |command: &String| command::prints_for_people(command) || command.contains("json");
    match by_backend(name, settings) {
        Some(cli) if settings.command.as_ref().is_none_or(hears) => cli.reports,
        _ => Reports::Nothing,
    }
}

/// The listener that understands the output of a backend's worker.
pub fn listener(name: &str, settings: &Backend) -> Listener {
    Listener::new(by_backend(name, settings))
}

/// The sandbox that holds a backend's workers to an access level on this machine; `None` if the CLI
/// itself does, or nothing has to. A CLI that is not installed is reported elsewhere.
///
/// # Errors
/// Why they cannot be held to it.
pub fn holder(
    name: &str,
    settings: &Backend,
    access: Access,
    in_worktree: bool,
) -> Result<Option<Holder>, String> {
    let cli = by_name(name).filter(|_| settings.command.is_none());
    if access == Access::Full || cli.is_some_and(|cli| !cli.is_installed()) {
        return Ok(None);
    }
    let nested = cli.is_some_and(|cli| cli.nests && (cli.own_sandbox)(access).is_some());
    let sandbox = match sandbox(access, in_worktree, nested) {
        Ok(holder) => return Ok(Some(holder)),
        Err(sandbox) => sandbox,
    };
    match cli.map(|cli| cli.gap(access)) {
        Some(None) => Ok(None),
        Some(Some(gap)) => Err(format!("{sandbox}; {gap}")),
        None => Err(sandbox),
    }
}

/// The remedy for workers that nothing holds for this reason, as the beginning of a sentence that names
/// another way.
pub fn remedy(why: &str) -> &'static str {
    match why {
        _ if why.starts_with(NEEDS_WORKTREE) => "add --worktree; or ",
        _ if why.contains("(bwrap) is not installed") => "install it; or ",
        _ => "",
    }
}

/// Lines that say what would hold the workers of each installed CLI on this machine.
pub fn holders() -> Vec<String> {
    let line = |cli: &WorkerCli| {
        let by = [Access::Read, Access::Write].map(|access| {
            let in_project = holder(cli.name, &Backend::default(), access, false);
            match in_project.or_else(|_| holder(cli.name, &Backend::default(), access, true)) {
                Ok(Some(Holder::Landlock)) if access == Access::Write => {
                    format!("{access} with --worktree by landlock")
                }
                Ok(Some(holder)) => format!("{access} by {holder}"),
                Ok(None) => format!("{access} by itself"),
                Err(why) => format!("{access} refused ({why})"),
            }
        });
        format!("{}: {}", cli.name, by.join(", "))
    };
    KNOWN.iter().copied().filter(|cli| cli.is_installed()).map(line).collect()
}

/// The sandbox that holds a worker to an access level on this machine.
///
/// # Errors
/// Why there is none.
pub fn sandbox(access: Access, in_worktree: bool, nested: bool) -> Result<Holder, String> {
    static SANDBOX: [OnceLock<Result<Holder, String>>; 2] = [const { OnceLock::new() }; 2];
    let directories = || [dirs::home_directory(), dirs::state_root().ok()].into_iter().flatten();
    let probe = || probe(&directories().collect::<Vec<_>>(), nested);
    match SANDBOX[usize::from(nested)].get_or_init(probe) {
        // The places of a project that git and hosts obey lie below the directory that it writes in.
        Ok(Holder::Landlock) if access == Access::Write && !in_worktree => {
            Err(NEEDS_WORKTREE.into())
        }
        found => found.clone(),
    }
}

/// True if the backend's CLI holds its workers to a level itself, within the sandbox of `holder`: its
/// own rules, which may close the network, come on top.
pub fn holds_itself_within(name: &str, access: Access, holder: Holder) -> bool {
    by_name(name).is_some_and(|cli| cli.flags(access, Some(holder)) == access)
}

/// The directories of a backend's CLI, and the other logins that it uses.
pub fn places(name: &str, settings: &Backend) -> (&'static [Place], Vec<&'static str>) {
    let Some(cli) = by_backend(name, settings) else { return Default::default() };
    let is_used = |(variable, _): &&(&str, &str)| {
        variable.is_empty() || std::env::var_os(variable).is_some_and(|value| !value.is_empty())
    };
    (cli.places, cli.other_logins.iter().filter(is_used).map(|(_, path)| *path).collect())
}

/// The directories of all known CLIs, as the person has them.
pub fn private_directories() -> Vec<PathBuf> {
    let places = KNOWN.iter().flat_map(|cli| cli.places);
    places.map(|place| place.directory().join(place.own)).collect()
}

/// The directories, and the files, at the top of a project that make an installed CLI run something.
/// The host, Claude Code, counts as installed.
pub fn obeyed() -> [Vec<&'static str>; 2] {
    let is_there = |cli: &&&WorkerCli| cli.name == claude::CLI.name || cli.is_installed();
    let installed: Vec<_> = KNOWN.iter().filter(is_there).collect();
    let names = |of: fn(&WorkerCli) -> &'static [&'static str]| {
        installed.iter().flat_map(|cli| of(cli)).copied().collect()
    };
    [names(|cli| cli.obeys), names(|cli| cli.obeyed_files)]
}

/// The flags in a backend's command that its CLI no longer takes, each with its replacement.
pub fn obsolete_flags(settings: &Backend) -> Vec<(&'static str, &'static str)> {
    let command = settings.command.as_deref().unwrap_or_default();
    let removed = by_command(command).map_or(&[][..], |cli| cli.removed_flags);
    let has = |flag: &str| command.split_whitespace().any(|word| word == flag);
    removed.iter().filter(|(flag, _)| has(flag)).copied().collect()
}

/// A command with replacements for the flags that its CLI no longer takes, as old configs have them.
fn with_current_flags(cli: &WorkerCli, command: &str) -> String {
    let word = |word: &str| {
        let removed = cli.removed_flags.iter().find(|(flag, _)| *flag == word.trim_end());
        removed.map_or_else(|| word.to_owned(), |(flag, new)| word.replace(flag, new))
    };
    command.split_inclusive([' ', '\t', '\n']).map(word).collect()
}

fn os_args(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}
