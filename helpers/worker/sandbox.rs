//! The sandbox of a task's worker: what it may write, what it cannot see, and the private directories
//! of its CLI.
//!
//! Invariant: a worker writes nothing that git, a host, a CLI or dispatch obeys outside of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Access, Backend, Failure, FailureKind, Route, TaskId};
use crate::error::Refusal;
use crate::exit::Exit;
use crate::files::{self, Lock};
use crate::process::{self, Holder, Life, Rule, Sandbox, find_program, launcher, worker_helper};
use crate::task::{Attempt, Record, Task};
use crate::tools;

/// The keys, logins and sessions of the person, below the home directory.
const SECRETS: &[&str] = &[
    ".ssh",
    ".gnupg",
    ".password-store",
    ".local/share/keyrings",
    ".local/share/kwalletd",
    ".netrc",
    ".git-credentials",
    ".config/git/credentials",
    ".config/gh",
    ".config/hub",
    ".config/op",
    ".config/gcloud",
    ".config/cursor",
    ".aws",
    ".azure",
    ".kube",
    ".docker",
    ".colima",
    ".lima",
    ".orbstack",
    ".pypirc",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".gem/credentials",
    ".claude.json",
    ".Xauthority",
    ".ICEauthority",
    ".mozilla",
    ".thunderbird",
    ".config/chromium",
    ".config/google-chrome",
];

/// Where programs of the session have their sockets, and where everybody may write.
const SHARED: &[&str] = if cfg!(target_os = "macos") { &[] } else { &["/tmp", "/run"] };

/// The parts of the directories above that programs need: names of hosts, and the programs of NixOS.
const NEEDED: &[&str] = &["/etc/resolv.conf", "/run/current-system", "/run/opengl-driver"];

/// Where services have sockets that tell who a user is.
const NAME_SERVICES: &[&str] = &["/var/lib/sss"];

/// The places at the top of a project from which git or an editor runs something by itself. The places
/// of a CLI stand in its file in `tools/`.
const OBEYED: &[&str] = &[".husky", ".githooks", ".vscode", ".idea", ".devcontainer"];

/// Variables that lead to programs of the session.
const SESSION: &[&str] = &[
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "XDG_RUNTIME_DIR",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "TMUX",
    "STY",
    "DOCKER_HOST",
    "CONTAINER_HOST",
    "GNOME_KEYRING_CONTROL",
    "VSCODE_IPC_HOOK_CLI",
    "VSCODE_GIT_IPC_HANDLE",
    "VSCODE_GIT_ASKPASS_NODE",
    "VSCODE_GIT_ASKPASS_MAIN",
    "GIT_ASKPASS",
    "SSH_ASKPASS",
];

/// How long a supervisor waits for another one that looks at the places that are kept.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// A line that says what holds a task's worker; `None` for an agent, which the host holds.
pub fn description(record: &Record) -> Option<String> {
    let access = record.access;
    let place = if record.worktree.is_some() { "the worktree, " } else { "the project, " };
    let place = if access == Access::Write { place } else { "" };
    Some(match (record.route, record.holder) {
        (Route::Agent, _) => return None,
        (Route::Cli, Some(holder)) => {
            format!("{access}: {holder}; writes in {place}its task, its home")
        }
        (Route::Cli, None) if access == Access::Full => format!("{access}: nothing holds it"),
        (Route::Cli, None) => format!("{access}: {}'s own rules", record.backend),
    })
}

