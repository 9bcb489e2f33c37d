//! An answer that comes after its worker has given up resumes the task exactly once, whichever
//! process sees it first.

use std::time::{Duration, Instant};

use snapbox::str;

use crate::support::process::{all_of, kill_and_wait, runs, workers_of};
use crate::support::text::names;
use crate::support::{Host, Sandbox, binary, wait_until};

/// A project with 'x' running and its question open.
fn asking() -> Sandbox {
    asking_with_crash_at("")
}

/// An asking project whose supervisor dies at `point`.
fn asking_with_crash_at(point: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.plan("x", crate::support::PLAN);
    sandbox.call("dispatch-spawn", &["x"]).crash_at(point).run().ok();
    let ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ask.code, Some(75));
    sandbox
}

/// An asking project whose worker has ended.
fn blocked() -> Sandbox {
    let sandbox = asking();
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked");
    sandbox
}

/// A project whose worker marked an item as blocked and ended.
fn blocked_on_an_item() -> Sandbox {
    let sandbox = asking();
    sandbox.worker("x", &["block", "1", "Which?"]).run().ok();
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked: item 1: \"Which?\"");
    sandbox
}

fn attempts(sandbox: &Sandbox) -> usize {
    names(&sandbox.task("x", "attempts")).len()
}

/// Waits until the second attempt runs alone: one supervisor and one worker, which has the answer.
#[track_caller]
fn assert_resumed_once(sandbox: &Sandbox) {
    wait_until("one supervisor and one worker run", || {
        let all = all_of(&sandbox.home());
        (all.len() == 2 && workers_of(&sandbox.home()).len() == 1).then_some(())
    });
    assert_eq!(sandbox.state("x"), "running");
    assert_eq!(attempts(sandbox), 2);
    let prompt = sandbox.read("x", "attempts/2/prompt.md");
    assert!(prompt.ends_with("It asked (001): Which?\nThe person answered: This.\n"), "{prompt}");
    assert!(sandbox.task("x", "ipc/001.done").exists());
}

#[test]
fn answer_to_a_blocked_item_resumes_the_task() {
    let sandbox = blocked_on_an_item();
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/001 answered, its worker had ended and was resumed
"#]]);
    assert_resumed_once(&sandbox);
}

#[test]
fn blocked_news_names_the_answer_command() {
    let sandbox = blocked_on_an_item();
    // Until the supervisor has ended, it may resume the worker at once.
    wait_until("the supervisor is gone", || all_of(&sandbox.home()).is_empty().then_some(()));
    sandbox.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x asks (001): "Which?" → ask the user, then run: BIN/dispatch-monitor --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
#ID x blocked (0/2): item 1: "Which?" → ask the user; BIN/dispatch-monitor --answer x/001 - resumes it
"#]]);
}

#[test]
fn answer_to_a_lost_worker_resumes_the_task() {
    let sandbox = asking();
    kill_and_wait(sandbox.supervisor_of("x"));
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.ok("dispatch-monitor", &["--answer", "x/001", "This."]);
    assert_resumed_once(&sandbox);
}

/// The process that posted the answer died before it could do anything more.
#[test]
fn task_with_an_unhandled_answer_resumes_at_the_next_look() {
    let looks: [(&str, &[&str], Option<i32>); 3] = [
        ("dispatch-reconcile", &["status"], Some(0)),
        ("dispatch-config", &["brief"], Some(0)),
        ("dispatch-monitor", &["--answer", "x/001", "This."], Some(65)),
    ];
    for (helper, args, code) in looks {
        let sandbox = blocked();
        let post = sandbox.call("dispatch-monitor", &["--answer", "x", "This."]);
        post.crash_at("answer:posted").run().crashed();
        assert_eq!(attempts(&sandbox), 1);
        let ran = sandbox.run(helper, args);
        assert_eq!(ran.code, code, "{helper}: {ran:?}");
        assert_resumed_once(&sandbox);
    }
}

/// The supervisor records the end and dies before it looks for an answer.
#[test]
fn concurrent_looks_resume_an_answered_task_once() {
    let sandbox = asking_with_crash_at("supervisor:ended");
    let supervisor = sandbox.supervisor_of("x");
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/001 answered, its worker continues
"#]]);
    kill_and_wait(sandbox.worker_of("x", 1));
    wait_until("the supervisor is gone", || (!runs(supervisor)).then_some(()));
    assert_eq!(attempts(&sandbox), 1);
    let status = || sandbox.call("dispatch-reconcile", &[]).start();
    let both = [status(), status(), status()];
    for status in both {
        let said = status.end().ok();
        assert!(said.lines().last().is_some_and(|line| line.starts_with("x ")), "{said}");
    }
    assert_resumed_once(&sandbox);
}

#[test]
fn supervisor_resumes_a_worker_that_died_before_reading_its_answer() {
    let sandbox = asking();
    let supervisor = sandbox.supervisor_of("x");
    sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
    kill_and_wait(sandbox.worker_of("x", 1));
    assert_resumed_once(&sandbox);
    assert_eq!(sandbox.supervisor_of("x"), supervisor);
}

