//! Which process is meant, and whether it is alive.
//!
//! A busy machine reuses a pid within minutes, so an [`Identity`] also has the start time, and is
//! compared after the process is held (pidfd) where the system can hold one.

use std::fmt;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use nix::unistd::gethostname;
use serde::{Deserialize, Serialize};

use crate::ids::short_hash;
use crate::process::{Signal, os};

/// A process of one boot of one machine, as state files keep it.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Identity {
    /// The pid, as the namespace below counts.
    pub pid: u32,
    /// The start time in the system's unit (Linux: ticks since boot, macOS: microseconds).
    pub start: u64,
    /// The [`machine`] that it runs on.
    pub machine: String,
    /// The [`boot_id`] of that machine while it runs.
    pub boot: String,
    /// The pid namespace, where the system has namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The knowledge about the process of an [`Identity`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Life {
    /// The process is running.
    Alive,
    /// The process ended, or this machine restarted since. A zombie is dead.
    Dead,
    /// The process belongs to another machine or pid namespace, or is hidden from this user.
    Unknown,
}

impl Identity {
    /// The process that has this pid now; `None` if there is none, or only a zombie.
    pub fn of_pid(pid: u32) -> Result<Option<Self>> {
        Ok(os::start_of(pid)?.map(|start| Self::with_start(pid, start)))
    }

    /// A process of this machine and pid namespace.
    pub(super) fn with_start(pid: u32, start: u64) -> Self {
        Self {
            pid,
            start,
            machine: machine().into(),
            boot: boot_id().into(),
            namespace: os::namespace().map(str::to_owned),
        }
    }

    /// A name for files about the process, which no process of another boot or pid namespace has.
    pub fn name(&self) -> String {
        format!("{self}-{}", self.counter())
    }

    /// A hash of what the pid and the start time count in.
    fn counter(&self) -> String {
        let namespace = self.namespace.as_deref().unwrap_or_default();
        short_hash(format!("{}/{namespace}", self.boot).as_bytes())
    }

    /// The life of the process that has this [`Self::name`], as this process can tell; `None` for any
    /// other name.
    pub fn life_of(&self, name: &str) -> Option<Life> {
        let (process, counter) = name.split_once('-')?;
        let (pid, start) = process.split_once('@')?;
        let (pid, start) = (pid.parse().ok()?, start.parse().ok()?);
        match counter == self.counter() {
            true => Some(Self { pid, start, ..self.clone() }.life()),
            false => Some(Life::Unknown),
        }
    }

    /// This process.
    pub fn own() -> Result<Self> {
        let pid = std::process::id();
        Self::of_pid(pid)?.with_context(|| format!("process {pid} cannot see itself"))
    }

    /// Returns true if this process's pids count the same processes: boot and pid namespace are
    /// equal. Boot ids are random, so equal boots mean one machine, even if it was renamed
    /// meanwhile.
    pub(super) fn is_of_this_namespace(&self) -> bool {
        !self.boot.is_empty()
            && self.boot == boot_id()
            && self.namespace.as_deref() == os::namespace()
    }

    /// The life of the process, as far as this machine and pid namespace can tell.
    pub fn life(&self) -> Life {
        let restarted = ![&self.machine, &self.boot].into_iter().any(String::is_empty)
            && self.machine == machine()
            && !boot_id().is_empty()
            && self.boot != boot_id();
        if restarted {
            return Life::Dead;
        }
        if !self.is_of_this_namespace() {
            return Life::Unknown;
        }
        match os::start_of(self.pid) {
            Ok(Some(start)) if start == self.start => Life::Alive,
            Ok(_) => Life::Dead,
            Err(_) => Life::Unknown,
        }
    }

    /// Sends a signal to this process and to no other; `false` if the process is dead.
    ///
    /// # Errors
    /// Process 1, of which all others are: no worker or supervisor has this pid.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        anyhow::ensure!(self.pid > 1, "process {self} is the first of all and gets no {signal}");
        let sent = os::signal(self, signal);
        sent.with_context(|| format!("cannot send {signal} to process {self}"))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start)
    }
}

