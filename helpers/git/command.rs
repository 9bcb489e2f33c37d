//! Running git without prompts, reading its output, and the settings that a worktree takes over.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::dirs;
use crate::domain::Worktree;
use crate::error::{Exit, Refusal};
use crate::files;
use crate::process::{capture, find_program};
use crate::text::{collect, shell_word};

/// The first version with `rev-parse --path-format` and the `worktree` commands used here.
const OLDEST_GIT: (u32, u32) = (2, 31);

/// How long a call is repeated while another program holds one of git's locks.
const GIT_LOCK_LIMIT: Duration = Duration::from_secs(30);

/// How long a git command may take, its hooks included.
const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// How many bytes a git command may print.
const OUTPUT_LIMIT: usize = 1 << 30;

/// The variables that tie a git process to another repository than that of its directory: those
/// that `git rev-parse --local-env-vars` lists, without the person's own configuration.
const REPOSITORY_VARIABLES: &str = "
GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_ATTR_SOURCE GIT_COMMON_DIR GIT_DIR GIT_GRAFT_FILE
GIT_IMPLICIT_WORK_TREE GIT_INDEX_FILE GIT_INTERNAL_SUPER_PREFIX GIT_NAMESPACE
GIT_NO_REPLACE_OBJECTS GIT_OBJECT_DIRECTORY GIT_PREFIX GIT_QUARANTINE_PATH GIT_REPLACE_REF_BASE
GIT_SHALLOW_FILE GIT_WORK_TREE
";

/// Returns true if a variable chooses git's repository, index, author or configuration. A session
/// that was started from a git hook has them, and its workers must not: they are of another call.
pub(crate) fn selects_for_git(name: &str) -> bool {
    let starts = ["GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_"];
    ["GIT_CONFIG", "GIT_CONFIG_COUNT", "GIT_CONFIG_PARAMETERS"].contains(&name)
        || starts.iter().any(|start| name.starts_with(start))
        || REPOSITORY_VARIABLES.split_whitespace().any(|it| it == name)
}

/// The refusal of a git that does not know [`OLDEST_GIT`]'s options.
pub(super) fn too_old() -> Result<Refusal> {
    let said = Git::new().words("version").text("git does not work")?;
    let number = said.trim_start_matches("git version ");
    Ok(no_git("git is too old for worktrees", &format!("it is git {number}")))
}

fn no_git(what: &str, place: &str) -> Refusal {
    let (major, minor) = OLDEST_GIT;
    Refusal::new(Exit::Unavailable, what)
        .place(place)
        .next(format!("install git {major}.{minor} or newer, or dispatch without --worktree"))
}

/// A git command. It runs without prompts.
pub(super) struct Git(Command);

/// A git command in a directory. `words` are arguments, separated by spaces.
pub(super) fn git(directory: &Path, words: &str) -> Git {
    Git::new().arg("-C").arg(directory).words(words)
}

/// A git command on a repository, which needs no checkout.
pub(super) fn git_on(repository: &Path, words: &str) -> Git {
    git(repository, "--git-dir").arg(repository).words(words)
}

impl Git {
    fn new() -> Self {
        let mut command = Command::new("git");
        for name in REPOSITORY_VARIABLES.split_whitespace() {
            command.env_remove(name);
        }
        Self(command)
    }

    pub(super) fn words(self, words: &str) -> Self {
        self.args(words.split_whitespace())
    }

    pub(super) fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    pub(super) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    /// Runs the command, also repeatedly. A process that a hook leaves behind is not waited for.
    pub(super) fn run(&mut self) -> Result<Output> {
        self.run_with(Stdio::null())
    }

    /// Runs the command with a short text as its input.
    pub(super) fn run_on(&mut self, text: &str) -> Result<Output> {
        let (reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
        writer.write_all(text.as_bytes()).context("cannot write to git")?;
        drop(writer);
        self.run_with(reader.into())
    }

    fn run_with(&mut self, input: Stdio) -> Result<Output> {
        // Some messages are parsed here, so they must be in English.
        self.0.env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
        // A replaced object is not the one whose id was compared.
        self.0.env("GIT_NO_REPLACE_OBJECTS", "1");
        match capture(&mut self.0, input, Instant::now() + TIME_LIMIT, OUTPUT_LIMIT) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(no_git("git is not installed", "'git' is not in PATH").into())
            }
            captured => captured.context("git failed"),
        }
    }

    /// Sets a variable of the command.
    pub(super) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Returns true if the command succeeds.
    pub(super) fn ok(mut self) -> Result<bool> {
        Ok(self.run()?.status.success())
    }

    /// The output of the command, also if it fails, without the last line end.
    pub(super) fn said(mut self) -> Result<String> {
        Ok(trim(&self.run()?.stdout))
    }

    /// The output of a command that must succeed; `what` is the error's first line.
    pub(super) fn bytes(mut self, what: &str) -> Result<Vec<u8>> {
        succeeded(self.run()?, what)
    }

    /// The output of a command that must succeed, as text without the last line end.
    pub(super) fn text(self, what: &str) -> Result<String> {
        self.bytes(what).map(|output| trim(&output))
    }

    /// The paths, or lines with one, that a command with `-z` prints.
    pub(super) fn records(self, what: &str) -> Result<Vec<String>> {
        self.bytes(what).map(|output| records(&output).collect())
    }
}

