//! What an owner has handed to the broker, and what of its heir's is therefore a repeat.
//!
//! Of each data point the last value counts: its source timestamp, and a hash of it. Two subscriptions to one point see
//! the same values in the same order, if not at the same moment; so the heir leaves out everything up to that value, and
//! an heir whose first value is a later one knows that something is missing between the two.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foreshore_control::handover::LARGEST_WATERMARK;
use foreshore_record::DataValue;
use foreshore_tls::Fingerprint;
use jiff::Timestamp;

use crate::observation::Event;

const MAGIC: &[u8; 4] = b"FSW1";
/// No source timestamp.
const NO_TIME: i64 = i64::MIN;
/// Bytes of a point: hashes of its name and its value, and its time.
const POINT_LEN: usize = 24;
const EVENT_LEN: usize = 8;
/// Events that are remembered: those of the last moments.
const MOST_EVENTS: usize = 512;

/// The last value of a data point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    /// Nanoseconds since the Unix epoch.
    time: i64,
    value: u64,
}

/// Events that were handed over, as hashes.
#[derive(Debug, Default)]
pub(crate) struct RecentEvents(VecDeque<u64>);

impl RecentEvents {
    pub(crate) fn push(&mut self, event: &Event) {
        if self.0.len() == MOST_EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(event_hash(event));
    }
}

/// What was handed over of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermark {
    points: HashMap<u64, Last>,
    /// Points of which a value before the last was seen: the two subscriptions overlap there.
    met: HashSet<u64>,
    events: HashSet<u64>,
}

/// What a value is to who goes on after a watermark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It comes after what was handed over.
    New,
    /// It was handed over.
    Repeat,
    /// It comes after what was handed over, and something may be missing between the two.
    AfterGap,
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut text = Vec::with_capacity(parts.iter().map(|part| part.len() + 8).sum());
    for part in parts {
        text.extend_from_slice(&(part.len() as u64).to_be_bytes());
        text.extend_from_slice(part);
    }
    let digest = Fingerprint::of(&text);
    digest
        .as_bytes()
        .first_chunk()
        .map_or(0, |first| u64::from_be_bytes(*first))
}

fn point_hash(asset: &str, dataset: &str, point: &str) -> u64 {
    hash(&[asset.as_bytes(), dataset.as_bytes(), point.as_bytes()])
}

fn event_hash(event: &Event) -> u64 {
    let body = serde_json::to_vec(&event.body).unwrap_or_default();
    let time = event.time.as_nanosecond().to_be_bytes();
    let names = [&event.asset, &event.group, &event.event].map(|name| name.as_bytes());
    let [asset, group, name] = names;
    hash(&[asset, group, name, &time, event.source.as_bytes(), &body])
}

impl Last {
    fn of(value: &DataValue) -> Self {
        let text = serde_json::to_vec(&value.value).unwrap_or_default();
        Self {
            time: value.source_timestamp.map_or(NO_TIME, nanoseconds),
            value: hash(&[&text, &value.status_code.to_be_bytes()]),
        }
    }
}

fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

impl Watermark {
    /// The last value of a point.
    pub(crate) fn set(&mut self, asset: &str, dataset: &str, point: &str, value: &DataValue) {
        self.points
            .insert(point_hash(asset, dataset, point), Last::of(value));
    }

    /// The events of the last moments.
    pub(crate) fn set_events(&mut self, events: &RecentEvents) {
        self.events = events.0.iter().copied().collect();
    }

    /// As bytes; `None` when there are more points than a watermark has room for.
    pub(crate) fn encode(&self) -> Option<Bytes> {
        let length = MAGIC.len() + 8 + self.points.len() * POINT_LEN + self.events.len() * EVENT_LEN;
        if length > LARGEST_WATERMARK {
            return None;
        }
        let count = |count: usize| u32::try_from(count).ok();
        let mut bytes = BytesMut::with_capacity(length);
        bytes.put_slice(MAGIC);
        bytes.put_u32(count(self.points.len())?);
        bytes.put_u32(count(self.events.len())?);
        // In order, so that the same watermark is the same resource.
        let mut points: Vec<_> = self.points.iter().collect();
        points.sort_unstable_by_key(|(point, _)| **point);
        for (point, last) in points {
            bytes.put_u64(*point);
            bytes.put_i64(last.time);
            bytes.put_u64(last.value);
        }
        let mut events: Vec<_> = self.events.iter().copied().collect();
        events.sort_unstable();
        events.into_iter().for_each(|event| bytes.put_u64(event));
        Some(bytes.freeze())
    }

