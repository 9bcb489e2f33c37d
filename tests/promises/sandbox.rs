//! A worker is held by bubblewrap: what it may write and see, and how it ends.
//!
//! Longer than 500 lines because the acts of the tests are lists.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::process::{kill_and_wait, runs, signal};
use crate::support::text::same;
use crate::support::{PLAN, Sandbox, binary, wait_until};
use crate::worktrees::{worktree_of, write_program};

/// Notes of each act whether it could be done.
const ACTS: &str = r#"
act() {
    if (eval "$2") >/dev/null 2>&1; then echo "$1: done"; else echo "$1: refused"; fi >>"$DISPATCH_TASK_DIR/output.md"
}
"#;

/// Acts that no worker may do. `OUTSIDE` is a process, and `STATE` the person's side.
const FORBIDDEN: &str = r#"
act 'write in the home directory' 'echo x >~/outside'
act 'change a file outside' 'echo x >>~/.gitconfig'
act 'change the mode of a file outside' 'chmod 777 ~/.gitconfig'
act 'link a file outside' 'ln ~/.gitconfig linked'
act 'write a git hook' 'echo x >.git/hooks/pre-commit'
act 'write git settings' 'git config core.fsmonitor x'
act 'move .git away' 'mv .git elsewhere'
act 'write settings of Claude Code' 'mkdir -p .claude && echo x >.claude/settings.local.json'
act 'write .mcp.json' 'echo x >.mcp.json'
act 'write settings of the editor' 'echo x >.vscode/tasks.json'
act 'write in another task' 'echo x >>.dispatch/tasks/other/plan.md'
act 'make a task' 'mkdir .dispatch/tasks/new'
act 'see the record' 'cat "$STATE"/x/record.yaml'
act 'see the config' 'cat ~/.dispatch/config.yaml'
act 'see keys' 'cat ~/.ssh/id'
act 'see the login of another CLI' 'cat ~/.codex/auth.json'
act 'reach a socket' 'test -S ~/socket'
act 'reach the session' 'test -e /run/user || test -n "$DBUS_SESSION_BUS_ADDRESS$SSH_AUTH_SOCK"'
act 'see temporary files of others' 'ls "$OTHER_TMP"/* /tmp/*/home/../tmp/*'
act 'see a process outside' 'kill -0 $OUTSIDE'
act 'enter a process outside' 'ls /proc/$OUTSIDE/root'
act 'have a capability' '! grep -q "^CapEff:.0000000000000000" /proc/self/status'
act 'have another descriptor' 'sh -c "ls /proc/\$\$/fd" | grep -vx "[012]"'
act 'change a mount' 'unshare -Urm sh -c "umount ~/.dispatch || mount -o remount,rw,bind ~ || umount .git"'
act 'write past a mount of its own' 'unshare -Urm sh -c "mkdir m && mount --bind ~ m && echo x >m/outside"'
"#;

/// Acts that every worker has to do.
const NEEDED: &str = r#"
act 'read the project' 'cat README'
act 'read another task' 'cat .dispatch/tasks/other/plan.md'
act 'write a temporary file' 'mktemp && mktemp -d'
act 'keep files of its CLI' 'echo x >"$XDG_CACHE_HOME/x"'
act 'tick' '"$HELPER" tick 1'
act 'tick without the helper' 'cd "$DISPATCH_TASK_DIR" && sed "s/\[ \] Second/[x] Second/" plan.md >plan.md.new && mv plan.md.new plan.md'
act 'tell' '"$HELPER" tell "It goes well."'
act 'ask and hear the answer' 'test "$("$HELPER" ask "Which?")" = "This."'
act 'finish' '"$HELPER" finish All.'
"#;

/// A repository with a backend `held` that runs a script at a level, and a task that it could disturb.
struct World {
    sandbox: Sandbox,
    script: PathBuf,
    _socket: UnixListener,
}

impl World {
    /// `None` where bubblewrap is missing, which in CI is an error.
    fn new(access: &str, script: &str) -> Option<Self> {
        if dispatch::process::find_program("bwrap".as_ref()).is_none() {
            assert!(std::env::var_os("CI").is_none(), "bubblewrap is not installed");
            eprintln!("SKIPPED: bubblewrap is not installed");
            return None;
        }
        let sandbox = Sandbox::with_git();
        let home = sandbox.home();
        for (path, text) in [
            ("bin/held", script),
            (".ssh/id", "a key"),
            (".codex/auth.json", "a login"),
            (".claude/.credentials.json", "a login"),
            (".claude/settings.json", "{}"),
            ("project/.vscode/tasks.json", "{}"),
            ("project/.dispatch/tasks/other/plan.md", PLAN),
        ] {
            fs::create_dir_all(home.join(path).parent().expect("a directory")).expect("made");
            fs::write(home.join(path), text).expect("written");
        }
        let socket = UnixListener::bind(home.join("socket")).expect("a socket");
        let script = home.join("bin/held");
        let world = Self { sandbox, script, _socket: socket };
        world.config(access);
        Some(world)
    }

