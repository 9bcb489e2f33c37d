//! Comparison of outputs and files with snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

/// The paths that differ from run to run, and their placeholders.
#[derive(Clone, Debug)]
pub(crate) struct Redactions(Vec<(String, &'static str)>);

impl Redactions {
    pub(crate) fn new(paths: &[(PathBuf, &'static str)]) -> Self {
        Self(paths.iter().map(|(path, name)| (path.display().to_string(), *name)).collect())
    }

    /// Replaces paths, ids of news, times and pids in a text.
    pub(crate) fn apply(&self, text: &str) -> String {
        static OTHERS: LazyLock<[(Regex, &str); 9]> = LazyLock::new(|| {
            [
                (r"#[0-9a-f]{8}(?-u:\b)", "#ID"),
                (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
                (r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", "TIME"),
                (r"(?-u:\b)pid [0-9]+@[0-9]+", "pid PID"),
                (r"(?-u:\b)[0-9]+s(?-u:\b)", "AGE"),
                (r"(worktrees/[A-Za-z0-9._-]+-)[0-9a-f]{8}(?-u:\b)", "${1}HASH"),
                (r"(?-u:\b)[0-9a-f]{40}(?-u:\b)", "COMMIT"),
                (r"(?-u:\b)[0-9a-f]{10}(?-u:\b)", "COMMIT"),
                // A caret stands as far to the right as the path before the line above is long.
                (r" {9,}\^", "        ^"),
            ]
            .map(|(text, name)| (Regex::new(text).expect("a regex"), name))
        });
        let start = text.to_string();
        let text = self.0.iter().fold(start, |text, (path, name)| text.replace(path, name));
        OTHERS.iter().fold(text, |text, (regex, name)| regex.replace_all(&text, *name).into_owned())
    }
}

/// Compares a text with a snapshot byte for byte.
#[track_caller]
pub(crate) fn same(actual: &str, expected: impl snapbox::IntoData) {
    snapbox::Assert::new()
        .action_env(snapbox::assert::DEFAULT_ACTION_ENV)
        .eq(snapbox::Data::text(actual).raw(), expected.into_data().raw());
}

/// The content of a tree of directories.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Everything below some directories: a path, its mode, and its content. The text of a lock names
/// its last holder and may change at any time.
pub(crate) fn tree(tops: &[PathBuf]) -> Tree {
    tree_but(tops, |_| false)
}

/// Everything below some directories, without those that may change meanwhile.
pub(crate) fn tree_but(tops: &[PathBuf], is_left_out: impl Fn(&Path) -> bool) -> Tree {
    let walk = |top| walkdir::WalkDir::new(top).into_iter();
    let kept = |entry: &walkdir::DirEntry| !is_left_out(entry.path());
    let entries = tops.iter().flat_map(|top| walk(top).filter_entry(&kept));
    let found = |entry: walkdir::DirEntry| {
        let path = entry.path();
        let mode = fs::symlink_metadata(path).expect("there").permissions().mode();
        let content = if entry.path_is_symlink() {
            fs::read_link(path).expect("a link").into_os_string().into_encoded_bytes()
        } else if entry.file_type().is_file() && !is_lock(path) {
            fs::read(path).expect("readable")
        } else {
            Vec::new()
        };
        (path.to_path_buf(), (mode, content))
    };
    entries.map(|entry| found(entry.expect("readable"))).collect()
}

fn is_lock(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "lock") || path.ends_with("lock")
}

/// The paths below a directory with their modes, one a line, as `drwx path`.
pub(crate) fn listing(top: &Path) -> String {
    let mut lines = String::new();
    for entry in walkdir::WalkDir::new(top).min_depth(1).sort_by_file_name() {
        let entry = entry.expect("readable");
        let mode = entry.metadata().expect("there").permissions().mode() & 0o777;
        let path = entry.path().strip_prefix(top).expect("below").display().to_string();
        let slash = if entry.file_type().is_dir() { "/" } else { "" };
        lines.push_str(&format!("{mode:o} {path}{slash}\n"));
    }
    lines
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("readable").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
