//! The mirror of a place: one process here, for as long as tasks are open or to be stopped there. It sends
//! what the person decided until the place has it, and copies what the place says into the tasks.
//!
//! Invariant: everything that is to be sent stands in files, so a mirror that dies loses nothing. A task
//! is over only when the place has said so and its branch was fetched.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::path::Path;
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use signal_hook::consts::{SIGTERM, SIGUSR1};

use crate::config::{Config, PlaceEntry};
use crate::dirs;
use crate::error::{Exit, exit_code};
use crate::fault;
use crate::files::{self, Lock};
use crate::git;
use crate::ids::{now, random_hex};
use crate::news::notify;
use crate::place::check::far_config;
use crate::place::copy::renumbered;
use crate::place::link::{Channel, Message, Transport, git_url};
use crate::place::{
    Abandoned, Demand, Facts, PULSE, Reply, Request, SILENCE, TaskAddress, address, arguments,
    connect, entry, index, lock_path,
};
use crate::process::{Watch, Woken};
use crate::task::{Record, Remote, Task, Wait};
use crate::text::collect;
use crate::worker::{queue, supervise};

/// How often each end looks at everything without an event.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// The pause after the first failed connection, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After how long a connection counts as good, so that the next pause is the first again.
const LASTS: Duration = Duration::from_secs(30);

/// The pause before a request that a place refused is sent again.
const REFUSED: Duration = Duration::from_secs(5);

/// How often sending the code is tried.
const TRIES: u32 = 3;

/// A task at the place.
pub(super) struct Mirrored {
    pub(super) task: Task,
    pub(super) address: TaskAddress,
    /// Held in place of a supervisor.
    _run_lock: Lock,
    pub(super) remote: Remote,
    /// The last facts that came over this connection.
    pub(super) facts: Option<Facts>,
    /// The requests that were sent over this connection, and when.
    pub(super) asked: BTreeMap<String, Instant>,
    /// The mirrored files with their sizes and hashes.
    pub(super) files: BTreeMap<String, (u64, String)>,
    /// The branch in the repository there with the commits of the ended task, or why there is none.
    pub(super) fetched: Option<Result<String, String>>,
    /// The commit of the worktree that was fetched last while the task is open, and the thread that fetches
    /// another one.
    pub(super) commits_here: Option<String>,
    pub(super) fetching: Option<JoinHandle<Option<String>>>,
    /// True if the words of the last attempt are to be frozen again, because the person skipped items.
    pub(super) freezes: bool,
    /// How often the code could not be sent.
    pub(super) failures: u32,
    pub(super) created: String,
}

/// The connection to the place.
pub(super) struct Connection {
    pub(super) channel: Channel<Request, Reply>,
    began: Instant,
    heard: Instant,
    pinged: Instant,
    /// The keys of the repositories that are there.
    repositories: BTreeSet<String>,
    /// The repositories that were asked for, and the ids of the abandoned tasks that are to be stopped.
    asked: BTreeMap<String, Instant>,
    _transport: Transport,
}

struct Mirror {
    name: String,
    entry: PlaceEntry,
    watch: Watch,
    /// The earlier task is first, so that it begins first where there is no place for all.
    tasks: Vec<Mirrored>,
    connection: Option<Connection>,
    failures: u32,
    next_try: Instant,
    unreachable: Option<String>,
    /// [`Mirrored::decisions`] of all tasks at the last try.
    decided: usize,
}

/// Runs as the mirror of a place until no task is open or to be stopped there; at once if another one runs.
pub fn run(name: &str) -> Result<()> {
    let lock_path = lock_path(name)?;
    let directory = index()?.join(name);
    loop {
        let Some(lock) = Lock::try_take(&lock_path)? else { return Ok(()) };
        fault::point("mirror", "locked");
        let mut mirror = Mirror {
            name: name.into(),
            entry: Config::load()?.place(name)?.clone(),
            watch: Watch::new(&[SIGUSR1, SIGTERM])?,
            tasks: Vec::new(),
            connection: None,
            failures: 0,
            next_try: Instant::now(),
            unreachable: None,
            decided: 0,
        };
        let ended = mirror.run(&directory);
        drop((mirror, lock));
        // A task may have come after the last look, and its starter have seen the lock.
        if ended? || files::entries(&directory)?.is_empty() && !Abandoned::is_pursued(name)? {
            return Ok(());
        }
    }
}

