//! Whatever is done, in whatever order, and wherever a helper is killed: `merge` and `clean` take
//! away no commit, no change that is not committed, and nothing that was stashed or staged.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::made::Random;
use crate::support::process::runs;
use crate::support::text::names;
use crate::support::{DEADLINE, PLAN, Ran, Sandbox, wait_until};
use crate::worktrees::{commits, ready};

/// For how long it goes on where nobody says how many histories there are to be.
const TIME: Duration = Duration::from_secs(5);

/// After so many histories the repository is a new one.
const REPOSITORY: u64 = 20;

const CRASHES: [&str; 7] = [
    "merge:merged",
    "clean:moved",
    "clean:forgotten",
    "clean:removed",
    "clean:branch",
    "clean:report",
    "clean:task",
];

/// A change that is in no commit.
#[derive(Clone, Debug)]
struct Change {
    checkout: PathBuf,
    file: String,
    text: String,
}

struct World {
    sandbox: Sandbox,
    random: Random,
    /// Counts everything that needs a name.
    count: usize,
    tasks: Vec<String>,
    /// The commits that must not get lost.
    commits: BTreeSet<String>,
    changes: Vec<Change>,
    story: Vec<String>,
    merged: u64,
    removed: u64,
}

impl World {
    fn new() -> Self {
        Self {
            sandbox: ready(&[("commits", &commits()), ("quits", "exit 0")]),
            random: Random(0),
            count: 0,
            tasks: Vec::new(),
            commits: BTreeSet::new(),
            changes: Vec::new(),
            story: Vec::new(),
            merged: 0,
            removed: 0,
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}{}", self.count)
    }

    fn checkout(&self, task: &str) -> PathBuf {
        let all = self.sandbox.home().join(".dispatch/worktrees");
        let project = names(&all).into_iter().find(|it| all.join(it).is_dir());
        all.join(project.expect("one of this project")).join(task)
    }

    fn git_in(&self, checkout: &PathBuf, args: &[&str]) -> Ran {
        self.sandbox.program("git").args(args).within(checkout).run()
    }

    /// All that some reference, some checkout or a stash still holds.
    fn held(&self) -> BTreeSet<String> {
        let mut held = BTreeSet::new();
        let checkouts = self.tasks.iter().map(|task| self.checkout(task));
        let checkouts = checkouts.filter(|it| it.join(".git").exists());
        for checkout in checkouts.chain([self.sandbox.project()]) {
            for args in [&["rev-list", "--all", "HEAD"][..], &["stash", "list", "--format=%H"]] {
                held.extend(self.git_in(&checkout, args).ok().lines().map(str::to_owned));
            }
        }
        held
    }

    fn is_there(&self, change: &Change) -> bool {
        let text = fs::read_to_string(change.checkout.join(&change.file));
        text.is_ok_and(|text| text == change.text)
    }

    /// Work that a person threw away need not be there any more.
    fn forget_what_is_gone(&mut self) {
        let held = self.held();
        self.commits.retain(|commit| held.contains(commit));
        let mut changes = std::mem::take(&mut self.changes);
        changes.retain(|change| self.is_there(change));
        self.changes = changes;
    }

    #[track_caller]
    fn check(&self) {
        let held = self.held();
        for commit in &self.commits {
            assert!(held.contains(commit), "{commit} is gone after:\n{}", self.story.join("\n"));
        }
        for change in &self.changes {
            let story = self.story.join("\n");
            assert!(self.is_there(change), "{change:?} is gone after:\n{story}");
        }
    }

    /// A person or a worker does something in a checkout of a task or in the project.
    fn work(&mut self) {
        let at = self.random.below(self.tasks.len() + 1);
        let checkout = match self.tasks.get(at) {
            Some(task) => self.checkout(task),
            None => self.sandbox.project(),
        };
        if !checkout.join(".git").exists() {
            return;
        }
        let name = self.name("n");
        // Equal names everywhere, so that merges conflict.
        let file = ["README", "a", "b", &name][self.random.below(4)].to_owned();
        let kind = self.random.below(7);
        self.story.push(format!("  {kind} with {file} in {}", checkout.display()));
        match kind {
            0..=2 => {
                self.changes.retain(|it| it.checkout != checkout || it.file != file);
                fs::write(checkout.join(&file), &name).expect("written");
                if self.random.below(2) == 0 {
                    self.git_in(&checkout, &["add", &file]);
                }
                self.changes.push(Change { checkout, file, text: name });
            }
            3 | 4 => {
                self.git_in(&checkout, &["add", "--all"]);
                let ran = self.git_in(&checkout, &["commit", "-q", "--allow-empty", "-m", &name]);
                if ran.code == Some(0) {
                    self.changes.retain(|it| it.checkout != checkout);
                    let head = self.git_in(&checkout, &["rev-parse", "HEAD"]).out;
                    self.commits.insert(head.trim().to_owned());
                }
            }
            5 => {
                if self.git_in(&checkout, &["stash", "-q", "-u"]).code == Some(0) {
                    let before = self.changes.len();
                    self.changes.retain(|it| it.checkout != checkout);
                    if self.changes.len() < before {
                        let stash = self.git_in(&checkout, &["rev-parse", "refs/stash"]).out;
                        self.commits.insert(stash.trim().to_owned());
                    }
                }
            }
            _ => {
                let branch =
                    self.tasks.get(at).map_or("main".into(), |it| format!("dispatch/{it}"));
                let how: &[&str] = match self.random.below(3) {
                    0 => &["checkout", "-q", "--detach"],
                    1 => &["checkout", "-q", "-b", &name],
                    _ => &["checkout", "-q", &branch],
                };
                self.git_in(&checkout, how);
                // A commit that was on no branch is left behind by whoever switches.
                self.forget_what_is_gone();
            }
        }
    }

