//! Asks the worker CLIs of `clis.rs`: who is here, in which version, logged in or not, with which
//! models.
//!
//! A CLI may hang, print without end or leave processes behind. Each is asked by a thread of its
//! own, in a process group of its own, with a time limit and a limit to what it may print; whoever
//! does not come back in time is named and left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::process::{Signal, find_program_in, is_host_variable, lead_own_group, signal_group};
use crate::text::sanitize;
use crate::tools::clis::{self, CLIS, Cli, Models};

pub use crate::tools::clis::Listed;
pub use crate::tools::clis::Listing;
pub use crate::tools::clis::Source;
pub use crate::tools::clis::checked;
pub use crate::tools::clis::preferred_backend;
pub use crate::tools::clis::provider;
pub use crate::tools::clis::removed_flags;

/// How long all the questions of [`detect`] together may take.
const DETECTION: Duration = Duration::from_millis(1500);

/// How long a list of models may take.
const LISTING: Duration = Duration::from_secs(10);

/// How much longer we wait for a thread that has to end what hangs.
const ENDING: Duration = Duration::from_millis(300);

/// How much a CLI may print. Codex's list holds each model's instructions: 745 KB in 0.169.
const MOST: usize = 8 << 20;

/// How many characters of what a failed CLI said are worth repeating.
const LINE: usize = 200;

/// How old a list in the cache may be.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A worker CLI that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstalledCli {
    /// The backend's name.
    pub backend: String,
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its version; `None` also for a program that only the config knows, which is not run.
    pub version: Option<String>,
    /// Whether it is logged in, where it can be asked. It is a hint: a CLI with its own provider in
    /// its own settings may need no login.
    pub logged_in: Option<bool>,
    /// What went wrong when it was asked.
    pub problem: Option<String>,
}

impl InstalledCli {
    /// Whether it can be expected to work: it said its version, or there was nothing to ask.
    pub fn usable(&self) -> bool {
        self.version.is_some() || self.problem.is_none()
    }
}

/// All worker CLIs that are here, in the order of the table, asked in parallel, in less than two
/// seconds whatever hangs; one that hangs is named and ended. `extra` are the backends of the
/// config, as name and program: one with a known name is looked for at its program first, and one
/// that no row knows is looked for and not run, since nobody can say what it does.
pub fn detect(extra: &[(String, String)]) -> Vec<InstalledCli> {
    detect_in(&std::env::var_os("PATH").unwrap_or_default(), extra)
}

fn detect_in(path: &OsStr, extra: &[(String, String)]) -> Vec<InstalledCli> {
    let until = Instant::now() + DETECTION;
    let searches = searches(path, extra);
    let names: Vec<_> =
        searches.iter().map(|s| (s.backend.clone(), s.programs[0].clone())).collect();
    let found = in_parallel(searches, until + ENDING, move |search| search.look(until));
    let late = |(backend, program): (String, PathBuf)| InstalledCli {
        problem: Some(format!("`{} --version` does not end", name(&program))),
        ..InstalledCli::bare(&backend, &program)
    };
    names
        .into_iter()
        .zip(found)
        .filter_map(|(names, found)| found.unwrap_or_else(|| Some(late(names))))
        .collect()
}

/// A backend, and the programs that may be its CLI.
struct Search {
    backend: String,
    /// At least one.
    programs: Vec<PathBuf>,
    cli: Option<&'static Cli>,
    /// Whether the config names the program, so that it is the backend's whatever it is.
    certain: bool,
}

fn searches(path: &OsStr, extra: &[(String, String)]) -> Vec<Search> {
    let row_of = |program: &str| clis::of_program(Path::new(program));
    let mut searches: Vec<Search> = Vec::new();
    let mut add = |backend: &str, names: &[&str], cli, certain| {
        let found = names.iter().filter_map(|name| find_program_in(OsStr::new(name), path));
        let mut programs: Vec<PathBuf> = Vec::new();
        for program in found.filter_map(|program| std::path::absolute(program).ok()) {
            if !programs.contains(&program) {
                programs.push(program);
            }
        }
        if !programs.is_empty() && searches.iter().all(|search| search.backend != backend) {
            searches.push(Search { backend: backend.into(), programs, cli, certain });
        }
    };
    for cli in &CLIS {
        let own = extra.iter().find(|(backend, _)| backend == cli.backend);
        let own = own.map(|(_, program)| program.as_str());
        // What the config calls by this name may be another program, which then stands for it.
        if own.and_then(row_of).map(|row| row.backend) == own.map(|_| cli.backend) {
            let names: Vec<_> = own.into_iter().chain(cli.programs.iter().copied()).collect();
            add(cli.backend, &names, Some(cli), false);
        }
    }
    for (backend, program) in extra {
        add(backend, &[program], row_of(program), true);
    }
    searches
}

