//! Messages for one persistent session whose client is away: each has to be kept, and on our disk before it is
//! acknowledged. Afterwards the client comes back, and every message that was acknowledged has to be there.

use anyhow::{Result, ensure};

use super::{
    Contender,
    generator::{Broker, PAYLOAD},
};
use crate::{
    Plan,
    mqtt::{Published, away::Taken},
};

/// Its name in tables.
pub(super) const NAME: &str = "fan-in 200 → 1, QoS 1, the persistent session is away";

/// Clients that publish.
const PUBLISHERS: usize = 200;

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) published: Published,
    pub(super) taken: Taken,
}

pub(super) fn run(plan: &Plan, contender: Contender) -> Result<Run> {
    let broker = Broker::start(plan, contender)?;
    let () = broker.result(broker.side("leave", &[])?)?;
    let more = [format!("--payload={PAYLOAD}")];
    let published: Published = broker.result(broker.measuring("publish", PUBLISHERS, 1, &more)?)?;
    let acknowledged: Vec<String> = published.acknowledged.iter().map(u64::to_string).collect();
    let acknowledged = format!("--acknowledged={}", acknowledged.join(","));
    let taken: Taken = broker.result(broker.side("take", &[acknowledged])?)?;
    let sum: u64 = published.acknowledged.iter().sum();
    ensure!(
        taken.count >= sum,
        "{sum} messages were acknowledged, {} came",
        taken.count
    );
    Ok(Run { published, taken })
}
