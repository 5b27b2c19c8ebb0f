//! Looks at fjall's journals before fjall does.
//!
//! fjall cuts a journal off, without a word, at the first bytes that it can't decode, and refuses to open at the first
//! batch whose checksum is wrong. Both are right for the torn end of a crash and wrong for a flipped bit in the middle:
//! what follows it was acknowledged and is intact. So every journal is read here first. If something other than the end
//! of the last one can't be read, the journal is kept aside as it was found, and written anew with all batches that are
//! good; the numbers of batches tell how many are missing.
//!
//! The last journal is also written anew after every crash: its last sync may have failed, and then the page cache
//! holds what the disk does not, and a sync of the same pages need not write them again.
//!
//! A journal of format 3 is a sequence of batches, then zeros or its end:
//! ```text
//! batch = start item* end          numbers are little-endian
//! start = 1 u8, items u32, seqno u64
//! item  = 2 u8, type u8, compression u8, keyspace u64, key length u16, length u32, stored length u32, key, stored value
//!       | 4 u8, keyspace u64                                                          (a keyspace was cleared)
//! end   = 3 u8, XXH3 of all items u64, "FJL" 3
//! ```
//!
//! The first item of each batch marks it as ours (see `marks`); behind damage, nothing else is taken for a batch.

mod cursor;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use self::cursor::Cursor;
pub(super) use self::cursor::{Item, head};
use super::{
    files::{self, Directory},
    marks::Marks,
};
use crate::error::StoreError;

/// Bytes that are searched at a time.
const WINDOW: usize = 64 << 10;

/// What was found in all journals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// Journals that were damaged.
    pub(crate) damaged: u64,
    /// Batches that are missing between others.
    pub(crate) lost_commits: u64,
    /// Where damaged journals are kept.
    pub(crate) set_aside: Vec<PathBuf>,
    /// Damaged files whose content was known and that were restored.
    pub(crate) restored: u64,
}

/// A batch that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batch {
    from: u64,
    to: u64,
    seqno: u64,
}

/// A journal that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Scan {
    batches: Vec<Batch>,
    /// Something in front of a good batch can't be read.
    damaged: bool,
    /// What follows the last good batch is neither zeros nor nothing.
    torn: bool,
}

/// A journal and what can be read of it.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    scan: Scan,
    /// Whether something is wrong that a crash does not explain.
    pub(crate) damaged: bool,
    /// Batches that are missing between its own, or in front of them.
    pub(crate) lost_commits: u64,
}

/// Reads all journals and leaves only what fjall reads well.
pub(crate) fn prepare(directory: &Directory, clean: bool) -> Result<Prepared, StoreError> {
    let data = directory.data();
    remove_unfinished(&data)?;
    let marks = Marks::read(&data)?;
    let journals = read_with(&data, marks.marks.as_ref(), clean)?;
    let mut prepared = Prepared {
        restored: marks.damaged,
        ..Prepared::default()
    };
    match &marks.marks {
        Some(marks) => marks.write(&data)?,
        None if marks.damaged > 0 => {
            tracing::error!("the marks of the journals are lost: what follows damage in them is not found");
        }
        None => {}
    }
    for (index, journal) in journals.iter().enumerate() {
        let Journal {
            path,
            scan,
            damaged,
            lost_commits,
        } = journal;
        prepared.lost_commits += lost_commits;
        if *damaged {
            let aside = directory.keep_damaged(path)?;
            tracing::error!(journal = ?path, kept = ?aside, good = scan.batches.len(), "a journal is damaged");
            prepared.damaged += 1;
            prepared.set_aside.push(aside);
        }
        let is_last = index + 1 == journals.len();
        if *damaged || is_last && !clean {
            rewrite(path, &scan.batches)?;
        }
    }
    Ok(prepared)
}

/// Empties all journals, whose rows are in tables.
pub(crate) fn forget(data: &Path) -> Result<(), StoreError> {
    journals(data)?.iter().try_for_each(|path| rewrite(path, &[]))
}

