//! The sandbox around a worker's process and everything that it starts: bubblewrap on Linux, Seatbelt
//! (`sandbox-exec`) on macOS.
//!
//! A sandbox is a list of rules for real paths; the rule of the nearest path above a file counts.
//! Everything without a rule can be read and not written. A path with a rule cannot be moved away, nor
//! can a directory above it. The network stays, unless it is closed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::process::{capture, find_program, os};

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
    /// macOS's `sandbox-exec`, in which no other one starts.
    Seatbelt,
}

impl Holder {
    /// Returns true if a CLI's own sandbox can start inside.
    pub fn nests(self) -> bool {
        self == Self::Bubblewrap
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bubblewrap | Self::BubblewrapAlone => "bubblewrap",
            Self::Seatbelt => "sandbox-exec",
        })
    }
}

/// Namespaces of its own, no capabilities, no terminal, and everything read-only. There is no
/// `--die-with-parent`: a worker outlives its supervisor. The end of the first process inside ends
/// all others.
const BUBBLEWRAP: &str = "--unshare-user --unshare-pid --unshare-ipc --cap-drop ALL --new-session \
                          --ro-bind / / --dev /dev --proc /proc";

/// Says `held` if the file is seen and cannot be written.
const PROOF: &str = r#"[ -f "$1" ] && ! (echo x >>"$1") 2>/dev/null && echo held"#;

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

    /// The command line that runs `argv` in this sandbox and in `directory`.
    ///
    /// # Errors
    /// The program that makes the sandbox is not installed.
    pub fn command(
        &self,
        holder: Holder,
        directory: &Path,
        argv: &[OsString],
    ) -> Result<Vec<OsString>> {
        let name = if holder == Holder::Seatbelt { "sandbox-exec" } else { "bwrap" };
        let program = find_program(OsStr::new(name));
        let program = program.with_context(|| format!("{name} is not installed any more"))?;
        let mut command = vec![program.into_os_string()];
        match holder {
            Holder::Seatbelt => command.extend(["-p".into(), self.profile().into()]),
            Holder::Bubblewrap | Holder::BubblewrapAlone => {
                command.extend(self.mounts());
                command.extend(["--chdir".into(), directory.into(), "--".into()]);
            }
        }
        command.extend_from_slice(argv);
        Ok(command)
    }

    /// The writable directories above a path that is not, below the top of what is writable: moved away,
    /// they would take with them what covers the path.
    fn pinned(&self) -> BTreeSet<&Path> {
        let is_writable = |path: &Path| self.rule_for(path) == Rule::Writable;
        let below_the_top =
            |path: &&Path| is_writable(path) && path.parent().is_some_and(is_writable);
        let covered = self.rules.iter().filter(|(_, rule)| **rule != Rule::Writable);
        covered.flat_map(|(path, _)| path.ancestors().skip(1).take_while(below_the_top)).collect()
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
            pinned.iter().map(|path| (*path, Rule::Writable)).collect();
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

/// The means that really hold a process here: a process in them could not write to a file that this one
/// has made in the first of `directories` that it can write in. With `nested`, a sandbox inside another
/// one is tried too.
///
/// # Errors
/// Why there is none, as the end of a sentence.
pub fn probe(directories: &[PathBuf], nested: bool) -> Result<Holder, String> {
    let name = format!(".dispatch-probe-{}", std::process::id());
    let paths = directories.iter().filter_map(|directory| directory.canonicalize().ok());
    let made = |path: &PathBuf| std::fs::write(path, "").is_ok();
    let Some(path) = paths.map(|directory| directory.join(&name)).find(made) else {
        return Err("there is no writable directory to try a sandbox in".into());
    };
    let holder = holder_that_protects(&path, nested);
    let _ = std::fs::remove_file(&path);
    holder
}

/// The means in which a process cannot write to this file.
fn holder_that_protects(path: &Path, nested: bool) -> Result<Holder, String> {
    let proof = ["sh", "-c", PROOF, "sh"].map(OsString::from);
    let proof: Vec<_> = proof.into_iter().chain([path.into()]).collect();
    let plain = Sandbox::default();
    let holds = |holder, argv: &[OsString]| -> Result<(), String> {
        let words = plain.command(holder, Path::new("/"), argv).map_err(|it| it.to_string())?;
        let mut command = Command::new(&words[0]);
        // As for a worker: where the program would lose its privileges, it must work without them.
        os::deny_abstract_sockets(command.args(&words[1..]));
        let deadline = Instant::now() + Duration::from_secs(5);
        let output = capture(&mut command, deadline, 64 << 10);
        let output = output.map_err(|error| format!("{holder} does not work: {error:?}"))?;
        if path.metadata().is_ok_and(|meta| meta.len() > 0) {
            return Err(format!("{holder} does not keep a process from writing"));
        }
        if output.stdout == b"held\n" {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().next().unwrap_or("no error");
        Err(format!("{holder} cannot start: {said}"))
    };
    if cfg!(target_os = "macos") {
        return holds(Holder::Seatbelt, &proof).map(|()| Holder::Seatbelt);
    }
    if find_program(OsStr::new("bwrap")).is_none() {
        return Err("bubblewrap (bwrap) is not installed".into());
    }
    let within = plain.command(Holder::Bubblewrap, Path::new("/"), &proof);
    if nested && within.is_ok_and(|within| holds(Holder::Bubblewrap, &within).is_ok()) {
        return Ok(Holder::Bubblewrap);
    }
    holds(Holder::BubblewrapAlone, &proof).map(|()| Holder::BubblewrapAlone)
}

/// The exit code, or the signal, of a program that a sandbox ran. `bwrap` reports a signal as a shell
/// does.
pub fn code_or_signal(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    match status.code() {
        Some(code @ 129..=192) => (None, Some(code - 128)),
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
        let words = sandbox.command(holder, Path::new("/"), &argv).expect("a command");
        let output = Command::new(&words[0]).args(&words[1..]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let own = std::fs::read_link("/proc/self/ns/net").expect("there");
        assert!(said.starts_with("net:["), "{}", String::from_utf8_lossy(&output.stderr));
        assert_ne!(said.trim(), own.to_string_lossy());
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
}
