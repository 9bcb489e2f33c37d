//! One attempt of a task: its worker is started, watched to its end, and nothing of it is left.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use signal_hook::consts::SIGHUP;

use crate::config::Config;
use crate::domain::{FailureKind, PromptVia, Route, Usage};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::fault;
use crate::files;
use crate::git::OF_ANOTHER_REPOSITORY;
use crate::ids::{now, random_uuid};
use crate::ipc::Question;
use crate::process::{
    self, ATTEMPT, Identity, Life, ProcessTree, TASK_DIR, Watch, Woken, is_host_variable,
    worker_helper,
};
use crate::task::{Attempt, ExitRecord, LAST_WORD, Record, SessionRecord, Task, UNSEEN};
use crate::text::lossy;
use crate::tools::events::{Listener, Observed};
use crate::tools::{Invocation, Job, Session, invocation, listener};
use crate::worker::log::Log;
use crate::worker::prompt;
use crate::worker::supervise::Starter;

/// How long a worker may take to end by itself when it said its last word.
const LAST_WORD_GRACE: Duration = Duration::from_secs(10);

/// How long without a sign of life a worker is not called silent, unless the config says.
const SILENT_AFTER: Duration = Duration::from_secs(20 * 60);

/// How often a supervisor looks without being woken.
const SAFETY_SCAN: Duration = Duration::from_secs(1);

/// How often at most, unless the worker writes so much that its log has to be cut at once.
const PAUSE: Duration = Duration::from_millis(15);

/// How much of the logs of a worker is heard whose end nobody saw.
const LONGEST_LOG: u64 = 16 << 20;

/// So many bytes between two looks.
const FAST: u64 = 1 << 20;

/// How long whoever was asked to end may take.
pub fn grace() -> Duration {
    fault::limit("DISPATCH_GRACE_MS", Duration::from_secs(5))
}

/// Runs the task's next attempt to its end, which is not recorded yet.
pub(super) fn run(
    task: &Task,
    watch: &mut Watch,
    starter: &mut Starter,
) -> Result<(Attempt, ExitRecord)> {
    let record = task.record()?.context("the task has no record")?;
    process::adopt_descendants()?;
    let attempt = prepare(task, &record)?;
    fault::point("supervisor", "prepared");
    end_what_a_dead_supervisor_left(task, &record, attempt.number - 1)?;
    let begin = Instant::now();
    let session = task.last_session(&record.backend, attempt.number)?;
    if session.is_some() {
        let text = prompt::go_on(task, &worker_helper()?)?;
        files::publish(&attempt.stdin_path(), text.as_bytes())?;
    }
    let mut started = match launch(task, &record, &attempt, session.as_ref()) {
        Ok(started) => started,
        Err(error) => {
            let not_started = Some(format!("{error:#}"));
            attempt.set_exit(&ExitRecord { not_started, at: now(), ..ExitRecord::default() })?;
            return Err(error);
        }
    };
    fault::point("supervisor", "started");
    starter.hears_started()?;
    let (mut status, mut ended) = started.wait(task, watch)?;
    if let Some(again) = without_what_was_refused(task, &record, &started.listener, status)? {
        if session.is_some() {
            // A new conversation has to be told everything.
            let first = files::read_foreign(&task.prompt_path())?.map(lossy).unwrap_or_default();
            files::publish(&attempt.stdin_path(), prompt::next(task, &first)?.as_bytes())?;
        }
        // If it cannot be started again, the first end stands.
        if let Ok(second) = launch(task, &again, &attempt, None) {
            started = second;
            (status, ended) = started.wait(task, watch)?;
        }
    }
    fault::point("supervisor", "reaped");
    let observed = started.listener.observed().clone();
    // What it used is no reason to leave its end unknown.
    let usage = usage(task, &attempt, &observed).unwrap_or_default();
    let exit = ExitRecord {
        code: status.code(),
        signal: status.signal(),
        ended,
        failure: observed.failure,
        denied: observed.denied,
        usage,
        at: now(),
        milliseconds: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
        ..ExitRecord::default()
    };
    Ok((attempt, exit))
}

