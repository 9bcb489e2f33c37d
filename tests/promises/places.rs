//! Workers at places: a command stands for a container, sshd on loopback for another machine, and Slurm
//! runs on one node. The link is cut at each step, and the far side lies.
//!
//! Longer than 500 lines because all of it plays in one world: a place, its script and its worker.
//!
//! `tests/README.md` has the variables for more tasks and histories.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use snapbox::str;

use crate::support::helpers::VERSION;
use crate::support::made::{Random, age};
use crate::support::process::{all_of, end_all_of, field};
use crate::support::text::same;
use crate::support::{DEADLINE, PLAN, Ran, Sandbox, binary, helpers, wait_until};

/// A worker that asks, commits and finishes, and writes down each of its starts.
const WORKER: &str = "cat >/dev/null
echo start >>TOP/starts.${DISPATCH_TASK_DIR##*/}
HELPER tick 1
echo work >file && git add file && git commit -qm Work
answer=$(HELPER ask 'Which one?')
echo \"$answer\" >>TOP/answers.${DISPATCH_TASK_DIR##*/}
HELPER tick 2
HELPER finish \"Took $answer.\" | grep -q Finished || HELPER finish \"Took $answer.\"
";

/// A project, and a place with a home of its own that is reached by a script.
struct World {
    sandbox: Sandbox,
    far: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        end_all_of(&self.sandbox.home());
        end_all_of(&self.far);
    }
}

impl World {
    /// A place with installed helpers.
    fn new() -> Self {
        let world = Self::bare();
        helpers::install(&world.far.join(".local/share/dispatch"));
        world
    }

    /// A place without helpers. The script that reaches it fails while the file `down` exists, and its
    /// output ends after so many bytes as the next line of `cuts` says.
    fn bare() -> Self {
        let sandbox = Sandbox::with_git();
        let (top, far) = (sandbox.top().to_owned(), sandbox.top().join("far"));
        fs::create_dir_all(&far).expect("made");
        let script = format!(
            "[ ! -e {top}/down ] || {{ echo 'no route to the place' >&2; exit 255; }}
echo x >>{top}/reached
far() {{ env -i HOME={far} PATH=\"$PATH\" TMPDIR=\"$TMPDIR\" DISPATCH_FAIL=callers \\
    DISPATCH_GRACE_MS=300 $(cat {top}/environment 2>/dev/null) \"$@\"; }}
[ ! -e {top}/noise ] || cat {top}/noise
cut=$(head -n 1 {top}/cuts 2>/dev/null)
[ ! -e {top}/cuts ] || sed -i 1d {top}/cuts
case $cut in '' | -) far \"$@\"; exit ;; esac
far \"$@\" | {{ dd bs=1 count=\"$cut\" 2>/dev/null; kill -9 $$; }}",
            top = top.display(),
            far = far.display(),
        );
        let reach = sandbox.script("reach", &script);
        let helper = binary("dispatch-worker").display().to_string();
        let worker = WORKER.replace("HELPER", &helper).replace("TOP", &top.display().to_string());
        let asks = sandbox.script("asks", &worker);
        let idle = sandbox.script("idle", "cat >/dev/null; exec sleep 1000");
        sandbox.config(&format!(
            "default: asks\nbackends:\n  asks: {{ command: {asks}, prompt: stdin }}\n  idle: {{ command: {idle}, prompt: stdin }}\n\
             models:\n  asks: {{ backend: asks }}\n  idle: {{ backend: idle }}\n\
             places:\n  box: {{ reach: {reach} }}\n"
        ));
        Self { sandbox, far }
    }

    fn call(&self, helper: &str, args: &[&str]) -> Ran {
        self.sandbox.call(helper, args).env("DISPATCH_RECONNECT_MS", "50").run()
    }

    #[track_caller]
    fn dispatch(&self, id: &str, model: &str) -> String {
        self.sandbox.plan(id, PLAN);
        self.call("dispatch-spawn", &[id, "--model", model, "--on", "box"]).ok()
    }

    /// Writes a file that the script of the place reads.
    fn set(&self, name: &str, text: &str) {
        fs::write(self.sandbox.top().join(name), text).expect("written");
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.sandbox.top().join(name)).expect("there");
    }

    /// Runs the place in a mount namespace of its own after the commands of `mounts`; false where this
    /// user may make none.
    fn mount(&self, mounts: &str) -> bool {
        let may = self.sandbox.program("unshare").args(&["-m", "true"]).into_command().status();
        if !may.is_ok_and(|it| it.success()) {
            eprintln!("SKIPPED: this user may make no mount namespace");
            return false;
        }
        self.sandbox.script("mounts", &format!("set -e\n{mounts}\nexec \"$@\""));
        let script = self.sandbox.top().join("scripts/mounts");
        self.set("environment", &format!("unshare -m sh {}", script.display()));
        true
    }

    /// Writes a program for the `PATH` of the place.
    fn program(&self, name: &str, text: &str) {
        // Another process writes it: a fork of this one could keep it open.
        let write =
            format!("mkdir -p programs && cat >programs/{name} && chmod 755 programs/{name}");
        let write = self.sandbox.program("sh").args(&["-c", &write]).within(self.sandbox.top());
        write.input(format!("#!/bin/sh\n{text}")).run().ok();
    }

    /// Ends the `reach` of the place with further words.
    fn reach_with(&self, words: &str) {
        let config = self.sandbox.home().join(".dispatch/config.yaml");
        let text = fs::read_to_string(&config).expect("there");
        fs::write(&config, text.replace("/reach }", &format!("/reach {words} }}")))
            .expect("written");
    }

    /// The lines that workers wrote into files of that name.
    fn lines(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.sandbox.top()).expect("there").flatten();
        let own = entries.filter(|it| it.file_name().to_string_lossy().starts_with(name));
        let texts = own.map(|it| fs::read_to_string(it.path()).expect("readable"));
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    #[track_caller]
    fn until(&self, id: &str, state: &str) {
        let begin = std::time::Instant::now();
        wait_until(&format!("'{id}' is {state}"), || {
            let last = self.sandbox.state(id);
            assert!(begin.elapsed() < DEADLINE * 2 / 3, "'{id}' is '{last}', and not '{state}'");
            last.starts_with(state).then_some(())
        });
    }

    /// Ends what carries the connections, as a lost network does.
    fn cut(&self) {
        for pid in all_of(&self.sandbox.home()).into_iter().chain(all_of(&self.far)) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("/reach ") || line.contains(" --serve ") || line == "sh -s " {
                let _ = kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL);
            }
        }
    }

    /// The processes of workers and supervisors at the place.
    fn left(&self) -> Vec<String> {
        let line = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let lines = all_of(&self.far).into_iter().map(line);
        let lines = lines.map(|it| String::from_utf8_lossy(&it).replace('\0', " "));
        lines.filter(|it| !it.contains("--serve") && !it.is_empty()).collect()
    }

    fn far_program(&self) -> PathBuf {
        self.far.join(".local/share/dispatch").join(VERSION.as_str()).join("dispatch")
    }
}

#[test]
fn name_of_this_machine_is_no_place() {
    let world = World::bare();
    world.sandbox.plan("far", PLAN);
    let refusal = "'here' is this machine, and no place\n  next: use another name;";
    for (helper, args) in [
        ("dispatch-spawn", &["far", "--on", "here"][..]),
        ("dispatch-config", &["add-place", "here", "--reach", "ssh a"]),
    ] {
        let said = world.call(helper, args);
        assert_eq!(said.code, Some(64), "{}", said.err);
        assert!(said.err.contains(refusal), "{}", said.err);
    }
}

#[test]
fn worker_at_a_place_starts_where_the_dispatch_did() {
    let world = World::new();
    let top = world.sandbox.top().display().to_string();
    world.sandbox.script("asks", &format!("cat >/dev/null; pwd >{top}/where"));
    let below = world.sandbox.project().join("src/new part");
    fs::create_dir_all(&below).expect("made");
    fs::write(below.join("file"), "text").expect("written");
    world.sandbox.git(&["add", "."]);
    world.sandbox.git(&["commit", "-qm", "Part"]);
    world.sandbox.plan("far", PLAN);
    let spawn = world.sandbox.call("dispatch-spawn", &["far", "--on", "box"]);
    spawn.within(&below).run().ok();
    world.until("far", "incomplete");
    let where_it_was = world.lines("where").concat();
    assert!(where_it_was.ends_with("/src/new part"), "{where_it_was}");
    assert!(where_it_was.starts_with(&world.far.display().to_string()), "{where_it_was}");
}

#[test]
fn worktree_at_a_place_has_the_sparse_patterns_of_the_checkout() {
    let world = World::new();
    let top = world.sandbox.top().display().to_string();
    let work = "echo work >work && git add --sparse work && git commit -qm Work";
    let list = format!(
        "cat >/dev/null; ls >{top}/saw.${{DISPATCH_TASK_DIR##*/}}
git sparse-checkout list >>{top}/saw.${{DISPATCH_TASK_DIR##*/}} 2>&1; {work}"
    );
    world.sandbox.script("asks", &list);
    for name in ["a/one", "b/two", "c/three.txt"] {
        let path = world.sandbox.project().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, name).expect("written");
    }
    world.sandbox.git(&["add", "."]);
    world.sandbox.git(&["commit", "-qm", "Files"]);
    // In cone mode, git lists directories, and without it the patterns.
    for (id, patterns, saw) in [
        ("cone", &["--cone", "a"][..], "README a a"),
        ("other", &["--no-cone", "/README", "*.txt"], "README c /README *.txt"),
    ] {
        let set = [&["sparse-checkout", "set"][..], patterns].concat();
        world.sandbox.git(&set);
        world.dispatch(id, "asks");
        let branch = format!("dispatch/{id}");
        let list = ["ls-tree", "-r", "--name-only", &branch];
        let files = wait_until("the branch is here", || {
            let ran =
                world.sandbox.program("git").args(&list).within(world.sandbox.project()).run();
            Some(ran.out).filter(|it| !it.is_empty())
        });
        assert_eq!(world.lines(&format!("saw.{id}-")).join(" "), saw, "{id}");
        assert_eq!(files, "README\na/one\nb/two\nc/three.txt\nwork\n", "{id}");
    }
    world.sandbox.git(&["sparse-checkout", "disable"]);
    world.dispatch("all", "asks");
    world.until("all", "incomplete");
    let there = world.lines("saw.all-").join(" ");
    assert!(there.starts_with("README a b c "), "{there}");
}

#[test]
fn task_at_a_place_is_asked_answered_and_merged_like_any_other() {
    let world = World::new();
    let said = world.dispatch("far", "asks");
    assert_eq!(
        said,
        "far (Title, 2 items) started with asks. Tell the user and stop; news wakes you.\n"
    );
    world.until("far", "asking");
    let news = world.sandbox.ok("dispatch-monitor", &[]);
    assert!(news.contains("far on box asks (001): \"Which one?\""), "{news}");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "The first."]);
    world.until("far", "done");
    wait_until("the mirror lets the task go", || {
        world.call("dispatch-reconcile", &["merge", "far"]).code.filter(|code| *code == 0)
    });
    assert_eq!(world.sandbox.git(&["log", "--format=%s"]), "Work\nBegin\n");
    let news = world.sandbox.ok("dispatch-monitor", &[]);
    assert!(news.contains("far on box done (2/2"), "{news}");
    assert!(news.contains("\"Took The first..\""), "{news}");
    assert_eq!(world.lines("starts."), ["start"]);
    assert_eq!(world.lines("answers."), ["The first."]);
    wait_until("nothing is left there", || world.left().is_empty().then_some(()));
    wait_until("the mirror ends with its last task", || {
        all_of(&world.sandbox.home()).is_empty().then_some(())
    });
}

