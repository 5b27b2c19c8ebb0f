//! Acknowledgements: each connection's in the order of arrival, and none before the commit of what it acknowledges.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use foreshore_record::Qos;
use foreshore_store::{Applied, Completion, Refusal, StoreError};

use super::{Connection, ending::Ending};
use crate::{
    engine::{Engine, publish::Outbound, route::Route, trace::Traced},
    inspect::trace,
    shared::Group,
    state_store::Answered,
    wire::{ReasonCode, encode, packet::AckKind},
};

/// Acknowledgements that wait.
#[derive(Debug, Default)]
pub(super) struct Acks {
    batches: VecDeque<AckBatch>,
    waiting: usize,
}

/// Acknowledgements of one batch of operations.
#[derive(Debug)]
pub(super) struct AckBatch {
    /// Resolves when the batch is durable; `None` when there is nothing to wait for.
    pub(super) completion: Option<Durable>,
    /// What follows then, in order of arrival.
    pub(super) items: Vec<AckItem>,
}

/// Resolves when something is durable, with what became of it.
#[derive(Debug)]
pub(super) enum Durable {
    /// A batch of operations.
    Batch(Completion),
    /// A request to the state store, whose operations concern nobody here.
    Request(Answered),
}

impl Future for Durable {
    type Output = Result<Vec<Applied>, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Batch(completion) => Pin::new(completion).poll(context),
            Self::Request(answered) => Pin::new(answered)
                .poll(context)
                .map(|answered| answered.unwrap_or(Err(StoreError::Closed)).map(|()| Vec::new())),
        }
    }
}

/// What follows from an operation that is durable.
#[derive(Debug)]
pub(super) struct AckItem {
    /// Which operation of the batch; `None` when nothing was stored.
    pub(super) operation: Option<usize>,
    /// What follows.
    pub(super) what: What,
}

/// What follows from an operation that is durable.
#[derive(Debug)]
pub(super) enum What {
    /// A message was taken in.
    Message {
        /// Packet identifier; 0 with quality of service 0.
        packet_id: u16,
        /// Quality of service.
        qos: Qos,
        /// What the client is told if all went well.
        reason: ReasonCode,
        /// What a role of ours is told besides.
        detail: Option<Arc<str>>,
        /// The message, if it is delivered live only now.
        delayed: Option<Outbound>,
        /// Whose readers are waiting for the commit.
        route: Option<Arc<Route>>,
        /// Where its hops are recorded, if somebody asked about it.
        traced: Option<Arc<Traced>>,
    },
    /// A message of the client with quality of service 2 was released.
    Released(u16, ReasonCode),
    /// Subscriptions were stored.
    Subscribed(u16, Vec<ReasonCode>),
    /// Subscriptions were forgotten.
    Unsubscribed(u16, Vec<ReasonCode>),
    /// A group has a durable queue.
    GroupQueue(Arc<Group>),
}

impl Acks {
    /// How many acknowledgements wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Adds acknowledgements.
    pub(super) fn push(&mut self, batch: AckBatch) {
        self.waiting += batch.items.len();
        self.batches.push_back(batch);
    }

    /// The next acknowledgements whose operations are durable, with what became of them.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Done>> {
        let Some(front) = self.batches.front_mut() else {
            return Poll::Ready(None);
        };
        let applied = match &mut front.completion {
            None => Ok(Vec::new()),
            Some(completion) => match Pin::new(completion).poll(context) {
                Poll::Ready(applied) => applied,
                Poll::Pending => return Poll::Pending,
            },
        };
        let items = self
            .batches
            .pop_front()
            .map(|batch| batch.items)
            .unwrap_or_default();
        self.waiting -= items.len();
        Poll::Ready(Some(Done { items, applied }))
    }

    /// Does what has to follow from operations even when the client is gone.
    pub(super) async fn finish(mut self, engine: Arc<Engine>) {
        while let Some(Done { items, applied }) =
            std::future::poll_fn(|context| self.poll_next(context)).await
        {
            let Ok(applied) = applied else { return };
            for item in items {
                let _nobody_to_tell = item.take_effect(&engine, None, &applied);
                if let What::Message {
                    traced: Some(traced), ..
                } = item.what
                {
                    traced.record(trace::Hop::Unanswered);
                }
            }
        }
    }
}

struct Done {
    items: Vec<AckItem>,
    applied: Result<Vec<Applied>, StoreError>,
}

