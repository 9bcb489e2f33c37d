use std::fs;

use super::*;

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

    /// Written by a process of its own: while another test forks, the new process would share our
    /// open file, and running a program that is open for writing fails ("text file busy").
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
        detect_in(self.0.path().as_os_str(), &extra)
    }

    /// What there is to say when there is just one.
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

const HANGS: &str = "sleep 1000 & echo $! >\"$0.pid\"; wait";

fn ids(listing: &Listing) -> Vec<&str> {
    listing.models.iter().map(|model| model.id.as_str()).collect()
}

#[test]
fn who_is_here_in_which_version_and_logged_in_or_not() {
    let json = r#"echo '{ "loggedIn": true }'"#;
    let fakes = Fakes::new(&[
        (
            "claude",
            &answers(&[("--version", "echo '2.1.329 (Claude Code)'"), ("auth status", json)]),
        ),
        ("codex", &codex("0.169.0", "echo 'Not logged in' >&2; exit 1")),
        ("qwen", "echo 0.15.10"),
        ("copilot", "echo 'copilot version: v1.34.0'"),
        ("harvey", "touch \"$0.was-run\""),
    ]);
    let found = fakes.detect(&[("harvey", "harvey"), ("gone", "gone"), ("fast", "codex")]);
    let rows: Vec<_> = found
        .iter()
        .map(|f| (f.backend.as_str(), f.version.as_deref(), f.logged_in, f.problem.as_deref()))
        .collect();
    // Whoever runs the tests may have a key.
    let key = std::env::var_os("CODEX_API_KEY").is_some_and(|key| !key.is_empty());
    assert_eq!(
        rows,
        [
            ("claude", Some("2.1.329"), Some(true), None),
            ("codex", Some("0.169.0"), Some(key), None),
            ("qwen", Some("0.15.10"), None, None),
            ("harvey", None, None, None),
            ("fast", Some("0.169.0"), Some(key), None),
        ]
    );
    assert!(found.iter().all(|found| found.usable() && found.program.is_absolute()));
    assert!(!fakes.0.path().join("harvey.was-run").exists());
}

#[test]
fn an_agent_is_cursors_only_if_its_version_says_so() {
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
        let found: Vec<_> = found.iter().map(|f| (f.backend.as_str(), name(&f.program))).collect();
        let expected: Vec<_> = expected.into_iter().map(|name| ("cursor", name)).collect();
        assert_eq!(found, expected, "{clis:?}");
    }
    // The config may call it so all the same: then it is there, and nothing is known of it.
    let fakes = Fakes::new(&[("agent", "echo 0.3")]);
    let found = fakes.detect(&[("grok", "agent")]);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].backend.as_str(), &found[0].version), ("grok", &None));
    assert!(models(&found, &fakes.cache(), false).is_empty());
}

#[test]
fn a_program_of_the_config_comes_before_that_in_the_path() {
    let fakes = Fakes::new(&[("codex", &codex("0.169.0", "true"))]);
    let other = fakes.add("old/codex", &codex("0.146.0", "true"));
    let program = other.to_str().expect("text");
    let version = |extra: &[(&str, &str)]| fakes.detect(extra)[0].version.clone();
    assert_eq!(version(&[]).as_deref(), Some("0.169.0"));
    assert_eq!(version(&[("codex", "codex")]).as_deref(), Some("0.169.0"));
    assert_eq!(version(&[("codex", program)]).as_deref(), Some("0.146.0"));
    assert_eq!(version(&[("codex", "old/gone/codex")]).as_deref(), Some("0.169.0"));
    // What the config calls codex is not what we know by that name.
    fakes.add("wrapper", "exit 1");
    assert_eq!(fakes.detect(&[("codex", "wrapper")])[0].version, None);
    assert_eq!(removed_flags("codex", version(&[("codex", program)]).as_deref()), []);
    assert_eq!(removed_flags("codex", version(&[]).as_deref()).len(), 1);
}

#[test]
fn a_file_that_cannot_run_is_passed_by_and_the_first_in_the_path_counts() {
    let fakes = Fakes::new(&[("1/codex", "exit 1"), ("2/codex", &codex("0.146.0", "true"))]);
    fakes.add("3/codex", &codex("0.169.0", "true"));
    fs::create_dir(fakes.0.path().join("0")).expect("made");
    fs::create_dir(fakes.0.path().join("0/codex")).expect("a directory of that name");
    let plain = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(fakes.0.path().join("1/codex"), plain).expect("no longer executable");
    let directories = ["gone", "0", "1", "2", "3", "2"].map(|name| fakes.0.path().join(name));
    let path = std::env::join_paths(directories).expect("a PATH");
    let found = detect_in(&path, &[]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].program, fakes.0.path().join("2/codex"));
    assert_eq!(found[0].version.as_deref(), Some("0.146.0"));
}

