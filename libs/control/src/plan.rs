//! What roles are told to do: the typed resources of a plan.
//!
//! The operator makes them from manifests with every reference resolved; the control session carries each as JSON, one
//! resource a message. A role receives only what concerns it.

use std::{collections::BTreeMap, fmt, ops::Deref, sync::Arc};

use foreshore_crds::v1alpha1::{
    AssetSpec, BrokerPolicySpec, BrokerSpec, CloudSpec, DataflowEndpointSpec, DataflowSpec, DeviceSpec,
    SimulatorSpec, asset::Action,
};
use foreshore_record::TopicFilter;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::handover::{GivePlan, PeersPlan, TakePlan};

/// What a resource is called within a plan. Cheap to clone: it stands in many tables, ten thousand times in each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceKey(Arc<ResourceName>);

/// The parts of a [`ResourceKey`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceName {
    /// Kind of the resource, such as `Device`.
    pub kind: String,
    /// Namespace; empty for what has none.
    pub namespace: String,
    /// Name, unique among resources of the kind in the namespace.
    pub name: String,
}

impl ResourceKey {
    /// Makes a key.
    #[must_use]
    pub fn new(kind: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(ResourceName {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }))
    }
}

impl Deref for ResourceKey {
    type Target = ResourceName;

    fn deref(&self) -> &ResourceName {
        &self.0
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// A type that travels as a resource of a plan.
pub trait PlanResource: Serialize + DeserializeOwned {
    /// Kind of all resources of this type.
    const KIND: &'static str;

    /// What this resource is called.
    fn key(&self) -> ResourceKey;
}

/// The object that a resource was made from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// Identity of the object: another one of the same name has another.
    pub uid: String,
    /// Which version of its spec the resource was made from.
    pub generation: i64,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// Where the broker of a namespace is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionPlan {
    /// Namespace that the connection serves.
    pub namespace: String,
    /// Name of the broker.
    pub broker: String,
    /// UID of the broker.
    #[serde(default)]
    pub uid: String,
    /// Addresses (`host:port`) of the listener for roles with our certificates.
    pub mqtt_addresses: Vec<String>,
    /// Addresses (`host:port`) of the queue service.
    pub queue_addresses: Vec<String>,
    /// Name that the broker's certificate carries.
    pub server_name: String,
}

/// An endpoint that a connector dials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DevicePlan {
    /// The Device.
    pub object: ObjectRef,
    /// Name of the Connector that dials it.
    pub connector: String,
    /// Address, also of a simulator that the Device refers to.
    pub address: String,
    /// What the user wrote.
    pub spec: DeviceSpec,
}

/// What is observed and commanded at a device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssetPlan {
    /// The Asset.
    pub object: ObjectRef,
    /// Name of the Device, in the same namespace.
    pub device: String,
    /// What the user wrote.
    pub spec: AssetSpec,
}

impl AssetPlan {
    /// An action, by the names of its group and its own.
    #[must_use]
    pub fn action(&self, group: &str, action: &str) -> Option<&Action> {
        let mut groups = self.spec.action_groups.iter();
        let group = groups.find(|candidate| candidate.name.as_str() == group)?;
        let mut actions = group.actions.iter();
        actions.find(|candidate| candidate.name.as_str() == action)
    }
}

/// What a dataflow runner tells a cloud endpoint of an asset, so that it is known there and can be sent commands before
/// it has sent any data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssetSummaryPlan {
    /// The Asset.
    pub object: ObjectRef,
    /// Name of the broker that its commands go to, in the same namespace.
    pub broker: String,
    /// What the user wrote, but for what the asset measures, tells and shows: that is most of it, and comes with the data.
    pub spec: AssetSpec,
}

impl AssetSummaryPlan {
    /// Sums an asset up.
    #[must_use]
    pub fn new(object: ObjectRef, broker: impl Into<String>, spec: &AssetSpec) -> Self {
        let spec = AssetSpec {
            destination: None,
            datasets: Vec::new(),
            event_groups: Vec::new(),
            streams: Vec::new(),
            ..spec.clone()
        };
        Self {
            object,
            broker: broker.into(),
            spec,
        }
    }
}

/// Secret values that a role needs. Its `Debug` output does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretPlan {
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub name: String,
    /// Values by key.
    pub data: BTreeMap<String, SecretValue>,
}

impl fmt::Debug for SecretPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.data.keys().collect();
        formatter
            .debug_struct("SecretPlan")
            .field("namespace", &self.namespace)
            .field("name", &self.name)
            .field("keys", &keys)
            .finish()
    }
}

/// A secret value; travels as base64, and its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(pub Vec<u8>);

