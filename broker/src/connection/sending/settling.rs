//! How deliveries end: the client's acknowledgements (MQTT 5.0 section 4.3), and what is given up.

use std::sync::Arc;

use foreshore_record::{DropReason, Outcome, Qos};
use foreshore_store::{Direction, Inflight, Operation};

use super::storing::After;
use crate::{
    connection::Connection,
    engine::delivery::{Delivery, Origin},
    inspect::trace,
    session::state::{Held, InFlight, Phase},
    shared::Group,
    wire::{
        ReasonCode, encode,
        packet::{Ack, AckKind},
    },
};
impl Connection {
    /// A delivery ends without having been sent.
    pub(in crate::connection) fn give_up(&mut self, delivery: Delivery, reason: DropReason) {
        if delivery.entry == 0 {
            self.engine.stats.dropped_live.inc();
            self.client.counted.traffic.count_dropped();
            delivery.message.count_dropped();
        }
        if let Some(leg) = delivery.leg(&self.session) {
            leg.record(|receiver, _| trace::Hop::Dropped {
                receiver,
                reason: reason.to_string(),
            });
        }
        self.settle(delivery, Outcome::Dropped { reason });
    }

    /// A delivery is done.
    pub(super) fn settle(&mut self, delivery: Delivery, outcome: Outcome) {
        let held = match delivery.origin.clone() {
            Origin::Session => Held::Own(delivery.entry),
            Origin::Group(group) => Held::Group(Box::new(delivery), group),
        };
        self.complete(held, outcome);
    }

    /// A delivery is done: its entry leaves its queue.
    pub(super) fn complete(&mut self, held: Held, outcome: Outcome) {
        match held {
            Held::Nowhere | Held::Own(0) => {}
            Held::Own(id) => {
                if let Some(receiver) = self.session.receiver {
                    self.sending.settle(receiver, None, id, outcome);
                }
            }
            Held::GroupQueue(receiver, id) => self.sending.settle(receiver, None, id, outcome),
            Held::Group(delivery, group) => {
                if let (Some(receiver), 1..) = (group.receiver(), delivery.entry) {
                    self.sending
                        .settle(receiver, Some(Arc::clone(&group)), delivery.entry, outcome);
                }
                if delivery.qos != Qos::AtMostOnce {
                    group.acknowledged(self.session.uid);
                }
                if let Some(next) = group.next_for(self.session.uid) {
                    self.place(next);
                }
                if group.begin_reading() {
                    self.engine.drain_group(group);
                }
            }
        }
    }

    /// A group may have something for this connection, which is new or new in the group.
    pub(in crate::connection) fn serve_group(&mut self, group: &Arc<Group>) {
        for (location, delivery) in group.hand_out() {
            self.engine.send(location, delivery);
        }
        if group.begin_reading() {
            self.engine.drain_group(Arc::clone(group));
        }
    }

    /// Quality of service 1 is done.
    pub(in crate::connection) fn on_puback(&mut self, ack: Ack) {
        let expected = |in_flight: &InFlight| in_flight.qos == Qos::AtLeastOnce;
        if !self.state.outbound.get(&ack.packet_id).is_some_and(expected) {
            return;
        }
        if let Some(in_flight) = self.state.outbound.remove(&ack.packet_id) {
            in_flight.trace_ack(ack);
            self.complete(in_flight.held, outcome_of(ack));
        }
    }

    /// Quality of service 2, first step.
    pub(in crate::connection) fn on_pubrec(&mut self, ack: Ack) {
        let packet_id = ack.packet_id;
        let Some(in_flight) = self.state.outbound.get_mut(&packet_id) else {
            let reason = ReasonCode::PacketIdentifierNotFound;
            return encode::ack(
                self.client.version,
                AckKind::PubRel,
                packet_id,
                reason,
                self.out.tail(),
            );
        };
        match in_flight.phase {
            Phase::Sent if in_flight.qos == Qos::ExactlyOnce => {}
            Phase::Released => return self.release(packet_id),
            _ => return,
        }
        in_flight.trace_ack(ack);
        let held = std::mem::replace(&mut in_flight.held, Held::Nowhere);
        let durable = !matches!(held, Held::Nowhere) && self.session.receiver.is_some();
        let refused = ack.reason >= 0x80;
        if refused {
            self.state.outbound.remove(&packet_id);
        } else {
            in_flight.phase = Phase::Releasing;
        }
        self.complete(held, outcome_of(ack));
        let slot = self
            .state
            .slot(Direction::Outbound, packet_id)
            .filter(|_| durable);
        match (refused, slot) {
            (true, Some(slot)) => self.sending.operation(Operation::ClearInflight { slot }),
            (true, None) => {}
            (false, Some(slot)) => {
                self.sending.operation(Operation::SetInflight {
                    slot,
                    state: Inflight::Released,
                });
                self.sending.after.push(After::Release(packet_id));
            }
            (false, None) => self.release(packet_id),
        }
    }

    /// Quality of service 2, second step.
    pub(in crate::connection) fn release(&mut self, packet_id: u16) {
        if let Some(in_flight) = self.state.outbound.get_mut(&packet_id) {
            in_flight.phase = Phase::Released;
            in_flight.trace(|receiver, client| trace::Hop::Released {
                receiver,
                client,
                packet_id,
            });
        }
        encode::ack(
            self.client.version,
            AckKind::PubRel,
            packet_id,
            ReasonCode::Success,
            self.out.tail(),
        );
    }

    /// Quality of service 2 is done.
    pub(in crate::connection) fn on_pubcomp(&mut self, ack: Ack) {
        let released = |in_flight: &InFlight| in_flight.phase == Phase::Released;
        if self.state.outbound.get(&ack.packet_id).is_some_and(released) {
            if let Some(in_flight) = self.state.outbound.remove(&ack.packet_id) {
                in_flight.trace_ack(ack);
            }
            if let Some(slot) = self.state.slot(Direction::Outbound, ack.packet_id) {
                self.sending.operation(Operation::ClearInflight { slot });
            }
        }
    }
}

/// How a client's acknowledgement ends a delivery.
fn outcome_of(ack: Ack) -> Outcome {
    match ack.reason {
        0x80.. => Outcome::Dropped {
            reason: DropReason::REFUSED,
        },
        _ => Outcome::Delivered,
    }
}
