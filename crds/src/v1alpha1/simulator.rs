//! `Simulator`: a simulated asset.

use std::time::Duration as StdDuration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{LogLevel, Pod};
use crate::{
    refs::CredentialsSecretRef,
    rules,
    types::{Duration, Host, Url, effective},
};

/// A simulated asset, repeatable from a seed, with faults on demand. Exactly one of `opcua` and `onvif`.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "Simulator",
    plural = "simulators",
    namespaced,
    validation = rules::object_name(),
    status = "SimulatorStatus",
    derive = "PartialEq",
    shortname = "fssim",
    category = "foreshore",
    doc = "A simulated asset, repeatable from a seed, with faults on demand. Exactly one of opcua and onvif.",
    printcolumn(name = "Devices", type_ = "integer", json_path = ".status.devices")
)]
#[x_kube(validation = rules::exactly_one_of(&["opcua", "onvif"]))]
#[serde(rename_all = "camelCase")]
pub struct SimulatorSpec {
    /// What all of its randomness comes from; 1 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub seed: Option<u64>,
    /// Address to bind; where it is left out, all addresses in a pod and 127.0.0.1 locally.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_address: Option<Host>,
    /// Port; a free one, shown in the status, where it is left out or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 65_535))]
    pub port: Option<u16>,
    /// What goes wrong, again and again; nothing where it is left out. Faults at once: `POST /faults`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub faults: Vec<Fault>,
    /// An OPC UA server of a bottling line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcua: Option<OpcuaSimulator>,
    /// An ONVIF camera that looks at a bottling line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onvif: Option<OnvifSimulator>,
    /// How much it logs; Info where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// Where and how its pod runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

effective!(SimulatorSpec {
    /// What all of its randomness comes from:
    effective_seed: seed -> u64 = 1;
    /// Port, 0 for a free one:
    effective_port: port -> u16 = 0;
    /// How much it logs:
    effective_log_level: log_level -> LogLevel = LogLevel::Info;
});

/// An OPC UA server of a bottling line. It offers security None, and Basic256Sha256 with SignAndEncrypt.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaSimulator {
    /// Secret with the one user that it knows besides anonymous; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_secret_ref: Option<CredentialsSecretRef>,
    /// Whether it lets in anonymous clients; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<bool>,
    /// Further variables, `Load.0`, `Load.1`, …, for measuring; 0 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub load_points: Option<u32>,
    /// Time from one change of all of these to the next; 1s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10ms", "1h"))]
    pub load_interval: Option<Duration>,
}

/// URI of the simulated line's namespace.
pub const SIMULATED_LINE_NAMESPACE: &str = "urn:foreshore:sim:bottling-line";

effective!(OpcuaSimulator {
    /// Whether it lets in anonymous clients:
    effective_anonymous: anonymous -> bool = true;
    /// Further variables for measuring:
    effective_load_points: load_points -> u32 = 0;
    /// Time from one change of all of these to the next:
    effective_load_interval: load_interval -> StdDuration = StdDuration::from_secs(1);
});

/// An ONVIF camera that looks at a bottling line.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OnvifSimulator {
    /// Width of pictures in pixels; 640 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 3840))]
    pub width: Option<u32>,
    /// Height of pictures in pixels; 360 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 64, max = 2160))]
    pub height: Option<u32>,
    /// Mean time between two motions; 20s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("100ms", "24h"))]
    pub motion_interval: Option<Duration>,
    /// Secret with the one user that it knows; no authentication where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_secret_ref: Option<CredentialsSecretRef>,
    /// How it wants the user to be proved; Digest where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<OnvifSimulatorAuthentication>,
    /// How far its clock is ahead of ours, or behind with a `-`; 0s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 2, max = 29),
        regex(pattern = r"^-?([0-9]{1,5}(h|m|s|ms)){1,4}$")
    )]
    pub clock_skew: Option<String>,
}

effective!(OnvifSimulator {
    /// Width of pictures in pixels:
    effective_width: width -> u32 = 640;
    /// Height of pictures in pixels:
    effective_height: height -> u32 = 360;
    /// Mean time between two motions:
    effective_motion_interval: motion_interval -> StdDuration = StdDuration::from_secs(20);
    /// How it wants the user to be proved:
    effective_authentication: authentication -> OnvifSimulatorAuthentication = OnvifSimulatorAuthentication::Digest;
});

/// How a simulated camera wants a user to be proved.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnvifSimulatorAuthentication {
    /// HTTP Digest.
    #[default]
    Digest,
    /// WS-UsernameToken.
    UsernameToken,
    /// Either.
    Both,
}

/// What goes wrong.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultKind {
    /// Every connection is cut and new ones are refused until the time is over.
    #[default]
    DropConnections,
    /// What is connected stays; new connections are refused.
    Refuse,
    /// Everything arrives later.
    Slow,
    /// Values carry a bad status code.
    BadStatus,
    /// The device stops and starts anew after the time, without memory of its sessions.
    Restart,
}

/// Something that goes wrong, again and again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    validation = rules::plain("(self.kind == 'Slow') == has(self.delay)", "only one of the kind Slow and delay", "both or neither"),
    validation = rules::not_longer("duration", "2s", "every", "0s"),
)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Time from one beginning to the next.
    #[x_kube(validation = rules::duration_between("1s", "999h"))]
    pub every: Duration,
    /// For how long; 2s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Duration>,
    /// How much later everything arrives; with the kind Slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1ms", "5m"))]
    pub delay: Option<Duration>,
}

effective!(Fault {
    /// For how long:
    effective_duration: duration -> StdDuration = StdDuration::from_secs(2);
});

/// What is known about a simulator.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SimulatorStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Url>,
    /// Number of devices that it plays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<i32>,
}
