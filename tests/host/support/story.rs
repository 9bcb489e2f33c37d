//! The shared parts of the stories: the dispatcher that follows the skill and the other callers of
//! the endpoint, the gates between steps, and the host's news.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use regex::Regex;
use serde_json::{Value, json};

use super::{
    claude::Claude,
    model::{Api, Model, Reply, Request},
    process::{Home, wait_until, watches},
};

/// The deadline of a step.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The start of the user's reply to a worker's question.
pub(crate) const REPLY: &str = "Tell it: ";

/// The user's message about a task that ended early.
pub(crate) const CONTINUE: &str = "Let it continue.";

/// The caller of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// The session in which the person types.
    Host,
    /// An agent of that session.
    Agent,
    /// A worker that is a `claude -p`.
    Claude,
    /// A worker that is a `codex exec`.
    Codex,
}

impl Seat {
    /// The caller of a request.
    pub(crate) fn of(request: &Request) -> Self {
        match request.api {
            Api::Codex => Self::Codex,
            Api::Gemini => panic!("only the acts of a sandbox are scripted for Gemini"),
            Api::Claude if request.is_agent() => Self::Agent,
            Api::Claude if request.first_user().contains("You are the worker of one task") => {
                Self::Claude
            }
            Api::Claude => Self::Host,
        }
    }
}

/// All requests of a seat so far.
pub(crate) fn asked(model: &Model, seat: Seat) -> Vec<Arc<Request>> {
    let mut requests = model.requests();
    requests.retain(|request| !request.is_side_request() && Seat::of(request) == seat);
    requests
}

/// A gate that one side of a story passes once the other side has opened it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// Opens the gate for good.
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open.
    pub(crate) fn pass(&self) {
        let closed = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.0.1.wait_timeout_while(closed, DEADLINE, |open| !*open);
        let (open, _) = passed.unwrap_or_else(PoisonError::into_inner);
        assert!(*open, "the gate stayed closed");
    }
}

/// A task that the scripted dispatcher hands over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    /// The task's id.
    pub(crate) id: &'static str,
    /// The name of the worker.
    pub(crate) model: &'static str,
    /// The plan.
    pub(crate) plan: &'static str,
}

/// The script of the host's model. It takes everything from the request: paths from the skill's
/// text, the Agent call and the answer command from the helpers' lines.
pub(crate) fn dispatcher(request: &Request, jobs: &[Job]) -> Reply {
    let new = request.last_user();
    let results = request.last_tool_results();
    if !results.is_empty() {
        let results = results.join("\n");
        let (name, input) = request.calls().pop().expect("a result has a call");
        let command = input["command"].as_str().unwrap_or_default();
        return match name.as_str() {
            "Bash" if command.contains("dispatch-spawn") || results.contains(START) => {
                after_spawn(&results, jobs)
            }
            "Bash" if results.contains(SEND) => send(request),
            "Bash" => Reply::say(format!("Passed on: {results}")),
            "ToolSearch" => send(request),
            "Skill" => spawn(request, jobs),
            _ => Reply::say("The worker has begun."),
        };
    }
    if let Some((_, reply)) = new.split_once(REPLY) {
        let texts = request.texts().join("\n");
        let command = texts.rsplit_once("then run: ").expect("a question was told").1;
        let command = command.split(" (the answer, then END_TEXT)").next().unwrap_or_default();
        return Reply::shell(request, &format!("{command}\n{}\nEND_TEXT", reply.trim()));
    }
    if new.ends_with(CONTINUE) {
        let command = Regex::new("[^ ]+/dispatch-spawn [a-z-]+ --resume").expect("an expression");
        let texts = request.texts().join("\n");
        return Reply::shell(request, command.find_iter(&texts).last().expect("told").as_str());
    }
    let news = news(&new);
    if !news.is_empty() {
        return Reply::say(news.join("\n"));
    }
    if let Some((_, result)) = new.split_once("<result>") {
        let result = result.split("</result>").next().unwrap_or_default();
        return Reply::say(format!("The worker says: {result}"));
    }
    if jobs.is_empty() || new.contains("The request: \n") {
        return Reply::say("Dispatch is ready.");
    }
    if !new.contains("The request: ") {
        let asked = new.lines().last().unwrap_or_default();
        return Reply::call("Skill", json!({ "skill": "dispatch", "args": asked }));
    }
    spawn(request, jobs)
}