impl SecretValue {
    /// The value as text, if it is UTF-8; a trailing line feed, which editors like to add, is left out.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        let text = std::str::from_utf8(&self.0).ok()?;
        Some(text.strip_suffix('\n').unwrap_or(text))
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretValue({} bytes)", self.0.len())
    }
}

impl Serialize for SecretValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = String::deserialize(deserializer)?;
        let value = base64::engine::general_purpose::STANDARD
            .decode(text)
            .map_err(serde::de::Error::custom)?;
        Ok(Self(value))
    }
}

/// What a broker serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerPlan {
    /// The Broker.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: BrokerSpec,
}

/// Who may connect, publish and subscribe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerPolicyPlan {
    /// The `BrokerPolicy`.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: BrokerPolicySpec,
}

/// Who signs the tokens of the cluster's service accounts, as its API server publishes it: a broker verifies them without
/// a right in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountIssuerPlan {
    /// What the tokens have as `iss`.
    pub issuer: String,
    /// Its keys: a JSON Web Key Set (RFC 7517 section 5).
    pub keys: String,
}

impl PlanResource for ServiceAccountIssuerPlan {
    const KIND: &'static str = "ServiceAccountIssuer";

    /// A cluster has one.
    fn key(&self) -> ResourceKey {
        ResourceKey::new(Self::KIND, "", "cluster")
    }
}

/// What happens to a record that a full queue can't take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathOverflow {
    /// The publisher is refused (0x97) and holds its records back.
    #[default]
    Reject,
    /// The oldest records go.
    DropOldest,
    /// The new record goes.
    DropNew,
}

/// A durable queue that the broker keeps for one sink of a dataflow. Removing the resource releases the queue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathPlan {
    /// Namespace of the dataflow.
    pub namespace: String,
    /// Name in the ledger, such as `dataflow/bottling/telemetry->cloud`.
    pub path: String,
    /// What enters the queue.
    pub topics: Vec<TopicFilter>,
    /// Most bytes that wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Most seconds that a record waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_seconds: Option<u64>,
    /// What happens when the queue is full.
    pub overflow: PathOverflow,
    /// Name of the dataflow runner that may read the queue, in the same namespace.
    pub reader: String,
}

impl PathPlan {
    /// Names the path of one sink of a dataflow.
    #[must_use]
    pub fn name(namespace: &str, dataflow: &str, sink: &str) -> String {
        format!("dataflow/{namespace}/{dataflow}->{sink}")
    }
}

/// A dataflow that a runner carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DataflowPlan {
    /// The Dataflow.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: DataflowSpec,
    /// Path of each sink, by the sink's name.
    pub paths: BTreeMap<String, String>,
}

/// How a runner reaches a system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointPlan {
    /// The `DataflowEndpoint`.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: DataflowEndpointSpec,
}

/// A simulated asset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatorPlan {
    /// The Simulator.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: SimulatorSpec,
}

/// A cloud endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudPlan {
    /// The Cloud.
    pub object: ObjectRef,
    /// What the user wrote.
    pub spec: CloudSpec,
}

macro_rules! plan_resource {
    ($type:ty, $kind:literal, $this:ident => $namespace:expr, $name:expr) => {
        impl PlanResource for $type {
            const KIND: &'static str = $kind;

            fn key(&self) -> ResourceKey {
                let $this = self;
                ResourceKey::new(Self::KIND, $namespace.clone(), $name.clone())
            }
        }
    };
}

plan_resource!(ConnectionPlan, "Connection", plan => plan.namespace, plan.broker);
plan_resource!(DevicePlan, "Device", plan => plan.object.namespace, plan.object.name);
plan_resource!(AssetPlan, "Asset", plan => plan.object.namespace, plan.object.name);
plan_resource!(AssetSummaryPlan, "AssetSummary", plan => plan.object.namespace, plan.object.name);
plan_resource!(SecretPlan, "Secret", plan => plan.namespace, plan.name);
plan_resource!(BrokerPlan, "Broker", plan => plan.object.namespace, plan.object.name);
plan_resource!(BrokerPolicyPlan, "BrokerPolicy", plan => plan.object.namespace, plan.object.name);
plan_resource!(PathPlan, "Path", plan => plan.namespace, plan.path);
plan_resource!(DataflowPlan, "Dataflow", plan => plan.object.namespace, plan.object.name);
plan_resource!(EndpointPlan, "DataflowEndpoint", plan => plan.object.namespace, plan.object.name);
plan_resource!(SimulatorPlan, "Simulator", plan => plan.object.namespace, plan.object.name);
plan_resource!(TakePlan, "Take", plan => plan.namespace, plan.device);
plan_resource!(GivePlan, "Give", plan => plan.namespace, plan.device);
plan_resource!(PeersPlan, "Peers", plan => plan.namespace, plan.connector);
plan_resource!(CloudPlan, "Cloud", plan => plan.object.namespace, plan.object.name);
