//! A helper that is killed at any step leaves only whole files, and the same call succeeds later.

use std::fs;

use dispatch::process::Identity;
use snapbox::str;

use crate::support::made::own;
use crate::support::process::{all_of, kill_and_wait, runs, workers_of};
use crate::support::text::{names, same};
use crate::support::{Host, PLAN, Ran, Sandbox, wait_until};

fn project() -> Sandbox {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[]);
    sandbox
}

/// A project with 'x' running.
fn running() -> Sandbox {
    let sandbox = project();
    sandbox.dispatch("x", "idle");
    sandbox
}

/// Checks that every file of 'x' is whole. A killed write leaves a hidden temporary file that nobody
/// reads.
#[track_caller]
fn all_is_whole(sandbox: &Sandbox, point: &str) {
    let sides = [sandbox.task("x", ""), sandbox.state_directory().join("x")];
    let sides = sides.iter().filter(|side| side.exists());
    for entry in sides.flat_map(walkdir::WalkDir::new) {
        let entry = entry.expect("readable");
        let name = entry.file_name().to_string_lossy().into_owned();
        if !entry.file_type().is_file() || (name.starts_with('.') && name.ends_with(".tmp")) {
            continue;
        }
        let text = fs::read_to_string(entry.path()).expect("text");
        let whole = match name.as_str() {
            "plan.md" | ".plan" => {
                text.contains("] Second\n") && text.contains("## Context\nJust do it.\n")
            }
            "prompt.md" => text.contains("## Context\nJust do it.\n"),
            "record.yaml" => text.starts_with("format: ") && text.contains("\ncreated: "),
            "identity" => text.contains("pid: ") && text.contains("boot: "),
            "exit" => text.contains("milliseconds: "),
            "words" => text.ends_with('}'),
            "001" if text.starts_with('{') => text.ends_with('}'),
            "001.question" | "001.answer" | "001.note" | "001" => {
                text.ends_with(".\n") || text.ends_with('.')
            }
            "001.done" | ".done" | ".001.asked" | "lock" | "run.lock" | "log" | "news"
            | "summary" | "done" | ".told" | "001.told" => true,
            other => panic!("{point}: what is {other}?"),
        };
        assert!(whole, "{point}: {}: {text:?}", entry.path().display());
    }
}

/// Checks that 'x' has exactly one live worker, the recorded one.
#[track_caller]
fn one_worker_runs(sandbox: &Sandbox, point: &str) {
    let attempt = names(&sandbox.task("x", "attempts")).len() as u32;
    let known = sandbox.worker_of("x", attempt);
    // During exec a process shows no environment for a moment.
    wait_until(&format!("{point}: {known} is the one worker"), || {
        (workers_of(&sandbox.home()) == [known]).then_some(())
    });
    assert_eq!(sandbox.state("x"), "running", "{point}");
}

/// Waits for the supervisor's death, which comes a moment after its pipe is closed.
#[track_caller]
fn supervisor_is_gone(sandbox: &Sandbox) {
    let supervisor = sandbox.supervisor_of("x");
    wait_until("the supervisor to be gone", || (!runs(supervisor)).then_some(()));
}

#[test]
fn killed_dispatch_can_be_repeated() {
    for point in [
        "plan.md:written",
        "plan.md:published",
        "exclude:written",
        "exclude:published",
        "prompt.md:written",
        "prompt.md:published",
        "spawn:prepared",
        "record.yaml:written",
        "record.yaml:published",
        "spawn:claimed",
    ] {
        let sandbox = project();
        let spawn = || sandbox.call("dispatch-spawn", &["x", "--plan", "-"]).input(PLAN);
        spawn().crash_at(point).run().crashed();
        all_is_whole(&sandbox, point);
        let again = spawn().run();
        match again.code {
            Some(0) => {}
            // The task exists, so the error names the resume.
            Some(73) => {
                assert!(again.err.contains("x --resume"), "{point}: {}", again.err);
                sandbox.ok("dispatch-spawn", &["x", "--resume"]);
            }
            _ => panic!("{point}: {again:?}"),
        }
        all_is_whole(&sandbox, point);
        one_worker_runs(&sandbox, point);
        let exclude = fs::read_to_string(sandbox.project().join(".git/info/exclude"));
        assert_eq!(exclude.expect("there").matches(".dispatch/").count(), 1, "{point}");
    }
}

