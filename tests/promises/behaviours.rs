//! Whatever a worker CLI does, its task's state says what happened, and nothing of it is left.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::process::{all_of, kilobytes, runs};
use crate::support::{Call, PLAN, Sandbox, binary, wait_until};

/// Shortens what is waited for before a worker is killed.
fn impatient(call: Call) -> Call {
    call.env("DISPATCH_GRACE_MS", "400")
}

/// A task whose worker is that script, which knows `tick N` and `finish`.
fn behaves(script: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    let helper = binary("dispatch-worker").display();
    let words = format!("tick() {{ {helper} tick $1; }}; finish() {{ {helper} finish; }}");
    sandbox.workers(&[("it", &format!("{words}\n{script}"))]);
    sandbox.plan("x", PLAN);
    let spawn = sandbox.call("dispatch-spawn", &["x", "--model", "it"]);
    impatient(spawn).run().ok();
    sandbox
}

/// The end that is known, and nothing that runs.
#[track_caller]
fn is_over(sandbox: &Sandbox, state: &str) {
    wait_until("its end is recorded", || {
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
    assert_eq!(sandbox.state("x"), state);
    wait_until("the supervisor is gone", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
    assert_eq!(all_of(&sandbox.home()), [0; 0], "nothing is left");
}

/// A worker that ends by itself.
#[track_caller]
fn ends(script: &str, state: &str) -> Sandbox {
    let sandbox = behaves(script);
    is_over(&sandbox, state);
    sandbox
}

/// A worker that runs until it is stopped.
#[track_caller]
fn runs_until_stopped(script: &str) {
    let sandbox = behaves(&format!("{script}\nwhile :; do touch up; sleep 1; done"));
    wait_until("it is up", || sandbox.project().join("up").exists().then_some(()));
    assert_eq!(sandbox.state("x"), "running");
    let said = impatient(sandbox.call("dispatch-reconcile", &["stop", "x"])).run().ok();
    assert_eq!(said, "x stopped\n");
    is_over(&sandbox, "stopped");
}

#[test]
fn exits_without_work() {
    ends("exit 0", "incomplete");
}

#[test]
fn does_half_and_exits() {
    ends("tick 1", "incomplete");
}

#[test]
fn ends_in_the_middle_of_a_sentence() {
    ends("printf 'Now I will'; exit 3", "failed: exit code 3: Now I will");
}

#[test]
fn ticks_all_and_does_not_finish() {
    ends("tick 1; tick 2", "done: finish marker missing");
}

#[test]
fn finishes_with_items_unticked() {
    ends(
        ": >\"$DISPATCH_TASK_DIR/ipc/.done\"",
        "incomplete: finish marker set with items unticked",
    );
}

#[test]
fn does_all_and_finishes() {
    ends("tick 1; tick 2; finish", "done");
}

#[test]
fn fails_with_an_exit_code() {
    ends("exit 7", "failed: exit code 7");
}

#[test]
fn crashes() {
    ends("kill -SEGV $$", "failed: ended by signal 11");
}

#[test]
fn is_killed_for_want_of_memory() {
    ends("kill -KILL $$", "failed: ended by signal 9");
}

#[test]
fn leaves_a_child_that_holds_its_output() {
    ends("sleep 1000 & exit 0", "incomplete");
}

#[test]
fn leaves_a_child_that_nothing_holds() {
    ends("nohup sleep 1000 </dev/null >/dev/null 2>&1 & exit 5", "failed: exit code 5");
}

#[test]
fn leaves_a_grandchild_in_a_session_of_its_own_that_holds_its_output() {
    let sandbox = behaves("setsid sh -c 'touch up; sleep 1000' & \nuntil [ -e up ]; do :; done");
    is_over(&sandbox, "incomplete");
}

/// Killed at the end of the test, whatever happened.
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

/// It has left its group, its parents and its environment.
#[test]
fn leaves_a_daemon_that_hides_and_ignores_sigterm() {
    let sandbox = behaves(DAEMON);
    let daemon = daemon(&sandbox);
    is_over(&sandbox, "incomplete");
    assert!(!runs(daemon.0));
}

#[test]
fn starts_a_daemon_that_hides_and_is_stopped() {
    let sandbox = behaves(&format!("{DAEMON}sleep 1000"));
    let daemon = daemon(&sandbox);
    impatient(sandbox.call("dispatch-reconcile", &["stop", "x"])).run().ok();
    is_over(&sandbox, "stopped");
    assert!(!runs(daemon.0));
}

#[test]
fn ignores_sigterm() {
    runs_until_stopped("trap '' TERM INT HUP");
}

#[test]
fn says_that_it_belongs_to_another_task() {
    runs_until_stopped("if [ -z \"$again\" ]; then again=1 DISPATCH_ATTEMPT=no exec sh \"$0\"; fi");
}

#[test]
fn never_exits() {
    runs_until_stopped("");
}

#[test]
fn closes_its_output_and_goes_on() {
    runs_until_stopped("exec <&- >&- 2>&-");
}

const ONLY_CLAUDE: &str =
    "default: opus\nbackends: { claude: {} }\nmodels: { opus: { backend: claude } }\n";

/// A task whose worker is that script, called as Claude Code.
fn behaves_as_claude(script: &str) -> Sandbox {
    let sandbox = Sandbox::with_clis(&[("claude", script)]);
    sandbox.config(ONLY_CLAUDE);
    sandbox.plan("x", PLAN);
    impatient(sandbox.on_machine("dispatch-spawn", &["x"])).run().ok();
    sandbox
}

/// As Cursor's CLI does, and any that waits for a child of its own.
#[test]
fn does_not_exit_after_its_last_word() {
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
        let sandbox = behaves_as_claude(&format!("{did}\n{last_word}\nsleep 1000"));
        is_over(&sandbox, state);
        let exit = sandbox.read("x", "attempts/1/exit");
        assert!(exit.contains("stop_reason: last-word\n"), "{exit}");
    }
}

/// `claude -p` waits for a task in the background, and begins another turn at its end.
#[test]
fn goes_on_after_what_looked_like_its_last_word() {
    let tasks = |tasks: &str| {
        let event = r#""type":"system","subtype":"background_tasks_changed""#;
        format!("echo '{{{event},\"tasks\":[{tasks}]}}'")
    };
    let (begins, ends) = (tasks(r#"{"task_id":"b1"}"#), tasks(""));
    let result = "echo '{\"type\":\"result\"}'";
    let sandbox = behaves_as_claude(&format!(
        "{begins}; {result}; sleep 1; {ends}; echo '{{\"type\":\"assistant\"}}'; sleep 1; exit 7"
    ));
    is_over(&sandbox, "failed: exit code 7");
}

#[test]
fn writes_binary_garbage() {
    ends("head -c 300000 /dev/urandom; exit 0", "incomplete");
    ends("head -c 300000 /dev/urandom; echo; echo broken; exit 7", "failed: exit code 7: broken");
}

#[test]
fn is_a_program_that_the_system_cannot_start() {
    let sandbox = Sandbox::with_clis(&[("claude", "exit 0")]);
    let script = "echo '#!/of/another/machine' >\"$0\"";
    sandbox.program("sh").args(&["-c", script]).arg(sandbox.top().join("clis/claude")).run().ok();
    sandbox.config(ONLY_CLAUDE);
    sandbox.plan("x", PLAN);
    let spawn = sandbox.on_machine("dispatch-spawn", &["x"]).run();
    assert_eq!(spawn.code, Some(1), "{}", spawn.err);
    let why = "cannot start claude: No such file or directory (os error 2)";
    is_over(&sandbox, &format!("failed: could not start: {why}"));
}

#[test]
fn is_a_command_that_the_shell_cannot_start() {
    ends("exec 2>/dev/null; touch plain; exec ./plain", "failed: exit code 126");
}

#[test]
fn asks_and_exits() {
    ends("echo 'Which one?' >\"$DISPATCH_TASK_DIR/ipc/001.question\"", "blocked");
}

#[test]
fn deletes_its_own_log() {
    ends("rm \"$(readlink /proc/$$/fd/1)\"; echo more; exit 7", "failed: exit code 7");
}

/// A worker's log is cut while it writes it, and its supervisor stays small.
#[test]
fn writes_a_gigabyte() {
    let sandbox = behaves(
        "yes 'All work and no play' | head -c 1000000000
        until [ $(wc -c <\"$(readlink /proc/$$/fd/1)\") -lt 8000000 ]; do :; done
        echo; echo enough; exit 7",
    );
    let supervisor = sandbox.supervisor_of("x");
    let size = |path: &str| fs::metadata(sandbox.task("x", path)).map_or(0, |meta| meta.len());
    let (mut logs, mut memory) = (0, 0);
    wait_until("its end is recorded", || {
        logs = logs.max(size("attempts/1/log") + size("attempts/1/log.old"));
        // What is mapped of the program itself is large in a test build, and no matter.
        let peak = kilobytes(supervisor, "VmHWM").zip(kilobytes(supervisor, "RssFile"));
        memory = memory.max(peak.map_or(0, |(all, program)| all - program));
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
    is_over(&sandbox, "failed: exit code 7: enough");
    // Usually some 60 MB; a busy machine lets the worker write for longer between two looks.
    assert!(logs < 300 << 20, "{logs} bytes of logs");
    assert!((1..8 << 10).contains(&memory), "{memory} kB");
}
