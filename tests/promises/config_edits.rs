//! The commands that change the config keep all other bytes.

use std::fs;

use snapbox::str;

use crate::support::clis::{CLAUDE, CODEX, CURSOR};
use crate::support::text::same;
use crate::support::{Ran, Sandbox};

/// A config as a person writes it.
const CONFIG: &str = "\
# Mine. Do not sort!

default:   opus   # the careful one

backends:
  claude: {}
  # The cheap one.
  \"harvey\":
    command: >
      harvey -p
      --fast

models:
  # Claude
  opus: { backend: claude }     # best
  sonnet: { backend: 'claude' }

  # Others
  harvey-1: { backend: harvey }
aliases:
  reviewer: # asks twice
    model: sonnet
    prompt: |
      Look twice.

# The end.
";

fn sandbox() -> Sandbox {
    let mut clis = vec![("claude", CLAUDE), ("codex", CODEX), ("cursor-agent", CURSOR)];
    // Backends that some commands add, so that the config stays valid.
    clis.extend([("harvey", "exit 1"), ("gemini", "echo 0.61.0"), ("mine", "exit 1")]);
    let sandbox = Sandbox::with_clis(&clis);
    sandbox.config(CONFIG);
    sandbox
}

/// The lines that a command removed and added, and its output.
#[track_caller]
fn change(args: &[&str]) -> String {
    let sandbox = sandbox();
    let said = sandbox.configure(args).run().ok();
    let after = sandbox.config_text();
    sandbox.configure(&["check"]).run().ok();
    // The backup is the version before.
    let kept = fs::read_to_string(sandbox.home().join(".dispatch/config.yaml.bak"));
    assert_eq!(kept.expect("kept"), CONFIG);
    difference(CONFIG, &after) + &said
}

/// The lines that were removed and added.
fn difference(before: &str, after: &str) -> String {
    let mut new = after.split_inclusive('\n').peekable();
    let mut marked = String::new();
    for line in before.split_inclusive('\n') {
        if !new.clone().any(|other| other == line) {
            marked.push_str(&format!("-{line}"));
            continue;
        }
        while let Some(other) = new.next_if(|other| *other != line) {
            marked.push_str(&format!("+{other}"));
        }
        new.next();
    }
    new.for_each(|line| marked.push_str(&format!("+{line}")));
    marked
}

#[track_caller]
fn refused(sandbox: &Sandbox, args: &[&str]) -> Ran {
    let before = sandbox.config_text();
    let ran = sandbox.configure(args).run();
    assert_eq!(sandbox.config_text(), before, "{args:?}");
    assert!(!sandbox.home().join(".dispatch/config.yaml.bak").exists(), "{args:?}");
    assert!(ran.out.is_empty() && ran.err.lines().count() <= 3, "{ran:?}");
    ran
}

