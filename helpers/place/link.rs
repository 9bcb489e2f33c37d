//! The transport to a place: a command of the person's that runs `sh -s` there, with its standard input
//! and output. The script finds the helper there, or takes this program, and becomes its far end.
//!
//! Invariant: nothing is sent before the script has said its sentinel, so neither the noise of a shell
//! nor its read-ahead matters. An exit code of the command means nothing.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::raise;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Config, PlaceEntry};
use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::git::{FAR, Far};
use crate::ids::{long_hash, random_hex};
use crate::place::is_key;
use crate::process::{
    ATTEMPT, HELPERS, Signal, TASK_DIR, is_host_variable, lead_own_group, signal_group,
};
use crate::text::{sanitize, shell_word};
use crate::worker::slurm::last_line;

/// The script that a shell at the place reads. Braces make the shell read all of it before it runs any.
const SCRIPT: &str = include_str!("link.sh");

/// How long the place may take for each line of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// How long sending the program may take.
const UPLOAD: Duration = Duration::from_secs(600);

/// How many bytes of noise are read before the sentinel.
const NOISE: usize = 1 << 20;

/// The most bytes of a message's line, of all its files, and how many files it may have.
const LONGEST_LINE: usize = 4 << 20;
const LONGEST_BODY: usize = 96 << 20;
pub(super) const MOST_FILES: usize = 4000;

/// Options that keep a person's settings from sharing, forwarding or running anything, and find out that
/// a connection is dead.
const SSH: &str = "
BatchMode=yes ClearAllForwardings=yes ConnectTimeout=15 ControlMaster=no ControlPath=none
ForwardAgent=no ForwardX11=no PermitLocalCommand=no RemoteCommand=none RequestTTY=no
ServerAliveCountMax=3 ServerAliveInterval=15
";

/// The name of these sources, as helpers/VERSION computes it and helpers are installed under it.
pub fn version() -> String {
    let text = include_str!("../VERSION");
    let begin = text.lines().find_map(|line| line.strip_prefix("version=")?.strip_suffix("-$((0"));
    let hashes = text.lines().filter_map(|line| line.strip_prefix("^0x"));
    let all = hashes.filter_map(|it| u64::from_str_radix(it, 16).ok()).fold(0, |all, it| all ^ it);
    format!("{}-{all}", begin.unwrap_or_default())
}

/// The command of a place with the shell that it has to run.
fn command(entry: &PlaceEntry) -> Command {
    let (program, arguments) = entry.reach.split_first().expect("a config without errors");
    let mut command = Command::new(program);
    if Path::new(program).file_name().is_some_and(|name| name == "ssh") {
        command.arg("-T").args(SSH.split_whitespace().flat_map(|option| ["-o", option]));
    }
    command.args(arguments).args(["sh", "-s"]);
    // A place that inherits the environment must not take its helpers for those of a worker here.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if [ATTEMPT, TASK_DIR].contains(&&*text) || is_host_variable(&text) {
            command.env_remove(&name);
        }
    }
    command
}

/// An open transport, which is ended when it is dropped.
pub struct Transport {
    child: Child,
    /// The bytes that came after the last line that was read.
    rest: Vec<u8>,
    errors: Receiver<String>,
    mark: String,
}

