//! `Cloud`: the cloud endpoint, the far end of every edge's link.

use std::time::Duration as StdDuration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::common::{LogLevel, Pod, Volume};
use crate::{
    refs::{SecretKeyRef, SecretRef},
    rules,
    types::{ByteSize, Duration, Host, HostPort, Url, effective},
};

/// The cloud endpoint: it takes what edges deliver, keeps their registry and history, and sends commands down.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Cloud",
    plural = "clouds",
    namespaced,
    validation = rules::object_name(),
    status = "CloudStatus",
    derive = "PartialEq",
    shortname = "fscloud",
    category = "foreshore",
    doc = "The cloud endpoint: it takes what edges deliver, keeps their registry and history, and sends commands down.",
    printcolumn(name = "Edges", type_ = "integer", json_path = ".status.edges")
)]
#[x_kube(validation = rules::plain("self.edgeLink.port == 0 || self.edgeLink.port != self.http.port", "one port for edgeLink and http", "two").field_path(".http.port"))]
#[serde(rename_all = "camelCase")]
pub struct CloudSpec {
    /// Where edges connect.
    pub edge_link: EdgeLink,
    /// Where the JSON API answers.
    pub http: CloudHttp,
    /// Secret whose every value is a token that admits one edge, under the name that is its key.
    pub join_tokens_secret_ref: SecretRef,
    /// Secret with the tokens of the JSON API: of its key, or of every key where it is left out. A key's name is who
    /// holds the token, in the audit.
    pub api_token_secret_ref: SecretKeyRef,
    /// What edges show after they were admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<EdgeCertificates>,
    /// Volume for registry and history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,
    /// How much history is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// Commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commands: Option<Commands>,
    /// How much it logs; Info where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// Where and how its pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

effective!(CloudSpec {
    /// How much it logs:
    effective_log_level: log_level -> LogLevel = LogLevel::Info;
});

/// Where edges connect.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EdgeLink {
    /// Port; a free one, shown in the status, with 0.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: u16,
    /// Address to bind; where it is left out, all addresses in a pod and 127.0.0.1 locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<Host>,
    /// Secret of type `kubernetes.io/tls` with the certificate; where it is left out, its own authority issues one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<SecretRef>,
    /// Host names and addresses of a certificate that its own authority issues, besides where it listens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub host_names: Vec<Host>,
}

/// Where the JSON API answers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("bindAddress", "(has(self.tlsSecretRef) || self.bindAddress in ['127.0.0.1', '::1', 'localhost'])", "on loopback without tlsSecretRef"))]
#[serde(rename_all = "camelCase")]
pub struct CloudHttp {
    /// Port; a free one, shown in the status, with 0.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: u16,
    /// Address to bind; where it is left out, all addresses in a pod and 127.0.0.1 locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<Host>,
    /// Secret of type `kubernetes.io/tls` with the certificate; where it is left out, it is not encrypted and binds
    /// to loopback only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_secret_ref: Option<SecretRef>,
}

/// What edges show after they were admitted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EdgeCertificates {
    /// Life of a certificate; 168h where it is left out. An edge renews at two thirds of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10s", "99999h"))]
    pub lifetime: Option<Duration>,
    /// Time after the end of its life in which a certificate may still renew, and nothing else; 2160h (90 days) where
    /// it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "99999h"))]
    pub renewal_grace: Option<Duration>,
}

effective!(EdgeCertificates {
    /// Life of a certificate:
    effective_lifetime: lifetime -> StdDuration = StdDuration::from_secs(168 * 3600);
    /// Time in which an expired certificate may renew:
    effective_renewal_grace: renewal_grace -> StdDuration = StdDuration::from_secs(2160 * 3600);
});

/// How much history is kept: whichever is reached first.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Age; 720h (30 days) where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1m", "99999h"))]
    pub max_age: Option<Duration>,
    /// Bytes; 80% of the volume where it is left out, without bound locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Mi"))]
    pub max_bytes: Option<ByteSize>,
}

effective!(History {
    /// Age:
    effective_max_age: max_age -> StdDuration = StdDuration::from_secs(720 * 3600);
});

/// Commands.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::not_longer("timeout", "30s", "maxTimeout", "10m"))]
#[serde(rename_all = "camelCase")]
pub struct Commands {
    /// Deadline of a command that does not say its own; 30s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "24h"))]
    pub timeout: Option<Duration>,
    /// Longest deadline; 10m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "24h"))]
    pub max_timeout: Option<Duration>,
    /// How long the audit of commands is kept; 8760h (a year) where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1h", "99999h"))]
    pub audit_max_age: Option<Duration>,
}

effective!(Commands {
    /// Deadline of a command that does not say its own:
    effective_timeout: timeout -> StdDuration = StdDuration::from_secs(30);
    /// Longest deadline:
    effective_max_timeout: max_timeout -> StdDuration = StdDuration::from_secs(600);
    /// How long the audit of commands is kept:
    effective_audit_max_age: audit_max_age -> StdDuration = StdDuration::from_secs(8760 * 3600);
});

/// What is known about a cloud endpoint.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CloudStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where edges connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge_link: Option<HostPort>,
    /// Where the JSON API answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Url>,
    /// Number of edges that were admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edges: Option<i32>,
}
