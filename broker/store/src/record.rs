//! How rows are written: versioned, with a checksum.

use foreshore_record::Record;

/// Bytes that a record counts against limits: topic, payload and properties.
pub(crate) fn weight(record: &Record) -> usize {
    let properties = &record.properties;
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let user = properties
        .user
        .iter()
        .map(|(name, value)| name.len() + value.len() + 4)
        .sum::<usize>();
    record.topic.as_str().len()
        + record.payload.len()
        + text(&properties.content_type)
        + text(&properties.response_topic)
        + properties.correlation_data.as_ref().map_or(0, bytes::Bytes::len)
        + user
}