    /// The worker stands in the home directory, because it does not see the temporary one.
    fn config(&self, access: &str) {
        let (script, worker) = (self.script.display(), binary("dispatch-worker").display());
        let variables = format!(
            "OUTSIDE={} STATE={} OTHER_TMP={} HELPER={worker}",
            std::process::id(),
            self.sandbox.state_directory().display(),
            self.sandbox.temporary().display(),
        );
        self.sandbox.config(&format!(
            "default: held\nbackends:\n  held: {{ command: env {variables} sh {script}, access: {access} }}\nmodels:\n  held: {{ backend: held }}\n"
        ));
    }

    /// A copy of the config in a directory.
    fn config_in(&self, directory: &Path) -> PathBuf {
        let copy = directory.join("config.yaml");
        fs::copy(self.sandbox.config_path(), &copy).expect("copied");
        copy
    }

    fn dispatch(&self, args: &[&str]) {
        self.sandbox.plan("x", PLAN);
        self.sandbox.ok("dispatch-spawn", &[&["x"], args].concat());
    }

    /// Waits for a file of the worker's.
    fn wait_for(&self, path: &str) {
        let path = self.sandbox.project().join(path);
        wait_until(&format!("{} is there", path.display()), || path.exists().then_some(()));
    }
}

/// The worker's notes of its acts, after its question was answered.
fn acts(world: &World, args: &[&str]) -> String {
    world.dispatch(args);
    let question = world.sandbox.task("x", "ipc/001.question");
    wait_until("it asks", || question.exists().then_some(()));
    world.sandbox.ok("dispatch-monitor", &["--answer", "x", "This."]);
    let exit = world.sandbox.task("x", "attempts/1/exit");
    wait_until("it ends", || exit.exists().then_some(()));
    assert_eq!(world.sandbox.state("x"), "done");
    world.sandbox.read("x", "output.md")
}

/// The running process whose command line has this word.
fn process_with(word: &str) -> Option<u32> {
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|it| it == word.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(has).find(|pid| runs(*pid))
}

