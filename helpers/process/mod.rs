//! Processes: which one is meant, whether it lives, how to wait for it, and how to start one that
//! outlives us.
//!
//! A bare pid is never trusted: numbers are used again within minutes on a busy machine, so an
//! [`Identity`] carries the start time too, and is verified *after* the process is held (pidfd).
//! [`Watch`] waits for files, deaths and signals in one system call. Its events are hints: the
//! caller adds its watches, scans, waits at most a second, and scans again, so that a missed event
//! (network file system, queue overflow, no inotify left) only costs that second.
//!
//! What the systems share is here; `linux.rs` and `macos.rs` each provide the same few functions
//! and a `EventQueue`.

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
compile_error!("dispatch runs on Linux and macOS");
mod environment;
mod program;
mod tree;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SigHandler, SigSet, killpg};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use serde::{Deserialize, Serialize};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

pub use nix::sys::signal::Signal;

pub use environment::{ATTEMPT, TASK_DIR, calling_host, of_the_host};
pub use os::boottime;
pub use program::{HELPERS, find_program, find_program_in, launcher, own_helper};

/// A moment of the local calendar.
pub type LocalTime = nix::libc::tm;

/// That moment, in seconds since 1970, as the local calendar has it.
pub fn local_time(seconds: u64) -> Option<LocalTime> {
    let seconds = nix::libc::time_t::try_from(seconds).ok()?;
    // SAFETY: `tm` is numbers and a pointer that may be null.
    let mut local: LocalTime = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of these types.
    let done = unsafe { nix::libc::localtime_r(&raw const seconds, &raw mut local) };
    (!done.is_null()).then_some(local)
}

/// The seconds since 1970 of a moment of the local calendar; days that its month does not have are
/// those of the next.
pub fn local_seconds(mut local: LocalTime) -> Option<u64> {
    local.tm_isdst = -1;
    // SAFETY: the pointer is to a live value of this type.
    let seconds = unsafe { nix::libc::mktime(&raw mut local) };
    u64::try_from(seconds).ok()
}
pub use tree::{Tree, adopt_descendants, reap_adopted};

/// One process of one boot of one machine, as it stands in the state files.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Identity {
    /// The number, in the pid namespace below.
    pub pid: u32,
    /// The start time, in the system's own unit (ticks since boot on Linux, microseconds on macOS).
    pub start: u64,
    /// [`boot_id`] when it ran.
    pub boot: String,
    /// The pid namespace, where the system has those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// What can be said of an [`Identity`] now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// It runs.
    Alive,
    /// It ended, reaped or not, or the machine was started again.
    Dead,
    /// We cannot judge: it belongs to another pid namespace, or the system does not let us see.
    Unknown,
}

impl Identity {
    /// The process that has this number now; `None` if there is none or it only waits to be reaped.
    pub fn of(pid: u32) -> Result<Option<Self>> {
        Ok(os::start_of(pid)?.map(|start| Self {
            pid,
            start,
            boot: boot_id().to_owned(),
            namespace: os::namespace().map(str::to_owned),
        }))
    }

    /// This process.
    pub fn own() -> Result<Self> {
        let pid = std::process::id();
        Self::of(pid)?.with_context(|| format!("process {pid} cannot see itself"))
    }

    /// Whether it still runs.
    pub fn life(&self) -> Life {
        if self.boot.is_empty() || boot_id().is_empty() {
            return Life::Unknown;
        }
        if self.boot != boot_id() {
            return Life::Dead;
        }
        if self.namespace.as_deref() != os::namespace() {
            return Life::Unknown;
        }
        match os::start_of(self.pid) {
            Ok(Some(start)) if start == self.start => Life::Alive,
            Ok(_) => Life::Dead,
            Err(_) => Life::Unknown,
        }
    }

    /// Sends a signal to this process and to no other; `false` if it is gone.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        let sent = os::signal(self, signal);
        sent.with_context(|| format!("cannot send {signal} to process {self}"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start)
    }
}

