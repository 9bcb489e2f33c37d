//! `dispatch-config resolve`: the worker that a person named; `detect` and `models`: the worker CLIs of
//! a machine.

use serde_json::Value;
use snapbox::str;

use crate::support::clis::{
    CLAUDE, CLAUDE_LOGGED_OUT, CODEX, CODEX_LOGGED_OUT, CURSOR, HANGS, OPENCODE,
};
use crate::support::text::same;
use crate::support::{PLAN, Sandbox};

const CONFIG: &str = "\
default: sonnet
backends: { claude: {}, codex: {}, cursor: {} }
models:
  opus: { backend: claude }
  sonnet: { backend: claude }
  o3: { backend: codex }
  gpt-5.3-codex: { backend: codex }
  gpt-5.3-codex-spark: { backend: cursor }
  gemini-2.5-flash: { backend: cursor }
  gemini-3.1-pro: { backend: cursor }
aliases:
  quick: { model: gemini-2.5-flash }
  reviewer: { model: opus, prompt: Look twice. }
";

fn sandbox() -> Sandbox {
    let sandbox =
        Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX), ("cursor-agent", CURSOR)]);
    sandbox.config(CONFIG);
    sandbox
}

#[track_caller]
fn json(sandbox: &Sandbox, args: &[&str]) -> Value {
    let said = sandbox.configure(&["resolve", "--json"]).args(args).run().ok();
    serde_json::from_str(&said).expect("JSON")
}

/// `name (model) on backend, how`, with `ask` if the person must confirm it.
#[track_caller]
fn resolved(json: &Value) -> String {
    let word = |key: &str| json[key].as_str().unwrap_or("-");
    let ask = if json["confirm"].as_bool().expect("a truth") { ", ask" } else { "" };
    format!("{} ({}) on {}, {}{ask}", word("name"), word("model"), word("backend"), word("how"))
}

#[test]
fn sentence_resolves_to_a_worker() {
    let sandbox = sandbox();
    let rows = [
        // A name as a whole word; other scripts do not count as parts of a word.
        ("Use Opus to review the auth module", "opus (opus) on claude, named"),
        ("用opus审查", "opus (opus) on claude, named"),
        ("please be quick", "quick (gemini-2.5-flash) on cursor, named"),
        // The last of several names.
        ("have opus review and sonnet test", "sonnet (sonnet) on claude, named"),
        ("sonnet, no: o3", "o3 (o3) on codex, named"),
        // The longest name at its place.
        (
            "gpt-5.3-codex-spark: fix it",
            "gpt-5.3-codex-spark (gpt-5.3-codex-spark) on cursor, named",
        ),
        ("gpt-5.3-codex: fix it", "gpt-5.3-codex (gpt-5.3-codex) on codex, named"),
        // The newest model of a provider.
        ("let gemini do it", "gemini-3.1-pro (gemini-3.1-pro) on cursor, provider"),
        ("let claude do it", "sonnet (sonnet) on claude, provider"),
        ("codex should do it", "gpt-5.3-codex (gpt-5.3-codex) on codex, provider"),
        // No name.
        ("do it quickly in foo3", "sonnet (sonnet) on claude, default, ask"),
        ("--fix src/opus/mod.rs", "sonnet (sonnet) on claude, default, ask"),
    ];
    for (request, expected) in rows {
        assert_eq!(resolved(&json(&sandbox, &["--request", request])), expected, "{request}");
        let read = sandbox.configure(&["resolve", "--request", "-", "--json"]).input(request);
        let read: Value = serde_json::from_str(&read.run().ok()).expect("JSON");
        assert_eq!(resolved(&read), expected, "{request}");
    }
    assert_eq!(sandbox.config_text(), CONFIG);
    assert_eq!(sandbox.calls_of("claude --version"), 0, "the config has all names");
}

