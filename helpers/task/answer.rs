//! The person's answers: `answers/NNN`, with the question as it was shown.
//!
//! Invariant: only a recorded answer is passed on as the person's word, or restarts a worker that
//! ended; the file in `ipc/` is a copy for the worker that waits.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::files;
use crate::task::{Task, broken};

/// An answer of the person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question as it was shown.
    pub question: String,
    /// The person's words.
    pub answer: String,
}

impl Task {
    /// The directory with the recorded answers.
    pub fn answers_dir(&self) -> PathBuf {
        self.state_dir().join("answers")
    }

    /// The marker that the answer stands in a prompt.
    fn told_marker(&self, name: &str) -> PathBuf {
        self.answers_dir().join(format!("{name}.told"))
    }

    /// The recorded answers by the number of the question, oldest first.
    ///
    /// # Errors
    /// [`crate::exit::Exit::Data`] if a file is broken.
    pub fn answers(&self) -> Result<Vec<(String, Answer)>> {
        let parse = |(name, text): (String, String)| match serde_json::from_str(&text) {
            Ok(answer) => Ok((name, answer)),
            Err(error) => {
                let path = self.answers_dir().join(name);
                Err(broken(&path, &error, "move it away, and answer again").into())
            }
        };
        files::read_numbered(&self.answers_dir())?.into_iter().map(parse).collect()
    }

    /// Records an answer; `false` if the question has one.
    pub fn record_answer(&self, name: &str, answer: &Answer) -> Result<bool> {
        files::create_private_directory(&self.answers_dir())?;
        files::publish_new(
            &self.answers_dir().join(name),
            serde_json::to_string(answer)?.as_bytes(),
        )
    }

    /// Gives the worker its copies of the recorded answers that it lacks: the helper that recorded one
    /// may have been killed.
    pub fn publish_answers(&self) -> Result<()> {
        let ipc = self.side().ipc();
        for (name, answer) in self.answers()? {
            if !ipc.has_answer(&name) && ipc.has_question(&name) {
                ipc.publish_answer(&name, &answer.answer)?;
            }
        }
        Ok(())
    }

    /// Returns true if an answer was recorded less than `age` ago.
    pub fn was_answered_within(&self, age: Duration) -> bool {
        let names = self.answers().unwrap_or_default();
        names.iter().any(|(name, _)| files::modified_within(&self.answers_dir().join(name), age))
    }

    /// Returns true if a recorded answer was neither read by the worker nor passed on in a prompt.
    pub fn has_untold_answer(&self) -> Result<bool> {
        let ipc = self.side().ipc();
        let untold = |name: &String| !self.told_marker(name).exists() && !ipc.was_received(name);
        Ok(self.answers()?.iter().any(|(name, _)| untold(name)))
    }

    /// Records that a prompt passes on all answers so far.
    pub(super) fn mark_answers_told(&self) -> Result<()> {
        for (name, _) in self.answers()? {
            files::publish_new(&self.told_marker(&name), b"")?;
        }
        Ok(())
    }
}
