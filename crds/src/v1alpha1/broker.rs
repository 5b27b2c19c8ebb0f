//! `Broker`: an MQTT broker.

use std::{collections::BTreeMap, time::Duration as StdDuration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Anonymous, LogLevel, Pod, Volume};
use crate::{
    refs::{LocalRef, SecretRef},
    rules,
    types::{ByteSize, Duration, Host, ItemName, SecretName, Text, TopicFilter, Url, effective},
};

mod limits;
pub use limits::{BrokerLimits, OverflowPolicy, TopicFilterLimit};

/// An MQTT broker, 3.1.1 and 5 on the same port. Everything may change while it runs.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Broker",
    plural = "brokers",
    namespaced,
    validation = rules::object_name(),
    status = "BrokerStatus",
    derive = "PartialEq",
    shortname = "fsbroker",
    category = "foreshore",
    doc = "An MQTT broker, 3.1.1 and 5 on the same port. Everything may change while it runs.",
    printcolumn(name = "Listeners", type_ = "integer", json_path = ".status.listenerCount")
)]
#[x_kube(validation = rules::plain("!has(self.listeners) || self.listeners.all(a, self.listeners.exists_one(b, b.port == a.port))", "one port in two listeners", "each port once").field_path(".listeners"), validation = rules::plain("!has(self.replicas) || self.replicas == 1 || (has(self.storage) && has(self.storage.backend) && self.storage.backend == 'JetStream')", "several replicas without replication", "more than 1 with storage.backend JetStream only").field_path(".replicas"))]
#[serde(rename_all = "camelCase")]
pub struct BrokerSpec {
    /// How many pods carry it; 1 where it is left out. More than one needs `storage.backend: JetStream`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas: Option<u32>,
    /// Where clients of others connect. Our own roles have a listener of their own besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub listeners: Vec<Listener>,
    /// Where messages are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<BrokerStorage>,
    /// What it takes on at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<BrokerLimits>,
    /// How often figures are published under `$SYS`; never where it is left out or 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "1h"))]
    pub sys_interval: Option<Duration>,
    /// What is counted apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<BrokerMetrics>,
    /// The broker's own look at each of its listeners, by connecting and publishing as a client does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<BrokerProbe>,
    /// The audit log: who connected, who was refused, what policies denied and what was changed; none where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<BrokerAudit>,
    /// What a client learns when a policy refuses it something; Explained where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusals: Option<Refusals>,
    /// Another server to which all clients but our own roles are sent; to be set before this broker goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// How much it logs; Info where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// Where and how its pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// What is counted apart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerMetrics {
    /// Topic filters whose messages are counted apart: each message for the first that matches its topic, and for
    /// `other` where none does. Nothing is counted by topic where the list is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub topic_filters: Vec<TopicFilter>,
}

/// The broker's own look at each of its listeners.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerProbe {
    /// Time between two looks; 30s where it is left out, never with 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "1h"))]
    pub interval: Option<Duration>,
    /// Longest time that a look at one listener may take; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "1m"))]
    pub timeout: Option<Duration>,
}

effective!(BrokerProbe {
    /// Time between two looks:
    effective_interval: interval -> StdDuration = StdDuration::from_secs(30);
    /// Longest time that a look at one listener may take:
    effective_timeout: timeout -> StdDuration = StdDuration::from_secs(10);
});

effective!(BrokerSpec {
    /// How many pods carry it:
    effective_replicas: replicas -> u32 = 1;
    /// What a client learns when a policy refuses it something:
    effective_refusals: refusals -> Refusals = Refusals::Explained;
    /// How much it logs:
    effective_log_level: log_level -> LogLevel = LogLevel::Info;
});

/// The audit log: one JSON object a line.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("maxFileBytes", "(!has(self.destination) || self.destination == 'File')", "with the destination File"))]
#[serde(rename_all = "camelCase")]
pub struct BrokerAudit {
    /// Where its lines go; File where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<AuditDestination>,
    /// Size beyond which the file is set aside as `audit.jsonl.1`, in the place of the one before; 64Mi where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_file_bytes: Option<ByteSize>,
}

effective!(BrokerAudit {
    /// Where its lines go:
    effective_destination: destination -> AuditDestination = AuditDestination::File;
    /// Size in bytes beyond which the file is set aside:
    effective_max_file_bytes: max_file_bytes -> u64 = 64 << 20;
});

