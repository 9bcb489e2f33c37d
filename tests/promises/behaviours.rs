//! The state of a task says what its worker CLI did, and no process of the worker is left.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::process::{all_of, kilobytes, runs};
use crate::support::{Call, PLAN, Sandbox, binary, wait_until};

/// Shortens the grace period before a worker is killed.
fn impatient(call: Call) -> Call {
    call.env("DISPATCH_GRACE_MS", "400")
}

/// Starts a task whose worker is `script`, which may call `tick N` and `finish`.
fn start(script: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let helper = binary("dispatch-worker").display();
    let words = format!("tick() {{ {helper} tick $1; }}; finish() {{ {helper} finish; }}");
    sandbox.workers(&[("it", &format!("{words}\n{script}"))]);
    sandbox.plan("x", PLAN);
    let spawn = sandbox.call("dispatch-spawn", &["x", "--model", "it"]);
    impatient(spawn).run().ok();
    sandbox
}

/// Checks the state of the ended task, and that no process is left.
#[track_caller]
fn assert_ended(sandbox: &Sandbox, state: &str) {
    wait_until("the end is recorded", || {
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
    assert_eq!(sandbox.state("x"), state);
    wait_until("the supervisor is gone", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    assert_eq!(all_of(&sandbox.home()), [0; 0], "no process is left");
}

/// Starts a worker that ends by itself, and checks the state of its task.
#[track_caller]
fn assert_ends(script: &str, state: &str) -> Sandbox {
    let sandbox = start(script);
    assert_ended(&sandbox, state);
    sandbox
}

/// Starts a worker that runs until `stop` ends it.
#[track_caller]
fn assert_runs_until_stopped(script: &str) {
    let sandbox = start(&format!("{script}\nwhile :; do touch up; sleep 1; done"));
    wait_until("the worker is up", || sandbox.project().join("up").exists().then_some(()));
    assert_eq!(sandbox.state("x"), "running");
    let said = impatient(sandbox.call("dispatch-reconcile", &["stop", "x"])).run().ok();
    assert_eq!(said, "x stopped\n");
    assert_ended(&sandbox, "stopped");
}

#[test]
fn worker_that_exits_without_work_is_incomplete() {
    assert_ends("exit 0", "incomplete");
}

#[test]
fn worker_that_does_half_is_incomplete() {
    assert_ends("tick 1", "incomplete");
}

#[test]
fn worker_that_fails_in_mid_sentence_is_quoted() {
    assert_ends("printf 'Now I will'; exit 3", "failed: exit code 3: \"Now I will\"");
}

#[test]
fn worker_that_ticks_all_and_skips_finish_is_done() {
    assert_ends("tick 1; tick 2", "done: finish marker missing");
}

#[test]
fn worker_that_finishes_with_items_unticked_is_incomplete() {
    assert_ends(
        ": >\"$DISPATCH_TASK_DIR/ipc/.done\"",
        "incomplete: finish marker set with items unticked",
    );
}

#[test]
fn worker_that_ticks_all_and_finishes_is_done() {
    assert_ends("tick 1; tick 2; finish", "done");
}

#[test]
fn worker_that_exits_with_a_code_has_failed() {
    assert_ends("exit 7", "failed: exit code 7");
}

#[test]
fn worker_that_crashes_has_failed() {
    assert_ends("kill -SEGV $$", "failed: ended by signal 11");
}

#[test]
fn worker_that_is_killed_for_lack_of_memory_has_failed() {
    assert_ends("kill -KILL $$", "failed: ended by signal 9");
}

#[test]
fn child_that_holds_the_output_is_ended() {
    assert_ends("sleep 1000 & exit 0", "incomplete");
}

#[test]
fn child_that_left_the_output_is_ended() {
    assert_ends("nohup sleep 1000 </dev/null >/dev/null 2>&1 & exit 5", "failed: exit code 5");
}

#[test]
fn grandchild_in_its_own_session_is_ended() {
    let sandbox = start("setsid sh -c 'touch up; sleep 1000' & \nuntil [ -e up ]; do :; done");
    assert_ended(&sandbox, "incomplete");
}

/// A process that is killed at the end of the test in any case.
struct Daemon(u32);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.cast_signed()), Signal::SIGKILL);
    }
}

const DAEMON: &str = "\
    (setsid env -i sh -c 'trap \"\" TERM HUP; echo $$ >pid; while :; do sleep 1; done' &)
    until [ -s pid ]; do :; done\n";

fn daemon(sandbox: &Sandbox) -> Daemon {
    wait_until("the daemon runs", || {
        let pid = fs::read_to_string(sandbox.project().join("pid")).ok()?;
        Some(Daemon(pid.strip_suffix('\n')?.parse().ok()?))
    })
}

/// The daemon has left its process group, its parents and its environment.
#[test]
fn hidden_daemon_that_ignores_sigterm_is_ended() {
    let sandbox = start(DAEMON);
    let daemon = daemon(&sandbox);
    assert_ended(&sandbox, "incomplete");
    assert!(!runs(daemon.0));
}

#[test]
fn stop_ends_a_hidden_daemon() {
    let sandbox = start(&format!("{DAEMON}sleep 1000"));
    let daemon = daemon(&sandbox);
    impatient(sandbox.call("dispatch-reconcile", &["stop", "x"])).run().ok();
    assert_ended(&sandbox, "stopped");
    assert!(!runs(daemon.0));
}

#[test]
fn worker_that_ignores_sigterm_is_stopped() {
    assert_runs_until_stopped("trap '' TERM INT HUP");
}

#[test]
fn worker_with_the_mark_of_another_attempt_is_stopped() {
    assert_runs_until_stopped(
        "if [ -z \"$again\" ]; then again=1 DISPATCH_ATTEMPT=no exec sh \"$0\"; fi",
    );
}

