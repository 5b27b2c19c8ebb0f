//! A record as a line.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use foreshore_record::{Record, property};
use jiff::Timestamp;
use serde::{Serialize, Serializer, de::IgnoredAny, ser::SerializeMap};

/// A line without its payload.
#[derive(Serialize)]
struct Head<'r> {
    /// When it happened, else when the broker took it in.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    topic: &'r str,
    #[serde(skip_serializing_if = "UserProperties::is_empty")]
    properties: UserProperties<'r>,
    #[serde(rename = "contentType", skip_serializing_if = "Option::is_none")]
    content_type: Option<&'r str>,
}

/// User properties as an object; of a repeated name the first one.
struct UserProperties<'r>(&'r [(String, String)]);

impl UserProperties<'_> {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for UserProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (at, (name, value)) in self.0.iter().enumerate() {
            if !self.0.iter().take(at).any(|(earlier, _)| earlier == name) {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

/// Appends a record, with its line feed.
///
/// # Errors
/// When the record can't be written; nothing is appended then.
pub(crate) fn write(record: &Record, lines: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let stated = record
        .user_property(property::CE_TIME)
        .and_then(|text| text.parse().ok());
    let head = Head {
        time: stated.or(record.ingested_at),
        topic: record.topic.as_str(),
        properties: UserProperties(&record.properties.user),
        content_type: record.properties.content_type.as_deref(),
    };
    let head = serde_json::to_vec(&head)?;
    lines.extend_from_slice(head.strip_suffix(b"}").unwrap_or(&head));
    if serde_json::from_slice::<IgnoredAny>(&record.payload).is_ok() {
        lines.extend_from_slice(br#","payload":"#);
        // In JSON a line feed can only stand between tokens, where it means nothing.
        lines.extend(
            record
                .payload
                .iter()
                .filter(|byte| !matches!(byte, b'\n' | b'\r')),
        );
    } else {
        lines.extend_from_slice(br#","payloadBase64":""#);
        lines.extend_from_slice(STANDARD.encode(&record.payload).as_bytes());
        lines.push(b'"');
    }
    lines.extend_from_slice(b"}\n");
    Ok(())
}
