//! The dataflow engine: from a durable queue through stages to a sink.
//!
//! Each sink of a dataflow has a durable queue of its own at the broker, its path; where the source is another broker, its
//! session there. A courier reads it, takes
//! the records through the stages that lead to the sink, hands batches to the sink, and settles each entry with what
//! became of it. An entry leaves its queue only after the sink's own acknowledgement: a crash repeats and never loses.
//!
//! ```text
//! plan ─► DataflowRole ─► courier ─► trip ─┬─ feed ─ stages ─ parcels ─► delivery ─► Sink
//!                           (one a sink)   └──────────── settle ◄──────────┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`sink`] | what an endpoint implements, and what it is given |
//! | [`factory`] | how sinks are made |
//! | [`stage`] | filter, map and route, compiled |
//! | [`role`] | the runner: puts plans in force, reports |
//! | [`assets`] | the assets of the plan, for endpoints that tell of them |
//! | [`health`] | how sinks are |
//! | `courier` | one sink: from its plan to the end of the dataflow |
//! | `trip` | one opening with one sink: feeds, deliveries, outages |
//! | `feed` | one part of a queue: reads, stages, parcels |
//! | `delivery` | one parcel: deliver, halve, settle |

pub mod assets;
mod courier;
mod delivery;
pub mod factory;
mod feed;
pub mod health;
mod metrics;
mod observer;
mod parcel;
pub mod role;
pub mod sink;
pub mod stage;
#[cfg(test)]
mod tests;
mod trip;

pub use assets::Assets;
pub use factory::{EndpointSetup, Secrets, SinkFactory, SinkSetup, SourceSetup, Surroundings};
pub use role::{DataflowRole, Queues, RemoteQueues, Runner, RunnerOptions};
pub use sink::{Batch, Capabilities, Delivery, Output, Sink, SinkError};
