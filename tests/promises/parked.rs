//! A task whose worker reached a rate limit resumes when the limit resets.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::time::{SystemTime, UNIX_EPOCH};

use snapbox::str;

use crate::support::process::runs;
use crate::support::text::names;
use crate::support::{Call, DEADLINE, Host, PLAN, Ran, Sandbox, wait_until};

/// Claude Code as recorded at its rate limit, with the first item done. The file `resets` holds the
/// reset time; without it the message names none. Without the file `limited` the worker does the
/// second item.
const CLAUDE: &str = r#"echo "$*" >>args
cat >/dev/null
said="You've hit your 5-hour limit · resets 2:13pm (UTC)"
test -e resets || said='API Error: Request rejected (429)'
echo '{"type":"system","subtype":"init","session_id":"s1"}'
if test -e limited; then
    printf '# Title\n\n- [x] First\n- [ ] Second\n' >"$DISPATCH_TASK_DIR/plan.md"
    test ! -e resets || echo '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":'$(cat resets)'}}'
    echo '{"type":"assistant","message":{"content":[{"type":"text","text":"'"$said"'"}]},"error":"rate_limit"}'
    echo '{"type":"result","subtype":"success","is_error":true,"result":"'"$said"'"}'
    exit 1
fi
cat "$DISPATCH_TASK_DIR/plan.md" >found
printf '# Title\n\n- [x] First\n- [x] Second\n' >"$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done"
echo '{"type":"result","subtype":"success","is_error":false,"result":"done"}'"#;

/// A project with a task to dispatch, whose worker is at a limit that resets in `resets` seconds.
fn limited(resets: Option<u64>) -> Sandbox {
    let sandbox = Sandbox::with_clis(&[("claude", CLAUDE)]);
    sandbox
        .config("default: opus\nbackends: { claude: {} }\nmodels: { opus: { backend: claude } }\n");
    sandbox.plan("x", PLAN);
    fs::write(sandbox.project().join("limited"), "").expect("written");
    if let Some(seconds) = resets {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        fs::write(sandbox.project().join("resets"), (now + seconds).to_string()).expect("written");
    }
    sandbox
}

fn end_limit(sandbox: &Sandbox) {
    fs::remove_file(sandbox.project().join("limited")).expect("removed");
}

fn spawn(sandbox: &Sandbox) -> Call {
    sandbox.on_machine("dispatch-spawn", &["x"])
}

fn resume(sandbox: &Sandbox) -> Ran {
    sandbox.on_machine("dispatch-spawn", &["x", "--resume"]).run()
}

/// Waits until the task is parked after so many attempts.
#[track_caller]
fn wait_until_parked(sandbox: &Sandbox, attempts: usize) {
    wait_until("the task is parked", || {
        let parked = sandbox.state("x").starts_with("parked: rate limit");
        (parked && names(&sandbox.task("x", "attempts")).len() == attempts).then_some(())
    });
}

fn wait_for_end(sandbox: &Sandbox, attempt: u32) {
    let exit = sandbox.task("x", &format!("attempts/{attempt}/exit"));
    wait_until("the end is recorded", || exit.exists().then_some(()));
}

const PARKED: &str =
    "parked: rate limit, until TIME: \"You've hit your 5-hour limit · resets 2:13pm (UTC)\"";

