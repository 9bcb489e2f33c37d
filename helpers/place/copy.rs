//! The two ways of a task's files: what the person decided is sent until the place has it, and what the place
//! says is copied into the task here. Each name and size is checked, and each text that a record gets is
//! cleaned.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Error, Result, ensure};
use serde_json::Value;

use crate::config::Config;
use crate::fault;
use crate::files;
use crate::git::object_id;
use crate::ids::{long_hash, now};
use crate::news::notify;
use crate::place::check::far_config;
use crate::place::link::{Files, LONGEST_FILE, MOST_FILES, git_url};
use crate::place::mirror::{Connection, Mirrored};
use crate::place::{
    AttemptFacts, Demand, Facts, LONGEST_LOG, NO_COMMITS, PULSE, Request, fetched_branch,
    is_mirrored, look, mirrored_files,
};
use crate::task::{ExitRecord, Gate, Record, StopReason, Wait};
use crate::text::{quoted, sanitize, shorten};

/// How many attempts and bytes a place may send for a task.
const MOST_ATTEMPTS: u32 = 2000;

/// How many entries of a list of the place are recorded with an attempt.
const MOST_RECORDED: usize = 50;
const MOST_BYTES: u64 = 256 << 20;

/// How many bytes a text of a place may have in a record.
const LONGEST_TEXT: usize = 4000;

impl Mirrored {
    pub(super) fn save(&self) -> Result<()> {
        self.task.set_remote(Some(&self.remote))
    }

    /// How much the person has decided so far.
    pub(super) fn decisions(&self) -> usize {
        let count = |path: PathBuf| files::entries(&path).map_or(0, |it| it.len());
        let stop = self.task.record().is_ok_and(|it| it.is_some_and(|it| it.stop));
        let resume = matches!(Demand::of(&self.task), Ok(Some(_)));
        let files = count(self.task.answers_dir()) + count(self.task.state_dir().join("notes"));
        files + usize::from(stop) + usize::from(resume)
    }

    /// Sends what the person decided and the place does not have yet.
    pub(super) fn send_decisions(
        &mut self,
        record: &Record,
        connection: &Connection,
    ) -> Result<()> {
        let Some(facts) = self.facts.clone() else { return Ok(()) };
        let address = || self.address.clone();
        let (mut wanted, stops) = (Vec::new(), self.remote.stops);
        for (name, answer) in self.task.answers()? {
            if !facts.answers.contains_key(&name) {
                let texts = vec![answer.question, answer.answer];
                wanted.push((Request::Answer(address(), name), texts));
            }
        }
        for (name, text) in self.task.notes()? {
            if !facts.notes.contains(&name) {
                wanted.push((Request::Note(address(), name), vec![text]));
            }
        }
        if record.stop && facts.open {
            wanted.push((Request::Stop(address(), stops), Vec::new()));
        }
        let demand = Demand::of(&self.task)?.filter(|_| !self.asked.contains_key("resume"));
        let resume = demand.map(|it| Request::Resume(address(), it.after, it.arguments));
        wanted.into_iter().for_each(|(request, texts)| self.ask(connection, request, texts));
        // A broken config must not keep an answer here.
        if let Some(resume) = resume {
            let config = far_config(&Config::load()?, record)?;
            self.ask(connection, resume, vec![config]);
        }
        Ok(())
    }

    /// Has the branch fetched when the worker has committed: by a thread, at most once in [`PULSE`].
    pub(super) fn fetch_commits(&mut self, record: &Record) {
        if self.is_fetching() {
            return;
        }
        if let Some(thread) = self.fetching.take() {
            // A fetch that failed is made again, because its commit is not the last that came.
            self.commits_here = thread.join().ok().flatten().or(self.commits_here.take());
        }
        let open = self.facts.as_ref().filter(|it| it.open);
        let base = record.worktree.as_ref().map(|it| &it.base);
        let tip = open.and_then(|it| object_id(it.tip.as_ref()?));
        let tip = tip.filter(|it| Some(it) != self.commits_here.as_ref() && Some(it) != base);
        let is_early = self.asked.get("commits").is_some_and(|since| since.elapsed() < PULSE);
        if let Some(tip) = tip.filter(|_| !is_early) {
            self.asked.insert("commits".into(), Instant::now());
            let (task, record) = (self.task.clone(), record.clone());
            let fetch = move || look(&task, &record).is_ok_and(|it| it).then_some(tip);
            self.fetching = Some(std::thread::spawn(fetch));
        }
    }

