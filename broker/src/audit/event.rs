//! What is told, as a line of JSON. Times are RFC 3339, in UTC.

use std::{borrow::Cow, net::SocketAddr};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::Key;

/// Longest text of others in a line, in bytes.
const MAX_TEXT: usize = 256;

/// What happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum What {
    /// A client was let in.
    Connected,
    /// A client was not let in.
    Refused,
    /// A client has proved anew who it is.
    Reauthenticated,
    /// A policy refused a client something.
    Denied,
    /// A connection ended.
    Disconnected,
    /// Policies were put in force.
    PoliciesChanged,
    /// A listener was opened.
    ListenerOpened,
    /// A listener was changed: ways of authentication, users, certificates.
    ListenerChanged,
    /// A listener was closed.
    ListenerClosed,
    /// A Secret that listeners use was changed.
    SecretChanged,
    /// Limits or conduct were put in force.
    LimitsChanged,
    /// Somebody looked at the broker, or told it to do something.
    Command,
    /// Lines were left out.
    #[default]
    LeftOut,
}

/// What a client tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Action {
    /// It published.
    Publish,
    /// It subscribed.
    Subscribe,
    /// It asked an asset to do something.
    Command,
}

/// Something that happened, with what is known of it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event<'a> {
    /// What.
    pub(crate) event: What,
    /// Client identifier.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) client: Option<&'a str>,
    /// User name, as the listener found it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) user: Option<&'a str>,
    /// User name that a client said it has, and has not proved.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) claimed_user: Option<&'a str>,
    /// Role of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<String>,
    /// How it proved who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) way: Option<&'static str>,
    /// Method of enhanced authentication.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) method: Option<&'a str>,
    /// Listener.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) listener: Option<&'a str>,
    /// Where it comes from: address and port, or the address alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer: Option<String>,
    /// What it tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) action: Option<Action>,
    /// Topic or filter.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) topic: Option<&'a str>,
    /// Rule that refused it, `POLICY/RULE`, or why without one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) rule: Option<&'a str>,
    /// Reason code of MQTT that the other side was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason_code: Option<u8>,
    /// What that code means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<&'static str>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) detail: Option<&'a str>,
    /// Who told the broker to do something, as the operating system knows it; or on whose behalf a role of ours acts.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) actor: Option<&'a str>,
    /// What somebody told the broker to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<&'static str>,
    /// Name of what was changed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "cut")]
    pub(crate) name: Option<&'a str>,
    /// Lines like this one that were left out before it.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) left_out: u64,
}

/// A line: an event with time and broker.
#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    /// What tells these lines from others of the same stream.
    target: &'static str,
    broker: &'a str,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

impl Event<'_> {
    /// Something that happened to one that can't be told from others by more than its key.
    pub(super) fn left_out(key: &Key, left_out: u64) -> Event<'_> {
        let (client, peer) = match key {
            Key::Client(client) => (Some(&**client), None),
            Key::Address(address) => (None, Some(address.to_string())),
            Key::Others => (None, None),
        };
        Event {
            client,
            peer,
            left_out,
            ..Event::default()
        }
    }

    /// The line, with its end.
    pub(super) fn line(&self, broker: &str, time: Timestamp) -> Vec<u8> {
        let line = Line {
            time,
            target: "audit",
            broker,
            event: self,
        };
        // Texts and numbers alone: nothing of it can fail.
        let mut line = escaped(serde_json::to_string(&line).unwrap_or_default());
        line.push('\n');
        line.into_bytes()
    }
}

/// Escapes what JSON allows in texts (RFC 8259 section 7), and what ends a line or hides a part of it for some who read it:
/// controls beyond ASCII, separators, and marks that turn the direction of writing.
fn escaped(json: String) -> String {
    let is_harmful = |character: char| {
        matches!(
            character,
            '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
    };
    if !json.contains(is_harmful) {
        return json;
    }
    let mut escaped = String::with_capacity(json.len() + 64);
    for character in json.chars() {
        if is_harmful(character) {
            // Outside of texts JSON has none of them.
            escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Where a connection comes from.
pub(crate) fn peer(address: SocketAddr) -> Option<String> {
    Some(address.to_string())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn cut<S: Serializer>(text: &Option<&str>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = text.unwrap_or_default();
    let mut end = MAX_TEXT.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let shown: Cow<'_, str> = match text.get(..end) {
        Some(shown) if shown.len() < text.len() => format!("{shown}…").into(),
        _ => text.into(),
    };
    serializer.serialize_str(&shown)
}
