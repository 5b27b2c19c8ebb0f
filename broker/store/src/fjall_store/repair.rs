//! Setting the ledger right after commits were lost.
//!
//! Totals are rows with absolute numbers, so the last one that survives tells what a path should hold. What it holds is
//! counted: the only time that queues are scanned. Entries that should be there and are not are counted as dropped
//! (`corrupt`). Entries that are there and should not be lost their settlement; they wait again, and what they had been
//! counted as is taken back.

use std::{collections::BTreeMap, ops::ControlFlow};

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
    let mut present = count(engine, &paths)?;
    let mut repaired = Repaired::default();
    let mut changes = Vec::new();
    let mut last_id = present
        .values()
        .map(|present| present.last)
        .max()
        .unwrap_or_default();
    let mut last_receiver = 0;
    let mut topics = topics(engine)?;
    let known = receivers(engine)?;
    for receiver in paths
        .keys()
        .chain(known.iter())
        .copied()
        .collect::<std::collections::BTreeSet<_>>()
    {
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
        if !known.contains(&receiver) {
            let name = format!("lost/{receiver}");
            changes.push(change(
                Table::Receiver,
                keys::number(receiver),
                rows::encode_name(&name),
            ));
            changes.push(change(
                Table::Name,
                name.as_bytes(),
                rows::encode_number(receiver),
            ));
        }
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

fn receivers(engine: &impl Engine) -> Result<std::collections::BTreeSet<ReceiverId>, StoreError> {
    let mut receivers = std::collections::BTreeSet::new();
    engine.view().scan(Table::Receiver, &[], None, &mut |key, _| {
        receivers.extend(keys::split_number(key));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(receivers)
}

/// Counts what the queues hold, and removes what lies below their heads: it was settled.
fn count(
    engine: &impl Engine,
    paths: &BTreeMap<ReceiverId, PathRow>,
) -> Result<BTreeMap<ReceiverId, Present>, StoreError> {
    let mut present: BTreeMap<ReceiverId, Present> = BTreeMap::new();
    let mut from = keys::entry(0, 0);
    loop {
        let (mut settled, mut looked_at, begin) = (Vec::new(), 0, from);
        engine.view().scan(Table::Queue, &begin, None, &mut |key, row| {
            let Some((receiver, id)) = keys::split_entry(key) else {
                return Ok(ControlFlow::Continue(()));
            };
            from = keys::entry(receiver, id.saturating_add(1));
            if paths.get(&receiver).is_some_and(|path| id < path.head) {
                settled.push(Change {
                    table: Table::Queue,
                    key: key.into(),
                    value: None,
                });
            } else {
                let found = present.entry(receiver).or_default();
                let head = EntryHead::decode(row).ok();
                let ingested_at = head.map_or(BrokerTime(0), |head| head.ingested_at);
                found.entries += 1;
                found.bytes += head.map_or(0, |head| u64::from(head.size));
                found.first.get_or_insert((id, ingested_at));
                found.last = id;
                if let Some((head, key)) = head.and_then(|head| Some((head, head.topic?))) {
                    let share = TopicShare {
                        key,
                        head: id,
                        oldest: ingested_at,
                        entries: 1,
                        bytes: head.size.into(),
                    };
                    match found.topics.iter_mut().find(|known| known.key == key) {
                        Some(known) => known.add(&share),
                        None => found.topics.push(share),
                    }
                }
            }
            looked_at += 1;
            Ok(if looked_at < CHUNK {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
        let more = looked_at == CHUNK;
        if !settled.is_empty() {
            engine.write(settled)?;
        }
        if !more {
            return Ok(present);
        }
    }
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
