//! `install.sh` installs the whole helpers of its sources or nothing, and removes what it
//! installed.
//!
//! Longer than 500 lines because it runs every form of one script.

use std::fs;

use snapbox::str;

use crate::support::copy::{Copy, PROGRAM, serve, serve_whole};
use crate::support::terminal::Terminal;
use crate::support::text::{names, same, tree};
use crate::support::{PLAN, repository};

#[test]
fn published_helpers_are_downloaded_once() {
    for tool in ["curl", "wget"] {
        let copy = Copy::new();
        copy.tool(tool);
        let server = serve_whole(copy.publish());
        let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", &server).run();
        let said = ran.ok().replace(&server, "SERVER");
        assert!(said.starts_with("Downloading SERVER/dispatch-"), "{said}");
        copy.works();
        assert_eq!(names(&copy.data()), [copy.version.as_str()]);
        let again = copy.install(&[]).run().ok();
        same(
            copy.said(&again).trim_end(),
            str![
                "The helpers of dispatch VERSION are in HOME/.local/share/dispatch/VERSION already"
            ],
        );
    }
}

#[test]
fn tampered_download_is_refused() {
    let copy = Copy::new();
    copy.tool("curl");
    copy.cargo();
    let mut bytes = copy.publish();
    *bytes.last_mut().expect("a byte") ^= 1;
    let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", serve_whole(bytes)).run();
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(" is not what was published; nothing was installed\n"), "{}", ran.err);
    copy.has_nothing();
}

#[test]
fn incomplete_download_is_refused() {
    let copy = Copy::new();
    copy.tool("curl");
    let bytes = copy.publish();
    let half = bytes[..bytes.len() / 2].to_vec();
    let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", serve_whole(half.clone())).run();
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(" is not what was published; nothing was installed\n"), "{}", ran.err);
    copy.has_nothing();
    let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", serve(half, bytes.len())).run();
    assert_eq!(ran.code, Some(69));
    assert!(ran.err.contains(" could not be downloaded, and there is no cargo"), "{}", ran.err);
    copy.has_nothing();
}

#[test]
fn helpers_are_built_without_network() {
    let copy = Copy::new();
    copy.publish();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    for tool in ["curl", "wget"] {
        copy.tool(tool);
        let offline =
            |args| copy.install(args).env("DISPATCH_DOWNLOADS", format!("{}://{address}", "http"));
        let ran = offline(&[]).run();
        assert_eq!(ran.code, Some(69), "{}", ran.err);
        copy.has_nothing();
        if tool == "wget" {
            copy.cargo();
            offline(&[]).run();
            copy.works();
        }
        fs::remove_file(copy.tools().join(tool)).expect("removed");
    }
}

