//! A disk that gives back something else than was written: the store starts, and the ledger says what is missing.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use foreshore_faultfs::flip_bit;
use foreshore_record::DropReason;
use tempfile::TempDir;

use super::{everything, options, publish};
use crate::{
    Applied, Batch, BrokerTime, EntryId, Limits, OpenReport, Operation, ReceiverId, Settlement, SharedStore,
    StoreError, StoreOptions, fjall_store::note, keys::Table,
};

pub(super) struct Damaged {
    home: TempDir,
    pub(super) receivers: Vec<ReceiverId>,
}

pub(super) fn commit(store: &SharedStore, operations: Vec<Operation>) -> Vec<Applied> {
    let first_id = store.position().next_id;
    store
        .commit(&[Batch {
            now: BrokerTime(0),
            first_id,
            operations,
        }])
        .unwrap()
        .remove(0)
}

fn settle(receiver: ReceiverId, id: EntryId) -> Operation {
    Operation::Settle {
        receiver,
        epoch: 0,
        settlements: vec![Settlement::delivered(id)],
    }
}

impl Damaged {
    /// A store with two receivers that was not closed in order: all of it is in the journal.
    pub(super) fn with(work: impl FnOnce(&SharedStore, &[ReceiverId])) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (store, _) = crate::open(home.path(), &options()).unwrap();
        let put = |name: &str| Operation::PutReceiver {
            name: name.to_owned(),
            limits: Limits::default(),
        };
        commit(&store, vec![put("dataflow/a"), put("session/b")]);
        let receivers: Vec<_> = store
            .receivers(0, 9)
            .unwrap()
            .iter()
            .map(|receiver| receiver.id)
            .collect();
        work(&store, &receivers);
        Self { home, receivers }
    }

    pub(super) fn journal(&self) -> PathBuf {
        let mut files: Vec<_> = fs::read_dir(self.home.path().join("data"))
            .unwrap()
            .map(|file| file.unwrap().path())
            .collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "jnl"));
        files.sort();
        files.pop().unwrap()
    }

    pub(super) fn path(&self) -> &Path {
        self.home.path()
    }

    /// Cuts off what fjall allocates beforehand, 64 MB: less of it is quicker to read. Gives back what is left.
    pub(super) fn shorten(&self) -> (fs::File, Vec<u8>) {
        let journal = self.journal();
        let mut content = fs::read(&journal).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&journal).unwrap();
        let blank = [0; 4096];
        while content.ends_with(&blank) {
            content.truncate(content.len() - blank.len());
        }
        file.set_len(content.len() as u64).unwrap();
        (file, content)
    }

    /// Flips a bit in the rows with this payload; tells how many there were.
    pub(super) fn flip(&self, payload: &str) -> usize {
        let (file, content) = self.shorten();
        let places: Vec<_> = content
            .windows(payload.len())
            .enumerate()
            .filter(|(_, window)| *window == payload.as_bytes())
            .map(|(place, _)| place)
            .collect();
        places
            .iter()
            .for_each(|place| file.write_all_at(b"\xFF", *place as u64).unwrap());
        places.len()
    }

    pub(super) fn open(&self) -> (SharedStore, OpenReport) {
        crate::open(self.home.path(), &options()).unwrap()
    }
}

/// Ids that wait, after a check that the ledger agrees with them.
pub(super) fn waiting(store: &SharedStore, receiver: ReceiverId) -> Vec<EntryId> {
    let page = store.read(receiver, everything(), BrokerTime(0)).unwrap();
    assert!(page.damaged.is_empty(), "{:?}", page.damaged);
    let totals = store.totals(receiver).unwrap().unwrap();
    assert!(totals.ledger.balances(), "{totals:?}");
    assert_eq!(totals.ledger.waiting, page.entries.len() as u64);
    assert_eq!(
        totals.waiting_bytes,
        page.entries
            .iter()
            .map(|entry| u64::from(entry.size))
            .sum::<u64>()
    );
    page.entries.iter().map(|entry| entry.id).collect()
}

