//! From values as they come to key frames and delta frames.

use std::{collections::HashMap, sync::Arc};

use foreshore_record::DataValue;
use serde::ser::{Serialize, SerializeMap, Serializer};
use tokio::time::Instant;

use super::book::{DatasetPage, KeyFrames};

/// The name of a data point and its value.
pub(crate) type PointValue = (Arc<str>, DataValue);

/// One message of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    /// Whether it holds all points whose values are known.
    pub(crate) key: bool,
    pub(crate) values: Vec<PointValue>,
}

/// The last values of a dataset, and when all of them are due.
#[derive(Debug)]
pub(crate) struct Framer {
    page: Arc<DatasetPage>,
    last: HashMap<Arc<str>, DataValue>,
    /// The next message holds all points.
    key_due: bool,
    messages_since_key: u32,
    key_at: Option<Instant>,
}

impl Framer {
    pub(crate) fn new(page: Arc<DatasetPage>) -> Self {
        Self {
            page,
            last: HashMap::new(),
            key_due: true,
            messages_since_key: 0,
            key_at: None,
        }
    }

    /// Goes on where another instance let go: whoever listens has had all points already.
    pub(crate) fn going_on(page: Arc<DatasetPage>, now: Instant) -> Self {
        let mut framer = Self::new(page);
        (framer.key_due, framer.key_at) = (false, Some(now));
        framer
    }

    /// Takes note of a value that was sent already.
    pub(crate) fn know(&mut self, point: &Arc<str>, value: &DataValue) {
        if self.page.points.contains(point) {
            self.last.insert(Arc::clone(point), value.clone());
        }
    }

    /// The last value of each point.
    pub(crate) fn last(&self) -> impl Iterator<Item = (&Arc<str>, &DataValue)> {
        self.last.iter()
    }

    /// Follows a change of the plan; the next message holds all points then.
    pub(crate) fn replan(&mut self, page: &Arc<DatasetPage>) {
        // Asked with every message: the same page is the usual answer.
        if Arc::ptr_eq(&self.page, page) {
            return;
        }
        let changed = self.page != *page;
        self.page = Arc::clone(page);
        if changed {
            self.last.retain(|point, _| page.points.contains(point));
            self.key_due = true;
        }
    }

    /// A link came up: whoever listens gets all points with the next message.
    pub(crate) fn restart(&mut self) {
        self.key_due = true;
    }

    /// Takes values, oldest first, and gives the messages that carry all of them. A point that has several values gives
    /// several messages, for a message names each point once.
    pub(crate) fn take(&mut self, values: Vec<PointValue>, now: Instant) -> Vec<Frame> {
        let wanted = |sample: &PointValue| self.page.points.contains(&sample.0) && !self.is_echo(sample);
        let wanted = values.into_iter().filter(wanted).collect();
        layers(wanted)
            .into_iter()
            .map(|layer| self.frame(layer, now))
            .collect()
    }

    /// Whether a sample is the very one that was sent last, taken at the same moment: some devices send it again when a
    /// session is taken up.
    fn is_echo(&self, (point, value): &PointValue) -> bool {
        !self.key_due && value.source_timestamp.is_some() && self.last.get(point) == Some(value)
    }

    fn frame(&mut self, layer: Vec<PointValue>, now: Instant) -> Frame {
        let due = match self.page.key_frames {
            KeyFrames::First => false,
            KeyFrames::Count(count) => self.messages_since_key + 1 >= count,
            KeyFrames::Interval(interval) => self.key_at.is_some_and(|at| now >= at + interval),
        };
        self.last.extend(layer.iter().cloned());
        if self.key_due || due {
            return self.key_frame(now);
        }
        self.messages_since_key += 1;
        Frame {
            key: false,
            values: layer,
        }
    }

    fn key_frame(&mut self, now: Instant) -> Frame {
        (self.key_due, self.messages_since_key, self.key_at) = (false, 0, Some(now));
        let known = self
            .page
            .points
            .iter()
            .filter_map(|point| self.last.get_key_value(point));
        let values = known
            .map(|(point, value)| (Arc::clone(point), value.clone()))
            .collect();
        Frame { key: true, values }
    }

    /// When a key frame is due although no value came; `None` when that never happens.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        match self.page.key_frames {
            KeyFrames::Interval(interval) if !self.key_due => self.key_at.map(|at| at + interval),
            _ => None,
        }
    }

    /// The key frame that is due although no value came.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Frame> {
        self.due_at()
            .filter(|due| *due <= now)
            .map(|_| self.key_frame(now))
    }
}

/// Splits values so that no point appears twice in a layer; the nth value of each point is in the nth layer.
fn layers(values: Vec<PointValue>) -> Vec<Vec<PointValue>> {
    let mut layers: Vec<Vec<PointValue>> = Vec::new();
    let mut seen: HashMap<Arc<str>, usize> = HashMap::with_capacity(values.len());
    for (point, value) in values {
        let depth = seen.entry(Arc::clone(&point)).or_default();
        if layers.len() == *depth {
            layers.push(Vec::new());
        }
        if let Some(layer) = layers.get_mut(*depth) {
            layer.push((point, value));
        }
        *depth += 1;
    }
    layers
}

