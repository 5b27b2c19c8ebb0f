//! What limits by topic filter come to over all queues. The store counts it; here it is shown.

use std::sync::Arc;

use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::{
        encoding::EncodeLabelSet,
        metrics::{family::Family, gauge::Gauge},
    },
};
use foreshore_store::TopicTotals;
use parking_lot::Mutex;

use super::Stats;

/// Which limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    broker: Arc<str>,
    topic_filter: String,
}

/// Which limit, and why something was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    broker: Arc<str>,
    topic_filter: String,
    reason: &'static str,
}

/// Figures of all limits by topic filter. What was dropped is a gauge, because it is read from the store and not counted
/// here: it survives a restart, and begins anew with a limit.
#[derive(Debug)]
pub(crate) struct ByTopicLimit {
    broker: Arc<str>,
    waiting: Family<Labels, Gauge>,
    waiting_bytes: Family<Labels, Gauge>,
    dropped: Family<DropLabels, Gauge>,
    /// Filters that are shown.
    shown: Mutex<Vec<String>>,
}

impl ByTopicLimit {
    /// Registers the figures of a broker.
    pub(super) fn new(metrics: &Metrics, broker: Arc<str>) -> Self {
        Self {
            broker,
            waiting: metrics.register(
                "broker_topic_limit_waiting_messages",
                "Messages that wait in queues, by limit by topic filter; each counts once for each queue",
                Family::default(),
            ),
            waiting_bytes: metrics.register(
                "broker_topic_limit_waiting_bytes",
                "Bytes of them",
                Family::default(),
            ),
            dropped: metrics.register(
                "broker_topic_limit_dropped_messages",
                "Messages that limits by topic filter dropped since they are in force, and publishes that they refused",
                Family::default(),
            ),
            shown: Mutex::default(),
        }
    }

    /// Whether nothing is shown.
    pub(crate) fn is_empty(&self) -> bool {
        self.shown.lock().is_empty()
    }

    /// Shows these, and nothing of others.
    pub(crate) fn show(&self, all: &[TopicTotals]) {
        let filters: Vec<_> = all
            .iter()
            .map(|totals| totals.limit.filter.as_str().to_owned())
            .collect();
        let before = std::mem::replace(&mut *self.shown.lock(), filters.clone());
        for gone in before.iter().filter(|filter| !filters.contains(filter)) {
            self.forget(gone);
        }
        for (filter, totals) in filters.iter().zip(all) {
            let labels = self.labels(filter);
            Stats::show(&self.waiting.get_or_create(&labels), totals.waiting);
            Stats::show(&self.waiting_bytes.get_or_create(&labels), totals.waiting_bytes);
            for (reason, count) in [
                ("oldest", totals.dropped_oldest),
                ("new", totals.dropped_new),
                ("age", totals.dropped_aged),
                ("refused", totals.refused),
            ] {
                let labels = self.drop_labels(filter, reason);
                Stats::show(&self.dropped.get_or_create(&labels), count);
            }
        }
    }

    fn forget(&self, filter: &str) {
        let labels = self.labels(filter);
        self.waiting.remove(&labels);
        self.waiting_bytes.remove(&labels);
        for reason in ["oldest", "new", "age", "refused"] {
            self.dropped.remove(&self.drop_labels(filter, reason));
        }
    }

    fn labels(&self, filter: &str) -> Labels {
        Labels {
            broker: Arc::clone(&self.broker),
            topic_filter: filter.to_owned(),
        }
    }

    fn drop_labels(&self, filter: &str, reason: &'static str) -> DropLabels {
        DropLabels {
            broker: Arc::clone(&self.broker),
            topic_filter: filter.to_owned(),
            reason,
        }
    }
}
