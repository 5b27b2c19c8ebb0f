//! Between the protocol's messages and our own types.

use std::{sync::Arc, time::Duration};

use foreshore_record::{
    DropReason, Outcome, PathLedger, Qos, Record, SourceNumber, TopicName, record::Properties,
};
use jiff::Timestamp;
use tonic::{Code, Status};

use super::{DeadLetter, Entry, Error, PathTotals, ReadBatch, ReadRange, Settlement, proto};

/// Something in a message that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{field} is {found}")]
pub(super) struct Malformed {
    field: &'static str,
    found: String,
}

impl Malformed {
    fn missing(field: &'static str) -> Self {
        Self {
            field,
            found: "missing".to_owned(),
        }
    }
}

impl From<Malformed> for Status {
    fn from(malformed: Malformed) -> Self {
        Self::invalid_argument(malformed.to_string())
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Unavailable {
            cause: format!("answer of the broker makes no sense: {malformed}"),
        }
    }
}

// === errors ===

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound { .. } => Code::NotFound,
            Error::Fenced { .. } => Code::FailedPrecondition,
            Error::Closed { .. } => Code::Aborted,
            Error::Forbidden { .. } => Code::PermissionDenied,
            Error::Refused { .. } | Error::Unavailable { .. } => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

/// The error that a status stands for.
pub(super) fn error_of(status: &Status, path: &str) -> Error {
    let path = path.to_owned();
    match status.code() {
        Code::NotFound => Error::NotFound { path },
        Code::FailedPrecondition => Error::Fenced { path },
        Code::Aborted => Error::Closed { path },
        Code::PermissionDenied | Code::Unauthenticated => Error::Forbidden { path },
        code => Error::Unavailable {
            cause: format!("{code}: {}", status.message()),
        },
    }
}

// === records ===

fn record_to_proto(record: &Record) -> proto::Record {
    let properties = record.properties.clone();
    let user = properties
        .user
        .into_iter()
        .map(|(name, value)| proto::UserProperty { name, value });
    proto::Record {
        topic: record.topic.to_string(),
        payload: record.payload.clone(),
        qos: u32::from(u8::from(record.qos)),
        retain: record.retain,
        content_type: properties.content_type.unwrap_or_default(),
        payload_is_utf8: properties.payload_is_utf8,
        expiry_seconds: properties.expiry_seconds,
        response_topic: properties.response_topic.unwrap_or_default(),
        correlation_data: properties.correlation_data,
        user: user.collect(),
        number: record.number.clone().map(|number| proto::SourceNumber {
            source: number.source,
            epoch: number.epoch,
            sequence: number.sequence,
        }),
        ingested_at: record.ingested_at.map_or(0, to_nanoseconds),
    }
}

/// Nanoseconds since the Unix epoch; 0 where that does not fit (before 1678 or after 2262).
fn to_nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(0)
}

fn record_from_proto(record: proto::Record) -> Result<Record, Malformed> {
    let topic = TopicName::new(&record.topic).map_err(|error| Malformed {
        field: "topic",
        found: error.to_string(),
    })?;
    let qos = u8::try_from(record.qos)
        .ok()
        .and_then(|qos| Qos::try_from(qos).ok());
    let qos = qos.ok_or_else(|| Malformed {
        field: "qos",
        found: record.qos.to_string(),
    })?;
    let ingested_at = Some(record.ingested_at).filter(|nanoseconds| *nanoseconds != 0);
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(Record {
        topic,
        payload: record.payload,
        qos,
        retain: record.retain,
        properties: Properties {
            content_type: text(record.content_type),
            payload_is_utf8: record.payload_is_utf8,
            expiry_seconds: record.expiry_seconds,
            response_topic: text(record.response_topic),
            correlation_data: record.correlation_data,
            user: record
                .user
                .into_iter()
                .map(|property| (property.name, property.value))
                .collect(),
        },
        number: record.number.map(|number| SourceNumber {
            source: number.source,
            epoch: number.epoch,
            sequence: number.sequence,
        }),
        ingested_at: ingested_at
            .and_then(|nanoseconds| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()),
    })
}

fn required_record(record: Option<proto::Record>) -> Result<Arc<Record>, Malformed> {
    record_from_proto(record.ok_or_else(|| Malformed::missing("record"))?).map(Arc::new)
}

// === reading ===

/// Longest wait of a read over the network; the client asks again.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

/// Most entries of a read over the network.
const MAX_ENTRIES: u32 = 100_000;

/// Most bytes of payload of a read over the network, unless a single entry is larger.
const MAX_BYTES: u32 = 64 << 20;

pub(super) fn range_to_proto(path: &str, epoch: u64, range: ReadRange) -> proto::ReadRequest {
    proto::ReadRequest {
        path: path.to_owned(),
        epoch,
        after: range.after,
        before: range.before.unwrap_or(0),
        max_entries: range.max_entries,
        max_bytes: range.max_bytes,
        wait_ms: u32::try_from(range.wait.min(MAX_WAIT).as_millis()).unwrap_or(u32::MAX),
    }
}

