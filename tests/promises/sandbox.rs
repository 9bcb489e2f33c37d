//! A worker is held by bubblewrap, or by Landlock: what it may write and see, and how it ends.
//!
//! Longer than 500 lines because the acts of the tests are lists.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::signal::Signal;
use snapbox::str;

use crate::support::made::Random;
use crate::support::process::{kill_and_wait, runs, signal};
use crate::support::text::{same, tree, tree_but};
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
cd ~/project
act 'write in the home directory' 'echo x >~/outside'
act 'change a file outside' 'echo x >>~/.gitconfig'
act 'truncate a file outside' 'truncate -s 0 ~/.gitconfig'
act 'link a file outside' 'ln ~/.gitconfig "$DISPATCH_TASK_DIR/linked"'
act 'take a file from outside' 'perl -e "exit !rename q($HOME/.gitconfig), q($DISPATCH_TASK_DIR/taken)"'
act 'put a file outside' 'echo x >"$XDG_CACHE_HOME/x" && perl -e "exit !rename q($XDG_CACHE_HOME/x), q($HOME/put)"'
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
act 'reach a socket' 'perl -MSocket -e "socket(S,AF_UNIX,SOCK_STREAM,0) && connect(S,pack_sockaddr_un(q($HOME/socket))) or exit 1"'
act 'reach a socket by a pair' 'perl -MSocket -e "socketpair(S,T,AF_UNIX,SOCK_DGRAM,0) && connect(S,pack_sockaddr_un(q($HOME/datagrams))) or exit 1"'
act 'reach the session' 'ls /run/user || test -n "$DBUS_SESSION_BUS_ADDRESS$SSH_AUTH_SOCK"'
act 'see temporary files of others' 'ls "$OTHER_TMP"/* /tmp/*/home/../tmp/*'
act 'enter a process outside' 'ls /proc/$OUTSIDE/root || readlink /proc/$OUTSIDE/fd/0 || cat /proc/$OUTSIDE/environ || head -c 1 /proc/$OUTSIDE/mem'
act 'trace a process outside' 'perl -e "exit(0 != syscall(PTRACE, 0x4206, $OUTSIDE, 0, 0))"'
act 'limit a process outside' 'perl -e "exit(0 != syscall(PRLIMIT, $OUTSIDE, 0, 0, 0))"'
act 'have a capability' '! grep -q "^CapEff:.0000000000000000" /proc/self/status'
act 'have another descriptor' 'sh -c "ls /proc/\$\$/fd" | grep -vx "[012]"'
act 'change a mount' 'unshare -Urm sh -c "umount ~/.dispatch || mount -o remount,rw,bind ~ || umount .git"'
act 'write past a mount of its own' 'unshare -Urm sh -c "mkdir m && mount --bind ~ m && echo x >m/outside"'
"#;

const SIGNAL: &str = "act 'see a process outside' 'kill -0 $OUTSIDE'\n";
const FORBIDDEN_BY_MOUNTS: &str =
    "act 'change the mode of a file outside' 'chmod 777 ~/.gitconfig'\n";

/// More acts that a worker may not do, where Landlock holds it. In namespaces, they reach nothing outside.
const FORBIDDEN_WITHOUT_MOUNTS: &str = r#"
act 'list shared directories' 'ls ~ || ls /tmp || ls /dev/shm || ls /dev/pts'
act 'open the log' ': >/proc/$$/fd/2'
act 'make a user namespace' 'unshare -U true'
act 'use io_uring' 'perl -e "exit(0 > syscall(IO_URING, 1, q(x) x 120))"'
act 'use keys' 'perl -e "exit(0 > syscall(KEYCTL, 0, -3, 1))"'
act 'share memory' 'perl -e "exit !defined shmget(0, 100, 0600)"'
act 'make a snapshot' 'perl -e "open F,q(<),q(.); ioctl(F, 0x5000940e, q(x) x 4096); exit(1 == \$!)"'
"#;

