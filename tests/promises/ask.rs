//! A question waits for its answer for as long as needed, over many calls.

use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::made::Random;
use crate::support::text::names;
use crate::support::{Call, Sandbox, wait_until};

fn running() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox
}

/// A call that returns at once.
fn without_waiting(call: Call) -> Call {
    call.env("DISPATCH_WAIT_MS", "0")
}

#[track_caller]
fn wait_until_asked(sandbox: &Sandbox, number: &str) {
    let question = sandbox.task("x", &format!("ipc/{number}.question"));
    wait_until("the question is there", || question.exists().then_some(()));
}

#[test]
fn answer_arrives_byte_for_byte() {
    let sandbox = running();
    let question = "--which \"one\"?\n\n\t$(rm) `x` 'y'\n";
    let ask = sandbox.worker("x", &["ask", "-"]).input(question).start();
    wait_until_asked(&sandbox, "001");
    assert_eq!(sandbox.read("x", "ipc/001.question"), question);
    let answer = "--the second\n\n  - \"quoted\" $HOME `z` ünï\n";
    let post = sandbox.call("dispatch-monitor", &["--answer", "x", "-"]).input(answer);
    post.run().ok();
    assert_eq!(ask.end().ok(), answer);
    assert_eq!(
        names(&sandbox.task("x", "ipc")),
        [".001.asked", ".plan", "001.answer", "001.done", "001.question"]
    );
}

#[test]
fn answer_written_by_hand_in_pieces_arrives_whole() {
    let sandbox = running();
    let ask = |look: &str| {
        let ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_LOOK_MS", look).start();
        wait_until_asked(&sandbox, "001");
        (ask, fs::File::create(sandbox.task("x", "ipc/001.answer")).expect("created"))
    };
    // Only the end of the writing makes this one whole.
    let (worker, mut file) = ask("3600000");
    for piece in ["The ", "second", " one."] {
        file.write_all(piece.as_bytes()).expect("written");
        let show = sandbox.ok("dispatch-reconcile", &["show", "x"]);
        assert!(show.contains("answer 001 (being written): \"The"), "{show}");
        // The change of another file makes the worker look.
        fs::write(sandbox.task("x", "ipc/other"), piece).expect("written");
    }
    drop(file);
    assert_eq!(worker.end().ok(), "The second one.\n");

    // The file of this one stays open.
    fs::remove_file(sandbox.task("x", "ipc/001.answer")).expect("removed");
    fs::remove_file(sandbox.task("x", "ipc/001.done")).expect("removed");
    let (worker, mut file) = ask("20");
    file.write_all(b"The first").expect("written");
    assert_eq!(worker.end().ok(), "The first\n");
}

/// Longer than any test, so that only the end of the writing makes a text whole.
const NEVER: &str = "3600000";

fn has(sandbox: &Sandbox, helper: &str, args: &[&str], expected: &str) {
    let ran = sandbox.run(helper, args);
    assert!(ran.out.contains(expected) || ran.err.contains(expected), "{args:?}: {ran:?}");
}

#[test]
fn question_written_in_pieces_is_told_once_it_is_closed() {
    let sandbox = running();
    for seed in 1..=3 {
        let mut random = Random(seed);
        let name = format!("{seed:03}");
        let monitor = sandbox.call("dispatch-monitor", &["x"]).env("DISPATCH_LOOK_MS", NEVER);
        let mut monitor = monitor.start();
        monitor.until_it_watches();
        let path = sandbox.task("x", &format!("ipc/{name}.question"));
        let mut file = fs::File::create(path).expect("created");
        let mut written = String::new();
        for piece in 0..1 + random.below(4) {
            let piece = format!("{piece} {}", "x".repeat(random.below(300)));
            file.write_all(piece.as_bytes()).expect("written");
            written += &piece;
            // Helpers that look once show the text and leave it alone.
            let shown = format!("{name} (being written): \"{}", &written[..2]);
            has(&sandbox, "dispatch-reconcile", &["show", "x"], &format!("question {shown}"));
            has(&sandbox, "dispatch-reconcile", &["status"], &format!("— {shown}"));
            let answer = ["--answer", &format!("x/{name}"), "This."];
            has(&sandbox, "dispatch-monitor", &answer, "' is being written\n");
            assert!(!monitor.has_ended());
        }
        file.write_all(b" Which?\n").expect("written");
        drop(file);
        let told = monitor.end().ok();
        assert!(told.contains(&format!("x asks ({name}): \"{}", &written[..2])), "{told}");
        sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
        let recorded = sandbox.read("x", &format!("answers/{name}"));
        let recorded: serde_json::Value = serde_json::from_str(&recorded).expect("JSON");
        assert_eq!(recorded["question"], format!("{written} Which?\n"));
    }
}

