//! `dispatch-config`: the worker CLIs, their models and the config.

mod allow;
mod brief;
mod edits;
mod setup;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::cli::{complain, confirm, done, project, run, say, text};
use crate::config::check::Severity;
use crate::config::{self, Config, choose};
use crate::dirs;
use crate::domain::{Backend, PromptVia, Route};
use crate::error::{Exit, Refusal};
use crate::files;
use crate::place;
use crate::text::count;
use crate::tools::by_backend;

/// Find worker CLIs and models, and edit the config
///
/// The config is `~/.dispatch/config.yaml`; the variable DISPATCH_CONFIG names another file. An edit
/// changes only the lines it must, and keeps the last version as `config.yaml.bak`.
///
/// Exit codes: 0 done, 1 failed, 64 wrong arguments, 65 the config is invalid or lacks the named
/// entry, 69 no worker CLI is installed
///
/// Example: dispatch-config add-model gpt-5.3-codex
#[derive(Debug, Parser)]
#[command(name = "dispatch-config", version = super::VERSION)]
pub struct Args {
    #[command(subcommand)]
    command: ConfigCommand,
    /// Work in this directory [default: the current one]
    #[arg(short = 'C', global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print worker names, tasks and news for a dispatcher, in a few lines
    ///
    /// The skill calls this at every `/dispatch`. Crashes are repaired first, as by
    /// `dispatch-reconcile status`. Problems are printed too, because only a model reads this.
    ///
    /// Exit code: 0
    ///
    /// Example: dispatch-config brief
    Brief,
    /// List the worker CLIs on this machine, with versions and logins
    ///
    /// Each CLI on the PATH is asked for its version and whether it is logged in. A slow CLI is asked
    /// again and named.
    ///
    /// Exit codes: 0 listed, 64 wrong arguments, 69 no worker CLI is installed
    ///
    /// Example: dispatch-config detect
    Detect {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the models of the worker CLIs on this machine
    ///
    /// The CLIs are asked once a day; the lists are kept in `~/.dispatch/models.json`. A CLI without a
    /// list is named with the reason.
    ///
    /// Exit codes: 0 listed, 64 wrong arguments, 69 no worker CLI is installed
    ///
    /// Example: dispatch-config models --refresh
    Models {
        /// Ask the CLIs again instead of using the cached lists
        #[arg(long)]
        refresh: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the first config, from the CLIs on this machine
    ///
    /// All models of the installed CLIs are added. An existing config is never replaced. Without
    /// `--yes`, a person is asked at the terminal.
    ///
    /// Exit codes: 0 written or declined, 64 wrong arguments or no terminal, 65 no such model, 69 no
    /// worker CLI is installed, 73 there is a config already
    ///
    /// Example: dispatch-config setup --default opus
    Setup {
        /// The default model [default: asked at the terminal]
        #[arg(long, value_name = "MODEL")]
        default: Option<String>,
        /// Give this CLI's workers full access, if it cannot hold them to the project (repeatable)
        #[arg(long, value_name = "BACKEND")]
        full: Vec<String>,
        /// Run Claude's workers as agents of the session or as processes [default: agent]
        #[arg(long, value_enum)]
        route: Option<Route>,
        /// Write without asking
        #[arg(long)]
        yes: bool,
        /// Print CLIs, models and sensible defaults as JSON, and write nothing
        #[arg(long, conflicts_with_all = ["default", "yes", "full", "route"])]
        json: bool,
    },
    /// Show which worker a name or sentence resolves to
    ///
    /// A sentence names a worker by a whole word, the last one if it names several. A provider
    /// ("gemini") stands for its newest model in the config.
    ///
    /// Exit codes: 0 found, 64 wrong arguments, 65 no such name, or no config, 69 no replacement would
    /// work
    ///
    /// Example: dispatch-config resolve --request 'use gemini to review the parser'
    Resolve {
        /// A model, an alias or a provider [default: the default model]
        #[arg(conflicts_with_all = ["request", "instead_of"])]
        name: Option<String>,
        /// A sentence that may name a worker; - reads standard input
        #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
        request: Option<String>,
        /// Suggest replacements for this model, best first
        #[arg(long, value_name = "NAME", conflicts_with = "request")]
        instead_of: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Edit(edits::EditCommand),
    /// List all problems of the config
    ///
    /// Each problem has its line, column and remedy. Warnings alone leave the config valid.
    ///
    /// Exit codes: 0 valid, 64 wrong arguments, 65 invalid, or no config
    ///
    /// Example: dispatch-config check
    Check,
    /// Print the config
    ///
    /// The file is printed as it is, if it is valid YAML.
    ///
    /// Exit codes: 0 printed, 64 wrong arguments, 65 invalid, or no config
    ///
    /// Example: dispatch-config show
    Show,
    /// List the places of the config, and look whether each can run workers
    ///
    /// Each place is reached, gets dispatch's helpers if they are missing, and is asked for git, disk
    /// space, worker CLIs and what holds them.
    ///
    /// Exit codes: 0 all can, or there are none, 64 wrong arguments, 65 no such place, or no config, 69 one cannot
    ///
    /// Example: dispatch-config places gpu
    Places {
        /// The places to look at [default: all]
        names: Vec<String>,
    },
    /// Print the path of the config
    ///
    /// The file need not exist.
    ///
    /// Exit codes: 0 printed, 64 wrong arguments
    ///
    /// Example: dispatch-config path
    Path,
    /// Allow Claude Code to run the helpers without prompting
    ///
    /// The rules are shown before they are added to Claude Code's settings. Calls that give a worker
    /// more access still prompt, and are refused without these rules. `install.sh --allow` calls this.
    ///
    /// Exit codes: 0 added, removed or declined, 64 wrong arguments or no terminal, 65 the settings
    /// cannot be edited safely
    ///
    /// Example: dispatch-config allow --dry-run
    Allow {
        /// A path of the launchers' directory (repeatable) [default: all its paths]
        #[arg(long, value_name = "DIR")]
        bin: Vec<PathBuf>,
        /// Remove all rules that this command added
        #[arg(long, conflicts_with = "bin")]
        remove: bool,
        #[command(flatten)]
        consent: allow::Consent,
    },
}

/// Runs `dispatch-config`.
pub fn main() -> ExitCode {
    run(|args: Args| match args.command {
        ConfigCommand::Brief => match project(args.directory.as_deref()) {
            Ok(project) => brief::brief(&project),
            // Only a model reads this, and an exit code would hide the text from it.
            Err(error) => done(format!("{error:#}")),
        },
        ConfigCommand::Detect { json } => setup::detect(json),
        ConfigCommand::Models { refresh, json } => setup::models(refresh, json),
        ConfigCommand::Setup { json: true, .. } => setup::show_machine(),
        ConfigCommand::Setup { default, full, route, yes, .. } => {
            setup::setup(default.as_deref(), full, route, yes)
        }
        ConfigCommand::Resolve { instead_of: Some(name), json, .. } => replacements(&name, json),
        ConfigCommand::Resolve { name, request, json, .. } => {
            resolve(name.as_deref(), request.as_deref(), json)
        }
        ConfigCommand::Edit(command) => edits::edit(command),
        ConfigCommand::Check => check(),
        ConfigCommand::Show => {
            let config = Config::load()?;
            done(files::read(&config.path)?.unwrap_or_default().trim_end())
        }
        ConfigCommand::Places { names } => places(names),
        ConfigCommand::Path => done(dirs::config_path()?.display().to_string()),
        ConfigCommand::Allow { remove: true, consent, .. } => allow::disallow(consent),
        ConfigCommand::Allow { bin, consent, .. } => allow::allow(&bin, consent),
    })
}

/// Lists all problems of the config. Warnings alone do not make it invalid.
fn check() -> Result<Exit> {
    let path = dirs::config_path()?;
    let Some(text) = files::read(&path)? else { return Err(config::missing(&path).into()) };
    let problems = config::check::problems(&text, &path)?;
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    if let ([only], 1) = (problems.as_slice(), errors) {
        return Err(only.refusal(&path).into());
    }
    problems.iter().for_each(|problem| complain(problem.refusal(&path).to_string()));
    if errors == 0 {
        say(format!("{} is valid", path.display()));
        crate::tools::holders().into_iter().for_each(say);
        shown_by_ps(&text, &path)?.iter().for_each(say);
        return Ok(Exit::Ok);
    }
    let what = format!("{} in {}", count(errors, "problem"), path.display());
    Err(Refusal::new(Exit::Data, what).into())
}

/// A line about the backends whose prompts are arguments; `None` if there are none.
fn shown_by_ps(text: &str, path: &Path) -> Result<Option<String>> {
    let config = Config::parse(text, path)?;
    let is_argument = |(name, backend): &(&String, &Backend)| {
        matches!(backend.prompt, None | Some(PromptVia::Arg)) && by_backend(name, backend).is_none()
    };
    let names = config.backends.iter().filter(is_argument).map(|(name, _)| name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    Ok((!names.is_empty()).then(|| {
        format!("prompts are arguments, which every user here can read (ps): {names} (prompt: stdin hides them)")
    }))
}

fn resolve(name: Option<&str>, request: Option<&str>, json: bool) -> Result<Exit> {
    let config = Config::load()?;
    let chosen = match request {
        Some(request) => choose::by_request(&config, &text(request)?)?,
        None => choose::by_name(&config, name)?,
    };
    if json {
        return done(serde_json::to_string(&chosen)?);
    }
    let choice = &chosen.choice;
    let model = choice.model.as_deref().unwrap_or("its own model");
    say(format!("{}: {model} on {}", choice.name, choice.backend));
    chosen.note.iter().for_each(say);
    Ok(Exit::Ok)
}

fn replacements(name: &str, json: bool) -> Result<Exit> {
    let rest = choose::replacements(&Config::load()?, name)?;
    if rest.is_empty() {
        return Refusal::new(Exit::Unavailable, format!("no replacement for '{name}'"))
            .place("no other model of the config has a CLI that is installed and logged in")
            .refuse("install or log in to claude, codex or cursor-agent; dispatch-config detect");
    }
    if json {
        let rows = rest.iter().map(|(id, on)| serde_json::json!({ "model": id, "backend": on }));
        return done(serde_json::Value::from_iter(rows).to_string());
    }
    rest.iter().for_each(|(id, backend)| say(format!("{id} on {backend}")));
    Ok(Exit::Ok)
}

/// Lists places with a live check of each.
fn places(mut names: Vec<String>) -> Result<Exit> {
    let config = Config::load()?;
    if names.is_empty() {
        names = config.places.keys().cloned().collect();
    }
    if names.is_empty() {
        return done(
            "no places; a person adds one: dispatch-config add-place NAME --reach 'ssh HOST'",
        );
    }
    let mut exit = Exit::Ok;
    for name in names {
        let entry = config.place(&name)?;
        let limit = entry.max_workers.map_or(String::new(), |it| format!(", {it} workers at most"));
        say(format!("{name}: {}{limit}", entry.reach.join(" ")));
        let begin = std::time::Instant::now();
        let lines = match place::check(&name, entry, None) {
            Ok(mut lines) => {
                let reached = format!("reached in {:.1} s", begin.elapsed().as_secs_f64());
                lines.insert(0, (true, reached));
                lines
            }
            Err(error) => vec![(false, format!("{error:#}").replace("\n  ", "\n    "))],
        };
        for (well, line) in lines {
            say(format!("  {}: {line}", if well { "ok" } else { "wrong" }));
            exit = if well { exit } else { Exit::Unavailable };
        }
    }
    Ok(exit)
}

/// Asks the person at the terminal; refuses without one.
fn consent(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        let what = "cannot ask for confirmation: no terminal";
        return Refusal::new(Exit::Usage, what).refuse("add --yes");
    }
    confirm(question)
}
