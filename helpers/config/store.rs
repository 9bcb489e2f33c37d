//! Changes of the config file: one at a time, whole, with a backup of the version before.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::config::edit::{self, Edit};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files::{self, Lock};

/// How long a change waits for another process that changes the config.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Makes all of these changes or none.
pub fn change(edits: &[Edit]) -> Result<()> {
    change_text(|text| {
        let text = text.context("there is no config to change yet")?;
        let mut new = text.to_owned();
        for edit in edits {
            new = edit::apply(&new, edit)?;
        }
        Ok(new)
    })
}

/// Writes the first config.
///
/// # Errors
/// [`Exit::CannotCreate`] if there is one already.
pub fn create(text: &str) -> Result<PathBuf> {
    change_text(|old| match old {
        None => Ok(text.to_owned()),
        Some(_) => Err(already_exists()?.into()),
    })?;
    crate::dirs::config_path()
}

/// Refuses early where [`create`] would, before a person is asked anything.
pub fn refuse_existing() -> Result<()> {
    if crate::dirs::config_path()?.exists() { Err(already_exists()?.into()) } else { Ok(()) }
}

fn already_exists() -> Result<Refusal> {
    Ok(Refusal::new(Exit::CannotCreate, "there is a config already")
        .place(crate::dirs::config_path()?.display().to_string())
        .next("change it with set-default, add-model and so on, or move it away"))
}

fn change_text(new: impl Fn(Option<&str>) -> Result<String>) -> Result<()> {
    let named = crate::dirs::config_path()?;
    let directory = named.parent().context("the config has no directory")?;
    files::create_private_directory(directory)?;
    let _lock = Lock::take(&beside(&named, ".lock"), LOCK_LIMIT)?;
    // A link into a person's dotfiles stays a link.
    let real = named.canonicalize().unwrap_or_else(|_| named.clone());
    loop {
        let before = files::read(&real)?;
        let after = new(before.as_deref())?;
        if before.as_deref() == Some(&after) {
            return Ok(());
        }
        Config::parse(&after, &named).context("the changed config would not be YAML")?;
        if let Some(before) = &before {
            files::publish(&beside(&named, ".bak"), before.as_bytes())?;
        }
        fault::point("config", "kept");
        // Editors do not take the lock, so start again from what was saved meanwhile.
        if files::read(&real)? == before {
            return files::publish(&real, after.as_bytes());
        }
    }
}

fn beside(config: &Path, ending: &str) -> PathBuf {
    PathBuf::from(OsString::from_iter([config.as_os_str(), OsStr::new(ending)]))
}
