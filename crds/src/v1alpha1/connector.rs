//! `Connector`: a southbound workload for one protocol.

use std::time::Duration as StdDuration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{LogLevel, Pod, Protocol};
use crate::{
    refs::LocalRef,
    rules,
    types::{ByteSize, Duration, ItemName, ObjectName, effective},
};

/// A southbound workload: it dials the devices of one protocol and publishes what their assets say.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Connector",
    plural = "connectors",
    namespaced,
    validation = rules::object_name(),
    status = "ConnectorStatus",
    derive = "PartialEq",
    shortname = "fsconn",
    category = "foreshore",
    doc = "A southbound workload: it dials the devices of one protocol and publishes what their assets say.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas"
    ),
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices")
)]
#[x_kube(validation = rules::plain("(self.protocol == 'custom') == has(self.custom)", "only one of protocol custom and the block custom", "both or neither"), validation = rules::plain("self.protocol != 'custom' || (has(self.pod) && has(self.pod.image))", "no image", "pod.image with protocol custom"), validation = rules::plain("!has(self.highAvailability) || (has(self.replicas) && self.replicas >= 2)", "highAvailability with fewer than 2 replicas", "it with 2 or more, one to stand by"))]
#[serde(rename_all = "camelCase")]
pub struct ConnectorSpec {
    /// Protocol that it speaks.
    pub protocol: Protocol,
    /// Broker that it publishes to; may be left out where the namespace has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<LocalRef>,
    /// How many pods share the devices; 1 where it is left out. Locally there is one task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: Option<u32>,
    /// Keeps a standby for each device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_availability: Option<HighAvailability>,
    /// How much it logs; Info where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// What it takes on at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ConnectorLimits>,
    /// Where and how its pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// What a connector of your own declares; with `protocol: custom` and an image in `pod` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomConnector>,
}

effective!(ConnectorSpec {
    /// How many pods share the devices:
    effective_replicas: replicas -> u32 = 1;
    /// How much it logs:
    effective_log_level: log_level -> LogLevel = LogLevel::Info;
});

/// Keeping a standby for each device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HighAvailability {
    /// What the standby has ready; Connection where it is left out. A server that allows one session wants None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
    /// Silence after which the standby takes over; 2s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "5m"))]
    pub lease_duration: Option<Duration>,
}

effective!(HighAvailability {
    /// What the standby has ready:
    effective_standby: standby -> Standby = Standby::Connection;
    /// Silence after which the standby takes over:
    effective_lease_duration: lease_duration -> StdDuration = StdDuration::from_secs(2);
});

/// What a standby has ready.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standby {
    /// Its plan only.
    None,
    /// A session of its own with the device.
    #[default]
    Connection,
}

/// What a connector takes on at most.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorLimits {
    /// Devices of one pod; 500 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_devices: Option<u32>,
    /// Data points of one pod; 100000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_data_points: Option<u32>,
    /// Messages to the broker that wait for its acknowledgement; 256 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub max_inflight: Option<u32>,
    /// Bytes of messages that wait in memory for the broker; 16Mi where it is left out. Then devices are read
    /// more slowly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("64Ki"))]
    pub max_waiting_bytes: Option<ByteSize>,
    /// Actions at once on one device; 8 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_actions_per_device: Option<u32>,
}

effective!(ConnectorLimits {
    /// Devices of one pod:
    effective_max_devices: max_devices -> u32 = 500;
    /// Data points of one pod:
    effective_max_data_points: max_data_points -> u32 = 100_000;
    /// Messages that wait for the broker's acknowledgement:
    effective_max_inflight: max_inflight -> u32 = 256;
    /// Bytes that wait in memory for the broker:
    effective_max_waiting_bytes: max_waiting_bytes -> u64 = 16 << 20;
    /// Actions at once on one device:
    effective_max_actions_per_device: max_actions_per_device -> u32 = 8;
});

/// What a connector of your own declares.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CustomConnector {
    /// Name of the protocol; the Device's `custom.type`.
    #[serde(rename = "type")]
    pub type_: ItemName,
    /// JSON Schema (2020-12) of `custom.options`, as text, by where they stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_schemas: Option<OptionSchemas>,
}

/// JSON Schemas of `custom.options`; an empty object is wanted where one is left out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OptionSchemas {
    /// Of devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub device: Option<String>,
    /// Of datasets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub dataset: Option<String>,
    /// Of data points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub data_point: Option<String>,
    /// Of event groups and events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub event: Option<String>,
    /// Of streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub stream: Option<String>,
    /// Of action groups and actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    pub action: Option<String>,
}

/// What is known about a connector.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ConnectorStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Broker that it publishes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<ObjectName>,
    /// Pods or tasks that run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Devices that it dials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<i32>,
}
