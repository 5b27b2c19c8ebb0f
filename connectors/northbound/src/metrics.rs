//! Metrics of dataflows. Labels come from manifests only, so their number is bounded.

use std::{sync::Arc, time::Duration};

use foreshore_control::queue::{PathTotals, Settlement};
use foreshore_record::Outcome;
use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::{
        encoding::EncodeLabelSet,
        metrics::{
            counter::Counter,
            family::{Family, MetricConstructor},
            gauge::Gauge,
            histogram::{Histogram, exponential_buckets},
        },
    },
};

/// Which sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SinkLabels {
    pub(crate) namespace: Arc<str>,
    pub(crate) dataflow: Arc<str>,
    pub(crate) sink: Arc<str>,
}

/// Which sink, and how records left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    namespace: Arc<str>,
    dataflow: Arc<str>,
    sink: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone)]
struct LatencyBuckets;

impl MetricConstructor<Histogram> for LatencyBuckets {
    fn new_metric(&self) -> Histogram {
        // 1 ms to 32 s.
        Histogram::new(exponential_buckets(0.001, 2.0, 16))
    }
}

/// The metrics of all dataflows of a process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct DataflowMetrics {
    records: Family<OutcomeLabels, Counter>,
    outputs: Family<SinkLabels, Counter>,
    bytes: Family<SinkLabels, Counter>,
    failures: Family<SinkLabels, Counter>,
    latency: Family<SinkLabels, Histogram, LatencyBuckets>,
    up: Family<SinkLabels, Gauge>,
    lag_records: Family<SinkLabels, Gauge>,
    lag_seconds: Family<SinkLabels, Gauge>,
    lag_bytes: Family<SinkLabels, Gauge>,
}

impl DataflowMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            records: metrics.register(
                "dataflow_records",
                "Records that left a sink's queue, by outcome",
                Family::default(),
            ),
            outputs: metrics.register(
                "dataflow_outputs",
                "Outputs that a sink has acknowledged",
                Family::default(),
            ),
            bytes: metrics.register(
                "dataflow_output_bytes",
                "Bytes of batches that a sink has acknowledged",
                Family::default(),
            ),
            failures: metrics.register(
                "dataflow_delivery_failures",
                "Batches that a sink did not take",
                Family::default(),
            ),
            latency: metrics.register(
                "dataflow_delivery_seconds",
                "Time from handing a batch to a sink to its settlement",
                Family::new_with_constructor(LatencyBuckets),
            ),
            up: metrics.register(
                "dataflow_sink_up",
                "Whether a sink takes records",
                Family::default(),
            ),
            lag_records: metrics.register(
                "dataflow_lag_records",
                "Records that wait in a sink's queue",
                Family::default(),
            ),
            lag_seconds: metrics.register(
                "dataflow_lag_seconds",
                "Age of the oldest record that waits in a sink's queue",
                Family::default(),
            ),
            lag_bytes: metrics.register(
                "dataflow_lag_bytes",
                "Bytes that wait in a sink's queue",
                Family::default(),
            ),
        }
    }

    pub(crate) fn delivered(
        &self,
        labels: &SinkLabels,
        settled: &[Settlement],
        bytes: usize,
        took: Duration,
    ) {
        for settlement in settled {
            let outcome = match settlement.outcome {
                Outcome::Delivered => "delivered",
                Outcome::DeadLettered { .. } => "dead_lettered",
                Outcome::Dropped { .. } => "dropped",
            };
            let SinkLabels {
                namespace,
                dataflow,
                sink,
            } = labels.clone();
            self.records
                .get_or_create(&OutcomeLabels {
                    namespace,
                    dataflow,
                    sink,
                    outcome,
                })
                .inc();
        }
        let outputs = settled
            .iter()
            .map(|settlement| u64::from(settlement.emitted))
            .sum();
        self.outputs.get_or_create(labels).inc_by(outputs);
        self.bytes.get_or_create(labels).inc_by(bytes as u64);
        self.latency.get_or_create(labels).observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, labels: &SinkLabels) {
        self.failures.get_or_create(labels).inc();
    }

    pub(crate) fn up(&self, labels: &SinkLabels, up: bool) {
        self.up.get_or_create(labels).set(i64::from(up));
    }

    pub(crate) fn lag(&self, labels: &SinkLabels, totals: &PathTotals) {
        let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.lag_records
            .get_or_create(labels)
            .set(clamp(totals.ledger.waiting));
        self.lag_seconds
            .get_or_create(labels)
            .set(clamp(totals.oldest_age.as_secs()));
        self.lag_bytes
            .get_or_create(labels)
            .set(clamp(totals.waiting_bytes));
    }

    /// Forgets a sink that is no more.
    pub(crate) fn remove(&self, labels: &SinkLabels) {
        for outcome in ["delivered", "dead_lettered", "dropped"] {
            let SinkLabels {
                namespace,
                dataflow,
                sink,
            } = labels.clone();
            self.records.remove(&OutcomeLabels {
                namespace,
                dataflow,
                sink,
                outcome,
            });
        }
        self.outputs.remove(labels);
        self.bytes.remove(labels);
        self.failures.remove(labels);
        self.latency.remove(labels);
        self.up.remove(labels);
        self.lag_records.remove(labels);
        self.lag_seconds.remove(labels);
        self.lag_bytes.remove(labels);
    }
}