/// Whether there is a journal.
pub(super) fn is_there(data: &Path) -> Result<bool, StoreError> {
    Ok(!journals(data)?.is_empty())
}

/// Reads all journals, in the order in which they were written, and changes none.
pub(crate) fn read(data: &Path, clean: bool) -> Result<Vec<Journal>, StoreError> {
    read_with(data, Marks::read(data)?.marks.as_ref(), clean)
}

fn read_with(data: &Path, marks: Option<&Marks>, clean: bool) -> Result<Vec<Journal>, StoreError> {
    let paths = journals(data)?;
    let mut scans = Vec::with_capacity(paths.len());
    for path in &paths {
        let failed = |error| StoreError::io("read the journal", path, error);
        scans.push(scan(&File::open(path).map_err(failed)?, marks).map_err(failed)?);
    }
    drop_misnumbered(&mut scans);
    let count = paths.len();
    let mut last_seqno = None;
    let read = paths.into_iter().zip(scans).enumerate();
    Ok(read
        .map(|(index, (path, scan))| {
            let mut lost_commits = 0;
            for batch in &scan.batches {
                if let Some(last) = last_seqno {
                    lost_commits += if scan.damaged { batch.seqno - last - 1 } else { 0 };
                }
                last_seqno = Some(batch.seqno);
            }
            // Only the journal that was being written may end in the middle of a batch, and only after a crash.
            let damaged = scan.damaged || scan.torn && (clean || index + 1 < count);
            Journal {
                path,
                scan,
                damaged,
                lost_commits,
            }
        })
        .collect())
}

impl Journal {
    /// Name of its file.
    pub(crate) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Batches that are whole.
    pub(crate) fn batches(&self) -> usize {
        self.scan.batches.len()
    }

    /// Whether it ends in the middle of a batch, as a crash leaves it.
    pub(crate) fn is_torn(&self) -> bool {
        self.scan.torn
    }

    /// Bytes that belong to no whole batch and have one behind them: from, to.
    pub(crate) fn holes(&self) -> Vec<(u64, u64)> {
        let ranges = joined(&self.scan.batches);
        let ends = ranges.iter().map(|range| range.end);
        let starts = ranges.iter().map(|range| range.start);
        let holes = std::iter::once(0).chain(ends).zip(starts);
        holes.filter(|(from, to)| from < to).collect()
    }

    /// Where the last whole batch ends.
    pub(crate) fn end(&self) -> u64 {
        self.scan.batches.last().map_or(0, |batch| batch.to)
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Visits the items of the batches that are whole, each with its key and the sequence number of its batch.
    pub(super) fn items(
        &self,
        marks: Option<&Marks>,
        mut visit: impl FnMut(Vec<u8>, u64, Item),
    ) -> Result<(), StoreError> {
        let mut read = || {
            let file = File::open(&self.path)?;
            let mut cursor = Cursor::new(&file, marks)?;
            for batch in &self.scan.batches {
                cursor.items(batch, |key, item| visit(key, batch.seqno, item))?;
            }
            Ok(())
        };
        read().map_err(|error| StoreError::io("read the journal", &self.path, error))
    }

    /// Copies the batches that are whole to a file of the same name in another folder.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), StoreError> {
        let new = folder.join(self.path.file_name().unwrap_or_default());
        let copied = copy_batches(&self.path, &new, &self.scan.batches);
        copied
            .map(drop)
            .map_err(|error| StoreError::io("copy the journal to", new, error))
    }
}

/// Removes what a crash left of writing a journal anew.
fn remove_unfinished(data: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::io("read the directory", data, error);
    for file in fs::read_dir(data).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Journals in the order in which they were written.
fn journals(data: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("read the directory", data, error);
    let mut journals = Vec::new();
    for file in fs::read_dir(data).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        let is_journal = path.extension().is_some_and(|extension| extension == "jnl");
        journals.extend(number.filter(|_| is_journal).map(|number| (number, path)));
    }
    journals.sort();
    Ok(journals.into_iter().map(|(_, path)| path).collect())
}