#[test]
fn absent_and_damaged_helpers_are_sent_again() {
    let world = World::bare();
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 5] = [
        ("absent", |_| ()),
        ("empty", |path| fs::write(path, "").expect("written")),
        ("truncated", |path| {
            let all = fs::read(path).expect("there");
            fs::write(path, &all[..1 << 20]).expect("written");
        }),
        ("other", |path| {
            fs::remove_file(path).expect("removed");
            fs::write(path, "#!/bin/sh\necho 0.0.1-2\n").expect("written");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
        }),
        ("not executable", |path| {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set");
        }),
    ];
    let share = world.far.join(".local/share/dispatch");
    fs::create_dir_all(share.join("0.0.1-2.new.3")).expect("made");
    age(&share.join("0.0.1-2.new.3"), 4000);
    world.set("noise", "Welcome!\nLast login: never\n");
    for (what, damage) in damage {
        damage(&world.far_program());
        let said = world.call("dispatch-config", &["places"]);
        assert_eq!(said.code, Some(0), "{what}: {}{}", said.out, said.err);
        let (sent, own) = (fs::read(world.far_program()), fs::read(binary("dispatch-spawn")));
        assert!(sent.expect("there") == own.expect("there"), "{what}");
    }
    assert_eq!(fs::read_dir(share).expect("there").count(), 1, "nothing unfinished stays");
}

#[test]
fn cut_while_the_program_is_sent_leaves_nothing_that_runs() {
    let world = World::bare();
    let call = world.sandbox.call("dispatch-config", &["places"]);
    let said = call.crash_at("place:uploading").run();
    assert_eq!(said.code, None, "it was killed");
    wait_until("the place has ended", || all_of(&world.far).is_empty().then_some(()));
    let share = world.far.join(".local/share/dispatch");
    let left = fs::read_dir(&share).map_or(0, |entries| entries.count());
    assert_eq!(left, 0, "{}", share.display());
}

#[test]
fn place_that_takes_nothing_of_the_program_is_given_up() {
    let world = World::bare();
    let path = std::env::var("PATH").expect("set");
    world.program("head", "exec sleep 1000");
    world.set("environment", &format!("PATH={}/programs:{path}", world.sandbox.top().display()));
    let call = world.sandbox.call("dispatch-config", &["places"]);
    let said = call.env("DISPATCH_UPLOAD_MS", "100").run();
    assert_eq!(said.code, Some(69), "{}", said.out);
    assert!(said.out.contains("it did not take the program within"), "{}", said.out);
}

#[test]
fn place_whose_home_is_mounted_noexec_is_named_and_its_remedy_works() {
    let world = World::bare();
    if !world.mount("mount --bind ~ ~ && mount -o remount,bind,noexec ~") {
        return;
    }
    world.sandbox.plan("far", PLAN);
    let refused = world.call("dispatch-spawn", &["far", "--on", "box"]);
    let error = world.sandbox.redactions().apply(&refused.err);
    same(
        error.trim_end(),
        str![[r#"
dispatch-spawn: dispatch cannot run on 'box'
  programs may not run in TOP/far/.local/share/dispatch, which may be mounted noexec
  next: end the place's 'reach' with: env DISPATCH_HOME=DIR, a directory there where they may
"#]],
    );
    assert_eq!(refused.code, Some(69));
    let elsewhere = world.sandbox.top().join("elsewhere");
    world.reach_with(&format!("env DISPATCH_HOME={}", elsewhere.display()));
    world.dispatch("far", "asks");
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Here."]);
    world.until("far", "done");
    assert_eq!(world.lines("answers."), ["Here."]);
}

#[test]
fn place_without_space_is_named_and_its_remedy_works() {
    let world = World::bare();
    // The file system is as large as the file says, or has so few files that none fits.
    let mount = format!(
        "mkdir -p ~/.local && mount -t tmpfs -o \"$(cat {}/size)\" tmpfs ~/.local",
        world.sandbox.top().display()
    );
    if !world.mount(&mount) {
        return;
    }
    let full = ["bytes fit into", "free some space there, and call again"];
    for (size, parts) in [
        ("size=64k", full),
        ("nr_inodes=2", ["cannot create", "DISPATCH_HOME=DIR"]),
        ("ro", ["cannot create", "DISPATCH_HOME=DIR"]),
    ] {
        world.set("size", size);
        let refused = world.call("dispatch-config", &["places"]);
        assert_eq!(refused.code, Some(69), "{size}: {}", refused.out);
        for part in parts {
            assert!(refused.out.contains(part), "{size}, {part}: {}", refused.out);
        }
    }
    world.set("size", "size=1g");
    let said = world.call("dispatch-config", &["places"]);
    assert_eq!(said.code, Some(0), "{}", said.out);
    world.set("size", "ro");
    let elsewhere = world.sandbox.top().join("elsewhere");
    world.reach_with(&format!("env DISPATCH_HOME={}", elsewhere.display()));
    let said = world.call("dispatch-config", &["places"]);
    assert_eq!(said.code, Some(0), "{}", said.out);
}

#[test]
fn unfit_place_is_refused_with_all_obstacles_at_once() {
    let world = World::new();
    world.sandbox.plan("far", PLAN);
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    let text = text.replace("models:\n", "  codex: {}\nmodels:\n  gpt: { backend: codex }\n");
    fs::write(&config, text).expect("written");
    let programs = world.sandbox.top().join("programs");
    fs::create_dir(&programs).expect("made");
    fs::write(programs.join("git"), "#!/bin/sh\nexit 1\n").expect("written");
    fs::set_permissions(programs.join("git"), fs::Permissions::from_mode(0o755)).expect("set");
    let path = std::env::var("PATH").expect("set");
    world.set("environment", &format!("PATH={}:{path}", programs.display()));
    let refused = world.call("dispatch-spawn", &["far", "--model", "gpt", "--on", "box"]);
    assert_eq!(refused.code, Some(69), "{}", refused.err);
    for part in ["'box' cannot run this worker", "git does not work", "codex is not installed"] {
        assert!(refused.err.contains(part), "{part}: {}", refused.err);
    }
    assert!(!world.sandbox.task("far", "record.yaml").exists());
}

#[test]
fn unreachable_place_is_named_and_never_lost() {
    let world = World::new();
    world.dispatch("far", "asks");
    world.until("far", "asking");
    world.set("down", "");
    world.cut();
    world.until("far", "unreachable: box, since ");
    let refused = world.call("dispatch-spawn", &["far", "--resume"]);
    assert_eq!(refused.code, Some(75), "{}", refused.err);
    // The answer waits here, and the worker there.
    world.sandbox.ok("dispatch-monitor", &["--answer", "far/001", "Later."]);
    assert_eq!(world.lines("starts."), ["start"]);
    world.unset("down");
    world.until("far", "done");
    assert_eq!(world.lines("answers."), ["Later."]);
    assert_eq!(world.lines("starts."), ["start"]);
}

#[test]
fn unreachable_place_at_the_dispatch_is_refused() {
    let world = World::new();
    world.set("down", "");
    world.sandbox.plan("far", PLAN);
    let refused = world.call("dispatch-spawn", &["far", "--on", "box"]);
    assert_eq!(refused.code, Some(69), "{}", refused.err);
    assert!(
        refused.err.contains("cannot reach 'box'\n  no route to the place\n"),
        "{}",
        refused.err
    );
}

#[test]
fn stop_is_carried_out_when_the_place_answers() {
    let world = World::new();
    world.dispatch("far", "idle");
    world.until("far", "running");
    world.set("down", "");
    world.cut();
    world.until("far", "unreachable");
    let said = world.call("dispatch-reconcile", &["stop", "far"]).ok();
    assert!(
        said.contains("far is not stopped yet: box has not confirmed it, unreachable"),
        "{said}"
    );
    assert!(!world.left().is_empty(), "the worker still runs there");
    world.unset("down");
    world.until("far", "stopped");
    wait_until("nothing is left there", || world.left().is_empty().then_some(()));
    let said = world.call("dispatch-reconcile", &["stop", "far"]).ok();
    assert_eq!(said, "far stopped\n");
}

#[test]
fn stopped_task_is_resumed_at_its_place_with_another_worker() {
    let world = World::new();
    world.dispatch("far", "idle");
    world.until("far", "running");
    assert_eq!(world.call("dispatch-reconcile", &["stop", "far"]).ok(), "far stopped\n");
    let said = world.call("dispatch-spawn", &["far", "--resume", "--model", "asks"]).ok();
    assert_eq!(said, "far started with asks. Tell the user and stop; news wakes you.\n");
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "This."]);
    world.until("far", "done");
    assert_eq!(world.lines("starts."), ["start"]);
}

