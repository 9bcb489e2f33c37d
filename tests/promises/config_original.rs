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
cursor: sh -c 'exec agent -p --force --workspace "$(pwd)" "$@"' sh --output-format stream-json < STATE/x/attempts/1/prompt.md
# full: nothing holds it
claude: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --output-format stream-json --verbose --session-id UUID < STATE/x/attempts/1/prompt.md
# full: nothing holds it
harvey: sh -c 'exec agent -p --force --model gpt-5.3-codex --workspace "$(pwd)" "$@"' sh --output-format stream-json < STATE/x/attempts/1/prompt.md
# full: nothing holds it

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
opus: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --output-format stream-json --verbose --model opus --session-id UUID < STATE/x/attempts/1/prompt.md
# full: nothing holds it
sonnet: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --output-format stream-json --verbose --model sonnet --session-id UUID < STATE/x/attempts/1/prompt.md
# full: nothing holds it
haiku: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --output-format stream-json --verbose --model haiku --session-id UUID < STATE/x/attempts/1/prompt.md
# full: nothing holds it
gpt-5.3-codex: sh -c 'exec codex exec -s workspace-write -C "$(pwd)" "$@"' sh --json --model gpt-5.3-codex - < STATE/x/attempts/1/prompt.md
# full: nothing holds it
gpt-5.3: sh -c 'exec agent -p --force --workspace "$(pwd)" "$@"' sh --output-format stream-json --model gpt-5.3 < STATE/x/attempts/1/prompt.md
# full: nothing holds it
security-reviewer: sh -c 'exec env -u CLAUDE_CODE_ENTRYPOINT -u CLAUDECODE claude -p --dangerously-skip-permissions "$@"' sh --output-format stream-json --verbose --model opus --session-id UUID < STATE/x/attempts/1/prompt.md
# full: nothing holds it

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
fn migration_without_a_cli_names_what_works() {
    let sandbox = Sandbox::with_clis(&[]);
    sandbox.config(OLD);
    sandbox.configure(&["migrate"]).run().shows(str![[r#"
exit 69
! dispatch-config: no worker CLI is installed, so nothing was added
!   next: install one and try again; or call dispatch-config add-backend NAME --command '...'
"#]]);
    assert_eq!(sandbox.config_text(), OLD);
    sandbox.configure(&["add-backend", "mine", "--command", "mine -p"]).run().ok();
    sandbox.configure(&["add-model", "gpt-7", "--backend", "mine"]).run().ok();
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

/// The commands that change the config lose nothing, whatever happens meanwhile.
mod kept {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use crate::support::Sandbox;
    use crate::support::clis::{CLAUDE, CODEX};
    use crate::support::text::names;

    /// A config as a person writes it.
    const CONFIG: &str = "\
# Mine. Do not sort!

default:   opus   # the careful one

backends:
  claude: {}
  harvey: { command: harvey -p }

models:
  opus: { backend: claude }     # best
  sonnet: { backend: 'claude' }
  harvey-1: { backend: harvey }
aliases:
  reviewer: # asks twice
    model: sonnet

# The end.
";

    fn sandbox() -> Sandbox {
        let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX)]);
        sandbox.config(CONFIG);
        sandbox
    }

    #[test]
    fn edits_keep_byte_order_mark_and_line_ends() {
        for (mark, end) in [("\u{feff}", "\n"), ("", "\r\n"), ("\u{feff}", "\r\n")] {
            let sandbox = sandbox();
            let foreign = |text: &str| format!("{mark}{}", text.replace('\n', end));
            sandbox.config(&foreign(CONFIG));
            sandbox.configure(&["set-default", "sonnet"]).run().ok();
            sandbox.configure(&["add-model", "haiku"]).run().ok();
            sandbox.configure(&["remove-alias", "reviewer"]).run().ok();
            sandbox
                .configure(&["add-alias", "q", "--model", "opus", "--prompt", "A\nB"])
                .run()
                .ok();
            let text = sandbox.config_text();
            assert!(
                text.starts_with(&foreign("# Mine. Do not sort!\n\ndefault:   sonnet   # the"))
            );
            assert_eq!(text.matches('\n').count(), text.matches(end).count(), "{text:?}");
            assert_eq!(sandbox.configure(&["resolve", "q"]).run().ok(), "q: opus on claude\n");
        }
    }

    #[test]
    fn linked_config_stays_a_link_and_keeps_its_mode() {
        let sandbox = sandbox();
        let dotfiles = sandbox.home().join("dotfiles");
        fs::create_dir_all(&dotfiles).expect("made");
        let real = dotfiles.join("dispatch.yaml");
        fs::rename(sandbox.config_path(), &real).expect("moved");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("changed");
        symlink("../dotfiles/dispatch.yaml", sandbox.config_path()).expect("linked");
        let edit = || sandbox.configure(&["set-default", "sonnet"]);
        edit().crash_at("dispatch.yaml:written").run().crashed();
        assert_eq!(fs::read_to_string(&real).expect("there"), CONFIG);
        edit().run().ok();
        assert!(sandbox.config_path().is_symlink());
        assert_eq!(fs::read_to_string(&real).expect("there"), CONFIG.replace("opus  ", "sonnet  "));
        let mode = fs::metadata(&real).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o640);
    }

    #[test]
    fn concurrent_edits_all_succeed() {
        let sandbox = sandbox();
        sandbox.configure(&["models"]).run().ok();
        let ids: Vec<String> = (0..16).map(|number| format!("harvey-1{number}")).collect();
        let add =
            |id: &String| sandbox.configure(&["add-model", id, "--backend", "harvey"]).start();
        let running: Vec<_> = ids.iter().map(add).collect();
        running.into_iter().for_each(|edit| assert_eq!(edit.end().code, Some(0)));
        let text = sandbox.config_text();
        for id in &ids {
            assert_eq!(
                text.matches(&format!("\n  {id}: {{ backend: harvey }}\n")).count(),
                1,
                "{id}"
            );
        }
        let others = |line: &&str| !line.starts_with("  harvey-1") || line.contains("harvey-1:");
        let rest: Vec<&str> = text.lines().filter(others).collect();
        assert_eq!(rest, CONFIG.lines().collect::<Vec<_>>());
        // The backup is the text before the last edit.
        let kept =
            fs::read_to_string(sandbox.home().join(".dispatch/config.yaml.bak")).expect("kept");
        assert_eq!(kept.lines().count() + 1, text.lines().count());
    }

    /// The files but the dot files, which dead writers leave.
    #[track_caller]
    fn visible(directory: &Path) -> Vec<String> {
        names(directory).into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    #[test]
    fn killed_edit_leaves_the_old_or_the_new_config() {
        for point in [
            "config.yaml.bak:written",
            "config.yaml.bak:published",
            "config:kept",
            "config.yaml:written",
            "config.yaml:published",
        ] {
            let sandbox = sandbox();
            let edit = || sandbox.configure(&["set-default", "sonnet"]);
            edit().crash_at(point).run().crashed();
            let new = CONFIG.replace("opus  ", "sonnet  ");
            let done = point == "config.yaml:published";
            assert_eq!(sandbox.config_text(), if done { &new } else { CONFIG }, "{point}");
            // A person's change before the next call is kept.
            sandbox.config(&(sandbox.config_text() + "# saved\n"));
            edit().run().ok();
            assert_eq!(sandbox.config_text(), new + "# saved\n", "{point}");
            let directory = sandbox.home().join(".dispatch");
            assert_eq!(
                visible(&directory),
                ["config.yaml", "config.yaml.bak", "config.yaml.lock"],
                "{point}"
            );
        }
    }
}
