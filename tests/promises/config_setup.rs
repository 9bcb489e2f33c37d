//! `dispatch-config setup`: the first config, from the CLIs on the machine.

use std::fs;

use snapbox::str;

use crate::support::clis::{
    CLAUDE, CLAUDE_LOGGED_OUT, CODEX, CODEX_LOGGED_OUT, CURSOR, GROKS_AGENT, HANGS, OPENCODE,
};
use crate::support::terminal::Terminal;
use crate::support::text::{names, same, tree};
use crate::support::{Host, PLAN, Sandbox};

/// A machine with the common CLIs.
fn machine() -> Sandbox {
    Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX), ("cursor-agent", CURSOR)])
}

#[test]
fn json_lists_clis_models_and_defaults() {
    let sandbox = machine();
    sandbox.configure(&["setup", "--json"]).run().shows(str![[r#"
exit 0
{"ask_route":true,"defaults":[{"name":"opus","why":"Claude, for hard tasks"},{"name":"sonnet","why":"Claude, fast and capable"},{"name":"gpt-6-codex","why":"OpenAI, first in its list"},{"name":"gemini-3.1-pro","why":"Gemini, first in its list"}],"found":[{"backend":"claude","logged_in":true,"problem":null,"program":"TOP/clis/claude","version":"2.1.332"},{"backend":"codex","logged_in":true,"problem":null,"program":"TOP/clis/codex","version":"0.171.0"},{"backend":"cursor","logged_in":true,"problem":null,"program":"TOP/clis/cursor-agent","version":"2026.01.28-fd13201"}],"full_only":[{"backend":"cursor","why":"landlock needs Linux 6.2; bubblewrap cannot start: no error; its sandbox holds only as far as its own settings say"}],"models":[{"backend":"claude","count":4,"notable":["opus","sonnet","haiku","fable"]},{"backend":"codex","count":3,"notable":["gpt-6-codex","gpt-6","gpt-5.3-codex"]},{"backend":"cursor","count":5,"notable":["auto","gpt-5.3-codex-low","claude-opus-5-thinking-high","gemini-3.1-pro"]}]}
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn logged_out_cli_is_offered_last() {
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
fn setup_writes_all_models_by_provider() {
    let sandbox = machine();
    sandbox.add_cli("opencode", OPENCODE);
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().shows(str![[r#"
exit 0
claude 2.1.332, logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
opencode 1.18.33 (TOP/clis/opencode)
cursor cannot restrict its workers to the project: landlock needs Linux 6.2; bubblewrap cannot start: no error; its sandbox holds only as far as its own settings say
opencode cannot restrict its workers to the project: landlock needs Linux 6.2; bubblewrap cannot start: no error; it holds its own edits to the project, but not the commands that it runs
HOME/.dispatch/config.yaml written: 13 models, default opus.
"#]]);
    same(
        &sandbox.config_text(),
        str![[r#"
# The workers of dispatch. Edit it as you like; 'dispatch-config check' finds mistakes.

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
fn dispatch_works_right_after_setup() {
    let sandbox = machine();
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().ok();
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x"]).run().shows(str![[r#"
exit 0
x (Title, 2 items) started with opus. Tell the user and stop; news wakes you.
"#]]);
    assert_eq!(sandbox.state("x"), "running");
}

#[test]
fn setup_without_a_terminal_names_the_missing_options() {
    let sandbox = machine();
    sandbox.configure(&["setup"]).run().shows(str![[r#"
exit 64
! dispatch-config: no default model is named
!   sensible: opus, sonnet, gpt-6-codex, gemini-3.1-pro
!   next: add --default MODEL --yes
claude 2.1.332, logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
"#]]);
    sandbox.configure(&["setup", "--default", "opus"]).run().shows(str![[r#"
exit 64
! dispatch-config: cannot ask for confirmation: no terminal
!   next: add --yes
claude 2.1.332, logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
cursor cannot restrict its workers to the project: landlock needs Linux 6.2; bubblewrap cannot start: no error; its sandbox holds only as far as its own settings say
"#]]);
    for unknown in ["opos", "auto"] {
        let ran = sandbox.configure(&["setup", "--default", unknown, "--yes"]).run();
        assert_eq!(ran.code, Some(65), "{unknown}");
        assert!(ran.err.contains("no CLI on this machine has a model"), "{}", ran.err);
    }
    sandbox.configure(&["setup", "--default", "opos", "--yes"]).run().shows(str![[r#"
exit 65
! dispatch-config: no CLI on this machine has a model 'opos'
!   sensible: opus, sonnet, gpt-6-codex, gemini-3.1-pro
!   next: dispatch-config models lists all of them
claude 2.1.332, logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn person_chooses_the_default_by_number_name_or_return() {
    for (reply, default) in [("\n", "opus"), ("2\n", "sonnet"), ("gpt-6\n", "gpt-6")] {
        let sandbox = machine();
        let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
        let shown = terminal.read_until("[1] ");
        same(
            &sandbox.redactions().apply(&shown),
            str![[r#"
claude 2.1.332, logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
  1. opus (recommended): Claude, for hard tasks
  2. sonnet: Claude, fast and capable
  3. gpt-6-codex: OpenAI, first in its list
  4. gemini-3.1-pro: Gemini, first in its list
Default model? [1] 
"#]],
        );
        terminal.write(reply);
        let shown = terminal.read_until("[y/N] ");
        same(
            shown.split_once('\n').expect("two lines").1,
            str![[r#"
cursor cannot restrict its workers to the project: landlock needs Linux 6.2; bubblewrap cannot start: no error; its sandbox holds only as far as its own settings say
Let workers of cursor do anything without asking? [y/N] 
"#]],
        );
        let full = if default == "opus" { "y\n" } else { "n\n" };
        terminal.write(full);
        terminal.read_until("agents of the session do neither. [y/N] ");
        terminal.write(if default == "sonnet" { "y\n" } else { "\n" });
        terminal.read_until("Write the config? [y/N] ");
        assert!(!sandbox.config_path().exists(), "nothing before the reply");
        terminal.write("y\n");
        terminal.read_until(&format!("models, default {default}.\r\n"));
        assert!(terminal.status().success());
        let config = sandbox.config_text();
        assert!(config.contains(&format!("\ndefault: {default}\n")), "{reply}");
        assert_eq!(config.contains("  cursor: { access: full }\n"), full == "y\n", "{config}");
        assert_eq!(config.contains("  claude: { route: cli }\n"), default == "sonnet", "{config}");
    }
}

#[test]
fn refused_or_wrong_reply_writes_nothing() {
    let sandbox = machine();
    let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
    terminal.read_until("[1] ");
    terminal.write("1\n");
    for question in ["without asking? [y/N] ", "do neither. [y/N] ", "Write the config? [y/N] "] {
        terminal.read_until(question);
        terminal.write("n\n");
    }
    terminal.read_until("Nothing was written.\r\n");
    assert!(terminal.status().success());
    for wrong in ["9\n", "0\n", "opos\n"] {
        let mut terminal = Terminal::run(sandbox.configure(&["setup"]));
        terminal.read_until("[1] ");
        terminal.write(wrong);
        terminal.read_until("dispatch-config models lists all of them\r\n");
        assert_eq!(terminal.status().code(), Some(65), "{wrong}");
    }
    assert!(!sandbox.config_path().exists());
}

#[test]
fn setup_without_clis_names_the_common_ones() {
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
fn existing_config_is_refused_before_any_question() {
    let sandbox = machine();
    // A broken config is a person's work too.
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
fn hanging_cli_is_named_and_left_out() {
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
claude 2.1.332, logged in (TOP/clis/claude)
codex: slow: `codex --version` did not answer in SECONDS (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
gemini: slow: `gemini --version` did not answer in SECONDS (TOP/clis/gemini)
cursor cannot restrict its workers to the project: landlock needs Linux 6.2; bubblewrap cannot start: no error; its sandbox holds only as far as its own settings say
HOME/.dispatch/config.yaml written: 8 models, default opus.

"#]],
    );
    same(
        &sandbox.config_text(),
        str![[r#"
# The workers of dispatch. Edit it as you like; 'dispatch-config check' finds mistakes.

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
fn machine_without_a_working_cli_is_refused() {
    let sandbox = Sandbox::with_clis(&[("codex", "echo broken >&2; exit 1")]);
    sandbox.configure(&["setup"]).run().shows(str![[r#"
exit 69
! dispatch-config: no worker CLI on this machine works
!   those listed above do not print their version
!   next: repair or install one and try again; dispatch-config detect lists them
codex: `codex --version` ended with 1: broken (TOP/clis/codex)
"#]]);
    assert!(!sandbox.config_path().exists());
}

#[test]
fn grok_agent_is_not_taken_for_cursor() {
    let sandbox = Sandbox::with_clis(&[("agent", GROKS_AGENT)]);
    let ran = sandbox.configure(&["setup", "--default", "auto", "--yes"]).run();
    assert_eq!(ran.code, Some(69), "{ran:?}");
    sandbox.add_cli("claude", CLAUDE);
    sandbox.configure(&["setup", "--default", "opus", "--yes"]).run().ok();
    assert!(!sandbox.config_text().contains("cursor"));
    // Setup asked the program for its version only.
    assert_eq!(sandbox.calls_of("agent --version"), 2);
    assert_eq!(sandbox.calls_of("agent models"), 0);
}

#[test]
fn cursor_agent_is_called_by_its_path() {
    let sandbox = Sandbox::with_clis(&[("agent", CURSOR)]);
    sandbox.configure(&["setup", "--default", "grok-5", "--yes"]).run().ok();
    same(
        &sandbox.redactions().apply(&sandbox.config_text()),
        str![[r#"
# The workers of dispatch. Edit it as you like; 'dispatch-config check' finds mistakes.

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
sh -c 'exec TOP/clis/agent -p --force --trust "$@"' sh --output-format stream-json --model grok-5 < STATE/x/attempts/1/prompt.md
# full: nothing holds it
"#]]);
}

#[test]
fn killed_setup_leaves_nothing_or_the_config() {
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

#[test]
fn agent_option_overrides_the_route_of_the_config() {
    let sandbox = Sandbox::new();
    sandbox.plan("x", PLAN);
    let host = Host::new(&sandbox);
    let config = "default: opus\nbackends: { claude: { route: cli }, codex: {} }\nmodels:\n  \
                  opus: { backend: claude }\n  gpt: { backend: codex }\n";
    sandbox.config(config);
    let dry = |options: &[&str]| {
        let args = [&["x", "--dry-run", "--agent"], options].concat();
        host.calls(sandbox.call("dispatch-spawn", &args))
    };
    assert!(dry(&[]).run().ok().contains("subagent_type"));
    dry(&["--model", "gpt"]).run().shows(str![[r#"
exit 64
! dispatch-spawn: the host has no agent for this task
!   gpt is no model of a Claude Code that calls this
!   next: leave out --agent
"#]]);
    dry(&["--keep"]).run().shows(str![[r#"
exit 64
! dispatch-spawn: an agent of the host cannot have --keep or --may-dispatch
!   that needs a supervisor, and an agent has none
!   next: dispatch without it, or leave out --agent
"#]]);
    sandbox
        .config(&format!("{config}aliases: {{ tested: {{ model: opus, check: make test }} }}\n"));
    dry(&["--model", "tested"]).run().shows(str![[r#"
exit 64
! dispatch-spawn: an agent of the host cannot have --check or --review
!   that needs a supervisor, and an agent has none
!   next: dispatch without it, or leave out --agent
"#]]);
    assert_eq!(sandbox.run("dispatch-spawn", &["x", "--agent"]).code, Some(64), "without a host");
}
