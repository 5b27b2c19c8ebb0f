//! One message goes to the client: its size, its alias, its packet identifier.

use std::sync::Arc;

use foreshore_record::{DropReason, Outcome, Qos};
use foreshore_store::{Direction, Inflight, Operation};

use super::storing::After;
use crate::{
    connection::Connection,
    engine::delivery::{Delivery, Origin},
    inspect::trace,
    message::{Hop, Message},
    session::state::{Held, InFlight, Phase},
};
impl Connection {
    /// Sends a message, or settles it if it can't be.
    pub(in crate::connection) fn send(&mut self, delivery: Delivery) {
        let now = self.engine.now();
        if delivery.message.is_expired(now) {
            return self.give_up(delivery, DropReason::EXPIRED);
        }
        let hop = self.hop(&delivery);
        if delivery.message.packet_size(&hop) > self.client.maximum_packet_size {
            return self.give_up(delivery, DropReason::TOO_LARGE);
        }
        if delivery.qos == Qos::AtMostOnce {
            return self.send_qos0(delivery);
        }
        let Some(packet_id) = self.state.next_packet_id() else {
            // The window is smaller than the number of identifiers, so that this can't be.
            return self.sending.push(delivery);
        };
        let durable = delivery.entry != 0 && self.session.receiver.is_some();
        let store_first = durable && delivery.qos == Qos::ExactlyOnce;
        let phase = if store_first { Phase::Storing } else { Phase::Sent };
        let held = match &delivery.origin {
            Origin::Session if delivery.entry == 0 => Held::Nowhere,
            Origin::Session => {
                if let Some(drain) = &mut self.sending.drain {
                    drain.backlog.hold(delivery.entry);
                }
                Held::Own(delivery.entry)
            }
            Origin::Group(group) => Held::Group(Box::new(delivery.clone()), Arc::clone(group)),
        };
        self.state.outbound.insert(
            packet_id,
            InFlight {
                held,
                qos: delivery.qos,
                phase,
                leg: delivery.leg(&self.session).map(Box::new),
            },
        );
        if store_first {
            self.store_packet_id(packet_id, delivery);
        } else {
            self.write(&delivery, packet_id, false);
        }
    }

    /// With quality of service 0 nothing is sent twice: what is in a queue has left it for good before it is sent.
    fn send_qos0(&mut self, delivery: Delivery) {
        if delivery.entry == 0 {
            self.write(&delivery, 0, false);
        } else {
            self.sending.after.push(After::Publish(0, delivery.clone()));
        }
        self.settle(delivery, Outcome::Delivered);
    }

    /// With quality of service 2 the packet identifier has to survive a crash, or the client could get the message
    /// twice.
    fn store_packet_id(&mut self, packet_id: u16, delivery: Delivery) {
        let queue = match &delivery.origin {
            Origin::Session => self.session.receiver,
            Origin::Group(group) => group.receiver(),
        };
        if let (Some(slot), Some(receiver)) = (self.state.slot(Direction::Outbound, packet_id), queue) {
            let state = Inflight::Sent {
                receiver,
                id: delivery.entry,
            };
            self.sending.operation(Operation::SetInflight { slot, state });
        }
        self.sending.after.push(After::Publish(packet_id, delivery));
    }

    fn hop<'a>(&self, delivery: &'a Delivery) -> Hop<'a> {
        let topic = &delivery.message.topic;
        let alias = match self.sending.aliases.get(topic) {
            Some(&alias) => Some((alias, false)),
            None if self.sending.aliases.len() < usize::from(self.sending.max_aliases) => {
                Some((self.sending.aliases.len() as u16 + 1, true))
            }
            None => None,
        };
        Hop {
            version: self.client.version,
            qos: delivery.qos,
            retain: delivery.retain,
            dup: false,
            packet_id: 0,
            identifiers: delivery.identifiers.as_deref().unwrap_or_default(),
            alias,
            now: self.engine.now(),
        }
    }

    pub(in crate::connection) fn write(&mut self, delivery: &Delivery, packet_id: u16, dup: bool) {
        let hop = Hop {
            packet_id,
            dup,
            ..self.hop(delivery)
        };
        if let Some((alias, true)) = hop.alias {
            self.sending.aliases.insert(delivery.message.topic.clone(), alias);
        }
        if let Some(payload) = delivery.message.write(&hop, self.out.tail()) {
            self.out.append(payload);
        }
        if let Some(leg) = delivery.leg(&self.session) {
            leg.record(|receiver, client| trace::Hop::Sent {
                receiver,
                client,
                qos: delivery.qos,
                packet_id,
                dup,
            });
        }
        let bytes = delivery.message.payload.len();
        self.client.counted.traffic.count_sent(bytes);
        if !self.client.principal.is_probe() {
            self.engine.stats.sent.inc();
            self.engine.stats.sent_bytes.inc_by(bytes as u64);
            self.count_sent_topic(&delivery.message);
        }
    }

    fn count_sent_topic(&self, message: &Message) {
        let bytes = message.payload.len();
        if let Some(counted) = &message.counted {
            counted.count_sent(bytes);
        } else if self.engine.stats.by_topic.is_counting()
            // What comes from a queue or was retained: the shard knows its topic, or learns it once.
            && let Ok(topic) = self.shard.topic(message.topic.as_str())
            && let Some(counted) = &topic.counted
        {
            counted.count_sent(bytes);
        }
    }
}
