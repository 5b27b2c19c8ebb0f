use std::{
    collections::BTreeMap,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU64, Ordering},
};

use fjall::{Database, KeyspaceCreateOptions, PersistMode};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A database with one row for each of so many batches: number → text of varying length.
fn database(batches: u64) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let directory = Directory::open(home.path()).unwrap();
    let marks = Marks::random();
    marks.write(&directory.data()).unwrap();
    let database = Database::builder(directory.data())
        .journal_compression(fjall::CompressionType::None)
        .open()
        .unwrap();
    let rows = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    let marked = database
        .keyspace("marks", KeyspaceCreateOptions::default)
        .unwrap();
    for number in 0..batches {
        let (kept, removed, text) = (
            number.to_be_bytes(),
            (number + 1_000_000).to_be_bytes(),
            text(number),
        );
        let mut mark = marks.begin();
        for (kind, key, value) in [(0, &kept, &text[..]), (1, &removed, &[])] {
            mark.update(&head(kind, rows.id(), key, value));
            mark.update(key);
            mark.update(value);
        }
        let mut batch = database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&marked, *marks.name(), mark.finish());
        batch.insert(&rows, kept, text);
        batch.remove(&rows, removed);
        batch.commit().unwrap();
    }
    drop((rows, marked, database, directory));
    // fjall allocates 64 MB beforehand: less of it is quicker to read.
    let end = batches_of(&home).last().unwrap().to;
    let journal = fs::OpenOptions::new().write(true).open(journal(&home)).unwrap();
    assert!(journal.metadata().unwrap().len() >= 64 << 20);
    journal.set_len(end + 1000).unwrap();
    home
}

fn text(number: u64) -> Vec<u8> {
    let length = if number % 7 == 3 {
        5000
    } else {
        (number % 50) as usize
    };
    // Looks like the beginning and the end of batches, to lead the search astray.
    [&[1, 1, 0, 0, 0][..], &number.to_le_bytes(), b"\x03FJL\x03"]
        .concat()
        .repeat(1 + length / 18)
}

fn journal(home: &TempDir) -> PathBuf {
    journals(&home.path().join("data")).unwrap().pop().unwrap()
}

/// Prepares the journals and reads with fjall what is left.
fn prepared_and_read(home: &TempDir, clean: bool) -> (Prepared, BTreeMap<u64, Vec<u8>>) {
    let directory = Directory::open(home.path()).unwrap();
    let prepared = prepare(&directory, clean).unwrap();
    let database = Database::builder(directory.data()).open().unwrap();
    let rows = database.keyspace("rows", KeyspaceCreateOptions::default).unwrap();
    let rows = rows.iter().map(|row| row.into_inner().unwrap());
    (
        prepared,
        rows.map(|(key, value)| (u64::from_be_bytes((*key).try_into().unwrap()), value.to_vec()))
            .collect(),
    )
}

fn batches_of(home: &TempDir) -> Vec<Batch> {
    let marks = Marks::read(&home.path().join("data")).unwrap().marks;
    let scan = scan(&File::open(journal(home)).unwrap(), marks.as_ref()).unwrap();
    assert_eq!((scan.damaged, scan.torn), (false, false));
    scan.batches
}

fn overwrite(home: &TempDir, position: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(journal(home)).unwrap();
    file.write_all_at(bytes, position).unwrap();
}

fn assert_rows(rows: &BTreeMap<u64, Vec<u8>>, expected: impl Iterator<Item = u64>) {
    assert!(
        rows.keys().copied().eq(expected),
        "{:?}",
        rows.keys().collect::<Vec<_>>()
    );
    rows.iter()
        .for_each(|(number, found)| assert_eq!(*found, text(*number)));
}

#[test]
fn a_good_journal_is_left_alone_or_copied() {
    for clean in [true, false] {
        let home = database(50);
        assert_eq!(batches_of(&home).len(), 50);
        let (prepared, rows) = prepared_and_read(&home, clean);
        assert_eq!(prepared, Prepared::default());
        assert_rows(&rows, 0..50);
    }
}

#[test]
fn a_torn_end_is_no_damage_after_a_crash() {
    let home = database(50);
    let last = *batches_of(&home).last().unwrap();
    overwrite(&home, last.to - 6, &[0; 6]);
    let (prepared, rows) = prepared_and_read(&home, false);
    assert_eq!(prepared, Prepared::default());
    assert_rows(&rows, 0..49);
}

#[test]
fn a_torn_end_is_damage_after_an_orderly_close() {
    let home = database(50);
    let last = *batches_of(&home).last().unwrap();
    overwrite(&home, last.from + 20, &[0xFF; 4]);
    let (prepared, rows) = prepared_and_read(&home, true);
    assert_eq!((prepared.damaged, prepared.set_aside.len()), (1, 1));
    assert_rows(&rows, 0..49);
}

