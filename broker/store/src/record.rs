//! Rows that hold messages: entries, bodies, retained messages, dead letters.

use std::sync::Arc;

use bytes::Bytes as Payload;
use foreshore_record::{Qos, Record, SourceNumber, TopicName, record::Properties};
use jiff::Timestamp;

use crate::{
    clock::BrokerTime,
    codec::{RowReader, RowWriter},
    entry::{DeadLetter, EntryFlags, EntryId, Retained, StoreEpoch},
    error::StoreError,
    keys::Bytes,
};

const VERSION: u8 = 1;

/// Bytes that a record counts against limits: topic, payload and properties.
pub(crate) fn weight(record: &Record) -> usize {
    let properties = &record.properties;
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let user = properties
        .user
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum::<usize>();
    record.topic.as_str().len()
        + record.payload.len()
        + text(&properties.content_type)
        + text(&properties.response_topic)
        + properties.correlation_data.as_ref().map_or(0, Payload::len)
        + user
}

// === records ===

const QOS_BITS: u8 = 0b0000_0011;
const RETAIN: u8 = 0b0000_0100;
const UTF8: u8 = 0b0000_1000;
const CONTENT_TYPE: u8 = 0b0001_0000;
const RESPONSE_TOPIC: u8 = 0b0010_0000;
const CORRELATION_DATA: u8 = 0b0100_0000;
const NUMBERED: u8 = 0b1000_0000;

fn flag(bit: u8, set: bool) -> u8 {
    if set { bit } else { 0 }
}

fn write_record(row: &mut RowWriter, record: &Record) {
    let properties = &record.properties;
    row.byte(
        u8::from(record.qos)
            | flag(RETAIN, record.retain)
            | flag(UTF8, properties.payload_is_utf8)
            | flag(CONTENT_TYPE, properties.content_type.is_some())
            | flag(RESPONSE_TOPIC, properties.response_topic.is_some())
            | flag(CORRELATION_DATA, properties.correlation_data.is_some())
            | flag(NUMBERED, record.number.is_some()),
    );
    row.text(record.topic.as_str());
    row.bytes(&record.payload);
    for text in [&properties.content_type, &properties.response_topic]
        .into_iter()
        .flatten()
    {
        row.text(text);
    }
    if let Some(data) = &properties.correlation_data {
        row.bytes(data);
    }
    if let Some(number) = &record.number {
        row.text(&number.source);
        row.number(number.epoch);
        row.number(number.sequence);
    }
    row.optional(properties.expiry_seconds.map(u64::from));
    row.optional(record.ingested_at.map(|at| zigzag(at.as_second())));
    if let Some(at) = record.ingested_at {
        row.number(zigzag(at.subsec_nanosecond().into()));
    }
    row.number(properties.user.len() as u64);
    for (name, value) in &properties.user {
        row.text(name);
        row.text(value);
    }
}

fn read_record(row: &mut RowReader<'_>) -> Result<Record, StoreError> {
    let flags = row.byte()?;
    let topic = TopicName::new(row.text()?).map_err(|error| row.damaged(error.to_string()))?;
    let payload = Payload::copy_from_slice(row.bytes()?);
    let mut text = |bit| {
        if flags & bit == 0 {
            Ok(None)
        } else {
            row.text().map(|text| Some(text.to_owned()))
        }
    };
    let content_type = text(CONTENT_TYPE)?;
    let response_topic = text(RESPONSE_TOPIC)?;
    let correlation_data = match flags & CORRELATION_DATA {
        0 => None,
        _ => Some(Payload::copy_from_slice(row.bytes()?)),
    };
    let number = match flags & NUMBERED {
        0 => None,
        _ => Some(SourceNumber {
            source: row.text()?.to_owned(),
            epoch: row.number()?,
            sequence: row.number()?,
        }),
    };
    let expiry_seconds = row
        .optional()?
        .map(u32::try_from)
        .transpose()
        .map_err(|_| row.damaged("expiry is too large"))?;
    let ingested_at = match row.optional()? {
        None => None,
        Some(second) => {
            let nanosecond = i32::try_from(unzigzag(row.number()?));
            let nanosecond = nanosecond.map_err(|_| row.damaged("a time has too many nanoseconds"))?;
            let at = Timestamp::new(unzigzag(second), nanosecond);
            Some(at.map_err(|error| row.damaged(error.to_string()))?)
        }
    };
    let user = (0..row.count()?)
        .map(|_| Ok((row.text()?.to_owned(), row.text()?.to_owned())))
        .collect::<Result<_, StoreError>>()?;
    let payload_is_utf8 = flags & UTF8 != 0;
    Ok(Record {
        topic,
        payload,
        qos: read_qos(flags, row)?,
        retain: flags & RETAIN != 0,
        properties: Properties {
            content_type,
            payload_is_utf8,
            expiry_seconds,
            response_topic,
            correlation_data,
            user,
        },
        number,
        ingested_at,
    })
}

