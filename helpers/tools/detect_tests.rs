use std::fs;
use std::process::Command;

use super::*;
use crate::tools::detect::Answer;
use crate::tools::models::{Listing, Source, models};

/// Longer than any fake CLI takes to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of fake CLIs that stands for the whole `PATH`.
struct Fakes(tempfile::TempDir);

impl Fakes {
    fn new(clis: &[(&str, &str)]) -> Self {
        let fakes = Self(tempfile::tempdir().expect("a directory"));
        for (name, script) in clis {
            fakes.add(name, script);
        }
        fakes
    }

    /// Writes a CLI in another process: a child that another test forks would share our open file,
    /// and a program that is open for writing cannot be run ("text file busy").
    fn add(&self, name: &str, script: &str) -> PathBuf {
        let path = self.0.path().join(name);
        let text = format!("#!/bin/sh\n{script}\n");
        let status = Command::new("sh")
            .args([
                "-c",
                "mkdir -p \"${1%/*}\" && printf %s \"$2\" >\"$1\" && chmod +x \"$1\"",
                "sh",
            ])
            .arg(&path)
            .arg(&text)
            .status();
        assert!(status.expect("a shell").success());
        path
    }

    fn detect(&self, extra: &[(&str, &str)]) -> Vec<InstalledCli> {
        let extra: Vec<_> = extra.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        detect_in(self.0.path().as_os_str(), &extra, Asker::new(PATIENCE, Duration::ZERO))
    }

    /// The only CLI that is found.
    fn one(&self) -> InstalledCli {
        let mut found = self.detect(&[]);
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache/models.json")
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }
}

/// A shell script that answers each of these command lines.
fn answers(rows: &[(&str, &str)]) -> String {
    let arms = rows.iter().map(|(args, answer)| format!("'{args}') {answer} ;;\n"));
    format!(
        "case \"$*\" in\n{}*) echo \"no such command: $*\" >&2; exit 2 ;;\nesac",
        arms.collect::<String>()
    )
}

fn codex(version: &str, login: &str) -> String {
    answers(&[
        ("--version", &format!("echo codex-cli {version}")),
        ("login status", login),
        (
            "debug models",
            r#"echo '{"models":[{"slug":"gpt-6","display_name":"GPT-6","visibility":"list"}]}'"#,
        ),
    ])
}

fn ids(listing: &Listing) -> Vec<&str> {
    listing.models.iter().map(|model| model.id.as_str()).collect()
}

#[test]
fn installed_clis_have_a_version_and_a_login() {
    let json = r#"echo '{ "loggedIn": true }'"#;
    let fakes = Fakes::new(&[
        (
            "claude",
            &answers(&[("--version", "echo '2.1.332 (Claude Code)'"), ("auth status", json)]),
        ),
        ("codex", &codex("0.171.0", "echo 'Not logged in' >&2; exit 1")),
        ("qwen", "echo 0.24.4"),
        ("copilot", "echo 'copilot version: v1.34.0'"),
        ("harvey", "touch \"$0.was-run\""),
    ]);
    let found = fakes.detect(&[("harvey", "harvey"), ("gone", "gone"), ("fast", "codex")]);
    let rows: Vec<_> = found
        .iter()
        .map(|f| (f.backend.as_str(), f.version.as_deref(), f.logged_in, f.problem.as_deref()))
        .collect();
    // The person who runs the tests may have a key.
    let key = std::env::var_os("CODEX_API_KEY").is_some_and(|key| !key.is_empty());
    assert_eq!(
        rows,
        [
            ("claude", Some("2.1.332"), Some(true), None),
            ("codex", Some("0.171.0"), Some(key), None),
            ("qwen", Some("0.24.4"), None, None),
            ("harvey", None, None, None),
            ("fast", Some("0.171.0"), Some(key), None),
        ]
    );
    assert!(found.iter().all(|found| found.usable() && found.program.is_absolute()));
    assert!(!fakes.0.path().join("harvey.was-run").exists());
}

