//! What the store holds of a message.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use foreshore_record::{DropReason, Record, property};
use foreshore_store::{
    BrokerTime, DeadLetter, Entry, EntryId, Limits, OverflowPolicy, Page, ReadRange, ReceiverId, Store,
    StoreError,
};
use serde::Serialize;

use super::{MessageId, MessageTrace};

/// Longest time that a message is looked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Rows that are read at once.
const PAGE: usize = 256;

/// Bytes that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// Most messages of one name, and most places of one message, that are told.
const MAX_FOUND: usize = 1000;

/// When looking for a message ends that is begun now.
pub(super) fn patience() -> Instant {
    Instant::now() + PATIENCE
}

/// A durable queue, and its name.
pub(super) type Queue = (ReceiverId, String);

/// What holds a message, or held it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Name of the queue's path in the ledger; `retained/TOPIC` for a retained message.
    pub receiver: String,
    /// How it stands there.
    #[serde(flatten)]
    pub standing: Standing,
}

/// How a message stands in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Standing {
    /// It waits, or is in flight.
    Waiting {
        /// How often it was handed out before without being settled.
        attempts: u32,
        /// Seconds of the broker's clock since it was taken in.
        age_seconds: u64,
        /// What it counts against the queue's limit, in bytes.
        bytes: u32,
        /// Seconds until it expires, if it does.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_seconds: Option<u64>,
    },
    /// It has expired, and is dropped when it is read.
    Expired,
    /// It can't be read, and is dropped as corrupt.
    Damaged,
    /// It is a dead letter.
    DeadLettered {
        /// The stage that failed, `sink`, or `open` when its attempts were used up.
        stage: String,
        /// Why.
        reason: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// It is the retained message of its topic.
    Retained,
    /// It has left, and the hop was not seen.
    Left {
        /// The reason of the ledger, as far as the queue's limits tell it.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
}

impl Held {
    fn new(receiver: impl Into<String>, standing: Standing) -> Self {
        Self {
            receiver: receiver.into(),
            standing,
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { receiver, standing } = self;
        match standing {
            Standing::Waiting {
                attempts,
                age_seconds,
                bytes,
                expires_in_seconds,
            } => {
                write!(
                    formatter,
                    "waits in {receiver} for {age_seconds} s, {bytes} bytes"
                )?;
                if *attempts > 0 {
                    write!(formatter, ", handed out {attempts} times before")?;
                }
                if let Some(seconds) = expires_in_seconds {
                    write!(formatter, ", expires in {seconds} s")?;
                }
                Ok(())
            }
            Standing::Expired => write!(formatter, "has expired in {receiver}, where it was not read yet"),
            Standing::Damaged => write!(formatter, "is damaged in {receiver}"),
            Standing::DeadLettered {
                stage,
                reason,
                attempts,
            } => write!(
                formatter,
                "is a dead letter of {receiver} since attempt {attempts}, stage {stage}: {reason}"
            ),
            Standing::Retained => formatter.write_str("is the retained message of its topic"),
            Standing::Left { reason: Some(reason) } => {
                write!(formatter, "was dropped by {receiver}: {reason}")
            }
            Standing::Left { reason: None } => write!(formatter, "has left {receiver}"),
        }
    }
}

/// Adds how a message stands in those of its queues that it was not seen to leave, as long as there is time for it.
pub(super) fn missing(
    store: &dyn Store,
    time: (BrokerTime, Instant),
    mut message: MessageTrace,
    queues: &[Queue],
) -> Result<MessageTrace, StoreError> {
    let Some(entry) = message.entry else {
        return Ok(message);
    };
    for (receiver, name) in queues {
        let left = message
            .hops
            .iter()
            .any(|timed| timed.hop.ends() == Some(name.as_str()));
        if left {
            continue;
        }
        let mut standing = None;
        let looked = each_of(store, *receiver, Some(entry), time, &mut |_, found, _| {
            standing = Some(found);
        })?;
        let standing = match standing {
            Some(standing) => standing,
            None if !looked => continue,
            None => Standing::Left {
                reason: likely_reason(store, *receiver)?.map(|reason| reason.to_string()),
            },
        };
        message.held.push(Held::new(name.as_str(), standing));
    }
    Ok(message)
}

/// Why an entry has left a queue that nobody settled it in. The store counts that and does not tell of which entry, but
/// a queue's limits leave few reasons.
fn likely_reason(store: &dyn Store, receiver: ReceiverId) -> Result<Option<DropReason>, StoreError> {
    let receivers = store.receivers(receiver.saturating_sub(1), 1)?;
    let Some(receiver) = receivers.into_iter().find(|known| known.id == receiver) else {
        return Ok(Some(DropReason::SESSION_ENDED));
    };
    let Limits {
        max_bytes,
        max_age,
        overflow,
        own_limits_only,
        ..
    } = receiver.limits;
    if !own_limits_only && !store.topics()?.is_empty() {
        return Ok(None);
    }
    Ok(match (max_bytes, max_age) {
        (Some(_), None) if overflow == OverflowPolicy::DropOldest => Some(DropReason::OVERFLOW_OLDEST),
        (None, Some(_)) => Some(DropReason::AGE_LIMIT),
        _ => None,
    })
}

/// Calls `found` with everything that a queue and its dead letters hold: of one entry only, if one is given. Tells whether
/// there was the time for all.
fn each_of(
    store: &dyn Store,
    receiver: ReceiverId,
    only: Option<EntryId>,
    (now, until): (BrokerTime, Instant),
    found: &mut dyn FnMut(EntryId, Standing, Option<&Record>),
) -> Result<bool, StoreError> {
    let mut after = only.map_or(0, |entry| entry.saturating_sub(1));
    loop {
        if Instant::now() >= until {
            return Ok(false);
        }
        let range = ReadRange {
            after,
            before: only.map(|entry| entry.saturating_add(1)),
            max_entries: PAGE,
            max_bytes: PAGE_BYTES,
        };
        let page = store.read(receiver, range, now)?;
        each_in(&page, now, found);
        if page.at_end || page.resume_after <= after {
            break;
        }
        after = page.resume_after;
    }
    let mut after = only.map_or(0, |entry| entry.saturating_sub(1));
    loop {
        if Instant::now() >= until {
            return Ok(false);
        }
        let count = if only.is_some() { 1 } else { PAGE };
        let letters = store.dead_letters(receiver, after, count)?;
        let Some(last) = letters.last() else { break };
        after = last.id;
        for DeadLetter {
            id,
            stage,
            reason,
            attempts,
            record,
            ..
        } in &letters
        {
            if only.is_none_or(|entry| entry == *id) {
                let standing = Standing::DeadLettered {
                    stage: stage.clone(),
                    reason: reason.clone(),
                    attempts: *attempts,
                };
                found(*id, standing, Some(record));
            }
        }
        if only.is_some() {
            break;
        }
    }
    Ok(true)
}

fn each_in(page: &Page, now: BrokerTime, found: &mut dyn FnMut(EntryId, Standing, Option<&Record>)) {
    for Entry {
        id,
        attempt,
        record,
        ingested_at,
        expires_at,
        size,
        ..
    } in &page.entries
    {
        let standing = Standing::Waiting {
            attempts: *attempt,
            age_seconds: now.since(*ingested_at).as_secs(),
            bytes: *size,
            expires_in_seconds: expires_at.map(|at| at.since(now).as_secs()),
        };
        found(*id, standing, Some(record));
    }
    for id in &page.expired {
        found(*id, Standing::Expired, None);
    }
    for id in &page.damaged {
        found(*id, Standing::Damaged, None);
    }
}

/// What is found, by entry.
struct Search<'a> {
    wanted: &'a MessageId,
    messages: BTreeMap<EntryId, MessageTrace>,
    /// Traced messages that were not stored.
    others: Vec<MessageTrace>,
    until: Instant,
}

/// Looks for a message everywhere; `known` is what was traced of it. Returns whether everything was looked through, and
/// the first entry that was not given out.
pub(super) fn find(
    store: &dyn Store,
    now: BrokerTime,
    wanted: &MessageId,
    known: Vec<MessageTrace>,
) -> Result<(Vec<MessageTrace>, bool, EntryId), StoreError> {
    let mut search = Search {
        wanted,
        messages: BTreeMap::new(),
        others: Vec::new(),
        until: patience(),
    };
    for message in known {
        match message.entry {
            Some(entry) => drop(search.messages.insert(entry, message)),
            None => search.others.push(message),
        }
    }
    let complete = search.queues(store, now)? && search.retained(store)?;
    let messages = search.messages.into_values().chain(search.others).collect();
    Ok((messages, complete, store.position().next_id))
}

impl Search<'_> {
    /// Looks through all queues; tells whether there was the time.
    fn queues(&mut self, store: &dyn Store, now: BrokerTime) -> Result<bool, StoreError> {
        let mut after = 0;
        loop {
            let receivers = store.receivers(after, PAGE)?;
            let Some(last) = receivers.last() else {
                return Ok(true);
            };
            after = last.id;
            for receiver in &receivers {
                let only = match self.wanted {
                    MessageId::Entry(entry) => Some(*entry),
                    MessageId::Event(_) => None,
                };
                let time = (now, self.until);
                let looked = each_of(store, receiver.id, only, time, &mut |entry, standing, record| {
                    self.found(entry, Held::new(receiver.name.as_str(), standing), record);
                })?;
                if !looked {
                    return Ok(false);
                }
            }
        }
    }

    /// Looks through all retained messages; tells whether there was the time.
    fn retained(&mut self, store: &dyn Store) -> Result<bool, StoreError> {
        let mut after: Option<String> = None;
        loop {
            let page = store.retained(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else {
                return Ok(true);
            };
            if Instant::now() >= self.until {
                return Ok(false);
            }
            after = Some(last.record.topic.to_string());
            for retained in &page {
                let name = format!("retained/{}", retained.record.topic);
                let held = Held::new(name, Standing::Retained);
                self.found(retained.id, held, Some(&retained.record));
            }
        }
    }

    /// Something holds a message: keeps that, if the message is the one that is looked for.
    fn found(&mut self, entry: EntryId, held: Held, record: Option<&Record>) {
        let is_wanted = match self.wanted {
            MessageId::Entry(wanted) => *wanted == entry,
            MessageId::Event(event) => {
                record.and_then(|record| record.user_property(property::CE_ID)) == Some(event.as_str())
            }
        };
        if !is_wanted || (self.messages.len() >= MAX_FOUND && !self.messages.contains_key(&entry)) {
            return;
        }
        let message = self
            .messages
            .entry(entry)
            .or_insert_with(|| MessageTrace::stored(entry));
        if let Some(record) = record {
            message.describe(record);
        }
        if message.held.len() < MAX_FOUND {
            message.held.push(held);
        }
    }
}

impl MessageTrace {
    /// A message of which nothing is known but that it was stored.
    fn stored(entry: EntryId) -> Self {
        Self {
            topic: "(unreadable)".to_owned(),
            entry: Some(entry),
            event_id: None,
            traceparent: None,
            received_at: None,
            hops: Vec::new(),
            hops_left_out: 0,
            done: false,
            held: Vec::new(),
        }
    }

    /// Takes over what a record says of itself.
    fn describe(&mut self, record: &Record) {
        let named = |name| record.user_property(name).map(str::to_owned);
        self.topic = record.topic.to_string();
        self.event_id = named(property::CE_ID);
        self.traceparent = named(property::TRACEPARENT);
        self.received_at = self.received_at.or(record.ingested_at);
    }
}
