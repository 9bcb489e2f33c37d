//! The far end of a connection to a place: tells of the tasks there, and carries out what the person
//! decided by running the ordinary helpers. It decides nothing, and its death ends nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::consts::SIGUSR1;

use crate::fault;
use crate::files::{self, Lock};
use crate::git::{make_receiver, set_head};
use crate::place::check::look_here;
use crate::place::link::{Channel, Files, LONGEST_FILE, Message, send};
use crate::place::{
    Facts, LONGEST_LOG, NO_COMMITS, Reply, Request, SILENCE, TaskAddress, attempt_facts, hash_of,
    is_mirrored, parse_address,
};
use crate::process::{Watch, worker_helper};
use crate::project::Project;
use crate::task::{State, Task};
use crate::text::lossy;
use crate::worker::slurm::Looks;
use crate::worker::supervise;

/// How often everything is looked at without an event.
const LOOK: Duration = Duration::from_secs(1);

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
                    take(places, message, &mut followed, (&channel, refused.as_ref()))?;
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
            if let Some(message) = it.news(&address.id)? {
                channel.send(message)?;
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
    message: Message<Request>,
    followed: &mut BTreeMap<TaskAddress, Followed>,
    (channel, refused): (&Channel<Reply, Request>, Option<&String>),
) -> Result<()> {
    let Message { head, files } = message;
    let places = places.to_owned();
    match head {
        Request::Ping => return channel.send(Reply::Pong),
        Request::Follow(address, have, log) => {
            let task = place_of(&places, &address).and_then(|(_, project)| {
                let task = project.task(&parse_address(&address)?);
                Ok(Some(task).filter(Task::was_dispatched))
            });
            match task.ok().flatten() {
                Some(task) => {
                    let sent = have.into_iter().map(|(name, hash)| (name, (hash, None))).collect();
                    let log_sent = Instant::now();
                    followed.insert(address, Followed { task, sent, facts: None, log, log_sent });
                }
                None => channel.send(Reply::Absent(address.id))?,
            }
        }
        head => {
            if let (Some(why), Some((id, what))) = (refused, subject(&head))
                && is_decision(&head)
            {
                return channel.send(Reply::Done(id, what, Some(why.clone())));
            }
            let out = channel.sender();
            std::thread::spawn(move || answer(&places, head, files, &out));
        }
    }
    Ok(())
}

/// The task or repository of a request and the name that its answer repeats; `None` for a request that has
/// another answer.
fn subject(head: &Request) -> Option<(String, String)> {
    let of = |address: &TaskAddress, what: &str| Some((address.id.clone(), what.into()));
    match head {
        Request::Repository(key, _) => Some((key.clone(), "repository".into())),
        Request::Start(address, ..) => of(address, "start"),
        Request::Answer(address, name) => of(address, &format!("answer/{name}")),
        Request::Note(address, name) => of(address, &format!("note/{name}")),
        Request::Stop(address, _) => of(address, "stop"),
        Request::Resume(address, ..) => of(address, "resume"),
        Request::Fetch(address) => of(address, "fetch"),
        Request::Check(_) | Request::Follow(..) | Request::Ping => None,
    }
}

/// Returns true for a request that carries out what the person decided.
fn is_decision(head: &Request) -> bool {
    use Request::{Answer, Note, Resume, Start, Stop};
    matches!(head, Start(..) | Answer(..) | Note(..) | Stop(..) | Resume(..))
}

/// Carries out a request that may take time.
fn answer(places: &Path, head: Request, files: Files, out: &Sender<Vec<u8>>) {
    let text = |at: usize| files.get(at).map(|it| lossy(it.1.clone())).unwrap_or_default();
    let (named, mut result_name) = (subject(&head), None);
    let result = match head {
        Request::Check(name) => {
            let lines = look_here(name.as_deref(), &text(0));
            return drop(send(out, Reply::Checked(lines).into()));
        }
        Request::Repository(key, author) => {
            let address = TaskAddress { key, id: "x".into() };
            parse_address(&address)
                .and_then(|_| make_receiver(&repository(places, &address.key), &author))
        }
        Request::Start(address, stops, base, arguments) => {
            start(places, &address, (stops, &base), arguments, [0, 1, 2].map(text))
        }
        Request::Answer(address, name) => {
            answer_question(places, &address, &name, &text(0), &text(1))
        }
        Request::Note(address, name) => note(places, &address, &name, &text(0)),
        Request::Stop(address, stops) => stop(places, &address, stops),
        Request::Resume(address, after, arguments) => {
            let resumed = resume(places, &address, after, &arguments, &text(0));
            let last = || Some(task_of(places, &address).ok()?.last_attempt()?.number);
            // Nothing is left to do once the person's items were skipped.
            if resumed.is_ok() && last() == Some(after) {
                result_name = Some("skip".into());
            }
            resumed
        }
        Request::Fetch(address) => {
            let fetched = task_of(places, &address).and_then(|task| {
                let record = task.record()?.context("no record")?;
                let worktree = record.worktree.context("no worktree")?;
                worktree.fetch()?.context(NO_COMMITS)?;
                Ok(worktree.branch)
            });
            let branch = fetched.as_ref().map_or("", String::as_str);
            result_name = Some(format!("fetch {branch}"));
            fetched.map(drop)
        }
        Request::Ping | Request::Follow(..) => return,
    };
    let Some((id, what)) = named else { return };
    let what = result_name.unwrap_or(what);
    let error = result.err().map(|error| format!("{error:#}"));
    let _ = send(out, Reply::Done(id, what, error).into());
}