#[test]
fn question_whose_file_was_empty_and_stays_open_is_told() {
    let sandbox = running();
    let monitor = sandbox.call("dispatch-monitor", &["x"]).env("DISPATCH_LOOK_MS", "20");
    let mut file = fs::File::create(sandbox.task("x", "ipc/001.question")).expect("created");
    let mut monitor = monitor.start();
    monitor.until_it_watches();
    file.write_all(b"Which").expect("written");
    assert!(monitor.end().ok().contains("x asks (001): \"Which\""));
}

#[test]
fn question_whose_file_stays_open_is_told_at_the_second_equal_look() {
    let sandbox = running();
    let monitor = || sandbox.call("dispatch-monitor", &["x"]).env("DISPATCH_LOOK_MS", "20");
    let mut file = fs::File::create(sandbox.task("x", "ipc/001.question")).expect("created");
    file.write_all(b"Which").expect("written");
    assert!(monitor().run().ok().contains("x asks (001): \"Which\""));
    // A text that changed after it was told is news again, and the old one takes no answer.
    file.write_all(b" of these?").expect("written");
    let answer = ["--answer", "x/001", "This."];
    has(&sandbox, "dispatch-monitor", &answer, "has changed since it was told");
    assert!(monitor().run().ok().contains("x asks (001): \"Which of these?\""));
    sandbox.ok("dispatch-monitor", &answer);
}

#[test]
fn answer_may_begin_with_a_dash() {
    let sandbox = running();
    let ask = sandbox.worker("x", &["ask", "--really?"]).start();
    wait_until_asked(&sandbox, "001");
    sandbox.ok("dispatch-monitor", &["--answer", "x", "--no"]);
    assert_eq!(ask.end().ok(), "--no\n");
}

