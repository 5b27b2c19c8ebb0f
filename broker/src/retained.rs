//! Retained messages: the last one of each topic (MQTT 5.0 section 3.3.1.3).
//!
//! All of them are in memory, so that a subscription is answered at once; the store has them as well. They are bounded
//! by number and bytes: a message that would exceed the bounds is refused, never half kept.
//!
//! They are in the order of their topics, so that whoever looks for those that a filter matches can pause, and jumps over
//! what it can't match.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use foreshore_record::{TopicFilter, TopicName};
use foreshore_store::{BrokerTime, EntryId};
use parking_lot::RwLock;

use crate::message::Message;

/// The retained messages.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    topics: RwLock<Topics>,
}

#[derive(Debug, Default)]
struct Topics {
    last: BTreeMap<TopicName, Last>,
    count: usize,
    bytes: usize,
}

/// The last thing that happened to a topic.
#[derive(Debug)]
struct Last {
    /// When, in the order of ingest; 0 for what is not stored.
    id: EntryId,
    /// `None` when it was deleted: an older message that arrives late must not come back.
    message: Option<Arc<Message>>,
}

/// Bounds of retained messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most messages.
    pub(crate) count: usize,
    /// Most bytes of topics, payloads and properties.
    pub(crate) bytes: usize,
}

impl Retained {
    /// Whether a message would find room.
    pub(crate) fn has_room(&self, message: &Message, bounds: Bounds) -> bool {
        let topics = self.topics.read();
        let known = topics
            .last
            .get(&message.topic)
            .and_then(|last| last.message.as_ref());
        let (count, bytes) = known.map_or((0, 0), |known| (1, known.weight()));
        topics.count - count < bounds.count && topics.bytes - bytes + message.weight() <= bounds.bytes
    }

    /// Keeps a message as the last of its topic, or forgets that one if the payload is empty. What is older than the
    /// present one is passed over.
    pub(crate) fn put(&self, id: EntryId, message: &Arc<Message>) {
        let keep = (!message.payload.is_empty()).then(|| Arc::clone(message));
        self.topics.write().put(&message.topic, id, keep);
    }

    /// Forgets messages that are worthless, and what is remembered of deletions before `settled`, the last id that can't
    /// arrive late any more.
    pub(crate) fn sweep(&self, now: BrokerTime, settled: EntryId) {
        let topics = &mut *self.topics.write();
        topics.last.retain(|_, last| {
            if let Some(message) = last.message.take_if(|message| message.is_expired(now)) {
                topics.count -= 1;
                topics.bytes -= message.weight();
            }
            last.message.is_some() || last.id > settled
        });
    }

    /// Calls `found` with messages that a filter matches, in order of topic and from a topic on, and looks at so many topics
    /// at most. Returns where to go on, if that was not all.
    pub(crate) fn matching(
        &self,
        filter: &TopicFilter,
        from: Option<TopicName>,
        looks: &mut usize,
        now: BrokerTime,
        mut found: impl FnMut(&Arc<Message>),
    ) -> Option<TopicName> {
        let topics = self.topics.read();
        let mut from = from.map_or_else(String::new, |from| from.as_str().to_owned());
        'jump: loop {
            let bounds = (Bound::Included(from.as_str()), Bound::Unbounded);
            for (topic, last) in topics.last.range::<str, _>(bounds) {
                if *looks == 0 {
                    return Some(topic.clone());
                }
                *looks -= 1;
                match judge(filter.as_str(), topic.as_str()) {
                    Judgement::Matches => {
                        if let Some(message) = last.message.as_ref().filter(|last| !last.is_expired(now)) {
                            found(message);
                        }
                    }
                    Judgement::Differs => {}
                    Judgement::NoneBefore(next) => {
                        from = next;
                        continue 'jump;
                    }
                    Judgement::NoneBehind => return None,
                }
            }
            return None;
        }
    }

    /// Number of messages, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let topics = self.topics.read();
        (topics.count, topics.bytes)
    }
}

impl Topics {
    fn put(&mut self, topic: &TopicName, id: EntryId, message: Option<Arc<Message>>) {
        if self.last.get(topic).is_some_and(|last| last.id > id) {
            return;
        }
        let added = message.as_ref().map(|message| message.weight());
        let replaced = self
            .last
            .insert(topic.clone(), Last { id, message })
            .and_then(|last| last.message);
        self.count += usize::from(added.is_some());
        self.count -= usize::from(replaced.is_some());
        self.bytes += added.unwrap_or(0);
        self.bytes -= replaced.map_or(0, |message| message.weight());
    }
}

/// What a topic says about those behind it, for whoever looks for what a filter matches in the order of topics.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    /// The filter matches it.
    Matches,
    /// It does not; the next topic may be one.
    Differs,
    /// It does not, nor any topic before this text, which is behind it.
    NoneBefore(String),
    /// It does not, nor any topic behind it.
    NoneBehind,
}

