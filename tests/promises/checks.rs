//! A task with `--check` is done when the person's commands have succeeded after its worker's end.
//!
//! Longer than 500 lines because a check and a review are one gate, with the same workers.

use std::fs;

use snapbox::str;

#[cfg(target_os = "linux")]
use crate::sandbox::{kernel, process_with};
use crate::sequence::WORKS;
use crate::support::process::{kill_and_wait, runs};
use crate::support::text::names;
use crate::support::{Call, PLAN, Sandbox, binary, wait_until};
use crate::worktrees::{commits, until_over};

/// A worker that ticks all items and finishes. Told of a failed check, it makes the file `fixed`.
const FIXES: &str = r#"case "$*" in *'# A check failed'*) : >fixed ;; esac
sed -i 's/\[ \]/[x]/' "$DISPATCH_TASK_DIR/plan.md"
echo Fine. >"$DISPATCH_TASK_DIR/ipc/.done""#;

/// A check that notes its start and waits for the test's permission to end.
const WAITS: &str =
    "echo $$ >>runs; until [ -e \"$HOME/project/go\" ]; do sleep 0.02; done; test -e right";

pub(crate) fn project() -> Sandbox {
    let sandbox = Sandbox::with_git();
    sandbox.workers(&[("fixes", FIXES), ("works", WORKS), ("commits", &commits())]);
    sandbox
}

/// The call that dispatches a task with these options.
pub(crate) fn spawn(sandbox: &Sandbox, id: &str, options: &[&str]) -> Call {
    sandbox.call("dispatch-spawn", &[&[id, "--plan", "-"], options].concat()).input(PLAN)
}

impl Sandbox {
    /// Waits until a file of the project has this many lines, and returns them.
    #[track_caller]
    pub(crate) fn lines(&self, file: &str, count: usize) -> Vec<String> {
        let read = || fs::read_to_string(self.project().join(file)).unwrap_or_default();
        wait_until(&format!("{file} has {count} lines"), || {
            let lines: Vec<_> = read().lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        })
    }

    pub(crate) fn put(&self, file: &str) {
        fs::write(self.project().join(file), "").expect("written");
    }
}

fn attempts(sandbox: &Sandbox) -> usize {
    names(&sandbox.task("x", "attempts")).len()
}

