//! What can be seen of a broker from outside: ledger, sessions, subscriptions, retained messages, backlogs, and where a
//! message is.
//!
//! Whoever looks gets as much as was asked for and never all of it: see [`Listing`].

pub mod backlog;
pub mod trace;

use std::sync::Arc;

use foreshore_record::{PathLedger, Qos, TopicFilter};
use foreshore_store::{Encryption, ReceiverId, Space, Store, StoreError, TopicTotals};
use serde::Serialize;

pub use crate::engine::memory::MemoryUse;
use crate::{
    broker::Handle,
    error::Error,
    session::registry::{Client, ConnectionInfo},
};

/// Rows that are read at once.
const PAGE: usize = 1024;

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing<T> {
    /// As many as were asked for.
    pub items: Vec<T>,
    /// Whether there are more.
    pub more: bool,
}

/// A client's session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// The client.
    pub client_id: String,
    /// Its connection, if it is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionInfo>,
    /// Whether the session outlives its connection.
    pub durable: bool,
    /// Seconds until it ends unless its client returns; absent while it is connected, and where it never ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends_in_seconds: Option<u64>,
    /// What waits in its durable queue, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Waiting>,
}

/// What waits in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// Entries.
    pub entries: u64,
    /// Their bytes, as counted against the queue's limit.
    pub bytes: u64,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionInfo {
    /// Who: a client, a shared group or a path.
    pub subscriber: String,
    /// What.
    pub filter: String,
    /// Highest quality of service, of a client's subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<Qos>,
}

/// A retained message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetainedInfo {
    /// Its topic.
    pub topic: String,
    /// Quality of service that it was published with.
    pub qos: Qos,
    /// Bytes of its payload.
    pub payload_bytes: usize,
    /// Seconds until it expires, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

impl<T> Listing<T> {
    /// The first of all, of which the given ones are one more than asked for if there are more.
    fn cut(mut items: Vec<T>, max: usize) -> Self {
        let more = items.len() > max;
        items.truncate(max);
        Self { items, more }
    }
}

impl Handle {
    /// What became of every record of every path: persistent sessions, shared subscriptions, dataflows, and our own
    /// publishers. Paths that ended are summed by kind.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn ledger(&self) -> Result<Vec<PathLedger>, Error> {
        let (namespace, name) = self.engine().identity.clone();
        let broker = format!("broker/{namespace}/{name}");
        Ok(self
            .engine()
            .blocking(move |store| ledger(store, &broker))
            .await?)
    }

    /// Limits by topic filter that are in force, with what they come to over all queues.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn topic_limits(&self) -> Result<Vec<TopicTotals>, Error> {
        Ok(self.engine().blocking(|store| store.topics()).await?)
    }

    /// What is held in memory for clients.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.engine().memory.usage()
    }

    /// Free space of the disk below the store; `None` when it is kept in memory, or the system does not say.
    pub async fn space(&self) -> Option<Space> {
        // A store that can't be asked any more tells that elsewhere.
        let asked = self.engine().blocking(|store| Ok(store.space())).await;
        asked.ok().flatten()
    }

    /// How the store is encrypted; `None` when it is not, or when it can't be asked any more.
    pub async fn encryption(&self) -> Option<Encryption> {
        let asked = self.engine().blocking(|store| Ok(store.encryption())).await;
        asked.ok().flatten()
    }

    /// Sessions, connected or not, in order of client; of one client only, if one is given.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn sessions(&self, client: Option<&str>, max: usize) -> Result<Listing<SessionInfo>, Error> {
        let sessions = &self.engine().sessions;
        let mut clients = match client {
            Some(client) => sessions.find(client).into_iter().collect(),
            None => sessions.all(),
        };
        clients.sort_unstable_by(|left, right| left.id.cmp(&right.id));
        let now = self.engine().now();
        let info = |client: &Arc<Client>| {
            let known = client.known();
            let session = known.session.as_ref()?;
            let info = SessionInfo {
                client_id: client.id.to_string(),
                connection: known.connection.clone(),
                durable: session.receiver.is_some(),
                ends_in_seconds: known.ends_at.map(|ends_at| ends_at.since(now).as_secs()),
                queue: None,
            };
            Some((info, session.receiver))
        };
        let found = clients
            .iter()
            .filter_map(info)
            .take(max.saturating_add(1))
            .collect();
        let Listing { items, more } = Listing::cut(found, max);
        let items = self
            .engine()
            .blocking(move |store| {
                items
                    .into_iter()
                    .map(|(info, queue)| with_queue(store, info, queue))
                    .collect()
            })
            .await?;
        Ok(Listing { items, more })
    }

    /// Subscriptions, in order of filter and subscriber; those of one client only, if one is given, with the shared ones
    /// that it is a member of.
    #[must_use]
    pub fn subscriptions(&self, client: Option<&str>, max: usize) -> Listing<SubscriptionInfo> {
        self.engine().router.subscriptions(client, max)
    }

    /// Retained messages whose topic a filter matches, in order of topic.
    #[must_use]
    pub fn retained(&self, filter: &TopicFilter, max: usize) -> Listing<RetainedInfo> {
        let now = self.engine().now();
        let mut found = Vec::new();
        let mut from = None;
        while found.len() <= max {
            let mut looks = PAGE;
            let retained = &self.engine().retained;
            from = retained.matching(filter, from, &mut looks, now, |message| {
                found.push(RetainedInfo {
                    topic: message.topic.to_string(),
                    qos: message.qos,
                    payload_bytes: message.payload.len(),
                    expires_in_seconds: message.expires_at.map(|at| at.since(now).as_secs()),
                });
            });
            if from.is_none() {
                break;
            }
        }
        Listing::cut(found, max)
    }
}

