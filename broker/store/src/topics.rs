//! Limits by topic filter, of what waits in each queue, and what they come to over all queues.
//!
//! They hold for each queue by itself: a receiver that is away for long loses of its own, and never makes another one
//! lose. A message counts for the first limit whose filter matches its topic. Its entry keeps the limit's key, so that
//! what leaves is counted where it came in, and a path's row keeps the share of each key: nothing is scanned for it.

use std::time::Duration;

use foreshore_record::TopicFilter;

use crate::{
    codec::{RowReader, RowWriter},
    error::StoreError,
    keys::Bytes,
    limits::OverflowPolicy,
};

const VERSION: u8 = 1;

/// Most limits by topic filter: each is compared with every message that is queued.
pub const MAX_TOPIC_LIMITS: usize = 16;

/// What the messages of a topic filter may come to in one queue. `None` is without limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicLimit {
    /// Whose messages.
    pub filter: TopicFilter,
    /// Most of them that wait.
    pub max_messages: Option<u64>,
    /// Most bytes of them that wait: payloads, topics and properties.
    pub max_bytes: Option<u64>,
    /// Most time that one waits on the broker's clock.
    pub max_age: Option<Duration>,
    /// What happens to a message beyond that.
    pub overflow: OverflowPolicy,
}

/// A limit by topic filter, with what it comes to over all queues. What was dropped is in the ledger of each path too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTotals {
    /// The limit.
    pub limit: TopicLimit,
    /// Entries that wait.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Entries that made room for newer ones.
    pub dropped_oldest: u64,
    /// Entries that found no room.
    pub dropped_new: u64,
    /// Entries that waited for too long.
    pub dropped_aged: u64,
    /// Messages that were refused, once for all their receivers.
    pub refused: u64,
}

impl TopicLimit {
    /// What entries of the limit are known by: FNV-1a of the filter, so that it is the same after every restart and
    /// however the list of limits changes.
    #[must_use]
    pub fn key(&self) -> u64 {
        self.filter
            .as_str()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// Whether so many messages and bytes are more than may wait.
    pub(crate) fn is_exceeded_by(&self, messages: u64, bytes: u64) -> bool {
        self.max_messages.is_some_and(|max| messages > max) || self.max_bytes.is_some_and(|max| bytes > max)
    }
}

impl From<TopicLimit> for TopicTotals {
    fn from(limit: TopicLimit) -> Self {
        Self {
            limit,
            waiting: 0,
            waiting_bytes: 0,
            dropped_oldest: 0,
            dropped_new: 0,
            dropped_aged: 0,
            refused: 0,
        }
    }
}

/// All limits by topic filter, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TopicTable(pub(crate) Vec<TopicTotals>);

impl TopicTable {
    /// The limit of a topic: the first whose filter matches.
    pub(crate) fn of_topic(&self, topic: &str) -> Option<usize> {
        self.0
            .iter()
            .position(|totals| totals.limit.filter.matches(topic))
    }

    /// Totals of a key, unless its limit is gone.
    pub(crate) fn of_key(&mut self, key: u64) -> Option<&mut TopicTotals> {
        self.0.iter_mut().find(|totals| totals.limit.key() == key)
    }

    /// The limit of a key, unless it is gone.
    pub(crate) fn limit(&self, key: u64) -> Option<&TopicLimit> {
        let mut limits = self.0.iter().map(|totals| &totals.limit);
        limits.find(|limit| limit.key() == key)
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut row = RowWriter::new(VERSION, 64 * self.0.len());
        row.number(self.0.len() as u64);
        for totals in &self.0 {
            let TopicTotals {
                limit:
                    TopicLimit {
                        filter,
                        max_messages,
                        max_bytes,
                        max_age,
                        overflow,
                    },
                waiting,
                waiting_bytes,
                dropped_oldest,
                dropped_new,
                dropped_aged,
                refused,
            } = totals;
            row.text(filter.as_str());
            row.optional(*max_messages);
            row.optional(*max_bytes);
            row.optional(max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
            row.byte(overflow.code());
            for number in [
                waiting,
                waiting_bytes,
                dropped_oldest,
                dropped_new,
                dropped_aged,
                refused,
            ] {
                row.number(*number);
            }
        }
        row.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("the limits by topic filter", VERSION, bytes)?;
        let mut table = Vec::new();
        for _ in 0..row.count()? {
            let filter = TopicFilter::new(row.text()?).map_err(|error| row.damaged(error.to_string()))?;
            let limit = TopicLimit {
                filter,
                max_messages: row.optional()?,
                max_bytes: row.optional()?,
                max_age: row.optional()?.map(Duration::from_millis),
                overflow: OverflowPolicy::read(&mut row)?,
            };
            table.push(TopicTotals {
                limit,
                waiting: row.number()?,
                waiting_bytes: row.number()?,
                dropped_oldest: row.number()?,
                dropped_new: row.number()?,
                dropped_aged: row.number()?,
                refused: row.number()?,
            });
        }
        Ok(Self(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(filter: &str) -> TopicLimit {
        TopicLimit {
            filter: TopicFilter::new(filter).unwrap(),
            max_messages: Some(3),
            max_bytes: None,
            max_age: Some(Duration::from_secs(9)),
            overflow: OverflowPolicy::Reject,
        }
    }

    #[test]
    fn the_table_survives_and_the_first_filter_that_matches_counts() {
        let table = TopicTable(vec![
            TopicTotals {
                waiting: 1,
                waiting_bytes: 2,
                dropped_oldest: 3,
                dropped_new: 4,
                dropped_aged: 5,
                refused: 6,
                ..limit("a/+").into()
            },
            limit("a/#").into(),
        ]);
        assert_eq!(TopicTable::decode(&table.encode()).unwrap(), table);
        assert_eq!(table.of_topic("a/b"), Some(0));
        assert_eq!(table.of_topic("a/b/c"), Some(1));
        assert_eq!(table.of_topic("b"), None);
        // Entries on disk hold it: it may never become another.
        assert_eq!(limit("a/#").key(), 0xe621_0219_0469_3a6e);
    }
}
