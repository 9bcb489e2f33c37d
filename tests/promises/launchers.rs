//! The launchers in `bin/`: scripts that find the compiled helper of their own version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use dispatch::HELPERS;
use snapbox::str;

use crate::support::helpers::{VERSION, install, version};
use crate::support::text::same;
use crate::support::{Call, PLAN, Sandbox, binary, repository};

/// The skill's folder, copied to a path with spaces.
fn skill(sandbox: &Sandbox) -> PathBuf {
    let folder = sandbox.home().join("my skills/dispatch");
    fs::create_dir_all(&folder).expect("made");
    // Another program writes the file: a fork of another test could hold our descriptor open for
    // writing, and the file could not be executed.
    let copy = sandbox.program("cp").arg("-R").arg(repository("bin"));
    copy.arg(&folder).run().ok();
    set_version(&folder, &format!("version={}", *VERSION));
    folder
}

/// Writes the skill's VERSION file.
fn set_version(folder: &Path, text: &str) {
    fs::create_dir_all(folder.join("helpers")).expect("made");
    fs::write(folder.join("helpers/VERSION"), text).expect("written");
}

fn launch(sandbox: &Sandbox, launcher: &Path, args: &[&str]) -> Call {
    sandbox.program(launcher).args(args)
}

#[track_caller]
fn finds_its_helper(call: Call) {
    assert!(call.run().ok().ends_with("/home/.dispatch/config.yaml\n"));
}

#[test]
fn five_launchers_are_the_same_text() {
    let text = |helper: &&str| fs::read_to_string(repository("bin").join(helper)).expect("text");
    let first = text(&HELPERS[0]);
    assert!(HELPERS.iter().all(|helper| text(helper) == first));
    assert!(first.starts_with("#!/bin/sh\n"));
    assert_eq!(fs::read_dir(repository("bin")).expect("readable").count(), HELPERS.len());
}