/// Refuses a place in which a worker could write what others run or obey.
///
/// # Errors
/// [`Exit::Unavailable`] with the path.
pub fn refuse_unholdable(task: &Task, record: &Record, settings: &Backend) -> Result<()> {
    if record.holder.is_none() {
        return Ok(());
    }
    let sandbox = rules(task, record, settings)?;
    let refusal = |path: &Path, why: &str| {
        let what = format!("the worker cannot be held to '{}' access", record.access);
        Refusal::new(Exit::Unavailable, what)
            .place(format!("{}: {why}", path.display()))
            .next("add --worktree, or --access read")
    };
    let home = std::env::home_dir().unwrap_or_default();
    let own = [worker_helper()?, launcher("dispatch-worker")?, dirs::config_path()?, home];
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A program that is found by its name may be another one tomorrow.
    let programs = std::env::split_paths(&path).map(|it| record.directory.join(it));
    for path in own.into_iter().chain(programs).filter_map(|it| it.canonicalize().ok()) {
        if sandbox.rule_for(&path) == Rule::Writable {
            return Err(refusal(&path, "the worker could change what runs outside").into());
        }
    }
    let links = kept(record).into_iter().filter(|it| it.is_symlink());
    if let Some(link) = links.into_iter().next() {
        return Err(refusal(&link, "the worker could replace this symlink").into());
    }
    Ok(())
}

/// The rules for a task's worker.
fn rules(task: &Task, record: &Record, settings: &Backend) -> Result<Sandbox> {
    let mut sandbox = Sandbox::default();
    let home = std::env::home_dir().unwrap_or_default();
    let own = [dirs::dispatch_home()?, dirs::state_root()?, dirs::homes_root()?];
    let hidden = SHARED.iter().map(PathBuf::from).chain([std::env::temp_dir()]).chain(own);
    let hidden = hidden.chain(SECRETS.iter().map(|path| home.join(path)));
    for path in hidden.chain(tools::private_directories()) {
        sandbox.rule(&path, Rule::Hidden);
    }
    let project = project(task);
    let worktrees = record.worktree.as_ref().and_then(|worktree| worktree.path.parent());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let seen = [home.clone(), worker_helper()?, record.directory.clone(), project.into()];
    let seen = seen.into_iter().chain(NEEDED.iter().map(PathBuf::from));
    let seen = seen.chain(worktrees.map(Path::to_path_buf)).chain(std::env::split_paths(&path));
    let (places, logins) = tools::places(&record.backend, settings);
    for path in seen.chain(logins.into_iter().map(|path| home.join(path))) {
        sandbox.reveal(&path);
    }
    if record.access == Access::Write {
        // A worktree has a repository of its own at its top.
        let own = record.worktree.as_ref().map_or(&record.directory, |worktree| &worktree.path);
        sandbox.rule(own, Rule::Writable);
        for path in kept(record).into_iter().chain(obeyed(record)) {
            sandbox.rule(&path, Rule::ReadOnly);
        }
    }
    sandbox.rule(&project.join(".dispatch"), Rule::ReadOnly);
    sandbox.rule(task.side().directory(), Rule::Writable);
    sandbox.rule(&home_of(task, record)?, Rule::Writable);
    for place in places {
        let person = place.directory();
        place.settings.iter().for_each(|it| sandbox.rule(&person.join(it), Rule::ReadOnly));
        place.login.iter().for_each(|it| sandbox.rule(&person.join(it), Rule::Writable));
    }
    Ok(sandbox)
}

/// The directory whose `.dispatch` has the task.
fn project(task: &Task) -> &Path {
    task.side().directory().ancestors().nth(3).unwrap_or(Path::new("/"))
}

/// The places at the top of a project that a worker must not fill, since a host or CLI would obey them.
/// A worktree is not obeyed before it is merged.
fn kept(record: &Record) -> Vec<PathBuf> {
    if record.access != Access::Write || record.worktree.is_some() {
        return Vec::new();
    }
    let names = tools::obeyed().into_iter().chain([".git"]);
    names.map(|name| record.directory.join(name)).collect()
}

/// The places at the top of a project that a worker must not change if they exist.
fn obeyed(record: &Record) -> Vec<PathBuf> {
    if record.worktree.is_some() {
        return Vec::new();
    }
    OBEYED.iter().map(|name| record.directory.join(name)).collect()
}

/// The private directories of a task's CLI. Another level or another task has others.
fn home_of(task: &Task, record: &Record) -> Result<PathBuf> {
    Ok(homes_of(task, &record.nonce)?.join(record.access.to_string()))
}

