//! Packets from the client.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use foreshore_record::TopicName;
use foreshore_store::{Direction, Operation, Room, StoreError, Submitted, committer::TrySubmitError};
use tokio::sync::futures::OwnedNotified;

use super::{
    Connection,
    acks::{AckBatch, AckItem, Acks, Durable, What},
    ending::Ending,
    publish::Waiting,
    request::Pending,
};
use crate::{
    engine::{pace::Pace, publish::Outbound, trace::Traced},
    inspect::trace,
    wire::{
        ReasonCode, encode,
        frame::{self, Frame},
        packet::{Ack, AckKind, Disconnect, Packet},
    },
};

/// Messages of one batch.
const MAX_BURST: usize = 256;

/// Bytes that are read at once into a packet that is not complete.
const READ_PART: usize = 16 << 10;

/// What the broker takes from the client.
#[derive(Debug, Default)]
pub(super) struct Receiving {
    /// What was read and not looked at, or is not complete.
    pub(super) input: BytesMut,
    /// Whether the input is known to hold no complete packet.
    incomplete: bool,
    /// Topics of the client's aliases.
    pub(super) aliases: Vec<Option<TopicName>>,
    /// Messages with quality of service 1 or 2 that are not acknowledged for good.
    pub(super) unacknowledged: usize,
    /// What the packets that are being looked at come to.
    pub(super) burst: Burst,
    /// A request to the state store, which comes after the burst and ends it.
    pub(super) request: Option<Box<Pending>>,
    /// Acknowledgements that wait.
    pub(super) acks: Acks,
    /// What waits for room in the committer's queue: the burst, or the request.
    pub(super) submitting: Option<Submitting>,
    /// What to wait for before the next packet is looked at.
    pub(super) waiting: Waiting,
    /// Messages with quality of service 2 whose PUBREL is awaited, if somebody asked about them.
    pub(super) traced: Vec<(u16, Arc<Traced>)>,
    /// What it published, as it is counted against a rate.
    pub(super) pace: Pace,
}

/// What a row of packets comes to.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// What is to be stored.
    pub(super) operations: Vec<Operation>,
    /// Ids that the operations need.
    pub(super) ids: u64,
    /// What is delivered live, and as which of the ids; `None` if it is not stored.
    pub(super) outbound: Vec<(Outbound, Option<u64>)>,
    /// What follows when it is durable.
    pub(super) items: Vec<AckItem>,
}

type SubmitFuture = dyn Future<Output = Result<Submitted, StoreError>>;

type ReserveFuture = dyn Future<Output = Result<Room, StoreError>>;

/// What waits for room in the committer's queue.
pub(super) enum Submitting {
    /// The operations of the burst.
    Burst(Pin<Box<SubmitFuture>>),
    /// The request.
    Request(Pin<Box<ReserveFuture>>),
}

impl std::fmt::Debug for Submitting {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Submitting")
    }
}

impl Burst {
    /// Adds an operation and returns which of the batch it is.
    pub(super) fn operation(&mut self, operation: Operation) -> usize {
        self.ids += operation.ids();
        self.operations.push(operation);
        self.operations.len() - 1
    }

    fn is_empty(&self) -> bool {
        self.operations.is_empty() && self.outbound.is_empty() && self.items.is_empty()
    }
}

impl Receiving {
    pub(super) fn new(input: BytesMut) -> Self {
        Self {
            input,
            ..Self::default()
        }
    }
}

impl Connection {
    /// Reads packets and does what they ask for.
    pub(super) fn poll_receiving(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        if !self.poll_submitting(context)? || !self.receiving.waiting.poll(context) {
            return Ok(false);
        }
        if !self.has_room_outside() || self.receiving.acks.len() > self.max_unacknowledged() {
            return Ok(false);
        }
        if self.receiving.input.is_empty() || self.receiving.incomplete {
            return self.poll_read(context);
        }
        let mut input = std::mem::take(&mut self.receiving.input);
        let taken = self.take_packets(&input)?;
        input.advance(taken);
        if !input.is_empty() {
            self.receiving.input = input;
        }
        self.submit()?;
        Ok(true)
    }