/// Where the lines of an audit log go.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuditDestination {
    /// The file `audit.jsonl` on the broker's volume, or in its folder locally.
    #[default]
    File,
    /// Standard output of the broker's container, beside its log on standard error; in a cluster only.
    Stdout,
}

/// What a client learns when a policy refuses it something.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refusals {
    /// That it is not authorized (0x87).
    #[default]
    Explained,
    /// Only that it failed (0x80): whoever tries topics out does not learn which of them are guarded.
    Concealed,
}

/// Another server for clients (MQTT 5.0 section 4.11). Those that are connected are told and disconnected, those that
/// connect are told and refused; clients below version 5 can't be told where to go.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    /// The server, as the specification recommends to write it: `HOST` or `HOST:PORT`, several separated by blanks.
    #[x_kube(validation = rules::plain("self != ''", "no server", "HOST or HOST:PORT, several separated by blanks"))]
    pub server_reference: Text,
    /// Whether the move is for good (0x9d, server moved) and not for now (0x9c, use another server); false where it is
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permanent: Option<bool>,
}

effective!(Redirect {
    /// Whether the move is for good:
    effective_permanent: permanent -> bool = false;
});

/// What a listener speaks below MQTT.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// TCP without encryption.
    Tcp,
    /// TLS.
    #[default]
    Tls,
    /// WebSocket without encryption.
    WebSocket,
    /// WebSocket over TLS.
    WebSocketTls,
}

impl ListenerProtocol {
    /// Whether it is encrypted.
    #[must_use]
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::WebSocketTls)
    }

    /// Whether it is a WebSocket.
    #[must_use]
    pub const fn is_web_socket(self) -> bool {
        matches!(self, Self::WebSocket | Self::WebSocketTls)
    }
}

/// Where clients connect.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("tls", "self.protocol in ['Tls', 'WebSocketTls']", "with the protocols Tls and WebSocketTls"), validation = rules::only_where("path", "self.protocol in ['WebSocket', 'WebSocketTls']", "with the protocols WebSocket and WebSocketTls"), validation = rules::plain("self.authentication.all(a, !has(a.x509)) || self.protocol in ['Tls', 'WebSocketTls']", "x509 without encryption", "x509 with the protocols Tls and WebSocketTls only").field_path(".authentication"), validation = rules::anonymous_last())]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name, unique in the broker.
    pub name: ItemName,
    /// Port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// Address to bind; where it is left out, all addresses in a pod and 127.0.0.1 locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<Host>,
    /// What it speaks below MQTT.
    pub protocol: ListenerProtocol,
    /// Path of a WebSocket; `/mqtt` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::rule("self.startsWith('/')", "self", "a path that begins with /"))]
    pub path: Option<Text>,
    /// Ways to prove who a client is, tried in this order; the first that knows the client decides.
    #[schemars(length(min = 1, max = 8))]
    pub authentication: Vec<ListenerAuthentication>,
    /// How it encrypts; with an encrypted protocol only. Where it is left out there, our own authority issues the
    /// certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Connections at once; the broker's limit where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_connections: Option<u32>,
    /// How the listener is reached from outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ListenerService>,
}

impl Listener {
    /// Path of a WebSocket where none is named.
    pub const DEFAULT_PATH: &str = "/mqtt";

    /// Path of a WebSocket: what the manifest says, or [`Self::DEFAULT_PATH`].
    #[must_use]
    pub fn effective_path(&self) -> &str {
        self.path.as_deref().unwrap_or(Self::DEFAULT_PATH)
    }
}

/// One way to prove who a client is. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["anonymous", "usernamePassword", "x509", "serviceAccount", "jwt", "webhook"]))]
#[serde(rename_all = "camelCase")]
pub struct ListenerAuthentication {
    /// Lets in whoever comes. Only as the last way; beyond loopback it must be meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,
    /// User names and passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_password: Option<PasswordAuthentication>,
    /// Certificates of clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<CertificateAuthentication>,
    /// Tokens of Kubernetes service accounts, as the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<ServiceAccountAuthentication>,
    /// JSON Web Tokens, as the password or by enhanced authentication of MQTT 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtAuthentication>,
    /// A service of your own that is asked over HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookAuthentication>,
}

/// User names and passwords.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PasswordAuthentication {
    /// Secret whose keys are user names; each value is the password, its hash (`$argon2id$…`) or its SCRAM-SHA-256 record,
    /// as PostgreSQL keeps it.
    pub secret_ref: SecretRef,
    /// Groups of users, by name of the group, for BrokerPolicies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub groups: Vec<UserGroup>,
}