/// A single call for all tasks, by the command that the skill's text gives.
pub(crate) fn spawn(request: &Request, jobs: &[Job]) -> Reply {
    let texts = request.texts().join("\n");
    let line = Regex::new(r#"("[^"]+/dispatch-spawn") ID --model NAME --plan - <<'END_PLAN'"#);
    let line = line.expect("an expression");
    let spawn = &line.captures(&texts).expect("the skill says how to spawn")[1];
    let call = |job: &Job| {
        format!(
            "{spawn} {} --model {} --plan - <<'END_PLAN'\n{}END_PLAN",
            job.id, job.model, job.plan
        )
    };
    let calls: Vec<String> = jobs.iter().map(call).collect();
    Reply::shell(request, &calls.join("\n"))
}

fn after_spawn(results: &str, jobs: &[Job]) -> Reply {
    let calls = results.lines().filter_map(|line| line.split_once(START));
    let calls = calls.map(|(_, call)| {
        Reply::call("Agent", serde_json::from_str(call).expect("the call is JSON"))
    });
    let ids: Vec<&str> = jobs.iter().map(|job| job.id).collect();
    let dispatched = || Reply::say(format!("Dispatched {}.", ids.join(" and ")));
    calls.reduce(Reply::and).unwrap_or_else(dispatched)
}

/// The text before the call that starts an agent.
const START: &str = "make this Agent call now: ";

/// The text before the call that sends an agent a message.
const SEND: &str = "make this SendMessage call now (ToolSearch finds it): ";

/// The call that the helper printed, for which the host may have to find the tool first.
fn send(request: &Request) -> Reply {
    if !request.tools().contains(&"SendMessage") {
        return Reply::call("ToolSearch", json!({ "query": "select:SendMessage" }));
    }
    let texts = request.texts().join("\n");
    let (_, call) = texts.rsplit_once(SEND).expect("the helper gave the call");
    let mut call = serde_json::Deserializer::from_str(call).into_iter::<Value>();
    Reply::call("SendMessage", call.next().expect("a call").expect("the call is JSON"))
}

/// The lines of news in a text, without their ids; the tool that reads files numbers lines.
pub(crate) fn news(text: &str) -> Vec<String> {
    let line = Regex::new(r"(?m)^(?:[0-9]+\t)?#[0-9a-f]{8} (.+) → ").expect("an expression");
    line.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// All news lines of the host so far, repeated as often as delivered.
pub(crate) fn told(model: &Model) -> Vec<String> {
    told_in(&asked(model, Seat::Host))
}

/// The news lines in the new texts of these requests, without durations.
pub(crate) fn told_in(requests: &[Arc<Request>]) -> Vec<String> {
    let lines = requests.iter().flat_map(|request| news(&request.last_user()));
    lines.map(|line| without_age(&line)).collect()
}

/// The tools that the host called, in order.
pub(crate) fn called(model: &Model) -> Vec<String> {
    let host = asked(model, Seat::Host);
    let calls = host.last().map(|request| request.calls()).unwrap_or_default();
    calls.into_iter().map(|(name, _)| name).collect()
}

/// The command by which a worker calls its helper, from the prompt that it got or read.
fn helper(request: &Request) -> String {
    let call =
        Regex::new(r#"("?/[^\n]+/dispatch-worker"? --task-dir [^\n]+) …"#).expect("an expression");
    let texts = request.texts().join("\n");
    call.captures(&texts).expect("the prompt names the helper")[1].to_owned()
}

/// The first call of an agent with this prompt: reads the file that the prompt names, or the plan
/// if the prompt came with the call.
pub(crate) fn read_prompt(prompt: &str) -> Reply {
    let path = prompt.rsplit_once("Read ").and_then(|(_, rest)| rest.split_once(" and do what"));
    let plan = || prompt.split_once("a copy of ")?.1.split_once(". Do its items");
    let (path, _) = path.or_else(plan).expect("the prompt's path");
    Reply::call("Read", json!({ "file_path": path }))
}

/// The call of a worker's helper with these arguments.
pub(crate) fn run(request: &Request, arguments: &str) -> Reply {
    Reply::shell(request, &format!("{} {arguments}", helper(request)))
}

/// The call by which a Claude worker asks, with the time limit of its prompt.
pub(crate) fn ask(request: &Request, question: &str) -> Reply {
    let command = format!("{} ask - <<'END_TEXT'\n{question}\nEND_TEXT", helper(request));
    Reply::call("Bash", json!({ "command": command, "timeout": 600_000 }))
}

/// The directory of a task.
pub(crate) fn task(home: &Home, id: &str) -> PathBuf {
    home.project().join(".dispatch/tasks").join(id)
}

/// The person's side of a task of the only project.
pub(crate) fn state(home: &Home, id: &str) -> PathBuf {
    let projects = fs::read_dir(home.path().join(".dispatch/state")).into_iter().flatten();
    let mut tasks = projects.flatten().map(|project| project.path().join(id));
    tasks.find(|task| task.exists()).unwrap_or_default()
}

/// The text of a file, or an empty string.
pub(crate) fn file(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Waits for the end of a turn in which the host says `text`, and allows every permission on the
/// way. Returns the permissions as `who tool: what`, without the home's path.
#[track_caller]
pub(crate) fn until(claude: &mut Claude, home: &Home, text: &str) -> Vec<String> {
    until_answering(claude, home, text, true)
}

/// Waits like [`until`], and gives this answer to every question for a permission.
#[track_caller]
pub(crate) fn until_answering(
    claude: &mut Claude,
    home: &Home,
    text: &str,
    allow: bool,
) -> Vec<String> {
    let mut asked = Vec::new();
    loop {
        let event = claude.wait_event(DEADLINE, |event| {
            let result = event["result"].as_str().unwrap_or_default();
            let ends = result.contains(text) || event["is_error"] == true;
            event["type"] == "control_request" || event["type"] == "result" && ends
        });
        if event["type"] == "result" {
            assert_eq!(event["is_error"], false, "{event}");
            return asked;
        }
        let ask = &event["request"];
        let who = if ask["agent_id"].is_string() { "agent" } else { "host" };
        let tool = ask["tool_name"].as_str().unwrap_or_default();
        let what = ask["input"]["command"].as_str().or(ask["input"]["file_path"].as_str());
        let what = what.unwrap_or_default().replace(home.path().to_str().expect("UTF-8"), "~");
        asked.push(format!("{who} {tool}: {what}"));
        claude.answer(&event, allow);
    }
}

/// A news line without the worker's duration.
pub(crate) fn without_age(line: &str) -> String {
    let age = Regex::new(r"^([^:]+ \([0-9]+/[0-9]+), [0-9]+[smh]\)").expect("an expression");
    age.replace(line, "$1)").into_owned()
}

/// The pid of the host's waiter, once it waits.
pub(crate) fn waiter(home: &Home) -> i32 {
    wait_until(DEADLINE, "the host's waiter", || {
        home.running("dispatch-monitor").into_iter().find(|pid| watches(*pid))
    })
}

/// Waits until no helper process is left: no worker runs and nothing can wake the host.
#[track_caller]
pub(crate) fn quiet(home: &Home) {
    wait_until(DEADLINE, "the end of waiters and supervisors", || {
        let left = ["dispatch-monitor", "dispatch-spawn"].map(|program| home.running(program));
        left.concat().is_empty().then_some(())
    });
}

/// Compares a table with the one in a page between two comments, of which the first names the test, or
/// rewrites that one.
#[track_caller]
pub(crate) fn compare_with_page(page: &str, test: &str, table: &str) {
    const END: &str = "<!-- to here -->\n";
    let begin = format!("<!-- by {test} -->\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let page = fs::read_to_string(&path).expect("the page");
    let (before, rest) = page.split_once(&begin).expect("where the table begins");
    let (known, after) = rest.split_once(END).expect("where the table ends");
    if std::env::var("SNAPSHOTS").is_ok_and(|it| it == "overwrite") {
        fs::write(path, format!("{before}{begin}{table}{END}{after}")).expect("the page");
    } else {
        snapbox::assert_data_eq!(table, snapbox::IntoData::raw(known.to_owned()));
    }
}
