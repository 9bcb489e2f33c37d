//! The description of a worker CLI, with what most CLIs have in common.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::dirs;
use crate::domain::{Access, FailureKind};
use crate::process::{Holder, capture, find_program};
use crate::text::shell_word;
use crate::tools::detect::Answer;
use crate::tools::events::Observed;
use crate::tools::models::{Listed, Source};
use crate::tools::{Job, Reports, Session, os_args};

/// The names that the description of a CLI needs.
pub(super) mod prelude {
    pub(in crate::tools) use std::ffi::{OsStr, OsString};

    pub(in crate::tools) use serde_json::Value;

    pub(in crate::tools) use super::{Models, ONLY_EDITS, Place, WorkerCli};
    pub(in crate::tools) use crate::domain::{Access, FailureKind as Kind};
    pub(in crate::tools) use crate::tools::events::{Observed, first_text, sum, text};
    pub(in crate::tools) use crate::tools::models::{Listed, Source, listed};
    pub(in crate::tools) use crate::tools::{Job, Reports, os_args};
}

/// A worker CLI that dispatch knows: how it is found, asked, called, limited and heard. It reads the
/// prompt on standard input. CLIs change: whatever depends on one of them stands in its own file.
pub struct WorkerCli {
    /// The name of its backend.
    pub name: &'static str,
    /// The name that people use.
    pub title: &'static str,
    /// The version that these facts were compared with, or another source, and the date.
    pub checked: &'static str,

    /// The names of its programs, the best first.
    pub(super) programs: &'static [&'static str],
    /// True if this CLI printed that text for `program --version`; others share program names.
    pub(super) is_own_version: fn(program: &str, text: &str) -> bool,
    /// The npm package, whose package.json tells the version without the second that some CLIs take
    /// to start.
    pub(super) package: Option<&'static str>,
    /// How the CLI is asked whether it is logged in, if it can be asked without the network.
    pub(super) login_status: Option<LoginQuestion>,
    /// A variable that holds a key and counts as logged in, whatever the CLI says.
    pub(super) key: Option<&'static str>,
    /// The command that logs a person in.
    pub login: &'static str,
    /// Where its models are known from.
    pub(super) models: Models,
    /// Flags that newer versions refuse, each with its replacement. Old configs still have them.
    pub(super) removed_flags: &'static [(&'static str, &'static str)],

    /// The command line for a backend without `command:`. Model, session and further directories
    /// follow it, as they follow a command of the config.
    pub(super) argv: fn(&Job) -> Vec<OsString>,
    /// The flags that make it print events, for a command of the config.
    pub(super) event_flags: &'static str,
    /// The kinds of use that its events tell.
    pub(super) reports: Reports,
    /// The flag before the US dollars that it may use in one call, where there is one.
    pub(super) money_flag: Option<&'static str>,
    /// The flag that makes one more directory writable, where there is one.
    pub(super) directory_flag: Option<&'static str>,
    /// The flag before a model's name.
    pub(super) model_flag: &'static str,
    /// The CLI's own name of a model in the config.
    pub(super) model_name: fn(&str) -> &str,
    /// The last arguments, which begin a session and which resume one; `{id}` is its id. Without one, the
    /// CLI itself names a new session.
    pub(super) session: [&'static str; 2],

    /// Why the CLI itself can never hold its workers to `read`, and to `write`, if so.
    pub(super) unenforceable: [Option<&'static str>; 2],
    /// The programs that its own sandbox for an access level needs on Linux; `None` where it holds
    /// the level without one.
    pub(super) own_sandbox: fn(Access) -> Option<&'static [&'static str]>,
    /// True if its own sandbox starts within another one that allows namespaces.
    pub(super) nests: bool,

    /// The directories in which it keeps settings, sessions and logins.
    pub(super) places: &'static [Place],
    /// Other logins that it uses: a variable that says so (empty: always), and a path below the home
    /// directory.
    pub(super) other_logins: &'static [(&'static str, &'static str)],
    /// The directories at the top of a project that make it run something.
    pub(super) obeys: &'static [&'static str],
    /// The files at the top of a project that make it run something.
    pub(super) obeyed_files: &'static [&'static str],
    /// Variables for a worker in a sandbox of dispatch's.
    pub variables: &'static [(&'static str, &'static str)],

    /// Reads an event: a JSON object that was a line of its own.
    pub(super) event: fn(&Value, &mut Observed),
    /// Reads any other line, without colours; `None` looks for the errors below.
    pub(super) line: Option<fn(&str, &mut Observed)>,
    /// The CLI's error messages: the first expression that matches tells the kind.
    pub(super) failures: &'static [(FailureKind, &'static str)],
}

