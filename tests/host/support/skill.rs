//! The skill in an empty home, installed as a person does.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::process::Home;
use crate::helpers;

/// The files that an installer copies and the skill reads.
const SKILL: [&str; 6] =
    ["SKILL.md", "helpers", "install.sh", "bin", "references", ".claude-plugin"];

/// A new home with the skill, its helpers and this config.
pub(crate) fn ready(config: &str) -> Home {
    ready_in(Home::new(), config)
}

/// Installs the skill, its helpers and this config in a home.
pub(crate) fn ready_in(home: Home, config: &str) -> Home {
    install(&home);
    install_helpers(&home);
    configure(&home, config);
    home
}

/// Puts the skill's folder where Claude Code looks for the user's skills.
pub(crate) fn install(home: &Home) {
    let skill = home.path().join(".claude/skills/dispatch");
    fs::create_dir_all(&skill).expect("the skill's directory");
    let mut copy = Command::new("cp");
    copy.arg("-R").args(SKILL).arg(&skill).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(copy.status().expect("cp").success(), "the skill is not copied");
}

/// Puts the helpers where the skill's launchers look for them.
pub(crate) fn install_helpers(home: &Home) {
    helpers::install(&home.path().join(".local/share/dispatch"));
}

/// Writes the config.
pub(crate) fn configure(home: &Home, config: &str) {
    fs::create_dir_all(home.path().join(".dispatch")).expect("the config's directory");
    fs::write(home.path().join(".dispatch/config.yaml"), config).expect("the config");
}

/// Adds the permission rules to the user's settings, as `install.sh --allow --yes` does.
pub(crate) fn allow(home: &Home) {
    allow_in(home, &home.path().join(".claude/skills/dispatch"));
}

/// Adds the permission rules for the skill in that folder.
pub(crate) fn allow_in(home: &Home, skill: &Path) {
    let bin = skill.join("bin");
    let mut allow = Command::new(bin.join("dispatch-config"));
    allow.args(["allow", "--yes", "--bin"]).arg(&bin).env_clear().env("HOME", home.path());
    let output = allow.output().expect("dispatch-config");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Removes the skill's hooks from `first` on, as an older host would ignore them.
pub(crate) fn without_hooks(home: &Home, first: &str) {
    let path = home.path().join(".claude/skills/dispatch/SKILL.md");
    let text = fs::read_to_string(&path).expect("the skill");
    let (before, rest) = text.split_once(&format!("{first}:\n")).expect("the hook");
    let (_, after) = rest.split_once("---\n").expect("the end of the frontmatter");
    fs::write(path, format!("{}\n---\n{after}", before.trim_end())).expect("the skill");
}

/// Makes the host write the input of these hooks to a file of the home, one line each.
pub(crate) fn record_hooks(home: &Home, hooks: &[&str]) -> PathBuf {
    let path = home.path().join("hooks");
    let command = format!("(cat; echo) >> '{}'", path.display());
    let hook = json!([{ "hooks": [{ "type": "command", "command": command }] }]);
    let hooks: Value = hooks.iter().map(|name| ((*name).to_owned(), hook.clone())).collect();
    let settings = home.project().join(".claude");
    fs::create_dir_all(&settings).expect("the project's settings");
    fs::write(settings.join("settings.json"), json!({ "hooks": hooks }).to_string())
        .expect("the project's settings");
    path
}
