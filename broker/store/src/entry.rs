//! What is stored: messages, a receiver's entries for them, dead letters, and the states of MQTT sessions.

use std::sync::Arc;

use bytes::Bytes;
pub use foreshore_record::{EntryId, Settlement, StoreEpoch};
use foreshore_record::{Qos, Record};

use crate::clock::BrokerTime;

/// A durable receiver: a persistent session, a shared group or one sink of a dataflow. Never reused.
pub type ReceiverId = u64;

/// A life of a path: rises with each opening; a settlement of an earlier life is fenced.
pub type PathEpoch = u64;

/// A message to be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What was published. Its `number` is checked against the last one of its source, so the broker clears it when it
    /// does not believe the publisher.
    pub record: Arc<Record>,
    /// When it is worthless to whoever has not got it yet (MQTT 5.0 section 3.3.2.3.3).
    pub expires_at: Option<BrokerTime>,
}

/// How an entry is to be delivered to its receiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFlags {
    /// Quality of service of the delivery: the lower of the publication's and the subscription's.
    pub qos: Qos,
    /// RETAIN flag of the delivery: a retained message sent at subscription, or one sent on as published.
    pub retain: bool,
    /// Identifiers of all subscriptions that it matched (MQTT 5.0 section 3.3.2.3.8).
    pub subscription_identifiers: Vec<u32>,
}

/// A message in a receiver's queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its place in the order of ingest; the same for all receivers of the message.
    pub id: EntryId,
    /// Epoch of the store when it was taken in; (epoch, id) names the record for ever.
    pub store_epoch: StoreEpoch,
    /// How often it was handed out before without being settled.
    pub attempt: u32,
    /// How to deliver it.
    pub flags: EntryFlags,
    /// What was published.
    pub record: Arc<Record>,
    /// When it was taken in.
    pub ingested_at: BrokerTime,
    /// When it is worthless.
    pub expires_at: Option<BrokerTime>,
    /// What it counts against the queue's limit, in bytes.
    pub size: u32,
}

/// Which entries to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRange {
    /// Only entries with a larger id; 0 reads from the head.
    pub after: EntryId,
    /// Only entries with a smaller id, if given.
    pub before: Option<EntryId>,
    /// At most so many.
    pub max_entries: usize,
    /// At most so many bytes, but at least one entry.
    pub max_bytes: usize,
}

/// What a read gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Entries in order of id.
    pub entries: Vec<Entry>,
    /// Entries in the range that had expired; whoever reads settles them as dropped (`expired`).
    pub expired: Vec<EntryId>,
    /// Entries in the range that can't be decoded; whoever reads settles them as dropped (`corrupt`).
    pub damaged: Vec<EntryId>,
    /// Where the next read goes on: the last id that was looked at.
    pub resume_after: EntryId,
    /// Whether nothing follows in the range.
    pub at_end: bool,
    /// First id that was not given out yet when the page was read.
    pub tail: EntryId,
}

/// A record that could not be processed.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Its id in the path that it came from.
    pub id: EntryId,
    /// Epoch of the store when it was taken in.
    pub store_epoch: StoreEpoch,
    /// The stage that failed, or `sink`; `open` when its attempts were used up.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// When it became a dead letter.
    pub at: BrokerTime,
    /// How it was to be delivered.
    pub flags: EntryFlags,
    /// What was published.
    pub record: Arc<Record>,
}

/// An entry of the state store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its key.
    pub key: Bytes,
    /// What the broker wrote.
    pub value: Bytes,
}

/// Direction of a message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the client: its packet identifiers.
    Inbound = 0,
    /// To the client: ours.
    Outbound = 1,
}

/// Place of a message in flight: a session's packet identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// The session, by the receiver that is its queue.
    pub session: ReceiverId,
    /// Who numbered the packet.
    pub direction: Direction,
    /// Packet identifier.
    pub packet_id: u16,
}

/// State of a message in flight (MQTT 5.0 section 4.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inflight {
    /// Inbound, quality of service 2: PUBLISH was taken in, PUBREL is awaited.
    Received,
    /// Outbound: PUBLISH was sent, PUBACK or PUBREC is awaited.
    Sent {
        /// Queue of the entry: the session's own or a shared group's.
        receiver: ReceiverId,
        /// The entry.
        id: EntryId,
    },
    /// Outbound, quality of service 2: PUBREL was sent, PUBCOMP is awaited; the entry is settled already.
    Released,
}

/// A named blob: the state of a session or a will, opaque to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The client it belongs to.
    pub client_id: String,
    /// What the broker wrote.
    pub state: Bytes,
}

/// A retained message.
#[derive(Clone, Debug, PartialEq)]
pub struct Retained {
    /// Id that it was taken in with.
    pub id: EntryId,
    /// What was published; its topic is its key.
    pub record: Arc<Record>,
    /// When it was taken in.
    pub ingested_at: BrokerTime,
    /// When it is worthless.
    pub expires_at: Option<BrokerTime>,
}