#[test]
fn worker_that_is_told_of_a_failed_check_repairs_its_work() {
    let sandbox = project();
    let check =
        "echo checked >>checks; seq 1 150; printf '\\033[1m# Done\\033[m\\n'; test -e fixed";
    let options = ["--model", "fixes", "--check", "true", "--check", check];
    spawn(&sandbox, "x", &options).run().ok();
    sandbox.wait_for_state("x", "done");
    assert_eq!((attempts(&sandbox), sandbox.lines("checks", 2).len()), (2, 2));
    let prompt = sandbox.read("x", "attempts/2/prompt.md");
    let (_, told) = prompt.split_once("# A check failed\n").expect("it is told");
    assert!(told.contains(&format!("\n| {check}\n")) && told.contains("(exit code 1)"), "{told}");
    assert!(told.contains("\n\n| 52\n") && told.contains("\n| 150\n| # Done\n"), "{told}");
    // The record is the person's.
    assert!(sandbox.read("x", "record.yaml").contains("checks:\n- 'true'\n"));
    sandbox.run("dispatch-monitor", &[]).shows(str![[r#"
exit 0
#ID x done (2/2, AGE, checked): "Fine." → tell the user
"#]]);
}

#[test]
fn task_fails_when_its_check_failed_after_two_more_rounds() {
    let sandbox = project();
    spawn(&sandbox, "x", &["--model", "fixes", "--check", "echo no; exit 3"]).run().ok();
    sandbox.wait_for_state("x", "failed: check: echo no; exit 3: exit code 3");
    assert_eq!(attempts(&sandbox), 3);
    until_over(&sandbox, "x");
    sandbox.run("dispatch-monitor", &[]).shows(str![[r#"
exit 0
#ID x failed (2/2, AGE): check: echo no; exit 3: exit code 3 → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
    // A person may let it try again.
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    wait_until("it was tried again", || (attempts(&sandbox) == 6).then_some(()));
    sandbox.wait_for_state("x", "failed: check: echo no; exit 3: exit code 3");
}

#[test]
fn check_ends_with_all_that_it_started() {
    let sandbox = project();
    let check = "sleep 1000 & echo $! >>left; test -e fixed || setsid sleep 1000";
    let call = spawn(&sandbox, "x", &["--model", "fixes", "--check", check]);
    call.env("DISPATCH_CHECK_MS", "300").env("DISPATCH_GRACE_MS", "100").run().ok();
    sandbox.wait_for_state("x", "done");
    let told = sandbox.read("x", "attempts/2/prompt.md");
    assert!(told.contains("It failed (no end within 0s)"), "{told}");
    for pid in sandbox.lines("left", 2) {
        assert!(!runs(pid.parse().expect("a pid")), "{pid} runs");
    }
}

#[test]
fn check_that_floods_its_log_fills_no_disk_and_no_prompt() {
    let sandbox = project();
    let log = sandbox.task("x", "attempts/1/check-1/log");
    // Output that arrives while the log is trimmed is lost, so the end waits for that.
    let check = format!(
        "test -e fixed || {{ yes | head -c 60000000; until [ $(wc -c <{}) -lt 4000000 ]; do yes | head -c 100000; done; head -c 100000 /dev/zero | tr '\\0' x; echo; echo end; head -c 20000 /dev/zero | tr '\\0' y; exit 1; }}",
        log.display()
    );
    spawn(&sandbox, "x", &["--model", "fixes", "--check", &check]).run().ok();
    sandbox.wait_for_state("x", "done");
    let size = |name: &str| {
        fs::metadata(sandbox.task("x", "attempts/1/check-1").join(name)).map_or(0, |it| it.len())
    };
    assert!(size("log") + size("log.old") < 30_000_000);
    let told = sandbox.read("x", "attempts/2/prompt.md");
    assert!(told.len() < 60_000 && told.contains("\n| end\n"), "{} bytes", told.len());
}

#[test]
fn worktree_that_a_check_deletes_is_made_again() {
    let sandbox = project();
    let check = "test -e work-x && if [ ! -e ~/once ]; then : >~/once; rm -rf \"$PWD\"; exit 1; fi";
    let worker = format!("git log --oneline | grep -q Work || {{\n{}\n}}\n{FIXES}", commits());
    sandbox.workers(&[("commits", &worker)]);
    spawn(&sandbox, "x", &["--model", "commits", "--worktree", "--check", check]).run().ok();
    sandbox.wait_for_state("x", "done");
    assert_eq!(attempts(&sandbox), 2);
    assert_eq!(sandbox.git(&["log", "--format=%s", "main..dispatch/x"]), "Work of x\n");
}

#[test]
fn killed_supervisor_is_replaced_and_checks_again() {
    let sandbox = project();
    spawn(&sandbox, "x", &["--model", "fixes", "--check", WAITS]).run().ok();
    let checking = format!("running: checking: {}", WAITS.replace('"', "'"));
    let first = sandbox.lines("runs", 1).remove(0);
    assert_eq!(sandbox.state("x"), checking);
    kill_and_wait(sandbox.supervisor_of("x"));
    assert_eq!(sandbox.state("x"), checking);
    // On a busy machine, a look may also meet a file that the new supervisor is writing.
    wait_until("a supervisor takes over", || {
        let status = sandbox.ok("dispatch-reconcile", &["status"]);
        assert!(status.contains("x running 2/2 "), "{status}");
        status.contains("repaired: x supervised again").then_some(())
    });
    sandbox.lines("runs", 2);
    wait_until("the first check ended", || (!runs(first.parse().expect("a pid"))).then_some(()));
    assert_eq!(sandbox.state("x"), checking);
    sandbox.put("right");
    sandbox.put("go");
    sandbox.wait_for_state("x", "done");
    assert_eq!(attempts(&sandbox), 1);
}

#[test]
fn supervisor_that_dies_at_any_moment_leaves_no_unchecked_work() {
    for point in ["reaped", "ended", "checks", "checked"] {
        let sandbox = project();
        let check = "echo checked >>checks; test -e fixed";
        let call = spawn(&sandbox, "x", &["--model", "fixes", "--check", check]);
        call.crash_at(&format!("supervisor:{point}")).run().ok();
        until_over(&sandbox, "x");
        assert!(sandbox.state("x").starts_with("running: checking: "), "{point}");
        wait_until(point, || {
            sandbox.ok("dispatch-reconcile", &["status"]);
            (sandbox.state("x") == "done").then_some(())
        });
        assert_eq!((attempts(&sandbox), sandbox.lines("checks", 2).len()), (2, 2), "{point}");
    }
}

#[test]
fn successor_waits_for_the_checks() {
    let sandbox = project();
    spawn(&sandbox, "a", &["--model", "fixes", "--check", WAITS]).run().ok();
    sandbox.dispatch_after("b", &["a"]);
    sandbox.lines("runs", 1);
    assert_eq!(sandbox.state("b"), "queued: after a");
    sandbox.put("right");
    sandbox.put("go");
    sandbox.wait_for_log(&["start b"]);
    assert_eq!(sandbox.state("a"), "done");
}

#[test]
fn stop_ends_a_check_and_resume_repeats_it() {
    let sandbox = project();
    spawn(&sandbox, "x", &["--model", "fixes", "--check", WAITS]).run().ok();
    let pid = sandbox.lines("runs", 1).remove(0).parse().expect("a pid");
    let refused = sandbox.run("dispatch-spawn", &["x", "--resume"]);
    assert_eq!(refused.code, Some(75), "{}", refused.err);
    let refused = sandbox.run("dispatch-reconcile", &["clean", "x"]);
    assert!(refused.out.contains("its checks are not over"), "{}{}", refused.out, refused.err);
    assert_eq!(sandbox.ok("dispatch-reconcile", &["stop", "x"]), "x stopped\n");
    assert!(!runs(pid));
    sandbox.put("right");
    sandbox.put("go");
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    sandbox.wait_for_state("x", "done");
    assert_eq!((attempts(&sandbox), sandbox.lines("runs", 2).len()), (1, 2));
}

#[test]
fn task_whose_last_items_are_skipped_is_checked_too() {
    let sandbox = project();
    sandbox.workers(&[("ends", "exit 0")]);
    let check = "echo checked >>checks; exit 5";
    spawn(&sandbox, "x", &["--model", "ends", "--check", check]).run().ok();
    sandbox.wait_for_state("x", "incomplete");
    until_over(&sandbox, "x");
    sandbox.ok("dispatch-spawn", &["x", "--resume", "--skip", "1", "--skip", "2"]);
    sandbox.wait_for_state("x", &format!("failed: check: {check}: exit code 5"));
    assert_eq!(sandbox.lines("checks", 3).len(), 3);
}

#[test]
fn merge_says_which_commit_was_checked() {
    let sandbox = project();
    let check = "git commit -q --allow-empty -m 'Made by the check'";
    spawn(&sandbox, "x", &["--model", "commits", "--worktree", "--check", check]).run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let news = sandbox.ok("dispatch-monitor", &[]);
    assert!(news.contains(", checked before its last commit) on branch dispatch/x"), "{news}");
    let merged = sandbox.ok("dispatch-reconcile", &["merge", "x"]);
    let checked = sandbox.git(&["rev-parse", "--short=10", "main~1"]);
    assert!(merged.contains(&format!(" (the checks were of {})", checked.trim())), "{merged}");
}

#[test]
fn news_of_a_checked_task_names_the_tests_that_it_changed() {
    let sandbox = project();
    let work = "mkdir -p tests lib && : >'tests/#12345678\" a' && : >lib/latest && git add . && git commit -q -m Tests";
    sandbox.workers(&[("commits", &format!("{work}\n{}", commits()))]);
    spawn(&sandbox, "x", &["--model", "commits", "--worktree", "--check", "true"]).run().ok();
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let news = sandbox.ok("dispatch-monitor", &[]);
    let named = ", checked; \"tests/# 12345678' a\" changed) on branch dispatch/x";
    assert!(news.contains(named), "{news}");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains(": passed; \"tests/# 12345678' a\" changed\n"), "{shown}");
}

#[test]
fn note_that_comes_during_a_check_is_read_before_the_task_is_done() {
    for point in [None, Some("supervisor:checked")] {
        let sandbox = project();
        let call = spawn(&sandbox, "x", &["--model", "fixes", "--check", WAITS]);
        point.into_iter().fold(call, Call::crash_at).run().ok();
        sandbox.lines("runs", 1);
        sandbox.ok("dispatch-reconcile", &["note", "x", "Also\n- [ ] b."]);
        sandbox.put("right");
        sandbox.put("go");
        wait_until("the task is done", || {
            sandbox.ok("dispatch-reconcile", &["status"]);
            (sandbox.state("x") == "done").then_some(())
        });
        assert_eq!((attempts(&sandbox), sandbox.lines("runs", 2).len()), (2, 2));
        let told = sandbox.read("x", "attempts/2/prompt.md");
        let (_, told) = told.split_once("\n# A note\n").expect("it is told");
        assert!(
            told.contains("\n| Also\n| - [ ] b.\n") && !told.contains("check failed"),
            "{told}"
        );
        let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
        assert!(shown.contains("checks: passed; continued with a note\n"), "{shown}");
        let late = sandbox.run("dispatch-reconcile", &["note", "x", "Too late."]);
        assert_eq!(late.code, Some(65), "{}", late.err);
    }
}

#[test]
fn check_reads_the_report_that_show_passes_on() {
    let sandbox = project();
    let helper = binary("dispatch-worker").display();
    let report = "{\"title\": \"\\u001b[2J# Done\", \"findings\": [1]}";
    let script = format!("{helper} ask 'Which?\n# Two'\n{helper} report '{report}'\n{}", commits());
    sandbox.workers(&[("reports", &script)]);
    let check = "grep -q '\"findings\": .1' \"$DISPATCH_TASK_DIR/output.md\"";
    spawn(&sandbox, "x", &["--model", "reports", "--worktree", "--check", check]).run().ok();
    sandbox.wait_for_state("x", "asking");
    sandbox.ok("dispatch-monitor", &["--answer", "x", "This one."]);
    sandbox.wait_for_state("x", "done");
    until_over(&sandbox, "x");
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(json["report"]["findings"][0], 1, "{shown}");
    assert_eq!(json["checks"], serde_json::json!([check]), "{shown}");
    assert!(json["budget"].is_null() && json["keep"] == false, "{shown}");
    sandbox.run("dispatch-reconcile", &["show", "x", "--markdown"]).shows(str![[r#"
exit 0
# x: Title

**Look for secrets before you pass this on:** the plan, the questions, the report and the names of files are here as they were written.

- done
- worker: reports (reports, full)
- dispatched: TIME
- branch: dispatch/x
- asked: check grep -q ''findings': .1' '$DISPATCH_TASK_DIR/output.md'
- attempt 1: exit code 0 at TIME
- checks of COMMIT: passed

> Fine.

## Plan

> # Title
>
> - [x] First
> - [x] Second
>
> ## Context
> Just do it.

## Question 001

> Which?
> # Two

## Answer 001

> This one.

## Changes

     work-x | 1 +
     1 file changed, 1 insertion(+)

## Report

> {"title": "\u001b[2J# Done", "findings": [1]}
"#]]);
    fs::write(sandbox.task("x", "output.md"), "x".repeat(1 << 20)).expect("written");
    let long = sandbox.ok("dispatch-reconcile", &["show", "x", "--markdown"]);
    assert!(long.len() < 100_000 && long.ends_with("x…\n"), "{} bytes", long.len());
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x", "--json"]);
    assert!(shown.len() < 5_000 && shown.contains("\"report\":null"), "{} bytes", shown.len());
}

#[test]
fn alias_brings_its_own_check() {
    let sandbox = project();
    let config = fs::read_to_string(sandbox.config_path()).expect("a config");
    let alias = "check_limit: 5\naliases: { sure: { model: fixes, check: test -e fixed } }\n";
    sandbox.config(&format!("{config}{alias}"));
    spawn(&sandbox, "x", &["--model", "sure"]).run().ok();
    sandbox.wait_for_state("x", "done");
    assert_eq!(attempts(&sandbox), 2);
    assert_eq!(sandbox.run("dispatch-config", &["check"]).code, Some(0));
}

/// A Cursor that is not installed cannot be asked what it holds, so another CLI plays it.
#[test]
fn check_that_nothing_holds_is_refused() {
    let sandbox = project();
    let bin = sandbox.home().join("bin");
    fs::create_dir_all(&bin).expect("made");
    for program in ["sh", "env", "git", "cat", "id"] {
        let found = dispatch::process::find_program(program.as_ref()).expect("installed");
        std::os::unix::fs::symlink(found, bin.join(program)).expect("linked");
    }
    std::os::unix::fs::symlink(binary("dispatch-worker"), bin.join("codex")).expect("linked");
    sandbox.config("default: gpt\nmodels: { gpt: { backend: codex } }\n");
    let refused = |options: &[&str]| {
        let spawn = spawn(&sandbox, "x", options).env("PATH", &bin);
        spawn.env("DISPATCH_FAIL", "landlock").run()
    };
    refused(&["--check", "true"]).shows(str![[r#"
exit 69
! dispatch-spawn: --check: nothing holds a command to 'write' access here
!   landlock needs Linux 6.2; bubblewrap (bwrap) is not installed
!   next: install it; or leave --check out, or add --access full
"#]]);
    refused(&["--check", ""]).shows(str![[r#"
exit 64
! dispatch-spawn: a value is required for '--check <COMMAND>' but none was supplied
!   next: see dispatch-spawn --help
"#]]);
}

/// A reviewer that tries to write, and has findings until the file `fixed` is there.
const REVIEWS: &str = r#"{ echo x >stolen; echo x >>.dispatch/tasks/x/plan.md; } 2>/dev/null
case $* in
"Read and follow "*) prompt=$(tr -d '\0' <"${*#Read and follow }") ;;
*) prompt=$* ;;
esac
word=$(printf %s "$prompt" | sed -n 's/.*then \([0-9a-f]*\), then .*/\1/p')
[ -z "$DISPATCH_TASK_DIR" ] || exit 5
if [ -e fixed ]; then echo "VERDICT $word pass"; exit 0; fi
echo '- a.rs:3: wrong'
echo "**VERDICT $word findings**""#;

/// A project with reviewers, which stand in the home directory because they do not see the temporary
/// one; `None` where bubblewrap is missing, which in CI is an error.
fn with_reviewers(reviewers: &[(&str, &str)]) -> Option<Sandbox> {
    if dispatch::process::find_program("bwrap".as_ref()).is_none() {
        assert!(std::env::var_os("CI").is_none(), "bubblewrap is not installed");
        eprintln!("SKIPPED: bubblewrap is not installed");
        return None;
    }
    let sandbox = Sandbox::with_git();
    let fixes = FIXES.replace("# A check failed", "| - a.rs:3: wrong");
    sandbox.workers(&[("fixes", &fixes), ("ignores", FIXES), ("commits", &commits())]);
    let mut config = fs::read_to_string(sandbox.home().join(".dispatch/config.yaml")).expect("one");
    let bin = sandbox.home().join("bin");
    fs::create_dir_all(&bin).expect("made");
    for (name, script) in reviewers {
        fs::write(bin.join(name), script).expect("written");
        let command = format!("sh {}", bin.join(name).display());
        config = config
            .replace(
                "backends:\n",
                &format!("backends:\n  {name}: {{ command: {command}, access: write }}\n"),
            )
            .replace("models:\n", &format!("models:\n  {name}: {{ backend: {name} }}\n"));
    }
    sandbox.config(&config);
    Some(sandbox)
}

#[cfg(target_os = "linux")]
#[test]
fn worker_continues_with_the_findings_of_a_review() {
    for is_landlock in [false, true] {
        let Some(mut sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
        if is_landlock {
            if kernel() < (6, 2) {
                return;
            }
            sandbox.hide_bubblewrap();
        }
        spawn(&sandbox, "x", &["--model", "fixes", "--check", "true", "--review", "gpt"])
            .run()
            .ok();
        sandbox.wait_for_state("x", "done");
        assert_eq!(attempts(&sandbox), 2);
        let told = sandbox.read("x", "attempts/2/prompt.md");
        assert!(
            told.contains("# A review has findings\n") && told.contains("\n| - a.rs:3: wrong\n"),
            "{told}"
        );
        assert!(!sandbox.project().join("stolen").exists());
        assert!(!sandbox.read("x", "plan.md").ends_with("x\n"));
        sandbox.run("dispatch-monitor", &[]).shows(str![[r#"
exit 0
#ID x done (2/2, AGE, checked, reviewed by gpt): "Fine." → tell the user
"#]]);
        let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
        assert!(shown.contains("\nasked: check true; review by gpt\n"), "{shown}");
        let lines: Vec<_> = shown.lines().filter(|line| line.starts_with("check")).collect();
        assert_eq!(lines.len(), 2, "{shown}");
        assert!(
            lines[0].starts_with("check: review by gpt: findings: \"- a.rs:3: wrong\", log "),
            "{shown}"
        );
        assert!(lines[1].starts_with("checks: passed; reviewed by gpt, log "), "{shown}");
    }
}

#[test]
fn task_fails_when_a_review_still_has_findings_after_two_more_rounds() {
    let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
    spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpt"]).run().ok();
    sandbox.wait_for_state("x", "failed: review by gpt: findings");
    assert_eq!(attempts(&sandbox), 3);
}

#[test]
fn reviewer_without_a_verdict_blocks_nothing() {
    for (script, limit, why) in [
        ("echo Looks fine.", 60_000, "it ended without a verdict"),
        ("exit 3", 60_000, "exit code 3"),
        ("echo VERDICT 12345678 pass", 60_000, "it ended without a verdict"),
        ("exec sleep 1000", 200, "no end within 0s"),
    ] {
        let Some(sandbox) = with_reviewers(&[("gpt", script)]) else { return };
        let call = spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpt"]);
        call.env("DISPATCH_REVIEW_MS", limit.to_string()).run().ok();
        sandbox.wait_for_state("x", "done");
        let news = sandbox.ok("dispatch-monitor", &[]);
        assert!(news.contains(&format!(", not reviewed: gpt: {why})")), "{news}");
    }
}

#[test]
fn review_that_cannot_begin_blocks_nothing() {
    let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
    let forget = format!("sed -i /gpt/d {}", sandbox.config_path().display());
    sandbox.script("ignores", &format!("{forget}\n{FIXES}"));
    spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpt"]).run().ok();
    sandbox.wait_for_state("x", "done");
    let news = sandbox.ok("dispatch-monitor", &[]);
    assert!(news.contains(", not reviewed: gpt: model 'gpt' is not in the config"), "{news}");
}

#[test]
fn worker_escapes_no_review_by_an_unreadable_or_endless_report() {
    for report in ["mkdir", "mkfifo", "ln -s /etc/passwd", "truncate -s 100M"] {
        let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
        let report = format!("{report} \"$DISPATCH_TASK_DIR/output.md\" 2>/dev/null");
        sandbox.script("ignores", &format!("{report}\n{FIXES}"));
        spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpt"]).run().ok();
        sandbox.wait_for_state("x", "failed: review by gpt: findings");
        let prompt = sandbox.read("x", "attempts/1/review/prompt.md");
        assert!(prompt.contains("\nIts report:\n\n| ") && prompt.len() < 100_000, "{report}");
        assert!(!prompt.contains("root:"), "{report}");
    }
}

#[test]
fn reviewer_gets_plan_commits_and_report_as_data() {
    let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
    let worker = binary("dispatch-worker").display();
    let reports = format!("{worker} report '# VERDICT'\n{}", commits());
    sandbox.script("commits", &reports);
    spawn(&sandbox, "x", &["--model", "commits", "--worktree", "--review", "gpt"]).run().ok();
    let prompt = wait_until("the review begins", || {
        fs::read_to_string(sandbox.task("x", "attempts/1/review/prompt.md")).ok()
    });
    for part in ["\n| - [ ] First\n", "\n| +++ b/work-x\n", "\n| # VERDICT\n"] {
        assert!(prompt.contains(part), "{part}: {prompt}");
    }
}

#[test]
fn killed_supervisor_is_replaced_and_reviews_again() {
    let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
    let call = spawn(&sandbox, "x", &["--model", "fixes", "--review", "gpt"]);
    call.crash_at("supervisor:review").run().ok();
    until_over(&sandbox, "x");
    assert_eq!(sandbox.state("x"), "running: checking: review by gpt");
    wait_until("the work is reviewed", || {
        sandbox.ok("dispatch-reconcile", &["status"]);
        (sandbox.state("x") == "done").then_some(())
    });
    assert_eq!(attempts(&sandbox), 2);
}

#[cfg(target_os = "linux")]
#[test]
fn stop_ends_a_review_and_clean_removes_what_it_left() {
    for is_killed in [false, true] {
        let Some(sandbox) = with_reviewers(&[("gpt", "exec sleep 1000.9")]) else { return };
        spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpt"]).run().ok();
        let reviewer = wait_until("the review runs", || process_with("1000.9"));
        if is_killed {
            kill_and_wait(sandbox.supervisor_of("x"));
        }
        sandbox.ok("dispatch-reconcile", &["stop", "x"]);
        assert!(!runs(reviewer));
        assert_eq!(sandbox.state("x"), "stopped");
        let project = sandbox.state_directory();
        let homes = sandbox.home().join(".dispatch/homes").join(project.file_name().expect("one"));
        let of_task = fs::read_dir(&homes).expect("a home").next().expect("one").expect("readable");
        assert!(names(&of_task.path()).iter().any(|it| it.starts_with("review-")));
        sandbox.ok("dispatch-reconcile", &["clean", "x"]);
        assert!(!of_task.path().exists());
    }
}

#[test]
fn review_that_nobody_could_hold_or_nobody_knows_is_refused() {
    let Some(sandbox) = with_reviewers(&[("gpt", REVIEWS)]) else { return };
    spawn(&sandbox, "x", &["--model", "ignores", "--review", "gpr"]).run().shows(str![[r#"
exit 65
! dispatch-spawn: model 'gpr' is not in the config
!   HOME/.dispatch/config.yaml: no such model
!   next: did you mean gpt; dispatch-config models lists what your subscriptions have
"#]]);
    let none = sandbox.home().join("none");
    fs::create_dir_all(&none).expect("made");
    let shell = dispatch::process::find_program("sh".as_ref()).expect("installed");
    std::os::unix::fs::symlink(shell, none.join("sh")).expect("linked");
    let options = ["--model", "ignores", "--review", "gpt"];
    let call = spawn(&sandbox, "x", &options).env("PATH", none);
    call.env("DISPATCH_FAIL", "landlock").run().shows(str![[r#"
exit 69
! dispatch-spawn: --review: gpt's workers cannot be held to reading
!   landlock needs Linux 6.2; bubblewrap (bwrap) is not installed
!   next: install it; or name a model of another backend
"#]]);
}

#[test]
fn resume_ends_what_the_last_worker_left_running() {
    let sandbox = project();
    sandbox.script(
        "works",
        r#"setsid sleep 1000.8 >/dev/null 2>&1 & echo $! >>servers
: >"$DISPATCH_TASK_DIR/ipc/.done""#,
    );
    spawn(&sandbox, "x", &["--model", "works", "--keep"]).run().ok();
    until_over(&sandbox, "x");
    let server = |number: usize| sandbox.lines("servers", number)[number - 1].parse().expect("pid");
    let first = server(1);
    assert!(runs(first));
    sandbox.run("dispatch-spawn", &["x", "--resume"]).ok();
    until_over(&sandbox, "x");
    assert!(!runs(first) && runs(server(2)));
    sandbox.ok("dispatch-reconcile", &["stop", "x"]);
    assert!(!runs(server(2)));
}

#[test]
fn nothing_is_kept_running_for_a_task_with_checks() {
    let sandbox = project();
    let config = fs::read_to_string(sandbox.config_path()).expect("readable");
    let alias = "aliases: { sure: { model: works, check: test -e fixed } }\n";
    sandbox.config(&format!("{config}{alias}"));
    spawn(&sandbox, "x", &["--model", "sure", "--keep"]).run().shows(str![[r#"
exit 64
! dispatch-spawn: nothing can be kept running for this task
!   a check or a review begins when everything of the worker has ended
!   next: leave out --keep, or dispatch it without checks and a review
"#]]);
}