/// What ended a [`Watch::wait`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Woken {
    /// Something watched may have changed: scan.
    Changed,
    /// This signal came. Those behind it, and a change, come with the next waits.
    Signal(i32),
    /// Nothing happened for so long.
    Timeout,
}

/// Waits for files, processes and signals at once. Events are hints: callers scan again.
pub struct Watch {
    queue: os::EventQueue,
    /// Every process that was ever added, so that a death wakes once and not at every scan.
    known: HashSet<Identity>,
    signals: VecDeque<i32>,
    changed: bool,
}

impl Watch {
    /// A watch over these signals. They no longer end this process, even after the watch is dropped.
    pub fn new(signals: &[i32]) -> Result<Self> {
        let pipes = signals.iter().map(|&signal| SignalPipe::new(signal)).collect::<Result<_>>()?;
        let queue = os::EventQueue::new(pipes).context("cannot make an event queue")?;
        Ok(Self { queue, known: HashSet::new(), signals: VecDeque::new(), changed: false })
    }

    /// Whether directories can be watched at all; if not, only the caller's own scans see changes.
    pub fn events(&self) -> bool {
        self.queue.events()
    }

    /// Watches the entries of a directory; `false` if that is not possible (now). Call it at every
    /// scan: it costs next to nothing, and finds a directory that was deleted or moved and made anew.
    pub fn directory(&mut self, path: &Path) -> bool {
        self.queue.directory(path)
    }

    /// Watches a file for every write to it; `false` if that is not possible.
    pub fn writes(&mut self, path: &Path) -> bool {
        self.queue.writes(path)
    }

    /// Watches for the death of a process; `false` if that is not possible. A process that is dead
    /// already makes the next wait return at once.
    pub fn process(&mut self, identity: &Identity) -> bool {
        if self.known.contains(identity) {
            return true;
        }
        match self.queue.process(identity) {
            Life::Unknown => return false,
            Life::Dead => self.changed = true,
            Life::Alive => {}
        }
        self.known.insert(identity.clone())
    }

    /// Waits until something happens, at most for `limit` (time asleep does not count).
    pub fn wait(&mut self, limit: Duration) -> Result<Woken> {
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let pending = self.changed || !self.signals.is_empty();
            let left = if pending { Duration::ZERO } else { left };
            // A system call takes no arbitrarily long limit; the loop makes up for an hour.
            let changed = self.queue.wait(left.min(Duration::from_secs(3600)));
            self.changed |= changed.context("cannot wait for events")?;
            for pipe in self.queue.pipes() {
                pipe.drain(&mut self.signals);
            }
            if let Some(signal) = self.signals.pop_front() {
                return Ok(Woken::Signal(signal));
            }
            if std::mem::take(&mut self.changed) {
                return Ok(Woken::Changed);
            }
            if start.elapsed() >= limit {
                return Ok(Woken::Timeout);
            }
        }
    }
}

/// A signal as a pipe that becomes readable, one byte for each time it came.
struct SignalPipe {
    signal: i32,
    reader: PipeReader,
    id: SigId,
}

impl SignalPipe {
    fn new(signal: i32) -> Result<Self> {
        let what = || format!("cannot watch signal {signal}");
        let (reader, writer) = io::pipe().with_context(what)?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).with_context(what)?;
        let id = pipe::register(signal, writer).with_context(what)?;
        Ok(Self { signal, reader, id })
    }

    fn drain(&self, into: &mut VecDeque<i32>) {
        let mut bytes = [0; 64];
        // An error is "empty" or "interrupted"; what is left then makes the next wait return.
        while let Ok(count @ 1..) = (&self.reader).read(&mut bytes) {
            into.extend(std::iter::repeat_n(self.signal, count));
        }
    }
}

impl Drop for SignalPipe {
    fn drop(&mut self) {
        unregister(self.id);
    }
}

