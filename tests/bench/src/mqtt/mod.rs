//! The load generator: publishers in one process, subscribers in another, one thread each.
//!
//! In one process they would take turns, and whoever waits would look like a slow broker.

use std::time::Duration;

use serde::{Deserialize, Serialize};

mod latencies;
pub(crate) mod publish;
pub(crate) mod subscribe;
mod wire;

/// Line that is printed when all clients are connected and subscribed.
pub(crate) const READY: &str = "ready";

/// What both sides are told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Where the broker listens.
    #[arg(long)]
    pub(crate) address: String,
    /// Clients of this side.
    #[arg(long)]
    pub(crate) clients: usize,
    /// Quality of service: 0 or 1.
    #[arg(long)]
    pub(crate) qos: u8,
    /// Seconds before measuring.
    #[arg(long)]
    pub(crate) warmup: f64,
    /// Seconds of measuring.
    #[arg(long)]
    pub(crate) seconds: f64,
}

impl Common {
    fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// What the publishers' side measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Published {
    /// Messages a second: acknowledged ones at QoS 1, written ones at QoS 0.
    pub(crate) rate: f64,
    /// Share of a processor that the generator used.
    pub(crate) load: f64,
}

/// What the subscribers' side measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Delivered {
    /// Messages a second, of all clients together.
    pub(crate) rate: f64,
    /// Time from sending to arrival, in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Share of a processor that the generator used.
    pub(crate) load: f64,
    /// Processor seconds that the broker used for a million deliveries.
    pub(crate) broker_cpu: f64,
    /// Resident bytes of the broker at the end.
    pub(crate) broker_rss: u64,
}
