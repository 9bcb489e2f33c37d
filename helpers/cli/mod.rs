//! The command lines of the five helpers: arguments in, lines and an exit code out.

pub mod config;
pub mod monitor;
pub mod reconcile;
pub mod spawn;
pub mod worker;

use std::error::Error as _;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use clap::error::ErrorKind;
use clap::{Command, Parser};

use crate::error::{Exit, Refusal, exit_code};
use crate::host::{self, Decider, called_as, refuse_undecided};
use crate::process::{HELPERS, calling_host};
use crate::project::Project;
use crate::task::Task;
use crate::text::sanitize;

/// The text of `--version` after the helper's name. Released programs are optimised builds.
pub const VERSION: &str = match cfg!(debug_assertions) {
    true => concat!(env!("CARGO_PKG_VERSION"), " (development build)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Runs the helper by whose name this program was called.
pub fn main() -> ExitCode {
    let name = called_as();
    match &*name {
        "dispatch-config" => config::main(),
        "dispatch-spawn" => spawn::main(),
        "dispatch-monitor" => monitor::main(),
        "dispatch-reconcile" => reconcile::main(),
        "dispatch-worker" => worker::main(),
        _ => {
            let what = "this program runs only under the name of a helper";
            let refusal = Refusal::new(Exit::Usage, what)
                .place(HELPERS.join(", "))
                .next("call it by one of these names; install.sh links them beside it");
            complain(format!("{name}: {refusal}"));
            Exit::Usage.into()
        }
    }
}

/// Reads the arguments, runs the helper, and prints an error as a person reads it.
fn run<Args: Parser>(body: impl FnOnce(Args) -> Result<Exit>) -> ExitCode {
    let command = Args::command();
    let name = command.get_name().to_string();
    let parsed = command.clone().try_get_matches().and_then(|it| Args::from_arg_matches(&it));
    let exit = match parsed {
        Ok(args) => refuse_pattern(&name).and_then(|()| body(args)),
        // Without arguments, a group of commands prints its commands, which is an error.
        Err(error)
            if !error.use_stderr()
                || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Ok };
            // The texts are laid out only to be read, because every start would pay for it.
            let help = with_layout(command).try_get_matches().err();
            let _ = help.unwrap_or(error).print();
            Ok(exit)
        }
        Err(error) => Err(usage(&error, &command).into()),
    };
    let exit = exit.unwrap_or_else(|error| {
        complain(format!("{name}: {error:#}"));
        if is_denied(&error) {
            complain("  next: call as the owner, or change the mode");
        }
        exit_code(&error)
    });
    exit.into()
}

/// Wraps the texts of a command and its subcommands. The exit codes and the example, which end a
/// text, go below the options.
fn with_layout(command: Command) -> Command {
    let text = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    let command = command.mut_subcommands(with_layout);
    let Some((about, end)) = text.split_once("\n\nExit code") else { return command };
    command.long_about(wrapped(about)).after_long_help(wrapped(&format!("Exit code{end}")))
}

/// The text in lines of at most 80 columns.
fn wrapped(text: &str) -> String {
    reconcile::wrap(text, 80).iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// Refuses a word for which Claude Code asks the person, if a file has that name: the command may
/// hold a pattern instead (`ful[l]`), and permission rules do not see what the shell makes of it.
fn refuse_pattern(helper: &str) -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let hidden = |word: &OsString| {
        host::is_asked(helper, &word.to_string_lossy())
            && Path::new(word).symlink_metadata().is_ok()
    };
    let Some(word) = words.find(hidden) else { return Ok(()) };
    let word = word.display();
    Refusal::new(Exit::Usage, format!("'{word}' is also the name of a file here"))
        .place("a shell may have put it in place of a pattern, unseen by permission rules")
        .refuse("call from a directory without that file")
}

/// Returns true if the system denied this user something.
fn is_denied(error: &Error) -> bool {
    let mut errors = error.chain().filter_map(|it| it.downcast_ref::<io::Error>());
    errors.any(|it| it.kind() == io::ErrorKind::PermissionDenied)
}

/// The refusal of a value by its own type. Else clap's message, shortened to what is wrong, what was
/// meant, and the help of the command.
fn usage(error: &clap::Error, mut command: &Command) -> Refusal {
    if let Some(refusal) = error.source().and_then(|it| it.downcast_ref::<Refusal>()) {
        return refusal.clone();
    }
    let message = error.to_string();
    let mut help = command.get_name().to_owned();
    for word in std::env::args().skip(1) {
        if let Some(found) = command.find_subcommand(&word) {
            help = format!("{help} {word}");
            command = found;
        }
    }
    let mut parts = message.split("\n\n");
    let first = parts.next().unwrap_or_default();
    let what = first.split_whitespace().collect::<Vec<_>>().join(" ");
    let refusal = Refusal::new(Exit::Usage, what.trim_start_matches("error: "))
        .next(format!("see {help} --help"));
    match parts.find_map(|part| part.trim().strip_prefix("tip: ")) {
        Some(tip) => refusal.place(tip),
        None => refusal,
    }
}

