//! What a link saw.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use foreshore_record::DataValue;
use jiff::Timestamp;

use crate::health::Member;

/// What a link saw of its device.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// Values of data points.
    Dataset(DatasetValues),
    /// Something happened.
    Event(Event),
    /// A picture was taken.
    Picture(Picture),
    /// Something may have been missed.
    Gap(Gap),
}

/// Values of data points of one dataset that were received together.
///
/// Only what was received: the runner knows the other points' last values and adds them to key frames. A point may
/// appear several times, oldest first; every value is published.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetValues {
    /// Name of the asset.
    pub asset: Arc<str>,
    /// Name of the dataset.
    pub dataset: Arc<str>,
    /// Name of the data point and its value.
    pub values: Vec<(Arc<str>, DataValue)>,
}

/// Something happened at an asset.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Name of the asset.
    pub asset: Arc<str>,
    /// Name of the event group.
    pub group: Arc<str>,
    /// Name of the event in the group.
    pub event: Arc<str>,
    /// When it happened, as the device says; when it was received, if it does not.
    pub time: Timestamp,
    /// What the device names as the event's source: a node, an input, a rule.
    pub source: String,
    /// The event's fields.
    pub body: serde_json::Map<String, serde_json::Value>,
}

/// A picture of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Name of the asset.
    pub asset: Arc<str>,
    /// Name of the stream.
    pub stream: Arc<str>,
    /// The picture as the device encoded it.
    pub image: Bytes,
    /// Its media type, `image/jpeg` from all but odd cameras.
    pub media_type: Cow<'static, str>,
    /// When it was taken, as well as that is known.
    pub captured_at: Timestamp,
    /// Width in pixels, where it is known.
    pub width: Option<u32>,
    /// Height in pixels, where it is known.
    pub height: Option<u32>,
}

/// A time during which something may have been missed that nobody can give back.
///
/// A link tells it in order with the values: after the last one before the gap and before the first one after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What was not seen; [`Member::Device`] for everything of the device.
    pub member: Member,
    /// From when on.
    pub since: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Why, such as `session lost`, `queue of the server overflowed`.
    pub cause: String,
}

impl Observation {
    /// About how many bytes the observation keeps in memory; decides when a link has to wait.
    #[must_use]
    pub(crate) fn weight(&self) -> usize {
        const FIXED: usize = 256;
        FIXED
            + match self {
                Self::Dataset(dataset) => dataset
                    .values
                    .iter()
                    .map(|(_, value)| 64 + weight_of(&value.value))
                    .sum::<usize>(),
                Self::Event(event) => {
                    event.source.len()
                        + event
                            .body
                            .iter()
                            .map(|(key, value)| key.len() + weight_of(value))
                            .sum::<usize>()
                }
                Self::Picture(picture) => picture.image.len(),
                Self::Gap(gap) => gap.cause.len(),
            }
    }
}

fn weight_of(value: &serde_json::Value) -> usize {
    use serde_json::Value;
    // Values come from decoders that bound their depth.
    const NODE: usize = 32;
    NODE + match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight_of).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(key, value)| key.len() + weight_of(value))
            .sum(),
    }
}
