//! The load generator: publishers in one process, subscribers in another, one thread each.
//!
//! In one process they would take turns, and whoever waits would look like a slow broker.
//!
//! | module | what |
//! |---|---|
//! | `publish` | clients that publish, as quickly as they are acknowledged or at a pace |
//! | `subscribe` | clients that take what is published |
//! | `away` | a client that subscribes, leaves, and comes back for what waits |
//! | `hold` | clients that only are there: connections, and subscriptions that nothing matches |
//! | `wire` | packets |

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub(crate) mod away;
pub(crate) mod hold;
mod latencies;
pub(crate) mod publish;
pub(crate) mod subscribe;
pub(crate) mod wire;

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
    /// Process of the broker, whose processor time and memory are measured.
    #[arg(long)]
    pub(crate) broker: u32,
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
    /// Messages of each client that were acknowledged in the whole run.
    pub(crate) acknowledged: Vec<u64>,
    /// Share of a processor that the generator used.
    pub(crate) load: f64,
    /// Microseconds of a processor that the broker used for each of these messages.
    pub(crate) broker_cpu: f64,
    /// Resident bytes of the broker at the end.
    pub(crate) broker_rss: u64,
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
    /// Microseconds of a processor that the broker used for each delivery.
    pub(crate) broker_cpu: f64,
    /// Resident bytes of the broker at the end.
    pub(crate) broker_rss: u64,
}

/// The numbers of a publisher's messages, as a subscriber sees them: from 1 on, in order, none left out (MQTT 5.0
/// section 4.6).
#[derive(Clone, Debug, Default)]
pub(crate) struct Sequences {
    last: HashMap<Vec<u8>, u64>,
    /// Messages that came again.
    pub(crate) repeated: u64,
}

impl Sequences {
    /// Takes the next number of a topic, which one publisher alone has; tells whether it is new.
    pub(crate) fn take(&mut self, topic: &[u8], number: u64) -> Result<bool> {
        let last = match self.last.get_mut(topic) {
            Some(last) => last,
            None => self.last.entry(topic.to_owned()).or_default(),
        };
        if number <= *last {
            self.repeated += 1;
            return Ok(false);
        }
        if number != *last + 1 {
            let topic = String::from_utf8_lossy(topic);
            bail!("{topic}: message {number} came after {}: lost in between", *last);
        }
        *last = number;
        Ok(true)
    }

    /// The last number of a topic; 0 before the first.
    pub(crate) fn last(&self, topic: &str) -> u64 {
        self.last.get(topic.as_bytes()).copied().unwrap_or(0)
    }

    /// How many different messages came.
    pub(crate) fn count(&self) -> u64 {
        self.last.values().sum()
    }
}

/// The topic of a publisher.
pub(crate) fn topic(client: usize) -> String {
    format!("bench/{client}")
}

/// Reads a list of numbers with commas between them.
pub(crate) fn numbers(text: &str) -> Result<Vec<u64>> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| part.parse().with_context(|| format!("{part:?} is no number")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_are_counted_and_gaps_are_errors() {
        let mut sequences = Sequences::default();
        for (topic, number, is_new) in [("a", 1, true), ("b", 1, true), ("a", 2, true), ("a", 1, false)] {
            assert_eq!(sequences.take(topic.as_bytes(), number).unwrap(), is_new);
        }
        assert_eq!((sequences.count(), sequences.repeated), (3, 1));
        let gap = sequences.take(b"a", 4).unwrap_err().to_string();
        assert_eq!(gap, "a: message 4 came after 2: lost in between");
        assert!(sequences.take(b"c", 2).is_err());
        assert_eq!((sequences.last("a"), sequences.last("z")), (2, 0));
    }

    #[test]
    fn numbers_are_read_from_a_list() {
        assert_eq!(numbers("3,0,12").unwrap(), [3, 0, 12]);
        assert!(numbers("").unwrap().is_empty() && numbers("3,x").is_err());
    }
}
