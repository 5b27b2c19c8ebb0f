//! Batches that wait for their turn, by lane.

use std::collections::VecDeque;

use bytes::Bytes;
use foreshore_edgelink::proto;
use foreshore_record::Lane;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// What became of a batch.
pub(crate) type Reply = Result<proto::Ack, Failure>;

/// Why a batch was not committed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Failure {
    /// The link ended before an answer.
    LinkLost(String),
    /// The cloud refused it.
    Nack(proto::Nack),
}

/// A batch on its way to the stream.
pub(crate) struct Outgoing {
    /// Header without number and body.
    pub(crate) header: proto::Batch,
    /// Parts of the body, the next one first.
    pub(crate) parts: VecDeque<Bytes>,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// Batches by lane. Bounded by its users: each sink has few batches on the way.
#[derive(Default)]
pub(crate) struct Outbox {
    lanes: Mutex<[VecDeque<Outgoing>; Lane::COUNT]>,
    arrived: Notify,
}

impl Outbox {
    /// Adds a batch.
    pub(crate) fn push(&self, lane: Lane, outgoing: Outgoing) {
        if let Some(waiting) = self.lanes.lock().get_mut(lane.index()) {
            waiting.push_back(outgoing);
        }
        self.arrived.notify_one();
    }

    /// Takes the next batch of a lane; those that nobody waits for any more are left out.
    pub(crate) fn take(&self, lane: Lane) -> Option<Outgoing> {
        let mut lanes = self.lanes.lock();
        let waiting = lanes.get_mut(lane.index())?;
        while let Some(outgoing) = waiting.pop_front() {
            if !outgoing.reply.is_closed() {
                return Some(outgoing);
            }
        }
        None
    }

    /// Resolves when a batch has arrived since the last call.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Tells everybody who waits that the link is gone.
    pub(crate) fn fail_all(&self, cause: &str) {
        for waiting in self.lanes.lock().iter_mut() {
            for outgoing in waiting.drain(..) {
                // Nobody may be waiting any more, which is as well.
                drop(outgoing.reply.send(Err(Failure::LinkLost(cause.to_owned()))));
            }
        }
    }
}
