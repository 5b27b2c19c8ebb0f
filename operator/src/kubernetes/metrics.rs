//! Metrics of an operator in a cluster.

use foreshore_runtime::{
    Metrics,
    metrics::prometheus_client::metrics::{counter::Counter, gauge::Gauge},
};

/// The metrics of one operator. Cheap to clone.
#[derive(Clone)]
pub struct OperatorMetrics {
    leader: Gauge,
    pub(crate) watch_errors: Counter,
    pub(crate) apply_failures: Counter,
    pub(crate) status_writes: Counter,
    pub(crate) events_left_out: Counter,
}

impl OperatorMetrics {
    /// Registers them.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            leader: metrics.register("operator_leader", "Whether this operator leads", Gauge::default()),
            watch_errors: metrics.register(
                "operator_watch_errors",
                "Errors of watches of the Kubernetes API",
                Counter::default(),
            ),
            apply_failures: metrics.register(
                "operator_apply_failures",
                "Objects of workloads that could not be made",
                Counter::default(),
            ),
            status_writes: metrics.register(
                "operator_status_writes",
                "Statuses that were written",
                Counter::default(),
            ),
            events_left_out: metrics.register(
                "operator_events_left_out",
                "Events that were not written since there were too many at a time",
                Counter::default(),
            ),
        }
    }

    /// Notes that this operator leads from now on.
    pub fn leads(&self) {
        self.leader.set(1);
    }
}
