//! A host without hooks gets the news from `dispatch-monitor` as a background command.

use regex::Regex;
use serde_json::json;

use crate::support::{
    claude::{Claude, Options, Terminal},
    model::{Model, Reply, Request},
    process::Home,
    skill,
    story::{
        DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, news, quiet,
        read_prompt, run, task, told, until,
    },
};

const CONFIG: &str = "
default: opus
backends: { claude: { route: ROUTE } }
models: { opus: { backend: claude } }
";

const JOB: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint door.txt in their colour\n" };

/// The script of a model without the hook: after a dispatch and after an answer it starts the
/// monitor, and reads its output when it has ended.
fn watcher(request: &Request) -> Reply {
    let new = request.last_user();
    let last = request.calls().pop().filter(|_| !request.last_tool_results().is_empty());
    let monitors = |command: &str| command.ends_with("dispatch-monitor");
    let begins = |command: &str| {
        let agents = new.contains("make this Agent call now");
        command.contains("dispatch-spawn") && !agents || command.contains("--answer")
    };
    match last.as_ref().map(|(name, input)| (name.as_str(), &input["command"])) {
        Some(("Bash", command)) if command.as_str().is_some_and(begins) => monitor(request),
        Some(("Agent", _)) => monitor(request),
        Some(("Bash", command)) if command.as_str().is_some_and(monitors) => {
            Reply::say("I shall hear of it.")
        }
        Some(("Read", _)) if new.contains("nothing is running") => {
            Reply::say("Nothing is running.")
        }
        Some(("Read", _)) => Reply::say(news(&new).join("\n")),
        None if new.contains("Background command \"News of paint\"") => {
            let (_, path) = new.split_once("<output-file>").expect("where its output is");
            let path = path.split("</output-file>").next();
            Reply::call("Read", json!({ "file_path": path }))
        }
        _ => dispatcher(request, &[JOB]),
    }
}

fn monitor(request: &Request) -> Reply {
    let texts = request.texts().join("\n");
    let bin = Regex::new(r#""([^"]+)/dispatch-spawn""#).expect("an expression");
    let bin = &bin.captures(&texts).expect("the skill says where")[1];
    let command = format!("{bin}/dispatch-monitor");
    Reply::call(
        "Bash",
        json!({
            "command": command, "description": "News of paint",
            "run_in_background": true, "timeout": 7_200_000,
        }),
    )
}

/// The points where the worker waits for the host, so that every run is the same.
#[derive(Clone, Default)]
struct Gates {
    ask: Gate,
    proceed: Gate,
    end: Gate,
}

/// The script of the worker on either route.
fn painter(request: &Request, gates: &Gates) -> Reply {
    let result = request.last_tool_results().join("\n");
    match request.turns() {
        0 if request.is_agent() => read_prompt(&request.first_user()),
        0 => Reply::shell(request, "true"),
        1 => {
            gates.ask.pass();
            run(request, "ask 'Which colour?'")
        }
        2 => {
            gates.proceed.pass();
            run(request, &format!("tick 1 --note '{result}'"))
        }
        3 => run(request, "finish 'The door is painted.'"),
        _ => {
            gates.end.pass();
            Reply::say(result.split(": ").last().unwrap_or_default())
        }
    }
}

/// A home without the hook, and the endpoint.
fn ready(route: &str) -> (Home, Model, Gates) {
    let home = skill::ready(&CONFIG.replace("ROUTE", route));
    skill::allow(&home);
    skill::without_hooks(&home, "hooks");
    let gates = Gates::default();
    let of_script = gates.clone();
    let model = Model::start(move |request| match Seat::of(request) {
        Seat::Host => watcher(request),
        _ => painter(request, &of_script),
    });
    (home, model, gates)
}

/// Plays the story of a route, in which `last` is the monitor's last line. Returns the home, which
/// has to stay alive, and the endpoint.
#[track_caller]
fn live(route: &str, last: &str) -> (Home, Model) {
    let (home, model, gates) = ready(route);
    let options = Options::mode("acceptEdits");
    let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "I shall hear of it.");
    gates.ask.open();
    until(&mut claude, &home, "paint asks (001)");
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, "I shall hear of it.");
    gates.proceed.open();
    until(&mut claude, &home, last);
    gates.end.open();
    if route == "agent" {
        until(&mut claude, &home, "The worker says: The door is painted.");
    }
    quiet(&home);
    assert!(claude.end(DEADLINE).success());
    (home, model)
}

/// Checks the outcome of the story of a worker process.
#[track_caller]
fn check_own(home: &Home, model: &Model) {
    let plan = file(task(home, "paint").join("plan.md"));
    assert_eq!(plan, "- [x] Paint door.txt in their colour\n  green\n");
    assert_eq!(
        told(model),
        ["paint asks (001): \"Which colour?\"", "paint done (1/1): \"The door is painted.\""]
    );
    assert_eq!(called(model), ["Bash", "Bash", "Read", "Bash", "Bash", "Read"]);
    // The calls, and four requests without a call: the monitor's start and the news, twice each.
    assert_eq!(asked(model, Seat::Host).len(), 10);
}

#[test]
fn background_monitor_reports_a_worker_process() {
    let (home, model) = live("cli", "paint done");
    check_own(&home, &model);
}

#[test]
fn background_monitor_reports_a_worker_process_on_the_screen() {
    let (home, model) = on_the_screen("cli", "paint done");
    check_own(&home, &model);
}

/// Plays the story on the host's screen, typed by a person.
#[track_caller]
fn on_the_screen(route: &str, last: &str) -> (Home, Model) {
    let (home, model, gates) = ready(route);
    let options = Options::mode("acceptEdits");
    let terminal = Terminal::start(home.path(), &home.project(), &model, &options);
    let shows = |text: &str| terminal.wait_screen(DEADLINE, |screen| screen.contains(text));
    shows("❯");
    terminal.line("/dispatch use opus to paint the door");
    shows("I shall hear of it.");
    gates.ask.open();
    shows("paint asks (001)");
    terminal.line(&format!("{REPLY}green"));
    let twice = |screen: &str| screen.matches("I shall hear of it.").count() == 2;
    terminal.wait_screen(DEADLINE, twice);
    gates.proceed.open();
    shows(last);
    gates.end.open();
    if route == "agent" {
        shows("The worker says: The door is painted.");
    }
    quiet(&home);
    (home, model)
}

#[test]
fn background_monitor_leaves_an_agents_end_to_the_host() {
    let (home, model) = live("agent", "Nothing is running.");
    check_agents(&home, &model);
}

#[test]
fn background_monitor_reports_an_agent_on_the_screen() {
    let (home, model) = on_the_screen("agent", "Nothing is running.");
    check_agents(&home, &model);
}

/// Checks the outcome of the story of an agent.
#[track_caller]
fn check_agents(home: &Home, model: &Model) {
    let plan = file(task(home, "paint").join("plan.md"));
    assert_eq!(plan, "- [x] Paint door.txt in their colour\n  green\n");
    assert_eq!(told(model), ["paint asks (001): \"Which colour?\""]);
    assert_eq!(called(model), ["Bash", "Agent", "Bash", "Read", "Bash", "Bash", "Read"]);
    // The calls, and five requests without a call: the monitor's start twice, the question, the
    // monitor's end, the agent's end.
    assert_eq!(asked(model, Seat::Host).len(), 12);
}
