//! The configs of the original work as they did, and can be migrated.

use std::fs;

use serde_json::Value;
use snapbox::str;

use crate::support::clis::{CLAUDE, CODEX, CURSOR};
use crate::support::text::same;
use crate::support::{PLAN, Sandbox};

/// The original's config, as its pages show it.
const OLD: &str = r#"default: cursor  # Agent to use when none specified
agents:
  cursor:
    command: >
      agent -p --force --workspace "$(pwd)"
  claude:
    command: >
      env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE
      claude -p --dangerously-skip-permissions
  harvey:
    command: >
      agent -p --force --model gpt-5.3-codex
      --workspace "$(pwd)"
"#;

/// The original's later config, as its pages show it.
const NEW: &str = r#"default: opus
backends:
  claude:
    command: >
      env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE
      claude -p --dangerously-skip-permissions
  cursor:
    command: >
      agent -p --force --workspace "$(pwd)"
  codex:
    command: >
      codex exec --full-auto -C "$(pwd)"
models:
  # Claude
  opus: { backend: claude }
  sonnet: { backend: claude }
  haiku: { backend: claude }
  # GPT / OpenAI
  gpt-5.3-codex: { backend: codex }
  gpt-5.3: { backend: cursor }
  # ... all detected models grouped by provider
aliases:
  security-reviewer:
    model: opus
    prompt: >
      You are a security-focused reviewer. Prioritize OWASP Top 10
      vulnerabilities, auth flaws, and injection risks.
"#;

/// The name that a sentence resolves to, and why.
#[track_caller]
fn resolved(sandbox: &Sandbox, request: &str) -> String {
    let said = sandbox.configure(&["resolve", "--json", "--request", request]).run().ok();
    let json: Value = serde_json::from_str(&said).expect("JSON");
    assert!(json["model"].is_null(), "an agent has no model");
    ["name", "how"].map(|key| json[key].as_str().expect("a word")).join(" ")
}

/// The command of each name, as a spawn would run it.
#[track_caller]
fn commands(sandbox: &Sandbox, names: &[&str]) -> String {
    sandbox.plan("x", PLAN);
    let mut all = String::new();
    for name in names {
        let spawn = ["x", "--model", name, "--dry-run"];
        let said = sandbox.on_machine("dispatch-spawn", &spawn).run().ok();
        all.push_str(&format!("{name}: {}", sandbox.redactions().apply(&said)));
    }
    all
}

