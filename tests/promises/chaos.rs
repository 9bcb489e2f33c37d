//! Random kills of hosts, supervisors and workers lose no work, and every reported state is true.
//!
//! `CHAOS_KILLS=10000 cargo test --test promises chaos` kills that many, 200 in each world; `CHAOS_SEED`
//! repeats a world of that many kills.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::made::Random;
use crate::support::process::{all_of, marked};
use crate::support::{DEADLINE, Running, Sandbox, binary, wait_until};

/// The most kills in one world, whose tasks come to an end, and those of a run without a number.
const KILLS: u64 = 200;
const FEW_KILLS: u64 = 60;
/// The kills for each task of a world.
const KILLS_PER_TASK: u64 = 4;

/// The time for the processes of an ended worker to end, in milliseconds.
const GRACE: (&str, &str) = ("DISPATCH_GRACE_MS", "300");

/// A worker that logs each fact after it is certain. It removes locks that a killed git left, as a
/// person would.
const WORKER: &str = r#"
id=${DISPATCH_TASK_DIR##*/}; truth=TRUTH/$id
rm -f "$(git rev-parse --git-dir)/index.lock" "$(git rev-parse --git-common-dir)/refs/heads/dispatch/$id.lock"
for n in 1 2 3; do
  if grep -qsx "ticked $n" "$truth"; then continue; fi
  echo "line $n" && echo "said $n" >>"$truth"
  echo "$n" >"step$n" && git add "step$n" && git commit -qm "Step $n"
  commit=$(git log --format=%H -1 -- "step$n") && [ -n "$commit" ] && echo "commit $commit" >>"$truth"
  HELPER tick "$n" && echo "ticked $n" >>"$truth"
  [ -e TRUTH/hurry ] || sleep 2
done
HELPER finish 'All of it.' && echo finished >>"$truth"
"#;

struct World {
    sandbox: Sandbox,
    ids: Vec<String>,
    random: Random,
}

impl World {
    fn new(seed: u64, kills: u64) -> Self {
        let sandbox = Sandbox::with_git();
        let truth = sandbox.top().join("truth");
        fs::create_dir(&truth).expect("made");
        let script = WORKER.replace("TRUTH", &truth.display().to_string());
        let script = script.replace("HELPER", &binary("dispatch-worker").display().to_string());
        sandbox.workers(&[("works", &script)]);
        let plan = "# Steps\n- [ ] One\n- [ ] Two\n- [ ] Three\n";
        fs::write(sandbox.top().join("plan.md"), plan).expect("written");
        let ids = (0..kills.div_ceil(KILLS_PER_TASK)).map(|number| format!("t{number}")).collect();
        Self { sandbox, ids, random: Random(seed) }
    }

    /// Starts a host that dispatches the tasks without a record, in a random order.
    fn host(&mut self) -> Running {
        let mut ids = self.ids.clone();
        for at in (1..ids.len()).rev() {
            ids.swap(at, self.random.below(at + 1));
        }
        let script = "for id in \"$@\"; do
            [ -e .dispatch/tasks/$id/record.yaml ] ||
            CLAUDE_PID=$$ \"$SPAWN\" $id --model works --worktree --budget 3s \\
                --check \"echo checked >>'$TRUTH/$id'\" --plan \"$PLAN\" </dev/null >&2
        done; exec sleep 1000";
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let call = self.sandbox.program("sh").args(&["-c", script, "host"]).args(&ids);
        let plan: PathBuf = self.sandbox.top().join("plan.md");
        let call = call.env("SPAWN", binary("dispatch-spawn")).env("PLAN", plan);
        call.env("TRUTH", self.sandbox.top().join("truth")).env(GRACE.0, GRACE.1).start()
    }

    /// The state of every task by name, after `dispatch-reconcile` has repaired them.
    fn states(&self) -> BTreeMap<String, String> {
        let said = self.sandbox.ok("dispatch-reconcile", &["--json"]);
        let tasks: Vec<Value> = serde_json::from_str(&said).expect("JSON");
        let word = |task: &Value, key: &str| task[key].as_str().expect("a word").to_owned();
        tasks.iter().map(|task| (word(task, "task"), word(task, "state"))).collect()
    }

    /// Resumes every task that stopped.
    fn resume(&self, states: &BTreeMap<String, String>) {
        for (id, state) in states {
            if matches!(state.as_str(), "failed" | "lost" | "incomplete" | "stopped" | "blocked") {
                // A supervisor that is about to end may still hold the lock (75); the next round
                // tries again.
                let spawn = self.sandbox.call("dispatch-spawn", &[id, "--resume"]);
                let ran = spawn.env(GRACE.0, GRACE.1).run();
                assert!(matches!(ran.code, Some(0 | 65 | 75)), "{id}: {ran:?}");
            }
        }
    }

    /// The pid of a random running supervisor or worker.
    fn victim(&mut self, kind: &str) -> Option<u32> {
        let id = self.ids[self.random.below(self.ids.len())].clone();
        let file = match kind {
            "supervisor" => "run.lock".to_owned(),
            _ => format!("attempts/{}/identity", self.attempts(&id)?),
        };
        let text = fs::read_to_string(self.sandbox.task(&id, &file)).ok()?;
        let digits = text.split("pid").nth(1)?.trim_start_matches(['"', ':', ' ']);
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        // The file may be old, and its pid may belong to any process by now.
        digits.parse().ok().filter(|pid| all_of(&self.sandbox.home()).contains(pid))
    }

    fn attempts(&self, id: &str) -> Option<u32> {
        let entries = fs::read_dir(self.sandbox.task(id, "attempts")).ok()?;
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).max()
    }

    /// The facts that the worker of a task logged.
    fn truth(&self, id: &str) -> Vec<String> {
        let text = fs::read_to_string(self.sandbox.top().join("truth").join(id));
        text.unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Checks that no logged fact of a task is lost.
    fn check(&self, id: &str) {
        if !self.sandbox.task(id, "record.yaml").exists() {
            return;
        }
        let plan = self.sandbox.read(id, "plan.md");
        let mut log = String::new();
        for attempt in 1..=self.attempts(id).unwrap_or(0) {
            let path = self.sandbox.task(id, &format!("attempts/{attempt}/log"));
            log.push_str(&fs::read_to_string(path).unwrap_or_default());
        }
        for fact in self.truth(id) {
            let (what, which) = fact.split_once(' ').unwrap_or((&fact, ""));
            match what {
                "said" => assert!(log.contains(&format!("line {which}\n")), "{id}: {fact}: {log}"),
                "ticked" => {
                    let number: usize = which.parse().expect("a number");
                    let item = plan.lines().filter(|line| line.starts_with("- [")).nth(number - 1);
                    assert!(item.is_some_and(|it| it.starts_with("- [x]")), "{id}: {fact}: {plan}");
                }
                "commit" => {
                    // The branch is fetched when an attempt ends, or somebody looks.
                    self.sandbox.ok("dispatch-reconcile", &["show", id]);
                    let branch = format!("dispatch/{id}");
                    let call = ["merge-base", "--is-ancestor", which, &branch];
                    self.sandbox.git(&call);
                }
                _ => assert!(matches!(what, "finished" | "checked"), "{fact}"),
            }
        }
    }
}

#[test]
fn random_kills_lose_no_work() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since_epoch.expect("after 1970").as_nanos() as u64;
    let mut seed = number("CHAOS_SEED").unwrap_or(now | 1);
    let mut rest = number("CHAOS_KILLS").unwrap_or(FEW_KILLS);
    while rest > 0 {
        println!("CHAOS_SEED={seed}");
        play(seed, rest.min(KILLS));
        rest = rest.saturating_sub(KILLS);
        seed = seed.wrapping_add(2);
    }
}

