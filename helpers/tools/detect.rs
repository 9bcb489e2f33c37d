//! Finds the worker CLIs of this machine, with their versions and logins. They are asked in parallel and
//! with limits: a CLI may hang, print without end or leave processes behind.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use indexmap::IndexSet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::Backend;
use crate::ids::short_hash;
use crate::process::{capture, find_program, find_program_in, is_host_variable};
use crate::text::{lossy, sanitize};
use crate::tools::cli::{Place, WorkerCli};
use crate::tools::{KNOWN, by_backend, by_program, program_of_backend};
use crate::{dirs, fault, files};

/// How long a CLI takes at most to answer, on a machine that is not busy.
const USUAL: Duration = Duration::from_millis(1500);

/// How much longer slow CLIs are asked: a busy machine takes several times as long.
const MORE: Duration = Duration::from_millis(8500);

/// A worker CLI that is installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledCli {
    /// The backend's name.
    pub backend: String,
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// The version; `None` also for a program that only the config knows, which is not run.
    pub version: Option<String>,
    /// True if the CLI is logged in, where it can be asked. This is a hint: a CLI whose settings
    /// name another provider may need no login.
    pub logged_in: Option<bool>,
    /// The error when the CLI was asked, or that it is slow.
    pub problem: Option<String>,
}

impl InstalledCli {
    /// True if the CLI can be expected to work: it said its version, or was not asked.
    pub fn usable(&self) -> bool {
        self.version.is_some() || self.problem.is_none()
    }

    /// Asks the CLI for its version and login; `false` if the program belongs to something else.
    fn ask(&mut self, cli: &WorkerCli, asker: Asker) -> Result<bool, String> {
        self.version = cli.package.and_then(|package| packaged_version(package, &self.program));
        // Gemini, Copilot and Qwen need a second of processor time to print a version.
        if self.version.is_some() && cli.login_status.is_none() {
            return Ok(true);
        }
        let name = file_name(&self.program);
        let answer = asker.ask(&self.program, &["--version"])?;
        self.version = version_in(&answer.out).filter(|_| answer.code == Some(0));
        if answer.code != Some(0) {
            // A name that other programs share is the CLI's only if the version says so.
            return if name == cli.programs[0] { Err(answer.failure()) } else { Ok(false) };
        }
        if !(cli.is_own_version)(name, &answer.out) {
            return Ok(false);
        }
        if self.version.is_none() {
            return Err(format!("{} says no version: {}", answer.call, answer.first_line()));
        }
        self.problem = answer.slow;
        if has_key(cli) {
            self.logged_in = Some(true);
        } else if let Some((args, read)) = cli.login_status {
            let answer = asker.ask(&self.program, args)?;
            self.logged_in = read(&answer);
            self.problem = self.problem.take().or(answer.slow);
        }
        Ok(true)
    }
}

/// The installed worker CLIs in the order of the table, asked in parallel. A slow CLI is asked again
/// and named as slow. `extra` are the backends of the config, as name and program: the program of a
/// known CLI is tried first, and a program that dispatch does not know is found and not run.
pub fn detect(extra: &[(String, String)]) -> Vec<InstalledCli> {
    let usual = fault::limit("DISPATCH_ANSWER_MS", USUAL);
    let more = fault::limit("DISPATCH_SLOW_ANSWER_MS", MORE);
    detect_in(&std::env::var_os("PATH").unwrap_or_default(), extra, Asker::new(usual, more))
}

fn detect_in(path: &OsStr, extra: &[(String, String)], asker: Asker) -> Vec<InstalledCli> {
    let found = in_parallel(&searches(path, extra), |search| search.run(asker));
    found.into_iter().flatten().collect()
}

/// How long a CLI may take to say whether it is logged in, before its first worker.
const LOGIN: Duration = Duration::from_secs(10);

/// Returns true if the environment has a key for the CLI.
fn has_key(cli: &WorkerCli) -> bool {
    cli.key.and_then(std::env::var_os).is_some_and(|key| !key.is_empty())
}

/// Words in the settings of a CLI that may need no login of its own.
const OTHER_PROVIDERS: [&str; 4] = ["provider", "apiKeyHelper", "API_KEY", "ANTHROPIC_"];

/// The file that says that a backend's CLI was asked whether it is logged in.
fn asked_path(backend: &str) -> Result<PathBuf> {
    Ok(dirs::dispatch_home()?.join("asked").join(short_hash(backend.as_bytes())))
}