/// The end of an attempt that nobody saw, as far as its log tells: a CLI that has said its last word
/// has come to its end, whatever ended it then.
pub(super) fn unseen_end(task: &Task, record: &Record, attempt: &Attempt) -> ExitRecord {
    let config = Config::load().unwrap_or_default();
    let choice = config.resolve(Some(&record.name));
    let settings = choice.map(|choice| choice.settings).unwrap_or_default();
    let mut listener = listener(&record.backend, &settings);
    for log in [attempt.old_log_path(), attempt.log_path()] {
        listener.hear(&files::tail(&log, LONGEST_LOG).unwrap_or_default());
    }
    listener.end();
    let observed = listener.observed().clone();
    let exit = ExitRecord {
        // What it used is no reason to leave its end unknown.
        usage: usage(task, attempt, &observed).unwrap_or_default(),
        at: now(),
        milliseconds: attempt.life_sign().map_or(0, |time| time.as_millis() as u64),
        ..ExitRecord::default()
    };
    if !observed.said_last_word {
        return exit;
    }
    let (failure, denied) = (observed.failure, observed.denied);
    ExitRecord { ended: Some(UNSEEN.into()), failure, denied, ..exit }
}

/// Makes the next attempt: what the worker will read, and no finish marker of an earlier one.
pub fn prepare(task: &Task, record: &Record) -> Result<Attempt> {
    let last = task.last_attempt();
    if let Some(last) = &last {
        let alive = last.identity()?.is_some_and(|worker| worker.life() != Life::Dead);
        if last.exit()?.is_none() && alive && record.route == Route::Cli {
            let what = format!("the worker of '{}' is still running", task.id());
            return Err(Refusal::new(Exit::TryAgain, what)
                .place(format!("in {}", last.directory().display()))
                .next(format!("dispatch-reconcile show {}", task.id()))
                .into());
        }
        let marker = task.ipc().directory().join(".done");
        match std::fs::rename(&marker, last.directory().join("done")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(format!("cannot move {}", marker.display()));
            }
            _ => {}
        }
        task.edit_plan(|plan| {
            plan.reopen();
            Ok(())
        })?;
    }
    let attempt = task.new_attempt()?;
    let first =
        files::read_foreign(&task.prompt_path())?.map(lossy).context("the task has no prompt")?;
    let text = if last.is_some() {
        // Nobody waits for these answers any more: this prompt holds those that there are.
        let _lock = task.lock()?;
        for question in task.ipc().questions()?.iter().filter(|question| !question.received) {
            task.ipc().receive(&question.name)?;
        }
        prompt::next(task, &first)?
    } else {
        first
    };
    files::publish(&attempt.stdin_path(), text.as_bytes())?;
    Ok(attempt)
}

/// What an attempt used itself: some CLIs count the attempts that it was resumed from again.
fn usage(task: &Task, attempt: &Attempt, observed: &Observed) -> Result<Option<Usage>> {
    let Some(mut usage) = observed.usage.clone() else { return Ok(None) };
    let earlier = if observed.usage_of_session { task.attempts()? } else { Vec::new() };
    for before in earlier.into_iter().filter(|it| it.number < attempt.number) {
        let session = before.session()?.map(|session| session.id);
        if let Some(ExitRecord { usage: Some(before), .. }) = before.exit()?
            && session == observed.session
        {
            usage = usage.since(&before);
        }
    }
    Ok(Some(usage))
}

/// How the task's worker is called, by the config as it is now.
pub fn call(task: &Task, record: &Record, helper: &Path, session: Session) -> Result<Invocation> {
    let choice = Config::load()?.resolve(Some(&record.name))?;
    let mut writable = vec![task.directory().to_path_buf()];
    if record.commits() {
        writable.extend(record.worktree.iter().flat_map(|worktree| worktree.git_directories()));
    }
    let job = Job {
        model: record.model.as_deref(),
        access: record.access,
        directory: &record.directory,
        task: task.directory(),
        writable: &writable,
        session,
        helper,
    };
    invocation(&record.backend, &choice.settings, &job)
}

/// The task without the model or the session that the CLI did not take, if that is why it ended
/// before it began. The original never named a model to Claude Code, because some accounts have
/// access to a few only; and a session that a CLI has forgotten is begun anew.
fn without_what_was_refused(
    task: &Task,
    record: &Record,
    listener: &Listener,
    status: ExitStatus,
) -> Result<Option<Record>> {
    let begun = task.plan()?.done() > task.plan_at_start()?.map_or(0, |plan| plan.done());
    let Some(failure) =
        listener.observed().failure.as_ref().filter(|_| !begun && !status.success())
    else {
        return Ok(None);
    };
    match (failure.kind, &record.model) {
        (FailureKind::Session, _) => Ok(Some(record.clone())),
        (FailureKind::Model, Some(model)) if record.backend == "claude" => {
            let backend = &record.backend;
            task.tell(&format!("{backend} refused the model {model}: it works with its own"))?;
            Ok(Some(Record { model: None, ..record.clone() }))
        }
        _ => Ok(None),
    }
}

