//! Landlock and seccomp around a program, for systems that forbid namespaces.
//!
//! Invariant: the program starts only if everything holds. All is prepared before the fork; the child
//! makes system calls only, and does not exec if one of them fails.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc::{self, sock_filter};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::stat::{Mode, SFlag, fstat};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::fault;
use crate::process::os::{keep_only_stdio, open_without_symlinks};
use crate::process::{Rule, find_program};

/// The rights of landlock(7) that Linux 6.2 knows, in the order of their bits: execute, write, read, list,
/// remove two kinds, make seven kinds, link from another directory, truncate.
const ALL: u64 = (1 << 15) - 1;
const READ: u64 = 1 | 1 << 2 | 1 << 3;
const OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14;
const MAKE_DEVICES_AND_SOCKETS: u64 = 1 << 6 | 1 << 9 | 1 << 11;

/// The ways out that landlock(7) closes since Linux 6.12.
const ABSTRACT_SOCKETS: u64 = 1;
const SIGNALS: u64 = 2;

/// The number of this processor's system calls (`AUDIT_ARCH_…`); on others, the filter allows nothing.
const PROCESSOR: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else {
    0
};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const DENY: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const ANY: u32 = u32::MAX;

/// A system call, one of its arguments, the bits that count, their value, and the answer to such a call. The
/// first match counts.
type Answer = (libc::c_long, u8, u32, u32, u32);

const ANSWERS: &[Answer] = &[
    (libc::SYS_socket, 0, ANY, libc::AF_UNIX as u32, DENY),
    // A pair of streams leads nowhere else; datagram sockets (and raw ones) can be connected again.
    (libc::SYS_socketpair, 1, 0xf, libc::SOCK_DGRAM as u32, DENY),
    (libc::SYS_socketpair, 1, 0xf, libc::SOCK_RAW as u32, DENY),
    // Without scoped signals, -1 would reach all processes; a limit can end one.
    (libc::SYS_kill, 0, ANY, u32::MAX, DENY),
    (libc::SYS_prlimit64, 0, ANY, 0, ALLOW),
    (libc::SYS_prlimit64, 0, 0, 0, DENY),
    // A filter cannot see the flags of clone3; without it, C libraries use clone.
    (libc::SYS_clone3, 0, 0, 0, MISSING),
    (libc::SYS_clone, 0, USER_NAMESPACE, USER_NAMESPACE, DENY),
    (libc::SYS_unshare, 0, USER_NAMESPACE, USER_NAMESPACE, DENY),
    // btrfs and bcachefs make snapshots anywhere by ioctl; the first three only copy within files.
    (libc::SYS_ioctl, 1, ANY, 0x4004_9409, ALLOW),
    (libc::SYS_ioctl, 1, ANY, 0x4020_940d, ALLOW),
    (libc::SYS_ioctl, 1, ANY, 0xc018_9436, ALLOW),
    (libc::SYS_ioctl, 1, 0xff00, 0x9400, DENY),
    (libc::SYS_ioctl, 1, 0xff00, 0xbc00, DENY),
];
const USER_NAMESPACE: u32 = libc::CLONE_NEWUSER as u32;

/// The system calls that reach what no rule for a file covers: keys, memory and messages that
/// processes share, mounts, and other ways into the kernel. Landlock protects other processes' memory.
const DENIED: &[libc::c_long] = &[
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_io_uring_setup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
];

/// Lets a program start only with the access of these rules, and without privileges, unix sockets and
/// descriptors beyond the standard ones.
///
/// # Errors
/// The kernel cannot hold it, or a path cannot be opened.
pub(in crate::process) fn restrict(
    command: &mut Command,
    rules: &[(PathBuf, Rule)],
    closes_network: bool,
) -> Result<()> {
    let ruleset = ruleset(rules)?;
    let filter = filter(closes_network);
    let apply = move || {
        keep_only_stdio();
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none)?;
        restrict_self(&ruleset)?;
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            // The kernel only reads it.
            filter: filter.as_ptr().cast_mut(),
        };
        let (call, mode) = (libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER);
        // SAFETY: the program points to a live filter of that length.
        Errno::result(unsafe { libc::syscall(call, mode, 0, &raw const program) })?;
        let (family, kind) = (libc::AF_UNIX, libc::SOCK_STREAM);
        // SAFETY: the call takes three numbers.
        match unsafe { libc::syscall(libc::SYS_socket, family, kind, 0) } {
            -1 => Ok(()),
            _ => Err(Errno::ENOTSUP.into()),
        }
    };
    // SAFETY: the closure runs in the forked child, makes system calls and allocates nothing.
    unsafe { command.pre_exec(apply) };
    Ok(())
}

