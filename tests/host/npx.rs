//! The skill as the real `npx skills` installs and updates it, from a git server.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use walkdir::WalkDir;

use super::helpers::{self, VERSION};
use crate::support::{
    git::Repository,
    process::{Home, fetched, path},
};

/// A home, and where its skills come from.
struct Place {
    home: Home,
    source: Repository,
}

impl Place {
    fn new() -> Self {
        let home = Home::with_spaces();
        let source = Repository::serve(&home);
        Self { home, source }
    }

    /// Runs `npx skills …` in the project, as a script does that nobody watches.
    fn skills(&self, arguments: &[&str]) {
        let mut skills = Command::new(fetched("node"));
        skills.arg(fetched("node_modules/skills/bin/cli.mjs")).args(arguments);
        skills.current_dir(self.home.project()).env_clear().env("HOME", self.home.path());
        let output = skills.env("PATH", path()).env("DISABLE_TELEMETRY", "1").output();
        let output = output.expect("skills");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn add(&self, arguments: &[&str]) {
        self.skills(&[&["add", &self.source.url(), "-y"], arguments].concat());
    }

    fn install_helpers(&self) {
        helpers::install(&self.home.path().join(".local/share/dispatch"));
    }

    /// The user's copy.
    fn users(&self) -> PathBuf {
        self.home.path().join(".claude/skills/dispatch")
    }

    /// What the launcher in this copy says, and how it ends.
    fn run(&self, skill: &Path) -> (Option<i32>, String) {
        let mut launcher = Command::new(skill.join("bin/dispatch-config"));
        launcher.arg("path").current_dir(self.home.project());
        let output = launcher.env_clear().env("HOME", self.home.path()).env("PATH", path());
        let output = output.output().expect("a launcher that can be executed");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    #[track_caller]
    fn works(&self, skill: &Path) {
        let config = self.home.path().join(".dispatch/config.yaml");
        assert_eq!(self.run(skill), (Some(0), format!("{}\n", config.display())));
    }

    /// It says so in one line, with the one command that mends it, which is there.
    #[track_caller]
    fn is_not_installed(&self, skill: &Path, version: &str) {
        let install = skill.join("install.sh");
        let line = format!(
            "dispatch-config {version} is not installed; run: sh \"{}\"\n",
            install.display()
        );
        assert_eq!(self.run(skill), (Some(69), line));
        assert!(install.is_file());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(folder).into_iter().map(|entry| entry.expect("readable"));
    let files = entries.filter(|entry| entry.file_type().is_file());
    let mut files: Vec<PathBuf> =
        files.map(|file| file.path().strip_prefix(folder).expect("in it").into()).collect();
    files.sort();
    files
}

#[test]
fn for_the_user_it_copies_what_is_tracked_and_runs_nothing() {
    let place = Place::new();
    place.add(&["-g", "-a", "claude-code"]);
    let skill = place.users();
    assert_eq!(files(&skill), place.source.files());
    for file in files(&skill) {
        let mode =
            |root: &Path| fs::metadata(root.join(&file)).expect("there").permissions().mode();
        assert_eq!(mode(&skill) & 0o100, mode(place.source.folder()) & 0o100, "{}", file.display());
    }
    assert!(!place.home.path().join(".local").exists() && place.home.processes().is_empty());
    place.is_not_installed(&skill, &VERSION);
    place.install_helpers();
    place.works(&skill);
}

#[test]
fn in_a_project_several_agents_share_one_copy_by_links() {
    let place = Place::new();
    place.add(&["-a", "claude-code", "codex", "cursor"]);
    let copy = place.home.project().join(".agents/skills/dispatch");
    let link = place.home.project().join(".claude/skills/dispatch");
    assert_eq!(link.canonicalize().expect("a link"), copy.canonicalize().expect("a folder"));
    assert!(link.is_symlink() && !copy.is_symlink());
    place.is_not_installed(&link, &VERSION);
    place.install_helpers();
    place.works(&link);
    place.works(&copy);
}

#[test]
fn copies_use_the_same_helpers() {
    let place = Place::new();
    place.add(&["--copy", "-a", "claude-code", "codex"]);
    place.install_helpers();
    for agent in [".agents", ".claude"] {
        let copy = place.home.project().join(agent).join("skills/dispatch");
        assert!(!copy.is_symlink());
        place.works(&copy);
    }
}

#[test]
fn an_update_wipes_the_folder_and_not_the_helpers() {
    let place = Place::new();
    place.add(&["-g", "-a", "claude-code"]);
    place.install_helpers();
    let skill = place.users();
    let mine = skill.join("mine");

    fs::write(&mine, "").expect("written");
    place.source.publish("README.md", "New words.\n");
    place.skills(&["update", "-g", "-y"]);
    assert_eq!(fs::read_to_string(skill.join("README.md")).expect("there"), "New words.\n");
    assert!(!mine.exists());
    place.works(&skill);

    // Other sources, whether or not under another version: the old helpers are not used for them.
    let new = "0.1.0-1";
    place.source.publish("helpers/VERSION", &format!("version={new}\n"));
    place.skills(&["update", "-g", "-y"]);
    place.is_not_installed(&skill, new);
    let place_of = |version: &str| place.home.path().join(".local/share/dispatch").join(version);
    symlink(place_of(&VERSION), place_of(new)).expect("linked");
    place.works(&skill);
}

#[test]
fn an_update_in_a_project_keeps_its_links() {
    let place = Place::new();
    place.add(&["-a", "claude-code", "codex"]);
    place.install_helpers();
    let link = place.home.project().join(".claude/skills/dispatch");
    fs::write(link.join("mine"), "").expect("written");
    place.source.publish("README.md", "New words.\n");
    place.skills(&["update", "-p", "-y"]);
    assert_eq!(fs::read_to_string(link.join("README.md")).expect("there"), "New words.\n");
    assert!(link.is_symlink() && !link.join("mine").exists());
    place.works(&link);
}
