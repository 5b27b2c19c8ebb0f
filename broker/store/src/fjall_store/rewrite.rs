//! Sealing what is there: rows from before encryption was turned on, and rows of older keys.
//!
//! Rows whose keys are names get other keys by it, so they are sealed before anything is read; they are few, and all of
//! them are read at a start anyway. The mass, the queues, is sealed a piece at a time in the background, at each start
//! from the beginning: what is sealed already only costs the reading. Pieces need no sync of their own, since the older
//! keys are forgotten only after one.

use std::ops::{Bound, ControlFlow};

use super::engine::FjallEngine;
use crate::{
    cipher::{Age, Cipher},
    engine::{Change, Engine, View},
    entry::EntryId,
    error::StoreError,
    keys::{self, Bytes, Table},
    rows::PositionRow,
};

/// Rows that one piece looks at.
const LOOK_MAX: usize = 10_000;

/// Bytes of rows that one piece writes.
const WRITE_MAX: usize = 1 << 20;

/// Where sealing anew goes on.
#[derive(Debug, Default)]
pub(crate) struct Rewriting {
    /// Whether the keyring says which entries may be sealed anew.
    begun: bool,
    /// Place of the keyspace in [`Table::ALL`].
    table: usize,
    /// First key that was not looked at yet.
    from: Vec<u8>,
    /// Rows that were sealed.
    sealed: u64,
    /// Rows that can't be opened, and stay as they are.
    damaged: u64,
}

/// What a piece found.
struct Piece {
    changes: Vec<Change>,
    /// The last key that was looked at, if something may follow it.
    last: Option<Vec<u8>>,
    damaged: u64,
}

impl FjallEngine {
    /// Seals the rows whose keys are names, if encryption was turned on since they were written.
    pub(crate) fn seal_names(&self) -> Result<(), StoreError> {
        let Some(cipher) = self.cipher().filter(|cipher| cipher.has_plain()) else {
            return Ok(());
        };
        for table in Table::ALL.into_iter().filter(|table| table.is_named()) {
            let mut from = Vec::new();
            loop {
                let piece = self.piece(cipher, table, &from, |age| age == Age::Plain)?;
                self.write_lazily(piece.changes)?;
                match piece.last {
                    Some(last) => from = keys::successor(&last).to_vec(),
                    None => break,
                }
            }
        }
        self.sync()
    }

    /// Takes up another key if there is one, and seals a piece of what is not sealed with the current one; tells whether
    /// there is more to do. Keys that can't be taken up, and a keyring that can't be written, are told of and tried again.
    pub(super) fn keep_sealed(&self) -> Result<bool, StoreError> {
        let (Some(cipher), Some(directory)) = (self.cipher(), self.directory()) else {
            return Ok(false);
        };
        let mut rewriting = self.rewriting.lock();
        let next_id = self.next_id()?;
        match cipher.look(directory, next_id) {
            Ok(true) => *rewriting = Rewriting::default(),
            Ok(false) => {}
            Err(error) => return Ok(cipher.put_off(&error)),
        }
        if !cipher.is_rewriting() {
            return Ok(false);
        }
        if !rewriting.begun {
            if let Err(error) = cipher.begin_rewriting(directory, next_id) {
                return Ok(cipher.put_off(&error));
            }
            rewriting.begun = true;
        }
        let Some(table) = Table::ALL.get(rewriting.table).copied() else {
            self.sync()?;
            if let Err(error) = cipher.end_rewriting(directory) {
                return Ok(cipher.put_off(&error));
            }
            let Rewriting { sealed, damaged, .. } = std::mem::take(&mut *rewriting);
            tracing::info!(
                sealed,
                damaged,
                "all rows of the store are sealed with the current key"
            );
            return Ok(false);
        };
        let piece = self.piece(cipher, table, &rewriting.from, |age| age != Age::Current)?;
        rewriting.sealed += piece
            .changes
            .iter()
            .filter(|change| change.value.is_some())
            .count() as u64;
        rewriting.damaged += piece.damaged;
        self.write_lazily(piece.changes)?;
        match piece.last {
            Some(last) => rewriting.from = keys::successor(&last).to_vec(),
            None => (rewriting.table, rewriting.from) = (rewriting.table + 1, Vec::new()),
        }
        Ok(true)
    }

    /// First id that was not given out yet.
    fn next_id(&self) -> Result<EntryId, StoreError> {
        let row = self.view().get(Table::Meta, keys::POSITION)?;
        Ok(row
            .map(|row| PositionRow::decode(&row))
            .transpose()?
            .map_or(1, |row| row.next_id))
    }

    /// Reads rows from a key on, and seals those of the ages that are wanted.
    fn piece(
        &self,
        cipher: &Cipher,
        table: Table,
        from: &[u8],
        is_wanted: impl Fn(Age) -> bool,
    ) -> Result<Piece, StoreError> {
        let mut piece = Piece {
            changes: Vec::new(),
            last: None,
            damaged: 0,
        };
        let (mut looked, mut bytes, mut outcome) = (0, 0, Ok(()));
        let from = Bound::Included(from.to_vec());
        let read = self.read_from(table, &from, |stored, value| {
            looked += 1;
            let age = cipher.age(value);
            if is_wanted(age) {
                match reseal(cipher, table, stored, value, age) {
                    Ok(Some(changes)) => {
                        bytes += value.len();
                        piece.changes.extend(changes);
                    }
                    Ok(None) => piece.damaged += 1,
                    Err(error) => {
                        outcome = Err(error);
                        return ControlFlow::Break(());
                    }
                }
            }
            if looked < LOOK_MAX && bytes < WRITE_MAX {
                return ControlFlow::Continue(());
            }
            piece.last = Some(stored.to_vec());
            ControlFlow::Break(())
        });
        outcome?;
        read.map_err(|error| self.read_failed(error))?;
        Ok(piece)
    }
}

/// A row sealed with the current key, and the removal of what it was; nothing if it can't be opened.
fn reseal(
    cipher: &Cipher,
    table: Table,
    stored: &Bytes,
    value: &Bytes,
    age: Age,
) -> Result<Option<Vec<Change>>, StoreError> {
    let opened = cipher.open(table, stored, value);
    if age != Age::Plain && opened.value.is_empty() {
        return Ok(None);
    }
    let key = cipher.stored_key(table, &opened.key);
    let sealed = cipher.seal(table, &opened.key, &key, &opened.value)?;
    let removed = (key != *stored).then(|| Change {
        table,
        key: stored.clone(),
        value: None,
    });
    let written = Change {
        table,
        key,
        value: Some(sealed),
    };
    Ok(Some(removed.into_iter().chain([written]).collect()))
}
