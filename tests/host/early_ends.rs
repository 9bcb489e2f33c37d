//! A worker that ends before its task is done, without `finish` or for lack of an answer, is
//! resumed.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    claude::{Claude, Options},
    model::{Model, Reply, Request},
    process::Home,
    skill,
    story::{
        CONTINUE, DEADLINE, Gate, Job, REPLY, Seat, ask, asked, called, dispatcher, file, quiet,
        read_prompt, run, task, told, until,
    },
};

const CONFIG: &str = "
default: opus
patience: 0
backends: { claude: {} }
models: { opus: { backend: claude } }
";

const JOB: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint door.txt in their colour\n" };

fn endpoint(agent: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Model {
    Model::start(move |request| match Seat::of(request) {
        Seat::Host => dispatcher(request, &[JOB]),
        _ => agent(request),
    })
}

fn host(home: &Home, model: &Model) -> Claude {
    Claude::stream(home.path(), &home.project(), model, &Options::mode("acceptEdits"))
}

/// The first thing that an agent does when it is started or sent a message.
fn read(request: &Request) -> Reply {
    read_prompt(&request.last_user())
}

/// The last thing that an agent says after `finish`.
fn last_word(request: &Request) -> Reply {
    let result = request.last_tool_results().join("\n");
    let last = result.split_once("this one message: ");
    Reply::say(last.expect("finish says what to say").1)
}

/// The agents that the host listed to its hooks at the end of each turn.
fn agents_at_stop(hooks: &Path) -> Vec<String> {
    let inputs = file(hooks);
    let inputs = inputs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let agents = |input: Value| {
        let agents = input["background_tasks"].as_array().expect("a list").clone();
        let agents = agents.iter().map(|agent| {
            let text = |key: &str| agent[key].as_str().unwrap_or_default();
            format!("{} {}: {}", text("status"), text("id"), text("description"))
        });
        agents.collect::<Vec<_>>().join(", ")
    };
    inputs.map(agents).collect()
}

/// The host's name for the agent behind a request.
fn running(request: &Request) -> String {
    format!("running {}: dispatch paint", request.agent().expect("an agent"))
}

#[test]
fn agent_that_ends_without_finish_is_reported_and_resumed() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let hooks = skill::record_hooks(&home, &["Stop"]);
    let gate = Gate::default();
    let may_end = gate.clone();
    let model = endpoint(move |request| match request.turns() {
        0 => read(request),
        1 if !request.first_user().contains("attempts/2") => {
            may_end.pass();
            Reply::say("I have looked at the door.")
        }
        1 => run(request, "tick 1"),
        2 => run(request, "finish 'Painted.'"),
        _ => last_word(request),
    });
    let mut claude = host(&home, &model);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "The worker has begun.");
    gate.open();
    until(&mut claude, &home, "The worker says: I have looked at the door.");
    until(&mut claude, &home, "paint failed");
    claude.say(CONTINUE);
    until(&mut claude, &home, "The worker has begun.");
    until(&mut claude, &home, "The worker says: paint done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());

    assert_eq!(
        told(&model),
        ["paint failed (0/1): the agent ended without finishing, or was never started"]
    );
    assert_eq!(called(&model), ["Bash", "Agent", "Bash", "Agent"]);
    // Four calls, and five requests without a call: started, the agent's end, the news, started
    // again, done.
    assert_eq!(asked(&model, Seat::Host).len(), 9);
    let agents = asked(&model, Seat::Agent);
    let [first, second] = [&agents[0], &agents[agents.len() - 1]].map(|it| running(it));
    assert_ne!(first, second);
    assert_eq!(agents_at_stop(&hooks), [&first, "", "", &second, ""]);
    assert_eq!(
        file(task(&home, "paint").join("plan.md")),
        "- [x] Paint door.txt in their colour\n"
    );
}

