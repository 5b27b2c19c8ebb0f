//! Records that several entries share: each has to stay as long as an entry refers to it, and no longer.
//!
//! Entries stand in the order of receivers and records in the order of ids, and neither fits into memory. So records are
//! taken a window at a time, and each queue is read within the window.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::findings::{Findings, describe};
use crate::{
    entry::{EntryId, ReceiverId},
    error::StoreError,
    fjall_store::{engine::FjallEngine, salvage::read_opened},
    keys::{self, Table},
    record::{self, EntryHead},
};

/// Records that are looked at together.
const WINDOW: usize = 1 << 16;

/// What is known of a shared record.
#[derive(Debug, Default)]
struct Body {
    /// References that remain, if that was ever written.
    left: Option<u32>,
    /// References that there were at first, as its entries say.
    at_first: u32,
    /// Entries that refer to it.
    entries: u32,
}

/// Compares the count of each shared record with the entries of the given queues.
pub(super) fn check(
    engine: &FjallEngine,
    queues: &[ReceiverId],
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let mut from = 0;
    loop {
        let mut window = BTreeMap::new();
        load(engine, Table::Body, (from, None), &mut |id, _| {
            window.insert(id, Body::default());
            if window.len() < WINDOW {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        // The last window reaches to the end of all ids.
        let last = window.last_key_value().map(|(id, _)| *id);
        let to = last
            .filter(|_| window.len() == WINDOW)
            .map(|last| last.saturating_add(1));
        load(engine, Table::Left, (from, to), &mut |id, row| {
            match (window.get_mut(&id), record::decode_references(row)) {
                (Some(body), Ok(left)) => body.left = Some(left),
                (None, _) => findings.minor(
                    Table::Left.name(),
                    describe(Table::Left, &keys::number(id)),
                    "it counts references to a record that is not there".to_owned(),
                ),
                // Told of when the keyspace was read.
                (Some(_), Err(_)) => {}
            }
            ControlFlow::Continue(())
        })?;
        for receiver in queues {
            count(engine, *receiver, (from, to), &mut window, findings)?;
        }
        for (id, body) in window {
            judge(id, &body, findings);
        }
        match to {
            Some(to) => from = to,
            None => return Ok(()),
        }
    }
}

/// Visits rows of a keyspace of ids. What can't be read was told of before.
fn load(
    engine: &FjallEngine,
    table: Table,
    (from, to): (EntryId, Option<EntryId>),
    visit: &mut dyn FnMut(EntryId, &[u8]) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let to = to.map(keys::number);
    let to = to.as_ref().map(<[u8; 8]>::as_slice);
    let mut visit = |key: &keys::Bytes, row: &keys::Bytes| {
        Ok(keys::split_number(key).map_or(ControlFlow::Continue(()), |id| visit(id, row)))
    };
    read_opened(engine, table, &keys::number(from), to, &mut visit, &mut |_, _| {})
}

/// Counts the entries of one queue that refer to records of the window.
fn count(
    engine: &FjallEngine,
    receiver: ReceiverId,
    (from, to): (EntryId, Option<EntryId>),
    window: &mut BTreeMap<EntryId, Body>,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let end = to.map_or_else(|| keys::after_entries(receiver), |to| keys::entry(receiver, to));
    let mut visit = |key: &keys::Bytes, row: &keys::Bytes| {
        let (Some((_, id)), Ok(head)) = (keys::split_entry(key), EntryHead::decode(row)) else {
            return Ok(ControlFlow::Continue(()));
        };
        if let Some(references) = head.references {
            match window.get_mut(&id) {
                Some(body) => {
                    body.entries += 1;
                    body.at_first = body.at_first.max(references);
                }
                None => findings.damage(
                    Table::Queue.name(),
                    describe(Table::Queue, key),
                    "its record is missing".to_owned(),
                ),
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    let begin = keys::entry(receiver, from);
    read_opened(
        engine,
        Table::Queue,
        &begin,
        Some(&end),
        &mut visit,
        &mut |_, _| {},
    )
}

fn judge(id: EntryId, body: &Body, findings: &mut Findings) {
    let Body {
        left,
        at_first,
        entries,
    } = body;
    let counted = left.unwrap_or(*at_first);
    let key = || describe(Table::Body, &keys::number(id));
    if *entries > counted {
        let found =
            format!("{entries} entries refer to it, {counted} references remain: it would go too early");
        findings.damage(Table::Body.name(), key(), found);
    } else if *entries == 0 {
        let found = "no entry refers to it: it stays for ever".to_owned();
        findings.minor(Table::Body.name(), key(), found);
    } else if *entries < counted {
        let found = format!("{entries} entries refer to it, {counted} references remain: it stays for ever");
        findings.minor(Table::Body.name(), key(), found);
    }
}
