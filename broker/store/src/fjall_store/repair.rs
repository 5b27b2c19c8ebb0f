//! Setting the ledger right after commits were lost.
//!
//! Totals are rows with absolute numbers, so the last one that survives tells what a path should hold. What it holds is
//! counted: the only time that queues are scanned. Entries that should be there and are not, or whose record is not, are
//! counted as dropped (`corrupt`). Entries that are there and should not be lost their settlement; they wait again, and
//! what they had been counted as is taken back.

mod names;
mod records;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use foreshore_record::DropReason;

use crate::{
    clock::BrokerTime,
    engine::{Change, Engine, View},
    entry::{EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Bytes, Table},
    ledger::Counts,
    record::EntryHead,
    rows::{self, PathRow, PositionRow, TopicShare},
    topics::TopicTable,
};

/// Changes that are written together.
const CHUNK: usize = 10_000;

/// What a repair found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Repaired {
    /// Entries that are missing.
    pub(crate) lost: u64,
    /// Entries that wait again.
    pub(crate) returned: u64,
}

/// What a queue holds.
#[derive(Clone, Debug, Default)]
struct Present {
    entries: u64,
    bytes: u64,
    first: Option<(EntryId, BrokerTime)>,
    last: EntryId,
    topics: Vec<TopicShare>,
}

impl Present {
    fn add(&mut self, id: EntryId, row: &[u8]) {
        let head = EntryHead::decode(row).ok();
        let ingested_at = head.map_or(BrokerTime(0), |head| head.ingested_at);
        self.entries += 1;
        self.bytes += head.map_or(0, |head| u64::from(head.size));
        self.first.get_or_insert((id, ingested_at));
        self.last = id;
        let Some((head, key)) = head.and_then(|head| Some((head, head.topic?))) else {
            return;
        };
        let share = TopicShare {
            key,
            head: id,
            oldest: ingested_at,
            entries: 1,
            bytes: head.size.into(),
        };
        match self.topics.iter_mut().find(|known| known.key == key) {
            Some(known) => known.add(&share),
            None => self.topics.push(share),
        }
    }
}

/// Commits that the store remembers.
pub(crate) fn commits(engine: &impl Engine) -> Result<u64, StoreError> {
    let row = engine.view().get(Table::Meta, keys::POSITION)?;
    Ok(row
        .map(|row| PositionRow::decode(&row))
        .transpose()?
        .unwrap_or_default()
        .commits)
}

/// Counts every queue and sets its totals right.
pub(crate) fn repair(engine: &impl Engine) -> Result<Repaired, StoreError> {
    let paths = paths(engine)?;
    let sharing = forget_settled(engine, &paths)?;
    records::set_right(engine, &sharing)?;
    let mut present = count(engine)?;
    let mut repaired = Repaired::default();
    let mut last_id = present
        .values()
        .map(|present| present.last)
        .max()
        .unwrap_or_default();
    let mut last_receiver = 0;
    let mut topics = topics(engine)?;
    let (receivers, mut changes) = names::set_right(engine, &paths)?;
    for receiver in receivers {
        last_receiver = last_receiver.max(receiver);
        let found = present.remove(&receiver).unwrap_or_default();
        let mut path = paths.get(&receiver).cloned().unwrap_or_default();
        last_id = last_id.max(path.head);
        set_right(&mut path, found, &mut repaired);
        for share in &path.topics {
            if let Some(totals) = topics.of_key(share.key) {
                totals.waiting += share.entries;
                totals.waiting_bytes += share.bytes;
            }
        }
        changes.push(change(Table::Path, keys::number(receiver), path.encode()));
    }
    if !topics.0.is_empty() {
        changes.push(change(Table::Meta, keys::TOPICS, topics.encode()));
    }
    // Entries of nobody: their receiver ended, or it was created in a commit that was lost.
    for (receiver, found) in present {
        last_receiver = last_receiver.max(receiver);
        last_id = last_id.max(found.last);
        changes.push(change(
            Table::Meta,
            keys::meta_number(keys::GRAVE, receiver),
            rows::encode_number(0),
        ));
    }
    let mut position = engine.view().get(Table::Meta, keys::POSITION)?.map_or_else(
        || {
            Ok(PositionRow {
                next_id: 1,
                next_receiver: 1,
                ..PositionRow::default()
            })
        },
        |row| PositionRow::decode(&row),
    )?;
    position.next_id = position.next_id.max(last_id + 1);
    position.next_receiver = position.next_receiver.max(last_receiver + 1);
    changes.push(change(Table::Meta, keys::POSITION, position.encode()));
    for chunk in changes.chunks(CHUNK) {
        engine.write(chunk.to_vec())?;
    }
    Ok(repaired)
}

