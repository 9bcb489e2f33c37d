//! The helpers of this build, for all tests.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use dispatch::HELPERS;

/// The program behind all helpers.
const PROGRAM: &str = env!("CARGO_BIN_EXE_dispatch");

/// The version that the launchers look for.
pub(crate) static VERSION: LazyLock<String> =
    LazyLock::new(|| version(include_str!("../../helpers/VERSION")));

/// The version that a launcher computes from a VERSION file: the version before the `-`, and the
/// XOR of all hashes.
pub(crate) fn version(text: &str) -> String {
    let version = text.lines().find_map(|line| line.strip_prefix("version="));
    let version = version.and_then(|line| line.strip_suffix("-$((0")).expect("a version");
    let hashes = text.lines().filter_map(|line| line.strip_prefix("^0x"));
    let hash = hashes.map(|hash| u64::from_str_radix(hash, 16).expect("a hash"));
    format!("{version}-{}", hash.fold(0, |all, hash| all ^ hash))
}

/// The path of a helper: its name beside the built program, because a helper looks for the others
/// there.
pub(crate) fn path(name: &str) -> &'static Path {
    static PATHS: LazyLock<[PathBuf; 5]> = LazyLock::new(|| HELPERS.map(linked));
    let path = PATHS.iter().find(|path| path.ends_with(name));
    path.unwrap_or_else(|| panic!("there is no helper {name}"))
}

/// Links the name to the program. Tests that run beside this one do the same, and an older build
/// may have left a program of that name.
fn linked(name: &str) -> PathBuf {
    let path = Path::new(PROGRAM).with_file_name(name);
    if fs::read_link(&path).ok().as_deref() != Some(Path::new("dispatch")) {
        let new = path.with_file_name(format!("{name}.{}", std::process::id()));
        symlink("dispatch", &new).expect("linked");
        fs::rename(new, &path).expect("in place");
    }
    path
}

/// Fills a directory with links to the programs of a `PATH`, without bubblewrap. A helper with this directory
/// as its `PATH` holds workers by Landlock.
#[allow(dead_code)]
pub(crate) fn link_all_but_bubblewrap(path: &OsStr, directory: &Path) {
    fs::create_dir_all(directory).expect("made");
    let programs = std::env::split_paths(path).filter_map(|it| fs::read_dir(it).ok());
    for program in programs.flatten().flatten().filter(|program| program.file_name() != "bwrap") {
        // The first program of a name counts.
        let _ = symlink(program.path(), directory.join(program.file_name()));
    }
}

/// Installs the helpers below `home` as install.sh does.
pub(crate) fn install(home: &Path) {
    let place = home.join(VERSION.as_str());
    fs::create_dir_all(&place).expect("made");
    let program = place.join("dispatch");
    if fs::hard_link(PROGRAM, &program).is_err() {
        // Another process writes the file: a fork of another test could hold our descriptor open
        // for writing, and the file could not be executed.
        let copied = Command::new("cp").arg(PROGRAM).arg(&program).status().expect("cp");
        assert!(copied.success(), "{}", program.display());
    }
    for name in HELPERS {
        symlink("dispatch", place.join(name)).expect("linked");
    }
}