/// Writes a journal anew with the given batches of it, and syncs it before it takes the old one's place.
fn rewrite(path: &Path, batches: &[Batch]) -> Result<(), StoreError> {
    let new = path.with_extension("new");
    let copy = || {
        copy_batches(path, &new, batches)?.sync_all()?;
        fs::rename(&new, path)
    };
    copy().map_err(|error| {
        // Without the new file, the next try has the space that this one took.
        if let Err(error) = fs::remove_file(&new) {
            tracing::warn!(file = ?new, %error, "can't be removed");
        }
        StoreError::io("write the journal anew", path, error)
    })?;
    path.parent().map_or(Ok(()), files::sync_directory)
}

/// Writes a new file with the given batches of a journal.
fn copy_batches(path: &Path, new: &Path, batches: &[Batch]) -> io::Result<File> {
    let mut old = File::open(path)?;
    let mut file = BufWriter::with_capacity(WINDOW, File::create(new)?);
    for std::ops::Range { start: from, end: to } in joined(batches) {
        old.seek(SeekFrom::Start(from))?;
        let copied = io::copy(&mut (&old).take(to - from), &mut file)?;
        if copied < to - from {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)
}

/// Neighbouring batches as one range.
fn joined(batches: &[Batch]) -> Vec<std::ops::Range<u64>> {
    let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
    for batch in batches {
        match ranges.last_mut() {
            Some(last) if last.end == batch.from => last.end = batch.to,
            _ => ranges.push(batch.from..batch.to),
        }
    }
    ranges
}

/// Reads a journal from its beginning to its end.
fn scan(file: &File, marks: Option<&Marks>) -> io::Result<Scan> {
    let mut cursor = Cursor::new(file, marks)?;
    let mut scan = Scan::default();
    let mut position = 0;
    loop {
        if let Some(batch) = cursor.batch(position)? {
            position = batch.to;
            scan.batches.push(batch);
            continue;
        }
        if cursor.is_zero_from(position)? {
            break;
        }
        match cursor.find_batch(position + 1)? {
            Some(next) => {
                scan.damaged = true;
                position = next;
            }
            None => {
                scan.torn = true;
                break;
            }
        }
    }
    // Without marks nothing behind damage is found, and there is no telling it from a torn end. What was in a sector that
    // can't be read nobody knows.
    scan.damaged |= scan.torn && marks.is_none() || cursor.met_unreadable();
    Ok(scan)
}

/// Removes batches whose number can't be right: no checksum covers it.
fn drop_misnumbered(scans: &mut [Scan]) {
    let batches = scans.iter().flat_map(|scan| &scan.batches);
    let numbers: Vec<u64> = batches.map(|batch| batch.seqno).collect();
    if numbers.is_sorted_by(|left, right| left < right) {
        return;
    }
    // A step may be wide: what lay between may have been lost long ago.
    let mut believed = longest_rising(&numbers).into_iter().peekable();
    let mut places = 0..numbers.len();
    for scan in scans {
        let count = scan.batches.len();
        scan.batches.retain(|_| {
            believed
                .next_if_eq(&places.next().unwrap_or(usize::MAX))
                .is_some()
        });
        scan.damaged |= scan.batches.len() < count;
    }
}

/// The places of a longest subsequence that rises, by patience sorting.
fn longest_rising(numbers: &[u64]) -> Vec<usize> {
    // For each length, the place of the smallest number in which a subsequence of that length ends.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(numbers.len());
    for (place, number) in numbers.iter().enumerate() {
        let length = ends.partition_point(|end| numbers[*end] < *number);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get(length).copied() {
            None => ends.push(place),
            // Of two with the same number, the one that continues what is before it is right.
            Some(end)
                if numbers[end] == *number
                    && before[end].is_some_and(|last| numbers[last] + 1 == *number) => {}
            Some(_) => ends[length] = place,
        }
    }
    let mut places: Vec<usize> =
        std::iter::successors(ends.last().copied(), |place| before[*place]).collect();
    places.reverse();
    places
}

#[cfg(test)]
mod tests;
