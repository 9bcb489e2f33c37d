//! A worker outlives the process that started it, and its end is recorded.

use std::fs;
use std::os::unix::process::CommandExt;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use snapbox::str;

use crate::support::process::{
    all_of, ancestors, kill_and_wait, parent_group_session, runs, signal,
};
use crate::support::terminal::Terminal;
use crate::support::text::{names, same};
use crate::support::{Host, PLAN, Sandbox, binary, wait_until};

fn ready(workers: &[(&str, &str)]) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(workers);
    sandbox.plan("x", PLAN);
    sandbox
}

#[track_caller]
fn assert_both_run(sandbox: &Sandbox) {
    assert!(runs(sandbox.supervisor_of("x")), "the supervisor has ended");
    assert!(runs(sandbox.worker_of("x", 1)), "the worker has ended");
    assert_eq!(sandbox.state("x"), "running");
}

#[test]
fn supervisor_leaves_the_callers_session_and_parent() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    let supervisor = sandbox.supervisor_of("x");
    let (parent, group, session) = parent_group_session(supervisor);
    assert_eq!((group, session), (supervisor, supervisor));
    // The parent is init, or a subreaper between init and this test.
    assert!(ancestors().contains(&parent), "the supervisor's parent is {parent}");
    let worker = sandbox.worker_of("x", 1);
    assert_eq!(parent_group_session(worker), (supervisor, worker, supervisor));
}

#[test]
fn supervisor_and_worker_inherit_no_open_file() {
    let sandbox = ready(&[]);
    // Use a running shell: a program that starts has its libraries open for a moment.
    sandbox.config(
        "default: waits
backends: { waits: { command: 'touch up; sleep 1000 & wait; :' } }
models: { waits: { backend: waits } }
",
    );
    sandbox.ok("dispatch-spawn", &["x"]);
    wait_until("the worker is up", || sandbox.project().join("up").exists().then_some(()));
    let open = |pid: u32| {
        let directory = format!("/proc/{pid}/fd");
        let files = names(directory.as_ref()).into_iter();
        // Ignore descriptors that are closed meanwhile.
        let files = files.filter_map(|fd| fs::read_link(format!("{directory}/{fd}")).ok());
        let mut files: Vec<String> = files.map(|file| file.display().to_string()).collect();
        // Ignore what a process creates for itself.
        files.retain(|file| !file.starts_with("anon_inode:") && !file.starts_with("pipe:"));
        files.sort();
        sandbox.redactions().apply(&files.join(" "))
    };
    // Both processes open files now and then.
    let comes_to = |pid: u32, expected: &str| {
        wait_until(&format!("{expected} and no more is open"), || {
            (open(pid) == expected).then_some(())
        });
    };
    let (null, task) = ("/dev/null", "STATE/x");
    let log = format!("{task}/attempts/1/log");
    comes_to(sandbox.supervisor_of("x"), &format!("{null} {null} {null} {log} {task}/run.lock"));
    comes_to(sandbox.worker_of("x", 1), &format!("{null} {log} {log}"));
}

#[test]
fn worker_survives_sigkill_of_the_callers_group() {
    let sandbox = ready(&[]);
    let said = sandbox.top().join("said");
    let caller = sandbox
        .program("sh")
        .args(&["-c", "\"$0\" x >\"$1\"; exec sleep 1000"])
        .arg(binary("dispatch-spawn"))
        .arg(&said)
        .with(|command| {
            command.process_group(0);
        })
        .start();
    wait_until("the task is started", || {
        fs::read_to_string(&said).ok().filter(|said| said.contains("started with")).map(drop)
    });
    killpg(Pid::from_raw(caller.pid() as i32), Signal::SIGKILL).expect("killed");
    assert_eq!(caller.end().signal, Some(9));
    assert_both_run(&sandbox);
}

#[test]
fn worker_survives_a_closed_terminal() {
    let sandbox = ready(&[]);
    let said = sandbox.top().join("said");
    let shell = sandbox
        .program("sh")
        .args(&["-c", "\"$0\" x >\"$1\"; read line"])
        .arg(binary("dispatch-spawn"))
        .arg(&said);
    let mut terminal = Terminal::run(shell);
    wait_until("the task is started", || {
        fs::read_to_string(&said).ok().filter(|said| said.contains("started with")).map(drop)
    });
    terminal.close();
    assert!(!terminal.status().success());
    assert_both_run(&sandbox);
}

