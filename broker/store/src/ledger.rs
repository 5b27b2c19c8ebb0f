//! Totals of paths and sources.
//!
//! A path's totals are one row that changes in the same commit as its entries: `received`, `delivered`,
//! `dead_lettered` and `dropped` are counted, `waiting` is what remains of `received`. So the ledger balances after
//! any crash, and nothing is counted in memory.

use std::{collections::BTreeMap, time::Duration};

use foreshore_record::{DropReason, PathLedger};

use crate::{
    clock::BrokerTime,
    entry::{EntryId, PathEpoch, ReceiverId},
};

/// Most reasons that a path counts apart; further ones are counted as [`OTHER_REASON`].
pub const MAX_REASONS: usize = 32;

/// Longest reason that is counted by its name, in bytes.
pub const MAX_REASON_LEN: usize = 64;

/// Where drops are counted whose reason is too long or one too many.
pub const OTHER_REASON: &str = "other";

/// What entered a path and how it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries that ever entered.
    pub received: u64,
    /// Entries that the receiver acknowledged.
    pub delivered: u64,
    /// Entries that became dead letters.
    pub dead_lettered: u64,
    /// Entries that a policy dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Outputs that deliveries produced.
    pub emitted: u64,
    /// Deliveries that were repeated.
    pub redelivered: u64,
}

impl Counts {
    /// Entries that are in the queue.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        let left = self.delivered + self.dead_lettered + self.dropped.values().sum::<u64>();
        self.received.saturating_sub(left)
    }

    /// The ledger line of the path.
    #[must_use]
    pub fn to_ledger(&self, path: impl Into<String>) -> PathLedger {
        PathLedger {
            path: path.into(),
            received: self.received,
            delivered: self.delivered,
            waiting: self.waiting(),
            dead_lettered: self.dead_lettered,
            dropped: self.dropped.clone(),
            emitted: Some(self.emitted),
            redelivered: self.redelivered,
            gaps: 0,
        }
    }

    pub(crate) fn drop_entries(&mut self, reason: &DropReason, count: u64) {
        if count == 0 {
            return;
        }
        let name = reason.as_str();
        let fits = name.len() <= MAX_REASON_LEN
            && (self.dropped.contains_key(name) || self.dropped.len() < MAX_REASONS);
        let name = if fits { name } else { OTHER_REASON };
        *self.dropped.entry(name.to_owned()).or_default() += count;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.dead_lettered += other.dead_lettered;
        self.emitted += other.emitted;
        self.redelivered += other.redelivered;
        for (reason, count) in &other.dropped {
            self.drop_entries(&DropReason::other(reason.as_str()), *count);
        }
    }
}

/// Totals of a path, with what its backlog weighs.
#[derive(Clone, Debug, PartialEq)]
pub struct PathTotals {
    /// Whose queue.
    pub receiver: ReceiverId,
    /// The ledger line.
    pub ledger: PathLedger,
    /// Epoch of its last opening; 0 before the first.
    pub epoch: PathEpoch,
    /// No entry has a smaller id.
    pub head: EntryId,
    /// Bytes that wait, as counted against the limit.
    pub waiting_bytes: u64,
    /// When the oldest waiting entry was taken in, if any waits.
    pub oldest: Option<BrokerTime>,
    /// Bytes of dead letters that are kept.
    pub dead_letter_bytes: u64,
    /// Dead letters that made room for newer ones.
    pub dead_letters_evicted: u64,
    /// What waits of limits by topic filter.
    pub topics: Vec<TopicWaiting>,
}

/// What waits in one queue of one limit by topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicWaiting {
    /// Key of the limit; see [`crate::TopicLimit::key`].
    pub key: u64,
    /// Entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl PathTotals {
    /// Age of the oldest waiting entry; zero when none waits.
    #[must_use]
    pub fn oldest_age(&self, now: BrokerTime) -> Duration {
        self.oldest.map_or(Duration::ZERO, |oldest| now.since(oldest))
    }
}

/// Totals of all paths of a kind that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedTotals {
    /// First part of the paths' names, such as `session`.
    pub kind: String,
    /// How many paths ended.
    pub paths: u64,
    /// Their sum; nothing of it waits.
    pub counts: Counts,
}

/// The last number of a source, and what became of its numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceTotals {
    /// Who counts.
    pub source: String,
    /// Its last life.
    pub epoch: u64,
    /// Last number of that life.
    pub sequence: u64,
    /// Records that were taken in.
    pub accepted: u64,
    /// Records that were refused, finally.
    pub refused: u64,
    /// Repeats that were discarded.
    pub repeated: u64,
    /// Records of an older life that were discarded.
    pub fenced: u64,
    /// Interruptions of its count: numbers that never arrived.
    pub gaps: u64,
}

impl SourceTotals {
    /// The ledger line of the path that leads from the source to this broker.
    #[must_use]
    pub fn to_ledger(&self, path: impl Into<String>) -> PathLedger {
        let mut dropped = BTreeMap::new();
        if self.refused > 0 {
            dropped.insert(DropReason::REFUSED.as_str().to_owned(), self.refused);
        }
        PathLedger {
            path: path.into(),
            received: self.accepted + self.refused,
            delivered: self.accepted,
            dropped,
            redelivered: self.repeated,
            gaps: self.gaps,
            ..PathLedger::default()
        }
    }
}
