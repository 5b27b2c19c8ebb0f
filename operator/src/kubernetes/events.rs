//! Events: what changed about an object, for `kubectl describe`.
//!
//! One for each change of what matters most about an object, not for each writing; and never a reason to fail.

use foreshore_crds::conditions::status as truth;
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta},
};
use kube_client::{Api, Client, api::PostParams};
use tracing::warn;

use super::{
    MANAGER,
    standing::{Headline, headline},
    within,
};
use crate::status::{ObjectStatus, remedy};

/// Longest note, in bytes (`events.k8s.io/v1`).
const LONGEST_NOTE: usize = 1024;

/// Writes events.
pub(super) struct Events {
    client: Client,
    instance: String,
}

impl Events {
    pub(super) fn new(client: Client, instance: &str) -> Self {
        Self {
            client,
            instance: instance.to_owned(),
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
            Some(condition.message.as_str()),
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
            action: Some(condition.type_.clone()),
            event_time: Some(MicroTime(Timestamp::now())),
            note: Some(note),
            reason: Some(condition.reason.clone()),
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
