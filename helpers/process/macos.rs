//! macOS: `proc_pidinfo` and kqueue. Checked against Apple's manual pages and kernel sources and
//! type-checked by `tests/macos.sh`; **not yet run on a Mac**.
//!
//! macOS has no pidfd, so a signal is verified just before it is sent. A kqueue reports entries that
//! come and go in a directory, but no write to a file in it: the caller's next read finds those.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::process::tree::Process;
use crate::process::{Identity, Life, Rule, Signal, SignalPipe, Source};

/// The start time of a live process in microseconds since 1970.
pub(super) fn start_of(pid: u32) -> Result<Option<u64>> {
    Ok(info(pid)?.map(|info| start(&info)))
}

fn start(info: &libc::proc_bsdinfo) -> u64 {
    info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec
}

/// All live processes of this user, with their parents and groups.
pub(super) fn processes() -> Result<Vec<Process>> {
    // SAFETY: without a buffer, the call only returns how many there are.
    let count = unsafe { libc::proc_listallpids(std::ptr::null_mut(), 0) };
    // Leave room for processes that start before the second call.
    let mut pids = vec![0_i32; usize::try_from(count).unwrap_or_default() + 256];
    let size = i32::try_from(size_of_val(&pids[..])).context("too many processes")?;
    // SAFETY: the buffer has `size` bytes and lives until the call returns.
    let count = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
    // A failure is 0: libproc never returns the -1 of the system call.
    if count <= 0 {
        return Err(Errno::last()).context("cannot list the processes");
    }
    pids.truncate(usize::try_from(count)?);
    let process = |pid: i32| {
        let pid = u32::try_from(pid).ok()?;
        // Skip processes that ended meanwhile or belong to another user.
        let info = info(pid).ok()??;
        let identity = Identity::with_start(pid, start(&info));
        Some(Process { identity, parent: info.pbi_ppid, group: info.pbi_pgid })
    };
    Ok(pids.into_iter().filter_map(process).collect())
}

/// The environment that a process was started with, as `NAME=value` strings that end in NUL; empty
/// if we may not know. System Integrity Protection hides that of Apple's own programs, such as `sh`.
pub(super) fn environment(pid: u32) -> Vec<u8> {
    let Ok(raw) = i32::try_from(pid) else { return Vec::new() };
    let mut name = [libc::CTL_KERN, libc::KERN_PROCARGS2, raw];
    // The kernel refuses a buffer that is longer than the count and ARG_MAX (1 MiB).
    let arguments = sysctl(size_of::<i32>() + (1 << 20), |buffer, length| {
        let (name, count) = (name.as_mut_ptr(), name.len() as u32);
        // SAFETY: the buffer has `length` bytes, and no new value is set.
        unsafe { libc::sysctl(name, count, buffer, length, std::ptr::null_mut(), 0) }
    });
    after_arguments(&arguments).unwrap_or_default().to_owned()
}

/// The bytes that the kernel writes into a buffer of that size, whose pointer and length `call`
/// gets; empty if the call fails.
fn sysctl(most: usize, call: impl FnOnce(*mut libc::c_void, *mut usize) -> i32) -> Vec<u8> {
    let (mut buffer, mut length) = (vec![0_u8; most], most);
    let result = call(buffer.as_mut_ptr().cast(), &raw mut length);
    buffer.truncate(if result == 0 { length } else { 0 });
    buffer
}

/// The part of a `KERN_PROCARGS2` buffer behind the arguments. The buffer holds the number of
/// arguments, the program's path padded with NULs to a multiple of 8 bytes, the arguments, the
/// environment and the kernel's own strings (`exec_extract_strings` in XNU's kern_exec.c).
fn after_arguments(buffer: &[u8]) -> Option<&[u8]> {
    let end = |text: &[u8]| text.iter().position(|&byte| byte == 0).map(|nul| nul + 1);
    let (count, strings) = buffer.split_first_chunk()?;
    let mut rest = strings.get(end(strings)?.next_multiple_of(8)..)?;
    for _ in 0..i32::from_ne_bytes(*count) {
        rest = &rest[end(rest)?..];
    }
    Some(rest)
}

/// macOS has no namespaces.
pub(super) fn namespace_of(_pid: u32) -> Option<OsString> {
    None
}

/// macOS has no such sockets.
pub(super) fn deny_abstract_sockets(_: &mut Command) {}

/// macOS has no Landlock.
pub(super) fn restrict(_: &mut Command, _: &[(PathBuf, Rule)], _: bool) -> Result<()> {
    bail!("macOS has no Landlock")
}

/// macOS has no Landlock.
pub(super) fn scopes_signals() -> bool {
    false
}

/// No sockets by name: the sandbox denies all of them.
pub(super) fn socket_paths() -> BTreeSet<PathBuf> {
    BTreeSet::new()
}

