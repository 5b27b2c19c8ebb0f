//! What the operator reconciles: objects by kind, namespace and name.

use std::{fmt, ops::Deref, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `apiVersion` of the core kinds that are read beside our own.
pub const CORE_API_VERSION: &str = "v1";

/// The kinds that the operator reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `v1 ConfigMap`.
    ConfigMap,
    /// `v1 Secret`.
    Secret,
    /// Listeners, storage and limits of a broker.
    Broker,
    /// Who may do what at a broker.
    BrokerPolicy,
    /// A southbound workload of one protocol.
    Connector,
    /// A simulated asset.
    Simulator,
    /// A cloud endpoint.
    Cloud,
    /// How a dataflow reaches a system.
    DataflowEndpoint,
    /// An endpoint that a connector dials.
    Device,
    /// The virtual representation of an asset.
    Asset,
    /// Source, stages and sinks.
    Dataflow,
}

impl Kind {
    /// All kinds; what an object may refer to stands before it.
    pub const ALL: [Self; 11] = [
        Self::ConfigMap,
        Self::Secret,
        Self::Broker,
        Self::BrokerPolicy,
        Self::Connector,
        Self::Simulator,
        Self::Cloud,
        Self::DataflowEndpoint,
        Self::Device,
        Self::Asset,
        Self::Dataflow,
    ];

    /// The kind as it stands in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Broker => "Broker",
            Self::BrokerPolicy => "BrokerPolicy",
            Self::Connector => "Connector",
            Self::Simulator => "Simulator",
            Self::Cloud => "Cloud",
            Self::DataflowEndpoint => "DataflowEndpoint",
            Self::Device => "Device",
            Self::Asset => "Asset",
            Self::Dataflow => "Dataflow",
        }
    }

    /// The `apiVersion` that goes with it.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::ConfigMap | Self::Secret => CORE_API_VERSION,
            Self::Broker
            | Self::BrokerPolicy
            | Self::Connector
            | Self::Simulator
            | Self::Cloud
            | Self::DataflowEndpoint
            | Self::Device
            | Self::Asset
            | Self::Dataflow => foreshore_crds::API_VERSION,
        }
    }

    /// Whether it is one of ours, with conditions, or a core kind that ours refer to.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        !matches!(self, Self::ConfigMap | Self::Secret)
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Identifies an object. Cheap to clone: it stands in many tables, ten thousand times in each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectKey(Arc<ObjectName>);

/// The parts of an [`ObjectKey`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name, unique for the kind in the namespace.
    pub name: String,
}

impl ObjectKey {
    /// Puts a key together.
    #[must_use]
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(ObjectName {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }))
    }
}

impl Deref for ObjectKey {
    type Target = ObjectName;

    fn deref(&self) -> &ObjectName {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    /// `Device bottling/line-1`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What tells one life of an object, and one version of its spec, from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Differs for an object that was removed and declared again.
    pub uid: String,
    /// Rises by one with each change of the spec, from 1.
    pub generation: i64,
    /// When it was first seen.
    pub created: Timestamp,
}