#[test]
fn supervisor_killed_before_recording_its_worker_leaves_no_worker() {
    for point in [
        "supervisor:locked",
        ".plan:written",
        ".plan:published",
        "supervisor:prepared",
        "identity:written",
        "identity:published",
        "supervisor:started",
    ] {
        let sandbox = Sandbox::new();
        sandbox.workers(&[("marks", "touch ran; exec sleep 1000")]);
        sandbox.plan("x", PLAN);
        let ran = sandbox.call("dispatch-spawn", &["x", "--model", "marks"]).crash_at(point).run();
        assert_eq!(ran.code, Some(1), "{point}: {ran:?}");
        supervisor_is_gone(&sandbox);
        all_is_whole(&sandbox, point);
        if point == "supervisor:started" {
            one_worker_runs(&sandbox, point);
            kill_and_wait(sandbox.worker_of("x", 1));
        } else {
            // A child that got no signal to exec ends by itself and never becomes the worker.
            wait_until(&format!("{point}: nothing runs"), || {
                (all_of(&sandbox.home()).is_empty() && sandbox.state("x") != "running")
                    .then_some(())
            });
            assert!(!sandbox.project().join("ran").exists(), "{point}");
        }
        sandbox.ok("dispatch-spawn", &["x", "--resume"]);
        all_is_whole(&sandbox, point);
        one_worker_runs(&sandbox, point);
    }
}