/// Users that a BrokerPolicy may name together.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct UserGroup {
    /// Name of the group.
    pub name: ItemName,
    /// Names of users.
    #[schemars(length(min = 1, max = 256))]
    pub users: Vec<Text>,
}

/// What becomes the user name of a client that shows a certificate.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CertificateUserName {
    /// The subject's common name.
    #[default]
    CommonName,
    /// The whole subject, as RFC 4514 writes it.
    Subject,
    /// The first DNS name.
    DnsName,
    /// The first URI.
    Uri,
}

/// Certificates of clients.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CertificateAuthentication {
    /// Secret with the authorities whose clients are believed, key `ca.crt`, and the certificates that they have revoked,
    /// key `ca.crl` (PEM, lists of any of them; may be left out). Clients that are revoked later are disconnected.
    pub ca_secret_ref: SecretRef,
    /// What becomes the user name; CommonName where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_from: Option<CertificateUserName>,
}

effective!(CertificateAuthentication {
    /// What becomes the user name:
    effective_username_from: username_from -> CertificateUserName = CertificateUserName::CommonName;
});

/// Tokens of Kubernetes service accounts. The user name becomes `system:serviceaccount:NAMESPACE:NAME`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountAuthentication {
    /// Audiences that a token may have; at least one must match.
    #[schemars(length(min = 1, max = 8))]
    pub audiences: Vec<Text>,
}

/// JSON Web Tokens (RFC 7519).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JwtAuthentication {
    /// Issuer that tokens must name.
    #[x_kube(validation = rules::scheme(&["https"]))]
    pub issuer: Url,
    /// Where the issuer publishes its keys; found through the issuer where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::scheme(&["https"]))]
    pub jwks_uri: Option<Url>,
    /// Audiences that a token may have; at least one must match.
    #[schemars(length(min = 1, max = 8))]
    pub audiences: Vec<Text>,
    /// Claim that becomes the user name; `sub` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_claim: Option<Text>,
    /// Claim that holds the groups; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups_claim: Option<Text>,
    /// Secret with authorities for the issuer's own certificate; key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
}

/// A service that is asked over HTTPS.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WebhookAuthentication {
    /// Where it answers; `https` only.
    #[x_kube(validation = rules::scheme(&["https"]))]
    pub url: Url,
    /// Secret with authorities for its certificate; key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// Secret of type `kubernetes.io/tls` that we show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretRef>,
    /// Longest wait for an answer; 5s where it is left out. Then the next way is tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "30s"))]
    pub timeout: Option<Duration>,
}

effective!(WebhookAuthentication {
    /// Longest wait for an answer:
    effective_timeout: timeout -> StdDuration = StdDuration::from_secs(5);
});

/// How a listener encrypts.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ListenerTls {
    /// Secret of type `kubernetes.io/tls` with the certificate; where it is left out, our own authority issues one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// Host names and addresses of a certificate that our own authority issues, besides those of the listener.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub host_names: Vec<Host>,
    /// Oldest version; Tls12 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<TlsVersion>,
}

effective!(ListenerTls {
    /// Oldest version:
    effective_min_version: min_version -> TlsVersion = TlsVersion::Tls12;
});

/// A version of TLS.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// How a listener is reached from outside the cluster. Without pods: `UnsupportedHere`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("nodePort", "(has(self.type) && self.type in ['NodePort', 'LoadBalancer'])", "with the types NodePort and LoadBalancer"), validation = rules::only_where("loadBalancerClass", "(has(self.type) && self.type == 'LoadBalancer')", "with the type LoadBalancer"))]
#[serde(rename_all = "camelCase")]
pub struct ListenerService {
    /// Type of the Service; ClusterIP where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub type_: Option<ServiceType>,
    /// Port on every node; with NodePort and LoadBalancer only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub node_port: Option<u16>,
    /// Class of the load balancer; with LoadBalancer only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer_class: Option<Text>,
    /// Annotations of the Service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, Text>,
}

/// Type of a Service.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// Inside the cluster only.
    #[default]
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// On a port of every node.
    NodePort,
    /// Behind a load balancer.
    LoadBalancer,
}

/// What keeps messages.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageBackend {
    /// Memory: gone with the process, and acknowledgements mean no more than that.
    Memory,
    /// fjall, embedded, on the role's disk.
    #[default]
    Fjall,
    /// NATS JetStream replicates between pods, each with its fjall.
    JetStream,
}

