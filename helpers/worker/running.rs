//! A running program of an attempt: its processes, its log, which is parsed as it grows and trimmed to a
//! limit, and what ends a worker early.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use signal_hook::consts::SIGHUP;

use crate::config::Config;
use crate::domain::{Failure, Usage};
use crate::fault;
use crate::files;
use crate::ipc::Question;
use crate::news::notify;
use crate::process::{self, Holder, Identity, Life, ProcessTree, Watch, Woken};
use crate::task::{Attempt, Record, SessionRecord, StopReason, Task};
use crate::text::lossy;
use crate::tools::events::{Listener, Observed};
use crate::worker::{run, sandbox, termination_grace, tree};

/// How often a supervisor checks its worker without an event.
pub(super) const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// How long a worker may take to exit after its CLI reported the final result.
const LAST_WORD_GRACE: Duration = Duration::from_secs(10);

/// Minimum pause between two reads of the log, so that a chatty worker costs little CPU.
pub(super) const PAUSE: Duration = Duration::from_millis(15);

/// A log that grew by more than this between two reads is read again at once, to trim it in time.
const FAST_GROWTH: u64 = 1 << 20;

/// A program of an attempt, and what its supervisor keeps about it: a worker, a reviewer, or a command of
/// the person.
pub(super) struct RunningProgram {
    child: Option<Child>,
    /// The program, if it is the child of a supervisor that died.
    adopted: Option<Identity>,
    attempt: Attempt,
    record: Record,
    tree: ProcessTree,
    log: Log,
    pub(super) listener: Listener,
    /// The session id that was recorded last.
    session: Option<String>,
}

impl RunningProgram {
    /// Starts a command as the program of an attempt, whose log it prints to.
    pub(super) fn spawn(
        mut command: Command,
        record: &Record,
        attempt: &Attempt,
        listener: Listener,
    ) -> Result<Self> {
        let log = Log::open(attempt)?;
        // The program appends, so that the log can be trimmed meanwhile.
        command.stdout(log.file.try_clone()?).stderr(log.file.try_clone()?);
        let child =
            process::spawn_recorded(&mut command, |identity| attempt.set_identity(identity))?;
        Self::new((Some(child), None), record, attempt, log, listener)
    }

    /// The worker of a supervisor that died, whose log is read from its first line.
    pub(super) fn adopt(record: &Record, attempt: &Attempt, listener: Listener) -> Result<Self> {
        let log = Log { begin: 0, parsed: 0, ..Log::open(attempt)? };
        let worker = attempt.identity()?.context("the attempt has no worker")?;
        Self::new((None, Some(worker)), record, attempt, log, listener)
    }

    fn new(
        (child, adopted): (Option<Child>, Option<Identity>),
        record: &Record,
        attempt: &Attempt,
        log: Log,
        listener: Listener,
    ) -> Result<Self> {
        let tree = tree(Some(Identity::own()?), record, attempt)?;
        let (attempt, record) = (attempt.clone(), record.clone());
        Ok(Self { child, adopted, attempt, record, tree, log, listener, session: None })
    }

    /// Lets the end and the output of the program wake this process.
    pub(super) fn watch(&self, watch: &mut Watch) -> Result<()> {
        if let Some(identity) = self.attempt.identity()? {
            watch.add_process(&identity);
        }
        watch.add_file(&self.log.path);
        Ok(())
    }

