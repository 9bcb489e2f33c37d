//! The layers of the code: a module uses only modules of lower layers. And the language and size of
//! its files: comments and test names have a subject, and a long file gives its reason.

use std::fs;
use std::path::Path;

use regex::Regex;

/// The modules in the order in which they may use each other, from the table in helpers/README.md.
fn order(readme: &str) -> Vec<String> {
    let rows = readme.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        cells.next()?.parse::<usize>().ok()?;
        cells.next()
    });
    rows.flat_map(|modules| modules.split(", ")).map(str::to_owned).collect()
}

/// The upward edges of one source file, as `user uses used`. `supers` is the number of `super::`
/// steps from the file to the crate root.
fn upward_edges(order: &[String], module: &str, supers: usize, source: &str) -> Vec<String> {
    let rank = |name: &str| order.iter().position(|module| module == name);
    let own = rank(module).unwrap_or_else(|| panic!("{module} is in no row of the table"));
    let paths = format!(r"(?-u:\b)(?:crate::|(?:super::){{{supers}}})(?:\{{([^}}]*)\}}|([a-z_]+))");
    let paths = Regex::new(&paths).expect("a regex");
    let names = paths.captures_iter(source).flat_map(|found| {
        let (group, single) = (found.get(1), found.get(2));
        let text = group.or(single).map_or("", |it| it.as_str());
        let names = text.split(',').map(|name| name.trim().split("::").next().unwrap_or_default());
        names.map(str::to_owned).collect::<Vec<_>>()
    });
    let upward = names.filter(|name| rank(name).is_some_and(|other| other > own));
    upward.map(|name| format!("{module} uses {name}")).collect()
}

fn top_level_module(path: &Path, sources: &Path) -> String {
    let relative = path.strip_prefix(sources).expect("below");
    let first = relative.components().next().expect("a name").as_os_str();
    Path::new(first).with_extension("").display().to_string()
}

#[test]
fn modules_use_only_lower_layers() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("helpers");
    let order = order(&fs::read_to_string(sources.join("README.md")).expect("readable"));
    assert!(order.len() > 20, "the table has {} modules", order.len());
    let mut seen = Vec::new();
    let mut edges = Vec::new();
    for entry in walkdir::WalkDir::new(&sources) {
        let path = entry.expect("readable").into_path();
        if path.extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        let module = top_level_module(&path, &sources);
        if ["lib", "main", "build"].contains(&module.as_str()) {
            continue;
        }
        let depth = path.strip_prefix(&sources).expect("below").components().count();
        let supers = depth - usize::from(path.ends_with("mod.rs"));
        let source = fs::read_to_string(&path).expect("readable");
        // Unit tests may use anything.
        let product = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let tests = path.file_stem().is_some_and(|it| {
            let name = it.to_string_lossy();
            name == "tests" || name.ends_with("_tests") || name.starts_with("test_")
        });
        if !tests {
            edges.extend(upward_edges(&order, &module, supers, product));
        }
        seen.push(module);
    }
    assert!(edges.is_empty(), "upward edges:\n{}", edges.join("\n"));
    let unused: Vec<_> = order.iter().filter(|module| !seen.contains(module)).collect();
    assert!(unused.is_empty(), "modules in the table without a source: {unused:?}");
}

#[test]
fn upward_use_is_found() {
    let order = ["exit", "files", "cli"].map(str::to_owned);
    let edges = |source| upward_edges(&order, "files", 2, source);
    assert_eq!(edges("use crate::cli::say;"), ["files uses cli"]);
    assert_eq!(edges("let exit = crate::cli::run();"), ["files uses cli"]);
    assert_eq!(edges("use super::super::cli;"), ["files uses cli"]);
    assert!(edges("use super::cli;").is_empty(), "a module of the same folder");
    assert_eq!(edges("use crate::{error::Exit, cli};"), ["files uses cli"]);
    assert!(edges("use crate::error::Exit;\nuse crate::files::read;").is_empty());
}

/// Words that open a comment without naming its subject.
const OPENERS: [&str; 10] = [
    "It",
    "Its",
    "What",
    "Whether",
    "One",
    "Those",
    "Whoever",
    "That of",
    "The same",
    "The word about",
];

/// First words of a test name that leave out its subject, or put a condition before it.
const NAME_OPENERS: [&str; 29] = [
    "a", "after", "an", "as", "asked", "at", "before", "for", "from", "if", "in", "is", "it",
    "its", "of", "on", "one", "outside", "so", "that", "the", "those", "to", "what", "when",
    "where", "whether", "whoever", "with",
];

