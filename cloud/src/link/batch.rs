//! From a batch to a commit and its acknowledgement.

use std::{sync::Arc, thread::available_parallelism};

use foreshore_edgelink::{
    Entry, batch,
    interval::settled,
    lane::to_proto,
    limits::MAX_PATH_LEN,
    proto::{self, NackReason},
    record,
};
use foreshore_record::Lane;
use jiff::Timestamp;
use tokio::{sync::Semaphore, task::spawn_blocking};
use tracing::{debug, warn};

use super::lanes::{Body, Complete, Unreadable};
use crate::{
    metrics::{LinkMetrics, OutputOutcome},
    samples::Samples,
    store::{
        Priority, Store, StoreError,
        ingest::{DeliveredEntry, Delivery, Kept},
        ledger::Fenced,
    },
};

/// After this time an edge tries again what the store could not take.
const RETRY_AFTER_MS: u32 = 1_000;

/// What the edges' batches go through. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ingest {
    store: Store,
    metrics: LinkMetrics,
    max_batch_bytes: usize,
    max_record_bytes: usize,
    /// Batches that are decoded at a time. Alarms do not wait for others.
    urgent: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// Who delivers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deliverer {
    /// The edge.
    pub(crate) edge: i64,
    /// Which of its processes.
    pub(crate) boot: i64,
}

/// A batch that is done, committed or not.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) lane: Lane,
    pub(crate) held: u64,
    /// What the edge is told.
    pub(crate) answer: proto::cloud_frame::Frame,
}

/// Why a batch is not committed.
#[derive(Debug)]
struct NotKept {
    reason: NackReason,
    cause: String,
    retry_after_ms: Option<u32>,
}

impl NotKept {
    fn malformed(cause: impl ToString) -> Self {
        Self {
            reason: NackReason::Malformed,
            cause: cause.to_string(),
            retry_after_ms: None,
        }
    }
}

impl From<StoreError> for NotKept {
    fn from(error: StoreError) -> Self {
        let retry_after_ms = Some(RETRY_AFTER_MS);
        Self {
            reason: NackReason::Unavailable,
            cause: error.to_string(),
            retry_after_ms,
        }
    }
}

impl From<Fenced> for NotKept {
    fn from(fenced: Fenced) -> Self {
        Self {
            reason: NackReason::Fenced,
            cause: fenced.to_string(),
            retry_after_ms: None,
        }
    }
}

impl From<Unreadable> for NotKept {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::TooLarge { found, allowed } => Self {
                reason: NackReason::TooLarge,
                cause: format!("the batch has {found} bytes, {allowed} are allowed"),
                retry_after_ms: None,
            },
            Unreadable::Longer { declared } => Self::malformed(format!(
                "the body is longer than the {declared} bytes that its header declares"
            )),
            Unreadable::NoMemory => Self {
                reason: NackReason::Unavailable,
                cause: "batches of other edges fill the memory".to_owned(),
                retry_after_ms: Some(RETRY_AFTER_MS),
            },
        }
    }
}

impl Ingest {
    pub(crate) fn new(
        store: Store,
        metrics: LinkMetrics,
        max_batch_bytes: usize,
        max_record_bytes: usize,
    ) -> Self {
        let at_a_time = available_parallelism().map_or(2, usize::from);
        let permits = || Arc::new(Semaphore::new(at_a_time));
        Self {
            store,
            metrics,
            max_batch_bytes,
            max_record_bytes,
            urgent: permits(),
            others: permits(),
        }
    }

    /// Commits a batch, and tells what the edge is to hear of it: that comes after the commit.
    pub(crate) async fn process(&self, deliverer: Deliverer, complete: Complete) -> Done {
        let Complete {
            lane,
            header,
            body,
            held,
        } = complete;
        let (number, path) = (header.number, header.path.clone());
        let kept = match body {
            Ok(body) => self.keep(deliverer, lane, header, body).await,
            Err(unreadable) => Err(unreadable.into()),
        };
        let lane_number = to_proto(lane);
        let answer = match kept {
            Ok(kept) => {
                self.count(lane, &kept);
                proto::cloud_frame::Frame::Ack(ack(number, lane_number, path, kept))
            }
            Err(NotKept {
                reason,
                cause,
                retry_after_ms,
            }) => {
                self.metrics.nack(reason.as_str_name());
                warn!(edge = deliverer.edge, path, %lane, reason = reason.as_str_name(), "batch not kept: {cause}");
                let reason = reason.into();
                proto::cloud_frame::Frame::Nack(proto::Nack {
                    number,
                    lane: lane_number,
                    path,
                    reason,
                    cause,
                    retry_after_ms,
                })
            }
        };
        Done { lane, held, answer }
    }