fn homes_of(task: &Task, nonce: &str) -> Result<PathBuf> {
    let project = task.state_dir().parent().and_then(Path::file_name).unwrap_or_default();
    Ok(dirs::homes_root()?.join(project).join(format!("{}-{nonce}", task.id())))
}

/// Removes the private directories of a task's CLI.
pub fn remove_homes(task: &Task, record: &Record) -> Result<()> {
    files::remove_directory(&homes_of(task, &record.nonce)?)
}

/// Makes the private directories of a task's CLI, in which the person's login and settings are linked.
fn make_home(home: &Path, settings: &[tools::Place]) -> Result<()> {
    // Never write from outside where a worker has written: it may have planted links.
    if home.exists() {
        return Ok(());
    }
    let new = home.with_extension("new");
    files::remove_directory(&new)?;
    for name in ["cache", "tmp"] {
        files::create_private_directory(&new.join(name))?;
    }
    for place in settings {
        files::create_private_directory(&new.join(place.variable))?;
        for file in place.login.iter().chain(place.settings) {
            let (own, person) = (new.join(place.variable).join(file), place.directory().join(file));
            files::create_private_directory(own.parent().context("a file at the root")?)?;
            let person = person.canonicalize().unwrap_or(person);
            symlink(&person, &own).with_context(|| format!("cannot make {}", own.display()))?;
        }
    }
    std::fs::rename(&new, home).with_context(|| format!("cannot make {}", home.display()))
}

/// The command that runs `argv` as a task's worker, held by `holder`.
pub(super) fn command(
    task: &Task,
    record: &Record,
    attempt: &Attempt,
    settings: &Backend,
    holder: Holder,
    argv: &[OsString],
) -> Result<Command> {
    let home = home_of(task, record)?;
    let (places, _) = tools::places(&record.backend, settings);
    make_home(&home, places)?;
    refuse_unholdable(task, record, settings)?;
    keep_places(task, record)?;
    let mut sandbox = rules(task, record, settings)?;
    sandbox.rule(&attempt.prompt_path(), Rule::ReadOnly);
    sandbox.hide_sockets(NAME_SERVICES);
    let mut argv = argv.to_vec();
    if let Some(program) = find_program(&argv[0]) {
        argv[0] = std::path::absolute(program)?.into();
    }
    let words = sandbox.command(holder, &record.directory, &argv)?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    process::deny_abstract_sockets(&mut command);
    for name in SESSION {
        command.env_remove(name);
    }
    // A directory of PATH may be a link in a hidden one.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter_map(|it| it.canonicalize().ok());
    command.env("PATH", std::env::join_paths(path)?);
    let tmp = if SHARED.is_empty() { home.join("tmp") } else { "/tmp".into() };
    command.env("TMPDIR", tmp).env("XDG_CACHE_HOME", home.join("cache"));
    for place in places {
        command.env(place.variable, home.join(place.variable));
    }
    command.envs(tools::variables(&record.backend, settings).iter().copied());
    Ok(command)
}

/// The failure of a sandbox that did not start: all that was printed are its own errors.
pub(super) fn failure(record: &Record, printed: &str) -> Option<Failure> {
    record.holder?;
    let is_own = |line: &str| line.starts_with("bwrap: ") || line.starts_with("sandbox-exec: ");
    let said = printed.lines().last().filter(|_| printed.lines().all(is_own))?.to_owned();
    Some(Failure { kind: FailureKind::Sandbox, said, resets: None })
}

/// The placeholders in a project, and the tasks whose workers need them: `.placeholders` in the
/// project's state.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Placeholders {
    tasks: BTreeSet<String>,
    paths: BTreeSet<PathBuf>,
    /// The lines that were added to git's `info/exclude`.
    excluded: BTreeSet<String>,
}

