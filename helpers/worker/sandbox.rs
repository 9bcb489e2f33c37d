//! The sandbox of a task's worker: what it may write, what it cannot see, and the private directories
//! of its CLI.
//!
//! Invariant: a worker writes nothing that git, a host, a CLI or dispatch obeys outside of it.
//!
//! Longer than 500 lines because the lists of places stand beside the rules that are made of them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::dirs;
use crate::domain::{Access, Backend, EXECUTED, Failure, FailureKind, Route, TaskId, Worktree};
use crate::error::{Exit, Refusal};
use crate::files::{self, Lock};
use crate::git;
use crate::ids::short_hash;
use crate::process::{Holder, Life, Rule, Sandbox, find_program, launcher, worker_helper};
use crate::project::{change_excluded, repositories_around, with_line};
use crate::task::{Record, Task};
use crate::text::{collect, lossy};
use crate::tools;
use crate::worker::tree;

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
    ".npmrc",
    ".yarnrc.yml",
    ".pgpass",
    ".vault-token",
    ".terraform.d",
    ".config/rclone",
    ".config/sops",
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
    ".config/BraveSoftware",
    ".config/microsoft-edge",
    "snap/firefox",
    "snap/chromium",
    ".var/app",
    "Library/Keychains",
    "Library/Cookies",
    "Library/Safari",
    "Library/Application Support/Firefox",
    "Library/Application Support/Google/Chrome",
    "Library/Application Support/BraveSoftware",
    "Library/Application Support/Microsoft Edge",
];

/// Where programs of the session have their sockets, and where everybody may write.
const SHARED: &[&str] = if cfg!(target_os = "macos") { &[] } else { &["/tmp", "/run"] };

/// The parts of the directories above that programs need: names of hosts, and the programs of NixOS.
const NEEDED: &[&str] = &["/etc/resolv.conf", "/run/current-system", "/run/opengl-driver"];

/// Where services have sockets that tell who a user is.
const NAME_SERVICES: &[&str] = &["/var/lib/sss"];

/// The directories at the top of a project from which git or an editor runs something by itself. The
/// places of a CLI stand in its file in `tools/`.
const OBEYED: &[&str] = &[".git", ".husky", ".githooks", ".vscode", ".idea", ".devcontainer"];

/// How many submodules of a project are looked at.
const MOST_SUBMODULES: usize = 1000;

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
            let is_open = !tools::holds_itself_within(&record.backend, access, holder);
            let network = if is_open { "; network open" } else { "" };
            let open = holder.leaves_open();
            format!("{access}: {holder}; writes in {place}its task, its home{open}{network}")
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
    refuse_replaced(record)?;
    if record.route == Route::Agent || record.access == Access::Full {
        return Ok(());
    }
    let obeyed = Obeyed::of(task, record)?;
    refuse_rules(record, &obeyed, &rules(task, record, Runs::Worker, settings, &obeyed)?)
}

/// The places that a worker must not write in its directory, for a CLI that holds it.
pub(super) fn kept(task: &Task, record: &Record) -> Result<Vec<PathBuf>> {
    let is_held = record.holder.is_some() || record.access != Access::Write;
    let obeyed = if is_held { Obeyed::default() } else { Obeyed::of(task, record)? };
    Ok(Vec::from_iter(collect::<BTreeSet<_>, _>(obeyed.paths().cloned())))
}

/// The sandbox of the person's checks and set-up: the task's, or one of dispatch's where the CLI itself
/// holds the worker; `None` at `full`, where nothing has to hold them.
///
/// # Errors
/// Why there is none on this machine.
pub fn holder_of_commands(record: &Record) -> Result<Option<Holder>, String> {
    match record.holder {
        None if record.access != Access::Full => {
            tools::sandbox(record.access, record.worktree.is_some(), false).map(Some)
        }
        holder => Ok(holder),
    }
}

/// Refuses a directory of the task whose name leads elsewhere than it did at the dispatch: a worker that
/// wrote there may have put a symlink in its place.
///
/// # Errors
/// [`Exit::Data`] with both paths.
pub(super) fn refuse_replaced(record: &Record) -> Result<()> {
    let Ok(found) = record.directory.canonicalize() else { return Ok(()) };
    let expected = match &record.worktree {
        // The directory above a worktree is the person's.
        Some(Worktree { path, .. }) => {
            let below = record.directory.strip_prefix(path).unwrap_or(Path::new(""));
            path.canonicalize()?.join(below)
        }
        None => record.directory.clone(),
    };
    if found == expected {
        return Ok(());
    }
    let (directory, found) = (record.directory.display(), found.display());
    Refusal::new(Exit::Data, "the directory of the task is a symlink now")
        .place(format!("{directory} leads to {found}"))
        .refuse("put the directory back there, or dispatch the plan again as a new task")
}

