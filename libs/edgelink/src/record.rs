//! Records as messages.

use foreshore_record::{Qos, Record, SourceNumber, TopicName, record::Properties, topic::InvalidTopic};
use jiff::Timestamp;

use crate::proto;

/// A message that is not a record.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidRecord {
    /// Its topic is no topic name.
    #[error(transparent)]
    Topic(#[from] InvalidTopic),
    /// Its quality of service does not exist.
    #[error("quality of service {found} is not allowed: 0, 1 or 2 is")]
    Qos {
        /// What was given.
        found: u32,
    },
}

/// Bytes of topic, properties and payload: what the limit on records counts.
#[must_use]
pub fn size(record: &Record) -> usize {
    let Properties {
        content_type,
        payload_is_utf8: _,
        expiry_seconds: _,
        response_topic,
        correlation_data,
        user,
    } = &record.properties;
    let user: usize = user.iter().map(|(name, value)| name.len() + value.len()).sum();
    record.topic.as_str().len()
        + record.payload.len()
        + content_type.as_ref().map_or(0, String::len)
        + response_topic.as_ref().map_or(0, String::len)
        + correlation_data.as_ref().map_or(0, |data| data.len())
        + user
}

/// The record as a message. The payload is shared, not copied.
#[must_use]
pub fn to_proto(record: &Record) -> proto::Record {
    let Record {
        topic,
        payload,
        qos,
        retain,
        properties,
        number,
        ingested_at,
    } = record;
    let user = properties.user.iter();
    proto::Record {
        topic: topic.as_str().to_owned(),
        payload: payload.clone(),
        qos: u32::from(u8::from(*qos)),
        retain: *retain,
        content_type: properties.content_type.clone(),
        payload_is_utf8: properties.payload_is_utf8,
        expiry_seconds: properties.expiry_seconds,
        response_topic: properties.response_topic.clone(),
        correlation_data: properties.correlation_data.clone(),
        user: user
            .map(|(name, value)| proto::UserProperty {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        number: number.as_ref().map(|number| proto::SourceNumber {
            source: number.source.clone(),
            epoch: number.epoch,
            sequence: number.sequence,
        }),
        // Times beyond the year 2262 don't fit; no broker's clock shows one.
        ingested_at: ingested_at.and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
    }
}

/// The record of a message.
///
/// # Errors
/// [`InvalidRecord`], naming what no record of ours holds.
pub fn from_proto(message: proto::Record) -> Result<Record, InvalidRecord> {
    let invalid_qos = |_| InvalidRecord::Qos { found: message.qos };
    let qos = u8::try_from(message.qos).map_err(invalid_qos)?;
    let qos = Qos::try_from(qos).map_err(|_| InvalidRecord::Qos { found: message.qos })?;
    // Every such time is within a timestamp's range.
    let ingested_at = message
        .ingested_at
        .and_then(|time| Timestamp::from_nanosecond(i128::from(time)).ok());
    Ok(Record {
        topic: TopicName::new(&message.topic)?,
        payload: message.payload,
        qos,
        retain: message.retain,
        properties: Properties {
            content_type: message.content_type,
            payload_is_utf8: message.payload_is_utf8,
            expiry_seconds: message.expiry_seconds,
            response_topic: message.response_topic,
            correlation_data: message.correlation_data,
            user: message
                .user
                .into_iter()
                .map(|property| (property.name, property.value))
                .collect(),
        },
        number: message.number.map(|number| SourceNumber {
            source: number.source,
            epoch: number.epoch,
            sequence: number.sequence,
        }),
        ingested_at,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_record_survives_the_wire_whole() {
        let mut record = Record::new(TopicName::new("a/b").unwrap(), "payload");
        record.qos = Qos::ExactlyOnce;
        record.retain = true;
        record.properties = Properties {
            content_type: Some("application/json".to_owned()),
            payload_is_utf8: true,
            expiry_seconds: Some(7),
            response_topic: Some("c".to_owned()),
            correlation_data: Some(Bytes::from_static(b"\0\xff")),
            user: vec![("n".to_owned(), "v".to_owned()), ("n".to_owned(), "w".to_owned())],
        };
        record.number = Some(SourceNumber {
            source: "s".to_owned(),
            epoch: u64::MAX,
            sequence: 3,
        });
        record.ingested_at = Some("2026-03-01T12:00:00.123456789Z".parse().unwrap());
        assert_eq!(from_proto(to_proto(&record)).unwrap(), record);
        assert_eq!(size(&record), 3 + 7 + 16 + 1 + 2 + 4);

        let plain = Record::new(TopicName::new("a").unwrap(), "");
        assert_eq!(from_proto(to_proto(&plain)).unwrap(), plain);
    }

    #[test]
    fn what_no_record_holds_is_named() {
        let message = to_proto(&Record::new(TopicName::new("a").unwrap(), ""));
        let wrong = proto::Record {
            topic: "a/#".to_owned(),
            ..message.clone()
        };
        assert!(matches!(from_proto(wrong), Err(InvalidRecord::Topic(_))));
        for found in [3, 256, u32::MAX] {
            let wrong = proto::Record {
                qos: found,
                ..message.clone()
            };
            assert_eq!(from_proto(wrong), Err(InvalidRecord::Qos { found }));
        }
    }
}
