//! The narrow trait that the broker stores through.

use std::sync::Arc;

use crate::{
    batch::{Applied, Batch},
    cipher::Encryption,
    clock::BrokerTime,
    entry::{
        Blob, DeadLetter, EntryId, Inflight, Page, ReadRange, ReceiverId, Retained, Slot, StateEntry,
        StoreEpoch,
    },
    error::StoreError,
    ledger::{EndedTotals, PathTotals, SourceTotals},
    limits::Limits,
    topics::TopicTotals,
};

/// Where a store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// First id that was not given out yet.
    pub next_id: EntryId,
    /// Broker time of the last commit: the floor of the clock.
    pub now: BrokerTime,
    /// Epoch of this opening of the store.
    pub epoch: StoreEpoch,
}

/// A receiver as it was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    /// Its id.
    pub id: ReceiverId,
    /// Name of its path.
    pub name: String,
    /// Limits of its queue.
    pub limits: Limits,
}

/// Free space of the disk below the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes that are free to us.
    pub free: u64,
    /// Bytes below which publishes are refused.
    pub watermark: u64,
}

impl Space {
    /// Whether publishes are refused.
    #[must_use]
    pub fn is_low(self) -> bool {
        self.free < self.watermark
    }
}

/// Durable queues, their ledger, and the state of MQTT sessions.
///
/// Writing is one ordered batch after the other: [`crate::Committer`] collects what was submitted meanwhile into one
/// group. Reads see whole groups, never a part of one, and run beside commits. All functions may wait for the disk: an
/// asynchronous caller reads from a blocking thread.
pub trait Store: Send + Sync + 'static {
    /// Applies batches in their order and returns when all of it is durable, with what became of each operation.
    ///
    /// # Errors
    /// After an error nothing of the group may be acknowledged, and nothing can be committed any more.
    fn commit(&self, group: &[Batch]) -> Result<Vec<Vec<Applied>>, StoreError>;

    /// Where the store stands.
    fn position(&self) -> Position;

    /// Does a bounded piece of background work (ended receivers' entries, over-aged entries) and returns whether more
    /// is to do.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn maintain(&self, now: BrokerTime) -> Result<bool, StoreError>;

    /// Reads entries of a queue, beginning at its head. Empty for a receiver that does not exist.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn read(&self, receiver: ReceiverId, range: ReadRange, now: BrokerTime) -> Result<Page, StoreError>;

    /// Totals of a path; `None` if there is no such receiver (any more).
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn totals(&self, receiver: ReceiverId) -> Result<Option<PathTotals>, StoreError>;

    /// Totals of paths that ended, summed by the kind of path.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn ended(&self) -> Result<Vec<EndedTotals>, StoreError>;

    /// Limits by topic filter that are in force, with what they come to.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn topics(&self) -> Result<Vec<TopicTotals>, StoreError>;

    /// The receiver of that name.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn find_receiver(&self, name: &str) -> Result<Option<ReceiverId>, StoreError>;

    /// Receivers with a larger id, in order of id.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn receivers(&self, after: ReceiverId, max: usize) -> Result<Vec<Receiver>, StoreError>;

    /// Dead letters of a path with a larger id, oldest first.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn dead_letters(
        &self,
        receiver: ReceiverId,
        after: EntryId,
        max: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Retained messages whose topic comes after the given one, in order of topic, or in one of its
    /// own if the store is encrypted. Expired ones are among them.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn retained(&self, after: Option<&str>, max: usize) -> Result<Vec<Retained>, StoreError>;

    /// The retained message of a topic.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn retained_message(&self, topic: &str) -> Result<Option<Retained>, StoreError>;

    /// States of sessions whose client comes after the given one, in the order of [`Store::retained`].
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn sessions(&self, after: Option<&str>, max: usize) -> Result<Vec<Blob>, StoreError>;

    /// Wills whose client comes after the given one, in the order of [`Store::retained`].
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn wills(&self, after: Option<&str>, max: usize) -> Result<Vec<Blob>, StoreError>;

    /// Entries of the state store whose key comes after the given one, in the order of [`Store::retained`]: at least one if there is one,
    /// and no more than hold so many bytes.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn state(&self, after: Option<&[u8]>, max_bytes: usize) -> Result<Vec<StateEntry>, StoreError>;

    /// Messages in flight of a session, at most two times 65,535.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn inflight(&self, session: ReceiverId) -> Result<Vec<(Slot, Inflight)>, StoreError>;

    /// The last number of a source, with its totals.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn source(&self, source: &str) -> Result<Option<SourceTotals>, StoreError>;

    /// Sources whose name comes after the given one, in the order of [`Store::retained`].
    ///
    /// # Errors
    /// When the disk or the engine fails.
    fn sources(&self, after: Option<&str>, max: usize) -> Result<Vec<SourceTotals>, StoreError>;

    /// Messages that were dropped because a queue is full, since the store was opened; not those that a limit by topic
    /// filter dropped.
    fn overflowed(&self) -> u64;

    /// How the store is encrypted; `None` if it is not.
    fn encryption(&self) -> Option<Encryption>;

    /// Free space of the disk; `None` where there is no disk.
    fn space(&self) -> Option<Space>;

    /// Writes what is needed for a quick next start. Nothing can be committed after it.
    ///
    /// # Errors
    /// When the last sync fails; nothing that was acknowledged is affected.
    fn close(&self) -> Result<(), StoreError>;
}

/// A store that is shared by everything in the broker.
pub type SharedStore = Arc<dyn Store>;
