//! The sandbox around a worker's process and everything that it starts: bubblewrap on Linux, or Landlock
//! where that cannot start; Seatbelt (`sandbox-exec`) on macOS.
//!
//! A sandbox is a list of rules for real paths; the rule of the nearest path above a file counts.
//! Everything without a rule can be read and not written. A path with a rule cannot be moved away, nor
//! can a directory above it. The network stays, unless it is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::ops::Bound;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::process::{capture, find_program, os};
use crate::text::collect;

/// The access of a sandboxed process to a path and everything below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Nothing: a private empty directory, or an empty file, is in its place.
    Hidden,
    /// Read.
    ReadOnly,
    /// Read and write.
    Writable,
}

/// The means that hold a worker on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    /// Namespaces made by `bwrap`, in which a CLI can make namespaces of its own.
    Bubblewrap,
    /// Namespaces made by `bwrap`, in which no CLI starts a sandbox of its own.
    BubblewrapAlone,
    /// Landlock and seccomp, in which no other sandbox starts. A rule below a writable directory cannot
    /// be held, so a worker that writes needs a worktree.
    Landlock,
    /// macOS's `sandbox-exec`, in which no other one starts.
    Seatbelt,
}

impl Holder {
    /// Returns true if a CLI's own sandbox can start inside.
    pub fn nests(self) -> bool {
        self == Self::Bubblewrap
    }

    /// The acts outside that remain possible, as the rest of a line; empty if none do.
    pub fn leaves_open(self) -> &'static str {
        match self {
            Self::Landlock if os::scopes_signals() => {
                "; can see other processes, change modes of files, leave processes behind"
            }
            Self::Landlock => {
                "; can see and signal other processes, change modes of files, leave processes behind"
            }
            _ => "",
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bubblewrap | Self::BubblewrapAlone => "bubblewrap",
            Self::Landlock => "landlock",
            Self::Seatbelt => "sandbox-exec",
        })
    }
}

/// Namespaces of its own, no capabilities, no terminal, and everything read-only. There is no
/// `--die-with-parent`: a worker outlives its supervisor. The end of the first process inside ends
/// all others.
const BUBBLEWRAP: &str = "--unshare-user --unshare-pid --unshare-ipc --cap-drop ALL --new-session \
                          --ro-bind / / --dev /dev --proc /proc";

/// The devices that every program may use.
const DEVICES: &[&str] =
    &["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// How many paths are allowed one by one.
const MOST_ENTRIES: usize = 20_000;

/// Says `held` if the first file is seen and cannot be written, and nothing is seen in the second.
const PROOF: &str = r#"[ "$(cat "$1")" ] && ! (echo x >>"$1") 2>/dev/null && ! [ "$(cat "$2" 2>/dev/null)" ] && echo held"#;

/// The beginning of each profile on macOS: no access to programs that act for a process outside of its
/// sandbox.
const SEATBELT: &str = "(version 1)\n(allow default)\n(deny appleevent-send)\n(deny job-creation)\n\
    (deny signal)\n(allow signal (target same-sandbox))\n\
    (deny mach-lookup (global-name \"com.apple.coreservices.launchservicesd\")\n  \
    (global-name \"com.apple.lsd.open\") (global-name \"com.apple.pasteboard.1\"))\n\
    (deny network-outbound (remote unix-socket))\n\
    (allow network-outbound (literal \"/private/var/run/mDNSResponder\"))\n\
    (deny file-write*)\n(allow file-write* (subpath \"/dev\"))\n";

/// The rules of one sandbox.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    rules: BTreeMap<PathBuf, Rule>,
    /// True if only this machine itself, as the sandbox sees it, can be reached.
    pub closes_network: bool,
}

impl Sandbox {
    /// Sets the rule for the real path behind `path`, if there is one. A later rule for the same path
    /// replaces an earlier one.
    pub fn rule(&mut self, path: &Path, rule: Rule) {
        if let Ok(path) = path.canonicalize() {
            self.rules.insert(path, rule);
        }
    }

    /// Lets a path be read that lies below a hidden one.
    pub fn reveal(&mut self, path: &Path) {
        let Ok(path) = path.canonicalize() else { return };
        if self.rule_for(&path) == Rule::Hidden && !self.rules.contains_key(&path) {
            self.rules.insert(path, Rule::ReadOnly);
        }
    }

    /// The rule that counts for a real path.
    pub fn rule_for(&self, path: &Path) -> Rule {
        let mut rules = path.ancestors().filter_map(|path| self.rules.get(path));
        rules.next().copied().unwrap_or(Rule::ReadOnly)
    }

