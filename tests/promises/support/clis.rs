//! Worker CLIs as shell scripts that print the recorded output of the real ones (2026-11-21). Each
//! logs its arguments.

use std::fs;
use std::path::PathBuf;

use super::{Call, Sandbox};

pub(crate) const CLAUDE: &str = r#"case "$*" in
--version) echo '2.1.332 (Claude Code)' ;;
'auth status') printf '{\n  "loggedIn": true,\n  "authMethod": "claude.ai"\n}\n' ;;
*) exec sleep 1000 ;;
esac"#;

pub(crate) const CLAUDE_LOGGED_OUT: &str = r#"case "$*" in
--version) echo '2.1.332 (Claude Code)' ;;
'auth status') printf '{\n  "loggedIn": false,\n  "authMethod": "none"\n}\n'; exit 1 ;;
*) exit 1 ;;
esac"#;

/// A Codex with a hidden model.
pub(crate) const CODEX: &str = r#"case "$*" in
--version) echo 'codex-cli 0.171.0' ;;
'login status') echo 'Logged in using ChatGPT' ;;
'debug models') cat <<'END'
{"models":[
{"slug":"gpt-6-codex","display_name":"GPT-6-Codex","visibility":"list","priority":0,"base_instructions":"You are Codex."},
{"slug":"gpt-6","display_name":"gpt-6","visibility":"list","priority":1},
{"slug":"gpt-5.3-codex","display_name":"gpt-5.3-codex","visibility":"list","priority":5},
{"slug":"codex-auto-review","display_name":"codex-auto-review","visibility":"hide","priority":2}]}
END
;;
*) exec sleep 1000 ;;
esac"#;

pub(crate) const CODEX_LOGGED_OUT: &str = r#"case "$*" in
--version) echo 'codex-cli 0.171.0' ;;
'login status') echo 'Not logged in' >&2; exit 1 ;;
'debug models') echo '{"models":[{"slug":"gpt-6","display_name":"gpt-6","visibility":"list"}]}' ;;
*) exit 1 ;;
esac"#;

/// A Cursor list with colours, a zero-width character and every form of its marks.
pub(crate) const CURSOR: &str = r#"case "$*" in
--version) echo '2026.01.28-fd13201' ;;
'status --format json') echo '{"status":"authenticated","isAuthenticated":true}' ;;
models) printf '\033[2K\033[GAvailable models\n\n'
printf 'auto - Auto (current, default)\n\342\200\213gpt-5.3-codex-low - Codex 5.3 Low\n'
printf '\033[36mclaude-opus-5-thinking-high\033[0m - Opus 5 1M Thinking (default)\n'
printf 'gemini-3.1-pro - Gemini 3.1 Pro (current)\ngrok-5 - Grok 5\n'
printf '\nTip: use --model <id> (or /model <id> in interactive mode) to switch.\n' ;;
*) exec sleep 1000 ;;
esac"#;

pub(crate) const OPENCODE: &str = r#"case "$*" in
--version) echo '1.18.33' ;;
models) printf 'opencode/big-pickle\nopencode/grok-code\n' ;;
*) exec sleep 1000 ;;
esac"#;

/// Another maker's program that is called `agent` too.
pub(crate) const GROKS_AGENT: &str = "echo 0.3";

pub(crate) const HANGS: &str = "exec sleep 1000";

impl Sandbox {
    /// A machine with these CLIs and no others.
    pub(crate) fn with_clis(clis: &[(&str, &str)]) -> Self {
        let sandbox = Self::new();
        fs::create_dir_all(sandbox.clis()).expect("made");
        for tool in ["sh", "cat", "sleep", "env", "rm", "mv"] {
            let found = ["/bin", "/usr/bin"].map(|bin| PathBuf::from(bin).join(tool));
            let found = found.into_iter().find(|path| path.exists()).expect("every system has it");
            std::os::unix::fs::symlink(found, sandbox.clis().join(tool)).expect("linked");
        }
        clis.iter().for_each(|(name, script)| sandbox.add_cli(name, script));
        sandbox
    }

    /// The only directory of `PATH`.
    fn clis(&self) -> PathBuf {
        self.top().join("clis")
    }

    /// Another program writes the file, which else could not be executed while a fork of another test
    /// holds it open.
    pub(crate) fn add_cli(&self, name: &str, script: &str) {
        let calls = self.top().join("calls");
        // A script that knows nothing of logins says nothing of them at once.
        let login = match script.contains("status") {
            true => "",
            false => "case \"$1 $2\" in 'auth status' | 'login status') exit ;; esac\n",
        };
        let text =
            format!("#!/bin/sh\necho \"${{0##*/}} $*\" >>'{}'\n{login}{script}\n", calls.display());
        let put = "cat >\"$1.new\" && chmod +x \"$1.new\" && mv \"$1.new\" \"$1\"";
        let call = self.program("sh").args(&["-c", put, "sh"]).arg(self.clis().join(name));
        call.input(text).run().ok();
        // The programs that sandboxes need on each system.
        if name == "claude" || name == "codex" {
            self.add_cli("bwrap", "exit 0");
            self.add_cli("socat", "exit 0");
        }
    }

    pub(crate) fn remove_cli(&self, name: &str) {
        fs::remove_file(self.clis().join(name)).expect("removed");
    }

    /// The number of calls of a CLI with exactly these words.
    pub(crate) fn calls_of(&self, words: &str) -> usize {
        let calls = fs::read_to_string(self.top().join("calls")).unwrap_or_default();
        calls.lines().filter(|line| *line == words).count()
    }

    /// A call of a helper on this machine, whose kernel is old.
    pub(crate) fn on_machine(&self, helper: &str, args: &[&str]) -> Call {
        self.call(helper, args).env("PATH", self.clis()).env("DISPATCH_FAIL", "landlock")
    }

    /// A call of `dispatch-config` on this machine.
    pub(crate) fn configure(&self, args: &[&str]) -> Call {
        self.on_machine("dispatch-config", args)
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.home().join(".dispatch/config.yaml")
    }

    /// The text of the config.
    #[track_caller]
    pub(crate) fn config_text(&self) -> String {
        fs::read_to_string(self.config_path()).expect("there is a config")
    }
}
