//! Measures what the design promises about speed, and fails where a limit is exceeded.
//!
//! `cargo bench` takes two minutes and `cargo bench -- --quick` half a minute; names after `--`
//! choose parts. The limits are those of an otherwise idle machine, so beside them stands how busy
//! the processors were meanwhile, with what the benchmark itself does: about half of two.
//! Everything happens in temporary homes on the disk that holds the target directory, since where
//! a sync costs nothing the numbers would flatter.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dispatch::config::{Config, Mention};
use dispatch::files::Lock;
use nix::unistd::Pid;
use tempfile::TempDir;

const HELPERS: [(&str, &str); 5] = [
    ("dispatch-config", env!("CARGO_BIN_EXE_dispatch-config")),
    ("dispatch-spawn", env!("CARGO_BIN_EXE_dispatch-spawn")),
    ("dispatch-monitor", env!("CARGO_BIN_EXE_dispatch-monitor")),
    ("dispatch-reconcile", env!("CARGO_BIN_EXE_dispatch-reconcile")),
    ("dispatch-worker", env!("CARGO_BIN_EXE_dispatch-worker")),
];

/// A worker that stays and one that ends at once. Should the benchmark be killed, the first ends by
/// itself, and with the last one also a monitor.
const CONFIG: &str = "backends:
  stays: { command: exec sleep 300, prompt: stdin }
  ends: { command: 'true' }
models:
  stays: { backend: stays }
  ends: { backend: ends }
";

const PLAN: &str = "# Measure\n- [ ] One\n- [ ] Two\n- [ ] Three\n\n## Context\nNothing.\n";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scale {
    questions: usize,
    spawns: usize,
    idle: Duration,
    starts: usize,
}

const FULL: Scale =
    Scale { questions: 600, spawns: 60, idle: Duration::from_secs(60), starts: 300 };
const QUICK: Scale =
    Scale { questions: 100, spawns: 15, idle: Duration::from_secs(10), starts: 60 };