impl Search {
    /// The first program that works; else the first that is there, with its problem.
    fn look(&self, until: Instant) -> Option<InstalledCli> {
        let Some(cli) = self.cli else {
            return Some(InstalledCli::bare(&self.backend, &self.programs[0]));
        };
        let mut broken = None;
        for program in &self.programs {
            match look_at(cli, program, until) {
                Some((version @ Some(_), problem)) => {
                    let found = InstalledCli {
                        version,
                        problem,
                        ..InstalledCli::bare(&self.backend, program)
                    };
                    let answers = found.problem.is_none();
                    return Some(if answers { found.with_login(cli, until) } else { found });
                }
                Some((None, problem)) => {
                    let found =
                        InstalledCli { problem, ..InstalledCli::bare(&self.backend, program) };
                    broken.get_or_insert(found);
                }
                None => {}
            }
        }
        broken
            .or_else(|| self.certain.then(|| InstalledCli::bare(&self.backend, &self.programs[0])))
    }
}

/// The version of a program or the problem with it; `None` if it is another CLI's.
fn look_at(cli: &Cli, program: &Path, until: Instant) -> Option<(Option<String>, Option<String>)> {
    let packaged = cli.package.and_then(|package| packaged(package, program));
    // Gemini, Copilot and Qwen take a second of processor time each, only to say their version.
    if packaged.is_some() && cli.login.question().is_none() {
        return Some((packaged, None));
    }
    // A name that is not the CLI's first belongs to it only if the version says so.
    let shared = name(program) != cli.programs[0];
    match ask(program, &["--version"], until) {
        Err(problem) => Some((packaged, Some(problem))),
        Ok(said) if said.code != Some(0) => (!shared).then(|| (None, Some(said.failure()))),
        Ok(said) if !(cli.is_own)(name(program), &said.out) => None,
        Ok(said) => Some(match clis::version_in(&said.out) {
            Some(version) => (Some(version), None),
            None => (None, Some(format!("{} says no version: {}", said.call, said.line()))),
        }),
    }
}

/// The version in the package.json of the npm package that a program's link leads into.
fn packaged(package: &str, program: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let program = program.canonicalize().ok()?;
    program.ancestors().skip(1).find_map(|directory| {
        let text = files::read(&directory.join("package.json")).ok()??;
        let found: Package = serde_json::from_str(&text).ok()?;
        (found.name == package).then_some(found.version)
    })
}

impl InstalledCli {
    fn bare(backend: &str, program: &Path) -> Self {
        let (backend, program) = (backend.to_owned(), program.to_owned());
        Self { backend, program, version: None, logged_in: None, problem: None }
    }

    fn with_login(mut self, cli: &Cli, until: Instant) -> Self {
        let key = cli.key.and_then(std::env::var_os);
        if key.is_some_and(|key| !key.is_empty()) {
            self.logged_in = Some(true);
            return self;
        }
        let Some(args) = cli.login.question() else { return self };
        match ask(&self.program, args, until) {
            Ok(said) => self.logged_in = cli.login.read(said.code, &said.out, &said.err),
            Err(problem) => self.problem = Some(problem),
        }
        self
    }
}

/// A list of models in the cache, and the CLI that it is of.
#[derive(Clone, Serialize, Deserialize)]
struct Cached {
    program: PathBuf,
    version: Option<String>,
    logged_in: Option<bool>,
    listing: Listing,
}

impl Cached {
    fn is_of(&self, found: &InstalledCli) -> bool {
        self.listing.backend == found.backend && self.program == found.program
    }

    /// Whether it can stand for a new question.
    fn is_fresh(&self, found: &InstalledCli) -> bool {
        let same = self.version == found.version && self.logged_in == found.logged_in;
        let asked = self.listing.asked.as_deref().map(humantime::parse_rfc3339);
        // A time in the future is a clock that was set, and says nothing.
        let age = asked.and_then(Result::ok).map(|at| SystemTime::now().duration_since(at));
        same && matches!(age, Some(Ok(age)) if age < DAY)
    }
}

