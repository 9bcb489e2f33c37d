//! Processes that a test started, as `/proc` shows them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait_until;

/// Sends a signal to a process.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(raw(pid), signal).expect("the process is there");
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// `true` while a process runs; a zombie does not.
pub(crate) fn runs(pid: u32) -> bool {
    field(pid, 3).is_some_and(|state| !matches!(state.as_str(), "Z" | "X"))
}

/// Ends a process by SIGKILL and waits until it is gone.
pub(crate) fn kill_and_wait(pid: u32) {
    signal(pid, Signal::SIGKILL);
    wait_until("the killed process is gone", || (!runs(pid)).then_some(()));
}

/// A field of `/proc/PID/stat`, numbered as in proc(5).
pub(crate) fn number(pid: u32, field: usize) -> u32 {
    self::field(pid, field).and_then(|text| text.parse().ok()).expect("the process is there")
}

/// The text of such a field.
pub(crate) fn field(pid: u32, number: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(number - 3).map(str::to_owned)
}

/// The parent, the process group and the session of a process.
pub(crate) fn parent_group_session(pid: u32) -> (u32, u32, u32) {
    (number(pid, 4), number(pid, 5), number(pid, 6))
}

/// A line of `/proc/PID/status` in kilobytes.
pub(crate) fn kilobytes(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The processes above this one, up to init.
pub(crate) fn ancestors() -> Vec<u32> {
    let mut above = vec![number(std::process::id(), 4)];
    while let Some(&last) = above.last()
        && last > 1
    {
        above.push(number(last, 4));
    }
    above
}

/// `true` if a process has an inotify watch.
pub(crate) fn watches_files(pid: u32) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    entries.flatten().any(|entry| {
        fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("inotify wd:"))
    })
}

/// The environment of a process, one variable a line.
fn environment(pid: u32) -> Vec<Vec<u8>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    bytes.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

/// The running processes whose environment names `home`.
pub(crate) fn all_of(home: &Path) -> Vec<u32> {
    let mark = [b"HOME=", home.as_os_str().as_bytes()].concat();
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| environment(pid).contains(&mark) && runs(pid)).collect()
}

/// Kills these processes, whatever their parents are.
pub(crate) fn end_all_of(home: &Path) {
    // Repeat, because a process may have forked during the scan.
    for _ in 0..1000 {
        let pids = all_of(home);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(raw(pid), Signal::SIGKILL);
        }
        std::thread::yield_now();
    }
}

/// The processes of `home` that supervisors started as workers, without descendants.
pub(crate) fn workers_of(home: &Path) -> Vec<u32> {
    let is_worker = |pid: &u32| {
        // The mark of a supervisor ends with /0.
        let of_a_worker =
            |it: &Vec<u8>| it.starts_with(b"DISPATCH_ATTEMPT=") && !it.ends_with(b"/0");
        let marked = environment(*pid).iter().any(of_a_worker);
        marked && field(*pid, 5).is_some_and(|group| group == pid.to_string())
    };
    all_of(home).into_iter().filter(is_worker).collect()
}

/// The running processes of an attempt, by the marks in their environment.
pub(crate) fn marked(home: &Path, task: &Path, attempt: u32) -> Vec<u32> {
    let task = [b"DISPATCH_TASK_DIR=", task.as_os_str().as_bytes()].concat();
    let ending = format!("/{attempt}").into_bytes();
    let is_marked = |pid: &u32| {
        let environment = environment(*pid);
        let marks = |it: &Vec<u8>| it.starts_with(b"DISPATCH_ATTEMPT=") && it.ends_with(&ending);
        environment.iter().any(marks)
            && environment
                .iter()
                .any(|it| it.as_slice() == task.strip_suffix(b"/").unwrap_or(&task))
    };
    all_of(home).into_iter().filter(is_marked).collect()
}
