//! What an asset can be asked to do.

use std::time::Duration as StdDuration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    rules,
    types::{Address, Duration, ItemName, OpcuaAddress, PointName, Text, effective},
    v1alpha1::common::Custom,
};

/// Actions that have something in common. Requests arrive at
/// `foreshore/commands/{namespace}/{asset}/{group}/{action}`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ActionGroup {
    /// Name, unique in the asset.
    pub name: ItemName,
    /// Longest time for an action that does not say otherwise; 10s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "1h"))]
    pub timeout: Option<Duration>,
    /// For assets on a device of a protocol of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
    /// The actions.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub actions: Vec<Action>,
}

impl ActionGroup {
    /// Longest time for `action`.
    #[must_use]
    pub fn timeout_of(&self, action: &Action) -> StdDuration {
        action
            .timeout
            .or(self.timeout)
            .map_or(StdDuration::from_secs(10), Duration::get)
    }
}

/// What an action does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActionType {
    /// Calls a method or an operation.
    #[default]
    Call,
    /// Reads a value now, from the device itself.
    Read,
    /// Writes a value.
    Write,
}

/// Something that an asset can be asked to do.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_most_one_of(&["opcua", "onvif", "custom"]), validation = rules::plain("has(self.target) || has(self.onvif) || has(self.custom)", "no target", "a target, except beside onvif or custom"), validation = rules::plain("!has(self.onvif) || self.type == 'Call'", "onvif with another type than Call", "type Call beside onvif"), validation = rules::only_where("target", "!has(self.onvif)", "without onvif, whose operation says it all"), validation = rules::plain("self.type != 'Call' || has(self.onvif) || has(self.custom) || (has(self.opcua) && has(self.opcua.objectId))", "a Call without an object", "opcua.objectId beside the target, which is the method"), validation = rules::plain("!has(self.opcua) || self.type == 'Call' || !(has(self.opcua.objectId) || has(self.opcua.arguments))", "opcua.objectId or opcua.arguments", "these with type Call only"), validation = rules::plain("!has(self.opcua) || self.type == 'Write' || !has(self.opcua.dataType)", "opcua.dataType", "this with type Write only"), validation = rules::plain("!has(self.opcua) || self.type != 'Call' || !has(self.opcua.indexRange)", "opcua.indexRange with type Call", "this with type Read and Write only"))]
#[serde(rename_all = "camelCase")]
pub struct Action {
    /// Name, unique in the group.
    pub name: ItemName,
    /// What it does.
    #[serde(rename = "type")]
    pub type_: ActionType,
    /// What it is done to. On OPC UA: the variable to read or write, or the method to call, written as the address
    /// of a data point. On ONVIF it is left out; `onvif.operation` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Address>,
    /// Longest time until the answer; the group's where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "1h"))]
    pub timeout: Option<Duration>,
    /// Whether doing it twice does no harm: then it is repeated after a crash, else the outcome is Unknown.
    /// False where it is left out; reading always is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotent: Option<bool>,
    /// What only OPC UA knows about the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<OpcuaAction>,
    /// What only ONVIF knows about the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onvif: Option<OnvifAction>,
    /// What only your protocol knows about the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub custom: Option<Custom>,
}

impl Action {
    /// Whether doing it twice does no harm: as stated, and always for a Read.
    #[must_use]
    pub fn effective_idempotent(&self) -> bool {
        self.type_ == ActionType::Read || self.idempotent.unwrap_or(false)
    }
}

/// What only OPC UA knows about an action.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaAction {
    /// Object whose method is called, written as the address of a data point. Call only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_id: Option<OpcuaAddress>,
    /// Input arguments in their order, where the server does not declare them. Call only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub arguments: Vec<OpcuaArgument>,
    /// Type to write, where the server does not declare it. Write only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_type: Option<OpcuaDataType>,
    /// Part of an array to read or write, `0:9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_range: Option<Text>,
}

/// An input argument of a method.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaArgument {
    /// Member of the request's JSON object.
    pub name: PointName,
    /// Type of the argument.
    pub data_type: OpcuaDataType,
}

/// A built-in type of OPC UA (OPC 10000-6, 5.1.2) that JSON can carry.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpcuaDataType {
    /// True or false.
    #[default]
    Boolean,
    /// 8 bits, signed.
    SByte,
    /// 8 bits.
    Byte,
    /// 16 bits, signed.
    Int16,
    /// 16 bits.
    UInt16,
    /// 32 bits, signed.
    Int32,
    /// 32 bits.
    UInt32,
    /// 64 bits, signed.
    Int64,
    /// 64 bits.
    UInt64,
    /// Floating point, 32 bits.
    Float,
    /// Floating point, 64 bits.
    Double,
    /// Text.
    String,
    /// A point in time, RFC 3339.
    DateTime,
    /// A UUID.
    Guid,
    /// Bytes, base64.
    ByteString,
    /// A node id.
    NodeId,
    /// A name with a namespace.
    QualifiedName,
    /// Text in a language.
    LocalizedText,
}

/// What only ONVIF knows about an action.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::only_where("moveTimeout", "self.operation == 'ContinuousMove'", "with the operation ContinuousMove"), validation = rules::only_where("presetToken", "self.operation in ['GotoPreset', 'SetPreset', 'RemovePreset']", "with an operation on presets"))]
#[serde(rename_all = "camelCase")]
pub struct OnvifAction {
    /// Operation of the camera. The request's JSON object holds its arguments.
    pub operation: OnvifOperation,
    /// Media profile; the camera's first with what the operation needs where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_token: Option<Text>,
    /// Longest movement of a ContinuousMove that does not say its own; 1s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("50ms", "5m"))]
    pub move_timeout: Option<Duration>,
    /// Preset of a GotoPreset, SetPreset or RemovePreset whose request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset_token: Option<Text>,
}

effective!(OnvifAction {
    /// Longest movement:
    effective_move_timeout: move_timeout -> StdDuration = StdDuration::from_secs(1);
});

/// An operation of an ONVIF camera.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnvifOperation {
    /// PTZ: moves to a position.
    AbsoluteMove,
    /// PTZ: moves by a distance.
    RelativeMove,
    /// PTZ: moves at a speed until stopped or timed out.
    ContinuousMove,
    /// PTZ: stops moving.
    #[default]
    Stop,
    /// PTZ: tells position and whether it moves.
    GetStatus,
    /// PTZ: lists presets.
    GetPresets,
    /// PTZ: moves to a preset.
    GotoPreset,
    /// PTZ: stores the position as a preset.
    SetPreset,
    /// PTZ: forgets a preset.
    RemovePreset,
    /// PTZ: moves to the home position.
    GotoHomePosition,
    /// PTZ: stores the position as home.
    SetHomePosition,
    /// PTZ: sends an auxiliary command such as `tt:Wiper|On`.
    SendAuxiliaryCommand,
    /// Imaging: tells brightness, focus and the like.
    GetImagingSettings,
    /// Imaging: sets brightness, focus and the like.
    SetImagingSettings,
    /// Device: tells maker, model and revisions.
    GetDeviceInformation,
    /// Device: tells its clock.
    GetSystemDateAndTime,
    /// Device: restarts it.
    SystemReboot,
    /// Device: switches a relay output.
    SetRelayOutputState,
    /// Media: lists profiles.
    GetProfiles,
    /// Media: tells the address of a stream.
    GetStreamUri,
    /// Media: tells the address of pictures.
    GetSnapshotUri,
}
