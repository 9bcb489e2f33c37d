//! How each CLI is called for each access, and why not.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::domain::{Access, PromptVia};
use crate::tools::{Invocation, Job, KNOWN, Session};

#[test]
fn every_cli_is_held_to_what_it_may_do_or_says_why_not() {
    let directories = [PathBuf::from("/t/task"), PathBuf::from("/m/.git")];
    let mut calls = String::new();
    for cli in KNOWN {
        for access in [Access::Read, Access::Write, Access::Full] {
            let sessions = [Session::New("new"), Session::Resume("old")];
            for session in sessions.into_iter().take(1 + usize::from(access == Access::Full)) {
                let job = Job {
                    model: Some("m"),
                    access,
                    directory: Path::new("/w"),
                    task: &directories[0],
                    writable: &directories,
                    session,
                    helper: Path::new("/h/dispatch-worker"),
                };
                let mut argv = (cli.argv)(&job);
                argv.extend(cli.end("", &job));
                let line = Invocation { argv, prompt: PromptVia::Stdin }
                    .shell_line("", Path::new("prompt"));
                let path = std::env::var("PATH").unwrap_or_default();
                let _ = writeln!(calls, "{}", line.replace(&format!(":{path}"), ":…"));
            }
            // Why a sandbox does not start depends on the machine.
            let of_the_machine = ["claude", "codex", "copilot"].contains(&cli.name);
            if let Some(gap) = (cli.gap)(access).filter(|_| !of_the_machine) {
                let _ = writeln!(calls, "  not at {access:?}: {gap}");
            }
        }
        calls.push('\n');
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded/argv.txt");
    let expected = snapbox::Data::read_from(&golden, Some(snapbox::data::DataFormat::Text)).raw();
    snapbox::Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV).eq(calls, expected);
}
