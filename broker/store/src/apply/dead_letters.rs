//! Records that could not be processed: set aside, read again, removed.

use std::{ops::ControlFlow, sync::Arc};

use foreshore_record::{DropReason, Record};

use crate::{
    batch::Applied,
    entry::{DeadLetter, EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Table},
    record::{self, BodyOf, EntryFields, EntryRow},
    transaction::Transaction,
};

impl Transaction<'_> {
    /// Makes a dead letter of an entry and counts it; tells whether there was one.
    pub(super) fn bury_entry(
        &mut self,
        place: usize,
        id: EntryId,
        stage: &str,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let receiver = self.receiver_at(place);
        let Some(row) = self.get(Table::Queue, &keys::entry(receiver, id))? else {
            return Ok(false);
        };
        let found = self.record_of(id, &row);
        self.take_entry(place, id)?;
        let (entry, record) = match found {
            Ok(found) => found,
            Err(StoreError::Damaged { what, cause }) => {
                tracing::error!(receiver, id, what, cause, "a dead letter's record is damaged");
                self.path(place).row.counts.drop_entries(&DropReason::CORRUPT, 1);
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let letter = DeadLetter {
            id,
            store_epoch: self.openings.epoch_of(id),
            stage: stage.to_owned(),
            reason: reason.to_owned(),
            attempts: self.path(place).row.attempts.of(id).saturating_add(1),
            at: self.now(),
            flags: entry.flags,
            record,
        };
        let row = record::encode_dead_letter(&letter);
        let path = &mut self.path(place).row;
        path.counts.dead_lettered += 1;
        path.dead_letter_bytes += row.len() as u64;
        path.dead_letter_head = path.dead_letter_head.min(id);
        self.put(Table::Dead, keys::entry(receiver, id), row);
        self.evict_dead_letters(place, id)?;
        Ok(true)
    }

    fn record_of(&self, id: EntryId, row: &[u8]) -> Result<(EntryRow, Arc<Record>), StoreError> {
        let entry = EntryRow::decode(row)?;
        let record = match &entry.body {
            BodyOf::Inline(record) => Arc::clone(record),
            BodyOf::Shared { .. } => {
                let body = self.get(Table::Body, &keys::number(id))?;
                let body = body.ok_or_else(|| StoreError::Damaged {
                    what: "an entry",
                    cause: "its record is missing".to_owned(),
                })?;
                Arc::new(record::decode_body(&body)?)
            }
        };
        Ok((entry, record))
    }

    /// Removes the oldest dead letters of a path that keeps too many, but never the one that has just come.
    fn evict_dead_letters(&mut self, place: usize, newest: EntryId) -> Result<(), StoreError> {
        let receiver = self.receiver_at(place);
        let max = self.path(place).row.limits.dead_letter_bytes();
        while self.path(place).row.dead_letter_bytes > max {
            let from = keys::entry(receiver, self.path(place).row.dead_letter_head);
            let mut oldest = None;
            self.scan(
                Table::Dead,
                &from,
                &keys::after_entries(receiver),
                &mut |key, row| {
                    oldest = keys::split_entry(key).map(|(_, id)| (id, row.len() as u64));
                    Ok(ControlFlow::Break(()))
                },
            )?;
            let Some((id, size)) = oldest.filter(|(id, _)| *id != newest) else {
                break;
            };
            self.remove(Table::Dead, keys::entry(receiver, id));
            let path = &mut self.path(place).row;
            path.dead_letter_bytes = path.dead_letter_bytes.saturating_sub(size);
            path.dead_letters_evicted += 1;
            path.dead_letter_head = id + 1;
        }
        Ok(())
    }

    pub(super) fn replay(
        &mut self,
        first_id: EntryId,
        from: ReceiverId,
        ids: &[EntryId],
        to: ReceiverId,
    ) -> Result<Applied, StoreError> {
        let (Some(source), Some(target)) = (self.find_path(from)?, self.find_path(to)?) else {
            return Ok(Applied::UnknownReceiver);
        };
        let now = self.now();
        let mut count = 0;
        for (id, dead) in (first_id..).zip(ids) {
            let Some(row) = self.get(Table::Dead, &keys::entry(from, *dead))? else {
                continue;
            };
            let letter = match record::decode_dead_letter(*dead, &row) {
                Ok(letter) => letter,
                Err(error) => {
                    tracing::error!(receiver = from, id = dead, %error, "a dead letter can't be replayed");
                    continue;
                }
            };
            self.remove_dead_letter(source, *dead, row.len());
            let size = u32::try_from(record::weight(&letter.record)).unwrap_or(u32::MAX);
            let fields = EntryFields {
                flags: &letter.flags,
                size,
                ingested_at: now,
                expires_at: None,
                // Limits do not hold it up.
                topic: None,
            };
            let row = fields.with_record(&letter.record);
            let path = &mut self.path(target).row;
            if path.counts.waiting() == 0 {
                path.head = id;
                path.oldest = now;
            }
            path.counts.received += 1;
            path.waiting_bytes += u64::from(size);
            self.put(Table::Queue, keys::entry(to, id), row);
            count += 1;
        }
        Ok(Applied::Affected { count, more: false })
    }

    pub(super) fn delete_dead_letters(
        &mut self,
        receiver: ReceiverId,
        ids: &[EntryId],
    ) -> Result<Applied, StoreError> {
        let Some(place) = self.find_path(receiver)? else {
            return Ok(Applied::UnknownReceiver);
        };
        let mut count = 0;
        for id in ids {
            if let Some(row) = self.get(Table::Dead, &keys::entry(receiver, *id))? {
                self.remove_dead_letter(place, *id, row.len());
                count += 1;
            }
        }
        Ok(Applied::Affected { count, more: false })
    }

    fn remove_dead_letter(&mut self, place: usize, id: EntryId, size: usize) {
        let receiver = self.receiver_at(place);
        self.remove(Table::Dead, keys::entry(receiver, id));
        let path = &mut self.path(place).row;
        path.dead_letter_bytes = path.dead_letter_bytes.saturating_sub(size as u64);
    }
}