#[test]
fn agent_is_cursors_only_if_its_version_says_so() {
    let cursor = "echo 2026.01.28-fd13201";
    let rows = [
        (vec![("agent", cursor)], Some("agent")),
        (vec![("agent", "echo 0.3")], None),
        (vec![("agent", "exit 127")], None),
        (vec![("agent", cursor), ("cursor-agent", cursor)], Some("cursor-agent")),
        (vec![("agent", cursor), ("cursor-agent", "exit 1")], Some("agent")),
        (vec![("agent", "echo 0.3"), ("cursor-agent", "exit 1")], Some("cursor-agent")),
    ];
    for (clis, expected) in rows {
        let fakes = Fakes::new(&clis);
        let found = fakes.detect(&[]);
        let found: Vec<_> =
            found.iter().map(|f| (f.backend.as_str(), file_name(&f.program))).collect();
        let expected: Vec<_> = expected.into_iter().map(|name| ("cursor", name)).collect();
        assert_eq!(found, expected, "{clis:?}");
    }
    // A config may name the program all the same: it is found, and nothing is known about it.
    let fakes = Fakes::new(&[("agent", "echo 0.3")]);
    let found = fakes.detect(&[("grok", "agent")]);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].backend.as_str(), &found[0].version), ("grok", &None));
    assert!(models(&found, &fakes.cache(), false).is_empty());
}

#[test]
fn program_of_the_config_comes_before_that_of_the_path() {
    let fakes = Fakes::new(&[("codex", &codex("0.171.0", "true"))]);
    let other = fakes.add("old/codex", &codex("0.146.0", "true"));
    let program = other.to_str().expect("text");
    let version = |extra: &[(&str, &str)]| fakes.detect(extra)[0].version.clone();
    assert_eq!(version(&[]).as_deref(), Some("0.171.0"));
    assert_eq!(version(&[("codex", "codex")]).as_deref(), Some("0.171.0"));
    assert_eq!(version(&[("codex", program)]).as_deref(), Some("0.146.0"));
    assert_eq!(version(&[("codex", "old/gone/codex")]).as_deref(), Some("0.171.0"));
    // A config may give the name of a known CLI to another program.
    fakes.add("wrapper", "exit 1");
    assert_eq!(fakes.detect(&[("codex", "wrapper")])[0].version, None);
}

#[test]
fn first_executable_file_of_the_path_is_the_program() {
    let fakes = Fakes::new(&[("1/codex", "exit 1"), ("2/codex", &codex("0.146.0", "true"))]);
    fakes.add("3/codex", &codex("0.171.0", "true"));
    fs::create_dir(fakes.0.path().join("0")).expect("made");
    fs::create_dir(fakes.0.path().join("0/codex")).expect("a directory of that name");
    let plain = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(fakes.0.path().join("1/codex"), plain).expect("no longer executable");
    let directories = ["gone", "0", "1", "2", "3", "2"].map(|name| fakes.0.path().join(name));
    let path = std::env::join_paths(directories).expect("a PATH");
    let found = detect_in(&path, &[], Asker::new(PATIENCE, Duration::ZERO));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].program, fakes.0.path().join("2/codex"));
    assert_eq!(found[0].version.as_deref(), Some("0.146.0"));
}

#[test]
fn hanging_cli_is_named_and_not_usable() {
    let fakes = Fakes::new(&[("codex", "exec sleep 1000")]);
    let asker = Asker::new(Duration::ZERO, Duration::ZERO);
    let found = detect_in(fakes.0.path().as_os_str(), &[], asker);
    let problem = found[0].problem.as_deref().unwrap_or_default();
    assert!(problem.starts_with("slow: `codex --version` did not answer in "), "{problem}");
    assert!(!found[0].usable());
    let listed = models(&found, &fakes.cache(), false);
    assert_eq!(listed, [Err(("codex".into(), problem.into()))]);
}

