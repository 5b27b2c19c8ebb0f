//! All rows of a database that can be read, from its files: tables and journals.
//!
//! Of each key the version with the highest sequence number counts, and a removal is a version too. Where the newest
//! version lay in a block that is damaged, an older one may come to light: a message that was settled waits again, a
//! value that was replaced is back. Nothing tells such a version from one that was the newest, so it is kept; the ledger
//! is set right afterwards, and the damage is told.
//!
//! Memory is taken for one block of each run of tables that do not overlap, and for the keys of what the journals hold.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map},
    fs::File,
    iter::Peekable,
    os::unix::fs::FileExt,
    path::Path,
};

use lsm_tree::{InternalValue, ValueType};

use super::{
    journal::{self, Item, Journal},
    lsm::{
        Damage,
        table::{Rows, Table as TableReader},
    },
    marks::Marks,
    survey::{self, KeyspaceFiles, TableFile},
};
use crate::{
    error::StoreError,
    keys::{Bytes, Table},
};

/// The keyspace in which fjall keeps the names of the others; read with them.
const META: u64 = 0;

/// Takes a row.
pub(crate) type Take<'t> = dyn FnMut(Table, Bytes, Bytes) -> Result<(), StoreError> + 't;

/// A row of a journal.
#[derive(Clone, Copy, Debug)]
struct JournalRow {
    seqno: u64,
    /// Which journal.
    journal: usize,
    item: Item,
}

/// Rows of all journals, by keyspace and key.
type JournalRows = BTreeMap<(u64, Vec<u8>), JournalRow>;

/// Visits all rows that can be read, table by table, in the order of their keys.
pub(crate) fn rows(data: &Path, damage: &mut Damage, take: &mut Take<'_>) -> Result<(), StoreError> {
    let keyspaces = survey::keyspaces(data, damage)?;
    let names = survey::names(&keyspaces, damage)?;
    // A torn end is known as one already: what is left of the journals was looked through.
    let journals = journal::read(data, false)?;
    let young = journal_rows(data, &journals)?;
    let mut files = Vec::with_capacity(journals.len());
    for journal in &journals {
        let path = journal.path();
        let file = File::open(path).map_err(|error| StoreError::io("open", path, error))?;
        files.push((path, file));
    }
    // A keyspace that was lost with its folder may have rows in the journals. What is in one of no name of ours is not
    // taken, but fjall would stumble over it.
    let there = keyspaces.iter().map(|keyspace| keyspace.id);
    let ids: BTreeSet<_> = there
        .chain(names.keys().copied())
        .filter(|id| *id != META)
        .collect();
    for id in ids {
        let table = names.get(&id);
        let tables = keyspaces.iter().find(|keyspace| keyspace.id == id);
        let runs = runs(tables, damage)?;
        let young = young.range((id, Vec::new())..(id + 1, Vec::new())).peekable();
        merge(runs, young, &files, damage, &mut |key, value| {
            table.map_or(Ok(()), |table| take(*table, key, value))
        })?;
    }
    Ok(())
}

fn journal_rows(data: &Path, journals: &[Journal]) -> Result<JournalRows, StoreError> {
    let marks = Marks::read(data)?.marks;
    let mut rows = JournalRows::new();
    for (place, journal) in journals.iter().enumerate() {
        journal.items(marks.as_ref(), |key, seqno, item| {
            let row = JournalRow {
                seqno,
                journal: place,
                item,
            };
            let entry = rows.entry((item.keyspace, key)).or_insert(row);
            if entry.seqno <= seqno {
                *entry = row;
            }
        })?;
    }
    Ok(rows)
}

/// A table that is read.
struct Open {
    rows: Rows,
    file: TableFile,
    /// Whether something in it was damaged.
    spoiled: bool,
}

/// Tables that follow each other, of which one is read at a time.
struct Run {
    waiting: VecDeque<TableFile>,
    reader: Option<Open>,
    /// The next row.
    head: Option<InternalValue>,
}

impl Run {
    fn advance(&mut self, damage: &mut Damage) -> Result<(), StoreError> {
        loop {
            if let Some(Open { rows, file, spoiled }) = &mut self.reader {
                let failed = |error| StoreError::io("read", &file.path, error);
                let before = damage.count;
                self.head = rows.next(damage).map_err(failed)?;
                *spoiled |= damage.count > before;
                if self.head.is_some() {
                    return Ok(());
                }
                // What is not rows may be damaged too: an index, a filter.
                if let Some(checksum) = file.checksum.filter(|_| !*spoiled) {
                    let matches = damage.note(&file.path, rows.table().matches(checksum));
                    if matches.map_err(failed)? == Some(false) {
                        damage.add(&file.path, "it does not match its checksum");
                    }
                }
                self.reader = None;
            }
            let Some(file) = self.waiting.pop_front() else {
                self.head = None;
                return Ok(());
            };
            let before = damage.count;
            let opened = TableReader::open(&file.path, damage);
            let opened = opened.map_err(|error| StoreError::io("read", &file.path, error))?;
            self.reader = opened.map(|table| Open {
                rows: table.rows(),
                file,
                spoiled: damage.count > before,
            });
        }
    }
}

