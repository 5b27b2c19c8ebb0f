//! What a support case needs: objects, events, logs and metrics. Secrets are not read: of them only names are told.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube_client::{
    Api,
    api::{DynamicObject, ListParams, LogParams},
    core::{ApiResource, GroupVersionKind, PartialObjectMeta},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Access, Error, PodName, name_of, within};
use crate::{kubernetes, object::Kind, workloads::ports};

/// Last lines of each log.
const LINES: i64 = 5000;
/// Largest log, in bytes.
const LARGEST_LOG: i64 = 4 << 20;
/// Largest page of metrics, in bytes.
const LARGEST_METRICS: u64 = 16 << 20;
/// What every object of ours carries.
const LABELS: &str = "app.kubernetes.io/name=foreshore";

/// Kinds of others: group, version, kind, plural, and which of them.
const OTHERS: [(&str, &str, &str, &str, Which); 14] = [
    ("apps", "v1", "Deployment", "deployments", Which::Ours),
    ("apps", "v1", "StatefulSet", "statefulsets", Which::Ours),
    ("apps", "v1", "ReplicaSet", "replicasets", Which::Ours),
    ("", "v1", "Pod", "pods", Which::Ours),
    ("", "v1", "Service", "services", Which::Ours),
    ("", "v1", "ServiceAccount", "serviceaccounts", Which::Ours),
    (
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        Which::Ours,
    ),
    (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        Which::Ours,
    ),
    (
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        Which::Ours,
    ),
    (
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclasses",
        Which::All,
    ),
    ("", "v1", "Node", "nodes", Which::All),
    ("", "v1", "PersistentVolume", "persistentvolumes", Which::All),
    ("", "v1", "Event", "events", Which::OfNamespaces),
    ("coordination.k8s.io", "v1", "Lease", "leases", Which::OfOperator),
];

/// Which objects of a kind are told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// Those with our label.
    Ours,
    /// All.
    All,
    /// All in namespaces that have something of ours.
    OfNamespaces,
    /// All in the namespace of the operator.
    OfOperator,
}

/// Files of a support case.
#[derive(Default)]
pub struct Evidence {
    /// Path within the case, and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// What could not be had, and why.
    pub missing: Vec<String>,
}

impl Evidence {
    /// Adds what was found, or notes why it was not.
    pub fn add<E: std::fmt::Display>(&mut self, path: impl Into<String>, found: Result<Vec<u8>, E>) {
        let path = path.into();
        match found {
            Ok(content) => self.files.push((path, content)),
            Err(error) => self.missing.push(format!("{path}: {error}")),
        }
    }
}

