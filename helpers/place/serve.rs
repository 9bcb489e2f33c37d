//! The far end of a connection to a place: tells of the tasks there, and carries out what the person
//! decided by running the ordinary helpers. It decides nothing, and its death ends nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::SIGUSR1;

use crate::fault;
use crate::files::{self, Lock};
use crate::git::{make_receiver, set_head};
use crate::ids::long_hash;
use crate::place::check::look_here;
use crate::place::link::{Channel, Files, LONGEST_FILE, Message};
use crate::place::mirror::LOOK;
use crate::place::{
    AttemptFacts, Facts, LONGEST_LOG, NO_COMMITS, Reply, Request, SILENCE, TaskAddress, is_key,
    mirrored_files,
};
use crate::process::{Watch, worker_helper};
use crate::project::Project;
use crate::task::{Attempt, State, Task};
use crate::text::{collect, lossy};
use crate::worker::slurm::Looks;
use crate::worker::supervise;

/// How many bytes of a log are sent at once, and how often.
const LOG_PIECE: u64 = 256 << 10;
const LOG_PAUSE: Duration = Duration::from_millis(500);

/// How many bytes the sparse patterns of a checkout may have.
const LONGEST_SPARSE: usize = 1 << 20;

/// After how many bytes of files the others come in the next message.
const MOST_AT_ONCE: u64 = 32 << 20;

/// How long a command waits for another one in the same repository.
const LOCK_LIMIT: Duration = Duration::from_secs(60);

/// A task that the other end follows.
struct Followed {
    task: Task,
    /// The hash of each file as it was sent, and the file's time and size when it was read.
    sent: BTreeMap<String, (String, Option<(SystemTime, u64)>)>,
    facts: Option<Facts>,
    log: (u32, u64),
    log_sent: Instant,
}

/// Runs as the far end, with repositories below `places`, until the connection ends. `refused` says why
/// nothing is to be decided over it: a model may have called this.
pub fn run(places: &Path, refused: Option<String>) -> Result<()> {
    let mut watch = Watch::new(&[SIGUSR1])?;
    let channel: Channel<Reply, Request> = Channel::start(std::io::stdin(), std::io::stdout());
    let mut followed: BTreeMap<TaskAddress, Followed> = BTreeMap::new();
    let (mut heard, mut looks) = (Instant::now(), Looks::default());
    loop {
        loop {
            match channel.incoming.try_recv() {
                Ok(message) => {
                    heard = Instant::now();
                    take(places, message, &mut followed, (&channel, refused.as_ref()));
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    channel.finish();
                    return Ok(());
                }
            }
        }
        // The other machine may be gone without a word.
        if heard.elapsed() > SILENCE {
            return Ok(());
        }
        looks.look(&followed.values().map(|it| &it.task).collect::<Vec<_>>());
        for (address, it) in &mut followed {
            watch_task(&mut watch, &it.task);
            if let Some((head, files)) = it.news(&address.id) {
                channel.send(head, files);
            }
        }
        watch.wait_for_event(LOOK)?;
    }
}

fn watch_task(watch: &mut Watch, task: &Task) {
    let side = task.side();
    let own = [task.state_dir().into(), task.attempts_dir(), side.directory().into()];
    let more = [side.ipc().directory().into(), side.tells_dir()];
    let last = task.last_attempt().map(|it| it.directory().to_path_buf());
    own.into_iter().chain(more).chain(last).for_each(|it: PathBuf| {
        watch.add_directory(&it);
    });
}

