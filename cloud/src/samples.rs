//! What of a record is kept: a value for every data point, the event, the picture.
//!
//! Nothing that was acknowledged is thrown away because it looks unfamiliar: what belongs to no asset is kept under its
//! topic, and what is no JSON is kept as it is.

use std::collections::HashMap;

use bytes::Bytes;
use foreshore_edgelink::limits::MAX_NAME_LEN;
use foreshore_record::{Record, property, value};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::times::nanoseconds;

/// Longest name of a member or a point, in bytes; a record with a longer one is kept under its topic.
const MAX_MEMBER_LEN: usize = 1024;

/// What kind of thing has a history. The numbers are those of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    /// A data point of a dataset.
    DataPoint = 1,
    /// An event.
    Event = 2,
    /// A picture of a stream.
    Stream = 3,
    /// A message of an asset that is neither: what a mapping made of one.
    Message = 4,
    /// A message that belongs to no asset.
    Topic = 5,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::DataPoint,
        Self::Event,
        Self::Stream,
        Self::Message,
        Self::Topic,
    ];

    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i64 == number)
    }
}

/// An asset of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AssetKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What has a history within an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SeriesKey {
    /// `None` for a topic that belongs to no asset.
    pub(crate) asset: Option<AssetKey>,
    pub(crate) kind: Kind,
    /// Dataset, event or stream; the topic where there is no asset.
    pub(crate) member: String,
    /// Data point; empty for the other kinds.
    pub(crate) point: String,
}

/// What was observed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A value.
    Json(Value),
    /// What is no JSON, with a JSON object that describes it.
    Payload {
        description: Value,
        content_type: Option<String>,
        body: Bytes,
    },
}

/// One value of one series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Place of the series in [`Samples::series`].
    pub(crate) series: usize,
    /// When it was so, in nanoseconds since 1970.
    pub(crate) time: i64,
    /// OPC UA status code.
    pub(crate) status: u32,
    pub(crate) content: Content,
}

/// Values of many records. Series are named once.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) series: Vec<SeriesKey>,
    pub(crate) samples: Vec<Sample>,
    places: HashMap<SeriesKey, usize>,
}

impl Samples {
    /// Adds what a record holds.
    pub(crate) fn add(&mut self, record: &Record, received_at: Timestamp) {
        let received_at = record.ingested_at.unwrap_or(received_at);
        let origin = Origin::of(record);
        let time = |name| {
            record
                .user_property(name)
                .and_then(|text| text.parse::<Timestamp>().ok())
        };
        let observed_at = nanoseconds(time(property::CE_TIME).unwrap_or(received_at));
        match origin {
            Some((asset, Kind::DataPoint, member)) => match value::decode(&record.payload) {
                Ok(message) if message.keys().all(|point| point.len() <= MAX_MEMBER_LEN) => {
                    for (point, value) in message {
                        let key = SeriesKey {
                            asset: Some(asset.clone()),
                            kind: Kind::DataPoint,
                            member: member.clone(),
                            point,
                        };
                        let time = value.source_timestamp.map_or(observed_at, nanoseconds);
                        self.push(key, time, value.status_code, Content::Json(value.value));
                    }
                }
                _ => self.push_whole(Some(asset), Kind::Message, member, observed_at, record),
            },
            Some((asset, Kind::Stream, member)) => {
                let captured_at = time(property::CAPTURED_AT).map_or(observed_at, nanoseconds);
                let key = SeriesKey {
                    asset: Some(asset),
                    kind: Kind::Stream,
                    member,
                    point: String::new(),
                };
                self.push(key, captured_at, value::STATUS_GOOD, payload(record));
            }
            Some((asset, kind, member)) => self.push_whole(Some(asset), kind, member, observed_at, record),
            None => {
                let topic = record.topic.as_str().to_owned();
                self.push_whole(None, Kind::Topic, topic, observed_at, record);
            }
        }
    }

    fn push_whole(
        &mut self,
        asset: Option<AssetKey>,
        kind: Kind,
        member: String,
        time: i64,
        record: &Record,
    ) {
        let content = serde_json::from_slice(&record.payload).map_or_else(|_| payload(record), Content::Json);
        let key = SeriesKey {
            asset,
            kind,
            member,
            point: String::new(),
        };
        self.push(key, time, value::STATUS_GOOD, content);
    }

    fn push(&mut self, key: SeriesKey, time: i64, status: u32, content: Content) {
        let series = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                self.series.push(key.clone());
                let place = self.series.len() - 1;
                self.places.insert(key, place);
                place
            }
        };
        self.samples.push(Sample {
            series,
            time,
            status,
            content,
        });
    }
}

fn payload(record: &Record) -> Content {
    let content_type = record.properties.content_type.clone();
    let mut description = json!({ "size": record.payload.len() });
    let number = |name| {
        record
            .user_property(name)
            .and_then(|text| text.parse::<u64>().ok())
    };
    for (member, value) in [
        ("contentType", content_type.clone().map(Value::from)),
        ("width", number(property::WIDTH).map(Value::from)),
        ("height", number(property::HEIGHT).map(Value::from)),
    ] {
        if let Some(value) = value {
            description[member] = value;
        }
    }
    Content::Payload {
        description,
        content_type,
        body: record.payload.clone(),
    }
}

struct Origin;

