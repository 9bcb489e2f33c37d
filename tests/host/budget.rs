//! The cost of dispatching for the host, measured with the real Claude Code: by this skill, and by
//! the original's procedure.
//!
//! A story is measured by the bytes that it leaves in the host's context: the body of the request
//! after the story, less that of the request before it (each is a greeting, and a third greeting
//! shows the cost of one), and by the host's requests and tool calls between the two. Paths,
//! durations and token counts count with a fixed length, so that every run counts the same. The
//! host tells the person the same on both sides.
//!
//! The result is a table in .github/NUMBERS.md, which `SNAPSHOTS=overwrite` rewrites.

mod original;
mod story;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use regex::Regex;
use serde_json::json;

use crate::support::{
    claude::{Claude, Options},
    codex,
    model::{Model, Part, Reply, Request},
    process::Home,
    skill,
    story::{
        DEADLINE, Gate, Job, Seat, asked, called, compare_with_page, dispatcher, quiet,
        read_prompt, run, until,
    },
};
use original::tell;
use story::{STATUS, Scene, Work, Worker};

/// Both sides' config.
const CONFIG: &str = "\
default: opus
backends:
  claude: {}
  codex: {}
  demo: { command: sh ~/demo.sh }
models:
  opus: { backend: claude }
  sonnet: { backend: claude }
  gpt-5.5: { backend: codex }
  demo: { backend: demo }
";

/// The worker with a command. It knows the task's files only, and waits at each step for the
/// story's signal.
const DEMO: &str = r#"
cd "$DISPATCH_TASK_DIR"
said=$HOME/go/${PWD##*/}
read -r word <"$said"
if [ "${word%% *}" = ask ]; then
  echo "${word#ask }" >ipc/question.tmp
  mv ipc/question.tmp ipc/001.question
  read -r word <"$said"
  touch ipc/001.done
fi
sed 's/^- \[ \]/- [x]/' plan.md >plan.tmp
mv plan.tmp plan.md
echo "${word#end }" >ipc/done.tmp
mv ipc/done.tmp ipc/.done
"#;

/// The greeting of the person before and after a story, and of the host.
const HELLO: &str = "Hello";

/// The cost of a story for the host.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// The bytes in the host's context.
    bytes: usize,
    /// The host's requests.
    requests: usize,
    /// The tool calls of the host's model, and how many of them follow the first input.
    calls: usize,
    first_calls: usize,
    /// The bytes of the skill's text that a typed `/dispatch` injects.
    skill: usize,
}

/// The procedure by which the host dispatches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// This skill.
    Skill,
    /// A host that follows the original.
    Original,
}

/// The script of the host's model.
#[derive(Default)]
struct Script {
    /// The texts for the person, one for each turn.
    told: VecDeque<String>,
    /// The last request of the person.
    works: &'static [&'static Work],
    /// The remaining steps of a host that follows the original.
    steps: VecDeque<Reply>,
}

impl Script {
    /// The next reply of the host's model.
    fn host(&mut self, side: Side, request: &Request) -> Reply {
        let new = request.last_user();
        if new.ends_with(HELLO) {
            return Reply::say(HELLO);
        }
        if side == Side::Original {
            return self.steps.pop_front().unwrap_or_else(|| panic!("no step for: {new}"));
        }
        let reply = if new.ends_with(STATUS) && request.last_tool_results().is_empty() {
            Reply::shell(request, &format!("\"{}dispatch-reconcile\"", bin(request)))
        } else {
            let jobs: Vec<Job> = self.works.iter().map(|work| work.job).collect();
            dispatcher(request, &jobs)
        };
        match reply {
            // Both sides tell the person the same.
            Reply::Message(parts) if matches!(parts[..], [Part::Say(_)]) => {
                Reply::say(self.told.pop_front().unwrap_or_else(|| panic!("nothing to say: {new}")))
            }
            reply => reply,
        }
    }
}

/// The folder of the helpers, from the skill's text.
fn bin(request: &Request) -> String {
    let texts = request.texts().join("\n");
    let spawn = Regex::new("\"([^\"]+/)dispatch-spawn\"").expect("an expression");
    spawn.captures(&texts).expect("the skill says where the helpers are")[1].to_owned()
}

