//! All processes of one attempt, and their end.
//!
//! A live supervisor called [`adopt_descendants`], so every process that loses its parent becomes
//! its child, and all are found by descent. Without a live supervisor, and on macOS, where nobody
//! adopts, they are found by their process group, by the mark in their environment, and by descent
//! from processes that were found before. A process that left its group, cleared its environment
//! and lost its parent is not found then.
//!
//! [`adopt_descendants`]: crate::process::adopt_descendants

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::process::{Identity, Life, Signal, os};

/// How long a killed process may take to end; the system itself may hold it up.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A process in the list of all processes.
pub(super) struct Process {
    pub(super) identity: Identity,
    pub(super) parent: u32,
    pub(super) group: u32,
}

/// The processes of one attempt.
pub struct ProcessTree {
    supervisor: Option<Identity>,
    leader: Option<Identity>,
    mark: String,
    /// All processes ever found: a later look may no longer show their descent.
    known: HashSet<Identity>,
}

/// The mark of an attempt in a process's environment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Own,
    Other,
    None,
    /// The environment is empty, as it is for a moment during exec.
    Empty,
}

/// The words of the command lines of this process's ancestors, the nearest first.
pub fn callers() -> Vec<Vec<String>> {
    let all = os::processes().unwrap_or_default();
    let own = std::process::id();
    let above = ancestors(&all).into_iter().filter(|pid| *pid != own && *pid > 1);
    above.map(os::command_line).collect()
}

/// This process and its ancestors, the nearest first.
fn ancestors(all: &[Process]) -> Vec<u32> {
    let parents: HashMap<u32, u32> = all.iter().map(|it| (it.identity.pid, it.parent)).collect();
    let mut found = Vec::new();
    let mut next = Some(std::process::id());
    while let Some(pid) = next.filter(|pid| !found.contains(pid)) {
        found.push(pid);
        next = parents.get(&pid).copied();
    }
    found
}

/// The processes that wait for a pid namespace to end and report how it did: asked to end, they would
/// leave what runs in it and report nothing.
fn sandboxes(all: &[Process]) -> HashSet<u32> {
    let leads = |it: &&Process| {
        let own = os::namespace_of(it.identity.pid);
        own.is_some() && os::namespace_of(it.parent).is_some_and(|above| Some(above) != own)
    };
    all.iter().filter(leads).map(|it| it.parent).collect()
}

impl ProcessTree {
    /// The processes of the group that `leader` leads or led, those that descend from `supervisor`,
    /// and those that carry `mark`, a `NAME=value` of the environment. A process with another value
    /// of that name starts the tree of another attempt.
    pub fn new(supervisor: Option<Identity>, leader: Option<Identity>, mark: String) -> Self {
        Self { supervisor, leader, mark, known: HashSet::new() }
    }

    /// Returns true if the leader runs and carries the mark, so that no record alone says what it is.
    pub fn has_own_leader(&self) -> bool {
        let leader = self.leader.as_ref().filter(|leader| leader.life() == Life::Alive);
        leader.is_some_and(|leader| self.mark_of(leader.pid) == Mark::Own)
    }

    /// Asks all processes to end and kills those that run after the grace, until two scans find
    /// none. Calls `meanwhile` after each scan. Returns the processes that did not end.
    pub fn terminate(
        &mut self,
        grace: Duration,
        mut meanwhile: impl FnMut(),
    ) -> Result<Vec<Identity>> {
        let begin = Instant::now();
        let mut asked = HashSet::new();
        let mut seen_empty = false;
        loop {
            let left = self.scan()?;
            let elapsed = begin.elapsed();
            // A process that was born during one scan is seen by the next.
            if (left.is_empty() && seen_empty) || elapsed > grace + KILL_LIMIT {
                return Ok(left.into_iter().map(|it| it.identity).collect());
            }
            seen_empty = left.is_empty();
            let sandboxes = sandboxes(&left);
            for Process { identity: process, .. } in &left {
                // Ignore signal errors; the next scan shows whether the process is gone.
                if elapsed >= grace {
                    let _ = process.signal(Signal::SIGKILL);
                } else if !sandboxes.contains(&process.pid) && asked.insert(process.clone()) {
                    let _ = process.signal(Signal::SIGTERM);
                }
            }
            meanwhile();
            if !seen_empty {
                let (shortest, longest) = (Duration::from_millis(2), Duration::from_millis(100));
                std::thread::sleep((elapsed / 8).clamp(shortest, longest));
            }
        }
    }

    /// The processes of the tree that run now, each with its command line.
    pub fn running(&mut self) -> Result<Vec<(Identity, String)>> {
        let found = self.scan()?.into_iter().map(|it| it.identity);
        Ok(found.map(|it| (it.clone(), os::command_line(it.pid).join(" "))).collect())
    }

    /// The processes of the tree that run now.
    fn scan(&mut self) -> Result<Vec<Process>> {
        let all = os::processes()?;
        // Whatever a record says, init, this process and its ancestors are in no tree.
        let spared: HashSet<u32> = ancestors(&all).into_iter().chain([1]).collect();
        let supervisor =
            self.supervisor.as_ref().filter(|it| it.life() == Life::Alive).map(|it| it.pid);
        let group = self.group(&all);
        let marks: HashMap<u32, Mark> =
            all.iter().map(|it| (it.identity.pid, self.mark_of(it.identity.pid))).collect();
        let mut found = HashSet::new();
        loop {
            let before = found.len();
            for process in &all {
                let pid = process.identity.pid;
                if spared.contains(&pid) || Some(pid) == supervisor || found.contains(&pid) {
                    continue;
                }
                let related = marks[&pid] == Mark::Own
                    || Some(process.parent) == supervisor
                    || found.contains(&process.parent)
                    || self.known.contains(&process.identity);
                // A nested supervisor calls setsid before its new mark is visible.
                let in_group = Some(process.group) == group;
                if in_group || (related && !self.is_of_another(pid, marks[&pid])) {
                    found.insert(pid);
                }
            }
            if found.len() == before {
                break;
            }
        }
        let members = all.into_iter().filter(|it| found.contains(&it.identity.pid));
        let members: Vec<Process> = members.collect();
        self.known.extend(members.iter().map(|it| it.identity.clone()));
        Ok(members)
    }

    /// The id of the leader's group, while it still means that group. The system does not reuse the
    /// id before the group is empty, and a process that reuses it leads a group of its own.
    fn group(&self, all: &[Process]) -> Option<u32> {
        let leader = self.leader.as_ref().filter(|leader| leader.is_of_this_namespace())?;
        let same = |it: &Process| it.identity.pid != leader.pid || it.identity == *leader;
        all.iter().all(same).then_some(leader.pid)
    }

    fn mark_of(&self, pid: u32) -> Mark {
        let environment = os::environment(pid);
        let name = self.mark.split_inclusive('=').next().unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        match variables.find(|it| it.starts_with(name.as_bytes())) {
            Some(mark) if mark == self.mark.as_bytes() => Mark::Own,
            Some(_) => Mark::Other,
            None if environment.is_empty() => Mark::Empty,
            None => Mark::None,
        }
    }

    fn is_of_another(&self, pid: u32, mut mark: Mark) -> bool {
        for _ in 0..3 {
            if mark != Mark::Empty {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            mark = self.mark_of(pid);
        }
        mark == Mark::Other
    }
}
