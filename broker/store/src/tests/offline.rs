//! A store that no broker has open: proved, read and compacted, and not changed by being looked at.

use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use rustix::io::Errno;

use super::{damage::Damaged, message, options, publish};
use crate::{
    Applied, Batch, Blob, BrokerTime, Limits, Operation, Publish, Settlement, SharedStore, StoreError,
    offline::{ClosedStore, Contents, Judges, Row, Severity, Verification, compact},
};

fn commit(store: &SharedStore, operations: Vec<Operation>) -> Vec<Applied> {
    let first_id = store.position().next_id;
    let now = BrokerTime(0);
    let batch = Batch {
        now,
        first_id,
        operations,
    };
    store.commit(&[batch]).unwrap().remove(0)
}

fn any(_: &Blob) -> Result<(), String> {
    Ok(())
}

/// Finds everything right that the store does not understand.
const JUDGES: Judges<'static> = Judges {
    session: &any,
    will: &any,
    state: &|_| Ok(()),
};

/// Looks at a store, and makes sure that not a byte of it changes by that.
fn look<T>(home: &Path, look: impl FnOnce(&ClosedStore) -> T) -> T {
    let before = content(home);
    let scratch = tempfile::tempdir().unwrap();
    let store = ClosedStore::open(home, scratch.path(), &options()).unwrap();
    let seen = look(&store);
    drop(store);
    assert!(before == content(home), "the store was changed");
    seen
}

pub(super) fn verify(home: &Path) -> Verification {
    look(home, |store| store.verify(JUDGES).unwrap())
}

fn rows(home: &Path, contents: Contents) -> Vec<Row> {
    look(home, |store| {
        let mut rows = Vec::new();
        let mut visit = |row| {
            rows.push(row);
            ControlFlow::Continue(())
        };
        store.each(contents, &mut visit).unwrap();
        rows
    })
}

/// All files, with what is in them but zeros at their end.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_dir() {
            files.extend(content(&file.path()));
        } else {
            let mut bytes = match fs::read(file.path()) {
                // What was set aside may have sectors that the disk can't read.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Vec::new(),
                read => read.unwrap(),
            };
            let length = bytes.len();
            let blank = [0; 4096];
            while bytes.ends_with(&blank) {
                bytes.truncate(bytes.len() - blank.len());
            }
            bytes.extend(length.to_le_bytes());
            files.insert(file.path(), bytes);
        }
    }
    files
}

fn damage(verification: &Verification) -> Vec<(&str, &str, &str)> {
    verification
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Damage)
        .map(|finding| {
            (
                finding.place.as_str(),
                finding.key.as_str(),
                finding.found.as_str(),
            )
        })
        .collect()
}

/// Two receivers, entries for both and for one, some settled, retained messages, a session.
fn filled() -> Damaged {
    let filled = Damaged::with(|store, receivers| {
        for number in 0..20 {
            let to = if number % 2 == 0 {
                receivers
            } else {
                &receivers[..1]
            };
            commit(store, vec![publish(&format!("payload {number:02}"), to)]);
        }
        let settlements = vec![Settlement::delivered(1), Settlement::delivered(2)];
        let settle = Operation::Settle {
            receiver: receivers[0],
            epoch: 0,
            settlements,
        };
        let session = Operation::PutSession {
            client_id: "client".to_owned(),
            state: "{}".into(),
        };
        let retained = Operation::Publish(Publish {
            message: message("kept"),
            receivers: Vec::new(),
            update_retained: true,
            receipt: None,
        });
        commit(store, vec![settle, session, retained]);
    });
    filled.shorten();
    filled
}

#[test]
fn a_sound_store_is_proved_and_left_alone() {
    let store = filled();
    // Not closed in order.
    let crashed = verify(store.path());
    assert!(crashed.is_sound() && !crashed.closed_in_order, "{crashed:?}");
    let (open, _) = store.open();
    open.close().unwrap();
    drop(open);
    let closed = verify(store.path());
    assert!(closed.is_sound() && closed.closed_in_order, "{closed:?}");
    assert_eq!((closed.damage, closed.minor), (0, 0), "{:?}", closed.findings);
    let ledger = closed.ledger;
    assert_eq!(
        (ledger.paths, ledger.received, ledger.delivered, ledger.waiting),
        (2, 30, 2, 28)
    );
    let rows = |name: &str| {
        closed
            .keyspaces
            .iter()
            .find(|keyspace| keyspace.name == name)
            .unwrap()
            .rows
    };
    assert_eq!(
        (rows("queue"), rows("body"), rows("left"), rows("retained")),
        (28, 10, 1, 1)
    );
    assert!(store.open().1.clean);
}