#[test]
fn task_of_a_machine_that_is_gone_continues_here() {
    let world = World::new();
    world.dispatch("far", "asks");
    world.until("far", "asking");
    world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    world.set("down", "");
    end_all_of(&world.far);
    world.until("far", "unreachable");
    let by_claude = world
        .sandbox
        .by_claude("", &format!("{} far --resume --on here", binary("dispatch-spawn").display()));
    let refused = by_claude.run();
    assert_eq!(refused.code, Some(64), "a model may not decide this: {}", refused.err);
    let said = world.call("dispatch-spawn", &["far", "--resume", "--on", "here"]).ok();
    assert!(said.contains("\nfar started with asks."), "{said}");
    world.until("far", "asking");
    let show = world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    assert!(show.contains("1. [x] "), "the mirrored plan counts: {show}");
    assert!(show.contains("1 commit, "), "the fetched branch counts: {show}");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Here."]);
    world.until("far", "done");
    assert_eq!(world.lines("answers."), ["Here."]);
}

#[test]
fn abandoned_worker_is_stopped_when_its_machine_returns() {
    let world = World::new();
    let top = world.sandbox.top().display().to_string();
    // At the place, the worker goes on to commit when nobody here hears it any more.
    let worker = fs::read_to_string(world.sandbox.top().join("scripts/asks")).expect("there");
    let late = format!(
        "case $HOME in */far)
    until [ -e {top}/late ]; do sleep 0.01; done
    git commit -q --allow-empty -m Late; : >{top}/committed; exec sleep 1000
esac
answer=$"
    );
    world.sandbox.script("asks", &worker.replacen("answer=$", &late, 1));
    world.dispatch("far", "asks");
    let worked = || world.sandbox.ok("dispatch-reconcile", &["show", "far"]).contains("1 commit, ");
    wait_until("the first commit is here", || worked().then_some(()));
    world.set("down", "");
    world.cut();
    world.until("far", "unreachable");
    let said = world.call("dispatch-spawn", &["far", "--resume", "--on", "here"]).ok();
    let first = world.sandbox.git(&["rev-parse", "dispatch/far"]);
    let expected = format!(
        "box may still run far, and has to stop it as soon as it answers; the worker here continues from {}, the last commit that is here\nfar started",
        &first[..10]
    );
    assert!(said.starts_with(&expected), "{said}");
    let left = "still to be stopped on box, since ";
    let show = || world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    assert!(show().contains(left), "{}", show());
    world.until("far", "asking");
    world.set("late", "");
    wait_until("the abandoned worker has committed", || {
        world.sandbox.top().join("committed").exists().then_some(())
    });
    assert!(!world.left().is_empty(), "it runs there");
    world.unset("down");
    wait_until("nothing is left there", || world.left().is_empty().then_some(()));
    wait_until("the stop is confirmed", || (!show().contains(left)).then_some(()));
    // Back at the place, the task is a new one there: nothing of the abandoned one counts.
    assert_eq!(world.call("dispatch-reconcile", &["stop", "far"]).ok(), "far stopped\n");
    world.unset("committed");
    let said = world.call("dispatch-spawn", &["far", "--resume", "--on", "box"]).ok();
    assert!(said.starts_with("far started with asks."), "{said}");
    wait_until("it commits there again", || {
        world.sandbox.top().join("committed").exists().then_some(())
    });
    assert_eq!(world.lines("starts.").len(), 3);
    assert_eq!(world.call("dispatch-reconcile", &["stop", "far"]).ok(), "far stopped\n");
    let log = world.sandbox.git(&["log", "--format=%s", "dispatch/far"]);
    assert_eq!(log.matches("Late").count(), 1, "{log}");
}

#[test]
fn request_to_stop_an_abandoned_worker_outlives_the_task_and_its_mirror() {
    let world = World::new();
    let abandon = |id: &str| {
        world.dispatch(id, "idle");
        world.until(id, "running");
        world.set("down", "");
        world.cut();
        world.until(id, "unreachable");
        world.call("dispatch-spawn", &[id, "--resume", "--on", "here"]).ok();
        world.until(id, "running");
        assert_eq!(world.call("dispatch-reconcile", &["stop", id]).ok(), format!("{id} stopped\n"));
        let said = world.call("dispatch-reconcile", &["clean", id]).ok();
        assert!(said.starts_with(&format!("removed {id}")), "{said}");
        assert!(!world.left().is_empty(), "it still runs there");
        end_all_of(&world.sandbox.home());
    };
    let is_idle = || all_of(&world.sandbox.home()).is_empty();
    let stopped = |helper: &str, args: &[&str]| {
        // The kernel may free the lock of the killed mirror a moment later.
        wait_until("nothing is left there", || {
            let _ = is_idle() && world.call(helper, args).code.is_some();
            world.left().is_empty().then_some(())
        });
        wait_until("the mirror ends", || is_idle().then_some(()));
    };
    // Any look at the tasks starts the mirror again.
    abandon("one");
    world.unset("down");
    stopped("dispatch-reconcile", &["status"]);
    // A request that is old waits until somebody contacts the place.
    abandon("two");
    let requests = world.sandbox.home().join(".dispatch/state/.places/.box.stops");
    let request = fs::read_dir(&requests).expect("there").next().expect("one").expect("readable");
    age(&request.path(), 25 * 3600);
    world.call("dispatch-reconcile", &["status"]).ok();
    assert!(is_idle(), "no mirror runs for ever");
    world.unset("down");
    stopped("dispatch-config", &["places", "box"]);
    assert_eq!(fs::read_dir(&requests).expect("there").count(), 0);
}

#[test]
fn commits_of_a_place_that_fetches_them_outlive_its_machine() {
    let world = World::new();
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    let with = |key: &str| fs::write(&config, text.replace("box: {", &format!("box: {{ {key},")));
    with("fetch_commit: true").expect("written");
    let said = world.call("dispatch-config", &["check"]);
    let said = said.out + &said.err;
    assert!(said.contains("did you mean 'fetch_commits'?"), "{said}");
    with("fetch_commits: true").expect("written");
    world.dispatch("far", "asks");
    let log = || {
        let list = ["log", "--format=%s", "dispatch/far"];
        world.sandbox.program("git").args(&list).within(world.sandbox.project()).run().out
    };
    wait_until("the commit is here", || (log() == "Work\nBegin\n").then_some(()));
    world.set("down", "");
    end_all_of(&world.far);
    world.until("far", "unreachable");
    let said = world.call("dispatch-spawn", &["far", "--resume", "--on", "here"]).ok();
    let last = world.sandbox.git(&["rev-parse", "dispatch/far"]);
    let begins = format!("the worker here continues from {}, the last commit", &last[..10]);
    assert!(said.contains(&begins), "{said}");
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Here."]);
    world.until("far", "done");

    // A refused move changes nothing.
    world.unset("down");
    let worktrees = world.sandbox.home().join(".dispatch/worktrees");
    let refused = world.call("dispatch-spawn", &["far", "--resume", "--on", "box"]);
    assert_eq!(refused.code, Some(65), "it is done: {}", refused.err);
    assert!(walk(&worktrees).iter().any(|it| it.ends_with("far/.git/HEAD")));
}

#[test]
fn task_that_moves_to_a_place_and_back_keeps_the_commits_of_both() {
    let world = World::new();
    let work =
        "cat >/dev/null; case $HOME in */far) name=There ;; *) name=Here; echo x >draft ;; esac
git commit -q --allow-empty -m $name";
    world.sandbox.script("asks", work);
    world.sandbox.plan("far", PLAN);
    world.call("dispatch-spawn", &["far", "--worktree"]).ok();
    let show = || world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    for (place, log, said) in [
        ("", "Here\nBegin\n", ""),
        ("box", "There\nHere\nBegin\n", "what is not committed stays here, in "),
        ("here", "Here\nThere\nHere\nBegin\n", "far started"),
    ] {
        if !place.is_empty() {
            let resumed = world.call("dispatch-spawn", &["far", "--resume", "--on", place]).ok();
            assert!(resumed.starts_with(said), "{place}: {resumed}");
        }
        let list = ["log", "--format=%s", "dispatch/far"];
        wait_until(&format!("{place}: the commits are here"), || {
            world.until("far", "incomplete");
            show();
            let git = world.sandbox.program("git").args(&list).within(world.sandbox.project());
            (git.run().out == log).then_some(())
        });
    }
    let worktrees = world.sandbox.home().join(".dispatch/worktrees");
    let drafts = walk(&worktrees).into_iter().filter(|it| it.ends_with("draft")).count();
    assert_eq!(drafts, 2, "uncommitted files stay");
}

/// The tasks of a project as `status --json` lists them.
fn states(world: &World) -> Vec<(String, String)> {
    let said = world.call("dispatch-reconcile", &["--json"]).ok();
    let tasks: Vec<Value> = serde_json::from_str(&said).expect("JSON");
    let word = |task: &Value, key: &str| task[key].as_str().expect("a word").to_owned();
    tasks.iter().map(|task| (word(task, "task"), word(task, "state"))).collect()
}

#[test]
fn task_at_a_place_waits_for_its_turn_and_for_other_tasks() {
    let world = World::new();
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    fs::write(&config, text.replace("box: {", "box: { max_workers: 1,")).expect("written");
    world.dispatch("first", "asks");
    world.until("first", "asking");
    world.sandbox.plan("second", PLAN);
    let said = world.call("dispatch-spawn", &["second", "--on", "box"]).ok();
    assert!(said.contains("waits in the queue: max_workers is 1; it starts by itself"), "{said}");
    world.sandbox.plan("third", PLAN);
    let arguments = ["third", "--on", "box", "--after", "second", "--continue-branch"];
    let said = world.call("dispatch-spawn", &arguments).ok();
    assert!(said.contains("waits after second; it starts by itself"), "{said}");
    for id in ["first", "second", "third"] {
        world.until(id, "asking");
        world.sandbox.ok("dispatch-monitor", &["--answer", id, id]);
        world.until(id, "done");
    }
    assert_eq!(world.lines("starts.").len(), 3);
    let log = world.sandbox.git(&["log", "--format=%s", "dispatch/second"]);
    assert_eq!(log, "Work\nBegin\n", "the second has its own");
    let begun = world.sandbox.read("third", "record.yaml");
    let end = world.sandbox.git(&["rev-parse", "dispatch/second"]);
    assert!(begun.contains(&format!("base: {}", end.trim())), "{begun}");
}

