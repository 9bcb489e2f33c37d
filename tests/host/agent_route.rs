//! A task that an agent of the host carries out, from `/dispatch` to the report.

use std::{fs, path::Path};

use serde_json::json;

use crate::support::{
    claude::{Claude, Options, Terminal},
    model::{Model, Reply, Request},
    process::{Home, wait_until},
    skill,
    story::{
        DEADLINE, Gate, Job, REPLY, Seat, ask, asked, called, dispatcher, file, quiet, read_prompt,
        run, state, task, told, until,
    },
};

const CONFIG: &str = "
default: opus
backends: { claude: {} }
models: { opus: { backend: claude } }
aliases: { poet: { model: opus, prompt: You are a poet. Every line rhymes. } }
";

const PLAN: &str = "# A greeting
- [ ] Read door.txt
- [ ] Write greeting.txt in the colour that the user wants
- [ ] Write the summary to .dispatch/tasks/greet/output.md

## Context
\"Paint a greeting on the door, and ask me for the colour.\"
";

const TICKED: &str = "# A greeting
- [x] Read door.txt
  it is of oak
- [x] Write greeting.txt in the colour that the user wants
- [x] Write the summary to .dispatch/tasks/greet/output.md
";

const QUESTION: &str = "Which colour?\nThe door's wood is \"dark\" & takes <any>.";

const ANSWER: &str = "it's \"blue\", like $HOME";

const SUMMARY: &str = "Painted the greeting in the colour that you named.";

/// The points where one side waits for the other, so that every run is the same.
#[derive(Clone, Default)]
struct Gates {
    /// The host's turn has ended.
    ask: Gate,
    /// The host has said that the answer is on its way.
    end: Gate,
}

/// The endpoint, where the host's model dispatches to the worker of that name.
fn endpoint(home: &Home, name: &'static str, gates: &Gates) -> Model {
    let (project, gates) = (home.project(), gates.clone());
    let job = Job { id: "greet", model: name, plan: PLAN };
    Model::start(move |request| match Seat::of(request) {
        Seat::Host => dispatcher(request, std::slice::from_ref(&job)),
        _ => agent(request, &project, &gates),
    })
}

/// The script of the agent's model.
fn agent(request: &Request, project: &Path, gates: &Gates) -> Reply {
    let result = request.last_tool_results().join("\n");
    match request.turns() {
        0 => read_prompt(&request.first_user()),
        1 => Reply::call("Read", json!({ "file_path": project.join("door.txt") })),
        2 => run(request, "tick 1 --note 'it is of oak'"),
        3 => {
            gates.ask.pass();
            ask(request, QUESTION)
        }
        4 => {
            gates.end.pass();
            let greeting = json!({
                "file_path": project.join("greeting.txt"),
                "content": format!("Hello in {result}\n"),
            });
            Reply::call("Write", greeting)
        }
        5 => run(request, "tick 2"),
        6 => run(request, "report - <<'END_TEXT'\nThe greeting is on the door.\nEND_TEXT"),
        7 => run(request, "tick 3"),
        8 => run(request, &format!("finish '{SUMMARY}'")),
        _ => {
            let last = result.split_once("this one message: ");
            Reply::say(last.expect("finish says what to say").1)
        }
    }
}

/// Plays the story as the person sees it; returns the permissions that the person was asked for.
#[track_caller]
fn live(
    home: &Home,
    model: &Model,
    gates: &Gates,
    options: &Options,
    request: &str,
) -> Vec<String> {
    fs::write(home.project().join("door.txt"), "oak\n").expect("a file");
    let mut claude = Claude::stream(home.path(), &home.project(), model, options);
    claude.say(request);
    let mut permitted = until(&mut claude, home, "The worker has begun.");
    gates.ask.open();
    permitted.extend(until(&mut claude, home, "greet asks (001)"));
    claude.say(&format!("{REPLY}{ANSWER}"));
    permitted.extend(until(&mut claude, home, "Passed on: "));
    gates.end.open();
    permitted.extend(until(&mut claude, home, SUMMARY));
    quiet(home);
    assert!(claude.end(DEADLINE).success());
    permitted
}

