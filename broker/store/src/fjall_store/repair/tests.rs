//! Rows go missing one by one, and what depends on them is set right.

use super::*;
use crate::{
    Batch, Limits, Operation, Settlement, Store,
    memory::MemoryEngine,
    queue_store::QueueStore,
    tests::{everything, publish},
};

/// Three queues with two entries in each, whose records they share.
fn filled() -> QueueStore<MemoryEngine> {
    let store = QueueStore::open(MemoryEngine::default(), None, 7).unwrap();
    let put = |name: &str| Operation::PutReceiver {
        name: name.to_owned(),
        limits: Limits::default(),
    };
    commit(&store, vec![put("a"), put("b"), put("c")]);
    commit(
        &store,
        vec![publish("one", &[1, 2, 3]), publish("two", &[1, 2, 3])],
    );
    store
}

fn commit(store: &QueueStore<MemoryEngine>, operations: Vec<Operation>) {
    let batch = Batch {
        now: BrokerTime(0),
        first_id: store.position().next_id,
        operations,
    };
    store.commit(&[batch]).unwrap();
}

fn lose(store: &QueueStore<MemoryEngine>, rows: &[(Table, &[u8])]) -> Repaired {
    let changes = rows.iter().map(|(table, key)| {
        assert!(has(store, *table, key), "{table:?} {key:?}");
        removal(*table, key)
    });
    store.engine().write(changes.collect()).unwrap();
    repair(store.engine()).unwrap()
}

fn has(store: &QueueStore<MemoryEngine>, table: Table, key: &[u8]) -> bool {
    store.engine().view().get(table, key).unwrap().is_some()
}

fn waiting(store: &QueueStore<MemoryEngine>, receiver: ReceiverId) -> Vec<EntryId> {
    let page = store.read(receiver, everything(), BrokerTime(0)).unwrap();
    assert!(page.damaged.is_empty(), "{:?}", page.damaged);
    let totals = store.totals(receiver).unwrap().unwrap();
    assert!(totals.ledger.balances(), "{totals:?}");
    assert_eq!(totals.ledger.waiting, page.entries.len() as u64);
    page.entries.iter().map(|entry| entry.id).collect()
}

#[test]
fn entries_go_with_their_record_and_a_record_with_its_last_entry() {
    let store = filled();
    let one = keys::number(1);
    let repaired = lose(&store, &[(Table::Body, &one)]);
    assert_eq!((repaired.lost, repaired.returned), (3, 0));
    for receiver in 1..4 {
        assert_eq!(waiting(&store, receiver), [2]);
    }
    let two = [1, 2, 3].map(|receiver| keys::entry(receiver, 2));
    let rows: Vec<_> = two.iter().map(|key| (Table::Queue, &key[..])).collect();
    assert!(has(&store, Table::Body, &keys::number(2)));
    assert_eq!(lose(&store, &rows).lost, 3);
    assert!(!has(&store, Table::Body, &keys::number(2)));
}

#[test]
fn references_are_as_many_as_there_are_entries() {
    let store = filled();
    let repaired = lose(&store, &[(Table::Queue, &keys::entry(3, 1))]);
    assert_eq!((repaired.lost, waiting(&store, 3)), (1, vec![2]));
    // Two are left: with the second of them the record goes.
    for (receiver, stays) in [(1, true), (2, false)] {
        let settlements = vec![Settlement::delivered(1)];
        let settle = Operation::Settle {
            receiver,
            epoch: 0,
            settlements,
        };
        commit(&store, vec![settle]);
        assert_eq!(has(&store, Table::Body, &keys::number(1)), stays);
        assert_eq!(has(&store, Table::Left, &keys::number(1)), stays);
    }
    let count = change(Table::Left, keys::number(1), crate::record::encode_references(2));
    store.engine().write(vec![count]).unwrap();
    repair(store.engine()).unwrap();
    assert!(!has(&store, Table::Left, &keys::number(1)));
}

#[test]
fn names_are_known_from_either_table() {
    let store = filled();
    let (first, second) = (keys::number(1), keys::number(2));
    lose(&store, &[(Table::Receiver, &first), (Table::Name, b"b")]);
    for (name, receiver) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(store.find_receiver(name).unwrap(), Some(receiver));
        assert_eq!(store.receivers(receiver - 1, 1).unwrap()[0].name, name);
    }
    lose(&store, &[(Table::Receiver, &second), (Table::Name, b"b")]);
    assert_eq!(store.find_receiver("lost/2").unwrap(), Some(2));
    assert_eq!(waiting(&store, 2), [1, 2]);
}

#[test]
fn an_older_row_takes_no_name_away() {
    let store = filled();
    let number = rows::encode_number;
    // The third was called "a" when it was made, and a name leads to a receiver that has another.
    let older = [
        change(Table::Receiver, keys::number(3), rows::encode_name("a")),
        change(Table::Name, &b"d"[..], number(2)),
        change(Table::Name, &b"e"[..], Bytes::from(&b"nonsense"[..])),
    ];
    store.engine().write(older.to_vec()).unwrap();
    repair(store.engine()).unwrap();
    let find = |name: &str| store.find_receiver(name).unwrap();
    assert_eq!(
        (find("a"), find("lost/1"), find("b")),
        (Some(3), Some(1), Some(2))
    );
    assert_eq!((find("c"), find("d")), (None, None));
    assert!(!has(&store, Table::Name, b"e"));
    for receiver in 1..4 {
        assert_eq!(waiting(&store, receiver), [1, 2]);
    }
}