    fn spawn(&mut self) {
        let id = self.name("t");
        let model = ["commits", "quits"][self.random.below(2)];
        let args = [&id, "--model", model, "--worktree", "--plan", "-"];
        self.sandbox.call("dispatch-spawn", &args).input(PLAN).run();
        self.until_over(&id);
        let tip = self.sandbox.git(&["rev-parse", &format!("dispatch/{id}")]);
        self.commits.insert(tip.trim().to_owned());
        self.tasks.push(id);
    }

    fn until_over(&self, id: &str) {
        wait_until("the supervisor has ended", || {
            (!runs(self.sandbox.supervisor_of(id))).then_some(())
        });
    }

    fn reconcile(&mut self, args: &[&str]) {
        let mut call = self.sandbox.call("dispatch-reconcile", args);
        let mut crash = "";
        if self.random.below(3) == 0 {
            crash = CRASHES[self.random.below(CRASHES.len())];
            call = call.crash_at(crash);
        }
        let ran = call.run();
        assert!(matches!(ran.code, None | Some(0 | 1 | 65 | 75)), "{args:?}: {ran:?}");
        assert_eq!(ran.signal.is_some(), ran.code.is_none());
        self.merged += u64::from(args[0] == "merge" && ran.code == Some(0));
        self.removed += ran.out.lines().filter(|line| line.starts_with("removed ")).count() as u64;
        self.story.push(format!("  {crash} {:?} {}{}", ran.code, ran.out.trim(), ran.err.trim()));
        self.check();
    }

    fn step(&mut self) {
        let some = self.random.below(self.tasks.len().max(1));
        let Some(task) = self.tasks.get(some).cloned() else { return self.spawn() };
        let kind = self.random.below(20);
        self.story.push(format!("{kind} {task}"));
        match kind {
            0 if self.tasks.len() < 3 => self.spawn(),
            0..=8 => self.work(),
            9..=12 => self.reconcile(&["merge", &task]),
            13 | 14 => self.reconcile(&["clean"]),
            15 | 16 => self.reconcile(&["clean", &task]),
            17 => {
                let _ = fs::remove_dir_all(self.checkout(&task));
                self.forget_what_is_gone();
            }
            18 => {
                let _ = fs::remove_dir_all(self.sandbox.task(&task, ""));
            }
            _ => {
                if self.sandbox.run("dispatch-spawn", &[&task, "--resume"]).code == Some(0) {
                    self.until_over(&task);
                }
                self.check();
            }
        }
    }

    fn history(&mut self, seed: u64) {
        self.random = Random(seed);
        self.story = vec![format!("HISTORY_SEED={seed}")];
        self.spawn();
        for _ in 0..3 + self.random.below(10) {
            self.step();
        }
        for task in self.tasks.clone() {
            self.reconcile(&["merge", &task]);
            self.reconcile(&["clean", &task]);
        }
        self.reconcile(&["clean"]);
        self.wipe();
    }

    /// A new beginning in the same repository.
    fn wipe(&mut self) {
        let script = "git merge --abort; git bisect reset; git stash clear; git checkout -qf main
git reset -q --hard && git clean -qfd
rm -rf .dispatch \"$HOME\"/.dispatch/worktrees/*/* \"$HOME\"/.dispatch/worktrees/*/.*.remov*
git for-each-ref --format='delete %(refname)' refs/heads refs/dispatch | grep -v /main$ |
git update-ref --stdin";
        self.sandbox.program("sh").args(&["-c", script]).run();
        assert_eq!(self.sandbox.git(&["branch", "--format=%(refname:short)"]), "main\n");
        (self.tasks, self.changes) = (Vec::new(), Vec::new());
        self.commits.clear();
    }
}

#[test]
fn no_history_loses_work() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let first = number("HISTORY_SEED").unwrap_or(now.as_nanos() as u64);
    println!("HISTORY_SEED={first}");
    let most = number("HISTORIES");
    let next = AtomicU64::new(0);
    let [lived, merged, removed] = [const { AtomicU64::new(0) }; 3];
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut world = World::new();
                for n in 1.. {
                    let history = next.fetch_add(1, Ordering::Relaxed);
                    // On a busy machine it takes longer until something was put to the test.
                    let begun = [&merged, &removed].map(|it| it.load(Ordering::Relaxed) > 0);
                    let enough = || begun == [true; 2] || begin.elapsed() > DEADLINE;
                    if most.map_or(begin.elapsed() > TIME && enough(), |most| history >= most) {
                        break;
                    }
                    world.history(first.wrapping_add(history));
                    lived.fetch_add(1, Ordering::Relaxed);
                    merged.fetch_add(std::mem::take(&mut world.merged), Ordering::Relaxed);
                    removed.fetch_add(std::mem::take(&mut world.removed), Ordering::Relaxed);
                    if n % REPOSITORY == 0 {
                        world = World::new();
                    }
                }
            });
        }
    });
    println!("{lived:?} histories, {merged:?} merges, {removed:?} removals");
    assert!(merged.into_inner() > 0 && removed.into_inner() > 0, "nothing was put to the test");
}