    /// From bytes; `None` when they are no watermark of this format.
    pub(crate) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if bytes.len() < MAGIC.len() + 8 || bytes.copy_to_bytes(MAGIC.len()).as_ref() != MAGIC {
            return None;
        }
        let (points, events) = (bytes.get_u32() as usize, bytes.get_u32() as usize);
        if bytes.len()
            != points
                .checked_mul(POINT_LEN)?
                .checked_add(events.checked_mul(EVENT_LEN)?)?
        {
            return None;
        }
        let mut point = || {
            let (point, time, value) = (bytes.get_u64(), bytes.get_i64(), bytes.get_u64());
            (point, Last { time, value })
        };
        let points = (0..points).map(|_| point()).collect();
        let events = (0..events).map(|_| bytes.get_u64()).collect();
        Some(Self {
            points,
            events,
            met: HashSet::new(),
        })
    }

    /// Judges the next value of a point. A point is followed only until it has passed its last value: from then on
    /// everything is new, whatever the clock of its source does.
    pub(crate) fn judge(&mut self, asset: &str, dataset: &str, point: &str, value: &DataValue) -> Verdict {
        if self.points.is_empty() {
            return Verdict::New;
        }
        let point = point_hash(asset, dataset, point);
        let Some(last) = self.points.get(&point).copied() else {
            return Verdict::New;
        };
        let this = Last::of(value);
        if this == last {
            self.points.remove(&point);
            self.met.remove(&point);
            return Verdict::Repeat;
        }
        if this.time != NO_TIME && last.time != NO_TIME && this.time < last.time {
            self.met.insert(point);
            return Verdict::Repeat;
        }
        self.points.remove(&point);
        if self.met.remove(&point) {
            // The device was looked at in other moments; nothing of the later looks is left out.
            Verdict::New
        } else {
            Verdict::AfterGap
        }
    }

    /// Whether an event was handed over.
    pub(crate) fn has(&mut self, event: &Event) -> bool {
        !self.events.is_empty() && self.events.remove(&event_hash(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(number: i64, second: i64) -> DataValue {
        DataValue::good(number, Timestamp::from_second(second).unwrap())
    }

    fn mark(number: i64, second: i64) -> Watermark {
        let mut watermark = Watermark::default();
        watermark.set("a", "d", "p", &value(number, second));
        watermark
    }

    fn judged(mut watermark: Watermark, values: &[(i64, i64)]) -> Vec<Verdict> {
        let judge = |(number, second): &(i64, i64)| watermark.judge("a", "d", "p", &value(*number, *second));
        values.iter().map(judge).collect()
    }

    #[test]
    fn everything_up_to_the_last_value_is_a_repeat() {
        use Verdict::{New, Repeat};
        assert_eq!(
            judged(mark(3, 30), &[(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]),
            [Repeat, Repeat, Repeat, New, New]
        );
        // The server looked at other moments for the two.
        assert_eq!(
            judged(mark(3, 30), &[(2, 20), (4, 31), (5, 40)]),
            [Repeat, New, New]
        );
        // The clock of the source was set back after it.
        assert_eq!(
            judged(mark(3, 30), &[(3, 30), (4, 5), (5, 6)]),
            [Repeat, New, New]
        );
    }

    #[test]
    fn a_first_value_that_is_later_tells_the_gap_once() {
        use Verdict::{AfterGap, New};
        assert_eq!(judged(mark(3, 30), &[(5, 50), (6, 60)]), [AfterGap, New]);
        let other = judged(mark(3, 30), &[(4, 30), (5, 40)]);
        assert_eq!(
            other,
            [AfterGap, New],
            "another value of the same moment is not the same value"
        );
    }

    #[test]
    fn a_point_that_was_never_handed_over_is_new() {
        let mut watermark = mark(3, 30);
        assert_eq!(watermark.judge("a", "d", "other", &value(1, 1)), Verdict::New);
    }

    #[test]
    fn a_value_without_a_time_is_known_by_itself() {
        let bare = |number: i64| DataValue {
            source_timestamp: None,
            ..value(number, 0)
        };
        let mut watermark = Watermark::default();
        watermark.set("a", "d", "p", &bare(3));
        assert_eq!(watermark.clone().judge("a", "d", "p", &bare(3)), Verdict::Repeat);
        assert_eq!(watermark.judge("a", "d", "p", &bare(4)), Verdict::AfterGap);
    }

    #[test]
    fn it_comes_back_as_it_went_and_damage_is_noticed() {
        let mut watermark = mark(3, 30);
        watermark.events.insert(7);
        let bytes = watermark.encode().unwrap();
        assert_eq!(Watermark::decode(&bytes), Some(watermark));
        assert_eq!(Watermark::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Watermark::decode(b""), None);
        let mut large = Watermark::default();
        for number in 0..30_000 {
            large.points.insert(number, Last { time: 0, value: 0 });
        }
        assert_eq!(large.encode(), None);
    }
}
