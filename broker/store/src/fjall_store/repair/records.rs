//! Setting right the records that several entries share: an entry whose record is lost goes, as does a record that no entry
//! refers to any more, and each count of references says how many there are.
//!
//! As where they are proved ([`crate::offline`]), records are taken a window at a time, since neither they nor the entries
//! fit into memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use super::{CHUNK, change, removal};
use crate::{
    engine::{Change, Engine, View},
    entry::{EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Table},
    record::{self, EntryHead},
};

/// Records that are looked at together.
const WINDOW: usize = 1 << 16;

/// What refers to a record.
#[derive(Debug, Default)]
struct References {
    /// The count, where one was ever written; 0 if it can't be read.
    counted: Option<u32>,
    /// References that there were at first, as its entries say.
    at_first: u32,
    /// Entries that refer to it.
    entries: u32,
}

/// Compares all shared records with the entries of the receivers, and makes them agree.
pub(super) fn set_right(engine: &impl Engine, receivers: &BTreeSet<ReceiverId>) -> Result<(), StoreError> {
    let mut from = 0;
    loop {
        let (changes, next) = window(&engine.view(), from, receivers)?;
        for chunk in changes.chunks(CHUNK) {
            engine.write(chunk.to_vec())?;
        }
        match next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// What is to change of the records from an id on, and the first id behind them.
fn window(
    view: &impl View,
    from: EntryId,
    receivers: &BTreeSet<ReceiverId>,
) -> Result<(Vec<Change>, Option<EntryId>), StoreError> {
    let mut records = BTreeMap::new();
    let begin = keys::number(from);
    view.scan(Table::Body, &begin, None, &mut |key, _| {
        if let Some(id) = keys::split_number(key) {
            records.insert(id, References::default());
        }
        Ok(if records.len() < WINDOW {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    // The last window reaches to the end of all ids.
    let last = records.last_key_value().map(|(id, _)| *id);
    let next = last
        .filter(|_| records.len() == WINDOW)
        .map(|last| last.saturating_add(1));
    let end = next.map(keys::number);
    let mut changes = Vec::new();
    view.scan(
        Table::Left,
        &begin,
        end.as_ref().map(<[u8; 8]>::as_slice),
        &mut |key, row| {
            match keys::split_number(key).and_then(|id| records.get_mut(&id)) {
                Some(record) => record.counted = Some(record::decode_references(row).unwrap_or_default()),
                None => changes.push(removal(Table::Left, key)),
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    for receiver in receivers {
        let end = next.map_or_else(
            || keys::after_entries(*receiver),
            |next| keys::entry(*receiver, next),
        );
        view.scan(
            Table::Queue,
            &keys::entry(*receiver, from),
            Some(&end),
            &mut |key, row| {
                let references = EntryHead::decode(row).ok().and_then(|head| head.references);
                if let (Some((_, id)), Some(at_first)) = (keys::split_entry(key), references) {
                    match records.get_mut(&id) {
                        Some(record) => {
                            record.entries += 1;
                            record.at_first = record.at_first.max(at_first);
                        }
                        None => changes.push(removal(Table::Queue, key)),
                    }
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
    }
    for (
        id,
        References {
            counted,
            at_first,
            entries,
        },
    ) in records
    {
        let key = keys::number(id);
        if entries == 0 {
            changes.push(removal(Table::Body, &key));
            changes.extend(counted.map(|_| removal(Table::Left, &key)));
        } else if counted.unwrap_or(at_first) != entries {
            changes.push(change(Table::Left, key, record::encode_references(entries)));
        }
    }
    Ok((changes, next))
}