/// Refuses rules that leave something writable which decides outside of the sandbox.
fn refuse_rules(record: &Record, obeyed: &Obeyed, sandbox: &Sandbox) -> Result<()> {
    const DECIDES: &str = "the worker could change what runs outside";
    let refuse = |path: &Path, why: &str| {
        let what = format!("the worker cannot be held to '{}' access", record.access);
        Refusal::new(Exit::Unavailable, what)
            .place(format!("{}: {why}", path.display()))
            .refuse("add --worktree, or --access read")
    };
    let home = dirs::home_directory().unwrap_or_default();
    let own = [worker_helper()?, launcher("dispatch-worker")?, home];
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A later program of the same name could be the worker's.
    let programs = std::env::split_paths(&path).map(|it| record.directory.join(it));
    for path in own.into_iter().chain(programs).map(|it| real(&it)) {
        if sandbox.rule_for(&path) == Rule::Writable {
            return refuse(&path, DECIDES);
        }
    }
    let Some(top) = top(record) else { return Ok(()) };
    let top = real(top);
    let state = [dirs::config_path()?, dirs::state_root()?, dirs::homes_root()?];
    let repositories = repositories_around(&top).into_iter().filter(|it| *it != top.join(".git"));
    let decisive = state.into_iter().chain(tools::private_directories()).chain(repositories);
    // A rule does not help: the worker could move away the directory above.
    for path in decisive.map(|it| real(&it)) {
        if path.starts_with(&top) || top.starts_with(&path) {
            return refuse(&path, DECIDES);
        }
    }
    for path in obeyed.paths() {
        let parts = path.ancestors().take_while(|it| it.starts_with(&top) && *it != top);
        if let Some(link) = parts.filter(|it| it.is_symlink()).last() {
            return refuse(link, "the worker could replace this symlink");
        }
    }
    Ok(())
}

/// The real path of what stands, or would be made, at a path.
fn real(path: &Path) -> PathBuf {
    let existing =
        |above: &Path| Some((above.canonicalize().ok()?, path.strip_prefix(above).ok()?));
    let found = path.ancestors().find_map(existing);
    let (above, rest) = found.unwrap_or_else(|| (path.into(), Path::new("")));
    above.components().chain(rest.components()).collect()
}

