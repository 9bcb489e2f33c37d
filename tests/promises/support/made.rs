//! Tasks in any state, with files written by the test.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dispatch::process::Identity;

use super::{PLAN, Sandbox};

/// The process that runs this test.
pub(crate) fn own() -> Identity {
    Identity::own().expect("it can see itself")
}

/// A dead process whose pid is in use again, by this test.
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
        match path.parent().is_some_and(|it| it.ends_with("ipc")) {
            true => self.write_apart(&path, text.as_ref()),
            false => fs::write(path, text).expect("written"),
        }
    }

    /// Writes a file by another program. A fork of another test could hold a descriptor of this process
    /// open for writing, and the file would be one that is being written.
    pub(crate) fn write_apart(&self, path: &Path, text: &[u8]) {
        self.program("sh").args(&["-c", "cat >\"$1\"", "sh"]).arg(path).input(text).run().ok();
    }

    /// Writes the record of a task that was dispatched an hour ago, with `further` lines.
    pub(crate) fn record(&self, id: &str, backend: &str, further: &str) {
        let created = an_hour_ago();
        let project = self.project().display().to_string();
        let directory = self.task(id, "").display().to_string();
        let text = format!(
            "format: 1\nnonce: '{id}-nonce'\nname: {backend}\nbackend: {backend}\nroute: cli\naccess: write\ndirectory: {project}\ntask_directory: {directory}\ncreated: {created}\n{further}"
        );
        self.write(id, "record.yaml", text);
        let hour = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        let file = fs::File::options().write(true).open(self.task(id, "record.yaml"));
        file.expect("there").set_modified(hour).expect("dated");
    }

    /// Registers the project's directory as the one of its tasks.
    pub(crate) fn claim_project(&self) {
        let (git, root) = (self.project().join(".git"), self.project());
        let path = if git.is_dir() { git } else { root };
        let meta = fs::metadata(&path).expect("there");
        let record = format!(
            "path: {}\nowner: {}\ndevice: {}\ninode: {}\ntoken: made\n",
            path.display(),
            meta.uid(),
            meta.dev(),
            meta.ino()
        );
        fs::create_dir_all(self.state_directory()).expect("made");
        fs::write(self.state_directory().join("project.yaml"), record).expect("written");
        fs::create_dir_all(self.project().join(".dispatch")).expect("made");
        fs::write(self.project().join(".dispatch/token"), "made\n").expect("written");
    }

    /// Writes a dispatched task whose supervisor never started.
    pub(crate) fn queued(&self, id: &str, backend: &str) {
        self.claim_project();
        self.write(id, "plan.md", PLAN);
        self.write(id, "prompt.md", PLAN);
        fs::create_dir_all(self.state_directory().join(id)).expect("made");
        fs::write(self.state_directory().join(id).join("plan.md"), PLAN).expect("written");
        fs::create_dir_all(self.task(id, "ipc")).expect("made");
        self.record(id, backend, "");
    }

    /// Writes a task whose first worker is `worker` and whose supervisor is dead.
    pub(crate) fn worked_at(&self, id: &str, backend: &str, worker: &Identity) {
        self.queued(id, backend);
        self.write(id, "attempts/1/plan.md", PLAN);
        self.write(id, "ipc/.plan", PLAN);
        self.write(id, "attempts/1/prompt.md", PLAN);
        self.write(id, "attempts/1/identity", yaml(worker));
        self.write(id, "attempts/1/log", "At work.\n");
        let lock = serde_json::to_string(&dead()).expect("an identity");
        self.write(id, "run.lock", lock);
    }

    /// Ticks both items of the plan.
    pub(crate) fn tick_all(&self, id: &str) {
        self.write(id, "plan.md", PLAN.replace("[ ]", "[x]"));
    }
}

/// Makes a file that many seconds old.
pub(crate) fn age(path: &Path, seconds: u64) {
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
    let file = fs::File::open(path).expect("there");
    file.set_modified(time).expect("dated");
}

/// Seeded choices: small and good enough (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    pub(crate) fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
