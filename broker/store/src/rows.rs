//! Rows without messages: paths, sources, packets in flight, and what concerns the whole store.

use std::time::Duration;

use crate::{
    attempts::{Attempts, HandedOut},
    clock::BrokerTime,
    codec::{RowReader, RowWriter},
    entry::{Blob, EntryId, Inflight, PathEpoch, ReceiverId, StateEntry, StoreEpoch},
    error::StoreError,
    keys::Bytes,
    ledger::{Counts, EndedTotals, PathTotals, SourceTotals, TopicWaiting},
    limits::{Limits, OverflowPolicy},
};

const VERSION: u8 = 1;

// === paths ===

/// Row of a path: everything that changes when entries come and go.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PathRow {
    pub(crate) epoch: PathEpoch,
    /// The lowest id that waits; the next free one if none does.
    pub(crate) head: EntryId,
    /// When the entry at the head was taken in.
    pub(crate) oldest: BrokerTime,
    pub(crate) waiting_bytes: u64,
    pub(crate) counts: Counts,
    pub(crate) dead_letter_bytes: u64,
    pub(crate) dead_letters_evicted: u64,
    /// No dead letter has a smaller id.
    pub(crate) dead_letter_head: EntryId,
    /// What this opening handed out.
    pub(crate) handed_out: HandedOut,
    /// What the earlier ones did.
    pub(crate) attempts: Attempts,
    pub(crate) limits: Limits,
    /// What waits of each limit by topic filter, if anything does.
    pub(crate) topics: Vec<TopicShare>,
}

/// What waits in one queue of one limit by topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TopicShare {
    /// Key of the limit.
    pub(crate) key: u64,
    /// No entry of it has a smaller id.
    pub(crate) head: EntryId,
    /// No entry of it was taken in before.
    pub(crate) oldest: BrokerTime,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
}

impl PathRow {
    /// What waits of a limit by topic filter.
    pub(crate) fn share(&self, key: u64) -> Option<&TopicShare> {
        self.topics.iter().find(|share| share.key == key)
    }

    pub(crate) fn share_mut(&mut self, key: u64) -> Option<&mut TopicShare> {
        self.topics.iter_mut().find(|share| share.key == key)
    }

    pub(crate) fn totals(&self, receiver: ReceiverId, name: &str) -> PathTotals {
        let ledger = self.counts.to_ledger(name);
        PathTotals {
            receiver,
            epoch: self.epoch,
            head: self.head,
            waiting_bytes: self.waiting_bytes,
            oldest: (ledger.waiting > 0).then_some(self.oldest),
            dead_letter_bytes: self.dead_letter_bytes,
            dead_letters_evicted: self.dead_letters_evicted,
            topics: self.topics.iter().map(TopicShare::waiting).collect(),
            ledger,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let Self {
            epoch,
            head,
            oldest,
            waiting_bytes,
            counts,
            dead_letter_bytes,
            dead_letters_evicted,
            dead_letter_head,
            handed_out,
            attempts,
            limits,
            topics,
        } = self;
        let mut row = RowWriter::new(VERSION, 96);
        row.number(*epoch);
        row.number(*head);
        row.number(oldest.0);
        row.number(*waiting_bytes);
        write_counts(&mut row, counts);
        row.number(*dead_letter_bytes);
        row.number(*dead_letters_evicted);
        row.number(*dead_letter_head);
        handed_out.write(&mut row);
        attempts.write(&mut row);
        write_limits(&mut row, limits);
        if limits.own_limits_only || !topics.is_empty() {
            write_shares(&mut row, limits, topics);
        }
        row.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("a path", VERSION, bytes)?;
        let mut path = Self {
            epoch: row.number()?,
            head: row.number()?,
            oldest: BrokerTime(row.number()?),
            waiting_bytes: row.number()?,
            counts: read_counts(&mut row)?,
            dead_letter_bytes: row.number()?,
            dead_letters_evicted: row.number()?,
            dead_letter_head: row.number()?,
            handed_out: HandedOut::read(&mut row)?,
            attempts: Attempts::read(&mut row)?,
            limits: read_limits(&mut row)?,
            topics: Vec::new(),
        };
        if !row.is_at_end() {
            read_shares(&mut row, &mut path)?;
        }
        Ok(path)
    }
}

impl TopicShare {
    /// Adds later entries.
    pub(crate) fn add(&mut self, later: &Self) {
        self.entries += later.entries;
        self.bytes += later.bytes;
    }