#[test]
fn install_names_cargo_if_nothing_was_published() {
    let copy = Copy::new();
    let system = "for linux-x86_64";
    let ran = copy.install(&[]).run();
    let err = copy.said(&ran.err);
    let place = err.find(" for ").expect("a system")..err.find(", and").expect("a reason");
    assert_eq!(ran.code, Some(69));
    same(
        err.replace(&err[place], &format!(" {system}")).trim_end(),
        str![[r#"
install.sh: there is no download of dispatch VERSION for linux-x86_64, and there is no cargo on the PATH
  next: install Rust (your system's package 'cargo' or 'rustup'), then: sh "HOME/my skills/dispatch/install.sh"
"#]],
    );
    copy.has_nothing();
    copy.refused(
        &copy.install(&["--build"]).run(),
        69,
        str![[r#"
install.sh: dispatch VERSION is to be built, and there is no cargo on the PATH
  next: install Rust (your system's package 'cargo' or 'rustup'), then: sh "HOME/my skills/dispatch/install.sh"
"#]],
    );
}

/// A static program runs on each Linux, also at a place with an older system.
#[test]
fn helpers_are_static_where_rust_can() {
    let (x86, musl) = ("x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl");
    let (arm, arm_musl) = ("armv7-unknown-linux-gnueabihf", "armv7-unknown-linux-musleabihf");
    let fetches = "test \"$*\" = \"--quiet target add $TARGET\" && mkdir \"$LIBRARY\"";
    for (host, has_library, rustup, built) in [
        (x86, true, None, format!("{musl}/release")),
        (x86, true, Some("exit 1"), format!("{musl}/release")),
        (x86, false, Some(fetches), format!("{musl}/release")),
        (arm, false, Some(fetches), format!("{arm_musl}/release")),
        (x86, false, Some("exit 1"), "release".to_owned()),
        (x86, false, None, "release".to_owned()),
        (musl, true, Some("exit 1"), "release".to_owned()),
        ("aarch64-apple-darwin", true, Some("exit 1"), "release".to_owned()),
    ] {
        let copy = Copy::new();
        copy.cargo();
        let library = copy.tools().join("library");
        let script = "case $1 in\n-vV) printf 'rustc 1.95.0\\nhost: %s\\nrelease: 1.95.0\\n' \"$HOST\" ;;\n\
                      *) test \"$*\" = \"--print target-libdir --target $TARGET\" && echo \"$LIBRARY\" ;;\nesac";
        copy.stand_in("rustc", script);
        if let Some(script) = rustup {
            copy.stand_in("rustup", script);
        }
        if has_library {
            fs::create_dir(&library).expect("made");
        }
        let install = copy.install(&["--build"]).env("HOST", host).env("LIBRARY", &library);
        let target = if host == arm { arm_musl } else { musl };
        let ran = install.env("TARGET", target).run();
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let fetched = !has_library && rustup.is_some();
        assert_eq!(ran.err.starts_with("Fetching Rust's library for "), fetched, "{}", ran.err);
        copy.works();
        let build = copy.data().join("build");
        assert!(build.join(&built).join("dispatch").is_file(), "{host}, {rustup:?}");
    }
}

#[test]
fn changed_sources_get_their_own_build_and_version() {
    let mut copy = Copy::new();
    copy.tool("curl");
    copy.cargo();
    let server = serve_whole(copy.publish());
    let main = copy.folder.join("helpers/main.rs");
    for text in ["// Mine.\n", "// Mine again.\n"] {
        fs::write(&main, text).expect("written");
        let said = copy.install(&[]).env("DISPATCH_DOWNLOADS", &server).run().ok();
        assert!(said.starts_with("Building dispatch "), "{said}");
        assert!(said.contains("helpers/VERSION now names these helpers\n"), "{said}");
        assert_ne!(copy.current(), copy.version);
        copy.version = copy.current();
        copy.works();
        let again = copy.install(&[]).env("DISPATCH_DOWNLOADS", &server).run().ok();
        assert!(again.ends_with(" already\n"), "{again}");
    }
}

#[test]
fn download_address_must_be_https() {
    let copy = Copy::new();
    copy.tool("curl");
    copy.publish();
    for address in ["ftp://127.0.0.1:1", "http://example.com", "file:///tmp", "x"] {
        let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", address).run();
        assert_eq!(ran.code, Some(64));
        assert!(ran.err.contains(" is no https address\n"), "{}", ran.err);
        copy.has_nothing();
    }
}

#[test]
fn helpers_go_where_the_person_says() {
    for (name, below) in [("DISPATCH_HOME", ""), ("XDG_DATA_HOME", "dispatch")] {
        let copy = Copy::new();
        copy.cargo();
        let home = copy.sandbox.home().join("a home with spaces");
        copy.install(&[]).env(name, &home).run().ok();
        assert!(home.join(below).join(&copy.version).join("dispatch").is_file());
        let worker = copy.sandbox.program(copy.folder.join("bin/dispatch-worker"));
        assert_eq!(worker.env(name, &home).run().ok(), "dispatch-worker \n");
        copy.install(&["--uninstall", "--yes"]).env(name, &home).run().ok();
        assert!(!home.join(below).exists());
        copy.has_nothing();
    }
}

#[test]
fn unwritable_home_is_named() {
    let copy = Copy::new();
    copy.cargo();
    copy.refused(
        &copy.install(&[]).env("HOME", "/dev/null").run(),
        73,
        str![[r#"
install.sh: cannot write to /dev/null/.local/share/dispatch
  next: set DISPATCH_HOME to a folder of yours
"#]],
    );
}

#[test]
fn dry_run_tells_its_steps_and_changes_nothing() {
    let copy = Copy::new();
    copy.cargo();
    let dry = |args: &[&str]| {
        let before = tree(&[copy.sandbox.home()]);
        let said = copy.install(args).arg("--dry-run").run().ok();
        assert_eq!(tree(&[copy.sandbox.home()]), before, "{args:?}");
        copy.said(&said)
    };
    same(
        &dry(&["--allow", "--demo"]),
        str![[r#"
Would build dispatch VERSION with cargo
  and put the helpers into HOME/.local/share/dispatch/VERSION

Would then show the permission rules, and add them to your Claude settings if you agree
Would then run the demo in HOME/.local/share/dispatch/demo

"#]],
    );
    assert_eq!(dry(&["--uninstall"]), "There is nothing to remove.\n");
    copy.publish();
    let said = dry(&[]);
    assert!(said.starts_with("Would download ADDRESS/dispatch-VERSION-"), "{said}");
    copy.put_in_place();
    let said = dry(&["--allow"]);
    assert!(
        said.contains("  allow: Skill(dispatch)\n") && said.ends_with("Nothing was changed.\n"),
        "{said}"
    );
    copy.install(&["--allow", "--yes"]).run().ok();
    let said = dry(&["--disallow"]);
    assert!(
        said.contains("  allow: Skill(dispatch)\n") && said.ends_with("Nothing was changed.\n"),
        "{said}"
    );
    same(
        &dry(&["--uninstall"]),
        str![[r#"
These permission rules will be removed from HOME/.claude/settings.json:
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-config" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-spawn" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-monitor" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-reconcile" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-worker" *)
  allow: Skill(dispatch)
  allow: Skill(dispatch:dispatch)
  allow: Read(~/.dispatch/state/**)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs *HOME/my skills/dispatch/bin/dispatch-*)
These will be removed:
  HOME/.local/share/dispatch/VERSION
Nothing was removed.

"#]],
    );
}

#[test]
fn permission_rules_are_added_and_removed_and_strange_settings_stay() {
    let copy = Copy::new();
    copy.put_in_place();
    let settings = copy.sandbox.home().join(".claude/settings.json");
    fs::create_dir_all(settings.parent().expect("a directory")).expect("made");
    fs::write(&settings, "{\"model\": \"opus\"}").expect("written");
    copy.install(&["--allow", "--yes"]).run().ok();
    let rules = fs::read_to_string(&settings).expect("settings");
    let bin = copy.folder.join("bin/dispatch-spawn");
    assert!(rules.contains(&format!(r#""Bash(\"{}\" *)""#, bin.display())), "{rules}");
    copy.install(&["--disallow", "--yes"]).run().ok();
    assert_eq!(fs::read_to_string(&settings).expect("settings"), "{\"model\": \"opus\"}");
    for text in ["{} // mine", "[]", r#"{"permissions": {"allow": {}}}"#] {
        fs::write(&settings, text).expect("written");
        let ran = copy.install(&["--allow", "--yes"]).run();
        assert_eq!(ran.code, Some(65));
        assert!(ran.err.contains(r#"add by hand: "permissions": {"allow": ["#), "{}", ran.err);
        assert_eq!(fs::read_to_string(&settings).expect("settings"), text);
    }
}

#[test]
fn every_option_has_a_line_in_the_help() {
    let copy = Copy::new();
    let help = copy.install(&["--help"]).run().ok();
    let script = fs::read_to_string(copy.folder.join("install.sh")).expect("text");
    let options = script.lines().filter_map(|line| {
        let option = line.strip_prefix("        --")?.split_once(')')?.0;
        option.split(' ').next()
    });
    let options: Vec<_> = options.collect();
    assert_eq!(options.len(), 10, "{options:?}");
    for option in options {
        assert!(help.contains(&format!("\n  --{option} ")), "{option}: {help}");
    }
    assert!(help.lines().all(|line| line.len() <= 80), "{help}");
}

/// The link and the install command stand in README; both are run as they are printed there.
#[test]
fn readme_commands_link_the_skill_and_allow_its_helpers() {
    let readme = fs::read_to_string(repository("README.md")).expect("README");
    let link = readme.lines().find_map(|line| line.strip_prefix("| by hand | `"));
    let link = link.and_then(|rest| rest.strip_suffix("` |")).expect("the link command");
    let install = readme.lines().find(|line| line.ends_with("install.sh --allow")).expect("a line");
    let copy = Copy::new();
    copy.put_in_place();
    let sh = |script: &str| {
        let call = copy.sandbox.program("sh").args(&["-c", script]).within(&copy.folder);
        call.env("PATH", copy.tools()).run().ok()
    };
    sh(link);
    assert!(sh(&format!("{install} --dry-run")).contains("These permission rules"), "{install}");
    sh(&format!("{install} --yes"));
    let settings = copy.sandbox.home().join(".claude/settings.json");
    let settings = fs::read_to_string(settings).expect("settings");
    assert!(settings.contains(".claude/skills/dispatch/bin/dispatch-spawn"), "{settings}");
    let path = copy.sandbox.home().join(".claude/skills/dispatch/bin/dispatch-config");
    assert!(copy.sandbox.program(path).arg("path").run().ok().ends_with("config.yaml\n"));
}

#[test]
fn every_install_option_of_the_pages_exists() {
    let help = Copy::new().install(&["--help"]).run().ok();
    let option = regex::Regex::new("install\\.sh`?((?: --[a-z-]+)+)").expect("a regex");
    let mut seen = 0;
    for page in ["README.md", "SECURITY.md", ".github/CONTRIBUTING.md", "CHANGELOG.md"] {
        let page = fs::read_to_string(repository(page)).expect("a page");
        for found in option.captures_iter(&page) {
            for option in found[1].split_whitespace() {
                assert!(help.contains(&format!("\n  {option} ")), "{option}");
                seen += 1;
            }
        }
    }
    assert!(seen > 5);
}

#[test]
fn changes_outside_the_helpers_need_consent() {
    let copy = Copy::new();
    copy.put_in_place();
    for job in ["--allow", "--disallow", "--uninstall"] {
        let before = tree(&[copy.sandbox.home()]);
        let ran = copy.install(&[job]).run();
        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{job}");
        assert!(ran.err.contains("next: add --yes to agree; nothing was changed"), "{}", ran.err);
        assert_eq!(tree(&[copy.sandbox.home()]), before);
    }
    let ran = copy.install(&["--uninstall", "--allow", "--yes"]).run();
    assert_eq!(ran.code, Some(64));
    let mut terminal = Terminal::run(copy.install(&["--uninstall"]));
    terminal.read_until("Go on? [y/N] ");
    terminal.write("n\n");
    terminal.read_until("Nothing was removed.\r\n");
    assert!(terminal.status().success());
    assert!(copy.place().exists());
}

#[test]
fn uninstall_removes_what_was_installed_and_leaves_the_rest() {
    let copy = Copy::new();
    copy.put_in_place();
    let home = copy.sandbox.home();
    let own = home.join(".dispatch");
    copy.sandbox.workers(&[]);
    for (path, text) in [
        (own.join("worktrees/project-1/x/README"), "work"),
        (own.join("models.json"), "[]"),
        (copy.data().join("mine/dispatch"), "not of an install"),
        (copy.data().join("build/CACHEDIR.TAG"), ""),
    ] {
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }
    copy.install(&["--allow", "--yes"]).run().ok();
    let said = copy.install(&["--uninstall", "--yes"]).run().ok();
    same(
        &copy.said(&said),
        str![[r#"
These permission rules will be removed from HOME/.claude/settings.json:
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-config" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-spawn" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-monitor" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-reconcile" *)
  allow: Bash("HOME/my skills/dispatch/bin/dispatch-worker" *)
  allow: Skill(dispatch)
  allow: Skill(dispatch:dispatch)
  allow: Read(~/.dispatch/state/**)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-backend*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-place*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* set-access*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* setup*--full*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* allow*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* set-model*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-model*--backend*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-config* add-alias*--prompt*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --access*full*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --access*write*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* -C*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --nested*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-spawn* --may-dispatch*)
  ask: Bash(HOME/my skills/dispatch/bin/dispatch-reconcile* adopt*=*)
  ask: Bash(xargs *HOME/my skills/dispatch/bin/dispatch-*)
These will be removed:
  HOME/.local/share/dispatch/VERSION
  HOME/.local/share/dispatch/build
  HOME/.dispatch/models.json
Removed. This stays:
  HOME/my skills/dispatch
  HOME/.dispatch/config.yaml
  HOME/.dispatch/worktrees
  HOME/.local/share/dispatch
  .dispatch in each project that had tasks

"#]],
    );
    assert_eq!(names(&own), ["config.yaml", "worktrees"]);
    assert_eq!(names(&copy.data()), ["mine"]);
    assert_eq!(fs::read_to_string(home.join(".claude/settings.json")).expect("settings"), "{}\n");
    assert_eq!(copy.install(&["--uninstall", "--yes"]).run().ok(), "There is nothing to remove.\n");
}

#[test]
fn helpers_of_running_workers_stay() {
    let copy = Copy::new();
    copy.put_in_place();
    copy.sandbox.workers(&[]);
    let helper = |name: &str| copy.sandbox.program(copy.folder.join("bin").join(name));
    helper("dispatch-spawn").args(&["x", "--plan", "-"]).input(PLAN).run().ok();
    let ran = copy.install(&["--uninstall", "--yes"]).run();
    assert_eq!((ran.code, ran.out.as_str()), (Some(75), ""));
    same(
        copy.said(&ran.err).trim_end(),
        str![[r#"
install.sh: workers still run and need the helpers; nothing was removed
  PROJECT/.dispatch/tasks/x
  next: wait, or end each in its project: dispatch-reconcile stop TASK
"#]],
    );
    fs::remove_file(copy.tools().join("ps")).expect("removed");
    assert_eq!(copy.install(&["--uninstall", "--yes"]).run().code, Some(69));
    copy.tool("ps");
    assert!(copy.place().exists());
    helper("dispatch-reconcile").args(&["stop", "x"]).run().ok();
    copy.install(&["--uninstall", "--yes"]).run().ok();
    copy.has_nothing();
}

#[test]
fn helpers_are_replaced_while_they_run() {
    let copy = Copy::new();
    copy.cargo();
    copy.put_in_place();
    copy.sandbox.workers(&[]);
    copy.sandbox.plan("x", PLAN);
    let spawn = copy.sandbox.program(copy.folder.join("bin/dispatch-spawn"));
    spawn.arg("x").run().ok();
    copy.install(&["--build"]).run().ok();
    copy.works();
    assert_eq!(copy.sandbox.state("x"), "running");
}

#[test]
fn damaged_helpers_are_replaced() {
    let copy = Copy::new();
    copy.cargo();
    copy.install(&[]).run().ok();
    let program = copy.place().join("dispatch");
    for damage in [PROGRAM.replace("echo", "exit"), String::new()] {
        fs::write(&program, damage).expect("written");
        let said = copy.install(&[]).run().ok();
        assert!(said.contains(" or damaged: replacing them\n"), "{said}");
        copy.works();
    }
}

#[test]
fn development_build_serves_until_a_release_build_replaces_it() {
    let mut copy = Copy::new();
    copy.cargo();
    let main = copy.folder.join("helpers/main.rs");
    for text in ["// First.\n", "// Second.\n"] {
        fs::write(&main, text).expect("written");
        // An edit alone leaves the launchers at the last build.
        let before = copy.current();
        copy.install(&["--dev"]).run().ok();
        assert_ne!(copy.current(), before);
        copy.version = copy.current();
        copy.works();
        assert_eq!(names(&copy.data()), [copy.version.as_str()], "earlier builds are removed");
    }
    assert!(copy.folder.join("target/debug/dispatch").is_file());
    let said = copy.install(&[]).run().ok();
    assert!(said.contains(" are a development build, or damaged: replacing them\n"), "{said}");
    copy.works();
    let again = copy.install(&[]).run().ok();
    assert!(again.ends_with(" already\n"), "{again}");
}

#[test]
fn old_versions_are_removed_unless_another_copy_or_a_worker_needs_them() {
    let mut copy = Copy::new();
    copy.cargo();
    copy.install(&[]).run().ok();
    let first = copy.place();
    let other = copy.sandbox.top().join("other copy");
    fs::create_dir_all(other.join("helpers")).expect("made");
    fs::write(other.join("helpers/VERSION"), "").expect("written");
    fs::write(first.join("COPIES"), format!("{}\n", other.display())).expect("written");
    let main = copy.folder.join("helpers/main.rs");
    let mut update = |text: &str| {
        fs::write(&main, text).expect("written");
        copy.install(&["--build"]).run().ok();
        copy.version = copy.current();
        copy.works();
        copy.place()
    };
    let second = update("// Second.\n");
    assert!(first.exists(), "another copy of the skill calls these helpers");
    fs::remove_dir_all(&other).expect("removed");
    let third = update("// Third.\n");
    assert_eq!((first.exists(), second.exists(), third.exists()), (false, false, true));
}

#[test]
fn download_address_with_a_user_is_refused() {
    let copy = Copy::new();
    copy.tool("curl");
    copy.publish();
    for address in ["http://127.0.0.1:@example.com", "https://me@example.com"] {
        let ran = copy.install(&[]).env("DISPATCH_DOWNLOADS", address).run();
        assert_eq!(ran.code, Some(64), "{}", ran.err);
        assert!(ran.err.contains(" names a user\n"), "{}", ran.err);
        copy.has_nothing();
    }
}

#[test]
fn development_build_of_a_running_worker_stays() {
    let copy = Copy::new();
    copy.cargo();
    copy.put_in_place();
    fs::write(copy.place().join("BUILD"), "development\n").expect("written");
    fs::write(copy.place().join("COPIES"), "").expect("written");
    copy.sandbox.workers(&[]);
    copy.sandbox.plan("x", PLAN);
    let spawn = copy.sandbox.program(copy.folder.join("bin/dispatch-spawn"));
    spawn.arg("x").run().ok();
    let main = copy.folder.join("helpers/main.rs");
    fs::write(&main, "// Mine.\n").expect("written");
    copy.install(&["--dev"]).run().ok();
    assert!(copy.place().join("dispatch").exists());
    copy.sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    copy.install(&["--dev"]).run().ok();
    assert!(!copy.place().exists());
}