/// A worker that was started.
struct RunningWorker {
    child: Child,
    attempt: Attempt,
    backend: String,
    tree: ProcessTree,
    log: Log,
    listener: Listener,
    /// The session that is recorded.
    session: Option<String>,
}

fn launch(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    session: Option<&SessionRecord>,
) -> Result<RunningWorker> {
    let record = &with_worktree(task, record)?;
    let fresh = random_uuid()?;
    let resumed = session.map(|session| Session::Resume(&session.id));
    let helper = worker_helper()?;
    let call = call(task, record, &helper, resumed.unwrap_or(Session::New(&fresh)))?;
    let settings = Config::load()?.resolve(Some(&record.name))?.settings;
    let prompt_path = attempt.stdin_path();
    let text = files::read_foreign(&prompt_path)?.map(lossy).unwrap_or_default();
    let argv = call.with_prompt(&text, &prompt_path);
    let log = Log::open(attempt)?;
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).current_dir(&record.directory);
    command.stdin(match call.prompt {
        PromptVia::Stdin => File::open(&prompt_path).context("cannot open the prompt")?.into(),
        PromptVia::Arg | PromptVia::File => Stdio::null(),
    });
    command.stdout(log.writer()?).stderr(log.writer()?);
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| is_host_variable(&name.to_string_lossy()))
    {
        command.env_remove(name);
    }
    if record.worktree.is_some() {
        for name in OF_ANOTHER_REPOSITORY {
            command.env_remove(name);
        }
    }
    command.env(TASK_DIR, task.directory());
    command.env(ATTEMPT, mark(record, attempt));
    process::lead_own_group(&mut command);
    let child = process::spawn_recorded(&mut command, |identity| attempt.set_identity(identity))?;
    Ok(RunningWorker {
        child,
        attempt: attempt.clone(),
        backend: record.backend.clone(),
        tree: tree(Some(Identity::own()?), record, attempt)?,
        log,
        listener: listener(&record.backend, &settings),
        session: None,
    })
}

/// The task with its worktree in place, and a directory to work in that is there.
fn with_worktree(task: &Task, record: &Record) -> Result<Record> {
    let mut record = record.clone();
    if let Some(worktree) = &record.worktree {
        for remark in worktree.ensure()? {
            task.tell(&remark)?;
        }
        if !record.directory.is_dir() {
            record.directory = worktree.path.clone();
        }
    }
    Ok(record)
}

/// What marks the processes of that attempt.
pub fn mark(record: &Record, attempt: &Attempt) -> String {
    format!("{}/{}", record.nonce, attempt.number)
}

/// All processes of that attempt, which that supervisor runs or ran.
pub fn tree(
    supervisor: Option<Identity>,
    record: &Record,
    attempt: &Attempt,
) -> Result<ProcessTree> {
    let mark = format!("{ATTEMPT}={}", mark(record, attempt));
    Ok(ProcessTree::new(supervisor, attempt.identity()?, mark))
}

/// A worker that ended without a supervisor may have left something.
fn end_what_a_dead_supervisor_left(task: &Task, record: &Record, number: u32) -> Result<()> {
    let last = task.attempt(number);
    if number > 0 && last.exit()?.is_none_or(|exit| exit.is_unknown()) {
        tree(None, record, &last)?.terminate(grace(), || ())?;
    }
    Ok(())
}

/// Records the end of an attempt, as soon as there is space for it: that of what the worker has
/// read, or whatever becomes free. A signal ends the waiting.
pub(super) fn record_end(attempt: &Attempt, exit: &ExitRecord, watch: &mut Watch) -> Result<()> {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let full = |error: &anyhow::Error| {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(StorageFull | QuotaExceeded))
    };
    loop {
        match attempt.set_exit(exit) {
            Err(error) if full(&error) => {}
            done => return done,
        }
        if attempt.stdin_path().exists() {
            files::remove(&attempt.stdin_path())?;
            continue;
        }
        if let Woken::Signal(_) = watch.wait_for_event(SAFETY_SCAN)? {
            return attempt.set_exit(exit);
        }
    }
}

