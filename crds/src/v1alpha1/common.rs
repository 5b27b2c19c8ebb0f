//! Parts that several kinds share.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::{
    refs::{CredentialsSecretRef, SecretRef},
    rules,
    types::{Duration, Image, ResourceQuantity, SecretName, Text, TopicTemplate, effective},
};

/// A southbound protocol; the names of the blocks that configure it.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// OPC UA, client over opc.tcp.
    #[default]
    Opcua,
    /// ONVIF cameras.
    Onvif,
    /// A protocol that a connector of your own speaks.
    Custom,
}

impl Protocol {
    /// The name used in manifests and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opcua => "opcua",
            Self::Onvif => "onvif",
            Self::Custom => "custom",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much a role logs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what looks wrong.
    Warn,
    /// And what changes.
    #[default]
    Info,
    /// And how it came to that.
    Debug,
    /// And every message.
    Trace,
}

/// MQTT quality of service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum QoS {
    /// At most once: fire and forget, in no ledger.
    AtMostOnce,
    /// At least once.
    #[default]
    AtLeastOnce,
    /// Exactly once.
    ExactlyOnce,
}

impl From<QoS> for u8 {
    fn from(qos: QoS) -> Self {
        match qos {
            QoS::AtMostOnce => 0,
            QoS::AtLeastOnce => 1,
            QoS::ExactlyOnce => 2,
        }
    }
}

/// Where messages go in the broker. What is left out is taken from the next outer destination, and at last
/// from the defaults.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Topic, with placeholders: `{namespace}`, `{asset}`, `{device}`, `{dataset}` (in datasets), `{group}` and
    /// `{event}` (in events), `{stream}` (in streams), `{attributes.NAME}`. Defaults:
    /// `foreshore/data/{namespace}/{asset}/{dataset}`, `foreshore/events/{namespace}/{asset}/{group}/{event}`,
    /// `foreshore/streams/{namespace}/{asset}/{stream}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<TopicTemplate>,
    /// Quality of service; AtLeastOnce where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<QoS>,
    /// Whether the broker keeps the last message for later subscribers; false where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain: Option<bool>,
    /// Age at which an undelivered message expires; never where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry: Option<Duration>,
}

effective!(Destination {
    /// Quality of service:
    effective_qos: qos -> QoS = QoS::AtLeastOnce;
    /// Whether the broker keeps the last message:
    effective_retain: retain -> bool = false;
});

impl Destination {
    /// This destination, with what it leaves out taken from an outer one.
    #[must_use]
    pub fn or(&self, outer: Option<&Self>) -> Self {
        let outer = outer.cloned().unwrap_or_default();
        Self {
            topic: self.topic.clone().or(outer.topic),
            qos: self.qos.or(outer.qos),
            retain: self.retain.or(outer.retain),
            expiry: self.expiry.or(outer.expiry),
        }
    }
}

/// Nobody has to prove who they are.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Anonymous {}

/// A user name and a password.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UsernamePassword {
    /// Secret with the user name and the password.
    pub secret_ref: CredentialsSecretRef,
}

/// A certificate and its key.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct X509 {
    /// Secret of type `kubernetes.io/tls`: keys `tls.crt` and `tls.key`.
    pub secret_ref: SecretRef,
}

/// How we prove who we are to the other side. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = rules::exactly_one_of(&["anonymous", "usernamePassword", "x509"]))]
#[serde(rename_all = "camelCase")]
pub struct Authentication {
    /// Not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,
    /// With a user name and a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_password: Option<UsernamePassword>,
    /// With a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<X509>,
}

/// Which certificates of the other side are believed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Trust {
    /// Secret with certificates to trust: every key that ends in `.crt` or `.pem` holds one or more certificates
    /// (authorities, or the very certificates of servers), every key that ends in `.crl` a revocation list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates_secret_ref: Option<SecretRef>,
    /// Takes any certificate, and says so in the status. For commissioning, not for production.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_untrusted: Option<bool>,
    /// Takes certificates for another host name than the one that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept_other_host_names: Option<bool>,
}

effective!(Trust {
    /// Whether any certificate is taken:
    effective_accept_untrusted: accept_untrusted -> bool = false;
    /// Whether the host name of a certificate may differ:
    effective_accept_other_host_names: accept_other_host_names -> bool = false;
});

/// Waiting between tries: doubled each time, with jitter.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::not_longer("initial", "500ms", "maximum", "30s"))]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// First wait; 500ms where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10ms", "1h"))]
    pub initial: Option<Duration>,
    /// Longest wait; 30s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10ms", "24h"))]
    pub maximum: Option<Duration>,
}

effective!(Backoff {
    /// First wait:
    effective_initial: initial -> std::time::Duration = std::time::Duration::from_millis(500);
    /// Longest wait:
    effective_maximum: maximum -> std::time::Duration = std::time::Duration::from_secs(30);
});

/// Computing resources of a pod, as Kubernetes counts them. Without pods: `UnsupportedHere`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceList>,
    /// What the pod may use at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceList>,
}

/// An amount of computing resources.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ResourceList {
    /// Processor time, in cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<ResourceQuantity>,
    /// Memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ResourceQuantity>,
    /// Local scratch space, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<ResourceQuantity>,
}

/// When a node already has an image.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// Asks the registry each time.
    Always,
    /// Pulls only what is missing.
    IfNotPresent,
    /// Never pulls.
    Never,
}

/// Where and how pods run. Without pods: `UnsupportedHere`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Image instead of the operator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// When a node already has the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Secrets for the registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub image_pull_secrets: Vec<SecretRef>,
    /// Computing resources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, Text>,
    /// Taints that the pods bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<SecretName>,
    /// Labels to add to pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, Text>,
    /// Annotations to add to pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, Text>,
}

/// A taint that a pod bears.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("value", "!has(self.operator) || self.operator == 'Equal'", "with the operator Equal"))]
#[serde(rename_all = "camelCase")]
pub struct Toleration {
    /// Key of the taint; all keys where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Text>,
    /// `Exists`, or `Equal` to `value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Value of the taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Text>,
    /// Effect of the taint; all effects where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
    /// Seconds before a pod is evicted by a `NoExecute` taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 31_536_000))]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TolerationOperator {
    /// The key exists.
    Exists,
    /// The key has the value.
    Equal,
}

/// What a taint does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaintEffect {
    /// No new pods.
    NoSchedule,
    /// New pods only when nothing else is left.
    PreferNoSchedule,
    /// No pods at all.
    NoExecute,
}

/// A volume for what a role keeps.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    /// Size of the volume claim in a cluster; 8Gi where it is left out. Locally the data directory is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<crate::types::ByteSize>,
    /// Storage class of the volume claim; the cluster's default where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<SecretName>,
}

effective!(Volume {
    /// Size of the volume claim in bytes:
    effective_size: size -> u64 = 8 << 30;
});

/// Settings of a protocol that this API does not know; its connector declares and checks them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Custom {
    /// Free settings, checked against the schema that the Connector declares.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(schema_with = "free_object")]
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// An object of any members: pruning stops here.
pub(crate) fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true, "maxProperties": 256 })
}