/// The payload of a dataset message ([`foreshore_record::value`]).
pub(crate) struct Payload<'a>(pub(crate) &'a [PointValue]);

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (point, value) in self.0 {
            map.serialize_entry(&**point, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use foreshore_record::{Qos, TopicName};
    use jiff::Timestamp;

    use super::*;
    use crate::runner::book::Route;

    fn page(key_frames: KeyFrames, points: &[&str]) -> Arc<DatasetPage> {
        let topic = TopicName::new("t").unwrap();
        let route = Route {
            topic,
            qos: Qos::AtLeastOnce,
            retain: false,
            expiry_seconds: None,
        };
        let points = points.iter().map(|point| Arc::from(*point)).collect();
        Arc::new(DatasetPage {
            route,
            key_frames,
            points,
        })
    }

    fn value(point: &str, value: i64) -> PointValue {
        (Arc::from(point), DataValue::good(value, Timestamp::UNIX_EPOCH))
    }

    fn shown(frames: &[Frame]) -> Vec<String> {
        let text = |frame: &Frame| {
            let values = frame
                .values
                .iter()
                .map(|(point, value)| format!("{point}{}", value.value));
            let kind = if frame.key { "key" } else { "delta" };
            format!("{kind} {}", values.collect::<Vec<_>>().join(" "))
        };
        frames.iter().map(text).collect()
    }

    #[test]
    fn the_first_message_of_a_link_holds_everything_known() {
        let (mut framer, now) = (Framer::new(page(KeyFrames::First, &["a", "b"])), Instant::now());
        assert_eq!(shown(&framer.take(vec![value("b", 1)], now)), ["key b1"]);
        assert_eq!(
            shown(&framer.take(vec![value("a", 1), value("x", 9)], now)),
            ["delta a1"]
        );
        framer.restart();
        assert_eq!(shown(&framer.take(vec![value("a", 2)], now)), ["key a2 b1"]);
        framer.replan(&page(KeyFrames::First, &["a", "c"]));
        assert_eq!(shown(&framer.take(vec![value("c", 1)], now)), ["key a2 c1"]);
        assert!(framer.take(vec![value("b", 1)], now).is_empty());
    }

    #[test]
    fn every_value_of_a_point_is_sent() {
        let (mut framer, now) = (Framer::new(page(KeyFrames::First, &["a", "b"])), Instant::now());
        let values = vec![
            value("a", 1),
            value("b", 1),
            value("a", 2),
            value("a", 3),
            value("b", 2),
        ];
        assert_eq!(
            shown(&framer.take(values, now)),
            ["key a1 b1", "delta a2 b2", "delta a3"]
        );
    }

    #[test]
    fn key_frames_come_by_count() {
        let (mut framer, now) = (
            Framer::new(page(KeyFrames::Count(3), &["a", "b"])),
            Instant::now(),
        );
        framer.take(vec![value("a", 0), value("b", 0)], now);
        let frames: Vec<_> = (1..=6)
            .flat_map(|n| framer.take(vec![value("a", n)], now))
            .collect();
        assert_eq!(
            shown(&frames),
            [
                "delta a1",
                "delta a2",
                "key a3 b0",
                "delta a4",
                "delta a5",
                "key a6 b0"
            ]
        );
        let mut always = Framer::new(page(KeyFrames::Count(1), &["a", "b"]));
        let frames: Vec<_> = (1..=2)
            .flat_map(|n| always.take(vec![value("a", n)], now))
            .collect();
        assert_eq!(shown(&frames), ["key a1", "key a2"]);
    }

    #[test]
    fn key_frames_come_by_time_with_or_without_values() {
        let minute = Duration::from_secs(60);
        let (mut framer, start) = (
            Framer::new(page(KeyFrames::Interval(minute), &["a"])),
            Instant::now(),
        );
        assert!(framer.tick(start).is_none() && framer.due_at().is_none());
        framer.take(vec![value("a", 1)], start);
        assert_eq!(framer.due_at(), Some(start + minute));
        assert_eq!(
            shown(&framer.take(vec![value("a", 2)], start + minute / 2)),
            ["delta a2"]
        );
        assert!(framer.tick(start + minute / 2).is_none());
        assert_eq!(
            shown(&framer.tick(start + minute).into_iter().collect::<Vec<_>>()),
            ["key a2"]
        );
        assert_eq!(
            shown(&framer.take(vec![value("a", 3)], start + minute * 2)),
            ["key a3"]
        );
    }

    #[test]
    fn the_very_same_sample_is_sent_once() {
        let mut framer = Framer::new(page(KeyFrames::First, &["a", "b"]));
        let now = Instant::now();
        let later = (Arc::from("a"), DataValue::good(1, Timestamp::MAX));
        assert_eq!(shown(&framer.take(vec![value("a", 1)], now)), ["key a1"]);
        assert_eq!(
            shown(&framer.take(vec![value("a", 1), value("b", 2)], now)),
            ["delta b2"]
        );
        assert_eq!(shown(&framer.take(vec![later], now)), ["delta a1"]);
        // Whoever begins to listen gets it again.
        framer.restart();
        assert_eq!(shown(&framer.take(vec![value("b", 2)], now)), ["key a1 b2"]);
    }

    #[test]
    fn payloads_are_dataset_messages() {
        let values = [value("a", 1), value("b", 2)];
        let payload = serde_json::to_vec(&Payload(&values)).unwrap();
        let decoded = foreshore_record::value::decode(&payload).unwrap();
        assert_eq!(decoded.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(decoded["b"], values[1].1);
    }
}
