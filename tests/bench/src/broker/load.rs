//! Fan-in, fan-out and pairs.

use anyhow::Result;

use super::{
    Contender,
    generator::{Broker, PAYLOAD},
};
use crate::{
    Plan,
    mqtt::{Delivered, Published},
};

/// Clients on the side that has many.
const MANY: usize = 200;

/// Publishers that have a subscriber of their own.
const PAIRS: usize = 100;

/// A load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) contenders: &'static [Contender],
    publishers: usize,
    subscribers: usize,
    /// Whether each subscriber takes the messages of one publisher only.
    pairs: bool,
    pub(super) qos: u8,
    /// Whether the subscribers' sessions outlive their connections.
    persistent: bool,
    /// Messages a second of each publisher; as many as go through where it is left out.
    rate: Option<u32>,
}

const FAN_IN: Scenario = Scenario {
    name: "fan-in 200 → 1, QoS 1",
    contenders: &Contender::ALIKE,
    publishers: MANY,
    subscribers: 1,
    pairs: false,
    qos: 1,
    persistent: false,
    rate: None,
};

const FAN_OUT: Scenario = Scenario {
    name: "fan-out 1 → 200, QoS 1",
    publishers: 1,
    subscribers: MANY,
    ..FAN_IN
};

/// Places of the loads that floors are about.
pub(super) const FAN_IN_AT: usize = 0;
pub(super) const FAN_OUT_AT: usize = 1;
pub(super) const PAIRS_AT: usize = 2;

/// What is measured.
pub(super) const SCENARIOS: [Scenario; 8] = [
    FAN_IN,
    FAN_OUT,
    Scenario {
        name: "100 pairs, 5,000/s in all, QoS 1",
        publishers: PAIRS,
        subscribers: PAIRS,
        pairs: true,
        rate: Some(50),
        ..FAN_IN
    },
    Scenario {
        name: "fan-in 200 → 1, QoS 0",
        qos: 0,
        ..FAN_IN
    },
    Scenario {
        name: "fan-out 1 → 200, QoS 0",
        qos: 0,
        ..FAN_OUT
    },
    Scenario {
        name: "fan-in 200 → 1, QoS 1, persistent session",
        contenders: &Contender::DURABLE,
        persistent: true,
        ..FAN_IN
    },
    Scenario {
        name: "fan-out 1 → 200, QoS 1, persistent sessions",
        contenders: &Contender::DURABLE,
        persistent: true,
        ..FAN_OUT
    },
    Scenario {
        name: "paced 5,000/s, 100 → 1, QoS 1, persistent session",
        contenders: &Contender::DURABLE,
        publishers: PAIRS,
        persistent: true,
        rate: Some(50),
        ..FAN_IN
    },
];

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) published: Published,
    pub(super) delivered: Delivered,
}

pub(super) fn run(plan: &Plan, contender: Contender, scenario: &Scenario) -> Result<Run> {
    let broker = Broker::start(plan, contender)?;
    let mut more = Vec::new();
    if scenario.persistent {
        more.push("--persistent".to_owned());
    }
    if scenario.pairs {
        more.push("--pairs".to_owned());
    }
    let arriving = broker.measuring("subscribe", scenario.subscribers, scenario.qos, &more)?;
    let mut more = vec![format!("--payload={PAYLOAD}")];
    more.extend(scenario.rate.map(|rate| format!("--rate={rate}")));
    let sending = broker.measuring("publish", scenario.publishers, scenario.qos, &more)?;
    let delivered = broker.result(arriving)?;
    let published = broker.result(sending)?;
    Ok(Run { published, delivered })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_are_about_the_loads_that_they_name() {
        assert!(SCENARIOS[FAN_IN_AT].name.starts_with("fan-in 200 → 1, QoS 1"));
        assert!(SCENARIOS[FAN_OUT_AT].name.starts_with("fan-out 1 → 200, QoS 1"));
        let pairs = SCENARIOS[PAIRS_AT];
        assert_eq!(pairs.rate.unwrap() as usize * pairs.publishers, 5_000);
        assert!(pairs.pairs && pairs.publishers == pairs.subscribers);
    }
}
