//! From a message to a command, and from an outcome to a response.

use std::time::Duration;

use foreshore_record::{
    CommandError, CommandErrorCode, CommandOutcome, Record, TopicName, property,
    topic::{self, TopicFilter},
};
use jiff::Timestamp;
use serde_json::Value;

use crate::plan::AssetPlan;

/// Largest input, in bytes.
const LARGEST_INPUT: usize = 1 << 20;
/// Longest idempotency key, in bytes.
const LONGEST_KEY: usize = 256;
/// Longest name of who asked, in characters; what is longer is cut.
const LONGEST_ACTOR: usize = 256;

/// Levels under the root that carry our own messages: a response must not pass for one of them.
const RESERVED: [&str; 5] = ["data", "events", "streams", "commands", "schemas"];

/// Which action a command is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) asset: String,
    pub(crate) group: String,
    pub(crate) action: String,
}

impl Target {
    /// Reads `foreshore/commands/{namespace}/{asset}/{group}/{action}`.
    pub(crate) fn of(topic: &TopicName) -> Option<Self> {
        let levels: Vec<&str> = topic.levels().collect();
        match levels[..] {
            [topic::ROOT, "commands", namespace, asset, group, action] => Some(Self {
                namespace: namespace.to_owned(),
                asset: asset.to_owned(),
                group: group.to_owned(),
                action: action.to_owned(),
            }),
            _ => None,
        }
    }
}

/// The filter of all commands to an asset.
pub(crate) fn commands_of(asset: &AssetPlan) -> Option<TopicFilter> {
    let object = &asset.object;
    TopicFilter::new(format!(
        "{}/commands/{}/{}/+/+",
        topic::ROOT,
        object.namespace,
        object.name
    ))
    .ok()
}

/// What a command asks for, read from its message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) input: Value,
    pub(crate) deadline: Timestamp,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) actor: String,
}

impl Asked {
    /// Reads a command; one that names no deadline has `default_time` from now.
    pub(crate) fn of(record: &Record, now: Timestamp, default_time: Duration) -> Result<Self, CommandError> {
        let invalid = |message: String| CommandError::new(CommandErrorCode::InvalidInput, message);
        let found = record.payload.len();
        if found > LARGEST_INPUT {
            return Err(invalid(format!(
                "input has {found} bytes, {LARGEST_INPUT} are allowed"
            )));
        }
        let input = match &record.payload[..] {
            [] => Value::Null,
            payload => serde_json::from_slice(payload)
                .map_err(|error| invalid(format!("input is not JSON: {error}")))?,
        };
        let deadline = match record.user_property(property::DEADLINE) {
            Some(text) => text.parse().map_err(|_| {
                let found: String = text.chars().take(64).collect();
                invalid(format!(
                    "user property {} is {found:?}, an RFC 3339 time is allowed",
                    property::DEADLINE
                ))
            })?,
            None => now
                .checked_add(jiff::SignedDuration::try_from(default_time).unwrap_or_default())
                .unwrap_or(now),
        };
        let idempotency_key = record.user_property(property::IDEMPOTENCY_KEY).map(str::to_owned);
        if let Some(key) = &idempotency_key
            && (key.is_empty() || key.len() > LONGEST_KEY)
        {
            let found = key.len();
            return Err(invalid(format!(
                "user property {} has {found} bytes, 1 to {LONGEST_KEY} are allowed",
                property::IDEMPOTENCY_KEY
            )));
        }
        let actor = record.user_property(property::ACTOR).unwrap_or("unknown");
        Ok(Self {
            input,
            deadline,
            idempotency_key,
            actor: actor.chars().take(LONGEST_ACTOR).collect(),
        })
    }
}

/// Where the response goes; `None` when none is asked for.
///
/// # Errors
/// When the topic can't be one, or is one that our own messages have: a command must not make us publish there.
pub(crate) fn response_topic(request: &Record) -> Result<Option<TopicName>, CommandError> {
    let Some(text) = &request.properties.response_topic else {
        return Ok(None);
    };
    let invalid = |message: String| CommandError::new(CommandErrorCode::InvalidInput, message);
    let name = TopicName::new(text).map_err(|error| invalid(format!("response topic: {error}")))?;
    let levels: Vec<&str> = name.levels().take(2).collect();
    let reserved = match levels[..] {
        [topic::ROOT, kind] => RESERVED.contains(&kind),
        [first, ..] => first.starts_with('$'),
        [] => false,
    };
    if reserved {
        return Err(invalid(format!("response topic {name} is reserved")));
    }
    Ok(Some(name))
}

