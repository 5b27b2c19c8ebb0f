//! From what a link saw to records.

use foreshore_record::{DataValue, Record, property, record::Properties};
use jiff::Timestamp;
use rand::Rng;

use super::{
    book::Route,
    frames::{Frame, Payload},
};
use crate::{
    observation::{Event, Picture},
    plan::AssetPlan,
};

/// Name under which other systems know the asset.
pub(crate) const EXTERNAL_ID: &str = "foreshore-external-id";
/// What the device names as the source of an event.
pub(crate) const EVENT_SOURCE: &str = "foreshore-event-source";

/// What all messages of an asset say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender<'a> {
    pub(crate) asset: &'a AssetPlan,
    /// URI of the link's source.
    pub(crate) source: &'a str,
}

impl Sender<'_> {
    /// A dataset message.
    ///
    /// # Errors
    /// When a value can't be written as JSON; connectors make none such.
    pub(crate) fn dataset(
        &self,
        dataset: &str,
        route: &Route,
        frame: &Frame,
        now: Timestamp,
    ) -> Result<Record, serde_json::Error> {
        let payload = serde_json::to_vec(&Payload(&frame.values))?;
        let newest = frame
            .values
            .iter()
            .filter_map(|(_, value): &(_, DataValue)| value.source_timestamp)
            .max();
        let (kind, type_) = if frame.key {
            ("key", property::TYPE_KEYFRAME)
        } else {
            ("delta", property::TYPE_DELTAFRAME)
        };
        let mut properties = self.properties(dataset, type_, newest.unwrap_or(now));
        properties.push_user(property::FRAME, kind);
        Ok(self.record(route, payload, json(properties)))
    }

    /// The message of an event.
    ///
    /// # Errors
    /// When a field can't be written as JSON; connectors make none such.
    pub(crate) fn event(&self, route: &Route, event: &Event) -> Result<Record, serde_json::Error> {
        let payload = serde_json::to_vec(&event.body)?;
        let member = format!("{}/{}", event.group, event.event);
        let mut properties = self.properties(&member, property::TYPE_EVENT, event.time);
        if !event.source.is_empty() {
            properties.push_user(EVENT_SOURCE, event.source.as_str());
        }
        Ok(self.record(route, payload, json(properties)))
    }

    /// The message of a picture.
    pub(crate) fn picture(&self, route: &Route, picture: &Picture) -> Record {
        let mut properties = self.properties(&picture.stream, property::TYPE_SNAPSHOT, picture.captured_at);
        properties.content_type = Some(picture.media_type.to_string());
        properties.push_user(property::CAPTURED_AT, picture.captured_at.to_string());
        for (name, value) in [
            (property::WIDTH, picture.width),
            (property::HEIGHT, picture.height),
        ] {
            if let Some(value) = value {
                properties.push_user(name, value.to_string());
            }
        }
        self.record(route, picture.image.clone(), properties)
    }

    fn record(&self, route: &Route, payload: impl Into<bytes::Bytes>, properties: Properties) -> Record {
        let mut record = Record::new(route.topic.clone(), payload);
        (record.qos, record.retain) = (route.qos, route.retain);
        record.properties = properties;
        record.properties.expiry_seconds = route.expiry_seconds;
        record
    }

    /// CloudEvents attributes, the asset's identity and a trace context.
    fn properties(&self, member: &str, type_: &str, time: Timestamp) -> Properties {
        let object = &self.asset.object;
        let mut properties = Properties::default();
        properties.push_user(property::CE_SPECVERSION, "1.0");
        properties.push_user(property::CE_ID, identifier());
        properties.push_user(property::CE_TYPE, type_);
        properties.push_user(property::CE_SOURCE, self.source);
        properties.push_user(property::CE_TIME, time.to_string());
        properties.push_user(property::CE_SUBJECT, format!("{}/{member}", object.name));
        properties.push_user(property::NAMESPACE, object.namespace.as_str());
        properties.push_user(property::ASSET, object.name.as_str());
        properties.push_user(property::MEMBER, member);
        if let Some(external) = &self.asset.spec.external_id {
            properties.push_user(EXTERNAL_ID, external.as_str());
        }
        properties.push_user(property::TRACEPARENT, traceparent());
        properties
    }
}

fn json(mut properties: Properties) -> Properties {
    properties.content_type = Some("application/json".to_owned());
    properties.payload_is_utf8 = true;
    properties
}

/// A random identifier (UUID version 4): unique within every source.
fn identifier() -> String {
    uuid::Builder::from_random_bytes(rand::rng().random())
        .into_uuid()
        .to_string()
}

/// The beginning of a trace that is not sampled (W3C Trace Context, section 3.2).
fn traceparent() -> String {
    let mut random = rand::rng();
    // All zeros are not allowed.
    let (trace, span) = (random.random::<u128>().max(1), random.random::<u64>().max(1));
    format!("00-{trace:032x}-{span:016x}-00")
}
