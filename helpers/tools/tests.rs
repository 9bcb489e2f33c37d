//! Tests of every CLI: its command lines, what is heard in its recorded output, and that every place
//! that names CLIs knows it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::domain::EXECUTED;
use crate::domain::{Access, PromptVia};
use crate::tools::events::{Listener, Observed};
use crate::tools::{
    Invocation, Job, KNOWN, LONGEST_ARGUMENT, Session, WorkerCli, by_name, os_args,
};

/// The support table: the document, and the heading above the table.
const SUPPORT: [&str; 2] = [".github/NUMBERS.md", "## What is supported"];

const LEVELS: [Access; 3] = [Access::Read, Access::Write, Access::Full];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with a file of the repository; `SNAPSHOTS=overwrite` writes it again.
fn assert_is(path: &str, actual: String) {
    let golden = snapbox::Data::read_from(&file(path), Some(snapbox::data::DataFormat::Text));
    snapbox::Assert::new().action_env(snapbox::assert::DEFAULT_ACTION_ENV).eq(actual, golden.raw());
}

#[test]
fn every_cli_is_called_as_recorded_at_each_access_level() {
    let directories = [PathBuf::from("/t/task"), PathBuf::from("/m/.git")];
    let mut calls = String::new();
    for cli in KNOWN.iter().copied() {
        for access in LEVELS {
            let sessions = [Session::New("new"), Session::Resume("old")];
            for session in sessions.into_iter().take(1 + usize::from(access == Access::Full)) {
                let job = Job {
                    model: Some("m"),
                    access,
                    directory: Path::new("/w"),
                    task: &directories[0],
                    writable: &directories,
                    kept: &["/w/.claude".into()],
                    holder: None,
                    usd: (access == Access::Full).then_some(0.5),
                    session,
                    helper: Path::new("/h/dispatch-worker"),
                };
                let mut argv = (cli.argv)(&job);
                argv.extend(cli.last_args("", &job));
                let line = Invocation { argv, prompt: PromptVia::Stdin }
                    .shell_line("", Path::new("prompt"));
                let path = std::env::var("PATH").unwrap_or_default();
                let _ = writeln!(calls, "{}", line.replace(&format!(":{path}"), ":…"));
            }
            if let Some(why) = cli.never_holds(access) {
                let _ = writeln!(calls, "  not at {access:?}: {why}");
            }
        }
        calls.push('\n');
    }
    assert_is("tests/recorded/argv.log", calls);
}

/// The observed facts in one line, after an end with a failure or not.
fn in_short(observed: &Observed, has_failed: bool, output: &str) -> String {
    let Observed { session, said_last_word, denied, usage, .. } = observed;
    let failure = observed.confirmed_failure(has_failed);
    let mut line = format!("session {}", session.as_deref().unwrap_or("unknown"));
    if *said_last_word {
        line.push_str(", last word");
    }
    if let Some(usage) = usage {
        let cost = usage.cost_usd.map(|cost| format!(" for ${cost:.4}")).unwrap_or_default();
        let _ = write!(line, ", used {}+{}{cost}", usage.input_tokens, usage.output_tokens);
    }
    if !denied.is_empty() {
        let _ = write!(line, ", denied {denied:?}");
    }
    if let Some(failure) = failure {
        // A time of day is another moment each day.
        let resets = match failure.resets {
            Some(at) if output.contains(&at.to_string()) => format!(" until {at}"),
            Some(_) => " until then".into(),
            None => String::new(),
        };
        let _ = write!(line, ", {:?}{resets}: {:?}", failure.kind, failure.said);
    }
    line
}

/// The recorded outputs with what is heard in them now.
fn heard_now(cli: &'static WorkerCli, recorded: &str) -> String {
    let mut now = String::new();
    let (mut listener, mut has_failed) = (Listener::new(Some(cli)), false);
    for line in recorded.lines() {
        if line.starts_with("-> ") {
            listener.end();
            let heard = in_short(listener.observed(), has_failed, recorded);
            let _ = writeln!(now, "-> {heard}");
            continue;
        }
        if line.starts_with("== ") {
            listener = Listener::new(Some(cli));
            has_failed = !line.ends_with("exit 0");
        } else {
            listener.hear(format!("{line}\n").as_bytes());
        }
        let _ = writeln!(now, "{line}");
    }
    now
}

/// The recorded outputs. Below `= NAME` stand sections: a title `== what happened, exit N`, the CLI's lines
/// as they came (without those that say nothing; ids and paths are shortened), and `-> ` with what is
/// heard, which `SNAPSHOTS=overwrite` renews.
const RECORDED: &str = "tests/recorded/output.log";

