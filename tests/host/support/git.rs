//! This repository on a git server on loopback, as people install the skill from it.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use super::{
    model::{Http, read},
    process::Home,
};

/// A clone of this repository, and its server, which ends when dropped.
pub(crate) struct Repository {
    clone: PathBuf,
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Repository {
    /// Clones the commits of this repository into the home, and serves them.
    pub(crate) fn serve(home: &Home) -> Self {
        let root = home.path().join("served");
        let clone = root.join("dispatch");
        fs::create_dir_all(&root).expect("a directory");
        git(&root, &["clone", "--quiet", env!("CARGO_MANIFEST_DIR"), "dispatch"]);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port");
        let address = listener.local_addr().expect("its address");
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let server = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if until.load(Ordering::Relaxed) {
                    break;
                }
                // A client may disconnect at any time: an error ends only its connection.
                let _ = answer(&stream, &root);
            }
        });
        Self { clone, address, ended, server: Some(server) }
    }

    /// The address to give to an installer.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/some/owner/dispatch.git", self.address)
    }

    /// The clone's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.clone
    }

    /// The tracked files, in the order of paths, which is not git's.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let files = git(&self.clone, &["ls-files", "-z"]);
        let mut files: Vec<_> = files.split_terminator('\0').map(PathBuf::from).collect();
        files.sort();
        files
    }

    /// Commits this text as the new content of a file.
    pub(crate) fn publish(&self, path: &str, text: &str) {
        fs::write(self.clone.join(path), text).expect("written");
        git(&self.clone, &["add", "--all"]);
        let name = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"];
        git(&self.clone, &[&name[..], &["commit", "--quiet", "-m", path]].concat());
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the server, which then sees the end.
        let _ = TcpStream::connect(self.address);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).current_dir(directory).output().expect("git");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Answers one request with git's own CGI server program.
fn answer(mut stream: &TcpStream, root: &Path) -> std::io::Result<()> {
    let Some(Http { method, path, headers, body }) = read(stream)? else { return Ok(()) };
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let path = path.strip_prefix("/some/owner/dispatch.git").unwrap_or_default();
    let header = |name: &str| headers.get(name).map_or("", String::as_str);
    let mut backend = Command::new("git");
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root.join("dispatch/.git"))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", method)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut backend = backend.spawn()?;
    backend.stdin.take().expect("a piped stdin").write_all(&body)?;
    let output = backend.wait_with_output()?.stdout;
    let text = String::from_utf8_lossy(&output);
    let status = text.strip_prefix("Status: ").and_then(|rest| rest.split_once("\r\n"));
    let status = status.map_or("200 OK", |(status, _)| status);
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n")?;
    stream.write_all(&output)
}