#[test]
fn many_tasks_on_two_places_cost_one_process_each_and_are_told_once() {
    let world = World::new();
    let (top, other) = (world.sandbox.top().to_owned(), world.sandbox.top().join("other"));
    helpers::install(&other.join(".local/share/dispatch"));
    let script = fs::read_to_string(top.join("scripts/reach")).expect("there");
    let [far, own] = [&world.far, &other].map(|it| it.display().to_string());
    let reach = world.sandbox.script("reach-other", &script.replace(&far, &own));
    let work = "cat >/dev/null
echo + >>TOP/load.${HOME##*/}; echo start >>TOP/starts.${DISPATCH_TASK_DIR##*/}
until [ -e TOP/go ]; do sleep 0.01; done
echo work >file && git add file && git commit -qm Work
HELPER tick 1; HELPER tick 2; echo - >>TOP/load.${HOME##*/}; HELPER finish Made.";
    let work = work.replace("TOP", &top.display().to_string());
    let helper = binary("dispatch-worker").display().to_string();
    let work = world.sandbox.script("work", &work.replace("HELPER", &helper));
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    let backend = format!(
        "  work: {{ command: {work}, prompt: stdin }}\nmodels:\n  work: {{ backend: work }}\n"
    );
    let places = format!("other: {{ max_workers: 3, reach: {reach} }}\n  box: {{ max_workers: 3,");
    let text = text.replace("models:\n", &backend).replace("box: {", &places);
    fs::write(&config, text).expect("written");
    let mirrors = || {
        let line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_mirror = |pid: &u32| String::from_utf8_lossy(&line(pid)).contains("--mirror");
        let all: Vec<u32> = all_of(&world.sandbox.home()).into_iter().filter(is_mirror).collect();
        // A program that a mirror is about to run has the mirror's words until then.
        let is_child = |pid: &u32| {
            field(*pid, 4).is_some_and(|it| all.iter().any(|all| all.to_string() == it))
        };
        all.iter().filter(|it| !is_child(it)).count()
    };
    let tasks = std::env::var("PLACE_TASKS").ok().and_then(|it| it.parse().ok()).unwrap_or(12);
    let ids: Vec<String> = (0..tasks).map(|number| format!("task-{number:03}")).collect();
    let place = |number: usize| ["box", "other"][number % 2];
    for (number, id) in ids.iter().enumerate() {
        world.sandbox.plan(id, PLAN);
        world.call("dispatch-spawn", &[id, "--model", "work", "--on", place(number)]).ok();
        assert_eq!(mirrors(), (number + 1).min(2), "one process a place");
    }
    wait_until("three work at each place", || (world.lines("load.").len() == 6).then_some(()));
    world.set("go", "");
    let mut told = Vec::new();
    let mut hear = || {
        assert!(mirrors() <= 2, "one process a place");
        let said = world.call("dispatch-monitor", &["--timeout", "1ms"]).out;
        told.extend(said.lines().filter(|it| it.starts_with('#')).map(str::to_owned));
        told.clone()
    };
    wait_until("all tasks are told", || (hear().len() >= ids.len()).then_some(()));
    wait_until("the mirrors end", || (mirrors() == 0).then_some(()));
    let told = hear();
    assert_eq!(told.len(), ids.len(), "{told:?}");
    for (number, id) in ids.iter().enumerate() {
        let end = format!("{id} on {} done (2/2", place(number));
        assert_eq!(told.iter().filter(|it| it.contains(&end)).count(), 1, "{id}: {told:?}");
        assert_eq!(world.lines(&format!("starts.{id}-")), ["start"], "{id}");
        let log = world.sandbox.git(&["log", "--format=%s", &format!("dispatch/{id}")]);
        assert_eq!(log, "Work\nBegin\n", "{id}");
    }
    for place in ["load.far", "load.other"] {
        let (mut at_once, mut peak) = (0, 0);
        for line in world.lines(place) {
            at_once += if line == "+" { 1 } else { -1 };
            peak = peak.max(at_once);
        }
        assert_eq!(peak, 3, "workers at once: {place}");
    }
    end_all_of(&other);
}

#[test]
fn check_at_a_place_decides_there_and_sends_the_worker_back() {
    let world = World::new();
    world.sandbox.plan("far", PLAN);
    let check = format!("test -e {}/fixed", world.sandbox.top().display());
    let said = world
        .call("dispatch-spawn", &["far", "--on", "box", "--access", "full", "--check", &check]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Once."]);
    wait_until("the check failed and the worker asks again", || {
        (world.lines("starts.").len() == 2 && world.sandbox.state("far").starts_with("asking"))
            .then_some(())
    });
    world.set("fixed", "");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Twice."]);
    world.until("far", "done");
    let show = world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    assert!(show.contains("on box, heard of at"), "{show}");
    let news = world.sandbox.ok("dispatch-monitor", &[]);
    assert!(news.contains("done (2/2") && news.contains(", checked"), "{news}");
}

#[test]
fn note_reaches_the_worker_at_its_place_once() {
    let world = World::new();
    world.dispatch("far", "asks");
    world.until("far", "asking");
    world.set("down", "");
    world.cut();
    world.sandbox.ok("dispatch-reconcile", &["note", "far", "Mind the gap."]);
    world.unset("down");
    let far_notes = || {
        let found = walk(&world.far.join(".dispatch/state"));
        found
            .into_iter()
            .filter(|it| it.parent().is_some_and(|it| it.ends_with("notes")))
            .collect::<Vec<_>>()
    };
    wait_until("the note is there", || (far_notes().len() == 1).then_some(()));
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Yes."]);
    world.until("far", "done");
    assert_eq!(far_notes().len(), 1);
    let plan = world.sandbox.read("far", "plan.md");
    assert_eq!(plan.matches("Mind the gap.").count(), 1, "{plan}");
}

/// All files below a directory.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok);
    entries.filter(|it| it.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

#[test]
fn mirror_that_dies_at_any_step_is_replaced() {
    for point in ["mirror:locked", "mirror:sent", "mirror:files", "mirror:fetched", "place:entered"]
    {
        let world = World::new();
        world.sandbox.plan("far", PLAN);
        let spawn = world.sandbox.call("dispatch-spawn", &["far", "--on", "box"]);
        let spawn = spawn.crash_at(point).env("DISPATCH_RECONNECT_MS", "50").start();
        wait_until(&format!("{point}: the worker asks"), || {
            let states = states(&world);
            states.iter().any(|(_, state)| state == "asking").then_some(())
        });
        world.sandbox.ok("dispatch-monitor", &["--answer", "far", point]);
        wait_until(&format!("{point}: the task is done"), || {
            (states(&world)[0].1 == "done").then_some(())
        });
        assert_eq!(world.lines("starts."), ["start"], "{point}");
        assert_eq!(world.lines("answers."), [point]);
        drop(spawn);
    }
}

#[test]
fn link_that_breaks_after_any_number_of_bytes_loses_nothing() {
    let world = World::new();
    let mut cuts: Vec<usize> = (0..40).map(|step| step * step * 5).collect();
    cuts.extend([3000, 5000, 8000]);
    // The look before the dispatch must succeed, so the cuts begin after it.
    world.sandbox.plan("far", PLAN);
    let text: Vec<String> = cuts.iter().map(ToString::to_string).collect();
    world.set("cuts", &format!("-\n{}\n", text.join("\n")));
    let spawn = world.sandbox.call("dispatch-spawn", &["far", "--on", "box"]);
    let said = spawn.env("DISPATCH_RECONNECT_MS", "5").run();
    assert_eq!(said.code, Some(0), "{}", said.err);
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "After all."]);
    world.until("far", "done");
    assert_eq!(world.lines("starts."), ["start"]);
    assert_eq!(world.lines("answers."), ["After all."]);
    let reached = world.lines("reached").len();
    assert!(reached > 15, "{reached} connections were made");
}

/// The begin of each script of a far side: at the steps that the test wants, the script waits.
const GATE: &str = "gate() { [ -e TOP/want.$1 ] || return 0
: >TOP/at.$1; until [ -e TOP/go.$1 ]; do sleep 0.01; done; }
";

/// A task whose link is cut while the program is sent, the code is sent, the worker works, asks, waits for
/// the answer, and ends.
fn cut_at_each_step(world: &World, place: &str, cut: &dyn Fn(), mend: &dyn Fn()) {
    let top = world.sandbox.top().display().to_string();
    let gated = |text: &str| format!("{GATE}{text}").replace("TOP", &top);
    let worker = WORKER
        .replace("answer=$", "gate question\nanswer=$")
        .replace("HELPER finish", "gate end\nHELPER finish")
        .replace("HELPER", &binary("dispatch-worker").display().to_string());
    world.sandbox.script("asks", &gated(&worker));
    let stand_ins = [
        ("head", "gate program; PATH=${PATH#*:}; exec head \"$@\""),
        ("git", "[ \"$1\" != receive-pack ] || gate code; PATH=${PATH#*:}; exec git \"$@\""),
    ];
    stand_ins.iter().for_each(|(name, text)| world.program(name, &gated(text)));
    let is_at = |step: &str| world.sandbox.top().join(format!("at.{step}")).exists();
    let cut_at = |step: &str| {
        wait_until(&format!("the far side is at '{step}'"), || is_at(step).then_some(()));
        cut();
        world.set(&format!("go.{step}"), "");
    };
    for step in ["program", "code", "question", "end"] {
        world.set(&format!("want.{step}"), "");
    }
    // A busy machine may take a slow link for a dead one, and refuse the dispatch.
    let dispatch_until = |step: &str| {
        let spawn = || world.sandbox.call("dispatch-spawn", &["far", "--on", place]);
        let start = || spawn().env("DISPATCH_RECONNECT_MS", "50").start();
        let mut call = start();
        wait_until(&format!("a dispatch is at '{step}'"), || {
            if call.has_ended() && !world.sandbox.task("far", "record.yaml").exists() {
                call = start();
            }
            is_at(step).then_some(())
        });
        call
    };

    world.sandbox.plan("far", PLAN);
    let refused = dispatch_until("program");
    cut_at("program");
    let refused = refused.end();
    assert_eq!(refused.code, Some(69), "{}", refused.err);
    assert!(refused.err.contains(&format!("cannot reach '{place}'")), "{}", refused.err);
    mend();

    let started = dispatch_until("code");
    cut_at("code");
    world.until("far", "queued: for ");
    mend();
    drop(started);

    cut_at("question");
    world.until("far", "unreachable: ");
    let asked = |it: &PathBuf| it.ends_with("ipc/001.question");
    wait_until("the worker asks there", || walk(&world.far).iter().any(asked).then_some(()));
    mend();
    world.until("far", "asking");

    cut();
    world.until("far", "unreachable: ");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far/001", "After all."]);
    assert!(world.lines("answers.").is_empty());
    mend();

    cut_at("end");
    // Shells of the earlier cuts may not know yet that nobody hears them.
    let supervised = || world.left().iter().any(|it| it.contains("--supervise"));
    wait_until("the task ends there", || (!supervised()).then_some(()));
    world.until("far", "unreachable: ");
    mend();
    world.until("far", "done");
    wait_until("the branch is merged", || {
        world.call("dispatch-reconcile", &["merge", "far"]).code.filter(|code| *code == 0)
    });
    assert_eq!(world.sandbox.git(&["log", "--format=%s"]), "Work\nBegin\n");
    assert_eq!(world.lines("starts."), ["start"]);
    assert_eq!(world.lines("answers."), ["After all."]);
}

#[test]
fn link_that_is_killed_at_each_step_loses_nothing() {
    let world = World::bare();
    let path = std::env::var("PATH").expect("set");
    world.set("environment", &format!("PATH={}/programs:{path}", world.sandbox.top().display()));
    let cut = || {
        world.set("down", "");
        world.cut();
    };
    cut_at_each_step(&world, "box", &cut, &|| world.unset("down"));
}

/// Two network namespaces and the link between them, which end with their processes.
struct Network {
    near: std::process::Child,
    far: std::process::Child,
}

impl Drop for Network {
    fn drop(&mut self) {
        for end in [&mut self.near, &mut self.far] {
            let _ = end.kill();
            let _ = end.wait();
        }
    }
}

impl Network {
    /// The address of the far end. No address of this range is anybody's.
    const ADDRESS: &str = "192.0.2.2";

    /// `None` where this user may make no network namespaces, or without iproute2.
    fn new() -> Option<Self> {
        let run = |program: &str, args: &[&str]| {
            let ran = std::process::Command::new(program).args(args).output();
            ran.is_ok_and(|it| it.status.success())
        };
        if !run("unshare", &["-n", "true"]) || !run("ip", &["-V"]) {
            eprintln!("SKIPPED: there is no ip, or this user may make no network namespace");
            return None;
        }
        let hold = || {
            let mut hold = std::process::Command::new("unshare");
            let held = hold.args(["-n", "sleep", "1000"]).spawn().expect("unshare");
            let own = fs::read_link("/proc/self/ns/net").expect("readable");
            let of_it = format!("/proc/{}/ns/net", held.id());
            wait_until("the namespace is made", || {
                fs::read_link(&of_it).ok().filter(|it| *it != own).map(drop)
            });
            held
        };
        let network = Self { near: hold(), far: hold() };
        let far = network.far.id();
        for (end, make) in [
            (&network.near, format!("ip link add near type veth peer name far netns {far}")),
            (&network.near, "ip address add 192.0.2.1/30 dev near && ip link set near up".into()),
            (
                &network.far,
                format!("ip address add {}/30 dev far && ip link set far up", Self::ADDRESS),
            ),
        ] {
            let made = Self::within(end, "sh").args(["-c", &make]).output().expect("nsenter");
            assert!(made.status.success(), "{make}: {}", String::from_utf8_lossy(&made.stderr));
        }
        Some(network)
    }

    /// A program in the network of one end.
    fn within(end: &std::process::Child, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        command.args(["-t", &end.id().to_string(), "-n", program]);
        command
    }

    /// Takes the link up or down at its far end, so that nothing here is told.
    fn set(&self, state: &str) {
        let set = Self::within(&self.far, "ip").args(["link", "set", "far", state]).status();
        assert!(set.expect("ip").success());
    }
}

#[test]
fn network_that_goes_down_at_each_step_loses_nothing() {
    let Some(network) = Network::new() else { return };
    let Some((world, ssh)) = behind_ssh(World::bare(), Some(&network)) else { return };
    cut_at_each_step(&world, "gpu", &|| network.set("down"), &|| network.set("up"));
    drop(world);
    drop(ssh);
}

/// A server of ssh on loopback, and a user of its own for the test.
struct Ssh {
    server: std::process::Child,
    user: String,
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        // The user's processes have ended with the world, which is dropped first; a session whose link is dead
        // may still be about to end.
        let _ = std::process::Command::new("userdel").args(["-f", &self.user]).output();
    }
}