#[test]
fn entries_of_a_lost_commit_are_counted_as_corrupt() {
    let damaged = Damaged::with(|store, receivers| {
        for number in 0..20 {
            let receivers = if number % 2 == 0 {
                receivers
            } else {
                &receivers[..1]
            };
            commit(store, vec![publish(&format!("payload {number:02}"), receivers)]);
        }
    });
    assert_eq!(damaged.flip("payload 04"), 1);
    assert_eq!(damaged.flip("payload 09"), 1);
    let (store, report) = damaged.open();
    assert_eq!(
        (report.damaged_journals, report.lost_commits, report.lost_entries),
        (1, 2, 3)
    );
    assert!(report.lost_something() && report.set_aside[0].exists());
    let [a, b] = damaged.receivers[..] else { panic!() };
    assert_eq!(
        waiting(&store, a),
        (1..=20).filter(|id| ![5, 10].contains(id)).collect::<Vec<_>>()
    );
    assert_eq!(waiting(&store, b), [1, 3, 7, 9, 11, 13, 15, 17, 19]);
    let dropped = |receiver| store.totals(receiver).unwrap().unwrap().ledger.dropped;
    assert_eq!((dropped(a)["corrupt"], dropped(b)["corrupt"]), (2, 1));
    // It goes on from there, and the damage is not met twice.
    commit(&store, vec![publish("after", &[a]), settle(a, 1)]);
    drop(store);
    let (store, report) = damaged.open();
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(waiting(&store, a).last(), Some(&21));
}

#[test]
fn entries_whose_settlement_is_lost_wait_again() {
    let damaged = Damaged::with(|store, receivers| {
        let [a, _] = receivers[..] else { panic!() };
        (0..6).for_each(|_| drop(commit(store, vec![publish("m", &[a])])));
        let drop = Operation::DropReceiver {
            receiver: 99,
            reason: DropReason::RELEASED,
        };
        let marker = Operation::PutSession {
            client_id: "marker".to_owned(),
            state: "x".into(),
        };
        commit(store, vec![settle(a, 4), settle(a, 5), marker, drop]);
        commit(store, vec![settle(a, 1)]);
    });
    assert_eq!(damaged.flip("marker"), 1);
    let (store, report) = damaged.open();
    assert_eq!(
        (report.lost_entries, report.returned_entries, report.lost_commits),
        (0, 2, 1)
    );
    let a = damaged.receivers[0];
    assert_eq!(waiting(&store, a), [2, 3, 4, 5, 6]);
    let totals = store.totals(a).unwrap().unwrap();
    assert_eq!((totals.head, totals.ledger.delivered), (2, 1));
}

