//! Terminals with a person in front of them: a bare one, and a tmux window with a screen; and the picture
//! of a screen.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Call, DEADLINE, Sandbox, wait_until};

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

/// A tmux window in which a helper runs. The end of the test closes the window.
pub(crate) struct Window<'a> {
    sandbox: &'a Sandbox,
    /// The name of the server, unique because a dying server takes a moment to end.
    server: String,
}

impl<'a> Window<'a> {
    /// Runs a command line in a window of that many columns and rows. At its end the window shows
    /// the exit code, and whether the terminal was restored.
    ///
    /// Returns `None` if tmux is missing, which is an error in CI.
    pub(crate) fn open(sandbox: &'a Sandbox, size: (u16, u16), command: &str) -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let server = format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let window = Self { sandbox, server };
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|directory| directory.join("tmux").is_file());
        if !found {
            assert!(std::env::var_os("CI").is_none(), "tmux is not installed");
            eprintln!("SKIPPED: tmux is not installed");
            return None;
        }
        let script = format!(
            "before=$(stty -g)\n{command}\necho \"ended with $?\"\n\
             test \"$(stty -g)\" = \"$before\" && echo 'the terminal is as it was'\n\
             exec sleep 1000\n"
        );
        let path = sandbox.top().join("in-window");
        fs::write(&path, script).expect("written");
        let (columns, rows) = (size.0.to_string(), size.1.to_string());
        let new = window.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, "sh"]);
        new.arg(path).run().ok();
        Some(window)
    }

    /// A call of tmux with its own server and no settings.
    fn tmux(&self, args: &[&str]) -> Call {
        let call = self.sandbox.program("tmux").env("TMUX_TMPDIR", self.sandbox.temporary());
        let own = ["-u", "-L", &self.server, "-f", "/dev/null"];
        call.env("LANG", "C.UTF-8").args(&own).args(args)
    }

    /// Types keys by their tmux names, or a text.
    pub(crate) fn keys(&self, keys: &[&str]) {
        self.tmux(&["send-keys"]).args(keys).run().ok();
    }

    /// Pastes a text as a terminal with bracketed paste does.
    pub(crate) fn paste(&self, text: &str) {
        self.tmux(&["set-buffer"]).arg(text).run().ok();
        self.tmux(&["paste-buffer", "-p"]).run().ok();
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &rows]).run().ok();
    }

    /// The text of the screen.
    pub(crate) fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).run().ok()
    }

    /// The text of the screen with its style sequences.
    pub(crate) fn styled(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"]).run().ok()
    }

    /// The flags of the window: alternate screen, cursor, and wrapped lines.
    pub(crate) fn flags(&self) -> String {
        let format = "#{alternate_on} #{cursor_flag} #{wrap_flag}";
        self.tmux(&["display-message", "-p", format]).run().ok().trim().to_owned()
    }

    /// Waits until the screen shows all these texts, and returns its text.
    #[track_caller]
    pub(crate) fn shows(&self, texts: &[&str]) -> String {
        wait_until(&format!("the screen shows {texts:?}"), || {
            let screen = self.screen();
            texts.iter().all(|text| screen.contains(text)).then_some(screen)
        })
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the window shows:\n{}", self.tmux(&["capture-pane", "-p"]).run().out);
        }
        self.tmux(&["kill-server"]).run();
    }
}

/// The size of a character cell.
const CELL: (f64, f64) = (8.4, 19.0);

/// The space around the text.
const MARGIN: f64 = 16.0;

/// The eight colours of a terminal; black and white are the text's own.
const COLOURS: [&str; 8] =
    ["#d4d4d4", "#f48771", "#89d185", "#e5c07b", "#6cb6ff", "#d2a8ff", "#76d9e6", "#d4d4d4"];

/// The style of the next characters.
#[derive(Clone, Copy, Default)]
struct Style {
    bold: bool,
    dim: bool,
    colour: usize,
}

impl Style {
    /// Applies the sequence between `ESC [` and `m`.
    fn change(&mut self, sequence: &str) {
        let mut codes = sequence.split(';').map(|code| code.parse().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.dim = true,
                30..=37 => self.colour = code - 30,
                39 => self.colour = 0,
                38 if codes.next() == Some(5) => self.colour = codes.next().unwrap_or(0) % 8,
                _ => {}
            }
        }
    }

    fn attributes(self) -> String {
        let mut attributes = String::new();
        if self.colour > 0 {
            attributes.push_str(&format!(" fill=\"{}\"", COLOURS[self.colour]));
        }
        if self.bold {
            attributes.push_str(" font-weight=\"bold\"");
        }
        if self.dim {
            attributes.push_str(" opacity=\"0.55\"");
        }
        attributes
    }
}

/// The picture of a screen with style sequences, that many columns wide.
pub(crate) fn svg(title: &str, screen: &str, columns: u16) -> String {
    let screen = screen.trim_end();
    let width = f64::from(columns) * CELL.0 + 2.0 * MARGIN;
    let height = screen.lines().count() as f64 * CELL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#1e1f24\"/>\n\
         <g font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"14\" fill=\"#d4d4d4\">\n"
    );
    let mut style = Style::default();
    for (row, line) in screen.lines().enumerate() {
        let mut column = 0;
        for (number, part) in line.split("\u{1b}[").enumerate() {
            let text = match part.split_once('m').filter(|_| number > 0) {
                Some((sequence, text)) => {
                    style.change(sequence);
                    text
                }
                None => part,
            };
            // Place each table column separately, so that it lines up in any font.
            for piece in text.split_inclusive("  ") {
                let begin = column + piece.chars().take_while(|c| *c == ' ').count();
                column += piece.chars().count();
                if !piece.trim().is_empty() {
                    svg.push_str(&at(begin, row, style, piece.trim()));
                }
            }
        }
    }
    svg + "</g>\n</svg>\n"
}

/// A text element at a column and a row.
fn at(column: usize, row: usize, style: Style, text: &str) -> String {
    let x = MARGIN + column as f64 * CELL.0;
    let y = MARGIN + (row as f64 + 0.75) * CELL.1;
    let length = text.chars().count() as f64 * CELL.0;
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let style = style.attributes();
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\"{style}>{text}</text>\n")
}
