//! Messages by listener and class of client, and by topic filter.
//!
//! Every label has a bounded number of values: listeners and topic filters come from the manifest, of which a broker takes
//! [`MAX_TOPIC_FILTERS`], and classes are few. Counters are looked up when a client connects and when a shard first meets a
//! topic, so that a message costs additions and no work with names.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use foreshore_record::TopicFilter;
use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::{
        encoding::EncodeLabelSet,
        metrics::{counter::Counter, family::Family, gauge::Gauge},
    },
};
use parking_lot::Mutex;

use crate::auth::ClientClass;

/// Most topic filters that are counted apart.
const MAX_TOPIC_FILTERS: usize = 32;

/// The label of topics that no filter matches.
const OTHER: &str = "other";

/// Which clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClientLabels {
    broker: Arc<str>,
    listener: Arc<str>,
    class: &'static str,
}

/// Which topics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabels {
    broker: Arc<str>,
    topic_filter: Arc<str>,
}

/// What is counted of the messages of some clients, or of some topics.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    received: Counter,
    received_bytes: Counter,
    sent: Counter,
    sent_bytes: Counter,
    dropped: Counter,
    refused: Counter,
}

/// The counters of messages, for each value of some labels.
#[derive(Debug)]
struct TrafficBy<L> {
    received: Family<L, Counter>,
    received_bytes: Family<L, Counter>,
    sent: Family<L, Counter>,
    sent_bytes: Family<L, Counter>,
    dropped: Family<L, Counter>,
    refused: Family<L, Counter>,
}

/// What is counted of the clients of a class on a listener; all of them share it.
#[derive(Debug, Default)]
pub(crate) struct OfClients {
    /// Connections at present.
    pub(crate) connections: Gauge,
    /// Their messages.
    pub(crate) traffic: Traffic,
}

/// All counters by listener and class of client.
#[derive(Debug)]
pub(crate) struct ByClient {
    broker: Arc<str>,
    /// Those that are counted.
    known: Mutex<HashMap<ClientLabels, Arc<OfClients>>>,
    connections: Family<ClientLabels, Gauge>,
    traffic: TrafficBy<ClientLabels>,
}

/// All counters by topic filter.
#[derive(Debug)]
pub(crate) struct ByTopic {
    broker: Arc<str>,
    traffic: TrafficBy<TopicLabels>,
    /// Whether anything is counted.
    counting: AtomicBool,
    filters: ArcSwapOption<Filters>,
    /// Held by whoever changes the filters.
    changing: Mutex<()>,
}

/// Topic filters whose messages are counted.
#[derive(Debug)]
struct Filters {
    listed: Vec<(TopicFilter, Arc<Traffic>)>,
    other: Arc<Traffic>,
}

impl Traffic {
    /// A client published a message, with so many bytes of payload.
    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.inc();
        self.received_bytes.inc_by(bytes as u64);
    }

    /// A message was sent to a client, with so many bytes of payload.
    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.inc();
        self.sent_bytes.inc_by(bytes as u64);
    }

    /// A message outside of durable queues could not be delivered.
    pub(crate) fn count_dropped(&self) {
        self.dropped.inc();
    }

    /// Policies or limits refused a publish.
    pub(crate) fn count_refused(&self) {
        self.refused.inc();
    }
}