/// The models of the CLIs found, asked in parallel with a time limit; from the cache file unless
/// `refresh`, or older than a day, or of another version or login. A CLI that cannot be asked now
/// has its list of the last time, with its old date, unless `refresh`. A CLI that no row knows is
/// left out.
pub fn models(
    found: &[InstalledCli],
    cache: &Path,
    refresh: bool,
) -> Vec<Result<Listing, (String, String)>> {
    let text = files::read(cache).ok().flatten().unwrap_or_default();
    let mut lists: Vec<Cached> = serde_json::from_str(&text).unwrap_or_default();
    let until = Instant::now() + LISTING;
    // Without a version and a problem it was not asked, since it is none of those that we know.
    let known = found.iter().filter(|found| found.version.is_some() || found.problem.is_some());
    let jobs = known.filter_map(|found| {
        let kept = lists.iter().find(|cached| cached.is_of(found)).cloned();
        Some((clis::of_program(&found.program)?, found.clone(), kept))
    });
    let jobs: Vec<_> = jobs.collect();
    let asked: Vec<_> = jobs.iter().map(|(_, found, _)| found.clone()).collect();
    let answers = in_parallel(jobs, until + ENDING, move |(cli, found, kept)| {
        kept_or_asked(cli, &found, kept, refresh, until)
    });
    let mut changed = false;
    let mut keep = |found: InstalledCli, listing: &Listing| {
        lists.retain(|cached| !cached.is_of(&found));
        let InstalledCli { program, version, logged_in, .. } = found;
        lists.push(Cached { program, version, logged_in, listing: listing.clone() });
        changed = true;
    };
    let listings = asked.into_iter().zip(answers).map(|(found, answer)| {
        let answer = answer.unwrap_or_else(|| Err("it does not end".into()));
        let (listing, is_new) = answer.map_err(|why| (found.backend.clone(), why))?;
        if is_new {
            keep(found, &listing);
        }
        Ok(listing)
    });
    let listings = listings.collect();
    if changed && let Ok(text) = serde_json::to_vec(&lists) {
        // Without a cache the CLIs are asked again the next time, which is no reason to fail now.
        let _ = cache.parent().map(files::create_private_directory);
        let _ = files::publish(cache, &text);
    }
    listings
}

/// The models of a CLI, and whether it was asked for them now.
fn kept_or_asked(
    cli: &Cli,
    found: &InstalledCli,
    kept: Option<Cached>,
    refresh: bool,
    until: Instant,
) -> Result<(Listing, bool), String> {
    if let InstalledCli { version: None, problem: Some(problem), .. } = found {
        return Err(problem.clone());
    }
    let (ids, source) = match cli.models {
        Models::Asked(args, read) => {
            let kept = kept.filter(|_| !refresh);
            return match kept {
                Some(kept) if kept.is_fresh(found) => Ok((kept.listing, false)),
                kept => match (list(found, args, read, until), kept) {
                    (Err(_), Some(kept)) => Ok((kept.listing, false)),
                    (answer, _) => answer.map(|listing| (listing, true)),
                },
            };
        }
        Models::None(why) => return Err(why.into()),
        Models::Stable(ids) => (ids, Source::Stable),
        Models::Curated(ids) => (ids, Source::Curated),
    };
    let models = ids.iter().map(|id| Listed { id: (*id).into(), name: None }).collect();
    Ok((Listing { backend: found.backend.clone(), models, source, asked: None }, false))
}

