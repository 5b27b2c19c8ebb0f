//! What is done with each packet and each wish of a handle.

use std::num::{NonZeroU16, NonZeroU32};

use foreshore_record::{Qos, TopicFilter};
use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{
        Packet, PublishAck, PublishAckReason, RetainHandling, Subscribe, SubscribeAck, SubscriptionOptions,
        Unsubscribe,
    },
};
use tracing::{debug, warn};

use super::{Asked, Service, wire::Wire};
use crate::{
    client::{Control, Publication},
    error::{ConnectionLost, SubscribeError},
    inflight::{LARGEST_PUBLISH_ID, OUTBOUND_HIGH, Unexpected},
    packet::{from_publish, qos_to_codec},
    reason::ReasonCode,
    subscriptions::{Dispatch, Revived, SubscriberId, Token},
    version::Version,
};

/// Filters in one SUBSCRIBE.
const FILTERS_PER_PACKET: usize = 64;

fn broken(message: impl Into<String>) -> ConnectionLost {
    ConnectionLost::Protocol {
        message: message.into(),
    }
}

fn text(words: Option<impl std::fmt::Display>) -> String {
    words.map(|words| words.to_string()).unwrap_or_default()
}

impl Service {
    /// Whether more may be taken from the server. With MQTT 5 it knows our receive maximum and stops by itself; with 3.1.1
    /// it is stopped by not being heard. So is one of MQTT 5 that sends more all the same: to leave it would only make it
    /// send the session's messages again, as mosquitto does after its restart, without end.
    pub(super) fn may_receive(&self, wire: &Wire) -> bool {
        match wire.limits.version {
            Version::V5 if !self.is_for_session => true,
            Version::V5 => self.unacknowledged <= self.receive_maximum(),
            Version::V311 => self.unacknowledged < self.receive_maximum(),
        }
    }

    fn receive_maximum(&self) -> usize {
        usize::from(self.options.receive_maximum.max(1))
    }

    /// Handles every packet that was read completely.
    pub(super) fn receive(&mut self, wire: &mut Wire) -> Result<(), ConnectionLost> {
        while self.may_receive(wire)
            && let Some(packet) = wire.decode()?
        {
            self.handle(packet, wire)?;
        }
        self.in_flight.pump(&mut wire.outbound);
        Ok(())
    }

    fn handle(&mut self, packet: Packet, wire: &mut Wire) -> Result<(), ConnectionLost> {
        let unexpected = |_: Unexpected| broken("acknowledged a message that is not on its way");
        match packet {
            Packet::Publish(publish) => self.incoming(*publish, wire),
            Packet::PublishAck(ack) => {
                let reason = ReasonCode(ack.reason_code.into());
                self.in_flight
                    .acknowledged(ack.packet_id, reason, text(ack.reason_string))
                    .map_err(unexpected)
            }
            Packet::PublishReceived(ack) => {
                let reason = ReasonCode(ack.reason_code.into());
                let message = text(ack.reason_string);
                self.in_flight
                    .received(ack.packet_id, reason, message, &mut wire.outbound)
                    .map_err(unexpected)
            }
            Packet::PublishComplete(ack) => self.in_flight.completed(ack.packet_id).map_err(unexpected),
            Packet::SubscribeAck(ack) => self.subscribed(ack),
            Packet::UnsubscribeAck(_) | Packet::PingResponse => Ok(()),
            Packet::Disconnect(disconnect) => {
                let reason = ReasonCode(disconnect.reason_code.into());
                Err(ConnectionLost::Disconnected {
                    reason,
                    message: text(disconnect.reason_string),
                })
            }
            other => Err(broken(format!("sent packet type {:#04x}", other.packet_type()))),
        }
    }

