//! Finding programs: those in the PATH, the five helpers and their launchers.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The names of the five helpers.
pub const HELPERS: [&str; 5] = [
    "dispatch-config",
    "dispatch-spawn",
    "dispatch-monitor",
    "dispatch-reconcile",
    "dispatch-worker",
];

/// The path of a program, as a shell would find it.
pub fn find_program(program: &OsStr) -> Option<PathBuf> {
    find_program_in(program, &std::env::var_os("PATH").unwrap_or_default())
}

/// The path of a program, as a shell with this `PATH` would find it.
pub fn find_program_in(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
    };
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(program)).filter(runs);
    }
    // An empty entry means the working directory, but an empty PATH means no directory.
    let directories = std::env::split_paths(path).filter(|_| !path.is_empty());
    directories.map(|directory| directory.join(program)).find(runs)
}

/// The `dispatch-worker` beside this program, which an update of the skill does not change.
pub fn worker_helper() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program's own file")?;
    Ok(own.with_file_name("dispatch-worker"))
}

/// The launcher of the skill that this program was called through, else the program beside it. The
/// permission rules in a person's settings name the launcher.
pub fn launcher(name: &str) -> Result<PathBuf> {
    match std::env::var_os("DISPATCH_BIN") {
        Some(bin) => Ok(Path::new(&bin).join(name)),
        None => Ok(worker_helper()?.with_file_name(name)),
    }
}
