//! The payload of datasets: OPC UA PubSub JSON DataValues by data point name (OPC 10000-14, 7.2.5.4).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// OPC UA status code `Good`.
pub const STATUS_GOOD: u32 = 0;

/// A value with its time and quality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DataValue {
    /// The value; `null` when the source gave none.
    pub value: serde_json::Value,
    /// When the source says it had this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_timestamp: Option<Timestamp>,
    /// OPC UA status code (OPC 10000-4, 7.39); left out when good.
    #[serde(default, skip_serializing_if = "is_good")]
    pub status_code: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_good(status: &u32) -> bool {
    *status == STATUS_GOOD
}

impl DataValue {
    /// Makes a good value.
    #[must_use]
    pub fn good(value: impl Into<serde_json::Value>, source_timestamp: Timestamp) -> Self {
        Self {
            value: value.into(),
            source_timestamp: Some(source_timestamp),
            status_code: STATUS_GOOD,
        }
    }

    /// Whether the source vouches for the value: the severity bits are zero.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.status_code >> 30 == 0
    }
}

/// A dataset message: values by data point name.
pub type DatasetMessage = BTreeMap<String, DataValue>;

/// Encodes a dataset message.
///
/// # Errors
/// Fails when a value holds a map with keys that are not strings; connectors never make one.
pub fn encode(message: &DatasetMessage) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(message)
}

/// Decodes a dataset message.
///
/// # Errors
/// Names what was found and where when the payload is not a dataset message.
pub fn decode(payload: &[u8]) -> Result<DatasetMessage, serde_json::Error> {
    serde_json::from_slice(payload)
}
