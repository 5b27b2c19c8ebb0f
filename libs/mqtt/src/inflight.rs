//! Messages that were sent and not answered yet: a state machine without clock, input or output.

use std::{collections::VecDeque, num::NonZeroU16};

use bytes::{BufMut, BytesMut};
use foreshore_record::Qos;
use tokio::sync::oneshot;

use crate::{
    client::Acknowledgement, error::PublishError, packet::EncodedPublish, reason::ReasonCode,
    transport::Limits,
};

/// Packet identifiers above this one are for SUBSCRIBE and UNSUBSCRIBE, which share the numbers with PUBLISH
/// (MQTT 5.0, section 2.2.1).
pub(crate) const LARGEST_PUBLISH_ID: u16 = 60_000;

/// Bytes that may wait to be written before no more messages are encoded.
pub(crate) const OUTBOUND_HIGH: usize = 256 * 1024;

/// Type and flags of PUBREL (MQTT 5.0, section 3.6.1).
const PUBREL: u8 = 0b0110_0010;

pub(crate) type Answer = oneshot::Sender<Result<Acknowledgement, PublishError>>;

/// One message on its way.
#[derive(Debug)]
struct Outgoing {
    /// Place in the order of publication.
    order: u64,
    phase: Phase,
    answer: Answer,
    /// Sent on an earlier connection of the same session.
    dup: bool,
}

#[derive(Debug)]
enum Phase {
    /// PUBLISH is or will be sent.
    Publish(EncodedPublish),
    /// The server has the message (PUBREC); PUBREL is or will be sent.
    Release,
}

/// An answer of the server that belongs to no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unexpected;

/// Messages that were sent and not answered yet.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// By packet identifier − 1, as far as identifiers were needed.
    slots: Vec<Option<Outgoing>>,
    /// Identifiers that were used and are free.
    free: Vec<NonZeroU16>,
    /// Most messages at once.
    most: u16,
    /// What is to be sent again before anything new, with the identifier that the session knows it by.
    again: VecDeque<(Option<NonZeroU16>, Outgoing)>,
    /// Messages sent on this connection and not answered.
    sent: usize,
    next_order: u64,
    /// What the server of this connection takes.
    window: usize,
    limits: Limits,
}