/// Puts the tables of a keyspace into as few runs as possible.
fn runs(files: Option<&KeyspaceFiles>, damage: &mut Damage) -> Result<Vec<Run>, StoreError> {
    let mut ranges = Vec::new();
    let mut runs: Vec<(Option<Vec<u8>>, Run)> = Vec::new();
    let run = |file: &TableFile| Run {
        waiting: VecDeque::from([file.clone()]),
        reader: None,
        head: None,
    };
    // What is damaged is noted when the table is read.
    let mut quiet = Damage::default();
    for file in files.iter().flat_map(|files| &files.tables) {
        let opened = TableReader::open(&file.path, &mut quiet);
        let opened = opened.map_err(|error| StoreError::io("read", &file.path, error))?;
        match opened.and_then(|table| table.keys) {
            Some((first, last)) => ranges.push((first, last, file)),
            None => runs.push((None, run(file))),
        }
    }
    ranges.sort_by(|left, right| left.0.cmp(&right.0));
    for (first, last, file) in ranges {
        let fitting = runs
            .iter_mut()
            .find(|(end, _)| end.as_ref().is_some_and(|end| *end < first));
        match fitting {
            Some((end, run)) => {
                *end = Some(last);
                run.waiting.push_back(file.clone());
            }
            None => runs.push((Some(last), run(file))),
        }
    }
    let mut runs: Vec<Run> = runs.into_iter().map(|(_, run)| run).collect();
    runs.iter_mut().try_for_each(|run| run.advance(damage))?;
    Ok(runs)
}

/// Visits the newest version of each key that is not a removal.
fn merge<'r>(
    mut runs: Vec<Run>,
    mut young: Peekable<btree_map::Range<'r, (u64, Vec<u8>), JournalRow>>,
    journals: &[(&Path, File)],
    damage: &mut Damage,
    take: &mut dyn FnMut(Bytes, Bytes) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    loop {
        let heads = runs.iter().filter_map(|run| run.head.as_ref());
        let old = heads.map(|row| &row.key.user_key).min().cloned();
        let key: Bytes = match (old, young.peek()) {
            (None, None) => return Ok(()),
            (Some(key), None) => key,
            (None, Some(((_, key), _))) => key.as_slice().into(),
            (Some(old), Some(((_, young), _))) => old.min(young.as_slice().into()),
        };
        let mut newest: Option<InternalValue> = None;
        for run in &mut runs {
            while let Some(row) = run.head.take_if(|row| row.key.user_key == key) {
                if newest
                    .as_ref()
                    .is_none_or(|newest| newest.key.seqno < row.key.seqno)
                {
                    newest = Some(row);
                }
                run.advance(damage)?;
            }
        }
        let young = young
            .next_if(|((_, young), _)| *young == *key)
            .map(|(_, row)| row);
        let young = young.filter(|young| {
            newest
                .as_ref()
                .is_none_or(|newest| newest.key.seqno < young.seqno)
        });
        let value = match (young, newest) {
            (Some(young), _) if young.item.kind == u8::from(ValueType::Value) => {
                value_of(young, journals, damage)?
            }
            (None, Some(newest)) if newest.key.value_type == ValueType::Value => Some(newest.value),
            _ => None,
        };
        if let Some(value) = value {
            take(key, value)?;
        }
    }
}

/// Reads the value of a row of a journal.
fn value_of(
    row: &JournalRow,
    journals: &[(&Path, File)],
    damage: &mut Damage,
) -> Result<Option<Bytes>, StoreError> {
    let Some((path, file)) = journals.get(row.journal) else {
        return Ok(None);
    };
    if !row.item.plain {
        damage.add(path, "a row is compressed, which the store never does there");
        return Ok(None);
    }
    let read = || {
        let mut value = vec![0; row.item.length as usize];
        file.read_exact_at(&mut value, row.item.at)?;
        Ok(value.into())
    };
    read()
        .map(Some)
        .map_err(|error| StoreError::io("read the journal", *path, error))
}
