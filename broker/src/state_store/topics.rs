//! Topics of the state store, as they are published.

use foreshore_record::{Qos, TopicName, topic::InvalidTopic};

use crate::policy::Permissions;

/// Where clients ask.
const REQUEST: &str = "statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/command/invoke";

/// What topics of notifications begin with.
const NOTIFICATIONS: &str = "clients/statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8";

/// Whether what is published to a topic is for the state store.
pub(crate) fn is_request(topic: &TopicName) -> bool {
    topic.as_str() == REQUEST
}

/// Whether only the state store publishes to a topic.
pub(crate) fn is_reserved(topic: &TopicName) -> bool {
    topic.as_str().starts_with(NOTIFICATIONS)
}

/// Whether a client may ask the state store: whoever may not is notified of nothing either.
pub(crate) fn may_ask(permissions: &Permissions) -> bool {
    let judge = |topic| permissions.may_publish(&topic, Qos::AtLeastOnce, false).is_ok();
    TopicName::new(REQUEST).is_ok_and(judge)
}

/// Where a client is notified of a key: both in upper-case hexadecimal (RFC 4648 section 8).
///
/// # Errors
/// When the topic is too long for MQTT, which it is not within the bounds of client identifiers and keys.
pub(super) fn notification(client_id: &str, key: &[u8]) -> Result<TopicName, InvalidTopic> {
    let (client_id, key) = (hex::encode_upper(client_id), hex::encode_upper(key));
    TopicName::new(format!("{NOTIFICATIONS}/{client_id}/command/notify/{key}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{session::rows::MAX_CLIENT_ID, state_store::command::MAX_KEY};

    #[test]
    fn the_published_example() {
        let topic = notification("client-id1", b"SOMEKEY").unwrap();
        let expected = "clients/statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/636C69656E742D696431/command/notify/\
                        534F4D454B4559";
        assert_eq!(topic.as_str(), expected);
        assert!(is_reserved(&topic) && !is_request(&topic));
    }

    #[test]
    fn no_client_and_no_key_is_too_long_to_be_notified() {
        assert!(notification(&"c".repeat(MAX_CLIENT_ID), &[b'k'; MAX_KEY]).is_ok());
    }

    #[test]
    fn topics_that_look_alike_are_not_the_store_s() {
        for topic in [
            "statestore/v1/FA9AE35F-2F64-47CD-9BFF-08E2B32A0FE8/command",
            "clients/statestore/v1/x",
            "a",
        ] {
            let topic = TopicName::new(topic).unwrap();
            assert!(!is_request(&topic) && !is_reserved(&topic), "{topic}");
        }
    }
}