/// A worker of a story.
#[derive(Clone)]
struct Player {
    work: &'static Work,
    asks: bool,
    ask: Gate,
    end: Gate,
}

impl Player {
    /// The workers of a story, by their tasks.
    fn of(story: &[Scene]) -> BTreeMap<&'static str, Self> {
        let mut players = BTreeMap::new();
        for scene in story {
            match scene {
                Scene::Dispatch(_, works) => {
                    players.extend(works.iter().map(|&work| {
                        let (ask, end) = (Gate::default(), Gate::default());
                        (work.job.id, Self { work, asks: false, ask, end })
                    }));
                }
                Scene::Asks(work) => {
                    players.get_mut(work.job.id).expect("the task is dispatched").asks = true;
                }
                _ => {}
            }
        }
        players
    }

    /// The reply of a worker's model that has our helpers.
    fn turn(&self, request: &Request) -> Reply {
        match request.turns() {
            0 if request.is_agent() => read_prompt(&request.first_user()),
            0 => Reply::shell(request, "true"),
            1 if self.asks => {
                self.ask.pass();
                run(request, &format!("ask - <<'END_TEXT'\n{}\nEND_TEXT", self.work.question.0))
            }
            turn => {
                self.end.pass();
                self.ends(request, turn - 1 - usize::from(self.asks))
            }
        }
    }

    fn ends(&self, request: &Request, turn: usize) -> Reply {
        let items = self.work.items().len();
        match self.work.error {
            Some(error) if turn == 0 => {
                run(request, &format!("fail 1 - <<'END_TEXT'\n{error}\nEND_TEXT"))
            }
            None if turn < items => run(request, &format!("tick {}", turn + 1)),
            None if turn == items => {
                run(request, &format!("finish - <<'END_TEXT'\n{}\nEND_TEXT", self.work.end))
            }
            _ => {
                let result = request.last_tool_results().join("\n");
                let told = result.split_once("this one message: ");
                Reply::say(told.map_or(self.work.end, |(_, message)| message))
            }
        }
    }

    /// Makes the worker act as the scene says.
    fn acts(&self, home: &Home, scene: &Scene) {
        match (scene, self.work.worker) {
            (Scene::Asks(work), Worker::Command) => {
                tell(home, work.job.id, &format!("ask {}", work.question.0));
            }
            (Scene::Ends(work), Worker::Command) => {
                tell(home, work.job.id, &format!("end {}", work.end));
            }
            (Scene::Asks(_), _) => self.ask.open(),
            _ => self.end.open(),
        }
    }
}

/// A home that is set up for one side.
fn home(side: Side) -> Home {
    let home = match side {
        Side::Skill => skill::ready(CONFIG),
        Side::Original => original::ready(CONFIG),
    };
    if side == Side::Skill {
        skill::allow(&home);
    }
    fs::write(home.path().join("demo.sh"), DEMO).expect("the demo worker");
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=Tester", "-c", "user.email=tester@example.com"]);
        git.args(arguments).current_dir(home.project());
        git.env("HOME", home.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        assert!(git.status().expect("git").success(), "git {arguments:?}");
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["commit", "-q", "--allow-empty", "-m", "Begin"]);
    home
}

/// A session of the host.
struct Session {
    home: Home,
    claude: Claude,
    script: Arc<Mutex<Script>>,
}

impl Session {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets something happen, and waits until the host has told the person these texts, one for
    /// each turn.
    fn tells(&mut self, told: Vec<String>, steps: Vec<Reply>, happens: impl FnOnce(&mut Self)) {
        {
            let mut script = self.script();
            script.told = told.clone().into();
            script.steps = steps.into();
        }
        happens(self);
        for text in told {
            until(&mut self.claude, &self.home, &text);
        }
    }

    fn greets(&mut self) {
        self.tells(vec![HELLO.into()], vec![], |it| it.claude.say(HELLO));
    }