#[test]
fn what_lies_below_the_head_was_settled() {
    let damaged = Damaged::with(|store, receivers| {
        let [a, b] = receivers[..] else { panic!() };
        (0..6).for_each(|_| drop(commit(store, vec![publish("m", &[a, b])])));
        let marker = Operation::PutSession {
            client_id: "marker".to_owned(),
            state: "x".into(),
        };
        commit(store, vec![settle(a, 1), settle(a, 2), marker]);
        commit(store, vec![settle(a, 3)]);
    });
    assert_eq!(damaged.flip("marker"), 1);
    let (store, report) = damaged.open();
    assert_eq!((report.lost_entries, report.returned_entries), (0, 0));
    assert_eq!(waiting(&store, damaged.receivers[0]), [4, 5, 6]);
    assert_eq!(waiting(&store, damaged.receivers[1]), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn the_last_commits_may_be_lost_with_everything_that_knew_of_them() {
    let damaged = Damaged::with(|store, receivers| {
        (0..5).for_each(|number| {
            drop(commit(
                store,
                vec![publish(&format!("payload {number}"), receivers)],
            ))
        });
        store.close().unwrap();
    });
    assert_eq!(damaged.flip("payload 4"), 1);
    let (store, report) = damaged.open();
    assert_eq!(
        (report.clean, report.damaged_journals, report.lost_commits),
        (true, 1, 1)
    );
    assert_eq!(waiting(&store, damaged.receivers[0]), [1, 2, 3, 4]);
}

#[test]
fn a_receiver_whose_creation_is_lost_leaves_nothing_that_counts() {
    let damaged = Damaged::with(|store, _| {
        let limits = Limits::default();
        commit(
            store,
            vec![Operation::PutReceiver {
                name: "session/unlucky".to_owned(),
                limits,
            }],
        );
        commit(store, vec![publish("m", &[3])]);
    });
    // Its name is in its two rows.
    assert_eq!(damaged.flip("session/unlucky"), 2);
    let (store, report) = damaged.open();
    assert_eq!(report.lost_commits, 1);
    // The totals outlived the name.
    let names: Vec<_> = store
        .receivers(0, 9)
        .unwrap()
        .into_iter()
        .map(|receiver| receiver.name)
        .collect();
    assert_eq!(names, ["dataflow/a", "session/b", "lost/3"]);
    assert_eq!(waiting(&store, 3), [1]);
    let created = commit(
        &store,
        vec![Operation::PutReceiver {
            name: "c".to_owned(),
            limits: Limits::default(),
        }],
    );
    assert_eq!(
        created,
        [Applied::Receiver {
            receiver: 4,
            created: true
        }]
    );
}

#[test]
fn rows_outlive_every_list_of_tables() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    let mut lists = 0;
    for keyspace in fs::read_dir(home.path().join("data/keyspaces")).unwrap() {
        fs::write(keyspace.unwrap().path().join("current"), b"nonsense").unwrap();
        lists += 1;
    }
    let (store, report) = crate::open(home.path(), &small_memtables()).unwrap();
    assert_eq!((report.unreadable, report.set_aside.len()), (lists, 0));
    assert_eq!(
        (report.lost_entries, report.returned_entries),
        (0, 0),
        "{report:?}"
    );
    assert_eq!((waiting(&store, 1).len(), waiting(&store, 2).len()), (2000, 667));
    commit(&store, vec![publish("after", &[1])]);
    drop(store);
    let (store, report) = crate::open(home.path(), &small_memtables()).unwrap();
    assert!(!report.lost_something(), "{report:?}");
    assert_eq!(waiting(&store, 1).len(), 2001);
}

#[test]
fn a_version_that_is_damaged_or_gone_is_restored() {
    let damaged = Damaged::with(|store, receivers| drop(commit(store, vec![publish("m", receivers)])));
    let version = damaged.path().join("data/version");
    let whole = fs::read(&version).unwrap();
    for damage in [Some(b"FJL\x02".as_slice()), None] {
        match damage {
            Some(content) => fs::write(&version, content).unwrap(),
            None => fs::remove_file(&version).unwrap(),
        }
        let (store, report) = damaged.open();
        assert_eq!((report.restored, report.damaged_places()), (1, 1));
        assert!(!report.lost_something());
        assert_eq!(waiting(&store, damaged.receivers[0]), [1]);
        assert_eq!(fs::read(&version).unwrap(), whole);
    }
}

/// A store with so many messages that most of them are in tables; closed in order.
pub(super) fn large(home: &Path) {
    large_with(home, &options());
}

pub(super) fn large_with(home: &Path, options: &StoreOptions) {
    let options = StoreOptions {
        encryption_keys: options.encryption_keys.clone(),
        ..small_memtables()
    };
    let (store, _) = crate::open(home, &options).unwrap();
    let put = |name: &str| Operation::PutReceiver {
        name: name.to_owned(),
        limits: Limits::default(),
    };
    commit(&store, vec![put("dataflow/a"), put("session/b")]);
    for number in 0..2000 {
        let body = text(number);
        commit(
            &store,
            vec![publish(
                &format!("{number} {body}"),
                if number % 3 == 0 { &[1, 2] } else { &[1] },
            )],
        );
    }
    assert_eq!(waiting(&store, 1).len(), 2000);
    store.close().unwrap();
    drop(store);
    only_tables(home, &options);
}

/// Text of 200 characters that can't be compressed much.
pub(super) fn text(number: u64) -> String {
    let digits = |place: u64| format!("{:05}", (number * 7919 + place * 104_729) % 99_991);
    (0..40).map(digits).collect()
}

/// Brings all rows of a closed store to tables: what a journal holds too is not lost with its block.
pub(super) fn only_tables(home: &Path, options: &StoreOptions) {
    crate::offline::compact(home, options, false).unwrap();
    for file in fs::read_dir(home.join("data")).unwrap().map(Result::unwrap) {
        if file
            .path()
            .extension()
            .is_some_and(|extension| extension == "jnl")
        {
            let journal = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
            journal.set_len(0).unwrap();
        }
    }
}

pub(super) fn small_memtables() -> StoreOptions {
    StoreOptions {
        memtable_bytes: 64 << 10,
        ..options()
    }
}

/// The largest file of the queue's tables.
fn largest_table(home: &Path) -> PathBuf {
    let tables = home.join("data/keyspaces/1/tables");
    let tables = fs::read_dir(tables).unwrap().map(|file| file.unwrap().path());
    tables
        .max_by_key(|file| fs::metadata(file).unwrap().len())
        .unwrap()
}

/// Spoils the largest file of the queue's tables, in the middle of its first blocks.
pub(super) fn spoil_largest_table(home: &Path) {
    let table = largest_table(home);
    assert!(fs::metadata(&table).unwrap().len() > 50_000);
    fs::OpenOptions::new()
        .write(true)
        .open(&table)
        .unwrap()
        .write_all_at(&[0xA5; 64], 20_000)
        .unwrap();
}

#[test]
fn a_block_that_can_not_be_read_costs_what_is_in_it() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    spoil_largest_table(home.path());

    // It is met by a read; then nothing more is committed.
    let open = || crate::open(home.path(), &small_memtables()).unwrap();
    let (store, report) = open();
    assert!(!report.lost_something());
    assert!(store.read(1, everything(), BrokerTime(0)).is_err());
    assert!(store.maintain(BrokerTime(0)).is_err());
    drop(store);

    let (store, report) = open();
    assert!(report.unreadable > 0 && report.lost_entries > 0, "{report:?}");
    let (a, b) = (waiting(&store, 1), waiting(&store, 2));
    assert_eq!(a.len() + b.len() + report.lost_entries as usize, 2000 + 667);
    // A block holds some 70 entries, and the search for its end may pass over a few more.
    assert!((1..500).contains(&report.lost_entries), "{report:?}");
    let dropped = |receiver| store.totals(receiver).unwrap().unwrap().ledger.dropped;
    let corrupt = [1, 2].map(|receiver| dropped(receiver).get("corrupt").copied().unwrap_or_default());
    assert_eq!(corrupt.iter().sum::<u64>(), report.lost_entries);
    commit(&store, vec![publish("after", &[1, 2])]);
    store.close().unwrap();
    drop(store);
    let (store, report) = open();
    assert!(report.clean && !report.lost_something(), "{report:?}");
    assert_eq!(waiting(&store, 1).last(), waiting(&store, 2).last());
}

