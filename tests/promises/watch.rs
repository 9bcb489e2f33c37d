//! `dispatch-reconcile watch` in a real terminal, with a person at it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::process::{all_of, kill_and_wait, runs, signal};
use crate::support::terminal::{Terminal, Window, svg};
use crate::support::text::same;
use crate::support::{Sandbox, binary, repository, wait_until};

/// A Claude Code worker whose script depends on the name of its task.
const CLAUDE: &str = r#"cat >/dev/null
case ${DISPATCH_TASK_DIR##*/} in
checkout-tax)
    "$W" tick 1
    "$W" ask 'Which rounding shall the tax use: per line, or once per invoice? The old code does both, so that 3 of 214 invoices of last month differ by a cent.' >answer
    "$W" tick 2
    ;;
payment-retry)
    "$W" tick 1
    "$W" block 2 'Retry with Stripe or Adyen? Both keys are there.'
    echo '{"type":"result","subtype":"success","result":"","model_usage_since_last_result":{"opus":{"inputTokens":20000,"outputTokens":900,"costUSD":0.18}}}'
    ;;
parser-tests) echo 'Failed to authenticate. API Error: 403'; exit 1 ;;
search-index) "$W" tick 1; "$W" tick 2; exec sleep 1000 ;;
manual)
    "$W" tick 1
    "$W" tick 2
    echo '{"type":"result","subtype":"success","result":"","model_usage_since_last_result":{"opus":{"inputTokens":90000,"outputTokens":4000,"costUSD":0.42}}}'
    "$W" finish 'Three pages describe the new checkout; all links work.'
    ;;
*) exec sleep 1000 ;;
esac"#;

/// A worker with a `command:` in the config.
const OTHER: &str = r#"case ${DISPATCH_TASK_DIR##*/} in
flaky-login) "$W" tick 1; "$W" tick 2; exec sleep 1000 ;;
old-images) exec sleep 1000 ;;
esac"#;

/// A project with a task in each state. The test sets their ages.
pub(crate) fn project_with_all_states() -> Sandbox {
    let helper = format!("W='{}'\n", binary("dispatch-worker").display());
    let sandbox = Sandbox::with_clis(&[("claude", &format!("{helper}{CLAUDE}"))]);
    let other = sandbox.script("codex", &format!("{helper}{OTHER}"));
    sandbox.config(&format!(
        "default: sonnet\nmax_workers: 20\nbackends: {{ claude: {{}}, codex: {{ command: {other} }} }}\n\
         models:\n  sonnet: {{ backend: claude }}\n  opus: {{ backend: claude }}\n  gpt-6-codex: {{ backend: codex }}\n"
    ));
    let dispatch = |id: &str, model: &str, items: &[&str], more: &[&str]| {
        let items: String = items.iter().map(|item| format!("- [ ] {item}\n")).collect();
        sandbox.plan(id, &format!("# Title\n\n{items}\n## Context\nThe shop.\n"));
        sandbox.on_machine("dispatch-spawn", &[id, "--model", model]).args(more).run().ok();
    };
    let index = ["Measure it", "Find the slow query", "Add an index", "Measure again", "Report"];
    dispatch("checkout-tax", "sonnet", &["Find it", "Round it in one place", "Test it"], &[]);
    dispatch("payment-retry", "opus", &["Read the client", "Retry", "Test it"], &[]);
    dispatch("parser-tests", "sonnet", &["List the edge cases", "Write the tests"], &[]);
    dispatch("import-csv", "gpt-6-codex", &["Read the rows", "Keep them"], &[]);
    dispatch("old-images", "gpt-6-codex", &["Find those that nobody uses"], &[]);
    dispatch("flaky-login", "gpt-6-codex", &["Reproduce it", "Bisect it", "Fix it"], &[]);
    dispatch("search-index", "opus", &index, &[]);
    dispatch("search-docs", "sonnet", &["Describe the index"], &["--after", "search-index"]);
    dispatch("manual", "sonnet", &["Write it", "Check the links"], &[]);
    sandbox.ok("dispatch-reconcile", &["stop", "old-images"]);

    wait_until("the worker asks", || {
        sandbox.task("checkout-tax", "ipc/001.question").exists().then_some(())
    });
    for (id, items) in [("flaky-login", 2), ("search-index", 2)] {
        wait_until("the worker has started", || {
            (sandbox.read(id, "plan.md").matches("[x]").count() == items).then_some(())
        });
    }
    let minutes = [
        ("checkout-tax", 150),
        ("payment-retry", 12),
        ("parser-tests", 0),
        ("import-csv", 1),
        ("old-images", 48),
        ("flaky-login", 90),
        ("search-index", 210),
        ("search-docs", 210),
        ("manual", 37),
    ];
    minutes.into_iter().for_each(|(id, minutes)| make_older(&sandbox, id, minutes));
    sandbox
}

