//! Starting programs: detached, recorded before they run, in a process group of their own, or captured:
//! within limits for the time and for what they print.

use std::io::{self, PipeReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::ptr::null;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, killpg};
use nix::unistd::{ForkResult, Pid, fork, setsid};

use crate::process::{Identity, Signal, os};

/// Resets SIGCHLD, so that children can be waited for. Some hosts leave it ignored, and then the
/// system discards the exit status of a child.
pub fn reset_child_signal() -> Result<()> {
    // SAFETY: the default action of SIGCHLD is no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }
        .map(drop)
        .context("cannot reset SIGCHLD")
}

/// Starts a program as a child of init in a session of its own, so that it outlives this process,
/// its process group and its terminal. The command cannot be used again.
pub fn detach(command: &mut Command) -> Result<()> {
    reset_child_signal()?;
    // SAFETY: the closure runs in the forked child and allocates nothing; `_exit`, `setsid` and the
    // calls of `reset_signals` and `keep_only_stdio` are async-signal-safe. POSIX no longer lists
    // `fork`, but libc's fork has freed all its locks in the child that runs here.
    unsafe {
        command.pre_exec(|| {
            if let ForkResult::Parent { .. } = fork()? {
                nix::libc::_exit(0);
            }
            setsid()?;
            // A host that reads a pipe to its end must not wait for a supervisor.
            os::keep_only_stdio();
            reset_signals()
        });
    }
    let program = command.get_program().display().to_string();
    // spawn() returns when exec in the grandchild closes the last copy of its error pipe, so a
    // failed exec is reported although the direct child has already ended.
    let mut middle = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let ended = middle.wait();
    ended.map(drop).with_context(|| format!("cannot reap process {} of {program}", middle.id()))
}

/// Starts a program that execs only after `record` has saved its identity, so no crash leaves an
/// untracked process. The command cannot be used again.
pub fn spawn_recorded(
    command: &mut Command,
    record: impl FnOnce(&Identity) -> Result<()> + Send,
) -> Result<Child> {
    let pipe = || io::pipe().context("cannot make a pipe");
    let ((mut pid_reader, pid_writer), (go_reader, go_writer)) = (pipe()?, pipe()?);
    let in_child = pid_writer.try_clone().context("cannot share a pipe")?;
    let go_in_child = go_writer.as_raw_fd();
    // SAFETY: the closure runs in the forked child, allocates nothing, and makes only the system
    // calls close, write and read, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // The child's copy of the writer would keep its own read from ever ending.
            nix::libc::close(go_in_child);
            (&in_child).write_all(&std::process::id().to_ne_bytes())?;
            (&go_reader).read_exact(&mut [0])
        });
    }
    let recorder = move || -> Result<()> {
        let mut pid = [0; 4];
        pid_reader.read_exact(&mut pid).context("cannot read the pid of a child")?;
        match u32::from_ne_bytes(pid) {
            0 => return Ok(()),
            pid => record(&Identity::of_pid(pid)?.context("a child ended before its start")?)?,
        }
        (&go_writer).write_all(b"!").context("cannot let a child start")
    };
    std::thread::scope(|scope| {
        let recorder = scope.spawn(recorder);
        let child = command.spawn();
        if child.is_err() {
            // If the fork failed, no child writes a pid, and the recorder would wait for ever.
            let _ = (&pid_writer).write_all(&0_u32.to_ne_bytes());
        }
        recorder.join().unwrap_or_else(|_| bail!("a thread panicked"))?;
        child.with_context(|| format!("cannot start {}", command.get_program().display()))
    })
}

/// Makes the program lead a process group of its own, for [`signal_group`].
pub fn lead_own_group(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // Without a closure, std starts the program without a fork, and resets SIGPIPE itself.
    let is_changed = |it| it != Signal::SIGPIPE && is_ignored(it);
    let is_masked = SigSet::thread_get_mask().is_ok_and(|mask| mask.iter().next().is_some());
    if is_masked || Signal::iterator().any(is_changed) {
        // SAFETY: `reset_signals` makes only async-signal-safe calls and allocates nothing.
        unsafe { command.pre_exec(reset_signals) };
    }
    command
}

fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<nix::libc::sigaction>::zeroed();
    // SAFETY: without a new action, the call writes a whole action to a place for one, and changes nothing.
    let result = unsafe { nix::libc::sigaction(signal as i32, null(), action.as_mut_ptr()) };
    // SAFETY: all its fields are numbers or an optional function, for which zeros are valid.
    result == 0 && unsafe { action.assume_init() }.sa_sigaction == nix::libc::SIG_IGN
}

/// Sends a signal to all processes of a group, if there are any.
pub fn signal_group(leader: u32, signal: Signal) -> Result<()> {
    // To kill(2), 0 is our own group and -1 is everything.
    let group = match i32::try_from(leader) {
        Ok(leader) if leader > 1 => Pid::from_raw(leader),
        _ => bail!("{leader} is not the leader of a process group"),
    };
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        // On macOS a group of zombies gives EPERM.
        Err(Errno::EPERM) if cfg!(target_os = "macos") => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("cannot send {signal} to process group {leader}"))
        }
    }
}

/// Resets all signals but the real-time ones. Exec keeps the mask and what is ignored, and a host or
/// `nohup` may have changed both.
fn reset_signals() -> io::Result<()> {
    for signal in Signal::iterator() {
        // SAFETY: the default action is no handler. KILL and STOP fail, which is fine.
        let _ = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// How long a program may take to die of SIGKILL; then its zombie is left to the system.
const KILL_GRACE: Duration = Duration::from_millis(150);

/// Runs a program with this input until it exits, in a process group of its own that is killed at the
/// deadline or when more than `most` bytes were printed. A process that the program leaves behind
/// may keep its pipes open; nobody waits for that one.
///
/// # Errors
/// The program cannot be started, was killed at the deadline ([`io::ErrorKind::TimedOut`]), or printed too
/// much.
pub fn capture(
    command: &mut Command,
    input: Stdio,
    deadline: Instant,
    most: usize,
) -> io::Result<Output> {
    let (mut child, pipes) = start_captured(command, input)?;
    let [mut stdout, mut stderr] = [Vec::new(), Vec::new()];
    let mut open = [true; 2];
    let mut pause = Duration::from_micros(50);
    let error = loop {
        // The status is asked first, so that everything printed before the exit is in the pipes.
        let status = child.try_wait();
        for (at, bytes) in [&mut stdout, &mut stderr].into_iter().enumerate() {
            open[at] = open[at] && read_available(&pipes[at], bytes, most);
        }
        if stdout.len() + stderr.len() > most {
            break io::Error::other(format!("it printed more than {} KB", most >> 10));
        } else if let Ok(Some(status)) = status {
            return Ok(Output { status, stdout, stderr });
        } else if Instant::now() >= deadline {
            break io::Error::new(io::ErrorKind::TimedOut, "it did not end in time");
        }
        let still_open = pipes.iter().zip(open).filter(|(_, open)| *open);
        let mut fds: Vec<_> =
            still_open.map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        if fds.is_empty() {
            // A program that closed both outputs is about to exit, as a rule.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
        } else {
            let _ = poll(&mut fds, PollTimeout::from(5_u8));
        }
    };
    // The child was not waited for, so its group's number cannot belong to another group.
    let _ = signal_group(child.id(), Signal::SIGKILL);
    let killed = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && killed.elapsed() < KILL_GRACE {
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(error)
}

/// Starts the program and returns what is read of its two outputs.
fn start_captured(command: &mut Command, input: Stdio) -> io::Result<(Child, [PipeReader; 2])> {
    reset_child_signal().map_err(io::Error::other)?;
    let ((out, out_writer), (err, err_writer)) = (io::pipe()?, io::pipe()?);
    for reader in [&out, &err] {
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    command.stdin(input).stdout(out_writer).stderr(err_writer);
    let child = lead_own_group(command).spawn()?;
    // The command must not keep the writing ends: an end of file says that nobody writes any more.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok((child, [out, err]))
}

/// Reads what a pipe holds now; a little more than `most` bytes in all is enough. `false` at its end.
fn read_available(mut pipe: &PipeReader, bytes: &mut Vec<u8>, most: usize) -> bool {
    let mut piece = [0; 64 << 10];
    while bytes.len() <= most {
        match pipe.read(&mut piece) {
            Ok(count @ 1..) => bytes.extend_from_slice(&piece[..count]),
            Ok(0) => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::process::test_support::{Running, assert_changed, wait_until};
    use crate::process::{Life, Source, Watch};

    #[test]
    fn recorded_program_runs_only_after_its_record() {
        let directory = tempfile::tempdir().unwrap();
        let ran = directory.path().join("ran");
        let mut command = Command::new("touch");
        let error = spawn_recorded(command.arg(&ran), |_| bail!("no space")).unwrap_err();
        assert_eq!(error.to_string(), "no space");
        assert!(!ran.exists());

        let mut recorded = None;
        let mut command = Command::new("touch");
        let mut child = spawn_recorded(command.arg(&ran), |identity| {
            assert!(!ran.exists());
            recorded = Some(identity.pid);
            Ok(())
        })
        .unwrap();
        assert!(child.wait().unwrap().success() && ran.exists());
        assert_eq!(recorded, Some(child.id()));

        let missing = directory.path().join("missing");
        let error = spawn_recorded(&mut Command::new(missing), |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("cannot start "), "{error}");
    }

    #[test]
    fn signal_reaches_every_process_of_a_group() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).stdout(Stdio::piped());
        let mut leader = Running(lead_own_group(&mut command).spawn().unwrap());
        let mut line = String::new();
        let mut out = BufReader::new(leader.0.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let member = Identity::of_pid(line.trim().parse().unwrap()).unwrap().unwrap();

        signal_group(leader.0.id(), Signal::SIGKILL).unwrap();
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_process(&member));
        assert_changed(&mut watch, Source::Process(member.clone()));
        leader.end();
        // Init reaps the member; until then the group exists, and signals to it do nothing.
        wait_until(|| member.life() == Life::Dead);
        signal_group(leader.0.id(), Signal::SIGKILL).unwrap();
        for everything in [0, 1, u32::MAX] {
            assert!(signal_group(everything, Signal::SIGKILL).is_err());
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    fn sh(script: &str, limit: Duration) -> io::Result<Output> {
        capture(
            Command::new("sh").args(["-c", script]),
            Stdio::null(),
            Instant::now() + limit,
            1 << 20,
        )
    }

    #[test]
    fn program_is_captured_with_status_and_both_outputs() {
        let output = sh("echo out; echo err >&2; cat; exit 3", LONG).expect("an output");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
        let long = sh("head -c 700000 /dev/zero", LONG).expect("an output");
        assert_eq!(long.stdout.len(), 700_000);
    }

    #[test]
    fn program_that_prints_too_much_is_killed() {
        for script in ["yes", "yes >&2", "head -c 2000000 /dev/zero; sleep 1000"] {
            let error = sh(script, LONG).expect_err("killed");
            assert_eq!(error.to_string(), "it printed more than 1024 KB", "{script}");
        }
    }

    #[test]
    fn grandchild_that_holds_the_pipe_is_not_waited_for() {
        let start = Instant::now();
        let output = sh("sleep 1000 & echo $!", LONG).expect("an output");
        assert!(start.elapsed() < LONG);
        let pid = String::from_utf8(output.stdout).expect("text").trim().parse().expect("a pid");
        let left = Identity::of_pid(pid).expect("visible").expect("it still runs");
        assert!(left.signal(Signal::SIGKILL).expect("sent"));
    }

    #[test]
    fn whole_group_is_killed_at_the_deadline() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >'{}'; trap '' TERM; wait", file.display());
        // The deadline is early or late: a process that was started is in the file.
        while !file.exists() {
            let error = sh(&script, Duration::from_millis(300)).expect_err("killed");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let pid = std::fs::read_to_string(&file).expect("a file").trim().parse().expect("a pid");
        let start = Instant::now();
        while Identity::of_pid(pid).expect("visible").is_some() {
            assert!(start.elapsed() < LONG, "process {pid} survived");
            std::thread::yield_now();
        }
    }

    #[test]
    fn missing_program_cannot_be_started() {
        let mut command = Command::new("/no/such/program");
        let error =
            capture(&mut command, Stdio::null(), Instant::now() + LONG, 1).expect_err("no program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