    fn is_fetching(&self) -> bool {
        self.fetching.as_ref().is_some_and(|it| !it.is_finished())
    }

    /// Fetches the branch once the place says that nothing of the task runs, and closes the task then.
    pub(super) fn finish(
        &mut self,
        name: &str,
        record: &Record,
        connection: &Connection,
    ) -> Result<()> {
        let Some(facts) = &self.facts else { return Ok(()) };
        let is_over = !facts.open && Demand::of(&self.task)?.is_none();
        if !is_over || facts.wait.is_some() || self.is_fetching() {
            return Ok(());
        }
        let facts = facts.clone();
        if facts.attempts.is_empty() && !record.stop {
            return self.fail("it was stopped there before it started");
        }
        let Some(failed) = self.fetched.clone() else {
            self.ask(connection, Request::Fetch(self.address.clone()), Vec::new());
            return Ok(());
        };
        let failed = match (failed, &record.worktree) {
            (Ok(branch), Some(worktree)) => {
                let way = git_url(name, &self.address.key)?;
                worktree.fetch_far(&way, &branch).err()
            }
            (failed, _) => failed.err().filter(|it| it != NO_COMMITS).map(Error::msg),
        };
        if let Some(error) = failed {
            if !self.count_failure(&error) {
                (self.fetched, _) = (None, self.asked.remove("fetch"));
                return Ok(());
            }
            // A place that sends damaged commits must not keep the task open.
            self.task.side().tell(&format!("{name}: {error:#}").replace("\n  ", ": "))?;
        }
        fault::point("mirror", "fetched");
        self.record(&facts)?;
        if let Some(attempt) = self.task.last_attempt().filter(|_| self.freezes) {
            self.task.freeze(&attempt)?;
        }
        self.remote.open = false;
        self.save()
    }

    /// Records what the place recorded of attempts, but for an end while the task is open there.
    pub(super) fn record(&mut self, facts: &Facts) -> Result<()> {
        let (task, before) = (&self.task, self.remote.before);
        let wait = facts.wait.clone().and_then(recorded_wait);
        let queued = matches!(wait, Some(Wait::Job { .. })) && facts.attempts.is_empty();
        if queued && task.wait()? != wait {
            task.set_wait(wait.as_ref())?;
        }
        for found in facts.attempts.iter().filter(|it| it.number <= MOST_ATTEMPTS) {
            let last = task.last_attempt().map_or(0, |it| it.number);
            let number = found.number + before;
            if found.number == 0 || number > last + 1 {
                continue;
            }
            if number == last + 1 {
                task.create_attempt()?;
            }
            let attempt = task.attempt(number);
            let is_last = facts.attempts.last().is_some_and(|it| it.number == found.number);
            let AttemptFacts { exit, gate, silent, .. } = found.clone();
            if attempt.silent_since()? != silent {
                attempt.set_silent_since(silent.as_deref())?;
            }
            // The wait goes first, so that no reader sees an end without it.
            let wait = wait.clone().filter(|_| is_last);
            if is_last && task.wait()? != wait {
                task.set_wait(wait.as_ref())?;
            }
            // The last end is recorded when the branch is here.
            let may_end = !facts.open || !is_last || wait.is_some();
            if let Some(exit) = exit
                && attempt.exit()?.is_none()
                && (may_end || gate.is_some())
            {
                task.set_exit(&attempt, &recorded_exit(exit))?;
            }
            let is_final = |it: &Gate| it.checking.is_none() && !it.continues;
            if let Some(gate) = gate.filter(|it| may_end || !is_final(it)) {
                let gate = recorded_gate(gate, &self.task.record()?.context("no record")?);
                if attempt.gate()?.as_ref() != Some(&gate) {
                    attempt.set_gate(&gate)?;
                }
            }
        }
        Ok(())
    }

