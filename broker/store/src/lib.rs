//! Durable queues of the broker: one commit for everything that arrived meanwhile.
//!
//! A **receiver** is a persistent session, a shared group or one sink of a dataflow; it has one queue. A **path** is
//! that queue seen as a line of the ledger. An **entry** is a message in a queue; it leaves exactly once, with an
//! outcome. Everything that happens is an [`Operation`]; operations travel in ordered [`Batch`]es; the [`Committer`]
//! makes all batches that arrived meanwhile durable with one sync and answers them in their order. What was not
//! answered may be lost, what was answered is not.
//!
//! ```text
//! connection ─ submit(operations) ─► Committer ─ group ─► Store::commit ─ one atomic, synced write ─► engine
//!        ◄────────── Completion ────────┘                     │
//! reader ─ Store::read(receiver, range) ◄──────────────────────┘ (committed groups only)
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`batch`] | operations and what became of them |
//! | [`entry`] | messages, entries, dead letters, packets in flight |
//! | [`store`] | the trait |
//! | [`committer`] | group commit, backpressure, watchdog |
//! | [`ledger`] | totals of paths and sources |
//! | [`limits`] | limits of a queue |
//! | [`topics`] | limits by topic filter |
//! | [`clock`] | the clock that expiry runs on |
//! | [`offline`] | looking at a store that no broker has open |

mod apply;
mod attempts;
pub mod batch;
mod cipher;
pub mod clock;
mod codec;
pub mod committer;
mod engine;
pub mod entry;
mod error;
mod fjall_store;
mod keys;
pub mod ledger;
pub mod limits;
mod memory;
pub mod offline;
mod queue_store;
mod record;
mod rows;
mod sent;
mod space;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;
pub mod topics;
mod transaction;

pub use batch::{Applied, Batch, Opening, Operation, Publish, Refusal};
pub use cipher::{Encryption, wrap::KeyWrapper};
pub use clock::{BrokerClock, BrokerTime};
pub use committer::{Committer, CommitterHandle, CommitterOptions, Completion, Room, Submitted};
pub use entry::{
    Blob, DeadLetter, Direction, Entry, EntryFlags, EntryId, Inflight, Message, Page, PathEpoch, ReadRange,
    ReceiverId, Retained, Settlement, Slot, StateEntry, StoreEpoch,
};
pub use error::StoreError;
pub use fjall_store::{OpenReport, StoreOptions, open};
pub use ledger::{Counts, EndedTotals, PathTotals, SourceTotals, TopicWaiting};
pub use limits::{Limits, OverflowPolicy};
pub use store::{Position, Receiver, SharedStore, Space, Store};
pub use topics::{MAX_TOPIC_LIMITS, TopicLimit, TopicTotals};

/// A store that forgets everything when the process ends.
///
/// # Errors
/// None that can be met; the signature is that of every opening.
pub fn open_in_memory() -> Result<SharedStore, StoreError> {
    let store = queue_store::QueueStore::open(memory::MemoryEngine::default(), None, rand::random())?;
    Ok(std::sync::Arc::new(store))
}