impl Mirror {
    /// Follows the tasks until none is left; true if a signal came.
    fn run(&mut self, directory: &Path) -> Result<bool> {
        loop {
            self.watch.add_directory(directory);
            self.take_tasks(directory)?;
            if self.tasks.is_empty() && !Abandoned::is_pursued(&self.name)? {
                return Ok(false);
            }
            if self.connection.is_none() {
                self.connect();
            }
            self.hear();
            self.stop_abandoned()?;
            let mut open = self.tasks.iter().filter(|it| it.remote.open).count();
            let mut tasks = std::mem::take(&mut self.tasks);
            tasks.retain_mut(|it| {
                let was_open = usize::from(it.remote.open);
                let kept = self.attend(it, open);
                open = open + usize::from(it.remote.open) - was_open;
                kept.unwrap_or_else(|error| {
                    it.trouble(&self.name, &error);
                    true
                })
            });
            self.tasks = tasks;
            let pause = match &self.connection {
                Some(_) => LOOK,
                None => self.next_try.saturating_duration_since(Instant::now()).min(LOOK),
            };
            if self.watch.wait_for_event(pause)? == Woken::Signal(SIGTERM) {
                return Ok(true);
            }
        }
    }

    /// Takes over the tasks of the index, and lets those go that are over.
    fn take_tasks(&mut self, directory: &Path) -> Result<()> {
        let root = dirs::state_root()?;
        for name in files::entries(directory)? {
            let text = name.to_string_lossy();
            let Some((id, project)) = text.split_once('.') else { continue };
            let state_dir = root.join(project).join(id);
            if self.tasks.iter().any(|it| it.task.state_dir() == state_dir) {
                continue;
            }
            let task = Task::at_state(&state_dir).ok();
            let record = task.as_ref().and_then(|it| it.record().ok().flatten());
            let here = record.filter(|it| it.place.as_ref() == Some(&self.name));
            let (Some(task), Some(record)) = (task, here) else {
                files::remove(&directory.join(&name))?;
                continue;
            };
            let Some(run_lock) = Lock::try_take(&task.run_lock_path())? else { continue };
            let remote = task.remote()?.unwrap_or_default();
            let mut mirrored = Mirrored {
                address: address(&task, &record)?,
                task,
                _run_lock: run_lock,
                remote,
                facts: None,
                asked: BTreeMap::new(),
                files: BTreeMap::new(),
                fetched: None,
                commits_here: None,
                fetching: None,
                freezes: false,
                failures: 0,
                created: record.created,
            };
            mirrored.read_files();
            let at = self.tasks.partition_point(|it| it.created <= mirrored.created);
            self.tasks.insert(at, mirrored);
        }
        Ok(())
    }

    /// Connects to the place if it is time, or the person has decided something since the last try.
    fn connect(&mut self) {
        let decided = self.tasks.iter().map(Mirrored::decisions).sum();
        if Instant::now() < self.next_try && decided <= self.decided {
            return;
        }
        self.decided = decided;
        match connect(&self.name, &self.entry, true) {
            Ok((channel, transport)) => {
                let heard = Instant::now();
                self.connection = Some(Connection {
                    channel,
                    began: heard,
                    heard,
                    pinged: heard,
                    repositories: BTreeSet::new(),
                    asked: BTreeMap::new(),
                    _transport: transport,
                });
            }
            Err(_) => self.lose(),
        }
    }