#[test]
fn worker_at_write_changes_its_project_and_nothing_else() {
    let script = format!(
        "{ACTS}{FORBIDDEN}act 'edit' 'echo x >>README'\nact 'run a program it made' \
         'echo true >run && sh run'\n{NEEDED}"
    );
    let Some(world) = World::new("write", &script) else { return };
    let expected = FORBIDDEN.lines().filter(|it| it.starts_with("act")).count();
    let acts = acts(&world, &[]);
    assert_eq!(acts.matches(": refused").count(), expected, "{acts}");
    same(
        &acts,
        str![[r#"
write in the home directory: refused
change a file outside: refused
change the mode of a file outside: refused
link a file outside: refused
write a git hook: refused
write git settings: refused
move .git away: refused
write settings of Claude Code: refused
write .mcp.json: refused
write settings of the editor: refused
write in another task: refused
make a task: refused
see the record: refused
see the config: refused
see keys: refused
see the login of another CLI: refused
reach a socket: refused
reach the session: refused
see temporary files of others: refused
see a process outside: refused
enter a process outside: refused
have a capability: refused
have another descriptor: refused
change a mount: refused
write past a mount of its own: refused
edit: done
run a program it made: done
read the project: done
read another task: done
write a temporary file: done
keep files of its CLI: done
tick: done
tick without the helper: done
tell: done
ask and hear the answer: done
finish: done

"#]],
    );
    // The places that were kept are free again.
    for path in [".claude", ".mcp.json"] {
        assert!(!world.sandbox.project().join(path).exists(), "{path}");
    }
    assert_eq!(world.sandbox.git(&["status", "--porcelain"]), " M README\n?? .vscode/\n?? run\n");
}

#[test]
fn worker_at_read_changes_its_task_only() {
    let script = format!("{ACTS}{FORBIDDEN}act 'edit' 'echo x >>README'\n{NEEDED}");
    let Some(world) = World::new("read", &script) else { return };
    let expected = FORBIDDEN.lines().filter(|it| it.starts_with("act")).count() + 1;
    let acts = acts(&world, &[]);
    assert_eq!(acts.matches(": refused").count(), expected, "{acts}");
    assert!(acts.contains("edit: refused\n"), "{acts}");
}

#[test]
fn worker_commits_in_its_worktree_and_nowhere_else() {
    let script = format!(
        "{ACTS}act 'commit' 'echo x >new && git add new && git commit -q -m Work'\n\
         act 'write in the project' 'echo x >~/project/README'\n\
         act 'write a git hook' 'echo x >~/project/.git/hooks/pre-commit'\n\
         act 'write git settings' 'git -C ~/project config core.fsmonitor x'\n{NEEDED}"
    );
    let Some(world) = World::new("write", &script) else { return };
    let acts = acts(&world, &["--worktree"]);
    let refused: Vec<_> = acts.lines().filter(|it| it.ends_with(": refused")).collect();
    assert_eq!(
        refused,
        [
            "write in the project: refused",
            "write a git hook: refused",
            "write git settings: refused",
            "read another task: refused"
        ],
        "{acts}"
    );
    assert_eq!(world.sandbox.git(&["log", "--format=%s", "dispatch/x"]), "Work\nBegin\n");
}

/// Stands in the place of `bwrap` and fails as it does where a socket vanishes, so many times.
fn start_with_failing_bwrap(world: &World, failures: u32) {
    let real = dispatch::process::find_program("bwrap".as_ref()).expect("bwrap");
    let (bin, left) = (world.sandbox.top().join("bin"), world.sandbox.top().join("left"));
    let wrapper = format!(
        "#!/bin/sh\ncase \"$*\" in *'--chdir {project}'*)\n  left=$(cat {left})\n  \
         if [ \"$left\" -gt 0 ]; then echo $((left - 1)) >{left}; echo 'bwrap: Gone' >&2; exit 1; fi ;;\n\
         esac\nexec {real} \"$@\"\n",
        project = world.sandbox.project().display(),
        left = left.display(),
        real = real.display(),
    );
    fs::create_dir(&bin).expect("made");
    fs::write(bin.join("bwrap"), wrapper).expect("written");
    fs::set_permissions(bin.join("bwrap"), fs::Permissions::from_mode(0o755)).expect("set");
    fs::write(&left, failures.to_string()).expect("written");
    world.sandbox.plan("x", PLAN);
    let path = std::env::var("PATH").expect("a PATH");
    let spawn = world.sandbox.call("dispatch-spawn", &["x"]);
    spawn.env("PATH", format!("{}:{path}", bin.display())).run().ok();
}

#[test]
fn sandbox_that_fails_before_its_program_is_started_again() {
    for (failures, state) in [(2, "done"), (9, "failed: its sandbox cannot start: \"bwrap: Gone\"")]
    {
        let script =
            format!("{ACTS}{}", NEEDED.replace("act 'ask and hear", "# act 'ask and hear"));
        let Some(world) = World::new("write", &script) else { return };
        start_with_failing_bwrap(&world, failures);
        world.sandbox.wait_for_state("x", state);
    }
}

/// Neither what an earlier start printed nor what a worker prints makes it look like a broken sandbox.
#[test]
fn worker_that_ran_is_not_started_again() {
    for (failures, end, state) in [
        (1, "echo Ended; exit 3", "failed: exit code 3: \"Ended\""),
        (0, "echo 'bwrap: no' >&2", "incomplete"),
    ] {
        let Some(world) = World::new("write", &format!("echo x >>count\n{end}")) else { return };
        start_with_failing_bwrap(&world, failures);
        world.sandbox.wait_for_state("x", state);
        let count = fs::read_to_string(world.sandbox.project().join("count")).expect("written");
        assert_eq!(count, "x\n", "{end}");
    }
}

/// A submodule and a directory with git's hooks, both below the top, so that they could move with the
/// directory above them.
#[test]
fn places_below_the_top_are_kept_with_their_parents() {
    let script = format!(
        r#"{ACTS}
act 'replace the repository of a submodule' 'rm libs/sub/.git && mkdir libs/sub/.git'
act 'move a submodule away' 'mv libs/sub libs/other'
act 'move the directory of a submodule away' 'mv libs elsewhere'
act 'fill a submodule' 'mkdir empty/.git'
act 'write a hook' 'echo x >tools/git/hooks/post-merge'
act 'move the hooks away' 'mv tools/git tools/other'
act 'move the directory of the hooks away' 'mv tools elsewhere'
act 'change submodules' 'echo x >>.gitmodules'
act 'change what CI runs' 'echo x >.github/workflows/test.yml'
act 'change what a host obeys' 'echo x >>CLAUDE.md'
act 'make hooks of husky' 'mkdir -p .husky && echo x >.husky/pre-commit'
act 'edit a submodule' 'echo x >libs/sub/README'
act 'edit beside the hooks' 'echo x >tools/git/README && mv tools/git/README tools/README'
{NEEDED}"#
    );
    let Some(world) = World::new("write", &script) else { return };
    let project = world.sandbox.project();
    for path in ["tools/git/hooks", ".github/workflows", "libs"] {
        fs::create_dir_all(project.join(path)).expect("made");
    }
    fs::write(project.join("CLAUDE.md"), "").expect("written");
    fs::write(world.sandbox.home().join(".ssh/config"), "").expect("written");
    let git = |args: &[&str]| world.sandbox.git(args);
    git(&["clone", "-q", ".", "../source"]);
    for path in ["libs/sub", "empty"] {
        git(&["-c", "protocol.file.allow=always", "submodule", "add", "-q", "../source", path]);
    }
    git(&["commit", "-q", "-m", "Submodules"]);
    git(&["submodule", "deinit", "-q", "-f", "empty"]);
    git(&["config", "core.hooksPath", "tools/git/hooks"]);
    let acts = acts(&world, &[]);
    let refused: Vec<_> = acts.lines().filter(|it| it.ends_with(": refused")).collect();
    assert_eq!(refused.len(), 11, "{acts}");
    assert!(acts.contains("edit beside the hooks: done\n"), "{acts}");
    assert!(acts.contains("edit a submodule: done\n"), "{acts}");
    assert!(!project.join(".husky").exists());
}

/// The name of a task's directory leads elsewhere at the next start.
#[test]
fn directory_that_was_replaced_by_a_link_is_refused() {
    let script = "exec 2>>~/project/.dispatch/tasks/x/output.md\ncat id && touch \"$DISPATCH_TASK_DIR/seen\"\ncd ..\nmv sub old\nln -s ~/.ssh sub\nexit 1";
    for args in [&["--worktree"][..], &[]] {
        let Some(world) = World::new("write", script) else { return };
        let sub = world.sandbox.project().join("sub");
        fs::create_dir(&sub).expect("made");
        fs::write(sub.join("file"), "").expect("written");
        world.sandbox.git(&["add", "sub"]);
        world.sandbox.git(&["commit", "-q", "-m", "Sub"]);
        world.sandbox.plan("x", PLAN);
        let spawn = world.sandbox.call("dispatch-spawn", &[&["x"], args].concat());
        spawn.within(sub.clone()).run().ok();
        world.sandbox.wait_for_state("x", "failed: exit code 1");
        if args.is_empty() {
            // The worker of another task did this: its own one cannot move where it works.
            fs::rename(&sub, sub.with_file_name("old")).expect("moved");
            std::os::unix::fs::symlink(world.sandbox.home().join(".ssh"), &sub).expect("linked");
        }
        world.sandbox.run("dispatch-spawn", &["x", "--resume"]);
        let exit = world.sandbox.task("x", "attempts/2/exit");
        wait_until("its end is recorded", || exit.exists().then_some(()));
        let said = world.sandbox.read("x", "attempts/2/exit");
        assert!(said.contains("the directory of the task is a symlink now"), "{args:?} {said}");
        assert!(!world.sandbox.project().join(".dispatch/tasks/x/seen").exists(), "{args:?}");
    }
}

#[test]
fn worker_in_the_home_directory_does_not_see_the_persons_side() {
    let script = r#"act() { if (eval "$2") >/dev/null 2>&1; then echo "$1" >>"$DISPATCH_TASK_DIR/output.md"; fi; }
act 'see the config' 'cat ~/.dispatch/config.yaml'
act 'see the record' 'cat ~/.dispatch/state/*/*/record.yaml'
act 'see the task' 'cat ~/.dispatch/tasks/x/plan.md'"#;
    let Some(world) = World::new("read", script) else { return };
    let spawn = world.sandbox.call("dispatch-spawn", &["x", "--plan", "-"]).input(PLAN);
    spawn.within(world.sandbox.home()).run().ok();
    let output = world.sandbox.home().join(".dispatch/tasks/x/output.md");
    let seen = wait_until("it looked", || {
        let ends = world.sandbox.call("dispatch-reconcile", &["show", "x"]);
        let shown = ends.within(world.sandbox.home()).run().out;
        shown.contains("incomplete").then(|| fs::read_to_string(&output).unwrap_or_default())
    });
    assert_eq!(seen, "see the task\n");
}

/// The line for a placeholder goes with it, and one that the person wrote stays.
#[test]
fn excluded_file_of_the_person_stays_excluded() {
    let Some(world) = World::new("write", "exit 0") else { return };
    let exclude = world.sandbox.project().join(".git/info/exclude");
    fs::write(&exclude, "/.mcp.json\n").expect("written");
    world.dispatch(&[]);
    world.sandbox.wait_for_state("x", "incomplete");
    let text = wait_until("the placeholders are gone", || {
        let text = fs::read_to_string(&exclude).expect("readable");
        (!world.sandbox.project().join(".mcp.json").exists()).then_some(text)
    });
    assert_eq!(text, "/.mcp.json\n.dispatch/\n");
}

#[test]
fn abstract_socket_is_refused() {
    let kernel = nix::sys::utsname::uname().expect("a name");
    let kernel = kernel.release().to_string_lossy().into_owned();
    let mut numbers = kernel.split('.').map(|number| number.parse::<u32>().unwrap_or_default());
    if (numbers.next(), numbers.next()) < (Some(6), Some(12)) {
        eprintln!("SKIPPED: only Linux 6.12 can refuse them");
        return;
    }
    let name = format!("dispatch-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let _socket = UnixListener::bind_addr(&address).expect("a socket");
    let connect = format!(
        r#"perl -MSocket -e 'socket(S,AF_UNIX,SOCK_STREAM,0); connect(S,pack("S a*",AF_UNIX,"\0{name}")) or exit(1)'"#
    );
    let Some(world) = World::new("write", &format!("{connect}; echo $? >reached")) else { return };
    assert_eq!(world.sandbox.program("sh").args(&["-c", &connect]).run().code, Some(0));
    world.dispatch(&[]);
    let reached = world.sandbox.project().join("reached");
    let said =
        wait_until("it tries", || fs::read_to_string(&reached).ok().filter(|it| !it.is_empty()));
    assert_eq!(said, "1\n");
}

#[test]
fn holder_is_told_at_dispatch_and_later() {
    let Some(world) = World::new("write", "exec sleep 1000") else { return };
    world.sandbox.plan("x", PLAN);
    let told = world.sandbox.ok("dispatch-spawn", &["x", "--dry-run"]);
    assert!(told.ends_with(
        "\n# write: bubblewrap; writes in the project, its task, its home; network open\n"
    ));
    let told = world.sandbox.ok("dispatch-spawn", &["x", "--dry-run", "--worktree"]);
    assert!(told.ends_with(
        "\n# write: bubblewrap; writes in the worktree, its task, its home; network open\n"
    ));
    let told = world.sandbox.ok("dispatch-spawn", &["x", "--dry-run", "--access", "full"]);
    assert!(told.ends_with("\n# full: nothing holds it\n"), "{told}");
    world.sandbox.ok("dispatch-spawn", &["x", "--access", "read"]);
    let shown = world.sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(
        shown.contains("\nread: bubblewrap; writes in its task, its home; network open\n"),
        "{shown}"
    );
}

#[test]
fn stop_ends_everything_in_the_sandbox() {
    let script = "env -i setsid sleep 1000.1 &\nsetsid sh -c 'trap : TERM; sleep 1000.2; sleep 1000.3' &\ntouch up\nwait\nsleep 1000";
    let Some(world) = World::new("write", script) else { return };
    world.dispatch(&[]);
    world.wait_for("up");
    let left = wait_until("both run", || Some([process_with("1000.1")?, process_with("1000.2")?]));
    world
        .sandbox
        .call("dispatch-reconcile", &["stop", "x"])
        .env("DISPATCH_GRACE_MS", "50")
        .run()
        .ok();
    assert_eq!(world.sandbox.state("x"), "stopped");
    assert!(!left.into_iter().any(runs), "a process survived");
    assert_eq!(process_with("1000.3"), None);
}

#[test]
fn stop_without_a_supervisor_ends_everything_in_the_sandbox() {
    let Some(world) = World::new("write", "env -i setsid sleep 1000.4 &\ntouch up\nwait") else {
        return;
    };
    world.dispatch(&[]);
    world.wait_for("up");
    let left = wait_until("it runs", || process_with("1000.4"));
    kill_and_wait(world.sandbox.supervisor_of("x"));
    // The worker outlives its supervisor.
    assert_eq!(world.sandbox.state("x"), "running");
    assert!(runs(left));
    // Even without the process that waits for the namespace.
    kill_and_wait(world.sandbox.worker_of("x", 1));
    assert!(runs(left));
    world
        .sandbox
        .call("dispatch-reconcile", &["stop", "x"])
        .env("DISPATCH_GRACE_MS", "50")
        .run()
        .ok();
    assert!(!runs(left), "a process survived");
}

/// A server that the worker started stays in the worker's sandbox.
#[test]
fn kept_server_runs_until_the_person_ends_it() {
    const SERVES: &str = "\"$HELPER\" tick 1; \"$HELPER\" tick 2; \"$HELPER\" finish Served.\n\
        setsid sh -c 'while [ ! -e stop ]; do mkdir -p .claude/x .mcp.json && touch open; sleep 0.1; done; sleep 1000.6' >/dev/null 2>&1 &\n";
    for (access, ends) in [("write", "stop"), ("full", "clean"), ("write", "clean")] {
        let Some(world) = World::new(access, SERVES) else { return };
        world.dispatch(&["--keep"]);
        let sandbox = &world.sandbox;
        sandbox.wait_for_state("x", "done");
        wait_until("its supervisor ends", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
        assert!(sandbox.project().join(".mcp.json").exists() || access == "full");
        fs::write(sandbox.project().join("stop"), "").expect("written");
        let server = wait_until("the server runs", || process_with("1000.6"));
        assert_eq!(sandbox.project().join("open").exists(), access == "full", "{access}");
        let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
        assert!(shown.contains("left running: "), "{shown}");
        let kept = sandbox.ok("dispatch-reconcile", &["clean"]);
        assert!(kept.starts_with("kept x: ") && runs(server), "{kept}");
        let ended = sandbox.ok("dispatch-reconcile", &[ends, "x"]);
        assert!(!runs(server), "{ended}");
        assert!(!sandbox.project().join(".mcp.json").is_file(), "a placeholder is left");
    }
}

#[test]
fn end_of_the_worker_is_the_end_of_everything_in_the_sandbox() {
    let Some(world) = World::new("write", "setsid sleep 1000.5 &\nkill -USR1 $$") else { return };
    world.dispatch(&[]);
    world.sandbox.wait_for_state("x", "failed: ended by signal 10");
    assert_eq!(process_with("1000.5"), None);
}

#[test]
fn worker_in_a_sandbox_may_end_in_its_own_way() {
    let script = "trap 'touch bye; exit 7' TERM\ntouch up\nwhile :; do sleep 0.01; done";
    let Some(world) = World::new("write", script) else { return };
    world.dispatch(&[]);
    world.wait_for("up");
    signal(world.sandbox.supervisor_of("x"), Signal::SIGTERM);
    world.wait_for("bye");
    let exit = world.sandbox.task("x", "attempts/1/exit");
    wait_until("its end is recorded", || exit.exists().then_some(()));
    assert!(world.sandbox.read("x", "attempts/1/exit").starts_with("code: 7\n"));
}

#[test]
fn places_are_kept_as_long_as_a_worker_needs_them() {
    let Some(world) = World::new(
        "write",
        "touch up-${DISPATCH_TASK_DIR##*/}\nwhile ! test -e end-${DISPATCH_TASK_DIR##*/}; do sleep 0.01; done",
    ) else {
        return;
    };
    for id in ["x", "y"] {
        world.sandbox.plan(id, PLAN);
        world.sandbox.ok("dispatch-spawn", &[id]);
        world.wait_for(&format!("up-{id}"));
    }
    let kept = world.sandbox.project().join(".claude");
    assert!(world.sandbox.project().join(".mcp.json").is_file());
    assert_eq!(world.sandbox.git(&["status", "--porcelain"]), "?? .vscode/\n?? up-x\n?? up-y\n");
    let ends = |id: &str| {
        fs::write(world.sandbox.project().join(format!("end-{id}")), "").expect("written");
        let exit = world.sandbox.task(id, "attempts/1/exit");
        wait_until("it ends", || exit.exists().then_some(()));
    };
    ends("x");
    assert!(kept.is_dir(), "the other worker needs it");
    // Files that the person puts there stay.
    fs::write(kept.join("settings.json"), "{}").expect("written");
    ends("y");
    assert!(kept.join("settings.json").exists());
    assert!(!world.sandbox.project().join(".mcp.json").exists());
}

#[test]
fn prompt_on_standard_input_cannot_be_changed() {
    let Some(world) = World::new("write", "echo forged >/proc/self/fd/0\ncat >/dev/null\ntouch up")
    else {
        return;
    };
    let config = fs::read_to_string(world.sandbox.config_path()).expect("a config");
    world.sandbox.config(&config.replace("access: write", "access: write, prompt: stdin"));
    world.dispatch(&[]);
    world.wait_for("up");
    let prompt = world.sandbox.read("x", "attempts/1/prompt.md");
    assert!(prompt.starts_with("You are the worker of one task"), "{prompt}");
}

#[test]
fn cli_has_a_home_of_its_own_for_each_task_and_level() {
    let Some(world) = World::new("write", "") else { return };
    let codex = r#"echo "{\"type\":\"thread.started\",\"thread_id\":\"of-$(basename "$DISPATCH_TASK_DIR")\"}"
echo "$*" >>"$DISPATCH_TASK_DIR/output.md"
cat "$CODEX_HOME/auth.json" >>"$DISPATCH_TASK_DIR/output.md"
ls ~/.codex ~/.claude >>"$DISPATCH_TASK_DIR/output.md" 2>&1
echo kept >"$CODEX_HOME/kept" && echo new >"$CODEX_HOME/auth.json"
exit 1"#;
    fs::write(world.script.with_file_name("codex"), codex).expect("written");
    let program = world.script.with_file_name("codex");
    // By its name, the script is Codex.
    let run = "cat >\"$1.new\" && chmod +x \"$1.new\" && mv \"$1.new\" \"$1\"";
    let call = world.sandbox.program("sh").args(&["-c", run, "sh"]).arg(&program);
    call.input(format!("#!/bin/sh\n{codex}\n")).run().ok();
    world.sandbox.config(&format!(
        "default: held\nbackends:\n  held: {{ command: {} exec, access: write }}\nmodels:\n  held: {{ backend: held }}\n",
        program.display()
    ));
    world.dispatch(&[]);
    world.sandbox.wait_for_state("x", "failed: exit code 1");
    same(
        &world.sandbox.redactions().apply(&world.sandbox.read("x", "output.md")),
        str![[r#"
exec --json --model held -
a loginHOME/.claude:

HOME/.codex:
auth.json

"#]],
    );
    let login = world.sandbox.home().join(".codex/auth.json");
    assert_eq!(fs::read_to_string(login).expect("there"), "new\n", "it refreshes its login");
    assert!(!world.sandbox.home().join(".codex/kept").exists());
    // The session continues in its home, and not at another level.
    world.sandbox.ok("dispatch-spawn", &["x", "--resume"]);
    world.sandbox.wait_for_state("x", "failed: exit code 1");
    let output = world.sandbox.read("x", "output.md");
    assert!(output.contains(" resume of-x -\n"), "{output}");
    world.sandbox.ok("dispatch-spawn", &["x", "--resume", "--access", "read"]);
    wait_until("it runs again", || {
        let output = world.sandbox.read("x", "output.md");
        (output.matches("exec").count() > 2).then_some(())
    });
    let output = world.sandbox.read("x", "output.md");
    assert!(output.matches(" resume ").count() == 1, "{output}");
    // They go with the task.
    let homes = world.sandbox.home().join(".dispatch/homes");
    let home = fs::read_dir(&homes).expect("there").next().expect("one").expect("readable").path();
    // The supervisor ends a moment after it has recorded the end.
    wait_until("it is removed", || {
        let ran = world.sandbox.run("dispatch-reconcile", &["clean", "x"]);
        (ran.code == Some(0)).then_some(())
    });
    assert_eq!(fs::read_dir(home).expect("there").count(), 0);
}

#[test]
fn place_that_cannot_be_held_is_refused() {
    let Some(world) = World::new("write", "exec sleep 1000") else { return };
    let project = world.sandbox.project();
    world.sandbox.plan("x", PLAN);
    let bin = project.join("tools/bin");
    fs::create_dir_all(&bin).expect("made");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a path"));
    world.sandbox.call("dispatch-spawn", &["x"]).env("PATH", path).run().shows(str![[r#"
exit 69
! dispatch-spawn: the worker cannot be held to 'write' access
!   PROJECT/tools/bin: the worker could change what runs outside
!   next: add --worktree, or --access read
"#]]);
    std::os::unix::fs::symlink("elsewhere", project.join(".claude")).expect("linked");
    world.sandbox.run("dispatch-spawn", &["x"]).shows(str![[r#"
exit 69
! dispatch-spawn: the worker cannot be held to 'write' access
!   PROJECT/.claude: the worker could replace this symlink
!   next: add --worktree, or --access read
"#]]);
    let at_home = world.sandbox.call("dispatch-spawn", &["x", "--plan", "-"]).input(PLAN);
    at_home.within(world.sandbox.home()).run().shows(str![[r#"
exit 69
! dispatch-spawn: the worker cannot be held to 'write' access
!   HOME: the worker could change what runs outside
!   next: add --worktree, or --access read
"#]]);
    world.sandbox.ok("dispatch-spawn", &["x", "--access", "read"]);
}

/// Directories that decide something lie in the project, or the project in one of them.
#[test]
fn project_with_a_deciding_directory_is_refused() {
    let Some(world) = World::new("write", "exec sleep 1000") else { return };
    let (home, project) = (world.sandbox.home(), world.sandbox.project());
    world.sandbox.plan("x", PLAN);
    let refused = |what: &str, variable: Option<(&str, &Path)>, within: &Path| {
        fs::create_dir_all(within).expect("made");
        let mut call = world.sandbox.call("dispatch-spawn", &["y", "--dry-run", "--plan", "-"]);
        if let Some((name, value)) = variable {
            call = call.env(name, value);
        }
        let ran = call.input(PLAN).within(within).run();
        assert!(ran.err.contains("cannot be held to 'write' access"), "{what}: {}", ran.err);
    };
    refused("state", Some(("DISPATCH_STATE", &project.join("var/state"))), &project);
    refused("a CLI's directory", Some(("CODEX_HOME", &project.join("var/codex"))), &project);
    refused("the config", Some(("DISPATCH_CONFIG", &world.config_in(&project))), &project);
    refused("settings of the host", None, &home.join(".claude"));
    refused("below settings of the host", None, &home.join(".claude/skills/x"));
    refused("above settings of CLIs", None, &home.join(".config"));
    let bare = home.join("bare");
    world.sandbox.git(&["clone", "-q", "--bare", ".", "../bare/.bare"]);
    fs::write(bare.join(".git"), "gitdir: ./.bare\n").expect("written");
    refused("a repository beside the checkouts", None, &bare);
    refused("a bare repository", None, &bare.join(".bare"));
    let other = home.join("other");
    let separate = ["clone", "-q", "--separate-git-dir", "../other/git", ".", "../other/top"];
    world.sandbox.git(&separate);
    fs::rename(other.join("top/.git"), other.join(".git")).expect("moved");
    refused("a separate repository", None, &other);
}

#[test]
fn login_that_its_cli_would_obey_is_read_only() {
    let script = r#"#!/bin/sh
cat "$XDG_DATA_HOME/opencode/auth.json" >>"$DISPATCH_TASK_DIR/output.md"
(echo '{"https://x":{"type":"wellknown"}}' >"$XDG_DATA_HOME/opencode/auth.json") 2>/dev/null
exit 1"#;
    let Some(world) = World::new("write", "") else { return };
    let program = world.script.with_file_name("opencode");
    let run = "cat >\"$1.new\" && chmod +x \"$1.new\" && mv \"$1.new\" \"$1\"";
    let call = world.sandbox.program("sh").args(&["-c", run, "sh"]).arg(&program);
    call.input(script).run().ok();
    let login = world.sandbox.home().join(".local/share/opencode/auth.json");
    fs::create_dir_all(login.parent().expect("a directory")).expect("made");
    fs::write(&login, "a login\n").expect("written");
    world.sandbox.config(&format!(
        "default: held\nbackends:\n  held: {{ command: {}, access: write }}\nmodels:\n  held: {{ backend: held }}\n",
        program.display()
    ));
    world.dispatch(&[]);
    world.sandbox.wait_for_state("x", "failed: exit code 1");
    assert_eq!(world.sandbox.read("x", "output.md"), "a login\n");
    assert_eq!(fs::read_to_string(login).expect("there"), "a login\n");
}

/// A check may do what the worker's commands may, and write nothing of the task.
#[test]
fn check_is_held_like_the_worker() {
    let works = "\"$HELPER\" tick 1 && \"$HELPER\" tick 2 && \"$HELPER\" finish Fine.";
    let Some(world) = World::new("write", works) else { return };
    let check = r#"act() { if (eval "$2") >/dev/null 2>&1; then echo "$1: done"; else echo "$1: refused"; fi >>acts; }
act 'edit' 'echo x >>README'
act 'write a temporary file' 'mktemp'
act 'read the plan' 'cat "$DISPATCH_TASK_DIR/plan.md"'
act 'write the plan' 'echo "- [ ] More" >>"$DISPATCH_TASK_DIR/plan.md"'
act 'write a git hook' 'echo x >.git/hooks/pre-commit'
act 'write in the home directory' 'echo x >~/outside'
act 'see the record' 'cat ~/.dispatch/state/*/x/record.yaml'
act 'see keys' 'cat ~/.ssh/id'
act 'see a login' 'cat ~/.claude/.credentials.json'
readlink /proc/self/ns/net >network"#;
    world.dispatch(&["--check", check]);
    world.sandbox.wait_for_state("x", "done");
    let read = |path| fs::read_to_string(world.sandbox.project().join(path)).expect("there");
    let own = fs::read_link("/proc/self/ns/net").expect("Linux");
    assert_eq!(read("network").trim(), own.display().to_string());
    same(
        &read("acts"),
        str![[r#"
edit: done
write a temporary file: done
read the plan: done
write the plan: refused
write a git hook: refused
write in the home directory: refused
see the record: refused
see keys: refused
see a login: refused

"#]],
    );
}

/// A new worktree is set up in the task's sandbox, with access to write there even for a worker at `read`.
#[test]
fn set_up_and_checkout_hook_are_held_like_the_worker() {
    let works = "\"$HELPER\" tick 1 && \"$HELPER\" tick 2 && \"$HELPER\" finish Fine.";
    let acts = r#"act() { if (eval "$2") >/dev/null 2>&1; then echo "$1: done"; else echo "$1: refused"; fi >>acts; }
act 'write in the worktree' 'echo x >made'
act 'write in the project' 'echo x >~/project/made'
act 'write in the home directory' 'echo x >~/outside'
act 'write the plan' 'echo x >>"$DISPATCH_TASK_DIR/plan.md"'
act 'see keys' 'cat ~/.ssh/id'
"#;
    for access in ["read", "write"] {
        let Some(world) = World::new(access, works) else { return };
        let sandbox = &world.sandbox;
        let hook = sandbox.project().join(".git/hooks/post-checkout");
        write_program(sandbox, &hook, &format!("{acts}echo \"hook $3\" >>acts"));
        fs::write(sandbox.home().join("bin/set-up"), acts).expect("written");
        let config = fs::read_to_string(sandbox.config_path()).expect("a config");
        sandbox.config(&format!("{config}worktree: {{ setup: sh ~/bin/set-up }}\n"));
        world.dispatch(&["--worktree"]);
        sandbox.wait_for_state("x", "done");
        let acts = fs::read_to_string(worktree_of(sandbox, "x").0.join("acts")).expect("there");
        same(
            &acts,
            str![[r#"
write in the worktree: done
write in the project: refused
write in the home directory: refused
write the plan: refused
see keys: refused
hook 1
write in the worktree: done
write in the project: refused
write in the home directory: refused
write the plan: refused
see keys: refused

"#]],
        );
    }
}