/// A place behind ssh, whose user has another home, and settings of a person that must not count. `None`
/// where there is no server of ssh, or no right to make a user. In a network of its own, the server is
/// found dead after three seconds, and the stand-ins of the test come first.
fn behind_ssh(world: World, network: Option<&Network>) -> Option<(World, Ssh)> {
    let run = |program: &str, args: &[&str]| {
        let ran = std::process::Command::new(program).args(args).output();
        ran.is_ok_and(|it| it.status.success())
    };
    let user =
        format!("dispatch-{}{}", std::process::id(), if network.is_some() { "n" } else { "" });
    let (top, far) = (world.sandbox.top().to_owned(), world.far.clone());
    let far_text = far.display().to_string();
    let sshd = Path::new("/usr/sbin/sshd");
    let made = sshd.is_file()
        && run("useradd", &["-M", "-d", &far_text, "-s", "/bin/sh", "-p", "*", &user]);
    if !made {
        eprintln!("SKIPPED: there is no sshd, or this user may make no other one");
        return None;
    }
    fs::create_dir_all("/run/sshd").expect("made");
    let key = |name: &str| {
        let path = top.join(name).display().to_string();
        assert!(run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path]), "{path}");
        path
    };
    let (host, own) = (key("host"), key("own"));
    let free = || Some(std::net::TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port());
    let port = if network.is_some() { 2222 } else { free().expect("free") };
    let address = network.map_or("127.0.0.1", |_| Network::ADDRESS);
    fs::create_dir_all(far.join(".ssh")).expect("made");
    fs::write(far.join(".ssh/rc"), "echo Welcome to this machine\n").expect("written");
    fs::set_permissions(&top, fs::Permissions::from_mode(0o777)).expect("set");
    assert!(run("chown", &["-R", &user, &far_text]));
    let sshd_text = sshd.to_str().expect("text");
    let mut server = match network {
        Some(network) => Network::within(&network.far, sshd_text),
        None => std::process::Command::new(sshd),
    };
    server.args(["-D", "-f", "/dev/null", "-p", &port.to_string(), "-h", &host]);
    let (keys, listen) =
        (format!("AuthorizedKeysFile={own}.pub"), format!("ListenAddress={address}"));
    let path = std::env::var("PATH").expect("set");
    let mut environment = "SetEnv=DISPATCH_FAIL=callers".to_owned();
    if network.is_some() {
        environment += &format!(" PATH={}/programs:{path}", top.display());
    }
    let options = [&*listen, "StrictModes=no", "PidFile=none", "UsePAM=no", &keys, &environment];
    server.args(options.iter().flat_map(|it| ["-o", it]));
    let server = server.stderr(std::process::Stdio::null()).spawn().expect("sshd");
    let ssh = Ssh { server, user: user.clone() };
    let top = top.display();
    let settings = format!(
        "Host gpu\n HostName {address}\n Port {port}\n User {user}\n IdentityFile {own}\n\
         StrictHostKeyChecking no\n UserKnownHostsFile {top}/known\n LogLevel ERROR\n"
    );
    // Each of these breaks a supervised connection, or gives the far side something of this one.
    let bad = format!(
        " ControlMaster auto\n ControlPath {top}/control\n ControlPersist 60\n LocalForward {port} 127.0.0.1:1\n\
         ExitOnForwardFailure yes\n ForwardAgent yes\n PermitLocalCommand yes\n LocalCommand touch {top}/ran\n\
         RemoteCommand cat /etc/hostname\n RequestTTY force\n"
    );
    let alive =
        " BatchMode yes\n ConnectTimeout 2\n ServerAliveInterval 1\n ServerAliveCountMax 2\n";
    world.set("ssh_config", &format!("{settings}{}", if network.is_some() { alive } else { &bad }));
    // Another program's name before that of ssh keeps the options of dispatch, whose limits are longer, away.
    let enter = network.map_or(String::new(), |it| format!("nsenter -t {} -n ", it.near.id()));
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    let text = format!("{text}  gpu: {{ reach: {enter}ssh -F {top}/ssh_config gpu }}\n");
    fs::write(&config, text).expect("written");
    let reach = || match network {
        // A line of the kernel's table with this address and the state of a listener.
        Some(_) => fs::read_to_string(format!("/proc/{}/net/tcp", ssh.server.id()))
            .is_ok_and(|it| it.contains("020200C0:08AE 00000000:0000 0A")),
        None => std::net::TcpStream::connect((address, port)).is_ok(),
    };
    wait_until("sshd answers", || reach().then_some(()));
    Some((world, ssh))
}