    /// Has the abandoned tasks stopped, again after a while if the place has refused.
    fn stop_abandoned(&mut self) -> Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        for (_, it) in Abandoned::all(&self.name)? {
            // A task that belongs here was not moved after all.
            let is_own = self.tasks.iter().any(|task| task.address == it.address);
            let asked = connection.asked.get(&it.address.id);
            if !is_own && asked.is_none_or(|since| since.elapsed() > LONGEST_PAUSE) {
                connection.asked.insert(it.address.id.clone(), Instant::now());
                connection.channel.send(Request::Stop(it.address, it.stops), Vec::new());
            }
        }
        Ok(())
    }

    /// Notes that the place does not answer, and when to try again.
    fn lose(&mut self) {
        // A connection that lasted was not a failure.
        let began = self.connection.take().map(|it| it.began);
        if began.is_some_and(|it| it.elapsed() > LASTS) {
            self.failures = 0;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        let pause = fault::limit("DISPATCH_RECONNECT_MS", pause);
        // Many mirrors must not come back in one moment.
        let random = random_hex().ok().and_then(|it| u32::from_str_radix(&it[..4], 16).ok());
        let pause = pause.mul_f64(0.75 + f64::from(random.unwrap_or_default()) / 131_072.0);
        self.failures += 1;
        self.next_try = Instant::now() + pause;
        if self.failures > 1 || self.unreachable.is_some() {
            self.unreachable.get_or_insert_with(now);
        }
        for it in &mut self.tasks {
            it.facts = None;
            it.asked.clear();
        }
    }

    /// Takes what the place said, and keeps the connection alive.
    fn hear(&mut self) {
        loop {
            let Some(connection) = &mut self.connection else { return };
            let message = match connection.channel.incoming.try_recv() {
                Ok(message) => message,
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return self.lose(),
            };
            connection.heard = Instant::now();
            self.take(message);
        }
        let Some(connection) = &mut self.connection else { return };
        if connection.heard.elapsed() > SILENCE {
            return self.lose();
        }
        if connection.pinged.elapsed() > PULSE {
            connection.pinged = Instant::now();
            connection.channel.send(Request::Ping, Vec::new());
        }
    }

    fn take(&mut self, (head, files): Message<Reply>) {
        let (Reply::Facts(id, ..) | Reply::Absent(id) | Reply::Done(id, ..)) = &head else {
            return;
        };
        if let Some(it) = self.tasks.iter_mut().find(|it| it.address.id == *id) {
            let taken = match head {
                Reply::Facts(_, facts, log) => it.apply(facts, log, files),
                Reply::Done(_, what, error) => it.set_done(&what, error),
                _ => it.set_absent(),
            };
            return taken.unwrap_or_else(|error| it.trouble(&self.name, &error));
        }
        let (Reply::Done(id, what, error), Some(connection)) = (head, &mut self.connection) else {
            return;
        };
        match (what.as_str(), error) {
            ("repository", None) => {
                self.unreachable = None;
                connection.repositories.insert(id);
            }
            // The place could not make it, which is tried again.
            ("repository", Some(error)) => {
                connection.asked.remove(&id);
                for it in self.tasks.iter_mut().filter(|it| it.address.key == id) {
                    if !it.remote.open && it.count_failure(&Error::msg(error.clone())) {
                        let _ = it.fail(&error);
                    }
                }
            }
            ("stop", None) if connection.asked.contains_key(&id) => {
                self.unreachable = None;
                let _ = Abandoned::directory(&self.name).map(|it| files::remove(&it.join(id)));
            }
            _ => {}
        }
    }

    /// Sends what a task needs, while `open` tasks may run at the place. False if it is over, and let go.
    fn attend(&mut self, it: &mut Mirrored, open: usize) -> Result<bool> {
        let (name, unreachable) = (&self.name, self.unreachable.clone());
        let record = it.task.record().ok().flatten();
        let Some(record) = record.filter(|it| it.place.as_ref() == Some(name)) else {
            return it.let_go(name);
        };
        let state_dir = it.task.state_dir();
        for directory in [state_dir, &it.task.answers_dir(), &state_dir.join("notes")] {
            self.watch.add_directory(directory);
        }
        if it.asked.get("pause").is_some_and(|since| since.elapsed() < REFUSED) {
            return Ok(true);
        }
        if it.remote.unreachable != unreachable {
            it.remote.unreachable = unreachable.clone();
            it.save()?;
        }
        if !it.remote.open && Demand::of(&it.task)?.is_some() {
            it.remote.open = true;
            it.save()?;
        }
        if !it.remote.open {
            let is_new = !it.remote.sent && it.remote.error.is_none();
            if record.stop || !is_new {
                return it.let_go(name);
            }
            let limit = Config::load().ok().and_then(|it| it.place(name).ok()?.max_workers);
            let wait = match queue::predecessors(&it.task, &record, &mut self.watch)? {
                Some(wait) => Some(wait),
                None if unreachable.is_some() && self.connection.is_none() => {
                    Some(Wait::Place(name.clone(), unreachable))
                }
                None => limit.filter(|limit| open >= *limit).map(|limit| Wait::Queued { limit }),
            };
            let shown = wait.clone().unwrap_or_else(|| Wait::Place(name.clone(), None));
            if it.task.wait()?.as_ref() != Some(&shown) {
                it.task.set_wait(Some(&shown))?;
            }
            if wait.is_some() {
                return Ok(true);
            }
        }
        let Some(connection) = &mut self.connection else { return Ok(true) };
        if !connection.repositories.contains(&it.address.key) {
            if connection.asked.insert(it.address.key.clone(), Instant::now()).is_none() {
                let own = record.worktree.as_ref().context("a task without a worktree")?;
                let author = git::author(&own.repository)?;
                let request = Request::Repository(it.address.key.clone(), author);
                connection.channel.send(request, Vec::new());
            }
            return Ok(true);
        }
        if !it.remote.open {
            return it.start(name, &record, connection).map(|()| true);
        }
        // The place must have had the time to start the task.
        if it.asked.contains_key("start") && !it.asked.contains_key("started") {
            return Ok(true);
        }
        if it.asked.contains_key("absent") {
            if record.stop {
                let stop = Request::Stop(it.address.clone(), it.remote.stops);
                it.ask(connection, stop, Vec::new());
            }
            return Ok(true);
        }
        if it.asked.insert("follow".into(), Instant::now()).is_none() {
            let before = it.remote.before;
            let hash = |(name, (_, hash)): (&String, &(u64, String))| {
                Some((renumbered(name, |it| it.checked_sub(before))?, hash.clone()))
            };
            let have = collect(it.files.iter().filter_map(hash));
            let last = it.task.last_attempt().filter(|it| it.number > before);
            let length = last.as_ref().and_then(|it| it.log_path().symlink_metadata().ok());
            let log = (last.map_or(0, |it| it.number - before), length.map_or(0, |it| it.len()));
            connection.channel.send(Request::Follow(it.address.clone(), have, log), Vec::new());
        }
        it.send_decisions(&record, connection)?;
        if self.entry.fetch_commits {
            it.fetch_commits(&record);
        }
        it.finish(name, &record, connection).map(|()| true)
    }
}

