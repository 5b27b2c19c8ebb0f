//! Statuses and events into the Kubernetes API. Only the leader writes them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use foreshore_crds::conditions::{find, status as truth, types};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube_client::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing::debug;

use super::{KubernetesSource, MANAGER, OperatorMetrics, events::Events, resource, source::Statuses, within};
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
    seen: Statuses,
    /// Identity and status as they were written.
    written: Mutex<BTreeMap<ObjectKey, (String, Value)>>,
    metrics: OperatorMetrics,
}

impl KubernetesStatus {
    /// Writes with `client`, beside what `source` reads; `instance` is the name of this pod, for events.
    #[must_use]
    pub fn new(client: Client, source: &KubernetesSource, instance: &str, metrics: OperatorMetrics) -> Self {
        Self {
            events: Events::new(client.clone(), instance),
            client,
            seen: source.statuses(),
            written: Mutex::default(),
            metrics,
        }
    }

    /// What stands in the API for this life of an object.
    fn status(&self, key: &ObjectKey, uid: &str) -> Option<Value> {
        let of_this_life = |(of, status): &(String, Value)| (of == uid).then(|| status.clone());
        let written = self.written.lock().get(key).and_then(of_this_life);
        written.or_else(|| self.seen.lock().get(key).and_then(of_this_life))
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
        let present = self.status(key, &declared.uid);
        if present.as_ref() == Some(&desired) {
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
        self.written
            .lock()
            .insert(key.clone(), (declared.uid.clone(), desired.clone()));
        self.events.tell(status, present.as_ref()).await;
        Ok(())
    }

    fn forget(&self, key: &ObjectKey) {
        self.written.lock().remove(key);
    }

    fn present(&self) -> BTreeMap<ObjectKey, Vec<Condition>> {
        let seen = self.seen.lock();
        let present = seen.iter();
        present
            .map(|(key, (_, status))| (key.clone(), conditions(Some(status))))
            .collect()
    }
}

/// The status as the definitions have it.
fn value(status: &ObjectStatus) -> Value {
    let mut members = status.details.clone();
    members.insert("observedGeneration".to_owned(), status.declared.generation.into());
    let conditions = serde_json::to_value(&status.conditions).unwrap_or_default();
    members.insert("conditions".to_owned(), conditions);
    Value::Object(members)
}

/// The condition that says most about an object: what keeps it from being ready, or what is wrong with its machine.
pub(super) fn headline(conditions: &[Condition]) -> Option<&Condition> {
    let failed = |type_: &str| find(conditions, type_).filter(|condition| condition.status == truth::FALSE);
    failed(types::READY)
        .or_else(|| failed(types::HEALTHY))
        .or_else(|| find(conditions, types::HEALTHY))
        .or_else(|| find(conditions, types::READY))
}

/// Conditions of a status as it stands in the API.
pub(super) fn conditions(status: Option<&Value>) -> Vec<Condition> {
    let conditions = status.and_then(|status| status.get("conditions")).cloned();
    conditions
        .and_then(|conditions| serde_json::from_value(conditions).ok())
        .unwrap_or_default()
}