pub(super) fn range_from_proto(request: &proto::ReadRequest) -> ReadRange {
    ReadRange {
        after: request.after,
        before: Some(request.before).filter(|before| *before != 0),
        max_entries: request.max_entries.min(MAX_ENTRIES),
        max_bytes: request.max_bytes.min(MAX_BYTES),
        wait: Duration::from_millis(u64::from(request.wait_ms)).min(MAX_WAIT),
    }
}

pub(super) fn batch_to_proto(batch: &ReadBatch) -> proto::ReadResponse {
    let entries = batch.entries.iter().map(|entry| proto::Entry {
        id: entry.id,
        attempt: entry.attempt,
        record: Some(record_to_proto(&entry.record)),
        store_epoch: entry.store_epoch,
    });
    proto::ReadResponse {
        entries: entries.collect(),
        tail: batch.tail,
    }
}

pub(super) fn batch_from_proto(response: proto::ReadResponse) -> Result<ReadBatch, Malformed> {
    let entries = response.entries.into_iter().map(|entry| {
        Ok(Entry {
            id: entry.id,
            store_epoch: entry.store_epoch,
            attempt: entry.attempt,
            record: required_record(entry.record)?,
        })
    });
    Ok(ReadBatch {
        entries: entries.collect::<Result<_, _>>()?,
        tail: response.tail,
    })
}

// === settling ===

pub(super) fn settlement_to_proto(settlement: Settlement) -> proto::Settlement {
    use proto::settlement::Outcome as Wire;
    let outcome = match settlement.outcome {
        Outcome::Delivered => Wire::Delivered(proto::Delivered {}),
        Outcome::DeadLettered { stage, reason } => Wire::DeadLettered(proto::DeadLettered { stage, reason }),
        Outcome::Dropped { reason } => Wire::Dropped(proto::Dropped {
            reason: reason.as_str().to_owned(),
        }),
    };
    proto::Settlement {
        id: settlement.id,
        emitted: settlement.emitted,
        outcome: Some(outcome),
    }
}

pub(super) fn settlement_from_proto(settlement: proto::Settlement) -> Result<Settlement, Malformed> {
    use proto::settlement::Outcome as Wire;
    let outcome = match settlement.outcome.ok_or_else(|| Malformed::missing("outcome"))? {
        Wire::Delivered(proto::Delivered {}) => Outcome::Delivered,
        Wire::DeadLettered(proto::DeadLettered { stage, reason }) => Outcome::DeadLettered { stage, reason },
        Wire::Dropped(proto::Dropped { reason }) => Outcome::Dropped {
            reason: DropReason::other(reason),
        },
    };
    Ok(Settlement {
        id: settlement.id,
        emitted: settlement.emitted,
        outcome,
    })
}

// === totals and dead letters ===

pub(super) fn totals_to_proto(totals: PathTotals) -> proto::PathTotals {
    let ledger = totals.ledger;
    proto::PathTotals {
        path: ledger.path,
        received: ledger.received,
        delivered: ledger.delivered,
        waiting: ledger.waiting,
        dead_lettered: ledger.dead_lettered,
        dropped: ledger.dropped,
        emitted: ledger.emitted,
        redelivered: ledger.redelivered,
        gaps: ledger.gaps,
        waiting_bytes: totals.waiting_bytes,
        oldest_age_ms: u64::try_from(totals.oldest_age.as_millis()).unwrap_or(u64::MAX),
    }
}

pub(super) fn totals_from_proto(totals: proto::PathTotals) -> PathTotals {
    PathTotals {
        ledger: PathLedger {
            path: totals.path,
            received: totals.received,
            delivered: totals.delivered,
            waiting: totals.waiting,
            dead_lettered: totals.dead_lettered,
            dropped: totals.dropped,
            emitted: totals.emitted,
            redelivered: totals.redelivered,
            gaps: totals.gaps,
        },
        waiting_bytes: totals.waiting_bytes,
        oldest_age: Duration::from_millis(totals.oldest_age_ms),
    }
}

pub(super) fn letter_to_proto(letter: DeadLetter) -> proto::DeadLetter {
    proto::DeadLetter {
        id: letter.id,
        stage: letter.stage,
        reason: letter.reason,
        attempts: letter.attempts,
        record: Some(record_to_proto(&letter.record)),
        store_epoch: letter.store_epoch,
    }
}

pub(super) fn letter_from_proto(letter: proto::DeadLetter) -> Result<DeadLetter, Malformed> {
    Ok(DeadLetter {
        id: letter.id,
        store_epoch: letter.store_epoch,
        stage: letter.stage,
        reason: letter.reason,
        attempts: letter.attempts,
        record: required_record(letter.record)?,
    })
}
