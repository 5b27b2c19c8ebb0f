//! Statuses and events into the Kubernetes API. Only the leader writes them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use foreshore_crds::conditions::Condition;
use kube_client::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tracing::debug;

use super::{
    KubernetesSource, MANAGER, OperatorMetrics, events::Events, resource, source::Statuses,
    standing::Written, within,
};
use crate::{
    object::ObjectKey,
    status::{ObjectStatus, writer::StatusSink},
};

/// Writes statuses, each only when it differs from what stands there.
///
/// What stands there is what was written last, or else what the watch told: never the watch alone, which may lag behind
/// one's own writing and would make a change back to an earlier state look like no change at all.
pub struct KubernetesStatus {
    client: Client,
    events: Events,
    statuses: Statuses,
    metrics: OperatorMetrics,
}

impl KubernetesStatus {
    /// Writes with `client`, beside what `source` reads; `instance` is the name of this pod, for events.
    #[must_use]
    pub fn new(client: Client, source: &KubernetesSource, instance: &str, metrics: OperatorMetrics) -> Self {
        Self {
            events: Events::new(client.clone(), instance, metrics.clone()),
            client,
            statuses: source.statuses(),
            metrics,
        }
    }
}

#[async_trait]
impl StatusSink for KubernetesStatus {
    async fn write(&self, status: &ObjectStatus) -> Result<(), String> {
        let ObjectStatus { key, declared, .. } = status;
        if !key.kind.is_ours() {
            return Ok(());
        }
        let desired = value(status);
        let written = Written::of(&desired);
        let before = self.statuses.lock().get(key, &declared.uid);
        if before.as_ref().is_some_and(|before| before.is(&written)) {
            return Ok(());
        }
        let resource = resource(key.kind);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let patch = json!({
            "apiVersion": key.kind.api_version(),
            "kind": key.kind.as_str(),
            // An object of the same name that was made anew has another status.
            "metadata": { "name": key.name, "namespace": key.namespace, "uid": declared.uid },
            "status": desired,
        });
        let manager = PatchParams::apply(&format!("{MANAGER}/status")).force();
        match within(api.patch_status(&key.name, &manager, &Patch::Apply(&patch))).await {
            Ok(_) => drop(self.metrics.status_writes.inc()),
            // It is gone, or another one has its name: the watch tells the rest.
            Err(error) if error.is_not_found() || error.is_conflict() => {
                debug!(object = %key, %error, "status of an object that is gone");
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        }
        self.statuses.lock().write(key, &declared.uid, written);
        let before = before.as_ref().and_then(Written::headline);
        self.events.tell(status, before).await;
        Ok(())
    }

    fn present(&self) -> BTreeMap<ObjectKey, Vec<Condition>> {
        self.statuses.lock().take_conditions()
    }
}

/// The status as the definitions have it.
fn value(status: &ObjectStatus) -> Value {
    let details = status.details.iter();
    let mut members: Map<String, Value> = details
        .map(|(member, detail)| ((*member).to_owned(), detail.into()))
        .collect();
    if let Some(instance) = &status.instance {
        members.insert("instance".to_owned(), instance.as_str().into());
    }
    members.insert("observedGeneration".to_owned(), status.declared.generation.into());
    let conditions = serde_json::to_value(&status.conditions).unwrap_or_default();
    members.insert("conditions".to_owned(), conditions);
    Value::Object(members)
}