/// Prints a text, cleaned. A reader that has gone away is no error.
fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stdout(), "{}", sanitize(text.as_ref()));
}

/// Prints the result of a command that did what it was asked.
fn done(text: impl AsRef<str>) -> Result<Exit> {
    say(text);
    Ok(Exit::Ok)
}

/// Prints the person's own words for a worker, which must arrive whole.
fn say_whole(text: &str) {
    let _ = io::stdout().write_all(format!("{text}\n").as_bytes());
}

/// Prints a text on standard error, cleaned.
fn complain(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", sanitize(text.as_ref()));
}

/// The whole parts that fit into so many bytes, the first one in any case, and how many do not.
fn fit(mut parts: impl Iterator<Item = String>, gap: &str, bytes: usize) -> (String, usize) {
    let (mut text, mut left_out) = (parts.next().unwrap_or_default(), 0);
    for part in parts {
        if text.len() + gap.len() + part.len() <= bytes {
            text += &format!("{gap}{part}");
        } else {
            left_out += 1;
        }
    }
    (text, left_out)
}

/// Asks the person at this terminal; `next` says what else helps.
///
/// # Errors
/// [`Exit::Usage`] without a terminal, or if a model called this: a pseudo-terminal is no person.
fn agree(question: &str, next: &str) -> Result<bool> {
    let why = match host::decider() {
        Decider::Model(caller) => Some(format!("{caller} called this")),
        _ => (!io::stdin().is_terminal()).then(|| "there is no terminal".into()),
    };
    if let Some(why) = why {
        return Refusal::new(Exit::Usage, "only a person may do this")
            .place(why)
            .refuse(format!("call it in a terminal of your own{next}"));
    }
    confirm(question)
}

/// Asks the person for a yes.
fn confirm(question: &str) -> Result<bool> {
    Ok(matches!(ask(&format!("{question} [y/N] "))?.as_str(), "y" | "Y" | "yes"))
}

/// Refuses to act on a task of another project, unless the calling host owns it or a person decided.
fn refuse_elsewhere(project: &Project, task: &Task) -> Result<()> {
    let host = calling_host();
    let is_owned = || task.record().ok().flatten().is_some_and(|it| it.owner == host);
    if !project.is_elsewhere || host.is_some() && is_owned() {
        return Ok(());
    }
    Ok(refuse_undecided("to act on a task of another project")?)
}

/// Asks for one line.
fn ask(question: &str) -> Result<String> {
    print!("{}", sanitize(question));
    io::stdout().flush().context("cannot ask")?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("cannot read the reply")?;
    Ok(line.trim().into())
}

/// The directory that `-C` names, or else the working directory.
fn directory(given: Option<&Path>) -> Result<PathBuf> {
    let directory = match given {
        Some(directory) => directory.to_path_buf(),
        None => std::env::current_dir().context("the working directory is gone")?,
    };
    directory.canonicalize().map_err(|error| {
        Refusal::new(Exit::Usage, format!("cannot work in {}", directory.display()))
            .place(error.to_string())
            .into()
    })
}

fn project(given: Option<&Path>) -> Result<Project> {
    let project = Project::find(&directory(given)?)?;
    Ok(match given {
        Some(_) => project.seen_from(Path::new(".")),
        None => project,
    })
}

/// The text of an argument; `-` means standard input.
fn text(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    String::from_utf8(bytes).map_err(|_| {
        Refusal::new(Exit::Data, "the text on standard input is not UTF-8")
            .next("send the text as UTF-8")
            .into()
    })
}

/// The text of an argument, which must not be empty.
fn some_text(argument: &str, what: &str) -> Result<String> {
    let text = text(argument)?;
    if text.contains('\0') {
        return Refusal::new(Exit::Data, format!("{what} contains a NUL byte"))
            .refuse("send the text without NUL bytes");
    }
    if text.trim().is_empty() {
        return Refusal::new(Exit::Usage, format!("{what} is empty"))
            .refuse("give the text, or - and the text on standard input");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_line_is_well_formed() {
        super::config::Args::command().debug_assert();
        super::monitor::Args::command().debug_assert();
        super::reconcile::Args::command().debug_assert();
        super::spawn::Args::command().debug_assert();
        super::worker::Args::command().debug_assert();
    }
}