#[test]
fn ask_without_an_answer_names_the_call_that_keeps_waiting() {
    let sandbox = running();
    without_waiting(sandbox.worker("x", &["ask", "Which?"])).run().shows(str![[r#"
exit 75
! dispatch-worker: no answer yet
!   next: call again: BIN/dispatch-worker --task-dir PROJECT/.dispatch/tasks/x wait 001
"#]]);
    without_waiting(sandbox.worker("x", &["wait", "001"])).run().shows(str![[r#"
exit 75
! dispatch-worker: no answer yet
!   next: call again: BIN/dispatch-worker --task-dir PROJECT/.dispatch/tasks/x wait 001
"#]]);
    let wait = sandbox.worker("x", &["wait", "001"]).start();
    sandbox.ok("dispatch-monitor", &["--answer", "x/001", "This."]);
    assert_eq!(wait.end().ok(), "This.\n");
    // A second read returns the answer again.
    assert_eq!(sandbox.worker("x", &["wait", "001"]).run().ok(), "This.\n");
}

#[test]
fn repeated_question_is_one_question_until_its_answer_is_read() {
    let sandbox = running();
    for _ in 0..2 {
        assert_eq!(without_waiting(sandbox.worker("x", &["ask", "Go on?"])).run().code, Some(75));
        assert!(!sandbox.task("x", "ipc/002.question").exists());
    }
    sandbox.ok("dispatch-monitor", &["--answer", "x", "Yes."]);
    assert_eq!(sandbox.worker("x", &["ask", "Go on?"]).run().ok(), "Yes.\n");
    assert_eq!(without_waiting(sandbox.worker("x", &["ask", "Go on?"])).run().code, Some(75));
    assert!(sandbox.task("x", "ipc/002.question").exists());
}

#[test]
fn expired_patience_tells_the_worker_how_to_stop() {
    let sandbox = running();
    let path = sandbox.home().join(".dispatch/config.yaml");
    let config = fs::read_to_string(&path).expect("text");
    fs::write(&path, format!("patience: 0\n{config}")).expect("written");
    sandbox.worker("x", &["ask", "Which?"]).run().shows(str![[r#"
exit 3
! dispatch-worker: no answer came in time
!   write what you found to PROJECT/.dispatch/tasks/x/context.md
!   next: block the item with the question, and stop
"#]]);
}

#[test]
fn questions_can_be_answered_in_any_order() {
    let sandbox = running();
    let first = sandbox.worker("x", &["ask", "First?"]).start();
    wait_until_asked(&sandbox, "001");
    let second = sandbox.worker("x", &["ask", "Second?"]).start();
    wait_until_asked(&sandbox, "002");
    // An answer without a number goes to the newest question.
    sandbox.run("dispatch-monitor", &["--answer", "x", "Two."]).shows(str![[r#"
exit 0
x/002 answered, its worker continues
"#]]);
    assert_eq!(second.end().ok(), "Two.\n");
    sandbox.run("dispatch-monitor", &["--answer", "x/001", "One."]).shows(str![[r#"
exit 0
x/001 answered, its worker continues
"#]]);
    assert_eq!(first.end().ok(), "One.\n");
}

#[test]
fn concurrent_questions_get_different_numbers() {
    let sandbox = running();
    let texts: Vec<String> = (0..12).map(|n| format!("Question {n}?")).collect();
    let calls: Vec<_> = texts
        .iter()
        .map(|text| without_waiting(sandbox.worker("x", &["ask", text])).start())
        .collect();
    for call in calls {
        assert_eq!(call.end().code, Some(75));
    }
    let numbers = (1..=12).map(|n| format!("ipc/{n:03}.question"));
    let mut asked: Vec<String> =
        numbers.map(|path| sandbox.read("x", &path).trim().to_owned()).collect();
    asked.sort_by_key(|text| text[9..text.len() - 1].parse::<u32>().expect("a number"));
    assert_eq!(asked, texts);
}

#[test]
fn interrupted_ask_names_the_call_that_keeps_waiting() {
    let sandbox = running();
    let mut ask = sandbox.worker("x", &["ask", "Which?"]).start();
    ask.until_it_watches();
    ask.signal(Signal::SIGTERM);
    ask.end().shows(str![[r#"
exit 75
! dispatch-worker: no answer yet
!   next: call again: BIN/dispatch-worker --task-dir PROJECT/.dispatch/tasks/x wait 001
"#]]);
    assert_eq!(sandbox.state("x"), "asking");
}

#[test]
fn ask_that_is_interrupted_within_the_patience_may_keep_waiting() {
    let sandbox = running();
    let mut ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_PATIENCE", "1").start();
    wait_until_asked(&sandbox, "001");
    ask.until_it_watches();
    ask.signal(Signal::SIGTERM);
    assert_eq!(ask.end().code, Some(75));
}

#[test]
fn answer_after_the_workers_end_resumes_the_task() {
    let sandbox = running();
    assert_eq!(without_waiting(sandbox.worker("x", &["ask", "Which?"])).run().code, Some(75));
    crate::support::process::kill_and_wait(sandbox.worker_of("x", 1));
    sandbox.wait_for_state("x", "blocked");
    sandbox.run("dispatch-monitor", &["--answer", "x", "This."]).shows(str![[r#"
exit 0
x/001 answered, its worker had ended and was resumed
"#]]);
}

#[test]
fn two_writers_store_four_hundred_questions_whole() {
    let sandbox = running();
    std::thread::scope(|scope| {
        for writer in ["one", "two"] {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for n in 0..200 {
                    let ask = without_waiting(sandbox.worker("x", &["ask", "-"]));
                    let text = format!("Question {n} of {writer}? {}", "words ".repeat(200));
                    assert_eq!(ask.input(text).run().code, Some(75));
                }
            });
        }
    });
    let mut asked = std::collections::BTreeSet::new();
    for number in 1..=400 {
        let text = sandbox.read("x", &format!("ipc/{number:03}.question"));
        assert!(text.ends_with("words\n"), "{number}: {text:?}");
        let start = text.split('?').next().expect("a start").to_owned();
        assert!(asked.insert(start), "{number}: {text}");
    }
}

#[test]
fn question_numbers_continue_after_999() {
    let sandbox = running();
    fs::create_dir_all(sandbox.task("x", "ipc")).expect("made");
    sandbox.write("x", "ipc/999.question", "Old?\n");
    fs::write(sandbox.task("x", "ipc/999.done"), "").expect("written");
    let ask = sandbox.worker("x", &["ask", "Which?"]).start();
    wait_until_asked(&sandbox, "1000");
    sandbox.ok("dispatch-monitor", &["--answer", "x/1000", "This."]);
    assert_eq!(ask.end().ok(), "This.\n");
}

#[test]
fn questions_and_answers_may_be_any_text_of_any_size() {
    let large = "All of this?\n".repeat(80_000);
    let texts = [
        "$(touch ran) `touch ran` 'a' \"b\" \\n %s *",
        "a\r\nb\r\nc",
        "🦀 ünï 日本 \u{202e}",
        &large,
    ];
    for text in texts {
        let sandbox = running();
        let ask = sandbox.worker("x", &["ask", "-"]).input(text).start();
        wait_until_asked(&sandbox, "001");
        let whole = format!("{}\n", text.trim_end());
        assert_eq!(sandbox.read("x", "ipc/001.question"), whole);
        assert!(sandbox.ok("dispatch-monitor", &["x"]).starts_with('#'));
        sandbox.call("dispatch-monitor", &["--answer", "x", "-"]).input(text).run().ok();
        assert_eq!(ask.end().ok(), whole);
        assert!(!sandbox.project().join("ran").exists());
    }
}

/// A worker that follows the original's file protocol without any helper.
mod files_only {
    use std::fs;
    use std::io::Write as _;

    use snapbox::str;

    use crate::support::text::{names, same};
    use crate::support::{Sandbox, wait_until};

    /// The original's protocol in ten lines: markers in the plan, a question by rename, a poll for
    /// the answer, a marker for the read answer, and a finish marker.
    const WORKER: &str = r#"
cd .dispatch/tasks/survey || exit 1
printf '%s' "$1" >../../../prompt-seen
sed 's/- \[ \] Look/- [x] Look/' plan.md >plan.new && mv plan.new plan.md
echo 'Which database?' >ipc/001.question.tmp && mv ipc/001.question.tmp ipc/001.question
while [ ! -f ipc/001.answer ]; do sleep 0.05; done
answer=$(cat ipc/001.answer) && touch ipc/001.done
echo "We use $answer." >output.md
sed 's/- \[ \] Write/- [x] Write/' plan.md >plan.new && mv plan.new plan.md
touch ipc/.done
"#;

    const PLAN: &str = "# Survey\n- [ ] Look around\n- [ ] Write output.md\n";

    #[test]
    fn worker_without_helpers_asks_and_finishes() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[("seed", WORKER)]);
        sandbox.plan("survey", PLAN);
        sandbox.run("dispatch-spawn", &["survey", "--model", "seed"]).shows(str![[r#"
exit 0
survey (Survey, 2 items) started with seed. Tell the user and stop; news wakes you.
"#]]);

        sandbox.run("dispatch-monitor", &["survey"]).shows(str![[r#"
exit 0
#ID survey asks (001): "Which database?" → ask the user, then run: BIN/dispatch-monitor --answer survey/001 - <<'END_TEXT' (the answer, then END_TEXT)
"#]]);
        assert_eq!(sandbox.state("survey"), "asking");
        sandbox
            .call("dispatch-monitor", &["--answer", "survey", "-"])
            .input("SQLite\n")
            .run()
            .shows(str![[r#"
exit 0
survey/001 answered, its worker continues
"#]]);

        sandbox.run("dispatch-monitor", &["survey"]).shows(str![[r#"
exit 0
#ID survey done (2/2, AGE) Report: PROJECT/.dispatch/tasks/survey/output.md → tell the user
"#]]);
        assert_eq!(sandbox.state("survey"), "done");
        assert_eq!(sandbox.read("survey", "output.md"), "We use SQLite.\n");
        assert_eq!(
            names(&sandbox.task("survey", "ipc")),
            [".done", ".plan", "001.answer", "001.done", "001.question"]
        );
        same(
            &sandbox.read("survey", "plan.md"),
            str![[r#"
# Survey
- [x] Look around
- [x] Write output.md

"#]],
        );
        let prompt = fs::read_to_string(sandbox.project().join("prompt-seen")).expect("a prompt");
        assert_eq!(prompt, sandbox.read("survey", "prompt.md"));
    }

    /// The dispatcher of the seeds has files only, too: a directory, an answer and a note.
    #[test]
    fn dispatcher_without_helpers_reaches_a_live_worker() {
        let sandbox = Sandbox::new();
        let worker = r#"cd "$DISPATCH_TASK_DIR"; echo 'Which?' >ipc/001.question.tmp
mv ipc/001.question.tmp ipc/001.question
until [ -e ipc/001.answer ]; do sleep 0.1; done
cp ipc/001.answer output.md; touch ipc/001.done
until grep -q 'Keep it short' plan.md; do sleep 0.1; done
sed 's/- \[ \]/- [x]/' plan.md >plan.new && mv plan.new plan.md && touch ipc/.done"#;
        sandbox.workers(&[("seed", worker)]);
        sandbox.plan("survey", PLAN);
        fs::create_dir_all(sandbox.task("survey", "ipc")).expect("made");
        sandbox.ok("dispatch-spawn", &["survey", "--model", "seed"]);
        sandbox.wait_for_state("survey", "asking");
        let temporary = sandbox.task("survey", "ipc/001.answer.tmp");
        fs::write(&temporary, "SQLite\n").expect("written");
        fs::rename(temporary, sandbox.task("survey", "ipc/001.answer")).expect("renamed");
        let plan = sandbox.task("survey", "plan.md");
        let mut plan = fs::File::options().append(true).open(plan).expect("there");
        plan.write_all(b"\n> **Note from dispatcher:** Keep it short.\n").expect("written");
        sandbox.wait_for_state("survey", "done");
        assert_eq!(sandbox.read("survey", "output.md"), "SQLite\n");
        let plan = sandbox.read("survey", "plan.md");
        assert!(plan.contains("Keep it short.") && !plan.contains("[ ]"), "{plan}");
    }

    #[test]
    fn reason_of_a_marked_item_is_read_inline_and_from_the_next_line() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[(
            "seed",
            "p=.dispatch/tasks/x/plan.md\nsed 's/\\[ \\] First/[!] First — cargo is missing/' $p >$p.new && mv $p.new $p",
        ), (
            "next",
            "p=.dispatch/tasks/y/plan.md\nsed 's/\\[ \\] First/[?] First\\n  Which of the two?/' $p >$p.new && mv $p.new $p",
        )]);
        sandbox.dispatch("x", "seed");
        sandbox.dispatch("y", "next");
        sandbox.wait_for_state("x", "failed: item 1: \"cargo is missing\"");
        sandbox.wait_for_state("y", "blocked: item 1: \"Which of the two?\"");
    }

    #[test]
    fn finish_marker_with_items_left_is_not_done() {
        let sandbox = Sandbox::new();
        sandbox.workers(&[("seed", "touch .dispatch/tasks/x/ipc/.done")]);
        sandbox.dispatch("x", "seed");
        sandbox.wait_for_state("x", "incomplete: finish marker set with items unticked");
        assert!(sandbox.task("x", "ipc/.done").exists());
        wait_until("the end is recorded", || {
            sandbox.task("x", "attempts/1/exit").exists().then_some(())
        });
    }
}
