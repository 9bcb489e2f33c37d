//! The person's side of projects that no longer exist: moved to a trash, and removed from there later.
//!
//! Invariant: nothing here judges work by its age alone. What moves can be put back for [`KEPT`], and
//! only this operation, which needs a person, removes older trash.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::dirs;
use crate::files::{self, Lock};
use crate::ids::now;
use crate::project::{Whereabouts, whereabouts};
use crate::task::Task;
use crate::text::sort;

/// How long trash is kept.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// How old a state directory without a project must be: a dispatch may be creating it.
const SETTLED: Duration = Duration::from_secs(3600);

/// A state directory, and the reason why it is stale or is kept.
#[derive(Debug, PartialEq, Eq)]
pub struct StateDir {
    /// The directory, absolute.
    pub path: PathBuf,
    /// The number of its dispatched tasks.
    pub tasks: usize,
    /// The reason, as the rest of a sentence.
    pub why: String,
}

/// Stale state, and trash that was kept for long enough.
#[derive(Debug, Default)]
pub struct Stale {
    /// The state directories to move to the trash.
    pub found: Vec<StateDir>,
    /// The state directories of missing projects that have to stay.
    pub kept: Vec<StateDir>,
    /// The directories in the trash to remove.
    pub expired: Vec<PathBuf>,
}

impl Stale {
    /// Looks for stale state and for old trash.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn find() -> Result<Self> {
        let mut stale = Self::default();
        for path in directories(&dirs::state_root()?)? {
            let (list, why) = match judge(&path) {
                Ok(None) => continue,
                Ok(Some(why)) => (&mut stale.found, why),
                Err(why) => {
                    let why = format!("{why:#}").lines().next().unwrap_or_default().into();
                    (&mut stale.kept, why)
                }
            };
            list.push(StateDir { tasks: tasks(&path).len(), path, why });
        }
        stale.expired = directories(&dirs::trash()?)?;
        stale.expired.retain(|path| is_expired(path));
        Ok(stale)
    }

    /// Moves the stale state to the trash and removes old trash. Returns the directory in the trash that
    /// holds what was moved now, if anything was.
    ///
    /// # Errors
    /// A directory that cannot be moved or removed. A second call continues.
    pub fn clean(&self) -> Result<Option<PathBuf>> {
        let place = dirs::trash()?.join(now().replace(':', "-"));
        for StateDir { path, .. } in &self.found {
            // A dispatch that makes the project again takes this lock first.
            let Some(_lock) = Lock::try_take(&path.join(".project.lock"))? else { continue };
            if !matches!(judge(path), Ok(Some(_))) {
                continue;
            }
            files::create_private_directory(&place)?;
            let name = path.file_name().unwrap_or_default();
            fs::rename(path, place.join(name))
                .with_context(|| format!("cannot move {} to the trash", path.display()))?;
        }
        self.expired.iter().try_for_each(|path| files::remove_directory(path))?;
        Ok(Some(place).filter(|place| place.is_dir()))
    }
}

/// The directories in a directory that are not hidden, sorted; none if there is no such directory.
fn directories(parent: &Path) -> Result<Vec<PathBuf>> {
    let entries = files::entries(parent)?.into_iter();
    let visible = entries.filter(|name| !name.as_encoded_bytes().starts_with(b"."));
    let mut paths: Vec<PathBuf> = visible.map(|name| parent.join(name)).collect();
    paths.retain(|path| path.is_dir() && !path.is_symlink());
    sort(&mut paths, Ord::cmp);
    Ok(paths)
}

/// Why a state directory is stale; `None` if it is not.
///
/// # Errors
/// The reason why the state of a missing project has to stay.
fn judge(path: &Path) -> Result<Option<String>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let why = match whereabouts(path)? {
        // A dispatch into a new directory at the project's path has set this aside.
        _ if is_set_aside(&name) => "its directory was replaced".into(),
        Whereabouts::There => return Ok(None),
        Whereabouts::NotMounted(root) => {
            bail!("{} is missing, and its disk may only be unmounted", root.display())
        }
        Whereabouts::Gone(root) => format!("{} is gone", root.display()),
        Whereabouts::Unrecorded if files::modified_within(path, SETTLED) => return Ok(None),
        Whereabouts::Unrecorded => "no project was recorded".into(),
    };
    for directory in directories(path)? {
        let name = directory.file_name().unwrap_or_default().display();
        // The record may be unreadable, so the lock is asked first.
        let is_held = Lock::is_held(&directory.join("run.lock"))?;
        ensure!(!is_held, "a worker of its task '{name}' is running");
    }
    for task in tasks(path) {
        let view = task.view().with_context(|| format!("'{}' cannot be read", task.id()))?;
        ensure!(view.processes.is_empty(), "a worker of its task '{}' is running", task.id());
    }
    Ok(Some(why))
}

fn is_set_aside(name: &str) -> bool {
    let random = name.rsplit_once(".replaced-").map(|(_, random)| random);
    random.is_some_and(|it| it.len() == 16 && it.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The dispatched tasks in a state directory that have a readable record.
fn tasks(path: &Path) -> Vec<Task> {
    let entries = directories(path).unwrap_or_default().into_iter();
    entries.filter_map(|entry| Task::at_state(&entry).ok()).collect()
}

/// Returns true if the name of a directory in the trash is a time that long ago.
fn is_expired(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let time = name.split_once('T').map(|(day, time)| format!("{day}T{}", time.replace('-', ":")));
    let moved = time.and_then(|time| humantime::parse_rfc3339(&time).ok());
    let age = moved.and_then(|moved| SystemTime::now().duration_since(moved).ok());
    age.is_some_and(|age| age > KEPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trash_expires_by_the_time_in_its_name() {
        let rows = [
            ("2020-02-29T23-59-59Z", true),
            ("9000-01-01T00-00-00Z", false),
            ("2020-02-30T00-00-00Z", false),
            ("notes", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_expired(&Path::new("/trash").join(name)), expected, "{name}");
        }
        assert!(!is_expired(Path::new(&now().replace(':', "-"))));
    }

    #[test]
    fn replaced_state_is_known_by_its_whole_name() {
        assert!(is_set_aside("shop-0123.replaced-0123456789abcdef"));
        assert!(!is_set_aside("shop.replaced-by-me"));
        assert!(!is_set_aside("shop-0123456789abcdef"));
    }
}