/// Sets the age of a running task, or how long an ended task ran.
fn make_older(sandbox: &Sandbox, id: &str, minutes: u64) {
    let began = SystemTime::now() - Duration::from_secs(60 * minutes);
    let created = humantime::format_rfc3339_seconds(began).to_string();
    set(&sandbox.task(id, "record.yaml"), "created", &created);
    if !["checkout-tax", "flaky-login", "search-index", "search-docs"].contains(&id) {
        let exit = sandbox.task(id, "attempts/1/exit");
        wait_until("the end is recorded", || exit.exists().then_some(()));
        set(&exit, "milliseconds", &(60_000 * minutes).to_string());
    }
}

/// Changes a key at the top of a YAML file.
fn set(path: &Path, key: &str, value: &str) {
    let text = fs::read_to_string(path).expect("readable");
    let line = text.lines().find(|line| line.starts_with(&format!("{key}:"))).expect("the key");
    let new = path.with_extension("new");
    fs::write(&new, text.replace(line, &format!("{key}: {value}"))).expect("written");
    fs::rename(&new, path).expect("renamed");
}

/// The command line of `watch`.
fn watch() -> String {
    format!("'{}' watch", binary("dispatch-reconcile").display())
}

/// The last line of the screen while the person looks at the tasks.
const KEYS: &str = "a answer   l log   s stop   ↑↓ select   q quit";

