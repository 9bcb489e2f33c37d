//! The host program: its settings file.

pub mod settings;