fn change<K: Into<Bytes>>(table: Table, key: K, value: Bytes) -> Change {
    Change {
        table,
        key: key.into(),
        value: Some(value),
    }
}

fn removal(table: Table, key: &[u8]) -> Change {
    Change {
        table,
        key: key.into(),
        value: None,
    }
}

/// Limits by topic filter, as if nothing waited.
fn topics(engine: &impl Engine) -> Result<TopicTable, StoreError> {
    let row = engine.view().get(Table::Meta, keys::TOPICS)?;
    // What can't be read is told of when the store is opened.
    let mut topics = row
        .and_then(|row| TopicTable::decode(&row).ok())
        .unwrap_or_default();
    for totals in &mut topics.0 {
        (totals.waiting, totals.waiting_bytes) = (0, 0);
    }
    Ok(topics)
}

fn paths(engine: &impl Engine) -> Result<BTreeMap<ReceiverId, PathRow>, StoreError> {
    let mut paths = BTreeMap::new();
    engine.view().scan(Table::Path, &[], None, &mut |key, row| {
        match (keys::split_number(key), PathRow::decode(row)) {
            (Some(receiver), Ok(path)) => {
                paths.insert(receiver, path);
            }
            (receiver, decoded) => {
                tracing::error!(?receiver, error = ?decoded.err(), "totals of a path are lost");
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(paths)
}

/// Removes what lies below the heads of queues: it was settled. Tells who shares records with others.
fn forget_settled(
    engine: &impl Engine,
    paths: &BTreeMap<ReceiverId, PathRow>,
) -> Result<BTreeSet<ReceiverId>, StoreError> {
    let mut sharing = BTreeSet::new();
    let mut from = Some(keys::entry(0, 0));
    while let Some(begin) = from.take() {
        let mut settled = Vec::new();
        engine.view().scan(Table::Queue, &begin, None, &mut |key, row| {
            let Some((receiver, id)) = keys::split_entry(key) else {
                return Ok(ControlFlow::Continue(()));
            };
            if paths.get(&receiver).is_some_and(|path| id < path.head) {
                settled.push(removal(Table::Queue, key));
            } else if EntryHead::decode(row).is_ok_and(|head| head.references.is_some()) {
                sharing.insert(receiver);
            }
            if settled.len() < CHUNK {
                return Ok(ControlFlow::Continue(()));
            }
            from = Some(keys::entry(receiver, id.saturating_add(1)));
            Ok(ControlFlow::Break(()))
        })?;
        if !settled.is_empty() {
            engine.write(settled)?;
        }
    }
    Ok(sharing)
}

/// Counts what the queues hold.
fn count(engine: &impl Engine) -> Result<BTreeMap<ReceiverId, Present>, StoreError> {
    let mut present: BTreeMap<ReceiverId, Present> = BTreeMap::new();
    engine.view().scan(Table::Queue, &[], None, &mut |key, row| {
        if let Some((receiver, id)) = keys::split_entry(key) {
            present.entry(receiver).or_default().add(id, row);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(present)
}

/// Makes a path's totals agree with what is there.
fn set_right(path: &mut PathRow, found: Present, repaired: &mut Repaired) {
    let waiting = path.counts.waiting();
    if found.entries < waiting {
        let lost = waiting - found.entries;
        path.counts.drop_entries(&DropReason::CORRUPT, lost);
        repaired.lost += lost;
    } else {
        let returned = found.entries - waiting;
        take_back(&mut path.counts, returned);
        repaired.returned += returned;
    }
    path.waiting_bytes = found.bytes;
    path.topics = found.topics;
    if let Some((id, ingested_at)) = found.first {
        path.head = id;
        path.oldest = ingested_at;
    }
}

/// Takes back so many outcomes, deliveries first; what no outcome accounts for was received without being counted.
fn take_back(counts: &mut Counts, mut returned: u64) {
    for outcome in [&mut counts.delivered, &mut counts.dead_lettered]
        .into_iter()
        .chain(counts.dropped.values_mut())
    {
        let back = returned.min(*outcome);
        *outcome -= back;
        returned -= back;
    }
    counts.received += returned;
}
