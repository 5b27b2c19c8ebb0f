//! From a batch to its acknowledgement.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_edgelink::{Body, BodyError, Entry, lane::to_proto, proto};
use foreshore_northbound::{Batch, Capabilities, Delivery, Output, Sink, SinkError};
use foreshore_record::Interval;
use tokio::{sync::oneshot, task::spawn_blocking};

use crate::{
    link::Link,
    outbox::{Failure, Outgoing},
};

/// Batches are small, so that a live one need not wait long behind one of the backlog.
const BATCH_BYTES: usize = 256 * 1024;
/// Most outputs in a batch.
const BATCH_OUTPUTS: usize = 2_000;
/// Batches of one sink on the way at once: covers the way there and back on slow links.
const INFLIGHT: usize = 4;
/// How long a batch waits for a link that is being opened.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// A sink on a link to a cloud endpoint.
pub(crate) struct CloudSink {
    link: Arc<Link>,
}

impl CloudSink {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }
}

#[async_trait]
impl Sink for CloudSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_outputs: BATCH_OUTPUTS,
            max_bytes: BATCH_BYTES,
            deduplicates: true,
            max_inflight: INFLIGHT,
        }
    }

    async fn deliver(&self, batch: Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
        self.link.connected(CONNECT_PATIENCE).await?;
        let entries: Vec<_> = batch
            .outputs
            .iter()
            .map(|output| Entry {
                store_epoch: output.store_epoch,
                id: output.id,
                index: output.index,
                record: Arc::clone(&output.record),
            })
            .collect();
        let codec = self.link.codec();
        // Compression takes milliseconds, which other tasks should not wait for.
        let body = spawn_blocking(move || Body::encode(&entries, codec)).await;
        let body = body
            .map_err(|error| SinkError::retryable("EncodingFailed", error))?
            .map_err(|error| match error {
                BodyError::TooLarge { .. } | BodyError::TooManyOutputs => SinkError::Rejected {
                    cause: error.to_string(),
                },
                error => SinkError::retryable("EncodingFailed", error),
            })?;
        let lane = batch.lane;
        let header = proto::Batch {
            number: 0,
            lane: to_proto(lane),
            path: batch.path.to_owned(),
            path_epoch: batch.path_epoch,
            settles: batch.settles.iter().copied().map(proto::Interval::from).collect(),
            codec: body.codec.to_proto(),
            length: body.length,
            crc: body.crc,
            body: bytes::Bytes::new(),
            more: false,
        };
        let (reply, answer) = oneshot::channel();
        self.link.outbox().push(
            lane,
            Outgoing {
                header,
                parts: body.parts().collect(),
                reply,
            },
        );
        let answer = answer
            .await
            .unwrap_or_else(|_| Err(Failure::LinkLost("the link ended".to_owned())));
        let ack = answer.map_err(explain)?;
        let committed: Vec<Interval> = ack.committed.iter().map(Interval::from).collect();
        let refused: HashMap<(u64, u64, u32), String> = ack
            .refused
            .into_iter()
            .map(|output| ((output.store_epoch, output.id, output.index), output.reason))
            .collect();
        // Only what the cloud says it holds is settled, whatever it acknowledged.
        let is_held = |output: &Output| {
            committed
                .iter()
                .any(|interval| interval.contains(output.store_epoch, output.id))
                || refused.contains_key(&(output.store_epoch, output.id, output.index))
        };
        if let Some(output) = batch.outputs.iter().find(|output| !is_held(output)) {
            let cause = format!(
                "the cloud endpoint acknowledged a batch without its entry {}",
                output.id
            );
            return Err(SinkError::retryable("ProtocolError", cause));
        }
        Ok(batch
            .outputs
            .iter()
            .map(
                |output| match refused.get(&(output.store_epoch, output.id, output.index)) {
                    Some(reason) => Delivery::DeadLetter {
                        reason: reason.clone(),
                    },
                    None => Delivery::Delivered,
                },
            )
            .collect())
    }

    async fn probe(&self) -> Result<(), SinkError> {
        self.link.connected(CONNECT_PATIENCE).await
    }
}

/// What a refused batch means for the engine.
fn explain(failure: Failure) -> SinkError {
    use proto::NackReason;
    match failure {
        Failure::LinkLost(cause) => SinkError::retryable("Unreachable", cause),
        Failure::Nack(nack) => match NackReason::try_from(nack.reason) {
            Ok(NackReason::Malformed | NackReason::TooLarge) => SinkError::Rejected { cause: nack.cause },
            // The engine learns from the broker that it is fenced, and ends.
            Ok(NackReason::Fenced) => SinkError::retryable("Fenced", nack.cause),
            Ok(NackReason::Unavailable | NackReason::Unspecified) | Err(_) => SinkError::Retryable {
                reason: "Unavailable",
                cause: nack.cause,
                after: nack
                    .retry_after_ms
                    .map(|after| Duration::from_millis(after.into())),
            },
        },
    }
}