impl Mirrored {
    /// Lets the task go: nothing of it is open at the place any more.
    fn let_go(&self, name: &str) -> Result<bool> {
        let wait = self.task.wait()?;
        if matches!(wait, Some(Wait::Place(..) | Wait::Queued { .. } | Wait::Job { .. })) {
            self.task.set_wait(None)?;
        }
        let entry = entry(&self.task, name)?;
        files::remove(&entry)?;
        // The person may have resumed the task since.
        let is_new = self.task.remote()?.is_none_or(|it| !it.sent && it.error.is_none());
        let may_start = is_new && self.task.record()?.is_some_and(|it| !it.stop);
        if Demand::of(&self.task)?.is_some() || may_start {
            files::open_append(&entry)?;
        }
        let _ = self.task.view().and_then(|view| self.task.settle(&view));
        notify::announce(&self.task);
        Ok(false)
    }

    /// Notes an error; a later look tries again.
    fn trouble(&mut self, name: &str, error: &Error) {
        self.pause();
        let text = format!("{name}: {error:#}");
        let _ = self.task.side().tell(text.lines().next().unwrap_or_default());
    }

    pub(super) fn pause(&mut self) {
        self.asked.insert("pause".into(), Instant::now());
    }

    /// Counts a failure, and returns true if there were so many that none is tried again. A lost connection
    /// says nothing about the place.
    pub(super) fn count_failure(&mut self, error: &Error) -> bool {
        self.failures += u32::from(exit_code(error) != Exit::TryAgain);
        if self.failures < TRIES {
            self.pause();
        }
        self.failures >= TRIES
    }

    /// Sends a request with its texts, unless this connection has it already.
    pub(super) fn ask(&mut self, connection: &Connection, request: Request, texts: Vec<String>) {
        let Some((_, what)) = request.subject() else { return };
        if let Entry::Vacant(entry) = self.asked.entry(what) {
            entry.insert(Instant::now());
            let files = texts.into_iter().map(|it| (String::new(), it.into_bytes())).collect();
            connection.channel.send(request, files);
        }
    }

    /// Sends the code and the task, after it was noted that it may run there.
    fn start(&mut self, name: &str, record: &Record, connection: &Connection) -> Result<()> {
        supervise::start_at_predecessors_end(&self.task)?;
        let record = self.task.record()?.unwrap_or_else(|| record.clone());
        let worktree = record.worktree.as_ref().context("a task without a worktree")?;
        let way = git_url(name, &self.address.key)?;
        let base = worktree.latest()?;
        if let Err(error) = worktree.send(&way, &base, &self.address.id) {
            let text = format!("{error:#}").replace("\n  ", ": ");
            return if self.count_failure(&error) { self.fail(&text) } else { Ok(()) };
        }
        fault::point("mirror", "sent");
        self.failures = 0;
        (self.remote.open, self.remote.sent, self.remote.seen) = (true, true, now());
        (self.remote.error, self.remote.unreachable) = (None, None);
        self.save()?;
        let plan = self.task.plan()?.to_string();
        let config = far_config(&Config::load()?, &record)?;
        let sparse = worktree.sparse_to_send()?.unwrap_or_default();
        // A request that did not arrive is made again.
        self.asked.remove("start");
        let stops = self.remote.stops;
        let start = Request::Start(self.address.clone(), stops, base, arguments(&record));
        self.ask(connection, start, vec![plan, config, sparse]);
        Ok(())
    }
}
