//! Host sessions while a worker runs: resumed, cleared, interrupted, two at a time, or with an idle
//! model.

use std::sync::Arc;

use nix::sys::signal::Signal;

use crate::support::{
    claude::{Claude, Options, Terminal},
    model::{Model, Reply, Request},
    process::Home,
    skill,
    story::{
        CONTINUE, DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run,
        state, task, told, told_in, until, waiter,
    },
};

const CONFIG: &str = "
default: opus
backends: { claude: { route: cli } }
models: { opus: { backend: claude } }
";

const PAINT: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint it in their colour\n" };

const ASKED: &str = "paint asks (001): \"Which colour?\"";

const DONE: &str = "paint done (1/1): \"It is painted.\"";

const SESSION: &str = "11111111-2222-4333-8444-555555555555";

/// The points where the worker waits for the host, so that every run is the same.
#[derive(Clone, Default)]
struct Gates {
    ask: Gate,
    end: Gate,
}

/// A home, and an endpoint.
fn ready(host: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Home, Model, Gates) {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let gates = Gates::default();
    let of_script = gates.clone();
    let model = Model::start(move |request| match Seat::of(request) {
        Seat::Host => host(request),
        _ => painter(request, &of_script),
    });
    (home, model, gates)
}

fn painter(request: &Request, gates: &Gates) -> Reply {
    match request.turns() {
        0 => {
            gates.ask.pass();
            run(request, "ask 'Which colour?'")
        }
        1 => {
            let answer = request.last_tool_results().join("\n");
            run(request, &format!("tick 1 --note '{answer}'"))
        }
        2 => {
            gates.end.pass();
            run(request, "finish 'It is painted.'")
        }
        _ => Reply::say("That is all."),
    }
}

fn start(home: &Home, model: &Model, more: &[&str]) -> Claude {
    let options = Options::mode("acceptEdits").with(more);
    Claude::stream(home.path(), &home.project(), model, &options)
}

fn screen(home: &Home, model: &Model) -> Terminal {
    let options = Options::mode("acceptEdits");
    let terminal = Terminal::start(home.path(), &home.project(), model, &options);
    terminal.wait_screen(DEADLINE, |screen| screen.contains('❯'));
    terminal
}

#[track_caller]
fn is_painted(home: &Home, id: &str) {
    let plan = file(task(home, id).join("plan.md"));
    assert_eq!(plan, "- [x] Paint it in their colour\n  green\n");
}

#[test]
fn resumed_session_gets_the_question_again_and_then_the_end() {
    let (home, model, gates) = ready(|request| dispatcher(request, &[PAINT]));
    let mut claude = start(&home, &model, &["--session-id", SESSION]);
    claude.say("/dispatch use opus to paint it");
    until(&mut claude, &home, "Dispatched paint.");
    gates.ask.open();
    until(&mut claude, &home, "paint asks (001)");
    claude.kill(Signal::SIGTERM);
    claude.wait_end(DEADLINE);

    let mut claude = start(&home, &model, &["--resume", SESSION]);
    claude.say("/dispatch");
    until(&mut claude, &home, "paint asks (001)");
    claude.say(&format!("{REPLY}green"));
    until(&mut claude, &home, "Passed on: ");
    gates.end.open();
    until(&mut claude, &home, "paint done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());

    is_painted(&home, "paint");
    assert_eq!(told(&model), [ASKED, &format!("(said before) {ASKED}"), DONE]);
    assert_eq!(called(&model), ["Bash", "Bash"]);
    // The calls, and five requests without a call: dispatched, three times news, passed on.
    assert_eq!(asked(&model, Seat::Host).len(), 7);
}

#[test]
fn cleared_session_gets_one_event_and_all_after_the_next_dispatch() {
    let (home, model, gates) = ready(|request| dispatcher(request, &[PAINT]));
    let terminal = screen(&home, &model);
    terminal.line("/dispatch use opus to paint it");
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Dispatched paint."));
    waiter(&home);
    terminal.line("/clear");
    terminal.wait_screen(DEADLINE, |screen| !screen.contains("Dispatched paint."));
    gates.ask.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("paint asks (001)"));
    // The skill's hook ended with the conversation; the waiter from before was the last.
    terminal.line(&format!("{REPLY}green"));
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Passed on: "));
    terminal.line("/dispatch");
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Dispatch is ready."));
    gates.end.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("paint done"));
    quiet(&home);
    is_painted(&home, "paint");
    assert_eq!(told(&model), [ASKED, DONE]);
    assert_eq!(called(&model), ["Bash"], "since /clear");
    // Two calls and the requests after them: dispatched, the question, passed on, ready, the end.
    assert_eq!(asked(&model, Seat::Host).len(), 7);
}