    /// The status of a program that has ended; nobody knows that of an adopted one, and it is 0 here.
    pub(super) fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            let lives = self.adopted.as_ref().is_some_and(|worker| worker.life() != Life::Dead);
            return Ok((!lives).then(ExitStatus::default));
        };
        process::reap_adopted(child.id());
        child.try_wait().context("cannot wait for a child")
    }

    /// Waits until the worker ends and terminates its process tree. Also returns why the supervisor
    /// ended it, unless a signal asked for that.
    pub(super) fn wait_for_end(
        &mut self,
        task: &Task,
        watch: &mut Watch,
    ) -> Result<(ExitStatus, Option<StopReason>)> {
        self.watch(watch)?;
        let last_word_grace = fault::limit("DISPATCH_GRACE_MS", LAST_WORD_GRACE);
        let mut silence = Silence::new();
        let mut asks = Asks::default();
        let mut meter = Meter::new(task, &self.attempt)?;
        let mut result_since: Option<Instant> = None;
        let stop_reason = loop {
            let new = self.read_output();
            if self.try_wait()?.is_some() {
                break None;
            }
            let observed = self.listener.observed();
            result_since =
                observed.said_last_word.then(|| result_since.unwrap_or_else(Instant::now));
            asks.check(task);
            let is_late = result_since.is_some_and(|it| it.elapsed() >= last_word_grace);
            let why = is_late.then_some(StopReason::LastWord);
            let why = why.or_else(|| meter.check(task, &self.attempt, observed));
            let why = why.or_else(|| silence.check(task, &self.attempt, new > 0));
            if why.is_some() {
                break why;
            }
            if (1..FAST_GROWTH).contains(&new) {
                std::thread::sleep(PAUSE);
            }
            // Without events for writes, keep reading while the log grows.
            let grace_left =
                result_since.map_or(SAFETY_SCAN, |it| last_word_grace.saturating_sub(it.elapsed()));
            let left = meter.time_left().min(grace_left).max(PAUSE);
            let limit = if new > 0 { PAUSE } else { SAFETY_SCAN.min(left) };
            if asks_to_end(&watch.wait_for_event(limit)?) {
                break None;
            }
        };
        fault::point("supervisor", "ends");
        let has_finished = self.record.keep && task.side().ipc().finished_at().is_some();
        let ended = if has_finished && stop_reason.is_none() { self.try_wait()? } else { None };
        let status = match ended {
            Some(status) => status,
            None => self.terminate()?.0,
        };
        self.read_output();
        self.listener.end();
        self.record_session();
        Ok((status, stop_reason))
    }

    /// Ends all processes of the program. Returns its status, and true if nothing of it is left: the kernel
    /// may hold a killed process for a while (uninterruptible sleep).
    pub(super) fn terminate(&mut self) -> Result<(ExitStatus, bool)> {
        loop {
            let Self { child, tree, log, listener, .. } = self;
            let left = tree.terminate(termination_grace(), || {
                child.iter().for_each(|child| process::reap_adopted(child.id()));
                let _ = log.follow(listener);
            })?;
            if let Some(status) = self.try_wait()? {
                return Ok((status, left.is_empty()));
            }
        }
    }

    /// The failure of a sandbox that did not start the program.
    pub(super) fn sandbox_failure(
        &self,
        holder: Option<Holder>,
        status: ExitStatus,
    ) -> Option<Failure> {
        let printed = self.log.printed().filter(|_| !status.success())?;
        sandbox::failure(holder, &printed)
    }

    /// Parses new output and returns its size in bytes. A read error must not stop the supervision.
    pub(super) fn read_output(&mut self) -> u64 {
        let new = self.log.follow(&mut self.listener).unwrap_or_default();
        self.record_session();
        new
    }

    fn record_session(&mut self) {
        let observed = &self.listener.observed().session;
        if let Some(id) = observed.as_ref().filter(|_| *observed != self.session) {
            let (backend, home) = (self.record.backend.clone(), self.record.home());
            let record = SessionRecord { backend, id: id.clone(), home };
            // On a full disk, the next read tries again.
            if self.attempt.set_session(&record).is_ok() {
                self.session = Some(id.clone());
            }
        }
    }
}

/// Returns true for a signal that asks this process to end.
pub(super) fn asks_to_end(woken: &Woken) -> bool {
    matches!(woken, Woken::Signal(signal) if *signal != SIGHUP)
}

/// Default of `silent_after`.
const SILENT_AFTER: Duration = Duration::from_secs(20 * 60);

/// The watch over a worker's signs of life: new output, or a change in its task's directory. A
/// worker that waits for an answer is never silent.
struct Silence {
    /// `None` if the config turns the check off.
    limit: Option<Duration>,
    stop_when_silent: bool,
    /// The time and size of each file that a worker changes.
    stamps: Vec<Option<(SystemTime, u64)>>,
    last_sign: Instant,
    is_recorded: bool,
}

