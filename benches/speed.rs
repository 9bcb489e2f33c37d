//! Measures what the design promises about speed, and fails where a limit is exceeded.
//!
//! `cargo bench` takes five minutes and `cargo bench -- --quick` one; names after `--` choose parts. The limits are those of an otherwise idle machine, so beside them stands how busy
//! the processors were meanwhile, with what the benchmark itself does: about half of two.
//! Everything happens in temporary homes on the disk that holds the target directory, since where
//! a sync costs nothing the numbers would flatter.

#[path = "../tests/helpers/mod.rs"]
mod helpers;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use dispatch::HELPERS;
use dispatch::config::{Config, Mention};
use dispatch::files::Lock;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

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

/// How monitors are commonly written, in a form that costs as little as such a loop can: it starts
/// nothing but its `sleep`. It says how many when it is ended.
const LOOP: &str = r#"
trap 'echo "$sleeps"; exit' TERM
sleeps=0
shopt -s nullglob
while :; do
    for question in "$1"/ipc/*.question; do
        if [ ! -f "${question%.question}.answer" ]; then
            echo "$(<"$question")"
            exit
        fi
    done
    sleeps=$((sleeps + 1))
    sleep 3
done
"#;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Scale {
    questions: usize,
    spawns: usize,
    idle: Duration,
    starts: usize,
    loops: usize,
}

const FULL: Scale =
    Scale { questions: 600, spawns: 60, idle: Duration::from_secs(60), starts: 300, loops: 60 };
const QUICK: Scale =
    Scale { questions: 100, spawns: 15, idle: Duration::from_secs(10), starts: 60, loops: 20 };

type Part = fn(&Scale, &mut Table) -> Result<()>;
const PARTS: [(&str, Part); 8] = [
    ("sizes", sizes),
    ("start", helper_start),
    ("resolve", request_resolved),
    ("spawn", spawn_returns),
    ("news", question_to_line),
    ("status", status_of_many),
    ("idle", idle_monitor),
    ("side", side_by_side),
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
        Self::head("", ["p50", "p99", "max"]);
        Self { exceeded: 0, machine: Machine::now(), busy: String::new() }
    }

    /// What stands in the columns of the rows below.
    fn head(what: &str, [one, two, three]: [&str; 3]) {
        println!(
            "{what:<42} {:>5} {one:>9} {two:>9} {three:>9}   {:<15} {:<5} busy",
            "n", "limit", ""
        );
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

/// What the five helpers take on disk, which are one program, as it was built here: with the machine's own libc.
fn sizes(_: &Scale, table: &mut Table) -> Result<()> {
    let program = helpers::path("dispatch-config").canonicalize()?;
    let bytes = fs::metadata(program)?.len();
    let limit = 4 << 20;
    table.value("size of all five", &format!("{} K", bytes / 1024), "4096 K", bytes <= limit);
    Ok(())
}

/// `--version` of each helper and through each launcher, against a shell that does nothing.
fn helper_start(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let mut shell = home.command(Path::new("sh"));
    shell.args(["-c", "true"]);
    let mut commands = vec![("sh -c true".to_owned(), shell)];
    for name in HELPERS {
        for (what, path) in
            [(name.to_owned(), home.helper(name)), (format!("bin/{name}"), launcher(name))]
        {
            let mut command = home.command(&path);
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

/// `status` over many tasks, of which nine in ten were done days ago, and the rest waits for the
/// person; with `--all` of all of them.
fn status_of_many(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let project = home.project("status")?;
    project.spawn(&home.helper("dispatch-spawn"), "t0", "ends")?;
    project.until_ended("t0")?;
    let (mut count, mut thousand) = (1, None);
    for (tasks, rounds) in [(20, scale.starts), (1_000, scale.spawns), (10_000, 5)] {
        for number in count..tasks {
            project.copy_task("t0", &format!("t{number}"), number % 10 != 0)?;
        }
        count = tasks;
        for args in [&["statusline"][..], &["status"], &["status", "--all"]] {
            let (mut times, mut most) = (Vec::new(), 0);
            for _ in 0..rounds {
                let mut status = home.command(&home.helper("dispatch-reconcile"));
                status.args(args).current_dir(&project.root).stdout(Stdio::null());
                let begin = Instant::now();
                most = kilobytes_of(status.spawn()?)?.max(most);
                times.push(begin.elapsed());
            }
            let times = Times::new(times);
            let median = times.at(0.5);
            let (limit, met) = match (tasks, args) {
                (20, ["statusline"]) => {
                    ("p50 <= 10 ms".into(), median <= Duration::from_millis(10))
                }
                (1_000, ["status"]) => {
                    thousand = Some(median);
                    let met = median <= Duration::from_millis(50) && most <= 20 << 10;
                    (format!("50 ms, 20M: {:.1}M", most as f64 / 1024.0), met)
                }
                (10_000, ["status"]) => {
                    let ratio = thousand.map_or(1.0, |it| median.as_secs_f64() / it.as_secs_f64());
                    (format!("{ratio:.1} of 12 x"), ratio <= 12.0)
                }
                _ => (String::new(), true),
            };
            table.times(&format!("{}, {tasks} tasks", args.join(" ")), &times, &limit, met);
        }
    }
    Ok(())
}

/// Waits for the end of a process, and says how much memory it had at most.
fn kilobytes_of(child: Child) -> Result<i64> {
    let (mut status, pid) = (0, i32::try_from(child.id())?);
    // SAFETY: all fields of a rusage are numbers, for which zero is a value.
    let mut usage: nix::libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places are ours, and the process is a child that nobody else waits for.
    let ended = unsafe { nix::libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    ensure!(ended == pid && status == 0, "process {pid} ended with {status}");
    Ok(usage.ru_maxrss)
}

/// From the moment a worker publishes a question to the moment its line is read from a monitor; of
/// the hook it is the whole wake, which waits on purpose for what comes soon after.
fn question_to_line(scale: &Scale, table: &mut Table) -> Result<()> {
    for (tasks, hook) in [(1, false), (20, false), (20, true)] {
        let home = Home::new()?;
        let project = home.project("news")?;
        project.run(tasks)?;
        let questions = if hook { scale.questions / 5 } else { scale.questions };
        let times = questions_to_lines(&project, tasks, hook, questions)?;
        let (what, limit) = if hook { ("wake", 200 + 5) } else { ("line", 5) };
        let met = times.at(0.99) <= Duration::from_millis(limit);
        let what = format!("question to {what}, {}", watched(tasks, hook));
        let limit = if hook { "p99 <= 200+5 ms" } else { "p99 <= 5 ms" };
        table.times(&what, &times, limit, met);
    }
    Ok(())
}

fn questions_to_lines(
    project: &Project<'_>,
    tasks: usize,
    hook: bool,
    questions: usize,
) -> Result<Times> {
    let mut times = Vec::new();
    for round in 0..questions + 3 {
        let task = project.task(&name_of(round % tasks));
        let took = one_question(project.monitor(hook), &task)?;
        if round >= 3 {
            times.push(took);
        }
    }
    Ok(Times::new(times))
}

fn one_question(mut monitor: Command, task: &Path) -> Result<Duration> {
    // A monitor speaks on its standard output, as a hook on its standard error.
    let (reader, writer) = std::io::pipe()?;
    let mut running = Running(monitor.stdout(writer.try_clone()?).stderr(writer).spawn()?);
    drop(monitor);
    until("the monitor waits", || is_waiting(running.pid()))?;

    let begin = publish_question(task)?;
    let mut lines = BufReader::new(reader).lines();
    loop {
        let line = lines.next().context("the monitor ended without a message")??;
        if line.contains("Which of the two ways?") {
            break;
        }
    }
    let took = begin.elapsed();
    running.0.wait()?;
    // As if it was never asked, so that no round has more to read than another.
    fs::remove_file(task.join(QUESTION))?;
    fs::remove_file(task.join("news"))?;
    Ok(took)
}

const QUESTION: &str = "ipc/001.question";

/// As workers do it: the file is complete and on disk before it gets its name, which is when the
/// time begins.
fn publish_question(task: &Path) -> Result<Instant> {
    let temporary = task.join("ipc/.001.question.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(b"Which of the two ways?\n")?;
    file.sync_data()?;
    let begin = Instant::now();
    fs::rename(&temporary, task.join(QUESTION))?;
    Ok(begin)
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

/// `dispatch-monitor` and a loop that looks every three seconds, at the same tasks.
fn side_by_side(scale: &Scale, table: &mut Table) -> Result<()> {
    let home = Home::new()?;
    let project = home.project("side")?;
    project.run(1)?;
    let times = questions_to_lines(&project, 1, false, scale.questions / 2)?;
    let met = times.at(0.99) <= Duration::from_millis(5);
    table.times("question to line, dispatch-monitor", &times, "p99 <= 5 ms", met);
    let times = questions_to_lines_of_loops(&home, scale.loops)?;
    table.times("question to line, loop with sleep 3", &times, "", true);

    Table::head("what each costs in a minute", ["CPU", "forks", "memory"]);
    for count in [1, 10, 100] {
        let task = project.task(&name_of(0));
        let (mut monitors, mut loops, started) = (Vec::new(), Vec::new(), Instant::now());
        for _ in 0..count {
            monitors.push(Running(project.monitor(false).stdout(Stdio::null()).spawn()?));
            loops.push(Running(polling_loop(&home, &task).stdout(Stdio::piped()).spawn()?));
        }
        for monitor in &monitors {
            until("the monitor waits", || is_waiting(monitor.pid()))?;
        }
        // Until every task was read that had just been started.
        sleep(Duration::from_secs(5));
        let before = (costs(&monitors)?, costs(&loops)?);
        let begin = Instant::now();
        sleep(scale.idle / 2);
        let minutes = begin.elapsed().as_secs_f64() / 60.0;
        let after = (costs(&monitors)?, costs(&loops)?);
        let sleeps = ends_of(loops)? / count as f64 / (started.elapsed().as_secs_f64() / 60.0);
        let ((Some(monitors), Some(loops)), (Some(monitors_after), Some(loops_after))) =
            (before, after)
        else {
            table.value("waiting side by side", "not seen", "", true);
            continue;
        };
        let each = |before: &Costs, after: &Costs| {
            let cpu = millis(after.cpu - before.cpu) / count as f64 / minutes;
            (cpu, format!("{cpu:.2} ms"), format!("{} K", after.memory / count))
        };
        let (cpu, spent, memory) = each(&monitors, &monitors_after);
        let forks = monitors_after.others.to_string();
        let met = cpu <= 10.0 && monitors_after.others == 0;
        let what = "waiting, dispatch-monitor";
        table.row(what, &count.to_string(), [&spent, &forks, &memory], "10 ms, 0 forks", met);
        let (_, spent, memory) = each(&loops, &loops_after);
        let forks = format!("{sleeps:.0}");
        table.row(
            "waiting, loop with sleep 3",
            &count.to_string(),
            [&spent, &forks, &memory],
            "",
            true,
        );
    }
    Ok(())
}

/// Loops that are asked at different moments of their three seconds, all at once because each
/// takes so long.
fn questions_to_lines_of_loops(home: &Home, count: usize) -> Result<Times> {
    let mut waiting = Vec::new();
    for number in 0..count {
        let task = home.path("loops").join(name_of(number));
        fs::create_dir_all(task.join("ipc"))?;
        let mut running = Running(polling_loop(home, &task).stdout(Stdio::piped()).spawn()?);
        let out = running.0.stdout.take().context("a pipe")?;
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).map(|_| (Instant::now(), line))
        });
        waiting.push((task, running, reader));
    }
    // Until all of them have looked once.
    sleep(Duration::from_secs(1));
    let mut asked = Vec::new();
    for (task, ..) in &waiting {
        asked.push(publish_question(task)?);
        sleep(Duration::from_secs(3) / u32::try_from(count)?);
    }
    let mut times = Vec::new();
    for ((_, _running, reader), asked) in waiting.into_iter().zip(asked) {
        let (read, line) = reader.join().map_err(|_| anyhow!("a reader died"))??;
        ensure!(line == "Which of the two ways?\n", "a loop said {line:?}");
        times.push(read - asked);
    }
    Ok(Times::new(times))
}

fn polling_loop(home: &Home, task: &Path) -> Command {
    let mut command = home.command(Path::new("bash"));
    command.args(["-c", LOOP, "loop"]).arg(task);
    command
}

/// Ends loops and says how many times they slept.
fn ends_of(mut loops: Vec<Running>) -> Result<f64> {
    // They do so after the sleep that they are in.
    loops.iter().try_for_each(|it| kill(it.pid(), Signal::SIGTERM))?;
    let mut sum = 0.0;
    for polling in &mut loops {
        let mut said = String::new();
        polling.0.stdout.take().context("a pipe")?.read_to_string(&mut said)?;
        sum += said.trim().parse::<f64>().with_context(|| format!("a loop said {said:?}"))?;
    }
    Ok(sum)
}

/// What processes use together, with the children that they have.
#[derive(Default)]
struct Costs {
    cpu: Duration,
    /// In kilobytes; what is shared counts in parts.
    memory: usize,
    others: usize,
}

/// `None` where the system does not tell.
fn costs(all: &[Running]) -> Result<Option<Costs>> {
    let mut sum = Costs::default();
    for running in all {
        let Some(usage) = usage(running.pid())? else { return Ok(None) };
        sum.cpu += usage.cpu + usage.children;
        sum.others += usage.others;
        sum.memory += usage.memory;
    }
    Ok(Some(sum))
}

fn watched(tasks: usize, hook: bool) -> String {
    let how = if hook { ", --hook" } else { "" };
    format!("{tasks} running{how}")
}

/// What a process has used.
struct Usage {
    cpu: Duration,
    /// What its children used that have ended, in hundredths of a second.
    children: Duration,
    /// In kilobytes with the children that it has; what is shared counts in parts.
    memory: usize,
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
    // Fields 16 and 17: what those used, for user and system.
    let ticks = fields.skip(16 - 12).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    let mut memory = 0;
    for pid in children.split_whitespace().chain([&*pid.to_string()]) {
        // A child may have ended by now.
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let pss = pss.and_then(|line| line.split_whitespace().next());
        memory += pss.map_or(Ok(0), str::parse::<usize>)?;
    }
    Ok(Some(Usage {
        children: Duration::from_millis(ticks * 10),
        memory,
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
        helpers::install(&home.path("helpers"));
        Ok(home)
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    fn helper(&self, name: &str) -> PathBuf {
        self.path("helpers").join(helpers::VERSION.as_str()).join(name)
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

    /// Puts a task beside another that is like it, but that it was done days ago if so.
    fn copy_task(&self, from: &str, to: &str, done: bool) -> Result<()> {
        for entry in walkdir::WalkDir::new(self.task(from)) {
            let entry = entry?;
            let path = self.task(to).join(entry.path().strip_prefix(self.task(from))?);
            match entry.file_type().is_dir() {
                true => fs::create_dir_all(path)?,
                false => fs::copy(entry.path(), path).map(drop)?,
            }
        }
        // Another task has another nonce, and what was decided about it is kept by that.
        let record = fs::read_to_string(self.task(from).join("task.yaml"))?;
        let nonce = record.lines().find_map(|line| line.strip_prefix("nonce: "));
        let nonce = nonce.context("a nonce")?;
        fs::write(self.task(to).join("task.yaml"), record.replace(nonce, to))?;
        let claims = self.home.path(".dispatch/claims");
        let claim = fs::read_to_string(claims.join(nonce))?;
        fs::write(claims.join(to), claim.replace(&format!("/{from}\""), &format!("/{to}\"")))?;
        if done {
            fs::write(self.task(to).join("plan.md"), PLAN.replace("[ ]", "[x]"))?;
            fs::create_dir_all(self.task(to).join("ipc"))?;
            let marker = File::create(self.task(to).join("ipc/.done"))?;
            marker.set_modified(SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60))?;
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
