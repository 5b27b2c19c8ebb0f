//! What waits, for whom, and whether it becomes less: queues with their rates, connections that can't keep up, shards
//! with work left over.
//!
//! Nothing is measured unless somebody asks: then the queues in which something waits are looked at twice, an interval
//! apart.

use std::{
    cmp::{Ordering, Reverse},
    sync::Arc,
    time::{Duration, Instant},
};

use foreshore_store::{PathTotals, Receiver, ReceiverId, Store, StoreError, TopicLimit};
use futures::future::join_all;
use serde::Serialize;
use tokio::{sync::oneshot, time::timeout};

use crate::{
    broker::Handle,
    engine::{mailbox::Mailbox, shard::ShardItem},
    error::Error,
    session::rows::path_name,
};

pub use crate::engine::pressure::Keeping;

/// Most queues that are measured: those with most bytes.
const MAX_MEASURED: usize = 10_000;

/// Rows that are read at once.
const PAGE: usize = 1024;

/// Longest interval between the two looks.
pub const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// How long a shard may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What waits.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backlog {
    /// Time between the two looks, in seconds.
    pub interval_seconds: f64,
    /// Queues in which something waits, what hurts most first: those that grow or stand still by their bytes, then the
    /// others by the time until they are drained.
    pub queues: Vec<QueueInfo>,
    /// Queues in which something waits beyond those.
    pub more_queues: usize,
    /// Connections that can't keep up, those with most bytes first.
    pub slow: Vec<Strained>,
    /// The threads that carry connections.
    pub shards: Vec<ShardInfo>,
}

/// A durable queue in which something waits.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueInfo {
    /// Name of its path: a session, a shared group or a dataflow.
    pub name: String,
    /// Of a session: whether its client is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connected: Option<bool>,
    /// Entries that wait.
    pub entries: u64,
    /// Their bytes, as counted against the limit.
    pub bytes: u64,
    /// Most bytes that may wait, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Of each limit by topic filter of which something waits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topic_filters: Vec<TopicFilterInfo>,
    /// Age of the oldest, in seconds of the broker's clock.
    pub oldest_seconds: u64,
    /// Entries that came in each second of the interval.
    pub in_per_second: f64,
    /// Entries that left in each second: delivered, dead-lettered or dropped.
    pub out_per_second: f64,
    /// Seconds until it is empty at these rates; absent where it does not become less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained_in_seconds: Option<f64>,
}

/// What waits in a queue of a limit by topic filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicFilterInfo {
    /// The filter.
    pub topic_filter: String,
    /// Entries.
    pub entries: u64,
    /// Most of them, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u64>,
    /// Their bytes.
    pub bytes: u64,
    /// Most of them, if that is limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// A connection that can't keep up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Strained {
    /// The client.
    pub client_id: String,
    /// The shard that carries it.
    pub shard: u8,
    /// How it keeps up.
    pub keeping: Keeping,
    /// Deliveries that wait for it in memory.
    pub deliveries: usize,
    /// Bytes that wait for it in memory.
    pub live_bytes: usize,
    /// Bytes that may wait there before it gets no more, or has to read its queue.
    pub max_live_bytes: usize,
}

/// A thread that carries connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardInfo {
    /// Which.
    pub shard: usize,
    /// Items of work that wait for it.
    pub items: usize,
    /// Bytes of messages in them.
    pub bytes: usize,
    /// How it keeps up.
    pub keeping: Keeping,
    /// Whether it answered within two seconds.
    pub answers: bool,
}

/// What is wanted of connections that can't keep up.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Of this client only, if one is given.
    client: Option<Arc<str>>,
    /// At most so many, those with most bytes first.
    pub(crate) max: usize,
}

impl Wanted {
    /// Whether a client is asked for.
    pub(crate) fn concerns(&self, client: &str) -> bool {
        self.client.as_deref().is_none_or(|wanted| wanted == client)
    }
}

/// One look at a queue.
#[derive(Debug)]
struct Look {
    max_bytes: Option<u64>,
    totals: PathTotals,
}

