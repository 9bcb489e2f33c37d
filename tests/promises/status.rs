//! The lines of `status`: one for each task, with its state, its detail and the command that helps;
//! and the table of `status` on a terminal.
//! Longer than 500 lines because each is compared whole.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::made::age;
use crate::support::process::signal;
use crate::support::terminal::Window;
use crate::support::text::same;
use crate::support::{PLAN, Sandbox, binary, wait_until};
use crate::watch::{OVER, is_coloured, is_styled, process, project_with_all_states};

/// A worker that ends as the name of its task says.
fn ends() -> String {
    let worker = format!("worker={}", binary("dispatch-worker").display());
    worker
        + r#"
case $DISPATCH_TASK_DIR in
    *fails) echo 'no such file: a → run: rm'; exit 7 ;;
    *asks) exec "$worker" ask 'Which database shall I use, the old one or the new one?' ;;
    *blocks) "$worker" block 2 'no key' ;;
    *marked) "$worker" fail 1 'it does not compile' ;;
    *works) "$worker" tick 1; exec sleep 300 ;;
    *finishes) "$worker" tick 1; "$worker" tick 2; "$worker" finish 'All is well.' ;;
esac"#
}

/// Codex reports the usage of the whole session at the end of each turn.
const CODEX: &str = r#"cat >/dev/null
echo '{"type":"thread.started","thread_id":"t1"}'
case $* in
    *resume*) used='"input_tokens":2500,"output_tokens":70' ;;
    *) used='"input_tokens":1000,"output_tokens":50' ;;
esac
echo '{"type":"item.completed","item":{"type":"agent_message","text":"I have looked."}}'
echo '{"type":"turn.completed","usage":{'"$used"'}}'"#;

/// Claude Code reports the usage since its last report.
const CLAUDE: &str = r#"cat >/dev/null
echo '{"type":"system","subtype":"init","session_id":"s1"}'
echo '{"type":"result","is_error":false,"result":"fine","model_usage_since_last_result":{"m":{"inputTokens":900,"cacheReadInputTokens":100,"outputTokens":20,"costUSD":0.25}}}'"#;

fn tasks_in_all_states() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", &ends())]);
    let end = [
        ("asks", "asking"),
        ("blocks", "blocked: item 2: \"no key\""),
        ("fails", "failed: exit code 7: \"no such file: a > run: rm\""),
        ("finishes", "done"),
        ("marked", "failed: item 1: \"it does not compile\""),
        ("stops", "incomplete"),
        ("works", "running"),
    ];
    for (id, _) in end {
        sandbox.dispatch(id, "ends");
    }
    for (id, state) in end {
        sandbox.wait_for_state(id, state);
    }
    wait_until("an item is ticked", || {
        sandbox.read("works", "plan.md").contains("[x]").then_some(())
    });
    sandbox.plan("later", PLAN);
    sandbox.ok("dispatch-spawn", &["later", "--model", "ends", "--after", "works"]);
    sandbox
}

