//! Linux: `/proc`, pidfds and inotify in one epoll set.
//!
//! An inotify event says which directory changed and no more. Adding a watch again is one cheap call,
//! and the kernel drops the watch of a deleted directory.
//!
//! Longer than 500 lines because all that is Linux's own stands in one file.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::sys::statfs::{Statfs, fstatfs, statfs};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::time::ClockId;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::fault;
pub(super) use crate::process::landlock::{deny_abstract_sockets, restrict, scopes_signals};
use crate::process::tree::Process;
use crate::process::{Identity, Life, Signal, SignalPipe, Source};
use crate::text::collect;

/// The most bytes of an environment that are read; the system's usual limit is twice that.
const LONGEST_ENVIRONMENT: u64 = 1 << 20;

const OTHER_PROC: &str = "/proc is missing or belongs to another PID namespace";

/// The start time of a live process in clock ticks since boot; `None` if there is none.
pub(super) fn start_of(pid: u32) -> Result<Option<u64>> {
    if namespace().is_none() {
        bail!("{OTHER_PROC}");
    }
    let path = format!("/proc/{pid}/stat");
    let stat = match fs::read(&path) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => {
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

/// All live processes that this user can see.
pub(super) fn processes() -> Result<Vec<Process>> {
    namespace().context(OTHER_PROC)?;
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    let process = |entry: io::Result<fs::DirEntry>| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // The process may have ended meanwhile.
        let stat = parse(&fs::read(format!("/proc/{pid}/stat")).ok()?).filter(|it| !it.dead)?;
        let Stat { parent, group, start, .. } = stat;
        Some(Process { identity: Identity::with_start(pid, start), parent, group })
    };
    Ok(entries.filter_map(process).collect())
}

/// The environment that a process was started with; empty if this user may not read it.
pub(super) fn environment(pid: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(format!("/proc/{pid}/environ")) {
        let _ = file.take(LONGEST_ENVIRONMENT).read_to_end(&mut bytes);
    }
    bytes
}

/// The words of a process's command line; empty if this user may not read it.
pub(super) fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Makes this process the parent of every descendant that loses its own parent.
pub fn adopt_descendants() -> Result<()> {
    set_child_subreaper(true).context("cannot become the parent of orphaned processes")
}

/// Reaps adopted children that have ended. Stops at `own`, whose exit status its starter reads.
pub fn reap_adopted(own: u32) {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Some(pid) = waitid(Id::All, look).ok().and_then(|status| status.pid()) {
        if pid.as_raw().cast_unsigned() == own || waitpid(pid, Some(WaitPidFlag::WNOHANG)).is_err()
        {
            return;
        }
    }
}

/// Some fields of `/proc/PID/stat`.
struct Stat {
    dead: bool,
    parent: u32,
    group: u32,
    start: u64,
}

fn parse(stat: &[u8]) -> Option<Stat> {
    // The program's name in parentheses may have any bytes, also parentheses.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // proc(5) counts from 1, and the state after the name is field 3.
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |number: usize| field(number)?.parse().ok();
    let dead = match field(3)? {
        // A zombie with more threads is a main thread that ended before the others.
        "Z" => field(20)?.parse::<u32>().ok()? <= 1,
        state => matches!(state, "X" | "x"),
    };
    // The group of a kernel process may be -1.
    let group = number(5).unwrap_or_default();
    Some(Stat { dead, parent: number(4)?, group, start: field(22)?.parse().ok()? })
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH: the process was reaped between open and read.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// This process's pid namespace. `None` if `/proc` is missing or shows another namespace, as in a
/// sandbox that did not mount its own: its pids mean other processes.
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

/// The pid namespace of a process; `None` if this user may not see it.
pub(super) fn namespace_of(pid: u32) -> Option<OsString> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).map(PathBuf::into_os_string).ok()
}

/// The paths of all sockets of this machine that have one (proc_net(5)).
pub(super) fn socket_paths() -> BTreeSet<PathBuf> {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let path = |line: &[u8]| {
        let start = line.iter().position(|&byte| byte == b'/')?;
        Some(PathBuf::from(OsStr::from_bytes(&line[start..])))
    };
    collect(table.split(|&byte| byte == b'\n').filter_map(path))
}

/// The id of this installation (machine-id(5)); `None` if there is none.
pub(super) fn machine_id() -> Option<String> {
    let read = |path: &&str| fs::read_to_string(path).ok().map(|id| id.trim().to_owned());
    let files = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    // An image that has not booted yet has an empty file or the word "uninitialized".
    files.iter().filter_map(read).find(|id| id.len() == 32)
}