#[test]
fn parked_task_resumes_its_session_when_the_limit_resets() {
    let sandbox = limited(Some(1));
    spawn(&sandbox).run().ok();
    sandbox.wait_for_state("x", PARKED);
    end_limit(&sandbox);
    sandbox.wait_for_state("x", "done");
    let args = fs::read_to_string(sandbox.project().join("args")).expect("noted");
    let args: Vec<&str> = args.lines().collect();
    assert!(args[0].contains(" --session-id "), "{args:?}");
    assert!(args[1].ends_with(" --resume s1"), "{args:?}");
    wait_for_end(&sandbox, 2);
    // Ticked items stay ticked.
    let found = fs::read_to_string(sandbox.project().join("found")).expect("noted");
    assert_eq!(found, "# Title\n\n- [x] First\n- [ ] Second\n");
    sandbox.on_machine("dispatch-reconcile", &["show", "x"]).run().shows(str![[r#"
exit 0
x — Title
done, opus, AGE
write: claude's own rules
1. [x] First
2. [x] Second
attempt 1: exit code 1 at TIME, log STATE/x/attempts/1/log
attempt 2: exit code 0 at TIME, log STATE/x/attempts/2/log
output: "done"
"#]]);
}

#[test]
fn parked_task_shows_the_reset_time() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    sandbox.wait_for_state("x", PARKED);
    wait_for_end(&sandbox, 1);
    sandbox.on_machine("dispatch-reconcile", &["show", "x"]).run().shows(str![[r#"
exit 0
x — Title
parked (rate limit, until TIME: "You've hit your 5-hour limit · resets 2:13pm (UTC)"), opus, AGE
write: claude's own rules
1. [x] First
2. [ ] Second
attempt 1: exit code 1 at TIME, log STATE/x/attempts/1/log
output: "You've hit your 5-hour limit · resets 2:13pm (UTC)"
"#]]);
    sandbox.on_machine("dispatch-reconcile", &["status"]).run().shows(str![[r#"
exit 0
x parked 1/2 AGE opus — rate limit, until TIME: "You've hit your 5-hour limit ·…
"#]]);
}

#[test]
fn limit_without_a_reset_time_is_retried_after_a_minute() {
    let sandbox = limited(None);
    spawn(&sandbox).run().ok();
    let said = "parked: rate limit, tries again at TIME: \"API Error: Request rejected (429)\"";
    sandbox.wait_for_state("x", said);
    let parked: serde_json::Value = serde_json::from_str(&sandbox.read("x", "wait")).expect("JSON");
    let until = parked["parked"]["until"].as_u64().expect("a time");
    wait_for_end(&sandbox, 1);
    let ended = fs::metadata(sandbox.task("x", "attempts/1/exit")).and_then(|it| it.modified());
    let ended = ended.expect("a time").duration_since(UNIX_EPOCH).expect("a time").as_secs();
    assert!((59..=60).contains(&(until - ended)), "{until} {ended}");
}

#[test]
fn endless_limit_fails_the_task() {
    let sandbox = limited(None);
    spawn(&sandbox).env("DISPATCH_PARK_MS", "0").run().ok();
    sandbox.wait_for_state("x", "failed: rate limit: \"API Error: Request rejected (429)\"");
    sandbox.on_machine("dispatch-monitor", &["x"]).run().shows(str![[r#"
exit 0
#ID x failed (1/2, AGE): rate limit: "API Error: Request rejected (429)" → tell the user and ask; BIN/dispatch-spawn x --resume tries again, --model NAME with another
"#]]);
    assert_eq!(names(&sandbox.task("x", "attempts")).len(), 9);
}

#[test]
fn parked_task_is_news_once_and_keeps_the_monitor_waiting() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let said = sandbox.on_machine("dispatch-monitor", &["x"]).run().ok();
    assert!(said.contains("x parked (1/2): rate limit, until "), "{said}");
    let mut monitor = sandbox.on_machine("dispatch-monitor", &["x"]).start();
    monitor.until_it_watches();
    assert!(!monitor.has_ended());
    end_limit(&sandbox);
    resume(&sandbox).ok();
    let said = monitor.end();
    assert!(said.out.contains("x done (2/2"), "{said:?}");
}

/// A past reset time would retry the limit without a pause.
#[test]
fn passed_reset_time_is_ignored() {
    let sandbox = limited(None);
    fs::write(sandbox.project().join("resets"), "1000000000").expect("written");
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    assert!(sandbox.state("x").contains("tries again at"));
}

#[test]
fn resume_starts_a_parked_task_at_once() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let supervisor = sandbox.supervisor_of("x");
    resume(&sandbox).shows(str![[r#"
exit 0
x started with opus. Tell the user and stop; news wakes you.
"#]]);
    // The limit has not reset, so the task is parked again.
    wait_until_parked(&sandbox, 2);
    assert_eq!(sandbox.supervisor_of("x"), supervisor);
    end_limit(&sandbox);
    resume(&sandbox).ok();
    sandbox.wait_for_state("x", "done");
}

/// The news of an end wakes the host, and is delivered only once.
#[test]
fn parking_task_never_looks_ended() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let states = scope.spawn(|| {
            let mut states = BTreeSet::new();
            let begin = Instant::now();
            while !over.load(Ordering::Relaxed) && begin.elapsed() < DEADLINE {
                states.insert(sandbox.state("x"));
            }
            states
        });
        for attempts in 1..8 {
            wait_until_parked(&sandbox, attempts);
            resume(&sandbox).ok();
        }
        wait_until_parked(&sandbox, 8);
        over.store(true, Ordering::Relaxed);
        let states = states.join().expect("the observer has ended");
        assert!(states.iter().all(|it| it == PARKED || it == "running"), "{states:?}");
    });
}

#[test]
fn resume_starts_a_stopped_parked_task_at_once() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let supervisor = sandbox.supervisor_of("x");
    sandbox.run("dispatch-reconcile", &["stop", "x"]).shows(str![[r#"
exit 0
x stopped
"#]]);
    assert!(!runs(supervisor));
    end_limit(&sandbox);
    resume(&sandbox).shows(str![[r#"
exit 0
x started with opus. Tell the user and stop; news wakes you.
"#]]);
    sandbox.wait_for_state("x", "done");
}

#[test]
fn parked_task_survives_the_death_of_its_supervisor() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    sandbox.kill_supervisors(&["x"]);
    let before = sandbox.supervisor_of("x");
    sandbox.on_machine("dispatch-reconcile", &["status"]).run().ok();
    let after = sandbox.supervisor_of("x");
    assert!(after != before && runs(after));
    assert_eq!(sandbox.state("x"), PARKED);
    assert_eq!(names(&sandbox.task("x", "attempts")), ["1"]);

    // A resume by the person needs no running supervisor.
    sandbox.kill_supervisors(&["x"]);
    end_limit(&sandbox);
    resume(&sandbox).ok();
    sandbox.wait_for_state("x", "done");
}

#[test]
fn parked_task_can_resume_with_another_worker() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let other = sandbox.script("other", "echo other >took_over; exec sleep 1000\n");
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    let config =
        config.replace("{ claude: {} }", &format!("{{ claude: {{}}, o: {{ command: {other} }} }}"));
    sandbox.config(&config.replace("models: {", "models: { other: { backend: o }, "));
    let resume = sandbox.on_machine("dispatch-spawn", &["x", "--resume", "--model", "other"]);
    resume.run().shows(str![[r#"
exit 0
x started with other. Tell the user and stop; news wakes you.
"#]]);
    wait_until("the other worker runs", || {
        sandbox.project().join("took_over").exists().then_some(())
    });
}

#[test]
fn parked_task_can_resume_as_an_agent() {
    let sandbox = limited(Some(9000));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let supervisor = sandbox.supervisor_of("x");
    let host = Host::new(&sandbox);
    sandbox.let_agents_read();
    let resume = sandbox.on_machine("dispatch-spawn", &["x", "--resume", "--model", "opus"]);
    host.calls(resume).run().shows(str![[r#"
exit 0
x, which ends with this session: make this Agent call now: {"description":"dispatch x","model":"opus","prompt":"Read STATE/x/attempts/2/prompt.md and do what it says, to its end.","run_in_background":true,"subagent_type":"general-purpose"}
"#]]);
    wait_until("the supervisor has ended", || (!runs(supervisor)).then_some(()));
    assert_eq!(sandbox.state("x"), "running");
}

/// Other tasks may run while this one is parked.
#[test]
fn parked_task_frees_its_place_in_the_queue() {
    let sandbox = limited(Some(9000));
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    sandbox.config(&format!("max_workers: 1\n{config}"));
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    let queue = || names(&sandbox.home().join(".dispatch/queue"));
    wait_until("the place in the queue is free", || (queue() == ["lock"]).then_some(()));
    end_limit(&sandbox);
    sandbox.plan("y", PLAN);
    sandbox.on_machine("dispatch-spawn", &["y"]).run().ok();
    sandbox.wait_for_state("y", "done");
}

#[test]
fn worker_at_a_limit_after_a_failed_check_is_parked() {
    let sandbox = limited(Some(9000));
    sandbox.add_cli("claude", &CLAUDE.replace("[ ] Second", "[x] Second"));
    end_limit(&sandbox);
    let check = "test -e fixed || { : >limited; false; }";
    let options = ["x", "--access", "full", "--check", check];
    sandbox.on_machine("dispatch-spawn", &options).run().ok();
    wait_until_parked(&sandbox, 2);
    end_limit(&sandbox);
    fs::write(sandbox.project().join("fixed"), "").expect("written");
    resume(&sandbox).ok();
    sandbox.wait_for_state("x", "done");
    assert!(sandbox.read("x", "attempts/3/prompt.md").contains("# A check failed"));
}

/// Does the second item as Codex would.
const CODEX: &str = r#"cat >/dev/null; echo "$*" >>codex
printf '# Title\n\n- [x] First\n- [x] Second\n' >"$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done""#;

/// A project like [`limited`], in which `gpt` is the fallback of `opus`, with more lines of the config.
fn with_fallback(resets: Option<u64>, codex: &str, more: &str) -> Sandbox {
    let sandbox = limited(resets);
    sandbox.add_cli("codex", codex);
    sandbox.config(&format!(
        "default: opus\nmodels:\n  opus: {{ backend: claude, fallback: gpt }}\n  \
         gpt: {{ backend: codex, fallback: opus }}\n{more}"
    ));
    sandbox
}

#[test]
fn fallback_continues_a_task_whose_limit_lasts() {
    for (resets, more) in [(None, ""), (Some(7200), ""), (Some(60), "wait_for_limit: 0\n")] {
        let sandbox = with_fallback(resets, CODEX, more);
        spawn(&sandbox).run().ok();
        sandbox.wait_for_state("x", "done");
        assert_eq!(names(&sandbox.task("x", "attempts")), ["1", "2"]);
        let said = match resets {
            None => "API Error: Request rejected (429)",
            Some(_) => "You've hit your 5-hour limit \u{b7} resets 2:13pm (UTC)",
        };
        let told = sandbox.read("x", "tells/001");
        assert_eq!(told, format!("opus is at its limit ({said}): gpt continues"));
        let prompt = sandbox.read("x", "attempts/2/prompt.md");
        assert!(prompt.contains("# Earlier attempts"), "{prompt}");
        let record = sandbox.read("x", "record.yaml");
        assert!(
            record.contains("name: gpt\n") && record.contains("limited:\n- opus\n"),
            "{record}"
        );
        assert!(record.contains("access: write\n"), "{record}");
    }
}

#[test]
fn limit_that_ends_soon_is_waited_for() {
    let sandbox = with_fallback(Some(600), CODEX, "");
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 1);
    assert!(sandbox.state("x").starts_with("parked: rate limit, until "));
}

#[test]
fn overload_goes_to_the_fallback_and_fails_without_one() {
    let overloaded =
        CLAUDE.replace("API Error: Request rejected (429)", "API Error: 529 Overloaded");
    let overloaded = overloaded.replace(r#","error":"rate_limit"}"#, "}");
    for (fallback, state) in
        [(true, "done"), (false, "failed: error: \"API Error: 529 Overloaded\"")]
    {
        let sandbox = with_fallback(None, CODEX, "");
        sandbox.add_cli("claude", &overloaded);
        if !fallback {
            sandbox.config("default: opus\nmodels: { opus: { backend: claude } }\n");
        }
        spawn(&sandbox).run().ok();
        sandbox.wait_for_state("x", state);
    }
}

#[test]
fn fallback_at_its_own_limit_or_without_its_program_leaves_the_task_parked() {
    let at_limit =
        "cat >/dev/null; echo \"ERROR: You've hit your usage limit. Try again later.\"; exit 1";
    let sandbox = with_fallback(None, at_limit, "");
    spawn(&sandbox).run().ok();
    wait_until_parked(&sandbox, 2);
    assert!(sandbox.read("x", "record.yaml").contains("name: gpt\n"));
    for (resets, state) in [(None, "parked: rate limit, tries again at "), (Some(7200), PARKED)] {
        let sandbox = with_fallback(resets, CODEX, "");
        sandbox.remove_cli("codex");
        spawn(&sandbox).run().ok();
        wait_until_parked(&sandbox, 1);
        let told = sandbox.read("x", "tells/001");
        assert_eq!(
            told,
            "opus is at its limit, and gpt cannot continue: the CLI of backend 'codex' is not installed"
        );
        assert!(sandbox.read("x", "record.yaml").contains("name: opus\n"));
        assert!(sandbox.state("x").starts_with(state.split("TIME").next().expect("words")));
        let wait: serde_json::Value =
            serde_json::from_str(&sandbox.read("x", "wait")).expect("JSON");
        let until = wait["parked"]["until"].as_u64().expect("seconds");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let left = until.saturating_sub(now);
        assert_eq!(left > 3600, resets.is_some(), "{left}");
    }
}

#[test]
fn fallback_that_can_never_start_does_not_park_the_task_forever() {
    let sandbox = with_fallback(None, CODEX, "");
    sandbox.remove_cli("codex");
    spawn(&sandbox).env("DISPATCH_PARK_MS", "1").run().ok();
    sandbox.wait_for_state("x", "failed: rate limit: \"API Error: Request rejected (429)\"");
}

#[test]
fn fallback_takes_over_after_the_death_of_the_supervisor() {
    let sandbox = with_fallback(None, CODEX, "");
    spawn(&sandbox).crash_at("supervisor:ended").run().ok();
    wait_for_end(&sandbox, 1);
    wait_until("the task is done", || {
        sandbox.on_machine("dispatch-reconcile", &["status"]).run().ok();
        (sandbox.state("x") == "done").then_some(())
    });
}
