//! All processes of one attempt, and their end.
//!
//! A supervisor that called [`adopt_descendants`] finds every one of them: whoever loses its parent
//! becomes its child. Without a living one, and on macOS, where nobody adopts, they are found by
//! their group, by the mark in their environment and by descent from those that were found before.
//! What left its group, emptied its environment and lost its parents is then found by nobody.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::{Identity, Life, Signal, boot_id, os};

pub use os::{adopt_descendants, reap_adopted};

/// How long the end of what was killed is waited for; what the system itself holds may take longer.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A process as a list of all shows it.
pub(super) struct Process {
    pub(super) identity: Identity,
    pub(super) parent: u32,
    pub(super) group: u32,
}

/// The processes of one attempt.
pub struct Tree {
    supervisor: Option<Identity>,
    leader: Option<Identity>,
    mark: String,
    /// All that were ever found, since their descent may not show any more.
    known: HashSet<Identity>,
}

/// What the environment of a process says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    Ours,
    Another,
    Nothing,
    /// It is empty, as that of a process between two programs is for a moment.
    Empty,
}

impl Tree {
    /// The processes in the group that `leader` leads or led, and those that descend from
    /// `supervisor` or carry `mark`, a `NAME=value` of the environment. Of the latter, who has
    /// another value of that name is none of them, nor are its descendants.
    pub fn new(supervisor: Option<Identity>, leader: Option<Identity>, mark: String) -> Self {
        Self { supervisor, leader, mark, known: HashSet::new() }
    }

    /// Asks all of them to end, kills those that run after the grace, again and again until nothing
    /// is left, and calls `meanwhile` all the time. Returns what is left all the same.
    pub fn end(&mut self, grace: Duration, mut meanwhile: impl FnMut()) -> Result<Vec<Identity>> {
        let begin = Instant::now();
        let mut asked = HashSet::new();
        let mut seen_empty = false;
        loop {
            let left = self.look()?;
            let elapsed = begin.elapsed();
            // Who was born behind the back of one look is seen by the next.
            if (left.is_empty() && seen_empty) || elapsed > grace + KILL_LIMIT {
                return Ok(left);
            }
            seen_empty = left.is_empty();
            for process in &left {
                // One that may not be signalled, or not any more, is found again or is not.
                if elapsed >= grace {
                    let _ = process.signal(Signal::SIGKILL);
                } else if asked.insert(process.clone()) {
                    let _ = process.signal(Signal::SIGTERM);
                }
            }
            meanwhile();
            if !seen_empty {
                let pause = elapsed / 8;
                std::thread::sleep(
                    pause.clamp(Duration::from_millis(2), Duration::from_millis(100)),
                );
            }
        }
    }

    /// Those that run now.
    fn look(&mut self) -> Result<Vec<Identity>> {
        let all = os::processes()?;
        let own = std::process::id();
        let supervisor =
            self.supervisor.as_ref().filter(|it| it.life() == Life::Alive).map(|it| it.pid);
        let group = self.group(&all);
        let says: HashMap<u32, Says> =
            all.iter().map(|it| (it.identity.pid, self.says(it.identity.pid))).collect();
        let mut found = HashSet::new();
        loop {
            let before = found.len();
            for Process { identity, parent, group: its } in &all {
                let pid = identity.pid;
                if pid == own || Some(pid) == supervisor || found.contains(&pid) {
                    continue;
                }
                let related = says[&pid] == Says::Ours
                    || Some(*parent) == supervisor
                    || found.contains(parent)
                    || self.known.contains(identity);
                // Who starts another task leaves the group before it says so.
                if Some(*its) == group || (related && !self.is_another(pid, says[&pid])) {
                    found.insert(pid);
                }
            }
            if found.len() == before {
                break;
            }
        }
        let members = all.into_iter().map(|it| it.identity).filter(|it| found.contains(&it.pid));
        let members: Vec<Identity> = members.collect();
        self.known.extend(members.iter().cloned());
        Ok(members)
    }

    /// The group's number, while it means that group: a number is not used again before its group
    /// is empty, and whoever has it then leads a group of its own.
    fn group(&self, all: &[Process]) -> Option<u32> {
        let leader = self.leader.as_ref()?;
        let here = leader.boot == boot_id() && leader.namespace.as_deref() == os::namespace();
        let same = |it: &Process| it.identity.pid != leader.pid || it.identity == *leader;
        (here && all.iter().all(same)).then_some(leader.pid)
    }

    fn says(&self, pid: u32) -> Says {
        let environment = os::environment(pid);
        let name = self.mark.split_inclusive('=').next().unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        match variables.find(|it| it.starts_with(name.as_bytes())) {
            Some(mark) if mark == self.mark.as_bytes() => Says::Ours,
            Some(_) => Says::Another,
            None if environment.is_empty() => Says::Empty,
            None => Says::Nothing,
        }
    }

    fn is_another(&self, pid: u32, mut says: Says) -> bool {
        for _ in 0..3 {
            if says != Says::Empty {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            says = self.says(pid);
        }
        says == Says::Another
    }
}
