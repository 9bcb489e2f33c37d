//! The texts for the host's model are short, and everything they name exists.

use std::collections::BTreeSet;
use std::fs;

use regex::Regex;

use crate::support::{Sandbox, clis, repository};

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