    fn waiting(&self) -> TopicWaiting {
        TopicWaiting {
            key: self.key,
            entries: self.entries,
            bytes: self.bytes,
        }
    }
}

/// What limits by topic filter mean for the path. It stands last, and only where there is something to say: rows of
/// stores that knew no such limits end before it.
fn write_shares(row: &mut RowWriter, limits: &Limits, topics: &[TopicShare]) {
    row.byte(u8::from(limits.own_limits_only));
    row.number(topics.len() as u64);
    for share in topics {
        let TopicShare {
            key,
            head,
            oldest,
            entries,
            bytes,
        } = share;
        row.fixed(*key);
        for number in [*head, oldest.0, *entries, *bytes] {
            row.number(number);
        }
    }
}

fn read_shares(row: &mut RowReader<'_>, path: &mut PathRow) -> Result<(), StoreError> {
    path.limits.own_limits_only = row.byte()? != 0;
    for _ in 0..row.count()? {
        path.topics.push(TopicShare {
            key: row.fixed()?,
            head: row.number()?,
            oldest: BrokerTime(row.number()?),
            entries: row.number()?,
            bytes: row.number()?,
        });
    }
    Ok(())
}

fn write_counts(row: &mut RowWriter, counts: &Counts) {
    let Counts {
        received,
        delivered,
        dead_lettered,
        dropped,
        emitted,
        redelivered,
    } = counts;
    row.number(*received);
    row.number(*delivered);
    row.number(*dead_lettered);
    row.number(*emitted);
    row.number(*redelivered);
    row.number(dropped.len() as u64);
    for (reason, count) in dropped {
        row.text(reason);
        row.number(*count);
    }
}

fn read_counts(row: &mut RowReader<'_>) -> Result<Counts, StoreError> {
    let mut counts = Counts {
        received: row.number()?,
        delivered: row.number()?,
        dead_lettered: row.number()?,
        emitted: row.number()?,
        redelivered: row.number()?,
        ..Counts::default()
    };
    for _ in 0..row.count()? {
        let reason = row.text()?.to_owned();
        counts.dropped.insert(reason, row.number()?);
    }
    Ok(counts)
}

fn write_limits(row: &mut RowWriter, limits: &Limits) {
    let Limits {
        max_bytes,
        max_age,
        overflow,
        max_attempts,
        max_dead_letter_bytes,
        own_limits_only: _,
    } = limits;
    row.optional(*max_bytes);
    row.optional(max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    row.byte(overflow.code());
    row.optional(max_attempts.map(u64::from));
    row.optional(*max_dead_letter_bytes);
}

fn read_limits(row: &mut RowReader<'_>) -> Result<Limits, StoreError> {
    Ok(Limits {
        max_bytes: row.optional()?,
        max_age: row.optional()?.map(Duration::from_millis),
        overflow: OverflowPolicy::read(row)?,
        max_attempts: row
            .optional()?
            .map(|attempts| u8::try_from(attempts).unwrap_or(u8::MAX)),
        max_dead_letter_bytes: row.optional()?,
        own_limits_only: false,
    })
}

// === receivers and sources ===

/// Row of a receiver: its name.
pub(crate) fn encode_name(name: &str) -> Bytes {
    let mut row = RowWriter::new(VERSION, 2 + name.len());
    row.text(name);
    row.finish()
}

pub(crate) fn decode_name(bytes: &[u8]) -> Result<String, StoreError> {
    Ok(RowReader::open("a receiver", VERSION, bytes)?.text()?.to_owned())
}

/// Row of a name: its receiver. Also the row of a grave: where removal goes on.
pub(crate) fn encode_number(number: u64) -> Bytes {
    let mut row = RowWriter::new(VERSION, 10);
    row.number(number);
    row.finish()
}

pub(crate) fn decode_number(bytes: &[u8]) -> Result<u64, StoreError> {
    RowReader::open("a reference", VERSION, bytes)?.number()
}

pub(crate) fn encode_source(totals: &SourceTotals) -> Bytes {
    let SourceTotals {
        source: _,
        epoch,
        sequence,
        accepted,
        refused,
        repeated,
        fenced,
        gaps,
    } = totals;
    let mut row = RowWriter::new(VERSION, 32);
    for number in [epoch, sequence, accepted, refused, repeated, fenced, gaps] {
        row.number(*number);
    }
    row.finish()
}

pub(crate) fn decode_source(source: &str, bytes: &[u8]) -> Result<SourceTotals, StoreError> {
    let mut row = RowReader::open("a source", VERSION, bytes)?;
    Ok(SourceTotals {
        source: source.to_owned(),
        epoch: row.number()?,
        sequence: row.number()?,
        accepted: row.number()?,
        refused: row.number()?,
        repeated: row.number()?,
        fenced: row.number()?,
        gaps: row.number()?,
    })
}

/// Row of a session or a will: what the broker wrote.
pub(crate) fn encode_blob(state: &[u8]) -> Bytes {
    let mut row = RowWriter::new(VERSION, 4 + state.len());
    row.bytes(state);
    row.finish()
}

pub(crate) fn decode_state(key: &[u8], bytes: &[u8]) -> Result<StateEntry, StoreError> {
    let value = RowReader::open("an entry of the state store", VERSION, bytes)?.bytes()?;
    Ok(StateEntry {
        key: bytes::Bytes::copy_from_slice(key),
        value: bytes::Bytes::copy_from_slice(value),
    })
}

pub(crate) fn decode_blob(client_id: &str, bytes: &[u8]) -> Result<Blob, StoreError> {
    let state = RowReader::open("the state of a client", VERSION, bytes)?.bytes()?;
    Ok(Blob {
        client_id: client_id.to_owned(),
        state: bytes::Bytes::copy_from_slice(state),
    })
}

// === packets in flight ===

pub(crate) fn encode_inflight(state: Inflight) -> Bytes {
    let mut row = RowWriter::new(VERSION, 16);
    match state {
        Inflight::Received => row.byte(0),
        Inflight::Sent { receiver, id } => {
            row.byte(1);
            row.number(receiver);
            row.number(id);
        }
        Inflight::Released => row.byte(2),
    }
    row.finish()
}

pub(crate) fn decode_inflight(bytes: &[u8]) -> Result<Inflight, StoreError> {
    let mut row = RowReader::open("a message in flight", VERSION, bytes)?;
    match row.byte()? {
        0 => Ok(Inflight::Received),
        1 => Ok(Inflight::Sent {
            receiver: row.number()?,
            id: row.number()?,
        }),
        2 => Ok(Inflight::Released),
        found => Err(row.damaged(format!("state {found} is not known"))),
    }
}

// === the whole store ===

/// Row that says where the store stands; part of each commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PositionRow {
    pub(crate) next_id: EntryId,
    pub(crate) now: BrokerTime,
    pub(crate) next_receiver: ReceiverId,
    /// Commits so far.
    pub(crate) commits: u64,
}

impl PositionRow {
    pub(crate) fn encode(self) -> Bytes {
        let Self {
            next_id,
            now,
            next_receiver,
            commits,
        } = self;
        let mut row = RowWriter::new(VERSION, 24);
        for number in [next_id, now.0, next_receiver, commits] {
            row.number(number);
        }
        row.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("the position", VERSION, bytes)?;
        Ok(Self {
            next_id: row.number()?,
            now: BrokerTime(row.number()?),
            next_receiver: row.number()?,
            commits: row.number()?,
        })
    }
}

/// Row of an opening of the store: its epoch.
pub(crate) fn encode_opening(epoch: StoreEpoch) -> Bytes {
    let mut row = RowWriter::new(VERSION, 8);
    row.fixed(epoch);
    row.finish()
}

pub(crate) fn decode_opening(bytes: &[u8]) -> Result<StoreEpoch, StoreError> {
    RowReader::open("an opening", VERSION, bytes)?.fixed()
}

/// Row of the totals of ended paths.
pub(crate) fn encode_ended(ended: &EndedTotals) -> Bytes {
    let EndedTotals {
        kind: _,
        paths,
        counts,
    } = ended;
    let mut row = RowWriter::new(VERSION, 48);
    row.number(*paths);
    write_counts(&mut row, counts);
    row.finish()
}

pub(crate) fn decode_ended(kind: &str, bytes: &[u8]) -> Result<EndedTotals, StoreError> {
    let mut row = RowReader::open("the totals of ended paths", VERSION, bytes)?;
    Ok(EndedTotals {
        kind: kind.to_owned(),
        paths: row.number()?,
        counts: read_counts(&mut row)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempts::Interval;

    #[test]
    fn rows_survive() {
        let mut path = PathRow {
            epoch: 3,
            head: 300,
            oldest: BrokerTime(u64::MAX),
            waiting_bytes: 1 << 40,
            dead_letter_bytes: 5,
            dead_letters_evicted: 6,
            dead_letter_head: 7,
            limits: Limits {
                max_bytes: Some(0),
                max_age: Some(Duration::from_secs(72 * 3600)),
                overflow: OverflowPolicy::DropNew,
                max_attempts: Some(5),
                max_dead_letter_bytes: None,
                own_limits_only: false,
            },
            ..PathRow::default()
        };
        assert_eq!(PathRow::decode(&path.encode()).unwrap(), path);
        path.limits.own_limits_only = true;
        path.topics.push(TopicShare {
            key: u64::MAX,
            head: 1,
            oldest: BrokerTime(2),
            entries: 3,
            bytes: 4,
        });
        path.counts = Counts {
            received: 9,
            delivered: 1,
            dead_lettered: 2,
            emitted: 4,
            redelivered: 5,
            ..Counts::default()
        };
        path.counts.dropped.insert("expired".to_owned(), 3);
        path.handed_out.add(Interval {
            after: 299,
            up_to: 305,
        });
        path.attempts.push(path.handed_out.clone(), 0);
        assert_eq!(PathRow::decode(&path.encode()).unwrap(), path);

        let source = SourceTotals {
            source: "s".to_owned(),
            epoch: 1,
            sequence: 2,
            accepted: 3,
            refused: 4,
            repeated: 5,
            fenced: 6,
            gaps: 7,
        };
        assert_eq!(decode_source("s", &encode_source(&source)).unwrap(), source);
        let position = PositionRow {
            next_id: 1,
            now: BrokerTime(2),
            next_receiver: 3,
            commits: 4,
        };
        assert_eq!(PositionRow::decode(&position.encode()).unwrap(), position);
        let ended = EndedTotals {
            kind: "session".to_owned(),
            paths: 2,
            counts: path.counts,
        };
        assert_eq!(decode_ended("session", &encode_ended(&ended)).unwrap(), ended);
        for state in [
            Inflight::Received,
            Inflight::Sent { receiver: 1, id: 2 },
            Inflight::Released,
        ] {
            assert_eq!(decode_inflight(&encode_inflight(state)).unwrap(), state);
        }
        assert_eq!(decode_opening(&encode_opening(u64::MAX)).unwrap(), u64::MAX);
        assert_eq!(decode_name(&encode_name("ä")).unwrap(), "ä");
        assert_eq!(decode_number(&encode_number(5)).unwrap(), 5);
    }
}
