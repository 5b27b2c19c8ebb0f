//! Rows of sessions in the store.
//!
//! A session has one row for itself and one for each subscription, so that a client with many subscriptions does not
//! write them all anew with each. The rows of one session stand together: the key of a subscription is the client
//! identifier, U+0000, which no client identifier holds, and the filter; that of a key of the state store that it is
//! notified of is the client identifier, U+0000 twice, and the key in hexadecimal. The topics of a path, which are kept for
//! the same reason, stand under the name of no client.

use bytes::Bytes;
use foreshore_record::TopicFilter;
use foreshore_store::{Blob, BrokerTime, Operation};
use serde::{Deserialize, Serialize};

use super::Subscription;
use crate::wire::Version;

const SEPARATOR: char = '\0';

/// Longest client identifier, in bytes: the key of a subscription has to hold it beside the filter.
pub(crate) const MAX_CLIENT_ID: usize = 1024;

/// Longest filter of a durable session, in bytes.
pub(crate) const MAX_FILTER: usize = foreshore_store::batch::MAX_NAME_LEN - MAX_CLIENT_ID - 1;

/// What is stored of a session itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionRow {
    /// Seconds that it outlives its connection.
    pub(crate) expiry: u32,
    /// When its last connection ended, in milliseconds of the broker's clock; absent while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disconnected_at: Option<u64>,
    /// Version that its client spoke last.
    pub(crate) version: Version,
    /// User name that its client had last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) username: Option<String>,
}

/// Name of a session's path in the ledger, and of its queue.
pub(crate) fn path_name(client_id: &str) -> String {
    format!("session/{client_id}")
}

/// A row that was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Row {
    /// A session.
    Session(String, SessionRow),
    /// A subscription of the session before it.
    Subscription(String, String, Subscription),
    /// A key of the state store that a session is notified of.
    Watch(String, Bytes),
    /// A path and the filters that it wants.
    Path(String, Vec<TopicFilter>),
    /// What can't be decoded, by client.
    Damaged(String, String),
}

impl SessionRow {
    /// When the session ends, unless its client returns; `None` for never.
    pub(crate) fn ends_at(&self, now: BrokerTime) -> Option<BrokerTime> {
        let since = self.disconnected_at.map_or(now, BrokerTime);
        (self.expiry != u32::MAX).then(|| since.after(std::time::Duration::from_secs(self.expiry.into())))
    }

    /// Writes the row.
    pub(crate) fn put(&self, client_id: &str) -> Operation {
        Operation::PutSession {
            client_id: client_id.to_owned(),
            state: json(self),
        }
    }
}

/// Forgets a session; its subscriptions are forgotten one by one.
pub(crate) fn delete(client_id: &str) -> Operation {
    Operation::DeleteSession {
        client_id: client_id.to_owned(),
    }
}

/// Writes a subscription.
pub(crate) fn put_subscription(client_id: &str, filter: &str, subscription: &Subscription) -> Operation {
    Operation::PutSession {
        client_id: key(client_id, filter),
        state: json(subscription),
    }
}

/// Forgets a subscription.
pub(crate) fn delete_subscription(client_id: &str, filter: &str) -> Operation {
    Operation::DeleteSession {
        client_id: key(client_id, filter),
    }
}

/// Writes that a session is notified of a key of the state store.
pub(crate) fn put_watch(client_id: &str, state_key: &Bytes) -> Operation {
    Operation::PutSession {
        client_id: watch_key(client_id, state_key),
        state: Bytes::new(),
    }
}

/// Forgets that a session is notified of a key.
pub(crate) fn delete_watch(client_id: &str, state_key: &Bytes) -> Operation {
    Operation::DeleteSession {
        client_id: watch_key(client_id, state_key),
    }
}

/// Writes what a path wants. Its key begins with U+0000, as no client identifier does.
pub(crate) fn put_path(name: &str, topics: &[TopicFilter]) -> Operation {
    Operation::PutSession {
        client_id: key("", name),
        state: json(topics),
    }
}