#[test]
fn set_default_replaces_only_the_name() {
    same(
        &change(&["set-default", "sonnet"]),
        str![[r#"
-default:   opus   # the careful one
+default:   sonnet   # the careful one
the default is sonnet (undo: dispatch-config set-default opus)

"#]],
    );
    same(
        &change(&["set-default", "reviewer"]),
        str![[r#"
-default:   opus   # the careful one
+default:   reviewer   # the careful one
the default is reviewer (undo: dispatch-config set-default opus)

"#]],
    );
}

#[test]
fn set_default_adds_an_installed_model() {
    let sandbox = sandbox();
    let said = sandbox.configure(&["set-default", "gpt-6"]).run().ok();
    same(
        &(difference(CONFIG, &sandbox.config_text()) + &said),
        str![[r#"
-default:   opus   # the careful one
+default:   gpt-6   # the careful one
+  codex: {}
+  gpt-6: { backend: codex }
gpt-6 was not in the config and was added to it, on codex (undo: dispatch-config remove-model gpt-6)
the default is gpt-6 (undo: dispatch-config set-default opus)

"#]],
    );
    let before = sandbox.config_text();
    let args = ["x", "--dry-run", "--access", "full", "--review", "gpt-5.5", "--plan", "-"];
    let dry = sandbox.on_machine("dispatch-spawn", &args).input("- [ ] One\n").run();
    assert!(dry.err.contains("model 'gpt-5.5' is not in the config"), "{}", dry.err);
    assert_eq!(sandbox.config_text(), before);
    // A provider stands for its newest model.
    sandbox.configure(&["add-model", "gemini-3.1-pro"]).run().ok();
    sandbox.configure(&["set-default", "gemini"]).run().shows(str![[r#"
exit 0
'gemini' means gemini-3.1-pro here, its newest in the config
the default is gemini-3.1-pro (undo: dispatch-config set-default gpt-6)
"#]]);
}

#[test]
fn models_are_added_changed_and_removed() {
    // A known backend is chosen and added by itself.
    same(
        &change(&["add-model", "haiku"]),
        str![[r#"
+  haiku: { backend: claude }
haiku added, on claude (undo: dispatch-config remove-model haiku)

"#]],
    );
    same(
        &change(&["add-model", "gpt-6"]),
        str![[r#"
+  codex: {}
+  gpt-6: { backend: codex }
gpt-6 added, on codex (undo: dispatch-config remove-model gpt-6)

"#]],
    );
    same(
        &change(&["add-model", "gemini-3.1-pro"]),
        str![[r#"
+  cursor: {}
+  gemini-3.1-pro: { backend: cursor }
gemini-3.1-pro added, on cursor (undo: dispatch-config remove-model gemini-3.1-pro)

"#]],
    );
    same(
        &change(&["add-model", "harvey-2", "--backend", "harvey"]),
        str![[r#"
+  harvey-2: { backend: harvey }
harvey-2 added, on harvey (no CLI lists it, so the first task will show whether it exists) (undo: dispatch-config remove-model harvey-2)

"#]],
    );
    same(
        &change(&["add-model", "gpt-6", "--backend", "cursor"]),
        str![[r#"
+  cursor: {}
+  gpt-6: { backend: cursor }
gpt-6 added, on cursor (undo: dispatch-config remove-model gpt-6)

"#]],
    );
    same(
        &change(&["set-model", "sonnet", "--backend", "harvey"]),
        str![[r#"
-  sonnet: { backend: 'claude' }
+  sonnet: { backend: 'harvey' }
sonnet now runs on harvey (undo: dispatch-config set-model sonnet --backend claude)

"#]],
    );
    same(
        &change(&["set-model", "opus", "--backend", "cursor"]),
        str![[r#"
+  cursor: {}
-  opus: { backend: claude }     # best
+  opus: { backend: cursor }     # best
opus now runs on cursor (undo: dispatch-config set-model opus --backend claude)

"#]],
    );
    same(
        &change(&["remove-model", "harvey-1"]),
        str![[r#"
-  harvey-1: { backend: harvey }
harvey-1 removed (undo: dispatch-config add-model harvey-1 --backend harvey)

"#]],
    );
}

#[test]
fn add_backend_writes_an_entry() {
    same(
        &change(&["add-backend", "gemini"]),
        str![[r#"
+  gemini: {}
backend gemini added

"#]],
    );
    let command = ["add-backend", "mine", "--command", "mine -p \"$(pwd)\" # it's"];
    same(
        &change(&command),
        str![[r#"
+  mine:
+    command: "mine -p \"$(pwd)\" # it's"
+    prompt: stdin
backend mine added

"#]],
    );
}

#[test]
fn set_access_changes_one_key() {
    same(
        &change(&["set-access", "claude", "full"]),
        str![[r#"
-  claude: {}
+  claude: { access: full }
claude's workers have full access (undo: dispatch-config set-access claude write)

"#]],
    );
    same(
        &change(&["set-access", "gemini", "full"]),
        str![[r#"
+  gemini: { access: full }
gemini's workers have full access (undo: dispatch-config set-access gemini write)

"#]],
    );
    // A command is held by a sandbox of dispatch's.
    same(
        &change(&["set-access", "harvey", "read"]),
        str![[r#"
+    access: read
harvey's workers have read access (undo: dispatch-config set-access harvey full)

"#]],
    );
    refused(&sandbox(), &["set-access", "nobody", "full"]).shows(str![[r#"
exit 65
! dispatch-config: there is no backend 'nobody'
!   the config has claude, harvey
!   next: add it first: dispatch-config add-backend nobody --command '...'
"#]]);
}

#[test]
fn aliases_are_added_and_removed() {
    same(
        &change(&["add-alias", "quick", "--model", "sonnet"]),
        str![[r#"
+  quick:
+    model: sonnet
quick stands for sonnet (undo: dispatch-config remove-alias quick)

"#]],
    );
    let prompt = "You review.\n\n- Look for: \"holes\"\n  - and #more\n--- not the end\n";
    let args = ["add-alias", "sec", "--model", "opus", "--prompt", prompt];
    same(
        &change(&args),
        str![[r#"
+  sec:
+    model: opus
+    prompt: "You review.\n\n- Look for: \"holes\"\n  - and #more\n--- not the end\n"
sec stands for opus (undo: dispatch-config remove-alias sec)

"#]],
    );
    let sandbox = sandbox();
    sandbox.configure(&args).run().ok();
    let said = sandbox.configure(&["resolve", "sec", "--json"]).run().ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(json["prompt"].as_str(), Some(prompt));
    // An alias of an alias stands for its model.
    same(
        &change(&["add-alias", "again", "--model", "reviewer"]),
        str![[r#"
+  again:
+    model: sonnet
again stands for sonnet (undo: dispatch-config remove-alias again)

"#]],
    );
    same(
        &change(&["remove-alias", "reviewer"]),
        str![[r#"
-  reviewer: # asks twice
-    model: sonnet
-    prompt: |
-      Look twice.
alias reviewer removed

"#]],
    );
}

#[test]
fn repeated_edit_changes_nothing() {
    let sandbox = sandbox();
    for args in [
        &["set-default", "opus"][..],
        &["add-model", "opus"],
        &["set-model", "opus", "--backend", "claude"],
        &["add-backend", "claude"],
    ] {
        sandbox.configure(args).run().ok();
        assert_eq!(sandbox.config_text(), CONFIG, "{args:?}");
    }
    assert!(!sandbox.home().join(".dispatch/config.yaml.bak").exists());
}

#[test]
fn refused_edit_names_the_remedy() {
    let sandbox = sandbox();
    let refused = |args: &[&str]| refused(&sandbox, args);
    refused(&["remove-model", "opus"]).shows(str![[r#"
exit 65
! dispatch-config: 'opus' is the default
!   next: choose another one first: dispatch-config set-default NAME
"#]]);
    refused(&["remove-model", "sonnet"]).shows(str![[r#"
exit 65
! dispatch-config: the alias 'reviewer' stands for 'sonnet'
!   next: remove it first: dispatch-config remove-alias reviewer
"#]]);
    refused(&["remove-model", "sonet"]).shows(str![[r#"
exit 65
! dispatch-config: cannot remove the model 'sonet'
!   the config has no such entry below 'models:'
!   next: 'dispatch-config show' prints the config
"#]]);
    refused(&["set-default", "opos"]).shows(str![[r#"
exit 65
! dispatch-config: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#]]);
    refused(&["set-model", "opos", "--backend", "claude"]).shows(str![[r#"
exit 65
! dispatch-config: cannot change the model 'opos'
!   the config has no such entry below 'models:'
!   next: 'dispatch-config show' prints the config
"#]]);
    refused(&["set-model", "opus", "--backend", "mine"]).shows(str![[r#"
exit 65
! dispatch-config: there is no backend 'mine'
!   the config has claude, harvey
!   next: add it first: dispatch-config add-backend mine --command '...'
"#]]);
    refused(&["add-model", "x-1", "--backend", "mine"]).shows(str![[r#"
exit 65
! dispatch-config: there is no backend 'mine'
!   the config has claude, harvey
!   next: add it first: dispatch-config add-backend mine --command '...'
"#]]);
    refused(&["add-model", "sonnet", "--backend", "harvey"]).shows(str![[r#"
exit 65
! dispatch-config: cannot add the model 'sonnet'
!   line 16 of the config has it with other values
!   next: remove that entry first, or choose another name
"#]]);
    refused(&["add-model", "reviewer", "--backend", "claude"]).shows(str![[r#"
exit 65
! dispatch-config: the config has an alias 'reviewer' already
!   next: choose another name, or remove that entry first
"#]]);
    refused(&["add-backend", "mine"]).shows(str![[r#"
exit 64
! dispatch-config: 'mine' is not a known CLI
!   next: give its command: add-backend mine --command '...'
"#]]);
    refused(&["add-backend", "claude", "--command", "claude -p"]).shows(str![[r#"
exit 65
! dispatch-config: cannot add the backend 'claude'
!   line 6 of the config has it with other values
!   next: remove that entry first, or choose another name
"#]]);
    refused(&["add-alias", "reviewer", "--model", "opus"]).shows(str![[r#"
exit 65
! dispatch-config: cannot add the alias 'reviewer'
!   line 21 of the config has it with other values
!   next: remove that entry first, or choose another name
"#]]);
    refused(&["add-alias", "opus", "--model", "sonnet"]).shows(str![[r#"
exit 65
! dispatch-config: the config has a model 'opus' already
!   next: choose another name, or remove that entry first
"#]]);
    refused(&["add-alias", "x", "--model", "opos"]).shows(str![[r#"
exit 65
! dispatch-config: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#]]);
    refused(&["remove-alias", "revewer"]).shows(str![[r#"
exit 65
! dispatch-config: cannot remove the alias 'revewer'
!   the config has no such entry below 'aliases:'
!   next: 'dispatch-config show' prints the config
"#]]);
}

#[test]
fn unlisted_model_needs_a_backend() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    sandbox.config(CONFIG);
    refused(&sandbox, &["add-model", "grok-5"]).shows(str![[r#"
exit 65
! dispatch-config: no CLI on this machine has a model 'grok-5'
!   your subscription may not have it; dispatch-config models lists them
!   next: name its backend: add-model grok-5 --backend NAME
"#]]);
}

#[test]
fn removal_loses_no_fallback() {
    let sandbox = sandbox();
    let fallback = CONFIG.replace("default:   opus", "default: sonnet")
        + "  sure: { model: opus, fallback: reviewer }\n";
    sandbox.config(&fallback);
    refused(&sandbox, &["remove-alias", "reviewer"]).shows(str![[r#"
exit 65
! dispatch-config: 'reviewer' is the fallback of 'sure'
!   next: name another one there first: HOME/.dispatch/config.yaml
"#]]);
    assert_eq!(sandbox.ok("dispatch-config", &["remove-alias", "sure"]), "alias sure removed\n");
}

#[test]
fn default_alias_is_not_removed() {
    let sandbox = sandbox();
    sandbox.config(&CONFIG.replace("default:   opus", "default: reviewer"));
    refused(&sandbox, &["remove-alias", "reviewer"]).shows(str![[r#"
exit 65
! dispatch-config: 'reviewer' is the default
!   next: choose another one first: dispatch-config set-default NAME
"#]]);
}

#[test]
fn missing_or_broken_config_is_not_edited() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    sandbox.configure(&["set-default", "opus"]).run().shows(str![[r#"
exit 65
! dispatch-config: there is no config yet
!   HOME/.dispatch/config.yaml does not exist
!   next: follow references/first-run-setup.md, or call dispatch-config setup
"#]]);
    assert!(!sandbox.home().join(".dispatch").exists());
    sandbox.config("default: opus\nmodels: [\n");
    refused(&sandbox, &["set-default", "opus"]).shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: did not find expected node content
!   HOME/.dispatch/config.yaml, line 2, column 10: models: [
!        ^ here
"#]]);
}