#[test]
fn clean_exit_with_items_left_is_incomplete() {
    let sandbox = ready(&[("quits", "exit 0")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "quits"]);
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x incomplete (0/2, AGE); next is item 1: First → tell the user what is left and ask; BIN/dispatch-spawn x --resume does the rest
"#]]);
    assert_eq!(sandbox.state("x"), "incomplete");
    same(
        &sandbox.redactions().apply(&without_milliseconds(&sandbox, 1)),
        str![[r#"
at: TIME
code: 0
"#]],
    );
}

fn without_milliseconds(sandbox: &Sandbox, attempt: u32) -> String {
    let record = sandbox.read("x", &format!("attempts/{attempt}/exit"));
    record.lines().filter(|line| !line.starts_with("milliseconds: ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn exit_code_is_reported_with_the_last_log_line() {
    let sandbox = ready(&[("fails", "echo begin; echo 'no such file: \"a\"' >&2; echo; exit 7")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "fails"]);
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x failed (0/2, AGE): exit code 7: "no such file: 'a'" → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
    same(
        &sandbox.redactions().apply(&without_milliseconds(&sandbox, 1)),
        str![[r#"
at: TIME
code: 7
"#]],
    );
    same(
        &sandbox.read("x", "attempts/1/log"),
        str![[r#"
begin
no such file: "a"


"#]],
    );
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 0
x — Title
failed (exit code 7: "no such file: 'a'"), fails, AGE
next: dispatch-spawn x --resume
full: nothing holds it
1. [ ] First
2. [ ] Second
attempt 1: exit code 7 at TIME, log STATE/x/attempts/1/log
output: "begin"
output: "no such file: 'a'"
"#]]);
}

#[test]
fn worker_ended_by_a_signal_has_failed() {
    let sandbox = ready(&[("crashes", "kill -SEGV $$")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "crashes"]);
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x failed (0/2, AGE): ended by signal 11 → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);

    sandbox.dispatch("y", "idle");
    signal(sandbox.worker_of("y", 1), Signal::SIGKILL);
    sandbox.run("dispatch-monitor", &["y"]).shows(str![[r#"
exit 0
#ID y failed (0/2, AGE): ended by signal 9 → tell the user and ask; BIN/dispatch-spawn y --resume tries again
"#]]);
}

#[test]
fn living_worker_of_a_killed_supervisor_gets_another_one() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    let (first, worker) = (sandbox.supervisor_of("x"), sandbox.worker_of("x", 1));
    kill_and_wait(first);
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
repaired: x supervised again
x running 0/2 AGE idle — item 1: First
"#]]);
    assert!(runs(sandbox.supervisor_of("x")) && sandbox.supervisor_of("x") != first);
    assert_eq!(sandbox.worker_of("x", 1), worker);
    kill_and_wait(worker);
    // The new supervisor records the end without a helper's look.
    let exit = sandbox.task("x", "attempts/1/exit");
    wait_until("the end to be recorded", || exit.exists().then_some(()));
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x lost (0/2, AGE): the worker disappeared → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
}

#[test]
fn worker_without_a_supervisor_cannot_be_resumed() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    kill_and_wait(sandbox.supervisor_of("x"));
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 75
! dispatch-spawn: the worker of 'x' is still running
!   dispatch-reconcile show x says what it does
!   next: answer or note what it should know, or wait until it ends
"#]]);
}

#[test]
fn worker_with_an_unrecorded_end_is_lost() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    kill_and_wait(sandbox.supervisor_of("x"));
    kill_and_wait(sandbox.worker_of("x", 1));
    assert!(!sandbox.task("x", "attempts/1/exit").exists());
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x lost (0/2, AGE): the worker disappeared → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
}

#[test]
fn stop_ends_worker_and_supervisor() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    let (supervisor, worker) = (sandbox.supervisor_of("x"), sandbox.worker_of("x", 1));
    sandbox.run("dispatch-reconcile", &["stop", "x"]).shows(str![[r#"
exit 0
x stopped
"#]]);
    assert!(!runs(supervisor) && !runs(worker));
    assert_eq!(sandbox.state("x"), "stopped");
    // A stop by the person is no news.
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 3
no news, and nothing is running
"#]]);
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    assert_eq!(sandbox.state("x"), "running");
}

/// The stop finds a child that left the group by its mark, and one without an environment by its
/// group.
#[test]
fn stop_ends_processes_of_a_dead_supervisor() {
    let sandbox = ready(&[(
        "spreads",
        "setsid sleep 1000 & env -i sleep 1000 & echo $! >bare
        touch up; trap '' TERM; while :; do sleep 1; done",
    )]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "spreads"]);
    wait_until("the worker is up", || sandbox.project().join("up").exists().then_some(()));
    let bare = fs::read_to_string(sandbox.project().join("bare")).expect("written");
    kill_and_wait(sandbox.supervisor_of("x"));
    let stop = sandbox.call("dispatch-reconcile", &["stop", "x"]);
    stop.env("DISPATCH_GRACE_MS", "300").run().shows(str![[r#"
exit 0
x stopped; its supervisor was dead, and no process is left
"#]]);
    assert_eq!(all_of(&sandbox.home()), [0; 0]);
    assert!(!runs(bare.trim().parse().expect("a pid")));
}

#[test]
fn stop_ends_a_hung_supervisor() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    signal(sandbox.supervisor_of("x"), Signal::SIGSTOP);
    let stop = sandbox.call("dispatch-reconcile", &["stop", "x"]);
    stop.env("DISPATCH_STOP_MS", "100").run().shows(str![[r#"
exit 0
x stopped; its supervisor did not react, and no process is left
"#]]);
    assert_eq!(all_of(&sandbox.home()), [0; 0]);
}

#[test]
fn stop_leaves_an_ended_task_as_it_is() {
    let sandbox = ready(&[("fails", "exit 7")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "fails"]);
    sandbox.wait_for_state("x", "failed: exit code 7");
    wait_until("the supervisor has ended", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    sandbox.run("dispatch-reconcile", &["stop", "x"]).shows(str![[r#"
exit 0
x has ended already: failed
"#]]);
    assert_eq!(sandbox.state("x"), "failed: exit code 7");
}

#[test]
fn stop_marks_a_lost_task_as_stopped() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    kill_and_wait(sandbox.supervisor_of("x"));
    kill_and_wait(sandbox.worker_of("x", 1));
    assert_eq!(sandbox.state("x"), "lost: the worker disappeared");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    assert_eq!(sandbox.state("x"), "stopped");
}

#[test]
fn stop_ends_a_queued_task() {
    let sandbox = ready(&[]);
    sandbox.dispatch("before", "idle");
    sandbox.ok("dispatch-spawn", &["x", "--after", "before"]);
    let supervisor = sandbox.supervisor_of("x");
    assert!(runs(supervisor));
    sandbox.run("dispatch-reconcile", &["stop", "x"]).shows(str![[r#"
exit 0
x stopped
"#]]);
    assert!(!runs(supervisor));
}

/// The supervisor of a worker becomes the parent of a task that the worker started.
#[test]
fn nested_task_outlives_its_parent_worker() {
    let spawn = binary("dispatch-spawn").display();
    let sandbox = ready(&[(
        "starts",
        &format!("{spawn} y --nested --model idle >said 2>&1; setsid sleep 1000 & exit 0"),
    )]);
    sandbox.plan("y", PLAN);
    let host = Host::new(&sandbox);
    let args = ["x", "--model", "starts", "--may-dispatch"];
    host.calls(sandbox.call("dispatch-spawn", &args)).run().ok();
    sandbox.wait_for_state("x", "incomplete");
    // The news of both go to the session that dispatched the first.
    let owner =
        |id: &str| sandbox.read(id, "record.yaml").split("owner:").nth(1).map(str::to_owned);
    let pid = |id: &str| owner(id).and_then(|text| text.lines().nth(1).map(str::to_owned));
    assert_eq!(pid("y"), pid("x"));
    assert!(pid("x").is_some());
    drop(host);
    wait_until("the supervisor has ended", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    let (supervisor, worker) = (sandbox.supervisor_of("y"), sandbox.worker_of("y", 1));
    let mut all = all_of(&sandbox.home());
    all.sort_unstable();
    let mut theirs = [supervisor, worker];
    theirs.sort_unstable();
    assert_eq!(all, theirs);
    assert_eq!(sandbox.state("y"), "running");
    sandbox.ok("dispatch-reconcile", &["stop", "y"]);
    assert_eq!(all_of(&sandbox.home()), [0; 0]);
}

fn spawn_silent(sandbox: &Sandbox, config: &str) {
    let path = sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&path).expect("there is a config");
    fs::write(path, format!("{text}{config}")).expect("written");
    let spawn = sandbox.call("dispatch-spawn", &["x"]).env("DISPATCH_SILENT_MS", "300");
    spawn.run().ok();
}

#[test]
fn worker_without_a_sign_of_life_is_silent_until_it_acts() {
    let sandbox = ready(&[]);
    spawn_silent(&sandbox, "");
    let is_silent = || sandbox.task("x", "attempts/1/silent").exists();
    wait_until("the worker is silent", || is_silent().then_some(()));
    assert_eq!(sandbox.state("x"), "silent: no sign of life since TIME");
    sandbox.worker("x", &["tick", "1"]).run().ok();
    wait_until("the worker is no longer silent", || (!is_silent()).then_some(()));
    wait_until("the worker is silent again", || is_silent().then_some(()));
    // A worker that waits for an answer is not silent.
    sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
    wait_until("the worker is no longer silent", || (!is_silent()).then_some(()));
    assert_eq!(sandbox.state("x"), "asking");
}

#[test]
fn silent_worker_is_stopped_if_configured() {
    let sandbox = ready(&[]);
    spawn_silent(&sandbox, "stop_silent: true\n");
    sandbox.wait_for_state("x", "failed: silent for 0 min");
    wait_until("the supervisor has ended", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    assert_eq!(all_of(&sandbox.home()), [0; 0]);
}

/// Processes of an attempt whose supervisor was killed must not run beside the next attempt.
#[test]
fn next_attempt_ends_processes_of_a_dead_supervisor() {
    let sandbox = ready(&[("leaves", "setsid sleep 1000 & touch up; wait")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "leaves"]);
    wait_until("the worker is up", || sandbox.project().join("up").exists().then_some(()));
    kill_and_wait(sandbox.supervisor_of("x"));
    kill_and_wait(sandbox.worker_of("x", 1));
    assert_eq!(all_of(&sandbox.home()).len(), 1);
    sandbox.script("leaves", "exec sleep 1000\n");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    let mut all = all_of(&sandbox.home());
    all.retain(|pid| ![sandbox.supervisor_of("x"), sandbox.worker_of("x", 2)].contains(pid));
    assert_eq!(all, [0; 0]);
}

#[test]
fn concurrent_spawns_of_one_id_start_one_worker() {
    let sandbox = ready(&[]);
    let calls: Vec<_> = (0..6).map(|_| sandbox.call("dispatch-spawn", &["x"]).start()).collect();
    let mut codes: Vec<_> = calls.into_iter().map(|call| call.end().code).collect();
    codes.sort();
    assert_eq!(codes, [Some(0), Some(73), Some(73), Some(73), Some(73), Some(73)]);
    assert_eq!(names(&sandbox.task("x", "attempts")), ["1"]);
    assert_both_run(&sandbox);
}

#[test]
fn concurrent_resumes_start_one_worker() {
    let sandbox = ready(&[("quits", "exit 0")]);
    sandbox.ok("dispatch-spawn", &["x", "--model", "quits"]);
    sandbox.wait_for_state("x", "incomplete");
    sandbox.script("quits", "exec sleep 1000\n");
    let call = || sandbox.call("dispatch-spawn", &["x", "--resume"]).start();
    let calls: Vec<_> = (0..16).map(|_| call()).collect();
    let ended: Vec<_> = calls.into_iter().map(|call| call.end()).collect();
    let mut codes: Vec<_> = ended.iter().map(|ran| ran.code).collect();
    codes.sort();
    assert_eq!((codes[0], codes[1]), (Some(0), Some(75)), "{ended:?}");
    assert!(codes[1..].iter().all(|code| *code == Some(75)), "{ended:?}");
    assert_eq!(names(&sandbox.task("x", "attempts")), ["1", "2"]);
}

#[test]
fn resume_refuses_a_running_task() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 75
! dispatch-spawn: the worker of 'x' is still running
!   dispatch-reconcile show x says what it does
!   next: answer or note what it should know, or wait until it ends
"#]]);
    assert_both_run(&sandbox);
}

#[test]
fn resume_refuses_a_finished_task() {
    let sandbox = ready(&[]);
    sandbox.ok("dispatch-spawn", &["x"]);
    for step in [&["tick", "1"][..], &["tick", "2"], &["finish"]] {
        sandbox.worker("x", step).run().ok();
    }
    kill_and_wait(sandbox.worker_of("x", 1));
    wait_until("the end is recorded", || {
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
    wait_until("the supervisor has ended", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    sandbox.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 65
! dispatch-spawn: 'x' is already done
!   next: dispatch a new task for further work
"#]]);
}

/// Some accounts have access to a few models only.
#[test]
fn model_refused_by_claude_is_omitted_and_reported() {
    let claude = r#"case "$*" in
*--model*) echo "There's an issue with the selected model (opus). It may not exist."; exit 1 ;;
esac
echo '- [x] One' >"$DISPATCH_TASK_DIR/plan.md"
: >"$DISPATCH_TASK_DIR/ipc/.done""#;
    let sandbox = Sandbox::with_clis(&[("claude", claude)]);
    sandbox
        .config("default: opus\nbackends: { claude: {} }\nmodels: { opus: { backend: claude } }\n");
    sandbox.plan("x", "- [ ] One\n");
    sandbox.on_machine("dispatch-spawn", &["x"]).run().ok();
    wait_until("the end", || sandbox.task("x", "attempts/1/exit").exists().then_some(()));
    let news = sandbox.ok("dispatch-monitor", &["x"]);
    assert!(
        news.contains("x says: \"claude refused the model opus: it works with its own\""),
        "{news}"
    );
    assert!(news.contains("x done (1/1"), "{news}");
}
