//! Wills: what is published when a client goes without a good-bye (MQTT 5.0 section 3.1.2.5).
//!
//! A will is stored when its client connects, so that it is published even if the broker dies with the connection.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foreshore_record::{Qos, TopicName, record::Properties};
use foreshore_store::{Blob, BrokerTime, Operation};
use serde::{Deserialize, Serialize};

use crate::{
    engine::Engine,
    message::Message,
    wire::{ReasonCode, connect::Will, properties},
};

/// What is stored of a will.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WillRow {
    topic: String,
    /// Each byte a number: wills are small and rare, and nobody reads them but the broker.
    payload: Bytes,
    qos: Qos,
    retain: bool,
    delay: u32,
    properties: Properties,
    /// When it falls due, in milliseconds of the broker's clock; absent while its client is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<u64>,
}

/// Writes a will; `due` is when it is published, once its client is gone.
pub(crate) fn put(client_id: &str, will: &Will, due: Option<BrokerTime>) -> Operation {
    let row = WillRow {
        topic: will.topic.clone(),
        payload: will.payload.clone(),
        qos: will.qos,
        retain: will.retain,
        delay: will.delay,
        properties: will.properties.clone(),
        due: due.map(|due| due.0),
    };
    // The row holds no maps with keys other than texts and nothing that fails to serialize.
    let state = serde_json::to_vec(&row).unwrap_or_default().into();
    Operation::PutWill {
        client_id: client_id.to_owned(),
        state,
    }
}

/// Forgets a will.
pub(crate) fn delete(client_id: &str) -> Operation {
    Operation::DeleteWill {
        client_id: client_id.to_owned(),
    }
}

/// Reads a will back, and when it falls due.
///
/// # Errors
/// When the row is damaged.
pub(crate) fn read(blob: &Blob) -> Result<(Will, Option<BrokerTime>), serde_json::Error> {
    let row: WillRow = serde_json::from_slice(&blob.state)?;
    let WillRow {
        topic,
        payload,
        qos,
        retain,
        delay,
        properties,
        due,
    } = row;
    Ok((
        Will {
            topic,
            payload,
            qos,
            retain,
            delay,
            properties,
        },
        due.map(BrokerTime),
    ))
}

impl Will {
    /// Checks what the codec did not.
    pub(crate) fn check(&self) -> Result<TopicName, ReasonCode> {
        let invalid = |_| ReasonCode::TopicNameInvalid;
        let wildcard = |topic: &String| topic.contains(['+', '#', '\0']);
        if self.properties.response_topic.as_ref().is_some_and(wildcard) {
            return Err(ReasonCode::ProtocolError);
        }
        TopicName::new(&self.topic).map_err(invalid)
    }

    /// Bytes that it holds in memory. A user property of five bytes in CONNECT takes ten times as much here.
    pub(crate) fn memory(&self) -> usize {
        let Properties {
            content_type,
            response_topic,
            correlation_data,
            user,
            ..
        } = &self.properties;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let pairs = user
            .iter()
            .map(|pair| size_of_val(pair) + pair.0.len() + pair.1.len());
        size_of::<Self>()
            + self.topic.len()
            + self.payload.len()
            + text(content_type)
            + text(response_topic)
            + correlation_data.as_ref().map_or(0, Bytes::len)
            + pairs.sum::<usize>()
    }

    /// The message that is published.
    fn message(&self, now: BrokerTime) -> Option<Message> {
        let topic = TopicName::new(&self.topic).ok()?;
        let expiry = self.properties.expiry_seconds;
        Some(Message {
            qos: self.qos,
            retain: self.retain,
            expiry,
            expires_at: expiry.map(|seconds| now.after(Duration::from_secs(seconds.into()))),
            ..Message::new(topic, self.payload.clone(), properties::encode(&self.properties))
        })
    }
}

impl Engine {
    /// Publishes a client's will and forgets it.
    pub(crate) async fn publish_will(self: &Arc<Self>, client_id: &str, will: &Will) {
        let Some(message) = will.message(self.now()) else {
            return;
        };
        let also = vec![delete(client_id)];
        if let Err(error) = self.publish(message, also).await {
            tracing::warn!(client = client_id, %error, "the will could not be published and stays stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wills_are_read_back() {
        let will = Will {
            topic: "a/b".to_owned(),
            payload: Bytes::from_static(b"\x00gone"),
            qos: Qos::AtLeastOnce,
            retain: true,
            delay: 5,
            properties: Properties {
                expiry_seconds: Some(9),
                ..Properties::default()
            },
        };
        for due in [None, Some(BrokerTime(7))] {
            let Operation::PutWill { client_id, state } = put("c", &will, due) else {
                panic!()
            };
            assert_eq!(read(&Blob { client_id, state }).unwrap(), (will.clone(), due));
        }
        assert!(will.check().is_ok());
        let wild = Will {
            topic: "a/#".to_owned(),
            ..will
        };
        assert_eq!(wild.check(), Err(ReasonCode::TopicNameInvalid));
    }
}