#[test]
fn watch_shows_all_tasks_in_window_of_any_size() {
    let sandbox = project_with_all_states();
    let Some(window) = Window::open(&sandbox, (80, 30), &watch()) else { return };
    let screen = window.shows(&["all links work.\"\n", KEYS]);
    same(
        &screen,
        str![[r#"
project  1 asking · 1 blocked · 1 failed · 1 incomplete · 2 running …      $0.60

? checkout-tax asks 001
  Which rounding shall the tax use: per line, or once per invoice? The old
  code does both, so that 3 of 214 invoices of last month differ by a cent.

› checkout-tax   asking      ━━━───────  1/3   2h  sonnet
    item 2: Round it in one place
  payment-retry  blocked     ━━━───────  1/3  12m  opus         $0.18
    item 2: "Retry with Stripe or Adyen? Both keys are there."
  parser-tests   failed      ──────────  0/2   0s  sonnet
    not logged in: "Failed to authenticate. API Error: 403"
  import-csv     incomplete  ──────────  0/2   1m  gpt-6-codex
    ended before item 1: Read the rows
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





a answer   l log   s stop   ↑↓ select   q quit

"#]],
    );
    window.resize(140, 20);
    let screen = window.shows(&["$0.42  \"Three pages", KEYS]);
    same(
        &screen,
        str![[r#"
project  1 asking · 1 blocked · 1 failed · 1 incomplete · 2 running · 1 queued · 1 stopped · 1 done                                    $0.60

? checkout-tax asks 001
  Which rounding shall the tax use: per line, or once per invoice? The old code does both, so that 3 of 214 invoices of last month differ
  by a cent.

› checkout-tax   asking      ━━━───────  1/3   2h  sonnet              item 2: Round it in one place
  payment-retry  blocked     ━━━───────  1/3  12m  opus         $0.18  item 2: "Retry with Stripe or Adyen? Both keys are there."
  parser-tests   failed      ──────────  0/2   0s  sonnet              not logged in: "Failed to authenticate. API Error: 403"
  import-csv     incomplete  ──────────  0/2   1m  gpt-6-codex         ended before item 1: Read the rows
  flaky-login    running     ━━━━━━────  2/3   1h  gpt-6-codex         item 3: Fix it
  search-index   running     ━━━━──────  2/5   3h  opus                item 3: Add an index
  search-docs    queued      ──────────  0/1   3h  sonnet              after search-index
  old-images     stopped     ──────────  0/1  48m  gpt-6-codex         item 1: Find those that nobody uses
  manual         done        ━━━━━━━━━━  2/2  37m  sonnet       $0.42  "Three pages describe the new checkout; all links work."




a answer   l log   s stop   ↑↓ select   q quit

"#]],
    );
    window.resize(40, 16);
    let screen = window.shows(&["of 9", "q quit"]);
    same(
        &screen,
        str![[r#"
project  1 asking · 1 blocked …    $0.60

? checkout-tax asks 001
  Which rounding shall the tax use:
  per line, or once per invoice? The
  old code does both, so that 3 of 214
  invoices of last month differ by a …

› checkout-tax  asking      1/3   2h
    item 2: Round it in one place
  payment-ret…  blocked     1/3  12m
    item 2: "Retry with Stripe or Adyen…
  1–2 of 9


a answer l log s stop ↑↓ select q quit

"#]],
    );
}

/// The process whose last argument is this.
pub(crate) fn process(sandbox: &Sandbox, argument: &str) -> u32 {
    let end = format!("\0{argument}\0").into_bytes();
    let is_it =
        |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(&end));
    wait_until("the helper runs", || all_of(&sandbox.home()).into_iter().find(is_it))
}

pub(crate) fn is_styled(text: &str) -> bool {
    text.contains("\u{1b}[")
}

pub(crate) fn is_coloured(text: &str) -> bool {
    text.contains("[33m") || text.contains("[38;5;")
}

/// The last lines of a window whose command succeeded.
pub(crate) const OVER: &str = "ended with 0\nthe terminal is as it was\n";

/// `SNAPSHOTS=overwrite cargo test --test promises readme_picture` renews the picture.
#[test]
fn readme_picture_shows_real_screen() {
    let sandbox = project_with_all_states();
    let Some(window) = Window::open(&sandbox, (88, 26), &watch()) else { return };
    window.shows(&["all links work.", KEYS]);
    let picture = svg("dispatch-reconcile watch", &window.styled(), 88);
    assert!(picture.len() < 20 << 10, "{} bytes", picture.len());
    let path = repository(".github/watch.svg");
    same(&picture, snapbox::Data::read_from(&path, Some(snapbox::data::DataFormat::Text)));
}

#[test]
fn watch_sends_the_persons_answer() {
    let sandbox = Sandbox::new();
    let worker = format!(
        "W='{}'\n\"$W\" tick 1\n\"$W\" ask 'Which \u{1b}[31mone\u{1b}[0m?' >\"$DISPATCH_TASK_DIR/heard\"\n\"$W\" tick 2\n\"$W\" finish\n",
        binary("dispatch-worker").display()
    );
    sandbox.workers(&[("asks", &worker)]);
    let Some(window) = Window::open(&sandbox, (80, 12), &watch()) else { return };
    window.shows(&["No tasks yet."]);
    sandbox.dispatch("x", "asks");
    window.shows(&["? x asks 001\n", "asking"]);
    window.keys(&["a", "no"]);
    window.shows(&["› no"]);
    window.resize(70, 12);
    window.keys(&["Escape"]);
    window.shows(&[KEYS]);
    window.keys(&["a", "the lefX", "BSpace", "t, 左"]);
    window.shows(&["  › the left, 左\n", "Enter send"]);
    window.paste("\nnot\u{1b}[31m the right");
    let screen = window.shows(&["not the right"]);
    same(
        &screen,
        str![[r#"
project  1 asking

? x asks 001
  Which one?
  › the left, 左
    not the right

› x  asking  ━━━━━─────  1/2  <1m  asks



Enter send   Esc cancel

"#]],
    );
    window.keys(&["Enter"]);
    window.shows(&["x/001 answered, its worker continues", "done", "2/2"]);
    assert_eq!(sandbox.read("x", "ipc/001.answer"), "the left, 左\nnot the right\n");
    assert_eq!(sandbox.read("x", "heard"), "the left, 左\nnot the right\n");
}

#[test]
fn watch_keeps_a_refused_answer() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    fs::create_dir_all(sandbox.task("x", "ipc")).expect("made");
    sandbox.write("x", "ipc/001.question", "Which?\n");
    let Some(window) = Window::open(&sandbox, (80, 14), &watch()) else { return };
    window.shows(&["? x asks 001"]);
    window.keys(&["a", "this"]);
    window.shows(&["› this"]);
    sandbox.ok("dispatch-monitor", &["--answer", "x", "that"]);
    window.keys(&["Enter"]);
    window.shows(&["question 001 has an answer already", "› this"]);
}

#[test]
fn watch_follows_a_growing_log() {
    let sandbox = Sandbox::new();
    let worker = "printf 'one \\033[32mgreen\\033[0m \\033]0;title\\007\\n 10 %%\\r 90 %%\\n'\nexec sleep 1000";
    sandbox.workers(&[("talks", worker)]);
    sandbox.dispatch("x", "talks");
    let Some(window) = Window::open(&sandbox, (60, 12), &watch()) else { return };
    window.shows(&["running", KEYS]);
    window.keys(&["l"]);
    let screen = window.shows(&["90 %", "Esc back"]);
    same(
        &screen,
        str![[r#"
x running  the end of its log

one green
 90 %







↑↓ scroll   Esc back

"#]],
    );
    let log = sandbox.task("x", "attempts/1/log");
    let mut log = fs::File::options().append(true).open(log).expect("the log");
    (1..=20).for_each(|line| writeln!(log, "line {line}").expect("written"));
    let end = window.shows(&["line 20"]);
    assert!(end.contains("line 13\n") && !end.contains("line 12\n"), "{end}");
    window.keys(&["k", "k"]);
    let end = window.shows(&["line 11\n"]);
    assert!(end.contains("line 18\n") && !end.contains("line 19\n"), "{end}");
    window.keys(&["Escape"]);
    window.shows(&["running", KEYS]);
}

#[test]
fn watch_stops_a_task_after_confirmation() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox.dispatch("y", "idle");
    let (x, y) = (sandbox.worker_of("x", 1), sandbox.worker_of("y", 1));
    let Some(window) = Window::open(&sandbox, (80, 12), &watch()) else { return };
    window.shows(&["› x  running", "  y  running"]);
    window.keys(&["j", "s"]);
    window.shows(&["Stop y? Its worker ends.", "y stop   any other key no"]);
    window.keys(&["n"]);
    window.shows(&["› y  running", KEYS]);
    window.keys(&["s", "y"]);
    window.shows(&["› y  stopped", "  x  running", "y stopped\n"]);
    assert_eq!((runs(x), runs(y)), (true, false));
}

#[test]
fn watch_ends_after_stop_is_done() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let Some(window) = Window::open(&sandbox, (80, 12), &watch()) else { return };
    window.shows(&["running", KEYS]);
    window.keys(&["s", "y", "q"]);
    window.shows(&["x stopped\nended with 0\n"]);
    assert_eq!(sandbox.state("x"), "stopped");
}

#[test]
fn watch_restores_terminal_however_it_ends() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    type End<'a> = &'a dyn Fn(&Window);
    let ends: [(End, u8); 4] = [
        (&|window| window.keys(&["q"]), 0),
        (&|window| window.keys(&["C-c"]), 0),
        (&|_| signal(process(&sandbox, "watch"), Signal::SIGTERM), 0),
        (&|_| signal(process(&sandbox, "watch"), Signal::SIGHUP), 0),
    ];
    for (end, code) in ends {
        let Some(window) = Window::open(&sandbox, (80, 10), &watch()) else { return };
        window.shows(&["running", KEYS]);
        assert_eq!(window.flags(), "1 0 0");
        end(&window);
        let ended = format!("ended with {code}\nthe terminal is as it was\n");
        let screen = window.shows(&[&ended]);
        assert_eq!((screen.trim_end(), window.flags().as_str()), (ended.trim_end(), "0 1 1"));
    }
    // An error is printed on the ordinary screen.
    let fails = format!("DISPATCH_FAIL=watch {}", watch());
    let Some(window) = Window::open(&sandbox, (80, 10), &fails) else { return };
    window.shows(&["a test makes watch fail", "ended with 1\nthe terminal is as it was\n"]);
    assert_eq!(window.flags(), "0 1 1");
}

#[test]
fn closed_window_ends_watch() {
    let sandbox = Sandbox::new();
    let call = sandbox.call("dispatch-reconcile", &["watch"]).env("TERM", "xterm");
    let mut terminal = Terminal::run(call);
    terminal.read_until("\u{1b}[?2026l");
    terminal.close();
    terminal.status();
}

#[test]
fn watch_without_colour_shows_same_text() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    sandbox.dispatch("y", "idle");
    fs::create_dir_all(sandbox.task("y", "ipc")).expect("made");
    sandbox.write("y", "ipc/001.question", "Which?\n");
    let Some(window) = Window::open(&sandbox, (80, 12), &watch()) else { return };
    let with = window.shows(&["? y asks", KEYS]);
    assert!(is_coloured(&window.styled()), "{}", window.styled());
    drop(window);
    let without = format!("NO_COLOR=1 {}", watch());
    let Some(window) = Window::open(&sandbox, (80, 12), &without) else { return };
    assert_eq!(window.shows(&["? y asks", KEYS]), with);
    assert!(!is_coloured(&window.styled()), "{}", window.styled());
    drop(window);
    let without = format!("{} --color never", watch());
    let Some(window) = Window::open(&sandbox, (80, 12), &without) else { return };
    assert_eq!(window.shows(&["? y asks", KEYS]), with);
    assert!(!is_coloured(&window.styled()), "{}", window.styled());
}

#[test]
fn watch_without_terminal_prints_status_once() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let call = sandbox.call("dispatch-reconcile", &["watch"]).env("TERM", "xterm");
    call.run().shows(str![[r#"
exit 0
! dispatch-reconcile: watch needs a terminal; this is the status now (dispatch-monitor waits for news)
x running 0/2 AGE idle — item 1: First
"#]]);
    // A dumb terminal cannot be drawn on.
    let Some(window) = Window::open(&sandbox, (130, 10), &format!("TERM=dumb {}", watch())) else {
        return;
    };
    window.shows(&["x  running", "ended with 0\n"]);
}

#[test]
fn watch_repairs_lost_task_when_it_opens() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let (supervisor, worker) = (sandbox.supervisor_of("x"), sandbox.worker_of("x", 1));
    kill_and_wait(supervisor);
    kill_and_wait(worker);
    let Some(window) = Window::open(&sandbox, (80, 12), &watch()) else { return };
    window.shows(&["lost", "the worker disappeared"]);
    wait_until("the end is recorded", || {
        sandbox.task("x", "attempts/1/exit").exists().then_some(())
    });
}

#[test]
fn watch_lists_unreadable_tasks() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    sandbox.dispatch("torn", "idle");
    sandbox.write("torn", "record.yaml", "format: 1\n");
    let Some(window) = Window::open(&sandbox, (90, 12), &watch()) else { return };
    window.shows(&["! torn broken — task 'torn' has a broken record", "› x  running", KEYS]);
    // A directory that stops being a task is listed as soon as it changes.
    sandbox.dispatch("lost", "idle");
    window.shows(&["lost  running"]);
    fs::remove_file(sandbox.task("lost", "record.yaml")).expect("removed");
    let screen = window.shows(&["! lost broken — 'lost' has lost its record.yaml"]);
    assert!(screen.contains("! torn broken") && !screen.contains("lost  running"), "{screen}");
}
