//! Tells the outside how a sink is doing.

use std::time::Duration;

use foreshore_control::queue::Settlement;
use foreshore_record::Outcome;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    health::SinkHealth,
    metrics::{DataflowMetrics, SinkLabels},
    sink::SinkError,
};

/// Turns what happens into health, metrics and logs.
pub(crate) struct Observer {
    path: String,
    labels: SinkLabels,
    metrics: DataflowMetrics,
    health: watch::Sender<SinkHealth>,
}

impl Observer {
    pub(crate) fn new(
        path: String,
        labels: SinkLabels,
        metrics: DataflowMetrics,
        health: watch::Sender<SinkHealth>,
    ) -> Self {
        metrics.up(&labels, false);
        Self {
            path,
            labels,
            metrics,
            health,
        }
    }

    fn set(&self, health: SinkHealth) {
        self.metrics.up(
            &self.labels,
            health.health != foreshore_control::Health::Unavailable,
        );
        self.health.send_if_modified(|present| {
            let changed = *present != health;
            if present.reason != health.reason {
                let SinkHealth { reason, evidence, .. } = &health;
                match health.health {
                    foreshore_control::Health::Available => info!(path = %self.path, reason, "sink"),
                    _ => warn!(path = %self.path, reason, evidence, "sink"),
                }
            }
            *present = health;
            changed
        });
    }

    pub(crate) fn delivering(&self) {
        self.set(SinkHealth::delivering());
    }

    pub(crate) fn unavailable(&self, reason: &'static str, evidence: &str) {
        self.set(SinkHealth::unavailable(reason, evidence));
    }

    pub(crate) fn failed(&self, error: &SinkError) {
        self.metrics.failed(&self.labels);
        match error {
            SinkError::Retryable { reason, cause, .. } | SinkError::Fatal { reason, cause } => {
                self.unavailable(reason, cause);
            }
            SinkError::Rejected { cause } => self.unavailable(crate::health::reason::SINK_FAULT, cause),
        }
    }

    pub(crate) fn delivered(&self, settled: &[Settlement], bytes: usize, took: Duration) {
        self.metrics.delivered(&self.labels, settled, bytes, took);
        let letter = settled.iter().find_map(|settlement| match &settlement.outcome {
            Outcome::DeadLettered { stage, reason } => Some(format!("{stage}: {reason}")),
            _ => None,
        });
        match letter {
            Some(evidence) => {
                self.set(SinkHealth::dead_letters(evidence));
            }
            None => self.delivering(),
        }
    }

    /// The sink is no more.
    pub(crate) fn forget(&self) {
        self.metrics.remove(&self.labels);
    }
}
