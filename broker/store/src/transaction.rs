//! Changes of one group before they are written: rows in memory over a view of the engine.
//!
//! A group touches a row many times, a path's totals with every entry, but writes it once. What comes and goes within
//! the group, such as an entry that is delivered and settled before its commit, is counted and never written.

use std::{
    collections::{BTreeMap, HashMap},
    ops::{Bound, ControlFlow},
};

use crate::{
    clock::BrokerTime,
    engine::{Change, View, Visit},
    entry::{EntryId, ReceiverId, StoreEpoch},
    error::StoreError,
    keys::{self, Bytes, Table},
    ledger::SourceTotals,
    record::EntryHead,
    rows::{self, PathRow, PositionRow},
    topics::TopicTable,
};

/// Epochs of the openings of the store, by the first id that each gave out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Openings(Vec<(EntryId, StoreEpoch)>);

impl Openings {
    /// Openings in order of their first id.
    pub(crate) fn new(openings: Vec<(EntryId, StoreEpoch)>) -> Self {
        Self(openings)
    }

    /// Epoch of the opening that gave out an id.
    pub(crate) fn epoch_of(&self, id: EntryId) -> StoreEpoch {
        let place = self.0.partition_point(|(first_id, _)| *first_id <= id);
        place
            .checked_sub(1)
            .and_then(|place| self.0.get(place))
            .map_or(0, |(_, epoch)| *epoch)
    }

    /// Epoch of this opening.
    pub(crate) fn current(&self) -> StoreEpoch {
        self.0.last().map_or(0, |(_, epoch)| *epoch)
    }
}

/// A path as the group has left it so far.
pub(crate) struct Path {
    pub(crate) receiver: ReceiverId,
    pub(crate) row: PathRow,
    /// Whether the receiver ended in this group.
    pub(crate) ended: bool,
    /// The last entry that the group added, to pass over a receiver that is listed twice.
    pub(crate) added: EntryId,
    /// The entry at the head left, so that the head is to be found again.
    head_left: bool,
}

/// One group.
pub(crate) struct Transaction<'v> {
    view: &'v dyn View,
    tables: [BTreeMap<Bytes, Option<Bytes>>; Table::ALL.len()],
    paths: Vec<Path>,
    places: HashMap<ReceiverId, Option<usize>>,
    sources: HashMap<String, Option<SourceTotals>>,
    pub(crate) openings: &'v Openings,
    pub(crate) position: PositionRow,
    /// Whether the disk is below its watermark.
    pub(crate) low_space: bool,
    /// Limits by topic filter, as the group has left them.
    pub(crate) topics: TopicTable,
    pub(crate) topics_changed: bool,
    /// Messages that the group dropped because a queue is full.
    pub(crate) overflowed: u64,
}

impl<'v> Transaction<'v> {
    pub(crate) fn new(
        view: &'v dyn View,
        openings: &'v Openings,
        position: PositionRow,
        low_space: bool,
    ) -> Self {
        Self {
            view,
            tables: Default::default(),
            paths: Vec::new(),
            places: HashMap::new(),
            sources: HashMap::new(),
            openings,
            position,
            low_space,
            topics: TopicTable::default(),
            topics_changed: false,
            overflowed: 0,
        }
    }

    pub(crate) fn now(&self) -> BrokerTime {
        self.position.now
    }