#[test]
fn a_damaged_journal_is_named_with_what_follows_from_it() {
    let store = filled();
    assert_eq!(store.flip("payload 04"), 1);
    let found = verify(store.path());
    let damage = damage(&found);
    let (place, key, _) = damage[0];
    assert!(
        place.starts_with("data/") && place.ends_with(".jnl") && key.starts_with("bytes "),
        "{damage:?}"
    );
    assert_eq!(found.journals.iter().map(|journal| journal.lost).sum::<u64>(), 1);
    // An entry of each of the two paths is gone with the batch.
    let imbalances = damage
        .iter()
        .filter(|(place, _, found)| *place == "path" && found.starts_with("received "));
    assert_eq!(imbalances.count(), 2, "{damage:?}");
    assert!(!found.is_sound());
    // What is left is still read.
    let payloads = rows(store.path(), Contents::Queue(store.receivers[0]));
    assert_eq!(payloads.len(), 17);
    // The start of a broker mends it.
    let (open, report) = store.open();
    assert_eq!(report.lost_entries, 2);
    open.close().unwrap();
    drop(open);
    assert!(verify(store.path()).is_sound());
}

#[test]
fn rows_are_read_one_by_one_until_told_to_stop() {
    let store = filled();
    let entries = rows(store.path(), Contents::Queue(store.receivers[1]));
    let ids: Vec<_> = entries
        .iter()
        .map(|row| match row {
            Row::Entry(entry) => (
                entry.id,
                String::from_utf8(entry.record.payload.to_vec()).unwrap(),
            ),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.len(), 10);
    assert_eq!(ids[1], (3, "payload 02".to_owned()));
    let receivers = rows(store.path(), Contents::Receivers);
    let Row::Receiver(receiver, totals) = &receivers[0] else {
        panic!("{receivers:?}")
    };
    assert_eq!(
        (receiver.name.as_str(), totals.ledger.waiting),
        ("dataflow/a", 18)
    );
    assert!(
        matches!(&rows(store.path(), Contents::Sessions)[..], [Row::Session(blob)] if blob.client_id == "client")
    );
    assert!(matches!(
        &rows(store.path(), Contents::Retained)[..],
        [Row::Retained(_)]
    ));
    look(store.path(), |store| {
        assert_eq!(store.find_receiver("session/b").unwrap(), Some(2));
        let mut count = 0;
        let mut visit = |_| {
            count += 1;
            ControlFlow::Break(())
        };
        store.each(Contents::Queue(1), &mut visit).unwrap();
        assert_eq!(count, 1);
    });
}

#[test]
fn a_block_that_can_not_be_read_is_named_and_passed_over() {
    let store = TempDir::new().unwrap();
    super::damage::large(store.path());
    super::damage::spoil_largest_table(store.path());
    let found = verify(store.path());
    let queue = found
        .keyspaces
        .iter()
        .find(|keyspace| keyspace.name == "queue")
        .unwrap();
    assert!(queue.unreadable > 0 && queue.rows > 2000, "{queue:?}");
    let damage = damage(&found);
    assert!(
        damage
            .iter()
            .any(|(place, key, _)| *place == "queue" && key.starts_with("receiver 1 entry ")),
        "{damage:?}"
    );
    let rows = rows(store.path(), Contents::Queue(1));
    let unreadable = rows.iter().filter(|row| matches!(row, Row::Damaged(_))).count();
    assert!(unreadable > 0 && rows.len() > 1500, "{unreadable} {}", rows.len());
}

#[test]
fn states_that_the_store_does_not_understand_are_judged_by_who_does() {
    let store = filled();
    let found = look(store.path(), |store| {
        store
            .verify(Judges {
                session: &|blob| Err(format!("no session: {:?}", blob.state)),
                ..JUDGES
            })
            .unwrap()
    });
    assert_eq!(damage(&found), [("session", "client", "no session: b\"{}\"")]);
}

#[test]
fn a_shared_record_is_compared_with_its_entries() {
    use crate::{
        engine::{Change, Engine},
        fjall_store::{engine::FjallEngine, files::Directory},
        keys::{self, Table},
        record,
    };
    let store = filled();
    let write = |table, key: [u8; 8], value| {
        let directory = Directory::open(store.path()).unwrap();
        let engine = FjallEngine::start(&directory, &options()).unwrap();
        let key = key.as_slice().into();
        engine.write(vec![Change { table, key, value }]).unwrap();
    };
    drop(store.open());
    // Entry 5 is in two queues, entry 4 in one that holds it itself.
    write(Table::Left, keys::number(5), Some(record::encode_references(1)));
    write(Table::Left, keys::number(7), Some(record::encode_references(3)));
    write(Table::Left, keys::number(4), Some(record::encode_references(1)));
    write(Table::Body, keys::number(9), None);
    let found = verify(store.path());
    let told: Vec<_> = found
        .findings
        .iter()
        .map(|finding| (finding.severity, finding.place.as_str(), finding.key.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Severity::Minor, "left", "entry 4"),
            (Severity::Damage, "queue", "receiver 1 entry 9"),
            (Severity::Damage, "queue", "receiver 2 entry 9"),
            (Severity::Damage, "body", "entry 5"),
            (Severity::Minor, "body", "entry 7"),
        ],
        "{:?}",
        found.findings
    );
}

