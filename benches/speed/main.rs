//! Measures the times that the design's budget limits, and fails where one exceeds its limit.
//!
//! `cargo bench` takes five minutes and `cargo bench -- --quick` two; names after `--` choose parts.
//! Machines differ, so each limit is a count, or a ratio to something measured in the same run and
//! in turns with the helper. Each time and each ratio is the median of [`RUNS`] runs.
//! Longer than 500 lines because each row of the budget is measured here.
//! Everything happens in temporary homes on the disk that holds the target directory, because a
//! disk on which a sync costs nothing would flatter the numbers.

mod home;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dispatch::HELPERS;
#[cfg(target_os = "linux")]
use dispatch::process::{Holder, Rule, Sandbox};
use nix::unistd::Pid;

use home::{Home, Project, name_of};

/// The number of runs that a median is taken of.
const RUNS: usize = 5;

/// The deadline of steps that take milliseconds, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The amounts that each run measures.
struct Scale {
    starts: usize,
    spawns: usize,
    questions: usize,
    #[cfg(target_os = "linux")]
    idle: Duration,
}

const FULL: Scale = Scale {
    starts: 100,
    spawns: 20,
    questions: 200,
    #[cfg(target_os = "linux")]
    idle: Duration::from_secs(120),
};
const QUICK: Scale = Scale {
    starts: 30,
    spawns: 5,
    questions: 50,
    #[cfg(target_os = "linux")]
    idle: Duration::from_secs(30),
};

