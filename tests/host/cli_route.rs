//! Tasks on the cli route: `claude -p` and `codex exec`, at the same time.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use super::helpers;
use crate::support::claude::{Claude, Options, environment};
use crate::support::model::{Model, Reply, Request};
use crate::support::process::{Home, path, wait_until};
use crate::support::story::{
    DEADLINE, Gate, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, state, task,
    told, until,
};
use crate::support::{codex, skill};

const CONFIG: &str = "
default: opus
backends: { claude: { route: cli }, codex: {} }
models: { opus: { backend: claude }, gpt-5.5: { backend: codex } }
aliases: { poet: { model: opus, prompt: You are a poet. Every line rhymes. } }
";

const JOBS: [Job; 2] = [
    Job {
        id: "rhyme",
        model: "poet",
        plan: "# A rhyme\n- [ ] Let poem.txt rhyme\n\n## Context\nIt must rhyme with \"cat\".\n",
    },
    Job {
        id: "count",
        model: "gpt-5.5",
        plan: "# A count\n- [ ] Count the words\n- [ ] Write the count as the user likes it\n",
    },
];

const QUESTION: &str = "In words, or in digits?";

/// The points where one side waits for the other, so that every run is the same.
#[derive(Clone, Default)]
struct Gates {
    /// Claude has begun.
    claude: Gate,
    /// Codex has begun.
    codex: Gate,
    /// The host's turn has ended.
    ask: Gate,
    /// The host has heard the question.
    rhyme: Gate,
    /// The host has said that the answer is on its way.
    count: Gate,
}

/// The script of the model of `claude -p`.
fn poet(request: &Request, project: &Path, gates: &Gates) -> Reply {
    let poem = project.join("poem.txt");
    match request.turns() {
        0 => {
            gates.claude.open();
            gates.codex.pass();
            Reply::call("Read", json!({ "file_path": poem }))
        }
        1 => {
            let edit = json!({ "file_path": poem, "old_string": "a dog", "new_string": "a hat" });
            Reply::call("Edit", edit)
        }
        2 => run(request, "tick 1"),
        3 => {
            gates.rhyme.pass();
            run(request, "finish 'It rhymes now.'")
        }
        _ => Reply::say("That is all."),
    }
}

/// The script of the model of `codex exec`.
fn counter(request: &Request, gates: &Gates) -> Reply {
    match request.turns() {
        0 => {
            gates.codex.open();
            gates.claude.pass();
            Reply::shell(request, "wc -w < poem.txt > count.txt")
        }
        1 => run(request, "tick 1 --note 'five words'"),
        2 => {
            gates.ask.pass();
            run(request, &format!("ask - <<'END_TEXT'\n{QUESTION}\nEND_TEXT"))
        }
        3 => {
            gates.count.pass();
            let result = request.last_tool_results().join("\n");
            assert!(result.contains("in words, please"), "{result}");
            Reply::shell(request, "echo five > count.txt")
        }
        4 => run(request, "tick 2"),
        5 => run(request, "finish 'Five words.'"),
        _ => Reply::say("That is all."),
    }
}

#[test]
fn claude_and_codex_edit_the_project_at_the_same_time() {
    let home = skill::ready(CONFIG);
    skill::allow(&home);
    let (project, gates) = (home.project(), Gates::default());
    fs::write(project.join("poem.txt"), "The cat wore a dog.\n").expect("a file");
    let of_script = (project.clone(), gates.clone());
    let model = Model::start(move |request| match Seat::of(request) {
        Seat::Host => dispatcher(request, &JOBS),
        Seat::Claude => poet(request, &of_script.0, &of_script.1),
        Seat::Codex => counter(request, &of_script.1),
        Seat::Agent => panic!("no agent is started"),
    });
    codex::configure(home.path(), &model);
    let options = Options::mode("acceptEdits");
    let mut claude = Claude::stream(home.path(), &project, &model, &options);

    claude.say("/dispatch let the poet mend the rhyme, and gpt-5.5 count the words");
    until(&mut claude, &home, "Dispatched rhyme and count.");
    gates.ask.open();
    until(&mut claude, &home, "count asks (001)");
    gates.rhyme.open();
    until(&mut claude, &home, "rhyme done");
    claude.say(&format!("{REPLY}in words, please"));
    until(&mut claude, &home, "Passed on: ");
    gates.count.open();
    until(&mut claude, &home, "count done");
    quiet(&home);
    assert!(claude.end(DEADLINE).success());

    assert_eq!(file(project.join("poem.txt")), "The cat wore a hat.\n");
    assert_eq!(file(project.join("count.txt")), "five\n");
    let (rhyme, count) = (task(&home, "rhyme"), task(&home, "count"));
    assert!(file(rhyme.join("plan.md")).starts_with("# A rhyme\n- [x] Let poem.txt rhyme\n\n"));
    assert_eq!(
        file(count.join("plan.md")),
        "# A count\n- [x] Count the words\n  five words\n- [x] Write the count as the user likes it\n"
    );
    assert_eq!(file(count.join("ipc/001.question")), format!("{QUESTION}\n"));
    assert_eq!(file(count.join("ipc/001.answer")), "in words, please\n");
    assert!(count.join("ipc/001.done").exists());
    let prompt = file(rhyme.join("prompt.md"));
    assert!(prompt.starts_with("You are a poet. Every line rhymes.\n\nYou are the worker of one"));
    assert!(prompt.contains("## Context\nIt must rhyme with \"cat\"."), "{prompt}");
    for state in [state(&home, "rhyme"), state(&home, "count")] {
        let exit = file(state.join("attempts/1/exit"));
        assert!(exit.contains("code: 0\n"), "{exit}\n{}", file(state.join("attempts/1/log")));
    }

    assert_eq!(
        told(&model),
        [
            format!("count asks (001): \"{QUESTION}\""),
            "rhyme done (1/1): \"It rhymes now.\"".into(),
            "count done (2/2): \"Five words.\"".into(),
        ]
    );
    // A call for both tasks, and five requests without a call: dispatched, three times news, passed
    // on.
    assert_eq!(called(&model), ["Bash", "Bash"]);
    assert_eq!(asked(&model, Seat::Host).len(), 7);
}

