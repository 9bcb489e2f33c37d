//! Places: machines and containers that tasks run at, each behind a command that runs a shell there.
//!
//! There, an ordinary supervisor runs an ordinary task, and `serve` tells of it and carries out what the
//! person decided. Here, one `mirror` a place holds the run locks of the tasks there, in place of their
//! supervisors, and copies what the place says.
//!
//! Invariant: what a place says is a worker's word. It is bounded and cleaned, comes under a closed list
//! of names, and writes nowhere but in its own task.

mod check;
mod copy;
pub mod link;
pub mod mirror;
pub mod serve;

pub use check::{arguments, check, refuse_here, refuse_unfit, refuse_without_git};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGUSR1;

use crate::config::{Config, PlaceEntry};
use crate::dirs;
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files::{self, Lock, parse_number};
use crate::ids::{long_hash, now};
use crate::process::{self, Signal, Watch, machine};
use crate::task::{ExitRecord, Gate, Record, Remote, Task, View, Wait, own_helper};
use crate::text::collect;
use crate::worker::supervise::{Only, STARTED, WAITS};
use link::{Channel, Files, Transport};

/// How often each end of a connection is heard at least, and after what silence it is given up.
const PULSE: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(60);

/// How long a start waits for the place.
const START: Duration = Duration::from_secs(120);

/// How long a stop waits to be confirmed, and how long a killed mirror may take to die.
const CONFIRM: Duration = Duration::from_secs(20);

/// How many bytes of an attempt's log are mirrored.
const LONGEST_LOG: u64 = 8 << 20;

/// A request to the far end. A task is named by the key of its repository and its name there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    /// Look at the machine, for a worker of that name in the config that is sent, or for none.
    Check(Option<String>),
    /// Make the repository, with the person's name and address for commits.
    Repository(String, [String; 2]),
    /// Dispatch a task that was stopped so often before, at a commit, with these arguments; the plan, the
    /// config and the checkout's sparse patterns are sent.
    Start(TaskAddress, u32, String, Vec<String>),
    /// Tell of a task from now on; these files and so much of the log are here.
    Follow(TaskAddress, BTreeMap<String, String>, (u32, u64)),
    /// Answer a question; the question and the answer are sent.
    Answer(TaskAddress, String),
    /// Note a text under this number.
    Note(TaskAddress, String),
    /// Stop the task, or keep it from starting, after it was stopped so often before.
    Stop(TaskAddress, u32),
    /// Resume the task with these arguments if that attempt is its last; the config is sent.
    Resume(TaskAddress, u32, Vec<String>),
    /// Bring the commits of the worktree into the repository there.
    Fetch(TaskAddress),
    /// Say something.
    Ping,
}

impl Request {
    /// The task or repository of a request and the name that its answer repeats; `None` for a request that
    /// has another answer.
    fn subject(&self) -> Option<(String, String)> {
        let (id, what) = match self {
            Self::Repository(key, _) => (key, "repository".into()),
            Self::Start(address, ..) => (&address.id, "start".into()),
            Self::Answer(address, name) => (&address.id, format!("answer/{name}")),
            Self::Note(address, name) => (&address.id, format!("note/{name}")),
            Self::Stop(address, _) => (&address.id, "stop".into()),
            Self::Resume(address, ..) => (&address.id, "resume".into()),
            Self::Fetch(address) => (&address.id, "fetch".into()),
            Self::Check(_) | Self::Follow(..) | Self::Ping => return None,
        };
        Some((id.clone(), what))
    }
}

/// A message of the far end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    /// The lines of a check, each with whether all is well.
    Checked(Vec<(bool, String)>),
    /// A request about a task, or a repository, was carried out, or why not.
    Done(String, String, Option<String>),
    /// How a task is, as [`Facts`]; what changed of its files is sent, and a piece of its log with the attempt and the
    /// offset.
    Facts(String, serde_json::Value, Option<(u32, u64)>),
    /// There is no such task.
    Absent(String),
    /// The answer to [`Request::Ping`].
    Pong,
}