#[test]
fn error_about_a_killed_supervisor_names_the_remedy() {
    let sandbox = project();
    sandbox.plan("x", PLAN);
    let spawn = sandbox.call("dispatch-spawn", &["x"]).crash_at("supervisor:prepared");
    spawn.run().shows(str![[r#"
exit 1
! dispatch-spawn: the supervisor of 'x' ended without a message
!   next: try again: dispatch-spawn x --resume
"#]]);
}

#[test]
fn supervisor_killed_after_the_workers_end_loses_no_work() {
    for point in ["supervisor:ends", "supervisor:reaped", "exit:written", "exit:published"] {
        let sandbox = project();
        sandbox.plan("x", PLAN);
        sandbox.call("dispatch-spawn", &["x"]).crash_at(point).run().ok();
        for step in [&["tick", "1"][..], &["tick", "2"], &["finish", "Mended."]] {
            sandbox.worker("x", step).run().ok();
        }
        kill_and_wait(sandbox.worker_of("x", 1));
        supervisor_is_gone(&sandbox);
        all_is_whole(&sandbox, point);
        assert_eq!(sandbox.task("x", "attempts/1/exit").exists(), point == "exit:published");
        assert_eq!(sandbox.state("x"), "done", "{point}");
        let said = sandbox.ok("dispatch-monitor", &["x"]);
        assert!(said.contains("x done (2/2") && said.contains("\"Mended.\""), "{point}: {said}");
    }
}

#[test]
fn killed_resume_keeps_ticks_and_can_be_repeated() {
    for point in [
        "supervisor:locked",
        "plan.md:written",
        "plan.md:published",
        "001.done:written",
        "001.done:published",
        ".plan:written",
        "prompt.md:written",
        "prompt.md:published",
        "001.told:written",
        "001.told:published",
        "supervisor:prepared",
    ] {
        let sandbox = running();
        sandbox.worker("x", &["ask", "Which."]).env("DISPATCH_WAIT_MS", "0").run();
        sandbox.worker("x", &["tick", "1"]).run().ok();
        sandbox.ok("dispatch-reconcile", &["stop", "x"]);
        sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
        fs::write(sandbox.task("x", "ipc/.done"), "Too early.\n").expect("written");
        let crash = sandbox.call("dispatch-spawn", &["x", "--resume"]).crash_at(point).run();
        assert_eq!(crash.code, Some(1), "{point}: {crash:?}");
        supervisor_is_gone(&sandbox);
        all_is_whole(&sandbox, point);

        sandbox.ok("dispatch-spawn", &["x", "--resume"]);
        all_is_whole(&sandbox, point);
        one_worker_runs(&sandbox, point);
        assert_eq!(sandbox.read("x", "plan.md"), PLAN.replace("[ ] First", "[x] First"), "{point}");
        assert!(!sandbox.task("x", "ipc/.done").exists(), "{point}");
        let attempt = names(&sandbox.task("x", "attempts")).len();
        let prompt = sandbox.read("x", &format!("attempts/{attempt}/prompt.md"));
        assert!(
            prompt.ends_with("It asked (001): Which.\nThe person answered: This.\n"),
            "{point}"
        );
    }
}

#[track_caller]
fn received_once(sandbox: &Sandbox, again: &Ran, point: &str) {
    assert_eq!((again.code, again.out.as_str()), (Some(0), "This.\n"), "{point}: {}", again.err);
    let mut files = names(&sandbox.task("x", "ipc"));
    files.retain(|name| !name.starts_with('.'));
    assert_eq!(files, ["001.answer", "001.done", "001.question"], "{point}");
}

#[test]
fn ask_killed_before_the_answer_can_be_repeated() {
    for point in [
        "001.question:written",
        "001.question:published",
        "ask:published",
        ".001.asked:written",
        ".001.asked:published",
    ] {
        let sandbox = running();
        let ask = || sandbox.worker("x", &["ask", "-"]).input("Which.\n");
        ask().crash_at(point).run().crashed();
        all_is_whole(&sandbox, point);
        let asking = sandbox.state("x") == "asking";
        assert_eq!(asking, point != "001.question:written", "{point}");
        let again = ask().start();
        wait_until("the question to be published", || {
            sandbox.task("x", "ipc/001.question").exists().then_some(())
        });
        sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
        received_once(&sandbox, &again.end(), point);
        all_is_whole(&sandbox, point);
    }
}

#[test]
fn ask_killed_after_the_answer_prints_it_again() {
    for point in ["ask:answered", "001.done:written", "001.done:published"] {
        let sandbox = running();
        let ask = || sandbox.worker("x", &["ask", "-"]).input("Which.\n");
        let killed = ask().crash_at(point).start();
        wait_until("the question to be published", || {
            sandbox.task("x", "ipc/001.question").exists().then_some(())
        });
        sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
        assert_eq!(killed.end().signal, Some(9), "{point}");
        all_is_whole(&sandbox, point);
        received_once(&sandbox, &sandbox.worker("x", &["wait", "001"]).run(), point);
        if point != "001.done:published" {
            continue;
        }
        // The answer counts as read, so the same text is a new question.
        let again = ask().env("DISPATCH_WAIT_MS", "0").run();
        assert!(again.err.contains("wait 002"), "{}", again.err);
    }
}

#[test]
fn killed_answer_arrives_once() {
    for point in [
        "001:written",
        "001:published",
        "answer:recorded",
        "001.answer:written",
        "001.answer:published",
    ] {
        let sandbox = running();
        let ask = sandbox.worker("x", &["ask", "Which."]).start();
        wait_until("the question to be published", || {
            sandbox.task("x", "ipc/001.question").exists().then_some(())
        });
        let answer = |text| sandbox.call("dispatch-monitor", &["--answer", "x/001", text]);
        answer("This.").crash_at(point).run().crashed();
        all_is_whole(&sandbox, point);
        let there = point == "001.answer:published";
        let again = answer("This.").run();
        assert_eq!(again.code, Some(if there { 65 } else { 0 }), "{point}: {}", again.err);
        received_once(&sandbox, &ask.end(), point);
    }
}

#[test]
fn killed_tick_can_be_repeated() {
    for point in ["plan.md:written", "plan.md:published"] {
        let sandbox = running();
        let tick = || sandbox.worker("x", &["tick", "1", "--note", "easy"]);
        tick().crash_at(point).run().crashed();
        let ticked = PLAN.replace("- [ ] First\n", "- [x] First\n  easy\n");
        let killed = if point == "plan.md:written" { PLAN } else { &ticked };
        assert_eq!(sandbox.read("x", "plan.md"), killed, "{point}");
        tick().run().ok();
        assert_eq!(sandbox.read("x", "plan.md"), ticked, "{point}");
    }
}

#[test]
fn killed_finish_can_be_repeated() {
    for point in [".done:written", ".done:published"] {
        let sandbox = running();
        sandbox.worker("x", &["tick", "1"]).run().ok();
        sandbox.worker("x", &["tick", "2"]).run().ok();
        let finish = || sandbox.worker("x", &["finish", "Mended."]);
        finish().crash_at(point).run().crashed();
        let there = point == ".done:published";
        assert_eq!(sandbox.state("x"), if there { "done" } else { "running" }, "{point}");
        assert_eq!(finish().run().ok(), "Finished. End with this one message: x done: Mended.\n");
        assert_eq!(sandbox.read("x", "ipc/.done"), "Mended.\n", "{point}");
        assert_eq!(sandbox.state("x"), "done", "{point}");
    }
}

#[test]
fn killed_note_can_be_repeated() {
    for point in ["001:written", "001:published", "plan.md:written", "plan.md:published"] {
        let sandbox = running();
        let note = || sandbox.call("dispatch-reconcile", &["note", "x", "Mind the gap."]);
        note().crash_at(point).run().crashed();
        all_is_whole(&sandbox, point);
        note().run().ok();
        let plan = sandbox.read("x", "plan.md");
        assert!(plan.starts_with(PLAN), "{point}: {plan}");
        assert!(plan.ends_with("\n> **Note from dispatcher:** Mind the gap.\n"), "{point}: {plan}");
    }
}

#[test]
fn killed_tell_is_told_once() {
    for point in ["001:written", "001:published"] {
        let sandbox = running();
        let tell = || sandbox.worker("x", &["tell", "Careful."]);
        tell().crash_at(point).run().crashed();
        all_is_whole(&sandbox, point);
        tell().run().ok();
        let said = sandbox.ok("dispatch-monitor", &["x"]);
        assert_eq!(said.matches("says: \"Careful.\"").count(), 1, "{point}: {said}");
    }
}

/// Delivery is recorded before printing, so news may be late but is never new twice.
#[test]
fn news_of_a_killed_monitor_is_repeated_as_said_before() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    sandbox.plan("x", PLAN);
    host.calls(sandbox.call("dispatch-spawn", &["x"])).run().ok();
    sandbox.worker("x", &["tell", "Careful."]).run().ok();
    let hook = || host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}");
    hook().crash_at("news:delivered").run().crashed();
    let mut next = hook().start();
    next.until_it_watches();
    let brief = || host.calls(sandbox.call("dispatch-config", &["brief"]));
    // Kill it after printing, before the ledger says that the host has the news.
    let killed = brief().crash_at("news:acknowledged").run();
    assert_eq!(killed.signal, Some(9));
    assert!(killed.out.contains(" (said before) x says: \"Careful.\""), "{}", killed.out);
    assert!(!brief().run().ok().contains("Careful."));
    assert!(!next.has_ended());
}

/// A home directory on the network shows the state files of other machines.
#[test]
fn live_worker_of_another_machine_is_not_lost() {
    let sandbox = project();
    let far = Identity { machine: "far-1a2b3c4d".into(), boot: "another".into(), ..own() };
    sandbox.worked_at("x", "idle", &far);
    let supervisor = fs::File::open(sandbox.task("x", "run.lock")).expect("there");
    supervisor.lock().expect("locked");
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
x running 0/2 1h idle — item 1: First
"#]]);
    drop(supervisor);
    // A process that another test is starting may have the descriptor of the lock until it is its own.
    let repaired = wait_until("the lock to be free", || {
        let ran = sandbox.run("dispatch-reconcile", &[]);
        ran.out.starts_with("repaired").then_some(ran)
    });
    repaired.shows(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
"#]]);
}

/// A new crash point has to be added to a test, and to this list.
#[test]
fn tests_cover_every_crash_point() {
    let call = r#"fault::point\([[:space:]]*"([a-z]+)",[[:space:]]*"([a-z]+)""#;
    let call = regex::Regex::new(call).expect("a regex");
    let mut steps = Vec::new();
    for entry in walkdir::WalkDir::new(crate::support::repository("helpers")) {
        let entry = entry.expect("readable");
        if entry.file_type().is_file() {
            let text = fs::read_to_string(entry.path()).expect("text");
            let found = call.captures_iter(&text).map(|it| format!("{}:{}", &it[1], &it[2]));
            steps.extend(found);
        }
    }
    steps.retain(|step| !step.starts_with("config:"));
    steps.sort();
    same(
        &steps.join("\n"),
        str![[r#"
answer:posted
answer:recorded
ask:answered
ask:published
clean:branch
clean:forgotten
clean:moved
clean:removed
clean:report
clean:task
fetch:branch
job:named
job:submitted
merge:merged
mirror:fetched
mirror:files
mirror:locked
mirror:sent
place:entered
place:starting
place:uploading
spawn:claimed
spawn:prepared
supervisor:checked
supervisor:checks
supervisor:ended
supervisor:ends
supervisor:locked
supervisor:prepared
supervisor:reaped
supervisor:review
supervisor:started
"#]],
    );
}
