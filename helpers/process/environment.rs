//! The environment of a process: the variables that name its host and its task, and the search for
//! programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{Identity, os};

/// Names a worker's task directory in the worker's environment, and so marks a worker's processes.
pub const TASK_DIR: &str = "DISPATCH_TASK_DIR";

/// Marks every process of an attempt with its number, so that one that left its process group is
/// found. A supervisor has the number 0.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// How many minutes a worker waits for an answer in total, for a worker that cannot read the config.
pub const PATIENCE: &str = "DISPATCH_PATIENCE";

/// The directory of the recorded answers, for a worker at `full` access, which takes no others.
pub const ANSWERS: &str = "DISPATCH_ANSWERS";

/// The host process that called this helper; `None` if a worker or a person called it.
pub fn calling_host() -> Option<Identity> {
    if std::env::var_os(TASK_DIR).is_some() {
        return None;
    }
    let pid = std::env::var("CLAUDE_PID").ok()?.parse().ok()?;
    Identity::of_pid(pid).ok().flatten()
}

/// Returns true if a person talks to the calling host. `claude -p` ends with its turn, but waits for its
/// hooks, so that one which stays would keep it for ever.
pub fn is_interactive() -> bool {
    std::env::var_os("CLAUDE_CODE_ENTRYPOINT").is_some_and(|entry| entry == "cli")
}

/// The shell whose script called this helper; `None` if another program did.
pub fn calling_shell() -> Option<Identity> {
    let pid = std::os::unix::process::parent_id();
    let program = os::command_line(pid).into_iter().next()?;
    let name = Path::new(&program).file_name()?.to_str()?.trim_start_matches('-');
    let is_shell = ["sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"].contains(&name);
    Identity::of_pid(pid).ok().flatten().filter(|_| is_shell)
}

/// Returns true if a variable ties a process to the host that started it. A variable that a person
/// sets for Claude Code, such as how to log in, does not.
pub fn is_host_variable(name: &str) -> bool {
    let of_the_person = ["USE_", "SKIP_", "OAUTH_", "CLIENT_", "API_KEY_", "MAX_"];
    match name.strip_prefix("CLAUDE_CODE_") {
        Some(rest) => !of_the_person.iter().any(|start| rest.starts_with(start)),
        None => matches!(
            name,
            "CLAUDECODE"
                | "CLAUDE_PID"
                | "CLAUDE_PROJECT_DIR"
                | "CLAUDE_PLUGIN_ROOT"
                | "CLAUDE_PLUGIN_DATA"
                | "CLAUDE_EFFORT"
                | "CLAUDE_ENV_FILE"
                | "DISPATCH_BIN"
        ),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_keeps_the_persons_settings_and_not_the_hosts() {
        for gone in ["CLAUDECODE", "CLAUDE_PID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_ENTRYPOINT"]
        {
            assert!(is_host_variable(gone), "{gone}");
        }
        for kept in ["PATH", "ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CONFIG_DIR"] {
            assert!(!is_host_variable(kept), "{kept}");
        }
    }
}
