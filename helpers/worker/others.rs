//! CLIs that are called with everything allowed, whatever access a task asks for: they have no
//! setting between that and nothing that a worker could work with.

use super::{Cli, same_name, words};

/// From its documentation of 2026-11; no registry has it. Cursor installs its CLI as `agent` too,
/// which is what the original's configs call.
pub(super) const CURSOR: Cli = Cli {
    name: "cursor",
    programs: &["cursor-agent", "agent"],
    argv: |_| {
        words(&["cursor-agent", "-p", "--force", "--trust", "--output-format", "stream-json"])
    },
    model_flag: "--model",
    model_name: same_name,
    tail: &[],
};

/// Checked with 0.61.0 on 2026-11-21.
pub(super) const GEMINI: Cli = Cli {
    name: "gemini",
    programs: &["gemini"],
    argv: |_| words(&["gemini", "--yolo", "--skip-trust", "--output-format", "stream-json"]),
    model_flag: "-m",
    model_name: same_name,
    tail: &[],
};

/// Checked with 1.18.33 on 2026-11-21.
pub(super) const OPENCODE: Cli = Cli {
    name: "opencode",
    programs: &["opencode"],
    argv: |_| words(&["opencode", "run", "--auto"]),
    model_flag: "-m",
    model_name: same_name,
    tail: &[],
};

/// Checked with 1.0.102 on 2026-11-21.
pub(super) const COPILOT: Cli = Cli {
    name: "copilot",
    programs: &["copilot"],
    argv: |_| words(&["copilot", "--allow-all-tools", "--no-ask-user"]),
    model_flag: "--model",
    model_name: same_name,
    tail: &[],
};

/// Checked with 0.15.10 on 2026-11-21.
pub(super) const QWEN: Cli = Cli {
    name: "qwen",
    programs: &["qwen"],
    argv: |_| words(&["qwen", "-y"]),
    model_flag: "-m",
    model_name: same_name,
    tail: &[],
};

/// Checked with 0.215.0 on 2026-11-21.
pub(super) const DROID: Cli = Cli {
    name: "droid",
    programs: &["droid"],
    argv: |_| words(&["droid", "exec", "--auto", "high"]),
    model_flag: "-m",
    model_name: same_name,
    tail: &[],
};
