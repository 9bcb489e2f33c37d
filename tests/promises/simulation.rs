//! A thousand tasks, and hosts that lose news: wakes are dropped, arrive twice or late, and hosts
//! are killed. In the end each host has seen every event, and none twice as new.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use dispatch::process::Identity;
use serde_json::json;

use crate::support::{Host, Ran, Running, Sandbox, process, wait_until};

/// The number of projects that are simulated in parallel, and of tasks in each.
const WORLDS: u64 = 20;
const TASKS: usize = 50;

/// How many of a thousand wakes are dropped, doubled, or some turns late.
const DROPPED: u64 = 165;
const DOUBLED: u64 = 100;
const LATE: u64 = 150;

/// Before how many of a thousand turns the host is killed and replaced.
const RESTARTS: u64 = 80;

#[test]
fn thousand_tasks_lose_no_news_and_repeat_none_as_new() {
    let mut counts = Counts::default();
    std::thread::scope(|scope| {
        let worlds: Vec<_> = (1..=WORLDS)
            .map(|seed| {
                let run = move || World::new(seed).run();
                let named = std::thread::Builder::new().name(format!("simulation of seed {seed}"));
                named.spawn_scoped(scope, run).expect("a thread")
            })
            .collect();
        for world in worlds {
            counts.add(&world.join().expect("every promise is kept"));
        }
    });
    // The simulation was as hard as intended.
    let Counts { events, wakes, dropped, doubled, late, restarts } = counts;
    println!(
        "{events} events, {wakes} wakes: {dropped} dropped, {doubled} doubled, {late} late; {restarts} restarts"
    );
    assert!(events > 2 * TASKS * WORLDS as usize);
    assert!(dropped.min(doubled).min(late).min(restarts) > 0);
}

#[derive(Default)]
struct Counts {
    events: usize,
    wakes: usize,
    dropped: usize,
    doubled: usize,
    late: usize,
    restarts: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.wakes += other.wakes;
        self.dropped += other.dropped;
        self.doubled += other.doubled;
        self.late += other.late;
        self.restarts += other.restarts;
    }
}

/// A generator that repeats its numbers for each seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A task whose worker is played by the simulation with plain files.
struct Player {
    id: String,
    /// The number of messages and questions before its end.
    words: u64,
    said: u64,
    asked: u64,
    /// The open question.
    waits: Option<String>,
    over: bool,
}

/// The history of one event, found by the words at the start of its line.
#[derive(Default)]
struct Known {
    id: Option<String>,
    /// `true` once a helper has printed the event as new, and as said before.
    new: bool,
    before: bool,
    /// `true` once the model has read the event.
    reached: bool,
}

/// A project and its host.
struct World {
    sandbox: Sandbox,
    dice: Dice,
    /// The process that stands for all workers.
    workers: Host,
    host: Host,
    transcript: PathBuf,
    hook: Option<Running>,
    players: Vec<Player>,
    events: BTreeMap<String, Known>,
    /// The number of events that wakes counted without naming them.
    left_out: usize,
    /// Undelivered wakes, and the number of turns until they arrive.
    late: Vec<(u64, String)>,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> Self {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        let (workers, host) = (Host::new(&sandbox), Host::new(&sandbox));
        let transcript = sandbox.top().join("transcript-0.jsonl");
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (players, events, late) = (Vec::new(), BTreeMap::new(), Vec::new());
        let counts = Counts::default();
        Self {
            sandbox,
            dice,
            workers,
            host,
            transcript,
            hook: None,
            players,
            events,
            left_out: 0,
            late,
            counts,
        }
    }

    fn run(mut self) -> Counts {
        while self.players.len() < TASKS || self.players.iter().any(|player| !player.over) {
            self.run_turn();
        }
        self.end_hook();
        // The user returns a bounded number of times.
        for _ in 0..TASKS {
            if !self.brief().lines().any(|line| line.starts_with('#')) {
                break;
            }
        }
        let lost: Vec<_> = self.events.iter().filter(|(_, known)| !known.reached).collect();
        let lost: Vec<_> = lost.into_iter().map(|(words, _)| words).collect();
        assert!(lost.is_empty(), "{} events never reached the host: {lost:?}", lost.len());
        // A waiter may still wait while another helper prints the news, so compare only now.
        let only_before = self.events.values().filter(|known| known.before && !known.new).count();
        assert!(
            only_before <= self.left_out,
            "an event that was never printed is marked as said before"
        );
        self.counts.events = self.events.len();
        self.counts
    }

