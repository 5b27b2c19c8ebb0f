//! Background work, a bounded piece at a time: what ended receivers left behind, and entries that grew too old.

use std::ops::ControlFlow;

use crate::{
    batch::Applied,
    engine::View,
    entry::{EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Table},
    record::EntryHead,
    rows::{self, PathRow},
    transaction::Transaction,
};

/// Rows of ended receivers that are removed in one piece.
const REMOVE_MAX: usize = 2_000;

/// Paths that are looked at in one piece.
const PATHS_MAX: usize = 1_000;

/// Where background work goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Upkeep {
    /// The last path that was looked at.
    paths_after: ReceiverId,
    /// Nothing was committed for a while: the clock's floor is to be written.
    pub(crate) floor_due: bool,
}

impl Transaction<'_> {
    /// Does a piece of the work and tells whether it changed anything, and whether there is more at once.
    pub(crate) fn keep_up(
        &mut self,
        view: &dyn View,
        upkeep: &mut Upkeep,
    ) -> Result<(bool, bool), StoreError> {
        let graves = self.keys(Table::Meta, keys::GRAVE, &keys::after_prefix(keys::GRAVE), 1)?;
        let mut changed = std::mem::take(&mut upkeep.floor_due);
        if let Some(grave) = graves.first() {
            changed = true;
            self.clear_grave(grave)?;
        }
        let mut more = !graves.is_empty();
        for receiver in self.overdue_paths(view, upkeep)? {
            changed = true;
            more |= matches!(self.sweep(receiver)?, Applied::Affected { more: true, .. });
        }
        Ok((changed, more))
    }

    /// Removes some of what an ended receiver left: entries, then dead letters and packets in flight, then the mark.
    fn clear_grave(&mut self, grave: &[u8]) -> Result<(), StoreError> {
        let receiver = grave
            .strip_prefix(keys::GRAVE)
            .and_then(keys::split_number)
            .unwrap_or_default();
        let begin = self
            .get(Table::Meta, grave)?
            .map(|row| rows::decode_number(&row))
            .transpose();
        let begin: EntryId = begin?.unwrap_or_default();
        let mut budget = REMOVE_MAX;
        let end = keys::after_entries(receiver);
        let mut entries = Vec::new();
        self.scan(
            Table::Queue,
            &keys::entry(receiver, begin),
            &end,
            &mut |key, row| {
                if let Some((_, id)) = keys::split_entry(key) {
                    entries.push((id, EntryHead::decode(row).ok().and_then(|head| head.references)));
                }
                Ok(if entries.len() < budget {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                })
            },
        )?;
        for (id, references) in &entries {
            self.remove(Table::Queue, keys::entry(receiver, *id));
            if let Some(references) = references {
                self.release_body(*id, *references)?;
            }
        }
        budget -= entries.len();
        for (table, from, to) in [
            (Table::Dead, keys::entry(receiver, 0).to_vec(), end.to_vec()),
            (
                Table::Inflight,
                receiver.to_be_bytes().to_vec(),
                (receiver + 1).to_be_bytes().to_vec(),
            ),
        ] {
            let found = if budget == 0 {
                Vec::new()
            } else {
                self.keys(table, &from, &to, budget)?
            };
            budget -= found.len();
            for key in found {
                self.remove(table, key);
            }
        }
        if budget > 0 {
            self.remove(Table::Meta, grave);
        } else if let Some((last, _)) = entries.last() {
            self.put(Table::Meta, grave, rows::encode_number(last + 1));
        }
        Ok(())
    }

    /// Paths, of the next few, whose entry at the head is too old or has expired.
    fn overdue_paths(&self, view: &dyn View, upkeep: &mut Upkeep) -> Result<Vec<ReceiverId>, StoreError> {
        let now = self.now();
        let (mut overdue, mut looked_at, mut last) = (Vec::new(), 0, 0);
        let from = keys::number(upkeep.paths_after.saturating_add(1));
        view.scan(Table::Path, &from, None, &mut |key, row| {
            let receiver = keys::split_number(key).unwrap_or_default();
            let path = PathRow::decode(row)?;
            if path.counts.waiting() > 0 {
                let aged = path
                    .limits
                    .max_age
                    .is_some_and(|max_age| now.since(path.oldest) > max_age);
                if aged || self.is_overdue(&path) || self.head_expired(view, receiver, path.head)? {
                    overdue.push(receiver);
                }
            }
            looked_at += 1;
            last = receiver;
            Ok(if looked_at < PATHS_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        // At the end it begins again with the first.
        upkeep.paths_after = if looked_at < PATHS_MAX { 0 } else { last };
        Ok(overdue)
    }

    fn head_expired(&self, view: &dyn View, receiver: ReceiverId, head: EntryId) -> Result<bool, StoreError> {
        let Some(row) = view.get(Table::Queue, &keys::entry(receiver, head))? else {
            return Ok(false);
        };
        let expired = EntryHead::decode(&row).is_ok_and(|head| head.is_expired(self.now()));
        Ok(expired && !self.sent_entries(receiver)?.contains(&head))
    }
}