const WORKTREE_CONFIG: &str = "
backends: { claude: { route: cli }, codex: {} }
models: { opus: { backend: claude }, gpt-5.5: { backend: codex } }
worktree: { setup: ': >dependency; echo dependency >>.git/info/exclude' }
notify: cat >>$HOME/told
";

/// The script of a model that has to commit, and to commit again what a check misses.
fn commits(request: &Request) -> Reply {
    match request.turns() {
        0 => Reply::shell(request, "touch work && git add work"),
        1 => Reply::shell(request, "git commit -q -m Work"),
        2 => run(request, "tick 1"),
        3 => run(request, "finish Committed."),
        4 => Reply::say("That is all."),
        // The session continues.
        5 => {
            let told = request.last_user();
            assert!(told.contains("# A check failed") && told.contains("\n| nothing\n"), "{told}");
            Reply::shell(request, "touch more && git add more")
        }
        6 => Reply::shell(request, "git commit -q -m More"),
        7 => run(request, "finish 'More is there.'"),
        _ => Reply::say("That is all."),
    }
}

/// A home with a repository as its project, in which a person calls the helpers.
pub(crate) struct Person {
    pub(crate) home: Home,
    model: Model,
    path: String,
    /// More variables of the environment.
    pub(crate) variables: Vec<(String, String)>,
}

impl Person {
    fn new(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let person =
            Self::without_files(skill::ready(WORKTREE_CONFIG), Model::start(script), path());
        // An ignored file that `.worktreeinclude` names comes along.
        for (name, text) in
            [(".gitignore", ".env\n"), (".worktreeinclude", ".env\n"), (".env", "A=1\n")]
        {
            fs::write(person.home.project().join(name), text).expect("written");
        }
        person.git(&["add", "."]);
        person.git(&["commit", "-q", "-m", "Begin"]);
        person
    }

    pub(crate) fn without_files(home: Home, model: Model, path: String) -> Self {
        codex::configure(home.path(), &model);
        let settings = "[user]\n\tname = Tester\n\temail = tester@example.com\n";
        fs::write(home.path().join(".gitconfig"), settings).expect("git's settings");
        let person = Self { home, model, path, variables: Vec::new() };
        person.git(&["init", "-q", "-b", "main"]);
        person
    }

    pub(crate) fn hide_bubblewrap(&mut self) {
        let programs = self.home.path().join("programs");
        helpers::link_all_but_bubblewrap(self.path.as_ref(), &programs);
        self.path = programs.display().to_string();
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        self.call(Path::new("git"), args, "")
    }

    pub(crate) fn call(&self, program: &Path, args: &[&str], input: &str) -> String {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.home.project()).env_clear();
        command.envs(environment(self.home.path(), &self.model)).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("PATH", &self.path).envs(self.variables.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a program");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("an end");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn spawn(&self, args: &[&str]) {
        let plan = "# Title\n- [ ] Commit something\n";
        self.call(helpers::path("dispatch-spawn"), args, plan);
    }

    /// The first event that the person's command is told of.
    fn told(&self) -> serde_json::Value {
        let told = self.home.path().join("told");
        wait_until(DEADLINE, "the person is notified", || {
            let lines = fs::read_to_string(&told).unwrap_or_default();
            serde_json::from_str(lines.lines().next()?).ok()
        })
    }

