//! The demo worker: walks any plan, asks one question, uses the answer and finishes. It runs as an
//! ordinary command and knows only the task's directory.

use std::time::Duration;

use anyhow::Result;

use crate::files;
use crate::plan::Marker;
use crate::task::WorkerSide;
use crate::text::sanitize;

/// How long an item takes, so that a person can follow.
const PACE: Duration = Duration::from_millis(900);

const QUESTION: &str = "Who should the report greet?";

/// Works through the plan; `ask` asks the person and waits for the answer.
pub fn run(side: &WorkerSide, ask: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let plan = side.plan(side.start()?.as_ref())?;
    let mut ask = Some(ask);
    let mut report = format!("# Report: {}\n\n", plan.title().unwrap_or("demo"));
    for (at, item) in plan.items().iter().enumerate() {
        let number = &item.number;
        if item.marker == Marker::Done {
            continue;
        }
        println!("item {number}: {}", sanitize(&item.text));
        std::thread::sleep(PACE);
        let mut note = String::new();
        if at == 1
            && let Some(ask) = ask.take()
        {
            let answer = ask(QUESTION)?;
            note = format!("for {}", answer.trim());
            report.push_str(&format!("Hello, {}!\n\n", answer.trim()));
        }
        report.push_str(&format!("{number}. {}: done\n", item.text));
        if at + 1 == plan.items().len() {
            files::publish(&side.report_path(), report.as_bytes())?;
        }
        side.edit_plan(|plan| plan.mark(number, Marker::Done, &note))?;
    }
    side.ipc().finish("Walked the whole plan, asked one question and used the answer.")
}