impl Handle {
    /// Measures for an interval, a minute at most, what waits in queues and in memory; at most so many queues and
    /// connections are told of, and only what is one client's own, if one is given.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn backlog(
        &self,
        client: Option<&str>,
        interval: Duration,
        max: usize,
    ) -> Result<Backlog, Error> {
        let engine = self.engine();
        let queue = client.map(path_name);
        let begin = Instant::now();
        let (before, unmeasured) = engine
            .blocking(move |store| match queue {
                Some(queue) => Ok((waiting_queue(store, &queue)?, 0)),
                None => waiting_queues(store),
            })
            .await?;
        tokio::time::sleep(interval.min(MAX_INTERVAL)).await;
        let elapsed = begin.elapsed().as_secs_f64();
        let (now, limits) = (engine.now(), engine.limits.load_full());
        let looks = engine.blocking(move |store| look_again(store, before)).await?;
        let mut queues: Vec<_> = looks
            .into_iter()
            .map(|(before, totals)| QueueInfo {
                oldest_seconds: totals.oldest_age(now).as_secs(),
                topic_filters: of_topic_limits(&totals, &limits.topic_limits),
                ..measured(&before, &totals, elapsed)
            })
            .collect();
        queues.sort_by(by_harm);
        let more_queues = queues.len().saturating_sub(max) + unmeasured;
        queues.truncate(max);
        for queue in &mut queues {
            let client = queue.name.strip_prefix("session/");
            let client = client.and_then(|client| engine.sessions.find(client));
            queue.connected = client.map(|client| client.known().connection.is_some());
        }
        let (slow, shards) = self
            .strained(Wanted {
                client: client.map(Arc::from),
                max,
            })
            .await;
        Ok(Backlog {
            interval_seconds: elapsed,
            queues,
            more_queues,
            slow,
            shards,
        })
    }

    /// Asks all shards for connections that can't keep up.
    async fn strained(&self, wanted: Wanted) -> (Vec<Strained>, Vec<ShardInfo>) {
        let shards = self.engine().shards.iter().enumerate();
        let asked = shards.map(|(shard, mailbox)| ask_shard(shard, mailbox, wanted.clone()));
        let (slow, shards): (Vec<_>, Vec<_>) = join_all(asked).await.into_iter().unzip();
        let mut slow: Vec<_> = slow.into_iter().flatten().collect();
        slow.sort_by_key(|slow| Reverse(slow.live_bytes));
        slow.truncate(wanted.max);
        (slow, shards)
    }
}

/// Asks a shard for connections that can't keep up.
async fn ask_shard(shard: usize, mailbox: &Mailbox<ShardItem>, wanted: Wanted) -> (Vec<Strained>, ShardInfo) {
    let (items, bytes) = mailbox.load();
    let keeping = mailbox.pressure().keeping();
    let (answer, answered) = oneshot::channel();
    mailbox.send(ShardItem::Strained(wanted, answer), 0);
    let strained = timeout(PATIENCE, answered).await.ok().and_then(Result::ok);
    let info = ShardInfo {
        shard,
        items,
        bytes,
        keeping,
        answers: strained.is_some(),
    };
    (strained.unwrap_or_default(), info)
}

/// The queue of that name, if something waits in it.
fn waiting_queue(store: &dyn Store, name: &str) -> Result<Vec<Look>, StoreError> {
    let Some(receiver) = store.find_receiver(name)? else {
        return Ok(Vec::new());
    };
    let receivers = store.receivers(receiver.saturating_sub(1), 1)?;
    let found = receivers.first().map(|receiver| look(store, receiver));
    Ok(found.transpose()?.flatten().into_iter().collect())
}

/// Looks at a queue; `None` when nothing waits in it.
fn look(store: &dyn Store, receiver: &Receiver) -> Result<Option<Look>, StoreError> {
    let totals = store.totals(receiver.id)?;
    let max_bytes = receiver.limits.max_bytes;
    let totals = totals.filter(|totals| totals.ledger.waiting > 0);
    Ok(totals.map(|totals| Look { max_bytes, totals }))
}