    /// The state of the task x and its reason, when its worker has ended.
    pub(crate) fn wait_for_end(&self) -> (String, String) {
        let reconcile = helpers::path("dispatch-reconcile");
        // Some CLIs take long to start where several do.
        wait_until(4 * DEADLINE, "the worker ends", || {
            let shown = self.call(reconcile, &["show", "x", "--json"], "");
            let json: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            let text = |key: &str| json[key].as_str().expect("a text").to_owned();
            (text("state") != "running").then(|| (text("state"), text("because")))
        })
    }
}

/// Dispatches a task with a worktree to `name`, held `by` a sandbox, waits for its end and checks the commit.
fn commits_in_its_worktree(name: &str, by: &str) {
    let mut person = Person::new(commits);
    if by == "landlock" {
        person.hide_bubblewrap();
    }
    let check =
        "test -e dependency && grep -q A=1 .env && { test -e more || { echo nothing; exit 1; }; }";
    person.spawn(&["x", "--model", name, "--worktree", "--check", check, "--plan", "-"]);
    assert_eq!(person.wait_for_end().0, "done");
    let shown = person.call(helpers::path("dispatch-reconcile"), &["show", "x"], "");
    assert!(shown.contains(&format!("\nwrite: {by}; ")), "{shown}");
    let told = person.told();
    assert!(told["text"].as_str().is_some_and(|it| it.contains(", checked) on branch")), "{told}");
    let log = person.git(&["log", "--format=%s", "dispatch/x"]);
    let said = file(state(&person.home, "x").join("attempts/1/log"));
    assert_eq!(log, "More\nWork\nBegin\n", "{said}");
    assert_eq!(file(task(&person.home, "x").join("ipc/.done")), "More is there.\n");
    assert_eq!(person.git(&["log", "--format=%s"]), "Begin\n");
    assert_eq!(person.git(&["status", "--porcelain"]), "");
}

#[test]
fn codex_commits_in_its_worktree() {
    commits_in_its_worktree("gpt-5.5", "bubblewrap");
}

#[test]
fn claude_commits_in_its_worktree() {
    commits_in_its_worktree("opus", "bubblewrap");
}

#[test]
fn codex_commits_in_its_worktree_without_bubblewrap() {
    commits_in_its_worktree("gpt-5.5", "landlock");
}

#[test]
fn claude_commits_in_its_worktree_without_bubblewrap() {
    commits_in_its_worktree("opus", "landlock");
}

/// Dispatches a task to `name` with a budget that is used up early, and lets it continue.
fn asks_when_its_budget_is_used_up(name: &str, budget: &str) {
    let person = Person::new(|request| match request.turns() {
        0..2 => Reply::shell(request, "echo work"),
        // Codex, which reports its tokens at the end of a turn.
        2 if !request.last_user().contains("Continue it") => Reply::say("Enough for now."),
        _ if request.last_user().contains("Continue it") => run(request, "tick 1"),
        _ if request.last_tool_results().join("").contains("Now finish") => {
            run(request, "finish 'It is there.'")
        }
        _ => Reply::say("That is all."),
    });
    person.spawn(&["x", "--model", name, "--budget", budget, "--plan", "-"]);
    let (state_of_x, because) = person.wait_for_end();
    let said = file(state(&person.home, "x").join("attempts/1/log"));
    let is_asked =
        because.starts_with("budget: ") && because.ends_with(&format!("of {budget} used"));
    assert!(state_of_x == "blocked" && is_asked, "{state_of_x}: {because}: {said}");
    assert_eq!(person.told()["event"], "limit");
    person.spawn(&["x", "--resume", "--budget", "1h"]);
    let end = person.wait_for_end();
    let said = file(state(&person.home, "x").join("attempts/2/log"));
    assert_eq!(end, ("done".into(), String::new()), "{said}");
    let session =
        |attempt: u32| file(state(&person.home, "x").join(format!("attempts/{attempt}/session")));
    assert_eq!(session(1), session(2));
}

#[test]
fn codex_asks_when_its_budget_is_used_up() {
    asks_when_its_budget_is_used_up("gpt-5.5", "30tok");
}

#[test]
fn claude_asks_when_its_budget_is_used_up() {
    asks_when_its_budget_is_used_up("opus", "0.0004usd");
}

/// The script of a worker that commits at each turn, and of a reviewer that misses the second commit.
fn reviewed(request: &Request) -> Reply {
    let said = request.last_user();
    let Some((_, rest)) = said.split_once("VERDICT, then ") else { return commits_twice(request) };
    let word = rest.split(',').next().unwrap_or_default();
    match said.contains("+++ b/more") {
        true => Reply::say(format!("All is there.\n\nVERDICT {word} pass")),
        false => Reply::say(format!("- more: it is missing\n\nVERDICT {word} findings")),
    }
}

