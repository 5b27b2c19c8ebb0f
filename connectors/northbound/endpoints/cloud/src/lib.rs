//! Sink to the cloud endpoint over EdgeLink.
//!
//! All sinks of one `DataflowEndpoint` share one outbound stream. The edge enrolls with its join token once, renews its
//! certificate by itself, and relays commands from the cloud to its assets.
//!
//! | module | what |
//! |---|---|
//! | `factory` | one link for each endpoint, sinks on it |
//! | `settings` | where an endpoint is, and how the edge is known there |
//! | `sink` | from a batch to its acknowledgement |
//! | `link` | the stream: opened, kept, opened again |
//! | `session` | one life of the stream |
//! | `lanes` | which part goes next: urgency, credit, pace |
//! | `outbox` | batches that wait for their turn |
//! | `credentials` | join token, certificate, renewal |
//! | `telling` | what the cloud is told of assets |
//! | `relay` | commands to assets |

mod credentials;
mod factory;
mod lanes;
mod link;
mod outbox;
mod relay;
mod session;
mod settings;
mod sink;
mod telling;

pub use factory::CloudSinkFactory;

#[cfg(test)]
mod tests;