    /// Takes what the place says of the task.
    pub(super) fn apply(
        &mut self,
        mut facts: Value,
        log: Option<(u32, u64)>,
        files: Files,
    ) -> Result<()> {
        clean_all(&mut facts);
        let facts: Facts = serde_json::from_value(facts)?;
        for (name, text) in files {
            match (name.as_str(), log) {
                ("log", Some((attempt, from))) => self.write_log(attempt, from, &text, &facts)?,
                _ => {
                    let name = renumbered(&name, |it| it.checked_add(self.remote.before));
                    self.write(&name.context("a file with another name was sent")?, &text)?;
                }
            }
        }
        for name in &facts.gone {
            let may_go = is_mirrored(name) && !name.starts_with("attempts/");
            if may_go && self.files.remove(name).is_some() {
                files::remove(&self.task.side().directory().join(name))?;
            }
        }
        fault::point("mirror", "files");
        for (name, told) in &facts.answers {
            if *told && self.task.answers()?.iter().any(|(it, _)| it == name) {
                self.task.mark_told(name)?;
            }
        }
        let started = facts.attempts.last().map_or(0, |it| it.number);
        self.record(&facts)?;
        if Demand::of(&self.task)?.is_some_and(|it| started > it.after) {
            Demand::forget(&self.task)?;
        }
        let was_open = self.facts.as_ref().is_none_or(|it| it.open);
        if facts.open {
            self.fetched = None;
            self.asked.remove("fetch");
        }
        self.facts = Some(facts);
        (self.remote.seen, self.remote.unreachable) = (now(), None);
        self.save()?;
        if was_open {
            notify::announce(&self.task);
        }
        Ok(())
    }

    /// Takes that the place does not have the task: it was not sent, or it is gone there.
    pub(super) fn set_absent(&mut self) -> Result<()> {
        let record = self.task.record()?.context("no record")?;
        self.asked.remove("follow");
        let last = self.task.last_attempt().filter(|it| it.number > self.remote.before);
        if let Some(attempt) = &last {
            if attempt.exit()?.is_none() {
                let exit = ExitRecord { at: now(), ..ExitRecord::default() };
                self.task.set_exit(attempt, &exit)?;
            }
            Demand::forget(&self.task)?;
        } else if record.stop {
            // A request to start it may still be under way, so the place has to be told.
            self.asked.insert("absent".into(), Instant::now());
            return Ok(());
        }
        // A request that did not arrive is made again from its beginning.
        (self.remote.open, self.remote.sent) = (false, last.is_some());
        self.save()
    }

    /// Takes the answer to a request.
    pub(super) fn set_done(&mut self, what: &str, error: Option<String>) -> Result<()> {
        let error = error.map(|error| clean(&error));
        match (what, error) {
            (what, error) if what.starts_with("fetch") => {
                let branch = fetched_branch(what).context("no branch of dispatch's was named");
                let branch = branch.map(str::to_owned).map_err(|error| error.to_string());
                self.fetched = Some(error.map_or(branch, Err));
            }
            ("start", None) => {
                self.asked.insert("started".into(), Instant::now());
            }
            ("stop", None) if self.asked.contains_key("absent") => {
                (self.remote.open, self.remote.sent) = (false, false);
                self.remote.stops += 1;
                self.save()?;
            }
            ("skip", None) => {
                self.freezes = true;
                Demand::forget(&self.task)?;
            }
            ("start", Some(error)) => self.fail(&error)?,
            ("resume", Some(error)) => {
                Demand::forget(&self.task)?;
                self.remote.error = Some(error);
                self.save()?;
            }
            // A name that was not asked for may lead anywhere.
            (_, Some(error)) if self.asked.contains_key(what) => {
                if let Some(name) = what.strip_prefix("answer/").filter(|_| error == "changed") {
                    // The person answered another text; the new one is asked as news.
                    files::remove(&self.task.answers_dir().join(name))?;
                    files::remove(&self.task.side().ipc().answer_path(name))?;
                }
                self.asked.remove(what);
                self.pause();
            }
            _ => {}
        }
        Ok(())
    }

    /// Records that the place could not start the task.
    pub(super) fn fail(&mut self, error: &str) -> Result<()> {
        self.task.set_wait(None)?;
        (self.remote.open, self.remote.sent, self.remote.seen) = (false, false, now());
        self.remote.error = Some(clean(error));
        self.save()
    }

    /// Finds out which files are here.
    pub(super) fn read_files(&mut self) {
        for (name, path) in mirrored_files(&self.task) {
            if let Ok(Some(text)) = files::read_start(&path, LONGEST_FILE) {
                self.files.insert(name, (text.len() as u64, long_hash(&text)));
            }
        }
    }