impl Drop for Transport {
    fn drop(&mut self) {
        // Only the transport is ended: whatever works at the place has a session of its own.
        let _ = signal_group(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Transport {
    /// Opens the transport to a place and starts there the far end `runs`: `serve`, or a service of git
    /// and the key of a repository. `sends` says whether this program may be sent.
    ///
    /// # Errors
    /// [`Exit::Unavailable`] with the reason why there is no connection, or no helper there.
    pub fn open(name: &str, entry: &PlaceEntry, runs: [&str; 2], sends: bool) -> Result<Self> {
        let refusal = || Refusal::new(Exit::Unavailable, format!("cannot reach '{name}'"));
        let mark = format!("dispatch-{}", random_hex()?);
        let mut command = command(entry);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = lead_own_group(&mut command).spawn().map_err(|error| {
            let tried = format!("{}: {error}", entry.reach.join(" "));
            refusal().place(tried).next("correct 'reach' of the place in the config")
        })?;
        let (said, errors) = channel();
        let stderr = child.stderr.take().context("no pipe")?;
        std::thread::spawn(move || said.send(read_last_line(stderr)));
        let mut link = Self { child, rest: Vec::new(), errors, mark };
        let Err(error) = link.greet(entry, runs).and_then(|()| link.agree(name, sends)) else {
            return Ok(link);
        };
        if error.is::<Refusal>() {
            return Err(error);
        }
        // The last words of the command say why, such as a refused login.
        let said = link.errors.recv_timeout(Duration::from_millis(300)).unwrap_or_default();
        let why = if said.is_empty() { format!("{error:#}") } else { said };
        let tried = entry.reach.iter().map(|it| shell_word(it)).collect::<Vec<_>>().join(" ");
        let next = format!("find out why this fails without a prompt: {tried} true");
        refusal().place(why).refuse(next)
    }

    /// Takes the pipes from the place, which begins with what was read too far, and to it.
    pub fn pipes(&mut self) -> Result<(impl Read + Send + use<>, ChildStdin)> {
        let pipes = self.child.stdout.take().zip(self.child.stdin.take());
        let (from, to) = pipes.context("the transport is in use")?;
        Ok((std::io::Cursor::new(std::mem::take(&mut self.rest)).chain(from), to))
    }

    fn greet(&mut self, entry: &PlaceEntry, [runs, key]: [&str; 2]) -> Result<()> {
        let directory = entry.directory.as_deref().unwrap_or("~/.dispatch/places");
        let directory = match directory.strip_prefix("~/") {
            Some(rest) => format!("\"$HOME\"/{}", shell_word(rest)),
            None => shell_word(directory),
        };
        let (mark, version, helpers) = (&self.mark, version(), HELPERS.join(" "));
        let script = format!(
            "{{\nmark={mark} version={version} places={directory} runs={runs} key={key} \
             helpers=\"{helpers}\"\n{SCRIPT}}}\n"
        );
        self.send(script.as_bytes(), HANDSHAKE)
    }

    fn agree(&mut self, name: &str, sends: bool) -> Result<()> {
        let install = "there, in a clone of this version: sh install.sh";
        let refuse = |what: &str, place: &str, next: &str| {
            Refusal::new(Exit::Unavailable, format!("{what} on '{name}'"))
                .place(sanitize(place))
                .refuse(sanitize(next))
        };
        let (mut word, mut more) = self.sentinel(HANDSHAKE)?;
        if word == "absent" {
            let own = nix::sys::utsname::uname()?;
            let own = format!("{} {}", own.sysname().display(), own.machine().display());
            if !sends || more != own {
                let place = format!("it is {more}; {} is looked for", version());
                return refuse("this version of dispatch is not installed", &place, install);
            }
            let exe = std::env::current_exe().context("cannot find this program's own file")?;
            let program = std::fs::read(&exe).context("cannot read this program")?;
            let sum = format!("{} {}\n", program.len(), long_hash(&program));
            self.send(sum.as_bytes(), HANDSHAKE)?;
            fault::point("place", "uploading");
            // A place that takes no more says why; nobody says anything where the connection has ended.
            let (begin, limit) = (Instant::now(), fault::limit("DISPATCH_UPLOAD_MS", UPLOAD));
            let _ = self.send(&program, limit);
            let is_late = begin.elapsed() >= limit;
            ensure!(!is_late, "it did not take the program within {} s", limit.as_secs());
            (word, more) = self.sentinel(limit.saturating_sub(begin.elapsed()))?;
        }
        match word.as_str() {
            "ready" => Ok(()),
            "fail" => {
                let (why, next) = more.split_once(" ## ").unwrap_or((&more, install));
                refuse("dispatch cannot run", why, next)
            }
            _ => bail!("the place said something unknown"),
        }
    }

    fn send(&mut self, bytes: &[u8], limit: Duration) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the transport is in use")?;
        let deadline = Instant::now() + limit;
        // A pipe that is ready takes so much without blocking (POSIX).
        for piece in bytes.chunks(nix::libc::PIPE_BUF) {
            ensure!(is_ready(stdin, PollFlags::POLLOUT, deadline)?, "the place takes no more");
            stdin.write_all(piece).context("the connection has ended")?;
        }
        Ok(())
    }

    /// The first word, and the others, behind the sentinel that begins a line.
    fn sentinel(&mut self, limit: Duration) -> Result<(String, String)> {
        let (deadline, mut noise) = (Instant::now() + limit, 0);
        let start = format!("{} ", self.mark);
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                noise += line.len();
                if let Some(said) = String::from_utf8_lossy(&line).trim_end().strip_prefix(&start) {
                    let (word, more) = said.split_once(' ').unwrap_or((said, ""));
                    return Ok((word.into(), more.into()));
                }
            }
            ensure!(noise + self.rest.len() < NOISE, "a shell there prints too much");
            let stdout = self.child.stdout.as_mut().context("the transport is in use")?;
            let is_ready = is_ready(stdout, PollFlags::POLLIN, deadline)?;
            ensure!(is_ready, "no answer after {} s", limit.as_secs());
            let mut piece = [0; 4096];
            let count = stdout.read(&mut piece).context("the connection has ended")?;
            ensure!(count > 0, "the connection has ended");
            self.rest.extend_from_slice(&piece[..count]);
        }
    }
}

/// Waits until a pipe is ready, or has ended; false at the deadline.
fn is_ready(pipe: &impl AsFd, flags: PollFlags, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(pipe.as_fd(), flags)];
        match poll(&mut ready, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => {}
            Ok(0) if !left.is_zero() => {}
            polled => return Ok(polled? > 0),
        }
    }
}

/// The last line of what a command prints.
fn read_last_line(mut from: impl Read) -> String {
    let (mut end, mut piece) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        end.extend_from_slice(&piece[..count]);
        end.drain(..end.len().saturating_sub(4096));
    }
    last_line(&end).unwrap_or_default()
}

