//! `dispatch-config brief` tells a host's model in few bytes what it needs at `/dispatch`.

use std::fs;

use dispatch::files::Lock;
use dispatch::process::Identity;
use snapbox::str;

use crate::support::{Host, PLAN, Sandbox, wait_until};

fn project() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("fails", "exit 7")]);
    sandbox
}

#[track_caller]
fn brief(sandbox: &Sandbox, host: &Host) -> crate::support::Ran {
    host.calls(sandbox.call("dispatch-config", &["brief"])).run()
}

#[track_caller]
fn dispatch(sandbox: &Sandbox, host: &Host, id: &str, model: &str) {
    sandbox.plan(id, PLAN);
    host.calls(sandbox.call("dispatch-spawn", &[id, "--model", model])).run().ok();
}

fn ask(sandbox: &Sandbox, id: &str, text: &str) {
    let ran = sandbox.worker(id, &["ask", "-"]).input(text).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ran.code, Some(75), "{}", ran.err);
}

#[test]
fn brief_of_a_new_project_names_the_workers() {
    let sandbox = project();
    sandbox.run("dispatch-config", &["brief"]).shows(str![[r#"
exit 0
default: idle; models: idle, fails
"#]]);
}

#[test]
fn missing_or_broken_config_is_printed_without_failure() {
    let sandbox = Sandbox::new();
    sandbox.run("dispatch-config", &["brief"]).shows(str![[r#"
exit 0
config: there is no config yet
  HOME/.dispatch/config.yaml does not exist
  next: follow references/first-run-setup.md, or call dispatch-config setup
"#]]);
    sandbox.config("defualt: opus\n");
    sandbox.run("dispatch-config", &["brief"]).shows(str![[r#"
exit 0
default: none; models: none
config line 1: unknown key 'defualt' (did you mean 'default'?)
"#]]);
}

#[test]
fn brief_lists_running_tasks_and_open_news() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "runs", "idle");
    dispatch(&sandbox, &host, "asks", "idle");
    dispatch(&sandbox, &host, "breaks", "fails");
    sandbox.wait_for_state("breaks", "failed: exit code 7");
    ask(&sandbox, "asks", "Which?");
    brief(&sandbox, &host).shows(str![[r#"
exit 0
default: idle; models: idle, fails
#ID asks asks (001): "Which?" → ask the user, then run: BIN/dispatch-monitor --answer asks/001 - <<'END_TEXT' (the answer, then END_TEXT)
#ID breaks failed (0/2, AGE): exit code 7 → tell the user and ask; BIN/dispatch-spawn breaks --resume tries again
runs running 0/2 AGE idle — item 1: First
"#]]);
}

#[test]
fn question_is_listed_until_answered() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "x", "idle");
    ask(&sandbox, "x", "Which?");
    let first = brief(&sandbox, &host);
    first.shows(str![[r#"
exit 0
default: idle; models: idle, fails
#ID x asks (001): "Which?" → ask the user, then run: BIN/dispatch-monitor --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
"#]]);
    brief(&sandbox, &host).shows(str![[r#"
exit 0
default: idle; models: idle, fails
#ID (said before) x asks (001): "Which?" → ask the user, then run: BIN/dispatch-monitor --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
"#]]);
    sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
    brief(&sandbox, &host).shows(str![[r#"
exit 0
default: idle; models: idle, fails
x running 0/2 AGE idle — item 1: First
"#]]);
}

#[test]
fn unacknowledged_news_is_repeated() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "x", "idle");
    sandbox.worker("x", &["tell", "Careful."]).run().ok();
    let wake = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
    assert_eq!(wake.code, Some(2));
    brief(&sandbox, &host).shows(str![[r#"
exit 0
default: idle; models: idle, fails
#ID (said before) x says: "Careful." → tell the user
"#]]);
    // The brief has given the news to the model.
    brief(&sandbox, &host).shows(str![[r#"
exit 0
default: idle; models: idle, fails
x running 0/2 AGE idle — item 1: First
"#]]);
}

#[test]
fn tasks_of_a_dead_host_are_adopted_with_their_news() {
    let sandbox = project();
    let old = Host::new(&sandbox);
    dispatch(&sandbox, &old, "x", "idle");
    ask(&sandbox, "x", "Which?");
    let wake = old.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
    assert_eq!(wake.code, Some(2));
    assert_eq!(brief(&sandbox, &old).code, Some(0), "it is acknowledged");
    old.die();

    let new = Host::new(&sandbox);
    brief(&sandbox, &new).shows(str![[r#"
exit 0
default: idle; models: idle, fails
#ID (said before) x asks (001): "Which?" → ask the user, then run: BIN/dispatch-monitor --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
repaired: x adopted
"#]]);
    // From here on, the hook of the new host waits for the task.
    let mut hook = new.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").start();
    hook.until_it_watches();
    sandbox.worker("x", &["tell", "Still here."]).run().ok();
    assert!(hook.end().err.contains("Still here."));
}

#[test]
fn adopted_task_is_heard_by_hook_that_waits_already() {
    let sandbox = project();
    let (old, new) = (Host::new(&sandbox), Host::new(&sandbox));
    dispatch(&sandbox, &old, "x", "idle");
    dispatch(&sandbox, &new, "y", "idle");
    old.die();
    let hook = new.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}");
    let mut hook = hook.start();
    hook.until_it_watches();
    assert!(brief(&sandbox, &new).ok().contains("repaired: x adopted"));
    sandbox.worker("x", &["tell", "I am yours now."]).run().ok();
    let told = hook.end();
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.err.contains("x says: \"I am yours now.\""), "{told:?}");
}

#[test]
fn tasks_of_a_live_host_are_not_adopted() {
    let sandbox = project();
    let (one, two) = (Host::new(&sandbox), Host::new(&sandbox));
    dispatch(&sandbox, &one, "x", "idle");
    ask(&sandbox, "x", "Which?");
    brief(&sandbox, &two).shows(str![[r#"
exit 0
default: idle; models: idle, fails
x asking 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 - (another session's)
"#]]);
    let hook = one.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
    assert_eq!(hook.code, Some(2));
}

/// 180 models with the longest names in use, and 20 tasks with news.
#[test]
fn brief_has_at_most_1400_bytes() {
    let sandbox = project();
    let mut config = String::from("default: gpt-5.3-codex-spark-preview-high-fast-000\nmodels:\n");
    for n in 0..180 {
        config.push_str(&format!(
            "  gpt-5.3-codex-spark-preview-high-fast-{n:03}: {{ backend: idle }}\n"
        ));
    }
    config.push_str("aliases:\n");
    for n in 0..20 {
        config.push_str(&format!("  security-reviewer-for-the-whole-team-{n:02}: {{ model: gpt-5.3-codex-spark-preview-high-fast-000 }}\n"));
    }
    config.push_str(&format!(
        "backends:\n  idle: {{ command: {} }}\n",
        sandbox.script("idle", "exec sleep 1000\n")
    ));
    sandbox.config(&config);
    let host = Host::new(&sandbox);
    for n in 0..20 {
        let id = format!("a-task-with-a-rather-long-name-number-{n:02}");
        sandbox.plan(&id, PLAN);
        host.calls(sandbox.call("dispatch-spawn", &[&id])).run().ok();
        sandbox.worker(&id, &["tell", &"words ".repeat(30)]).run().ok();
    }
    let said = brief(&sandbox, &host).ok();
    assert!(said.len() <= 1400, "{} bytes:\n{said}", said.len());
    let (text, last) = said.trim_end().rsplit_once('\n').expect("several lines");
    assert!(last.ends_with("dispatch-reconcile status"), "{last}");
    assert!(text.contains("a-task-with-a-rather-long-name-number-00"), "{text}");
}

/// The most urgent news is listed however long it is.
#[test]
fn long_question_is_listed_shortened() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "x", "idle");
    ask(&sandbox, "x", &"Which of the many? 多 ".repeat(40));
    let said = brief(&sandbox, &host).ok();
    assert!(said.contains("x asks (001): \"Which of the many?"), "{said}");
    assert!(said.len() <= 1500, "{} bytes:\n{said}", said.len());
    wait_until("the question is still open", || (sandbox.state("x") == "asking").then_some(()));
}

/// Tasks cannot wake a host without hooks or with a resumed session.
#[test]
fn host_without_a_hook_is_told_to_run_a_monitor() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "x", "idle");
    let later = || {
        let brief = host.calls(sandbox.call("dispatch-config", &["brief"]));
        brief.env("DISPATCH_TURN_MS", "0").run()
    };
    later().shows(str![[r#"
exit 0
default: idle; models: idle, fails
no hook wakes you here: run BIN/dispatch-monitor in the background (Bash, run_in_background, timeout 7200000, description "dispatch: x"), and again each time it ends while tasks run
x running 0/2 AGE idle — item 1: First
"#]]);
    let mut monitor = host.calls(sandbox.call("dispatch-monitor", &[])).start();
    monitor.until_it_watches();
    later().shows(str![[r#"
exit 0
default: idle; models: idle, fails
x running 0/2 AGE idle — item 1: First
"#]]);
    drop(monitor);
    assert!(later().ok().contains("no hook wakes you here"));
    // The advice stops with the first hook, at the end of the turn at the latest.
    let mut hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").start();
    hook.until_it_watches();
    drop(hook);
    assert!(!later().ok().contains("no hook"));
}

/// Programs other than Claude Code have no hooks and do not identify themselves.
#[test]
fn unknown_host_is_told_to_run_a_monitor() {
    let sandbox = project();
    sandbox.dispatch("x", "idle");
    let later =
        || sandbox.call("dispatch-config", &["brief"]).env("DISPATCH_TURN_MS", "0").run().ok();
    assert!(later().contains("no hook wakes you here"));
    let mut monitor = sandbox.call("dispatch-monitor", &[]).start();
    monitor.until_it_watches();
    assert!(!later().contains("no hook"));
}

#[test]
fn no_monitor_advice_before_a_hook_could_run() {
    let sandbox = project();
    let old = Host::new(&sandbox);
    dispatch(&sandbox, &old, "x", "idle");
    assert!(!brief(&sandbox, &old).ok().contains("no hook"), "it was dispatched in this turn");
    old.die();
    let new = Host::new(&sandbox);
    assert!(!brief(&sandbox, &new).ok().contains("no hook"), "it adopts the task in this turn");
    assert!(!brief(&sandbox, &new).ok().contains("no hook"));
}

/// The owner in the record as a process of another pid namespace, as after a container was built again.
fn move_owner_to_another_namespace(sandbox: &Sandbox, id: &str, host: &Host) -> Identity {
    let owner = Identity::of_pid(host.pid()).expect("visible").expect("alive");
    let other = Identity { namespace: Some("pid:[1]".into()), ..owner.clone() };
    let record = sandbox.read(id, "record.yaml");
    let (old, new) = (owner.namespace.expect("named"), "pid:[1]");
    sandbox.write(id, "record.yaml", record.replace(&old, new));
    other
}

#[test]
fn tasks_of_an_owner_in_another_namespace_are_adopted_unless_it_waits() {
    let sandbox = project();
    let old = Host::new(&sandbox);
    dispatch(&sandbox, &old, "x", "idle");
    let owner = move_owner_to_another_namespace(&sandbox, "x", &old);
    let hosts = sandbox.hosts();
    fs::create_dir_all(&hosts).expect("made");
    let waiting = Lock::try_take(&hosts.join(format!("{}.lock", owner.name()))).expect("works");
    let new = Host::new(&sandbox);
    let said = brief(&sandbox, &new).ok();
    assert!(said.contains("(another session's)"), "{said}");
    drop(waiting);
    let said = brief(&sandbox, &new).ok();
    assert!(said.contains("repaired: x adopted"), "{said}");
}

#[test]
fn host_that_resumes_or_answers_for_a_dead_one_gets_the_news() {
    for resumes in [true, false] {
        let sandbox = project();
        let old = Host::new(&sandbox);
        dispatch(&sandbox, &old, "x", if resumes { "fails" } else { "idle" });
        if resumes {
            sandbox.wait_for_state("x", "failed: exit code 7");
        } else {
            ask(&sandbox, "x", "Which?");
        }
        old.die();
        let new = Host::new(&sandbox);
        let (helper, args): (_, &[&str]) = match resumes {
            true => ("dispatch-spawn", &["x", "--resume", "--model", "idle"]),
            false => ("dispatch-monitor", &["--answer", "x", "This."]),
        };
        new.calls(sandbox.call(helper, args)).run().ok();
        sandbox.worker("x", &["tell", "I continue."]).run().ok();
        let hook = new.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
        assert_eq!(hook.code, Some(2), "{hook:?}");
        assert!(hook.err.contains("I continue."), "{hook:?}");
    }
}

/// The id of an event that does not exist yet can be known to whoever knows the nonce.
#[test]
fn message_that_quotes_a_future_id_silences_nothing() {
    let sandbox = project();
    let host = Host::new(&sandbox);
    dispatch(&sandbox, &host, "x", "idle");
    let record = sandbox.read("x", "record.yaml");
    let nonce = record.lines().find_map(|line| line.strip_prefix("nonce: ")).expect("a nonce");
    let key = format!("{}/tell/002", nonce.trim_matches('\''));
    let id = format!("#{}", dispatch::ids::short_hash(key.as_bytes()));
    sandbox.worker("x", &["tell", &format!("see {id}")]).run().ok();
    let transcript = sandbox.top().join("transcript.jsonl");
    let hook = || {
        let input = serde_json::json!({ "transcript_path": transcript });
        let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"]));
        hook.input(input.to_string()).start()
    };
    let first = hook().end();
    assert!(first.err.contains(&format!("see # {}", &id[1..])), "{first:?}");
    // Even a host that was shown the id itself acknowledges only what was delivered.
    let shown = serde_json::json!({ "type": "user", "content": format!("{} {id}", first.err) });
    fs::write(&transcript, shown.to_string()).expect("written");
    let mut waiting = hook();
    waiting.until_it_watches();
    sandbox.worker("x", &["block", "1", "Which?"]).run().ok();
    sandbox.worker("x", &["tell", "Second."]).run().ok();
    let second = waiting.end();
    let third = brief(&sandbox, &host).ok();
    assert!(format!("{}{third}", second.err).contains("Second."), "{second:?} {third}");
}