pub(super) fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.unwrap_or_default().trim().to_owned()
}

/// Time since boot, including time asleep.
pub fn time_since_boot() -> Duration {
    ClockId::CLOCK_BOOTTIME.now().expect("Linux has CLOCK_BOOTTIME since 2.6.39").into()
}

/// A handle for the process that has this pid now, even after the pid is reused.
fn hold(pid: u32) -> io::Result<OwnedFd> {
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    Ok(pidfd_open(raw.ok_or(Errno::ESRCH)?, PidfdFlags::empty())?)
}

pub(super) fn signal(identity: &Identity, signal: Signal) -> Result<bool> {
    let held = hold(identity.pid);
    match identity.life() {
        Life::Dead => return Ok(false),
        Life::Unknown => bail!("it belongs to another machine or PID namespace, or is hidden"),
        Life::Alive => {}
    }
    let named = rustix::process::Signal::from_named_raw(signal as i32).context("no such signal")?;
    let sent = match held {
        Ok(process) => pidfd_send_signal(process, named).map_err(io::Error::from),
        // Before Linux 5.3 there is no pidfd; the identity was compared just before.
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => {
            kill(Pid::from_raw(i32::try_from(identity.pid)?), signal).map_err(io::Error::from)
        }
        Err(error) => Err(error),
    };
    match sent {
        Err(error) if is_gone(&error) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

/// The key of a descriptor in the epoll set.
fn key(fd: impl AsFd) -> u64 {
    u64::from(fd.as_fd().as_raw_fd().cast_unsigned())
}

/// The sources of events of one [`Watch`](crate::process::Watch).
pub(super) struct EventQueue {
    /// `None` if the user has no inotify instance left; only the caller's reads see changes then.
    inotify: Option<Inotify>,
    /// The watched directories and files, as the caller named them.
    paths: HashMap<WatchDescriptor, PathBuf>,
    /// The live processes. A dead one is dropped, since its pidfd stays readable.
    processes: Vec<(OwnedFd, Identity)>,
    /// Readable at a signal, a change of a file and the death of a process.
    epoll: Epoll,
}

impl EventQueue {
    pub(super) fn new(pipes: &[SignalPipe]) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let inotify = inotify.filter(|_| !fault::fails("inotify"));
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let pipes = pipes.iter().map(|pipe| pipe.reader.as_fd());
        for fd in pipes.chain(inotify.iter().map(AsFd::as_fd)) {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, key(fd)))?;
        }
        Ok(Self { inotify, paths: HashMap::new(), processes: Vec::new(), epoll })
    }

    pub(super) fn events(&self) -> bool {
        self.inotify.is_some()
    }

    /// Watches the entries of a directory. Returns whether it was watched before; `None` if it cannot be.
    pub(super) fn directory(&mut self, path: &Path) -> Option<bool> {
        let interest = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.add(path, interest)
    }

    pub(super) fn writes(&mut self, path: &Path) -> Option<bool> {
        self.add(path, AddWatchFlags::IN_MODIFY)
    }

    fn add(&mut self, path: &Path, interest: AddWatchFlags) -> Option<bool> {
        let descriptor = self.inotify.as_ref()?.add_watch(path, interest).ok()?;
        let is_known = self.paths.get(&descriptor).is_some_and(|known| known == path);
        if !is_known {
            self.paths.insert(descriptor, path.into());
        }
        Some(is_known)
    }

    /// Adds a process. `Alive` if its death will end a wait, `Unknown` if it cannot.
    pub(super) fn process(&mut self, identity: &Identity) -> Life {
        // Hold the process before comparing, so that the pid cannot be reused in between.
        let held = hold(identity.pid);
        let life = identity.life();
        if life != Life::Alive {
            return life;
        }
        // Reported once: a child that was forked meanwhile may hold the pidfd open.
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        match held {
            Ok(it) if self.epoll.add(&it, EpollEvent::new(once, key(&it))).is_ok() => {
                self.processes.push((it, identity.clone()));
                Life::Alive
            }
            _ => Life::Unknown,
        }
    }

    /// Waits for an event. Returns what may have changed.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Vec<Source>> {
        // Events that do not fit end the next wait at once.
        let mut events = [EpollEvent::empty(); 16];
        // A part of a millisecond counts as a whole one, so that the caller does not call in a loop.
        let limit = EpollTimeout::try_from(limit + Duration::from_micros(999))?;
        let count = match self.epoll.wait(&mut events, limit) {
            // The signal handler wrote to its pipe, which the caller reads.
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            waited => waited.context("epoll_wait")?,
        };
        let is_dead =
            |process: &OwnedFd| events[..count].iter().any(|it| it.data() == key(process));
        let dead = self.processes.extract_if(.., |(process, _)| is_dead(process));
        let mut changed: Vec<_> = dead.map(|(_, identity)| Source::Process(identity)).collect();
        self.drain(&mut changed);
        Ok(changed)
    }

    /// Empties the inotify queue into `changed`.
    fn drain(&mut self, changed: &mut Vec<Source>) {
        let Some(inotify) = &self.inotify else { return };
        loop {
            let events = match inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    changed.push(Source::Any);
                }
                changed.extend(self.paths.get(&event.wd).cloned().map(Source::Path));
                // A directory that was moved is no longer at the path that the caller gave.
                let moved = event.mask.contains(AddWatchFlags::IN_MOVE_SELF);
                if moved {
                    let _ = inotify.rm_watch(event.wd);
                }
                if moved || event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.paths.remove(&event.wd);
                }
            }
        }
    }
}