/// Acts that every worker has to do.
const NEEDED: &str = r#"
act 'read the project' 'cat ~/project/README'
act 'read another task' 'cat ~/project/.dispatch/tasks/other/plan.md'
act 'write a temporary file' 'mktemp && mktemp -d'
act 'use the network' 'perl -MIO::Socket::INET -e "\$s = IO::Socket::INET->new(Listen => 1, LocalAddr => q(127.0.0.1)) and IO::Socket::INET->new(PeerAddr => q(127.0.0.1), PeerPort => \$s->sockport) or exit 1"'
act 'end a process of its own' 'sleep 1000 & kill $!'
act 'keep files of its CLI' 'echo x >"$XDG_CACHE_HOME/x"'
act 'tick' '"$HELPER" tick 1'
act 'tick without the helper' 'cd "$DISPATCH_TASK_DIR" && sed "s/\[ \] Second/[x] Second/" plan.md >plan.md.new && mv plan.md.new plan.md'
act 'tell' '"$HELPER" tell "It goes well."'
act 'ask and hear the answer' 'test "$("$HELPER" ask "Which?")" = "This."'
act 'finish' '"$HELPER" finish All.'
"#;

/// Each means that holds a worker on Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Bubblewrap,
    Landlock,
}
const TIERS: [Tier; 2] = [Tier::Bubblewrap, Tier::Landlock];

impl Tier {
    /// The acts that a worker may not do.
    fn forbidden(self) -> String {
        let acts = match self {
            Self::Bubblewrap => format!("{FORBIDDEN}{SIGNAL}{FORBIDDEN_BY_MOUNTS}"),
            Self::Landlock if scopes() => format!("{FORBIDDEN}{SIGNAL}{FORBIDDEN_WITHOUT_MOUNTS}"),
            Self::Landlock => format!("{FORBIDDEN}{FORBIDDEN_WITHOUT_MOUNTS}"),
        };
        let numbers = [
            ("PTRACE", libc::SYS_ptrace),
            ("PRLIMIT", libc::SYS_prlimit64),
            ("IO_URING", libc::SYS_io_uring_setup),
            ("KEYCTL", libc::SYS_keyctl),
        ];
        let with_number =
            |acts: String, (name, number): (&str, _)| acts.replace(name, &format!("{number}"));
        numbers.into_iter().fold(acts, with_number)
    }

    /// The options of a dispatch at `write`.
    fn args(self) -> &'static [&'static str] {
        if self == Self::Landlock { &["--worktree"] } else { &[] }
    }
}

/// Returns true if the kernel keeps signals and abstract sockets in a sandbox of Landlock.
fn scopes() -> bool {
    kernel() >= (6, 12)
}