/// The answer to [`Request::Fetch`] for a worktree that was never made.
const NO_COMMITS: &str = "there is no worktree";

/// A task at a place: the key of its repository and its name there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct TaskAddress {
    key: String,
    id: String,
}

/// The branch that the answer to [`Request::Fetch`] names, if it is one of dispatch's.
fn fetched_branch(what: &str) -> Option<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-/".contains(c);
    what.strip_prefix("fetch ").filter(|it| it.starts_with("dispatch") && it.chars().all(plain))
}

/// The records of the supervisor of a task at a place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Facts {
    attempts: Vec<AttemptFacts>,
    wait: Option<Wait>,
    /// Something of the task runs there, or is about to.
    open: bool,
    /// The answers that are recorded there, each with whether a prompt or the worker has it.
    answers: BTreeMap<String, bool>,
    /// The notes that are recorded there.
    notes: Vec<String>,
    /// The names that are no longer there.
    gone: Vec<String>,
    /// The last commit in the worktree there.
    tip: Option<String>,
}

/// An attempt as its supervisor recorded it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct AttemptFacts {
    number: u32,
    exit: Option<ExitRecord>,
    gate: Option<Gate>,
    silent: Option<String>,
}

/// Returns true for the files of a task that are mirrored.
fn is_mirrored(name: &str) -> bool {
    let numbered = |name: &str, ends: &[&str]| {
        let number = ends.iter().find_map(|end| name.strip_suffix(end));
        number.is_some_and(|it| parse_number(it).is_some())
    };
    match name.split_once('/') {
        None => ["plan.md", "prompt.md", "context.md", "output.md"].contains(&name),
        Some(("ipc", ".done")) => true,
        Some(("ipc", name)) => numbered(name, &[".question", ".done"]),
        Some(("tells", name)) => numbered(name, &[""]),
        Some(("attempts", name)) => numbered(name, &["/plan.md"]),
        _ => false,
    }
}

/// The files of a task that are mirrored, by name.
fn mirrored_files(task: &Task) -> BTreeMap<String, PathBuf> {
    let side = task.side().directory();
    let listed = |below: &'static str| {
        let names = files::entries(&side.join(below)).unwrap_or_default().into_iter();
        names.filter_map(move |name| Some(format!("{below}{}", name.to_str()?)))
    };
    let own = ["", "ipc/", "tells/"].into_iter().flat_map(listed);
    let own = own.map(|name| (name.clone(), side.join(name)));
    let attempts = task.attempts().unwrap_or_default().into_iter();
    let attempts = attempts.map(|it| (format!("attempts/{}/plan.md", it.number), it.plan_path()));
    collect(own.chain(attempts).filter(|(name, path)| is_mirrored(name) && path.is_file()))
}

/// The address of a task at its place: the same for all attempts, and another for each dispatch and move.
fn address(task: &Task, record: &Record) -> Result<TaskAddress> {
    let worktree = record.worktree.as_ref().context("a task without a worktree")?;
    let repository = &worktree.repository;
    let named = repository.parent().filter(|_| repository.ends_with(".git")).unwrap_or(repository);
    let name = named.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = name.chars().map(plain).take(40).collect();
    let hash = long_hash(format!("{} {}", machine(), repository.display()).as_bytes());
    let mut id = task.id().as_str().to_owned();
    id.truncate(31);
    let nonce = task.remote()?.and_then(|it| it.nonce).unwrap_or_else(|| record.nonce.clone());
    let nonce: String = nonce.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    let id = format!("{}-{}", id.trim_end_matches('-'), nonce.to_ascii_lowercase());
    Ok(TaskAddress { key: format!("p{name}-{}", &hash[..16]), id })
}

/// The directory with the mirrors' locks, and for each place a directory with an entry for each task that may
/// be open there, and one with the requests to stop abandoned ones.
fn index() -> Result<PathBuf> {
    Ok(dirs::state_root()?.join(".places"))
}

