//! The one way to read a durable queue: in process at the broker, or over gRPC from another pod.
//!
//! A path is a durable queue and its one receiver. [`Paths::open`] raises the path's epoch durably, so that an older
//! reader can neither read nor settle any more. Entries are read by id and settled in any order; an entry stays until
//! it is settled, and a crash repeats it. Whoever reads decides what a lane is: ids below the tail of the opening are
//! backlog, ids from there on are live.
//!
//! The broker implements [`Paths`] for its engine; [`client`] implements it over gRPC; [`server`] serves any
//! implementation. One suite of tests runs over both.

pub mod client;
mod convert;
mod proto;
pub mod server;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
pub use foreshore_record::{EntryId, Settlement};
use foreshore_record::{PathLedger, Record};

/// A record in a queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its place in the order of ingest.
    pub id: EntryId,
    /// Epoch of the store when the entry was taken in; with its id it names the entry for ever, also when the store is
    /// set back to an older copy.
    pub store_epoch: u64,
    /// How often it was handed out before without being settled.
    pub attempt: u32,
    /// What was published.
    pub record: Arc<Record>,
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// Only entries with a larger id.
    pub after: EntryId,
    /// Only entries with a smaller id, if given.
    pub before: Option<EntryId>,
    /// At most so many.
    pub max_entries: u32,
    /// At most so many bytes of payload, but at least one entry.
    pub max_bytes: u32,
    /// How long to wait for the first one; an empty answer after that.
    pub wait: Duration,
}

/// What a read gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadBatch {
    /// Entries in order of id.
    pub entries: Vec<Entry>,
    /// First id that is not in the queue yet.
    pub tail: EntryId,
}

/// Totals of a path, with what its backlog weighs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PathTotals {
    /// The ledger line.
    pub ledger: PathLedger,
    /// Bytes of payload that wait.
    pub waiting_bytes: u64,
    /// Age of the oldest entry that waits.
    pub oldest_age: Duration,
}

/// A record that could not be processed.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its id in the path that it came from.
    pub id: EntryId,
    /// Epoch of the store when it was taken in.
    pub store_epoch: u64,
    /// The stage that failed, or `sink`.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// What was published.
    pub record: Arc<Record>,
}

/// Why a queue can't be read or settled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The broker has no such path (yet).
    #[error("no path named {path:?}")]
    NotFound {
        /// The path.
        path: String,
    },
    /// Another reader opened the path later; this one must stop.
    #[error("path {path:?} was opened by another reader")]
    Fenced {
        /// The path.
        path: String,
    },
    /// The broker knows nothing of this opening any more, as after its restart; the path can be opened again.
    #[error("the opening of path {path:?} has ended")]
    Closed {
        /// The path.
        path: String,
    },
    /// The caller's certificate does not entitle it to the path.
    #[error("path {path:?} may not be read by this role")]
    Forbidden {
        /// The path.
        path: String,
    },
    /// The queue is kept elsewhere, and is not let to us until somebody changes something; try again.
    #[error("broker refuses: {cause}")]
    Refused {
        /// What was refused, in the broker's words.
        cause: String,
    },
    /// The broker can't be reached or can't answer now; try again.
    #[error("broker is unavailable: {cause}")]
    Unavailable {
        /// What happened.
        cause: String,
    },
}

/// Durable queues that can be opened for reading.
#[async_trait]
pub trait Paths: Send + Sync + 'static {
    /// Opens a path and fences every earlier reader of it.
    ///
    /// # Errors
    /// [`Error::NotFound`] until the broker has applied the path's plan, [`Error::Forbidden`], [`Error::Unavailable`].
    async fn open(&self, path: &str) -> Result<Box<dyn OpenPath>, Error>;

    /// Totals of all paths that the caller may read.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn totals(&self) -> Result<Vec<PathTotals>, Error>;

    /// Dead letters of a path with a larger id than `after`, oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Forbidden`], [`Error::Unavailable`].
    async fn dead_letters(&self, path: &str, after: EntryId, max: u32) -> Result<Vec<DeadLetter>, Error>;

    /// Puts dead letters back to be processed again, and returns how many were found.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Forbidden`], [`Error::Unavailable`].
    async fn replay(&self, path: &str, ids: &[EntryId]) -> Result<u64, Error>;
}

/// A path opened for reading.
#[async_trait]
pub trait OpenPath: Send + Sync {
    /// Epoch of this opening; sinks that deduplicate pass it on.
    fn epoch(&self) -> u64;

    /// First id that was not in the queue when the path was opened.
    fn opening_tail(&self) -> EntryId;

    /// Reads entries.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another reader opened the path, [`Error::Closed`] when it has to be opened again,
    /// [`Error::NotFound`] when it was deleted, [`Error::Unavailable`].
    async fn read(&self, range: ReadRange) -> Result<ReadBatch, Error>;

    /// Settles entries and returns when that is durable. Entries that are settled already are ignored.
    ///
    /// # Errors
    /// As [`OpenPath::read`].
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), Error>;
}