    /// Reads what has arrived, and takes the packets that are complete.
    fn poll_read(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let read = if self.receiving.input.is_empty() {
            let shard = Rc::clone(&self.shard);
            let mut scratch = shard.scratch.borrow_mut();
            let read = self.transport.poll_read(context, &mut scratch);
            if let Poll::Ready(Ok(length @ 1..)) = read {
                let input = &scratch[..length];
                let taken = self.take_packets(input)?;
                self.receiving.input.extend_from_slice(&input[taken..]);
            }
            read
        } else {
            // What is kept grows with what has arrived, not with what a header promises.
            let input = &mut self.receiving.input;
            let start = input.len();
            input.resize(start + READ_PART, 0);
            let read = self.transport.poll_read(context, &mut input[start..]);
            let length = if let Poll::Ready(Ok(length)) = read {
                length
            } else {
                0
            };
            input.truncate(start + length);
            if length > 0 {
                self.receiving.incomplete = false;
            }
            read
        };
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(0)) => Err(Ending::lost("connection closed by the client").into()),
            Poll::Ready(Ok(_)) => {
                self.submit()?;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(Ending::lost(error.to_string()).into()),
        }
    }

    /// Takes complete packets off the input, and returns how many bytes that were.
    fn take_packets(&mut self, input: &[u8]) -> Result<usize, Box<Ending>> {
        let max_packet = self.engine.limits.load().max_packet_size;
        let mut taken = 0;
        self.receiving.incomplete = false;
        while self.receiving.waiting.is_over()
            && self.receiving.request.is_none()
            && self.receiving.burst.len() < MAX_BURST
            && self.has_room_outside()
        {
            let Some(frame) = frame::cut(&input[taken..], max_packet)? else {
                self.receiving.incomplete = true;
                break;
            };
            taken += frame.packet.len();
            if let Err(ending) = self.take_packet(&frame) {
                // What came before the packet that ends the connection counts.
                self.submit()?;
                return Err(ending);
            }
        }
        if taken > 0 {
            // [MQTT-3.1.2-22] counts packets: bytes that never come to an end keep no connection alive.
            self.heard();
        }
        Ok(taken)
    }

    fn take_packet(&mut self, frame: &Frame<'_>) -> Result<(), Box<Ending>> {
        match Packet::decode(frame, self.client.version)? {
            Packet::Publish(publish) => self.on_publish(&publish),
            Packet::Ack(ack) => self.on_ack(ack),
            Packet::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe) => self.on_unsubscribe(unsubscribe),
            Packet::PingRequest => {
                encode::pingresp(self.out.tail());
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(self.on_disconnect(&disconnect).into()),
            Packet::Auth(auth) => self.on_auth(auth),
        }
    }

    fn on_disconnect(&mut self, disconnect: &Disconnect) -> Ending {
        if let Some(expiry) = disconnect.session_expiry {
            // [MQTT-3.14.2-2]: a session that ends with its connection can't be made to last.
            if self.state.expiry == 0 && expiry != 0 {
                return Ending::refused(
                    ReasonCode::ProtocolError,
                    "session expiry interval is set at the end but was 0 at the beginning",
                );
            }
            self.state.expiry = expiry.min(self.engine.limits.load().max_session_expiry);
        }
        Ending::goodbye(disconnect.with_will)
    }

    fn on_ack(&mut self, ack: Ack) -> Result<(), Box<Ending>> {
        match ack.kind {
            AckKind::PubAck => self.on_puback(ack),
            AckKind::PubRec => self.on_pubrec(ack),
            AckKind::PubComp => self.on_pubcomp(ack),
            AckKind::PubRel => self.on_pubrel(ack.packet_id),
        }
        Ok(())
    }

    /// The client releases a message with quality of service 2 of its own.
    fn on_pubrel(&mut self, packet_id: u16) {
        let mut operation = None;
        let mut reason = ReasonCode::PacketIdentifierNotFound;
        if self.state.inbound.remove(&packet_id) {
            reason = ReasonCode::Success;
            self.receiving.traced.retain(|(known, traced)| {
                if *known == packet_id {
                    traced.record(trace::Hop::ReleasedByPublisher);
                }
                *known != packet_id
            });
            self.receiving.unacknowledged = self.receiving.unacknowledged.saturating_sub(1);
            let slot = self.state.slot(Direction::Inbound, packet_id);
            operation = slot.map(|slot| self.receiving.burst.operation(Operation::ClearInflight { slot }));
        }
        self.receiving.burst.items.push(AckItem {
            operation,
            what: What::Released(packet_id, reason),
        });
    }

    /// Sends the burst to the store, and the request after it.
    pub(super) fn submit(&mut self) -> Result<(), Box<Ending>> {
        if self.receiving.submitting.is_none() && !self.receiving.burst.is_empty() {
            self.submit_burst()?;
        }
        if self.receiving.submitting.is_none() && self.receiving.request.is_some() {
            self.submit_request()?;
        }
        Ok(())
    }

    /// Sends the burst to the store, and delivers what may be delivered before it is durable.
    fn submit_burst(&mut self) -> Result<(), Box<Ending>> {
        if self.receiving.burst.operations.is_empty() {
            self.submitted(None);
            return Ok(());
        }
        let operations = std::mem::take(&mut self.receiving.burst.operations);
        match self.engine.committer.try_submit(operations) {
            Ok(submitted) => self.submitted(Some(submitted)),
            Err(TrySubmitError::Full(operations)) => {
                let committer = self.engine.committer.clone();
                let submit = async move { committer.submit(operations).await };
                self.receiving.submitting = Some(Submitting::Burst(Box::pin(submit)));
            }
            Err(TrySubmitError::Failed(error)) => return Err(Ending::store_failed(&error).into()),
        }
        Ok(())
    }

    pub(super) fn submitted(&mut self, submitted: Option<Submitted>) {
        let burst = std::mem::take(&mut self.receiving.burst);
        let (first_id, completion) = match submitted {
            Some(submitted) => (submitted.first_id, Some(Durable::Batch(submitted.completion))),
            None => (0, None),
        };
        for (outbound, ordinal) in &burst.outbound {
            let entry = ordinal.map_or(0, |ordinal| first_id + ordinal);
            self.engine.fan_out(Some(&self.shard), outbound, entry);
        }
        if !burst.items.is_empty() {
            self.receiving.acks.push(AckBatch {
                completion,
                items: burst.items,
            });
        }
    }

    /// Whether nothing waits for room.
    fn poll_submitting(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        while let Some(submitting) = &mut self.receiving.submitting {
            let Poll::Ready(outcome) = submitting.poll(context) else {
                return Ok(false);
            };
            self.receiving.submitting = None;
            self.found_room(outcome)?;
            self.submit()?;
        }
        Ok(true)
    }

    /// What waited for room goes on.
    pub(super) fn found_room(&mut self, outcome: Result<Found, StoreError>) -> Result<(), Box<Ending>> {
        match outcome.map_err(|error| Ending::store_failed(&error))? {
            Found::Submitted(submitted) => {
                self.submitted(Some(submitted));
                Ok(())
            }
            Found::Room(room) => self.serve_request(room),
        }
    }

    /// Acknowledgements that may wait before nothing more is read: what bounds clients that know no Receive Maximum.
    fn max_unacknowledged(&self) -> usize {
        usize::from(self.engine.limits.load().receive_maximum).max(MAX_BURST)
    }
}

/// What came of waiting for room.
pub(super) enum Found {
    /// The burst was submitted.
    Submitted(Submitted),
    /// There is room for the request.
    Room(Room),
}

impl Submitting {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Found, StoreError>> {
        match self {
            Self::Burst(submit) => submit
                .as_mut()
                .poll(context)
                .map(|outcome| outcome.map(Found::Submitted)),
            Self::Request(reserve) => reserve
                .as_mut()
                .poll(context)
                .map(|outcome| outcome.map(Found::Room)),
        }
    }
}

impl Burst {
    fn len(&self) -> usize {
        self.outbound.len() + self.items.len()
    }
}

/// Waits for somebody to be relieved, for a bounded time.
#[derive(Debug)]
pub(super) struct Relief {
    notified: Pin<Box<OwnedNotified>>,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl Relief {
    pub(super) fn new(notified: OwnedNotified, patience: Duration) -> Self {
        Self {
            notified: Box::pin(notified),
            patience: Box::pin(tokio::time::sleep(patience)),
        }
    }

    /// Whether it came, or patience ran out.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if self.notified.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        self.patience.as_mut().poll(context).map(|()| false)
    }
}
