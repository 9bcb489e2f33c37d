//! Linux: `/proc`, pidfds and inotify under one `ppoll`; the pidfds in an epoll set of their own,
//! because asking each of them at every wait would cost more than the rest of it.
//!
//! The inotify queue is only ever a bell. Nothing is remembered of its watches: adding one again is
//! one cheap call, and the kernel itself drops that of a deleted directory. So IN_IGNORED and
//! IN_Q_OVERFLOW need no more care than any other event: the caller scans and adds again.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::kill;
use nix::sys::time::TimeSpec;
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::time::ClockId;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::fault;
use crate::process::tree::Process;
use crate::process::{Identity, Life, Signal, SignalPipe};

/// How much of an environment is looked at, in bytes; the usual limit is twice that.
const LONGEST_ENVIRONMENT: u64 = 1 << 20;

/// The start time of a live process in clock ticks since boot.
pub(super) fn start_of(pid: u32) -> Result<Option<u64>> {
    if namespace().is_none() {
        bail!("/proc does not show the processes that this one sees");
    }
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Ok(stat) => stat,
        Err(error) if gone(&error) => {
            // Mounted with hidepid, /proc denies the processes of other users.
            let raw = i32::try_from(pid).unwrap_or(0);
            if raw > 0 && kill(Pid::from_raw(raw), None) == Err(Errno::EPERM) {
                bail!("{path} is hidden from us");
            }
            return Ok(None);
        }
        Err(error) => return Err(error).context(path),
    };
    let stat = parse(&stat).with_context(|| format!("{path} is not understood"))?;
    Ok((!stat.dead).then_some(stat.start))
}

/// All live processes that can be seen, with their parents and groups.
pub(super) fn processes() -> Result<Vec<Process>> {
    let namespace = namespace().context("/proc does not show the processes that this one sees")?;
    let identity = |pid, start| Identity {
        pid,
        start,
        boot: super::boot_id().to_owned(),
        namespace: Some(namespace.to_owned()),
    };
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let process = |entry: io::Result<fs::DirEntry>| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // It may have ended meanwhile.
        let stat = parse(&fs::read(format!("/proc/{pid}/stat")).ok()?).filter(|it| !it.dead)?;
        let Stat { parent, group, start, .. } = stat;
        Some(Process { identity: identity(pid, start), parent, group })
    };
    Ok(entries.filter_map(process).collect())
}

/// The environment that a process was started with, empty if we may not know.
pub(super) fn environment(pid: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) {
        let _ = file.take(LONGEST_ENVIRONMENT).read_to_end(&mut bytes);
    }
    bytes
}

/// Makes this process the parent of all that descend from it and lose theirs.
pub fn adopt_descendants() -> Result<()> {
    set_child_subreaper(true).context("cannot adopt what the worker leaves")
}

/// Reaps children that were adopted and have ended; `own` is left to whoever started it.
pub fn reap_adopted(own: u32) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        if pid.as_raw().cast_unsigned() == own || waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err()
        {
            return;
        }
    }
}

/// What is read of `/proc/PID/stat`.
struct Stat {
    dead: bool,
    parent: u32,
    group: u32,
    start: u64,
}

fn parse(stat: &[u8]) -> Option<Stat> {
    // The name in parentheses is any bytes; the fields are numbers from the last one on.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5) counts from 1, and the state behind the name is its field 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |number: usize| field(number)?.parse().ok();
    let dead = match field(3)? {
        // The main thread may have ended before the others.
        "Z" => field(20)?.parse::<u32>().ok()? <= 1,
        state => matches!(state, "X" | "x"),
    };
    // A process of the kernel has group 0 and may have -1.
    let group = number(5).unwrap_or_default();
    Some(Stat { dead, parent: number(4)?, group, start: field(22)?.parse().ok()? })
}

