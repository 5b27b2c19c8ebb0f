//! What can be done to a store: one ordered batch of operations, and what became of each.

use bytes::Bytes;
use foreshore_record::{DropReason, Record, SourceNumber};

use crate::{
    clock::BrokerTime,
    entry::{EntryFlags, EntryId, Inflight, Message, PathEpoch, ReceiverId, Settlement, Slot},
    error::StoreError,
    limits::Limits,
    topics::TopicLimit,
};

/// Operations that become durable together, in their order.
///
/// A batch is applied in the same way wherever it is applied: everything it depends on, time and ids included, is in
/// it or in the store.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Time of submission on the broker's clock.
    pub now: BrokerTime,
    /// First of the ids that the batch's messages get; see [`Operation::ids`].
    pub first_id: EntryId,
    /// What to do.
    pub operations: Vec<Operation>,
}

/// One step of a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Takes a message in.
    ///
    /// If the message is numbered, a repeat or an older epoch of its source is discarded, and the number is recorded
    /// with the message. Receivers that do not exist any more are passed over. With neither receivers nor number nor
    /// retained message, nothing is written.
    Publish(Publish),
    /// Records that the broker refused a numbered message for a reason of its own; final for the number.
    Refuse {
        /// The number.
        number: SourceNumber,
    },
    /// Entries leave their queue, in any order. Entries that are not there are passed over.
    Settle {
        /// Whose queue.
        receiver: ReceiverId,
        /// Epoch of the opening that they were read under; an older one is fenced.
        epoch: PathEpoch,
        /// Which entries, and how they left.
        settlements: Vec<Settlement>,
    },
    /// Records that all entries between two ids were handed out, so that those which are unsettled at the next opening
    /// gain an attempt. An entry that crashes the whole process counts only if this was durable before it was handed
    /// out: whoever hands out an entry with attempts awaits it.
    HandOut {
        /// Whose queue.
        receiver: ReceiverId,
        /// Epoch of the opening; an older one is fenced.
        epoch: PathEpoch,
        /// They have larger ids than this.
        after: EntryId,
        /// The last of them.
        up_to: EntryId,
        /// How many of them had been handed out before.
        redelivered: u64,
    },
    /// Creates a receiver, or gives the one of that name these limits.
    PutReceiver {
        /// Name of its path, such as `session/client-7`; at most [`MAX_NAME_LEN`] bytes.
        name: String,
        /// Limits of its queue.
        limits: Limits,
    },
    /// Ends a receiver: what waits is dropped with this reason at once, in one row; entries are removed later.
    DropReceiver {
        /// Which.
        receiver: ReceiverId,
        /// Why, such as [`DropReason::SESSION_ENDED`].
        reason: DropReason,
    },
    /// Raises a path's epoch, which fences its earlier readers, and counts an attempt for what they left.
    OpenPath {
        /// Which.
        receiver: ReceiverId,
    },
    /// Drops expired and over-aged entries at the head of a queue.
    Sweep {
        /// Whose queue.
        receiver: ReceiverId,
    },
    /// Puts limits by topic filter in force, [`crate::MAX_TOPIC_LIMITS`] at most, in place of those that were. They hold
    /// for what is queued from then on.
    SetTopicLimits {
        /// All of them; the first that matches a topic counts.
        limits: Vec<TopicLimit>,
    },
    /// Puts dead letters into a queue, as new entries of that path. They do not expire again, and limits do not hold
    /// them up.
    Replay {
        /// Path whose dead letters they are.
        from: ReceiverId,
        /// Which; those that are not there are passed over.
        ids: Vec<EntryId>,
        /// Queue that they enter.
        to: ReceiverId,
    },
    /// Removes dead letters for good.
    DeleteDeadLetters {
        /// Path whose dead letters they are.
        receiver: ReceiverId,
        /// Which; those that are not there are passed over.
        ids: Vec<EntryId>,
    },
    /// Forgets the retained message of a topic.
    DeleteRetained {
        /// The topic.
        topic: String,
    },
    /// Writes the state of a session.
    PutSession {
        /// Its client; at most [`MAX_NAME_LEN`] bytes.
        client_id: String,
        /// Opaque to the store.
        state: Bytes,
    },
    /// Forgets the state of a session.
    DeleteSession {
        /// Its client.
        client_id: String,
    },
    /// Writes a will.
    PutWill {
        /// Its client; at most [`MAX_NAME_LEN`] bytes.
        client_id: String,
        /// Opaque to the store.
        state: Bytes,
    },
    /// Forgets a will.
    DeleteWill {
        /// Its client.
        client_id: String,
    },
    /// Writes an entry of the state store.
    PutState {
        /// Its key; at least one and at most [`MAX_NAME_LEN`] bytes.
        key: Bytes,
        /// Opaque to the store.
        value: Bytes,
    },
    /// Forgets an entry of the state store.
    DeleteState {
        /// Its key.
        key: Bytes,
    },
    /// Writes the state of a message in flight.
    SetInflight {
        /// Where.
        slot: Slot,
        /// State.
        state: Inflight,
    },
    /// Frees the place of a message in flight.
    ClearInflight {
        /// Where.
        slot: Slot,
    },
    /// Frees all places of a session.
    ClearSession {
        /// The session, by the receiver that is its queue.
        session: ReceiverId,
    },
}