impl Silence {
    fn new() -> Self {
        let config = Config::load().unwrap_or_default();
        let minutes =
            config.silent_after.map(|minutes| Duration::from_secs(minutes.saturating_mul(60)));
        let limit = fault::limit("DISPATCH_SILENT_MS", minutes.unwrap_or(SILENT_AFTER));
        Self {
            limit: Some(limit).filter(|limit| !limit.is_zero()),
            stop_when_silent: config.stop_silent.unwrap_or(false),
            stamps: Vec::new(),
            last_sign: Instant::now(),
            is_recorded: false,
        }
    }

    /// Records whether the worker is silent; returns why it has to be ended, if the config says so.
    fn check(&mut self, task: &Task, attempt: &Attempt, new: bool) -> Option<StopReason> {
        let limit = self.limit?;
        let side = task.side();
        let ipc = side.ipc().directory().to_path_buf();
        let own =
            [side.plan_path(), ipc, side.tells_dir(), side.context_path(), side.report_path()];
        let stamps = own.map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        });
        // A worker that waits for an answer is not silent. Reads files only after the limit.
        let questions = || side.ipc().questions().unwrap_or_default();
        let waits = self.last_sign.elapsed() >= limit && questions().iter().any(Question::is_open);
        if new || waits || self.stamps != stamps {
            self.stamps = stamps.into();
            self.last_sign = Instant::now();
            if self.is_recorded && attempt.set_silent_since(None).is_ok() {
                self.is_recorded = false;
            }
        }
        if self.last_sign.elapsed() < limit {
            return None;
        }
        if self.stop_when_silent {
            return Some(StopReason::Silent { minutes: limit.as_secs() / 60 });
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now() - self.last_sign.elapsed());
        self.is_recorded =
            self.is_recorded || attempt.set_silent_since(Some(&since.to_string())).is_ok();
        None
    }
}

/// The watch for questions, of which the person's `notify:` command is told.
#[derive(Default)]
struct Asks {
    checked: Option<Instant>,
    /// The questions that were found, by number.
    known: Vec<String>,
}

impl Asks {
    fn check(&mut self, task: &Task) {
        if self.checked.is_some_and(|it| it.elapsed() < SAFETY_SCAN) {
            return;
        }
        self.checked = Some(Instant::now());
        let ipc = task.side().ipc();
        let is_whole = |name: &str| matches!(ipc.question(name), Ok(Some(it)) if it.is_whole);
        let mut new = ipc.questions().unwrap_or_default();
        new.retain(|it| it.is_open() && !self.known.contains(&it.name) && is_whole(&it.name));
        if !new.is_empty() {
            self.known.extend(new.into_iter().map(|question| question.name));
            notify::announce(task);
        }
    }
}

/// The watch over a task's budget.
struct Meter {
    record: Record,
    /// The worker's start, also of one that another supervisor started.
    begin: Instant,
    /// The run time that is left for it, if that is limited.
    limit: Option<Duration>,
    /// The usage that was compared last.
    usage: Option<Usage>,
}

impl Meter {
    fn new(task: &Task, attempt: &Attempt) -> Result<Self> {
        let record = task.record()?.context("the task has no record")?;
        let age = attempt.started_at().and_then(|it| it.elapsed().ok()).unwrap_or_default();
        let begin = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let (_, earlier) = task.spent(&record, attempt.number)?;
        let limit = record.budget.time.map(|limit| limit.saturating_sub(earlier));
        Ok(Self { record, begin, limit, usage: None })
    }

    fn time_left(&self) -> Duration {
        self.limit.map_or(SAFETY_SCAN, |limit| limit.saturating_sub(self.begin.elapsed()))
    }

    /// Why the worker has to be ended, if its budget is used up. An error must not end it.
    fn check(&mut self, task: &Task, attempt: &Attempt, observed: &Observed) -> Option<StopReason> {
        if self.record.budget.is_none()
            || self.usage == observed.usage && !self.time_left().is_zero()
        {
            return None;
        }
        self.usage.clone_from(&observed.usage);
        let usage = run::usage(task, attempt, observed).ok().flatten().unwrap_or_default();
        run::over_budget(task, &self.record, attempt, &usage, self.begin.elapsed()).ok().flatten()
    }
}

