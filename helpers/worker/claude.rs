//! Claude Code as a worker: `claude -p` (checked with 2.1.329 on 2026-11-21).

use std::ffi::OsString;

use super::command::names_a_model;
use super::{Cli, Job, words};
use crate::config::Access;

pub(super) const CLI: Cli = Cli { name: "claude", programs: &["claude"], argv, complete };

fn argv(job: &Job) -> Vec<OsString> {
    let mut argv = words(&["claude", "-p", "--output-format", "stream-json", "--verbose"]);
    argv.extend(words(&["--permission-mode"]));
    argv.extend(words(match job.access {
        // Denies without asking whatever no rule allows; the one rule is the helper.
        Access::Read => &["dontAsk"],
        Access::Write => &["acceptEdits"],
        Access::Full => &["bypassPermissions"],
    }));
    argv.push("--add-dir".into());
    argv.push(job.task.into());
    argv.push("--allowedTools".into());
    argv.push(format!("Bash({} *)", super::shell_word(&job.helper.display().to_string())).into());
    if job.access == Access::Read {
        argv.extend(words(&["Read", "Glob", "Grep"]));
    }
    argv.extend(model(job));
    argv
}

fn complete(command: &str, job: &Job) -> Vec<OsString> {
    if names_a_model(command) { Vec::new() } else { model(job) }
}

/// A full id goes as it is; what other CLIs call, say, `opus-4.6` is the tier's stable name here.
fn model(job: &Job) -> Vec<OsString> {
    let own = |model: &str| model.starts_with("claude-");
    let name = |model| if own(model) { model } else { tier(model).unwrap_or(model) };
    job.model.map_or_else(Vec::new, |model| words(&["--model", name(model)]))
}

/// The stable name of a Claude model's family, which the Agent tool knows models by.
pub(crate) fn tier(model: &str) -> Option<&'static str> {
    let tiers = ["opus", "sonnet", "haiku", "fable"];
    tiers.into_iter().find(|tier| model.to_ascii_lowercase().contains(tier))
}