#[test]
fn status_lists_most_urgent_task_first_with_its_command() {
    let sandbox = tasks_in_all_states();
    let status = sandbox.ok("dispatch-reconcile", &[]);
    same(
        &sandbox.redactions().apply(&status),
        str![[r#"
asks asking 0/2 AGE ends — 001: "Which database shall I… → dispatch-monitor --answer asks/001 -
blocks blocked 0/2 AGE ends — item 2: "no key" → dispatch-spawn blocks --resume
fails failed 0/2 AGE ends — exit code 7: "no such file: a > ru… → dispatch-spawn fails --resume
marked failed 0/2 AGE ends — item 1: "it does not compile" → dispatch-spawn marked --resume
stops incomplete 0/2 AGE ends — ended before item 1: First → dispatch-spawn stops --resume
works running 1/2 AGE ends — item 2: Second
later queued 0/2 AGE ends — after works
finishes done 2/2 AGE ends — "All is well."

"#]],
    );
    assert!(status.lines().all(|line| line.len() <= 100), "{status}");
}

#[test]
fn command_holds_whole_id_of_any_length() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("a-model-with-a-long-name", &ends())]);
    let id = "so-long-a-name-can-a-task-have-that-asks";
    sandbox.dispatch(id, "a-model-with-a-long-name");
    sandbox.wait_for_state(id, "asking");
    let status = sandbox.ok("dispatch-reconcile", &[]);
    same(
        &sandbox.redactions().apply(&status),
        str![[r#"
so-long-a-name-can-a-task-have-that-asks asking 0/2 AGE → dispatch-monitor --answer so-long-a-name-can-a-task-have-that-asks/001 -

"#]],
    );
}

#[test]
fn old_done_tasks_are_counted_and_shown_with_all() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", &ends())]);
    for id in ["old-finishes", "new-finishes"] {
        sandbox.dispatch(id, "ends");
        sandbox.wait_for_state(id, "done");
    }
    wait_until("both are settled", || {
        let settled = |id| sandbox.task(id, "done").exists();
        (settled("old-finishes") && settled("new-finishes")).then_some(())
    });
    let marker = fs::File::open(sandbox.task("old-finishes", "done")).expect("there");
    let long_ago = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    marker.set_modified(long_ago).expect("an old marker");
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
new-finishes done 2/2 AGE ends — "All is well."
1 more, done over a day ago: dispatch-reconcile status --all
"#]]);
    sandbox.run("dispatch-reconcile", &["status", "--all"]).shows(str![[r#"
exit 0
new-finishes done 2/2 AGE ends — "All is well."
old-finishes done 2/2 AGE ends — "All is well."
"#]]);
}

/// Makes all changes of the tasks that ended look a minute old, so that the index takes their ends.
fn age_ends(sandbox: &Sandbox) {
    for entry in walkdir::WalkDir::new(sandbox.state_directory()) {
        let entry = entry.expect("readable");
        if entry.file_type().is_dir() {
            age(entry.path(), 60);
        }
    }
}

#[test]
fn status_is_the_same_with_its_index_and_without_whatever_changes() {
    let sandbox = tasks_in_all_states();
    let done = sandbox.task("finishes", "done");
    wait_until("the end is settled", || done.exists().then_some(()));
    age(&done, 25 * 60 * 60);
    let index = sandbox.state_directory().join(".ends");
    // A line cuts its quotation to fit, and ages have different lengths.
    let cut = |(number, part): (usize, &str)| -> String {
        part.chars().take(if number % 2 == 1 { 20 } else { usize::MAX }).collect()
    };
    // Only the first look tells what it repaired.
    let lists = || -> Vec<String> {
        let [status, line] = ["status", "statusline"]
            .map(|list| sandbox.call("dispatch-reconcile", &[list]).input("").run().ok());
        let text = sandbox.redactions().apply(&(status + &line));
        let lines = text.lines().filter(|line| !line.starts_with("repaired: "));
        lines.map(|line| line.split('"').enumerate().map(cut).collect()).collect()
    };
    let remove = |path: PathBuf| fs::remove_dir_all(path).expect("removed");
    let resume = |id: &str| {
        sandbox.ok("dispatch-spawn", &[id, "--resume"]);
        wait_until("the attempt ends", || {
            sandbox.task(id, "attempts/2/exit").exists().then_some(())
        });
    };
    let changes: [(&str, &dyn Fn()); 9] = [
        ("nothing", &|| ()),
        ("a stop", &|| drop(sandbox.ok("dispatch-reconcile", &["stop", "works"]))),
        ("another attempt", &|| resume("fails")),
        ("the end of a config", &|| sandbox.workers(&[("other", "true")])),
        ("its return", &|| sandbox.workers(&[("ends", &ends())])),
        ("a record that is removed", &|| {
            fs::remove_file(sandbox.task("marked", "record.yaml")).expect("there")
        }),
        ("an end that is removed", &|| {
            fs::remove_file(sandbox.task("stops", "attempts/1/exit")).expect("there")
        }),
        ("worker's files that are removed", &|| remove(sandbox.task("blocks", ""))),
        ("a task that is removed", &|| remove(sandbox.state_directory().join("finishes"))),
    ];
    for (what, change) in changes {
        age_ends(&sandbox);
        sandbox.ok("dispatch-reconcile", &[]);
        assert!(fs::read_to_string(&index).expect("an index").contains("exit code 7"), "{what}");
        change();
        let with = lists();
        let _ = fs::remove_file(&index);
        assert_eq!(with, lists(), "{what}");
    }
}

#[test]
fn index_answers_for_task_that_ended_until_the_task_changes() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("ends", &ends())]);
    sandbox.dispatch("fails", "ends");
    sandbox.wait_for_state("fails", "failed: exit code 7: \"no such file: a > run: rm\"");
    age_ends(&sandbox);
    let index = sandbox.state_directory().join(".ends");
    wait_until("the supervisor has ended", || {
        sandbox.ok("dispatch-reconcile", &[]);
        index.exists().then_some(())
    });
    let forged =
        fs::read_to_string(&index).expect("an index").replace("exit code 7", "exit code 8");
    fs::write(&index, forged).expect("written");
    assert!(sandbox.ok("dispatch-reconcile", &[]).contains("exit code 8"));
    sandbox.ok("dispatch-spawn", &["fails", "--resume"]);
    let second = sandbox.task("fails", "attempts/2/exit");
    wait_until("the next attempt ends", || second.exists().then_some(()));
    assert!(sandbox.ok("dispatch-reconcile", &[]).contains("exit code 7"));
    // A broken index is made again.
    fs::write(&index, "{").expect("written");
    assert!(sandbox.ok("dispatch-reconcile", &[]).contains("exit code 7"));
}

