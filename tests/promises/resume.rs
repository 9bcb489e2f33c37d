//! The remaining items of a task are tried again, skipped, or given to another worker.

use std::fs;

use snapbox::str;

use crate::support::clis::{CLAUDE, CODEX, CODEX_LOGGED_OUT};
use crate::support::process::kill_and_wait;
use crate::support::text::same;
use crate::support::{PLAN, Sandbox, binary, wait_until};

/// The helper's path, as a worker's script calls it.
fn helper() -> String {
    binary("dispatch-worker").display().to_string()
}

/// A project with a worker that fails at the second item, and a worker that does the rest.
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
    sandbox.wait_for_state("x", "failed: item 2: \"no compiler\"");
    sandbox
}

#[test]
fn resume_reopens_a_failed_item() {
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
fn skipped_item_is_ticked_with_a_reason() {
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
fn task_with_all_remaining_items_skipped_is_done() {
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
fn skip_of_a_missing_item_is_refused() {
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
    assert_eq!(sandbox.state("x"), "failed: item 2: \"no compiler\"");
    sandbox.run("dispatch-spawn", &["y", "--skip", "1"]).shows(str![[r#"
exit 64
! dispatch-spawn: the following required arguments were not provided: --resume
!   next: see dispatch-spawn --help
"#]]);
}

#[test]
fn skip_of_all_items_of_a_waiting_task_is_refused() {
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
fn another_worker_continues_with_the_ticked_items() {
    let sandbox = failed();
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--model", "does"]);
    sandbox.wait_for_state("x", "done");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains("done, does,"), "{shown}");
    assert!(sandbox.read("x", "plan.md").contains("- [x] One\n- [x] Two\n  no compiler\n"));
}

#[test]
fn resume_with_an_unknown_worker_changes_nothing() {
    let sandbox = failed();
    let before = sandbox.read("x", "record.yaml");
    let ran = sandbox.run("dispatch-spawn", &["x", "--resume", "--model", "nobody"]);
    assert_eq!(ran.code, Some(65), "{ran:?}");
    assert_eq!(sandbox.read("x", "record.yaml"), before);
    assert_eq!(sandbox.state("x"), "failed: item 2: \"no compiler\"");
}

/// A Claude Code that names its session, and resumes it unless the session is `forgotten`. Keeps
/// its arguments and its input.
const KEEPER: &str = r#"
case "$*" in
--version) echo '2.1.332 (Claude Code)'; exit ;;
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
    wait_until("the session is known", || {
        sandbox.task("x", "attempts/1/session").exists().then_some(())
    });
    wait_until("the CLI was called", || fs::remove_file(sandbox.task("x", "got")).ok());
    sandbox.worker("x", &["tick", "1"]).run().ok();
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.on_machine("dispatch-spawn", &["x", "--resume"]).run().ok();
    wait_until("the CLI is called again", || sandbox.task("x", "got").exists().then_some(()));
    sandbox
}

#[test]
fn resumed_session_gets_a_short_prompt() {
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
fn forgotten_session_is_replaced_with_the_whole_prompt() {
    let sandbox = keeper("forgotten");
    let called = sandbox.read("x", "called");
    assert!(called.contains("--session-id") && !called.contains("--resume"), "{called}");
    let got = sandbox.read("x", "got");
    assert!(got.starts_with("You are the worker of one task, 'x'."), "{got}");
    assert!(got.contains("An earlier worker began this task and stopped."), "{got}");
    assert_eq!(sandbox.state("x"), "running");
}

#[test]
fn new_task_of_an_old_name_inherits_no_session() {
    let sandbox = keeper("known");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    fs::remove_dir_all(sandbox.task("x", "")).expect("removed");
    sandbox.plan("x", PLAN);
    sandbox.on_machine("dispatch-spawn", &["x", "--model", "opus"]).run().ok();
    wait_until("the CLI is called", || sandbox.task("x", "got").exists().then_some(()));
    assert!(!sandbox.read("x", "called").contains("--resume"));
}

#[test]
fn task_with_all_items_ticked_is_done_without_a_finish_marker() {
    let (sandbox, helper) = (Sandbox::new(), helper());
    sandbox.workers(&[("ticks", &format!("{helper} tick 1; {helper} tick 2"))]);
    sandbox.dispatch("x", "ticks");
    sandbox.wait_for_state("x", "done: finish marker missing");
}

#[test]
fn finish_marker_with_unticked_items_is_incomplete() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("hurries", "touch .dispatch/tasks/x/ipc/.done")]);
    sandbox.dispatch("x", "hurries");
    sandbox.wait_for_state("x", "incomplete: finish marker set with items unticked");
}

#[test]
fn dry_run_prints_the_command_as_text_or_json() {
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
    // The printed line has the same words and runs in a shell.
    let line = sandbox.on_machine("dispatch-spawn", &spawn).run().ok();
    for word in words {
        assert!(line.contains(word.as_str().expect("a word")), "{line}");
    }
    assert!(!sandbox.task("x", "record.yaml").exists());
}

#[test]
fn dry_run_line_runs_the_same_command() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("keeps", "printf '%s' \"$1\" >got.tmp && mv got.tmp got")]);
    sandbox.plan("x", "# 'One' \"two\" $(three) `four`\n- [ ] \\five\n");
    let line = sandbox.ok("dispatch-spawn", &["x", "--model", "keeps", "--dry-run"]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "keeps"]);
    let got = || fs::read_to_string(sandbox.project().join("got")).ok();
    let first = wait_until("the worker keeps its prompt", got);
    fs::remove_file(sandbox.project().join("got")).expect("removed");
    sandbox.program("sh").args(&["-c", &line]).run().ok();
    // The shell strips the final newline.
    assert_eq!(got().as_deref(), Some(first.trim_end()));
}

