//! The host program's settings: the permission rules for the helpers.

pub mod rules;
pub mod settings;
