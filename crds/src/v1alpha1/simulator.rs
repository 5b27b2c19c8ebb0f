//! `Simulator`: a simulated asset.

use std::time::Duration as StdDuration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    common::{LogLevel, Pod, has_status},
    device::{OpcuaSecurityMode, OpcuaSecurityPolicy},
};
use crate::{
    refs::CredentialsSecretRef,
    rules,
    types::{Duration, Host, Text, Url, effective},
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
    /// What goes wrong, again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Faults>,
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

/// An OPC UA server of a bottling line.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OpcuaSimulator {
    /// URI of its namespace; `urn:foreshore:sim:bottling-line` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_uri: Option<Text>,
    /// Time from one change of the line to the next; 100ms where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("10ms", "1h"))]
    pub interval: Option<Duration>,
    /// Bottles in an hour; 36000 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub bottles_per_hour: Option<u32>,
    /// Further variables that count up, `Load.0`, `Load.1`, …, for measuring; 0 where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub load_variables: Option<u32>,
    /// Security policies and modes that it offers; `None`, and Basic256Sha256 with SignAndEncrypt, where it is left
    /// out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub security: Vec<OpcuaSimulatorSecurity>,
    /// Secret with the one user that it knows besides anonymous; none where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_secret_ref: Option<CredentialsSecretRef>,
    /// Whether it lets in anonymous clients; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anonymous: Option<bool>,
}

/// URI of the simulated line's namespace.
pub const SIMULATED_LINE_NAMESPACE: &str = "urn:foreshore:sim:bottling-line";

effective!(OpcuaSimulator {
    /// Time from one change of the line to the next:
    effective_interval: interval -> StdDuration = StdDuration::from_millis(100);
    /// Bottles in an hour:
    effective_bottles_per_hour: bottles_per_hour -> u32 = 36_000;
    /// Further variables that count up:
    effective_load_variables: load_variables -> u32 = 0;
    /// Whether it lets in anonymous clients:
    effective_anonymous: anonymous -> bool = true;
});

impl OpcuaSimulator {
    /// URI of its namespace.
    #[must_use]
    pub fn effective_namespace_uri(&self) -> &str {
        self.namespace_uri.as_deref().unwrap_or(SIMULATED_LINE_NAMESPACE)
    }
}

/// A security policy and mode that a server offers.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::opcua_security("policy", "mode"), validation = rules::plain("self.policy != 'Auto' && self.mode != 'Auto'", "Auto", "a definite policy and mode: a server has nobody to choose from"))]
#[serde(rename_all = "camelCase")]
pub struct OpcuaSimulatorSecurity {
    /// Policy; not Auto.
    pub policy: OpcuaSecurityPolicy,
    /// Mode; not Auto.
    pub mode: OpcuaSecurityMode,
}

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

/// What goes wrong, again and again. Times are means; a fault that is left out does not happen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Faults {
    /// Drops all connections so often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "999h"))]
    pub drop_connections_every: Option<Duration>,
    /// Restarts so often, forgetting sessions and subscriptions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("1s", "999h"))]
    pub restart_every: Option<Duration>,
    /// Time that a restart takes; 2s where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "1h"))]
    pub restart_takes: Option<Duration>,
    /// Waits so long before each answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::duration_between("0s", "5m"))]
    pub delay: Option<Duration>,
    /// Percent of values with a bad status code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 100.0))]
    pub bad_status_percent: Option<f64>,
}

effective!(Faults {
    /// Time that a restart takes:
    effective_restart_takes: restart_takes -> StdDuration = StdDuration::from_secs(2);
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
has_status!(SimulatorStatus);
