//! At most `max_workers` workers run at once, in the order in which they were dispatched. A task whose
//! budget is used up asks the person.

use std::fs;

use snapbox::str;

use crate::sequence::WORKS;
use crate::support::process::{kill_and_wait, runs};
use crate::support::text::names;
use crate::support::{Call, Host, PLAN, Ran, Sandbox, wait_until};
use crate::worktrees::until_over;

fn limited(limit: usize) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("works", WORKS)]);
    set_limit(&sandbox, limit);
    sandbox
}

fn set_limit(sandbox: &Sandbox, limit: usize) {
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    let rest = config.lines().filter(|line| !line.starts_with("max_workers"));
    let rest: String = rest.flat_map(|line| [line, "\n"]).collect();
    sandbox.config(&format!("max_workers: {limit}\n{rest}"));
}

fn tickets(sandbox: &Sandbox) -> Vec<String> {
    let mut names = names(&sandbox.home().join(".dispatch/queue"));
    names.retain(|name| name != "lock");
    names
}

#[test]
fn queue_respects_max_workers_and_dispatch_order() {
    let sandbox = limited(2);
    let ids = ["f", "e", "d", "c", "b", "a"];
    ids.iter().for_each(|id| sandbox.dispatch(id, "works"));
    sandbox.wait_for_log(&["start f", "start e"]);
    for id in &ids[2..] {
        assert_eq!(sandbox.state(id), "queued: in the queue: max_workers is 2");
    }
    assert_eq!(tickets(&sandbox), ["1", "2", "3", "4", "5", "6"]);
    let mut log = vec!["start f".to_string(), "start e".into()];
    // The first two end in reverse order.
    for (ends, follows) in [("e", "d"), ("f", "c"), ("d", "b"), ("c", "a"), ("b", ""), ("a", "")] {
        sandbox.let_end(ends);
        log.push(format!("end {ends}"));
        if !follows.is_empty() {
            log.push(format!("start {follows}"));
        }
        sandbox.wait_for_log(&log.iter().map(String::as_str).collect::<Vec<_>>());
    }
    wait_until("the queue is empty", || tickets(&sandbox).is_empty().then_some(()));
}

