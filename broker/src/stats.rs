//! What the broker counts, for `/metrics`. No label has a value that a client could make up.

pub(crate) mod topic_limits;
pub(crate) mod traffic;

use std::sync::Arc;

use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::metrics::{counter::Counter, gauge::Gauge},
};
use foreshore_store::OpenReport;

use self::{
    topic_limits::ByTopicLimit,
    traffic::{ByClient, ByTopic},
};

/// Counters of a broker. Brokers in one process share those without labels.
#[derive(Debug)]
pub(crate) struct Stats {
    /// Connections at present.
    pub(crate) connections: Gauge,
    /// Connections that were made.
    pub(crate) connected: Counter,
    /// Connections that were refused, for whatever reason.
    pub(crate) not_connected: Counter,
    /// Connections that ended by a fault of ours.
    pub(crate) connection_panics: Counter,
    /// Messages that clients published.
    pub(crate) received: Counter,
    /// Their payloads.
    pub(crate) received_bytes: Counter,
    /// Messages that were sent to clients.
    pub(crate) sent: Counter,
    /// Their payloads.
    pub(crate) sent_bytes: Counter,
    /// Messages that were in no durable queue and could not be delivered.
    pub(crate) dropped_live: Counter,
    /// Messages that were dropped because a durable queue is full.
    pub(crate) overflowed: Counter,
    /// Publishes that were refused.
    pub(crate) refused: Counter,
    /// Waits of publishers that were faster than they may be.
    pub(crate) publish_rate_waits: Counter,
    /// Journals, and places of tables, that could not be read when the store was opened.
    damaged_places: Counter,
    /// Commits that were acknowledged and are lost.
    lost_commits: Counter,
    /// Entries of durable queues that are lost.
    lost_entries: Counter,
    /// Messages by listener and class of client.
    pub(crate) by_client: ByClient,
    /// Messages by topic filter.
    pub(crate) by_topic: ByTopic,
    /// What waits and was dropped, by limit by topic filter.
    pub(crate) by_topic_limit: ByTopicLimit,
    /// Subscriptions of all sessions, shared ones by each of their members.
    pub(crate) subscriptions: Gauge,
    /// Bytes in memory for clients.
    pub(crate) memory_bytes: Gauge,
    /// The most that they may be; 0 without a quota.
    pub(crate) memory_max_bytes: Gauge,
    /// Connections that were ended, and refused, for want of memory.
    pub(crate) memory_ended: Counter,
    pub(crate) memory_refused: Counter,
    /// Lines of the audit log that were left out for want of room.
    pub(crate) audit_left_out: Counter,
    /// Requests to the state store.
    pub(crate) state_requests: Counter,
    /// Notifications of the state store.
    pub(crate) state_notifications: Counter,
    /// Keys of the state store.
    pub(crate) state_keys: Gauge,
    /// What they come to.
    pub(crate) state_bytes: Gauge,
    /// Whether rows of an encrypted store are left that are to be sealed anew.
    pub(crate) store_rewriting: Gauge,
    /// Whether the keys of an encrypted store can't be used as they are.
    pub(crate) store_keys_refused: Gauge,
}

impl Stats {
    /// Registers the counters of a broker of that name.
    pub(crate) fn new(metrics: &Metrics, broker: &Arc<str>) -> Self {
        let counter =
            |name: &str, help: &str| -> Counter { metrics.register(name, help, Counter::default()) };
        Self {
            connections: metrics.register(
                "broker_connections",
                "Clients that are connected",
                Gauge::default(),
            ),
            connected: counter("broker_connected", "Connections that clients made"),
            not_connected: counter("broker_connections_refused", "Connections that were refused"),
            connection_panics: counter(
                "broker_connection_panics",
                "Connections that ended by a fault of the broker",
            ),
            received: counter("broker_messages_received", "Messages that clients published"),
            received_bytes: counter(
                "broker_payload_received_bytes",
                "Bytes of payload that clients published",
            ),
            sent: counter(
                "broker_messages_sent",
                "Messages that were sent to clients, repeats included",
            ),
            sent_bytes: counter(
                "broker_payload_sent_bytes",
                "Bytes of payload that were sent to clients",
            ),
            dropped_live: counter(
                "broker_messages_dropped",
                "Messages outside of durable queues that could not be delivered",
            ),
            overflowed: counter(
                "broker_queue_messages_dropped",
                "Messages that were dropped because a durable queue is full",
            ),
            refused: counter("broker_publishes_refused", "Publishes that were refused"),
            publish_rate_waits: counter(
                "broker_publish_rate_waits",
                "Waits of publishers that were faster than limits.maxPublishRate and maxTotalPublishRate allow",
            ),
            damaged_places: counter(
                "broker_store_damaged_places",
                "Journals, places of tables and whole databases that could not be read when the store was opened",
            ),
            lost_commits: counter(
                "broker_store_lost_commits",
                "Commits that were acknowledged and are lost by damage of the disk, as far as their numbers tell",
            ),
            lost_entries: counter(
                "broker_store_lost_entries",
                "Entries of durable queues that are lost by damage of the disk, dropped as corrupt in the ledger",
            ),
            by_client: ByClient::new(metrics, Arc::clone(broker)),
            by_topic: ByTopic::new(metrics, Arc::clone(broker)),
            by_topic_limit: ByTopicLimit::new(metrics, Arc::clone(broker)),
            subscriptions: metrics.register(
                "broker_subscriptions",
                "Subscriptions of all sessions, connected or not",
                Gauge::default(),
            ),
            memory_bytes: metrics.register(
                "broker_memory_bytes",
                "Bytes in memory for clients, as limits.maxMemory counts them",
                Gauge::default(),
            ),
            memory_max_bytes: metrics.register(
                "broker_memory_max_bytes",
                "The most that they may be; 0 without a quota",
                Gauge::default(),
            ),
            memory_ended: counter(
                "broker_memory_connections_ended",
                "Connections that were ended because they held too much memory",
            ),
            memory_refused: counter(
                "broker_memory_connections_refused",
                "Connections that were refused for want of memory",
            ),
            audit_left_out: counter(
                "broker_audit_lines_left_out",
                "Lines of the audit log that could not be written, or not as fast as they were told",
            ),
            state_requests: counter("broker_state_store_requests", "Requests to the state store"),
            state_notifications: counter(
                "broker_state_store_notifications",
                "Notifications that the state store sent to sessions, connected or not",
            ),
            state_keys: metrics.register(
                "broker_state_store_keys",
                "Keys in the state store",
                Gauge::default(),
            ),
            state_bytes: metrics.register(
                "broker_state_store_bytes",
                "Bytes that the keys of the state store count against their limit",
                Gauge::default(),
            ),
            store_rewriting: metrics.register(
                "broker_store_encryption_rewriting",
                "1 as long as rows of the store are not encrypted with its current key",
                Gauge::default(),
            ),
            store_keys_refused: metrics.register(
                "broker_store_encryption_keys_refused",
                "1 as long as the folder of encryption keys can't be used and earlier keys stay in use",
                Gauge::default(),
            ),
        }
    }

    /// Shows a number, or the largest that can be shown.
    pub(crate) fn show(gauge: &Gauge, value: impl TryInto<i64>) {
        gauge.set(value.try_into().unwrap_or(i64::MAX));
    }

    /// Counts what an opening of the store has found to be lost.
    pub(crate) fn count_lost(&self, found: &OpenReport) {
        self.damaged_places.inc_by(found.damaged_places());
        self.lost_commits.inc_by(found.lost_commits);
        self.lost_entries.inc_by(found.lost_entries);
    }
}
