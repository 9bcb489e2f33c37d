//! The mirror of a place: one process here, for as long as tasks are open or to be stopped there. It sends
//! what the person decided until the place has it, and copies what the place says into the tasks.
//!
//! Invariant: everything that is to be sent stands in files, so a mirror that dies loses nothing. A task
//! is over only when the place has said so and its branch was fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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
    channel, entry, index, lock_path,
};
use crate::process::{Watch, Woken};
use crate::task::{Record, Remote, Task, Wait};
use crate::worker::{queue, supervise};

/// How often everything is looked at without an event.
const LOOK: Duration = Duration::from_secs(1);

/// The pause after the first failed connection, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// After how long a connection counts as good, so that the next pause is the first again.
const LASTS: Duration = Duration::from_secs(30);

/// The pause before a request that a place refused is sent again.
const REFUSED: Duration = Duration::from_secs(5);

/// How often sending the code is tried.
pub(super) const TRIES: u32 = 3;

/// A task at the place.
pub(super) struct Mirrored {
    pub(super) task: Task,
    pub(super) address: TaskAddress,
    /// Held in place of a supervisor.
    _run_lock: Lock,
    pub(super) remote: Remote,
    /// The last facts that came over this connection.
    pub(super) facts: Option<Facts>,
    /// True once this connection follows the task.
    pub(super) follows: bool,
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
    tasks: BTreeMap<PathBuf, Mirrored>,
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
            tasks: BTreeMap::new(),
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
            // The earlier task goes first where there is no place for all.
            let mut order: Vec<_> =
                self.tasks.iter().map(|(path, it)| (it.created.clone(), path.clone())).collect();
            order.sort_unstable();
            for (_, state_dir) in order {
                if let Err(error) = self.attend(&state_dir) {
                    self.trouble(&state_dir, &error);
                }
            }
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
        for (name, _) in files::entries(directory)? {
            let text = name.to_string_lossy();
            let Some((id, project)) = text.split_once('.') else { continue };
            let state_dir = root.join(project).join(id);
            if self.tasks.contains_key(&state_dir) {
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
                follows: false,
                asked: BTreeMap::new(),
                files: BTreeMap::new(),
                fetched: None,
                commits_here: None,
                fetching: None,
                freezes: false,
                failures: 0,
                created: record.created,
            };
            mirrored.read_files()?;
            self.tasks.insert(state_dir, mirrored);
        }
        Ok(())
    }

    /// Connects to the place if it is time, or the person has decided something since the last try.
    fn connect(&mut self) {
        let decided = self.tasks.values().map(Mirrored::decisions).sum();
        if Instant::now() < self.next_try && decided <= self.decided {
            return;
        }
        self.decided = decided;
        let opened = Transport::open(&self.name, &self.entry, ["serve", "-"], true);
        let opened = opened.and_then(|mut it| Ok((channel(&mut it)?, it)));
        match opened {
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
            let is_own = self.tasks.values().any(|task| task.address == it.address);
            let asked = connection.asked.get(&it.address.id);
            if !is_own && asked.is_none_or(|since| since.elapsed() > LONGEST_PAUSE) {
                connection.asked.insert(it.address.id.clone(), Instant::now());
                connection.channel.send(Request::Stop(it.address, it.stops))?;
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
        for it in self.tasks.values_mut() {
            (it.follows, it.facts) = (false, None);
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
            let _ = connection.channel.send(Request::Ping);
        }
    }

    fn take(&mut self, message: Message<Reply>) {
        let Message { head, files } = message;
        let id = match &head {
            Reply::Facts(id, ..) | Reply::Absent(id) | Reply::Done(id, ..) => id.clone(),
            Reply::Checked(_) | Reply::Pong => return,
        };
        if let (Reply::Done(key, what, error), Some(connection)) = (&head, &mut self.connection)
            && what == "repository"
        {
            connection.asked.remove(key);
            match error {
                None => {
                    self.unreachable = None;
                    connection.repositories.insert(key.clone());
                }
                Some(error) => self.refused(key, error),
            }
            return;
        }
        let Some(it) = self.tasks.values_mut().find(|it| it.address.id == id) else {
            let is_stop = matches!(&head, Reply::Done(_, what, None) if what == "stop");
            let asked = self.connection.as_ref().is_some_and(|it| it.asked.contains_key(&id));
            if is_stop && asked {
                self.unreachable = None;
                let _ = Abandoned::directory(&self.name).map(|it| files::remove(&it.join(id)));
            }
            return;
        };
        let taken = match head {
            Reply::Facts(_, facts, log) => it.apply(*facts, log, files),
            Reply::Absent(_) => it.set_absent(),
            Reply::Done(_, what, error) => it.set_done(&what, error),
            Reply::Checked(_) | Reply::Pong => Ok(()),
        };
        if let Err(error) = taken {
            let state_dir = it.task.state_dir().to_path_buf();
            self.trouble(&state_dir, &error);
        }
    }

    /// Notes that the place could not make a repository, which is tried again.
    fn refused(&mut self, key: &str, error: &str) {
        for it in self.tasks.values_mut().filter(|it| it.address.key == key && !it.remote.open) {
            it.failures += 1;
            it.asked.insert("pause".into(), Instant::now());
            let _ = if it.failures < TRIES { Ok(()) } else { it.fail(error) };
        }
    }

    /// Notes an error of a task; a later look tries again.
    fn trouble(&mut self, state_dir: &Path, error: &anyhow::Error) {
        if let Some(it) = self.tasks.get_mut(state_dir) {
            it.asked.insert("pause".into(), Instant::now());
            let text = format!("{}: {error:#}", self.name);
            let _ = it.task.side().tell(text.lines().next().unwrap_or_default());
        }
    }

    /// Sends what a task needs, and lets it go when it is over.
    fn attend(&mut self, state_dir: &Path) -> Result<()> {
        let (name, unreachable) = (self.name.clone(), self.unreachable.clone());
        let running = self.tasks.values().filter(|it| it.remote.open).count();
        let Some(it) = self.tasks.get_mut(state_dir) else { return Ok(()) };
        let record = it.task.record().ok().flatten();
        let Some(record) = record.filter(|it| it.place.as_ref() == Some(&name)) else {
            return self.let_go(state_dir);
        };
        self.watch.add_directory(state_dir);
        self.watch.add_directory(&it.task.answers_dir());
        self.watch.add_directory(&state_dir.join("notes"));
        if it.is_paused() {
            return Ok(());
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
                return self.let_go(state_dir);
            }
            let limit = Config::load().ok().and_then(|it| it.place(&name).ok()?.max_workers);
            let wait = match queue::predecessors(&it.task, &mut self.watch)? {
                Some(wait) => Some(wait),
                None if unreachable.is_some() && self.connection.is_none() => {
                    Some(Wait::Place(name.clone(), unreachable))
                }
                None => limit.filter(|limit| running >= *limit).map(|limit| Wait::Queued { limit }),
            };
            let shown = wait.clone().unwrap_or_else(|| Wait::Place(name.clone(), None));
            if it.task.wait()?.as_ref() != Some(&shown) {
                it.task.set_wait(Some(&shown))?;
            }
            if wait.is_some() {
                return Ok(());
            }
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if !connection.repositories.contains(&it.address.key) {
            if connection.asked.insert(it.address.key.clone(), Instant::now()).is_none() {
                let own = record.worktree.as_ref().context("a task without a worktree")?;
                let author = git::author(&own.repository)?;
                let request = Request::Repository(it.address.key.clone(), author);
                connection.channel.send(request)?;
            }
            return Ok(());
        }
        if !it.remote.open {
            return it.start(&name, &record, connection);
        }
        // The place must have had the time to start the task.
        if it.asked.contains_key("start") && !it.asked.contains_key("started") {
            return Ok(());
        }
        if it.asked.contains_key("absent") {
            if record.stop && it.may_ask("stop") {
                connection.channel.send(Request::Stop(it.address.clone(), it.remote.stops))?;
            }
            return Ok(());
        }
        if !std::mem::replace(&mut it.follows, true) {
            let before = it.remote.before;
            let hash = |(name, (_, hash)): (&String, &(u64, String))| {
                Some((renumbered(name, |it| it.checked_sub(before))?, hash.clone()))
            };
            let have = it.files.iter().filter_map(hash).collect();
            let last = it.task.last_attempt().filter(|it| it.number > before);
            let length = last.as_ref().and_then(|it| it.log_path().symlink_metadata().ok());
            let log = (last.map_or(0, |it| it.number - before), length.map_or(0, |it| it.len()));
            connection.channel.send(Request::Follow(it.address.clone(), have, log))?;
        }
        it.send_decisions(&record, connection)?;
        if self.entry.fetch_commits {
            it.fetch_commits(&record);
        }
        it.finish(&name, &record, connection)
    }

    /// Lets a task go: nothing of it is open at the place any more.
    fn let_go(&mut self, state_dir: &Path) -> Result<()> {
        if let Some(it) = self.tasks.remove(state_dir) {
            let wait = it.task.wait()?;
            if matches!(wait, Some(Wait::Place(..) | Wait::Queued { .. } | Wait::Job { .. })) {
                it.task.set_wait(None)?;
            }
            let entry = entry(&it.task, &self.name)?;
            files::remove(&entry)?;
            // The person may have resumed the task since.
            let is_new = it.task.remote()?.is_none_or(|it| !it.sent && it.error.is_none());
            let may_start = is_new && it.task.record()?.is_some_and(|it| !it.stop);
            if Demand::of(&it.task)?.is_some() || may_start {
                files::open_append(&entry)?;
            }
            let _ = it.task.view().and_then(|view| it.task.settle(&view));
            notify::announce(&it.task);
        }
        Ok(())
    }
}

impl Mirrored {
    fn is_paused(&self) -> bool {
        self.asked.get("pause").is_some_and(|since| since.elapsed() < REFUSED)
    }

    /// Returns true if a request is to be sent over this connection, and notes that it was.
    pub(super) fn may_ask(&mut self, what: &str) -> bool {
        let is_new = !self.asked.contains_key(what);
        if is_new {
            self.asked.insert(what.into(), Instant::now());
        }
        is_new
    }

    /// Sends the code and the task, after it was noted that it may run there.
    fn start(&mut self, name: &str, record: &Record, connection: &Connection) -> Result<()> {
        supervise::start_at_predecessors_end(&self.task)?;
        let record = self.task.record()?.unwrap_or_else(|| record.clone());
        let worktree = record.worktree.as_ref().context("a task without a worktree")?;
        let way = git_url(name, &self.address.key)?;
        let base = worktree.latest()?;
        if let Err(error) = worktree.send(&way, &base, &self.address.id) {
            // Nothing was started, and a lost connection is no failure.
            self.failures += u32::from(exit_code(&error) != Exit::TryAgain);
            self.asked.insert("pause".into(), Instant::now());
            let error = format!("{error:#}").replace("\n  ", ": ");
            return if self.failures < TRIES { Ok(()) } else { self.fail(&error) };
        }
        fault::point("mirror", "sent");
        self.failures = 0;
        (self.remote.open, self.remote.sent, self.remote.seen) = (true, true, now());
        (self.remote.error, self.remote.unreachable) = (None, None);
        self.save()?;
        let plan = self.task.plan()?.to_string().into_bytes();
        let config = far_config(&Config::load()?, &record)?.into_bytes();
        let head =
            Request::Start(self.address.clone(), self.remote.stops, base, arguments(&record));
        let sparse = worktree.sparse_to_send()?.unwrap_or_default().into_bytes();
        let files = [("plan", plan), ("config", config), ("sparse", sparse)];
        let files = files.map(|(name, text)| (name.into(), text)).into();
        self.may_ask("start");
        connection.channel.send(Message { head, files })
    }
}
