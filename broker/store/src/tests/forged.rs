//! A client publishes bytes that look like a batch of the journal, and the journal is damaged in front of them.

use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::{
    damage::{Damaged, commit, waiting},
    message, publish, publish_message,
};
use crate::{Message, Operation};

/// Length of the beginning of a batch; its number is in the last 8 bytes and not covered by a checksum.
const START: usize = 13;

/// A number behind all others: whoever is asked believes that what lay between was lost.
const LATE: u64 = 1 << 20;

fn put_session(client_id: &str) -> Operation {
    Operation::PutSession {
        client_id: client_id.to_owned(),
        state: "all rights".into(),
    }
}

/// Where the last batch of a journal begins and ends.
fn last_batch(content: &[u8]) -> (usize, usize) {
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    // All batches end with the same four bytes.
    let mut before = content[..end - 4].windows(4);
    let from = before.rposition(|window| window == b"FJL\x03").unwrap() + 4;
    assert_eq!(content[from], 1);
    (from, end)
}

/// The journal's bytes of the last batch of a store that works the same way: all that a client can learn or guess.
fn batch_of_another_store(operation: Operation) -> Vec<u8> {
    let other = Damaged::with(|store, _| drop(commit(store, vec![operation])));
    let (_, content) = other.shorten();
    let (from, to) = last_batch(&content);
    let mut batch = content[from..to].to_vec();
    batch[START - 8..START].copy_from_slice(&LATE.to_le_bytes());
    batch
}

/// The batch without the item that marks it, and with a checksum that is right again.
fn without_mark(batch: &[u8]) -> Vec<u8> {
    let mark = 1 + 20 + 16 + 16;
    let (start, items) = (&batch[..START], &batch[START + mark..batch.len() - START]);
    let count = u32::from_le_bytes(start[1..5].try_into().unwrap()) - 1;
    let checksum = xxhash_rust::xxh3::xxh3_64(items);
    [
        &[1][..],
        &count.to_le_bytes(),
        &LATE.to_le_bytes(),
        items,
        &[3],
        &checksum.to_le_bytes(),
        b"FJL\x03",
    ]
    .concat()
}

fn with_payload(payload: Vec<u8>) -> Message {
    let mut record = (*message("").record).clone();
    record.payload = Bytes::from(payload);
    Message {
        record: record.into(),
        ..message("")
    }
}

#[test]
fn what_a_client_published_is_never_taken_for_a_batch_of_the_journal() {
    let marked = batch_of_another_store(put_session("intruder"));
    for forged in [without_mark(&marked), marked] {
        // Both in the middle of a journal and at its end.
        for follows in [true, false] {
            let damaged = Damaged::with(|store, receivers| {
                commit(store, vec![publish("first", receivers)]);
                commit(
                    store,
                    vec![publish_message(with_payload(forged.clone()), receivers)],
                );
                if follows {
                    commit(store, vec![publish("last", receivers)]);
                }
            });
            let (file, content) = damaged.shorten();
            let place = content
                .windows(forged.len())
                .position(|window| window == forged)
                .unwrap();
            // All in front of the payload is torn, as far as its batch goes.
            file.write_all_at(&[0xFF; 16], place as u64 - 16).unwrap();
            let (store, report) = damaged.open();
            assert!(store.sessions(None, 9).unwrap().is_empty(), "{report:?}");
            let expected = if follows { vec![1, 3] } else { vec![1] };
            assert_eq!(waiting(&store, damaged.receivers[0]), expected);
            assert_eq!(report.damaged_journals, u64::from(follows));
        }
    }
}

#[test]
fn a_batch_is_whole_only_with_its_mark() {
    for (bit, expected) in [(0, 1), (1, 0)] {
        let damaged = Damaged::with(|store, _| drop(commit(store, vec![put_session("owner")])));
        let (file, content) = damaged.shorten();
        let (from, to) = last_batch(&content);
        let mut items = content[from + START..to - START].to_vec();
        // The first bit of the mark, and a checksum that is right.
        items[21 + 16] ^= bit;
        let checksum = xxhash_rust::xxh3::xxh3_64(&items);
        file.write_all_at(&items, (from + START) as u64).unwrap();
        file.write_all_at(&checksum.to_le_bytes(), (to - START + 1) as u64)
            .unwrap();
        let (store, _) = damaged.open();
        assert_eq!(store.sessions(None, 9).unwrap().len(), expected);
    }
}

#[test]
fn a_store_of_a_version_without_marks_keeps_what_it_has() {
    let damaged = Damaged::with(|store, receivers| {
        (0..5).for_each(|_| drop(commit(store, vec![publish("m", receivers)])));
    });
    for file in ["marks", "marks.copy"] {
        std::fs::remove_file(damaged.path().join("data").join(file)).unwrap();
    }
    let (store, report) = damaged.open();
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(waiting(&store, damaged.receivers[0]), [1, 2, 3, 4, 5]);
    commit(&store, vec![publish("after", &damaged.receivers)]);
    drop(store);
    let (store, report) = damaged.open();
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(waiting(&store, damaged.receivers[0]), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_damaged_copy_of_the_marks_is_restored_and_told() {
    let damaged = Damaged::with(|store, receivers| drop(commit(store, vec![publish("m", receivers)])));
    let file = damaged.path().join("data/marks");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"nonsense").unwrap();
    let (store, report) = damaged.open();
    assert_eq!((report.restored, report.damaged_places()), (1, 1));
    assert_eq!(waiting(&store, damaged.receivers[0]), [1]);
    assert_eq!(std::fs::read(&file).unwrap(), whole);
}