/// Makes sure that children can be waited for. Where SIGCHLD is ignored, as some hosts leave it,
/// nobody learns how they ended.
pub fn expect_children() -> Result<()> {
    // SAFETY: the default action of SIGCHLD is no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }
        .map(drop)
        .context("cannot reset SIGCHLD")
}

/// Starts a program that belongs to init at once and leads its own session, so that neither the
/// end of this process nor a signal to its group or terminal reaches it. Uses the command up.
pub fn detach(command: &mut Command) -> Result<()> {
    expect_children()?;
    // SAFETY: the closure runs in the forked child and allocates nothing; `_exit`, `setsid` and the
    // calls of `reset_signals` and `keep_only_stdio` are async-signal-safe. So is this second fork, although POSIX lost
    // the word: libc's fork has freed all its locks in the child that runs here.
    unsafe {
        command.pre_exec(|| {
            if let ForkResult::Parent { .. } = fork()? {
                nix::libc::_exit(0);
            }
            setsid()?;
            // A host that waits for the end of a pipe must not wait for a supervisor.
            os::keep_only_stdio();
            reset_signals()
        });
    }
    let program = command.get_program().display().to_string();
    // spawn() returns when the last copy of its error pipe is closed, by exec in the grandchild,
    // so that it reports a failed exec although its own child, the middle one, has long ended.
    let mut middle = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let ended = middle.wait();
    ended.map(drop).with_context(|| format!("cannot reap process {} of {program}", middle.id()))
}

/// Starts a program that runs only when `record` has kept its identity. Whoever dies in between, no
/// program runs that nobody knows. Uses the command up.
pub fn spawn_known(
    command: &mut Command,
    record: impl FnOnce(&Identity) -> Result<()> + Send,
) -> Result<Child> {
    let pipe = || io::pipe().context("cannot make a pipe");
    let ((mut born, birth), (wait, go)) = (pipe()?, pipe()?);
    let in_child = birth.try_clone().context("cannot share a pipe")?;
    let go_in_child = go.as_raw_fd();
    // SAFETY: the closure runs in the forked child, allocates nothing, and makes only the system
    // calls close, write and read, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // Its own copy would keep the pipe open on whose end it waits.
            nix::libc::close(go_in_child);
            (&in_child).write_all(&std::process::id().to_ne_bytes())?;
            (&wait).read_exact(&mut [0])
        });
    }
    let recorder = move || -> Result<()> {
        let mut pid = [0; 4];
        born.read_exact(&mut pid).context("cannot hear a child")?;
        match u32::from_ne_bytes(pid) {
            0 => return Ok(()),
            pid => record(&Identity::of(pid)?.context("a child is gone")?)?,
        }
        (&go).write_all(b"!").context("cannot let a child go")
    };
    std::thread::scope(|scope| {
        let recorder = scope.spawn(recorder);
        let child = command.spawn();
        if child.is_err() {
            // Perhaps there was no child that could say its number.
            let _ = (&birth).write_all(&0_u32.to_ne_bytes());
        }
        recorder.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        child.with_context(|| format!("cannot start {}", command.get_program().display()))
    })
}

/// Makes the program lead its own process group, for [`signal_group`].
pub fn own_group(command: &mut Command) -> &mut Command {
    // SAFETY: `reset_signals` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.process_group(0).pre_exec(reset_signals) }
}

/// Sends a signal to all processes of a group; a group that is gone is fine.
pub fn signal_group(leader: u32, signal: Signal) -> Result<()> {
    // To kill(2), 0 is our own group and -1 is everything.
    let group = match i32::try_from(leader) {
        Ok(leader) if leader > 1 => Pid::from_raw(leader),
        _ => bail!("{leader} is not the leader of a process group"),
    };
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        // macOS says this of a group in which only zombies are left.
        Err(Errno::EPERM) if cfg!(target_os = "macos") => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot send {signal} to process group {leader}"))
        }
    }
}