#[test]
fn a_database_that_can_not_be_opened_is_told_of_file_by_file() {
    let store = filled();
    let mut lists = 0;
    for keyspace in fs::read_dir(store.path().join("data/keyspaces")).unwrap() {
        fs::write(keyspace.unwrap().path().join("current"), b"nonsense").unwrap();
        lists += 1;
    }
    let found = verify(store.path());
    let damage = damage(&found);
    let lists_told = damage
        .iter()
        .filter(|(place, ..)| place.starts_with("data/keyspaces/"));
    assert_eq!(lists_told.count(), lists, "{found:?}");
    assert_eq!(damage.len(), 1 + lists);
    assert!(found.keyspaces.iter().any(|keyspace| keyspace.rows > 0));
    look(store.path(), |store| assert!(store.standing().is_err()));
}

#[test]
fn what_is_no_store_or_in_use_is_refused_and_not_made() {
    let home = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let refusals = |path: &Path| {
        let looked = ClosedStore::open(path, scratch.path(), &options()).err().unwrap();
        let compacted = compact(path, &options(), false).unwrap_err();
        assert_eq!(looked.to_string(), compacted.to_string());
        looked
    };
    let missing = home.path().join("missing");
    for path in [home.path(), &missing] {
        let error = refusals(path);
        assert!(matches!(&error, StoreError::NoStore { .. }), "{error}");
        assert!(error.to_string().contains("is no store"));
    }
    assert!(!missing.exists() && fs::read_dir(home.path()).unwrap().next().is_none());
    let store = filled();
    let (open, _) = store.open();
    assert!(matches!(refusals(store.path()), StoreError::InUse { .. }));
    drop(open);
    // And the other way around: nobody opens what is looked at.
    look(store.path(), |_| {
        let error = crate::open(store.path(), &options()).err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    });
    let newer = crate::fjall_store::note::content("foreshore-store 3");
    fs::write(store.path().join("format"), newer).unwrap();
    assert!(matches!(refusals(store.path()), StoreError::Format { .. }));
}

#[test]
fn a_store_is_as_small_as_what_it_holds_after_a_compaction() {
    let home = tempfile::tempdir().unwrap();
    let (store, _) = crate::open(home.path(), &options()).unwrap();
    let put = Operation::PutReceiver {
        name: "dataflow/a".to_owned(),
        limits: Limits::default(),
    };
    commit(&store, vec![put]);
    // Hardly compressible.
    let body = || {
        (0..40)
            .map(|_| format!("{:032x}", rand::random::<u128>()))
            .collect::<String>()
    };
    for _ in 0..30 {
        commit(&store, (0..100).map(|_| publish(&body(), &[1])).collect());
    }
    let settlements = (2..=3000).map(Settlement::delivered).collect();
    let settle = Operation::Settle {
        receiver: 1,
        epoch: 0,
        settlements,
    };
    commit(&store, vec![settle]);
    store.close().unwrap();
    drop(store);
    let tables = || {
        let queue = fs::read_dir(home.path().join("data/keyspaces/1/tables")).unwrap();
        queue
            .map(|table| table.unwrap().metadata().unwrap().len())
            .sum::<u64>()
    };
    let before = tables();
    assert!(before > 1 << 20, "{before}");
    let compacted = compact(home.path(), &options(), false).unwrap();
    assert!(tables() < 10_000, "{}", tables());
    let gained = compacted.bytes_before.saturating_sub(compacted.bytes_after);
    assert!(gained > 1 << 19, "{compacted:?}");
    let (store, report) = crate::open(home.path(), &options()).unwrap();
    assert!(report.clean && !report.lost_something(), "{report:?}");
    assert_eq!(store.totals(1).unwrap().unwrap().ledger.waiting, 1);
    drop(store);
    assert!(verify(home.path()).is_sound());
}

#[test]
fn a_damaged_store_is_compacted_only_when_it_may_be_mended() {
    let store = filled();
    assert_eq!(store.flip("payload 04"), 1);
    let before = content(store.path());
    let error = compact(store.path(), &options(), false).unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains(".jnl"), "{error}");
    assert!(before == content(store.path()));
    compact(store.path(), &options(), true).unwrap();
    let found = verify(store.path());
    assert!(found.is_sound() && found.closed_in_order, "{found:?}");
    assert_eq!(found.ledger.dropped, 2);
}
