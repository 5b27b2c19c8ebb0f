//! The store of a broker that does not run, for its operator: proved, and told row by row.
//!
//! The store knows nothing of sessions and wills but that they are there: what they mean is known here.

use base64::{Engine, prelude::BASE64_STANDARD};
use foreshore_record::Record;
use foreshore_store::{
    Blob, BrokerTime, Limits, StateEntry, StoreError,
    offline::{ClosedStore, Judges, Row, Verification},
};
use serde_json::{Map, Value, json};

use crate::{
    session::rows::{self, Row as SessionRow},
    state_store, will,
};

/// Reads everything that a store holds and says what is wrong with it.
///
/// # Errors
/// None for damage, which is what is reported.
pub fn verify(store: &ClosedStore) -> Result<Verification, StoreError> {
    let session = |blob: &Blob| match rows::read(blob) {
        SessionRow::Damaged(_, cause) => Err(cause),
        SessionRow::Session(..)
        | SessionRow::Subscription(..)
        | SessionRow::Watch(..)
        | SessionRow::Path(..) => Ok(()),
    };
    let will = |blob: &Blob| will::read(blob).map(drop).map_err(|error| error.to_string());
    let state = |row: &StateEntry| state_store::describe(row, BrokerTime(0), false).map(drop);
    store.verify(Judges {
        session: &session,
        will: &will,
        state: &state,
    })
}

/// A row as an object of JSON, whose `kind` says what it is. `now` is where the broker's clock stood. Payloads are part
/// of it only if they are asked for.
#[must_use]
pub fn describe(row: &Row, now: BrokerTime, payload: bool) -> Value {
    match row {
        Row::Session(blob) => session(blob),
        Row::Will(blob) => match will::read(blob) {
            Ok((will, due)) => json!({
                "kind": "will",
                "client": blob.client_id,
                "topic": will.topic,
                "qos": will.qos,
                "retain": will.retain,
                "payloadBytes": will.payload.len(),
                "dueInSeconds": due.map(|due| due.since(now).as_secs()),
            }),
            Err(error) => damaged("will", &blob.client_id, &error.to_string()),
        },
        Row::Retained(retained) => message(
            "retained",
            &retained.record,
            json!({
                "id": retained.id,
                "qos": retained.record.qos,
                "ageSeconds": now.since(retained.ingested_at).as_secs(),
                "expiresInSeconds": retained.expires_at.map(|at| at.since(now).as_secs()),
            }),
            payload,
        ),
        Row::Receiver(receiver, totals) => json!({
            "kind": "receiver",
            "id": receiver.id,
            "name": receiver.name,
            "epoch": totals.epoch,
            "waitingBytes": totals.waiting_bytes,
            "oldestSeconds": totals.oldest.map(|oldest| now.since(oldest).as_secs()),
            "deadLetterBytes": totals.dead_letter_bytes,
            "deadLettersEvicted": totals.dead_letters_evicted,
            "limits": limits(&receiver.limits),
            "ledger": totals.ledger,
        }),
        Row::Source(source) => json!({
            "kind": "source",
            "source": source.source,
            "epoch": source.epoch,
            "sequence": source.sequence,
            "accepted": source.accepted,
            "refused": source.refused,
            "repeated": source.repeated,
            "fenced": source.fenced,
            "gaps": source.gaps,
        }),
        Row::State(row) => state_store::describe(row, now, payload)
            .unwrap_or_else(|cause| damaged("state", &row.key.escape_ascii().to_string(), &cause)),
        Row::Ended(ended) => json!({
            "kind": "ended",
            "paths": ended.paths,
            "ledger": ended.counts.to_ledger(format!("{}/(ended)", ended.kind)),
        }),
        Row::Entry(entry) => message(
            "entry",
            &entry.record,
            json!({
                "id": entry.id,
                "qos": entry.flags.qos,
                "retain": entry.flags.retain,
                "size": entry.size,
                "attempt": entry.attempt,
                "ageSeconds": now.since(entry.ingested_at).as_secs(),
                "expiresInSeconds": entry.expires_at.map(|at| at.since(now).as_secs()),
            }),
            payload,
        ),
        Row::Damaged(finding) => damaged(&finding.place, &finding.key, &finding.found),
    }
}

fn session(blob: &Blob) -> Value {
    match rows::read(blob) {
        SessionRow::Session(client, row) => json!({ "kind": "session", "client": client, "session": row }),
        SessionRow::Subscription(client, filter, subscription) => json!({
            "kind": "subscription",
            "client": client,
            "filter": filter,
            "subscription": subscription,
        }),
        SessionRow::Watch(client, key) => json!({
            "kind": "watch",
            "client": client,
            "key": key.escape_ascii().to_string(),
        }),
        SessionRow::Path(path, topics) => json!({ "kind": "path", "path": path, "topics": topics }),
        SessionRow::Damaged(client, cause) => damaged("session", &client, &cause),
    }
}

fn damaged(place: &str, key: &str, found: &str) -> Value {
    json!({ "kind": "damaged", "place": place, "key": key, "found": found })
}

fn limits(limits: &Limits) -> Value {
    let Limits {
        max_bytes,
        max_age,
        overflow,
        max_attempts,
        max_dead_letter_bytes: _,
        own_limits_only: _,
    } = limits;
    json!({
        "maxBytes": max_bytes,
        "maxAgeSeconds": max_age.map(|age| age.as_secs()),
        "overflow": format!("{overflow:?}"),
        "maxAttempts": max_attempts,
        "maxDeadLetterBytes": limits.dead_letter_bytes(),
    })
}

/// A message: what it is, where it was published, how large its payload is, and more.
fn message(kind: &str, record: &Record, more: Value, payload: bool) -> Value {
    let mut line = Map::new();
    line.insert("kind".to_owned(), kind.into());
    line.insert("topic".to_owned(), record.topic.as_str().into());
    line.insert("payloadBytes".to_owned(), record.payload.len().into());
    if let Value::Object(more) = more {
        line.extend(more);
    }
    if payload {
        let (name, text) = match std::str::from_utf8(&record.payload) {
            Ok(text) => ("payload", text.to_owned()),
            Err(_) => ("payloadBase64", BASE64_STANDARD.encode(&record.payload)),
        };
        line.insert(name.to_owned(), text.into());
    }
    Value::Object(line)
}
