//! Temporary homes and projects with real tasks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use dispatch::files::Lock;
use tempfile::TempDir;

use crate::until;

/// A worker that stays, one that ends at once and one that completes its plan. If the benchmark is
/// killed, the first ends by itself, and its monitor with it.
const CONFIG: &str = r#"backends:
  stays: { command: exec sleep 900, prompt: stdin }
  ends: { command: 'true' }
  completes:
    command: 'for n in 1 2 3; do HELPER tick $n; done; HELPER finish Fine. #'
models:
  stays: { backend: stays }
  ends: { backend: ends }
  completes: { backend: completes }
"#;

const PLAN: &str = "# Measure\n- [ ] One\n- [ ] Two\n- [ ] Three\n\n## Context\nNothing.\n";

pub(crate) fn name_of(number: usize) -> String {
    format!("t{number}")
}

/// The directory of the helpers of these sources, as `install.sh` builds them for a person.
fn installed() -> Result<&'static Path> {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return Ok(place);
    }
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut install = Command::new("sh");
    install.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh")).arg("--build");
    install.env("DISPATCH_HOME", own.join("installed")).stdin(Stdio::null());
    install.env("CARGO_TARGET_DIR", own.parent().context("a parent")?).stderr(Stdio::inherit());
    let output = install.output()?;
    ensure!(output.status.success(), "{install:?}: {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let place = said.lines().find_map(|line| Some(line.split_once(" are in ")?.1));
    let place = PathBuf::from(place.context("install.sh names no directory")?);
    Ok(PLACE.get_or_init(|| place))
}

/// A home directory with a config.
pub(crate) struct Home {
    directory: TempDir,
    helpers: &'static Path,
}

impl Home {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let home = Self { directory, helpers: installed()? };
        fs::create_dir_all(home.path(".dispatch"))?;
        let helper = home.helper("dispatch-worker").display().to_string();
        fs::write(home.path(".dispatch/config.yaml"), CONFIG.replace("HELPER", &helper))?;
        Ok(home)
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    pub(crate) fn helper(&self, name: &str) -> PathBuf {
        self.helpers.join(name)
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.directory.path());
        command.env("DISPATCH_HOME", self.helpers.with_file_name(""));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn project(&self, name: &str) -> Result<Project<'_>> {
        let root = self.path(name);
        // The helpers must not find the repository that they were built in.
        fs::create_dir_all(root.join(".git"))?;
        fs::write(root.join(".git/HEAD"), "")?;
        Ok(Project { home: self, root })
    }

    /// A real repository whose `post-checkout` hook takes a second.
    pub(crate) fn repository_with_slow_hook(&self, name: &str) -> Result<Project<'_>> {
        let root = self.path(name);
        let hook = "#!/bin/sh\nexec sleep 1\n";
        let make = "git init -q \"$1\" && cd \"$1\" && git -c user.name=A -c user.email=a@example.com \
                    commit -q --allow-empty -m Begin && printf %s \"$2\" >.git/hooks/post-checkout && \
                    chmod +x .git/hooks/post-checkout";
        let mut command = self.command(Path::new("sh"));
        command.args(["-c", make, "sh"]).arg(&root).arg(hook);
        ensure!(command.status()?.success(), "{command:?}");
        Ok(Project { home: self, root })
    }
}

/// A project whose workers end with it.
pub(crate) struct Project<'a> {
    home: &'a Home,
    pub(crate) root: PathBuf,
}