fn gone(error: &io::Error) -> bool {
    // ESRCH: it was reaped between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// Our pid namespace; `None` if `/proc` is missing or that of another one, as a sandbox without its
/// own mount has it, where the numbers mean other processes than to us.
pub(super) fn namespace() -> Option<&'static str> {
    static NAMESPACE: OnceLock<Option<String>> = OnceLock::new();
    let read = || {
        let own = fs::read_link("/proc/self").ok()?;
        if own != Path::new(&std::process::id().to_string()) {
            return None;
        }
        fs::read_link("/proc/self/ns/pid").ok()?.into_os_string().into_string().ok()
    };
    NAMESPACE.get_or_init(read).as_deref()
}

pub(super) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

/// Time since boot, time asleep included.
pub fn boottime() -> Duration {
    ClockId::CLOCK_BOOTTIME.now().expect("Linux has CLOCK_BOOTTIME since 2.6.39").into()
}

/// A handle that stays on this process even if its number is used again.
fn hold(pid: u32) -> io::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    Ok(pidfd_open(raw.ok_or(Errno::ESRCH)?, PidfdFlags::empty())?)
}

pub(super) fn signal(identity: &Identity, signal: Signal) -> Result<bool> {
    let held = hold(identity.pid);
    match identity.life() {
        Life::Dead => return Ok(false),
        Life::Unknown => bail!("it belongs to another pid namespace, or cannot be seen"),
        Life::Alive => {}
    }
    let named = rustix::process::Signal::from_named_raw(signal as i32).context("no such signal")?;
    let sent = match held {
        Ok(process) => pidfd_send_signal(process, named).map_err(io::Error::from),
        // Before Linux 5.3 there is only the number, verified a moment ago.
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => {
            kill(Pid::from_raw(i32::try_from(identity.pid)?), signal).map_err(io::Error::from)
        }
        Err(error) => Err(error),
    };
    match sent {
        Err(error) if gone(&error) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

/// What an epoll set calls a process.
fn name(process: &OwnedFd) -> u64 {
    u64::from(process.as_raw_fd().cast_unsigned())
}

/// What one wait looks at.
pub(super) struct EventQueue {
    pipes: Vec<SignalPipe>,
    /// `None` if the user's instances are used up; then the caller's scans have to do.
    inotify: Option<Inotify>,
    /// Live processes; one that died is reported and dropped, since its pidfd stays readable.
    processes: Vec<OwnedFd>,
    /// Readable when one of them has died.
    deaths: Epoll,
}

impl EventQueue {
    pub(super) fn new(pipes: Vec<SignalPipe>) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let inotify = inotify.filter(|_| !fault::fails("inotify"));
        let deaths = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { pipes, inotify, processes: Vec::new(), deaths })
    }

    pub(super) fn pipes(&self) -> &[SignalPipe] {
        &self.pipes
    }

    pub(super) fn events(&self) -> bool {
        self.inotify.is_some()
    }

    pub(super) fn directory(&mut self, path: &Path) -> bool {
        let interest = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.inotify.as_ref().is_some_and(|inotify| inotify.add_watch(path, interest).is_ok())
    }

    pub(super) fn writes(&mut self, path: &Path) -> bool {
        let interest = AddWatchFlags::IN_MODIFY;
        self.inotify.as_ref().is_some_and(|inotify| inotify.add_watch(path, interest).is_ok())
    }

    /// `Alive` if its death will now wake us, `Unknown` if it cannot.
    pub(super) fn process(&mut self, identity: &Identity) -> Life {
        // Held first and verified then, so that it cannot be another that got the number between.
        let held = hold(identity.pid);
        match (identity.life(), held) {
            (Life::Alive, Ok(process)) => {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, name(&process));
                if self.deaths.add(&process, event).is_err() {
                    return Life::Unknown;
                }
                self.processes.push(process);
            }
            (Life::Alive, Err(_)) => return Life::Unknown,
            (life, _) => return life,
        }
        Life::Alive
    }

    /// Waits for anything, and says whether a file or process may have changed.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<bool> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.deaths.0.as_fd())];
        fds.extend(self.inotify.iter().map(|inotify| readable(inotify.as_fd())));
        fds.extend(self.pipes.iter().map(|pipe| readable(pipe.reader.as_fd())));
        match ppoll(&mut fds, Some(TimeSpec::from(limit)), None) {
            // The handler has written to its pipe, which the caller reads anyway.
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error).context("ppoll"),
        }
        // Those that do not fit make the next wait return at once.
        let mut dead = [EpollEvent::empty(); 16];
        let count = self.deaths.wait(&mut dead, EpollTimeout::ZERO).unwrap_or(0);
        self.processes.retain(|process| {
            let alive = !dead[..count].iter().any(|event| event.data() == name(process));
            if !alive {
                // A child forked meanwhile may hold it open; then closing it is not enough.
                let _ = self.deaths.delete(process);
            }
            alive
        });
        Ok(self.drain() || count > 0)
    }

    /// Empties the inotify queue; `true` if there was anything in it.
    fn drain(&self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut any = false;
        loop {
            match inotify.read_events() {
                Ok(events) => {
                    any = true;
                    // What was moved away is no longer at the path that the caller asked for.
                    for event in events {
                        if event.mask.contains(AddWatchFlags::IN_MOVE_SELF) {
                            let _ = inotify.rm_watch(event.wd);
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return any,
            }
        }
    }
}

/// Lets no descriptor but the first three through exec; for the forked child.
pub(super) fn keep_only_stdio() {
    // SAFETY: close_range(2) with CLOEXEC closes nothing now; it is async-signal-safe. Before Linux
    // 5.11 it fails and what was inherited stays open.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            3_u32,
            u32::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use nix::sys::signal::{SigHandler, SigSet};
    use nix::unistd::{getpid, getsid};

    use super::super::tests::{PATIENCE, Running, until};
    use super::super::{Watch, Woken, detach};

    use super::*;

    /// A field of `/proc/PID/stat` as proc(5) counts them, from the state (3) on.
    fn field(pid: i32, number: usize) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit_once(')')?.1;
        rest.split_whitespace().nth(number - 3).map(str::to_owned)
    }

    fn parent(pid: i32) -> i32 {
        field(pid, 4).unwrap().parse().unwrap()
    }

    /// A detached program that runs until the test ends it, at the latest with the test.
    struct Detached(Identity);

    impl Drop for Detached {
        fn drop(&mut self) {
            let _ = self.0.signal(Signal::SIGKILL);
        }
    }

    fn detached(directory: &Path) -> Detached {
        let out = directory.join("pid");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$; exec sleep 1000"]);
        command.stdin(Stdio::null()).stdout(File::create(&out).unwrap()).stderr(Stdio::null());
        detach(&mut command).unwrap();
        until(|| fs::read_to_string(&out).unwrap().ends_with('\n'));
        let pid = fs::read_to_string(&out).unwrap().trim().parse().unwrap();
        Detached(Identity::of(pid).unwrap().unwrap())
    }

    #[test]
    fn a_detached_program_belongs_to_init_or_whoever_adopts_and_can_be_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        // SAFETY: ignoring a signal is no handler that could do harm.
        unsafe { nix::sys::signal::signal(Signal::SIGWINCH, SigHandler::SigIgn) }.unwrap();
        let detached_program = detached(directory.path());
        let program = &detached_program.0;
        let pid = program.pid as i32;

        // The nearest subreaper above us, in the end init.
        let mut above = getpid().as_raw();
        while above > 1 {
            above = parent(above);
            if above == parent(pid) {
                break;
            }
        }
        assert_eq!(parent(pid), above);
        assert_eq!(getsid(Some(Pid::from_raw(pid))), Ok(Pid::from_raw(pid)), "own session");
        assert_eq!(field(pid, 5).unwrap(), pid.to_string(), "own group");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for mask in ["SigBlk:\t", "SigIgn:\t"] {
            let line = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
            // From 32 on they are real-time signals, of which libc keeps some to itself.
            let named = u64::from_str_radix(line, 16).unwrap() & 0x7fff_ffff;
            assert_eq!(named, 0, "{mask}{line}");
        }

        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.process(program));
        assert!(program.signal(Signal::SIGTERM).unwrap());
        assert_eq!(watch.wait(PATIENCE).unwrap(), Woken::Changed);
        assert_eq!(program.life(), Life::Dead);
        assert!(!program.signal(Signal::SIGTERM).unwrap());

        set_child_subreaper(true).unwrap();
        let adopted = detached(directory.path());
        let pid = adopted.0.pid as i32;
        assert_eq!(parent(pid), getpid().as_raw());
        assert!(adopted.0.signal(Signal::SIGKILL).unwrap());
        waitpid(Pid::from_raw(pid), None).unwrap();
        set_child_subreaper(false).unwrap();
    }

    #[test]
    fn a_missing_program_is_reported_and_no_zombie_remains() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = detach(&mut Command::new(&missing)).unwrap_err();
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
        let cause = error.downcast_ref::<io::Error>().unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::NotFound);

        // The middle process never got past exec, so it has the name of the thread that forked it.
        let name = fs::read("/proc/thread-self/comm").unwrap();
        let zombie = |pid: i32| {
            field(pid, 3).is_some_and(|state| state == "Z")
                && parent(pid) == getpid().as_raw()
                && fs::read(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name)
        };
        until(|| {
            let processes = fs::read_dir("/proc").unwrap();
            let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            !names.filter_map(|name| name.parse().ok()).any(zombie)
        });
    }

    #[test]
    fn a_name_that_looks_like_fields_is_parsed_right() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("x) R 1 (");
        symlink("/bin/sh", &program).unwrap();
        let mut command = Command::new(&program);
        command.arg0("sh").args(["-c", "read line"]).stdin(Stdio::piped());
        let child = Running(command.spawn().unwrap());
        let pid = child.0.id();
        // The kernel sets the name a moment after spawn() may return.
        until(|| fs::read(format!("/proc/{pid}/comm")).unwrap() == b"x) R 1 (\n");
        let start = field(pid as i32, 22).unwrap();
        assert_eq!(start_of(pid).unwrap(), Some(start.parse().unwrap()));
    }

    #[test]
    fn only_the_last_thread_ends_a_process() {
        let stat = |state, threads| {
            let text = format!("7 (a b) {state} 5 6 {}{threads} 0 42 0", "0 ".repeat(14));
            let stat = parse(text.as_bytes()).unwrap();
            assert_eq!((stat.parent, stat.group, stat.start), (5, 6, 42));
            stat.dead
        };
        assert!(!stat("S", 1));
        assert!(!stat("Z", 2), "the main thread ended first");
        assert!(stat("Z", 1) && stat("X", 1));
        assert!(parse(b"nonsense").is_none());
    }

    #[test]
    fn without_inotify_deaths_still_wake() {
        let mut watch = Watch::new(&[]).unwrap();
        watch.queue.inotify = None;
        let directory = tempfile::tempdir().unwrap();
        assert!(!watch.events() && !watch.directory(directory.path()));
        let mut child = Running::new();
        assert!(watch.process(&child.identity()));
        assert_eq!(watch.wait(Duration::from_millis(1)).unwrap(), Woken::Timeout);
        child.end();
        assert_eq!(watch.wait(PATIENCE).unwrap(), Woken::Changed);
    }

    #[test]
    fn boottime_is_the_uptime() {
        let before = boottime();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // The file has hundredths of a second, cut off.
        assert!(before.as_secs_f64() - 0.01 <= uptime && uptime <= boottime().as_secs_f64());
    }
}
