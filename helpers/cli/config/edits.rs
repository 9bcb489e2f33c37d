//! The commands that change the config.

use anyhow::Result;
use clap::Subcommand;

use crate::cli::{done, say};
use crate::config::edit::{self, Edit};
use crate::config::{AliasEntry, Choice, Config, choose, setup};
use crate::domain::{Access, PromptVia};
use crate::error::{Exit, Refusal};
use crate::files;
use crate::host::refuse_undecided;
use crate::place::refuse_here;
use crate::text::shell_word;
use crate::tools::by_name;

#[derive(Debug, Subcommand)]
pub(super) enum EditCommand {
    /// Make a model or an alias the default
    ///
    /// A task that names no worker goes to the default.
    ///
    /// Exit codes: 0 changed, 64 wrong arguments, 65 no such name, or no config
    ///
    /// Example: dispatch-config set-default sonnet
    SetDefault {
        /// A model, an alias or a provider
        name: String,
    },
    /// Add a model
    ///
    /// The model is added to the config, with its backend if that is missing.
    ///
    /// Exit codes: 0 added, 64 wrong arguments, 65 the name is taken, or no CLI has the model
    ///
    /// Example: dispatch-config add-model gpt-5.3-codex
    AddModel {
        /// The model's id
        id: String,
        /// The backend that runs it [default: the CLI on this machine that has it]
        #[arg(long)]
        backend: Option<String>,
    },
    /// Give a model another backend
    ///
    /// Later tasks with this model run on the other backend.
    ///
    /// Exit codes: 0 changed, 64 wrong arguments, 65 no such model or backend
    ///
    /// Example: dispatch-config set-model gpt-5.3-codex --backend cursor
    SetModel {
        /// The model's id
        id: String,
        /// The backend that will run it
        #[arg(long)]
        backend: String,
    },
    /// Remove a model
    ///
    /// A model that is the default, or that an alias stands for, is kept.
    ///
    /// Exit codes: 0 removed, 64 wrong arguments, 65 no such model, or it is in use
    ///
    /// Example: dispatch-config remove-model gpt-5.3-codex
    RemoveModel {
        /// The model's id
        id: String,
    },
    /// Add a backend
    ///
    /// A backend is a worker CLI: a known one by its name, any other one by its shell command.
    ///
    /// Exit codes: 0 added, 64 wrong arguments, 65 the name is taken
    ///
    /// Example: dispatch-config add-backend harvey --command 'harvey run --yes'
    AddBackend {
        /// The backend's name
        name: String,
        /// The shell command that starts it [default: the known CLI of that name]
        #[arg(long, allow_hyphen_values = true)]
        command: Option<String>,
        /// How it gets its prompt; as an argument, every user of the machine can read it
        #[arg(long, value_enum, default_value = "stdin", requires = "command")]
        prompt: PromptVia,
    },
    /// Set the access of a backend's workers
    ///
    /// A task that asks for no access gets this one: `read`, `write` or `full`.
    ///
    /// Exit codes: 0 changed, 64 wrong arguments, 65 no such backend, or not possible
    ///
    /// Example: dispatch-config set-access codex read
    SetAccess {
        /// The backend's name
        backend: String,
        /// The access of tasks that ask for none
        #[arg(value_enum)]
        access: Access,
    },
    /// Add an alias
    ///
    /// An alias is a name of your own for a model. Its prompt opens the prompt of every worker with
    /// that name.
    ///
    /// Exit codes: 0 added, 64 wrong arguments, 65 the name is taken, or no such model
    ///
    /// Example: dispatch-config add-alias reviewer --model opus --prompt 'Find bugs.'
    AddAlias {
        /// The alias's name
        name: String,
        /// The model that it stands for
        #[arg(long)]
        model: String,
        /// Text that opens every prompt [default: none]
        #[arg(long, allow_hyphen_values = true)]
        prompt: Option<String>,
    },
    /// Add a place: a machine or container that workers run at (`--on`)
    ///
    /// The command runs `sh -s` there, which is added to it, with its own standard input and output.
    /// Nobody but a person may add a place.
    ///
    /// Exit codes: 0 added, 64 wrong arguments, 65 the name is taken
    ///
    /// Example: dispatch-config add-place gpu --reach 'ssh gpu'
    AddPlace {
        /// The place's name
        name: String,
        /// The command that reaches it
        #[arg(long, allow_hyphen_values = true)]
        reach: String,
        /// The command there that submits each worker as a job, such as 'sbatch --time=8:00:00'
        #[arg(long, allow_hyphen_values = true)]
        start: Option<String>,
        /// The directory there for the code [default: ~/.dispatch/places]
        #[arg(long)]
        directory: Option<String>,
        /// How many workers may run there at once [default: no limit]
        #[arg(long)]
        max_workers: Option<std::num::NonZeroUsize>,
    },
    /// Remove an alias
    ///
    /// An alias that is the default or a fallback is kept.
    ///
    /// Exit codes: 0 removed, 64 wrong arguments, 65 no such alias, or it is in use
    ///
    /// Example: dispatch-config remove-alias reviewer
    RemoveAlias {
        /// The alias's name
        name: String,
    },
    /// Add backends and models to a config of the old format (agents:)
    ///
    /// Every line of the old config stays.
    ///
    /// Exit codes: 0 migrated, or nothing to do, 64 wrong arguments, 65 no config, 69 no worker CLI is installed
    ///
    /// Example: dispatch-config migrate
    Migrate,
}