/// Forgets what a path wants.
pub(crate) fn delete_path(name: &str) -> Operation {
    Operation::DeleteSession {
        client_id: key("", name),
    }
}

/// Reads a row back.
pub(crate) fn read(blob: &Blob) -> Row {
    let damaged = |client: &str, error: serde_json::Error| Row::Damaged(client.to_owned(), error.to_string());
    match blob.client_id.split_once(SEPARATOR) {
        Some(("", path)) => match serde_json::from_slice(&blob.state) {
            Ok(topics) => Row::Path(path.to_owned(), topics),
            Err(error) => damaged(path, error),
        },
        None => match serde_json::from_slice(&blob.state) {
            Ok(row) => Row::Session(blob.client_id.clone(), row),
            Err(error) => damaged(&blob.client_id, error),
        },
        Some((client, rest)) if rest.starts_with(SEPARATOR) => {
            match hex::decode(rest.trim_start_matches(SEPARATOR)) {
                Ok(key) => Row::Watch(client.to_owned(), key.into()),
                Err(error) => Row::Damaged(client.to_owned(), error.to_string()),
            }
        }
        Some((client, filter)) => match serde_json::from_slice(&blob.state) {
            Ok(subscription) => Row::Subscription(client.to_owned(), filter.to_owned(), subscription),
            Err(error) => damaged(client, error),
        },
    }
}

fn key(client_id: &str, filter: &str) -> String {
    format!("{client_id}{SEPARATOR}{filter}")
}

fn watch_key(client_id: &str, state_key: &Bytes) -> String {
    format!("{client_id}{SEPARATOR}{SEPARATOR}{}", hex::encode(state_key))
}

fn json(value: &(impl Serialize + ?Sized)) -> Bytes {
    // These types hold no maps with keys other than texts and nothing that fails to serialize.
    serde_json::to_vec(value).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use foreshore_record::Qos;

    use super::*;
    use crate::wire::packet::SubscribeOptions;

    #[test]
    fn rows_are_read_back() {
        let row = SessionRow {
            expiry: 60,
            disconnected_at: Some(5),
            version: Version::V5,
            username: None,
        };
        let Operation::PutSession { client_id, state } = row.put("c/1") else {
            panic!()
        };
        assert_eq!(
            read(&Blob { client_id, state }),
            Row::Session("c/1".to_owned(), row.clone())
        );
        assert_eq!(row.ends_at(BrokerTime(99)), Some(BrokerTime(60_005)));
        assert_eq!(
            SessionRow {
                expiry: u32::MAX,
                ..row
            }
            .ends_at(BrokerTime(99)),
            None
        );

        let options = SubscribeOptions::at_most(Qos::ExactlyOnce);
        let subscription = Subscription {
            options,
            identifier: std::num::NonZeroU32::new(3),
        };
        let Operation::PutSession { client_id, state } =
            put_subscription("c/1", "$share/g/a/#", &subscription)
        else {
            panic!()
        };
        let expected = Row::Subscription("c/1".to_owned(), "$share/g/a/#".to_owned(), subscription);
        assert_eq!(read(&Blob { client_id, state }), expected);
        let state_key = Bytes::from_static(b"\x00key\xff");
        let Operation::PutSession { client_id, state } = put_watch("c/1", &state_key) else {
            panic!()
        };
        let Operation::DeleteSession { client_id: deleted } = delete_watch("c/1", &state_key) else {
            panic!()
        };
        assert_eq!(deleted, client_id);
        assert_eq!(
            read(&Blob { client_id, state }),
            Row::Watch("c/1".to_owned(), state_key)
        );
        let topics = vec![TopicFilter::new("a/#").unwrap()];
        let Operation::PutSession { client_id, state } = put_path("dataflow/n/d->s", &topics) else {
            panic!()
        };
        assert_eq!(
            read(&Blob { client_id, state }),
            Row::Path("dataflow/n/d->s".to_owned(), topics)
        );
        let damaged = Blob {
            client_id: "c".to_owned(),
            state: Bytes::from_static(b"{"),
        };
        assert!(matches!(read(&damaged), Row::Damaged(client, _) if client == "c"));
    }
}