fn commits_twice(request: &Request) -> Reply {
    match request.turns() {
        5 => {
            let told = request.last_user();
            assert!(told.contains("# A review has findings"), "{told}");
            assert!(told.contains("\n| - more: it is missing\n"), "{told}");
            Reply::shell(request, "echo more >more && git add more")
        }
        _ => commits(request),
    }
}

fn is_reviewed_by(worker: &str, reviewer: &str) {
    let person = Person::new(reviewed);
    person.spawn(&["x", "--model", worker, "--worktree", "--review", reviewer, "--plan", "-"]);
    assert_eq!(person.wait_for_end().0, "done");
    let log = person.git(&["log", "--format=%s", "dispatch/x"]);
    let said = file(state(&person.home, "x").join("attempts/1/review/log"));
    assert_eq!(log, "More\nWork\nBegin\n", "{said}");
    let shown = person.call(helpers::path("dispatch-reconcile"), &["show", "x"], "");
    assert!(shown.contains(&format!("; reviewed by {reviewer}")), "{shown}");
}

#[test]
fn claude_reviews_the_work_of_codex() {
    is_reviewed_by("gpt-5.5", "opus");
}

#[test]
fn codex_reviews_the_work_of_claude() {
    is_reviewed_by("opus", "gpt-5.5");
}

/// A command that writes to places that git or a host obeys, to a shared directory, and then works.
const TRIES: &str = "for f in .claude/settings.local.json .claude/new/x .mcp.json CLAUDE.md .husky/x \
    .codex/config.toml .agents/x .vscode/tasks.json .git/config .git/hooks/post-merge .git/index below/.git/x \
    /tmp/dispatch-host-test; do mkdir -p $(dirname $f); (echo x >>$f) && echo $f; done >found 2>errors; \
    mktemp >made && touch work; git add work && git commit -q -m Work; git -C OTHER config x.y z >>found";

/// Runs a task on a machine without bubblewrap, where Codex brings its own; returns what
/// git shows in the project, and the home.
fn held_by_codex_alone() -> (String, Home) {
    let home = skill::ready(WORKTREE_CONFIG);
    let other = home.project().display().to_string();
    let model = Model::start(move |request| match request.turns() {
        0 => Reply::shell(request, &TRIES.replace("OTHER", &other)),
        1 => run(request, "tick 1"),
        2 => run(request, "finish Worked."),
        _ => Reply::say("That is all."),
    });
    let mut person = Person::without_files(home, model, path());
    person.hide_bubblewrap();
    // An older setting of the person must not count.
    let settings = person.home.path().join(".codex/config.toml");
    let text = format!("sandbox_mode = \"danger-full-access\"\n{}", file(settings.clone()));
    fs::write(settings, text).expect("codex's settings");
    let home = &person.home;
    let git = |args: &[&str]| person.git(args);
    fs::create_dir_all(home.project().join(".claude")).expect("a directory");
    fs::write(home.project().join("CLAUDE.md"), "Be brief.\n").expect("instructions");
    fs::create_dir_all(home.project().join("below")).expect("a directory");
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "Begin"]);
    let args = ["x", "--model", "gpt-5.5", "--plan", "-"];
    person.call(helpers::path("dispatch-spawn"), &args, "# Title\n- [ ] Work\n");
    wait_until(DEADLINE, "the worker ends", || {
        state(home, "x").join("attempts/1/exit").exists().then_some(())
    });
    let shown = person.call(helpers::path("dispatch-reconcile"), &["show", "x"], "");
    assert!(shown.contains(": codex's own rules") && shown.contains("done"), "{shown}");
    let wrote = git(&["status", "--porcelain", "--ignored"]);
    let log = git(&["log", "--format=%s", "main"]);
    assert_eq!(git(&["config", "--get", "--default", "none", "x.y"]), "none\n");
    quiet(home);
    (wrote + &log, person.home)
}

#[test]
fn codex_without_bubblewrap_writes_nothing_that_others_obey() {
    let (wrote, home) = held_by_codex_alone();
    let log = file(state(&home, "x").join("attempts/1/log"));
    assert_eq!(file(home.project().join("found")), "below/.git/x\n", "{log}");
    assert_eq!(wrote, "?? errors\n?? found\n?? made\n?? work\n!! .dispatch/\nBegin\n", "{log}");
    let made = file(home.project().join("made"));
    assert!(made.contains("/.dispatch/homes/"), "its own temporary directory: {made}");
}
