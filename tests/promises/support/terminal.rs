//! A terminal with a person in front of it, who can type and close the window.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Call, DEADLINE, wait_until};

/// A program that leads the session of its own terminal.
pub(crate) struct Terminal {
    /// The window's side of the terminal; `None` when closed.
    window: Option<File>,
    child: Child,
}

impl Terminal {
    pub(crate) fn run(call: Call) -> Self {
        // No other child gets either side, so that closing ours closes the terminal.
        let open = |path: &str| {
            let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
            let opened = File::options().read(true).write(true).custom_flags(flags).open(path);
            opened.expect("a terminal")
        };
        let window = open("/dev/ptmx");
        let programs = open(&terminal_name(&window));
        let in_child = programs.as_raw_fd();
        let mut command = call.into_command();
        // SAFETY: login_tty makes only system calls: setsid, ioctl, dup2 and close.
        unsafe {
            command.pre_exec(move || match libc::login_tty(in_child) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let child = command.spawn().expect("the program starts");
        Self { window: Some(window), child }
    }

    /// Reads the output until it ends with `end`, and returns it.
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        let mut shown = Vec::new();
        let window = self.window.as_mut().expect("the window is open");
        let patience = PollTimeout::try_from(DEADLINE).expect("less than a month");
        while !shown.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let something = poll(&mut [PollFd::new(window.as_fd(), PollFlags::POLLIN)], patience);
            assert_eq!(something, Ok(1), "{:?} is all", String::from_utf8_lossy(&shown));
            window.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&shown))
            });
            shown.extend(byte);
        }
        String::from_utf8(shown).expect("UTF-8").replace("\r\n", "\n")
    }

    pub(crate) fn write(&mut self, text: &str) {
        self.window.as_mut().expect("open").write_all(text.as_bytes()).expect("typed");
    }

    /// Closes the window.
    pub(crate) fn close(&mut self) {
        self.window = None;
    }

    /// Waits until the program has ended.
    #[track_caller]
    pub(crate) fn status(&mut self) -> ExitStatus {
        wait_until("the program ends", || self.child.try_wait().expect("a child"))
    }
}

/// The path of the terminal whose window's side this is.
fn terminal_name(window: &File) -> String {
    // macOS has no `ptsname_r`, and `ptsname` returns a buffer that all threads share.
    static BUFFER: Mutex<()> = Mutex::new(());
    let _locked = BUFFER.lock();
    let window = window.as_raw_fd();
    // SAFETY: the descriptor is open; nothing else calls `ptsname`, and the lock is held until the
    // text is copied.
    unsafe {
        assert_eq!(libc::grantpt(window), 0, "grantpt");
        assert_eq!(libc::unlockpt(window), 0, "unlockpt");
        let name = libc::ptsname(window);
        assert!(!name.is_null(), "ptsname");
        CStr::from_ptr(name).to_str().expect("a path").to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
