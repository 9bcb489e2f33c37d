//! Changes of the config that keep all other bytes.
//!
//! People write this file too, so it is never rewritten from its values. An edit is a few
//! `Splice`s. A new text is returned only after a proof: the values are those asked for, and no
//! other bytes and no comments changed. A change that cannot be proved is refused, with the lines to
//! paste by hand. The file is written whole, with a backup of the version before.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_yaml::Value;

use crate::config::Config;
use crate::config::read::is_null;
use crate::config::spans::NodeKind;
use crate::config::splice::{Document, Splice, nested, normal, pair, read};
use crate::dirs;
use crate::domain::PromptVia;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::{self, Lock};

/// A key with its value.
pub type Field = (&'static str, String);

/// A change of one value of the config.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The path of the value: a section, a name in it, a key of that.
    pub(super) path: Vec<String>,
    /// The new value; `None` removes it.
    pub(super) asked: Option<Value>,
    /// The change in words.
    what: String,
}

/// The text with the change made and all other bytes kept. A text that already says what is asked
/// for is returned unchanged.
///
/// # Errors
/// [`Exit::Data`] if the name is taken or missing, if the config is not YAML, or if the change
/// cannot be proved; the last with the lines to paste and the place.
pub fn apply(text: &str, edit: &Edit) -> Result<String, Refusal> {
    // libyaml counts a byte order mark as a column, which breaks the indentation of the first key.
    let (bom, text) = text.split_at(if text.starts_with('\u{feff}') { 3 } else { 0 });
    let wrong = |why: String| {
        Refusal::new(Exit::Data, "the config is wrong and was not changed")
            .place(why)
            .next("correct it and try again; 'dispatch-config check' lists all problems")
    };
    let before = read(text).map_err(wrong)?;
    edit.refuse_other(&before)?;
    if edit.asked.is_some() && at(&before.value, &edit.path) == edit.asked.as_ref() {
        return Ok(format!("{bom}{text}"));
    }
    let splices =
        before.splices(edit).ok_or_else(|| edit.by_hand(&before, "it is not a map in lines"))?;
    let after = spliced(text, &splices);
    prove(&before, &splices, &after, edit).map_err(|why| edit.by_hand(&before, &why))?;
    Ok(format!("{bom}{after}"))
}

impl Edit {
    fn new(verb: &str, path: &[&str], asked: Option<Value>) -> Self {
        let noun = if path[0] == "aliases" { "alias" } else { path[0].trim_end_matches('s') };
        let default = asked.as_ref().and_then(Value::as_str);
        let name = path.get(1).copied().or(default).unwrap_or_default();
        let what = format!("{verb} the {noun} '{}'", name.escape_debug());
        Self { path: path.iter().map(ToString::to_string).collect(), asked, what }
    }

    /// Makes a model or alias the default.
    pub fn set_default(name: &str) -> Self {
        Self::new("set", &["default"], Some(name.into()))
    }

    /// Adds an entry with these keys to a section.
    pub fn add(section: &str, name: &str, fields: &[Field]) -> Self {
        Self::new("add", &[section, name], Some(map(fields)))
    }

    /// Adds a model that a backend runs.
    pub fn add_model(id: &str, backend: &str) -> Self {
        Self::add("models", id, &[("backend", backend.into())])
    }

    /// Adds a backend; a known CLI needs no command.
    pub fn add_backend(name: &str, command: Option<(&str, PromptVia)>) -> Self {
        let fields = command
            .map(|(command, prompt)| [("command", command.into()), ("prompt", prompt.to_string())]);
        Self::add("backends", name, fields.as_ref().map_or(&[], |fields| &fields[..]))
    }

    /// Sets one key of an entry.
    pub fn set(section: &str, name: &str, key: &str, text: &str) -> Self {
        Self::new("change", &[section, name, key], Some(text.into()))
    }

    /// Removes an entry.
    pub fn remove(section: &str, name: &str) -> Self {
        Self::new("remove", &[section, name], None)
    }

    /// Refuses a change whose entry is missing or differs.
    fn refuse_other(&self, before: &Document) -> Result<(), Refusal> {
        let is_new = self.path.len() == 1 || self.path.len() == 2 && self.asked.is_some();
        let differs = at(&before.value, &self.path) != self.asked.as_ref();
        let (place, next) = match before.get(self.entry()) {
            None if !is_new => (
                format!("the config has no such entry below '{}:'", self.path[0]),
                "'dispatch-config show' prints the config",
            ),
            Some((key, _)) if is_new && differs && self.path.len() > 1 => (
                format!("line {} of the config has it with other values", before.line(key.start)),
                "remove that entry first, or choose another name",
            ),
            _ => return Ok(()),
        };
        Refusal::new(Exit::Data, format!("cannot {}", self.what)).place(place).refuse(next)
    }

    /// The path of the entry that changes, or of the default.
    fn entry(&self) -> &[String] {
        &self.path[..self.path.len().min(2)]
    }

    /// The refusal of a change that cannot be proved.
    fn by_hand(&self, before: &Document, why: &str) -> Refusal {
        let entry = before.get(self.entry());
        let place = match entry.or_else(|| before.get(&self.path[..1])) {
            Some((key, _)) => format!("line {} of the config", before.line(key.start)),
            None => "the end of the config".into(),
        };
        let lines = self.asked.clone().map(|asked| nested(&self.path[1..], asked));
        let lines = lines.map(|lines| pair(&self.path[0], &lines, Some("\n")));
        let next = match (lines, entry.filter(|_| self.path.len() > 1)) {
            (None, _) => format!("remove it by hand: {place}"),
            (Some(lines), Some(_)) => {
                format!("change it by hand, {place}, so that it says:\n{lines}")
            }
            (Some(lines), None) => format!("paste it by hand, at {place}:\n{lines}"),
        };
        Refusal::new(Exit::Data, format!("cannot {} without touching more", self.what))
            .place(why)
            .next(next)
    }
}

