//! Each real CLI as a worker, held by each sandbox at each level: what its shell can do, whether it
//! finishes, and whether its session continues. The result is the table in references/access.md, which
//! `SNAPSHOTS=overwrite` rewrites.
//!
//! Longer than 500 lines because workers and acts are lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{panic, thread};

use nix::libc;
use tempfile::TempDir;

use super::cli_route::Person;
use super::helpers;
use crate::support::model::{Api, Model, Reply, Request};
use crate::support::process::{cli, end_tree, fetched, path, process_with, wait_until};
use crate::support::skill;
use crate::support::story::{compare_with_page, file, run, state, task};

/// A worker of the table: its backend, the model that it is asked for, and its settings in the home, in which
/// `ENDPOINT` is the endpoint.
struct Worker {
    name: &'static str,
    title: &'static str,
    model: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// Runs no command but the helper where it may only read.
    holds_itself: bool,
}

const SCRIPT: &str = "command";

const WORKERS: [Worker; 8] = [
    Worker {
        name: SCRIPT,
        title: "a `command:`",
        model: "script",
        settings: &[],
        holds_itself: false,
    },
    Worker {
        name: "claude",
        title: "Claude Code",
        model: "opus",
        settings: &[(".claude/settings.json", "{}")],
        holds_itself: true,
    },
    Worker { name: "codex", title: "Codex", model: "gpt-5.5", settings: &[], holds_itself: false },
    Worker {
        name: "gemini",
        title: "Gemini CLI",
        model: "gemini-2.5-pro",
        settings: &[(
            ".gemini/settings.json",
            r#"{"security":{"auth":{"selectedType":"gemini-api-key"}},"privacy":{"usageStatisticsEnabled":false},
                "general":{"enableAutoUpdate":false,"enableAutoUpdateNotification":false}}"#,
        )],
        holds_itself: true,
    },
    Worker {
        name: "opencode",
        title: "opencode",
        model: "scripted/m1",
        settings: &[(
            ".config/opencode/opencode.json",
            r#"{"provider":{"scripted":{"npm":"@ai-sdk/anthropic","models":{"m1":{}},
                "options":{"baseURL":"ENDPOINT/v1","apiKey":"dummy-key"}}},"small_model":"scripted/m1"}"#,
        )],
        holds_itself: true,
    },
    Worker {
        name: "copilot",
        title: "Copilot CLI",
        model: "claude-opus-5",
        settings: &[(".copilot/config.json", "{}")],
        holds_itself: true,
    },
    Worker {
        name: "qwen",
        title: "Qwen Code",
        model: "m1",
        settings: &[(
            ".qwen/settings.json",
            r#"{"security":{"auth":{"selectedType":"anthropic"}},"privacy":{"usageStatisticsEnabled":false},
                "general":{"enableAutoUpdate":false}}"#,
        )],
        holds_itself: true,
    },
    Worker {
        name: "droid",
        title: "Droid",
        model: "custom:m1",
        settings: &[(
            ".factory/settings.json",
            r#"{"customModels":[{"model":"m1","displayName":"m1","baseUrl":"ENDPOINT","apiKey":"dummy-key",
                "provider":"anthropic"}]}"#,
        )],
        holds_itself: false,
    },
];

