//! The launchers in `bin/`: text that finds the compiled helper of its own version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use dispatch::HELPERS;
use snapbox::str;

use crate::support::helpers::{VERSION, install};
use crate::support::text::same;
use crate::support::{Call, PLAN, Sandbox, binary, repository};

/// The skill's folder, copied to a path with spaces.
fn skill(sandbox: &Sandbox) -> PathBuf {
    let folder = sandbox.home().join("my skills/dispatch");
    fs::create_dir_all(&folder).expect("made");
    // By another program: what this one has open for writing, a fork of another test has too, and
    // then it cannot be executed.
    let copy = sandbox.program("cp").arg("-R").arg(repository("bin"));
    copy.arg(&folder).run().ok();
    set_version(&folder, VERSION);
    folder
}

/// Says which version of the helpers goes with the skill in this folder.
fn set_version(folder: &Path, version: &str) {
    fs::create_dir_all(folder.join("helpers")).expect("made");
    fs::write(folder.join("helpers/VERSION"), version).expect("written");
}

fn launch(sandbox: &Sandbox, launcher: &Path, args: &[&str]) -> Call {
    sandbox.program(launcher).args(args)
}

#[track_caller]
fn finds_its_helper(call: Call) {
    assert!(call.run().ok().ends_with("/home/.dispatch/config.yaml\n"));
}

#[test]
fn the_five_texts_are_identical() {
    let text = |helper: &&str| fs::read_to_string(repository("bin").join(helper)).expect("text");
    let first = text(&HELPERS[0]);
    assert!(HELPERS.iter().all(|helper| text(helper) == first));
    assert!(first.starts_with("#!/bin/sh\n"));
    assert_eq!(fs::read_dir(repository("bin")).expect("readable").count(), HELPERS.len());
}

#[test]
fn a_missing_helper_is_named_with_the_command_in_one_line() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    let ran = launch(&sandbox, &folder.join("bin/dispatch-spawn"), &["x"]).run();
    assert_eq!(ran.code, Some(69));
    same(
        sandbox.redactions().apply(&ran.err).replace(VERSION.trim_end(), "VERSION").trim_end(),
        str![[
            r#"dispatch-spawn VERSION is not installed; run: sh "HOME/my skills/dispatch/install.sh""#
        ]],
    );
    let hook = launch(&sandbox, &folder.join("bin/dispatch-monitor"), &["--hook"]).run();
    assert_eq!((hook.code, hook.out.as_str(), hook.err.as_str()), (Some(0), "", ""));
}

#[test]
fn helpers_of_other_sources_are_not_used() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    install(&sandbox.home().join(".local/share/dispatch"));
    for other in ["0.1.0-00000000\n", "0.1.0\n", "", "\n"] {
        set_version(&folder, other);
        let ran = launch(&sandbox, &folder.join("bin/dispatch-config"), &["path"]).run();
        assert_eq!((ran.code, ran.out.as_str()), (Some(69), ""), "{other:?}");
        assert!(ran.err.contains(" is not installed; run: "), "{}", ran.err);
    }
    fs::remove_dir_all(folder.join("helpers")).expect("removed");
    let ran = launch(&sandbox, &folder.join("bin/dispatch-config"), &["path"]).run();
    assert_eq!(ran.code, Some(69), "{}", ran.err);
}

#[test]
fn it_is_found_in_all_three_places() {
    let sandbox = Sandbox::new();
    let launcher = skill(&sandbox).join("bin/dispatch-config");
    let call = || launch(&sandbox, &launcher, &["path"]);
    install(&sandbox.home().join(".local/share/dispatch"));
    finds_its_helper(call());
    let (data, own) = (sandbox.home().join("data home"), sandbox.home().join("own home"));
    install(&data.join("dispatch"));
    install(&own);
    fs::remove_dir_all(sandbox.home().join(".local")).expect("removed");
    finds_its_helper(call().env("XDG_DATA_HOME", &data));
    finds_its_helper(call().env("DISPATCH_HOME", &own).env("XDG_DATA_HOME", "/nowhere"));
}

#[test]
fn it_may_be_called_by_any_path() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    let bin = folder.join("bin");
    install(&sandbox.home().join(".local/share/dispatch"));
    finds_its_helper(launch(&sandbox, Path::new("bin/dispatch-config"), &["path"]).within(&folder));
    finds_its_helper(launch(&sandbox, Path::new("./dispatch-config"), &["path"]).within(&bin));
    finds_its_helper(
        launch(&sandbox, Path::new("../bin/./dispatch-config"), &["path"]).within(&bin),
    );
    let by_shell = |script: &str| sandbox.program("sh").args(&["-c", script]).within(&bin);
    finds_its_helper(by_shell("sh dispatch-config path"));
    finds_its_helper(by_shell("PATH=\"$PWD:$PATH\"; cd /; dispatch-config path"));
}

