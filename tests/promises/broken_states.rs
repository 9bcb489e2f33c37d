//! Broken states, each made by hand: the message is clear, other tasks stay visible, and no file is
//! lost.
//!
//! Longer than 500 lines because it is one table: each state and its test stand side by side.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dispatch::process::Identity;
use snapbox::str;

use crate::support::made::{age, dead, own};
use crate::support::process::kill_and_wait;
use crate::support::text::{Tree, same, tree};
use crate::support::{Call, Host, PLAN, Sandbox};
use crate::worktrees;

/// A broken task 'x' beside a healthy one.
struct BrokenTask(Sandbox);

impl BrokenTask {
    /// Breaks a task whose worker is alive.
    fn alive(make: impl FnOnce(&Sandbox)) -> Self {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.worked_at("neighbour", "idle", &own());
        sandbox.worked_at("x", "idle", &own());
        make(&sandbox);
        // Nobody is writing the plan at the moment.
        if sandbox.task("x", "plan.md").is_file() {
            age(&sandbox.task("x", "plan.md"), 60);
        }
        Self(sandbox)
    }

    /// Breaks a task whose worker and supervisor are dead.
    fn dead(make: impl FnOnce(&Sandbox)) -> Self {
        Self::alive(|sandbox| {
            sandbox.worked_at("x", "idle", &dead());
            make(sandbox);
        })
    }

    /// Compares the status, which must show the healthy task, and checks that no file was changed or
    /// removed.
    #[track_caller]
    fn status(&self, expected: impl snapbox::IntoData) -> &Self {
        let before = tree(&[self.0.home(), self.0.temporary()]);
        let ran = self.0.run("dispatch-reconcile", &[]);
        let is_there = |text: &str, begin: &str| text.lines().any(|line| line.contains(begin));
        assert!(is_there(&ran.out, "neighbour running 0/2"), "{}", ran.out);
        assert!(ran.out.lines().all(|line| line.len() <= 100), "{}", ran.out);
        ran.shows(expected);
        let after = tree(&[self.0.home(), self.0.temporary()]);
        // A task that is started gets a new copy of its prompt.
        let may_change = |path: &PathBuf| {
            path.ends_with("prompt.md") || path.to_string_lossy().ends_with(".dispatch.tmp")
        };
        for (path, content) in before.iter().filter(|(path, _)| !may_change(path)) {
            assert_eq!(after.get(path), Some(content), "{}", path.display());
        }
        let brief = self.0.call("dispatch-config", &["brief"]);
        let brief = brief.env("DISPATCH_TURN_MS", "100000000").run().ok();
        assert!(is_there(&brief, "neighbour running"), "{brief}");
        assert!(is_there(&brief, "x "), "{brief}");
        self
    }

    #[track_caller]
    fn show(&self, expected: impl snapbox::IntoData) -> &Self {
        self.0.run("dispatch-reconcile", &["show", "x"]).shows(expected);
        self
    }
}