/// The id of the running boot; empty if the system does not tell.
pub fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(os::boot_id)
}

/// The name of this machine in identities: the host name, and a hash of the machine id where there
/// is one. Cloned images share a machine id, and two machines may share a host name.
pub fn machine() -> &'static str {
    static MACHINE: OnceLock<String> = OnceLock::new();
    MACHINE.get_or_init(|| {
        let host = gethostname().unwrap_or_default().to_string_lossy().into_owned();
        // The id itself is confidential (machine-id(5)).
        match os::machine_id() {
            Some(id) => format!("{host}-{}", short_hash(id.as_bytes())),
            None => host,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::sys::signal::kill;
    use nix::unistd::Pid;

    use super::*;
    use crate::process::test_support::{Running, assert_changed, assert_no_event};
    use crate::process::{Source, Watch};

    #[test]
    fn first_process_gets_no_signal() {
        let first = Identity { pid: 1, ..Identity::own().unwrap() };
        assert!(first.signal(Signal::SIGCONT).is_err());
    }

    #[test]
    fn zombie_is_dead() {
        let mut child = Running::new();
        let identity = child.identity();
        assert_eq!(identity.life(), Life::Alive);
        assert!(identity.signal(Signal::SIGKILL).unwrap());
        let mut watch = Watch::new(&[]).unwrap();
        assert!(watch.add_process(&identity));
        assert_changed(&mut watch, Source::Process(identity.clone()));
        // The zombie is still there, so its pid is.
        kill(Pid::from_raw(child.0.id() as i32), None).unwrap();
        assert_eq!(identity.life(), Life::Dead);
        assert_eq!(Identity::of_pid(child.0.id()).unwrap(), None);
        assert!(!identity.signal(Signal::SIGKILL).unwrap());
        child.end();
    }

    #[test]
    fn reused_pid_and_earlier_boot_are_dead_and_get_no_signal() {
        let own = Identity::own().unwrap();
        let reused = Identity { start: own.start - 1, ..own.clone() };
        let rebooted = Identity { boot: "another".to_owned(), ..own.clone() };
        for gone in [reused, rebooted] {
            assert_eq!(gone.life(), Life::Dead);
            assert!(!gone.signal(Signal::SIGKILL).unwrap());
        }
        assert_eq!(own.life(), Life::Alive);
    }

    #[test]
    fn process_of_another_namespace_or_machine_is_unknown_and_gets_no_signal() {
        let own = Identity::own().unwrap();
        let namespace = Some("pid:[1]".to_owned());
        let boot = "another".to_owned();
        let elsewhere = Identity { machine: "elsewhere".to_owned(), boot, ..own.clone() };
        let nameless = Identity { machine: String::new(), ..elsewhere.clone() };
        for other in [Identity { namespace, ..own }, elsewhere, nameless] {
            assert_eq!(other.life(), Life::Unknown, "{other:?}");
            assert!(other.signal(Signal::SIGKILL).is_err());
            let mut watch = Watch::new(&[]).unwrap();
            assert!(!watch.add_process(&other));
            assert_no_event(&mut watch);
        }
    }

    #[test]
    fn renamed_machine_still_sees_its_processes() {
        let own = Identity::own().unwrap();
        assert_eq!(Identity { machine: "old-name".to_owned(), ..own }.life(), Life::Alive);
    }

    #[test]
    fn identity_reads_back_from_its_file() {
        let own = Identity::own().unwrap();
        assert!(!own.machine.is_empty());
        let text = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), own);
        assert_eq!(own.to_string(), format!("{}@{}", std::process::id(), own.start));
        let without_namespace = r#"{"pid":1,"start":2,"machine":"m","boot":"b"}"#;
        let identity: Identity = serde_json::from_str(without_namespace).unwrap();
        assert_eq!(serde_json::to_string(&identity).unwrap(), without_namespace);
    }
}