impl RunningWorker {
    /// Watches the worker to its end, and ends what is left of it. Says why it was ended, if not
    /// because somebody asked.
    fn wait(&mut self, task: &Task, watch: &mut Watch) -> Result<(ExitStatus, Option<String>)> {
        if let Some(identity) = self.attempt.identity()? {
            watch.add_process(&identity);
        }
        watch.add_file(self.log.path());
        let last_word_grace = fault::limit("DISPATCH_GRACE_MS", LAST_WORD_GRACE);
        let mut silence = Silence::new(task);
        let mut over: Option<Instant> = None;
        let ended = loop {
            let new = self.listen();
            process::reap_adopted(self.child.id());
            if self.child.try_wait().context("cannot wait for the worker")?.is_some() {
                break None;
            }
            over = over.filter(|_| self.listener.observed().said_last_word);
            if self.listener.observed().said_last_word
                && over.get_or_insert_with(Instant::now).elapsed() >= last_word_grace
            {
                break Some(LAST_WORD.into());
            }
            if let Some(silent) = silence.look(task, &self.attempt, new > 0) {
                break Some(silent);
            }
            if (1..FAST).contains(&new) {
                std::thread::sleep(PAUSE);
            }
            // Where writes wake nobody, a look follows a look while there is something new.
            let limit = if new > 0 { PAUSE } else { SAFETY_SCAN };
            if let Woken::Signal(signal) = watch.wait_for_event(limit)?
                && signal != SIGHUP
            {
                break None;
            }
        };
        fault::point("supervisor", "ends");
        let Self { child, tree, log, listener, .. } = self;
        let status = loop {
            tree.terminate(grace(), || {
                process::reap_adopted(child.id());
                let _ = log.follow(listener);
            })?;
            // The system itself may hold one that was killed.
            if let Some(status) = child.try_wait().context("cannot wait for the worker")? {
                break status;
            }
        };
        self.listen();
        self.listener.end();
        self.keep_session();
        Ok((status, ended))
    }

    /// Hears what is new in the log, and says how much that was. What cannot be read now is no
    /// reason to leave the worker alone.
    fn listen(&mut self) -> u64 {
        let new = self.log.follow(&mut self.listener).unwrap_or_default();
        self.keep_session();
        new
    }

    fn keep_session(&mut self) {
        let observed = &self.listener.observed().session;
        if let Some(id) = observed.as_ref().filter(|_| *observed != self.session) {
            let record = SessionRecord { backend: self.backend.clone(), id: id.clone() };
            // Where there is no space now, there may be at the next look.
            if self.attempt.set_session(&record).is_ok() {
                self.session = Some(id.clone());
            }
        }
    }
}

/// Whether a worker shows signs of life: it writes to its log or in its task's directory. One that
/// asked and waits for the answer is not silent.
struct Silence {
    limit: Option<Duration>,
    stops: bool,
    files: Vec<PathBuf>,
    stamps: Vec<Option<(SystemTime, u64)>>,
    /// The last sign.
    last: Instant,
    said: bool,
}

impl Silence {
    fn new(task: &Task) -> Self {
        let config = Config::load().unwrap_or_default();
        let minutes = config.silent_after.map(|minutes| Duration::from_secs(minutes * 60));
        let limit = fault::limit("DISPATCH_SILENT_MS", minutes.unwrap_or(SILENT_AFTER));
        let ipc = task.ipc().directory().to_path_buf();
        Self {
            limit: Some(limit).filter(|limit| !limit.is_zero()),
            stops: config.stop_silent.unwrap_or(false),
            files: vec![
                task.plan_path(),
                ipc,
                task.tells_dir(),
                task.context_path(),
                task.report_path(),
            ],
            stamps: Vec::new(),
            last: Instant::now(),
            said: false,
        }
    }

    /// Records whether the worker is silent, and says why it has to be ended, if it has.
    fn look(&mut self, task: &Task, attempt: &Attempt, new: bool) -> Option<String> {
        let limit = self.limit?;
        let stamp = |path: &PathBuf| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        };
        let stamps = self.files.iter().map(stamp).collect();
        if new || stamps != self.stamps || self.asks_after(limit, task) {
            self.stamps = stamps;
            self.last = Instant::now();
            if self.said && attempt.set_silent(None).is_ok() {
                self.said = false;
            }
        }
        if self.last.elapsed() < limit {
            return None;
        }
        if self.stops {
            return Some(format!("silent for {} min", limit.as_secs() / 60));
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now() - self.last.elapsed());
        self.said = self.said || attempt.set_silent(Some(&since.to_string())).is_ok();
        None
    }

    /// Whether the worker waits for an answer, asked only when it matters.
    fn asks_after(&self, limit: Duration, task: &Task) -> bool {
        let questions = || task.ipc().questions().unwrap_or_default();
        self.last.elapsed() >= limit && questions().iter().any(Question::is_open)
    }
}