/// The identity of the running boot; empty if the system does not tell.
pub fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(os::boot_id)
}

/// Gives the program the signal state that it expects (real-time signals aside): exec keeps the
/// mask and what is ignored, and a host or `nohup` may have left anything there.
fn reset_signals() -> io::Result<()> {
    for signal in Signal::iterator() {
        // SAFETY: the default action is no handler that could do harm. KILL and STOP refuse, rightly.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Stdio};

    use nix::sys::signal::{kill, raise};
    use nix::unistd::getpid;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    pub(super) const PATIENCE: Duration = Duration::from_secs(20);

    pub(super) fn until(mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "the condition never came true");
            std::thread::yield_now();
        }
    }

    /// A child that runs until the test ends it, at the latest with the test.
    pub(super) struct Running(pub(super) Child);

    impl Running {
        pub(super) fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        pub(super) fn identity(&self) -> Identity {
            Identity::of(self.0.id()).unwrap().unwrap()
        }

        pub(super) fn end(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            self.end();
        }
    }

    fn wait(watch: &mut Watch) -> Woken {
        watch.wait(PATIENCE).unwrap()
    }

    fn assert_quiet(watch: &mut Watch) {
        assert_eq!(watch.wait(Duration::ZERO).unwrap(), Woken::Timeout);
    }

    #[test]
    fn a_rename_into_a_watched_directory_wakes_once() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.events());
        assert!(watch.directory(directory.path()) && watch.directory(directory.path()));
        assert_quiet(&mut watch);
        outside.persist(directory.path().join("001.question")).unwrap();
        assert_eq!(wait(&mut watch), Woken::Changed);
        assert_quiet(&mut watch);
    }

    #[test]
    fn a_directory_deleted_or_moved_and_made_again_can_be_watched_again() {
        let top = tempfile::tempdir().unwrap();
        let (path, away) = (top.path().join("ipc"), top.path().join("away"));
        let mut watch = Watch::new(&[]).unwrap();
        assert!(!watch.directory(&path), "there is nothing to watch yet");
        fs::create_dir(&path).unwrap();
        assert!(watch.directory(&path));

        fs::remove_dir(&path).unwrap();
        assert_eq!(wait(&mut watch), Woken::Changed);
        assert!(!watch.directory(&path));
        fs::create_dir(&path).unwrap();
        assert!(watch.directory(&path));

        fs::rename(&path, &away).unwrap();
        assert_eq!(wait(&mut watch), Woken::Changed);
        fs::create_dir(&path).unwrap();
        assert!(watch.directory(&path));
        fs::write(away.join("old"), "").unwrap();
        assert_quiet(&mut watch);
        fs::write(path.join("new"), "").unwrap();
        assert_eq!(wait(&mut watch), Woken::Changed);
    }

    #[test]
    fn a_death_wakes_once() {
        let mut child = Running::new();
        let identity = child.identity();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.process(&identity) && watch.process(&identity));
        assert_quiet(&mut watch);
        child.end();
        assert_eq!(wait(&mut watch), Woken::Changed);
        assert!(watch.process(&identity));
        assert_quiet(&mut watch);
    }

    #[test]
    fn a_death_before_it_was_watched_wakes_once() {
        let mut child = Running::new();
        let identity = child.identity();
        child.end();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.process(&identity) && watch.process(&identity));
        assert_eq!(wait(&mut watch), Woken::Changed);
        assert_quiet(&mut watch);
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = Running::new();
        let identity = child.identity();
        assert_eq!(identity.life(), Life::Alive);
        assert!(identity.signal(Signal::SIGKILL).unwrap());
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.process(&identity));
        assert_eq!(wait(&mut watch), Woken::Changed);
        // Nobody has reaped it yet.
        kill(Pid::from_raw(child.0.id() as i32), None).unwrap();
        assert_eq!(identity.life(), Life::Dead);
        assert_eq!(Identity::of(child.0.id()).unwrap(), None);
        assert!(!identity.signal(Signal::SIGKILL).unwrap());
        child.end();
    }

    #[test]
    fn a_reused_number_or_another_boot_is_dead_and_gets_no_signal() {
        let own = Identity::own().unwrap();
        let reused = Identity { start: own.start - 1, ..own.clone() };
        let rebooted = Identity { boot: "another".to_owned(), ..own.clone() };
        for gone in [reused, rebooted] {
            assert_eq!(gone.life(), Life::Dead);
            assert!(!gone.signal(Signal::SIGKILL).unwrap());
        }
        assert_eq!(own.life(), Life::Alive);
    }

    #[test]
    fn another_namespace_is_unknown_and_gets_no_signal() {
        let own = Identity::own().unwrap();
        let other = Identity { namespace: Some("pid:[1]".to_owned()), ..own };
        assert_eq!(other.life(), Life::Unknown);
        assert!(other.signal(Signal::SIGKILL).is_err());
        let mut watch = Watch::new(&[]).unwrap();
        assert!(!watch.process(&other));
        assert_quiet(&mut watch);
    }

    #[test]
    fn an_identity_survives_its_file() {
        let own = Identity::own().unwrap();
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), own);
        assert_eq!(own.to_string(), format!("{}@{}", std::process::id(), own.start));
        let old = r#"{"pid":1,"start":2,"boot":"b"}"#;
        let identity: Identity = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&identity).unwrap(), old);
    }

    #[test]
    fn signals_queue_and_come_before_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (Signal::SIGUSR1, Signal::SIGUSR2);
        let mut watch = Watch::new(&[one as i32, two as i32]).unwrap();
        assert!(watch.directory(directory.path()));
        fs::write(directory.path().join("file"), "").unwrap();
        for signal in [one, two, one] {
            raise(signal).unwrap();
        }
        for signal in [one, one, two] {
            assert_eq!(wait(&mut watch), Woken::Signal(signal as i32));
        }
        assert_eq!(wait(&mut watch), Woken::Changed);
        assert_quiet(&mut watch);

        let sender = std::thread::spawn(move || kill(getpid(), two).unwrap());
        assert_eq!(wait(&mut watch), Woken::Signal(two as i32));
        sender.join().unwrap();
    }

    #[test]
    fn a_program_runs_only_when_it_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let ran = directory.path().join("ran");
        let mut command = Command::new("touch");
        let error = spawn_known(command.arg(&ran), |_| bail!("no space")).unwrap_err();
        assert_eq!(error.to_string(), "no space");
        assert!(!ran.exists());

        let mut known = None;
        let mut command = Command::new("touch");
        let mut child = spawn_known(command.arg(&ran), |identity| {
            assert!(!ran.exists());
            known = Some(identity.pid);
            Ok(())
        })
        .unwrap();
        assert!(child.wait().unwrap().success() && ran.exists());
        assert_eq!(known, Some(child.id()));

        let missing = directory.path().join("missing");
        let error = spawn_known(&mut Command::new(missing), |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("cannot start "), "{error}");
    }

    #[test]
    fn a_group_ends_as_a_whole() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut leader = Running(own_group(&mut command).spawn().unwrap());
        let mut line = String::new();
        let mut out = BufReader::new(leader.0.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let member = Identity::of(line.trim().parse().unwrap()).unwrap().unwrap();

        signal_group(leader.0.id(), Signal::SIGKILL).unwrap();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.process(&member));
        assert_eq!(wait(&mut watch), Woken::Changed);
        leader.end();
        // The member was init's to reap; until then the group is there, and a signal does nothing.
        until(|| member.life() == Life::Dead);
        signal_group(leader.0.id(), Signal::SIGKILL).unwrap();
        for everything in [0, 1, u32::MAX] {
            assert!(signal_group(everything, Signal::SIGKILL).is_err());
        }
    }
}