#[test]
fn it_may_be_a_link_or_in_a_linked_folder() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    install(&sandbox.home().join(".local/share/dispatch"));
    let links = sandbox.home().join("links");
    fs::create_dir_all(&links).expect("made");
    symlink(&folder, links.join("folder")).expect("linked");
    symlink("folder/bin/dispatch-config", links.join("relative")).expect("linked");
    symlink(folder.join("bin/dispatch-config"), links.join("dispatch-config")).expect("linked");
    symlink("dispatch-config", links.join("twice")).expect("linked");
    finds_its_helper(launch(&sandbox, &links.join("folder/bin/dispatch-config"), &["path"]));
    finds_its_helper(launch(&sandbox, &links.join("dispatch-config"), &["path"]));
    for other in ["relative", "twice"] {
        finds_its_helper(launch(&sandbox, &links.join(other), &["path"]));
    }
}

#[test]
fn arguments_and_input_pass_through_and_news_names_the_launcher() {
    let sandbox = Sandbox::new();
    let bin = skill(&sandbox).join("bin");
    install(&sandbox.home().join(".local/share/dispatch"));
    sandbox.workers(&[]);
    let spawn = launch(&sandbox, &bin.join("dispatch-spawn"), &["x", "--plan", "-"]);
    spawn.input(PLAN).run().ok();
    let worker = |args: &[&str]| {
        let call = launch(&sandbox, &bin.join("dispatch-worker"), &["--task-dir"]);
        call.arg(sandbox.task("x", "")).args(args)
    };
    worker(&["tick", "1", "--note", "a  b \"c\" $d *"]).run().ok();
    assert!(sandbox.read("x", "plan.md").contains("\n  a  b \"c\" $d *\n"));
    worker(&["ask", "-"]).input("Which?\n").env("DISPATCH_WAIT_MS", "0").run().shows(str![[r#"
exit 75
! dispatch-worker: no answer yet
!   next: call again: "HOME/my skills/dispatch/bin/dispatch-worker" --task-dir PROJECT/.dispatch/tasks/x wait 001
"#]]);
    launch(&sandbox, &bin.join("dispatch-monitor"), &["x"]).run().shows(str![[r#"
exit 0
#ID x asks (001): "Which?" → ask the user, then run: "HOME/my skills/dispatch/bin/dispatch-monitor" --answer x/001 - <<'EOF' (the answer, then EOF)
"#]]);
}

#[test]
fn the_one_program_behind_the_helpers_does_nothing_by_another_name() {
    let sandbox = Sandbox::new();
    let program = binary("dispatch-spawn").canonicalize().expect("a file");
    assert!(
        HELPERS.iter().all(|helper| { binary(helper).canonicalize().expect("a file") == program })
    );
    sandbox.program(&program).args(&["x", "--plan", "-"]).run().shows(str![[r#"
exit 64
! dispatch: this program has five names, and does nothing by another
!   dispatch-config, dispatch-spawn, dispatch-monitor, dispatch-reconcile, dispatch-worker
!   next: call it by one of them; install.sh puts links of these names beside it
"#]]);
    let other = sandbox.home().join("dispatch-workers");
    symlink(&program, &other).expect("linked");
    let ran = sandbox.program(&other).run();
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    assert!(ran.err.starts_with("dispatch-workers: this program has five names"), "{}", ran.err);
}

#[test]
fn the_version_stands_in_one_place_and_in_the_file_made_from_it() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(VERSION.starts_with(&format!("{version}-")) && VERSION.ends_with('\n'), "{VERSION}");
    let manifest = fs::read_to_string(repository("Cargo.toml")).expect("text");
    assert_eq!(manifest.matches(version).count(), 1);
    // Claude Code updates a plugin only when its version changes.
    let plugin = fs::read_to_string(repository(".claude-plugin/plugin.json")).expect("text");
    assert!(plugin.contains(&format!("\"version\": \"{version}\"")), "{plugin}");
    let made = ["helpers/VERSION", "helpers/RELEASE"];
    let mut looked = 0;
    for place in ["SKILL.md", "README.md", "install.sh", "bin", "references", "helpers"] {
        for entry in walkdir::WalkDir::new(repository(place)) {
            let entry = entry.expect("readable");
            if entry.file_type().is_file() && !made.iter().any(|it| entry.path().ends_with(it)) {
                let text = fs::read_to_string(entry.path()).expect("text");
                assert!(!text.contains(version), "{}", entry.path().display());
                looked += 1;
            }
        }
    }
    assert!(looked > 40, "only {looked} files");
    for helper in HELPERS {
        let said = Sandbox::new().ok(helper, &["--version"]);
        assert_eq!(said, format!("{helper} {version}\n"));
    }
}