fn judge(filter: &str, topic: &str) -> Judgement {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        // [MQTT-4.7.2-1]; `%` comes after `$`.
        return Judgement::NoneBefore("%".to_owned());
    }
    // Levels that were not looked at, and the topic up to and with the separator behind the last one that may have any name.
    let (mut rest, mut any) = (Some(topic), None);
    for level in filter.split('/') {
        if level == "#" {
            return Judgement::Matches;
        }
        let Some(levels) = rest else {
            // Topics below this one have more of them.
            return Judgement::Differs;
        };
        let (name, below) = match levels.split_once('/') {
            Some((name, below)) => (name, Some(below)),
            None => (levels, None),
        };
        if level == "+" {
            any = below.and_then(|below| topic.strip_suffix(below));
        } else if level != name {
            let above = topic.strip_suffix(levels).unwrap_or_default();
            let mut wanted = format!("{above}{level}");
            if topic < wanted.as_str() {
                return Judgement::NoneBefore(wanted);
            }
            // Between a topic and those below it are others, as `a-b` between `a` and `a/b`.
            wanted.push('/');
            if topic < wanted.as_str() {
                return Judgement::NoneBefore(wanted);
            }
            return behind(any);
        }
        rest = below;
    }
    rest.map_or(Judgement::Matches, |_| behind(any))
}

/// What of topics that begin like this can match was in front of the one that was looked at.
fn behind(any: Option<&str>) -> Judgement {
    // `0` comes after `/`.
    let next = any.and_then(|any| any.strip_suffix('/'));
    next.map_or(Judgement::NoneBehind, |next| {
        Judgement::NoneBefore(format!("{next}0"))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use foreshore_record::{TopicFilter, TopicName};
    use proptest::prelude::*;

    use super::*;

    const NOW: BrokerTime = BrokerTime(10);

    fn message(topic: &str, payload: &'static str) -> Arc<Message> {
        Arc::new(Message::new(
            TopicName::new(topic).unwrap(),
            Bytes::from_static(payload.as_bytes()),
            Bytes::new(),
        ))
    }

    /// Topics that a filter matches, and how often there was a pause after so many looks.
    fn looked_up(retained: &Retained, filter: &str, looks: usize) -> (Vec<String>, usize) {
        let filter = TopicFilter::new(filter).unwrap();
        let (mut topics, mut pauses, mut from) = (Vec::new(), 0, None);
        loop {
            let find = |message: &Arc<Message>| topics.push(message.topic.to_string());
            from = retained.matching(&filter, from, &mut { looks }, NOW, find);
            if from.is_none() {
                return (topics, pauses);
            }
            pauses += 1;
        }
    }

    fn found(retained: &Retained, filter: &str) -> Vec<String> {
        looked_up(retained, filter, usize::MAX).0
    }

    proptest! {
        #[test]
        fn finds_exactly_the_topics_that_match(
            topics in prop::collection::btree_set("\\$?[ab]?-?(/[ab]?-?){0,3}", 1..30),
            filter in "(\\$?[ab]?-?|\\+)(/([ab]?-?|\\+)){0,3}(/#)?|#",
            looks in 1_usize..6,
        ) {
            let Ok(filter) = TopicFilter::new(&filter) else { return Ok(()) };
            let retained = Retained::default();
            let topics: Vec<_> = topics.into_iter().filter(|topic| !topic.is_empty()).collect();
            for topic in &topics {
                retained.put(1, &message(topic, "x"));
            }
            let expected: Vec<_> = topics.iter().filter(|topic| filter.matches(topic)).cloned().collect();
            prop_assert_eq!(&found(&retained, filter.as_str()), &expected);
            prop_assert_eq!(looked_up(&retained, filter.as_str(), looks).0, expected);
        }
    }

    #[test]
    fn the_last_one_counts_in_whatever_order_they_arrive() {
        let retained = Retained::default();
        retained.put(5, &message("a/b", "five"));
        retained.put(4, &message("a/b", "four"));
        let (filter, mut payloads) = (TopicFilter::new("a/b").unwrap(), Vec::new());
        let find = |message: &Arc<Message>| payloads.push(message.payload.clone());
        retained.matching(&filter, None, &mut 9, NOW, find);
        assert_eq!(payloads, ["five"]);
        retained.put(7, &message("a/b", ""));
        retained.put(6, &message("a/b", "six"));
        assert_eq!((found(&retained, "#").len(), retained.size()), (0, (0, 0)));
        retained.sweep(NOW, 7);
        assert!(retained.topics.read().last.is_empty());
    }

    #[test]
    fn what_a_filter_can_not_match_is_jumped_over() {
        let retained = Retained::default();
        for (line, name) in (0..100).flat_map(|line| (0..100).map(move |name| (line, name))) {
            retained.put(1, &message(&format!("plant/{line}/{name}"), "x"));
        }
        // Some looks for each line, where there are a hundred topics.
        let (topics, pauses) = looked_up(&retained, "plant/+/7", 10);
        assert!(topics.len() == 100 && pauses <= 40, "{pauses}");
        for filter in ["plant/7/7", "plant/7/x/#", "a/#", "x"] {
            assert_eq!(looked_up(&retained, filter, 6).1, 0, "{filter}");
        }
    }

    #[test]
    fn bounds_and_expiry_are_kept() {
        let retained = Retained::default();
        let bounds = Bounds { count: 1, bytes: 10 };
        assert!(!retained.has_room(&message("topic", "sixsix"), bounds));
        retained.put(1, &message("a", "x"));
        assert!(
            retained.has_room(&message("a", "y"), bounds) && !retained.has_room(&message("b", "y"), bounds)
        );
        let expiring = Message {
            expires_at: Some(NOW),
            ..Message::new(TopicName::new("a").unwrap(), "z".into(), "".into())
        };
        retained.put(2, &Arc::new(expiring));
        assert_eq!(found(&retained, "+").len(), 0);
        retained.sweep(NOW, 0);
        assert_eq!(retained.size(), (0, 0));
    }
}
