//! Many who do nothing: idle connections, and subscriptions that nothing matches.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Contender,
    generator::{Broker, PAYLOAD},
};
use crate::{
    Plan,
    mqtt::{Delivered, Published, hold::Held},
    process,
};

/// Name of the load beside many subscriptions, in tables.
pub(super) const SUBSCRIPTIONS_NAME: &str = "fan-in 20 → 1, QoS 1, beside 100,000 wildcard subscriptions";

/// Clients with many subscriptions, and subscriptions of each: as many as our broker allows a session by default.
const SUBSCRIBERS: usize = 100;
const SUBSCRIPTIONS: usize = 1_000;

/// Publishers beside them, and topics of each: more together than a broker may be thought to know by heart.
const PUBLISHERS: usize = 20;
const TOPICS: usize = 1_000;

/// Seconds that a run beside subscriptions may take at most, of which they have to stay.
const STAY: f64 = 3_600.0;

/// Files that a process has open beside its connections.
const OTHER_FILES: u64 = 200;

/// Time for a broker to come to rest after many connected.
const REST: Duration = Duration::from_secs(5);

/// Memory of a broker before and after many connected.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    pub(super) connections: usize,
    /// Resident bytes.
    pub(super) before: u64,
    pub(super) after: u64,
    /// Seconds until all were connected.
    pub(super) took: f64,
}

impl Idle {
    /// Bytes of one connection.
    pub(super) fn of_each(&self) -> f64 {
        self.after.saturating_sub(self.before) as f64 / self.connections as f64
    }
}

/// Connects many clients that then say nothing.
pub(super) fn idle(plan: &Plan, contender: Contender, encrypted: bool) -> Result<Idle> {
    let connections = plan.idle_connections;
    ensure!(
        plan.open_files >= connections as u64 + OTHER_FILES,
        "{connections} connections need as many open files, and {OTHER_FILES} others: this system allows {}",
        plan.open_files
    );
    let mut arguments = vec![
        format!("--clients={connections}"),
        format!("--seconds={}", 2.0 * REST.as_secs_f64()),
    ];
    let broker = if encrypted {
        Broker::with(plan, |folder, port| {
            let (broker, certificate) = contender.start_encrypted(plan, folder.path(), port)?;
            arguments.push(format!("--certificate={}", certificate.display()));
            Ok(broker)
        })?
    } else {
        Broker::start(plan, contender)?
    };
    let before = process::memory(broker.program.id())?.resident;
    let mut holding = broker.side("hold", &arguments)?;
    broker.ready(&mut holding)?;
    std::thread::sleep(REST);
    let after = process::memory(broker.program.id())?.resident;
    let held: Held = broker.result(holding)?;
    ensure!(
        held.lost == 0,
        "{} of {connections} connections were lost",
        held.lost
    );
    Ok(Idle {
        connections,
        before,
        after,
        took: held.took,
    })
}

/// The same load without and with many subscriptions.
#[derive(Clone, Debug)]
pub(super) struct Subscribed {
    pub(super) without: f64,
    pub(super) with: f64,
    /// Resident bytes with them, under load.
    pub(super) resident: u64,
}

impl Subscribed {
    /// Share of the rate that is left.
    pub(super) fn kept(&self) -> f64 {
        self.with / self.without
    }
}

/// Measures a load without and with many subscriptions that nothing matches.
pub(super) fn subscriptions(plan: &Plan, contender: Contender) -> Result<Subscribed> {
    let without = load(&Broker::start(plan, contender)?)?;
    let broker = Broker::start(plan, contender)?;
    let arguments = [
        format!("--clients={SUBSCRIBERS}"),
        format!("--filters={SUBSCRIPTIONS}"),
        format!("--seconds={STAY}"),
    ];
    let mut holding = broker.side("hold", &arguments)?;
    broker.ready(&mut holding)?;
    let with = load(&broker)?;
    Ok(Subscribed {
        without: without.rate,
        with: with.rate,
        resident: with.broker_rss,
    })
}

fn load(broker: &Broker<'_>) -> Result<Delivered> {
    let arriving = broker.measuring("subscribe", 1, 1, &[])?;
    let more = [format!("--payload={PAYLOAD}"), format!("--topics={TOPICS}")];
    let sending = broker.measuring("publish", PUBLISHERS, 1, &more)?;
    let delivered = broker.result(arriving)?;
    let _: Published = broker.result(sending)?;
    Ok(delivered)
}
