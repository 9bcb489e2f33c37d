//! The needs of a task at its place: the parts of config and record that are sent, and the check whether the
//! place can run workers, which is asked here and carried out there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::config::{Config, PlaceEntry};
use crate::dirs;
use crate::domain::{Access, HERE};
use crate::error::{Exit, Refusal};
use crate::place::{Reply, Request, ask, pursue_again};
use crate::process::{capture, find_program};
use crate::task::Record;
use crate::text::{lossy, sanitize, shell_word};
use crate::tools;
use crate::worker::slurm;

/// How much free space a place needs, in MiB.
const LEAST_SPACE: u128 = 256;

/// Asks the machine of a place whether it can run workers: lines, each with whether all is well.
/// `record` and `config`: of the task that is to run there.
///
/// # Errors
/// [`Exit::Unavailable`] if the place cannot be reached.
pub fn check(
    name: &str,
    entry: &PlaceEntry,
    task: Option<(&Record, &Config)>,
) -> Result<Vec<(bool, String)>> {
    let config = match task {
        Some((record, config)) => far_config(config, record)?,
        None => json!({ "places": far_place(entry) }).to_string(),
    };
    let files = vec![("config".into(), config.into_bytes())];
    let worker = task.map(|(record, _)| record.name.clone());
    if let Some(Reply::Checked(lines)) = ask(name, entry, true, Request::Check(worker), files)? {
        pursue_again(name)?;
        let clean = |(well, line): (bool, String)| (well, sanitize(&line).replace('\n', " "));
        return Ok(lines.into_iter().take(50).map(clean).collect());
    }
    Refusal::new(Exit::Unavailable, format!("'{name}' does not answer"))
        .refuse(format!("try again: dispatch-config places {name}"))
}

/// Refuses a place that cannot run the worker of a record: all obstacles at once.
pub fn refuse_unfit(name: &str, config: &Config, record: &Record) -> Result<()> {
    let lines = check(name, config.place(name)?, Some((record, config)))?;
    let wrong: Vec<_> = lines.into_iter().filter(|(well, _)| !well).map(|(_, line)| line).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Refusal::new(Exit::Unavailable, format!("'{name}' cannot run this worker"))
        .place(wrong.join("\n  "))
        .refuse("do this there, and call again")
}

/// Refuses the name of this machine as that of a place.
pub fn refuse_here(name: &str) -> Result<()> {
    if name != HERE {
        return Ok(());
    }
    Refusal::new(Exit::Usage, format!("'{HERE}' is this machine, and no place"))
        .refuse("use another name; without --on a new task works here")
}

/// The refusal of a place where code cannot travel.
pub fn refuse_without_git(name: &str) -> Refusal {
    Refusal::new(Exit::Usage, format!("this project cannot be sent to '{name}'"))
        .place("code travels by git, and this is no repository")
        .next("make one (git init, git add, git commit), or dispatch without --on")
}

/// The part of the config that a task needs at its place: its worker, its reviewer and their fallbacks.
pub(super) fn far_config(config: &Config, record: &Record) -> Result<String> {
    let set_up = record.worktree.as_ref().map(|it| config.set_up_of(it)).transpose()?.flatten();
    let mut all = json!({
        "default": record.name,
        "backends": {},
        "models": {},
        "aliases": {},
        "agents": {},
        "patience": config.patience,
        "silent_after": config.silent_after,
        "stop_silent": config.stop_silent,
        "wait_for_limit": config.wait_for_limit,
        "check_limit": config.check_limit,
        "worktree": { "setup": set_up },
        "places": record.place.as_deref().map(|it| config.place(it)).transpose()?.map(far_place),
    });
    let mut names: Vec<_> = [&record.name].into_iter().chain(&record.review).cloned().collect();
    let mut at = 0;
    while let Some(name) = names.get(at).cloned() {
        at += 1;
        let choice = config.resolve(Some(&name))?;
        let settings = &choice.settings;
        names.extend(choice.fallback.filter(|it| !names.contains(it)));
        let Some(model) = choice.model else {
            all["agents"][&name] = json!({ "command": settings.command });
            continue;
        };
        all["backends"][&choice.backend] = json!({
            "command": settings.command,
            "prompt": settings.prompt,
            "access": if at == 1 { Some(record.access) } else { settings.access },
        });
        let fallback = config.fallbacks.get(&model);
        all["models"][&model] = json!({ "backend": choice.backend, "fallback": fallback });
        if config.aliases.contains_key(&name) {
            let fallback = config.fallbacks.get(&name);
            all["aliases"][&name] =
                json!({ "model": model, "prompt": choice.prompt, "fallback": fallback });
        }
    }
    Ok(serde_json::to_string_pretty(&all)?)
}

/// The `places` of a config at a place, which say how supervisors are started there.
fn far_place(entry: &PlaceEntry) -> serde_json::Value {
    let start = entry.start.as_ref().map(|words| {
        let words: Vec<_> = words.iter().map(|word| shell_word(word)).collect();
        json!({ HERE: { "reach": "sh", "start": words.join(" ") } })
    });
    start.unwrap_or_default()
}