/// The keys of an entry as a value.
pub(super) fn map(fields: &[Field]) -> Value {
    let fields = fields.iter().map(|(key, text)| ((*key).into(), text.as_str().into()));
    Value::Mapping(fields.collect())
}

/// The text with all pieces replaced, which come from the last to the first.
fn spliced(text: &str, splices: &[Splice]) -> String {
    let mut text = text.to_owned();
    splices.iter().for_each(|(range, new)| text.replace_range(range.clone(), new));
    text
}

/// The value at a path.
fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// The value with another one at a path, or with none there.
fn put(mut value: Value, path: &[String], new: Option<&Value>) -> Value {
    let Some((last, above)) = path.split_last() else { return value };
    let map = above.iter().fold(&mut value, |map, key| &mut map[key]);
    match (new, map.as_mapping_mut()) {
        (Some(new), _) => map[last] = new.clone(),
        (None, Some(map)) => drop(map.shift_remove(last)),
        (None, None) => {}
    }
    value
}

/// Proves that the new text holds the change and nothing else.
fn prove(before: &Document, splices: &[Splice], after: &str, edit: &Edit) -> Result<(), String> {
    let read =
        read(after).map_err(|error| format!("the config would not be YAML any more: {error}"))?;
    if at(&read.value, &edit.path) != edit.asked.as_ref() {
        return Err("the new value would be read differently".into());
    }
    if read.value != normal(put(before.value.clone(), &edit.path, edit.asked.as_ref())) {
        return Err("something else in the config would change with it".into());
    }
    let bare = |text: &str| text.matches('\n').count() - text.matches("\r\n").count();
    if before.newline == "\r\n" && bare(after) > bare(before.text) {
        return Err("a line would end unlike the others".into());
    }
    let own = before.get(edit.entry());
    let lines = own.map_or(0..0, |(key, value)| {
        let start = before.line_start(key.start);
        let above = before.text[..start].trim_end().strip_suffix(',').map_or(start, str::len);
        above..before.next_line(value.end)
    });
    let scalars = own.iter().flat_map(|(_, value)| value.all()).filter_map(|node| {
        // The first line of a block scalar may hold a comment.
        let is_block = before.text[node.body..].starts_with(['|', '>']);
        let start = if is_block { before.line_end(node.body) } else { node.body };
        matches!(node.kind, NodeKind::Scalar(_)).then_some(start..node.end)
    });
    let scalars: Vec<Range<usize>> = scalars.collect();
    for (range, _) in splices {
        let piece = before.text[range.clone()].trim();
        let within = |whole: &Range<usize>| whole.start <= range.start && range.end <= whole.end;
        let mark = piece.strip_prefix('{').map_or(piece, str::trim_start);
        if !within(&lines) && !is_null(mark) && !matches!(mark, "," | "}") {
            return Err("bytes beside it would change".into());
        }
        // A comment may go only with the entry in whose lines it stands.
        let touched = &before.text[before.line_start(range.start)..range.end];
        let edits_text = range.is_empty() || scalars.iter().any(within);
        if edit.asked.is_some() && touched.contains('#') && !edits_text {
            return Err("a comment would be lost".into());
        }
    }
    Ok(())
}

/// How long a change waits for another process that changes the config.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Makes all of these changes or none.
pub fn change(edits: &[Edit]) -> Result<()> {
    change_text(|text| {
        let text = text.context("there is no config to change yet")?;
        let mut new = text.to_owned();
        for edit in edits {
            new = apply(&new, edit)?;
        }
        Ok(new)
    })
}

/// Writes the first config.
///
/// # Errors
/// [`Exit::CannotCreate`] if there is one already.
pub fn create(text: &str) -> Result<PathBuf> {
    change_text(|_| refuse_existing().map(|()| text.to_owned()))?;
    dirs::config_path()
}

/// Refuses early where [`create`] would, before a person is asked anything.
pub fn refuse_existing() -> Result<()> {
    let path = dirs::config_path()?;
    if !path.exists() {
        return Ok(());
    }
    Refusal::new(Exit::CannotCreate, "there is a config already")
        .place(path.display().to_string())
        .refuse("change it with set-default, add-model and so on, or move it away")
}

fn change_text(new: impl Fn(Option<&str>) -> Result<String>) -> Result<()> {
    let named = dirs::config_path()?;
    let directory = named.parent().context("the config has no directory")?;
    files::create_private_directory(directory)?;
    let _lock = Lock::take(&beside(&named, ".lock"), LOCK_LIMIT)?;
    // A link into a person's dotfiles stays a link.
    let real = named.canonicalize().unwrap_or_else(|_| named.clone());
    loop {
        let before = files::read(&real)?;
        let after = new(before.as_deref())?;
        if before.as_deref() == Some(&after) {
            return Ok(());
        }
        Config::parse(&after, &named).context("the changed config would not be YAML")?;
        if let Some(before) = &before {
            files::publish(&beside(&named, ".bak"), before.as_bytes())?;
        }
        fault::point("config", "kept");
        // Editors do not take the lock, so start again from what was saved meanwhile.
        if files::read(&real)? == before {
            return files::publish(&real, after.as_bytes());
        }
    }
}

fn beside(config: &Path, ending: &str) -> PathBuf {
    PathBuf::from(OsString::from_iter([config.as_os_str(), OsStr::new(ending)]))
}

#[cfg(test)]
#[path = "edit_property_tests.rs"]
mod property_tests;
#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
