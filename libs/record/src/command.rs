//! Commands to an asset and their outcomes: MQTT 5 request and response on
//! `foreshore/commands/{namespace}/{asset}/{group}/{action}`.
//!
//! The request's payload is the action's input as JSON; deadline, idempotency key and actor travel as user properties
//! ([`crate::property`]). The response's payload is the action's output, or a [`CommandError`]; its user property
//! [`crate::property::COMMAND_STATUS`] tells which.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::topic::{InvalidTopic, TopicName};

/// A command to an asset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandRequest {
    /// Namespace of the asset.
    pub namespace: String,
    /// Name of the asset.
    pub asset: String,
    /// Action group.
    pub group: String,
    /// Action within the group.
    pub action: String,
    /// Input, in the form that the action's request schema asks for; `null` for none.
    #[serde(default)]
    pub input: serde_json::Value,
    /// After this time the command must not begin.
    pub deadline: Timestamp,
    /// A repeat with the same key is answered with the first one's outcome.
    pub idempotency_key: String,
    /// Who asked, for the audit record.
    pub actor: String,
}

impl CommandRequest {
    /// The topic that the command is published to.
    ///
    /// # Errors
    /// Fails when a name holds a character that topics do not allow.
    pub fn topic(&self) -> Result<TopicName, InvalidTopic> {
        TopicName::new(format!(
            "foreshore/commands/{}/{}/{}/{}",
            self.namespace, self.asset, self.group, self.action
        ))
    }
}

/// What became of a command: the action's output, or why there is none.
pub type CommandOutcome = Result<serde_json::Value, CommandError>;

/// Why a command has no output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
#[serde(rename_all = "camelCase")]
pub struct CommandError {
    /// What kind of failure.
    pub code: CommandErrorCode,
    /// For humans, with the evidence.
    pub message: String,
    /// Status code of the device's own protocol, such as `BadUserAccessDenied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_status: Option<String>,
}

impl CommandError {
    /// Makes an error without a status of the device.
    #[must_use]
    pub fn new(code: CommandErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            device_status: None,
        }
    }
}

/// What kind of failure a command met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CommandErrorCode {
    /// No such asset, group or action.
    NotFound,
    /// The input does not fit the action.
    InvalidInput,
    /// A policy forbids it.
    Forbidden,
    /// The edge, the connector or the device can't be reached now; it did not begin.
    Unavailable,
    /// The deadline passed before it began.
    DeadlineExceeded,
    /// The device refused or failed.
    DeviceFailed,
    /// It began, and whether it took effect is not known.
    Unknown,
    /// A fault of ours.
    Internal,
}

impl CommandErrorCode {
    /// The code as it appears in payloads and properties.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::InvalidInput => "InvalidInput",
            Self::Forbidden => "Forbidden",
            Self::Unavailable => "Unavailable",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::DeviceFailed => "DeviceFailed",
            Self::Unknown => "Unknown",
            Self::Internal => "Internal",
        }
    }
}

impl std::fmt::Display for CommandErrorCode {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}
