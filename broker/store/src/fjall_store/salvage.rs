//! Getting out of a database what can still be read.
//!
//! A table whose block does not match its checksum can't be read past, and ends fjall's compaction for good. Whoever
//! meets such a block leaves a mark and the role ends; the next opening reads every block, copies all rows that are
//! good into a new database, and puts that in the place of the old one. The ledger is then set right by counting.

use std::{
    fs,
    ops::{Bound, ControlFlow},
};

use super::{
    StoreOptions,
    engine::FjallEngine,
    files::{self, Directory},
};
use crate::{
    engine::{Change, Engine},
    error::StoreError,
    keys::Table,
};

/// Rows that are written together.
const CHUNK: usize = 5_000;

/// Length of the first key behind an unreadable place at the beginning of a table.
const KEY_LEN: usize = 16;

/// Reads everything; if something can't be read, leaves a database of the rest. Tells how many places that were.
pub(super) fn salvage(directory: &Directory, options: &StoreOptions) -> Result<u64, StoreError> {
    let old = FjallEngine::start_idle(directory, options)?;
    let unreadable = read_all(&old, |_| Ok(()))?;
    if unreadable > 0 {
        tracing::error!(
            unreadable,
            "part of the database can't be read: the rest is copied"
        );
        copy(&old, directory, options)?;
    }
    drop(old);
    if unreadable > 0 {
        replace(directory)?;
    }
    Ok(unreadable)
}

fn copy(old: &FjallEngine, directory: &Directory, options: &StoreOptions) -> Result<(), StoreError> {
    let path = directory.new_data();
    if path.exists() {
        fs::remove_dir_all(&path).map_err(|error| StoreError::io("remove", &path, error))?;
    }
    let new = FjallEngine::start_at(path, options)?;
    read_all(old, |changes| new.write_lazily(changes))?;
    // Without a directory of its own, it leaves no mark but syncs everything.
    new.close(0)
}

/// Puts the new database in the place of the old one. Whatever happens in between, one of the two is found.
fn replace(directory: &Directory) -> Result<(), StoreError> {
    let (old, new) = (directory.data(), directory.new_data());
    let replace = || {
        fs::remove_dir_all(&old)?;
        fs::rename(&new, &old)
    };
    replace().map_err(|error| StoreError::io("replace", &old, error))?;
    files::sync_directory(directory.path())
}

/// Reads all rows that can be read, in chunks; tells in how many places there was something that could not.
fn read_all(
    engine: &FjallEngine,
    mut each: impl FnMut(Vec<Change>) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let mut unreadable = 0;
    for table in Table::ALL {
        let mut from = Bound::Unbounded;
        loop {
            let (mut rows, mut last) = (Vec::new(), None);
            let read = engine.read_from(table, &from, |key, value| {
                last = Some(key.to_vec());
                rows.push(Change {
                    table,
                    key: key.clone(),
                    value: Some(value.clone()),
                });
                if rows.len() < CHUNK {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            let full = rows.len() == CHUNK;
            each(rows)?;
            match read {
                Err(error) => {
                    tracing::error!(table = table.name(), %error, "rows can't be read");
                    unreadable += 1;
                    let stuck = last.unwrap_or_else(|| behind(&from));
                    let Some(next) = skip(engine, table, &stuck) else {
                        break;
                    };
                    from = Bound::Included(next);
                }
                Ok(()) => match last {
                    Some(last) if full => from = Bound::Excluded(last),
                    _ => break,
                },
            }
        }
    }
    Ok(unreadable)
}

/// The key at which nothing could be read.
fn behind(from: &Bound<Vec<u8>>) -> Vec<u8> {
    match from {
        Bound::Included(key) | Bound::Excluded(key) => key.clone(),
        Bound::Unbounded => vec![0; KEY_LEN],
    }
}

/// The next key from which something can be read, or from which nothing follows.
fn skip(engine: &FjallEngine, table: Table, stuck: &[u8]) -> Option<Vec<u8>> {
    steps(stuck).find(|key| {
        let from = Bound::Included(key.clone());
        engine
            .read_from(table, &from, |_, _| ControlFlow::Break(()))
            .is_ok()
    })
}

/// Keys behind a key, each farther than the one before: small steps of its last byte, then of the one in front of it.
fn steps(key: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (1..=key.len()).rev().flat_map(move |length| {
        (0..8).filter_map(move |power| {
            let (last, rest) = key.get(..length)?.split_last()?;
            Some([rest, &[last.checked_add(1 << power)?]].concat())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::steps;

    #[test]
    fn steps_lead_on_and_out() {
        let all: Vec<_> = steps(&[0, 0, 200]).collect();
        assert!(all.is_sorted() && all.iter().all(|key| key.as_slice() > [0, 0, 200].as_slice()));
        assert_eq!(all[0], [0, 0, 201]);
        assert!(all.contains(&vec![0, 1]) && all.contains(&vec![128]));
        assert_eq!(steps(&[255, 255]).count(), 0);
    }
}
