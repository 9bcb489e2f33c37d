//! A copy of the skill on a machine with few tools, for the tests of install.sh.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;

use super::text::{names, same};
use super::{Call, Ran, Sandbox, helpers, repository};

/// The programs that install.sh may call, without cargo and programs that download.
const TOOLS: [&str; 21] = [
    "awk",
    "cat",
    "chmod",
    "cp",
    "cut",
    "find",
    "ln",
    "mkdir",
    "mktemp",
    "mv",
    "ps",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "uname",
    "wc",
];

/// A stand-in for the program, which prints its name and its arguments.
pub(crate) const PROGRAM: &str = "#!/bin/sh\necho \"${0##*/} $*\"\n";

/// A copy of the skill at a path with spaces, and a machine with few tools.
pub(crate) struct Copy {
    pub(crate) sandbox: Sandbox,
    pub(crate) folder: PathBuf,
    pub(crate) version: String,
}

impl Copy {
    pub(crate) fn new() -> Self {
        let sandbox = Sandbox::new();
        let folder = sandbox.home().join("my skills/dispatch");
        fs::create_dir_all(&folder).expect("made");
        let copy = sandbox.program("cp").arg("-R");
        let copied = ["bin", "helpers", "install.sh", "Cargo.toml", "Cargo.lock"];
        let copy = copied.iter().fold(copy, |copy, name| copy.arg(repository(name)));
        copy.arg(&folder).run().ok();
        let text = sandbox.program("sh").arg(folder.join("helpers/version.sh")).run().ok();
        fs::write(folder.join("helpers/VERSION"), &text).expect("written");
        let copy = Self { sandbox, folder, version: helpers::version(&text) };
        fs::create_dir_all(copy.tools()).expect("made");
        TOOLS.iter().for_each(|name| copy.tool(name));
        copy
    }

    pub(crate) fn tools(&self) -> PathBuf {
        self.sandbox.top().join("tools")
    }

    /// Makes another program of the machine callable.
    pub(crate) fn tool(&self, name: &str) {
        let path = self.sandbox.program("which").arg(name).run().ok();
        let linked = std::os::unix::fs::symlink(path.trim_end(), self.tools().join(name));
        linked.expect("linked");
    }

    /// Makes a program of the machine from a script.
    pub(crate) fn stand_in(&self, name: &str, script: &str) {
        let made = format!("cat >{name} <<'EOF'\n#!/bin/sh\n{script}\nEOF\nchmod 755 {name}");
        self.sandbox.program("sh").args(&["-c", &made]).within(self.tools()).run().ok();
    }

    /// Makes a `cargo` that builds the stand-in.
    pub(crate) fn cargo(&self) {
        let script = format!(
            "case $3 in dev) output=debug ;; *) output=$3 ;; esac\nfor target; do\n\
             case $last in --target) output=$target/$output ;; esac\nlast=$target\ndone\n\
             mkdir -p \"$target/$output\"\n: >\"$target/CACHEDIR.TAG\"\n\
             cat >\"$target/$output/dispatch\" <<'EOP'\n{PROGRAM}EOP"
        );
        self.stand_in("cargo", &script);
    }

    /// Records in the copy that the stand-in was published for these sources, and returns it.
    pub(crate) fn publish(&self) -> Vec<u8> {
        let system = "uname -sm | tr A-Z a-z | sed 's/darwin/macos/; s/arm64/aarch64/; s/ /-/'";
        let system = self.sandbox.program("sh").args(&["-c", system]).run().ok();
        let hash = self.sandbox.program("sha256sum").input(PROGRAM).run().ok();
        let (hash, _) = hash.split_once(' ').expect("a hash");
        let release = format!("from ADDRESS\n{hash}  dispatch-{}-{system}", self.version);
        fs::write(self.folder.join("helpers/RELEASE"), release).expect("written");
        PROGRAM.into()
    }

    pub(crate) fn install(&self, args: &[&str]) -> Call {
        let call = self.sandbox.program("sh").arg(self.folder.join("install.sh"));
        call.args(args).env("PATH", self.tools())
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.sandbox.home().join(".local/share/dispatch")
    }

    pub(crate) fn place(&self) -> PathBuf {
        self.data().join(&self.version)
    }

    /// The version that the launchers of the copy look for.
    pub(crate) fn current(&self) -> String {
        let text = fs::read_to_string(self.folder.join("helpers/VERSION")).expect("text");
        helpers::version(&text)
    }

    /// Puts the real helpers in place, as an installation does.
    pub(crate) fn put_in_place(&self) {
        helpers::install(&self.data());
        let built = self.data().join(helpers::VERSION.as_str());
        if built != self.place() {
            fs::rename(built, self.place()).expect("moved");
        }
        let hash = self.sandbox.program("sha256sum").arg(self.place().join("dispatch")).run().ok();
        let (hash, _) = hash.split_once(' ').expect("a hash");
        fs::write(self.place().join("BUILD"), format!("release {hash}\n")).expect("written");
    }

    pub(crate) fn said(&self, text: &str) -> String {
        let text = text.replace(&self.version, "VERSION");
        self.sandbox.redactions().apply(&text)
    }

    #[track_caller]
    pub(crate) fn works(&self) {
        let worker = self.sandbox.program(self.folder.join("bin/dispatch-worker"));
        assert_eq!(worker.args(&["tick", "1"]).run().ok(), "dispatch-worker tick 1\n");
        let found = names(&self.place());
        assert_eq!(
            found,
            [
                "BUILD",
                "COPIES",
                "dispatch",
                "dispatch-config",
                "dispatch-monitor",
                "dispatch-reconcile",
                "dispatch-spawn",
                "dispatch-worker"
            ]
        );
    }

    /// Checks that nothing is installed and no partial file is left.
    #[track_caller]
    pub(crate) fn has_nothing(&self) {
        assert!(
            !self.data().exists() || names(&self.data()).is_empty(),
            "{:?}",
            names(&self.data())
        );
    }

    #[track_caller]
    pub(crate) fn refused(&self, ran: &Ran, code: i32, expected: impl snapbox::IntoData) {
        assert_eq!(ran.code, Some(code), "{}{}", ran.out, ran.err);
        same(self.said(&ran.err).trim_end(), expected);
        self.has_nothing();
    }
}

/// Serves `bytes` to every request under a Content-Length of `length`; returns the address.
pub(crate) fn serve(bytes: Vec<u8>, length: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let lines = BufReader::new(stream.try_clone().expect("a reader")).lines();
            let path = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).next();
            assert!(path.is_some_and(|path| path.contains("/dispatch-")));
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
    });
    format!("{}://{address}", "http")
}

pub(crate) fn serve_whole(bytes: Vec<u8>) -> String {
    let length = bytes.len();
    serve(bytes, length)
}
