//! The skill, installed and updated by the real `npx skills` from a git server.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use walkdir::WalkDir;

use super::helpers::{self, VERSION};
use crate::support::{
    model::{Http, read},
    process::{Home, fetched, path},
};

/// A home and the source of its skills.
struct Place {
    home: Home,
    source: Repository,
}

impl Place {
    fn new() -> Self {
        let home = Home::with_spaces();
        let source = Repository::serve(&home);
        Self { home, source }
    }

    /// Runs `npx skills …` in the project without prompts.
    fn skills(&self, arguments: &[&str]) {
        let mut skills = Command::new(fetched("node"));
        skills.arg(fetched("node_modules/skills/bin/cli.mjs")).args(arguments);
        skills.current_dir(self.home.project()).env_clear().env("HOME", self.home.path());
        let output = skills.env("PATH", path()).env("DISABLE_TELEMETRY", "1").output();
        let output = output.expect("skills");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    fn add(&self, arguments: &[&str]) {
        self.skills(&[&["add", &self.source.url(), "-y"], arguments].concat());
    }

    fn install_helpers(&self) {
        helpers::install(&self.home.path().join(".local/share/dispatch"));
    }

    /// The user's copy.
    fn users(&self) -> PathBuf {
        self.home.path().join(".claude/skills/dispatch")
    }

    /// The exit code and output of a launcher in this copy.
    fn run(&self, skill: &Path) -> (Option<i32>, String) {
        let mut launcher = Command::new(skill.join("bin/dispatch-config"));
        launcher.arg("path").current_dir(self.home.project());
        let output = launcher.env_clear().env("HOME", self.home.path()).env("PATH", path());
        let output = output.output().expect("a launcher that can be executed");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("UTF-8"))
    }

    #[track_caller]
    fn works(&self, skill: &Path) {
        let config = self.home.path().join(".dispatch/config.yaml");
        assert_eq!(self.run(skill), (Some(0), format!("{}\n", config.display())));
    }