/// Returns true if the kernel can keep a program from sending signals outside (Linux 6.12).
pub(in crate::process) fn scopes_signals() -> bool {
    create(0, SIGNALS).is_ok()
}

/// Keeps a program from connecting to sockets without a path, such as X11's and D-Bus's, where the
/// kernel can (Linux 6.12). No file access is limited, so that the program can still mount.
pub(in crate::process) fn deny_abstract_sockets(command: &mut Command) {
    // Such a program would lose its privileges, and with them its purpose.
    let program = find_program(command.get_program()).and_then(|path| path.metadata().ok());
    if program.is_none_or(|meta| meta.mode() & 0o4000 != 0) {
        return;
    }
    if let Ok(ruleset) = create(0, ABSTRACT_SOCKETS) {
        // SAFETY: the closure runs in the forked child, makes system calls and allocates nothing.
        unsafe { command.pre_exec(move || Ok(restrict_self(&ruleset)?)) };
    }
}

/// Restricts this thread and what it executes, for ever.
fn restrict_self(ruleset: &OwnedFd) -> nix::Result<()> {
    set_no_new_privs()?;
    // SAFETY: the call takes two numbers, the first an open descriptor.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    Errno::result(done).map(drop)
}

/// A ruleset that denies these rights everywhere, and some ways to processes outside.
fn create(denied: u64, scopes: u64) -> nix::Result<OwnedFd> {
    // `struct landlock_ruleset_attr`: files, network, scopes.
    let attributes = [denied, 0, scopes];
    if fault::fails("landlock") {
        return Err(Errno::ENOSYS);
    }
    let (call, size) = (libc::SYS_landlock_create_ruleset, size_of_val(&attributes));
    // SAFETY: the pointer is to a live value of the size that is given.
    let made = unsafe { libc::syscall(call, attributes.as_ptr(), size, 0) };
    // SAFETY: the kernel has just made this descriptor, with close-on-exec.
    Errno::result(made).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A ruleset that allows what the rules say and nothing else.
fn ruleset(rules: &[(PathBuf, Rule)]) -> Result<OwnedFd> {
    let ruleset = create(ALL, ABSTRACT_SOCKETS | SIGNALS).or_else(|_| create(ALL, 0));
    let ruleset = ruleset.context("landlock needs Linux 6.2")?;
    for (path, rule) in rules {
        let access = match rule {
            Rule::Hidden => continue,
            Rule::ReadOnly => READ,
            Rule::Writable => ALL & !MAKE_DEVICES_AND_SOCKETS,
        };
        let file = open_without_symlinks(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
        // A path that has vanished or become a link allows nothing.
        let Ok(file) = file else { continue };
        let is_directory = fstat(&file)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
        let access = if is_directory { access } else { access & OF_FILES };
        // `struct landlock_path_beneath_attr`, which is packed.
        let mut beneath = [0; 12];
        beneath[..8].copy_from_slice(&access.to_ne_bytes());
        beneath[8..].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        let (call, fd) = (libc::SYS_landlock_add_rule, ruleset.as_raw_fd());
        // SAFETY: the pointer is to a live value of the kind 1, and both descriptors are open.
        Errno::result(unsafe { libc::syscall(call, fd, 1, beneath.as_ptr(), 0) })?;
    }
    Ok(ruleset)
}

/// The filter of system calls, as seccomp(2) reads it.
fn filter(closes_network: bool) -> Vec<sock_filter> {
    let step = |code, k, jt, jf| sock_filter { code, jt, jf, k };
    let load = |offset| step(0x20, offset, 0, 0);
    let answer = |action| step(0x06, action, 0, 0);
    let (mask_with, is_equal, is_at_least) = (0x54, 0x15, 0x35);
    let mut filter = vec![
        load(4),
        step(is_equal, PROCESSOR, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
        // The calls of x32 have numbers of their own, from this bit on.
        step(is_at_least, 0x4000_0000, 0, 1),
        answer(MISSING),
    ];
    for call in closes_network.then_some(libc::SYS_socket).iter().chain(DENIED) {
        filter.extend([step(is_equal, *call as u32, 0, 1), answer(DENY)]);
    }
    for (call, argument, mask, value, action) in ANSWERS {
        filter.extend([
            load(0),
            step(is_equal, *call as u32, 0, 4),
            // The lower half, which is all that these calls look at.
            load(16 + 8 * u32::from(*argument)),
            step(mask_with, *mask, 0, 0),
            step(is_equal, *value, 0, 1),
            answer(*action),
        ]);
    }
    filter.push(answer(ALLOW));
    filter
}
