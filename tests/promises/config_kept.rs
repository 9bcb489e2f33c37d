//! The commands that change the config lose nothing, whatever happens meanwhile.

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
        sandbox.configure(&["add-alias", "q", "--model", "opus", "--prompt", "A\nB"]).run().ok();
        let text = sandbox.config_text();
        assert!(text.starts_with(&foreign("# Mine. Do not sort!\n\ndefault:   sonnet   # the")));
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
    let add = |id: &String| sandbox.configure(&["add-model", id, "--backend", "harvey"]).start();
    let running: Vec<_> = ids.iter().map(add).collect();
    running.into_iter().for_each(|edit| assert_eq!(edit.end().code, Some(0)));
    let text = sandbox.config_text();
    for id in &ids {
        assert_eq!(text.matches(&format!("\n  {id}: {{ backend: harvey }}\n")).count(), 1, "{id}");
    }
    let others = |line: &&str| !line.starts_with("  harvey-1") || line.contains("harvey-1:");
    let rest: Vec<&str> = text.lines().filter(others).collect();
    assert_eq!(rest, CONFIG.lines().collect::<Vec<_>>());
    // The backup is the text before the last edit.
    let kept = fs::read_to_string(sandbox.home().join(".dispatch/config.yaml.bak")).expect("kept");
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