#[test]
fn cli_whose_login_cannot_be_asked_is_usable() {
    let script = answers(&[("--version", "echo 2.1.332"), ("auth status", "yes")]);
    let found = Fakes::new(&[("claude", &script)]).one();
    assert_eq!(
        found.problem.as_deref(),
        Some("`claude auth status` failed: it printed more than 8192 KB")
    );
    assert!(found.usable() && found.logged_in.is_none());
}

#[test]
fn failing_cli_is_named_with_its_message() {
    let rows = [
        (
            "echo 'sh: node: not found' >&2; exit 127",
            "`codex --version` ended with 127: sh: node: not found",
        ),
        ("exit 3", "`codex --version` ended with 3: it said nothing"),
        ("kill -9 $$", "`codex --version` ended by a signal: it said nothing"),
        ("echo hello", "`codex --version` says no version: hello"),
        (
            "head -c 50000000 /dev/zero; sleep 1000",
            "`codex --version` failed: it printed more than 8192 KB",
        ),
        ("yes", "`codex --version` failed: it printed more than 8192 KB"),
    ];
    for (script, expected) in rows {
        let found = Fakes::new(&[("codex", script)]).one();
        assert_eq!(found.problem.as_deref(), Some(expected));
        assert!(!found.usable() && found.version.is_none());
    }
    let fakes = Fakes::new(&[("codex", "")]);
    fs::remove_file(fakes.0.path().join("codex")).expect("removed");
    let missing = Command::new("sh")
        .args(["-c", "printf '#!/no/such/program\\n' >\"$1\"; chmod +x \"$1\"", "sh"])
        .arg(fakes.0.path().join("codex"))
        .status();
    assert!(missing.expect("a shell").success());
    let problem = fakes.one().problem.unwrap_or_default();
    assert!(problem.starts_with("`codex --version` failed: No such file"), "{problem}");
}