    /// Checks that the launcher names the one install command, and that its script exists.
    #[track_caller]
    fn is_not_installed(&self, skill: &Path, version: &str) {
        let install = skill.join("install.sh");
        let line = format!(
            "dispatch-config {version} is not installed; run: sh \"{}\"\n",
            install.display()
        );
        assert_eq!(self.run(skill), (Some(69), line));
        assert!(install.is_file());
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(folder).into_iter().map(|entry| entry.expect("readable"));
    let files = entries.filter(|entry| entry.file_type().is_file());
    let mut files: Vec<PathBuf> =
        files.map(|file| file.path().strip_prefix(folder).expect("in it").into()).collect();
    files.sort();
    files
}

/// A clone of this repository, and its server, which ends when dropped.
struct Repository {
    clone: PathBuf,
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Repository {
    /// Clones the commits of this repository into the home, and serves them.
    fn serve(home: &Home) -> Self {
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
    fn url(&self) -> String {
        format!("http://{}/some/owner/dispatch.git", self.address)
    }

    /// The clone's folder.
    fn folder(&self) -> &Path {
        &self.clone
    }

    /// The tracked files, in the order of paths, which is not git's.
    fn files(&self) -> Vec<PathBuf> {
        let files = git(&self.clone, &["ls-files", "-z"]);
        let mut files: Vec<_> = files.split_terminator('\0').map(PathBuf::from).collect();
        files.sort();
        files
    }

    /// Commits this text as the new content of a file.
    fn publish(&self, path: &str, text: &str) {
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

#[test]
fn user_install_copies_tracked_files_and_runs_nothing() {
    let place = Place::new();
    place.add(&["-g", "-a", "claude-code"]);
    let skill = place.users();
    assert_eq!(files(&skill), place.source.files());
    for file in files(&skill) {
        let mode =
            |root: &Path| fs::metadata(root.join(&file)).expect("there").permissions().mode();
        assert_eq!(mode(&skill) & 0o100, mode(place.source.folder()) & 0o100, "{}", file.display());
    }
    assert!(!place.home.path().join(".local").exists() && place.home.processes().is_empty());
    place.is_not_installed(&skill, &VERSION);
    place.install_helpers();
    place.works(&skill);
}

#[test]
fn agents_of_a_project_share_one_copy_by_links() {
    let place = Place::new();
    place.add(&["-a", "claude-code", "codex", "cursor"]);
    let copy = place.home.project().join(".agents/skills/dispatch");
    let link = place.home.project().join(".claude/skills/dispatch");
    assert_eq!(link.canonicalize().expect("a link"), copy.canonicalize().expect("a folder"));
    assert!(link.is_symlink() && !copy.is_symlink());
    place.is_not_installed(&link, &VERSION);
    place.install_helpers();
    place.works(&link);
    place.works(&copy);
}

#[test]
fn copies_share_the_helpers() {
    let place = Place::new();
    place.add(&["--copy", "-a", "claude-code", "codex"]);
    place.install_helpers();
    for agent in [".agents", ".claude"] {
        let copy = place.home.project().join(agent).join("skills/dispatch");
        assert!(!copy.is_symlink());
        place.works(&copy);
    }
}

#[test]
fn update_replaces_the_folder_and_keeps_the_helpers() {
    let place = Place::new();
    place.add(&["-g", "-a", "claude-code"]);
    place.install_helpers();
    let skill = place.users();
    let mine = skill.join("mine");

    fs::write(&mine, "").expect("written");
    place.source.publish("README.md", "New words.\n");
    place.skills(&["update", "-g", "-y"]);
    assert_eq!(fs::read_to_string(skill.join("README.md")).expect("there"), "New words.\n");
    assert!(!mine.exists());
    place.works(&skill);

    // Other sources never use the old helpers, under any version.
    let new = "0.1.0-1";
    place.source.publish("helpers/VERSION", &format!("version={new}\n"));
    place.skills(&["update", "-g", "-y"]);
    place.is_not_installed(&skill, new);
    let place_of = |version: &str| place.home.path().join(".local/share/dispatch").join(version);
    symlink(place_of(&VERSION), place_of(new)).expect("linked");
    place.works(&skill);
}

#[test]
fn update_in_a_project_keeps_its_links() {
    let place = Place::new();
    place.add(&["-a", "claude-code", "codex"]);
    place.install_helpers();
    let link = place.home.project().join(".claude/skills/dispatch");
    fs::write(link.join("mine"), "").expect("written");
    place.source.publish("README.md", "New words.\n");
    place.skills(&["update", "-p", "-y"]);
    assert_eq!(fs::read_to_string(link.join("README.md")).expect("there"), "New words.\n");
    assert!(link.is_symlink() && !link.join("mine").exists());
    place.works(&link);
}

/// The repository as a plugin: checked, installed and used by the real Claude Code.
mod plugin {
    use std::{path::PathBuf, process::Command};

    use super::Repository;

    use dispatch::HELPERS;
    use serde_json::{Value, json};

    use crate::support::{
        claude::{Claude, Options, environment},
        model::{Model, Reply},
        process::{Home, cli},
        skill,
        story::{
            DEADLINE, Job, REPLY, Seat, asked, called, dispatcher, file, quiet, run, task, told,
            until,
        },
    };

    const CONFIG: &str = "
    default: opus
    backends: { claude: { route: cli } }
    models: { opus: { backend: claude } }
    ";

    const PAINT: Job = Job { id: "paint", model: "opus", plan: "- [ ] Paint it in their colour\n" };

    /// Runs `claude plugin …`, which needs no model, and returns what it prints.
    fn plugin(home: &Home, arguments: &[&str]) -> String {
        let model = Model::start(|_| panic!("no model is needed"));
        let mut command = Command::new(cli("claude"));
        command.arg("plugin").args(arguments).current_dir(home.project()).env_clear();
        let output = command.envs(environment(home.path(), &model)).output().expect("claude");
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// Installs the plugin, with the helpers and a config.
    fn install(home: &Home, source: &Repository) {
        skill::install_helpers(home);
        skill::configure(home, CONFIG);
        plugin(home, &["install", "dispatch", "--marketplace", &source.url()]);
    }

    /// The folder of the installed plugin.
    fn installed(home: &Home) -> PathBuf {
        let list: Value = serde_json::from_str(&plugin(home, &["list", "--json"])).expect("JSON");
        list[0]["installPath"].as_str().expect("a path").into()
    }

    #[test]
    fn plugin_manifests_are_valid_with_one_skill_and_no_hooks() {
        let home = Home::new();
        let source = Repository::serve(&home);
        let folder = source.folder().to_str().expect("UTF-8");
        let said = plugin(&home, &["validate", "--strict", "--json", folder]);
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(said["success"], true);
        let provides = said["provides"].as_object().expect("an object");
        let provides: Vec<_> = provides.iter().filter(|(_, list)| **list != json!([])).collect();
        let mut launchers = HELPERS;
        launchers.sort_unstable();
        let (launchers, skills) = (json!(launchers), json!(["dispatch:dispatch"]));
        assert_eq!(provides, [(&"bin".into(), &launchers), (&"skills".into(), &skills)]);
    }

    #[test]
    fn plugin_dispatches_and_is_woken() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        skill::allow_in(&home, &installed(&home));
        let model = Model::start(move |request| match (Seat::of(request), request.turns()) {
            (Seat::Host, _) => dispatcher(request, &[PAINT]),
            (_, 0) => run(request, "ask 'Which colour?'"),
            (_, 1) => run(request, &format!("tick 1 --note '{}'", request.last_tool_results()[0])),
            (_, 2) => run(request, "finish 'It is painted.'"),
            _ => Reply::say("That is all."),
        });
        let options = Options { asks: true, ..Options::mode("acceptEdits") };
        let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
        // The short name works beside `/dispatch:dispatch`.
        claude.say("/dispatch use opus to paint it");
        let mut permissions = until(&mut claude, &home, "Dispatched paint.");
        permissions.extend(until(&mut claude, &home, "paint asks (001)"));
        claude.say(&format!("{REPLY}green"));
        permissions.extend(until(&mut claude, &home, "Passed on: "));
        permissions.extend(until(&mut claude, &home, "paint done"));
        quiet(&home);
        assert!(claude.end(DEADLINE).success());

        assert_eq!(permissions, [""; 0]);
        assert_eq!(called(&model), ["Bash", "Bash"]);
        assert_eq!(
            told(&model),
            ["paint asks (001): \"Which colour?\"", "paint done (1/1): \"It is painted.\""]
        );
        let plan = file(task(&home, "paint").join("plan.md"));
        assert_eq!(plan, "- [x] Paint it in their colour\n  green\n");
    }

    #[test]
    fn plain_words_load_the_plugin_skill_without_prompting() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        skill::allow_in(&home, &installed(&home));
        let model = Model::start(|request| match request.turns() {
            0 => Reply::call("Skill", json!({ "skill": "dispatch:dispatch", "args": "status" })),
            _ => Reply::say("Dispatch is ready."),
        });
        let options = Options { asks: true, ..Options::mode("acceptEdits") };
        let mut claude = Claude::stream(home.path(), &home.project(), &model, &options);
        claude.say("what does dispatch do?");
        assert_eq!(until(&mut claude, &home, "Dispatch is ready."), [""; 0]);
        assert!(claude.end(DEADLINE).success());
        let shown = asked(&model, Seat::Host)[1].last_user();
        assert!(shown.contains("State now:\ndefault: opus; models: opus\n"), "{shown}");
    }

    #[test]
    fn plugin_update_needs_a_new_version_and_keeps_the_helpers() {
        let home = Home::new();
        let source = Repository::serve(&home);
        install(&home, &source);
        let old = installed(&home);
        let manifest = ".claude-plugin/plugin.json";
        let text = file(source.folder().join(manifest));
        source.publish(manifest, &text.replace(env!("CARGO_PKG_VERSION"), "99.0.1"));
        plugin(&home, &["marketplace", "update", "dispatch"]);
        plugin(&home, &["update", "dispatch@dispatch"]);
        let new = installed(&home);
        assert!(new.ends_with("99.0.1") && new != old, "{}", new.display());
        let mut launcher = Command::new(new.join("bin/dispatch-config"));
        let output = launcher.arg("path").env_clear().env("HOME", home.path()).output();
        assert!(output.expect("a launcher that can be executed").status.success());
    }
}