#[test]
fn task_behind_ssh_has_another_user_and_gets_nothing_of_this_one() {
    let Some((world, ssh)) = behind_ssh(World::new(), None) else { return };
    let worker = fs::read_to_string(world.sandbox.top().join("scripts/asks")).expect("there");
    let top = world.sandbox.top().display();
    let worker = worker.replacen(
        "cat >/dev/null",
        &format!("cat >/dev/null; id -un >{top}/who; env >{top}/env"),
        1,
    );
    fs::write(world.sandbox.top().join("scripts/asks"), worker).expect("written");
    world.sandbox.plan("far", PLAN);
    let spawn = world.sandbox.call("dispatch-spawn", &["far", "--on", "gpu"]);
    let said = spawn.env("SSH_AUTH_SOCK", "/agent").env("SECRET_TOKEN", "abc").run().ok();
    assert!(said.starts_with("far (Title, 2 items) started with asks."), "{said}");
    world.until("far", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "far", "Over ssh."]);
    world.until("far", "done");
    wait_until("the branch is merged", || {
        world.call("dispatch-reconcile", &["merge", "far"]).code.filter(|code| *code == 0)
    });
    assert_eq!(world.lines("who"), std::slice::from_ref(&ssh.user));
    let environment = world.lines("env");
    let leaked = |it: &&String| it.starts_with("SSH_AUTH_SOCK") || it.starts_with("SECRET_TOKEN");
    assert!(environment.iter().find(leaked).is_none(), "{environment:?}");
    for name in ["control", "ran"] {
        assert!(
            !world.sandbox.top().join(name).exists(),
            "{name}: a setting of the person counted"
        );
    }
    assert_eq!(world.lines("answers."), ["Over ssh."]);
    drop(world);
}

/// A Slurm of one node with two processors on loopback. The node's processes have numbers of their own, as
/// those of another machine have.
struct Slurm {
    home: PathBuf,
    daemons: std::cell::RefCell<Vec<std::process::Child>>,
}

impl Drop for Slurm {
    fn drop(&mut self) {
        end_all_of(&self.home);
        self.daemons.get_mut().iter_mut().for_each(|it| drop(it.wait()));
    }
}

impl Slurm {
    fn command(&self, program: &str) -> std::process::Command {
        let mut command = std::process::Command::new(program);
        command.env("SLURM_CONF", self.home.join("slurm.conf")).env("HOME", &self.home);
        command.stdin(std::process::Stdio::null());
        command
    }

    fn start(&self, program: &str, args: &[&str]) {
        let log = fs::File::create(self.home.join(program.replace('/', "-"))).expect("made");
        let mut command = self.command(program);
        command.args(args).stdout(log.try_clone().expect("a log")).stderr(log);
        self.daemons.borrow_mut().push(command.spawn().expect("a daemon"));
    }

    fn ask(&self, program: &str, args: &[&str]) -> Option<String> {
        let ran = self.command(program).args(args).output().expect("a program of Slurm");
        ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
    }

    /// The number of the only job with this state.
    fn job(&self, state: &str) -> String {
        wait_until(&format!("a job is {state}"), || {
            let said = self.ask("squeue", &["-h", "-t", state, "-o", "%i"])?;
            Some(said.trim().to_owned()).filter(|it| !it.is_empty())
        })
    }

    /// The variables of the place's shells.
    fn environment(&self) -> String {
        let config = self.home.join("slurm.conf");
        format!("SLURM_CONF={} DISPATCH_JOB_LOOK_MS=200 DISPATCH_JOB_MS=0", config.display())
    }

    fn cancel(&self, args: &[&str]) {
        self.ask("scancel", args).expect("cancelled");
    }
}

/// A place whose supervisors are submitted by this command. `None` where there is no Slurm, or no right to
/// run one.
fn behind_slurm(start: &str) -> Option<(World, Slurm)> {
    if !Path::new("/usr/sbin/slurmctld").is_file() || !nix::unistd::getuid().is_root() {
        eprintln!("SKIPPED: there is no Slurm, or this user is not root");
        return None;
    }
    let world = World::new();
    let slurm = Slurm { home: world.sandbox.top().join("slurm"), daemons: Default::default() };
    for name in ["", "state", "spool"] {
        fs::create_dir_all(slurm.home.join(name)).expect("made");
    }
    let (home, name) = (slurm.home.display().to_string(), nix::unistd::gethostname());
    let name = name.expect("a name").to_string_lossy().split('.').next().map(str::to_owned);
    let name = name.expect("a name");
    let key = slurm.home.join("key");
    fs::write(&key, format!("{:064}", std::process::id())).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("set");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("free");
    let listeners = [free(), free()];
    let [port, node_port] = listeners.map(|it| it.local_addr().expect("known").port());
    let config = format!(
        "ClusterName=test\nSlurmctldHost={name}(127.0.0.1)\nSlurmctldPort={port}\nSlurmdPort={node_port}\n\
         SlurmUser=root\nAuthInfo=socket={home}/munge\nStateSaveLocation={home}/state\n\
         SlurmdSpoolDir={home}/spool\nSlurmctldPidFile={home}/slurmctld.pid\nSlurmdPidFile={home}/slurmd.pid\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\n\
         SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\n\
         SlurmdParameters=config_overrides\nSchedulerParameters=batch_sched_delay=0,sched_min_interval=1000\n\
         NodeName={name} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN\nPartitionName=main Nodes={name} Default=YES State=UP\n"
    );
    fs::write(slurm.home.join("slurm.conf"), config).expect("written");
    let files = ["socket=munge", "key-file=key", "log-file=log", "pid-file=pid", "seed-file=seed"];
    let files = files.map(|it| format!("--{}", it.replace('=', &format!("={home}/"))));
    let mut munge = vec!["--foreground", "--force"];
    munge.extend(files.iter().map(String::as_str));
    slurm.start("/usr/sbin/munged", &munge);
    wait_until("munged answers", || slurm.home.join("munge").exists().then_some(()));
    slurm.start("/usr/sbin/slurmctld", &["-D"]);
    slurm.start("unshare", &["--pid", "--fork", "--mount-proc", "/usr/sbin/slurmd", "-D"]);
    wait_until("the node is there", || {
        slurm.ask("sinfo", &["-h", "-t", "idle"]).filter(|said| said.contains(&name))
    });
    world.set("environment", &slurm.environment());
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    fs::write(&config, text.replace("box: {", &format!("box: {{ start: {start},")))
        .expect("written");
    Some((world, slurm))
}

#[test]
fn tasks_that_are_jobs_are_asked_answered_and_merged_side_by_side() {
    let Some((world, _slurm)) = behind_slurm("sbatch --time=60") else { return };
    for id in ["one", "two"] {
        world.dispatch(id, "asks");
    }
    for id in ["one", "two"] {
        world.until(id, "asking");
    }
    world.set("down", "");
    world.cut();
    world.until("one", "unreachable");
    let own = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let is_here =
        |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|it| it == own);
    wait_until("only the jobs are left there", || {
        let all = all_of(&world.far);
        (!all.is_empty() && !all.iter().any(is_here)).then_some(())
    });
    // A lock that the network does not carry to the place's machine looks free.
    let locks = walk(&world.far.join(".dispatch/state"));
    for lock in locks.into_iter().filter(|it| it.ends_with("run.lock")) {
        let copy = lock.with_extension("copy");
        fs::copy(&lock, &copy).expect("copied");
        fs::rename(copy, lock).expect("renamed");
    }
    world.unset("down");
    for id in ["one", "two"] {
        world.until(id, "asking");
        world.sandbox.ok("dispatch-monitor", &["--answer", id, id]);
        world.until(id, "done");
        wait_until("the branch is there", || {
            world.call("dispatch-reconcile", &["merge", id]).code.filter(|code| *code == 0)
        });
    }
    assert_eq!(world.lines("starts."), ["start", "start"]);
    wait_until("nothing is left there", || all_of(&world.far).is_empty().then_some(()));
}

#[test]
fn queued_job_is_shown_and_stopped_or_begins_when_the_node_is_free() {
    let Some((world, slurm)) = behind_slurm("sbatch --time=60 --cpus-per-task=2") else { return };
    world.dispatch("first", "idle");
    world.until("first", "running");
    let said = world.dispatch("second", "asks");
    assert!(said.contains("waits as \"Slurm job 2 ("), "{said}");
    world.until("second", "queued: as \"Slurm job 2 (Resources)\"");
    world.dispatch("third", "asks");
    world.until("third", "queued: as \"Slurm job 3 (Priority)\"");
    assert_eq!(world.call("dispatch-reconcile", &["stop", "third"]).ok(), "third stopped\n");
    assert_eq!(slurm.job("CANCELLED"), "3");
    assert_eq!(world.call("dispatch-reconcile", &["stop", "first"]).ok(), "first stopped\n");
    world.until("second", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "second", "Now."]);
    world.until("second", "done");
    assert_eq!(world.lines("starts."), ["start"]);
}

#[test]
fn job_that_an_administrator_ends_is_reported_and_can_be_resumed() {
    let Some((world, slurm)) = behind_slurm("sbatch --time=60 --cpus-per-task=2") else { return };
    world.dispatch("first", "idle");
    world.until("first", "running");
    world.dispatch("second", "asks");
    world.until("second", "queued: as \"Slurm job 2");
    slurm.cancel(&["2"]);
    world.until("second", "failed: could not start: Slurm job 2 ended (CANCELLED)");
    slurm.cancel(&["1"]);
    world.until("first", "failed: \"Slurm job 1 ended (CANCELLED)\"");
    let said = world.call("dispatch-spawn", &["second", "--resume"]).ok();
    assert!(said.starts_with("second "), "{said}");
    world.until("second", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "second", "Now."]);
    world.until("second", "done");
    assert_eq!(world.lines("starts."), ["start"]);
    // A check is part of the job.
    world.sandbox.plan("checked", PLAN);
    let check = format!("touch {}/checking; exec sleep 1000", world.sandbox.top().display());
    let arguments = ["checked", "--on", "box", "--access", "full", "--check", &check];
    world.call("dispatch-spawn", &arguments).ok();
    world.until("checked", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "checked", "Yes."]);
    wait_until("the check runs", || world.sandbox.top().join("checking").exists().then_some(()));
    slurm.cancel(&["4"]);
    world.until("checked", "failed: check: touch ");
    let state = world.sandbox.state("checked");
    assert!(state.ends_with(": \"Slurm job 4 ended (CANCELLED)\""), "{state}");
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    fs::write(&config, text.replace("--time=60", "--partition=none")).expect("written");
    world.dispatch("last", "asks");
    world.until("last", "failed: could not start: sbatch: error: Batch job submission failed: ");
    let said = slurm.ask("squeue", &["-h", "-t", "all", "-o", "%i"]).expect("the jobs");
    assert_eq!(said.lines().count(), 4, "{said}");
}