/// How many bytes the log may reach before it is trimmed; as many are kept as the old log.
const LONGEST_LOG: u64 = 8 << 20;

/// How many bytes at the end are parsed of a log that grows faster than it can be parsed.
const TAIL: u64 = 64 << 10;

/// How many bytes are read at once.
const CHUNK: usize = 32 << 10;

/// A worker's log, from the position where this start of the worker began.
struct Log {
    file: File,
    path: PathBuf,
    old: PathBuf,
    /// The length of the file at this start.
    begin: u64,
    /// How many bytes of the file were parsed.
    parsed: u64,
}

impl Log {
    /// Opens the log of an attempt for the next start of its worker.
    fn open(attempt: &Attempt) -> Result<Self> {
        let file = files::open_append(&attempt.log_path())?;
        let begin = file.metadata().context("cannot look at the log")?.len();
        let (path, old) = (attempt.log_path(), attempt.old_log_path());
        Ok(Self { file, path, old, begin, parsed: begin })
    }

    /// The first part of what this start printed, unless the log was trimmed since.
    fn printed(&self) -> Option<String> {
        let mut buffer = vec![0; CHUNK];
        let is_whole = self.length().ok()? >= self.begin && self.parsed >= self.begin;
        let count = self.file.read_at(&mut buffer, self.begin).ok().filter(|_| is_whole)?;
        buffer.truncate(count);
        Some(lossy(buffer))
    }

    /// Passes new output to the listener and returns its size in bytes. The file stays open, so that a
    /// worker cannot hide output by deleting it.
    fn follow(&mut self, listener: &mut Listener) -> Result<u64> {
        let end = self.length()?;
        if end == self.parsed {
            return Ok(0);
        }
        // Somebody else truncated the log.
        if end < self.parsed {
            self.parsed = 0;
        }
        let new = end - self.parsed;
        if end > LONGEST_LOG {
            // Trim before parsing, because parsing takes longer.
            let begin = end - LONGEST_LOG;
            let old = self.trim(begin);
            let from = self.parsed.saturating_sub(begin);
            self.parsed = 0;
            if let Some((old, length)) = old {
                self.parse(&old, from, length, listener)?;
            }
        } else {
            self.parse(&self.file, self.parsed, end, listener)?;
            self.parsed = end;
        }
        Ok(new)
    }

    /// Moves the log from `begin` on to the old log, and empties the log. Output that arrives meanwhile
    /// is lost; the worker is never held up.
    fn trim(&self, begin: u64) -> Option<(File, u64)> {
        let copy = || -> std::io::Result<(File, u64)> {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let mut old = options.custom_flags(nix::libc::O_NOFOLLOW).open(&self.old)?;
            let (mut at, mut buffer) = (begin, vec![0; CHUNK]);
            // A fast program never lets the copy end.
            while at - begin < LONGEST_LOG + FAST_GROWTH {
                let count = self.file.read_at(&mut buffer, at)?;
                if count == 0 {
                    break;
                }
                old.write_all(&buffer[..count])?;
                at += count as u64;
            }
            Ok((old, at - begin))
        };
        let copied = copy().ok();
        // Empty the log even if the copy failed: an endless log would be worse.
        let _ = self.file.set_len(0);
        copied
    }

    /// Passes a part of a file to the listener; only its end if the log has grown long meanwhile.
    fn parse(&self, file: &File, from: u64, end: u64, listener: &mut Listener) -> Result<()> {
        let mut at = from;
        let mut buffer = vec![0; CHUNK];
        while at < end {
            if end - at > TAIL && self.length()? > 2 * LONGEST_LOG {
                listener.end();
                at = end - TAIL;
            }
            let most = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let count = file.read_at(&mut buffer[..most], at).context("cannot read the log")?;
            if count == 0 {
                break;
            }
            listener.hear(&buffer[..count]);
            at += count as u64;
        }
        Ok(())
    }

    fn length(&self) -> Result<u64> {
        Ok(self.file.metadata().context("cannot look at the log")?.len())
    }
}