impl AckItem {
    /// Delivers what waited for the commit, and tells what the client is to be told.
    fn take_effect(
        &self,
        engine: &Arc<Engine>,
        local: Option<&crate::engine::shard::Shard>,
        applied: &[Applied],
    ) -> ReasonCode {
        let applied = self.operation.and_then(|operation| applied.get(operation));
        match (&self.what, applied) {
            (What::Message { traced, .. }, Some(Applied::Refused(refusal))) => {
                if let Some(traced) = traced {
                    traced.not_stored(refusal);
                }
                refused(engine, refusal)
            }
            (
                What::Message {
                    delayed,
                    route,
                    reason,
                    traced,
                    ..
                },
                Some(Applied::Published { id, passed_over }),
            ) => {
                if let Some(traced) = traced {
                    traced.stored(*id);
                }
                if let Some(outbound) = delayed {
                    engine.fan_out(local, outbound, *id);
                }
                if let Some(route) = route {
                    engine.committed(route, *id);
                }
                if let Some(traced) = traced {
                    traced.passed_over(passed_over);
                }
                *reason
            }
            (What::Message { reason, .. }, _) => *reason,
            (What::GroupQueue(group), Some(Applied::Receiver { receiver, .. })) => {
                group.make_durable(*receiver);
                ReasonCode::Success
            }
            _ => ReasonCode::Success,
        }
    }
}

fn refused(engine: &Engine, refusal: &Refusal) -> ReasonCode {
    match refusal {
        Refusal::Repeated => ReasonCode::Success,
        Refusal::Fenced { .. } => {
            engine.stats.refused.inc();
            ReasonCode::NotAuthorized
        }
        Refusal::QueueFull { .. } | Refusal::NoSpace => {
            engine.stats.refused.inc();
            ReasonCode::QuotaExceeded
        }
    }
}

impl Connection {
    /// Sends acknowledgements whose operations are durable.
    pub(super) fn poll_acks(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let mut progress = false;
        while let Poll::Ready(Some(Done { items, applied })) = self.receiving.acks.poll_next(context) {
            let applied = applied.map_err(|error| Ending::store_failed(&error))?;
            for item in items {
                let reason = item.take_effect(&self.engine, Some(&self.shard), &applied);
                self.acknowledge(item.what, reason)?;
            }
            progress = true;
        }
        Ok(progress)
    }

    fn acknowledge(&mut self, what: What, reason: ReasonCode) -> Result<(), Box<Ending>> {
        let version = self.client.version;
        let out = self.out.tail();
        match what {
            What::Message {
                packet_id,
                qos,
                detail,
                traced,
                ..
            } => {
                if qos == Qos::AtMostOnce {
                    return Ok(());
                }
                // Below version 5 there is no way to refuse a message but to end the connection.
                if reason.is_error() && !version.is_v5() {
                    if let Some(traced) = &traced {
                        traced.record(trace::Hop::Unanswered);
                    }
                    return Err(Ending::refused(reason, "a message was refused").into());
                }
                let kind = if qos == Qos::AtLeastOnce {
                    AckKind::PubAck
                } else {
                    AckKind::PubRec
                };
                match detail.filter(|_| version.is_v5()) {
                    Some(detail) => encode::ack_with(kind, packet_id, reason, &detail, out),
                    None => encode::ack(version, kind, packet_id, reason, out),
                }
                if let Some(traced) = &traced {
                    traced.record(trace::Hop::Answered {
                        packet: trace::hop::packet_name(kind),
                        code: reason.code(),
                        reason: reason.text(),
                    });
                }
                if qos == Qos::ExactlyOnce {
                    if !reason.is_error() {
                        self.receiving
                            .traced
                            .extend(traced.map(|traced| (packet_id, traced)));
                        return Ok(());
                    }
                    self.state.inbound.remove(&packet_id);
                }
                self.receiving.unacknowledged = self.receiving.unacknowledged.saturating_sub(1);
            }
            What::Released(packet_id, reason) => {
                encode::ack(version, AckKind::PubComp, packet_id, reason, out);
            }
            What::Subscribed(packet_id, reasons) => {
                let start = out.len();
                encode::suback(version, packet_id, &reasons, out);
                self.end_if_too_large(start)?;
            }
            What::Unsubscribed(packet_id, reasons) => {
                let start = out.len();
                encode::unsuback(version, packet_id, &reasons, out);
                self.end_if_too_large(start)?;
            }
            What::GroupQueue(_) => {}
        }
        Ok(())
    }

    /// Ends the connection of a client that asked for more at once than it takes the answer to ([MQTT-3.1.2-24]); the
    /// answer begins at `start`.
    fn end_if_too_large(&mut self, start: usize) -> Result<(), Box<Ending>> {
        let out = self.out.tail();
        if out.len() - start <= self.client.maximum_packet_size {
            return Ok(());
        }
        out.truncate(start);
        let detail = "the answer is larger than the client's maximum packet size";
        Err(Ending::refused(ReasonCode::PacketTooLarge, detail).into())
    }
}