    /// Writes a file that the place sent, if its name and size are allowed.
    fn write(&mut self, name: &str, text: &[u8]) -> Result<()> {
        let known = self.files.get(name).map_or(0, |it| it.0);
        let total: u64 = self.files.values().map(|it| it.0).sum();
        let size = text.len() as u64;
        ensure!(is_mirrored(name), "a file with another name was sent");
        ensure!(
            size <= LONGEST_FILE
                && total - known + size <= MOST_BYTES
                && self.files.len() < MOST_FILES,
            "more was sent than a task may have"
        );
        let side = self.task.side();
        if let Some(number) = name.strip_prefix("attempts/") {
            let number = number.split('/').next().and_then(files::parse_number).unwrap_or_default();
            let last = self.task.last_attempt().map_or(0, |it| it.number);
            let is_next = number > self.remote.before && number <= last + 1;
            ensure!(is_next && number < MOST_ATTEMPTS, "an attempt without a beginning was sent");
            let attempt = self.task.attempt(number);
            if number > last {
                self.task.create_attempt()?;
            }
            files::publish(&attempt.plan_path(), text)?;
        } else {
            let path = side.directory().join(name);
            files::create_task_directory(path.parent().context("no directory")?)?;
            let _lock = (name == "plan.md").then(|| side.lock()).transpose()?;
            files::publish(&path, text)?;
        }
        self.files.insert(name.into(), (size, long_hash(text)));
        Ok(())
    }

    /// Adds a piece of a log.
    fn write_log(&self, attempt: u32, from: u64, text: &[u8], facts: &Facts) -> Result<()> {
        let is_known = facts.attempts.last().is_some_and(|it| it.number == attempt);
        let last = self.task.last_attempt().map_or(0, |it| it.number);
        let attempt = self.task.attempt(attempt.saturating_add(self.remote.before));
        if !is_known || attempt.number > last || from + text.len() as u64 > LONGEST_LOG {
            return Ok(());
        }
        let path = attempt.log_path();
        if from == 0 {
            return files::publish(&path, text);
        }
        let mut file = files::open_append(&path)?;
        match file.metadata()?.len() == from {
            true => file.write_all(text).context("cannot write the log"),
            false => Ok(()),
        }
    }
}

/// The name of a mirrored file with another number of its attempt, if it has one; `None` without that.
pub(super) fn renumbered(name: &str, number: impl Fn(u32) -> Option<u32>) -> Option<String> {
    let Some((old, rest)) = name.strip_prefix("attempts/").and_then(|it| it.split_once('/')) else {
        return Some(name.into());
    };
    let new = files::parse_number(old).and_then(number).filter(|it| *it > 0)?;
    Some(format!("attempts/{new}/{rest}"))
}

/// A text of a place, for a record.
fn clean(text: &str) -> String {
    shorten(&sanitize(text), LONGEST_TEXT)
}

/// Cleans all texts in what a place says. A record may show any of them.
fn clean_all(said: &mut Value) {
    match said {
        Value::String(text) => *text = clean(text),
        Value::Array(all) => {
            all.truncate(MOST_ATTEMPTS as usize);
            all.iter_mut().for_each(clean_all);
        }
        Value::Object(all) => all.values_mut().for_each(clean_all),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The end as it is recorded. A text that is shown as it is gets marks, because nobody here said it.
fn recorded_exit(mut exit: ExitRecord) -> ExitRecord {
    if let Some(StopReason::Budget { used: said } | StopReason::Job { said }) =
        &mut exit.stop_reason
    {
        *said = quoted(said);
    }
    if humantime::parse_rfc3339(&exit.at).is_err() {
        exit.at = now();
    }
    exit.denied.truncate(MOST_RECORDED);
    exit
}

fn recorded_wait(wait: Wait) -> Option<Wait> {
    match wait {
        Wait::Parked { .. } => Some(wait),
        Wait::Job { after, said } => Some(Wait::Job { after, said: quoted(&said) }),
        _ => None,
    }
}

/// The checks as the place saw them: of the person's own commands only, and commits by their ids only.
fn recorded_gate(mut gate: Gate, record: &Record) -> Gate {
    let own = |command: &mut String| {
        let same = record.checks.iter().find(|it| clean(it) == *command).cloned();
        *command = same.or_else(|| record.first_check()).unwrap_or_default();
    };
    gate.checking.iter_mut().for_each(own);
    if let Some(failed) = &mut gate.failed {
        own(&mut failed.command);
        failed.end = quoted(&failed.end);
    }
    gate.commit = gate.commit.and_then(|it| object_id(&it));
    gate.moved = gate.moved.and_then(|it| object_id(&it));
    gate.notes.truncate(MOST_RECORDED);
    gate
}
