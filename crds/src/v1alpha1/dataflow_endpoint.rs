//! `DataflowEndpoint`: how to reach a system that dataflows deliver to, or take from.

use std::{collections::BTreeMap, time::Duration as StdDuration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Anonymous, Authentication, Trust, UsernamePassword, X509};
use crate::{
    refs::{LocalRef, SecretKeyRef, SecretRef},
    rules,
    types::{ByteSize, Duration, Host, HostPort, ItemName, RelativePath, Text, Url, effective},
};

/// How to reach a system that dataflows deliver to, or take from. Exactly one member.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "DataflowEndpoint",
    plural = "dataflowendpoints",
    namespaced,
    validation = rules::object_name(),
    status = "DataflowEndpointStatus",
    derive = "PartialEq",
    shortname = "fsend",
    category = "foreshore",
    doc = "How to reach a system that dataflows deliver to, or take from. Exactly one member.",
    printcolumn(name = "Dataflows", type_ = "integer", json_path = ".status.dataflows")
)]
#[x_kube(validation = rules::exactly_one_of(&["cloud", "mqtt", "file", "kafka", "http", "postgresql", "objectStore"]))]
#[serde(rename_all = "camelCase")]
pub struct DataflowEndpointSpec {
    /// A cloud endpoint of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<CloudEndpoint>,
    /// Another MQTT broker, or our own under another topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttEndpoint>,
    /// Files on the role's own disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileEndpoint>,
    /// Kafka, or what speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<KafkaEndpoint>,
    /// HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpEndpoint>,
    /// PostgreSQL, or what speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgresqlEndpoint>,
    /// An object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStoreEndpoint>,
}

/// What an endpoint speaks; the names of the blocks that configure it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndpointType {
    /// Our cloud endpoint.
    Cloud,
    /// MQTT.
    Mqtt,
    /// Files.
    File,
    /// Kafka.
    Kafka,
    /// HTTP.
    Http,
    /// PostgreSQL.
    Postgresql,
    /// An object store.
    ObjectStore,
}

impl EndpointType {
    /// The name of its block.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Mqtt => "mqtt",
            Self::File => "file",
            Self::Kafka => "kafka",
            Self::Http => "http",
            Self::Postgresql => "postgresql",
            Self::ObjectStore => "objectStore",
        }
    }
}

impl DataflowEndpointSpec {
    /// What the endpoint speaks, told by the first block that is there; `None` in a manifest that was never judged.
    #[must_use]
    pub fn endpoint_type(&self) -> Option<EndpointType> {
        let Self {
            cloud,
            mqtt,
            file,
            kafka,
            http,
            postgresql,
            object_store,
        } = self;
        [
            (cloud.is_some(), EndpointType::Cloud),
            (mqtt.is_some(), EndpointType::Mqtt),
            (file.is_some(), EndpointType::File),
            (kafka.is_some(), EndpointType::Kafka),
            (http.is_some(), EndpointType::Http),
            (postgresql.is_some(), EndpointType::Postgresql),
            (object_store.is_some(), EndpointType::ObjectStore),
        ]
        .into_iter()
        .find_map(|(present, kind)| present.then_some(kind))
    }
}

/// How messages are made smaller on the way.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    #[default]
    Zstd,
}

/// A cloud endpoint of ours. Exactly one of `address` and `cloudRef`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["address", "cloudRef"]), validation = rules::only_where("caSecretRef", "has(self.address)", "with address; a Cloud brings its own"))]
#[serde(rename_all = "camelCase")]
pub struct CloudEndpoint {
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<HostPort>,
    /// A Cloud of this namespace, instead of an address: its port and authority are taken from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_ref: Option<LocalRef>,
    /// Name that its certificate must have; the address's host where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<Host>,
    /// Name under which this edge is known there; the namespace where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_id: Option<ItemName>,
    /// Secret with the token that admits this edge once; key `token` where it is left out. Afterwards its certificate
    /// does.
    pub join_token_secret_ref: SecretKeyRef,
    /// Secret with the authorities that its certificate comes from; key `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretRef>,
    /// How batches are made smaller; Zstd where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Silence after which the link counts as broken; 20s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "10m"))]
    pub keep_alive: Option<Duration>,
}

effective!(CloudEndpoint {
    /// How batches are made smaller:
    effective_compression: compression -> Compression = Compression::Zstd;
    /// Silence after which the link counts as broken:
    effective_keep_alive: keep_alive -> StdDuration = StdDuration::from_secs(20);
});