/// Maps numbers that are small in amount to small ones without sign.
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

fn read_qos(flags: u8, row: &RowReader<'_>) -> Result<Qos, StoreError> {
    Qos::try_from(flags & QOS_BITS).map_err(|error| row.damaged(error.to_string()))
}

// === entries ===

const INLINE: u8 = 0b0000_1000;
const BY_TOPIC: u8 = 0b0001_0000;

/// Row of a queue: how to deliver a message, with the record itself or with the number of those who share it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EntryRow {
    pub(crate) flags: EntryFlags,
    pub(crate) size: u32,
    pub(crate) ingested_at: BrokerTime,
    pub(crate) expires_at: Option<BrokerTime>,
    pub(crate) body: BodyOf,
}

/// Where an entry's record is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum BodyOf {
    /// In the entry.
    Inline(Arc<Record>),
    /// In a row of its own, which so many entries referred to at first.
    Shared { references: u32 },
}

/// What settling has to know of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryHead {
    pub(crate) size: u32,
    pub(crate) ingested_at: BrokerTime,
    pub(crate) expires_at: Option<BrokerTime>,
    /// References that the shared body had at first; `None` for an inline one.
    pub(crate) references: Option<u32>,
    /// Key of the limit by topic filter that it counts for.
    pub(crate) topic: Option<u64>,
}

/// Fields of an entry but its record.
pub(crate) struct EntryFields<'e> {
    pub(crate) flags: &'e EntryFlags,
    pub(crate) size: u32,
    pub(crate) ingested_at: BrokerTime,
    pub(crate) expires_at: Option<BrokerTime>,
    /// Key of the limit by topic filter that it counts for.
    pub(crate) topic: Option<u64>,
}

impl EntryFields<'_> {
    /// Row of the only entry of a message.
    pub(crate) fn with_record(&self, record: &Record) -> Bytes {
        let mut row = RowWriter::new(VERSION, 64 + self.size as usize);
        self.write(&mut row, None);
        write_record(&mut row, record);
        row.finish()
    }

    /// Row of one of several entries of a message.
    pub(crate) fn with_reference(&self, references: u32) -> Bytes {
        let mut row = RowWriter::new(VERSION, 32);
        self.write(&mut row, Some(references));
        row.finish()
    }

    fn write(&self, row: &mut RowWriter, references: Option<u32>) {
        row.byte(
            u8::from(self.flags.qos)
                | flag(RETAIN, self.flags.retain)
                | flag(INLINE, references.is_none())
                | flag(BY_TOPIC, self.topic.is_some()),
        );
        row.number(self.size.into());
        row.number(self.ingested_at.0);
        row.optional(self.expires_at.map(|at| at.0));
        if let Some(references) = references {
            row.number(references.into());
        }
        if let Some(key) = self.topic {
            row.fixed(key);
        }
        write_identifiers(row, &self.flags.subscription_identifiers);
    }
}

fn write_identifiers(row: &mut RowWriter, identifiers: &[u32]) {
    row.number(identifiers.len() as u64);
    for identifier in identifiers {
        row.number((*identifier).into());
    }
}

fn read_identifiers(row: &mut RowReader<'_>) -> Result<Vec<u32>, StoreError> {
    (0..row.count()?).map(|_| row.small()).collect()
}