/// Carries out a request, in a thread of its own if that may take time.
fn take(
    places: &Path,
    (head, files): Message<Request>,
    followed: &mut BTreeMap<TaskAddress, Followed>,
    (channel, refused): (&Channel<Reply, Request>, Option<&String>),
) {
    let say = |reply| channel.send(reply, Files::new());
    match head {
        Request::Ping => say(Reply::Pong),
        Request::Follow(address, have, log) => {
            let task = project(places, &address.key)
                .and_then(|project| Ok(project.task(&address.id.parse()?)));
            match task.ok().filter(Task::was_dispatched) {
                Some(task) => {
                    let sent = collect(have.into_iter().map(|(name, hash)| (name, (hash, None))));
                    let log_sent = Instant::now();
                    followed.insert(address, Followed { task, sent, facts: None, log, log_sent });
                }
                None => say(Reply::Absent(address.id)),
            }
        }
        head => match (refused, head.subject()) {
            // All others carry out what the person decided.
            (Some(why), Some((id, what))) if !["repository", "fetch"].contains(&&*what) => {
                say(Reply::Done(id, what, Some(why.clone())));
            }
            _ => {
                let (places, out) = (places.to_owned(), channel.out.clone());
                std::thread::spawn(move || {
                    answer(&places, head, files).map(|reply| out.send((reply, Files::new())))
                });
            }
        },
    }
}

/// Carries out a request that may take time.
fn answer(places: &Path, head: Request, files: Files) -> Option<Reply> {
    let texts: Vec<String> = files.into_iter().map(|(_, text)| lossy(text)).collect();
    if let Request::Check(name) = &head {
        return Some(Reply::Checked(look_here(name.as_deref(), texts.first()?)));
    }
    let (id, what) = head.subject()?;
    Some(match carry_out(places, head, &texts) {
        Ok(other) => Reply::Done(id, other.unwrap_or(what), None),
        Err(error) => Reply::Done(id, what, Some(format!("{error:#}"))),
    })
}

/// Carries out a request about a repository or a task, once. Returns what was done, if that is not what the
/// request says.
fn carry_out(places: &Path, head: Request, texts: &[String]) -> Result<Option<String>> {
    let text = |at: usize| texts.get(at).map_or("", String::as_str);
    let existing = |it: &TaskAddress| project(places, &it.key)?.existing_task(&it.id.parse()?);
    match head {
        Request::Repository(key, author) => make_receiver(&repository(places, &key)?, &author)?,
        Request::Start(address, stops, base, arguments) => {
            start(places, &address, (stops, &base), &arguments, [text(0), text(1), text(2)])?;
        }
        Request::Answer(address, name) => {
            let task = existing(&address)?;
            if task.answers()?.iter().any(|(it, _)| *it == name) {
                return Ok(None);
            }
            // The question has to be the one that the person saw.
            let asked = task.side().ipc().question(&name)?.map(|it| it.text).unwrap_or_default();
            ensure!(asked.trim_end() == text(0).trim_end(), "changed");
            let target = format!("{}/{name}", address.id);
            run_helper(&task, "dispatch-monitor", &["--answer", &target, "-"], text(1))?;
        }
        Request::Note(address, name) => {
            let task = existing(&address)?;
            if !task.notes()?.iter().any(|(it, _)| *it == name) {
                run_helper(&task, "dispatch-reconcile", &["note", &address.id, "-"], text(0))?;
            }
        }
        Request::Stop(address, stops) => {
            if !repository(places, &address.key)?.exists() {
                return Ok(None);
            }
            let project = project(places, &address.key)?;
            let _lock = Lock::take(&project.root.join("dispatch.lock"), LOCK_LIMIT)?;
            let task = project.task(&address.id.parse()?);
            match task.was_dispatched() {
                true => run_helper(&task, "dispatch-reconcile", &["stop", &address.id], "")?,
                // A request to start it may still be under way.
                false => {
                    files::publish(&stops_path(&project, &task), stops.to_string().as_bytes())?
                }
            }
        }
        Request::Resume(address, after, arguments) => {
            let task = existing(&address)?;
            let _lock = Lock::take(&task.state_dir().join("resume.lock"), LOCK_LIMIT)?;
            let last = || task.last_attempt().map(|it| it.number);
            if last().is_none_or(|it| it <= after) {
                files::publish(&task.config_path(), text(0).as_bytes())?;
                let own = [&*address.id, "--resume"].into_iter();
                let arguments: Vec<_> = own.chain(arguments.iter().map(String::as_str)).collect();
                run_helper(&task, "dispatch-spawn", &arguments, "")?;
                // Nothing is left to do once the person's items were skipped.
                return Ok((last() == Some(after)).then(|| "skip".into()));
            }
        }
        Request::Fetch(address) => {
            let record = existing(&address)?.record()?.context("no record")?;
            let worktree = record.worktree.context("no worktree")?;
            worktree.fetch()?.context(NO_COMMITS)?;
            return Ok(Some(format!("fetch {}", worktree.branch)));
        }
        Request::Check(_) | Request::Follow(..) | Request::Ping => {}
    }
    Ok(None)
}

