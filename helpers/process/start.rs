//! Starting programs: detached, recorded before they run, or in a process group of their own.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
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
    // SAFETY: `reset_signals` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.process_group(0).pre_exec(reset_signals) }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

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
}