/// The text of a line that is a comment.
fn comment_text(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim())
}

fn opens_without_subject(text: &str) -> bool {
    let follows = |rest: &str| !rest.starts_with(char::is_alphanumeric);
    OPENERS.iter().any(|opener| text.strip_prefix(opener).is_some_and(follows))
}

/// The comments of a source file that open without a subject, and its test names without one.
fn unclear_language(source: &str) -> Vec<String> {
    let name = Regex::new("fn ([a-z0-9_]+)").expect("a regex");
    let (mut found, mut continues, mut is_test) = (Vec::new(), false, false);
    for line in source.lines() {
        let text = comment_text(line);
        if !continues && text.is_some_and(opens_without_subject) {
            found.push(line.trim().to_owned());
        }
        continues = text.is_some_and(|text| !text.is_empty());
        if line.trim() == "#[test]" {
            is_test = true;
        } else if let (true, Some(name)) = (is_test, name.captures(line)) {
            is_test = false;
            let first = name[1].split('_').next().unwrap_or_default();
            found.extend(NAME_OPENERS.contains(&first).then(|| format!("fn {}", &name[1])));
        }
    }
    found
}

/// The lines that a file may have without a reason.
const MOST_LINES: usize = 500;

/// Returns true if a file is short, or its first lines say why it is not.
fn has_fitting_size(source: &str) -> bool {
    let reason = |line: &str| line.contains("Longer than 500 lines because");
    source.lines().count() <= MOST_LINES || source.lines().take(10).any(reason)
}

#[test]
fn sources_have_clear_language_and_fitting_size() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut problems = Vec::new();
    let folders = ["helpers", "tests", "benches"].map(|folder| project.join(folder));
    for entry in folders.iter().flat_map(walkdir::WalkDir::new) {
        let path = entry.expect("readable").into_path();
        let name = path.strip_prefix(project).expect("below").display().to_string();
        if !name.ends_with(".rs") {
            continue;
        }
        let source = fs::read_to_string(&path).expect("readable");
        problems.extend(unclear_language(&source).iter().map(|it| format!("{name}: {it}")));
        if !has_fitting_size(&source) {
            problems.push(format!("{name}: more than {MOST_LINES} lines without a reason"));
        }
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn unclear_language_is_found() {
    let source =
        "//! What it is.\n\n/// An item.\n/// It runs.\nlet x;\n    // It runs.\n/// Items.\n";
    assert_eq!(unclear_language(source), ["//! What it is.", "// It runs."]);
    let source = "#[test]\n#[cfg(unix)]\nfn it_ends() {}\nfn it() {}\n#[test]\nfn host_ends() {}\n";
    assert_eq!(unclear_language(source), ["fn it_ends"]);
    let long = "let x = 1;\n".repeat(MOST_LINES + 1);
    assert!(!has_fitting_size(&long));
    assert!(has_fitting_size(&format!("//! Longer than 500 lines because it is a table.\n{long}")));
}

/// The prints of a source file that do not clean their text.
fn raw_prints(source: &str) -> Vec<&str> {
    let prints =
        Regex::new(r"(?-u:\b)e?print(?:ln)?!|write(?:ln)?!\((?:std::)?(?:io::)?std(?:out|err)")
            .expect("a regex");
    let is_raw = |line: &&str| prints.is_match(line) && !line.contains("sanitize(");
    source.lines().filter(is_raw).collect()
}

#[test]
fn printed_text_is_cleaned_in_one_place() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("helpers");
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(&sources) {
        let path = entry.expect("readable").into_path();
        let name = path.display().to_string();
        // Styles are escape sequences, so `table.rs` cleans the text between them. Cargo reads what the
        // build script prints.
        let others = ["_tests.rs", "reconcile/table.rs", "helpers/build.rs"];
        if !name.ends_with(".rs") || others.iter().any(|other| name.ends_with(other)) {
            continue;
        }
        let source = fs::read_to_string(&path).expect("readable");
        let product = source.split("#[cfg(test)]").next().unwrap_or_default();
        found.extend(raw_prints(product).iter().map(|it| format!("{}: {it}", path.display())));
    }
    assert!(found.is_empty(), "use `say` or `complain`:\n{}", found.join("\n"));
}

#[test]
fn raw_print_is_found() {
    let source = "println!(\"{x}\");\nlet _ = writeln!(io::stderr(), \"{x}\");\nsay(x);\n";
    assert_eq!(raw_prints(source).len(), 2);
}