#[test]
fn half_written_temporary_files_are_removed() {
    BrokenTask::alive(|sandbox| {
        sandbox.write("x", "ipc/.001.question.abc123.dispatch.tmp", "Which da");
        sandbox.write("x", "ipc/002.question.tmp", "Whi");
        sandbox.write("x", ".plan.md.abc123.dispatch.tmp", "# Ti");
    })
    .status(str![[r#"
exit 0
repaired: 2 temporary files removed
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#]]);
}

#[test]
fn question_without_worker_blocks_task() {
    BrokenTask::dead(|sandbox| sandbox.write("x", "ipc/001.question", "Which?\n"))
        .status(str![[r#"
exit 0
repaired: x marked blocked
x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 0
x — Title
blocked, idle, AGE
next: dispatch-monitor --answer x/001 -
write: idle's own rules
1. [ ] First
2. [ ] Second
question 001: "Which?"
attempt 1: exit status unknown, end noticed at TIME, log STATE/x/attempts/1/log
output: "At work."
"#]]);
}

#[test]
fn finish_marker_needs_checked_items() {
    BrokenTask::alive(|sandbox| sandbox.write("x", "ipc/.done", "All is well.\n")).status(str![[
        r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#
    ]]);
    BrokenTask::alive(|sandbox| {
        sandbox.tick_all("x");
        sandbox.write("x", "ipc/.done", "All is well.\n");
    })
    .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x done 2/2 1h idle — "All is well."
"#]]);
}

#[test]
fn dead_worker_without_exit_record_is_lost() {
    BrokenTask::dead(|_| ())
        .status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 0
x — Title
lost (the worker disappeared), idle, AGE
next: dispatch-spawn x --resume
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: exit status unknown, end noticed at TIME, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    // All items are checked, but the worker did not say that it finished.
    BrokenTask::dead(|sandbox| sandbox.tick_all("x")).status(str![[r#"
exit 0
repaired: x marked lost
x lost 2/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    BrokenTask::dead(|sandbox| {
        sandbox.tick_all("x");
        sandbox.write("x", "ipc/.done", "All is well.\n");
    })
    .status(str![[r#"
exit 0
repaired: x marked done
neighbour running 0/2 1h idle — item 1: First
x done 2/2 AGE idle — "All is well."
"#]]);
}

/// The pid of a dead worker belongs to this test now, or comes from another boot.
#[test]
fn reused_pid_is_not_taken_for_worker() {
    let rows = [
        Identity { start: own().start + 1, ..own() },
        Identity { boot: "another".into(), ..own() },
        Identity { pid: 1, start: 1, ..own() },
    ];
    for reused in rows {
        let broken = BrokenTask::alive(|sandbox| sandbox.worked_at("x", "idle", &reused));
        broken.status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
        // `stop` ends no other process.
        let stop = broken.0.run("dispatch-reconcile", &["stop", "x"]);
        assert_eq!(stop.code, Some(0), "{}", stop.err);
    }
}

#[test]
fn record_of_newer_version_is_refused() {
    BrokenTask::alive(|sandbox| sandbox.write("x", "record.yaml", "format: 2\nwho: knows\n"))
        .status(str![[r#"
exit 0
x broken — this task was created by a newer version → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: this task was created by a newer version
!   STATE/x/record.yaml: format 2
!   next: install this version's helpers again: sh install.sh
"#]]);
}

#[test]
fn torn_or_missing_record_is_reported() {
    BrokenTask::alive(|sandbox| sandbox.write("x", "record.yaml", "format: 1\nnonce: 12\nna"))
        .status(str![[r#"
exit 0
x broken — task 'x' has a broken record → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: task 'x' has a broken record
!   STATE/x/record.yaml: could not find expected ':' at line 4 column 1, while scanning a simple key at line 3 column 1
!   next: restore the file, or dispatch the plan again under another id
"#]]);
    BrokenTask::alive(|sandbox| sandbox.write("x", "record.yaml", "")).status(str![[r#"
exit 0
x broken — task 'x' has a broken record → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]]);
    BrokenTask::alive(|sandbox| sandbox.write("x", "record.yaml", [0xff, 0xfe])).status(str![[
        r#"
exit 0
x broken — record.yaml is not UTF-8 text → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#
    ]]);
    let gone = BrokenTask::alive(|sandbox| {
        fs::remove_file(sandbox.task("x", "record.yaml")).expect("removed");
    });
    gone.status(str![[r#"
exit 0
x broken — 'x' has lost its record.yaml → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: 'x' has lost its record.yaml
!   STATE/x has attempts and no record
!   next: restore the file, or move the directory away
"#]]);
    // The id stays taken: a new task would inherit the worker and the answers.
    gone.0.run("dispatch-spawn", &["x"]).shows(str![[r#"
exit 65
! dispatch-spawn: 'x' has lost its record.yaml
!   STATE/x has attempts and no record
!   next: restore the file, or move the directory away
"#]]);
}

#[test]
fn nonsense_plan_is_reported_and_kept() {
    for nonsense in [&b""[..], b"\0\x01\x02", b"just words\n", b"- First\n- Second\n"] {
        let broken = BrokenTask::alive(|sandbox| sandbox.write("x", "plan.md", nonsense));
        broken.status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/0 1h idle — the plan lost item 1: First; item 2: Second
"#]]);
        broken.0.worker("x", &["tick", "1"]).run().shows(str![[r#"
exit 65
! dispatch-worker: the plan lost item 1: First; item 2: Second
!   PROJECT/.dispatch/tasks/x/plan.md
!   next: restore it from PROJECT/.dispatch/tasks/x/ipc/.plan; to drop it, once no worker is running: dispatch-spawn x --resume --skip 'First' --skip 'Second'
"#]]);
        assert_eq!(fs::read(broken.0.task("x", "plan.md")).expect("there"), nonsense);
    }
    // An item is missing.
    let fewer =
        BrokenTask::alive(|sandbox| sandbox.write("x", "plan.md", "# Title\n- [x] First\n"));
    fewer.status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 1/1 1h idle — the plan lost item 2: Second
"#]]);
    // A plan that is not UTF-8 is shown, and `tick` does not damage it.
    let latin = b"# caf\xe9\n\n- [x] First\n- [ ] Second\n";
    let broken = BrokenTask::alive(|sandbox| sandbox.write("x", "plan.md", latin));
    broken
        .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 1/2 1h idle — item 2: Second
"#]])
        .show(str![[r#"
exit 0
x — Title
running, idle, 1h
write: idle's own rules
1. [x] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    broken.0.worker("x", &["tick", "2"]).run().shows(str![[r#"
exit 65
! dispatch-worker: PROJECT/.dispatch/tasks/x/plan.md is not UTF-8 text
!   line 1, byte 5 of the file
!   next: save it again as UTF-8
"#]]);
    assert_eq!(fs::read(broken.0.task("x", "plan.md")).expect("there"), latin);
    // The plan is missing.
    BrokenTask::alive(|sandbox| fs::remove_file(sandbox.task("x", "plan.md")).expect("removed"))
        .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/0 1h idle — the plan lost item 1: First; item 2: Second
"#]]);
}

#[test]
fn plan_of_ten_megabytes_is_read() {
    let long = "- [ ] A step that somebody had a machine write.\n".repeat(10 << 20 >> 5);
    BrokenTask::alive(|sandbox| sandbox.write("x", "plan.md", &long)).status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/327680 1h idle — the plan lost item 1: First; item 2: Second
"#]]);
}

#[test]
fn names_that_are_not_utf8_hide_no_task() {
    let odd = OsStr::from_bytes(b"\xff\xfe");
    BrokenTask::alive(|sandbox| {
        for place in ["ipc", "notes", "tells", "attempts"] {
            fs::create_dir_all(sandbox.task("x", place)).expect("made");
            fs::write(sandbox.task("x", place).join(odd), "?").expect("written");
        }
        fs::write(sandbox.task("x", "ipc").join(OsStr::from_bytes(b"\xff.question")), "?")
            .expect("written");
        fs::create_dir(sandbox.project().join(".dispatch/tasks").join(odd)).expect("made");
    })
    .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#]])
    .show(str![[r#"
exit 0
x — Title
running, idle, 1h
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    // A renamed task directory.
    BrokenTask::alive(|sandbox| {
        let tasks = sandbox.project().join(".dispatch/tasks");
        for name in [b"caf\xe9\n".as_slice(), b"Fix Login"] {
            let directory = tasks.join(OsStr::from_bytes(name));
            fs::create_dir(&directory).expect("made");
            fs::copy(sandbox.task("x", "record.yaml"), directory.join("record.yaml"))
                .expect("copied");
        }
    })
    .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#]]);
}

#[test]
fn text_that_is_not_utf8_is_shown() {
    BrokenTask::alive(|sandbox| {
        sandbox.write("x", "ipc/001.question", b"Caf\xe9?\n");
        sandbox.write("x", "tells/001", b"na\xefve");
        sandbox.write("x", "notes/001", b"\xff");
        sandbox.write("x", "attempts/1/silent", b"\xff");
        sandbox.write("x", "news", b"\xff\xfe garbage\n");
    })
    .status(str![[r#"
exit 0
x asking 0/2 1h idle — 001: "Caf�?" → dispatch-monitor --answer x/001 -
neighbour running 0/2 1h idle — item 1: First
"#]])
    .show(str![[r#"
exit 0
x — Title
asking, idle, 1h
next: dispatch-monitor --answer x/001 -
write: idle's own rules
1. [ ] First
2. [ ] Second
question 001: "Caf�?"
note: �
said: "na�ve"
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
}

#[test]
fn torn_attempt_records_are_reported() {
    BrokenTask::alive(|sandbox| sandbox.write("x", "attempts/1/exit", "code: 0\nat: 20"))
        .status(str![[r#"
exit 0
x broken — attempts/1/exit is broken → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: STATE/x/attempts/1/exit is broken
!   invalid type: integer `20`, expected a string
!   next: remove it; the worker's end then counts as unknown
"#]]);
    BrokenTask::alive(|sandbox| sandbox.write("x", "attempts/1/identity", "pid: 12\nst"))
        .status(str![[r#"
exit 0
x broken — attempts/1/identity is broken → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: STATE/x/attempts/1/identity is broken
!   could not find expected ':' at line 3 column 1, while scanning a simple key at line 2 column 1
!   next: remove it if no worker of this task is running
"#]]);
    BrokenTask::alive(|sandbox| sandbox.write("x", "wait", "{\"parked\":{\"un"))
        .status(str![[r#"
exit 0
x broken — wait is broken → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: STATE/x/wait is broken
!   EOF while parsing a string at line 1 column 14
!   next: remove it; dispatch then finds out again what the task waits for
"#]]);
    BrokenTask::dead(|sandbox| sandbox.write("x", "run.lock", "{\"pid\":1")).status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    let session = BrokenTask::dead(|sandbox| sandbox.write("x", "attempts/1/session", "id"));
    session.status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    session.0.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 65
! dispatch-spawn: STATE/x/attempts/1/session is broken
!   invalid type: string "id", expected struct SessionRecord
!   next: remove it; the next attempt begins a new session
"#]]);
}

#[test]
fn torn_ledger_loses_no_news() {
    let broken = BrokenTask::dead(|sandbox| {
        sandbox.write("x", "news", b"2026-11-21T10:00:00Z deliv\n\n \0\xff\nacknowledged\n2026");
    });
    broken.status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    // The news is printed once, and recorded at the end of the torn file.
    broken.0.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x lost (0/2, AGE): the worker disappeared → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
    broken.0.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 3
no news, and nothing is running
"#]]);
}

#[test]
fn swapped_files_and_directories_are_reported() {
    let directory = |path: &str| {
        BrokenTask::alive(|sandbox| {
            let _ = fs::remove_file(sandbox.task("x", path));
            fs::create_dir(sandbox.task("x", path)).expect("made");
        })
    };
    directory("run.lock")
        .status(str![[r#"
exit 0
x broken — run.lock is not a file → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 65
! dispatch-reconcile: STATE/x/run.lock is not a file
!   next: move away what is in its place
"#]]);
    directory("plan.md").status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — plan.md is not a file
"#]]);
    directory("ipc/.done").status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — ipc/.done is not a file
"#]]);
    directory("ipc/001.question").status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — ipc/001.question is not a file
"#]]);
    directory("attempts/1/exit").status(str![[r#"
exit 0
x broken — attempts/1/exit is not a file → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]]);
    directory("record.yaml").status(str![[r#"
exit 0
x broken — 'x' has lost its record.yaml → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]]);
    let file = |path: &str| {
        BrokenTask::alive(|sandbox| {
            fs::remove_dir_all(sandbox.task("x", path)).expect("removed");
            sandbox.write("x", path, "?");
        })
    };
    file("ipc")
        .status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — ipc is not a directory
"#]])
        .show(str![[r#"
exit 0
x — Title
running (ipc is not a directory), idle, 1h
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    file("attempts").status(str![[r#"
exit 0
x broken — attempts is not a directory → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]]);
    file("attempts/1").status(str![[r#"
exit 0
x broken — cannot read attempts/1/identity: Not a directory (os e… → dispatch-reconcile show x
neighbour running 0/2 1h idle — item 1: First
"#]]);
}

/// Reading a pipe would wait for a writer.
#[test]
fn pipe_in_place_of_file_blocks_nobody() {
    for path in ["plan.md", "ipc/001.question", "news", "attempts/1/exit"] {
        let broken = BrokenTask::alive(|sandbox| {
            let _ = fs::remove_file(sandbox.task("x", path));
            let made = sandbox.program("mkfifo").arg(sandbox.task("x", path)).run();
            assert_eq!(made.code, Some(0), "{}", made.err);
        });
        let said = broken.0.run("dispatch-reconcile", &[]);
        assert!(said.out.contains("neighbour running"), "{path}: {}", said.out);
        let brief = broken.0.run("dispatch-config", &["brief"]);
        assert!(brief.out.contains("neighbour running"), "{path}: {}", brief.out);
    }
}

#[test]
fn foreign_attempt_directories_are_ignored() {
    BrokenTask::dead(|sandbox| {
        for name in ["0", "007", "+8", "4294967295", "99999999999999", "two"] {
            fs::create_dir(sandbox.task("x", "attempts").join(name)).expect("made");
        }
    })
    .status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]])
    .show(str![[r#"
exit 0
x — Title
lost (the worker disappeared), idle, AGE
next: dispatch-spawn x --resume
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: exit status unknown, end noticed at TIME, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    // A gap in the numbers.
    let gap = BrokenTask::dead(|sandbox| {
        fs::rename(sandbox.task("x", "attempts/1"), sandbox.task("x", "attempts/3"))
            .expect("moved");
    });
    gap.status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 0
x — Title
lost (the worker disappeared), idle, AGE
next: dispatch-spawn x --resume
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 3: exit status unknown, end noticed at TIME, log STATE/x/attempts/3/log
output: "At work."
"#]]);
    gap.0.ok("dispatch-spawn", &["x", "--resume"]);
    assert!(gap.0.task("x", "attempts/4/identity").exists());
    kill_and_wait(gap.0.worker_of("x", 4));
    // An empty attempt directory.
    BrokenTask::dead(|sandbox| {
        fs::create_dir(sandbox.task("x", "attempts/2")).expect("made");
    })
    .status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
}

#[test]
fn impossible_question_numbers_are_ignored() {
    let broken = BrokenTask::alive(|sandbox| {
        sandbox.write("x", "ipc/4294967295.question", "Which?\n");
        sandbox.write("x", "ipc/99999999999999999999.question", "Which?\n");
    });
    broken.status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#]]);
    let ask = broken.0.worker("x", &["ask", "This one?"]).env("DISPATCH_WAIT_MS", "0").run();
    assert_eq!(ask.code, Some(75), "{}", ask.err);
    assert!(broken.0.task("x", "ipc/001.question").exists());
}

/// A worker can create any file in its task's directory.
#[test]
fn taken_highest_number_is_refused() {
    let broken = BrokenTask::dead(|sandbox| {
        let exit = "code: 7\nat: 2026-11-21T10:00:00Z\nmilliseconds: 1000\n";
        sandbox.write("x", "attempts/999999/exit", exit);
        fs::create_dir(sandbox.task("x", "attempts/1000000")).expect("made");
        for path in ["notes/999999", "tells/999999", "ipc/999999.question", "ipc/999999.done"] {
            sandbox.write("x", path, "Which?\n");
        }
    });
    broken.status(str![[r#"
exit 0
x failed 0/2 AGE idle — exit code 7 → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    broken.0.run("dispatch-reconcile", &["note", "x", "Mind the gap."]).shows(str![[r#"
exit 65
! dispatch-reconcile: there is no number left
!   in STATE/x/notes
!   next: move the highest one away
"#]]);
    broken.0.run("dispatch-spawn", &["x", "--resume"]).shows(str![[r#"
exit 65
! dispatch-spawn: there is no number left
!   in STATE/x/attempts
!   next: move the highest one away
"#]]);
    for call in [["tell", "Careful."], ["ask", "This one?"]] {
        let ran = broken.0.worker("x", &call).run();
        assert!(ran.code == Some(65) && ran.err.contains("no number left"), "{}", ran.err);
    }
}

#[test]
fn huge_plan_is_refused() {
    let broken = BrokenTask::alive(|sandbox| {
        let plan = fs::File::create(sandbox.task("x", "plan.md")).expect("made");
        plan.set_len(1 << 40).expect("a sparse file");
    });
    broken.0.run("dispatch-reconcile", &[]).shows(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — plan.md is too large
"#]]);
    broken.show(str![[r#"
exit 0
x — Title
running (plan.md is too large), idle, 1h
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
}

#[test]
fn directory_without_task_is_ignored() {
    let broken = BrokenTask::alive(|sandbox| {
        fs::create_dir(sandbox.task("empty", "")).expect("made");
        sandbox.write("planned", "plan.md", PLAN);
        sandbox.write("stray", "note.txt", "?");
    });
    broken.status(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
no task: .dispatch/tasks/stray came along, was copied or is left over
"#]]);
}

/// The clock was an hour ahead when the task was created, or is behind now.
#[test]
fn backwards_clock_changes_no_state() {
    let later = |seconds| {
        let time = SystemTime::now() + Duration::from_secs(seconds);
        humantime::format_rfc3339_seconds(time).to_string()
    };
    let broken = BrokenTask::dead(|sandbox| {
        let record = sandbox.read("x", "record.yaml");
        let created = record.lines().find(|line| line.starts_with("created")).expect("there");
        let record = record.replace(created, &format!("created: {}", later(7200)));
        sandbox.write("x", "record.yaml", record);
        let exit = format!("code: 7\nat: {}\nmilliseconds: 0\n", later(3600));
        sandbox.write("x", "attempts/1/exit", exit);
        for path in ["record.yaml", "attempts/1/exit", "ipc"] {
            let file = fs::File::open(sandbox.task("x", path)).expect("there");
            file.set_modified(SystemTime::now() + Duration::from_secs(3600)).expect("dated");
        }
    });
    broken.status(str![[r#"
exit 0
x failed 0/2 AGE idle — exit code 7: "At work." → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
    broken.0.run("dispatch-monitor", &["x"]).shows(str![[r#"
exit 0
#ID x failed (0/2, AGE): exit code 7: "At work." → tell the user and ask; BIN/dispatch-spawn x --resume tries again
"#]]);
    // A task from the future is repaired too.
    let queued = BrokenTask::alive(|sandbox| {
        fs::remove_dir_all(sandbox.task("x", "attempts")).expect("removed");
        let file = fs::File::open(sandbox.task("x", "record.yaml")).expect("there");
        file.set_modified(SystemTime::now() + Duration::from_secs(3600)).expect("dated");
    });
    queued.status(str![[r#"
exit 0
repaired: x restarted
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — item 1: First
"#]]);
    kill_and_wait(queued.0.worker_of("x", 1));
}

/// All calls for a task; each may fail in a broken state.
const CALLS: [&[&str]; 13] = [
    &["dispatch-reconcile", "status", "--all"],
    &["dispatch-reconcile", "status", "--json"],
    &["dispatch-reconcile", "show", "x"],
    &["dispatch-reconcile", "show", "x", "--json"],
    &["dispatch-config", "brief"],
    &["dispatch-monitor", "x", "--timeout", "0s"],
    &["dispatch-monitor", "--answer", "x", "This."],
    &["dispatch-reconcile", "note", "x", "Mind the gap."],
    &["dispatch-reconcile", "stop", "x"],
    &["dispatch-spawn", "x", "--resume"],
    &["dispatch-reconcile", "merge", "x"],
    &["dispatch-reconcile", "clean", "x"],
    &["dispatch-spawn", "x"],
];

/// Makes all calls. No call may panic, fail without a message, or print a secret. Returns the refusals.
#[track_caller]
fn call_all(sandbox: &Sandbox) -> String {
    let mut refused = String::new();
    for call in CALLS {
        let ran = sandbox.run(call[0], &call[1..]);
        let said = format!("{}{}", ran.out, ran.err);
        assert!(!said.contains("panicked") && !said.contains("SECRET"), "{call:?}: {said}");
        assert!(ran.code.is_some_and(|code| code != 101), "{call:?}: {said}");
        assert!(!said.is_empty(), "{call:?} says nothing");
        if ran.code != Some(0) {
            let first = ran.err.lines().next().unwrap_or(&ran.out);
            refused.push_str(&format!("{}: {first}\n", call[..2].join(" ")));
        }
    }
    for call in [&["tick", "1"][..], &["tell", "Careful."], &["finish", "Done."]] {
        let ran = sandbox.worker("x", call).run();
        let said = format!("{}{}", ran.out, ran.err);
        assert!(!said.contains("panicked") && !said.contains("SECRET"), "{call:?}: {said}");
    }
    sandbox.redactions().apply(&refused)
}

/// Creates a directory outside the project, for symlinks to lead to.
fn outside(sandbox: &Sandbox) -> PathBuf {
    let outside = sandbox.temporary().join("outside");
    for directory in ["1", "x/ipc", "x/attempts/1"] {
        fs::create_dir_all(outside.join(directory)).expect("made");
    }
    let secrets = ["secret", "001.question", ".done", "1/exit", "1/log", "001", "x/plan.md"];
    for name in secrets {
        fs::write(outside.join(name), "SECRET\n- [ ] SECRET\n").expect("written");
    }
    fs::copy(sandbox.task("x", "record.yaml"), outside.join("x/record.yaml")).expect("copied");
    let old = SystemTime::now() - Duration::from_secs(3600);
    let temporary = outside.join(".plan.md.abc123.dispatch.tmp");
    fs::write(&temporary, "SECRET").expect("written");
    fs::File::open(temporary).expect("there").set_modified(old).expect("dated");
    outside
}

/// Checks that nothing outside the project changed.
#[track_caller]
fn unchanged(before: &Tree, sandbox: &Sandbox, what: &str) {
    let after = tree(&[sandbox.temporary()]);
    let differs = |path: &&PathBuf| before.get(*path) != after.get(*path);
    let changed: Vec<_> = before.keys().chain(after.keys()).filter(differs).collect();
    assert!(changed.is_empty(), "{what}: {changed:?}");
}

/// A sandboxed worker or a cloned repository may plant a symlink. Helpers must not read or write its
/// target.
#[test]
fn symlink_to_outside_is_never_followed() {
    let mut all = String::new();
    for (path, target) in [
        ("plan.md", "secret"),
        ("record.yaml", "x/record.yaml"),
        ("prompt.md", "secret"),
        ("lock", "secret"),
        ("run.lock", "secret"),
        ("news", "secret"),
        ("wait", "secret"),
        ("output.md", "secret"),
        ("context.md", "secret"),
        ("ipc", ""),
        ("ipc/001.question", "001.question"),
        ("ipc/001.answer", "secret"),
        ("ipc/.done", ".done"),
        ("notes", ""),
        ("notes/001", "001"),
        ("tells", ""),
        ("attempts", ""),
        ("attempts/1", "1"),
        ("attempts/2", "1"),
        ("attempts/1/exit", "1/exit"),
        ("attempts/1/identity", "secret"),
        ("attempts/1/log", "secret"),
        ("attempts/1/plan.md", "secret"),
        ("attempts/1/session", "secret"),
    ] {
        let broken = BrokenTask::dead(|sandbox| {
            let (at, outside) = (sandbox.task("x", path), outside(sandbox));
            sandbox.write("x", "ipc/001.question", "Which?\n");
            let _ = fs::remove_file(&at);
            let _ = fs::remove_dir_all(&at);
            fs::create_dir_all(at.parent().expect("a directory")).expect("made");
            symlink(outside.join(target), at).expect("linked");
        });
        let status = broken.0.run("dispatch-reconcile", &[]).ok();
        assert!(status.contains("neighbour running"), "{path}: {status}");
        let own = status.lines().filter(|line| line.starts_with("x "));
        all.push_str(&format!("{path}: {}\n", own.collect::<Vec<_>>().join("\n")));
        let before = tree(&[broken.0.temporary()]);
        call_all(&broken.0);
        unchanged(&before, &broken.0, path);
    }
    same(
        &Sandbox::new().redactions().apply(&all),
        str![[r#"
plan.md: x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
record.yaml: x broken — record.yaml is a symlink → dispatch-reconcile show x
prompt.md: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
lock: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
run.lock: x broken — run.lock is a symlink → dispatch-reconcile show x
news: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
wait: x broken — wait is a symlink → dispatch-reconcile show x
output.md: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
context.md: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
ipc: x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
ipc/001.question: x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
ipc/001.answer: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
ipc/.done: x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
notes: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
notes/001: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
tells: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
attempts: x broken — attempts is a symlink → dispatch-reconcile show x
attempts/1: x broken — attempts/1 is a symlink → dispatch-reconcile show x
attempts/2: x broken — attempts/2 is a symlink → dispatch-reconcile show x
attempts/1/exit: x broken — attempts/1/exit is a symlink → dispatch-reconcile show x
attempts/1/identity: x broken — attempts/1/identity is a symlink → dispatch-reconcile show x
attempts/1/log: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -
attempts/1/plan.md: x broken — attempts/1/plan.md is a symlink → dispatch-reconcile show x
attempts/1/session: x blocked 0/2 AGE idle — 001: "Which?" → dispatch-monitor --answer x/001 -

"#]],
    );
}

#[test]
fn symlinked_task_is_refused() {
    let broken = BrokenTask::dead(|sandbox| {
        let outside = outside(sandbox);
        fs::remove_dir_all(sandbox.task("x", "")).expect("removed");
        let at = sandbox.project().join(".dispatch/tasks/x");
        symlink(outside.join("x"), at).expect("linked");
    });
    let before = tree(&[broken.0.temporary()]);
    broken
        .status(str![[r#"
exit 0
repaired: x marked lost
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]])
        .show(str![[r#"
exit 0
x — Title
lost (the worker disappeared), idle, AGE
next: dispatch-spawn x --resume
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: exit status unknown, end noticed at TIME, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    same(
        &call_all(&broken.0),
        str![[r#"
dispatch-monitor x: dispatch-monitor: PROJECT/.dispatch/tasks/x is a symlink
dispatch-monitor --answer: dispatch-monitor: PROJECT/.dispatch/tasks/x is a symlink
dispatch-reconcile note: dispatch-reconcile: PROJECT/.dispatch/tasks/x is a symlink
dispatch-spawn x: dispatch-spawn: PROJECT/.dispatch/tasks/x is a symlink
dispatch-reconcile merge: dispatch-reconcile: 'x' has no branch of its own to merge
dispatch-reconcile clean: kept x: PROJECT/.dispatch/tasks/x is a symlink; to TMP/outside/x; dispatch follows none in its own directories; next: remove it, or put what it leads to in its place

dispatch-spawn x: dispatch-spawn: PROJECT/.dispatch/tasks/x is a symlink

"#]],
    );
    unchanged(&before, &broken.0, "tasks/x");
    // A dangling symlink is refused too.
    fs::remove_file(broken.0.project().join(".dispatch/tasks/x")).expect("removed");
    symlink("nowhere", broken.0.project().join(".dispatch/tasks/x")).expect("linked");
    broken.status(str![[r#"
exit 0
x lost 0/2 AGE idle — the worker disappeared → dispatch-spawn x --resume
neighbour running 0/2 1h idle — item 1: First
"#]]);
}

#[test]
fn symlinked_task_list_is_refused() {
    for (path, target) in [(".dispatch/tasks", "tasks"), (".dispatch", "")] {
        let sandbox = Sandbox::new();
        sandbox.workers(&[]);
        sandbox.worked_at("x", "idle", &dead());
        let outside = sandbox.temporary().join("outside");
        fs::rename(sandbox.project().join(".dispatch"), &outside).expect("moved");
        if path != ".dispatch" {
            fs::create_dir(sandbox.project().join(".dispatch")).expect("made");
        }
        symlink(outside.join(target), sandbox.project().join(path)).expect("linked");
        let before = tree(&[sandbox.temporary()]);
        let refused = call_all(&sandbox);
        let status = sandbox.run("dispatch-reconcile", &[]);
        let brief = sandbox.run("dispatch-config", &["brief"]);
        assert_eq!((status.code, brief.code), (Some(65), Some(0)));
        let said = status.err.strip_prefix("dispatch-reconcile: ").expect("its name");
        assert_eq!(said, brief.out);
        let said = sandbox
            .redactions()
            .apply(said)
            .replace(path, "PATH")
            .replace("outside/tasks", "outside/");
        same(
            &said,
            str![[r#"
PROJECT/PATH is a symlink
  to TMP/outside/; dispatch follows none in its own directories
  next: remove it, or put what it leads to in its place

"#]],
        );
        assert_eq!(refused.lines().count(), CALLS.len() - 1, "{refused}");
        unchanged(&before, &sandbox, path);
        // The host's hook stays silent.
        let host = Host::new(&sandbox);
        let hook = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
        assert_eq!((hook.code, hook.err.as_str()), (Some(0), ""));
    }
}

#[test]
fn unreadable_task_hides_no_news_of_others() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    let host = Host::new(&sandbox);
    for id in ["x", "y"] {
        sandbox.plan(id, PLAN);
        host.calls(sandbox.call("dispatch-spawn", &[id])).run().ok();
    }
    for path in ["news", "tells/001"] {
        let _ = fs::remove_file(sandbox.task("x", path));
        fs::create_dir_all(sandbox.task("x", path)).expect("made");
        sandbox.worker("x", &["tell", "Careful."]).run();
        sandbox.worker("y", &["tell", &format!("Look at {path}.")]).run().ok();
        let wake = host.calls(sandbox.call("dispatch-monitor", &["--hook"])).input("{}").run();
        assert_eq!(wake.code, Some(2), "{}", wake.err);
        assert!(wake.err.contains(&format!("Look at {path}.")), "{}", wake.err);
    }
}

/// Runs a call as a user without write access, or as the test's own user if that is not root.
fn as_nobody(call: Call) -> Call {
    call.with(|command| {
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
    })
}

#[test]
fn unwritable_directory_is_reported() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.worked_at("neighbour", "idle", &own());
    sandbox.worked_at("x", "idle", &dead());
    sandbox.queued("waits", "idle");
    sandbox.write("x", "ipc/001.question", "Which?\n");
    // The other user needs helpers in a readable place.
    let helpers = sandbox.top().join("helpers");
    crate::support::helpers::install(&helpers);
    let bin = helpers.join(crate::support::helpers::VERSION.as_str());
    let mode = |path: &Path, mode: &str| {
        sandbox.program("chmod").args(&["-R", mode]).arg(path).run().ok();
    };
    mode(sandbox.top(), "a+rX");
    mode(&sandbox.project().join(".dispatch"), "a-w");
    mode(&sandbox.home().join(".dispatch"), "a-w");
    let before = tree(&[sandbox.home()]);
    let mut said = String::new();
    for call in CALLS {
        let ran = as_nobody(sandbox.program(bin.join(call[0])).args(&call[1..])).run();
        assert!(!ran.out.is_empty() || !ran.err.is_empty(), "{call:?}");
        let json = call.contains(&"--json");
        let out = if json { "(JSON)" } else { ran.out.trim_end() };
        said.push_str(&format!(
            "== {}: {:?}\n{out}{}\n",
            call.join(" "),
            ran.code,
            ran.err.trim_end()
        ));
    }
    assert_eq!(tree(&[sandbox.home()]), before);
    mode(sandbox.top(), "u+w");
    let said = said.replace(&bin.display().to_string(), "HELPERS");
    same(
        &sandbox.redactions().apply(&said),
        str![[r#"
== dispatch-reconcile status --all: Some(0)
x blocked 0/2 1h idle — 001: "Which?" → dispatch-monitor --answer x/001 -
neighbour running 0/2 1h idle — item 1: First
waits queued 0/2 1h idle
== dispatch-reconcile status --json: Some(0)
(JSON)
== dispatch-reconcile show x: Some(0)
x — Title
blocked, idle, 1h
next: dispatch-monitor --answer x/001 -
write: idle's own rules
1. [ ] First
2. [ ] Second
question 001: "Which?"
attempt 1: no exit recorded, log STATE/x/attempts/1/log
output: "At work."
== dispatch-reconcile show x --json: Some(0)
(JSON)
== dispatch-config brief: Some(0)
default: idle; models: idle
#ID x asks (001): "Which?" → ask the user, then run: HELPERS/dispatch-monitor --answer x/001 - <<'END_TEXT' (the answer, then END_TEXT)
no hook wakes you here: run HELPERS/dispatch-monitor in the background (Bash, run_in_background, timeout 7200000, description "dispatch: neighbour, waits"), and again each time it ends while tasks run
#ID x blocked (0/2) → ask the user; HELPERS/dispatch-monitor --answer x/001 - resumes it
neighbour running 0/2 1h idle — item 1: First
waits queued 0/2 1h idle
== dispatch-monitor x --timeout AGE: Some(1)
dispatch-monitor: cannot open the lock STATE/x/news.lock: Permission denied (os error 13)
  next: call as the owner, or change the mode
== dispatch-monitor --answer x This.: Some(1)
dispatch-monitor: cannot open the lock STATE/x/lock: Permission denied (os error 13)
  next: call as the owner, or change the mode
== dispatch-reconcile note x Mind the gap.: Some(1)
dispatch-reconcile: cannot make the directory STATE/x/notes: Permission denied (os error 13)
  next: call as the owner, or change the mode
== dispatch-reconcile stop x: Some(1)
dispatch-reconcile: cannot open the lock STATE/x/lock: Permission denied (os error 13)
  next: call as the owner, or change the mode
== dispatch-spawn x --resume: Some(1)
dispatch-spawn: cannot make PROJECT/.dispatch private: Operation not permitted (os error 1)
  next: call as the owner, or change the mode
== dispatch-reconcile merge x: Some(1)
dispatch-reconcile: cannot open the lock STATE/x/run.lock: Permission denied (os error 13)
  next: call as the owner, or change the mode
== dispatch-reconcile clean x: Some(1)
kept x: cannot open the lock STATE/x/run.lock: Permission denied (os error 13)
== dispatch-spawn x: Some(73)
dispatch-spawn: the task id 'x' is taken
  PROJECT/.dispatch/tasks/x is blocked
  next: use 'x-2', or dispatch-spawn x --resume for what is left of it

"#]],
    );
}

#[test]
fn unreadable_directory_is_reported() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.worked_at("neighbour", "idle", &own());
    sandbox.worked_at("x", "idle", &own());
    let helpers = sandbox.top().join("helpers");
    crate::support::helpers::install(&helpers);
    let reconcile =
        helpers.join(crate::support::helpers::VERSION.as_str()).join("dispatch-reconcile");
    let mode = |path: &Path, mode: &str| {
        sandbox.program("chmod").arg(mode).arg(path).run().ok();
    };
    sandbox.program("chmod").args(&["-R", "a+rX"]).arg(sandbox.top()).run().ok();
    let run = |args: &[&str]| as_nobody(sandbox.program(&reconcile).args(args)).run();
    let tasks = sandbox.project().join(".dispatch/tasks");
    mode(&tasks.join("x"), "a-rwx");
    run(&[]).shows(str![[r#"
exit 0
neighbour running 0/2 1h idle — item 1: First
x running 0/2 1h idle — cannot read ipc: Permission denied (os error 13)
"#]]);
    run(&["show", "x"]).shows(str![[r#"
exit 0
x — Title
running (cannot read ipc: Permission denied (os error 13)), idle, 1h
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
    mode(&tasks.join("x"), "a+rx");
    // Without any access, and with names only.
    for bits in ["a-rwx", "a+r"] {
        mode(&tasks, bits);
        run(&[]).shows(str![[r#"
exit 0
neighbour running 0/2 1h idle — cannot read ipc: Permission denied (os error 13)
x running 0/2 1h idle — cannot read ipc: Permission denied (os error 13)
"#]]);
        run(&["show", "x"]).shows(str![[r#"
exit 0
x — Title
running (cannot read ipc: Permission denied (os error 13)), idle, 1h
write: idle's own rules
1. [ ] First
2. [ ] Second
attempt 1: running, log STATE/x/attempts/1/log
output: "At work."
"#]]);
        run(&["statusline"]).shows(str![[r#"
exit 0
dispatch: 2 running
"#]]);
    }
    mode(&tasks, "u+rwx");
    mode(&tasks.join("x"), "u+rwx");
}

/// A task whose worker has committed, and its worktree.
fn with_a_worktree() -> (Sandbox, PathBuf) {
    let commits = "echo work >>work; git add . && git commit -q -m Work";
    let sandbox = worktrees::ready(&[("commits", commits)]);
    worktrees::dispatch(&sandbox, "x", "commits");
    sandbox.wait_for_state("x", "incomplete");
    worktrees::until_over(&sandbox, "x");
    let (path, ..) = worktrees::worktree_of(&sandbox, "x");
    (sandbox, path)
}

/// The person deleted the worktree with its uncommitted changes.
#[test]
fn deleted_worktree_keeps_branch() {
    let (sandbox, path) = with_a_worktree();
    fs::remove_dir_all(&path).expect("removed");
    let status = || sandbox.run("dispatch-reconcile", &[]);
    let show = || sandbox.run("dispatch-reconcile", &["show", "x"]);
    status().shows(str![[r#"
exit 0
x incomplete 0/2 AGE commits — ended before item 1: First → dispatch-spawn x --resume
"#]]);
    show().shows(str![[r#"
exit 0
x — Title
incomplete, commits, AGE
next: dispatch-spawn x --resume
full: nothing holds it
worktree: HOME/.dispatch/worktrees/project-HASH/x (branch dispatch/x, from COMMIT): deleted
1. [ ] First
2. [ ] Second
attempt 1: exit code 0 at TIME, log STATE/x/attempts/1/log
"#]]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: not merged: 1 commit is only in dispatch/x; merge brings the branch in
"#]]);
    // The branch keeps the commits, and a resumed worker gets a new worktree.
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    worktrees::until_over(&sandbox, "x");
    assert!(path.join("work").exists());
    fs::remove_dir_all(&path).expect("removed");
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 0
dispatch/x at COMMIT: 2 commits into main (fast-forward); dispatch-reconcile clean x removes the task
"#]]);
}

/// The person has checked the task's branch out in their own checkout.
#[test]
fn branch_checked_out_elsewhere_is_left_alone() {
    let (sandbox, path) = with_a_worktree();
    fs::remove_dir_all(&path).expect("removed");
    sandbox.git(&["checkout", "-q", "dispatch/x"]);
    sandbox.run("dispatch-reconcile", &["merge", "x"]).shows(str![[r#"
exit 65
! dispatch-reconcile: dispatch/x is what is checked out
!   PROJECT
!   next: git -C PROJECT switch BRANCH, and try again
"#]]);
    sandbox.run("dispatch-reconcile", &["clean", "x"]).shows(str![[r#"
exit 1
kept x: dispatch/x is checked out in PROJECT
"#]]);
    sandbox.run("dispatch-reconcile", &["show", "x"]).shows(str![[r#"
exit 0
x — Title
incomplete, commits, AGE
next: dispatch-spawn x --resume
full: nothing holds it
worktree: HOME/.dispatch/worktrees/project-HASH/x (branch dispatch/x, from COMMIT): deleted
1. [ ] First
2. [ ] Second
attempt 1: exit code 0 at TIME, log STATE/x/attempts/1/log
"#]]);
    // A resumed worker works on, and the branch follows after a switch.
    sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    worktrees::until_over(&sandbox, "x");
    assert_eq!(sandbox.git(&["log", "--format=%s", "dispatch/x"]), "Work\nBegin\n");
    sandbox.git(&["switch", "-q", "main"]);
    sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert_eq!(sandbox.git(&["log", "--format=%s", "dispatch/x"]), "Work\nWork\nBegin\n");
}