#[test]
fn resolve_prints_json_or_text() {
    let sandbox = sandbox();
    let text = |args: &[&str]| sandbox.configure(&["resolve"]).args(args).run();
    text(&["--json", "--request", "ask the reviewer"]).shows(str![[r#"
exit 0
{"name":"reviewer","model":"opus","backend":"claude","prompt":"Look twice.","how":"named","confirm":false,"note":null}
"#]]);
    text(&["--json", "--request", "ask gemini"]).shows(str![[r#"
exit 0
{"name":"gemini-3.1-pro","model":"gemini-3.1-pro","backend":"cursor","prompt":null,"how":"provider","confirm":false,"note":"'gemini' means gemini-3.1-pro here, its newest in the config"}
"#]]);
    text(&["--json", "--request", "fix it"]).shows(str![[r#"
exit 0
{"name":"sonnet","model":"sonnet","backend":"claude","prompt":null,"how":"default","confirm":true,"note":"no model was named; sonnet is the default: ask"}
"#]]);
    text(&["reviewer"]).shows(str![[r#"
exit 0
reviewer: opus on claude
"#]]);
    text(&["gemini"]).shows(str![[r#"
exit 0
gemini-3.1-pro: gemini-3.1-pro on cursor
'gemini' means gemini-3.1-pro here, its newest in the config
"#]]);
    text(&[]).shows(str![[r#"
exit 0
sonnet: sonnet on claude
no model was named; sonnet is the default: ask
"#]]);
}

#[test]
fn confirm_default_false_skips_the_question() {
    let sandbox = sandbox();
    sandbox.config(&format!("confirm_default: false\n{CONFIG}"));
    sandbox.configure(&["resolve", "--json", "--request", "fix it"]).run().shows(str![[r#"
exit 0
{"name":"sonnet","model":"sonnet","backend":"claude","prompt":null,"how":"default","confirm":false,"note":null}
"#]]);
}

#[test]
fn model_of_an_installed_cli_is_added() {
    let sandbox = sandbox();
    sandbox
        .configure(&["resolve", "--json", "--request", "let gpt-6 try"])
        .run()
        .shows(str![[r#"
exit 0
{"name":"gpt-6","model":"gpt-6","backend":"codex","prompt":null,"how":"added","confirm":false,"note":"gpt-6 was not in the config and was added to it, on codex (undo: dispatch-config remove-model gpt-6)"}
"#]]);
    // A model that Claude Code resolves by itself, and one that only Cursor lists.
    sandbox.configure(&["resolve", "opus-4.9-thinking"]).run().shows(str![[r#"
exit 0
opus-4.9-thinking: opus-4.9-thinking on claude
opus-4.9-thinking was not in the config and was added to it, on claude (undo: dispatch-config remove-model opus-4.9-thinking)
"#]]);
    sandbox.configure(&["resolve", "grok-5"]).run().shows(str![[r#"
exit 0
grok-5: grok-5 on cursor
grok-5 was not in the config and was added to it, on cursor (undo: dispatch-config remove-model grok-5)
"#]]);
    let added = "  gpt-6: { backend: codex }\n  opus-4.9-thinking: { backend: claude }\n  grok-5: { backend: cursor }\n";
    for line in added.lines() {
        assert_eq!(sandbox.config_text().matches(&format!("\n{line}\n")).count(), 1, "{line}");
    }
    let without: String =
        sandbox.config_text().split_inclusive('\n').filter(|l| !added.contains(l)).collect();
    assert_eq!(without, CONFIG);
    // The second call finds the model in the config.
    assert_eq!(resolved(&json(&sandbox, &["gpt-6"])), "gpt-6 (gpt-6) on codex, named");
}

#[test]
fn known_backend_is_added_with_its_first_model() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX)]);
    sandbox.config("# Mine.\nbackends:\n  claude:\nmodels:\n  opus: { backend: claude }\n");
    sandbox.configure(&["resolve", "gpt-6"]).run().ok();
    same(
        &sandbox.config_text(),
        str![[r#"
# Mine.
backends:
  claude:
  codex: {}
models:
  opus: { backend: claude }
  gpt-6: { backend: codex }

"#]],
    );
}

#[test]
fn unknown_model_suggests_the_nearest() {
    let sandbox = sandbox();
    sandbox.configure(&["resolve", "gemini-3-pro"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'gemini-3-pro' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean gemini-3.1-pro, gemini-2.5-flash; dispatch-config models lists what your subscriptions have
"#]]);
    sandbox.configure(&["resolve", "--request", "let kimi-9 do it"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'kimi-9' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: use one of quick, reviewer, opus, sonnet, o3, gpt-5.3-codex, gpt-5.3-codex-spark, gemini-2.5-flash, …; dispatch-config models lists what your subscriptions have
"#]]);
    sandbox.configure(&["resolve", "--request", "ask grok"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'grok' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: use one of quick, reviewer, opus, sonnet, o3, gpt-5.3-codex, gpt-5.3-codex-spark, gemini-2.5-flash, …; dispatch-config models lists what your subscriptions have
"#]]);
    sandbox.configure(&["resolve", "Revewer"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'Revewer' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean reviewer; dispatch-config models lists what your subscriptions have
"#]]);
    assert_eq!(sandbox.config_text(), CONFIG);
}

#[test]
fn spawn_resolves_like_resolve() {
    let sandbox = sandbox();
    let spawn = |id: &str, model: &str| {
        sandbox.plan(id, PLAN);
        // Cursor cannot restrict its workers.
        sandbox.on_machine("dispatch-spawn", &[id, "--model", model, "--access", "full"]).run()
    };
    spawn("x", "gemini").shows(str![[r#"
exit 0
'gemini' means gemini-3.1-pro here, its newest in the config
x (Title, 2 items) started with gemini-3.1-pro. Tell the user and stop; news wakes you.
"#]]);
    spawn("y", "gpt-6").shows(str![[r#"
exit 0
gpt-6 was not in the config and was added to it, on codex (undo: dispatch-config remove-model gpt-6)
y (Title, 2 items) started with gpt-6. Tell the user and stop; news wakes you.
"#]]);
    spawn("z", "reviewer").shows(str![[r#"
exit 0
z (Title, 2 items) started with reviewer. Tell the user and stop; news wakes you.
"#]]);
    spawn("w", "opos").shows(str![[r#"
exit 65
! dispatch-spawn: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#]]);
    assert!(sandbox.read("x", "record.yaml").contains("model: gemini-3.1-pro\n"));
    assert!(sandbox.read("y", "record.yaml").contains("backend: codex\n"));
    assert!(sandbox.read("z", "prompt.md").contains("Look twice."));
    assert!(!sandbox.task("w", "record.yaml").exists());
    assert!(sandbox.config_text().contains("\n  gpt-6: { backend: codex }\n"));
}

#[test]
fn broken_alias_is_named() {
    let sandbox = sandbox();
    sandbox.config(&format!("{CONFIG}  broken: {{ model: opos }}\n"));
    sandbox.configure(&["resolve", "broken"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: the alias 'broken' stands for 'opos'
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#]]);
}

#[test]
fn instead_of_suggests_installed_models() {
    let sandbox = sandbox();
    sandbox.add_cli("claude", CLAUDE_LOGGED_OUT);
    let instead = |name: &str| sandbox.configure(&["resolve", "--instead-of", name]).run();
    instead("opus").shows(str![[r#"
exit 0
o3 on codex
gemini-2.5-flash on cursor
"#]]);
    instead("reviewer").shows(str![[r#"
exit 0
o3 on codex
gemini-2.5-flash on cursor
"#]]);
    instead("o3").shows(str![[r#"
exit 0
gpt-5.3-codex-spark on cursor
gemini-2.5-flash on cursor
"#]]);
    let json = sandbox.configure(&["resolve", "--instead-of", "opus", "--json"]);
    json.run().shows(str![[r#"
exit 0
[{"backend":"codex","model":"o3"},{"backend":"cursor","model":"gemini-2.5-flash"}]
"#]]);
    sandbox.add_cli("codex", CODEX_LOGGED_OUT);
    sandbox.remove_cli("cursor-agent");
    instead("opus").shows(str![[r#"
exit 69
! dispatch-config: no replacement for 'opus'
!   no other model of the config has a CLI that is installed and logged in
!   next: install or log in to claude, codex or cursor-agent; dispatch-config detect
"#]]);
    instead("opos").shows(str![[r#"
exit 65
! dispatch-config: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#]]);
    assert_eq!(sandbox.config_text(), CONFIG);
}

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
claude 2.1.332, not logged in (TOP/clis/claude)
codex 0.171.0, logged in (TOP/clis/codex)
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
  "version": "2.1.332"
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
    sandbox.add_cli("codex", &CODEX.replace("0.171.0", "0.172.0"));
    sandbox.configure(&["models"]).run().ok();
    assert_eq!(asked(), (3, 2));
}

#[test]
fn slow_cli_is_asked_again_and_named_as_slow() {
    let sandbox = Sandbox::with_clis(&[("codex", &format!("sleep 0.5\n{CODEX}"))]);
    sandbox.configure(&["detect"]).env("DISPATCH_ANSWER_MS", "0").run().shows(str![[r#"
exit 0
codex 0.171.0, logged in: slow: `codex --version` answered only when asked again (TOP/clis/codex)
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
