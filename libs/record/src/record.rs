//! One message with everything that travels with it.

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{number::SourceNumber, topic::TopicName};

/// Quality of service of an MQTT message (MQTT 5.0 section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Qos {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl From<Qos> for u8 {
    fn from(qos: Qos) -> Self {
        qos as u8
    }
}

impl TryFrom<u8> for Qos {
    type Error = InvalidQos;

    fn try_from(value: u8) -> Result<Self, InvalidQos> {
        match value {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            found => Err(InvalidQos { found }),
        }
    }
}

/// A quality of service that MQTT does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quality of service {found} is not allowed: 0, 1 or 2 is")]
pub struct InvalidQos {
    /// What was given.
    pub found: u8,
}

/// One message of the data path.
///
/// A connector makes it, the broker stores it, a dataflow transforms and delivers it. Cloning is cheap: the payload is
/// shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where the message was published.
    pub topic: TopicName,
    /// The content, opaque to the broker.
    pub payload: Bytes,
    /// Quality of service it was published with.
    pub qos: Qos,
    /// Whether the broker keeps it as the topic's last message.
    pub retain: bool,
    /// MQTT 5 properties that travel with the message.
    pub properties: Properties,
    /// The number its publisher gave it, if it is one of ours.
    pub number: Option<SourceNumber>,
    /// When the broker took it in; `None` until then.
    pub ingested_at: Option<Timestamp>,
}

impl Record {
    /// Makes a record with quality of service 1, not retained and without properties.
    #[must_use]
    pub fn new(topic: TopicName, payload: impl Into<Bytes>) -> Self {
        Self {
            topic,
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties::default(),
            number: None,
            ingested_at: None,
        }
    }

    /// Returns the first user property of that name.
    #[must_use]
    pub fn user_property(&self, name: &str) -> Option<&str> {
        self.properties.user_property(name)
    }
}

/// Properties of an MQTT 5 PUBLISH that travel with the message (MQTT 5.0 section 3.3.2.3).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Properties {
    /// MIME type of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Whether the payload is UTF-8 text (Payload Format Indicator = 1).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub payload_is_utf8: bool,
    /// Seconds after which an undelivered message is worthless (Message Expiry Interval).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry_seconds: Option<u32>,
    /// Where a response to this request is expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_topic: Option<String>,
    /// What the requester recognises its response by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_data: Option<Bytes>,
    /// Name and value pairs, in the order of publication; names may repeat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub user: Vec<(String, String)>,
}

impl Properties {
    /// Returns the first user property of that name.
    #[must_use]
    pub fn user_property(&self, name: &str) -> Option<&str> {
        self.user
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Adds a user property.
    pub fn push_user(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.user.push((name.into(), value.into()));
    }
}
