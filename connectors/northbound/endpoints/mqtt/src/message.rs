//! What is published for a record.

use foreshore_control::Nack;
use foreshore_crds::v1alpha1::dataflow::MqttSink as MqttSpec;
use foreshore_northbound::SinkSetup;
use foreshore_record::{Qos, Record, TopicName, topic::InvalidTopic};
use jiff::Timestamp;

/// How records become messages.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    topic: Vec<Part>,
    qos: Qos,
    retain: Option<bool>,
}

/// A part of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{topic}`
    Topic,
    /// `{topic.N}`, counted from 0 here.
    Level(usize),
}

/// Why there is no message for a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoMessage {
    #[error("topic {topic:?} has no level {level}")]
    Level { topic: String, level: usize },
    #[error("topic: {0}")]
    Topic(#[from] InvalidTopic),
}

impl Template {
    pub(crate) fn new(setup: &SinkSetup) -> Result<Self, Nack> {
        let spec = setup.sink.mqtt.clone().unwrap_or_default();
        let MqttSpec { topic, retain, .. } = &spec;
        let source = topic.as_ref().map_or("{topic}", |topic| topic.as_str());
        let topic = parse(source).ok_or_else(|| {
            let allowed = "{topic} and its levels {topic.1}, {topic.2}, … are allowed";
            Nack::new(
                "TopicInvalid",
                format!("topic {source:?} has a placeholder that it can't have here: {allowed}"),
            )
        })?;
        let qos = Qos::try_from(u8::from(spec.effective_qos()))
            .map_err(|error| Nack::new("InvalidResource", error.to_string()))?;
        Ok(Self {
            topic,
            qos,
            retain: *retain,
        })
    }

    /// The message for a record.
    pub(crate) fn message(&self, record: &Record, now: Timestamp) -> Result<Record, NoMessage> {
        let mut message = record.clone();
        if self.topic != [Part::Topic] {
            message.topic = self.topic(record.topic.as_str())?;
        }
        message.qos = self.qos;
        message.retain = self.retain.unwrap_or(record.retain);
        message.number = None;
        if let (Some(expiry), Some(ingested)) = (message.properties.expiry_seconds, record.ingested_at) {
            let age = u32::try_from(now.duration_since(ingested).as_secs().max(0)).unwrap_or(u32::MAX);
            // What has expired leaves the queue by itself; 0 would mean that it never does.
            message.properties.expiry_seconds = Some(expiry.saturating_sub(age).max(1));
        }
        Ok(message)
    }

    fn topic(&self, topic: &str) -> Result<TopicName, NoMessage> {
        let mut filled = String::new();
        for part in &self.topic {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Topic => filled.push_str(topic),
                Part::Level(level) => {
                    let missing = || NoMessage::Level {
                        topic: topic.to_owned(),
                        level: level + 1,
                    };
                    filled.push_str(topic.split('/').nth(*level).ok_or_else(missing)?);
                }
            }
        }
        Ok(TopicName::new(filled)?)
    }
}

fn parse(source: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = source;
    while let Some((text, after)) = rest.split_once('{') {
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let (name, tail) = after.split_once('}')?;
        parts.push(match name.split_once('.') {
            None if name == "topic" => Part::Topic,
            Some(("topic", level)) => Part::Level(level.parse::<usize>().ok()?.checked_sub(1)?),
            _ => return None,
        });
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Some(parts)
}
