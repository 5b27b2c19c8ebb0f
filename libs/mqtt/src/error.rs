//! Errors of this crate.

use std::{io, time::Duration};

use foreshore_tls::Refusal;
use rmqtt_codec::error::{DecodeError, EncodeError};

use crate::reason::ReasonCode;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No address was given.
    #[error("no address to connect to")]
    NoAddress,
    /// The network does not lead there, or nobody listens.
    #[error("{address} can't be reached: {source}")]
    Unreachable {
        /// Which address.
        address: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{address} did not answer within {} s", after.as_secs_f32())]
    Timeout {
        /// Which address.
        address: String,
        /// How long was waited.
        after: Duration,
    },
    /// One side did not accept the other's certificate.
    #[error("{address}: {refusal}")]
    Tls {
        /// Which address.
        address: String,
        /// Who refused what.
        refusal: Refusal,
    },
    /// The server answered and refused (MQTT 5.0, section 3.2.2.2).
    #[error("{address} refused the connection: {reason}{}", detail(message))]
    Refused {
        /// Which address.
        address: String,
        /// Why.
        reason: ReasonCode,
        /// The server's own words, if any.
        message: String,
    },
    /// What answered does not speak MQTT as it was asked to.
    #[error("{address} does not speak this mqtt: {message}")]
    Protocol {
        /// Which address.
        address: String,
        /// What was seen.
        message: String,
    },
    /// There was a connection, and it ended.
    #[error("connection to {address}: {source}")]
    Lost {
        /// Which address.
        address: String,
        /// Why.
        source: ConnectionLost,
    },
}

impl ConnectError {
    /// Whether the server says that it does not speak this version.
    pub(crate) fn is_of_the_version(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if *reason == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION)
    }

    /// Whether the server hung up, as some do on a version that they do not know.
    pub(crate) fn is_hanging_up(&self) -> bool {
        let hung_up = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        matches!(self, Self::Unreachable { source, .. } if hung_up.contains(&source.kind()))
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionLost {
    /// The server closed it without a word.
    #[error("the server closed the connection")]
    Closed,
    /// The network failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server said why (MQTT 5.0, section 3.14.2.1).
    #[error("the server disconnected: {reason}{}", detail(message))]
    Disconnected {
        /// Why.
        reason: ReasonCode,
        /// The server's own words, if any.
        message: String,
    },
    /// The server was silent for too long.
    #[error("the server did not answer a ping within {} s", after.as_secs_f32())]
    Silent {
        /// How long was waited.
        after: Duration,
    },
    /// The server sent something that can't be parsed.
    #[error("the server sent a packet that can't be read: {0}")]
    Malformed(#[from] DecodeError),
    /// A packet of ours can't be written, which is a fault of ours.
    #[error("a packet can't be written: {0}")]
    Encode(#[from] EncodeError),
    /// The server sent something that the protocol does not allow.
    #[error("the server broke the protocol: {message}")]
    Protocol {
        /// What.
        message: String,
    },
    /// The server refused what the session is for.
    #[error(transparent)]
    Subscription(SubscribeError),
    /// Whoever received the session's messages is gone; the server keeps them.
    #[error("nobody receives the messages of the session")]
    Unclaimed,
    /// The addresses changed, and this one is no longer among them.
    #[error("the server's address changed")]
    Moved,
}

/// The client has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mqtt client has ended")]
pub struct Ended;

/// Why a message was not published. None of these is worth a repeat with the same connection and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The server refused the message.
    #[error("the server refused the message: {reason}{}", detail(message))]
    Refused {
        /// Why.
        reason: ReasonCode,
        /// The server's own words, if any.
        message: String,
    },
    /// The message is larger than the server takes.
    #[error("the message has {size} bytes, the server takes {max}")]
    TooLarge {
        /// Size of the whole packet in bytes.
        size: usize,
        /// The server's maximum packet size in bytes.
        max: usize,
    },
    /// The server lacks a feature that the message needs.
    #[error("the server does not support {what}")]
    NotSupported {
        /// Which, as `retained messages`.
        what: &'static str,
    },
    /// The message can't be written as a packet.
    #[error("the message can't be written as a packet: {reason}")]
    Encode {
        /// Why, such as a text that is too long.
        reason: String,
    },
    /// The client ended before the server answered: whether the message arrived is not known.
    #[error("the client ended before the server answered")]
    Ended,
}

/// Why a subscription was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The server refused it.
    #[error("the server refused the subscription {filter:?}: {reason}{}", detail(message))]
    Refused {
        /// The topic filter.
        filter: String,
        /// Why.
        reason: ReasonCode,
        /// The server's own words, if any.
        message: String,
    },
    /// Another subscriber of this client has the filter; a server keeps one subscription for each.
    #[error("another subscriber of this client has the filter {filter:?}")]
    InUse {
        /// The topic filter.
        filter: String,
    },
    /// The client has ended.
    #[error("the client has ended")]
    Ended,
}

impl From<Ended> for PublishError {
    fn from(Ended: Ended) -> Self {
        Self::Ended
    }
}

/// The server's own words, appended where there are any.
fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}