/// The lock that the mirror of a place holds. No place has a name that begins with a dot.
fn lock_path(name: &str) -> Result<PathBuf> {
    Ok(index()?.join(format!(".{name}.lock")))
}

/// The entry of a task in its place's index.
fn entry(task: &Task, place: &str) -> Result<PathBuf> {
    let project = task.state_dir().parent().and_then(Path::file_name).unwrap_or_default();
    Ok(index()?.join(place).join(format!("{}.{}", task.id(), project.display())))
}

/// A task that a person moved away from a place that may still run it. The request to stop it there is a
/// file until the place has confirmed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Abandoned {
    address: TaskAddress,
    /// [`Remote::stops`].
    stops: u32,
    /// The nonce of the task's record.
    nonce: String,
    /// When it was abandoned (RFC 3339).
    since: String,
}

/// How long a mirror runs only to have something stopped at a place that does not answer. After that, it is
/// stopped when the place is contacted for another reason.
const PURSUED: Duration = Duration::from_secs(24 * 3600);

impl Abandoned {
    /// The directory with the requests for a place.
    fn directory(name: &str) -> Result<PathBuf> {
        Ok(index()?.join(format!(".{name}.stops")))
    }

    fn path(name: &str, address: &TaskAddress) -> Result<PathBuf> {
        Ok(Self::directory(name)?.join(&address.id))
    }

    /// The requests for a place, with their files.
    fn all(name: &str) -> Result<Vec<(PathBuf, Self)>> {
        let directory = Self::directory(name)?;
        let read = |it| {
            let path = directory.join(it);
            let text = files::read_foreign(&path).ok()??;
            Some((path, files::from_json(&text).ok()?))
        };
        Ok(files::entries(&directory)?.into_iter().filter_map(read).collect())
    }

    /// Returns true if a mirror is to run for one of the requests.
    fn is_pursued(name: &str) -> Result<bool> {
        Ok(Self::all(name)?.iter().any(|(path, _)| files::modified_within(path, PURSUED)))
    }
}

/// The places that may still run something of a task that was moved away, each with the time of the move.
pub fn left_at(record: &Record) -> Result<Vec<(String, String)>> {
    let mut left = Vec::new();
    for name in places_with_stops()? {
        let own = Abandoned::all(&name)?.into_iter().find(|(_, it)| it.nonce == record.nonce);
        left.extend(own.map(|(_, it)| (name, it.since)));
    }
    Ok(left)
}

fn places_with_stops() -> Result<Vec<String>> {
    let names = files::entries(&index()?)?.into_iter().filter_map(|it| it.into_string().ok());
    let name = |it: String| Some(it.strip_prefix('.')?.strip_suffix(".stops")?.to_owned());
    Ok(names.filter_map(name).collect())
}

/// Starts the mirrors that have something to stop, which a restart of this machine ends. Errors are no news:
/// the requests stay.
pub fn pursue_abandoned() {
    for name in places_with_stops().unwrap_or_default() {
        if Abandoned::is_pursued(&name).unwrap_or(false) {
            let _ = ensure_mirror(&name);
        }
    }
}

/// Has everything stopped that was abandoned at a place, which has just answered.
fn pursue_again(name: &str) -> Result<()> {
    let all = Abandoned::all(name)?;
    all.iter().try_for_each(|(path, _)| files::touch(path, SystemTime::now()))?;
    if all.is_empty() { Ok(()) } else { ensure_mirror(name) }
}

/// The decision of a person to resume a task at a place: the arguments, and how many attempts there were.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Demand {
    after: u32,
    arguments: Vec<String>,
}

impl Demand {
    fn path(task: &Task) -> PathBuf {
        task.state_dir().join("resume")
    }

    fn of(task: &Task) -> Result<Option<Self>> {
        let text = files::read_foreign(&Self::path(task))?;
        Ok(text.and_then(|text| files::from_json(&text).ok()))
    }

