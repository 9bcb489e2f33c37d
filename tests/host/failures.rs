//! How a worker's failure is told: both real CLIs, and what dispatch makes of their ends.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use regex::Regex;
use serde_json::{Value, json};
use snapbox::str;

use super::{
    claude::environment,
    codex,
    model::{Model, Reply},
    process::{Home, wait_until},
    request::Request,
    skill,
    story::{DEADLINE, run, task},
};

const CONFIG: &str = "
backends: { claude: { route: cli }, codex: {} }
models: { claude-opus-5: { backend: claude }, gpt-5.5: { backend: codex } }
";

const CLAUDE: &str = "claude-opus-5";
const CODEX: &str = "gpt-5.5";

/// A worker that fails, or not.
struct Try {
    model: &'static str,
    access: &'static str,
    /// It is logged in as a subscriber, whom the provider tells when a limit ends.
    subscriber: bool,
}

impl Try {
    fn of(model: &'static str) -> Self {
        Self { model, access: "write", subscriber: false }
    }

    /// Dispatches a task and says what it is in the end: its state, and why.
    fn ends(&self, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> String {
        let home = skill::ready(CONFIG);
        let model = Model::start(script);
        codex::configure(home.path(), &model);
        self.run(
            &home,
            &model,
            env!("CARGO_BIN_EXE_dispatch-spawn"),
            &["x", "--model", self.model, "--access", self.access, "--plan", "-"],
            "# Title\n- [ ] Run the tests\n",
        );
        let exit = task(&home, "x").join("worker/1/exit");
        wait_until(DEADLINE, "the worker ends", || exit.exists().then_some(()));
        let show = env!("CARGO_BIN_EXE_dispatch-reconcile");
        let shown = self.run(&home, &model, show, &["show", "x", "--json"], "");
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        let changes = [
            ("[0-9]{4}-[0-9T:-]+Z|[0-9]+:[0-9]{2} ?[APap][Mm]( \\([A-Za-z/_]+\\))?", "TIME"),
            (r"https?://[^ ,)]+", "PAGE"),
        ];
        let text = |key: &str| shown[key].as_str().unwrap_or_default().to_owned();
        let because = changes.into_iter().fold(text("because"), |text, (what, name)| {
            Regex::new(what).expect("an expression").replace_all(&text, name).into_owned()
        });
        format!("{}: {because}", text("state"))
    }

    fn run(&self, home: &Home, model: &Model, program: &str, args: &[&str], input: &str) -> String {
        let mut command = Command::new(program);
        command.args(args).current_dir(home.project()).env_clear();
        command.envs(environment(home.path(), model)).env("CLAUDE_CODE_MAX_RETRIES", "0");
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

/// What a worker does that has nothing against it.
fn works(request: &Request) -> Reply {
    match request.turns() {
        0 => Reply::shell(request, "for it in a b; do echo $it > made-$it; done; cat made-*"),
        1 => run(request, "tick 1"),
        2 => run(request, "finish 'They pass.'"),
        _ => Reply::say("That is all."),
    }
}

#[test]
fn a_worker_that_works_is_done() {
    shows(Try::of(CLAUDE).ends(works), str!["done: "]);
    shows(Try::of(CODEX).ends(works), str!["done: "]);
}

#[test]
fn a_key_that_is_not_taken() {
    let answer = |_: &Request| Reply::error(401, "authentication_error", "invalid key");
    shows(
        Try::of(CLAUDE).ends(answer),
        str!["failed: not logged in: Failed to authenticate. API Error: 401 invalid key"],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str!["failed: not logged in: unexpected status 401 Unauthorized: invalid key, url: PAGE"],
    );
}

#[test]
fn a_limit_whose_end_is_stated() {
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
        str!["waiting: rate limit, until TIME: You've hit your 5-hour limit · resets TIME"],
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
        str![
            "waiting: rate limit, until TIME: You've hit your usage limit. Upgrade to Pro (PAGE), visit PAGE to purchase more credits or try again at TIME."
        ],
    );
}

#[test]
fn a_limit_of_which_nothing_is_said() {
    let answer = |_: &Request| Reply::error(429, "rate_limit_error", "too many requests");
    shows(
        Try::of(CLAUDE).ends(answer),
        str![
            "waiting: rate limit, tries again at TIME: API Error: Request rejected (429) · too many requests"
        ],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str![
            "waiting: rate limit, tries again at TIME: exceeded retry limit, last status: 429 Too Many Requests"
        ],
    );
}

#[test]
fn a_model_that_nobody_knows() {
    let answer = |request: &Request| {
        let said = format!("The model `{}` does not exist", request.model);
        Reply::error(404, "not_found_error", &said)
    };
    shows(
        Try::of(CLAUDE).ends(answer),
        str![
            "failed: no such model: There's an issue with the selected model (claude-opus-5-5). It may not exist or you may not have access to it. Run --model to pick a different model."
        ],
    );
    shows(
        Try::of(CODEX).ends(answer),
        str![
            "failed: no such model: unexpected status 404 Not Found: The model `gpt-5.5` does not exist, url: PAGE"
        ],
    );
}

#[test]
fn a_connection_that_is_dropped() {
    shows(
        Try::of(CLAUDE).ends(|_| Reply::Drop),
        str![
            "failed: no connection: API Error: Connection dropped (ECONNRESET). Check the gateway set in ANTHROPIC_BASE_URL, then try again."
        ],
    );
    shows(
        Try::of(CODEX).ends(|_| Reply::Drop),
        str!["failed: no connection: stream disconnected before completion: error sending request"],
    );
}

#[test]
fn what_claude_may_not_do() {
    let reader = Try { access: "read", ..Try::of(CLAUDE) };
    let ends = reader.ends(|request| match request.turns() {
        0 => Reply::shell(request, "cargo test"),
        _ => Reply::say("I may not run them."),
    });
    shows(ends, str!["failed: denied: Bash: cargo test"]);
}