/// Returns true if files below a path may change without an event here: on network file systems, and on those
/// of a program (FUSE).
pub fn is_remote(path: &Path) -> bool {
    statfs(path).is_ok_and(|system| is_remote_system(&system))
}

fn is_remote_system(system: &Statfs) -> bool {
    /// The numbers of statfs(2) for NFS, FUSE, SMB, CIFS, SMB2, 9P, Ceph, AFS, OCFS2, GFS2 and Coda.
    const REMOTE: [u32; 11] = [
        0x6969, 0x65735546, 0x517b, 0xff534d42, 0xfe534d42, 0x01021997, 0x00c36400, 0x5346414f,
        0x7461636f, 0x01161970, 0x73757245,
    ];
    REMOTE.contains(&(system.filesystem_type().0 as u32))
}

/// Returns true if a process has the file open to write; `None` if the system cannot tell. Until the file is
/// closed here, whoever opens it to write waits.
pub fn is_open_for_writing(file: &File) -> Option<bool> {
    /// fcntl(2), where libc has no name for it.
    const F_SETSIG: i32 = 10;
    // Another opener of a leased file sends a signal. SIGIO, the usual one, would end this process.
    let signal = nix::libc::SIGURG;
    // SAFETY: both calls take integers only, and the descriptor is open while `file` lives.
    let leased = unsafe {
        nix::libc::fcntl(file.as_raw_fd(), F_SETSIG, signal) == 0
            && nix::libc::fcntl(file.as_raw_fd(), nix::libc::F_SETLEASE, nix::libc::F_RDLCK) == 0
    };
    // Network file systems refuse a lease for reasons of their own.
    let is_refused = || Errno::last() == Errno::EAGAIN;
    let is_open = !leased && is_refused();
    let is_known = leased || is_open && !fstatfs(file).is_ok_and(|it| is_remote_system(&it));
    is_known.then_some(is_open)
}

/// Opens a file without following a symlink in any part of its absolute path.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` at a symlink.
pub fn open_without_symlinks(path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, how) {
        // An old kernel, or a container that forbids the call: the parts are opened one by one.
        Err(Errno::ENOSYS | Errno::EPERM) => {}
        opened => return opened,
    }
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut directory = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut parts = path.components().skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        let flags = if is_last { flags | OFlag::O_NOFOLLOW } else { step };
        directory = openat(&directory, part.as_os_str(), flags, mode)?;
    }
    Ok(directory)
}

