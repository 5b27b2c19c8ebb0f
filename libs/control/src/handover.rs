//! How a device goes from one instance of a connector to another: what the operator says, and what the instances answer.
//!
//! The heir is told to [take](TakePlan) before it is given the device: it dials, subscribes and holds back what it sees.
//! The earlier owner is then told to [give](GivePlan): it goes on for a moment, lets go, and tells as its watermark what
//! it has handed to the broker. With that the heir knows what of its own is a repeat, and goes on after it.
//! `docs/adr/0006-handover.md` has the reasons.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::plan::ResourceKey;

/// What a role can do that takes part in this; roles without it are never told to.
pub const CAPABILITY: &str = "handover";

/// Largest watermark, in bytes: a resource has room for it as base64.
pub const LARGEST_WATERMARK: usize = 512 * 1024;

/// Holds a device back: it is subscribed, and nothing of it is handed to the broker before its turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TakePlan {
    /// Namespace of the Device.
    pub namespace: String,
    /// Name of the Device.
    pub device: String,
    /// Which hand-over of the device; answers repeat it, so that those to an earlier one are told apart.
    pub number: u64,
    /// Whose turn it is.
    pub turn: Turn,
}

/// Whose turn it is to hand a device's data to the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Turn {
    /// The earlier owner's.
    Wait,
    /// The heir's, after what the earlier owner handed over.
    After {
        /// Epoch of the earlier owner's numbers: those of the heir are larger.
        epoch: u64,
        /// What the earlier owner told, as base64: a matter between the two.
        watermark: String,
    },
    /// The heir's, and nobody knows what the earlier owner handed over last.
    Lost {
        /// Epoch of the earlier owner's numbers, as far as known; 0 where it is not.
        epoch: u64,
    },
}

impl Turn {
    /// The heir's, after what the earlier owner handed over; nobody knows what that is when the watermark is empty.
    #[must_use]
    pub fn after(epoch: u64, watermark: &[u8]) -> Self {
        if watermark.is_empty() {
            return Self::Lost { epoch };
        }
        let watermark = STANDARD.encode(watermark);
        Self::After { epoch, watermark }
    }

    /// Epoch that the heir's numbers have to be above.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Wait => 0,
            Self::After { epoch, .. } | Self::Lost { epoch } => *epoch,
        }
    }

    /// What the earlier owner handed over, if it is known.
    #[must_use]
    pub fn watermark(&self) -> Option<Vec<u8>> {
        match self {
            Self::After { watermark, .. } => STANDARD.decode(watermark).ok(),
            Self::Wait | Self::Lost { .. } => None,
        }
    }
}

/// Tells an instance to let go of a device, and to say what it has handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GivePlan {
    /// Namespace of the Device.
    pub namespace: String,
    /// Name of the Device.
    pub device: String,
    /// Which hand-over of the device.
    pub number: u64,
    /// Whether the heir is subscribed already: then the owner goes on for so long that what the device had sampled before
    /// has come. Otherwise waiting only widens the gap.
    pub overlap: bool,
}

/// Which instances there are besides the one that is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeersPlan {
    /// Namespace of the Connector.
    pub namespace: String,
    /// Name of the Connector.
    pub connector: String,
    /// How many other instances could take devices. An instance with none ends at once when it is told to; with some it
    /// lets them take its devices first.
    pub peers: u32,
}

/// Where an instance stands with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// It hands the device's data to the broker.
    Serving,
    /// It is subscribed, and waits for its turn.
    Ready,
    /// It can't subscribe while another does: the protocol can't, or the device admits no second session.
    Refused,
    /// It has let go.
    Given,
}

/// What an instance says of a device that it serves, takes or gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandOver {
    /// The Device.
    pub device: ResourceKey,
    /// Where it stands.
    pub stage: Stage,
    /// The hand-over that this is about; 0 for none.
    pub number: u64,
    /// Epoch of its numbers; 0 where it has none.
    pub epoch: u64,
    /// With [`Stage::Given`], what it has handed over; empty when that is not known. At most [`LARGEST_WATERMARK`].
    pub watermark: Bytes,
}