/// The worker waits for a short time, blocks and ends; the answer comes a little earlier each time.
#[test]
fn answer_at_the_moment_of_giving_up_arrives_once() {
    let helper = binary("dispatch-worker").display();
    let script = format!(
        "case $DISPATCH_ATTEMPT in\n*/1)\n  answer=$(DISPATCH_WAIT_MS=60 {helper} ask 'Which?') && exec sleep 1000\n  {helper} block 1 'Which?' ;;\n*) exec sleep 1000 ;;\nesac"
    );
    let mut late = 0;
    for round in 0..12 {
        let sandbox = Sandbox::new();
        sandbox.workers(&[("gives-up", &script)]);
        sandbox.dispatch("x", "gives-up");
        let question = sandbox.task("x", "ipc/001.question");
        wait_until("the worker asks", || question.exists().then_some(()));
        let asked = Instant::now();
        let pause = Duration::from_millis(110 - 10 * round);
        wait_until("the time has come", || (asked.elapsed() >= pause).then_some(()));
        let ran = sandbox.run("dispatch-monitor", &["--answer", "x", "This."]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{round}: {}", ran.out);
        let read = sandbox.task("x", "ipc/001.done");
        wait_until("somebody has read it", || read.exists().then_some(()));
        if attempts(&sandbox) > 1 {
            late += 1;
            assert_resumed_once(&sandbox);
        } else {
            assert_eq!(sandbox.state("x"), "running");
        }
    }
    assert!(late > 0, "the answer always came in time");
}

#[test]
fn worker_cannot_block_an_answered_question() {
    let sandbox = asking();
    sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
    sandbox.worker("x", &["block", "1", "Which?"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the answer to question 001 is there
!   next: read it with wait 001, then continue
"#]]);
    sandbox.worker("x", &["wait", "001"]).run().ok();
    sandbox.worker("x", &["block", "1", "Which then?"]).run().ok();
}

#[test]
fn answer_leaves_a_stopped_task_stopped() {
    let sandbox = asking();
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/001 answered; it was stopped: BIN/dispatch-spawn x --resume continues it
"#]]);
    sandbox.ok("dispatch-reconcile", &[]);
    assert_eq!((sandbox.state("x").as_str(), attempts(&sandbox)), ("stopped", 1));
}

#[test]
fn answer_leaves_a_finished_task_done() {
    let sandbox = asking();
    for step in [&["tick", "1"][..], &["tick", "2"], &["finish"]] {
        sandbox.worker("x", step).run().ok();
    }
    kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/001 answered, but it is done
"#]]);
    sandbox.ok("dispatch-reconcile", &[]);
    assert_eq!((sandbox.state("x").as_str(), attempts(&sandbox)), ("done", 1));
}

#[test]
fn answer_without_a_waiting_question_is_refused() {
    let sandbox = blocked();
    let answer =
        |target: &str, text: &str| sandbox.run("dispatch-monitor", &["--answer", target, text]);
    answer("x", "").shows(str![[r#"
exit 64
! dispatch-monitor: the answer is empty
!   next: give the text, or - and the text on standard input
"#]]);
    answer("x", " \n ").shows(str![[r#"
exit 64
! dispatch-monitor: the answer is empty
!   next: give the text, or - and the text on standard input
"#]]);
    answer("x/002", "This.").shows(str![[r#"
exit 65
! dispatch-monitor: 'x' has no question 002
!   it asked 001
!   next: dispatch-reconcile show x
"#]]);
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    answer("x", "This.").code.expect("the worker ends");
    answer("x/001", "That.").shows(str![[r#"
exit 65
! dispatch-monitor: question 001 has an answer already
!   dispatch-reconcile show x prints it
!   next: to tell the worker more, use: dispatch-reconcile note
"#]]);
    answer("x", "That.").shows(str![[r#"
exit 65
! dispatch-monitor: 'x' has no open question
!   it asked 001
!   next: dispatch-reconcile show x
"#]]);
    // The later attempt knows that no answer came.
    let gone = blocked();
    gone.ok("dispatch-spawn", &["x", "--resume"]);
    gone.run("dispatch-monitor", &["--answer", "x/001", "This."]).shows(str![[r#"
exit 65
! dispatch-monitor: nobody waits for an answer to x/001 any more
!   next: tell the worker with dispatch-reconcile note x -
"#]]);
}

/// Two sessions of one person answer at the same moment.
#[test]
fn concurrent_answers_start_one_worker() {
    let sandbox = blocked();
    let (one, two) = (Host::new(&sandbox), Host::new(&sandbox));
    let post = |host: &Host| {
        host.calls(sandbox.call("dispatch-monitor", &["--answer", "x", "This."])).start()
    };
    let mut codes = [post(&one), post(&two)].map(|call| call.end().code);
    codes.sort();
    assert_eq!(codes, [Some(0), Some(65)]);
    drop((one, two));
    assert_resumed_once(&sandbox);
}
