//! The first `/dispatch`: before the helpers are installed, and before there is a config.

use super::helpers;
use crate::support::{
    claude::{Claude, Options},
    model::Model,
    process::Home,
    skill,
    story::{DEADLINE, Seat, asked, dispatcher, until},
};

/// What the host's model is shown at `/dispatch`, and that nothing wakes it afterwards.
fn shown(home: &Home) -> String {
    let model = Model::start(move |request| dispatcher(request, &[]));
    let mut claude = Claude::stream(home.path(), &home.project(), &model, &Options::default());
    for _ in 0..2 {
        claude.say("/dispatch use opus to paint the door");
        until(&mut claude, home, "Dispatch is ready.");
    }
    assert!(claude.end(DEADLINE).success());
    let host = asked(&model, Seat::Host);
    assert_eq!(host.len(), 2, "the hooks stay silent");
    host[0].last_user()
}

#[test]
fn without_helpers_the_skill_names_the_one_command() {
    let home = Home::new();
    skill::install(&home);
    let text = shown(&home);
    let install = home.path().join(".claude/skills/dispatch/install.sh");
    let version = helpers::VERSION.as_str();
    let line = format!(
        "State now:\ndispatch-config {version} is not installed; run: sh \"{}\"\n",
        install.display()
    );
    assert!(text.contains(&line), "{text}");
    assert!(install.is_file());
}

#[test]
fn without_a_config_the_skill_says_so_and_knows_what_to_read() {
    let home = Home::new();
    skill::install(&home);
    skill::install_helpers(&home);
    let text = shown(&home);
    assert!(text.contains("State now:\nconfig: there is no config yet"), "{text}");
    let setup = home.path().join(".claude/skills/dispatch/references/first-run-setup.md");
    assert!(text.contains(&format!("`{}`", setup.display())), "{text}");
    assert!(setup.is_file());
}