/// A message to take in, and for whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    /// The message.
    pub message: Message,
    /// Receivers with how each wants it, each receiver once.
    pub receivers: Vec<(ReceiverId, EntryFlags)>,
    /// Whether to keep it as its topic's last message; an empty payload forgets that message (MQTT 5.0 section
    /// 3.3.1.3).
    pub update_retained: bool,
    /// Quality of service 2: the inbound place that is taken in the same step. If it is taken already, the message is
    /// a repeat.
    pub receipt: Option<Slot>,
}

/// Longest name of a receiver, client, source or topic, in bytes: what an MQTT string and a key can hold.
pub const MAX_NAME_LEN: usize = 65_535;

impl Operation {
    /// How many ids the operation needs; the ids of a batch are given out in the order of its operations.
    #[must_use]
    pub fn ids(&self) -> u64 {
        match self {
            Self::Publish(_) => 1,
            Self::Replay { ids, .. } => ids.len() as u64,
            _ => 0,
        }
    }

    /// Checks what the caller is answerable for.
    ///
    /// # Errors
    /// [`StoreError::InvalidBatch`] when a name is too long, or a key of the state store is empty.
    pub fn check(&self) -> Result<(), StoreError> {
        let (what, length) = match self {
            Self::Publish(Publish { message, .. }) => ("topic", message.record.topic.as_str().len()),
            Self::Refuse { number } => ("source", number.source.len()),
            Self::PutReceiver { name, .. } => ("receiver", name.len()),
            Self::DeleteRetained { topic } => ("topic", topic.len()),
            Self::PutSession { client_id, .. }
            | Self::DeleteSession { client_id }
            | Self::PutWill { client_id, .. }
            | Self::DeleteWill { client_id } => ("client", client_id.len()),
            Self::PutState { key, .. } | Self::DeleteState { key } => ("state", key.len()),
            _ => return Ok(()),
        };
        if length == 0 && matches!(self, Self::PutState { .. } | Self::DeleteState { .. }) {
            let cause = format!("{what} has an empty key, 1 to {MAX_NAME_LEN} bytes are allowed");
            return Err(StoreError::InvalidBatch { cause });
        }
        if length > MAX_NAME_LEN {
            let cause = format!("{what} has a name of {length} bytes, {MAX_NAME_LEN} are allowed");
            return Err(StoreError::InvalidBatch { cause });
        }
        Ok(())
    }

    /// Rough size in memory, in bytes; what queued batches are bounded by.
    #[must_use]
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Publish(publish) => {
                    size_of::<Record>()
                        + crate::record::weight(&publish.message.record)
                        + size_of_val(publish.receivers.as_slice())
                }
                Self::Settle { settlements, .. } => size_of_val(settlements.as_slice()),
                Self::Replay { ids, .. } | Self::DeleteDeadLetters { ids, .. } => 8 * ids.len(),
                Self::PutReceiver { name, .. } => name.len(),
                Self::PutSession { client_id, state } | Self::PutWill { client_id, state } => {
                    client_id.len() + state.len()
                }
                Self::PutState { key, value } => key.len() + value.len(),
                Self::DeleteState { key } => key.len(),
                Self::DeleteRetained { topic: name }
                | Self::DeleteSession { client_id: name }
                | Self::DeleteWill { client_id: name } => name.len(),
                Self::Refuse { number } => number.source.len(),
                Self::SetTopicLimits { limits } => size_of_val(limits.as_slice()),
                Self::HandOut { .. }
                | Self::DropReceiver { .. }
                | Self::OpenPath { .. }
                | Self::Sweep { .. }
                | Self::SetInflight { .. }
                | Self::ClearInflight { .. }
                | Self::ClearSession { .. } => 0,
            }
    }
}

/// What became of an operation, once it is durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// It was done; there is nothing to tell.
    Done,
    /// The message was taken in.
    Published {
        /// Its id.
        id: EntryId,
        /// Receivers whose full queue did not take it (`overflow_new`, `topic_overflow_new`, `too_large`).
        passed_over: Vec<(ReceiverId, DropReason)>,
    },
    /// The message was not taken in.
    Refused(Refusal),
    /// Entries left.
    Settled {
        /// How many.
        settled: u64,
        /// How many were not there (any more).
        unknown: u64,
    },
    /// The receiver exists.
    Receiver {
        /// Which.
        receiver: ReceiverId,
        /// Whether it is new.
        created: bool,
    },
    /// The path is open.
    Opened(Opening),
    /// An older opening of the path asked.
    Fenced {
        /// Epoch of the path.
        epoch: PathEpoch,
    },
    /// No such receiver (any more).
    UnknownReceiver,
    /// Entries or dead letters were found and moved, dropped or removed.
    Affected {
        /// How many.
        count: u64,
        /// Whether there is more of it to do.
        more: bool,
    },
}

/// Why a message was not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It was taken in, or refused, before: a publisher repeats what it has no acknowledgement of. To be acknowledged
    /// as if it were new.
    Repeated,
    /// A later life of its source has published.
    Fenced {
        /// Epoch of that life.
        epoch: u64,
    },
    /// The queue of this receiver is full and its policy refuses publishers.
    QueueFull {
        /// Which.
        receiver: ReceiverId,
    },
    /// Free space of the disk is below the watermark.
    NoSpace,
}

/// A path that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Epoch of this opening.
    pub epoch: PathEpoch,
    /// No entry has a smaller id.
    pub head: EntryId,
    /// First id that was not given out yet.
    pub tail: EntryId,
    /// Entries whose attempts were used up, now dead letters.
    pub dead_lettered: u64,
}