    fn plays(&mut self, side: Side, scene: &Scene, players: &BTreeMap<&str, Player>) {
        if let Scene::Dispatch(_, works) = scene {
            self.script().works = works;
        }
        let steps = match side {
            Side::Skill => vec![],
            Side::Original => original::steps(&self.home, scene),
        };
        match (scene.typed(), scene) {
            (Some(words), _) => {
                self.tells(vec![scene.told()], steps, |it| it.claude.say(&words));
            }
            (None, Scene::Asks(work) | Scene::Ends(work)) => {
                let player = &players[work.job.id];
                if side == Side::Original {
                    original::acts(self, player, scene, steps);
                } else {
                    let mut told = vec![scene.told()];
                    if player.work.error.is_some() {
                        // The host is woken twice: by the agent's report, and by the news with its
                        // remedy.
                        told.push("Shall it try again, or go on without that item?".into());
                    }
                    self.tells(told, steps, |it| player.acts(&it.home, scene));
                }
            }
            _ => unreachable!("the person types the rest"),
        }
    }
}

/// Plays a story and counts.
fn cost(side: Side, story: &[Scene]) -> Cost {
    let (home, players) = (home(side), Player::of(story));
    let pipes = home.path().join("go");
    fs::create_dir(&pipes).expect("a directory");
    for id in players.keys() {
        for pipe in [(*id).to_owned(), original::monitor_of(id)] {
            mkfifo(&pipes.join(pipe), Mode::S_IRWXU).expect("a pipe");
        }
    }
    let script = Arc::new(Mutex::new(Script::default()));
    let (of_host, of_workers) = (Arc::clone(&script), players.clone());
    let model = Model::start(move |request| {
        if Seat::of(request) == Seat::Host {
            return of_host.lock().unwrap_or_else(PoisonError::into_inner).host(side, request);
        }
        let texts = request.texts().join("\n");
        let told = |id: &str| {
            [format!("tasks/{id}/"), format!("/{id}/attempts/")].iter().any(|it| texts.contains(it))
        };
        let player = of_workers.values().find(|player| told(player.work.job.id));
        let player = player.expect("a worker is told its task");
        match side {
            Side::Skill => player.turn(request),
            Side::Original => {
                player.end.pass();
                Reply::say(player.work.end)
            }
        }
    });
    codex::configure(home.path(), &model);
    let options = Options { asks: true, ..Options::mode("acceptEdits") };
    let claude = Claude::stream(home.path(), &home.project(), &model, &options);
    let mut session = Session { home, claude, script };

    session.greets();
    session.greets();
    let mut first_calls = None;
    for scene in story {
        session.plays(side, scene, &players);
        first_calls.get_or_insert_with(|| called(&model).len());
    }
    session.greets();
    if side == Side::Skill {
        quiet(&session.home);
        assert!(session.claude.end(DEADLINE).success());
    }

    let host = asked(&model, Seat::Host);
    let bodies: Vec<String> =
        host.iter().map(|request| fixed(&session.home, &request.body.to_string())).collect();
    let last = bodies.len() - 1;
    Cost {
        bytes: bodies[last].len() - bodies[1].len() - (bodies[1].len() - bodies[0].len()),
        requests: host.len() - 3,
        calls: called(&model).len(),
        first_calls: first_calls.expect("a scene"),
        skill: fixed(&session.home, &json!(skill_in(&host[last])).to_string()).len(),
    }
}

/// The skill's text in a request, as a typed `/dispatch` brings it.
fn skill_in(request: &Request) -> String {
    let texts = request.texts();
    let text = texts.iter().find_map(|text| text.split_once("Base directory for this skill: "));
    text.expect("the skill's text").1.to_owned()
}

/// The text with a fixed length for all that differs from run to run.
fn fixed(home: &Home, text: &str) -> String {
    let path = home.path().to_str().expect("a path in UTF-8");
    let text = text.replace(path, "/home/person").replace(&path.replace('/', "-"), "-home-person");
    let varies = [
        ("<duration_ms>[0-9]+", "<duration_ms>10000"),
        ("_tokens>[0-9]+<", "_tokens>10000<"),
        ("/claude-[0-9]+/", "/claude-1000/"),
        (" [0-9]+[smh]([ ,)])", " 10s$1"),
        // The name of the hook that waited.
        ("command (\\\\?\")UserPromptSubmit", "command ${1}Stop"),
    ];
    varies.iter().fold(text, |text, (varies, fixed)| {
        let varies = Regex::new(varies).expect("an expression");
        varies.replace_all(&text, *fixed).into_owned()
    })
}

