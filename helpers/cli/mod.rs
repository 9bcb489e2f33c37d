//! The command lines of the five helpers: arguments in, one line and an exit code out.

pub mod config;
pub mod monitor;
pub mod reconcile;
pub mod spawn;
pub mod worker;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use clap::Parser;

use crate::error::{Refusal, exit_code};
use crate::exit::Exit;
use crate::host::settings;
use crate::process::HELPERS;
use crate::project::Project;

/// What `--version` prints after the helper's name. Released programs are optimised builds.
pub const VERSION: &str = match cfg!(debug_assertions) {
    true => concat!(env!("CARGO_PKG_VERSION"), " (development build)"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Runs the helper by whose name this program was called.
pub fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default().to_string_lossy();
    match &*name {
        "dispatch-config" => config::main(),
        "dispatch-spawn" => spawn::main(),
        "dispatch-monitor" => monitor::main(),
        "dispatch-reconcile" => reconcile::main(),
        "dispatch-worker" => worker::main(),
        _ => {
            let refusal = Refusal::new(
                Exit::Usage,
                "this program has five names, and does nothing by another",
            )
            .place(HELPERS.join(", "))
            .next("call it by one of them; install.sh puts links of these names beside it");
            let _ = writeln!(std::io::stderr(), "{name}: {refusal}");
            Exit::Usage.into()
        }
    }
}

/// Reads the arguments, runs the helper, and says an error as a person reads it.
fn run<Args: Parser>(body: impl FnOnce(Args) -> Result<Exit>) -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return Exit::Ok.into();
        }
        Err(error) => {
            let refusal = usage(&error.to_string(), Args::command().get_name());
            let _ = writeln!(std::io::stderr(), "{}: {refusal}", Args::command().get_name());
            return Exit::Usage.into();
        }
    };
    let name = Args::command().get_name().to_string();
    let exit = refuse_pattern(&name).and_then(|()| body(args)).unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "{name}: {error:#}");
        if is_denied(&error) {
            let _ = writeln!(std::io::stderr(), "  next: call as its owner, or change its mode");
        }
        exit_code(&error)
    });
    exit.into()
}

/// Refuses a word for which Claude Code asks the person, where a file has its name: the command may
/// hold a pattern in its place (`ful[l]`), and the rules that ask do not see what the shell makes of
/// that.
fn refuse_pattern(helper: &str) -> Result<()> {
    let mut words = std::env::args_os().skip(1);
    let hidden = |word: &OsString| {
        settings::is_asked(helper, &word.to_string_lossy())
            && Path::new(word).symlink_metadata().is_ok()
    };
    let Some(word) = words.find(hidden) else { return Ok(()) };
    let word = word.display();
    Err(Refusal::new(Exit::Usage, format!("'{word}' may be a word, or a file that is found here"))
        .place("a shell puts a file's name in the place of a pattern, unseen by permission rules")
        .next("call from a directory that has no such file")
        .into())
}

/// Whether the system does not let this user do it.
fn is_denied(error: &Error) -> bool {
    let kind =
        |it: &(dyn std::error::Error + 'static)| Some(it.downcast_ref::<io::Error>()?.kind());
    error.chain().find_map(kind) == Some(io::ErrorKind::PermissionDenied)
}

/// What clap says in six lines, in three: what is wrong, what was meant, where to read on.
fn usage(said: &str, name: &str) -> Refusal {
    let mut parts = said.split("\n\n");
    let first = parts.next().unwrap_or_default();
    let what = first.split_whitespace().collect::<Vec<_>>().join(" ");
    let refusal = Refusal::new(Exit::Usage, what.trim_start_matches("error: "))
        .next(format!("see {name} --help"));
    match parts.find_map(|part| part.trim().strip_prefix("tip: ")) {
        Some(tip) => refusal.place(tip),
        None => refusal,
    }
}

/// Says one line. A reader that has gone away is no error.
fn say(line: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", line.as_ref());
}

/// The directory that a helper was called in, or the one that `-C` names.
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
    Project::find(&directory(given)?)
}

/// A text argument; `-` means standard input.
fn text(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    String::from_utf8(bytes).map_err(|_| {
        Refusal::new(Exit::Data, "the text on standard input is not UTF-8")
            .next("give it again as UTF-8")
            .into()
    })
}

/// Like [`text`], for a text that says something.
fn some_text(argument: &str, what: &str) -> Result<String> {
    let text = text(argument)?;
    if text.contains('\0') {
        return Err(Refusal::new(Exit::Data, format!("{what} holds a zero byte"))
            .next("give it again without")
            .into());
    }
    if text.trim().is_empty() {
        return Err(Refusal::new(Exit::Usage, format!("{what} is empty"))
            .next("give the text, or - and the text on standard input")
            .into());
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