    /// Hides the sockets of this machine that stand outside of the writable directories: a socket on a
    /// read-only file system can be connected to. Those below `except` stay.
    pub fn hide_sockets(&mut self, except: &[&str]) {
        let paths = os::socket_paths().into_iter();
        for socket in paths.filter(|path| !except.iter().any(|except| path.starts_with(except))) {
            let is_socket = socket.metadata().is_ok_and(|it| it.file_type().is_socket());
            let real = socket.canonicalize().unwrap_or(socket);
            if is_socket && self.rule_for(&real) == Rule::ReadOnly {
                self.rules.insert(real, Rule::Hidden);
            }
        }
    }

    /// The command that runs `argv` in this sandbox and in `directory`.
    ///
    /// # Errors
    /// The program that makes the sandbox is not installed, or Landlock cannot hold the rules.
    pub fn command(&self, holder: Holder, directory: &Path, argv: &[OsString]) -> Result<Command> {
        let words = self.words(holder, directory, argv)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(directory);
        match holder {
            Holder::Landlock => os::restrict(&mut command, &self.grants()?, self.closes_network)?,
            _ => os::deny_abstract_sockets(&mut command),
        }
        Ok(command)
    }

    /// The command line of the command.
    fn words(&self, holder: Holder, directory: &Path, argv: &[OsString]) -> Result<Vec<OsString>> {
        let name = match holder {
            Holder::Landlock => return Ok(argv.to_vec()),
            Holder::Bubblewrap | Holder::BubblewrapAlone => "bwrap",
            Holder::Seatbelt => "sandbox-exec",
        };
        let program = find_program(OsStr::new(name));
        let program = program.with_context(|| format!("{name} is not installed any more"))?;
        let mut command = vec![program.into_os_string()];
        if holder == Holder::Seatbelt {
            command.extend(["-p".into(), self.profile().into()]);
        } else {
            command.extend(self.mounts());
            command.extend(["--chdir".into(), directory.into(), "--".into()]);
        }
        command.extend_from_slice(argv);
        Ok(command)
    }

    /// The paths that Landlock has to allow, which can only allow everything below a path. A directory
    /// with a hidden path below it is not allowed; what else it contains now is.
    fn grants(&self) -> Result<Vec<(PathBuf, Rule)>> {
        let mut rules = self.rules.clone();
        rules.entry("/".into()).or_insert(Rule::ReadOnly);
        // Without mounts, these are the system's own: devices, terminals, memory that processes share.
        rules.insert("/dev".into(), Rule::Hidden);
        rules.extend(DEVICES.iter().map(|path| (path.into(), Rule::Writable)));
        let mut grants = Vec::new();
        let mut open: Vec<_> = rules.clone().into_iter().collect();
        while let Some((path, rule)) = open.pop() {
            if rule == Rule::Writable
                && below(&rules, &path).any(|(_, rule)| *rule != Rule::Writable)
            {
                bail!("landlock cannot protect what lies below {}", path.display());
            }
            if rule != Rule::ReadOnly || below(&rules, &path).all(|(_, rule)| *rule != Rule::Hidden)
            {
                grants.push((path, rule));
                continue;
            }
            // A directory that cannot be listed leads to the rules below it all the same.
            let names = below(&rules, &path)
                .filter_map(|(it, _)| it.strip_prefix(&path).ok()?.iter().next());
            let mut entries: BTreeSet<_> = collect(names.map(|name| path.join(name)));
            let listed = path.read_dir().into_iter().flatten().flatten();
            let listed = listed.filter(|it| it.file_type().is_ok_and(|kind| !kind.is_symlink()));
            entries.extend(listed.map(|it| it.path()));
            let entries = entries.into_iter().filter(|it| !rules.contains_key(it));
            open.extend(entries.map(|path| (path, Rule::ReadOnly)));
            if open.len() > MOST_ENTRIES {
                bail!("{} has too many entries for landlock", path.display());
            }
        }
        Ok(grants)
    }

    /// The writable directories above a path that is not, below the top of what is writable: moved away,
    /// they would take with them what covers the path.
    fn pinned(&self) -> BTreeSet<&Path> {
        let is_writable = |path: &Path| self.rule_for(path) == Rule::Writable;
        let below_the_top =
            |path: &&Path| is_writable(path) && path.parent().is_some_and(is_writable);
        let covered = self.rules.iter().filter(|(_, rule)| **rule != Rule::Writable);
        collect(covered.flat_map(|(path, _)| path.ancestors().skip(1).take_while(below_the_top)))
    }