fn repository(places: &Path, key: &str) -> PathBuf {
    places.join(format!("{key}.git"))
}

/// The repository of a task and its project.
fn place_of(places: &Path, address: &TaskAddress) -> Result<(PathBuf, Project)> {
    parse_address(address)?;
    let repository =
        repository(places, &address.key).canonicalize().context("no such repository")?;
    let project = Project::find(&repository)?;
    Ok((repository, project))
}

fn task_of(places: &Path, address: &TaskAddress) -> Result<Task> {
    place_of(places, address)?.1.existing_task(&parse_address(address)?)
}

/// A helper in the repository of a task, with the task's config.
fn helper(task: &Task, name: &str) -> Result<Command> {
    let mut command = Command::new(worker_helper()?.with_file_name(name));
    command.current_dir(task.root().context("a task without a project")?);
    command.env("DISPATCH_CONFIG", task.config_path());
    Ok(command)
}

/// Runs a helper for a task.
fn run_helper(
    places: &Path,
    address: &TaskAddress,
    helper_name: &str,
    arguments: &[&str],
    input: &str,
) -> Result<()> {
    let (_, project) = place_of(places, address)?;
    let mut command = helper(&project.task(&parse_address(address)?), helper_name)?;
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
    let said = said.trim_start_matches(&format!("{helper_name}: ")).trim_end();
    bail!("{}", said.get(..2000).unwrap_or(said))
}

/// The file that says how often a task was stopped that had not started.
fn stops_path(repository: &Path, address: &TaskAddress) -> PathBuf {
    repository.join(format!("stopped-{}", address.id))
}

/// Stops a task, or keeps it from being started by a request that is still under way.
fn stop(places: &Path, address: &TaskAddress, stops: u32) -> Result<()> {
    if !repository(places, &address.key).exists() {
        return Ok(());
    }
    let (repository, project) = place_of(places, address)?;
    let _lock = Lock::take(&repository.join("dispatch.lock"), LOCK_LIMIT)?;
    if project.task(&parse_address(address)?).was_dispatched() {
        return run_helper(places, address, "dispatch-reconcile", &["stop", &address.id], "");
    }
    files::publish(&stops_path(&repository, address), stops.to_string().as_bytes())
}

/// Dispatches a task once, at a commit that has come.
fn start(
    places: &Path,
    address: &TaskAddress,
    (stops, base): (u32, &str),
    mut arguments: Vec<String>,
    [plan, config, sparse]: [String; 3],
) -> Result<()> {
    ensure!(sparse.len() <= LONGEST_SPARSE, "the checkout has too many sparse patterns");
    let (repository, project) = place_of(places, address)?;
    let _lock = Lock::take(&repository.join("dispatch.lock"), LOCK_LIMIT)?;
    let task = project.task(&parse_address(address)?);
    // The answer to an earlier request may have been lost.
    if task.was_dispatched() {
        return Ok(());
    }
    let stopped = files::read(&stops_path(&repository, address))?;
    if stopped.is_some_and(|it| it.parse().is_ok_and(|it: u32| it >= stops)) {
        bail!("it was stopped before it started");
    }
    set_head(&repository, base)?;
    files::create_private_directory(task.state_dir())?;
    files::publish(&task.config_path(), config.as_bytes())?;
    if !sparse.is_empty() {
        files::publish(&task.sparse_path(), sparse.as_bytes())?;
    }
    fault::point("place", "starting");
    arguments.extend([address.id.as_str(), "--plan", "-"].map(Into::into));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let started = run_helper(places, address, "dispatch-spawn", &arguments, &plan);
    // Once the task is there, its own records say how it goes on.
    if task.was_dispatched() { Ok(()) } else { started }
}

