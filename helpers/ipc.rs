//! Questions and answers as files: `NNN.question`, `NNN.answer`, `NNN.done` (the worker has read the
//! answer), and `.done` (the worker has finished). Only the worker starts an exchange. Names and
//! meaning are the original's, so a worker that knows only the files can take part.
//!
//! Helpers publish whole files. A person or a worker may write one in pieces: see [`IpcText`].

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::error::{Exit, Refusal};
use crate::fault;
use crate::files;
use crate::text::lossy;

/// The directory `ipc/` of a task.
#[derive(Clone, Debug)]
pub struct Ipc {
    directory: PathBuf,
}

/// A question of the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The number of the question, counted from 1, as the file's name spells it: with at least three
    /// digits.
    pub name: String,
    /// `true` if there is an answer.
    pub answered: bool,
    /// `true` if the worker has read the answer.
    pub received: bool,
}

/// The text of a question or an answer, as one look finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpcText {
    /// The text so far.
    pub text: String,
    /// `true` if the text is whole: no process has the file open to write. Where the system cannot tell,
    /// the text ends with a line break, as that of helpers, `echo` and heredocs does.
    pub is_whole: bool,
}

/// How many bytes of a question or an answer are read to show it, and the longest question of `ask`.
const LONGEST: u64 = 2 << 20;

/// How many bytes of a summary are read.
const LONGEST_FINISH: u64 = 64 << 10;

impl IpcText {
    fn read(path: &Path, most: u64) -> Result<Option<Self>> {
        let Some((bytes, is_open)) = files::read_growing(path, most)? else { return Ok(None) };
        let is_cut = bytes.len() as u64 == most;
        let text = lossy(bytes);
        let is_open = is_open.unwrap_or(!text.is_empty() && !is_cut && !text.ends_with('\n'));
        // An empty file is nothing, unless its text is still to come.
        Ok(Some(Self { text, is_whole: !is_open }).filter(|it| is_open || !it.is_empty()))
    }

    /// Returns true if there is no text yet.
    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// The words behind the number of the question; begins with a space or is empty.
    pub fn remark(&self) -> &'static str {
        if self.is_whole { "" } else { " (being written)" }
    }
}

/// How long a text that is being written must stay the same to be taken.
pub fn second_look() -> Duration {
    fault::limit("DISPATCH_LOOK_MS", Duration::from_secs(1))
}

/// The texts that a waiting process found being written. The second equal look takes one: its writer
/// may never close the file.
#[derive(Default)]
pub struct Looks(HashMap<PathBuf, (String, Instant)>);

impl Looks {
    /// Returns true if the text that was just read from the file may be taken.
    pub fn takes(&mut self, path: PathBuf, found: &IpcText) -> bool {
        if found.is_whole || found.is_empty() {
            self.0.remove(&path);
            return found.is_whole;
        }
        match self.0.get(&path) {
            Some((text, since)) if *text == found.text => since.elapsed() >= second_look(),
            _ => {
                self.0.insert(path, (found.text.clone(), Instant::now()));
                false
            }
        }
    }
}

impl Question {
    /// Returns true if the question still waits for its answer.
    pub fn is_open(&self) -> bool {
        !self.answered && !self.received
    }
}

impl Ipc {
    /// The exchange in a directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory `ipc/`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All questions in order of their numbers.
    pub fn questions(&self) -> Result<Vec<Question>> {
        let entries = files::entries(&self.directory)?.into_iter();
        let names: Vec<String> = entries.filter_map(|name| name.into_string().ok()).collect();
        let has = |name: &str, kind: &str| {
            names.iter().any(|n| n.strip_suffix(kind).is_some_and(|n| n == name))
        };
        let asked = names.iter().filter_map(|name| Some(name.strip_suffix(".question")?.into()));
        let question = |name: String| {
            let (answered, received) = (has(&name, ".answer"), has(&name, ".done"));
            Question { name, answered, received }
        };
        Ok(files::in_number_order(asked.collect()).into_iter().map(question).collect())
    }

    /// Publishes a question under the next free number. Returns the number as the file's name spells
    /// it. The same text is the same question until its answer was read, because a worker whose call
    /// was killed calls again.
    pub fn ask(&self, text: &str) -> Result<String> {
        files::create_task_directory(&self.directory)?;
        if text.len() as u64 >= LONGEST {
            return Refusal::new(Exit::Data, "the question is too long")
                .place(format!("it has {} MiB", text.len() >> 20))
                .refuse("put the details into the report, and ask a short question");
        }
        loop {
            let questions = self.questions()?;
            for question in questions.iter().filter(|question| !question.received) {
                let old = self.question(&question.name)?;
                if old.is_some_and(|old| old.text == with_newline(text)) {
                    return Ok(question.name.clone());
                }
            }
            let last = questions.last().and_then(|question| files::parse_number(&question.name));
            let next = files::next_number(last.unwrap_or(0), &self.directory)?;
            let name = format!("{next:03}");
            if files::publish_new(&self.file(&name, "question"), with_newline(text).as_bytes())? {
                return Ok(name);
            }
        }
    }

