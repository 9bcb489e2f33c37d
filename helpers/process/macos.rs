//! macOS: `proc_pidinfo` and kqueue. Written from Apple's manual pages and the sources of the `nix`
//! and `libc` crates; **not yet compiled or run on a Mac**.
//!
//! There is no pidfd, so a signal is verified just before it is sent. A kqueue sees entries come and
//! go in a directory, and not that a file in it is written in place: the caller's scan does.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::kill;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::process::tree::Process;
use crate::process::{Identity, Life, Signal, SignalPipe};

/// The start time of a live process in microseconds since 1970.
pub(super) fn start_of(pid: u32) -> Result<Option<u64>> {
    Ok(info(pid)?.map(|info| start(&info)))
}

fn start(info: &libc::proc_bsdinfo) -> u64 {
    info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec
}

/// All live processes that can be seen, with their parents and groups.
pub(super) fn processes() -> Result<Vec<Process>> {
    // SAFETY: without a buffer it only says how many there are.
    let count = unsafe { libc::proc_listallpids(std::ptr::null_mut(), 0) };
    // Some more may be born until the second call.
    let mut pids = vec![0_i32; usize::try_from(count).unwrap_or_default() + 256];
    let size = i32::try_from(size_of_val(&pids[..])).context("too many processes")?;
    // SAFETY: the buffer is as long as we say, and lives until the call returns.
    let count = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
    if count < 0 {
        return Err(Errno::last()).context("cannot list the processes");
    }
    pids.truncate(usize::try_from(count)?);
    let process = |pid: i32| {
        let pid = u32::try_from(pid).ok()?;
        // It may have ended meanwhile, or be another user's.
        let info = info(pid).ok()??;
        let identity = Identity::with_start(pid, start(&info));
        Some(Process { identity, parent: info.pbi_ppid, group: info.pbi_pgid })
    };
    Ok(pids.into_iter().filter_map(process).collect())
}

/// The arguments and the environment that a process was started with, empty if we may not know.
pub(super) fn environment(pid: u32) -> Vec<u8> {
    let Ok(raw) = i32::try_from(pid) else { return Vec::new() };
    let mut name = [libc::CTL_KERN, libc::KERN_PROCARGS2, raw];
    // Both together are never longer than ARG_MAX.
    let mut buffer = vec![0_u8; 1 << 20];
    let mut length = buffer.len();
    // SAFETY: the buffer is as long as `length` says, nothing is set.
    let result = unsafe {
        libc::sysctl(
            name.as_mut_ptr(),
            name.len() as u32,
            buffer.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    buffer.truncate(if result == 0 { length } else { 0 });
    buffer
}

/// Nobody adopts here: what loses its parent becomes init's.
pub fn adopt_descendants() -> Result<()> {
    Ok(())
}

/// Nobody was adopted.
pub fn reap_adopted(_: u32) {}

fn info(pid: u32) -> Result<Option<libc::proc_bsdinfo>> {
    let Ok(raw @ 1..) = i32::try_from(pid) else { return Ok(None) };
    let size = size_of::<libc::proc_bsdinfo>();
    // SAFETY: it consists of integers and arrays of integers only, for which zeros are valid.
    let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the buffer is as long as we say, and lives until the call returns.
    let written = unsafe {
        libc::proc_pidinfo(raw, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size as i32)
    };
    if written <= 0 {
        // A zombie is ESRCH too, unless the fourth argument asks for those; EPERM is another user's.
        return match Errno::last() {
            Errno::ESRCH => Ok(None),
            error => Err(error).with_context(|| format!("cannot look at process {pid}")),
        };
    }
    if (written as usize) < size {
        bail!("the system tells less of process {pid} than it should");
    }
    Ok((info.pbi_status != libc::SZOMB).then_some(info))
}

/// macOS has no pid namespaces.
pub(super) fn namespace() -> Option<&'static str> {
    None
}

pub(super) fn boot_id() -> String {
    let mut buffer = [0_u8; 64];
    let mut length = buffer.len();
    // SAFETY: the name ends with a zero, the buffer is as long as `length` says, nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            buffer.as_mut_ptr().cast(),
            &raw mut length,
            std::ptr::null_mut(),
            0,
        )
    };
    if result != 0 {
        return String::new();
    }
    let text = buffer.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Time since boot, time asleep included, which CLOCK_MONOTONIC counts on macOS (clock_gettime(3)).
pub fn time_since_boot() -> Duration {
    ClockId::CLOCK_MONOTONIC.now().expect("macOS has CLOCK_MONOTONIC since 10.12").into()
}

pub(super) fn signal(identity: &Identity, signal: Signal) -> Result<bool> {
    match identity.life() {
        Life::Dead => return Ok(false),
        Life::Unknown => bail!("it cannot be seen"),
        Life::Alive => {}
    }
    match kill(Pid::from_raw(i32::try_from(identity.pid)?), signal) {
        Err(Errno::ESRCH) => Ok(false),
        sent => Ok(sent.map(|()| true)?),
    }
}

