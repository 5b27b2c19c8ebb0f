//! Metrics of the cloud endpoint.

use std::time::Duration;

use foreshore_record::Lane;
use foreshore_runtime::Metrics;
use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};

use crate::times::nanoseconds;

/// From 1 ms to five hours, narrow enough for a percentile within a fifth: a plant's latency is read from these.
fn age_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, std::f64::consts::SQRT_2, 48))
}

/// A constant as the value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Constant(&'static str);

impl EncodeLabelValue for Constant {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0, encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: Constant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: Constant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneOutcome {
    lane: Constant,
    outcome: Constant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandOutcomeLabel {
    outcome: Constant,
}

/// What became of an output that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OutputOutcome {
    Committed,
    Repeated,
    Refused,
}

/// Metrics of the store.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) commit_seconds: Histogram,
    failed_commits: Family<Reason, Counter>,
}

impl StoreMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            commit_seconds: metrics.register_with_unit(
                "cloud_commit",
                "Time that a transaction took, sync included",
                Unit::Seconds,
                Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
            ),
            failed_commits: metrics.register(
                "cloud_failed_commits",
                "Transactions that failed",
                Family::default(),
            ),
        }
    }

    pub(crate) fn failed_commits(&self, reason: &'static str) {
        self.failed_commits
            .get_or_create(&Reason {
                reason: Constant(reason),
            })
            .inc();
    }
}

/// Metrics of links and commands.
#[derive(Clone, Debug)]
pub(crate) struct LinkMetrics {
    /// Edges that are connected.
    pub(crate) connected: Gauge,
    outputs: Family<LaneOutcome, Counter>,
    commit_age: Family<LaneLabel, Histogram, fn() -> Histogram>,
    commands: Family<CommandOutcomeLabel, Counter>,
    refusals: Family<Reason, Counter>,
    nacks: Family<Reason, Counter>,
}

impl LinkMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            connected: metrics.register(
                "cloud_connected_edges",
                "Edges that are connected",
                Gauge::default(),
            ),
            outputs: metrics.register(
                "cloud_outputs",
                "Outputs that arrived, by what became of them",
                Family::default(),
            ),
            commit_age: metrics.register_with_unit(
                "cloud_commit_age",
                "Time from when a value was so at its source until it was committed",
                Unit::Seconds,
                Family::new_with_constructor(age_buckets as fn() -> Histogram),
            ),
            commands: metrics.register("cloud_commands", "Commands by outcome", Family::default()),
            refusals: metrics.register(
                "cloud_refused_edges",
                "Edges that were refused",
                Family::default(),
            ),
            nacks: metrics.register(
                "cloud_refused_batches",
                "Batches that were not committed",
                Family::default(),
            ),
        }
    }

    pub(crate) fn outputs(&self, lane: Lane, outcome: OutputOutcome, count: u64) {
        let outcome = Constant(match outcome {
            OutputOutcome::Committed => "committed",
            OutputOutcome::Repeated => "repeated",
            OutputOutcome::Refused => "refused",
        });
        self.outputs
            .get_or_create(&LaneOutcome {
                lane: Constant(lane.as_str()),
                outcome,
            })
            .inc_by(count);
    }

    /// Values were committed by `now`. A source whose clock is ahead counts as one without delay.
    pub(crate) fn committed(&self, lane: Lane, observed_at: &[i64], now: Timestamp) {
        if observed_at.is_empty() {
            return;
        }
        let lane = Constant(lane.as_str());
        let ages = self.commit_age.get_or_create(&LaneLabel { lane });
        let now = nanoseconds(now);
        for observed_at in observed_at {
            let age = u64::try_from(now.saturating_sub(*observed_at)).unwrap_or(0);
            ages.observe(Duration::from_nanos(age).as_secs_f64());
        }
    }

    pub(crate) fn command(&self, outcome: &'static str) {
        self.commands
            .get_or_create(&CommandOutcomeLabel {
                outcome: Constant(outcome),
            })
            .inc();
    }

    pub(crate) fn refusal(&self, reason: &'static str) {
        self.refusals
            .get_or_create(&Reason {
                reason: Constant(reason),
            })
            .inc();
    }

    pub(crate) fn nack(&self, reason: &'static str) {
        self.nacks
            .get_or_create(&Reason {
                reason: Constant(reason),
            })
            .inc();
    }
}
