//! Delivers one parcel and settles what became of it.

use std::{sync::Arc, time::Duration};

use foreshore_control::queue::{Error as QueueError, OpenPath, Settlement};
use foreshore_record::Lane;
use foreshore_runtime::Backoff;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::{
    health::reason,
    parcel::{Parcel, Part},
    sink::{Batch, Delivery, Output, Sink, SinkError},
};

/// How a parcel is delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Tries before an entry that the sink refuses becomes a dead letter.
    pub(crate) max_attempts: u32,
    /// Longest wait for the sink's acknowledgement.
    pub(crate) timeout: Duration,
    /// Shortest and longest wait between tries.
    pub(crate) backoff: (Duration, Duration),
}

/// Everything that a delivery needs beside the parcel. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) path: Arc<str>,
    pub(crate) open: Arc<dyn OpenPath>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) policy: Arc<Policy>,
}

/// What became of a parcel.
pub(crate) struct Delivered {
    /// What was settled, durably.
    pub(crate) settled: Vec<Settlement>,
    /// What is left of the parcel, and why; nothing when all of it was settled.
    pub(crate) setback: Option<(Parcel, SinkError)>,
}

/// Longest wait between tries of an entry that the sink refuses; other parcels wait behind it.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(2);

impl Way {
    /// Delivers a parcel, piece by piece where the sink refuses it as a whole, and settles what became of it.
    ///
    /// # Errors
    /// When the queue can't be settled any more: [`QueueError::Fenced`], [`QueueError::Closed`],
    /// [`QueueError::NotFound`], [`QueueError::Forbidden`]. The parcel's entries come again with the next opening.
    pub(crate) async fn carry(&self, mut parcel: Parcel, lane: Lane) -> Result<Delivered, QueueError> {
        let mut settlements = Vec::new();
        // Parts that are to be delivered, the first one last.
        let mut parts = vec![parcel.whole()];
        let mut setback = None;
        while let Some(part) = parts.pop() {
            match self.deliver(&parcel, &part, lane).await {
                Ok(done) => settlements.extend(done),
                Err(Refusal::Sink(error)) => {
                    parts.push(part);
                    setback = Some(error);
                    break;
                }
                Err(Refusal::Halve(first, second)) => parts.extend([second, first]),
            }
        }
        if !settlements.is_empty() {
            self.settle(&settlements).await?;
        }
        let setback = setback.map(|error| {
            parts.reverse();
            parcel.retain(&parts);
            (parcel, error)
        });
        Ok(Delivered {
            settled: settlements,
            setback,
        })
    }

    /// Delivers a part and returns how its entries leave.
    async fn deliver(&self, parcel: &Parcel, part: &Part, lane: Lane) -> Result<Vec<Settlement>, Refusal> {
        if !part.has_outputs() {
            return Ok(parcel.settlements(part, |_| Delivery::Delivered).collect());
        }
        let mut tries = parcel.attempts(part);
        let (shortest, longest) = self.policy.backoff;
        let mut backoff = Backoff::new(shortest.min(MAX_REFUSAL_WAIT), longest.min(MAX_REFUSAL_WAIT));
        loop {
            let cause = match self.attempt(parcel, part, lane).await {
                Ok(deliveries) => return Ok(settle_each(parcel, part, deliveries)),
                Err(SinkError::Rejected { cause }) => cause,
                Err(error) => return Err(Refusal::Sink(error)),
            };
            if let Some((first, second)) = parcel.halves(part) {
                debug!(path = %self.path, %cause, "batch is refused, its halves are tried");
                return Err(Refusal::Halve(first, second));
            }
            tries += 1;
            if tries >= self.policy.max_attempts {
                let reason = format!("refused {tries} times: {cause}");
                let refused = |_: &Output| Delivery::DeadLetter {
                    reason: reason.clone(),
                };
                return Ok(parcel.settlements(part, refused).collect());
            }
            sleep(backoff.next_delay()).await;
        }
    }

    async fn attempt(&self, parcel: &Parcel, part: &Part, lane: Lane) -> Result<Vec<Delivery>, SinkError> {
        let intervals = parcel.intervals(part);
        let outputs = parcel.outputs(part);
        let batch = Batch {
            path: &self.path,
            path_epoch: self.open.epoch(),
            lane,
            settles: &intervals,
            outputs,
        };
        let Ok(delivered) = timeout(self.policy.timeout, self.sink.deliver(batch)).await else {
            let cause = format!(
                "no acknowledgement within {} s",
                self.policy.timeout.as_secs_f64()
            );
            return Err(SinkError::retryable(reason::TIMEOUT, cause));
        };
        let deliveries = delivered?;
        if deliveries.len() != outputs.len() {
            let cause = format!(
                "sink answered for {} of {} outputs",
                deliveries.len(),
                outputs.len()
            );
            return Err(SinkError::fatal(reason::SINK_FAULT, cause));
        }
        Ok(deliveries)
    }

    /// Settles, as often as it takes while the broker is away.
    async fn settle(&self, settlements: &[Settlement]) -> Result<(), QueueError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match self.open.settle(settlements.to_vec()).await {
                Err(QueueError::Unavailable { cause }) => {
                    warn!(path = %self.path, %cause, settlements = settlements.len(), "not settled yet");
                    sleep(backoff.next_delay()).await;
                }
                settled => return settled,
            }
        }
    }
}

/// Why a part was not delivered.
enum Refusal {
    /// The sink does not work.
    Sink(SinkError),
    /// The sink refuses something in it.
    Halve(Part, Part),
}

fn settle_each(parcel: &Parcel, part: &Part, deliveries: Vec<Delivery>) -> Vec<Settlement> {
    let mut deliveries = deliveries.into_iter();
    let settlements = parcel.settlements(part, move |_| {
        // Excluded: their number was compared.
        deliveries.next().unwrap_or_else(|| Delivery::DeadLetter {
            reason: "sink gave no answer".to_owned(),
        })
    });
    settlements.collect()
}
