//! `dispatch-config`: who can work.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use super::reconcile::status_line;
use super::{project, run, say};
use crate::config::{self, Config, permissions};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::{self, Lock};
use crate::news::ledger::{self, Ledger, Standing};
use crate::news::{Event, events};
use crate::process::Identity;
use crate::project::Project;
use crate::task::{State, View, calling_host};

/// How many bytes `brief` says at most; every typed /dispatch pays for them.
const BRIEF: usize = 600;

/// Reads the config that says who can work.
#[derive(Debug, Parser)]
#[command(
    name = "dispatch-config",
    version,
    after_help = "Example:\n  dispatch-config resolve opus"
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
    /// Say which worker a name means; the default without a name
    Resolve {
        /// A model or an alias
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the config is right
    Check,
    /// Print the config
    Show,
    /// Print where the config is
    Path,
    /// Add rules to Claude Code's settings that let it run the helpers unasked
    Allow {
        /// The directory of the launchers
        #[arg(long, value_name = "DIR", required = true)]
        bin: Vec<PathBuf>,
        /// Take the rules out again
        #[arg(long)]
        remove: bool,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

/// Runs `dispatch-config`.
pub fn main() -> ExitCode {
    run(|args: Args| match args.action {
        Action::Brief => brief(&project(args.directory.as_deref())?),
        Action::Resolve { name, json } => {
            let choice = Config::load()?.resolve(name.as_deref())?;
            if json {
                say(serde_json::to_string(&choice)?);
            } else {
                let model = choice.model.as_deref().unwrap_or("its own model");
                say(format!("{}: {model} on {}", choice.name, choice.backend));
            }
            Ok(Exit::Ok)
        }
        Action::Check => {
            let config = Config::load()?;
            config.names().try_for_each(|name| config.resolve(Some(name)).map(drop))?;
            config.resolve(None)?;
            say(format!("{} is right", config.path().display()));
            Ok(Exit::Ok)
        }
        Action::Show => {
            let config = Config::load()?;
            say(files::read(config.path())?.unwrap_or_default().trim_end());
            Ok(Exit::Ok)
        }
        Action::Path => {
            say(config::path()?.display().to_string());
            Ok(Exit::Ok)
        }
        Action::Allow { bin, remove, yes } => allow(&bin, remove, yes),
    })
}

/// What the skill's text shows the host's model at every `/dispatch`. It never fails for a reason
/// that the model can mend by reading it.
fn brief(project: &Project) -> Result<Exit> {
    let mut lines = vec![match Config::load() {
        Ok(config) => names(&config),
        Err(error) => format!("config: {error:#}"),
    }];
    let host = calling_host();
    let mut views: Vec<View> = project.tasks().iter().filter_map(|task| task.view().ok()).collect();
    views.sort_by_key(|view| view.state);
    let mut told = Vec::new();
    for view in &views {
        let standings = ledger::read(&view.task)?;
        let unheard = |event: &Event| standings.get(&event.id) != Some(&Standing::Acknowledged);
        let open: Vec<Event> = events(view)?.into_iter().filter(unheard).collect();
        let active = matches!(view.state, State::Asking | State::Running | State::Waiting);
        if open.is_empty() && !active {
            continue;
        }
        let mut mine = view.record.owner == host || host.is_none();
        if let Some(host) = &host {
            mine |= view.task.adopt(host)?;
        }
        if open.is_empty() || !mine {
            let whose = if mine { "" } else { " (another session's)" };
            lines.push(format!("{}{whose}", status_line(view)));
            continue;
        }
        for event in open {
            let before = if standings.contains_key(&event.id) { " (said before)" } else { "" };
            lines.push(format!("{}{before} {} → {}", event.id, event.line, event.next));
            told.push((view, event));
        }
    }
    let (text, shown) = fit(&lines, BRIEF);
    say(&text);
    acknowledge(host.as_ref(), &told, &text)?;
    if shown < lines.len() {
        let more = lines.len() - shown;
        say(format!("… and {more} more: dispatch-reconcile status"));
    }
    Ok(Exit::Ok)
}

/// What a host's model was shown in full, it has.
fn acknowledge(host: Option<&Identity>, told: &[(&View, Event)], text: &str) -> Result<()> {
    let Some(host) = host else { return Ok(()) };
    for (view, event) in told.iter().filter(|(_, event)| text.contains(&event.id)) {
        let mut ledger = Ledger::open(&view.task)?;
        ledger.deliver(event, Some(host))?;
        ledger.acknowledge(&event.id)?;
    }
    Ok(())
}

/// The names that a person may use.
fn names(config: &Config) -> String {
    let list = |names: Vec<&str>| {
        let more = names.len().saturating_sub(12);
        let shown = names.into_iter().take(12).collect::<Vec<_>>().join(", ");
        if more == 0 { shown } else { format!("{shown} and {more} more") }
    };
    let mut text = format!("default: {}", config.default.as_deref().unwrap_or("none"));
    let models = config
        .models
        .iter()
        .map(|(name, _)| name)
        .chain(config.agents.iter().map(|(name, _)| name));
    text.push_str(&format!("; models: {}", list(models.collect())));
    if !config.aliases.is_empty() {
        text.push_str(&format!(
            "; aliases: {}",
            list(config.aliases.iter().map(|(name, _)| name).collect())
        ));
    }
    text
}

/// As many whole lines as fit; the first always does.
fn fit(lines: &[String], bytes: usize) -> (String, usize) {
    let mut text = lines.first().cloned().unwrap_or_default();
    for (number, line) in lines.iter().enumerate().skip(1) {
        if text.len() + 1 + line.len() > bytes {
            return (text, number);
        }
        text.push('\n');
        text.push_str(line);
    }
    (text, lines.len())
}

/// Changes the person's Claude Code settings, after showing the rules and asking.
fn allow(bins: &[PathBuf], remove: bool, yes: bool) -> Result<Exit> {
    let mut rules = Vec::new();
    for bin in bins {
        rules.extend(permissions::rules(&std::path::absolute(bin).context("no such directory")?));
    }
    let mut named = std::collections::HashSet::new();
    rules.retain(|rule| named.insert(rule.clone()));
    let path = permissions::settings_path();
    files::make_private_directory(path.parent().context("the settings have no directory")?)?;
    let _lock = Lock::take(&path.with_extension("json.lock"), std::time::Duration::from_secs(5))?;
    let path = path.canonicalize().unwrap_or(path);
    let text = files::read(&path)?;
    let new = if remove {
        permissions::remove(text.as_deref(), &rules)?
    } else {
        permissions::add(text.as_deref(), &rules)?
    };
    let Some(new) = new else {
        say(format!("nothing to change in {}", path.display()));
        return Ok(Exit::Ok);
    };
    let verb = if remove { "taken out of" } else { "added to" };
    say(format!("These permission rules will be {verb} {}:", path.display()));
    rules.iter().for_each(|rule| say(format!("  {rule}")));
    if !yes && !consent()? {
        say("Nothing was changed.");
        return Ok(Exit::Ok);
    }
    files::publish(&path, new.as_bytes())?;
    say("Done.");
    Ok(Exit::Ok)
}

fn consent() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Refusal::new(Exit::Usage, "nobody is here to agree").next("add --yes").into());
    }
    print!("Go on? [y/N] ");
    std::io::stdout().flush().context("cannot ask")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the reply")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
