//! `Asset`: the virtual representation of a machine.

use std::{collections::BTreeMap, time::Duration as StdDuration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{Custom, Destination};
use crate::{
    refs::{CredentialsSecretRef, LocalRef},
    rules,
    types::{
        Address, BrowsePath, ByteSize, Duration, ItemName, NodeId, ObjectName, OpcuaAddress, PointName,
        RelativePath, Text, Url, effective,
    },
};

mod action;
pub use action::{
    Action, ActionGroup, ActionType, OnvifAction, OnvifOperation, OpcuaAction, OpcuaArgument, OpcuaDataType,
};

/// Most datasets of an asset.
pub const MAX_DATASETS: usize = 32;
/// Most data points of a dataset.
pub const MAX_DATA_POINTS: usize = 1000;

/// The virtual representation of a machine: what it measures, tells, shows and can be asked to do.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Asset",
    plural = "assets",
    namespaced,
    validation = rules::object_name(),
    status = "AssetStatus",
    derive = "PartialEq",
    shortname = "fsasset",
    category = "foreshore",
    doc = "The virtual representation of a machine: what it measures, tells, shows and can be asked to do.",
    printcolumn(name = "Points", type_ = "integer", json_path = ".status.dataPoints")
)]
#[x_kube(validation = rules::topic_without(&["topic"]))]
#[serde(rename_all = "camelCase")]
pub struct AssetSpec {
    /// Device through which the asset is reached.
    pub device_ref: LocalRef,
    /// Whether the asset is served at all; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<Text>,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Text>,
    /// Maker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<Text>,
    /// Model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Text>,
    /// Serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_number: Option<Text>,
    /// Revision of the hardware.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hardware_revision: Option<Text>,
    /// Revision of the software.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software_revision: Option<Text>,
    /// Where its documentation lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documentation_uri: Option<Url>,
    /// Name under which other systems know the asset; sent with every message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<Text>,
    /// Facts of your own, usable in topics as `{attributes.NAME}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    #[x_kube(validation = rules::attribute_names())]
    pub attributes: BTreeMap<String, Text>,
    /// Where messages go unless a dataset, group, event or stream says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// What it measures. Each dataset becomes one message per publishing interval.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub datasets: Vec<Dataset>,
    /// What it tells by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub event_groups: Vec<EventGroup>,
    /// What it shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub streams: Vec<Stream>,
    /// What it can be asked to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub action_groups: Vec<ActionGroup>,
}

effective!(AssetSpec {
    /// Whether the asset is served:
    effective_enabled: enabled -> bool = true;
});

/// Values that are sampled and published together.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["opcua", "custom"]), validation = rules::topic_without(&["group", "event", "stream"]))]
#[serde(rename_all = "camelCase")]
pub struct Dataset {
    /// Name, unique in the asset.
    pub name: ItemName,
    /// How often the device looks at each value; 1s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "24h"))]
    pub sampling_interval: Option<Duration>,
    /// How often what changed is sent; 1s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10ms", "24h"))]
    pub publishing_interval: Option<Duration>,
    /// Samples that the device keeps of each point between two sendings and during an outage; where it is left
    /// out, enough for ten seconds, at least 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub queue_size: Option<u32>,
    /// Which sample a full queue gives up: the oldest (true) or the newest; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_oldest: Option<bool>,
    /// What makes a sample a change; StatusValue where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<ChangeTrigger>,
    /// How large a change must be, for points that do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadband: Option<Deadband>,
    /// When all points are sent, changed or not; only changes where it is left out, after the first message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_frame: Option<KeyFrame>,
    /// Where messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// For assets on an OPC UA device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<OpcuaDataset>,
    /// For assets on a device of a protocol of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
    /// The values.
    #[schemars(length(min = 1, max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub data_points: Vec<DataPoint>,
}

effective!(Dataset {
    /// How often the device looks at each value:
    effective_sampling_interval: sampling_interval -> StdDuration = StdDuration::from_secs(1);
    /// How often what changed is sent:
    effective_publishing_interval: publishing_interval -> StdDuration = StdDuration::from_secs(1);
    /// Whether a full queue gives up its oldest sample:
    effective_discard_oldest: discard_oldest -> bool = true;
    /// What makes a sample a change:
    effective_trigger: trigger -> ChangeTrigger = ChangeTrigger::StatusValue;
});

/// Outage, in milliseconds, that the queue of a point should cover where its size was left out.
const QUEUE_COVERS_MILLIS: u128 = 10_000;