/// Makes one change and reports it.
pub(super) fn edit(command: EditCommand) -> Result<Exit> {
    let config = Config::load()?;
    use EditCommand::{AddBackend, AddPlace, Migrate, SetDefault};
    let fits = matches!(command, SetDefault { .. } | AddBackend { .. } | AddPlace { .. } | Migrate);
    if config.is_old_format() && !fits {
        return Refusal::new(Exit::Data, "a config of the old format has no such entries")
            .place(format!("{} has only 'agents:'", config.path.display()))
            .refuse("call 'dispatch-config migrate', then try again");
    }
    let (edits, report, undo) = match command {
        EditCommand::SetDefault { name } => {
            let name = announced(choose::by_name(&config, Some(&name))?).name;
            let old = config.default.as_ref().filter(|old| **old != name);
            let undo = old.map(|old| format!("set-default {}", shell_word(old)));
            (vec![Edit::set_default(&name)], format!("the default is {name}"), undo)
        }
        EditCommand::AddModel { id, backend } => {
            refuse_taken(config.aliases.contains_key(&id), "an alias", &id)?;
            let (preferred, listed) = choose::runs(&config, &id)?;
            let Some(backend) = backend.or(preferred) else {
                let what = format!("no CLI on this machine has a model '{id}'");
                return Refusal::new(Exit::Data, what)
                    .place("your subscription may not have it; dispatch-config models lists them")
                    .refuse(format!("name its backend: add-model {id} --backend NAME"));
            };
            refuse_first_model(&config, &id, &backend)?;
            let mut edits = backend_if_missing(&config, &backend)?;
            edits.push(Edit::add_model(&id, &backend));
            let doubt = " (no CLI lists it, so the first task will show whether it exists)";
            let doubt = if listed { "" } else { doubt };
            let undo = Some(format!("remove-model {}", shell_word(&id)));
            (edits, format!("{id} added, on {backend}{doubt}"), undo)
        }
        EditCommand::SetModel { id, backend } => {
            refuse_first_model(&config, &id, &backend)?;
            let mut edits = backend_if_missing(&config, &backend)?;
            edits.push(Edit::set("models", &id, "backend", &backend));
            let old = config.models.get(&id).filter(|old| **old != backend);
            let undo = old.map(|old| format!("set-model {} --backend {old}", shell_word(&id)));
            (edits, format!("{id} now runs on {backend}"), undo)
        }
        EditCommand::RemoveModel { id } => {
            refuse_needed(&config, &id)?;
            let old = config.models.get(&id).filter(|_| !config.fallbacks.contains_key(&id));
            let undo = old.map(|old| format!("add-model {} --backend {old}", shell_word(&id)));
            (vec![Edit::remove("models", &id)], format!("{id} removed"), undo)
        }
        EditCommand::AddBackend { name, command, prompt } => {
            if command.is_none() && by_name(&name).is_none() {
                return Refusal::new(Exit::Usage, format!("'{name}' is not a known CLI"))
                    .refuse(format!("give its command: add-backend {name} --command '...'"));
            }
            refuse_undecided(&format!("another program for workers, '{name}'"))?;
            let command = command.as_deref().map(|command| (command, prompt));
            (vec![Edit::add_backend(&name, command)], format!("backend {name} added"), None)
        }
        EditCommand::AddPlace { name, reach, start, directory, max_workers } => {
            refuse_here(&name)?;
            refuse_undecided(&format!("another place for workers, '{name}'"))?;
            let mut fields = vec![("reach", reach)];
            fields.extend(start.map(|it| ("start", it)));
            fields.extend(directory.map(|it| ("directory", it)));
            fields.extend(max_workers.map(|it| ("max_workers", it.to_string())));
            let edits = vec![Edit::add("places", &name, &fields)];
            // A name or command that is no good disables the entry, so it is tried before it is written.
            let text = files::read(&config.path)?.unwrap_or_default();
            let changed = edits.iter().try_fold(text, |text, it| edit::apply(&text, it))?;
            Config::parse(&changed, &config.path)?.place(&name)?;
            let looks = format!("dispatch-config places {name} looks whether it works");
            (edits, format!("place {name} added; {looks}"), None)
        }
        EditCommand::SetAccess { backend, access } => {
            let mut edits = backend_if_missing(&config, &backend)?;
            let usual = config.backends.get(&backend).cloned().unwrap_or_default().usual_access();
            if access > usual {
                refuse_undecided(&format!("{access} access, where {backend} has {usual}"))?;
            }
            edits.push(Edit::set("backends", &backend, "access", &access.to_string()));
            let undo = (access != usual).then(|| format!("set-access {backend} {usual}"));
            (edits, format!("{backend}'s workers have {access} access"), undo)
        }
        EditCommand::AddAlias { name, model, prompt } => {
            refuse_taken(config.models.contains_key(&name), "a model", &name)?;
            if prompt.is_some() {
                refuse_undecided("a text that opens every prompt")?;
            }
            let model = announced(choose::by_name(&config, Some(&model))?);
            let Some(id) = model.model else {
                let what = format!("'{}' is not a model", model.name);
                return Err(Refusal::new(Exit::Data, what).into());
            };
            let undo = Some(format!("remove-alias {}", shell_word(&name)));
            let report = format!("{name} stands for {id}");
            let fields = [("model", id)].into_iter().chain(prompt.map(|it| ("prompt", it)));
            (vec![Edit::add("aliases", &name, &fields.collect::<Vec<_>>())], report, undo)
        }
        EditCommand::RemoveAlias { name } => {
            refuse_needed(&config, &name)?;
            // config.yaml.bak has what no command can say.
            let is_whole = |it: &&AliasEntry| {
                it.prompt.is_none() && it.check.is_none() && !config.fallbacks.contains_key(&name)
            };
            let old = config.aliases.get(&name).filter(is_whole);
            let undo =
                old.map(|old| format!("add-alias {} --model {}", shell_word(&name), old.model));
            (vec![Edit::remove("aliases", &name)], format!("alias {name} removed"), undo)
        }
        EditCommand::Migrate => return migrate(&config),
    };
    edit::change(&edits)?;
    let undo = undo.map(|undo| format!(" (undo: dispatch-config {undo})"));
    done(report + &undo.unwrap_or_default())
}

