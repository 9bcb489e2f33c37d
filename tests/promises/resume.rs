//! What is left of a task is tried again, skipped, or given to another worker.

use std::fs;

use snapbox::str;

use crate::support::clis::{CLAUDE, CODEX};
use crate::support::text::same;
use crate::support::{PLAN, Sandbox, binary, wait_until};

/// The helper as a script of a worker calls it.
fn helper() -> String {
    binary("dispatch-worker").display().to_string()
}

/// A worker that fails at the second item, and one that does what is left.
fn ready() -> Sandbox {
    let (sandbox, helper) = (Sandbox::new(), helper());
    let fails = format!("{helper} tick 1; {helper} fail 2 'no compiler'");
    let does = format!(
        "cat >prompt; for n in 1 2 3; do {helper} tick $n; done; {helper} finish 'All of it.'"
    );
    sandbox.workers(&[("fails", &fails), ("does", &does), ("quits", "exit 0")]);
    sandbox.plan("x", "# Three\n- [ ] One\n- [ ] Two\n- [ ] Three\n");
    sandbox
}

fn failed() -> Sandbox {
    let sandbox = ready();
    sandbox.ok("dispatch-spawn", &["x", "--model", "fails"]);
    sandbox.wait_for_state("x", "failed: item 2: no compiler");
    sandbox
}

