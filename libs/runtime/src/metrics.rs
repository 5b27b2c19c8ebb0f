//! The metrics of a process, shared by all its roles.

use std::{any::Any, collections::HashMap, fmt, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::counter::ConstCounter,
    registry::{Metric, Registry, Unit},
};

pub use prometheus_client;

/// The media type of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a process. Cheap to clone; clones share the metrics.
///
/// A name is registered once: whoever registers it again gets the first one's metric. So roles of one kind that run in
/// one process share their families and tell themselves apart by labels.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    registry: Registry,
    known: HashMap<String, Box<dyn Any + Send>>,
}

impl Metrics {
    /// Metrics whose names all begin with `foreshore_`.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("foreshore");
        registry.register_collector(Box::new(TaskPanics));
        Self {
            inner: Arc::new(Mutex::new(Inner {
                registry,
                known: HashMap::new(),
            })),
        }
    }

    /// Registers a metric, or gives the one of that name that is there already.
    ///
    /// Name and help as Prometheus asks for them: `snake_case` without the suffix `_total`, help without a full stop.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.register_as(name.to_owned(), metric, |registry, metric| {
            registry.register(name, help, metric)
        })
    }

    /// As [`register`](Self::register), with a unit, which is appended to the name.
    pub fn register_with_unit<M: Metric + Clone>(&self, name: &str, help: &str, unit: Unit, metric: M) -> M {
        let key = format!("{name}_{}", unit.as_str());
        self.register_as(key, metric, |registry, metric| {
            registry.register_with_unit(name, help, unit, metric)
        })
    }

    fn register_as<M: Metric + Clone>(
        &self,
        key: String,
        metric: M,
        register: impl FnOnce(&mut Registry, M),
    ) -> M {
        let inner = &mut *self.inner.lock();
        match inner.known.get(&key).map(|known| known.downcast_ref::<M>()) {
            Some(Some(known)) => known.clone(),
            Some(None) => {
                tracing::error!(
                    metric = key,
                    "metric is registered with two types, the second is not shown"
                );
                metric
            }
            None => {
                register(&mut inner.registry, metric.clone());
                inner.known.insert(key, Box::new(metric.clone()));
                metric
            }
        }
    }

    /// Adds a collector, which is asked for its metrics at each scrape.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.inner.lock().registry.register_collector(collector);
    }

    /// All metrics in OpenMetrics' text form.
    ///
    /// # Errors
    /// When a metric can't be encoded, which is a fault of ours.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.inner.lock().registry)?;
        Ok(text)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("registered", &self.inner.lock().known.len())
            .finish()
    }
}

#[derive(Debug)]
struct TaskPanics;

impl Collector for TaskPanics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let panics = ConstCounter::new(crate::task::panics());
        let metric =
            encoder.encode_descriptor("task_panics", "Tasks that panicked", None, panics.metric_type())?;
        panics.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

    use super::*;

    #[test]
    fn a_name_is_registered_once_and_shared() {
        let metrics = Metrics::new();
        let first: Counter = metrics.register("values", "Values read", Counter::default());
        let second: Counter = metrics.register("values", "Values read", Counter::default());
        first.inc();
        second.inc_by(2);
        let other: Gauge = metrics.register("values", "Values read", Gauge::default());
        other.set(99);
        let text = metrics.encode().unwrap();
        assert!(text.contains("foreshore_values_total 3\n"), "{text}");
        assert_eq!(text.matches("# TYPE foreshore_values ").count(), 1, "{text}");
        assert!(text.contains("foreshore_task_panics_total "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
