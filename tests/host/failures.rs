//! The reports of failing workers: both real CLIs, and the news that dispatch derives from their
//! ends.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use regex::Regex;
use serde_json::json;
use snapbox::str;

use super::helpers;
use crate::support::{
    claude::environment,
    codex,
    model::{Model, Reply, Request},
    process::{Home, wait_until},
    skill,
    story::{DEADLINE, Gate, Seat, run, state},
};

const CONFIG: &str = "
backends: { claude: { route: cli }, codex: {} }
models: { claude-opus-5: { backend: claude }, gpt-5.5: { backend: codex } }
";

const CLAUDE: &str = "claude-opus-5";
const CODEX: &str = "gpt-5.5";

/// A worker and its setup.
struct Try {
    model: &'static str,
    access: &'static str,
    /// `true` for a subscriber's login, which gets the reset time of a limit.
    subscriber: bool,
}

impl Try {
    fn of(model: &'static str) -> Self {
        Self { model, access: "write", subscriber: false }
    }

    /// Dispatches a task and returns the news of its worker's end.
    fn ends(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> String {
        let home = skill::ready(CONFIG);
        let model = Model::start(script);
        self.spawn(&home, &model, "# Title\n- [ ] Run the tests\n");
        self.wait_for(&home, "exit");
        self.news(&home, &model)
    }

    fn spawn(&self, home: &Home, model: &Model, plan: &str) {
        codex::configure(home.path(), model);
        let program = helpers::path("dispatch-spawn");
        let arguments = ["x", "--model", self.model, "--access", self.access, "--plan", "-"];
        self.run(home, model, program, &arguments, plan);
    }

    /// Waits until the attempt has this file.
    fn wait_for(&self, home: &Home, what: &str) {
        let record = state(home, "x").join("attempts/1").join(what);
        wait_until(DEADLINE, &format!("the worker's {what}"), || record.exists().then_some(()));
    }

    /// The task's news up to its worker's end or silence, without the parts that differ from run to
    /// run.
    fn news(&self, home: &Home, model: &Model) -> String {
        let monitor = helpers::path("dispatch-monitor");
        let monitor = || self.run(home, model, monitor, &["x", "--timeout", "10s"], "");
        let mut news = monitor();
        if news.lines().all(|line| line.contains(" x says: ")) {
            news.push_str(&monitor());
        }
        let changes = [
            // Codex adds the date if the hour is in the next day.
            (
                "[0-9]{4}-[0-9T:-]+Z|([A-Z][a-z]{2} [0-9]+[a-z]{2}, [0-9]{4} )?[0-9]+(:[0-9]{2})? ?[APap][Mm]( \\([A-Za-z/_]+\\))?",
                "TIME",
            ),
            ("https?://[^ ,)\"\n]+", "PAGE"),
            ("#[0-9a-f]{8}", "#ID"),
            (r"(\([0-9]/[0-9]), [0-9]+[sm]\)", "$1, AGE)"),
            ("[^ ]+/dispatch-", "dispatch-"),
        ];
        changes.into_iter().fold(news.trim_end().into(), |text, (what, name)| {
            Regex::new(what).expect("an expression").replace_all(&text, name).into_owned()
        })
    }

    fn run(
        &self,
        home: &Home,
        model: &Model,
        program: &Path,
        args: &[&str],
        input: &str,
    ) -> String {
        let mut command = Command::new(program);
        command.args(args).current_dir(home.project()).env_clear();
        command.envs(environment(home.path(), model)).env("CLAUDE_CODE_MAX_RETRIES", "0");
        command.env("DISPATCH_SILENT_MS", "1000");
        if self.subscriber {
            command.env_remove("ANTHROPIC_API_KEY").env("CLAUDE_CODE_OAUTH_TOKEN", "dummy-token");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

#[track_caller]
fn shows(actual: String, expected: impl snapbox::IntoData) {
    snapbox::Assert::new()
        .action_env(snapbox::assert::DEFAULT_ACTION_ENV)
        .eq(actual, expected.into_data().raw());
}

fn in_an_hour() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_secs() + 3600
}

/// The script of a model that finishes its task.
fn works(request: &Request) -> Reply {
    match request.turns() {
        0 => Reply::shell(request, "for it in a b; do echo $it > made-$it; done; cat made-*"),
        1 => run(request, "tick 1"),
        2 => run(request, "finish 'They pass.'"),
        _ => Reply::say("That is all."),
    }
}

#[test]
fn successful_worker_is_done() {
    shows(
        Try::of(CLAUDE).ends(works),
        str![[r##"#ID x done (1/1, AGE): "They pass." → tell the user"##]],
    );
    shows(
        Try::of(CODEX).ends(works),
        str![[r##"#ID x done (1/1, AGE): "They pass." → tell the user"##]],
    );
}

#[test]
fn rejected_key_names_the_login_command() {
    let answer = |_: &Request| Reply::error(401, "authentication_error", "invalid key");
    shows(
        Try::of(CLAUDE).ends(answer),
        str![[
            r##"#ID x failed (0/1, AGE): not logged in: "Failed to authenticate. API Error: 401 invalid key" → the user must log in (claude auth login); then dispatch-spawn x --resume"##
        ]],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str![[
            r##"#ID x failed (0/1, AGE): not logged in: "unexpected status 401 Unauthorized: invalid key, url: PAGE" → the user must log in (codex login); then dispatch-spawn x --resume"##
        ]],
    );
}

#[test]
fn limit_with_a_reset_time_parks_the_task() {
    let claudes = |_: &Request| {
        let header = |name, value: &str| (name, value.to_owned());
        let reset = in_an_hour().to_string();
        Reply::Error {
            status: 429,
            headers: vec![
                header("anthropic-ratelimit-unified-status", "rejected"),
                header("anthropic-ratelimit-unified-reset", &reset),
                header("anthropic-ratelimit-unified-representative-claim", "five_hour"),
            ],
            error: json!({ "type": "rate_limit_error", "message": "the limit" }),
        }
    };
    shows(
        Try { subscriber: true, ..Try::of(CLAUDE) }.ends(claudes),
        str![[
            r##"#ID x parked (0/1): rate limit, until TIME: "You've hit your 5-hour limit · resets TIME" → tell the user; the task resumes when the limit resets"##
        ]],
    );
    let codexs = |_: &Request| Reply::Error {
        status: 429,
        headers: Vec::new(),
        error: json!({
            "type": "usage_limit_reached", "message": "the limit", "plan_type": "plus",
            "resets_at": in_an_hour(),
        }),
    };
    shows(
        Try::of(CODEX).ends(codexs),
        str![[
            r##"#ID x parked (0/1): rate limit, until TIME: "You've hit your usage limit. Upgrade to Pro (PAGE), visit PAGE to purchase more credits or try again at TIME." → tell the user; the task resumes when the limit resets"##
        ]],
    );
}

#[test]
fn limit_without_a_reset_time_parks_the_task() {
    let answer = |_: &Request| Reply::error(429, "rate_limit_error", "too many requests");
    shows(
        Try::of(CLAUDE).ends(answer),
        str![[
            r##"#ID x parked (0/1): rate limit, tries again at TIME: "API Error: Request rejected (429) · too many requests" → tell the user; the task resumes when the limit resets"##
        ]],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str![[
            r##"#ID x parked (0/1): rate limit, tries again at TIME: "exceeded retry limit, last status: 429 Too Many Requests" → tell the user; the task resumes when the limit resets"##
        ]],
    );
}

#[test]
fn fallback_continues_the_task_of_a_worker_at_its_limit() {
    let config = CONFIG.replace("backend: claude }", "backend: claude, fallback: gpt-5.5 }");
    for subscriber in [false, true] {
        let home = skill::ready(&format!("{config}wait_for_limit: 0\n"));
        let model = Model::start(move |request: &Request| match Seat::of(request) {
            Seat::Codex => match request.turns() {
                0 => run(request, "tick 1"),
                1 => run(request, "finish 'The tests pass.'"),
                _ => Reply::say("That is all."),
            },
            _ => {
                let header = |name, value: &str| (name, value.to_owned());
                let headers = vec![
                    header("anthropic-ratelimit-unified-status", "rejected"),
                    header("anthropic-ratelimit-unified-reset", &in_an_hour().to_string()),
                    header("anthropic-ratelimit-unified-representative-claim", "five_hour"),
                ];
                let headers = if subscriber { headers } else { Vec::new() };
                let error = json!({ "type": "rate_limit_error", "message": "too many requests" });
                Reply::Error { status: 429, headers, error }
            }
        });
        let worker = Try { subscriber, ..Try::of(CLAUDE) };
        worker.spawn(&home, &model, "# Title\n- [ ] Run the tests\n");
        let end = state(&home, "x").join("attempts/2/exit");
        wait_until(DEADLINE, "the fallback's end", || end.exists().then_some(()));
        let news = worker.news(&home, &model);
        let said = match subscriber {
            true => "You've hit your 5-hour limit \u{b7} resets TIME",
            false => "API Error: Request rejected (429) \u{b7} too many requests",
        };
        assert!(
            news.contains(&format!("claude-opus-5 is at its limit ({said}): gpt-5.5 continues")),
            "{news}"
        );
        assert!(news.contains(" x done (1/1, AGE): \"The tests pass.\""), "{news}");
    }
}

#[test]
fn unknown_model_is_reported() {
    let answer = |request: &Request| {
        let said = format!("The model `{}` does not exist", request.model);
        Reply::error(404, "not_found_error", &said)
    };
    shows(
        Try::of(CLAUDE).ends(answer),
        str![[r##"
#ID x says: "claude refused the model claude-opus-5: it works with its own" → tell the user
#ID x failed (0/1, AGE): no such model: "There's an issue with the selected model (claude-opus-5-5). It may not exist or you may not have access to it. Run --model to pick a different model." → ask the user which model instead; dispatch-spawn x --resume --model NAME
"##]],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str![[
            r##"#ID x failed (0/1, AGE): no such model: "unexpected status 404 Not Found: The model `gpt-5.5` does not exist, url: PAGE" → ask the user which model instead; dispatch-spawn x --resume --model NAME"##
        ]],
    );
}

#[test]
fn dropped_connection_is_reported() {
    shows(
        Try::of(CLAUDE).ends(|_| Reply::Drop),
        str![[
            r##"#ID x failed (0/1, AGE): no connection: "API Error: Connection dropped (ECONNRESET). Check the gateway set in ANTHROPIC_BASE_URL, then try again." → tell the user and ask; when the network is back, dispatch-spawn x --resume"##
        ]],
    );
    shows(
        Try::of(CODEX).ends(|_| Reply::Drop),
        str![[
            r##"#ID x failed (0/1, AGE): no connection: "stream disconnected before completion: error sending request" → tell the user and ask; when the network is back, dispatch-spawn x --resume"##
        ]],
    );
}

#[test]
fn denied_tool_call_is_reported() {
    let reader = Try { access: "read", ..Try::of(CLAUDE) };
    let ends = reader.ends(|request| match request.turns() {
        0 => Reply::shell(request, "cargo test"),
        _ => Reply::say("I may not run them."),
    });
    shows(
        ends,
        str![[
            r##"#ID x denied (0/1, AGE): "Bash: cargo test" → tell the user and ask; dispatch-spawn x --resume --access full lets it do anything"##
        ]],
    );
}

#[test]
fn silent_model_is_reported_and_its_worker_stopped() {
    let silent = |worker: &'static str| {
        let home = skill::ready(CONFIG);
        let gate = Gate::default();
        let hangs = gate.clone();
        let model = Model::start(move |_| {
            hangs.pass();
            Reply::Drop
        });
        let worker = Try::of(worker);
        worker.spawn(&home, &model, "# Title\n- [ ] Run the tests\n");
        worker.wait_for(&home, "silent");
        let news = worker.news(&home, &model);
        let stop = helpers::path("dispatch-reconcile");
        let stopped = worker.run(&home, &model, stop, &["stop", "x"], "");
        assert_eq!(home.processes(), [0; 0], "{stopped}");
        gate.open();
        format!("{news}\n{}", stopped.trim_end())
    };
    shows(
        silent(CLAUDE),
        str![[r##"
#ID x silent (0/1): no sign of life since TIME → tell the user; dispatch-reconcile stop x ends it
x stopped
"##]],
    );
    shows(
        silent(CODEX),
        str![[r##"
#ID x silent (0/1): no sign of life since TIME → tell the user; dispatch-reconcile stop x ends it
x stopped
"##]],
    );
}

#[test]
fn million_characters_of_context_reach_the_model() {
    let context: String = (0..100_000).map(|n| format!("{n:06} ä\n")).collect();
    let context = &format!("{context}{}", ".".repeat(1_000_000 - context.chars().count()));
    for worker in [CLAUDE, CODEX] {
        let home = skill::ready(CONFIG);
        let model = Model::start(works);
        let worker = Try::of(worker);
        let plan = format!("# Title\n- [ ] Run the tests\n\n## Context\n{context}\n");
        worker.spawn(&home, &model, &plan);
        worker.wait_for(&home, "exit");
        let requests = model.requests();
        let whole = |request: &&Arc<Request>| request.first_user().contains(context);
        assert_eq!(requests.iter().filter(whole).count(), 4, "in each of its requests");
    }
}

/// A session id becomes an argument of the CLI, so one that reads as an option could start any program.
#[test]
fn forged_session_id_reaches_no_real_cli() {
    for (model, option) in [
        (CLAUDE, r#"--settings={"apiKeyHelper":"touch PWNED"}"#),
        (CODEX, r#"-cmcp_servers.x={command="touch",args=["PWNED"]}"#),
    ] {
        let home = skill::ready(CONFIG);
        let script = |request: &Request| match request.texts().join("\n").contains("Which?") {
            true => works(request),
            false => Reply::say("Which?"),
        };
        let endpoint = Model::start(script);
        let attempt = Try::of(model);
        attempt.spawn(&home, &endpoint, "# Title\n- [ ] Run the tests\n");
        attempt.wait_for(&home, "exit");
        let pwned = home.path().join("pwned");
        let option = option.replace("PWNED", pwned.to_str().expect("UTF-8"));
        let forged = format!(
            "backend: {}\nid: '{option}'\n",
            if model == CLAUDE { "claude" } else { "codex" }
        );
        let own = home.project().join(".dispatch/tasks/x");
        for name in ["session", "worker/1/session", "attempts/1/session"] {
            let path = own.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(path, &forged).expect("written");
        }
        let session = |number: u32| {
            let path = state(&home, "x").join(format!("attempts/{number}/session"));
            fs::read_to_string(path).unwrap_or_default()
        };
        let first = session(1);
        assert!(first.contains("id: ") && !first.contains(&option), "{first}");
        let spawn = helpers::path("dispatch-spawn");

        // As if the CLI itself had printed it.
        let path = state(&home, "x").join("attempts/1/session");
        fs::write(&path, &forged).expect("written");
        let mut resume = Command::new(spawn);
        resume.args(["x", "--resume"]).current_dir(home.project()).env_clear();
        let said = resume.envs(environment(home.path(), &endpoint)).output().expect("an end");
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("begins a new session"), "{model}: {said}");
        fs::write(&path, &first).expect("written");

        attempt.run(&home, &endpoint, spawn, &["x", "--resume"], "");
        let exit = state(&home, "x").join("attempts/2/exit");
        wait_until(DEADLINE, "the second end", || exit.exists().then_some(()));
        assert_eq!(session(2), first, "{model}: the second attempt resumed another session");
        assert!(!pwned.exists(), "{model}");
    }
}
