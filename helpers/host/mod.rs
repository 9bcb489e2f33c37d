//! The host program: its hook protocol, and the permission rules for the helpers in its settings.

pub mod hook;
pub mod rules;
pub mod settings;
