//! The layers of the code: a module uses only modules of lower layers.

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
        if ["lib", "main"].contains(&module.as_str()) {
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
    assert_eq!(edges("use crate::{exit::Exit, cli};"), ["files uses cli"]);
    assert!(edges("use crate::exit::Exit;\nuse crate::files::read;").is_empty());
}