    /// The text of a question; `None` without a text.
    pub fn question(&self, name: &str) -> Result<Option<IpcText>> {
        IpcText::read(&self.question_path(name), LONGEST)
    }

    /// The text of the answer to a question; `None` without a text.
    pub fn answer(&self, name: &str) -> Result<Option<IpcText>> {
        IpcText::read(&self.answer_path(name), files::LARGEST)
    }

    /// The beginning of an answer, to be shown.
    pub fn shown_answer(&self, name: &str) -> Result<Option<IpcText>> {
        IpcText::read(&self.answer_path(name), LONGEST)
    }

    /// The file of the answer to a question.
    pub fn answer_path(&self, name: &str) -> PathBuf {
        self.file(name, "answer")
    }

    /// The file of a question.
    pub fn question_path(&self, name: &str) -> PathBuf {
        self.file(name, "question")
    }

    /// Returns true if there is a question with this number.
    pub fn has_question(&self, name: &str) -> bool {
        self.file(name, "question").exists()
    }

    /// Returns true if there is an answer with a text, or one that cannot be read.
    pub fn has_answer(&self, name: &str) -> bool {
        !matches!(self.shown_answer(name), Ok(None))
    }

    /// Returns true if the worker said that it has read the answer to a question.
    pub fn was_received(&self, name: &str) -> bool {
        self.file(name, "done").exists()
    }

    /// Publishes the answer to a question, in place of whatever is there.
    pub fn publish_answer(&self, name: &str, text: &str) -> Result<()> {
        files::create_task_directory(&self.directory)?;
        files::publish(&self.answer_path(name), with_newline(text).as_bytes())
    }

    /// Marks the answer to a question as read.
    pub fn receive(&self, name: &str) -> Result<()> {
        files::publish_new(&self.file(name, "done"), b"").map(drop)
    }

    /// Marks the task as finished, with a summary.
    pub fn finish(&self, summary: &str) -> Result<()> {
        files::create_task_directory(&self.directory)?;
        files::publish(&self.directory.join(".done"), with_newline(summary).as_bytes())
    }

    /// Removes the finish marker.
    pub fn unfinish(&self) -> Result<()> {
        files::refuse_symlink(&self.directory)?;
        files::remove(&self.directory.join(".done"))
    }

    /// The time of the finish marker.
    pub fn finished_at(&self) -> Option<SystemTime> {
        fs::metadata(self.directory.join(".done")).ok()?.modified().ok()
    }

    /// The summary in the finish marker, empty if the worker only touched the file; `None` if the task
    /// is not finished.
    pub fn finished(&self) -> Result<Option<String>> {
        Ok(files::read_start(&self.directory.join(".done"), LONGEST_FINISH)?
            .map(lossy)
            .map(|text| text.trim().into()))
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.directory.join(format!("{name}.{kind}"))
    }
}

fn with_newline(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() { String::new() } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_gets_the_next_number_also_beyond_999() {
        let home = tempfile::tempdir().expect("a directory");
        let ipc = Ipc::new(home.path().into());
        assert_eq!(ipc.ask("a?").expect("asked"), "001");
        fs::write(home.path().join("999.question"), "old").expect("written");
        assert_eq!(ipc.ask("b?").expect("asked"), "1000");
        assert_eq!(ipc.questions().expect("read").last().map(|q| &*q.name), Some("1000"));
        fs::write(home.path().join("999999.question"), "old").expect("written");
        let error = ipc.ask("c?").expect_err("no number").to_string();
        assert!(error.starts_with("there is no number left\n  in "), "{error}");
    }

    #[test]
    fn question_is_open_until_it_has_an_answer() {
        let home = tempfile::tempdir().expect("a directory");
        let ipc = Ipc::new(home.path().into());
        let name = ipc.ask("which?").expect("asked");
        let is_open = || ipc.questions().expect("read").iter().any(Question::is_open);
        assert!(is_open());
        ipc.publish_answer(&name, "this").expect("answered");
        assert!(!is_open());
        assert_eq!(ipc.answer(&name).expect("read").expect("an answer").text, "this\n");
    }

    #[test]
    fn other_files_in_ipc_are_not_questions() {
        let home = tempfile::tempdir().expect("a directory");
        for name in
            ["001.question.tmp", ".question", "x.question", ".001.question.abc.dispatch.tmp"]
        {
            fs::write(home.path().join(name), "no").expect("written");
        }
        assert!(Ipc::new(home.path().into()).questions().expect("read").is_empty());
    }
}