#[test]
fn first_format_works_as_in_the_original() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("agent", CURSOR)]);
    sandbox.config(OLD);
    same(
        &commands(&sandbox, &["cursor", "claude", "harvey"]),
        str![[r#"
cursor: sh -c 'exec agent -p --force --workspace "$(pwd)" "$@"' sh < PROJECT/.dispatch/tasks/x/worker/1/stdin
claude: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --session-id UUID < PROJECT/.dispatch/tasks/x/worker/1/stdin
harvey: sh -c 'exec agent -p --force --model gpt-5.3-codex --workspace "$(pwd)" "$@"' sh < PROJECT/.dispatch/tasks/x/worker/1/stdin

"#]],
    );
    let rows = [
        ("have harvey review it", "harvey named"),
        ("let claude do it", "claude named"),
        ("review it", "cursor default"),
    ];
    for (request, expected) in rows {
        assert_eq!(resolved(&sandbox, request), expected, "{request}");
    }
    // The format has no models to add to.
    sandbox.configure(&["resolve", "gpt-6"]).run().shows(str![[r#"
exit 65
! dispatch-config: model 'gpt-6' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: use one of cursor, claude, harvey; dispatch-config models lists what your subscriptions have
"#]]);
    sandbox.configure(&["add-model", "gpt-6"]).run().shows(str![[r#"
exit 65
! dispatch-config: a config of the old format has no such entries
!   HOME/.dispatch/config.yaml has only 'agents:'
!   next: call 'dispatch-config migrate', then try again
"#]]);
    assert_eq!(sandbox.config_text(), OLD);
}

#[test]
fn second_format_works_as_in_the_original() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("agent", CURSOR), ("codex", CODEX)]);
    sandbox.config(NEW);
    let names = ["opus", "sonnet", "haiku", "gpt-5.3-codex", "gpt-5.3", "security-reviewer"];
    same(
        &commands(&sandbox, &names),
        str![[r#"
opus: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --model opus --session-id UUID < PROJECT/.dispatch/tasks/x/worker/1/stdin
sonnet: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --model sonnet --session-id UUID < PROJECT/.dispatch/tasks/x/worker/1/stdin
haiku: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --model haiku --session-id UUID < PROJECT/.dispatch/tasks/x/worker/1/stdin
gpt-5.3-codex: sh -c 'exec codex exec -s workspace-write -C "$(pwd)" "$@"' sh --model gpt-5.3-codex - < PROJECT/.dispatch/tasks/x/worker/1/stdin
gpt-5.3: sh -c 'exec agent -p --force --workspace "$(pwd)" "$@"' sh --model gpt-5.3 < PROJECT/.dispatch/tasks/x/worker/1/stdin
security-reviewer: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --model opus --session-id UUID < PROJECT/.dispatch/tasks/x/worker/1/stdin

"#]],
    );
    let said = sandbox.configure(&["resolve", "security-reviewer", "--json"]).run().ok();
    let json: Value = serde_json::from_str(&said).expect("JSON");
    assert!(json["prompt"].as_str().expect("a prompt").starts_with("You are a security-focused"));
    assert_eq!(sandbox.config_text(), NEW);
}

#[test]
fn migration_adds_models_and_keeps_every_line() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("agent", CURSOR), ("codex", CODEX)]);
    sandbox.config(OLD);
    let names = ["cursor", "claude", "harvey"];
    let before = commands(&sandbox, &names);
    let migrate = || sandbox.configure(&["migrate"]);
    migrate().crash_at("config.yaml:written").run().crashed();
    assert_eq!(sandbox.config_text(), OLD);
    migrate().run().shows(str![[r#"
exit 0
migrated: 11 models added; every line of the old config is kept
"#]]);
    let text = sandbox.config_text();
    assert!(text.starts_with(OLD), "{text}");
    same(
        &sandbox.redactions().apply(&text[OLD.len()..]),
        str![[r#"
backends:
  claude: {}
  codex: {}
  cursor:
    command: TOP/clis/agent -p --force --trust
    prompt: stdin
models:
  opus: { backend: claude }
  sonnet: { backend: claude }
  haiku: { backend: claude }
  fable: { backend: claude }
  claude-opus-5-thinking-high: { backend: claude }
  gpt-6-codex: { backend: codex }
  gpt-6: { backend: codex }
  gpt-5.3-codex: { backend: codex }
  gpt-5.3-codex-low: { backend: codex }
  gemini-3.1-pro: { backend: cursor }
  grok-5: { backend: cursor }

"#]],
    );
    sandbox.configure(&["check"]).run().ok();
    assert_eq!(commands(&sandbox, &names), before);
    let kept = fs::read_to_string(sandbox.home().join(".dispatch/config.yaml.bak"));
    assert_eq!(kept.expect("kept"), OLD);
    migrate().run().shows(str![[r#"
exit 0
the config has the current format already
"#]]);
    sandbox.configure(&["add-model", "gpt-7"]).run().ok();
}

#[test]
fn killed_migration_leaves_the_old_or_the_new_config() {
    for point in ["config.yaml.bak:published", "config:kept", "config.yaml:published"] {
        let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("agent", CURSOR)]);
        let old = format!(
            "{OLD}aliases: # mine\n  h: {{ model: harvey, prompt: \"A\\nB: c\" }}\nconfirm_default: false\npatience: 60\n"
        );
        sandbox.config(&old);
        sandbox.configure(&["migrate"]).crash_at(point).run().crashed();
        let done = point == "config.yaml:published";
        assert_eq!(sandbox.config_text() != old, done, "{point}");
        sandbox.configure(&["migrate"]).run().ok();
        assert!(sandbox.config_text().starts_with(&old), "{}", sandbox.config_text());
        let said = sandbox.configure(&["resolve", "h", "--json"]).run().ok();
        assert!(said.contains(r#""prompt":"A\nB: c""#), "{said}");
    }
}

#[test]
fn brief_offers_a_migration_once() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("agent", CURSOR)]);
    sandbox.config(OLD);
    let brief = || sandbox.configure(&["brief"]).run().ok();
    assert_eq!(brief().matches("/dispatch \"migrate my config\"").count(), 1);
    assert!(!brief().contains("migrate my config"));
}