/// Where messages are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("(has(self.backend) && self.backend == 'JetStream') == has(self.jetStream)", "only one of backend JetStream and the block jetStream", "both or neither"), validation = rules::plain("!has(self.encryption) || !has(self.backend) || self.backend == 'Fjall'", "encryption of a store that is no directory", "encryption with backend Fjall only"))]
#[serde(rename_all = "camelCase")]
pub struct BrokerStorage {
    /// What keeps them; Fjall where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<StorageBackend>,
    /// Volume for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// Bytes of undelivered messages in all queues; 80% of the volume where it is left out, without bound locally
    /// but for `minFreeBytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Mi"))]
    pub max_bytes: Option<ByteSize>,
    /// Age at which an undelivered message is dropped, as `dropped{expired}`; 72h where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_age: Option<Duration>,
    /// Free space below which publishes are refused while deliveries go on; 256Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_free_bytes: Option<ByteSize>,
    /// Memory for caches; 16Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Mi"))]
    pub cache_bytes: Option<ByteSize>,
    /// What the volume is encrypted with; not at all where it is left out. It can be turned on later and can't be turned
    /// off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// How commits are gathered. An acknowledgement always waits for the commit of what it acknowledges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<Sync>,
    /// The JetStream cluster; with `backend: JetStream` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jet_stream: Option<JetStream>,
}

effective!(BrokerStorage {
    /// What keeps messages:
    effective_backend: backend -> StorageBackend = StorageBackend::Fjall;
    /// Age at which an undelivered message is dropped:
    effective_max_age: max_age -> StdDuration = StdDuration::from_secs(72 * 3600);
    /// Free space below which publishes are refused, in bytes:
    effective_min_free_bytes: min_free_bytes -> u64 = 256 << 20;
    /// Memory for caches in bytes:
    effective_cache_bytes: cache_bytes -> u64 = 16 << 20;
});

/// What a store is encrypted with.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// Secret with one key or more, each of 32 bytes, and under `active` the name of the one that is in use; `active` may
    /// be left out where there is only one. It is mounted into the pod and taken up while the broker runs. Whoever loses
    /// the key loses the store.
    pub secret_ref: SecretRef,
    /// Whether a store that is there already and not encrypted is taken up and encrypted; false where it is left out: it is
    /// refused then, since somebody may have put it in the place of the encrypted one. Leave it out again when all is
    /// encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypt_existing: Option<bool>,
}

/// How commits are gathered.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Sync {
    /// Waits so long for company before a commit; 0s where it is left out: what arrives during one commit makes up
    /// the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "1s"))]
    pub max_delay: Option<Duration>,
    /// Bytes in one commit; 4Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_bytes: Option<ByteSize>,
}

effective!(Sync {
    /// Wait for company:
    effective_max_delay: max_delay -> StdDuration = StdDuration::ZERO;
    /// Bytes in one commit:
    effective_max_bytes: max_bytes -> u64 = 4 << 20;
});

/// A NATS JetStream cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("!has(oldSelf.partitions) || (has(self.partitions) && self.partitions >= oldSelf.partitions)", "fewer partitions than before", "as many or more"))]
#[serde(rename_all = "camelCase")]
pub struct JetStream {
    /// Servers: `tls://nats-0:4222`.
    #[schemars(length(min = 1, max = 9))]
    #[x_kube(validation = rules::nats_schemes())]
    pub servers: Vec<Url>,
    /// Secret with a NATS credentials file; key `nats.creds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
    /// Secret with authorities for the servers' certificates; key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// Prefix of stream names; the broker's namespace and name where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_prefix: Option<ItemName>,
    /// Partitions, each a stream of three replicas; 8 where it is left out. It can't shrink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub partitions: Option<u32>,
}

effective!(JetStream {
    /// Partitions:
    effective_partitions: partitions -> u32 = 8;
});

/// Where a listener answers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// Name of the listener.
    pub name: ItemName,
    /// URL for clients.
    pub url: Url,
}

/// What is known about a broker.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Pods or tasks that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Number of listeners that are open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_count: Option<i32>,
    /// Where listeners answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub listeners: Vec<ListenerStatus>,
    /// Node that the broker waits for, with `WaitingForNode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<SecretName>,
    /// BrokerPolicies in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub policies: Vec<LocalRef>,
}
