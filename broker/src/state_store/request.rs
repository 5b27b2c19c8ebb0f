//! A request: what a client's message asks of the state store, and the messages that it is answered with.

use bytes::Bytes;
use foreshore_record::{Qos, TopicName, record::Properties};
use foreshore_store::BrokerTime;

use super::{
    clock::{Timestamp, Version},
    command::{Command, CommandError, Reply},
    keys::Change,
    resp3, topics,
};
use crate::{message::Message, wire::properties};

/// The client's time, and the version of a value in an answer.
const TIMESTAMP: &str = "__ts";

/// The client's fencing token.
const FENCING_TOKEN: &str = "__ft";

/// Version of the request/response protocol, of a request or an answer.
const PROTOCOL_VERSION: &str = "__protVer";

/// Outcome of a request as an HTTP status. What the state store refuses is told in the payload: 200 as well.
const STATUS: &str = "__stat";

const STATUS_MESSAGE: &str = "__stMsg";
const SUPPORTED_MAJOR_VERSIONS: &str = "__supProtMajVer";
const REQUEST_VERSION: &str = "__requestProtVer";

/// The version that we speak.
const VERSION: &str = "1.0";
const MAJOR_VERSION: &str = "1";

/// What payloads are.
const CONTENT_TYPE: &str = "application/octet-stream";

/// What a request costs in memory beside its key, value and answer, about.
const OVERHEAD: usize = 1024;

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    /// Where the answer goes.
    response_topic: TopicName,
    /// What the client recognises the answer by.
    correlation_data: Bytes,
    /// Seconds that the client waits for the answer.
    expiry: Option<u32>,
    /// When the client waits no more.
    expires_at: Option<BrokerTime>,
    /// What is asked.
    pub(super) asked: Result<Asked, Unanswerable>,
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: Command,
    /// The client's time.
    pub(super) timestamp: Option<Timestamp>,
    /// The client's fencing token.
    pub(super) fence: Option<Timestamp>,
}

/// Why a request is refused before it is looked at closer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswerable {
    /// It can't be read.
    Command(CommandError),
    /// It is of a version of the request/response protocol that we do not speak.
    Version(String),
}

/// A message that is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRequest {
    /// It can't be answered, and is refused.
    Refused(&'static str),
    /// It would be answered where no client may have answers published: its client is disconnected, as published.
    Forbidden(&'static str),
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// When it can't be answered.
    pub(crate) fn read(message: &Message) -> Result<Self, NoRequest> {
        if message.qos != Qos::AtLeastOnce {
            return Err(NoRequest::Refused(
                "a request to the state store has quality of service 1",
            ));
        }
        if message.retain {
            return Err(NoRequest::Refused("a request to the state store is not retained"));
        }
        let properties = properties::decode(&message.properties, None);
        let response_topic = properties.response_topic.as_ref().ok_or(NoRequest::Refused(
            "a request to the state store has a response topic",
        ))?;
        let response_topic = TopicName::new(response_topic)
            .map_err(|_| NoRequest::Forbidden("the response topic is not a topic name"))?;
        if topics::is_request(&response_topic) || topics::is_reserved(&response_topic) {
            let detail = "the response topic is one of the state store's own";
            return Err(NoRequest::Forbidden(detail));
        }
        let correlation_data = properties.correlation_data.clone().ok_or(NoRequest::Refused(
            "a request to the state store has correlation data",
        ))?;
        Ok(Self {
            response_topic,
            correlation_data,
            expiry: message.expiry,
            expires_at: message.expires_at,
            asked: Asked::read(&message.payload, &properties),
        })
    }

    /// About what it and its answer weigh in the committer's queue, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let command = self.asked.as_ref().map_or(0, |asked| asked.command.weight());
        OVERHEAD + self.response_topic.as_str().len() + self.correlation_data.len() + 2 * command
    }

    /// The answer.
    pub(super) fn answer(&self, reply: &Reply, version: Option<Version>) -> Message {
        let mut properties = self.answer_properties("200");
        if let Some(version) = version {
            properties.push_user(TIMESTAMP, version.to_string());
        }
        self.answer_with(reply.encode(), &properties)
    }

    /// The answer to a request of a version that we do not speak.
    pub(super) fn answer_version(&self, found: &str) -> Message {
        let mut properties = self.answer_properties("505");
        properties.push_user(STATUS_MESSAGE, "request version not supported");
        properties.push_user(SUPPORTED_MAJOR_VERSIONS, MAJOR_VERSION);
        properties.push_user(REQUEST_VERSION, found);
        self.answer_with(Bytes::new(), &properties)
    }

    fn answer_properties(&self, status: &str) -> Properties {
        let mut properties = own_properties();
        properties.correlation_data = Some(self.correlation_data.clone());
        properties.push_user(STATUS, status);
        properties
    }

    fn answer_with(&self, payload: Bytes, properties: &Properties) -> Message {
        Message {
            qos: Qos::AtLeastOnce,
            expiry: self.expiry,
            expires_at: self.expires_at,
            ..Message::new(
                self.response_topic.clone(),
                payload,
                properties::encode(properties),
            )
        }
    }
}

impl Asked {
    fn read(payload: &[u8], properties: &Properties) -> Result<Self, Unanswerable> {
        if let Some(found) = properties.user_property(PROTOCOL_VERSION)
            && found.split('.').next() != Some(MAJOR_VERSION)
        {
            return Err(Unanswerable::Version(found.to_owned()));
        }
        let stamp = |name| properties.user_property(name).map(str::parse).transpose();
        let asked = Self {
            command: Command::parse(payload)?,
            timestamp: stamp(TIMESTAMP)?,
            fence: stamp(FENCING_TOKEN)?,
        };
        if asked.timestamp.is_none() && matches!(asked.command, Command::Set { .. }) {
            return Err(CommandError::TimestampMissing.into());
        }
        Ok(asked)
    }
}

