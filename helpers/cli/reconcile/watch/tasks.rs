//! The tasks as they are now, each read again when it has changed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::cli::reconcile::status::broken_line;
use crate::cli::reconcile::watch::text::{one_line, plain};
use crate::domain::{Route, TaskId, Usage};
use crate::process::{Identity, Life, Watch};
use crate::project::{Broken, Project, TaskList};
use crate::task::{Label, State, Task, View};
use crate::text::short_duration;
use crate::wait::{Mark, directories, places, watch_undispatched};

/// What is shown of a task. All text may stand on a terminal.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) task: Task,
    pub(super) label: Label,
    /// How many items are done.
    pub(super) done: usize,
    /// How many there are.
    pub(super) all: usize,
    pub(super) model: String,
    pub(super) age: Age,
    pub(super) usage: Option<Usage>,
    /// What it is at, or why it is in its state.
    pub(super) detail: String,
    /// The numbers and texts of its open questions.
    pub(super) questions: Vec<(String, String)>,
    /// Whether its worker writes a log.
    pub(super) logs: bool,
}

impl Row {
    fn new(view: &View) -> Self {
        let because = view.why();
        let item = view.current().map(|(number, item)| format!("item {number}: {}", item.text));
        let detail = match view.state {
            _ if !because.is_empty() => because,
            State::Done => view.summary.clone().unwrap_or_default(),
            State::Incomplete => {
                item.map_or_else(String::new, |item| format!("ended before {item}"))
            }
            _ => item.unwrap_or_default(),
        };
        let question = |(question, text): &(crate::ipc::Question, String)| {
            (question.name.clone(), plain(text.trim()))
        };
        let age = match &view.exit {
            Some(_) => Age::Ended(view.age()),
            None => Age::Since(SystemTime::now() - view.age()),
        };
        Self {
            task: view.task.clone(),
            label: view.label(),
            done: view.plan.done(),
            all: view.plan.items().len(),
            model: one_line(&view.record.name),
            age,
            usage: view.usage(),
            detail: one_line(&detail),
            // Nobody waits for the answer then.
            questions: match view.state {
                State::Done | State::Stopped => Vec::new(),
                _ => view.questions.iter().map(question).collect(),
            },
            logs: view.record.route == Route::Cli,
        }
    }
}

/// How old a task is, or was when it ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Age {
    Since(SystemTime),
    Ended(Duration),
}

impl Age {
    fn at(self, now: SystemTime) -> Duration {
        match self {
            Self::Since(begin) => now.duration_since(begin).unwrap_or_default(),
            Self::Ended(age) => age,
        }
    }

    /// The age in its largest unit. The seconds of one that grows are not counted aloud.
    pub(super) fn shown(self, now: SystemTime) -> String {
        let age = self.at(now);
        match self {
            Self::Since(_) if age.as_secs() < 60 => "<1m".into(),
            _ => short_duration(age),
        }
    }

    /// When it is shown otherwise.
    pub(super) fn until_older(self, now: SystemTime) -> Option<Duration> {
        let Self::Since(_) = self else { return None };
        let age = self.at(now);
        let unit = match age.as_secs() {
            0..3600 => 60,
            3600..86400 => 3600,
            _ => 86400,
        };
        Some(Duration::from_secs(age.as_secs() / unit * unit + unit).saturating_sub(age))
    }
}

/// All tasks of a project.
pub(super) struct Tasks {
    project: Project,
    seen: BTreeMap<TaskId, CachedRow>,
    /// What is wrong with what is in the place of a task and is none.
    broken: Vec<String>,
    /// Whether the directory of all tasks was watched at the last look.
    watched: bool,
}

struct CachedRow {
    mark: Mark,
    processes: Vec<Identity>,
    /// What is shown of it, or what is wrong with it.
    row: Result<Row, String>,
}

impl CachedRow {
    /// Whether nothing has changed since.
    fn is_current(&self) -> bool {
        self.mark.is_current() && self.processes.iter().all(|it| it.life() == Life::Alive)
    }

    /// Whether it may change without somebody starting a worker.
    fn is_open(&self) -> bool {
        let waits = |row: &Row| matches!(row.label, Label::Held | Label::Parked | Label::Queued);
        !self.processes.is_empty() || self.row.as_ref().map_or(true, waits)
    }
}

impl Tasks {
    pub(super) fn new(project: Project) -> Self {
        Self { project, seen: BTreeMap::new(), broken: Vec::new(), watched: false }
    }

    /// Reads again what has changed, and says whether anything had. Without an event only those
    /// are looked at that somebody works at, as long as there can be events.
    pub(super) fn refresh(&mut self, watch: &mut Watch, event: bool) -> bool {
        let directory = self.project.tasks_dir();
        let watched = std::mem::replace(&mut self.watched, watch.add_directory(&directory));
        if !event && watched && self.watched {
            let open = |seen: &CachedRow| seen.is_open() && !seen.is_current();
            let stale: Vec<Task> = self
                .seen
                .iter()
                .filter(|(_, seen)| open(seen))
                .map(|(id, _)| self.project.task(id))
                .collect();
            stale.iter().for_each(|task| self.read(task, watch));
            return !stale.is_empty();
        }
        watch_undispatched(&directory, watch);
        let TaskList { mut tasks, broken } = self.project.found();
        let broken = broken.iter().map(|it| one_line(&broken_line(it))).collect();
        let other = std::mem::replace(&mut self.broken, broken) != self.broken;
        let before = self.seen.len();
        self.seen.retain(|id, _| tasks.binary_search_by(|task| task.id().cmp(id)).is_ok());
        let gone = self.seen.len() < before;
        tasks.retain(|task| !self.seen.get(task.id()).is_some_and(CachedRow::is_current));
        tasks.iter().for_each(|task| self.read(task, watch));
        other || gone || !tasks.is_empty()
    }

    fn read(&mut self, task: &Task, watch: &mut Watch) {
        // Watched before it is read, so that nothing happens unseen in between.
        for place in directories(task) {
            watch.add_directory(&place);
        }
        let mark = Mark::of(places(task));
        let view = task.view();
        let processes = view.as_ref().map_or_else(|_| Vec::new(), |view| view.processes.clone());
        for process in &processes {
            watch.add_process(process);
        }
        let row = view
            .map(|view| Row::new(&view))
            .map_err(|error| one_line(&broken_line(&Broken::of(task, error))));
        self.seen.insert(task.id().clone(), CachedRow { mark, processes, row });
    }

    /// What is shown, most urgent first, and what is wrong with the others.
    pub(super) fn rows(&self) -> (Vec<Row>, Vec<String>) {
        let rows = self.seen.values().filter_map(|seen| seen.row.as_ref().ok());
        let mut rows: Vec<Row> = rows.cloned().collect();
        rows.sort_by_key(|row| row.label);
        let broken = self.seen.values().filter_map(|seen| seen.row.as_ref().err());
        (rows, self.broken.iter().chain(broken).cloned().collect())
    }
}
