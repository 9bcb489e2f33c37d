//! A conversation is compacted while its tasks are open: what the host's model then no longer knows,
//! one `/dispatch` tells it.

use crate::support::{
    claude::{Claude, Options},
    model::{Model, Reply},
    request::Request,
    skill,
    story::{
        DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, task, told,
        until,
    },
};

const CONFIG: &str = "
default: opus
backends: { claude: { route: cli } }
models: { opus: { backend: claude } }
";

const JOBS: [Job; 3] = [
    Job { id: "door", model: "opus", plan: "- [ ] Paint it in their colour\n" },
    Job { id: "wall", model: "opus", plan: "- [ ] Whitewash it\n" },
    Job { id: "roof", model: "opus", plan: "- [ ] Mend it\n" },
];

/// What the summary keeps: nothing of the tasks.
const SUMMARY: &str = "We talked about a house.";

const ASKED: &str = "door asks (001): \"Which colour?\"";

/// The points where the workers wait for the host, so that every run is the same.
#[derive(Clone, Default)]
struct Gates {
    ask: Gate,
    door: Gate,
    wall: Gate,
    roof: Gate,
}

/// What the workers' model does; the door's asks.
fn worker(request: &Request, gates: &Gates) -> Reply {
    let prompt = request.first_user();
    let of = |id: &str| prompt.contains(&format!("tasks/{id}/"));
    let (end, asks) = match () {
        () if of("door") => (&gates.door, 1),
        () if of("wall") => (&gates.wall, 0),
        () => (&gates.roof, 0),
    };
    match (request.turns(), asks) {
        (0, 1) => {
            gates.ask.pass();
            run(request, "ask 'Which colour?'")
        }
        (turn, _) if turn == asks => {
            end.pass();
            let answer = request.last_tool_results().join("\n");
            run(request, &format!("tick 1 --note '{answer}'"))
        }
        (turn, _) if turn == asks + 1 => run(request, "finish 'As good as new.'"),
        _ => Reply::say("That is all."),
    }
}

#[test]
fn one_dispatch_brings_back_every_open_task_and_question() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let gates = Gates::default();
    let of_workers = gates.clone();
    let model = Model::start(move |request| match Seat::of(request) {
        Seat::Host if request.last_user().contains("create a detailed summary") => {
            Reply::say(format!("<analysis>Paint.</analysis>\n<summary>{SUMMARY}</summary>"))
        }
        Seat::Host if request.last_user().ends_with("Are you there?") => Reply::say("I am."),
        Seat::Host => dispatcher(request, &JOBS),
        _ => worker(request, &of_workers),
    });
    let options = Options::mode("acceptEdits");
    let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
    claude.say("/dispatch use opus to paint the door, whitewash the wall and mend the roof");
    until(&mut claude, &home, "Dispatched door and wall and roof.");
    gates.ask.open();
    until(&mut claude, &home, ASKED);

    // The last words before a compaction are kept.
    claude.say("Are you there?");
    until(&mut claude, &home, "I am.");
    claude.say("/compact");
    claude.wait_event(DEADLINE, |event| event["subtype"] == "compact_boundary");
    claude.say("Are you there?");
    until(&mut claude, &home, "I am.");
    let asks = asked(&model, Seat::Host);
    let texts = asks.last().expect("the host asked").texts().join("\n");
    assert!(texts.contains(SUMMARY) && !texts.contains("Which colour?"), "{texts}");
    // The skill's text comes back, all of it.
    let first = asks[0].last_user();
    let (_, skill) = first.split_once("Base directory for this skill: ").expect("its text");
    assert!(texts.contains(skill.trim_end()), "{texts}");

    // The hooks have outlived it too: news comes.
    gates.wall.open();
    until(&mut claude, &home, "wall done");
    claude.say("/dispatch");
    until(&mut claude, &home, ASKED);
    let asks = asked(&model, Seat::Host);
    let shown = asks.last().expect("the host asked").last_user();
    assert!(shown.contains("roof running 0/1"), "{shown}");

    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, "Passed on: door/001 answered");
    gates.door.open();
    until(&mut claude, &home, "door done");
    gates.roof.open();
    until(&mut claude, &home, "roof done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());
    let plan = file(task(&home, "door").join("plan.md"));
    assert_eq!(plan, "- [x] Paint it in their colour\n  green\n");
    let done = |id| format!("{id} done (1/1): \"As good as new.\"");
    let again = format!("(said before) {ASKED}");
    assert_eq!(told(&model), [ASKED, &done("wall"), &again, &done("door"), &done("roof")]);
    assert_eq!(called(&model), ["Bash"], "since the compaction");
}

/// After a compaction Claude Code gives the first 5,000 tokens of a skill back, and a token is a byte
/// at the least.
#[test]
fn the_skill_is_short_enough_to_come_back_whole() {
    let skill = include_str!("../../SKILL.md");
    let body = skill.splitn(3, "---\n").nth(2).expect("a body");
    assert!(body.len() <= 4_500, "{} bytes", body.len());
}