/// Upgrades a config of the old format; its lines and comments stay.
fn migrate(config: &Config) -> Result<Exit> {
    if !config.is_old_format() {
        return done("the config has the current format already");
    }
    let (found, listings) = choose::machine(Some(config))?;
    if found.is_empty() {
        let what = "no worker CLI is installed, so nothing was added";
        return Refusal::new(Exit::Unavailable, what).refuse(
            "install one and try again; or call dispatch-config add-backend NAME --command '...'",
        );
    }
    edit::change(&setup::migration(config, &found, &listings))?;
    let count = Config::load()?.models.len();
    done(format!("migrated: {count} models added; every line of the old config is kept"))
}

/// Refuses to make a model use a backend at full access that none used before, unless a person decided.
fn refuse_first_model(config: &Config, id: &str, backend: &str) -> Result<(), Refusal> {
    match config.is_unused_full(backend) {
        true => refuse_undecided(&format!("the first model of {backend}, at full access, {id}")),
        false => Ok(()),
    }
}

/// The choice, after its note was printed.
fn announced(chosen: choose::Chosen) -> Choice {
    chosen.note.iter().for_each(say);
    chosen.choice
}

/// Refuses a name that an alias and a model would share: the alias would hide the model.
fn refuse_taken(taken: bool, by: &str, name: &str) -> Result<(), Refusal> {
    let refusal = Refusal::new(Exit::Data, format!("the config has {by} '{name}' already"))
        .next("choose another name, or remove that entry first");
    if taken { Err(refusal) } else { Ok(()) }
}

/// The edit that adds a known backend where the config does not have it.
fn backend_if_missing(config: &Config, backend: &str) -> Result<Vec<Edit>, Refusal> {
    if config.backends.contains_key(backend) {
        return Ok(Vec::new());
    }
    if by_name(backend).is_some() {
        return Ok(vec![Edit::add_backend(backend, None)]);
    }
    let names: Vec<&str> = config.backends.keys().map(String::as_str).collect();
    Refusal::new(Exit::Data, format!("there is no backend '{backend}'"))
        .place(format!("the config has {}", names.join(", ")))
        .refuse(format!("add it first: dispatch-config add-backend {backend} --command '...'"))
}

/// Refuses to remove the default, a fallback, and a model that an alias stands for.
fn refuse_needed(config: &Config, name: &str) -> Result<(), Refusal> {
    let (what, next) = if config.default.as_deref() == Some(name) {
        let next = "choose another one first: dispatch-config set-default NAME".into();
        (format!("'{name}' is the default"), next)
    } else if let Some((other, _)) = config.fallbacks.iter().find(|(_, it)| *it == name) {
        let next = format!("name another one there first: {}", config.path.display());
        (format!("'{name}' is the fallback of '{other}'"), next)
    } else if let Some((alias, _)) = config.aliases.iter().find(|(_, it)| it.model == name) {
        let next = format!("remove it first: dispatch-config remove-alias {alias}");
        (format!("the alias '{alias}' stands for '{name}'"), next)
    } else {
        return Ok(());
    };
    Refusal::new(Exit::Data, what).refuse(next)
}
