//! Codex as a worker: `codex exec` (checked with 0.169.0 on 2026-11-21).

use std::ffi::OsString;

use super::command::names_a_model;
use super::{Cli, Job, words};
use crate::config::Access;

pub(super) const CLI: Cli = Cli { name: "codex", programs: &["codex"], argv, complete };

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["codex", "exec", "--json", "--skip-git-repo-check"]);
    argv.extend(words(&[
        "-s",
        if job.access == Access::Full { "danger-full-access" } else { "workspace-write" },
    ]));
    argv.push("-C".into());
    // A worker that may only read has its task's directory as the workspace, to tick its plan.
    argv.push(if job.access == Access::Read { job.task } else { job.directory }.into());
    argv.push("--add-dir".into());
    argv.push(job.task.into());
    argv.extend(model(job));
    argv.push("-".into());
    argv
}

fn complete(command: &str, job: &Job) -> Vec<OsString> {
    let mut extra = if names_a_model(command) { Vec::new() } else { model(job) };
    extra.push("-".into());
    extra
}

fn model(job: &Job) -> Vec<OsString> {
    job.model.map_or_else(Vec::new, |model| words(&["--model", model]))
}