/// The rules for a program of a task, with the settings of its CLI.
fn rules(
    task: &Task,
    record: &Record,
    runs: Runs,
    settings: &Backend,
    obeyed: &Obeyed,
) -> Result<Sandbox> {
    let mut sandbox = Sandbox::default();
    let home = dirs::home_directory().unwrap_or_default();
    let own =
        [dirs::dispatch_home()?, dirs::state_root()?, dirs::homes_root()?, dirs::config_path()?];
    let hidden = SHARED.iter().map(PathBuf::from).chain([std::env::temp_dir()]).chain(own);
    let hidden = hidden.chain(SECRETS.iter().map(|path| home.join(path)));
    for path in hidden.chain(tools::private_directories()) {
        sandbox.rule(&path, Rule::Hidden);
    }
    let project = project(task);
    let directory = record.worktree.as_ref().map_or(&record.directory, |worktree| &worktree.path);
    let worktrees = record.worktree.as_ref().and_then(|worktree| worktree.path.parent());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let seen = [home.clone(), worker_helper()?, directory.clone(), project.into()];
    let seen = seen.into_iter().chain(NEEDED.iter().map(PathBuf::from));
    let seen = seen.chain(worktrees.map(Path::to_path_buf)).chain(std::env::split_paths(&path));
    let (places, logins) = match runs {
        Runs::Worker | Runs::Reviewer => tools::places(&record.backend, settings),
        Runs::Check | Runs::SetUp => Default::default(),
    };
    for path in seen.chain(logins.into_iter().map(|path| home.join(path))) {
        sandbox.reveal(&path);
    }
    if let Some(top) = top(record) {
        sandbox.rule(top, Rule::Writable);
        obeyed.paths().for_each(|path| sandbox.rule(path, Rule::ReadOnly));
    }
    // In the home directory, the person's side lies beside the tasks.
    sandbox.reveal(&project.join(".dispatch/tasks"));
    if sandbox.rule_for(&real(&project.join(".dispatch"))) == Rule::Writable {
        sandbox.rule(&project.join(".dispatch"), Rule::ReadOnly);
    }
    let own = if runs == Runs::Worker { Rule::Writable } else { Rule::ReadOnly };
    sandbox.rule(task.side().directory(), own);
    sandbox.rule(&home_of(task, record, runs)?, Rule::Writable);
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

/// The directory that a worker writes in at `write`: its worktree, or the task's directory.
fn top(record: &Record) -> Option<&Path> {
    let directory = record.worktree.as_ref().map_or(&record.directory, |worktree| &worktree.path);
    (record.access == Access::Write).then_some(directory)
}

/// The places that a worker must not write, since git, a host, a CLI or an editor obeys them. A worktree
/// is not obeyed before it is merged.
#[derive(Default)]
struct Obeyed {
    /// The places that a worker must not make either, each with whether it is a directory.
    kept: Vec<(PathBuf, bool)>,
    /// Other places that exist.
    existing: Vec<PathBuf>,
}

impl Obeyed {
    fn of(task: &Task, record: &Record) -> Result<Self> {
        let Some(top) = top(record).filter(|_| record.worktree.is_none()) else {
            return Ok(Self::default());
        };
        let [directories, files] = tools::obeyed();
        let directories = directories.iter().chain(OBEYED).map(|name| (top.join(name), true));
        let files = files.iter().map(|name| (top.join(name), false));
        let mut kept: Vec<_> = directories.chain(files).collect();
        let mut existing = Vec::new();
        for name in files::entries(top)? {
            let lower = name.to_string_lossy().to_lowercase();
            // A link to such a text is usual, and replacing it changes no more than other texts would.
            let is_linked_text = lower.ends_with(".md") && top.join(&name).is_symlink();
            if EXECUTED.contains(&lower.as_str()) && !is_linked_text {
                existing.push(top.join(name));
            }
        }
        for checkout in checkouts(top, project(task)) {
            // Without git on this machine, its settings are unknown.
            let has_git = find_program("git".as_ref()).is_some();
            let hooks = if has_git { git::configured_hooks(&checkout)? } else { None };
            let hooks = hooks.map(|hooks| match hooks.parent() {
                // Husky's hooks in `_` start those beside it.
                Some(parent) if hooks.ends_with("_") => parent.into(),
                _ => hooks,
            });
            let below = hooks.into_iter().chain(submodules(&checkout, &mut existing));
            let is_open = |it: &PathBuf| {
                it.starts_with(top) && it != top && !it.starts_with(top.join(".git"))
            };
            kept.extend(below.filter(is_open).map(|path| (first_missing(&path), true)));
        }
        Ok(Self { kept, existing })
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.kept.iter().map(|(path, _)| path).chain(&self.existing)
    }
}

/// The tops of the person's checkouts that a directory lies in. Only the project's own counts within the
/// project: a worker could have made another one below.
fn checkouts(directory: &Path, project: &Path) -> Vec<PathBuf> {
    let above = directory.ancestors().filter(|it| it.join(".git").exists());
    let counts = |it: &&Path| *it == project || !directory.starts_with(project);
    above.filter(counts).map(Path::to_path_buf).collect()
}

/// The places of a checkout's submodules at which git finds, or would find, their repositories. The
/// files that list them are added to `lists`.
fn submodules(checkout: &Path, lists: &mut Vec<PathBuf>) -> Vec<PathBuf> {
    let (mut places, mut next) = (Vec::new(), vec![checkout.to_path_buf()]);
    while let Some(top) = next.pop().filter(|_| places.len() < MOST_SUBMODULES) {
        let list = top.join(".gitmodules");
        let Ok(Some(text)) = files::read_foreign(&list) else { continue };
        if top != checkout {
            lists.push(list);
        }
        for line in lossy(text).lines() {
            let Some((key, path)) = line.split_once('=') else { continue };
            let path = Path::new(path.trim().trim_matches('"'));
            let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
            if key.trim() == "path" && is_below && path != Path::new("") {
                let (module, git) = (top.join(path), top.join(path).join(".git"));
                places.push(if git.symlink_metadata().is_ok() { git } else { module.clone() });
                next.push(module);
            }
        }
    }
    places
}

/// The first part of a path that does not exist; the path if it does.
fn first_missing(path: &Path) -> PathBuf {
    let missing = path.ancestors().take_while(|it| it.symlink_metadata().is_err());
    missing.last().unwrap_or(path).to_path_buf()
}

/// The private directories of a task's CLI. Another level, backend or task and a reviewer have others.
fn home_of(task: &Task, record: &Record, runs: Runs) -> Result<PathBuf> {
    let role = match runs {
        Runs::Reviewer => "review".into(),
        Runs::Worker | Runs::Check | Runs::SetUp => record.access.to_string(),
    };
    let name = format!("{role}-{}", short_hash(record.backend.as_bytes()));
    Ok(homes_of(task, &record.nonce)?.join(name))
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

/// The programs that a sandbox runs. Only the worker writes the task's directory, and a command of the
/// person has no login of the CLI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// The worker.
    Worker,
    /// A reviewer, which has the login of its CLI.
    Reviewer,
    /// A check, which has no network where the CLI may close it for what a worker runs.
    Check,
    /// The set-up of a new worktree.
    SetUp,
}

/// The command that runs `argv` for a task, held by `holder`: a CLI, which may read this prompt, or a
/// command of the person. A CLI that holds itself has a private temporary directory.
pub(super) fn command(
    task: &Task,
    record: &Record,
    runs: Runs,
    prompt: Option<&Path>,
    settings: &Backend,
    holder: Option<Holder>,
    argv: &[OsString],
) -> Result<Command> {
    let home = home_of(task, record, runs)?;
    let Some(holder) = holder else {
        let mut command = Command::new(&argv[0]);
        if record.access != Access::Full && prompt.is_some() {
            let directory = home.with_extension("tmp");
            files::create_private_directory(&directory)?;
            command.env("TMPDIR", directory);
        }
        command.args(&argv[1..]);
        return Ok(command);
    };
    let (places, _) = tools::places(&record.backend, settings);
    make_home(&home, places)?;
    let obeyed = Obeyed::of(task, record)?;
    let kept = keep_places(task, &obeyed)?;
    let mut sandbox = rules(task, record, runs, settings, &obeyed)?;
    let is_open = |holder| !tools::holds_itself_within(&record.backend, record.access, holder);
    sandbox.closes_network = runs == Runs::Check && !record.holder.is_some_and(is_open);
    refuse_rules(record, &obeyed, &sandbox)?;
    // A place that vanished meanwhile would be the worker's to fill.
    if let Some(open) = kept.iter().find(|path| sandbox.rule_for(path) == Rule::Writable) {
        return Refusal::new(Exit::TryAgain, "a place that the worker must not fill vanished")
            .place(open.display().to_string())
            .refuse(format!("dispatch-spawn {} --resume", task.id()));
    }
    prompt.iter().for_each(|prompt| sandbox.rule(prompt, Rule::ReadOnly));
    match holder {
        // A new list of name servers replaces the file; no socket can be reached.
        Holder::Landlock => {
            real(Path::new(NEEDED[0])).parent().iter().for_each(|it| sandbox.reveal(it))
        }
        _ => sandbox.hide_sockets(NAME_SERVICES),
    }
    let mut argv = argv.to_vec();
    if let Some(program) = find_program(&argv[0]) {
        argv[0] = std::path::absolute(program)?.into();
    }
    let mut command = sandbox.command(holder, &record.directory, &argv)?;
    for name in SESSION {
        command.env_remove(name);
    }
    // A directory of PATH may be a link in a hidden one.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).filter_map(|it| it.canonicalize().ok());
    command.env("PATH", std::env::join_paths(path)?);
    let has_own_tmp = !SHARED.is_empty() && holder != Holder::Landlock;
    let tmp = if has_own_tmp { "/tmp".into() } else { home.join("tmp") };
    command.env("TMPDIR", tmp).env("XDG_CACHE_HOME", home.join("cache"));
    for place in places.iter().filter(|_| prompt.is_some()) {
        command.env(place.variable, home.join(place.variable));
    }
    let cli = tools::by_backend(&record.backend, settings);
    command.envs(cli.iter().flat_map(|cli| cli.variables).copied());
    Ok(command)
}

/// The failure of a sandbox that did not start: all that was printed are its own errors.
pub(super) fn failure(holder: Option<Holder>, printed: &str) -> Option<Failure> {
    holder?;
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

impl Placeholders {
    /// The placeholders of a project, and the lock for changing them.
    fn lock(task: &Task) -> Result<(Self, Lock)> {
        let path = Self::path(task)?;
        let lock = Lock::take(&path.with_extension("lock"), LOCK_LIMIT)?;
        let text = files::read(&path)?.unwrap_or_default();
        Ok((files::from_yaml(&text).unwrap_or_default(), lock))
    }

    fn save(&self, task: &Task) -> Result<()> {
        let path = Self::path(task)?;
        match self.tasks.is_empty() {
            true => files::remove(&path),
            false => files::publish(&path, serde_yaml::to_string(self)?.as_bytes()),
        }
    }

    fn path(task: &Task) -> Result<PathBuf> {
        let state = task.state_dir().parent().context("a task without a project")?;
        Ok(state.join(".placeholders"))
    }
}

/// Puts something empty at each place of the project that the worker must not fill, so that the sandbox
/// can cover it. Returns the places that are there then.
fn keep_places<'a>(task: &Task, obeyed: &'a Obeyed) -> Result<Vec<&'a PathBuf>> {
    if obeyed.kept.is_empty() {
        return Ok(Vec::new());
    }
    // The end of another task's worker must not remove a place between the look and the note.
    let (mut all, _lock) = Placeholders::lock(task)?;
    let missing = obeyed.kept.iter().filter(|(path, _)| path.symlink_metadata().is_err());
    let missing: Vec<_> = missing.collect();
    all.tasks.insert(task.id().to_string());
    all.paths.extend(missing.iter().map(|(path, _)| path.clone()));
    let files = missing.iter().filter(|(_, is_directory)| !is_directory).map(|(path, _)| path);
    all.excluded.extend(exclude(task, files)?);
    all.save(task)?;
    let mut kept = Vec::new();
    for (path, is_directory) in &obeyed.kept {
        make_place(task, path, *is_directory)?.then(|| kept.push(path));
    }
    Ok(kept)
}