#[test]
fn a_failed_item_is_open_again_for_the_next_worker() {
    let sandbox = failed();
    sandbox.run("dispatch-spawn", &["x", "--resume", "--model", "idle"]).shows(str![[r#"
exit 0
x started with idle. Tell the user and stop; news wakes you.
"#]]);
    same(
        &sandbox.read("x", "plan.md"),
        str![[r#"
# Three
- [x] One
- [ ] Two
  no compiler
- [ ] Three

"#]],
    );
}

#[test]
fn a_skipped_item_counts_as_done_and_says_why() {
    let sandbox = failed();
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--skip", "2", "--model", "idle"]);
    same(
        &sandbox.read("x", "plan.md"),
        str![[r#"
# Three
- [x] One
- [x] Two
  no compiler
  skipped: the user does not want it
- [ ] Three

"#]],
    );
}

#[test]
fn a_task_of_which_all_that_is_left_is_skipped_is_done() {
    let sandbox = failed();
    sandbox.run("dispatch-spawn", &["x", "--resume", "--skip", "2", "--skip", "3"]).shows(str![[
        r#"
exit 0
x is done: nothing is left. Tell the user and stop.
"#
    ]]);
    assert_eq!(sandbox.state("x"), "done");
    same(
        &sandbox.read("x", "ipc/.done"),
        str![[r#"
The user skipped all remaining items: 2, 3.

"#]],
    );
}

#[test]
fn an_item_that_is_not_there_is_not_skipped_and_nothing_is_started() {
    let sandbox = failed();
    let before = sandbox.read("x", "plan.md");
    let record = sandbox.read("x", "record.yaml");
    let both = ["x", "--resume", "--model", "does", "--skip", "2", "--skip", "4"];
    assert_eq!(sandbox.run("dispatch-spawn", &both).code, Some(65));
    assert_eq!(sandbox.read("x", "record.yaml"), record);
    sandbox.run("dispatch-spawn", &["x", "--resume", "--skip", "4"]).shows(str![[r#"
exit 65
! dispatch-spawn: the plan has no item 4
!   it has 3, counted from 1
"#]]);
    assert_eq!(sandbox.read("x", "plan.md"), before);
    assert_eq!(sandbox.state("x"), "failed: item 2: no compiler");
    sandbox.run("dispatch-spawn", &["y", "--skip", "1"]).shows(str![[r#"
exit 64
! dispatch-spawn: the following required arguments were not provided: --resume
!   next: see dispatch-spawn --help
"#]]);
}

#[test]
fn a_task_that_waits_is_not_said_to_be_done() {
    let sandbox = ready();
    sandbox.dispatch("before", "idle");
    sandbox.ok("dispatch-spawn", &["x", "--model", "does", "--after", "before"]);
    let skip = ["x", "--resume", "--skip", "1", "--skip", "2", "--skip", "3"];
    sandbox.run("dispatch-spawn", &skip).shows(str![[r#"
exit 65
! dispatch-spawn: nothing would be left of 'x'
!   the task waits and would start anyway
!   next: stop it: dispatch-reconcile stop x
"#]]);
    assert_eq!(sandbox.state("x"), "queued: after before");
    assert!(!sandbox.read("x", "plan.md").contains("[x]"));
}

#[test]
fn another_worker_keeps_the_ticks_and_gets_a_prompt_of_its_own() {
    let sandbox = failed();
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--model", "does"]);
    sandbox.wait_for_state("x", "done");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains("done, does,"), "{shown}");
    assert!(sandbox.read("x", "plan.md").contains("- [x] One\n- [x] Two\n  no compiler\n"));
}

#[test]
fn another_worker_that_cannot_start_changes_nothing() {
    let sandbox = failed();
    let before = sandbox.read("x", "record.yaml");
    let ran = sandbox.run("dispatch-spawn", &["x", "--resume", "--model", "nobody"]);
    assert_eq!(ran.code, Some(65), "{ran:?}");
    assert_eq!(sandbox.read("x", "record.yaml"), before);
    assert_eq!(sandbox.state("x"), "failed: item 2: no compiler");
}

/// As Claude Code: it names its session, and knows the one that it is told to resume unless it has
/// forgotten it. It keeps how it was called and what it read.
const KEEPER: &str = r#"
case "$*" in
--version) echo '2.1.329 (Claude Code)'; exit ;;
*'--resume forgotten'*) echo 'No conversation found with session ID: forgotten'; exit 1 ;;
esac
echo '{"type":"system","subtype":"init","session_id":"SESSION"}'
cat >"$DISPATCH_TASK_DIR/got.tmp"; echo "${0##*/} $*" >"$DISPATCH_TASK_DIR/called"
mv "$DISPATCH_TASK_DIR/got.tmp" "$DISPATCH_TASK_DIR/got"
exec sleep 1000
"#;

fn keeper(session: &str) -> Sandbox {
    let sandbox = Sandbox::with_clis(&[("claude", &KEEPER.replace("SESSION", session))]);
    sandbox
        .config("models: { opus: { backend: claude } }\nbackends: { claude: { access: full } }\n");
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x", "--model", "opus"]).run().ok();
    wait_until("its session is known", || {
        sandbox.task("x", "attempts/1/session").exists().then_some(())
    });
    wait_until("it was called", || fs::remove_file(sandbox.task("x", "got")).ok());
    sandbox.worker("x", &["tick", "1"]).run().ok();
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.on_machine("dispatch-spawn", &["x", "--resume"]).run().ok();
    wait_until("it is called again", || sandbox.task("x", "got").exists().then_some(()));
    sandbox
}

#[test]
fn a_cli_goes_on_in_its_own_session_and_is_told_only_what_is_new() {
    let sandbox = keeper("known");
    let called = sandbox.read("x", "called");
    assert!(called.contains("--resume known") && !called.contains("--session-id"), "{called}");
    same(
        &sandbox.redactions().apply(&sandbox.read("x", "got")),
        str![[r#"
You were interrupted in your task 'x'. Continue it, as you were told at first. Read
PROJECT/.dispatch/tasks/x/plan.md again: items that are ticked are done; continue with the first that is not. '[?]' and '[!]'
items are open again, and there may be notes; numbers are those of that file now. Your link to the person is still: BIN/dispatch-worker --task-dir PROJECT/.dispatch/tasks/x …

"#]],
    );
}

#[test]
fn a_session_that_its_cli_has_forgotten_is_begun_anew_with_everything() {
    let sandbox = keeper("forgotten");
    let called = sandbox.read("x", "called");
    assert!(called.contains("--session-id") && !called.contains("--resume"), "{called}");
    let got = sandbox.read("x", "got");
    assert!(got.starts_with("You are the worker of one task, 'x'."), "{got}");
    assert!(got.contains("An earlier worker began this task and stopped."), "{got}");
    assert_eq!(sandbox.state("x"), "running");
}

#[test]
fn another_task_of_the_same_name_knows_no_session() {
    let sandbox = keeper("known");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    fs::remove_dir_all(sandbox.task("x", "")).expect("removed");
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x", "--model", "opus"]).run().ok();
    wait_until("it is called", || sandbox.task("x", "got").exists().then_some(()));
    assert!(!sandbox.read("x", "called").contains("--resume"));
}

#[test]
fn all_ticked_and_a_clean_exit_without_the_marker_is_done() {
    let (sandbox, helper) = (Sandbox::new(), helper());
    sandbox.workers(&[("ticks", &format!("{helper} tick 1; {helper} tick 2"))]);
    sandbox.dispatch("x", "ticks");
    sandbox.wait_for_state("x", "done: finish marker missing");
}

#[test]
fn a_marker_with_items_unticked_is_incomplete() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("hurries", "touch .dispatch/tasks/x/ipc/.done")]);
    sandbox.dispatch("x", "hurries");
    sandbox.wait_for_state("x", "incomplete: finish marker set with items unticked");
}

#[test]
fn a_dry_run_prints_what_would_run_for_a_person_and_for_a_program() {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE), ("codex", CODEX)]);
    sandbox.config("models:\n  gpt-6: { backend: codex }\nbackends:\n  codex: {}\n");
    sandbox.plan("x", PLAN);
    let spawn = ["x", "--model", "gpt-6", "--dry-run"];
    let as_json = sandbox.on_machine("dispatch-spawn", &spawn).arg("--json");
    let said = as_json.env("CLAUDE_CODE_SESSION_ID", "1").env("KEPT", "1").run().ok();
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let words: Vec<_> = json["argv"].as_array().expect("words").iter().collect();
    assert_eq!(words.first().and_then(|word| word.as_str()), Some("codex"));
    let prompt = json["prompt"].as_str().expect("a text");
    assert!(prompt.contains("the worker of one task, 'x'") && prompt.ends_with("Just do it.\n"));
    let rest = ["stdin", "directory", "environment", "unset"].map(|key| json[key].to_string());
    same(
        &sandbox.redactions().apply(&rest.join("\n")),
        str![[r#"
"STATE/x/attempts/1/prompt.md"
"PROJECT"
{"DISPATCH_TASK_DIR":"PROJECT/.dispatch/tasks/x"}
["CLAUDE_CODE_SESSION_ID"]
"#]],
    );
    // The line is the same words, and what it says runs in a shell.
    let line = sandbox.on_machine("dispatch-spawn", &spawn).run().ok();
    for word in words {
        assert!(line.contains(word.as_str().expect("a word")), "{line}");
    }
    assert!(!sandbox.task("x", "record.yaml").exists());
}

#[test]
fn the_line_of_a_dry_run_runs_what_was_run() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("keeps", "printf '%s' \"$1\" >got.tmp && mv got.tmp got")]);
    sandbox.plan("x", "# 'One' \"two\" $(three) `four`\n- [ ] \\five\n");
    let line = sandbox.ok("dispatch-spawn", &["x", "--model", "keeps", "--dry-run"]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "keeps"]);
    let got = || fs::read_to_string(sandbox.project().join("got")).ok();
    let first = wait_until("the worker keeps its prompt", got);
    fs::remove_file(sandbox.project().join("got")).expect("removed");
    sandbox.program("sh").args(&["-c", &line]).run().ok();
    // The shell takes the last line's end away.
    assert_eq!(got().as_deref(), Some(first.trim_end()));
}

#[test]
fn a_flag_that_a_cli_no_longer_takes_is_replaced_and_named_once() {
    let sandbox = Sandbox::with_clis(&[("codex", CODEX)]);
    sandbox.config(
        "models:\n  gpt-6: { backend: codex }\nbackends:\n  codex: { command: codex exec --full-auto }\n",
    );
    let spawn = |id: &str| {
        sandbox.plan(id, PLAN);
        sandbox.on_machine("dispatch-spawn", &[id, "--model", "gpt-6"]).run()
    };
    spawn("x").shows(str![[r#"
exit 0
codex no longer accepts --full-auto; using -s workspace-write instead
x (Title, 2 items) started with gpt-6. Tell the user and stop; news wakes you.
"#]]);
    spawn("y").shows(str![[r#"
exit 0
y (Title, 2 items) started with gpt-6. Tell the user and stop; news wakes you.
"#]]);
    let calls = wait_until("both call codex", || {
        let calls = fs::read_to_string(sandbox.top().join("calls")).ok()?;
        (calls.lines().filter(|call| call.starts_with("codex exec")).count() == 2).then_some(calls)
    });
    assert!(calls.contains("-s workspace-write") && !calls.contains("--full-auto"), "{calls}");
}

#[test]
fn access_is_not_promised_where_the_configs_command_decides_it() {
    let sandbox = ready();
    sandbox.run("dispatch-spawn", &["x", "--model", "idle", "--access", "read"]).shows(str![[r#"
exit 65
! dispatch-spawn: idle has a `command:`, so its flags decide access
!   backends.idle.command of the config
!   next: omit --access, or change the flags there
"#]]);
    assert!(!sandbox.task("x", "record.yaml").exists());
}

#[test]
fn a_plan_with_a_zero_byte_is_refused_before_the_id_is_taken() {
    let sandbox = ready();
    let spawn = sandbox.call("dispatch-spawn", &["y", "--plan", "-"]);
    spawn.input("# Y\n- [ ] a\0b\n").run().shows(str![[r#"
exit 65
! dispatch-spawn: the plan holds a zero byte
!   standard input, line 2
!   next: take it out and call again; no program can be given one
"#]]);
    assert!(!sandbox.task("y", "").exists());
}

#[test]
fn session_id_that_is_an_option_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", "exit 0")]);
    for id in ["--settings={}", "-cmcp_servers=x", "a b", "a\\nb"] {
        let task = format!("x{}", id.len());
        sandbox.plan(&task, PLAN);
        sandbox.call("dispatch-spawn", &[&task, "--model", "ends"]).run().ok();
        sandbox.wait_for_state(&task, "incomplete");
        sandbox.write(&task, "attempts/1/session", format!("backend: ends\nid: \"{id}\"\n"));
        let resume = sandbox.call("dispatch-spawn", &[&task, "--resume"]).run();
        assert_eq!(resume.code, Some(65), "{id}: {}{}", resume.out, resume.err);
        assert!(resume.err.contains("the session id has a wrong form"), "{id}: {}", resume.err);
    }
}
