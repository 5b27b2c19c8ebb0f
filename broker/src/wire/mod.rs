//! Packets on the wire: what clients send, decoded in place, and what the broker sends, encoded once.
//!
//! `rmqtt-codec` decodes and encodes the packets that are rare. PUBLISH and the acknowledgements are our own, because
//! the broker's speed is theirs: a PUBLISH is read without an allocation, and written by copying what all receivers
//! share and patching what they do not. What the codec does not check is checked here.

pub(crate) mod auth;
mod check;
pub(crate) mod connect;
#[cfg(test)]
mod differential;
pub(crate) mod encode;
pub(crate) mod frame;
pub(crate) mod packet;
pub(crate) mod properties;
pub(crate) mod publish;
mod reason;

pub use reason::ReasonCode;

/// Version of the protocol that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// MQTT 3.1.
    #[serde(rename = "3.1")]
    V31,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.0.
    #[serde(rename = "5.0")]
    V5,
}

impl Version {
    /// Whether it is version 5.
    #[must_use]
    pub fn is_v5(self) -> bool {
        self == Self::V5
    }

    /// The version as people write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V31 => "3.1",
            Self::V311 => "3.1.1",
            Self::V5 => "5.0",
        }
    }
}

/// A packet that breaks the protocol: the connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct WireError {
    /// What the client is told.
    pub(crate) reason: ReasonCode,
    /// What is wrong, for the log and the reason string.
    pub(crate) detail: std::borrow::Cow<'static, str>,
}

impl WireError {
    pub(crate) fn new(reason: ReasonCode, detail: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl From<rmqtt_codec::error::DecodeError> for WireError {
    fn from(error: rmqtt_codec::error::DecodeError) -> Self {
        use rmqtt_codec::error::DecodeError;
        let reason = match &error {
            DecodeError::InvalidTopicFilter | DecodeError::UnsupportedPacketType => ReasonCode::ProtocolError,
            DecodeError::UnsupportedProtocolLevel => ReasonCode::UnsupportedProtocolVersion,
            DecodeError::MaxSizeExceeded { .. } => ReasonCode::PacketTooLarge,
            _ => ReasonCode::MalformedPacket,
        };
        Self::new(reason, error.to_string().to_lowercase())
    }
}