    /// A turn of the host, from its trigger to its stop hook.
    fn run_turn(&mut self) {
        if self.dice.below(1000) < RESTARTS {
            self.restart();
        }
        self.arrivals();
        if self.dice.below(8) == 0 {
            self.show();
        }
        // Workers act during a turn and between turns.
        if self.dice.below(4) == 0 {
            self.work();
        }
        self.hook(&json!({ "hook_event_name": "Stop", "transcript_path": self.transcript }));
        if self.work() > 0 || self.hook.as_mut().is_some_and(Running::has_ended) {
            let hook = self.hook.take();
            hook.into_iter().for_each(|hook| self.deliver(hook));
        } else if self.late.is_empty() {
            // All workers may wait for answers to questions that the model never read; the user
            // asks.
            self.brief();
        }
    }

    /// Runs a hook of the host, which finds another hook waiting, prints news, or waits.
    fn hook(&mut self, input: &serde_json::Value) {
        let mut input = input.clone();
        input["cwd"] = json!(self.sandbox.project());
        let call = self.sandbox.call("dispatch-monitor", &["--hook"]).within(self.sandbox.home());
        let mut hook = self.host.calls(call).input(input.to_string()).start();
        let waits = wait_until("the hook waits or has ended", || {
            let waits = process::watches_files(hook.pid());
            (waits || hook.has_ended()).then_some(waits)
        });
        let over = if waits { self.hook.replace(hook) } else { Some(hook) };
        over.into_iter().for_each(|hook| self.deliver(hook));
    }

    /// Sends the news of a hook to the model, or loses it.
    fn deliver(&mut self, hook: Running) {
        let Some(wake) = self.printed(hook.end()) else { return };
        self.counts.wakes += 1;
        let fate = self.dice.below(1000);
        if fate < DROPPED {
            self.counts.dropped += 1;
            if fate.is_multiple_of(2) {
                self.write("queue-operation", &wake);
            }
        } else if fate < DROPPED + DOUBLED {
            self.counts.doubled += 1;
            self.late.extend([(0, wake.clone()), (0, wake)]);
        } else if fate < DROPPED + DOUBLED + LATE {
            self.counts.late += 1;
            let turns = 1 + self.dice.below(4);
            self.late.push((turns, wake));
        } else {
            self.late.push((0, wake));
        }
    }

    /// Checks the output of a hook.
    fn printed(&mut self, ran: Ran) -> Option<String> {
        if ran.code == Some(0) {
            assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
            return None;
        }
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
        assert!(ran.err.len() <= 2001, "{}", ran.err);
        self.check_text(&ran.err);
        Some(ran.err)
    }

    /// Checks that a text repeats no event as new.
    fn check_text(&mut self, text: &str) {
        for line in text.lines() {
            if let Some(more) = line.strip_prefix("… and ").filter(|it| it.contains(" events: "))
            {
                let count = more.split(' ').next().expect("a number");
                self.left_out += count.parse::<usize>().expect("a number");
            }
            let Some((id, before, known)) = find(&mut self.events, line) else { continue };
            assert_eq!(known.id.get_or_insert_with(|| id.into()), id, "{line}");
            assert!(before || !known.new, "told twice as new: {line}\nin: {text}");
            known.new |= !before;
            known.before |= before;
        }
    }

    /// The model reads a text.
    fn model_reads(&mut self, text: &str) {
        self.write("user", text);
        let mut answers = Vec::new();
        for line in text.lines() {
            let Some((.., known)) = find(&mut self.events, line) else { continue };
            known.reached = true;
            let asked = line.split_once(" --answer ").and_then(|(_, rest)| rest.split(' ').next());
            answers.extend(asked.map(str::to_string));
        }
        for target in answers {
            self.answer(&target);
        }
    }