type Part = fn(&Scale, &mut Table) -> Result<()>;
const PARTS: &[(&str, Part)] = &[
    ("size", program_size),
    ("start", helper_start),
    ("spawn", spawn_returns),
    #[cfg(target_os = "linux")]
    ("sandbox", sandboxed_start),
    ("hook", hook_start),
    ("status", status_of_many),
    ("news", question_to_line),
    #[cfg(target_os = "linux")]
    ("idle", idle::waiting_monitor),
];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` passes --bench. `cargo test --benches` does not, and builds without optimizing.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("this build measures nothing; run: cargo bench");
        return ExitCode::SUCCESS;
    }
    let scale = if arguments.iter().any(|argument| argument == "--quick") { &QUICK } else { &FULL };
    arguments.retain(|argument| argument != "--bench" && argument != "--quick");
    if let Some(unknown) = arguments.iter().find(|name| PARTS.iter().all(|(it, _)| it != name)) {
        let parts: Vec<_> = PARTS.iter().map(|(part, _)| *part).collect();
        eprintln!("speed: unknown part '{unknown}'\n  usage: [--quick] [{}]...", parts.join("|"));
        return ExitCode::from(64);
    }

    let mut table = Table { exceeded: 0 };
    table.print("", "median", "ratio", "limit", "");
    for (name, part) in PARTS {
        if !arguments.is_empty() && !arguments.iter().any(|argument| argument == name) {
            continue;
        }
        if let Err(error) = part(scale, &mut table) {
            eprintln!("speed: {name}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    if table.exceeded > 0 {
        println!("{} over the limit", table.exceeded);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The table of results; prints each row once it is measured.
struct Table {
    exceeded: usize,
}

impl Table {
    /// A row whose limit is a multiple of the reference.
    fn ratio(&mut self, what: &str, (time, ratio): (Duration, f64), limit: f64, reference: &str) {
        let text = |ratio: f64| match ratio < 0.1 {
            true => format!("1/{:.0}", 1.0 / ratio),
            false => format!("{ratio:.2}"),
        };
        let multiple = text(limit);
        let limit_text = format!("{} x {reference}", multiple.trim_end_matches(".00"));
        self.row(what, &in_ms(time), &text(ratio), &limit_text, ratio <= limit);
    }

    /// A row whose limit is a count.
    fn count(&mut self, what: &str, count: usize, limit: usize) {
        self.row(what, &count.to_string(), "", &limit.to_string(), count <= limit);
    }

    fn row(&mut self, what: &str, measured: &str, ratio: &str, limit: &str, met: bool) {
        self.print(what, measured, ratio, limit, if met { "ok" } else { "OVER" });
        self.exceeded += usize::from(!met);
    }

    fn print(&self, what: &str, measured: &str, ratio: &str, limit: &str, verdict: &str) {
        println!("{what:<48} {measured:>10} {ratio:>7}   {limit:<31} {verdict}");
    }
}

fn in_ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// The value that `share` of all values do not exceed.
fn quantile<T: PartialOrd + Copy>(mut values: Vec<T>, share: f64) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("a number"));
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

fn median<T: PartialOrd + Copy>(values: Vec<T>) -> T {
    quantile(values, 0.5)
}

/// The median time of a helper and the median ratio to its reference. Each run takes both times
/// `rounds` times, in turns.
fn compare(
    rounds: usize,
    mut helper: impl FnMut() -> Result<Duration>,
    mut reference: impl FnMut() -> Result<Duration>,
) -> Result<(Duration, f64)> {
    let (mut medians, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (mut times, mut references) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            references.push(reference()?);
            times.push(helper()?);
        }
        let time = median(times);
        ratios.push(time.div_duration_f64(median(references)));
        medians.push(time);
    }
    Ok((median(medians), median(ratios)))
}

/// The time from the start of a command to its end.
fn time(mut command: Command) -> Result<Duration> {
    command.stdout(Stdio::null());
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("{command:?}"))?;
    let took = begin.elapsed();
    ensure!(status.success(), "{command:?}: {status}");
    Ok(took)
}

const SHELL: &str = "sh -c true";

fn shell(home: &Home) -> Result<Duration> {
    let mut shell = home.command(Path::new("sh"));
    shell.args(["-c", "true"]);
    time(shell)
}

/// The bytes of the one program that all five helpers are.
fn program_size(_: &Scale, table: &mut Table) -> Result<()> {
    let bytes = usize::try_from(fs::metadata(Home::new()?.helper("dispatch"))?.len())?;
    table.count("bytes of the program on disk", bytes, 3_000_000);
    Ok(())
}

/// `--version` of the five helpers in turn, and the same through their launchers.
fn helper_start(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let version = |path: PathBuf| {
        let mut command = home.command(&path);
        command.arg("--version");
        time(command)
    };
    let mut names = HELPERS.iter().cycle();
    let mut next = || names.next().context("a cycle ended");
    let times = compare(scale.starts, || version(home.helper(next()?)), || shell(&home))?;
    table.ratio("start of a helper", times, 1.5, SHELL);
    let times = compare(scale.starts, || version(launcher(next()?)), || shell(&home))?;
    table.ratio("start of a helper through its launcher", times, 2.0, SHELL);
    Ok(())
}

/// The time until `dispatch-spawn` on the cli route has printed its last output.
fn spawn_returns(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let project = home.project("spawn")?;
    let mut count = 0;
    let spawn = || {
        count += 1;
        let took = project.spawn(&name_of(count), "ends", &[])?;
        project.until_ended(&name_of(count))?;
        Ok(took)
    };
    let times = compare(scale.spawns, spawn, || shell(&home))?;
    table.ratio("dispatch-spawn returns, cli route", times, 15.0, SHELL);
    let project = home.repository_with_slow_hook("worktrees")?;
    let mut count = 0;
    // Each supervisor makes its worktree and runs the hook in the background; one at a time, as in the row
    // above, so that the time is that of one dispatch.
    let mut spawn = || {
        count += 1;
        let took = project.spawn(&name_of(count), "ends", &["--worktree"])?;
        project.until_ended(&name_of(count))?;
        Ok(took)
    };
    (0..40).try_for_each(|_| spawn().map(drop))?;
    let times = compare(scale.spawns, spawn, || shell(&home))?;
    table.ratio("the same with --worktree, after 40 others", times, 15.0, SHELL);
    Ok(())
}

/// The start and end of a program with the rules of a worker in a worktree: against the least that bubblewrap can do,
/// which alone takes about 2 ms, and against a shell.
#[cfg(target_os = "linux")]
fn sandboxed_start(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let mut sandbox = Sandbox::default();
    let hidden = [".ssh", ".aws", ".docker", ".config/gh", ".claude", ".codex", ".gemini"];
    let hidden = hidden.iter().chain(&[".dispatch"]).map(|path| (*path, Rule::Hidden));
    let own = [".dispatch/worktrees/x", ".dispatch/homes/x", "project/.dispatch/tasks/x"];
    for (path, rule) in hidden.chain(own.map(|path| (path, Rule::Writable))) {
        fs::create_dir_all(home.path(path))?;
        sandbox.rule(&home.path(path), rule);
    }
    ["/tmp", "/run"].iter().for_each(|path| sandbox.rule(Path::new(path), Rule::Hidden));
    let held = |holder| {
        let begin = Instant::now();
        time(sandbox.command(holder, Path::new("/"), &["true".into()])?)?;
        Ok(begin.elapsed())
    };
    const FLOOR: &str = "bwrap --ro-bind / / true";
    let floor = || {
        let mut words = FLOOR.split(' ');
        let mut command = Command::new(words.next().context("a program")?);
        command.args(words);
        time(command)
    };
    let times = compare(scale.starts, || held(Holder::Bubblewrap), floor)?;
    table.ratio("start of a program in bubblewrap", times, 2.5, FLOOR);
    let times = compare(scale.starts, || held(Holder::Landlock), || shell(&home))?;
    table.ratio("start of a program in Landlock", times, 3.0, SHELL);
    Ok(())
}

/// The time from the start of the host's hook until it waits. Each project has one running task, and the
/// host has heard of the ends of all others.
fn hook_start(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let mut projects = Vec::new();
    for number in 0..20 {
        let project = home.project(&format!("project-{number}"))?;
        project.fill(49)?;
        project.spawn("running", "stays", &[])?;
        projects.push(project);
    }
    let told = projects[0].monitor(true).output()?;
    ensure!(told.status.code() == Some(2), "no wake: {told:?}");
    let ids = projects.iter().map(Project::delivered).collect::<Result<Vec<_>>>()?;
    let seen = serde_json::json!({ "prompt": ids.join(" ") }).to_string();
    let mut hook = Running(projects[0].monitor(true).stdin(Stdio::piped()).spawn()?);
    hook.0.stdin.take().context("a pipe")?.write_all(seen.as_bytes())?;
    until("the hook waits", || is_waiting(hook.pid()))?;
    drop(hook);
    let start = || {
        let begin = Instant::now();
        let hook = Running(projects[0].monitor(true).spawn()?);
        until("the hook waits", || is_waiting(hook.pid()))?;
        Ok(begin.elapsed())
    };
    let times = compare(scale.spawns, start, || shell(&home))?;
    table.ratio("start of the hook, 1,000 tasks in 20 projects", times, 15.0, SHELL);
    Ok(())
}

/// `status` and `statusline` over many tasks; nine in ten were done days ago.
fn status_of_many(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let (thousand, ten_thousand) = (home.project("thousand")?, home.project("ten-thousand")?);
    thousand.fill(1_000)?;
    ten_thousand.fill(10_000)?;
    let reconcile = |project: &Project<'_>, subcommand: &str| {
        let mut command = home.command(&home.helper("dispatch-reconcile"));
        command.arg(subcommand).current_dir(&project.root);
        time(command)
    };
    let status = || reconcile(&thousand, "status");
    // The first calls, which read all tasks, make the index.
    for (project, count) in [(&thousand, 1_000), (&ten_thousand, 10_000)] {
        let index = project.state(&name_of(0))?.with_file_name(".ends");
        until("all but the task of today are in the index", || {
            reconcile(project, "status")?;
            let text = fs::read_to_string(&index).unwrap_or_default();
            Ok(text.matches("\"stamps\"").count() == count - 1)
        })?;
    }
    let plans = || {
        let begin = Instant::now();
        for number in 0..1_000 {
            fs::read(thousand.task(&name_of(number)).join("plan.md"))?;
        }
        Ok(begin.elapsed())
    };
    let times = compare(scale.spawns, status, plans)?;
    table.ratio("status over 1,000 tasks", times, 2.0, "reading their plans");
    let statusline = || reconcile(&thousand, "statusline");
    let times = compare(scale.spawns, statusline, || shell(&home))?;
    table.ratio("statusline over 1,000 tasks", times, 8.0, SHELL);
    let times = compare(scale.spawns, || reconcile(&ten_thousand, "status"), status)?;
    table.ratio("status over 10,000 tasks", times, 11.0, "status over 1,000");
    Ok(())
}

/// The time within which a loop that looks every three seconds sees 99 of 100 questions. Derived
/// from its period, since questions come at any moment of it; the look itself counts as no time.
const LOOP_P99: Duration = Duration::from_millis(2_970);

/// The time from the moment a worker publishes a question until a monitor prints its line.
fn question_to_line(scale: &Scale, table: &mut Table) -> Result<()> {
    for tasks in [1, 20] {
        let home = Home::new()?;
        let project = home.project("news")?;
        project.run(tasks)?;
        let mut p99 = Vec::new();
        for _ in 0..RUNS {
            let ask = |round| one_question(&project, &name_of(round % tasks));
            let times = (0..scale.questions).map(ask).collect::<Result<Vec<_>>>()?;
            p99.push(quantile(times, 0.99));
        }
        let p99 = median(p99);
        let what = format!("question to line, p99, {tasks} running");
        let ratio = p99.div_duration_f64(LOOP_P99);
        table.ratio(&what, (p99, ratio), 1.0 / 300.0, "3-s loop, p99 (2.97 s)");
    }
    Ok(())
}

fn one_question(project: &Project<'_>, id: &str) -> Result<Duration> {
    let task = project.task(id);
    let mut monitor = Running(project.monitor(false).stdout(Stdio::piped()).spawn()?);
    let lines = BufReader::new(monitor.0.stdout.take().context("a pipe")?).lines();
    until("the monitor waits", || is_waiting(monitor.pid()))?;

    // Workers write, sync and close a file, then rename it; the time begins with the rename.
    let (temporary, question) = (task.join("ipc/.001.question.tmp"), task.join("ipc/001.question"));
    let mut file = File::create(&temporary)?;
    file.write_all(b"Which of the two ways?\n")?;
    file.sync_data()?;
    drop(file);
    let begin = Instant::now();
    fs::rename(&temporary, &question)?;
    let mut lines = lines.map_while(Result::ok);
    let told = lines.any(|line| line.contains("Which of the two ways?"));
    let took = begin.elapsed();
    ensure!(told, "the monitor ended without the question");
    monitor.0.wait()?;
    // Each round finds the task as the first one did.
    fs::remove_file(question)?;
    fs::remove_file(project.state(id)?.join("news"))?;
    Ok(took)
}

#[cfg(target_os = "linux")]
mod idle {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::signal::{Signal, kill};
    use nix::time::{clock_getcpuclockid, clock_gettime};

    use super::*;

    /// The usual way to write a monitor, in the cheapest form: `sleep` is all that it starts.
    const LOOP: &str = r#"
        trap exit TERM
        shopt -s nullglob
        while [ -d "$1" ]; do
            for question in "$1"/ipc/*.question; do
                if [ ! -f "${question%.question}.answer" ]; then
                    echo "$(<"$question")"
                    exit
                fi
            done
            sleep 3
        done
    "#;

    /// The processor time that waiting costs [`RUNS`] monitors of one task, as many of 20 tasks,
    /// and as many loops of one task, all at the same time.
    pub(super) fn waiting_monitor(scale: &Scale, table: &mut Table) -> Result<()> {
        let home = Home::new()?;
        let (one, many) = (home.project("one")?, home.project("many")?);
        one.run(1)?;
        many.run(20)?;
        let monitors = |project: &Project<'_>| {
            let monitor = |_| Ok(Running(project.monitor(false).spawn()?));
            (0..RUNS).map(monitor).collect::<Result<Vec<_>>>()
        };
        let started = [("1 task", 0.5, monitors(&one)?), ("20 tasks", 1.0, monitors(&many)?)];
        // Wait until no task is so new that a monitor reads it again.
        sleep(Duration::from_secs(6));
        let mut loops = Vec::new();
        for _ in 0..RUNS {
            let mut command = home.command(Path::new("bash"));
            command.args(["-c", LOOP, "loop"]).arg(one.task(&name_of(0)));
            let polling = Running(command.spawn()?);
            until("the loop sleeps", || Ok(!children(polling.pid())?.is_empty()))?;
            loops.push(Waiting::new(polling)?);
        }
        let mut waiting = Vec::new();
        for (tasks, limit, monitors) in started {
            let monitors = monitors.into_iter().map(Waiting::new).collect::<Result<Vec<_>>>()?;
            waiting.push((tasks, limit, monitors));
        }
        sleep(scale.idle);

        let mut costs = Vec::new();
        for (tasks, limit, monitors) in &mut waiting {
            let (mut cpu, mut processes) = (Vec::new(), 0);
            for monitor in monitors {
                ensure!(monitor.process.0.try_wait()?.is_none(), "a monitor ended by itself");
                cpu.push(monitor.cost(cpu_of(monitor.process.pid())?));
                processes += processes_of(monitor.process.pid())?;
            }
            costs.push((tasks, *limit, median(cpu), processes));
        }
        loops.iter().try_for_each(|it| kill(it.process.pid(), Signal::SIGTERM))?;
        let loops = loops.into_iter().map(Waiting::end).collect::<Result<Vec<_>>>()?;
        let reference = median(loops);
        for (tasks, limit, cpu, processes) in costs {
            let ratio = cpu.div_duration_f64(reference);
            let against = format!("3-s loop, 1 task ({})", in_ms(reference));
            table.ratio(&format!("CPU in a minute, {tasks}"), (cpu, ratio), limit, &against);
            table.count(&format!("processes started, {tasks}"), processes, 0);
        }
        Ok(())
    }

    /// A waiting process and the processor time that it had used at one moment.
    struct Waiting {
        process: Running,
        since: Instant,
        used: Duration,
    }

    impl Waiting {
        fn new(process: Running) -> Result<Self> {
            let used = cpu_of(process.pid())?;
            Ok(Self { process, since: Instant::now(), used })
        }

        /// The processor time per minute, given the time that is used now.
        fn cost(&self, used: Duration) -> Duration {
            (used - self.used).div_f64(self.since.elapsed().as_secs_f64() / 60.0)
        }

        /// Waits for the end of the process and returns its cost of a minute, with its children's.
        fn end(mut self) -> Result<Duration> {
            let ended = || {
                let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
                let [user, system] = [usage.user_time(), usage.system_time()].map(|time| {
                    Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()) as u64)
                });
                anyhow::Ok(user + system)
            };
            let before = ended()?;
            self.process.0.wait()?;
            Ok(self.cost(ended()? - before))
        }
    }

    /// The processor time of a living process, in nanoseconds and without children.
    fn cpu_of(pid: Pid) -> Result<Duration> {
        Ok(clock_gettime(clock_getcpuclockid(pid)?)?.into())
    }

    fn children(pid: Pid) -> Result<String> {
        let path = format!("/proc/{pid}/task/{pid}/children");
        fs::read_to_string(&path).context(path)
    }

    /// The number of children, or 1 if only earlier ones ended.
    fn processes_of(pid: Pid) -> Result<usize> {
        // proc(5): field 11 counts page faults of children that ended; no program runs without.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ended = fields.nth(11 - 3) != Some("0");
        Ok(children(pid)?.split_whitespace().count().max(usize::from(ended)))
    }
}

/// `true` once a monitor has read everything and waits.
#[cfg(target_os = "linux")]
fn is_waiting(pid: Pid) -> Result<bool> {
    // epoll_wait(2) is one of two system calls, by the machine and the C library.
    #[cfg(target_arch = "x86_64")]
    let waits = [nix::libc::SYS_epoll_pwait, nix::libc::SYS_epoll_wait];
    #[cfg(not(target_arch = "x86_64"))]
    let waits = [nix::libc::SYS_epoll_pwait];
    let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    Ok(waits.iter().any(|wait| call.split(' ').next() == Some(&wait.to_string())))
}

#[cfg(not(target_os = "linux"))]
fn is_waiting(_: Pid) -> Result<bool> {
    sleep(Duration::from_millis(100));
    Ok(true)
}

fn until(what: &str, condition: impl Fn() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !condition()? {
        ensure!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// A child process that is killed when dropped.
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
