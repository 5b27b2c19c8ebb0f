//! Limits by topic filter: making room, dropping what is too old, changing them.

use std::ops::ControlFlow;

use foreshore_record::DropReason;

use crate::{
    batch::Applied,
    entry::{EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Table},
    limits::OverflowPolicy,
    record::EntryHead,
    rows::{PathRow, TopicShare},
    topics::{MAX_TOPIC_LIMITS, TopicLimit, TopicTotals},
    transaction::Transaction,
};

/// Entries that are looked at for the oldest of a share: others may wait between. Where that is not enough, the message
/// is queued beyond the limit, and the next one goes on from there.
const LOOK_MAX: usize = 4_096;

impl Transaction<'_> {
    /// The key of a topic's limit in a queue, if there is one.
    pub(super) fn topic_key(&mut self, place: usize, limit: Option<usize>) -> Option<u64> {
        let exempt = self.path(place).row.limits.own_limits_only;
        let limit = limit.filter(|_| !exempt)?;
        self.topics.0.get(limit).map(|totals| totals.limit.key())
    }

    /// Whether a queue is full of messages of a limit that refuses publishers; over-aged ones make room before.
    pub(super) fn refused_by_topic(
        &mut self,
        place: usize,
        limit: Option<usize>,
        size: u32,
    ) -> Result<bool, StoreError> {
        let Some(key) = self.topic_key(place, limit) else {
            return Ok(false);
        };
        self.drop_aged_of(place, key, super::path::SWEEP_WITH_PUBLISH)?;
        let full = self.is_full_of(place, key, size);
        let policy = self.topics.limit(key).map(|limit| limit.overflow);
        let refused = full && policy == Some(OverflowPolicy::Reject);
        if refused && let Some(totals) = self.topics.of_key(key) {
            totals.refused += 1;
            self.topics_changed = true;
        }
        Ok(refused)
    }

    /// Makes room for a message by the policy of its limit; tells why it is not queued if it is not.
    pub(super) fn make_room_by_topic(
        &mut self,
        place: usize,
        key: u64,
        size: u32,
    ) -> Result<Option<DropReason>, StoreError> {
        let Some(limit) = self.topics.limit(key) else {
            return Ok(None);
        };
        let overflow = limit.overflow;
        if limit.is_exceeded_by(1, size.into()) {
            self.count_topic(key, |totals| totals.dropped_new += 1);
            return Ok(Some(DropReason::TOO_LARGE));
        }
        if overflow != OverflowPolicy::DropOldest {
            let full = self.is_full_of(place, key, size);
            if full {
                self.count_topic(key, |totals| totals.dropped_new += 1);
            }
            return Ok(full.then_some(DropReason::TOPIC_OVERFLOW_NEW));
        }
        while self.is_full_of(place, key, size) {
            let Some((id, _)) = self.first_of(place, key)? else {
                break;
            };
            self.drop_entry(place, id, &DropReason::TOPIC_OVERFLOW_OLDEST)?;
            self.count_topic(key, |totals| totals.dropped_oldest += 1);
        }
        Ok(None)
    }

    /// Drops entries of a limit that waited longer than it allows, at most so many.
    pub(super) fn drop_aged_of(&mut self, place: usize, key: u64, max: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let max_age = self.topics.limit(key).and_then(|limit| limit.max_age);
        let mut count = 0;
        while let Some(max_age) = max_age.filter(|_| count < max) {
            let oldest = self.path(place).row.share(key).map(|share| share.oldest);
            if oldest.is_none_or(|oldest| now.since(oldest) <= max_age) {
                break;
            }
            // What the share tells may have left: look before anything is dropped.
            let Some((id, head)) = self.first_of(place, key)? else {
                break;
            };
            if now.since(head.ingested_at) <= max_age {
                break;
            }
            self.drop_entry(place, id, &DropReason::TOPIC_AGE_LIMIT)?;
            self.count_topic(key, |totals| totals.dropped_aged += 1);
            count += 1;
        }
        Ok(count)
    }

    /// Drops what is too old in all shares of a queue.
    pub(super) fn drop_aged_of_all(&mut self, place: usize, max: usize) -> Result<usize, StoreError> {
        let keys: Vec<u64> = self
            .path(place)
            .row
            .topics
            .iter()
            .map(|share| share.key)
            .collect();
        let mut count = 0;
        for key in keys {
            count += self.drop_aged_of(place, key, max.saturating_sub(count))?;
        }
        Ok(count)
    }

    /// Whether a share of a path holds something that is too old.
    pub(super) fn is_overdue(&self, path: &PathRow) -> bool {
        let now = self.now();
        path.topics.iter().any(|share| {
            let max_age = self.topics.limit(share.key).and_then(|limit| limit.max_age);
            max_age.is_some_and(|max_age| now.since(share.oldest) > max_age)
        })
    }

    /// An entry of a limit has been queued.
    pub(super) fn add_to_share(&mut self, place: usize, key: u64, id: EntryId, size: u32) {
        let now = self.now();
        let topics = &mut self.path(place).row.topics;
        let index = topics.iter().position(|share| share.key == key);
        let index = index.unwrap_or_else(|| {
            topics.push(TopicShare {
                key,
                head: id,
                oldest: now,
                entries: 0,
                bytes: 0,
            });
            topics.len() - 1
        });
        topics[index].entries += 1;
        topics[index].bytes += u64::from(size);
        self.count_topic(key, |totals| {
            totals.waiting += 1;
            totals.waiting_bytes += u64::from(size);
        });
    }

    /// Entries of a limit, with so many bytes, have left.
    pub(crate) fn take_from_share(&mut self, place: usize, key: u64, entries: u64, bytes: u64) {
        let topics = &mut self.path(place).row.topics;
        if let Some(share) = topics.iter_mut().find(|share| share.key == key) {
            share.entries = share.entries.saturating_sub(entries);
            share.bytes = share.bytes.saturating_sub(bytes);
        }
        topics.retain(|share| share.entries > 0);
        self.count_topic(key, |totals| {
            totals.waiting = totals.waiting.saturating_sub(entries);
            totals.waiting_bytes = totals.waiting_bytes.saturating_sub(bytes);
        });
    }

    /// All shares of a queue have left with it.
    pub(crate) fn take_shares(&mut self, place: usize) {
        for share in std::mem::take(&mut self.path(place).row.topics) {
            self.take_from_share(place, share.key, share.entries, share.bytes);
        }
    }

    /// Puts limits in force, for what is queued from now on; totals of those that stay go on.
    pub(super) fn set_topic_limits(&mut self, limits: &[TopicLimit]) -> Result<Applied, StoreError> {
        let mut table: Vec<TopicTotals> = Vec::new();
        for limit in limits.iter().take(MAX_TOPIC_LIMITS) {
            let key = limit.key();
            if table.iter().any(|known| known.limit.key() == key) {
                continue;
            }
            let mut totals = TopicTotals::from(limit.clone());
            match self.topics.of_key(key) {
                Some(known) => {
                    totals = TopicTotals {
                        limit: limit.clone(),
                        ..known.clone()
                    };
                }
                // It may have been here before: what it left in the queues counts again.
                None => (totals.waiting, totals.waiting_bytes) = self.shares_of(key)?,
            }
            table.push(totals);
        }
        self.topics.0 = table;
        self.topics_changed = true;
        Ok(Applied::Done)
    }

    /// Entries and bytes of a key in all queues.
    fn shares_of(&mut self, key: u64) -> Result<(u64, u64), StoreError> {
        let mut sum = (0, 0);
        let mut add = |path: &PathRow| {
            if let Some(share) = path.share(key) {
                sum.0 += share.entries;
                sum.1 += share.bytes;
            }
        };
        for path in self.changed_paths() {
            add(path);
        }
        let view = self.view();
        view.scan(Table::Path, &[], None, &mut |row_key, row| {
            let receiver: ReceiverId = keys::split_number(row_key).unwrap_or_default();
            if !self.is_changed(receiver) {
                add(&PathRow::decode(row)?);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(sum)
    }

    fn count_topic(&mut self, key: u64, count: impl FnOnce(&mut TopicTotals)) {
        if let Some(totals) = self.topics.of_key(key) {
            count(totals);
            self.topics_changed = true;
        }
    }

    fn is_full_of(&mut self, place: usize, key: u64, size: u32) -> bool {
        let share = self.path(place).row.share(key);
        let (entries, bytes) = share.map_or((0, 0), |share| (share.entries, share.bytes));
        let limit = self.topics.limit(key);
        limit.is_some_and(|limit| limit.is_exceeded_by(entries + 1, bytes + u64::from(size)))
    }

    /// The oldest entry of a share; `None` if it is not among the next few of the queue.
    fn first_of(&mut self, place: usize, key: u64) -> Result<Option<(EntryId, EntryHead)>, StoreError> {
        self.settle_head(place)?;
        let receiver = self.receiver_at(place);
        let row = &self.path(place).row;
        let Some(share) = row.share(key) else {
            return Ok(None);
        };
        let from = keys::entry(receiver, share.head.max(row.head));
        let (mut found, mut last, mut looked_at) = (None, None, 0);
        self.scan(
            Table::Queue,
            &from,
            &keys::after_entries(receiver),
            &mut |key_of_entry, row| {
                let id = keys::split_entry(key_of_entry).map_or(0, |(_, id)| id);
                if let Ok(head) = EntryHead::decode(row) {
                    last = Some((id, head.ingested_at));
                    if head.topic == Some(key) {
                        found = Some((id, head));
                        return Ok(ControlFlow::Break(()));
                    }
                }
                looked_at += 1;
                Ok(if looked_at < LOOK_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            },
        )?;
        let at_end = found.is_none() && looked_at < LOOK_MAX;
        if at_end {
            // Damage took what was counted.
            let lost = self
                .path(place)
                .row
                .share(key)
                .map(|share| (share.entries, share.bytes));
            if let Some((entries, bytes)) = lost {
                self.take_from_share(place, key, entries, bytes);
            }
        } else if let (Some((id, oldest)), Some(share)) = (last, self.path(place).row.share_mut(key)) {
            share.head = id;
            share.oldest = oldest;
        }
        Ok(found)
    }
}
