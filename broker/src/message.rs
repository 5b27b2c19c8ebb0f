//! A message in flight through the broker: made once, shared by everybody who gets it.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use foreshore_record::{Qos, Record, SourceNumber, TopicName};
use foreshore_store::BrokerTime;
use jiff::Timestamp;

use crate::{
    engine::trace::Traced,
    inspect::trace,
    stats::traffic::Traffic,
    wire::{
        Version,
        frame::{put_variable_length, variable_length_size},
        properties::{self, MESSAGE_EXPIRY, SUBSCRIPTION_IDENTIFIER, TOPIC_ALIAS},
    },
};

/// Payloads up to this size are copied into the shared packet; larger ones are sent from where they are.
const INLINE_PAYLOAD: usize = 2048;

/// Who published a message, for subscriptions that do not want their own messages back.
pub(crate) type SessionUid = u64;

/// A message, shared by all who get it.
#[derive(Debug)]
pub(crate) struct Message {
    /// Where it was published.
    pub(crate) topic: TopicName,
    /// Content.
    pub(crate) payload: Bytes,
    /// Properties that are sent on unchanged, in the form of version 5.
    pub(crate) properties: Bytes,
    /// Quality of service that it was published with.
    pub(crate) qos: Qos,
    /// Whether it was published to be retained.
    pub(crate) retain: bool,
    /// Seconds that its publisher gave it.
    pub(crate) expiry: Option<u32>,
    /// When it is worthless.
    pub(crate) expires_at: Option<BrokerTime>,
    /// The session that published it; 0 for the broker itself.
    pub(crate) publisher: SessionUid,
    /// Its number, if it has one that we believe.
    pub(crate) number: Option<SourceNumber>,
    /// Whether sessions queue it even where it is delivered with quality of service 0.
    pub(crate) queue_qos0: bool,
    /// What is counted of its topic, if anything is and it was published on a connection.
    pub(crate) counted: Option<Arc<Traffic>>,
    /// Where its hops are recorded, if somebody asked about it.
    pub(crate) traced: Option<Arc<Traced>>,
    /// Whether several receivers are likely, so that encoding once pays.
    pub(crate) shared: bool,
    /// Forms of it that were made once.
    pub(crate) cache: Cache,
}

/// Forms of a message that are made when they are first asked for.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    record: OnceLock<Arc<Record>>,
    encoded: [OnceLock<Box<Encoded>>; 4],
}

/// A PUBLISH as all receivers of one class get it: same version, and with or without packet identifier.
#[derive(Debug)]
struct Encoded {
    /// The packet; without the payload if that is large.
    head: Bytes,
    /// Where the packet identifier stands; 0 without one.
    packet_id_at: usize,
    /// Where the message expiry stands; 0 without one.
    expiry_at: usize,
    /// Whether `head` holds the payload.
    inline: bool,
}

/// What differs from one delivery of a message to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop<'a> {
    /// Version that the receiver speaks.
    pub(crate) version: Version,
    /// Quality of service of the delivery.
    pub(crate) qos: Qos,
    /// RETAIN flag of the delivery.
    pub(crate) retain: bool,
    /// DUP flag of the delivery.
    pub(crate) dup: bool,
    /// Packet identifier; not sent with quality of service 0.
    pub(crate) packet_id: u16,
    /// Subscription identifiers.
    pub(crate) identifiers: &'a [u32],
    /// Topic alias, and whether the topic is sent with it.
    pub(crate) alias: Option<(u16, bool)>,
    /// Time of the delivery.
    pub(crate) now: BrokerTime,
}

impl Message {
    /// Makes a message of what a client published, or the broker itself.
    pub(crate) fn new(topic: TopicName, payload: Bytes, properties: Bytes) -> Self {
        Self {
            topic,
            payload,
            properties,
            qos: Qos::AtMostOnce,
            retain: false,
            expiry: None,
            expires_at: None,
            publisher: 0,
            number: None,
            queue_qos0: false,
            counted: None,
            traced: None,
            shared: false,
            cache: Cache::default(),
        }
    }

