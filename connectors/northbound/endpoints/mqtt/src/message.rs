//! What is published for a record.
//!
//! A record carries where it has been: each broker that it left for another one adds what it is known by. So whatever way
//! it takes, it enters none twice.

use foreshore_control::Nack;
use foreshore_crds::v1alpha1::dataflow::MqttSink as MqttSpec;
use foreshore_northbound::{EndpointSetup, SinkSetup};
use foreshore_record::{Qos, Record, TopicName, property::VIA, topic::InvalidTopic};
use jiff::Timestamp;

/// How records become messages.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    topic: Vec<Part>,
    qos: Qos,
    retain: Option<bool>,
    /// What the broker that records come from is known by, and the one that they go to.
    way: (String, String),
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
    #[error("it has been there")]
    Loop,
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
            way: (setup.origin.clone(), target(setup).to_owned()),
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
        self.mark(&mut message)?;
        if let (Some(expiry), Some(ingested)) = (message.properties.expiry_seconds, record.ingested_at) {
            let age = u32::try_from(now.duration_since(ingested).as_secs().max(0)).unwrap_or(u32::MAX);
            // What has expired leaves the queue by itself; 0 would mean that it never does.
            message.properties.expiry_seconds = Some(expiry.saturating_sub(age).max(1));
        }
        Ok(message)
    }

    /// Notes on a message which broker it leaves, unless it has been where it goes.
    fn mark(&self, message: &mut Record) -> Result<(), NoMessage> {
        let (from, to) = &self.way;
        let user = &mut message.properties.user;
        if from == to {
            // Published anew where it was, it is another message.
            user.retain(|(name, _)| name != VIA);
            return Ok(());
        }
        let has_been = |at: &str| user.iter().any(|(name, value)| name == VIA && value == at);
        if has_been(to) {
            return Err(NoMessage::Loop);
        }
        if !from.is_empty() && !has_been(from) {
            message.properties.push_user(VIA, from.as_str());
        }
        Ok(())
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

/// What the broker that a sink leads to is known by: the UID of a Broker of ours, or of the endpoint.
fn target(setup: &SinkSetup) -> &str {
    let EndpointSetup {
        endpoint, brokers, ..
    } = &setup.endpoint;
    let reference = endpoint
        .spec
        .mqtt
        .as_ref()
        .and_then(|mqtt| mqtt.broker_ref.as_ref());
    match reference {
        Some(broker) => brokers.get(broker.name.as_str()).map_or("", |broker| &broker.uid),
        None => &endpoint.object.uid,
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
