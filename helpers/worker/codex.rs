//! Codex as a worker: `codex exec` (checked with 0.169.0 on 2026-11-21).

use std::ffi::OsString;

use super::{Cli, Job, same_name, words};
use crate::config::Access;

pub(super) const CLI: Cli = Cli {
    name: "codex",
    programs: &["codex"],
    argv,
    model_flag: "--model",
    model_name: same_name,
    // The prompt is on standard input.
    tail: &["-"],
};

fn argv(job: &Job) -> Vec<OsString> {
    let sandbox = if job.access == Access::Full { "danger-full-access" } else { "workspace-write" };
    // A worker that may only read has its task's directory as the workspace, to tick its plan.
    let workspace = if job.access == Access::Read { job.task } else { job.directory };
    let mut argv = words(&["codex", "exec", "--json", "--skip-git-repo-check", "-s", sandbox]);
    argv.push("-C".into());
    argv.push(workspace.into());
    argv.push("--add-dir".into());
    argv.push(job.task.into());
    argv
}
