//! The variables by which processes know each other: the host and the session it runs in, and the
//! task that a worker belongs to.

use crate::process::Identity;

/// Names a worker's task directory in the worker's environment, and so marks a worker's processes.
pub const TASK_DIR: &str = "DISPATCH_TASK_DIR";

/// Marks every process of an attempt, so that one that escaped its group can be told. A supervisor
/// has the number 0.
pub const ATTEMPT: &str = "DISPATCH_ATTEMPT";

/// The host process that this helper was called by, if it was called by a host and not by a
/// worker.
pub fn calling_host() -> Option<Identity> {
    if std::env::var_os(crate::process::TASK_DIR).is_some() {
        return None;
    }
    let pid = std::env::var("CLAUDE_PID").ok()?.parse().ok()?;
    Identity::of(pid).ok().flatten()
}

/// Variables that tie a process to the host that started it. What a person sets for Claude Code,
/// such as how to log in, stays.
pub fn of_the_host(name: &str) -> bool {
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
    fn a_worker_keeps_the_persons_settings_and_not_the_hosts() {
        for gone in ["CLAUDECODE", "CLAUDE_PID", "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_ENTRYPOINT"]
        {
            assert!(of_the_host(gone), "{gone}");
        }
        for kept in ["PATH", "ANTHROPIC_API_KEY", "CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CONFIG_DIR"] {
            assert!(!of_the_host(kept), "{kept}");
        }
    }
}
