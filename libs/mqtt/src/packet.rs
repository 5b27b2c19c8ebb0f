//! Records to packets and back.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{BufMut, BytesMut};
use foreshore_record::{Qos, Record, SourceNumber, TopicName, record::Properties, topic::InvalidTopic};
use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{Codec, Packet, PublishProperties},
};
use tokio_util::codec::Encoder;

use crate::error::PublishError;

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

/// A PUBLISH packet that is encoded already; only packet identifier and DUP flag are written anew at each sending.
#[derive(Debug)]
pub(crate) struct EncodedPublish {
    bytes: BytesMut,
    /// Where the packet identifier is; `None` with QoS 0, which has none.
    id_at: Option<usize>,
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
        // Fixed header, length in 1 to 4 bytes of which all but the last have the top bit set, topic with its length.
        let length_bytes = 1 + bytes.iter().skip(1).take_while(|byte| **byte & 0x80 != 0).count();
        let id_at = placeholder.map(|_| 1 + length_bytes + 2 + record.topic.as_str().len());
        Ok(Self {
            bytes,
            id_at,
            qos: record.qos,
            retain: record.retain,
        })
    }

    /// Size of the whole packet in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the packet.
    pub(crate) fn write(&self, id: Option<NonZeroU16>, dup: bool, out: &mut BytesMut) {
        let start = out.len();
        out.put_slice(&self.bytes);
        if let (Some(at), Some(id)) = (self.id_at, id)
            && let Some(place) = out.get_mut(start + at..start + at + 2)
        {
            place.copy_from_slice(&id.get().to_be_bytes());
        }
        if dup && let Some(first) = out.get_mut(start) {
            *first |= DUP;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmqtt_codec::v5::Packet;
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
            encoded.write(id, dup, &mut out);
            prop_assert_eq!(out.len(), encoded.len());
            let publish = decode(&mut out);
            prop_assert!(out.is_empty());
            prop_assert_eq!((publish.packet_id, publish.dup), (id, dup));
            prop_assert_eq!(from_publish(publish).unwrap(), record);
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
