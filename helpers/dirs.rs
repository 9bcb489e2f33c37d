//! The person's own directories, which belong to no project.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::error::{Exit, Refusal};

/// The home directory, as HOME names it. A lookup in the user database would make a static program
/// load libraries of its system.
pub fn home_directory() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// The path of the config: `$DISPATCH_CONFIG`, else `~/.dispatch/config.yaml`.
pub fn config_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DISPATCH_CONFIG") {
        return Ok(path.into());
    }
    Ok(dispatch_home()?.join("config.yaml"))
}

/// The directory of dispatch in the home directory: `~/.dispatch`.
pub fn dispatch_home() -> Result<PathBuf> {
    let home = home_directory().context("there is no home directory: HOME is not set")?;
    if home.is_relative() {
        return Refusal::new(Exit::Data, "HOME is not an absolute path")
            .place(format!("it is {:?}", home.display().to_string()))
            .refuse("set HOME to the absolute path of your home directory");
    }
    Ok(home.join(".dispatch"))
}

/// The directory with the private directories of the CLIs of sandboxed workers, outside of the person's
/// side: `$DISPATCH_STATE-homes`, else `~/.dispatch/homes`.
pub fn homes_root() -> Result<PathBuf> {
    let state = state_root()?;
    Ok(match std::env::var_os("DISPATCH_STATE") {
        Some(_) => {
            let mut name = state.file_name().unwrap_or_default().to_owned();
            name.push("-homes");
            state.with_file_name(name)
        }
        None => state.with_file_name("homes"),
    })
}

/// The directory with the person's side of all tasks: `$DISPATCH_STATE`, else `~/.dispatch/state`.
pub fn state_root() -> Result<PathBuf> {
    match std::env::var_os("DISPATCH_STATE") {
        Some(path) => std::path::absolute(path).context("DISPATCH_STATE is empty"),
        None => Ok(dispatch_home()?.join("state")),
    }
}

/// The directory that state of projects that no longer exist is moved to: `~/.dispatch/trash`, or
/// `.trash` in `$DISPATCH_STATE`, so that a move within one file system is enough.
pub fn trash() -> Result<PathBuf> {
    match std::env::var_os("DISPATCH_STATE") {
        Some(_) => Ok(state_root()?.join(".trash")),
        None => Ok(dispatch_home()?.join("trash")),
    }
}
