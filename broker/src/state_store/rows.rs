//! Rows of the state store in the store.
//!
//! Each key has one row, and the clock has one: a version must not be given out twice, though the value that had it is
//! long deleted. A row is a head in JSON, preceded by its length, and the value as it is.

use bytes::{BufMut, Bytes, BytesMut};
use foreshore_store::{BrokerTime, Operation, StateEntry};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    clock::{Timestamp, Version},
    keys::Entry,
};

/// Begins the key of each row of a key.
const KEY: u8 = b'k';

/// The key of the row of the clock.
const CLOCK: &[u8] = b"c";

/// What is stored of a key beside its value.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fence: Option<String>,
    /// In milliseconds of the broker's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
}

/// A row that was read back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// A key.
    Key(Bytes, Entry),
    /// The last version that was given out.
    Clock(Version),
}

/// A row that can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum DamagedRow {
    /// It is shorter than it says.
    #[error("it ends early")]
    TooShort,
    /// Its head is not that of a key.
    #[error("its head can't be decoded: {0}")]
    Head(#[from] serde_json::Error),
    /// A version or token is none.
    #[error("{0:?} is not a version")]
    Version(String),
    /// Its key is that of nothing.
    #[error("its key is not known")]
    Key,
}

/// Writes a key.
pub(super) fn put(key: &Bytes, entry: &Entry) -> Operation {
    let Entry {
        value,
        version,
        fence,
        expires_at,
    } = entry;
    let head = Head {
        version: version.to_string(),
        fence: fence.as_ref().map(Timestamp::to_string),
        expires_at: expires_at.map(|at| at.0),
    };
    // A head holds no maps with keys other than texts and nothing that fails to serialize.
    let head = serde_json::to_vec(&head).unwrap_or_default();
    let mut row = BytesMut::with_capacity(4 + head.len() + value.len());
    // Three texts of bounded length.
    row.put_u32(head.len() as u32);
    row.put_slice(&head);
    row.put_slice(value);
    Operation::PutState {
        key: row_key(key),
        value: row.freeze(),
    }
}

/// Forgets a key.
pub(super) fn delete(key: &Bytes) -> Operation {
    Operation::DeleteState { key: row_key(key) }
}

/// Writes the last version that was given out.
pub(super) fn put_clock(last: Version) -> Operation {
    Operation::PutState {
        key: Bytes::from_static(CLOCK),
        value: last.to_string().into(),
    }
}

/// Reads a row back.
///
/// # Errors
/// When it is damaged.
pub(super) fn read(row: &StateEntry) -> Result<Row, DamagedRow> {
    match row.key.split_first() {
        Some((&KEY, key)) => {
            let (length, rest) = row.value.split_first_chunk::<4>().ok_or(DamagedRow::TooShort)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (head, value) = rest.split_at_checked(length).ok_or(DamagedRow::TooShort)?;
            let head: Head = serde_json::from_slice(head)?;
            let entry = Entry {
                value: Bytes::copy_from_slice(value),
                version: timestamp(&head.version)?.version(),
                fence: head.fence.as_deref().map(timestamp).transpose()?,
                expires_at: head.expires_at.map(BrokerTime),
            };
            Ok(Row::Key(Bytes::copy_from_slice(key), entry))
        }
        Some(_) if row.key == CLOCK => {
            let text = String::from_utf8_lossy(&row.value);
            Ok(Row::Clock(timestamp(&text)?.version()))
        }
        _ => Err(DamagedRow::Key),
    }
}

/// A row for people, as an object of JSON; its value is part of it only if that is asked for. `now` is where the
/// broker's clock stands.
///
/// # Errors
/// What is wrong with a damaged row.
pub(crate) fn describe(row: &StateEntry, now: BrokerTime, payload: bool) -> Result<Value, String> {
    let text = |bytes: &Bytes| bytes.escape_ascii().to_string();
    let described = match read(row).map_err(|error| error.to_string())? {
        Row::Clock(version) => json!({ "kind": "stateClock", "version": version.to_string() }),
        Row::Key(key, entry) => json!({
            "kind": "state",
            "key": text(&key),
            "version": entry.version.to_string(),
            "fence": entry.fence.map(|fence| fence.to_string()),
            "expiresInSeconds": entry.expires_at.map(|at| at.since(now).as_secs()),
            "valueBytes": entry.value.len(),
            "value": payload.then(|| text(&entry.value)),
        }),
    };
    Ok(described)
}

fn timestamp(text: &str) -> Result<Timestamp, DamagedRow> {
    text.parse().map_err(|_| DamagedRow::Version(text.to_owned()))
}

fn row_key(key: &Bytes) -> Bytes {
    [&[KEY], &key[..]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_store::clock::Clock;

    fn stored(operation: Operation) -> StateEntry {
        match operation {
            Operation::PutState { key, value } => StateEntry { key, value },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rows_are_read_back() {
        let version = Clock::default().tick(1_696_374_425_000, None);
        for (fence, expires_at) in [
            (None, None),
            (Some("5:1:client-7".parse().unwrap()), Some(BrokerTime(9))),
        ] {
            let entry = Entry {
                value: Bytes::from_static(b"\x00{value}\xff"),
                version,
                fence,
                expires_at,
            };
            let key = Bytes::from_static(b"\x00key\xff");
            assert_eq!(read(&stored(put(&key, &entry))).unwrap(), Row::Key(key, entry));
        }
        assert_eq!(read(&stored(put_clock(version))).unwrap(), Row::Clock(version));
    }

    #[test]
    fn a_key_that_looks_like_the_clock_is_a_key() {
        let entry = Entry {
            value: Bytes::new(),
            version: Version::default(),
            fence: None,
            expires_at: None,
        };
        let key = Bytes::from_static(CLOCK);
        assert!(matches!(read(&stored(put(&key, &entry))).unwrap(), Row::Key(..)));
    }

    #[test]
    fn damaged_rows_are_told() {
        let error = |key: &'static [u8], value: &'static [u8]| {
            let (key, value) = (Bytes::from_static(key), Bytes::from_static(value));
            read(&StateEntry { key, value }).unwrap_err().to_string()
        };
        assert_eq!(error(b"k1", b"\0\0\0"), "it ends early");
        assert_eq!(error(b"k1", b"\xff\xff\xff\xff{}"), "it ends early");
        assert!(error(b"k1", b"\0\0\0\x02{}").contains("missing field"));
        assert_eq!(error(b"c", b"now"), "\"now\" is not a version");
        assert_eq!(error(b"x", b""), "its key is not known");
    }
}