    /// Records a hop, if somebody asked about the message.
    pub(crate) fn trace(&self, hop: impl FnOnce() -> trace::Hop) {
        if let Some(traced) = &self.traced {
            traced.record(hop());
        }
    }

    /// It could not be delivered, and is in no durable queue.
    pub(crate) fn count_dropped(&self) {
        if let Some(counted) = &self.counted {
            counted.count_dropped();
        }
    }

    /// Whether durable receivers queue it, delivered with that quality of service.
    pub(crate) fn is_queued(&self, qos: Qos) -> bool {
        qos != Qos::AtMostOnce || self.queue_qos0
    }

    /// Makes a message of what was stored.
    pub(crate) fn from_record(record: &Arc<Record>, expires_at: Option<BrokerTime>) -> Self {
        let message = Self {
            qos: record.qos,
            retain: record.retain,
            expiry: record.properties.expiry_seconds,
            expires_at,
            ..Self::new(
                record.topic.clone(),
                record.payload.clone(),
                properties::encode(&record.properties),
            )
        };
        message.cache.record.get_or_init(|| Arc::clone(record));
        message
    }

    /// The form in which it is stored.
    pub(crate) fn record(&self) -> &Arc<Record> {
        self.cache.record.get_or_init(|| {
            Arc::new(Record {
                topic: self.topic.clone(),
                payload: self.payload.clone(),
                qos: self.qos,
                retain: self.retain,
                properties: properties::decode(&self.properties, self.expiry),
                number: self.number.clone(),
                ingested_at: Some(Timestamp::now()),
            })
        })
    }

    /// The same without its number: a retained message is stored again and again, which its number must not forbid.
    pub(crate) fn without_number(self: &Arc<Self>) -> Arc<Self> {
        if self.number.is_none()
            && self
                .cache
                .record
                .get()
                .is_none_or(|record| record.number.is_none())
        {
            return Arc::clone(self);
        }
        Arc::new(Self {
            qos: self.qos,
            retain: self.retain,
            expiry: self.expiry,
            expires_at: self.expires_at,
            publisher: self.publisher,
            counted: self.counted.clone(),
            traced: self.traced.clone(),
            ..Self::new(self.topic.clone(), self.payload.clone(), self.properties.clone())
        })
    }

    /// The form in which it is stored, with its expiry.
    pub(crate) fn to_stored(&self) -> foreshore_store::Message {
        foreshore_store::Message {
            record: Arc::clone(self.record()),
            expires_at: self.expires_at,
        }
    }

    /// What it weighs in a queue in memory, in bytes.
    pub(crate) fn weight(&self) -> usize {
        self.topic.as_str().len() + self.payload.len() + self.properties.len()
    }

