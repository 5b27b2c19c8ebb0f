//! Events: what changed about an object, for `kubectl describe`.
//!
//! One for each change of what matters most about an object, not for each writing; and never a reason to fail. What happens
//! to thousands of objects at a time is told of some: all of it stands in their statuses.

use std::time::Instant;

use foreshore_crds::conditions::{Condition, status as truth};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube_client::{Api, Client, api::PostParams};
use parking_lot::Mutex;
use tracing::warn;

use super::{
    MANAGER, OperatorMetrics,
    standing::{Headline, headline},
    within,
};
use crate::status::{ObjectStatus, remedy};

/// Longest note, in bytes (`events.k8s.io/v1`).
const LONGEST_NOTE: usize = 1024;

/// Most events at a time.
const BURST: f64 = 200.0;
/// Events a second beyond that.
const RATE: f64 = 10.0;

/// Writes events.
pub(super) struct Events {
    client: Client,
    instance: String,
    allowance: Mutex<Allowance>,
    metrics: OperatorMetrics,
}

impl Events {
    pub(super) fn new(client: Client, instance: &str, metrics: OperatorMetrics) -> Self {
        Self {
            client,
            instance: instance.to_owned(),
            allowance: Mutex::new(Allowance {
                left: BURST,
                at: Instant::now(),
            }),
            metrics,
        }
    }

    /// Tells what a status says that an earlier one did not.
    pub(super) async fn tell(&self, status: &ObjectStatus, before: Option<&Headline>) {
        let Some(now) = headline(&status.conditions) else {
            return;
        };
        if before == Some(&Headline::of(now)) {
            return;
        }
        if !self.allowance.lock().take(Instant::now()) {
            self.metrics.events_left_out.inc();
            return;
        }
        let event = self.event(status, now);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &status.key.namespace);
        if let Err(error) = within(api.create(&PostParams::default(), &event)).await {
            warn!(object = %status.key, %error, "event can't be written");
        }
    }

    fn event(&self, status: &ObjectStatus, condition: &Condition) -> Event {
        let key = &status.key;
        let next_step = remedy::explain(&condition.reason).map(|remedy| remedy.next);
        let parts = [
            Some(&*condition.message),
            status
                .evidence
                .as_deref()
                .filter(|evidence| !condition.message.contains(evidence)),
            next_step.filter(|_| condition.status == truth::FALSE),
        ];
        let parts: Vec<_> = parts
            .into_iter()
            .flatten()
            .filter(|part| !part.is_empty())
            .collect();
        let mut note = parts.join("; ");
        note.truncate(note.floor_char_boundary(LONGEST_NOTE));
        let good = condition.status == truth::TRUE;
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", key.name)),
                namespace: Some(key.namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(condition.type_.to_string()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(note),
            reason: Some(condition.reason.to_string()),
            regarding: Some(ObjectReference {
                api_version: Some(key.kind.api_version().to_owned()),
                kind: Some(key.kind.to_string()),
                name: Some(key.name.clone()),
                namespace: Some(key.namespace.clone()),
                uid: Some(status.declared.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(format!("foreshore.dev/{MANAGER}")),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
            ..Event::default()
        }
    }
}

/// How many events may be written now.
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    /// Takes one, if there is one.
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.left = (self.left + earned).min(BURST);
        self.at = now;
        let has = self.left >= 1.0;
        if has {
            self.left -= 1.0;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn after_a_burst_events_are_few() {
        let start = Instant::now();
        let mut allowance = Allowance {
            left: BURST,
            at: start,
        };
        let mut told = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..1000).filter(|_| allowance.take(now)).count()
        };
        assert_eq!([told(0), told(2), told(1000)], [200, 20, 200]);
    }
}