    /// Records the demand. The mirror sends it until the place has it.
    pub fn record(task: &Task, arguments: Vec<String>) -> Result<()> {
        let last = task.last_attempt().map_or(0, |it| it.number);
        let remote = Remote { open: true, error: None, ..task.remote()?.unwrap_or_default() };
        let after = last.saturating_sub(remote.before);
        let text = serde_json::to_string(&Self { after, arguments })?;
        files::publish(&Self::path(task), text.as_bytes())?;
        task.set_remote(Some(&remote))
    }

    /// Forgets the demand.
    pub fn forget(task: &Task) -> Result<()> {
        files::remove(&Self::path(task))
    }
}

/// Sees to it that a mirror follows the task, and returns what a supervisor would say of its start.
pub fn attend(task: &Task, name: &str, only_if: Option<Only>) -> Result<&'static str> {
    let before = task.last_attempt().map_or(0, |it| it.number);
    let demanded = Demand::of(task)?.is_some();
    let is_new = !task.remote()?.is_some_and(|it| it.sent);
    if is_new && task.wait()?.is_none() {
        task.set_wait(Some(&Wait::Place(name.into(), None)))?;
    }
    let mut watch = Watch::new(&[])?;
    watch.add_directory(task.state_dir());
    ensure_mirrored(task, name)?;
    let begin = Instant::now();
    loop {
        if only_if.is_some() || !is_new && !demanded {
            return Ok(WAITS);
        }
        let remote = task.remote()?.unwrap_or_default();
        if let Some(error) = remote.error {
            return Err(Refusal::new(Exit::Failed, error).into());
        }
        if task.last_attempt().is_some_and(|it| it.number > before) {
            return Ok(STARTED);
        }
        if task.record()?.is_none_or(|it| it.stop) {
            return Err(Refusal::new(Exit::Failed, "it was stopped before it started").into());
        }
        let waits = task.wait()?.is_some_and(|it| !matches!(it, Wait::Place(_, None)));
        if waits || remote.unreachable.is_some() || begin.elapsed() > START {
            return Ok(WAITS);
        }
        watch.wait_for_event(Duration::from_secs(1))?;
    }
}

/// Takes a task from the mirror of a place, which may be waiting for a machine that is gone. Returns its run
/// lock, and true if something may still run there, which is stopped when the place answers.
///
/// # Errors
/// [`Exit::TryAgain`] if the place has started the task since the view.
pub fn leave(view: &View, name: &str) -> Result<(Lock, bool)> {
    let (task, record) = (&view.task, &view.record);
    files::remove(&entry(task, name)?)?;
    let lock = lock_path(name)?;
    if let Some(mirror) =
        Lock::last_holder(&lock)?.filter(|_| Lock::is_held(&lock).unwrap_or(false))
    {
        mirror.signal(Signal::SIGKILL)?;
        // The death of the mirror frees the lock.
        drop(Lock::take(&lock, CONFIRM)?);
    }
    let run_lock = Lock::try_take(&task.run_lock_path())?;
    let remote = task.remote()?.filter(|it| it.open);
    let Some(run_lock) = run_lock.filter(|_| remote.is_none() || view.is_open()) else {
        ensure_mirrored(task, name)?;
        return Refusal::new(Exit::TryAgain, format!("{name} has just started '{}'", task.id()))
            .refuse("try again");
    };
    Demand::forget(task)?;
    if let Some(remote) = &remote {
        let (address, nonce) = (address(task, record)?, record.nonce.clone());
        let path = Abandoned::path(name, &address)?;
        files::create_private_directory(path.parent().context("no directory")?)?;
        let text = Abandoned { address, stops: remote.stops, nonce, since: now() };
        files::publish(&path, serde_json::to_string(&text)?.as_bytes())?;
    }
    if !files::entries(&index()?.join(name))?.is_empty() || Abandoned::is_pursued(name)? {
        ensure_mirror(name)?;
    }
    Ok((run_lock, remote.is_some()))
}

