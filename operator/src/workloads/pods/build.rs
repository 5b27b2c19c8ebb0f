//! Workloads to Kubernetes objects. Pure.

mod pod;
mod service;

use std::{collections::BTreeMap, fmt};

use foreshore_tls::Role;
use k8s_openapi::{
    api::{
        apps::v1::{
            Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment, StatefulSet,
            StatefulSetSpec,
        },
        core::v1::{
            ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, ServiceAccount,
            VolumeResourceRequirements,
        },
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube_client::core::ApiResource;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::service::Peers;
use crate::{
    kubernetes::MANAGER,
    role::RoleName,
    workloads::{Owner, Shape, Task, Workload},
};

/// Selects the objects that the operator makes.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=foreshore-operator";
/// Label with what a pod does.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Label with the name of the object that a pod is there for.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Name of the ConfigMap with the roots that roles trust at their first start.
pub const TRUST: &str = "foreshore-trust";
/// Its key.
pub const TRUST_KEY: &str = "ca.crt";

/// Longest name of a workload's objects: what a StatefulSet appends for its pods' labels has to fit a label too.
const LONGEST_NAME: usize = 47;
/// Most owners that are written down: of many Dataflows, some suffice to keep their runner.
const MOST_OWNERS: usize = 32;

/// What is the same for all pods.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Image of every role.
    pub image: String,
    /// When a node pulls it: `Always`, `IfNotPresent` or `Never`; Kubernetes' own default where it is left out.
    pub image_pull_policy: Option<String>,
    /// Secrets for the registry.
    pub image_pull_secrets: Vec<String>,
    /// Address of the control server, `host:port`.
    pub control: String,
    /// Storage class of volumes whose manifest names none; the cluster's default where it is left out.
    pub storage_class: Option<String>,
    /// Whether each workload gets a NetworkPolicy.
    pub network_policies: bool,
    /// Who may read metrics past such a policy; nobody where it is empty.
    pub metrics_from: Peers,
    /// Form of the roles' logs, `human` or `json`.
    pub log_format: String,
}

/// Kinds of objects that the operator makes, in the order in which they are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChildKind {
    /// Roots to trust.
    ConfigMap,
    /// Who a pod is.
    ServiceAccount,
    /// Who may speak to whom.
    NetworkPolicy,
    /// Where a role is reached.
    Service,
    /// How many pods a drain may take.
    PodDisruptionBudget,
    /// Pods that keep nothing.
    Deployment,
    /// Pods with volumes.
    StatefulSet,
}

impl ChildKind {
    /// All of them, in that order.
    pub const ALL: [Self; 7] = [
        Self::ConfigMap,
        Self::ServiceAccount,
        Self::NetworkPolicy,
        Self::Service,
        Self::PodDisruptionBudget,
        Self::Deployment,
        Self::StatefulSet,
    ];

    /// How the API calls it.
    #[must_use]
    pub fn resource(self) -> ApiResource {
        match self {
            Self::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
            Self::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
            Self::NetworkPolicy => ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&()),
            Self::Service => ApiResource::erase::<k8s_openapi::api::core::v1::Service>(&()),
            Self::PodDisruptionBudget => ApiResource::erase::<PodDisruptionBudget>(&()),
            Self::Deployment => ApiResource::erase::<Deployment>(&()),
            Self::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
        }
    }
}

/// Names an object that the operator makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChildKey {
    /// Its kind.
    pub kind: ChildKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ChildKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// An object that the operator makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Child {
    /// The workload that it is for; `None` for what all of a namespace share.
    pub role: Option<RoleName>,
    /// All that the operator says of it.
    pub manifest: Value,
}

/// The objects of all workloads.
///
/// # Errors
/// Never for what the types can hold; an error of the serializer is passed on rather than hidden.
pub fn build(
    workloads: &BTreeMap<RoleName, Workload>,
    settings: &Settings,
    trust: &str,
) -> Result<BTreeMap<ChildKey, Child>, serde_json::Error> {
    let mut children = Children::default();
    for workload in workloads.values() {
        Builder { workload, settings }.build(&mut children)?;
    }
    for (namespace, owners) in owners_by_namespace(workloads) {
        let trusted = ConfigMap {
            metadata: ObjectMeta {
                name: Some(TRUST.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(common_labels()),
                owner_references: Some(owner_references(&owners)),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(TRUST_KEY.to_owned(), trust.to_owned())])),
            ..ConfigMap::default()
        };
        children.add(ChildKind::ConfigMap, None, &trusted)?;
    }
    Ok(children.0)
}

fn owners_by_namespace(workloads: &BTreeMap<RoleName, Workload>) -> BTreeMap<&str, Vec<Owner>> {
    let mut namespaces: BTreeMap<&str, Vec<Owner>> = BTreeMap::new();
    for (role, workload) in workloads {
        let owners = namespaces.entry(role.namespace.as_str()).or_default();
        owners.extend(workload.shape.owners.iter().cloned());
    }
    for owners in namespaces.values_mut() {
        owners.sort();
        owners.dedup();
    }
    namespaces
}

#[derive(Default)]
struct Children(BTreeMap<ChildKey, Child>);

impl Children {
    fn add<K: Serialize + kube_client::Resource>(
        &mut self,
        kind: ChildKind,
        role: Option<&RoleName>,
        object: &K,
    ) -> Result<(), serde_json::Error> {
        let key = ChildKey {
            kind,
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
        };
        let child = Child {
            role: role.cloned(),
            manifest: serde_json::to_value(object)?,
        };
        self.0.insert(key, child);
        Ok(())
    }
}

/// Builds the objects of one workload.
struct Builder<'a> {
    workload: &'a Workload,
    settings: &'a Settings,
}

