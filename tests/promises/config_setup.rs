//! `dispatch-config setup`: the first config, from what is on the machine, and on with the request.

use std::fs;

use snapbox::str;

use crate::support::clis::{
    CLAUDE, CLAUDE_LOGGED_OUT, CODEX, CODEX_LOGGED_OUT, CURSOR, GROKS_AGENT, HANGS, OPENCODE,
};
use crate::support::terminal::Terminal;
use crate::support::text::{names, same, tree};
use crate::support::{PLAN, Sandbox};

/// All CLIs that most people have.
fn machine() -> Sandbox {
    Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX), ("cursor-agent", CURSOR)])
}

#[test]
fn the_host_hears_what_was_found_and_which_defaults_are_sensible() {
    let sandbox = machine();
    sandbox.configure(&["setup", "--json"]).run().shows(str![[r#"
exit 0
{"defaults":[{"name":"opus","why":"Claude, for hard tasks"},{"name":"sonnet","why":"Claude, fast and capable"},{"name":"gpt-6-codex","why":"OpenAI, first in its list"},{"name":"gemini-3.1-pro","why":"Gemini, first in its list"}],"found":[{"backend":"claude","logged_in":true,"problem":null,"program":"TOP/clis/claude","version":"2.1.329"},{"backend":"codex","logged_in":true,"problem":null,"program":"TOP/clis/codex","version":"0.169.0"},{"backend":"cursor","logged_in":true,"problem":null,"program":"TOP/clis/cursor-agent","version":"2026.01.28-fd13201"}],"full_only":[{"backend":"cursor","why":"its sandbox holds only as far as its own settings say"}],"models":[{"backend":"claude","count":4,"notable":["opus","sonnet","haiku","fable"]},{"backend":"codex","count":3,"notable":["gpt-6-codex","gpt-6","gpt-5.3-codex"]},{"backend":"cursor","count":5,"notable":["auto","gpt-5.3-codex-low","claude-opus-5-thinking-high","gemini-3.1-pro"]}]}
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn who_is_logged_out_is_offered_last() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE_LOGGED_OUT), ("codex", CODEX)]);
    let said = sandbox.configure(&["setup", "--json"]).run().ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    same(
        &serde_json::to_string_pretty(&json["defaults"]).expect("JSON"),
        str![[r#"
[
  {
    "name": "gpt-6-codex",
    "why": "OpenAI, first in its list"
  },
  {
    "name": "opus",
    "why": "Claude, for hard tasks; not logged in"
  },
  {
    "name": "sonnet",
    "why": "Claude, fast and capable; not logged in"
  }
]
"#]],
    );
}

#[test]
fn one_command_writes_all_models_by_provider() {
    let sandbox = machine();
    sandbox.add_cli("opencode", OPENCODE);
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().shows(str![[r#"
exit 0
claude 2.1.329, logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
opencode 1.18.33 (TOP/clis/opencode)
cursor's workers cannot be held to the project: its sandbox holds only as far as its own settings say
opencode's workers cannot be held to the project: it holds its own edits to the project, but not the commands that it runs
HOME/.dispatch/config.yaml written: 13 models, default opus.
"#]]);
    same(
        &sandbox.config_text(),
        str![[r#"
# Who can work for dispatch. Yours to edit: 'dispatch-config check' says what is wrong.

default: opus

backends:
  claude: {}
  codex: {}
  cursor: {}
  opencode: {}

models:
  # Claude
  opus: { backend: claude }
  sonnet: { backend: claude }
  haiku: { backend: claude }
  fable: { backend: claude }
  claude-opus-5-thinking-high: { backend: claude }
  # OpenAI
  gpt-6-codex: { backend: codex }
  gpt-6: { backend: codex }
  gpt-5.3-codex: { backend: codex }
  gpt-5.3-codex-low: { backend: codex }
  # Gemini
  gemini-3.1-pro: { backend: cursor }
  # Grok
  grok-5: { backend: cursor }
  opencode/grok-code: { backend: opencode }
  # Other
  opencode/big-pickle: { backend: opencode }

"#]],
    );
    assert_eq!(
        names(&sandbox.home().join(".dispatch")),
        ["config.yaml", "config.yaml.lock", "models.json"]
    );
    sandbox.configure(&["check"]).run().ok();
}

#[test]
fn the_request_goes_on_at_once() {
    let sandbox = machine();
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().ok();
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x"]).run().shows(str![[r#"
exit 0
x started with opus. Tell the user and stop; news wakes you.
"#]]);
    assert_eq!(sandbox.state("x"), "running");
}

#[test]
fn without_a_terminal_and_a_default_it_says_how_to_call_it() {
    let sandbox = machine();
    sandbox.configure(&["setup"]).run().shows(str![[r#"
exit 64
! dispatch-config: which model is to be the default?
!   sensible: opus, sonnet, gpt-6-codex, gemini-3.1-pro
!   next: call again with --default MODEL --yes
claude 2.1.329, logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
"#]]);
    sandbox.configure(&["setup", "--default", "opus"]).run().shows(str![[r#"
exit 64
! dispatch-config: nobody is here to agree
!   next: add --yes
claude 2.1.329, logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
cursor's workers cannot be held to the project: its sandbox holds only as far as its own settings say
"#]]);
    for unknown in ["opos", "auto"] {
        let ran = sandbox.configure(&["setup", "--default", unknown, "--yes"]).run();
        assert_eq!(ran.code, Some(65), "{unknown}");
        assert!(ran.err.contains("no CLI here has a model"), "{}", ran.err);
    }
    sandbox.configure(&["setup", "--default", "opos", "--yes"]).run().shows(str![[r#"
exit 65
! dispatch-config: no CLI here has a model 'opos'
!   sensible: opus, sonnet, gpt-6-codex, gemini-3.1-pro
!   next: see them all with dispatch-config models
claude 2.1.329, logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn a_person_chooses_by_number_by_name_or_by_return() {
    for (reply, default) in [("\n", "opus"), ("2\n", "sonnet"), ("gpt-6\n", "gpt-6")] {
        let sandbox = machine();
        let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
        let shown = terminal.read_until("[1] ");
        same(
            &sandbox.redactions().apply(&shown),
            str![[r#"
claude 2.1.329, logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
  1. opus (recommended): Claude, for hard tasks
  2. sonnet: Claude, fast and capable
  3. gpt-6-codex: OpenAI, first in its list
  4. gemini-3.1-pro: Gemini, first in its list
Which model is to be the default? [1] 
"#]],
        );
        terminal.write(reply);
        let shown = terminal.read_until("[y/N] ");
        same(
            shown.split_once('\n').expect("two lines").1,
            str![[r#"
cursor's workers cannot be held to the project: its sandbox holds only as far as its own settings say
Let workers of cursor do anything, unasked? [y/N] 
"#]],
        );
        let full = if default == "opus" { "y\n" } else { "n\n" };
        terminal.write(full);
        terminal.read_until("Write the config? [y/N] ");
        assert!(!sandbox.config_path().exists(), "nothing before the reply");
        terminal.write("y\n");
        terminal.read_until(&format!("models, default {default}.\r\n"));
        assert!(terminal.status().success());
        let config = sandbox.config_text();
        assert!(config.contains(&format!("\ndefault: {default}\n")), "{reply}");
        assert_eq!(config.contains("  cursor: { access: full }\n"), full == "y\n", "{config}");
    }
}

#[test]
fn a_person_may_say_no_or_something_wrong() {
    let sandbox = machine();
    let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
    terminal.read_until("[1] ");
    terminal.write("1\n");
    for question in ["anything, unasked? [y/N] ", "Write the config? [y/N] "] {
        terminal.read_until(question);
        terminal.write("n\n");
    }
    terminal.read_until("Nothing was written.\r\n");
    assert!(terminal.status().success());
    for wrong in ["9\n", "0\n", "opos\n"] {
        let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
        terminal.read_until("[1] ");
        terminal.write(wrong);
        terminal.read_until("see them all with dispatch-config models\r\n");
        assert_eq!(terminal.status().code(), Some(65), "{wrong}");
    }
    assert!(!sandbox.config_path().exists());
}

#[test]
fn without_any_cli_the_three_are_named() {
    let sandbox = Sandbox::with_clis(&[]);
    sandbox.configure(&["setup"]).run().shows(str![[r#"
exit 69
! dispatch-config: no worker CLI is installed
!   looked for Claude Code (claude), Codex (codex), Cursor (cursor-agent) and others
!   next: install one, or write a config like references/config-example.yaml
"#]]);
    for args in [&["setup", "--json"][..], &["setup", "--default", "opus", "--yes"]] {
        let ran = sandbox.configure(args).run();
        assert_eq!((ran.code, ran.out.as_str()), (Some(69), ""), "{args:?}");
        assert!(["claude", "codex", "cursor-agent"].iter().all(|name| ran.err.contains(name)));
    }
    assert!(!sandbox.config_path().exists());
}

#[test]
fn a_config_that_is_there_stays_and_nobody_is_asked_in_vain() {
    let sandbox = machine();
    // A wrong one is a person's work too.
    for text in ["default: opus # mine\n", "default: [\n", ""] {
        sandbox.config(text);
        let before = tree(&[sandbox.home()]);
        let setup = ["setup", "--default", "opus", "--yes"];
        sandbox.configure(&setup).run().shows(str![[r#"
exit 73
! dispatch-config: there is a config already
!   HOME/.dispatch/config.yaml
!   next: change it with set-default, add-model and so on, or move it away
"#]]);
        assert_eq!(sandbox.config_text(), text);
        let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
        terminal.read_until("move it away\r\n");
        assert_eq!(terminal.status().code(), Some(73));
        assert_eq!(tree(&[sandbox.home()]), before);
    }
}

#[test]
fn a_cli_that_hangs_is_named_and_left_out() {
    let sandbox = machine();
    sandbox.add_cli("codex", HANGS);
    sandbox.add_cli("gemini", HANGS);
    let setup = sandbox.configure(&["setup", "--default", "opus", "--yes"]);
    let said = setup.env("DISPATCH_SLOW_ANSWER_MS", "0").run().ok();
    let seconds = regex::Regex::new(r"in [0-9.]+ s").expect("a regex");
    let said = sandbox.redactions().apply(&said);
    same(
        &seconds.replace_all(&said, "in SECONDS"),
        str![[r#"
claude 2.1.329, logged in (TOP/clis/claude)
codex: slow: `codex --version` did not answer in SECONDS (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
gemini: slow: `gemini --version` did not answer in SECONDS (TOP/clis/gemini)
cursor's workers cannot be held to the project: its sandbox holds only as far as its own settings say
HOME/.dispatch/config.yaml written: 8 models, default opus.

"#]],
    );
    same(
        &sandbox.config_text(),
        str![[r#"
# Who can work for dispatch. Yours to edit: 'dispatch-config check' says what is wrong.

default: opus

backends:
  claude: {}
  cursor: {}

models:
  # Claude
  opus: { backend: claude }
  sonnet: { backend: claude }
  haiku: { backend: claude }
  fable: { backend: claude }
  claude-opus-5-thinking-high: { backend: claude }
  # OpenAI
  gpt-5.3-codex-low: { backend: cursor }
  # Gemini
  gemini-3.1-pro: { backend: cursor }
  # Grok
  grok-5: { backend: cursor }

"#]],
    );
}

#[test]
fn where_nothing_works_that_is_said() {
    let sandbox = Sandbox::with_clis(&[("codex", "echo broken >&2; exit 1")]);
    sandbox.configure(&["setup"]).run().shows(str![[r#"
exit 69
! dispatch-config: no worker CLI here can work
!   those above do not say their version
!   next: mend or install one, then call again; dispatch-config detect shows them
codex: `codex --version` ended with 1: broken (TOP/clis/codex)
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn groks_agent_is_not_taken_for_cursor() {
    let sandbox = Sandbox::with_clis(&[("agent", GROKS_AGENT)]);
    let ran = sandbox.configure(&["setup", "--default", "auto", "--yes"]).run();
    assert_eq!(ran.code, Some(69), "{ran:?}");
    sandbox.add_cli("claude", CLAUDE);
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().ok();
    assert!(!sandbox.config_text().contains("cursor"));
    // It is asked for nothing but its version.
    assert_eq!(sandbox.calls_of("agent --version"), 2);
    assert_eq!(sandbox.calls_of("agent models"), 0);
}

#[test]
fn cursors_agent_is_called_by_its_path() {
    let sandbox = Sandbox::with_clis(&[("agent", CURSOR)]);
    sandbox.configure(&["setup", "--default", "grok-5", "--yes"]).run().ok();
    same(
        &sandbox.redactions().apply(&sandbox.config_text()),
        str![[r#"
# Who can work for dispatch. Yours to edit: 'dispatch-config check' says what is wrong.

default: grok-5

backends:
  cursor: { command: TOP/clis/agent -p --force --trust, prompt: stdin }

models:
  # OpenAI
  gpt-5.3-codex-low: { backend: cursor }
  # Claude
  claude-opus-5-thinking-high: { backend: cursor }
  # Gemini
  gemini-3.1-pro: { backend: cursor }
  # Grok
  grok-5: { backend: cursor }

"#]],
    );
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x", "--dry-run"]).run().shows(str![[r#"
exit 0
sh -c 'exec TOP/clis/agent -p --force --trust "$@"' sh --model grok-5 < PROJECT/.dispatch/tasks/x/worker/1/stdin
"#]]);
}

#[test]
fn a_setup_killed_at_any_step_leaves_nothing_or_the_config() {
    for point in [
        "models.json:written",
        "models.json:published",
        "config:kept",
        "config.yaml:written",
        "config.yaml:published",
    ] {
        let sandbox = Sandbox::with_clis(&[("codex", CODEX_LOGGED_OUT)]);
        let setup = || sandbox.configure(&["setup", "--default", "gpt-6", "--yes"]);
        let killed = setup().crash_at(point).run();
        assert_eq!(killed.signal, Some(9), "{point}: {killed:?}");
        let there = point == "config.yaml:published";
        assert_eq!(sandbox.config_path().exists(), there, "{point}");
        let again = setup().run();
        assert_eq!(again.code, Some(if there { 73 } else { 0 }), "{point}: {again:?}");
        assert_eq!(sandbox.configure(&["resolve"]).run().code, Some(0), "{point}");
    }
    let sandbox = Sandbox::with_clis(&[("codex", CODEX_LOGGED_OUT)]);
    fs::create_dir_all(sandbox.home().join(".dispatch")).expect("made");
    fs::write(sandbox.home().join(".dispatch/models.json"), "[{").expect("written");
    sandbox.configure(&["setup", "--default", "gpt-6", "--yes"]).run().ok();
}