impl<L: EncodeLabelSet + Clone + Debug + Eq + Hash + Send + Sync + 'static> TrafficBy<L> {
    /// Registers the counters `broker_WHAT_…`, told as counted by some labels.
    fn new(metrics: &Metrics, what: &str, by: &str) -> Self {
        let register = |name: &str, help: &str| {
            let (name, help) = (format!("broker_{what}_{name}"), format!("{help}, by {by}"));
            metrics.register(&name, &help, Family::default())
        };
        Self {
            received: register("messages_received", "Messages that clients published"),
            received_bytes: register(
                "payload_received_bytes",
                "Bytes of payload that clients published",
            ),
            sent: register(
                "messages_sent",
                "Messages that were sent to clients, repeats included",
            ),
            sent_bytes: register("payload_sent_bytes", "Bytes of payload that were sent to clients"),
            dropped: register(
                "messages_dropped",
                "Messages outside of durable queues that could not be delivered to a client",
            ),
            refused: register("publishes_refused", "Publishes that policies or limits refused"),
        }
    }

    /// The counters of these labels.
    fn of(&self, labels: &L) -> Traffic {
        let of = |family: &Family<L, Counter>| family.get_or_create(labels).clone();
        Traffic {
            received: of(&self.received),
            received_bytes: of(&self.received_bytes),
            sent: of(&self.sent),
            sent_bytes: of(&self.sent_bytes),
            dropped: of(&self.dropped),
            refused: of(&self.refused),
        }
    }

    /// Tells these labels no more.
    fn forget(&self, labels: &L) {
        for family in [
            &self.received,
            &self.received_bytes,
            &self.sent,
            &self.sent_bytes,
            &self.dropped,
            &self.refused,
        ] {
            family.remove(labels);
        }
    }
}

impl ByClient {
    /// Registers the counters of a broker.
    pub(super) fn new(metrics: &Metrics, broker: Arc<str>) -> Self {
        Self {
            broker,
            known: Mutex::default(),
            connections: metrics.register(
                "broker_client_connections",
                "Clients that are connected, by listener and class",
                Family::default(),
            ),
            traffic: TrafficBy::new(metrics, "client", "listener and class"),
        }
    }

    /// The counters of a class of clients on a listener.
    pub(crate) fn of(&self, listener: &Arc<str>, class: ClientClass) -> Arc<OfClients> {
        let labels = self.labels(listener, class);
        let mut known = self.known.lock();
        if let Some(counted) = known.get(&labels) {
            return Arc::clone(counted);
        }
        let counted = Arc::new(OfClients {
            connections: self.connections.get_or_create(&labels).clone(),
            traffic: self.traffic.of(&labels),
        });
        known.insert(labels, Arc::clone(&counted));
        counted
    }

    /// Forgets a listener that is closed.
    pub(crate) fn forget(&self, listener: &Arc<str>) {
        let mut known = self.known.lock();
        for class in ClientClass::ALL {
            let labels = self.labels(listener, class);
            known.remove(&labels);
            self.connections.remove(&labels);
            self.traffic.forget(&labels);
        }
    }

    fn labels(&self, listener: &Arc<str>, class: ClientClass) -> ClientLabels {
        ClientLabels {
            broker: Arc::clone(&self.broker),
            listener: Arc::clone(listener),
            class: class.as_str(),
        }
    }
}

impl ByTopic {
    /// Registers the counters of a broker, which counts nothing yet.
    pub(super) fn new(metrics: &Metrics, broker: Arc<str>) -> Self {
        Self {
            broker,
            traffic: TrafficBy::new(metrics, "topic", "topic filter"),
            counting: AtomicBool::new(false),
            filters: ArcSwapOption::empty(),
            changing: Mutex::default(),
        }
    }