    /// The arguments of `bwrap`. A directory comes before what it contains.
    fn mounts(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = BUBBLEWRAP.split(' ').map(OsString::from).collect();
        if self.closes_network {
            args.push("--unshare-net".into());
        }
        if geteuid().is_root() {
            // Programs that believe to be root want to change owners, and fail.
            args.extend(["--uid", "1000", "--gid", "1000"].map(OsString::from));
        }
        // A directory that something is mounted on cannot be moved.
        let pinned = self.pinned();
        let mut all: BTreeMap<&Path, Rule> =
            collect(pinned.iter().map(|path| (*path, Rule::Writable)));
        all.extend(self.rules.iter().map(|(path, rule)| (path.as_path(), *rule)));
        for (path, rule) in all {
            let above = path.parent().map_or(Rule::ReadOnly, |above| self.rule_for(above));
            let mount = match rule {
                rule if rule == above && !pinned.contains(path) => continue,
                Rule::Hidden if path.is_dir() => &["--tmpfs"][..],
                Rule::Hidden => &["--ro-bind", "/dev/null"],
                Rule::ReadOnly => &["--ro-bind"],
                Rule::Writable => &["--bind"],
            };
            args.extend(mount.iter().map(OsString::from));
            if rule != Rule::Hidden {
                args.push(path.into());
            }
            args.push(path.into());
        }
        args
    }

    /// The profile of `sandbox-exec`, in which the last rule that matches counts.
    fn profile(&self) -> String {
        let mut profile = SEATBELT.to_owned();
        profile.push_str(if self.closes_network { "(deny network*)\n" } else { "" });
        let quoted =
            |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
        for (path, rule) in &self.rules {
            let path = quoted(path);
            let (read, write) = match rule {
                Rule::Hidden => ("deny", "deny"),
                Rule::ReadOnly => ("allow", "deny"),
                Rule::Writable => ("allow", "allow"),
            };
            let _ = writeln!(profile, "({read} file-read* (subpath \"{path}\"))");
            let _ = writeln!(profile, "({write} file-write* (subpath \"{path}\"))");
        }
        for path in self.pinned() {
            let _ = writeln!(profile, "(deny file-write-unlink (literal \"{}\"))", quoted(path));
        }
        profile
    }
}

/// The rules below a path.
fn below<'a>(
    rules: &'a BTreeMap<PathBuf, Rule>,
    path: &'a Path,
) -> impl Iterator<Item = (&'a PathBuf, &'a Rule)> {
    let after = (Bound::Excluded(path), Bound::Unbounded);
    rules.range::<Path, _>(after).take_while(move |(other, _)| other.starts_with(path))
}

/// The means that really hold a process here: a process in them could not write to a file that this one
/// has made in the first of `directories` that it can write in. With `nested`, a sandbox inside another
/// one is tried too.
///
/// # Errors
/// Why there is none, as the end of a sentence.
pub fn probe(directories: &[PathBuf], nested: bool) -> Result<Holder, String> {
    let name = format!(".dispatch-probe-{}", std::process::id());
    let paths = directories.iter().filter_map(|directory| directory.canonicalize().ok());
    let made = |path: &PathBuf| std::fs::write(path, "seen").is_ok();
    let Some(path) = paths.map(|directory| directory.join(&name)).find(made) else {
        return Err("there is no writable directory to try a sandbox in".into());
    };
    let hidden = path.with_extension("hidden");
    let holder = match std::fs::write(&hidden, "secret") {
        Ok(()) => holder_that_protects(&path, &hidden, nested),
        Err(error) => Err(format!("cannot write {}: {error}", hidden.display())),
    };
    let _ = (std::fs::remove_file(&path), std::fs::remove_file(&hidden));
    holder
}