/// Makes a place unless it is there. Returns false where neither this user nor the worker can.
fn make_place(task: &Task, path: &Path, is_directory: bool) -> Result<bool> {
    let made = match is_directory {
        true => std::fs::create_dir(path),
        false => std::fs::File::create_new(path).map(drop),
    };
    let error = match made {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => error,
        _ => return Ok(true),
    };
    let owner = |path: Option<&Path>| path?.metadata().ok().map(|meta| meta.uid());
    // The owner of a directory can make it writable.
    let is_foreign = || owner(path.parent()) != owner(Some(task.state_dir()));
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => Ok(false),
        ErrorKind::PermissionDenied if is_foreign() => Ok(false),
        _ => Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
}

/// Removes what keeps places in a project, unless a worker of another task runs: in its sandbox, they
/// would no longer be covered.
pub(super) fn release_places(task: &Task) -> Result<()> {
    let runs = |id: &String| {
        let Ok(id) = id.parse::<TaskId>() else { return false };
        let other = task.sibling(id);
        let worker = other.last_attempt().and_then(|attempt| attempt.identity().ok().flatten());
        other.is_supervised().unwrap_or(true)
            || has_kept(&other)
            || worker.is_some_and(|worker| worker.life() != Life::Dead)
    };
    // Processes that a worker left running are still in its sandbox.
    if !Placeholders::path(task)?.exists() || has_kept(task) {
        return Ok(());
    }
    let (mut all, _lock) = Placeholders::lock(task)?;
    all.tasks.remove(task.id().as_str());
    all.tasks.retain(runs);
    if all.tasks.is_empty() {
        // A placeholder that somebody has filled meanwhile stays.
        for path in &all.paths {
            let _ = match path.symlink_metadata() {
                Ok(meta) if meta.is_file() && meta.len() == 0 => std::fs::remove_file(path),
                Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
                _ => Ok(()),
            };
        }
        change_excluded(project(task), |text| {
            let kept = text.lines().filter(|line| !all.excluded.contains(*line));
            let kept: String = kept.flat_map(|line| [line, "\n"]).collect();
            (!all.excluded.is_empty()).then_some(kept)
        })?;
    }
    all.save(task)
}

/// Returns true if something runs that the task's worker left, or that cannot be told.
fn has_kept(task: &Task) -> bool {
    let Ok(Some(record)) = task.record() else { return false };
    let Some(attempt) = task.last_attempt().filter(|_| record.keep) else { return false };
    let running = tree(None, &record, &attempt).and_then(|mut tree| tree.running());
    running.map_or(true, |running| !running.is_empty())
}

/// Keeps empty files from being shown and committed by git, which does not see empty directories.
/// Returns the lines that this took: a line that the person wrote is not ours to remove.
fn exclude<'a>(task: &Task, files: impl Iterator<Item = &'a PathBuf>) -> Result<Vec<String>> {
    let below = files.filter_map(|path| path.strip_prefix(project(task)).ok());
    let mut lines: Vec<_> = below.map(|path| format!("/{}", path.display())).collect();
    change_excluded(project(task), |text| {
        lines.retain(|line| text.lines().all(|other| other != line));
        let all = lines.iter().fold(text.to_owned(), |text, line| with_line(&text, line));
        (!lines.is_empty()).then_some(all)
    })?;
    Ok(lines)
}
