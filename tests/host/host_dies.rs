//! The host is killed while a worker waits for an answer; another host takes over.

use std::{fs, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::support::{
    claude::{Claude, Options},
    model::{Model, Reply, Request},
    process::{Home, runs, wait_until},
    skill,
    story::{
        DEADLINE, Gate, Job, REPLY, Seat, ask, asked, dispatcher, file, quiet, run, state, task,
        told, until, waiter,
    },
};

const CONFIG: &str = "
default: opus
backends: { claude: { route: cli } }
models: { opus: { backend: claude } }
";

const JOB: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint door.txt in their colour\n" };

/// The script of the worker's model.
fn painter(request: &Request, project: &Path, may_ask: &Gate) -> Reply {
    match request.turns() {
        0 => {
            may_ask.pass();
            ask(request, "Which colour?")
        }
        1 => {
            let answer = request.last_tool_results().join("\n");
            let door = json!({ "file_path": project.join("door.txt"), "content": answer });
            Reply::call("Write", door)
        }
        2 => run(request, "tick 1"),
        3 => run(request, "finish 'The door is painted.'"),
        _ => Reply::say("That is all."),
    }
}

fn endpoint(home: &Home, may_ask: &Gate) -> Model {
    let (project, may_ask) = (home.project(), may_ask.clone());
    Model::start(move |request| match Seat::of(request) {
        Seat::Host => dispatcher(request, &[JOB]),
        _ => painter(request, &project, &may_ask),
    })
}

fn host(home: &Home, model: &Model) -> Claude {
    Claude::stream(home.path(), &home.project(), model, &Options::mode("acceptEdits"))
}

/// The pid of the worker, from its task's record.
fn worker(home: &Home) -> i32 {
    let identity = file(state(home, "paint").join("attempts/1/identity"));
    let pid = identity.lines().find_map(|line| line.strip_prefix("pid: ")?.parse().ok());
    pid.unwrap_or_else(|| panic!("no pid in {identity}"))
}

/// Starts a new host that answers and gets the end. Returns the line that showed it the question.
#[track_caller]
fn take_over(home: &Home, model: &Model) -> String {
    let before = told(model).len();
    let mut claude = host(home, model);
    claude.say("/dispatch");
    until(&mut claude, home, "paint asks (001)");
    let shown = told(model)[before..].to_vec();
    assert_eq!(shown.len(), 1, "{shown:?}");
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, home, "paint done");
    quiet(home);
    assert!(claude.end(DEADLINE).success());

    assert_eq!(file(home.project().join("door.txt")), "green");
    let task = task(home, "paint");
    assert_eq!(file(task.join("plan.md")), "- [x] Paint door.txt in their colour\n");
    assert_eq!(file(task.join("ipc/.done")), "The door is painted.\n");
    let told = told(model);
    assert_eq!(told.len(), before + 2, "{told:?}");
    assert_eq!(told[before + 1], "paint done (1/1): \"The door is painted.\"");
    shown[0].clone()
}

/// Kills the host between question and answer, and checks that the next host takes over.
fn assert_next_host_takes_over(signal: Signal) {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let may_ask = Gate::default();
    let model = endpoint(&home, &may_ask);
    let mut claude = host(&home, &model);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "Dispatched paint.");
    may_ask.open();
    until(&mut claude, &home, "paint asks (001)");
    waiter(&home);

    claude.kill(signal);
    claude.wait_end(DEADLINE);
    wait_until(DEADLINE, "the end of the old waiter", || {
        home.running("dispatch-monitor").is_empty().then_some(())
    });
    assert!(runs(worker(&home)), "the worker lives on");

    // The old host may have died before its user saw the question.
    assert_eq!(take_over(&home, &model), "(said before) paint asks (001): \"Which colour?\"");
    // The first host: dispatched, the question. The new host: the question, passed on, the end.
    // Each makes one call.
    assert_eq!(asked(&model, Seat::Host).len(), 7);
    let calls: Vec<_> = asked(&model, Seat::Claude).iter().map(|it| it.turns()).collect();
    assert_eq!(calls, [0, 1, 2, 3, 4], "the same worker, to its end");
}

#[test]
fn terminated_host_leaves_worker_and_question() {
    assert_next_host_takes_over(Signal::SIGTERM);
}

#[test]
fn killed_host_leaves_worker_and_question() {
    assert_next_host_takes_over(Signal::SIGKILL);
}

#[test]
fn waiter_of_a_killed_host_ends_without_delivering() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let may_ask = Gate::default();
    let model = endpoint(&home, &may_ask);
    let mut claude = host(&home, &model);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "Dispatched paint.");
    let old = waiter(&home);

    // When the old waiter looks again, its host is dead and the question is there.
    kill(Pid::from_raw(old), Signal::SIGSTOP).expect("the waiter is there");
    claude.kill(Signal::SIGKILL);
    claude.wait_end(DEADLINE);
    may_ask.open();
    let question = task(&home, "paint").join("ipc/001.question");
    wait_until(DEADLINE, "the question", || question.exists().then_some(()));
    kill(Pid::from_raw(old), Signal::SIGCONT).expect("the waiter is there");
    wait_until(DEADLINE, "the end of the old waiter", || (!runs(old)).then_some(()));
    assert_eq!(fs::read_to_string(state(&home, "paint").join("news")).unwrap_or_default(), "");
    assert!(runs(worker(&home)), "the worker lives on");

    assert_eq!(take_over(&home, &model), "paint asks (001): \"Which colour?\"");
}