/// A first worker that cannot log in is refused at once; the CLI is asked again after such a failure.
#[test]
fn cli_that_is_not_logged_in_is_named_before_its_first_worker() {
    let logged_out = format!("{CODEX_LOGGED_OUT}\n").replace(
        "*) exit 1",
        "exec*) echo '{\"type\":\"error\",\"message\":\"unexpected status 401 Unauthorized\"}'; exit 1 ;;\n*) exit 1",
    );
    let sandbox = Sandbox::with_clis(&[("codex", &logged_out), ("claude", CLAUDE)]);
    sandbox.config(
        "models:\n  gpt-6: { backend: codex }\n  opus: { backend: claude }\nbackends:\n  codex: { access: full }\n  claude: { access: full }\n",
    );
    let spawn = |id: &str, model: &str| {
        sandbox.plan(id, PLAN);
        sandbox.on_machine("dispatch-spawn", &[id, "--model", model]).run()
    };
    let refused = || {
        spawn("x", "gpt-6").shows(str![[r#"
exit 69
! dispatch-spawn: codex is not logged in
!   `codex login status` says so
!   next: codex login, or take opus; if it needs no login, call again
"#]]);
    };
    refused();
    assert!(!sandbox.task("x", "record.yaml").exists());
    spawn("y", "opus").ok();
    // The question is asked once: its answer is only a hint.
    spawn("z", "gpt-6").ok();
    sandbox.wait_for_state("z", "failed: not logged in: \"unexpected status 401 Unauthorized\"");
    refused();
    // A model of a provider of the person's own needs no login of Codex.
    fs::remove_dir_all(sandbox.home().join(".dispatch/asked")).expect("there");
    let settings = sandbox.home().join(".codex/config.toml");
    fs::create_dir_all(settings.parent().expect("a directory")).expect("made");
    fs::write(settings, "model_provider = \"mine\"\n").expect("written");
    spawn("x", "gpt-6").ok();
}

#[test]
fn removed_cli_flag_is_replaced_and_named_once() {
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
    let calls = wait_until("both tasks call codex", || {
        let calls = fs::read_to_string(sandbox.top().join("calls")).ok()?;
        (calls.lines().filter(|call| call.starts_with("codex exec")).count() == 2).then_some(calls)
    });
    assert!(calls.contains("-s workspace-write") && !calls.contains("--full-auto"), "{calls}");
}

#[test]
fn plan_with_a_zero_byte_is_refused_before_the_id_is_taken() {
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

/// The first attempt asks, ticks, finishes too early, leaves its context and fails; the second
/// keeps its prompt.
#[test]
fn resumed_worker_gets_everything_of_the_last_attempt() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", "exec sleep 1000")]);
    sandbox.plan("x", "# Title\n- [ ] First\n- [ ] Second\n- [ ] Third\n\n## Context\nMind it.\n");
    sandbox.ok("dispatch-spawn", &["x", "--model", "works"]);
    let question = sandbox.worker("x", &["ask", "Which one?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(question.code, Some(75));
    sandbox.worker("x", &["tick", "1", "--note", "easy"]).run().ok();
    sandbox.worker("x", &["block", "2", "Still unclear."]).run().ok();
    fs::write(sandbox.task("x", "context.md"), "The second one is in b.rs.\n").expect("written");
    fs::write(sandbox.task("x", "ipc/.done"), "Too early.\n").expect("written");
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked: item 2: \"Still unclear.\"");

    sandbox.script("works", "printf '%s' \"$1\" >got; exec sleep 1000\n");
    sandbox.run("dispatch-monitor", &["--answer", "x", "The second one."]).shows(str![[r#"
exit 0
x/001 answered, its worker had ended and was resumed
"#]]);
    assert!(!sandbox.task("x", "ipc/.done").exists());
    assert_eq!(sandbox.read("x", "attempts/1/summary"), "Too early.");
    same(
        &sandbox.read("x", "plan.md"),
        str![[r#"
# Title
- [x] First
  easy
- [ ] Second
  Still unclear.
- [ ] Third

## Context
Mind it.

"#]],
    );
    assert_eq!(sandbox.state("x"), "running");
    let got = wait_until("the worker has its prompt", || {
        let got = fs::read_to_string(sandbox.project().join("got")).ok()?;
        got.ends_with("The second one.\n").then_some(got)
    });
    let first = sandbox.read("x", "attempts/1/prompt.md");
    same(
        got.strip_prefix(first.trim_end()).expect("the whole first prompt"),
        str![[r#"


# Earlier attempts

An earlier worker began this task and stopped. Read the plan file again: items that are ticked are done; continue with the first that is not. '[?]' and '[!]' items are open again. Numbers are those of that file now.

What it left for you:

The second one is in b.rs.

It asked (001): Which one?
The person answered: The second one.

"#]],
    );
}

/// Nobody waits for the answer to a question of an ended attempt.
#[test]
fn question_of_an_earlier_attempt_is_closed() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("fails", "exit 7")]);
    sandbox.plan("x", PLAN);
    sandbox.ok("dispatch-spawn", &["x", "--model", "fails"]);
    sandbox.wait_for_state("x", "failed: exit code 7");
    let ask = || sandbox.worker("x", &["ask", "Which one?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ask().code, Some(75));
    sandbox.script("fails", "exec sleep 1000\n");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    assert_eq!(sandbox.state("x"), "running");
    sandbox.run("dispatch-monitor", &["--answer", "x/001", "This."]).shows(str![[r#"
exit 65
! dispatch-monitor: nobody waits for an answer to x/001 any more
!   next: tell the worker with dispatch-reconcile note x -
"#]]);
    // A repeated text from the new worker is a new question.
    assert_eq!(ask().code, Some(75));
    assert_eq!(sandbox.state("x"), "asking");
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/002 answered, its worker continues
"#]]);
}