/// The words of a process's command line, as ps(1) prints it; empty if it has ended.
pub(super) fn command_line(pid: u32) -> Vec<String> {
    let ps = Command::new("/bin/ps").args(["-o", "args=", "-p", &pid.to_string()]).output();
    let line = ps.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

/// Does nothing: on macOS, only init adopts a process that lost its parent.
pub fn adopt_descendants() -> Result<()> {
    Ok(())
}

/// Does nothing, because nothing was adopted.
pub fn reap_adopted(_: u32) {}

/// The kernel's record of a live process of this user; `None` if there is none with this number.
fn info(pid: u32) -> Result<Option<libc::proc_bsdinfo>> {
    let Ok(raw @ 1..) = i32::try_from(pid) else { return Ok(None) };
    let size = size_of::<libc::proc_bsdinfo>();
    // SAFETY: the struct consists of integers and arrays of integers, for which zeros are valid.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer has `size` bytes and lives until the call returns.
    let written = unsafe {
        libc::proc_pidinfo(raw, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size as i32)
    };
    if written <= 0 {
        // A zombie is ESRCH too, since the third argument is 0. Another user's process is EPERM.
        return match Errno::last() {
            Errno::ESRCH => Ok(None),
            error => Err(error).with_context(|| format!("cannot look at process {pid}")),
        };
    }
    if (written as usize) < size {
        bail!("the system returned too little about process {pid}");
    }
    Ok((info.pbi_status != libc::SZOMB).then_some(info))
}

/// macOS has no pid namespaces.
pub(super) fn namespace() -> Option<&'static str> {
    None
}

