//! Runs a program and keeps what it printed, within a time limit and a size limit.

use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::process::{Signal, lead_own_group, reset_child_signal, signal_group};

/// How long a program may take to die of SIGKILL; then its zombie is left to the system.
const KILL_GRACE: Duration = Duration::from_millis(150);

/// Why a program has no complete output.
#[derive(Debug)]
pub enum CaptureError {
    /// The program cannot be started.
    NotStarted(io::Error),
    /// The program was killed at the deadline.
    TimedOut,
    /// The program was killed because it printed too much.
    TooMuchOutput,
}

/// Runs a program without input until it exits, in a process group of its own that is killed at the
/// deadline or when more than `most` bytes were printed. A process that the program leaves behind
/// may keep its pipes open; nobody waits for that one.
pub fn capture(
    command: &mut Command,
    deadline: Instant,
    most: usize,
) -> Result<Output, CaptureError> {
    let (mut child, pipes) = start(command).map_err(CaptureError::NotStarted)?;
    let [mut stdout, mut stderr] = [Vec::new(), Vec::new()];
    let mut open = [true; 2];
    let error = loop {
        // The status is asked first, so that everything printed before the exit is in the pipes.
        let status = child.try_wait();
        for (at, bytes) in [&mut stdout, &mut stderr].into_iter().enumerate() {
            open[at] = open[at] && read_available(&pipes[at], bytes, most);
        }
        if stdout.len() + stderr.len() > most {
            break CaptureError::TooMuchOutput;
        } else if let Ok(Some(status)) = status {
            return Ok(Output { status, stdout, stderr });
        } else if Instant::now() >= deadline {
            break CaptureError::TimedOut;
        }
        let still_open = pipes.iter().zip(open).filter(|(_, open)| *open);
        let mut fds: Vec<_> =
            still_open.map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)).collect();
        // A program that closed both outputs is about to exit, as a rule.
        let pause = if fds.is_empty() { 1_u8 } else { 5 };
        let _ = poll(&mut fds, PollTimeout::from(pause));
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
fn start(command: &mut Command) -> io::Result<(Child, [PipeReader; 2])> {
    reset_child_signal().map_err(io::Error::other)?;
    let ((out, out_writer), (err, err_writer)) = (io::pipe()?, io::pipe()?);
    for reader in [&out, &err] {
        fcntl(reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    command.stdin(Stdio::null()).stdout(out_writer).stderr(err_writer);
    let child = lead_own_group(command).spawn()?;
    // The command must not keep the writing ends: an end of file says that nobody writes any more.
    command.stdout(Stdio::null()).stderr(Stdio::null());
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
mod tests {
    use super::*;
    use crate::process::Identity;

    const LONG: Duration = Duration::from_secs(20);

    fn sh(script: &str, limit: Duration) -> Result<Output, CaptureError> {
        capture(Command::new("sh").args(["-c", script]), Instant::now() + limit, 1 << 20)
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
            assert!(matches!(sh(script, LONG), Err(CaptureError::TooMuchOutput)), "{script}");
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
            assert!(matches!(sh(&script, Duration::from_millis(300)), Err(CaptureError::TimedOut)));
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
        let error = capture(&mut command, Instant::now() + LONG, 1).expect_err("no program");
        assert!(matches!(error, CaptureError::NotStarted(_)), "{error:?}");
    }
}