impl Dataset {
    /// How often the device looks at `point`.
    #[must_use]
    pub fn sampling_interval_of(&self, point: &DataPoint) -> StdDuration {
        point
            .sampling_interval
            .map_or_else(|| self.effective_sampling_interval(), Duration::get)
    }

    /// Samples that the device keeps of `point`: what was stated, or enough for ten seconds and at least 2.
    #[must_use]
    pub fn queue_size_of(&self, point: &DataPoint) -> u32 {
        point.queue_size.or(self.queue_size).unwrap_or_else(|| {
            let interval = self.sampling_interval_of(point).as_millis().max(1);
            u32::try_from(QUEUE_COVERS_MILLIS.div_ceil(interval))
                .unwrap_or(u32::MAX)
                .clamp(2, 1000)
        })
    }

    /// How large a change of `point` must be.
    #[must_use]
    pub fn deadband_of<'a>(&'a self, point: &'a DataPoint) -> Option<&'a Deadband> {
        point.deadband.as_deref().or(self.deadband.as_ref())
    }
}

/// What makes a sample a change (OPC 10000-4, 7.22.2).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangeTrigger {
    /// A new status.
    Status,
    /// A new status or value.
    #[default]
    StatusValue,
    /// A new status, value or source timestamp.
    StatusValueTimestamp,
}

/// How large a change must be. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["absolute", "percent"]))]
#[serde(rename_all = "camelCase")]
pub struct Deadband {
    /// Difference in the value's own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub absolute: Option<f64>,
    /// Share of the value's range in percent; the device must know the range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub percent: Option<f64>,
}

/// When all points of a dataset are sent, changed or not. Exactly one member.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["count", "interval"]))]
#[serde(rename_all = "camelCase")]
pub struct KeyFrame {
    /// Every so many messages; 1 sends all points each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub count: Option<u32>,
    /// So much time after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "24h"))]
    pub interval: Option<Duration>,
}

/// What only OPC UA knows about a dataset.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaDataset {
    /// Node at which browse paths begin, as a node id or a browse path itself; the Root folder where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_node: Option<OpcuaAddress>,
    /// Priority of the subscription, 0 to 255; 0 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub priority: Option<u32>,
}

/// One value.
// Of these an operator holds hundreds of thousands, so that what few of them have stands elsewhere.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["opcua", "custom"]))]
#[serde(rename_all = "camelCase")]
pub struct DataPoint {
    /// Name in the payload, unique in the dataset.
    pub name: PointName,
    /// Where the value is. On OPC UA: a node id with its namespace's URI (`nsu=urn:plant;s=Filler.State`) or index
    /// (`ns=2;s=Filler.State`, `i=2258`), or a browse path from the dataset's `startNode`, names with a namespace
    /// index or URI where it is not 0 (`/Objects/2:Filler/nsu=urn:plant;State`).
    pub address: Address,
    /// How often the device looks at the value; the dataset's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_interval: Option<Duration>,
    /// Samples that the device keeps; the dataset's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub queue_size: Option<u32>,
    /// How large a change must be; the dataset's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadband: Option<Box<Deadband>>,
    /// Unit of the value, as UCUM or words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Text>,
    /// What only OPC UA knows about the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<Box<OpcuaDataPoint>>,
    /// What only your protocol knows about the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Box<Custom>>,
}

/// What only OPC UA knows about a point.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaDataPoint {
    /// Part of an array, `0:9` (OPC 10000-4, 7.27); all of it where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_range: Option<Text>,
    /// Registers the node with the server before reading, which speeds some servers up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub register: Option<bool>,
}

/// Events that have something in common.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::topic_without(&["dataset", "stream"]))]
#[serde(rename_all = "camelCase")]
pub struct EventGroup {
    /// Name, unique in the asset.
    pub name: ItemName,
    /// Where messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// For assets on a device of a protocol of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
    /// The events.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub events: Vec<AssetEvent>,
}

/// Something that the asset tells by itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["opcua", "onvif", "custom"]), validation = rules::topic_without(&["dataset", "stream"]), validation = rules::plain("!has(self.onvif) || has(self.address)", "no address", "an address, the topic of the event, beside onvif"))]
#[serde(rename_all = "camelCase")]
pub struct AssetEvent {
    /// Name, unique in the group.
    pub name: ItemName,
    /// Where the event comes from. On OPC UA: the node that notifies, the server where it is left out. On ONVIF: the
    /// topic, as `tns1:VideoSource/MotionAlarm`, with `//.` behind it for everything below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Where messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// What only OPC UA knows about the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<OpcuaEvent>,
    /// What only ONVIF knows about the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onvif: Option<OnvifEvent>,
    /// What only your protocol knows about the event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
}

