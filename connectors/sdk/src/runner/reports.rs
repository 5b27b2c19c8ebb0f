//! How devices and assets are, told to the operator.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foreshore_control::{
    Aspect, AspectKind, HandOver, Health as ReportedHealth, PlanResource, Report, Reporter, ResourceKey,
    Schema,
    plan::{AssetPlan, DevicePlan},
};
use foreshore_runtime::Shutdown;
use tokio::sync::watch;

use super::{counters::Counters, supervisor::Desired};
use crate::{
    emitter::Channel,
    health::{Health, HealthStatus, Member},
};

/// Changes are gathered for so long before they are told.
const GATHER: Duration = Duration::from_millis(50);

/// Where reports go: the control session, or a recorder in tests.
pub trait ReportSink: Send + Sync + 'static {
    /// Says how a part of an object is.
    fn report(&self, report: Report);
    /// Says that a part of an object is no more.
    fn retract(&self, object: &ResourceKey, aspect: &Aspect);
    /// Publishes the schema of a part of an object.
    fn schema(&self, schema: Schema);
    /// Says where this role stands with a device.
    fn hand_over(&self, hand_over: HandOver);
    /// Has nothing more to say of that.
    fn forget_hand_over(&self, device: &ResourceKey);
}

impl ReportSink for Reporter {
    fn report(&self, report: Report) {
        Self::report(self, report);
    }

    fn retract(&self, object: &ResourceKey, aspect: &Aspect) {
        Self::retract(self, object, aspect);
    }

    fn schema(&self, schema: Schema) {
        Self::schema(self, schema);
    }

    fn hand_over(&self, hand_over: HandOver) {
        Self::hand_over(self, hand_over);
    }

    fn forget_hand_over(&self, device: &ResourceKey) {
        Self::forget_hand_over(self, device);
    }
}

/// Tells how one device and its assets are, at each change and with new counts from time to time.
pub(crate) struct Teller {
    pub(crate) sink: Arc<dyn ReportSink>,
    pub(crate) channel: Channel,
    pub(crate) desired: watch::Receiver<Arc<Desired>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) interval: Duration,
}

impl Teller {
    /// Runs until the shutdown begins; then takes everything back if the device is gone.
    pub(crate) async fn run(self, shutdown: Shutdown, gone: impl Fn() -> bool) {
        let mut told = BTreeSet::new();
        while !shutdown.is_begun() {
            self.tell(&mut told);
            tokio::select! {
                () = self.channel.board().changed() => {}
                () = tokio::time::sleep(self.interval) => {}
                () = shutdown.begun() => break,
            }
            shutdown.or_begun(tokio::time::sleep(GATHER)).await;
        }
        if gone() {
            for (object, aspect) in told {
                self.sink.retract(&object, &aspect);
            }
        } else {
            self.tell(&mut told);
        }
    }

    fn tell(&self, told: &mut BTreeSet<(ResourceKey, Aspect)>) {
        let desired = Arc::clone(&self.desired.borrow());
        let mut now = BTreeSet::new();
        for (member, health) in self.channel.board().all() {
            let Some(report) = self.report(&desired, &member, &health) else {
                continue;
            };
            now.insert((report.object.clone(), report.aspect.clone()));
            self.sink.report(report);
        }
        for (object, aspect) in told.difference(&now) {
            self.sink.retract(object, aspect);
        }
        *told = now;
    }

    fn report(&self, desired: &Desired, member: &Member, health: &Health) -> Option<Report> {
        let (kind, object) = match member.asset() {
            None => (DevicePlan::KIND, &desired.device.object),
            Some(asset) => (AssetPlan::KIND, &desired.asset(asset)?.object),
        };
        let counts = self.counters.of(member);
        let status = match health.status {
            HealthStatus::Healthy => ReportedHealth::Available,
            HealthStatus::Degraded => ReportedHealth::Degraded,
            HealthStatus::Unhealthy => ReportedHealth::Unavailable,
            HealthStatus::Unknown => ReportedHealth::Unknown,
        };
        let message = match (health.evidence.as_str(), health.next_step.as_str()) {
            (evidence, "") => evidence.to_owned(),
            ("", next_step) => next_step.to_owned(),
            (evidence, next_step) => format!("{evidence}; {next_step}"),
        };
        let mut report = Report::new(kind, object, aspect_of(member), status, health.reason.clone())
            .message(message)
            .evidence(health.evidence.clone());
        let mut counted = vec![
            ("values", counts.values),
            ("messages", counts.messages),
            ("gaps", counts.gaps),
            ("refused", counts.refused),
            ("expired", counts.expired),
        ];
        if *member == Member::Device {
            counted.push(("reconnects", self.counters.reconnects()));
        }
        for (name, value) in counted {
            if value > 0 {
                report = report.counter(name, value);
            }
        }
        Some(report)
    }
}

/// The part of its object that a member is.
pub(crate) fn aspect_of(member: &Member) -> Aspect {
    match member {
        Member::Device => Aspect::endpoint(),
        Member::Dataset { dataset, .. } => Aspect::new(AspectKind::Dataset, &**dataset),
        Member::Event { group, event, .. } => Aspect::new(AspectKind::Event, format!("{group}/{event}")),
        Member::Stream { stream, .. } => Aspect::new(AspectKind::Stream, &**stream),
        Member::Action { group, action, .. } => Aspect::new(AspectKind::Action, format!("{group}/{action}")),
    }
}
