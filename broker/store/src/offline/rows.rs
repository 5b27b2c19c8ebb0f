//! What a store holds, row by row: as much of it as can be read, however much that is.

use std::ops::ControlFlow;

use super::{
    ClosedStore,
    findings::{Finding, Severity, describe},
};
use crate::{
    engine::{Engine, View},
    entry::{Blob, Entry, EntryId, ReceiverId, Retained, StateEntry, StoreEpoch},
    error::StoreError,
    fjall_store::{engine::FjallView, salvage::read_opened},
    keys::{self, Bytes, Table},
    ledger::{EndedTotals, PathTotals, SourceTotals},
    queue_store::read_entry,
    record,
    rows::{self, PathRow},
    store::Receiver,
    transaction::Openings,
};

/// What to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// States of sessions, in order of client; in one of its own if the store is encrypted, as all that have names.
    Sessions,
    /// Wills, in order of client.
    Wills,
    /// Retained messages, in order of topic.
    Retained,
    /// Receivers with their totals, in order of id.
    Receivers,
    /// Sources with their totals, in order of name.
    Sources,
    /// Entries of the state store, in order of key.
    State,
    /// Totals of paths that ended, by kind.
    Ended,
    /// Entries of the queue of a receiver, in order of id.
    Queue(ReceiverId),
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// State of a session.
    Session(Blob),
    /// A will.
    Will(Blob),
    /// A retained message.
    Retained(Retained),
    /// A receiver with its totals.
    Receiver(Receiver, PathTotals),
    /// A source with its totals.
    Source(SourceTotals),
    /// An entry of the state store.
    State(StateEntry),
    /// Totals of the paths of a kind that ended.
    Ended(EndedTotals),
    /// An entry of a queue.
    Entry(Entry),
    /// What can't be read.
    Damaged(Finding),
}

impl ClosedStore {
    /// Visits rows until told to stop. One row at a time is in memory. What can't be read is visited as
    /// [`Row::Damaged`], and what follows it is read on.
    ///
    /// # Errors
    /// When the database can't be opened at all.
    pub fn each(
        &self,
        contents: Contents,
        visit: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let engine = self.engine()?;
        let view = engine.view();
        let (table, from, to) = range(contents);
        // Without them, epochs and attempts are unknown, and everything else is told.
        let (openings, path) = match contents {
            Contents::Queue(receiver) => (
                openings(&view).unwrap_or_default(),
                path(&view, receiver).unwrap_or_default(),
            ),
            _ => Default::default(),
        };
        let decode = |key: &[u8], row: &[u8]| match contents {
            Contents::Sessions => Ok(Row::Session(rows::decode_blob(&name(key)?, row)?)),
            Contents::Wills => Ok(Row::Will(rows::decode_blob(&name(key)?, row)?)),
            Contents::Retained => Ok(Row::Retained(record::decode_retained(row)?)),
            Contents::Receivers => receiver(&view, key, row),
            Contents::Sources => Ok(Row::Source(rows::decode_source(&name(key)?, row)?)),
            Contents::State => Ok(Row::State(rows::decode_state(key, row)?)),
            Contents::Ended => {
                let kind = name(key.strip_prefix(keys::ENDED).unwrap_or(key))?;
                Ok(Row::Ended(rows::decode_ended(&kind, row)?))
            }
            Contents::Queue(_) => {
                let (_, id) = keys::split_entry(key).unwrap_or_default();
                Ok(Row::Entry(read_entry(&view, id, row, &path, &openings)?))
            }
        };
        let stopped = std::cell::Cell::new(false);
        let visit = std::cell::RefCell::new(visit);
        let show = |row| {
            let going = (visit.borrow_mut())(row);
            stopped.set(stopped.get() || going.is_break());
            going
        };
        let damaged = |key: &[u8], found: String| {
            Row::Damaged(Finding {
                severity: Severity::Damage,
                place: table.name().to_owned(),
                key: describe(table, key),
                found,
            })
        };
        read_opened(
            engine,
            table,
            &from,
            to.as_deref(),
            &mut |key, row| {
                if stopped.get() {
                    return Ok(ControlFlow::Break(()));
                }
                Ok(show(
                    decode(key, row).unwrap_or_else(|error| damaged(key, error.to_string())),
                ))
            },
            &mut |key, error| {
                if !stopped.get() {
                    // What was told to stop stops with the next row.
                    let _stopping = show(damaged(key, format!("what follows can't be read: {error}")));
                }
            },
        )
    }
}

/// Keyspace, first key and the key behind the last one.
fn range(contents: Contents) -> (Table, Vec<u8>, Option<Vec<u8>>) {
    let all = |table| (table, Vec::new(), None);
    match contents {
        Contents::Sessions => all(Table::Session),
        Contents::Wills => all(Table::Will),
        Contents::Retained => all(Table::Retained),
        Contents::Receivers => all(Table::Receiver),
        Contents::Sources => all(Table::Source),
        Contents::State => all(Table::State),
        Contents::Ended => (
            Table::Meta,
            keys::ENDED.to_vec(),
            Some(keys::after_prefix(keys::ENDED).to_vec()),
        ),
        Contents::Queue(receiver) => (
            Table::Queue,
            keys::entry(receiver, 0).to_vec(),
            Some(keys::after_entries(receiver).to_vec()),
        ),
    }
}

fn name(key: &[u8]) -> Result<String, StoreError> {
    let name = std::str::from_utf8(key).map_err(|error| StoreError::Damaged {
        what: "a name",
        cause: error.to_string(),
    })?;
    Ok(name.to_owned())
}

/// The epochs of openings; those that can't be read are passed over.
fn openings(view: &FjallView<'_>) -> Result<Openings, StoreError> {
    let mut openings: Vec<(EntryId, StoreEpoch)> = Vec::new();
    let end = keys::after_prefix(keys::OPENING);
    view.scan(Table::Meta, keys::OPENING, Some(&end), &mut |key, row| {
        let first_id = key.strip_prefix(keys::OPENING).and_then(keys::split_number);
        openings.extend(first_id.zip(rows::decode_opening(row).ok()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Openings::new(openings))
}

/// The totals of a path, for the attempts of its entries; a new one's where they can't be read.
fn path(view: &FjallView<'_>, receiver: ReceiverId) -> Result<PathRow, StoreError> {
    let row: Option<Bytes> = view.get(Table::Path, &keys::number(receiver))?;
    let path = row.and_then(|row| PathRow::decode(&row).ok());
    Ok(path.unwrap_or_default())
}

fn receiver(view: &FjallView<'_>, key: &[u8], row: &[u8]) -> Result<Row, StoreError> {
    let id = keys::split_number(key).unwrap_or_default();
    let name = rows::decode_name(row)?;
    let path = view.get(Table::Path, key)?.ok_or_else(|| StoreError::Damaged {
        what: "a receiver",
        cause: "its totals are missing".to_owned(),
    })?;
    let path = PathRow::decode(&path)?;
    let totals = path.totals(id, &name);
    let limits = path.limits;
    Ok(Row::Receiver(Receiver { id, name, limits }, totals))
}
