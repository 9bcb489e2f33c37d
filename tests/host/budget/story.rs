//! The measured stories: the person's requests, the host's reports, and the workers' acts, which
//! are equal on both sides.

use crate::support::story::{Job, REPLY};

/// The kind of worker that does a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worker {
    /// An agent of the host.
    Agent,
    /// A Claude in a worktree of its own.
    Worktree,
    /// A `codex exec`.
    Codex,
    /// Any command.
    Command,
}

/// A task of a story.
#[derive(Debug)]
pub(super) struct Work {
    /// The task's id, the name of its model, and its plan with the context.
    pub(super) job: Job,
    /// The task's worker.
    pub(super) worker: Worker,
    /// The worker's question and the answer; the story decides if it asks.
    pub(super) question: (&'static str, &'static str),
    /// The error of a worker that fails.
    pub(super) error: Option<&'static str>,
    /// The host's report of the end, which is also the worker's last message.
    pub(super) end: &'static str,
}

impl Work {
    /// The plan's items.
    pub(super) fn items(&self) -> Vec<&str> {
        self.job.plan.lines().filter_map(|line| line.strip_prefix("- [ ] ")).collect()
    }
}

/// A scene of a story: something happens, and the host tells the person.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scene {
    /// The person types this, and the tasks are dispatched.
    Dispatch(&'static str, &'static [&'static Work]),
    /// The task's worker asks.
    Asks(&'static Work),
    /// The person answers.
    Answer(&'static Work),
    /// The person asks how these are doing.
    Status(&'static [&'static Work]),
    /// The task's worker ends.
    Ends(&'static Work),
}

/// The person's request for the state of the tasks.
pub(super) const STATUS: &str = "status";

impl Scene {
    /// The input of the person, in scenes that begin with one.
    pub(super) fn typed(&self) -> Option<String> {
        match self {
            Self::Dispatch(words, _) => Some((*words).to_owned()),
            Self::Answer(work) => Some(format!("{REPLY}{}", work.question.1)),
            Self::Status(_) => Some(STATUS.to_owned()),
            Self::Asks(_) | Self::Ends(_) => None,
        }
    }

    /// The host's report to the person.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Dispatch(_, works) => {
                let plans = works.iter().map(|work| {
                    let items: Vec<String> = (1..)
                        .zip(work.items())
                        .map(|(number, item)| format!("{number}) {item}"))
                        .collect();
                    let model = work.job.model.split(' ').next().unwrap_or_default();
                    format!("Dispatched {} using {model}: {}.", work.job.id, items.join(" "))
                });
                plans.collect::<Vec<_>>().join("\n")
            }
            Self::Asks(work) => format!("{} asks: \"{}\"", work.job.id, work.question.0),
            Self::Answer(_) => "Passed on.".into(),
            Self::Status(works) => {
                let lines = works.iter().map(|work| {
                    format!("{}: running, 0 of {} items.", work.job.id, work.items().len())
                });
                lines.collect::<Vec<_>>().join("\n")
            }
            Self::Ends(work) => work.end.to_owned(),
        }
    }
}

/// Two tasks, a question and its answer, and how they are doing: the design's smaller story.
pub(super) const TWO: &[Scene] = &[
    Scene::Dispatch("/dispatch use opus to review the error handling in src/api", &[&REVIEW]),
    Scene::Dispatch("/dispatch use gpt-5.5 to add a test for the parser", &[&PARSER]),
    Scene::Asks(&PARSER),
    Scene::Answer(&PARSER),
    Scene::Status(&[&REVIEW, &PARSER]),
    Scene::Ends(&PARSER),
    Scene::Ends(&REVIEW),
];

/// Five tasks in one request: three of Claude, one of which in a worktree, one of Codex and one of a
/// command. One asks, one fails.
pub(super) const FIVE: &[Scene] = &five(ALL, &PARSER, &GREET);

/// The five tasks, two of them with a check.
pub(super) const FIVE_CHECKED: &[Scene] = &five(ALL_CHECKED, &CHECKED_PARSER, &CHECKED_GREET);

const fn five(
    all: &'static [&'static Work],
    parser: &'static Work,
    greet: &'static Work,
) -> [Scene; 9] {
    [
        Scene::Dispatch(
            "/dispatch before the release: 1) opus reviews the error handling in src/api 2) sonnet \
             looks for slow queries 3) sonnet in a worktree moves the settings to TOML 4) gpt-5.5 adds \
             a test for the parser 5) demo greets everybody",
            all,
        ),
        Scene::Asks(parser),
        Scene::Answer(parser),
        Scene::Status(all),
        Scene::Ends(&QUERIES),
        Scene::Ends(parser),
        Scene::Ends(greet),
        Scene::Ends(&SETTINGS),
        Scene::Ends(&REVIEW),
    ]
}