impl InFlight {
    /// At most `window` messages at once.
    pub(crate) fn new(window: u16, limits: Limits) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            most: window.clamp(1, LARGEST_PUBLISH_ID),
            again: VecDeque::new(),
            sent: 0,
            next_order: 0,
            window: 0,
            limits,
        }
    }

    /// Whether everything was answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.sent == 0 && self.again.is_empty()
    }

    /// Messages that were not answered.
    pub(crate) fn len(&self) -> usize {
        self.sent + self.again.len()
    }

    /// Whether a new message may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        let has_id = !self.free.is_empty() || self.slots.len() < self.most.into();
        self.again.is_empty() && self.sent < self.window && has_id
    }

    /// Begins with a new connection: everything not answered is to be sent again, in the order of publication.
    pub(crate) fn resume(&mut self, session_present: bool, limits: Limits) {
        self.limits = limits;
        self.window = self.most.min(limits.receive_maximum).into();
        let mut all: Vec<_> = std::mem::take(&mut self.again).into();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let id = u16::try_from(index + 1).ok().and_then(NonZeroU16::new);
            all.extend(slot.take().map(|outgoing| (id, outgoing)));
        }
        all.sort_by_key(|(_, outgoing)| outgoing.order);
        self.sent = 0;
        for (id, mut outgoing) in all {
            if session_present {
                outgoing.dup = id.is_some();
                self.again.push_back((id, outgoing));
                continue;
            }
            self.free.extend(id);
            match outgoing.phase {
                Phase::Publish(_) => {
                    outgoing.dup = false;
                    self.again.push_back((None, outgoing));
                }
                // The server took the message over with its PUBREC.
                Phase::Release => answer(
                    outgoing.answer,
                    Ok(Acknowledgement {
                        reason: ReasonCode::SUCCESS,
                    }),
                ),
            }
        }
    }

    /// Sends again what must be, as far as the server takes it.
    pub(crate) fn pump(&mut self, out: &mut BytesMut) {
        while self.sent < self.window && out.len() < OUTBOUND_HIGH {
            let Some((id, outgoing)) = self.again.pop_front() else {
                return;
            };
            let Some(id) = id.or_else(|| self.free_id()) else {
                self.again.push_front((id, outgoing));
                return;
            };
            self.transmit(id, outgoing, out);
        }
    }

    /// Sends a new message, for which there must be [room](Self::has_room).
    pub(crate) fn send(&mut self, publish: EncodedPublish, reply: Answer, out: &mut BytesMut) {
        if publish.qos == Qos::AtMostOnce {
            if let Err(error) = self.acceptable(&publish) {
                return answer(reply, Err(error));
            }
            publish.write(self.limits.version, None, false, out);
            return answer(
                reply,
                Ok(Acknowledgement {
                    reason: ReasonCode::SUCCESS,
                }),
            );
        }
        let order = self.next_order;
        self.next_order += 1;
        let outgoing = Outgoing {
            order,
            phase: Phase::Publish(publish),
            answer: reply,
            dup: false,
        };
        match self.free_id() {
            Some(id) => self.transmit(id, outgoing, out),
            None => self.again.push_back((None, outgoing)),
        }
    }

    /// An identifier that nothing is sent under.
    fn free_id(&mut self) -> Option<NonZeroU16> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        let next = u16::try_from(self.slots.len() + 1).ok()?;
        let id = NonZeroU16::new(next).filter(|_| next <= self.most)?;
        self.slots.push(None);
        Some(id)
    }

    fn transmit(&mut self, id: NonZeroU16, outgoing: Outgoing, out: &mut BytesMut) {
        match &outgoing.phase {
            Phase::Publish(publish) => {
                if let Err(error) = self.acceptable(publish) {
                    self.free.push(id);
                    return answer(outgoing.answer, Err(error));
                }
                publish.write(self.limits.version, Some(id), outgoing.dup, out);
            }
            Phase::Release => write_release(id, out),
        }
        if let Some(slot) = self.slots.get_mut(usize::from(id.get()) - 1) {
            *slot = Some(outgoing);
            self.sent += 1;
        }
    }

    fn acceptable(&self, publish: &EncodedPublish) -> Result<(), PublishError> {
        let (size, max) = (publish.len(self.limits.version), self.limits.max_packet_size);
        if size > max {
            return Err(PublishError::TooLarge { size, max });
        }
        if publish.qos > self.limits.max_qos {
            return Err(PublishError::NotSupported {
                what: "this quality of service",
            });
        }
        if publish.retain && !self.limits.retain {
            return Err(PublishError::NotSupported {
                what: "retained messages",
            });
        }
        Ok(())
    }

    /// PUBACK: the answer to a message of QoS 1.
    pub(crate) fn acknowledged(
        &mut self,
        id: NonZeroU16,
        reason: ReasonCode,
        message: String,
    ) -> Result<(), Unexpected> {
        match self.phase(id) {
            Some(Phase::Publish(publish)) if publish.qos == Qos::AtLeastOnce => {
                self.finish(id, verdict(reason, message));
                Ok(())
            }
            _ => Err(Unexpected),
        }
    }

    /// PUBREC: the first answer to a message of QoS 2.
    pub(crate) fn received(
        &mut self,
        id: NonZeroU16,
        reason: ReasonCode,
        message: String,
        out: &mut BytesMut,
    ) -> Result<(), Unexpected> {
        match self.phase(id) {
            Some(Phase::Publish(publish)) if publish.qos == Qos::ExactlyOnce => {}
            // A repeat after a reconnect.
            Some(Phase::Release) => {}
            _ => return Err(Unexpected),
        }
        if reason.is_error() {
            self.finish(id, verdict(reason, message));
            return Ok(());
        }
        if let Some(Some(outgoing)) = self.slots.get_mut(usize::from(id.get()) - 1) {
            outgoing.phase = Phase::Release;
        }
        write_release(id, out);
        Ok(())
    }

    /// PUBCOMP: the last answer to a message of QoS 2.
    pub(crate) fn completed(&mut self, id: NonZeroU16) -> Result<(), Unexpected> {
        // 0x92 (not found) ends the exchange too: the server has forgotten that it had the message.
        match self.phase(id) {
            Some(Phase::Release) => {
                self.finish(id, verdict(ReasonCode::SUCCESS, String::new()));
                Ok(())
            }
            _ => Err(Unexpected),
        }
    }

    fn phase(&self, id: NonZeroU16) -> Option<&Phase> {
        let slot = self.slots.get(usize::from(id.get()) - 1)?;
        slot.as_ref().map(|outgoing| &outgoing.phase)
    }

    fn finish(&mut self, id: NonZeroU16, result: Result<Acknowledgement, PublishError>) {
        let slot = self.slots.get_mut(usize::from(id.get()) - 1);
        if let Some(outgoing) = slot.and_then(Option::take) {
            self.sent -= 1;
            self.free.push(id);
            answer(outgoing.answer, result);
        }
    }
}

fn verdict(reason: ReasonCode, message: String) -> Result<Acknowledgement, PublishError> {
    if reason.is_error() {
        Err(PublishError::Refused { reason, message })
    } else {
        Ok(Acknowledgement { reason })
    }
}

fn answer(reply: Answer, result: Result<Acknowledgement, PublishError>) {
    // Whoever published may not want to know.
    drop(reply.send(result));
}

fn write_release(id: NonZeroU16, out: &mut BytesMut) {
    out.put_u8(PUBREL);
    out.put_u8(2);
    out.put_u16(id.get());
}

#[cfg(test)]
mod tests;
