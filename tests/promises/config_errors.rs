//! Mistakes in a config: each disables the part that it belongs to, and nothing else.

use std::fs;

use snapbox::str;

use crate::bad_input::{ready, refused};
use crate::support::clis::{CLAUDE, CODEX};
use crate::support::process::kill_and_wait;
use crate::support::{PLAN, Ran, Sandbox};

/// A sandbox whose config is `text` with the usual workers.
fn with_workers(text: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", "exec sleep 1000")]);
    sandbox.config(&format!("{}{text}", sandbox.config_text()));
    sandbox
}

/// The setup of the original writes such models.
#[test]
fn claude_models_without_a_backend_run_on_claude() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX)]);
    sandbox.config("default: opus\nmodels: { opus: {}, claude-sonnet-4.6: , gpt-5: {} }\n");
    sandbox.configure(&["resolve"]).run().shows(str![[r#"
exit 0
opus: opus on claude
no model was named; opus is the default: ask
"#]]);
    sandbox.configure(&["resolve", "claude-sonnet-4.6"]).run().shows(str![[r#"
exit 0
claude-sonnet-4.6: claude-sonnet-4.6 on claude
"#]]);
    sandbox.configure(&["resolve", "gpt-5"]).run().shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: models.gpt-5 has no 'backend'
!   HOME/.dispatch/config.yaml, line 2, column 42: models: { opus: {}, claude-sonnet-4.6: , gpt-5: {} }
!        ^ add 'backend: ...'
"#]]);
    sandbox.configure(&["resolve", "--request", "let gpt-5 do it"]).run().shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: models.gpt-5 has no 'backend'
!   HOME/.dispatch/config.yaml, line 2, column 42: models: { opus: {}, claude-sonnet-4.6: , gpt-5: {} }
!        ^ add 'backend: ...'
"#]]);
    sandbox.configure(&["check"]).run().shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: models.gpt-5 has no 'backend'
!   HOME/.dispatch/config.yaml, line 2, column 42: models: { opus: {}, claude-sonnet-4.6: , gpt-5: {} }
!        ^ add 'backend: ...'
"#]]);
    // The commands that correct it work.
    sandbox.configure(&["set-model", "gpt-5", "--backend", "codex"]).run().shows(str![[r#"
exit 0
gpt-5 now runs on codex
"#]]);
    sandbox.configure(&["resolve", "gpt-5"]).run().shows(str![[r#"
exit 0
gpt-5: gpt-5 on codex
"#]]);
}

#[test]
fn unknown_key_is_a_warning() {
    let sandbox = with_workers("defualt: idle\npatiense: 5\n");
    sandbox.run("dispatch-config", &["check"]).shows(str![[r#"
exit 0
! warning: unknown key 'defualt'
!   HOME/.dispatch/config.yaml, line 8, column 1: defualt: idle
!        ^ did you mean 'default'?
! warning: unknown key 'patiense'
!   HOME/.dispatch/config.yaml, line 9, column 1: patiense: 5
!        ^ did you mean 'patience'?
HOME/.dispatch/config.yaml is valid
prompts are arguments, which every user here can read (ps): idle, works (prompt: stdin hides them)
"#]]);
    sandbox.run("dispatch-config", &["brief"]).shows(str![[r#"
exit 0
default: idle; models: idle, works
config line 8: unknown key 'defualt' (did you mean 'default'?)
config line 9: unknown key 'patiense' (did you mean 'patience'?)
"#]]);
    sandbox.plan("x", PLAN);
    sandbox.run("dispatch-spawn", &["x", "--model", "works"]).shows(str![[r#"
exit 0
x (Title, 2 items) started with works. Tell the user and stop; news wakes you.
"#]]);
}

#[test]
fn waiting_task_starts_with_an_unknown_key() {
    let sandbox = with_workers("");
    let config = sandbox.config_text();
    sandbox.dispatch("a", "works");
    sandbox.dispatch_after("b", &["a"]);
    sandbox.config(&format!("new_key: 1\n{config}"));
    sandbox.worker("a", &["tick", "1"]).run().ok();
    sandbox.worker("a", &["tick", "2"]).run().ok();
    sandbox.worker("a", &["finish"]).run().ok();
    kill_and_wait(sandbox.worker_of("a", 1));
    sandbox.wait_for_state("b", "running");
}

#[test]
fn check_lists_all_problems_at_once() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    sandbox.config(
        "default: opos\nbackends:\n  claude: { acces: read, route: far, prompt: [] }\nmodels:\n  opus: {}\n  gpt-5: {}\npatience: soon\n",
    );
    sandbox.configure(&["check"]).run().shows(str![[r#"
exit 65
! the config is wrong: the default 'opos' does not exist
!   HOME/.dispatch/config.yaml, line 1, column 10: default: opos
!        ^ did you mean 'opus'?
! the config is wrong: unknown key 'acces' in backends.claude
!   HOME/.dispatch/config.yaml, line 3, column 13:   claude: { acces: read, route: far, prompt: [] }
!        ^ did you mean 'access'?
! the config is wrong: 'route' cannot be 'far'
!   HOME/.dispatch/config.yaml, line 3, column 33:   claude: { acces: read, route: far, prompt: [] }
!        ^ expected `agent` or `cli`
! the config is wrong: 'prompt' must be a single value
!   HOME/.dispatch/config.yaml, line 3, column 46:   claude: { acces: read, route: far, prompt: [] }
!        ^ write it on one line
! the config is wrong: models.gpt-5 has no 'backend'
!   HOME/.dispatch/config.yaml, line 6, column 3:   gpt-5: {}
!        ^ add 'backend: ...'
! the config is wrong: 'patience' cannot be 'soon'
!   HOME/.dispatch/config.yaml, line 7, column 11: patience: soon
!        ^ expected a whole number
! dispatch-config: 6 problems in HOME/.dispatch/config.yaml
"#]]);
    sandbox.configure(&["brief"]).run().shows(str![[r#"
exit 0
default: opos; models: opus
config line 3: unknown key 'acces' in backends.claude, so backends.claude is disabled (did you mean 'access'?)
config line 3: 'route' cannot be 'far', so backends.claude is disabled (expected `agent` or `cli`)
config line 3: 'prompt' must be a single value, so backends.claude is disabled (write it on one line)
… and 2 more config problems: dispatch-config check
"#]]);
}

#[test]
fn wrong_value_stops_only_its_own_workers() {
    let sandbox = with_workers("patience: soon\n");
    let config = sandbox.config_text();
    sandbox.config(&config.replacen("backends:\n", "backends:\n  other: { access: reed }\n", 1));
    let text = sandbox.config_text();
    sandbox.config(&text.replacen("models:\n", "models:\n  other-1: { backend: other }\n", 1));
    sandbox.plan("x", PLAN);
    sandbox.run("dispatch-spawn", &["x", "--model", "other-1"]).shows(str![[r#"
exit 65
! dispatch-spawn: the config is wrong: 'access' cannot be 'reed'
!   HOME/.dispatch/config.yaml, line 3, column 20:   other: { access: reed }
!        ^ expected one of `read`, `write`, `full`
"#]]);
    sandbox.run("dispatch-spawn", &["x", "--model", "works"]).shows(str![[r#"
exit 0
x (Title, 2 items) started with works. Tell the user and stop; news wakes you.
"#]]);
}

#[test]
fn answer_stop_and_status_work_with_a_broken_config() {
    let sandbox = with_workers("");
    let config = sandbox.config_text();
    for id in ["x", "y"] {
        sandbox.dispatch(id, "works");
        let ask = sandbox.worker(id, &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
        assert_eq!(ask.code, Some(75));
    }
    for text in ["models: [\n", "default: [1]\nmodels: {}\nmax_workers: -1\n"] {
        sandbox.config(text);
        let status = sandbox.run("dispatch-reconcile", &["status"]);
        assert_eq!(status.code, Some(0), "{status:?}");
        let show = sandbox.run("dispatch-reconcile", &["show", "x"]);
        assert_eq!(show.code, Some(0), "{show:?}");
    }
    sandbox.run("dispatch-monitor", &["--answer", "x/001", "This."]).shows(str![[r#"
exit 0
x/001 answered, its worker continues
"#]]);
    let stop = sandbox.run("dispatch-reconcile", &["stop", "x"]);
    assert_eq!((stop.code, stop.out.as_str()), (Some(0), "x stopped\n"), "{stop:?}");
    // An answer that has to restart its worker is stored all the same.
    sandbox.config("models: [\n");
    kill_and_wait(sandbox.worker_of("y", 1));
    sandbox.wait_for_state("y", "blocked");
    let answer = sandbox.run("dispatch-monitor", &["--answer", "y/001", "That."]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.out.starts_with("y/001 answered, but its worker had ended"), "{answer:?}");
    assert_eq!(sandbox.read("y", "ipc/001.answer"), "That.\n");
    sandbox.config(&config);
    sandbox.ok("dispatch-spawn", &["y", "--resume"]);
    assert!(sandbox.read("y", "attempts/2/prompt.md").ends_with("The person answered: That.\n"));
}

#[test]
fn merge_keys_are_refused_and_anchors_understood() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX)]);
    sandbox.config(
        "default: &best opus\nbackends:\n  claude: &base { access: read }\n  codex:\n    <<: *base\nmodels:\n  opus: &claude { backend: claude }\n  sonnet: *claude\n  gpt-5: { backend: codex }\naliases:\n  r: { model: *best }\n",
    );
    sandbox.configure(&["resolve", "sonnet"]).run().shows(str![[r#"
exit 0
sonnet: sonnet on claude
"#]]);
    sandbox.configure(&["resolve", "r"]).run().shows(str![[r#"
exit 0
r: opus on claude
"#]]);
    sandbox.configure(&["resolve", "gpt-5"]).run().shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: a merge key ('<<') is not supported
!   HOME/.dispatch/config.yaml, line 5, column 5:     <<: *base
!        ^ write the merged keys out
"#]]);
}

/// No later command touches the lines and comments that a migration found.
#[test]
fn migration_and_later_edits_keep_every_comment() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    let old = "# Mine.\ndefault: fast # the quick one\nagents: # by hand\n  # never delete\n  fast: { command: claude -p } # ok\n# end\n";
    sandbox.config(old);
    for args in [&["migrate"][..], &["add-model", "haiku-9"], &["set-default", "sonnet"]] {
        sandbox.configure(args).run().ok();
    }
    let text = sandbox.config_text();
    for line in old.lines().filter(|line| !line.starts_with("default")) {
        assert!(text.lines().any(|new| new == line), "{line}\n{text}");
    }
    assert!(text.contains("default: sonnet # the quick one\n"), "{text}");
    assert!(fs::exists(sandbox.home().join(".dispatch/config.yaml.bak")).expect("readable"));
}

#[test]
fn misspelled_access_never_means_more_access() {
    let sandbox = Sandbox::new();
    let ends = sandbox.script("ends", "exit 0\n");
    for key in ["acces", "acess", "Access", "accesss", "aceess"] {
        sandbox.config(&format!(
            "default: m\nbackends:\n  b: {{ command: {ends}, {key}: read }}\nmodels:\n  m: {{ backend: b }}\n"
        ));
        sandbox.plan("x", PLAN);
        let spawn = sandbox.call("dispatch-spawn", &["x"]).run();
        assert_eq!(spawn.code, Some(65), "{key}: {}{}", spawn.out, spawn.err);
        assert!(spawn.err.contains("did you mean 'access'?"), "{key}: {}", spawn.err);
    }
    assert!(!sandbox.task("x", "record.yaml").exists());
}

/// Checks that the caret stands below the start of `word`.
#[track_caller]
fn assert_caret_at(ran: &Ran, word: &str) {
    let lines: Vec<&str> = ran.err.lines().collect();
    let caret = lines.iter().position(|line| line.trim_start().starts_with('^')).expect("a caret");
    assert_eq!(lines[caret].find('^'), lines[caret - 1].find(word), "{}", ran.err);
}

#[test]
fn config_error_is_shown_with_line_column_and_caret() {
    let sandbox = ready();
    sandbox.config("default: opus\nmodels: { opus: {} }\nbackends:\n  claude: { access: reed }\n");
    let typo = refused(&sandbox, sandbox.call("dispatch-spawn", &["x"]));
    typo.shows(str![[r#"
exit 65
! dispatch-spawn: the config is wrong: 'access' cannot be 'reed'
!   HOME/.dispatch/config.yaml, line 4, column 21:   claude: { access: reed }
!        ^ expected one of `read`, `write`, `full`
"#]]);
    assert_caret_at(&typo, "reed }");
    sandbox.config("default: opus\nmodels:\n  opus: { backend: claude\n");
    refused(&sandbox, sandbox.call("dispatch-config", &["check"])).shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: did not find expected ',' or '}'
!   HOME/.dispatch/config.yaml, line 3, column 26:   opus: { backend: claude
!        ^ here
"#]]);
    sandbox.config(
        "default: opus\nmodels:\n  opus: { backend: claude }\n  opus: { backend: claude }\n",
    );
    let twice = refused(&sandbox, sandbox.call("dispatch-config", &["check"]));
    twice.shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: 'opus' stands here twice
!   HOME/.dispatch/config.yaml, line 4, column 3:   opus: { backend: claude }
!        ^ remove one of them
"#]]);
    assert_caret_at(&twice, "opus: { backend: claude }");
}