/// Closes all descriptors but the first three at exec. Called in the forked child.
pub(super) fn keep_only_stdio() {
    // SAFETY: close_range(2) with CLOEXEC closes nothing now, and is async-signal-safe. Before Linux
    // 5.11 it fails, and inherited descriptors stay open.
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
    use std::os::unix::fs::symlink;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use nix::sys::signal::{SigHandler, SigSet};
    use nix::unistd::{getpid, getsid};

    use super::*;
    use crate::process::test_support::{
        Running, assert_changed, assert_no_event, next_event, wait_until,
    };
    use crate::process::{Watch, Woken, capture, detach};

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
        wait_until(|| fs::read_to_string(&out).unwrap().ends_with('\n'));
        let pid = fs::read_to_string(&out).unwrap().trim().parse().unwrap();
        Detached(Identity::of_pid(pid).unwrap().unwrap())
    }

    fn assert_default_signals(status: &str) {
        for mask in ["SigBlk:\t", "SigIgn:\t"] {
            let line = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
            // From 32 on they are real-time signals, of which libc keeps some to itself.
            let named = u64::from_str_radix(line, 16).unwrap() & 0x7fff_ffff;
            assert_eq!(named, 0, "{mask}{line}");
        }
    }

    #[test]
    fn captured_program_has_no_blocked_or_ignored_signal() {
        let status = || {
            let mut cat = Command::new("cat");
            let deadline = Instant::now() + Duration::from_secs(60);
            let output =
                capture(cat.arg("/proc/self/status"), Stdio::null(), deadline, 1 << 20).unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_default_signals(&status());
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        assert_default_signals(&status());
        blocked.thread_unblock().unwrap();
        // SAFETY: ignoring a signal is no handler that could do harm.
        unsafe { nix::sys::signal::signal(Signal::SIGWINCH, SigHandler::SigIgn) }.unwrap();
        assert_default_signals(&status());
    }

    #[test]
    fn detached_program_belongs_to_init_or_its_adopter_and_can_be_ended() {
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
        assert_default_signals(&status);

        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_process(program));
        assert!(program.signal(Signal::SIGTERM).unwrap());
        assert_changed(&mut watch, Source::Process(program.clone()));
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
    fn missing_program_is_reported_and_leaves_no_zombie() {
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
        wait_until(|| {
            let processes = fs::read_dir("/proc").unwrap();
            let names = processes.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            !names.filter_map(|name| name.parse().ok()).any(zombie)
        });
    }

    #[test]
    fn program_name_that_looks_like_fields_is_parsed() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("x) R 1 (");
        symlink("/bin/sh", &program).unwrap();
        let mut command = Command::new(&program);
        command.arg0("sh").args(["-c", "read line"]).stdin(Stdio::piped());
        let child = Running(command.spawn().unwrap());
        let pid = child.0.id();
        // The kernel sets the name a moment after spawn() may return.
        wait_until(|| fs::read(format!("/proc/{pid}/comm")).unwrap() == b"x) R 1 (\n");
        let start = field(pid as i32, 22).unwrap();
        assert_eq!(start_of(pid).unwrap(), Some(start.parse().unwrap()));
    }

    #[test]
    fn process_is_dead_only_after_its_last_thread() {
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
    fn death_wakes_without_inotify() {
        let mut watch = Watch::new(&[]).unwrap();
        watch.queue.inotify = None;
        let directory = tempfile::tempdir().unwrap();
        assert!(!watch.sees_files() && !watch.add_directory(directory.path()));
        let mut child = Running::new();
        assert!(watch.add_process(&child.identity()));
        assert_eq!(watch.wait_for_event(Duration::from_millis(1)).unwrap(), Woken::Timeout);
        let identity = child.identity();
        child.end();
        assert_changed(&mut watch, Source::Process(identity));
    }

    #[test]
    fn dropped_events_count_as_a_change_of_anything() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_directory(directory.path()));
        let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for number in 0..queue.trim().parse::<usize>().unwrap() {
            // The kernel merges an event with an equal one before it. A directory, because a program that
            // another test starts may hold a file open for a moment, whose event comes later.
            let path = directory.path().join((number % 2).to_string());
            fs::create_dir(&path).unwrap();
            fs::remove_dir(&path).unwrap();
        }
        let Woken::Changed(changed) = next_event(&mut watch) else { panic!("no change") };
        assert!(changed.contains(&Source::Any), "{changed:?}");
        assert_no_event(&mut watch);
    }

    #[test]
    fn file_counts_as_open_for_writing_until_its_last_writer_closes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("001.question");
        let writers = [File::create(&path).unwrap(), File::create(&path).unwrap()];
        let open = || is_open_for_writing(&File::open(&path).unwrap());
        for writer in writers {
            assert_eq!(open(), Some(true));
            drop(writer);
        }
        assert_eq!(open(), Some(false));
        // A writer waits for a reader, and the reader survives the system's word about that.
        let reader = File::open(&path).unwrap();
        assert_eq!(is_open_for_writing(&reader), Some(false));
        let writer = std::thread::spawn(move || fs::write(path, "Which?"));
        drop(reader);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn time_since_boot_is_the_uptime() {
        let before = time_since_boot();
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        // The file has hundredths of a second, cut off.
        assert!(before.as_secs_f64() - 0.01 <= uptime && uptime <= time_since_boot().as_secs_f64());
    }
}
