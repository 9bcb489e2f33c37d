//! Texts in numbered files: the notes to a worker and its messages.
//!
//! Invariant: a text never changes after its number is published.

use std::path::Path;

use anyhow::Result;

use crate::files;
use crate::text::lossy;

/// Writes a text to the next free number in a directory, with three digits or more.
pub(super) fn publish(directory: &Path, text: &str) -> Result<()> {
    files::create_task_directory(directory)?;
    loop {
        let last = read(directory)?.last().and_then(|(name, _)| files::parse_number(name));
        let name = format!("{:03}", files::next_number(last.unwrap_or(0), directory)?);
        if files::publish_new(&directory.join(&name), text.as_bytes())? {
            return Ok(());
        }
    }
}

/// The files of a directory whose names are numbers, in their order, as pairs of name and text.
pub(super) fn read(directory: &Path) -> Result<Vec<(String, String)>> {
    let entries = files::entries(directory)?.into_iter();
    let mut names: Vec<String> = entries.filter_map(|(name, _)| name.into_string().ok()).collect();
    names.retain(|name| files::parse_number(name).is_some());
    names.sort_by_key(|name| files::parse_number(name));
    let with_text = |name: String| {
        let text = files::read_foreign(&directory.join(&name))?.map(lossy).unwrap_or_default();
        Ok((name, text))
    };
    names.into_iter().map(with_text).collect()
}