/// Asks the CLI of a backend whether it is logged in, before its first worker and after a failed
/// login. Returns the question if it says no, and the command that logs in. The answer is a hint: the
/// next call does not ask, nor does one that cannot note that it asked.
pub fn logged_out(backend: &str, settings: &Backend) -> Option<(String, &'static str)> {
    let cli = by_backend(backend, settings).filter(|cli| !has_key(cli))?;
    let (args, read) = cli.login_status?;
    let asked = asked_path(backend).ok().filter(|asked| !asked.exists())?;
    let program = find_program(program_of_backend(backend, settings)?.as_ref())?;
    files::create_private_directory(asked.parent()?).ok()?;
    files::publish(&asked, b"").ok()?;
    let of = |place: &'static Place| place.settings.iter().map(|it| place.directory().join(it));
    let mut texts = cli.places.iter().flat_map(of).filter_map(|path| files::read(&path).ok()?);
    if texts.any(|text| OTHER_PROVIDERS.iter().any(|word| text.contains(word))) {
        return None;
    }
    let answer = Asker::new(LOGIN, Duration::ZERO).ask(&program, args).ok();
    let answer = answer.filter(|answer| read(answer) == Some(false));
    answer.map(|answer| (answer.call, cli.login))
}

/// Makes the next start of a backend's worker ask again, after its login failed.
pub fn forget_login(backend: &str) {
    // If it cannot be removed, the next worker fails for the same reason.
    let _ = asked_path(backend).and_then(|path| files::remove(&path));
}

/// A backend, and the programs that may be its CLI.
struct Search {
    backend: String,
    /// At least one.
    programs: IndexSet<PathBuf>,
    cli: Option<&'static WorkerCli>,
    /// True if the config names the program, so that it is the backend's whatever it prints.
    certain: bool,
}

fn searches(path: &OsStr, extra: &[(String, String)]) -> Vec<Search> {
    let mut searches: Vec<Search> = Vec::new();
    let mut add = |backend: &str, names: &[&str], cli, certain| {
        let found = names.iter().filter_map(|name| find_program_in(OsStr::new(name), path));
        let programs: IndexSet<PathBuf> =
            found.filter_map(|program| std::path::absolute(program).ok()).collect();
        if !programs.is_empty() && searches.iter().all(|search| search.backend != backend) {
            searches.push(Search { backend: backend.into(), programs, cli, certain });
        }
    };
    for cli in KNOWN.iter().copied() {
        let own = extra.iter().find(|(backend, _)| backend == cli.name);
        let own = own.map(|(_, program)| program.as_str());
        // A config may give the backend's name to another program, which then replaces the CLI.
        if own.is_none_or(|own| cli.programs.contains(&file_name(Path::new(own)))) {
            let names: Vec<_> = own.into_iter().chain(cli.programs.iter().copied()).collect();
            add(cli.name, &names, Some(cli), false);
        }
    }
    for (backend, program) in extra {
        add(backend, &[program], by_program(Path::new(program)), true);
    }
    searches
}

impl Search {
    /// The first program that works; else the first one that belongs to the CLI, with its problem.
    fn run(&self, asker: Asker) -> Option<InstalledCli> {
        let bare = |program: &PathBuf| InstalledCli {
            backend: self.backend.clone(),
            program: program.clone(),
            version: None,
            logged_in: None,
            problem: None,
        };
        let Some(cli) = self.cli else { return Some(bare(&self.programs[0])) };
        let mut broken = None;
        for program in &self.programs {
            let mut found = bare(program);
            match found.ask(cli, asker) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(problem) => found.problem = Some(problem),
            }
            if found.version.is_some() {
                return Some(found);
            }
            broken = broken.or(Some(found));
        }
        broken.or_else(|| self.certain.then(|| bare(&self.programs[0])))
    }
}

/// The version in the package.json of the npm package that a program's link leads into.
fn packaged_version(package: &str, program: &Path) -> Option<String> {
    let program = program.canonicalize().ok()?;
    program.ancestors().skip(1).find_map(|directory| {
        let text = files::read(&directory.join("package.json")).ok()??;
        let found: Value = serde_json::from_slice(text.as_bytes()).ok()?;
        found["version"].as_str().filter(|_| found["name"] == package).map(str::to_owned)
    })
}