    async fn keep(
        &self,
        deliverer: Deliverer,
        lane: Lane,
        header: proto::Batch,
        body: Body,
    ) -> Result<Kept, NotKept> {
        let decoding = if lane == Lane::Alarm {
            &self.urgent
        } else {
            &self.others
        };
        let permit = decoding.acquire().await.map_err(|_| StoreError::Closed)?;
        let (max_batch_bytes, max_record_bytes) = (self.max_batch_bytes, self.max_record_bytes);
        let decode = move || {
            let delivery = read(deliverer, header, &body, max_batch_bytes, max_record_bytes);
            // The memory is the batch's until it is committed.
            delivery.map(|delivery| (delivery, body))
        };
        let (delivery, body) = spawn_blocking(decode).await.map_err(NotKept::malformed)??;
        drop(permit);
        let weight = delivery.weight();
        let kept = self
            .store
            .write(Priority::Lane(lane), weight, move |context| {
                delivery.keep(context)
            })
            .await?;
        drop(body);
        Ok(kept?)
    }

    fn count(&self, lane: Lane, kept: &Kept) {
        let refused = kept.refused.iter().map(|entry| u64::from(entry.outputs)).sum();
        for (outcome, count) in [
            (OutputOutcome::Committed, kept.committed),
            (OutputOutcome::Repeated, kept.repeated),
            (OutputOutcome::Refused, refused),
        ] {
            if count > 0 {
                self.metrics.outputs(lane, outcome, count);
            }
        }
        self.metrics.committed(lane, &kept.observed_at, Timestamp::now());
        if kept.repeated > 0 {
            debug!(%lane, repeated = kept.repeated, "repeats recognised");
        }
    }
}

/// Reads a batch: everything that needs no database.
fn read(
    deliverer: Deliverer,
    header: proto::Batch,
    body: &Body,
    max_batch_bytes: usize,
    max_record_bytes: usize,
) -> Result<Delivery, NotKept> {
    if header.path.is_empty() || header.path.len() > MAX_PATH_LEN {
        let found = header.path.len();
        return Err(NotKept::malformed(format!(
            "the path has {found} bytes, 1 to {MAX_PATH_LEN} are allowed"
        )));
    }
    let settles = settled(&header.settles).map_err(NotKept::malformed)?;
    let entries =
        batch::decode(&header, body.bytes.clone(), &settles, max_batch_bytes).map_err(NotKept::malformed)?;
    let received_at = Timestamp::now();
    let (mut values, mut delivered) = (Samples::default(), Vec::<DeliveredEntry>::new());
    for Entry {
        store_epoch,
        id,
        index,
        record,
    } in entries
    {
        if index == 0 {
            delivered.push(DeliveredEntry {
                store_epoch,
                id,
                outputs: Vec::new(),
                refused: None,
            });
        }
        // The first output of every entry has the index 0: the decoder says so.
        let Some(entry) = delivered.last_mut() else {
            continue;
        };
        let size = record::size(&record);
        if size > max_record_bytes {
            entry.refused = Some(format!(
                "the record has {size} bytes, {max_record_bytes} are allowed"
            ));
        } else {
            values.add(&record, received_at);
        }
        entry.outputs.push(values.samples.len());
    }
    Ok(Delivery {
        edge: deliverer.edge,
        boot: deliverer.boot,
        path: header.path,
        path_epoch: header.path_epoch,
        settles,
        entries: delivered,
        values,
        received_at,
    })
}

fn ack(number: u64, lane: i32, path: String, kept: Kept) -> proto::Ack {
    let refused = kept.refused.into_iter().flat_map(|entry| {
        (0..entry.outputs).map(move |index| proto::RefusedOutput {
            store_epoch: entry.store_epoch,
            id: entry.id,
            index,
            reason: entry.reason.clone(),
        })
    });
    proto::Ack {
        number,
        lane,
        path,
        committed: kept.done.into_iter().map(proto::Interval::from).collect(),
        refused: refused.collect(),
    }
}