/// The standard output of a git command that ended, if it succeeded.
pub(super) fn succeeded(output: Output, what: &str) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let refusal = Refusal::new(Exit::CannotCreate, what).place(error_line(&output));
    Err(match remedy(&output) {
        Some(command) => refusal.next(command).into(),
        None => refusal.into(),
    })
}

/// The command that git names as the remedy for its error.
pub(super) fn remedy(output: &Output) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().map(str::trim).find(|line| line.starts_with("git config ")).map(str::to_owned)
}

/// The first line that git marks as an error, else the last line of its standard error. Where a
/// program that git called has failed, its own line is the cause, or the one that names it.
pub(super) fn error_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_error = |line: &&str| line.starts_with("fatal: ") || line.starts_with("error: ");
    let has_lost_a_program =
        |line: &str| line.contains("the remote end hung up") || line.contains("packet write");
    let line = match lines.iter().position(is_error) {
        Some(0) if has_lost_a_program(lines[0]) => {
            lines.iter().find(|line| line.contains("for subprocess")).or(lines.first())
        }
        Some(at) if has_lost_a_program(lines[at]) => lines.get(at - 1),
        Some(at) => lines.get(at),
        None => lines.last(),
    };
    line.map_or_else(|| output.status.to_string(), |line| (*line).to_owned())
}

/// Returns true if git failed because another program holds one of its locks.
fn is_lock_conflict(output: &Output) -> bool {
    let said = String::from_utf8_lossy(&output.stderr);
    // A branch that exists, or whose name blocks another one, gives the same message.
    let is_taken = || said.contains("cannot create") || said.contains("reference already exists");
    said.contains("cannot lock ref") && !is_taken()
        || said.contains(".lock': File exists")
        || said.contains("could not lock config file")
        // All that a true merge says of a locked index.
        || said.contains("Unable to write index.")
}

/// The parts of an output that end in NUL.
pub(super) fn records(output: &[u8]) -> impl Iterator<Item = String> {
    let records = output.split(|&byte| byte == 0).filter(|record| !record.is_empty());
    records.map(|record| String::from_utf8_lossy(record).into_owned())
}

/// A path that git printed as a line.
pub(super) fn path(line: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(line.strip_suffix(b"\n").unwrap_or(line)))
}

/// Output as text without the last line end.
pub(super) fn trim(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned()
}