    fn write(&self, kind: &str, text: &str) {
        let line = json!({ "type": kind, "message": { "role": "user", "content": text } });
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&self.transcript);
        writeln!(file.as_mut().expect("a transcript"), "{line}").expect("written");
    }

    fn answer(&mut self, target: &str) {
        let (id, number) = target.split_once('/').expect("a question");
        let path = self.sandbox.task(id, &format!("ipc/{number}.answer"));
        if path.exists() {
            return;
        }
        if self.dice.below(4) == 0 {
            self.sandbox.ok("dispatch-monitor", &["--answer", target, "This one."]);
        } else {
            put(&path, "This one.\n");
        }
        let player = self.players.iter_mut().find(|player| player.id == id).expect("a task");
        assert_eq!(player.waits.take().as_deref(), Some(number));
        put(&self.sandbox.task(id, &format!("ipc/{number}.done")), "");
    }

    /// Delivers the wakes that are due.
    fn arrivals(&mut self) {
        let (now, later): (Vec<_>, _) = self.late.drain(..).partition(|(turns, _)| *turns == 0);
        self.late = later.into_iter().map(|(turns, wake): (u64, _)| (turns - 1, wake)).collect();
        for (_, wake) in now {
            if self.dice.below(3) == 0 {
                // A wake is a prompt like the user's: a hook sees it before the model.
                self.hook(&json!({ "hook_event_name": "UserPromptSubmit", "prompt": wake }));
            }
            self.model_reads(&wake);
        }
    }

    /// The user types /dispatch.
    fn brief(&mut self) -> String {
        let text = self.host.calls(self.sandbox.call("dispatch-config", &["brief"])).run().ok();
        self.check_text(&text);
        self.model_reads(&text);
        text
    }

    /// The model looks at one task.
    fn show(&mut self) {
        if self.hook.is_some() {
            return;
        }
        let at = self.dice.below(self.players.len().max(1) as u64) as usize;
        let Some(player) = self.players.get(at) else { return };
        let id = player.id.clone();
        let call = self.sandbox.call("dispatch-reconcile", &["show", &id]);
        let text = self.host.calls(call).run().ok();
        let mut said = (1..=player.said).map(|number| format!("\"word {number}\""));
        assert!(said.all(|said| text.contains(&said)), "{text}");
        for (words, known) in &mut self.events {
            if words.split(' ').next() == Some(&id) {
                known.new = true;
                known.reached = true;
            }
        }
        self.write("user", &text);
    }

    /// The host is killed, with what was on its way to it, and the user starts another.
    fn restart(&mut self) {
        self.counts.restarts += 1;
        self.late.clear();
        // Nobody reads the output of a waiter now.
        if self.dice.below(2) == 0 {
            self.work();
        }
        let old = std::mem::replace(&mut self.host, Host::new(&self.sandbox));
        old.die();
        self.end_hook();
        if self.dice.below(2) == 0 {
            let name = format!("transcript-{}.jsonl", self.counts.restarts);
            self.transcript = self.sandbox.top().join(name);
        }
        self.brief();
    }

    fn end_hook(&mut self) {
        if let Some(hook) = self.hook.take() {
            self.printed(hook.end());
        }
    }

    /// Lets some workers act; returns the number of new events.
    fn work(&mut self) -> usize {
        let before = self.events.len();
        for _ in 0..1 + self.dice.below(16) {
            let open = self.players.iter().filter(|player| !player.over).count();
            if self.players.len() < TASKS && (open < 8 || self.dice.below(4) == 0) {
                self.dispatch();
            }
            let at = self.dice.below(self.players.len() as u64) as usize;
            let able = |player: &Player| !player.over && player.waits.is_none();
            let next = (at..self.players.len()).chain(0..at).find(|&at| able(&self.players[at]));
            if let Some(at) = next {
                self.act(at);
            }
        }
        self.events.len() - before
    }

    fn dispatch(&mut self) {
        let id = format!("t{}", self.players.len());
        let words = self.dice.below(4);
        let task = |path: &str| self.sandbox.task(&id, path);
        fs::create_dir_all(task("attempts/1")).expect("made");
        fs::create_dir_all(task("ipc")).expect("made");
        fs::create_dir_all(task("tells")).expect("made");
        put(&task("plan.md"), "# Title\n\n- [ ] First\n");
        put(&task("prompt.md"), "Do it.\n");
        put(&task("attempts/1/identity"), &identity(&self.workers));
        let record = format!(
            "format: 1\nnonce: '{:016x}'\nname: idle\nbackend: idle\nroute: cli\naccess: write\n\
             directory: {}\ntask_directory: {}\nowner: {}\ncreated: 2026-11-21T10:02:15Z\n",
            self.dice.below(1 << 50),
            self.sandbox.project().display(),
            task("").display(),
            identity(&self.host),
        );
        put(&task("record.yaml"), &record);
        let (said, asked, waits, over) = (0, 0, None, false);
        self.players.push(Player { id, words, said, asked, waits, over });
    }

    /// A worker tells, asks, or ends.
    fn act(&mut self, at: usize) {
        let (kind, by_helper) = (self.dice.below(3), self.dice.below(8) == 0);
        let player = &mut self.players[at];
        let id = player.id.clone();
        let task = |path: &str| self.sandbox.task(&id, path);
        let mut words = id.clone();
        if player.said + player.asked < player.words && kind < 2 {
            player.said += 1;
            let said = format!("word {}", player.said);
            if by_helper {
                self.sandbox.worker(&id, &["tell", &said]).run().ok();
            } else {
                put(&task(&format!("tells/{:03}", player.said)), &said);
            }
            write!(words, " says: \"{said}\"").expect("text");
        } else if player.said + player.asked < player.words {
            player.asked += 1;
            let number = format!("{:03}", player.asked);
            if by_helper {
                let ask = self.sandbox.worker(&id, &["ask", &format!("Which {number}?")]);
                assert_eq!(ask.env("DISPATCH_WAIT_MS", "0").run().code, Some(75));
            } else {
                put(&task(&format!("ipc/{number}.question")), &format!("Which {number}?\n"));
            }
            write!(words, " asks ({number})").expect("text");
            player.waits = Some(number);
        } else {
            player.over = true;
            match kind {
                0 => words.push_str(" failed"),
                1 => words.push_str(" incomplete"),
                _ => {
                    put(&task("plan.md"), "# Title\n\n- [x] First\n");
                    put(&task("ipc/.done"), "All is well.\n");
                    words.push_str(" done");
                }
            }
            let code = if kind == 0 { 7 } else { 0 };
            let exit = format!("code: {code}\nat: 2026-11-21T10:02:15Z\nmilliseconds: 5\n");
            put(&task("attempts/1/exit"), &exit);
        }
        assert!(self.events.insert(words, Known::default()).is_none());
    }
}

/// The event of a line: its id, `true` if the line was said before, and its history.
fn find<'a>(
    events: &'a mut BTreeMap<String, Known>,
    line: &'a str,
) -> Option<(&'a str, bool, &'a mut Known)> {
    let (id, rest) = line.split_once(' ').filter(|(id, _)| id.starts_with('#'))?;
    let words = rest.strip_prefix("(said before) ").unwrap_or(rest);
    let event = events.iter_mut().find(|(event, _)| {
        words.strip_prefix(event.as_str()).is_some_and(|rest| rest.starts_with([':', ' ']))
    });
    let (_, known) = event.unwrap_or_else(|| panic!("no such event happened: {line}"));
    Some((id, words.len() < rest.len(), known))
}

fn identity(host: &Host) -> String {
    let identity = Identity::of_pid(host.pid()).expect("seen").expect("it runs");
    serde_json::to_string(&identity).expect("JSON")
}

/// Publishes a file whole, as a shell script would.
fn put(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).expect("written");
    fs::rename(&temporary, path).expect("renamed");
}