/// Takes back that a task was abandoned at a place, because a person resumes it there.
pub fn keep(task: &Task, record: &Record, name: &str) -> Result<()> {
    files::remove(&Abandoned::path(name, &address(task, record)?)?)
}

/// Sees to it that a mirror follows the task.
fn ensure_mirrored(task: &Task, name: &str) -> Result<()> {
    let entry = entry(task, name)?;
    files::create_private_directory(entry.parent().context("no index")?)?;
    files::open_append(&entry)?;
    fault::point("place", "entered");
    ensure_mirror(name)
}

/// Starts the mirror of a place unless it runs.
fn ensure_mirror(name: &str) -> Result<()> {
    if Lock::is_held(&lock_path(name)?)? {
        return Ok(());
    }
    let mut command = own_helper("--mirror")?;
    command.arg(name).stdout(std::process::Stdio::null());
    process::detach(&mut command)
}

/// Has a task stopped at its place. Returns a line about the result.
pub fn stop(task: &Task, name: &str) -> Result<String> {
    let id = task.id();
    task.change_record(|record| record.stop = true)?;
    Demand::forget(task)?;
    let mut watch = Watch::new(&[])?;
    let begin = Instant::now();
    if task.view()?.is_open() {
        // The entry is there, or the task is not open; a mirror that died is replaced.
        ensure_mirrored(task, name)?;
    }
    let limit = fault::limit("DISPATCH_CONFIRM_MS", CONFIRM);
    loop {
        watch.add_directory(task.state_dir());
        let view = task.view()?;
        if !view.is_open() {
            return Ok(format!("{id} {}", view.state));
        }
        let since = view.remote.and_then(|it| it.unreachable);
        if begin.elapsed() > limit || since.is_some() {
            let why = since.map_or(String::new(), |it| format!(", unreachable since {it}"));
            return Ok(format!(
                "{id} is not stopped yet: {name} has not confirmed it{why}; it is stopped as soon as {name} answers"
            ));
        }
        watch.wait_for_event(Duration::from_millis(200))?;
    }
}

/// Brings the commits of a running task here, and returns true if the place had some. Errors are no news:
/// the branch comes at the end in any case.
pub fn look(task: &Task, record: &Record) -> Result<bool> {
    let (Some(name), Some(worktree)) = (&record.place, &record.worktree) else { return Ok(false) };
    let (config, address) = (Config::load()?, address(task, record)?);
    let said = ask(name, config.place(name)?, false, Request::Fetch(address.clone()), Vec::new())?;
    let Some(Reply::Done(_, what, None)) = said else { return Ok(false) };
    let Some(branch) = fetched_branch(&what) else { return Ok(false) };
    let far = link::git_url(name, &address.key)?;
    worktree.fetch_far(&far, branch).map(|it| it.is_some())
}

/// Asks a place one thing over a connection of its own; `None` if it does not answer.
fn ask(
    name: &str,
    entry: &PlaceEntry,
    sends: bool,
    request: Request,
    files: Files,
) -> Result<Option<Reply>> {
    let _watch = Watch::new(&[SIGUSR1])?;
    let (channel, _transport) = connect(name, entry, sends)?;
    channel.send(request, files);
    Ok(channel.incoming.recv_timeout(SILENCE).ok().map(|(reply, _)| reply))
}

/// Opens a transport for messages. The caller watches SIGUSR1. `sends` says whether this program may be sent.
fn connect(
    name: &str,
    entry: &PlaceEntry,
    sends: bool,
) -> Result<(Channel<Request, Reply>, Transport)> {
    let mut transport = Transport::open(name, entry, ["serve", "-"], sends)?;
    let (from, to) = transport.pipes()?;
    Ok((Channel::start(from, to), transport))
}

/// Returns true if a text can be the key of a repository.
fn is_key(key: &str) -> bool {
    key.len() < 80 && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}
