//! Getting out of a database what can still be read.
//!
//! A table whose block does not match its checksum can't be read past, and ends fjall's compaction for good; a list of
//! tables or a footer that is damaged keeps fjall from opening at all. Whoever meets such a block leaves a mark and the
//! role ends; the next opening reads every block of every file by itself (see `merge`), copies all rows that are good into
//! a new database, and puts that in the place of the old one. The ledger is then set right by counting.

use std::{
    fs, io,
    ops::{Bound, ControlFlow},
};

use super::{
    StoreOptions,
    engine::FjallEngine,
    files::{self, Directory},
    lsm::{Damage, Place},
    merge,
};
use crate::{
    engine::{Change, Engine},
    error::StoreError,
    keys::{Bytes, Table},
};

/// Rows that are written together, and their bytes.
const CHUNK: usize = 5_000;
const CHUNK_BYTES: usize = 1 << 20;

/// Length of the first key behind an unreadable place at the beginning of a keyspace.
const KEY_LEN: usize = 16;

/// Looks at a row, and says whether to go on.
type VisitRow<'v> = dyn FnMut(&Bytes, &Bytes) -> Result<ControlFlow<()>, StoreError> + 'v;

/// Reads everything; if something can't be read, or if there `must` be a new database, leaves one of the rest. Tells how
/// many places can't be read.
pub(super) fn salvage(directory: &Directory, options: &StoreOptions, must: bool) -> Result<u64, StoreError> {
    let mut damage = Damage::default();
    merge::rows(&directory.data(), &mut damage, &mut |_, _, _| Ok(()))?;
    for Place { file, found } in &damage.places {
        tracing::error!(?file, found, "part of the database can't be read");
    }
    if damage.count > 0 || must {
        tracing::error!(places = damage.count, "the rest of the database is copied");
        copy(directory, options).inspect_err(|_| {
            // There may be no room, and the next try needs it.
            if let Err(error) = fs::remove_dir_all(directory.new_data()) {
                tracing::warn!(%error, "a copy that was not finished can't be removed");
            }
        })?;
        replace(directory)?;
    }
    Ok(damage.count)
}

fn copy(directory: &Directory, options: &StoreOptions) -> Result<(), StoreError> {
    let path = directory.new_data();
    if path.exists() {
        fs::remove_dir_all(&path).map_err(|error| StoreError::io("remove", &path, error))?;
    }
    let new = FjallEngine::start_at(path, options)?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    merge::rows(
        &directory.data(),
        &mut Damage::default(),
        &mut |table, key, value| {
            bytes += key.len() + value.len();
            rows.push(Change {
                table,
                key,
                value: Some(value),
            });
            if rows.len() < CHUNK && bytes < CHUNK_BYTES {
                return Ok(());
            }
            bytes = 0;
            new.write_lazily(std::mem::take(&mut rows))
        },
    )?;
    new.write_lazily(rows)?;
    // Without a directory of its own, it leaves no mark but syncs everything.
    new.close(0)
}

/// Puts the new database in the place of the old one. Whatever happens in between, one of the two is found.
fn replace(directory: &Directory) -> Result<(), StoreError> {
    let (old, new) = (directory.data(), directory.new_data());
    // The new one has a name for good before the old one loses anything.
    files::sync_directory(directory.path())?;
    // Without its version, the old one is known as what is to be replaced.
    let version = old.join("version");
    match fs::remove_file(&version) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StoreError::io("remove", version, error));
        }
        _ => {}
    }
    files::sync_directory(&old)?;
    let replace = || {
        fs::remove_dir_all(&old)?;
        fs::rename(&new, &old)
    };
    replace().map_err(|error| StoreError::io("replace", &old, error))?;
    files::sync_directory(directory.path())
}

/// Visits the rows from `from` (included) to `to` (not included) that can be read, and calls `unreadable` with the last
/// key in front of each place where something can't.
pub(crate) fn read_range(
    engine: &FjallEngine,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    visit: &mut VisitRow<'_>,
    unreadable: &mut dyn FnMut(&[u8], &fjall::Error),
) -> Result<(), StoreError> {
    let mut from = Bound::Included(from.to_vec());
    loop {
        let (mut last, mut outcome) = (None, Ok(()));
        let read = engine.read_from(table, &from, |key, value| {
            if to.is_some_and(|to| key.as_ref() >= to) {
                return ControlFlow::Break(());
            }
            last = Some(key.clone());
            match visit(key, value) {
                Ok(going) => going,
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        });
        outcome?;
        let Err(error) = read else { return Ok(()) };
        let stuck = last.map_or_else(|| behind(&from), |last| last.to_vec());
        unreadable(&stuck, &error);
        match skip(engine, table, &stuck) {
            Some(next) => from = Bound::Included(next),
            None => return Ok(()),
        }
    }
}

/// As [`read_range`], with rows as others know them. What can't be opened has no value, which is damage to whoever decodes
/// it.
pub(crate) fn read_opened(
    engine: &FjallEngine,
    table: Table,
    from: &[u8],
    to: Option<&[u8]>,
    visit: &mut VisitRow<'_>,
    unreadable: &mut dyn FnMut(&[u8], &fjall::Error),
) -> Result<(), StoreError> {
    let mut visit = |stored: &Bytes, value: &Bytes| {
        let (key, value) = engine.opened(table, stored, value);
        visit(&key, &value)
    };
    read_range(engine, table, from, to, &mut visit, unreadable)
}

/// The key at which nothing could be read.
fn behind(from: &Bound<Vec<u8>>) -> Vec<u8> {
    match from {
        Bound::Included(key) | Bound::Excluded(key) if !key.is_empty() => key.clone(),
        _ => vec![0; KEY_LEN],
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
