//! Retained messages: the last one of each topic (MQTT 5.0 section 3.3.1.3).
//!
//! All of them are in memory, so that a subscription is answered at once; the store has them as well. They are bounded
//! by number and bytes: a message that would exceed the bounds is refused, never half kept.

use std::{collections::HashMap, sync::Arc};

use foreshore_store::{BrokerTime, EntryId};
use parking_lot::RwLock;

use crate::message::Message;

/// The retained messages.
#[derive(Debug, Default)]
pub(crate) struct Retained {
    tree: RwLock<Tree>,
}

#[derive(Debug, Default)]
struct Tree {
    root: Node,
    count: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node>,
    last: Option<Last>,
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
        let tree = self.tree.read();
        let known = tree
            .root
            .find(message.topic.as_str())
            .and_then(|last| last.message.as_ref());
        let (count, bytes) = known.map_or((0, 0), |known| (1, known.weight()));
        tree.count - count < bounds.count && tree.bytes - bytes + message.weight() <= bounds.bytes
    }

    /// Keeps a message as the last of its topic, or forgets that one if the payload is empty. What is older than the
    /// present one is passed over.
    pub(crate) fn put(&self, id: EntryId, message: &Arc<Message>) {
        let keep = (!message.payload.is_empty()).then(|| Arc::clone(message));
        self.tree.write().put(message.topic.as_str(), id, keep);
    }

    /// Forgets messages that are worthless, and what is remembered of deletions before `settled`, the last id that can't
    /// arrive late any more.
    pub(crate) fn sweep(&self, now: BrokerTime, settled: EntryId) {
        let tree = &mut *self.tree.write();
        let (mut count, mut bytes) = (0, 0);
        tree.root.sweep(&mut |last| {
            if let Some(message) = last.message.take_if(|message| message.is_expired(now)) {
                count += 1;
                bytes += message.weight();
            }
            last.message.is_some() || last.id > settled
        });
        tree.count -= count;
        tree.bytes -= bytes;
    }

    /// Calls `found` with every message that a filter matches, in no order.
    pub(crate) fn matching(&self, filter: &str, now: BrokerTime, mut found: impl FnMut(&Arc<Message>)) {
        self.tree
            .read()
            .root
            .matching(filter.split('/'), true, &mut |message| {
                if !message.is_expired(now) {
                    found(message);
                }
            });
    }

    /// Number of messages, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let tree = self.tree.read();
        (tree.count, tree.bytes)
    }
}

impl Tree {
    fn put(&mut self, topic: &str, id: EntryId, message: Option<Arc<Message>>) {
        let mut node = &mut self.root;
        for level in topic.split('/') {
            node = node.children.entry(level.into()).or_default();
        }
        if node.last.as_ref().is_some_and(|last| last.id > id) {
            return;
        }
        let added = message.as_ref().map(|message| message.weight());
        let removed = node
            .last
            .replace(Last { id, message })
            .and_then(|last| last.message);
        self.count += usize::from(added.is_some());
        self.count -= usize::from(removed.is_some());
        self.bytes += added.unwrap_or(0);
        self.bytes -= removed.map_or(0, |message| message.weight());
    }
}

impl Node {
    fn find(&self, topic: &str) -> Option<&Last> {
        let mut node = self;
        for level in topic.split('/') {
            node = node.children.get(level)?;
        }
        node.last.as_ref()
    }

    fn sweep(&mut self, keep: &mut impl FnMut(&mut Last) -> bool) {
        self.last.take_if(|last| !keep(last));
        self.children.retain(|_, child| {
            child.sweep(keep);
            child.last.is_some() || !child.children.is_empty()
        });
    }

    fn matching(
        &self,
        mut levels: std::str::Split<'_, char>,
        first: bool,
        found: &mut impl FnMut(&Arc<Message>),
    ) {
        // [MQTT-4.7.2-1]: a leading wildcard does not match a topic that begins with `$`.
        let visible = |name: &str| !first || !name.starts_with('$');
        match levels.next() {
            None => {
                if let Some(message) = self.last.as_ref().and_then(|last| last.message.as_ref()) {
                    found(message);
                }
            }
            Some("#") => {
                if !first && let Some(message) = self.last.as_ref().and_then(|last| last.message.as_ref()) {
                    found(message);
                }
                for (_, child) in self.children.iter().filter(|(name, _)| visible(name)) {
                    child.matching("#".split('/'), false, found);
                }
            }
            Some("+") => {
                for (_, child) in self.children.iter().filter(|(name, _)| visible(name)) {
                    child.matching(levels.clone(), false, found);
                }
            }
            Some(level) => {
                if let Some(child) = self.children.get(level) {
                    child.matching(levels, false, found);
                }
            }
        }
    }
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

    fn found(retained: &Retained, filter: &str) -> Vec<String> {
        let mut topics = Vec::new();
        retained.matching(filter, NOW, |message| topics.push(message.topic.to_string()));
        topics.sort();
        topics
    }

    proptest! {
        #[test]
        fn finds_exactly_the_topics_that_match(
            topics in prop::collection::btree_set("\\$?[ab]?(/[ab]?){0,3}", 1..30),
            filter in "(\\$?[ab]?|\\+)(/([ab]?|\\+)){0,3}(/#)?|#",
        ) {
            let Ok(filter) = TopicFilter::new(&filter) else { return Ok(()) };
            let retained = Retained::default();
            let topics: Vec<_> = topics.into_iter().filter(|topic| !topic.is_empty()).collect();
            for topic in &topics {
                retained.put(1, &message(topic, "x"));
            }
            let expected: Vec<_> = topics.iter().filter(|topic| filter.matches(topic)).cloned().collect();
            prop_assert_eq!(found(&retained, filter.as_str()), expected);
        }
    }

    #[test]
    fn the_last_one_counts_in_whatever_order_they_arrive() {
        let retained = Retained::default();
        retained.put(5, &message("a/b", "five"));
        retained.put(4, &message("a/b", "four"));
        let mut payloads = Vec::new();
        retained.matching("a/b", NOW, |message| payloads.push(message.payload.clone()));
        assert_eq!(payloads, ["five"]);
        retained.put(7, &message("a/b", ""));
        retained.put(6, &message("a/b", "six"));
        assert_eq!((found(&retained, "#").len(), retained.size()), (0, (0, 0)));
        retained.sweep(NOW, 7);
        assert!(retained.tree.read().root.children.is_empty());
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
