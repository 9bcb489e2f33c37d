//! The processes of the stories: the paths of the CLIs, a temporary home, and the end of everything
//! that they start.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// The environment variable that names the directory which `fetch.sh` filled.
pub(crate) const HOSTS: &str = "DISPATCH_HOSTS";

/// A file of that directory.
pub(crate) fn fetched(path: &str) -> PathBuf {
    let root = env::var_os(HOSTS).unwrap_or_else(|| {
        panic!("{HOSTS} is not set: sh tests/host/fetch.sh DIR, and set it to DIR")
    });
    Path::new(&root).join(path)
}

/// The path of a fetched CLI.
pub(crate) fn cli(name: &str) -> PathBuf {
    fetched("node_modules/.bin").join(name)
}

/// The PATH of the CLIs: the fetched CLIs, the system, and node, which starts codex.
pub(crate) fn path() -> String {
    let claude = cli("claude");
    let mut all = vec![claude.parent().expect("a directory").to_path_buf()];
    all.extend(["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from));
    let ours = env::var_os("PATH").unwrap_or_default();
    all.extend(env::split_paths(&ours).find(|dir| dir.join("node").is_file()));
    let all = env::join_paths(all).expect("directories without a colon");
    all.into_string().expect("directories in UTF-8")
}

/// Polls until the condition returns a value; panics after `deadline`.
#[track_caller]
pub(crate) fn wait_until<T>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An empty home with a project. Dropping it ends all processes with this HOME, including workers
/// that outlive their host.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    /// A new home.
    pub(crate) fn new() -> Self {
        Self::named("dispatch-host-")
    }

    /// A new home whose path has spaces.
    pub(crate) fn with_spaces() -> Self {
        Self::named("dispatch host ")
    }

    fn named(prefix: &str) -> Self {
        // A sandboxed codex may write to /tmp as to its own project, so use another directory.
        let root = Some(PathBuf::from("/var/tmp")).filter(|root| root.is_dir());
        let root = root.unwrap_or_else(env::temp_dir);
        let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(root);
        let dir = dir.expect("a home");
        fs::create_dir(dir.path().join("project")).expect("a project");
        Self { dir }
    }

    /// The home directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The project: where the CLIs are started.
    pub(crate) fn project(&self) -> PathBuf {
        self.path().join("project")
    }

    /// The processes whose HOME this is.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let entry = format!("HOME={}", self.path().display());
        processes()
            .filter(|pid| {
                let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.split(|&byte| byte == 0).any(|variable| variable == entry.as_bytes())
            })
            .collect()
    }

    /// The processes of this home that run a helper, all five of which are one program.
    pub(crate) fn running(&self, helper: &str) -> Vec<i32> {
        let mut all = self.processes();
        all.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let name = line.split(|&byte| byte == 0).next().unwrap_or_default();
            Path::new(OsStr::from_bytes(name)).ends_with(helper)
        });
        all
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Repeat, because a process may have forked during the scan.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Kills a process and all its descendants, which are stopped first so that none escapes.
pub(crate) fn end_tree(root: i32) {
    let mut tree = BTreeSet::from([root]);
    let _ = kill(Pid::from_raw(root), Signal::SIGSTOP);
    loop {
        let new: Vec<i32> = processes()
            .filter(|pid| !tree.contains(pid) && parent(*pid).is_some_and(|it| tree.contains(&it)))
            .collect();
        if new.is_empty() {
            break;
        }
        for pid in new {
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
            tree.insert(pid);
        }
    }
    for pid in tree {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The process whose command line has this word.
#[cfg(target_os = "linux")]
pub(crate) fn process_with(word: &str) -> Option<i32> {
    processes().filter(|pid| runs(*pid)).find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|it| it == word.as_bytes())
    })
}

/// `true` while a process exists and is no zombie.
pub(crate) fn runs(pid: i32) -> bool {
    let state = stat(pid).and_then(|fields| fields.chars().next());
    state.is_some_and(|state| state != 'Z')
}

