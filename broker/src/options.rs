//! What a broker is started with.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::Duration,
};

use foreshore_crds::v1alpha1::broker::{self as api, BrokerLimits, BrokerSpec};
use foreshore_record::TopicFilter;
use foreshore_store::{OverflowPolicy, TopicLimit};
use foreshore_tls::Identity;

use crate::{audit::AuditDestination, auth::Method, probe::Schedule, wire::ReasonCode};

/// Most of the memory quota of a broker that is told none, in bytes.
const DEFAULT_MEMORY: u64 = 1 << 30;

/// Bytes that this process may use, if that is known.
static USABLE_MEMORY: LazyLock<Option<u64>> = LazyLock::new(foreshore_runtime::memory::usable);

/// What a broker is started with. All but the storage can change while it runs.
#[derive(Debug)]
pub struct Options {
    /// Namespace of the Broker object; part of the ledger's path names.
    pub namespace: String,
    /// Name of the Broker object.
    pub name: String,
    /// Where clients connect.
    pub listeners: Vec<ListenerOptions>,
    /// Where messages are kept.
    pub storage: Storage,
    /// What it takes on at most.
    pub limits: Limits,
    /// How it treats its clients.
    pub conduct: Conduct,
    /// Where the audit log goes; nowhere where it is left out.
    pub audit: Option<AuditDestination>,
    /// Threads that carry connections; one for each processor, eight at most, where it is left out.
    pub shards: Option<usize>,
    /// Connections that one thread carries before others are used.
    pub few_connections: usize,
    /// How often figures are published under `$SYS`; never where it is left out.
    pub sys_interval: Option<Duration>,
    /// Where metrics are registered.
    pub metrics: foreshore_runtime::Metrics,
}

/// Where messages are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In memory: gone with the process.
    Memory,
    /// In a directory, which one process may have open.
    Directory {
        /// The directory; it is made if it is not there.
        path: PathBuf,
        /// How it is kept.
        options: foreshore_store::StoreOptions,
    },
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct ListenerOptions {
    /// Name, unique in the broker.
    pub name: String,
    /// Address to bind; port 0 takes any free one.
    pub address: SocketAddr,
    /// What it speaks below MQTT.
    pub protocol: Protocol,
    /// Ways to prove who a client is, in order: the first that knows the client decides.
    pub authentication: Vec<Method>,
    /// What the certificates of clients are verified by, so that whoever is revoked later can be disconnected; none where
    /// that can't happen.
    pub clients: Option<Identity>,
    /// Most connections at once; the broker's limit where it is left out.
    pub max_connections: Option<u32>,
}

impl ListenerOptions {
    /// A listener without encryption.
    #[must_use]
    pub fn tcp(name: impl Into<String>, address: SocketAddr, authentication: Vec<Method>) -> Self {
        Self {
            name: name.into(),
            address,
            protocol: Protocol::Tcp,
            authentication,
            clients: None,
            max_connections: None,
        }
    }
}

/// What a listener speaks below MQTT.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// TLS over TCP. The configuration decides which certificates of clients are let in.
    Tls(Arc<rustls::ServerConfig>),
    /// WebSocket (MQTT 5.0 section 6) over TCP.
    WebSocket {
        /// Path that clients have to ask for.
        path: Arc<str>,
    },
    /// WebSocket over TLS over TCP.
    WebSocketTls {
        /// Path that clients have to ask for.
        path: Arc<str>,
        /// As that of `Tls`.
        config: Arc<rustls::ServerConfig>,
    },
}

impl Protocol {
    /// A protocol that encrypts where there is a configuration, and is a WebSocket where there is a path.
    #[must_use]
    pub fn new(config: Option<Arc<rustls::ServerConfig>>, path: Option<Arc<str>>) -> Self {
        match (config, path) {
            (None, None) => Self::Tcp,
            (Some(config), None) => Self::Tls(config),
            (None, Some(path)) => Self::WebSocket { path },
            (Some(config), Some(path)) => Self::WebSocketTls { path, config },
        }
    }