/// A Claude Code that names its session and works until it is ended, and once resumed finishes.
const SESSIONS: &str = "case $* in --version) echo '2.1.332 (Claude Code)'; exit ;;
*stream-json*) ;; *) exit ;; esac
echo '{\"type\":\"system\",\"subtype\":\"init\",\"session_id\":\"known\"}'
case $* in *'--resume known'*) ;; *) echo new >>TOP/calls; exec sleep 1000 ;; esac
echo resumed >>TOP/calls
HELPER tick 1; HELPER tick 2; HELPER finish Resumed.
";

#[test]
fn job_whose_time_is_over_is_followed_by_one_in_the_same_session() {
    let Some((world, slurm)) = behind_slurm("sbatch --time=60") else { return };
    let top = world.sandbox.top().display().to_string();
    let helper = binary("dispatch-worker").display().to_string();
    let claude = SESSIONS.replace("TOP", &top).replace("HELPER", &helper);
    let program = world.far.join(".local/bin/claude");
    fs::create_dir_all(world.far.join(".local/bin")).expect("made");
    fs::write(&program, format!("#!/bin/sh\n{claude}")).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    let backend = "  claude: { access: full }\nmodels:\n  opus: { backend: claude }\n";
    let text = text.replace("models:\n", backend);
    fs::write(&config, text).expect("written");
    world.dispatch("far", "opus");
    world.until("far", "running");
    wait_until("the worker runs", || (world.lines("calls").len() == 1).then_some(()));
    let job = slurm.job("RUNNING");
    // As the announcement does, this reaches the supervisor alone.
    slurm.cancel(&["--signal=USR1", "--batch", &job]);
    world.until("far", "done");
    assert_eq!(world.lines("calls"), ["new", "resumed"]);
    let show = world.sandbox.ok("dispatch-reconcile", &["show", "far"]);
    assert!(show.contains("the time of its job was over"), "{show}");
    // The next job runs the checks that this one could not end.
    world.sandbox.plan("checked", PLAN);
    let check = format!("[ -e {top}/begun ] || {{ touch {top}/begun; exec sleep 1000; }}");
    let arguments = ["checked", "--on", "box", "--access", "full", "--check", &check];
    world.call("dispatch-spawn", &arguments).ok();
    world.until("checked", "asking");
    world.sandbox.ok("dispatch-monitor", &["--answer", "checked", "Yes."]);
    wait_until("the check runs", || world.sandbox.top().join("begun").exists().then_some(()));
    slurm.cancel(&["--signal=USR1", "--batch", "3"]);
    world.until("checked", "done");
    assert_eq!(world.lines("starts."), ["start"]);
    // A job whose time is over at once would be followed by one after the other.
    wait_until("the mirror has ended", || all_of(&world.sandbox.home()).is_empty().then_some(()));
    world.set("environment", &slurm.environment().replace("DISPATCH_JOB_MS=0", ""));
    world.dispatch("short", "opus");
    wait_until("the worker runs", || (world.lines("calls").len() == 3).then_some(()));
    slurm.cancel(&["--signal=USR1", "--batch", "5"]);
    world.until("short", "failed: the time of its job was over; see 'start' of its place");
    let said = slurm.ask("squeue", &["-h", "-t", "all", "-o", "%i"]).expect("the jobs");
    assert_eq!(said.lines().count(), 5, "{said}");
}

#[test]
fn submission_that_dies_at_any_step_is_one_worker() {
    let Some((world, slurm)) = behind_slurm("sbatch --time=60") else { return };
    for (id, point) in [("one", "job:named"), ("two", "job:submitted")] {
        world.set("environment", &format!("{} DISPATCH_CRASH_AT={point}", slurm.environment()));
        world.sandbox.plan(id, PLAN);
        let spawn = world.sandbox.call("dispatch-spawn", &[id, "--on", "box"]);
        let spawn = spawn.env("DISPATCH_RECONNECT_MS", "50").start();
        wait_until(&format!("{point}: the submission began"), || {
            let files = walk(&world.far.join(".dispatch/state"));
            let own = format!("/{id}-");
            files
                .iter()
                .find(|it| it.ends_with("job") && it.display().to_string().contains(&own))
                .map(drop)
        });
        world.set("environment", &slurm.environment());
        world.cut();
        wait_until(&format!("{point}: the worker asks"), || {
            world.sandbox.state(id).starts_with("asking").then_some(())
        });
        drop(spawn);
    }
    // Another job with the same script is not the one that works on the task.
    let files = walk(&world.far.join(".dispatch/state"));
    let script = files.iter().find(|it| it.ends_with("job.sh")).expect("a script");
    let script = script.to_str().expect("text");
    slurm.ask("sbatch", &["--output=/dev/null", script]).expect("submitted");
    for id in ["one", "two"] {
        world.sandbox.ok("dispatch-monitor", &["--answer", id, id]);
        world.until(id, "done");
    }
    wait_until("all jobs have ended", || {
        let said = slurm.ask("squeue", &["-h", "-t", "COMPLETED", "-o", "%i"])?;
        (said.lines().count() == 3).then_some(())
    });
    assert_eq!(world.lines("starts."), ["start", "start"]);
}

#[test]
fn place_without_slurm_is_named_with_the_remedy() {
    let world = World::new();
    let config = world.sandbox.home().join(".dispatch/config.yaml");
    let text = fs::read_to_string(&config).expect("there");
    fs::write(&config, text.replace("box: {", "box: { start: /nowhere/sbatch,")).expect("written");
    let said = world.call("dispatch-config", &["places"]);
    let expected = "sbatch is not installed: load Slurm's module for every shell there, or write the path of sbatch in 'start'";
    assert!(said.out.contains(expected), "{}{}", said.out, said.err);
    world.sandbox.plan("far", PLAN);
    let refused = world.call("dispatch-spawn", &["far", "--on", "box"]);
    assert_eq!(refused.code, Some(69), "{}", refused.err);
    assert!(refused.err.contains(expected), "{}", refused.err);
}