/// The version in what `--version` printed: the first word that begins like one.
fn version_in(text: &str) -> Option<String> {
    let words = text.split_whitespace().map(|word| word.trim_end_matches(['.', ',']));
    let words = words.map(|word| word.strip_prefix('v').unwrap_or(word));
    let is_version =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    words.into_iter().find(is_version).map(str::to_owned)
}

/// How much a CLI may print, in bytes. Codex's list holds each model's instructions: 745 KB in 0.169.
const MOST: usize = 8 << 20;

/// How much of a failed CLI's output is repeated, in characters.
const LONGEST_LINE: usize = 200;

/// Asks with a time limit.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    /// How long an answer usually takes at most.
    usual: Duration,
    /// When the last answer must be there.
    deadline: Instant,
}

/// The answer of a CLI, without colours and invisible characters.
#[derive(Default)]
pub(super) struct Answer {
    /// The question, as a shell would take it.
    pub(super) call: String,
    /// The exit code; `None` after a signal.
    pub(super) code: Option<i32>,
    /// Standard output.
    pub(super) out: String,
    /// Standard error.
    pub(super) err: String,
    /// A note that the CLI is slow, if it had to be asked again.
    pub(super) slow: Option<String>,
}

impl Asker {
    /// Asks for at most `usual`, and slow CLIs once more in the time that is left of `usual + more`.
    pub(super) fn new(usual: Duration, more: Duration) -> Self {
        Self { usual, deadline: Instant::now() + usual + more }
    }

    /// Runs a CLI with these arguments and returns its answer, or why there is none.
    pub(super) fn ask(&self, program: &Path, args: &[&str]) -> Result<Answer, String> {
        let call = format!("`{} {}`", file_name(program), args.join(" "));
        let start = Instant::now();
        let run = |until| capture(&mut command(program, args), Stdio::null(), until, MOST);
        let mut captured = run(self.deadline.min(start + self.usual));
        let mut slow = None;
        let is_slow = captured.as_ref().is_err_and(|it| it.kind() == ErrorKind::TimedOut);
        if is_slow && Instant::now() < self.deadline {
            captured = run(self.deadline);
            slow = Some(format!("slow: {call} answered only when asked again"));
        }
        let output = captured.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => {
                let seconds = start.elapsed().as_secs_f32();
                format!("slow: {call} did not answer in {seconds:.1} s")
            }
            _ => format!("{call} failed: {error}"),
        })?;
        let [out, err] = [output.stdout, output.stderr].map(|bytes| sanitize(&lossy(bytes)));
        Ok(Answer { call, code: output.status.code(), out, err, slow })
    }
}

/// A CLI outside of any project, whose settings must not change an answer that all projects share.
fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir("/").env("NO_COLOR", "1");
    for (name, _) in std::env::vars_os() {
        if is_host_variable(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

impl Answer {
    /// How the CLI failed, in one line.
    pub(super) fn failure(&self) -> String {
        let end = self.code.map_or("by a signal".into(), |code| format!("with {code}"));
        format!("{} ended {end}: {}", self.call, self.first_line())
    }

    /// A flag of the JSON object that the CLI printed.
    pub(super) fn json_flag(&self, key: &str) -> Option<bool> {
        serde_json::from_slice::<serde_json::Value>(self.out.as_bytes()).ok()?[key].as_bool()
    }

    /// The first line of the output, or of the errors if the CLI failed.
    pub(super) fn first_line(&self) -> &str {
        let (first, second) = match self.code {
            Some(0) => (&self.out, &self.err),
            _ => (&self.err, &self.out),
        };
        let mut lines = first.lines().chain(second.lines()).map(str::trim);
        let line = lines.find(|line| !line.is_empty()).unwrap_or("it said nothing");
        line.char_indices().nth(LONGEST_LINE).map_or(line, |(end, _)| &line[..end])
    }
}

/// The name of a program's file.
pub(super) fn file_name(program: &Path) -> &str {
    program.file_name().and_then(OsStr::to_str).unwrap_or("it")
}

/// Does each job in a thread of its own, or in this one where the system gives no thread.
pub(super) fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let start = |job| (job, thread::Builder::new().spawn_scoped(scope, move || work(job)).ok());
        let threads: Vec<_> = jobs.iter().map(start).collect();
        let result = |(job, thread): (&J, Option<thread::ScopedJoinHandle<R>>)| {
            thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| work(job))
        };
        threads.into_iter().map(result).collect()
    })
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