    /// How it encrypts; `None` where it does not.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<rustls::ServerConfig>> {
        match self {
            Self::Tcp | Self::WebSocket { .. } => None,
            Self::Tls(config) | Self::WebSocketTls { config, .. } => Some(config),
        }
    }

    /// Path of a WebSocket; `None` where it is none.
    #[must_use]
    pub fn path(&self) -> Option<&Arc<str>> {
        match self {
            Self::Tcp | Self::Tls(_) => None,
            Self::WebSocket { path } | Self::WebSocketTls { path, .. } => Some(path),
        }
    }

    /// URL for clients that dial this `host:port`.
    #[must_use]
    pub fn url(&self, authority: &str) -> String {
        let (scheme, path) = match self {
            Self::Tcp => ("mqtt", ""),
            Self::Tls(_) => ("mqtts", ""),
            Self::WebSocket { path } => ("ws", &**path),
            Self::WebSocketTls { path, .. } => ("wss", &**path),
        };
        format!("{scheme}://{authority}{path}")
    }
}

/// How the broker treats its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Whether a client learns only that something failed (0x80) where a policy refuses it.
    pub conceal_refusals: bool,
    /// Where all clients but our own roles are sent.
    pub redirect: Option<Arc<Redirect>>,
}

impl Conduct {
    /// What a client is told when a policy refuses it something.
    pub(crate) fn policy_refusal(&self) -> ReasonCode {
        if self.conceal_refusals {
            ReasonCode::UnspecifiedError
        } else {
            ReasonCode::NotAuthorized
        }
    }
}

impl From<&BrokerSpec> for Conduct {
    fn from(spec: &BrokerSpec) -> Self {
        let redirect = spec.redirect.as_ref().map(|redirect| Redirect {
            server_reference: redirect.server_reference.to_string(),
            permanent: redirect.effective_permanent(),
        });
        Self {
            conceal_refusals: spec.effective_refusals() == api::Refusals::Concealed,
            redirect: redirect.map(Arc::new),
        }
    }
}

/// Topic filters whose messages are counted apart.
#[must_use]
pub fn counted_topics(spec: &BrokerSpec) -> Vec<TopicFilter> {
    let filters = spec.metrics.iter().flat_map(|metrics| &metrics.topic_filters);
    // The schema has judged them: what it lets pass is a filter.
    filters
        .filter_map(|filter| TopicFilter::new(filter.as_str()).ok())
        .collect()
}

/// When listeners are looked at; `None` for never.
#[must_use]
pub fn probe_schedule(spec: &BrokerSpec) -> Option<Schedule> {
    let probe = spec.probe.clone().unwrap_or_default();
    let (interval, timeout) = (probe.effective_interval(), probe.effective_timeout());
    (!interval.is_zero()).then_some(Schedule { interval, timeout })
}

/// Another server for clients (MQTT 5.0 section 4.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The server: `HOST` or `HOST:PORT`, several separated by blanks.
    pub server_reference: String,
    /// Whether the move is for good.
    pub permanent: bool,
}

impl Redirect {
    /// What a client is told.
    pub(crate) fn reason(&self) -> ReasonCode {
        if self.permanent {
            ReasonCode::ServerMoved
        } else {
            ReasonCode::UseAnotherServer
        }
    }
}

