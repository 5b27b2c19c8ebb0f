//! `Device`: an endpoint that a connector dials.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration as StdDuration;

use super::common::{Authentication, Backoff, Protocol, Trust, free_object};
use crate::{
    refs::LocalRef,
    rules,
    types::{ByteSize, Duration, ItemName, ObjectName, Text, Url, effective},
};

/// An endpoint that a connector dials: one address, one session, one set of credentials.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Device",
    plural = "devices",
    namespaced,
    validation = rules::object_name(),
    status = "DeviceStatus",
    derive = "PartialEq",
    shortname = "fsdev",
    category = "foreshore",
    doc = "An endpoint that a connector dials: one address, one session, one set of credentials.",
    printcolumn(name = "Assets", type_ = "integer", json_path = ".status.assets")
)]
#[x_kube(validation = rules::exactly_one_of(&["opcua", "onvif", "custom"]), validation = rules::exactly_one_of(&["address", "simulatorRef"]), validation = rules::only_where("simulatorRef", "!has(self.custom)", "with opcua or onvif"), validation = rules::address_scheme("opcua", &["opc.tcp"]), validation = rules::address_scheme("onvif", &["http", "https"]))]
#[serde(rename_all = "camelCase")]
pub struct DeviceSpec {
    /// Whether the device is dialled at all; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Connector that dials it; may be left out where the namespace has one for the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector_ref: Option<LocalRef>,
    /// Where the device answers: `opc.tcp://host:port/path`, `http://camera/onvif/device_service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Url>,
    /// Simulator that plays the device, instead of an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulator_ref: Option<LocalRef>,
    /// How the connector proves who it is; anonymous where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Which certificates of the device are believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Waiting between tries to connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect: Option<Backoff>,
    /// An OPC UA server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<OpcuaDevice>,
    /// An ONVIF camera.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onvif: Option<OnvifDevice>,
    /// A device of a protocol of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomDevice>,
}

effective!(DeviceSpec {
    /// Whether the device is dialled:
    effective_enabled: enabled -> bool = true;
});

impl DeviceSpec {
    /// The protocol, told by the one block that is there; `None` in a manifest that was never judged.
    #[must_use]
    pub fn protocol(&self) -> Option<Protocol> {
        match (&self.opcua, &self.onvif, &self.custom) {
            (Some(_), None, None) => Some(Protocol::Opcua),
            (None, Some(_), None) => Some(Protocol::Onvif),
            (None, None, Some(_)) => Some(Protocol::Custom),
            _ => None,
        }
    }
}

/// Security policy of an OPC UA channel (OPC 10000-7).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpcuaSecurityPolicy {
    /// The most secure one that the server offers and we know.
    #[default]
    Auto,
    /// No security. Credentials are refused over it unless the server encrypts them itself.
    None,
    /// Basic256Sha256.
    Basic256Sha256,
    /// Aes128-Sha256-RsaOaep.
    Aes128Sha256RsaOaep,
    /// Aes256-Sha256-RsaPss.
    Aes256Sha256RsaPss,
}

/// Message security mode of an OPC UA channel (OPC 10000-4, 7.20).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpcuaSecurityMode {
    /// The most secure one that the server offers with the policy.
    #[default]
    Auto,
    /// Neither signed nor encrypted.
    None,
    /// Signed.
    Sign,
    /// Signed and encrypted.
    SignAndEncrypt,
}

/// How an OPC UA server is spoken to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::opcua_security("securityPolicy", "securityMode"), validation = rules::not_longer("keepAliveInterval", "5s", "sessionTimeout", "60s"), validation = rules::three_keep_alives_in_lifetime())]
#[serde(rename_all = "camelCase")]
pub struct OpcuaDevice {
    /// Security policy; Auto where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_policy: Option<OpcuaSecurityPolicy>,
    /// Security mode; Auto where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_mode: Option<OpcuaSecurityMode>,
    /// Application URI that the server must have; any where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub application_uri: Option<Text>,
    /// Name of the session, as the server shows it; the device's namespace and name where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_name: Option<Text>,
    /// How long the server keeps a session that is silent; 60s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "24h"))]
    pub session_timeout: Option<Duration>,
    /// Longest wait for a connection with its session; 15s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "10m"))]
    pub connect_timeout: Option<Duration>,
    /// Longest wait for an answer; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "10m"))]
    pub request_timeout: Option<Duration>,
    /// Longest silence on a subscription before the server sends a keep-alive; 5s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "1h"))]
    pub keep_alive_interval: Option<Duration>,
    /// How long the server keeps a subscription that nobody reads, and with it what it queued; 2m where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "24h"))]
    pub subscription_lifetime: Option<Duration>,
    /// How often addresses that the server did not know are tried again; 1m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "24h"))]
    pub retry_unknown_addresses: Option<Duration>,
    /// What one request may hold. The server's own limits are honoured as well; the smaller one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<OpcuaLimits>,
}

effective!(OpcuaDevice {
    /// Security policy:
    effective_security_policy: security_policy -> OpcuaSecurityPolicy = OpcuaSecurityPolicy::Auto;
    /// Security mode:
    effective_security_mode: security_mode -> OpcuaSecurityMode = OpcuaSecurityMode::Auto;
    /// How long the server keeps a silent session:
    effective_session_timeout: session_timeout -> StdDuration = StdDuration::from_secs(60);
    /// Longest wait for a connection with its session:
    effective_connect_timeout: connect_timeout -> StdDuration = StdDuration::from_secs(15);
    /// Longest wait for an answer:
    effective_request_timeout: request_timeout -> StdDuration = StdDuration::from_secs(10);
    /// Longest silence on a subscription:
    effective_keep_alive_interval: keep_alive_interval -> StdDuration = StdDuration::from_secs(5);
    /// How long the server keeps an unread subscription:
    effective_subscription_lifetime: subscription_lifetime -> StdDuration = StdDuration::from_secs(120);
    /// How often unknown addresses are tried again:
    effective_retry_unknown_addresses: retry_unknown_addresses -> StdDuration = StdDuration::from_secs(60);
});

