//! What was counted, for reports and metrics.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use foreshore_runtime::Metrics;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};

use crate::health::Member;

/// The metrics of all connectors of a process.
#[derive(Clone, Debug)]
pub(crate) struct ConnectorMetrics {
    values: Family<DeviceLabels, Counter>,
    messages: Family<DeviceLabels, Counter>,
    bytes: Family<DeviceLabels, Counter>,
    gaps: Family<DeviceLabels, Counter>,
    reconnects: Family<DeviceLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    connected: Family<DeviceLabels, Gauge>,
    in_flight: Family<DeviceLabels, Gauge>,
    last_value: Family<DeviceLabels, Gauge<f64, AtomicU64>>,
    commands: Family<CommandLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    protocol: &'static str,
    namespace: String,
    device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    protocol: &'static str,
    namespace: String,
    device: String,
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    protocol: &'static str,
    namespace: String,
    asset: String,
    status: &'static str,
}

impl ConnectorMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let family = |name: &str, help: &str| metrics.register(name, help, Family::default());
        Self {
            values: family("connector_values", "Values that the broker has"),
            messages: family("connector_messages", "Messages that the broker has"),
            bytes: metrics.register_with_unit(
                "connector_payload",
                "Payload that the broker has",
                Unit::Bytes,
                Family::default(),
            ),
            gaps: family(
                "connector_gaps",
                "Interruptions at the source during which values may have been missed",
            ),
            reconnects: family("connector_reconnects", "Links that had to be made anew"),
            refused: metrics.register(
                "connector_refused",
                "Messages that the broker refused, finally",
                Family::default(),
            ),
            connected: metrics.register(
                "connector_connected",
                "Whether there is a link",
                Family::default(),
            ),
            in_flight: metrics.register(
                "connector_in_flight_messages",
                "Messages that the broker has not acknowledged",
                Family::default(),
            ),
            last_value: metrics.register_with_unit(
                "connector_last_value_timestamp",
                "When the broker last took a value",
                Unit::Seconds,
                Family::default(),
            ),
            commands: metrics.register(
                "connector_commands",
                "Commands by their outcome",
                Family::default(),
            ),
        }
    }

    /// Counts a command.
    pub(crate) fn command(&self, protocol: &'static str, namespace: &str, asset: &str, status: &'static str) {
        let labels = CommandLabels {
            protocol,
            namespace: namespace.into(),
            asset: asset.into(),
            status,
        };
        self.commands.get_or_create(&labels).inc();
    }
}

/// What was counted of one device and its members.
#[derive(Debug)]
pub(crate) struct Counters {
    metrics: ConnectorMetrics,
    labels: DeviceLabels,
    values: Counter,
    messages: Counter,
    bytes: Counter,
    last_value: Gauge<f64, AtomicU64>,
    in_flight: Gauge,
    reconnects: AtomicU64,
    members: Mutex<BTreeMap<Member, MemberCounts>>,
}

/// What was counted of one member; of [`Member::Device`], their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberCounts {
    pub(crate) values: u64,
    pub(crate) messages: u64,
    pub(crate) gaps: u64,
    pub(crate) refused: u64,
    pub(crate) expired: u64,
}

impl Counters {
    pub(crate) fn new(
        metrics: ConnectorMetrics,
        protocol: &'static str,
        namespace: &str,
        device: &str,
    ) -> Arc<Self> {
        let labels = DeviceLabels {
            protocol,
            namespace: namespace.into(),
            device: device.into(),
        };
        // Looked up once: these change with every message.
        let (values, messages) = (
            metrics.values.get_or_create(&labels).clone(),
            metrics.messages.get_or_create(&labels).clone(),
        );
        let (bytes, last_value) = (
            metrics.bytes.get_or_create(&labels).clone(),
            metrics.last_value.get_or_create(&labels).clone(),
        );
        let in_flight = metrics.in_flight.get_or_create(&labels).clone();
        let (reconnects, members) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self {
            metrics,
            labels,
            values,
            messages,
            bytes,
            last_value,
            in_flight,
            reconnects,
            members,
        })
    }

    /// The broker has a message.
    pub(crate) fn published(&self, member: &Member, values: usize, payload: usize, now: jiff::Timestamp) {
        let (values, payload) = (values as u64, payload as u64);
        self.values.inc_by(values);
        self.messages.inc();
        self.bytes.inc_by(payload);
        #[expect(
            clippy::cast_precision_loss,
            reason = "milliseconds of this century fit a double"
        )]
        self.last_value.set(now.as_millisecond() as f64 / 1000.0);
        self.count(member, |counts| {
            counts.values += values;
            counts.messages += 1;
        });
    }

    /// The broker, or the client in its place, refused a message finally.
    pub(crate) fn refused(&self, member: &Member, reason: &str) {
        let DeviceLabels {
            protocol,
            namespace,
            device,
        } = self.labels.clone();
        let labels = RefusedLabels {
            protocol,
            namespace,
            device,
            reason: reason.to_owned(),
        };
        self.metrics.refused.get_or_create(&labels).inc();
        self.count(member, |counts| counts.refused += 1);
    }

    /// A message grew older than its expiry while the broker took none.
    pub(crate) fn expired(&self, member: &Member) {
        self.count(member, |counts| counts.expired += 1);
    }

    pub(crate) fn gap(&self, member: &Member) {
        self.metrics.gaps.get_or_create(&self.labels).inc();
        self.count(member, |counts| counts.gaps += 1);
    }

    pub(crate) fn reconnect(&self) {
        self.metrics.reconnects.get_or_create(&self.labels).inc();
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self, connected: bool) {
        self.metrics
            .connected
            .get_or_create(&self.labels)
            .set(connected.into());
    }

    pub(crate) fn in_flight(&self, messages: usize) {
        self.in_flight.set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    fn count(&self, member: &Member, count: impl Fn(&mut MemberCounts)) {
        let mut members = self.members.lock();
        count(members.entry(member.clone()).or_default());
        if *member != Member::Device {
            count(members.entry(Member::Device).or_default());
        }
    }

    /// Forgets members that are no longer planned.
    pub(crate) fn retain(&self, planned: impl Fn(&Member) -> bool) {
        self.members
            .lock()
            .retain(|member, _| *member == Member::Device || planned(member));
    }

    /// What was counted of a member.
    pub(crate) fn of(&self, member: &Member) -> MemberCounts {
        self.members.lock().get(member).copied().unwrap_or_default()
    }

    pub(crate) fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        // Gauges of a device that is gone would stay as they were.
        self.metrics.connected.remove(&self.labels);
        self.metrics.in_flight.remove(&self.labels);
        self.metrics.last_value.remove(&self.labels);
    }
}