/// The arguments of the dispatch at the place.
pub fn arguments(record: &Record) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--worktree", "--model", &record.name, "--access"].map(Into::into).into();
    arguments.push(record.access.to_string());
    let top = record.worktree.as_ref().map(|it| it.path.as_path());
    let below = top.and_then(|top| record.directory.strip_prefix(top).ok()?.to_str());
    arguments.extend(below.filter(|it| !it.is_empty()).map(|it| format!("--below={it}")));
    for check in &record.checks {
        arguments.extend(["--check".into(), check.clone()]);
    }
    arguments.extend(record.review.iter().flat_map(|it| ["--review".into(), it.clone()]));
    if !record.budget.is_none() {
        arguments.extend(["--budget".into(), record.budget.to_string()]);
    }
    arguments
}

/// Looks at this machine, for a worker by its name, or for none, with the config that was sent.
pub(super) fn look_here(worker: Option<&str>, config: &str) -> Vec<(bool, String)> {
    let mut lines = Vec::new();
    let git = find_program("git".as_ref());
    let limit = Instant::now() + Duration::from_secs(10);
    let version = capture(Command::new("git").arg("--version"), Stdio::null(), limit, 64 << 10);
    lines.push(match (git, version) {
        (Some(path), Ok(said)) if said.status.success() => {
            (true, format!("{}: {}", lossy(said.stdout).trim(), path.display()))
        }
        _ => (false, "git does not work: install it, as apt-get install git does".into()),
    });
    let home = dirs::home_directory().unwrap_or_default();
    if let Ok(disk) = nix::sys::statvfs::statvfs(&home) {
        // The types of these differ between systems.
        let bytes = u128::from(disk.blocks_available()) * u128::from(disk.fragment_size());
        let free = bytes >> 20;
        let place = home.display();
        lines.push(match free {
            0..LEAST_SPACE => (false, format!("{free} MiB are free in {place}: free some space")),
            _ => (true, format!("{} GiB are free in {place}", free >> 10)),
        });
    }
    let config = match Config::parse(config, Path::new("the config that was sent")) {
        Ok(config) => config,
        Err(error) => {
            lines.push((false, error.to_string().replace('\n', " ")));
            return lines;
        }
    };
    let start = config.places.get(HERE).and_then(|it| it.start.as_ref());
    lines.extend(start.map(|it| slurm::look_here(it)));
    match worker {
        None => {
            let found = tools::detect::detect(&[]);
            if found.is_empty() {
                lines.push((true, format!("no known CLI in {}", path_variable())));
            }
            lines.extend(found.iter().map(|it| cli_line(it, None)));
            lines.extend(tools::holders().into_iter().map(|it| (true, it)));
        }
        Some(name) => lines.extend(check_worker(name, &config)),
    }
    lines
}

fn path_variable() -> String {
    std::env::var("PATH").unwrap_or_default()
}

/// A CLI with its version and login.
fn cli_line(found: &tools::detect::InstalledCli, login: Option<&str>) -> (bool, String) {
    let (name, path) = (&found.backend, found.program.display());
    let version = found.version.as_deref().unwrap_or("version unknown");
    if let Some(problem) = found.problem.as_ref().filter(|_| !found.usable()) {
        return (false, format!("{name}: {path} does not work: {problem}"));
    }
    match (found.logged_in, login) {
        (Some(false), Some(login)) => (false, format!("{name} is not logged in: run {login}")),
        (Some(false), None) => (true, format!("{name}: {path}, {version}, not logged in")),
        _ => (true, format!("{name}: {path}, {version}")),
    }
}

/// The CLI of a worker and what holds it.
fn check_worker(name: &str, config: &Config) -> Vec<(bool, String)> {
    let choice = match config.resolve(Some(name)) {
        Ok(choice) => choice,
        Err(error) => return vec![(false, error.to_string().replace('\n', " "))],
    };
    let (backend, settings) = (&choice.backend, &choice.settings);
    let mut lines = Vec::new();
    match tools::missing_program(backend, settings) {
        Some(program) => lines.push((
            false,
            format!("{program} is not installed: it is in none of {}", path_variable()),
        )),
        None => {
            let program = settings.command.as_deref().and_then(tools::program_of);
            let own = program.map(|it| (backend.clone(), it)).into_iter().collect::<Vec<_>>();
            let found = tools::detect::detect(&own);
            let found = found.iter().find(|it| it.backend == *backend);
            let login = tools::by_backend(backend, settings).map(|cli| cli.login);
            lines.extend(found.map(|it| cli_line(it, login)));
        }
    }
    let access = choice.settings.usual_access();
    lines.push(match tools::holder(backend, settings, access, true) {
        Ok(Some(holder)) => (true, format!("{access} is held by {holder}")),
        Ok(None) if access == Access::Full => (true, "full access: nothing holds it".into()),
        Ok(None) => (true, format!("{access} is held by {backend} itself")),
        Err(why) => (false, format!("{backend} cannot be held to '{access}': {why}")),
    });
    lines
}
