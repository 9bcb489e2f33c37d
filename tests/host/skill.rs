//! The real skill in an empty home, installed as a person installs it.

use std::{fs, process::Command};

use super::process::Home;

/// What an installer of skills copies, as far as the skill reads it.
const SKILL: [&str; 5] = ["SKILL.md", "Cargo.toml", "install.sh", "bin", "references"];

/// The helpers as this build made them.
const HELPERS: [(&str, &str); 5] = [
    ("dispatch-config", env!("CARGO_BIN_EXE_dispatch-config")),
    ("dispatch-spawn", env!("CARGO_BIN_EXE_dispatch-spawn")),
    ("dispatch-monitor", env!("CARGO_BIN_EXE_dispatch-monitor")),
    ("dispatch-reconcile", env!("CARGO_BIN_EXE_dispatch-reconcile")),
    ("dispatch-worker", env!("CARGO_BIN_EXE_dispatch-worker")),
];

/// A new home with the skill, its helpers and this config.
pub(crate) fn ready(config: &str) -> Home {
    ready_in(Home::new(), config)
}

/// This home, with the skill, its helpers and this config.
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
    let version = concat!(".local/share/dispatch/", env!("CARGO_PKG_VERSION"));
    let directory = home.path().join(version);
    fs::create_dir_all(&directory).expect("the helpers' directory");
    for (name, binary) in HELPERS {
        fs::copy(binary, directory.join(name)).expect("a helper");
    }
}

/// Writes the config.
fn configure(home: &Home, config: &str) {
    fs::create_dir_all(home.path().join(".dispatch")).expect("the config's directory");
    fs::write(home.path().join(".dispatch/config.yaml"), config).expect("the config");
}

/// Adds the permission rules to the user's settings, as `install.sh --allow --yes` does.
pub(crate) fn allow(home: &Home) {
    let bin = home.path().join(".claude/skills/dispatch/bin");
    let mut allow = Command::new(bin.join("dispatch-config"));
    allow.args(["allow", "--yes", "--bin"]).arg(&bin).env_clear().env("HOME", home.path());
    let output = allow.output().expect("dispatch-config");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