/// The costs of all stories on one side.
struct Costs {
    two: Cost,
    five: Cost,
    command: Cost,
    commands: Cost,
    asked: Cost,
}

impl Costs {
    fn of(side: Side) -> Self {
        Self {
            two: cost(side, story::TWO),
            five: cost(side, story::FIVE),
            command: cost(side, story::ONE_COMMAND),
            commands: cost(side, story::TWO_COMMANDS),
            asked: cost(side, story::ASKED),
        }
    }

    /// The bytes for one more task of a command, from its plan to the report.
    fn task(&self) -> usize {
        self.commands.bytes - self.command.bytes
    }

    /// The bytes for a question and its answer.
    fn question(&self) -> usize {
        self.asked.bytes - self.command.bytes
    }
}

#[test]
fn dispatch_stays_within_the_budget() {
    let (ours, original) = thread::scope(|scope| {
        let original = scope.spawn(|| Costs::of(Side::Original));
        (Costs::of(Side::Skill), original.join().expect("the original's costs"))
    });
    let table = table(&ours, &original);
    compare_with_page(".github/NUMBERS.md", file!(), &table);

    let checked = cost(Side::Skill, story::FIVE_CHECKED);
    let more = checked.bytes - ours.five.bytes;
    assert!(more <= CHECKS && checked.requests == ours.five.requests, "{more} bytes: {checked:?}");

    let text = include_str!("../../SKILL.md").splitn(3, "---\n").nth(2).expect("a body");
    assert!(text.len() <= SKILL, "SKILL.md has {} bytes after its frontmatter", text.len());
    assert!(ours.command.skill <= SKILL_WITH_BRIEF, "{table}");
    assert!(ours.command.first_calls <= COMMAND_CALLS, "{table}");
    assert!(ours.two.first_calls <= AGENT_CALLS, "{table}");
    assert!(ours.task() <= TASK, "{table}");
    assert!(ours.question() <= QUESTION, "{} bytes\n{table}", ours.question());
    assert!(ours.two.bytes * 4 <= original.two.bytes, "{table}");
    assert!(ours.two.requests * 2 <= original.two.requests, "{table}");
    // The budget limits only the smaller story; the larger one costs at most half as well.
    assert!(ours.five.bytes * 2 <= original.five.bytes, "{table}");
    assert!(ours.five.requests * 2 <= original.five.requests, "{table}");
}

/// The limits, in bytes and in calls.
const SKILL: usize = 3_600;
const SKILL_WITH_BRIEF: usize = 5_100;
const COMMAND_CALLS: usize = 1;
const AGENT_CALLS: usize = 2;
const TASK: usize = 1_500;
const QUESTION: usize = 1_600;
/// Two checks in the story of five tasks.
const CHECKS: usize = 300;

/// The table for people.
fn table(ours: &Costs, original: &Costs) -> String {
    let kb = |bytes: usize| format!("{:.1} KB", bytes as f64 / 1000.0);
    let sides = [ours, original];
    let mut table = String::from("| | this skill | the original | limit |\n|---|---|---|---|\n");
    let mut row = |what: &str, of: &dyn Fn(&Costs) -> String, limit: &str| {
        let [ours, original] = sides.map(of);
        table.push_str(&format!("| {what} | {ours} | {original} | {limit} |\n"));
    };
    row("a typed `/dispatch` brings", &|it| kb(it.command.skill), &kb(SKILL_WITH_BRIEF));
    row(
        "calls to dispatch a task: of a command, of an agent",
        &|it| format!("{}, {}", it.command.first_calls, it.two.first_calls),
        &format!("{COMMAND_CALLS}, {AGENT_CALLS}"),
    );
    row("one more task, from its plan to the report", &|it| kb(it.task()), &kb(TASK));
    row("a question and its answer", &|it| kb(it.question()), &kb(QUESTION));
    let counts = |cost: &Cost| format!("{}, {}", cost.requests, cost.calls);
    row("two tasks, a question, a status", &|it| kb(it.two.bytes), "a quarter");
    row("its requests, calls", &|it| counts(&it.two), "half the requests");
    row("five tasks, a question, a failure, a status", &|it| kb(it.five.bytes), "");
    row("its requests, calls", &|it| counts(&it.five), "");
    table
}
