//! An answer to a worker that has given up resumes the session of its CLI.

use crate::support::{
    claude::{Claude, Options},
    codex,
    model::{Model, Reply},
    process::Home,
    request::Request,
    skill,
    story::{
        DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, state, task,
        told, until,
    },
};

const CONFIG: &str = "
default: opus
patience: 0
backends: { claude: { route: cli }, codex: {} }
models: { opus: { backend: claude }, gpt-5.5: { backend: codex } }
";

/// The moment of the answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// Long after the worker's end.
    Late,
    /// When the worker has given up and not yet ended.
    AsItGivesUp,
}

/// The script of either CLI's model: it gives up once, and continues with the answer.
fn painter(request: &Request, may_block: &Gate) -> Reply {
    match request.turns() {
        0 => run(request, "ask 'Which colour?'"),
        1 => {
            let result = request.last_tool_results().join("\n");
            assert!(result.contains("no answer came in time"), "{result}");
            may_block.pass();
            run(request, "block 1 'Which colour?'")
        }
        2 => Reply::say("Nobody told me the colour."),
        3 => {
            let prompt = request.last_user();
            assert!(prompt.contains("You asked (001): Which colour?"), "{prompt}");
            let (_, answer) = prompt.split_once("The person answered: ").expect("an answer");
            Reply::shell(request, &format!("echo {} > door.txt", answer.trim()))
        }
        4 => run(request, "tick 1"),
        5 => run(request, "finish 'The door is painted.'"),
        _ => Reply::say("That is all."),
    }
}

#[track_caller]
fn assert_session_resumes(worker: &'static str, seat: Seat, when: When) {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let gate = Gate::default();
    let may_block = gate.clone();
    let plan = "- [ ] Paint door.txt in their colour\n";
    let job = Job { id: "paint", model: worker, plan };
    let model = Model::start(move |request| match Seat::of(request) {
        Seat::Host => dispatcher(request, std::slice::from_ref(&job)),
        _ => painter(request, &may_block),
    });
    codex::configure(home.path(), &model);
    let options = Options::mode("acceptEdits");
    let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
    claude.say("/dispatch paint the door");
    until(&mut claude, &home, "Dispatched paint.");
    until(&mut claude, &home, "paint asks (001)");
    let answered = match when {
        When::Late => {
            gate.open();
            until(&mut claude, &home, "paint blocked");
            "Passed on: paint/001 answered, its worker had ended and was resumed"
        }
        When::AsItGivesUp => "Passed on: paint/001 answered, its worker continues",
    };
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, answered);
    gate.open();
    until(&mut claude, &home, "paint done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());
    check(&home, &model, seat, when);
}

#[track_caller]
fn check(home: &Home, model: &Model, seat: Seat, when: When) {
    assert_eq!(file(home.project().join("door.txt")), "green\n");
    let (task, state) = (task(home, "paint"), state(home, "paint"));
    assert!(task.join("ipc/001.done").exists());
    let session = |attempt: u32| file(state.join(format!("attempts/{attempt}/session")));
    assert_eq!(session(1), session(2), "the same session");
    assert!(!state.join("attempts/3").exists(), "resumed once");
    let turns: Vec<_> = asked(model, seat).iter().map(|it| it.turns()).collect();
    assert_eq!(turns, [0, 1, 2, 3, 4, 5, 6], "no more than that");

    let all = [
        "paint asks (001): \"Which colour?\"",
        "paint blocked (0/1): \"item 1: Which colour?\"",
        "paint done (1/1): \"The door is painted.\"",
    ];
    let told = told(model);
    match when {
        When::Late => assert_eq!(told, all),
        When::AsItGivesUp => assert_eq!(told, [all[0], all[2]]),
    }
    // The two messages, two calls, and the request after each call: dispatched, and passed on.
    assert_eq!(called(model), ["Bash", "Bash"]);
    assert_eq!(asked(model, Seat::Host).len(), told.len() + 4);
}

#[test]
fn late_answer_resumes_the_claude_session() {
    assert_session_resumes("opus", Seat::Claude, When::Late);
}

#[test]
fn late_answer_resumes_the_codex_session() {
    assert_session_resumes("gpt-5.5", Seat::Codex, When::Late);
}

#[test]
fn answer_while_claude_gives_up_resumes_its_session() {
    assert_session_resumes("opus", Seat::Claude, When::AsItGivesUp);
}

#[test]
fn answer_while_codex_gives_up_resumes_its_session() {
    assert_session_resumes("gpt-5.5", Seat::Codex, When::AsItGivesUp);
}
