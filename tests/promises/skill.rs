//! The texts for the host's model are short, and everything they name exists.

use std::collections::BTreeSet;
use std::fs;

use regex::Regex;

use crate::support::{PLAN, Sandbox, clis, repository};
use crate::worktrees::{commits, dispatch, ready, until_over};

fn read(path: &str) -> String {
    fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The frontmatter and the body of SKILL.md.
fn skill() -> (String, String) {
    let text = read("SKILL.md");
    let (front, body) =
        text.strip_prefix("---\n").and_then(|it| it.split_once("\n---\n")).expect("frontmatter");
    (front.into(), body.into())
}

/// SKILL.md and all references, with their names.
fn texts() -> Vec<(String, String)> {
    let mut texts = vec![("SKILL.md".to_string(), read("SKILL.md"))];
    for entry in fs::read_dir(repository("references")).expect("readable").flatten() {
        let path = format!("references/{}", entry.file_name().to_string_lossy());
        texts.push((path.clone(), read(&path)));
    }
    texts
}

#[test]
fn body_is_at_most_3600_bytes() {
    let (_, body) = skill();
    assert!(body.len() <= 3_600, "{} bytes", body.len());
}

#[test]
fn frontmatter_meets_the_open_specification() {
    let (front, _) = skill();
    let front: serde_json::Value = serde_yaml::from_str(&front).expect("YAML");
    assert_eq!(front["name"], "dispatch");
    let length = |key: &str| front[key].as_str().expect("a text").chars().count();
    assert!((1..=1024).contains(&length("description")));
    assert!((1..=500).contains(&length("compatibility")));
    assert_eq!(front["user-invocable"], true);
    for event in ["Stop", "StopFailure", "UserPromptSubmit"] {
        let hook = &front["hooks"][event][0]["hooks"][0];
        assert!(hook["command"].as_str().expect("a text").ends_with("dispatch-monitor\" --hook"));
        assert_eq!(hook["asyncRewake"], true);
    }
}

#[test]
fn every_named_file_exists() {
    let named = Regex::new(r"(?:references|bin)/[a-z][a-z.-]*[a-z]|`[a-z-]+\.(?:md|yaml)`");
    let named = named.expect("a regex");
    let of_a_task = ["plan.md", "prompt.md", "record.yaml", "context.md", "output.md"];
    let mut seen = BTreeSet::new();
    for (place, text) in texts() {
        for found in named.find_iter(&text) {
            let name = found.as_str().trim_matches('`');
            // `bin/dispatch-*` in a permission rule stands for all helpers.
            if of_a_task.contains(&name) || text[found.end()..].starts_with("-*") {
                continue;
            }
            let path = if name.contains('/') { name.into() } else { format!("references/{name}") };
            assert!(repository(&path).is_file(), "{place} names {name}");
            seen.insert(path);
        }
    }
    // A reference that no text names is never read.
    for (place, _) in texts().iter().skip(1) {
        assert!(seen.contains(place), "no text names {place}");
    }
}

/// Every command line in the texts: the helper, and the words after it to the end of the code.
fn calls() -> Vec<(String, String, String)> {
    let call = Regex::new(r#"(dispatch-(?:config|spawn|monitor|reconcile|worker))"?([^`\n]*)"#);
    let call = call.expect("a regex");
    let mut calls = Vec::new();
    for (place, text) in texts() {
        for found in call.captures_iter(&text) {
            calls.push((place.clone(), found[1].to_string(), found[2].to_string()));
        }
    }
    // Two references name the helper once, and then only its subcommands.
    let span = Regex::new(r"`((?:setup|[a-z]+-(?:default|model|alias|backend)) [^`]*)`");
    let span = span.expect("a regex");
    for place in ["references/config-modification.md", "references/first-run-setup.md"] {
        for found in span.captures_iter(&read(place)) {
            calls.push((place.into(), "dispatch-config".into(), format!(" {}", &found[1])));
        }
    }
    calls
}

#[test]
fn every_named_subcommand_and_option_is_accepted() {
    let sandbox = Sandbox::new();
    let word = Regex::new(r"^ ([a-z]+(?:-[a-z]+)*)(?: |$|\))").expect("a regex");
    let option = Regex::new(r"(?:^| )(--[a-z]+(?:-[a-z]+)*)").expect("a regex");
    let (mut subcommands, mut options) = (BTreeSet::new(), BTreeSet::new());
    for (place, helper, rest) in calls() {
        let help = sandbox.ok(&helper, &["--help"]);
        let has_subcommands = help.contains("\nCommands:\n");
        let mut help_of_all = help.clone();
        if let Some(found) = word.captures(&rest).filter(|_| has_subcommands) {
            let name = found[1].to_string();
            assert!(help.contains(&format!("\n  {name} ")), "{place}: {helper} {name}");
            help_of_all.push_str(&sandbox.ok(&helper, &[&name, "--help"]));
            subcommands.insert(format!("{helper} {name}"));
        }
        for found in option.captures_iter(&rest) {
            let name = &found[1];
            let known = Regex::new(&format!("{name}(?:[ \n=,]|$)")).expect("a regex");
            assert!(known.is_match(&help_of_all), "{place}: {helper}{rest}: no {name}");
            options.insert(format!("{helper} {name}"));
        }
    }
    // An empty search would pass, so these must be among the hits.
    for known in [
        "dispatch-config brief",
        "dispatch-config set-default",
        "dispatch-config remove-alias",
        "dispatch-config setup",
        "dispatch-reconcile show",
        "dispatch-reconcile note",
    ] {
        assert!(subcommands.contains(known), "{subcommands:?}");
    }
    for known in ["dispatch-spawn --model", "dispatch-monitor --hook"] {
        assert!(options.contains(known), "{options:?}");
    }
    // SKILL.md also names options without their helper.
    let helps = ["dispatch-config", "dispatch-spawn", "dispatch-monitor", "dispatch-reconcile"];
    let helps: String = helps.iter().map(|helper| sandbox.ok(helper, &["--help"])).collect();
    for found in option.captures_iter(&skill().1.replace('`', " ")) {
        assert!(helps.contains(&found[1]), "SKILL.md: {}", &found[1]);
    }
}

/// The command lines of the pages that a person or a model types, with what they stand for: the lines of
/// code blocks, and code spans with a helper and an argument.
fn typed_commands(page: &str) -> BTreeSet<(String, String)> {
    let helper = "dispatch-(?:config|spawn|monitor|reconcile)";
    let block = Regex::new(&format!(r#"(?m)^ *(?:"[^"\n]*/bin/)?({helper})"?( [^#\n]*)$"#));
    let commented = Regex::new(&format!("(?m)^({helper})( [^#\n]*?) +#"));
    let span = Regex::new(&format!(r#"`(?:"[^"`\n]*/bin/)?({helper})"?( [^`\n]*)`"#));
    let mut found = BTreeSet::new();
    for pattern in [block, commented, span] {
        for it in pattern.expect("a regex").captures_iter(page) {
            let words = it[2]
                .split(" <<")
                .next()
                .unwrap_or_default()
                .split(" ||")
                .next()
                .unwrap_or_default()
                .trim();
            found.insert((it[1].to_string(), words.to_string()));
        }
    }
    found
}

/// A project in which the command can be run, and the arguments with the placeholders filled in.
fn prepared(helper: &str, words: &str) -> (Sandbox, Vec<String>) {
    let sandbox = if helper == "dispatch-config" {
        let clis = [("claude", clis::CLAUDE), ("codex", clis::CODEX)];
        let sandbox = Sandbox::with_clis(&clis);
        sandbox.config(
            "default: opus\nbackends: { claude: {}, codex: {} }\n\
             models: { opus: { backend: claude }, sonnet: { backend: claude }, \
             gpt-6: { backend: codex } }\n",
        );
        sandbox
    } else {
        let sandbox = ready(&[("fails", "exit 7"), ("commits", &commits())]);
        match words.split(' ').next() {
            Some("merge" | "clean") => {
                dispatch(&sandbox, "x", "commits");
                sandbox.wait_for_state("x", "done");
                until_over(&sandbox, "x");
                if words.starts_with("clean") {
                    sandbox.ok("dispatch-reconcile", &["merge", "x"]);
                }
            }
            _ if words.contains("--resume") => {
                sandbox.dispatch("x", "fails");
                sandbox.wait_for_state("x", "failed: exit code 7");
                until_over(&sandbox, "x");
            }
            _ => sandbox.dispatch("x", "idle"),
        }
        if words.contains("--answer") {
            let ask = sandbox.worker("x", &["ask", "Which?"]).env("DISPATCH_WAIT_MS", "0").run();
            assert_eq!(ask.code, Some(75), "{}", ask.err);
        }
        sandbox
    };
    let word = Regex::new("'[^']*'|[^ ]+").expect("a regex");
    let filled = word.find_iter(words).map(|word| {
        let word = word.as_str().trim_matches('\'');
        match word {
            "TASK" | "ID" if helper != "dispatch-config" => "x",
            "TEXT" => "Only the parser.",
            "ITEM" => "1",
            "NAME" if helper != "dispatch-config" => "idle",
            "NAME" => "opus",
            "MODEL" => "sonnet",
            "BACKEND" => "codex",
            "LEVEL" => "read",
            word => word,
        }
        .to_string()
    });
    let filled = filled.collect();
    (sandbox, filled)
}

#[test]
fn every_command_of_the_pages_runs() {
    let mut all = typed_commands(&read("README.md"));
    texts().iter().for_each(|(_, text)| all.extend(typed_commands(text)));
    // Skip names of commands without their arguments; the hook of the host has tests of its own.
    let is_name = |words: &str| ["note", "show", "--dry-run", "--hook"].contains(&words);
    all.retain(|(_, words)| !words.contains('…') && !is_name(words));
    assert!(all.len() >= 20, "{all:?}");
    let mut failed = Vec::new();
    for (helper, words) in &all {
        let new_plan = words.contains("--plan -");
        let (sandbox, mut args) = prepared(helper, words);
        if new_plan {
            args = args.iter().map(|it| if it == "x" { "y".into() } else { it.clone() }).collect();
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let call = match helper.as_str() {
            "dispatch-config" => sandbox.configure(&args),
            _ => sandbox.call(helper, &args),
        };
        let ran = call.input(PLAN).run();
        if ran.code != Some(0) {
            failed.push(format!("{helper} {words}: {:?}\n{}{}", ran.code, ran.out, ran.err));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn security_page_names_existing_tests() {
    let name = Regex::new("`(host )?([a-z_]+)::([a-z_0-9]+)`").expect("a regex");
    let page = read("SECURITY.md");
    let named: Vec<_> = name.captures_iter(&page).filter(|it| &it[2] != "file").collect();
    assert!(named.len() > 30, "{}", named.len());
    for it in named {
        let folder = if it.get(1).is_some() { "tests/host" } else { "tests/promises" };
        let source = read(&format!("{folder}/{}.rs", &it[2]));
        assert!(source.contains(&format!("fn {}()", &it[3])), "SECURITY.md: {}", &it[0]);
    }
}

#[test]
fn example_config_is_valid() {
    let sandbox = Sandbox::with_clis(&[("claude", clis::CLAUDE), ("codex", clis::CODEX)]);
    sandbox.config(&read("references/config-example.yaml"));
    let said = sandbox.configure(&["check"]).run().ok();
    assert!(said.contains("config.yaml is valid\n"), "{said}");
}

#[test]
fn worker_prompt_names_existing_calls() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[]);
    sandbox.dispatch("x", "idle");
    let help = sandbox.worker("x", &["--help"]).run().ok();
    let prompt = sandbox.read("x", "prompt.md");
    let (_, calls) = prompt.split_once("\nwith one of\n").expect("the calls");
    let (calls, _) = calls.split_once("\n\n").expect("their end");
    let names: Vec<&str> = calls
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(names, ["tick", "ask", "tell", "report", "block", "fail", "finish"]);
    for name in names {
        assert!(help.contains(&format!("\n  {name} ")), "{name}");
    }
}