/// Why some CLIs do not hold their workers to `write`.
pub(super) const ONLY_EDITS: &str =
    "it holds its own edits to the project, but not the commands that it runs";

/// A directory of a CLI's own, which a variable moves.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The variable that moves the directory.
    pub variable: &'static str,
    /// Where the directory is without the variable, below the home directory.
    pub usual: &'static str,
    /// The part of the directory that belongs to the CLI; all of it if empty.
    pub own: &'static str,
    /// The files in it that log the CLI in and that it refreshes in place. Such a file must hold no
    /// more than tokens.
    pub login: &'static [&'static str],
    /// The files in it that are only read: the person's settings, and other parts of a login.
    pub settings: &'static [&'static str],
}

impl Place {
    /// The person's own directory.
    pub fn directory(&self) -> PathBuf {
        let moved = std::env::var_os(self.variable).filter(|value| !value.is_empty());
        moved.map_or_else(
            || dirs::home_directory().unwrap_or_default().join(self.usual),
            PathBuf::from,
        )
    }
}

/// The arguments that ask whether a CLI is logged in, and what the answer says; `None` if it is not
/// understood.
pub(super) type LoginQuestion = (&'static [&'static str], fn(&Answer) -> Option<bool>);

/// Where a CLI's models are known from.
pub(super) enum Models {
    /// These arguments print a list; the function returns `None` if it does not understand it.
    Asked(&'static [&'static str], fn(&str) -> Option<Vec<Listed>>),
    /// The CLI has no list: these names, from this source.
    Known(Source, &'static [&'static str]),
}

impl Job<'_> {
    /// A command line: the words that come first, then those of the access level, which are given in
    /// the order read, write, full. In a word, `␣` is a space, `{helper}` the helper as a shell needs
    /// it, `{path}` its path, `{bin}` its directory, and `{task}` the task's directory.
    pub(super) fn argv(&self, [first, levels @ ..]: [&str; 4]) -> Vec<OsString> {
        let [path, bin, task] =
            [self.helper, self.bin(), self.task].map(|it| it.display().to_string());
        let helper = shell_word(&path);
        let fill = |word: &str| {
            let word = word.replace('␣', " ").replace("{helper}", &helper).replace("{path}", &path);
            word.replace("{bin}", &bin).replace("{task}", &task).into()
        };
        let parts = [first, levels[self.access as usize]];
        parts.into_iter().flat_map(str::split_whitespace).map(fill).collect()
    }

    /// The directory of the helper.
    pub(super) fn bin(&self) -> &Path {
        self.helper.parent().unwrap_or(self.helper)
    }
}

impl WorkerCli {
    /// The facts that most CLIs have in common. Each CLI's own description starts from this one.
    pub(super) const BASE: Self = Self {
        name: "",
        title: "",
        checked: "",
        programs: &[],
        is_own_version: |_, _| true,
        package: None,
        login_status: None,
        key: None,
        login: "",
        models: Models::Known(Source::Curated, &[]),
        removed_flags: &[],
        argv: |_| Vec::new(),
        event_flags: "--output-format stream-json",
        reports: Reports::Tokens,
        money_flag: None,
        directory_flag: None,
        model_flag: "--model",
        model_name: |model| model,
        session: ["--session-id {id}", "--resume {id}"],
        unenforceable: [None, None],
        own_sandbox: |_| None,
        nests: false,
        places: &[],
        other_logins: &[],
        obeys: &[],
        obeyed_files: &[],
        variables: &[],
        event: |_, _| {},
        line: None,
        failures: &[],
    };