/// The means in which a process cannot write to the first file, and see what is in the second.
fn holder_that_protects(path: &Path, hidden: &Path, nested: bool) -> Result<Holder, String> {
    let proof = ["sh", "-c", PROOF, "sh"].map(OsString::from);
    let proof: Vec<_> = proof.into_iter().chain([path.into(), hidden.into()]).collect();
    let mut plain = Sandbox::default();
    plain.rule(hidden, Rule::Hidden);
    let holds = |holder, argv: &[OsString]| -> Result<Holder, String> {
        let command = plain.command(holder, Path::new("/"), argv);
        let mut command = command.map_err(|error| error.to_string())?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let output = capture(&mut command, Stdio::null(), deadline, 64 << 10);
        let output = output.map_err(|error| format!("{holder} failed: {error}"))?;
        if std::fs::read(path).is_ok_and(|text| text != b"seen") {
            return Err(format!("{holder} does not keep a process from writing"));
        }
        if output.stdout == b"held\n" {
            return Ok(holder);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("no error");
        Err(format!("{holder} cannot start: {said}"))
    };
    if cfg!(target_os = "macos") {
        return holds(Holder::Seatbelt, &proof);
    }
    let bubblewrap = match plain.words(Holder::Bubblewrap, Path::new("/"), &proof) {
        Ok(within) if nested && holds(Holder::Bubblewrap, &within).is_ok() => {
            return Ok(Holder::Bubblewrap);
        }
        Ok(_) => holds(Holder::BubblewrapAlone, &proof),
        Err(_) => Err("bubblewrap (bwrap) is not installed".into()),
    };
    bubblewrap.or_else(|why| {
        holds(Holder::Landlock, &proof).map_err(|landlock| format!("{landlock}; {why}"))
    })
}

/// The exit code, or the signal, of a program that was held. `bwrap` reports a signal as a shell does.
pub fn code_or_signal(holder: Option<Holder>, status: ExitStatus) -> (Option<i32>, Option<i32>) {
    let is_bubblewrap = matches!(holder, Some(Holder::Bubblewrap | Holder::BubblewrapAlone));
    match status.code() {
        Some(code @ 129..=192) if is_bubblewrap => (None, Some(code - 128)),
        code => (code, std::os::unix::process::ExitStatusExt::signal(&status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_proves_nothing_without_a_writable_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let said = probe(&[missing], false).expect_err("no proof");
        assert_eq!(said, "there is no writable directory to try a sandbox in");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn closed_network_is_another_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let Ok(holder) = probe(&[directory.path().into()], false) else { return };
        let sandbox = Sandbox { closes_network: true, ..Sandbox::default() };
        let argv = ["readlink", "/proc/self/ns/net"].map(OsString::from);
        let command = sandbox.command(holder, Path::new("/"), &argv);
        let output = command.expect("a command").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let own = std::fs::read_link("/proc/self/ns/net").expect("there");
        assert!(said.starts_with("net:["), "{}", String::from_utf8_lossy(&output.stderr));
        assert_ne!(said.trim(), own.to_string_lossy());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn landlock_closes_the_network_by_denying_sockets() {
        let script = "socket(S, PF_INET, SOCK_STREAM, 0) or exit 1";
        let argv = ["perl", "-MSocket", "-e", script].map(OsString::from);
        for closes_network in [false, true] {
            let sandbox = Sandbox { closes_network, ..Sandbox::default() };
            let command = sandbox.command(Holder::Landlock, Path::new("/"), &argv);
            // An older kernel has no Landlock.
            let Ok(mut command) = command else { return };
            assert_eq!(command.status().expect("it runs").success(), !closes_network);
        }
    }

    #[test]
    fn directories_above_a_covered_path_are_pinned() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = directory.path().canonicalize().expect("a path");
        for path in ["a/b/covered", "a/b/c", "d/e", "covered"] {
            std::fs::create_dir_all(top.join(path)).expect("made");
        }
        let mut sandbox = Sandbox::default();
        for (path, rule) in [
            ("", Rule::Writable),
            ("a/b/c", Rule::Writable),
            ("covered", Rule::ReadOnly),
            ("a/b/covered", Rule::ReadOnly),
        ] {
            sandbox.rule(&top.join(path), rule);
        }
        let pinned: Vec<_> = sandbox.pinned().into_iter().map(Path::to_path_buf).collect();
        assert_eq!(pinned, [top.join("a"), top.join("a/b")]);
    }

    #[test]
    fn landlock_allows_the_neighbours_of_hidden_paths_and_not_their_parents() {
        let directory = tempfile::tempdir().expect("a directory");
        let top = directory.path().canonicalize().expect("a path");
        for path in ["a/hidden/seen", "a/hidden/other", "a/b/c", "d/own", "e"] {
            std::fs::create_dir_all(top.join(path)).expect("made");
        }
        std::os::unix::fs::symlink("/", top.join("link")).expect("linked");
        let mut sandbox = Sandbox::default();
        for (path, rule) in [
            ("", Rule::ReadOnly),
            ("a/hidden", Rule::Hidden),
            ("a/hidden/seen", Rule::ReadOnly),
            ("d/own", Rule::Writable),
        ] {
            sandbox.rule(&top.join(path), rule);
        }
        let mut grants = sandbox.grants().expect("rules that it can hold");
        grants.retain(|(path, rule)| path.starts_with(&top) && *rule != Rule::Hidden);
        grants.sort_by(|(one, _), (other, _)| one.cmp(other));
        let expected = [
            ("a/b", Rule::ReadOnly),
            ("a/hidden/seen", Rule::ReadOnly),
            ("d", Rule::ReadOnly),
            ("d/own", Rule::Writable),
            ("e", Rule::ReadOnly),
        ];
        assert_eq!(grants, expected.map(|(path, rule)| (top.join(path), rule)));
        sandbox.rule(&top.join("d"), Rule::Writable);
        sandbox.rule(&top.join("d/own"), Rule::ReadOnly);
        let error = sandbox.grants().expect_err("part of a writable directory");
        assert!(error.to_string().starts_with("landlock cannot protect what lies below "));
    }
}
