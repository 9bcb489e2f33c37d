//! Tasks whose files a test writes by itself, in whatever state it is about.

use std::fs;
use std::path::Path;

use dispatch::process::Identity;

use super::{PLAN, Sandbox};

/// The process that runs this test.
pub(crate) fn own() -> Identity {
    Identity::own().expect("it can see itself")
}

/// A process that has ended: its number is in use again, by this test.
pub(crate) fn dead() -> Identity {
    Identity { start: own().start - 1, ..own() }
}

fn yaml(identity: &Identity) -> String {
    serde_yaml::to_string(identity).expect("YAML")
}

pub(crate) fn an_hour_ago() -> String {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    humantime::format_rfc3339_seconds(time).to_string()
}

impl Sandbox {
    /// Writes a file of a task, and the directories above it.
    pub(crate) fn write(&self, id: &str, path: &str, text: impl AsRef<[u8]>) {
        let path = self.task(id, path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// Makes a task whose record was written by a test the user's own.
    pub(crate) fn claim(&self, id: &str) {
        let record: serde_json::Value =
            serde_yaml::from_str(&self.read(id, "task.yaml")).expect("a record");
        let mut claim = record.clone();
        claim["task"] =
            self.project().join(".dispatch/tasks").join(id).display().to_string().into();
        let path = self.home().join(".dispatch/claims");
        fs::create_dir_all(&path).expect("made");
        let nonce = record["nonce"].as_str().expect("a nonce");
        fs::write(path.join(nonce), claim.to_string()).expect("written");
    }

    /// The record of a task that was dispatched an hour ago, with further lines.
    pub(crate) fn record(&self, id: &str, backend: &str, further: &str) {
        let created = an_hour_ago();
        let project = self.project().display().to_string();
        let text = format!(
            "format: 1\nnonce: '{id}-nonce'\nname: {backend}\nbackend: {backend}\nroute: cli\naccess: write\ndirectory: {project}\ncreated: {created}\n{further}"
        );
        self.write(id, "task.yaml", text);
        self.claim(id);
        let hour = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let file = fs::File::options().write(true).open(self.task(id, "task.yaml"));
        file.expect("there").set_modified(hour).expect("dated");
    }

    /// A task that was dispatched and whose supervisor never came.
    pub(crate) fn queued(&self, id: &str, backend: &str) {
        self.write(id, "plan.md", PLAN);
        self.write(id, "prompt.md", PLAN);
        fs::create_dir_all(self.task(id, "ipc")).expect("made");
        self.record(id, backend, "");
    }

    /// A task whose first worker is that process; its supervisor is dead.
    pub(crate) fn worked_at(&self, id: &str, backend: &str, worker: &Identity) {
        self.queued(id, backend);
        self.write(id, "worker/1/plan.md", PLAN);
        self.write(id, "worker/1/stdin", PLAN);
        self.write(id, "worker/1/identity", yaml(worker));
        self.write(id, "worker/1/output.log", "At work.\n");
        let lock = serde_json::to_string(&dead()).expect("an identity");
        self.write(id, "run.lock", lock);
    }

    /// Ticks both items of the plan.
    pub(crate) fn tick_all(&self, id: &str) {
        self.write(id, "plan.md", PLAN.replace("[ ]", "[x]"));
    }
}

/// Makes a file as old as that.
pub(crate) fn age(path: &Path, seconds: u64) {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    let file = fs::File::open(path).expect("there");
    file.set_modified(time).expect("dated");
}