/// Plays one world with that many kills.
fn play(seed: u64, kills: u64) {
    let mut world = World::new(seed, kills);
    let mut hosts: Vec<Running> = (0..4).map(|_| world.host()).collect();
    let (mut killed, mut last) = (0, Instant::now());
    while killed < kills {
        let before = killed;
        // Kills have to come at random moments.
        std::thread::sleep(Duration::from_millis(world.random.below(30) as u64));
        match world.random.below(12) {
            0 => {
                let at = world.random.below(hosts.len());
                hosts[at] = world.host();
                killed += 1;
            }
            kind => {
                let kind = if kind < 6 { "supervisor" } else { "worker" };
                if let Some(pid) = world.victim(kind) {
                    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
                    killed += u64::from(kill(pid, Signal::SIGKILL).is_ok());
                }
            }
        }
        if killed > before {
            last = Instant::now();
        }
        assert!(last.elapsed() < DEADLINE, "after {killed} kills, no process could be killed");
        if world.random.below(8) == 0 {
            world.resume(&world.states());
        }
    }

    // A task is reported as running if and only if a process of it runs.
    for id in world.ids.clone() {
        wait_until("the state to match the processes", || {
            let Some(state) = world.states().remove(&id) else { return Some(()) };
            let attempt = world.attempts(&id).unwrap_or(0);
            let alive =
                !marked(&world.sandbox.home(), &world.sandbox.task(&id, ""), attempt).is_empty();
            let said = matches!(state.as_str(), "running" | "asking");
            (said == alive || state == "queued" || state == "done").then_some(())
        });
        world.check(&id);
    }

    // Every task can still be completed.
    fs::write(world.sandbox.top().join("truth/hurry"), "").expect("written");
    hosts.push(world.host());
    for id in &world.ids {
        wait_until("every task to be done", || {
            let states = world.states();
            world.resume(&states);
            (states.get(id).is_some_and(|state| state == "done")).then_some(())
        });
    }
    for id in &world.ids {
        world.check(id);
        let truth = world.truth(id);
        assert_eq!(truth.last().map(String::as_str), Some("checked"), "{id}: {truth:?}");
        for n in 1..=3 {
            assert!(truth.contains(&format!("ticked {n}")), "{id}: {truth:?}");
        }
        let steps = world.sandbox.git(&["ls-tree", "--name-only", &format!("dispatch/{id}")]);
        assert_eq!(steps, "README\nstep1\nstep2\nstep3\n", "{id}");
    }
}