/// The first of many in the order of their keys; holds no more of them than were asked for, and one.
#[derive(Debug)]
pub(crate) struct First<K, T> {
    max: usize,
    found: std::collections::BTreeMap<K, T>,
}

impl<K: Ord, T> First<K, T> {
    pub(crate) fn new(max: usize) -> Self {
        let found = std::collections::BTreeMap::new();
        Self { max, found }
    }

    /// Whether there is a place for a key, of which is told whether it comes before another.
    pub(crate) fn takes(&self, comes_before: impl Fn(&K) -> bool) -> bool {
        let last = self.found.last_key_value();
        self.found.len() <= self.max || last.is_some_and(|(last, _)| comes_before(last))
    }

    /// Adds what it takes; the last one makes room.
    pub(crate) fn add(&mut self, key: K, info: T) {
        if self.found.len() > self.max {
            self.found.pop_last();
        }
        self.found.insert(key, info);
    }

    pub(crate) fn listing(self) -> Listing<T> {
        Listing::cut(self.found.into_values().collect(), self.max)
    }
}

/// Adds what waits in the queue of a session.
fn with_queue(
    store: &dyn Store,
    info: SessionInfo,
    queue: Option<ReceiverId>,
) -> Result<SessionInfo, StoreError> {
    let totals = queue.map(|queue| store.totals(queue)).transpose()?.flatten();
    let queue = totals.map(|totals| Waiting {
        entries: totals.ledger.waiting,
        bytes: totals.waiting_bytes,
    });
    Ok(SessionInfo { queue, ..info })
}

fn ledger(store: &dyn Store, broker: &str) -> Result<Vec<PathLedger>, StoreError> {
    let mut lines = Vec::new();
    let mut after = 0;
    loop {
        let page = store.receivers(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for receiver in page {
            lines.extend(store.totals(receiver.id)?.map(|totals| totals.ledger));
        }
    }
    for ended in store.ended()? {
        lines.push(ended.counts.to_ledger(format!("{}/(ended)", ended.kind)));
    }
    let mut after: Option<String> = None;
    loop {
        let page = store.sources(after.as_deref(), PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.source.clone());
        lines.extend(
            page.iter()
                .map(|source| source.to_ledger(format!("{}->{broker}", source.source))),
        );
    }
    Ok(lines)
}