fn list(
    found: &InstalledCli,
    args: &[&str],
    read: fn(&str) -> Option<Vec<Listed>>,
    until: Instant,
) -> Result<Listing, String> {
    let said = ask(&found.program, args, until)?;
    if said.code != Some(0) {
        return Err(said.failure());
    }
    let models = read(&said.out)
        .ok_or_else(|| format!("the answer of {} is not understood: {}", said.call, said.line()))?;
    if models.is_empty() {
        return Err(format!("{} lists no model: {}", said.call, said.line()));
    }
    let asked = Some(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
    Ok(Listing { backend: found.backend.clone(), models, source: Source::Asked, asked })
}

/// Does each job in a thread of its own. The result of one that is not done in time is `None`; its
/// thread is left to itself, since nothing can end a thread that the system holds.
fn in_parallel<J: Send + 'static, R: Send + 'static>(
    jobs: Vec<J>,
    until: Instant,
    work: impl Fn(J) -> R + Clone + Send + 'static,
) -> Vec<Option<R>> {
    let (sender, receiver) = mpsc::channel();
    let mut results: Vec<Option<R>> = jobs.iter().map(|_| None).collect();
    for (number, job) in jobs.into_iter().enumerate() {
        let (sender, work) = (sender.clone(), work.clone());
        // If there is no thread to be had, the job counts as one that is not done.
        let _ = thread::Builder::new().spawn(move || sender.send((number, work(job))));
    }
    drop(sender);
    let left = || until.saturating_duration_since(Instant::now());
    while let Ok((number, result)) = receiver.recv_timeout(left()) {
        results[number] = Some(result);
    }
    results
}

/// What a CLI said, without colours and invisible characters.
struct Said {
    call: String,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn failure(&self) -> String {
        let end = self.code.map_or("by a signal".into(), |code| format!("with {code}"));
        format!("{} ended {end}: {}", self.call, self.line())
    }

    /// Its first line, that of an error if it failed.
    fn line(&self) -> &str {
        let (first, second) = match self.code {
            Some(0) => (&self.out, &self.err),
            _ => (&self.err, &self.out),
        };
        let mut lines = first.lines().chain(second.lines()).map(str::trim);
        let line = lines.find(|line| !line.is_empty()).unwrap_or("it said nothing");
        line.char_indices().nth(LINE).map_or(line, |(end, _)| &line[..end])
    }
}

/// Runs a program to its end. At the time limit, or when it prints too much, its process group is
/// killed and the error says so.
fn ask(program: &Path, args: &[&str], until: Instant) -> Result<Said, String> {
    let call = format!("`{} {}`", name(program), args.join(" "));
    let start = Instant::now();
    let mut command = Command::new(program);
    // What a project's own settings add does not belong into a list for all projects.
    command.args(args).current_dir("/").env("NO_COLOR", "1");
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| is_host_variable(&name.to_string_lossy()))
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = lead_own_group(&mut command)
        .spawn()
        .map_err(|error| format!("{call} cannot run: {error}"))?;
    let mut out = Pipe::new(child.stdout.take().map(OwnedFd::from));
    let mut err = Pipe::new(child.stderr.take().map(OwnedFd::from));
    loop {
        Pipe::read_ready([&mut out, &mut err], Duration::from_millis(5));
        let problem = match child.try_wait() {
            Ok(Some(status)) => {
                // What it wrote is in the pipes; a process that it left behind may hold them open.
                while Pipe::read_ready([&mut out, &mut err], Duration::ZERO) {}
                let [out, err] = [&out, &err].map(|p| sanitize(&String::from_utf8_lossy(&p.bytes)));
                return Ok(Said { call, code: status.code(), out, err });
            }
            _ if out.bytes.len() + err.bytes.len() > MOST => {
                format!("{call} prints more than {} MB", MOST >> 20)
            }
            _ if Instant::now() >= until => {
                format!("{call} did not answer in {:.1} s", start.elapsed().as_secs_f32())
            }
            _ => continue,
        };
        let ended = end(&mut child, [&mut out, &mut err]);
        return Err(if ended { problem } else { problem + ", and what it started does not end" });
    }
}

/// Kills the group of a child that was not waited for, so that the group's number is still its own.
/// `true` if it is gone, and nobody else holds its pipes.
fn end(child: &mut Child, mut pipes: [&mut Pipe; 2]) -> bool {
    let start = Instant::now();
    let _ = signal_group(child.id(), Signal::SIGKILL);
    let mut status: Option<ExitStatus> = None;
    while start.elapsed() < ENDING / 2 {
        for pipe in &mut pipes {
            pipe.bytes.clear();
        }
        let [out, err] = &mut pipes;
        Pipe::read_ready([out, err], Duration::from_millis(1));
        status = status.or_else(|| child.try_wait().ok().flatten());
        if status.is_some() && pipes.iter().all(|pipe| pipe.file.is_none()) {
            return true;
        }
    }
    false
}

/// One of a child's outputs.
struct Pipe {
    /// `None` when all its writers are gone.
    file: Option<File>,
    bytes: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<OwnedFd>) -> Self {
        Self { file: end.map(File::from), bytes: Vec::new() }
    }

    /// Waits for at most `wait`, and reads one piece of each that has any; `false` if none had.
    fn read_ready(pipes: [&mut Self; 2], wait: Duration) -> bool {
        let open: Vec<_> = pipes.into_iter().filter(|pipe| pipe.file.is_some()).collect();
        let fds = open.iter().filter_map(|pipe| pipe.file.as_ref());
        let mut fds: Vec<_> = fds.map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)).collect();
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut fds, wait).is_ok();
        let ready: Vec<bool> = fds.iter().map(|fd| ready && fd.any() != Some(false)).collect();
        let any = ready.contains(&true);
        for (pipe, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut piece = [0; 64 * 1024];
            match pipe.file.as_ref().map(|mut file| file.read(&mut piece)) {
                Some(Ok(count @ 1..)) => pipe.bytes.extend(&piece[..count]),
                Some(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => pipe.file = None,
            }
        }
        any
    }
}

fn name(program: &Path) -> &str {
    program.file_name().and_then(OsStr::to_str).unwrap_or("it")
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