    /// True if its program is in PATH.
    pub(super) fn is_installed(&self) -> bool {
        find_program(OsStr::new(self.programs[0])).is_some()
    }

    /// The arguments after the command line: further directories, the model, and the session.
    pub(super) fn last_args(&self, command: &str, job: &Job) -> Vec<OsString> {
        let mut args = Vec::new();
        if super::command::prints_for_people(command) {
            args.extend(self.event_flags.split_whitespace().map(Into::into));
        }
        if let Some(flag) = self.directory_flag {
            // A sandbox may hold its own directory's `.git` back.
            let needs_flag = |it: &&PathBuf| !it.starts_with(job.directory) || it.ends_with(".git");
            let outside = job.writable.iter().filter(needs_flag);
            args.extend(outside.flat_map(|directory| [flag.into(), directory.into()]));
        }
        if let (Some(flag), Some(usd)) = (self.money_flag, job.usd) {
            args.extend(os_args(&[flag, &format!("{:.6}", usd.max(1e-6))]));
        }
        if let Some(model) = job.model.filter(|_| !super::command::names_a_model(command)) {
            args.extend(os_args(&[self.model_flag, (self.model_name)(model)]));
        }
        if !super::command::names_a_session(command) {
            let [new, resume] = self.session;
            let (words, id) = match job.session {
                Session::New(id) => (new, id),
                Session::Resume(id) => (resume, id),
            };
            args.extend(words.split_whitespace().map(|word| word.replace("{id}", id).into()));
        }
        args
    }

    /// Why the CLI itself can never hold its workers to an access level, if so.
    pub(super) fn never_holds(&self, access: Access) -> Option<&'static str> {
        self.unenforceable.get(access as usize).copied().flatten()
    }

    /// Why the CLI itself cannot hold its workers to an access level on this machine, if so.
    pub(super) fn gap(&self, access: Access) -> Option<String> {
        let never = self.never_holds(access).map(str::to_owned);
        never.or_else(|| match missing((self.own_sandbox)(access)?).as_slice() {
            [] => no_namespaces(),
            missing => {
                let missing = missing.join(" and ");
                Some(format!("its sandbox needs programs that are not installed: {missing}"))
            }
        })
    }

    /// The level whose flags the CLI gets. In a sandbox of dispatch's it is let do anything where it
    /// could not hold the level itself.
    pub(super) fn flags(&self, access: Access, holder: Option<Holder>) -> Access {
        let Some(holder) = holder else { return access };
        let starts = |programs: &[&'static str]| {
            self.nests && holder.nests() && missing(programs).is_empty()
        };
        let holds =
            self.never_holds(access).is_none() && (self.own_sandbox)(access).is_none_or(starts);
        if holds { access } else { Access::Full }
    }
}

/// The programs of the list that are not installed. Every macOS has its sandbox.
fn missing(programs: &[&'static str]) -> Vec<&'static str> {
    let has = |program: &&str| find_program(OsStr::new(program)).is_some();
    let programs = programs.iter().copied().filter(|_| !cfg!(target_os = "macos"));
    programs.filter(|program| !has(program)).collect()
}

/// Why a sandbox made of Linux namespaces cannot start on this machine, if so. Such a sandbox would
/// fail only once the worker runs commands, and few CLIs report that as an error.
fn no_namespaces() -> Option<String> {
    if cfg!(target_os = "macos") {
        return None;
    }
    // A system may allow namespaces to bwrap alone; a CLI that brings its own bwrap needs unshare.
    let tries = [
        "bwrap --unshare-user --unshare-pid --unshare-net --ro-bind / / true",
        "unshare --user --map-root-user true",
    ];
    let output = tries.iter().find_map(|command| {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next()?);
        let deadline = Instant::now() + Duration::from_secs(5);
        capture(command.args(words), Stdio::null(), deadline, 64 << 10).ok()
    })?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let printed = printed.lines().next().unwrap_or("no user namespaces");
    (!output.status.success()).then(|| format!("its sandbox cannot start: {printed}"))
}