/// A far side that says what a test wants: it stands in the place of the helper there.
fn hostile(world: &World, facts: &[String]) {
    let directory = world.far.join(".local/share/dispatch").join(VERSION.as_str());
    fs::create_dir_all(&directory).expect("made");
    fs::write(directory.join("dispatch"), "x").expect("written");
    let top = world.sandbox.top().display();
    let script = format!(
        "#!/bin/sh
case $1 in --sources) echo '{version}'; exit ;; esac
say() {{ printf '%s\\n' \"$1\"; }}
while read -r line; do case $line in
    *'{{\"check\":'*) say '[{{\"checked\":[[true,\"fine\"]]}},[]]' ;;
    *'{{\"repository\":'*) key=${{line#*'{{\"repository\":[\"'}}; key=${{key%%'\"'*}}
        git init -q --bare \"$2/$key.git\"; say \"[{{\\\"done\\\":[\\\"$key\\\",\\\"repository\\\",null]}},[]]\" ;;
    *'{{\"start\":'*) id=${{line#*'\"id\":\"'}}; id=${{id%%'\"'*}}
        say \"[{{\\\"done\\\":[\\\"$id\\\",\\\"start\\\",null]}},[]]\" ;;
    *'{{\"follow\":'*) for file in {top}/facts/*; do sed \"s/TASK/$id/\" \"$file\"; done ;;
    *'{{\"fetch\":'*) say \"[{{\\\"done\\\":[\\\"$id\\\",\\\"fetch dispatch/$id\\\",null]}},[]]\" ;;
esac; done",
        version = VERSION.as_str(),
    );
    let helper = directory.join("dispatch-spawn");
    fs::write(&helper, script).expect("written");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("set");
    fs::create_dir_all(world.sandbox.top().join("facts")).expect("made");
    for (number, text) in facts.iter().enumerate() {
        fs::write(world.sandbox.top().join(format!("facts/{number:03}")), text).expect("written");
    }
}

/// A message with facts and a file.
fn facts(facts: &str, name: &str, text: &str) -> String {
    let open = format!(
        "{{\"attempts\":[],\"wait\":null,\"open\":true,\"answers\":{{}},\"notes\":[],\"gone\":[]{facts}}}"
    );
    let name = serde_json::to_string(name).expect("JSON");
    format!("[{{\"facts\":[\"TASK\",{open},null]}},[[{name},{}]]]\n{text}", text.len())
}

#[test]
fn hostile_place_writes_nothing_but_words_of_its_own_task() {
    let world = World::bare();
    let bad = [
        "../../../evil",
        "/tmp/evil-of-a-place",
        "record.yaml",
        "ipc/../evil",
        "ipc/001.answer",
        "ipc/.told",
        "tells/../../evil",
        "attempts/1/../../record.yaml",
        "attempts/1/session",
        "attempts/1/prompt.md",
        "attempts/99/plan.md",
        "attempts/0/plan.md",
        "lock",
        "wait",
        "news",
        "",
        "plan.md\u{0}",
    ];
    let mut sent: Vec<String> = bad.iter().map(|name| facts("", name, "evil words")).collect();
    // An answer that nobody sent was to another question, so the file of its name would go.
    let kept = world.sandbox.top().join("kept");
    fs::write(&kept, "kept").expect("written");
    let changed =
        |name: &str| format!("[{{\"done\":[\"TASK\",\"answer/{name}\",\"changed\"]}},[]]\n");
    let names = [&*kept.display().to_string(), "../record.yaml", "../../far/record.yaml"];
    sent.extend(names.map(changed));
    // Another task, a number beyond all bounds, and words that would move a terminal's cursor.
    sent.push(facts("", "plan.md", "x").replace("TASK", "other"));
    let many: Vec<String> = (2..9).map(|it| format!("{{\"number\":{}}}", it * 1000)).collect();
    let many = many.join(",").replace('}', ",\"exit\":null,\"gate\":null,\"silent\":null}");
    sent.push(
        facts("", "tells/001", "fine")
            .replace("\"attempts\":[]", &format!("\"attempts\":[{many}]")),
    );
    let exit =
        "{\"at\":\"\\u001b[2J\",\"milliseconds\":1,\"not_started\":\"\\u001b[31mred\\nline\"}";
    let gate = "{\"commit\":\"--evil\",\"checking\":\"rm -rf /\",\"tests\":\"\\u001b[1m\"}";
    let attempt = format!("{{\"number\":1,\"exit\":{exit},\"gate\":{gate},\"silent\":null}}");
    let end =
        facts("", "plan.md", PLAN).replace("\"attempts\":[]", &format!("\"attempts\":[{attempt}]"));
    sent.push(end.replace("\"open\":true", "\"open\":false"));
    hostile(&world, &sent);
    world.sandbox.plan("far", PLAN);
    let said = world.call("dispatch-spawn", &["far", "--on", "box"]);
    let record = fs::read(world.sandbox.task("far", "record.yaml")).expect("there");
    wait_until("the end is recorded", || {
        world.sandbox.state("far").starts_with("failed").then_some(())
    });
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(fs::read(world.sandbox.task("far", "record.yaml")).expect("there"), record);
    let home = walk(&world.sandbox.home());
    let evil = |it: &&PathBuf| fs::read(it).is_ok_and(|text| text.starts_with(b"evil words"));
    assert_eq!(home.iter().filter(evil).collect::<Vec<_>>(), [] as [&PathBuf; 0]);
    assert!(!Path::new("/tmp/evil-of-a-place").exists());
    assert_eq!(fs::read_to_string(&kept).expect("still there"), "kept");
    let attempts = fs::read_dir(world.sandbox.task("far", "attempts")).expect("there").count();
    assert_eq!(attempts, 1);
    let show = world.sandbox.run("dispatch-reconcile", &["show", "far"]);
    assert!(show.out.contains("could not start: red"), "{}", show.out);
    assert!(!show.out.contains('\u{1b}') && !show.out.contains("rm -rf"), "{}", show.out);
}

#[test]
fn endless_words_of_a_place_are_not_read() {
    let sizes = ["18446744073709551615", "99999999999", "200000000"];
    let sent: Vec<String> = sizes
        .iter()
        .map(|size| {
            facts("", "output.md", "x").replace("\"output.md\",1", &format!("\"output.md\",{size}"))
        })
        .collect();
    for text in
        sent.iter().map(String::as_str).chain(["{\"nested\":[[[[\n", "\u{0}\u{0}\n", "[]\n"])
    {
        // A far side that changes while somebody connects would be mended by a helper that works.
        let world = World::bare();
        hostile(&world, &[text.to_owned()]);
        world.sandbox.plan("far", PLAN);
        let spawn = world.sandbox.call("dispatch-spawn", &["far", "--on", "box"]);
        let spawn = spawn.env("DISPATCH_RECONNECT_MS", "5").start();
        // The look before the dispatch, one connection for git, and then one after the other.
        wait_until("the connection is given up again and again", || {
            (world.lines("reached").len() > 6).then_some(())
        });
        drop(spawn);
        assert!(!world.sandbox.task("far", "output.md").exists(), "{text}");
    }
}

/// The histories that are played, each with a seed of its own.
fn histories() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|it| it.parse().ok());
    match number("PLACE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PLACE_HISTORIES").unwrap_or(30)).collect(),
    }
}

/// Three tasks at a place, while links break and processes die, in an order that the seed decides.
fn play(seed: u64) {
    let world = World::new();
    let mut random = Random(seed);
    let ids = ["one", "two", "three"];
    let (mut stopped, mut resumed) = (Vec::new(), Vec::<String>::new());
    let (mut answered, mut told) = (Vec::new(), Vec::<String>::new());
    let hear = |told: &mut Vec<String>| {
        let said = world.call("dispatch-monitor", &["--timeout", "1ms"]);
        told.extend(said.out.lines().filter(|it| it.starts_with('#')).map(|it| it[..9].to_owned()));
    };
    let answer = |id: &str, answered: &mut Vec<String>| {
        if world.call("dispatch-monitor", &["--answer", id, id]).code == Some(0) {
            answered.push(id.to_owned());
        }
    };
    let kill_one = |random: &mut Random, far: bool, word: &str| {
        let home = if far { world.far.clone() } else { world.sandbox.home() };
        let line = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let matches = |pid: &u32| String::from_utf8_lossy(&line(pid)).contains(word);
        let found: Vec<u32> = all_of(&home).into_iter().filter(matches).collect();
        if !found.is_empty() {
            let pid = *random.of(&found);
            let _ = kill(Pid::from_raw(pid.try_into().expect("a pid")), Signal::SIGKILL);
        }
    };
    for id in ids {
        world.sandbox.plan(id, PLAN);
        let spawn = world.sandbox.call("dispatch-spawn", &[id, "--on", "box"]);
        let spawn = spawn.env("DISPATCH_RECONNECT_MS", "20").start();
        wait_until("the task is dispatched", || {
            world.sandbox.task(id, "record.yaml").exists().then_some(())
        });
        for _ in 0..random.below(4) {
            match random.below(9) {
                0 | 1 => world.cut(),
                2 => world.set("down", ""),
                3 => drop(fs::remove_file(world.sandbox.top().join("down"))),
                4 => kill_one(&mut random, false, "--mirror"),
                5 => {
                    let word = *random.of(&["--serve", "--supervise"]);
                    kill_one(&mut random, true, word);
                }
                6 => hear(&mut told),
                7 => answer(ids[random.below(3)], &mut answered),
                _ if random.below(3) == 0 && stopped.is_empty() => {
                    world.call("dispatch-reconcile", &["stop", id]);
                    stopped.push(id);
                }
                _ => drop(states(&world)),
            }
        }
        let _ = fs::remove_file(world.sandbox.top().join("down"));
        drop(spawn);
    }
    let begin = std::time::Instant::now();
    wait_until(&format!("seed {seed}: all tasks end"), || {
        let states = states(&world);
        for (id, state) in &states {
            if state == "asking" || state == "blocked" {
                answer(id, &mut answered);
            }
            // The kill may hit the fork that was about to be the worker, or lose that one with its supervisor.
            let is_killed = state == "lost"
                || state == "failed" && world.sandbox.state(id) == "failed: ended by signal 9";
            if is_killed && world.call("dispatch-spawn", &[id, "--resume"]).code == Some(0) {
                resumed.push(id.clone());
            }
        }
        let text = |id: &str, name: &str| {
            let path = world.sandbox.state_directory().join(id).join(name);
            fs::read_to_string(path).unwrap_or_default()
        };
        let all: Vec<_> = ids.map(|id| (text(id, "remote"), text(id, "wait"))).into();
        let processes = all_of(&world.sandbox.home()).len();
        assert!(
            begin.elapsed() < DEADLINE * 2 / 3,
            "seed {seed}: {states:?}, {all:?}, stopped {stopped:?}, answered {answered:?}, {processes} {:?}",
            world.left()
        );
        let ended = |(id, state): &(String, String)| {
            state == "done" || state == "stopped" && stopped.contains(&id.as_str())
        };
        (states.len() == 3 && states.iter().all(ended)).then_some(())
    });
    wait_until(&format!("seed {seed}: nothing is left there"), || {
        world.left().is_empty().then_some(())
    });
    // A task that is done is over when its branch is here.
    wait_until(&format!("seed {seed}: the mirror has ended"), || {
        let _ = states(&world);
        all_of(&world.sandbox.home()).is_empty().then_some(())
    });
    hear(&mut told);
    let all = told.len();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), all, "seed {seed}: news was told twice");
    for id in ids {
        let far = |name: &str| world.lines(&format!("{name}.{id}-"));
        let again = resumed.iter().filter(|it| *it == id).count();
        assert!(far("starts").len() <= 1 + again, "seed {seed}: {id} was started twice");
        assert!(far("answers").len() <= 1 + again, "seed {seed}: {id} got two answers");
        if !stopped.contains(&id) {
            let last = far("answers").pop();
            assert_eq!(last.as_deref(), Some(id), "seed {seed}: {id} lost its answer");
            let show = world.sandbox.ok("dispatch-reconcile", &["show", id]);
            let ran = world
                .sandbox
                .program("git")
                .args(&["log", "--format=%s", &format!("dispatch/{id}")])
                .run();
            assert_eq!(ran.code, Some(0), "seed {seed}: {show}{}", ran.err);
            let log = ran.out;
            assert_eq!(log, "Work\nBegin\n", "seed {seed}: {id} lost its commit");
        }
    }
}

#[test]
fn histories_of_places_lose_nothing_and_start_nothing_twice() {
    // Most of a history is waiting.
    let seeds = std::sync::Mutex::new(histories().into_iter());
    let next = || seeds.lock().expect("no panic holds it").next();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    play(seed);
                }
            });
        }
    });
}

#[test]
fn far_end_that_a_model_calls_starts_nothing() {
    let world = World::new();
    let call = format!("{} --serve {}", binary("dispatch-spawn").display(), world.far.display());
    let task = r#"{"key":"k","id":"a-1"}"#;
    let decisions = [
        ("start", format!(r#"{{"start":[{task},0,"0",[]]}}"#)),
        ("answer/001", format!(r#"{{"answer":[{task},"001"]}}"#)),
        ("note/001", format!(r#"{{"note":[{task},"001"]}}"#)),
        ("stop", format!(r#"{{"stop":[{task},0]}}"#)),
        ("resume", format!(r#"{{"resume":[{task},0,[]]}}"#)),
    ];
    for (what, decision) in decisions {
        let said = world.sandbox.by_claude("", &call).input(format!("[{decision},[]]\n")).run();
        let refused =
            format!(r#""a-1","{what}","only a person may decide this: the work of a place"#);
        assert!(said.out.contains(&refused), "{what}: {} {}", said.out, said.err);
    }
    // A program of the environment's is none of the config's.
    let carry = world.sandbox.call("dispatch-spawn", &["--carry", "git-upload-pack"]);
    let carry = carry.env("DISPATCH_PLACE", "[\"other\",\"k\"]").run();
    assert_eq!(carry.code, Some(65), "{}", carry.err);
}
