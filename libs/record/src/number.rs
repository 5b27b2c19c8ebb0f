//! How our own publishers number their records.
//!
//! The broker commits the last number of each source in the same batch as the record and discards repeats, so a
//! publisher that reconnects may send again whatever was not acknowledged. Numbers are believed only from roles that
//! hold one of our certificates.

use serde::{Deserialize, Serialize};

use crate::{property, record::Properties};

/// Longest name of a source, in bytes.
pub const MAX_SOURCE_LEN: usize = 256;

/// The number of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SourceNumber {
    /// Who counts, such as `connector/bottling/line-1`.
    pub source: String,
    /// Which life of the source: rises with every start that can't continue the count. Older epochs are fenced.
    pub epoch: u64,
    /// Which record of that life, rising from 1 without gaps.
    pub sequence: u64,
}

impl SourceNumber {
    /// Reads the number from a message's user properties; `None` when the message is not numbered.
    ///
    /// # Errors
    /// Names the property that is missing or malformed when only part of a number is present.
    pub fn from_properties(properties: &Properties) -> Result<Option<Self>, InvalidNumber> {
        let Some(source) = properties.user_property(property::SOURCE) else {
            return Ok(None);
        };
        if source.is_empty() || source.len() > MAX_SOURCE_LEN {
            return Err(InvalidNumber {
                property: property::SOURCE,
            });
        }
        let number = |name: &'static str| {
            let value = properties
                .user_property(name)
                .and_then(|text| text.parse::<u64>().ok());
            value.ok_or(InvalidNumber { property: name })
        };
        Ok(Some(Self {
            source: source.to_owned(),
            epoch: number(property::EPOCH)?,
            sequence: number(property::SEQUENCE)?,
        }))
    }

    /// Appends the number to a message's user properties.
    pub fn write_to(&self, properties: &mut Properties) {
        properties.push_user(property::SOURCE, &self.source);
        properties.push_user(property::EPOCH, self.epoch.to_string());
        properties.push_user(property::SEQUENCE, self.sequence.to_string());
    }
}

/// A number of which a part is missing or malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("user property `{property}` is missing or malformed")]
pub struct InvalidNumber {
    /// The user property.
    pub property: &'static str,
}