impl Origin {
    /// Asset, kind and member that a record belongs to: by its properties, which survive every mapping of topics; by
    /// its topic where it has none. `None` when it belongs to no asset, or names are no names.
    fn of(record: &Record) -> Option<(AssetKey, Kind, String)> {
        let levels: Vec<&str> = record.topic.as_str().splitn(5, '/').collect();
        let ours = match levels[..] {
            ["foreshore", folder, namespace, asset, member] => Some((folder, namespace, asset, member)),
            _ => None,
        };
        let property =
            |name, by_topic: Option<&str>| record.user_property(name).or(by_topic).map(str::to_owned);
        let namespace = property(property::NAMESPACE, ours.map(|(_, namespace, _, _)| namespace))?;
        let name = property(property::ASSET, ours.map(|(_, _, asset, _)| asset))?;
        let member = property(property::MEMBER, ours.map(|(_, _, _, member)| member)).unwrap_or_default();
        let is_name = |text: &str| !text.is_empty() && text.len() <= MAX_NAME_LEN;
        if !is_name(&namespace) || !is_name(&name) || member.len() > MAX_MEMBER_LEN {
            return None;
        }
        let kind = match (
            record.user_property(property::CE_TYPE),
            ours.map(|(folder, ..)| folder),
        ) {
            (Some(property::TYPE_EVENT), _) => Kind::Event,
            (Some(property::TYPE_SNAPSHOT), _) => Kind::Stream,
            (Some(property::TYPE_KEYFRAME | property::TYPE_DELTAFRAME), _) => Kind::DataPoint,
            (_, Some("data")) => Kind::DataPoint,
            (_, Some("events")) => Kind::Event,
            (_, Some("streams")) => Kind::Stream,
            _ => Kind::Message,
        };
        Some((AssetKey { namespace, name }, kind, member))
    }
}

#[cfg(test)]
mod tests {
    use foreshore_record::TopicName;

    use super::*;

    fn add(record: &Record) -> Samples {
        let mut samples = Samples::default();
        samples.add(record, "2026-03-01T12:00:00Z".parse().unwrap());
        samples
    }

    fn record(topic: &str, payload: &str) -> Record {
        Record::new(TopicName::new(topic).unwrap(), payload.to_owned())
    }

    fn key(kind: Kind, member: &str, point: &str) -> SeriesKey {
        let asset = AssetKey {
            namespace: "bottling".to_owned(),
            name: "filler".to_owned(),
        };
        SeriesKey {
            asset: Some(asset),
            kind,
            member: member.to_owned(),
            point: point.to_owned(),
        }
    }

    fn at(time: &str) -> i64 {
        nanoseconds(time.parse().unwrap())
    }

    #[test]
    fn every_point_of_a_dataset_is_a_series() {
        let payload = r#"{"speed":{"Value":12.5,"SourceTimestamp":"2026-03-01T11:59:59.5Z"},
            "state":{"Value":"Running","StatusCode":1083179008}}"#;
        let mut record = record("foreshore/data/bottling/filler/process", payload);
        record
            .properties
            .push_user(property::CE_TIME, "2026-03-01T11:59:59Z");
        let samples = add(&record);
        let process = |point| key(Kind::DataPoint, "process", point);
        assert_eq!(samples.series, [process("speed"), process("state")]);
        let speed = &samples.samples[0];
        assert_eq!((speed.time, speed.status), (at("2026-03-01T11:59:59.5Z"), 0));
        assert_eq!(speed.content, Content::Json(json!(12.5)));
        let state = &samples.samples[1];
        assert_eq!(
            (state.time, state.status),
            (at("2026-03-01T11:59:59Z"), 1_083_179_008)
        );
    }

    #[test]
    fn properties_tell_the_asset_when_the_topic_does_not() {
        let mut record = record("plant/line-1/filler", r#"{"speed":{"Value":1}}"#);
        for (name, value) in [
            (property::NAMESPACE, "bottling"),
            (property::ASSET, "filler"),
            (property::MEMBER, "process"),
            (property::CE_TYPE, property::TYPE_DELTAFRAME),
        ] {
            record.properties.push_user(name, value);
        }
        assert_eq!(add(&record).series, [key(Kind::DataPoint, "process", "speed")]);
        // What a mapping made of it is kept whole.
        record.payload = Bytes::from_static(br#"{"speed":1}"#);
        let samples = add(&record);
        assert_eq!(samples.series, [key(Kind::Message, "process", "")]);
        assert_eq!(samples.samples[0].content, Content::Json(json!({ "speed": 1 })));
    }

    #[test]
    fn events_pictures_and_strangers_are_kept() {
        let event = record(
            "foreshore/events/bottling/filler/alarms/overheat",
            r#"{"Severity":800}"#,
        );
        assert_eq!(add(&event).series, [key(Kind::Event, "alarms/overheat", "")]);

        let mut picture = record("foreshore/streams/bottling/filler/camera", "\u{ff}");
        picture.properties.content_type = Some("image/jpeg".to_owned());
        picture
            .properties
            .push_user(property::CAPTURED_AT, "2026-03-01T11:00:00Z");
        picture.properties.push_user(property::WIDTH, "640");
        let samples = add(&picture);
        assert_eq!(samples.series, [key(Kind::Stream, "camera", "")]);
        assert_eq!(samples.samples[0].time, at("2026-03-01T11:00:00Z"));
        let Content::Payload { description, .. } = &samples.samples[0].content else {
            panic!("no payload")
        };
        assert_eq!(
            description,
            &json!({ "size": 2, "contentType": "image/jpeg", "width": 640 })
        );

        let mut stranger = record("weather", "21");
        stranger.ingested_at = Some("2026-03-01T10:00:00Z".parse().unwrap());
        let samples = add(&stranger);
        let topic = SeriesKey {
            asset: None,
            ..key(Kind::Topic, "weather", "")
        };
        assert_eq!(samples.series, [topic]);
        assert_eq!(samples.samples[0].time, at("2026-03-01T10:00:00Z"));

        let nameless = record(&format!("foreshore/data/{}/a/b", "n".repeat(300)), "{}");
        assert_eq!(add(&nameless).series[0].kind, Kind::Topic);
    }
}