/// Repeats a git call for as long as another program holds one of git's locks.
pub(super) fn retry(mut call: impl FnMut() -> Result<Output>) -> Result<Output> {
    let begin = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let called = call()?;
        if called.status.success() || !is_lock_conflict(&called) || begin.elapsed() > GIT_LOCK_LIMIT
        {
            return Ok(called);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// The number of commits that `git rev-list` lists.
pub(super) fn count(directory: &Path, revisions: &[&str]) -> Result<usize> {
    let counted = git(directory, "rev-list --count").args(revisions);
    let counted = counted.text("cannot compare the branches")?;
    counted.parse().with_context(|| format!("git counted {counted:?} commits"))
}

/// The command that [`changes`] parses, without its scope.
pub(super) const STATUS: &str = "--no-optional-locks status --porcelain -z --no-renames";

/// The paths of uncommitted changes, in the output of [`STATUS`].
pub(super) fn changes(status: Git) -> Result<Vec<String>> {
    let entries = status.records("cannot look for uncommitted changes")?.into_iter();
    Ok(entries.filter_map(|entry| entry.get(3..).map(str::to_owned)).collect())
}

/// The settings of the person that a worktree takes over; a name that ends in a dot stands for all
/// names that begin with it.
const COPIED: &str = "
author.email author.name commit.cleanup committer.email committer.name core.abbrev
core.attributesfile core.autocrlf core.bigfilethreshold core.checkstat core.commentchar
core.eol core.excludesfile core.filemode core.ignorecase core.longpaths
core.precomposeunicode core.protecthfs core.protectntfs core.quotepath core.safecrlf
core.sparsecheckout core.sparsecheckoutcone core.symlinks core.trustctime core.whitespace
diff.algorithm extensions.compatobjectformat extensions.objectformat extensions.partialclone
filter. i18n. index.sparse lfs. merge.conflictstyle merge.renames user.email user.name
";

/// The settings of every worktree: no signing, which needs the person's key, and nothing in the
/// background.
const FIXED: &str = "
commit.gpgsign=false tag.gpgsign=false core.bare=false core.fsmonitor=false
core.splitindex=false core.untrackedcache=false gc.auto=0 maintenance.auto=false
core.logallrefupdates=true
";

/// The settings of a scratch repository: nothing that somebody else prepared is used.
const SCRATCH: &str = "
core.bare=false core.commitgraph=false core.fsmonitor=false core.hookspath=/dev/null
core.multipackindex=false core.untrackedcache=false pack.usebitmaps=false
";

/// The person's settings for a worktree, in git's order.
pub(super) struct Settings(Vec<(String, String)>);

impl Settings {
    /// The settings that hold in the person's checkout, else in the repository.
    pub(super) fn of(worktree: &Worktree) -> Result<Self> {
        let checkout = worktree.checkout.as_ref().filter(|it| it.is_dir());
        Self::list(checkout.map_or_else(|| git_on(&worktree.repository, ""), |it| git(it, "")))
    }

    /// The settings of a repository.
    pub(super) fn of_repository(repository: &Path) -> Result<Self> {
        Self::list(git_on(repository, ""))
    }

    fn list(git: Git) -> Result<Self> {
        let entry = |record: String| match record.split_once('\n') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (record, "true".into()),
        };
        let listed = git.words("config --list -z").records("cannot read the settings of git")?;
        Ok(Self(listed.into_iter().map(entry).collect()))
    }

    /// The last value of a setting.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rfind(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// The config file of a worktree.
    pub(super) fn of_worktree(&self, hooks: &Path) -> String {
        let mut settings = self.copied();
        let variable = |name: &str| std::env::var(name).ok().filter(|it| !it.is_empty());
        for (key, name) in [("user.name", "GIT_AUTHOR_NAME"), ("user.email", "GIT_AUTHOR_EMAIL")] {
            if let Some(value) = variable(name).filter(|_| self.get(key).is_none()) {
                settings.push((key.into(), value));
            }
        }
        settings.push(("core.hookspath".into(), hooks.display().to_string()));
        config_file(settings, FIXED)
    }

    /// The config file of a scratch repository.
    pub(super) fn of_scratch(&self) -> String {
        let mut settings = self.copied();
        settings.extend(self.without_filters().iter().filter_map(|off| setting(off)));
        config_file(settings, SCRATCH)
    }

    fn copied(&self) -> Vec<(String, String)> {
        let promisor = self.get("extensions.partialclone");
        let of_promisor = promisor.map(|name| format!("remote.{name}."));
        let names: Vec<_> = COPIED.split_whitespace().chain(of_promisor.as_deref()).collect();
        let is_named = |key: &str| {
            names.iter().any(|it| *it == key || it.ends_with('.') && key.starts_with(it))
        };
        // A worker stores its own large files in its own repository.
        let is_copied = |key: &str| key != "lfs.storage" && is_named(key);
        self.0.iter().filter(|(key, _)| is_copied(key)).cloned().collect()
    }

    /// The person's hooks. A relative path means those of the person's checkout: a worker must not
    /// change them.
    pub(super) fn hooks(&self, worktree: &Worktree) -> PathBuf {
        match (self.get("core.hookspath").map(Path::new), &worktree.checkout) {
            (Some(path), Some(checkout)) => match path.strip_prefix("~") {
                Ok(rest) => dirs::home_directory().unwrap_or_default().join(rest),
                Err(_) => checkout.join(path),
            },
            _ => worktree.repository.join("hooks"),
        }
    }

    /// The command line of the hook that follows the first checkout of a commit, if there is one.
    pub(super) fn checkout_hook(hooks: &Path, commit: &str) -> Option<String> {
        let hook = find_program(hooks.join("post-checkout").as_os_str())?;
        let none = "0".repeat(commit.len());
        Some(format!("{} {none} {commit} 1", shell_word(&hook.display().to_string())))
    }

    /// The sparse patterns of the person's checkout, if it has some. With `sent`, those of a checkout on
    /// another machine, as [`Worktree::sparse_to_send`] gives them; the settings then say so.
    pub(super) fn sparse_patterns(
        &mut self,
        worktree: &Worktree,
        sent: Option<&str>,
    ) -> Result<Option<String>> {
        if let Some((cone, patterns)) = sent.and_then(|it| it.split_once('\n')) {
            self.0.push(("core.sparsecheckout".into(), "true".into()));
            self.0.push(("core.sparsecheckoutcone".into(), cone.into()));
            return Ok(Some(patterns.into()));
        }
        let checkout = worktree.checkout.as_ref().filter(|it| it.is_dir());
        let is_sparse = self.get("core.sparsecheckout") == Some("true");
        let Some(checkout) = checkout.filter(|_| is_sparse) else { return Ok(None) };
        let file = git(checkout, "rev-parse --path-format=absolute --git-path");
        let file = file.arg("info/sparse-checkout").bytes("cannot find the sparse patterns")?;
        files::read(path(&file))
    }

    /// Where Git LFS stores the files of the person's repository.
    pub(super) fn large_files(&self, repository: &Path) -> PathBuf {
        repository.join(self.get("lfs.storage").unwrap_or("lfs"))
    }

    /// `KEY=VALUE` for git's `-c`, which together switch off every filter that could run a file of the
    /// tree. Git LFS runs none.
    pub(super) fn without_filters(&self) -> Vec<String> {
        let filters = self.0.iter().filter_map(|(key, value)| {
            let (name, kind) = key.strip_prefix("filter.")?.rsplit_once('.')?;
            let runs = ["clean", "smudge", "process"].contains(&kind);
            (runs && !value.starts_with("git-lfs ")).then_some(name)
        });
        let off = |name: &str| {
            let parts = ["clean=", "smudge=", "process=", "required=false"];
            parts.map(|part| format!("filter.{name}.{part}"))
        };
        collect::<BTreeSet<_>, _>(filters).into_iter().flat_map(off).collect()
    }
}

/// The name and the value in `NAME=VALUE`.
fn setting(text: &str) -> Option<(String, String)> {
    text.split_once('=').map(|(key, value)| (key.into(), value.into()))
}

/// The text of a config file (git-config(1), "Syntax").
fn config_file(settings: Vec<(String, String)>, fixed: &str) -> String {
    let extended = settings.iter().any(|(key, _)| key.starts_with("extensions."));
    let mut text = format!("[core]\n\trepositoryformatversion = {}\n", u8::from(extended));
    let fixed = fixed.split_whitespace().filter_map(setting);
    let escape = |text: &str| text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    for (key, value) in settings.into_iter().chain(fixed) {
        let Some((section, name)) = key.rsplit_once('.') else { continue };
        let section = match section.split_once('.') {
            Some((section, sub)) => format!("{section} \"{}\"", escape(sub)),
            None => section.to_owned(),
        };
        let _ = write!(text, "[{section}]\n\t{name} = \"{}\"\n", escape(&value));
    }
    text
}

/// The unfinished operation in a checkout, by git's own directory of that checkout.
pub(super) fn unfinished(git_dir: &Path) -> Option<&'static str> {
    let marks = [
        ("rebase-merge", "rebase"),
        ("rebase-apply", "rebase"),
        ("MERGE_HEAD", "merge"),
        ("CHERRY_PICK_HEAD", "cherry-pick"),
        ("REVERT_HEAD", "revert"),
        ("BISECT_LOG", "bisect"),
    ];
    let is_there = |name: &str| git_dir.join(name).symlink_metadata().is_ok();
    marks.into_iter().find_map(|(name, what)| is_there(name).then_some(what))
}