#[test]
fn resumed_task_keeps_its_place_in_the_queue() {
    let sandbox = limited(1);
    sandbox.dispatch("a", "works");
    sandbox.plan("b", PLAN);
    sandbox.run("dispatch-spawn", &["b", "--model", "works"]).shows(str![[r#"
exit 0
b (Title, 2 items) waits in the queue: max_workers is 1; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    sandbox.dispatch("c", "works");
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
a running 0/2 AGE works — item 1: First
b queued 0/2 AGE works — in the queue: max_workers is 1
c queued 0/2 AGE works — in the queue: max_workers is 1
"#]]);
    sandbox.run("dispatch-spawn", &["c", "--resume"]).shows(str![[r#"
exit 0
c waits in the queue: max_workers is 1; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    // A stopped task frees its place.
    sandbox.ok("dispatch-reconcile", &["stop", "b"]);
    assert_eq!(tickets(&sandbox), ["1", "3"]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start c"]);
}

#[test]
fn limit_counts_workers_of_all_projects() {
    let sandbox = limited(1);
    sandbox.dispatch("a", "works");
    let other = sandbox.home().join("other");
    fs::create_dir_all(&other).expect("made");
    let spawn = sandbox.call("dispatch-spawn", &["b", "--model", "works", "--plan", "-"]);
    spawn.within(&other).input(PLAN).run().shows(str![[r#"
exit 0
b (Title, 2 items) waits in the queue: max_workers is 1; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    sandbox.let_end("a");
    sandbox.wait_for_log(&["start a", "end a", "start b"]);
}

#[test]
fn dead_ticket_holder_is_skipped() {
    let sandbox = limited(1);
    for id in ["a", "b", "c", "d"] {
        sandbox.dispatch(id, "works");
    }
    kill_and_wait(sandbox.supervisor_of("c"));
    kill_and_wait(sandbox.supervisor_of("a"));
    kill_and_wait(sandbox.worker_of("a", 1));
    sandbox.wait_for_log(&["start a", "start b"]);
    sandbox.let_end("b");
    sandbox.wait_for_log(&["start a", "start b", "end b", "start d"]);
    wait_until("dead tickets are removed", || (tickets(&sandbox) == ["4"]).then_some(()));
}

#[test]
fn queue_order_survives_the_death_of_all_supervisors() {
    let sandbox = limited(2);
    // The dispatch order differs from the order of names.
    let ids = ["e", "d", "c", "b", "a"];
    ids.iter().for_each(|id| sandbox.dispatch(id, "works"));
    sandbox.wait_for_log(&["start e", "start d"]);
    sandbox.kill_supervisors(&ids);
    kill_and_wait(sandbox.worker_of("e", 1));
    kill_and_wait(sandbox.worker_of("d", 1));
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
repaired: d and e marked lost; c and 2 more restarted
d lost 0/2 AGE works — the worker disappeared → dispatch-spawn d --resume
e lost 0/2 AGE works — the worker disappeared → dispatch-spawn e --resume
b running 0/2 AGE works — item 1: First
c running 0/2 AGE works — item 1: First
a queued 0/2 AGE works — in the queue: max_workers is 2
"#]]);
    sandbox.wait_for_log(&["start e", "start d", "start c", "start b"]);
    assert_eq!(sandbox.state("a"), "queued: in the queue: max_workers is 2");
    // A lost task goes to the end of the queue.
    sandbox.run("dispatch-spawn", &["e", "--resume"]).shows(str![[r#"
exit 0
e waits in the queue: max_workers is 2; it starts by itself. Tell the user and stop; news wakes you.
"#]]);
    assert_eq!(sandbox.state("e"), "queued: in the queue: max_workers is 2");
    let mut log = sandbox.log();
    for (ends, follows) in [("c", "a"), ("b", "e")] {
        sandbox.let_end(ends);
        log.extend([format!("end {ends}"), format!("start {follows}")]);
        sandbox.wait_for_log(&log.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn queue_follows_a_raised_limit_and_survives_a_broken_config() {
    let sandbox = limited(1);
    for id in ["a", "b", "c"] {
        sandbox.dispatch(id, "works");
    }
    sandbox.wait_for_log(&["start a"]);
    set_limit(&sandbox, 2);
    sandbox.wait_for_log(&["start a", "start b"]);

    // An editor may empty or half-write the config before it writes it again.
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    sandbox.config("");
    sandbox.let_end("a");
    wait_until("the place of 'a' is free", || (tickets(&sandbox) == ["2", "3"]).then_some(()));
    assert_eq!(sandbox.state("c"), "queued: in the queue: max_workers is 2");
    sandbox.config("max_workers: [\n");
    assert_eq!(sandbox.state("c"), "queued: in the queue: max_workers is 2");
    sandbox.config(&config);
    sandbox.wait_for_log(&["start a", "start b", "end a", "start c"]);
}

#[test]
fn limit_of_zero_is_reported_and_ignored() {
    let sandbox = limited(0);
    sandbox.plan("a", PLAN);
    sandbox.run("dispatch-spawn", &["a", "--model", "works"]).shows(str![[r#"
exit 0
a (Title, 2 items) started with works. Tell the user and stop; news wakes you.
"#]]);
    sandbox.run("dispatch-config", &["check"]).shows(str![[r#"
exit 65
! dispatch-config: the config is wrong: 'max_workers' cannot be '0'
!   HOME/.dispatch/config.yaml, line 1, column 14: max_workers: 0
!        ^ expected a whole number above 0
"#]]);
}

/// The limits of a worker hold under its second supervisor too.
#[test]
fn waiting_monitor_replaces_a_killed_supervisor_with_its_limits() {
    let sandbox = limited(1);
    sandbox.plan("x", PLAN);
    sandbox.ok("dispatch-spawn", &["x", "--model", "idle"]);
    let first = sandbox.supervisor_of("x");
    let monitor = sandbox.call("dispatch-monitor", &["x"]).start();
    kill_and_wait(first);
    // The lock's text is written in two steps.
    let lock = sandbox.task("x", "run.lock");
    let pid = || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&lock).ok()?).ok();
    wait_until("another supervisor", || (pid()?["pid"] != first).then_some(()));
    wait_until("its ticket", || tickets(&sandbox).contains(&"0".to_owned()).then_some(()));
    sandbox.plan("y", PLAN);
    sandbox.ok("dispatch-spawn", &["y", "--model", "idle"]);
    assert_eq!(sandbox.state("y"), "queued: in the queue: max_workers is 1");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.wait_for_state("y", "running");
    monitor.end();
}

/// A worker that ticks an item, leaves a process and waits for the test's permission to do the rest.
const SLOW: &str = r#"echo start >>starts
sed -i 's/\[ \] First/[x] First/' "$DISPATCH_TASK_DIR/plan.md"
setsid sleep 1000 & echo $! >>left
until test -e go; do sleep 0.02; done
sed -i 's/\[ \]/[x]/' "$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done""#;

fn spawn(sandbox: &Sandbox, budget: &str) -> Call {
    let args = ["x", "--model", "slow", "--plan", "-", "--budget", budget];
    sandbox.call("dispatch-spawn", &args).input(PLAN)
}

fn slow() -> Sandbox {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("slow", SLOW), ("works", WORKS)]);
    sandbox
}

#[track_caller]
fn starts(sandbox: &Sandbox) -> usize {
    let text = fs::read_to_string(sandbox.project().join("starts")).unwrap_or_default();
    text.lines().count()
}

const TIME_IS_OVER: &str = "blocked: budget: AGE of 300ms used";

#[test]
fn task_whose_time_is_over_asks_and_continues_with_as_much_again() {
    let sandbox = slow();
    spawn(&sandbox, "300ms").run().ok();
    sandbox.dispatch_after("y", &["x"]);
    sandbox.wait_for_state("x", TIME_IS_OVER);
    until_over(&sandbox, "x");
    sandbox.wait_for_state("y", "held: x is blocked");
    for pid in fs::read_to_string(sandbox.project().join("left")).expect("noted").lines() {
        assert!(!runs(pid.parse().expect("a pid")), "{pid} runs");
    }
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x blocked (1/2, AGE): budget: AGE of 300ms used; next is item 2: Second → tell the user and ask whether to continue with as much again; BIN/dispatch-spawn x --resume does
"#]]);
    sandbox.run("dispatch-reconcile", &["status"]).shows(str![[r#"
exit 0
x blocked 1/2 AGE slow — budget: AGE of 300ms used → dispatch-spawn x --resume
y held 0/2 AGE works — x is blocked → dispatch-spawn y --resume
"#]]);
    // As much again, and no more.
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    wait_until("the second attempt is over", || {
        (starts(&sandbox) == 2 && sandbox.state("x") == TIME_IS_OVER).then_some(())
    });
    until_over(&sandbox, "x");
    fs::write(sandbox.project().join("go"), "").expect("written");
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--budget", "2h"]);
    sandbox.wait_for_state("x", "done");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains("of 120m used by ended workers\n"), "{shown}");
}

#[test]
fn budget_is_kept_by_the_successor_of_a_killed_supervisor() {
    for point in ["started", "ends", "reaped", "ended"] {
        let sandbox = slow();
        spawn(&sandbox, "300ms").crash_at(&format!("supervisor:{point}")).run();
        until_over(&sandbox, "x");
        wait_until(point, || {
            sandbox.ok("dispatch-reconcile", &["status"]);
            match sandbox.state("x").as_str() {
                TIME_IS_OVER => Some(()),
                // Nobody saw the end, so a person lets it continue.
                "lost: the worker disappeared" => {
                    sandbox.run("dispatch-spawn", &["x", "--resume"]);
                    None
                }
                _ => None,
            }
        });
        assert!(starts(&sandbox) <= 2, "{point}");
        for pid in fs::read_to_string(sandbox.project().join("left")).expect("noted").lines() {
            assert!(!runs(pid.parse().expect("a pid")), "{point}: {pid} runs");
        }
    }
}

/// Claude Code that uses $0.30 in each call, and says so at its end. With the file `go` it finishes.
const SPENDS: &str = r#"case "$*" in 'auth status'*) echo '{"loggedIn": true}'; exit ;; esac
echo "$*" >>args
cat >/dev/null
echo '{"type":"system","subtype":"init","session_id":"s1"}'
used='"model_usage_since_last_result":{"m":{"inputTokens":10,"outputTokens":10,"costUSD":0.3}}'
case "$*" in *0.200000*)
    echo '{"type":"result","subtype":"error_max_budget_usd","is_error":true,"errors":["Reached maximum budget ($0.2)"],'"$used"'}'
    exit 1 ;;
esac
if test -e go; then
    printf '# Title\n\n- [x] First\n- [x] Second\n' >"$DISPATCH_TASK_DIR/plan.md"
    : >"$DISPATCH_TASK_DIR/ipc/.done"
fi
echo '{"type":"result","subtype":"success","is_error":false,"result":"done",'"$used"'}'"#;

fn spends(config: &str) -> Sandbox {
    let sandbox = Sandbox::with_clis(&[("claude", SPENDS)]);
    sandbox.config(&format!("{config}default: opus\nmodels: {{ opus: {{ backend: claude }} }}\n"));
    sandbox.plan("x", PLAN);
    sandbox
}

/// Calls `dispatch-spawn x` and waits until the task's supervisor has ended.
#[track_caller]
fn spawn_spends(sandbox: &Sandbox, options: &[&str]) -> Ran {
    let args = [&["x", "--access", "full"], options].concat();
    let ran = sandbox.on_machine("dispatch-spawn", &args).run();
    until_over(sandbox, "x");
    ran
}

#[test]
fn claude_code_gets_what_is_left_of_the_money() {
    let sandbox = spends("budget: 9usd\nbackends: { claude: { budget: 0.5usd } }\n");
    spawn_spends(&sandbox, &[]).ok();
    assert_eq!(sandbox.state("x"), "incomplete");
    spawn_spends(&sandbox, &["--resume"]).ok();
    assert_eq!(sandbox.state("x"), "blocked: budget: 0.60 of 0.5usd used");
    fs::write(sandbox.project().join("go"), "").expect("written");
    spawn_spends(&sandbox, &["--resume"]).ok();
    assert_eq!(sandbox.state("x"), "done");
    let args = fs::read_to_string(sandbox.project().join("args")).expect("noted");
    let money = args.lines().map(|line| line.split("--max-budget-usd ").nth(1).expect("a limit"));
    let money: Vec<_> = money.map(|it| it.split(' ').next().expect("a number")).collect();
    assert_eq!(money, ["0.500000", "0.200000", "0.500000"]);
}

#[test]
fn failed_check_continues_only_within_the_budget() {
    let sandbox = spends("");
    fs::write(sandbox.project().join("go"), "").expect("written");
    spawn_spends(&sandbox, &["--check", "false", "--budget", "0.3usd"]).ok();
    assert_eq!(sandbox.state("x"), "blocked: budget: 0.30 of 0.3usd used");
    assert_eq!(names(&sandbox.task("x", "attempts")).len(), 2);
    let args = fs::read_to_string(sandbox.project().join("args")).expect("noted");
    assert_eq!(args.lines().count(), 1, "{args}");
    spawn_spends(&sandbox, &["--resume", "--budget", "1h"]).ok();
    assert_eq!(sandbox.state("x"), "failed: check: false: exit code 1");
    assert!(sandbox.read("x", "attempts/3/prompt.md").contains("# A check failed"));
}

#[test]
fn worker_is_stopped_when_it_reports_too_many_tokens() {
    let script = r#"echo '{"type":"step_finish","sessionID":"s1","part":{"reason":"tool-calls","tokens":{"input":600,"output":500},"cost":0.1}}'
exec sleep 1000"#;
    let sandbox = Sandbox::with_clis(&[("opencode", script)]);
    sandbox.config("default: m\nmodels: { m: { backend: opencode } }\n");
    sandbox.plan("x", PLAN);
    spawn_spends(&sandbox, &["--budget", "1ktok,1h"]).ok();
    assert_eq!(sandbox.state("x"), "blocked: budget: 1.1k of 1ktok used");
}

#[test]
fn budget_makes_a_process_of_the_hosts_agent() {
    let sandbox = spends("");
    let host = Host::new(&sandbox);
    host.calls(sandbox.on_machine("dispatch-spawn", &["x"])).run().ok();
    assert!(sandbox.read("x", "record.yaml").contains("\nroute: agent\n"));
    host.die();
    let resume = sandbox.on_machine("dispatch-spawn", &["x", "--resume", "--budget", "0.3usd"]);
    Host::new(&sandbox).calls(resume).run().ok();
    assert!(sandbox.read("x", "record.yaml").contains("\nroute: cli\n"));
    sandbox.wait_for_state("x", "blocked: budget: 0.30 of 0.3usd used");
}

#[test]
fn task_that_keeps_a_server_is_never_given_to_an_agent() {
    let sandbox = spends("");
    let host = Host::new(&sandbox);
    host.calls(sandbox.on_machine("dispatch-spawn", &["x", "--keep"])).run().ok();
    until_over(&sandbox, "x");
    let resume = sandbox.on_machine("dispatch-spawn", &["x", "--resume", "--model", "opus"]);
    host.calls(resume).run().ok();
    assert!(sandbox.read("x", "record.yaml").contains("\nroute: cli\n"));
    until_over(&sandbox, "x");
}

/// The reviewer is Claude Code too, with a prompt that asks for a verdict.
#[test]
fn reviewer_is_not_held_to_what_the_worker_left_of_the_budget() {
    if dispatch::process::find_program("bwrap".as_ref()).is_none() {
        return;
    }
    const REVIEWS: &str = r#"case "$*" in 'auth status'*) echo '{"loggedIn": true}'; exit ;; esac
word=
while read -r line; do
    case $line in *'VERDICT, then '*) word=${line#*VERDICT, then }; word=${word%%,*} ;; esac
done
echo "$*"
if test -n "$word"; then echo "VERDICT $word pass"; exit; fi
printf '# Title\n\n- [x] First\n- [x] Second\n' >"$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done"
echo '{"type":"result","subtype":"success","is_error":false,"result":"done","model_usage_since_last_result":{"m":{"inputTokens":10,"outputTokens":10,"costUSD":0.3}}}'"#;
    let sandbox = spends("");
    sandbox.add_cli("claude", REVIEWS);
    spawn_spends(&sandbox, &["--budget", "0.2usd", "--review", "opus"]).ok();
    let news = sandbox.ok("dispatch-monitor", &[]);
    assert!(
        news.contains(", reviewed by opus)"),
        "{news}{}",
        sandbox.read("x", "attempts/1/review/log")
    );
    assert!(sandbox.read("x", "attempts/1/log").contains("--max-budget-usd"));
    assert!(!sandbox.read("x", "attempts/1/review/log").contains("--max-budget-usd"));
}

#[test]
fn budget_that_nothing_measures_is_refused() {
    let sandbox = slow();
    spawn(&sandbox, "5usd").run().shows(str![[r#"
exit 69
! dispatch-spawn: a budget of 5usd cannot be kept
!   slow does not report the money that it uses
!   next: limit the time, which always works: --budget 90m
"#]]);
    spawn(&sandbox, "5 eur").run().shows(str![[r#"
exit 64
! dispatch-spawn: '5 eur' is no budget
!   next: write 5usd, 2Mtok or 90m, or several with commas
"#]]);
    let workers = fs::read_to_string(sandbox.config_path()).expect("a config");
    let agents = "backends: { claude: { route: agent } }\nmodels: { slow: { backend: claude } }\n";
    let refused = |config: &str| {
        sandbox.config(config);
        sandbox.call("dispatch-spawn", &["x", "--model", "slow", "--plan", "-"]).input(PLAN).run()
    };
    refused(&format!("budget: 2Mtok\n{workers}")).shows(str![[r#"
exit 69
! dispatch-spawn: a budget of 2Mtok cannot be kept
!   slow does not report the tokens that it uses
!   next: limit the time, which always works: --budget 90m
"#]]);
    refused(&format!("budgets: 90m\n{workers}")).shows(str![[r#"
exit 65
! dispatch-spawn: the config is wrong: unknown key 'budgets'
!   HOME/.dispatch/config.yaml, line 1, column 1: budgets: 90m
!        ^ did you mean 'budget'?
"#]]);
    refused(&format!("budget: 9usd\n{agents}")).shows(str![[r#"
exit 64
! dispatch-spawn: an agent of the host cannot have --budget
!   that needs a supervisor, and an agent has none
!   next: dispatch without it, or take 'route: agent' out of backend 'claude'
"#]]);
}
