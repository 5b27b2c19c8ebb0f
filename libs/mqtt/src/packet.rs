//! Records to packets and back.

use std::{
    num::{NonZeroU16, NonZeroU32},
    ops::Range,
};

use bytes::{BufMut, BytesMut};
use foreshore_record::{Qos, Record, SourceNumber, TopicName, record::Properties, topic::InvalidTopic};
use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{Codec, Packet, PublishProperties},
};
use tokio_util::codec::Encoder;

use crate::{error::PublishError, version::Version};

/// The codec's quality of service.
#[must_use]
pub fn qos_to_codec(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// The record's quality of service.
#[must_use]
pub fn qos_from_codec(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// The PUBLISH packet of a record, its number among the user properties.
#[must_use]
pub fn to_publish(record: &Record, packet_id: Option<NonZeroU16>) -> Publish {
    let properties = &record.properties;
    let mut user: Vec<_> = properties
        .user
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect();
    if let Some(number) = &record.number {
        let mut numbered = Properties::default();
        number.write_to(&mut numbered);
        user.extend(
            numbered
                .user
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
    }
    Publish {
        dup: false,
        retain: record.retain,
        qos: qos_to_codec(record.qos),
        topic: record.topic.as_str().into(),
        packet_id,
        payload: record.payload.clone(),
        properties: Some(PublishProperties {
            topic_alias: None,
            correlation_data: properties.correlation_data.clone(),
            message_expiry_interval: properties.expiry_seconds.and_then(NonZeroU32::new),
            content_type: properties.content_type.as_deref().map(Into::into),
            user_properties: user,
            is_utf8_payload: properties.payload_is_utf8,
            response_topic: properties.response_topic.as_deref().map(Into::into),
            subscription_ids: Vec::new(),
        }),
    }
}

/// The record of a PUBLISH packet, with its number if it has one. Whether the number is to be believed is for the
/// receiver to decide; one that is there only in part stays among the user properties.
///
/// # Errors
/// When the topic is not a topic name.
pub fn from_publish(publish: Publish) -> Result<Record, InvalidTopic> {
    let found = publish.properties.unwrap_or_default();
    let mut properties = Properties {
        content_type: found.content_type.map(|text| text.to_string()),
        payload_is_utf8: found.is_utf8_payload,
        expiry_seconds: found.message_expiry_interval.map(NonZeroU32::get),
        response_topic: found.response_topic.map(|text| text.to_string()),
        correlation_data: found.correlation_data,
        user: found
            .user_properties
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
    };
    let number = SourceNumber::from_properties(&properties).ok().flatten();
    if number.is_some() {
        use foreshore_record::property::{EPOCH, SEQUENCE, SOURCE};
        properties
            .user
            .retain(|(name, _)| ![SOURCE, EPOCH, SEQUENCE].contains(&name.as_str()));
    }
    Ok(Record {
        topic: TopicName::new(&*publish.topic)?,
        payload: publish.payload,
        qos: qos_from_codec(publish.qos),
        retain: publish.retain,
        properties,
        number,
        ingested_at: None,
    })
}

/// A PUBLISH packet of MQTT 5 that is encoded already; only packet identifier and DUP flag are written anew at each
/// sending. For 3.1.1 its properties are left out.
#[derive(Debug)]
pub(crate) struct EncodedPublish {
    bytes: BytesMut,
    /// Where the packet identifier is; `None` with QoS 0, which has none.
    id_at: Option<usize>,
    /// Where the fixed header ends.
    header: usize,
    /// Where the properties are, with their length.
    properties: Range<usize>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

/// The DUP flag in the first byte of a PUBLISH packet (MQTT 5.0, section 3.3.1.1).
const DUP: u8 = 0b0000_1000;

impl EncodedPublish {
    pub(crate) fn new(record: &Record) -> Result<Self, PublishError> {
        let placeholder = (record.qos != Qos::AtMostOnce).then_some(NonZeroU16::MIN);
        let packet = Packet::Publish(Box::new(to_publish(record, placeholder)));
        let mut bytes = BytesMut::new();
        Codec::default()
            .encode(packet, &mut bytes)
            .map_err(|error| PublishError::Encode {
                reason: error.to_string(),
            })?;
        // Type and flags, length, topic with its length, packet identifier, length of the properties.
        let header = 1 + variable_length(&bytes, 1).1;
        let after_topic = header + 2 + record.topic.as_str().len();
        let id_at = placeholder.map(|_| after_topic);
        let start = id_at.map_or(after_topic, |at| at + 2);
        let (length, length_bytes) = variable_length(&bytes, start);
        Ok(Self {
            id_at,
            header,
            properties: start..(start + length_bytes + length).min(bytes.len()),
            bytes,
            qos: record.qos,
            retain: record.retain,
        })
    }

    /// Size of the whole packet in bytes.
    pub(crate) fn len(&self, version: Version) -> usize {
        match version {
            Version::V5 => self.bytes.len(),
            Version::V311 => {
                let body = self.body_without_properties();
                1 + encode_variable_length(body).1 + body
            }
        }
    }

    /// Bytes after the fixed header, without properties.
    fn body_without_properties(&self) -> usize {
        self.bytes.len() - self.header - self.properties.len()
    }

    /// Appends the packet.
    pub(crate) fn write(&self, version: Version, id: Option<NonZeroU16>, dup: bool, out: &mut BytesMut) {
        let start = out.len();
        let header = match version {
            Version::V5 => {
                out.put_slice(&self.bytes);
                self.header
            }
            Version::V311 => {
                let part = |range: Range<usize>| self.bytes.get(range).unwrap_or_default();
                let (length, length_bytes) = encode_variable_length(self.body_without_properties());
                out.put_slice(part(0..1));
                out.put_slice(length.get(..length_bytes).unwrap_or_default());
                out.put_slice(part(self.header..self.properties.start));
                out.put_slice(part(self.properties.end..self.bytes.len()));
                1 + length_bytes
            }
        };
        if let (Some(at), Some(id)) = (self.id_at, id)
            && let at = start + header + (at - self.header)
            && let Some(place) = out.get_mut(at..at + 2)
        {
            place.copy_from_slice(&id.get().to_be_bytes());
        }
        if dup && let Some(first) = out.get_mut(start) {
            *first |= DUP;
        }
    }
}

/// A variable byte integer (MQTT 5.0, section 1.5.5) and how many bytes it takes.
fn variable_length(bytes: &[u8], at: usize) -> (usize, usize) {
    let (mut value, mut count) = (0, 0);
    for byte in bytes.iter().skip(at).take(4) {
        value |= usize::from(byte & 0x7F) << (7 * count);
        count += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    (value, count)
}

/// The variable byte integer of a value, and how many bytes it takes.
fn encode_variable_length(value: usize) -> ([u8; 4], usize) {
    let (mut bytes, mut count, mut rest) = ([0; 4], 0, value);
    for place in &mut bytes {
        *place = u8::try_from(rest & 0x7F).unwrap_or_default();
        rest >>= 7;
        count += 1;
        if rest == 0 {
            break;
        }
        *place |= 0x80;
    }
    (bytes, count)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmqtt_codec::{v3, v5::Packet};
    use tokio_util::codec::Decoder;

    use super::*;

    fn record(topic: &str, payload: Vec<u8>, qos: Qos) -> Record {
        let mut record = Record::new(TopicName::new(topic).unwrap(), payload);
        record.qos = qos;
        record.properties.content_type = Some("application/json".into());
        record.properties.expiry_seconds = Some(60);
        record.properties.push_user("a", "1");
        record.properties.push_user("a", "2");
        record.number = Some(SourceNumber {
            source: "connector/a/b".into(),
            epoch: 3,
            sequence: 9,
        });
        record
    }

    fn decode(bytes: &mut BytesMut) -> Publish {
        match Codec::default().decode(bytes).unwrap() {
            Some((Packet::Publish(publish), _)) => *publish,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn a_record_survives_its_packet(
            topic in "[a-z/]{1,200}",
            payload in proptest::collection::vec(any::<u8>(), 0..40_000),
            qos in 0_u8..3,
            id in 1_u16..,
            dup: bool,
        ) {
            let record = record(&topic, payload, Qos::try_from(qos).unwrap());
            let encoded = EncodedPublish::new(&record).unwrap();
            let mut out = BytesMut::from(&b""[..]);
            let id = NonZeroU16::new(id).filter(|_| qos > 0);
            encoded.write(Version::V5, id, dup, &mut out);
            prop_assert_eq!(out.len(), encoded.len(Version::V5));
            let publish = decode(&mut out);
            prop_assert!(out.is_empty());
            prop_assert_eq!((publish.packet_id, publish.dup), (id, dup));
            prop_assert_eq!(&from_publish(publish).unwrap(), &record);

            // 3.1.1 carries the message without properties.
            let mut out = BytesMut::new();
            encoded.write(Version::V311, id, dup, &mut out);
            prop_assert_eq!(out.len(), encoded.len(Version::V311));
            let Some((v3::Packet::Publish(publish), _)) = v3::Codec::default().decode(&mut out).unwrap() else {
                panic!("no publish");
            };
            prop_assert!(out.is_empty());
            prop_assert_eq!((publish.packet_id, publish.dup), (id, dup));
            let found = from_publish(*publish).unwrap();
            prop_assert_eq!((found.topic, found.payload, found.qos), (record.topic, record.payload, record.qos));
            prop_assert_eq!(found.properties, Properties::default());
        }
    }

    #[test]
    fn half_a_number_is_no_number() {
        let mut half = record("a", vec![], Qos::AtLeastOnce);
        half.number = None;
        half.properties
            .push_user(foreshore_record::property::SOURCE, "me");
        assert_eq!(from_publish(to_publish(&half, NonZeroU16::new(1))).unwrap(), half);
    }
}
