//! What programs count, in Prometheus' text format.

use anyhow::{Context, Result};

/// Sum of the samples whose name begins so, and of whose labels one is this, where one is asked for.
pub(crate) fn sum(metrics: &str, name: &str, label: &str) -> Result<f64> {
    let samples = metrics.lines();
    let samples = samples.filter(|line| line.starts_with(name) && line.contains(label));
    samples
        .map(|line| {
            let value = line.rsplit(' ').next().unwrap_or_default();
            value.parse::<f64>().with_context(|| line.to_owned())
        })
        .sum()
}