type Part = fn(&Scale, &mut Table) -> Result<()>;
const PARTS: [(&str, Part); 6] = [
    ("sizes", sizes),
    ("start", helper_start),
    ("resolve", request_resolved),
    ("spawn", spawn_returns),
    ("news", question_to_line),
    ("idle", idle_monitor),
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says --bench; `cargo test --benches` does not, and builds what is not worth measuring.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("nothing is measured here; run: cargo bench");
        return ExitCode::SUCCESS;
    }
    arguments.retain(|argument| argument != "--bench");
    let scale = if arguments.iter().any(|argument| argument == "--quick") { &QUICK } else { &FULL };
    arguments.retain(|argument| argument != "--quick");
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = arguments.iter().find(|name| !known(name)) {
        let parts = PARTS.map(|(part, _)| part).join("|");
        eprintln!("speed: unknown argument '{unknown}'\n  usage: [--quick] [{parts}]...");
        return ExitCode::from(64);
    }

    let mut table = Table::begin();
    for (name, part) in PARTS {
        if !arguments.is_empty() && !arguments.iter().any(|argument| argument == name) {
            continue;
        }
        if let Err(error) = part(scale, &mut table) {
            eprintln!("speed: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    match table.exceeded {
        0 => ExitCode::SUCCESS,
        exceeded => {
            println!("{exceeded} over the limit");
            ExitCode::FAILURE
        }
    }
}

/// The table as it grows.
struct Table {
    exceeded: usize,
    machine: Option<Machine>,
    busy: String,
}

impl Table {
    fn begin() -> Self {
        println!(
            "{:<42} {:>5} {:>9} {:>9} {:>9}   {:<15} {:<5} busy",
            "", "n", "p50", "p99", "max", "limit", ""
        );
        Self { exceeded: 0, machine: Machine::now(), busy: String::new() }
    }

    /// Many measurements of one thing.
    fn times(&mut self, what: &str, times: &Times, limit: &str, met: bool) {
        let ms = |at: f64| format!("{:.2} ms", millis(times.at(at)));
        self.row(what, &times.0.len().to_string(), [&ms(0.5), &ms(0.99), &ms(1.0)], limit, met);
    }

    /// One measurement.
    fn value(&mut self, what: &str, value: &str, limit: &str, met: bool) {
        self.row(what, "1", [value, "", ""], limit, met);
    }

    fn row(&mut self, what: &str, count: &str, values: [&str; 3], limit: &str, met: bool) {
        let [p50, p99, max] = values;
        let verdict = match (limit, met) {
            ("", _) => "",
            (_, true) => "ok",
            (_, false) => "OVER",
        };
        // Rows that were measured together have nothing between them.
        if let (Some(before), Some(now)) = (self.machine, Machine::now())
            && now.total - before.total >= 20
        {
            let share = (now.busy - before.busy) as f64 / (now.total - before.total) as f64;
            self.busy = format!("{:.0} %", share * 100.0);
            self.machine = Some(now);
        }
        println!(
            "{what:<42} {count:>5} {p50:>9} {p99:>9} {max:>9}   {limit:<15} {verdict:<5} {}",
            self.busy
        );
        self.exceeded += usize::from(!met);
    }
}

/// Measured times, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The time that this part of all is not above.
    fn at(&self, part: f64) -> Duration {
        let rank = (part * self.0.len() as f64).ceil() as usize;
        self.0[rank.clamp(1, self.0.len()) - 1]
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What all processors did since the machine was started, in clock ticks.
#[derive(Clone, Copy)]
struct Machine {
    busy: u64,
    total: u64,
}

impl Machine {
    /// `None` where the system does not tell.
    fn now() -> Option<Self> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let ticks = stat.lines().next()?.split_whitespace().skip(1);
        let ticks: Vec<u64> = ticks.map_while(|ticks| ticks.parse().ok()).collect();
        // proc(5): user, nice, system, idle, iowait, irq, softirq, steal; the rest is in user.
        let total: u64 = ticks.get(..8)?.iter().sum();
        Some(Self { busy: total - ticks[3] - ticks[4], total })
    }
}

/// What the five helpers take on disk, as they were built here: with the machine's own libc.
fn sizes(_: &Scale, table: &mut Table) -> Result<()> {
    let mut sum = 0;
    for (name, path) in HELPERS {
        let bytes = fs::metadata(path).with_context(|| path.to_owned())?.len();
        table.value(&format!("size of {name}"), &format!("{} K", bytes / 1024), "", true);
        sum += bytes;
    }
    let limit = 4 << 20;
    table.value("size of all five", &format!("{} K", sum / 1024), "4096 K", sum <= limit);
    Ok(())
}

/// `--version` of each helper and through each launcher, against a shell that does nothing.
fn helper_start(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let mut shell = home.command(Path::new("sh"));
    shell.args(["-c", "true"]);
    let mut commands = vec![("sh -c true".to_owned(), shell)];
    for (name, binary) in HELPERS {
        let launcher = launcher(name);
        for (what, path) in
            [(name.to_owned(), binary.as_ref()), (format!("bin/{name}"), &*launcher)]
        {
            let mut command = home.command(path);
            command.arg("--version");
            commands.push((format!("{what} --version"), command));
        }
    }
    let mut times = vec![Vec::new(); commands.len()];
    // One after the other, so that what the machine does besides is spread over all of them.
    for round in 0..scale.starts + 3 {
        for (index, (what, command)) in commands.iter_mut().enumerate() {
            command.stdin(Stdio::null()).stdout(Stdio::null());
            let begin = Instant::now();
            let status = command.status().with_context(|| what.clone())?;
            let took = begin.elapsed();
            ensure!(status.success(), "{what}: {status}");
            if round >= 3 {
                times[index].push(took);
            }
        }
    }
    let mut shell = None;
    for ((what, _), times) in commands.iter().zip(times) {
        let times = Times::new(times);
        let median = times.at(0.5);
        match shell {
            None => {
                shell = Some(median);
                table.times(what, &times, "", true);
            }
            Some(shell) => {
                let ratio = median.as_secs_f64() / shell.as_secs_f64();
                let limit = format!("{ratio:.2} of 2 x sh");
                table.times(what, &times, &limit, ratio <= 2.0);
            }
        }
    }
    Ok(())
}

/// The worker that a long request names, looked for among many.
fn request_resolved(scale: &Scale, table: &mut Table) -> Result<()> {
    let models: String = (0..200).map(|n| format!("  model-{n}.5-x: {{ backend: b }}\n")).collect();
    let config = Config::parse(&format!("models:\n{models}"), Path::new("config.yaml"))?;
    let request = "consider the many words of a request ".repeat(286) + "with model-77.5-x";
    let mut times = Vec::new();
    for _ in 0..scale.starts {
        let begin = Instant::now();
        let mention = config.mention(&request);
        times.push(begin.elapsed());
        ensure!(mention == Mention::Name("model-77.5-x".into()), "{mention:?}");
    }
    let times = Times::new(times);
    let met = times.at(0.99) <= Duration::from_millis(5);
    table.times("a request of 2,000 words, 200 names", &times, "p99 <= 5 ms", met);
    Ok(())
}

/// How long the host waits for `dispatch-spawn` on the cli route, until the last of its output.
fn spawn_returns(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let project = home.project("spawn")?;
    let ways = [
        ("dispatch-spawn, cli route", home.helper("dispatch-spawn")),
        ("the same through bin/dispatch-spawn", launcher("dispatch-spawn")),
    ];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..scale.spawns + 1 {
        for (index, (_, program)) in ways.iter().enumerate() {
            let id = format!("t{round}-{index}");
            let took = project.spawn(program, &id, "ends")?;
            project.until_ended(&id)?;
            if round > 0 {
                times[index].push(took);
            }
        }
    }
    for ((what, _), times) in ways.iter().zip(times) {
        let times = Times::new(times);
        let met = times.at(0.5) <= Duration::from_millis(50);
        table.times(what, &times, "p50 <= 50 ms", met);
    }
    Ok(())
}

/// From the moment a worker publishes a question to the moment its line is read from a monitor.
fn question_to_line(scale: &Scale, table: &mut Table) -> Result<()> {
    for (tasks, hook) in [(1, false), (20, false), (20, true)] {
        let home = Home::new()?;
        let project = home.project("news")?;
        project.run(tasks)?;
        let mut times = Vec::new();
        for round in 0..scale.questions + 3 {
            let task = project.task(&name_of(round % tasks));
            let took = one_question(project.monitor(hook), &task)?;
            if round >= 3 {
                times.push(took);
            }
        }
        let times = Times::new(times);
        let met = times.at(0.99) <= Duration::from_millis(5);
        let what = format!("question to line, {}", watched(tasks, hook));
        table.times(&what, &times, "p99 <= 5 ms", met);
    }
    Ok(())
}

fn one_question(mut monitor: Command, task: &Path) -> Result<Duration> {
    // A monitor speaks on its standard output, as a hook on its standard error.
    let (reader, writer) = std::io::pipe()?;
    let mut running = Running(monitor.stdout(writer.try_clone()?).stderr(writer).spawn()?);
    drop(monitor);
    until("the monitor waits", || is_waiting(running.pid()))?;

    // As workers do it: the file is complete and on disk before it gets its name.
    let question = task.join("ipc/001.question");
    let temporary = task.join("ipc/.001.question.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(b"Which of the two ways?\n")?;
    file.sync_data()?;
    let begin = Instant::now();
    fs::rename(&temporary, &question)?;
    let mut lines = BufReader::new(reader).lines();
    loop {
        let line = lines.next().context("the monitor ended without a word")??;
        if line.contains("Which of the two ways?") {
            break;
        }
    }
    let took = begin.elapsed();
    running.0.wait()?;
    // As if it was never asked, so that no round has more to read than another.
    fs::remove_file(&question)?;
    fs::remove_file(task.join("news"))?;
    Ok(took)
}

/// What a monitor costs while nothing happens.
fn idle_monitor(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let (one, many) = (home.project("one")?, home.project("many")?);
    one.run(1)?;
    many.run(20)?;
    let mut monitors = Vec::new();
    for (project, tasks, hook) in [(&one, 1, false), (&many, 20, false), (&many, 20, true)] {
        let monitor = Running(project.monitor(hook).stdout(Stdio::null()).spawn()?);
        until("the monitor waits", || is_waiting(monitor.pid()))?;
        monitors.push((watched(tasks, hook), monitor));
    }
    // Until every task was read that had just been started.
    sleep(Duration::from_secs(5));
    let used = |(_, monitor): &(String, Running)| usage(monitor.pid());
    let before = monitors.iter().map(used).collect::<Result<Vec<_>>>()?;
    sleep(scale.idle);
    let after = monitors.iter().map(used).collect::<Result<Vec<_>>>()?;
    for (((what, monitor), before), after) in monitors.iter_mut().zip(before).zip(after) {
        ensure!(monitor.0.try_wait()?.is_none(), "a monitor ended by itself");
        let (Some(before), Some(after)) = (before, after) else {
            table.value(&format!("waiting, {what}"), "not seen", "", true);
            continue;
        };
        let minute = (after.cpu - before.cpu).mul_f64(60.0 / scale.idle.as_secs_f64());
        let met = minute <= Duration::from_millis(10);
        let value = format!("{:.2} ms", millis(minute));
        table.value(&format!("CPU a minute, {what}"), &value, "10 ms", met);
        let value = after.others.to_string();
        table.value(&format!("processes and threads, {what}"), &value, "0", after.others == 0);
    }
    Ok(())
}

fn watched(tasks: usize, hook: bool) -> String {
    let how = if hook { ", --hook" } else { "" };
    format!("{tasks} running{how}")
}

/// What a process has used.
struct Usage {
    cpu: Duration,
    /// Threads beside the first, children, and signs that there were children.
    others: usize,
}

/// `None` where the system does not tell.
#[cfg(target_os = "linux")]
fn usage(pid: Pid) -> Result<Option<Usage>> {
    use nix::time::{clock_getcpuclockid, clock_gettime};
    let count = |path: String| fs::read_dir(&path).map(Iterator::count).context(path);
    let threads = count(format!("/proc/{pid}/task"))?;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    // proc(5): field 11 counts the page faults of children that were waited for; none lives without.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let faults: usize = fields.nth(11 - 3).context("a short stat")?.parse()?;
    Ok(Some(Usage {
        // In nanoseconds, where utime and stime are hundredths of a second.
        cpu: Duration::from(clock_gettime(clock_getcpuclockid(pid)?)?),
        others: threads - 1 + children.split_whitespace().count() + usize::from(faults > 0),
    }))
}

#[cfg(not(target_os = "linux"))]
fn usage(_: Pid) -> Result<Option<Usage>> {
    Ok(None)
}

/// Whether a monitor has looked at everything and waits.
#[cfg(target_os = "linux")]
fn is_waiting(pid: Pid) -> Result<bool> {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    Ok(call.split(' ').next() == Some(&nix::libc::SYS_ppoll.to_string()))
}

#[cfg(not(target_os = "linux"))]
fn is_waiting(_: Pid) -> Result<bool> {
    sleep(Duration::from_millis(100));
    Ok(true)
}

fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !condition()? {
        ensure!(begin.elapsed() < PATIENCE, "it never came true that {what}");
        sleep(Duration::from_micros(500));
    }
    Ok(())
}

/// A child that ends with this value.
struct Running(Child);

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn launcher(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bin").join(name)
}

fn name_of(number: usize) -> String {
    format!("t{number}")
}

/// A home directory with a config and with the helpers where the launchers look for them.
struct Home {
    directory: TempDir,
}

impl Home {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let home = Self { directory };
        fs::create_dir_all(home.path(".dispatch"))?;
        fs::write(home.path(".dispatch/config.yaml"), CONFIG)?;
        fs::create_dir_all(home.helper(""))?;
        for (name, binary) in HELPERS {
            fs::copy(binary, home.helper(name))?;
        }
        Ok(home)
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn helper(&self, name: &str) -> PathBuf {
        self.path("helpers").join(env!("CARGO_PKG_VERSION")).join(name)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.directory.path()).env("DISPATCH_HOME", self.path("helpers"));
        command.stdin(Stdio::null());
        command
    }

    fn project(&self, name: &str) -> Result<Project<'_>> {
        let root = self.path(name);
        // The helpers must not find the repository that they were built in.
        fs::create_dir_all(root.join(".git"))?;
        fs::write(root.join(".git/HEAD"), "")?;
        Ok(Project { home: self, root })
    }
}

