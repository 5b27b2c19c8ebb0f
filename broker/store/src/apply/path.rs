//! Opening a path, handing out and settling its entries, and dropping them at its head.

use std::collections::BTreeSet;

use foreshore_record::{DropReason, Outcome};

use crate::{
    attempts::{HandedOut, Interval},
    batch::{Applied, Opening},
    entry::{EntryId, PathEpoch, ReceiverId, Settlement},
    error::StoreError,
    keys::Table,
    limits::Limits,
    sent,
    transaction::Transaction,
};

/// Most entries that one sweep drops; bounds the work of one operation.
pub(super) const SWEEP_MAX: usize = 10_000;

/// Most over-aged entries that a publish drops on its way.
pub(super) const SWEEP_WITH_PUBLISH: usize = 100;

/// Most entries that an opening makes dead letters; the rest is tried once more.
const MAX_EXHAUSTED: usize = 10_000;

/// Entries that are looked at together.
const CHUNK: usize = 256;

impl Transaction<'_> {
    /// Place of a path, if this is its present epoch.
    fn fenced_path(
        &mut self,
        receiver: ReceiverId,
        epoch: PathEpoch,
    ) -> Result<Result<usize, Applied>, StoreError> {
        let Some(place) = self.find_path(receiver)? else {
            return Ok(Err(Applied::UnknownReceiver));
        };
        let present = self.path(place).row.epoch;
        Ok(if present == epoch {
            Ok(place)
        } else {
            Err(Applied::Fenced { epoch: present })
        })
    }

    pub(super) fn settle(
        &mut self,
        receiver: ReceiverId,
        epoch: PathEpoch,
        settlements: &[Settlement],
    ) -> Result<Applied, StoreError> {
        let place = match self.fenced_path(receiver, epoch)? {
            Ok(place) => place,
            Err(answer) => return Ok(answer),
        };
        let (mut settled, mut unknown) = (0, 0);
        for Settlement { id, emitted, outcome } in settlements {
            let left = match outcome {
                Outcome::DeadLettered { stage, reason } => self.bury_entry(place, *id, stage, reason)?,
                Outcome::Delivered | Outcome::Dropped { .. } => self.take_entry(place, *id)?.is_some(),
            };
            if !left {
                unknown += 1;
                continue;
            }
            settled += 1;
            let counts = &mut self.path(place).row.counts;
            match outcome {
                Outcome::Delivered => {
                    counts.delivered += 1;
                    counts.emitted += u64::from(*emitted);
                }
                // Counted with the dead letter.
                Outcome::DeadLettered { .. } => {}
                Outcome::Dropped { reason } => counts.drop_entries(reason, 1),
            }
        }
        Ok(Applied::Settled { settled, unknown })
    }

    pub(super) fn hand_out(
        &mut self,
        receiver: ReceiverId,
        epoch: PathEpoch,
        after: EntryId,
        up_to: EntryId,
        redelivered: u64,
    ) -> Result<Applied, StoreError> {
        let place = match self.fenced_path(receiver, epoch)? {
            Ok(place) => place,
            Err(answer) => return Ok(answer),
        };
        let up_to = up_to.min(self.position.next_id.saturating_sub(1));
        let row = &mut self.path(place).row;
        row.handed_out.add(Interval { after, up_to });
        row.counts.redelivered += redelivered;
        Ok(Applied::Done)
    }

    pub(super) fn open_path(&mut self, receiver: ReceiverId) -> Result<Applied, StoreError> {
        let Some(place) = self.find_path(receiver)? else {
            return Ok(Applied::UnknownReceiver);
        };
        self.settle_head(place)?;
        let row = &mut self.path(place).row;
        row.epoch += 1;
        let handed_out = std::mem::take::<HandedOut>(&mut row.handed_out);
        row.attempts.push(handed_out, row.head);
        let dead_lettered = self.bury_exhausted(place)?;
        self.settle_head(place)?;
        let tail = self.position.next_id;
        let row = &self.path(place).row;
        let (epoch, head) = (row.epoch, row.head.min(tail));
        Ok(Applied::Opened(Opening {
            epoch,
            head,
            tail,
            dead_lettered,
        }))
    }

    /// Makes dead letters of entries whose attempts are used up.
    fn bury_exhausted(&mut self, place: usize) -> Result<u64, StoreError> {
        let path = self.path(place);
        let Some(max) = path.row.limits.max_attempts else {
            return Ok(0);
        };
        let max = max.clamp(1, Limits::MAX_ATTEMPTS);
        let exhausted = path.row.attempts.at_least(max.into());
        let mut buried = 0;
        for Interval { mut after, up_to } in exhausted {
            while buried < MAX_EXHAUSTED {
                let ids = self.entries_between(place, after, up_to, CHUNK)?;
                let Some(last) = ids.last() else { break };
                after = *last;
                for id in ids {
                    self.bury_entry(place, id, "open", "handed out too often without being settled")?;
                    buried += 1;
                }
            }
        }
        Ok(buried as u64)
    }

    fn entries_between(
        &self,
        place: usize,
        after: EntryId,
        up_to: EntryId,
        max: usize,
    ) -> Result<Vec<EntryId>, StoreError> {
        let receiver = self.receiver_at(place);
        let from = crate::keys::entry(receiver, after.saturating_add(1));
        let to = crate::keys::entry(receiver, up_to.saturating_add(1));
        let keys = self.keys(crate::keys::Table::Queue, &from, &to, max)?;
        Ok(keys
            .iter()
            .filter_map(|key| crate::keys::split_entry(key))
            .map(|(_, id)| id)
            .collect())
    }

    pub(super) fn sweep(&mut self, receiver: ReceiverId) -> Result<Applied, StoreError> {
        let Some(place) = self.find_path(receiver)? else {
            return Ok(Applied::UnknownReceiver);
        };
        let mut count = self.drop_aged(place, SWEEP_MAX)?;
        count += self.drop_aged_of_all(place, SWEEP_MAX)?;
        let now = self.now();
        while count < SWEEP_MAX {
            self.settle_head(place)?;
            let first = self.first_entries(place, CHUNK)?;
            let expired = first
                .iter()
                .take_while(|(_, head)| head.is_some_and(|head| head.is_expired(now)));
            let mut expired: Vec<EntryId> = expired.map(|(id, _)| *id).collect();
            if !expired.is_empty() {
                let sent = self.sent_entries(receiver)?;
                expired.retain(|id| !sent.contains(id));
            }
            for id in &expired {
                self.drop_entry(place, *id, &DropReason::EXPIRED)?;
            }
            count += expired.len();
            if expired.len() < CHUNK {
                return Ok(Applied::Affected {
                    count: count as u64,
                    more: false,
                });
            }
        }
        Ok(Applied::Affected {
            count: count as u64,
            more: true,
        })
    }

    /// Entries of a session's queue that do not expire; see [`sent`].
    pub(super) fn sent_entries(&self, receiver: ReceiverId) -> Result<BTreeSet<EntryId>, StoreError> {
        sent::entries(receiver, |from, to, visit| {
            self.scan(Table::Inflight, from, to, visit)
        })
    }

    /// Drops entries that waited longer than their queue allows, at most so many and a chunk.
    pub(crate) fn drop_aged(&mut self, place: usize, max: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let mut count = 0;
        while count < max {
            let row = &self.path(place).row;
            let Some(max_age) = row.limits.max_age else { break };
            if row.counts.waiting() == 0 || now.since(row.oldest) <= max_age {
                break;
            }
            // The row's oldest entry may have left in this group: look again before anything is dropped.
            self.settle_head(place)?;
            let first = self.first_entries(place, CHUNK.min(max))?;
            let aged = first
                .iter()
                .take_while(|(_, head)| head.is_none_or(|head| now.since(head.ingested_at) > max_age));
            let aged: Vec<EntryId> = aged.map(|(id, _)| *id).collect();
            for id in &aged {
                self.drop_entry(place, *id, &DropReason::AGE_LIMIT)?;
            }
            count += aged.len();
            self.settle_head(place)?;
            if aged.is_empty() {
                break;
            }
        }
        Ok(count)
    }

    /// Drops the entry at the head; tells whether there was one.
    pub(super) fn drop_first(&mut self, place: usize, reason: &DropReason) -> Result<bool, StoreError> {
        self.settle_head(place)?;
        let head = self.path(place).row.head;
        if self.drop_entry(place, head, reason)? {
            return Ok(true);
        }
        let Some((id, _)) = self.first_entries(place, 1)?.into_iter().next() else {
            return Ok(false);
        };
        self.drop_entry(place, id, reason)
    }

    pub(super) fn drop_entry(
        &mut self,
        place: usize,
        id: EntryId,
        reason: &DropReason,
    ) -> Result<bool, StoreError> {
        let left = self.take_entry(place, id)?.is_some();
        if left {
            self.path(place).row.counts.drop_entries(reason, 1);
        }
        Ok(left)
    }
}
