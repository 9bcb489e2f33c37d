//! Wrong input is refused in at most three lines that say what to do, with a documented exit code.
//! Nothing is left half made.

use std::fs;

use snapbox::str;

use crate::support::text::tree;
use crate::support::{Call, PLAN, Ran, Sandbox};

/// A project with a plan for 'x' and a valid config.
pub(crate) fn ready() -> Sandbox {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    sandbox.plan("x", PLAN);
    sandbox
}

/// A project with 'x' running and an open question.
fn asking() -> Sandbox {
    let sandbox = ready();
    sandbox.ok("dispatch-spawn", &["x"]);
    sandbox.write("x", "ipc/001.question", "Which?\n");
    sandbox
}

/// Checks the text and the exit code of a refusal, and that no byte of project and home changed.
#[track_caller]
pub(crate) fn refused(sandbox: &Sandbox, call: Call) -> Ran {
    let before = tree(&[sandbox.home(), sandbox.temporary()]);
    let ran = call.run();
    assert_eq!(tree(&[sandbox.home(), sandbox.temporary()]), before);
    assert!(ran.err.lines().count() <= 3, "more than three lines:\n{}", ran.err);
    assert_eq!(ran.out, "");
    ran
}

#[test]
fn task_id_cannot_leave_its_directory() {
    let sandbox = ready();
    refused(&sandbox, sandbox.call("dispatch-spawn", &["../x"])).shows(str![[r#"
exit 64
! dispatch-spawn: "../x" cannot be a task id
!   an id is lower-case words joined by '-', at most 40 characters
!   next: use an id like 'x'
"#]]);
    refused(&sandbox, sandbox.call("dispatch-reconcile", &["show", "../x"])).shows(str![[r#"
exit 64
! dispatch-reconcile: "../x" cannot be a task id
!   an id is lower-case words joined by '-', at most 40 characters
!   next: use an id like 'x'
"#]]);
}

#[test]
fn plan_without_items_is_refused() {
    let sandbox = ready();
    sandbox.plan("x", "# Title\n\nJust words.\n\n## Context\n- `[ ]` is no item\n");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 65
! dispatch-spawn: the plan has no items
!   PROJECT/.dispatch/tasks/x/plan.md: no line like '- [ ] A concrete step'
!   next: write the steps as checklist items and call again
"#]]);
    let call = sandbox.call("dispatch-spawn", &["y", "--plan", "-"]).input("# Title\n");
    refused(&sandbox, call).shows(str![[r#"
exit 65
! dispatch-spawn: the plan has no items
!   standard input: no line like '- [ ] A concrete step'
!   next: write the steps as checklist items and call again
"#]]);
}

#[test]
fn plan_with_an_empty_item_is_refused() {
    let sandbox = ready();
    sandbox.plan("x", "# Title\n\n- [ ] First\n- [ ]\n- [ ] Third\n");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 65
! dispatch-spawn: the plan has an item without words
!   PROJECT/.dispatch/tasks/x/plan.md, line 4
!   next: say what is to be done and call again
"#]]);
}

#[test]
fn missing_plan_is_refused() {
    let sandbox = ready();
    refused(&sandbox, sandbox.call("dispatch-spawn", &["y"])).shows(str![[r#"
exit 65
! dispatch-spawn: there is no plan for 'y'
!   PROJECT/.dispatch/tasks/y/plan.md does not exist
!   next: write it there, or give it with --plan - and a heredoc
"#]]);
    refused(&sandbox, sandbox.call("dispatch-spawn", &["y", "--plan", "nowhere.md"])).shows(str![
        [r#"
exit 65
! dispatch-spawn: there is no plan for 'y'
!   PROJECT/nowhere.md does not exist
!   next: write it there, or give it with --plan - and a heredoc
"#]
    ]);
}

#[test]
fn plan_that_is_not_utf8_is_refused() {
    let sandbox = ready();
    fs::write(sandbox.task("x", "plan.md"), b"# Title\n- [ ] caf\xe9\n").expect("written");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 65
! dispatch-spawn: PROJECT/.dispatch/tasks/x/plan.md is not UTF-8 text
!   line 2, byte 17 of the file
!   next: save it again as UTF-8
"#]]);
    let call = sandbox.call("dispatch-spawn", &["y", "--plan", "-"]).input(*b"- [ ] caf\xe9\n");
    refused(&sandbox, call).shows(str![[r#"
exit 65
! dispatch-spawn: the text on standard input is not UTF-8
!   next: send the text as UTF-8
"#]]);
}

#[test]
fn missing_config_names_the_setup_command() {
    let sandbox = ready();
    fs::remove_dir_all(sandbox.home().join(".dispatch")).expect("removed");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 65
! dispatch-spawn: there is no config yet
!   HOME/.dispatch/config.yaml does not exist
!   next: follow references/first-run-setup.md, or call dispatch-config setup
"#]]);
    refused(&sandbox, sandbox.call("dispatch-config", &["check"])).shows(str![[r#"
exit 65
! dispatch-config: there is no config yet
!   HOME/.dispatch/config.yaml does not exist
!   next: follow references/first-run-setup.md, or call dispatch-config setup
"#]]);
}

#[test]
fn unknown_model_lists_the_known_ones() {
    let sandbox = ready();
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--model", "idel"])).shows(str![[r#"
exit 65
! dispatch-spawn: model 'idel' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean idle; dispatch-config models lists what your subscriptions have
"#]]);
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--model", "mistral"])).shows(str![[
        r#"
exit 65
! dispatch-spawn: model 'mistral' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: use one of idle; dispatch-config models lists what your subscriptions have
"#
    ]]);
}

#[test]
fn alias_of_a_missing_model_is_refused() {
    let sandbox = ready();
    sandbox.config("models:\n  opus: { backend: claude }\naliases:\n  quick: { model: opos }\n");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--model", "quick"])).shows(str![[
        r#"
exit 65
! dispatch-spawn: model 'opos' is not in the config
!   HOME/.dispatch/config.yaml: the alias 'quick' stands for 'opos'
!   next: did you mean opus; dispatch-config models lists what your subscriptions have
"#
    ]]);
}

#[test]
fn backend_without_a_command_is_refused() {
    let sandbox = ready();
    sandbox.config("default: m\nbackends:\n  mine: {}\nmodels:\n  m: { backend: mine }\n");
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 65
! dispatch-spawn: backend 'mine' has no command
!   dispatch knows no worker CLI of that name
!   next: add backends.mine.command to HOME/.dispatch/config.yaml
"#]]);
}

#[test]
fn missing_cli_is_named() {
    let sandbox = ready();
    sandbox.config(
        "default: m\nbackends:\n  b: { command: no-such-cli -p }\nmodels:\n  m: { backend: b }\n",
    );
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 69
! dispatch-spawn: the CLI of backend 'b' is not installed
!   'no-such-cli' is not in PATH
!   next: install no-such-cli, or name a model of another backend
"#]]);
    sandbox.config("default: gpt\nmodels:\n  gpt: { backend: codex }\n");
    let call = sandbox.call("dispatch-spawn", &["x"]).env("PATH", sandbox.temporary());
    refused(&sandbox, call).shows(str![[r#"
exit 69
! dispatch-spawn: the CLI of backend 'codex' is not installed
!   'codex' is not in PATH
!   next: install codex, or name a model of another backend
"#]]);
}

#[test]
fn cli_without_sandbox_is_refused_for_restricted_access() {
    let sandbox = Sandbox::with_clis(&[("gemini", "exit 1"), ("droid", "exit 1")]);
    sandbox.config("models: { g: { backend: gemini }, d: { backend: droid } }\n");
    sandbox.plan("x", PLAN);
    let spawn = |args: &[&str]| sandbox.on_machine("dispatch-spawn", &["x"]).args(args);
    refused(&sandbox, spawn(&["--model", "g"])).shows(str![[r#"
exit 69
! dispatch-spawn: gemini's workers cannot be held to 'write' access
!   landlock needs Linux 6.2; bubblewrap (bwrap) is not installed; it holds its own edits to the project, but not the commands that it runs
!   next: install it; or if the user lets them do anything: dispatch-config set-access gemini full
"#]]);
    refused(&sandbox, spawn(&["--model", "d", "--access", "read"])).shows(str![[r#"
exit 69
! dispatch-spawn: droid's workers cannot be held to 'read' access
!   landlock needs Linux 6.2; bubblewrap (bwrap) is not installed; it lets the model itself say how risky each of its commands is
!   next: install it; or if the user lets them do anything: dispatch-config set-access droid full
"#]]);
    assert!(!sandbox.task("x", "record.yaml").exists());
}

/// Claude Code prompts for `--access full`, but not for `ful[l]`, which a shell may expand to it.
#[test]
fn option_that_may_be_an_expanded_pattern_is_refused() {
    let sandbox = ready();
    let calls: [(&str, &str, &[&str]); 4] = [
        ("--access", "dispatch-spawn", &["x", "--access", "full"]),
        ("--access=write", "dispatch-spawn", &["x", "--access=write"]),
        ("-C", "dispatch-spawn", &["x", "-C", "/"]),
        ("set-access", "dispatch-config", &["set-access", "codex", "full"]),
    ];
    for (word, helper, args) in calls {
        let file = sandbox.project().join(word);
        fs::write(&file, "").expect("written");
        let ran = sandbox.run(helper, args);
        assert_eq!(ran.code, Some(64), "{}", ran.err);
        assert!(ran.err.contains(&format!("'{word}' is also the name of a file")), "{}", ran.err);
        fs::remove_file(&file).expect("removed");
    }
    fs::write(sandbox.project().join("full"), "").expect("written");
    let call = sandbox.call("dispatch-spawn", &["x", "--access", "full"]);
    refused(&sandbox, call).shows(str![[r#"
exit 64
! dispatch-spawn: 'full' is also the name of a file here
!   a shell may have put it in place of a pattern, unseen by permission rules
!   next: call from a directory without that file
"#]]);
    assert!(!sandbox.task("x", "record.yaml").exists());
}

#[test]
fn taken_id_stays_with_its_task() {
    let sandbox = asking();
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x"])).shows(str![[r#"
exit 73
! dispatch-spawn: the task id 'x' is taken
!   PROJECT/.dispatch/tasks/x is asking
!   next: use 'x-2'
"#]]);
    let call = sandbox.call("dispatch-spawn", &["x", "--plan", "-"]).input("- [ ] Other\n");
    refused(&sandbox, call).shows(str![[r#"
exit 73
! dispatch-spawn: the task id 'x' is taken
!   PROJECT/.dispatch/tasks/x is asking
!   next: use 'x-2'
"#]]);
}

#[test]
fn unknown_option_is_refused_in_three_lines() {
    let sandbox = ready();
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--modle", "idle"])).shows(str![[r#"
exit 64
! dispatch-spawn: unexpected argument '--modle' found
!   a similar argument exists: '--model'
!   next: see dispatch-spawn --help
"#]]);
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--access", "all"])).shows(str![[r#"
exit 64
! dispatch-spawn: invalid value 'all' for '--access <ACCESS>' [possible values: read, write, full]
!   a similar value exists: 'full'
!   next: see dispatch-spawn --help
"#]]);
    refused(&sandbox, sandbox.call("dispatch-reconcile", &["stpo", "x"])).shows(str![[r#"
exit 64
! dispatch-reconcile: unrecognized subcommand 'stpo'
!   a similar subcommand exists: 'stop'
!   next: see dispatch-reconcile --help
"#]]);
    refused(&sandbox, sandbox.call("dispatch-monitor", &["--timeout", "soon"])).shows(str![[r#"
exit 64
! dispatch-monitor: invalid value 'soon' for '--timeout <DURATION>': expected number at 0
!   next: see dispatch-monitor --help
"#]]);
    refused(&sandbox, sandbox.call("dispatch-worker", &["finish"])).shows(str![[r#"
exit 64
! dispatch-worker: the following required arguments were not provided: --task-dir <DIR>
!   next: see dispatch-worker finish --help
"#]]);
}

#[test]
fn answer_needs_an_open_question_and_a_text() {
    let sandbox = asking();
    let answer = |target: &str, text: &str| {
        sandbox.call("dispatch-monitor", &["--answer", target, "-"]).input(text)
    };
    refused(&sandbox, answer("x", " \n")).shows(str![[r#"
exit 64
! dispatch-monitor: the answer is empty
!   next: give the text, or - and the text on standard input
"#]]);
    refused(&sandbox, answer("nobody", "This.")).shows(str![[r#"
exit 65
! dispatch-monitor: there is no task 'nobody'
!   tasks in PROJECT: x
!   next: dispatch-reconcile shows all tasks
"#]]);
    refused(&sandbox, answer("x/007", "This.")).shows(str![[r#"
exit 65
! dispatch-monitor: 'x' has no question 007
!   it asked 001
!   next: dispatch-reconcile show x
"#]]);
    sandbox.write("x", "ipc/001.answer", "That.\n");
    refused(&sandbox, answer("x/001", "This.")).shows(str![[r#"
exit 65
! dispatch-monitor: question 001 has an answer already
!   dispatch-reconcile show x prints it
!   next: to tell the worker more, use: dispatch-reconcile note
"#]]);
    refused(&sandbox, answer("x", "This.")).shows(str![[r#"
exit 65
! dispatch-monitor: 'x' has no open question
!   it asked 001
!   next: dispatch-reconcile show x
"#]]);

    let sandbox = ready();
    sandbox.ok("dispatch-spawn", &["x"]);
    let call = sandbox.call("dispatch-monitor", &["--answer", "x", "This."]);
    refused(&sandbox, call).shows(str![[r#"
exit 65
! dispatch-monitor: 'x' has no open question
!   it never asked
!   next: dispatch-reconcile show x
"#]]);
}

#[test]
fn wrong_worker_call_names_the_right_one() {
    let sandbox = asking();
    refused(&sandbox, sandbox.worker("x", &["tick", "9"])).shows(str![[r#"
exit 65
! dispatch-worker: the plan has no item 9
!   it has 2, counted from 1
"#]]);
    refused(&sandbox, sandbox.worker("x", &["tick", "0"])).shows(str![[r#"
exit 65
! dispatch-worker: the plan has no item 0
!   it has 2, counted from 1
"#]]);
    refused(&sandbox, sandbox.worker("x", &["finish", "All done."])).shows(str![[r#"
exit 65
! dispatch-worker: item 1 is [ ], not ticked
!   First
!   next: do it and tick 1; or block 1 or fail 1, and stop
"#]]);
    refused(&sandbox, sandbox.worker("x", &["ask", "-"]).input("\n")).shows(str![[r#"
exit 64
! dispatch-worker: the question is empty
!   next: give the text, or - and the text on standard input
"#]]);
    refused(&sandbox, sandbox.worker("x", &["wait", "002"])).shows(str![[r#"
exit 65
! dispatch-worker: there is no question 002
!   next: ask first; the number is in the name of the question's file in ipc/
"#]]);
    refused(&sandbox, sandbox.worker("y", &["tick", "1"])).shows(str![[r#"
exit 65
! dispatch-worker: that is not a task's directory
!   PROJECT/.dispatch/tasks/y/plan.md does not exist
!   next: give the directory that the prompt names with --task-dir
"#]]);
}

#[test]
fn worker_starts_workers_only_if_the_person_allowed_it() {
    let sandbox = ready();
    let spawn = |id: &str, args: &[&str]| {
        sandbox.plan(id, PLAN);
        sandbox.call("dispatch-spawn", &[&[id], args].concat())
    };
    spawn("x", &[]).run().ok();
    spawn("w", &["--may-dispatch"]).run().ok();
    sandbox.plan("y", PLAN);
    let inside = |outer: &str, args: &[&str]| {
        let task = sandbox.task(outer, "ipc").with_file_name("");
        let task = task.components().as_path().to_path_buf();
        sandbox.call("dispatch-spawn", args).env("DISPATCH_TASK_DIR", task)
    };
    refused(&sandbox, inside("x", &["y", "--nested"])).shows(str![[r#"
exit 64
! dispatch-spawn: this worker may not start workers
!   'x' was dispatched without --may-dispatch
!   next: do the work yourself
"#]]);
    refused(&sandbox, inside("w", &["y"])).shows(str![[r#"
exit 64
! dispatch-spawn: a worker cannot start workers
!   next: do the work yourself, or add --nested if the task asks for workers
"#]]);
    assert_eq!(inside("w", &["y", "--nested"]).run().code, Some(0));
    assert_eq!(sandbox.state("y"), "running");
    refused(&sandbox, spawn("z", &["--may-dispatch", "--access", "write"])).shows(str![[r#"
exit 64
! dispatch-spawn: only a process at full access can dispatch tasks
!   'z' would work at write
!   next: leave out --may-dispatch, or add --access full
"#]]);
}

#[test]
fn unreadable_task_is_refused_with_the_name_of_its_file() {
    let sandbox = ready();
    sandbox.ok("dispatch-spawn", &["x"]);
    let record = sandbox.read("x", "record.yaml");
    let broken = |text: &str| fs::write(sandbox.task("x", "record.yaml"), text).expect("written");
    let show = || sandbox.call("dispatch-reconcile", &["show", "x"]);

    broken("format: 1\nnonce: [\n");
    refused(&sandbox, show()).shows(str![[r#"
exit 65
! dispatch-reconcile: task 'x' has a broken record
!   STATE/x/record.yaml: did not find expected node content at line 3 column 1, while parsing a flow node
!   next: restore the file, or dispatch the plan again under another id
"#]]);
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--resume"])).shows(str![[r#"
exit 65
! dispatch-spawn: task 'x' has a broken record
!   STATE/x/record.yaml: did not find expected node content at line 3 column 1, while parsing a flow node
!   next: restore the file, or dispatch the plan again under another id
"#]]);
    refused(&sandbox, sandbox.call("dispatch-monitor", &["x"])).shows(str![[r#"
exit 65
! dispatch-monitor: task 'x' has a broken record
!   STATE/x/record.yaml: did not find expected node content at line 3 column 1, while parsing a flow node
!   next: restore the file, or dispatch the plan again under another id
"#]]);
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
x broken — task 'x' has a broken record → dispatch-reconcile show x
"#]]);

    broken(&record.replace("format: 1\n", "format: 2\n"));
    refused(&sandbox, show()).shows(str![[r#"
exit 65
! dispatch-reconcile: this task was created by a newer version
!   STATE/x/record.yaml: format 2
!   next: install this version's helpers again: sh install.sh
"#]]);
    // This version need not know the states of a newer one.
    broken("format: 2\nwho: knows\n");
    refused(&sandbox, show()).shows(str![[r#"
exit 65
! dispatch-reconcile: this task was created by a newer version
!   STATE/x/record.yaml: format 2
!   next: install this version's helpers again: sh install.sh
"#]]);
    refused(&sandbox, sandbox.call("dispatch-spawn", &["x", "--resume"])).shows(str![[r#"
exit 65
! dispatch-spawn: this task was created by a newer version
!   STATE/x/record.yaml: format 2
!   next: install this version's helpers again: sh install.sh
"#]]);
}

#[test]
fn worker_cannot_finish_another_task() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    for task in ["own", "other"] {
        sandbox.plan(task, PLAN);
        sandbox.call("dispatch-spawn", &[task]).run().ok();
    }
    let other = sandbox.worker("other", &["finish", "Done."]);
    let refused = other.env("DISPATCH_TASK_DIR", sandbox.task("own", "")).run();
    assert_eq!(refused.code, Some(64), "{}", refused.err);
    assert!(refused.err.contains("a worker speaks only for its own task"), "{}", refused.err);
    assert_eq!(sandbox.state("other"), "running");
}