#[test]
fn task_that_lost_items_is_not_hidden_as_done() {
    let sandbox = Sandbox::new();
    // The worker does this before the end is recorded.
    let loses = "printf '# Title\\n\\n- [x] First\\n' >\"$DISPATCH_TASK_DIR/plan.md\"";
    sandbox.workers(&[("ends", &format!("{}\n{loses}", ends()))]);
    sandbox.dispatch("finishes", "ends");
    sandbox.wait_for_state("finishes", "incomplete: the plan lost item 2: Second");
    let marker = fs::File::open(sandbox.task("finishes", "ipc/.done")).expect("there");
    let long_ago = SystemTime::now() - Duration::from_secs(25 * 60 * 60);
    marker.set_modified(long_ago).expect("an old marker");
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
finishes incomplete 1/1 AGE ends — the plan lost item 2: Se… → dispatch-spawn finishes --resume
"#]]);
}

#[test]
fn usage_of_resumed_session_counts_once() {
    let sandbox = Sandbox::with_clis(&[("codex", CODEX), ("claude", CLAUDE)]);
    sandbox.config(
        "backends: { codex: { access: full }, claude: { access: full } }\nmodels: { gpt: { backend: codex }, opus: { backend: claude } }\n",
    );
    for (id, model) in [("x", "gpt"), ("y", "opus")] {
        sandbox.plan(id, PLAN);
        sandbox.on_machine("dispatch-spawn", &[id, "--model", model]).run().ok();
        let ended = |attempt: u32| {
            let exit = sandbox.task(id, &format!("attempts/{attempt}/exit"));
            wait_until("the attempt ended", || exit.exists().then_some(()));
        };
        ended(1);
        sandbox.on_machine("dispatch-spawn", &[id, "--resume"]).run().ok();
        ended(2);
        sandbox.wait_for_state(id, "incomplete");
    }
    sandbox.on_machine("dispatch-reconcile", &["show", "x"]).run().shows(str![[r#"
exit 0
x — Title
incomplete, gpt, AGE
next: dispatch-spawn x --resume
full: nothing holds it
1. [ ] First
2. [ ] Second
attempt 1: exit code 0 at TIME, 1.0k tokens in, 50 out, log STATE/x/attempts/1/log
attempt 2: exit code 0 at TIME, 1.5k tokens in, 20 out, log STATE/x/attempts/2/log
in total 2.5k tokens in, 70 out
output: "I have looked."
"#]]);
    sandbox.on_machine("dispatch-reconcile", &["status", "--all"]).run().shows(str![[r#"
exit 0
x incomplete 0/2 AGE gpt — ended before item 1: First → dispatch-spawn x --resume
y incomplete 0/2 AGE opus $0.50 — ended before item 1: First → dispatch-spawn y --resume
in total 4.5k tokens in, 110 out, $0.50
"#]]);
}

#[test]
fn status_line_counts_open_tasks() {
    let sandbox = tasks_in_all_states();
    let deep = sandbox.project().join("deep/down");
    fs::create_dir_all(&deep).expect("made");
    let said =
        format!(r#"{{"session_id":"s","workspace":{{"current_dir":"{}"}}}}"#, deep.display());
    let line = |input: &str| {
        let call = sandbox.call("dispatch-reconcile", &["statusline"]).within(sandbox.top());
        call.input(input).run()
    };
    line(&said).shows(str![[r#"
exit 0
dispatch: 1 asking, 1 blocked, 2 failed, 1 incomplete, 1 running, 1 queued
"#]]);
    fs::write(sandbox.task("fails", "record.yaml"), "format: 1\n").expect("written");
    fs::remove_file(sandbox.task("asks", "record.yaml")).expect("removed");
    line(&said).shows(str![[r#"
exit 0
dispatch: 2 broken, 1 blocked, 1 failed, 1 incomplete, 1 running, 1 queued
"#]]);
    // A project without tasks and invalid JSON print nothing.
    line("{").shows(str!["exit 0"]);
    line(r#"{"cwd":"/nowhere"}"#).shows(str!["exit 0"]);
}

/// A worker writes its plan, which a person sees on a terminal.
#[test]
fn worker_text_cannot_control_terminal() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.worked_at("x", "idle", &crate::support::made::own());
    let plan = "# Ti\u{1b}]0;owned\u{7}tle\n\n- [ ] Fi\u{1b}[2J\u{7}rst\tone\n  a \u{9b}note\n- [ ] Second\n";
    sandbox.write("x", "plan.md", plan);
    sandbox.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
x running 0/2 1h idle — item 0.1: "First one"
"#]]);
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 0
x — Title
running, idle, 1h
write: idle's own rules
0.1. [ ] "First one"
      "a note"
2. [ ] Second
lost: item 1: First; --resume puts back what is lost, or dispatch-spawn x --resume --skip 'First'
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
}

/// The command line of `status`.
fn status(options: &str) -> String {
    format!("'{}' status {options}", binary("dispatch-reconcile").display())
}

#[test]
fn status_on_terminal_is_table_with_commands() {
    let sandbox = project_with_all_states();
    let Some(window) = Window::open(&sandbox, (80, 40), &status("")) else { return };
    same(
        &window.shows(&[OVER]),
        str![[r#"
checkout-tax   asking      ━━━───────  1/3   2h  sonnet
    001: Which rounding shall the tax use: per line, or once per invoice? The o…
    → dispatch-monitor --answer checkout-tax/001 -
payment-retry  blocked     ━━━───────  1/3  12m  opus         $0.18
    item 2: "Retry with Stripe or Adyen? Both keys are there."
    → dispatch-spawn payment-retry --resume
parser-tests   failed      ──────────  0/2   0s  sonnet
    not logged in: "Failed to authenticate. API Error: 403"
    → claude auth login
import-csv     incomplete  ──────────  0/2   1m  gpt-6-codex
    ended before item 1: Read the rows
    → dispatch-spawn import-csv --resume
flaky-login    running     ━━━━━━────  2/3   1h  gpt-6-codex
    item 3: Fix it
search-index   running     ━━━━──────  2/5   3h  opus
    item 3: Add an index
search-docs    queued      ──────────  0/1   3h  sonnet
    after search-index
old-images     stopped     ──────────  0/1  48m  gpt-6-codex
    item 1: Find those that nobody uses
manual         done        ━━━━━━━━━━  2/2  37m  sonnet       $0.42
    "Three pages describe the new checkout; all links work."
ended with 0
the terminal is as it was

















"#]],
    );
    assert!(is_coloured(&window.styled()), "{}", window.styled());
    drop(window);
    let Some(window) = Window::open(&sandbox, (130, 30), &status("--all")) else { return };
    same(
        &window.shows(&[OVER]),
        str![[r#"
checkout-tax   asking      ━━━───────  1/3   2h  sonnet              001: Which rounding shall the tax use: per line, or once per…
    → dispatch-monitor --answer checkout-tax/001 -
payment-retry  blocked     ━━━───────  1/3  12m  opus         $0.18  item 2: "Retry with Stripe or Adyen? Both keys are there."
    → dispatch-spawn payment-retry --resume
parser-tests   failed      ──────────  0/2   0s  sonnet              not logged in: "Failed to authenticate. API Error: 403"
    → claude auth login
import-csv     incomplete  ──────────  0/2   1m  gpt-6-codex         ended before item 1: Read the rows
    → dispatch-spawn import-csv --resume
flaky-login    running     ━━━━━━────  2/3   1h  gpt-6-codex         item 3: Fix it
search-index   running     ━━━━──────  2/5   3h  opus                item 3: Add an index
search-docs    queued      ──────────  0/1   3h  sonnet              after search-index
old-images     stopped     ──────────  0/1  48m  gpt-6-codex         item 1: Find those that nobody uses
manual         done        ━━━━━━━━━━  2/2  37m  sonnet       $0.42  "Three pages describe the new checkout; all links work."
in total 110.0k tokens in, 4.9k out, $0.60
ended with 0
the terminal is as it was















"#]],
    );
}

#[test]
fn status_colours_follow_option_and_environment() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    let never = status("--color never");
    let environment = format!("NO_COLOR=1 {}", status(""));
    let both = format!("NO_COLOR=1 {}", status("--color always"));
    for (command, expected) in [(never, false), (environment, false), (both, true)] {
        let Some(window) = Window::open(&sandbox, (80, 10), &command) else { return };
        window.shows(&["x  stopped", "ended with 0\n"]);
        assert_eq!(is_styled(&window.styled()), expected, "{command}: {}", window.styled());
    }
    // A pipe gets a table of 80 columns if colours are requested, and lines otherwise.
    let piped = |color| sandbox.ok("dispatch-reconcile", &["status", "--color", color]);
    assert!(is_styled(&piped("always")) && piped("always").contains("x  "), "{}", piped("always"));
    assert!(piped("auto").starts_with("x stopped 0/2 "), "{}", piped("auto"));
}

/// A screen reader gets each change once.
#[test]
fn status_follow_prints_line_for_each_change() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let Some(window) = Window::open(&sandbox, (100, 12), &status("--follow")) else { return };
    window.shows(&["x running 0/2 — item 1: First\n"]);
    sandbox.worker("x", &["tick", "1"]).run().ok();
    window.shows(&["x running 1/2 — item 2: Second\n"]);
    // Another program makes it whole at once, so that no line says that it is being written.
    let written = sandbox.top().join("question");
    sandbox.write_apart(&written, "Which? → rm\n".as_bytes());
    fs::rename(written, sandbox.task("x", "ipc/001.question")).expect("renamed");
    window.shows(&["x asking 1/2 — 001: Which? > rm → dispatch-monitor --answer x/001 -\n"]);
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    window.shows(&["x stopped 1/2 — item 2: Second\n"]);
    signal(process(&sandbox, "--follow"), Signal::SIGTERM);
    same(
        &window.shows(&[OVER]),
        str![[r#"
x running 0/2 — item 1: First
x running 1/2 — item 2: Second
x asking 1/2 — 001: Which? > rm → dispatch-monitor --answer x/001 -
x stopped 1/2 — item 2: Second
ended with 0
the terminal is as it was







"#]],
    );
}

/// Files in the reach of others hold no number, name or byte that stops a helper.
mod foreign {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use dispatch::files::Lock;

    use crate::support::{Host, Sandbox};

    fn project() -> Sandbox {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox
    }

    #[test]
    fn numbers_of_any_size_stop_no_helper() {
        let sandbox = project();
        for (id, until) in [("x", u64::MAX), ("y", 253_402_300_800)] {
            sandbox.queued(id, "idle");
            let wait = format!(
                r#"{{"parked":{{"until":{until},"stated":true,"times":4294967295,"said":"limit"}}}}"#
            );
            sandbox.write(id, "wait", wait);
        }
        sandbox.write("x", &format!("ipc/{}.question", "9".repeat(80)), "Which?\n");
        for args in [&[][..], &["show", "x"], &["statusline"]] {
            sandbox.ok("dispatch-reconcile", args);
        }
        sandbox.ok("dispatch-config", &["brief"]);
        let host = Host::new(&sandbox);
        let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
        assert_eq!(hook.signal, None, "{hook:?}");
        let status = sandbox.ok("dispatch-reconcile", &[]);
        assert!(status.contains("x parked") && status.contains("y parked"), "{status}");
    }

    #[test]
    fn held_ledger_delays_news_for_a_limited_time() {
        let sandbox = project();
        sandbox.dispatch("x", "idle");
        sandbox.worker("x", &["tell", "Careful."]).run().ok();
        let lock = sandbox.state_directory().join("x/news.lock");
        let held = Lock::take(&lock, Duration::ZERO).expect("free");
        let monitor = |args: &[&str]| {
            sandbox.call("dispatch-monitor", args).args(&["--timeout", "1ms"]).run()
        };
        let all = monitor(&[]);
        assert_eq!((all.code, all.out.as_str()), (Some(3), ""), "{all:?}");
        let one = monitor(&["x"]);
        assert_eq!(one.code, Some(75), "{one:?}");
        assert!(one.err.contains("\n  by another helper\n"), "{one:?}");
        assert!(!one.err.contains(&std::process::id().to_string()), "{one:?}");
        drop(held);
        assert!(monitor(&["x"]).ok().contains("Careful."));
    }

    #[test]
    fn errors_print_foreign_bytes_cleaned() {
        let hostile = "\u{1b}]0;title\u{7}\u{1b}[31m\u{202e}\u{e0041}red";
        let sandbox = project();
        sandbox.queued("x", "idle");
        let record = sandbox.read("x", "record.yaml");
        let quoted = serde_json::to_string(hostile).expect("JSON");
        let record = record.replace("route: cli", &format!("route: {quoted}"));
        sandbox.write("x", "record.yaml", record);
        let show = sandbox.run("dispatch-reconcile", &["show", "x"]);
        let sandbox = project();
        symlink(hostile, sandbox.project().join(".dispatch")).expect("linked");
        let status = sandbox.run("dispatch-reconcile", &[]);
        for ran in [show, status] {
            assert!(ran.err.contains("red"), "{ran:?}");
            let is_raw = |c: char| c == '\u{1b}' || c == '\u{202e}' || c == '\u{e0041}';
            assert!(!ran.err.contains(is_raw), "{ran:?}");
        }
    }
}
