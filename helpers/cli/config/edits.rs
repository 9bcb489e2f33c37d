//! Changes of the config, one command each.

use anyhow::Result;
use clap::Subcommand;

use crate::cli::say;
use crate::config::edit::Edit;
use crate::config::{Choice, Config, choose, store};
use crate::domain::Access;
use crate::error::Refusal;
use crate::exit::Exit;
use crate::tools::is_known;

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Make a model or an alias the default
    SetDefault {
        /// A name of the config
        name: String,
    },
    /// Add a model
    AddModel {
        /// Its id
        id: String,
        /// The backend that runs it; found out if not given
        #[arg(long)]
        backend: Option<String>,
    },
    /// Give a model another backend
    SetModel {
        /// Its id
        id: String,
        /// The backend that is to run it
        #[arg(long)]
        backend: String,
    },
    /// Remove a model
    RemoveModel {
        /// Its id
        id: String,
    },
    /// Add a backend
    AddBackend {
        /// Its name
        name: String,
        /// The shell command that starts it; a known CLI needs none
        #[arg(long, allow_hyphen_values = true)]
        command: Option<String>,
    },
    /// Say what a backend's workers may do
    SetAccess {
        /// Its name
        backend: String,
        /// What they may do
        #[arg(value_enum)]
        access: Access,
    },
    /// Add an alias
    AddAlias {
        /// Its name
        name: String,
        /// The model it means
        #[arg(long)]
        model: String,
        /// Words that open every prompt
        #[arg(long, allow_hyphen_values = true)]
        prompt: Option<String>,
    },
    /// Remove an alias
    RemoveAlias {
        /// Its name
        name: String,
    },
    /// Bring an old config (agents:) into the present form
    Migrate,
}

/// Makes one change and says it.
pub(super) fn edit(action: Action) -> Result<Exit> {
    let config = Config::load()?;
    let (edits, said) = match action {
        Action::SetDefault { name } => {
            let name = told(choose::by_name(&config, Some(&name))?).name;
            (vec![Edit::SetDefault(name.clone())], format!("the default is {name}"))
        }
        Action::AddModel { id, backend } => return add_model(&config, id, backend),
        Action::SetModel { id, backend } => {
            let mut edits = backend_if_missing(&config, &backend)?;
            let said = format!("{id} is run by {backend}");
            edits.push(Edit::SetModelBackend { id, backend });
            (edits, said)
        }
        Action::RemoveModel { id } => {
            refuse_used(&config, &id)?;
            let said = format!("{id} is removed");
            (vec![Edit::RemoveModel(id)], said)
        }
        Action::AddBackend { name, command } => {
            if command.is_none() && !is_known(&name) {
                return Err(Refusal::new(Exit::Usage, format!("'{name}' is not a known CLI"))
                    .next(format!("say how it is started: add-backend {name} --command '...'"))
                    .into());
            }
            let said = format!("backend {name} is added");
            (vec![Edit::AddBackend { name, command }], said)
        }
        Action::SetAccess { backend, access } => {
            if config.backends.get(&backend).is_some_and(|backend| backend.command.is_some()) {
                return Err(Refusal::new(
                    Exit::Data,
                    format!("what {backend}'s workers may do is in its command"),
                )
                .place(format!("backends.{backend}.command in {}", config.path().display()))
                .next("change the flags there")
                .into());
            }
            let access = access.to_string();
            let said = format!("{backend}'s workers have {access} access");
            let mut edits = backend_if_missing(&config, &backend)?;
            edits.push(Edit::SetAccess { backend, access });
            (edits, said)
        }
        Action::AddAlias { name, model, prompt } => {
            refuse_taken(&config, &name, false)?;
            let model = told(choose::by_name(&config, Some(&model))?);
            let Some(id) = model.model else {
                return Err(
                    Refusal::new(Exit::Data, format!("'{}' is not a model", model.name)).into()
                );
            };
            let said = format!("{name} means {id}");
            (vec![Edit::AddAlias { name, model: id, prompt }], said)
        }
        Action::RemoveAlias { name } => {
            refuse_default(&config, &name)?;
            let said = format!("alias {name} is removed");
            (vec![Edit::RemoveAlias(name)], said)
        }
        Action::Migrate => return super::migrate::migrate(&config),
    };
    store::change(&edits)?;
    say(said);
    Ok(Exit::Ok)
}

/// The choice; what the person should hear about it is said.
fn told(chosen: choose::Chosen) -> Choice {
    chosen.note.iter().for_each(say);
    chosen.choice
}

/// A name means one thing: an alias would hide the model of its name.
fn refuse_taken(config: &Config, name: &str, model: bool) -> Result<()> {
    let (taken, what) = match model {
        true => (config.aliases.get(name).is_some(), "an alias"),
        false => (config.models.get(name).is_some(), "a model"),
    };
    if taken {
        return Err(Refusal::new(Exit::Data, format!("'{name}' is {what} of the config already"))
            .next("take another name, or remove that one first")
            .into());
    }
    Ok(())
}

fn add_model(config: &Config, id: String, backend: Option<String>) -> Result<Exit> {
    refuse_taken(config, &id, true)?;
    let (preferred, listed) = choose::runs(config, &id)?;
    let backend = match backend.or(preferred) {
        Some(backend) => backend,
        None => {
            return Err(Refusal::new(Exit::Data, format!("no CLI here has a model '{id}'"))
                .place("your subscription may not have it; dispatch-config models lists them")
                .next(format!("name its backend: add-model {id} --backend NAME"))
                .into());
        }
    };
    let mut edits = vec![Edit::AddModel { id: id.clone(), backend: backend.clone() }];
    edits.extend(backend_if_missing(config, &backend)?);
    store::change(&edits)?;
    let doubt = if listed { "" } else { " (no list of a CLI has it; the first task will tell)" };
    say(format!("{id} is added, on {backend}{doubt}"));
    Ok(Exit::Ok)
}

/// A known backend is added with the first model that needs it.
fn backend_if_missing(config: &Config, backend: &str) -> Result<Vec<Edit>> {
    if config.backends.get(backend).is_some() {
        return Ok(Vec::new());
    }
    if is_known(backend) {
        return Ok(vec![Edit::AddBackend { name: backend.into(), command: None }]);
    }
    let names: Vec<&str> = config.backends.iter().map(|(name, _)| name).collect();
    Err(Refusal::new(Exit::Data, format!("there is no backend '{backend}'"))
        .place(format!("the config has {}", names.join(", ")))
        .next(format!("add it first: dispatch-config add-backend {backend} --command '...'"))
        .into())
}

/// A model that something else means stays.
fn refuse_used(config: &Config, id: &str) -> Result<()> {
    refuse_default(config, id)?;
    if let Some((alias, _)) = config.aliases.iter().find(|(_, alias)| alias.model == id) {
        return Err(Refusal::new(Exit::Data, format!("the alias '{alias}' means '{id}'"))
            .next(format!("remove it first: dispatch-config remove-alias {alias}"))
            .into());
    }
    Ok(())
}

fn refuse_default(config: &Config, name: &str) -> Result<()> {
    if config.default.as_deref() == Some(name) {
        return Err(Refusal::new(Exit::Data, format!("'{name}' is the default"))
            .next("choose another one first: dispatch-config set-default NAME")
            .into());
    }
    Ok(())
}