/// Checks the outcome of the story, in which the host called these tools.
fn check(home: &Home, model: &Model, calls: &[&str], may_read: bool) {
    let (task, state) = (task(home, "greet"), state(home, "greet"));
    let prompt = match may_read {
        true => state.join("attempts/1/prompt.md"),
        false => task.join("plan.md"),
    };
    assert!(file(task.join("plan.md")).starts_with(TICKED), "{}", file(task.join("plan.md")));
    assert_eq!(file(home.project().join("greeting.txt")), format!("Hello in {ANSWER}\n"));
    assert_eq!(file(task.join("ipc/001.question")), format!("{QUESTION}\n"));
    assert_eq!(file(task.join("ipc/001.answer")), format!("{ANSWER}\n"));
    assert!(task.join("ipc/001.done").exists());
    assert_eq!(file(task.join("ipc/.done")), format!("{SUMMARY}\n"));
    assert_eq!(file(task.join("output.md")), "The greeting is on the door.\n");

    // The usage that the host reports for its agent.
    wait_until(DEADLINE, "the usage", || {
        let used = fs::read_to_string(state.join("attempts/1/usage")).ok()?;
        used.contains("\ntokens: 20\n").then_some(())
    });

    // The host gets each event once.
    let quoted = QUESTION.replace('\n', " ⏎ ").replace('"', "'");
    assert_eq!(told(model), [format!("greet asks (001): \"{quoted}\"")]);

    // Each of these messages, and four requests without a call: started, the question, passed on,
    // the end.
    assert_eq!(called(model), calls);
    assert_eq!(asked(model, Seat::Host).len(), calls.len() + 4);

    let agent = asked(model, Seat::Agent);
    let id = agent[0].agent();
    assert!(
        agent.iter().all(|request| request.agent() == id),
        "the agent is one from start to end"
    );
    let (tool, input) = &agent.last().expect("the agent asked").calls()[0];
    assert_eq!((tool.as_str(), &input["file_path"]), ("Read", &json!(prompt)));
}

/// The host's calls when the user typed `/dispatch …`.
const CALLS: [&str; 3] = ["Bash", "Agent", "Bash"];

#[test]
fn agent_question_reaches_the_user_and_the_answer_the_agent() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let gates = Gates::default();
    let model = endpoint(&home, "opus", &gates);
    let options = Options::mode("acceptEdits");
    let request = "/dispatch use opus to paint a greeting";
    assert_eq!(live(&home, &model, &gates, &options, request), [""; 0]);
    check(&home, &model, &CALLS, true);
    let agent = asked(&model, Seat::Agent);
    assert!(agent.iter().all(|request| request.model.contains("opus")));
}

#[test]
fn host_without_rules_prompts_for_these_calls_only() {
    let home = skill::ready(CONFIG);
    let gates = Gates::default();
    let model = endpoint(&home, "poet", &gates);
    let options = Options { asks: true, ..Options::mode("default") };
    let permitted = live(&home, &model, &gates, &options, "/dispatch use the poet for a greeting");
    check(&home, &model, &CALLS, false);
    // Whole commands, so that the person sees what they permit; here, each one's first line.
    let permitted: Vec<String> = permitted
        .iter()
        .filter_map(|asked| asked.lines().next())
        .map(|asked| asked.replace("~/.claude/skills/dispatch/bin/", ""))
        .map(|asked| asked.replace(" --task-dir ~/project/.dispatch/tasks/greet", ""))
        .collect();
    assert_eq!(
        permitted,
        [
            // The skill's own rules are valid until the user's next message.
            "host Bash: dispatch-monitor --answer greet/001 - <<'END_TEXT'",
            "agent Write: ~/project/greeting.txt",
            "agent Bash: dispatch-worker tick 2",
            "agent Bash: dispatch-worker report - <<'END_TEXT'",
            "agent Bash: dispatch-worker tick 3",
            &format!("agent Bash: dispatch-worker finish '{SUMMARY}'"),
        ]
    );

    let prompt = file(task(&home, "greet").join("prompt.md"));
    assert!(prompt.starts_with("You are a poet. Every line rhymes.\n\nYou are the worker of one"));
    assert!(prompt.contains(PLAN.trim_end()), "with its context: {prompt}");
}

#[test]
fn screen_shows_the_question_without_prompting() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    fs::write(home.project().join("door.txt"), "oak\n").expect("a file");
    let gates = Gates::default();
    let model = endpoint(&home, "opus", &gates);
    let options = Options::mode("acceptEdits");
    let terminal = Terminal::start(home.path(), &home.project(), &model, &options);
    terminal.wait_screen(DEADLINE, |screen| screen.contains('❯'));
    terminal.line("/dispatch use opus to paint a greeting");
    terminal.wait_screen(DEADLINE, |screen| screen.contains("The worker has begun."));
    gates.ask.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("greet asks (001)"));
    terminal.line(&format!("{REPLY}{ANSWER}"));
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Passed on: "));
    gates.end.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("The worker says: greet done"));
    quiet(&home);
    check(&home, &model, &CALLS, true);
}

#[test]
fn agent_route_works_in_a_home_with_spaces() {
    let home = skill::ready_in(Home::with_spaces(), CONFIG);
    skill::allow(&home);
    let gates = Gates::default();
    let model = endpoint(&home, "opus", &gates);
    let options = Options { asks: true, ..Options::mode("acceptEdits") };
    let request = "/dispatch use opus to paint a greeting";
    assert_eq!(live(&home, &model, &gates, &options, request), [""; 0]);
    check(&home, &model, &CALLS, true);
}

#[test]
fn plain_words_start_the_same_story() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let gates = Gates::default();
    let model = endpoint(&home, "opus", &gates);
    let options = Options::mode("acceptEdits");
    let request = "dispatch opus to paint a greeting";
    assert_eq!(live(&home, &model, &gates, &options, request), [""; 0]);
    check(&home, &model, &["Skill", "Bash", "Agent", "Bash"], true);
}