/// What one OPC UA request may hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaLimits {
    /// Nodes in one Read; 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_nodes_per_read: Option<u32>,
    /// Nodes in one Write; 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_nodes_per_write: Option<u32>,
    /// Browse paths in one TranslateBrowsePathsToNodeIds; 500 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_browse_paths_per_translate: Option<u32>,
    /// Items in one CreateMonitoredItems; 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_monitored_items_per_call: Option<u32>,
    /// Items of one subscription; 1000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_items_per_subscription: Option<u32>,
    /// Publish requests on the way at once; 4 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub max_publish_requests: Option<u32>,
    /// Longest message of the server; 16Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("8Ki"))]
    pub max_message_size: Option<ByteSize>,
}

effective!(OpcuaLimits {
    /// Nodes in one Read:
    effective_max_nodes_per_read: max_nodes_per_read -> u32 = 1000;
    /// Nodes in one Write:
    effective_max_nodes_per_write: max_nodes_per_write -> u32 = 1000;
    /// Browse paths in one translation:
    effective_max_browse_paths_per_translate: max_browse_paths_per_translate -> u32 = 500;
    /// Items in one CreateMonitoredItems:
    effective_max_monitored_items_per_call: max_monitored_items_per_call -> u32 = 1000;
    /// Items of one subscription:
    effective_max_items_per_subscription: max_items_per_subscription -> u32 = 1000;
    /// Publish requests on the way at once:
    effective_max_publish_requests: max_publish_requests -> u32 = 4;
    /// Longest message in bytes:
    effective_max_message_size: max_message_size -> u64 = 16 << 20;
});

/// How an ONVIF camera is spoken to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnvifDevice {
    /// Sends a WS-UsernameToken (digest form) where HTTP Digest fails, and HTTP Basic where the camera offers nothing
    /// else for pictures; false where it is left out. Profile S cameras may need it; on an unencrypted network the
    /// former shows the password's hash to whoever listens, the latter the password itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_token_fallback: Option<bool>,
    /// Which media service is used; Auto where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_service: Option<OnvifMediaService>,
    /// Longest wait for an answer; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "10m"))]
    pub request_timeout: Option<Duration>,
    /// How often the camera is asked whether it is there, when nothing else is; 30s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "1h"))]
    pub keep_alive_interval: Option<Duration>,
    /// How events are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<OnvifEvents>,
    /// How pictures are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<OnvifSnapshots>,
}

effective!(OnvifDevice {
    /// Whether a WS-UsernameToken is sent where HTTP Digest fails:
    effective_username_token_fallback: username_token_fallback -> bool = false;
    /// Which media service is used:
    effective_media_service: media_service -> OnvifMediaService = OnvifMediaService::Auto;
    /// Longest wait for an answer:
    effective_request_timeout: request_timeout -> StdDuration = StdDuration::from_secs(10);
    /// How often a silent camera is asked:
    effective_keep_alive_interval: keep_alive_interval -> StdDuration = StdDuration::from_secs(30);
});

/// Which ONVIF media service is used.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnvifMediaService {
    /// Media2 where the camera has it.
    #[default]
    Auto,
    /// Media (ver10).
    Media1,
    /// Media2 (ver20).
    Media2,
}

/// How events of a camera are fetched: one pull point a camera, since cameras have few.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::not_longer("pullTimeout", "20s", "termination", "2m"))]
#[serde(rename_all = "camelCase")]
pub struct OnvifEvents {
    /// How long the camera may hold a PullMessages back; 20s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "10m"))]
    pub pull_timeout: Option<Duration>,
    /// Messages in one answer; 100 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub message_limit: Option<u32>,
    /// Lifetime asked for the pull point, renewed at half of it; 2m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10s", "24h"))]
    pub termination: Option<Duration>,
}

effective!(OnvifEvents {
    /// How long the camera may hold a pull back:
    effective_pull_timeout: pull_timeout -> StdDuration = StdDuration::from_secs(20);
    /// Messages in one answer:
    effective_message_limit: message_limit -> u32 = 100;
    /// Lifetime of the pull point:
    effective_termination: termination -> StdDuration = StdDuration::from_secs(120);
});

/// How pictures of a camera are fetched.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnvifSnapshots {
    /// Longest wait for a picture; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "10m"))]
    pub timeout: Option<Duration>,
    /// Largest picture; 8Mi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Ki"))]
    pub max_size: Option<ByteSize>,
}

effective!(OnvifSnapshots {
    /// Longest wait for a picture:
    effective_timeout: timeout -> StdDuration = StdDuration::from_secs(10);
    /// Largest picture in bytes:
    effective_max_size: max_size -> u64 = 8 << 20;
});

/// A device of a protocol of your own.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomDevice {
    /// Name of the protocol; the Connector's `custom.type`.
    #[serde(rename = "type")]
    pub type_: ItemName,
    /// Free settings, checked against the schema that the Connector declares.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schemars(schema_with = "free_object")]
    pub options: serde_json::Map<String, serde_json::Value>,
}

/// What is known about a device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Connector that dials the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connector: Option<ObjectName>,
    /// Instance of the connector that serves the device, by the UID of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub instance: Option<String>,
    /// Address that is dialled, a simulator's included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Url>,
    /// Number of assets on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<i32>,
}
