//! What a broker takes on at most.

use std::time::Duration as StdDuration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    rules,
    types::{ByteSize, Duration, TopicFilter, effective},
};

/// What a full queue does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverflowPolicy {
    /// Refuses the publish (0x97, quota exceeded): the publisher keeps the message.
    #[default]
    Reject,
    /// Drops the oldest messages of the queue, as `dropped{overflow}`.
    DropOldest,
    /// Drops the new message, as `dropped{overflow}`.
    DropNew,
}

/// What a broker takes on at most.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerLimits {
    /// Connections at once; 10000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: Option<u32>,
    /// New connections of a listener in a second; 500 over TLS and 5000 without where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connection_rate: Option<u32>,
    /// Longest time from a connection to its CONNECT packet; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "5m"))]
    pub connect_timeout: Option<Duration>,
    /// Longest packet; 1Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_between("128", "256Mi"))]
    pub max_packet_size: Option<ByteSize>,
    /// Publishes of a client that may wait for their acknowledgement (MQTT 5, Receive Maximum); 256 where it is
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub receive_maximum: Option<u32>,
    /// Deliveries to a client that may wait for its acknowledgement; 256 where it is left out, never more than the
    /// client allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub max_inflight: Option<u32>,
    /// Topic aliases of a connection; 64 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub max_topic_aliases: Option<u32>,
    /// Levels of a topic; 32 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub max_topic_levels: Option<u32>,
    /// Subscriptions of a session; 10000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_subscriptions: Option<u32>,
    /// Subscriptions of all sessions; then 0x97 (quota exceeded) for new ones. Bounded by `maxMemory` only where it is left
    /// out. Connectors and the operator have theirs beyond it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_total_subscriptions: Option<u32>,
    /// Longest keep-alive; 20m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "18h"))]
    pub max_keep_alive: Option<Duration>,
    /// Longest life of a session without its client; 168h where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "99999h"))]
    pub max_session_expiry: Option<Duration>,
    /// Longest life of a message that is not delivered; the storage's age where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_message_expiry: Option<Duration>,
    /// Bytes that wait in one durable queue; 1Gi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_queue_bytes: Option<ByteSize>,
    /// What a full durable queue of a session or shared subscription does; DropOldest where it is left out: a client
    /// that stays away loses of its own and keeps nobody from publishing. A dataflow's queue has its own policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_overflow: Option<OverflowPolicy>,
    /// Whether messages of QoS 0 wait in the durable queue of a session, as others do; false where it is left out. Each
    /// leaves the queue before it is sent, so that none is sent twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_qos0: Option<bool>,
    /// Bytes that wait in memory for one connection at QoS 0, before new ones are dropped; 1Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("4Ki"))]
    pub max_live_bytes: Option<ByteSize>,
    /// Durable receivers that one message may have; then 0x97 (quota exceeded). 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_durable_receivers: Option<u32>,
    /// Retained messages; 100000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000_000))]
    pub max_retained_messages: Option<u32>,
    /// Bytes of retained messages; 256Mi where it is left out, but no more than half of `maxMemory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retained_bytes: Option<ByteSize>,
    /// Messages that one client may publish in a second, after one second's worth at once; whoever is faster waits.
    /// Unbounded where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_publish_rate: Option<u32>,
    /// Messages that all clients may publish in a second, connectors included: those who are faster than others wait, and
    /// nobody for longer than a second. Unbounded where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_total_publish_rate: Option<u32>,
    /// Bytes that the broker holds in memory for all clients: what waits for them, packets on their way, subscriptions,
    /// retained messages, the state store. Beyond it the connection that holds most is ended (0x97, quota exceeded) until
    /// it is kept, and new clients are refused. Where it is left out: 1Gi, or half of what the pod or the machine may use where
    /// that is less; the process has caches, threads and code besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("16Mi"))]
    pub max_memory: Option<ByteSize>,
    /// Bytes that the broker holds in memory for one connection, before it is ended (0x97, quota exceeded); without bound
    /// of its own where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("256Ki"))]
    pub max_client_memory: Option<ByteSize>,
    /// Limits of what waits in the durable queue of a session or shared subscription, by topic filter; they hold beside
    /// those of the whole queue, and for each queue by itself. A message counts for the first whose filter matches its
    /// topic, from the moment at which the filter is listed. A dataflow's queue has its own limits only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topic_filters: Vec<TopicFilterLimit>,
}