impl Builder<'_> {
    fn build(&self, children: &mut Children) -> Result<(), serde_json::Error> {
        let role = Some(self.role());
        let account = ServiceAccount {
            metadata: self.metadata(object_name(self.role())),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        children.add(ChildKind::ServiceAccount, role, &account)?;
        for service in self.services() {
            children.add(ChildKind::Service, role, &service)?;
        }
        if self.settings.network_policies {
            children.add(ChildKind::NetworkPolicy, role, &self.network_policy())?;
        }
        if self.shape().volume.is_some() {
            children.add(ChildKind::StatefulSet, role, &self.stateful_set())?;
        } else {
            children.add(ChildKind::Deployment, role, &self.deployment())?;
        }
        if self.shape().replicas > 1 || self.role().role == Role::Broker {
            children.add(ChildKind::PodDisruptionBudget, role, &self.disruption_budget())?;
        }
        Ok(())
    }

    fn role(&self) -> &RoleName {
        &self.workload.role
    }

    fn shape(&self) -> &Shape {
        &self.workload.shape
    }

    fn metadata(&self, name: String) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.role().namespace.clone()),
            labels: Some(self.labels()),
            owner_references: Some(owner_references(&self.shape().owners)),
            ..ObjectMeta::default()
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = common_labels();
        labels.extend(self.selector_labels());
        labels
    }

    /// What tells the pods of this workload from all others. It can't change later.
    fn selector_labels(&self) -> BTreeMap<String, String> {
        let role = self.role();
        let labels = [
            ("app.kubernetes.io/name", "foreshore".to_owned()),
            (COMPONENT, role.role.to_string()),
            (INSTANCE, role.name.clone()),
        ];
        labels.map(|(label, value)| (label.to_owned(), value)).into()
    }

    fn selector(&self) -> LabelSelector {
        LabelSelector {
            match_labels: Some(self.selector_labels()),
            ..LabelSelector::default()
        }
    }

    fn replicas(&self) -> Option<i32> {
        Some(i32::try_from(self.shape().replicas).unwrap_or(i32::MAX))
    }

    fn deployment(&self) -> Deployment {
        Deployment {
            metadata: self.metadata(object_name(self.role())),
            spec: Some(DeploymentSpec {
                replicas: self.replicas(),
                selector: self.selector(),
                strategy: Some(self.strategy()),
                template: self.pod(),
                ..DeploymentSpec::default()
            }),
            status: None,
        }
    }

    /// A new pod of a connector takes devices over before an old one ends; of a simulated machine there is one at most.
    fn strategy(&self) -> DeploymentStrategy {
        if !matches!(self.workload.task, Task::Connector(_)) {
            return DeploymentStrategy {
                type_: Some("Recreate".to_owned()),
                rolling_update: None,
            };
        }
        DeploymentStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        }
    }

    fn stateful_set(&self) -> StatefulSet {
        StatefulSet {
            metadata: self.metadata(object_name(self.role())),
            spec: Some(StatefulSetSpec {
                replicas: self.replicas(),
                selector: self.selector(),
                service_name: Some(object_name(self.role())),
                template: self.pod(),
                volume_claim_templates: Some(vec![self.claim()]),
                ..StatefulSetSpec::default()
            }),
            status: None,
        }
    }

    fn claim(&self) -> PersistentVolumeClaim {
        let volume = self.shape().volume.clone().unwrap_or_default();
        let class = volume.storage_class_name.as_ref().map(ToString::to_string);
        let requests = BTreeMap::from([(
            "storage".to_owned(),
            Quantity(volume.effective_size().to_string()),
        )]);
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(pod::DATA.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec {
                access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
                resources: Some(VolumeResourceRequirements {
                    requests: Some(requests),
                    limits: None,
                }),
                storage_class_name: class.or_else(|| self.settings.storage_class.clone()),
                ..PersistentVolumeClaimSpec::default()
            }),
            status: None,
        }
    }

    /// One at a time: a drain waits for the next pod, and is never blocked for good.
    fn disruption_budget(&self) -> PodDisruptionBudget {
        PodDisruptionBudget {
            metadata: self.metadata(object_name(self.role())),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(self.selector()),
                ..PodDisruptionBudgetSpec::default()
            }),
            status: None,
        }
    }
}

fn common_labels() -> BTreeMap<String, String> {
    let labels = [
        ("app.kubernetes.io/name", "foreshore"),
        ("app.kubernetes.io/managed-by", MANAGER),
    ];
    labels
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .into()
}

fn owner_references(owners: &[Owner]) -> Vec<OwnerReference> {
    let owners = owners.iter().take(MOST_OWNERS);
    owners
        .map(|Owner { object, uid }| OwnerReference {
            api_version: object.kind.api_version().to_owned(),
            kind: object.kind.to_string(),
            name: object.name.clone(),
            uid: uid.clone(),
            ..OwnerReference::default()
        })
        .collect()
}

/// Name of a workload's objects, such as `main-broker`; the one runner of a namespace is `dataflow-runner`.
#[must_use]
pub fn object_name(role: &RoleName) -> String {
    match role.role {
        Role::Dataflow => "dataflow-runner".to_owned(),
        kind => short(format!("{}-{kind}", role.name)),
    }
}

/// A name that is short enough; what was cut is replaced by a hash, so that names stay different.
fn short(name: String) -> String {
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let hash = hex::encode(Sha256::digest(name.as_bytes()));
    let (hash, _) = hash.split_at(8);
    let kept: String = name.chars().take(LONGEST_NAME - 9).collect();
    format!("{}-{hash}", kept.trim_end_matches('-'))
}

#[cfg(test)]
mod tests;