#[test]
fn worker_that_never_exits_is_stopped() {
    assert_runs_until_stopped("");
}

#[test]
fn worker_that_closes_its_output_is_stopped() {
    assert_runs_until_stopped("exec <&- >&- 2>&-");
}

const ONLY_CLAUDE: &str =
    "default: opus\nbackends: { claude: {} }\nmodels: { opus: { backend: claude } }\n";

/// Starts a task whose worker is `script`, called as Claude Code.
fn start_as_claude(script: &str) -> Sandbox {
    let sandbox = Sandbox::with_clis(&[("claude", script)]);
    sandbox.config(ONLY_CLAUDE);
    sandbox.plan("x", PLAN);
    impatient(sandbox.on_machine("dispatch-spawn", &["x"])).run().ok();
    sandbox
}

/// Cursor's CLI hangs like this, and so does any CLI that waits for its own child.
#[test]
fn cli_that_hangs_after_its_result_is_ended() {
    let last_word = "echo '{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false}'";
    let work = "printf -- '- [x] First\\n- [x] Second\\n' >\"$DISPATCH_TASK_DIR/plan.md\"";
    let part = "printf -- '- [x] First\\n' >\"$DISPATCH_TASK_DIR/plan.md\"";
    let marker = ": >\"$DISPATCH_TASK_DIR/ipc/.done\"";
    for (did, state) in [
        (String::from(":"), "incomplete"),
        (format!("{part}; {marker}"), "incomplete: the plan lost item 2: Second"),
        (work.into(), "done: finish marker missing"),
        (format!("{work}; {marker}"), "done"),
    ] {
        let sandbox = start_as_claude(&format!("{did}\n{last_word}\nsleep 1000"));
        assert_ended(&sandbox, state);
        let exit = sandbox.read("x", "attempts/1/exit");
        assert!(exit.contains("stop_reason: last-word\n"), "{exit}");
    }
}

/// `claude -p` waits for a task in the background, and begins another turn at its end.
#[test]
fn cli_with_a_background_task_continues_after_its_result() {
    let tasks = |tasks: &str| {
        let event = r#""type":"system","subtype":"background_tasks_changed""#;
        format!("echo '{{{event},\"tasks\":[{tasks}]}}'")
    };
    let (begins, ends) = (tasks(r#"{"task_id":"b1"}"#), tasks(""));
    let result = "echo '{\"type\":\"result\"}'";
    let sandbox = start_as_claude(&format!(
        "{begins}; {result}; sleep 1; {ends}; echo '{{\"type\":\"assistant\"}}'; sleep 1; exit 7"
    ));
    assert_ended(&sandbox, "failed: exit code 7");
}

#[test]
fn worker_that_prints_binary_garbage_is_reported() {
    assert_ends("head -c 300000 /dev/urandom; exit 0", "incomplete");
    assert_ends(
        "head -c 300000 /dev/urandom; echo; echo broken; exit 7",
        "failed: exit code 7: \"broken\"",
    );
}

#[test]
fn program_that_the_system_cannot_start_has_failed() {
    let sandbox = Sandbox::with_clis(&[("claude", "exit 0")]);
    let script = "echo '#!/of/another/machine' >\"$0\"";
    sandbox.program("sh").args(&["-c", script]).arg(sandbox.top().join("clis/claude")).run().ok();
    sandbox.config(ONLY_CLAUDE);
    sandbox.plan("x", PLAN);
    let spawn = sandbox.on_machine("dispatch-spawn", &["x"]).run();
    assert_eq!(spawn.code, Some(1), "{}", spawn.err);
    let why = "cannot start claude: No such file or directory (os error 2)";
    assert_ended(&sandbox, &format!("failed: could not start: {why}"));
}

#[test]
fn command_that_the_shell_cannot_start_has_failed() {
    assert_ends("exec 2>/dev/null; touch plain; exec ./plain", "failed: exit code 126");
}

#[test]
fn worker_that_asks_and_exits_is_blocked() {
    assert_ends("echo 'Which one?' >\"$DISPATCH_TASK_DIR/ipc/001.question\"", "blocked");
}

#[test]
fn worker_that_deletes_its_log_is_reported() {
    assert_ends("rm \"$(readlink /proc/$$/fd/1)\"; echo more; exit 7", "failed: exit code 7");
}

/// The log is cut while the worker writes, and the supervisor stays small.
#[test]
fn log_of_a_gigabyte_is_cut() {
    let sandbox = start(
        "yes 'All work and no play' | head -c 1000000000
        until [ $(wc -c <\"$(readlink /proc/$$/fd/1)\") -lt 8000000 ]; do :; done
        echo; echo enough; exit 7",
    );
    let supervisor = sandbox.supervisor_of("x");
    let size = |path: &str| fs::metadata(sandbox.task("x", path)).map_or(0, |meta| meta.len());
    let (mut logs, mut memory) = (0, 0);
    wait_until("the end is recorded", || {
        logs = logs.max(size("attempts/1/log") + size("attempts/1/log.old"));
        // The pages of a test build's own program are large and do not count.
        let peak = kilobytes(supervisor, "VmHWM").zip(kilobytes(supervisor, "RssFile"));
        memory = memory.max(peak.map_or(0, |(all, program)| all - program));
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
    assert_ended(&sandbox, "failed: exit code 7: \"enough\"");
    // The usual size is 60 MB; a busy machine lets the worker write for longer between two looks.
    assert!(logs < 300 << 20, "{logs} bytes of logs");
    assert!((1..8 << 10).contains(&memory), "{memory} kB");
}
