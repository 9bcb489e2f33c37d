//! The environment variables that tie a process to a host, a session or a task.

use crate::process::Identity;

/// Names a worker's task directory in the worker's environment, and so marks a worker's processes.
pub const TASK_DIR: &str = "DISPATCH_TASK_DIR";

/// Marks every process of an attempt with its number, so that one that left its process group is
/// found. A supervisor has the number 0.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// The host process that called this helper; `None` if a worker or a person called it.
pub fn calling_host() -> Option<Identity> {
    if std::env::var_os(TASK_DIR).is_some() {
        return None;
    }
    let pid = std::env::var("CLAUDE_PID").ok()?.parse().ok()?;
    Identity::of_pid(pid).ok().flatten()
}

/// Whether a variable ties a process to the host that started it. A variable that a person sets for
/// Claude Code, such as how to log in, does not.
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