#[test]
fn missing_helper_is_named_with_the_install_command() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    let ran = launch(&sandbox, &folder.join("bin/dispatch-spawn"), &["x"]).run();
    assert_eq!(ran.code, Some(69));
    same(
        sandbox.redactions().apply(&ran.err).replace(VERSION.as_str(), "VERSION").trim_end(),
        str![[
            r#"dispatch-spawn VERSION is not installed; run: sh "HOME/my skills/dispatch/install.sh""#
        ]],
    );
    let hook = || launch(&sandbox, &folder.join("bin/dispatch-monitor"), &["--hook"]).run();
    let ran = hook();
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""));
    // A home that is mounted noexec looks like a file without the right to execute it.
    let helper = sandbox.home().join(".local/share/dispatch").join(VERSION.as_str());
    fs::create_dir_all(&helper).expect("made");
    fs::write(helper.join("dispatch-spawn"), "").expect("written");
    let ran = launch(&sandbox, &folder.join("bin/dispatch-spawn"), &["x"]).run();
    assert_eq!(ran.code, Some(69));
    same(
        sandbox.redactions().apply(&ran.err).replace(VERSION.as_str(), "VERSION").trim_end(),
        str![[r#"
dispatch-spawn cannot run: HOME/.local/share/dispatch/VERSION/dispatch-spawn is not executable, or its file system is mounted noexec
  next: set DISPATCH_HOME to a directory elsewhere, and run: sh "HOME/my skills/dispatch/install.sh"
"#]],
    );
    // Exit code 2 would wake the host.
    set_version(&folder, "version=0.1.0-$((0\n\n^0x1");
    assert_eq!(hook().code, Some(0));
}

#[test]
fn helpers_of_other_sources_are_ignored() {
    let sandbox = Sandbox::new();
    let folder = skill(&sandbox);
    install(&sandbox.home().join(".local/share/dispatch"));
    let conflict = "version=0.1.0-$((0\n<<<<<<< HEAD\n^0x1\n=======\n^0x2\n>>>>>>> other\n))\n";
    let half = "version=0.1.0-$((0\n\n^0x1";
    for other in ["version=0.1.0-0\n", "version=0.1.0\n", "", "\n", conflict, half] {
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
fn launchers_look_in_all_three_homes() {
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
fn launchers_work_by_any_path() {
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
fn launchers_work_through_links() {
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
fn launchers_pass_arguments_and_input_and_news_names_them() {
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
#ID x asks (001): "Which?" → ask the user, then run: "HOME/my skills/dispatch/bin/dispatch-monitor" --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
"#]]);
}

#[test]
fn program_refuses_any_other_name() {
    let sandbox = Sandbox::new();
    let program = binary("dispatch-spawn").canonicalize().expect("a file");
    assert!(
        HELPERS.iter().all(|helper| { binary(helper).canonicalize().expect("a file") == program })
    );
    sandbox.program(&program).args(&["x", "--plan", "-"]).run().shows(str![[r#"
exit 64
! dispatch: this program runs only under the name of a helper
!   dispatch-config, dispatch-spawn, dispatch-monitor, dispatch-reconcile, dispatch-worker
!   next: call it by one of these names; install.sh links them beside it
"#]]);
    let other = sandbox.home().join("dispatch-workers");
    symlink(&program, &other).expect("linked");
    let ran = sandbox.program(&other).run();
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    assert!(ran.err.starts_with("dispatch-workers: this program runs only under"), "{}", ran.err);
}

#[test]
fn version_stands_in_cargo_toml_and_the_file_made_from_it() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(VERSION.starts_with(&format!("{version}-")), "{}", *VERSION);
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
        let build = if cfg!(debug_assertions) { " (development build)" } else { "" };
        assert_eq!(said, format!("{helper} {version}{build}\n"));
    }
}

/// Two branches edit neighbouring files and one adds a file: git merges VERSION, and the merged
/// text names the merged sources. Where both edit the same file, no helpers have the resulting
/// version.
#[test]
fn version_file_merges_without_conflict() {
    let sandbox = Sandbox::with_git();
    let project = sandbox.project();
    let sources = ["helpers", "bin", "install.sh", "Cargo.toml", "Cargo.lock", ".gitattributes"];
    for name in sources {
        sandbox.program("cp").arg("-R").arg(repository(name)).arg(&project).run().ok();
    }
    let measured = || sandbox.program("sh").arg(project.join("helpers/version.sh")).run().ok();
    let commit = |name: &str, edits: &[(&str, &str)]| {
        for (path, text) in edits {
            let path = project.join(path);
            let before = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, before + text).expect("written");
        }
        let text = measured();
        fs::write(project.join("helpers/VERSION"), &text).expect("written");
        sandbox.git(&["add", "--all"]);
        sandbox.git(&["commit", "--quiet", "-m", name]);
        version(&text)
    };
    let merged = || {
        sandbox.git(&["merge", "--quiet", "--no-edit", "theirs"]);
        let text = fs::read_to_string(project.join("helpers/VERSION")).expect("text");
        (version(&text), version(&measured()))
    };
    let base = commit("base", &[]);
    sandbox.git(&["branch", "theirs"]);
    let ours = commit("ours", &[("helpers/dirs.rs", "// Ours.\n")]);
    sandbox.git(&["switch", "--quiet", "theirs"]);
    let theirs = [("helpers/domain.rs", "// Theirs.\n"), ("helpers/added.rs", "// New.\n")];
    let theirs = commit("theirs", &theirs);
    sandbox.git(&["switch", "--quiet", "-"]);
    let (text, sources) = merged();
    assert_eq!(text, sources);
    assert!(![base, ours, theirs].contains(&text));

    sandbox.git(&["switch", "--quiet", "theirs"]);
    let end = fs::read_to_string(project.join("helpers/lib.rs")).expect("text");
    fs::write(project.join("helpers/lib.rs"), "// Theirs.\n".to_owned() + &end).expect("written");
    let theirs = commit("start", &[]);
    sandbox.git(&["switch", "--quiet", "-"]);
    let ours = commit("end", &[("helpers/lib.rs", "// Ours.\n")]);
    let (text, sources) = merged();
    assert!(![sources, ours, theirs].contains(&text));
}