#[test]
fn a_block_whose_header_is_damaged_costs_what_is_in_it() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    let table = largest_table(home.path());
    let content = fs::read(&table).unwrap();
    // Its second block: the header of the first tells its length.
    let length = u32::from_le_bytes(content[21..25].try_into().unwrap());
    let second = 33 + u64::from(length);
    let file = fs::OpenOptions::new().write(true).open(&table).unwrap();
    file.write_all_at(&[0xFF; 4], second + 21).unwrap();
    fs::write(home.path().join("suspect"), b"").unwrap();
    let (store, report) = crate::open(home.path(), &small_memtables()).unwrap();
    assert_eq!((report.unreadable, report.set_aside.len()), (1, 0));
    assert!((1..150).contains(&report.lost_entries), "{report:?}");
    let left = waiting(&store, 1).len() + waiting(&store, 2).len();
    assert_eq!(left as u64, 2667 - report.lost_entries);
}

/// Flips a bit of the first block of the newest table of a keyspace.
fn flip_first_block(home: &Path, keyspace: usize) {
    let tables = fs::read_dir(home.join(format!("data/keyspaces/{keyspace}/tables"))).unwrap();
    let numbers = tables.map(|file| file.unwrap().file_name().into_string().unwrap().parse::<u64>());
    let newest = numbers.map(Result::unwrap).max().unwrap();
    let table = home.join(format!("data/keyspaces/{keyspace}/tables/{newest}"));
    flip_bit(&table, 64, 2).unwrap();
}

#[test]
fn what_a_start_itself_reads_is_mended_by_that_start() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    flip_first_block(home.path(), Table::Meta as usize + 1);
    let (store, report) = crate::open(home.path(), &small_memtables()).unwrap();
    assert!(report.clean && report.unreadable == 1, "{report:?}");
    assert_eq!((waiting(&store, 1).len(), waiting(&store, 2).len()), (2000, 667));
    store.close().unwrap();
    drop(store);
    let (_, report) = crate::open(home.path(), &small_memtables()).unwrap();
    assert!(!report.lost_something(), "{report:?}");
}

#[test]
fn what_only_compaction_reads_is_mended_too() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    // The marks of batches are rows that nobody asks for.
    flip_first_block(home.path(), Table::ALL.len() + 1);
    for unreadable in [1, 0] {
        fs::write(home.path().join("suspect"), b"").unwrap();
        let (store, report) = crate::open(home.path(), &small_memtables()).unwrap();
        assert_eq!((report.unreadable, report.lost_entries), (unreadable, 0));
        store.close().unwrap();
    }
}