/// What one wait looks at.
pub(super) struct EventQueue {
    queue: Kqueue,
    pipes: Vec<SignalPipe>,
    /// The open directories and files; closing one ends its watch.
    open: HashMap<PathBuf, File>,
}

impl EventQueue {
    pub(super) fn new(pipes: Vec<SignalPipe>) -> Result<Self> {
        let queue = Self { queue: Kqueue::new()?, pipes, open: HashMap::new() };
        fcntl(&queue.queue, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        for pipe in &queue.pipes {
            queue.add(
                pipe.reader.as_raw_fd() as usize,
                EventFilter::EVFILT_READ,
                EvFlags::EV_ADD,
                FilterFlag::empty(),
            )?;
        }
        Ok(queue)
    }

    pub(super) fn pipes(&self) -> &[SignalPipe] {
        &self.pipes
    }

    pub(super) fn events(&self) -> bool {
        true
    }

    pub(super) fn directory(&mut self, path: &Path) -> bool {
        let interest = FilterFlag::NOTE_WRITE
            | FilterFlag::NOTE_LINK
            | FilterFlag::NOTE_DELETE
            | FilterFlag::NOTE_RENAME
            | FilterFlag::NOTE_REVOKE;
        self.open(path, libc::O_EVTONLY | libc::O_DIRECTORY, interest)
    }

    pub(super) fn writes(&mut self, path: &Path) -> bool {
        self.open(path, libc::O_EVTONLY, FilterFlag::NOTE_WRITE)
    }

    fn open(&mut self, path: &Path, flags: i32, interest: FilterFlag) -> bool {
        let same = |held: &File, now: &Metadata| {
            held.metadata().is_ok_and(|held| (held.dev(), held.ino()) == (now.dev(), now.ino()))
        };
        match (self.open.get(path), fs::metadata(path)) {
            (Some(held), Ok(now)) if same(held, &now) => return true,
            _ => drop(self.open.remove(path)),
        }
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let Ok(opened) = opened else { return false };
        let flags = EvFlags::EV_ADD | EvFlags::EV_CLEAR;
        let fd = opened.as_raw_fd() as usize;
        if self.add(fd, EventFilter::EVFILT_VNODE, flags, interest).is_err() {
            return false;
        }
        self.open.insert(path.to_owned(), opened);
        true
    }

    /// `Alive` if its death will now wake us, `Unknown` if it cannot.
    pub(super) fn process(&mut self, identity: &Identity) -> Life {
        // Added first and verified then. If the number belongs to another process now, its end will
        // be a wake too many; taking the filter back could hit an identity that is watched rightly.
        let flags = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
        let pid = identity.pid as usize;
        let added = self.add(pid, EventFilter::EVFILT_PROC, flags, FilterFlag::NOTE_EXIT);
        match (identity.life(), added) {
            // It is ending right now.
            (Life::Alive, Err(Errno::ESRCH)) => Life::Dead,
            (Life::Alive, Err(_)) => Life::Unknown,
            (life, _) => life,
        }
    }

    /// Waits for anything, and says whether a file or process may have changed.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<bool> {
        let mut limit = limit;
        let mut changed = false;
        let nothing =
            KEvent::new(0, EventFilter::EVFILT_READ, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut events = [nothing; 64];
        loop {
            let timeout = *TimeSpec::from(limit).as_ref();
            let count = match self.queue.kevent(&[], &mut events, Some(timeout)) {
                Ok(count) => count,
                // The handler has written to its pipe, which the caller reads anyway.
                Err(Errno::EINTR) => return Ok(changed),
                Err(error) => return Err(error).context("kevent"),
            };
            // A pipe is the only thing that we read.
            let read = |event: &KEvent| event.filter() == Ok(EventFilter::EVFILT_READ);
            changed |= !events[..count].iter().all(read);
            if count < events.len() {
                return Ok(changed);
            }
            limit = Duration::ZERO;
        }
    }

    fn add(
        &self,
        ident: usize,
        filter: EventFilter,
        flags: EvFlags,
        interest: FilterFlag,
    ) -> Result<(), Errno> {
        let change = KEvent::new(ident, filter, flags, interest, 0, 0);
        // With no room for events it never waits, and an error of the change is that of the call.
        match self.queue.kevent(&[change], &mut [], None) {
            // An interrupted call has made its changes (kqueue(2)).
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Lets no descriptor but the first three through exec; for the forked child.
pub(super) fn keep_only_stdio() {
    // SAFETY: fcntl(2) and getdtablesize(2) are plain system calls; a closed descriptor is refused.
    unsafe {
        for descriptor in 3..nix::libc::getdtablesize().min(4096) {
            nix::libc::fcntl(descriptor, nix::libc::F_SETFD, nix::libc::FD_CLOEXEC);
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
