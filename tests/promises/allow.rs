//! `dispatch-config allow` shows its changes to the person's Claude settings first and changes
//! nothing else in them. Calls that need those rules are refused without them.
//!
//! Longer than 500 lines because the rules are shown whole, each time they are added or removed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use snapbox::str;

use crate::support::terminal::Terminal;
use crate::support::text::{names, same, tree};
use crate::support::{Call, PLAN, Sandbox, binary};

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
    allow_at(sandbox, "/skills/dispatch/bin", more)
}

/// The call by the launcher in a directory.
fn allow_at(sandbox: &Sandbox, bin: &str, more: &[&str]) -> Call {
    sandbox.call("dispatch-config", &["allow", "--bin", bin]).args(more).env("DISPATCH_BIN", bin)
}

fn disallow(sandbox: &Sandbox) -> Call {
    sandbox.call("dispatch-config", &["allow", "--remove", "--yes"])
}

fn text(sandbox: &Sandbox) -> String {
    fs::read_to_string(settings(sandbox)).expect("readable")
}

#[test]
fn rules_are_added_and_removed_to_the_byte() {
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
  allow: Read(~/.dispatch/state/**)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(/skills/dispatch/bin/dispatch-reconcile* adopt*=*)
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
            "Skill(dispatch:dispatch)",
            "Read(~/.dispatch/state/**)"
        ],
        "deny": [],
        "ask": [
            "Bash(/skills/dispatch/bin/dispatch-config* add-backend*)",
            "Bash(/skills/dispatch/bin/dispatch-config* add-place*)",
            "Bash(/skills/dispatch/bin/dispatch-config* set-access*)",
            "Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)",
            "Bash(/skills/dispatch/bin/dispatch-config* allow*)",
            "Bash(/skills/dispatch/bin/dispatch-config* set-model*)",
            "Bash(/skills/dispatch/bin/dispatch-config* add-model*--backend*)",
            "Bash(/skills/dispatch/bin/dispatch-config* add-alias*--prompt*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* -C*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)",
            "Bash(/skills/dispatch/bin/dispatch-spawn* --may-dispatch*)",
            "Bash(/skills/dispatch/bin/dispatch-reconcile* adopt*=*)",
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
These permission rules will be removed from HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-config *)
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch)
  allow: Skill(dispatch:dispatch)
  allow: Read(~/.dispatch/state/**)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(/skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    assert_eq!(text(&sandbox), SETTINGS);
    disallow(&sandbox).run().shows(str![[r#"
exit 0
HOME/.claude/settings.json has no rules that dispatch added
"#]]);
    assert_eq!(names(&sandbox.home().join(".claude")), ["settings.json"]);
}

/// Calls that give a worker more than the person agreed to. `BIN` is the directory of the launchers.
const RAISING: [&str; 15] = [
    "BIN/dispatch-config add-backend mine --command 'mine -p'",
    "BIN/dispatch-config set-access codex full",
    "BIN/dispatch-config allow --yes",
    "BIN/dispatch-config allow --remove --yes",
    "BIN/dispatch-config add-model new --backend free",
    "BIN/dispatch-config set-model kept --backend open",
    "BIN/dispatch-config add-alias reviewer --model held --prompt \"Don't ask\"",
    "BIN/dispatch-spawn x --model held --access full",
    "BIN/dispatch-spawn x --model held -C OTHER",
    "BIN/dispatch-spawn x --may-dispatch",
    "BIN/dispatch-spawn y --resume -C OTHER",
    "BIN/dispatch-reconcile stop y -C OTHER",
    "BIN/dispatch-reconcile note y hello -C OTHER",
    "BIN/dispatch-reconcile clean -C OTHER",
    "BIN/dispatch-monitor --answer y hello -C OTHER",
];

/// A project with the plan of `x`, and another project with the task `y`, which asks.
fn two_projects() -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    let config = sandbox.home().join(".dispatch/config.yaml");
    let more = fs::read_to_string(&config).expect("readable").replace(
        "models:\n",
        "  held: { command: 'true', access: read }\n  free: { command: 'true' }\n  open: { command: 'true' }\nmodels:\n  held: { backend: held }\n  kept: { backend: held }\n",
    );
    fs::write(&config, more).expect("written");
    sandbox.plan("x", PLAN);
    let other = sandbox.home().join("other");
    fs::create_dir_all(other.join(".dispatch/tasks")).expect("made");
    sandbox.call("dispatch-spawn", &["y", "--plan", "-"]).input(PLAN).within(&other).run().ok();
    sandbox.write_apart(&other.join(".dispatch/tasks/y/ipc/001.question"), b"Which?\n");
    (sandbox, other)
}

#[test]
fn model_raises_nothing_without_the_ask_rule() {
    let (sandbox, other) = two_projects();
    let bin = binary("dispatch-config").parent().expect("a directory").display().to_string();
    let command =
        |it: &str| it.replace("BIN", &bin).replace("OTHER", other.to_str().expect("UTF-8"));
    let before = tree(&[sandbox.home()]);
    for raising in RAISING {
        let ran = sandbox.by_claude("", &command(raising)).run();
        assert_eq!(ran.code, Some(64), "{raising}: {ran:?}");
        assert!(
            ran.err.contains("only a person may decide this: ") && ran.err.lines().count() == 3,
            "{raising}: {ran:?}"
        );
        assert_eq!(tree(&[sandbox.home()]), before, "{raising}");
    }
    sandbox.by_claude("", &command(RAISING[0])).run().shows(str![[r#"
exit 64
! dispatch-config: only a person may decide this: another program for workers, 'mine'
!   Claude Code called this without asking the user
!   next: let the user type in a terminal: BIN/dispatch-config add-backend mine --command "mine -p"; or BIN/dispatch-config allow, after which Claude Code asks
"#]]);
    let spawn = command("BIN/dispatch-spawn x --access write --model held --plan -");
    sandbox.by_claude("", &spawn).input(PLAN).run().shows(str![[r#"
exit 64
! dispatch-spawn: only a person may decide this: write access, where held has read
!   Claude Code called this without asking the user
!   next: let the user type in a terminal: BIN/dispatch-config allow, after which Claude Code asks
"#]]);
    // A process that left its ancestors keeps the variables of the host.
    let raise = || {
        let call = sandbox.call("dispatch-config", &["set-access", "held", "write"]);
        call.env("DISPATCH_FAIL", "")
    };
    raise().env("CLAUDECODE", "1").run().shows(str![[r#"
exit 64
! dispatch-config: only a person may decide this: write access, where held has read
!   Claude Code called this without asking the user
!   next: let the user type in a terminal: BIN/dispatch-config set-access held write; or BIN/dispatch-config allow, after which Claude Code asks
"#]]);
    raise().env("DISPATCH_TASK_DIR", other.join(".dispatch/tasks/y")).run().shows(str![[r#"
exit 64
! dispatch-config: only a person may decide this: write access, where held has read
!   a worker called this
!   next: leave this to the session that dispatched the task
"#]]);
    let new = Sandbox::new();
    let ran =
        new.by_claude("", &command("BIN/dispatch-config setup --default m --full codex --yes"));
    assert!(ran.run().err.contains("only a person may decide this: workers that may do anything"));
    for free in [
        "set-default held",
        "add-alias quick --model held",
        "set-access free read",
        "remove-alias quick",
    ] {
        sandbox.by_claude("", &format!("{bin}/dispatch-config {free}")).run().ok();
    }
    for reads in ["dispatch-reconcile status -C OTHER", "dispatch-reconcile show y -C OTHER"] {
        sandbox.by_claude("", &command(&format!("BIN/{reads}"))).run().ok();
    }
}

#[test]
fn model_may_make_the_very_call_that_the_host_asked_about() {
    let (sandbox, other) = two_projects();
    let bin = binary("dispatch-config").parent().expect("a directory").display().to_string();
    sandbox.ok("dispatch-config", &["allow", "--yes"]);
    let asked = |it: &&&str| {
        !it.contains("-reconcile") && !it.contains("-monitor") && !it.contains("allow")
    };
    for raising in RAISING.iter().filter(asked) {
        let command = raising.replace("BIN", &bin).replace("OTHER", other.to_str().expect("UTF-8"));
        let hidden = format!("f() {{ {}; }}; f", command.replace(&bin, "\"$BIN\""));
        let ran = sandbox.by_claude("", &hidden).env("BIN", &bin).run();
        assert_eq!(ran.code, Some(64), "{hidden}: {ran:?}");
        assert!(ran.err.contains("call it so: "), "{hidden}: {ran:?}");
        let ran = sandbox.by_claude("", &command).run();
        assert!(!ran.err.contains("only a person"), "{command}: {ran:?}");
    }
}

#[test]
fn rules_name_only_the_launchers_own_directory() {
    let sandbox = with_settings(SETTINGS);
    let other = ["allow", "--yes", "--bin", "/elsewhere/bin"];
    sandbox.call("dispatch-config", &other).run().shows(str![[r#"
exit 64
! dispatch-config: --bin is not the directory of these launchers
!   /elsewhere/bin
!   next: call the launcher that is in that directory, with allow and no --bin
"#]]);
    // A skill that Claude Code reaches by a link has two paths.
    let bin = sandbox.home().join("clone/bin");
    fs::create_dir_all(&bin).expect("made");
    fs::create_dir_all(sandbox.home().join(".claude/skills")).expect("made");
    symlink("../../clone", sandbox.home().join(".claude/skills/dispatch")).expect("linked");
    let call = sandbox.call("dispatch-config", &["allow", "--dry-run"]).env("DISPATCH_BIN", &bin);
    let shown = call.run().ok();
    for path in ["clone/bin", ".claude/skills/dispatch/bin"] {
        let path = sandbox.home().join(path).join("dispatch-spawn");
        assert!(shown.contains(&format!("Bash({} *)", path.display())), "{path:?}: {shown}");
    }
}

#[test]
fn rules_of_the_person_stay() {
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
  allow: Read(~/.dispatch/state/**)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(/skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    // Another copy of the skill.
    allow_at(&sandbox, "/other skills/dispatch/bin", &["--yes"]).run().ok();
    disallow(&sandbox).run().shows(str![[r#"
exit 0
allow: Skill(dispatch) stays, because dispatch did not add it
allow: Bash(/skills/dispatch/bin/dispatch-config *) stays, because dispatch did not add it
ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*) stays, because dispatch did not add it
These permission rules will be removed from HOME/.claude/settings.json:
  allow: Bash(/skills/dispatch/bin/dispatch-spawn *)
  allow: Bash(/skills/dispatch/bin/dispatch-monitor *)
  allow: Bash(/skills/dispatch/bin/dispatch-reconcile *)
  allow: Bash(/skills/dispatch/bin/dispatch-worker *)
  allow: Skill(dispatch:dispatch)
  allow: Read(~/.dispatch/state/**)
  allow: Bash("/other skills/dispatch/bin/dispatch-config" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-spawn" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-monitor" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-reconcile" *)
  allow: Bash("/other skills/dispatch/bin/dispatch-worker" *)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(/skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(/skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(/skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs */skills/dispatch/bin/dispatch-*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(/other skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(/other skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(/other skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs */other skills/dispatch/bin/dispatch-*)
Done.
"#]]);
    assert_eq!(text(&sandbox), mine);
    disallow(&sandbox).run().shows(str![[r#"
exit 0
allow: Skill(dispatch) stays, because dispatch did not add it
allow: Bash(/skills/dispatch/bin/dispatch-config *) stays, because dispatch did not add it
ask: Bash(/skills/dispatch/bin/dispatch-spawn* -C*) stays, because dispatch did not add it
HOME/.claude/settings.json has no rules that dispatch added
"#]]);
    assert_eq!(text(&sandbox), mine);
    assert_eq!(names(&sandbox.home().join(".dispatch")), [""; 0]);
}

#[test]
fn rules_that_the_person_restored_stay() {
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
fn dry_run_only_shows_the_rules() {
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
fn missing_settings_are_created_private() {
    let sandbox = Sandbox::new();
    allow(&sandbox, &["--yes"]).run().ok();
    let path = settings(&sandbox);
    let mode = |path: &PathBuf| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(names(&sandbox.home().join(".claude")), ["settings.json"]);
    let json: serde_json::Value = serde_json::from_str(&text(&sandbox)).expect("JSON");
    let rules = |list: &str| json["permissions"][list].as_array().map(Vec::len);
    assert_eq!((rules("allow"), rules("ask")), (Some(8), Some(15)));
}

#[test]
fn nothing_is_changed_without_terminal_or_yes() {
    for sandbox in [with_settings(SETTINGS), Sandbox::new()] {
        let before = tree(&[sandbox.home()]);
        let ran = allow(&sandbox, &[]).run();
        assert_eq!(tree(&[sandbox.home()]), before);
        assert_eq!(ran.code, Some(64));
        assert!(ran.out.contains("  allow: Skill(dispatch)\n"), "{}", ran.out);
        same(
            ran.err.trim_end(),
            str![[r#"
dispatch-config: cannot ask for confirmation: no terminal
  next: add --yes
"#]],
        );
    }
}

#[test]
fn only_yes_confirms() {
    for (reply, agrees) in [("n\n", false), ("\n", false), ("\u{4}", false), ("y\n", true)] {
        let sandbox = with_settings(SETTINGS);
        let mut terminal = Terminal::run(allow(&sandbox, &[]));
        let shown = terminal.read_until("Continue? [y/N] ");
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
fn settings_changed_during_the_question_are_kept() {
    let sandbox = with_settings(SETTINGS);
    let mut terminal = Terminal::run(allow(&sandbox, &[]));
    terminal.read_until("Continue? [y/N] ");
    let newer = SETTINGS.replace("dark", "light");
    fs::write(settings(&sandbox), &newer).expect("written");
    terminal.write("y\n");
    terminal.read_until("the settings were changed meanwhile");
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
fn settings_that_are_not_plain_json_are_not_changed() {
    let lists = "{\"permissions\": {\"allow\": [], \"ask\": {}}}";
    for text in ["{ // mine\n}\n", "{\"permissions\": []}", lists, "[", "{\"a\": 1,}"] {
        let sandbox = with_settings(text);
        let before = tree(&[sandbox.home()]);
        let ran = allow(&sandbox, &["--yes"]).run();
        assert_eq!((ran.code, ran.out.as_str()), (Some(65), ""), "{text}");
        assert!(ran.err.lines().count() <= 3 && ran.err.contains("add by hand: "), "{}", ran.err);
        assert_eq!(tree(&[sandbox.home()]), before, "{text}");
    }
}

#[test]
fn claude_config_dir_is_respected() {
    let sandbox = Sandbox::new();
    let other = sandbox.home().join("claude settings");
    let said = allow(&sandbox, &["--yes"]).env("CLAUDE_CONFIG_DIR", &other).run().ok();
    assert!(said.contains(&other.join("settings.json").display().to_string()), "{said}");
    assert_eq!(names(&other), ["settings.json"]);
    assert!(!settings(&sandbox).exists());
}

#[test]
fn byte_order_mark_stays() {
    let marked = format!("\u{feff}{SETTINGS}");
    let sandbox = with_settings(&marked);
    allow(&sandbox, &["--yes"]).run().ok();
    let with_rules = text(&sandbox);
    assert!(with_rules.starts_with("\u{feff}{") && with_rules.contains("Skill(dispatch)"));
    disallow(&sandbox).run().ok();
    assert_eq!(text(&sandbox), marked);
}

/// A Nix store holds read-only files that a link leads to.
#[test]
fn read_only_settings_are_refused_and_not_remembered() {
    let sandbox = with_settings(SETTINGS);
    let store = sandbox.home().join("store");
    fs::create_dir_all(&store).expect("made");
    fs::rename(settings(&sandbox), store.join("settings.json")).expect("moved");
    symlink("../store/settings.json", settings(&sandbox)).expect("linked");
    let mode = |path: &PathBuf, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changed");
    };
    mode(&store.join("settings.json"), 0o444);
    mode(&store, 0o555);
    let before = tree(&[sandbox.home()]);
    let ran = allow(&sandbox, &["--yes"]).run();
    assert_eq!(tree(&[sandbox.home()]), before);
    assert_eq!((ran.code, ran.out.as_str()), (Some(73), ""), "{ran:?}");
    let (reason, remedy) = ran.err.trim_end().rsplit_once('\n').expect("three lines");
    same(
        &sandbox.redactions().apply(reason),
        str![[r#"
dispatch-config: HOME/store/settings.json is read-only
  another program seems to manage it, such as Nix; nothing was changed
"#]],
    );
    assert!(
        remedy.starts_with("  next: add the rules in that program's source: \"permissions\": {")
    );
    // With the rules in the source, they count as the person's.
    mode(&store, 0o755);
    let rules = r#"{"permissions": {"allow": ["Skill(dispatch)"]}}"#;
    mode(&store.join("settings.json"), 0o644);
    fs::write(store.join("settings.json"), rules).expect("written");
    disallow(&sandbox).run().shows(str![[r#"
exit 0
allow: Skill(dispatch) stays, because dispatch did not add it
HOME/store/settings.json has no rules that dispatch added
"#]]);
    assert_eq!(text(&sandbox), rules);
}

#[test]
fn dangling_link_is_refused_and_stays() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.home().join(".claude")).expect("made");
    symlink("../gone/settings.json", settings(&sandbox)).expect("linked");
    let before = tree(&[sandbox.home()]);
    allow(&sandbox, &["--yes"]).run().shows(str![[r#"
exit 65
! dispatch-config: the settings are a link that leads nowhere
!   HOME/.claude/settings.json -> ../gone/settings.json
!   next: restore the target or remove the link, then try again
"#]]);
    assert_eq!(tree(&[sandbox.home()]), before);
}

#[test]
fn disallow_without_added_rules_says_so() {
    for text in ["{ // mine\n}\n", SETTINGS] {
        let sandbox = with_settings(text);
        disallow(&sandbox).run().shows(str![[r#"
exit 0
HOME/.claude/settings.json has no rules that dispatch added
"#]]);
        assert_eq!(fs::read_to_string(settings(&sandbox)).expect("readable"), text);
    }
}

#[test]
fn added_rules_are_named_where_they_cannot_be_removed() {
    let sandbox = with_settings("{}");
    allow(&sandbox, &["--yes"]).run().ok();
    let edited = text(&sandbox).replacen('{', "{ // mine", 1);
    fs::write(settings(&sandbox), &edited).expect("written");
    let ran = disallow(&sandbox).run();
    assert_eq!(ran.code, Some(65), "{ran:?}");
    assert!(ran.err.contains("remove by hand: ") && ran.err.contains("dispatch-spawn *)"));
    assert_eq!(text(&sandbox), edited);
}
