//! `dispatch-config migrate`: the original's first format, in the present form.

use anyhow::Result;

use crate::cli::say;
use crate::config::{Config, choose, setup, store};
use crate::exit::Exit;

/// Writes the config anew with what the CLIs have; every agent keeps its name and its command.
pub(super) fn migrate(config: &Config) -> Result<Exit> {
    if config.agents.is_empty() || !config.models.is_empty() || !config.backends.is_empty() {
        say("the config has the present form already");
        return Ok(Exit::Ok);
    }
    let (found, listings) = choose::machine(Some(config), false)?;
    // What was saved while the CLIs were asked counts too.
    store::replace(|text| {
        Ok(setup::migrated(&Config::parse(text, config.path())?, &found, &listings))
    })?;
    let new = Config::load()?;
    let count = new.models.iter().count();
    say(format!("migrated: {count} models; the old file is kept as {}.bak", new.path().display()));
    Ok(Exit::Ok)
}