/// The repository of a key that came from another machine.
fn repository(places: &Path, key: &str) -> Result<PathBuf> {
    ensure!(is_key(key), "no such repository");
    Ok(places.join(format!("{key}.git")))
}

fn project(places: &Path, key: &str) -> Result<Project> {
    Project::find(&repository(places, key)?.canonicalize().context("no such repository")?)
}

/// A helper in the repository of a task, with the task's config.
fn helper(task: &Task, name: &str) -> Result<Command> {
    let mut command = Command::new(worker_helper()?.with_file_name(name));
    command.current_dir(task.root().context("a task without a project")?);
    command.env("DISPATCH_CONFIG", task.config_path());
    Ok(command)
}

/// Runs a helper for a task.
fn run_helper(task: &Task, name: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut command = helper(task, name)?;
    command.args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start a helper")?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    // A helper that does not read its input says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let ended = child.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    let said = lossy(ended.stderr);
    let said = said.trim_start_matches(&format!("{name}: ")).trim_end();
    bail!("{}", said.get(..2000).unwrap_or(said))
}

/// The file that says how often a task was stopped that had not started.
fn stops_path(project: &Project, task: &Task) -> PathBuf {
    project.root.join(format!("stopped-{}", task.id()))
}

/// Dispatches a task once, at a commit that has come.
fn start(
    places: &Path,
    address: &TaskAddress,
    (stops, base): (u32, &str),
    arguments: &[String],
    [plan, config, sparse]: [&str; 3],
) -> Result<()> {
    ensure!(sparse.len() <= LONGEST_SPARSE, "the checkout has too many sparse patterns");
    let project = project(places, &address.key)?;
    let _lock = Lock::take(&project.root.join("dispatch.lock"), LOCK_LIMIT)?;
    let task = project.task(&address.id.parse()?);
    // The answer to an earlier request may have been lost.
    if task.was_dispatched() {
        return Ok(());
    }
    let stopped = files::read(&stops_path(&project, &task))?;
    if stopped.is_some_and(|it| it.parse().is_ok_and(|it: u32| it >= stops)) {
        bail!("it was stopped before it started");
    }
    set_head(&project.root, base)?;
    files::create_private_directory(task.state_dir())?;
    files::publish(&task.config_path(), config.as_bytes())?;
    if !sparse.is_empty() {
        files::publish(&task.sparse_path(), sparse.as_bytes())?;
    }
    fault::point("place", "starting");
    let own = [&*address.id, "--plan", "-"];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(own).collect();
    let started = run_helper(&task, "dispatch-spawn", &arguments, plan);
    // Once the task is there, its own records say how it goes on.
    if task.was_dispatched() { Ok(()) } else { started }
}

impl Followed {
    /// A message with everything that the other end does not know yet; `None` if that is nothing.
    fn news(&mut self, id: &str) -> Option<Message<Reply>> {
        // The facts come first, so that the files are at least as new.
        let mut facts = facts(&self.task).ok()?;
        let (files, gone, is_cut) = self.changed_files();
        if is_cut {
            facts = self.facts.clone().unwrap_or(Facts { open: true, ..Facts::default() });
        }
        let last = facts.attempts.last().map_or(0, |it| it.number);
        let log = self.log_piece(last, !facts.open);
        let is_same = self.facts.as_ref() == Some(&facts);
        if is_same && files.is_empty() && gone.is_empty() && log.is_none() {
            return None;
        }
        self.facts = Some(facts.clone());
        facts.gone = gone;
        let (place, log) = log.map(|(place, bytes)| (place, ("log".to_owned(), bytes))).unzip();
        let facts = serde_json::to_value(&facts).ok()?;
        let head = Reply::Facts(id.into(), facts, place);
        Some((head, files.into_iter().chain(log).collect()))
    }