    /// Whether messages are counted by topic at all.
    pub(crate) fn is_counting(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// The counters of a topic: those of the first filter that matches it.
    pub(crate) fn of(&self, topic: &str) -> Option<Arc<Traffic>> {
        if !self.is_counting() {
            return None;
        }
        let filters = self.filters.load();
        let filters = filters.as_ref()?;
        let mut listed = filters.listed.iter();
        let found = listed.find(|(filter, _)| filter.matches(topic));
        Some(Arc::clone(found.map_or(&filters.other, |(_, traffic)| traffic)))
    }

    /// Counts the messages of these filters, as many as may be, and of all other topics; nothing where there is no filter.
    pub(crate) fn set(&self, filters: &[TopicFilter]) {
        let _one_at_a_time = self.changing.lock();
        let mut listed: Vec<(TopicFilter, Arc<Traffic>)> = Vec::new();
        for filter in filters {
            if listed.len() < MAX_TOPIC_FILTERS && !listed.iter().any(|(known, _)| known == filter) {
                listed.push((
                    filter.clone(),
                    Arc::new(self.traffic.of(&self.labels(filter.as_str()))),
                ));
            }
        }
        let before = self.filters.load_full();
        let counted = !listed.is_empty();
        let names: Vec<&str> = listed.iter().map(|(filter, _)| filter.as_str()).collect();
        for (gone, _) in before.iter().flat_map(|before| &before.listed) {
            if !names.contains(&gone.as_str()) {
                self.traffic.forget(&self.labels(gone.as_str()));
            }
        }
        if !counted {
            self.traffic.forget(&self.labels(OTHER));
        }
        let filters = counted.then(|| Filters {
            listed,
            other: Arc::new(self.traffic.of(&self.labels(OTHER))),
        });
        self.filters.store(filters.map(Arc::new));
        self.counting.store(counted, Ordering::Relaxed);
    }

    fn labels(&self, topic_filter: &str) -> TopicLabels {
        TopicLabels {
            broker: Arc::clone(&self.broker),
            topic_filter: topic_filter.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts
            .iter()
            .map(|text| TopicFilter::new(*text).unwrap())
            .collect()
    }

    #[test]
    fn a_topic_counts_for_the_first_filter_that_matches_it() {
        let metrics = Metrics::new();
        let topics = ByTopic::new(&metrics, "n/b".into());
        assert!(topics.of("a/b").is_none());
        topics.set(&filters(&["a/b", "a/#"]));
        for topic in ["a/b", "a/c", "a/d", "b"] {
            topics.of(topic).unwrap().count_received(10);
        }
        let text = metrics.encode().unwrap();
        for (filter, count) in [("a/b", 1), ("a/#", 2), ("other", 1)] {
            let line = format!("{{broker=\"n/b\",topic_filter=\"{filter}\"}} {count}\n");
            assert!(
                text.contains(&format!("foreshore_broker_topic_messages_received_total{line}")),
                "{text}"
            );
        }
        // What is not listed any more is not shown any more.
        topics.set(&filters(&["a/b"]));
        let text = metrics.encode().unwrap();
        assert!(
            !text.contains("a/#") && text.contains("topic_filter=\"a/b\"} 1"),
            "{text}"
        );
        topics.set(&[]);
        assert!(!metrics.encode().unwrap().contains("topic_filter"));
        assert!(topics.of("a/b").is_none());
    }

    #[test]
    fn labels_are_bounded() {
        let metrics = Metrics::new();
        let topics = ByTopic::new(&metrics, "n/b".into());
        let many: Vec<_> = (0..100).map(|index| format!("t/{index}")).collect();
        topics.set(&filters(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        let of_received = |text: &str, label: &str| {
            let of = |line: &&str| {
                line.starts_with("foreshore_broker_") && line.contains("messages_received_total")
            };
            text.lines()
                .filter(of)
                .filter(|line| line.contains(label))
                .count()
        };
        let text = metrics.encode().unwrap();
        assert_eq!(of_received(&text, "topic_filter="), MAX_TOPIC_FILTERS + 1);

        let clients = ByClient::new(&metrics, "n/b".into());
        let listener: Arc<str> = "tcp".into();
        for class in ClientClass::ALL {
            clients.of(&listener, class).traffic.count_received(1);
            clients.of(&listener, class).traffic.count_received(1);
        }
        let text = metrics.encode().unwrap();
        assert_eq!(of_received(&text, "listener=\"tcp\""), ClientClass::ALL.len());
        clients.forget(&listener);
        assert_eq!(of_received(&metrics.encode().unwrap(), "listener="), 0);
    }
}