/// A project whose workers end with it.
struct Project<'a> {
    home: &'a Home,
    root: PathBuf,
}

impl Project<'_> {
    fn task(&self, id: &str) -> PathBuf {
        self.root.join(".dispatch/tasks").join(id)
    }

    /// Runs `dispatch-spawn` as this process's own, as a host does, and says how long that took.
    fn spawn(&self, program: &Path, id: &str, model: &str) -> Result<Duration> {
        fs::create_dir_all(self.task(id))?;
        fs::write(self.task(id).join("plan.md"), PLAN)?;
        let mut command = self.home.command(program);
        command.current_dir(&self.root).env("CLAUDE_PID", std::process::id().to_string());
        command.args([id, "--model", model]);
        let begin = Instant::now();
        let output = command.output()?;
        let took = begin.elapsed();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "dispatch-spawn {id}: {}: {error}", output.status);
        Ok(took)
    }

    /// Starts so many workers that stay, named by [`name_of`].
    fn run(&self, count: usize) -> Result<()> {
        for number in 0..count {
            self.spawn(&self.home.helper("dispatch-spawn"), &name_of(number), "stays")?;
        }
        Ok(())
    }

    fn monitor(&self, hook: bool) -> Command {
        let mut command = self.home.command(&self.home.helper("dispatch-monitor"));
        command.current_dir(&self.root);
        if hook {
            command.arg("--hook").env("CLAUDE_PID", std::process::id().to_string());
        }
        command
    }

    /// Waits until a task's supervisor has written how the worker ended, and ended itself.
    fn until_ended(&self, id: &str) -> Result<()> {
        until("the supervisor ends", || {
            let recorded = self.task(id).join("worker/1/exit").is_file();
            Ok(recorded && !Lock::is_held(&self.task(id).join("run.lock"))?)
        })
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        let tasks = fs::read_dir(self.root.join(".dispatch/tasks")).into_iter().flatten();
        for task in tasks.flatten().filter(|task| !task.path().join("worker/1/exit").is_file()) {
            let mut stop = self.home.command(&self.home.helper("dispatch-reconcile"));
            stop.arg("stop").arg(task.file_name()).current_dir(&self.root).stdout(Stdio::null());
            let _ = stop.status();
        }
    }
}