#[test]
fn interrupted_session_gets_news_after_the_next_prompt() {
    let busy = Gate::default();
    let still_busy = busy.clone();
    let (home, model, gates) = ready(move |request| {
        if request.last_user().contains("Are you there?") {
            return Reply::say("I am.");
        }
        if request.turns() == 1 {
            // The turn of the dispatch never ends.
            still_busy.pass();
            return Reply::Drop;
        }
        dispatcher(request, &[PAINT])
    });
    let terminal = screen(&home, &model);
    terminal.line("/dispatch use opus to paint it");
    terminal.wait_screen(DEADLINE, |_| asked(&model, Seat::Host).len() == 2);
    terminal.wait_screen(DEADLINE, |screen| screen.contains("esc to interrupt"));
    terminal.key("Escape");
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Interrupted"));
    terminal.line("Are you there?");
    terminal.wait_screen(DEADLINE, |screen| screen.contains("I am."));
    waiter(&home);
    gates.ask.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("paint asks (001)"));
    terminal.line(&format!("{REPLY}green"));
    terminal.wait_screen(DEADLINE, |screen| screen.contains("Passed on: "));
    gates.end.open();
    terminal.wait_screen(DEADLINE, |screen| screen.contains("paint done"));
    busy.open();
    quiet(&home);
    is_painted(&home, "paint");
    assert_eq!(told(&model), [ASKED, DONE]);
    assert_eq!(called(&model), ["Bash", "Bash"]);
    // The calls, and five requests without a call: the interrupted turn, the reply, twice news,
    // passed on.
    assert_eq!(asked(&model, Seat::Host).len(), 7);
}

#[test]
fn two_sessions_in_one_project_get_their_own_news() {
    const JOBS: [Job; 2] = [Job { id: "door", ..PAINT }, Job { id: "wall", ..PAINT }];
    fn job(request: &Request) -> &'static Job {
        &JOBS[usize::from(!request.first_user().contains("the door"))]
    }
    let (home, model, gates) =
        ready(|request| dispatcher(request, std::slice::from_ref(job(request))));
    let mut hosts = [start(&home, &model, &[]), start(&home, &model, &[])];
    for (claude, job) in hosts.iter_mut().zip(&JOBS) {
        claude.say(&format!("/dispatch use opus to paint the {}", job.id));
        until(claude, &home, &format!("Dispatched {}.", job.id));
    }
    gates.ask.open();
    for (claude, job) in hosts.iter_mut().zip(&JOBS) {
        until(claude, &home, &format!("{} asks (001)", job.id));
    }
    gates.end.open();
    for (claude, job) in hosts.iter_mut().zip(&JOBS) {
        claude.say(&format!("{REPLY}green"));
        until(claude, &home, &format!("Passed on: {}/001", job.id));
        until(claude, &home, &format!("{} done", job.id));
    }
    quiet(&home);
    for (mut claude, own) in hosts.into_iter().zip(&JOBS) {
        assert!(claude.end(DEADLINE).success());
        is_painted(&home, own.id);
        let mut asked = asked(&model, Seat::Host);
        asked.retain(|request: &Arc<Request>| job(request).id == own.id);
        let own = |line: &str| line.replace("paint ", &format!("{} ", own.id));
        assert_eq!(told_in(&asked), [own(ASKED), own(DONE)]);
        // Two calls, and four requests without a call: dispatched, the question, passed on, the
        // end.
        assert_eq!(asked.len(), 6);
    }
}

#[test]
fn idle_session_without_a_transcript_is_woken_once_per_event() {
    let (home, model, gates) = ready(|request| match request.turns() {
        0 | 1 => dispatcher(request, &[PAINT]),
        _ => Reply::say("Hm."),
    });
    // Neither the transcript nor the next prompt shows what the model has read.
    skill::without_hooks(&home, "  StopFailure");
    let mut claude = start(&home, &model, &["--no-session-persistence"]);
    claude.say("/dispatch use opus to paint it");
    until(&mut claude, &home, "Dispatched paint.");
    gates.ask.open();
    until(&mut claude, &home, "Hm.");
    for _ in 0..3 {
        // Each turn ends with a new waiter, which could repeat the news.
        waiter(&home);
        claude.say(CONTINUE);
        until(&mut claude, &home, "Hm.");
    }
    waiter(&home);

    assert_eq!(told(&model), [ASKED]);
    let ledger = file(state(&home, "paint").join("news"));
    assert!(ledger.contains("delivered") && !ledger.contains("acknowledged"), "{ledger}");
    assert_eq!(called(&model), ["Bash"]);
    // The call, dispatched, the question, and three times the user.
    assert_eq!(asked(&model, Seat::Host).len(), 6);
}

/// A conversation is compacted while its tasks are open. One `/dispatch` restores what the host's
/// model has lost.
mod compaction {
    use crate::support::{
        claude::{Claude, Options},
        model::{Model, Reply, Request},
        skill,
        story::{
            DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, task,
            told, until,
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

    /// The summary, which keeps nothing of the tasks.
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

    /// The script of the workers' model; the worker of `door` asks.
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
    fn dispatch_restores_open_tasks_and_questions_after_compaction() {
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
        // Claude Code restores the whole text of the skill.
        let first = asks[0].last_user();
        let (_, skill) = first.split_once("Base directory for this skill: ").expect("its text");
        assert!(texts.contains(skill.trim_end()), "{texts}");

        // The hooks survive the compaction, so news arrives.
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

    /// Claude Code restores the first 5,000 tokens of a skill after a compaction, and a token has
    /// at least one byte.
    #[test]
    fn skill_survives_compaction_whole() {
        let skill = include_str!("../../SKILL.md");
        let body = skill.splitn(3, "---\n").nth(2).expect("a body");
        assert!(body.len() <= 4_500, "{} bytes", body.len());
    }
}