#[test]
fn npm_package_of_a_program_tells_the_version() {
    let fakes = Fakes::new(&[]);
    let script = fakes.add("modules/gemini-cli/bundle/gemini.js", "sleep 1000");
    let package = fakes.0.path().join("modules/gemini-cli/package.json");
    fs::write(&package, r#"{"name":"@google/gemini-cli","version":"0.61.0"}"#).expect("written");
    fs::write(script.with_file_name("package.json"), r#"{"type":"module"}"#).expect("written");
    std::os::unix::fs::symlink(&script, fakes.0.path().join("gemini")).expect("linked");
    let found = fakes.one();
    assert_eq!((found.version.as_deref(), found.problem), (Some("0.61.0"), None));
    assert_eq!(found.program, fakes.0.path().join("gemini"));
    fs::write(&package, r#"{"name":"another","version":"1.0"}"#).expect("written");
    let impatient = || {
        let asker = Asker::new(Duration::ZERO, Duration::ZERO);
        detect_in(fakes.0.path().as_os_str(), &[], asker).remove(0)
    };
    assert_eq!(impatient().version, None);

    // A CLI with a login to ask for is run all the same; a slow one is usable.
    fs::remove_file(fakes.0.path().join("gemini")).expect("removed");
    fs::write(&package, r#"{"name":"@openai/codex","version":"0.171.0"}"#).expect("written");
    std::os::unix::fs::symlink(&script, fakes.0.path().join("codex")).expect("linked");
    let found = impatient();
    assert_eq!(found.version.as_deref(), Some("0.171.0"));
    assert!(found.problem.as_ref().is_some_and(|p| p.contains("did not answer")) && found.usable());
}

#[test]
fn each_cli_lists_its_models_or_says_why_not() {
    let cursor = |models: &str| {
        answers(&[
            ("--version", "echo 2026.01.28-fd13201"),
            ("status --format json", r#"echo '{"isAuthenticated":true}'"#),
            ("models", models),
        ])
    };
    let listed = "printf '\\033[2KAvailable models\\r\\n\\r\\nauto - Auto (current, default)\\r\\n\
        gpt-5.3-codex-low - Codex 5.3 Low\\r\\n\\r\\nTip: use --model <id> to switch.\\r\\n'";
    let fakes = Fakes::new(&[
        ("claude", &answers(&[("--version", "echo 2.1.332")])),
        ("codex", &codex("0.171.0", "true")),
        ("cursor-agent", &cursor(listed)),
        ("gemini", "echo 0.61.0"),
        (
            "opencode",
            &answers(&[("--version", "echo 1.18.33"), ("models", "echo opencode/big-pickle")]),
        ),
    ]);
    let found = fakes.detect(&[]);
    let listings = models(&found, &fakes.cache(), false);
    let rows: Vec<_> = listings
        .iter()
        .map(|listing| match listing {
            Ok(listing) => (listing.backend.as_str(), ids(listing), Some(listing.source)),
            Err((backend, why)) => {
                (backend.as_str(), vec![why.split(':').next().expect("a word")], None)
            }
        })
        .collect();
    assert_eq!(rows[0], ("claude", vec!["opus", "sonnet", "haiku", "fable"], Some(Source::Stable)));
    assert_eq!(rows[1], ("codex", vec!["gpt-6"], Some(Source::Asked)));
    assert_eq!(rows[2], ("cursor", vec!["auto", "gpt-5.3-codex-low"], Some(Source::Asked)));
    assert_eq!((rows[3].0, rows[3].2), ("gemini", Some(Source::Curated)));
    assert_eq!(rows[4], ("opencode", vec!["opencode/big-pickle"], Some(Source::Asked)));

    let reasons = [
        (
            "echo 'No models available for this account.'",
            "`cursor-agent models` lists no model: No models available for this account.",
        ),
        (
            "echo 'Authentication required.' >&2; exit 1",
            "`cursor-agent models` ended with 1: Authentication required.",
        ),
    ];
    for (script, why) in reasons {
        let fakes = Fakes::new(&[("cursor-agent", &cursor(script))]);
        let listings = models(&fakes.detect(&[]), &fakes.cache(), false);
        assert_eq!(listings, [Err(("cursor".into(), why.into()))]);
    }
    // Codex 0.120 cannot list its models yet.
    let old = answers(&[("--version", "echo codex-cli 0.120.0"), ("login status", "true")]);
    let fakes = Fakes::new(&[("codex", &old)]);
    let why = "`codex debug models` ended with 2: no such command: debug models";
    let listings = models(&fakes.detect(&[]), &fakes.cache(), false);
    assert_eq!(listings, [Err(("codex".into(), why.into()))]);
}

#[test]
fn list_is_asked_again_when_old_or_of_another_version_or_login() {
    let counted = |version: &str| {
        let list =
            "echo x >>\"$0.calls\"; if test -e \"$0.fails\"; then exit 1; else echo opencode/a; fi";
        answers(&[("--version", &format!("echo {version}")), ("models", list)])
    };
    let fakes = Fakes::new(&[("opencode", &counted("1.18.33"))]);
    let calls = || fakes.file("opencode.calls").lines().count();
    let mut found = fakes.detect(&[]);
    let list = |found: &[InstalledCli], refresh| models(found, &fakes.cache(), refresh).remove(0);
    let first = list(&found, false).expect("a list");
    let asked = first.asked.clone().expect("a date");
    assert!(humantime::parse_rfc3339(&asked).is_ok());
    assert_eq!((list(&found, false), calls()), (Ok(first.clone()), 1));
    assert!(list(&found, true).is_ok());
    assert_eq!(calls(), 2);

    // Each of these makes the cache useless.
    let date = |date: &str| {
        let mut cache: serde_json::Value =
            serde_json::from_str(&fakes.file("cache/models.json")).expect("JSON");
        cache[0]["listing"]["asked"] = date.into();
        fs::write(fakes.cache(), cache.to_string()).expect("written");
    };
    let spoil: [&dyn Fn(&mut InstalledCli); 6] = [
        &|_| date("2020-01-01T00:00:00Z"),
        &|_| date("2999-01-01T00:00:00Z"),
        &|_| date("yesterday"),
        &|found| found.version = Some("1.19.0".into()),
        &|found| found.logged_in = Some(true),
        &|_| fs::write(fakes.cache(), "[{").expect("written"),
    ];
    for (asked_before, spoil) in (2..).zip(spoil) {
        spoil(&mut found[0]);
        assert!(list(&found, false).is_ok());
        assert_eq!(calls(), asked_before + 1);
        assert!(list(&found, false).is_ok());
        assert_eq!(calls(), asked_before + 1, "it was not kept");
    }

    // A CLI that fails keeps its old list with the old date, unless a new list is asked for.
    fs::write(fakes.0.path().join("opencode.fails"), "").expect("written");
    date("2020-01-01T00:00:00Z");
    let old = list(&found, false).expect("the old list");
    assert_eq!(old.asked.as_deref(), Some("2020-01-01T00:00:00Z"));
    assert!(list(&found, true).is_err());
}

#[test]
fn cli_is_asked_outside_of_projects_without_colours_and_input() {
    let fakes = Fakes::new(&[("x", "pwd; echo \"$NO_COLOR\"; cat; test -t 0 || echo no terminal")]);
    let asker = Asker::new(PATIENCE, Duration::ZERO);
    let answer = asker.ask(&fakes.0.path().join("x"), &[]).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(answer.out, "/\n1\nno terminal\n");
}

#[test]
fn version_is_the_first_word_that_begins_like_one() {
    let rows = [
        ("2.1.332 (Claude Code)\n", Some("2.1.332")),
        ("codex-cli 0.171.0\n", Some("0.171.0")),
        ("codex-cli 0.147.0-alpha.3\n", Some("0.147.0-alpha.3")),
        ("2026.01.28-fd13201\n", Some("2026.01.28-fd13201")),
        (
            "GitHub Copilot CLI 1.0.102.\nRun 'copilot update' to check for updates.\n",
            Some("1.0.102"),
        ),
        ("v0.61.0", Some("0.61.0")),
        ("unknown option --version", None),
        ("", None),
    ];
    for (text, version) in rows {
        assert_eq!(version_in(text).as_deref(), version, "{text}");
    }
}

#[test]
fn answer_says_whether_a_cli_is_logged_in() {
    let (yes, no) = ("\"loggedIn\": true", "\"loggedIn\": false");
    let rows = [
        ("claude", 0, format!("{{\n  {yes},\n  \"authMethod\": \"api_key\"\n}}\n"), "", Some(true)),
        ("claude", 1, format!("{{\n  {no},\n  \"authMethod\": \"none\"\n}}\n"), "", Some(false)),
        ("claude", 1, "error: unknown command 'auth'".into(), "", None),
        ("codex", 0, "Logged in using ChatGPT\n".into(), "", Some(true)),
        ("codex", 1, String::new(), "Not logged in\n", Some(false)),
        ("codex", 1, String::new(), "Error loading configuration: invalid type\n", None),
        ("cursor", 0, "{\"isAuthenticated\":true}".into(), "", Some(true)),
        ("cursor", 0, "{\"isAuthenticated\":false}".into(), "", Some(false)),
        ("cursor", 0, "Not logged in".into(), "", None),
    ];
    for (backend, code, out, err, expected) in rows {
        let cli = crate::tools::by_name(backend).expect("a CLI");
        let (_, read) = cli.login_status.expect("a question");
        let answer = Answer { code: Some(code), out, err: err.into(), ..Answer::default() };
        assert_eq!(read(&answer), expected, "{backend}: {}{}", answer.out, answer.err);
    }
}
