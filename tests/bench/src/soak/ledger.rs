//! What the store holds after the broker has ended: the ledger of each path, beside a count of what really is there.

use std::path::Path;

use anyhow::{Context, Result};
use foreshore_store::{ReadRange, ReceiverId, Store, StoreOptions};

use crate::mqtt::wire::stamp;

/// Rows that are read at once.
const PAGE: usize = 1_000;

/// Bytes that are read at once.
const PAGE_BYTES: usize = 8 << 20;

/// A path that has a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Such as `session/soak-reader`.
    pub(super) path: String,
    pub(super) received: u64,
    pub(super) delivered: u64,
    pub(super) waiting: u64,
    pub(super) dead_lettered: u64,
    pub(super) dropped: u64,
    /// Entries that are in the queue, counted one by one.
    pub(super) present: u64,
}

impl Line {
    /// Whether everything that came in is accounted for, and what waits is there.
    pub(super) fn balances(&self) -> bool {
        let left = self.delivered + self.waiting + self.dead_lettered + self.dropped;
        self.received == left && self.waiting == self.present
    }
}

/// Everything that is of interest in a store.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pub(super) lines: Vec<Line>,
    /// Sessions that ended.
    pub(super) ended: u64,
    /// The sum of their paths; nothing of it waits.
    pub(super) of_ended: Line,
    /// Topic and number of each retained message.
    pub(super) retained: Vec<(String, u64)>,
    /// Whether the broker had closed the store in order.
    pub(super) clean: bool,
}

impl Ledger {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let (store, report) = foreshore_store::open(folder, &StoreOptions::default())
            .with_context(|| format!("open the store in {}", folder.display()))?;
        let mut ledger = Self {
            clean: report.clean && !report.lost_something(),
            ..Self::default()
        };
        let mut after = 0;
        loop {
            let page = store.receivers(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for receiver in page {
                let present = present(&*store, receiver.id)?;
                let totals = store.totals(receiver.id)?.context("a receiver without totals")?;
                let counted = totals.ledger;
                ledger.lines.push(Line {
                    received: counted.received,
                    delivered: counted.delivered,
                    waiting: counted.waiting,
                    dead_lettered: counted.dead_lettered,
                    dropped: counted.dropped_total(),
                    present,
                    path: counted.path,
                });
            }
        }
        for ended in store.ended()? {
            ledger.ended += ended.paths;
            let sum = &mut ledger.of_ended;
            sum.path = format!("{} (ended)", ended.kind);
            sum.received += ended.counts.received;
            sum.delivered += ended.counts.delivered;
            sum.dead_lettered += ended.counts.dead_lettered;
            sum.dropped += ended.counts.dropped.values().sum::<u64>();
        }
        let mut after: Option<String> = None;
        loop {
            let page = store.retained(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.record.topic.to_string());
            for retained in page {
                let record = &retained.record;
                let (_, number) = stamp(&record.payload)?;
                ledger.retained.push((record.topic.to_string(), number));
            }
        }
        store.close()?;
        Ok(ledger)
    }

    pub(super) fn line(&self, path: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.path == path)
    }
}

/// Counts the entries of a queue, those that have expired included.
fn present(store: &dyn Store, receiver: ReceiverId) -> Result<u64> {
    let (mut present, mut after) = (0, 0);
    loop {
        let range = ReadRange {
            after,
            before: None,
            max_entries: PAGE,
            max_bytes: PAGE_BYTES,
        };
        let page = store.read(receiver, range, store.position().now)?;
        present += (page.entries.len() + page.expired.len() + page.damaged.len()) as u64;
        after = page.resume_after;
        if page.at_end {
            return Ok(present);
        }
    }
}