/// Puts something empty at each place of the project that the worker must not fill, so that the sandbox
/// can cover it.
fn keep_places(task: &Task, record: &Record) -> Result<()> {
    let kept = kept(record);
    if kept.is_empty() {
        return Ok(());
    }
    let missing = kept.into_iter().filter(|path| path.symlink_metadata().is_err());
    let missing: Vec<_> = missing.collect();
    change_placeholders(task, |all| {
        all.tasks.insert(task.id().to_string());
        all.paths.extend(missing.iter().cloned());
        all.excluded.extend(exclude(task, &missing)?);
        Ok(())
    })?;
    for path in missing {
        // Where this user cannot make it, the worker cannot either.
        let _ = match is_file(&path) {
            true => std::fs::File::create_new(path).map(drop),
            false => std::fs::create_dir(path),
        };
    }
    Ok(())
}

/// Removes what keeps places in a project, unless a worker of another task runs: in its sandbox, they
/// would no longer be covered.
pub(super) fn release_places(task: &Task) -> Result<()> {
    let runs = |id: &String| {
        let Ok(id) = id.parse::<TaskId>() else { return false };
        let other = task.sibling(id);
        let worker = other.last_attempt().and_then(|attempt| attempt.identity().ok().flatten());
        Lock::is_held(&other.run_lock_path()).unwrap_or(true)
            || worker.is_some_and(|worker| worker.life() != Life::Dead)
    };
    change_placeholders(task, |all| {
        all.tasks.remove(task.id().as_str());
        all.tasks.retain(runs);
        if !all.tasks.is_empty() {
            return Ok(());
        }
        let paths: Vec<_> = std::mem::take(&mut all.paths).into_iter().collect();
        for path in &paths {
            // A placeholder that somebody has filled meanwhile stays.
            let is_empty =
                || path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0);
            let _ = match is_file(path) {
                true if is_empty() => std::fs::remove_file(path),
                true => Ok(()),
                false => std::fs::remove_dir(path),
            };
        }
        include(task, &std::mem::take(&mut all.excluded))
    })
}

/// Changes what is known of a project's placeholders.
fn change_placeholders(
    task: &Task,
    change: impl FnOnce(&mut Placeholders) -> Result<()>,
) -> Result<()> {
    let state = task.state_dir().parent().context("a task without a project")?;
    let path = state.join(".placeholders");
    let _lock = Lock::take(&state.join(".placeholders.lock"), LOCK_LIMIT)?;
    let before = files::read(&path)?.unwrap_or_default();
    let mut all: Placeholders = serde_yaml::from_str(&before).unwrap_or_default();
    change(&mut all)?;
    match all.tasks.is_empty() {
        true => files::remove(&path),
        false => files::publish(&path, serde_yaml::to_string(&all)?.as_bytes()),
    }
}

/// Returns true if CLIs expect a file at a place: they fail where they find a directory.
fn is_file(path: &Path) -> bool {
    path.extension().is_some()
}

/// Keeps empty files from being shown and committed by git, which does not see empty directories.
/// Returns the lines that this took: a line that the person wrote is not ours to remove.
fn exclude(task: &Task, paths: &[PathBuf]) -> Result<Vec<String>> {
    let root = project(task);
    let below = paths.iter().filter(|path| is_file(path));
    let below = below.filter_map(|path| path.strip_prefix(root).ok());
    let mut lines: Vec<_> = below.map(|path| format!("/{}", path.display())).collect();
    let path = exclude_path(task);
    let Some(text) = files::read(&path).ok().flatten() else { return Ok(Vec::new()) };
    lines.retain(|line| text.lines().all(|other| other != line));
    if !lines.is_empty() {
        let all: String = text
            .lines()
            .chain(lines.iter().map(String::as_str))
            .flat_map(|line| [line, "\n"])
            .collect();
        files::publish(&path, all.as_bytes())?;
    }
    Ok(lines)
}

/// Removes the lines that [`exclude`] added.
fn include(task: &Task, lines: &BTreeSet<String>) -> Result<()> {
    let path = exclude_path(task);
    let text = files::read(&path).ok().flatten().filter(|_| !lines.is_empty());
    let Some(text) = text else { return Ok(()) };
    let kept = text.lines().filter(|line| !lines.contains(*line));
    let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
    files::publish(&path, kept.as_bytes())
}

fn exclude_path(task: &Task) -> PathBuf {
    project(task).join(".git/info/exclude")
}
