//! The repository as a plugin: checked, installed and used by the real Claude Code.

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
        DEADLINE, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, task, told, until,
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
fn the_manifests_are_valid_and_give_one_skill_and_no_hooks() {
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
fn installed_from_a_marketplace_it_dispatches_and_is_woken() {
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
    // The short name finds it, beside `/dispatch:dispatch`.
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
fn asked_for_in_plain_words_it_is_called_unasked() {
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
fn an_update_comes_with_a_new_version_and_keeps_the_helpers() {
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