/// Returns true if git tracks a file, which then came with the repository.
pub fn is_tracked(file: &Path) -> bool {
    let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { return false };
    let listed = git(directory, "ls-files --error-unmatch --").arg(name).run();
    listed.is_ok_and(|listed| listed.status.success())
}

/// The full id of the commit that `revision` names in a directory or repository; `None` if there is
/// none.
pub fn commit_id(directory: &Path, revision: &str) -> Result<Option<String>> {
    let revision = format!("{revision}^{{commit}}");
    let asked = git(directory, "rev-parse --verify --quiet").arg(revision).run()?;
    Ok(asked.status.success().then(|| trim(&asked.stdout)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn cause(said: &str) -> String {
        let status = ExitStatus::from_raw(1 << 8);
        error_line(&Output { status, stdout: Vec::new(), stderr: said.into() })
    }

    #[test]
    fn failed_program_is_the_cause_of_git_s_error() {
        let hung_up = "fatal: the remote end hung up unexpectedly\n";
        assert_eq!(cause(&format!("x: not found\n{hung_up}")), "x: not found");
        assert_eq!(cause(hung_up), hung_up.trim());
        // The program has ended before git wrote to it, and says so itself or not.
        let packet = "error: packet write with format failed\n";
        let named = "error: initialization for subprocess 'x' failed\n";
        assert_eq!(cause(&format!("x: not found\n{packet}{named}")), "x: not found");
        assert_eq!(
            cause(&format!("{packet}{named}fatal: a: smudge filter x failed\n")),
            named.trim()
        );
        assert_eq!(cause("hint: a\nerror: b\nfatal: c\n"), "error: b");
        assert_eq!(cause("warning: a\nb\n"), "b");
        assert_eq!(cause(""), "exit status: 1");
    }
}