/// Queues in which something waits, and how many there are beyond those that are measured.
fn waiting_queues(store: &dyn Store) -> Result<(Vec<Look>, usize), StoreError> {
    let (mut looks, mut passed_over): (Vec<Look>, usize) = (Vec::new(), 0);
    let mut keep_largest = |looks: &mut Vec<Look>| {
        looks.sort_by_key(|look| Reverse(look.totals.waiting_bytes));
        passed_over += looks.len().saturating_sub(MAX_MEASURED);
        looks.truncate(MAX_MEASURED);
    };
    let mut after: ReceiverId = 0;
    loop {
        let page = store.receivers(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for receiver in page {
            looks.extend(look(store, &receiver)?);
        }
        if looks.len() >= 2 * MAX_MEASURED {
            keep_largest(&mut looks);
        }
    }
    keep_largest(&mut looks);
    Ok((looks, passed_over))
}

/// Looks at the same queues once more; those that are gone or empty now need nobody.
fn look_again(store: &dyn Store, before: Vec<Look>) -> Result<Vec<(Look, PathTotals)>, StoreError> {
    let mut looks = Vec::with_capacity(before.len());
    for look in before {
        let totals = store.totals(look.totals.receiver)?;
        let totals = totals.filter(|totals| totals.ledger.waiting > 0);
        looks.extend(totals.map(|totals| (look, totals)));
    }
    Ok(looks)
}

fn measured(before: &Look, now: &PathTotals, seconds: f64) -> QueueInfo {
    let ledger = &now.ledger;
    let came = ledger.received.saturating_sub(before.totals.ledger.received);
    let left = (before.totals.ledger.waiting + came).saturating_sub(ledger.waiting);
    let per_second = |count: u64| (count as f64 / seconds.max(f64::MIN_POSITIVE) * 10.0).round() / 10.0;
    let net = left.saturating_sub(came);
    QueueInfo {
        name: ledger.path.clone(),
        connected: None,
        entries: ledger.waiting,
        bytes: now.waiting_bytes,
        max_bytes: before.max_bytes,
        topic_filters: Vec::new(),
        oldest_seconds: 0,
        in_per_second: per_second(came),
        out_per_second: per_second(left),
        drained_in_seconds: (net > 0).then(|| (ledger.waiting as f64 * seconds / net as f64).ceil()),
    }
}

/// What waits in a queue of those limits that are in force.
fn of_topic_limits(totals: &PathTotals, limits: &[TopicLimit]) -> Vec<TopicFilterInfo> {
    let waiting = |limit: &TopicLimit| {
        let key = limit.key();
        let waiting = totals.topics.iter().find(|waiting| waiting.key == key)?;
        Some(TopicFilterInfo {
            topic_filter: limit.filter.as_str().to_owned(),
            entries: waiting.entries,
            max_entries: limit.max_messages,
            bytes: waiting.bytes,
            max_bytes: limit.max_bytes,
        })
    };
    limits.iter().filter_map(waiting).collect()
}

/// What hurts most comes first.
fn by_harm(left: &QueueInfo, right: &QueueInfo) -> Ordering {
    match (left.drained_in_seconds, right.drained_in_seconds) {
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (None, None) => right.bytes.cmp(&left.bytes),
        (Some(left), Some(right)) => right.total_cmp(&left),
    }
}

#[cfg(test)]
mod tests {
    use foreshore_record::PathLedger;

    use super::*;

    fn totals(received: u64, waiting: u64, bytes: u64) -> PathTotals {
        PathTotals {
            receiver: 1,
            ledger: PathLedger {
                path: "dataflow/a".to_owned(),
                received,
                delivered: received - waiting,
                waiting,
                ..PathLedger::default()
            },
            epoch: 0,
            head: 1,
            waiting_bytes: bytes,
            oldest: None,
            dead_letter_bytes: 0,
            dead_letters_evicted: 0,
            topics: Vec::new(),
        }
    }

    fn queue(before: (u64, u64), now: (u64, u64), bytes: u64) -> QueueInfo {
        let look = Look {
            max_bytes: Some(1000),
            totals: totals(before.0, before.1, bytes),
        };
        measured(&look, &totals(now.0, now.1, bytes), 2.0)
    }

    #[test]
    fn rates_are_those_of_the_interval_and_tell_when_a_queue_is_empty() {
        // 10 came and 30 left within two seconds: 80 are left at 10 fewer each second.
        let draining = queue((200, 100), (210, 80), 800);
        assert_eq!((draining.in_per_second, draining.out_per_second), (5.0, 15.0));
        assert_eq!(draining.drained_in_seconds, Some(8.0));
        assert_eq!(
            (draining.entries, draining.bytes, draining.max_bytes),
            (80, 800, Some(1000))
        );
        let growing = queue((200, 100), (230, 120), 1);
        assert_eq!((growing.out_per_second, growing.drained_in_seconds), (5.0, None));
        let standing = queue((200, 100), (200, 100), 1);
        assert_eq!(standing.drained_in_seconds, None);
    }

    #[test]
    fn what_does_not_become_less_comes_first() {
        let growing = |bytes| queue((0, 0), (9, 9), bytes);
        let draining = |left| queue((100, 90), (100, left), 5000);
        let mut queues = [draining(10), growing(1), draining(80), growing(2)];
        queues.sort_by(by_harm);
        let told: Vec<_> = queues.iter().map(|queue| (queue.bytes, queue.entries)).collect();
        assert_eq!(told, [(2, 9), (1, 9), (5000, 80), (5000, 10)]);
    }
}
