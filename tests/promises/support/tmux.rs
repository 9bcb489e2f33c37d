//! A program in a tmux window, as a person sees it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Call, Sandbox, wait_until};

/// A window in which a helper runs. It is closed with the test at the latest.
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