/// Resumes a task unless it was resumed since.
fn resume(
    places: &Path,
    address: &TaskAddress,
    after: u32,
    arguments: &[String],
    config: &str,
) -> Result<()> {
    let task = task_of(places, address)?;
    let _lock = Lock::take(&task.state_dir().join("resume.lock"), LOCK_LIMIT)?;
    if task.last_attempt().is_some_and(|it| it.number > after) {
        return Ok(());
    }
    files::publish(&task.config_path(), config.as_bytes())?;
    let own = [address.id.as_str(), "--resume"].into_iter();
    let arguments: Vec<&str> = own.chain(arguments.iter().map(String::as_str)).collect();
    run_helper(places, address, "dispatch-spawn", &arguments, "")
}

/// Answers a question that is still the one that the person saw.
fn answer_question(
    places: &Path,
    address: &TaskAddress,
    name: &str,
    question: &str,
    answer: &str,
) -> Result<()> {
    let task = task_of(places, address)?;
    if task.answers()?.iter().any(|(it, _)| it == name) {
        return Ok(());
    }
    let asked = task.side().ipc().question(name)?.map(|it| it.text).unwrap_or_default();
    if asked.trim_end() != question.trim_end() {
        bail!("changed");
    }
    let target = format!("{}/{name}", address.id);
    run_helper(places, address, "dispatch-monitor", &["--answer", &target, "-"], answer)
}

/// Notes a text, once under its number.
fn note(places: &Path, address: &TaskAddress, name: &str, text: &str) -> Result<()> {
    let task = task_of(places, address)?;
    if task.notes()?.iter().any(|(it, _)| it == name) {
        return Ok(());
    }
    run_helper(places, address, "dispatch-reconcile", &["note", &address.id, "-"], text)
}

impl Followed {
    /// A message with everything that the other end does not know yet; `None` if that is nothing.
    fn news(&mut self, id: &str) -> Result<Option<Message<Reply>>> {
        // The facts come first, so that the files are at least as new.
        let Ok(mut facts) = facts(&self.task) else { return Ok(None) };
        let (files, gone, is_cut) = self.changed_files();
        if is_cut {
            facts = self.facts.clone().unwrap_or(Facts { open: true, ..Facts::default() });
        }
        let last = facts.attempts.last().map_or(0, |it| it.number);
        let log = self.log_piece(last, !facts.open);
        if files.is_empty()
            && gone.is_empty()
            && log.is_none()
            && self.facts.as_ref() == Some(&facts)
        {
            return Ok(None);
        }
        self.facts = Some(facts.clone());
        facts.gone = gone;
        let place = log.as_ref().map(|(place, _)| *place);
        let log = log.map(|(_, bytes)| ("log".to_owned(), bytes));
        let head = Reply::Facts(id.into(), Box::new(facts), place);
        Ok(Some(Message { head, files: files.into_iter().chain(log).collect() }))
    }

    /// The files that changed, the names of those that are gone, and whether more follow.
    fn changed_files(&mut self) -> (Files, Vec<String>, bool) {
        let paths = mirrored_files(&self.task);
        let gone = self.sent.keys().filter(|it| !paths.contains_key(*it)).cloned();
        let gone: Vec<String> = gone.collect();
        gone.iter().for_each(|name| drop(self.sent.remove(name)));
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
            let hash = hash_of(&text);
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

/// The files of a task that are mirrored, by name.
fn mirrored_files(task: &Task) -> BTreeMap<String, PathBuf> {
    let side = task.side().directory();
    let listed = |below: &str| {
        let directory = if below.is_empty() { side.to_owned() } else { side.join(below) };
        let names = files::entries(&directory).unwrap_or_default().into_iter();
        let names = names.filter_map(|(name, _)| name.into_string().ok()).collect::<Vec<_>>();
        let prefix = if below.is_empty() { String::new() } else { format!("{below}/") };
        names.into_iter().map(move |name| (format!("{prefix}{name}"), directory.join(name)))
    };
    let attempts = task.attempts().unwrap_or_default().into_iter();
    let attempts = attempts.map(|it| (format!("attempts/{}/plan.md", it.number), it.plan_path()));
    let all = ["", "ipc", "tells"].into_iter().flat_map(listed).chain(attempts);
    all.filter(|(name, path)| is_mirrored(name) && path.is_file()).collect()
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
    let told = |name: &String| task.is_told(name);
    let answers = task.answers()?.into_iter().map(|(name, _)| (told(&name), name));
    let mut attempts = task.attempts()?;
    let older = attempts.len().saturating_sub(200);
    Ok(Facts {
        attempts: attempts.drain(older..).map(|it| attempt_facts(&it)).collect::<Result<_>>()?,
        wait: task.wait()?,
        open,
        answers: answers.map(|(told, name)| (name, told)).collect(),
        notes: task.notes()?.into_iter().map(|(name, _)| name).collect(),
        gone: Vec::new(),
        tip: view.record.worktree.as_ref().and_then(|it| it.head().ok()?.commit),
    })
}