/// What the broker takes on at most. The defaults are those of the `Broker` kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: usize,
    /// New connections of a listener without TLS in a second.
    pub max_connection_rate: u32,
    /// New connections of a listener over TLS in a second.
    pub max_tls_connection_rate: u32,
    /// Longest time from a connection to its CONNECT packet.
    pub connect_timeout: Duration,
    /// Longest packet, in bytes.
    pub max_packet_size: u32,
    /// Publishes of a client that may wait for their acknowledgement.
    pub receive_maximum: u16,
    /// Deliveries to a client that may wait for its acknowledgement.
    pub max_inflight: u16,
    /// Topic aliases of a connection, each way.
    pub max_topic_aliases: u16,
    /// Levels of a topic.
    pub max_topic_levels: usize,
    /// Subscriptions of a session.
    pub max_subscriptions: usize,
    /// Subscriptions of all sessions; our own roles have theirs beyond it.
    pub max_total_subscriptions: Option<usize>,
    /// Longest keep-alive, in seconds.
    pub max_keep_alive: u16,
    /// Longest life of a session without its client, in seconds.
    pub max_session_expiry: u32,
    /// Longest life of a message that is not delivered, in seconds.
    pub max_message_expiry: Option<u32>,
    /// Bytes that wait in the durable queue of a session or shared subscription.
    pub max_queue_bytes: u64,
    /// Longest time that a message waits in such a queue.
    pub max_queue_age: Option<Duration>,
    /// What such a queue does when it is full.
    pub queue_overflow: OverflowPolicy,
    /// Limits by topic filter of what waits in such a queue.
    pub topic_limits: Vec<TopicLimit>,
    /// Whether messages of quality of service 0 wait in such a queue too.
    pub queue_qos0: bool,
    /// Bytes that wait in memory for one connection.
    pub max_live_bytes: usize,
    /// Durable receivers of one filter or message.
    pub max_durable_receivers: usize,
    /// Retained messages.
    pub max_retained_messages: usize,
    /// Bytes of retained messages.
    pub max_retained_bytes: usize,
    /// Messages that one client may publish in a second.
    pub max_publish_rate: Option<u32>,
    /// Messages that all clients may publish in a second.
    pub max_total_publish_rate: Option<u32>,
    /// Bytes in memory for all clients.
    pub max_memory: Option<usize>,
    /// Bytes in memory for one connection.
    pub max_client_memory: Option<usize>,
    /// Keys of the state store.
    pub max_state_keys: usize,
    /// Bytes of keys and values of the state store, with 256 for each key, and as many of registrations; all of them are in
    /// memory.
    pub max_state_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&BrokerLimits::default())
    }
}

impl From<&BrokerLimits> for Limits {
    fn from(limits: &BrokerLimits) -> Self {
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let seconds = |value: Duration| u32::try_from(value.as_secs()).unwrap_or(u32::MAX);
        let max_memory = match limits.max_memory {
            Some(bytes) => size(bytes.into()),
            None => default_memory(*USABLE_MEMORY),
        };
        // What one client left must not keep others out.
        let max_retained_bytes = match limits.max_retained_bytes {
            Some(bytes) => size(bytes.into()),
            None => size(limits.effective_max_retained_bytes()).min(max_memory / 2),
        };
        Self {
            max_connections: limits.effective_max_connections() as usize,
            max_connection_rate: limits.effective_max_connection_rate(false),
            max_tls_connection_rate: limits.effective_max_connection_rate(true),
            connect_timeout: limits.effective_connect_timeout(),
            max_packet_size: u32::try_from(limits.effective_max_packet_size())
                .unwrap_or(MAX_PACKET)
                .min(MAX_PACKET),
            receive_maximum: short(limits.effective_receive_maximum()).max(1),
            max_inflight: short(limits.effective_max_inflight()).max(1),
            max_topic_aliases: short(limits.effective_max_topic_aliases()),
            max_topic_levels: limits.effective_max_topic_levels() as usize,
            max_subscriptions: limits.effective_max_subscriptions() as usize,
            max_total_subscriptions: limits.max_total_subscriptions.map(|max| max as usize),
            max_keep_alive: u16::try_from(limits.effective_max_keep_alive().as_secs()).unwrap_or(u16::MAX),
            max_session_expiry: seconds(limits.effective_max_session_expiry()),
            max_message_expiry: limits.max_message_expiry.map(|value| seconds(value.into())),
            max_queue_bytes: limits.effective_max_queue_bytes(),
            max_queue_age: None,
            queue_overflow: overflow(limits.effective_queue_overflow()),
            topic_limits: limits.topic_filters.iter().filter_map(topic_limit).collect(),
            queue_qos0: limits.effective_queue_qos0(),
            max_live_bytes: size(limits.effective_max_live_bytes()),
            max_durable_receivers: limits.effective_max_durable_receivers() as usize,
            max_retained_messages: limits.effective_max_retained_messages() as usize,
            max_retained_bytes,
            max_publish_rate: limits.max_publish_rate,
            max_total_publish_rate: limits.max_total_publish_rate,
            max_memory: Some(max_memory),
            max_client_memory: limits.max_client_memory.map(|bytes| size(bytes.into())),
            max_state_keys: MAX_STATE_KEYS,
            max_state_bytes: MAX_STATE_BYTES.min(max_memory / 8),
        }
    }
}

