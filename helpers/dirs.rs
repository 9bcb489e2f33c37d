//! The person's own directories, which belong to no project.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The path of the config: `$DISPATCH_CONFIG`, else `~/.dispatch/config.yaml`.
pub fn config_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DISPATCH_CONFIG") {
        return Ok(path.into());
    }
    Ok(dispatch_home()?.join("config.yaml"))
}

/// The directory of dispatch in the home directory: `~/.dispatch`.
pub fn dispatch_home() -> Result<PathBuf> {
    let home = std::env::home_dir().context("there is no home directory: HOME is not set")?;
    Ok(home.join(".dispatch"))
}
