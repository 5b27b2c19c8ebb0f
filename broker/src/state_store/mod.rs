//! The state store: a small key-value store over MQTT, as the state store protocol of Azure IoT Operations has it, so
//! that clients of its open SDK work with this broker unchanged.
//!
//! ```text
//! client ─ PUBLISH statestore/… ─► connection ─► keys (in memory) ─► one batch: rows, answer, notifications
//!                                                                            │ commit
//! client ◄─ PUBACK ◄──────────────────────────┐                              ▼
//! client ◄─ answer, notifications ◄───────────┴──────────────────── deliveries, in the order of commands
//! ```
//!
//! A command takes effect, is submitted to the store and takes its place among the deliveries in one step, under one
//! lock: so the keys in memory, the rows on disk and what watchers are told are in the same order. Nobody is told
//! anything before it is durable, and whoever reads a value is answered after the commit that holds it.
//!
//! What the store publishes goes to the session that asked for it, and to no one else: an answer if the requester itself
//! subscribes to the response topic, a notification to the session that is registered for it. A client can make the
//! broker publish nothing to anybody but itself, whatever topics it names.
//!
//! | module | what |
//! |---|---|
//! | [`topics`], [`resp3`], [`command`], [`request`] | the protocol |
//! | [`clock`] | versions |
//! | [`keys`], [`watches`] | what each command does |
//! | [`rows`] | what is stored of it |
//! | [`service`] | commands, deliveries and expiry in the broker |

mod clock;
mod command;
mod keys;
mod request;
mod resp3;
mod rows;
mod service;
mod topics;
mod watches;

pub(crate) use self::{
    keys::Bounds,
    request::{NoRequest, Request},
    rows::describe,
    service::{Answered, StateStore},
    topics::{is_request, is_reserved, may_ask},
};