impl From<&BrokerSpec> for Limits {
    fn from(spec: &BrokerSpec) -> Self {
        let storage = spec.storage.clone().unwrap_or_default();
        let limits = spec.limits.clone().unwrap_or_default();
        Self {
            max_queue_age: Some(storage.effective_max_age()),
            ..Self::from(&limits)
        }
    }
}

/// The memory quota of a broker that is told none, where a process may use so many bytes: what suits a small plant, and no more
/// than half of them, since caches, threads and code come on top.
fn default_memory(usable: Option<u64>) -> usize {
    let half = usable.map_or(u64::MAX, |usable| usable / 2);
    usize::try_from(half.min(DEFAULT_MEMORY)).unwrap_or(usize::MAX)
}

fn overflow(policy: api::OverflowPolicy) -> OverflowPolicy {
    match policy {
        api::OverflowPolicy::Reject => OverflowPolicy::Reject,
        api::OverflowPolicy::DropOldest => OverflowPolicy::DropOldest,
        api::OverflowPolicy::DropNew => OverflowPolicy::DropNew,
    }
}

/// A limit by topic filter; the schema has judged the filter.
fn topic_limit(limit: &api::TopicFilterLimit) -> Option<TopicLimit> {
    Some(TopicLimit {
        filter: TopicFilter::new(limit.topic_filter.as_str()).ok()?,
        max_messages: limit.max_messages.map(u64::from),
        max_bytes: limit.max_bytes.map(Into::into),
        max_age: limit.max_age.map(Into::into),
        overflow: overflow(limit.effective_overflow()),
    })
}

/// The largest packet that the protocol can express (MQTT 5.0 section 2.1.4).
const MAX_PACKET: u32 = 268_435_460;

/// Keys of the state store where nothing else is said.
const MAX_STATE_KEYS: usize = 100_000;

/// Bytes of the state store where nothing else is said.
const MAX_STATE_BYTES: usize = 64 << 20;

impl Limits {
    /// Limits of a session's or group's queue.
    pub(crate) fn queue(&self) -> foreshore_store::Limits {
        foreshore_store::Limits {
            max_bytes: Some(self.max_queue_bytes),
            max_age: self.max_queue_age,
            overflow: self.queue_overflow,
            ..foreshore_store::Limits::default()
        }
    }

    /// Bounds of retained messages.
    pub(crate) fn retained(&self) -> crate::retained::Bounds {
        crate::retained::Bounds {
            count: self.max_retained_messages,
            bytes: self.max_retained_bytes,
        }
    }

    /// Bounds of the state store.
    pub(crate) fn state(&self) -> crate::state_store::Bounds {
        crate::state_store::Bounds {
            count: self.max_state_keys,
            bytes: self.max_state_bytes,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: "default".to_owned(),
            name: "broker".to_owned(),
            listeners: Vec::new(),
            storage: Storage::Memory,
            limits: Limits::default(),
            conduct: Conduct::default(),
            audit: None,
            shards: None,
            few_connections: 4,
            sys_interval: None,
            metrics: foreshore_runtime::Metrics::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_have_no_more_than_half_of_a_small_pod() {
        assert_eq!(default_memory(None), 1 << 30);
        assert_eq!(default_memory(Some(64 << 30)), 1 << 30);
        assert_eq!(default_memory(Some(512 << 20)), 256 << 20);
        let told = BrokerLimits {
            max_memory: Some("4Gi".parse().unwrap()),
            ..BrokerLimits::default()
        };
        assert_eq!(Limits::from(&told).max_memory, Some(4 << 30));
    }

    #[test]
    fn what_is_left_behind_takes_a_part_of_the_memory_only() {
        let bounds = |memory: &str, retained: Option<&str>| {
            let limits = Limits::from(&BrokerLimits {
                max_memory: Some(memory.parse().unwrap()),
                max_retained_bytes: retained.map(|bytes| bytes.parse().unwrap()),
                ..BrokerLimits::default()
            });
            (limits.max_retained_bytes >> 20, limits.max_state_bytes >> 20)
        };
        assert_eq!(bounds("1Gi", None), (256, 64));
        assert_eq!(bounds("128Mi", None), (64, 16));
        assert_eq!(bounds("128Mi", Some("100Mi")), (100, 16));
    }
}