/// The recorded output of a CLI; empty if there is none.
fn recorded(cli: &WorkerCli) -> String {
    let all = fs::read_to_string(file(RECORDED)).expect("the recorded outputs");
    let own = format!("= {}", cli.name);
    let lines = all.lines().skip_while(|line| *line != own).skip(1);
    lines.take_while(|line| !line.starts_with("= ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn every_clis_recorded_output_is_understood() {
    let mut now = String::new();
    for cli in KNOWN.iter().copied() {
        let recorded = recorded(cli);
        let count = |mark: &str| recorded.lines().filter(|line| line.starts_with(mark)).count();
        assert!(
            count("== ") > 0 && count("== ") == count("-> "),
            "{}: a `-> ` for each `== `",
            cli.name
        );
        let _ = write!(now, "= {}\n{}", cli.name, heard_now(cli, &recorded));
    }
    assert_is(RECORDED, now);
}

/// The rows of the first table below a heading.
fn table(path: &str, heading: &str) -> String {
    let text = fs::read_to_string(file(path)).expect("a document");
    let lines = text.lines().skip_while(|line| !line.starts_with(heading));
    let rows = lines.skip_while(|line| !line.starts_with('|')).take_while(|line| !line.is_empty());
    rows.fold(String::new(), |table, row| table + row + "\n")
}

/// The places that should name this CLI and do not, or contradict its description.
fn places_without(cli: &WorkerCli) -> Vec<String> {
    let mut missing = Vec::new();
    let mut require = |known: bool, place: &str| {
        if !known {
            missing.push(place.to_owned());
        }
    };
    let program = cli.programs.first().copied().unwrap_or_default();
    for (field, text) in [("title", cli.title), ("login", cli.login), ("programs", program)] {
        require(!text.is_empty(), &format!("{}.rs: {field}", cli.name));
    }
    let dated =
        regex::Regex::new(r" (on|of) 20[0-9]{2}-[0-9]{2}-[0-9]{2}$").expect("an expression");
    require(dated.is_match(cli.checked), &format!("{}.rs: checked", cli.name));
    require(!recorded(cli).is_empty(), &format!("{RECORDED}: = {}", cli.name));
    let calls = fs::read_to_string(file("tests/recorded/argv.log")).expect("the command lines");
    let is_called = |line: &str| line.split(' ').any(|word| word == program);
    require(calls.lines().any(is_called), "tests/recorded/argv.log");
    let version = cli.checked.split(' ').next().filter(|it| it.starts_with(char::is_numeric));
    let supported =
        version.map_or(cli.title.to_owned(), |version| format!("{} {version}", cli.title));
    let support = table(SUPPORT[0], SUPPORT[1]);
    require(support.contains(&supported), &format!("{}, support table: {supported}", SUPPORT[0]));
    let access = table("references/access.md", "**Without bubblewrap**");
    let row = access.lines().find(|row| row.starts_with(&format!("| {} ", cli.title)));
    let cells = row.unwrap_or_default().split(" | ").skip(1).chain(["no row"; 3]);
    for (level, cell) in LEVELS.into_iter().zip(cells) {
        let agrees = cell.starts_with("refused") == cli.never_holds(level).is_some();
        let place = format!("references/access.md, {level}: {cell}");
        require(agrees && cell != "no row", &place);
    }
    require(by_name(cli.name).is_some(), "tools::KNOWN");
    missing
}

#[test]
fn every_place_knows_every_cli() {
    let missing: Vec<_> = KNOWN.iter().map(|cli| (cli.name, places_without(cli))).collect();
    let missing: Vec<_> = missing.iter().filter(|(_, places)| !places.is_empty()).collect();
    assert!(missing.is_empty(), "these places do not know these CLIs: {missing:#?}");
}

#[test]
fn every_place_that_does_not_know_a_cli_is_named() {
    let programs = &["invented"];
    let invented = WorkerCli { name: "invented", title: "Invented", programs, ..WorkerCli::BASE };
    assert_eq!(
        places_without(&invented),
        [
            "invented.rs: login",
            "invented.rs: checked",
            "tests/recorded/output.log: = invented",
            "tests/recorded/argv.log",
            ".github/NUMBERS.md, support table: Invented",
            "references/access.md, read: no row",
            "references/access.md, write: no row",
            "references/access.md, full: no row",
            "tools::KNOWN",
        ]
    );
}

#[test]
fn no_two_clis_share_a_name_or_a_program() {
    let mut names: Vec<_> = KNOWN.iter().flat_map(|cli| cli.programs).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn merge_asks_about_every_file_that_a_cli_obeys() {
    let mut obeyed = KNOWN.iter().flat_map(|cli| cli.obeys);
    assert_eq!(obeyed.find(|name| !EXECUTED.contains(name)), None);
}

#[test]
fn prompt_that_cannot_be_one_argument_goes_by_file() {
    let call = Invocation { argv: os_args(&["x"]), prompt: PromptVia::Arg };
    let file = Path::new("/p/prompt.md");
    assert_eq!(call.with_prompt("short", file), os_args(&["x", "short"]));
    for other in ["y".repeat(LONGEST_ARGUMENT + 1), "a\0b".into()] {
        let by_file = os_args(&["x", "Read and follow /p/prompt.md"]);
        assert_eq!(call.with_prompt(&other, file), by_file);
        assert_eq!(call.shell_line(&other, file), "x \"Read and follow /p/prompt.md\"");
    }
}