#[test]
fn every_bit_of_a_list_of_tables_is_looked_at() {
    let home = tempfile::tempdir().unwrap();
    large(home.path());
    let data = home.path().join("data");
    let damaged = || crate::fjall_store::survey::check(&data).unwrap().count;
    assert_eq!(damaged(), 0);
    let keyspace = data.join("keyspaces/1");
    let current = fs::read(keyspace.join("current")).unwrap();
    let number = u64::from_le_bytes(*current.first_chunk().unwrap());
    for name in ["current".to_owned(), format!("v{number}")] {
        let file = keyspace.join(&name);
        let whole = fs::read(&file).unwrap();
        for byte in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << (byte % 8);
            fs::write(&file, flipped).unwrap();
            assert_eq!(damaged(), 1, "byte {byte} of {name}");
        }
        fs::write(&file, whole).unwrap();
    }
}

#[test]
fn a_creation_that_was_interrupted_starts_anew() {
    for (step, make) in [
        ("nothing", &[][..]),
        ("a journal", &["0.jnl"]),
        ("the folder of keyspaces", &["0.jnl", "keyspaces/"]),
    ] {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("format"), "foreshore-store 1\n").unwrap();
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("lock"), b"").unwrap();
        for name in make {
            match name.strip_suffix('/') {
                Some(folder) => fs::create_dir(data.join(folder)).unwrap(),
                None => fs::write(data.join(name), b"").unwrap(),
            }
        }
        let (store, report) = crate::open(home.path(), &options()).unwrap();
        assert!(!report.lost_something(), "{step}");
        commit(&store, vec![publish("m", &[])]);
    }
}

#[test]
fn a_second_process_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (store, report) = crate::open(home.path(), &options()).unwrap();
    assert!(report.created);
    // A lock belongs to the open file, so another opening is as good as another process.
    let error = crate::open(home.path(), &options()).err().unwrap();
    assert!(
        matches!(&error, StoreError::InUse { path } if path == home.path()),
        "{error}"
    );
    assert!(error.to_string().contains("in use by another process"));
    drop(store);
    assert!(!crate::open(home.path(), &options()).unwrap().1.created);
}

#[test]
fn another_format_is_refused() {
    let home = tempfile::tempdir().unwrap();
    drop(crate::open(home.path(), &options()).unwrap());
    let format = home.path().join("format");
    let refused = |found: &str| {
        let error = crate::open(home.path(), &options()).err().unwrap().to_string();
        assert!(
            error.contains(found) && error.contains("\"foreshore-store 1 or foreshore-store 2\" is allowed"),
            "{error}"
        );
    };
    // A later version says which one it is in a file that is whole.
    fs::write(&format, note::content("foreshore-store 3")).unwrap();
    refused("foreshore-store 3");
    // Nothing else tells whose it is.
    for name in ["marks", "marks.copy"] {
        fs::remove_file(home.path().join("data").join(name)).unwrap();
    }
    fs::write(&format, "something else").unwrap();
    refused("something else");
    fs::remove_file(&format).unwrap();
    refused("none");
}

#[test]
fn small_files_that_are_damaged_are_restored_and_told() {
    let damaged = Damaged::with(|store, receivers| {
        (0..3).for_each(|_| drop(commit(store, vec![publish("m", receivers)])));
    });
    let home = damaged.path();
    let (format, clean) = (home.join("format"), home.join("clean"));
    let first = fs::read(&format).unwrap();
    let of_before: Option<&[u8]> = Some(b"foreshore-store 1");
    let spoilt = [
        (&format, Some(&b"foreshore-store 9\n\xFF\n"[..])),
        (&format, of_before),
        (&format, Some(b"foreshore-store 1\nfff\n")),
        (&format, None),
        (&clean, Some(b"12\n0123456789abcdef\n")),
    ];
    for (file, content) in spoilt {
        match content {
            Some(content) => fs::write(file, content).unwrap(),
            None => fs::remove_file(file).unwrap(),
        }
        let (store, report) = damaged.open();
        let told = u64::from(content != of_before);
        assert_eq!((report.restored, report.damaged_places()), (told, told));
        assert!(!report.lost_something(), "{report:?}");
        assert_eq!(waiting(&store, 1).len(), 3);
        assert_eq!(fs::read(&format).unwrap(), first);
        store.close().unwrap();
    }
}

#[test]
fn a_directory_that_can_not_be_written_is_named() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, b"").unwrap();
    for path in [file.join("store"), PathBuf::from("/proc/foreshore")] {
        let error = crate::open(&path, &options()).err().unwrap();
        assert!(
            matches!(&error, StoreError::Io { path: named, .. } if *named == path),
            "{error:?}"
        );
    }
}
