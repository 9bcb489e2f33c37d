//! The ledger of news: one line for each step of an event, appended to a task's `news` file.
//!
//! Invariant: `delivered` is written before the news is printed, so a crash between the two delays
//! news and never repeats it as new. The file is not synced: if a power failure loses a line, the
//! news is printed again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, Result};

use crate::fault;
use crate::files;
use crate::ids::now;
use crate::news::Event;
use crate::process::Identity;
use crate::task::Task;
use crate::text::lossy;

/// How far an event has been delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// The event was printed for nobody.
    #[default]
    New,
    /// The event was printed, but not for the host it belongs to.
    Shown,
    /// The event was printed for its host, which may not have seen it.
    Delivered,
    /// The host has seen the event.
    Acknowledged,
}

/// The ledger of one task, locked for as long as it is open.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    standings: BTreeMap<String, Delivery>,
}

impl Ledger {
    /// Opens and locks a task's ledger.
    pub fn open(task: &Task) -> Result<Self> {
        let path = task.news_path();
        let mut file = files::open_append(&path)?;
        let failed = || format!("cannot read {}", path.display());
        file.lock().with_context(failed)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(failed)?;
        Ok(Self { file, standings: parse(&String::from_utf8_lossy(&text)) })
    }

    /// How far an event has been delivered.
    pub fn standing(&self, event: &Event) -> Delivery {
        self.standings.get(&event.id).copied().unwrap_or_default()
    }

    /// Records that an event is about to be printed for `host`.
    pub fn deliver(&mut self, event: &Event, host: Option<&Identity>) -> Result<()> {
        let host = host.map_or_else(|| "-".into(), Identity::to_string);
        self.write(
            &event.id,
            Delivery::Delivered,
            &format!("delivered {} {} {host}", event.id, event.key),
        )
    }

    /// Records that an event is about to be printed for somebody other than its host.
    pub fn show(&mut self, event: &Event) -> Result<()> {
        self.write(&event.id, Delivery::Shown, &format!("shown {} {}", event.id, event.key))
    }

    /// Records that the host has seen an event.
    pub fn acknowledge(&mut self, id: &str) -> Result<()> {
        if self.standings.get(id) == Some(&Delivery::Acknowledged) {
            return Ok(());
        }
        self.write(id, Delivery::Acknowledged, &format!("acknowledged {id}"))
    }

    fn write(&mut self, id: &str, standing: Delivery, what: &str) -> Result<()> {
        // A single write: a crash leaves a whole line or none.
        let line = format!("{} {what}\n", now());
        self.file.write_all(line.as_bytes()).context("cannot write the ledger of news")?;
        self.standings.insert(id.into(), standing);
        fault::point("news", what.split(' ').next().unwrap_or_default());
        Ok(())
    }
}

/// Reads a task's ledger without its lock, to see whether there is anything to write.
pub fn read(task: &Task) -> Result<BTreeMap<String, Delivery>> {
    Ok(parse(&files::read_foreign(&task.news_path())?.map(lossy).unwrap_or_default()))
}

fn parse(text: &str) -> BTreeMap<String, Delivery> {
    let mut standings = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ').skip(1);
        let standing = match words.next() {
            Some("shown") => Delivery::Shown,
            Some("delivered") => Delivery::Delivered,
            Some("acknowledged") => Delivery::Acknowledged,
            _ => continue,
        };
        if let Some(id) = words.next() {
            let best: &mut Delivery = standings.entry(id.to_string()).or_default();
            *best = standing.max(*best);
        }
    }
    standings
}