#[test]
fn late_answer_reaches_the_same_agent_as_a_message() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let hooks = skill::record_hooks(&home, &["Stop"]);
    let gate = Gate::default();
    let may_block = gate.clone();
    let model = endpoint(move |request| match request.turns() {
        0 | 4 => read(request),
        1 => ask(request, "Which colour?"),
        2 => {
            may_block.pass();
            run(request, "block 1 'Which colour?'")
        }
        3 => Reply::say("Nobody told me the colour."),
        5 => {
            let answer = request.last_tool_results().join("\n");
            assert!(answer.contains("The person answered: green"), "{answer}");
            run(request, "tick 1 --note green")
        }
        6 => run(request, "finish 'It is green.'"),
        _ => last_word(request),
    });
    let mut claude = host(&home, &model);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "paint asks (001)");
    gate.open();
    until(&mut claude, &home, "The worker says: Nobody told me");
    until(&mut claude, &home, "paint blocked");
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, "The worker has begun.");
    until(&mut claude, &home, "The worker says: paint done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());

    assert_eq!(
        told(&model),
        ["paint asks (001): \"Which colour?\"", "paint blocked (0/1): item 1: \"Which colour?\""]
    );
    assert_eq!(called(&model), ["Bash", "Agent", "Bash", "ToolSearch", "SendMessage"]);
    // The calls, and six requests without a call: started, the question, the agent's end, the news,
    // sent, done.
    assert_eq!(asked(&model, Seat::Host).len(), 11);
    let agents = asked(&model, Seat::Agent);
    assert!(agents.iter().all(|it| it.agent() == agents[0].agent()), "the same agent");
    let agent = &running(&agents[0]);
    assert_eq!(agents_at_stop(&hooks), [agent, agent, "", "", agent, ""]);
    assert_eq!(
        file(task(&home, "paint").join("plan.md")),
        "- [x] Paint door.txt in their colour\n  Which colour?\n  green\n"
    );
}

#[test]
fn agent_of_a_killed_host_is_replaced_by_one_with_the_answer() {
    let home = skill::ready(&CONFIG.replace("patience: 0\n", ""));
    skill::allow(&home);
    let model = endpoint(|request| match request.turns() {
        0 => read(request),
        1 if !request.first_user().contains("attempts/2") => ask(request, "Which colour?"),
        1 => {
            let prompt = request.last_tool_results().join("\n");
            assert!(prompt.contains("The person answered: green"), "{prompt}");
            run(request, "tick 1 --note green")
        }
        2 => run(request, "finish 'It is green.'"),
        _ => last_word(request),
    });
    let mut claude = host(&home, &model);
    claude.say("/dispatch use opus to paint the door");
    until(&mut claude, &home, "paint asks (001)");
    claude.kill(Signal::SIGKILL);
    claude.wait_end(DEADLINE);

    let mut claude = host(&home, &model);
    claude.say("/dispatch");
    until(&mut claude, &home, "paint asks (001)");
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, "The worker has begun.");
    until(&mut claude, &home, "The worker says: paint done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());

    let plan = file(task(&home, "paint").join("plan.md"));
    assert_eq!(plan, "- [x] Paint door.txt in their colour\n  green\n");
    let asked_at_first = "paint asks (001): \"Which colour?\"";
    let again = format!("(said before) {asked_at_first}");
    assert_eq!(told(&model), [asked_at_first, &again, "paint blocked (0/1)"]);
    assert_eq!(called(&model), ["Bash", "Agent"], "of the second host");
    // The first host makes two calls and two requests without a call; the second also hears the
    // end.
    assert_eq!(asked(&model, Seat::Host).len(), 9);
}

/// An answer to a worker process that has given up resumes the session of its CLI.
mod late_answer {
    use crate::support::{
        claude::{Claude, Options},
        codex,
        model::{Model, Reply, Request},
        process::Home,
        skill,
        story::{
            DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, state,
            task, told, until,
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
            "paint blocked (0/1): item 1: \"Which colour?\"",
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
}
