//! The connector as it runs in a plant, with the SDK's runner, against OPC UA servers that others wrote: those of
//! asyncua (Python) and node-opcua (JavaScript).
//!
//! Both play the same bottling line (`tests/peers/scripts/opcua_*`), whose counter rises by one with each tick, so that
//! whatever is lost or doubled on its way shows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failure ends the test"
)]

mod commands;
mod cut;
mod data;
mod events;
mod plant;
mod proxy;
mod restart;
mod security;
mod server;
mod session;