/// Carries one call of git to the place, as git's `ext` transport: standard input and output are git's.
pub fn carry_git(service: &str) -> Result<()> {
    let carried = std::env::var(FAR).context("only git calls this")?;
    let (name, key): (String, String) = files::from_json(carried.as_bytes())?;
    // Only the config says what is run.
    let config = Config::load()?;
    let entry = config.place(&name)?;
    ensure!(is_key(&key), "no such repository");
    ensure!(["git-receive-pack", "git-upload-pack"].contains(&service), "no such service");
    let mut link = Transport::open(&name, entry, [service, &key], false)?;
    let (from, mut to) = link.pipes()?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut to);
    });
    // Standard output of Rust keeps what does not end in a line.
    let mut out = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    // Git itself ends the call at its limit; this one holds for what it would not count.
    let taken = std::io::copy(&mut from.take(MOST_OBJECTS), &mut out)?;
    if taken >= MOST_OBJECTS {
        return Ok(());
    }
    let last = link.errors.recv_timeout(LAST_WORD).unwrap_or_default();
    ensure!(last == format!("{} done", link.mark), "the connection has ended before git");
    Ok(())
}

/// How long the end of a call of git may follow the last byte.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How many bytes of objects a place may send at once.
const MOST_OBJECTS: u64 = 8 << 30;

/// The way by which git reaches a repository at a place.
pub fn git_url(name: &str, key: &str) -> Result<Far> {
    let helper = std::env::current_exe()?.with_file_name("dispatch-spawn");
    // Git's `ext` transport splits at spaces, and `%` is its escape.
    let helper = helper.display().to_string().replace('%', "%%").replace(' ', "% ");
    Ok((format!("ext::{helper} --carry %S"), serde_json::to_string(&(name, key))?))
}

/// Contents by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// A statement with the files that follow its line.
pub type Message<T> = (T, Files);

/// The two directions of a connection: threads carry the messages, so that no end waits for a slow link.
pub struct Channel<Out, In> {
    /// Where messages are sent. One that cannot be sent is lost with the connection.
    pub out: Sender<Message<Out>>,
    writer: std::thread::JoinHandle<()>,
    /// The messages that came; disconnected at the end of the connection.
    pub incoming: Receiver<Message<In>>,
}

impl<Out: Serialize + Send + 'static, In: DeserializeOwned + Send + 'static> Channel<Out, In> {
    /// Starts the threads. Each message that comes, and the end, raises SIGUSR1 in this process.
    pub fn start(from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> Self {
        let (out, messages) = channel();
        let writer = std::thread::spawn(move || {
            let _ = messages.iter().try_for_each(|message| write_message(&mut to, &message));
        });
        let (sender, incoming) = channel();
        std::thread::spawn(move || {
            let mut from = std::io::BufReader::new(from);
            while let Ok(message) = read_message(&mut from) {
                if sender.send(message).is_err() {
                    break;
                }
                wake();
            }
            drop(sender);
            wake();
        });
        Self { out, writer, incoming }
    }

    /// Sends a statement with files.
    pub fn send(&self, head: Out, files: Files) {
        let _ = self.out.send((head, files));
    }

    /// Waits until everything was sent, or cannot be.
    pub fn finish(self) {
        drop(self.out);
        let _ = self.writer.join();
    }
}

fn write_message<T: Serialize>(to: &mut impl Write, (head, files): &Message<T>) -> Result<()> {
    let sizes: Vec<_> = files.iter().map(|(name, text)| (name, text.len())).collect();
    let mut bytes = serde_json::to_vec(&(head, sizes))?;
    bytes.push(b'\n');
    files.iter().for_each(|(_, text)| bytes.extend_from_slice(text));
    to.write_all(&bytes)?;
    Ok(to.flush()?)
}

fn wake() {
    let _ = raise(Signal::SIGUSR1);
}

/// Reads one message, whose size was agreed with nobody.
fn read_message<T: DeserializeOwned>(from: &mut impl std::io::BufRead) -> Result<Message<T>> {
    let mut line = Vec::new();
    std::io::BufRead::read_until(&mut from.take(LONGEST_LINE as u64), b'\n', &mut line)?;
    ensure!(line.ends_with(b"\n"), "the connection has ended");
    let (head, sizes): (T, Vec<(String, usize)>) = files::from_json(&line)?;
    let total = sizes.iter().try_fold(0_usize, |all, (_, size)| all.checked_add(*size));
    ensure!(total.is_some_and(|it| it <= LONGEST_BODY) && sizes.len() <= MOST_FILES, "too large");
    let mut files = Vec::new();
    for (name, size) in sizes {
        let mut text = Vec::new();
        from.by_ref().take(size as u64).read_to_end(&mut text)?;
        ensure!(text.len() == size, "the connection has ended");
        files.push((name, text));
    }
    Ok((head, files))
}

/// The most bytes of one file that is mirrored.
pub const LONGEST_FILE: u64 = 16 << 20;
const _: () = assert!(LONGEST_FILE < files::LARGEST);