/// What messages of a topic filter may come to in one durable queue. At least one of the bounds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_least_one_of(&["maxMessages", "maxBytes", "maxAge"]))]
#[serde(rename_all = "camelCase")]
pub struct TopicFilterLimit {
    /// Whose messages.
    pub topic_filter: TopicFilter,
    /// Messages that wait; without bound where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub max_messages: Option<u32>,
    /// Bytes that wait; without bound where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Ki"))]
    pub max_bytes: Option<ByteSize>,
    /// Age at which a waiting message is dropped, as `dropped{topic_age_limit}`; that of the storage where it is left out,
    /// which is never exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_age: Option<Duration>,
    /// What happens to messages beyond `maxMessages` and `maxBytes`: they are refused, or dropped as
    /// `dropped{topic_overflow_oldest}` or `dropped{topic_overflow_new}`. DropOldest where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overflow: Option<OverflowPolicy>,
}

effective!(TopicFilterLimit {
    /// What happens to messages beyond the bounds:
    effective_overflow: overflow -> OverflowPolicy = OverflowPolicy::DropOldest;
});

impl BrokerLimits {
    /// New connections of a listener in a second: `maxConnectionRate`; where it was left out, 500 over TLS, whose handshakes
    /// take up to a millisecond of a processor each, and 5000 without.
    #[must_use]
    pub fn effective_max_connection_rate(&self, over_tls: bool) -> u32 {
        self.max_connection_rate
            .unwrap_or(if over_tls { 500 } else { 5000 })
    }
}

effective!(BrokerLimits {
    /// Connections at once:
    effective_max_connections: max_connections -> u32 = 10_000;
    /// Longest time to the CONNECT packet:
    effective_connect_timeout: connect_timeout -> StdDuration = StdDuration::from_secs(10);
    /// Longest packet in bytes:
    effective_max_packet_size: max_packet_size -> u64 = 1 << 20;
    /// Publishes that may wait for their acknowledgement:
    effective_receive_maximum: receive_maximum -> u32 = 256;
    /// Deliveries that may wait for their acknowledgement:
    effective_max_inflight: max_inflight -> u32 = 256;
    /// Topic aliases of a connection:
    effective_max_topic_aliases: max_topic_aliases -> u32 = 64;
    /// Levels of a topic:
    effective_max_topic_levels: max_topic_levels -> u32 = 32;
    /// Subscriptions of a session:
    effective_max_subscriptions: max_subscriptions -> u32 = 10_000;
    /// Longest keep-alive:
    effective_max_keep_alive: max_keep_alive -> StdDuration = StdDuration::from_secs(1200);
    /// Longest life of a session without its client:
    effective_max_session_expiry: max_session_expiry -> StdDuration = StdDuration::from_secs(168 * 3600);
    /// Bytes that wait in one durable queue:
    effective_max_queue_bytes: max_queue_bytes -> u64 = 1 << 30;
    /// What a full durable queue does:
    effective_queue_overflow: queue_overflow -> OverflowPolicy = OverflowPolicy::DropOldest;
    /// Whether messages of QoS 0 wait in the durable queue of a session:
    effective_queue_qos0: queue_qos0 -> bool = false;
    /// Bytes that wait in memory for one connection at QoS 0:
    effective_max_live_bytes: max_live_bytes -> u64 = 1 << 20;
    /// Durable receivers that one message may have:
    effective_max_durable_receivers: max_durable_receivers -> u32 = 1000;
    /// Retained messages:
    effective_max_retained_messages: max_retained_messages -> u32 = 100_000;
    /// Bytes of retained messages:
    effective_max_retained_bytes: max_retained_bytes -> u64 = 256 << 20;
});