    /// The files that changed, the names of those that are gone, and whether more follow.
    fn changed_files(&mut self) -> (Files, Vec<String>, bool) {
        let paths = mirrored_files(&self.task);
        let gone = self.sent.keys().filter(|it| !paths.contains_key(*it)).cloned();
        let gone: Vec<String> = gone.collect();
        self.sent.retain(|name, _| paths.contains_key(name));
        let (mut changed, mut size, mut is_cut) = (Vec::new(), 0, false);
        for (name, path) in paths {
            let meta = path.symlink_metadata().ok();
            let meta = meta.and_then(|it| Some((it.modified().ok()?, it.len())));
            let known = self.sent.get(&name);
            // Equal times may hide a change within one tick of the clock.
            let is_old = meta.is_some_and(|it| it.0.elapsed().is_ok_and(|age| age > 2 * LOOK));
            if is_old && known.is_some_and(|it| it.1 == meta) {
                continue;
            }
            if size > MOST_AT_ONCE {
                is_cut = true;
                break;
            }
            let Ok(Some(text)) = files::read_start(&path, LONGEST_FILE) else { continue };
            let hash = long_hash(&text);
            if known.is_none_or(|it| it.0 != hash) {
                size += text.len() as u64;
                changed.push((name.clone(), text));
            }
            self.sent.insert(name, (hash, meta));
        }
        (changed, gone, is_cut)
    }

    /// The next piece of the last attempt's log, with its attempt and offset.
    fn log_piece(&mut self, last: u32, is_over: bool) -> Option<((u32, u64), Vec<u8>)> {
        if last != self.log.0 {
            self.log = (last, 0);
        }
        if last == 0 || !is_over && self.log_sent.elapsed() < LOG_PAUSE {
            return None;
        }
        let path = self.task.attempt(last).log_path();
        let length = path.symlink_metadata().ok().filter(|it| it.is_file())?.len();
        // A log that was trimmed begins anew.
        let from = if length < self.log.1 { 0 } else { self.log.1 };
        let end = length.min(LONGEST_LOG);
        if end <= from {
            return None;
        }
        let bytes = files::tail(&path, length - from).ok()?;
        let bytes = bytes[..bytes.len().min((end - from).min(LOG_PIECE) as usize)].to_vec();
        (self.log.1, self.log_sent) = (from + bytes.len() as u64, Instant::now());
        Some(((last, from), bytes))
    }
}

/// The facts of a task, after what a crash left was repaired.
fn facts(task: &Task) -> Result<Facts> {
    let mut view = task.view()?;
    let is_unseen = view.state == State::Lost && view.exit.is_none();
    if is_unseen || supervise::is_abandoned(&view) || view.has_late_answer() {
        let mut command = helper(task, "dispatch-reconcile")?;
        let _ = command.arg("status").stdin(Stdio::null()).output();
        view = task.view()?;
    }
    let open = task.is_supervised()?
        || !view.processes.is_empty()
        || view.state.is_waiting()
        || view.is_checking()
        // A dispatch that just claimed the task starts its supervisor next.
        || view.attempt.is_none() && view.state != State::Stopped;
    let answers = task.answers()?.into_iter().map(|(name, _)| (task.is_told(&name), name));
    let attempt_facts = |it: Attempt| -> Result<AttemptFacts> {
        let (exit, gate, silent) = (it.exit()?, it.gate()?, it.silent_since()?);
        Ok(AttemptFacts { number: it.number, exit, gate, silent })
    };
    let mut attempts = task.attempts()?;
    let older = attempts.len().saturating_sub(200);
    Ok(Facts {
        attempts: attempts.drain(older..).map(attempt_facts).collect::<Result<_>>()?,
        wait: task.wait()?,
        open,
        answers: collect(answers.map(|(told, name)| (name, told))),
        notes: task.notes()?.into_iter().map(|(name, _)| name).collect(),
        gone: Vec::new(),
        tip: view.record.worktree.as_ref().and_then(|it| it.head().ok()?.commit),
    })
}