impl Project<'_> {
    pub(crate) fn task(&self, id: &str) -> PathBuf {
        self.root.join(".dispatch/tasks").join(id)
    }

    /// The person's side of a task.
    pub(crate) fn state(&self, id: &str) -> Result<PathBuf> {
        let identity = self.root.join(".git");
        let identity = if identity.is_dir() { identity } else { self.root.clone() };
        let hash = dispatch::ids::long_hash(identity.as_os_str().as_encoded_bytes());
        let projects = fs::read_dir(self.home.path(".dispatch/state"))?;
        let own = projects.flatten().map(|it| it.path());
        let mut own = own.filter(|it| it.to_string_lossy().ends_with(&hash));
        Ok(own.next().context("a state directory")?.join(id))
    }

    /// Runs `dispatch-spawn` with this process as the host, and returns its time.
    pub(crate) fn spawn(&self, id: &str, model: &str, options: &[&str]) -> Result<Duration> {
        fs::create_dir_all(self.task(id))?;
        fs::write(self.task(id).join("plan.md"), PLAN)?;
        let mut command = self.home.command(&self.home.helper("dispatch-spawn"));
        command.current_dir(&self.root).env("CLAUDE_PID", std::process::id().to_string());
        command.args([id, "--model", model]).args(options);
        let begin = Instant::now();
        let output = command.output()?;
        let took = begin.elapsed();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}: {error}", output.status);
        Ok(took)
    }

    /// Starts that many workers that stay.
    pub(crate) fn run(&self, count: usize) -> Result<()> {
        (0..count).try_for_each(|number| self.spawn(&name_of(number), "stays", &[]).map(drop))
    }

    /// Creates that many ended tasks, nine in ten of them done: two by `dispatch-spawn`, the others as
    /// their copies.
    pub(crate) fn fill(&self, count: usize) -> Result<()> {
        for (number, model) in [(0, "ends"), (1, "completes")] {
            self.spawn(&name_of(number), model, &[])?;
            self.until_ended(&name_of(number))?;
        }
        (2..count).try_for_each(|number| self.copy(number % 10, &name_of(number)))
    }

    /// Copies the first task, or the second for any other number; that copy ended three days ago.
    fn copy(&self, from: usize, to: &str) -> Result<()> {
        let from = name_of(from.min(1));
        let (first, to_path) = (self.task(&from), self.task(to));
        dispatch::files::copy_directory(&first, &to_path)?;
        let (state, to_state) = (self.state(&from)?, self.state(&from)?.with_file_name(to));
        dispatch::files::copy_directory(&state, &to_state)?;
        // Each task has its own nonce and directory.
        let record = fs::read_to_string(state.join("record.yaml"))?;
        let nonce = record.lines().find_map(|line| line.strip_prefix("nonce: "));
        let nonce = nonce.context("a nonce")?;
        let own = record.replace(nonce, &format!("{nonce}-{to}"));
        let own = own.replace(&first.display().to_string(), &to_path.display().to_string());
        fs::write(to_state.join("record.yaml"), own)?;
        dispatch::task::Task::at_state(&to_state)?.call_owner();
        // A task that is done has this mark.
        if let Ok(mark) = File::options().append(true).open(to_state.join("done")) {
            mark.set_modified(SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60))?;
        }
        Ok(())
    }

    /// The ids of the news that were delivered.
    pub(crate) fn delivered(&self) -> Result<String> {
        let mut ids = String::new();
        for task in fs::read_dir(self.root.join(".dispatch/tasks"))?.flatten() {
            let state = self.state(&task.file_name().to_string_lossy())?;
            let news = fs::read_to_string(state.join("news")).unwrap_or_default();
            let is_id = |word: &&str| word.starts_with('#');
            ids.extend(news.split(' ').filter(is_id).flat_map(|id| [id, " "]));
        }
        Ok(ids)
    }

    /// A monitor that is the host's hook or belongs to no host.
    pub(crate) fn monitor(&self, hook: bool) -> Command {
        let mut command = self.home.command(&self.home.helper("dispatch-monitor"));
        command.current_dir(&self.root).stdout(Stdio::null());
        if hook {
            command.arg("--hook").env("CLAUDE_PID", std::process::id().to_string());
        }
        command
    }

    /// `true` once the supervisor has recorded the end of the worker.
    pub(crate) fn has_ended(&self, id: &str) -> bool {
        self.state(id).is_ok_and(|state| state.join("attempts/1/exit").is_file())
    }

    /// Waits until the worker and its supervisor have ended.
    pub(crate) fn until_ended(&self, id: &str) -> Result<()> {
        let lock = self.state(id)?.join("run.lock");
        until("the supervisor ends", || Ok(self.has_ended(id) && !Lock::is_held(&lock)?))
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        let tasks = fs::read_dir(self.root.join(".dispatch/tasks")).into_iter().flatten();
        for id in tasks.flatten().filter_map(|task| task.file_name().into_string().ok()) {
            if !self.has_ended(&id) {
                let mut stop = self.home.command(&self.home.helper("dispatch-reconcile"));
                stop.args(["stop", &id]).current_dir(&self.root).stdout(Stdio::null());
                let _ = stop.status();
            }
        }
    }
}