    // === rows ===

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.tables[table as usize].get(key) {
            Some(changed) => Ok(changed.clone()),
            None => self.view.get(table, key),
        }
    }

    pub(crate) fn put(&mut self, table: Table, key: impl Into<Bytes>, value: Bytes) {
        self.tables[table as usize].insert(key.into(), Some(value));
    }

    pub(crate) fn remove(&mut self, table: Table, key: impl Into<Bytes>) {
        let (rows, key) = (&mut self.tables[table as usize], key.into());
        let new = table.written_once() && matches!(rows.get(&key), Some(Some(_)));
        if new {
            // It was never written: there is nothing to remove, and a weak removal would stay for ever.
            rows.remove(&key);
        } else {
            rows.insert(key, None);
        }
    }

    /// Visits rows as the group has left them.
    pub(crate) fn scan(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if to <= from {
            return Ok(());
        }
        let bounds = (Bound::Included(from), Bound::Excluded(to));
        let mut changed = self.tables[table as usize].range::<[u8], _>(bounds).peekable();
        let mut going = ControlFlow::Continue(());
        self.view.scan(table, from, Some(to), &mut |key, value| {
            while let Some((before, row)) = changed.next_if(|(before, _)| before.as_ref() < key) {
                if let Some(row) = row {
                    going = visit(before, row)?;
                    if going.is_break() {
                        return Ok(going);
                    }
                }
            }
            going = match changed.next_if(|(same, _)| same.as_ref() == key) {
                Some((_, Some(row))) => visit(key, row)?,
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value)?,
            };
            Ok(going)
        })?;
        for (key, row) in changed {
            if going.is_break() {
                break;
            }
            if let Some(row) = row {
                going = visit(key, row)?;
            }
        }
        Ok(())
    }

    // === paths ===

    /// Place of a path for [`Transaction::path`]; `None` if there is no such receiver (any more).
    pub(crate) fn find_path(&mut self, receiver: ReceiverId) -> Result<Option<usize>, StoreError> {
        if let Some(place) = self.places.get(&receiver) {
            return Ok(place.filter(|place| !self.paths[*place].ended));
        }
        let row = self.view.get(Table::Path, &keys::number(receiver))?;
        let row = row.map(|row| PathRow::decode(&row)).transpose()?;
        let place = row.map(|row| self.add_path(receiver, row));
        self.places.insert(receiver, place);
        Ok(place)
    }

    /// Adds the path of a new receiver.
    pub(crate) fn add_path(&mut self, receiver: ReceiverId, row: PathRow) -> usize {
        let place = self.paths.len();
        self.paths.push(Path {
            receiver,
            row,
            ended: false,
            added: 0,
            head_left: false,
        });
        self.places.insert(receiver, Some(place));
        place
    }

    pub(crate) fn path(&mut self, place: usize) -> &mut Path {
        &mut self.paths[place]
    }

    /// Paths that the group has touched and not ended.
    pub(crate) fn changed_paths(&self) -> impl Iterator<Item = &PathRow> {
        let present = self.paths.iter().filter(|path| !path.ended);
        present.map(|path| &path.row)
    }

    /// Whether the group has touched a path.
    pub(crate) fn is_changed(&self, receiver: ReceiverId) -> bool {
        self.places.get(&receiver).is_some_and(Option::is_some)
    }

    /// What was there before the group.
    pub(crate) fn view(&self) -> &'_ dyn View {
        self.view
    }

    pub(crate) fn receiver_at(&self, place: usize) -> ReceiverId {
        self.paths[place].receiver
    }

    /// The source's last number; a default one if it is new.
    pub(crate) fn source(&mut self, source: &str) -> Result<&mut Option<SourceTotals>, StoreError> {
        if !self.sources.contains_key(source) {
            let row = self.view.get(Table::Source, source.as_bytes())?;
            let totals = row.map(|row| rows::decode_source(source, &row)).transpose()?;
            self.sources.insert(source.to_owned(), totals);
        }
        Ok(self.sources.entry(source.to_owned()).or_default())
    }

    // === entries ===

    /// Removes an entry from its queue, and its body with the last reference to it. Counting is the caller's.
    ///
    /// An entry that can't be decoded is removed too; its weight is not known and counts as nothing.
    pub(crate) fn take_entry(&mut self, place: usize, id: EntryId) -> Result<Option<EntryHead>, StoreError> {
        let key = keys::entry(self.paths[place].receiver, id);
        let Some(row) = self.get(Table::Queue, &key)? else {
            return Ok(None);
        };
        let head = EntryHead::decode(&row).unwrap_or_else(|error| {
            tracing::error!(receiver = self.paths[place].receiver, id, %error, "an entry is damaged");
            EntryHead {
                size: 0,
                ingested_at: BrokerTime(0),
                expires_at: None,
                references: None,
                topic: None,
            }
        });
        self.remove(Table::Queue, key);
        if let Some(references) = head.references {
            self.release_body(id, references)?;
        }
        let path = &mut self.paths[place];
        path.row.waiting_bytes = path.row.waiting_bytes.saturating_sub(head.size.into());
        path.head_left |= id == path.row.head;
        if let Some(key) = head.topic {
            self.take_from_share(place, key, 1, head.size.into());
        }
        Ok(Some(head))
    }

    /// Gives up one reference to a shared body.
    pub(crate) fn release_body(&mut self, id: EntryId, references: u32) -> Result<(), StoreError> {
        let key = keys::number(id);
        let left = self.get(Table::Left, &key)?;
        let remaining = left
            .as_ref()
            .map_or(Ok(references), |row| crate::record::decode_references(row))?;
        if remaining > 1 {
            self.put(Table::Left, key, crate::record::encode_references(remaining - 1));
            return Ok(());
        }
        let new = matches!(
            self.tables[Table::Body as usize].get(key.as_slice()),
            Some(Some(_))
        );
        self.remove(Table::Body, key);
        if new {
            self.tables[Table::Left as usize].remove(key.as_slice());
        } else if left.is_some() {
            self.remove(Table::Left, key);
        }
        Ok(())
    }

    /// First entries of a queue, beginning at its head: ids with what settling has to know.
    pub(crate) fn first_entries(
        &self,
        place: usize,
        max: usize,
    ) -> Result<Vec<(EntryId, Option<EntryHead>)>, StoreError> {
        let path = &self.paths[place];
        let (from, to) = (
            keys::entry(path.receiver, path.row.head),
            keys::after_entries(path.receiver),
        );
        let mut entries = Vec::new();
        self.scan(Table::Queue, &from, &to, &mut |key, row| {
            if let Some((_, id)) = keys::split_entry(key) {
                entries.push((id, EntryHead::decode(row).ok()));
            }
            Ok(if entries.len() < max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        Ok(entries)
    }

    /// Finds the head of a path again if its entry left.
    pub(crate) fn settle_head(&mut self, place: usize) -> Result<(), StoreError> {
        if !self.paths[place].head_left {
            return Ok(());
        }
        let first = if self.paths[place].row.counts.waiting() > 0 {
            self.first_entries(place, 1)?.into_iter().next()
        } else {
            None
        };
        let next_id = self.position.next_id;
        let path = &mut self.paths[place];
        path.head_left = false;
        match first {
            Some((id, head)) => {
                path.row.head = id;
                path.row.oldest = head.map_or(path.row.oldest, |head| head.ingested_at);
            }
            None => {
                path.row.head = next_id;
                path.row.waiting_bytes = 0;
                self.take_shares(place);
            }
        }
        Ok(())
    }

    // === the end ===

    /// All changes of the group.
    pub(crate) fn finish(mut self) -> Result<(PositionRow, Vec<Change>), StoreError> {
        for place in 0..self.paths.len() {
            let path = &self.paths[place];
            let key = keys::number(path.receiver);
            if path.ended {
                self.remove(Table::Path, key);
                continue;
            }
            self.settle_head(place)?;
            let row = self.paths[place].row.encode();
            self.put(Table::Path, key, row);
        }
        for totals in std::mem::take(&mut self.sources).into_values().flatten() {
            self.put(
                Table::Source,
                totals.source.as_bytes(),
                rows::encode_source(&totals),
            );
        }
        if self.topics_changed {
            self.put(Table::Meta, keys::TOPICS, self.topics.encode());
        }
        self.position.commits += 1;
        self.put(Table::Meta, keys::POSITION, self.position.encode());
        let mut changes = Vec::with_capacity(self.tables.iter().map(BTreeMap::len).sum());
        for (table, rows) in Table::ALL.into_iter().zip(self.tables) {
            changes.extend(rows.into_iter().map(|(key, value)| Change { table, key, value }));
        }
        Ok((self.position, changes))
    }
}
