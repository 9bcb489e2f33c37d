//! The ledger of news: one line for each step of an event, appended to a task's `news` file.
//!
//! Invariant: `delivered` is written before the news is printed, so a crash between the two delays
//! news and never repeats it as new. The file is not synced: if a power failure loses a line, the
//! news is printed again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::fault;
use crate::files::{self, Lock};
use crate::ids::now;
use crate::news::{Event, question_key};
use crate::process::Identity;
use crate::task::Task;
use crate::text::lossy;

/// How far the delivery of an event has come, in order. An event that was never printed has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// The event was printed, but not for the host it belongs to.
    Shown,
    /// The event was printed for its host, which may not have seen it.
    Delivered,
    /// The host has seen the event.
    Acknowledged,
}

/// A task's ledger, locked for as long as it is open.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    text: String,
    deliveries: BTreeMap<String, Delivery>,
    _lock: Lock,
}

/// How long a helper waits for a ledger, which others hold for milliseconds. A waiter tries again later.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

impl Ledger {
    /// Opens and locks a task's ledger.
    ///
    /// # Errors
    /// Another helper holds it for too long, or the file cannot be opened or read.
    pub fn open(task: &Task) -> Result<Self> {
        let path = task.news_path();
        let lock = Lock::take(&path.with_extension("lock"), LOCK_LIMIT)?;
        let mut file = files::open_append(&path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        let text = lossy(text);
        Ok(Self { deliveries: parse(&text), text, file, _lock: lock })
    }

    /// Records that an event is about to be printed: for `host` (`-` if there is none) as
    /// [`Delivery::Delivered`], else as [`Delivery::Shown`]. Returns true unless that is recorded already.
    pub fn deliver(
        &mut self,
        event: &Event,
        target: Delivery,
        host: Option<&Identity>,
    ) -> Result<bool> {
        if self.deliveries.get(&event.id) >= Some(&target) {
            return Ok(false);
        }
        if target == Delivery::Shown {
            return self.show(event).map(|()| true);
        }
        let host = host.map_or_else(|| "-".into(), Identity::to_string);
        self.append(&format!("delivered {} {} {host}", event.id, event.key))?;
        self.deliveries.insert(event.id.clone(), target);
        Ok(true)
    }

    /// Records that an event is about to be printed, again if it was before: the question that was told
    /// last is the one that may be answered.
    pub fn show(&mut self, event: &Event) -> Result<()> {
        self.append(&format!("shown {} {}", event.id, event.key))
    }

    /// Records that the host has seen an event.
    pub fn acknowledge(&mut self, id: &str) -> Result<()> {
        match self.deliveries.get(id) {
            Some(Delivery::Acknowledged) => Ok(()),
            _ => self.append(&format!("acknowledged {id}")),
        }
    }

    /// Records that the person's `notify:` command is about to be told of an event. Returns whether it
    /// was not told before.
    pub fn notify(&mut self, event: &Event) -> Result<bool> {
        if self.text.contains(&format!(" notified {} ", event.id)) {
            return Ok(false);
        }
        self.append(&format!("notified {} {}", event.id, event.key)).map(|()| true)
    }

    fn append(&mut self, step: &str) -> Result<()> {
        // A single write: a crash leaves a whole line or none.
        let line = format!("{} {step}\n", now());
        self.file.write_all(line.as_bytes()).context("cannot write the ledger of news")?;
        fault::point("news", step.split(' ').next().unwrap_or_default());
        Ok(())
    }
}

/// The events that were not recorded as `target` yet. They are recorded as that for `host` now, so the
/// caller has to print them.
///
/// # Errors
/// A ledger that cannot be read or written, if no event is recorded.
pub fn take_new(
    task: &Task,
    mut events: Vec<Event>,
    target: Delivery,
    host: Option<&Identity>,
) -> Result<Vec<Event>> {
    // Read first, because opening the ledger for writing wakes all who watch the task.
    if !events.is_empty() {
        let deliveries = read(task)?;
        events.retain(|event| deliveries.get(&event.id) < Some(&target));
    }
    let mut new = Vec::new();
    if events.is_empty() {
        return Ok(new);
    }
    let mut ledger = Ledger::open(task)?;
    for event in events {
        match ledger.deliver(&event, target, host) {
            Ok(true) => new.push(event),
            Ok(false) => {}
            Err(error) if new.is_empty() => return Err(error),
            // Events already recorded as delivered must be returned, despite the error.
            Err(_) => break,
        }
    }
    Ok(new)
}

/// Records that the host was told these events and has seen them.
pub fn acknowledge(task: &Task, mut events: Vec<Event>, host: &Identity) -> Result<()> {
    let told = read(task)?;
    events.retain(|event| told.get(&event.id) != Some(&Delivery::Acknowledged));
    if events.is_empty() {
        return Ok(());
    }
    let mut ledger = Ledger::open(task)?;
    events.iter().try_for_each(|event| {
        ledger.deliver(event, Delivery::Delivered, Some(host))?;
        ledger.acknowledge(&event.id)
    })
}

/// The text of a task's ledger, read without the lock.
fn text(task: &Task) -> Result<String> {
    Ok(files::read_lossy(&task.news_path())?.unwrap_or_default())
}

/// The deliveries in a task's ledger by event id, read without the lock.
pub fn read(task: &Task) -> Result<BTreeMap<String, Delivery>> {
    text(task).map(|ledger| parse(&ledger))
}

/// The time since a message of the worker was last delivered to its host; `None` if that never happened,
/// or the clock was set back since.
pub fn time_since_tell(task: &Task) -> Result<Option<Duration>> {
    let ledger = text(task)?;
    let of_tell = |line: &&str| line.contains(" delivered ") && line.contains(" tell/");
    let time = ledger.lines().rfind(of_tell).and_then(|line| line.split(' ').next());
    let time = time.and_then(|time| humantime::parse_rfc3339(time).ok());
    Ok(time.and_then(|time| time.elapsed().ok()))
}

/// Returns true if the text of a question is the one that the host was told last; `None` if it was told none.
pub fn was_told(task: &Task, question: &str, asked: &str) -> Result<Option<bool>> {
    let ledger = text(task)?;
    let (any, this) = (format!("question/{question}/"), question_key(question, asked));
    let mut told =
        ledger.lines().flat_map(|line| line.split(' ')).filter(|it| it.starts_with(&any));
    Ok(told.next_back().map(|last| last == this))
}

/// The deliveries that the lines of a ledger record; unknown lines are skipped.
fn parse(text: &str) -> BTreeMap<String, Delivery> {
    let mut deliveries = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ').skip(1);
        let delivery = match words.next() {
            Some("shown") => Delivery::Shown,
            Some("delivered") => Delivery::Delivered,
            Some("acknowledged") => Delivery::Acknowledged,
            _ => continue,
        };
        if let Some(id) = words.next() {
            let best = deliveries.entry(id.to_string()).or_insert(delivery);
            *best = delivery.max(*best);
        }
    }
    deliveries
}