/// The first two numbers of the kernel's version.
pub(crate) fn kernel() -> (u32, u32) {
    let name = nix::sys::utsname::uname().expect("a name");
    let release = name.release().to_string_lossy();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// The names of the acts of a script, each with that result.
fn named(acts: &str, result: &str) -> Vec<String> {
    let names = acts.lines().filter_map(|line| line.strip_prefix("act '")?.split('\'').next());
    names.map(|name| format!("{name}: {result}")).collect()
}

/// A repository with a backend `held` that runs a script at a level, and a task that it could disturb.
struct World {
    sandbox: Sandbox,
    tier: Tier,
    script: PathBuf,
    sockets: (UnixListener, UnixDatagram),
}

impl World {
    /// `None` where bubblewrap is missing, which in CI is an error.
    fn new(access: &str, script: &str) -> Option<Self> {
        Self::held_by(Tier::Bubblewrap, access, script)
    }

    /// `None` where the machine cannot hold a worker so, which in CI is an error.
    fn held_by(tier: Tier, access: &str, script: &str) -> Option<Self> {
        let mut sandbox = Sandbox::with_git();
        let has_tier = match tier {
            Tier::Bubblewrap => dispatch::process::find_program("bwrap".as_ref()).is_some(),
            Tier::Landlock => kernel() >= (6, 2),
        };
        if !has_tier {
            assert!(std::env::var_os("CI").is_none(), "{tier:?} cannot hold a worker here");
            eprintln!("SKIPPED: {tier:?} cannot hold a worker here");
            return None;
        }
        if tier == Tier::Landlock {
            sandbox.hide_bubblewrap();
        }
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
        let stream = UnixListener::bind(home.join("socket")).expect("a socket");
        let datagrams = UnixDatagram::bind(home.join("datagrams")).expect("a socket");
        let script = home.join("bin/held");
        let world = Self { sandbox, tier, script, sockets: (stream, datagrams) };
        world.config(access);
        Some(world)
    }

    /// Where a worker at `write` works.
    fn place(&self) -> PathBuf {
        match self.tier {
            Tier::Bubblewrap => self.sandbox.project(),
            Tier::Landlock => worktree_of(&self.sandbox, "x").0,
        }
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
        let path = self.place().join(path);
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
pub(crate) fn process_with(word: &str) -> Option<u32> {
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
        "{ACTS}{}act 'edit' 'echo x >>README'\nact 'run a program it made' \
         'echo true >run && sh run'\n{NEEDED}",
        Tier::Bubblewrap.forbidden()
    );
    let Some(world) = World::new("write", &script) else { return };
    let acts = acts(&world, &[]);
    let refused: Vec<_> = acts.lines().filter(|it| it.ends_with(": refused")).collect();
    assert_eq!(refused, named(&Tier::Bubblewrap.forbidden(), "refused"), "{acts}");
    same(
        &acts,
        str![[r#"
write in the home directory: refused
change a file outside: refused
truncate a file outside: refused
link a file outside: refused
take a file from outside: refused
put a file outside: refused
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
reach a socket by a pair: refused
reach the session: refused
see temporary files of others: refused
enter a process outside: refused
trace a process outside: refused
limit a process outside: refused
have a capability: refused
have another descriptor: refused
change a mount: refused
write past a mount of its own: refused
see a process outside: refused
change the mode of a file outside: refused
edit: done
run a program it made: done
read the project: done
read another task: done
write a temporary file: done
use the network: done
end a process of its own: done
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
fn worker_is_held_alike_in_each_tier() {
    for (tier, access, args) in [
        (Tier::Bubblewrap, "read", &[][..]),
        (Tier::Landlock, "read", &[]),
        (Tier::Bubblewrap, "write", &["--worktree"]),
        (Tier::Landlock, "write", &["--worktree"]),
    ] {
        let forbidden = tier.forbidden();
        let own = "cd \"$here\"\nact 'edit' 'echo x >>README'\n\
                   act 'commit' 'git add README && git commit -q -m Work'\n";
        let script = format!("{ACTS}here=$PWD\n{forbidden}{own}{NEEDED}");
        let Some(world) = World::held_by(tier, access, &script) else { return };
        let acts = acts(&world, args);
        let of_own = if access == "read" { "refused" } else { "done" };
        let expected = [named(&forbidden, "refused"), named(own, of_own), named(NEEDED, "done")];
        assert_eq!(acts.lines().collect::<Vec<_>>(), expected.concat(), "{tier:?} {access}");
        if access == "write" {
            let log = world.sandbox.git(&["log", "--format=%s", "dispatch/x"]);
            assert_eq!(log, "Work\nBegin\n");
        }
    }
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
    let name = format!("dispatch-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("an address");
    let _socket = UnixListener::bind_addr(&address).expect("a socket");
    let connect = format!(
        r#"perl -MSocket -e 'socket(S,AF_UNIX,SOCK_STREAM,0); connect(S,pack("S a*",AF_UNIX,"\0{name}")) or exit(1)'"#
    );
    for tier in TIERS {
        if tier == Tier::Bubblewrap && !scopes() {
            eprintln!("SKIPPED: only Linux 6.12 can refuse them");
            continue;
        }
        let script = format!("{connect}; echo $? >reached");
        let Some(world) = World::held_by(tier, "write", &script) else { return };
        assert_eq!(world.sandbox.program("sh").args(&["-c", &connect]).run().code, Some(0));
        world.dispatch(tier.args());
        let reached = || fs::read_to_string(world.place().join("reached")).ok();
        let said = wait_until("it tries", || reached().filter(|it| !it.is_empty()));
        assert_eq!(said, "1\n", "{tier:?}");
    }
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
fn landlock_holds_a_worker_that_writes_in_a_worktree_only() {
    let Some(world) = World::held_by(Tier::Landlock, "write", "exec sleep 1000") else { return };
    let sandbox = &world.sandbox;
    sandbox.plan("x", PLAN);
    sandbox.run("dispatch-spawn", &["x"]).shows(str![[r#"
exit 69
! dispatch-spawn: held's workers cannot be held to 'write' access
!   without bubblewrap, access to write needs a worktree
!   next: add --worktree; or if the user lets them do anything: dispatch-config set-access held full
"#]]);
    let signals = if scopes() { "" } else { " and signal" };
    let open = format!(
        "landlock; writes in the worktree, its task, its home; can see{signals} other processes, \
         change modes of files, leave processes behind; network open\n"
    );
    sandbox.ok("dispatch-spawn", &["x", "--worktree"]);
    let shown = sandbox.ok("dispatch-reconcile", &["show", "x"]);
    assert!(shown.contains(&format!("\nwrite: {open}")), "{shown}");
    // Neither a bubblewrap that cannot start nor a kernel without Landlock holds anything.
    write_program(sandbox, &sandbox.top().join("programs/bwrap"), "echo 'bwrap: No' >&2; exit 1");
    let dry = || sandbox.call("dispatch-spawn", &["y", "--dry-run", "--worktree", "--plan", "-"]);
    let told = dry().input(PLAN).run().ok();
    assert!(told.ends_with(&format!("\n# write: {open}")), "{told}");
    dry().input(PLAN).env("DISPATCH_FAIL", "landlock").run().shows(str![[r#"
exit 69
! dispatch-spawn: held's workers cannot be held to 'write' access
!   landlock needs Linux 6.2; bubblewrap cannot start: bwrap: No
!   next: if the user lets them do anything: dispatch-config set-access held full
"#]]);
}

/// Tries to hold every file that can be read, to signal every process, to reach every socket, and plants what
/// others could run; then it stays. When it continues, it finishes.
const HOSTILE: &str = r#"
if test -e up; then
    git clean -ffdqx && git checkout -q . && echo work >work && git add work && git commit -q -m Work
    "$HELPER" tick 1; "$HELPER" tick 2; exec "$HELPER" finish All.
fi
hooks=$(git rev-parse --git-path hooks)
mkdir -p "$hooks" .claude
for hook in pre-commit post-checkout post-merge reference-transaction; do
    printf '#!/bin/sh\ntouch ~/executed\n' >"$hooks/$hook" && chmod +x "$hooks/$hook"
done
echo '{"hooks":{"Stop":[{"hooks":[{"type":"command","command":"touch ~/executed"}]}]}}' >.claude/settings.json
git config core.fsmonitor 'touch ~/executed #' && git config filter.x.smudge 'touch ~/executed #'
perl -MSocket -MFcntl=:flock -MFile::Find -e '
    sub reach { socket(S, AF_UNIX, $_[0], 0) && connect(S, pack("S a*", AF_UNIX, $_[1])) and print "$_[1]\n" }
    for my $kind (SOCK_STREAM, SOCK_DGRAM) { reach($kind, "$ENV{HOME}/$_") for "socket", "datagrams" }
    if (open my $all, "<", "/proc/net/unix") { while (<$all>) { /(\S*[\/@]\S*)$/ and reach(SOCK_STREAM, $1) } }
    for (glob "/proc/[0-9]*") { /(\d+)$/; $1 == OUTSIDE and kill(0, $1) and print "signalled $1\n" }
    find(sub { -f && open(my $it, "<", $_) or return; flock($it, LOCK_EX | LOCK_NB) and push @held, $it },
        "$ENV{HOME}/project", $ENV{HOME});
    open my $up, ">", "up"; print $up "up"; close $up; sleep 1000' >reached
"#;

/// Changes and looks of all kinds, at all kinds of places outside, that nobody has thought of one by one, and
/// what the person does then.
#[test]
fn no_sequence_of_acts_changes_anything_outside() {
    const ACTS: [&str; 15] = [
        "chmod 777 P",
        "echo x >P",
        "echo x >>P",
        "truncate -s 0 P",
        "rm -rf P",
        "rmdir P",
        "mv P own-NUMBER",
        "mv own P",
        "mkdir P/made",
        "ln -s /etc/passwd P/made",
        "ln own P/made",
        "ln P own-NUMBER && echo x >own-NUMBER",
        "mkfifo P/made",
        "sed -i s/^/x/ P",
        "perl -e 'open F, q(+<), q(P) and print F q(x)'",
    ];
    let seed = u64::from(std::process::id());
    for tier in TIERS {
        let mut random = Random(seed);
        let Some(world) = World::held_by(tier, "write", "") else { return };
        let sandbox = &world.sandbox;
        let top = sandbox.home();
        let places: Vec<_> = tree(std::slice::from_ref(&top)).into_keys().collect();
        let mut script = String::from("if ! test -e up; then\necho own >own\n");
        // Landlock does not hold modes.
        let acts = &ACTS[usize::from(tier == Tier::Landlock)..];
        for number in 0..200 {
            let act = random.of(acts).replace("NUMBER", &number.to_string());
            let place = random.of(&places);
            // The worker's own worktree lies below; without it, nothing could continue.
            if act.starts_with("rm -rf") && top.join(".dispatch").starts_with(place) {
                continue;
            }
            let place = place.display().to_string();
            script
                .push_str(&format!("({}) >/dev/null 2>&1 </dev/null\n", act.replace('P', &place)));
        }
        let mut outsider = sandbox.program("sleep").args(&["1000"]).start();
        let pid = outsider.pid();
        let hostile = HOSTILE.replace("OUTSIDE", &pid.to_string());
        fs::write(&world.script, format!("{script}fi\n{hostile}")).expect("written");
        let limits = || fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let limits_before = limits();
        world.dispatch(&["--worktree"]);
        let is_own = |path: &Path| {
            let own = [".dispatch", "project/.dispatch", "project/.git"].map(|it| top.join(it));
            own.iter().any(|own| path.starts_with(own))
        };
        let outside = || tree_but(std::slice::from_ref(&top), is_own);
        let before = outside();
        let worktree = worktree_of(sandbox, "x").0;
        wait_until("it has tried", || worktree.join("up").exists().then_some(()));
        let unchanged = |what: &str| {
            assert!(outside() == before, "{what}: {tier:?}, seed {seed}:\n{script}");
        };
        unchanged("after its acts");
        assert_eq!(fs::read_to_string(worktree.join("reached")).expect("there"), "", "{tier:?}");
        let (stream, datagrams) = &world.sockets;
        stream.set_nonblocking(true).expect("set");
        datagrams.set_nonblocking(true).expect("set");
        assert!(stream.accept().is_err() && datagrams.recv(&mut [0]).is_err(), "{tier:?}");
        assert!(!outsider.has_ended() && limits() == limits_before, "{tier:?}");

        // The person's commands work while it locks what it can read, and after it.
        let is_locked = |path: &PathBuf| {
            path.is_file() && fs::File::open(path).expect("readable").try_lock().is_err()
        };
        assert!(outside().keys().any(is_locked), "{tier:?}");
        let calls = [
            ("dispatch-reconcile", &["status"][..]),
            ("dispatch-reconcile", &["show", "x"]),
            ("dispatch-reconcile", &["clean"]),
            ("dispatch-reconcile", &["stop", "x"]),
            ("dispatch-reconcile", &["status"]),
            ("dispatch-reconcile", &["show", "x"]),
            ("dispatch-reconcile", &["clean"]),
            ("dispatch-spawn", &["x", "--resume"]),
        ];
        for (helper, args) in calls {
            sandbox.call(helper, args).env("DISPATCH_GRACE_MS", "50").run().ok();
            unchanged(&args.join(" "));
        }
        assert!(!outside().keys().any(is_locked), "{tier:?}");
        sandbox.wait_for_state("x", "done");
        wait_until("its supervisor ends", || (!runs(sandbox.supervisor_of("x"))).then_some(()));
        sandbox.ok("dispatch-reconcile", &["merge", "x"]);
        assert_eq!(sandbox.git(&["log", "-1", "--format=%s"]), "Work\n");
        fs::remove_file(sandbox.project().join("work")).expect("merged");
        unchanged("merge");
        sandbox.ok("dispatch-reconcile", &["clean"]);
        unchanged("clean");
        outsider.signal(Signal::SIGKILL);
        outsider.end();
    }
}

#[test]
fn stop_ends_everything_in_the_sandbox() {
    for tier in TIERS {
        let script = "env -i setsid sleep 1000.1 &\nsetsid sh -c 'trap : TERM; sleep 1000.2; sleep 1000.3' &\ntouch up\nwait\nsleep 1000";
        let Some(world) = World::held_by(tier, "write", script) else { return };
        world.dispatch(tier.args());
        world.wait_for("up");
        let left =
            wait_until("both run", || Some([process_with("1000.1")?, process_with("1000.2")?]));
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
    for tier in TIERS {
        let Some(world) = World::held_by(tier, "write", "setsid sleep 1000.5 &\nkill -USR1 $$")
        else {
            return;
        };
        world.dispatch(tier.args());
        world.sandbox.wait_for_state("x", "failed: ended by signal 10");
        assert_eq!(process_with("1000.5"), None);
    }
}

#[test]
fn worker_in_a_sandbox_may_end_in_its_own_way() {
    for tier in TIERS {
        let script = "trap 'touch bye; exit 7' TERM\ntouch up\nwhile :; do sleep 0.01; done";
        let Some(world) = World::held_by(tier, "write", script) else { return };
        world.dispatch(tier.args());
        world.wait_for("up");
        signal(world.sandbox.supervisor_of("x"), Signal::SIGTERM);
        world.wait_for("bye");
        let exit = world.sandbox.task("x", "attempts/1/exit");
        wait_until("its end is recorded", || exit.exists().then_some(()));
        let exit = world.sandbox.read("x", "attempts/1/exit");
        assert!(exit.lines().any(|line| line == "code: 7"), "{exit}");
    }
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
    for tier in TIERS {
        let Some(world) =
            World::held_by(tier, "write", "echo forged >/proc/self/fd/0\ncat >/dev/null\ntouch up")
        else {
            return;
        };
        let config = fs::read_to_string(world.sandbox.config_path()).expect("a config");
        world.sandbox.config(&config.replace("access: write", "access: write, prompt: stdin"));
        world.dispatch(tier.args());
        world.wait_for("up");
        let prompt = world.sandbox.read("x", "attempts/1/prompt.md");
        assert!(prompt.starts_with("You are the worker of one task"), "{prompt}");
    }
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
    for tier in TIERS {
        let script = r#"#!/bin/sh
    cat "$XDG_DATA_HOME/opencode/auth.json" >>"$DISPATCH_TASK_DIR/output.md"
    (echo '{"https://x":{"type":"wellknown"}}' >"$XDG_DATA_HOME/opencode/auth.json") 2>/dev/null
    exit 1"#;
        let Some(world) = World::held_by(tier, "write", "") else { return };
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
        world.dispatch(tier.args());
        world.sandbox.wait_for_state("x", "failed: exit code 1");
        assert_eq!(world.sandbox.read("x", "output.md"), "a login\n");
        assert_eq!(fs::read_to_string(login).expect("there"), "a login\n");
    }
}

/// A check may do what the worker's commands may, and write nothing of the task.
#[test]
fn check_is_held_like_the_worker() {
    for tier in TIERS {
        let works = "\"$HELPER\" tick 1 && \"$HELPER\" tick 2 && \"$HELPER\" finish Fine.";
        let Some(world) = World::held_by(tier, "write", works) else { return };
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
        world.dispatch(&[tier.args(), &["--check", check]].concat());
        world.sandbox.wait_for_state("x", "done");
        let read = |path| fs::read_to_string(world.place().join(path)).expect("there");
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
    for (tier, access) in TIERS.iter().flat_map(|tier| [(*tier, "read"), (*tier, "write")]) {
        let Some(world) = World::held_by(tier, access, works) else { return };
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
