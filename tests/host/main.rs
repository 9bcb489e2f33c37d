//! The skill in the real CLIs: Claude Code as the host, and all that npm has as workers, with the
//! installed skill, the real helpers, and one scripted endpoint in the place of all their models.
//!
//! `fetch.sh` installs the CLIs; `DISPATCH_HOSTS` names where. No account is needed.

#[path = "../helpers/mod.rs"]
mod helpers;
/// The shared parts of the stories: the real CLIs, the scripted model, and the dispatcher that follows
/// the skill.
mod support {
    pub(crate) mod claude;
    pub(crate) mod codex;
    pub(crate) mod model;
    pub(crate) mod process;
    pub(crate) mod story;

    pub(crate) use process::skill;
}

mod agent_route;
mod background;
mod budget;
mod cli_route;
mod early_ends;
mod failures;
mod first_run;
#[cfg(target_os = "linux")]
mod held;
mod host_dies;
mod npx;
mod sessions;
