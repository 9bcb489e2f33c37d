//! Where things live that belong to the person and not to a project.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// Where the config is: `$DISPATCH_CONFIG`, else `~/.dispatch/config.yaml`.
pub fn config_path() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DISPATCH_CONFIG") {
        return Ok(path.into());
    }
    Ok(dispatch_home()?.join("config.yaml"))
}

/// What dispatch keeps for this user, whatever the project: `~/.dispatch`.
pub fn dispatch_home() -> Result<PathBuf> {
    let home = std::env::home_dir().context("there is no home directory: HOME is not set")?;
    Ok(home.join(".dispatch"))
}