/// What only OPC UA knows about an event.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaEvent {
    /// Type of the events, subtypes included, as a node id; BaseEventType (`i=2041`) where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<NodeId>,
    /// Lowest severity, 1 to 1000; all where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_severity: Option<u32>,
    /// Names of sources (SourceName) to hear; all where it is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub source_names: Vec<Text>,
    /// Fields to send besides EventId, EventType, SourceName, Time, Message and Severity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub fields: Vec<OpcuaEventField>,
    /// Asks the server for the conditions that hold, after each connection (ConditionRefresh); true where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition_refresh: Option<bool>,
    /// Samples that the server keeps; 100 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub queue_size: Option<u32>,
}

effective!(OpcuaEvent {
    /// Whether conditions that hold are asked for:
    effective_condition_refresh: condition_refresh -> bool = true;
    /// Events that the server keeps:
    effective_queue_size: queue_size -> u32 = 100;
});

/// A field of an OPC UA event.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaEventField {
    /// Name in the payload.
    pub name: PointName,
    /// Browse path from the event type, `/2:Recipe`; `/0:NAME` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub browse_path: Option<BrowsePath>,
    /// Event type that declares the field, as a node id; the event's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_definition: Option<NodeId>,
}

/// What only ONVIF knows about an event.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnvifEvent {
    /// Values of the message's Source that must match, such as `VideoSourceToken: VideoSource_1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub source: BTreeMap<String, Text>,
    /// Leaves out the messages of state that a camera sends after each connection (PropertyOperation
    /// `Initialized`); false where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_initialized: Option<bool>,
}

effective!(OnvifEvent {
    /// Whether messages of initial state are left out:
    effective_skip_initialized: skip_initialized -> bool = false;
});

/// Pictures or moving pictures. Exactly one of `snapshot`, `clip` and `relay`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::exactly_one_of(&["snapshot", "clip", "relay"]), validation = rules::at_most_one_of(&["onvif", "custom"]), validation = rules::topic_without(&["dataset", "group", "event"]), validation = rules::only_where("destination", "has(self.snapshot)", "with snapshot"))]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// Name, unique in the asset.
    pub name: ItemName,
    /// Where messages go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// Single pictures, each a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Recordings as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<Clip>,
    /// Passing the moving pictures on to a media server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relay: Option<Relay>,
    /// What only ONVIF knows about the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onvif: Option<OnvifStream>,
    /// What only your protocol knows about the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
}

/// Single pictures, each a message.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Time from one picture to the next; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "24h"))]
    pub interval: Option<Duration>,
    /// Largest picture to send; the device's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::size_at_least("1Ki"))]
    pub max_size: Option<ByteSize>,
}

effective!(Snapshot {
    /// Time from one picture to the next:
    effective_interval: interval -> StdDuration = StdDuration::from_secs(10);
});

/// Recordings as files, never decoded.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Clip {
    /// Length of a recording; 1m where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "1h"))]
    pub duration: Option<Duration>,
    /// File format; Mp4 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ClipFormat>,
    /// Folder below the role's volume; `{namespace}/{asset}/{stream}` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RelativePath>,
    /// Bytes of recordings to keep; the oldest goes first. 10Gi where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
}

effective!(Clip {
    /// Length of a recording:
    effective_duration: duration -> StdDuration = StdDuration::from_secs(60);
    /// File format:
    effective_format: format -> ClipFormat = ClipFormat::Mp4;
    /// Bytes of recordings to keep:
    effective_max_bytes: max_bytes -> u64 = 10 << 30;
});

/// File format of a recording.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClipFormat {
    /// MP4, fragmented.
    #[default]
    Mp4,
    /// Matroska.
    Mkv,
}

/// Passing moving pictures on to a media server, never decoded.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Relay {
    /// Where to publish: `rtsp://media-server:8554/line-1`.
    #[x_kube(validation = rules::scheme(&["rtsp", "rtsps"]))]
    pub address: Url,
    /// Secret with the media server's user name and password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<CredentialsSecretRef>,
}

/// What only ONVIF knows about a stream.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnvifStream {
    /// Media profile; the camera's first where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_token: Option<Text>,
}

/// What is known about an asset.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AssetStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Device through which the asset is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<ObjectName>,
    /// Number of data points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_points: Option<i32>,
    /// Number of events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<i32>,
    /// Number of streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<i32>,
    /// Number of actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<i32>,
}