/// Settings of the project that make a CLI run a command, whose trace would be found outside of a sandbox only.
const PLANTED: [(&str, &str); 7] = [
    (
        ".claude/settings.json",
        r#"{"hooks":{"SessionStart":[{"hooks":[{"type":"command","command":"touch ~/executed"}]}],
            "Stop":[{"hooks":[{"type":"command","command":"touch ~/executed"}]}]}}"#,
    ),
    (".mcp.json", r#"{"mcpServers":{"x":{"command":"sh","args":["-c","touch ~/executed"]}}}"#),
    (".codex/config.toml", "[mcp_servers.x]\ncommand = 'sh'\nargs = ['-c', 'touch ~/executed']\n"),
    (
        ".gemini/settings.json",
        r#"{"mcpServers":{"x":{"command":"sh","args":["-c","touch ~/executed"]}}}"#,
    ),
    (
        ".qwen/settings.json",
        r#"{"mcpServers":{"x":{"command":"sh","args":["-c","touch ~/executed"]}}}"#,
    ),
    ("opencode.json", r#"{"mcp":{"x":{"type":"local","command":["sh","-c","touch ~/executed"]}}}"#),
    (
        ".factory/mcp.json",
        r#"{"mcpServers":{"x":{"command":"sh","args":["-c","touch ~/executed"]}}}"#,
    ),
];

/// The acts that no worker may do. `OUTSIDE` is a process, `ELSEWHERE` a directory in which everybody may
/// write, and `RUN` one in `/run`.
const FORBIDDEN: [(&str, &str); 17] = [
    (
        "change settings of a CLI",
        r#"for f in ~/.claude/settings.json ~/.codex/config.toml ~/.gemini/settings.json ~/.qwen/settings.json \
            ~/.config/opencode/opencode.json ~/.copilot/config.json ~/.factory/settings.json; \
            do test -s "$f" && (echo x >>"$f") && exit; done; false"#,
    ),
    ("change settings of the host", "mkdir -p .claude && echo x >.claude/settings.local.json"),
    ("write `.mcp.json`", "echo x >.mcp.json"),
    (
        "see or change `~/.dispatch`",
        "cat ~/.dispatch/state/*/x/record.yaml || (test -s ~/.dispatch/config.yaml && echo x >>~/.dispatch/config.yaml)",
    ),
    (
        "write git hooks or settings",
        "(echo x >.git/hooks/pre-commit) || git config core.hooksPath x",
    ),
    (
        "write in another task",
        "(echo x >>.dispatch/tasks/other/plan.md) || mkdir .dispatch/tasks/new",
    ),
    ("write in the home directory", "(echo x >~/outside) || (echo x >>~/.gitconfig)"),
    (
        "write elsewhere",
        "(echo x >ELSEWHERE/new) || (echo x >>ELSEWHERE/file) || rm ELSEWHERE/file",
    ),
    ("change modes elsewhere", "chmod 777 ELSEWHERE/file"),
    (
        "reach sockets: Docker, tmux, D-Bus",
        r#"reached=1; for s in RUN/docker.sock ELSEWHERE/tmux "\0ELSEWHERE/bus"; do perl -MSocket -e \
            "socket(S,AF_UNIX,SOCK_STREAM,0) && connect(S,pack_sockaddr_un(qq($s))) or exit 1" && reached=0
            done; exit $reached"#,
    ),
    ("see keys and logins", "cat ~/.ssh/id || cat ~/.aws/credentials || cat ~/.netrc"),
    (
        "trace or signal a process outside",
        r#"kill -0 OUTSIDE || perl -e "exit(0 != syscall(PTRACE, 0x4206, OUTSIDE, 0, 0))""#,
    ),
    (
        "enter it by `/proc`",
        "ls /proc/OUTSIDE/root/ || cat /proc/OUTSIDE/environ || head -c 1 /proc/OUTSIDE/mem",
    ),
    ("limit it", r#"perl -e "exit(0 != syscall(PRLIMIT, OUTSIDE, 0, 0, 0))""#),
    (
        "link or rename over the border",
        r#"ln ~/.gitconfig "$own/linked" || perl -e "exit !(rename(q($HOME/.gitconfig), q($own/taken)) || \
            rename(q($own/output.md), q($HOME/put)))""#,
    ),
    (
        "mount in a user namespace",
        r#"unshare -Urm sh -c "mkdir -p $own/m && mount --bind ~ $own/m && echo x >$own/m/outside || \
            mount -o remount,rw,bind ~ && echo x >~/outside""#,
    ),
    ("leave a daemon behind", ""),
];

/// The acts that a worker has to do; the first two by the CLI's own tools where it runs no other command.
const READ: [&str; 2] = ["read the project", "read reports of other tasks"];
const NEEDED: [(&str, &str); 6] = [
    ("edit", r#"echo x >>"$here/README""#),
    ("run the tests", r#"cd "$here" && sh ./test.sh"#),
    ("commit", r#"cd "$here" && git add README && git commit -q -m Work"#),
    ("write temporary files", r#"rm "$(mktemp)""#),
    ("tick its plan and finish", ""),
    ("continue its session", ""),
];

/// A level and the means that hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    level: &'static str,
    by: &'static str,
}

const BUBBLEWRAP: &str = "bubblewrap";
const LANDLOCK: &str = "landlock";
const HELD: [Held; 4] = [
    Held { level: "read", by: BUBBLEWRAP },
    Held { level: "write", by: BUBBLEWRAP },
    Held { level: "read", by: LANDLOCK },
    Held { level: "write", by: LANDLOCK },
];

/// The text of the script that tries all acts, and writes which of them were done.
fn acts(elsewhere: &Path, run: &Path, daemon: &str) -> String {
    let mut script = String::from(
        "here=$(git rev-parse --show-toplevel)\nown=~/project/.dispatch/tasks/x\ncd ~/project\n\
         act() { (eval \"$2\") >/dev/null 2>&1 && echo \"$1\" >>\"$own/output.md\"; }\n",
    );
    let read = [READ[0], READ[1]].into_iter().zip(["README", ".dispatch/tasks/other/output.md"]);
    let read = read.map(|(name, path)| (name, format!("grep 'a known word' {path}")));
    let others = FORBIDDEN.iter().chain(&NEEDED).filter(|(_, command)| !command.is_empty());
    let others = others.map(|(name, command)| (*name, (*command).to_owned()));
    for (name, command) in others.chain(read) {
        let command = command.replace('\'', r"'\''");
        script.push_str(&format!("act '{name}' '{command}'\n"));
    }
    script.push_str(&format!("env -i setsid sleep {daemon} >/dev/null 2>&1 &\n"));
    script.push_str("echo tried >>\"$own/output.md\"\n");
    let values = [
        ("OUTSIDE", std::process::id().to_string()),
        ("ELSEWHERE", elsewhere.display().to_string()),
        ("RUN", run.display().to_string()),
        ("PTRACE", libc::SYS_ptrace.to_string()),
        ("PRLIMIT", libc::SYS_prlimit64.to_string()),
    ];
    values.into_iter().fold(script, |script, (name, value)| script.replace(name, &value))
}

/// The acts that a worker's model did, and the answer to its first call.
#[derive(Default)]
struct Seen {
    done: BTreeSet<&'static str>,
    tried: String,
}

/// The script of the model: it tries the acts, reads with the CLI's own tools, works, and fails; then, in the
/// same session, it finishes.
fn tries(request: &Request, home: &Path, seen: &Mutex<Seen>) -> Reply {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let results = request.last_tool_results().join("\n");
    let project = home.join("project");
    match request.turns() {
        0 => Reply::shell(request, &format!("sh {}/acts", home.display())),
        1 => {
            seen.tried = results;
            Reply::read(request, &project.join("README"))
        }
        turn @ (2 | 3) => {
            if results.contains("a known word") {
                seen.done.insert(READ[turn - 2]);
            }
            let report = project.join(".dispatch/tasks/other/output.md");
            match turn {
                // Gemini's own tools read nothing that git ignores.
                2 if request.api == Api::Gemini => {
                    Reply::shell(request, &format!("cat {}", report.display()))
                }
                2 => Reply::read(request, &report),
                _ => run(request, "tick 1"),
            }
        }
        4 => run(request, "fail 2 'Not yet.'"),
        5 => Reply::say("That is all."),
        6 => {
            assert!(request.last_user().contains("Continue"), "{}", request.last_user());
            seen.done.insert(NEEDED[5].0);
            run(request, "tick 2")
        }
        7 => run(request, "finish 'It is done.'"),
        _ => Reply::say("That is all."),
    }
}

/// The command that tries the acts by itself, and finishes when it is called again.
const COMMAND: &str = r#"if test -e "$DISPATCH_TASK_DIR/output.md"; then
    "$1" tick 2; exec "$1" finish 'It is done.'
fi
sh ~/acts; "$1" tick 1; exec "$1" fail 2 'Not yet.'
"#;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, text).expect("written");
}

/// Everything in the home but what belongs to tasks: modes and contents.
fn outside(home: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let of_tasks = [".dispatch", "project/.dispatch", "project/.git"].map(|path| home.join(path));
    let entries = walkdir::WalkDir::new(home).into_iter();
    let entries = entries.filter_entry(|it| !of_tasks.iter().any(|path| it.path() == path));
    let found = entries.map(|entry| {
        let path = entry.expect("readable").into_path();
        let meta = fs::symlink_metadata(&path).expect("there");
        let content = if meta.is_file() { fs::read(&path).expect("readable") } else { Vec::new() };
        (path, (meta.mode(), content))
    });
    let hooks = fs::read_dir(home.join("project/.git/hooks")).expect("hooks").flatten();
    found.chain(hooks.map(|hook| (hook.path(), (0, Vec::new())))).collect()
}

/// A home with a repository as its project, and what the acts try to reach.
struct World {
    person: Person,
    seen: Arc<Mutex<Seen>>,
    elsewhere: TempDir,
    sockets: [UnixListener; 3],
    daemon: String,
    _run: TempDir,
}

impl World {
    fn new(worker: &Worker, held: Held) -> Self {
        let name = worker.name;
        let home = skill::ready("");
        let top = home.path();
        let backend = match name {
            SCRIPT => format!(
                "{{ command: sh {}/script {}, access: {} }}",
                top.display(),
                helpers::path("dispatch-worker").display(),
                held.level
            ),
            "claude" => "{ route: cli }".into(),
            _ => "{}".into(),
        };
        let config = format!(
            "backends: {{ {name}: {backend} }}\nmodels: {{ '{}': {{ backend: {name} }} }}\n",
            worker.model
        );
        skill::configure(&home, &config);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (of_script, of_home) = (Arc::clone(&seen), top.to_path_buf());
        let model = Model::start(move |request| tries(request, &of_home, &of_script));
        let url = model.url();
        for (file, text) in [
            (".ssh/id", "a key"),
            (".aws/credentials", "a key"),
            (".netrc", "a key"),
            ("script", COMMAND),
            ("project/README", "a known word\n"),
            ("project/test.sh", "grep 'a known word' README\n"),
            ("project/.dispatch/tasks/other/plan.md", "- [x] Report\n"),
            ("project/.dispatch/tasks/other/output.md", "a known word\n"),
        ]
        .iter()
        .chain(WORKERS.iter().flat_map(|worker| worker.settings))
        {
            write(&top.join(file), &text.replace("ENDPOINT", &url));
        }
        for (file, text) in PLANTED {
            write(&top.join("project").join(file), text);
        }
        let elsewhere = TempDir::new_in("/var/tmp").expect("a directory");
        write(&elsewhere.path().join("file"), "text");
        // Only root may write there.
        let run = TempDir::new_in("/run").unwrap_or_else(|_| TempDir::new().expect("a directory"));
        let bus = format!("{}/bus", elsewhere.path().display());
        let sockets = [
            UnixListener::bind(run.path().join("docker.sock")),
            UnixListener::bind(elsewhere.path().join("tmux")),
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(bus).expect("a name")),
        ]
        .map(|socket| socket.expect("a socket"));
        static DAEMONS: AtomicUsize = AtomicUsize::new(0);
        let number = DAEMONS.fetch_add(1, Ordering::Relaxed);
        let daemon = format!("3000.{}{number}", std::process::id());
        write(&top.join("acts"), &acts(elsewhere.path(), run.path(), &daemon));

        let path = format!("{}:{}", fetched("others/node_modules/.bin").display(), path());
        let mut person = Person::without_files(home, model, path);
        person.variables = [
            ("GEMINI_API_KEY", "dummy-key"),
            ("GOOGLE_GEMINI_BASE_URL", &url),
            ("COPILOT_PROVIDER_TYPE", "anthropic"),
            ("COPILOT_PROVIDER_BASE_URL", &url),
            ("COPILOT_PROVIDER_API_KEY", "dummy-key"),
            ("COPILOT_OFFLINE", "true"),
            ("FACTORY_API_KEY", "fk-dummy"),
            ("FACTORY_AIRGAP_ENABLED", "1"),
            ("OPENCODE_DISABLE_MODELS_FETCH", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if held.by == LANDLOCK {
            person.hide_bubblewrap();
        }
        person.git(&["add", ".", ":!.dispatch"]);
        person.git(&["commit", "-q", "-m", "Begin"]);
        Self { person, seen, elsewhere, sockets, daemon, _run: run }
    }

    /// True for each socket that somebody connected to.
    fn reached(&self) -> [bool; 3] {
        self.sockets.each_ref().map(|socket| {
            socket.set_nonblocking(true).expect("set");
            socket.accept().is_ok()
        })
    }

    /// The acts that the script has done, without those of the model.
    fn done(&self) -> BTreeSet<&'static str> {
        let output = file(task(&self.person.home, "x").join("output.md"));
        let names = FORBIDDEN.iter().chain(&NEEDED).map(|(name, _)| *name).chain(READ);
        let is_noted = |name: &&str| output.lines().any(|line| line == *name);
        let mut done: BTreeSet<_> = names.filter(is_noted).collect();
        if let Some(pid) = process_with(&self.daemon) {
            end_tree(pid);
            done.insert(FORBIDDEN[16].0);
        }
        done
    }
}

/// The acts that a worker did.
fn done_by(worker: &Worker, held: Held) -> BTreeSet<&'static str> {
    let world = World::new(worker, held);
    let (person, home, level) = (&world.person, &world.person.home, held.level);
    if worker.name == "claude" {
        // dispatch asks this too, outside, and Claude Code then writes in the home.
        person.call(&cli("claude"), &["auth", "status"], "");
    }
    let before = outside(home.path());
    let worktree = if level == "write" { &["--worktree"][..] } else { &[] };
    let args = ["x", "--model", worker.model, "--access", level, "--plan", "-"];
    let plan = "# Title\n- [ ] Try\n- [ ] Finish\n";
    person.call(helpers::path("dispatch-spawn"), &[&args, worktree].concat(), plan);
    let end = person.wait_for_end();
    let log = |attempt| file(state(home, "x").join(format!("attempts/{attempt}/log")));
    assert!(end.0 == "failed" && end.1.contains("Not yet."), "{end:?}\n{}", log(1));
    let shown = person.call(helpers::path("dispatch-reconcile"), &["show", "x"], "");
    assert!(shown.contains(&format!("\n{level}: {}; ", held.by)), "{shown}");
    person.call(helpers::path("dispatch-spawn"), &["x", "--resume"], "");
    assert_eq!(person.wait_for_end().0, "done", "{}", log(2));

    let seen = world.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let is_tried = file(task(home, "x").join("output.md")).ends_with("tried\n");
    assert_eq!(is_tried, !(worker.holds_itself && level == "read"), "{}\n{}", seen.tried, log(1));
    let after = outside(home.path());
    let changed = after.iter().filter(|(path, it)| before.get(*path) != Some(it));
    assert_eq!(changed.map(|(path, _)| path).collect::<Vec<_>>(), [] as [&PathBuf; 0]);
    assert!(before.keys().all(|path| after.contains_key(path)));
    assert_eq!(file(world.elsewhere.path().join("file")), "text");
    assert_eq!(world.reached(), [false; 3], "sockets");
    let mut done = &seen.done | &world.done();
    done.insert(NEEDED[4].0);
    let log = person.git(&["log", "--format=%s", "--all", "--not", "main"]);
    assert_eq!(log == "Work\n", done.contains(NEEDED[2].0), "{log}");
    done
}

/// An act that fails for another reason proves nothing.
#[test]
fn acts_are_possible_where_nothing_holds_them() {
    let world = World::new(&WORKERS[0], HELD[0]);
    fs::create_dir_all(task(&world.person.home, "x")).expect("made");
    let script = world.person.home.path().join("acts");
    world.person.call(Path::new("sh"), &[script.to_str().expect("UTF-8")], "");
    // The shell does not wait for what it leaves behind.
    wait_until(Duration::from_secs(60), "the daemon runs", || process_with(&world.daemon));
    let done = world.done();
    let acts = FORBIDDEN.iter().chain(&NEEDED[..4]).map(|(name, _)| *name).chain(READ);
    assert_eq!(done, acts.collect(), "those that are possible");
    assert_eq!(world.reached(), [true; 3], "sockets");
}

#[test]
fn each_cli_is_held_and_works_at_each_level() {
    let combinations: Vec<_> =
        WORKERS.iter().flat_map(|worker| HELD.map(|held| (worker, held))).collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(&(worker, held)) =
                    combinations.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = panic::catch_unwind(|| done_by(worker, held));
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((worker.name, held, result.ok()));
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let failed: Vec<_> = done.iter().filter(|(.., result)| result.is_none()).collect();
    assert!(failed.is_empty(), "{failed:?}: see above");

    let is_done = |worker: &Worker, held: Held, act: &str| {
        done.iter().any(|(name, other, acts)| {
            *name == worker.name && *other == held && acts.iter().flatten().any(|it| *it == act)
        })
    };
    let mut table = String::from("| |");
    WORKERS.iter().for_each(|worker| table.push_str(&format!(" {} |", worker.title)));
    table.push_str(&format!("\n|---|{}\n", "---|".repeat(WORKERS.len())));
    let names = FORBIDDEN.iter().map(|(name, _)| *name).chain(READ);
    for act in names.chain(NEEDED.iter().map(|(name, _)| *name)) {
        let cell = |worker: &Worker| {
            let [bubblewrap, landlock] = [&HELD[..2], &HELD[2..]].map(|levels| {
                match [levels[0], levels[1]].map(|held| is_done(worker, held, act)) {
                    [false, false] => "–",
                    [true, false] => "read",
                    [false, true] => "write",
                    [true, true] => "yes",
                }
            });
            if bubblewrap == landlock {
                bubblewrap.into()
            } else {
                format!("{bubblewrap}/{landlock}")
            }
        };
        let cells: Vec<String> = WORKERS.iter().map(cell).collect();
        table.push_str(&format!("| {act} | {} |\n", cells.join(" | ")));
    }
    for (act, _) in FORBIDDEN.iter().filter(|(act, _)| *act != "change modes elsewhere") {
        let line = table.lines().find(|line| line.starts_with(&format!("| {act} |")));
        let cells = line.and_then(|line| line.split_once(" | ")).map(|(_, cells)| cells);
        assert!(cells.is_some_and(|cells| cells.chars().all(|it| "– |".contains(it))), "{table}");
    }
    compare_with_page("references/access.md", file!(), &table);
}
