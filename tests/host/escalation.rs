//! With the rules of `install.sh --allow` the host calls the helpers unasked, but the person is asked
//! for each call that gives a worker more than they have agreed to.

use std::{fs, os::unix::fs::symlink};

use crate::support::{
    claude::{Claude, Options},
    model::{Model, Reply},
    skill,
    story::{DEADLINE, quiet, until},
};

const CONFIG: &str = "
default: opus
backends: { claude: { route: cli } }
models: { opus: { backend: claude } }
";

/// What a dispatcher does all day. `BIN` is the folder of the launchers.
const ORDINARY: [&str; 8] = [
    r#""BIN/dispatch-reconcile""#,
    r#""BIN/dispatch-reconcile" show full-review; "BIN/dispatch-config" models | head -1"#,
    r#""BIN/dispatch-config" resolve --instead-of opus"#,
    r#""BIN/dispatch-config" set-default opus"#,
    "\"BIN/dispatch-monitor\" --answer paint/001 - <<'EOF'\nWith --access full\nEOF",
    "\"BIN/dispatch-reconcile\" note paint - <<'EOF'\nallow it -C\nEOF",
    "\"BIN/dispatch-spawn\" a --model opus --dry-run --plan - <<'PLAN'\n- [ ] Look at --access full -C /\nPLAN\n\"BIN/dispatch-spawn\" full-b --access read --dry-run --plan - <<'PLAN'\n- [ ] Don't set-access\nPLAN",
    "BIN/dispatch-spawn a --model opus --worktree --after b --dry-run --plan - <<'PLAN'\n- [ ] A\nPLAN",
];

/// Other programs, other access, other places, other rules, in every spelling that runs as such. None
/// starts a worker, whose end would be news in a turn of its own.
const ESCALATIONS: [&str; 19] = [
    r#""BIN/dispatch-config" add-backend mine --command true"#,
    r#"BIN/dispatch-config -C . add-backend yours --command true"#,
    r#""BIN/dispatch-config" add''-backend theirs --command true"#,
    r#""BIN/dispatch-config" set-access claude full"#,
    r#""BIN/dispatch-config" setup --default opus --full=codex --yes"#,
    r#""BIN/dispatch-config" allow --bin /x --dry-run"#,
    r#""BIN/dispatch-config" allow --remove --dry-run"#,
    r#""BIN/dispatch-spawn" x --access full"#,
    r#""BIN/dispatch-spawn" x --access "write""#,
    r#"'BIN/dispatch-spawn' --access=full x --resume"#,
    r#"BIN/dispatch-spawn x --access fu\ll"#,
    r#"level=full; "BIN/dispatch-spawn" x --access $level"#,
    "\"BIN/dispatch-spawn\" x --model nobody --plan - --access full <<'PLAN'\n- [ ] A\nPLAN",
    r#""BIN/dispatch-reconcile" && "BIN/dispatch-spawn" x --access full"#,
    r#""BIN/dispatch-spawn" x -C /"#,
    r#""BIN/dispatch-spawn" -C/ x"#,
    r#""BIN/dispatch-spawn" x --nested"#,
    r#"echo full | xargs "BIN/dispatch-spawn" x --access"#,
    r#"echo full | timeout 9 xargs BIN/dispatch-spawn x --access"#,
];

/// Runs each of them in a turn of its own; those for which the person was asked.
fn asked_for(mode: &str, request: &'static str, folder: &str) -> Vec<String> {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let bin = home.path().join(folder).join("dispatch/bin");
    if !bin.exists() {
        let own = home.path().join(folder);
        fs::create_dir_all(&own).expect("a folder");
        symlink(home.path().join(".claude/skills/dispatch"), own.join("dispatch")).expect("a link");
        skill::allow_in(&home, &own.join("dispatch"));
    }
    let bin = bin.to_str().expect("UTF-8").to_owned();
    let commands: Vec<String> =
        commands(folder).into_iter().map(|command| command.replace("BIN", &bin)).collect();
    let count = commands.len();
    let model = Model::start(move |asked| {
        let results = asked.last_tool_results();
        let said = asked.last_user();
        let number = said.split_once("number ").and_then(|(_, rest)| rest.split_once('.'));
        match number.and_then(|(number, _)| number.parse::<usize>().ok()) {
            Some(number) if results.is_empty() => Reply::shell(asked, &commands[number]),
            _ => Reply::say("That was it."),
        }
    });
    let options = Options { asks: true, ..Options::mode(mode) };
    let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
    let mut asked = Vec::new();
    for number in 0..count {
        claude.say(&request.replace("NUMBER", &format!("number {number}.")));
        asked.extend(until(&mut claude, &home, "That was it."));
    }
    quiet(&home);
    assert!(claude.end(DEADLINE).success());
    let of_home = format!("~/{folder}/dispatch/bin");
    asked.iter().map(|asked| asked.replace(&of_home, "BIN").replace("host Bash: ", "")).collect()
}

/// The commands that can be run with the launchers in this folder: a path with spaces needs quotes.
fn commands(folder: &str) -> Vec<&'static str> {
    let all = ORDINARY.into_iter().chain(ESCALATIONS);
    let bare = |command: &str| command.starts_with("BIN") || command.contains(" BIN");
    all.filter(|command| !folder.contains(' ') || !bare(command)).collect()
}

fn escalations(folder: &str) -> Vec<&'static str> {
    commands(folder).into_iter().filter(|command| ESCALATIONS.contains(command)).collect()
}

const SKILLS: &str = ".claude/skills";

#[test]
fn with_the_rules_only_what_gives_a_worker_more_is_asked() {
    for mode in ["default", "acceptEdits"] {
        assert_eq!(asked_for(mode, "NUMBER", SKILLS), escalations(SKILLS), "{mode}");
    }
    let folder = "my skills";
    assert_eq!(asked_for("default", "NUMBER", folder), escalations(folder));
}

#[test]
fn it_is_asked_also_where_the_skill_allows_its_helpers() {
    assert_eq!(asked_for("default", "/dispatch NUMBER", SKILLS), escalations(SKILLS));
}
