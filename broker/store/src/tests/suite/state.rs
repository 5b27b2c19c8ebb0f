//! Entries of the state store.

use bytes::Bytes;

use crate::{Operation, StateEntry, tests::Harness};

over_all_back_ends!(
    entries_are_read_in_order_of_key_and_survive,
    reads_are_bounded_by_bytes_and_go_on_behind_the_last_key,
    keys_are_neither_empty_nor_too_long,
);

fn put(key: &'static [u8], value: &[u8]) -> Operation {
    Operation::PutState {
        key: Bytes::from_static(key),
        value: Bytes::copy_from_slice(value),
    }
}

fn entry(key: &'static [u8], value: &'static [u8]) -> StateEntry {
    StateEntry {
        key: Bytes::from_static(key),
        value: Bytes::from_static(value),
    }
}

fn entries_are_read_in_order_of_key_and_survive(mut store: Harness) {
    store.commit(vec![put(b"\xff", b"last"), put(b"a", b"old"), put(b"\x00", b"")]);
    store.commit(vec![put(b"a", b"new"), put(b"b", b"gone")]);
    store.one(Operation::DeleteState {
        key: Bytes::from_static(b"b"),
    });
    store.reopen(false);
    let all = [entry(b"\x00", b""), entry(b"a", b"new"), entry(b"\xff", b"last")];
    let mut found = store.store().state(None, usize::MAX).unwrap();
    if !store.keeps_order() {
        found.sort_by(|left, right| left.key.cmp(&right.key));
    }
    assert_eq!(found, all);
    // They are not the state of any session.
    assert!(store.store().sessions(None, 9).unwrap().is_empty());
}

fn reads_are_bounded_by_bytes_and_go_on_behind_the_last_key(store: Harness) {
    store.commit(vec![
        put(b"a", &[1; 100]),
        put(b"b", &[2; 10]),
        put(b"c", &[3; 10]),
    ]);
    let keys = |after: Option<&[u8]>, max_bytes| {
        let page = store.store().state(after, max_bytes).unwrap();
        page.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    if !store.keeps_order() {
        // Whatever comes first, the others come after it, once.
        let (mut found, mut page) = (Vec::new(), keys(None, 0));
        while let Some(last) = page.pop() {
            page = keys(Some(&last), 0);
            found.push(last);
        }
        found.sort();
        assert_eq!(found, ["a", "b", "c"]);
        return;
    }
    assert_eq!(keys(None, 0), ["a"], "at least one");
    assert_eq!(keys(None, 112), ["a", "b"]);
    assert_eq!(keys(Some(b"a"), 112), ["b", "c"]);
    assert!(keys(Some(b"c"), 112).is_empty());
}

fn keys_are_neither_empty_nor_too_long(_: Harness) {
    for key in [Bytes::new(), Bytes::from(vec![0; 70_000])] {
        let value = Bytes::new();
        assert!(Operation::DeleteState { key: key.clone() }.check().is_err());
        assert!(Operation::PutState { key, value }.check().is_err());
    }
}
