//! `dispatch-config allow` changes the person's Claude settings only after showing what, and
//! changes nothing else in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use snapbox::str;

use crate::support::terminal::Terminal;
use crate::support::text::{names, same, tree};
use crate::support::{Call, Sandbox};

const SETTINGS: &str = "{\n    \"model\": \"opus\",\n    \"permissions\": {\n        \"allow\": [\n            \"Bash(ls *)\"\n        ],\n        \"deny\": []\n    },\n    \"theme\" :  \"dark\"\n}";

fn settings(sandbox: &Sandbox) -> PathBuf {
    sandbox.home().join(".claude/settings.json")
}

fn with_settings(text: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let path = settings(&sandbox);
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
    sandbox
}

fn allow(sandbox: &Sandbox, more: &[&str]) -> Call {
    sandbox.call("dispatch-config", &["allow", "--bin", "/skills/dispatch/bin"]).args(more)
}

fn disallow(sandbox: &Sandbox) -> Call {
    sandbox.call("dispatch-config", &["allow", "--remove", "--yes"])
}

fn text(sandbox: &Sandbox) -> String {
    fs::read_to_string(settings(sandbox)).expect("readable")
}

#[test]
fn the_rules_are_shown_and_added_and_taken_out_again_to_the_byte() {
    let sandbox = with_settings(SETTINGS);
    allow(&sandbox, &["--yes"]).run().shows(str![[r#"
exit 0
These permission rules will be added to HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-config *)
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch)
  allow: Skill(dispatch:dispatch)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    same(
        &text(&sandbox),
        str![[r#"
{
    "model": "opus",
    "permissions": {
        "allow": [
            "Bash(ls *)",
            "Bash(/skills/dispatch/bin/dispatch-config *)",
            "Bash(/skills/dispatch/bin/dispatch-spawn *)",
            "Bash(/skills/dispatch/bin/dispatch-monitor *)",
            "Bash(/skills/dispatch/bin/dispatch-reconcile *)",
            "Bash(/skills/dispatch/bin/dispatch-worker *)",
            "Skill(dispatch)",
            "Skill(dispatch:dispatch)"
        ],
        "deny": [],
        "ask": [
            "Bash(/skills/dispatch/bin/dispatch-config* add-backend*)",
            "Bash(/skills/dispatch/bin/dispatch-config* set-access*)",
            "Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)",
            "Bash(/skills/dispatch/bin/dispatch-config* allow*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* -C*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)",
            "Bash(xargs */skills/dispatch/bin/dispatch-*)"
        ]
    },
    "theme" :  "dark"
}
"#]],
    );
    let mode = fs::metadata(settings(&sandbox)).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    allow(&sandbox, &["--yes"]).run().shows(str![[r#"
exit 0
nothing to change in HOME/.claude/settings.json
"#]]);

    disallow(&sandbox).run().shows(str![[r#"
exit 0
These permission rules will be taken out of HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-config *)
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch)
  allow: Skill(dispatch:dispatch)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    assert_eq!(text(&sandbox), SETTINGS);
    disallow(&sandbox).run().shows(str![[r#"
exit 0
nothing to change in HOME/.claude/settings.json
"#]]);
    assert_eq!(names(&sandbox.home().join(".claude")), ["settings.json"]);
}

#[test]
fn rules_that_were_there_before_stay() {
    let mine = r#"{"permissions": {"ask": ["Bash(/skills/dispatch/bin/dispatch-spawn* -C*)", "Edit"], "allow": ["Skill(dispatch)", "Bash(/skills/dispatch/bin/dispatch-config *)"]}}"#;
    let sandbox = with_settings(mine);
    allow(&sandbox, &["--yes"]).run().shows(str![[r#"
exit 0
These permission rules will be added to HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch:dispatch)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    // Another copy of the skill.
    let other = ["allow", "--yes", "--bin", "/other skills/dispatch/bin"];
    sandbox.ok("dispatch-config", &other);
    disallow(&sandbox).run().shows(str![[r#"
exit 0
allow: Skill(dispatch) stays, because it was not added by this
allow: Bash(/skills/dispatch/bin/dispatch-config *) stays, because it was not added by this
ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*) stays, because it was not added by this
These permission rules will be taken out of HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch:dispatch)
  allow: Bash("/other skills/dispatch/bin/dispatch-config" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-spawn" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-monitor" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-reconcile" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-worker" *)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(xargs */other skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    assert_eq!(text(&sandbox), mine);
    disallow(&sandbox).run().shows(str![[r#"
exit 0
allow: Skill(dispatch) stays, because it was not added by this
allow: Bash(/skills/dispatch/bin/dispatch-config *) stays, because it was not added by this
ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*) stays, because it was not added by this
nothing to change in HOME/.claude/settings.json
"#]]);
    assert_eq!(text(&sandbox), mine);
    assert_eq!(names(&sandbox.home().join(".dispatch")), [""; 0]);
}

#[test]
fn rules_that_the_person_took_out_and_put_in_again_stay() {
    let sandbox = with_settings(SETTINGS);
    allow(&sandbox, &["--yes"]).run().ok();
    let with_rules = text(&sandbox);
    fs::write(settings(&sandbox), SETTINGS).expect("written");
    disallow(&sandbox).run().ok();
    fs::write(settings(&sandbox), &with_rules).expect("written");
    disallow(&sandbox).run().ok();
    assert_eq!(text(&sandbox), with_rules);
}

#[test]
fn rules_are_only_shown_in_a_dry_run() {
    let sandbox = with_settings(SETTINGS);
    let before = tree(&[sandbox.home()]);
    let shown = allow(&sandbox, &["--dry-run"]).run().ok();
    assert!(
        shown.contains("  allow: Skill(dispatch)\n") && shown.ends_with("Nothing was changed.\n")
    );
    assert_eq!(tree(&[sandbox.home()]), before);
    allow(&sandbox, &["--yes"]).run().ok();
    let before = tree(&[sandbox.home()]);
    let shown = disallow(&sandbox).arg("--dry-run").run().ok();
    assert!(
        shown.contains("  allow: Skill(dispatch)\n") && shown.ends_with("Nothing was changed.\n")
    );
    assert_eq!(tree(&[sandbox.home()]), before);
}

#[test]
fn settings_that_are_not_there_are_made_private() {
    let sandbox = Sandbox::new();
    allow(&sandbox, &["--yes"]).run().ok();
    let path = settings(&sandbox);
    let mode = |path: &PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(&sandbox.home().join(".claude")), ["settings.json"]);
    let json: serde_json::Value = serde_json::from_str(&text(&sandbox)).expect("JSON");
    let rules = |list: &str| json["permissions"][list].as_array().map(Vec::len);
    assert_eq!((rules("allow"), rules("ask")), (Some(7), Some(9)));
}

#[test]
fn without_a_terminal_and_without_yes_nothing_is_changed() {
    for sandbox in [with_settings(SETTINGS), Sandbox::new()] {
        let before = tree(&[sandbox.home()]);
        let ran = allow(&sandbox, &[]).run();
        assert_eq!(tree(&[sandbox.home()]), before);
        assert_eq!(ran.code, Some(64));
        assert!(ran.out.contains("  allow: Skill(dispatch)\n"), "{}", ran.out);
        same(
            ran.err.trim_end(),
            str![[r#"
dispatch-config: nobody is here to agree
  next: add --yes
"#]],
        );
    }
}

#[test]
fn a_person_is_asked_and_only_yes_agrees() {
    for (reply, agrees) in [("n\n", false), ("\n", false), ("\u{4}", false), ("y\n", true)] {
        let sandbox = with_settings(SETTINGS);
        let mut terminal = Terminal::run(allow(&sandbox, &[]));
        let shown = terminal.read_until("Go on? [y/N] ");
        assert!(
            shown.contains("  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)\n"),
            "{shown}"
        );
        assert_eq!(text(&sandbox), SETTINGS, "nothing before the reply");
        terminal.write(reply);
        terminal.read_until(if agrees { "Done.\r\n" } else { "Nothing was changed.\r\n" });
        assert!(terminal.status().success());
        assert_eq!(text(&sandbox) != SETTINGS, agrees, "{reply:?}");
    }
}

#[test]
fn settings_that_change_while_the_person_thinks_are_not_overwritten() {
    let sandbox = with_settings(SETTINGS);
    let mut terminal = Terminal::run(allow(&sandbox, &[]));
    terminal.read_until("Go on? [y/N] ");
    let newer = SETTINGS.replace("dark", "light");
    fs::write(settings(&sandbox), &newer).expect("written");
    terminal.write("y\n");
    terminal.read_until("the settings have changed meanwhile");
    assert_eq!(terminal.status().code(), Some(75));
    assert_eq!(text(&sandbox), newer);
}

#[test]
fn linked_settings_stay_a_link() {
    let sandbox = with_settings(SETTINGS);
    let dotfiles = sandbox.home().join("dotfiles");
    fs::create_dir_all(&dotfiles).expect("made");
    fs::rename(settings(&sandbox), dotfiles.join("claude.json")).expect("moved");
    symlink("../dotfiles/claude.json", settings(&sandbox)).expect("linked");
    allow(&sandbox, &["--yes"]).run().ok();
    assert!(settings(&sandbox).is_symlink());
    assert!(text(&sandbox).contains("Skill(dispatch)"));
    disallow(&sandbox).run().ok();
    assert_eq!(fs::read_to_string(dotfiles.join("claude.json")).expect("there"), SETTINGS);
    assert_eq!(names(&dotfiles), ["claude.json"]);
}

#[test]
fn settings_that_are_not_plain_json_are_left_as_they_are() {
    let lists = "{\"permissions\": {\"allow\": [], \"ask\": {}}}";
    for text in ["{ // mine\n}\n", "{\"permissions\": []}", lists, "[", "{\"a\": 1,}"] {
        let sandbox = with_settings(text);
        let before = tree(&[sandbox.home()]);
        let ran = allow(&sandbox, &["--yes"]).run();
        assert_eq!((ran.code, ran.out.as_str()), (Some(65), ""), "{text}");
        assert!(
            ran.err.lines().count() <= 3 && ran.err.contains("put in by hand: "),
            "{}",
            ran.err
        );
        assert_eq!(tree(&[sandbox.home()]), before, "{text}");
    }
}

#[test]
fn another_config_directory_is_used() {
    let sandbox = Sandbox::new();
    let other = sandbox.home().join("claude settings");
    let said = allow(&sandbox, &["--yes"]).env("CLAUDE_CONFIG_DIR", &other).run().ok();
    assert!(said.contains(&other.join("settings.json").display().to_string()), "{said}");
    assert_eq!(names(&other), ["settings.json"]);
    assert!(!settings(&sandbox).exists());
}
