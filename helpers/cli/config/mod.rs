//! `dispatch-config`: who can work.

mod allow;
mod brief;
mod edits;
mod migrate;
mod setup;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::cli::{project, run, say, text};
use crate::config::{self, Config, choose};
use crate::dirs;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files;

/// Finds the worker CLIs and their models, and keeps the config that says who can work.
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-config",
    version = super::VERSION,
    after_help = "Examples:\n  dispatch-config resolve opus\n  dispatch-config add-model gpt-5.3-codex"
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Work in this directory
    #[arg(short = 'C', global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Say in a few lines what the dispatcher must know: the names, the tasks, the news
    Brief,
    /// Find the worker CLIs on this machine, their versions and logins
    Detect {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the models of the worker CLIs on this machine
    Models {
        /// Ask the CLIs, whatever is known of them
        #[arg(long)]
        refresh: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the first config from what is on this machine
    Setup {
        /// The default model
        #[arg(long, value_name = "MODEL")]
        default: Option<String>,
        /// Let this CLI's workers do anything, because it cannot hold them to the project
        #[arg(long, value_name = "BACKEND")]
        full: Vec<String>,
        /// Write it without asking
        #[arg(long)]
        yes: bool,
        /// Print what was found and which defaults are sensible, as JSON, and write nothing
        #[arg(long, conflicts_with_all = ["default", "yes", "full"])]
        json: bool,
    },
    /// Say which worker a name or a request means; the default without either
    Resolve {
        /// A model, an alias or a provider
        #[arg(conflicts_with_all = ["request", "instead_of"])]
        name: Option<String>,
        /// A sentence that may name one; - is standard input
        #[arg(long, value_name = "TEXT|-", allow_hyphen_values = true)]
        request: Option<String>,
        /// A worker that fails; says what would work in its place, the best first
        #[arg(long, value_name = "NAME", conflicts_with = "request")]
        instead_of: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Edit(edits::Action),
    /// Say all that is wrong in the config
    Check,
    /// Print the config
    Show,
    /// Print where the config is
    Path,
    /// Add rules to Claude Code's settings that let it run the helpers unasked, but for what gives
    /// a worker more
    Allow {
        /// The directory of the launchers
        #[arg(long, value_name = "DIR", required_unless_present = "remove")]
        bin: Vec<PathBuf>,
        /// Take out all the rules that were added
        #[arg(long, conflicts_with = "bin")]
        remove: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
        /// Only show the rules
        #[arg(long)]
        dry_run: bool,
    },
}

/// Runs `dispatch-config`.
pub fn main() -> ExitCode {
    run(|args: Args| match args.action {
        Action::Brief => match project(args.directory.as_deref()) {
            Ok(project) => brief::brief(&project),
            // Nobody but a model reads it.
            Err(error) => {
                say(format!("{error:#}"));
                Ok(Exit::Ok)
            }
        },
        Action::Detect { json } => setup::detect(json),
        Action::Models { refresh, json } => setup::models(refresh, json),
        Action::Setup { default, full, yes, json } => {
            setup::setup(default.as_deref(), &full, yes, json)
        }
        Action::Resolve { instead_of: Some(name), json, .. } => instead_of(&name, json),
        Action::Resolve { name, request, json, .. } => {
            resolve(name.as_deref(), request.as_deref(), json)
        }
        Action::Edit(action) => edits::edit(action),
        Action::Check => check(),
        Action::Show => {
            let config = Config::load()?;
            say(files::read(config.path())?.unwrap_or_default().trim_end());
            Ok(Exit::Ok)
        }
        Action::Path => {
            say(dirs::config_path()?.display().to_string());
            Ok(Exit::Ok)
        }
        Action::Allow { bin, remove, yes, dry_run } => {
            let agreed = match (dry_run, yes) {
                (true, _) => allow::Agreed::DryRun,
                (_, true) => allow::Agreed::Yes,
                _ => allow::Agreed::Ask,
            };
            if remove { allow::disallow(agreed) } else { allow::allow(&bin, agreed) }
        }
    })
}

/// Says all that is wrong in the config.
fn check() -> Result<Exit> {
    let path = dirs::config_path()?;
    let Some(text) = files::read(&path)? else { return Err(config::missing(&path).into()) };
    let problems = config::check::problems(&text, &path)?;
    match problems.as_slice() {
        [] => {
            say(format!("{} is right", path.display()));
            Ok(Exit::Ok)
        }
        [only] => Err(only.refusal(&path).into()),
        all => {
            all.iter().for_each(|problem| eprintln!("{}", problem.refusal(&path)));
            let count = all.len();
            Err(Refusal::new(Exit::Data, format!("{count} things to mend in {}", path.display()))
                .into())
        }
    }
}

fn resolve(name: Option<&str>, request: Option<&str>, json: bool) -> Result<Exit> {
    let config = Config::load()?;
    let chosen = match request {
        Some(request) => choose::by_request(&config, &text(request)?)?,
        None => choose::by_name(&config, name)?,
    };
    if json {
        say(serde_json::to_string(&chosen)?);
        return Ok(Exit::Ok);
    }
    let choice = &chosen.choice;
    let model = choice.model.as_deref().unwrap_or("its own model");
    say(format!("{}: {model} on {}", choice.name, choice.backend));
    chosen.note.iter().for_each(say);
    Ok(Exit::Ok)
}

fn instead_of(name: &str, json: bool) -> Result<Exit> {
    let rest = choose::instead_of(&Config::load()?, name)?;
    if rest.is_empty() {
        return Err(Refusal::new(Exit::Unavailable, format!("nothing can stand in for '{name}'"))
            .place("no other model of the config has a CLI that is here and logged in")
            .next("install or log in to claude, codex or cursor-agent; dispatch-config detect")
            .into());
    }
    if json {
        let rows = rest.iter().map(|(id, on)| serde_json::json!({ "model": id, "backend": on }));
        say(serde_json::Value::from_iter(rows).to_string());
        return Ok(Exit::Ok);
    }
    rest.iter().for_each(|(id, backend)| say(format!("{id} on {backend}")));
    Ok(Exit::Ok)
}

/// Asks the person, who must be there.
fn consent(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Refusal::new(Exit::Usage, "nobody is here to agree").next("add --yes").into());
    }
    Ok(matches!(ask(&format!("{question} [y/N] "))?.as_str(), "y" | "Y" | "yes"))
}

/// A line that the person types.
fn ask(question: &str) -> Result<String> {
    print!("{question}");
    std::io::stdout().flush().context("cannot ask")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the reply")?;
    Ok(line.trim().into())
}