#[test]
fn a_hole_in_the_middle_costs_what_lay_in_it() {
    let home = database(200);
    let found = batches_of(&home);
    let (from, to) = (found[60].from + 3, found[65].from + 3);
    overwrite(&home, from, &vec![0; (to - from) as usize]);
    let (prepared, rows) = prepared_and_read(&home, false);
    assert_eq!((prepared.damaged, prepared.lost_commits), (1, 6));
    assert_rows(&rows, (0..60).chain(66..200));
    let aside = fs::read(&prepared.set_aside[0]).unwrap();
    assert_eq!(aside[from as usize..to as usize], vec![0; (to - from) as usize]);
}

#[test]
fn a_wrong_number_costs_one_batch_and_not_those_behind_it() {
    for (byte, bit) in [(5, 0x80), (6, 0x01), (12, 0x40), (5, 0x02)] {
        let home = database(100);
        let batch = batches_of(&home)[40];
        let mut seqno = batch.seqno.to_le_bytes();
        seqno[byte - 5] ^= bit;
        overwrite(&home, batch.from + 5, &seqno);
        let (prepared, rows) = prepared_and_read(&home, false);
        assert_eq!(prepared.damaged, 1, "byte {byte}, bit {bit}");
        assert_rows(&rows, (0..40).chain(41..100));
    }
}

#[test]
fn a_wrong_number_in_front_of_a_hole_costs_nothing_behind_the_hole() {
    for bit in [0x02, 0x10, 0x80] {
        let home = database(100);
        let found = batches_of(&home);
        let (wrong, hole) = (found[40], found[41]);
        overwrite(&home, wrong.from + 5, &(wrong.seqno ^ bit).to_le_bytes());
        overwrite(&home, hole.from + 20, &[0xFF; 4]);
        let (_, rows) = prepared_and_read(&home, false);
        let left: Vec<u64> = (0..100)
            .filter(|number| *number != 41 && rows.contains_key(number))
            .collect();
        let missing = 99 - left.len();
        assert!(
            missing == 0 || missing == 1 && !rows.contains_key(&40),
            "bit {bit}: {left:?}"
        );
    }
}

#[test]
fn numbers_are_believed_that_fit_together() {
    let far = 1_u64 << 40;
    for (numbers, expected) in [
        (&[1, 2, 3][..], &[0, 1, 2][..]),
        // Too high, too low, and two in a row.
        (&[1, 9, 3, 4], &[0, 2, 3]),
        (&[5, 6, 1, 8], &[0, 1, 3]),
        (&[1, 12, 13, 4, 5, 6, 7], &[0, 3, 4, 5, 6]),
        // The same number twice: the first is wrong, the second is.
        (&[1, 3, 3, 4], &[0, 2, 3]),
        (&[1, 2, 2, 4], &[0, 1, 3]),
        // Far away: dropped where others contradict it, kept where what lay between may have been lost.
        (&[1, 2, far], &[0, 1, 2]),
        (&[1, far, far + 1], &[0, 1, 2]),
        (&[1, far, 2, 3], &[0, 2, 3]),
        (&[far, 2, 3], &[1, 2]),
        (&[], &[]),
    ] {
        assert_eq!(longest_rising(numbers), expected, "{numbers:?}");
    }
}

#[test]
fn a_journal_of_garbage_leaves_an_empty_store() {
    let home = database(20);
    let end = batches_of(&home).last().unwrap().to;
    overwrite(&home, 0, &vec![0xA5; end as usize]);
    let (prepared, rows) = prepared_and_read(&home, true);
    assert_eq!(prepared.damaged, 1);
    assert_rows(&rows, 0..0);
}

#[test]
fn what_a_crash_left_of_a_copy_is_removed() {
    let home = database(5);
    let left = journal(&home).with_extension("new");
    fs::write(&left, b"half").unwrap();
    let (prepared, rows) = prepared_and_read(&home, true);
    assert_eq!(prepared, Prepared::default());
    assert_rows(&rows, 0..5);
    assert!(!left.exists());
}

/// How many cases met a batch that was lost; guards against a test that damages nothing.
static LOST: AtomicU64 = AtomicU64::new(0);

fn any_damage_costs_only_what_it_touches(damages: &[(prop::sample::Index, u8)]) -> Result<(), TestCaseError> {
    let home = database(40);
    let found = batches_of(&home);
    let end = found.last().unwrap().to;
    let mut touched = std::collections::BTreeSet::new();
    let content = fs::read(journal(&home)).unwrap();
    for (place, bits) in damages {
        let place = place.index(end as usize);
        overwrite(&home, place as u64, &[content[place] ^ bits]);
        touched.insert(found.partition_point(|batch| batch.to <= place as u64) as u64);
    }
    let (_, rows) = prepared_and_read(&home, false);
    let mut lost = 0;
    for number in 0..40 {
        match rows.get(&number) {
            Some(found) => prop_assert_eq!(found, &text(number)),
            None => {
                prop_assert!(
                    touched.contains(&number),
                    "{} is lost, {:?} were touched",
                    number,
                    touched
                );
                lost += 1;
            }
        }
    }
    LOST.fetch_add(lost, Ordering::SeqCst);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 100, ..ProptestConfig::default() })]
    #[test]
    fn damage_costs_only_what_it_touches(damages in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4)) {
        any_damage_costs_only_what_it_touches(&damages)?;
        prop_assert!(LOST.load(Ordering::SeqCst) > 0);
    }
}