    /// Whether it is worthless by now.
    pub(crate) fn is_expired(&self, now: BrokerTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Size of the whole packet of a delivery, in bytes.
    pub(crate) fn packet_size(&self, hop: &Hop<'_>) -> usize {
        let body = self.body_size(hop);
        1 + variable_length_size(body) + body
    }

    /// Writes a delivery; what is left to send after `out` is returned, if the payload is large.
    pub(crate) fn write(&self, hop: &Hop<'_>, out: &mut BytesMut) -> Option<Bytes> {
        if self.shared && hop.identifiers.is_empty() && hop.alias.is_none() {
            return self.write_shared(hop, out);
        }
        let start = out.len();
        let at = self.write_head(hop, out);
        debug_assert!(
            at.packet_id_at == 0 || start + at.packet_id_at <= out.len(),
            "offsets lie in the head"
        );
        self.write_payload(out)
    }

    fn write_payload(&self, out: &mut BytesMut) -> Option<Bytes> {
        if self.payload.len() > INLINE_PAYLOAD {
            return Some(self.payload.clone());
        }
        out.put_slice(&self.payload);
        None
    }

    fn write_shared(&self, hop: &Hop<'_>, out: &mut BytesMut) -> Option<Bytes> {
        let class = usize::from(hop.version.is_v5()) * 2 + usize::from(hop.qos != Qos::AtMostOnce);
        let encoded = self.cache.encoded[class].get_or_init(|| Box::new(self.encode_shared(hop)));
        let start = out.len();
        out.put_slice(&encoded.head);
        let packet = &mut out[start..];
        packet[0] = first_byte(hop);
        if encoded.packet_id_at > 0 {
            packet[encoded.packet_id_at..][..2].copy_from_slice(&hop.packet_id.to_be_bytes());
        }
        if encoded.expiry_at > 0 {
            packet[encoded.expiry_at..][..4].copy_from_slice(&self.remaining(hop.now).to_be_bytes());
        }
        (!encoded.inline).then(|| self.payload.clone())
    }

    fn encode_shared(&self, hop: &Hop<'_>) -> Encoded {
        let mut out = BytesMut::new();
        let mut encoded = self.write_head(hop, &mut out);
        encoded.inline = self.write_payload(&mut out).is_none();
        encoded.head = out.freeze();
        encoded
    }

    /// Writes everything before the payload and tells where it may be patched.
    fn write_head(&self, hop: &Hop<'_>, out: &mut BytesMut) -> Encoded {
        let body = self.body_size(hop);
        let start = out.len();
        out.reserve(5 + body - self.payload.len() + self.payload.len().min(INLINE_PAYLOAD));
        out.put_u8(first_byte(hop));
        put_variable_length(body, out);
        let topic = if hop.sends_topic() {
            self.topic.as_str()
        } else {
            ""
        };
        out.put_u16(topic.len() as u16);
        out.put_slice(topic.as_bytes());
        let mut encoded = Encoded {
            head: Bytes::new(),
            packet_id_at: 0,
            expiry_at: 0,
            inline: false,
        };
        if hop.qos != Qos::AtMostOnce {
            encoded.packet_id_at = out.len() - start;
            out.put_u16(hop.packet_id);
        }
        if hop.version.is_v5() {
            put_variable_length(self.properties_size(hop), out);
            if self.announces_expiry() {
                out.put_u8(MESSAGE_EXPIRY);
                encoded.expiry_at = out.len() - start;
                out.put_u32(self.remaining(hop.now));
            }
            if let Some((alias, _)) = hop.alias {
                out.put_u8(TOPIC_ALIAS);
                out.put_u16(alias);
            }
            for &identifier in hop.identifiers {
                out.put_u8(SUBSCRIPTION_IDENTIFIER);
                put_variable_length(identifier as usize, out);
            }
            out.put_slice(&self.properties);
        }
        encoded
    }

    fn body_size(&self, hop: &Hop<'_>) -> usize {
        let topic = if hop.sends_topic() {
            self.topic.as_str().len()
        } else {
            0
        };
        let packet_id = if hop.qos == Qos::AtMostOnce { 0 } else { 2 };
        let properties = if hop.version.is_v5() {
            let size = self.properties_size(hop);
            variable_length_size(size) + size
        } else {
            0
        };
        2 + topic + packet_id + properties + self.payload.len()
    }

    fn properties_size(&self, hop: &Hop<'_>) -> usize {
        let expiry = if self.announces_expiry() { 5 } else { 0 };
        let alias = if hop.alias.is_some() { 3 } else { 0 };
        let identifiers = hop
            .identifiers
            .iter()
            .map(|&id| 1 + variable_length_size(id as usize))
            .sum::<usize>();
        expiry + alias + identifiers + self.properties.len()
    }

    /// Whether receivers are told of the expiry: only if the publisher set one, and not if the broker's limit did.
    fn announces_expiry(&self) -> bool {
        self.expiry.is_some() && self.expires_at.is_some()
    }

    /// Seconds that are left of its expiry ([MQTT-3.3.2-6]); at least 1 as long as it is delivered at all.
    fn remaining(&self, now: BrokerTime) -> u32 {
        let left = self
            .expires_at
            .map_or(0, |at| at.since(now).as_millis().div_ceil(1000));
        u32::try_from(left).unwrap_or(u32::MAX).max(1)
    }
}

impl Hop<'_> {
    fn sends_topic(&self) -> bool {
        self.alias.is_none_or(|(_, with_topic)| with_topic)
    }
}