/// Key of the join token in its Secret.
pub const JOIN_TOKEN_KEY: &str = "token";

/// Version of MQTT.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MqttVersion {
    /// 3.1.1: no user properties.
    V311,
    /// 5.
    #[default]
    V5,
}

/// A broker. Exactly one of `address` and `brokerRef`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["address", "brokerRef"]), validation = rules::only_where("authentication", "has(self.address)", "with address; our own broker knows its roles"), validation = rules::only_where("trust", "has(self.address)", "with address; our own broker is trusted"))]
#[serde(rename_all = "camelCase")]
pub struct MqttEndpoint {
    /// Where it answers: `mqtt://host:1883`, `mqtts://host:8883`, `ws://…`, `wss://…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::scheme(&["mqtt", "mqtts", "ws", "wss"]))]
    pub address: Option<Url>,
    /// A Broker of this namespace, instead of an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<LocalRef>,
    /// How we prove who we are; anonymous where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Which certificates are believed; the system's authorities where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Version; where it is left out V5, and V311 with a server that refuses that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<MqttVersion>,
    /// First part of client identifiers; `foreshore` where it is left out. Sites that share a broker need one each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id_prefix: Option<ItemName>,
    /// Keep-alive; 30s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "18h"))]
    pub keep_alive: Option<Duration>,
    /// Publishes that wait for their acknowledgement, in each direction; 256 where it is left out, never more than the broker allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub max_inflight: Option<u32>,
    /// How long the broker shall keep what waits for a dataflow that it is the source of, after a connection ended; 168h
    /// where it is left out. With V311 it alone decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub session_expiry: Option<Duration>,
}

effective!(MqttEndpoint {
    /// How long the broker shall keep what waits:
    effective_session_expiry: session_expiry -> StdDuration = StdDuration::from_secs(168 * 3600);
    /// Keep-alive:
    effective_keep_alive: keep_alive -> StdDuration = StdDuration::from_secs(30);
    /// Publishes that wait for their acknowledgement:
    effective_max_inflight: max_inflight -> u32 = 256;
});

/// Files on the role's own disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FileEndpoint {
    /// Folder below the data directory or volume.
    pub path: RelativePath,
    /// Format; JsonLines where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// When a new file begins, and how many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Compresses files that are complete; None where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

effective!(FileEndpoint {
    /// Format:
    effective_format: format -> FileFormat = FileFormat::JsonLines;
    /// How complete files are compressed:
    effective_compression: compression -> Compression = Compression::None;
});

/// Format of files.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileFormat {
    /// A JSON value on each line.
    #[default]
    JsonLines,
}

/// When a new file begins, and how many are kept.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// Bytes of a file; 64Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("4Ki"))]
    pub max_bytes: Option<ByteSize>,
    /// Age of a file; 24h where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "99999h"))]
    pub max_age: Option<Duration>,
    /// Complete files to keep; the oldest goes first. 32 where it is left out, 0 keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_files: Option<u32>,
}

effective!(Rotation {
    /// Bytes of a file:
    effective_max_bytes: max_bytes -> u64 = 64 << 20;
    /// Age of a file:
    effective_max_age: max_age -> StdDuration = StdDuration::from_secs(24 * 3600);
    /// Complete files to keep, 0 for all:
    effective_max_files: max_files -> u32 = 32;
});

/// Kafka, or what speaks its protocol.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("!has(self.authentication) || !has(self.authentication.x509) || has(self.tls)", "authentication.x509 without tls", "it with tls only").field_path(".authentication"))]
#[serde(rename_all = "camelCase")]
pub struct KafkaEndpoint {
    /// Servers to begin with.
    #[schemars(length(min = 1, max = 16))]
    pub bootstrap_servers: Vec<HostPort>,
    /// Encrypts and tells which certificates are believed; not encrypted where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Trust>,
    /// How we prove who we are; anonymous where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<KafkaAuthentication>,
    /// Which acknowledgement settles a message; All where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acks: Option<KafkaAcks>,
    /// How batches are made smaller; Zstd where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

effective!(KafkaEndpoint {
    /// Which acknowledgement settles a message:
    effective_acks: acks -> KafkaAcks = KafkaAcks::All;
    /// How batches are made smaller:
    effective_compression: compression -> Compression = Compression::Zstd;
});

/// Which acknowledgement settles a message.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KafkaAcks {
    /// That of all in-sync replicas.
    #[default]
    All,
    /// That of the leader, which may still lose it.
    Leader,
}