/// A UUID that the kernel makes at each boot; empty if it cannot be read.
pub(super) fn boot_id() -> String {
    let id = sysctl(64, |buffer, length| {
        let name = c"kern.bootsessionuuid".as_ptr();
        // SAFETY: the name ends with a NUL, the buffer has `length` bytes, and no new value is set.
        unsafe { libc::sysctlbyname(name, buffer, length, std::ptr::null_mut(), 0) }
    });
    let text = id.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Time since boot, including time asleep, which macOS's CLOCK_MONOTONIC counts (clock_gettime(3)).
pub fn time_since_boot() -> Duration {
    ClockId::CLOCK_MONOTONIC.now().expect("macOS has CLOCK_MONOTONIC since 10.12").into()
}

/// Sends a signal to a process that was verified just before; `false` if the process is gone.
pub(super) fn signal(identity: &Identity, signal: Signal) -> Result<bool> {
    match identity.life() {
        Life::Dead => return Ok(false),
        Life::Unknown => bail!("the process cannot be seen"),
        Life::Alive => {}
    }
    match kill(Pid::from_raw(i32::try_from(identity.pid)?), signal) {
        Err(Errno::ESRCH) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

/// The files, processes and signals that one wait watches.
pub(super) struct EventQueue {
    queue: Kqueue,
    /// The watched directories and files; closing one ends its watch.
    open: HashMap<PathBuf, File>,
    /// The watched processes by pid.
    processes: HashMap<usize, Identity>,
}

impl EventQueue {
    pub(super) fn new(pipes: &[SignalPipe]) -> Result<Self> {
        // The kernel itself makes a kqueue close-on-exec and close-on-fork.
        let (open, processes) = (HashMap::new(), HashMap::new());
        let queue = Self { queue: Kqueue::new()?, open, processes };
        for pipe in pipes {
            let fd = pipe.reader.as_raw_fd() as usize;
            queue.add(fd, EventFilter::EVFILT_READ, EvFlags::EV_ADD, FilterFlag::empty())?;
        }
        Ok(queue)
    }

    pub(super) fn events(&self) -> bool {
        true
    }

    /// Watches the entries of a directory. Returns whether it was watched before; `None` if it cannot be.
    pub(super) fn directory(&mut self, path: &Path) -> Option<bool> {
        let interest = FilterFlag::NOTE_WRITE
            | FilterFlag::NOTE_LINK
            | FilterFlag::NOTE_DELETE
            | FilterFlag::NOTE_RENAME
            | FilterFlag::NOTE_REVOKE;
        self.open(path, libc::O_EVTONLY | libc::O_DIRECTORY, interest)
    }

    pub(super) fn writes(&mut self, path: &Path) -> Option<bool> {
        self.open(path, libc::O_EVTONLY, FilterFlag::NOTE_WRITE)
    }

    /// Watches what is at the path now; a watch of what was there before ends.
    fn open(&mut self, path: &Path, flags: i32, interest: FilterFlag) -> Option<bool> {
        let same = |held: &File, now: &Metadata| {
            held.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (now.dev(), now.ino()))
        };
        match (self.open.get(path), fs::metadata(path)) {
            (Some(held), Ok(now)) if same(held, &now) => return Some(true),
            _ => drop(self.open.remove(path)),
        }
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        let flags = EvFlags::EV_ADD | EvFlags::EV_CLEAR;
        self.add(opened.as_raw_fd() as usize, EventFilter::EVFILT_VNODE, flags, interest).ok()?;
        self.open.insert(path.to_owned(), opened);
        Some(false)
    }

    /// `Alive` if the death of the process will now wake us, `Unknown` if it cannot.
    pub(super) fn process(&mut self, identity: &Identity) -> Life {
        // Add the filter before the identity is verified, so that no death is missed. Keep it if the
        // number has a new owner: an earlier watch may be of that owner, and a spurious wake is cheap.
        let flags = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
        let pid = identity.pid as usize;
        let added = self.add(pid, EventFilter::EVFILT_PROC, flags, FilterFlag::NOTE_EXIT);
        let life = identity.life();
        if life == Life::Alive {
            self.processes.insert(pid, identity.clone());
        }
        match (life, added) {
            // The process is exiting: the kernel takes no filter for it any more.
            (Life::Alive, Err(Errno::ESRCH)) => Life::Dead,
            (Life::Alive, Err(_)) => Life::Unknown,
            (life, _) => life,
        }
    }

    /// Waits for an event. Returns what may have changed.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<Vec<Source>> {
        let nothing =
            KEvent::new(0, EventFilter::EVFILT_READ, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        // Events that do not fit end the next wait at once.
        let mut events = [nothing; 64];
        let timeout = *TimeSpec::from(limit).as_ref();
        let count = match self.queue.kevent(&[], &mut events, Some(timeout)) {
            // The signal handler has written to its pipe, which the caller reads next.
            Err(Errno::EINTR) => return Ok(Vec::new()),
            waited => waited.context("kevent")?,
        };
        Ok(events[..count].iter().filter_map(|event| self.source(event)).collect())
    }

    /// The source of an event; `None` for the pipes of signals, and for what is no longer watched.
    fn source(&self, event: &KEvent) -> Option<Source> {
        match event.filter().ok()? {
            EventFilter::EVFILT_PROC => {
                self.processes.get(&event.ident()).cloned().map(Source::Process)
            }
            EventFilter::EVFILT_VNODE => {
                let is_it =
                    |(_, file): &(&PathBuf, &File)| file.as_raw_fd() as usize == event.ident();
                self.open.iter().find(is_it).map(|(path, _)| Source::Path(path.clone()))
            }
            _ => None,
        }
    }

    /// Registers a filter, or replaces the one of the same `ident`.
    fn add(
        &self,
        ident: usize,
        filter: EventFilter,
        flags: EvFlags,
        interest: FilterFlag,
    ) -> Result<(), Errno> {
        let change = KEvent::new(ident, filter, flags, interest, 0, 0);
        // Without room for events, the call does not wait, and fails with the error of the change.
        self.queue.kevent(&[change], &mut [], None).map(drop)
    }
}

/// Returns true if files below a path may change without an event here: on network file systems, and on those
/// of a program (FUSE).
pub fn is_remote(path: &Path) -> bool {
    const REMOTE: [&str; 5] = ["nfs", "smbfs", "afpfs", "webdav", "fuse"];
    statfs(path).is_ok_and(|system| {
        let name = system.filesystem_type_name();
        REMOTE.iter().any(|remote| name.contains(remote))
    })
}

/// Returns true if a process has the file open to write. macOS cannot tell.
pub fn is_open_for_writing(_: &File) -> Option<bool> {
    None
}

/// Opens a file without following a symlink in any part of its absolute path (`O_NOFOLLOW_ANY` of
/// open(2), since macOS 11).
///
/// # Errors
/// `ELOOP` at a symlink.
pub fn open_without_symlinks(path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    const NOFOLLOW_ANY: i32 = 0x2000_0000;
    open(path, flags | OFlag::from_bits_retain(NOFOLLOW_ANY), mode)
}

/// Marks all descriptors but the first three close-on-exec; for the forked child.
pub(super) fn keep_only_stdio() {
    // SAFETY: getdtablesize(2) and fcntl(2) are plain system calls; a closed descriptor is an error.
    unsafe {
        // The lowest free number is given out first, so a caller has hardly more than 4096 open; a
        // limit of millions would cost as many calls.
        for descriptor in 3..libc::getdtablesize().min(4096) {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// The hardware UUID (gethostuuid(3)); `None` if the system does not tell.
pub(super) fn machine_id() -> Option<String> {
    let mut id = [0_u8; 16];
    let timeout = libc::timespec { tv_sec: 1, tv_nsec: 0 };
    // SAFETY: both pointers are to live values of the sizes that the call expects.
    let result = unsafe { libc::gethostuuid(id.as_mut_ptr(), &raw const timeout) };
    (result == 0).then(|| id.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_no_environment() {
        let strings = b"/bin/x\0\0\0NAME=argument\0NAME=value\0";
        let buffer = |count: i32| [&count.to_ne_bytes(), &strings[..]].concat();
        let rest = |count| after_arguments(&buffer(count)).map(<[u8]>::to_vec);
        // The path and its padding take 8 bytes, so the first argument is empty.
        assert_eq!(rest(2).unwrap(), b"NAME=value\0");
        assert_eq!(rest(3).unwrap(), b"");
        assert_eq!(rest(4), None);
        assert_eq!(after_arguments(b""), None);
    }

    #[test]
    fn own_environment_is_readable() {
        let environment = environment(std::process::id());
        let path = std::env::var("PATH").unwrap();
        let mut variables = environment.split(|&byte| byte == 0);
        assert!(variables.any(|it| it == format!("PATH={path}").as_bytes()));
    }
}