impl Access {
    /// Collects what may be seen with the user's rights.
    pub async fn evidence(&self) -> Evidence {
        let mut evidence = Evidence::default();
        let mut namespaces = BTreeSet::from([self.operator.clone()]);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_ours()) {
            let resource = kubernetes::resource(kind);
            let found = self.objects(&resource, None, "").await;
            if let Ok(objects) = &found {
                let of = objects
                    .iter()
                    .filter_map(|object| object.metadata.namespace.clone());
                namespaces.extend(of);
            }
            evidence.add(
                format!("objects/{}.json", resource.plural),
                found.map(|found| text(&found)),
            );
        }
        for (group, version, kind, plural, which) in OTHERS {
            let name = GroupVersionKind::gvk(group, version, kind);
            let resource = ApiResource::from_gvk_with_plural(&name, plural);
            let found = match which {
                Which::Ours => self.objects(&resource, None, LABELS).await,
                Which::All => self.objects(&resource, None, "").await,
                Which::OfOperator => self.objects(&resource, Some(&self.operator), "").await,
                Which::OfNamespaces => {
                    let mut all = Ok(Vec::new());
                    for namespace in &namespaces {
                        match (&mut all, self.objects(&resource, Some(namespace), "").await) {
                            (Ok(all), Ok(found)) => all.extend(found),
                            (_, Err(error)) => all = Err(error),
                            (Err(_), Ok(_)) => {}
                        }
                    }
                    all
                }
            };
            evidence.add(format!("cluster/{plural}.json"), found.map(|found| text(&found)));
        }
        let mut secrets = Vec::new();
        for namespace in &namespaces {
            match self.secret_names(namespace).await {
                Ok(names) => secrets.push(json!({ "namespace": namespace, "names": names })),
                Err(error) => evidence
                    .missing
                    .push(format!("names of Secrets in {namespace}: {error}")),
            }
        }
        evidence.add("cluster/secret-names.json", serde_json::to_vec_pretty(&secrets));
        match self.pods(None, LABELS).await {
            Ok(pods) => {
                for pod in &pods {
                    self.of_pod(pod, &mut evidence).await;
                }
            }
            Err(error) => evidence.missing.push(format!("logs and metrics: {error}")),
        }
        evidence
    }

    async fn objects(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        labels: &str,
    ) -> Result<Vec<DynamicObject>, Error> {
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        let mut list = within(api.list(&ListParams::default().labels(labels))).await?;
        for object in &mut list.items {
            // Long, and of no use to people; the annotation says again what the object says.
            object.metadata.managed_fields = None;
            if let Some(annotations) = &mut object.metadata.annotations {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
        }
        Ok(list.items)
    }

    async fn secret_names(&self, namespace: &str) -> Result<Vec<String>, Error> {
        let resource = kubernetes::resource(Kind::Secret);
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let list = within(api.list_metadata(&ListParams::default())).await?;
        Ok(list
            .items
            .into_iter()
            .filter_map(|secret| secret.metadata.name)
            .collect())
    }

    async fn of_pod(&self, pod: &Pod, evidence: &mut Evidence) {
        let name = name_of(pod);
        let path = format!("{}/{}", name.namespace, name.name);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let logs = |previous| LogParams {
            tail_lines: Some(LINES),
            limit_bytes: Some(LARGEST_LOG),
            previous,
            timestamps: true,
            ..LogParams::default()
        };
        let log = within(api.logs(&name.name, &logs(false))).await;
        evidence.add(format!("logs/{path}.log"), log.map(String::into_bytes));
        let containers = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        if containers
            .into_iter()
            .flatten()
            .any(|container| container.restart_count > 0)
        {
            let log = within(api.logs(&name.name, &logs(true))).await;
            evidence.add(format!("logs/{path}.previous.log"), log.map(String::into_bytes));
        }
        let metrics = tokio::time::timeout(kubernetes::CALL, self.metrics(&name)).await;
        let metrics = metrics.unwrap_or(Err(Error::TimedOut));
        evidence.add(format!("metrics/{path}.txt"), metrics);
    }

    /// What a pod's metrics page says.
    async fn metrics(&self, pod: &PodName) -> Result<Vec<u8>, Error> {
        let mut stream = self.connect(pod, ports::HTTP).await?;
        let unusable = |problem: String| Error::Unusable {
            what: pod.to_string(),
            problem,
        };
        let mut answer = Vec::new();
        // The end of the connection is the end of the answer.
        let request = b"GET /metrics HTTP/1.0\r\n\r\n";
        let asked = async {
            stream.write_all(request).await?;
            stream.take(LARGEST_METRICS).read_to_end(&mut answer).await
        };
        asked.await.map_err(|error| unusable(error.to_string()))?;
        let body = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let body = body.ok_or_else(|| unusable("no answer of HTTP".to_owned()))?;
        Ok(answer.split_off(body + 4))
    }
}

fn text(objects: &[DynamicObject]) -> Vec<u8> {
    let objects = objects
        .iter()
        .map(|object| serde_json::to_value(object).unwrap_or(Value::Null));
    let mut text = format!("{:#}", Value::Array(objects.collect()));
    text.push('\n');
    text.into_bytes()
}