impl From<CommandError> for Unanswerable {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

/// What a client is told of a key that changed.
///
/// # Errors
/// See [`topics::notification`].
pub(super) fn notification(
    client_id: &str,
    change: &Change,
    expires_at: Option<BrokerTime>,
) -> Result<Message, foreshore_record::topic::InvalidTopic> {
    let payload = match &change.value {
        Some(value) => resp3::array(&[b"NOTIFY", b"SET", b"VALUE", value]),
        None => resp3::array(&[b"NOTIFY", b"DELETE"]),
    };
    let mut properties = own_properties();
    properties.push_user(TIMESTAMP, change.version.to_string());
    let topic = topics::notification(client_id, &change.key)?;
    Ok(Message {
        qos: Qos::AtLeastOnce,
        expires_at,
        ..Message::new(topic, payload, properties::encode(&properties))
    })
}

fn own_properties() -> Properties {
    let mut properties = Properties {
        content_type: Some(CONTENT_TYPE.to_owned()),
        ..Properties::default()
    };
    properties.push_user(PROTOCOL_VERSION, VERSION);
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(response_topic: Option<&str>, user: &[(&str, &str)], payload: &Bytes) -> Message {
        let mut properties = Properties {
            response_topic: response_topic.map(str::to_owned),
            correlation_data: Some(Bytes::from_static(b"\x01\x02")),
            ..Properties::default()
        };
        for (name, value) in user {
            properties.push_user(*name, *value);
        }
        let topic =
            TopicName::new("statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/command/invoke").unwrap();
        assert!(topics::is_request(&topic));
        Message {
            qos: Qos::AtLeastOnce,
            ..Message::new(topic, payload.clone(), properties::encode(&properties))
        }
    }

    fn asked(user: &[(&str, &str)], arguments: &[&[u8]]) -> Result<Asked, Unanswerable> {
        Request::read(&message(Some("r"), user, &resp3::array(arguments)))
            .unwrap()
            .asked
    }

    #[test]
    fn what_can_not_be_answered_is_no_request() {
        let payload = resp3::array(&[b"GET", b"k"]);
        assert!(Request::read(&message(Some("r"), &[], &payload)).is_ok());
        for qos in [Qos::AtMostOnce, Qos::ExactlyOnce] {
            let message = Message {
                qos,
                ..message(Some("r"), &[], &payload)
            };
            assert!(matches!(Request::read(&message), Err(NoRequest::Refused(_))));
        }
        let retained = Message {
            retain: true,
            ..message(Some("r"), &[], &payload)
        };
        assert!(matches!(Request::read(&retained), Err(NoRequest::Refused(_))));
        let unanswerable = message(None, &[], &payload);
        assert!(matches!(Request::read(&unanswerable), Err(NoRequest::Refused(_))));
        let own = "statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/command/invoke";
        let notify = "clients/statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/41/command/notify/42";
        for topic in [own, notify, ""] {
            let found = Request::read(&message(Some(topic), &[], &payload));
            assert!(matches!(found, Err(NoRequest::Forbidden(_))), "{topic}");
        }
    }

    #[test]
    fn stamps_are_read_and_asked_for() {
        let set: &[&[u8]] = &[b"SET", b"k", b"v"];
        let both = [("__ts", "5:0:a"), ("__ft", "4:0:b"), ("__protVer", "1.0")];
        let found = asked(&both, set).unwrap();
        assert_eq!(found.timestamp, Some("5:0:a".parse().unwrap()));
        assert_eq!(found.fence, Some("4:0:b".parse().unwrap()));
        let error = |user: &[(&str, &str)], arguments: &[&[u8]]| asked(user, arguments).unwrap_err();
        assert_eq!(error(&[], set), CommandError::TimestampMissing.into());
        let malformed = CommandError::TimestampMalformed.into();
        assert_eq!(error(&[("__ts", "now")], set), malformed);
        assert_eq!(error(&[("__ts", "5:0:a"), ("__ft", "")], set), malformed);
        // A deletion needs none, but one that is given has to be one.
        assert!(asked(&[], &[b"DEL", b"k"]).is_ok());
        assert_eq!(error(&[("__ts", "now")], &[b"DEL", b"k"]), malformed);
    }

    #[test]
    fn other_versions_of_the_protocol_are_not_spoken() {
        let get: &[&[u8]] = &[b"GET", b"k"];
        for version in ["2.0", "", "x", "10.0"] {
            let found = asked(&[("__protVer", version)], get).unwrap_err();
            assert_eq!(found, Unanswerable::Version(version.to_owned()));
        }
        for version in ["1.0", "1.7"] {
            assert!(asked(&[("__protVer", version)], get).is_ok());
        }
    }

    #[test]
    fn a_notification_is_the_published_one() {
        let mut change = Change {
            key: "SOMEKEY".into(),
            value: Some("abc".into()),
            version: Version::default(),
        };
        let set = notification("client-id1", &change, None).unwrap();
        assert_eq!(
            set.payload,
            "*4\r\n$6\r\nNOTIFY\r\n$3\r\nSET\r\n$5\r\nVALUE\r\n$3\r\nabc\r\n"
        );
        let stamped = properties::decode(&set.properties, None);
        assert_eq!(
            stamped.user_property("__ts"),
            Some("000000000000000:00000:StateStore")
        );
        change.value = None;
        let deleted = notification("client-id1", &change, None).unwrap();
        assert_eq!(deleted.payload, "*2\r\n$6\r\nNOTIFY\r\n$6\r\nDELETE\r\n");
    }
}