    /// Hands an incoming message to who subscribed to it.
    fn incoming(&mut self, publish: Publish, wire: &mut Wire) -> Result<(), ConnectionLost> {
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => publish.packet_id,
            QoS::ExactlyOnce => return Err(broken("sent a message of qos 2, which was not subscribed")),
        };
        // As long as we have not acknowledged it, the server gives its identifier to no other message of the session.
        let known = packet_id.and_then(|id| self.received.get(&id));
        let again = known
            .filter(|known| publish.dup && known.is(&publish.topic, &publish.payload))
            .map(Token::revive);
        if again == Some(Revived::SentTwice) {
            return Ok(());
        }
        if packet_id.is_some() {
            self.unacknowledged += 1;
            if self.unacknowledged > self.receive_maximum() && !self.is_for_session {
                return Err(broken("sent more messages than our receive maximum"));
            }
        }
        if again == Some(Revived::Taken) {
            return Ok(());
        }
        let ids = publish
            .properties
            .as_ref()
            .map(|properties| properties.subscription_ids.clone());
        let record = from_publish(publish).map_err(|error| broken(error.to_string()))?;
        let token = packet_id.map(|id| Token::new(&self.acks, id.get(), &record));
        match self
            .subscriptions
            .dispatch(&ids.unwrap_or_default(), &record, token.as_ref())
        {
            Dispatch::Delivered => {
                self.received.extend(packet_id.zip(token));
                Ok(())
            }
            Dispatch::Unclaimed => Err(ConnectionLost::Unclaimed),
            Dispatch::Unwanted => {
                debug!(topic = %record.topic, "message for a subscription that has ended");
                packet_id.map_or(Ok(()), |id| self.puback(id, wire))
            }
            Dispatch::Dropped => {
                self.dropped += 1;
                if self.dropped.is_power_of_two() {
                    warn!(topic = %record.topic, dropped = self.dropped, "message of qos 0 found no room");
                }
                packet_id.map_or(Ok(()), |id| self.puback(id, wire))
            }
        }
    }

    fn puback(&mut self, packet_id: NonZeroU16, wire: &mut Wire) -> Result<(), ConnectionLost> {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        self.received.remove(&packet_id);
        wire.encode(Packet::PublishAck(PublishAck {
            packet_id,
            reason_code: PublishAckReason::Success,
            properties: Vec::new(),
            reason_string: None,
        }))
    }

    /// Sends the acknowledgements that subscribers gave.
    pub(super) fn acknowledge(&mut self, wire: &mut Wire) -> Result<(), ConnectionLost> {
        for id in self.acks.take() {
            if let Some(id) = NonZeroU16::new(id) {
                self.puback(id, wire)?;
            }
        }
        Ok(())
    }

    /// Sends a message, and those that wait behind it as far as there is room.
    pub(super) fn publish(&mut self, first: Option<Publication>, wire: &mut Wire) {
        let mut next = first;
        while let Some(Publication { publish, answer }) = next {
            self.in_flight.send(publish, answer, &mut wire.outbound);
            let room = self.in_flight.has_room() && wire.outbound.len() < OUTBOUND_HIGH;
            next = if room {
                self.publications.try_recv().ok()
            } else {
                None
            };
        }
    }

    pub(super) fn control(
        &mut self,
        control: Option<Control>,
        wire: &mut Wire,
    ) -> Result<(), ConnectionLost> {
        match control {
            None => Ok(()),
            Some(Control::Begin {
                subscriber,
                deliveries,
                reserved,
            }) => {
                self.subscriptions.begin(subscriber, deliveries, reserved);
                Ok(())
            }
            Some(Control::Add {
                subscriber,
                filter,
                qos,
                reply,
            }) => {
                if !self.subscriptions.add(subscriber, filter.clone(), qos) {
                    drop(reply.send(Err(SubscribeError::InUse {
                        filter: filter.to_string(),
                    })));
                    return Ok(());
                }
                self.subscribe(
                    Asked {
                        subscriber,
                        filters: vec![(filter, qos)],
                        reply: Some(reply),
                    },
                    wire,
                )
            }
            Some(Control::Remove { subscriber, filter }) => {
                let removed = self.subscriptions.remove(subscriber, &filter);
                if removed {
                    self.unsubscribe(vec![filter], wire)
                } else {
                    Ok(())
                }
            }
            Some(Control::End { subscriber }) if self.subscriptions.keeps_session(subscriber) => {
                Err(ConnectionLost::Unclaimed)
            }
            Some(Control::End { subscriber }) => {
                let filters = self.subscriptions.end(subscriber);
                self.unsubscribe(filters, wire)
            }
        }
    }

    /// Subscribes everything on a new connection.
    pub(super) fn subscribe_all(&mut self, wire: &mut Wire) -> Result<(), ConnectionLost> {
        // Those for whose answer someone waits go alone, so that the answer is theirs.
        let awaited: Vec<Asked> = self
            .unanswered
            .drain()
            .map(|(_, asked)| asked)
            .filter(|asked| asked.reply.is_some())
            .collect();
        let is_awaited = |id: SubscriberId, filter: &TopicFilter| {
            awaited
                .iter()
                .any(|asked| asked.subscriber == id && asked.filters.iter().any(|(one, _)| one == filter))
        };
        if !self.session_subscribed {
            self.unsubscribe(self.former.clone(), wire)?;
        }
        let mut all = Vec::new();
        for (subscriber, mut filters) in self.subscriptions.all() {
            // Subscribed anew, 3.1.1 sends again what is retained.
            if self.session_subscribed && self.subscriptions.keeps_session(subscriber) {
                continue;
            }
            filters.retain(|(filter, _)| !is_awaited(subscriber, filter));
            all.extend(
                filters
                    .chunks(FILTERS_PER_PACKET)
                    .map(|chunk| (subscriber, chunk.to_vec())),
            );
        }
        for (subscriber, filters) in all {
            self.subscribe(
                Asked {
                    subscriber,
                    filters,
                    reply: None,
                },
                wire,
            )?;
        }
        for asked in awaited {
            self.subscribe(asked, wire)?;
        }
        Ok(())
    }

    fn subscribe(&mut self, asked: Asked, wire: &mut Wire) -> Result<(), ConnectionLost> {
        let packet_id = self.control_id();
        let identifiers = wire.limits.subscription_identifiers;
        let options = |qos: Qos| SubscriptionOptions {
            qos: qos_to_codec(qos),
            no_local: false,
            retain_as_published: true,
            retain_handling: RetainHandling::AtSubscribeNew,
        };
        let filters = asked
            .filters
            .iter()
            .map(|(filter, qos)| (filter.as_str().into(), options(*qos)))
            .collect();
        wire.encode(Packet::Subscribe(Subscribe {
            packet_id,
            id: NonZeroU32::new(asked.subscriber).filter(|_| identifiers),
            user_properties: Vec::new(),
            topic_filters: filters,
        }))?;
        self.unanswered.insert(packet_id, asked);
        Ok(())
    }

    fn unsubscribe(&mut self, filters: Vec<TopicFilter>, wire: &mut Wire) -> Result<(), ConnectionLost> {
        for chunk in filters.chunks(FILTERS_PER_PACKET) {
            let packet_id = self.control_id();
            wire.encode(Packet::Unsubscribe(Unsubscribe {
                packet_id,
                user_properties: Vec::new(),
                topic_filters: chunk.iter().map(|filter| filter.as_str().into()).collect(),
            }))?;
        }
        Ok(())
    }

    fn subscribed(&mut self, ack: SubscribeAck) -> Result<(), ConnectionLost> {
        let Some(asked) = self.unanswered.remove(&ack.packet_id) else {
            return Err(broken("answered a subscription that was not asked for"));
        };
        if ack.status.len() != asked.filters.len() {
            return Err(broken("answered a subscription with another number of filters"));
        }
        let message = text(ack.reason_string);
        let of_session = self.subscriptions.keeps_session(asked.subscriber);
        let mut result = Ok(());
        for ((filter, qos), status) in asked.filters.iter().zip(ack.status) {
            let reason = ReasonCode(status.into());
            if !reason.is_error() {
                // The code of a granted subscription is its quality of service.
                if of_session && reason.0 < u8::from(*qos) {
                    warn!(
                        filter = filter.as_str(),
                        granted = reason.0,
                        "the server keeps nothing of this filter for us"
                    );
                }
                continue;
            }
            let (filter_text, message) = (filter.to_string(), message.clone());
            match &asked.reply {
                Some(_) => drop(self.subscriptions.remove(asked.subscriber, filter)),
                // It was accepted before: a policy has changed, and may change back until the next connection.
                None if of_session => {
                    return Err(ConnectionLost::Subscription(SubscribeError::Refused {
                        filter: filter_text,
                        reason,
                        message,
                    }));
                }
                None => warn!(filter = filter_text, %reason, "subscription refused after a reconnect"),
            }
            result = Err(SubscribeError::Refused {
                filter: filter_text,
                reason,
                message,
            });
        }
        let mut unanswered = self.unanswered.values();
        if of_session && !unanswered.any(|other| other.subscriber == asked.subscriber) {
            self.session_subscribed = true;
        }
        if let Some(reply) = asked.reply {
            drop(reply.send(result));
        }
        Ok(())
    }

    /// A packet identifier for SUBSCRIBE or UNSUBSCRIBE.
    fn control_id(&mut self) -> NonZeroU16 {
        loop {
            self.next_control_id = self
                .next_control_id
                .checked_add(1)
                .unwrap_or(LARGEST_PUBLISH_ID + 1);
            match NonZeroU16::new(self.next_control_id) {
                Some(id) if !self.unanswered.contains_key(&id) => return id,
                _ => {}
            }
        }
    }
}