/// The response to a command.
pub(crate) fn response(request: &Record, topic: TopicName, outcome: &CommandOutcome) -> Record {
    let (status, payload) = match outcome {
        Ok(output) => ("ok", serde_json::to_vec(output)),
        Err(error) => (error.code.as_str(), serde_json::to_vec(error)),
    };
    // A JSON value always has a text.
    let mut record = Record::new(topic, payload.unwrap_or_default());
    record.properties.correlation_data = request.properties.correlation_data.clone();
    record.properties.content_type = Some("application/json".to_owned());
    record.properties.payload_is_utf8 = true;
    record.properties.push_user(property::COMMAND_STATUS, status);
    if let Some(traceparent) = request.user_property(property::TRACEPARENT) {
        record.properties.push_user(property::TRACEPARENT, traceparent);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(topic: &str, payload: &str) -> Record {
        Record::new(TopicName::new(topic).unwrap(), payload.to_owned())
    }

    #[test]
    fn commands_are_read_from_their_messages() {
        let now = Timestamp::from_second(1000).unwrap();
        let bare = Asked::of(&record("t", ""), now, SECOND).unwrap();
        assert_eq!(
            (bare.input, bare.deadline.as_second(), bare.actor.as_str()),
            (Value::Null, 1001, "unknown")
        );
        let mut full = record("t", r#"{"a":1}"#);
        full.properties
            .push_user(property::DEADLINE, "2026-01-02T03:04:05Z");
        full.properties.push_user(property::IDEMPOTENCY_KEY, "k");
        full.properties.push_user(property::ACTOR, "cloud:anna");
        let asked = Asked::of(&full, now, SECOND).unwrap();
        assert_eq!(asked.deadline, "2026-01-02T03:04:05Z".parse().unwrap());
        assert_eq!(
            (asked.idempotency_key.as_deref(), asked.actor.as_str()),
            (Some("k"), "cloud:anna")
        );
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let now = Timestamp::UNIX_EPOCH;
        let error = |record: &Record| Asked::of(record, now, SECOND).unwrap_err().message;
        assert!(error(&record("t", "{")).starts_with("input is not JSON"));
        let mut bad = record("t", "");
        bad.properties.push_user(property::DEADLINE, "soon");
        assert!(error(&bad).contains("foreshore-deadline is \"soon\""));
        let mut bad = record("t", "");
        bad.properties
            .push_user(property::IDEMPOTENCY_KEY, "k".repeat(257));
        assert!(error(&bad).contains("has 257 bytes"));
        assert!(error(&record("t", &"1".repeat(LARGEST_INPUT + 1))).contains("1048576 are allowed"));
    }

    #[test]
    fn topics_name_their_action() {
        let target =
            Target::of(&TopicName::new("foreshore/commands/plant/filler/line/start").unwrap()).unwrap();
        assert_eq!(
            (target.asset.as_str(), target.action.as_str()),
            ("filler", "start")
        );
        assert_eq!(
            Target::of(&TopicName::new("foreshore/commands/plant/filler/line").unwrap()),
            None
        );
    }

    #[test]
    fn responses_go_where_they_are_asked_for_but_never_among_our_own_messages() {
        let mut request = record("t", "");
        assert_eq!(response_topic(&request), Ok(None));
        for (topic, allowed) in [
            ("foreshore/responses/cloud", true),
            ("anything/else", true),
            ("foreshore/data/plant/filler/fast", false),
            ("foreshore/commands/plant/a/b/c", false),
            ("$SYS/x", false),
            ("a/+", false),
        ] {
            request.properties.response_topic = Some(topic.to_owned());
            assert_eq!(response_topic(&request).is_ok(), allowed, "{topic}");
        }
        request.properties.correlation_data = Some("c".into());
        let error = CommandError::new(CommandErrorCode::DeviceFailed, "no");
        let response = response(&request, TopicName::new("r").unwrap(), &Err(error.clone()));
        assert_eq!(
            response.user_property(property::COMMAND_STATUS),
            Some("DeviceFailed")
        );
        assert_eq!(response.properties.correlation_data.as_deref(), Some(&b"c"[..]));
        assert_eq!(
            serde_json::from_slice::<CommandError>(&response.payload).unwrap(),
            error
        );
    }
}