#[test]
fn what_hangs_delays_nobody_and_is_ended_with_what_it_started() {
    let login_hangs = answers(&[("--version", "echo 2.1.329"), ("auth status", HANGS)]);
    let fakes = Fakes::new(&[
        ("claude", &login_hangs),
        ("codex", HANGS),
        // What it starts holds the pipe and outlives it, and nobody waits for that.
        ("gemini", "sleep 1000 & echo $! >\"$0.pid\"; echo 0.61.0"),
        ("qwen", "trap '' TERM INT HUP; while :; do sleep 1000; done"),
        ("droid", "echo 0.215.0"),
    ]);
    let start = Instant::now();
    let found = fakes.detect(&[]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let rows: Vec<_> = found.iter().map(|f| (f.backend.as_str(), f.version.as_deref())).collect();
    assert_eq!(
        rows,
        [
            ("claude", Some("2.1.329")),
            ("codex", None),
            ("gemini", Some("0.61.0")),
            ("qwen", None),
            ("droid", Some("0.215.0")),
        ]
    );
    let usable: Vec<_> = found.iter().map(InstalledCli::usable).collect();
    assert_eq!(usable, [true, false, true, false, true]);
    let problem = |at: usize| found[at].problem.as_deref().unwrap_or_default();
    assert!(problem(0).starts_with("`claude auth status` did not answer in 1."), "{}", problem(0));
    assert!(problem(1).starts_with("`codex --version` did not answer in 1."), "{}", problem(1));
    assert!(problem(1).ends_with(" s"), "its process did not end: {}", problem(1));
    for name in ["claude.pid", "codex.pid"] {
        let pid = fakes.file(name).trim().parse().expect("a pid");
        while crate::process::Identity::of_pid(pid).expect("visible").is_some() {
            assert!(start.elapsed() < Duration::from_secs(20), "{name} survived");
            thread::yield_now();
        }
    }
    let left: i32 = fakes.file("gemini.pid").trim().parse().expect("a pid");
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), Signal::SIGKILL);
    let listed = models(&found[1..2], &fakes.cache(), false);
    assert!(matches!(&listed[..], [Err((backend, _))] if backend == "codex"));
}

#[test]
#[cfg(target_os = "linux")] // macOS has no setsid program.
fn a_process_that_leaves_its_group_is_told_of() {
    let fakes = Fakes::new(&[("x", "setsid sleep 3 & sleep 1000")]);
    let until = Instant::now() + Duration::from_millis(100);
    let problem = ask(&fakes.0.path().join("x"), &[], until).err().unwrap_or_default();
    assert!(problem.ends_with(", and what it started does not end"), "{problem}");
    assert!(until.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_cli_that_fails_is_named_with_what_it_said() {
    let rows = [
        (
            "echo 'sh: node: not found' >&2; exit 127",
            "`codex --version` ended with 127: sh: node: not found",
        ),
        ("exit 3", "`codex --version` ended with 3: it said nothing"),
        ("kill -9 $$", "`codex --version` ended by a signal: it said nothing"),
        ("echo hello", "`codex --version` says no version: hello"),
        ("head -c 50000000 /dev/zero; sleep 1000", "`codex --version` prints more than 8 MB"),
        ("yes", "`codex --version` prints more than 8 MB"),
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
    assert!(problem.starts_with("`codex --version` cannot run: No such file"), "{problem}");
}

#[test]
fn the_package_that_a_program_leads_into_says_the_version() {
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
    assert_eq!(fakes.one().version, None);

    // One that has a login to be asked for is run all the same; slow is not the same as broken.
    fs::remove_file(fakes.0.path().join("gemini")).expect("removed");
    fs::write(&package, r#"{"name":"@openai/codex","version":"0.169.0"}"#).expect("written");
    std::os::unix::fs::symlink(&script, fakes.0.path().join("codex")).expect("linked");
    let found = fakes.one();
    assert_eq!(found.version.as_deref(), Some("0.169.0"));
    assert!(found.problem.as_ref().is_some_and(|p| p.contains("did not answer")) && found.usable());
}

#[test]
fn the_models_of_each_and_why_not() {
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
        ("claude", &answers(&[("--version", "echo 2.1.329")])),
        ("codex", &codex("0.169.0", "true")),
        ("cursor-agent", &cursor(listed)),
        ("gemini", "echo 0.61.0"),
        (
            "opencode",
            &answers(&[("--version", "echo 1.18.33"), ("models", "echo opencode/big-pickle")]),
        ),
        ("amp", "echo 0.0.1790142911-g7618fb"),
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
    assert_eq!(rows[5], ("amp", vec!["amp has modes and no models"], None));

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
fn a_list_is_asked_again_when_it_is_old_or_of_another_version_or_login() {
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

    // Everything that makes the cache useless, one after the other.
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

    // A CLI that fails has its old list, with the old date, unless the person wants a new one.
    fs::write(fakes.0.path().join("opencode.fails"), "").expect("written");
    date("2020-01-01T00:00:00Z");
    let old = list(&found, false).expect("the old list");
    assert_eq!(old.asked.as_deref(), Some("2020-01-01T00:00:00Z"));
    assert!(list(&found, true).is_err());
}

#[test]
fn a_cli_is_asked_outside_of_projects_without_colours_and_input() {
    let fakes = Fakes::new(&[("x", "pwd; echo \"$NO_COLOR\"; cat; test -t 0 || echo no terminal")]);
    let until = Instant::now() + Duration::from_secs(20);
    let said = ask(&fakes.0.path().join("x"), &[], until).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(said.out, "/\n1\nno terminal\n");
}