/// `true` while a process sleeps on file watches.
pub(crate) fn watches(pid: i32) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let mut infos = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    infos.any(|info| info.contains("inotify wd:"))
        && stat(pid).is_some_and(|it| it.starts_with('S'))
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

/// The fields of a process's stat after its name: state, parent, …
fn stat(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(") ")?.1.to_owned())
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The skill in an empty home, installed as a person does.
pub(crate) mod skill {
    use std::{
        fs,
        path::{Path, PathBuf},
        process::Command,
    };

    use serde_json::{Value, json};

    use super::Home;
    use crate::helpers;

    /// The files that an installer copies and the skill reads.
    const SKILL: [&str; 6] =
        ["SKILL.md", "helpers", "install.sh", "bin", "references", ".claude-plugin"];

    /// A new home with the skill, its helpers and this config.
    pub(crate) fn ready(config: &str) -> Home {
        ready_in(Home::new(), config)
    }

    /// Installs the skill, its helpers and this config in a home.
    pub(crate) fn ready_in(home: Home, config: &str) -> Home {
        install(&home);
        install_helpers(&home);
        configure(&home, config);
        home
    }

    /// Puts the skill's folder where Claude Code looks for the user's skills.
    pub(crate) fn install(home: &Home) {
        let skill = home.path().join(".claude/skills/dispatch");
        fs::create_dir_all(&skill).expect("the skill's directory");
        let mut copy = Command::new("cp");
        copy.arg("-R").args(SKILL).arg(&skill).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(copy.status().expect("cp").success(), "the skill is not copied");
    }

    /// Puts the helpers where the skill's launchers look for them.
    pub(crate) fn install_helpers(home: &Home) {
        helpers::install(&home.path().join(".local/share/dispatch"));
    }

    /// Writes the config.
    pub(crate) fn configure(home: &Home, config: &str) {
        fs::create_dir_all(home.path().join(".dispatch")).expect("the config's directory");
        fs::write(home.path().join(".dispatch/config.yaml"), config).expect("the config");
    }

    /// Adds the permission rules to the user's settings, as `install.sh --allow --yes` does.
    pub(crate) fn allow(home: &Home) {
        allow_in(home, &home.path().join(".claude/skills/dispatch"));
    }

    /// Adds the permission rules for the skill in that folder.
    pub(crate) fn allow_in(home: &Home, skill: &Path) {
        let bin = skill.join("bin");
        let mut allow = Command::new(bin.join("dispatch-config"));
        allow.args(["allow", "--yes", "--bin"]).arg(&bin).env_clear().env("HOME", home.path());
        // The person calls, also where a CLI runs the tests.
        allow.env("DISPATCH_FAIL", "callers");
        let output = allow.output().expect("dispatch-config");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Removes the skill's hooks from `first` on, as an older host would ignore them.
    pub(crate) fn without_hooks(home: &Home, first: &str) {
        let path = home.path().join(".claude/skills/dispatch/SKILL.md");
        let text = fs::read_to_string(&path).expect("the skill");
        let (before, rest) = text.split_once(&format!("{first}:\n")).expect("the hook");
        let (_, after) = rest.split_once("---\n").expect("the end of the frontmatter");
        fs::write(path, format!("{}\n---\n{after}", before.trim_end())).expect("the skill");
    }

    /// Makes the host write the input of these hooks to a file of the home, one line each.
    pub(crate) fn record_hooks(home: &Home, hooks: &[&str]) -> PathBuf {
        let path = home.path().join("hooks");
        let command = format!("(cat; echo) >> '{}'", path.display());
        let hook = json!([{ "hooks": [{ "type": "command", "command": command }] }]);
        let hooks: Value = hooks.iter().map(|name| ((*name).to_owned(), hook.clone())).collect();
        let settings = home.project().join(".claude");
        fs::create_dir_all(&settings).expect("the project's settings");
        fs::write(settings.join("settings.json"), json!({ "hooks": hooks }).to_string())
            .expect("the project's settings");
        path
    }
}
