//! MQTT 5, and 3.1.1 where it has to be: a client for our own roles, over a codec that others keep.
//!
//! The client publishes with quality of service 0 to 2 and keeps many messages on their way at once, up to what the
//! server takes; each has a [`Receipt`] that resolves with the server's answer. When the connection breaks it connects
//! again and sends again what was not answered, in the same order. What it receives waits in bounded channels until it
//! is acknowledged by whoever took it. Nothing in here grows without bound, and nothing is given up silently.
//!
//! | module | what |
//! |---|---|
//! | [`client`] | [`Client`]: publish, subscribe, watch the connection |
//! | [`request`] | requests with a response topic (MQTT 5.0, 4.10) |
//! | [`options`] | where and how to connect |
//! | [`packet`] | records to packets and back |
//! | [`reason`] | reason codes by name |
//! | [`codec`] | the codec, as it is, for the broker |

pub mod client;
mod connection;
pub mod error;
mod inflight;
pub mod options;
pub mod packet;
pub mod reason;
pub mod request;
mod subscriptions;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transport;
mod version;

pub use client::{Acknowledgement, Client, ConnectionState, Receipt, Service};
pub use error::{ConnectError, ConnectionLost, Ended, PublishError, SubscribeError};
pub use options::{Options, Security, Target, Versions};
pub use reason::ReasonCode;
pub use request::{RequestError, Requester};
/// Encoder and decoder of MQTT 3.1, 3.1.1 and 5.0 packets.
pub use rmqtt_codec as codec;
pub use subscriptions::{Delivery, Filters, Subscriber};
