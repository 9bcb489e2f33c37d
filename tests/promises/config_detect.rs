//! `dispatch-config detect` and `models`: the worker CLIs of a machine.

use snapbox::str;

use crate::support::Sandbox;
use crate::support::clis::{CLAUDE, CLAUDE_LOGGED_OUT, CODEX, CURSOR, HANGS, OPENCODE};
use crate::support::text::same;

#[test]
fn detect_prints_a_line_for_each_cli() {
    let sandbox = Sandbox::with_clis(&[
        ("claude", CLAUDE_LOGGED_OUT),
        ("codex", CODEX),
        ("cursor-agent", CURSOR),
        ("opencode", OPENCODE),
        ("gemini", "echo 0.61.0"),
        ("qwen", "echo 'Error: node is too old' >&2; exit 1"),
        ("harvey", "exit 9"),
    ]);
    sandbox.config("backends: { harvey: { command: harvey -p }, gone: { command: gone -p } }\n");
    sandbox.configure(&["detect"]).run().shows(str![[r#"
exit 0
claude 2.1.329, not logged in (TOP/clis/claude)
codex 0.169.0, logged in (TOP/clis/codex)
cursor 2026.01.28-fd13201, logged in (TOP/clis/cursor-agent)
gemini 0.61.0 (TOP/clis/gemini)
opencode 1.18.33 (TOP/clis/opencode)
qwen: `qwen --version` ended with 1: Error: node is too old (TOP/clis/qwen)
harvey (TOP/clis/harvey)
"#]]);
    // An unknown program is not run, since it may do anything.
    assert_eq!(sandbox.calls_of("harvey --version"), 0);
    let said = sandbox.configure(&["detect", "--json"]).run().ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let json = serde_json::to_string_pretty(&json[0]).expect("JSON");
    same(
        &sandbox.redactions().apply(&json),
        str![[r#"
{
  "backend": "claude",
  "logged_in": false,
  "problem": null,
  "program": "TOP/clis/claude",
  "version": "2.1.329"
}
"#]],
    );
}

#[test]
fn detect_without_clis_names_those_it_looked_for() {
    let sandbox = Sandbox::with_clis(&[]);
    sandbox.configure(&["detect"]).run().shows(str![[r#"
exit 69
! dispatch-config: no worker CLI is installed
!   looked for Claude Code (claude), Codex (codex), Cursor (cursor-agent) and others
!   next: install one, or write a config like references/config-example.yaml
"#]]);
    assert_eq!(sandbox.configure(&["models"]).run().code, Some(69));
    assert_eq!(sandbox.configure(&["detect", "--json"]).run().ok(), "[]\n");
}

#[test]
fn models_are_listed_with_the_source_of_each_list() {
    let sandbox = Sandbox::with_clis(&[
        ("claude", CLAUDE),
        ("codex", CODEX),
        ("cursor-agent", CURSOR),
        ("opencode", OPENCODE),
        ("gemini", "echo 0.61.0"),
    ]);
    sandbox.configure(&["models"]).run().shows(str![[r#"
exit 0
claude (stable names)
  opus
  sonnet
  haiku
  fable
codex (from the CLI, TIME)
  gpt-6-codex - GPT-6-Codex
  gpt-6 - gpt-6
  gpt-5.3-codex - gpt-5.3-codex
cursor (from the CLI, TIME)
  auto - Auto
  gpt-5.3-codex-low - Codex 5.3 Low
  claude-opus-5-thinking-high - Opus 5 1M Thinking
  gemini-3.1-pro - Gemini 3.1 Pro
  grok-5 - Grok 5
gemini (no list from the CLI; known models)
  gemini-3.1-pro-preview
  gemini-3-flash-preview
  gemini-2.5-pro
  gemini-2.5-flash
  gemini-2.5-flash-lite
opencode (from the CLI, TIME)
  opencode/big-pickle
  opencode/grok-code
"#]]);
    let said = sandbox.configure(&["models", "--json"]).run().ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    same(
        &sandbox.redactions().apply(&json[1].to_string()),
        str![[
            r#"{"asked":"TIME","backend":"codex","models":[{"id":"gpt-6-codex","name":"GPT-6-Codex"},{"id":"gpt-6","name":"gpt-6"},{"id":"gpt-5.3-codex","name":"gpt-5.3-codex"}],"source":"asked"}"#
        ]],
    );
}

#[test]
fn cli_without_a_list_is_named_with_the_reason() {
    let sandbox = Sandbox::with_clis(&[
        ("codex", "[ \"$1\" = --version ] && echo 'codex-cli 0.120.0' || exit 2"),
        (
            "cursor-agent",
            &CURSOR
                .replace("models)", "models) echo 'No models available for this account.'; exit 0"),
        ),
        (
            "opencode",
            "case $1 in --version) echo 1.18.33 ;; *) echo 'Error: no network' >&2; exit 1 ;; esac",
        ),
        ("claude", HANGS),
    ]);
    let ran = sandbox.configure(&["models"]).env("DISPATCH_SLOW_ANSWER_MS", "0").run();
    let seconds = regex::Regex::new(r"in [0-9.]+ s").expect("a regex");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    same(
        &seconds.replace_all(&ran.out, "in SECONDS"),
        str![[r#"
claude: slow: `claude --version` did not answer in SECONDS
codex: `codex debug models` ended with 2: it said nothing
cursor: `cursor-agent models` lists no model: No models available for this account.
opencode: `opencode models` ended with 1: Error: no network

"#]],
    );
}

#[test]
fn models_are_asked_for_once_a_day_or_on_refresh() {
    let sandbox = Sandbox::with_clis(&[("codex", CODEX), ("cursor-agent", CURSOR)]);
    let asked = || {
        let of = |words| sandbox.calls_of(words);
        (of("codex debug models"), of("cursor-agent models"))
    };
    let first = sandbox.configure(&["models"]).run().ok();
    assert_eq!(asked(), (1, 1));
    assert_eq!(sandbox.configure(&["models"]).run().ok(), first);
    sandbox.configure(&["setup", "--default", "gpt-6", "--yes"]).run().ok();
    sandbox.configure(&["add-model", "gpt-7"]).run().ok();
    assert_eq!(asked(), (1, 1));
    sandbox.configure(&["models", "--refresh"]).run().ok();
    assert_eq!(asked(), (2, 2));
    // A new version may have other models.
    sandbox.add_cli("codex", &CODEX.replace("0.169.0", "0.170.0"));
    sandbox.configure(&["models"]).run().ok();
    assert_eq!(asked(), (3, 2));
}

#[test]
fn slow_cli_is_asked_again_and_named_as_slow() {
    let sandbox = Sandbox::with_clis(&[("codex", &format!("sleep 0.5\n{CODEX}"))]);
    sandbox.configure(&["detect"]).env("DISPATCH_ANSWER_MS", "0").run().shows(str![[r#"
exit 0
codex 0.169.0, logged in: slow: `codex --version` answered only when asked again (TOP/clis/codex)
"#]]);
}

#[test]
fn hanging_cli_is_named_in_every_list() {
    let sandbox = Sandbox::with_clis(&[("codex", HANGS)]);
    for args in [["detect", "--json"], ["models", "--json"], ["setup", "--json"]] {
        let call = sandbox.configure(&args).env("DISPATCH_ANSWER_MS", "0");
        let said = call.env("DISPATCH_SLOW_ANSWER_MS", "0").run().ok();
        assert!(said.contains("slow: `codex --version` did not answer in "), "{args:?}: {said}");
    }
}

#[test]
fn config_knows_every_cli_without_a_command() {
    let sandbox = Sandbox::new();
    for cli in dispatch::tools::KNOWN {
        sandbox.config(&format!("models: {{ m: {{ backend: {} }} }}\n", cli.name));
        sandbox.configure(&["check"]).run().ok();
    }
}
