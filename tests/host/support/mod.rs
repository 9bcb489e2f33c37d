//! The shared parts of the stories: the real CLIs, the scripted model, and the dispatcher that
//! follows the skill.

pub(crate) mod claude;
pub(crate) mod codex;
pub(crate) mod git;
pub(crate) mod model;
pub(crate) mod process;
pub(crate) mod request;
pub(crate) mod skill;
pub(crate) mod story;