const ALL_CHECKED: &[&Work] = &[&REVIEW, &QUERIES, &SETTINGS, &CHECKED_PARSER, &CHECKED_GREET];
const ALL: &[&Work] = &[&REVIEW, &QUERIES, &SETTINGS, &PARSER, &GREET];

/// A task of a command, from the request to the report.
pub(super) const ONE_COMMAND: &[Scene] =
    &[Scene::Dispatch("/dispatch demo greets everybody, 2 times", &[&GREET]), Scene::Ends(&GREET)];

/// A second task of a command beside the first.
pub(super) const TWO_COMMANDS: &[Scene] = &[
    Scene::Dispatch("/dispatch demo greets everybody, 2 times", &[&GREET, &AGAIN]),
    Scene::Ends(&GREET),
    Scene::Ends(&AGAIN),
];

/// A task of a command, with a question.
pub(super) const ASKED: &[Scene] = &[
    Scene::Dispatch("/dispatch demo greets everybody, 2 times", &[&GREET]),
    Scene::Asks(&GREET),
    Scene::Answer(&GREET),
    Scene::Ends(&GREET),
];

static REVIEW: Work = Work {
    job: Job {
        id: "error-review",
        model: "opus",
        plan: "# Error handling in src/api
- [ ] List the handlers in src/api
- [ ] Check for each what becomes of an error
- [ ] Write the findings to .dispatch/tasks/error-review/output.md

## Context
\"Review the error handling in src/api.\" Read only, change nothing.
",
    },
    worker: Worker::Agent,
    question: ("", ""),
    error: None,
    end: "error-review is done: 2 of 14 handlers swallow errors, \
          see .dispatch/tasks/error-review/output.md",
};

static PARSER: Work = Work {
    job: Job {
        id: "parser-test",
        model: "gpt-5.5",
        plan: "# A test for the parser
- [ ] Add a test of the parser
- [ ] Run all tests

## Context
\"Add a test for the parser.\" The tests are in tests/.
",
    },
    worker: Worker::Codex,
    question: ("There are two parsers, v1 and v2. Which one?", "v2"),
    error: None,
    end: "parser-test is done: one test for v2, and it passes.",
};

static QUERIES: Work = Work {
    job: Job {
        id: "slow-queries",
        model: "sonnet",
        plan: "# Slow queries
- [ ] Measure the queries of the five busiest pages
- [ ] Find what makes them slow
- [ ] Write the findings to .dispatch/tasks/slow-queries/output.md

## Context
\"Look for slow queries.\" The schema is in db/schema.sql.
",
    },
    worker: Worker::Agent,
    question: ("", ""),
    error: Some("The database does not start: no space left on device."),
    end: "slow-queries failed at its first item: the database does not start, for its disk is full.",
};

static SETTINGS: Work = Work {
    job: Job {
        id: "settings-toml",
        // The option rides on the name of the model.
        model: "sonnet --worktree",
        plan: "# Settings in TOML
- [ ] Move the settings from INI to TOML
- [ ] Let the old file still be read
- [ ] Run all tests

## Context
\"Move the settings to TOML.\" On a branch of its own.
",
    },
    worker: Worker::Worktree,
    question: ("", ""),
    error: None,
    end: "settings-toml is done: the settings are TOML, the old file is still read.",
};

static GREET: Work = Work {
    job: Job {
        id: "greet",
        model: "demo",
        plan: "# A greeting
- [ ] Find out who is here
- [ ] Greet everybody

## Context
\"Greet everybody.\" The names are in AUTHORS.
",
    },
    worker: Worker::Command,
    question: ("Who is here?", "Ann and Bob"),
    error: None,
    end: "greet is done: everybody is greeted.",
};

static CHECKED_PARSER: Work =
    Work { job: Job { model: "gpt-5.5 --check 'test -d .'", ..PARSER.job }, ..PARSER };
static CHECKED_GREET: Work =
    Work { job: Job { model: "demo --check 'test -d .'", ..GREET.job }, ..GREET };

static AGAIN: Work = Work {
    job: Job { id: "thank", ..GREET.job },
    end: "thank is done: everybody is thanked.",
    ..GREET
};
