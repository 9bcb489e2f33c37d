//! The skill, installed and updated by the real `npx skills` from a git server.

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

/// A home and the source of its skills.
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

    /// Runs `npx skills …` in the project without prompts.
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

    /// The exit code and output of a launcher in this copy.
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

    /// Checks that the launcher names the one install command, and that its script exists.
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
fn user_install_copies_tracked_files_and_runs_nothing() {
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
fn agents_of_a_project_share_one_copy_by_links() {
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
fn copies_share_the_helpers() {
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
fn update_replaces_the_folder_and_keeps_the_helpers() {
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

    // Other sources never use the old helpers, under any version.
    let new = "0.1.0-1";
    place.source.publish("helpers/VERSION", &format!("version={new}\n"));
    place.skills(&["update", "-g", "-y"]);
    place.is_not_installed(&skill, new);
    let place_of = |version: &str| place.home.path().join(".local/share/dispatch").join(version);
    symlink(place_of(&VERSION), place_of(new)).expect("linked");
    place.works(&skill);
}

#[test]
fn update_in_a_project_keeps_its_links() {
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

/// The repository as a plugin: checked, installed and used by the real Claude Code.
mod plugin {
    use std::{path::PathBuf, process::Command};

    use dispatch::HELPERS;
    use serde_json::{Value, json};

    use crate::support::{
        claude::{Claude, Options, environment},
        git::Repository,
        model::{Model, Reply},
        process::{Home, cli},
        skill,
        story::{
            DEADLINE, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, task, told,
            until,
        },
    };

    const CONFIG: &str = "
    default: opus
    backends: { claude: { route: cli } }
    models: { opus: { backend: claude } }
    ";

    const PAINT: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint it in their colour\n" };

    /// Runs `claude plugin …`, which needs no model, and returns what it prints.
    fn plugin(home: &Home, arguments: &[&str]) -> String {
        let model = Model::start(|_| panic!("no model is needed"));
        let mut command = Command::new(cli("claude"));
        command.arg("plugin").args(arguments).current_dir(home.project()).env_clear();
        let output = command.envs(environment(home.path(), &model)).output().expect("claude");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Installs the plugin, with the helpers and a config.
    fn install(home: &Home, source: &Repository) {
        skill::install_helpers(home);
        skill::configure(home, CONFIG);
        plugin(home, &["install", "dispatch", "--marketplace", &source.url()]);
    }

    /// The folder of the installed plugin.
    fn installed(home: &Home) -> PathBuf {
        let list: Value = serde_json::from_str(&plugin(home, &["list", "--json"])).expect("JSON");
        list[0]["installPath"].as_str().expect("a path").into()
    }

    #[test]
    fn plugin_manifests_are_valid_with_one_skill_and_no_hooks() {
        let home = Home::new();
        let source = Repository::serve(&home);
        let folder = source.folder().to_str().expect("UTF-8");
        let said = plugin(&home, &["validate", "--strict", "--json", folder]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(said["success"], true);
        let provides = said["provides"].as_object().expect("an object");
        let provides: Vec<_> = provides.iter().filter(|(_, list)| **list != json!([])).collect();
        let mut launchers = HELPERS;
        launchers.sort_unstable();
        let (launchers, skills) = (json!(launchers), json!(["dispatch:dispatch"]));
        assert_eq!(provides, [(&"bin".into(), &launchers), (&"skills".into(), &skills)]);
    }

    #[test]
    fn plugin_dispatches_and_is_woken() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        skill::allow_in(&home, &installed(&home));
        let model = Model::start(move |request| match (Seat::of(request), request.turns()) {
            (Seat::Host, _) => dispatcher(request, &[PAINT]),
            (_, 0) => run(request, "ask 'Which colour?'"),
            (_, 1) => run(request, &format!("tick 1 --note '{}'", request.last_tool_results()[0])),
            (_, 2) => run(request, "finish 'It is painted.'"),
            _ => Reply::say("That is all."),
        });
        let options = Options { asks: true, ..Options::mode("acceptEdits") };
        let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
        // The short name works beside `/dispatch:dispatch`.
        claude.say("/dispatch use opus to paint it");
        let mut permissions = until(&mut claude, &home, "Dispatched paint.");
        permissions.extend(until(&mut claude, &home, "paint asks (001)"));
        claude.say(&format!("{REPLY}green"));
        permissions.extend(until(&mut claude, &home, "Passed on: "));
        permissions.extend(until(&mut claude, &home, "paint done"));
        quiet(&home);
        assert!(claude.end(DEADLINE).success());

        assert_eq!(permissions, [""; 0]);
        assert_eq!(called(&model), ["Bash", "Bash"]);
        assert_eq!(
            told(&model),
            ["paint asks (001): \"Which colour?\"", "paint done (1/1): \"It is painted.\""]
        );
        let plan = file(task(&home, "paint").join("plan.md"));
        assert_eq!(plan, "- [x] Paint it in their colour\n  green\n");
    }

    #[test]
    fn plain_words_load_the_plugin_skill_without_prompting() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        skill::allow_in(&home, &installed(&home));
        let model = Model::start(|request| match request.turns() {
            0 => Reply::call("Skill", json!({ "skill": "dispatch:dispatch", "args": "status" })),
            _ => Reply::say("Dispatch is ready."),
        });
        let options = Options { asks: true, ..Options::mode("acceptEdits") };
        let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
        claude.say("what does dispatch do?");
        assert_eq!(until(&mut claude, &home, "Dispatch is ready."), [""; 0]);
        assert!(claude.end(DEADLINE).success());
        let shown = asked(&model, Seat::Host)[1].last_user();
        assert!(shown.contains("State now:\ndefault: opus; models: opus\n"), "{shown}");
    }

    #[test]
    fn plugin_update_needs_a_new_version_and_keeps_the_helpers() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        let old = installed(&home);
        let manifest = ".claude-plugin/plugin.json";
        let text = file(source.folder().join(manifest));
        source.publish(manifest, &text.replace(env!("CARGO_PKG_VERSION"), "99.0.1"));
        plugin(&home, &["marketplace", "update", "dispatch"]);
        plugin(&home, &["update", "dispatch@dispatch"]);
        let new = installed(&home);
        assert!(new.ends_with("99.0.1") && new != old, "{}", new.display());
        let mut launcher = Command::new(new.join("bin/dispatch-config"));
        let output = launcher.arg("path").env_clear().env("HOME", home.path()).output();
        assert!(output.expect("a launcher that can be executed").status.success());
    }
}