fn first_byte(hop: &Hop<'_>) -> u8 {
    0x30 | (u8::from(hop.dup) << 3) | (u8::from(hop.qos) << 1) | u8::from(hop.retain)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: BrokerTime = BrokerTime(1000);

    fn hop(version: Version, qos: Qos) -> Hop<'static> {
        let alias = None;
        Hop {
            version,
            qos,
            retain: false,
            dup: false,
            packet_id: 0x0102,
            identifiers: &[],
            alias,
            now: NOW,
        }
    }

    fn message(payload: &'static [u8], shared: bool) -> Message {
        let properties = Bytes::from_static(b"\x26\x00\x01k\x00\x01v");
        let topic = TopicName::new("a/b").unwrap();
        Message {
            shared,
            ..Message::new(topic, Bytes::from_static(payload), properties)
        }
    }

    fn written(message: &Message, hop: &Hop<'_>) -> Vec<u8> {
        let mut out = BytesMut::from(&b"before"[..]);
        let rest = message.write(hop, &mut out).unwrap_or_default();
        assert_eq!(out.len() - 6 + rest.len(), message.packet_size(hop));
        [&out[6..], &rest].concat()
    }

    #[test]
    fn shared_and_single_encodings_are_the_same() {
        for payload in [&b"x"[..], &[7; INLINE_PAYLOAD + 1]] {
            for version in [Version::V311, Version::V5] {
                for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                    let first = hop(version, qos);
                    let second = Hop {
                        retain: true,
                        packet_id: 9,
                        ..first
                    };
                    let (shared, single) = (message(payload, true), message(payload, false));
                    for hop in [first, second] {
                        assert_eq!(written(&shared, &hop), written(&single, &hop));
                    }
                }
            }
        }
    }

    #[test]
    fn a_delivery_is_what_the_standard_says() {
        let packet = written(&message(b"x", true), &hop(Version::V5, Qos::AtLeastOnce));
        assert_eq!(packet, b"\x32\x10\x00\x03a/b\x01\x02\x07\x26\x00\x01k\x00\x01vx");
        let packet = written(&message(b"x", true), &hop(Version::V311, Qos::AtMostOnce));
        assert_eq!(packet, b"\x30\x06\x00\x03a/bx");
        let identified = Hop {
            identifiers: &[1, 200],
            alias: Some((5, false)),
            ..hop(Version::V5, Qos::AtMostOnce)
        };
        let packet = written(&message(b"x", true), &identified);
        assert_eq!(
            packet,
            b"\x30\x13\x00\x00\x0f\x23\x00\x05\x0b\x01\x0b\xc8\x01\x26\x00\x01k\x00\x01vx"
        );
    }

    #[test]
    fn expiry_counts_down_in_the_shared_packet() {
        let expires_at = Some(NOW.after(Duration::from_secs(60)));
        let message = Message {
            expires_at,
            expiry: Some(60),
            ..message(b"x", true)
        };
        let first = hop(Version::V5, Qos::AtMostOnce);
        let later = Hop {
            now: NOW.after(Duration::from_millis(20_500)),
            ..first
        };
        assert_eq!(written(&message, &first)[8..13], [MESSAGE_EXPIRY, 0, 0, 0, 60]);
        assert_eq!(written(&message, &later)[8..13], [MESSAGE_EXPIRY, 0, 0, 0, 40]);
        assert!(!message.is_expired(later.now) && message.is_expired(NOW.after(Duration::from_secs(60))));
    }

    #[test]
    fn what_was_stored_is_delivered_alike() {
        let published = Message {
            qos: Qos::AtLeastOnce,
            ..message(b"x", false)
        };
        let restored = Message::from_record(published.record(), None);
        let hop = hop(Version::V5, Qos::AtLeastOnce);
        assert_eq!(written(&published, &hop), written(&restored, &hop));
    }
}
