//! The MQTT broker: 3.1, 3.1.1 and 5.0 on one port, durable before it acknowledges.
//!
//! ```text
//! client ─► listener ─► connection ─► engine ─► store
//!                        on a shard     │
//! client ◄─ connection ◄─ shard ◄───────┘
//! ```
//!
//! A newcomer reads the modules in this order:
//!
//! | module | what |
//! |---|---|
//! | [`options`] | what a broker is started with |
//! | [`broker`] | starting, changing and ending it |
//! | [`listener`] | taking connections |
//! | [`connection`] | one client's connection |
//! | [`wire`] | packets |
//! | [`message`] | a message in flight |
//! | [`engine`] | from a message to those who get it |
//! | [`session`], [`will`], [`retained`], [`shared`] | what MQTT keeps |
//! | [`state_store`] | a key-value store over MQTT |
//! | [`path`] | queues of dataflows |
//! | [`auth`], [`policy`] | who a client is and what it may do |
//! | [`audit`] | who did what, for whoever asks later |
//! | [`stats`], [`sys`], [`inspect`] | what can be seen from outside |
//! | [`probe`] | the broker's own look at its listeners |
//! | [`role`] | putting a plan in force |
//! | [`offline`] | what the store holds while no broker runs |
//!
//! What makes it safe is in the store (see `foreshore_store`): an acknowledgement leaves after the commit that holds
//! what it acknowledges. What makes it quick is in the engine: publishing takes no lock, a message is encoded once for
//! all who get it, and a connection lives on one thread.

pub mod audit;
pub mod auth;
pub mod broker;
mod connection;
mod engine;
pub mod error;
pub mod inspect;
pub mod listener;
mod message;
pub mod offline;
pub mod options;
pub mod path;
pub mod policy;
pub mod probe;
mod retained;
pub mod role;
pub mod session;
mod shared;
mod state_store;
mod stats;
mod sys;
mod topic_limits;
mod will;
pub mod wire;

pub use audit::{AuditDestination, AuditError};
pub use auth::{
    Method, PasswordTable, ServiceAccountIssuer, TokenIssuer, TokenOptions, Webhook, WebhookOptions,
};
pub use broker::{Broker, Handle};
pub use error::Error;
pub use foreshore_store::{OverflowPolicy, TopicLimit};
pub use listener::Endpoint;
pub use options::{Conduct, Limits, ListenerOptions, Options, Protocol, Redirect, Storage};
pub use path::BrokerPaths;
pub use role::{BrokerRole, RoleOptions, Served};