impl EntryHead {
    /// Reads the fields that settling needs.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("an entry", VERSION, bytes)?;
        let (_, head) = Self::read(&mut row)?;
        Ok(head)
    }

    fn read(row: &mut RowReader<'_>) -> Result<(u8, Self), StoreError> {
        let flags = row.byte()?;
        let size = row.small()?;
        let ingested_at = BrokerTime(row.number()?);
        let expires_at = row.optional()?.map(BrokerTime);
        let references = if flags & INLINE == 0 {
            Some(row.small()?)
        } else {
            None
        };
        let topic = match flags & BY_TOPIC {
            0 => None,
            _ => Some(row.fixed()?),
        };
        Ok((
            flags,
            Self {
                size,
                ingested_at,
                expires_at,
                references,
                topic,
            },
        ))
    }

    /// Whether it is worthless.
    pub(crate) fn is_expired(&self, now: BrokerTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

impl EntryRow {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("an entry", VERSION, bytes)?;
        let (flags, head) = EntryHead::read(&mut row)?;
        let EntryHead {
            size,
            ingested_at,
            expires_at,
            references,
            topic: _,
        } = head;
        let subscription_identifiers = read_identifiers(&mut row)?;
        let body = match references {
            Some(references) => BodyOf::Shared { references },
            None => BodyOf::Inline(Arc::new(read_record(&mut row)?)),
        };
        let retain = flags & RETAIN != 0;
        let flags = EntryFlags {
            qos: read_qos(flags, &row)?,
            retain,
            subscription_identifiers,
        };
        Ok(Self {
            flags,
            size,
            ingested_at,
            expires_at,
            body,
        })
    }
}

// === bodies ===

/// Row of a record that has several receivers.
pub(crate) fn encode_body(record: &Record) -> Bytes {
    let mut row = RowWriter::new(VERSION, 64 + weight(record));
    write_record(&mut row, record);
    row.finish()
}

pub(crate) fn decode_body(bytes: &[u8]) -> Result<Record, StoreError> {
    read_record(&mut RowReader::open("a record", VERSION, bytes)?)
}

/// Row of the references that remain.
pub(crate) fn encode_references(references: u32) -> Bytes {
    let mut row = RowWriter::new(VERSION, 4);
    row.number(references.into());
    row.finish()
}

pub(crate) fn decode_references(bytes: &[u8]) -> Result<u32, StoreError> {
    RowReader::open("a count of references", VERSION, bytes)?.small()
}

// === retained messages ===

pub(crate) fn encode_retained(
    id: EntryId,
    now: BrokerTime,
    expires_at: Option<BrokerTime>,
    record: &Record,
) -> Bytes {
    let mut row = RowWriter::new(VERSION, 64 + weight(record));
    row.number(id);
    row.number(now.0);
    row.optional(expires_at.map(|at| at.0));
    write_record(&mut row, record);
    row.finish()
}

pub(crate) fn decode_retained(bytes: &[u8]) -> Result<Retained, StoreError> {
    let mut row = RowReader::open("a retained message", VERSION, bytes)?;
    Ok(Retained {
        id: row.number()?,
        ingested_at: BrokerTime(row.number()?),
        expires_at: row.optional()?.map(BrokerTime),
        record: Arc::new(read_record(&mut row)?),
    })
}

// === dead letters ===

/// Longest stage or reason of a dead letter, in bytes; the rest is cut off.
const MAX_CAUSE_LEN: usize = 4096;

fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(MAX_CAUSE_LEN);
    text.get(..end).unwrap_or_default()
}

pub(crate) fn encode_dead_letter(letter: &DeadLetter) -> Bytes {
    let DeadLetter {
        id: _,
        store_epoch,
        stage,
        reason,
        attempts,
        at,
        flags,
        record,
    } = letter;
    let mut row = RowWriter::new(VERSION, 96 + reason.len() + weight(record));
    row.fixed(*store_epoch);
    row.number((*attempts).into());
    row.number(at.0);
    row.text(cut(stage));
    row.text(cut(reason));
    row.byte(u8::from(flags.qos) | flag(RETAIN, flags.retain));
    write_identifiers(&mut row, &flags.subscription_identifiers);
    write_record(&mut row, record);
    row.finish()
}

pub(crate) fn decode_dead_letter(id: EntryId, bytes: &[u8]) -> Result<DeadLetter, StoreError> {
    let mut row = RowReader::open("a dead letter", VERSION, bytes)?;
    let store_epoch: StoreEpoch = row.fixed()?;
    let attempts = row.small()?;
    let at = BrokerTime(row.number()?);
    let stage = row.text()?.to_owned();
    let reason = row.text()?.to_owned();
    let bits = row.byte()?;
    let subscription_identifiers = read_identifiers(&mut row)?;
    let flags = EntryFlags {
        qos: read_qos(bits, &row)?,
        retain: bits & RETAIN != 0,
        subscription_identifiers,
    };
    let record = Arc::new(read_record(&mut row)?);
    Ok(DeadLetter {
        id,
        store_epoch,
        stage,
        reason,
        attempts,
        at,
        flags,
        record,
    })
}

#[cfg(test)]
mod tests;