/// How we prove who we are to Kafka. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["anonymous", "plain", "scramSha256", "scramSha512", "x509"]))]
#[serde(rename_all = "camelCase")]
pub struct KafkaAuthentication {
    /// Not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,
    /// SASL PLAIN; needs `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<UsernamePassword>,
    /// SASL SCRAM-SHA-256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram_sha256: Option<UsernamePassword>,
    /// SASL SCRAM-SHA-512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram_sha512: Option<UsernamePassword>,
    /// A certificate; needs `tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<X509>,
}

/// HTTP.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("!has(self.authentication) || !has(self.authentication.x509) || self.address.startsWith('https://')", "authentication.x509 without encryption", "it with https only").field_path(".authentication"))]
#[serde(rename_all = "camelCase")]
pub struct HttpEndpoint {
    /// Where it answers: `https://host/path`.
    #[x_kube(validation = rules::scheme(&["http", "https"]))]
    pub address: Url,
    /// How we prove who we are; anonymous where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<HttpAuthentication>,
    /// Which certificates are believed; the system's authorities where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Headers to send.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub headers: BTreeMap<String, Text>,
    /// How bodies are made smaller; None where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

effective!(HttpEndpoint {
    /// How bodies are made smaller:
    effective_compression: compression -> Compression = Compression::None;
});

/// How we prove who we are over HTTP. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["anonymous", "basic", "bearer", "x509"]))]
#[serde(rename_all = "camelCase")]
pub struct HttpAuthentication {
    /// Not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<Anonymous>,
    /// HTTP Basic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<UsernamePassword>,
    /// A bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<BearerToken>,
    /// A certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x509: Option<X509>,
}

/// A bearer token (RFC 6750).
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BearerToken {
    /// Secret with the token; key `token` where it is left out.
    pub secret_ref: SecretKeyRef,
}

/// PostgreSQL, or what speaks its protocol.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlEndpoint {
    /// Where it answers.
    pub address: HostPort,
    /// Database.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// User name and password.
    pub authentication: UsernamePassword,
    /// Encrypts and tells which certificates are believed; not encrypted where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Trust>,
    /// Connections at once; 2 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_connections: Option<u32>,
}

effective!(PostgresqlEndpoint {
    /// Connections at once:
    effective_max_connections: max_connections -> u32 = 2;
});

/// An object store. Exactly one of `s3`, `azure` and `gcs`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["s3", "azure", "gcs"]))]
#[serde(rename_all = "camelCase")]
pub struct ObjectStoreEndpoint {
    /// Amazon S3, or what speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Store>,
    /// Azure Blob Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureStore>,
    /// Google Cloud Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gcs: Option<GcsStore>,
    /// Folder inside the bucket or container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<RelativePath>,
    /// Bytes of an object; 64Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Ki"))]
    pub max_object_bytes: Option<ByteSize>,
    /// Age of an object before it is sent; 5m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "24h"))]
    pub max_object_age: Option<Duration>,
}

effective!(ObjectStoreEndpoint {
    /// Bytes of an object:
    effective_max_object_bytes: max_object_bytes -> u64 = 64 << 20;
    /// Age of an object before it is sent:
    effective_max_object_age: max_object_age -> StdDuration = StdDuration::from_secs(300);
});

/// Amazon S3, or what speaks its protocol.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct S3Store {
    /// Bucket.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// Region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Text>,
    /// Where it answers; Amazon's own where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Url>,
    /// Secret with keys `accessKeyId` and `secretAccessKey`; the pod's own identity where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// Azure Blob Storage.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AzureStore {
    /// Storage account.
    #[schemars(length(min = 3, max = 24))]
    pub account: String,
    /// Container.
    #[schemars(length(min = 3, max = 63))]
    pub container: String,
    /// Secret with key `accessKey` or `sasToken`; the pod's own identity where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// Google Cloud Storage.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GcsStore {
    /// Bucket.
    #[schemars(length(min = 3, max = 222))]
    pub bucket: String,
    /// Secret with key `serviceAccount.json`; the pod's own identity where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// What is known about an endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DataflowEndpointStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Number of dataflows that deliver to it or take from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataflows: Option<i32>,
}
